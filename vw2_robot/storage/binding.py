"""The binding of a folder to one configuration: what was begun with one is never continued with another.

A program that can be stopped and started again keeps its configuration in a file of its output folder. The next start
compares the two. A changed value would mix two experiments in one folder, so it is refused with the names of the keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.command_line.config_tree import differing_keys
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json, write_json


def check_same_config(
    folder: Path, stored: Mapping[str, Any], config: Mapping[str, Any], *, holds: str, advice: str
) -> None:
    """Compare the configuration that a folder was begun with and the one of this start.

    Args:
        folder: what was begun, for the message.
        stored: nested plain values that were read from the folder, under today's keys.
        config: nested plain values of this start.
        holds: what the folder has, for the message: "a recording with another configuration".
        advice: what a person can do, as a sentence without its full stop.

    Raises:
        InputError: they differ; the message names each key with both values.
    """
    if names := differing_keys(dict(stored), dict(config)):
        raise InputError(f"{folder} holds {holds}; these keys differ: {', '.join(names)}. {advice}")


def bind_folder(
    folder: Path, config: Mapping[str, Any], *, file: Path, holds: str, advice: str, begun: bool = True
) -> None:
    """Bind a folder to a configuration: check the one that it was begun with, then write this one.

    Args:
        folder: the output of a program.
        config: nested plain values that decide what is written there.
        file: sealed JSON file that keeps the configuration.
        holds: see `check_same_config`.
        advice: see `check_same_config`.
        begun: False where nothing but `file` is left of the earlier output, so that any configuration may begin.

    Raises:
        InputError: the folder is bound to another configuration, or `file` is damaged.
    """
    # Written again even if nothing changed: a configuration of an earlier release then has today's keys.
    if begun and file.is_file():
        stored = with_new_keys(read_json(file, cure=f"restore it, or delete it with {folder.name} to start over"))
        # Both under today's keys, whichever of them a program still uses.
        check_same_config(folder, stored, with_new_keys(dict(config)), holds=holds, advice=advice)
    write_json(file, config, sealed=True)
