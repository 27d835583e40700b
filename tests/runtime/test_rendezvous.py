from __future__ import annotations

import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

import msgspec
import psutil
import pytest
from torch._C._distributed_c10d import TCPStore

from paceline.pipeline.network import NetworkSpec
from paceline.pipeline.placement import Route
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import RendezvousError
from paceline.runtime.rendezvous import Rendezvous
from paceline.stages.item import Item, Key
from tests.harness import Ranks, free_port
from tests.runtime.pairs import connected, get, put, raise_any, start_all, topology, until


def join_all(ranks: Sequence[Rendezvous]) -> list[BaseException | None]:
    """Join on a thread each; what each raised."""
    errors: list[BaseException | None] = [None] * len(ranks)

    def join(index: int) -> None:
        try:
            ranks[index].join()
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=join, args=(index,)) for index in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def agent_store() -> TCPStore:
    """A store that outlives its ranks, as torchrun's does."""
    return TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=5), wait_for_workers=False)


def clients(port: int, world_size: int, timeout_s: float = 10.0) -> list[Rendezvous]:
    return [Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s, serve=False) for rank in range(world_size)]


def test_ranks_meet_and_exchange() -> None:
    port = free_port()
    ranks = [Rendezvous(rank, 3, "127.0.0.1", port, 10) for rank in range(3)]
    raise_any(join_all(ranks))
    assert len({rank.start_name for rank in ranks}) == 1
    got: dict[int, list[bytes]] = {}
    threads = [
        threading.Thread(target=lambda r=r: got.__setitem__(r.rank, r.gather("x", bytes([r.rank, 0, 255]) * r.rank)))
        for r in ranks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {rank: [b"", b"\x01\x00\xff", b"\x02\x00\xff" * 2] for rank in range(3)}
    for rendezvous in ranks:
        rendezvous.leave()
    for rendezvous in ranks:
        rendezvous.close()


def test_the_store_of_rank_0_listens_on_loopback_only() -> None:
    port = free_port()
    ranks = [Rendezvous(rank, 2, "127.0.0.1", port, 10) for rank in range(2)]
    raise_any(join_all(ranks))
    listening = {
        c.laddr.ip for c in psutil.Process().net_connections("tcp") if c.status == "LISTEN" and c.laddr.port == port
    }
    assert listening == {"127.0.0.1"}
    for rendezvous in ranks:
        rendezvous.leave()
    for rendezvous in ranks:
        rendezvous.close()


@pytest.mark.parametrize("present", [[0], [0, 2], [1], [1, 3], [2, 3]])
def test_the_missing_ranks_are_named(present: list[int]) -> None:
    store = agent_store()
    ranks = [clients(store.port, 4, 0.5)[rank] for rank in present]
    missing = {0, 1, 2, 3} - set(present)
    for error in join_all(ranks):
        assert isinstance(error, RendezvousError)
        # Without rank 0 there is no roll to see the others on.
        assert set(error.missing) == (missing if 0 in present else {0})
        assert all(f"rank {rank}" in str(error) for rank in error.missing)


def test_a_rank_that_drops_out_later_is_named() -> None:
    store = agent_store()
    ranks = clients(store.port, 3, 1.0)
    raise_any(join_all(ranks))
    with pytest.raises(RendezvousError, match=r"waited 1 s for card .*missing: rank 1, rank 2") as caught:
        ranks[0].gather("card", b"x")
    assert caught.value.missing == (1, 2)


def test_no_store_and_a_taken_port_are_explained() -> None:
    with pytest.raises(RendezvousError, match="is rank 0 running"):
        Rendezvous(1, 2, "127.0.0.1", free_port(), 0.5).join()
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(RendezvousError, match="choose another MASTER_PORT"),
    ):
        Rendezvous(0, 2, "127.0.0.1", taken.getsockname()[1], 0.5).join()


@pytest.mark.parametrize(
    ("environment", "words"),
    [({}, "MASTER_ADDR is not set"), ({"MASTER_ADDR": "h", "MASTER_PORT": "x"}, "no number")],
)
def test_an_environment_that_says_nothing_is_explained(environment: dict[str, str], words: str) -> None:
    with pytest.raises(RendezvousError, match=words):
        Rendezvous.open(0, 2, None, NetworkSpec(), environment)
    with pytest.raises(RendezvousError, match="below the world size"):
        Rendezvous.open(2, 2, None, NetworkSpec(), {"MASTER_ADDR": "h", "MASTER_PORT": "1"})


def test_what_dead_starts_left_in_the_store_confuses_nobody() -> None:
    """Starts are cut off at every point that a rank can reach, then a whole one follows on the same store."""
    store, names = agent_store(), set()
    for cut in ([0], [1], [0, 1], [1, 2], [0, 1, 2], [0, 1, 2]):
        dead = clients(store.port, 3, 0.3)
        join_all([dead[rank] for rank in cut])
        names.add(dead[0].start_name)
        ranks = clients(store.port, 3)
        # Late ones first see what the dead have left, rank 0's hail and a full roll included.
        early = [threading.Thread(target=rank.join) for rank in ranks[1:]]
        for thread in early:
            thread.start()
        time.sleep(0.05)
        ranks[0].join()
        for thread in early:
            thread.join()
        assert len({rank.start_name for rank in ranks}) == 1
        assert ranks[0].start_name not in names
        names.add(ranks[0].start_name)


def test_ranks_with_different_topologies_do_not_start() -> None:
    port = free_port()
    ends = [
        Endpoint(Rendezvous(rank, 2, "127.0.0.1", port, 10), topology("zmq", inflight=1 + rank), [Route(0, 0, 1)])
        for rank in (0, 1)
    ]
    errors = start_all(ends)
    assert all(isinstance(error, RendezvousError) for error in errors)
    assert any("another topology" in str(error) for error in errors)
    for end, error in zip(ends, errors, strict=True):
        end.close(error)


def test_sockets_lie_in_a_private_folder_that_is_gone_once_connected() -> None:
    """Seen from a rank 1 that reads what rank 0 announces, and then leaves it alone."""
    run_dir = Path(tempfile.mkdtemp(dir="/tmp", prefix="t-"))
    port = free_port()
    end = Endpoint(Rendezvous(0, 2, "127.0.0.1", port, 1.0, run_dir, host="h"), topology("zmq"), [])
    failed: list[BaseException | None] = []
    starter = threading.Thread(target=lambda: failed.extend(start_all([end])))
    starter.start()
    peer = Rendezvous(1, 2, "127.0.0.1", port, 5.0, host="h")
    peer.join()
    card = msgspec.msgpack.encode({"host": "h", "directory": "", "key": b""})
    folder = Path(msgspec.msgpack.decode(peer.gather("card", card)[0])["directory"])
    address = peer.gather("address", b"ipc:///nowhere")[0].decode()
    assert folder.parent == run_dir and folder.stat().st_mode & 0o777 == 0o700
    assert address == f"ipc://{folder}/0" and Path(f"{folder}/0").is_socket()
    starter.join()
    assert isinstance(failed[0], RendezvousError) and failed[0].missing == (1,)
    end.close(failed[0])
    peer.close()
    assert list(run_dir.iterdir()) == []
    with connected(topology("zmq"), run_dir=run_dir) as ends:
        assert list(run_dir.iterdir()) == [], "the folder goes as soon as all are connected"
        ends.send(Item(Key(0, 0, 0)))
        get(ends.target, Key(0, 0, 0))
    run_dir.rmdir()


def test_other_hosts_mean_tcp_and_checksums() -> None:
    with connected(topology("zmq"), hosts=("here", "there")) as ends:
        assert ends.source._links is not None
        assert ends.source._links.checksum_limit == NetworkSpec().max_message
        ends.send(Item(Key(0, 0, 0)))
        get(ends.target, Key(0, 0, 0))


def test_loopback_is_refused_where_it_cannot_work() -> None:
    """Ranks on two hosts that meet at an outer address can't have sockets on loopback."""
    outer = next(
        (
            a.address
            for addresses in psutil.net_if_addrs().values()
            for a in addresses
            if a.family == socket.AF_INET and not a.address.startswith("127.")
        ),
        None,
    )
    if outer is None:
        pytest.skip("this machine has no address beyond loopback")
    port, spec = free_port(), topology("zmq", connect_timeout_s=5)
    ends = [Endpoint(Rendezvous(rank, 2, outer, port, 5, host=str(rank)), spec, []) for rank in (0, 1)]
    errors = start_all(ends)
    for end, error in zip(ends, errors, strict=True):
        assert isinstance(error, RendezvousError) and "set network.bind" in str(error)
        end.close(error)


# -- torchrun ----------------------------------------------------------------------------------------------------------


def fail_once_then_talk(folder: str) -> None:
    """One rank of a run of two under torchrun; rank 1 dies in the first start, in the middle of it."""
    mark = Path(folder) / "failed"
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    spec = topology("dist")
    rendezvous = Rendezvous.open(rank, world_size, Path(folder), spec.network)
    with Endpoint(rendezvous, spec, [Route(0, 0, 1), Route(1, 1, 0)]) as endpoint:
        first = not mark.exists()
        if rank == 1 and first:
            rendezvous.join()
            mark.touch()
            os._exit(3)
        endpoint.start()
        put(endpoint, 1 - rank, Item(Key(rank, 0, 0), (), {"from": rank}))
        assert get(endpoint, Key(1 - rank, 0, 0)).meta == {"from": 1 - rank}
        if rank == 0:
            until(endpoint, lambda: 1 in endpoint.departed)
    (Path(folder) / f"done-{rank}").write_text(os.environ["TORCHELASTIC_RESTART_COUNT"])


@pytest.mark.slow
def test_two_agents_of_torchrun_meet_again_after_a_restart(tmp_path: Path) -> None:
    """An agent per 'machine'. A worker of one dies while they meet; both agents restart theirs, on the same store."""
    endpoint = f"127.0.0.1:{free_port()}"
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=3"]
    agent += ["--rdzv-backend=c10d", f"--rdzv-endpoint={endpoint}", "--rdzv-id=test", "--local-addr=127.0.0.1"]
    harness = Path(__file__).parents[1] / "harness.py"
    command = [*agent, str(harness), __file__, "fail_once_then_talk", f'["{tmp_path}"]']
    with Ranks(2, command) as agents:
        agents.wait(100)
    counts = {rank: (tmp_path / f"done-{rank}").read_text() for rank in (0, 1)}
    print(counts)
    assert (tmp_path / "failed").exists() and any(count != "0" for count in counts.values())
