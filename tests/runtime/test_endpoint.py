"""What a rank sees when another one dies, leaves, hangs or lies. Real processes, real signals."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch
import zmq

from paceline.pipeline.network import NetworkSpec
from paceline.pipeline.placement import Route
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import ChannelError, CreditError, MisroutedError, PeerLost
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.wire import CreditReturn as Credit
from paceline.runtime.wire import Data, Returned, TensorSpec, encode
from paceline.stages.item import Item, Key
from tests.harness import Ranks, run_ranks
from tests.runtime.pairs import connected, get, put, topology, until

remote = pytest.mark.parametrize("via", ["zmq", "dist"])


def here(network: NetworkSpec) -> Rendezvous:
    """The rendezvous of a rank that the harness started."""
    return Rendezvous.open(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), None, network)


# -- what the ranks run ------------------------------------------------------------------------------------------------


def ring(via: str, rounds: int) -> None:
    """Each rank sends to the next; what arrives goes on with the rank added, until it has gone round."""
    torch.set_num_threads(1)
    size = int(os.environ["WORLD_SIZE"])
    spec = topology(via, ranks=size)
    with Endpoint(here(spec.network), spec, [Route(0, rank, (rank + 1) % size) for rank in range(size)]) as endpoint:
        endpoint.start()
        me = endpoint.rank
        for number in range(rounds):
            put(endpoint, (me + 1) % size, Item(Key(0, me, number), (torch.full((1000,), me),)))
            source = (me - 1) % size
            got = get(endpoint, Key(0, source, number)).tensors[0]
            assert torch.equal(got, torch.full((1000,), source))
        if me:
            endpoint.control(0, "done", bytes([me]))
        else:
            done: set[int] = set()
            while len(done) < size - 1:
                seen = endpoint.version
                done |= {payload[0] for _, kind, payload in endpoint.controls() if kind == "done"}
                if len(done) < size - 1:
                    endpoint.wait(seen, 10)
            for rank in range(1, size):
                endpoint.control(rank, "stop")
        until(endpoint, lambda: me == 0 or any(kind == "stop" for _, kind, _ in endpoint.controls()))
    assert endpoint.hung == []
    print("ring is closed")


def wait_for_a_peer_that_fails(via: str, how: str) -> None:
    """Rank 0 sends one item, then ends as told. Rank 1 takes it and waits for one more."""
    spec = topology(via)
    with Endpoint(here(spec.network), spec, [Route(0, 0, 1)]) as endpoint:
        endpoint.start()
        if endpoint.rank == 0:
            endpoint.send(1, Item(Key(0, 0, 0), (torch.ones(3),)))
            until(endpoint, lambda: endpoint.can_send(0, 1, 0, 4, 0))
            print("sent", flush=True)
            if how == "raise":
                raise ValueError("the stage broke")
            time.sleep(60)
        get(endpoint, Key(0, 0, 0))
        print("got one", flush=True)
        seen = endpoint.version
        started = time.monotonic()
        try:
            endpoint.wait(seen, 30)
        except PeerLost as error:
            print(f"lost rank {error.rank} after {time.monotonic() - started:.2f} s: {error}", flush=True)
            return
        print("woke up without an error")


def send_while_the_peer_hangs(via: str) -> None:
    """Rank 1 is stopped by a signal while rank 0 sends all it has credit for; later rank 1 goes on."""
    spec = topology(via, inflight=4)
    with Endpoint(here(spec.network), spec, [Route(0, 0, 1)]) as endpoint:
        endpoint.start()
        big = torch.arange(1 << 18)
        if endpoint.rank == 0:
            print("ready", flush=True)
            time.sleep(0.5)
            started = time.monotonic()
            for position in range(4):
                endpoint.send(1, Item(Key(0, 0, position), (big,)))
            print(f"sent in {time.monotonic() - started:.3f} s", flush=True)
            until(endpoint, lambda: endpoint.can_send(0, 1, 0, 4, 0), 30)
            print("all credit is back", flush=True)
            return
        print("ready", flush=True)
        for position in range(4):
            assert torch.equal(get(endpoint, Key(0, 0, position)).tensors[0], big)
        until(endpoint, lambda: 0 in endpoint.departed)


# -- the tests ---------------------------------------------------------------------------------------------------------


def test_three_ranks_pass_items_round_and_part() -> None:
    logs = run_ranks(3, ring, "dist", 20)
    assert all("ring is closed" in log for log in logs)


@pytest.mark.parametrize(("via", "how"), [("zmq", "kill"), ("dist", "kill"), ("zmq", "raise")])
def test_the_loss_of_a_peer_is_named_and_quick(via: str, how: str) -> None:
    with Ranks(2, wait_for_a_peer_that_fails, [via, how]) as ranks:
        ranks.until("got one", [1])
        if how == "kill":
            ranks.kill(0)
        ended = ranks.wait(20, check=False)
    assert ended[1].code == 0, ended[1].log
    assert "lost rank 0 after" in ended[1].log
    seconds = float(ended[1].log.split("after ")[1].split(" s")[0])
    assert seconds < 5
    if how == "raise":
        assert "it failed: ValueError: the stage broke" in ended[1].log


@remote
def test_a_peer_that_hangs_is_no_loss_and_blocks_no_sender(via: str) -> None:
    with Ranks(2, send_while_the_peer_hangs, [via]) as ranks:
        ranks.until("ready")
        ranks.kill(1, signal.SIGSTOP)
        ranks.until("sent in", [0])
        assert float(ranks.log(0).split("sent in ")[1].split(" s")[0]) < 0.4
        time.sleep(0.5)
        assert "all credit" not in ranks.log(0)
        ranks.kill(1, signal.SIGCONT)
        ranks.wait(20)


def test_one_rank_opens_nothing() -> None:
    before = len(os.listdir("/proc/self/fd"))
    with Endpoint(Rendezvous.open(0, 1, None, NetworkSpec(), {}), topology("dist", ranks=1), [Route(0, 0, 0)]) as end:
        end.start()
        assert len(os.listdir("/proc/self/fd")) == before
        end.control(0, "note", b"x")
        assert end.controls() == [(0, "note", b"x")]
        with pytest.raises(MisroutedError, match="no rank 1"):
            end.control(1, "note")


def test_controls_arrive_in_order_and_wake() -> None:
    with connected(topology("zmq")) as ends:
        for number in range(20):
            ends.source.control(1, "n", bytes([number]) * 100_000)
        seen: list[tuple[int, str, bytes]] = []
        until(ends.target, lambda: len(seen.__iadd__(ends.target.controls())) == 20)
        assert seen == [(0, "n", bytes([number]) * 100_000) for number in range(20)]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        ([b"noise"], "not a message"),
        ([encode(Data(7, 0, 0, 0, 0, 0, False, None, (), {}))], "edge 7"),
        ([encode(Data(1, 0, 0, 0, 0, 0, False, None, (), {}))], "edge 1"),
        ([encode(Data(0, 0, 0, 0, 0, 0, True, None, (), {}))], "does not come that way"),
        ([encode(Data(0, 0, 0, 0, 0, 5, False, None, (), {}))], "lost or repeated"),
        ([encode(Data(0, 0, 0, 0, 0, 0, False, None, (TensorSpec(0, (2**40,), 2**42),), {})), b""], "max_message"),
        ([encode(Credit((Returned(1, 0, 1, 0),)))], "came back"),
        ([encode(Credit((Returned(0, 0, 1, 0),)))], "does not go there"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_peer_that_lies_is_refused_by_name(frames: list[bytes], words: str) -> None:
    """Straight onto the wire, past the checks of the sender."""
    with connected(topology("zmq")) as ends:
        assert ends.source._links is not None
        ends.source._links.mesh.send(1, frames)
        with pytest.raises(ChannelError, match=f"rank 0.*{words}"):
            until(ends.target, lambda: False, 5)
        with pytest.raises(ChannelError):
            ends.target.send(0, Item(Key(1, 0, 0)))


def test_a_stranger_is_ignored() -> None:
    with connected(topology("zmq"), hosts=("h", "other")) as ends:
        assert ends.target._links is not None
        mesh = ends.target._links.mesh
        address = mesh._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        assert address.startswith("tcp://127.0.0.1:")
        with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
            stranger.linger = 500
            stranger.identity = b"0123456789abcdef" + (0).to_bytes(4, "big")
            stranger.connect(address)
            stranger.send_multipart([encode(Data(0, 0, 0, 0, 0, 0, False, None, (), {}))])
            deadline = time.monotonic() + 5
            while mesh.strangers == 0 and time.monotonic() < deadline:
                ends.target.pump()
        assert mesh.strangers == 1
        assert not ends.target.has(Key(0, 0, 0))
        ends.send(Item(Key(0, 0, 0)))
        get(ends.target, Key(0, 0, 0))


def test_a_route_must_fit_its_edge() -> None:
    endpoint = Endpoint(Rendezvous(0, 1), topology("zmq", ranks=1), [Route(0, 0, 1)])
    with pytest.raises(ChannelError, match="leaves the world"), endpoint:
        endpoint.start()
    with Endpoint(Rendezvous(0, 1), topology("zmq", ranks=1), []) as endpoint:
        endpoint.start()
        with pytest.raises(ChannelError, match="make a new one"):
            endpoint.start()


def test_credit_errors_are_the_callers_and_break_nothing() -> None:
    with connected(topology("zmq", inflight=1)) as ends:
        ends.send(Item(Key(0, 0, 0)))
        with pytest.raises(CreditError):
            ends.send(Item(Key(0, 0, 1)))
        get(ends.target, Key(0, 0, 0))
        put(ends.source, 1, Item(Key(0, 0, 1)))
        get(ends.target, Key(0, 0, 1))
