"""The pickle copy of Open-X: read as plain data, never run; an image is found or the file is refused."""

import pickle
import struct

import numpy as np
import pytest

from vw2_robot.data.episodes import encode_jpeg
from vw2_robot.data.sources import object_arrays
from vw2_robot.data.sources.object_arrays import load_pickle
from vw2_robot.data.sources.pickled_openx import PickledOpenXSource
from vw2_robot.errors import InputError

IMAGES = [np.full((6, 8, 3), 20 * number, np.uint8) for number in range(3)]


def episode(key="image", *, steps="steps", text="pick up the can", form="bytes"):
    images = [encode_jpeg(image) if form == "bytes" else image for image in IMAGES]
    return {
        steps: [
            {
                "observation": {key: image, "natural_language_instruction": text, "state": np.zeros(7, np.float32)},
                "action": {"world_vector": np.zeros(3, np.float32)},
                "is_first": np.bool_(number == 0),
                "reward": np.float32(0),
            }
            for number, image in enumerate(images)
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
    for index, image in enumerate(IMAGES):
        assert np.abs(found.decode(index).astype(int) - image).max() <= 1
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


def test_stacked_images_are_read(tmp_path):
    stacked = np.stack(IMAGES).transpose(0, 3, 1, 2)
    folder = save(tmp_path, {"obs_images": stacked, "language_instruction": "wave"})
    (found,) = everything(PickledOpenXSource(folder, hz=5))
    assert found.instruction == "wave"
    np.testing.assert_array_equal([found.decode(index) for index in range(3)], IMAGES)


def test_the_table_s_image_comes_before_other_known_names(tmp_path):
    content = episode("rgb_static", form="array")
    for step in content["steps"]:
        step["observation"]["image"] = np.full((6, 8, 3), 255, np.uint8)
    assert everything(PickledOpenXSource(save(tmp_path / "taco_play", content)))[0].decode(0).max() == 0
    assert everything(PickledOpenXSource(save(tmp_path / "mine", content), hz=5))[0].decode(0).max() == 255
    chosen = PickledOpenXSource(tmp_path / "mine", hz=5, image_key="rgb_static")
    assert everything(chosen)[0].decode(0).max() == 0


def test_an_unknown_image_is_an_error_that_lists_the_keys_and_never_a_white_frame(tmp_path):
    source = PickledOpenXSource(save(tmp_path / "toto", episode("cam_low")))
    with pytest.raises(InputError, match=r"no image under image, rgb, .*holds: cam_low, natural_.*image_key"):
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


def doubled(times):
    made = ()
    for _ in range(times):
        made = (made, made)
    return made


HOSTILE = {
    "many in few bytes": pickle.dumps({"steps": doubled(40)}),
    "a key that takes for ever to hash": b"\x80\x04})" + b"2\x86" * 60 + b"K\x01s.",
    "filled after use": b"".join(b"]q%c0" % i for i in range(41))
    + b"".join(b"h%c(h%ch%ce0" % (i, i + 1, i + 1) for i in range(40))
    + b"h\x00.",
    "holds itself": b"]q\x00h\x00a.",
    "deep": b"(" * 50_000 + b"l" * 50_000 + b".",
    "a slot far away": b"Nr\xff\xff\xff\x7f.",
    "bytes that are not there": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "numbers that collide": pickle.dumps({i * (2**61 - 1): i for i in range(1, 100)}),
    "no end": b"N0" * 100,
    "nothing": b"",
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_pickle_costs_no_more_than_its_size(tmp_path, content):
    (tmp_path / "a.pickle").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.pickle is not readable as plain data"):
        everything(PickledOpenXSource(tmp_path, hz=5))


def test_the_number_of_instructions_is_limited(tmp_path, monkeypatch):
    folder = save(tmp_path, episode())
    assert everything(PickledOpenXSource(folder, hz=5))
    monkeypatch.setattr(object_arrays, "MAX_ENTRIES", 100)
    with pytest.raises(InputError, match="more than 100"):
        everything(PickledOpenXSource(folder, hz=5))


@pytest.mark.parametrize("shape", [(100_000,), (2, 3), (-1, -1), ("a",)])
def test_an_array_of_objects_is_as_long_as_its_list(tmp_path, shape):
    """NumPy would read behind the end of the list, and end the process."""
    array = pickle.dumps(np.array([None], object), protocol=2)
    assert array.count(b"K\x01\x85") == 1
    (tmp_path / "a.pickle").write_bytes(array.replace(b"K\x01\x85", pickle.dumps(shape, protocol=2)[2:-1]))
    with pytest.raises(InputError, match=r"a\.pickle is not readable as plain data .*array of"):
        everything(PickledOpenXSource(tmp_path, hz=5))


def test_links_to_pickles_are_followed(tmp_path):
    save(tmp_path / "disk", episode())
    (tmp_path / "toto").mkdir()
    (tmp_path / "toto" / "part").symlink_to(tmp_path / "disk")
    assert [part.name for part in PickledOpenXSource(tmp_path / "toto").parts()] == ["part/episode_0.pickle"]


def test_an_array_whose_axes_were_swapped_is_read_as_numpy_2_5_stores_it(tmp_path):
    content = b"\x96\x18" + b"\0" * 7 + bytes(range(24))  # BYTEARRAY8; NumPy 2.5: order "K" and the axes
    array = b"cnumpy._core.numeric\n_frombuffer\n(" + content + b"cnumpy\ndtype\n(X\x02\0\0\0u1tR"
    shape, axes = b"K\x02K\x03K\x04\x87", b"K\x01K\x02K\0\x87"
    (tmp_path / "a.pickle").write_bytes(b"\x80\x05" + array + shape + b"X\x01\0\0\0K" + axes + b"tR.")
    wanted = np.arange(24, dtype=np.uint8).reshape(2, 3, 4).transpose(1, 2, 0)
    np.testing.assert_array_equal(load_pickle(tmp_path / "a.pickle"), wanted)


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


def test_a_image_in_a_dictionary_of_the_observation_has_a_name_with_a_slash(tmp_path):
    image = np.full((4, 5, 3), 7, np.uint8)
    folder = save(tmp_path, {"steps": [{"observation": {"images": {"top": image}, "state": 0}}]})
    with pytest.raises(InputError, match=r"the observation holds: images/top, state\. Set image_key"):
        everything(PickledOpenXSource(folder, hz=5))
    (found,) = everything(PickledOpenXSource(folder, hz=5, image_key="images/top"))
    np.testing.assert_array_equal(found.decode(0), image)
