"""The KV of one sequence in the layers of one rank, in blocks that may lie in any tier."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from paceline.tiers.attention import Query
from paceline.tiers.manager import TierManager
from paceline.tiers.pool import Blocks

__all__ = ["PagedKV"]


class PagedKV:
    """Does for blocks what a growing buffer does for a sequence: the first `length` positions hold.

    A forward reserves its positions, writes and attends layer by layer, and then sets `length`; setting it to less
    truncates. What lies beyond it may be written again. Blocks are shared with forks until one side writes.
    """

    def __init__(self, manager: TierManager, session: int | None = None, sinks: int = 1) -> None:
        """`sinks`: how many first blocks are marked as such for the policies."""
        self.manager = manager
        self.session = manager.open(session)
        self._sinks = sinks
        self._size = manager.layout.block_size
        self._table: Blocks = np.full((manager.layout.layers, 0), -1, dtype=np.int64)
        self._reserved = 0
        """Blocks of each layer."""
        self._starts: Blocks = np.zeros(0, dtype=np.int64)
        self._length = 0
        self._written: list[int] = [0] * manager.layout.layers
        """By layer, up to where its blocks were ever written."""

    # -- length --------------------------------------------------------------------------------------------------------

    @property
    def length(self) -> int:
        """Positions that hold."""
        return self._length

    @length.setter
    def length(self, length: int) -> None:
        """Commit what was written up to `length`, or truncate to it; blocks that lie wholly beyond are released."""
        if length < self._length:
            self._written = [min(written, length) for written in self._written]
        before, self._length = self._length, length
        kept = self.manager.layout.blocks(length)
        if kept < self._reserved:
            self.manager.release(self._table[:, kept : self._reserved].reshape(-1))
            self._table[:, kept : self._reserved] = -1
            self._reserved = kept
            self._written = [min(written, length) for written in self._written]
        self.manager.extend(self.session, length)
        self._mark_open(before)

    def reserve(self, positions: int) -> None:
        """See that there are blocks for so many positions. All or none; raises `TierFull`."""
        wanted = self.manager.layout.blocks(positions)
        if wanted <= self._reserved:
            return
        layers = self._table.shape[0]
        if wanted > self._table.shape[1]:
            size = max(wanted, 2 * self._table.shape[1], 8)
            table = np.full((layers, size), -1, dtype=np.int64)
            table[:, : self._reserved] = self._table[:, : self._reserved]
            self._table, self._starts = table, np.arange(size, dtype=np.int64) * self._size
        taken: list[int] = []
        try:
            for number in range(self._reserved, wanted):
                for layer in range(layers):
                    block = self.manager.allocate(self.session, layer, number * self._size, sink=number < self._sinks)
                    taken.append(block)
                    self.manager.pool.open[block] = True
                    self._table[layer, number] = block
        except BaseException:
            self._table[:, self._reserved : wanted] = -1
            self.manager.release(taken)
            raise
        self._reserved = wanted

    # -- a layer -------------------------------------------------------------------------------------------------------

    def write(self, layer: int, start: int, k_GND: Tensor, v_GND: Tensor) -> None:
        """Write positions from `start` on, for which there is room. Raises `TierFull`, `BlockLost`."""
        done, count = 0, k_GND.shape[1]
        while done < count:
            number, offset = divmod(start + done, self._size)
            some = min(self._size - offset, count - done)
            block = self._own(layer, number)
            self.manager.write(block, offset, k_GND.narrow(1, done, some), v_GND.narrow(1, done, some))
            done += some
        self._written[layer] = max(self._written[layer], start + count)

    def attend(
        self,
        layer: int,
        q_HMD: Tensor,
        start: int,
        scale: float | None = None,
        window: int | None = None,
        new: range | None = None,
    ) -> Tensor:
        """Attention `[1, H, M, D]` of rows at positions from `start` on, each seeing up to its own position.

        `window` bounds how many keys a row may see, its own included; `scale` is 1/sqrt(D) if not given. Rows outside
        `new` are padding: they are computed, and nothing is concluded from them. Raises `BlockLost`.
        """
        stop = start + q_HMD.shape[1]
        first = 0 if window is None else max(0, start - window + 1) // self._size
        last = self.manager.layout.blocks(stop)
        starts = self._starts[first:last]
        query = Query(
            self.session,
            layer,
            q_HMD,
            self._table[layer, first:last],
            starts,
            np.clip(self._written[layer] - starts, 0, self._size),
            start,
            q_HMD.shape[2] ** -0.5 if scale is None else scale,
            window,
            new,
        )
        return self.manager.attend(query).to(q_HMD.dtype)[None]

    # -- copies --------------------------------------------------------------------------------------------------------

    def fork(self, length: int) -> PagedKV:
        """Another sequence that has the first `length` positions of this one, without a copy: blocks are shared, and
        copied when one side writes into them."""
        kept = self.manager.layout.blocks(length)
        return PagedKV.of(self.manager, self._table[:, :kept], length, self._sinks)

    @classmethod
    def of(cls, manager: TierManager, table: Blocks, length: int, sinks: int = 1) -> PagedKV:
        """A sequence of `length` positions that begins with blocks `[layers, n]` that others hold too."""
        kv = cls(manager, sinks=sinks)
        count = table.shape[1]
        kv._table, kv._starts = table.copy(), np.arange(count, dtype=np.int64) * kv._size
        kv._reserved, kv._length = count, length
        kv._written = [length] * manager.layout.layers
        manager.share(kv._table.reshape(-1))
        manager.extend(kv.session, length)
        return kv

    def blocks(self, number: int) -> Blocks:
        """The blocks of all layers that hold the positions from `number` times the block size on."""
        if not 0 <= number < self._reserved:
            raise IndexError(f"there are {self._reserved} blocks in each layer, not {number + 1}")
        return self._table[:, number].copy()

    def read(self, layer: int, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values `[G, stop - start, D]`, copied, bit for bit as they were written. Raises `BlockLost`."""
        low, high = start // self._size, self.manager.layout.blocks(stop)
        keys, values = self.manager.fetch(self._table[layer, low:high])
        begin = start - low * self._size
        return tuple(  # type: ignore[return-value]
            part.transpose(0, 1).flatten(1, 2).narrow(1, begin, stop - start) for part in (keys, values)
        )

    def close(self) -> None:
        """Release all blocks. May be called again."""
        self.manager.release(self._table[:, : self._reserved].reshape(-1))
        self._reserved = self._length = 0
        self._written = [0] * len(self._written)
        self.manager.close(self.session)

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks that it refers to, in any tier; shared ones count for each."""
        return self.manager.layout.layers * self._reserved * self.manager.layout.block_nbytes

    # -- within --------------------------------------------------------------------------------------------------------

    def _own(self, layer: int, number: int) -> int:
        """The block of a layer, as one that nobody else refers to."""
        block = int(self._table[layer, number])
        if self.manager.pool.references[block] > 1:
            own = self.manager.copy(block, self.session)
            self._table[layer, number] = own
            self.manager.release([block])
            return own
        return block

    def _mark_open(self, before: int) -> None:
        """The block that the next position goes into stays in hbm while others can leave it; full ones need not."""
        pool = self.manager.pool
        number = self._length // self._size
        pool.open[self._table[:, min(before, self._length) // self._size : min(number, self._reserved)]] = False
        if number < self._reserved:
            pool.open[self._table[:, number]] = True
