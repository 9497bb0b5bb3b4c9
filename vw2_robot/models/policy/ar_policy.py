"""The autoregressive (AR) policy: instruction and first image -> latent action tokens, one after the other.

Place in the flow: latent cache -> AR policy -> action head. Sequence:

    <bos> <instr> text </instr> <img> I_1 .. I_n </img> <lat> z_1^1 .. z_1^N  z_2^1 .. z_H^N

step-major, slot-minor. Batches are padded on the left, so that the latent positions of all samples line up at the end.
The state at the token *before* z_k^n predicts it. The action head reads the N states that predict step k and the state
at its last code z_k^N; in a slot without a code stands `<null>` (`NULL_CODE` among the codes).
"""

# B batch · S sequence · P prompt length · H latent steps · N codes per step · D width · V codes · n image tokens
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vw2_robot.checkpoint import CURE, Checkpoint
from vw2_robot.command_line.config_tree import config_from
from vw2_robot.errors import InputError
from vw2_robot.random_numbers import SampleNoise

from ..dldm.config import DLDMConfig
from ..dldm.dldm import DLDM
from ..dldm.fsq import FSQ
from ..precision import at_least_float32
from .backbone import Backbone
from .config import PolicyConfig, Sampling
from .decoding import Decoded, Decoding, Prompt
from .image_tokens import DiscreteTokens, FeatureTokens, PixelTokens, PretrainedTokens
from .vocabulary import NULL_TOKEN

__all__ = ["NULL_CODE", "Decoded", "Decoding", "LatentPolicy", "Prompt"]

NULL_CODE = -1
"""in the place of a code where the policy is given none"""


class LatentPolicy(nn.Module):
    """The AR policy: backbone and image tokens, with a loss for pre-training and cached decoding for control.

    Args:
        config: backbone, image input, prompt layout.
        generator: on the CPU; gives all random weights.
        dldm: its encoder is copied with `image: features`; not read otherwise.
        description: content of a checkpoint's backbone.json, see `Backbone`.
        null_token: false for a checkpoint from before there was a null token.
        imagenet: `image: pretrained` reads its ImageNet weights; false where a checkpoint's weights replace all.

    Raises:
        InputError: the weights of backbone or image encoder cannot be loaded, or `image: features` comes without a
            dLDM.
    """

    image: PixelTokens | PretrainedTokens | FeatureTokens | DiscreteTokens | None

    def __init__(
        self,
        config: PolicyConfig,
        *,
        generator: torch.Generator,
        dldm: DLDM | None = None,
        description: dict[str, Any] | None = None,
        null_token: bool = True,
        imagenet: bool = True,
    ) -> None:
        super().__init__()
        self.config = config
        self.fsq = FSQ(config.fsq_levels)
        discrete = DiscreteTokens(config.image_px, patch=config.image_patch) if config.image == "discrete" else None
        self.backbone = Backbone(
            config.backbone,
            self.fsq,
            generator=generator,
            image_fsq=None if discrete is None else discrete.fsq,
            kind="image_text" if config.image == "vlm" else "causal",
            description=description,
            null_token=null_token,
        )
        vocabulary = self.backbone.vocabulary
        # Without a token of its own, the null code is the code of zeros.
        zeros = vocabulary.latent[0] + int(self.fsq.indices(torch.zeros(len(config.fsq_levels))))
        self.null_token = vocabulary.special.get(NULL_TOKEN, zeros)
        # PyTorch initializes layers from the global generator: seed it from `generator`, and restore it afterwards.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
            width = self.backbone.width
            if config.image == "pixels":
                self.image = PixelTokens(config.image_px, config.image_widths, width, block=config.image_block)
            elif config.image == "pretrained":
                self.image = PretrainedTokens(
                    config.image_px,
                    width,
                    stages=config.pretrained_stages,
                    frozen=config.frozen_stages,
                    imagenet=imagenet,
                )
            elif config.image == "features":
                if dldm is None:
                    raise InputError(
                        "policy.image=features reads the encoder of a dLDM, and there is none; use image=pixels"
                    )
                self.image = FeatureTokens(dldm, grid=config.image_grid, width=width)
            else:  # None for a vision-language model, which encodes the image itself
                self.image = discrete

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> LatentPolicy:
        """Load the policy of a checkpoint of kind "policy", in full precision, with adapters merged into the weights.

        All of it can be trained, whatever was frozen before.

        Raises:
            InputError: the weights do not fit the configuration, or a pretrained language model is not described.
        """
        with checkpoint.building():
            config = config_from(PolicyConfig, checkpoint.config["policy"])
            description = checkpoint.files.get("backbone")
            if config.backbone.weights is not None and not description:
                # A checkpoint describes its language model. A path that a downloaded file names is never opened.
                raise InputError(
                    f"{checkpoint.path}/backbone.json is missing, and nothing is loaded from "
                    f"{config.backbone.weights!r} instead; {CURE}"
                )
            if config.backbone.train == "freeze_base":
                config = replace(config, backbone=replace(config.backbone, train="full"))
            dldm = None
            if config.image == "features" and checkpoint.config.get("dldm") is not None:
                dldm = DLDM(config_from(DLDMConfig, checkpoint.config["dldm"]))
            generator = torch.Generator().manual_seed(0)  # every weight is replaced
            stored = checkpoint.files.get("tokens", {})
            null_token = NULL_TOKEN in stored.get("special", (NULL_TOKEN,))
            policy = cls(
                config,
                generator=generator,
                dldm=dldm,
                description=description,
                null_token=null_token,
                imagenet=False,
            )
            checkpoint.load_into(policy=policy)
            vocabulary = policy.backbone.vocabulary.to_json()
            if wrong := sorted(key for key, value in stored.items() if vocabulary.get(key) != value):
                raise InputError(
                    f"{checkpoint.path}/tokens.json describes another vocabulary ({', '.join(wrong)}); {CURE}"
                )
            # A trial prompt: a tokenizer or image processor that does not fit fails here, not in front of a robot.
            with torch.no_grad():
                prompt = policy.prompt(["a"], torch.zeros(1, 3, config.image_px, config.image_px))
            limit = policy.backbone.max_positions
            if limit is not None and prompt.mask_BP.shape[1] >= limit:
                raise InputError(
                    f"{checkpoint.path}: a prompt has {prompt.mask_BP.shape[1]} positions, the model {limit}; {CURE}"
                )
            if config.backbone.train == "lora":
                policy.backbone.merge_adapters()
                policy.config = replace(config, backbone=replace(config.backbone, train="full"))
            return policy.requires_grad_(True)

    def files(self) -> dict[str, dict[str, Any]]:
        """Return what a checkpoint must hold beside config and weights, by file name: see `from_checkpoint`."""
        tokens = {"tokens": self.backbone.vocabulary.to_json()}
        return tokens if self.backbone.description is None else tokens | {"backbone": self.backbone.description}

    def prompt(self, instructions: Sequence[str], image: Float[Tensor, "B 3 H W"]) -> Prompt:
        """Return `<bos> <instr> text </instr> <img> I </img> <lat>` for every sample, padded on the left.

        Args:
            instructions: one per sample.
            image: first images in [-1, 1], of the configured side.

        Raises:
            ValueError: if the image side is not the configured one, or the batch sizes differ.
        """
        px = self.config.image_px
        if image.shape[1:] != (3, px, px) or image.shape[0] != len(instructions):
            raise ValueError(
                f"the policy expects {len(instructions)} images of shape (3, {px}, {px}), got {tuple(image.shape)}"
            )
        special = self.backbone.vocabulary.special
        tokenizer = self.backbone.tokenizer
        texts = [tokenizer.encode(text, limit=self.config.text_limit) for text in instructions]
        longest = max(len(text) for text in texts)
        # The tokens before the image depend on the instruction alone, so that decoding can cache them.
        heads = tuple(
            (*tokenizer.start, special["<instr>"], *text, special["</instr>"], special["<img>"]) for text in texts
        )
        rows = [[tokenizer.pad] * (longest - len(text)) + [*head] for text, head in zip(texts, heads, strict=True)]
        device = image.device
        before = torch.tensor(rows, device=device)
        after = torch.tensor([[special["</img>"], special["<lat>"]]] * len(rows), device=device)
        inputs, images = self._around_image(before, image, after, texts)
        padding = torch.tensor([longest - len(text) for text in texts], device=device)
        mask = torch.arange(inputs.shape[1], device=device)[None] >= padding[:, None]
        positions = (mask.long().cumsum(1) - 1).clamp(min=0)  # real tokens count from 0, padding has position 0
        return Prompt(inputs, mask, positions, images, heads)

    def _around_image(
        self,
        before: Int[Tensor, "B a"],
        image: Float[Tensor, "B 3 H W"],
        after: Int[Tensor, "B b"],
        texts: Sequence[Sequence[int]],
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return tokens, image, tokens: as embeddings, or as ids beside image tensors for a vision-language model."""
        backbone = self.backbone
        if self.image is None:
            assert backbone.images is not None
            images = backbone.images.tensors(image)
            count = backbone.images.count(backbone.model, images)
            places = before.new_full((len(before), count), backbone.images.token)
            return torch.cat([before, places, after], dim=1), images
        # All tokens in one look-up: each has a gradient as large as the table.
        length = before.shape[1]
        around = backbone.embed(torch.cat([before, after], dim=1))
        if isinstance(self.image, PixelTokens | PretrainedTokens):
            # The mean embedding of each instruction's tokens; of `<instr>` where there are none. One flat row of
            # tokens, summed per sample: the result does not depend on the padding of the batch.
            end = length - 2  # before </instr> and <img>
            counts = torch.tensor([max(len(text), 1) for text in texts], device=image.device)
            samples = torch.repeat_interleave(counts)
            columns = [i for text in texts for i in range(end - max(len(text), 1), end)]
            embedded = around[samples, torch.tensor(columns, device=image.device)]
            total = embedded.new_zeros(len(texts), embedded.shape[1]).index_add(0, samples, embedded)
            seen = self.image(image, total / counts[:, None])
        elif isinstance(self.image, DiscreteTokens):
            assert backbone.vocabulary.image is not None
            seen = backbone.embed(self.image(image) + backbone.vocabulary.image[0])
        else:
            seen = self.image(image)
        return torch.cat([around[:, :length], seen, around[:, length:]], dim=1), None

    def states(self, prompt: Prompt, codes: Tensor, *, last_code: bool = False) -> Float[Tensor, "B H R D"]:
        """Return the states that predict each code when the codes before it are given (one forward pass).

        Args:
            prompt: from `prompt`.
            codes: int [B, H, N], `NULL_CODE` in a slot without one; or embeddings [B, H, N, D].
            last_code: feed the last code too, and return N + 1 states of each step, the last one after its last code,
                which predicts the first code of the next step; false: R is N.
        """
        latent_steps, queries = codes.shape[1:3]
        read = codes.flatten(1, 2) if last_code else codes.flatten(1, 2)[:, :-1]
        if not read.is_floating_point():
            read = torch.where(read == NULL_CODE, self.null_token, read + self.backbone.vocabulary.latent[0])
        whole = prompt.followed_by(read, self.backbone)
        hidden = self.backbone.hidden(
            whole.inputs,
            mask=whole.mask_BP,
            positions=whole.positions_BP,
            images=whole.for_model(self.backbone),
            last=latent_steps * queries + last_code,
        )
        return states_of_steps(hidden, queries=queries, last_code=last_code)

    def code_loss(
        self,
        states: Float[Tensor, "B H N D"],
        codes: Int[Tensor, "B H N"],
        valid: Bool[Tensor, "B H *N"],
        *,
        count: Tensor | None = None,
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """Return the cross-entropy of the latent tokens and, under "accuracy", the share predicted right.

        Args:
            states: from `states`.
            codes: the right ones.
            valid: what the two means go over: whole steps [B, H], or single codes [B, H, N].
            count: what both sums are divided by: the valid codes of the whole batch where this is a part of it; None:
                those of `valid`.
        """
        first, end = self.backbone.vocabulary.latent
        if not self.config.restrict_softmax:
            logits = self.backbone.logits(states, end=end)
            chosen = logits[..., first:].argmax(-1)
            labels = codes + first
        else:
            logits = self.backbone.latent_logits(states)
            chosen = logits.argmax(-1)
            labels = codes
        # float32 on purpose: the logarithm of a softmax over a thousand codes loses its small parts in bfloat16.
        with torch.autocast(logits.device.type, enabled=False):
            loss_BHN = F.cross_entropy(at_least_float32(logits).flatten(0, 2), labels.flatten(), reduction="none")
            loss_BHN = loss_BHN.view_as(codes)
            weight = (valid if valid.ndim == 3 else valid[..., None]).expand_as(codes).to(loss_BHN)
            total = (weight.sum() if count is None else count).clamp(min=1)
            correct = (chosen == codes).to(loss_BHN)
            return (loss_BHN * weight).sum() / total, {"accuracy": ((correct * weight).sum() / total).detach()}

    def begin(
        self,
        prompt: Prompt,
        *,
        latent_steps: int,
        sampling: Sampling | None = None,
        generator: torch.Generator | SampleNoise | None = None,
        given: Int[Tensor, "B h N"] | None = None,
        expected: bool = False,
        last_code: bool = False,
    ) -> Decoding:
        """Return a `Decoding` to be stepped at most `latent_steps` times; only latent tokens are decoded.

        Args:
            prompt: from `prompt`.
            latent_steps: most latent steps that will be decoded.
            sampling: how codes are chosen; None: greedily.
            generator: on the CPU, for sampling; or noise of the samples.
            given: codes of latent steps before the first decoded one.
            expected: see `Decoding`.
            last_code: see `Decoding`.
        """
        return Decoding(
            self.backbone,
            prompt,
            queries=self.config.queries,
            latent_steps=latent_steps,
            sampling=sampling,
            generator=generator,
            given=given,
            expected=expected,
            last_code=last_code,
        )

    def decode(
        self,
        prompt: Prompt,
        *,
        latent_steps: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | SampleNoise | None = None,
        given: Int[Tensor, "B h N"] | None = None,
        expected: bool = False,
        last_code: bool = False,
    ) -> Decoded:
        """Decode latent steps at once; greedy at temperature 0.

        Args:
            prompt: from `prompt`.
            latent_steps: H, how many.
            temperature: see `Sampling`.
            top_k: see `Sampling`.
            top_p: see `Sampling`.
            generator: on the CPU, for sampling; or noise of the samples.
            given: codes of latent steps before the first decoded one.
            expected: feed expected embeddings instead of the codes, see `Decoding`.
            last_code: read the last code too, and return N + 1 states of each step, as `states` does.

        Raises:
            ValueError: the sequence would be longer than the model has positions.
        """
        sampling = Sampling(temperature, top_k, top_p)
        decoding = self.begin(
            prompt,
            latent_steps=latent_steps,
            sampling=sampling,
            generator=generator,
            given=given,
            expected=expected,
            last_code=last_code,
        )
        codes, states, read = (
            torch.cat(parts, 1) for parts in zip(*(decoding.step() for _ in range(latent_steps)), strict=True)
        )
        if last_code:
            in_order = torch.cat([states.flatten(1, 2), decoding.state_after()[:, None]], 1)
            states = states_of_steps(in_order, queries=self.config.queries, last_code=True)
        return Decoded(codes, states, read)

    def long_plan(
        self,
        prompt: Prompt,
        *,
        latent_steps: int,
        window: int,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        expected: bool = False,
    ) -> Int[Tensor, "B H N"]:
        """Return codes of more latent steps than the policy was trained on, by windows that overlap by half.

        Every window after the first begins with the last codes chosen so far, as if they followed the first image.
        Up to `window` steps this is `decode`.

        Args:
            prompt: from `prompt`.
            latent_steps: latent steps wanted.
            window: most latent steps of one window, those of training.
            temperature: see `Sampling`.
            top_k: see `Sampling`.
            top_p: see `Sampling`.
            generator: on the CPU, for sampling.
            expected: see `Decoding`; what a later window begins with are codes.
        """
        kept = window // 2
        decode = partial(
            self.decode,
            prompt,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            generator=generator,
            expected=expected,
        )
        codes = decode(latent_steps=min(latent_steps, window)).codes_BHN
        while codes.shape[1] < latent_steps:
            more = min(window - kept, latent_steps - codes.shape[1])
            given = codes[:, codes.shape[1] - kept :]
            decoded = decode(latent_steps=more, given=given)
            codes = torch.cat([codes, decoded.codes_BHN], dim=1)
        return codes


def states_of_steps(states: Float[Tensor, "B S D"], *, queries: int, last_code: bool) -> Float[Tensor, "B H R D"]:
    """Return the states of each latent step from those of a sequence.

    Args:
        states: from the one that predicts the first code, up to the one that predicts the last or, with `last_code`,
            that follows it.
        queries: N, codes per latent step.
        last_code: the state after its last code belongs to a step too, so that neighboring steps share one; R is N + 1.
    """
    if last_code:
        return states.unfold(1, queries + 1, queries).transpose(2, 3)
    return rearrange(states, "b (h n) d -> b h n d", n=queries)
