"""`paceline trace record` of a world: where its attention falls, and nothing else is changed by looking."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from paceline.pipeline.context import Context, Read
from paceline.pipeline.load import load_topology
from paceline.runtime.serial import run_serial
from paceline.runtime.spec import RunSpec
from paceline.stages.frame_trace import FrameRecorder, FrameTrace
from paceline.stages.world_file import WorldHeader
from paceline.tiers.layout import Layout
from paceline.tiers.traces.format import TraceHeader, TraceWriter
from paceline.tiers.traces.trace import read_trace
from tests.harness import ROOT
from tests.launch.test_cli import invoke

WORLD = ROOT / "topologies" / "world-2-tiers.yaml"


def test_what_is_recorded_is_where_attention_falls(tmp_path: Path) -> None:
    layout, tokens = Layout(2, 2, 16, 32), 40
    with TraceWriter(tmp_path / "t", TraceHeader("t", 1, layout.block_nbytes, "test")) as writer:
        recorder = FrameRecorder(writer, layout, tokens)
        frames = FrameTrace(recorder, 0, 1, range(2, 3))
        draw = torch.Generator().manual_seed(0)
        for frame in range(3):
            for layer in range(2):
                frames.put(frame, 2, layer, *torch.randn(2, 2, tokens, 32, generator=draw))
        # A frame of another level, whose KV is no block, stands between two that are.
        reads = [Read(0, 2), Read(2, 1), Read(1, 2)]
        q, k = torch.randn(2, tokens, 32, generator=draw), torch.randn(2, 4 * tokens, 32, generator=draw)
        weights = torch.softmax(q @ k.transpose(1, 2) / 32**0.5, dim=-1).mean((0, 1))
        for layer in range(2):
            frames.observe(reads, layer, q, k)
        frames.drop(1, 2)
        frames.close()
    trace = read_trace(tmp_path / "t")
    assert (recorder.steps, recorder.most, trace.live()) == (1, 3 * 2 * 3, 2 * 2 * 3)
    (step,) = trace.steps
    assert [call.layer for call in step.calls] == [0, 1]
    for call in step.calls:
        table = trace.blocks
        seen = list(zip(table.start[call.blocks].tolist(), table.place[call.blocks].tolist(), strict=True))
        assert seen == [(frame, place) for frame in (0, 1) for place in range(3)]
        assert table.sink[call.blocks].tolist() == [frame == 0 for frame, _ in seen]
        first = [{0: 0, 1: 2}[frame] * tokens + 16 * place for frame, place in seen]
        wanted = [
            float(weights[at : at + min(16, tokens - 16 * place)].sum())
            for at, (_, place) in zip(first, seen, strict=True)
        ]
        assert call.masses == pytest.approx(wanted, rel=1e-3)


def test_frames_are_those_of_a_run_that_nobody_watches(tmp_path: Path) -> None:
    topology = load_topology(WORLD)
    without = run_serial(RunSpec(topology, 8, 1, 3, serial=True, kv_hash=True), tmp_path)
    recorders: list[FrameRecorder] = []
    writers: list[TraceWriter] = []

    def watch(session: int, context: Context, header: WorldHeader) -> FrameTrace:
        layout = Layout(header.layers, header.heads, 16, header.head_dim)
        writer = TraceWriter(tmp_path / "t", TraceHeader("t", 1, layout.block_nbytes, "test"))
        writers.append(writer)
        recorders.append(FrameRecorder(writer, layout, header.tokens))
        return FrameTrace(recorders[-1], session, context.sinks, context.lasting)

    watched = run_serial(RunSpec(topology, 8, 1, 3, serial=True, kv_hash=True), tmp_path, watch=watch)
    writers[0].close()
    assert watched.sessions == without.sessions
    assert watched.ranks[0].kv_sha256 == without.ranks[0].kv_sha256


def test_the_command_and_a_replay_of_its_trace(tmp_path: Path) -> None:
    file = tmp_path / "world.trace"
    code, output, errors = invoke(
        "trace", "record", str(WORLD), "--out", str(file), "--frames", "14", "--sessions", "2", "--json"
    )
    assert (code, errors) == (0, "")
    told = json.loads(output)
    trace = read_trace(file)
    assert told == {
        "version": 1, "trace": str(file), "steps": told["steps"], "blocks": told["blocks"],
        "bytes": file.stat().st_size,
    }  # fmt: skip
    # Blocks that are never looked at are not in it.
    assert told["blocks"] >= trace.live() > 0
    assert {call.session for step in trace.steps for call in step.calls} == {0, 1}
    for step in trace.steps:
        for call in step.calls:
            assert 0 < call.masses.sum() <= 1 + 1e-3
            assert np.unique(call.blocks).size == call.blocks.size
    assert sum(len(step.dropped) for step in trace.steps) == len(trace.blocks)
    for policy in ("slab", "attention-mass", "oracle"):
        code, output, errors = invoke("trace", "replay", str(file), "--policy", policy, "--hbm", "0.3", "--json")
        assert (code, errors) == (0, "")
        assert 0 < json.loads(output)["mass_share_hbm"] <= 1


def test_what_a_world_is_not_recorded_with(tmp_path: Path) -> None:
    out = str(tmp_path / "t")
    for words, said in (
        (["--prompt", "x"], "it takes --frames and --sessions, and no prompt"),
        (["--set", "model.weights=missing.safetensors"], "missing.safetensors"),
    ):
        code, output, errors = invoke("trace", "record", str(WORLD), "--out", out, *words)
        assert (code, output) == (2, "") and said in errors
    assert not Path(out).exists()
