"""Names of videos and clips of Video-CraftBench, and the instructions that follow from them."""

from __future__ import annotations

import re
from pathlib import Path

NAME = re.compile(r"(?P<kind>paper|buildingblock)_(?P<made>[a-z]+(?:_[a-z]+)*?)(?:_supp(?:_complex)?)?(?:_\d+){1,2}")
VERBS = {"paper": "fold a paper", "buildingblock": "build from blocks a"}


def craft_instruction(name: str) -> str:
    """Return the instruction of a video named as in Video-CraftBench, "" for any other name."""
    found = NAME.fullmatch(Path(name).stem)
    return f"{VERBS[found['kind']]} {found['made'].replace('_', ' ')}" if found else ""
