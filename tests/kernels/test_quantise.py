"""Lossy KV: how far off it may be, what stays exact, and its size."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.kernels.quantise import Axis, measured_error, pack, packed_nbytes, unpack
from tests.kernels.blocks import randn
from tests.kernels.keys import KINDS, keys_of

_BITS = st.sampled_from([8, 4, 2])
_AXES = st.sampled_from(list(Axis))


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 2**20), _BITS, _AXES, st.sampled_from([1, 5, 16]))
def test_a_value_is_off_by_half_a_step_at_most(kind: str, seed: int, bits: int, axis: Axis, block: int) -> None:
    keys = keys_of(kind, seed, 3, 2, block, 16)
    packed = pack(keys, bits, axis)
    dim = 2 if axis is Axis.channel else 3
    span = keys.double().amax(dim, keepdim=True) - keys.double().amin(dim, keepdim=True)
    off = (unpack(packed).double() - keys.double()).abs()
    # Beside half a step, the rounding of float32 at this size.
    assert bool((off <= span / (2**bits - 1) / 2 + keys.double().abs().amax() * 2.0**-21).all())
    assert packed.nbytes == 3 * packed_nbytes(2, block, 16, bits, axis)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**20), _BITS, _AXES)
def test_a_block_does_not_depend_on_its_neighbours(seed: int, bits: int, axis: Axis) -> None:
    keys = randn(seed, 4, 2, 8, 12)
    alone = torch.cat([unpack(pack(keys[n : n + 1], bits, axis)) for n in range(4)])
    assert torch.equal(alone, unpack(pack(keys, bits, axis)))


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_levels_come_back_exactly(bits: int) -> None:
    # Every level is there in every channel, so lowest and step are whole numbers.
    levels = torch.arange(2**bits, dtype=torch.float32)
    keys = torch.stack([levels.roll(shift) for shift in range(8)], dim=1)[None, None]
    assert torch.equal(unpack(pack(keys, bits, Axis.channel)), keys)
    assert torch.equal(unpack(pack(torch.full((2, 1, 4, 8), 0.7), bits, Axis.token)), torch.full((2, 1, 4, 8), 0.7))


def test_fewer_bits_lose_more_and_keys_want_scales_by_channel() -> None:
    keys = keys_of("outlier", 3, 8, 2, 16, 64)
    errors = [measured_error(keys, pack(keys, bits, Axis.channel)) for bits in (8, 4, 2)]
    assert errors[0].relative < errors[1].relative / 8 < errors[2].relative / 32
    assert errors[0].largest < errors[1].largest < errors[2].largest
    by_token = measured_error(keys, pack(keys, 4, Axis.token))
    assert errors[1].largest < by_token.largest or errors[1].relative < by_token.relative
    assert packed_nbytes(2, 16, 64, 4, Axis.channel) < 2 * 16 * 64 * 4 / 3.9


def test_narrow_types_come_back_as_such() -> None:
    keys = randn(9, 2, 1, 4, 8, dtype=torch.bfloat16)
    back = unpack(pack(keys, 8, Axis.channel), torch.bfloat16)
    assert back.dtype == torch.bfloat16 and float((back - keys).abs().max()) < 0.05


def test_what_can_not_be_packed_is_refused() -> None:
    keys = randn(1, 1, 1, 4, 6)
    with pytest.raises(ValueError, match="there are 8, 4 and 2"):
        pack(keys, 3, Axis.channel)
    with pytest.raises(ValueError, match="don't fill bytes"):
        pack(keys, 2, Axis.channel)
    keys[0, 0, 1, 2] = torch.nan
    with pytest.raises(ValueError, match="NaN"):
        pack(keys, 8, Axis.channel)
