"""The live page in a real browser: it loads without an error, a pressed task is solved, and something is seen."""

from __future__ import annotations

import importlib
import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("pybullet", reason="PyBullet is not installed (extra calvin)")
pytest.importorskip("viser", reason="viser is not installed (extra live)")

from vw2_robot.rollouts.live.config import LiveConfig
from vw2_robot.rollouts.live.control import Control
from vw2_robot.rollouts.live.live import LiveOpener
from vw2_robot.rollouts.live.page import Page
from vw2_robot.rollouts.live.worker import LiveWorker

pytestmark = [pytest.mark.sim, pytest.mark.slow]
torch.set_num_threads(1)
ENV = {"_target_": "vw2_robot.envs.benchmark.CalvinBenchmark", "scene": "D"}


@pytest.fixture
def chromium(monkeypatch):
    """The module `chromium`, which lies beside this file."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    yield importlib.import_module("chromium")
    sys.modules.pop("chromium", None)


@pytest.fixture
def served(tmp_path):
    """The page of the package's policy."""
    config = LiveConfig(env=ENV, port=0, out=str(tmp_path / "out"))
    opener = LiveOpener(config)
    page = Page(host=config.host, port=0, policy=config.policy, seed=0, opener=opener)
    worker = LiveWorker(lambda: Control(opener, policy=config.policy, scene="D", seed=0), page.show)
    page.attach(worker)
    worker.start()
    yield page
    worker.stop()
    page.close()
    assert worker.error is None


def test_a_task_pressed_in_a_browser_is_solved_and_seen(served, chromium, tmp_path):
    if chromium.PROGRAM is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    with chromium.Chromium(f"http://127.0.0.1:{served.port}", tmp_path / "profile", width=960, height=480) as browser:
        browser.wait_for_text("Ready for an instruction", seconds=120)
        browser.press("open drawer")
        browser.wait_for_text("Solved in", seconds=240)
        pixels = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB")).astype(float)
        browser.open_tab("Recordings")
        browser.press("Save this episode")
        browser.wait_for_text("episode_0000.mp4")
        browser.call("Emulation.setDeviceMetricsOverride", width=390, height=844, mobile=True, deviceScaleFactor=1)
        browser.call("Page.reload")
        browser.wait_for("document.querySelector('[aria-label=\"Expand panel Tasks\"]') !== null")
        seen = browser.evaluate("document.querySelector('img').getBoundingClientRect().toJSON()")
        scene_on_phone = np.asarray(Image.open(io.BytesIO(browser.screenshot())).convert("RGB")).astype(float)[100:330]
    assert browser.errors == []
    assert all(url.startswith((f"http://127.0.0.1:{served.port}/", "data:", "blob:")) for url in browser.requests)
    scene, camera = pixels[100:400, 360:600], pixels[80:370, 20:310]
    assert scene.std() > 10  # white if nothing was drawn
    assert camera.std() > 30
    assert (seen["top"] > 400) & (seen["bottom"] < 1000)  # most of the camera's image is in the sheet
    assert scene_on_phone.std() > 10
