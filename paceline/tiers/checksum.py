"""CRC-32C (Castagnoli) of bytes, by google-crc32c: it runs on the processor's own instruction."""

from __future__ import annotations

from typing import TYPE_CHECKING

import google_crc32c

if TYPE_CHECKING:  # commands that only read a file of text need no NumPy
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["crc32c"]


def crc32c(*parts: bytes | NDArray[np.uint8]) -> int:
    """CRC-32C of the parts, one behind the other."""
    crc = 0
    for part in parts:
        if not isinstance(part, bytes):
            # It takes buffers that are read-only, nothing else.
            part = (part if part.flags.c_contiguous else part.copy()).view()
            part.flags.writeable = False
        crc = google_crc32c.extend(crc, part)
    return int(crc)
