""".ci/release: the files of a release, from a commit of this repository."""

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import vw2_robot

REPO = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.slow


def test_a_release_has_wheel_policies_and_caches_with_their_sums(tmp_path):
    pytest.importorskip("setuptools", minversion="77", reason="building a wheel needs setuptools 77: make setup")
    if shutil.which("git") is None or not (REPO / ".git").exists():
        pytest.skip("a release is built from a commit, and this is no git checkout")
    run = tmp_path / "first"
    shutil.copytree(REPO / "vw2_robot/checkpoints/calvin-tiny", run / "finetune")
    (run / "latents").mkdir()
    (run / "latents/index.json").write_text("{}")
    environment = {**os.environ, "VENV": sys.prefix, "PYTHONPATH": str(REPO), "PIP_NO_INDEX": "1"}
    environment["REPOSITORY"] = "https://example.org/owner/name"
    command = [REPO / ".ci/release", tmp_path / "out", run]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    sums = dict(reversed(line.split()) for line in (tmp_path / "out/SHA256SUMS").read_text().splitlines())
    assert {name.split("-0.")[0] for name in sums} == {
        "vw2_robot",
        "calvin-tiny.tar.gz",
        "first-policy.tar.gz",
        "first-latents.tar.gz",
    }
    for name, digest in sums.items():
        assert hashlib.sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest
    (wheel,) = (tmp_path / "out").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        page = archive.read(metadata).decode()
    assert f"](https://example.org/owner/name/blob/v{vw2_robot.__version__}/docs/questions.md)" in page
    with tarfile.open(tmp_path / "out/first-latents.tar.gz") as archive:
        assert [(member.name, member.mtime) for member in archive] == [
            ("first-latents", 0),
            ("first-latents/index.json", 0),
        ]
