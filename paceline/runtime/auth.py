"""Who may join a run: ranks that know its secret and, beyond loopback, hosts whose CURVE keys are allowed.

Ranks meet in a store that anybody on loopback can read and write (`rendezvous.py`). What one of them leaves there
carries an HMAC-SHA-256 under the run's secret, so what somebody else writes is refused, and the first message to a peer
goes to that peer alone.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import logging
import os
import secrets
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paceline.pipeline.network import CurveSpec, NetworkSpec
from paceline.runtime.errors import RendezvousError

if TYPE_CHECKING:
    import zmq
    from zmq.auth.thread import ThreadAuthenticator

__all__ = [
    "SECRET_FILE",
    "SECRET_VARIABLE",
    "CurveKeys",
    "RunSecret",
    "check_bind",
    "find_secret",
    "is_loopback",
    "load_curve",
    "make_secret",
    "start_authenticator",
]


SECRET_FILE = "secret"
"""In the run's folder, where one launcher starts all ranks."""
SECRET_VARIABLE = "PACELINE_SECRET"
"""Names a secret for ranks that no folder joins: those of several hosts."""

_FEWEST = 16
_MAC_BYTES = 32
_log = logging.getLogger(__name__)


class RunSecret:
    """A key of the ranks. An empty one still finds damage, but keeps nobody out."""

    def __init__(self, key: bytes = b"") -> None:
        self._key = key

    def seal(self, name: str, payload: bytes) -> bytes:
        """The payload with a proof that it is of this run and belongs under `name`."""
        return self._mac(name, payload) + payload

    def unseal(self, name: str, sealed: bytes) -> bytes:
        """The payload. Raises `RendezvousError` where another process has written it."""
        mac, payload = sealed[:_MAC_BYTES], sealed[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(name, payload)):
            raise RendezvousError(
                f"what the store holds under {name!r} was not written by a rank of this run: another process writes "
                f"there, or {SECRET_VARIABLE} differs between the ranks"
            )
        return payload

    def token(self, start_name: str) -> bytes:
        """By what ranks of one start know one another's sockets."""
        return self._mac("token", start_name.encode())[:16]

    def _mac(self, name: str, payload: bytes) -> bytes:
        return hmac.digest(self._key, name.encode() + b"\x00" + payload, hashlib.sha256)


def make_secret(folder: Path) -> None:
    """Leave a fresh secret in a folder that nobody else can enter. Raises `OSError`."""
    _write_new(folder / SECRET_FILE)


def find_secret(run_dir: Path | None, address: str, environment: Mapping[str, str] = os.environ) -> RunSecret:
    """The secret of this rank's run: `PACELINE_SECRET`; else that in the run's folder; else, where the ranks meet on
    loopback (torchrun on one host), one of this user in the cache folder. Between hosts there is only the variable's.

    Raises `RendezvousError` for a variable that is too short, and for a file that others can read.
    """
    named = environment.get(SECRET_VARIABLE)
    if named is not None:
        if len(named) < _FEWEST:
            raise RendezvousError(f"{SECRET_VARIABLE} has {len(named)} characters; take {_FEWEST} or more, at random")
        return RunSecret(named.encode())
    if run_dir is not None and (run_dir / SECRET_FILE).exists():
        return RunSecret(_read(run_dir / SECRET_FILE))
    if not is_loopback(address):
        return RunSecret()
    cache = Path(environment.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paceline"
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)
        return RunSecret(_of_user(cache / SECRET_FILE))
    except OSError as error:
        _log.warning(
            "other processes of this machine can pose as ranks: %s: %s; set %s", cache, error.strerror, SECRET_VARIABLE
        )
        return RunSecret()


def _of_user(path: Path) -> bytes:
    if not path.exists():
        # Ranks come together: the first link wins, and each reads a whole file.
        draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            _write_new(draft)
            os.link(draft, path)
        except FileExistsError:
            pass
        finally:
            draft.unlink(missing_ok=True)
    return _read(path)


def _write_new(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))


def _read(path: Path) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(file.fileno())
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise RendezvousError(f"others can read or have made {path}; remove it, and a new one is made")
        return file.read()


_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """This host's key pair (Z85) and the public keys that it talks to."""

    public: bytes
    secret: bytes
    folder: Path
    allowed: frozenset[bytes]

    def check_peer(self, rank: int, public: bytes) -> None:
        """Raise `RendezvousError` unless the key that a peer announced is on the list.

        Keys come by the store, which is not authenticated, so they count for nothing by themselves.
        """
        if public not in self.allowed:
            raise RendezvousError(
                f"rank {rank} announces the key {public.decode('ascii', 'replace')!r}, which is not in {self.folder}; "
                "put the public certificate of its host there",
                [rank],
            )


def is_loopback(host: str) -> bool:
    """Whether an address to bind stays on this machine. Names of interfaces other than `lo` do not."""
    if host in ("localhost", "lo"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_bind(network: NetworkSpec) -> None:
    """Raise `RendezvousError` where tcp would listen beyond loopback without keys."""
    if network.curve is None and not is_loopback(network.bind):
        raise RendezvousError(
            f"network.bind is {network.bind!r}, beyond loopback, but there is no network.curve; make keys with "
            "zmq.auth.create_certificates and set network.curve.secret and network.curve.allow, or bind 127.0.0.1"
        )


def load_curve(spec: CurveSpec) -> CurveKeys:
    """The keys that a topology names. Raises `RendezvousError` where they are missing, unfit or open to others."""
    # Imported here, as below: the launcher makes secrets, and needs no ZMQ.
    import zmq.auth
    from zmq.utils import z85

    certificate, folder = (Path(os.path.expanduser(path)) for path in (spec.secret, spec.allow))
    try:
        mode = certificate.stat().st_mode
        public, secret = zmq.auth.load_certificate(certificate)
        allowed = [zmq.auth.load_certificate(path)[0] for path in sorted(folder.glob("*.key"))]
        for key in (public, secret, *allowed):
            if key is not None and len(z85.decode(key)) != _KEY_BYTES:
                raise ValueError(f"{key!r} is no key")
    except (OSError, ValueError, LookupError, ArithmeticError, struct.error) as error:
        raise RendezvousError(f"network.curve: {error}; make certificates with zmq.auth.create_certificates") from error
    if secret is None:
        raise RendezvousError(f"network.curve.secret: {spec.secret} holds no secret key; name the .key_secret file")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise RendezvousError(f"network.curve.secret: others can read {spec.secret}; run `chmod 600 {spec.secret}`")
    if not allowed:
        raise RendezvousError(f"network.curve.allow: no .key file in {spec.allow}; put the hosts' public ones there")
    return CurveKeys(public, secret, folder, frozenset(allowed))


def start_authenticator(context: zmq.Context[zmq.Socket[bytes]], keys: CurveKeys) -> ThreadAuthenticator:
    """Let only the allowed keys in, for all CURVE servers of this context, until `stop()`."""
    from zmq.auth.thread import ThreadAuthenticator

    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain="*", location=str(keys.folder))
    return authenticator
