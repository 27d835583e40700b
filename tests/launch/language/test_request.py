"""Which option holds for which session, and what a model's folder may say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paceline.kernels.philox import session_seed
from paceline.launch.errors import ArgumentError
from paceline.launch.language.request import Asked, Prompt, make_spec
from paceline.pipeline.load import load_topology
from paceline.runtime.language.parked import ParkedSession
from paceline.runtime.spec import GenerateSpec
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.generation_config import GenerationDefaults
from tests.harness import ROOT

NOTHING = dict.fromkeys(("temperature", "top_k", "top_p", "repetition_penalty"))


def folder(where: Path, **keys: Any) -> Path:
    where.mkdir(exist_ok=True)
    (where / "generation_config.json").write_text(json.dumps(keys))
    return where


def spec(
    target: Path, *prompts: Prompt, parked: tuple[ParkedSession, ...] = (), seed: int | None = None, **given: Any
) -> GenerateSpec:
    topology = load_topology(ROOT / "topologies" / "speculate-2.yaml", [f"model.target={target}"])
    asked = Asked(prompts, 9, seed, NOTHING | given, ("end",))
    return make_spec(topology, asked, [(Path("x"), session) for session in parked])


def drawn(found: GenerateSpec) -> list[dict[str, float]]:
    return [found.options(session).sampling.options() for session in range(len(found.prompts))]


def test_without_a_word_the_usual_holds(tmp_path: Path) -> None:
    found = spec(tmp_path, Prompt("a"), Prompt("b"))
    usual = {"temperature": 0.7, "top_k": 0.0, "top_p": 1.0, "repetition_penalty": 1.0}
    assert drawn(found) == [usual, usual]
    assert (found.own, found.warnings) == ((), ())
    assert [found.session_seed(session) for session in range(2)] == [session_seed(0, 0), session_seed(0, 1)]


def test_who_is_heard_first(tmp_path: Path) -> None:
    """The prompt, then the command line, then the parked session, then the model's folder."""
    target = folder(tmp_path / "m", temperature=0.1, top_k=1, top_p=0.1, repetition_penalty=1.1, do_sample=True)
    parked = ParkedSession(0, 5, [1], "length", 1, {"temperature": 0.2, "top_k": 2.0, "top_p": 0.2})
    found = spec(target, Prompt("", temperature=0.4), parked=(parked,), temperature=0.3, top_k=3)
    assert drawn(found) == [{"temperature": 0.4, "top_k": 3.0, "top_p": 0.2, "repetition_penalty": 1.1}]
    assert found.session_seed(0) == 5


def test_each_prompt_has_its_options(tmp_path: Path) -> None:
    found = spec(tmp_path, Prompt("a", seed=4, max_tokens=3, top_k=2, stop="s"), Prompt("b", stop=[]), seed=8)
    assert [(o.max_tokens, o.stop) for o in map(found.options, range(2))] == [(3, ("s",)), (9, ())]
    assert [found.session_seed(session) for session in range(2)] == [session_seed(4, 0), session_seed(8, 1)]
    assert [sampling["top_k"] for sampling in drawn(found)] == [2.0, 0.0]
    with pytest.raises(ArgumentError, match="prompt 1: top_p is 2"):
        spec(tmp_path, Prompt("a"), Prompt("b", top_p=2.0))


def test_parked_sessions_go_on_as_each_was_drawn(tmp_path: Path) -> None:
    parked = tuple(ParkedSession(n, n, [1], "length", 1, {"temperature": n / 10}) for n in range(3))
    found = spec(tmp_path, *[Prompt("")] * 3, parked=parked)
    assert [sampling["temperature"] for sampling in drawn(found)] == [0.0, 0.1, 0.2]
    assert [found.session_seed(session) for session in range(3)] == [0, 1, 2]


def test_do_sample_false_is_greedy(tmp_path: Path) -> None:
    target = folder(tmp_path / "m", do_sample=False, temperature=0.9, top_k=None)
    assert GenerationDefaults.read(target).sampling == {"temperature": 0.0}
    assert drawn(spec(target, Prompt("a")))[0]["temperature"] == 0.0
    assert drawn(spec(target, Prompt("a"), temperature=0.5))[0]["temperature"] == 0.5


def test_what_is_not_supported_is_named(tmp_path: Path) -> None:
    target = folder(
        tmp_path / "m", min_p=0.05, num_beams=4, typical_p=1.0, bad_words_ids=None, suppress_tokens=[], eos_token_id=3,
        max_length=20, renormalize_logits=True,
    )  # fmt: skip
    found = spec(target, Prompt("a"))
    wrong = "which is not supported and left out"
    assert found.warnings == tuple(
        f"{target}: generation_config.json asks for {name}, {wrong}" for name in ("min_p 0.05", "num_beams 4")
    )


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": "hot"}, "temperature is 'hot', no number"),
        ({"temperature": True}, "temperature is True, no number"),
        ({"temperature": -1}, "temperature is -1 but has to be from 0 to 1e6"),
        ({"temperature": float("nan")}, "temperature is nan but"),
        ({"top_k": 1.5}, "top_k is 1.5, no whole number"),
        ({"top_p": 0}, "top_p is 0 but has to be above 0 and at most 1"),
    ],
)
def test_values_without_meaning_are_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelFolderError, match=f"generation_config.json: {message}.*mend or remove it"):
        GenerationDefaults.read(folder(tmp_path / "m", **keys))


@pytest.mark.parametrize("text", ["[]", "{", "[" * 100_000, "\udcff"])
def test_a_broken_file_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "generation_config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelFolderError, match="download it again"):
        GenerationDefaults.read(tmp_path)


def test_every_key_that_transformers_samples_by_is_known() -> None:
    """A new one has to be supported or named."""
    from transformers import GenerationConfig

    from paceline.stages.lm import generation_config

    harmless = {
        "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind", "bos_token_id", "cache_config",
        "cache_implementation", "compile_config", "continuous_batching_config", "decoder_start_token_id",
        "disable_compile", "do_sample", "early_stopping", "eos_token_id", "is_assistant", "length_penalty",
        "low_memory", "max_cache_len", "max_length", "max_matching_ngram_size", "max_new_tokens", "max_time",
        "num_assistant_tokens", "num_assistant_tokens_schedule", "output_attentions", "output_hidden_states",
        "output_logits", "output_scores", "pad_token_id", "prefill_chunk_size", "prompt_lookup_num_tokens",
        "remove_invalid_values", "renormalize_logits", "return_dict_in_generate", "speculation_type",
        "target_lookbehind", "transformers_version", "use_cache", "use_mtp",
    }  # fmt: skip
    theirs = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    ours = {*generation_config._NEUTRAL, *NOTHING}
    assert theirs - ours - harmless == set()
