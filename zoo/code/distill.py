"""How the drafter learns from the target: to give each token the target's probability where drafts are judged.

Under the rejection coupling a drafted token is accepted with probability Σ min(p, q) = 1 − TV(p, q) (Leviathan et al.
2211.17192), p and q after the temperature. So the loss is that total variation at the sampling temperature, with some
forward KL(p ‖ q) beside it, whose gradient does not vanish where q is still far from p (Zhou et al., DistillSpec,
2310.08461, compare the divergences).

Half of the windows are text of the corpus, half begin like it and go on as the target writes at that temperature:
the drafter will be asked about both. What the target writes is a function of (seed, block of steps), so it needs no
file and training resumes exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from zoo.code.batches import Windows
from zoo.code.sampling import continued

__all__ = ["Recipe", "Teacher", "divergence"]


@dataclass(frozen=True, slots=True)
class Recipe:
    """`temperature` of sampling; `kl`: weight of KL beside the total variation; `share` of windows that the target
    writes, after a prompt of `prompt` tokens; a block of `block` steps is written at once and read `reads` times."""

    temperature: float = 0.7
    kl: float = 0.2
    share: float = 0.5
    prompt: int = 192
    block: int = 32
    reads: int = 3


def divergence(target: Tensor, draft: Tensor, temperature: float, kl: float) -> tuple[Tensor, Tensor]:
    """Loss and total variation, means over rows, of logits `[N, V]`; `temperature` divides both."""
    log_p = torch.log_softmax(target.float() / temperature, dim=-1)
    log_q = torch.log_softmax(draft.float() / temperature, dim=-1)
    p = log_p.exp()
    variation = 0.5 * (p - log_q.exp()).abs().sum(-1).mean()
    return variation + kl * (p * (log_p - log_q)).sum(-1).mean(), variation.detach()


class Teacher:
    """What the target writes, and the windows on which the drafter imitates it."""

    def __init__(self, writer: LlamaForCausalLM, windows: Windows, recipe: Recipe) -> None:
        self.writer, self.windows, self.recipe = writer, windows, recipe
        self.written = round(windows.batch * recipe.share)
        self._block, self._pool = -1, torch.empty(0)

    def _writing(self, step: int) -> Tensor:
        """What the target wrote for a step, `[written, T]`."""
        recipe, windows = self.recipe, self.windows
        block, place = divmod(step, recipe.block * recipe.reads)
        if block != self._block:
            first = block * recipe.block * recipe.reads
            prompts = torch.cat([windows.at(first + i)[-self.written :] for i in range(recipe.block)])
            count = windows.length - recipe.prompt
            seed = (windows.seed << 32) + block
            prompts = prompts[:, : recipe.prompt].to(self.writer.device)
            self._block, self._pool = block, continued(self.writer, prompts, count, recipe.temperature, seed).cpu()
        place %= recipe.block
        return self._pool[place * self.written : (place + 1) * self.written]

    def batch(self, step: int) -> Tensor:
        """The windows of a step, `[B, T]`: text first, then what the target wrote."""
        text = self.windows.at(step)
        if self.written == 0:
            return text
        return torch.cat([text[: self.windows.batch - self.written], self._writing(step)])
