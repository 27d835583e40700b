"""Messages between two ranks: all of them, in order, in batches that fit, however little credit there is."""

from __future__ import annotations

import time

import pytest
import torch

from paceline.pipeline.speculation.window import Window
from paceline.runtime.language.mailbox import Mailbox
from paceline.runtime.language.messages import HiddenStates, Message, SessionEnd, session_of
from tests.runtime.pairs import Ends, connected, topology


def session(message: Message) -> int:
    found = session_of(message)
    assert found is not None
    return found


def passed_on(ends: Ends, sender: Mailbox, receiver: Mailbox, count: int) -> list[Message]:
    got: list[Message] = []
    deadline = time.monotonic() + 20
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} came"
        sender.send()
        ends.target.pump()
        found = receiver.take()
        assert {(edge, source) for edge, source, _ in found} <= {(0, 0)}
        got += [message for _, _, message in found]
        ends.target.flush()
        ends.source.pump()
    return got


@pytest.mark.parametrize(("inflight", "nbytes"), [(1, 1 << 20), (3, 8192), (64, 1 << 20)])
def test_everything_arrives_in_order(inflight: int, nbytes: int) -> None:
    with connected(topology("zmq", inflight=inflight, nbytes=nbytes)) as ends:
        sender, receiver = Mailbox(ends.source), Mailbox(ends.target)
        receiver.listen(0, 0)
        sent: list[Message] = []
        for number in range(300):
            window = Window(number % 7, 0, number, (1, 2), 1)
            hidden = torch.full((2, 40), float(number)) if number % 3 else None
            sent.append(HiddenStates(window, hidden) if number % 5 else SessionEnd(number))
        for message in sent:
            sender.put(0, 1, message)
        assert sender.backlog(0, 1) == 300
        got = passed_on(ends, sender, receiver, 300)
        assert not sender.pending
        # In order for each session; those of different sessions may overtake one another.
        for one, other in zip(sorted(sent, key=session), sorted(got, key=session), strict=True):
            assert type(one) is type(other)
            if isinstance(one, HiddenStates) and isinstance(other, HiddenStates):
                assert one.window == other.window
                assert (one.hidden is None) == (other.hidden is None)
                assert one.hidden is None or torch.equal(one.hidden, other.hidden)  # type: ignore[arg-type]
            else:
                assert one == other
        # Batches, not an item for each; and never more than fits into half an edge.
        items = ends.source.statistics()[0].sent_items
        assert 300 / 64 <= items < 300
        assert ends.source.statistics()[0].peak_items <= inflight
        assert ends.source.statistics()[0].peak_bytes <= nbytes


def test_a_session_without_credit_keeps_no_other_from_sending() -> None:
    with connected(topology("zmq", inflight=1)) as ends:
        sender, receiver = Mailbox(ends.source), Mailbox(ends.target)
        receiver.listen(0, 0)
        for number in (0, 0, 1, 2):
            sender.put(0, 1, HiddenStates(Window(number, 0, 0, (1,), 1), torch.zeros(1, 4)))
            sender.send()
        assert sender.backlog(0, 1) == 1, "the second message of session 0 alone has to wait"
        assert ends.source.statistics()[0].sent_items == 3
        assert sorted(map(session, passed_on(ends, sender, receiver, 4))) == [0, 0, 1, 2]
        assert not sender.pending


def test_there_is_room_until_one_item_s_worth_waits() -> None:
    with connected(topology("zmq", inflight=1)) as ends:
        sender, receiver = Mailbox(ends.source), Mailbox(ends.target)
        receiver.listen(0, 0)
        sender.put(0, 1, SessionEnd(5))
        sender.send()
        produced = 0
        while sender.has_room(0, 1, 5):
            sender.put(0, 1, SessionEnd(5))
            produced += 1
        assert produced == 64
        assert sender.has_room(0, 1, 6)
        assert len(passed_on(ends, sender, receiver, 65)) == 65
        assert sender.has_room(0, 1, 5)


def test_what_goes_to_a_lost_rank_is_dropped() -> None:
    with connected(topology("zmq", inflight=1)) as ends:
        sender = Mailbox(ends.source)
        for number in range(5):
            sender.put(0, 1, SessionEnd(number))
        ends.source.lost.add(1)
        sender.send()
        assert (sender.pending, sender.backlog(0, 1)) == (False, 0)
        ends.source.lost.clear()
        sender.put(0, 1, SessionEnd(5))
        sender.drop(1)
        assert not sender.pending
