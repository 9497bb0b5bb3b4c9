"""The program: what it prints, what it writes, and with which status it leaves."""

import importlib.metadata
import json
import os
import pickle
import re
import sys

import numpy as np
import pytest

from vw2_robot.command_line.entry_points import doctor
from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.clips import clip_offsets
from vw2_robot.doctor.data_report import ClipOptions, format_bytes, spread_episodes, write_data_report
from vw2_robot.doctor.data_sets import describe, find_data_sets
from vw2_robot.doctor.packages import CORE, list_packages, missing_extras
from vw2_robot.errors import install_command


def write_calvin(root, *, lengths=(40, 8), words=("pull the drawer", "<b>push</b> & hold")):
    writer = CalvinWriter(root, "training")
    for number, (length, sentence) in enumerate(zip(lengths, words, strict=True)):
        rng = np.random.default_rng(number)
        arrays = {
            "rgb_static": rng.integers(0, 256, (length, 20, 30, 3), dtype=np.uint8),
            "actions": np.zeros((length, 7)),
            "rel_actions": np.zeros((length, 7)),
            "robot_obs": np.zeros((length, 15)),
            "scene_obs": np.zeros((length, 24)),
        }
        writer.write_episode(arrays, first_frame=100 * number, task="open_drawer", instruction=sentence, scene="A")
    writer.finish()


def vw2_doctor(monkeypatch, capsys, *arguments):
    """Run the program; return its exit status and what it printed."""
    monkeypatch.setattr(sys, "argv", ["vw2-doctor", *arguments])
    try:
        doctor.main()
        status = 0
    except SystemExit as left:
        status = left.code
    output = capsys.readouterr()
    return status, output.out + output.err


def test_sound_data_is_listed_and_the_status_is_0(tmp_path, monkeypatch, capsys):
    write_calvin(tmp_path / "play")
    status, said = vw2_doctor(monkeypatch, capsys, "data", f"data.path={tmp_path}")
    assert status == 0
    assert re.search(r"play +calvin +- +training 2 +30 +\d+ kB", said)
    assert "packages" not in said


def test_damaged_data_and_no_data_give_status_1_and_say_what_to_do(tmp_path, monkeypatch, capsys):
    status, said = vw2_doctor(monkeypatch, capsys, "data", f"data.path={tmp_path}")
    assert (status, "vw2-record" in said) == (1, True)
    (tmp_path / "old" / "meta").mkdir(parents=True)
    (tmp_path / "old" / "meta" / "info.json").write_text(json.dumps({"codebase_version": "v2.1"}))
    status, said = vw2_doctor(monkeypatch, capsys, "data", f"data.path={tmp_path}")
    assert (status, "convert it with LeRobot" in said) == (1, True)
    status, said = vw2_doctor(monkeypatch, capsys, "data", f"data.path={tmp_path / 'gone'}")
    assert status == 1
    assert "gone is not a folder" in said
    assert "Traceback" not in said


def test_a_mixture_lists_the_command_for_each_missing_set(tmp_path, monkeypatch, capsys):
    write_calvin(tmp_path / "play")
    mixture = tmp_path / "mine.yaml"
    mixture.write_text("toto: 1.0\ntaco_play: 2.0\n")
    (tmp_path / "toto" / "0.1.0").mkdir(parents=True)
    about = {"name": "toto", "version": "0.1.0", "splits": [{"name": "train", "shardLengths": ["1"]}]}
    (tmp_path / "toto" / "0.1.0" / "dataset_info.json").write_text(json.dumps(about))
    (tmp_path / "toto" / "0.1.0" / "features.json").write_text("{}")
    (tmp_path / "toto" / "0.1.0" / "toto-train.tfrecord-00000-of-00001").touch()
    status, said = vw2_doctor(monkeypatch, capsys, "data", f"data.path={tmp_path}", f"data.mixture={mixture}")
    assert status == 1
    assert "1 of 2 data sets lie in" in said
    assert re.search(r"gsutil -m cp -r gs://gresearch/robotics/taco_play/0\.1\.0 \S+/taco_play/", said)
    assert "robotics/toto" not in said


def test_packages_are_listed_by_extra(monkeypatch, capsys):
    try:
        importlib.metadata.distribution("vw2-robot")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vw2-robot is not installed here: make setup")
    status, said = vw2_doctor(monkeypatch, capsys, "packages")
    assert re.search(r"core +torch +\d\S+ +>=2\.4", said)
    assert status == 0
    assert "data sets in" not in said


def test_a_missing_package_is_seen_and_an_unused_extra_does_not_hurt(monkeypatch, capsys):
    lines = ["torch>=2.4", "numpy>=99", 'no-such-thing>=1; extra == "sing"', 'pytest; extra == "dev"']
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    packages = list_packages()
    assert [(p.extra, p.name, p.fits) for p in packages] == [
        (CORE, "torch", True), (CORE, "numpy", False), ("sing", "no-such-thing", False),
    ]  # fmt: skip
    assert missing_extras(packages) == [CORE, "sing"]
    status, said = vw2_doctor(monkeypatch, capsys, "packages")
    assert (status, f"to get what sing needs: {install_command('sing')}" in said) == (1, True)
    del lines[1]
    assert vw2_doctor(monkeypatch, capsys, "packages")[0] == 0


def test_a_checkout_that_is_not_installed_says_so(monkeypatch, capsys):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr("importlib.metadata.requires", absent)
    status, said = vw2_doctor(monkeypatch, capsys, "packages")
    assert (status, f"is not installed: {install_command()}" in said) == (1, True)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (["renderers"], "sections"),
        (["packages", "report=x.html"], "add the section data"),
        (["data", "clips.count=0"], "clips.count=0"),
        (["data", "clips.num_frames=1"], "frames >= 2"),
        (["data", "clips.target_hz=5", "clips.gap_seconds=0.6"], "not both"),
        (["data", "data.depht=3"], "depht"),
    ],
)
def test_what_makes_no_sense_is_refused(monkeypatch, capsys, wrong, said):
    status, output = vw2_doctor(monkeypatch, capsys, *wrong)
    assert status == 1
    assert said in output


def test_a_set_that_tells_no_rate_is_shown_at_the_one_that_is_given(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_robot").mkdir()
    image = np.zeros((4, 5, 3), np.uint8)
    with (tmp_path / "my_robot" / "0.pickle").open("wb") as file:
        pickle.dump({"steps": [{"observation": {"image": image}}] * 6}, file)
    words = ["data", f"data.path={tmp_path}", f"report={tmp_path / 'page.html'}"]
    status, said = vw2_doctor(monkeypatch, capsys, *words)
    assert (status, "give hz, frames per second" in said) == (1, True)
    assert vw2_doctor(monkeypatch, capsys, *words, "clips.hz=5")[0] == 0


def test_the_page_shows_the_images_that_training_would_take_with_their_times(tmp_path):
    write_calvin(tmp_path / "play")
    options = ClipOptions(count=2, num_frames=5, gap_seconds=0.4)
    (sample,) = write_data_report(find_data_sets([tmp_path], depth=1), tmp_path / "out" / "page.html", options)
    first, second = sample.clips
    offsets = clip_offsets(5, temporal_stride=4, hz=30.0, gap_seconds=0.4)
    start = (40 - offsets[-1]) // 2
    assert [frame["number"] for frame in first["frames"]] == (start + offsets).tolist()
    assert first["frames"][1]["time"] == f"{(start + 3) / 30:.2f} s"
    assert [frame["role"] for frame in first["frames"]] == ["anchor", "", "", "", "step 1"]
    assert (first["valid"], second["valid"], first["steps"]) == (1, 0, 1)
    assert [frame["real"] for frame in second["frames"]] == [True, False, False, False, False]
    page = (tmp_path / "out" / "page.html").read_text()
    assert "pull the drawer" in page
    assert "&lt;b&gt;push&lt;/b&gt; &amp; hold" in page
    assert len(re.findall(r"<figure", page)) == 10
    assert not re.findall(r"(?:src|href)=[\"'](?!data:|#)", page)


def test_a_source_that_cannot_be_read_does_not_spoil_the_page(tmp_path, monkeypatch, capsys):
    write_calvin(tmp_path / "good")
    write_calvin(tmp_path / "torn")
    (tmp_path / "torn" / "training" / "episode_0000003.npz").write_bytes(b"torn")
    page = tmp_path / "page.html"
    status, said = vw2_doctor(monkeypatch, capsys, "data", f"data.path={tmp_path}", f"report={page}")
    assert status == 1
    assert "2 clips of 1 data sets" in said
    assert re.search(r"! \S*episode_0000003\.npz cannot be read", said)
    assert "episode_0000003.npz cannot be read" in page.read_text()


def test_names_that_are_not_utf8_are_shown_as_far_as_they_can_be_and_the_page_is_written(tmp_path, monkeypatch, capsys):
    pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    write_calvin(tmp_path / "good")
    write_calvin(tmp_path / os.fsdecode(b"caf\xe9"))
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / os.fsdecode(b"bad\xff.mp4")).touch()
    page = tmp_path / "page.html"
    status, said = vw2_doctor(monkeypatch, capsys, "data", f"data.path={tmp_path}", f"report={page}")
    assert status == 1
    assert "4 clips of 2 data sets" in said
    for text in (said, page.read_text().replace("&#39;", "'")):
        assert r"caf\udce9" in text
        assert r"holds b'bad\xff.mp4', a name that is not UTF-8" in text


class Counting:
    name = "counting"

    def __init__(self, *sizes):
        self.sizes, self.read_parts = sizes, []

    def parts(self):
        return list(self.sizes)

    def read(self, part, *, start=0):
        self.read_parts.append(part)
        yield from ((part, number) for number in range(start, self.sizes[part]))


def test_samples_are_spread_over_the_parts():
    many = Counting(*[1] * 100)
    assert list(spread_episodes(many, 4)) == [(0, 0), (25, 0), (50, 0), (75, 0)]
    assert list(spread_episodes(Counting(9), 3)) == [(0, 0), (0, 1), (0, 2)]
    assert list(spread_episodes(Counting(9, 9), 3)) == [(0, 0), (0, 1), (1, 0)]
    assert list(spread_episodes(Counting(1, 9), 3)) == [(0, 0), (1, 0), (1, 1)]
    assert list(spread_episodes(Counting(1), 3)) == [(0, 0)]


def test_the_real_bridge_is_shown(shared_dir, tmp_path):
    pytest.importorskip("tensorflow_datasets", reason="TFDS is not installed (extra openx)")
    folder = shared_dir / "openx" / "bridge_dataset" / "1.0.0"
    if not folder.is_dir():
        pytest.skip("no Bridge V2 sample in the shared data")
    data_set = describe(folder, "rlds")
    assert (data_set.version, data_set.splits, data_set.hz) == ("1.0.0", {"train": 25, "val": 25}, 5.0)
    (sample,) = write_data_report([data_set], tmp_path / "page.html", ClipOptions())
    assert not sample.problem
    assert len(sample.clips) == 3
    assert all(clip["instruction"] for clip in sample.clips)


@pytest.mark.parametrize(
    ("count", "said"),
    [(None, "?"), (0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (999_900, "1.0 MB"), (517 * 10**9, "517 GB")],
)
def test_sizes_are_for_people(count, said):
    assert format_bytes(count) == said
