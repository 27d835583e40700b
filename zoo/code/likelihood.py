"""How many bits a model needs to write a text down."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaForCausalLM

__all__ = ["bits"]


@torch.inference_mode()
def bits(
    model: LlamaForCausalLM, stream: npt.NDArray[np.int64], context: int = 512, stride: int = 256, batch: int = 8
) -> float:
    """Bits of all tokens of a stream `[N]` but the first, as an arithmetic coder with this model would write them.

    Windows of `context` tokens overlap by `context - stride`: every token beyond the first window is predicted from at
    least that many tokens before it. Raises `ValueError` for a stride outside 1..context.
    """
    if not 0 < stride <= context:
        raise ValueError(f"a stride of {stride} does not fit windows of {context} tokens; take 1 to {context}")
    total, done = 0.0, 1  # the first token is given
    starts = list(range(0, max(1, len(stream) - context + stride), stride))
    last = len(stream) - 1
    for group in range(0, len(starts), batch):
        for width in sorted({min(context, last - start) for start in starts[group : group + batch]}, reverse=True):
            rows = [start for start in starts[group : group + batch] if min(context, last - start) == width]
            if width <= 0:
                continue
            cut = torch.from_numpy(np.stack([stream[start : start + width + 1] for start in rows])).to(model.device)
            logits = model(input_ids=cut[:, :-1], use_cache=False).logits.float()
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), cut[:, 1:].flatten(), reduction="none")
            loss = loss.view(len(rows), width)
            for row, start in enumerate(rows):
                total += float(loss[row, done - start - 1 :].double().sum())
                done = start + width + 1
    return total / math.log(2)
