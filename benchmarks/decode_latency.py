"""How long the policy takes from an image and a sentence to actions, beside transformers: two tables.

Run: python -m benchmarks.decode_latency

The embedded policy at its default size with random weights; time does not depend on what was learned. Table 1 decodes
the same prompts into the same greedy tokens, by our own loop and by `transformers.generate` (which gets the embedded
prompt, a logits mask over the latent tokens, and no end token), in turn, several times. Times are medians, and a ratio
is the median over the turns, whose two halves saw the same machine. Our own loop remembers the words of an episode from
one look to the next; "new words" is without. "arithmetic" is the share of our time that matrix products and attention
take inside torch: work that `generate` has to do as well. Table 2 takes one look of an agent apart: what a robot waits
for between an image and its actions, and what of it is none of the parts.

On a CPU: one thread, time spent by the process, so that other work on the machine counts little. Where a GPU is at hand
the tables are made there too, with the time that merely reading all weights once per token would take at the
measured memory bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.frame_cache import resize_frame
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.models.policy.action_head import ActionHead, ActionHeadConfig
from vw2_robot.models.policy.ar_policy import LatentPolicy, PolicyConfig
from vw2_robot.models.policy.decoding import Decoding, Prompt
from vw2_robot.pixels import to_model_range

WORDS = ("open the drawer", "push the red block to the left", "lift the pink block from the table")
STEPS = (1, 4, 23)  # latent steps: one look, a long chunk, the paper's clip of 92 tokens
ROUNDS = 15
STRIDE = 4  # actions per latent step
ARITHMETIC = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
)


class LatentsOnly(LogitsProcessor):
    """What our restricted head does, said in the language of `generate`."""

    def __init__(self, first: int, end: int) -> None:
        self.first, self.end = first, end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores with -inf on every token that is no latent one."""
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.first : self.end] = scores[:, self.first : self.end]
        return masked


def by_generate(policy: LatentPolicy, prompt: Prompt, steps: int) -> Tensor:
    """Codes [B, steps * N]."""
    first, end = policy.backbone.vocabulary.latent
    tokens: Tensor = policy.backbone.model.generate(
        inputs_embeds=prompt.inputs,
        attention_mask=prompt.mask_BP.long(),
        max_new_tokens=steps * policy.config.queries,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=policy.backbone.tokenizer.pad,
        logits_processor=LogitsProcessorList([LatentsOnly(first, end)]),
    )
    return tokens - first


def clock(device: torch.device) -> float:
    """Seconds; on a GPU all work given so far is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def turns(device: torch.device, *jobs: Callable[[], object]) -> NDArray[np.float64]:
    """Seconds [ROUNDS, jobs], the jobs done in turn after one round that does not count."""
    found = np.zeros((ROUNDS + 1, len(jobs)))
    for turn in range(ROUNDS + 1):
        for number, job in enumerate(jobs):
            begin = clock(device)
            job()
            found[turn, number] = clock(device) - begin
    return found[1:]


def arithmetic_share(job: Callable[[], object]) -> float:
    """Of the CPU time of `job`, the share inside matrix products and attention: the median of five, after a first."""
    shares = []
    for _ in range(6):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            job()
        spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
        shares.append(sum(spent.get(name, 0.0) for name in ARITHMETIC) / sum(spent.values()))
    return float(np.median(shares[1:]))


def prompts(policy: LatentPolicy, batch: int, device: torch.device) -> Prompt:
    """Mixed sentences and random images."""
    px = policy.config.image_px
    image = torch.rand(batch, 3, px, px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return policy.prompt([WORDS[i % len(WORDS)] for i in range(batch)], image.to(device))


def read_seconds(policy: LatentPolicy, device: torch.device) -> float:
    """Time to read every weight of the language model once, at the bandwidth of a large copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = float(turns(device, lambda: target.copy_(source)).min())
    weights = sum(p.numel() * p.element_size() for p in policy.backbone.model.base_model.parameters())
    return weights / (2 * source.numel() / seconds)  # a copy reads and writes


def compare(policy: LatentPolicy, device: torch.device) -> None:
    """Table 1."""
    columns = ("ours ms", "new words ms", "generate ms", "times as fast", "new words", "arithmetic")
    print(f"{'batch':<8}{'tokens':<8}" + "".join(f"{name:>15}" for name in columns))
    for batch in (1, 16):
        prompt = prompts(policy, batch, device)
        for steps in STEPS:
            ours, theirs = (
                policy.decode(prompt, latent_steps=steps).codes_BHN.flatten(1),
                by_generate(policy, prompt, steps),
            )
            assert torch.equal(ours, theirs), "the two decoders disagree, so their times cannot be compared"
            jobs: tuple[Callable[[], object], ...] = (
                partial(policy.decode, prompt, latent_steps=steps),
                partial(policy.decode, prompt._replace(instruction_tokens=()), latent_steps=steps),
                partial(by_generate, policy, prompt, steps),
            )
            seconds = turns(device, *jobs)
            cells = [f"{1e3 * value:>15.1f}" for value in np.median(seconds, axis=0)]
            cells += [f"{value:>15.2f}" for value in np.median(seconds[:, 2:] / seconds[:, :2], axis=0)]
            cells += [f"{arithmetic_share(jobs[0]):>15.0%}" if device.type == "cpu" else f"{'':>15}"]
            print(f"{batch:<8}{steps * policy.config.queries:<8}" + "".join(cells))
    if device.type == "cuda":
        print(f"bound: reading the weights once takes {1e6 * read_seconds(policy, device):.0f} us per token")


def new_agent(policy: LatentPolicy, device: torch.device) -> tuple[VW2Agent, ActionHead]:
    """An agent of one latent step with a random head, by way of a checkpoint folder."""
    settings = ActionHeadConfig()
    head = ActionHead(settings, width=policy.backbone.width, queries=policy.config.queries, stride=STRIDE)
    actions = np.random.default_rng(0).uniform(-1, 1, (1000, 7))
    actions[:, -1] = np.sign(actions[:, -1])
    statistics = ActionStatistics.from_actions(actions)
    config = {"policy": config_tree(policy.config), "head": config_tree(settings), "stride": STRIDE}
    with TemporaryDirectory() as folder:
        save_checkpoint(
            Path(folder) / "policy",
            kind="policy",
            config=config | {"latent_steps": 1, "n_action_steps": STRIDE},
            modules={"policy": policy, "head": head},
            facts={"control_hz": 30.0, "label_fraction": 1.0},
            files=policy.files() | {"stats": {"calvin": statistics.to_json()}},
        )
        return VW2Agent.from_pretrained(Path(folder) / "policy", device=str(device)), head.to(device)


def one_look(policy: LatentPolicy, device: torch.device) -> None:
    """Table 2: batch 1, one latent step, from a 200 x 200 camera image to four actions."""
    agent, head = new_agent(policy, device)
    camera = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    px, queries = policy.config.image_px, policy.config.queries

    def parts() -> Iterator[tuple[str, float]]:
        """Each part of a look, done one after the other, with the clock when it was over."""
        yield "", clock(device)
        frame = np.stack([resize_frame(camera, height=px, width=px)])
        image = to_model_range(torch.from_numpy(frame).to(device))
        yield "image: resize, scale, to the device", clock(device)
        prompt = policy.prompt(WORDS[:1], image)
        yield "prompt: words and image to tokens", clock(device)
        decoding, states = Decoding(policy.backbone, prompt, queries=1, latent_steps=queries), []
        yield "cache: memory, positions, known words", clock(device)
        for number in range(queries):
            states.append(decoding.step().states_BHND)
            yield f"code {number + 1}" + ("" if number else " (reads the image)"), clock(device)
        head(torch.cat(states, dim=2)).cpu()
        yield "action head", clock(device)

    table, whole = [], []
    for _ in range(ROUNDS + 1):
        names, stamps = zip(*parts(), strict=True)
        begin = clock(device)
        agent.infer({"images": {"static": camera}, "prompt": WORDS[0]})
        whole.append(clock(device) - begin)
        table.append(np.diff(stamps))
    total, medians = float(np.median(whole[1:])), np.median(table[1:], axis=0)
    rest = float(np.median(np.array(whole[1:]) - np.sum(table[1:], axis=1)))
    rows = [*zip(names[1:], medians, strict=True), ("rest: checks, units, copies", rest), ("one look", total)]
    print(f"{'part of one look':<42}{'ms':>8}{'share':>8}")
    for name, seconds in rows:
        print(f"{name:<42}{1e3 * seconds:>8.2f}{seconds / total:>8.0%}")


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    for device in [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]:
        policy = LatentPolicy(PolicyConfig(), generator=torch.Generator().manual_seed(0)).eval().to(device)
        parameters = sum(weight.numel() for weight in policy.parameters())
        print(f"{device.type}: policy of {parameters / 1e6:.1f} M parameters\n")
        compare(policy, device)
        print()
        one_look(policy, device)
        print()


if __name__ == "__main__":
    main()
