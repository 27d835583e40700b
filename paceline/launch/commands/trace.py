"""`paceline trace record` and `replay`: attention masses of a real run, and the score of a policy on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, Overrides, TopologyFile, as_path
from paceline.launch.errors import ArgumentError
from paceline.launch.files import check_writable_file
from paceline.launch.summary import versioned
from paceline.launch.workload import Recording, RecordOptions, workload_class
from paceline.pipeline.load import load_topology

__all__ = ["record", "replay"]


@guarded
def replay(
    trace: Annotated[
        Path, typer.Argument(metavar="FILE", parser=as_path, help="A trace of attention.", show_default=False)
    ],
    policy: Annotated[
        str, typer.Option(metavar="NAME", help="lru, window, heavy-hitter, attention-mass, slab, oracle.")
    ] = "attention-mass",
    hbm: Annotated[float, typer.Option(metavar="SHARE", help="Share of all blocks that hbm has room for.")] = 0.25,
    dram: Annotated[float, typer.Option(metavar="SHARE", help="Likewise dram; nvme takes the rest.")] = 1.0,
    bandwidth: Annotated[int, typer.Option(help="Blocks that a step may move.")] = 64,
    hysteresis: Annotated[float, typer.Option(help="Share of a tier's places that only stay, and never come.")] = 0.1,
    refresh: Annotated[int, typer.Option(help="Steps between two looks of the policy at the masses.")] = 1,
    option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="An option of the policy, as columns=4. Repeatable.")
    ] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Take what is whole of an interrupted trace.")] = False,
    as_json: AsJson = False,
    debug: Debug = False,
) -> None:
    """Replay a trace under a policy: what share of the attention mass and of the lookups it finds in hbm, what it
    moves, and its regret against an oracle that knows the future.

    Exit codes: 0; 2 the trace can't be read or the arguments are wrong.
    """
    # Imported here: other commands need no NumPy.
    from paceline.tiers.traces.format import TraceError
    from paceline.tiers.traces.replay import ReplaySettings
    from paceline.tiers.traces.scoring import score_policy
    from paceline.tiers.traces.trace import read_trace

    try:
        settings = ReplaySettings(hbm, dram, bandwidth, hysteresis, refresh=refresh)
        made = score_policy(read_trace(trace, partial), policy, settings, _options(option or ()))
    except TraceError as error:
        raise ArgumentError(str(error)) from error
    except OSError as error:
        raise ArgumentError(f"{trace}: can't be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ArgumentError(f"trace replay: {error}") from error
    print(json.dumps(versioned(made)) if as_json else _text(made))


def _options(given: Sequence[str]) -> dict[str, int | float]:
    options: dict[str, int | float] = {}
    for pair in given:
        key, _, value = pair.partition("=")
        try:
            options[key] = int(value) if value.lstrip("-").isdigit() else float(value)
        except ValueError as error:
            raise ArgumentError(f"--option {pair}: is no KEY=NUMBER, such as recent=256") from error
    return options


def _text(made: Mapping[str, Any]) -> str:
    oracle, least = made["oracle"], made["belady"]
    lines = [
        f"{made['trace']}: {made['policy']} with room for {made['slots']['hbm']} blocks in hbm, {made['steps']} steps",
        f"attention mass found in hbm   {made['mass_share_hbm']:7.1%}   (oracle {oracle['mass_share_hbm']:.1%}, "
        f"ceiling {made['ceiling']['hbm']:.1%})",
        f"regret                        {made['regret']:7.1%}",
        f"lookups found in hbm          {made['hit_share']:7.1%}   of {made['lookups']}; misses and prefetches "
        f"{least['cost']}, at least {least['misses']} (Belady)",
        f"moved                         {made['moved_bytes'] / 2**20:7.1f}   MiB in {made['moves']} moves, "
        f"{made['forced_moves']} of them forced",
    ]
    return "\n".join(lines)


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
