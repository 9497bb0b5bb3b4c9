"""Program: write the built-in scenes (robots, tables A to D, blocks, floor) into `envs/assets`.

    python -m vw2_robot.envs.asset_tools.make_assets

The folder has the layout of the CALVIN simulator's data folder, so `CalvinEnv` takes either. Everything in it is
generated from the numbers in `tables.py`, `panda.py`, `blocks.py` and `other_robots.py`; run this program again after
changing one of them, and commit its output. The Panda's shape is made from the meshes that come with pybullet.
"""

from __future__ import annotations

import sys
from pathlib import Path

from vw2_robot.errors import require
from vw2_robot.storage.files import atomic_write

from .blocks import block_files, plane_files
from .other_robots import robot_files
from .panda import panda_files
from .tables import TABLES, table_files

Files = dict[str, bytes]
ASSETS = Path(__file__).parents[1] / "assets"


def asset_files() -> Files:
    """Return the content of every generated file, by path relative to the assets folder."""
    shipped = Path(require("pybullet_data", extra="calvin").getDataPath())
    files = {**panda_files(shipped / "franka_panda"), **robot_files(), **block_files(), **plane_files()}
    for scene in TABLES:
        files |= table_files(scene)
    return files


def write_assets(folder: Path = ASSETS) -> int:
    """Write the files that differ from those in `folder`; return the size of all generated files in bytes."""
    files = asset_files()
    for name, content in files.items():
        path = folder / name
        if path.is_file() and path.read_bytes() == content:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, sync=False) as temporary:
            temporary.write_bytes(content)
    return sum(len(content) for content in files.values())


def main() -> None:
    """Write the assets and print their size."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS
    print(f"{folder}: {write_assets(folder) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
