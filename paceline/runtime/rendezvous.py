"""How the ranks of one start find one another: a TCPStore, and in it a place that only this start uses.

torchrun keeps its store over restarts, so what dead workers wrote is still there; and the restart count can't tell two
starts apart, because with several agents it differs between them (an agent that restarts its workers only because
another one's failed does not count). So rank 0 of every start hails with a fresh name, the others answer with fresh
names of their own, and a start is what rank 0 then publishes: a roll that holds one's own name.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import msgspec
import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from paceline.pipeline.network import NetworkSpec
from paceline.runtime.auth import RunSecret, find_secret, is_loopback
from paceline.runtime.errors import RendezvousError

__all__ = ["Rendezvous", "host_name"]

_POLL_S = 0.01
_HAIL = "hail"


def host_name() -> str:
    """Names this machine (and container): equal only where ranks can share a folder of sockets."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        boot = ""
    return f"{socket.gethostname()}/{boot}"


class Rendezvous:
    """Where a rank meets the others. With one rank it does nothing and opens nothing.

    `serve` says whether this rank holds the store; by default rank 0 does, unless the agents of torchrun do. `host`
    names the machine. Sockets go to a folder in `run_dir`, where that is given. What ranks leave in the store is sealed
    with `secret`.
    """

    def __init__(
        self,
        rank: int,
        world_size: int,
        address: str = "127.0.0.1",
        port: int = 0,
        timeout_s: float = 30.0,
        run_dir: Path | None = None,
        serve: bool | None = None,
        host: str | None = None,
        secret: RunSecret | None = None,
    ) -> None:
        if not 0 <= rank < world_size:
            raise RendezvousError(f"RANK is {rank} and WORLD_SIZE {world_size}; a rank lies below the world size")
        self.rank = rank
        self.world_size = world_size
        self.address = address
        self.port = port
        self.timeout_s = timeout_s
        self.run_dir = run_dir
        self.host = host_name() if host is None else host
        self.start_name = ""
        """Names this start of the run, the same on all ranks, once `join` has returned."""
        self._secret = RunSecret() if secret is None else secret
        self._serve = rank == 0 if serve is None else serve
        self._root: TCPStore | None = None
        self._store: Store | None = None
        self._deadline = 0.0

    @classmethod
    def open(
        cls,
        rank: int,
        world_size: int,
        run_dir: Path | None,
        network: NetworkSpec,
        environment: Mapping[str, str] = os.environ,
    ) -> Rendezvous:
        """The rendezvous at MASTER_ADDR and MASTER_PORT, as torchrun and the local launcher set them.

        Raises `RendezvousError` where these are missing or no number; with one rank they are not looked at.
        """
        timeout_s = network.connect_timeout_s
        if world_size == 1:
            return cls(rank, world_size, timeout_s=timeout_s, run_dir=run_dir)
        try:
            address, port = environment["MASTER_ADDR"], int(environment["MASTER_PORT"])
        except KeyError as error:
            raise RendezvousError(f"{error.args[0]} is not set; start with `paceline run` or torchrun") from None
        except ValueError as error:
            raise RendezvousError(f"MASTER_PORT is no number: {error}") from None
        agent = environment.get("TORCHELASTIC_USE_AGENT_STORE", "False") == "True"
        secret = find_secret(run_dir, address, environment)
        return cls(rank, world_size, address, port, timeout_s, run_dir, False if agent else None, secret=secret)

    @property
    def token(self) -> bytes:
        """What ranks of this start know one another's sockets by, once `join` has returned; nobody else knows it."""
        return self._secret.token(self.start_name)

    @property
    def store(self) -> Store:
        """The store of this start. Raises `RendezvousError` before `join` and after `leave`."""
        if self._store is None:
            raise RendezvousError("the ranks have not met yet, or have parted; call join() first")
        return self._store

    def join(self) -> None:
        """Meet the other ranks. Raises `RendezvousError`, which names the missing ones, at the timeout."""
        if self.world_size == 1:
            return
        self._deadline = time.monotonic() + self.timeout_s
        self._root = self._connect()
        try:
            self._call_roll() if self.rank == 0 else self._answer_roll()
        except dist.DistError as error:
            raise RendezvousError(f"the store at {self.address}:{self.port} broke off: {error}", [0]) from error

    def _connect(self) -> TCPStore:
        timeout = timedelta(seconds=self.timeout_s)
        if not self._serve:
            try:
                return TCPStore(self.address, self.port, self.world_size, False, timeout, wait_for_workers=False)
            except (dist.DistError, RuntimeError, ValueError) as error:
                raise RendezvousError(
                    f"rank {self.rank} found no store at {self.address}:{self.port} within {self.timeout_s:g} s; "
                    f"is rank 0 running, and are MASTER_ADDR and MASTER_PORT right? ({error})",
                    [0],
                ) from error
        listener = None
        try:
            if is_loopback(self.address):
                # Left to itself the store would listen on all interfaces.
                listener = socket.create_server((self.address, self.port), backlog=4096)
                self.port = listener.getsockname()[1]
            return TCPStore(
                self.address,
                self.port,
                self.world_size,
                True,
                timeout,
                wait_for_workers=False,
                master_listen_fd=None if listener is None else listener.detach(),
            )
        except (OSError, dist.DistError, RuntimeError, ValueError) as error:
            raise RendezvousError(
                f"rank 0 can't open a store at {self.address}:{self.port}: {error}; choose another MASTER_PORT"
            ) from error

    def _opened(self) -> TCPStore:
        if self._root is None:
            raise RendezvousError("the store is not open; call join() first")
        return self._root

    def _place(self, start_name: str) -> Store:
        return PrefixStore(f"paceline/{start_name}", self._opened())

    def _call_roll(self) -> None:
        """Rank 0: hail, wait for the answers, publish the roll."""
        name = secrets.token_hex(8)
        store = self._place(name)
        self._put(self._hail(), _HAIL, name.encode())
        self._until(lambda: not self._silent(store), lambda: self._missing(store))
        answers = [self._get(store, f"answer/{rank}", name).decode() for rank in range(1, self.world_size)]
        self._put(store, "roll", msgspec.json.encode([name, *answers]), name)
        self.start_name, self._store = name, store

    def _answer_roll(self) -> None:
        """Other ranks: answer the latest hail until it is followed by a roll with our answer."""
        answer = secrets.token_hex(8)
        hails = self._hail()
        heard = ""

        def on_roll() -> bool:
            nonlocal heard
            if not hails.check([_HAIL]):
                return False
            latest = self._get(hails, _HAIL).decode()
            store = self._place(latest)
            if latest != heard:
                self._put(store, f"answer/{self.rank}", answer.encode(), latest)
                heard = latest
            if not store.check(["roll"]):
                return False
            roll = msgspec.json.decode(self._get(store, "roll", latest), type=list[str])
            if roll[self.rank] != answer:
                return False
            self.start_name, self._store = latest, store
            return True

        self._until(on_roll, lambda: self._missing(self._place(heard)) if heard else [0])

    def _put(self, store: Store, key: str, payload: bytes, start_name: str = "") -> None:
        # Hexadecimal, as the store takes text only.
        store.set(key, self._secret.seal(f"{start_name}/{key}", payload).hex())

    def _get(self, store: Store, key: str, start_name: str = "") -> bytes:
        return self._opened_value(key, store.get(key), start_name)

    def _opened_value(self, key: str, value: bytes, start_name: str) -> bytes:
        try:
            sealed = bytes.fromhex(value.decode())
        except ValueError:
            sealed = b""
        return self._secret.unseal(f"{start_name}/{key}", sealed)

    def _hail(self) -> Store:
        return PrefixStore("paceline", self._opened())

    def _silent(self, store: Store) -> list[int]:
        return [rank for rank in range(1, self.world_size) if not store.check([f"answer/{rank}"])]

    def _missing(self, store: Store) -> list[int]:
        # A roll that never comes although all have answered is rank 0's silence.
        return self._silent(store) or [0]

    def _until(self, done: Callable[[], bool], missing: Callable[[], list[int]]) -> None:
        while not done():
            if time.monotonic() > self._deadline:
                self._give_up("start", missing())
            time.sleep(_POLL_S)

    def _give_up(self, what: str, missing: list[int]) -> None:
        raise RendezvousError(
            f"rank {self.rank} of {self.world_size} waited {self.timeout_s:g} s for {what} at "
            f"{self.address}:{self.port}; missing: {', '.join(f'rank {rank}' for rank in missing)}. See their logs, or "
            "raise network.connect_timeout_s",
            missing,
        )

    def gather(self, name: str, payload: bytes) -> list[bytes]:
        """What every rank brought under this name, by rank. All ranks have to call it; it is a barrier too.

        Raises `RendezvousError`, which names the missing ranks, at the timeout.
        """
        if self.world_size == 1:
            return [payload]
        store = self.store
        keys = [f"{name}/{rank}" for rank in range(self.world_size)]
        try:
            self._put(store, keys[self.rank], payload, self.start_name)
            left = max(0.001, self._deadline - time.monotonic())
            try:
                store.wait(keys, timedelta(seconds=left))
            except dist.DistStoreError:
                missing = [rank for rank, key in enumerate(keys) if not store.check([key])]
                if missing:
                    self._give_up(name, missing)
                raise
            values = store.multi_get(keys)
            return [self._opened_value(key, value, self.start_name) for key, value in zip(keys, values, strict=True)]
        except dist.DistError as error:
            raise RendezvousError(f"the store at {self.address}:{self.port} broke off: {error}", [0]) from error

    def outward_address(self) -> str:
        """The address of this host that faces rank 0's."""
        with socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((self.address, self.port or 1))
            return str(probe.getsockname()[0])

    def leave(self) -> None:
        """This rank needs the store no more; where it holds the store, that stays until `close`."""
        if self._store is None:
            return
        with suppress(dist.DistError):
            self._store.add("left", 1)
        if not self._serve:
            self._store = self._root = None

    def close(self, timeout_s: float = 2.0) -> None:
        """Part. The rank with the store waits `timeout_s` at most until all have left. May be called again."""
        store, self._store = self._store, None
        if store is not None and self._serve:
            deadline = time.monotonic() + timeout_s
            with suppress(dist.DistError):
                while store.add("left", 0) < self.world_size and time.monotonic() < deadline:
                    time.sleep(_POLL_S)
        self._root = None
