"""What drafter and verifiers tell one another, as items.

A batch of messages is one item: a flat int64 tensor that says what they are, and the tensors that go with them, in
order. Items of an edge are numbered by their position, so the receiver knows the key of the next one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from paceline.pipeline.speculation.window import FinishReason, SpeculationError, Verdict, Window

__all__ = ["Ask", "Cancel", "Drafted", "Failed", "Kept", "Message", "Opened", "Pace", "Passing", "Settings",
           "message_bytes", "pack", "unpack"]  # fmt: skip

_FINISH = list(FinishReason)
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class Opened:
    """A session begins: its tokens so far, the length at which it ends, and its seed. A later drafter begins behind
    what is committed: `forwarded` and `epoch` as `Resume` has them. To a verifier, `forwarded` says how many positions
    are to be taken up from where they were parked."""

    session: int
    limit: int
    seed: int
    tokens: tuple[int, ...]
    forwarded: int = -1
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Drafted:
    """A window of the drafter. Under `rejection`: q(x) of its drafted tokens, float64 `[n]`, and the drafter's warped
    rows, float32 `[n, V]`. The rows travel with the tokens and are not asked for later: a drafter that is lost between
    its draft and a rejection would otherwise leave a rejection that nobody can replace without bias."""

    window: Window
    chances: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Passing:
    """A window on its way through the verifiers, with the hidden states `[n, C]` behind the layers so far (none where
    it has no tokens), and what its drafter sent along."""

    window: Window
    hidden: Tensor | None
    chances: Tensor | None = None
    rows: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """What to draft with from now on, for all sessions; a window of 0 stops drafting. `acceptance` by index in the
    window, as measured, where it is known; it ranks hedges."""

    window: int
    depth: int
    hedge: int
    acceptance: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Cancel:
    """A session is over; whoever holds state of it frees it. Sent down the verifiers behind everything else. The KV of
    `parked`, its first tokens, is written to a file before."""

    session: int
    reason: FinishReason = FinishReason.cancelled
    length: int = -1
    parked: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Failed:
    """A session can't go on at a run of layers between the first and the last; the last one is to end it."""

    session: int


@dataclass(frozen=True, slots=True)
class Ask:
    """What did drafting cost lately? Answered at once, by a `Pace` with the same stamp."""

    stamp: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What the drafter measured since the last one: (branches, microseconds) of steps, and for rollbacks that could
    have been hedged (whether the refill was ready, depth, hedge width)."""

    stamp: int
    steps: tuple[tuple[int, int], ...] = ()
    refills: tuple[tuple[bool, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Kept:
    """So many verifiers in a row have written the KV of a session that is over to their files. It goes round behind the
    session's cancel, and comes back to the first."""

    session: int
    ranks: int


Message = Opened | Drafted | Passing | Settings | Cancel | Verdict | Ask | Pace | Failed | Kept
_KINDS: dict[type, int] = {
    Opened: 0, Drafted: 1, Passing: 2, Settings: 3, Cancel: 4, Verdict: 5, Ask: 6, Pace: 7,
    Failed: 8, Kept: 9,
}  # fmt: skip


def pack(messages: Sequence[Message]) -> tuple[Tensor, ...]:
    """The tensors of one item."""
    ints: list[int] = []
    tensors: list[Tensor] = []
    for message in messages:
        body = _ints(message, tensors)
        ints += [_KINDS[type(message)], len(body), *body]
    return torch.tensor(ints, dtype=torch.int64), *tensors


def message_bytes(message: Message) -> int:
    """Bytes that a message adds to an item."""
    tensors: list[Tensor] = []
    body = _ints(message, tensors)
    return 8 * (2 + len(body)) + sum(tensor.nbytes for tensor in tensors)


def unpack(tensors: Sequence[Tensor]) -> Iterator[Message]:
    """The messages of an item. Raises `SpeculationError` for what is none."""
    if not tensors or tensors[0].dtype != torch.int64 or tensors[0].dim() != 1:
        raise SpeculationError("an item that is no batch of messages; start all ranks from one version")
    ints: list[int] = tensors[0].tolist()
    rest = iter(tensors[1:])
    at = 0
    try:
        while at < len(ints):
            kind, length = ints[at : at + 2]
            body = ints[at + 2 : at + 2 + length]
            if len(body) != length:
                raise ValueError("cut off")
            yield _message(kind, body, rest)
            at += 2 + length
    except (ValueError, IndexError, StopIteration) as error:
        raise SpeculationError(f"a message that can't be read ({error}); start all ranks from one version") from error


def _window(w: Window) -> list[int]:
    return [w.session, w.epoch, w.start, w.known, int(w.bonus), w.offset, *w.tokens]


def _window_of(b: Sequence[int]) -> Window:
    return Window(b[0], b[1], b[2], tuple(b[6:]), b[3], bool(b[4]), b[5])


def _ints(message: Message, tensors: list[Tensor]) -> list[int]:
    match message:
        case Opened(session, limit, seed, tokens, forwarded, epoch):
            return [session, limit, *_halves(seed), forwarded, epoch, *tokens]
        case Drafted(window, chances, rows):
            return [_carry(tensors, chances, rows), *_window(window)]
        case Passing(window, hidden, chances, rows):
            return [_carry(tensors, hidden, chances, rows), *_window(window)]
        case Settings(width, depth, hedge, acceptance):
            return [width, depth, hedge, *(round(share * _MILLION) for share in acceptance)]
        case Ask(stamp):
            return [stamp]
        case Pace(stamp, steps, refills):
            flat = [number for step in steps for number in step]
            return [stamp, len(steps), *flat, *(int(number) for refill in refills for number in refill)]
        case Cancel(session, reason, length, parked):
            return [session, _FINISH.index(reason), length, *parked]
        case Failed(session):
            return [session]
        case Kept(session, ranks):
            return [session, ranks]
        case Verdict() as v:
            finish = -1 if v.finish is None else _FINISH.index(v.finish)
            return [
                v.session, v.epoch, v.window_start, v.length, v.forwarded, v.accepted, v.judged, int(v.rejected),
                v.closed, v.drafted, v.offset, finish, *v.tokens,
            ]  # fmt: skip


def _carry(tensors: list[Tensor], *parts: Tensor | None) -> int:
    """Add the parts that are there; returns which are, as bits."""
    tensors += [part for part in parts if part is not None]
    return sum(1 << index for index, part in enumerate(parts) if part is not None)


def _message(kind: int, b: Sequence[int], rest: Iterator[Tensor]) -> Message:
    match kind:
        case 0:
            return Opened(b[0], b[1], b[2] | b[3] << 32, tuple(b[6:]), b[4], b[5])
        case 1:
            chances, rows = _taken(b[0], 2, rest)
            return Drafted(_window_of(b[1:]), chances, rows)
        case 2:
            hidden, chances, rows = _taken(b[0], 3, rest)
            return Passing(_window_of(b[1:]), hidden, chances, rows)
        case 3:
            return Settings(b[0], b[1], b[2], tuple(share / _MILLION for share in b[3:]))
        case 4:
            return Cancel(b[0], _FINISH[b[1]], b[2], tuple(b[3:]))
        case 5:
            return Verdict(
                session=b[0], epoch=b[1], window_start=b[2], length=b[3], forwarded=b[4], accepted=b[5], judged=b[6],
                rejected=bool(b[7]), closed=b[8], drafted=b[9], offset=b[10],
                finish=None if b[11] < 0 else _FINISH[b[11]], tokens=tuple(b[12:]),
            )  # fmt: skip
        case 6:
            return Ask(b[0])
        case 7:
            cut = 2 + 2 * b[1]
            steps = tuple((b[at], b[at + 1]) for at in range(2, cut, 2))
            return Pace(b[0], steps, tuple((bool(b[at]), b[at + 1], b[at + 2]) for at in range(cut, len(b), 3)))
        case 8:
            return Failed(b[0])
        case 9:
            return Kept(b[0], b[1])
    raise ValueError(f"kind {kind}")


def _taken(bits: int, count: int, rest: Iterator[Tensor]) -> list[Tensor | None]:
    return [next(rest) if bits >> index & 1 else None for index in range(count)]


def _halves(value: int) -> tuple[int, int]:
    return value & 0xFFFFFFFF, value >> 32
