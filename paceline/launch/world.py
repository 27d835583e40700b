"""A run that makes frames with a world model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from paceline.launch.errors import ArgumentError
from paceline.launch.frames import FrameWorkload
from paceline.launch.journal import check_replay
from paceline.launch.recording import Recording, RecordOptions
from paceline.launch.weights import ModelFile, check_weights, read_model_file
from paceline.launch.world_tiers import check_world_tiers
from paceline.pipeline.topology import WorldTopology
from paceline.runtime.result import Decision

__all__ = ["WorldWorkload"]


class WorldWorkload(FrameWorkload):
    """See `Workload`."""

    @property
    def topology(self) -> WorldTopology:
        return cast(WorldTopology, self.spec.topology)

    def model_file(self) -> ModelFile:
        return read_model_file(self.topology)

    def check_files(self) -> None:
        super().check_files()
        self.model_file()
        check_world_tiers(self.topology, self.spec.frames, self.spec.sessions)

    def check_model(self) -> None:
        check_weights(self.topology)
        if not self.serial:
            check_world_tiers(self.topology, self.spec.frames, self.spec.sessions)

    def check_decisions(self, decisions: Sequence[Decision]) -> None:
        if self.spec.replay is not None:
            check_replay(self.spec.replay, decisions, self.spec.topology)

    def record(self, file: Path, out: Path, options: RecordOptions) -> Recording:
        if options.prompt or options.prompts is not None:
            raise ArgumentError(f"{file} makes frames; it takes --frames and --sessions, and no prompt")
        # Imported here: it brings torch.
        from paceline.launch.record_world import record_world

        self.model_file()
        check_weights(self.topology)
        return record_world(self.topology, out, options.frames, options.sessions, options.seed)
