"""The device of a rank."""

from __future__ import annotations

import os

import torch

from paceline.runtime.errors import PacelineError

__all__ = ["own_device"]


def own_device(device: str) -> str:
    """The device of this rank: plain `cuda` is the GPU that the launcher's LOCAL_RANK counts out."""
    if device == "cuda":
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', '0')) % max(1, torch.cuda.device_count())}"
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise PacelineError(f"a group asks for device {device}, and torch sees no GPU here; set its device to cpu")
        torch.cuda.set_device(device)
    return device
