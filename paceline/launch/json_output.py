"""The version of the JSON objects that commands print with `--json` and write as `summary.json`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paceline.versions import JSON_OUTPUT

__all__ = ["check_version", "versioned"]


def versioned(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The object with its version, as the first field."""
    return {"version": JSON_OUTPUT, **fields}


def check_version(found: Mapping[str, Any]) -> None:
    """Check an object that a command wrote; one without a version is of a Paceline before versions, which wrote what
    version 1 says. Raises `ValueError` for any other."""
    version = found.get("version", JSON_OUTPUT)
    if version != JSON_OUTPUT:
        raise ValueError(
            f"it is of version {version!r}, and this Paceline reads {JSON_OUTPUT}; use the one that wrote it"
        )
