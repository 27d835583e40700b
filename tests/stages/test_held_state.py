"""What stages hold does not grow with a session, whatever is skipped, repeated, recalled or put into tiers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from paceline.pipeline.denoise_program import DenoiseProgram
from paceline.pipeline.program import Unit
from paceline.pipeline.tiers import NvmeSpec, TierSpec
from paceline.pipeline.topology import ContextMode, Topology
from paceline.runtime.result import Decision
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.denoise import DenoiseStage
from paceline.stages.dit.config import DiTConfig
from paceline.stages.dit.model import DiTModel
from paceline.stages.dit.network import save_dit
from paceline.stages.frame_cache import FrameCache
from paceline.stages.frame_tiers import frame_tier_manager
from paceline.stages.item import Item
from paceline.tiers.block_stats import BlockStats, Floats
from paceline.tiers.manager import TierManager
from paceline.tiers.policies import Policy
from tests.stages.conftest import random_model
from tests.stages.lockstep import Lockstep
from tests.stages.test_denoise import build

FRAMES = 160
EARLY, LATE = range(70, 110), range(120, 160)
CONFIG = DiTConfig(width=32, layers=1, heads=1)
PARTITIONS = {"two-groups": [[0], [1, 2]], "three-steps": [[0, 1], [2, 3]], "batched": [[0, 1, 2]]}
CLEARED = ("conditions", "first_steps", "intake")
IN_WORK = 12
"""Frames of which anything is known beside those to be recalled: sinks, window, steps and prompt"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[DiTModel, Path]:
    """One layer: what is held is counted, not looked at."""
    torch.set_num_threads(1)
    model = DiTModel(random_model(CONFIG))
    path = tmp_path_factory.mktemp("tiny") / "tiny.safetensors"
    save_dit(model.network, path)
    return model, path


def counts(stage: DenoiseStage, program: DenoiseProgram) -> dict[str, int]:
    """Entries of every table of a session at a stage, net of the frames that are kept to be recalled."""
    state = stage._sessions[program.session]
    kept = len(program.context._recall.candidates()) if program.context._recall is not None else 0
    levels = len(program.context.recallable)
    found = {
        "latents": len(state.latents), "metas": len(state.metas), "running": len(state.running),
        "first_steps": len(program.context.first_steps), "intake": len(program.intake.held),
        "deferred": len(program.intake.deferred), **state.cache.counts,
    }  # fmt: skip
    in_tiers = stage.tiers is not None
    for name in ("layers", *(() if in_tiers else ("kv",))):
        found[name] -= kept * levels
    # These are cleared now and then, when there are twice as many as are needed.
    for name in CLEARED:
        found[name] = max(0, found[name] - 2 * (kept + IN_WORK) - 64)
    frame = CONFIG.kv_bytes()
    found["frames of KV"] = stage.kv_bytes() // frame - kept * levels
    return found


class Watched(Lockstep):
    """Notes the most that every denoise stage held while it was at some frames."""

    def watch(self) -> None:
        self.most: dict[tuple[str, str], dict[str, int]] = {}
        for program in self.programs:
            stage = self.stages[program.stage, program.session]
            if isinstance(stage, DenoiseStage) and isinstance(program, DenoiseProgram):
                self._watch(stage, program)

    def _watch(self, stage: DenoiseStage, program: DenoiseProgram) -> None:
        run = stage.run

        def watched(units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
            given = run(units, taken)
            for when, frames in (("early", EARLY), ("late", LATE)):
                if units[0].frame in frames:
                    most = self.most.setdefault((program.stage, when), {})
                    for name, count in counts(stage, program).items():
                        most[name] = max(most.get(name, 0), count)
            return given

        setattr(stage, "run", watched)  # noqa: B010


def manager(stage: str) -> TierManager:
    """Room for all frames, the fewest of them in hbm."""
    frame = CONFIG.kv_bytes()
    return frame_tier_manager(TierSpec(hbm=20 * frame, dram=300 * frame), CONFIG.header, 1, 2, "cpu", "tiny", stage, 0)


def decisions(late: bool) -> list[Decision] | None:
    return [Decision(0, frame, "fewer_steps", 1) for frame in range(1, FRAMES)] if late else None


def topology_of(weights: Path, mode: ContextMode, shape: str, recall: int) -> Topology:
    schedule = "batched" if shape == "batched" else "wavefront"
    return build(weights, mode.value, PARTITIONS[shape], schedule, window=3, recall=recall)


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "late"])
@pytest.mark.parametrize("recall", [0, 2])
@pytest.mark.parametrize("shape", PARTITIONS)
@pytest.mark.parametrize("mode", list(ContextMode))
def test_a_stage_holds_no_more_late_in_a_session(
    mode: ContextMode, shape: str, recall: int, late: bool, tiny: tuple[DiTModel, Path], tmp_path: Path
) -> None:
    model, weights = tiny
    topology = topology_of(weights, mode, shape, recall)
    tiers = manager if recall and shape == "two-groups" else None
    net = Watched(topology, model, FRAMES, 1, tmp_path, tiers, decisions=decisions(late))
    net.watch()
    try:
        net.run(random.Random(1))
    finally:
        net.sessions[0].close()
    stages = {stage for stage, _ in net.most}
    assert stages
    for stage in stages:
        early, afterwards = net.most[stage, "early"], net.most[stage, "late"]
        grown = {name: (early[name], count) for name, count in afterwards.items() if count > early[name]}
        assert not grown, f"{stage} holds more late in the session: {grown}"


class Counted:
    """A policy that counts the blocks that it is asked about."""

    def __init__(self, policy: Policy) -> None:
        self.name, self._policy = policy.name, policy
        self.asked = 0

    def keep(self, facts: BlockStats, step: int) -> Floats:
        self.asked += len(facts)
        return self._policy.keep(facts, step)


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "late"])
def test_tiers_look_at_no_more_late_in_a_session(late: bool, tiny: tuple[DiTModel, Path], tmp_path: Path) -> None:
    """Also at a stage that computes nothing, as frames that are late skip its steps: it takes in what others do."""
    model, weights = tiny
    frame = CONFIG.kv_bytes()
    asked: dict[str, Counted] = {}
    managers: dict[str, TierManager] = {}

    def small(stage: str) -> TierManager:
        nvme = NvmeSpec(path=str(tmp_path / stage), size=400 * frame)
        spec = TierSpec(hbm=8 * frame, dram=8 * frame, nvme=nvme, policy="slab")
        made = managers[stage] = frame_tier_manager(spec, CONFIG.header, 1, 2, "cpu", "tiny", stage, 0)
        made.policy = asked[stage] = Counted(made.policy)
        return made

    topology = topology_of(weights, ContextMode.cascade, "two-groups", 2)
    net = Lockstep(topology, model, FRAMES, 1, tmp_path, small, decisions=decisions(late))
    marks: dict[str, list[int]] = {stage: [] for stage in managers}
    for program in net.programs:
        if program.stage in managers:
            _mark(net, program.stage, asked[program.stage], marks[program.stage])
    try:
        net.run(random.Random(1))
    finally:
        net.sessions[0].close()
        for each in managers.values():
            each.close_all()
    for stage, seen in marks.items():
        assert managers[stage].now >= FRAMES, f"{stage} decided {managers[stage].now} times in {FRAMES} frames"
        early, afterwards = (seen[frames.stop - 1] - seen[frames.start - 1] for frames in (EARLY, LATE))
        per_frame = [count / len(frames) for count, frames in ((early, EARLY), (afterwards, LATE))]
        assert 0 < per_frame[1] <= 1.25 * per_frame[0], f"{stage} looks at {per_frame} blocks a frame"


def _mark(net: Lockstep, stage: str, asked: Counted, seen: list[int]) -> None:
    """Note in `seen` how many blocks were asked about before each next frame."""
    made = net.stages[stage, 0]
    assert isinstance(made, DenoiseStage)
    run = made.run

    def marked(units: Sequence[Unit], taken: Sequence[Sequence[Item]]) -> list[list[Item]]:
        while len(seen) <= units[0].frame:
            seen.append(asked.asked)
        return run(units, taken)

    setattr(made, "run", marked)  # noqa: B010


@pytest.mark.parametrize("late", [False, True], ids=["in-time", "late"])
@pytest.mark.parametrize("mode", list(ContextMode))
def test_the_serial_reference_holds_no_more_either(
    mode: ContextMode, late: bool, tiny: tuple[DiTModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, int]] = []
    advance = FrameCache.advance

    def watched(self: FrameCache, slot: int, oldest: int, sinks: int) -> None:
        advance(self, slot, oldest, sinks)
        seen.append(self.counts | {"conditions": 0})  # cleared now and then

    monkeypatch.setattr(FrameCache, "advance", watched)
    topology = topology_of(tiny[1], mode, "two-groups", 0)
    run_serial(RunSpec(topology, FRAMES, 1, 0), tmp_path, None, decisions(late))
    half = len(seen) // 2
    for name in seen[0]:
        before, after = (max(count[name] for count in part) for part in (seen[half // 2 : half], seen[half:]))
        assert after <= before, f"{name} grows from {before} to {after}"
