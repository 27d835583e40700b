"""A run of consecutive layers of a model, called directly: without the mask machinery of the model's own forward."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from paceline.stages.lm.anatomy import Anatomy
from paceline.stages.lm.attention import Pass, PassCache, Segment, attach
from paceline.stages.lm.rotary import RotaryTable, rotary_tables
from paceline.stages.lm.traits import LayerTraits, kv_shape_of

__all__ = ["LayerRun", "even_runs"]


def even_runs(layers: int, parts: int) -> list[tuple[int, int]]:
    """Cut layers into `parts` runs `(first, last + 1)` whose lengths differ by one at most. The longer ones come first,
    as the last run has the head to compute too. Raises `ValueError` where there are fewer layers than parts."""
    if not 1 <= parts <= layers:
        raise ValueError(f"{layers} layers can't be cut into {parts} runs; name between 1 and {layers} ranks")
    short, longer = divmod(layers, parts)
    bounds = [0]
    for part in range(parts):
        bounds.append(bounds[-1] + short + (part < longer))
    return list(pairwise(bounds))


class LayerRun:
    """Layers `[layers.start, layers.stop)` with the embedding where they are the first and norm and head where they are
    the last. Knows nothing of sequences: a pass brings its segments."""

    def __init__(
        self,
        anatomy: Anatomy,
        traits: Sequence[LayerTraits],
        max_positions: int | None,
        layers: range,
        device: torch.device,
        dtype: torch.dtype,
        config: Any,
    ) -> None:
        self.layers = layers
        self.device, self.dtype = device, dtype
        self.first = layers.start == 0
        self.last = layers.stop == len(anatomy.layers)
        self.traits = tuple(traits[layers.start : layers.stop])
        self.windows = tuple(each.window for each in self.traits)
        self.max_positions = max_positions
        self._embedding = anatomy.embedding.module
        self._positions = anatomy.positions.module if anatomy.positions is not None else None
        self._layers = [anatomy.layers[index].module for index in layers]
        self._norm, self._head = anatomy.norm.module, anatomy.head.module
        self._rotary: list[RotaryTable] = []
        if anatomy.rotary is not None:
            tables = rotary_tables(anatomy.rotary.module, config, len(traits), device, dtype)
            self._rotary = tables[layers.start : layers.stop]
        self._cache = PassCache()
        for layer in self._layers:
            attach(layer, self._cache)
        self._range = torch.arange(512, device=device)
        names = inspect.signature(self._layers[0].forward).parameters
        self._cache_name = "layer_past" if "layer_past" in names else "past_key_values"

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights held; a head that is tied to an embedding counts once."""
        parts = list(self._layers)
        if self.first:
            parts += [self._embedding, *([] if self._positions is None else [self._positions])]
        if self.last:
            parts += [self._norm, self._head]
        held = {id(weight): weight.nbytes for part in parts for weight in part.parameters()}
        return sum(held.values())

    @property
    def of_state(self) -> tuple[bool, ...]:
        """By layer: whether it has a state of constant size in the place of KV."""
        return tuple(each.state_bytes > 0 for each in self.traits)

    @property
    def kv_layers(self) -> int:
        """Layers that keep KV."""
        return self.of_state.count(False)

    @property
    def kv_shape(self) -> tuple[int, int]:
        """KV heads of a layer, and the size of one. Raises `ModelFolderError` where layers differ."""
        return kv_shape_of(self.traits)

    def embed(self, ids_M: Tensor, positions_M: Tensor) -> Tensor:
        """Hidden states `[1, M, C]` of tokens."""
        hidden: Tensor = self._embedding(ids_M[None])
        if self._positions is not None:
            hidden = hidden + self._positions(positions_M[None])
        return hidden

    def positions(self, segments: Sequence[Segment], last: int) -> Tensor:
        """Positions `[M]` of the rows of a pass, none beyond `last`: padding may stand behind the last that exists."""
        stop = max(segment.stop for segment in segments)
        if stop > self._range.shape[0]:
            self._range = torch.arange(2 * stop, device=self.device)
        parts = [self._range[segment.start : segment.stop] for segment in segments]
        found = parts[0] if len(parts) == 1 else torch.cat(parts)
        return found if stop <= last + 1 else found.clamp(max=last)

    def through(self, hidden_1MC: Tensor, segments: Sequence[Segment], positions_M: Tensor) -> Tensor:
        """Pass rows through the layers, writing and reading the KV of their segments; gives `[1, M, C]`."""
        arguments: dict[str, Any] = {
            "attention_mask": None,
            "position_ids": positions_M[None],
            "use_cache": True,
            self._cache_name: self._cache,
        }
        angles: dict[RotaryTable, tuple[Tensor, Tensor]] = {}
        self._cache.current = Pass(segments, self.layers.start, self.windows)
        try:
            for index, layer in enumerate(self._layers):
                if self._rotary:
                    table = self._rotary[index]
                    if table not in angles:
                        angles[table] = _angles(table, segments, positions_M)
                    arguments["position_embeddings"] = angles[table]
                given = layer(hidden_1MC, **arguments)
                hidden_1MC = given if isinstance(given, Tensor) else given[0]
        finally:
            self._cache.current = None
        return hidden_1MC

    def logits(self, hidden_1MC: Tensor) -> Tensor:
        """Final norm and head: `[M, V]` float32."""
        out: Tensor = self._head(self._norm(hidden_1MC))
        return out[0].float()


def _angles(table: RotaryTable, segments: Sequence[Segment], positions_M: Tensor) -> tuple[Tensor, Tensor]:
    if len(segments) == 1:
        return table.slice(segments[0].start, segments[0].stop)
    return table.at(positions_M, max(segment.stop for segment in segments))
