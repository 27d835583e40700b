"""CRC-32C (Castagnoli) by google-crc32c, which uses the processor's own instruction, and heads of files under one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

import google_crc32c
import msgspec

from paceline.tiers.errors import StoreError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Sealed", "Versioned", "crc32c"]


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


class Versioned(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of headers."""

    version: int


H = TypeVar("H", bound=Versioned)


@dataclass(frozen=True, slots=True)
class Sealed(Generic[H]):
    """One kind of file. `what` and `remedy` are what messages call it and advise, such as `remove the file`; `most` are
    the bytes that a header may have."""

    magic: bytes
    kind: type[H]
    version: int
    most: int
    what: str
    remedy: str

    def pack(self, header: H, width: int = 0) -> bytes:
        """The head of a file. The header is padded with blanks to `width` bytes."""
        body = msgspec.json.encode(header).ljust(width)
        return self.magic + len(body).to_bytes(4, "little") + crc32c(body).to_bytes(4, "little") + body

    @property
    def fixed(self) -> int:
        """Bytes before the header."""
        return len(self.magic) + 8

    def unpack(self, read: Callable[[int], bytes], name: str) -> H:
        """The header of the file `name`, whose bytes `read` gives in order; it gives fewer at the end of the file.

        Raises `StoreError` where the file is another one, is damaged or cut off, or of another version.
        """
        start = read(self.fixed)
        if not start.startswith(self.magic[: len(start)]):
            raise StoreError(f"{name} is no {self.what}; {self.remedy}")
        if len(start) < self.fixed:
            raise StoreError(f"{name} ends too soon; it was cut after it was written: {self.remedy}")
        size, crc = (int.from_bytes(start[at : at + 4], "little") for at in (self.fixed - 8, self.fixed - 4))
        if size > self.most:
            raise StoreError(f"the header of {name} is damaged; {self.remedy}")
        body = read(size)
        if len(body) < size:
            raise StoreError(f"{name} ends too soon; it was cut after it was written: {self.remedy}")
        if crc32c(body) != crc:
            raise StoreError(f"the header of {name} is damaged; {self.remedy}")
        try:
            # The version first: another one may have other fields.
            version = msgspec.json.decode(body, type=_OnlyVersion).version
            if version != self.version:
                raise StoreError(f"{name} is of version {version}, not {self.version}; {self.remedy}")
            return msgspec.json.decode(body, type=self.kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise StoreError(f"{name} was written by another version; {self.remedy}: {error}") from error


class _OnlyVersion(msgspec.Struct, frozen=True):
    version: int
