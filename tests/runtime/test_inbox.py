from __future__ import annotations

import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paceline.runtime.errors import ChannelError
from paceline.runtime.inbox import Inbox
from paceline.stages.item import Item, Key


def item(position: int, epoch: int = 0, session: int = 0, edge: int = 0) -> Item:
    return Item(Key(edge, session, position), (), {"epoch": epoch}, epoch)


def test_an_item_waits_until_it_is_taken_once() -> None:
    inbox = Inbox()
    key = Key(0, 0, 4)
    assert not inbox.has(key)
    assert inbox.put(item(4), 7)
    assert inbox.has(key)
    arrival = inbox.take(key)
    assert (arrival.item.key, arrival.source) == (key, 7)
    assert not inbox.has(key) and len(inbox) == 0
    with pytest.raises(ChannelError, match="ask has"):
        inbox.take(key)


def test_the_same_key_twice_is_an_error() -> None:
    inbox = Inbox()
    inbox.put(item(0), 0)
    with pytest.raises(ChannelError, match="twice"):
        inbox.put(item(0), 0)
    inbox.put(item(1, epoch=3), 0)
    with pytest.raises(ChannelError, match="twice"):
        inbox.put(item(1, epoch=3), 0)


def test_a_new_epoch_discards_the_old_and_reveals_its_own() -> None:
    inbox = Inbox()
    inbox.put(item(0, 0), 0)
    inbox.put(item(0, 0, session=1), 0)
    inbox.put(item(0, 1), 0)
    inbox.put(item(0, 2), 0)
    inbox.put(item(0, 3), 0)
    assert inbox.take(Key(0, 0, 0)).item.epoch == 0
    inbox.put(item(5, 0), 0)
    gone = inbox.open_epoch(0, 2)
    assert sorted((arrival.item.key.position, arrival.item.epoch) for arrival in gone) == [(0, 1), (5, 0)]
    assert inbox.take(Key(0, 0, 0)).item.epoch == 2
    assert not inbox.put(item(9, 1), 0)
    assert not inbox.has(Key(0, 0, 9))
    assert inbox.has(Key(0, 1, 0)), "another session has lost its item"
    assert inbox.discarded == {0: 3}
    assert inbox.open_epoch(0, 3) == []
    assert inbox.take(Key(0, 0, 0)).item.epoch == 3


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_epochs_only_grow(epoch: int) -> None:
    inbox = Inbox()
    inbox.open_epoch(0, 2)
    with pytest.raises(ChannelError, match="only grow"):
        inbox.open_epoch(0, epoch)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("put"), st.integers(0, 3), st.integers(0, 4)),
            st.tuples(st.just("open"), st.just(0), st.integers(1, 4)),
            st.tuples(st.just("take"), st.integers(0, 3), st.just(0)),
        ),
        max_size=40,
    )
)
def test_what_was_put_is_taken_or_discarded_or_still_there(steps: list[tuple[str, int, int]]) -> None:
    """Every credit that an item took finds its way back, whatever the order."""
    inbox, epoch, put, back = Inbox(), 0, 0, 0
    for what, position, number in steps:
        if what == "put":
            try:
                kept = inbox.put(item(position, number), 0)
            except ChannelError:
                continue
            put += 1
            back += not kept
            assert kept is (number >= epoch)
        elif what == "open" and number > epoch:
            epoch = number
            back += len(inbox.open_epoch(0, epoch))
        elif what == "take" and inbox.has(Key(0, 0, position)):
            assert inbox.take(Key(0, 0, position)).item.epoch == epoch
            back += 1
    assert put == back + len(inbox)


def test_a_wait_ends_with_any_change_and_not_before() -> None:
    inbox = Inbox()
    seen = inbox.version
    started = time.monotonic()
    assert inbox.wait(seen, 0.05) == seen
    assert time.monotonic() - started >= 0.05
    for change in (inbox.changed, lambda: inbox.put(item(1), 0), lambda: inbox.open_epoch(0, 1)):
        seen = inbox.version
        timer = threading.Timer(0.02, change)
        timer.start()
        assert inbox.wait(seen, 5) != seen
        timer.join()


def test_no_wake_up_is_lost() -> None:
    """A worker that looks, then waits for what it saw, never sleeps on an item that is there."""
    inbox = Inbox()
    count = 3000

    def deliver(edge: int) -> None:
        for position in range(count):
            inbox.put(item(position, edge=edge), 0)

    threads = [threading.Thread(target=deliver, args=(edge,)) for edge in range(2)]
    for thread in threads:
        thread.start()
    for position in range(count):
        for edge in range(2):
            key = Key(edge, 0, position)
            while True:
                seen = inbox.version
                if inbox.has(key):
                    inbox.take(key)
                    break
                assert inbox.wait(seen, 5) != seen
    for thread in threads:
        thread.join()
    assert len(inbox) == 0
