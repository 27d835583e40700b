"""Text sampled from a model in the plainest way: many rows at once, one token at a time."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaForCausalLM

__all__ = ["continued"]


@torch.inference_mode()
def continued(model: LlamaForCausalLM, prompts: Tensor, count: int, temperature: float, seed: int) -> Tensor:
    """Prompts `[B, P]` with `count` more tokens each, `[B, P + count]`; temperature 0 takes the likeliest token.

    A token is the argmax of p(x) / e(x) with e exponential, which is a draw from p; the draws are a function of the
    seed. A row goes on behind an end of text.
    """
    draw = torch.Generator().manual_seed(seed)
    cache = DynamicCache(config=model.config)
    rows, fresh = [prompts], prompts
    for _ in range(count):
        logits = model(input_ids=fresh, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1].float()
        if temperature > 0:
            race = torch.empty(logits.shape).exponential_(generator=draw).to(logits.device)
            logits = logits / temperature - race.log()
        fresh = logits.argmax(dim=-1, keepdim=True)
        rows.append(fresh)
    return torch.cat(rows, dim=1)
