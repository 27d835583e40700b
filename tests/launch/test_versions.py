"""What is written for programs says of which version it is; what is read is of a version that is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.harness import ROOT
from tests.launch.test_cli import invoke

WORLD, LANGUAGE = "topologies/world-1.yaml", "topologies/speculate-2.yaml"


@pytest.mark.parametrize("command", [("validate", WORLD), ("plan", WORLD), ("plan", LANGUAGE)])
def test_json_outputs_carry_their_version(command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    code, output, errors = invoke(*command, "--json")
    assert code == 0, errors
    assert json.loads(output)["version"] == 1


@pytest.mark.parametrize(("version", "code"), [(None, 0), (1, 0), (2, 2), ("1", 2)])
def test_a_measured_summary_is_of_a_known_version(version: object, code: int, tmp_path: Path) -> None:
    file = tmp_path / "summary.json"
    fields = {} if version is None else {"version": version}
    file.write_text(json.dumps({**fields, "stage_ms": {"steps": 2.0}}))
    found, output, errors = invoke("plan", str(ROOT / WORLD), "--measured", str(file))
    assert found == code, output + errors
    assert ("and this Paceline reads 1; use the one that wrote it" in errors) == (code == 2)


@pytest.mark.parametrize(("line", "code"), [("", 0), ("version: 1\n", 0), ("version: 2\n", 2), ("version: '1'\n", 2)])
def test_a_topology_is_of_a_known_version(line: str, code: int, tmp_path: Path) -> None:
    text = (ROOT / WORLD).read_text()
    assert "version: 1\n" in text
    file = tmp_path / "t.yaml"
    file.write_text(text.replace("version: 1\n", line))
    found, output, errors = invoke("validate", str(file))
    assert found == code, output + errors
    if code:
        number = file.read_text().splitlines().index(line.strip()) + 1
        assert f"{file}:{number}: version: is " in output
        assert "write 1, which this Paceline reads; a file of a later version needs a later Paceline" in output
