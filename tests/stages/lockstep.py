"""All ranks of a topology in one process, their units in any order that is ready: stages without a runtime.

The order is drawn from a seed, so that every interleaving that real timing could make can be tried.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from paceline.kernels.philox import session_seed
from paceline.pipeline.program import ModelShape, Program, Unit, UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.stage import StageKind
from paceline.pipeline.topology import Topology
from paceline.pipeline.unit import Key
from paceline.runtime.result import FRAMES_FILE, Decision
from paceline.runtime.session import Session, SinkStage, SourceStage
from paceline.runtime.spec import RunSpec
from paceline.stages.denoise import DenoiseStage
from paceline.stages.dit.model import DiTModel
from paceline.stages.dit.patches import PatchDecoder
from paceline.stages.ending import run_end
from paceline.stages.item import Item, Meta
from paceline.stages.relay import DecodeStage
from paceline.tiers.manager import TierManager


def frames_of(folder: Path, session: int) -> bytes:
    """The frames that a session has left in a folder, one after another."""
    path = folder / FRAMES_FILE.format(session)
    return np.load(path).tobytes() if path.exists() and path.stat().st_size else b""


class Lockstep:
    """Streams of every stage and session, and the items between them."""

    def __init__(
        self,
        topology: Topology,
        model: DiTModel,
        frames: int,
        sessions: int,
        run_dir: Path,
        tiers: Callable[[str], TierManager] | None = None,
        out: Path | None = None,
        joint: bool = False,
        decisions: list[Decision] | None = None,
    ) -> None:
        """`tiers` makes the memory tiers of a denoise stage. With `out` frames are written there. `joint`:
        stages serve all sessions, and units of one shape that are ready run as one forward. `decisions` are
        taken in place of new ones."""
        self.spec = RunSpec(topology, frames, sessions, topology.seed, out=out, kv_hash=True)
        self.joint = joint
        self.topology = topology
        self.decisions: list[Decision] = []
        self.sessions = {s: Session(self.spec, s, run_dir, decisions, self.decisions.append) for s in range(sessions)}
        self.shape = ModelShape(model.header.layers, 0, 0, 0, model.header.view)
        seeds = {s: session_seed(topology.seed, s) for s in range(sessions)}
        self.stages: dict[tuple[str, int], object] = {}
        self.programs: list[Program] = []
        for name, stage in topology.stages.items():
            for s in range(sessions):
                if joint and s:
                    shared = self.stages[name, s] = self.stages[name, 0]
                    self.programs.append(program_for(topology, self.shape, name, s))
                    shared.open(s, self.programs[-1])  # type: ignore[attr-defined]
                    continue
                made: object
                match stage.kind:
                    case StageKind.source:
                        made = SourceStage(self.sessions)
                    case StageKind.sink:
                        made = SinkStage(self.sessions, lambda: None)
                    case StageKind.decode:
                        made = DecodeStage(PatchDecoder(model.config.grid_y))
                    case _:
                        made = DenoiseStage(model, topology, name, seeds, True, tiers(name) if tiers else None)
                program = program_for(topology, self.shape, name, s)
                made.open(s, program)  # type: ignore[attr-defined]
                self.stages[name, s] = made
                self.programs.append(program)
        self.box: dict[Key, Item] = {}
        self.kv_metas: list[Meta] = []
        """Metadata of KV items that had any"""

    def run(self, order: random.Random) -> None:
        """Run everything to its end, choosing among ready units by `order`."""
        end = self.spec.end
        streams = [(program, program.units(stop=end if program.is_source else None)) for program in self.programs]
        live = [(program, iterator, next(iterator, None)) for program, iterator in streams]
        live = [entry for entry in live if entry[2] is not None]
        while live:
            ready = [i for i, (_, _, unit) in enumerate(live) if all(key in self.box for key in self._takes(unit))]
            if not ready:
                raise AssertionError(f"stuck at {[unit for _, _, unit in live]}")
            indices = self._together([live[index][2] for index in ready], ready, order.choice(ready))
            units = [live[index][2] for index in indices]
            items = [[self.box.pop(key) for key in self._takes(unit)] for unit in units]
            program = live[indices[0]][0]
            handed_on = run_end(program, units[0], items[0])
            if handed_on is not None:
                given = [handed_on]
            else:
                given = self.stages[program.stage, program.session].run(units, items)  # type: ignore[attr-defined]
            for item in (item for out in given for item in out):
                if item.key in self.box:
                    raise AssertionError(f"{item.key} was sent twice")
                self.box[item.key] = item
                if self.topology.edges[item.key.edge].carries == "kv" and item.meta:
                    self.kv_metas.append(item.meta)
            for index in indices:
                program, iterator, _ = live[index]
                live[index] = (program, iterator, next(iterator, None))
            live = [entry for entry in live if entry[2] is not None]
        for session in self.sessions.values():
            session.close()

    def _together(self, units: Sequence[Unit | None], ready: Sequence[int], chosen: int) -> list[int]:
        """The chosen stream and those that a worker would batch with it."""
        first = units[ready.index(chosen)]
        if not self.joint or first is None or first.kind is not UnitKind.layers:
            return [chosen]
        shape = first.stage, first.layers, len(first.rows)
        same = [i for i, u in zip(ready, units, strict=True) if u and (u.stage, u.layers, len(u.rows)) == shape]
        return [chosen, *(index for index in same if index != chosen)]

    def kv(self) -> dict[str, str]:
        """SHA-256 of all KV by session and level."""
        found: dict[str, str] = {}
        for (_, s), stage in self.stages.items():
            if isinstance(stage, DenoiseStage):
                for level, digest in stage.digests(s).items():
                    found[f"{s}/{level}"] = digest
        return found

    def outputs(self) -> list[str]:
        """SHA-256 of the frames of each session."""
        return [session.result().outputs_sha256 for session in self.sessions.values()]

    @staticmethod
    def _takes(unit: Unit | None) -> tuple[Key, ...]:
        return unit.takes if unit is not None else ()


__all__ = ["Lockstep"]
