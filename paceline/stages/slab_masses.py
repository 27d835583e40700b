"""Which share of a pass's attention falls on each slab of the frames that it reads."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["slab_masses"]


def slab_masses(
    q_HND: Tensor, k_HMD: Tensor, reads: int, rows: Sequence[int], tokens: int, block_size: int
) -> NDArray[np.float64]:
    """Attention mass `[F S]`, the mean over heads and queries, of the slabs of some frames.

    Queries and keys are rotated; the first keys are those of `reads` frames of so many tokens, and `rows` are the
    places of the F frames among them.
    """
    weights_HNM = torch.softmax(q_HND @ k_HMD.transpose(1, 2) / q_HND.shape[-1] ** 0.5, dim=-1)
    mass_M = weights_HNM.mean(dim=(0, 1)).double().cpu().numpy()
    mass_FN = mass_M[: reads * tokens].reshape(reads, tokens)[list(rows)]
    masses: NDArray[np.float64] = np.add.reduceat(mass_FN, range(0, tokens, block_size), axis=1).reshape(-1)
    return masses
