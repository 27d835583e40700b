"""How ranks come together and part: one topology for all, checksums where bytes leave the machine, last words."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from paceline.pipeline.placement import Route
from paceline.pipeline.topology import SleepTopology
from paceline.runtime.errors import PeerLost, RendezvousError
from paceline.runtime.links import Links
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.wire import Buffer, Message
from tests.harness import free_port
from tests.runtime.pairs import topology

ROUTES = [Route(0, 0, 1), Route(1, 1, 0)]


@dataclass
class Rank:
    """One end, and what it heard."""

    links: Links
    error: BaseException | None = None
    letters: list[tuple[int, Message]] = field(default_factory=list)
    broken: list[tuple[int, BaseException]] = field(default_factory=list)

    def on_letter(self, peer: int, message: Message, frames: Sequence[Buffer]) -> None:
        self.letters.append((peer, message))

    def connect(self) -> None:
        self.links.connect(self.on_letter, lambda peer, error: self.broken.append((peer, error)))

    def close(self) -> None:
        self.links.close()


def together(ranks: Sequence[Rank], step: Callable[[Rank], None]) -> None:
    """Every rank takes a step at once; what it raises is kept."""

    def run(rank: Rank) -> None:
        try:
            step(rank)
        except Exception as error:
            rank.error = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def two(
    tmp_path: Path, specs: Sequence[SleepTopology], hosts: Sequence[str | None] = (None, None), timeout_s: float = 10
) -> list[Rank]:
    port = free_port()
    return [
        Rank(Links(Rendezvous(rank, 2, "127.0.0.1", port, timeout_s, tmp_path, host=hosts[rank]), specs[rank], ROUTES))
        for rank in (0, 1)
    ]


@pytest.mark.parametrize(("hosts", "limit"), [((None, None), 64 * 1024), (("a", "b"), 256 << 20)])
def test_ranks_meet_and_part(tmp_path: Path, hosts: tuple[str | None, str | None], limit: int) -> None:
    """On one machine the folder of the sockets is gone once all are connected; between hosts every item of any size
    has a checksum."""
    ranks = two(tmp_path, [topology("zmq")] * 2, hosts)
    together(ranks, Rank.connect)
    assert [rank.error for rank in ranks] == [None, None]
    assert len(list(tmp_path.glob("s-*"))) == 1
    together(ranks, lambda rank: rank.links.ready())
    assert list(tmp_path.glob("s-*")) == []
    assert [rank.links.checksum_limit for rank in ranks] == [limit, limit]
    # Where no tensors come by dist, the worker receives.
    assert all(rank.links.mesh.adopted for rank in ranks)
    together(ranks, Rank.close)
    assert [rank.error for rank in ranks] == [None, None]
    assert [rank.broken for rank in ranks] == [[], []]


def test_pairs_of_dist_are_joined_each_way(tmp_path: Path) -> None:
    ranks = two(tmp_path, [topology("dist")] * 2)
    together(ranks, Rank.connect)
    together(ranks, lambda rank: rank.links.ready())
    for rank in ranks:
        assert (list(rank.links.senders), list(rank.links.receivers)) == ([1 - rank.links.rank], [1 - rank.links.rank])
        assert not rank.links.mesh.adopted
    together(ranks, Rank.close)
    assert [rank.error for rank in ranks] == [None, None]


def test_another_topology_is_refused_by_both(tmp_path: Path) -> None:
    ranks = two(tmp_path, [topology("zmq"), topology("zmq", inflight=5)])
    together(ranks, Rank.connect)
    for rank in ranks:
        assert isinstance(rank.error, RendezvousError)
        assert f"rank {1 - rank.links.rank} runs another topology" in str(rank.error)
    for rank in ranks:
        rank.links.close(rank.error)
    assert list(tmp_path.glob("s-*")) == []


def test_who_fails_says_why(tmp_path: Path) -> None:
    ranks = two(tmp_path, [topology("zmq")] * 2)
    together(ranks, Rank.connect)
    together(ranks, lambda rank: rank.links.ready())
    ranks[0].links.close(ValueError("the stage broke"))
    ranks[1].links.mesh.pump(5.0)
    ((peer, error),) = ranks[1].broken
    assert (peer, type(error)) == (0, PeerLost)
    assert "it failed: ValueError: the stage broke" in str(error)
    ranks[1].links.close(error)
