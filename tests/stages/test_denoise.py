"""Stages under their programs against the serial reference, bit for bit, in every order that timing could make."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from paceline.pipeline.topology import ContextMode, WorldTopology
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.dit.model import DiTModel
from paceline.stages.frame_cache import FrameCache
from tests.stages.lockstep import Lockstep

PARTITIONS = [[[0], [1, 2]], [[0, 1], [2, 3]], [[0], [1], [2]], [[0], [1], [2], [3], [4]], [[0, 1, 2]]]


def build(
    weights: Path, mode: str, partition: list[list[int]], schedule: str = "wavefront", **context: object
) -> WorldTopology:
    """A topology whose denoise stages run the given steps; the last index is the clean pass."""
    steps = partition[-1][-1]
    parts = [[s for s in part if not (mode == "matched" and s == steps)] for part in partition]
    parts = [part for part in parts if part]
    names = [f"step{part[0]}" for part in parts]
    ender = next(name for name, part in zip(names, parts, strict=True) if steps - 1 in part)
    chain = ["source", *names[: names.index(ender) + 1], "decode", "sink"]
    edges: list[dict[str, object]] = [{"from": a, "to": b} for a, b in pairwise(chain)]
    if names[-1] != ender:
        edges.append({"from": ender, "to": names[-1]})
    if mode != "matched":
        ahead = names[-1:] if mode == "clean" else names
        edges += [{"from": a, "to": b, "carries": "kv"} for a in ahead for b in names[: names.index(a)]]
    if "memory" in context and ender != names[0]:
        edges.append({"from": ender, "to": names[0], "carries": "latent"})
    ends = {name: {"kind": name, "group": "g"} for name in ("source", "decode", "sink")}
    denoise = {
        name: {"kind": "denoise", "group": "g", "steps": ["clean" if s == steps else s for s in part]}
        for name, part in zip(names, parts, strict=True)
    }
    return WorldTopology.model_validate(
        {
            "name": "test",
            "schedule": schedule,
            "deterministic": schedule != "batched",
            "model": {"weights": str(weights), "steps": steps},
            "context": {"mode": mode, "window": 4, "sinks": 1, "prompt": 2} | context,
            "groups": {"g": {}},
            "stages": ends | denoise,
            "edges": edges,
        }
    )


@pytest.mark.parametrize("partition", PARTITIONS, ids=str)
@pytest.mark.parametrize("mode", list(ContextMode))
def test_any_order_gives_the_serial_bits(
    mode: ContextMode, partition: list[list[int]], model: DiTModel, weights: Path, tmp_path: Path
) -> None:
    topology = build(weights, mode.value, partition)
    spec = RunSpec(topology, frames=9, sessions=2, seed=0, kv_hash=True)
    serial = run_serial(spec, tmp_path)
    for order in range(2):
        net = Lockstep(topology, model, 9, 2, tmp_path)
        net.run(random.Random(order))
        assert net.outputs() == [session.outputs_sha256 for session in serial.sessions]
        assert net.kv() == serial.ranks[0].kv_sha256
        assert not net.box, "items were sent that nobody took"


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    mode=st.sampled_from(list(ContextMode)),
    partition=st.sampled_from(PARTITIONS),
    window=st.integers(1, 6),
    sinks=st.integers(0, 3),
    prompt=st.integers(1, 3),
    recall=st.integers(0, 3),
    order=st.integers(0, 10_000),
)
def test_any_window_and_sinks(
    mode: ContextMode, partition: list[list[int]], window: int, sinks: int, prompt: int, recall: int, order: int,
    model: DiTModel, weights: Path, tmp_path: Path,
) -> None:  # fmt: skip
    topology = build(weights, mode.value, partition, window=window, sinks=sinks, prompt=prompt, recall=recall)
    serial = run_serial(RunSpec(topology, 8, 1, 0, kv_hash=True), tmp_path)
    net = Lockstep(topology, model, 8, 1, tmp_path)
    net.run(random.Random(order))
    assert net.kv() == serial.ranks[0].kv_sha256
    assert net.outputs() == [serial.sessions[0].outputs_sha256]


@pytest.mark.parametrize("partition", [[[0], [1, 2]], [[0, 1, 2, 3, 4], [5, 6]]], ids=str)
@pytest.mark.parametrize("mode", list(ContextMode))
def test_recall_gives_the_serial_bits_and_other_frames(
    mode: ContextMode, partition: list[list[int]], model: DiTModel, weights: Path, tmp_path: Path
) -> None:
    """Also where steps outnumber the window, so that frames behind it are still in work."""
    outputs = set()
    for recall in (0, 2):
        topology = build(weights, mode.value, partition, window=2, recall=recall)
        serial = run_serial(RunSpec(topology, 14, 1, 0, kv_hash=True), tmp_path)
        net = Lockstep(topology, model, 14, 1, tmp_path)
        net.run(random.Random(0))
        assert net.kv() == serial.ranks[0].kv_sha256
        assert net.outputs() == [serial.sessions[0].outputs_sha256]
        assert not net.box
        outputs.add(net.outputs()[0])
    assert len(outputs) == 2, "nothing was recalled"


@pytest.mark.parametrize("mode", list(ContextMode))
def test_joint_forward_agrees_with_single_rows(
    mode: ContextMode, model: DiTModel, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batched against serial: KV within 1e-4 (a row computed among others may be summed in another order)."""
    kept: dict[tuple[str, int, int, int], tuple[object, object]] = {}
    who = ["serial"]
    put = FrameCache.put

    def keep(self: FrameCache, frame: int, level: int, layer: int, k: object, v: object, own: bool = True) -> None:
        kept[who[0], frame, level, layer] = (k, v)
        put(self, frame, level, layer, k, v, own)  # type: ignore[arg-type]

    monkeypatch.setattr(FrameCache, "put", keep)
    topology = build(weights, mode.value, [[0, 1, 2, 3]], schedule="batched", recall=1)
    run_serial(RunSpec(topology, 10, 1, 0), tmp_path)
    who[0] = "batched"
    Lockstep(topology, model, 10, 1, tmp_path).run(random.Random(0))
    names = {key[1:] for key in kept if key[0] == "serial"}
    assert names == {key[1:] for key in kept if key[0] == "batched"}
    for name in names:
        for one, other in zip(kept["serial", *name], kept["batched", *name], strict=True):
            assert (one - other).abs().max() < 1e-4  # type: ignore[operator]


def test_modes_differ_and_memory_is_bounded(model: DiTModel, weights: Path, tmp_path: Path) -> None:
    outputs = set()
    for mode in ContextMode:
        topology = build(weights, mode.value, [[0], [1, 2]])
        sizes = []
        for frames in (10, 30):
            net = Lockstep(topology, model, frames, 1, tmp_path)
            net.run(random.Random(0))
            sizes.append(sum(stage.kv_bytes() for stage in net.stages.values() if hasattr(stage, "kv_bytes")))
            held = [s._sessions[0] for s in net.stages.values() if hasattr(s, "_sessions") and hasattr(s, "steps")]
            assert all(len(state.latents) < 8 and len(state.metas) < 8 for state in held)
        assert sizes[0] == sizes[1], "KV grew with the session"
        outputs.add(net.outputs()[0])
    assert len(outputs) == 4
