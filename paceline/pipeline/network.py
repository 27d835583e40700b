"""What a topology says of sockets: where they bind, and the keys without which they stay on this machine."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from pydantic import Field

from paceline.pipeline.strict_model import LONGEST_MS, Size, StrictModel

__all__ = ["CurveSpec", "NetworkSpec"]


class CurveSpec(StrictModel):
    """CURVE keys for tcp beyond loopback: this host's secret certificate and the folder of allowed public ones."""

    secret: Path
    allow: Path


class NetworkSpec(StrictModel):
    """Where zmq sockets bind. Hosts beyond loopback need `curve`."""

    bind: str = "127.0.0.1"
    curve: CurveSpec | None = None
    max_message: Size = 256 * 2**20
    connect_timeout_s: float = Field(30.0, ge=1, le=LONGEST_MS // 1000)

    @property
    def loopback(self) -> bool:
        """Whether `bind` stays on this machine. Of interface names only `lo` does."""
        try:
            return self.bind in ("localhost", "lo") or ipaddress.ip_address(self.bind.strip("[]")).is_loopback
        except ValueError:
            return False
