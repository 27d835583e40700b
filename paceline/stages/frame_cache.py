"""Keys and values of the frames that a stage may still read, by frame and level, for one session."""

from __future__ import annotations

import hashlib
from typing import Protocol

import torch
from torch import Tensor

from paceline.stages.dit import DiT, FrameCondition

__all__ = ["FrameCache"]


class Digest(Protocol):
    """What hashlib gives."""

    def update(self, data: memoryview, /) -> None:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The hash so far."""


class FrameCache:
    """KV before rotation, each `[H, N, D]`, plus what a reader needs to rotate it.

    Bounded: `forget` drops what no later pass reads, so the size does not grow with the session.
    """

    def __init__(self, model: DiT, hash_from: int | None = None) -> None:
        """`hash_from`: the first frame whose KV is hashed, or None for no hashing."""
        self._model = model
        self._kv: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._until: dict[tuple[int, int], dict[int, int]] = {}
        self._space: dict[int, Tensor] = {}
        self._hash_from = hash_from
        self._digests: dict[int, Digest] = {}

    def place(self, frame: int, condition: FrameCondition) -> None:
        """Note where a frame looks, before any KV of it is put or read."""
        if frame not in self._space:
            device = self._model.place.device
            pose_y = torch.tensor(condition.pose_y, device=device)
            pose_x = torch.tensor(condition.pose_x, device=device)
            self._space[frame] = self._model.space_rotation(pose_y, pose_x)

    def space(self, frame: int) -> Tensor:
        """Spatial rotation of a frame's tokens, complex `[N, P_y + P_x]`."""
        return self._space[frame]

    def put(self, frame: int, level: int, layer: int, k_HND: Tensor, v_HND: Tensor, own: bool = True) -> None:
        """Add one layer. Layers of a (frame, level) come in order. `own` is False for KV that came from elsewhere."""
        layers = self._kv.setdefault((frame, level), [])
        if layer != len(layers):
            raise ValueError(f"KV of frame {frame} level {level}: layer {layer} came, {len(layers)} was next")
        layers.append((k_HND, v_HND))
        if own and self._hash_from is not None and frame >= self._hash_from:
            digest = self._digests.setdefault(level, hashlib.sha256())
            for tensor in (k_HND, v_HND):
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)

    def get(self, frame: int, level: int, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer, each `[H, N, D]`."""
        return self._kv[frame, level][layer]

    def keep(self, frame: int, level: int, until: dict[int, int]) -> None:
        """Note how long KV is read: by step, the last frame whose pass reads it."""
        self._until[frame, level] = until

    def forget(self, done: dict[int, int]) -> None:
        """Drop what no later pass reads. `done` is, by step, the last frame that has run it."""
        dead = [
            entry
            for entry, until in self._until.items()
            if all(last <= done.get(step, -1) for step, last in until.items())
        ]
        for entry in dead:
            del self._until[entry]
            self._kv.pop(entry, None)

    def forget_before(self, oldest: int, sinks: int) -> None:
        """Drop all that is known of frames before `oldest` but the first `sinks`."""
        for entry in [e for e in self._kv if sinks <= e[0] < oldest]:
            del self._kv[entry]
        for frame in [f for f in self._space if sinks <= f < oldest]:
            del self._space[frame]

    @property
    def nbytes(self) -> int:
        """Bytes of all KV held."""
        return sum(
            tensor.numel() * tensor.element_size() for layers in self._kv.values() for kv in layers for tensor in kv
        )

    def digests(self) -> dict[int, str]:
        """SHA-256 by level of all KV computed here."""
        return {level: digest.hexdigest() for level, digest in sorted(self._digests.items())}
