from __future__ import annotations

import numpy as np
import pytest

from paceline.tiers.policies import policy
from paceline.tiers.traces.oracle import oracle_score
from paceline.tiers.traces.planted import FAMILIES, Sizes, planted
from paceline.tiers.traces.replay import ReplaySettings, replay

SMALL = Sizes(prompt=2048, steps=128)


@pytest.mark.parametrize("family", FAMILIES)
def test_masses_sum_to_one_and_depend_on_family_and_seed_alone(family: str) -> None:
    trace, again, other = (planted(family, seed, Sizes(512, 24)) for seed in (5, 5, 6))
    assert trace.live() == len(trace.blocks) == -(-(512 + 23) // 16) * 4
    differs = False
    for step, twin, apart in zip(trace.steps, again.steps, other.steps, strict=True):
        for call, same, unlike in zip(step.calls, twin.calls, apart.calls, strict=True):
            assert call.masses.sum() == pytest.approx(1.0)
            assert (call.masses > 0).all()
            assert np.array_equal(call.masses, same.masses)
            differs = differs or not np.array_equal(call.masses, unlike.masses)
            assert call.length == 512 + step.number
            assert trace.blocks.layer[call.blocks].tolist() == [call.layer] * len(call.blocks)
            assert trace.blocks.start[call.blocks].tolist() == list(range(0, call.length, 16))
    assert differs


def far_mass(family: str) -> np.ndarray:
    """By step: mass of the third layer that fell neither on the sink nor on the last quarter."""
    trace = planted(family, 0, SMALL)
    return np.array([step.calls[2].masses[1:96].sum() for step in trace.steps])


def test_only_chatter_never_looks_back() -> None:
    assert far_mass("chatter").max() < 0.1
    for family in ("needles", "keys", "revisit"):
        mass = far_mass(family)
        assert (mass > 0.3).mean() > 0.15 and (mass < 0.1).mean() > 0.1, family


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hbm", [0.1, 0.25, 0.5])
def test_attention_mass_leads_and_comes_near_the_oracle(family: str, hbm: float) -> None:
    trace = planted(family, 0, SMALL)
    how = ReplaySettings(hbm)
    score = {name: replay(trace, policy(name), how).mass_share() for name in ("lru", "window", "attention-mass")}
    if family != "chatter":
        assert score["attention-mass"] > max(score["lru"], score["window"])
    assert score["attention-mass"] >= 0.9 * oracle_score(trace, how).mass_share()


def test_there_is_no_other_family() -> None:
    with pytest.raises(ValueError, match="no family 'poem' of traces; there are needles"):
        planted("poem")
