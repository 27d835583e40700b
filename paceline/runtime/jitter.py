"""Injected delays: random as to their length, and yet the same in every run."""

from __future__ import annotations

import hashlib

from paceline.kernels.philox import Purpose, words

__all__ = ["delay_share"]


def delay_share(seed: int, key: str, side: int) -> float:
    """The share in [0, 1) of `inject.jitter_ms` that work waits before it computes (`side` 0) or sends (1).

    A function of the seed and of the work's key, whatever the time and the place.
    """
    place = int.from_bytes(hashlib.blake2b(f"{key} {side}".encode(), digest_size=8).digest(), "little")
    return int(words(seed, place, Purpose.jitter, 1)[0]) / 2**32
