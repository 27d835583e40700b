"""Transformers' own generation of given prompts, plain or assisted, as a process of its own. Reads a request as JSON on
standard input; prints one JSON object. Loading and a first, untimed prompt are not in the time."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
import transformers

__all__ = ["main"]


def main() -> None:
    """Generate and print `tokens_per_second`, `tokens` and the continuations' ids."""
    given: dict[str, Any] = json.load(sys.stdin)
    torch.set_num_threads(given["threads"])
    transformers.logging.set_verbosity_error()
    load = transformers.AutoModelForCausalLM.from_pretrained
    target = load(given["target"], dtype=torch.float32).eval()
    options: dict[str, Any] = {
        "max_new_tokens": given["max_tokens"],
        "min_new_tokens": given["max_tokens"],  # as --ignore-eos
        "do_sample": given["temperature"] > 0,
    }
    if given["temperature"] > 0:
        options |= {"temperature": given["temperature"], "top_k": 0, "top_p": 1.0}
    if given["assisted"]:
        options["assistant_model"] = load(given["draft"], dtype=torch.float32).eval()
    made: list[list[int]] = []
    spent = 0.0
    with torch.random.fork_rng():  # Transformers samples from the global generator
        torch.manual_seed(0)
        for number, ids in enumerate([given["prompts"][0], *given["prompts"]]):
            started = time.monotonic()
            tensor = torch.tensor([ids])
            out = target.generate(tensor, attention_mask=torch.ones_like(tensor), **options)
            if number:
                spent += time.monotonic() - started
                made.append(out[0, len(ids) :].tolist())
    count = sum(map(len, made))
    print(json.dumps({"tokens": count, "tokens_per_second": count / spent, "made": made}))


if __name__ == "__main__":
    main()
