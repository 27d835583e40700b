"""The command line, frozen: names that scripts rely on, exit codes, and messages in place of tracebacks."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from paceline.launch.cli import app
from tests.harness import ROOT

# A change here is a change for every script that calls Paceline: say so in the commit.
OPTIONS = {
    "paceline": ["--version"],
    "validate": ["--set", "--json", "--debug"],
    "plan": ["--frames", "--sessions", "--measured", "--set", "--json", "--debug"],
    "run": [
        "--frames",
        "--sessions",
        "--seed",
        "--serial",
        "--out",
        "--set",
        "--json",
        "--replay",
        "--kv-hash",
        "--quiet",
        "--launcher",
        "--hang-timeout",
        "--debug",
    ],
    "generate": [
        "--prompt",
        "--prompts",
        "--max-tokens",
        "--seed",
        "--temperature",
        "--top-p",
        "--top-k",
        "--repetition-penalty",
        "--stop",
        "--ignore-eos",
        "--plain",
        "--serial",
        "--out",
        "--park",
        "--resume",
        "--set",
        "--json",
        "--quiet",
        "--launcher",
        "--hang-timeout",
        "--debug",
    ],
    "trace": [],
    "trace record": [
        "--out",
        "--prompt",
        "--prompts",
        "--max-tokens",
        "--seed",
        "--temperature",
        "--ignore-eos",
        "--frames",
        "--sessions",
        "--set",
        "--json",
        "--debug",
    ],
    "trace replay": [
        "--policy",
        "--hbm",
        "--dram",
        "--bandwidth",
        "--hysteresis",
        "--refresh",
        "--option",
        "--partial",
        "--json",
        "--debug",
    ],
}
SLEEP = str(ROOT / "topologies" / "sleep-4.yaml")
BROKEN = """
name: broken
workload: sleep
groups: {a: {ranks: 0}}
stages:
  source: {kind: source, group: a}
  nap: {kind: sleep, group: b, mss: 3}
edges:
  - {from: source, to: nap, inflight: 0}
"""


def invoke(*arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output, standard error."""
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


def test_the_command_line_is_frozen() -> None:
    code, shown, _ = invoke("--help")
    assert code == 0
    commands = re.findall(r"^  ([a-z]+)  ", shown.partition("Commands:")[2], re.MULTILINE)
    assert commands == ["validate", "plan", "run", "generate", "trace"]
    assert _options(shown) == OPTIONS["paceline"]
    _, shown, _ = invoke("trace", "--help")
    assert re.findall(r"^  ([a-z]+)  ", shown.partition("Commands:")[2], re.MULTILINE) == ["record", "replay"]
    for command in OPTIONS.keys() - {"paceline"}:
        _, shown, _ = invoke(*command.split(), "--help")
        argument = {"trace": "COMMAND", "trace replay": "FILE"}.get(command, "TOPOLOGY")
        assert argument in shown.splitlines()[0]
        assert _options(shown) == OPTIONS[command]


def _options(shown: str) -> list[str]:
    """The options that a help text lists, but --help itself."""
    return [name for name in re.findall(r"^  (--[a-z-]+)", shown, re.MULTILINE) if name != "--help"]


@pytest.mark.parametrize("path", sorted((ROOT / "topologies").glob("*.yaml")), ids=lambda path: path.stem)
def test_validate_and_plan_take_every_shipped_topology(path: Path) -> None:
    code, output, errors = invoke("validate", str(path))
    assert (code, errors) == (0, "")
    assert output.startswith(f"{path}: ok (")
    code, output, errors = invoke("plan", str(path), "--json")
    assert (code, errors) == (0, ""), errors
    assert json.loads(output)["live"] is True


def test_validate_prints_every_problem_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    code, output, _ = invoke("validate", str(path))
    assert code == 2
    lines = output.splitlines()
    assert all(line.startswith(f"{path}:") and ": " in line and "; " in line for line in lines)
    found = {tuple(line.removeprefix(f"{path}:").split(": ")[:2]) for line in lines}
    assert {
        ("4", "groups.a.ranks"),
        ("7", "stages.nap.group"),
        ("7", "stages.nap.mss"),
        ("9", "edges.0.inflight"),
    } <= found
    assert "did you mean 'ms'?" in output


def test_validate_as_json(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    code, output, _ = invoke("validate", str(path), "--json")
    told = json.loads(output)
    assert (code, told["ok"], told["topology"]) == (2, False, None)
    assert {"file", "line", "key", "wrong", "right"} == set(told["problems"][0])
    code, output, _ = invoke("validate", SLEEP, "--json")
    assert (code, json.loads(output)) == (0, {"version": 1, "topology": "sleep-4", "ok": True, "problems": []})


@pytest.mark.parametrize("command", ["validate", "plan", "run"])
def test_a_wrong_override_is_named(command: str) -> None:
    code, output, errors = invoke(command, SLEEP, "--set", "edges.0.inflight=0")
    assert code == 2
    assert "--set edges.0.inflight: " in output + errors


def test_plan_names_a_deadlock_and_so_does_run() -> None:
    wrong = (str(ROOT / "topologies" / "world-2.yaml"), "--set", "edges.4.bytes=100KiB")
    code, output, _ = invoke("plan", *wrong)
    assert code == 2
    assert "--set edges.4.bytes=" in output
    code, output, errors = invoke("run", *wrong)
    assert code == 2
    assert "deadlock: stage step1" in errors


def test_plan_takes_measured_costs(tmp_path: Path) -> None:
    summary = tmp_path / "summary.json"
    summary.write_text(json.dumps({"stage_ms": {"step3": 90.0}}))
    code, output, _ = invoke("plan", SLEEP, "--measured", str(summary), "--json")
    assert code == 0
    assert json.loads(output)["period_ms"] == pytest.approx(90, rel=0.01)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "no-such.yaml"], "no-such.yaml:1: topology: can't be read"),
        (["plan", "no-such.yaml"], "no-such.yaml:1: topology: can't be read"),
        (["run", SLEEP, "--replay", "no-such.jsonl"], "no-such.jsonl: can't be read"),
        (["run", SLEEP, "--out", "/dev/null/x"], "--out /dev/null/x: Not a directory"),
        (["run", SLEEP, "--frames", "0"], "--frames"),
        (["run", SLEEP, "--sessions", "0"], "--sessions"),
        (["run", SLEEP, "--sessions", "1000000000"], "--sessions"),
        (["plan", SLEEP, "--sessions", "1000000000"], "a plan takes at most 25000; ask for fewer frames or sessions"),
        (["run", SLEEP, "--seed", "-1"], "--seed"),
        (["run", SLEEP, "--seed", str(2**63)], "--seed"),
        *((["run", SLEEP, "--hang-timeout", value], "--hang-timeout") for value in ("0", "1.9", "nan", "inf", "1e300")),
        (["run", SLEEP, "--set", "network.connect_timeout_s=1e300"], "at most 3600"),
        (["run", SLEEP, "--set", "deadline_ms=1e300"], "at most 3600000"),
        (["run", SLEEP, "--set", "inject.jitter_ms=.inf"], "jitter_ms"),
        (["run", SLEEP, "--set", "stages.step0.ms=1e300"], "at most 3600000"),
        (["run", SLEEP, "--no-such-option"], "--no-such-option"),
        (["run"], "TOPOLOGY"),
        (["plan", SLEEP, "--measured", "no-such.json"], "--measured no-such.json: can't be read"),
        (["plan", SLEEP, "--measured", SLEEP], "--measured"),
        (["run", str(ROOT / "topologies" / "world-1.yaml"), "--set", "model.weights=zoo:mars"], "known: zoo:world"),
        (["run", str(ROOT / "topologies" / "world-1.yaml"), "--set", f"model.weights={SLEEP}"], "holds no world model"),
        (["run", str(ROOT / "topologies" / "world-1.yaml"), "--set", "model.weights=/x"], "there is no file /x"),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value)[:30],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    code, output, errors = invoke(*arguments)
    assert code == 2
    assert message in errors
    assert output == ""
    assert "Traceback" not in errors


def test_version() -> None:
    code, output, _ = invoke("--version")
    assert code == 0
    assert output.strip().count(".") == 2


def test_torch_is_left_to_the_workers() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from paceline.launch.cli import app\n"
        f"for command in (['validate', {SLEEP!r}], ['plan', {SLEEP!r}, '--json']):\n"
        "    assert CliRunner().invoke(app, command).exit_code == 0\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'zmq'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_run_ends_with_one_json_object_and_a_table_before_it(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "paceline.launch", SLEEP, "--frames", "8", "--sessions", "2", "--json"]
    done = subprocess.run([*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *table, last = done.stdout.rstrip("\n").splitlines()
    summary = json.loads(last)
    assert "frames per second" in "\n".join(table)
    assert [session["frames"] for session in summary["sessions"]] == [8, 8]
    assert [rank["rank"] for rank in summary["ranks"]] == [0, 1, 2, 3]
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "trace.json").exists()
    # The slowest stage takes 30 ms an item, and the two sessions share it.
    assert summary["period_ms"] > 59
    code, output, _ = invoke("plan", SLEEP, "--sessions", "2", "--measured", str(out / "summary.json"), "--json")
    assert code == 0
    assert json.loads(output)["period_ms"] == pytest.approx(2 * summary["stage_ms"]["step3"], rel=0.01)
