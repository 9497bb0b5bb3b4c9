import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vw2_robot.data.episodes import Demonstration, Episode, encode_jpeg
from vw2_robot.errors import InputError


def image(seed: int = 0, size: tuple[int, int] = (12, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def episode(*images: bytes | np.ndarray) -> Episode:
    return Episode("bridge_dataset", "train/000007", "put the carrot on the plate", 5.0, images)


def test_png_bytes_and_arrays_decode_to_the_same_pixels() -> None:
    pixels = image()
    taken = episode(png(pixels), pixels)
    assert len(taken) == 2
    for index in range(2):
        decoded = taken.decode(index)
        assert decoded.dtype == np.uint8
        np.testing.assert_array_equal(decoded, pixels)


def test_jpeg_is_close_and_reproducible() -> None:
    smooth = np.asarray(Image.fromarray(image(size=(3, 5))).resize((40, 24), Image.Resampling.BICUBIC))
    assert encode_jpeg(smooth) == encode_jpeg(smooth.copy())
    assert np.abs(episode(encode_jpeg(smooth)).decode(0).astype(int) - smooth).max() <= 8


def test_gray_and_transparent_images_become_rgb() -> None:
    gray, rgba = np.full((4, 6), 90, np.uint8), np.full((4, 6, 4), 200, np.uint8)
    taken = episode(png(gray), png(rgba))
    assert taken.decode(0).tolist() == np.full((4, 6, 3), 90).tolist()
    assert taken.decode(1).shape == (4, 6, 3)


def claiming(pixels: np.ndarray, width: int, height: int) -> bytes:
    """A PNG whose header speaks of another size, with the right checksum."""
    data = png(pixels)
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


def deep(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(buffer, format="PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (claiming(image(), 9000, 9000), "9000 x 9000 pixels, at most 67108864 are read"),
        (claiming(image(), 2**31 - 1, 2**31 - 1), "no readable image"),
        (deep(image()), "convert it to 8 bits a channel"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "no readable image .none of JPEG, PNG, WEBP, BMP"),
    ],
    ids=["large", "absurd", "16 bits", "for another program"],
)
def test_what_would_cost_too_much_or_come_out_wrong_is_not_decoded(data: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        episode(data).decode(0)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        b"not an image",
        encode_jpeg(image(size=(64, 64)))[:400],
        png(image(size=(64, 64)))[:200],
        png(image()).replace(b"IDAT", b"IDAX"),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["empty", "text", "cut jpeg", "cut png", "bad chunk", "gray array", "float array", "no rows"],
)
def test_a_broken_frame_is_named_by_source_episode_and_number(broken: bytes | np.ndarray) -> None:
    with pytest.raises(InputError, match=r"bridge_dataset, episode train/000007, frame 1 of 2"):
        episode(image(), broken).decode(1)


def test_demonstration_accepts_one_action_for_each_frame_or_one_fewer() -> None:
    taken = episode(image(0), image(1), image(2))
    for rows in (2, 3):
        assert Demonstration(taken, np.zeros((rows, 7))).actions.shape == (rows, 7)
    for shape in ((1, 7), (4, 7), (3, 0), (21,)):
        with pytest.raises(InputError, match=r"expected \(3, A\) or \(2, A\)"):
            Demonstration(taken, np.zeros(shape))


def test_demonstration_refuses_actions_that_are_not_finite() -> None:
    actions = np.zeros((2, 7))
    actions[1, 3] = np.nan
    with pytest.raises(InputError, match="action 1 is not finite"):
        Demonstration(episode(image(0), image(1)), actions)
