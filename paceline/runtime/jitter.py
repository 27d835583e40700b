"""Injected delays: random as to their length, and yet the same in every run."""

from __future__ import annotations

import hashlib

from paceline.kernels.philox import Purpose, words
from paceline.pipeline.program import Unit

__all__ = ["delay_share"]


def delay_share(seed: int, unit: Unit, side: int) -> float:
    """The share in [0, 1) of `inject.jitter_ms` that a unit waits before it computes (`side` 0) or sends (1).

    A function of the seed and of the unit, whatever the time and the place.
    """
    step = unit.rows[0].step if unit.rows else -1
    name = f"{unit.stage} {unit.session} {unit.kind.value} {unit.frame} {step} {unit.layers[0]} {side}"
    place = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return int(words(seed, place, Purpose.jitter, 1)[0]) / 2**32
