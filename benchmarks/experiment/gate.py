"""The gate before fine-tuning: whether the codes of this very dLDM are read, and whether the policy will act by them.

    python -m benchmarks.experiment.gate --report REPORT --policy RUN --experiment finetune/NAME [--unseen B]

REPORT is of vw2-probe-latents, RUN the pre-trained policy. With a fine-tuned policy, its files give the acting mode,
and `--experiment` is left out. The thresholds are those of vw2-gate-latents. Everything that does not hold is in the
last line, and the exit status is 1: the queue skips what needs this seed, which is reported and not replaced.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vw2_robot.agent import policy_folder
from vw2_robot.checkpoint import load_checkpoint
from vw2_robot.models.policy.acting import acting_of
from vw2_robot.pretrain.probing.config import GateThresholds
from vw2_robot.pretrain.probing.gate import CURE, data_sets, gate
from vw2_robot.storage.files import read_json

from ..results.settings import settings_of

READ = ("explained change", "explained change over the decoder's", "shuffle ratio")
"""the checks of vw2-gate-latents that are on the video model"""
FINETUNE = "vw2_robot.finetune.train_head"


def unread(report: Mapping[str, Any], unseen: Sequence[str]) -> list[str]:
    """Return what shows that the video model does not read the codes, as messages.

    Args:
        report: content of latent_report.json.
        unseen: names of its data sets that the dLDM was not trained on.
    """
    if report.get("video_model") is None:
        return ["the dLDM has no video model"]
    messages = []
    for check in gate([report], GateThresholds(), unseen=unseen):
        if check.measure in READ and not all(check.passed):
            found = "not known" if check.values[0] is None else f"{check.values[0]:.2f}"
            messages.append(f"{check.measure} on {check.data_set} is {found}, needed {check.needed:g}")
    return messages


def acting_mode(config: Mapping[str, Any], experiment: str | None) -> str:
    """Return how a policy acts: by its files where it is fine-tuned, else as the experiment will train it.

    Args:
        config: of the policy's checkpoint.
        experiment: a file of configs/experiment for vw2-finetune.

    Raises:
        SystemExit: the policy is not fine-tuned, and there is no experiment.
    """
    if config.get("head") is not None:
        return acting_of(config)
    if experiment is None:
        raise SystemExit("the policy is not fine-tuned, so it does not act yet; give --experiment")
    settings = settings_of(FINETUNE, [f"+experiment={experiment}", "policy=P", "data.path=D", "run_dir=R"])
    assert settings is not None
    return str(settings["acting"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Check one seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--experiment")
    parser.add_argument("--unseen", nargs="*", default=[])
    args = parser.parse_args(arguments)
    report = read_json(args.report / "latent_report.json", cure=CURE)
    if unknown := set(args.unseen) - set(data_sets(report)):
        raise SystemExit(f"--unseen {' '.join(sorted(unknown))}: the report is on {', '.join(data_sets(report))}")
    checkpoint = load_checkpoint(policy_folder(args.policy), kind="policy")
    messages = unread(report, args.unseen)
    if checkpoint.facts.get("encoder_hash") != report["encoder_hash"]:
        messages.append("the report is of another dLDM than the policy's")
    if (acting := acting_mode(checkpoint.config, args.experiment)) == "none":
        messages.append("the policy decodes no codes in control (acting=none)")
    if messages:
        raise SystemExit(f"the gate is closed: {'; '.join(messages)}")
    print(f"the gate is open: acting={acting}, on {', '.join(data_sets(report))}")


if __name__ == "__main__":
    main()
