"""`paceline generate` on the command line: what it refuses, and with which words. Nothing is started here."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from paceline.launch.commands.generate import read_prompts
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
    assert "and the models take 512; ask for fewer or shorten it" in long
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


@pytest.mark.parametrize("line", ["def f(x):", "3", '["a"]', '{"prompt": "a"}', '"a" "b"'])
def test_a_line_that_is_no_prompt_is_named(line: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'"first"\n\n{line}\n')
    said = refused(TWO, "--prompts", str(file))
    assert f'--prompts {file}: line 3 is no JSON string; write "..." on each line' in said


def test_prompts_come_from_both_places_in_order(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    texts = ["a\nb", "grün \N{LINE SEPARATOR} \x85 end", ""]
    file.write_text("".join(json.dumps(text, ensure_ascii=False) + "\n" for text in texts), encoding="utf-8")
    assert read_prompts(["first", "second"], file) == ("first", "second", *texts)


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
