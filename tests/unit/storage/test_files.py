"""Files are whole or absent, carry the name of the file in every error, and tell when they were damaged."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vw2_robot.errors import InputError
from vw2_robot.storage import files


def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("old")

    def fail() -> None:
        with files.atomic_write(file) as temporary:
            temporary.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        fail()
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_is_replaced_whole_or_stays(tmp_path: Path) -> None:
    folder = tmp_path / "step_1"
    for text in ("one", "two"):
        with files.atomic_folder(folder) as temporary:
            (temporary / "f").write_text(text)
        assert (folder / "f").read_text() == text

    def stop() -> None:
        with files.atomic_folder(folder) as temporary:
            (temporary / "f").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop()
    assert (folder / "f").read_text() == "two"
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


def test_content_is_on_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, other: (calls.append("rename"), rename(self, other))[1])
    files.write_text(tmp_path / "latest", "step_1\n")
    assert calls == [".latest.tmp", "rename", tmp_path.name]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError("12288 requested and 0 written"),
        OSError("Not enough free space to write 41250816 bytes"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("/out/.x.tmp/train.tfrecord-00000; No space left on device"),
    ],
)
def test_a_full_disk_is_told_with_the_name_of_the_file(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(OSError, match="No space left") as raised, files.atomic_write(tmp_path / "model"):
        raise error
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(tmp_path / "model"))


def test_numpy_on_a_full_device_is_told_with_the_name_of_the_file() -> None:
    with pytest.raises(OSError, match="No space left") as raised, files.named(Path("/dev/full")):
        np.zeros(4096).tofile("/dev/full")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, "/dev/full")


@settings(max_examples=60, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_of_a_sealed_file_is_never_silent(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int
) -> None:
    file, content = tmp_path_factory.mktemp("sealed") / "index.json", {"shards": 3, "digest": "ab12", "hz": 5.0}
    files.write_json(file, content, sealed=True)
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1 << bit
    file.write_bytes(data)
    try:
        assert files.read_json(file, cure="make it again", sealed=True) == content  # white space may change
    except InputError as error:
        assert str(file) in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 200_000, '{"a": 1}\udcff'])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    file = tmp_path / "x.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=r"x\.json is damaged.*copy it again"):
        files.read_json(file, cure="copy it again")


def test_a_manifest_tells_every_kind_of_damage(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a").write_bytes(b"a" * 10)
    (tmp_path / "sub/b").write_bytes(b"b")
    assert not files.verify(tmp_path, cure="copy it again")
    files.write_manifest(tmp_path)
    assert files.verify(tmp_path, cure="copy it again")
    (tmp_path / "mine.txt").write_text("files of others are no damage")
    assert files.verify(tmp_path, cure="copy it again")
    with pytest.raises(InputError, match=r"does not list model; copy it again"):
        files.verify(tmp_path, cure="copy it again", names=["model"])
    (tmp_path / "sub/b").write_bytes(b"c")
    assert files.verify(tmp_path, cure="copy it again", names=["a"])
    with pytest.raises(InputError, match=r"sub/b is damaged.*copy it again"):
        files.verify(tmp_path, cure="copy it again")
    (tmp_path / "sub/b").unlink()
    with pytest.raises(InputError, match=r"sub/b cannot be read"):
        files.verify(tmp_path, cure="copy it again")


def test_a_manifest_does_not_reach_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/manifest.json").write_text(json.dumps({"sha256": {"../secret": "0"}}))
    with pytest.raises(InputError, match="outside the folder"):
        files.verify(tmp_path / "in", cure="copy it again")
