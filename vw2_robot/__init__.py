"""vw2_robot: robot policies learned from video with latent action tokens (VideoWorld 2, robotics half).

Data moves one way: Open-X -> clips -> dLDM -> latent codes -> AR policy -> action head -> rollouts -> report.
Importing this package loads neither TensorFlow, Reverb, PyBullet, Hydra nor diffusers; `VW2Agent` is fetched on first
use.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["VW2Agent", "__version__"]

# In a checkout `envs/`, `pretrain/`, ... are next to this folder instead of inside it; in a wheel they are inside and
# nothing is appended (setup.cfg maps them, see CONTRIBUTING.md).
if not (Path(__file__).parent / "envs").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

if TYPE_CHECKING:
    from vw2_robot.agent import VW2Agent


def __getattr__(name: str) -> Any:
    if name == "VW2Agent":
        from vw2_robot.agent import VW2Agent

        return VW2Agent
    raise AttributeError(f"module 'vw2_robot' has no attribute {name!r}")
