"""The folder of a policy that every stack reads: a checkpoint without what training alone needs, its dLDM apart.

    config.json, model.safetensors, stats.json, tokens.json, backbone.json, manifest.json
                            the checkpoint; config.json has LeRobot's keys too
    policy_preprocessor.json, policy_postprocessor.json, and *.safetensors that begin with these names
                            LeRobot's pipelines
    dldm/                   a checkpoint of kind dldm; left out for a policy that was trained from scratch
    README.md               the model card

Weights are the same bits as before, so the policy keeps its `policy_hash`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from vw2_robot.checkpoint import (
    DLDM_PART,
    Checkpoint,
    is_our_checkpoint,
    load_checkpoint,
    save_tensors,
    write_description,
)
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.storage.files import atomic_folder, read_json, verify, write_manifest

from .lerobot_files import POLICY_TYPE, lerobot_keys, write_processors
from .model_card import CardOptions, model_card


def write_policy_folder(
    source: Path, out: Path, *, metadata: dict[str, Any], statistics: ActionStatistics, card: CardOptions
) -> None:
    """Write the folder, whole or not at all; an earlier export there is replaced.

    Args:
        source: checkpoint of the policy, with its dLDM.
        out: the folder.
        metadata: of the agent.
        statistics: of the actions.
        card: what the model card has beside the policy's own facts.

    Raises:
        InputError: `out` holds something else, or an export that was changed since; or a rollout is of another policy.
    """
    if out.is_file() or (out.is_dir() and any(out.iterdir())):
        cure = "give another folder, or delete this one"
        # A checkpoint of a run lacks the key, and is never replaced.
        if not is_our_checkpoint(out) or read_json(out / "config.json", cure=cure).get("type") != POLICY_TYPE:
            raise InputError(f"{out} is no earlier export of a policy; {cure}")
        verify(out, cure=f"it was changed since it was exported: {cure}")
    checkpoint = load_checkpoint(source, kind="policy")
    text = model_card(checkpoint, metadata=metadata, statistics=statistics, options=card)
    # As they are on disk, so that no precision is lost or made up. Adapters (`lora.`) are in the policy's weights.
    acting = {name: value for name, value in checkpoint.weights.items() if name.startswith(("policy.", "head."))}
    dldm = dldm_weights(checkpoint)
    keys = lerobot_keys(statistics, cameras=metadata["cameras"], license_name=card.license)
    facts = checkpoint.facts
    # As the agent was opened; the first checkpoints have other keys for the mode, and none for the stride.
    config = {
        **checkpoint.config,
        **{key: metadata[key] for key in ("acting", "n_action_steps", "temporal_ensemble")},
        "stride": metadata["chunk_size"] // checkpoint.config["latent_steps"],
    }
    with atomic_folder(out) as folder:
        write_description(folder, kind="policy", config=config, facts=facts, files=checkpoint.files, more=keys)
        save_tensors(acting, folder / "model.safetensors")
        write_processors(folder, statistics, keys)
        (folder / "README.md").write_text(text, encoding="utf-8")
        if dldm:
            part = folder / DLDM_PART
            part.mkdir()
            known: dict[str, Any] = {
                name: facts[name] for name in ("encoder_hash", "time_base", "aids") if name in facts
            }
            write_description(part, kind="dldm", config=config["dldm"], facts=known, files={})
            save_tensors(dldm, part / "model.safetensors")
            write_manifest(part, sync=False)
        write_manifest(folder, sync=False)  # `atomic_folder` syncs the whole folder


def dldm_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the weights of a policy's dLDM: among all of them, or beside them; none for one trained from scratch."""
    if checkpoint.config.get("dldm") is None:
        return {}
    among = {name: value for name, value in checkpoint.weights.items() if name.startswith("dldm.")}
    return among or load_checkpoint(checkpoint.path / DLDM_PART, kind="dldm").weights
