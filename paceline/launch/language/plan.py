"""What speculation promises on a topology: ranks, whether it can deadlock, and the formula's speed over plain decoding
for a range of acceptances, from the costs that the stages name."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from paceline.pipeline.speculation.formula import Costs, pipelined, sequential, useful_depth
from paceline.pipeline.speculation.search import SearchFault, search
from paceline.pipeline.speculation.session_model import SearchCase
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import LanguageTopology
from paceline.runtime.language.roles import Roles
from paceline.stages.lm.drafter import can_hedge

__all__ = ["language_plan", "show_language_plan"]

_ACCEPTANCES = (0.5, 0.6, 0.7, 0.8, 0.9)
_HITS = 0.7
"""Share of rejections that find their refill, for the hedged column; runs report their own."""
_DEFAULT_MS = {StageKind.draft: 1.0, StageKind.verify: 8.0}
_WINDOWS = range(1, 17)
_DEEPEST = 3
"""Most windows in flight, and at the verifiers, that a plan searches: more add states, and no other order of two."""


def language_plan(topology: LanguageTopology) -> dict[str, Any]:
    """The plan as plain data. Costs are `stages.*.ms`, one draft step and one pass; where a topology names none, 1 and
    8 ms are assumed."""
    roles = Roles.of(topology)
    ms = {stage.kind: stage.ms or _DEFAULT_MS[stage.kind] for stage in topology.stages.values()}
    runs = len(roles.verifiers)
    costs = Costs(draft=ms[StageKind.draft] / ms[StageKind.verify], slots=runs)
    rows = []
    for acceptance in _ACCEPTANCES:
        chance = [acceptance]
        turns = max(_WINDOWS, key=lambda g: sequential(chance, g, costs))
        window = max(_WINDOWS, key=lambda g: pipelined(chance, g, costs, _HITS))
        rows.append(
            {
                "acceptance": acceptance,
                "in_turns": round(sequential(chance, turns, costs), 3),
                "pipelined": round(max(pipelined(chance, g, costs) for g in _WINDOWS), 3),
                "hedged": round(pipelined(chance, window, costs, _HITS), 3),
                "window": window,
                "depth": useful_depth(window, costs),
            }
        )
    return {
        "topology": topology.name,
        "workload": topology.workload,
        **_proof(topology, runs),
        "ranks": {str(rank): roles.name(rank) for rank in range(topology.world_size)},
        "draft_step_ms": ms[StageKind.draft],
        "verify_pass_ms": ms[StageKind.verify],
        "draft_cost": round(costs.draft, 4),
        "layer_runs": runs,
        "hedge_hits": _HITS,
        "speedup": rows,
    }


def _proof(topology: LanguageTopology, runs: int) -> dict[str, Any]:
    """Whether every run ends, and what was searched for that: the state machines with this topology's coupling and
    policy. An actor never waits for credit before it receives, so no route can hold up another, and credits are those
    of one session; so one session is enough. The tests search two."""
    spec = topology.speculation
    depth = _DEEPEST if spec.depth == "auto" else min(spec.depth, _DEEPEST)
    case = SearchCase(
        spec.coupling, spec.policy, window=1, depth=depth, hedge=int(spec.hedge != 0 and can_hedge(spec)),
        passes=1 if runs == 1 else min(runs + 1, _DEEPEST), tokens=2,
    )  # fmt: skip
    proof = (
        f"bounded outstanding: at most depth x sessions windows in flight, and receives never wait for credit; every "
        f"order and every verdict was searched for a session with coupling {spec.coupling}, policy {spec.policy}, "
        f"depth {depth}, {case.passes} window(s) at the verifiers, {case.tokens} tokens and a drafter that may be lost"
    )
    try:
        states = search(case).states
    except SearchFault as fault:
        return {"live": False, "proof": None, "deadlock": str(fault)}
    return {"live": True, "proof": f"{proof}: {states} states", "deadlock": None}


def show_language_plan(plan: dict[str, Any], console: Console) -> None:
    """Print it for people."""
    console.print(f"{plan['topology']}: {len(plan['ranks'])} ranks")
    for name in plan["ranks"].values():
        console.print(f"  {name}")
    if plan["live"]:
        console.print(f"live: every run ends ({plan['proof']})", style="green")
    else:
        console.print(plan["deadlock"], style="bold red")
    console.print(
        f"a draft step takes {plan['draft_step_ms']:g} ms and a pass {plan['verify_pass_ms']:g} ms (stages.*.ms): "
        f"draft cost {plan['draft_cost']:g}, {plan['layer_runs']} layer run(s)"
    )
    table = Table(title="Speed over plain decoding, by the formula", title_justify="left")
    for heading in (
        "acceptance",
        "in turns",
        "pipelined",
        f"hedged ({plan['hedge_hits']:.0%} hits)",
        "window",
        "depth",
    ):
        table.add_column(heading, justify="right")
    for row in plan["speedup"]:
        table.add_row(
            f"{row['acceptance']:g}", f"{row['in_turns']:.2f}", f"{row['pipelined']:.2f}", f"{row['hedged']:.2f}",
            str(row["window"]), str(row["depth"]),
        )  # fmt: skip
    console.print(table)
