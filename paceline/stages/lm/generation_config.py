"""The sampling that a model's folder asks for, in `generation_config.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.sampling_params import SAMPLING_DEFAULTS, SamplingParams

__all__ = ["GenerationDefaults"]

_FILE = "generation_config.json"

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "assistant_confidence_threshold": (), "bad_words_ids": (), "begin_suppress_tokens": (), "constraints": (),
    "diversity_penalty": (0.0,), "dola_layers": (), "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,), "epsilon_cutoff": (0.0,), "eta_cutoff": (0.0,),
    "exponential_decay_length_penalty": (), "force_words_ids": (), "forced_bos_token_id": (),
    "forced_eos_token_id": (), "guidance_scale": (1.0,), "min_length": (0,), "min_new_tokens": (0,), "min_p": (0.0,),
    "no_repeat_ngram_size": (0,), "num_beam_groups": (1,), "num_beams": (1,), "num_return_sequences": (1,),
    "penalty_alpha": (0.0,), "sequence_bias": (), "stop_strings": (), "suppress_tokens": (), "top_h": (),
    "token_healing": (), "typical_p": (1.0,), "watermarking_config": (),
}  # fmt: skip
"""Keys of Transformers that would change which tokens are chosen and that are not supported, with the values (beside
null and an empty list) that change nothing."""


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a folder asks for: `sampling` by the names of `SAMPLING_DEFAULTS`, and the `unsupported` keys that it sets
    to something that would matter, each as `name value`."""

    sampling: dict[str, float] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> GenerationDefaults:
        """Read `generation_config.json`; where there is none, nothing is asked for.

        `temperature`, `top_k`, `top_p` and `repetition_penalty` are taken as they are, null as left out. `do_sample:
        false` is temperature 0. Raises `ModelFolderError` where the file can't be read or a value has no meaning.
        """
        path = folder / _FILE
        if not path.is_file():
            return cls()
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ModelFolderError(f"{path}: can't be read as JSON ({error}); download it again") from error
        if not isinstance(raw, dict):
            raise ModelFolderError(f"{path}: is no JSON object; download it again")
        sampling: dict[str, float] = {}
        for name in SAMPLING_DEFAULTS:
            value = raw.get(name)
            if value is None:
                continue
            whole = name == "top_k"
            if isinstance(value, bool) or not isinstance(value, int if whole else (int, float)):
                kind = "whole number" if whole else "number"
                raise ModelFolderError(f"{path}: {name} is {value!r}, no {kind}; mend or remove it")
            sampling[name] = value
        if raw.get("do_sample") is False:
            sampling["temperature"] = 0.0
        try:
            SamplingParams(
                sampling.get("temperature", 0.0), int(sampling.get("top_k", 0)), sampling.get("top_p", 1.0),
                sampling.get("repetition_penalty", 1.0),
            )  # fmt: skip
        except ValueError as error:
            raise ModelFolderError(f"{path}: {error}; mend or remove it") from error
        return cls(sampling, tuple(_ignored(raw)))


def _ignored(raw: dict[str, Any]) -> list[str]:
    return [
        f"{name} {json.dumps(raw[name])[:40]}"
        for name, neutral in _NEUTRAL.items()
        if name in raw and raw[name] not in (None, [], {}, False, *neutral)
    ]
