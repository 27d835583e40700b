"""What drafter and verifiers tell one another, as items.

A batch of messages is one item: a uint8 tensor with one record for each message, and the tensors that go with them, in
order. A record is its length (uint32, little-endian) and a MessagePack array; a tensor field is `true` there, and the
tensor is the next of the item's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from paceline.pipeline.speculation.settings import SpeculationSpec
from paceline.pipeline.speculation.window import FinishReason, Policy, SpeculationError, Verdict, Window
from paceline.stages.lm.drafter import can_hedge

__all__ = [
    "Drafted",
    "Failed",
    "HiddenStates",
    "Message",
    "ParkAck",
    "SessionEnd",
    "SessionStart",
    "Settings",
    "StatsReport",
    "StatsRequest",
    "first_settings",
    "pack",
    "record_of",
    "session_of",
    "unpack",
]


class SessionStart(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A session begins: its tokens so far, the length at which it ends, and its seed. A later drafter begins behind
    what is committed: `forwarded` and `epoch` as `Resume` has them. To a verifier, `forwarded` says how many positions
    are to be taken up from where they were parked."""

    session: int
    limit: int
    seed: int
    tokens: tuple[int, ...]
    forwarded: int = -1
    epoch: int = 0


class Drafted(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A window of the drafter. Under `rejection`: q(x) of its drafted tokens, float64 `[n]`, and the drafter's warped
    rows, float32 `[n, V]`. The rows travel with the tokens and are not asked for later: a drafter that is lost between
    its draft and a rejection would otherwise leave a rejection that nobody can replace without bias."""

    window: Window
    chances: Tensor | None = None
    rows: Tensor | None = None


class HiddenStates(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A window on its way through the verifiers, with the hidden states `[n, C]` behind the layers so far (none where
    it has no tokens), and what its drafter sent along."""

    window: Window
    hidden: Tensor | None
    chances: Tensor | None = None
    rows: Tensor | None = None


class Settings(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What to draft with from now on, for all sessions; a window of 0 stops drafting. `acceptance` by index in the
    window, as measured, where it is known; it ranks hedges."""

    window: int
    depth: int
    hedge: int
    acceptance: tuple[float, ...] = ()


class SessionEnd(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A session is over; whoever holds state of it frees it. Sent down the verifiers behind everything else. The KV of
    `parked`, its first tokens, is written to a file before."""

    session: int
    reason: FinishReason = FinishReason.cancelled
    length: int = -1
    parked: tuple[int, ...] = ()


class Failed(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A session can't go on at a run of layers between the first and the last; the last one is to end it."""

    session: int


class StatsRequest(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What did drafting cost lately? Answered at once, by a `StatsReport` with the same stamp."""

    stamp: int


class StatsReport(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """What the drafter measured since the last one: (branches, microseconds) of steps, and for rollbacks that could
    have been hedged (whether the refill was ready, depth, hedge width)."""

    stamp: int
    steps: tuple[tuple[int, int], ...] = ()
    refills: tuple[tuple[bool, int, int], ...] = ()


class ParkAck(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """So many verifiers in a row have written the KV of a session that is over to their files. It goes round behind the
    session's cancel, and comes back to the first."""

    session: int
    ranks: int


class _Judged(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """A verdict on its way; `Verdict` itself is a dataclass, which can't be told from others by a tag."""

    verdict: Verdict


_Struct = SessionStart | Drafted | HiddenStates | Settings | SessionEnd | Failed | StatsRequest | StatsReport | ParkAck
Message = _Struct | Verdict

_LENGTH = 4
"""Bytes of a record's length."""


class Record(NamedTuple):
    """A message as it travels: its fields, and the tensors that go with them."""

    body: bytes
    tensors: tuple[Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Bytes that it adds to an item."""
        return _LENGTH + len(self.body) + sum(tensor.nbytes for tensor in self.tensors)


def record_of(message: Message) -> Record:
    """The record of a message."""
    tensors: list[Tensor] = []

    def add(value: object) -> bool:
        if not isinstance(value, Tensor):
            raise TypeError(f"a {type(value).__name__} can't travel in a message")
        tensors.append(value)
        return True

    encoder = msgspec.msgpack.Encoder(enc_hook=add)
    body = encoder.encode(_Judged(message) if isinstance(message, Verdict) else message)
    return Record(body, tuple(tensors))


def pack(records: Sequence[Record]) -> tuple[Tensor, ...]:
    """The tensors of one item."""
    data = bytearray()
    for record in records:
        data += len(record.body).to_bytes(_LENGTH, "little") + record.body
    tensors = [tensor for record in records for tensor in record.tensors]
    return torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8), *tensors


def unpack(tensors: Sequence[Tensor]) -> Iterator[Message]:
    """The messages of an item. Raises `SpeculationError` for what is none."""
    if not tensors or tensors[0].dtype != torch.uint8 or tensors[0].dim() != 1:
        raise SpeculationError("an item that is no batch of messages; start all ranks from one version")
    data = tensors[0].contiguous().numpy().tobytes()
    rest = iter(tensors[1:])

    def next_tensor(kind: type, value: object) -> Tensor:
        if kind is not Tensor or value is not True:
            raise ValueError("a tensor field that is none")
        tensor = next(rest, None)
        if tensor is None:
            raise ValueError("a tensor is missing")
        return tensor

    decoder = msgspec.msgpack.Decoder(_Struct | _Judged, dec_hook=next_tensor)
    at = 0
    try:
        while at < len(data):
            start = at + _LENGTH
            at = start + int.from_bytes(data[at:start], "little")
            if at > len(data):
                raise ValueError("cut off")
            message = decoder.decode(data[start:at])
            yield message.verdict if isinstance(message, _Judged) else message
    except (ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise SpeculationError(f"a message that can't be read ({error}); start all ranks from one version") from error


def session_of(message: Message) -> int | None:
    """The session that a message is about; None where it is about all."""
    match message:
        case Drafted() | HiddenStates():
            return message.window.session
        case Settings() | StatsRequest() | StatsReport():
            return None
        case _:
            return message.session


_FIRST = Settings(window=4, depth=2, hedge=4)
"""What `auto` begins with."""


def first_settings(spec: SpeculationSpec) -> Settings:
    """The settings to begin with. Not every drafter can hedge, and `redraft` never uses hedges."""
    hedges = can_hedge(spec) and spec.policy is not Policy.redraft
    hedge = _FIRST.hedge if spec.hedge == "auto" else spec.hedge
    return Settings(
        window=_FIRST.window if spec.window == "auto" else spec.window,
        depth=_FIRST.depth if spec.depth == "auto" else spec.depth,
        hedge=hedge if hedges else 0,
    )
