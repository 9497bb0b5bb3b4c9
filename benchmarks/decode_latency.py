"""Latency of the policy from an image and an instruction to actions, compared with transformers: two tables.

Run: python -m benchmarks.decode_latency

The embedded policy at its default size with random weights; the time does not depend on the weights. Table 1 decodes
the same prompts into the same greedy tokens, by our decoder and by `transformers.generate` (which gets the embedded
prompt, a logits mask over the latent tokens, and no end token), alternating for several rounds. Times are medians, and
a ratio is the median over rounds. Our decoder caches the instruction of an episode from one policy call to the next;
"no cache" is without. "arithmetic" is the share of our time that matrix products and attention take inside torch:
`generate` has to do this work too. Table 2 splits one policy call of an agent into its parts.

On a CPU: one thread and CPU time of the process, so that other work on the machine counts little. With a GPU the
tables are also made there, beside a lower bound: the time to read all weights once per token at the measured memory
bandwidth.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from benchmarks.speed.row import SpeedRow, interleaved
from vw2_robot.agent import VW2Agent
from vw2_robot.checkpoint import save_checkpoint
from vw2_robot.command_line.config_tree import config_tree
from vw2_robot.data.images import resize_frame
from vw2_robot.data.statistics import ActionStatistics
from vw2_robot.models.dense import Dense
from vw2_robot.models.policy.action_head import ActionHead
from vw2_robot.models.policy.ar_policy import LatentPolicy
from vw2_robot.models.policy.config import ActionHeadConfig, PolicyConfig
from vw2_robot.models.policy.decoding import Decoding, Prompt
from vw2_robot.models.policy.last_layer import LastLayer
from vw2_robot.pixels import to_model_range

INSTRUCTIONS = ("open the drawer", "push the red block to the left", "lift the pink block from the table")
LATENT_STEPS = (1, 4, 23)  # one step, a long chunk, the paper's clip of 92 tokens
ROUNDS = 15
REPEAT = 5  # decodings of a round of the speed table
STRIDE = 4  # actions per latent step
ARITHMETIC = (
    "aten::mm",
    "aten::addmm",
    "aten::bmm",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
)


class LatentsOnly(LogitsProcessor):
    """The restriction to latent tokens as a logits processor of `generate`."""

    def __init__(self, first: int, end: int) -> None:
        self.first = first
        self.end = end

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the scores with -inf on every token that is not latent."""
        # As in the restricted head: only latent tokens can be chosen.
        masked = torch.full_like(scores, -torch.inf)
        masked[:, self.first : self.end] = scores[:, self.first : self.end]
        return masked


def by_generate(policy: LatentPolicy, prompt: Prompt, latent_steps: int, *, model: Any = None) -> Tensor:
    """Return the codes [B, latent_steps * N] that `generate` decodes.

    Args:
        policy: for its vocabulary.
        prompt: of the policy.
        latent_steps: how many.
        model: whose `generate` runs; None is that of the policy.
    """
    first, end = policy.backbone.vocabulary.latent
    tokens: Tensor = (policy.backbone.model if model is None else model).generate(
        inputs_embeds=prompt.inputs,
        attention_mask=prompt.mask_BP.long(),
        max_new_tokens=latent_steps * policy.config.queries,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=policy.backbone.tokenizer.pad,
        logits_processor=LogitsProcessorList([LatentsOnly(first, end)]),
    )
    return tokens - first


def stock_model(policy: LatentPolicy) -> Any:
    """Return a copy of the embedded Llama as transformers computes it, without our faster layers."""
    model = copy.deepcopy(policy.backbone.model)
    for layer in model.modules():
        layer.__class__ = {Dense: nn.Linear, LastLayer: LlamaDecoderLayer}.get(type(layer), type(layer))
    return model


def clock(device: torch.device) -> float:
    """Return seconds: CPU time, or on a GPU the wall clock after all its work is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


def alternate(device: torch.device, *jobs: Callable[[], object]) -> NDArray[np.float64]:
    """Return seconds [ROUNDS, jobs] of jobs that alternate; the first round warms up and is not counted."""
    found = np.zeros((ROUNDS + 1, len(jobs)))
    # Jobs alternate within a round, so that other load hits all of them alike.
    for number in range(ROUNDS + 1):
        for column, job in enumerate(jobs):
            begin = clock(device)
            job()
            found[number, column] = clock(device) - begin
    return found[1:]


def arithmetic_share(job: Callable[[], object]) -> float:
    """Return the share of CPU time in matrix products and attention: the median of five runs, after one to warm up."""
    shares = []
    for _ in range(6):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            job()
        # Self time, so that nested operations are not counted twice.
        spent = {event.key: event.self_cpu_time_total for event in profile.key_averages()}
        shares.append(sum(spent.get(name, 0.0) for name in ARITHMETIC) / sum(spent.values()))
    return float(np.median(shares[1:]))


def prompts(policy: LatentPolicy, batch: int, device: torch.device) -> Prompt:
    """Return a prompt of mixed instructions and random images."""
    px = policy.config.image_px
    image = torch.rand(batch, 3, px, px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return policy.prompt([INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(batch)], image.to(device))


def copy_bandwidth(device: torch.device, *, size: int = 2**30) -> float:
    """Return bytes/s that a large copy reads and writes; the default of 1 GiB is larger than any cache."""
    source = torch.empty(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = float(alternate(device, lambda: target.copy_(source)).min())
    return 2 * size / seconds  # a copy reads and writes


def read_bytes(policy: LatentPolicy) -> int:
    """Return the bytes of all weights of the language model, which are read for each token."""
    return sum(p.numel() * p.element_size() for p in policy.backbone.model.base_model.parameters())


def read_seconds(policy: LatentPolicy, device: torch.device) -> float:
    """Return the time to read every weight of the language model once, at the bandwidth of a large copy."""
    return read_bytes(policy) / copy_bandwidth(device)


def compare(policy: LatentPolicy, device: torch.device) -> None:
    """Print table 1."""
    columns = ("ours ms", "no cache ms", "generate ms", "times as fast", "no cache", "arithmetic")
    print(f"{'batch':<8}{'tokens':<8}" + "".join(f"{name:>15}" for name in columns))
    stock = stock_model(policy)
    for batch in (1, 16):
        prompt = prompts(policy, batch, device)
        for steps in LATENT_STEPS:
            ours = policy.decode(prompt, latent_steps=steps).codes_BHN.flatten(1)
            theirs = by_generate(policy, prompt, steps, model=stock)
            assert torch.equal(ours, theirs), "the two decoders disagree, so their times cannot be compared"
            jobs: tuple[Callable[[], object], ...] = (
                partial(policy.decode, prompt, latent_steps=steps),
                partial(policy.decode, prompt._replace(instruction_tokens=()), latent_steps=steps),
                partial(by_generate, policy, prompt, steps, model=stock),
            )
            seconds = alternate(device, *jobs)
            cells = [f"{1e3 * value:>15.1f}" for value in np.median(seconds, axis=0)]
            cells += [f"{value:>15.2f}" for value in np.median(seconds[:, 2:] / seconds[:, :2], axis=0)]
            cells += [f"{arithmetic_share(jobs[0]):>15.0%}" if device.type == "cpu" else f"{'':>15}"]
            print(f"{batch:<8}{steps * policy.config.queries:<8}" + "".join(cells))
    if device.type == "cuda":
        print(f"bound: reading the weights once takes {1e6 * read_seconds(policy, device):.0f} us per token")


def new_agent(policy: LatentPolicy, device: torch.device) -> tuple[VW2Agent, ActionHead]:
    """Return an agent of one latent step with a random head; it is saved as a checkpoint and loaded."""
    settings = ActionHeadConfig()
    width = policy.backbone.width
    head = ActionHead(settings, width=width, queries=policy.config.queries, stride=STRIDE, action_size=7)
    actions = np.random.default_rng(0).uniform(-1, 1, (1000, 7))
    # The gripper action is a sign.
    actions[:, -1] = np.sign(actions[:, -1])
    statistics = ActionStatistics.from_actions(actions)
    config = {"policy": config_tree(policy.config), "head": config_tree(settings), "stride": STRIDE}
    with TemporaryDirectory() as folder:
        save_checkpoint(
            Path(folder) / "policy",
            kind="policy",
            config=config | {"acting": "expected", "latent_steps": 1, "n_action_steps": STRIDE},
            modules={"policy": policy, "head": head},
            facts={"control_hz": 30.0, "label_fraction": 1.0},
            files=policy.files() | {"stats": {"calvin": statistics.to_json()}},
        )
        return VW2Agent.from_pretrained(Path(folder) / "policy", device=str(device)), head.to(device)


def one_policy_call(policy: LatentPolicy, device: torch.device) -> None:
    """Print table 2: batch 1, one latent step, from a 200 x 200 camera image to four actions."""
    agent, head = new_agent(policy, device)
    camera = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    px = policy.config.image_px
    queries = policy.config.queries

    def parts() -> Iterator[tuple[str, float]]:
        """Yield the name of each part of a policy call and the time at its end."""
        yield "", clock(device)
        # The same parts in the same order as in `VW2Agent.infer`.
        frame = np.stack([resize_frame(camera, height=px, width=px)])
        image = to_model_range(torch.from_numpy(frame).to(device))
        yield "image: resize, scale, to the device", clock(device)
        prompt = policy.prompt(INSTRUCTIONS[:1], image)
        yield "prompt: instruction, image to tokens", clock(device)
        # One code per step instead of N, so that the clock can be read after each of them.
        decoding = Decoding(policy.backbone, prompt, queries=1, latent_steps=queries, expected=True, last_code=True)
        states = []
        yield "cache: memory, positions, known tokens", clock(device)
        # Code 1 includes the forward pass over the prompt.
        for number in range(queries):
            states.append(decoding.step().states_BHND)
            yield f"code {number + 1}" + ("" if number else " (reads the image)"), clock(device)
        states.append(decoding.state_after()[:, None, None])
        yield "state after the last code", clock(device)
        head(torch.cat(states, dim=2)).cpu()
        yield "action head", clock(device)

    table = []
    whole = []
    for _ in range(ROUNDS + 1):
        names, stamps = zip(*parts(), strict=True)
        begin = clock(device)
        agent.infer({"images": {"static": camera}, "prompt": INSTRUCTIONS[0]})
        whole.append(clock(device) - begin)
        table.append(np.diff(stamps))
    # The first round warms up.
    total = float(np.median(whole[1:]))
    medians = np.median(table[1:], axis=0)
    rest = float(np.median(np.array(whole[1:]) - np.sum(table[1:], axis=1)))
    rows = [*zip(names[1:], medians, strict=True), ("rest: checks, units, copies", rest), ("one policy call", total)]
    print(f"{'part of one policy call':<42}{'ms':>8}{'share':>8}")
    for name, seconds in rows:
        print(f"{name:<42}{1e3 * seconds:>8.2f}{seconds / total:>8.0%}")


@torch.no_grad()
def speed_rows(seconds: float) -> list[SpeedRow]:
    """Return a row for each batch size: one latent step, as in control, against `generate`.

    Args:
        seconds: of all of them.
    """
    torch.set_num_threads(1)
    device = torch.device("cpu")
    policy = LatentPolicy(PolicyConfig(), generator=torch.Generator().manual_seed(0)).eval()
    stock = stock_model(policy)
    rows = []
    for batch, wanted in ((1, 3.0), (16, 2.2)):
        prompt = prompts(policy, batch, device)

        def milliseconds(job: Callable[[], object]) -> float:
            begin = clock(device)
            for _ in range(REPEAT):
                job()
            return 1000 * (clock(device) - begin) / REPEAT

        rounds = interleaved(
            {
                "ours": partial(milliseconds, partial(policy.decode, prompt, latent_steps=1)),
                "generate": partial(milliseconds, partial(by_generate, policy, prompt, 1, model=stock)),
            },
            seconds=seconds / 3,
        )
        name = f"decoding, batch {batch}"
        against = "generate of transformers, CPU time"
        rows.append(rounds.row(name, ours="ours", other="generate", against=against, unit="ms", wanted=wanted))
    return rows


@torch.no_grad()
def main() -> None:
    torch.set_num_threads(1)
    for device in [torch.device("cpu"), *([torch.device("cuda")] if torch.cuda.is_available() else [])]:
        policy = LatentPolicy(PolicyConfig(), generator=torch.Generator().manual_seed(0)).eval().to(device)
        parameters = sum(weight.numel() for weight in policy.parameters())
        print(f"{device.type}: policy of {parameters / 1e6:.1f} M parameters\n")
        compare(policy, device)
        print()
        one_policy_call(policy, device)
        print()


if __name__ == "__main__":
    main()
