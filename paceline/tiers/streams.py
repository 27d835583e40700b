"""CUDA streams beside the compute's own."""

from __future__ import annotations

import torch

__all__ = ["cuda_event", "cuda_stream"]


def cuda_stream(device: torch.device) -> torch.cuda.Stream | None:
    """A new stream of a CUDA device; None for any other device."""
    if device.type != "cuda":
        return None
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def cuda_event() -> torch.cuda.Event:
    """The present point of the present stream."""
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return event
