from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("tensorflow", reason="TensorFlow is not installed (extra openx)")

from vw2_robot.data import step_names
from vw2_robot.data.episodes import Demonstration, Episode
from vw2_robot.data.labeled_rlds import open_labeled_rlds
from vw2_robot.data.labeled_steps import LabeledVideo, cut_steps
from vw2_robot.data.rlds_writer import write_rlds
from vw2_robot.data.sources.rlds import RldsSource
from vw2_robot.data.statistics import mean_and_std
from vw2_robot.errors import InputError


def demonstration(number: int) -> Demonstration:
    """Number n has 5 + n frames as bright as n; its action at time t is n + t / 100 in every number."""
    length = 5 + number
    images = tuple(np.full((16, 16, 3), 10 * number, np.uint8) for _ in range(length))
    actions = number + np.arange(length - 1)[:, None].repeat(7, 1) / 100
    return Demonstration(Episode("kuka", f"recording {number}", "push", 5.0, images), actions)


def write(out: Path, *, name: str = "vw2_arms") -> Path:
    write_rlds(
        out,
        name=name,
        version="1.0.0",
        episodes={"train": (demonstration(number) for number in range(8))},
        max_episodes_per_shard=3,
    )
    return out


def opened(path: Path, cache: Path, *, episodes: int = 5, seed: int = 0) -> LabeledVideo:
    return open_labeled_rlds(path, name="toy", cache=cache, height=16, width=16, episodes=episodes, seed=seed)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sets") / "vw2_arms" / "1.0.0")


def test_every_drawn_episode_has_its_own_frames_and_actions(written: Path, tmp_path: Path) -> None:
    video = opened(written, tmp_path / "cache")
    numbers = [episode.length - 5 for episode in video.frame_cache.episodes]
    assert len(set(numbers)) == 5
    assert numbers != [0, 1, 2, 3, 4]  # drawn, not the first ones
    for i, number in enumerate(numbers):
        assert abs(int(video.frame_cache.read(i, np.array([0])).mean()) - 10 * number) <= 2
        assert np.allclose(video.commanded[i][:-1, 0], number + np.arange(4 + number) / 100)
        assert not video.commanded[i][-1].any()  # nothing follows the last frame
    assert video.moved is None
    assert video.units == "vw2_arms"
    assert len(set(video.group.tolist())) == 5
    steps = cut_steps(video, num_frames=5, stride=4)
    assert np.allclose(steps.commanded[0, 0, 0], 4 * numbers[0] + 0.06)
    assert np.allclose(steps.commanded[0, 0, 6], numbers[0] + 0.015)  # of the gripper the mean


def test_rlds_and_numpy_agree_about_the_spread_of_actions(written: Path, tmp_path: Path) -> None:
    video = opened(written, tmp_path / "cache")
    mean, std = mean_and_std(video.commanded)
    everything = np.concatenate([actions[:-1] for actions in video.commanded])  # the last action of each means nothing
    assert np.allclose(mean, everything.mean(axis=0))
    assert np.allclose(std**2, ((everything - mean) ** 2).sum(axis=0) / (len(everything) - 1))
    assert np.allclose(video.spread, (mean, std), rtol=1e-12)  # through rlds where that is installed
    with pytest.raises(InputError, match="found 1 in 1 episodes"):
        mean_and_std([np.ones((2, 7))])


def test_steps_are_named_as_rlds_names_them() -> None:
    rlds = pytest.importorskip("rlds", reason="rlds is not installed (extra replay)", exc_type=ImportError)
    for name in ("STEPS", "OBSERVATION", "ACTION", "REWARD", "DISCOUNT", "IS_FIRST", "IS_LAST", "IS_TERMINAL"):
        assert getattr(step_names, name) == getattr(rlds, name)


def test_frames_and_actions_are_read_once(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened(written, tmp_path / "cache")
    monkeypatch.setattr(RldsSource, "_records", None)
    again = opened(written, tmp_path / "cache")
    assert all(np.array_equal(a, b) for a, b in zip(first.commanded, again.commanded, strict=True))
    with pytest.raises(InputError, match="another kind"):
        opened(written, tmp_path / "cache", seed=1)


def test_a_set_whose_actions_nobody_explained_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "my_robot" / "1.0.0", name="my_robot")
    with pytest.raises(InputError, match=r"'my_robot'.*'unknown'.*as_stored, binary_gripper"):
        opened(path, tmp_path / "cache")


def test_steps_without_the_wanted_entry_are_refused(written: Path) -> None:
    with pytest.raises(InputError, match="no observation/state"):
        next(RldsSource(written).read_numbers(0, [("observation", "state")]))


def test_actions_of_the_real_bridge_sample_lead_to_the_motion_of_its_hand(shared_dir: Path, tmp_path: Path) -> None:
    folder = shared_dir / "openx" / "bridge_dataset" / "1.0.0"
    if not folder.is_dir():
        pytest.skip("no Bridge V2 sample in the shared data")
    video = opened(folder, tmp_path / "cache", episodes=25)
    assert video.units == "bridge_dataset"
    assert video.moved is not None
    steps = cut_steps(video, num_frames=9, stride=4)
    assert steps.moved is not None
    commanded, moved = (values[steps.valid] for values in (steps.commanded, steps.moved))
    assert set(np.concatenate(video.commanded)[:, 6]) == {-1.0, 1.0}
    for axis in range(3):
        assert np.corrcoef(commanded[:, axis], moved[:, axis])[0, 1] > 0.7
