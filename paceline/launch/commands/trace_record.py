"""`paceline trace record`: the attention masses of a real generation, in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from paceline.launch.commands.generate import read_prompts
from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile
from paceline.launch.errors import ArgumentError
from paceline.pipeline.load import load_topology

__all__ = ["record"]


@guarded
def record(
    topology: TopologyFile,
    out: Annotated[Path, typer.Option(metavar="FILE", help="The trace; one that exists is replaced.")],
    prompt: Annotated[list[str] | None, typer.Option("--prompt", help="Text to continue. Repeatable.")] = None,
    prompts: Annotated[
        Path | None, typer.Option("--prompts", metavar="FILE", help="Texts to continue: a JSON string a line.")
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most new tokens of each session.")] = 128,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed; the topology's if left out.")] = None,
    temperature: Annotated[float, typer.Option(min=0.0, help="0 takes the likeliest token.")] = 0.7,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after the end of text.")] = False,
    overrides: Overrides = None,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Decode prompts with the target of a language topology, and record at every step how much attention mass fell on
    each block. One session after another in this process, everything in memory: where blocks lie changes no mass.

    Exit codes: 0; 1 the recording failed; 2 the topology, the model or the arguments are wrong.
    """
    loaded = load_topology(topology, overrides or [])
    if loaded.workload != "language":
        raise ArgumentError(f"{topology} makes no text; give a language topology, such as speculate-2.yaml")
    texts = read_prompts(prompt or [], prompts)
    # Imported here: Transformers takes seconds, and a wrong topology should not wait for it.
    from paceline.launch.language.record import Recording, record_generation
    from paceline.stages.lm.folder import ModelFolderError

    try:
        made: Recording = record_generation(
            loaded, texts, out, max_tokens=max_tokens, seed=loaded.seed if seed is None else seed,
            temperature=temperature, ignore_eos=ignore_eos,
        )  # fmt: skip
    except ModelFolderError as error:
        raise ArgumentError(str(error)) from error
    if as_json:
        print(json.dumps({"trace": str(out), "steps": made.steps, "blocks": made.blocks, "bytes": made.bytes}))
    else:
        print(f"{out}: {made.steps} steps, at most {made.blocks} blocks at a time, {made.bytes} bytes")
