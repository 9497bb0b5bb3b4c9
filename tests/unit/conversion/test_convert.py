"""Conversions keep every bit of actions and images, continue after a kill, and refuse what cannot be right."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vw2_robot.command_line import entry_points
from vw2_robot.conversion import convert as program
from vw2_robot.conversion.calvin_shards import CalvinShards
from vw2_robot.conversion.column_statistics import histogram, image_statistics, number_statistics
from vw2_robot.conversion.config import ConvertConfig
from vw2_robot.conversion.lerobot_records import LeRobotRecords
from vw2_robot.conversion.lerobot_shards import LeRobotShards
from vw2_robot.conversion.open_records import open_records
from vw2_robot.conversion.rlds_shards import RldsShards
from vw2_robot.data.episodes import Demonstration, Episode
from vw2_robot.data.rlds_writer import write_rlds
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.errors import InputError

from .conftest import files_of

Run = Callable[..., Path]
NEEDED = {"lerobot": "pyarrow", "rlds": "tensorflow_datasets", "calvin": "numpy"}
SHARDS = {"lerobot": LeRobotShards, "rlds": RldsShards, "calvin": CalvinShards}
ARRAYS = ("rgb_static", "rgb_gripper", "rel_actions", "actions", "robot_obs", "scene_obs")


def records_of(folder: Path, **options: Any) -> list[Any]:
    source, _ = open_records(ConvertConfig(in_=str(folder), out="x", format="calvin", **options))
    return [record for part in range(len(source.parts())) for record in source.read(part)]


@pytest.mark.parametrize("form", ["lerobot", "rlds", "calvin"])
def test_calvin_comes_back_bit_by_bit(calvin: Path, run: Run, form: str) -> None:
    pytest.importorskip(NEEDED[form])
    back = run(run(calvin, f"there/{form}_1", form), "back", "calvin")
    for split in ("training", "validation"):
        before, after = CalvinDataset(calvin, split), CalvinDataset(back, split)  # type: ignore[arg-type]
        assert len(before) == len(after)
        for one, other in zip(before.trajectories, after.trajectories, strict=True):
            for name in ("task", "instruction", "scene", "way", "length"):
                assert getattr(one, name) == getattr(other, name)
            for key in ARRAYS:
                wanted, found = before.read(one, key), after.read(other, key)
                assert (wanted.dtype, wanted.tobytes()) == (found.dtype, found.tobytes()), key


def test_a_lerobot_set_has_the_documented_files_and_columns(calvin: Path, run: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="PyArrow is not installed (extra lerobot)")
    out = run(calvin, "set", "lerobot", frames_per_file=10)
    info = json.loads((out / "meta/info.json").read_text())
    wanted = {"codebase_version": "v3.0", "fps": 30, "total_episodes": 5, "total_frames": 30, "total_tasks": 2}
    assert wanted.items() <= info.items()
    assert info["splits"] == {"train": "0:4", "validation": "4:5"}
    assert info["features"]["action"]["names"] == ["dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"]
    assert info["features"]["observation.images.static"]["shape"] == [16, 16, 3]
    table = parquet.read_table(out / "data")
    assert set(info["features"]) == set(table.column_names)
    assert table["index"].to_pylist() == list(range(30))
    tasks = parquet.read_table(out / "meta/tasks.parquet").to_pylist()
    dataset = CalvinDataset(calvin)
    first = dataset.trajectories[0]
    assert tasks[table["task_index"][0].as_py()]["task"] == first.instruction
    actions = np.array(table["action"].to_pylist()[: first.length], np.float32)
    assert actions.tobytes() == dataset.read_actions(first).tobytes()
    episodes = parquet.read_table(out / "meta/episodes").to_pylist()
    assert [row["data/file_index"] for row in episodes] == [0, 0, 1, 1, 2]
    assert [row["dataset_to_index"] for row in episodes] == [6, 15, 18, 25, 30]
    assert json.loads((out / "meta/stats.json").read_text())["action"]["count"] == [30]


def test_the_meaning_of_the_action_is_written_beside_it(calvin: Path, run: Run) -> None:
    about = json.loads((run(calvin, "set", "calvin") / "conversion.json").read_text())["action"]
    assert (about["meters_per_unit"], about["radians_per_unit"]) == (0.02, 0.05)
    assert (about["closed"], about["open"]) == (-1.0, 1.0)
    assert "do not divide" in about["text"]


@pytest.fixture
def metric(calvin: Path, run: Run) -> Path:
    """A LeRobotDataset whose action is in meters and radians, gripper 0 closed and 1 open, that states no meaning."""
    arrow = pytest.importorskip("pyarrow", reason="PyArrow is not installed (extra lerobot)")
    parquet = pytest.importorskip("pyarrow.parquet", reason="PyArrow is not installed (extra lerobot)")
    out = run(calvin, "metric", "lerobot", splits=["train"], image_key="static")
    (out / "conversion.json").unlink()
    info = json.loads((out / "meta/info.json").read_text())
    file = out / "data/chunk-000/file-000.parquet"
    table = parquet.read_table(file)
    others = [name for name in table.column_names if name.startswith(("calvin.", "observation.state"))]
    info["features"] = {name: feature for name, feature in info["features"].items() if name not in others}
    (out / "meta/info.json").write_text(json.dumps(info))
    scale = np.array([0.02] * 3 + [0.05] * 3 + [0.5], np.float32)
    actions = (np.array(table["action"].to_pylist(), np.float32) * scale + np.eye(7, dtype=np.float32)[6] / 2).tolist()
    place = table.column_names.index("action")
    column = arrow.array(actions, table.schema.field("action").type)
    parquet.write_table(table.set_column(place, "action", column).drop(others), file)
    return out


def test_meters_become_calvin_units_once_and_come_back_exactly(metric: Path, calvin: Path, run: Run) -> None:
    there = run(metric, "there", "calvin", actions="metric", gripper=[0.0, 1.0])
    before, after = CalvinDataset(calvin), CalvinDataset(there)
    for one, other in zip(before.trajectories, after.trajectories, strict=True):
        np.testing.assert_allclose(after.read(other, "rel_actions"), before.read(one, "rel_actions"), atol=1e-6)
    back = run(there, "back", "lerobot")
    found = [record.numbers["action"] for record in records_of(back)]
    wanted = [record.numbers["action"] for record in records_of(metric)]
    assert [(x.dtype, x.tobytes()) for x in found] == [(x.dtype, x.tobytes()) for x in wanted]
    about = json.loads((back / "conversion.json").read_text())["action"]
    assert (about["units"], about["closed"], about["open"]) == ("metric", 0.0, 1.0)


@pytest.mark.parametrize("name", ["vw2_calvin", "somebody"])
def test_only_rlds_sets_of_the_recorder_are_known_to_have_calvins_actions(tmp_path: Path, run: Run, name: str) -> None:
    pytest.importorskip("tensorflow_datasets")
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, (4, 7)).astype(np.float32)
    episode = Episode("x", "0", "push", 12.5, tuple(rng.integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)))
    episodes = {"train": [Demonstration(episode, actions)]}
    write_rlds(tmp_path / name / "1.0.0", name=name, version="1.0.0", episodes=episodes)
    if name == "somebody":
        with pytest.raises(InputError, match="of unknown units"):
            run(tmp_path / name / "1.0.0", "out", "calvin")
        return
    (record,) = records_of(run(tmp_path / name / "1.0.0", "out", "calvin"))
    assert record.numbers["action"].tobytes() == actions.tobytes()
    assert (record.numbers["calvin.rel_actions"] == actions).all()
    assert (record.episode.hz, record.episode.instruction) == (12.5, "push")


def test_actions_of_unknown_meaning_are_not_called_calvins(metric: Path, run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"actions=calvin or actions=metric"):
        run(metric, "there", "calvin")
    assert [path.name for path in tmp_path.iterdir()] == ["metric"]
    dropped = CalvinDataset(run(metric, "there", "calvin", actions="drop"))
    assert not dropped.holds(dropped.trajectories[0], "rel_actions")
    with pytest.raises(InputError, match="holds no rel_actions"):
        dropped.read_actions(dropped.trajectories[0])


@pytest.mark.parametrize("form", ["lerobot", "rlds", "calvin"])
@pytest.mark.parametrize("step", ["write", "finish"])
def test_a_killed_conversion_continues_to_the_same_files(
    calvin: Path, run: Run, form: str, step: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip(NEEDED[form])
    whole = files_of(run(calvin, "whole/1.0.0", form, frames_per_file=10))
    calls: list[int] = []
    real = getattr(SHARDS[form], step)

    def killed(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        found = real(self, *arguments)  # what it wrote is there, the note that it is complete is not
        if len(calls) == (2 if step == "write" else 1):
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(SHARDS[form], step, killed)
    with pytest.raises(KeyboardInterrupt):
        run(calvin, "mine/whole/1.0.0", form, frames_per_file=10)
    assert not (tmp_path / "mine/whole/1.0.0").exists()
    continued = files_of(run(calvin, "mine/whole/1.0.0", form, frames_per_file=10))
    assert len(calls) == (4 if step == "write" else 2)  # three shards, one of them twice
    assert continued == whole
    assert [path.name for path in (tmp_path / "mine/whole").iterdir()] == ["1.0.0"]


def test_a_finished_conversion_is_left_alone_and_another_is_refused(calvin: Path, run: Run) -> None:
    out = run(calvin, "out", "calvin")
    (out / program.SHARDS).mkdir()  # killed after the folder got its name
    before = files_of(out)
    run(calvin, "out", "calvin")
    assert files_of(out) == before
    assert not (out / program.SHARDS).exists()
    with pytest.raises(InputError, match=r"splits \(None -> \['train'\]\)"):
        run(calvin, "out", "calvin", splits=["train"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "nothing"}, "is not a folder"),
        ({"source": "."}, "no data set that can be converted"),
        ({"name": "data/play/inside"}, "contain one another"),
        ({"splits": ["test"]}, "has no split 'test'"),
        ({"image_key": "top"}, "has no camera 'top'"),
        ({"hz": 5.0}, "does not use hz"),
        ({"latents": "nothing"}, "does not exist"),
        ({"dldm": "nothing"}, "does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    calvin: Path, tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(calvin.parent)
    config = {"in_": options.pop("source", "data/play"), "out": options.pop("name", "out"), "format": "calvin"}
    with pytest.raises(InputError, match=message):
        program.convert(ConvertConfig(**config, **options))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_a_folder_of_another_program_is_not_mixed_with_the_work(calvin: Path, run: Run, tmp_path: Path) -> None:
    (tmp_path / "out.parts/training").mkdir(parents=True)  # of a recording that was killed
    with pytest.raises(InputError, match="no begun conversion"):
        run(calvin, "out", "calvin")


def test_an_episode_of_another_form_is_named(calvin: Path, run: Run, tmp_path: Path) -> None:
    mixed = shutil.copytree(calvin, tmp_path / "mixed")
    for path in (mixed / "training").glob("episode_*.npz"):
        if int(path.stem[-7:]) >= 32:  # the last recording
            arrays = dict(np.load(path)) | {"rgb_static": np.zeros((8, 16, 3), np.uint8)}
            np.savez(path, **arrays)
    with pytest.raises(InputError, match=r"0000032-0000038/open_drawer: cameras .*\(8, 16\)"):
        run(mixed, "out", "calvin")


def test_videos_become_episodes_without_actions(calvin: Path, run: Run) -> None:
    pytest.importorskip("av", reason="PyAV is not installed (extra video)")
    pytest.importorskip("pyarrow", reason="PyArrow is not installed (extra lerobot)")
    pytest.importorskip("imageio_ffmpeg", reason="imageio-ffmpeg is not installed (extra report)")
    from vw2_robot.storage.mp4 import Mp4Writer

    folder = run(calvin, "any", "calvin").parent / "videos"
    (folder / "training").mkdir(parents=True)
    with Mp4Writer(folder / "training/wave.mp4", fps=10, encoding=[]) as video:
        for level in (0, 60, 120, 180):
            video.add(np.full((16, 32, 3), level, np.uint8))
    (folder / "training/captions.jsonl").write_text('{"file": "wave.mp4", "instruction": "wave"}\n')
    (record,) = records_of(run(folder, "set", "lerobot", storage="video"))
    assert (record.episode.instruction, record.episode.hz, record.numbers) == ("wave", 10.0, {})
    assert [int(record.episode.decode(i).mean()) // 55 for i in range(4)] == [0, 1, 2, 3]
    images = CalvinDataset(run(folder, "calvin", "calvin"))
    assert images.read_images(images.trajectories[0]).shape == (4, 16, 32, 3)


def test_whole_recordings_have_no_instruction(calvin: Path, run: Run) -> None:
    out = run(calvin, "out", "calvin", trajectories="recordings")
    source, _ = open_records(ConvertConfig(in_=str(out), out="x", format="calvin", trajectories="recordings"))
    assert [record.episode.instruction for part in range(4) for record in source.read(part)] == [""] * 4
    assert sum(len(record) for part in range(4) for record in source.read(part)) == 27


def test_a_lerobot_set_is_read_from_the_middle(calvin: Path, run: Run) -> None:
    pytest.importorskip("pyarrow", reason="PyArrow is not installed (extra lerobot)")
    source = LeRobotRecords(run(calvin, "set", "lerobot", frames_per_file=10), splits=None, camera=None)
    assert [(split, part.episodes) for split, part in source.parts()] == [("train", 2), ("train", 2), ("validation", 1)]
    every = [record for part in range(3) for record in source.read(part)]
    (middle,) = source.read(1, start=1)
    assert middle.numbers["action"].tobytes() == every[3].numbers["action"].tobytes()
    assert middle.cameras["gripper"].images == every[3].cameras["gripper"].images


def test_in_is_a_key_of_the_command_line(
    calvin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    link = tmp_path / "in = (old)"  # Hydra would parse it
    link.symlink_to(calvin)
    monkeypatch.setattr(sys, "argv", ["vw2-convert", f"in={link}", f"out={tmp_path / 'out'}", "format=calvin"])
    entry_points.convert.main()
    assert "5 episodes, 30 frames, 30 Hz" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["vw2-convert", "in=x", "format=calvin"])
    with pytest.raises(SystemExit):
        entry_points.convert.main()
    assert "give out=" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["vw2-convert", "--keys", "in"])
    entry_points.convert.main()
    assert capsys.readouterr().out.startswith("in  (text, must be given)")


def test_statistics_are_those_of_all_numbers_and_pixels() -> None:
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=(50, 2)).astype(np.float32)
    found = number_statistics(numbers)
    np.testing.assert_allclose(found["std"], numbers.astype(np.float64).std(0))
    np.testing.assert_allclose(found["q90"], np.quantile(numbers.astype(np.float64), 0.9, axis=0))
    images = [rng.integers(20, 200, (8, 8, 3), dtype=np.uint8) for _ in range(3)]
    pixels = np.stack(images).reshape(-1, 3) / 255
    found = image_statistics(histogram(images), images=3)
    for name, wanted in (
        ("mean", pixels.mean(0)),
        ("std", pixels.std(0)),
        ("min", pixels.min(0)),
        ("max", pixels.max(0)),
    ):
        np.testing.assert_allclose(np.ravel(found[name]), wanted)
    np.testing.assert_allclose(np.ravel(found["q50"]), np.quantile(pixels, 0.5, axis=0, method="inverted_cdf"))
    assert found["count"] == [3]
