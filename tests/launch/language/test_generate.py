"""`paceline generate` in real processes: the same text on every way, the names that scripts rely on, and faults."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from paceline.pipeline.load import load_topology
from paceline.runtime.language.models import Models
from paceline.runtime.language.serial import generate_serial
from paceline.runtime.spec import GenerateSpec
from paceline.stages.sampling_params import SamplingParams
from tests.harness import ROOT
from tests.launch.language.runs import PACELINE, GenerateRun, command

TWO = str(ROOT / "topologies" / "speculate-2.yaml")
THREE = str(ROOT / "topologies" / "speculate-3.yaml")
PROMPTS = ("def add(", "class")
TOLD = {
    "": {"sessions", "tokens_per_second", "accepted_share", "acceptance_by_position", "windows", "stale_tokens",
         "hedge", "controller", "machine"},
    "sessions.0": {"text", "token_ids", "finish_reason"},
    "stale_tokens": {"drafted", "verified"},
    "hedge": {"hits", "misses"},
    "controller": {"predicted_speedup", "measured_speedup", "settings"},
    "controller.settings": {"window", "depth", "hedge"},
}  # fmt: skip
FIXED = ("--set", "speculation.window=3", "--set", "speculation.depth=2", "--set", "speculation.hedge=3")


def reference(
    models: list[str], max_tokens: int, seed: int, temperature: float, ignore_eos: bool = False
) -> list[tuple[str, list[int], str]]:
    """What the serial reference gives, in this process."""
    return list(_reference(tuple(models), max_tokens, seed, temperature, ignore_eos))


@cache
def _reference(
    models: tuple[str, ...], max_tokens: int, seed: int, temperature: float, ignore_eos: bool
) -> list[tuple[str, list[int], str]]:
    topology = load_topology(Path(TWO), [*models[1::2], "deterministic=true"])
    params = SamplingParams(temperature, seed=seed)
    spec = GenerateSpec(topology, PROMPTS, max_tokens, seed, params, ignore_eos=ignore_eos)
    return [(t.text, t.token_ids, t.finish_reason) for t in generate_serial(spec, Models.of(spec), None).sessions]


def texts(summary: dict[str, Any]) -> list[tuple[str, list[int], str]]:
    return [(s["text"], s["token_ids"], s["finish_reason"]) for s in summary["sessions"]]


def arguments(models: list[str], max_tokens: int, seed: int, temperature: float) -> list[str]:
    prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
    chosen = ["--max-tokens", str(max_tokens), "--seed", str(seed), "--temperature", str(temperature)]
    return [*models, *prompts, *chosen, "--set", "deterministic=true"]


def check_names(summary: dict[str, Any]) -> None:
    for path, names in TOLD.items():
        at: Any = summary
        for part in path.split(".") if path else []:
            at = at[int(part)] if part.isdigit() else at[part]
        assert names <= at.keys(), path
    assert set(summary["waits_s"]) == {f"{rank['role']} {rank['rank']}" for rank in summary["ranks"]}


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_text_reaches_a_pipe_as_it_was_decoded(encoding: str, models: list[str]) -> None:
    """One session streams; with two, texts are printed at the end. Prompts come by standard input."""
    prompt = "all:\n\tgcc -o größer\r\n[b]:smile:  "
    lines = [json.dumps({"prompt": prompt, "max_tokens": 12, "seed": 7, "temperature": 1})]
    lines += ["def f(x):"] if encoding == "ascii" else []
    done = subprocess.run(
        [*PACELINE, TWO, *models, "--prompts", "-", "--serial", "--max-tokens", "3"], cwd=ROOT, timeout=100,
        input="\n".join(lines).encode(), capture_output=True, env={**os.environ, "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    topology = load_topology(Path(TWO), models[1::2])
    spec = GenerateSpec(topology, (prompt,), 12, 7, SamplingParams(1.0))
    text = generate_serial(spec, Models.of(spec), None).sessions[0].text
    assert (prompt + text + "\n").encode(encoding, "backslashreplace") in done.stdout


def test_a_run_in_three_processes(models: list[str]) -> None:
    summary, before, errors = command(THREE, *arguments(models, 40, 7, 1.0), *FIXED)
    assert texts(summary) == reference(models, 40, 7, 1.0)
    assert (before, errors) == ("", "")
    check_names(summary)
    assert summary["controller"]["settings"] == {"window": 3, "depth": 2, "hedge": 3}
    assert summary["windows"] > 5
    assert 0 < summary["accepted_share"] < 1
    assert len(summary["acceptance_by_position"]) <= 4
    assert sum(summary["tokens"].values()) == 80
    assert summary["tokens_per_second"] > 0
    assert [rank["role"] for rank in summary["ranks"]].count("verifier") == 2


@pytest.mark.slow
def test_torchrun_gives_the_same(models: list[str]) -> None:
    summary, _, errors = command(TWO, *arguments(models, 24, 5, 0.7), torchrun=2)
    assert texts(summary) == reference(models, 24, 5, 0.7), errors
    check_names(summary)


@pytest.mark.slow
def test_the_reference_as_a_command(models: list[str]) -> None:
    summary, _, _ = command(TWO, *arguments(models, 24, 5, 0.7), "--serial")
    assert texts(summary) == reference(models, 24, 5, 0.7)
    check_names(summary)
    assert summary["tokens"] == {"drafted": 0, "refilled": 0, "plain": 48}


# -- faults ------------------------------------------------------------------------------------------------------------

SLOW = ("--set", "inject.jitter_ms=25", *FIXED)


@pytest.mark.exclusive
def test_a_drafter_that_is_killed_changes_no_token(models: list[str], tmp_path: Path) -> None:
    # With patience for a loaded machine: only a loss, and no silence, is to be met here.
    patient = (*SLOW, "--set", "speculation.patience_ms=20000")
    with GenerateRun(tmp_path, TWO, *arguments(models, 150, 7, 1.0), *patient, "--json") as run:
        workers = run.until_pieces(30)
        workers[0].kill()
        assert run.wait(60.0) == 0, run.errors
        run.check_nothing_left()
        summary = run.summary()
        assert texts(summary) == reference(models, 150, 7, 1.0)
        assert summary["warnings"] == ["the drafter is lost; decoding went on without it"]
        assert run.errors == "paceline: warning: the drafter is lost; decoding went on without it\n"
        assert summary["tokens"]["drafted"] > 0
        assert summary["tokens"]["plain"] > 100


@pytest.mark.exclusive
def test_a_drafter_that_is_stopped_is_decoded_past_and_ended(models: list[str], tmp_path: Path) -> None:
    with GenerateRun(tmp_path, TWO, *arguments(models, 100, 7, 1.0), *SLOW, "--json") as run:
        workers = run.until_pieces(30)
        workers[0].suspend()
        assert run.wait(60.0) == 0, run.errors
        run.check_nothing_left()
        summary = run.summary()
        assert texts(summary) == reference(models, 100, 7, 1.0)
        assert "the drafter was silent for too long" in run.errors
        assert "the drafter did not report at the end" in run.errors


@pytest.mark.exclusive
def test_a_verifier_that_is_killed_ends_the_run_by_name(models: list[str], tmp_path: Path) -> None:
    with GenerateRun(tmp_path, THREE, *arguments(models, 400, 7, 1.0), *SLOW, "--json") as run:
        workers = run.until_pieces(10)
        start = time.monotonic()
        workers[2].send_signal(signal.SIGKILL)
        assert run.wait(5.0) == 1
        assert time.monotonic() - start < 5
        run.check_nothing_left()
        assert run.output == ""
        assert run.errors.startswith("paceline: worker rank 2 (verifier, run 2 of 2) was killed by SIGKILL")
