"""Folders of videos: files become episodes, captions their words, and nothing doubtful is read."""

import json
import os
import pickle

import numpy as np
import pytest

from vw2_robot.data.sources import video_folder
from vw2_robot.data.sources.video_folder import VideoFolderSource
from vw2_robot.errors import InputError

pytest.importorskip("av", reason="PyAV is not installed (extra video)")


def caption(folder, *rows, name="captions.jsonl"):
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))


def everything(source):
    return [episode for part in range(len(source.parts())) for episode in source.read(part)]


def numbers(episode, number_of):
    return [number_of(episode.decode(index)) for index in range(len(episode))]


def test_every_video_is_an_episode_with_its_caption(tmp_path, video, number_of):
    video(tmp_path / "fold" / "b.mp4", range(5))
    video(tmp_path / "fold" / "a.webm", range(8, 14), codec="libvpx-vp9")
    video(tmp_path / "c.mp4", range(3), hz=25)
    caption(tmp_path / "fold", {"file": "b.mp4", "instruction": " fold the paper ", "task": "fold", "frames": 5})
    caption(tmp_path, {"file_name": "c.mp4", "text": "stack blocks"}, name="metadata.jsonl")
    source = VideoFolderSource(tmp_path, name="craft")
    assert [(part.name, part.episodes) for part in source.parts()] == [
        ("c.mp4", None), ("fold/a.webm", None), ("fold/b.mp4", 1),
    ]  # fmt: skip
    found = everything(pickle.loads(pickle.dumps(source)))
    assert [(e.source, e.episode_id, e.instruction, e.hz) for e in found] == [
        ("craft", "c.mp4", "stack blocks", 25.0),
        ("craft", "fold/a.webm", "", 10.0),
        ("craft", "fold/b.mp4", "fold the paper", 10.0),
    ]
    assert [numbers(episode, number_of) for episode in found] == [[0, 1, 2], [8, 9, 10, 11, 12, 13], [0, 1, 2, 3, 4]]
    assert all(isinstance(image, bytes) for episode in found for image in episode.images)


def test_a_long_video_comes_in_pieces_and_can_be_resumed(tmp_path, video, number_of, monkeypatch):
    monkeypatch.setattr(video_folder, "SEGMENT_FRAMES", 8)
    video(tmp_path / "a.mp4", range(20))
    caption(tmp_path, {"file": "a.mp4", "frames": 20})
    source = VideoFolderSource(tmp_path)
    assert source.parts()[0].episodes == 3
    pieces = list(source.read(0))
    assert [piece.episode_id for piece in pieces] == ["a.mp4", "a.mp4#8", "a.mp4#16"]
    assert [n for piece in pieces for n in numbers(piece, number_of)] == list(range(20))
    for start in range(4):
        again = list(source.read(0, start=start))
        assert [(e.episode_id, e.images) for e in again] == [(e.episode_id, e.images) for e in pieces[start:]]


def test_a_rate_that_is_given_overrules_the_times_in_the_file(tmp_path, video, number_of):
    video(tmp_path / "a.mkv", range(4), times=[0, 100, 400, 500])
    even = everything(VideoFolderSource(tmp_path))[0]
    assert len(even) == 1 + round(0.5 * even.hz)
    as_told = everything(VideoFolderSource(tmp_path, hz=5.0))[0]
    assert (as_told.hz, numbers(as_told, number_of)) == (5.0, [0, 1, 2, 3])
    caption(tmp_path, {"file": "a.mkv", "hz": 2.5})
    assert everything(VideoFolderSource(tmp_path))[0].hz == 2.5


def test_a_broken_video_stops_with_its_name_and_leaves_the_others_readable(tmp_path, video):
    video(tmp_path / "good.mp4", range(3))
    (tmp_path / "bad.mp4").write_bytes(b"no video")
    source = VideoFolderSource(tmp_path)
    with pytest.raises(InputError, match=r"bad\.mp4 cannot be read as a video"):
        list(source.read(0))
    assert len(next(source.read(1))) == 3


def test_hidden_and_unfinished_files_are_left_alone(tmp_path, video):
    video(tmp_path / "a.mp4", range(2))
    (tmp_path / ".b.mp4").write_bytes(b"being written")
    (tmp_path / "notes.txt").write_text("hello")
    assert [part.name for part in VideoFolderSource(tmp_path).parts()] == ["a.mp4"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{not json", r"captions\.jsonl, line 2: no JSON"),
        ('["a.mp4"]', r'line 2: expected an object with "file"'),
        ('{"instruction": "fold"}', r'line 2: expected an object with "file"'),
        ('{"file": "gone.mp4"}', r"captions\.jsonl names gone\.mp4, which is not there"),
        ('{"file": "../other/a.mp4"}', r"names \.\./other/a\.mp4, which is not there"),
        ('{"file": "a.mp4", "instruction": 3}', "line 2: the instruction must be text"),
        ('{"file": "a.mp4", "hz": 0}', "line 2: hz must be a positive number"),
        ('{"file": "a.mp4", "hz": "fast"}', "line 2: hz must be a positive number"),
        ('{"file": "a.mp4", "hz": NaN}', "line 2: hz must be a positive number"),
        ('{"file": "a.mp4", "hz": 1' + "0" * 400 + "}", "line 2: hz must be a positive number"),
        ("[" * 100_000, "line 2: no JSON"),
    ],
)
def test_a_table_of_captions_is_taken_seriously(tmp_path, line, said):
    (tmp_path / "a.mp4").touch()
    (tmp_path / "captions.jsonl").write_text('{"file": "a.mp4"}\n' + line + "\n")
    with pytest.raises(InputError, match=said):
        VideoFolderSource(tmp_path)


def test_captions_hold_any_character_that_json_allows(tmp_path, video):
    video(tmp_path / "a.mp4", range(2))
    row = {"file": "a.mp4", "instruction": "open\u2028the\x85drawer"}
    (tmp_path / "captions.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8-sig")
    assert everything(VideoFolderSource(tmp_path))[0].instruction == row["instruction"]
    caption(tmp_path, {"file": "a.mp4", "instruction": "half a \ud800"})
    with pytest.raises(InputError, match=r"a\.mp4.*is no valid text"):
        everything(VideoFolderSource(tmp_path))


def test_links_to_videos_and_to_folders_of_videos_are_followed_and_never_in_circles(tmp_path, video):
    video(tmp_path / "disk" / "a.mp4", range(2))
    (tmp_path / "set" / "training").mkdir(parents=True)
    (tmp_path / "set" / "training" / "more").symlink_to(tmp_path / "disk")
    (tmp_path / "set" / "b.mp4").symlink_to(tmp_path / "disk" / "a.mp4")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "set")
    assert [video.name for video in VideoFolderSource(tmp_path / "set").videos] == ["b.mp4", "training/more/a.mp4"]


def test_a_name_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.mp4").touch()
    (tmp_path / os.fsdecode(b"bad\xff.mp4")).touch()
    with pytest.raises(InputError, match=r"holds b'bad\\xff\.mp4', a name that is not UTF-8"):
        VideoFolderSource(tmp_path)


def test_a_folder_without_videos_says_what_was_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"holds no video.*\.mp4, \.webm"):
        VideoFolderSource(tmp_path)
    with pytest.raises(InputError, match="is not a folder"):
        VideoFolderSource(tmp_path / "gone")


@pytest.mark.sim
def test_what_the_recorder_writes_as_video_is_read(tmp_path, monkeypatch):
    pytest.importorskip("pybullet", reason="PyBullet is not installed (extra calvin)")
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (extra report)")
    from vw2_robot.command_line.entry_points import record

    arguments = ["env.scene=D", "episodes=2", "validation_episodes=1", "tasks=basic", "format=video"]
    monkeypatch.setattr("sys.argv", ["vw2-record", *arguments, f"out={tmp_path / 'videos'}"])
    record.main()
    source = VideoFolderSource(tmp_path / "videos")
    found = everything(source)
    assert sorted({episode.episode_id.split("/")[0] for episode in found}) == ["training", "validation"]
    assert [part.episodes for part in source.parts()] == [1] * len(found) == [1] * 3
    for video, episode in zip(source.videos, found, strict=True):
        assert (episode.hz, len(episode), episode.decode(0).shape) == (30.0, video.num_frames, (200, 200, 3))
        assert episode.instruction
        assert np.ptp(episode.decode(0)) > 100
