"""One contract, three transports."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from paceline.pipeline.topology import Transport
from paceline.runtime.errors import ChannelError, CreditError, MisroutedError, OversizedError, UnsupportedError
from paceline.runtime.wire import DTYPES
from paceline.stages.item import Item, Key
from tests.runtime.pairs import MIB, Ends, connected, get, put, topology, until
from tests.runtime.test_wire import same_bits, tensor_of

VIAS = ["local", "zmq", "dist"]
remote = pytest.mark.parametrize("via", ["zmq", "dist"])
"""For what can't happen on one rank."""


@pytest.fixture(scope="module", params=VIAS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    """Shared by the tests that leave nothing in flight; each uses a session of its own."""
    with connected(topology(request.param)) as pair:
        yield pair


@pytest.fixture(params=VIAS)
def via(request: pytest.FixtureRequest) -> str:
    return str(request.param)


_sessions = iter(range(1, 10_000))


def items(session: int, count: int, *tensors: torch.Tensor) -> Iterator[Item]:
    for position in range(count):
        yield Item(Key(0, session, position), tensors or (torch.tensor([session, position]),), {"n": position})


def test_items_come_in_order_once_and_whole(ends: Ends) -> None:
    session, count = next(_sessions), 200
    order: list[int] = []

    def receive() -> None:
        for position in range(count):
            got = get(ends.target, Key(0, session, position))
            assert got.tensors[0].tolist() == [session, position]
            order.append(int(got.meta["n"]))

    if ends.source is ends.target:
        for item in items(session, count):
            put(ends.source, 0, item)
            got = ends.target.take(item.key)
            order.append(int(got.meta["n"]))
    else:
        receiver = threading.Thread(target=receive)
        receiver.start()
        for item in items(session, count):
            put(ends.source, ends.target.rank, item)
        receiver.join()
    assert order == list(range(count))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_is_bit_equal(ends: Ends, dtype: torch.dtype) -> None:
    session = next(_sessions)
    sent = (tensor_of(dtype, 5, 3), tensor_of(dtype), tensor_of(dtype, 0, 4), tensor_of(dtype, 4, 4).t())
    ends.send(Item(Key(0, session, 0), sent))
    got = get(ends.target, Key(0, session, 0)).tensors
    assert all(same_bits(a.contiguous(), b) for a, b in zip(sent, got, strict=True))
    for tensor in got:
        assert tensor.is_contiguous() and tensor.data_ptr() % 64 == 0


@pytest.mark.parametrize(
    "sizes",
    [[4 * MIB], [], [0], [0, 0, 0], [1] * 300, [4 * MIB, 0, 1, 3 * MIB + 1]],
    ids=lambda s: f"{len(s)}-{sum(s)}",
)
def test_big_empty_and_many_tensors(ends: Ends, sizes: list[int]) -> None:
    session = next(_sessions)
    sent = tuple(torch.arange(size, dtype=torch.int64).to(torch.uint8) for size in sizes)
    ends.send(Item(Key(0, session, 0, 9), sent))
    got = get(ends.target, Key(0, session, 0, 9)).tensors
    assert len(got) == len(sent) and all(map(torch.equal, sent, got))


def test_key_meta_and_epoch_arrive(ends: Ends) -> None:
    session = next(_sessions)
    ends.target.open_epoch(session, 3)
    ends.send(Item(Key(0, session, 2**40, 77), (), {"late": 1, "ms": 0.5, "why": "x"}, epoch=3))
    got = get(ends.target, Key(0, session, 2**40, 77))
    assert (got.key, got.meta, got.epoch) == (Key(0, session, 2**40, 77), {"late": 1, "ms": 0.5, "why": "x"}, 3)


def test_without_credit_nothing_is_sent(ends: Ends) -> None:
    session = next(_sessions)
    for item in items(session, 4):
        ends.send(item)
    assert not ends.can_send(1, 0, session)
    assert ends.can_send(4, 0, session + 1_000_000), "another session has no credit"
    with pytest.raises(CreditError, match="ask can_send first"):
        ends.send(Item(Key(0, session, 4)))
    for position in range(4):
        get(ends.target, Key(0, session, position))
        until(ends.source, partial(ends.can_send, position + 1, 0, session))
    assert not ends.target.has(Key(0, session, 4))


def test_bytes_are_bounded_too(ends: Ends) -> None:
    session = next(_sessions)
    big = torch.zeros(24 * MIB, dtype=torch.uint8)
    ends.send(Item(Key(0, session, 0), (big,)))
    ends.send(Item(Key(0, session, 1), (big,)))
    assert ends.can_send(1, 16 * MIB, session)
    assert not ends.can_send(1, 16 * MIB + 1, session)
    with pytest.raises(CreditError, match="never"):
        ends.can_send(1, 64 * MIB + 1, session)
    get(ends.target, Key(0, session, 0))
    until(ends.source, lambda: ends.can_send(1, 40 * MIB, session))
    get(ends.target, Key(0, session, 1))


def test_items_of_an_old_epoch_are_discarded_and_their_credit_returns(ends: Ends) -> None:
    session = next(_sessions)
    before = ends.target.discarded().get(0, 0)
    for item in items(session, 3):
        ends.send(item)
    until(ends.target, lambda: ends.target.has(Key(0, session, 2)))
    assert ends.target.open_epoch(session, 1) == 3
    until(ends.source, lambda: ends.can_send(4, 0, session))
    ends.send(Item(Key(0, session, 3), (torch.ones(3),), epoch=0))
    ends.send(Item(Key(0, session, 3), (torch.ones(5),), epoch=1))
    assert get(ends.target, Key(0, session, 3)).tensors[0].numel() == 5
    until(ends.source, lambda: ends.can_send(4, 0, session))
    assert ends.target.discarded()[0] - before == 4


def test_take_all_returns_every_credit(ends: Ends) -> None:
    session = next(_sessions)
    keys = []
    for item in items(session, 4, torch.ones(10)):
        ends.send(item)
        keys.append(item.key)
    until(ends.target, lambda: all(map(ends.target.has, keys)))
    assert [item.key for item in ends.target.take_all(keys)] == keys
    until(ends.source, lambda: ends.can_send(4, 0, session))


@remote
def test_what_cannot_travel_costs_no_credit(via: str) -> None:
    with connected(topology(via, inflight=1)) as ends:
        with pytest.raises(UnsupportedError, match="complex128"):
            ends.send(Item(Key(0, 0, 0), (torch.zeros(2, dtype=torch.complex128),)))
        ends.send(Item(Key(0, 0, 0), (torch.zeros(2),)))
        get(ends.target, Key(0, 0, 0))


def test_an_item_over_the_cap_is_refused_by_the_sender(via: str) -> None:
    with connected(topology(via, max_message=MIB)) as ends, pytest.raises(OversizedError, match="max_message"):
        ends.send(Item(Key(0, 0, 0), (torch.zeros(MIB + 1, dtype=torch.uint8),)))


def test_an_unknown_route_is_named(ends: Ends) -> None:
    with pytest.raises(MisroutedError, match="no route by edge 1 "):
        ends.source.send(5, Item(Key(1, 0, 0)))


def test_taking_what_has_not_come_is_an_error(ends: Ends) -> None:
    with pytest.raises(ChannelError, match="has not arrived"):
        ends.target.take(Key(0, 0, 123_456))


def test_the_receiver_is_told_of_a_key_sent_twice(via: str) -> None:
    with connected(topology(via)) as ends:
        ends.send(Item(Key(0, 0, 0)))
        with pytest.raises(ChannelError, match="twice"):
            ends.send(Item(Key(0, 0, 0)))
            until(ends.target, lambda: False)
        if via != "local":
            with pytest.raises(ChannelError, match="rank 0"):
                ends.target.check()


def test_statistics_count_both_sides(via: str) -> None:
    with connected(topology(via)) as ends:
        for item in items(0, 3, torch.zeros(250)):
            ends.send(item)
        until(ends.target, lambda: ends.target.has(Key(0, 0, 2)))
        ends.target.take_all([Key(0, 0, 0), Key(0, 0, 1)])
        until(ends.source, lambda: ends.can_send(3, 0))
        (sent,) = [s for s in ends.source.statistics() if s.route.edge == 0]
        (got,) = [s for s in ends.target.statistics() if s.route.edge == 0]
        assert sent.transport is got.transport is Transport(via)
        assert (sent.sent_items, sent.sent_bytes, sent.peak_items, sent.peak_bytes) == (3, 3000, 3, 3000)
        assert (sent.inflight_items, sent.inflight_bytes) == (1, 1000)
        assert (got.received_items, got.received_bytes, got.returned_items) == (3, 3000, 2)
        (use,) = [use for use in ends.source.uses() if use.edge == 0]
        assert (use.items, use.bytes, use.transport) == (3, 3000, via)


def test_a_sender_that_floods_is_bounded_by_credit(via: str) -> None:
    """Nothing is taken for a while: what is in memory stays at `inflight`, and nothing is lost later."""
    with connected(topology(via, inflight=3)) as ends:
        sent = 0
        for item in items(0, 100):
            if not ends.can_send(1, item.nbytes):
                break
            ends.send(item)
            sent += 1
        until(ends.target, lambda: ends.target.has(Key(0, 0, 2)))
        assert sent == 3 and not ends.can_send(1, 0)
        assert len(ends.target._inbox) == 3
        for position in range(3):
            get(ends.target, Key(0, 0, position))
        until(ends.source, lambda: ends.can_send(3, 0))


@remote
def test_both_ways_at_once(via: str) -> None:
    """Two streams of large items against each other do not block each other."""
    big, count = torch.arange(MIB // 4), 12
    with connected(topology(via, inflight=1)) as ends:

        def work(edge: int, me: int) -> None:
            endpoint = (ends.source, ends.target)[me]
            for position in range(count):
                put(endpoint, 1 - me, Item(Key(edge, 0, position), (big,)))
                assert torch.equal(get(endpoint, Key(1 - edge, 0, position)).tensors[0], big)

        other = threading.Thread(target=work, args=(1, 1))
        other.start()
        work(0, 0)
        other.join()


@remote
def test_close_while_in_flight_delivers_what_was_sent(via: str) -> None:
    """The sender leaves at once after sending; the receiver still gets everything, and no error."""
    with connected(topology(via)) as ends:
        sent = list(items(0, 4, torch.arange(MIB)))
        for item in sent:
            ends.send(item)
        closer = threading.Thread(target=ends.source.close)
        closer.start()
        for item in sent:
            assert torch.equal(get(ends.target, item.key).tensors[0], item.tensors[0])
        closer.join()
        time.sleep(0.5)
        ends.target.check()


def test_close_of_the_receiver_while_in_flight_is_no_error_and_does_not_hang(via: str) -> None:
    with connected(topology(via)) as ends:
        for item in items(0, 4, torch.arange(MIB)):
            ends.send(item)
        started = time.monotonic()
        ends.target.close()
        ends.source.close()
        assert time.monotonic() - started < 6
        assert ends.source.hung == ends.target.hung == []


@contextmanager
def nothing_left() -> Iterator[None]:
    def threads() -> set[str]:
        # pyzmq keeps one thread for zero-copy messages for as long as the process lives.
        return {t.name for t in threading.enumerate() if type(t).__name__ != "GarbageCollectorThread"}

    def sockets() -> int:
        return sum(
            os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in os.listdir("/proc/self/fd") if alive(fd)
        )

    def alive(fd: str) -> bool:
        return os.path.islink(f"/proc/self/fd/{fd}")

    before = threads(), sockets()
    yield
    deadline = time.monotonic() + 3
    while (threads(), sockets()) != before and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (threads(), sockets()) == before


def test_close_leaves_nothing_behind_and_may_be_called_twice(via: str) -> None:
    with connected(topology(via)):
        pass
    with nothing_left(), connected(topology(via)) as ends:
        ends.send(Item(Key(0, 0, 0), (torch.zeros(MIB),)))
        get(ends.target, Key(0, 0, 0))
        ends.source.close()
        ends.target.close()


def test_items_that_differ_only_by_transport_give_the_same_bits() -> None:
    """What a kernel computes from an item must not depend on how it came: strides and alignment included."""
    sent = torch.randn(65, 48).t()[1:, 3:]
    results = []
    for via in VIAS:
        with connected(topology(via)) as ends:
            ends.send(Item(Key(0, 0, 0), (sent,)))
            (got,) = get(ends.target, Key(0, 0, 0)).tensors
            results.append((got.stride(), (got @ got.t()).clone()))
    assert all(stride == results[0][0] and torch.equal(product, results[0][1]) for stride, product in results)
