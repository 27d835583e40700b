"""Which end explains the others."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from paceline.launch.failure import End, Failure, cause_of
from paceline.runtime.errors import ChannelError, PeerLost, RendezvousError, StageError


def raised(error: Exception, cause: Exception | None = None) -> Exception:
    """The error as it is when caught."""
    try:
        raise error from cause
    except Exception as caught:
        return caught


STAGE = End(0, "rank 0", 1, Failure.of(0, raised(StageError("step1", 0, 2, 7, ValueError("x")), ValueError("x"))))
KILLED = End(1, "rank 1", -9)
SILENT = End(2, "rank 2", 3)
CHANNEL = End(3, "rank 3", 1, Failure.of(3, raised(ChannelError("gloo broke"))))
LATE = End(4, "rank 4", 1, Failure.of(4, raised(RendezvousError("rank 1 did not come", [1]))))
PEER = End(5, "rank 5", 1, Failure.of(5, raised(PeerLost(1, "gone"))))
# The transport's error in a stage, such as a stage that sends by itself, is still about the peer.
WRAPPED = End(6, "rank 6", 1, Failure.of(6, raised(StageError("step1", 6, 0, 0, PeerLost(1, "x")), PeerLost(1, "x"))))

ORDER = [[STAGE], [KILLED], [SILENT], [CHANNEL, LATE], [PEER, WRAPPED]]


@given(
    st.permutations([end for level in ORDER for end in level]).flatmap(
        lambda ends: st.tuples(st.just(ends), st.integers(1, 7))
    )
)
def test_the_heaviest_is_the_cause_whatever_the_order(drawn: tuple[list[End], int]) -> None:
    ends, count = drawn
    some = ends[:count]
    heaviest = next(level for level in ORDER if any(end in some for end in level))
    assert cause_of(some) == next(end for end in some if end in heaviest)


def test_only_what_nothing_else_can_explain_is_conclusive() -> None:
    assert [end.conclusive for level in ORDER for end in level] == [True, True, False, False, False, False, False]


def test_an_account_is_read_back(tmp_path: Path) -> None:
    account = STAGE.failure
    assert account is not None
    account.write(tmp_path)
    assert Failure.read(tmp_path, 0) == account
    assert (account.stage, account.session, account.frame, account.error) == ("step1", 2, 7, "StageError")
    assert "ValueError: x" in account.traceback
    assert Failure.read(tmp_path, 1) is None


def test_half_an_account_is_none(tmp_path: Path) -> None:
    (tmp_path / "failure-0.json").write_text('{"rank": 0, "err')
    assert Failure.read(tmp_path, 0) is None


def test_messages() -> None:
    assert str(STAGE) == "rank 0 failed: stage step1 on rank 0 failed at session 2, frame 7: ValueError: x"
    assert str(KILLED).startswith("rank 1 was killed by SIGKILL (")
    assert str(CHANNEL) == "rank 3 failed: ChannelError: gloo broke"
