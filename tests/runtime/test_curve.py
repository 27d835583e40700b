from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
import zmq
import zmq.auth

from paceline.pipeline.network import CurveSpec, NetworkSpec
from paceline.pipeline.placement import Route
from paceline.pipeline.topology import Topology
from paceline.runtime.auth import check_bind, is_loopback, load_curve
from paceline.runtime.endpoint import Endpoint
from paceline.runtime.errors import RendezvousError
from paceline.runtime.rendezvous import Rendezvous
from paceline.runtime.wire import Hello, encode
from paceline.stages.item import Item, Key
from tests.harness import free_port
from tests.runtime.pairs import get, raise_any, start_all, topology


def certificates(folder: Path, *names: str) -> dict[str, CurveSpec]:
    """Keys for hosts, each of which allows all of them."""
    allow = folder / "allow"
    allow.mkdir()
    specs = {}
    for name in names:
        public, secret = zmq.auth.create_certificates(folder, name)
        Path(public).rename(allow / f"{name}.key")
        Path(secret).chmod(0o600)
        specs[name] = CurveSpec(secret=Path(secret), allow=allow)
    return specs


def spec_with(curve: CurveSpec, bind: str = "0.0.0.0") -> Topology:
    network = NetworkSpec(bind=bind, curve=curve, connect_timeout_s=4)
    return topology("zmq").model_copy(update={"network": network})


def two(specs: list[Topology]) -> list[Endpoint]:
    """Endpoints that take each other for ranks on two hosts, so that they meet by tcp."""
    port = free_port()
    return [
        Endpoint(Rendezvous(rank, 2, "127.0.0.1", port, 4, host=str(rank)), specs[rank], [Route(0, 0, 1)])
        for rank in (0, 1)
    ]


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("localhost", True),
        ("lo", True),
        ("::1", True),
        ("[::1]", True),
        ("0.0.0.0", False),
        ("::", False),
        ("*", False),
        ("eth0", False),
        ("10.0.0.1", False),
        ("127.0.0.1.example.com", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
    if loopback:
        check_bind(NetworkSpec(bind=host))
    else:
        with pytest.raises(RendezvousError, match=r"network\.curve"):
            check_bind(NetworkSpec(bind=host))


def test_an_endpoint_beyond_loopback_without_keys_opens_no_socket() -> None:
    endpoint = Endpoint(Rendezvous(0, 2, "127.0.0.1", free_port(), 1), topology("zmq", bind="0.0.0.0"), [])
    with pytest.raises(RendezvousError, match="beyond loopback"):
        endpoint.start()
    endpoint.close()


def test_ranks_with_keys_talk_and_others_do_not(tmp_path: Path) -> None:
    specs = certificates(tmp_path, "host")
    ends = two([spec_with(specs["host"])] * 2)
    raise_any(start_all(ends))
    tensor = torch.arange(1 << 16)
    ends[0].send(1, Item(Key(0, 0, 0), (tensor,)))
    assert torch.equal(get(ends[1], Key(0, 0, 0)).tensors[0], tensor)
    assert ends[1]._links is not None
    mesh = ends[1]._links.mesh
    address = mesh._router.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0").replace("0.0.0.0", "127.0.0.1")
    (allowed,) = load_curve(specs["host"]).allowed
    with zmq.Context() as context:
        for keys in (None, zmq.curve_keypair()):
            stranger = context.socket(zmq.DEALER)
            stranger.linger = 0
            # It even knows the token of the run.
            stranger.identity = mesh._token + (0).to_bytes(4, "big")
            if keys is not None:
                stranger.curve_serverkey, (stranger.curve_publickey, stranger.curve_secretkey) = allowed, keys
            monitor = stranger.get_monitor_socket()
            stranger.connect(address)
            stranger.send(encode(Hello(0, "")))
            assert not wait_for_handshake(monitor)
            stranger.disable_monitor()
            monitor.close(0)
            stranger.close(0)
    ends[1].check()
    assert mesh.strangers == 0
    for end in ends:
        end.close()


def wait_for_handshake(monitor: zmq.Socket[bytes]) -> bool:
    """Whether a handshake succeeded; False once it failed or nothing happens."""
    from zmq.utils.monitor import recv_monitor_message

    while monitor.poll(1000):
        event = recv_monitor_message(monitor)["event"]
        if event == zmq.Event.HANDSHAKE_SUCCEEDED:
            return True
        if event in (zmq.Event.HANDSHAKE_FAILED_AUTH, zmq.Event.HANDSHAKE_FAILED_PROTOCOL, zmq.Event.DISCONNECTED):
            return False
    return False


def test_a_peer_whose_key_is_not_allowed_is_named(tmp_path: Path) -> None:
    """Each host allows only itself."""
    specs = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        specs.append(spec_with(certificates(tmp_path / name, name)[name]))
    ends = two(specs)
    errors = start_all(ends)
    for rank, error in enumerate(errors):
        assert isinstance(error, RendezvousError)
        assert error.missing == (1 - rank,) and "allow" in str(error)
    closers = [threading.Thread(target=end.close, args=(error,)) for end, error in zip(ends, errors, strict=True)]
    for closer in closers:
        closer.start()
    for closer in closers:
        closer.join()


def test_keys_that_do_not_fit_are_explained(tmp_path: Path) -> None:
    spec = certificates(tmp_path, "host")["host"]
    assert len(load_curve(spec).secret) == 40
    with pytest.raises(RendezvousError, match="holds no secret"):
        public = spec.allow / "host.key"
        public.chmod(0o600)
        load_curve(CurveSpec(secret=public, allow=spec.allow))
    with pytest.raises(RendezvousError, match=r"no \.key file"):
        load_curve(CurveSpec(secret=spec.secret, allow=tmp_path / "none"))
    with pytest.raises(RendezvousError, match="create_certificates"):
        load_curve(CurveSpec(secret=tmp_path / "none", allow=spec.allow))
    spec.secret.chmod(0o640)
    with pytest.raises(RendezvousError, match="chmod 600"):
        load_curve(spec)
