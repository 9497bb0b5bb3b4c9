"""Actions for video without labels: the answers of a policy that was fine-tuned to read the dLDM's codes.

    vw2-finetune policy=PRE arm=labeller data.path=DIR label_fraction=0.1 run_dir=LABELLER
    vw2-finetune policy=PRE arm=indomain data.path=DIR label_fraction=0.1 unlabelled.labeller=LABELLER run_dir=RUN

The dLDM's codes say what happened after a picture, so few examples are enough to learn which action that was; the
policy itself must know it from the picture alone, which takes many. What VPT (arXiv:2206.11795) does with an inverse
dynamics model, with latent actions as its eyes on the future. The paper has no such stage.
"""

# n windows · H latent steps · s actions per step · A action dims
from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from vw2_robot.checkpoint import Checkpoint, weights_digest
from vw2_robot.config_tree import config_from
from vw2_robot.contracts import GRIPPER_INDEX
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.models.action_head import ActionHead, ActionHeadConfig
from vw2_robot.models.ar_policy import LatentPolicy

from .labelled_windows import VideoWindows
from .starting_point import StartingPoint, policy_checkpoint

BATCH = 256


def open_labeller(path: str, start: StartingPoint, *, latent_steps: int, labels_digest: str) -> Checkpoint:
    """The checkpoint of a labeller, found to fit; cheap, so that a wrong one is refused before video is encoded.

    Raises:
        InputError: the labeller speaks another dLDM's codes, saw other labels, or answers for other spans of time.
    """
    checkpoint = policy_checkpoint(path)
    _check(checkpoint, start, latent_steps=latent_steps, labels_digest=labels_digest)
    return checkpoint


@torch.no_grad()
def read_actions(
    checkpoint: Checkpoint, windows: VideoWindows, *, statistics: ActionStatistics, device: torch.device
) -> NDArray[np.float32]:
    """[n, sH, A]: what the labeller answers to the codes of `windows`, normalised by `statistics`."""
    policy = LatentPolicy.of_checkpoint(checkpoint).to(device).eval()
    head = ActionHead(
        config_from(ActionHeadConfig, checkpoint.config["head"]),
        width=policy.backbone.width,
        queries=policy.config.queries,
        stride=int(checkpoint.config["stride"]),
    )
    checkpoint.load_into(head=head)
    head.to(device).eval()
    own = ActionStatistics.from_json(checkpoint.files["stats"]["calvin"])
    found = []
    for first in tqdm(range(0, len(windows), BATCH), desc="actions", unit="batch", disable=None, dynamic_ncols=True):
        rows = np.arange(first, min(first + BATCH, len(windows)))
        image = windows.images(rows, image_px=policy.config.image_px, device=device)
        codes = torch.from_numpy(windows.codes[rows]).to(device)
        answer = head(policy.states_after(policy.prompt(windows.words(rows), image), codes)).float().cpu().numpy()
        answer[..., GRIPPER_INDEX] = np.where(answer[..., GRIPPER_INDEX] > 0, 1, -1)  # as labels are
        found.append(statistics.normalise(own.unnormalise(answer).clip(-1, 1)))  # what the robot takes
    return np.concatenate(found)


def _check(checkpoint: Checkpoint, start: StartingPoint, *, latent_steps: int, labels_digest: str) -> None:
    config, facts = checkpoint.config, checkpoint.facts
    what = f"unlabelled.labeller={checkpoint.path}"
    if config.get("codes") != "known":
        raise InputError(
            f"{what} is no labeller: expected a run of vw2-finetune with arm=labeller (code_source=known), found a "
            f"policy that acts with codes={config.get('codes')}"
        )
    assert start.dldm is not None
    if facts["pretrained_from"] != weights_digest(start.dldm):
        raise InputError(f"{what} reads the codes of another dLDM than the policy speaks: fine-tune it from the same")
    if facts["labels_digest"] != labels_digest:
        raise InputError(
            f"{what} was taught with other labels: fine-tune it with the same data, label_fraction and label_seed"
        )
    if (config["latent_steps"], config["stride"]) != (latent_steps, start.stride):
        raise InputError(
            f"{what} answers {config['latent_steps']} latent steps of {config['stride']} actions, expected "
            f"{latent_steps} of {start.stride}"
        )
