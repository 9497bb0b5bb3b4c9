"""Recordings joined: the same images and labels as the parts, under numbers of their own."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.results.join_recordings import join
from vw2_robot.data.calvin_writer import CalvinWriter, Label
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.errors import InputError


def recorded(root, *, scene, recordings):
    rng = np.random.default_rng(len(root.name))
    for split in ("training", "validation"):
        writer = CalvinWriter(root, split)
        for number in range(recordings):
            arrays = {
                "rgb_static": rng.integers(0, 256, (6, 8, 8, 3), dtype=np.uint8),
                **{key: rng.normal(size=(6, 7)) for key in ("actions", "rel_actions", "commanded_actions")},
                "robot_obs": rng.normal(size=(6, 15)),
                "scene_obs": rng.normal(size=(6, 24)),
            }
            labels = (Label("a", f"{root.name} {number}", 0, 2), Label("b", f"then {number}", 3, 5))
            writer.write_recording(arrays, first_frame=8 * number, scene=scene, labels=labels)
        writer.finish()
    return root


def test_a_joined_data_set_is_its_parts_one_after_the_other(tmp_path):
    parts = [recorded(tmp_path / name, scene=name[0], recordings=n) for name, n in (("D", 2), ("D_more", 1), ("A", 2))]
    assert join(tmp_path / "all", parts) == 10
    for split in ("training", "validation"):
        sources = [CalvinDataset(part, split) for part in parts]
        whole = CalvinDataset(tmp_path / "all", split)
        theirs = [(source, trajectory) for source in sources for trajectory in source.trajectories]
        assert len(whole) == len(theirs) == 10
        for mine, (source, other) in zip(whole.trajectories, theirs, strict=True):
            assert (mine.task, mine.instruction, mine.scene) == (other.task, other.instruction, other.scene)
            np.testing.assert_array_equal(whole.read_images(mine), source.read_images(other))
            np.testing.assert_array_equal(whole.read_actions(mine), source.read_actions(other))
    assert (tmp_path / "all" / "validation" / "lang_annotations" / "embeddings.npy").is_file()


def test_one_that_was_stopped_ends_in_the_same_files(tmp_path):
    parts = [recorded(tmp_path / name, scene=name, recordings=2) for name in ("A", "B")]
    join(tmp_path / "whole", parts)
    join(tmp_path / "stopped", parts)
    (tmp_path / "stopped/training/.record/episode_0000022.json").unlink()
    (tmp_path / "stopped/training/lang_annotations/auto_lang_ann.npy").unlink()
    join(tmp_path / "stopped", parts)

    def contents(folder):
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert contents(tmp_path / "stopped") == contents(tmp_path / "whole")


def test_what_cannot_be_joined_is_named(tmp_path):
    parts = [recorded(tmp_path / name, scene=name[0], recordings=1) for name in ("A", "B", "A_more")]
    with pytest.raises(InputError, match=r"A_more.*: scene A again after B; name the parts by scene"):
        join(tmp_path / "all", parts)
    with pytest.raises(InputError, match=r"nothing.training holds no recordings of vw2-record"):
        join(tmp_path / "other", [tmp_path / "nothing"])
