from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from paceline.runtime.errors import MalformedError, OversizedError, UnsupportedError, WireError
from paceline.runtime.wire import (
    DTYPES,
    MAGIC,
    MAX_HEADER,
    MAX_TENSORS,
    Control,
    CreditReturn,
    Data,
    Goodbye,
    Hello,
    Message,
    Returned,
    TensorSpec,
    canonical,
    check_data,
    decode,
    encode,
    encode_item,
    item_from,
    read_tensors,
    tensor_bytes,
)
from paceline.stages.item import Item, Key, Meta
from paceline.versions import WIRE

CAP = 1 << 20
KEY = Key(3, 2**40, 17, 5)


def tensor_of(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.randint(-100 if dtype.is_signed else 0, 100, shape, generator=generator).to(dtype)


def through(item: Item, checksum_limit: int = CAP) -> Item:
    """The item after a journey through bytes."""
    frame, tensors = encode_item(item, 0, checksum_limit=checksum_limit)
    data = decode(frame)
    assert isinstance(data, Data)
    buffers = [bytes(tensor_bytes(tensor)) for tensor in tensors]
    check_data(data, [len(buffer) for buffer in buffers], CAP)
    return item_from(data, read_tensors(data, buffers))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and bytes(tensor_bytes(a)) == bytes(tensor_bytes(b))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (7,), (2, 3, 5)], ids=str)
def test_tensors_come_out_bit_equal_in_memory_of_their_own(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    sent = tensor_of(dtype, *shape)
    (got,) = through(Item(KEY, (sent,))).tensors
    assert same_bits(canonical(sent), got)
    assert got.data_ptr() % 64 == 0 and got.is_contiguous()
    got.zero_()


def test_nan_payloads_and_signed_zeros_are_kept() -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800001, -0x80000000, 0x00000001], dtype=torch.int64).to(torch.int32)
    (got,) = through(Item(KEY, (bits.view(torch.float32),))).tensors
    assert torch.equal(got.view(torch.int32), bits)


def test_key_meta_and_epoch_are_kept() -> None:
    meta: Meta = {"a": -(2**63), "b": 2**64 - 1, "c": 0.1, "d": "\N{BICYCLE}", "e": float("inf")}
    got = through(Item(KEY, (), meta, 9))
    assert (got.key, got.meta, got.epoch) == (KEY, meta, 9)
    assert [type(value) for value in got.meta.values()] == [int, int, float, str, float]


def test_every_other_message_comes_out_as_it_went_in() -> None:
    messages: list[Message] = [
        CreditReturn((Returned(0, 1, 2, 3), Returned(4, 5, 6, 7))),
        Control("report", 12),
        Hello(3, "abc"),
        Goodbye("ValueError: no"),
    ]
    assert [decode(encode(message)) for message in messages] == messages


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(12.0).reshape(3, 4).t(),
        lambda: torch.arange(12.0)[1:],
        lambda: torch.arange(24.0).reshape(4, 6)[:, ::2],
        lambda: torch.zeros(1).expand(5),
        lambda: torch.arange(6.0).as_strided((1, 6), (99, 1)),
        lambda: torch.view_as_complex(torch.randn(4, 2)).conj(),
        lambda: torch.view_as_complex(torch.randn(4, 2)).conj().imag,
        lambda: torch.randn(3, requires_grad=True) * 2,
    ],
    ids=["transposed", "misaligned", "strided", "expanded", "odd stride of one", "conj", "neg", "graph"],
)
def test_canonical_is_what_a_transport_delivers(make: Any) -> None:
    tensor = make()
    form = canonical(tensor)
    assert torch.equal(form, tensor)
    fresh = torch.empty(tensor.shape, dtype=tensor.dtype)
    assert form.stride() == fresh.stride() and form.data_ptr() % 64 == 0
    assert not (form.requires_grad or form.is_conj() or form.is_neg())
    assert canonical(form) is form


def test_what_has_no_place_on_the_wire_is_named() -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.complex128"):
        encode_item(Item(KEY, (torch.zeros(1, dtype=torch.complex128),)), 0)
    with pytest.raises(UnsupportedError, match="dense"):
        encode_item(Item(KEY, (torch.zeros(2, 2).to_sparse(),)), 0)
    with pytest.raises(MalformedError, match="can't be written"):
        encode_item(Item(KEY, (), {"x": object()}), 0)  # type: ignore[dict-item]
    with pytest.raises(OversizedError, match="send large values as tensors"):
        encode_item(Item(KEY, (), {"x": "y" * MAX_HEADER}), 0)
    with pytest.raises(OversizedError):
        encode_item(Item(KEY, (torch.zeros(0),) * (MAX_TENSORS + 1)), 0)


def header(*specs: TensorSpec, external: bool = False, crc: int | None = None) -> Data:
    return Data(0, 0, 0, 0, 0, 0, external, crc, specs, {})


@pytest.mark.parametrize(
    ("data", "lengths", "error", "words"),
    [
        (header(TensorSpec(len(DTYPES), (1,), 4)), [4], UnsupportedError, "dtype"),
        (header(TensorSpec(0, (2,), 4)), [4], MalformedError, "not 4 bytes"),
        (header(TensorSpec(0, (2,), 8)), [4], MalformedError, "frames"),
        (header(TensorSpec(0, (2,), 8)), [8, 8], MalformedError, "frames"),
        (header(TensorSpec(0, (2,), 8)), [], MalformedError, "frames"),
        (header(TensorSpec(0, (CAP,), 4 * CAP)), [4 * CAP], OversizedError, "max_message"),
        (header(*[TensorSpec(8, (CAP // 2,), CAP // 2)] * 3), [CAP // 2] * 3, OversizedError, "max_message"),
        (header(TensorSpec(8, (0, 2**62, 2**62), 0)), [0], OversizedError, "shape"),
        (header(TensorSpec(8, (1,) * 17, 1)), [1], OversizedError, "dimensions"),
        (header(*[TensorSpec(8, (0,), 0)] * (MAX_TENSORS + 1)), [0] * (MAX_TENSORS + 1), OversizedError, "tensors"),
        (header(TensorSpec(8, (4,), 4), external=True), [4], MalformedError, "otherwise"),
        (header(TensorSpec(8, (4,), 4), external=True, crc=1), [], MalformedError, "checksum"),
    ],
)
def test_a_header_that_lies_is_refused(data: Data, lengths: list[int], error: type[WireError], words: str) -> None:
    with pytest.raises(error, match=words):
        check_data(data, lengths, CAP)


def test_a_flipped_bit_is_seen() -> None:
    frame, tensors = encode_item(Item(KEY, (torch.arange(100),)), 0, checksum_limit=CAP)
    data = decode(frame)
    assert isinstance(data, Data)
    buffer = bytearray(tensor_bytes(tensors[0]))
    buffer[333] ^= 4
    with pytest.raises(MalformedError, match="checksum"):
        read_tensors(data, [buffer])


def test_a_bool_is_zero_or_one() -> None:
    data = header(TensorSpec(DTYPES.index(torch.bool), (2,), 2))
    with pytest.raises(MalformedError, match="bool"):
        read_tensors(data, [b"\x01\x02"])


def test_large_items_carry_no_checksum() -> None:
    small, large = (decode(encode_item(Item(KEY, (torch.zeros(n),)), 0, checksum_limit=8)[0]) for n in (2, 3))
    assert isinstance(small, Data) and small.crc is not None
    assert isinstance(large, Data) and large.crc is None


def test_other_versions_and_other_protocols_are_refused() -> None:
    good = encode(Hello(0, ""))
    with pytest.raises(UnsupportedError, match=f"version {WIRE + 1}"):
        decode(MAGIC + bytes([WIRE + 1]) + good[5:])
    for bad in (b"", MAGIC, b"GET / HTTP/1.1\r\n", good[1:], b"\x80\x04K\x01."):
        with pytest.raises(MalformedError, match="not a message"):
            decode(bad)
    with pytest.raises(OversizedError):
        decode(good + bytes(MAX_HEADER))


@pytest.mark.parametrize("value", [-1, 2**63, True, 1.0, "1", None])
def test_a_number_of_the_wrong_kind_is_refused(value: object) -> None:
    good = msgspec.to_builtins(header(TensorSpec(8, (4,), 4)))
    for field in range(1, 7):
        bad = [*good]
        bad[field] = value
        with pytest.raises(MalformedError):
            decode(MAGIC + bytes([WIRE]) + msgspec.msgpack.encode(bad))


@settings(max_examples=300)
@given(st.binary(max_size=200), st.booleans())
def test_random_bytes_raise_nothing_but_wire_errors(noise: bytes, prefixed: bool) -> None:
    with pytest.raises(WireError):
        decode(MAGIC + bytes([WIRE]) + noise if prefixed else noise)


def test_mutated_frames_raise_nothing_but_wire_errors() -> None:
    dice = random.Random(0)
    item = Item(KEY, (torch.arange(6).reshape(2, 3), torch.zeros(0, 4), torch.ones(())), {"k": 1, "s": "x"}, 2)
    frame, tensors = encode_item(item, 4, checksum_limit=CAP)
    buffers = [bytes(tensor_bytes(tensor)) for tensor in tensors]
    frames = [frame, encode(CreditReturn((Returned(1, 2, 3, 4),))), encode(Control("stop", 0)), encode(Hello(1, "d"))]
    refused = 0
    for _ in range(20_000):
        bad = bytearray(dice.choice(frames))
        for _ in range(dice.randint(1, 4)):
            place = dice.randrange(len(bad))
            match dice.randrange(4):
                case 0:
                    bad[place] ^= 1 << dice.randrange(8)
                case 1:
                    bad[place] = dice.choice([0, 0x7F, 0x80, 0xC0, 0xCF, 0xD9, 0xDB, 0xDD, 0xDF, 0xFF])
                case 2:
                    del bad[place : place + dice.randint(1, 3)]
                    bad = bad or bytearray(b"x")
                case 3:
                    bad[place:place] = dice.randbytes(dice.randint(1, 4))
        try:
            message = decode(bad)
            if isinstance(message, Data):
                check_data(message, [len(buffer) for buffer in buffers], CAP)
                read_tensors(message, buffers)
        except WireError:
            refused += 1
    assert refused > 15_000
