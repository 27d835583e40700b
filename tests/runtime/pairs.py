"""Two connected endpoints in one process (or one, where the transport is local), for tests of channels."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paceline.pipeline.placement import Route
from paceline.pipeline.topology import SleepTopology
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.rendezvous import Rendezvous
from paceline.stages.item import Item, Key
from tests.harness import free_port

MIB = 1 << 20


def topology(via: str, ranks: int = 2, inflight: int = 4, nbytes: int = 64 * MIB, **network: Any) -> SleepTopology:
    """`a` and `b` joined by one edge each way, on groups of their own; or both on one rank."""
    return SleepTopology.model_validate(
        {
            "name": "pair",
            "workload": "sleep",
            "groups": {"g": {"ranks": ranks}},
            "stages": {"a": {"kind": "source", "group": "g"}, "b": {"kind": "sink", "group": "g"}},
            "edges": [
                {"from": "a", "to": "b", "via": via, "inflight": inflight, "bytes": nbytes},
                {"from": "b", "to": "a", "via": via, "inflight": inflight, "bytes": nbytes},
            ],
            "network": {"connect_timeout_s": 20, **network},
        }
    )


@dataclass
class Ends:
    """The sending and the receiving end of edge 0; edge 1 leads back."""

    source: Endpoint
    target: Endpoint

    def send(self, item: Item) -> None:
        self.source.send(self.target.rank, item)

    def can_send(self, items: int, nbytes: int, session: int = 0) -> bool:
        return self.source.can_send(0, self.target.rank, session, items, nbytes)


def until(endpoint: Endpoint, condition: Callable[[], bool], deadline_s: float = 10.0) -> None:
    """Wait for news at an endpoint until the condition holds; raises what the endpoint raises."""
    deadline = time.monotonic() + deadline_s
    while True:
        seen = endpoint.version
        if condition():
            return
        if time.monotonic() > deadline:
            raise AssertionError("nothing came in time")
        endpoint.wait(seen, 0.5)


def get(endpoint: Endpoint, key: Key) -> Item:
    """Take an item once it has arrived."""
    until(endpoint, lambda: endpoint.has(key))
    item = endpoint.take(key)
    endpoint.flush()
    return item


def put(endpoint: Endpoint, target: int, item: Item) -> None:
    """Send an item once there is credit."""
    until(endpoint, lambda: endpoint.can_send(item.key.edge, target, item.key.session, 1, item.nbytes))
    endpoint.send(target, item)


def start_all(endpoints: Sequence[Endpoint]) -> list[BaseException | None]:
    """Start endpoints at once, each on a thread; what each raised."""
    errors: list[BaseException | None] = [None] * len(endpoints)

    def start(index: int) -> None:
        try:
            endpoints[index].start()
        except Exception as error:
            errors[index] = error

    threads = [threading.Thread(target=start, args=(index,)) for index in range(len(endpoints))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def raise_any(errors: Sequence[BaseException | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


@contextmanager
def connected(spec: SleepTopology, hosts: Sequence[str] = ("h", "h"), run_dir: Path | None = None) -> Iterator[Ends]:
    """Ends of a topology made by `topology`, connected, and closed afterwards."""
    if spec.edges[0].via == "local":
        with Endpoint(Rendezvous(0, 1), spec, [Route(0, 0, 0), Route(1, 0, 0)]) as endpoint:
            endpoint.start()
            yield Ends(endpoint, endpoint)
        return
    port, routes = free_port(), [Route(0, 0, 1), Route(1, 1, 0)]
    timeout_s = spec.network.connect_timeout_s
    endpoints = [
        Endpoint(Rendezvous(rank, 2, "127.0.0.1", port, timeout_s, run_dir, host=hosts[rank]), spec, routes)
        for rank in (0, 1)
    ]
    try:
        raise_any(start_all(endpoints))
        yield Ends(*endpoints)
    finally:
        closers = [threading.Thread(target=endpoint.close) for endpoint in endpoints]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join()
