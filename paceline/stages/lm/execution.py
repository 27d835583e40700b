"""A forward of a layer range over new positions of many sequences, packed into passes or cut into tiles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from paceline.stages.lm.attention import Segment
from paceline.stages.lm.layer_run import LayerRun
from paceline.stages.lm.sequence_kv import KV
from paceline.stages.lm.tiered_kv import TieredKV

__all__ = ["Execution"]


class Execution:
    """Runs the layers for `Decoder`, which says what `rows` and `tiers` are for. It knows no sequence but by its KV."""

    def __init__(self, run: LayerRun, vocab: int, rows: int | None, tiers: TieredKV | None) -> None:
        self._run, self._vocab, self._rows, self._tiers = run, vocab, rows, tiers

    def forward(self, kvs: Sequence[KV], inputs: Sequence[Tensor], keep: Sequence[int]) -> list[Tensor]:
        """As `Decoder.forward`, without looking at the inputs; `keep` may be 0. What a failure leaves undone is beyond
        the length of each sequence."""
        if self._rows is not None:
            found = [self._tiled(kv, given, k) for kv, given, k in zip(kvs, inputs, keep, strict=True)]
            self._passed()
            return found
        if self._tiers is None:
            return self._packed(kvs, inputs, keep)
        parts: list[list[Tensor]] = [[] for _ in kvs]
        for pieces in self._tiers.passes([kv.length for kv in kvs], [len(given) for given in inputs]):
            some = [kvs[index] for index, _ in pieces]
            given = [inputs[index][part.start : part.stop] for index, part in pieces]
            wanted = [max(0, part.stop - max(part.start, len(inputs[index]) - keep[index])) for index, part in pieces]
            for (index, _), out in zip(pieces, self._packed(some, given, wanted), strict=True):
                parts[index].append(out)
            self._passed()
        return [found[0] if len(found) == 1 else torch.cat(found) for found in parts]

    def _passed(self) -> None:
        if self._tiers is not None:
            self._tiers.passed()

    def _packed(self, kvs: Sequence[KV], inputs: Sequence[Tensor], keep: Sequence[int]) -> list[Tensor]:
        segments, begin = [], 0
        for kv, given in zip(kvs, inputs, strict=True):
            segments.append(Segment(kv, begin, len(given), kv.length))
            begin += len(given)
        hidden = self._through(torch.cat(list(inputs)) if len(inputs) > 1 else inputs[0], segments)
        for segment in segments:
            segment.commit()
        if not self._run.last:
            return list(torch.split(hidden[0], [len(given) for given in inputs]))
        if not sum(keep):
            return [torch.empty(0, self._vocab, device=self._run.device) for _ in keep]
        if sum(keep) < begin:
            wanted = [hidden[:, s.end - k : s.end] for s, k in zip(segments, keep, strict=True)]
            hidden = torch.cat(wanted, dim=1)
        return list(torch.split(self._run.logits(hidden), list(keep)))

    def _tiled(self, kv: KV, given: Tensor, keep: int) -> Tensor:
        start, stop = kv.length, kv.length + len(given)
        outs = []
        for tile, new in _tiles(start, stop, self._rows or 1):
            rows = given.new_zeros(self._rows or 1, *given.shape[1:])
            begin = tile + new.start - start
            rows[new.start : new.stop] = given[begin : begin + len(new)]
            segment = Segment(kv, 0, len(rows), tile, new)
            hidden = self._through(rows, [segment])
            segment.commit()
            if tile + new.stop < stop:
                self._passed()
            if not self._run.last:
                outs.append(hidden[0, new.start : new.stop])
            elif tile + new.stop > stop - keep:
                outs.append(self._run.logits(hidden)[new.start : new.stop])
        if not outs:
            return torch.empty(0, self._vocab, device=self._run.device)
        out = torch.cat(outs) if len(outs) > 1 else outs[0]
        return out[len(out) - keep :] if self._run.last else out

    def _through(self, rows: Tensor, segments: Sequence[Segment]) -> Tensor:
        last = max(segment.start + segment.last for segment in segments) - 1
        positions = self._run.positions(segments, last)
        hidden = self._run.embed(rows, positions) if self._run.first else rows[None]
        return self._run.through(hidden, segments, positions)


def _tiles(start: int, stop: int, rows: int) -> Iterator[tuple[int, range]]:
    """The tiles that positions `[start, stop)` lie in: the tile's first position and which of its rows are new."""
    for tile in range(start // rows * rows, stop, rows):
        yield tile, range(max(start - tile, 0), min(stop - tile, rows))
