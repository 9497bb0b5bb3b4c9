"""The policy in LeRobot: a `VW2Agent` that returns normalized actions, and its training on LeRobot's batches.

LeRobot's pipelines normalize and unnormalize, so this file never does. What is saved is a checkpoint of `vw2_robot`
with its statistics, tokens and dLDM: `VW2Agent.from_pretrained` reads it, and `vw2-export` makes a folder for the Hub
of it.
"""

# B batch · H latent steps · N codes per step · R = H * s actions of a chunk · A action dims
from __future__ import annotations

import shutil
from collections import deque
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import draccus
import numpy as np
import torch
from einops import rearrange
from lerobot.configs import NormalizationMode, PreTrainedConfig
from lerobot.policies import PreTrainedPolicy
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot import VW2Agent
from vw2_robot.checkpoint import DLDM_PART, Checkpoint, save_tensors, write_description
from vw2_robot.chunks import Ensemble
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.contracts import ACTION_DIM, GRIPPER_INDEX
from vw2_robot.data.images import resize_frame
from vw2_robot.data.statistics import RANGE_SLACK, ActionStatistics
from vw2_robot.distributed.sharding import full_state
from vw2_robot.errors import InputError
from vw2_robot.hub.lerobot_files import NORMALIZATION, POLICY_TYPE, pipeline_statistics
from vw2_robot.hub.repository import fetch
from vw2_robot.models.policy.acting import act, null_codes
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import DECODING, ActionHeadConfig, PolicyConfig
from vw2_robot.models.precision import at_least_float32
from vw2_robot.pixels import to_model_range, to_pixels
from vw2_robot.pretrain.imagination import imagine_segments
from vw2_robot.storage.files import write_manifest

from .configuration_vw2 import ONE_CAMERA, Vw2Config

Batch = Mapping[str, Any]
SCRATCH_LR = 3e-4


class Vw2Policy(PreTrainedPolicy):
    """A policy of `vw2_robot` in LeRobot.

    Args:
        config: its description.
        agent: with its weights; None: a policy that begins from scratch.
        dataset_stats: statistics of the data that it will be trained on. Their entry for the actions is changed so that
            LeRobot's pipelines, which are made from it later, leave alone what the policy does not scale.
        dataset_meta: description of these data.
        folder: of the weights.
    """

    config_class = Vw2Config
    name = POLICY_TYPE

    def __init__(
        self,
        config: Vw2Config,
        *,
        agent: VW2Agent | None = None,
        dataset_stats: dict[str, dict[str, Any]] | None = None,
        dataset_meta: Any = None,
        folder: Path | None = None,
        **_: Any,
    ) -> None:
        super().__init__(config)
        config.validate_features()
        config.input_features = {
            name: feature for name, feature in (config.input_features or {}).items() if name == config.camera
        }
        self._agent = agent or untrained_agent(config)
        # Under these names the weights have those of a checkpoint.
        self.policy, self.head = self._agent.modules
        self.statistics = None if agent is None else agent.statistics
        self._folder = folder
        self._dldm = cache(self._agent.dldm)
        if dataset_stats is not None:
            self.statistics = statistics_of(dataset_stats["action"], config)
            dataset_stats["action"] |= pipeline_statistics(self.statistics)
        if dataset_meta is not None:
            kept = {name: fact for name, fact in config.facts.items() if name not in ("label_seed", "labels_digest")}
            config.facts = {**kept, "control_hz": float(dataset_meta.fps), "label_fraction": 1.0}
        if config.policy_lr is None:  # set here, so that a run that is resumed trains what it did before
            config.policy_lr = SCRATCH_LR if agent is None else 0.0
        self.policy.requires_grad_(config.policy_lr > 0)
        self.last_predicted_latents: Tensor | None = None
        if config.save_predicted_video:
            if config.config["acting"] == "none":
                raise InputError("save_predicted_video: this policy predicts no codes (acting=none)")
            self._dldm()  # a missing one is named before the rollouts
        self.reset()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: Vw2Config | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        **kwargs: Any,
    ) -> Vw2Policy:
        """Load an exported folder, a checkpoint of `lerobot-train`, or a model on the Hub.

        Args:
            pretrained_name_or_path: folder, or owner/name.
            config: with changed options; None: as stored.
            revision: Hub: branch, tag or commit.
            token: Hub: for private models.
            local_files_only: Hub: read what was fetched before.
            kwargs: of the constructor.
        """
        folder = Path(pretrained_name_or_path)
        if not folder.is_dir():
            folder = fetch(
                str(pretrained_name_or_path),
                # Drawn from, or saved again with the trained policy.
                dldm="dataset_stats" in kwargs or (config is not None and config.save_predicted_video),
                revision=revision,
                token=token,
                local_files_only=local_files_only,
            )
        if config is None:
            config = PreTrainedConfig.from_pretrained(folder)
        agent = VW2Agent.from_pretrained(folder, n_action_steps=config.n_action_steps, temporal_ensemble="off")
        return cls(config, agent=agent, folder=folder, **kwargs).to(config.device).eval()

    def reset(self) -> None:
        """Begin an episode."""
        steps = self._agent.metadata["n_action_steps"]
        decay = self.config.config.get("temporal_ensemble")
        self._agent.reset()
        self._ensemble = None if decay is None else Ensemble(steps, decay=decay)
        self._action_queue: deque[Tensor] = deque(maxlen=steps)
        self.last_predicted_latents = None

    def train(self, mode: bool = True) -> Vw2Policy:
        """Set the mode of training; what is not trained stays in that of evaluation."""
        super().train(mode)
        self.policy.train(mode and self.config.policy_lr > 0)
        return self

    def get_optim_params(self) -> list[dict[str, Any]]:
        """Return the head, and the rest of the policy at its own learning rate where it is trained."""
        lr = self.config.policy_lr
        rest = [{"params": list(self.policy.parameters()), "lr": lr}] if lr else []
        return [{"params": list(self.head.parameters())}, *rest]

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """Return the action loss of a batch with normalized actions [B, R, A], and its parts for the log.

        A policy that decodes codes reads those that it predicts itself, as in control.
        """
        images, instructions = self._read(batch)
        config = self.config.config
        pixels = torch.from_numpy(self._resized(images)).to(self.head.mlp[1].weight.device)
        prompt = self.policy.prompt(instructions, to_model_range(pixels))
        read = null_codes(self.policy, len(pixels), latent_steps=config["latent_steps"], device=pixels.device)
        if config["acting"] in DECODING:
            with torch.no_grad():
                read = act(
                    self.policy, prompt, latent_steps=config["latent_steps"], acting=config["acting"], last_code=False
                ).read
        predicted = self.head(self.policy.states(prompt, read, last_code=self.head.last_code))
        actions = batch["action"]
        if self.statistics is not None and self.statistics.mode == "q01_q99":
            # LeRobot does not clip at the quantiles; the policy's normalization does.
            scaled = torch.from_numpy(self.statistics.mask).to(actions.device)
            actions = torch.where(scaled, actions.clamp(-1.0, 1.0), actions)
        # float32 on purpose: under autocast the head gives bfloat16, too coarse for small errors.
        squares = (at_least_float32(predicted) - actions).square()
        arm = squares.sum(-1) - squares[..., GRIPPER_INDEX]
        gripper = squares[..., GRIPPER_INDEX]
        # Past the end of an episode LeRobot repeats its last action.
        mask = ~batch["action_is_pad"] if "action_is_pad" in batch else torch.ones_like(arm, dtype=torch.bool)
        arm_loss, gripper_loss = ((errors * mask).sum() / mask.sum().clamp(min=1) for errors in (arm, gripper))
        loss = arm_loss + self.config.gripper_weight * gripper_loss
        return loss, {"arm_loss": arm_loss.item(), "gripper_loss": gripper_loss.item()}

    def predict_action_chunk(self, batch: Batch, **_: Any) -> Tensor:
        """Return a chunk of normalized actions [B, R, A], not averaged with others."""
        images, instructions = self._read(batch)
        predicted, _codes = self._agent.predict(self._resized(images), instructions)
        return torch.from_numpy(predicted).to(self._agent.device)

    def select_action(self, batch: Batch, **_: Any) -> Tensor:
        """Return the normalized action [B, A] of this step; the policy is called when the last chunk is used up."""
        if not self._action_queue:
            images, instructions = self._read(batch)
            predicted, codes = self._agent.predict(self._resized(images), instructions)
            if self._ensemble is not None:
                predicted = self._ensemble.blend(predicted)
            if self.config.save_predicted_video:
                assert codes is not None
                self.last_predicted_latents = self._imagined(images, codes)
            steps = self._agent.metadata["n_action_steps"]
            self._action_queue.extend(torch.from_numpy(predicted[:, :steps]).to(self._agent.device).unbind(1))
        return self._action_queue.popleft()

    def decode_predicted_latents(self, latents: Tensor) -> NDArray[np.uint8]:
        """Return frames [T, h, B * w, 3] of `last_predicted_latents` of an episode, one for each action."""
        return to_pixels(rearrange(latents, "b c t h w -> t c h (b w)")).numpy()

    def _imagined(self, images: NDArray[np.uint8], codes_BHN: NDArray[np.int64]) -> Tensor:
        """Return the frame [B, 3, T, h, w] that the policy expects after each action that will be executed."""
        dldm = self._dldm()
        steps = np.arange(self._agent.metadata["n_action_steps"])
        longest = dldm.config.latent_steps
        videos = []
        for image, codes in zip(images, torch.from_numpy(codes_BHN).to(self._agent.device), strict=True):
            first = dldm.resized(to_model_range(torch.from_numpy(image).to(codes.device))[None, None])[0]
            frames = imagine_segments(
                dldm.to(codes.device),
                first,
                lambda number, _, codes=codes: codes[None, number * longest : (number + 1) * longest],
                segments=-(-len(codes) // longest),
                generator=torch.Generator(),  # of a renderer's noise: there is none
            ).coarse[1:]
            # A dLDM may draw every second frame, say, and an action has one.
            videos.append(frames[steps * len(frames) // self.config.chunk_size].cpu())
        return rearrange(torch.stack(videos), "b t c h w -> b c t h w")

    def _read(self, batch: Batch) -> tuple[NDArray[np.uint8], list[str]]:
        """Return images, uint8 [B, H, W, 3], and instructions.

        Raises:
            InputError: one of them is missing.
        """
        image = batch.get(self.config.camera, batch.get(ONE_CAMERA))
        if image is None:
            found = ", ".join(name for name in batch if name.startswith("observation.")) or "no observations"
            raise InputError(f"the policy reads {self.config.camera}, the batch has {found}; see --rename_map")
        if "task" not in batch:
            raise InputError('the batch has no "task": the policy needs an instruction')
        if image.is_floating_point():  # LeRobot's images are bytes / 255
            image = (image * 255.0).round().clamp(0, 255).to(torch.uint8)
        instructions = batch["task"]
        return (
            np.ascontiguousarray(rearrange(image, "b c h w -> b h w c").cpu().numpy()),
            [instructions] * len(image) if isinstance(instructions, str) else list(instructions),
        )

    def _resized(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return the images at the policy's size, resized as those of its training were."""
        px = self.policy.config.image_px
        return np.stack([resize_frame(image, height=px, width=px) for image in images])

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Write a checkpoint that both LeRobot and `vw2_robot` read; LeRobot adds its pipelines."""
        if self.statistics is None:
            raise InputError("a policy without statistics of actions cannot be saved; train it on a data set first")
        if state_dict is None:
            modules = {"policy": self.policy, "head": self.head}
            state_dict = {
                f"{name}.{key}": v for name, module in modules.items() for key, v in full_state(module).items()
            }
        write_description(
            save_directory,
            kind="policy",
            config={**self.config.config, "n_action_steps": self._agent.metadata["n_action_steps"]},
            facts=self.config.facts,
            files={"stats": {"lerobot": self.statistics.to_json()}, **self.policy.files()},
            more=draccus.encode(self.config, PreTrainedConfig),
        )
        save_tensors(state_dict, save_directory / "model.safetensors")
        if self._folder is not None and (self._folder / DLDM_PART).is_dir():
            shutil.copytree(self._folder / DLDM_PART, save_directory / DLDM_PART, dirs_exist_ok=True)
        write_manifest(save_directory)


def untrained_agent(config: Vw2Config) -> VW2Agent:
    """Return an agent with random weights from PyTorch's generator, which LeRobot's `seed` sets."""
    sizes = config.config
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    policy = LatentPolicy(config_from(PolicyConfig, sizes["policy"]), generator=generator)
    head = ActionHead(
        ActionHeadConfig.of_checkpoint(sizes),
        width=policy.backbone.width,
        queries=policy.config.queries,
        stride=sizes["stride"],
        action_size=ACTION_DIM,
    )
    return VW2Agent(
        policy,
        head,
        ActionStatistics.from_actions(np.ones((1, 7))),
        Checkpoint(Path("scratch"), "policy", sizes, config.facts, {}, {}),
        n_action_steps=config.n_action_steps or sizes["n_action_steps"],
        temporal_ensemble=None,
        acting=sizes["acting"],
        temperature=1.0,
    )


def statistics_of(numbers: Mapping[str, Any], config: Vw2Config) -> ActionStatistics:
    """Return the action statistics of a LeRobot data set.

    Raises:
        InputError: they lack quantiles, or are not of relative actions in [-1, 1] with a gripper of -1 or +1.
    """
    names = ("q01", "q99", "mean", "std", "min", "max")
    if missing := [name for name in names if name not in numbers]:
        raise InputError(
            f"the data set has no {', '.join(missing)} of its actions; run "
            "python -m lerobot.scripts.augment_dataset_quantile_stats"
        )
    values = {name: np.asarray(numbers[name], dtype=np.float64) for name in names}
    extremes = np.stack([values["min"], values["max"]])
    if np.abs(extremes).max() > 1 + RANGE_SLACK or not np.isin(extremes[:, GRIPPER_INDEX], (-1.0, 1.0)).all():
        raise InputError(
            f"the actions of the data set reach from {values['min'].tolist()} to {values['max'].tolist()}; expected "
            "CALVIN's relative ones: six numbers in [-1, 1], and a gripper of -1 (close) or 1 (open)"
        )
    modes = {theirs: ours for ours, theirs in NORMALIZATION.items()}
    mode = NormalizationMode(config.normalization_mapping["ACTION"]).value
    return ActionStatistics(**values, count=int(np.asarray(numbers["count"]).item()), mode=modes[mode])
