"""The sockets between ranks: every message once and in order, strangers kept out, losses heard of."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq

from paceline.runtime.errors import PeerLost, RendezvousError
from paceline.runtime.mesh import Mesh
from paceline.runtime.wire import Buffer

TOKEN = b"0123456789abcdef"


@dataclass
class Heard:
    """What one rank heard, as (rank, frames) and (rank, error)."""

    messages: list[tuple[int, list[bytes]]] = field(default_factory=list)
    failures: list[tuple[int, BaseException]] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    refuse: bytes = b"refuse this"

    def on_message(self, rank: int, frames: list[Buffer]) -> None:
        self.threads.add(threading.current_thread().name)
        found = [bytes(frame) for frame in frames]
        if found[0] == self.refuse:
            raise ValueError("refused")
        self.messages.append((rank, found))

    def on_failure(self, rank: int, error: BaseException) -> None:
        self.failures.append((rank, error))


def until(condition: object, deadline_s: float = 10.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "nothing came in time"
        time.sleep(0.002)


@contextmanager
def meshes(folder: Path, count: int) -> Iterator[tuple[list[Mesh], list[Heard]]]:
    made, heard = [Mesh(rank, count, 1 << 20) for rank in range(count)], [Heard() for _ in range(count)]
    try:
        addresses = [mesh.bind(folder) for mesh in made]
        for mesh, ears in zip(made, heard, strict=True):
            mesh.connect(TOKEN, addresses, [b""] * count)
            mesh.start(ears.on_message, ears.on_failure)
        for mesh in made:
            assert mesh.greet(b"hello", 10) == []
        until(lambda: all(len(ears.messages) == count - 1 for ears in heard))
        for ears in heard:
            ears.messages.clear()
        yield made, heard
    finally:
        for mesh in made:
            mesh.departed.update(range(count))
        for mesh in made:
            mesh.close(1.0)


def test_all_messages_come_once_in_order_and_from_the_right_rank(tmp_path: Path) -> None:
    with meshes(tmp_path, 3) as (made, heard):
        numbers = range(200)
        senders = [
            threading.Thread(
                target=lambda mesh=mesh: [
                    mesh.send(peer, [b"%d" % number, bytes(number)])
                    for number in numbers
                    for peer in range(3)
                    if peer != mesh.rank
                ]
            )
            for mesh in made
        ]
        for sender in senders:
            sender.start()
        for sender in senders:
            sender.join()
        until(lambda: all(len(ears.messages) == 2 * len(numbers) for ears in heard))
        for rank, ears in enumerate(heard):
            for peer in set(range(3)) - {rank}:
                of_peer = [frames for source, frames in ears.messages if source == peer]
                assert of_peer == [[b"%d" % number, bytes(number)] for number in numbers]
            assert ears.failures == []


def test_the_worker_receives_once_it_has_taken_over(tmp_path: Path) -> None:
    with meshes(tmp_path, 2) as (made, heard):
        made[0].adopt()
        made[1].send(0, [b"later"])
        time.sleep(0.05)
        assert heard[0].messages == []  # no thread receives any more
        started = time.monotonic()
        made[0].pump(5.0)
        assert heard[0].messages == [(1, [b"later"])]
        assert time.monotonic() - started < 4
        assert threading.current_thread().name in heard[0].threads
        # Without news it waits as long as it is told to, or until it is woken.
        started = time.monotonic()
        made[0].pump(0.1)
        assert 0.09 < time.monotonic() - started < 4
        threading.Timer(0.1, made[0].wake).start()
        started = time.monotonic()
        made[0].pump(30.0)
        assert time.monotonic() - started < 10


def test_strangers_are_counted_and_not_heard(tmp_path: Path) -> None:
    with meshes(tmp_path, 2) as (made, heard):
        context = zmq.Context()
        for identity in (b"another token 16" + (1).to_bytes(4, "big"), TOKEN + (7).to_bytes(4, "big"), b"short"):
            socket = context.socket(zmq.DEALER)
            socket.identity, socket.linger = identity, 1000
            socket.connect(f"ipc://{tmp_path}/0")
            socket.send(b"let me in")
            socket.close()
        until(lambda: made[0].strangers == 3)
        context.term()
        assert heard[0].messages == []
        assert heard[0].failures == []


def test_a_message_that_can_not_be_taken_is_a_failure_of_its_sender(tmp_path: Path) -> None:
    with meshes(tmp_path, 2) as (made, heard):
        made[1].send(0, [heard[0].refuse])
        made[1].send(0, [b"the next one"])
        until(lambda: heard[0].messages)
        ((rank, error),) = heard[0].failures
        assert rank == 1
        assert str(error) == "refused"
        assert heard[0].messages == [(1, [b"the next one"])]


def test_a_peer_that_goes_without_a_word_is_lost_and_one_that_said_goodbye_is_not(tmp_path: Path) -> None:
    with meshes(tmp_path, 3) as (made, heard):
        made[0].departed.add(1)
        started = time.monotonic()
        made[1].close(0.0)
        made[2].close(0.0)
        until(lambda: heard[0].failures)
        assert 0.25 < time.monotonic() - started < 5  # its last words may still be on their way
        ((rank, error),) = heard[0].failures
        assert (rank, type(error)) == (2, PeerLost)
        assert "its process has ended" in str(error)
        with pytest.raises(PeerLost, match="it has ended its run"):
            made[0].send(1, [b"hello?"])
        with pytest.raises(PeerLost):
            made[0].send(2, [b"hello?"])


def test_a_peer_that_is_not_there_is_late(tmp_path: Path) -> None:
    mesh = Mesh(0, 3, 1 << 20)
    try:
        address = mesh.bind(tmp_path)
        nobody = f"ipc://{tmp_path}/nobody"
        mesh.connect(TOKEN, [address, nobody, nobody], [b""] * 3)
        assert mesh.greet(b"hello", 0.2) == [1, 2]
    finally:
        mesh.close(0.0)


def test_a_path_that_no_socket_can_have_is_explained(tmp_path: Path) -> None:
    mesh = Mesh(0, 1, 1 << 20)
    try:
        with pytest.raises(RendezvousError, match="too long; set TMPDIR to a short path"):
            mesh.bind(tmp_path / ("x" * 100))
    finally:
        mesh.close(0.0)
