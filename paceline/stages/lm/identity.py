"""What tells one model's weights from another's, so that KV of the one is never taken for KV of the other."""

from __future__ import annotations

import hashlib
from pathlib import Path

__all__ = ["weights_identity"]

_WHOLE = 64 << 20
_PIECES, _PIECE = 256, 64 << 10


def weights_identity(folder: Path) -> str:
    """A hash of a model's folder: its configuration and its weights, wherever it lies.

    Of files above 64 MiB the size, the first and last 64 KiB and 254 pieces between them are hashed: training moves all
    weights of a layer, and a hash of all bytes would take as long as loading them. Raises `OSError`.
    """
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        digest.update(f"{path.name} {size}".encode())
        with path.open("rb") as file:
            if size <= _WHOLE:
                digest.update(file.read())
                continue
            for index in range(_PIECES):
                file.seek((size - _PIECE) * index // (_PIECES - 1))
                digest.update(file.read(_PIECE))
    return digest.hexdigest()[:32]
