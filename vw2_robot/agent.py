"""A checkpoint made into a robot policy: `VW2Agent`, the top of the library.

    agent = VW2Agent.from_pretrained(folder_or_hub_id, device="cpu")
    agent.reset("open the drawer")
    out = agent.infer({"images": {"static": uint8_HWC}, "prompt": "open the drawer"})
    out["actions"]                                      # float32 [H, 7], robot units

One look at the static camera gives H * s actions (latent steps times actions per step). Which of them are executed
before the next look is the caller's choice; `metadata["replan_every"]` is what the policy was trained for. Needs torch
and transformers; no TensorFlow, simulator, Hydra or diffusers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot import __version__
from vw2_robot.checkpoint import Checkpoint, load_checkpoint, weights_digest
from vw2_robot.config_tree import config_from
from vw2_robot.contracts import ACTION_NAMES, GRIPPER_INDEX, Observation, PolicyOutput
from vw2_robot.data.frames import resize_frame
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.models.action_head import ActionHead, ActionHeadConfig
from vw2_robot.models.ar_policy import LatentPolicy, PolicyConfig
from vw2_robot.pixels import to_model_range

CAMERA = "static"


class VW2Agent:
    """Implements `vw2_robot.contracts.Policy`. Build it with `from_pretrained`.

    Attributes:
        metadata: name, version, action_space, horizon, replan_every, cameras, control_hz, policy_hash, label_fraction.
    """

    metadata: dict[str, Any]

    def __init__(
        self, policy: LatentPolicy, head: ActionHead, statistics: ActionStatistics, checkpoint: Checkpoint
    ) -> None:
        self._policy, self._head, self._statistics = policy.eval(), head.eval(), statistics
        self._steps = int(checkpoint.config["latent_steps"])
        self._prompt: str | None = None
        self.metadata = {
            "name": "vw2_robot",
            "version": __version__,
            "action_space": list(ACTION_NAMES),
            "horizon": self._steps * head.stride,
            "replan_every": int(checkpoint.config["replan_every"]),
            "cameras": [CAMERA],
            "control_hz": checkpoint.facts["control_hz"],
            "policy_hash": weights_digest(policy, head),
            "label_fraction": checkpoint.facts["label_fraction"],
        }

    @classmethod
    def from_pretrained(cls, folder_or_hub_id: str | Path, *, device: str = "cpu") -> VW2Agent:
        """Load a fine-tuned policy from a checkpoint folder, a run folder, or the Hugging Face Hub ("owner/name").

        Raises:
            InputError: not a checkpoint, another format version, or a policy without an action head.
        """
        checkpoint = load_checkpoint(_local_folder(folder_or_hub_id), kind="policy")
        if checkpoint.config.get("head") is None:
            raise InputError(
                f"{checkpoint.path} was pre-trained on latent tokens only and has no action head; run vw2-finetune "
                f"policy={checkpoint.path} first"
            )
        _check_complete(checkpoint)
        generator = torch.Generator().manual_seed(0)
        policy = LatentPolicy(config_from(PolicyConfig, checkpoint.config["policy"]), generator=generator)
        stride = int(checkpoint.config["dldm"]["stem"]["patch_t"])
        for level in checkpoint.config["dldm"]["levels"]:
            stride *= 2 if level["down_t"] else 1
        head = ActionHead(
            config_from(ActionHeadConfig, checkpoint.config["head"]),
            width=policy.backbone.width,
            queries=policy.config.queries,
            stride=stride,
        )
        checkpoint.load_into(policy=policy, head=head)
        statistics = ActionStatistics.from_json(_only(checkpoint.files["stats"], checkpoint.path))
        return cls(policy.to(device), head.to(device), statistics, checkpoint)

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode; `prompt` serves observations without one. Greedy decoding draws nothing from `seed`."""
        self._prompt = prompt

    def infer(self, obs: Observation) -> PolicyOutput:
        """One observation -> float32 actions [H, 7] in robot units."""
        return self.infer_batch([obs])[0]

    @torch.no_grad()
    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Several observations at once; element i equals `infer(obs[i])` up to float32 rounding."""
        if not obs:
            return []
        begin = time.perf_counter()
        px = self._policy.config.image_px
        device = next(self._head.parameters()).device
        frames = np.stack([resize_frame(_image(o), height=px, width=px) for o in obs])
        prompt = self._policy.prompt([self._words(o) for o in obs], to_model_range(torch.from_numpy(frames).to(device)))
        decoded = self._policy.decode(prompt, steps=self._steps)
        actions = self._statistics.unnormalise(self._head(decoded.states_BHND).float().cpu().numpy())
        arm = [i for i in range(actions.shape[-1]) if i != GRIPPER_INDEX]
        actions[..., arm] = actions[..., arm].clip(-1.0, 1.0)
        codes = decoded.codes_BHN.cpu().numpy()
        seconds = (time.perf_counter() - begin) / len(obs)
        return [
            {"actions": np.ascontiguousarray(actions[i]), "latent_tokens": codes[i], "timing": {"infer_s": seconds}}
            for i in range(len(obs))
        ]

    def _words(self, obs: Observation) -> str:
        words: object = obs.get("prompt")
        words = self._prompt if words is None else words
        if words is None:
            raise InputError('observation has no "prompt" and reset was not given one: say what the robot shall do')
        if not isinstance(words, str):
            raise InputError(f'observation["prompt"] must be a string, found {type(words).__name__}')
        return words


def _image(obs: Observation) -> NDArray[np.uint8]:
    if not isinstance(obs, Mapping):
        raise InputError(f'an observation is a dictionary with "images" and "prompt", found {type(obs).__name__}')
    images = obs.get("images")
    if not isinstance(images, dict) or CAMERA not in images:
        found = sorted(images) if isinstance(images, dict) else sorted(obs)
        raise InputError(f'observation["images"]["{CAMERA}"] is missing; found {found}')
    image = np.asarray(images[CAMERA])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or image.size == 0:
        raise InputError(
            f'observation["images"]["{CAMERA}"] must be uint8 [H, W, 3] RGB without a batch axis, '
            f"found {image.dtype} {list(image.shape)}"
        )
    return image


def _check_complete(checkpoint: Checkpoint) -> None:
    """Say what is missing before a KeyError does."""
    lacks = [key for key in ("policy", "dldm", "head", "latent_steps", "replan_every") if key not in checkpoint.config]
    lacks += [key for key in ("control_hz", "label_fraction") if key not in checkpoint.facts]
    if lacks:
        raise InputError(f"{checkpoint.path}/config.json lacks {', '.join(lacks)}; run vw2-finetune again")
    if "stats" not in checkpoint.files:
        raise InputError(f"{checkpoint.path}/stats.json is missing; the checkpoint is incomplete, copy it again")


def _only(statistics: dict[str, Any], path: Path) -> dict[str, Any]:
    if len(statistics) != 1:
        raise InputError(f"{path}/stats.json holds statistics of {sorted(statistics)}; expected exactly one embodiment")
    content: dict[str, Any] = next(iter(statistics.values()))
    return content


def _local_folder(folder_or_hub_id: str | Path) -> Path:
    path = Path(folder_or_hub_id)
    name = str(folder_or_hub_id)
    is_local = path.exists() or isinstance(folder_or_hub_id, Path) or path.is_absolute() or path.parent.exists()
    if is_local or name.count("/") != 1 or name.startswith((".", "~")):
        return path.expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:  # absent, private, unreachable, or no name for a model
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name} is neither a folder here nor a model on the Hugging Face Hub ({reason})") from error
