"""LeRobotDataset v3.0: sets laid out as documented are read image by image; everything else is refused clearly."""

import json
import math
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from vw2_robot.data.episodes import encode_jpeg
from vw2_robot.data.sources import lerobot_dataset
from vw2_robot.data.sources.formats import open_training
from vw2_robot.data.sources.lerobot_dataset import LeRobotSource
from vw2_robot.errors import InputError

pa = pytest.importorskip("pyarrow", reason="PyArrow is not installed (extra lerobot)")
pq = pytest.importorskip("pyarrow.parquet", reason="PyArrow is not installed (extra lerobot)")
pytest.importorskip("av", reason="PyAV is not installed (extra lerobot)")

TOP, WRIST = "observation.images.top", "observation.images.wrist"
LENGTHS = ((5, 9, 4), (7, 6))  # episodes of the two files
TASKS = ("put the cube in the cup", "open the lid", "", "close the lid", "wave")


def feature(kind, **about):
    return {"dtype": kind, "shape": [48, 64, 3], "names": ["height", "width", "channels"], **about}


def write_info(root, features, **changes):
    info = {
        "codebase_version": "v3.0",
        "robot_type": "so101",
        "total_episodes": 5,
        "total_frames": 31,
        "total_tasks": 5,
        "chunks_size": 1000,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": 10,
        "splits": {"train": "0:4", "test": "4:5"},
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        "features": {**features, "action": {"dtype": "float32", "shape": [6], "names": None}},
        **changes,
    }
    (root / "meta").mkdir(parents=True, exist_ok=True)
    (root / "meta" / "info.json").write_text(json.dumps(info))


def write_table(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_set(root, video, *, cameras=(TOP,), codec="libx264", gap=0, stored=False, features=None):
    """Write five episodes in two files. Image i of episode e is number 100 e + i; `gap` frames lie between two."""
    rows, number, index = [], 0, 0
    for file, lengths in enumerate(LENGTHS):
        images, data = [], []
        for length in lengths:
            start = len(images)
            shown = [100 * number + i for i in range(length)]
            images += shown + [4095] * gap
            places = {
                f"videos/{camera}/{key}": value
                for camera in cameras
                for key, value in {
                    "chunk_index": 0,
                    "file_index": file,
                    "from_timestamp": start / 10,
                    "to_timestamp": (start + length) / 10,
                }.items()
            }
            rows.append(
                {
                    "episode_index": number,
                    "tasks": [TASKS[number]] if TASKS[number] else [],
                    "length": length,
                    "data/chunk_index": 0,
                    "data/file_index": file,
                    "dataset_from_index": index,
                    "dataset_to_index": index + length,
                    **({} if stored else places),
                    "stats/action/mean": [0.0] * 6,
                }
            )
            for i, shown_number in enumerate(shown):
                row = {"timestamp": i / 10, "frame_index": i, "episode_index": number, "index": index + i}
                data.append({**row, "task_index": number, "action": [0.0] * 6, "_number": shown_number})
            number, index = number + 1, index + length
        if stored:
            for row in data:
                row[TOP] = {"bytes": stored(row.pop("_number")), "path": None}
        else:
            for camera in cameras:
                video(root / "videos" / camera / "chunk-000" / f"file-{file:03d}.mp4", images, codec=codec)
        write_table(root / "data" / "chunk-000" / f"file-{file:03d}.parquet", data)
    write_table(root / "meta" / "episodes" / "chunk-000" / "file-000.parquet", rows[:2])
    write_table(root / "meta" / "episodes" / "chunk-000" / "file-001.parquet", rows[2:])
    kind = "image" if stored else "video"
    write_info(root, features or {camera: feature(kind) for camera in cameras})
    return root


def everything(source):
    return [episode for part in range(len(source.parts())) for episode in source.read(part)]


def shown(episode, number_of):
    return [number_of(episode.decode(index)) for index in range(len(episode))]


WANTED = [[100 * n + i for i in range(length)] for n, length in enumerate(sum(LENGTHS, ()))]


@pytest.mark.parametrize(("codec", "gap"), [("libx264", 0), ("libx264", 3), ("libsvtav1", 0)])
def test_episodes_that_share_a_video_are_told_apart_to_the_frame(tmp_path, video, number_of, codec, gap):
    source = LeRobotSource(write_set(tmp_path / "cups", video, codec=codec, gap=gap))
    assert [(part.name, part.episodes) for part in source.parts()] == [
        (f"videos/{TOP}/chunk-000/file-000.mp4", 3), (f"videos/{TOP}/chunk-000/file-001.mp4", 2),
    ]  # fmt: skip
    found = everything(pickle.loads(pickle.dumps(source)))
    assert [shown(episode, number_of) for episode in found] == WANTED
    assert [episode.instruction for episode in found] == list(TASKS)
    assert [(e.source, e.episode_id, e.hz) for e in found] == [("cups", f"{n:06d}", 10.0) for n in range(5)]


def test_reading_goes_on_at_any_episode(tmp_path, video):
    source = LeRobotSource(write_set(tmp_path, video))
    whole = [episode.images for episode in source.read(0)]
    for start in range(4):
        assert [episode.images for episode in source.read(0, start=start)] == whole[start:]


def test_images_in_parquet_come_as_they_were_stored(tmp_path, video, number_of, image):
    stored = [encode_jpeg(image(number)) for number in range(410)]
    source = LeRobotSource(write_set(tmp_path, video, stored=lambda number: stored[number]))
    assert [part.name for part in source.parts()] == [f"data/chunk-000/file-00{n}.parquet" for n in range(2)]
    assert [episode.images for episode in everything(source)] == [
        tuple(stored[number] for number in numbers) for numbers in WANTED
    ]
    assert [shown(episode, number_of) for episode in source.read(0, start=1)] == WANTED[1:3]


@pytest.mark.parametrize("stored", [False, True])
def test_a_long_episode_comes_in_pieces_and_can_be_resumed(tmp_path, video, number_of, image, monkeypatch, stored):
    monkeypatch.setattr(lerobot_dataset, "SEGMENT_FRAMES", 4)
    write_set(tmp_path, video, stored=(lambda number: encode_jpeg(image(number))) if stored else False)
    source = LeRobotSource(tmp_path)
    pieces = list(source.read(0))
    assert [(piece.episode_id, len(piece)) for piece in pieces] == [
        ("000000", 4), ("000000#4", 1), ("000001", 4), ("000001#4", 4), ("000001#8", 1), ("000002", 4),
    ]  # fmt: skip
    assert source.parts()[0].episodes == 6
    assert [n for piece in pieces for n in shown(piece, number_of)] == [n for numbers in WANTED[:3] for n in numbers]
    for start in range(7):
        again = [(piece.episode_id, piece.images) for piece in source.read(0, start=start)]
        assert again == [(piece.episode_id, piece.images) for piece in pieces[start:]]


def test_cameras_are_named_in_full_or_in_short_and_never_guessed(tmp_path, video):
    depth = feature("video", info={"video.is_depth_map": True})
    features = {TOP: feature("video"), WRIST: feature("video"), "observation.images.depth": depth}
    write_set(tmp_path, video, cameras=(TOP, WRIST), features=features)
    with pytest.raises(InputError, match=f"has 2 cameras; set image_key to one of: {TOP}, {WRIST}"):
        LeRobotSource(tmp_path)
    for asked in ("wrist", WRIST):
        assert WRIST in LeRobotSource(tmp_path, image_key=asked).parts()[0].name
    with pytest.raises(InputError, match=f"no camera 'depth'; it has: {TOP}, {WRIST}"):
        LeRobotSource(tmp_path, image_key="depth")


@pytest.mark.parametrize(
    ("tasks", "text"),
    [(["open", "lid"], "open"), ("open ", "open"), ([b"open"], "open"), ([None], ""), (None, ""), ([], "")],
)
def test_an_instruction_is_the_first_task_however_it_is_stored(tasks, text):
    assert lerobot_dataset._first_task(tasks) == text
    with pytest.raises(TypeError, match="its task is 3, not text"):
        lerobot_dataset._first_task([3])


def test_training_leaves_out_what_the_set_calls_test(tmp_path, video):
    write_set(tmp_path, video)
    (source,) = open_training(tmp_path)
    assert sum(part.episodes for part in source.parts()) == 4
    both = open_training(tmp_path, splits=["train", "test"])
    assert [[part.episodes for part in source.parts()] for source in both] == [[3, 1], [1]]
    write_info(tmp_path, {TOP: feature("video")}, splits={})
    (source,) = open_training(tmp_path)
    assert sum(part.episodes for part in source.parts()) == 5  # no splits: everything is training


def test_a_split_is_its_episodes(tmp_path, video):
    write_set(tmp_path, video)
    assert [e.episode_id for e in everything(LeRobotSource(tmp_path, split="test"))] == ["000004"]
    assert sum(part.episodes for part in LeRobotSource(tmp_path, split="train").parts()) == 4
    with pytest.raises(InputError, match="no split 'val'; available: train, test"):
        LeRobotSource(tmp_path, split="val")


@pytest.mark.parametrize("version", ["v2.1", "v2.0", "v1.6"])
def test_older_versions_are_refused_in_one_sentence_that_says_how_to_convert(tmp_path, version):
    write_info(tmp_path, {}, codebase_version=version)
    with pytest.raises(
        InputError, match=rf"version {version}, expected v3\.0; convert it with LeRobot: python -m"
    ) as caught:
        LeRobotSource(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_version_of_the_future_is_refused(tmp_path):
    write_info(tmp_path, {}, codebase_version="v4.0")
    with pytest.raises(InputError, match=r"version v4\.0, expected v3\.0; only v3\.0 is known"):
        LeRobotSource(tmp_path)


def remove(name):
    return lambda root: (root / name).unlink()


def shorten(name, size):
    return lambda root: (root / name).write_bytes((root / name).read_bytes()[:size])


def place(**changes):
    """Change what the table of episodes says of the last one."""

    def damage(root):
        rows = pq.read_table(root / EPISODES).to_pylist()
        rows[-1] |= {key if key == "length" else f"videos/{TOP}/{key}": value for key, value in changes.items()}
        write_table(root / EPISODES, rows)

    return damage


EPISODES = "meta/episodes/chunk-000/file-001.parquet"
VIDEO = f"videos/{TOP}/chunk-000/file-001.mp4"


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove("meta/info.json"), r"info\.json does not exist; expected a LeRobotDataset v3\.0"),
        (shorten("meta/info.json", 40), r"info\.json is damaged"),
        (shorten(EPISODES, 200), r"file-001\.parquet is no readable parquet file .* never finalized"),
        (remove(VIDEO), r"file-001\.mp4 is missing, one of 1 of 2 files"),
        (shorten(VIDEO, 900), r"episode 000003: .*file-001\.mp4 (cannot be read|is damaged)"),
        (lambda root: write_info(root, {TOP: feature("video")}, fps=0), "fps is 0, expected more than 0"),
        (lambda root: write_info(root, {TOP: feature("video")}, fps="ten"), "fps is 'ten'"),
        (lambda root: write_info(root, {TOP: feature("video")}, fps=math.inf), "fps is inf, expected more than 0"),
        (lambda root: write_info(root, {TOP: feature("video")}, fps=math.nan), "fps is nan, expected more than 0"),
        (lambda root: write_info(root, {TOP: feature("video")}, splits=[1]), r"splits is \[1\]"),
        (lambda root: write_info(root, {TOP: feature("video")}, video_path="{file_index:999999999d}"), "video_path is"),
        (lambda root: write_info(root, {TOP: feature("video")}, video_path="../../{file_index}"), "can be no file of"),
        (place(from_timestamp=math.nan), r"file-001\.parquet, episode 4: 6 frames from nan s on; expected .* a number"),
        (place(from_timestamp=math.inf), r"file-001\.parquet, episode 4: 6 frames from inf s on"),
        (place(from_timestamp=-1.0), r"file-001\.parquet, episode 4: 6 frames from -1\.0 s on"),
        (place(length=0), r"file-001\.parquet, episode 4: 0 frames"),
        (place(length=10**15), r"file-001\.parquet, episode 4: 1000000000000000 frames"),
        (lambda root: write_info(root, {}), "has no camera ''; it has: none"),
        (lambda root: write_table(root / EPISODES, [{"episode_index": 4}]), "has no column tasks"),
    ],
)
def test_damage_is_named(tmp_path, video, damage, said):
    write_set(tmp_path, video)
    damage(tmp_path)
    with pytest.raises(InputError, match=said):
        everything(LeRobotSource(tmp_path))


def test_a_table_that_unpacks_to_too_much_is_refused(tmp_path, video, monkeypatch):
    write_set(tmp_path, video)
    monkeypatch.setattr(lerobot_dataset, "MAX_TABLE_BYTES", 100)
    with pytest.raises(InputError, match=r"file-000\.parquet: the table of episodes is larger than 100 bytes"):
        LeRobotSource(tmp_path)


def test_a_video_with_fewer_frames_than_the_table_says_is_an_error(tmp_path, video):
    write_set(tmp_path, video)
    video(tmp_path / VIDEO, range(300, 310))
    source = LeRobotSource(tmp_path)
    with pytest.raises(
        InputError, match=r"episode 000004: .*file-001\.mp4: 3 of 6 images from 0\.700 s on are not there"
    ):
        list(source.read(1))


def test_lerobot_itself_is_not_imported(tmp_path, video):
    everything(LeRobotSource(write_set(tmp_path, video)))
    assert "lerobot" not in sys.modules


def test_a_image_is_off_by_about_one_gray_level_at_most(tmp_path, video, image):
    """What keeping the images of a video as JPEG costs, against the video itself."""
    av = pytest.importorskip("av")
    source = LeRobotSource(write_set(tmp_path, video))
    kept = next(source.read(0)).decode(0).astype(int)
    with av.open(str(tmp_path / "videos" / TOP / "chunk-000" / "file-000.mp4")) as container:
        straight = next(container.decode(video=0)).to_ndarray(format="rgb24")
    assert np.abs(kept - straight).mean() < 1.0
    assert Image.fromarray(straight).size == (64, 48)


@pytest.mark.parametrize("stored", [False, True])
def test_whatever_happens_to_a_file_ends_in_an_error_of_ours_or_in_images(tmp_path, video, image, stored):
    write_set(tmp_path, video, stored=(lambda number: encode_jpeg(image(number))) if stored else False)
    files = sorted(file for file in tmp_path.rglob("*") if file.is_file())
    rng, refused = np.random.default_rng(5), 0
    for _ in range(60):
        file = files[rng.integers(len(files))]
        good = file.read_bytes()
        damaged = bytearray(good[: rng.integers(1, len(good))] if rng.random() < 0.3 else good)
        for position in rng.integers(len(damaged), size=rng.choice([1, 5, 50])):
            damaged[position] = rng.integers(256)
        file.write_bytes(damaged)
        try:
            everything(LeRobotSource(tmp_path))
        except InputError:
            refused += 1
        file.write_bytes(good)
    assert refused > 20
