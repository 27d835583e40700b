"""`paceline trace replay`: score a policy on recorded attention."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from paceline.launch.commands.guard import guarded
from paceline.launch.commands.options import AsJson, Debug, as_path
from paceline.launch.errors import ArgumentError
from paceline.launch.json_output import versioned

__all__ = ["replay"]


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
