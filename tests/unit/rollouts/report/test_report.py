import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vw2_robot.errors import InputError
from vw2_robot.rollouts.__main__ import rollout
from vw2_robot.rollouts.config import RolloutConfig
from vw2_robot.rollouts.report.curves import MAX_POINTS, code_usage_panel, thin, training_panels
from vw2_robot.rollouts.report.gallery import video_cards
from vw2_robot.rollouts.report.report import write_report
from vw2_robot.rollouts.report.run_folders import discover
from vw2_robot.rollouts.report.tables import latex
from vw2_robot.storage.files import read_json
from vw2_robot.storage.normal_ranges import NormalRanges

STAGES = {
    "vdm": ["vdm/denoising_loss", "vdm/validation_loss"],
    "dldm": ["dldm/phase", "dldm/reconstruction_l2", "dldm/ratio_to_copy"],
    "latents": ["latents/frames"],
    "policy": ["policy/code_loss", "policy/validation_loss", "policy/accuracy", "policy/validation_accuracy"],
    "finetune": ["finetune/action_l2", "finetune/validation_action_l2"],
}
VOID = {"meta", "br", "img", "link", "input", "hr"}


def write_training(folder):
    for stage, keys in STAGES.items():
        (folder / stage).mkdir(parents=True)
        lines = [{"step": 10 * i, **dict.fromkeys(keys, 1.0 / i)} for i in range(1, 9)]
        if stage == "dldm":
            lines = [{**line, "dldm/phase": 1 + (line["step"] > 40)} for line in lines]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / stage / "metrics.jsonl").write_text(text + '{"step": 90, "torn')
        (folder / stage / "config.yaml").write_text(f"stage: {stage}\nseed: 11\n")
    codes = {"histogram": [5, 0, 3, 8], "by_slot": [[5, 0, 0, 3], [0, 0, 3, 5]], "used": 3, "perplexity": 2.7}
    (folder / "dldm" / "codes.json").write_text(json.dumps(codes))
    Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(folder / "dldm" / "reconstructions.png")


def write_rollout(folder, *, knows=("open", "close", "lift", "turn"), policy="demonstrator", **changes):
    world = {"_target_": "counting_world.CountingBenchmark", "knows": list(knows)}
    settings = {"num_sequences": 6, "videos": 2, **changes}
    return rollout(RolloutConfig(policy=policy, env=world, run_dir=str(folder), **settings))


class Page(HTMLParser):
    """Ids, links and text of a page; fails on tags that do not close."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.text, self.tags, self._open = [], [], "", [], []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "poster", "action", "data", "srcset", "background", "xlink:href"):
                self.links.append(value)
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "


@pytest.fixture(scope="module")
def runs(counting_world, tmp_path_factory):
    """Training in first/, rollouts in first/rollout and weak/, and the report of all in out/."""
    folder = tmp_path_factory.mktemp("runs")
    write_training(folder / "first")
    write_rollout(folder / "first" / "rollout")
    write_rollout(folder / "weak", knows=["open"])
    write_report([folder / "first", folder / "weak"], folder / "out")
    return folder


@pytest.fixture(scope="module")
def everything(runs):
    return (runs / "out" / "report.html").read_text(encoding="utf-8")


def test_a_full_report_has_every_section(everything):
    page = Page(everything)
    sections = ["summary", "videos", "comparison", "tasks", "failures", "success", "published"]
    sections += ["training", "codes", "reconstructions", "provenance"]
    assert [name for name in page.ids if name in sections] == sections
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)


def test_a_report_loads_nothing(everything):
    page = Page(everything)
    assert all(link.startswith(("data:", "#")) for link in page.links)
    assert "://" not in everything
    assert not re.search(r"url\((?!#)|@import|<script|<link|<iframe", everything)
    assert "default-src 'none'" in everything


def test_a_report_follows_light_and_dark_and_fits_a_phone(everything):
    assert "@media (prefers-color-scheme: dark)" in everything
    assert "width=device-width" in everything
    svg = "".join(re.findall(r"<svg.*?</svg>", everything, flags=re.DOTALL))
    assert "var(--series-1)" in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg)  # no color that the page cannot turn dark


def test_videos_are_inside_and_are_the_files_on_disk(everything, runs):
    page = Page(everything)
    videos = [link for link in page.links if link.startswith("data:video/mp4;base64,")]
    on_disk = {path.read_bytes() for path in runs.rglob("*.mp4")}
    assert {base64.b64decode(link.split(",", 1)[1]) for link in videos} == on_disk
    assert len(videos) == sum(link.startswith("data:image/jpeg") for link in page.links) == 4


def test_a_video_card_has_instruction_task_and_outcome(everything):
    text = Page(everything).text
    assert "4 of 5 solved" in text
    assert "0 of 5 solved" in text
    assert "please push" in text


def test_numbers_have_intervals_and_denominators(everything):
    text = " ".join(Page(everything).text.split())
    assert re.search(r"2\.00 \[0\.\d\d, [34]\.\d\d\] average length of 5", text)
    assert "83.3 [43.6, 97.0] 5/6" in text
    assert re.search(r"−1\.\d\d \[−\d\.\d\d, [−+]\d\.\d\d\] on 6 shared chains: 0 better, 1 equal, 5 worse", text)


def test_the_papers_rows_are_marked_as_the_papers(everything):
    text = Page(everything).text
    assert "not measured by this package" in text
    assert "2.88" in text


def test_provenance_names_hash_seed_versions_and_configuration(everything):
    text = " ".join(Page(everything).text.split())
    assert "ab" * 32 in text
    assert re.search(r"versions .*torch \d", text)
    assert "action labels 10 %" in text
    assert "stage: dldm seed: 11" in text


def test_a_training_run_alone_makes_a_report(tmp_path):
    write_training(tmp_path / "first")
    path = write_report([tmp_path / "first"], tmp_path / "out")
    ids = Page(path.read_text(encoding="utf-8")).ids
    assert {"summary", "training", "codes", "reconstructions", "provenance"} <= set(ids)
    assert not {"success", "tasks", "videos", "published"} & set(ids)
    assert "`vdm/denoising_loss`" in (tmp_path / "out" / "table.md").read_text(encoding="utf-8")


def test_tables_hold_every_rollout_with_intervals(runs):
    markdown = (runs / "out" / "table.md").read_text(encoding="utf-8")
    tex = (runs / "out" / "table.tex").read_text(encoding="utf-8")
    for name in ("first/rollout", "weak"):
        assert f"| {name} | demonstrator | 10 % | 6 |" in markdown
        assert f"{name} & 10 \\% & 6 &" in tex
    widths = {line.count("|") for line in markdown.split("\n\n")[0].splitlines()}
    assert len(widths) == 1
    assert {line.count("&") for line in tex.splitlines() if line.endswith("\\\\")} == {8}


def test_special_characters_reach_no_markup(counting_world, tmp_path, monkeypatch):
    monkeypatch.setattr(
        counting_world.CountingBenchmark, "instruction", lambda self, task: f"<b>please</b> {task} & co"
    )
    monkeypatch.setattr(counting_world.ScriptedPolicy, "infer", lambda self, obs: {"actions": np.zeros((8, 7))})
    write_rollout(tmp_path / "a_b%", videos=1)
    page = (tmp_path / "a_b%" / "report.html").read_text(encoding="utf-8")
    assert "<b>please" not in page
    assert "&lt;b&gt;please" in page
    assert "a\\_b\\%" in latex(discover([tmp_path / "a_b%"])[1])


HOSTILE = "<script>alert(1)</script>|\u2028[x](javascript:1) `$ \\input{/etc/passwd}"


def test_a_foreign_folder_puts_neither_markup_nor_files_of_the_reader_into_a_page(counting_world, tmp_path, caplog):
    write_training(tmp_path / "run/first")
    write_rollout(tmp_path / "run/second")
    secret = tmp_path / "secret"
    secret.write_text("-----SECRET KEY-----" * 3)
    for name in ("first/dldm/reconstructions.png", "first/vdm/config.yaml", "second/videos/chain_0003.mp4"):
        (tmp_path / "run" / name).unlink()
        (tmp_path / "run" / name).symlink_to(secret)
    (tmp_path / "run/first/vdm/metrics.jsonl").write_text(json.dumps({"step": 1, HOSTILE: 1.0}) + "\n")
    summary = read_json(tmp_path / "run/second/summary.json", cure="")
    (tmp_path / "run/second/summary.json").write_text(json.dumps({**summary, "policy": HOSTILE}))
    write_report([tmp_path / "run"], tmp_path / "out")
    page, markdown, tex = ((tmp_path / "out" / n).read_text() for n in ("report.html", "table.md", "table.tex"))
    assert base64.b64encode(secret.read_bytes()).decode() not in page
    assert "SECRET KEY" not in page
    assert "<script>" not in page + markdown + tex
    assert "\u2028" not in markdown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;\\| \\[x\\](javascript:1) \\`" in markdown
    assert {line.count("|") - line.count("\\|") for line in markdown.split("\n\n")[0].splitlines()} == {11}
    assert sum("leads out of the run folder" in record.message for record in caplog.records) >= 3


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("summary.json", {"policy": 3}),
        ("summary.json", {"success_rates": [0.5, "much"]}),
        ("summary.json", {"success_rates": []}),
        ("summary.json", {"average_length": 1e400}),
        ("summary.json", {"per_task": {"open": {"solved": 2, "attempted": 1}}}),
        ("summary.json", {"env": []}),
        ("provenance.json", {"policy": "mine"}),
        ("provenance.json", {"instructions": {"open": 3}}),
        ("provenance.json", {"max_steps": "many"}),
        ("provenance.json", {"note": [[[[[[[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]]]]]]]}),
        ("results.jsonl", {"env_steps": [0.5]}),
        ("results.jsonl", {"subtasks": []}),
    ],
)
def test_values_that_cannot_be_are_named_with_their_file(counting_world, tmp_path, name, changes):
    """Without a checksum, as in folders of older releases and of other people."""
    run = tmp_path / "run"
    write_rollout(run, videos=0, num_sequences=1)
    content = json.loads((run / name).read_text().splitlines()[0] if "jsonl" in name else (run / name).read_text())
    content = {key: value for key, value in content.items() if key not in ("checksum", "sha256_of_the_rest")}
    (run / name).write_text(json.dumps({**content, **changes}) + "\n")
    with pytest.raises(InputError, match=name):
        write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_unfinished_rollout_is_reported_as_such(counting_world, tmp_path):
    write_rollout(tmp_path / "run", videos=0)
    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "run" / "results.jsonl").write_text("".join(lines[:4]) + lines[4][:10])
    (tmp_path / "run" / "summary.json").unlink()
    text = write_report([tmp_path / "run"], tmp_path / "out").read_text(encoding="utf-8")
    assert "2 chains are missing, the numbers are over 4" in text


def test_videos_beyond_the_budget_are_named_and_both_kinds_stay(counting_world, tmp_path):
    write_rollout(tmp_path / "run", videos=6)
    _, rollouts = discover([tmp_path / "run"])
    sizes = [
        len(card["video"]) + len(card["poster"]) + len(card["strip"].svg)
        for card in video_cards(rollouts, budget=10**9)[0]
    ]
    cards, left_out = video_cards(rollouts, budget=int(2.5 * max(sizes)))
    assert len(cards) + len(left_out) == len(sizes) >= 5
    assert 2 <= len(cards) < len(sizes)
    assert {4, 0} <= {card["solved"] for card in cards}
    assert all(re.fullmatch(r"run/videos/chain_000\d\.mp4", name) for name in left_out)


def test_runs_are_found_below_and_in_the_order_of_training(tmp_path):
    write_training(tmp_path / "deep" / "first")
    stages, rollouts = discover([tmp_path / "deep", tmp_path / "deep" / "first"])
    assert [stage.name for stage in stages] == [f"deep/first/{name}" for name in STAGES]
    assert rollouts == []


def test_folders_without_a_run_are_errors_that_name_what_was_expected(tmp_path):
    with pytest.raises(InputError, match=r"metrics\.jsonl"):
        discover([tmp_path])
    with pytest.raises(InputError, match="is no folder"):
        discover([tmp_path / "missing"])
    with pytest.raises(InputError, match="runs is empty"):
        discover([])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.jsonl", '{"step": 1, "a/b": 2}\nnonsense\n', "line 2"),
        ("metrics.jsonl", '{"a/b": 2}\n', "line 1"),
        ("metrics.jsonl", '{"step": 1, "a/b": "high"}\n', "line 1"),
        ("codes.json", '{"histogram": 3}', "histogram"),
        ("codes.json", '{"histogram": ', "no valid JSON"),
        ("config.yaml", "a: [", "no valid YAML"),
        ("summary.json", "{}", "lacks"),
        ("results.jsonl", "", "no finished chain"),
    ],
)
def test_broken_files_are_named(tmp_path, name, content, message):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "a/b": 2}\n')
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        discover([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_held_out_curves_join_the_panel_they_belong_to():
    series = ([1, 2, 3], [3.0, 2.0, 1.0])
    keys = [
        "policy/code_loss",
        "policy/validation_loss",
        "policy/accuracy",
        "policy/validation_accuracy",
        "policy/grad_norm",
    ]
    panels = training_panels(dict.fromkeys(keys, series), ids="f")
    assert [panel.title for panel in panels] == ["code loss", "accuracy", "grad norm"]
    assert [len(panel.legend) for panel in panels] == [2, 2, 1]
    assert panels[0].legend[1] == (2, "validation loss 1")


def test_bounds_become_a_band_around_their_metric():
    """Also where a bound lacks a step; a metric that only ends like a bound keeps a panel."""
    steps = [1, 2, 3]
    records = {
        "f/validation_action_l2": (steps, [3.0, 2.0, 1.0]),
        "f/validation_action_l2_low": (steps, [2.5, 1.5, 0.5]),
        "f/validation_action_l2_high": (steps[:2], [3.5, 2.5]),
        "f/battery_low": (steps, [1.0, 1.0, 1.0]),
    }
    panels = training_panels(records, ids="f")
    assert [panel.title for panel in panels] == ["validation action l2", "battery low"]
    assert [text for _, text in panels[0].legend] == ["last 1"]
    assert [("opacity: 0.2" in panel.svg, "band" in panel.caption) for panel in panels] == [
        (True, True),
        (False, False),
    ]


def test_explained_change_with_other_codes_joins_that_with_the_right_ones():
    names = [f"dldm/explained_change{codes}_t{t}" for codes in ("", "_shuffled", "_null") for t in (0.8, 0.97)]
    panels = training_panels(dict.fromkeys([*names, "dldm/explained_change_decoder"], ([1, 2], [0.1, 0.2])), ids="f")
    assert [panel.title for panel in panels] == [
        "explained change t0.8",
        "explained change t0.97",
        "explained change decoder",
    ]
    assert [text.removesuffix(" 0.2") for _, text in panels[1].legend] == [
        "explained change t0.97",
        "explained change shuffled t0.97",
        "explained change null t0.97",
    ]


def test_a_validation_curve_without_partner_has_a_separate_panel():
    panels = training_panels({"a/validation_ratio": ([1], [0.5])}, ids="f")
    assert [panel.title for panel in panels] == ["validation ratio"]


def test_a_change_of_phase_is_marked_in_every_panel():
    records = {"d/phase": ([1, 2, 3], [1.0, 1.0, 2.0]), "d/loss": ([1, 2, 3], [3.0, 2.0, 1.0])}
    (panel,) = training_panels(records, ids="f")
    assert "phase 2" in panel.svg


def test_a_curve_beyond_its_normal_range_is_named_and_one_within_is_not():
    curve = {"steps": [10, 40], "low": [1.0, 1.0], "high": [2.0, 2.0]}
    ranges = NormalRanges(4, {"1": {"a/loss": curve, "a/ratio": curve}}, {"1": 40}, (), True)
    steps = [10, 20, 30, 40]
    records = {"a/loss": (steps, [1.5] * 4), "a/ratio": (steps, [1.5, 3.0, 3.0, 3.0]), "a/other": (steps, [1.0] * 4)}
    panels = training_panels(records, ids="f", ranges=ranges)
    assert [panel.state for panel in panels] == ["normal", "above", ""]
    assert ["normal range" in dict(panel.legend).values() for panel in panels] == [True, True, False]


def test_ids_of_figures_are_unique_in_a_page(everything):
    ids = re.findall(r'\bid="([^"]*)"', everything)
    assert len(ids) == len(set(ids))


def test_long_logs_are_thinned_by_means_that_keep_the_total():
    values = list(np.random.default_rng(0).normal(size=9 * MAX_POINTS))
    x, y, width = thin(range(len(values)), values)
    assert (len(x), width) == (MAX_POINTS, 9)
    assert np.mean(y) == pytest.approx(np.mean(values))
    assert x[0] == 4.0


def test_code_usage_names_used_codes_of_all():
    panel = code_usage_panel({"histogram": [5, 0, 3, 8], "used": 3, "perplexity": 2.7}, ids="f")
    assert "3 of 4 codes used, perplexity 2.7" in panel.caption
    assert len(panel.legend) == 1


def test_rows_of_another_loop_make_a_report_as_the_page_says(tmp_path, monkeypatch):
    page = (Path(__file__).resolve().parents[4] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    code = page.partition("## Rows of your own loop")[2].partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    write_report(["runs/mine"], "runs/mine/report")
    table = Path("runs/mine/report/table.md").read_text(encoding="utf-8")
    assert "mine" in table
    assert "50.0" in table  # one of two
