"""The decoder of the embedded world model."""

from __future__ import annotations

from torch import Tensor

from paceline.stages.dit.patches import decode

__all__ = ["PatchDecoder"]


class PatchDecoder:
    """The model works in pixels, so this is patch decoding, without state. See `FrameDecoder`."""

    def __init__(self, grid_y: int) -> None:
        """`grid_y` is the rows of tokens."""
        self._grid_y = grid_y

    def open(self, session: int) -> None:
        """Nothing to keep."""

    def decode(self, session: int, frame: int, latent: Tensor) -> Tensor:
        """One picture `[1, H, W, 3]`."""
        return decode(latent, self._grid_y).cpu()[None]

    def close(self, session: int) -> None:
        """Nothing to free."""
