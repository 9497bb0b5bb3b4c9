"""`VW2Agent`: a checkpoint as a robot policy, the top of the library.

    agent = VW2Agent.from_pretrained(folder_or_hub_id, device="cpu")
    agent.reset("open the drawer")
    out = agent.infer({"images": {"static": uint8_HWC}, "prompt": "open the drawer"})
    out["actions"]                                      # float32 [H, A], robot units

Camera, names and meaning of the A numbers, and control rate are those of the labeled data: `metadata` has them. One
policy call with an image of that camera gives H * s actions (latent steps times actions per step). How many
of them are executed before the next call is the caller's choice; `metadata["n_action_steps"]` is what the policy was
trained for, and `vw2_robot.chunks.ChunkQueue` gives out one action at a time. Needs torch and transformers; no
TensorFlow, simulator, Hydra or diffusers.
"""

# B observations · H latent steps · N codes per step · s actions per step · A action dims

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from vw2_robot import __version__
from vw2_robot.checkpoint import CURE, Checkpoint, load_checkpoint, weights_digest
from vw2_robot.chunks import Ensemble
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.contracts import CALVIN_ACTIONS, CAMERA, ActionSpace, Observation, PolicyOutput
from vw2_robot.data.images import resize_frame
from vw2_robot.data.statistics import RANGE_SLACK, ActionStatistics, out_of_range
from vw2_robot.devices import open_device
from vw2_robot.errors import InputError
from vw2_robot.hub.repository import fetch, upload
from vw2_robot.limits import is_count, is_finite_number
from vw2_robot.models.dldm.config import DLDMConfig
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.models.policy.acting import act, acting_of, check_acting, choose_acting
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import Acting, ActionHeadConfig
from vw2_robot.pixels import to_model_range

BUILTIN = "builtin:"
CHECKPOINTS = Path(__file__).parent / "checkpoints"


class VW2Agent:
    """A `vw2_robot.contracts.Policy` with the weights of a checkpoint. Build it with `from_pretrained`.

    Attributes:
        metadata: name, version, action_space, chunk_size, n_action_steps, temporal_ensemble, cameras, control_hz,
            policy_hash, label_fraction, method, acting, temperature, aids (those of all training; None where that is
            not known).
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
        acting: Acting,
        temperature: float,
    ) -> None:
        # Eval mode is permanent: an agent never trains.
        self._policy = policy.eval()
        self._head = head.eval()
        self._statistics = statistics
        self._complete_folder: Callable[[], Path] = lambda: checkpoint.path
        self._latent_steps = int(checkpoint.config["latent_steps"])
        self._acting = acting
        self._temperature = temperature
        self._camera = _camera(checkpoint)
        self._prompt: str | None = None
        self._generator = torch.Generator().manual_seed(0)
        chunk_size = self._latent_steps * head.stride
        if not 1 <= n_action_steps <= chunk_size:
            raise InputError(
                f"n_action_steps={n_action_steps}, but the policy predicts {chunk_size} actions; give 1..{chunk_size}"
            )
        self._ensemble = None if temporal_ensemble is None else Ensemble(n_action_steps, decay=temporal_ensemble)
        self.metadata = {
            "name": "vw2_robot",
            "version": __version__,
            "action_space": list(_action_space(checkpoint).names),
            "chunk_size": chunk_size,
            "n_action_steps": n_action_steps,
            "temporal_ensemble": temporal_ensemble,
            "acting": acting,
            "temperature": temperature if acting == "sampled" else 0.0,
            "cameras": [self._camera],
            "control_hz": checkpoint.facts["control_hz"],
            "policy_hash": weights_digest(policy, head),
            "label_fraction": checkpoint.facts["label_fraction"],
            "method": checkpoint.facts.get("method"),
            "aids": checkpoint.facts.get("aids"),
        }

    @classmethod
    def from_pretrained(
        cls,
        folder_or_hub_id: str | Path,
        *,
        device: str = "cpu",
        n_action_steps: int | None = None,
        temporal_ensemble: float | Literal["stored", "off"] = "stored",
        acting: Acting | None = None,
        temperature: float | None = None,
        verify: bool = True,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> VW2Agent:
        """Load a fine-tuned policy; of a model on the Hub, only the files that acting needs are fetched.

        Args:
            folder_or_hub_id: a checkpoint folder, a run folder, "builtin:NAME" for one that is part of this package, or
                a model on the Hugging Face Hub ("owner/name").
            device: cpu, cuda, cuda:0, auto, ...
            n_action_steps: actions executed per call of `infer`; None: as stored in training.
            temporal_ensemble: average the chunks that overlap in time, each weighted by exp(-decay * number of chunks
                since the oldest); the decay, "off", or as stored in training.
            acting: what the policy reads in the slots of its codes (`models/policy/acting.py`); None: as it was
                trained. One that decodes code by code can act by expected, sampled or argmax.
            temperature: acting=sampled: of the latent tokens, which depend on the seed given to `reset`; None: 1.
            verify: compare every file with the checkpoint's manifest first.
            revision: Hub: branch, tag or commit; None: the main branch.
            token: Hub: for private models; None: that of the user's login.
            local_files_only: Hub: read what was fetched before, without any network.

        Raises:
            InputError: no such folder or model; not a checkpoint, a damaged one, another format version, a policy
                without an action head or one that cannot act as wanted, or statistics of other actions than it has.
        """
        local = _local_folder(folder_or_hub_id)
        if local is not None and revision is not None:
            raise InputError(f"revision={revision!r} is of models on the Hub, but {folder_or_hub_id} is a folder here")
        on_hub = partial(fetch, str(folder_or_hub_id), token=token, local_files_only=local_files_only)
        folder = on_hub(dldm=False, revision=revision) if local is None else local
        checkpoint = load_checkpoint(folder, kind="policy", verify=verify)
        if checkpoint.config.get("head") is None:
            raise InputError(
                f"{checkpoint.path} was pre-trained on latent tokens only and has no action head; run vw2-finetune "
                f"policy={checkpoint.path} first"
            )
        # Everything is checked before the weights go to the device, where an error may show at the first action.
        _check_complete(checkpoint)
        config = checkpoint.config
        acting = choose_acting(acting_of(config), acting)
        if temperature is not None and (acting != "sampled" or not temperature > 0):
            raise InputError(
                f"temperature={temperature} with acting={acting}: only acting=sampled has one, and it is above 0"
            )
        policy = LatentPolicy.from_checkpoint(checkpoint)
        with checkpoint.building():
            head = ActionHead(
                ActionHeadConfig.of_checkpoint(config),
                width=policy.backbone.width,
                queries=policy.config.queries,
                stride=_stride(config),
                action_size=_action_space(checkpoint).size,
            )
            checkpoint.load_into(head=head)
        _check_steps(checkpoint, policy)
        check_acting(policy, acting)
        statistics = _statistics(checkpoint)
        torch_device = open_device(device)
        stored = config.get("temporal_ensemble")
        agent = cls(
            policy.to(torch_device),
            head.to(torch_device),
            statistics,
            checkpoint,
            n_action_steps=int(config["n_action_steps"]) if n_action_steps is None else n_action_steps,
            temporal_ensemble={"stored": stored, "off": None}.get(temporal_ensemble, temporal_ensemble),  # type: ignore[arg-type]
            acting=acting,
            temperature=1.0 if temperature is None else temperature,
        )
        if local is None:  # the folder of a commit has its name, and the branch may have moved on
            agent._complete_folder = partial(on_hub, dldm=True, revision=folder.name)
        return agent

    def dldm(self) -> DLDM:
        """Load the dLDM of the policy's codes, which draws the frames that it expects; from the Hub it is fetched now.

        Raises:
            InputError: the policy was trained from scratch, or its dLDM is missing.
        """
        dldm = DLDM.of_policy(load_checkpoint(self._complete_folder(), kind="policy"))
        return dldm.to(self.device).eval().requires_grad_(False)

    def save_pretrained(
        self, folder: str | Path, *, name: str | None = None, license: str = "unknown", rollouts: Sequence[str] = ()
    ) -> None:
        """Write the folder that every stack reads: a checkpoint, a model for the Hub and a LeRobot policy at once.

        Args:
            folder: a new one, or an earlier export, which is replaced.
            name: in the model card; None: that of the folder.
            license: of the weights, as the Hub names it (apache-2.0, cc-by-4.0, ...).
            rollouts: folders of finished rollouts of this policy, whose results go into the model card.

        Raises:
            InputError: the folder holds something else, or a rollout is of another policy.
        """
        # Imported here: a policy that acts needs neither model cards nor the table of data sets.
        from vw2_robot.hub.model_card import CardOptions
        from vw2_robot.hub.policy_folder import write_policy_folder

        write_policy_folder(
            self._complete_folder(),
            Path(folder),
            metadata=self.metadata,
            statistics=self._statistics,
            card=CardOptions(name or Path(folder).resolve().name, license, tuple(rollouts)),
        )

    def push_to_hub(
        self,
        repo: str,
        *,
        license: str = "unknown",
        rollouts: Sequence[str] = (),
        private: bool | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes, and return the page of the commit.

        Args:
            repo: owner/name; made if there is no such model.
            license: see `save_pretrained`.
            rollouts: see `save_pretrained`.
            private: a new model can be read by its owner alone.
            revision: branch to commit to; None: the main branch.
            token: with the right to write; None: that of the user's login.

        Raises:
            InputError: not logged in, no right to write there, or a rollout is of another policy.
        """
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "policy"
            self.save_pretrained(folder, name=repo, license=license, rollouts=rollouts)
            return upload(folder, repo, private=private, revision=revision, token=token)

    @property
    def modules(self) -> tuple[LatentPolicy, ActionHead]:
        """Return the policy and its action head: a stack that trains them does it on these."""
        return self._policy, self._head

    @property
    def statistics(self) -> ActionStatistics:
        """Return the statistics of the actions that the policy learned from."""
        return self._statistics

    @property
    def device(self) -> str:
        """Return the device of the weights: "cpu", "cuda:0", ..."""
        return str(next(self._head.parameters()).device)

    @property
    def is_stateless(self) -> bool:
        """Return whether an output depends on its observation alone: no chunks are averaged, no codes sampled."""
        return self._ensemble is None and self._acting != "sampled"

    def clone(self) -> VW2Agent:
        """Return an agent with the same weights and a state of its own, to run another episode at the same time.

        The state is the instruction, the random generator and the chunks to be averaged.
        """
        # Shallow: policy, head and statistics are shared; nothing that an episode changes in them alters a result.
        other = copy.copy(self)
        other._generator = torch.Generator().manual_seed(0)
        if self._ensemble is not None:
            other._ensemble = Ensemble(self._ensemble.n_action_steps, decay=self._ensemble.decay)
        return other

    def reset(self, prompt: str | None = None, seed: int | None = None) -> None:
        """Begin an episode.

        Args:
            prompt: instruction for observations that have none.
            seed: of the sampled latent tokens; other acting modes do not use it.
        """
        self._prompt = prompt
        self._generator = torch.Generator().manual_seed(0 if seed is None else seed)
        if self._ensemble is not None:
            self._ensemble.clear()

    def infer(self, obs: Observation) -> PolicyOutput:
        """Return float32 actions [H, A] in robot units for one observation, and its latent tokens.

        Those are the decoded codes [H, N], with acting=expected or parallel the likeliest of each slot; a policy with
        acting=none decodes none and returns none.
        """
        return self.infer_batch([obs])[0]

    @torch.no_grad()
    def infer_batch(self, obs: Sequence[Observation]) -> list[PolicyOutput]:
        """Return actions for several observations at once; element i equals `infer(obs[i])` up to float32 rounding.

        In two cases the batch matters: with temporal ensembling element i of each call belongs to episode i, and with
        acting=sampled all elements are sampled from one generator.

        Raises:
            InputError: an observation without the expected image or instruction, or with temporal ensembling another
                number of observations than since `reset`.
        """
        if not obs:
            return []
        begin = time.perf_counter()
        # 1. Images of the policy's size, and instructions.
        px = self._policy.config.image_px
        # Resized by the function that made the training frames, so that the pixels are equal bit for bit.
        images = np.stack([resize_frame(_image(o, self._camera), height=px, width=px) for o in obs])
        instructions = [self._instruction(o) for o in obs]
        prepared = time.perf_counter()
        # 2. Latent codes, and the actions that the head reads off their states.
        predicted, codes = self.predict(images, instructions)
        if self._ensemble is not None:  # before the gripper becomes a sign, which has no mean
            predicted = self._ensemble.blend(predicted)
        # 3. Robot units: the arm is clipped to the action space, the gripper becomes a sign (0 closes).
        actions = self._statistics.unnormalize(predicted)
        arm = [i for i in range(actions.shape[-1]) if i != self._statistics.gripper_index]
        actions[..., arm] = actions[..., arm].clip(-1.0, 1.0)
        end = time.perf_counter()
        share = {"infer_s": (end - begin) / len(obs), "prepare_s": (prepared - begin) / len(obs)}
        outputs: list[PolicyOutput] = [{"actions": np.ascontiguousarray(one), "timing": dict(share)} for one in actions]
        if codes is not None:
            for output, tokens in zip(outputs, codes, strict=True):
                output["latent_tokens"] = tokens
        return outputs

    @torch.no_grad()
    def predict(
        self, images: NDArray[np.uint8], instructions: Sequence[str]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64] | None]:
        """Return actions [B, R, A] in normalized units, as the head predicts them, and latent tokens [B, H, N].

        For stacks that scale, average and limit actions themselves. With acting=none there are no tokens.

        Args:
            images: uint8 [B, px, px, 3] RGB, of the size that the policy was trained with.
            instructions: one per image.
        """
        device = next(self._head.parameters()).device
        prompt = self._policy.prompt(instructions, to_model_range(torch.from_numpy(images).to(device)))
        acted = act(
            self._policy,
            prompt,
            latent_steps=self._latent_steps,
            acting=self._acting,
            last_code=self._head.last_code,
            temperature=self._temperature,
            generator=self._generator,
        )
        # `cpu` waits for the device, so that a caller can measure the time; NumPy has no bfloat16.
        predicted = self._head(acted.states_BHRD).float().cpu().numpy()
        return predicted, None if acted.codes_BHN is None else acted.codes_BHN.cpu().numpy()

    def _instruction(self, obs: Observation) -> str:
        """Return the instruction of an observation, or the one given to `reset`."""
        prompt: object = obs.get("prompt")
        prompt = self._prompt if prompt is None else prompt
        if prompt is None:
            raise InputError(
                'observation has no "prompt" and reset was not given one: give the instruction for the robot'
            )
        if not isinstance(prompt, str):
            raise InputError(f'observation["prompt"] must be a string, found {type(prompt).__name__}')
        return prompt


def _image(obs: Observation, camera: str) -> NDArray[np.uint8]:
    """Return a camera's image of an observation, checked."""
    if not isinstance(obs, Mapping):
        raise InputError(f'an observation is a dictionary with "images" and "prompt", found {type(obs).__name__}')
    images = obs.get("images")
    if not isinstance(images, dict) or camera not in images:
        found = sorted(images) if isinstance(images, dict) else sorted(obs)
        raise InputError(f'observation["images"]["{camera}"] is missing; found {found}')
    image = np.asarray(images[camera])
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3 or image.size == 0:
        raise InputError(
            f'observation["images"]["{camera}"] must be uint8 [H, W, 3] RGB without a batch axis, '
            f"found {image.dtype} {list(image.shape)}"
        )
    return image


def _check_complete(checkpoint: Checkpoint) -> None:
    """Refuse a checkpoint that lacks a key, or has a value that training does not write."""
    lacks = [key for key in ("policy", "head", "latent_steps", "n_action_steps") if key not in checkpoint.config]
    lacks += ["stride"] if not {"stride", "dldm"} & checkpoint.config.keys() else []
    lacks += [key for key in ("control_hz", "label_fraction") if key not in checkpoint.facts]
    if lacks:
        raise InputError(f"{checkpoint.path}/config.json lacks {', '.join(lacks)}; run vw2-finetune again")
    config = checkpoint.config
    facts = checkpoint.facts
    decay = config.get("temporal_ensemble")
    for key, value, right in (
        *((key, config[key], is_count(config[key])) for key in ("latent_steps", "n_action_steps")),
        ("stride", config.get("stride", 1), is_count(config.get("stride", 1))),
        ("temporal_ensemble", decay, decay is None or (is_finite_number(decay) and decay >= 0)),
        *((key, facts[key], is_finite_number(facts[key])) for key in ("control_hz", "label_fraction")),
    ):
        if not right:
            raise InputError(f"{checkpoint.path}/config.json: {key}={value!r} is not what training writes; {CURE}")
    try:
        acting_of(config)
    except ValueError as error:
        raise InputError(f"{checkpoint.path}/config.json: {error} is not what training writes; {CURE}") from error
    if "stats" not in checkpoint.files:
        raise InputError(f"{checkpoint.path}/stats.json is missing; the checkpoint is incomplete, copy it again")


def _check_steps(checkpoint: Checkpoint, policy: LatentPolicy) -> None:
    """Refuse more latent tokens than the model has positions, and more action steps than a chunk has actions."""
    config = checkpoint.config
    tokens = config["latent_steps"] * policy.config.queries
    limit = policy.backbone.max_positions
    chunk_size = config["latent_steps"] * _stride(config)
    if config["n_action_steps"] > chunk_size:
        raise InputError(
            f"{checkpoint.path}/config.json: n_action_steps={config['n_action_steps']}, but the policy predicts "
            f"{chunk_size} actions; {CURE}"
        )
    # Equality is refused too: the prompt needs at least one position.
    if limit is not None and tokens >= limit:
        raise InputError(
            f"{checkpoint.path}/config.json: {tokens} latent tokens, the language model has {limit} positions; {CURE}"
        )


def _stride(config: Mapping[str, Any]) -> int:
    """Return s, actions per latent step. The first checkpoints have it in the configuration of their dLDM alone."""
    return int(config["stride"]) if "stride" in config else config_from(DLDMConfig, config["dldm"]).temporal_stride


def _action_space(checkpoint: Checkpoint) -> ActionSpace:
    """Return the action space of a policy; the first checkpoints state none and have CALVIN's.

    Raises:
        InputError: it is not what training writes.
    """
    if "action_space" not in checkpoint.config:
        return CALVIN_ACTIONS
    try:
        return config_from(ActionSpace, checkpoint.config["action_space"])
    except (InputError, ValueError) as error:
        raise InputError(f"{checkpoint.path}/config.json: action_space: {error}; {CURE}") from error


def _camera(checkpoint: Checkpoint) -> str:
    """Return the camera of a policy; the first checkpoints state none.

    Raises:
        InputError: it is not what training writes.
    """
    cameras = checkpoint.facts.get("cameras", [CAMERA])
    if not isinstance(cameras, list) or len(cameras) != 1 or not isinstance(cameras[0], str):
        raise InputError(f"{checkpoint.path}/config.json: cameras={cameras!r} is not what training writes; {CURE}")
    return cameras[0]


def _statistics(checkpoint: Checkpoint) -> ActionStatistics:
    """Return the action statistics, once they describe actions of the policy's names, all in [-1, 1]."""
    space = _action_space(checkpoint)
    where = f"{checkpoint.path}/stats.json"
    content = checkpoint.files["stats"]
    if len(content) != 1:
        raise InputError(f"{where} holds statistics of {sorted(content)}; expected exactly one embodiment")
    numbers = next(iter(content.values()))
    if not isinstance(numbers, dict):
        raise InputError(f"{where} holds no statistics; {CURE}")
    try:
        statistics = ActionStatistics.from_json(numbers)
    except (InputError, OverflowError) as error:
        raise InputError(f"{where}: {error}; {CURE}") from error
    if (statistics.mean.size, statistics.gripper_index) != (space.size, space.gripper_index):
        raise InputError(
            f"{where}: actions of {statistics.mean.size} numbers with the gripper at {statistics.gripper_index}; "
            f"expected {space.size} and {space.gripper_index}: {', '.join(space.names)}"
        )
    # All of these lie in [-1, 1] for numbers in [-1, 1], the deviation in [0, 2].
    inner = np.stack([statistics.q01, statistics.q99, statistics.mean, statistics.std - 1])
    if (np.abs(inner) > 1 + RANGE_SLACK).any() and (np.abs([statistics.min, statistics.max]) <= 1 + RANGE_SLACK).all():
        raise InputError(f"{where}: quantiles, mean or spread do not fit smallest and largest value; {CURE}")
    wrong = np.flatnonzero((statistics.min < -1 - RANGE_SLACK) | (statistics.max > 1 + RANGE_SLACK))
    if len(wrong):
        i = int(wrong[0])
        raise InputError(
            f"{where}: the labels' {space.names[i]} reached from {statistics.min[i]:.4g} to {statistics.max[i]:.4g}, "
            f"{out_of_range(space)}; then fine-tune the policy again"
        )
    return statistics


def _local_folder(folder_or_hub_id: str | Path) -> Path | None:
    """Return the folder of a checkpoint; None for a model on the Hugging Face Hub.

    Raises:
        InputError: there is no built-in policy of that name.
    """
    name = str(folder_or_hub_id)
    if name.startswith(BUILTIN):
        builtin = name.removeprefix(BUILTIN)
        known = sorted(path.parent.name for path in CHECKPOINTS.glob("*/config.json"))
        if builtin not in known:
            there = (
                f"available: {', '.join(known)}" if known else "this release contains none, give a folder or a Hub id"
            )
            raise InputError(f"there is no built-in policy {builtin!r}; {there}")
        return CHECKPOINTS / builtin
    path = Path(folder_or_hub_id)
    # "owner/name" could be either. A misspelt local path must not become a download, so it counts as local if its
    # parent folder exists.
    is_local = path.exists() or isinstance(folder_or_hub_id, Path) or path.is_absolute() or path.parent.exists()
    return path.expanduser() if is_local or name.count("/") != 1 or name.startswith((".", "~")) else None


def policy_folder(name: str) -> Path:
    """Return the folder of a policy with its dLDM: "builtin:NAME", a folder itself, or the policy stage of a run.

    A model on the Hub ("owner/name") is fetched.
    """
    folder = _local_folder(name)
    if folder is None:
        return fetch(name, dldm=True)
    return folder / "policy" if (folder / "policy" / "latest").is_file() else folder
