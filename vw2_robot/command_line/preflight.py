"""Checks before any work: the device, the files and folders that a configuration names, room on the disk.

What a run needs late would otherwise be missed after hours of decoding or training.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from vw2_robot.devices import Hardware, open_device
from vw2_robot.errors import InputError, require
from vw2_robot.limits import EXISTING

OUTPUT_KEYS = ("run_dir", "out")
MIN_FREE_BYTES = 100 * 10**6
"""less is not enough for the logs and tables of any program"""


def check_before_work(config: Any) -> None:
    """Check what a program will need.

    Args:
        config: its configuration.

    Raises:
        InputError: a path does not exist, an output folder cannot be written or is on a full disk, or the device is
            not there.
        MissingExtraError: metrics are to go where an extra is missing.
    """
    for key, path in named_paths(config):
        if "://" not in path and not Path(path).exists():
            raise InputError(f"{key}={path}: there is no such file or folder")
    for key in OUTPUT_KEYS:
        if (value := getattr(config, key, None)) is not None:
            check_output(key, Path(value))
    if getattr(config, "track", None) == "wandb":
        require("wandb", extra="wandb")
    # Last, since torch takes seconds to import.
    if isinstance(hardware := getattr(config, "hardware", None), Hardware):
        hardware.torch_device()
    # Also of a policy that computes nothing on it: the run would store a device that it did not have.
    if (device := getattr(config, "device", "auto")) not in ("auto", "cpu"):
        open_device(device)


def named_paths(config: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield key and value of every path in a configuration that must exist (`limits.ExistingPath`), where it is given.

    Args:
        config: a dataclass.
        prefix: of the keys, in the recursion.
    """
    annotations = get_type_hints(type(config), include_extras=True)
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from named_paths(value, f"{prefix}{field.name}.")
        elif value is not None and _must_exist(annotations[field.name]):
            yield f"{prefix}{field.name}", value


def _must_exist(annotation: Any) -> bool:
    return any(part is EXISTING or _must_exist(part) for part in get_args(annotation))


def check_output(key: str, path: Path) -> None:
    """Check that a program can write to a file or folder, which need not exist yet.

    Args:
        key: that names it, for the message.
        path: of the file or folder.

    Raises:
        InputError: it cannot.
    """
    place = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not os.access(place, os.W_OK):
        raise InputError(
            f"{key}={path}: {place} cannot be written; use a folder that is yours, or change its permissions"
        )
    if (free := shutil.disk_usage(place).free) < MIN_FREE_BYTES:
        raise InputError(
            f"{key}={path}: only {free / 1e6:.0f} MB are free there, and a run needs at least "
            f"{MIN_FREE_BYTES / 1e6:.0f} MB; free some space, or use another disk"
        )
