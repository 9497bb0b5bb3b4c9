"""A pinned work tree: a clone at one commit, and an environment whose package is that clone.

    FOLDER/tree          a clone of its own, so that nothing done in another checkout reaches it
    FOLDER/venv          the third-party packages of the environment that made it (hard links where the disk allows)
    FOLDER/pinned.json   commit, and the version of every package; written last

Edits, other branches and upgrades do not reach a queue that is started from the clone with this environment.
`check_pinned` refuses to run where a file or a package is no longer what was pinned.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from importlib.metadata import distributions
from pathlib import Path

from vw2_robot.storage.files import read_json, write_json

from .job_queue import REPO

LEFT_BEHIND = ("__editable__*vw2_robot*", "vw2_robot")
"""of site-packages: what would lead to another checkout"""
ENVIRONMENT = "import json, sys; print(json.dumps([p for p in sys.path if p]))"


def pin(commit: str, folder: Path, *, repo: Path = REPO, packages: Path | None = None) -> Path:
    """Make a pinned work tree and its environment; return its Python. What is complete is kept.

    Args:
        commit: any name of it that git knows.
        folder: where; it holds one commit for good.
        repo: checkout to clone.
        packages: folder of the third-party packages; None: that of this environment.

    Raises:
        SystemExit: git does not know the commit, the folder holds another one, or the packages lead elsewhere.
    """
    folder = folder.resolve()
    python = folder / "venv" / "bin" / "python"
    full = _git(repo, "rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if (folder / "pinned.json").is_file():
        found = read_json(folder / "pinned.json", cure=f"delete {folder}")["commit"]
        if found != full:
            raise SystemExit(f"{folder} holds commit {found[:7]}, not {full[:7]}; use another folder")
        return python
    # Without the file the folder is not complete: begin anew.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    _git(folder, "clone", "--quiet", "--no-checkout", str(repo), str(folder / "tree"))
    _git(folder / "tree", "checkout", "--quiet", "--detach", full)
    venv.create(folder / "venv", symlinks=True, with_pip=False)
    theirs = folder / "venv" / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
    shutil.copytree(
        packages or Path(sysconfig.get_path("purelib")),
        theirs,
        ignore=shutil.ignore_patterns(*LEFT_BEHIND),
        copy_function=_link,
        dirs_exist_ok=True,
        symlinks=True,
    )
    (theirs / "pinned.pth").write_text(f"{folder / 'tree'}\n", encoding="utf-8")
    # A .pth file may add the packages of another environment, which would not be pinned.
    shown = subprocess.run([str(python), "-I", "-c", ENVIRONMENT], stdout=subprocess.PIPE, check=True, text=True).stdout
    allowed = (folder, Path(sys.base_prefix).resolve())
    if outside := [path for path in json.loads(shown) if not any(Path(path).is_relative_to(top) for top in allowed)]:
        raise SystemExit(
            f"the packages of this environment lie elsewhere, too: {outside}; use one of its own (make setup)"
        )
    write_json(folder / "pinned.json", {"commit": full, "packages": package_versions(theirs)})
    return python


def check_pinned() -> str:
    """Refuse to run in a checkout or an environment that is not pinned; return the commit.

    Raises:
        SystemExit: it is not, or no longer.
    """
    file = REPO.parent / "pinned.json"
    if not file.is_file():
        raise SystemExit(f"{REPO} is not pinned; make such a work tree with `python -m benchmarks.experiment pin`")
    pinned = read_json(file, cure="make the pinned work tree again")
    commit = str(pinned["commit"])
    problems = []
    if _git(REPO, "rev-parse", "HEAD") != commit:
        problems.append(f"it is no longer at {commit[:7]}")
    if changed := _git(REPO, "status", "--porcelain"):
        problems.append(f"files were changed: {changed}")
    if "PYTHONPATH" in os.environ:
        problems.append(f"PYTHONPATH is set ({os.environ['PYTHONPATH']})")
    if Path(sys.prefix).resolve() != REPO.parent / "venv":
        problems.append(f"this is the Python of {sys.prefix}, not of {REPO.parent / 'venv'}")
    elif package_versions(Path(sysconfig.get_path("purelib"))) != pinned["packages"]:
        problems.append("packages were installed or removed")
    package = importlib.util.find_spec("vw2_robot")
    if package is None or package.origin is None or not Path(package.origin).is_relative_to(REPO):
        problems.append(f"vw2_robot is imported from {package and package.origin}")
    if problems:
        raise SystemExit(f"{REPO} is not what was pinned: {'; '.join(problems)}")
    return commit


def package_versions(folder: Path) -> dict[str, str]:
    """Return name -> version of the packages in a folder, sorted; without ours, which is the work tree."""
    found = {one.metadata["Name"]: one.version for one in distributions(path=[str(folder)])}
    return {name: found[name] for name in sorted(found) if name.replace("_", "-") != "vw2-robot"}


def _link(source: str, target: str) -> None:
    """Link a file; copy it where the disk is another one. Installers replace files and do not write into them."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, check=False, text=True)
    if done.returncode:
        raise SystemExit(f"git {' '.join(arguments)}: {done.stderr.strip() or f'status {done.returncode}'}")
    return done.stdout.strip()
