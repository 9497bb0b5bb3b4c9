"""Steps of the simulator with an image each: by EGL where it works, and by the CPU renderer in any case."""

from __future__ import annotations

import ctypes
import time

import numpy as np

from vw2_robot.errors import InputError

from .measured import Measured, NotMeasuredError, Settings
from .training import Training

CPU_RENDERER = "layered"
GL_RENDERER = "GL_RENDERER="


def steps_per_second(renderer: str, *, seconds: float) -> float:
    """Return control steps/s of one environment with the static camera's image at each step.

    Args:
        renderer: of `CalvinEnv`.
        seconds: that are measured.

    Raises:
        InputError: the renderer does not work here.
    """
    from vw2_robot.envs.calvin import CalvinEnv  # an extra, which no other row needs

    env = CalvinEnv(renderer=renderer, cameras=("static",))
    try:
        env.reset(seed=0)
        rng = np.random.default_rng(0)
        env.step(rng.uniform(-1, 1, 7))  # warms up
        count = 0
        begin = time.perf_counter()
        while (took := time.perf_counter() - begin) < seconds:
            env.step(rng.uniform(-1, 1, 7))
            count += 1
        return count / took
    finally:
        env.close()


def gl_driver(settings: Settings, *, before: str) -> str:
    """Return what renders by EGL, as PyBullet prints it: a GPU, or llvmpipe where Mesa renders on the CPU.

    Args:
        settings: where this process prints to.
        before: what was printed before the renderer was loaded.
    """
    ctypes.CDLL(None).fflush(None)  # PyBullet prints by C's own buffer
    printed = settings.output.read_text(errors="replace").removeprefix(before) if settings.output.is_file() else ""
    lines = [line.removeprefix(GL_RENDERER) for line in printed.splitlines() if line.startswith(GL_RENDERER)]
    return lines[-1] if lines else "driver not told"


def rendering_row(training: Training) -> Measured:
    """Measure both renderers; without EGL the note gives the reason, and the row is that of the CPU renderer.

    Raises:
        NotMeasuredError: the simulator is not installed.
    """
    settings = training.settings
    text = settings.output.read_text(errors="replace") if settings.output.is_file() else ""
    seconds = 1.0 if settings.toy else 5.0
    try:
        cpu = steps_per_second(CPU_RENDERER, seconds=seconds)
    except ImportError as error:
        raise NotMeasuredError(f"not available here: {error}") from error
    try:
        rate = steps_per_second("egl", seconds=seconds)
        renderer = "egl"
        driver = gl_driver(settings, before=text)
        note = f"EGL ({driver}), 200 x 200; the CPU renderer {cpu:.0f} steps/s"
        reason = ""
    except InputError as error:
        rate = cpu
        renderer = CPU_RENDERER
        driver = ""
        reason = str(error)
        note = f"the CPU renderer, 200 x 200; EGL: not available here ({reason})"
    return Measured(
        milliseconds=1000 / rate,
        per_second=rate,
        unit="steps/s",
        note=note,
        values={"renderer": renderer, "gl_driver": driver, "cpu_steps_per_second": cpu, "egl_missing": reason},
    )
