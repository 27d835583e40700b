"""The Triton kernels: on a GPU where there is one, and in Triton's interpreter where Triton is installed."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from paceline.kernels.causal_delta import causal_delta
from paceline.kernels.merge import merge
from paceline.kernels.moves import copy_blocks
from paceline.kernels.summaries import summarise
from tests.kernels.blocks import Case, case, randn

ROOT = Path(__file__).parents[2]
ON_A_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_agree_with_torch_in_the_interpreter() -> None:
    script = Path(__file__).with_name("triton_interpreted.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        cwd=ROOT,
        env={"PYTHONPATH": ":".join([str(ROOT), *sys.path]), "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["decode", "merge", "summaries", "moves", "causal_delta"]


def on_gpu(given: Case) -> Case:
    names = ("q_HMD", "keys_SGBD", "values_SGBD", "slots_N", "starts_N", "counts_N")
    return replace(given, **{name: getattr(given, name).cuda() for name in names})


@pytest.mark.gpu
@ON_A_GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tokens", [1, 37, 5000])
@pytest.mark.parametrize("window", [None, 100])
def test_decoding_on_a_gpu_is_attention(dtype: torch.dtype, tokens: int, window: int | None) -> None:
    given = case(1, tokens, heads=32, shared=8, block=16, width=128, window=window, dtype=dtype)
    found, wanted = on_gpu(given).attend(), given.attend()
    near = 1e-2 if dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(found.out_HMD.cpu(), wanted.out_HMD, atol=near)
    assert torch.allclose(found.block_lse_HMN.cpu(), wanted.block_lse_HMN, atol=near)
    assert torch.allclose(found.mass_N.cpu(), wanted.mass_N, atol=near)


@pytest.mark.gpu
@ON_A_GPU
def test_kept_blocks_have_the_same_bits_on_a_gpu_in_any_partition() -> None:
    given = on_gpu(case(2, 700, heads=8, shared=2, block=16, width=64))
    order = torch.randperm(44, generator=torch.Generator().manual_seed(1)).cuda()
    whole = given.attend(True)
    merged = merge([given.some(order[:11]).attend(True), given.some(order[11:]).attend(True)])
    assert torch.equal(whole.out_HMD, merged.out_HMD) and torch.equal(whole.lse_HM, merged.lse_HM)


@pytest.mark.gpu
@ON_A_GPU
@pytest.mark.parametrize("slots", [[1, 2, 3, 4], [7, 0, 5, 2]])
def test_blocks_cross_the_bus_unchanged(slots: list[int]) -> None:
    host, device = randn(1, 8, 2, 16, 64).pin_memory(), torch.zeros(8, 2, 16, 64, device="cuda")
    source, target = np.array(slots), np.arange(4)
    copy_blocks(host, source, device, target)
    back = torch.zeros_like(host).pin_memory()
    copy_blocks(device, target, back, source)
    torch.cuda.synchronize()
    assert torch.equal(back[source], host[source])


@pytest.mark.gpu
@ON_A_GPU
def test_summaries_on_a_gpu() -> None:
    keys, counts = randn(3, 9, 8, 16, 128), torch.tensor([16] * 7 + [3, 0])
    found, wanted = summarise(keys.cuda(), counts.cuda()).to("cpu"), summarise(keys, counts)
    for name in ("minimum_NGD", "maximum_NGD", "mean_NGD", "radius_NG", "reach_NG", "count_N"):
        assert torch.allclose(getattr(found, name), getattr(wanted, name), rtol=1e-6, atol=1e-7), name


@pytest.mark.gpu
@ON_A_GPU
@pytest.mark.parametrize(("keys", "values"), [(64, 64), (512, 13)])
@pytest.mark.parametrize("count", [1, 100])
@pytest.mark.parametrize("fades", [False, True])
def test_the_gated_delta_rule_on_a_gpu(keys: int, values: int, count: int, fades: bool) -> None:
    q, k = (torch.nn.functional.normalize(randn(seed, 2, 4, count, keys), dim=-1) for seed in (1, 2))
    beta, decay = randn(3, 2, 4, count).sigmoid(), -randn(4, 2, 4, count).square()
    state, v = randn(5, 2, 4, keys, values), randn(6, 2, 4, count, values)
    wanted = causal_delta(state, q, k, v, beta, decay if fades else None)
    on_device = (part.cuda() for part in (state, q, k, v, beta))
    found = causal_delta(*on_device, decay.cuda() if fades else None)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.cpu(), other, atol=1e-4, rtol=1e-4)
