"""What the command line may not import before it needs it: a wrong argument should not wait for seconds.

Counted in modules of a fresh interpreter, not in seconds.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness import ROOT, free_port

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


FIRST = """
import os, sys

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            print("torch", os.environ["OMP_NUM_THREADS"], os.environ["OMP_WAIT_POLICY"], flush=True)
            os._exit(0)

sys.meta_path.insert(0, Watch())
from paceline.launch.{module} import main
main()
"""


@pytest.mark.parametrize("module", ["cli", "__main__"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "topologies/world-1.yaml", "--frames", "1", "--quiet"],
        ["generate", LANGUAGE, "--prompt", "x", "--max-tokens", "999999"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_threads_are_set_before_torch_is_loaded(module: str, arguments: list[str]) -> None:
    """OpenMP reads how its threads wait when it is loaded, and never again. torchrun's OMP_NUM_THREADS is 1."""
    launched = {}
    if module == "__main__":
        size = 1 if arguments[0] == "run" else 2
        launched = {"RANK": "0", "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        arguments = arguments[1:] if arguments[0] == "run" else arguments
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("OMP", "KMP"))}
    done = subprocess.run(
        [sys.executable, "-c", FIRST.format(module=module), *arguments], cwd=ROOT, capture_output=True, text=True,
        timeout=60, env={**usual, **launched, "OMP_NUM_THREADS": "7"},
    )  # fmt: skip
    threads = {"cli": "1", "__main__": "2" if len(launched) and launched["WORLD_SIZE"] == "1" else "1"}[module]
    assert done.stdout.splitlines()[:1] == [f"torch {threads} passive"], done.stderr


@pytest.mark.parametrize("modules", [1, 40, 400])
def test_ctrl_c_while_modules_are_imported(modules: int) -> None:
    """Whenever it comes: after so many imports of the command."""
    code = f"""
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
class Count:
    left = {modules}
    def find_spec(self, *_):
        Count.left -= 1
        if not Count.left:
            os.kill(os.getpid(), signal.SIGINT)
from paceline.launch.entry import main
sys.meta_path.insert(0, Count())
main()
"""
    done = subprocess.run([sys.executable, "-c", code, "run", WORLD], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "paceline: interrupted\n")
