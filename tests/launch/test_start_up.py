"""What the command line may not import before it needs it: a wrong argument should not wait for seconds.

Counted in modules of a fresh interpreter, not in seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT

SLOW = ("torch", "transformers", "tokenizers", "matplotlib", "PIL", "imageio_ffmpeg", "ray", "triton", "sympy")
CODE = """
import json, sys
from paceline.launch.cli import main
try:
    main()
except SystemExit as end:
    print(json.dumps([end.code, sorted({name.split('.')[0] for name in sys.modules})]))
"""


def imported(*arguments: str) -> tuple[int, set[str], str]:
    """The exit code of a command, the packages that it imported, and what it said on standard error."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    code, names = json.loads(done.stdout.splitlines()[-1])
    return code, set(names), done.stderr


LANGUAGE, WORLD = "topologies/speculate-2.yaml", "topologies/world-2.yaml"


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--version"], 0),
        (["validate", WORLD], 0),
        (["validate", "none.yaml"], 2),
        (["plan", WORLD, "--json"], 0),
        (["plan", LANGUAGE, "--json"], 0),
        (["run", "none.yaml"], 2),
        (["run", WORLD, "--set", "model.weights=none"], 2),
        (["generate", "none.yaml", "--prompt", "x"], 2),
        (["generate", LANGUAGE], 2),
        (["generate", LANGUAGE, "--prompt", "\udcff"], 2),
        (["generate", LANGUAGE, "--prompt", "x", "--stop", ""], 2),
        (["generate", LANGUAGE, "--prompt", "x", "--temperature", "1e9"], 2),
        (["generate", LANGUAGE, "--prompt", "x", "--resume", "none"], 2),
        (["generate", LANGUAGE, "--prompt", "x", "--set", "model.target=none"], 2),
        (["generate", LANGUAGE, "--prompt", "x", "--set", "model.target=zoo:none"], 2),
        (["trace", "record", LANGUAGE, "--out", "none/x"], 2),
    ],
    ids=lambda value: " ".join(value).encode("ascii", "replace").decode()[:60] if isinstance(value, list) else None,
)
def test_nothing_slow_is_imported(arguments: list[str], code: int) -> None:
    found, names, said = imported(*arguments)
    assert found == code, said
    assert not names & set(SLOW)
    assert bool(said) == (code != 0 and arguments[0] != "validate") and "Traceback" not in said


def test_a_folder_that_holds_no_model_is_refused_as_fast(tmp_path: Path) -> None:
    wanted = {"no config.json": {}, "no *.safetensors": {"config.json": "{}"}, "can't be read": {"config.json": "{"}}
    for number, (message, files) in enumerate(wanted.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        for name, text in files.items():
            (folder / name).write_text(text)
        code, names, said = imported("generate", LANGUAGE, "--prompt", "x", "--set", f"model.target={folder}")
        assert (code, names & set(SLOW)) == (2, set()), said
        assert message in said
