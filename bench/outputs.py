"""Records what every shipped topology and a set of variants put out, to compare across a change of the code.

    python bench/outputs.py                 run all cases; print what differs from bench/results/outputs.json
    python bench/outputs.py --record        run all cases and write that file
    python bench/outputs.py --only tiers    run the cases whose name contains `tiers`

A case is a command and the values of its JSON that must not depend on how the code is cut: the hash of each session's
frames, the hashes of its KV by level, token ids, and the numbers of the plan. Language cases set `deterministic: true`,
without which sessions may share a pass and round differently. World cases keep `on_late: wait`. The values depend on
the CPU: vector width and library decide how sums round. So compare with a file that was recorded on the same CPU.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from harness import ROOT

from paceline.launch.summary import describe_machine

RESULTS = ROOT / "bench" / "results" / "outputs.json"
TOPOLOGIES = ROOT / "topologies"
PROMPTS = ("def parse_header(line):", "import os\n\nclass Reader:")
TIMEOUT_S = 300
MODES = ("clean", "cascade", "staggered", "matched")
MATCHED = ROOT / "out" / "bench" / "matched"
"""Where topologies are written in which context mode `matched` has no clean pass and no edge for KV."""
PLAN_NUMBERS = ("live", "period_ms", "bound_ms", "frames_per_second", "latency_ms", "ranks", "loads", "speedup")


@dataclass(frozen=True, slots=True)
class Case:
    """One command; `park` runs it twice, and the second run resumes what the first has parked."""

    name: str
    command: tuple[str, ...]
    park: bool = False


def _sets(**values: object) -> tuple[str, ...]:
    return tuple(part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}"))


def _world(name: str, topology: str, *options: str, mode: str | None = None, frames: int = 24) -> Case:
    file = TOPOLOGIES / f"{topology}.yaml"
    if mode == "matched":
        file = _matched(file)
    elif mode is not None:
        options = (*options, *_sets(context__mode=mode))
    return Case(name, ("run", str(file), "--frames", str(frames), "--kv-hash", *options))


def _matched(file: Path) -> Path:
    document = yaml.safe_load(file.read_text())
    document["context"]["mode"] = "matched"
    document["edges"] = [edge for edge in document["edges"] if edge.get("carries") != "kv"]
    for stage in document["stages"].values():
        if "clean" in stage.get("steps", []):
            stage["steps"].remove("clean")
    MATCHED.mkdir(parents=True, exist_ok=True)
    changed = MATCHED / file.name
    changed.write_text(yaml.safe_dump(document))
    return changed


def _text(name: str, topology: str, *options: str, park: bool = False) -> Case:
    prompts = tuple(part for prompt in PROMPTS for part in ("--prompt", prompt))
    file = str(TOPOLOGIES / f"{topology}.yaml")
    return Case(name, ("generate", file, *prompts, "--max-tokens", "40", *_sets(deterministic="true"), *options), park)


def cases() -> Iterator[Case]:
    """All cases."""
    for file in sorted(TOPOLOGIES.glob("*.yaml")):
        yield Case(f"plan {file.stem}", ("plan", str(file)))
        if file.stem.startswith("world"):
            yield _world(f"run {file.stem}", file.stem, "--sessions", "2" if "mirrored" in file.stem else "1")
        elif file.stem.startswith("speculate"):
            yield _text(f"generate {file.stem}", file.stem)
        else:
            yield Case(f"run {file.stem}", ("run", str(file), "--frames", "20"))
    for mode in MODES:
        yield _world(f"wavefront {mode}", "world-2-zmq", mode=mode)
        yield _world(f"mirrored {mode}", "world-2-mirrored", "--sessions", "3", mode=mode)
        yield _world(f"serial {mode}", "world-2", "--serial", mode=mode)
        yield _world(f"batched {mode}", "world-1", "--sessions", "2", mode=mode)
    yield _world("four groups", "world-4-mirrored", "--sessions", "2", "--seed", "5")
    yield _world("window and sinks", "world-2", "--seed", "7", *_sets(context__window=5, context__sinks=2))
    yield _world("recall in tiers", "world-2-tiers", "--seed", "3", frames=90)
    yield _world("recall in small tiers", "world-2-tiers", *_sets(tiers__early__hbm="2MiB", tiers__late__hbm="2MiB"))
    yield _world("recall matched", "world-2-tiers", mode="matched", frames=40)
    for coupling, temperature in (("greedy", "0"), ("gumbel", "0.7"), ("gumbel", "1.3")):
        name = f"{coupling} {temperature}"
        drawn = ("--temperature", temperature, *_sets(speculation__coupling=coupling))
        yield _text(f"plain {name}", "speculate-2", "--plain", *drawn)
        yield _text(f"serial {name}", "speculate-2", "--serial", *drawn)
        yield _text(f"one verifier {name}", "speculate-2", *drawn, *_sets(speculation__window=4, speculation__depth=2))
        yield _text(f"two verifiers {name}", "speculate-3", *drawn, *_sets(speculation__window=4, speculation__depth=3))
        yield _text(f"tiers {name}", "speculate-2-tiers", *drawn, *_sets(tiers__verifier__hbm="400KiB"))
    yield _text("filters", "speculate-2", "--top-k", "40", "--top-p", "0.9", "--repetition-penalty", "1.2")
    yield _text("parked", "speculate-2-tiers", park=True)
    yield _text("parked of two verifiers", "speculate-3", *_sets(tiers__verifier__hbm="64MiB"), park=True)


def run(case: Case) -> dict[str, Any]:
    """The values of one case. Raises `RuntimeError` where its command fails."""
    if case.command[0] == "plan":
        plan = _json(case.command)
        return {key: plan[key] for key in PLAN_NUMBERS if key in plan}
    if not case.park:
        return _values(_json(case.command))
    with tempfile.TemporaryDirectory() as folder:
        first = _values(_json((*case.command, "--park", folder)))
        pairs = zip(case.command, case.command[1:], strict=False)
        sets = [part for pair in pairs if pair[0] == "--set" for part in pair]
        again = _json(("generate", case.command[1], "--resume", folder, "--max-tokens", "20", *sets))
        return {"parked": first, "resumed": _values(again)}


def _json(command: tuple[str, ...]) -> dict[str, Any]:
    argv = [str(Path(sys.executable).parent / "paceline"), *command, "--json"]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr[-2000:]}")
    summary: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return summary


def _values(summary: dict[str, Any]) -> dict[str, Any]:
    sessions = [
        {key: session[key] for key in ("frames", "outputs_sha256", "token_ids", "finish_reason") if key in session}
        for session in summary["sessions"]
    ]
    return {"sessions": sessions, **({"kv_sha256": summary["kv_sha256"]} if "kv_sha256" in summary else {})}


def _differences(name: str, before: Any, after: Any) -> Iterator[str]:
    """Each value that differs, with the way to it."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(f"{name}: {key}", before.get(key), after.get(key))
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, (one, other) in enumerate(zip(before, after, strict=True)):
            yield from _differences(f"{name}[{index}]", one, other)
    elif before != after:
        yield f"{name}: {json.dumps(before)[:200]} became {json.dumps(after)[:200]}"


def main() -> int:
    """Run the cases; returns the exit code, 1 where something differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true", help="write the file in place of comparing with it")
    parser.add_argument("--only", default="", help="part of the name of the cases to run")
    parser.add_argument("--file", type=Path, default=RESULTS, help="the file [default: bench/results/outputs.json]")
    options = parser.parse_args()
    known = json.loads(options.file.read_text()) if options.file.exists() else {"cases": {}}
    found: dict[str, Any] = {}
    differences: list[str] = []
    for case in cases():
        if options.only not in case.name:
            continue
        found[case.name] = run(case)
        if options.record:
            print(case.name, flush=True)
            continue
        new = list(_differences(case.name, known["cases"].get(case.name), found[case.name]))
        differences += new
        print(f"{'DIFFERS' if new else 'same   '}  {case.name}", flush=True)
    if options.record:
        kept = known["cases"] if options.only else {}
        machine = describe_machine()
        options.file.write_text(json.dumps({"machine": machine, "cases": {**kept, **found}}, indent=1) + "\n")
        return 0
    print(*differences, f"{len(found)} cases, {len(differences)} differences", sep="\n")
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main())
