"""Do the blocks that attention looks at lie in hbm, and what does it cost when they don't?

Sections: `policies` (every policy and the oracle on planted traces of four families), `recorded` (the same on traces of
the embedded language model), `speed` (tokens per second of the embedded model with a part of its KV in hbm, against all
of it), `profiling` (what measuring the masses costs).
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import ROOT, Bench, Summary, Table, options, run_json, say

from paceline.pipeline.load import load_topology
from paceline.runtime.language.models import Models
from paceline.runtime.language.serial import generate_serial
from paceline.runtime.spec import GenerateSpec
from paceline.stages.sampling_params import SamplingParams
from paceline.tiers.policies import policy
from paceline.tiers.settings import Tier
from paceline.tiers.traces.oracle import belady, ceiling, oracle_score
from paceline.tiers.traces.planted import FAMILIES, Sizes, planted
from paceline.tiers.traces.replay import ReplayScore, ReplaySettings, replay, slots_of
from paceline.tiers.traces.scoring import regret
from paceline.tiers.traces.trace import Trace, read_trace
from zoo.code.corpus import stdlib

TIERS = ROOT / "topologies" / "speculate-2-tiers.yaml"
BUDGETS = (0.05, 0.10, 0.25, 0.50)
POLICIES = ("lru", "window", "heavy-hitter", "attention-mass")
LOCAL = {"chatter"}
"""Families in which nothing but the neighbourhood matters."""
NEAR_ORACLE = 0.9
REFRESH = 8
"""Of a live run: steps between two measurements."""
CODE_TOKENS = 192
LEAST = 2 * 6 * 8192
"""Bytes of two blocks in each of the embedded target's layers, less than which no run takes."""
Row = dict[str, Any]


# -- policies ----------------------------------------------------------------------------------------------------------


def judge(name: str, trace: Trace, budgets: Sequence[float]) -> Iterator[Row]:
    """One row for each budget: shares of the attention mass found in hbm, and what else is worth keeping."""
    layers = len(np.unique(trace.blocks.layer))
    for hbm in budgets:
        settings = ReplaySettings(hbm)
        if slots_of(trace, settings)[Tier.hbm] < 2 * layers:
            say(f"{name}, {hbm:.0%}: less than two blocks a layer, which no live run takes")
            continue
        oracle = oracle_score(trace, settings)
        scores = {by: replay(trace, policy(by), settings) for by in POLICIES}
        seldom = replay(trace, policy("attention-mass"), ReplaySettings(hbm, refresh=REFRESH))
        least = belady(trace, slots_of(trace, settings)[Tier.hbm])
        say(f"{name}, {hbm:.0%}: " + ", ".join(f"{by} {score.mass_share():.3f}" for by, score in scores.items()))
        yield {
            "family": name,
            "hbm": hbm,
            "slots": slots_of(trace, settings)[Tier.hbm],
            "policies": {by: told(score, oracle) for by, score in scores.items()},
            "seldom": told(seldom, oracle),
            "oracle": told(oracle, oracle),
            "ceiling": ceiling(trace, settings)[0],
            "belady_misses": least.misses,
        }


def told(score: ReplayScore, oracle: ReplayScore) -> Row:
    """What the JSON keeps of a replay."""
    return {
        "mass_share_hbm": score.mass_share(),
        "hit_share": score.hit_share(),
        "moves": score.moves,
        "forced": score.forced,
        "regret": regret(score, oracle, Tier.hbm),
        "cost": score.lookups - score.hits[Tier.hbm] + score.prefetches,
    }


def table(title: str, rows: Sequence[Row], notes: Iterable[str]) -> Table:
    """Shares of the mass found in hbm."""
    columns = ("family", "hbm %", *POLICIES, f"every {REFRESH}", "oracle", "ceiling", "of oracle", "moves/step")
    cells = []
    for row in rows:
        shares = [row["policies"][by]["mass_share_hbm"] for by in POLICIES]
        mine = row["policies"]["attention-mass"]
        cells.append(
            (
                row["family"], f"{row['hbm']:.0%}", *shares, row["seldom"]["mass_share_hbm"],
                row["oracle"]["mass_share_hbm"], row["ceiling"], 1 - mine["regret"], mine["moves"] / row["steps"],
            )
        )  # fmt: skip
    return Table(title, columns, cells, tuple(notes))


def findings(rows: Sequence[Row], local: set[str]) -> list[str]:
    """What the rows say, with every exception by name."""
    far = [row for row in rows if row["family"] not in local]
    lost = [
        f"{row['family']} at {row['hbm']:.0%} to {by}"
        for row in far
        for by in ("lru", "window")
        if row["policies"]["attention-mass"]["mass_share_hbm"] <= row["policies"][by]["mass_share_hbm"]
    ]
    ratios = [1 - row["policies"]["attention-mass"]["regret"] for row in rows]
    below = [
        f"{row['family']} at {row['hbm']:.0%}" for row, ratio in zip(rows, ratios, strict=True) if ratio < NEAR_ORACLE
    ]
    seldom = [1 - row["seldom"]["regret"] for row in rows]
    return [
        "Shares of the attention mass that was found in hbm. The oracle ranks by coming masses and moves under the "
        "same bandwidth (64 blocks a step); the ceiling is the best of each step, however many moves that takes. "
        f"`every {REFRESH}`: attention-mass where it is shown the masses only every {REFRESH} steps. `of oracle` and "
        "`moves/step` are those of attention-mass.",
        f"attention-mass beats lru and window {'everywhere' if not lost else 'but for ' + ', '.join(lost)}"
        f"{' (purely local families apart)' if local else ''}; it reaches {min(ratios):.3f} to {max(ratios):.3f} of "
        f"the oracle{'' if not below else ', less than 0.9 for ' + ', '.join(below)}, and {min(seldom):.3f} to "
        f"{max(seldom):.3f} where it is shown the masses only every {REFRESH} steps.",
    ]


def policies(bench: Bench) -> None:
    """Planted attention: what matters is known, and nothing foretells a question."""
    sizes = Sizes(2048, 96) if bench.options.quick else Sizes(16384, 256)
    rows = []
    for family in FAMILIES:
        trace = planted(family, 0, sizes)
        rows += [{**row, "steps": len(trace.steps)} for row in judge(family, trace, BUDGETS)]
    notes = [
        *findings(rows, LOCAL),
        f"Four layers, {sizes.prompt} tokens of prompt, {sizes.steps} steps, blocks of {sizes.block} tokens; hbm in % "
        "of all blocks, one pool for all layers.",
        "Where attention-mass falls short of the oracle: it sees a needle only after the first step that looked at it, "
        "and it can't tell which of the blocks that share the rest of the mass will have a little more next time.",
        "lru counts a block as used where more than the mean mass of its call fell on it. At the smallest budgets more "
        "blocks pass that mark at each step than hbm has slots, and lru can't tell the sink from any other of them.",
    ]
    bench.add("policies", table("Policies on planted traces", rows, notes), raw=rows)


# -- recorded ----------------------------------------------------------------------------------------------------------


def prompts(quick: bool) -> Mapping[str, str]:
    """Beginnings of a held-out module, as long as the model takes: once to be continued, once to be written again."""
    document = max(stdlib().held_out, key=lambda held: len(held.text)).text
    long = document[: 700 if quick else 1700]
    part = document[: 300 if quick else 900]
    return {"code": long[: long.rfind("\n") + 1], "code written again": part + "\n\n" + part[: len(part) // 3]}


def recorded(bench: Bench) -> None:
    """The embedded model's own attention; it takes 1024 tokens, so contexts are short."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, prompt in prompts(bench.options.quick).items():
            file = Path(folder) / f"{len(rows)}.trace"
            command = ["trace", "record", str(TIERS), "--out", str(file), "--prompt", prompt, "--ignore-eos", "--json"]
            command += ["--max-tokens", str(32 if bench.options.quick else CODE_TOKENS), "--seed", "1"]
            say(f"recording {name}")
            run_json([str(Path(sys.executable).with_name("paceline")), *command], 600.0)
            trace = read_trace(file)
            rows += [{**row, "steps": len(trace.steps)} for row in judge(name, trace, BUDGETS)]
    notes = [
        *findings(rows, set()),
        "Traces of `paceline trace record`: the embedded target continues a held-out module, and writes one again of "
        "which it has seen the whole. Six layers, contexts of less than 1024 tokens: a few hundred blocks.",
        "At 5 % that is one or two blocks a layer that may move, beside the one being written and those kept free; "
        "what an average of past masses can't foresee, the oracle has.",
    ]
    bench.add("recorded", table("Policies on the embedded model's attention", rows, notes), raw=rows)


# -- speed -------------------------------------------------------------------------------------------------------------


def generate(prompt: str, tokens: int, topology: Path = TIERS, **sets: object) -> Summary:
    """One plain generation; `sets` are of the verifier's tiers, such as the bytes of KV in hbm and dram."""
    command = ["generate", str(topology), "--prompt", prompt, "--max-tokens", str(tokens), "--seed", "1", "--plain"]
    command += ["--ignore-eos", "--json", "--quiet"]
    for key, value in sets.items():
        command += ["--set", f"tiers.verifier.{key}={value}"]
    return run_json([str(Path(sys.executable).with_name("paceline")), *command], 600.0)


def speed(bench: Bench) -> None:
    """Tokens per second at the budgets, beside all KV in hbm; every budget in each round, so that drifts hit all."""
    quick = bench.options.quick
    prompt, tokens = prompts(quick)["code"], 32 if quick else CODE_TOKENS
    everything = 64 << 20
    whole = generate(prompt, tokens, hbm=everything, dram=everything)
    held = sum(whole["tiers"]["verifier"]["bytes"].values()) or whole["tiers"]["verifier"]["peak_bytes"]
    runs: dict[tuple[str, float], list[Summary]] = {}
    for round_ in range(1 if quick else 3):
        say(f"speed, round {round_ + 1}")
        runs.setdefault(("exact", 1.0), []).append(generate(prompt, tokens, hbm=everything, dram=everything))
        for mode in ("exact", "profiled"):
            for share in (share for share in BUDGETS if held * share >= LEAST):
                runs.setdefault((mode, share), []).append(
                    generate(prompt, tokens, hbm=max(1, round(held * share)), dram=everything, mode=mode)
                )
    ids = whole["sessions"][0]["token_ids"]
    full = statistics.median(run["tokens_per_second"] for run in runs["exact", 1.0])
    rows = []
    for (mode, share), several in runs.items():
        rate = statistics.median(run["tokens_per_second"] for run in several)
        tiers = several[0]["tiers"]["verifier"]
        same = all(run["sessions"][0]["token_ids"] == ids for run in several)
        rows.append(
            (mode, f"{share:.0%}", rate, rate / full, tiers["hits"]["hbm"] / max(tiers["lookups"], 1),
             tiers["moved_bytes"] / 2**20, "yes" if same else "no")
        )  # fmt: skip
    columns = ("mode", "hbm %", "tokens/s", "of all in hbm", "lookups in hbm", "MiB moved", "same tokens")
    notes = (
        "Plain decoding of the embedded target; the start of the processes is in no rate. On a machine without a GPU "
        "hbm is an arena of RAM, and blocks in dram are attended where they lie.",
    )
    bench.add("speed", Table("Speed with a part of the KV in hbm", columns, rows, notes), runs=[
        {"mode": mode, "hbm": share, "runs": [{"tokens_per_second": run["tokens_per_second"], "tiers": run["tiers"]}
         for run in several]} for (mode, share), several in runs.items()
    ])  # fmt: skip


def decode(prompt: str, tokens: int, topology: Path = TIERS, **sets: object) -> float:
    """Tokens per second of the serial reference in this process; `sets` as for `generate`."""
    loaded = load_topology(topology, [f"tiers.verifier.{key}={value}" for key, value in sets.items()])
    params = SamplingParams(0.7, seed=1, coupling=loaded.speculation.coupling)
    spec = GenerateSpec(loaded, (prompt,), tokens, 1, params, ignore_eos=True, serial=True)
    return tokens / generate_serial(spec, Models.of(spec), None).wall_s


def profiling(bench: Bench) -> None:
    """What measuring attention masses costs, and what blocks cost beside one buffer for each layer. In one process, as
    a few per cent are less than what two processes differ by."""
    quick = bench.options.quick
    prompt, tokens = prompts(quick)["code"], 32 if quick else CODE_TOKENS
    everything = 64 << 20
    cases: dict[str, Callable[[], float]] = {
        "never": lambda: decode(prompt, tokens, hbm=everything, dram=everything, refresh=1 << 20),
        "every 8 forwards": lambda: decode(prompt, tokens, hbm=everything, dram=everything, refresh=8),
        "every forward": lambda: decode(prompt, tokens, hbm=everything, dram=everything, refresh=1),
        "no tiers": lambda: decode(prompt, tokens, topology=TIERS.with_name("speculate-2.yaml")),
    }
    rates: dict[str, list[float]] = {name: [] for name in cases}
    for round_ in range(1 if quick else 15):
        say(f"profiling, round {round_ + 1}")
        for name, run in list(cases.items())[:: 1 if round_ % 2 else -1]:
            rates[name].append(run())
    rows = [
        (
            name,
            statistics.median(several),
            statistics.median(mine / bare for mine, bare in zip(several, rates["never"], strict=True)),
            max(several) / max(rates["never"]),
        )
        for name, several in rates.items()
    ]
    notes = (
        "The embedded target alone, in one process, with all KV in hbm. Medians of rounds in either order, ratios "
        "within a round, and the ratio of the best rounds. No tiers: scaled_dot_product_attention over one buffer for "
        "each layer.",
    )
    columns = ("masses are measured", "tokens/s", "of never", "best of never's")
    bench.add("profiling", Table("What measuring attention costs", columns, rows, notes), rates=rates)


def main() -> None:
    sections = {"policies": policies, "recorded": recorded, "speed": speed, "profiling": profiling}
    given = options(__doc__ or "", tuple(sections))
    bench = Bench("tiers", "Does KV live where attention looks?", given, threads="1 per rank")
    for name, section in sections.items():
        if given.wants(name):
            section(bench)
    bench.finish()


if __name__ == "__main__":
    main()
