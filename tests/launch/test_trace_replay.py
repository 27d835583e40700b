"""`paceline trace replay` from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from paceline.launch.commands.trace import replay
from paceline.tiers.traces.planted import Sizes, planted
from paceline.tiers.traces.trace import write_trace


def invoke(*arguments: str) -> tuple[int, str, str]:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(replay)
    result = CliRunner().invoke(app, list(arguments))
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "needles.trace"
    write_trace(made, planted("needles", 0, Sizes(prompt=512, steps=24)))
    return made


def test_json_and_text_say_the_same(path: Path) -> None:
    code, shown, _ = invoke(str(path), "--policy", "lru", "--hbm", "0.25", "--json")
    told = json.loads(shown)
    assert code == 0
    assert {"mass_share_hbm", "hit_share", "moved_bytes", "regret"} <= set(told)
    assert 0 < told["mass_share_hbm"] < 1 and told["moved_bytes"] > 0
    code, shown, _ = invoke(str(path), "--policy", "lru", "--hbm", "0.25")
    assert code == 0 and f"{told['mass_share_hbm']:.1%}" in shown and f"{told['moves']} moves" in shown


def test_options_reach_the_policy_and_the_planner(path: Path) -> None:
    narrow, wide = (
        json.loads(invoke(str(path), "--policy", "heavy-hitter", "--option", f"recent={n}", "--json")[1])
        for n in (0, 512)
    )
    assert narrow["mass_share_hbm"] != wide["mass_share_hbm"]
    nvme = json.loads(invoke(str(path), "--dram", "0.25", "--bandwidth", "2", "--refresh", "4", "--json")[1])
    assert nvme["mass_share"]["nvme"] > 0


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--policy", "mru"], "there is no policy 'mru'"),
        (["--hbm", "2"], "shares of all blocks"),
        (["--option", "recent=much", "--policy", "heavy-hitter"], "is no KEY=NUMBER"),
        (["--hbm", "0.01"], "give it a larger share"),
    ],
)
def test_wrong_arguments(path: Path, arguments: list[str], match: str) -> None:
    code, _, errors = invoke(str(path), *arguments)
    assert code == 2 and match in errors


def test_files_that_are_no_traces(path: Path, tmp_path: Path) -> None:
    code, _, errors = invoke(str(tmp_path / "none"))
    assert code == 2 and "can't be read: No such file" in errors
    path.write_bytes(path.read_bytes()[:-30])
    code, _, errors = invoke(str(path))
    assert code == 2 and "interrupted" in errors
    assert invoke(str(path), "--partial")[0] == 0
