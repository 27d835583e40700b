"""Where the time of a token goes, and what the same costs, and others, come to in the simulator."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness import Summary, Table

from paceline.pipeline.speculation.simulate import simulate_speculation
from paceline.pipeline.speculation.simulation import Simulation, TokenLaw

__all__ = ["Measured", "breakdown", "measured_costs", "where"]

Runs = Sequence[Summary]


def _rank(run: Summary, role: str) -> dict[str, Any] | None:
    return next((rank for rank in run.get("ranks", ()) if rank["role"] == role and rank["passes"]), None)


def breakdown(runs: Mapping[str, Runs], title: str) -> Table:
    """By way and rank, milliseconds per token: in the model, beside it, waiting."""
    rows: list[tuple[Any, ...]] = []
    for name, turns in runs.items():
        for role in ("drafter", "verifier"):
            found = [(run, rank) for run in turns if (rank := _rank(run, role)) is not None]
            if not found:
                continue

            def per_token(part: str, found: Sequence[tuple[Summary, dict[str, Any]]] = found) -> float:
                return statistics.median(1e3 * rank[part] / sum(run["tokens"].values()) for run, rank in found)

            passes = statistics.median(rank["passes"] / sum(run["tokens"].values()) for run, rank in found)
            whole, model, waits = map(per_token, ("wall_s", "busy_s", "wait_s"))
            pass_ms = statistics.median(rank["pass_ms"] for _, rank in found)
            rows.append((name, role, whole, passes, pass_ms, model, whole - model - waits, waits))
    columns = ("way", "rank", "all", "passes a token", "pass ms", "in the model", "beside it", "waiting")
    notes = (
        "Milliseconds per committed token; medians of turns. In the model: forwards with their draws. Beside it: "
        "judging, messages, text, and what the other rank's threads take away. The prompts' passes are in it.",
    )
    return Table(title, columns, rows, notes)


@dataclass(frozen=True, slots=True)
class Measured:
    """Milliseconds: a plain token in all, what a pass costs by its tokens, what a draft step and a round trip cost."""

    plain: float
    fixed: float
    each: float
    draft: float
    round_trip: float
    acceptance: float
    rank_power: float


def measured_costs(plain: Runs, turns: Runs, hedged: Runs, window: int, width: int) -> Measured:
    """Costs on this machine, of runs of one thread a rank: plain, in turns with a fixed window, and hedged."""

    def median(values: Sequence[float]) -> float:
        return statistics.median(values)

    def beside(run: Summary, role: str) -> float:
        rank = _rank(run, role)
        assert rank is not None
        return 1e3 * (rank["wall_s"] - rank["busy_s"] - rank["wait_s"]) / rank["passes"]

    def of(run: Summary, role: str, key: str) -> float:
        rank = _rank(run, role)
        assert rank is not None
        return float(rank[key])

    token = median([of(run, "verifier", "pass_ms") + beside(run, "verifier") for run in plain])
    whole = median([of(run, "verifier", "pass_ms") + beside(run, "verifier") for run in turns])
    # In turns every pass has the committed token before its window in it.
    each = max(0.0, (whole - token) / window)
    draft = median([of(run, "drafter", "pass_ms") for run in turns])
    # What the verifier waits for is a window's drafting and both ways.
    trips = [1e3 * of(run, "verifier", "wait_s") / of(run, "verifier", "passes") - window * draft for run in turns]
    hits = [run["hedge"]["hits"] / max(1, run["hedge"]["hits"] + run["hedge"]["misses"]) for run in hedged]
    # A hedge of width F is right with chance 1 - (1 + F)**-power.
    power = -math.log(max(0.02, 1 - median(hits))) / math.log(1 + width)
    acceptance = median([run["accepted_share"] for run in turns])
    return Measured(token, token - each, each, draft, max(0.0, median(trips)), acceptance, power)


def where(costs: Measured, title: str, window: int, hedge: int, reached: Mapping[str, float], tokens: int) -> Table:
    """What the simulator makes of the measured costs, and of costs as other machines have them."""
    plain = costs.plain
    flat = replace(costs, fixed=plain, each=0.0)
    cases = {
        "as measured here": costs,
        "a pass costs the same for a window as for a token": flat,
        "also no round trip": replace(flat, round_trip=0.0),
        "also a draft step of 0.1 passes": replace(flat, round_trip=0.0, draft=0.1 * plain),
        "also a draft step of 0.05 passes": replace(flat, round_trip=0.0, draft=0.05 * plain),
        "also acceptance 0.85": replace(flat, round_trip=0.0, draft=0.05 * plain, acceptance=0.85),
    }
    rows: list[tuple[Any, ...]] = []
    for name, case in cases.items():
        best = [
            max((_simulated(case, g, depth, width, tokens), g) for g in (1, 2, 3, 4, 5, 6, 8))
            for depth, width in ((1, 0), (3, 0), (3, hedge))
        ]
        speeds = [speed for speed, _ in best]
        rows.append(
            (
                name, case.draft / case.plain, (case.fixed + case.each * (window + 1)) / case.plain,
                case.round_trip / case.plain, case.acceptance, *speeds, speeds[2] / speeds[0], best[2][1],
            )
        )  # fmt: skip
    columns = (
        "costs", "draft step", f"pass of {window + 1}", "round trip", "accepted", "in turns", "pipelined", "hedged",
        "hedged / in turns", "window hedged",
    )  # fmt: skip
    notes = (
        "Costs in plain passes (with all that goes beside them); speeds over plain decoding at the window that is best "
        f"for each, up to 3 windows in flight, hedge width {hedge}; independent acceptance; hedges hit as often as "
        "measured here. Both ranks are taken to be as fast together as alone, which two cores that share a cache are "
        f"not. Reached here at window {window}: "
        + ", ".join(f"{way} {reached[way]:.2f}" for way in ("in turns, 1 thread", "pipelined", "pipelined, hedged"))
        + ".",
    )
    return Table(title, columns, rows, notes)


def _simulated(case: Measured, window: int, depth: int, hedge: int, tokens: int) -> float:
    law = TokenLaw(case.acceptance, rank_power=max(0.05, case.rank_power))
    simulation = Simulation(
        law, lambda branches: case.draft * (1 + 0.1 * (branches - 1)), lambda n: case.fixed + case.each * n, window,
        depth, hedge=hedge, round_trip=case.round_trip, tokens=tokens, branches=16 if hedge else 1,
    )  # fmt: skip
    return simulate_speculation(simulation).speedup
