"""`--park` and `--resume` as their user types them: another process, started later, goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from paceline.runtime.language.parked import session_folder
from paceline.tiers.checksum import crc32c
from tests.harness import ROOT
from tests.launch.language.runs import command
from tests.launch.language.test_generate import PROMPTS, reference
from tests.launch.test_cli import invoke

TWO, THREE = (str(ROOT / "topologies" / f"speculate-{number}.yaml") for number in (2, 3))
TIERS = ["--set", "tiers.verifier.hbm=64KiB", "--set", "tiers.verifier.dram=8MiB"]


def given(models: list[str], prompts: tuple[str, ...] = ()) -> list[str]:
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    drawn = ["--temperature", "1"] if prompts else []
    return [*models, *TIERS, *words, *drawn, "--set", "deterministic=true"]


def test_another_process_goes_on_where_this_one_stopped(models: list[str], tmp_path: Path) -> None:
    folder = str(tmp_path / "parked")
    before, _, errors = command(
        TWO, *given(models, PROMPTS), "--max-tokens", "40", "--seed", "7", "--park", folder, "--ignore-eos"
    )
    assert (errors, before["parked"]) == ("", [0, 1])
    assert sorted(path.name[:4] for path in Path(folder).glob("*/*")) == ["kv-0"] * 2 + ["sess"] * 2
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


@pytest.mark.exhaustive
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
        ([*models, *TIERS, "--resume", str(tmp_path / "none")], "there is no such folder; name one that --park wrote"),
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


def parked(folder: Path, **values: Any) -> None:
    session_folder(folder, 0).mkdir(exist_ok=True)
    found = {"number": 0, "seed": 1, "tokens": [5, 6], "finish_reason": "length", "ranks": 1, **values}
    version = found.pop("version", 2)
    text = json.dumps(found, separators=(",", ":"))
    file = session_folder(folder, 0) / "session.json"
    file.write_text(f'{{"version":{version},"crc32c":{crc32c(text.encode())},"session":{text}}}')


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tokens": [5, 6, 0], "finish_reason": "eos"}, "give it a --prompt to go on from"),
        ({"tokens": [5, 6, 300]}, "token 300 is not one of this model"),
        ({"tokens": [5, -6]}, "Expected `int` >= 0"),
        ({"tokens": []}, "length >= 1"),
        ({"seed": -1}, "Expected `int` >= 0"),
        ({"number": 1}, "is that of session 1; give its folder the name it had"),
        ({"version": 7}, "of version 7, not 2"),
        ({"sampling": {"top_k": 1e300}}, "Expected `float` <="),
        ({"seed": 2**64}, "more than 64 bits"),
        ({"more": 1}, "unknown field `more`"),
    ],
)
def test_what_session_files_may_say(models: list[str], tmp_path: Path, values: dict[str, Any], said: str) -> None:
    parked(tmp_path, **values)
    code, output, errors = invoke("generate", TWO, *given(models), "--resume", str(tmp_path))
    assert (code, output) == (2, "") and said in errors
    # Whatever it is, it is not overwritten.
    code, output, errors = invoke("generate", TWO, *given(models, PROMPTS[:1]), "--park", str(tmp_path))
    assert (code, output) == (2, "") and "holds session-0 already" in errors


def test_a_flipped_bit_of_a_session_file_is_found(models: list[str], tmp_path: Path) -> None:
    parked(tmp_path, seed=12345)
    file = session_folder(tmp_path, 0) / "session.json"
    file.write_bytes(file.read_bytes().replace(b"12345", b"12344"))
    code, output, errors = invoke("generate", TWO, *given(models), "--resume", str(tmp_path))
    assert (code, output) == (2, "") and "is damaged, its CRC-32C is wrong; remove" in errors
