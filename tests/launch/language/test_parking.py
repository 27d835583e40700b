"""`--park` and `--resume` as their user types them: another process, started later, goes on."""

from __future__ import annotations

from pathlib import Path

import pytest

from paceline.runtime.language.parked import ParkedSession, session_folder, write_parked
from tests.harness import ROOT
from tests.launch.language.runs import command
from tests.launch.language.test_generate import PROMPTS, reference
from tests.launch.test_cli import invoke

TWO, THREE = (str(ROOT / "topologies" / f"speculate-{number}.yaml") for number in (2, 3))
TIERS = ["--set", "tiers.verifier.hbm=64KiB", "--set", "tiers.verifier.dram=8MiB"]


def given(models: list[str], prompts: tuple[str, ...] = ()) -> list[str]:
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    return [*models, *TIERS, *words, "--temperature", "1", "--set", "deterministic=true"]


def test_another_process_goes_on_where_this_one_stopped(models: list[str], tmp_path: Path) -> None:
    folder = str(tmp_path / "parked")
    before, _, errors = command(
        TWO, *given(models, PROMPTS), "--max-tokens", "40", "--seed", "7", "--park", folder, "--ignore-eos"
    )
    assert (errors, before["parked"]) == ("", [0, 1])
    assert sorted(path.name for path in Path(folder).glob("*/*")) == ["kv-0.parked"] * 2 + ["session.json"] * 2
    after, _, errors = command(
        TWO, *given(models), "--max-tokens", "50", "--resume", folder, "--park", folder, "--ignore-eos"
    )
    assert (errors, after["parked"]) == ("", [0, 1])
    ids = [[session["token_ids"] for session in summary["sessions"]] for summary in (before, after)]
    whole = [tokens for _, tokens, _ in reference(models, 90, 7, 1.0, True)]
    assert [a + b for a, b in zip(*ids, strict=True)] == whole
    assert [session["prompt_tokens"] for session in after["sessions"]] == [
        session["prompt_tokens"] + 40 for session in before["sessions"]
    ]


@pytest.mark.slow
def test_torchrun_parks_and_takes_up(models: list[str], tmp_path: Path) -> None:
    folder = str(tmp_path)
    asked = ["--max-tokens", "30", "--ignore-eos"]
    first = given(models, PROMPTS[:1])
    before, _, _ = command(THREE, *first, *asked, "--seed", "7", "--park", folder, torchrun=3)
    after, _, _ = command(THREE, *given(models), *asked, "--resume", folder, torchrun=3)
    (a,), (b,) = ([session["token_ids"] for session in summary["sessions"]] for summary in (before, after))
    assert (before["parked"], a + b) == ([0], reference(models, 60, 7, 1.0, True)[0][1])


def test_what_can_not_be_parked_or_taken_up(models: list[str], pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "parked"
    asked = ["--prompt", "x", "--max-tokens", "4", "--serial", "--ignore-eos"]
    code, _, errors = invoke("generate", TWO, *models, *TIERS, *asked, "--park", str(folder), "--json")
    assert code == 0, errors
    again = ["--resume", str(folder)]
    (tmp_path / "empty").mkdir()
    for words, said in (
        ([*models, *asked, "--park", str(tmp_path / "new")], "the group verifier keeps none; give it tiers"),
        ([*models, *TIERS, *asked, "--park", str(folder)], "holds session-0 already, and would lose it"),
        ([*models, *TIERS, "--resume", str(tmp_path / "empty")], "holds no parked session; name a folder that --park"),
        ([*models, *TIERS, "--resume", str(tmp_path / "none")], "No such file or directory; name a folder"),
        ([*models, *TIERS, *again, "--prompt", "a", "--prompt", "b"], "2 prompt(s) for 1 parked session(s)"),
        ([*models, *again], "the group verifier keeps none; give it tiers"),
        ([*models, *TIERS, *again, "--set", "tiers.verifier.block_size=8"], "block_size 16, not 8; take up with"),
        (["--set", f"model.target={pair[1]}", "--set", f"model.draft={pair[1]}", *TIERS, *again], "holds KV of model "),
        ([*models, *TIERS, *again], "by a verifier of 1 rank(s), not 2"),
    ):
        topology = THREE if "not 2" in said else TWO
        code, output, errors = invoke("generate", topology, *words)
        assert (code, output) == (2, ""), errors
        assert said in errors, errors


def test_a_text_that_ended_wants_to_be_told_what_comes_next(models: list[str], tmp_path: Path) -> None:
    folder = session_folder(tmp_path, 0)
    folder.mkdir()
    write_parked(tmp_path, ParkedSession(0, 1, [5, 6, 0], "eos", 1))
    code, output, errors = invoke("generate", TWO, *given(models), "--resume", str(tmp_path))
    assert (code, output) == (2, "") and "give a --prompt to go on from, or --ignore-eos" in errors
    write_parked(tmp_path, ParkedSession(0, 1, [5, 6, 300], "length", 1))
    code, output, errors = invoke("generate", TWO, *given(models), "--resume", str(tmp_path))
    assert (code, output) == (2, "") and "token 300 is not one of this model" in errors
