"""Delays differ between all units, and are the same for one."""

from __future__ import annotations

from dataclasses import replace

from paceline.pipeline.program import Row, Unit, UnitKind
from paceline.runtime.program_actor import unit_key
from paceline.runtime.worker import delay_share


def test_every_unit_has_a_delay_of_its_own() -> None:
    base = Unit("step0", 0, UnitKind.layers, 3, 3, (Row(3, 0),), (0, 2))
    others = [
        replace(base, session=1),
        replace(base, stage="step1"),  # a name of the same length
        replace(base, kind=UnitKind.prefill),
        replace(base, frame=4),
        replace(base, rows=(Row(3, 1),)),
        replace(base, layers=(2, 4)),
    ]
    shares = [delay_share(7, unit_key(unit), side) for unit in (base, *others) for side in (0, 1)]
    assert len(set(shares)) == len(shares)
    assert all(0 <= share < 1 for share in shares)
    assert delay_share(7, unit_key(replace(base)), 0) == shares[0] != delay_share(8, unit_key(base), 0)


def test_delays_are_spread_evenly() -> None:
    shares = [
        delay_share(0, unit_key(Unit("s", session, UnitKind.emit, 0, frame)), 0)
        for session in range(4)
        for frame in range(250)
    ]
    # The mean of 1,000 draws of a uniform distribution is within 5 standard deviations of a half.
    assert abs(sum(shares) / len(shares) - 0.5) < 5 * (1 / 12 / len(shares)) ** 0.5
