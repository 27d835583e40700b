"""From what a user asked for to the spec of a generation: which option holds for which session.

A file of prompts holds one a line. A line that begins with `{` is a JSON object with a `prompt` and options for its
session, a line that begins with `"` a JSON string, any other line is text as it stands. Empty lines are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec.structs import replace

from paceline.launch.errors import ArgumentError
from paceline.pipeline.topology import LanguageTopology
from paceline.runtime.language.models import find_folder
from paceline.runtime.language.parked import ParkedSession
from paceline.runtime.spec import GenerateSpec, Resumed, SessionOptions
from paceline.stages.lm.folder import ModelFolderError
from paceline.stages.lm.generation_config import GenerationDefaults
from paceline.stages.sampling_params import SAMPLING_DEFAULTS, SamplingParams

__all__ = ["Asked", "Prompt", "check_text", "make_spec", "read_prompts"]


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


_STDIN = Path("-")
_MOST_BYTES = 64 << 20
"""Of a file of prompts: more than any run takes, and less than fills the memory"""

_Most = Annotated[int, msgspec.Meta(ge=1, le=(1 << 31) - 1)]


class Prompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text to continue. Options that are left out are those of the command."""

    prompt: str
    seed: Annotated[int, msgspec.Meta(ge=0, le=(1 << 63) - 1)] | None = None
    """As `--seed` for a run of this session alone."""
    max_tokens: _Most | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    stop: str | list[str] | None = None

    @property
    def stops(self) -> tuple[str, ...] | None:
        """The stop strings; None where the command's hold."""
        return (self.stop,) if isinstance(self.stop, str) else None if self.stop is None else tuple(self.stop)


class _NamedTwice(Exception):
    """A key that an object has twice."""


def _named_once(pairs: Sequence[tuple[str, object]]) -> None:
    for place, (key, _) in enumerate(pairs):
        if any(key == other for other, _ in pairs[:place]):
            raise _NamedTwice(repr(key))


def read_prompts(given: Sequence[str], file: Path | None, resumed: int = 0) -> tuple[Prompt, ...]:
    """Prompts from `--prompt` and `--prompts`, where `-` is standard input; for `resumed` sessions one each, or empty
    ones. Raises `ArgumentError`."""
    prompts = [Prompt(text) for text in given]
    for number, text in enumerate(given):
        check_text("--prompt" if len(given) == 1 else f"--prompt {number}", text)
    if file is not None:
        prompts += _of_file(file)
    if resumed and not prompts:
        return (Prompt(""),) * resumed
    if resumed and len(prompts) != resumed:
        raise ArgumentError(f"{len(prompts)} prompt(s) for {resumed} parked session(s); give one for each, or none")
    if not prompts:
        raise ArgumentError("there is no prompt; give --prompt TEXT or --prompts FILE")
    return tuple(prompts)


def check_text(where: str, text: str) -> None:
    """Check that a text can be encoded and holds no NUL. Raises `ArgumentError`."""
    for place, character in enumerate(text):
        if "\ud800" <= character <= "\udfff":
            # Python's way to pass on a byte of the command line that is no UTF-8.
            if "\udc80" <= character <= "\udcff":
                what = f"byte 0x{ord(character) & 0xFF:02x}, which is not UTF-8"
            else:
                what = f"half of a surrogate pair (U+{ord(character):04X}), which is no character"
            raise ArgumentError(f"{where}: character {place} is {what}; give text in UTF-8")
        if character == "\0":
            raise ArgumentError(f"{where}: character {place} is NUL; remove it, or give the text of the file in UTF-8")


def _of_file(file: Path) -> Iterator[Prompt]:
    name = "--prompts -" if file == _STDIN else f"--prompts {file}"
    try:
        if file == _STDIN:
            data = sys.stdin.buffer.read(_MOST_BYTES + 1)
        else:
            with file.open("rb") as opened:
                data = opened.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ArgumentError(f"{name}: can't be read: {reason}; name a text file, or - for standard input") from error
    if len(data) > _MOST_BYTES:
        raise ArgumentError(f"{name}: holds more than {_MOST_BYTES >> 20} MiB; split it, and start a run for each part")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ArgumentError(
            f"{name}: line {line} holds byte 0x{data[error.start]:02x}, which is not UTF-8; save the file as UTF-8"
        ) from error
    # Not splitlines: a prompt may hold what it takes for the end of a line.
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r")
        if line.strip():
            yield _of_line(f"{name}: line {number}", line)


def _of_line(where: str, line: str) -> Prompt:
    found: Prompt | str
    if line.lstrip().startswith(("{", '"')):
        try:
            found = msgspec.json.decode(line, type=Prompt | str)
            json.loads(line, object_pairs_hook=_named_once)  # msgspec takes the last of two
        except msgspec.MsgspecError as error:
            raise ArgumentError(
                f'{where}: {error}; a line that begins with {{ or " is JSON, so write text that begins '
                'with one of them as a JSON string, "..."'
            ) from error
        except _NamedTwice as error:
            raise ArgumentError(f"{where}: has {error} twice; remove one") from error
        except RecursionError as error:
            raise ArgumentError(f"{where}: is nested too deeply; write the options of a prompt flat") from error
    else:
        found = line
    prompt = Prompt(found) if isinstance(found, str) else found
    check_text(where, prompt.prompt)
    for stop in prompt.stops or ():
        check_text(f"{where}: stop", stop)
        if not stop:
            raise ArgumentError(f"{where}: stop: an empty text ends everything; leave it out")
    return prompt
