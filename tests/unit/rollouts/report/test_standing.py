"""Where a rollout stands: sentences and bars beside policies measured on the same problems."""

from vw2_robot.rollouts.report.bars import standing, task_table
from vw2_robot.rollouts.report.run_folders import Rollout
from vw2_robot.rollouts.report.standing import YARDSTICKS, against_what, how_sure, yardsticks_of
from vw2_robot.rollouts.results import summarize

TASKS = ["open_drawer", "close_drawer", "turn_on_led", "turn_off_led", "push_into_drawer"]


def made(tmp_path, solved, *, env=("D", "builtin"), length=5, policy="runs/mine/finetune", **provenance):
    rows = [
        {
            "sequence": i,
            "initial_state": {},
            "subtasks": TASKS[:length] if length > 1 else [f"task {i}"],
            "solved": n,
            "env_steps": [10] * min(n + 1, length),
            "seed": 0,
            "instructions": [],
        }
        for i, n in enumerate(solved)
    ]
    about = {"env": dict(zip(("scene", "assets", "instructions"), env, strict=False)), **provenance}
    return Rollout("mine", tmp_path, summarize(rows, about, seconds=1.0), rows, about, "", len(rows), policy)


def test_a_rollout_is_placed_among_policies_measured_on_its_problems(tmp_path):
    strong = made(tmp_path, [3, 3, 2, 4, 5] * 30)
    assert against_what(strong) == (
        "Better than random; not distinguishable from builtin:calvin-tiny; worse than demonstrator."
    )
    assert against_what(made(tmp_path, [3, 3], policy="builtin:calvin-tiny")).count("calvin-tiny") == 0


def test_other_scenes_seeds_assets_and_some_tasks_alone_have_nothing_to_be_placed_among(tmp_path):
    some = {"protocol": "single", "length": 1}
    for changes in (
        {"env": ("A", "builtin")},
        {"env": ("D", "/data/calvin")},
        {"env": ("D", "builtin", "enriched")},
        {"sequences_seed": 1},
        {"max_steps": 20},
        some,
    ):
        rollout = made(tmp_path, [1, 1], **changes)
        assert yardsticks_of(rollout) == []
        assert against_what(rollout) == ""
        assert [one["published"] for one in standing([rollout])] == [False]


def test_the_interval_is_explained_with_the_chains_that_would_narrow_it(tmp_path):
    text = how_sure(made(tmp_path, [0, 5, 2, 3]))
    assert text.startswith("With 4 chains the average length lies between ")
    assert "num_sequences=" in text
    assert "num_sequences=" not in how_sure(made(tmp_path, [2] * 400))


def test_single_tasks_stand_by_their_success_rate(tmp_path):
    single = made(tmp_path, [1] * 17 + [0] * 17, length=1, protocol="single")
    ours, other = standing([single])
    assert ours["text"].startswith("50.0 % [")
    assert (ours["share"], other["name"]) == (0.5, "builtin:calvin-tiny")
    assert "rollouts the success rate lies between" in how_sure(single)


def test_yardsticks_are_their_texts():
    for one in YARDSTICKS:
        scale = 5 if one.protocol == "chain" else 100
        assert float(one.text.split()[0]) == round(one.share * scale, 2)


def test_the_heat_map_has_positions_of_a_single_rollout_and_leads_to_videos(tmp_path):
    rollout = made(tmp_path, [1, 2])
    cards = [{"id": "video-0-0", "subtasks": [{"task": "open_drawer", "state": "solved"}]}]
    table = task_table([rollout], cards)
    assert table["positions"] == 5
    first = table["rows"][1]
    assert first["name"] == "open drawer"
    assert [cell and (cell["count"], cell["total"]) for cell in first["cells"]] == [(2, 2), (2, 2)] + [None] * 4
    assert first["videos"] == [("solved", "video-0-0")]
    assert len(task_table([rollout, rollout], [])["rows"][0]["cells"]) == 2
