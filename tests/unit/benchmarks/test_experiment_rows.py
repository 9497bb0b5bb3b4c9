"""The files of the registered experiment: each row is what its name says, and its aids are in its file."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # benchmarks are not part of the package

from benchmarks.experiment.gate import FINETUNE
from benchmarks.experiment.jobs import PRETRAIN, PROBE_LATENTS, RECORD
from benchmarks.experiment.plan import (
    FAMILIES,
    PRETRAININGS,
    RENDERED_FROM,
    Family,
    Row,
    experiment_file,
    files_of,
    finetune_experiment,
    rows_by_id,
)
from benchmarks.experiment.registration import aids_of, planned_settings
from benchmarks.results.settings import nested, settings_of
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import PolicyConfig

torch.set_num_threads(1)  # the models are small; two test processes share two cores
ROWS = rows_by_id(FAMILIES)
WITHOUT_TOKENS = {"scratch", "lapa", "lapa_bins", "without_tokens"}
POLICY_AIDS = {"restrict_softmax", "policy_code_dropout=0.5", "pose_weight=1.0"}


def pretraining(name: str) -> Mapping[str, Any]:
    settings = planned_settings(PRETRAIN, f"pretrain/{name}")
    assert settings is not None
    return settings


def tuning(row_id: str) -> Mapping[str, Any]:
    settings = planned_settings(FINETUNE, finetune_experiment(*ROWS[row_id]))
    assert settings is not None
    return settings


def aids(family: Family, row: Row) -> set[str]:
    before = None if row.pretraining is None else pretraining(row.pretraining)
    return set(aids_of(before, tuning(family.id_of(row))))


def listed_aids(file: str) -> dict[str, Any]:
    return yaml.safe_load(experiment_file(file).read_text(encoding="utf-8")).get("aids", {})


@pytest.mark.parametrize("row_id", ROWS)
def test_a_row_acts_as_its_method_does_and_lists_its_aids(row_id: str) -> None:
    family, row = ROWS[row_id]
    settings = tuning(row_id)
    acts_by_tokens = row.name not in WITHOUT_TOKENS
    assert settings["acting"] == ("parallel" if acts_by_tokens else "none")
    assert settings["lambda_ce"] == (0.1 if acts_by_tokens else 0.0)
    assert settings["label_fraction"] == family.label_fraction
    assert (settings["method"] == "oracle") == (row.pretraining is None)
    files = [finetune_experiment(family, row)]
    if row.pretraining is not None:
        files.append(f"pretrain/{row.pretraining}")
    listed = {key: value for file in files for key, value in listed_aids(file).items() if key != "standardize"}
    found = {one.partition("=")[0] for one in aids(family, row)}
    assert found - {"standardize"} == set(listed)
    for file in files:
        on = "standardize" in listed_aids(file)
        where = pretraining(row.pretraining) if file.startswith("pretrain/") else settings
        assert on == (where["aids.standardize"] not in (None, "none"))


def test_aids_of_policy_and_head_are_the_same_in_all_rows_and_published_methods_have_no_others() -> None:
    for family, row in ROWS.values():
        if row.pretraining is None:
            assert aids(family, row) == {"pose_weight=1.0"}
        elif row.name.startswith("lapa") or "videoworld" in row.name or row.name == "pixels":
            assert aids(family, row) == POLICY_AIDS
        else:
            assert aids(family, row) > POLICY_AIDS
    # Methods of one family differ in nothing else that concerns the head, the labels and the schedule.
    free = {"method", "policy", "acting", "lambda_ce", "head.bins", "aids.standardize", "network.like"}
    for family in FAMILIES:
        same = [
            {key: value for key, value in tuning(family.id_of(row)).items() if key not in free} for row in family.rows
        ]
        assert all(one == same[0] for one in same)


def test_rows_of_our_method_differ_from_it_in_what_their_name_says_alone() -> None:
    base = pretraining("in_domain_vw2")
    expected = {
        "codes_shuffled": {"train_policy.codes"},
        "frames_5": {"dldm.num_frames"},
        "frames_17": {"dldm.num_frames"},
        **{f"codes_{count}": {"dldm.queries", "policy.queries"} for count in (1, 2, 8)},
        **{name: set() for name in PRETRAININGS if name.endswith("_vw2")},
    }
    for name, keys in expected.items():
        assert {key for key in base if pretraining(name)[key] != base[key]} == keys, name
    # None of the pins with which the video model did not read the codes.
    assert (base["aids.noise_shift"], base["aids.high_noise"], base["aids.warp_output"]) == (5.0, 0.7, True)
    for name in PRETRAININGS:
        text = experiment_file(f"pretrain/{name}").read_text(encoding="utf-8")
        assert "/experiment/pretrain/shared" not in text


def test_published_methods_and_controls_are_what_method_md_calls_so() -> None:
    lapa, videoworld = pretraining("in_domain_lapa"), pretraining("in_domain_videoworld")
    # The frame now and the one a latent step, four frames, later.
    assert (lapa["dldm.num_frames"], lapa["dldm.gap"], lapa["dldm.quantizer"]) == (5, 4, "vq")
    assert lapa["train_dldm.anchor_grad_phase1"] is False
    assert (videoworld["dldm.num_frames"], videoworld["dldm.output"]) == (9, "pixels")
    ours = pretraining("in_domain_vw2")
    trained = sum(ours[f"train_dldm.{part}.train_steps"] for part in ("phase1", "reader.loop", "phase2"))
    for settings in (lapa, videoworld):
        assert settings["train_dldm.with_vdm"] is False
        parts = ("train_dldm.phase1", "train_dldm.phase2")
        assert sum(settings[f"{part}.train_steps"] for part in parts) == trained
        assert {settings[f"{part}.optim.lr"] for part in parts} == {ours["train_dldm.phase1.optim.lr"]}
    assert tuning("a/lapa_bins")["head.bins"] == 256
    assert tuning("a/lapa")["head.bins"] is None
    assert pretraining("codes_untrained")["train_dldm.phase1.optim.lr"] == 1e-12
    assert pretraining("codes_pixels")["dldm.fixed_codes"] == "pixel_differences"
    assert tuning("c/vw2")["aids.standardize"] == "labeled"
    policies = [key for key in ours if key.startswith(("policy.", "train_policy.", "extract_latents."))]
    for name in ("in_domain_videoworld", "codes_untrained", "codes_pixels"):
        assert {key for key in policies if pretraining(name)[key] != ours[key]} == set()


@pytest.mark.parametrize("name", PRETRAININGS)
def test_every_pretraining_builds_a_dldm_and_a_policy_of_its_codes(name: str) -> None:
    tree = nested(dict(pretraining(name)))
    config = config_from(DLDMConfig, {**tree["dldm"], "height": 32, "width": 32})
    dldm = DLDM(config).eval()
    codes = dldm.indices(fake_clip(config, 2))
    assert codes.shape == (2, config.latent_steps, config.queries)
    policy = LatentPolicy(config_from(PolicyConfig, tree["policy"]), generator=torch.Generator().manual_seed(0))
    prompt = policy.prompt(["a", "b"], torch.zeros(2, 3, 64, 64))
    assert policy.states(prompt, codes, last_code=True).shape[:3] == (2, config.latent_steps, config.queries + 1)


def test_recordings_and_probes_compose() -> None:
    names = {name for family in FAMILIES for name in files_of(family) if name.startswith("record/")}
    assert names >= {"record/D_original", "record/other_robots_same_tasks", "record/ABC_several"}
    for name in names:
        shown = ["env.data=D"] if name.removeprefix("record/") in RENDERED_FROM else []
        assert settings_of(RECORD, [f"+experiment={name}", *shown, "out=O"])["episodes"] >= 300
    sway = settings_of(RECORD, ["+experiment=record/D_nuisance", "out=O"])
    assert (sway["appearance"], sway["camera_sway"] > 0) == ("sampled", True)
    assert settings_of(PROBE_LATENTS, ["+experiment=probe_latents/registered", "dldm=D", "labeled=[L]", "out=O"])
