"""Compiles the Triton kernels for GPUs, which takes none, and prints what it has compiled. Run by test_triton_compiled.

The interpreter runs what the compiler refuses, such as a name of Python's in a kernel, and knows no limit of shared
memory.
"""

from __future__ import annotations

import triton  # type: ignore[import-not-found]
from triton.backends.compiler import GPUTarget  # type: ignore[import-not-found]
from triton.compiler import ASTSource  # type: ignore[import-not-found]

from paceline.kernels import causal_delta_triton, merge_triton, moves_triton, paged_attention_triton, summaries_triton

ARCHITECTURES = (80, 90)
SHARED = 99 * 1024
"""Bytes of shared memory that a program has on every GPU from compute capability 8.0 on."""


def compiled(kernel: object, types: list[str], **constants: object) -> None:
    """`types`: of the parameters that are no constants, in order."""
    names = [name for name in kernel.arg_names if name not in constants]  # type: ignore[attr-defined]
    signature = dict(zip(names, types, strict=True)) | dict.fromkeys(constants, "constexpr")
    for architecture in ARCHITECTURES:
        source = ASTSource(kernel, signature, constexprs=constants)
        made = triton.compile(source, target=GPUTarget("cuda", architecture, 32))
        assert made.metadata.shared <= SHARED, (kernel, constants, made.metadata.shared)


def decode() -> None:
    for kv in ("*fp32", "*bf16"):
        types = [kv] * 3 + ["*i64"] * 3 + ["*fp32"] * 3 + ["i32", "i32", "i64", "fp32", "i64", "i64", "i64", "i32"]
        compiled(
            paged_attention_triton._decode, types,
            heads=32, rows=4, width=128, block=16, tile=4, ROWS=16, WIDTH=128,
        )  # fmt: skip
    print("decode")


def merge() -> None:
    compiled(merge_triton._weighted, ["*fp32"] * 4 + ["i32"] * 2, width=128, PARTS=32, WIDTH=128)
    print("merge")


def summaries() -> None:
    types = ["*bf16", "*i64"] + ["*fp32"] * 5
    compiled(summaries_triton._summarise, types, heads=8, block=16, width=128, up=1.0001, BLOCK=16, WIDTH=128)
    print("summaries")


def moves() -> None:
    compiled(moves_triton._copy, ["*i32", "*i32", "*i64", "i32", "i32"], CHUNK=moves_triton._CHUNK)
    print("moves")


def causal_delta() -> None:
    types = ["*fp32"] * 8 + ["i32"]
    for keys in (64, causal_delta_triton._KEYS):
        compiled(
            causal_delta_triton._causal_delta, types,
            keys=keys, values=64, corrects=True, fades=True, CHUNK=causal_delta_triton._CHUNK, KEYS=keys,
            VALUES=causal_delta_triton._VALUES,
        )  # fmt: skip
    print("causal_delta")


if __name__ == "__main__":
    decode()
    merge()
    summaries()
    moves()
    causal_delta()
