"""No simulation outlives its environment, and no reset leaves memory behind."""

from __future__ import annotations

import gc
import shutil
import sys
from pathlib import Path

import pytest

from vw2_robot.envs.asset_files import BUILTIN_ASSETS
from vw2_robot.envs.calvin import CalvinEnv
from vw2_robot.errors import InputError

pytestmark = pytest.mark.sim

WARM_UP_RESETS = 20
GROWTH_MIB = 10  # a world takes about 20, so one forgotten world would show; PyBullet itself grows by 1 in 800 rebuilds


def clients() -> int:
    """How many simulations this process holds."""
    import pybullet

    gc.collect()
    return sum(pybullet.isConnected(client) for client in range(64))


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 2**20


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/self/statm")
@pytest.mark.parametrize(
    ("reset_mode", "resets"),
    [("legacy", 1000), ("exact", 100), pytest.param("exact", 1000, marks=pytest.mark.slow)],
)
def test_resets_leave_no_memory_and_no_simulation_behind(reset_mode: str, resets: int) -> None:
    env = CalvinEnv(cameras=(), reset_mode=reset_mode)
    for _ in range(WARM_UP_RESETS):
        env.reset()
    memory, held = resident_mib(), clients()
    for _ in range(resets):
        env.reset()
    assert clients() == held
    assert resident_mib() - memory < GROWTH_MIB
    env.close()


@pytest.mark.slow
def test_fifty_environments_made_and_closed_leave_no_simulation() -> None:
    before = clients()
    for _ in range(50):
        env = CalvinEnv(cameras=())
        assert clients() == before + 1
        env.close()
        assert clients() == before


def test_an_environment_that_is_forgotten_frees_its_simulation() -> None:
    before = clients()
    for _ in range(3):
        env = CalvinEnv(cameras=())
        env.reset(seed=0)
        env.step([0, 0, 0, 0, 0, 0, 1])
        env.render_camera("static")
    assert clients() == before + 2  # what rests has a simulation of its own
    del env
    assert clients() == before


@pytest.mark.parametrize(
    ("file", "found", "instead", "says"),
    [
        (
            "calvin_table_D/urdf/calvin_table_D.urdf",
            "base__drawer",
            "base__box",
            r"calvin_table_D\.urdf describes no CALVIN table; it lacks base__drawer\. Restore the file",
        ),
        (
            "franka_panda/panda_longer_finger.urdf",
            '"tcp"',
            '"tip"',
            r"panda_longer_finger\.urdf is not CALVIN's arm: expected the links .*'tcp'.*found .*'tip'",
        ),
    ],
)
def test_a_world_that_cannot_be_built_frees_its_simulation(
    tmp_path: Path, file: str, found: str, instead: str, says: str
) -> None:
    assets = Path(shutil.copytree(BUILTIN_ASSETS, tmp_path / "assets"))
    text = (assets / file).read_text()
    assert found in text
    (assets / file).write_text(text.replace(found, instead))
    before = clients()
    with pytest.raises(InputError, match=says) as caught:
        CalvinEnv(cameras=(), assets=assets)
    assert clients() == before  # although `caught` keeps the half-made environment alive
    assert caught.value is not None
