"""`paceline generate` over memory tiers as its user types it, what it refuses, and `paceline trace record`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paceline.launch.outputs.tier_map import tier_image, write_tier_map
from paceline.stages.lm.tier_history import TierHistory
from paceline.tiers.traces.trace import read_trace
from tests.harness import ROOT
from tests.launch.language.runs import command
from tests.launch.language.test_generate import reference, texts
from tests.launch.test_cli import invoke

TIERED = str(ROOT / "topologies" / "speculate-2-tiers.yaml")
BLOCK = 2048
NAMES = {"hits", "lookups", "moved_bytes", "omitted_mass", "errors", "stalls", "blocks", "bytes"}
PROMPT = "    def __init__(self, name):\n        self.name = name\n" * 6


def small(folder: Path, hbm: int = 6, dram: int = 0) -> list[str]:
    """The verifier's tiers, budgets in blocks."""
    settings = [f"hbm={hbm * BLOCK}", f"dram={dram * BLOCK}", f"nvme.path={folder}", "nvme.size=16MiB"]
    return [word for setting in settings for word in ("--set", f"tiers.verifier.{setting}")]


def arguments(models: list[str]) -> list[str]:
    prompts = [word for prompt in ("def add(", "class") for word in ("--prompt", prompt)]
    return [*models, *prompts, "--max-tokens", "90", "--seed", "7", "--temperature", "1", "--set", "deterministic=true"]


def check(summary: dict[str, Any]) -> None:
    (group,) = summary["tiers"].values()
    assert list(summary["tiers"]) == ["verifier"]
    assert group.keys() >= NAMES
    assert set(group["hits"]) == set(group["blocks"]) == {"hbm", "dram", "nvme"}
    assert sum(group["hits"].values()) == group["lookups"]
    assert group["omitted_mass"] == {"max": 0.0, "mean": 0.0}
    assert group["hits"]["nvme"] > 0 and group["moved_bytes"] > 0


def check_trace(trace: dict[str, Any], summary: dict[str, Any]) -> None:
    """Every forward is in it, once for each session that it served."""
    limits = {session["id"]: session["prompt_tokens"] + 90 for session in summary["sessions"]}
    for rank in summary["ranks"]:
        kind = {"drafter": "draft", "verifier": "verify"}[rank["role"]]
        slices = [event for event in trace["traceEvents"] if event["ph"] == "X" and event["pid"] == rank["rank"]]
        forwards = [event for event in slices if event["cat"] == kind]
        assert {event["cat"] for event in slices} <= {kind, "wait"}
        starts = {event["ts"]: event["dur"] for event in forwards}
        assert len(starts) == rank["passes"]
        assert sum(starts.values()) / 1e6 == pytest.approx(rank["busy_s"], abs=2e-3)
        assert {event["args"]["session"] for event in forwards} == set(limits)
        assert all(0 <= event["args"]["position"] <= limits[event["args"]["session"]] for event in forwards)


def test_two_blocks_a_layer_in_processes(models: list[str], tmp_path: Path) -> None:
    out, kv = tmp_path / "out", tmp_path / "kv"
    summary, _, errors = command(TIERED, *arguments(models), *small(kv), "--out", str(out))
    assert texts(summary) == reference(models, 90, 7, 1.0)
    assert errors == ""
    check(summary)
    assert list(kv.iterdir()) == []
    assert json.loads((out / "summary.json").read_text()) == summary
    lines = [json.loads(line) for line in (out / "texts.jsonl").read_text().splitlines()]
    assert [line["prompt"] + line["text"] for line in lines] == [
        prompt + session["text"] for prompt, session in zip(("def add(", "class"), summary["sessions"], strict=True)
    ]
    pictures = ["gantt.png", "tiers-verifier-1.png"]
    assert sorted(file.name for file in out.iterdir()) == sorted(
        ["summary.json", "texts.jsonl", "trace.json", *pictures]
    )
    assert all((out / picture).read_bytes().startswith(b"\x89PNG") for picture in pictures)
    check_trace(json.loads((out / "trace.json").read_text()), summary)


@pytest.mark.slow
@pytest.mark.parametrize("way", [pytest.param("--serial", marks=pytest.mark.exhaustive), "--plain"])
def test_other_ways(models: list[str], tmp_path: Path, way: str) -> None:
    summary, _, _ = command(TIERED, *arguments(models), *small(tmp_path), way)
    assert texts(summary) == reference(models, 90, 7, 1.0)
    check(summary)


# -- what is refused before anything starts ----------------------------------------------------------------------------


def refused(*given: str) -> str:
    code, output, errors = invoke("generate", TIERED, *given)
    assert (code, output) == (2, ""), errors
    return errors


def test_budgets_that_hold_too_little(models: list[str], tmp_path: Path) -> None:
    said = refused(*models, "--prompt", "x", *small(tmp_path, hbm=5))
    assert "tiers.verifier: hbm of 10240 bytes holds 5 blocks of 2048 bytes, but 2 for each of 3 layers" in said
    assert f"raise hbm to {6 * BLOCK} bytes" in said
    most = ["--prompt", PROMPT, "--prompt", PROMPT, "--max-tokens", "200", "--set", f"tiers.verifier.dram={60 * BLOCK}"]
    said = refused(*models, *small(tmp_path), *most, "--set", "tiers.verifier.nvme.size=4096")
    assert "tiers.verifier: 2 session(s) at a time of up to" in said
    assert "raise dram or nvme.size, or lower speculation.sessions or --max-tokens" in said
    (tmp_path / "file").write_text("")
    said = refused(*models, "--prompt", "x", "--set", f"tiers.verifier.nvme.path={tmp_path / 'file'}")
    assert "tiers.verifier.nvme.path: " in said and "name a folder that can be written" in said


# -- traces ------------------------------------------------------------------------------------------------------------


def test_a_recorded_trace_has_all_the_mass(models: list[str], tmp_path: Path) -> None:
    file = tmp_path / "a.trace"
    given = [TIERED, *models, "--out", str(file), "--prompt", "class", "--prompt", PROMPT, "--max-tokens", "40"]
    code, output, errors = invoke("trace", "record", *given, "--ignore-eos", "--json")
    assert (code, errors) == (0, "")
    told = json.loads(output)
    assert (told["trace"], told["bytes"]) == (str(file), file.stat().st_size)
    trace = read_trace(file)
    assert (trace.header.span, trace.header.block_bytes) == (16, BLOCK)
    assert len(trace.steps) == told["steps"] and trace.live() == told["blocks"]
    sessions = {call.session for step in trace.steps for call in step.calls}
    assert len(sessions) == 2
    for step in trace.steps:
        assert [call.layer for call in step.calls] == [0, 1, 2]
        for call in step.calls:
            assert call.masses.sum() == pytest.approx(1.0, abs=2e-3)
            assert trace.blocks.start[call.blocks].tolist() == list(range(0, call.length, 16))
            assert (trace.blocks.layer[call.blocks] == call.layer).all()
    # Nothing of a session is left when it is over.
    assert sum(len(step.dropped) for step in trace.steps) == len(trace.blocks)


def test_what_can_t_be_recorded(models: list[str], tmp_path: Path) -> None:
    world, sleep = (str(ROOT / "topologies" / f"{name}.yaml") for name in ("world-2", "sleep-4"))
    for given, said in (
        ([world, "--prompt", "x"], "makes frames; it takes --frames and --sessions, and no prompt"),
        ([sleep], "has no model; give a world or a language topology"),
        ([TIERED, *models], "there is no prompt"),
        ([TIERED, *models, "--prompt", "x", "--max-tokens", "600"], "and the model takes 512"),
        ([TIERED, "--set", f"model.target={tmp_path}", "--prompt", "x"], f"{tmp_path}"),
    ):
        code, output, errors = invoke("trace", "record", *given, "--out", str(tmp_path / "t"))
        assert (code, output) == (2, "") and said in errors
    assert not (tmp_path / "t").exists()


# -- the picture -------------------------------------------------------------------------------------------------------


def test_the_picture_has_a_row_for_each_block_in_order(tmp_path: Path) -> None:
    history = TierHistory([0], [0, 4, 8], [[1, 0], [0, 16], [0, 0]], [[b"\x01"], [b"\x02\x01"], [b"\x00\x03\x01"]])
    image, keys = tier_image(history, 0)
    assert keys == [(0, 0), (0, 16), (1, 0)]
    assert np.array_equal(image, [[0, 0, 1], [0, 1, 3], [1, 2, 0]])
    for each in (history, TierHistory([0, 2], [], [], [])):
        write_tier_map(tmp_path / "x.png", each, "x")
        assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
