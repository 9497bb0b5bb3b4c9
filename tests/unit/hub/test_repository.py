"""Fetching from the Hub and uploading to it, against a fake of its HTTP API."""

import numpy as np
import pytest

from vw2_robot import VW2Agent
from vw2_robot.agent import policy_folder
from vw2_robot.errors import InputError
from vw2_robot.hub.repository import upload
from vw2_robot.models.dldm.dldm import DLDM

NAME = "someone/drawers"
BUILTIN = "builtin:calvin-tiny"


@pytest.fixture(scope="module")
def agent():
    return VW2Agent.from_pretrained(BUILTIN)


def action(agent):
    image = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    return agent.infer({"images": {"static": image}, "prompt": "open the drawer"})["actions"]


def test_an_uploaded_policy_is_fetched_without_what_acting_does_not_need(hub, agent):
    page = agent.push_to_hub(NAME, token=hub.token, license="apache-2.0")
    assert page == f"{hub.endpoint}/{NAME}/commit/{hub.branches[NAME]['main']}"
    card = hub.commits[hub.branches[NAME]["main"]]["README.md"].decode()
    assert "license: apache-2.0" in card
    assert f'from_pretrained("{NAME}")' in card
    fetched = VW2Agent.from_pretrained(NAME)
    assert sorted(hub.fetched) == ["config.json", "manifest.json", "model.safetensors", "stats.json", "tokens.json"]
    assert fetched.metadata == agent.metadata
    np.testing.assert_array_equal(action(fetched), action(agent))
    # The branch moves on, and the dLDM is still that of the policy that was loaded.
    hub.commit(NAME, "main", {"README.md": b"gone"})
    hub.fetched.clear()
    ours, theirs = agent.dldm().state_dict(), fetched.dldm().state_dict()
    assert sorted(hub.fetched) == ["dldm/config.json", "dldm/manifest.json", "dldm/model.safetensors"]
    assert all((theirs[name] == value).all() for name, value in ours.items())


def test_a_revision_and_the_cache_alone(hub, agent, tmp_path):
    with pytest.raises(InputError, match=r"someone/drawers is neither .*local_files_only one that was fetched before"):
        VW2Agent.from_pretrained(NAME, local_files_only=True)
    agent.save_pretrained(tmp_path / "one")
    upload(tmp_path / "one", NAME, token=hub.token, revision="v1")
    with pytest.raises(InputError, match="is neither a folder here nor a model"):
        VW2Agent.from_pretrained(NAME, revision="v2")
    VW2Agent.from_pretrained(NAME, revision="v1")
    hub.fetched.clear()
    alone = VW2Agent.from_pretrained(NAME, revision="v1", local_files_only=True)
    assert alone.metadata == agent.metadata
    assert not hub.fetched
    with pytest.raises(InputError, match=r"revision='v1' is of models on the Hub, but builtin:calvin-tiny is a folder"):
        VW2Agent.from_pretrained(BUILTIN, revision="v1")


def test_a_private_model_needs_the_token_and_an_upload_the_right_to_write(hub, agent):
    with pytest.raises(InputError, match=r"cannot be uploaded to someone/drawers \(.*401.*hf auth login"):
        agent.push_to_hub(NAME, token="hf_reader")
    agent.push_to_hub(NAME, token=hub.token, private=True)
    with pytest.raises(InputError, match="a private one needs a token"):
        VW2Agent.from_pretrained(NAME)
    assert VW2Agent.from_pretrained(NAME, token=hub.token).metadata == agent.metadata


def test_a_second_upload_removes_what_the_policy_no_longer_has(hub, agent, tmp_path):
    agent.save_pretrained(tmp_path / "out")
    hub.branches[NAME] = {}
    hub.commit(NAME, "main", {"backbone.json": b"{}", "logo.png": b"x", "README.md": b"old"})
    upload(tmp_path / "out", NAME, token=hub.token)
    files = hub.commits[hub.branches[NAME]["main"]]
    ours = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert set(files) == {"logo.png", *ours}


def test_programs_that_draw_frames_fetch_the_dldm_with_the_policy(hub, agent):
    from vw2_robot.finetune.pretrained_init import load_pretrained

    agent.push_to_hub(NAME, token=hub.token)
    assert (policy_folder(NAME) / "dldm" / "model.safetensors").is_file()
    policy, dldm, _ = load_pretrained(NAME)
    assert (policy.config.queries, dldm.config.temporal_stride) == (4, 4)
    assert isinstance(dldm, DLDM)
