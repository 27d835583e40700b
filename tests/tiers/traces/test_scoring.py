from __future__ import annotations

import numpy as np
import pytest

from paceline.tiers.policies import ONLINE
from paceline.tiers.traces.planted import Sizes, planted
from paceline.tiers.traces.replay import ReplayError, ReplaySettings
from paceline.tiers.traces.scoring import score_policy
from tests.tiers.traces.small import trace_of


def test_fields_agree_with_one_another() -> None:
    trace = planted("keys", 1, Sizes(prompt=512, steps=32))
    oracle = score_policy(trace, "oracle", ReplaySettings(0.25))
    for name in ONLINE:
        told = score_policy(trace, name, ReplaySettings(0.25))
        assert told["lookups"] == sum(told["hits"].values()) == oracle["lookups"]
        assert told["moved_bytes"] == trace.header.block_bytes * told["moves"]
        assert sum(told["mass_share"].values()) == pytest.approx(1.0)
        assert told["mass_share_hbm"] == pytest.approx(told["mass_share"]["hbm"])
        assert told["regret"] == pytest.approx(1 - told["mass_share_hbm"] / oracle["mass_share_hbm"])
        assert told["regret_by_tier"] == {"hbm": told["regret"], "dram": pytest.approx(0.0, abs=1e-9)}
        assert told["oracle"]["mass_share_hbm"] <= told["ceiling"]["hbm"] + 1e-9
        assert told["belady"]["cost"] >= told["belady"]["misses"]
    assert oracle["regret"] == 0.0


def test_the_lower_border_has_its_own_regret() -> None:
    """What lies in nvme is what dram's regret is about."""
    masses = np.zeros((10, 10))
    masses[:, 1] = 1.0
    told = score_policy(trace_of(masses, prompt=10), "window", ReplaySettings(0.2, dram=0.3, spare=0.0))
    assert told["slots"] == {"hbm": 2, "dram": 3, "nvme": 10}
    assert told["mass_share"]["nvme"] == 1.0
    assert told["regret_by_tier"] == {"hbm": 1.0, "dram": 1.0}


def test_wrong_names_and_too_little_room() -> None:
    trace = planted("chatter", 0, Sizes(prompt=64, steps=4))
    with pytest.raises(ValueError, match="no policy"):
        score_policy(trace, "mru", ReplaySettings(0.5))
    with pytest.raises(ValueError, match="depth"):
        score_policy(trace, "lru", ReplaySettings(0.5), {"depth": 3})
    with pytest.raises(ReplayError, match="larger share"):
        score_policy(trace, "lru", ReplaySettings(0.05))
