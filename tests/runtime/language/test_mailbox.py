"""Messages between two ranks: all of them, in order, in batches that fit, however little credit there is."""

from __future__ import annotations

import time

import pytest
import torch

from paceline.pipeline.speculation.window import Window
from paceline.runtime.language.mailbox import Mailbox
from paceline.runtime.language.messages import Cancel, Message, Passing
from tests.runtime.pairs import Ends, connected, topology


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
            sent.append(Passing(window, hidden) if number % 5 else Cancel(number))
        for message in sent:
            sender.put(0, 1, message)
        assert sender.backlog(0, 1) == 300
        got = passed_on(ends, sender, receiver, 300)
        assert not sender.pending
        for one, other in zip(sent, got, strict=True):
            assert type(one) is type(other)
            if isinstance(one, Passing) and isinstance(other, Passing):
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


def test_what_goes_to_a_lost_rank_is_dropped() -> None:
    with connected(topology("zmq", inflight=1)) as ends:
        sender = Mailbox(ends.source)
        for number in range(5):
            sender.put(0, 1, Cancel(number))
        ends.source.lost.add(1)
        sender.send()
        assert (sender.pending, sender.backlog(0, 1)) == (False, 0)
        ends.source.lost.clear()
        sender.put(0, 1, Cancel(5))
        sender.drop(1)
        assert not sender.pending
