from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vw2_robot.envs.asset_files import BUILTIN_ASSETS, find_assets
from vw2_robot.envs.scene import SCENES
from vw2_robot.errors import InputError


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILTIN_ASSETS, tmp_path / "assets"))


@pytest.mark.parametrize("scene", SCENES)
def test_the_builtin_assets_are_complete(scene: str) -> None:
    assert find_assets("builtin", scene) == BUILTIN_ASSETS.resolve()


def test_a_directory_elsewhere_is_used_as_it_is(copy: Path) -> None:
    assert find_assets(copy, "A") == copy.resolve()


def test_an_empty_directory_is_refused_with_a_list_of_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="misses 6 file") as caught:
        find_assets(tmp_path, "B")
    for name in (
        "franka_panda/panda_longer_finger.urdf",
        "blocks/block_red_small.urdf",
        "blocks/block_blue_big.urdf",
        "blocks/block_pink_middle.urdf",
        "calvin_table_B/urdf/calvin_table_B.urdf",
        "plane/plane.urdf",
    ):
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "pattern",
    ["calvin_table_D/**/*.obj", "calvin_table_D/**/*.mtl", "calvin_table_D/**/*.png", "franka_panda/**/*.obj"],
)
def test_a_missing_mesh_mtl_file_or_texture_is_named(pattern: str, copy: Path) -> None:
    gone = sorted(copy.glob(pattern))[0]
    gone.unlink()
    with pytest.raises(InputError, match=gone.relative_to(copy).as_posix()):
        find_assets(copy, "D")


def test_files_of_other_scenes_may_be_missing(copy: Path) -> None:
    shutil.rmtree(copy / "calvin_table_C")
    find_assets(copy, "D")
