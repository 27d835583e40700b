"""Our wavefront against the timestep matrix of SkyReels-V2's diffusion forcing pipeline (diffusers, `ar_step`).

In iteration i of that matrix frame T is at step i - ar_step * T. Ours is a program of lock-step slots: `ar_step = 1` in
the modes that overlap frames, and `ar_step = all passes` in mode `clean`.
"""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch

from paceline.pipeline.costs import Costs, Link
from paceline.pipeline.program import UnitKind
from paceline.pipeline.programs import program_for
from paceline.pipeline.simulate import simulate
from paceline.pipeline.topology import ContextMode, Topology, Transport
from tests.pipeline.nets import SHAPE, contiguous, world

Passes = set[tuple[int, int, int]]
"""(iteration, frame, step)"""


@pytest.fixture(scope="module")
def pipeline() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("diffusers.pipelines.skyreels_v2.pipeline_skyreels_v2_diffusion_forcing")
    return module.SkyReelsV2DiffusionForcingPipeline


def skyreels(pipeline: Any, frames: int, passes: int, ar_step: int) -> Passes:
    """What diffusers computes, and checks that every pass is at the timestep of its step."""
    template = torch.arange(1000, 0, -(1000 // passes))[:passes]
    # The method uses nothing of its pipeline; base_num_latent_frames = frames turns its sliding window off.
    matrix, index, update, _ = pipeline.generate_timestep_matrix(None, frames, template, frames, ar_step)
    found = set()
    for iteration, frame in update.nonzero().tolist():
        step = int(index[iteration, frame]) - 1
        assert int(matrix[iteration, frame]) == int(template[step])
        found.add((iteration, frame, step))
    return found


def ours(topology: Topology, frames: int) -> Passes:
    """The passes of all stages by slot, counted from the first one."""
    prompt, steps = topology.context.prompt, topology.model.steps
    start = prompt * (steps + 1 if topology.context.mode is ContextMode.clean else 1)
    return {
        (unit.slot - start, row.frame - prompt, row.step)
        for stage, spec in topology.stages.items()
        if spec.kind == "denoise"
        for unit in program_for(topology, SHAPE, stage, 0).units(stop=prompt + frames)
        for row in unit.rows
        if unit.kind is UnitKind.layers
    }


@pytest.mark.parametrize("mode", [ContextMode.cascade, ContextMode.staggered, ContextMode.matched])
@pytest.mark.parametrize(("steps", "cuts"), [(1, []), (2, [1]), (4, [1, 2, 3]), (4, [2, 4]), (7, [3])])
@pytest.mark.parametrize("frames", [1, 3, 12])
def test_wavefront_is_ar_step_1(pipeline: Any, mode: ContextMode, steps: int, cuts: list[int], frames: int) -> None:
    passes = steps if mode is ContextMode.matched else steps + 1
    topology = world(contiguous(steps, cuts), mode=mode)
    assert ours(topology, frames) == skyreels(pipeline, frames, passes, ar_step=1)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("frames", [1, 3, 9])
def test_clean_is_ar_step_of_all_passes(pipeline: Any, steps: int, frames: int) -> None:
    topology = world(contiguous(steps, [1]), mode=ContextMode.clean)
    for ar_step in (steps + 1, steps + 4):
        # Beyond the number of passes SkyReels starts a frame as soon as the one before it is finished.
        assert ours(topology, frames) == skyreels(pipeline, frames, steps + 1, ar_step)


def timetable(topology: Topology, frames: int) -> Passes:
    """The passes in simulated time, where each takes one second and nothing else takes any."""
    costs = Costs(
        {name: 1.0 * (spec.kind == "denoise") for name, spec in topology.stages.items()}, {t: Link() for t in Transport}
    )
    simulation = simulate(topology, SHAPE, costs, frames=frames)
    spans = [span for rank in simulation.ranks for span in rank if span.kind is UnitKind.layers and span.layers[0] == 0]
    start = min(span.start for span in spans)
    prompt = topology.context.prompt
    return {(round(span.start - start), row.frame - prompt, row.step) for span in spans for row in span.rows}


@pytest.mark.parametrize(("mode", "steps", "per_group"), [
    (ContextMode.staggered, 4, 1), (ContextMode.matched, 4, 1), (ContextMode.matched, 4, 2), (ContextMode.matched, 6, 2)
])  # fmt: skip
def test_k_steps_on_a_group_are_ar_step_k_in_time(pipeline: Any, mode: ContextMode, steps: int, per_group: int) -> None:
    cuts = list(range(per_group, steps + 1, per_group))
    topology = world(contiguous(steps, cuts), mode=mode)
    passes = steps if mode is ContextMode.matched else steps + 1
    assert timetable(topology, 10) == skyreels(pipeline, 10, passes, ar_step=per_group)


@pytest.mark.parametrize("per_group", [1, 2, 3, 4])
def test_k_steps_on_a_group_start_a_frame_every_k_passes(pipeline: Any, per_group: int) -> None:
    topology = world(contiguous(12, list(range(per_group, 13, per_group))), mode=ContextMode.matched)

    def gaps(passes: Passes) -> list[int]:
        starts = [iteration for iteration, _, step in sorted(passes) if step == 0]
        return [after - before for before, after in pairwise(starts)]

    # Once the group has all its steps to do, that is.
    assert gaps(timetable(topology, 10))[per_group:] == gaps(skyreels(pipeline, 10, 12, per_group))[per_group:]
