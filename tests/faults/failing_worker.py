"""A worker whose sleep stages fail at a frame that the environment names: real in all else."""

from __future__ import annotations

import os
from collections.abc import Sequence

import paceline.runtime.run
from paceline.launch.worker_main import main
from paceline.pipeline.program import Unit
from paceline.stages.item import Item
from paceline.stages.relay import SleepStage

RANK, FRAME = "FAIL_RANK", "FAIL_FRAME"


class FailingStage(SleepStage):
    """Raises at one frame on one rank."""

    def run(self, units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """See `Stage.run`."""
        if os.environ["RANK"] == os.environ[RANK] and units[0].frame == int(os.environ[FRAME]):
            raise ValueError("no such tile")
        return super().run(units, taken)


if __name__ == "__main__":
    setattr(paceline.runtime.run, "SleepStage", FailingStage)  # noqa: B010 (mypy forbids to assign to a class)
    main()
