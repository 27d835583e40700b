"""The text of the embedded language models: the Python source of the standard library, which every Python ships.

Tests, tables (`encodings`, `pydoc_data`) and whatever is installed beside the library are left out. Held-out modules
are told from training modules by their path alone, so the split is the same on every machine; the text itself is that
of the running Python, and its fingerprint goes into the weights.
"""

from __future__ import annotations

import hashlib
import platform
import sysconfig
import tokenize
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

__all__ = ["KNOWN", "Corpus", "Document", "fingerprint", "is_held_out", "is_source", "joined", "stdlib"]

KNOWN = frozenset({"bisect.py", "csv.py", "heapq.py", "queue.py", "shlex.py", "textwrap.py"})  # held out by name
_FOREIGN = frozenset({"site-packages", "dist-packages", "lib-dynload", "__pycache__", "__phello__"})
_TESTS = frozenset({"test", "tests", "idle_test", "turtledemo"})
_TABLES = frozenset({"encodings", "pydoc_data"})  # generated tables, each nearly a copy of the next


@dataclass(frozen=True, slots=True)
class Document:
    """A module: its path relative to the library with `/` between the parts, and its source."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Corpus:
    """Modules in the order of their paths; `python` is the version of the Python they belong to."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    python: str


def is_source(path: str) -> bool:
    """Whether a path relative to the library is code to learn from."""
    parts = PurePosixPath(path).parts
    made_here = parts[-1].startswith("_sysconfigdata") or parts[0].startswith("config-")
    return parts[-1].endswith(".py") and not made_here and not (_FOREIGN | _TESTS | _TABLES) & set(parts)


def is_held_out(path: str) -> bool:
    """Whether a module is kept from training: one path in twenty by its checksum, and a few well known ones."""
    return path in KNOWN or zlib.crc32(path.encode()) % 20 == 0


def stdlib(root: Path | None = None) -> Corpus:
    """Read the library under `root`, by default that of the running Python.

    Raises `FileNotFoundError` where there is no source (a Python that ships compiled files only).
    """
    folder = root or Path(sysconfig.get_path("stdlib"))
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py"))
    documents: list[Document] = []
    for path in paths:
        if is_source(path):
            with tokenize.open(folder / path) as file:  # minds the coding line of a source
                text = file.read()
            if text.strip():
                documents.append(Document(path, text))
    if not documents:
        raise FileNotFoundError(
            f"no Python source under {folder}; give the folder of a standard library with its .py files"
        )
    return Corpus(
        train=tuple(document for document in documents if not is_held_out(document.path)),
        held_out=tuple(document for document in documents if is_held_out(document.path)),
        python=platform.python_version(),
    )


def joined(documents: Iterable[Document]) -> bytes:
    """The documents one after the other as UTF-8, a NUL after each: what is counted in bytes and given to `xz`."""
    return b"".join(document.text.encode() + b"\0" for document in documents)


def fingerprint(documents: Iterable[Document]) -> str:
    """SHA-256 of the joined text."""
    return hashlib.sha256(joined(documents)).hexdigest()
