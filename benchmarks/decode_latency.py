"""How long the policy takes from an image and a sentence to actions, beside transformers: two tables.

Run: python -m benchmarks.decode_latency

The embedded policy at its default size with random weights; time does not depend on what was learned. Table 1 decodes
the same prompts into the same greedy tokens, by our own loop and by `transformers.generate` (which gets the embedded
prompt, a logits mask over the latent tokens, and no end token), in turn, several times; the least time of each counts.
Our own loop remembers the words of an episode from one look to the next; "new words" is without. Table 2 takes one
look apart: what a robot waits for between a picture and its actions.

On a CPU: one thread, time spent by the process, so that other work on the machine counts little. Where a GPU is at hand
the tables are made there too, with the time that merely reading all weights once per token would take at the
measured memory bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from vw2_robot.data.frames import resize_frame
from vw2_robot.models.action_head import ActionHead, ActionHeadConfig
from vw2_robot.models.ar_policy import LatentPolicy, PolicyConfig, Prompt
from vw2_robot.pixels import to_model_range

WORDS = ("open the drawer", "push the red block to the left", "lift the pink block from the table")
STEPS = (1, 4, 23)  # latent steps: one look, a long chunk, the paper's clip of 92 tokens
ROUNDS = 15


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


def least_seconds(device: torch.device, *jobs: Callable[[], object]) -> list[float]:
    """The least time of each job, all done in turn ROUNDS times after one round that does not count."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    found = [float("inf")] * len(jobs)
    for turn in range(ROUNDS + 1):
        for number, job in enumerate(jobs):
            begin = clock()
            job()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                found[number] = min(found[number], clock() - begin)
    return found


def prompts(policy: LatentPolicy, batch: int, device: torch.device) -> Prompt:
    """Mixed sentences and random pictures."""
    px = policy.config.image_px
    image = torch.rand(batch, 3, px, px, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return policy.prompt([WORDS[i % len(WORDS)] for i in range(batch)], image.to(device))


def read_seconds(policy: LatentPolicy, device: torch.device) -> float:
    """Time to read every weight of the language model once, at the bandwidth of a large copy."""
    source = torch.empty(2**30, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    (seconds,) = least_seconds(device, lambda: target.copy_(source))
    weights = sum(p.numel() * p.element_size() for p in policy.backbone.model.base_model.parameters())
    return weights / (2 * source.numel() / seconds)  # a copy reads and writes


def compare(policy: LatentPolicy, device: torch.device) -> None:
    """Table 1."""
    columns = ("ours ms", "new words ms", "generate ms", "times as fast", "new words")
    print(f"{'batch':<8}{'tokens':<8}" + "".join(f"{name:>15}" for name in columns))
    for batch in (1, 16):
        prompt = prompts(policy, batch, device)
        for steps in STEPS:
            ours, theirs = policy.decode(prompt, steps=steps).codes_BHN.flatten(1), by_generate(policy, prompt, steps)
            assert torch.equal(ours, theirs), "the two decoders disagree, so their times cannot be compared"
            unknown = prompt._replace(words=())
            a, new, b = least_seconds(
                device,
                lambda prompt=prompt, steps=steps: policy.decode(prompt, steps=steps),  # type: ignore[misc]
                lambda prompt=unknown, steps=steps: policy.decode(prompt, steps=steps),  # type: ignore[misc]
                lambda prompt=prompt, steps=steps: by_generate(policy, prompt, steps),  # type: ignore[misc]
            )
            times = "".join(f"{1e3 * seconds:>15.1f}" for seconds in (a, new, b))
            print(f"{batch:<8}{steps * policy.config.queries:<8}{times}{b / a:>15.2f}{b / new:>15.2f}")
    if device.type == "cuda":
        print(f"bound: reading the weights once takes {1e6 * read_seconds(policy, device):.0f} us per token")


def one_look(policy: LatentPolicy, device: torch.device) -> None:
    """Table 2: batch 1, one latent step, from a 200 x 200 camera picture to four actions."""
    head = ActionHead(ActionHeadConfig(), width=policy.backbone.width, queries=4, stride=4).eval().to(device)
    camera = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    px, words = policy.config.image_px, [WORDS[0]]

    def seen() -> Tensor:
        frame = np.stack([resize_frame(camera, height=px, width=px)])
        return to_model_range(torch.from_numpy(frame).to(device))

    image = seen()
    prompt = policy.prompt(words, image)
    states = policy.decode(prompt, steps=1).states_BHND
    parts: dict[str, Callable[[], object]] = {
        "resize the picture, to the device": seen,
        "picture to soft tokens": lambda: policy.image(image),  # type: ignore[misc]
        "the whole prompt (with the line above)": lambda: policy.prompt(words, image),
        "read picture, decode four codes": lambda: policy.decode(prompt, steps=1),
        "the same, words not read before": lambda: policy.decode(prompt._replace(words=()), steps=1),
        "action head": lambda: head(states).cpu(),
        "one look": lambda: head(policy.decode(policy.prompt(words, seen()), steps=1).states_BHND).cpu(),
    }
    times = least_seconds(device, *parts.values())
    print(f"{'part of one look':<42}{'ms':>8}{'share':>8}")
    for name, seconds in zip(parts, times, strict=True):
        print(f"{name:<42}{1e3 * seconds:>8.2f}{seconds / times[-1]:>8.0%}")


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
