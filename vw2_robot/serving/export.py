"""Program `vw2-export`: the folder of a policy that the Hugging Face Hub, LeRobot and every program here read.

    vw2-export policy=runs/first/finetune out=runs/first/policy license=apache-2.0 rollouts=[runs/first/rollout]
    vw2-export policy=runs/first/finetune out=runs/first/policy repo=owner/name

Leaves the checkpoint without its optimizer, LeRobot's processor pipelines, the dLDM as a part of its own and a model
card with the results of the rollouts; `repo` uploads all of it. `VW2Agent.save_pretrained` and `push_to_hub` do the
same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vw2_robot.command_line import entry_points


@dataclass(frozen=True)
class ExportConfig:
    """The root configuration of `vw2-export`."""

    policy: str
    """checkpoint or run folder of a fine-tuned policy, builtin:NAME, or owner/name on the Hub"""
    out: str
    """the folder; an earlier export there is replaced"""
    repo: str | None = None
    """owner/name on the Hub to upload it to; needs `hf auth login`, or the environment variable HF_TOKEN"""
    license: str = "unknown"
    """of the weights, as the Hub names it: apache-2.0, cc-by-4.0, ...; data and pretrained models have their terms"""
    rollouts: tuple[str, ...] = ()
    """run folders of finished rollouts of this policy, whose results go into the model card"""
    private: bool = False
    """repo: a new model can be read by its owner alone"""
    revision: str | None = None
    """repo: branch to upload to; null: the main branch"""

    def __post_init__(self) -> None:
        """Reject what cannot work."""
        if self.repo is not None and self.repo.count("/") != 1:
            raise ValueError(f"repo={self.repo}, expected owner/name")
        if self.repo is None and (self.private or self.revision is not None):
            raise ValueError("private and revision are of an upload; give repo=owner/name too")


def main(config: ExportConfig) -> None:
    """Console script `vw2-export`."""
    # Imported here: a misspelt key is reported before torch is loaded.
    from vw2_robot.agent import VW2Agent
    from vw2_robot.hub.repository import upload

    agent = VW2Agent.from_pretrained(config.policy)
    agent.save_pretrained(config.out, name=config.repo, license=config.license, rollouts=config.rollouts)
    print(f"{config.out}: policy {agent.metadata['policy_hash'][:8]}")
    if config.repo is not None:
        private = config.private or None  # an existing model stays as public as it is
        print(upload(Path(config.out), config.repo, private=private, revision=config.revision))


if __name__ == "__main__":
    entry_points.export.main()
