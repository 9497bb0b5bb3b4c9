"""Opening of a torch device by name, with an error message that gives the reason where it cannot be used."""

from __future__ import annotations

import torch

from vw2_robot.errors import InputError


def open_device(name: str, *, option: str = "device") -> torch.device:
    """Return a device that torch can compute on.

    Args:
        name: auto (CUDA where there is one), cpu, cuda, cuda:0, mps, ...
        option: the option that the name came from, for the message.

    Raises:
        InputError: no such device, or torch cannot compute on it here.
    """
    found = ("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name
    try:
        device = torch.device(found)
    except RuntimeError as error:
        raise InputError(f"{option}={name}: expected auto, cpu, cuda, cuda:0, ...") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        seen = torch.cuda.device_count() if torch.cuda.is_available() else "no"
        raise InputError(f"{option}={name}, but torch {torch.__version__} sees {seen} CUDA device")
    # A device may have a valid name and still fail at the first tensor, so one is made.
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, ImportError) as error:  # mps elsewhere, meta, no driver
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{option}={name}: torch {torch.__version__} cannot compute on it here ({reason}); give auto or cpu"
        ) from error
    return device
