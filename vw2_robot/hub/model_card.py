"""The model card of a policy: README.md with the Hub's metadata, written from checkpoint, run and rollouts.

Nothing is claimed that was not measured: success comes from the summaries of `vw2-rollout` with their intervals, and
only of this very policy (`policy_hash`). Of data sets the names are given, never a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vw2_robot.aliases import with_new_keys
from vw2_robot.checkpoint import Checkpoint
from vw2_robot.contracts import CALVIN_ACTIONS
from vw2_robot.data.sources.openx import known_source
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.errors import InputError
from vw2_robot.runs import CONFIG
from vw2_robot.storage.files import read_json, read_yaml

Facts = Mapping[str, Any]
CURE = "copy the folder again"
INTERVALS = """Intervals are over the rollouts of this one policy: they do not describe the method, and hold in this
environment alone."""
UNKNOWN = "No rollouts were given for this card: its success is not known."


@dataclass(frozen=True)
class CardOptions:
    """What a card has beside the facts of the policy itself."""

    name: str
    """of the model: owner/name on the Hub, or of its folder"""
    license: str = "unknown"
    """of the weights, as the Hub names it: apache-2.0, cc-by-4.0, ..."""
    rollouts: tuple[str, ...] = ()
    """folders of finished rollouts of this policy"""


def model_card(checkpoint: Checkpoint, *, metadata: Facts, statistics: ActionStatistics, options: CardOptions) -> str:
    """Return the text of README.md.

    Args:
        checkpoint: of the policy; from a run folder, the run's configuration and validation are read too.
        metadata: of the agent.
        statistics: of the actions that it learned from.
        options: name, license and rollouts.

    Raises:
        InputError: a rollout is unfinished, or of another policy.
    """
    from huggingface_hub import EvalResult, ModelCardData

    summaries = [read_summary(Path(folder), metadata["policy_hash"]) for folder in options.rollouts]
    head = ModelCardData(
        license=options.license,
        library_name="vw2_robot",
        pipeline_tag="robotics",
        tags=["robotics", "lerobot", "vw2", "latent-actions", "imitation-learning"],
        model_name=options.name,
        eval_results=[
            EvalResult(
                task_type="robotics",
                dataset_type="vw2-rollout",
                dataset_name=environment(summary),
                metric_type="success-rate" if number.endswith("%") else "average-length",
                metric_name=f"{label} (95 % interval {interval}, {summary['num_sequences']} rollouts)",
                metric_value=number,
            )
            for summary in summaries
            for label, number, interval in measured(summary)
        ]
        or None,
    )
    cameras = " and ".join(metadata["cameras"])
    results = [
        f"{environment(summary)}; {summary['num_sequences']} rollouts:\n\n"
        + table(("", "measured", "95 % interval"), measured(summary))
        for summary in summaries
    ]
    # Checkpoints of earlier releases state no other.
    units = checkpoint.config.get("action_space", {}).get("units", CALVIN_ACTIONS.units)
    measurements = "\n\n".join([*results, INTERVALS if results else UNKNOWN])
    return f"""---
{head.to_yaml()}
---

# {options.name}

A robot policy of vw2_robot. An image of the {cameras} camera and an instruction give {metadata["chunk_size"]} actions;
{metadata["n_action_steps"]} of them are executed before the next call.

## Use

```python
from vw2_robot import VW2Agent

agent = VW2Agent.from_pretrained("{options.name}")
agent.reset("open the drawer")
out = agent.infer({{"images": {{"{metadata["cameras"][0]}": image}}}})  # uint8 [H, W, 3] RGB, of any size
out["actions"]  # float32 [{metadata["chunk_size"]}, {statistics.mean.size}]
```

The same folder is a LeRobot policy (`--policy.path`, with the plugin `lerobot_policy_vw2`).

{table(("interface", ""), interface(metadata, units))}

## Training

{table(("", ""), training(checkpoint, statistics))}

## Results

{measurements}

## Limits

The policy knows the robot, the camera position, the objects and the instructions of its training data. It was not
tested beyond the results above. Nothing in it prevents a collision: on a real robot limit force, speed and workspace,
and stay within reach of the emergency stop.

## License

Weights: {options.license}. The terms of the data (see Training) hold as well.
"""


def table(head: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> str:
    """Return a markdown table; without rows the head alone."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def interface(metadata: Facts, units: str) -> Iterator[tuple[str, str]]:
    """Yield what a robot has to give and gets; `units` of the action."""
    yield "cameras", ", ".join(metadata["cameras"])
    yield "action", ", ".join(metadata["action_space"])
    yield "units", units
    for key in ("control_hz", "chunk_size", "n_action_steps", "temporal_ensemble", "acting", "policy_hash"):
        yield key, str(metadata[key])


def training(checkpoint: Checkpoint, statistics: ActionStatistics) -> Iterator[tuple[str, str]]:
    """Yield what is known of the training: facts of the checkpoint, and of its run where it lies in one."""
    facts = checkpoint.facts
    yield "method", str(facts.get("method", "unknown"))
    yield "labels", f"{100 * facts['label_fraction']:g} % of the trajectories, {statistics.count} actions"
    pretraining = facts.get("pretraining")
    yield "pre-training", f"{pretraining['windows']} windows of video without actions" if pretraining else "none known"
    if facts.get("aids"):
        yield "beside the paper's method", ", ".join(facts["aids"])
    run = checkpoint.path.parent.parent  # of run/checkpoints/step_N and run/kept/step_N
    if not (run / CONFIG).is_file():
        return
    config = with_new_keys(read_yaml(run / CONFIG, cure=CURE))
    yield "labeled data", ", ".join(data_sets(config.get("data", {}))) or "unknown"
    stage = Path(str(config.get("policy"))) / "policy" / CONFIG
    if stage.is_file():
        video = with_new_keys(read_yaml(stage, cure=CURE))
        yield "video", ", ".join(data_sets(video.get("data", {}))) or "unknown"
    loop = config.get("loop", {})
    yield "schedule", f"{loop.get('train_steps')} steps of {loop.get('batch_size')} windows, seed {config.get('seed')}"
    if (run / "validation.json").is_file():
        found = read_json(run / "validation.json", cure=CURE)
        interval = f"[{found['low']:.4f}, {found['high']:.4f}]"
        yield "held-out action loss", f"{found['action_loss']:.4f} {interval}, {found['trajectories']} trajectories"


def data_sets(data: Facts) -> Iterator[str]:
    """Yield name and license of the data sets that a configuration names."""
    if data.get("mixture"):
        yield f"mixture {Path(str(data['mixture'])).name} of Open-X"
        return
    given = data.get("path") or data.get("frame_cache") or []
    for path in [given] if isinstance(given, str) else given:
        # The last part of an RLDS folder is its version.
        name = next(part for part in reversed(Path(path).parts) if not re.fullmatch(r"\d+\.\d+\.\d+", part))
        row = known_source(name)
        yield name if row is None else f"{name} ({row.license})"


def read_summary(folder: Path, policy_hash: str) -> dict[str, Any]:
    """Return the summary of a rollout.

    Raises:
        InputError: it is unfinished or damaged, or of another policy.
    """
    cure = "finish it with vw2-rollout, or copy the folder again"
    found = with_new_keys(read_json(folder / "summary.json", cure=cure))
    if found.get("policy_hash") != policy_hash:
        raise InputError(
            f"{folder} has rollouts of the policy {str(found.get('policy_hash'))[:8]}, this one is {policy_hash[:8]}; "
            "give rollouts of this very policy"
        )
    return dict(found)


def environment(summary: Facts) -> str:
    """Return the environment of a rollout in a line."""
    facts = [f"{key} {value}" for key, value in sorted(summary["env"].items()) if isinstance(value, str)]
    length = summary["chain_length"]
    kind = "single tasks" if length == 1 else f"chains of {length} tasks"
    return ", ".join([kind, *facts])


def measured(summary: Facts) -> Iterator[tuple[str, str, str]]:
    """Yield label, number and 95 % interval of what a rollout measured."""
    single = summary["chain_length"] == 1
    rates = zip(summary["success_rates"], summary["success_intervals95"], strict=True)
    for count, (rate, (low, high)) in enumerate(rates, 1):
        label = "solved" if single else f"{count} solved in a row"
        yield label, f"{100 * rate:.1f} %", f"[{100 * low:.1f}, {100 * high:.1f}]"
    if not single:
        low, high = summary["average_length_ci95"]
        yield "average length", f"{summary['average_length']:.2f}", f"[{low:.2f}, {high:.2f}]"
