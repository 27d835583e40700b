"""Who may connect by tcp: loopback only, or CURVE keys with an allow-list."""

from __future__ import annotations

import ipaddress
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

import zmq
import zmq.auth
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils import z85

from paceline.pipeline.network import CurveSpec, NetworkSpec
from paceline.runtime.errors import RendezvousError

__all__ = ["CurveKeys", "check_bind", "is_loopback", "load_curve", "start_authenticator"]


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
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve(domain="*", location=str(keys.folder))
    return authenticator
