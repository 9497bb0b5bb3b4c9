import numpy as np
import pytest

from vw2_robot.data.calvin_writer import CalvinWriter
from vw2_robot.data.episodes import Episode, Part, SkippedEpisodes, TooManySkippedError
from vw2_robot.errors import InputError
from vw2_robot.pretrain.cache_frames import open_sources, read_first, report_new_parts
from vw2_robot.pretrain.config import DataConfig


def write_calvin(root, *, scene):
    writer = CalvinWriter(root, "training")
    arrays = {
        "rgb_static": np.zeros((2, 4, 4, 3), np.uint8), "actions": np.zeros((2, 7)), "rel_actions": np.zeros((2, 7)),
        "robot_obs": np.zeros((2, 15)), "scene_obs": np.zeros((2, 24)),
    }  # fmt: skip
    writer.write_episode(arrays, first_frame=0, task="open_drawer", instruction="pull", scene=scene)
    writer.finish()
    return str(root)


def test_several_data_sets_are_opened_side_by_side(tmp_path):
    paths = [write_calvin(tmp_path / scene, scene=scene) for scene in "AD"]
    sources = open_sources(DataConfig(path=paths))
    assert [(source.name, weight) for source, weight in sources] == [("calvin_A", 1.0), ("calvin_D", 1.0)]


def test_two_data_sets_of_one_name_are_refused_since_their_episodes_would_be_ambiguous(tmp_path):
    paths = [write_calvin(tmp_path / name, scene="A") for name in ("first", "second")]
    with pytest.raises(InputError, match=r"more than one data set is called calvin_A"):
        open_sources(DataConfig(path=paths))


def test_options_that_a_mixture_has_no_use_for_are_refused():
    with pytest.raises(ValueError, match=r"data.image_key and data.hz: data.mixture=octo takes that from the table"):
        DataConfig(path="DIR", mixture="octo", image_key="top", hz=5.0)


def test_data_that_came_after_the_cache_was_complete_are_named(tmp_path, capsys):
    class Shelf:
        name = "videos"

        def __init__(self, *names):
            self.names = names

        def parts(self):
            return [Part(name, 1) for name in self.names]

    report_new_parts(tmp_path, [Shelf("a.mp4")], was_complete=False)
    report_new_parts(tmp_path, [Shelf("a.mp4")], was_complete=True)
    assert capsys.readouterr().out == ""
    report_new_parts(tmp_path, [Shelf("a.mp4", "b.mp4")], was_complete=True)
    assert "1 of 2 parts of the data (videos: b.mp4) are not in" in capsys.readouterr().out


@pytest.mark.parametrize("more", [{"mixture": "octo"}, {"source": "bridge_dataset"}])
def test_a_list_of_paths_goes_with_no_setting_that_speaks_of_one_folder(more):
    with pytest.raises(ValueError, match="a list of 2"):
        DataConfig(path=["A", "B"], **more)


class Shards:
    """Three files of four episodes; the second is damaged behind its first."""

    name = "shards"

    def parts(self):
        return [Part(f"file-{number}", 4) for number in range(3)]

    def read(self, part, *, start=0):
        for number in range(start, 4):
            if (part, number) == (1, 1):
                raise InputError("file-1 is damaged")
            yield Episode("shards", f"{part}/{number}", "", 5.0, (np.zeros((2, 2, 3), np.uint8),))


@pytest.mark.parametrize(("limit", "wanted"), [(None, 9), (6, 5)])
def test_of_a_damaged_file_the_rest_is_left_out_and_named(limit, wanted, caplog):
    skipped = SkippedEpisodes(3)
    assert len(list(read_first(Shards(), limit=limit, skipped=skipped))) == wanted
    assert len(skipped.messages) == (3 if limit is None else 1)
    assert caplog.messages == ["episode skipped: file-1 is damaged"]


def test_more_lost_episodes_than_allowed_stop_the_run():
    with pytest.raises(TooManySkippedError, match="3 where 2 were allowed; the last: file-1 is damaged"):
        list(read_first(Shards(), limit=None, skipped=SkippedEpisodes(2)))
