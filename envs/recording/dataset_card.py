"""README.md of a recording: what is in it, how it was made, how it is read, and what it is not good for.

The front matter is that of the Hugging Face Hub, so the folder can be uploaded as it is. The text depends on the
recordings and their configuration alone: no date, no name of the folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vw2_robot import __version__
from vw2_robot.contracts import CALVIN_ACTIONS
from vw2_robot.storage.files import write_text

from ..meta_world import META_WORLD_ACTIONS
from .config import RecordConfig

CARD = "README.md"
WORLD_TITLES = {
    "calvin": "Scripted demonstrations of the CALVIN tasks",
    "other_robots": "Scripted video of three other robots",
    "rerendered": "Demonstrations rendered again in sampled appearances",
    "craft": "Block building in seven key steps, as video",
    "metaworld": "Demonstrations of Meta-World's scripted experts",
}
FORMATS = {
    "calvin": "CALVIN: one npz a time step in `training/` and `validation/`, labels in `lang_annotations/`",
    "rlds": "RLDS, for `tfds.builder_from_directory`: one episode a labeled window",
    "video": "one mp4 a labeled window, captions in `captions.jsonl`",
}
READ = {
    "calvin": "vw2-finetune policy=builtin:calvin-tiny data.path=FOLDER run_dir=runs/finetune",
    "rlds": "pretrain-on-openx data.path=FOLDER run_dir=runs/first",
    "video": "pretrain-on-openx data.path=FOLDER run_dir=runs/first",
}


def write_card(
    out: Path, config: RecordConfig, *, made_with: Mapping[str, Any], recorded: Counter[str], failed: Counter[str]
) -> None:
    """Write README.md into a finished data set.

    Args:
        out: its folder.
        config: of the recording.
        made_with: the part of the configuration that decides what is recorded.
        recorded: labeled windows by task.
        failed: attempts that failed, and were not recorded, by task.
    """
    write_text(out / CARD, dataset_card(config, made_with=made_with, recorded=recorded, failed=failed))


def dataset_card(
    config: RecordConfig, *, made_with: Mapping[str, Any], recorded: Counter[str], failed: Counter[str]
) -> str:
    """Return the text of the card.

    Args:
        config: see `write_card`.
        made_with: see `write_card`.
        recorded: see `write_card`.
        failed: see `write_card`.
    """
    is_meta_world = config.world == "metaworld"
    is_ours = not is_meta_world and (config.world != "calvin" or config.calvin()["assets"] == "builtin")
    head = {
        "license": "mit" if is_meta_world else "apache-2.0" if is_ours else "other",
        "task_categories": ["robotics"],
        "language": ["en"],
        "tags": ["robotics", "simulation", "imitation-learning", "vw2", config.world],
    }
    scenes = f", scene {', '.join(config.calvin()['scene'])}" if config.world == "calvin" else ""
    tasks = "\n".join(f"| {task} | {recorded[task]} | {failed[task]} |" for task in {**recorded, **failed})
    terms = (
        "Apache-2.0, as the scenes of vw2_robot (its ATTRIBUTIONS.md names the origin of robot and protocol)."
        if is_ours
        else "The scenes are not those of vw2_robot: the terms of their assets hold for these images."
    )
    if is_meta_world:
        terms = "MIT, as Meta-World, whose scenes and experts these are."
    read = READ["video" if is_meta_world else config.format]
    simulator = "MuJoCo" if is_meta_world else "PyBullet"
    units = (META_WORLD_ACTIONS if is_meta_world else CALVIN_ACTIONS).units
    return f"""---
{yaml.safe_dump(head, sort_keys=False).strip()}
---

# {WORLD_TITLES[config.world]}{scenes}

{recorded.total()} labeled demonstrations by scripts, each confirmed by a test of the simulator's state; recorded by
vw2_robot {__version__}.

| | |
| --- | --- |
| format | {FORMATS[config.format]} |
| recordings | {config.episodes} training, {config.validation_episodes} validation |
| actions | {units} |

| task | labeled | failed, not recorded |
| --- | --- | --- |
{tasks}

## Use

```
vw2-doctor data data.path=FOLDER report=clips.html
{read}
```

## How it was made

`vw2-record` with these values; the same values give the same bytes on the same kind of CPU.

```yaml
{yaml.safe_dump(dict(made_with), sort_keys=True).strip()}
```

## Limits

A simulator and scripted experts: motions are cleaner and more alike than a person's, and contacts are those of
{simulator}. Each task has the instructions of its list alone. Nothing here shows that a policy trained on it works on a
real robot.

## License

{terms}
"""
