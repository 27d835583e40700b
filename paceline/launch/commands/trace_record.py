"""`paceline trace record`: the attention masses of a real run, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile, as_path
from paceline.launch.errors import ArgumentError
from paceline.launch.folders import check_writable_file
from paceline.launch.json_output import versioned
from paceline.launch.language.prompts import Prompt, read_prompts
from paceline.launch.recording import Recording
from paceline.pipeline.load import load_topology
from paceline.stages.sampling_params import SamplingParams

__all__ = ["record"]


@guarded
def record(
    topology: TopologyFile,
    out: Annotated[Path, typer.Option(metavar="FILE", parser=as_path, help="The trace; one that exists is replaced.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue. Repeatable.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            parser=as_path,
            help="Texts to continue, one a line, as text or as JSON strings; - for standard input.",
        ),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, max=2**31 - 1, help="Most new tokens of each session.")] = 128,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed; the topology's if left out.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="Below 1e-5 takes the likeliest token.")] = 0.7,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end of text.")] = False,
    frames: Annotated[int, typer.Option(min=1, help="World: frames of each session.")] = 64,
    sessions: Annotated[int, typer.Option(min=1, help="World: sessions, one after another.")] = 1,
    overrides: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Decode prompts with the target of a language topology, or make frames of a world, and record at every pass how
    much attention mass fell on each block. One session after another in this process, everything in memory: where
    blocks lie changes no mass.

    Exit codes: 0; 1 the recording failed; 2 the topology, the model or the arguments are wrong.
    """
    loaded = load_topology(topology, overrides or [])
    check_writable_file(f"--out {out}", out)
    seed = loaded.seed if seed is None else seed
    if loaded.workload == "world":
        if prompt or prompts:
            raise ArgumentError(f"{topology} makes frames; it takes --frames and --sessions, and no prompt")
        from paceline.launch.record_world import record_world
        from paceline.launch.weights import check_weights, read_model_file

        read_model_file(loaded)
        check_weights(loaded)
        _say(out, record_world(loaded, out, frames, sessions, seed), as_json)
        return
    if loaded.workload != "language":
        raise ArgumentError(f"{topology} has no model; give a world or a language topology")
    texts = read_prompts(prompt or [], prompts)
    if any(text != Prompt(text.prompt) for text in texts):
        raise ArgumentError("--prompts: all sessions are recorded with the options of the command; give texts alone")
    try:
        SamplingParams(temperature)
    except ValueError as error:
        raise ArgumentError(str(error)) from error
    # Imported here: Transformers takes seconds, and a wrong topology should not wait for it.
    from paceline.launch.language.record import record_generation
    from paceline.stages.lm.folder import ModelFolderError

    try:
        made = record_generation(
            loaded,
            [text.prompt for text in texts],
            out,
            max_tokens=max_tokens,
            seed=seed,
            temperature=temperature,
            ignore_eos=ignore_eos,
        )
    except ModelFolderError as error:
        raise ArgumentError(str(error)) from error
    _say(out, made, as_json)


def _say(out: Path, made: Recording, as_json: bool) -> None:
    if as_json:
        found = {"trace": str(out), "steps": made.steps, "blocks": made.blocks, "bytes": made.bytes}
        print(json.dumps(versioned(found)))
    else:
        print(f"{out}: {made.steps} steps, at most {made.blocks} blocks at a time, {made.bytes} bytes")
