"""Logits that are not finite end their session by name, with the right text before; no other session notices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from paceline.pipeline.speculation.window import Window
from paceline.runtime.language import serial as serial_module
from paceline.runtime.language.actor import LanguageActor
from paceline.runtime.language.drafter import DrafterActor
from paceline.runtime.result import LanguageResult
from paceline.stages.finite import can_choose
from paceline.stages.lm.decoder import Decoder
from paceline.stages.lm.draft_stage import ModelDraftStage
from paceline.stages.lm.folder import ModelFolderError
from tests.launch.language.pair import save_pair
from tests.runtime.language.cluster import Cluster, language, serial, spec_of
from tests.runtime.language.test_same_text import check_all_free
from tests.runtime.language.test_tiers import tiers

Pair = tuple[Path, Path]
PROMPTS = ("def add(a, b):\n    return", "class", "    def __init__(self, name):\n        self.name = name\n")
WHY = "the logits hold NaN or infinity; see that the weights are those of a model that works"


def spoil(decoder: Decoder, token: int) -> None:
    """Whatever is computed behind a token is NaN."""
    embed = decoder._run.embed

    def spoilt(ids: Tensor, positions: Tensor) -> Tensor:
        return torch.where((ids == token)[..., None], torch.nan, embed(ids, positions))

    if decoder.first:
        decoder._run.embed = spoilt  # type: ignore[method-assign]


def check(result: LanguageResult, right: LanguageResult, token: int) -> None:
    """Sessions whose text holds the token end with what comes before it is read, and say so; others are whole."""
    failed = []
    for found, whole in zip(result.sessions, right.sessions, strict=True):
        if token not in whole.token_ids[:-1]:
            assert (found.token_ids, found.finish_reason) == (whole.token_ids, whole.finish_reason)
            continue
        failed.append(found.id)
        assert found.finish_reason == "failed"
        assert found.token_ids == whole.token_ids[: len(found.token_ids)]
        assert len(found.token_ids) <= whole.token_ids.index(token) + 1
    assert 0 < len(failed) < len(PROMPTS)
    assert len(result.warnings) == len(failed)
    for number, warning in zip(failed, sorted(result.warnings), strict=True):
        assert warning.startswith(f"session {number} failed") and warning.endswith(WHY)


@pytest.mark.parametrize(
    ("verifiers", "more"),
    [
        (1, {}),
        (2, {"speculation__coupling": "rejection"}),
        (1, {"deterministic": False}),
        (1, {"speculation__drafter": "none", "speculation__hedge": 0}),
        (1, {"tiers": True}),
    ],
)
def test_a_session_ends_before_what_is_not_finite(
    pair: Pair, tmp_path: Path, verifiers: int, more: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    budgets = tiers(tmp_path, 9, 400) if more.pop("tiers", False) else {}
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__patience_ms": 20000, **more}
    spec = spec_of(language(pair, verifiers, **keys), PROMPTS, 20, temperature=0.0, ignore_eos=True)
    right = serial(spec)
    # A token that some sessions read and others don't.
    seen = [set(text.token_ids[:-1]) for text in right.sessions]
    prompts = {token for number in range(3) for token in spec.begin(number, models_of(spec).tokenizer())}
    token = max(
        token for token in set().union(*seen) - prompts if 0 < sum(token in tokens for tokens in seen) < len(seen)
    )

    def prepare(actor: LanguageActor) -> None:
        if not isinstance(actor, DrafterActor):
            spoil(actor.stage.decoder, token)  # type: ignore[attr-defined]

    tiered = spec_of(language(pair, verifiers, **keys, **budgets), PROMPTS, 20, temperature=0.0, ignore_eos=True)
    cluster = Cluster(tiered, prepare)
    check(cluster.run(), right, token)
    check_all_free(cluster)
    load = Decoder.load

    def spoilt(*arguments: Any, **options: Any) -> Decoder:
        decoder = load(*arguments, **options)
        spoil(decoder, token)
        return decoder

    monkeypatch.setattr(serial_module.Decoder, "load", spoilt)
    plain = serial_module.generate_serial(spec, models_of(spec), None)
    check(plain, right, token)
    for found, whole in zip(plain.sessions, right.sessions, strict=True):
        if found.finish_reason == "failed":
            assert len(found.token_ids) == whole.token_ids.index(token) + 1


def models_of(spec: Any) -> Any:
    from paceline.runtime.language.models import Models

    return Models.of(spec)


@pytest.mark.parametrize("coupling", ["gumbel", "rejection", "greedy"])
def test_a_drafter_that_is_not_finite_changes_no_session(pair: Pair, coupling: str) -> None:
    keys = {"speculation__window": 3, "speculation__depth": 2, "speculation__coupling": coupling}
    temperature = 0.0 if coupling == "greedy" else 0.8
    spec = spec_of(language(pair, **keys), PROMPTS, 20, temperature=temperature, ignore_eos=True)

    judged: list[bool] = []

    def prepare(actor: LanguageActor) -> None:
        if isinstance(actor, DrafterActor):
            stage = actor._stage
            assert isinstance(stage, ModelDraftStage)
            decoder, evidence = stage._decoder, stage.evidence

            def seen(window: Window) -> tuple[Tensor | None, Tensor | None]:
                given = evidence(window)
                judged.extend(bool(part.isnan().any()) for part in given if part is not None)
                return given

            stage.evidence = seen  # type: ignore[method-assign]
            head = decoder._run.logits
            decoder._run.logits = lambda hidden: head(hidden) * torch.nan  # type: ignore[method-assign]

    result = Cluster(spec, prepare).run()
    assert [text.finish_reason for text in result.sessions] == ["length"] * 3
    assert result.warnings == []
    assert not any(judged) and bool(judged) == (coupling == "rejection")
    if coupling != "rejection":
        assert [text.token_ids for text in result.sessions] == [text.token_ids for text in serial(spec).sessions]


@pytest.mark.parametrize("layers", [None, (0, 1), (1, 3)])
@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, layers: tuple[int, int] | None, wrong: float
) -> None:
    target, _ = save_pair(tmp_path)
    path = target / "model.safetensors"
    state = load_file(str(path))
    name = f"model.layers.{0 if layers is None or not layers[0] else 2}.mlp.up_proj.weight"
    state[name][3, 4] = wrong
    save_file(state, str(path), metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=f"the weight `{name}` holds NaN or infinity"):
        Decoder.load(target, layers=layers)


def test_a_row_may_rule_tokens_out() -> None:
    rows = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, 2.0, -torch.inf]])
    assert can_choose(rows)
    for wrong in (torch.nan, torch.inf):
        spoilt = rows.clone()
        spoilt[1, 0] = wrong
        assert not can_choose(spoilt)
    assert not can_choose(torch.full((1, 3), -torch.inf))
