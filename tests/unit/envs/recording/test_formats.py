"""Parts of a container and the file beside a recording: damage is reported, a kill leaves nothing behind."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("pybullet")
pytest.importorskip("imageio_ffmpeg")

from vw2_robot.data.calvin_writer import Label
from vw2_robot.envs.recording.demonstrations import RecordedDemonstration
from vw2_robot.envs.recording.formats import PartsOutput, parts_output
from vw2_robot.envs.recording.record import bind_output
from vw2_robot.errors import InputError
from vw2_robot.storage.files import write_json

WANTED = {"episodes": 2, "seed": 0, "env": {"scene": "D"}, "perturbations": 0.05}


def recording(number: int) -> RecordedDemonstration:
    images = np.random.default_rng(number).integers(0, 256, (6, 16, 16, 3), dtype=np.uint8)
    arrays = {"rgb_static": images, "commanded_actions": np.full((6, 7), number / 4)}
    return RecordedDemonstration(
        "D", (Label("push", f"push it {number} times", 0, 5),), arrays, failed=("push",), hz=5.0
    )


def waiting(out: Path) -> PartsOutput:
    """Two recordings that are stored beside `out`."""
    output = parts_output("video", out, world="calvin", actions="-")
    for number in range(2):
        output.add("training", number, recording(number))
    return output


def content(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the two recordings' container."""
    out = tmp_path_factory.mktemp("packed") / "videos"
    waiting(out).finish(["training"])
    assert [path.name for path in out.parent.iterdir()] == ["videos"]
    return content(out)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=st.integers(0, 1), place=st.floats(0, 1, exclude_max=True), kind=st.sampled_from([*range(8), "cut"]))
def test_no_damage_to_a_waiting_recording_reaches_a_container(tmp_path, packed, number, place, kind):
    shutil.rmtree(tmp_path / "try", ignore_errors=True)
    output = waiting(tmp_path / "try/videos")
    file = tmp_path / f"try/videos.parts/training/part_{number:07d}.npz"
    data = bytearray(file.read_bytes())
    if kind == "cut":
        del data[int(place * len(data)) :]
    else:
        data[int(place * len(data))] ^= 1 << kind
    file.write_bytes(data)
    try:
        output.finish(["training"])
    except InputError as error:
        assert str(file) in str(error)  # noqa: PT017 - either outcome is right
        assert not output.is_complete()
        assert output.has("training", 0)
        assert sorted(path.name for path in (tmp_path / "try").iterdir()) == ["videos.parts"]
    else:
        assert content(tmp_path / "try/videos") == packed


def test_a_kill_while_packing_or_just_after_leaves_nothing_for_long(tmp_path, packed):
    out = tmp_path / "videos"
    output = waiting(out)
    half = tmp_path / ".videos.tmp/training"  # where a killed start was writing
    half.mkdir(parents=True)
    (half / "video_0000000.mp4").write_bytes(b"half")
    shutil.copytree(tmp_path / "videos.parts", tmp_path / "kept")
    output.finish(["training"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "videos"]
    assert content(out) == packed
    (tmp_path / "kept").rename(tmp_path / "videos.parts")  # killed between the container and the end of the parts
    assert parts_output("video", out, world="calvin", actions="-").is_complete()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["videos"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), kind=st.sampled_from([*range(8), "cut", "zeros"]))
def test_no_damage_to_the_note_beside_a_recording_is_silent(tmp_path, place, kind):
    out, note = tmp_path / "demo", tmp_path / "demo.record.json"
    out.mkdir(exist_ok=True)
    note.unlink(missing_ok=True)
    with pytest.raises(InputError, match="was not begun by vw2-record"):
        bind_output(out, WANTED)
    out.rmdir()
    bind_output(out, WANTED)
    whole = note.read_bytes()
    out.mkdir()
    bind_output(out, WANTED)
    with pytest.raises(InputError, match=r"these keys differ: seed \(0 -> 1\)"):
        bind_output(out, {**WANTED, "seed": 1})
    data = bytearray(whole)
    at = int(place * len(data))
    if kind in ("cut", "zeros"):
        data[at:] = bytes(len(data) - at) if kind == "zeros" else b""
    else:
        data[at] ^= 1 << kind
    note.write_bytes(data)
    try:
        bind_output(out, WANTED)
    except InputError as error:
        assert "demo" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert note.read_bytes() == whole


def test_a_recording_of_an_earlier_release_is_continued(tmp_path: Path) -> None:
    folder = "vw2_robot.envs.other_robots.environment"
    old = {
        "bumps": 0.0,  # an old name
        "mistakes": 0.0,
        "env": {"_target_": f"{folder}.arms_episodes", "arms": ["iiwa"]},
    }  # an old name
    new = {
        "perturbations": 0.0,
        "failed_attempts": 0.0,
        "env": {"_target_": f"{folder}.solved_episodes", "embodiments": ["iiwa"]},
    }
    (tmp_path / "demo").mkdir()
    write_json(tmp_path / "demo.record.json", old, sealed=True)
    bind_output(tmp_path / "demo", new)
    with pytest.raises(InputError, match=r"these keys differ: perturbations \(0.0 -> 0.1\)"):
        bind_output(tmp_path / "demo", {**new, "perturbations": 0.1})
