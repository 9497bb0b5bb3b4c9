"""Image metrics between two videos: PSNR and SSIM frame by frame; VMAF and LPIPS where what they need is installed.

SSIM as in Wang et al., "Image Quality Assessment" (2004): Gaussian window of 11 pixels and deviation 1.5, constants
(0.01 · 255)² and (0.03 · 255)², mean over windows that lie inside the image and over the three channels.
"""

# T frames · H, W pixels
from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.errors import InputError, MissingExtraError
from vw2_robot.storage.mp4 import ffmpeg_program

WINDOW = 11
DEVIATION = 1.5
C1 = (0.01 * 255) ** 2
C2 = (0.03 * 255) ** 2
VMAF_PX = 64
"""smallest side of a video that VMAF is asked about; its filter ends on much smaller ones"""
MAX_DB = 100.0
"""PSNR of equal frames, instead of infinity"""


def psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the peak signal-to-noise ratio in dB of each frame; both videos are uint8 [T, H, W, 3]."""
    _check(a, b)
    error = ((a.astype(np.float64) - b.astype(np.float64)) ** 2).mean(axis=(1, 2, 3))
    floor = 255.0**2 / 10 ** (MAX_DB / 10)
    decibel: NDArray[np.float64] = 10 * np.log10(255.0**2 / np.maximum(error, floor))
    return decibel


def ssim(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the structural similarity of each frame, 1 for equal ones.

    Args:
        a: uint8 [T, H, W, 3], at least 11 pixels a side.
        b: of the same shape.

    Raises:
        ValueError: other shapes, or smaller frames.
    """
    _check(a, b)
    if min(a.shape[1:3]) < WINDOW:
        raise ValueError(f"SSIM has windows of {WINDOW} pixels a side, found frames of {a.shape[1]} x {a.shape[2]}")
    x, y = (torch.from_numpy(np.array(v)).movedim(-1, 1).flatten(0, 1)[:, None].double() for v in (a, b))
    # float64: variances are differences of large numbers.
    mean_x = _blur(x)
    mean_y = _blur(y)
    var_x = _blur(x * x) - mean_x**2
    var_y = _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    brightness = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    structure = (2 * covariance + C2) / (var_x + var_y + C2)
    found: NDArray[np.float64] = (brightness * structure).mean(dim=(1, 2, 3)).view(len(a), 3).mean(1).numpy()
    return found


def why_no_vmaf() -> str:
    """Return why VMAF cannot be measured here; "" where it can."""
    try:
        program = ffmpeg_program()
    except MissingExtraError as error:
        return f"VMAF: {error}"
    filters = subprocess.run([program, "-v", "error", "-filters"], capture_output=True, check=False).stdout
    return "" if b" libvmaf " in filters else f"VMAF needs an ffmpeg with libvmaf; {program} has none"


def vmaf(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> float:
    """Return the mean VMAF of video `a` against `b`, 0 to 100; its model was made for videos of full size.

    Args:
        a: uint8 [T, H, W, 3], at least 64 pixels a side.
        b: the reference, of the same shape.

    Raises:
        ValueError: other shapes, or smaller frames.
        InputError: ffmpeg cannot measure it.
    """
    _check(a, b)
    if min(a.shape[1:3]) < VMAF_PX:
        raise ValueError(f"VMAF needs frames of {VMAF_PX} pixels a side, found {a.shape[1]} x {a.shape[2]}")
    program = ffmpeg_program()
    # ffmpeg takes one video from a pipe, so both go through files.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        command = [program, "-v", "error"]
        for file, video in (("distorted", a), ("reference", b)):
            (folder / file).write_bytes(np.ascontiguousarray(video).tobytes())
            size = f"{video.shape[2]}x{video.shape[1]}"
            command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", "10", "-i", file]
        command += ["-lavfi", "libvmaf=log_fmt=json:log_path=vmaf.json", "-f", "null", "-"]
        done = subprocess.run(command, capture_output=True, check=False, cwd=folder)
        if done.returncode:
            raise InputError(f"ffmpeg cannot measure VMAF: {done.stderr.decode(errors='replace').strip()[:200]}")
        found: float = json.loads((folder / "vmaf.json").read_text())["pooled_metrics"]["vmaf"]["mean"]
    return found


def _blur(x: Tensor) -> Tensor:
    """Return the Gaussian mean of every window inside the image, [n, 1, H, W] -> [n, 1, H - 10, W - 10]."""
    distance = torch.arange(WINDOW, dtype=x.dtype) - WINDOW // 2
    line = torch.exp(-(distance**2) / (2 * DEVIATION**2))
    line = line / line.sum()
    # A Gaussian is separable: 2 x 11 products for each window instead of 121.
    return F.conv2d(F.conv2d(x, line.view(1, 1, -1, 1)), line.view(1, 1, 1, -1))


def _check(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> None:
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
        raise ValueError(f"expected two videos [T, H, W, 3] of one shape, found {a.shape} and {b.shape}")
