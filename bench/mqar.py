"""How much does a language model recall, by its memory's rule, by the size of its state, by the number of pairs?

    python bench/mqar.py [--quick] [--results DIR]

Trains a small model for each rule and size (`zoo.mqar.train`, one thread, in out/mqar, where runs that ended or were
interrupted are taken up) and asks it for every pair of fresh texts of multi-query associative recall.
"""

from __future__ import annotations

import json
import sys

from harness import ROOT, Bench, Table, options, run_json, say

STEPS, QUICK_STEPS = 1500, 20
CASES = (
    ("linear", 8), ("linear", 16), ("linear", 32),
    ("delta", 8), ("delta", 16), ("delta", 32),
    ("gated_delta", 8), ("gated_delta", 16), ("gated_delta", 32),
    ("ttt_linear", 32),
    ("hybrid", 16), ("attention", 32),
)  # fmt: skip
"""Kind of the layers, and keys and values of a head."""
PAIRS = (4, 8, 16, 32, 64)
TIMEOUT_S = 3600.0


def main() -> None:
    """Train, ask, print, write."""
    chosen = options(__doc__ or "")
    bench = Bench("mqar", "How much does a language model with memory layers recall?", chosen, threads="1")
    steps = QUICK_STEPS if chosen.quick else STEPS
    rows, found = [], {}
    for kind, size in CASES[-3:-1] if chosen.quick else CASES:
        say(f"{kind}, heads of {size}")
        out = ROOT / "out" / ("mqar-quick" if chosen.quick else "mqar") / f"{kind}-{size}"
        command = [sys.executable, "-m", "zoo.mqar.train", "--kind", kind, "--size", str(size), "--steps", str(steps)]
        result = run_json([*command, "--out", str(out)], TIMEOUT_S)
        found[f"{kind}-{size}"] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
        grows = kind in ("hybrid", "attention")
        shares = [result["recalled"][str(pairs)] for pairs in PAIRS]
        rows.append((kind, size, result["state_bytes"], "yes" if grows else "no", *shares))
    table = Table(
        f"Share of queries answered after {steps} steps, by number of pairs",
        ("layers", "head size", "state bytes", "KV too", *(f"{pairs} pairs" for pairs in PAIRS)),
        rows,
        notes=(
            "Two layers of width 64 with two heads; keys and values of a head have the same size. State bytes are "
            "those of the rules, in float32; what the convolutions see (3 tokens) comes on top.",
            "`hybrid` is a layer of gated_delta and one of attention, whose KV grows with the text, as that of "
            "`attention` does.",
            "256 fresh texts for each number of pairs, of 64 tokens (4 and 8 pairs), 128 (16 and 32) and 256 (64). One "
            "seed; all with the same steps, batches and learning rate.",
        ),
    )
    bench.add("recalled", table, logs=found)
    bench.finish()


if __name__ == "__main__":
    main()
