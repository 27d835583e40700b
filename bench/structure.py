"""How large is the package, and how many of its files does a frame or a token cross?

    python bench/structure.py [--root CHECKOUT] [--results DIR]

Counts files and lines of `paceline/`. Then it runs two sessions, one twice as long, with a profiler in all processes
and threads, and counts the files with at least one call more for each frame (or token) more: what somebody has to read
to follow one. Importers of a seam are the files of the package that import its module. With `--root` another checkout
is counted, such as an older one.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from harness import ROOT, Bench, BenchError, Options, Table

SHORT, LONG = 100, 350
FRAMES = 60
RUNS = {
    "frame of world-2-zmq": ["run", "topologies/world-2-zmq.yaml", "--frames"],
    "frame of world-2-tiers": ["run", "topologies/world-2-tiers.yaml", "--frames"],
    "token of speculate-2": ["generate", "topologies/speculate-2.yaml", "--prompt", "def f(", "--max-tokens"],
    "token of speculate-2-tiers": [
        "generate",
        "topologies/speculate-2-tiers.yaml",
        "--prompt",
        "def f(",
        "--max-tokens",
    ],
}
SEAMS = {
    "world model": ("paceline.stages.world_model", "paceline.stages.world_file"),
    "the embedded world model": ("paceline.stages.dit",),
    "drafter": ("paceline.stages.lm.drafter",),
    "tier policy": ("paceline.tiers.policies",),
    "launcher": ("paceline.launch.launchers",),
    "context memory": ("paceline.stages.memory",),
}

PROFILER = """
import atexit, json, os, sys, threading
_root = os.environ["STRUCTURE_PACKAGE"]
_calls, _left = {}, [4096]

def _write():
    path = os.path.join(os.environ["STRUCTURE_OUT"], "%d.json" % os.getpid())
    with open(path + ".new", "w") as file:
        json.dump(dict(_calls), file)
    os.replace(path + ".new", path)

def _profile(frame, event, _):
    if event == "call":
        name = frame.f_code.co_filename
        if name.startswith(_root):
            _calls[name] = _calls.get(name, 0) + 1
            _left[0] -= 1
            if not _left[0]:
                _left[0] = 4096
                _write()

os.register_at_fork(after_in_child=lambda: (_calls.clear(), threading.setprofile(_profile), sys.setprofile(_profile)))
threading.setprofile(_profile)
sys.setprofile(_profile)
atexit.register(_write)
"""


def calls(root: Path, arguments: list[str]) -> Counter[str]:
    """Calls by file, over all processes of a command."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "sitecustomize.py").write_text(PROFILER)
        (Path(folder) / "out").mkdir()
        env = os.environ | {
            "PYTHONPATH": f"{folder}{os.pathsep}{root}",
            "STRUCTURE_PACKAGE": str(root / "paceline"),
            "STRUCTURE_OUT": str(Path(folder) / "out"),
        }
        command = [sys.executable, "-c", "from paceline.launch.cli import main; main()", *arguments, "--json"]
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=500)
        if done.returncode:
            raise BenchError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:]}")
        found: Counter[str] = Counter()
        for file in (Path(folder) / "out").glob("*.json"):
            found.update(json.loads(file.read_text()))
    return found


def crossed(root: Path, arguments: list[str]) -> list[str]:
    """Files with a call more for each frame or token more."""
    short, long = (calls(root, [*arguments, str(count)]) for count in (FRAMES, 2 * FRAMES))
    more = [name for name in long if long[name] - short[name] >= 0.8 * FRAMES]
    return sorted(str(Path(name).relative_to(root / "paceline")) for name in more)


def importers(root: Path, modules: tuple[str, ...]) -> list[str]:
    """Files that import one of some modules or what is in them, but for those themselves."""
    homes = [root / module.replace(".", "/") for module in modules]
    found = []
    for path in sorted((root / "paceline").rglob("*.py")):
        if any(path.is_relative_to(home) or path == home.with_suffix(".py") for home in homes):
            continue
        names = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            elif isinstance(node, ast.Import):
                names += [alias.name for alias in node.names]
        if any(name == module or name.startswith(f"{module}.") for name in names for module in modules):
            found.append(str(path.relative_to(root / "paceline")))
    return found


def sizes_of(root: Path) -> Table:
    """Files and lines by folder."""
    package = root / "paceline"
    lines = {path.relative_to(package): len(path.read_text().splitlines()) for path in package.rglob("*.py")}
    folders: dict[str, list[int]] = {}
    for path, count in lines.items():
        for folder in (path.parts[0] if len(path.parts) > 1 else "(root)", "all"):
            folders.setdefault(folder, []).append(count)
    rows = [
        (folder, len(sizes), sum(sizes), sum(0 < size < SHORT for size in sizes), sum(size > LONG for size in sizes))
        for folder, sizes in sorted(folders.items(), key=lambda entry: (entry[0] == "all", entry[0]))
    ]
    columns = ("folder", "files", "lines", f"files under {SHORT} lines", f"files over {LONG} lines")
    return Table("The package", columns, rows)


def main() -> None:
    """Count, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--results", type=Path, default=ROOT / "bench" / "results")
    given = parser.parse_args()
    root = given.root.resolve()
    question = "How large is the package, and how many of its files does a frame or a token cross?"
    bench = Bench("structure", question, Options(False, (), given.results), threads="as in each topology")
    bench.add("size", sizes_of(root))
    ways = {what: crossed(root, arguments) for what, arguments in RUNS.items()}
    bench.add("crossed", Table("Files crossed", ("what", "files"), [(k, len(v)) for k, v in ways.items()]), files=ways)
    seams = {seam: importers(root, modules) for seam, modules in SEAMS.items()}
    rows = [(seam, len(files)) for seam, files in seams.items()]
    bench.add("importers", Table("Files that import a seam", ("seam", "files"), rows), files=seams)
    bench.finish()


if __name__ == "__main__":
    main()
