"""The Triton kernels compile for GPUs, where Triton is installed; no GPU is needed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_compile(tmp_path: Path) -> None:
    script = Path(__file__).with_name("triton_compiled.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["decode", "merge", "summaries", "moves", "causal_delta"]
