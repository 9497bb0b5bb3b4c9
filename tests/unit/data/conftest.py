"""Videos whose images say which one they are, also after lossy compression."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

BITS = 12
HEIGHT, WIDTH = 48, 64  # 3 x 4 squares of 16 pixels, one for each bit


def numbered_image(number: int) -> NDArray[np.uint8]:
    """uint8 [48, 64, 3]: light squares are the ones of `number`, the red channel alone fades from left to right."""
    bits = (number >> np.arange(BITS)) & 1
    squares = np.where(bits, 220, 30).astype(np.uint8).reshape(3, 4).repeat(16, axis=0).repeat(16, axis=1)
    red = np.linspace(10, 0, WIDTH).astype(np.uint8)
    return np.stack([squares + red, squares, squares], axis=-1)


def number_in(image: NDArray[np.uint8]) -> int:
    """Which image this is."""
    assert image.shape == (HEIGHT, WIDTH, 3)
    light = image[8::16, 8::16, 1] > 125
    return int((light.ravel() * (1 << np.arange(BITS))).sum())


@pytest.fixture(scope="session")
def video() -> Callable[..., Path]:
    """video(path, numbers, hz=10, codec="libx264", times=None, options=None) writes images; times are in 1/1000 s."""
    av = pytest.importorskip("av", reason="PyAV is not installed (extra video)")

    def write(
        path: Path,
        numbers: Iterable[int],
        *,
        hz: int = 10,
        codec: str = "libx264",
        times: Sequence[int] | None = None,
        options: dict[str, str] | None = None,
    ) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=options or {}) as container:
            stream: Any = container.add_stream(codec, rate=hz)
            stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
            stream.options = {"g": "8"} if codec == "libx264" else {"g": "2", "crf": "12", "preset": "8"}
            for index, number in enumerate(numbers):
                frame = av.VideoFrame.from_ndarray(numbered_image(number), format="rgb24")
                if times is not None:
                    frame.pts, frame.time_base = times[index], Fraction(1, 1000)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path

    return write


@pytest.fixture(scope="session")
def image() -> Callable[[int], NDArray[np.uint8]]:
    return numbered_image


@pytest.fixture(scope="session")
def number_of() -> Callable[[NDArray[np.uint8]], int]:
    return number_in
