"""The pickle copy of Open-X: read as plain data, never run; a picture is found or the file is refused."""

import pickle

import numpy as np
import pytest

from vw2_robot.data.episodes import encode_jpeg
from vw2_robot.data.pickled_openx import PickledOpenXSource
from vw2_robot.errors import InputError

PICTURES = [np.full((6, 8, 3), 20 * number, np.uint8) for number in range(3)]


def episode(key="image", *, steps="steps", text="pick up the can", form="bytes"):
    pictures = [encode_jpeg(picture) if form == "bytes" else picture for picture in PICTURES]
    return {
        steps: [
            {
                "observation": {key: picture, "natural_language_instruction": text, "state": np.zeros(7, np.float32)},
                "action": {"world_vector": np.zeros(3, np.float32)},
                "is_first": np.bool_(number == 0),
                "reward": np.float32(0),
            }
            for number, picture in enumerate(pictures)
        ]
    }


def save(folder, *contents, ending=".pickle", protocol=pickle.HIGHEST_PROTOCOL):
    folder.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (folder / f"episode_{number}{ending}").write_bytes(pickle.dumps(content, protocol=protocol))
    return folder


def everything(source):
    return [found for part in range(len(source.parts())) for found in source.read(part)]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("form", ["bytes", "array"])
def test_an_episode_is_read_whatever_the_protocol(tmp_path, protocol, form):
    folder = save(tmp_path / "taco_play", episode("rgb_static", form=form), ending=".pkl", protocol=protocol)
    source = pickle.loads(pickle.dumps(PickledOpenXSource(folder)))
    assert [(part.name, part.episodes) for part in source.parts()] == [("episode_0.pkl", 1)]
    (found,) = everything(source)
    assert (found.source, found.episode_id, found.hz) == ("taco_play", "episode_0", 15.0)
    assert found.instruction == "pick up the can"
    for index, picture in enumerate(PICTURES):
        assert np.abs(found.decode(index).astype(int) - picture).max() <= 1
    assert not list(source.read(0, start=1))


@pytest.mark.parametrize(
    "text",
    [
        "open it", b"open it", np.array(b"open it", object), np.bytes_(b"open it"), ["open it"], [b"", b"open it"],
        np.array([*b"open it", 0, 0, 0], np.int32),
    ],
)  # fmt: skip
def test_the_instruction_may_be_text_bytes_or_code_points(tmp_path, text):
    folder = save(tmp_path, episode(text=text, steps="step"))
    assert everything(PickledOpenXSource(folder, hz=5))[0].instruction == "open it"


def test_stacked_pictures_are_read(tmp_path):
    stacked = np.stack(PICTURES).transpose(0, 3, 1, 2)
    folder = save(tmp_path, {"obs_images": stacked, "language_instruction": "wave"})
    (found,) = everything(PickledOpenXSource(folder, hz=5))
    assert found.instruction == "wave"
    np.testing.assert_array_equal([found.decode(index) for index in range(3)], PICTURES)


def test_the_table_s_picture_comes_before_other_known_names(tmp_path):
    content = episode("rgb_static", form="array")
    for step in content["steps"]:
        step["observation"]["image"] = np.full((6, 8, 3), 255, np.uint8)
    assert everything(PickledOpenXSource(save(tmp_path / "taco_play", content)))[0].decode(0).max() == 0
    assert everything(PickledOpenXSource(save(tmp_path / "mine", content), hz=5))[0].decode(0).max() == 255
    chosen = PickledOpenXSource(tmp_path / "mine", hz=5, image_key="rgb_static")
    assert everything(chosen)[0].decode(0).max() == 0


def test_an_unknown_picture_is_an_error_that_lists_the_keys_and_never_a_white_frame(tmp_path):
    source = PickledOpenXSource(save(tmp_path / "toto", episode("cam_low")))
    with pytest.raises(InputError, match=r"no picture under image, rgb, .*holds: cam_low, natural_.*image_key"):
        everything(source)
    assert len(everything(PickledOpenXSource(tmp_path / "toto", image_key="cam_low"))) == 1


class Evil:
    ran = False

    def __reduce__(self):
        return (exec, ("Evil.ran = True",))


def test_code_in_a_pickle_is_not_run(tmp_path):
    content = episode()
    content["extra"] = Evil()
    with pytest.raises(InputError, match=r"episode_0\.pickle is not readable as plain data .*builtins\.exec"):
        everything(PickledOpenXSource(save(tmp_path, content), hz=5))
    assert not Evil.ran


def test_torch_tensors_are_refused_with_advice(tmp_path):
    torch = pytest.importorskip("torch")
    folder = save(tmp_path, {"obs_images": torch.zeros(2, 3, 6, 8, dtype=torch.uint8)})
    with pytest.raises(InputError, match="torch tensors among them: save them again as NumPy arrays"):
        everything(PickledOpenXSource(folder, hz=5))


def test_an_array_of_objects_cannot_hide_in_a_buffer(tmp_path):
    kind = b"cnumpy\ndtype\n(X\x02\x00\x00\x00O8tR"
    buffer = b"C\x08AAAAAAAA"  # eight bytes that would be taken for the address of an object
    hostile = b"\x80\x04cnumpy.core.numeric\n_frombuffer\n(" + buffer + kind + b"K\x01\x85X\x01\x00\x00\x00CtR."
    (tmp_path / "a.pickle").write_bytes(hostile)
    with pytest.raises(InputError, match=r"not readable as plain data .*array of object"):
        everything(PickledOpenXSource(tmp_path, hz=5))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([], "expected a dict, found list"),
        ({"frames": []}, "expected a list of steps under 'steps' or 'step', or 'obs_images'; the dict holds frames"),
        ({"steps": []}, "expected a list of steps"),
        ({"steps": [{"action": 1}]}, "step 0: expected a dict with a dict 'observation'"),
        ({"obs_images": np.zeros((2, 3, 4, 4), np.float32)}, r"obs_images is float32 \(2, 3, 4, 4\); expected uint8"),
        ({"steps": [{"observation": {"image": np.zeros((4, 4), np.uint8)}}]}, r"image is uint8 \(4, 4\)"),
        ({"steps": [{"observation": {"image": "a.jpg"}}]}, "image is str; expected JPEG or PNG bytes"),
    ],
)
def test_another_content_is_named(tmp_path, content, said):
    with pytest.raises(InputError, match=said):
        everything(PickledOpenXSource(save(tmp_path, content), hz=5))


def test_a_folder_of_no_use_is_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        PickledOpenXSource(tmp_path / "gone")
    with pytest.raises(InputError, match=r"holds no \.pickle or \.pkl file"):
        PickledOpenXSource(tmp_path)
    with pytest.raises(InputError, match="the frame rate of 'mine' is not known"):
        PickledOpenXSource(save(tmp_path / "mine", episode()))


def test_a_picture_in_a_dictionary_of_the_observation_has_a_name_with_a_slash(tmp_path):
    image = np.full((4, 5, 3), 7, np.uint8)
    folder = save(tmp_path, {"steps": [{"observation": {"images": {"top": image}, "state": 0}}]})
    with pytest.raises(InputError, match=r"the observation holds: images/top, state\. Set image_key"):
        everything(PickledOpenXSource(folder, hz=5))
    (found,) = everything(PickledOpenXSource(folder, hz=5, image_key="images/top"))
    np.testing.assert_array_equal(found.decode(0), image)
