"""Where the attention of a world model falls, pass by pass and layer by layer, written to a trace."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paceline.pipeline.context import Read
from paceline.stages.frame_tiers import slab_masses
from paceline.tiers.errors import TierError
from paceline.tiers.layout import Layout
from paceline.tiers.traces.format import TraceWriter

__all__ = ["FrameRecorder", "FrameTrace"]


class FrameRecorder:
    """Writes the traces of sessions that run one after another. `layout`: how a frame's tokens are cut into blocks."""

    def __init__(self, writer: TraceWriter, layout: Layout, tokens: int) -> None:
        self.writer, self.layout, self.tokens = writer, layout, tokens
        self.steps = 0
        """Passes so far."""
        self.most = 0
        """Most blocks at a time."""
        self._made = self._held = 0

    def make(self, count: int) -> NDArray[np.int64]:
        """Numbers for so many new blocks."""
        self._made, self._held = self._made + count, self._held + count
        self.most = max(self.most, self._held)
        return np.arange(self._made - count, self._made, dtype=np.int64)

    def drop(self, blocks: NDArray[np.int64]) -> None:
        """Blocks are gone."""
        self._held -= len(blocks)
        self.writer.drop(max(0, self.steps - 1), blocks)


class FrameTrace:
    """Takes the place of `FrameTiers` for one session: it keeps everything in memory, and writes down every look."""

    cause: TierError | None = None

    def __init__(self, recorder: FrameRecorder, session: int, sinks: int, levels: range) -> None:
        """`levels`: those whose KV a run with tiers keeps in blocks."""
        self._recorder, self._session = recorder, session
        self._sinks, self._levels = sinks, levels
        self._slabs = recorder.layout.blocks(recorder.tokens)
        self._kv: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._blocks: dict[tuple[int, int], NDArray[np.int64]] = {}
        """By frame and level: numbers `[layers, S]`"""
        self._length = 0

    def takes(self, level: int) -> bool:
        """Whether KV of a level would lie in blocks."""
        return level in self._levels

    def put(self, frame: int, level: int, layer: int, k_HND: Tensor, v_HND: Tensor) -> None:
        """Keep one layer of a frame."""
        if (frame, level) not in self._blocks:
            layers = self._recorder.layout.layers
            self._blocks[frame, level] = self._recorder.make(layers * self._slabs).reshape(layers, self._slabs)
            self._length = max(self._length, frame + 1)
        self._kv.setdefault((frame, level), []).append((k_HND, v_HND))

    def read(self, reads: Sequence[Read], layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer of some frames, one after another: `[H, F N, D]`."""
        found = [self._kv[read.frame, read.level][layer] for read in reads]
        return torch.cat([k for k, _ in found], dim=1), torch.cat([v for _, v in found], dim=1)

    def prefetch(self, frames: Iterable[int]) -> None:
        """Everything is near."""

    def observe(self, reads: Sequence[Read], layer: int, q_HND: Tensor, k_HMD: Tensor) -> None:
        """Write which share of the attention falls on each slab; as `FrameTiers.look`, but in every layer and pass."""
        recorder = self._recorder
        recorder.steps += layer == 0
        rows = [index for index, read in enumerate(reads) if self.takes(read.level)]
        if not rows:
            return
        masses = slab_masses(q_HND, k_HMD, len(reads), rows, recorder.tokens, recorder.layout.block_size)
        frames_F = np.asarray([reads[row].frame for row in rows], dtype=np.int64)
        blocks_FS = np.stack([self._blocks[reads[row].frame, reads[row].level][layer] for row in rows])
        starts = np.repeat(frames_F, self._slabs)
        recorder.writer.record(
            recorder.steps - 1, self._session, layer, self._length, blocks_FS.reshape(-1), starts,
            np.clip(masses, 0.0, 1.0), places=np.tile(np.arange(self._slabs), len(rows)),
            sinks=(starts < self._sinks).astype(np.int64),
        )  # fmt: skip

    def drop(self, frame: int, level: int) -> None:
        """Forget a frame's KV of one level, if there is any."""
        blocks = self._blocks.pop((frame, level), None)
        self._kv.pop((frame, level), None)
        if blocks is not None:
            self._recorder.drop(blocks.reshape(-1))

    def fail(self, cause: TierError | None = None) -> None:
        """Nothing fails here."""

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks held."""
        return sum(blocks.size for blocks in self._blocks.values()) * self._recorder.layout.block_nbytes

    def close(self) -> None:
        """Forget everything."""
        for frame, level in list(self._blocks):
            self.drop(frame, level)
