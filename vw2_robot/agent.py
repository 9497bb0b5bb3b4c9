"""A checkpoint made into a robot policy: `VW2Agent`, the top of the library.

    agent = VW2Agent.from_pretrained(folder_or_hub_id, device="cpu")
    agent.reset("open the drawer")
    out = agent.infer({"images": {"static": uint8_HWC}, "prompt": "open the drawer"})
    out["actions"]                                      # float32 [H, 7], robot units

One look at the static camera gives H * s actions (latent steps times actions per step). Which of them are executed
before the next look is the caller's choice; `metadata["n_action_steps"]` is what the policy was trained for, and
`vw2_robot.chunks.ChunkQueue` does the counting for a caller that wants one action at a time. Needs torch and
transformers; no TensorFlow, simulator, Hydra or diffusers.
"""

# B observations · H latent steps · N codes per step · s actions per step · A action dims

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot import __version__
from vw2_robot.checkpoint import CURE, Checkpoint, load_checkpoint, weights_digest
from vw2_robot.chunks import Ensemble
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.contracts import ACTION_DIM, ACTION_NAMES, GRIPPER_INDEX, Observation, PolicyOutput
from vw2_robot.data.frame_cache import resize_frame
from vw2_robot.data.statistics import RANGE_SLACK, ActionStatistics
from vw2_robot.devices import open_device
from vw2_robot.errors import InputError
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.policy.acting import act
from vw2_robot.models.policy.action_head import ActionHead, ActionHeadConfig
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.pixels import to_model_range

CAMERA = "static"
BUILTIN = "builtin:"
CHECKPOINTS = Path(__file__).parent / "checkpoints"


class VW2Agent:
    """Implements `vw2_robot.contracts.Policy`. Build it with `from_pretrained`.

    Attributes:
        metadata: name, version, action_space, chunk_size, n_action_steps, temporal_ensemble, cameras, control_hz,
            policy_hash, label_fraction.
    """

    metadata: dict[str, Any]

    def __init__(
        self,
        policy: LatentPolicy,
        head: ActionHead,
        statistics: ActionStatistics,
        checkpoint: Checkpoint,
        *,
        n_action_steps: int,
        temporal_ensemble: float | None,
        temperature: float,
    ) -> None:
        self._policy, self._head, self._statistics = policy.eval(), head.eval(), statistics
        self._steps = int(checkpoint.config["latent_steps"])
        self._codes = checkpoint.config.get("codes", "predicted")
        self._temperature = temperature
        self._prompt: str | None = None
        self._draw = torch.Generator().manual_seed(0)
        chunk_size = self._steps * head.stride
        if not 1 <= n_action_steps <= chunk_size:
            raise InputError(
                f"n_action_steps={n_action_steps}, but the policy predicts {chunk_size} actions; give 1..{chunk_size}"
            )
        self._ensemble = None if temporal_ensemble is None else Ensemble(n_action_steps, decay=temporal_ensemble)
        self.metadata = {
            "name": "vw2_robot",
            "version": __version__,
            "action_space": list(ACTION_NAMES),
            "chunk_size": chunk_size,
            "n_action_steps": n_action_steps,
            "temporal_ensemble": temporal_ensemble,
            "temperature": temperature,
            "cameras": [CAMERA],
            "control_hz": checkpoint.facts["control_hz"],
            "policy_hash": weights_digest(policy, head),
            "label_fraction": checkpoint.facts["label_fraction"],
            "method": checkpoint.facts.get("method"),
        }

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        device: str = "cpu",
        n_action_steps: int | None = None,
        temporal_ensemble: float | Literal["stored", "off"] = "stored",
        temperature: float = 0.0,
        verify: bool = True,
    ) -> VW2Agent:
        """Load a fine-tuned policy.

        Args:
            folder_or_hub_id: a checkpoint folder, a run folder, "builtin:NAME" for one that is part of this package, or
                a model on the Hugging Face Hub ("owner/name").
            device: cpu, cuda, cuda:0, auto, ...
            n_action_steps: environment steps between two calls of `infer`; None: what was stored in training.
            temporal_ensemble: average the chunks that overlap in time, each weighted by exp(-decay * number of chunks
                since the oldest); the decay, "off", or as stored in training.
            temperature: 0 decodes latent tokens greedily; above, they are drawn, from the seed given to `reset`.
            verify: compare every file with the checkpoint's manifest first.

        Raises:
            InputError: not a checkpoint, a damaged one, another format version, a policy without an action head, or
                statistics of actions that are not CALVIN's relative ones.
        """
        checkpoint = load_checkpoint(_local_folder(folder_or_hub_id), kind="policy", verify=verify)
        if checkpoint.config.get("head") is None:
            raise InputError(
                f"{checkpoint.path} was pre-trained on latent tokens only and has no action head; run vw2-finetune "
                f"policy={checkpoint.path} first"
            )
        _check_complete(checkpoint)
        config = checkpoint.config
        policy = LatentPolicy.of_checkpoint(checkpoint)
        with checkpoint.building():
            head = ActionHead(
                config_from(ActionHeadConfig, config["head"]),
                width=policy.backbone.width,
                queries=policy.config.queries,
                stride=_stride(config),
            )
            checkpoint.load_into(head=head)
        _check_steps(checkpoint, policy)
        statistics = _statistics(checkpoint)
        _check_range(statistics, checkpoint.path)
        place = open_device(device)
        stored = config.get("temporal_ensemble")
        return cls(
            policy.to(place),
            head.to(place),
            statistics,
            checkpoint,
            n_action_steps=int(config["n_action_steps"]) if n_action_steps is None else n_action_steps,
            temporal_ensemble={"stored": stored, "off": None}.get(temporal_ensemble, temporal_ensemble),  # type: ignore[arg-type]
            temperature=temperature,
        )

    def clone(self) -> VW2Agent:
        """The same weights with a memory of their own (prompt, draws, chunks to average): for an episode beside."""
        other = copy.copy(self)
        other._draw = torch.Generator().manual_seed(0)
        if self._ensemble is not None:
            other._ensemble = Ensemble(self._ensemble.n_action_steps, decay=self._ensemble.decay)
        return other

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode; `prompt` serves observations without one. Greedy decoding draws nothing from `seed`."""
        self._prompt = prompt
        self._draw = torch.Generator().manual_seed(0 if seed is None else seed)
        if self._ensemble is not None:
            self._ensemble.clear()

    def infer(self, obs: Observation) -> PolicyOutput:
        """One observation -> float32 actions [H, 7] in robot units."""
        return self.infer_batch([obs])[0]

    @torch.no_grad()
    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Several observations at once; element i equals `infer(obs[i])` up to float32 rounding.

        Two cases tell batches apart: with temporal ensembling element i of each call belongs to episode i, and with a
        temperature all elements draw from one generator.

        Raises:
            InputError: an observation that is not what the policy sees, or with temporal ensembling another number of
                them than since `reset`.
        """
        if not obs:
            return []
        begin = time.perf_counter()
        px = self._policy.config.image_px
        device = next(self._head.parameters()).device
        frames = np.stack([resize_frame(_image(o), height=px, width=px) for o in obs])
        words = [self._words(o) for o in obs]
        prepared = time.perf_counter()
        prompt = self._policy.prompt(words, to_model_range(torch.from_numpy(frames).to(device)))
        decoded = act(
            self._policy,
            prompt,
            latent_steps=self._steps,
            codes=self._codes,
            temperature=self._temperature,
            generator=self._draw,
        )
        predicted = self._head(decoded.states_BHND).float().cpu().numpy()
        codes = decoded.codes_BHN.cpu().numpy()
        if self._ensemble is not None:
            predicted = self._ensemble.blend(predicted)
        actions = self._in_robot_units(predicted)
        end = time.perf_counter()
        share = {"infer_s": (end - begin) / len(obs), "prepare_s": (prepared - begin) / len(obs)}
        return [
            {"actions": np.ascontiguousarray(actions[i]), "latent_tokens": codes[i], "timing": dict(share)}
            for i in range(len(obs))
        ]

    def _in_robot_units(self, predicted: NDArray[np.float32]) -> NDArray[np.float32]:
        """Un-normalize, clip the arm to the action space; the gripper is the sign, 0 closes."""
        actions = self._statistics.unnormalize(predicted)
        arm = [i for i in range(actions.shape[-1]) if i != GRIPPER_INDEX]
        actions[..., arm] = actions[..., arm].clip(-1.0, 1.0)
        return actions

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
    lacks = [key for key in ("policy", "head", "latent_steps", "n_action_steps") if key not in checkpoint.config]
    lacks += ["stride"] if not {"stride", "dldm"} & checkpoint.config.keys() else []
    lacks += [key for key in ("control_hz", "label_fraction") if key not in checkpoint.facts]
    if lacks:
        raise InputError(f"{checkpoint.path}/config.json lacks {', '.join(lacks)}; run vw2-finetune again")
    config, facts = checkpoint.config, checkpoint.facts
    codes, decay = config.get("codes", "predicted"), config.get("temporal_ensemble")
    for key, value, right in (
        *((key, config[key], _is_count(config[key])) for key in ("latent_steps", "n_action_steps")),
        ("stride", config.get("stride", 1), _is_count(config.get("stride", 1))),
        ("codes", codes, codes in ("predicted", "none")),
        ("temporal_ensemble", decay, decay is None or (_is_number(decay) and decay >= 0)),
        *((key, facts[key], _is_number(facts[key])) for key in ("control_hz", "label_fraction")),
    ):
        if not right:
            raise InputError(f"{checkpoint.path}/config.json: {key}={value!r} is not what training writes; {CURE}")
    if "stats" not in checkpoint.files:
        raise InputError(f"{checkpoint.path}/stats.json is missing; the checkpoint is incomplete, copy it again")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_steps(checkpoint: Checkpoint, policy: LatentPolicy) -> None:
    """Numbers that have to agree, before a look tries to hold as many tokens or hands out as many actions."""
    config = checkpoint.config
    tokens, most = config["latent_steps"] * policy.config.queries, policy.backbone.max_positions
    chunk_size = config["latent_steps"] * _stride(config)
    if config["n_action_steps"] > chunk_size:
        raise InputError(
            f"{checkpoint.path}/config.json: n_action_steps={config['n_action_steps']}, but the policy predicts "
            f"{chunk_size} "
            f"actions; {CURE}"
        )
    if most is not None and tokens >= most:
        raise InputError(
            f"{checkpoint.path}/config.json: {tokens} latent tokens, the language model has {most} positions; {CURE}"
        )


def _statistics(checkpoint: Checkpoint) -> ActionStatistics:
    try:
        return ActionStatistics.from_json(_only(checkpoint.files["stats"], checkpoint.path))
    except (InputError, OverflowError) as error:
        raise InputError(f"{checkpoint.path}/stats.json: {error}; {CURE}") from error


def _stride(config: Mapping[str, Any]) -> int:
    """s, actions per latent step. Checkpoints of the first months say it through their dLDM alone."""
    return int(config["stride"]) if "stride" in config else config_from(DLDMConfig, config["dldm"]).temporal_stride


def _check_range(statistics: ActionStatistics, path: Path) -> None:
    """The labels behind a policy must have been what the robot takes: seven numbers in [-1, 1]."""
    where = f"{path}/stats.json"
    if statistics.mean.size != ACTION_DIM or statistics.gripper_index != GRIPPER_INDEX:
        raise InputError(
            f"{where}: actions of {statistics.mean.size} numbers with the gripper at {statistics.gripper_index}; "
            f"expected {ACTION_DIM} and {GRIPPER_INDEX}: {', '.join(ACTION_NAMES)}"
        )
    inner = np.stack([statistics.q01, statistics.q99, statistics.mean, statistics.std - 1])  # of numbers in [-1, 1]
    if (np.abs(inner) > 1 + RANGE_SLACK).any() and (np.abs([statistics.min, statistics.max]) <= 1 + RANGE_SLACK).all():
        raise InputError(f"{where}: quantiles, mean or spread do not fit smallest and largest value; {CURE}")
    wrong = np.flatnonzero((statistics.min < -1 - RANGE_SLACK) | (statistics.max > 1 + RANGE_SLACK))
    if len(wrong):
        i = int(wrong[0])
        raise InputError(
            f"{where}: the labels' {ACTION_NAMES[i]} reached from {statistics.min[i]:.4g} to {statistics.max[i]:.4g}, "
            "relative actions lie in [-1, 1]; the policy was trained on actions in other units, fine-tune it again on "
            "rel_actions as CALVIN scales them"
        )


def _only(statistics: dict[str, Any], path: Path) -> dict[str, Any]:
    if len(statistics) != 1:
        raise InputError(f"{path}/stats.json holds statistics of {sorted(statistics)}; expected exactly one embodiment")
    content: dict[str, Any] = next(iter(statistics.values()))
    if not isinstance(content, dict):
        raise InputError(f"{path}/stats.json holds no statistics; {CURE}")
    return content


def _local_folder(folder_or_hub_id: str | Path) -> Path:
    name = str(folder_or_hub_id)
    if name.startswith(BUILTIN):
        return _builtin_folder(name.removeprefix(BUILTIN))
    path = Path(folder_or_hub_id)
    is_local = path.exists() or isinstance(folder_or_hub_id, Path) or path.is_absolute() or path.parent.exists()
    if is_local or name.count("/") != 1 or name.startswith((".", "~")):
        return path.expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name))
    except (OSError, ValueError) as error:  # absent, private, unreachable, or no name for a model
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{name} is neither a folder here nor a model on the Hugging Face Hub ({reason})") from error


def policy_folder(name: str) -> Path:
    """Where the policy lies that a program begins with: "builtin:NAME", or a folder; of pretrain-on-openx its stage."""
    if name.startswith(BUILTIN):
        return _builtin_folder(name.removeprefix(BUILTIN))
    folder = Path(name)
    return folder / "policy" if (folder / "policy" / "latest").is_file() else folder


def _builtin_folder(name: str) -> Path:
    """The checkpoint of that name among the files of this package."""
    known = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))
    if name not in known:
        there = f"available: {', '.join(known)}" if known else "this release contains none, give a folder or a Hub id"
        raise InputError(f"there is no built-in policy {name!r}; {there}")
    return CHECKPOINTS / name
