"""Keys and values of the frames that a stage may still read, by frame and level, for one session."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Sequence, Sized
from itertools import groupby
from typing import Any, Protocol

import torch
from torch import Tensor

from paceline.pipeline.context import Read
from paceline.stages.frame_tiers import FrameTiers
from paceline.stages.frame_trace import FrameTrace
from paceline.stages.world_model import AnyWorldModel
from paceline.tiers.errors import TierError

__all__ = ["FrameCache"]


class Digest(Protocol):
    """What hashlib gives."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The hash so far."""


class FrameCache:
    """KV before rotation, each `[H, N, D]`, plus what a reader needs to rotate it.

    Bounded by one rule: KV is held until the slot that `keep` names is over, and what is known of a frame's place for
    as long as a pass may ask for it; `advance` drops the rest, whether passes ran or were skipped. Without recall the
    size does not grow with the session; with it, up to a frame for every pose is kept, and `tiers` are where those lie.
    """

    def __init__(
        self, model: AnyWorldModel, hash_from: int | None = None, tiers: FrameTiers | FrameTrace | None = None
    ) -> None:
        """`hash_from`: the first frame whose KV is hashed, or None for no hashing."""
        self._model = model
        self._tiers = tiers
        self._kv: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._layers: dict[tuple[int, int], int] = {}
        """By frame and level: layers that have come"""
        self._until: dict[tuple[int, int], int] = {}
        """By frame and level: the last slot in which it is read; kept without end where it has none"""
        self._ends: list[tuple[int, int, int]] = []
        """Slot, frame and level of all that ends, as a heap; an entry that `_until` contradicts is void"""
        self._conditions: dict[int, Any] = {}
        """By frame, in the model's own type"""
        self._rotations: dict[int, Tensor] = {}
        self._most_conditions = 64
        self._hash_from = hash_from
        self._digests: dict[int, Digest] = {}

    def place(self, frame: int, condition: Any) -> None:
        """Note the condition of a frame, before any KV of it is put or read."""
        self._conditions[frame] = condition

    def rotation(self, frame: int) -> Tensor:
        """The model's `frame_rotation` of a frame."""
        found = self._rotations.get(frame)
        if found is None:
            found = self._rotations[frame] = self._model.frame_rotation(self._conditions[frame])
        return found

    def put(self, frame: int, level: int, layer: int, k_HND: Tensor, v_HND: Tensor, own: bool = True) -> None:
        """Add one layer. Layers of a (frame, level) come in order. `own` is False for KV that came from elsewhere."""
        came = self._layers.get((frame, level), 0)
        if layer != came:
            raise ValueError(f"KV of frame {frame} level {level}: layer {layer} came, {came} was next")
        self._layers[frame, level] = layer + 1
        if self._tiers is not None and self._tiers.takes(level):
            self._tiers.put(frame, level, layer, k_HND, v_HND)
        else:
            self._kv.setdefault((frame, level), []).append((k_HND, v_HND))
        if own and self._hash_from is not None and frame >= self._hash_from:
            digest = self._digests.setdefault(level, hashlib.sha256())
            for tensor in (k_HND, v_HND):
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)

    def get(self, frame: int, level: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each `[H, N, D]`."""
        ((k_HND, v_HND),) = self.context((Read(frame, level),), layer)
        return k_HND, v_HND

    def context(self, reads: Sequence[Read], layer: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of one layer of some frames in their order, in pieces `[H, M, D]` of one frame or more."""
        if self._tiers is None:
            return [self._kv[read.frame, read.level][layer] for read in reads]
        pieces: list[tuple[Tensor, Tensor]] = []
        for tiered, group in groupby(reads, key=lambda read: self._tiered(read.level)):
            if tiered:
                pieces.append(self._tiers.read(list(group), layer))
            else:
                pieces += [self._kv[read.frame, read.level][layer] for read in group]
        return pieces

    def _tiered(self, level: int) -> bool:
        return self._tiers is not None and self._tiers.takes(level)

    def prefetch(self, frames: Sequence[int]) -> None:
        """Frames that will be read soon."""
        if self._tiers is not None and frames:
            self._tiers.prefetch(frames)

    def observe(self, reads: Sequence[Read], layer: int, q_HND: Tensor, k_HMD: Tensor) -> None:
        """See where attention falls, if anybody wants to know; queries and keys are rotated."""
        if self._tiers is not None:
            self._tiers.observe(reads, layer, q_HND, k_HMD)

    def keep(self, frame: int, level: int, until: int) -> None:
        """Hold KV until slot `until` is over. What is not noted here is held without end."""
        if self._until.get((frame, level)) != until:
            self._until[frame, level] = until
            heapq.heappush(self._ends, (until, frame, level))

    def advance(self, slot: int, oldest: int, sinks: int) -> None:
        """All slots before `slot` are over, and no pass will ask for frames before `oldest` but the first `sinks` and
        those whose KV is held: drop the rest."""
        while self._ends and self._ends[0][0] < slot:
            until, *entry = heapq.heappop(self._ends)
            if self._until.get((entry[0], entry[1])) == until:
                self._drop(entry[0], entry[1])
        # A recalled frame's rotation is looked up anew: it is small work, and the table need not grow.
        for frame in [f for f in self._rotations if sinks <= f < oldest]:
            del self._rotations[frame]
        if len(self._conditions) > self._most_conditions:
            held = {frame for frame, _ in self._layers}
            for frame in [f for f in self._conditions if sinks <= f < oldest and f not in held]:
                del self._conditions[frame]
            self._most_conditions = 2 * len(self._conditions) + 64

    @property
    def counts(self) -> dict[str, int]:
        """How many entries each table has."""
        tables: dict[str, Sized] = {
            "kv": self._kv, "layers": self._layers, "until": self._until, "ends": self._ends,
            "conditions": self._conditions, "rotations": self._rotations,
        }  # fmt: skip
        return {name: len(table) for name, table in tables.items()}

    def _drop(self, frame: int, level: int) -> None:
        self._until.pop((frame, level), None)
        self._layers.pop((frame, level), None)
        self._kv.pop((frame, level), None)
        if self._tiers is not None:
            self._tiers.drop(frame, level)

    @property
    def cause(self) -> TierError | None:
        """Why the session failed, where its tiers lost something of it or had no room."""
        return None if self._tiers is None else self._tiers.cause

    def fail(self) -> None:
        """The session failed, here or elsewhere: hashes of its KV say nothing any more, and its blocks go to others."""
        self._hash_from = None
        self._digests.clear()
        if self._tiers is not None:
            self._tiers.fail()

    def close(self) -> None:
        """Free what others keep for it."""
        if self._tiers is not None:
            self._tiers.close()

    @property
    def nbytes(self) -> int:
        """Bytes of all KV held."""
        tensors = [tensor for layers in self._kv.values() for kv in layers for tensor in kv]
        held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return held + (0 if self._tiers is None else self._tiers.nbytes)

    def digests(self) -> dict[int, str]:
        """SHA-256 by level of all KV computed here; none where the session failed."""
        return {level: digest.hexdigest() for level, digest in sorted(self._digests.items())}
