"""The page of whole evaluations: 1000 chains, more videos than fit, and nothing that a browser would fetch."""

import json
import re

import numpy as np
import pytest

from vw2_robot.envs.sequences import make_sequences
from vw2_robot.rollouts.report.gallery import MAX_VIDEOS
from vw2_robot.rollouts.report.report import write_report
from vw2_robot.storage.files import write_json

VIDEO_BYTES = 700_000  # several times what a video of 1800 steps takes


def write_evaluation(folder, *, seed, videos):
    """1000 chains of the benchmark with made-up outcomes; the videos are noise as long as real ones or longer."""
    rng = np.random.default_rng(seed)
    (folder / "videos").mkdir(parents=True)
    lines = []
    for chain in make_sequences():
        solved = int(rng.integers(0, 6))
        steps = rng.integers(5, 360, size=min(5, solved + 1)).tolist()
        lines.append(
            {
                "sequence": chain.number,
                "initial_state": dict(chain.initial_state),
                "subtasks": list(chain.subtasks),
                "solved": solved,
                "env_steps": steps,
                "seed": seed,
                "instructions": [task.replace("_", " ") for task in chain.subtasks],
            }
        )
    (folder / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_json(folder / "provenance.json", {"n_action_steps": 4, "max_steps": 360, "num_sequences": 1000}, sealed=True)
    for line in lines[:videos]:
        path = folder / "videos" / f"chain_{line['sequence']:04d}"
        path.with_suffix(".mp4").write_bytes(rng.bytes(VIDEO_BYTES))
        path.with_suffix(".jpg").write_bytes(rng.bytes(20_000))
        subtask = np.concatenate([np.full(-(-n // 4), i) for i, n in enumerate(line["env_steps"])])
        actions = rng.uniform(-1, 1, size=(len(subtask), 8, 7)).astype(np.float32)
        tokens = rng.integers(0, 1000, size=(len(subtask), 2, 4))
        np.savez(path.with_suffix(".npz"), actions=actions, subtask=subtask, tokens=tokens)
    return folder


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("big")
    runs = [write_evaluation(folder / name, seed=i, videos=20) for i, name in enumerate(("one", "two"))]
    return write_report(runs, folder / "page")


def test_the_page_of_a_thousand_chains_stays_below_twenty_megabytes(page):
    text = page.read_text(encoding="utf-8")
    assert 5e6 < page.stat().st_size < 20e6
    videos = re.findall(r'src="data:video/mp4;base64,[^"]*"', text)
    assert 4 <= len(videos) <= MAX_VIDEOS
    assert "Left out to keep this page small" in text
    without_videos = page.stat().st_size - sum(map(len, videos))
    assert without_videos < 5e6


def test_both_runs_have_videos_of_success_and_failure(page):
    cards = re.findall(r"<article.*?</article>", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    shown = {(re.search(r"</i>(one|two)<", card)[1], re.search(r"(\d) of 5 solved", card)[1] == "5") for card in cards}
    assert shown == {("one", True), ("one", False), ("two", True), ("two", False)}


def test_all_chains_are_counted_and_the_covered_ones_flagged(page):
    text = re.sub(r"<[^>]+>", " ", page.read_text(encoding="utf-8"))
    assert "1,000 chains" in text
    assert "on 1000 shared chains" in " ".join(text.split())
    for number in (704, 771, 907, 954, 977):
        assert text.count(f"chain {number} (lift ") == 2


def test_nothing_on_the_page_is_fetched(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r'(?:src|href|poster|srcset|action|data|xlink:href)="([^"]{0,40})', text)
    assert links
    assert all(link.startswith(("data:", "#")) for link in links)
    assert not re.search(r"https?://|//[a-z]+\.|@import|url\((?!#)|<script|<link|<iframe|<object|<embed", text)
