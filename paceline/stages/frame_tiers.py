"""KV of a world model's frames over the memory tiers: blocks in time and space.

A frame's layer is cut into slabs of `block_size` tokens, which are numbered row by row: `start` of a block is its
frame, `place` its slab. What a pass reads of them comes back with the bits that were written, wherever it lay, so tiers
change nothing of what is computed. Where a block can't be read back, or no tier has room for another one, the session
fails, and only that one: what that means for its frames is in `failed.py`.

Shape suffixes: H heads, N tokens of a frame, M tokens of the context, F frames, S slabs of a frame, D head size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.pipeline.context import Read
from paceline.pipeline.tiers import TierSpec
from paceline.stages.frame_sharing import SharedFrames
from paceline.stages.tier_spec import budget_of, settings_of
from paceline.stages.world_file import WorldHeader
from paceline.tiers.errors import BlockLost, TierError, TierFull
from paceline.tiers.layout import Layout
from paceline.tiers.manager import TierManager

__all__ = ["FrameTiers", "frame_layout", "frame_tier_manager", "slab_masses"]


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


def frame_tier_manager(
    spec: TierSpec,
    header: WorldHeader,
    share: int,
    recall: int,
    device: str,
    weights: str,
    stage: str,
    rank: int,
    memory_bytes: int = 0,
) -> TierManager:
    """The tiers of one denoise stage, which has the `share`-th part of the budgets of its rank.

    `recall` is the number of frames that a frame recalls, `memory_bytes` what the context memories of the rank's
    sessions take of hbm. Raises what `TierManager` raises.
    """
    layout = frame_layout(header, spec.block_size)
    budget = budget_of(spec.model_copy(update={"hbm": spec.hbm - memory_bytes}), share)
    # Room for the frame that is being written and for those that the next one recalls, before they are waited for.
    frame = header.layers * layout.blocks(header.tokens)
    spare = min(frame * (1 + recall) / budget.slots(layout).hbm, 0.25)
    known = {"columns": columns_of(header, spec.block_size)}
    settings = replace(settings_of(spec, layout), spare=spare, known=known)
    return TierManager(layout, budget, settings, device, f"{weights}:{stage}", rank)


def frame_layout(header: WorldHeader, block_size: int) -> Layout:
    """Blocks of so many tokens of a frame."""
    return Layout(header.layers, header.heads, block_size, header.head_dim, getattr(torch, header.kv_dtype))


def columns_of(header: WorldHeader, block_size: int) -> int:
    """Slabs in a row of the picture; 1 where a slab is a row or more."""
    return max(1, header.columns // block_size)


class FrameTiers:
    """The frames of one session at one stage. Levels that live for a few slots only are none of its business."""

    def __init__(
        self,
        manager: TierManager,
        tokens: int,
        sinks: int,
        levels: range,
        session: int | None = None,
        prompt: int = 0,
        shared: SharedFrames | None = None,
    ) -> None:
        """`levels`: those at which frames are read long after they were computed. `session`: the number by which the
        manager is to know it; a fresh one if not given. The first `prompt` frames are looked for among those `shared`
        with other sessions. Raises `ValueError` if the session is open."""
        self._manager = manager
        self._session = manager.open(session)
        self._tokens, self._sinks, self._levels = tokens, sinks, levels
        self._size = manager.layout.block_size
        self._slabs = manager.layout.blocks(tokens)
        self._blocks: dict[tuple[int, int], NDArray[np.int64]] = {}
        """By frame and level: block numbers `[layers, S]`, -1 where a layer has not come yet"""
        self._layer = manager.layout.layers // 2
        self._passes = 0
        self._prompt, self._shared = prompt, shared
        self._failed = False
        self.cause: TierError | None = None
        """Why the session failed, where it failed here"""

    def takes(self, level: int) -> bool:
        """Whether KV of a level lies here."""
        return level in self._levels

    def put(self, frame: int, level: int, layer: int, k_HND: Tensor, v_HND: Tensor) -> None:
        """Write one layer of a frame. Where it finds no room the session fails; of one that failed nothing is kept."""
        if self._failed:
            return
        try:
            self._write(frame, level, layer, k_HND, v_HND)
        except (BlockLost, TierFull) as error:
            self.fail(error)

    def _write(self, frame: int, level: int, layer: int, k_HND: Tensor, v_HND: Tensor) -> None:
        layers = self._manager.layout.layers
        blocks = self._blocks.get((frame, level))
        if blocks is None:
            blocks = self._blocks[frame, level] = np.full((layers, self._slabs), -1, dtype=np.int64)
            self._manager.extend(self._session, frame + 1)
        for place in range(self._slabs):
            first = place * self._size
            last = min(first + self._size, self._tokens)
            kv = k_HND[:, first:last], v_HND[:, first:last]
            if self._shared is not None and frame < self._prompt:
                make = partial(self._new, frame, layer, place, *kv)
                blocks[layer, place] = self._shared.block(layer, frame, place, *kv, make)
            else:
                blocks[layer, place] = self._new(frame, layer, place, *kv)

    def _new(self, frame: int, layer: int, place: int, k_HBD: Tensor, v_HBD: Tensor) -> int:
        """A block of its own with this content."""
        block = self._manager.allocate(self._session, layer, frame, place, frame < self._sinks)
        try:
            self._manager.write(block, 0, k_HBD, v_HBD)
        except TierError:
            self._manager.release([block])
            raise
        return block

    def read(self, reads: Sequence[Read], layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer of some frames, one after another: `[H, F N, D]`. Where one can't be read back
        the session fails; of one that failed all are zeros, so that forwards keep their shapes."""
        if not self._failed:
            blocks = np.concatenate([self._blocks[read.frame, read.level][layer] for read in reads])
            try:
                keys_NHBD, values_NHBD = self._manager.fetch(blocks)
                return self._tokens_of(keys_NHBD, len(reads)), self._tokens_of(values_NHBD, len(reads))
            except BlockLost as error:
                self.fail(error)
        layout = self._manager.layout
        shape = (layout.heads, len(reads) * self._tokens, layout.head_dim)
        keys_HMD = torch.zeros(shape, dtype=layout.dtype, device=self._manager.device)
        return keys_HMD, torch.zeros_like(keys_HMD)

    def _tokens_of(self, blocks_NHBD: Tensor, frames: int) -> Tensor:
        """Blocks as tokens in their order."""
        _, heads, _, width = blocks_NHBD.shape
        x_HNBD = blocks_NHBD.transpose(0, 1)
        if self._slabs * self._size == self._tokens:
            return x_HNBD.reshape(heads, frames * self._tokens, width)
        x_HFND = x_HNBD.reshape(heads, frames, self._slabs * self._size, width)
        return x_HFND[:, :, : self._tokens].reshape(heads, frames * self._tokens, width)

    def prefetch(self, frames: Iterable[int]) -> None:
        """Frames will be read soon, first layers first: bring them near as far as there is room."""
        held = [
            self._blocks[frame, level] for frame in frames for level in self._levels if (frame, level) in self._blocks
        ]
        if held:
            blocks = np.stack(held, axis=1).reshape(-1)
            self._manager.prefetch(blocks[blocks >= 0])

    def observe(self, reads: Sequence[Read], layer: int, q_HND: Tensor, k_HMD: Tensor) -> None:
        """Every `refresh` passes: see on which slabs the attention falls, in one layer, for the profile of all.

        Queries and keys are rotated; the first keys are those of `reads`, in their order.
        """
        if layer != self._layer or self._failed:
            return
        self._passes += 1
        rows = [index for index, read in enumerate(reads) if self.takes(read.level)]
        if self._passes % self._manager.settings.refresh or not rows:
            return
        masses = slab_masses(q_HND, k_HMD, len(reads), rows, self._tokens, self._size)
        blocks = np.stack([self._blocks[reads[row].frame, reads[row].level] for row in rows], axis=1)
        for each in blocks:
            self._manager.record(each.reshape(-1), masses)

    def drop(self, frame: int, level: int) -> None:
        """Forget a frame's KV of one level, if there is any."""
        blocks = self._blocks.pop((frame, level), None)
        if blocks is not None:
            self._manager.release(blocks[blocks >= 0])

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks held."""
        return sum(int((blocks >= 0).sum()) for blocks in self._blocks.values()) * self._manager.layout.block_nbytes

    def fail(self, cause: TierError | None = None) -> None:
        """The session failed, here because of `cause` or at another stage: its blocks make room for others, and from
        now on nothing is kept."""
        if self._failed:
            return
        # Without its traceback, which would keep the tensors of a forward alive.
        self._failed, self.cause = True, None if cause is None else cause.with_traceback(None)
        self._drop_all()

    def close(self) -> None:
        """Forget everything."""
        self._drop_all()
        self._manager.close(self._session)

    def _drop_all(self) -> None:
        for frame, level in list(self._blocks):
            self.drop(frame, level)
