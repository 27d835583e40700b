"""`paceline trace record`: the attention masses of a real run, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile, as_path
from paceline.launch.folders import check_writable_file
from paceline.launch.json_output import versioned
from paceline.launch.recording import Recording, RecordOptions
from paceline.launch.workload import workload_class
from paceline.pipeline.load import load_topology

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
    options = RecordOptions(
        seed=loaded.seed if seed is None else seed,
        frames=frames,
        sessions=sessions,
        prompt=tuple(prompt or ()),
        prompts=prompts,
        max_tokens=max_tokens,
        temperature=temperature,
        ignore_eos=ignore_eos,
    )
    _say(out, workload_class(loaded).smallest(loaded).record(topology, out, options), as_json)


def _say(out: Path, made: Recording, as_json: bool) -> None:
    if as_json:
        found = {"trace": str(out), "steps": made.steps, "blocks": made.blocks, "bytes": made.bytes}
        print(json.dumps(versioned(found)))
    else:
        print(f"{out}: {made.steps} steps, at most {made.blocks} blocks at a time, {made.bytes} bytes")
