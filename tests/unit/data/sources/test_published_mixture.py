import json
import pickle

import numpy as np
import pytest

from vw2_robot.data.sources.pickled_openx import PickledOpenXSource
from vw2_robot.data.sources.published_mixture import open_published_mixture
from vw2_robot.data.sources.video_folder import VideoFolderSource
from vw2_robot.errors import InputError

CLIPS = "Paper_and_Block_clips"


@pytest.fixture
def root(tmp_path):
    """The published layout: two sets of pickles with 4 and 6 frames per file, and clips."""
    for name, frames, files in (("bridge", 4, 3), ("viola", 6, 2)):
        folder = tmp_path / "openx_untar" / name
        folder.mkdir(parents=True)
        for number in range(files):
            stacked = np.zeros((frames, 3, 2, 2), np.uint8)
            (folder / f"{number}.pickle").write_bytes(pickle.dumps({"obs_images": stacked}))
    clips = tmp_path / "Video-CraftBench" / CLIPS
    clips.mkdir(parents=True)
    for name in ("boat_0_0.mp4", "boat_0_1.mp4"):
        (clips / name).write_bytes(b"")
    write(
        tmp_path, {"bridge": 12, "viola": 24, CLIPS: {"estimated_total_frames": 930, "frames_per_file": 93}, "toto": 0}
    )
    return tmp_path


def write(root, folders, **index):
    rows = {name: row if isinstance(row, dict) else {"estimated_total_frames": row} for name, row in folders.items()}
    (root / "openx_videocraft_meta.json").write_text(json.dumps({"subfolders": rows}))
    if index:
        (root / "openx_videocraft_cache.json").write_text(json.dumps(index))


def opened(root):
    return open_published_mixture(root / "openx_videocraft_meta.json", root)


def test_shares_are_those_of_the_table_whatever_lies_there(root):
    found = opened(root)
    assert [(source.name, type(source), len(source.parts()), weight) for source, weight in found] == [
        ("bridge", PickledOpenXSource, 3, 1.0),
        ("viola", PickledOpenXSource, 2, 2.0),  # 24 frames in the table, 12 on disk
        (CLIPS, VideoFolderSource, 2, 5.0),
    ]


def test_the_index_lists_the_files_under_paths_of_another_machine(root):
    paths = {
        "bridge": ["datasets/openx_untar/bridge/2.pickle", "datasets/openx_untar/bridge/0.pickle"],
        CLIPS: [f"/data/someone/Video-CraftBench/{CLIPS}/boat_0_1.mp4"],
    }
    write(
        root,
        {"bridge": 8, "viola": 24, CLIPS: {"estimated_total_frames": 93, "frames_per_file": 93}},
        pickle_paths_by_folder=paths,
    )
    (bridge, weight), (clips, _) = opened(root)
    assert weight == 1.0
    assert [part.name for part in bridge.parts()] == ["2.pickle", "0.pickle"]
    assert next(iter(bridge.read(0))).episode_id == "2"
    assert [part.name for part in clips.parts()] == ["boat_0_1.mp4"]


@pytest.mark.parametrize(
    ("folders", "index", "message"),
    [
        ({"bridge": 1, "toto": 2, "nyu": 3}, {}, "lacks 2 of the 3 folders of .*: toto, nyu"),
        ({"bridge": 1}, {"pickle_paths_by_folder": {"bridge": ["x/bridge/9.pickle"]}}, "lacks 1 of the 1 folders"),
        ({"bridge": 1}, {"pickle_paths_by_folder": ["a"]}, 'no "pickle_paths_by_folder"'),
        ({"bridge": "many"}, {}, "estimated_total_frames of bridge must be a number, found 'many'"),
        ({"bridge": 0}, {}, "gives no folder a share"),
    ],
)
def test_what_is_missing_or_damaged_is_named(root, folders, index, message):
    write(root, folders, **index)
    with pytest.raises(InputError, match=message):
        opened(root)
