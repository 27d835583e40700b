"""The context memory of the embedded world: what lay where on the ground, by the delta rule, in a state of fixed size.

The ground is a torus of cells of half a token's side, and a token shows 2 x 2 of them. Four heads hold the cells of one
parity of row and column each, so that every frame writes one cell of each token into every head, whatever its pose. The
key of a cell is its place: cosines and sines of whole-number frequencies on the lattice of a head. The value is a code
of its pixels, with a one behind it, which says on reading how much of the place is known. A gate decides how strongly a
cell is written; it learns to leave out what moves.

Shape suffixes: B any leading dimensions (worlds), N tokens of a frame, E values of a token, Q = 4 heads, one for each
parity, K key size, V value size (code and one), C width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paceline.kernels.philox import Purpose, words
from paceline.stages.dit.config import CELLS, DiTConfig

__all__ = ["GroundMemory", "cells_of"]


def cells_of(x_BNE: Tensor) -> Tensor:
    """Tokens `[B, N, E]` cut into their cells, row by row: `[B, N, 4, E / 4]`."""
    lead, (n, e) = x_BNE.shape[:-2], x_BNE.shape[-2:]
    half = math.isqrt(e // 3) // 2
    return x_BNE.reshape(*lead, n, 2, half, 2, half, 3).movedim(-3, -4).reshape(*lead, n, CELLS, e // CELLS)


class GroundMemory(nn.Module):
    """Keys, values and gates of a frame, and the way from what was read into the network."""

    frequency: Tensor

    def __init__(self, config: DiTConfig) -> None:
        super().__init__()
        shape = config.memory
        if shape is None:
            raise ValueError("the configuration has no memory")
        self.grid_y, self.grid_x, self.side = config.grid_y, config.grid_x, config.torus // 2
        self.keys_size, self.values_size = shape.keys, shape.values
        cell = config.token_dim // CELLS
        self.value = nn.Sequential(nn.Linear(cell, 64), nn.GELU(), nn.Linear(64, shape.values - 1))
        self.gate = nn.Sequential(nn.Linear(cell, 32), nn.GELU(), nn.Linear(32, 1))
        self.read = nn.Sequential(nn.Linear(CELLS * shape.values, 256), nn.GELU(), nn.Linear(256, config.width))
        # At first nothing is added, and all is written.
        for name, value in {"read.2.weight": 0.0, "read.2.bias": 0.0, "gate.2.bias": 2.0}.items():
            nn.init.constant_(self.get_parameter(name), value)
        self.register_buffer("frequency", self._frequencies(shape.keys // 2), False)

    def _frequencies(self, count: int) -> Tensor:
        """`count` distinct pairs of whole numbers below half the side, one of each two that are negatives of one
        another, in an order that the numbers themselves don't follow: low ones alone tell few places apart."""
        most = (self.side - 1) // 2
        along = torch.arange(-most, most + 1)
        pairs = torch.cartesian_prod(along, along)
        half = pairs[(pairs[:, 0] > 0) | ((pairs[:, 0] == 0) & (pairs[:, 1] > 0))]
        chosen: Tensor = half[torch.argsort(words(0, 0, Purpose.memory, len(half)))[:count]]
        return chosen

    def empty(self, *lead: int) -> Tensor:
        """A state that holds nothing, `[*lead, Q, K, V]`."""
        shape = (*lead, CELLS, self.keys_size, self.values_size)
        return torch.zeros(shape, device=self.frequency.device)

    def keys(self, pose_B2: Tensor) -> Tensor:
        """Keys of the cells that frames at poses (in half tokens) show, `[B, Q, N, K]`, of length 1."""
        row_BQN, column_BQN = self._places(pose_B2)
        angle = (row_BQN[..., None] * self.frequency[:, 0] + column_BQN[..., None] * self.frequency[:, 1]) % self.side
        turn = angle.to(torch.float32) * (2 * math.pi / self.side)
        return torch.cat([turn.cos(), turn.sin()], dim=-1) / math.sqrt(self.keys_size / 2)

    def _places(self, pose_B2: Tensor) -> tuple[Tensor, Tensor]:
        """Row and column of the cell of each token in each head, on the head's lattice: `[B, Q, N]` twice."""
        parity = torch.arange(CELLS, device=pose_B2.device)
        token = torch.arange(self.grid_y * self.grid_x, device=pose_B2.device)
        found = []
        for axis, of_head, of_token in ((0, parity // 2, token // self.grid_x), (1, parity % 2, token % self.grid_x)):
            start = pose_B2[..., axis, None, None]
            offset = (of_head[:, None] - start) % 2  # of the cell in its token
            found.append(((start + 2 * of_token + offset) // 2) % self.side)
        return found[0], found[1]

    def _heads(self, pose_B2: Tensor) -> Tensor:
        """The head of each cell of a token, row by row: `[B, 4]`. It is its own inverse."""
        cell = torch.arange(CELLS, device=pose_B2.device)
        odd_y, odd_x = (pose_B2[..., axis, None] % 2 for axis in (0, 1))
        return ((cell // 2 + odd_y) % 2) * 2 + (cell % 2 + odd_x) % 2

    def writes(self, x_BNE: Tensor, pose_B2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys `[B, Q, N, K]`, values `[B, Q, N, V]` and strengths `[B, Q, N]` of finished frames."""
        lead, (n, e) = x_BNE.shape[:-2], x_BNE.shape[-2:]
        by_head = cells_of(x_BNE).movedim(-2, -3)
        index = self._heads(pose_B2)[..., None, None].expand(*lead, CELLS, n, e // CELLS)
        cell_BQNP = by_head.gather(-3, index)
        code = self.value(cell_BQNP)
        code = F.layer_norm(code, code.shape[-1:])
        one = torch.ones_like(code[..., :1])
        return self.keys(pose_B2), torch.cat([code, one], dim=-1), torch.sigmoid(self.gate(cell_BQNP))[..., 0]

    def arrange(self, held_BQNV: Tensor, pose_B2: Tensor) -> Tensor:
        """What the heads hold of the cells in view, token by token and row by row: `[B, N, 4 V]`."""
        lead, (n, v) = held_BQNV.shape[:-3], held_BQNV.shape[-2:]
        index = self._heads(pose_B2)[..., None, None].expand(*lead, CELLS, n, v)
        return held_BQNV.gather(-3, index).movedim(-3, -2).reshape(*lead, n, CELLS * v)

    def embed(self, read_BNR: Tensor) -> Tensor:
        """What was read as an addition to the tokens of a frame, `[B, N, C]`."""
        added: Tensor = self.read(read_BNR)
        return added
