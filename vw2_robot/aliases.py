"""Old names of stored keys and weights, and their present names.

The tables are applied when files of this package are read: checkpoints, configurations of runs, results and caches.
Only the new names are written. A name that is in no table stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

Value = TypeVar("Value")

KEYS = {
    "arm": "method",
    "arms": "embodiments",
    "bad": "skipped",
    "batch": "batch_size",
    "blind_share": "code_dropout",
    "bumps": "perturbations",
    "checkpoint_timeout_s": "checkpoint_timeout_seconds",
    "disturbance": "encoder_augmentation",
    "down_s": "downsample_space",
    "down_t": "downsample_time",
    "draws": "num_samples",
    "gap_s": "gap_seconds",
    "hint_dropout": "control_dropout",
    "hint_grayscale": "control_grayscale",
    "horizon": "chunk_size",
    "kernel_s": "spatial_kernel_size",
    "labelled": "labeled",
    "max_bad": "max_skipped",
    "mistakes": "failed_attempts",
    "normalisation": "normalization",
    "patch_s": "spatial_patch_size",
    "patch_t": "temporal_patch_size",
    "quantiser": "quantizer",
    "replan_every": "n_action_steps",
    "sentences": "instructions",
    "stretch": "segment",
    "stride_s": "temporal_stride",
    "timeout_s": "timeout_seconds",
    "turn": "segment",
    "turns": "replacements",
    "unlabelled": "unlabeled",
    "verdict": "decision",
}
"""old key -> new key, at any depth"""

TYPED_KEYS: Mapping[str, Callable[[Any], str]] = {
    # Which codes fine-tuning reads in training, or that it reads none in training and in control
    "code_source": lambda value: "acting" if value == "none" else "code_source",
    # The significance level of a comparison; a text is a message
    "error": lambda value: "alpha" if isinstance(value, float) else "error",
    # How many frames of a clip, or the folder of a frame cache (none given: null)
    "frames": lambda value: "num_frames" if isinstance(value, int) else "frame_cache",
    # How many files of a source are read at the same time, or the place in each of them
    "lanes": lambda value: "interleaved_readers" if isinstance(value, int) else "readers",
    # Steps of a training loop, or those of each attempted subtask in a row of results
    "steps": lambda value: "env_steps" if isinstance(value, list) else "train_steps",
}
"""old key -> new key, for keys with two meanings that differ in the type of the value"""

MOVED = {"pose_weight": "aids"}
"""key -> the section into which it moved"""

VALUES = {
    "_target_": {
        "vw2_robot.envs.other_robots.environment.arms_episodes": (
            "vw2_robot.envs.other_robots.environment.solved_episodes"
        ),
    },
    "codes": {"own": "predicted"},
    "code_source": {"teacher": "ground_truth", "self": "predicted"},
}
"""new key -> old value -> new value"""

ENV_KEYS = ("sentences", "arms")
"""old keys of our own benchmark and recorder, the only ones that are renamed in a section `env`"""

# Far deeper than our files; a damaged one must not exhaust Python's recursion.
_DEPTH = 50

WEIGHTS = (
    ("z_head", "pre_quant"),
    ("conv_s", "conv_space"),
    ("conv_t", "conv_time"),
    ("asked", "instruction"),
    ("watch", "code_usage"),
)
"""old -> new part of a weight's name, split at the dots"""


def new_key(key: str, value: Any) -> str:
    """Return today's name of a key with this value; the same name if it is in no table."""
    return TYPED_KEYS[key](value) if key in TYPED_KEYS else KEYS.get(key, key)


def with_new_keys(tree: Any, *, section: str = "", depth: int = 0) -> Any:
    """Return nested values with today's keys; where a new key is there already, its old one is dropped.

    Args:
        tree: the values; what is nested deeper than 50 levels is left as it is.
        section: the key under which they stand, "" at the top.
        depth: levels above them.
    """
    if isinstance(tree, list):
        return [with_new_keys(value, section=section, depth=depth + 1) for value in tree] if depth < _DEPTH else tree
    if not isinstance(tree, dict) or depth >= _DEPTH:
        return tree
    renamed: dict[str, Any] = {}
    for key, value in tree.items():
        if (moved := MOVED.get(key, section)) != section:
            renamed.setdefault(moved, {})[key] = value
            continue
        # A benchmark of others has words of its own, which are not ours to translate.
        is_ours = section != "env" or key in ENV_KEYS
        new = new_key(str(key), value) if is_ours else str(key)
        if new == key or new not in tree:
            new_values = VALUES.get(new, {})
            is_old = isinstance(value, str) and value in new_values
            renamed[new] = new_values[value] if is_old else with_new_keys(value, section=new, depth=depth + 1)
    return renamed


def with_new_names(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Return weights under today's names."""
    new = dict(WEIGHTS)
    return {".".join(new.get(part, part) for part in name.split(".")): value for name, value in weights.items()}


def first_name(name: str) -> str:
    """Return the name that a weight had in the first release.

    Digests of weights are made over these names, so that a digest in a latent cache or in results stays the same when
    a module is renamed.
    """
    old = {new: old for old, new in WEIGHTS}
    return ".".join(old.get(part, part) for part in name.split("."))
