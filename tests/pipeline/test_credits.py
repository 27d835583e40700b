from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule

from paceline.pipeline.credits import CreditError, CreditLedger


class AnyInterleaving(RuleBasedStateMachine):
    """Sends of several sessions and returns of single items or batches, in any order, against a plain list."""

    sent = Bundle("sent")

    @initialize(items=st.integers(1, 5), nbytes=st.integers(1, 40))
    def edge(self, items: int, nbytes: int) -> None:
        self.ledger = CreditLedger(items, nbytes)
        self.inflight: list[tuple[int, int]] = []
        self.peaks = (0, 0)

    def held(self, session: int) -> tuple[int, int]:
        sizes = [nbytes for owner, nbytes in self.inflight if owner == session]
        return len(sizes), sum(sizes)

    @rule(target=sent, session=st.integers(0, 2), nbytes=st.integers(0, 40))
    def send(self, session: int, nbytes: int) -> tuple[int, int] | None:
        items, total = self.held(session)
        if nbytes > self.ledger.max_bytes:
            with pytest.raises(CreditError, match="never"):
                self.ledger.can_send(session, 1, nbytes)
            with pytest.raises(CreditError, match="never"):
                self.ledger.on_send(session, nbytes)
            return None
        room = items + 1 <= self.ledger.max_items and total + nbytes <= self.ledger.max_bytes
        assert self.ledger.can_send(session, 1, nbytes) is room
        if not room:
            with pytest.raises(CreditError, match="no credit"):
                self.ledger.on_send(session, nbytes)
            return None
        self.ledger.on_send(session, nbytes)
        self.inflight.append((session, nbytes))
        self.peaks = max(self.peaks[0], items + 1), max(self.peaks[1], total + nbytes)
        return session, nbytes

    @rule(item=consumes(sent))
    def take(self, item: tuple[int, int] | None) -> None:
        if item is not None:
            self.ledger.on_return(item[0], 1, item[1])
            self.inflight.remove(item)

    @rule(session=st.integers(0, 2), extra=st.sampled_from([(1, 0), (0, 1), (1, 1)]))
    def return_too_much(self, session: int, extra: tuple[int, int]) -> None:
        items, total = self.held(session)
        with pytest.raises(CreditError, match="came back"):
            self.ledger.on_return(session, items + extra[0], total + extra[1])

    @invariant()
    def within_limits_and_equal_to_the_list(self) -> None:
        for session in range(3):
            items, nbytes = self.ledger.inflight(session)
            assert (items, nbytes) == self.held(session)
            assert items <= self.ledger.max_items and nbytes <= self.ledger.max_bytes
        seen = self.ledger.statistics()
        assert (seen.items, seen.bytes) == (len(self.inflight), sum(nbytes for _, nbytes in self.inflight))
        assert seen.sessions == len({session for session, _ in self.inflight})
        assert (seen.peak_items, seen.peak_bytes) == self.peaks


TestAnyInterleaving = AnyInterleaving.TestCase


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_a_batch_is_returned_at_once(sizes: list[int]) -> None:
    ledger = CreditLedger(6, 54)
    for nbytes in sizes:
        ledger.on_send(7, nbytes)
    ledger.on_return(7, len(sizes), sum(sizes))
    assert ledger.inflight(7) == (0, 0)
    assert ledger.statistics().sessions == 0


def test_a_group_that_never_fits_is_an_error_and_not_a_wait() -> None:
    ledger = CreditLedger(2, 100, "edge 3 to rank 1")
    with pytest.raises(CreditError, match=r"edge 3 to rank 1: 3 item\(s\) of 30 bytes can never .* raise `inflight`"):
        ledger.can_send(0, 3, 30)
    assert ledger.can_send(0, 2, 100)


def test_all_items_back_but_not_all_bytes_is_an_error() -> None:
    ledger = CreditLedger(2, 100)
    ledger.on_send(0, 10)
    with pytest.raises(CreditError, match="counted wrong"):
        ledger.on_return(0, 1, 9)
    assert ledger.inflight(0) == (1, 10)


def test_sessions_do_not_share_credit() -> None:
    ledger = CreditLedger(1, 10)
    ledger.on_send(0, 10)
    assert not ledger.can_send(0, 1, 0)
    assert ledger.can_send(1, 1, 10)
    assert ledger.statistics().refusals == 1


@pytest.mark.parametrize(("items", "nbytes"), [(0, 1), (1, 0), (-1, 5)])
def test_an_edge_without_room_is_refused(items: int, nbytes: int) -> None:
    with pytest.raises(CreditError, match="at least 1"):
        CreditLedger(items, nbytes)


@pytest.mark.parametrize(("items", "nbytes"), [(0, 1), (1, -1)])
def test_nothing_can_neither_be_sent_nor_come_back(items: int, nbytes: int) -> None:
    ledger = CreditLedger(2, 100)
    ledger.on_send(0, 10)
    with pytest.raises(CreditError):
        ledger.on_send(0, nbytes, items)
    with pytest.raises(CreditError):
        ledger.on_return(0, items, nbytes)
    assert ledger.inflight(0) == (1, 10)
