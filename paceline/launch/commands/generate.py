"""`paceline generate`: continue prompts with a language topology, and say how its text came about."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, HangTimeout, LauncherName, Overrides, TopologyFile, as_path
from paceline.launch.commands.start import audience_of, loaded_for, preflight, start
from paceline.launch.console import Display
from paceline.launch.errors import ArgumentError
from paceline.launch.language.request import Asked, make_spec, read_prompts
from paceline.launch.language.texts import TextWorkload
from paceline.launch.supervise import HANG_TIMEOUT_S
from paceline.launch.workload import wrong_command
from paceline.pipeline.topology import LanguageTopology
from paceline.runtime.language.parked import ParkedSession, ParkingError, read_parked

__all__ = ["generate"]

_MOST = 2**31 - 1


@guarded
def generate(
    context: typer.Context,
    topology: TopologyFile,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue. Repeatable.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            parser=as_path,
            help="Texts to continue, one a line, as text, JSON strings or JSON objects with options; - for standard "
            "input.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=_MOST, help="Most new tokens of each session.")] = 128,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Seed; the topology's, or that of the parked session, if left out."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Below 1e-5 takes the likeliest token. [default: 0.7]")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that make up this share. [default: 1]")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(min=0, help="Draw from so many likeliest tokens; 0: from all. [default: 0]")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(help="Above 1 makes tokens of the text so far rarer. [default: 1]")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option("--stop", help="End before this text. Repeatable.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end of text.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Decode without a drafter.")] = False,
    serial: Annotated[bool, typer.Option("--serial", help="Plain decoding in one process: the reference.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", parser=as_path, help="Collect texts, summary, pictures.")
    ] = None,
    park: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=as_path, help="Keep sessions, with the verifier's KV, in DIR when they end."
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", parser=as_path, help="Go on with the sessions parked in DIR; prompts are appended."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no text and, without --json, no summary.")] = False,
    launcher: LauncherName = None,
    hang_timeout: HangTimeout = HANG_TIMEOUT_S,
    debug: Debug = False,
) -> None:
    """Continue prompts: a drafter and a verifier on groups of their own, neither waiting for the other.

    What to draw with is taken from the prompt's own options, else from this command line, else from the parked session,
    else from the target's generation_config.json, else from the defaults below.

    Exit codes: 0; 1 the run failed, or every session did; 2 the topology, a model or the arguments are wrong and
    nothing was started; 130 interrupted by Ctrl-C; 143 by SIGTERM.
    """
    with preflight(context, "generate", launcher, serial) as launched:
        loaded = loaded_for(launched, topology, overrides)
        if not isinstance(loaded, LanguageTopology):
            raise wrong_command(topology, loaded)
        resumed = [] if resume is None else _parked(resume)
        if launched is not None and prompts == Path("-"):
            raise ArgumentError("--prompts -: the ranks of torchrun share no standard input; name a file")
        asked = Asked(
            prompts=read_prompts(prompt or [], prompts, len(resumed)),
            max_tokens=max_tokens,
            seed=seed,
            sampling={
                "temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty
            },
            stop=tuple(stop or ()),
        )  # fmt: skip
        spec = make_spec(loaded, asked, resumed, ignore_eos=ignore_eos, plain=plain, serial=serial)
        spec = replace(spec, out=None if out is None else out.resolve(), park=None if park is None else park.resolve())
        people = not quiet and not as_json
        # Text shows how far a generation is.
        display = Display(len(spec.prompts), quiet=True)
        workload = TextWorkload(spec, audience_of(display, people, as_json), stream=people)
        workload.check(topology)
    start(workload, launcher, launched, hang_timeout, debug)


def _parked(folder: Path) -> list[tuple[Path, ParkedSession]]:
    try:
        return read_parked(folder.resolve())
    except ParkingError as error:
        raise ArgumentError(f"--resume {error}") from error
