"""A worker whose disk loses what one session has on it, from some pass of one stage on: real in all else."""

from __future__ import annotations

import os
from typing import Any

import paceline.runtime.run
from paceline.launch.worker_main import main
from paceline.stages.frame_tiers import frame_tier_manager
from paceline.tiers.manager import TierManager
from tests.faults.tiers import Damage

STAGE, SESSION, AFTER = "DAMAGE_STAGE", "DAMAGE_SESSION", "DAMAGE_AFTER"


def damaged(*args: Any) -> TierManager:
    """The tiers of a stage; those of the stage that the environment names lose blocks."""
    manager = frame_tier_manager(*args)
    if os.environ[STAGE] in args:
        Damage(manager, int(os.environ[SESSION]), int(os.environ[AFTER]))
    return manager


if __name__ == "__main__":
    setattr(paceline.runtime.run, "frame_tier_manager", damaged)  # noqa: B010 (mypy forbids to assign to a function)
    main()
