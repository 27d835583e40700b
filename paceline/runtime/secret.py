"""What the ranks of a run know and other processes of the machine don't.

Ranks meet in a store that anybody on loopback can read and write (`rendezvous.py`). What one of them leaves there
carries an HMAC-SHA-256 under the run's secret, so what somebody else writes is refused, and the first message to a peer
goes to that peer alone.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from paceline.runtime.errors import RendezvousError

__all__ = ["SECRET_FILE", "SECRET_VARIABLE", "RunSecret", "find_secret", "make_secret"]

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
    # Imported here: the launcher makes secrets, and needs no ZMQ.
    from paceline.runtime.curve import is_loopback

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
