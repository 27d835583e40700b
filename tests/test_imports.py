"""Imports go one way, the pure core stays pure, and nothing here puts code on a wire or seeds a global generator."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ORDER = ("kernels", "tiers", "stages", "runtime", "launch")
NOT_PURE = {"asyncio", "multiprocessing", "ray", "socket", "subprocess", "threading", "time", "torch", "zmq"}
CODE_ON_A_WIRE = {"cloudpickle", "dill", "marshal", "pickle", "shelve"}
BANNED_NAMES = {"recv_pyobj", "send_pyobj"}
BANNED_CALLS = re.compile(
    r"^(torch\.(load|save|manual_seed|seed|cuda\.manual_seed(_all)?|random\.manual_seed)"
    r"|(np|numpy)\.random\.(seed|rand|randn|randint|random|choice|shuffle|permutation|normal|uniform)"
    r"|random\.(seed|random|randint|randrange|choice|choices|shuffle|sample|uniform|gauss))$"
)


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """`(line, dotted module)` of every import, wherever it stands; `module` is the dotted name of the file itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")[: -node.level] if node.level else []
            name = ".".join([*base, *([node.module] if node.module else [])])
            yield node.lineno, name
            yield from ((node.lineno, f"{name}.{alias.name}") for alias in node.names)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts)


def wrong_way(module: str, name: str) -> str | None:
    """Why a module of the package may not import a name, if it may not."""
    folder = module.split(".")[1] if module.startswith("paceline.") else ""
    parts = name.split(".")
    if folder == "pipeline" and parts[0] in NOT_PURE:
        return f"the pure core imports {parts[0]}"
    if parts[0] in CODE_ON_A_WIRE:
        return f"{parts[0]} puts code on a wire or in a file"
    other = parts[1] if parts[0] == "paceline" and len(parts) > 1 else ""
    if folder == "pipeline" and other in ORDER:
        return f"pipeline imports {other}"
    if folder in ORDER and other in ORDER[ORDER.index(folder) + 1 :]:
        return f"{folder} imports {other}"
    if folder and parts[0] in ("bench", "tests"):
        return f"the package imports {parts[0]}"
    return None


def dotted(node: ast.AST) -> str:
    """`torch.cuda.manual_seed` of an attribute chain; empty where it starts from something else."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *parts[::-1]]) if isinstance(node, ast.Name) else ""


def restores_the_generator(node: ast.AST) -> bool:
    """`with torch.random.fork_rng():`, which puts the global generator back as it was."""
    return isinstance(node, ast.With) and any(
        isinstance(item.context_expr, ast.Call) and dotted(item.context_expr.func) == "torch.random.fork_rng"
        for item in node.items
    )


def banned(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """`(line, name)` of everything that no file may use."""
    forked = {inner for node in ast.walk(tree) if restores_the_generator(node) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if node in forked and dotted(node) == "torch.manual_seed":
            continue
        if isinstance(node, ast.Attribute):
            name = dotted(node)
            if node.attr in BANNED_NAMES or BANNED_CALLS.match(name):
                yield node.lineno, name or node.attr
        elif isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                if BANNED_CALLS.match(name) or alias.name in BANNED_NAMES:
                    yield node.lineno, name
        elif (
            isinstance(node, ast.keyword)
            and node.arg == "allow_pickle"
            and not (isinstance(node.value, ast.Constant) and node.value.value is False)
        ):
            yield node.lineno, "allow_pickle"


def test_there_is_something_to_check() -> None:
    folders = {path.relative_to(ROOT / "paceline").parts[0] for path in sources("paceline")}
    assert folders >= {"pipeline", *ORDER}


def test_imports_go_one_way() -> None:
    found = []
    for path in sources("paceline", "zoo", "bench"):
        module = module_of(path)
        for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), module):
            reason = wrong_way(module, name)
            if reason:
                found.append(f"{path.relative_to(ROOT)}:{line}: {reason}")
    assert found == []


def test_no_pickle_and_no_global_random_state() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sources("paceline", "zoo", "bench")
        for line, name in banned(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("module", "code", "line"),
    [
        ("paceline.pipeline.x", "import torch.nn", 1),
        ("paceline.pipeline.x", "def f():\n    from zmq import Context", 2),
        ("paceline.pipeline.x", "from paceline.stages.item import Item", 1),
        ("paceline.pipeline.x", "from .. import stages", 1),
        ("paceline.kernels.x", "from paceline import tiers", 1),
        ("paceline.stages.x", "import paceline.runtime", 1),
        ("paceline.stages.x", "from ..runtime import wire", 1),
        ("paceline.runtime.x", "import paceline.launch.cli", 1),
        ("zoo.x", "import pickle", 1),
        ("bench.x", "from cloudpickle import dumps", 1),
        ("paceline.launch.x", "import bench.world", 1),
    ],
)
def test_a_wrong_import_is_seen(module: str, code: str, line: int) -> None:
    assert next(at for at, name in imported(ast.parse(code), module) if wrong_way(module, name)) == line


@pytest.mark.parametrize(
    ("module", "code"),
    [
        ("paceline.runtime.x", "from paceline.stages.base import Stage\nfrom paceline.pipeline import placement"),
        ("paceline.stages.x", "import torch\nfrom . import runtime"),
        ("paceline.launch.x", "from paceline.runtime import worker\nimport subprocess"),
        ("zoo.x", "from paceline.stages.dit import DiT"),
    ],
)
def test_a_right_import_is_not(module: str, code: str) -> None:
    assert [name for _, name in imported(ast.parse(code), module) if wrong_way(module, name)] == []


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(f)",
        "torch.save(x, f)",
        "socket.recv_pyobj()",
        "self.sockets[0].send_pyobj(1)",
        "torch.manual_seed(0)",
        "with open(f):\n    torch.manual_seed(0)",
        "with torch.random.fork_rng():\n    torch.load(f)",
        "np.random.seed(1)",
        "np.random.randint(3)",
        "from random import shuffle",
        "import random\nrandom.random()",
        "np.load(f, allow_pickle=True)",
        "from torch import save",
    ],
)
def test_a_banned_call_is_seen(code: str) -> None:
    assert len(list(banned(ast.parse(code)))) == 1


@pytest.mark.parametrize(
    "code",
    [
        "np.random.default_rng(3)",
        "random.Random(3).random()",
        "generator.manual_seed(0)",
        "with torch.random.fork_rng():\n    torch.manual_seed(0)",
        "safetensors.torch.save_file(x, f)",
    ],
)
def test_a_generator_of_ones_own_is_fine(code: str) -> None:
    assert list(banned(ast.parse(code))) == []
