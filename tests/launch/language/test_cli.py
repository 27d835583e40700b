"""`paceline generate` on the command line: what it refuses, and with which words. Nothing is started here."""

from __future__ import annotations

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from paceline.launch.errors import ArgumentError
from paceline.launch.language.request import Prompt, read_prompts
from paceline.launch.workload import Workload
from paceline.pipeline.network import CurveSpec
from paceline.pipeline.tiers import NvmeSpec, TierSpec
from paceline.runtime.auth import load_curve
from paceline.runtime.errors import RendezvousError
from paceline.stages.tier_spec import budget_of
from paceline.stages.world_file import find_weights
from tests.harness import ROOT
from tests.launch.test_cli import invoke

TWO = str(ROOT / "topologies" / "speculate-2.yaml")
THREE = str(ROOT / "topologies" / "speculate-3.yaml")
WORLD = str(ROOT / "topologies" / "world-2.yaml")


def refused(*arguments: str) -> str:
    """What is said on standard error; the exit code is 2 and nothing else is printed."""
    code, output, errors = invoke("generate", *arguments)
    assert code == 2, errors
    assert output == ""
    assert "Traceback" not in errors
    return errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([TWO], "there is no prompt; give --prompt TEXT or --prompts FILE"),
        ([WORLD, "--prompt", "x"], "makes frames; start it with `paceline run`"),
        (["no-such.yaml", "--prompt", "x"], "no-such.yaml:1: topology: can't be read"),
        ([TWO, "--prompts", "no-such.jsonl"], "--prompts no-such.jsonl: can't be read"),
        ([TWO, "--prompt", "x", "--max-tokens", "0"], "--max-tokens"),
        ([TWO, "--prompt", "x", "--seed", "-1"], "--seed"),
        ([TWO, "--prompt", "x", "--temperature", "-1"], "--temperature"),
        ([TWO, "--prompt", "x", "--top-k", "-1"], "--top-k"),
        ([TWO, "--prompt", "x", "--hang-timeout", "0"], "--hang-timeout"),
        ([TWO, "--prompt", "x", "--set", "speculation.window=many"], "--set speculation.window: "),
        ([TWO, "--prompt", "x", "--set", "model.target=/no/such"], "/no/such"),
        ([TWO, "--prompt", "x", "--set", "model.target=zoo:mars"], "there is no embedded language model zoo:mars"),
    ],
    ids=lambda value: None if isinstance(value, list) else str(value)[:30],
)
def test_wrong_arguments(arguments: list[str], message: str) -> None:
    assert message in refused(*arguments)


def test_wrong_arguments_about_a_model(models: list[str], pair: tuple[Path, Path], tmp_path: Path) -> None:
    said = refused(TWO, *models, "--prompt", "x", "--top-p", "0")
    assert "top_p is 0.0 but has to be above 0 and at most 1" in said
    assert "repetition_penalty is 0" in refused(TWO, *models, "--prompt", "x", "--repetition-penalty", "0")
    assert "--stop: an empty text ends everything" in refused(TWO, *models, "--prompt", "x", "--stop", "")
    long = refused(TWO, *models, "--prompt", "x", "--prompt", "def " * 300, "--max-tokens", "300")
    assert "prompt 1 has " in long
    assert f"and {pair[0]} takes 512; ask for fewer or shorten it" in long
    many = refused(THREE, *models, "--prompt", "x", "--set", "groups.verifier.ranks=4")
    assert "groups.verifier.ranks: 3 layers can't be cut into 4 runs" in many
    (tmp_path / "empty").mkdir()
    assert f"{tmp_path / 'empty'}" in refused(TWO, "--prompt", "x", "--set", f"model.target={tmp_path / 'empty'}")
    other = tmp_path / "other"
    shutil.copytree(pair[1], other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    said = refused(TWO, *models, "--prompt", "x", "--set", f"model.draft={other}")
    assert "don't share a vocabulary" in said
    # Nobody reads a drafter that takes no part.
    (tmp_path / "broken").mkdir()
    for option in (["--plain"], ["--set", "speculation.drafter=ngram"]):
        broken = ["--set", f"model.draft={tmp_path / 'broken'}", "--max-tokens", "600", *option]
        assert "prompt 0 has " in refused(TWO, *models, "--prompt", "x", *broken)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('"a" "b"', "JSON is malformed: trailing characters"),
        ('"""A docstring."""', "JSON is malformed: trailing characters"),
        ("{", "Input data was truncated"),
        ('{"text": "a"}', "Object contains unknown field `text`"),
        ("{}", "Object missing required field `prompt`"),
        ('{"prompt": 3}', "Expected `str`, got `int` - at `$.prompt`"),
        ('{"prompt": "a", "seed": -1}', "Expected `int` >= 0 - at `$.seed`"),
        ('{"prompt": "a", "max_tokens": 0}', "Expected `int` >= 1 - at `$.max_tokens`"),
        ('{"prompt": "a", "stop": [""]}', "stop: an empty text ends everything; leave it out"),
        ('"\\ud800\\ud800"', "invalid utf-16 surrogate pair"),
        ('"a\\u0000"', "character 1 is NUL; remove it"),
        ("[" * 5000 + '"' + "\0", "is NUL"),
        ('{"prompt": ' + "[" * 200000, "a line that begins with"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_line_that_is_no_prompt_is_named(line: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"first"\n\n{line}\n')
    said = refused(TWO, "--prompts", str(file))
    assert f"--prompts {file}: line 3" in said
    assert message in said


def test_prompts_come_from_both_places_in_order(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    texts = ["a\nb", "grün \N{LINE SEPARATOR} \x85 end", ""]
    file.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert [each.prompt for each in read_prompts(["first", "second"], file)] == ["first", "second", *texts]


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_line_is_text_or_a_string_or_an_object(bom: bytes, end: bytes, tmp_path: Path) -> None:
    lines = [
        "  def grün(x):\t",
        "3",
        "[1]",
        "true",
        '"a\\tb"',
        "",
        '{"prompt": "x", "seed": 4, "max_tokens": 5, "temperature": 0, "top_k": 3, "stop": "e"}',
        '{"prompt": "", "top_p": 0.5, "repetition_penalty": 1.2, "stop": ["a", "b"]}',
    ]
    file = tmp_path / "prompts"
    file.write_bytes(bom + end.join(line.encode() for line in lines) + end)
    found = read_prompts([], file)
    assert [each.prompt for each in found] == [*lines[:4], "a\tb", "x", ""]
    assert found[5] == Prompt("x", seed=4, max_tokens=5, temperature=0, top_k=3, stop="e")
    assert (found[5].stops, found[6].stops, found[0].stops) == (("e",), ("a", "b"), None)


def test_standard_input_holds_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b'one\n"two"\n'), encoding="ascii"))
    assert [each.prompt for each in read_prompts(["zero"], Path("-"))] == ["zero", "one", "two"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ok\ngr\xfcn\n", "line 2 holds byte 0xfc, which is not UTF-8; save the file as UTF-8"),
        ("ok\n".encode("utf-16"), "line 1 holds byte 0xff, which is not UTF-8; save the file as UTF-8"),
        (b"ok\na\0b\n", "line 2: character 1 is NUL; remove it"),
        (b" \n\n", "there is no prompt"),
        (b'{"prompt": "x", "seed": 1, "seed": 2}\n', "line 1: has 'seed' twice; remove one"),
    ],
)
@pytest.mark.parametrize("stdin", [False, True])
def test_prompts_that_are_no_text_are_refused(
    data: bytes, message: str, stdin: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "prompts"
    file.write_bytes(data)
    with file.open(encoding="ascii") as stream:
        monkeypatch.setattr("sys.stdin", stream)
        with pytest.raises(ArgumentError, match=message):
            read_prompts([], Path("-") if stdin else file)


def test_a_file_without_an_end_is_refused() -> None:
    with pytest.raises(ArgumentError, match="--prompts /dev/zero: holds more than 64 MiB; split it"):
        read_prompts([], Path("/dev/zero"))


@pytest.mark.parametrize("option", ["--prompt", "--stop"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gr\udcfcn", "character 2 is byte 0xfc, which is not UTF-8; give text in UTF-8"),
        ("\ud83d", "character 0 is half of a surrogate pair (U+D83D), which is no character; give text in UTF-8"),
        ("a\0", "character 1 is NUL; remove it"),
    ],
)
def test_text_of_the_command_line_that_is_no_text(option: str, text: str, message: str) -> None:
    assert f"{option}: {message}" in refused(TWO, "--prompt", "x", "--stop", "y", *(option, text)).replace(" 1:", ":")


def test_an_empty_prompt_needs_a_token_that_begins_a_text(pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = tmp_path / "target"
    shutil.copytree(pair[0], folder)
    fields = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in fields.items() if k != "eos_token"}))
    said = refused(TWO, "--prompt", "x", "--prompt", "", "--plain", "--set", f"model.target={folder}")
    assert "prompt 1: the prompt is empty and the tokenizer has no token that begins a text; give a prompt" in said


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts").write_text("x\n")
    (tmp_path / "model").mkdir()
    for option in ("--prompts=~/none", "--resume=~/none"):
        assert f"{tmp_path}/none" in refused(TWO, option)
    assert f"{tmp_path}/none.yaml" in refused("~/none.yaml", "--prompt", "x")
    said = refused(TWO, "--prompts=~/prompts", "--set", "model.target=~/model")
    assert f"{tmp_path}/model: has no config.json" in said
    assert "~nobody-of-this-name/x" in refused("~nobody-of-this-name/x", "--prompt", "x")
    assert find_weights("~/w.safetensors") == tmp_path / "w.safetensors"
    nvme = NvmeSpec(path=Path("~/kv"), size=1 << 20)
    assert budget_of(TierSpec(hbm=1 << 20, nvme=nvme)).path == tmp_path / "kv"
    with pytest.raises(RendezvousError, match=re.escape(str(tmp_path / "c.key_secret"))):
        load_curve(CurveSpec(secret=Path("~/c.key_secret"), allow=Path("~/keys")))


def test_run_sends_text_to_generate() -> None:
    code, output, errors = invoke("run", TWO)
    assert (code, output) == (2, "")
    assert "makes text; start it with `paceline generate`" in errors


@pytest.mark.parametrize("path", [TWO, THREE])
def test_plan_says_who_does_what(path: str) -> None:
    code, output, errors = invoke("plan", path, "--json")
    assert (code, errors) == (0, "")
    told = json.loads(output)
    assert told["live"] is True
    roles = [name for _, name in sorted(told["ranks"].items())]
    assert len(roles) == (2 if path == TWO else 3)
    assert "drafter" in roles[0]
    assert all("verifier" in role for role in roles[1:])
    code, output, _ = invoke("plan", path)
    assert code == 0
    assert "rank 0" in output
    assert "drafter" in output


@pytest.mark.parametrize(("reasons", "code"), [(("failed", "failed"), 1), (("failed", "length"), 0), (("eos",) * 2, 0)])
def test_a_run_of_which_nothing_came_has_failed(
    reasons: tuple[str, ...], code: int, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The summary is printed all the same."""

    def ended(workload: Workload[Any], *_: object) -> dict[str, Any]:
        sessions = [{"finish_reason": reason} for reason in reasons]
        made = {"sessions": sessions, "warnings": ["session 0 failed: no room"] if "failed" in reasons else []}
        workload.audience.summary(workload, made)
        return made

    monkeypatch.setattr("paceline.launch.commands.start.launch", ended)
    found, output, errors = invoke("generate", TWO, *models, "--prompt", "x", "--prompt", "y", "--json")
    assert found == code
    assert [session["finish_reason"] for session in json.loads(output)["sessions"]] == list(reasons)
    assert ("every session failed: session 0 failed: no room" in errors) == (code == 1)
    assert "Traceback" not in errors
