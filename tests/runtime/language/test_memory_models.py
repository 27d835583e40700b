"""A target, and a drafter, with memory layers under speculation: the text of plain decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.launch.language.pair import VOCAB, save_tokenizer
from tests.runtime.language.cluster import Cluster, language, serial, spec_of, texts
from tests.runtime.language.test_same_text import PROMPTS, check_all_free, counted
from tests.runtime.language.test_tiers import tiers, told
from tests.stages.lm.memory_models import save_memory

Pair = tuple[Path, Path]
KINDS = {
    "gated_delta": ["gated_delta", "delta", "gated_delta"],
    "ttt_linear": ["ttt_linear", "gated_delta", "ttt_linear"],
    "hybrid": ["attention", "gated_delta", "attention"],
}


def save_memory_pair(kind: str, folder: Path) -> Pair:
    """A random target, and a drafter that is the same but for noise on its weights."""
    torch.set_num_threads(1)
    target, draft = folder / "target", folder / "draft"
    model = save_memory(target, KINDS[kind], vocab_size=VOCAB)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() > 1 and float(parameter.std()) > 0:
                parameter.add_(torch.randn(parameter.shape, generator=draw) * parameter.std() * 0.05)
    model.save_pretrained(draft)
    for path in (target, draft):
        save_tokenizer(path)
    return target, draft


@pytest.fixture(scope="module", params=list(KINDS))
def memory_pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return save_memory_pair(request.param, tmp_path_factory.mktemp(request.param))


SETTINGS: list[tuple[int | str, int | str, int, int, float, dict[str, Any]]] = [
    # window, depth, hedge, verifiers, temperature, other keys
    (1, 4, 6, 1, 0.0, {}),
    (3, 2, 4, 1, 1.0, {"inject__jitter_ms": 3}),
    (4, 3, 3, 2, 1.0, {"speculation__chunk": 5}),
    (6, 4, 5, 3, 0.0, {"speculation__rows": 5}),
    ("auto", "auto", 0, 1, 1.0, {}),
]


@pytest.mark.parametrize(("window", "depth", "hedge", "verifiers", "temperature", "more"), SETTINGS)
def test_settings_change_no_token(
    memory_pair: Pair, window: int | str, depth: int | str, hedge: int, verifiers: int, temperature: float,
    more: dict[str, Any],
) -> None:  # fmt: skip
    keys = {"speculation__window": window, "speculation__depth": depth, "speculation__hedge": hedge} | more
    spec = spec_of(language(memory_pair, verifiers, **keys), PROMPTS, temperature=temperature, ignore_eos=True)
    cluster = Cluster(spec)
    result = cluster.run()
    assert texts(result) == texts(serial(spec))
    assert [len(text.token_ids) for text in result.sessions] == [24] * 4
    if isinstance(window, int):
        # Something was drafted and some of it was wrong, so states were rolled back.
        assert 0 < counted(result, "accepted") < counted(result, "judged")
    check_all_free(cluster)


@pytest.mark.parametrize("deterministic", [True, False])
def test_tiers_hold_the_kv_of_attention_layers(tmp_path: Path, deterministic: bool) -> None:
    """Most of it outside of hbm; states stay where they are."""
    hybrid = save_memory_pair("hybrid", tmp_path)
    keys = {"speculation__window": 4, "speculation__depth": 2, "speculation__hedge": 3, "deterministic": deterministic,
            "speculation__patience_ms": 20000}  # fmt: skip
    spec = spec_of(language(hybrid, 1, **keys, **tiers(tmp_path, 6, 3)), PROMPTS, ignore_eos=True)
    without = spec_of(language(hybrid, 1, **keys), PROMPTS, ignore_eos=True)
    result = Cluster(spec).run()
    assert texts(result) == texts(serial(without))
    assert told(result, "verifier")["shared_positions"] == 0


RECALL = ("k17 v3 k5 v90 k200 v41 k33 v7 w1 w8 k5", "k1 v1 k2 v2 k3 v3 k4 v4 k1 v1 k3", "w3 w4 k9 v9 w3 k9")


@pytest.mark.parametrize(
    ("target", "draft", "verifiers", "temperature"),
    [("gated_delta", "draft", 1, 1.0), ("gated_delta", "draft", 2, 0.0), ("ttt_linear", "gated_delta", 1, 0.8),
     ("gated_delta", None, 2, 1.0)],
)  # fmt: skip
def test_the_shipped_models(target: str, draft: str | None, verifiers: int, temperature: float) -> None:
    """Prompts of associative recall; without a draft model, what was looked up in the prompt is drafted."""
    models = f"zoo:mqar/{target}", f"zoo:mqar/{draft or target}"
    keys: dict[str, Any] = {"speculation__window": 3, "speculation__depth": 3, "speculation__hedge": 3 if draft else 0}
    if draft is None:
        keys["speculation__drafter"] = "ngram"
    spec = spec_of(language(models, verifiers, **keys), RECALL, 40, temperature=temperature)  # type: ignore[arg-type]
    cluster = Cluster(spec)
    result, reference = cluster.run(), serial(spec)
    assert texts(result) == texts(reference)
    assert counted(result, "judged") > 0
    if temperature == 0.0:
        assert reference.sessions[0].text.split()[0] == "v90"
