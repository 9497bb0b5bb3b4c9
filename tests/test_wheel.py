"""What is installed is what lies here: the wheel holds every module and data file, and works away from the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[1]
FOLDERS = ("vw2_robot", "envs", "pretrain", "finetune", "rollouts", "configs")
PAGES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "ATTRIBUTIONS.md")

pytestmark = pytest.mark.slow

IMPORT_ALL = """
import importlib, json, pkgutil, sys, vw2_robot
names = [found.name for found in pkgutil.walk_packages(vw2_robot.__path__, "vw2_robot.")]
print(json.dumps({name: importlib.import_module(name).__file__ for name in ["vw2_robot", *names]}))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build product is left in the checkout."""
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools 77: make setup")
    copy = tmp_path_factory.mktemp("source")
    for folder in FOLDERS:
        shutil.copytree(REPO / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for page in PAGES:
        shutil.copy(REPO / page, copy)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", str(copy), "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out))
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    pip("install", str(wheel), "--no-deps", "--no-index", "--no-compile", "--target", str(target))
    return target


def pip(*arguments: str) -> None:
    run([sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], cwd=Path.home())


def run(command: list[str], *, cwd: Path, path: Path | None = None) -> str:
    environment = {**os.environ, **({"PYTHONPATH": str(path)} if path else {})}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def files_here() -> set[str]:
    """Every file of every package, by the path that it has in the wheel."""
    found = set()
    for folder in FOLDERS:
        for path in (REPO / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                name = path.relative_to(REPO).as_posix()
                found.add(name if folder == "vw2_robot" else f"vw2_robot/{name}")
    return found


def test_wheel_adds_exactly_one_name(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (top_level,) = (name for name in names if name.endswith(".dist-info/top_level.txt"))
        assert archive.read(top_level).decode().split() == ["vw2_robot"]
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"vw2_robot"}


def test_wheel_holds_every_module_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert files_here() == packed


def test_wheel_carries_the_license_and_the_attributions(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {Path(name).name for name in archive.namelist() if ".dist-info/" in name}
    assert {"LICENSE", "ATTRIBUTIONS.md"} <= names


def test_every_module_imports_from_the_installed_copy(installed: Path, tmp_path: Path) -> None:
    origins = json.loads(run([sys.executable, "-c", IMPORT_ALL], cwd=tmp_path, path=installed).splitlines()[-1])
    assert len(origins) == len([name for name in files_here() if name.endswith(".py")])
    assert [name for name, file in origins.items() if not Path(file).is_relative_to(installed)] == []


def test_every_command_prints_its_help_from_the_installed_copy(installed: Path, tmp_path: Path) -> None:
    commands = [path for path in sorted((installed / "bin").iterdir()) if path.is_file()]
    assert commands
    for command in commands:
        printed = run([sys.executable, str(command), "--help"], cwd=tmp_path, path=installed)
        assert "Example" in printed, command.name
        assert list(tmp_path.iterdir()) == [], f"{command.name} --help wrote into the working directory"
