"""The versions of all that leaves a process and may be read by another Paceline: files, JSON outputs, messages.

A number rises where a field changes its meaning or goes; a new field alone is no new version. Readers refuse any
version but theirs, by name and number.
"""

from __future__ import annotations

from typing import Final

__all__ = ["JOURNAL", "JSON_OUTPUT", "KV_STORE", "PARKED_KV", "PARKED_SESSION", "TOPOLOGY", "TRACE", "WIRE"]

TOPOLOGY: Final = 1
"""Topology files; one without a version is of version 1."""

JSON_OUTPUT: Final = 1
"""What commands print with `--json` and write as `summary.json`; one without a version is of version 1."""

JOURNAL: Final = 1
"""Lines of `journal.jsonl`; one without a version is of version 1."""

WIRE: Final = 1
"""Headers of messages between ranks."""

TRACE: Final = 1
"""Attention traces of `paceline trace record`."""

PARKED_SESSION: Final = 2
"""`session.json` of a parked session."""

PARKED_KV: Final = 1
"""KV of a parked session."""

KV_STORE: Final = 1
"""Files of KV blocks in the nvme tier."""
