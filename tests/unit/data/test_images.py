import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import Base

from vw2_robot.data.episodes import Episode, encode_jpeg
from vw2_robot.data.images import Aspect, ImageError, read_clip, resize_frame


def photo(height: int = 48, width: int = 64) -> Image.Image:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def stored(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def exif() -> Image.Exif:
    found = Image.Exif()
    found[Base.Orientation] = 6  # is not followed: frames are stored as they are
    return found


def episode(*images: Any) -> Episode:
    return Episode("set", "7", "", 5.0, images)


def read_frame(held: Episode, index: int, *, height: int, width: int, **options: Any) -> np.ndarray:
    out = np.full((1, height, width, 3), 99, np.uint8)
    read_clip(held, [index], out, **options)
    return out[0]


PLAIN = {
    "subsampled": stored(photo(), quality=80),
    "full color": encode_jpeg(np.asarray(photo())),
    "progressive": stored(photo(), progressive=True),
    "with comment, exif and restarts": stored(photo(), comment=b"\xff\xc0" * 9, exif=exif(), restart_marker_rows=1),
}
OTHER = {
    "gray": stored(photo().convert("L")),
    "four inks": stored(photo().convert("CMYK")),
    "RGB without conversion": stored(photo(), keep_rgb=True),
    "PNG": stored(photo(), "PNG"),
    "PNG with palette": stored(photo().convert("P"), "PNG"),
    "array": np.asarray(photo()),
}


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
@pytest.mark.parametrize(("height", "width"), [(48, 64), (20, 20), (96, 100)])
@pytest.mark.parametrize("kind", [*PLAIN, *OTHER])
def test_pixels_are_those_of_the_frame_cache(kind: str, height: int, width: int, aspect: Aspect) -> None:
    held = episode({**PLAIN, **OTHER}[kind])
    wanted = resize_frame(held.decode(0), height=height, width=width, aspect=aspect)
    np.testing.assert_array_equal(read_frame(held, 0, height=height, width=width, aspect=aspect), wanted)


@pytest.mark.parametrize("kind", PLAIN)
def test_plain_jpeg_needs_no_header_in_python(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Episode, "decode")
    assert read_frame(episode(PLAIN[kind]), 0, height=20, width=20).shape == (20, 20, 3)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"no image", PLAIN["subsampled"][:-900], PLAIN["subsampled"][:40]])
def test_damaged_images_are_named(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"set, episode 7, frame 0 of 1: found \d+ bytes that are no readable image"):
        read_frame(episode(data), 0, height=8, width=8)


def test_a_draft_is_close_and_is_taken_only_where_the_image_is_twice_as_large() -> None:
    held = episode(stored(photo(240, 320), quality=95))
    exact, draft = (read_frame(held, 0, height=60, width=80, draft=draft).astype(int) for draft in (False, True))
    assert 0 < abs(draft - exact).max() < 12
    assert abs(draft - exact).mean() < 1.5
    same = read_frame(held, 0, height=130, width=170, draft=True)
    np.testing.assert_array_equal(same, read_frame(held, 0, height=130, width=170))


def test_a_draft_is_the_one_of_the_decoder() -> None:
    data = stored(photo(240, 320), quality=95)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (80, 60))
        wanted = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(read_frame(episode(data), 0, height=60, width=80, draft=True), wanted)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (300, 400)], ids=["in one strip", "in several"])
def test_a_clip_of_all_kinds_holds_each_frame_at_its_place(height: int, width: int) -> None:
    rng = np.random.default_rng(1)
    kinds = [encode_jpeg(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)) for _ in range(3)] + list(OTHER.values())
    held = episode(*kinds)
    frames = [3, 0, 0, 4, 1, 1, 1, 8, 2, 5, 5, 0]
    out = np.full((len(frames), height, width, 3), 99, np.uint8)
    read_clip(held, frames, out)
    for place, frame in enumerate(frames):
        np.testing.assert_array_equal(out[place], resize_frame(held.decode(frame), height=height, width=width))


def test_the_bad_frame_of_a_clip_is_known() -> None:
    with pytest.raises(ImageError) as caught:
        read_clip(episode(PLAIN["subsampled"], b"", PLAIN["subsampled"]), [0, 2, 1], np.empty((3, 8, 8, 3), np.uint8))
    assert caught.value.frame == 1
