"""Compares the Triton kernels with the torch reference on the CPU, in Triton's interpreter, and prints what it has
compared. Run by test_paged_attention: the interpreter has to be asked for before Triton is imported."""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch

from paceline.kernels import causal_delta_triton, merge_triton, moves_triton, paged_attention_triton, summaries_triton
from paceline.kernels.causal_delta import causal_delta_by_token, causal_delta_reference
from paceline.kernels.merge import _weighted
from paceline.kernels.paged_attention import paged_attention_reference
from paceline.kernels.summaries import _UP, summarise
from tests.kernels.blocks import case, randn


def decode() -> None:
    shapes = [  # tokens, heads, shared, block, width, window, type of KV, keep
        (37, 4, 2, 16, 16, None, torch.float32, False),
        (150, 3, 1, 16, 20, 70, torch.float32, False),
        # The interpreter does not multiply bfloat16.
        (45, 6, 2, 4, 16, None, torch.float16, False),
        (60, 2, 1, 16, 8, 25, torch.float32, True),
    ]
    for seed, (tokens, heads, shared, block, width, window, dtype, keep) in enumerate(shapes):
        given = case(seed, tokens, heads=heads, shared=shared, block=block, width=width, window=window, dtype=dtype)
        arguments = (
            given.q_HMD, given.keys_SGBD, given.values_SGBD, given.slots_N, given.starts_N, given.counts_N,
            given.query_start, given.scale, given.window, keep,
        )  # fmt: skip
        assert paged_attention_triton.suits(given.q_HMD, given.keys_SGBD, given.values_SGBD, keep)
        found, wanted = paged_attention_triton.paged_decode(*arguments), paged_attention_reference(*arguments)
        near = 1e-5 if dtype == torch.float32 else 2e-3
        assert torch.allclose(found.out_HMD, wanted.out_HMD, atol=near), (found.out_HMD, wanted.out_HMD)
        assert torch.allclose(found.lse_HM, wanted.lse_HM, atol=1e-5)
        assert torch.allclose(found.block_lse_HMN, wanted.block_lse_HMN, atol=1e-5)
        if keep:
            assert found.block_out_NHMD is not None and wanted.block_out_NHMD is not None
            assert torch.allclose(found.block_out_NHMD, wanted.block_out_NHMD, atol=1e-5)
    print("decode")


def merge() -> None:
    out, lse = randn(1, 40, 3, 2, 12), randn(2, 3, 2, 40) * 5
    lse[0, 1] = -torch.inf
    lse[1, 0, :20] = -torch.inf
    wanted_out, wanted_lse = _weighted(out.masked_fill((lse == -torch.inf).movedim(2, 0)[..., None], 0.0), lse)
    found_out, found_lse = merge_triton.weighted(out.view(40, 6, 12), lse.movedim(2, 0).reshape(40, 6).contiguous())
    assert torch.allclose(found_out.view(3, 2, 12), wanted_out, atol=1e-6)
    assert torch.allclose(found_lse.view(3, 2), wanted_lse, atol=1e-6)
    print("merge")


def summaries() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        keys, counts = randn(3, 3, 2, 6, 12, dtype=dtype), torch.tensor([6, 4, 0])
        keys[1, :, 4:] = torch.nan
        found, wanted = summaries_triton.summarise(keys, counts, _UP), summarise(keys, counts)
        names = ("minimum_NGD", "maximum_NGD", "mean_NGD", "radius_NG", "reach_NG")
        for name, part in zip(names, found, strict=True):
            assert torch.allclose(part, getattr(wanted, name), rtol=1e-6, atol=1e-7), name
    print("summaries")


def moves() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        held, into = randn(4, 6, 2, 3, 5, dtype=dtype), randn(5, 7, 2, 3, 5, dtype=dtype)
        source, target = np.array([5, 0, 2]), np.array([1, 6, 3])
        wanted = into.clone()
        wanted[target] = held[source]
        moves_triton.copy_blocks(held, source, into, target)
        assert torch.equal(into, wanted)
    print("moves")


def causal_delta() -> None:
    shapes = [  # leading dimensions, tokens, keys, values, fades, corrects
        ((2, 3), 37, 12, 20, True, True),
        ((1,), 16, 16, 13, False, True),
        ((2,), 5, 40, 7, True, False),
    ]
    for seed, (lead, count, keys, values, fades, corrects) in enumerate(shapes):
        q, k = randn(seed, *lead, count, keys), randn(seed + 10, *lead, count, keys)
        k = torch.nn.functional.normalize(k, dim=-1)
        beta, decay = randn(seed + 20, *lead, count).sigmoid(), -randn(seed + 30, *lead, count).square()
        decay[..., 2] = -200.0  # all is forgotten; exp of what lies behind would overflow, and sums round
        given = (
            randn(seed + 40, *lead, keys, values), q, k, randn(seed + 50, *lead, count, values), beta,
            decay if fades else None, corrects,
        )  # fmt: skip
        found = causal_delta_triton.causal_delta(*given)
        for wanted in (causal_delta_reference(*given), causal_delta_by_token(*given)):
            for one, other in zip(found, wanted, strict=True):
                assert torch.allclose(one, other, atol=2e-4, rtol=2e-4), (one - other).abs().max()
    print("causal_delta")


if __name__ == "__main__":
    decode()
    merge()
    summaries()
    moves()
    causal_delta()
