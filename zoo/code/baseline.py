"""What a compressor makes of the held-out text when it has seen the training text: the bound the target has to beat."""

from __future__ import annotations

import lzma

__all__ = ["xz_bits_per_byte", "xz_size"]


def xz_size(text: bytes, window: int) -> int:
    """Bytes of `xz -9e` with a dictionary of `window` bytes (4 KiB at least), so that it looks back that far."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": max(window, 4096)}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters))


def xz_bits_per_byte(prefix: bytes, text: bytes) -> float:
    """Bits per byte of `text` given `prefix`: what appending it adds to the file. The dictionary covers both.

    Raises `ValueError` for an empty text.
    """
    if not text:
        raise ValueError("there is no held-out text to compress; check the corpus's folder")
    window = len(prefix) + len(text)
    return 8 * (xz_size(prefix + text, window) - xz_size(prefix, window)) / len(text)
