"""docs/extending.md is right: its package is installed as it stands there, and no file of Paceline changes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.harness import ROOT

DOC = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
PACELINE = [str(Path(sys.executable).parent / "paceline")]
FRAMES = 12


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH that looks to Python as an environment's does once the package is installed."""
    site = tmp_path_factory.mktemp("site")
    for code in re.findall(r"```(?:python|toml)\n(.*?)```", DOC, re.DOTALL):
        name = code.splitlines()[0].removeprefix("# ")
        path = site / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)
    project = tomllib.loads((site / "pyproject.toml").read_text())["project"]
    info = site / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = []
    for group, entries in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return site


def paceline(site: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    path = {} if site is None else {"PYTHONPATH": str(site)}
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | path
    return subprocess.run([*PACELINE, *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100)


def summary(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def outputs(found: dict[str, Any]) -> list[str]:
    return [session["outputs_sha256"] for session in found["sessions"]]


def test_a_policy_and_a_launcher_from_a_package(installed: Path, tmp_path: Path) -> None:
    run = ["run", "topologies/world-2-tiers.yaml", "--frames", str(FRAMES), "--json", "--quiet"]
    run += [f"--set=tiers.{group}.nvme.path={tmp_path}" for group in ("early", "late")]
    policy = ["--set=tiers.late.policy=newest", "--set=tiers.late.options.sinks=false"]
    usual = summary(paceline(None, *run))
    added = summary(paceline(installed, *run, *policy))
    inline = summary(paceline(installed, *run, "--launcher", "inline"))
    assert outputs(added) == outputs(inline) == outputs(usual)
    assert added["tiers"]["late"]["lookups"] == usual["tiers"]["late"]["lookups"] > 0
    # One process did everything.
    assert len(inline["ranks"]) == 1 < len(usual["ranks"])


@pytest.mark.parametrize("mode", ["cascade", "clean", "matched"])
def test_a_world_model_from_a_package(installed: Path, tmp_path: Path, mode: str) -> None:
    weights = tmp_path / "waves.json"
    weights.write_text('{"waves": 5}')
    edges = [] if mode == "cascade" else [f"--set=context.mode={mode}"]
    name = {"cascade": "world-2", "clean": "world-2", "matched": "world-1"}[mode]
    settings = [f"--set=model.weights={weights}", "--set=context.window=3", *edges]
    if mode == "matched":
        settings += ["--set=stages.steps.steps=[0,1]", "--set=groups.all.threads=1"]
    run = ["run", f"topologies/{name}.yaml", "--frames", "9", "--sessions", "2", "--json", "--quiet", *settings]
    pipelined, serial = summary(paceline(installed, *run)), summary(paceline(installed, *run, "--serial"))
    if mode != "matched":  # there all steps are rows of one forward, which may round otherwise
        assert outputs(pipelined) == outputs(serial)
    assert [session["pictures"] for session in serial["sessions"]] == [2 * 9 - 1] * 2
    assert serial["sessions"][0]["shape"] == [4, 4, 3]


def test_a_world_model_from_a_package_over_tiers(installed: Path, tmp_path: Path) -> None:
    """Its KV is in bfloat16; most of it leaves hbm. Its frames have no pose, so that none can be recalled."""
    weights = tmp_path / "waves.json"
    weights.write_text('{"waves": 5}')
    given = ["topologies/world-2-tiers.yaml", f"--set=model.weights={weights}"]
    for group in ("early", "late"):
        given += [f"--set=tiers.{group}.{key}" for key in (f"nvme.path={tmp_path}", "block_size=4", "hbm=8KiB")]
    refused = paceline(installed, "validate", *given)
    assert refused.returncode == 2
    assert "context.recall: " in refused.stdout and "frames have no pose" in refused.stdout
    run = ["run", *given, "--set=context.recall=0", "--frames", "24", "--kv-hash", "--json", "--quiet"]
    tiered, serial = summary(paceline(installed, *run)), summary(paceline(installed, *run, "--serial"))
    assert outputs(tiered) == outputs(serial)
    assert tiered["kv_sha256"] == serial["kv_sha256"] != {}
    assert tiered["tiers"]["late"]["hits"]["dram"] > 0


def test_a_world_model_of_a_package_is_planned_and_checked(installed: Path, tmp_path: Path) -> None:
    weights = tmp_path / "waves.json"
    weights.write_text('{"waves": 5}')
    given = ["topologies/world-2.yaml", f"--set=model.weights={weights}"]
    made = summary(paceline(installed, "plan", *given, "--json"))
    # Keys and values of 8 tokens, 2 heads of 8 values, in bfloat16, for 2 layers: of a window and more.
    assert made["ranks"][0]["kv_bytes"] % (2 * 8 * 2 * 8 * 2 * 2) == 0
    wrong = paceline(installed, "validate", *given, "--set=model.steps=3", "--set=stages.step1.steps=[1,2,clean]")
    assert wrong.returncode == 2
    assert "model.steps: the model takes 1 or 2 steps, not 3" in wrong.stdout
    other = tmp_path / "other.json"
    other.write_text('{"foam": 5}')
    wrong = paceline(installed, "validate", "topologies/world-2.yaml", f"--set=model.weights={other}")
    assert wrong.returncode == 2
    assert "holds no world model that one of dit, waves recognises" in wrong.stdout


def test_a_context_memory_from_a_package(installed: Path) -> None:
    run = ["run", "topologies/world-2-memory.yaml", "--frames", "14", "--json", "--quiet"]
    ring = ["--set=context.memory.kind=ring", "--set=context.memory.options.frames=3"]
    pipelined, serial = (summary(paceline(installed, *run, *ring, *way)) for way in ((), ("--serial",)))
    assert outputs(pipelined) == outputs(serial) != outputs(summary(paceline(None, *run, "--serial")))
    assert pipelined["memory"] == serial["memory"]
    assert pipelined["memory"]["state_bytes"] == 4 * 4 * 3 * 64 * (512 + 13)
    wrong = paceline(installed, *run, ring[0], "--set=context.memory.options.length=3")
    assert wrong.returncode == 2
    assert "context.memory.options: context memory ring: " in wrong.stderr


def test_a_drafter_from_a_package(installed: Path) -> None:
    generate = ["generate", "topologies/speculate-2.yaml", "--prompt", "x = [0, 0, 0, 0, 0,", "--max-tokens", "24"]
    generate += ["--json", "--quiet", "--set=deterministic=true"]
    # Windows and their depth are fixed, so that the controller can't switch the drafter off.
    repeat = ["--set=speculation.drafter=repeat", "--set=speculation.options.period=2"]
    repeat += ["--set=speculation.window=2", "--set=speculation.depth=2"]
    plain = summary(paceline(None, *generate, "--plain"))
    drafted = summary(paceline(installed, *generate, *repeat))
    assert drafted["sessions"][0]["token_ids"] == plain["sessions"][0]["token_ids"]
    assert drafted["tokens"]["drafted"] > 0 == plain["tokens"]["drafted"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--set", "speculation.drafter=repeat", "--set", "speculation.options.period=0"],
            "drafter repeat: period is 0",
        ),
        (["--set", "speculation.drafter=repeat", "--set", "speculation.hedge=1"], "knows no second choice"),
        (["--set", "speculation.drafter=repeaf"], "write model, ngram, repeat or none"),
    ],
)
def test_what_a_drafter_of_a_package_can_not_do(installed: Path, arguments: list[str], message: str) -> None:
    done = paceline(installed, "validate", "topologies/speculate-2.yaml", *arguments)
    assert done.returncode == 2
    assert message in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "tiers.late.policy=newest", "--set", "tiers.late.options.depth=1"], "policy newest: "),
        (["--set", "tiers.late.policy=newst"], "slab or newest"),
        (["--launcher", "inlin"], "there is no launcher 'inlin'; there are processes, inline"),
    ],
)
def test_what_a_package_does_not_have(installed: Path, arguments: list[str], message: str) -> None:
    done = paceline(installed, "run", "topologies/world-2-tiers.yaml", "--frames", "2", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_policy_of_a_package_is_scored_on_a_trace(installed: Path, tmp_path: Path) -> None:
    trace = tmp_path / "world.trace"
    record = ["trace", "record", "topologies/world-1.yaml", "--frames", "12", "--out", str(trace)]
    assert paceline(None, *record).returncode == 0
    scored = paceline(installed, "trace", "replay", str(trace), "--policy", "newest", "--json")
    assert scored.returncode == 0, scored.stderr
    assert json.loads(scored.stdout)["policy"] == "newest"


def test_packages_that_can_not_be_imported_are_named(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken-1.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1\n")
    (broken / "entry_points.txt").write_text("[paceline.launchers]\nbroken = no_such_module:start\n")
    done = paceline(tmp_path, "run", "topologies/world-1.yaml", "--frames", "2", "--launcher", "broken")
    assert done.returncode == 2
    assert "launcher 'broken': no_such_module:start can't be imported: No module named 'no_such_module'" in done.stderr
