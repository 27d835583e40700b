"""Which tokens a training step reads: every window of the text once per epoch, in an order of the epoch's own.

A batch is a function of (seed, step), so training resumes exactly. Windows of an epoch begin at a common offset, drawn
per epoch, so that later epochs cut the text elsewhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

__all__ = ["Windows"]


class Windows:
    """Batches of `batch` windows of `length` tokens out of a stream `[N]`.

    Raises `ValueError` where the stream is too short for two windows.
    """

    def __init__(self, stream: npt.NDArray[np.int64], batch: int, length: int, seed: int) -> None:
        self.stream, self.batch, self.length, self.seed = stream, batch, length, seed
        self.per_epoch = len(stream) // length - 1  # one window is lost to the offset
        if self.per_epoch < 1:
            raise ValueError(
                f"a text of {len(stream)} tokens is too short for windows of {length}; use a smaller context"
            )
        self._epoch, self._starts = -1, np.empty(0, np.int64)

    def _start(self, index: int) -> int:
        """First token of a run's window number `index`."""
        epoch, place = divmod(index, self.per_epoch)
        if epoch != self._epoch:
            draw = np.random.default_rng((self.seed, epoch))
            offset = int(draw.integers(self.length))
            self._epoch, self._starts = epoch, offset + self.length * draw.permutation(self.per_epoch)
        return int(self._starts[place])

    def at(self, step: int) -> Tensor:
        """The batch of a step, `[batch, length]`."""
        starts = [self._start(step * self.batch + row) for row in range(self.batch)]
        return torch.from_numpy(np.stack([self.stream[start : start + self.length] for start in starts]))
