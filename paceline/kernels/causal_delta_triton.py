"""The chunked gated delta rule on CUDA in one kernel: a program for each head and each block of values carries the
state through all chunks, so that it is read and written once.

Within a chunk it is the WY form of `causal_delta.py`; the triangular system is solved row by row.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

__all__ = ["causal_delta", "suits"]

_CHUNK = 16
"""Tokens of a chunk: the least that `tl.dot` takes, as more rows make solving longer and fit fewer keys."""
_VALUES = 16
"""Values of a program."""
_KEYS = 256
"""Keys of a state, at most: a program holds a block of values for all keys, and has 99 KiB of shared memory on every
GPU from compute capability 8.0 on."""


@triton.jit  # type: ignore[untyped-decorator]
def _causal_delta(
    state_KV: tl.tensor,
    q_NK: tl.tensor,
    k_NK: tl.tensor,
    v_NV: tl.tensor,
    beta_N: tl.tensor,
    decay_N: tl.tensor,
    out_NV: tl.tensor,
    new_KV: tl.tensor,
    count: tl.tensor,
    keys: tl.constexpr,
    values: tl.constexpr,
    corrects: tl.constexpr,
    fades: tl.constexpr,
    CHUNK: tl.constexpr,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
) -> None:
    head = tl.program_id(0).to(tl.int64)
    row_C = tl.arange(0, CHUNK)
    key_K = tl.arange(0, KEYS)
    value_V = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    in_keys_K, in_values_V = key_K < keys, value_V < values
    at_KV = (head * keys + key_K[:, None]) * values + value_V[None, :]
    in_state_KV = in_keys_K[:, None] & in_values_V[None, :]
    held_KV = tl.load(state_KV + at_KV, mask=in_state_KV, other=0.0)
    below_CC = row_C[:, None] > row_C[None, :]
    upto_CC = row_C[:, None] >= row_C[None, :]
    start = 0
    while start < count:
        token_C = start + row_C
        valid_C = token_C < count
        row = head * count + token_C
        at_CK = row[:, None] * keys + key_K[None, :]
        in_CK = valid_C[:, None] & in_keys_K[None, :]
        at_CV = row[:, None] * values + value_V[None, :]
        in_CV = valid_C[:, None] & in_values_V[None, :]
        q_CK = tl.load(q_NK + at_CK, mask=in_CK, other=0.0)
        k_CK = tl.load(k_NK + at_CK, mask=in_CK, other=0.0)
        beta_C = tl.load(beta_N + row, mask=valid_C, other=0.0)
        update_CV = beta_C[:, None] * tl.load(v_NV + at_CV, mask=in_CV, other=0.0)
        looks_CC = tl.where(upto_CC, tl.dot(q_CK, tl.trans(k_CK), input_precision="ieee"), 0.0)
        left_CK = k_CK
        seen_CK = k_CK
        whole = 1.0
        if fades:
            # Tokens behind the last one fade nothing.
            decay_C = tl.load(decay_N + row, mask=valid_C, other=0.0)
            total_C = tl.sum(tl.where(upto_CC, decay_C[None, :], 0.0), axis=1)
            # Positions behind are left out before exp, which would overflow there.
            within_CC = tl.exp(tl.where(upto_CC, total_C[:, None] - total_C[None, :], float("-inf")))
            fade_C = tl.exp(total_C)
            last = tl.sum(decay_C, axis=0)
            looks_CC *= within_CC
            q_CK *= fade_C[:, None]
            seen_CK = k_CK * fade_C[:, None]
            left_CK = k_CK * tl.exp(last - total_C)[:, None]
            whole = tl.exp(last)
        if corrects:
            overlap_CC = tl.dot(k_CK, tl.trans(k_CK), input_precision="ieee")
            if fades:
                overlap_CC *= within_CC
            system_CC = tl.where(below_CC, beta_C[:, None] * overlap_CC, 0.0)
            update_CV -= beta_C[:, None] * tl.dot(seen_CK, held_KV, input_precision="ieee")
            # Forward substitution: row i is right once the rows above it are.
            for i in range(1, CHUNK):
                of_C = tl.sum(tl.where((row_C == i)[:, None], system_CC, 0.0), axis=0)
                less_V = tl.sum(of_C[:, None] * update_CV, axis=0)
                update_CV -= tl.where((row_C == i)[:, None], less_V[None, :], 0.0)
        out_CV = tl.dot(q_CK, held_KV, input_precision="ieee") + tl.dot(looks_CC, update_CV, input_precision="ieee")
        tl.store(out_NV + at_CV, out_CV, mask=in_CV)
        held_KV = held_KV * whole + tl.dot(tl.trans(left_CK), update_CV, input_precision="ieee")
        start += CHUNK
    tl.store(new_KV + at_KV, held_KV, mask=in_state_KV)


def suits(*tensors: Tensor) -> bool:
    """Whether the kernel takes a state `[..., K, V]` and what is written to it: float32, none to be differentiated, up
    to 256 keys."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return tensors[0].shape[-2] <= _KEYS and all(tensor.dtype == torch.float32 for tensor in tensors)


def causal_delta(
    state_KV: Tensor,
    q_NK: Tensor,
    k_NK: Tensor,
    v_NV: Tensor,
    beta_N: Tensor,
    log_decay_N: Tensor | None = None,
    corrects: bool = True,
) -> tuple[Tensor, Tensor]:
    """As `causal_delta.causal_delta`, of tensors that `suits` takes."""
    lead, (count, values), keys = v_NV.shape[:-2], v_NV.shape[-2:], k_NK.shape[-1]
    heads = lead.numel()
    state_KV = state_KV.expand(*lead, keys, values).contiguous()
    q_NK, k_NK = (each.expand(*lead, count, keys).contiguous() for each in (q_NK, k_NK))
    v_NV, beta_N = v_NV.contiguous(), beta_N.expand(*lead, count).contiguous()
    decay_N = beta_N if log_decay_N is None else log_decay_N.expand(*lead, count).contiguous()
    out_NV, new_KV = torch.empty_like(v_NV), torch.empty_like(state_KV)
    if heads:
        _causal_delta[(heads, -(-values // _VALUES))](
            state_KV,
            q_NK,
            k_NK,
            v_NV,
            beta_N,
            decay_N,
            out_NV,
            new_KV,
            count,
            keys,
            values,
            corrects,
            log_decay_N is not None,
            _CHUNK,
            max(16, 1 << (keys - 1).bit_length()),
            _VALUES,
        )
    return out_NV, new_KV
