"""Workers that are forked: what they share with the launcher, and when it may not fork."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from paceline.launch.process import can_fork
from tests.harness import ROOT

HEAD = """
import json, os, sys, threading, time
from pathlib import Path
from paceline.launch.process import Forked, can_fork, prepare_fork
prepare_fork()
"""
CHILD = """
left = open("/dev/null")
kept, lost = os.pipe()
os.set_inheritable(kept, True)
folder, launcher = Path(sys.argv[1]), os.getpid()

class Closer:
    def __del__(self):
        if os.getpid() != launcher:
            (folder / "closed").write_text("by a finalizer of the launcher's")

loop = [Closer()]
loop.append(loop)
del loop

def main():
    import gc
    gc.collect()
    print("to the log")
    print(sys.stdin.read() == "", file=sys.stderr)
    files = [number for number in map(int, os.listdir("/proc/self/fd")) if os.path.exists(f"/proc/self/fd/{{number}}")]
    found = [os.getpid() == os.getsid(0), os.environ["MARK"], "HOME" in os.environ, sorted(files) == [0, 1, 2, kept]]
    (folder / "found").write_text(json.dumps(found))
    {end}

with open(folder / "log", "wb") as log:
    print("unwritten", end="")
    child = Forked(main, {{"MARK": "here"}}, log.fileno(), [kept])
print(child.poll() in (None, {code}), child.wait() == {code}, child.poll() == {code})
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", HEAD + code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("return", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise ValueError('wrong')", 1, "ValueError: wrong"),
        ("os.kill(os.getpid(), 9)", -9, ""),
    ],
)
def test_it_has_nothing_of_the_launcher_but_its_modules(tmp_path: Path, end: str, code: int, said: str) -> None:
    assert run(CHILD.format(end=end, code=code), str(tmp_path)) == "unwrittenTrue True True\n"
    assert json.loads((tmp_path / "found").read_text()) == [True, "here", False, True]
    log = (tmp_path / "log").read_text()
    assert log.startswith("to the log\nTrue\n") and said in log
    assert not (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("before", "safe"),
    [
        ("", True),
        ("import torch", True),
        ("import torch; torch.set_num_threads(2)", False),
        ("threading.Thread(target=time.sleep, args=(0.5,)).start()", False),
    ],
)
def test_when_it_is_safe(before: str, safe: bool) -> None:
    assert run(f"{before}\nprint(can_fork())") == f"{safe}\n"


def test_a_process_that_had_torch_before_does_not_fork() -> None:
    code = "from paceline.launch.process import can_fork, prepare_fork; import torch; prepare_fork(); print(can_fork())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "False\n", done.stderr
    assert not can_fork()


def test_its_exit_code_is_known_where_ends_of_children_were_ignored() -> None:
    before = "import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN); prepare_fork()"
    assert run(f"{before}\nprint(Forked(lambda: sys.exit(7), dict(os.environ), 2).wait())") == "7\n"


@pytest.mark.parametrize(
    ("end", "code"), [("return", 0), ("raise ValueError", 1), ("print('text')", 1), ("sys.exit(7)", 7)]
)
def test_a_log_that_takes_no_more_does_not_let_it_go_on_as_the_launcher(end: str, code: int) -> None:
    child = f"""
def main():
    print("lost", end="")
    {end}

launcher = os.getpid()
try:
    child = Forked(main, dict(os.environ), os.open("/dev/full", os.O_WRONLY))
finally:
    if os.getpid() != launcher:
        os._exit(99)
print(child.wait())
"""
    assert run(child) == f"{code}\n"


def test_a_run_with_closed_standard_streams(tmp_path: Path) -> None:
    """As cron or a shell's `<&-` starts it: then sockets and logs would get the numbers 0 to 2."""
    start = "from paceline.launch.cli import main; main()"
    command = [sys.executable, "-c", start, "run", "topologies/world-2.yaml", "--frames", "3"]
    for closed in ("<&-", "<&- >&- 2>&-"):
        out = tmp_path / str(len(closed))
        shell = ["/bin/sh", "-c", f'exec "$@" {closed}', "sh", *command, "--out", str(out)]
        done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert json.loads((out / "summary.json").read_text())["sessions"][0]["frames"] == 3


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize(
    ("arguments", "slow"),
    [
        (["run", "topologies/world-2.yaml"], "paceline.runtime.run"),
        (["generate", "topologies/speculate-2.yaml", "--prompt", "a"], "paceline.runtime.language.run"),
    ],
)
def test_a_signal_while_the_launcher_imports(
    tmp_path: Path, signum: int, code: int, arguments: list[str], slow: str
) -> None:
    start = f"""
import signal, sys, time
# A shell that starts the tests in the background has this signal ignored, and Python leaves that as it is.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Slow:
    def find_spec(self, name, path, target=None):
        if name == {slow!r}:
            print("importing", flush=True)
            time.sleep(60)
sys.meta_path.insert(0, Slow())
from paceline.launch.cli import main
main()
"""
    command = [sys.executable, "-c", start, *arguments]
    env = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as launcher:
        assert launcher.stdout is not None and launcher.stderr is not None
        assert launcher.stdout.readline() == b"importing\n"
        launcher.send_signal(signum)
        said = launcher.communicate(timeout=20)[1]
    assert launcher.returncode == code, said
    assert b"Traceback" not in said and not list(tmp_path.glob("paceline-*"))
