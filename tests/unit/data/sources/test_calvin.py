"""CALVIN on disk: what is written is read back, what need not be read is not, and damage is named."""

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from vw2_robot.data.calvin_writer import CalvinWriter, Label
from vw2_robot.data.sources import calvin
from vw2_robot.data.sources.calvin import CalvinDataset
from vw2_robot.data.sources.object_arrays import load_object
from vw2_robot.errors import InputError
from vw2_robot.storage.files import read_json

TASKS = (("open_drawer", "pull the drawer"), ("turn_on_led", "push the button"), ("open_drawer", "open the drawer"))


def arrays(seed, length):
    rng = np.random.default_rng(seed)
    gripper = rng.choice([-1.0, 1.0], size=(length, 1))
    return {
        "rgb_static": rng.integers(0, 256, (length, 12, 10, 3), dtype=np.uint8),
        "actions": np.hstack([rng.normal(size=(length, 6)), gripper]),
        "rel_actions": np.hstack([rng.uniform(-1, 1, (length, 6)), gripper]),
        "robot_obs": rng.normal(size=(length, 15)),
        "scene_obs": rng.normal(size=(length, 24)),
    }


def write(root, *, split="training", numbers=(0, 1, 2)):
    writer = CalvinWriter(root, split)
    for number in numbers:
        task, sentence = TASKS[number]
        writer.write_episode(
            arrays(number, 3 + number), first_frame=number * 100, task=task, instruction=sentence, scene="D"
        )
    return writer


@pytest.fixture
def root(tmp_path):
    write(tmp_path).finish()
    return tmp_path


def tree(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def rewrite_step(root, frame, change):
    path = root / "training" / f"episode_{frame:07d}.npz"
    with np.load(path) as file:
        content = {key: file[key] for key in file.files}
    change(content)
    np.savez(path, **content)


def test_what_was_written_is_read_back(root):
    dataset = CalvinDataset(root)
    assert [(t.task, t.instruction) for t in dataset.trajectories] == list(TASKS)
    assert [(t.start, t.end, t.scene) for t in dataset.trajectories] == [
        (0, 2, "D"), (100, 103, "D"), (200, 204, "D"),
    ]  # fmt: skip
    wanted = arrays(2, 5)
    images = dataset.read_images(dataset.trajectories[2], [4, 0])
    assert images.dtype == np.uint8
    np.testing.assert_array_equal(images, wanted["rgb_static"][[4, 0]])
    actions = dataset.read_actions(dataset.trajectories[2])
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, wanted["rel_actions"].astype(np.float32))
    np.testing.assert_array_equal(dataset.read(dataset.trajectories[2], "robot_obs"), wanted["robot_obs"])


def test_files_open_with_plain_numpy_and_have_the_published_form(root):
    folder = root / "training"
    assert np.load(folder / "ep_start_end_ids.npy").tolist() == [[0, 2], [100, 103], [200, 204]]
    assert np.load(folder / "ep_lens.npy").tolist() == [3, 4, 5]
    labels = np.load(folder / "lang_annotations" / "auto_lang_ann.npy", allow_pickle=True).item()
    assert labels["language"]["task"] == [task for task, _ in TASKS]
    assert labels["info"]["indx"][1] == (100, 103)
    assert np.load(folder / "scene_info.npy", allow_pickle=True).item() == {"calvin_scene_D": [0, 204]}
    with np.load(folder / "episode_0000101.npz") as step:
        assert {key: (step[key].dtype.name, step[key].shape) for key in step.files} == {
            "rgb_static": ("uint8", (12, 10, 3)),
            "actions": ("float64", (7,)),
            "rel_actions": ("float64", (7,)),
            "robot_obs": ("float64", (15,)),
            "scene_obs": ("float64", (24,)),
        }


def test_statistics_are_those_of_all_time_steps(root):
    yaml = pytest.importorskip("yaml")
    statistics = yaml.safe_load((root / "training" / "statistics.yaml").read_text())
    every = {key: np.concatenate([arrays(n, 3 + n)[key] for n in range(3)]) for key in ("robot_obs", "actions")}
    np.testing.assert_allclose(statistics["robot_obs"][0]["mean"], every["robot_obs"].mean(axis=0), atol=1e-8)
    np.testing.assert_allclose(statistics["robot_obs"][0]["std"], every["robot_obs"].std(axis=0), atol=1e-8)
    np.testing.assert_allclose(statistics["act_max_bound"], every["actions"].max(axis=0), atol=1e-8)


def test_reading_images_never_opens_actions(root):
    def poison(content):
        content["rel_actions"][:] = np.nan
        del content["actions"]

    for frame in (100, 101, 102, 103):
        rewrite_step(root, frame, poison)
    dataset = CalvinDataset(root)
    assert len(list(dataset.episodes())) == 3
    assert dataset.reads == {"rgb_static": 12}
    with pytest.raises(InputError, match="not finite at frame 100"):
        dataset.read_actions(dataset.trajectories[1])


def test_reading_images_works_where_actions_are_absent(root):
    for frame in (0, 1, 2):
        rewrite_step(root, frame, lambda content: content.pop("rel_actions"))
    dataset = CalvinDataset(root)
    assert dataset.read_images(dataset.trajectories[0]).shape == (3, 12, 10, 3)
    with pytest.raises(InputError, match="holds no rel_actions"):
        dataset.read_actions(dataset.trajectories[0])


def test_reading_actions_never_opens_images(root):
    dataset = CalvinDataset(root)
    dataset.read_actions(dataset.trajectories[0])
    assert dataset.reads == {"rel_actions": 3}


def test_gripper_zero_of_old_files_means_closed(root):
    rewrite_step(root, 1, lambda content: content["rel_actions"].__setitem__(6, 0.0))
    dataset = CalvinDataset(root)
    assert dataset.read_actions(dataset.trajectories[0])[1, 6] == -1


def test_episodes_carry_images_and_words(root):
    episode = list(CalvinDataset(root).episodes())[1]
    assert (episode.instruction, episode.hz, len(episode.images)) == ("push the button", 30.0, 4)
    np.testing.assert_array_equal(episode.images[3], arrays(1, 4)["rgb_static"][3])


def test_commanded_actions_are_read_where_a_recording_has_them(tmp_path):
    commanded = np.tile(np.array([0.5, 0, 0, 0, 0, 0, 1.0]), (3, 1))
    writer = CalvinWriter(tmp_path)
    content = {**arrays(0, 3), "commanded_actions": commanded}
    writer.write_episode(content, first_frame=7, task="t", instruction="i", scene="D")
    writer.finish()
    dataset = CalvinDataset(tmp_path)
    np.testing.assert_array_equal(dataset.read_actions(dataset.trajectories[0]), commanded.astype(np.float32))
    assert dataset.reads == {"commanded_actions": 3}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_actions_of_either_width_are_read(root, dtype):
    for frame in (0, 1, 2):
        rewrite_step(root, frame, lambda content: content.update(rel_actions=content["rel_actions"].astype(dtype)))
    dataset = CalvinDataset(root)
    actions = dataset.read_actions(dataset.trajectories[0])
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, arrays(0, 3)["rel_actions"].astype(np.float32))


def test_recordings_are_read_without_labels_and_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(calvin, "SEGMENT_FRAMES", 4)
    writer = CalvinWriter(tmp_path)
    labels = (Label("open_drawer", "pull", 1, 3), Label("turn_on_led", "press", 5, 7))
    writer.write_recording(arrays(3, 10), first_frame=20, scene="B", labels=labels)
    writer.write_recording(arrays(4, 2), first_frame=40, scene="B", labels=())
    writer.finish()
    labeled = CalvinDataset(tmp_path)
    assert [(t.start, t.end, t.task) for t in labeled.trajectories] == [
        (21, 23, "open_drawer"),
        (25, 27, "turn_on_led"),
    ]
    (tmp_path / "training" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    play = CalvinDataset(tmp_path, trajectories="recordings")
    assert [(t.start, t.end) for t in play.trajectories] == [(20, 23), (24, 27), (28, 29), (40, 41)]
    assert {(t.scene, t.task, t.instruction) for t in play.trajectories} == {("B", "", "")}
    images = np.concatenate([np.stack(episode.images) for episode in play.episodes()])
    np.testing.assert_array_equal(images[:10], arrays(3, 10)["rgb_static"])
    assert play.reads == {"rgb_static": 12}
    with pytest.raises(InputError, match="unknown trajectories 'all'"):
        CalvinDataset(tmp_path, trajectories="all")


def test_a_damaged_table_of_recordings_is_named(root):
    path = root / "training" / "ep_start_end_ids.npy"
    for wrong in (np.zeros((2, 3), int), np.array([[5, 3]]), np.zeros((0, 2), int), np.zeros((2, 2))):
        np.save(path, wrong)
        with pytest.raises(InputError, match="ep_start_end_ids"):
            CalvinDataset(root, trajectories="recordings")
    for content in (b"", b"\x93NUMPY"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            CalvinDataset(root, trajectories="recordings")
    path.unlink()
    with pytest.raises(InputError, match="is missing"):
        CalvinDataset(root, trajectories="recordings")


def test_a_label_outside_its_recording_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not lie within a recording of 4 time steps"):
        CalvinWriter(tmp_path).write_recording(arrays(0, 4), first_frame=0, scene="D", labels=(Label("t", "i", 2, 4),))


def test_missing_frames_are_named_before_work_starts(root):
    (root / "training" / "episode_0000102.npz").unlink()
    with pytest.raises(InputError, match=r"1 of 12 frames are missing, the first is episode_0000102\.npz"):
        CalvinDataset(root)


def test_missing_split_shows_the_expected_layout(root, tmp_path):
    with pytest.raises(InputError, match=r"validation is not a folder(.|\n)*expected layout"):
        CalvinDataset(root, "validation")
    with pytest.raises(InputError, match="expected layout"):
        CalvinDataset(tmp_path / "nowhere")


def test_missing_labels_are_named(root):
    (root / "training" / "lang_annotations" / "auto_lang_ann.npy").unlink()
    with pytest.raises(InputError, match="need language labels"):
        CalvinDataset(root)


@pytest.mark.parametrize("content", ["cut off", "empty", "text", "one plain array", "a flipped byte"])
def test_damaged_frame_is_named(root, content):
    path = root / "training" / "episode_0000100.npz"
    whole = path.read_bytes()
    plain = io.BytesIO()
    np.save(plain, np.zeros(7))
    flipped = bytearray(whole)
    flipped[150] ^= 0xFF
    damage = {"cut off": whole[:200], "empty": b"", "text": b"no archive", "one plain array": plain.getvalue()}
    path.write_bytes(damage.get(content, bytes(flipped)))
    dataset = CalvinDataset(root)
    with pytest.raises(InputError, match=r"episode_0000100\.npz.*damaged"):
        dataset.read_images(dataset.trajectories[1])


def test_whatever_happens_to_a_file_ends_in_an_error_of_ours(root):
    path = root / "training" / "episode_0000100.npz"
    whole = path.read_bytes()
    dataset = CalvinDataset(root)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        broken = bytearray(whole[: int(rng.integers(1, len(whole) + 1))] if rng.random() < 0.3 else whole)
        broken[int(rng.integers(len(broken)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(broken))
        try:
            dataset.read_actions(dataset.trajectories[1])
            dataset.read_images(dataset.trajectories[1])
        except InputError:
            refused += 1
    assert refused > 150


@pytest.mark.parametrize("wrong", [np.zeros(6), np.zeros((7, 1)), np.array(["open"] * 7)])
def test_actions_of_another_form_are_named(root, wrong):
    for frame in (100, 101, 102, 103):
        rewrite_step(root, frame, lambda content: content.update(rel_actions=wrong))
    dataset = CalvinDataset(root)
    with pytest.raises(InputError, match=r"rel_actions is .*expected numbers \(7,\)"):
        dataset.read_actions(dataset.trajectories[1])


def test_images_of_another_form_are_named(root):
    rewrite_step(root, 101, lambda content: content.update(rgb_static=content["rgb_static"][:6]))
    dataset = CalvinDataset(root)
    with pytest.raises(
        InputError, match=r"episode_0000101\.npz: rgb_static is uint8 \(6, 10, 3\), in the steps before"
    ):
        dataset.read_images(dataset.trajectories[1])


def test_gray_images_are_refused(root):
    for frame in (0, 1, 2):
        rewrite_step(root, frame, lambda content: content.update(rgb_static=content["rgb_static"][..., 0]))
    dataset = CalvinDataset(root)
    with pytest.raises(InputError, match=r"expected uint8 \(height, width, 3\)"):
        dataset.read_images(dataset.trajectories[0])


class Boom:
    """Runs a command when unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_labels_that_want_to_run_code_are_refused_and_do_not(root, tmp_path):
    marker = tmp_path / "ran"
    path = root / "training" / "lang_annotations" / "auto_lang_ann.npy"
    np.save(path, np.array({"language": Boom(str(marker))}, dtype=object), allow_pickle=True)
    (root / "training" / "manifest.json").unlink()  # as in data sets of others
    with pytest.raises(InputError, match="mkdir"):
        CalvinDataset(root)
    assert not marker.exists()


def hand_made(path, reduced):
    class Payload:
        def __reduce__(self):
            return reduced

    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "|O", "fortran_order": False, "shape": ()})
        pickle.dump(Payload(), file, protocol=4)


def test_structured_dtype_that_hides_pointers_is_refused(tmp_path):
    path = tmp_path / "evil.npy"
    hand_made(path, (np.dtype, ("O8", False, True), (3, "|", None, ("f0",), {"f0": (np.dtype("O"), 0)}, 8, 8, 0)))
    with pytest.raises(InputError, match="structured"):
        load_object(path)


def test_arrays_inside_labels_survive_the_restricted_reader(tmp_path):
    path = tmp_path / "x.npy"
    value = {
        "emb": np.arange(6, dtype=np.float32).reshape(2, 1, 3),
        "names": np.array(["a", "bc"]),
        "mixed": np.array([1, "x", (2, 3)], dtype=object),
        "number": np.float64(2.5),
        "big": np.arange(3, dtype=">i4"),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    }
    np.save(path, np.array(value, dtype=object), allow_pickle=True)
    found = load_object(path)
    assert found.keys() == value.keys()
    assert found["number"] == 2.5
    for key in ("emb", "names", "mixed", "big", "columns"):
        np.testing.assert_array_equal(found[key], value[key])
        assert found[key].dtype == value[key].dtype.newbyteorder("=")


def test_interrupted_and_resumed_writing_gives_the_same_bytes(root, tmp_path_factory):
    again = tmp_path_factory.mktemp("again")
    write(again, numbers=(0,))
    (again / "training" / "episode_0000100.npz").write_bytes(b"half a fi")  # killed in the middle of the second
    resumed = CalvinWriter(again)
    assert resumed.is_complete(0)
    assert not resumed.is_complete(100)
    write(again, numbers=(2, 1)).finish()
    assert tree(again) == tree(root)


def test_steps_are_on_disk_before_the_entry_that_vouches_for_them_and_descriptions_before_their_sums(
    tmp_path, monkeypatch
):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(Path(f"/proc/self/fd/{fd}").readlink().name), fsync(fd)))
    writer = write(tmp_path, numbers=(0,))
    assert synced[:4] == [f"episode_000000{n}.npz" for n in range(3)] + ["training"]
    assert synced[4:] == [".episode_0000000.json.tmp", ".record"]
    synced.clear()
    writer.finish()
    assert synced[-2:] == [".manifest.json.tmp", "training"]
    assert {"auto_lang_ann.npy", "lang_annotations", "ep_start_end_ids.npy", "statistics.yaml"} < set(synced[:-2])


def test_damage_of_what_describes_a_recorded_set_is_noticed(root):
    folder = root / "training"
    for name in ("lang_annotations/auto_lang_ann.npy", "scene_info.npy"):
        good = (folder / name).read_bytes()
        (folder / name).write_bytes(
            good.replace(b"open_drawer", b"shut_drawer").replace(b"calvin_scene_D", b"calvin_scene_A")
        )
        with pytest.raises(InputError, match=r"is damaged: its SHA-256 .* if you changed it yourself, delete manifest"):
            CalvinDataset(root)
        (folder / name).write_bytes(good)
    entry = folder / ".record" / "episode_0000100.json"
    entry.write_text(entry.read_text().replace("push the button", "push the butter"))
    with pytest.raises(InputError, match=r"episode_0000100\.json is damaged.*; delete it: the same vw2-record"):
        CalvinWriter(root).finish()


def test_entries_of_older_recordings_have_no_seal(root):
    entries = CalvinWriter(root).entries()
    for path in (root / "training" / ".record").iterdir():
        content = read_json(path, cure="", sealed=True)
        path.write_text(json.dumps(content, indent=1))
    assert CalvinWriter(root).entries() == entries


@pytest.mark.parametrize(
    ("sentence", "wanted"),
    [
        (["lift it"], "lift it"),
        (b"lift it", "lift it"),
        (np.array(["lift it"]), "lift it"),
        (None, None),
        (["a", "b"], None),
    ],
)
def test_a_sentence_is_text_or_refused(root, sentence, wanted):
    (root / "training" / "manifest.json").unlink()
    path = root / "training" / "lang_annotations" / "auto_lang_ann.npy"
    content = np.load(path, allow_pickle=True).item()
    content["language"]["ann"][1] = sentence
    np.save(path, np.array(content, dtype=object), allow_pickle=True)
    if wanted is None:
        with pytest.raises(InputError, match=r"auto_lang_ann\.npy, window \(100, 103\): expected text"):
            CalvinDataset(root)
    else:
        assert CalvinDataset(root).trajectories[1].instruction == wanted


def test_tables_that_speak_of_any_number_of_frames_cost_nothing(root):
    (root / "training" / "manifest.json").unlink()
    np.save(root / "training" / "ep_start_end_ids.npy", np.array([[0, 10**17]]))
    with pytest.raises(InputError, match=r"99999999999999989 of 100000000000000001 frames are missing, .*0000003\.npz"):
        CalvinDataset(root, trajectories="recordings")


def test_wrong_arrays_are_refused(tmp_path):
    writer = CalvinWriter(tmp_path)
    good = arrays(0, 4)
    about = {"first_frame": 0, "task": "t", "instruction": "i", "scene": "D"}
    with pytest.raises(InputError, match=r"lacks \['rel_actions'\]"):
        writer.write_episode({k: v for k, v in good.items() if k != "rel_actions"}, **about)
    with pytest.raises(InputError, match="robot_obs has shape"):
        writer.write_episode({**good, "robot_obs": good["robot_obs"][:, :7]}, **about)
    with pytest.raises(InputError, match="no complete demonstration"):
        writer.finish()


def test_validation_split_carries_the_evaluation_sentences(tmp_path):
    write(tmp_path, split="validation").finish({"open_drawer": "open it"})
    table = load_object(Path(tmp_path) / "validation" / "lang_annotations" / "embeddings.npy")
    assert table["open_drawer"]["ann"] == ["open it"]
    assert len(CalvinDataset(tmp_path, "validation")) == 3
