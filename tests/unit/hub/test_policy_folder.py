"""The exported folder: the same policy, its parts, its model card, and the program that writes it."""

import json
import shutil

import numpy as np
import pytest
import yaml
from safetensors import safe_open

from vw2_robot import VW2Agent
from vw2_robot.agent import CHECKPOINTS
from vw2_robot.checkpoint import resolve
from vw2_robot.errors import InputError
from vw2_robot.serving.export import ExportConfig, main
from vw2_robot.storage.files import verify, write_json, write_manifest, write_yaml

BUILTIN = CHECKPOINTS / "calvin-tiny"


@pytest.fixture(scope="module")
def agent():
    return VW2Agent.from_pretrained(BUILTIN)


@pytest.fixture(scope="module")
def exported(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "drawers"
    agent.save_pretrained(folder, license="mit")
    return folder


def copied(source, target, **change):
    """A copy whose config.json has other values."""
    shutil.copytree(source, target)
    content = json.loads((target / "config.json").read_text())
    content["config"] |= change
    write_json(target / "config.json", content)
    write_manifest(target)
    return target


def files_of(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def card_of(folder):
    """Metadata and text of the model card."""
    _, head, text = (folder / "README.md").read_text().split("---\n", 2)
    return yaml.safe_load(head), text


def test_the_folder_is_the_same_policy_with_its_dldm_apart(agent, exported):
    assert files_of(exported) == [
        "README.md",
        "config.json",
        "dldm/config.json",
        "dldm/manifest.json",
        "dldm/model.safetensors",
        "manifest.json",
        "model.safetensors",
        "policy_postprocessor.json",
        "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        "policy_preprocessor.json",
        "policy_preprocessor_step_3_normalizer_processor.safetensors",
        "stats.json",
        "tokens.json",
    ]
    assert verify(exported, cure="")
    for file in exported.rglob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            assert tensors.metadata() == {"format": "pt"}
            names = list(tensors.keys())
        parts = {name.partition(".")[0] for name in names}
        assert parts == (
            {"dldm"} if file.parent.name == "dldm" else {"action"} if "_step_" in file.name else {"policy", "head"}
        )
    again = VW2Agent.from_pretrained(exported)
    assert again.metadata == agent.metadata
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    for one in (agent, again):
        one.reset("open the drawer")
    first, second = (one.infer({"images": {"static": image}}) for one in (agent, again))
    np.testing.assert_array_equal(first["actions"], second["actions"])


def test_config_json_has_the_keys_of_lerobot_and_how_the_agent_acts(exported, tmp_path):
    found = json.loads((exported / "config.json").read_text())
    assert found["type"] == "vw2"
    assert found["input_features"] == {"observation.images.static": {"type": "VISUAL", "shape": [3, 200, 200]}}
    assert found["output_features"] == {"action": {"type": "ACTION", "shape": [7]}}
    assert found["normalization_mapping"] == {"VISUAL": "IDENTITY", "ACTION": "QUANTILES"}
    assert (found["license"], found["push_to_hub"]) == ("mit", False)
    # The checkpoint of the package has older keys for these.
    acting = {key: found["config"][key] for key in ("acting", "n_action_steps", "stride", "temporal_ensemble")}
    assert acting == {"acting": "none", "n_action_steps": 2, "stride": 4, "temporal_ensemble": None}
    VW2Agent.from_pretrained(exported, n_action_steps=3).save_pretrained(tmp_path / "three")
    assert VW2Agent.from_pretrained(tmp_path / "three").metadata["n_action_steps"] == 3


def test_a_damaged_part_is_named_and_the_rest_acts_without_it(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "alone", ignore=shutil.ignore_patterns("dldm"))
    with pytest.raises(InputError, match=r"came without its dLDM: .*alone/dldm is missing"):
        VW2Agent.from_pretrained(tmp_path / "alone").dldm()
    copied(exported / "dldm", tmp_path / "alone" / "dldm", queries=5)
    with pytest.raises(InputError, match="is the dLDM of another policy"):
        VW2Agent.from_pretrained(tmp_path / "alone").dldm()
    (tmp_path / "alone" / "dldm" / "model.safetensors").write_bytes(b"damage")
    with pytest.raises(InputError, match=r"dldm/model.safetensors is damaged"):
        VW2Agent.from_pretrained(tmp_path / "alone").dldm()


def test_a_policy_trained_from_scratch_has_no_dldm_to_export(tmp_path):
    agent = VW2Agent.from_pretrained(copied(BUILTIN, tmp_path / "scratch", dldm=None))
    with pytest.raises(InputError, match="has no dLDM, it was trained from scratch"):
        agent.dldm()
    agent.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out" / "dldm").exists()


def test_only_an_export_that_nobody_changed_is_replaced(agent, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    agent.save_pretrained(out)
    VW2Agent.from_pretrained(out).save_pretrained(tmp_path / "two", name="out")
    assert all((out / name).read_bytes() == (tmp_path / "two" / name).read_bytes() for name in files_of(out))
    VW2Agent.from_pretrained(out).save_pretrained(out, license="mit")  # in its place
    assert card_of(out)[0]["license"] == "mit"
    assert VW2Agent.from_pretrained(out).metadata == agent.metadata
    (out / "README.md").write_text("my card")
    with pytest.raises(InputError, match=r"README.md is damaged: .* it was changed since it was exported"):
        agent.save_pretrained(out)
    (out / "notes.txt").write_text("mine")
    shutil.copytree(BUILTIN, tmp_path / "of_a_run")
    for folder in (out, tmp_path / "of_a_run"):
        with pytest.raises(InputError, match="is no earlier export of a policy; give another folder"):
            agent.save_pretrained(folder)
    assert (out / "notes.txt").is_file()


def rollout(folder, policy_hash, **change):
    folder.mkdir()
    summary = {
        "policy_hash": policy_hash,
        "num_sequences": 200,
        "chain_length": 2,
        "success_rates": [0.8, 0.45],
        "success_intervals95": [[0.739, 0.8495], [0.3826, 0.5193]],
        "average_length": 1.25,
        "average_length_ci95": [1.14, 1.36],
        "env": {"scene": "D", "assets": "builtin", "versions": {"numpy": "1"}},
    }
    write_json(folder / "summary.json", summary | change, sealed=True)
    return str(folder)


def test_the_card_has_the_rollouts_of_this_policy_with_their_intervals(agent, tmp_path, capsys):
    policy_hash = agent.metadata["policy_hash"]
    chains = rollout(tmp_path / "chains", policy_hash)
    other = rollout(tmp_path / "other", "0" * 64)
    single = {"chain_length": 1, "success_rates": [0.5], "success_intervals95": [[0.4, 0.6]]}
    tasks = rollout(tmp_path / "tasks", policy_hash, **single)
    main(ExportConfig(policy=str(BUILTIN), out=str(tmp_path / "out"), license="mit", rollouts=(chains, tasks)))
    assert policy_hash[:8] in capsys.readouterr().out
    head, text = card_of(tmp_path / "out")
    assert (head["pipeline_tag"], head["license"], head["library_name"]) == ("robotics", "mit", "vw2_robot")
    assert {"robotics", "lerobot"} <= set(head["tags"])
    assert "chains of 2 tasks, assets builtin, scene D; 200 rollouts:" in text
    assert "| 2 solved in a row | 45.0 % | [38.3, 51.9] |" in text
    assert "| average length | 1.25 | [1.14, 1.36] |" in text
    assert "| solved | 50.0 % | [40.0, 60.0] |" in text
    metrics = [metric for result in head["model-index"][0]["results"] for metric in result["metrics"]]
    assert [metric["value"] for metric in metrics] == ["80.0 %", "45.0 %", "1.25", "50.0 %"]
    with pytest.raises(InputError, match=r"other has rollouts of the policy 00000000, this one is"):
        agent.save_pretrained(tmp_path / "no", rollouts=[other])
    with pytest.raises(InputError, match=r"unfinished/summary.json is missing; finish it with vw2-rollout"):
        agent.save_pretrained(tmp_path / "no", rollouts=[str(tmp_path / "unfinished")])
    assert not (tmp_path / "no").exists()


def test_the_card_names_data_and_schedule_of_the_run_and_no_path(tmp_path, agent, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(BUILTIN, run / "checkpoints" / "step_1")
    (run / "latest").write_text("step_1\n")
    # As an earlier release wrote it.
    config = {"policy": "pre", "data": {"path": "/secret/place/calvin"}, "loop": {"steps": 20, "batch": 8}, "seed": 3}
    write_yaml(run / "config.yaml", config)
    write_json(
        run / "validation.json", {"action_loss": 0.05, "low": 0.04, "high": 0.06, "trajectories": 9}, sealed=True
    )
    (tmp_path / "pre" / "policy").mkdir(parents=True)
    write_yaml(
        tmp_path / "pre" / "policy" / "config.yaml", {"data": {"path": ["/secret/bridge_dataset/1.0.0", "/b/mine"]}}
    )
    assert resolve(run).name == "step_1"
    VW2Agent.from_pretrained(run).save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    for row in (
        "| labeled data | calvin |",
        "| video | bridge_dataset (cc-by-4.0), mine |",
        "| schedule | 20 steps of 8 windows, seed 3 |",
        "| held-out action loss | 0.0500 [0.0400, 0.0600], 9 trajectories |",
        "| labels | 100 % of the trajectories, 230955 actions |",
    ):
        assert row in text
    assert "secret" not in text
    assert "its success is not known" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repo": "owner"}, "repo=owner, expected owner/name"),
        ({"private": True}, "private and revision are of an upload"),
        ({"revision": "v1"}, "private and revision are of an upload"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(policy="p", out="o", **options)
