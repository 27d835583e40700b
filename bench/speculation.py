"""What does speculation gain, where does its time go, and does the controller find the best setting?

Sections: `speed` (plain, in turns, pipelined, hedged, and Transformers' assisted generation on the same weights, where
the time of a token goes, and what the simulator makes of these costs and of others), `deep` (the same with a target
that takes longer), `sweep` (the simulator against the
formula), `depth` (windows in flight beyond which nothing is gained), `controller` (`auto` against the best fixed
setting), `batch` (many sessions: where speculation loses, it is switched off).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from deep_pair import deepen
from harness import ROOT, Bench, BenchError, Summary, Table, options, run_json, say
from speculation_costs import breakdown, measured_costs, where

from paceline.pipeline.speculation.formula import Costs, pipelined, useful_depth
from paceline.pipeline.speculation.simulate import simulate_speculation
from paceline.pipeline.speculation.simulation import Simulation, TokenLaw
from zoo.code.corpus import stdlib

SPECULATE_2 = ROOT / "topologies" / "speculate-2.yaml"
ZOO = ROOT / "zoo" / "code"
TWO = {"groups.drafter.threads": 2, "groups.verifier.threads": 2}
ONE_AT_A_TIME = {"speculation.sessions": 1}
WINDOW, HEDGE = 3, 4
DEEP = 24
KEYS = ("window", "depth", "hedge")
Sets = Mapping[str, object]
Setting = tuple[int, int, int]


def _prompts(count: int, characters: int = 600) -> list[str]:
    """Beginnings of held-out modules, cut behind a line."""
    found = []
    for document in stdlib().held_out:
        head = document.text[:characters]
        if len(document.text) > 4 * characters:
            found.append(head[: head.rfind("\n") + 1])
    return found[:count]


def _generate(prompts: Sequence[str], tokens: int, temperature: float, sets: Sets, *flags: str) -> Summary:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        file.write_text("\n".join(map(json.dumps, prompts)) + "\n")
        command = [str(Path(sys.executable).with_name("paceline")), "generate", str(SPECULATE_2), "--json", "--quiet"]
        command += ["--prompts", str(file), "--max-tokens", str(tokens), "--temperature", str(temperature)]
        command += ["--ignore-eos", "--seed", "1", *flags]
        for key, value in sets.items():
            command += ["--set", f"{key}={value}"]
        return run_json(command, 600.0)


def _peer(prompts: Sequence[str], tokens: int, temperature: float, assisted: bool, target: Path) -> Summary:
    from paceline.stages.lm.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(target)
    request = {
        "target": str(target), "draft": str(ZOO / "draft"), "threads": 2, "temperature": temperature,
        "max_tokens": tokens, "assisted": assisted, "prompts": [tokenizer.encode(prompt) for prompt in prompts],
    }  # fmt: skip
    command = [sys.executable, str(Path(__file__).with_name("assisted_peer.py"))]
    done = subprocess.run(command, input=json.dumps(request), capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise BenchError(f"assisted_peer.py: exit code {done.returncode}\n{done.stderr[-2000:]}")
    found: Summary = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def speed(bench: Bench, quick: bool) -> None:
    """Ways to decode with the embedded pair."""
    _ways(bench, quick, "speed", "", ZOO / "target")


def deep(bench: Bench, quick: bool) -> None:
    """The same where the target takes longer, as larger models do."""
    with tempfile.TemporaryDirectory() as folder:
        target = deepen(ZOO / "target", Path(folder) / "target", DEEP)
        _ways(bench, quick, "deep", f", the target made {DEEP} layers deep", target)


def _ways(bench: Bench, quick: bool, key: str, what: str, target: Path) -> None:
    """Ways to decode the same prompts, in turn so that the machine's moods hit all alike."""
    prompts, tokens, turns = (_prompts(2), 32, 1) if quick else (_prompts(6), 128, 3)
    if key == "deep" and not quick:
        prompts, turns = prompts[:4], 2

    def ours(sets: Sets, *flags: str) -> Callable[[float], Summary]:
        always = {**ONE_AT_A_TIME, "model.target": target}
        return lambda temperature: _generate(prompts, tokens, temperature, {**always, **sets}, *flags)

    def peer(assisted: bool) -> Callable[[float], Summary]:
        return lambda temperature: _peer(prompts, tokens, temperature, assisted, target)

    fixed = {"speculation.window": WINDOW, "speculation.hedge": 0}
    cases: dict[str, Callable[[float], Summary]] = {
        "plain, 1 thread": ours({}, "--plain"),
        "plain, 2 threads": ours(TWO, "--plain"),
        "in turns, 1 thread": ours({**fixed, "speculation.depth": 1}),
        "in turns, 2 threads": ours({**fixed, "speculation.depth": 1, **TWO}),
        "pipelined": ours({**fixed, "speculation.depth": 2}),
        "pipelined, hedged": ours({**fixed, "speculation.depth": 2, "speculation.hedge": HEDGE}),
        "pipelined, hedged, auto": ours({}),
        "Transformers, 2 threads": peer(False),
        "Transformers, assisted, 2 threads": peer(True),
    }
    for temperature in (0.0, 0.7):
        runs: dict[str, list[Summary]] = {name: [] for name in cases}
        for turn in range(turns):
            for name, run in cases.items():
                say(f"{key}, temperature {temperature:g}, {turn + 1}/{turns}: {name}")
                runs[name].append(run(temperature))
        rows = [(name, *_speed_row(runs, name)) for name in cases]
        columns = (
            "way", "tokens/s", "x plain", "x in turns", "x assisted", "accepted", "hedge hits", "drafter busy",
            "verifier busy", "pass ms", "draft step ms",
        )  # fmt: skip
        notes: tuple[str, ...] = (
            f"{len(prompts)} held-out modules of the standard library, {tokens} tokens each, one session at a time; "
            f"medians of {turns} turns, ratios within a turn. x plain and x in turns: against the faster of one and "
            "two threads. Loading and start are in none of the times. Pipelined: one thread for the drafter and one "
            f"for the verifier. Fixed settings: window {WINDOW}, depth 2 where pipelined, hedge width {HEDGE}.",
        )
        if key == "deep":
            notes += (
                "The layers behind the first 6 add nothing: the same text and the same acceptance at other costs.",
            )
        at = f"{what}, temperature {temperature:g}"
        bench.add(f"{key}-{temperature:g}", Table(f"Ways to decode{at}", columns, rows, notes), runs=_brief(runs))
        bench.add(f"{key}-time-{temperature:g}", breakdown(runs, f"Where the time of a token goes{at}"))
        costs = measured_costs(
            runs["plain, 1 thread"], runs["in turns, 1 thread"], runs["pipelined, hedged"], WINDOW, HEDGE
        )
        reached = {name: found[1] for name, *found in rows}
        title = f"Where speculation pays{at}"
        bench.add(
            f"{key}-where-{temperature:g}", where(costs, title, WINDOW, HEDGE, reached, 2_000 if quick else 8_000)
        )


def _speed_row(runs: Mapping[str, list[Summary]], name: str) -> tuple[Any, ...]:
    def rate(of: str) -> list[float]:
        return [float(run["tokens_per_second"]) for run in runs[of]]

    def best(*of: str) -> list[float]:
        return [max(values) for values in zip(*(rate(each) for each in of), strict=True)]

    def ratio(base: list[float]) -> float:
        return statistics.median(mine / other for mine, other in zip(rate(name), base, strict=True))

    bases = (
        best("plain, 1 thread", "plain, 2 threads"),
        best("in turns, 1 thread", "in turns, 2 threads"),
        rate("Transformers, assisted, 2 threads"),
    )
    last = runs[name][-1]
    ranks = {rank["role"]: rank for rank in last.get("ranks", ())}
    hedge = last.get("hedge", {"hits": 0, "misses": 0})
    tried = hedge["hits"] + hedge["misses"]

    def busy(role: str) -> float | None:
        return ranks[role]["busy_s"] / ranks[role]["wall_s"] if role in ranks else None

    return (
        statistics.median(rate(name)), *map(ratio, bases), last.get("accepted_share") or None,
        hedge["hits"] / tried if tried else None, busy("drafter"), busy("verifier"),
        ranks["verifier"]["pass_ms"] if "verifier" in ranks else None,
        ranks["drafter"]["pass_ms"] if ranks.get("drafter", {}).get("passes") else None,
    )  # fmt: skip


def _brief(runs: Mapping[str, list[Summary]]) -> dict[str, list[Summary]]:
    """Without the texts."""
    return {
        name: [{k: v for k, v in run.items() if k not in ("sessions", "made")} for run in each]
        for name, each in runs.items()
    }


def sweep(bench: Bench, quick: bool) -> None:
    """The simulator against the formula of pipelined speculation."""
    rows = []
    tokens = 4_000 if quick else 40_000
    for acceptance in (0.5, 0.7, 0.8, 0.9):
        for cost in (0.05, 0.1, 0.2):
            for hit in (0.0, 0.9):
                say(f"sweep: acceptance {acceptance}, draft cost {cost}, hits {hit}")
                costs = Costs(draft=cost)
                window = max(range(1, 13), key=lambda g: pipelined([acceptance], g, costs, hit))
                depth = useful_depth(window, costs)
                expected = pipelined([acceptance], window, costs, hit)
                law = TokenLaw(acceptance, forced_hit=hit)
                simulation = Simulation(law, lambda n, c=cost: c, lambda n: 1.0, window, depth, tokens=tokens)
                report = simulate_speculation(simulation)
                rows.append((acceptance, cost, hit, window, depth, expected, report.speedup, report.speedup / expected))
    columns = ("acceptance", "draft cost", "hedge hits", "window", "depth", "formula", "simulated", "ratio")
    notes = (
        "Speed over plain decoding at the window that the formula finds best and depth N*. Simulated with the state "
        "machines of the runtime; costs in passes; independent acceptance. Hits are forced at the given chance.",
    )
    bench.add("sweep", Table("The simulator against the formula", columns, rows, notes))


def depth(bench: Bench, quick: bool) -> None:
    """Where more windows in flight gain nothing."""
    rows = []
    tokens = 4_000 if quick else 40_000
    for slots in (1, 2, 3):
        for round_trip in (0.0, 1.0):
            say(f"depth: {slots} layer runs, round trip {round_trip}")
            costs = Costs(draft=0.05, round_trip=round_trip, slots=slots)
            found = []
            for windows in range(1, 8):
                law = TokenLaw(0.9)
                simulation = Simulation(
                    law, lambda branches: 0.05, lambda n: 1.0, 4, windows, round_trip=round_trip, verifiers=slots,
                    tokens=tokens,
                )  # fmt: skip
                found.append(simulate_speculation(simulation).speedup)
            best = max(found)
            ends = next(index for index, value in enumerate(found, 1) if value >= 0.98 * best)
            rows.append((slots, round_trip, useful_depth(4, costs), ends, *found))
    columns = ("layer runs", "round trip", "N*", "gain ends at", *(f"depth {n}" for n in range(1, 8)))
    notes = ("Acceptance 0.9, window 4, draft cost 0.05, no hedges. Gain ends: the first within 2 % of the best.",)
    bench.add("depth", Table("Windows in flight", columns, rows, notes))


def controller(bench: Bench, quick: bool) -> None:
    """`auto` against the best of a grid of fixed settings, for drafters of different acceptance."""
    prompts, tokens, turns = (_prompts(2), 48, 1) if quick else (_prompts(4), 192, 2)
    grid = [(w, d, h) for w in ((2, 4) if quick else (2, 4, 8)) for d in (1, 2) for h in (0, 4)]
    with tempfile.TemporaryDirectory() as folder:
        target = deepen(ZOO / "target", Path(folder) / "target", DEEP)
        drafters: dict[str, Sets] = {
            "embedded": {},
            "embedded, deep target": {"model.target": target},
            "n-gram lookup, deep target": {"model.target": target, "speculation.drafter": "ngram"},
            "the target itself, deep target": {"model.target": target, "model.draft": ZOO / "target"},
        }
        rows = [_landing(name, drafter, prompts, tokens, turns, grid) for name, drafter in drafters.items()]
    columns = (
        "pair", "accepted", "best fixed", "tokens/s", "plain", "auto ended at", "its speed", "whole run of auto",
        "predicted speedup", "measured speedup",
    )  # fmt: skip
    notes = (
        f"One session at a time, temperature 0.7, {len(prompts)} prompts of {tokens} tokens. Settings: window / depth "
        f"/ hedge, 0 is off. Best fixed: of {len(grid)} settings, each run once; then {turns} turns of it, plain "
        "decoding, `auto`, and the setting that `auto` ended at, fixed. tokens/s: of the better of the best and plain; "
        "its speed, plain and the whole run of auto: against that, medians. The whole run has in it what was tried. "
        f"Deep target: the embedded one with layers that add nothing, {DEEP} in all.",
    )
    bench.add("controller", Table("The controller against the best fixed setting", columns, rows, notes))


def _landing(
    name: str, drafter: Sets, prompts: Sequence[str], tokens: int, turns: int, grid: Sequence[Setting]
) -> tuple[Any, ...]:
    """One row: a pair's best fixed setting, and where `auto` lands."""

    def rate(setting: Setting | None, *flags: str) -> Summary:
        fixed = {f"speculation.{key}": value for key, value in zip(KEYS, setting or (), strict=False)}
        return _generate(prompts, tokens, 0.7, {**drafter, **fixed, **ONE_AT_A_TIME}, *flags)

    results: dict[Setting, float] = {}
    for setting in grid:
        if "ngram" in drafter.values() and setting[2]:
            continue
        say(f"controller: {name}, window {setting[0]}, depth {setting[1]}, hedge {setting[2]}")
        results[setting] = float(rate(setting)["tokens_per_second"])
    best = max(results, key=lambda key: results[key])
    ratios: dict[str, list[float]] = {"plain": [], "auto": [], "landed": []}
    speeds: list[float] = []
    for turn in range(turns):
        say(f"controller: {name}, auto and the best, {turn + 1}/{turns}")
        auto = rate(None)
        chosen = auto["controller"]["settings"]
        plain = float(rate(None, "--plain")["tokens_per_second"])
        fastest = float(rate(best)["tokens_per_second"])
        landed: Setting = (chosen["window"], chosen["depth"], chosen["hedge"])
        reached = plain if not landed[0] else fastest if landed == best else float(rate(landed)["tokens_per_second"])
        # Off is a setting too, and may be the best one.
        top = max(fastest, plain)
        speeds.append(top)
        ratios["plain"].append(plain / top)
        ratios["auto"].append(float(auto["tokens_per_second"]) / top)
        ratios["landed"].append(reached / top)
    return (
        name, auto["accepted_share"], _slashed(best), statistics.median(speeds), statistics.median(ratios["plain"]),
        _slashed(landed), statistics.median(ratios["landed"]), statistics.median(ratios["auto"]),
        auto["controller"]["predicted_speedup"], auto["controller"]["measured_speedup"],
    )  # fmt: skip


def _slashed(setting: Setting) -> str:
    return " / ".join(map(str, setting)) if setting[0] else "off"


def batch(bench: Bench, quick: bool) -> None:
    """Many sessions side by side."""
    rows = []
    tokens = 32 if quick else 256
    for sessions in (1, 4, 32):
        prompts = (_prompts(16) * 2)[:sessions]
        say(f"batch: {sessions} sessions")
        sets = {"speculation.sessions": sessions}
        ways: list[tuple[Sets, tuple[str, ...]]] = [
            (sets, ("--plain",)),
            ({**sets, "speculation.window": 4, "speculation.depth": 2, "speculation.hedge": 0}, ()),
            (sets, ()),
        ]
        rounds = [
            [_generate(prompts, tokens, 0.7, given, *flags) for given, flags in ways] for _ in range(1 if quick else 3)
        ]
        by_way = zip(*rounds, strict=True)
        rates = [statistics.median(float(run["tokens_per_second"]) for run in runs) for runs in by_way]
        auto = rounds[-1][-1]
        rows.append(
            (sessions, *rates, rates[1] / rates[0], rates[2] / rates[0],
             auto["tokens"]["plain"] / sum(auto["tokens"].values()))
        )  # fmt: skip
    columns = (
        "sessions", "plain tokens/s", "window 4, depth 2", "auto", "fixed / plain", "auto / plain",
        "tokens of auto while off",
    )  # fmt: skip
    notes = (
        "Tokens per second of all sessions together, temperature 0.7; medians of rounds in turns. Sessions end one "
        "after another, so that few are left at the end.",
    )
    bench.add("batch", Table("Many sessions", columns, rows, notes))


def main() -> None:
    """Run the sections asked for."""
    sections: dict[str, Callable[[Bench, bool], None]] = {
        "speed": speed, "deep": deep, "sweep": sweep, "depth": depth, "controller": controller, "batch": batch,
    }  # fmt: skip
    given = options(__doc__ or "", tuple(sections))
    bench = Bench("speculation", "What does speculation gain?", given, "1 per rank, or as named")
    for name, section in sections.items():
        if given.wants(name):
            section(bench, given.quick)
    bench.finish()


if __name__ == "__main__":
    main()
