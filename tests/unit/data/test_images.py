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
def test_pixels_are_those_of_pillow(kind: str, height: int, width: int, aspect: Aspect) -> None:
    held = episode({**PLAIN, **OTHER}[kind])
    frame = held.images[0]
    if isinstance(frame, bytes):
        with Image.open(io.BytesIO(frame)) as image:
            frame = np.asarray(image.convert("RGB"))
    np.testing.assert_array_equal(held.decode(0), frame)
    wanted = resize_frame(frame, height=height, width=width, aspect=aspect)
    found = read_frame(held, 0, height=height, width=width, aspect=aspect, decode="full")
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("kind", [*PLAIN, "gray", "RGB without conversion"])
def test_jpeg_needs_no_pillow_where_its_colors_are_plain(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(Image, "open")
    assert read_frame(episode({**PLAIN, **OTHER}[kind]), 0, height=48, width=64).shape == (48, 64, 3)


@pytest.mark.parametrize("data", [b"", b"\xff\xd8", b"no image", PLAIN["subsampled"][:-900], PLAIN["subsampled"][:40]])
def test_damaged_images_are_named(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"set, episode 7, frame 0 of 1: found \d+ bytes that are no readable image"):
        read_frame(episode(data), 0, height=8, width=8)


@pytest.mark.parametrize("aspect", ["stretch", "pad"])
def test_scaled_is_close_to_full_and_is_taken_only_where_the_image_is_twice_as_large(aspect: Aspect) -> None:
    held = episode(stored(photo(240, 320), quality=95))
    for size, differs in ((60, True), (100, True), (170, False)):
        full, scaled = (
            read_frame(held, 0, height=size, width=size, aspect=aspect, decode=decode).astype(int)
            for decode in ("full", "scaled")
        )
        assert (0 < abs(scaled - full).max() < 12) == differs
        assert abs(scaled - full).mean() < 1.5


def test_scaled_is_the_scale_of_the_decoder() -> None:
    data = stored(photo(241, 321), quality=95)
    with Image.open(io.BytesIO(data)) as image:
        image.draft("RGB", (80, 60))
        wanted = resize_frame(np.asarray(image.convert("RGB")), height=60, width=80)
    np.testing.assert_array_equal(read_frame(episode(data), 0, height=60, width=80), wanted)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (30, 40)], ids=["as they are", "resized"])
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
