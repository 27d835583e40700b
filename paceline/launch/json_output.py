"""The version of the JSON objects that commands print with `--json` and write as `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["JSON_VERSION", "check_version", "versioned"]

JSON_VERSION = 1
"""Rises where a field changes its meaning or goes; a new field alone is no new version."""


def versioned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its version, as the first field."""
    return {"version": JSON_VERSION, **fields}


def check_version(found: Mapping[str, Any]) -> None:
    """Check an object that a command wrote; one without a version is of a Paceline before versions, which wrote what
    version 1 says. Raises `ValueError` for any other."""
    version = found.get("version", JSON_VERSION)
    if version != JSON_VERSION:
        raise ValueError(
            f"it is of version {version!r}, and this Paceline reads {JSON_VERSION}; use the one that wrote it"
        )
