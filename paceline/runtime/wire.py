"""Messages between ranks as bytes: a header frame, then the raw buffers of tensors. No pickle.

A header is `MAGIC | VERSION | msgpack`, the msgpack being a tagged union of the structs below. A header is checked in
full, against itself, against the caps and against the lengths of the frames that came with it, before a single byte is
allocated for a tensor.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Annotated

import msgspec
import torch
from torch import Tensor

from paceline import versions
from paceline.runtime.errors import MalformedError, OversizedError, UnsupportedError
from paceline.stages.item import Item, Key

__all__ = [
    "Control",
    "CreditReturn",
    "Data",
    "Goodbye",
    "Hello",
    "Message",
    "Returned",
    "TensorSpec",
    "canonical",
    "check_data",
    "decode",
    "empty_tensor",
    "encode",
    "encode_item",
    "item_from",
    "read_tensors",
    "tensor_bytes",
]

MAGIC = b"PCLN"
_PREFIX = MAGIC + bytes([versions.WIRE])

MAX_HEADER = 1 << 20
MAX_TENSORS = 4096
MAX_DIMENSIONS = 16

DTYPES = (
    torch.float32,
    torch.float64,
    torch.float16,
    torch.bfloat16,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
    torch.complex64,
)
"""A dtype travels as its index here; new ones go to the end."""

_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
_BOOL = _CODES[torch.bool]

Natural = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Buffer = bytes | bytearray | memoryview


class TensorSpec(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Type and shape of one tensor, and its bytes as the sender counted them."""

    dtype: Natural
    shape: tuple[Natural, ...]
    nbytes: Natural


class Data(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="data"):
    """The header of an item. `sequence` counts the items of this edge from this rank to that, so that a loss or a
    repetition is seen; `crc` is the CRC-32 of all tensor bytes, or nothing; `external` says that the tensors travel by
    torch.distributed and not behind this header."""

    edge: Natural
    session: Natural
    position: Natural
    part: Natural
    epoch: Natural
    sequence: Natural
    external: bool
    crc: Natural | None
    tensors: tuple[TensorSpec, ...]
    meta: dict[str, int | float | str]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for spec in self.tensors)


class Returned(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """Credits of one edge and session that come back."""

    edge: Natural
    session: Natural
    items: Natural
    nbytes: Natural


class CreditReturn(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="credit"):
    """The receiver took these."""

    returned: tuple[Returned, ...]


class Control(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="control"):
    """A message between workers that is no item; its payload is the one frame behind the header."""

    kind: str
    nbytes: Natural


class Hello(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="hello"):
    """The first message from a peer; `topology` is a digest that has to be the same on all ranks."""

    rank: Natural
    topology: str


class Goodbye(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True, tag="goodbye"):
    """The last message from a peer; `error` is empty where it is done, else why it dies."""

    error: str


Message = Data | CreditReturn | Control | Hello | Goodbye

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encode(message: Message) -> bytes:
    """The header frame of a message. Raises `MalformedError` where it holds what msgpack can't."""
    try:
        return _PREFIX + _encoder.encode(message)
    except (TypeError, OverflowError, ValueError, msgspec.MsgspecError) as error:
        raise MalformedError(f"{type(message).__name__} can't be written: {error}") from error


def decode(frame: Buffer) -> Message:
    """The message of a header frame. Raises `WireError`; whatever the bytes are, it raises nothing else."""
    if len(frame) > MAX_HEADER:
        raise OversizedError(f"a header of {len(frame)} bytes; at most {MAX_HEADER} are allowed")
    head = bytes(frame[: len(_PREFIX)])
    if head != _PREFIX:
        if head[: len(MAGIC)] == MAGIC and len(head) == len(_PREFIX):
            raise UnsupportedError(
                f"protocol version {head[-1]}, but this is version {versions.WIRE}; install one Paceline on all hosts"
            )
        raise MalformedError("not a message of Paceline; something else talks to this socket")
    try:
        return _decoder.decode(memoryview(frame)[len(_PREFIX) :])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise MalformedError(f"a header that can't be read: {error}") from error


def canonical(tensor: Tensor) -> Tensor:
    """The tensor in the one form in which a transport delivers it: dense, contiguous, aligned, without a graph.

    Kernels may choose another path, and so other last bits, by stride or alignment; so a local edge applies this too.
    """
    if tensor.layout is not torch.strided:
        raise UnsupportedError(f"a tensor of layout {tensor.layout} can't be sent; send its dense parts")
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_conj() or tensor.is_neg():
        tensor = tensor.resolve_conj().resolve_neg()
    stride = 1
    strides = tensor.stride()
    for axis in range(len(strides) - 1, -1, -1):
        # Stricter than is_contiguous(), which lets any stride pass where a dimension has one entry.
        if strides[axis] != stride:
            return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
        stride *= max(tensor.size(axis), 1)
    if tensor.data_ptr() % 64:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    return tensor


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a canonical tensor on the CPU, without a copy."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def encode_item(
    item: Item, sequence: int, external: bool = False, checksum_limit: int = 0
) -> tuple[bytes, list[Tensor]]:
    """The header frame of an item, and its tensors in canonical form: on the CPU, unless they travel `external`ly.

    Tensors of up to `checksum_limit` bytes together carry a checksum. Raises `WireError` for what can't travel.
    """
    tensors = [canonical(tensor if external else tensor.cpu()) for tensor in item.tensors]
    total = 0
    specs = []
    for tensor in tensors:
        code = _CODES.get(tensor.dtype)
        if code is None:
            raise UnsupportedError(f"dtype {tensor.dtype} has no place on the wire; convert it to one of {DTYPES}")
        nbytes = tensor.nbytes
        total += nbytes
        specs.append(TensorSpec(code, tuple(tensor.shape), nbytes))
    crc = None
    if not external and total <= checksum_limit:
        crc = 0
        for tensor in tensors:
            crc = zlib.crc32(tensor_bytes(tensor), crc)
    key = item.key
    frame = encode(
        Data(
            key.edge, key.session, key.position, key.part, item.epoch, sequence, external, crc, tuple(specs), item.meta
        )
    )
    if len(frame) > MAX_HEADER or len(specs) > MAX_TENSORS:
        raise OversizedError(
            f"{key} has {len(specs)} tensors and a header of {len(frame)} bytes; at most {MAX_TENSORS} tensors and "
            f"{MAX_HEADER} bytes are allowed: send large values as tensors, in several items"
        )
    return frame, tensors


def check_data(data: Data, lengths: Sequence[int] | None, max_bytes: int) -> None:
    """Check a header against itself, the cap and the lengths of its frames (None where tensors come by other ways).

    Raises `WireError`. Allocates nothing, so it is called before anything is.
    """
    if len(data.tensors) > MAX_TENSORS:
        raise OversizedError(f"{len(data.tensors)} tensors in one item; at most {MAX_TENSORS} are allowed")
    total = 0
    for spec in data.tensors:
        if spec.dtype >= len(DTYPES):
            raise UnsupportedError(f"dtype {spec.dtype} is not known here; install one Paceline on all hosts")
        if len(spec.shape) > MAX_DIMENSIONS:
            raise OversizedError(f"{len(spec.shape)} dimensions; at most {MAX_DIMENSIONS} are allowed")
        itemsize = DTYPES[spec.dtype].itemsize
        # Of an empty tensor the other dimensions count too: torch multiplies them into strides, which may overflow.
        if math.prod(size or 1 for size in spec.shape) * itemsize > max_bytes:
            raise OversizedError(f"a tensor of shape {spec.shape}; network.max_message is {max_bytes} bytes")
        if math.prod(spec.shape) * itemsize != spec.nbytes:
            raise MalformedError(f"shape {spec.shape} of {DTYPES[spec.dtype]} is not {spec.nbytes} bytes")
        total += spec.nbytes
    if total > max_bytes:
        raise OversizedError(f"an item of {total} bytes; network.max_message is {max_bytes} bytes")
    if data.external:
        if data.crc is not None:
            raise MalformedError("a checksum of tensors that are not in this message")
        if lengths:
            raise MalformedError(f"{len(lengths)} frames behind a header whose tensors travel otherwise")
    elif lengths is not None and list(lengths) != [spec.nbytes for spec in data.tensors]:
        raise MalformedError(f"frames of {list(lengths)} bytes for tensors {data.tensors}")


def empty_tensor(spec: TensorSpec, device: torch.device | None = None) -> Tensor:
    """Fresh memory for a tensor whose header was checked."""
    return torch.empty(spec.shape, dtype=DTYPES[spec.dtype], device=device)


def read_tensors(data: Data, buffers: Sequence[Buffer]) -> tuple[Tensor, ...]:
    """Copies of the buffers as fresh, aligned, writable tensors; `check_data` has passed.

    Raises `MalformedError` where the checksum is wrong.
    """
    if data.crc is not None:
        crc = 0
        for buffer in buffers:
            crc = zlib.crc32(buffer, crc)
        if crc != data.crc:
            raise MalformedError(f"the checksum of item {data.session}/{data.position} is wrong; check memory and link")
    tensors = []
    for spec, buffer in zip(data.tensors, buffers, strict=True):
        if spec.dtype == _BOOL and bytes(buffer).translate(None, b"\x00\x01"):
            raise MalformedError("a bool tensor with a byte other than 0 and 1")
        tensor = empty_tensor(spec)
        if spec.nbytes:
            tensor_bytes(tensor)[:] = buffer
        tensors.append(tensor)
    return tuple(tensors)


def item_from(data: Data, tensors: tuple[Tensor, ...]) -> Item:
    """The item of a header and its tensors."""
    return Item(Key(data.edge, data.session, data.position, data.part), tensors, data.meta, data.epoch)
