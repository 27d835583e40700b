"""`paceline generate`: continue prompts with a language topology, and say how its text came about."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from msgspec.structs import replace

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile
from paceline.launch.commands.run import LAUNCHED
from paceline.launch.errors import ArgumentError
from paceline.launch.failure import Failure
from paceline.launch.files import check_curve
from paceline.launch.folders import make_writable
from paceline.launch.summary import Summary
from paceline.launch.supervise import HANG_TIMEOUT_S
from paceline.launch.torchrun import Launched, record_failure
from paceline.pipeline.load import load_topology
from paceline.pipeline.problem import TopologyError
from paceline.pipeline.topology import Topology
from paceline.runtime.language.parked import ParkedSession, ParkingError, read_parked

__all__ = ["generate", "read_prompts"]


@guarded
def generate(
    context: typer.Context,
    topology: TopologyFile,
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue. Repeatable.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Texts to continue: a JSON string a line.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens of each session.")] = 128,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**63 - 1, help="Seed; the topology's, or that of the parked session, if left out."),
    ] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="0 takes the likeliest token. [default: 0.7]")
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
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Collect texts, summary and pictures.")] = None,
    park: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep sessions, with the verifier's KV, in DIR when they end.")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Go on with the sessions parked in DIR; prompts are appended.")
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print no text and, without --json, no summary.")] = False,
    hang_timeout: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="A worker that is silent for longer counts as hung.")
    ] = HANG_TIMEOUT_S,
    debug: Debug = False,
) -> None:
    """Continue prompts: a drafter and a verifier on groups of their own, neither waiting for the other.

    Exit codes: 0; 1 the run failed; 2 the topology, a model or the arguments are wrong and nothing was started; 130
    interrupted by Ctrl-C; 143 by SIGTERM.
    """
    launched = Launched.from_environment() if context.obj is LAUNCHED else None
    first = launched is None or launched.rank == 0
    try:
        loaded = load_topology(topology, overrides or [], None if launched is None else launched.world_size)
        if loaded.workload != "language":
            raise ArgumentError(f"{topology} makes frames; start it with `paceline run`")
        resumed = [] if resume is None else _parked(resume)
        texts = read_prompts(prompt or [], prompts, len(resumed))
        if launched is not None and serial:
            raise ArgumentError("--serial runs in one process; start it with `paceline generate`, without torchrun")
        start = _checked(
            loaded, texts, max_tokens, loaded.seed if seed is None else seed,
            {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty},
            tuple(stop or ()), ignore_eos, plain, serial,
            None if out is None else out.resolve(), None if park is None else park.resolve(), resumed,
            seed is not None,
        )  # fmt: skip
    except (TopologyError, ArgumentError) as error:
        if launched is not None:
            record_failure(Failure.of(launched.rank, error))
        if first:
            raise
        raise typer.Exit(2) from None
    summary = start(launched, not quiet and not as_json, hang_timeout, debug)
    if summary is not None:
        for warning in summary["warnings"]:
            print(f"paceline: warning: {warning}", file=sys.stderr, flush=True)
        if out is not None and not quiet and not as_json:
            print(f"outputs in {out.resolve()}")
        if as_json:
            print(json.dumps(summary))
        sys.stdout.flush()


def read_prompts(given: list[str], file: Path | None, resumed: int = 0) -> tuple[str, ...]:
    """Prompts from `--prompt` and `--prompts`; for `resumed` sessions one each, or empty ones. Raises
    `ArgumentError`."""
    texts = list(given)
    if file is not None:
        try:
            # Not splitlines: a JSON string may hold what it takes for the end of a line.
            lines = file.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ArgumentError(f"--prompts {file}: can't be read: {error}") from error
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)
            except ValueError:
                text = None
            if not isinstance(text, str):
                raise ArgumentError(f'--prompts {file}: line {number} is no JSON string; write "..." on each line')
            texts.append(text)
    if resumed and not texts:
        return ("",) * resumed
    if resumed and len(texts) != resumed:
        raise ArgumentError(f"{len(texts)} prompt(s) for {resumed} parked session(s); give one for each, or none")
    if not texts:
        raise ArgumentError("there is no prompt; give --prompt TEXT or --prompts FILE")
    return tuple(texts)


def _parked(folder: Path) -> list[tuple[Path, ParkedSession]]:
    try:
        return read_parked(folder.resolve())
    except ParkingError as error:
        raise ArgumentError(f"--resume {error}") from error


_Start = Callable[[Launched | None, bool, float, bool], Summary | None]


def _checked(
    topology: Topology,
    prompts: tuple[str, ...],
    max_tokens: int,
    seed: int,
    sampling: dict[str, float | None],
    stop: tuple[str, ...],
    ignore_eos: bool,
    plain: bool,
    serial: bool,
    out: Path | None,
    park: Path | None,
    parked: list[tuple[Path, ParkedSession]],
    reseed: bool,
) -> _Start:
    """Everything that can be known to be right before a process starts; returns what starts it."""
    # Imported here: Transformers takes seconds, and a wrong topology should not wait for it.
    from paceline.kernels.philox import session_seed
    from paceline.launch.language.parking import check_parking, sampling_of
    from paceline.launch.language.start import start
    from paceline.launch.language.tiers import check_tiers_hold
    from paceline.runtime.language.models import Models
    from paceline.runtime.language.spec import GenerateSpec, Resumed
    from paceline.stages.lm.folder import ModelFolderError
    from paceline.stages.lm.layer_run import even_runs
    from paceline.stages.sampling_params import SamplingParams

    drawn = sampling_of(sampling, [session for _, session in parked])
    if any(not text for text in stop):
        raise ArgumentError("--stop: an empty text ends everything; leave it out")
    try:
        params = SamplingParams(
            drawn["temperature"], int(drawn["top_k"]), drawn["top_p"], drawn["repetition_penalty"], seed,
            topology.speculation.coupling,
        )  # fmt: skip
        resumed = tuple(
            Resumed(folder, replace(it, seed=session_seed(seed, it.number)) if reseed else it) for folder, it in parked
        )
        spec = GenerateSpec(
            topology, prompts, max_tokens, seed, params, stop, ignore_eos, plain, serial, out, park, resumed
        )
        models = Models.of(spec)
        tokenizer = models.tokenizer()
        lengths = [len(spec.begin(session, tokenizer)) for session in range(len(prompts))]
    except (ModelFolderError, ValueError) as error:
        raise ArgumentError(str(error)) from error
    verify = next(stage for stage in topology.stages.values() if stage.kind == "verify")
    try:
        even_runs(models.layers, topology.groups[verify.group].ranks)
    except ValueError as error:
        raise ArgumentError(f"groups.{verify.group}.ranks: {error}") from error
    limit = models.max_positions
    for number, length in enumerate(lengths):
        if limit is not None and length + max_tokens > limit:
            raise ArgumentError(
                f"prompt {number} has {length} tokens, with --max-tokens {max_tokens} that makes "
                f"{length + max_tokens}, and the models take {limit}; ask for fewer or shorten it"
            )
    check_tiers_hold(spec, models, lengths)
    check_parking(spec, models)
    if not serial:
        check_curve(topology)
    if out is not None:
        make_writable(f"--out {out}", out)
    return lambda launched, show, hang_timeout, debug: start(spec, launched, show, hang_timeout, debug)
