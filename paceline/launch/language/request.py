"""From what a user asked for to the spec of a generation: which option holds for which session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from paceline.launch.errors import ArgumentError
from paceline.launch.language.prompts import Prompt, check_text
from paceline.pipeline.topology import LanguageTopology
from paceline.runtime.language.models import find_folder
from paceline.runtime.language.parked import ParkedSession
from paceline.runtime.spec import GenerateSpec, Resumed, SessionOptions
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.generation_config import GenerationDefaults
from paceline.stages.sampling_params import SAMPLING_DEFAULTS, SamplingParams

__all__ = ["Asked", "make_spec"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What the command line says. Values of `sampling` that are None, and a `seed` of None, were left out."""

    prompts: tuple[Prompt, ...]
    max_tokens: int
    seed: int | None
    sampling: Mapping[str, float | None]
    stop: tuple[str, ...] = ()


def make_spec(
    topology: LanguageTopology,
    asked: Asked,
    parked: Sequence[tuple[Path, ParkedSession]],
    *,
    ignore_eos: bool = False,
    plain: bool = False,
    serial: bool = False,
) -> GenerateSpec:
    """The spec of a generation, with what to warn of. Raises `ArgumentError`.

    Sampling is what the prompt's own options say, else the command line, else the parked session, else the target's
    `generation_config.json`, else `SAMPLING_DEFAULTS`.
    """
    for text in asked.stop:
        check_text("--stop", text)
        if not text:
            raise ArgumentError("--stop: an empty text ends everything; leave it out")
    try:
        defaults = GenerationDefaults.read(find_folder(topology.model.target))
    except ModelFolderError as error:
        raise ArgumentError(str(error)) from error
    seed = topology.seed if asked.seed is None else asked.seed
    usual = SAMPLING_DEFAULTS | defaults.sampling
    given = {name: value for name, value in asked.sampling.items() if value is not None}
    coupling = topology.speculation.coupling

    def params(values: Mapping[str, float]) -> SamplingParams:
        return SamplingParams(
            values["temperature"], int(values["top_k"]), values["top_p"], values["repetition_penalty"], seed, coupling
        )

    own = []
    try:
        common = params(usual | given)
        for number, prompt in enumerate(asked.prompts):
            before = parked[number][1].sampling if parked else {}
            mine = {name: value for name in SAMPLING_DEFAULTS if (value := getattr(prompt, name)) is not None}
            try:
                drawn = params(usual | before | given | mine)
            except ValueError as error:
                raise ArgumentError(f"prompt {number}: {error}") from error
            own.append(
                SessionOptions(
                    drawn,
                    asked.max_tokens if prompt.max_tokens is None else prompt.max_tokens,
                    asked.stop if prompt.stops is None else prompt.stops,
                    _seed(prompt.seed),
                )
            )
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    if parked and len({options.sampling for options in own}) == 1:
        common = own[0].sampling
    alike = all(options == SessionOptions(common, asked.max_tokens, asked.stop) for options in own)
    resumed = tuple(
        Resumed(folder, it if asked.seed is None else replace(it, seed=_session_seed(asked.seed, it.number)))
        for folder, it in parked
    )
    texts = tuple(prompt.prompt for prompt in asked.prompts)
    return GenerateSpec(
        topology, texts, asked.max_tokens, seed, common, asked.stop, ignore_eos, plain, serial, resumed=resumed,
        own=() if alike else tuple(own),
        warnings=tuple(
            f"{topology.model.target}: generation_config.json asks for {name}, which is not supported and left out"
            for name in defaults.unsupported
        ),
    )  # fmt: skip


def _seed(seed: int | None) -> int | None:
    return None if seed is None else _session_seed(seed, 0)


def _session_seed(seed: int, session: int) -> int:
    # Imported here: most runs name no seed of a session, and need no torch for that.
    from paceline.kernels.philox import session_seed

    return session_seed(seed, session)
