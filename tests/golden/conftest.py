"""Where the recordings of the reference simulator and its assets lie, and what it means to agree with them."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vw2_robot.envs.physics import pybullet_version

RECORDED_WITH = ({"pybullet": "3.2.7"}, "Linux", "x86_64")
SAME_BYTES = (RECORDED_WITH, ({"pybullet-arm64": "3.2.8"}, "Linux", "x86_64"))  # the second: Python 3.12 and later
ROBOT_ANGLES, SCENE_ANGLES = [3, 4, 5], [9, 10, 11, 15, 16, 17, 21, 22, 23]  # Euler: pi and -pi are one angle


@dataclass(frozen=True)
class Agreement:
    """How closely a simulator must repeat a recording. `before_contact`: rows until the arm first touches anything."""

    name: str
    exact: bool

    def states(self, robot_obs: NDArray[Any], scene_obs: NDArray[Any], recording: Any, *, before_contact: int) -> None:
        """Equal bytes in all rows; or 1e-6 before the first contact, after which rounding errors grow without bound."""
        for name, found, angles in (("robot_obs", robot_obs, ROBOT_ANGLES), ("scene_obs", scene_obs, SCENE_ANGLES)):
            recorded = recording[name]
            assert found.shape == recorded.shape
            if self.exact:
                np.testing.assert_array_equal(found, recorded, err_msg=name)
                continue
            assert before_contact > 0
            difference = (found - recorded)[:before_contact]
            difference[:, angles] = (difference[:, angles] + np.pi) % (2 * np.pi) - np.pi
            assert np.abs(difference).max() < 1e-6, name

    def image(self, found: NDArray[np.uint8], recorded: NDArray[np.uint8]) -> None:
        """Equal bytes; or two gray levels on average."""
        assert found.shape == recorded.shape
        if self.exact:
            np.testing.assert_array_equal(found, recorded)
        else:
            assert np.abs(found.astype(float) - recorded).mean() < 2

    def depth(self, found: NDArray[np.float32], recorded: NDArray[np.float32]) -> None:
        """Equal bytes; or a centimeter on average."""
        assert found.shape == recorded.shape
        if self.exact:
            np.testing.assert_array_equal(found, recorded)
        else:
            assert np.abs(found - recorded).mean() < 0.01


BIT_EXACT, TOLERANCE = Agreement("bit_exact", exact=True), Agreement("tolerance", exact=False)


def agreement_here() -> Agreement:
    """What this machine owes: the bytes on the build that made the recordings and its equals, else the tolerances."""
    here = (pybullet_version(), platform.system(), platform.machine())
    return BIT_EXACT if here in SAME_BYTES else TOLERANCE


@pytest.fixture(scope="session", params=[agreement_here()], ids=lambda agreement: agreement.name)
def agreement(request: pytest.FixtureRequest) -> Agreement:
    """Stands in the id of each test that compares with a recording."""
    chosen: Agreement = request.param
    return chosen


@pytest.fixture(scope="session")
def tolerance() -> Agreement:
    return TOLERANCE


def _existing(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"no {folder.parent.name}/{folder.name} in the shared data")
    return folder


@pytest.fixture(scope="session")
def calvin_dir(shared_dir: Path) -> Path:
    return _existing(shared_dir / "calvin")


@pytest.fixture(scope="session")
def golden_dir(calvin_dir: Path) -> Path:
    return _existing(calvin_dir / "golden")


@pytest.fixture(scope="session")
def reference_assets(calvin_dir: Path) -> Path:
    return _existing(calvin_dir / "data")
