"""Score the code models on held-out modules: `python -m zoo.code.evaluate --json OUT`.

The target's bits per byte stand beside those of `xz -9e` that has the training text as a prefix. Acceptance is
computed exactly (`acceptance`), on the held-out text itself and on what the target writes after held-out prompts, which
is what a user sees. `cost` is the time of a forward over cached text, in ms.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

from zoo.code.acceptance import COUPLINGS, on_continuations, on_text
from zoo.code.baseline import xz_bits_per_byte
from zoo.code.corpus import fingerprint, joined, stdlib
from zoo.code.likelihood import bits
from zoo.code.models import load
from zoo.code.tokenizer import load_tokenizer, token_stream

__all__ = ["evenly", "forward_ms", "main", "pair_acceptance"]

HERE = Path(__file__).parent


def evenly(stream: npt.NDArray[np.int64], count: int, length: int) -> Tensor:
    """`count` windows `[count, length]` spread over a stream `[N]`; raises `ValueError` where they don't fit."""
    if count * length > len(stream):
        raise ValueError(f"{count} windows of {length} tokens do not fit {len(stream)} tokens; ask for fewer")
    starts = np.linspace(0, len(stream) - length, count).astype(np.int64)
    return torch.from_numpy(np.stack([stream[start : start + length] for start in starts]))


@torch.inference_mode()
def forward_ms(model: LlamaForCausalLM, tokens: int, cached: int = 256, repeats: int = 40) -> float:
    """Milliseconds of a forward over `tokens` tokens behind `cached` ones, the fastest tenth of the repeats."""
    cache = DynamicCache(config=model.config)
    model(input_ids=torch.zeros(1, cached, dtype=torch.int64), past_key_values=cache, use_cache=True)
    fresh = torch.zeros(1, tokens, dtype=torch.int64)
    times: list[float] = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(input_ids=fresh, past_key_values=cache, use_cache=True)
        times.append(time.perf_counter() - start)
        cache.crop(-tokens)
    return 1e3 * sorted(times)[repeats // 10]


def pair_acceptance(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, stream: npt.NDArray[np.int64], temperature: float, windows: int
) -> dict[str, Any]:
    """Acceptance on `windows` windows of a stream and on continuations of as many prompts."""
    text = on_text(target, draft, evenly(stream, windows, 512), temperature)
    own = on_continuations(target, draft, evenly(stream, windows, 128), 128, temperature)
    return {
        coupling: {"text": asdict(text[coupling]), "continuations": asdict(own[coupling])} for coupling in COUPLINGS
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Command line of the evaluator."""
    parser = argparse.ArgumentParser(prog="python -m zoo.code.evaluate", description="Score the embedded code models.")
    parser.add_argument("--target", type=Path, default=HERE / "target", help="folder of the target")
    parser.add_argument("--draft", type=Path, default=HERE / "draft", help="folder of the drafter")
    parser.add_argument("--temperatures", type=float, nargs="+", default=[0.0, 0.7, 1.0])
    parser.add_argument("--windows", type=int, default=48, help="windows and prompts for acceptance")
    parser.add_argument("--stride", type=int, default=256, help="of the overlapping windows for bits per byte")
    parser.add_argument("--no-xz", action="store_true", help="leave xz out, which takes most of the time")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    target, draft = load(args.target), load(args.draft)
    corpus = stdlib()
    stream = token_stream(load_tokenizer(args.target), (document.text for document in corpus.held_out))
    text = joined(corpus.held_out)
    report: dict[str, Any] = {
        "python": corpus.python,
        "training_text_sha256": fingerprint(corpus.train),
        "held_out": {"modules": len(corpus.held_out), "bytes": len(text), "tokens": len(stream) - 1},
        "bits_per_byte": {},
        "acceptance": {},
        "cost_ms": {},
    }
    if not args.no_xz:
        report["bits_per_byte"]["xz"] = xz_bits_per_byte(joined(corpus.train), text)
    for name, model in (("target", target), ("draft", draft)):
        report["bits_per_byte"][name] = bits(model, stream, stride=args.stride) / len(text)
        report["cost_ms"][name] = {tokens: forward_ms(model, tokens) for tokens in (1, 8)}
    for name, value in report["bits_per_byte"].items():
        print(f"{name:>8}: {value:.4f} bits per byte", flush=True)
    for name, cost in report["cost_ms"].items():
        print(f"{name:>8}: " + ", ".join(f"{t} tokens {ms:.2f} ms" for t, ms in cost.items()), flush=True)
    print("acceptance: temperature, coupling, on text, on continuations, there by place in a window")
    for temperature in args.temperatures:
        result = pair_acceptance(target, draft, stream, temperature, args.windows)
        report["acceptance"][str(temperature)] = result
        for coupling, row in result.items():
            own = row["continuations"]
            places = " ".join(f"{value:.2f}" for value in own["by_position"])
            print(
                f"{temperature:5.1f}  {coupling:>9}  {row['text']['mean']:.3f}  {own['mean']:.3f}   {places}",
                flush=True,
            )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
