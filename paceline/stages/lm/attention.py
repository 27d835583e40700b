"""Our attention inside Transformers' layers: every sequence of a packed pass over its own KV.

A pass is one row `[1, M, C]` through the linear layers; its segments are runs of new tokens of single sequences. The
layer hands its new keys and values (after rotation, with their own number of heads) to `PassCache.update`, and its
queries to the function registered as `paceline`, which finds the pass through the cache that its module was given at
loading: not all models hand further arguments on to their attention.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache

from paceline.stages.lm.recurrence import Recurrence
from paceline.stages.lm.sequence_kv import KV, KVError
from paceline.stages.lm.sequence_state import SequenceState
from paceline.tiers.errors import BlockLost, TierFull

__all__ = ["IMPLEMENTATION", "KeysSeen", "Listener", "Pair", "Pass", "PassCache", "Segment", "attach"]

IMPLEMENTATION = "paceline"
"""The name under which Transformers knows the attention function."""

_CHANGES_SCORES = ("head_mask", "position_bias", "s_aux", "softcap")
"""Arguments with which models ask for another formula; ignoring one would be silently wrong."""


class Segment:
    """Rows `[begin, end)` of a pass: positions `start` and on of one sequence, of which `[first, last)` are new.

    Rows outside `[first, last)` are padding: they are not written, and nobody reads what they give. Raises `KVError`
    where there is no room for them, and where KV that they read is lost.
    """

    __slots__ = ("begin", "end", "first", "kv", "last", "start", "stop", "tile")

    def __init__(self, kv: KV, begin: int, rows: int, start: int, new: range | None = None) -> None:
        self.kv = kv
        self.begin, self.end = begin, begin + rows
        self.start, self.stop = start, start + rows
        self.tile = new is not None
        new = new or range(rows)
        self.first, self.last = new.start, new.stop
        with self._named():
            kv.reserve(self.stop)

    def write(self, layer: int, k_HMD: Tensor, v_HMD: Tensor) -> None:
        """Write the new rows among a pass's keys and values of one layer."""
        begin, count = self.begin + self.first, self.last - self.first
        with self._named():
            self.kv.write(layer, self.start + self.first, k_HMD.narrow(1, begin, count), v_HMD.narrow(1, begin, count))

    def commit(self) -> None:
        """The new rows are in all layers."""
        self.kv.length = self.start + self.last

    def attend(self, layer: int, q_HMD: Tensor, scale: float | None, window: int | None) -> Tensor:
        """Attention `[1, H, rows, D]` of the segment's queries; `window` bounds how many keys each may see."""
        q = q_HMD.narrow(1, self.begin, self.end - self.begin)
        with self._named():
            return self.kv.attend(layer, q, self.start, scale, window, range(self.first, self.last))

    def recur(self, layer: int, rows: tuple[Tensor, ...], rule: Recurrence) -> Tensor:
        """What the segment's rows `[rows, ...]` read of the state of a layer; padding reads zeros. In a tile every row
        is computed by itself."""
        if not isinstance(self.kv, SequenceState):
            raise TypeError("a layer has a state of its own, and its sequence none")
        new = tuple(part[self.begin + self.first : self.begin + self.last] for part in rows)
        read = self.kv.recur(layer, new, rule, self.tile)
        if len(read) == self.end - self.begin:
            return read
        padded = read.new_zeros(self.end - self.begin, *read.shape[1:])
        padded[self.first : self.last] = read
        return padded

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Says whose KV it is where blocks are lost or find no room."""
        try:
            yield
        except BlockLost as error:
            raise KVError(self.kv, error.start) from error
        except TierFull as error:
            raise KVError(self.kv, None) from error


Pair = tuple[Tensor, Tensor]
"""Keys and values."""


class Listener(Protocol):
    """What layers hand their keys, values and queries to, through their cache and the attention function."""

    def write(self, layer: int, k_HMD: Tensor, v_HMD: Tensor) -> None:
        """Take in the keys and values `[Hkv, M, D]` of a layer, numbered as in the model."""

    def attend(
        self,
        layer: int,
        q_HMD: Tensor,
        scale: float | None,
        mask: object = None,
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attention `[1, M, H, D]` of all rows; `mask` is what the layer was given for one, and `kv` are the keys and
        values `[1, Hkv, M, D]` that it means."""

    def recur(self, layer: int, rows: tuple[Tensor, ...], rule: Recurrence) -> Tensor:
        """What rows `[M, ...]` read of the state of constant size that a layer has, when they were written."""


class Pass:
    """The segments of one forward, and the rank's own numbering of its layers."""

    __slots__ = ("first_layer", "segments", "windows")

    def __init__(self, segments: Sequence[Segment], first_layer: int, windows: Sequence[int | None]) -> None:
        self.segments = segments
        self.first_layer = first_layer
        self.windows = windows
        """By layer of the run: how many keys a query sees, itself included; None: all."""

    def write(self, layer: int, k_HMD: Tensor, v_HMD: Tensor) -> None:
        """Take in the keys and values `[Hkv, M, D]` of a layer, numbered as in the model."""
        for segment in self.segments:
            segment.write(layer - self.first_layer, k_HMD, v_HMD)

    def attend(
        self,
        layer: int,
        q_HMD: Tensor,
        scale: float | None,
        mask: object = None,
        kv: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """Attention `[1, M, H, D]` of all rows over their KV as it was written; contiguous, as models take it to be."""
        if mask is not None:
            raise NotImplementedError("a layer brought a mask of its own, which is not supported")
        index = layer - self.first_layer
        window = self.windows[index]
        parts = [segment.attend(index, q_HMD, scale, window) for segment in self.segments]
        return (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).transpose(1, 2).contiguous()

    def recur(self, layer: int, rows: tuple[Tensor, ...], rule: Recurrence) -> Tensor:
        """What all rows `[M, ...]` read of the states of their sequences."""
        parts = [segment.recur(layer - self.first_layer, rows, rule) for segment in self.segments]
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class PassCache(Cache):
    """What a Transformers layer takes for its cache: hands new keys and values to the pass of the moment."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.current: Listener | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        """Write new keys and values `[1, Hkv, M, D]`; gives them back, as attention reads them where they are kept."""
        if self.current is None:
            raise RuntimeError("the cache has no pass")
        self.current.write(layer_idx, key_states[0], value_states[0])
        return key_states, value_states

    def recur(self, layer_idx: int, rows: tuple[Tensor, ...], rule: Recurrence) -> Tensor:
        """Hand on the rows `[M, ...]` of a layer whose state has a constant size; gives what they read."""
        if self.current is None:
            raise RuntimeError("the cache has no pass")
        return self.current.recur(layer_idx, rows, rule)


def attach(layer: nn.Module, cache: PassCache) -> None:
    """Tell the attention modules of a layer where the pass of the moment is."""
    for module in layer.modules():
        if hasattr(module, "layer_idx"):
            module.paceline_cache = cache  # type: ignore[assignment]


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The function that Transformers calls: query `[1, H, M, D]` to `[1, M, H, D]`."""
    cache = getattr(module, "paceline_cache", None)
    if cache is None or cache.current is None:
        raise NotImplementedError(f"the attention of {type(module).__name__} was called from outside a pass")
    for name in _CHANGES_SCORES:
        if kwargs.get(name) is not None:
            raise NotImplementedError(f"{type(module).__name__} asks for `{name}`, which is not supported")
    found: Listener = cache.current
    return found.attend(int(module.layer_idx), query[0], scaling, attention_mask, (key, value)), None  # type: ignore[arg-type]


@dataclass(frozen=True, slots=True)
class KeysSeen:
    """Takes the place of a mask where a model's own forward makes one: which keys a query sees, itself included."""

    window: int | None
    """So many; None: all before it."""
    understood: bool
    """Whether the mask is causal, or a sliding window of this size, and nothing else."""


def _keys_seen(*args: Any, mask_function: Any = None, local_size: int | None = None, **kwargs: Any) -> KeysSeen:
    """The function that Transformers calls for a mask. What `mask_function` answers decides, not what it is called."""
    size = local_size or 64
    queries = torch.tensor([0, 1, size - 1, size, size + 1, 2 * size, 3 * size + 1, 7 * size + 5])
    distances = torch.tensor([-2, -1, 0, 1, 2, size - 1, size, size + 1, 2 * size, 5 * size])
    keys = queries[:, None] - distances
    expected = (distances >= 0) & (distances < size) if local_size else distances >= 0
    try:
        found = mask_function(torch.tensor(0), torch.tensor(0), queries[:, None], keys)
    except Exception:  # masks that look positions up in a table of their own
        return KeysSeen(local_size, False)
    right = (found == expected) | (keys < 0)
    return KeysSeen(local_size, bool(torch.as_tensor(right).all()))


AttentionInterface.register(IMPLEMENTATION, _attention)
AttentionMaskInterface.register(IMPLEMENTATION, _keys_seen)
