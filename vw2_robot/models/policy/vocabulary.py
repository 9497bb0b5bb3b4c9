"""The tokenizers of instructions, and the vocabulary of a language model extended by image and latent tokens.

Place in the flow: under `backbone.py`. After the V0 rows that a model brings come `<lat> </lat> <img> </img> <instr>
</instr> <null>`, then the image tokens (`image: discrete` only), then the V latent tokens, last and contiguous; rows
that fill the table up to a round number follow them and are never used. `<null>` stands in a slot without a code. Old
rows and old logits stay bit-equal, in the input table and in an untied output table.
"""

# V0 old rows · V latent codes · L code dimensions · D width
from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..dldm.fsq import FSQ
from .config import LatentInit

NULL_TOKEN = "<null>"
SPECIAL_TOKENS = ("<lat>", "</lat>", "<img>", "</img>", "<instr>", "</instr>", NULL_TOKEN)
# Size of the random spread of new rows around the mean of the old ones (method 2.3).
NEW_ROW_STD = 0.02


class Tokenizer(Protocol):
    """The interface of a tokenizer: text -> token ids of the old vocabulary."""

    start: tuple[int, ...]
    """`<bos>`, or nothing where the model has none"""
    pad: int

    def encode(self, text: str, *, limit: int) -> list[int]:
        """Return the first `limit` tokens of the lower-cased, stripped text, without special tokens."""
        ...


class ByteTokenizer:
    """UTF-8 bytes as tokens 0..255, then pad, bos, eos, unk. It needs no file and reads every language."""

    pad = 256
    bos = 257
    eos = 258
    unk = 259
    size = 260
    start: tuple[int, ...] = (bos,)

    def encode(self, text: str, *, limit: int) -> list[int]:
        """Return the first `limit` bytes of the lower-cased, stripped text."""
        return list(text.strip().lower().encode("utf-8")[:limit])


class WordTokenizer:
    """One token for each common word of robot instructions, bytes for every other word.

    Tokens 0..259 are those of `ByteTokenizer`, then come the words of instruction_words.txt. A space is encoded only
    between two words that are both in bytes. Punctuation is in bytes.
    """

    pad = ByteTokenizer.pad
    bos = ByteTokenizer.bos
    eos = ByteTokenizer.eos
    unk = ByteTokenizer.unk
    start: tuple[int, ...] = (bos,)

    def __init__(self) -> None:
        self._tokens = {word: ByteTokenizer.size + i for i, word in enumerate(instruction_words())}
        self.size = ByteTokenizer.size + len(self._tokens)

    def encode(self, text: str, *, limit: int) -> list[int]:
        """Return the first `limit` words, or bytes of words, of the lower-cased, stripped text."""
        tokens: list[int] = []
        spelled = False
        for word in re.findall(r"[a-z0-9]+|[^a-z0-9\s]+", text.lower()):
            known = self._tokens.get(word)
            if spelled and known is None:
                tokens.append(ord(" "))
            tokens += list(word.encode("utf-8")) if known is None else [known]
            spelled = known is None
        return tokens[:limit]


@cache
def instruction_words() -> tuple[str, ...]:
    """Return the words that have a token. Their order is part of every checkpoint: the list never changes."""
    return tuple(Path(__file__).with_name("instruction_words.txt").read_text(encoding="utf-8").split())


EmbeddedTokenizer = ByteTokenizer | WordTokenizer
"""tokenizers of the embedded language model"""
TOKENIZERS: dict[str, type[EmbeddedTokenizer]] = {"bytes": ByteTokenizer, "words": WordTokenizer}


@dataclass(frozen=True)
class Vocabulary:
    """The ranges of each kind of token in the extended vocabulary (saved as tokens.json)."""

    base: int
    special: dict[str, int]
    latent: tuple[int, int]
    """first latent token, one past the last"""
    levels: tuple[int, ...]
    image: tuple[int, int] | None = None
    """first image token, one past the last; None unless images are discrete tokens"""

    def to_json(self) -> dict[str, Any]:
        """Return plain values for tokens.json."""
        return asdict(self) | {
            "latent": list(self.latent),
            "levels": list(self.levels),
            "image": None if self.image is None else list(self.image),
        }


def extend_vocabulary(
    model: nn.Module,
    fsq: FSQ,
    *,
    generator: torch.Generator,
    image_fsq: FSQ | None = None,
    latent_init: LatentInit = "fsq",
    pad_to_multiple_of: int = 1,
    null_token: bool = True,
) -> Vocabulary:
    """Append the special, image and latent tokens to a transformers model; old rows and old logits stay bit-equal.

    Args:
        model: changed in place; input and (untied) output embeddings alike.
        fsq: the latent codes.
        generator: on the CPU; gives the new rows.
        image_fsq: the image tokens, if images are discrete tokens.
        latent_init: "fsq": rows of codes start as the mean of the old rows plus a random linear map of the code plus
            a little noise, so that neighbors among the codes start as neighbors; "normal": as the mean plus noise.
        pad_to_multiple_of: the tables are filled up to a multiple of this.
        null_token: false for the vocabulary of checkpoints from before there was one.
    """
    base = int(model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]
    names = [token for token in SPECIAL_TOKENS if null_token or token != NULL_TOKEN]
    special = {token: base + i for i, token in enumerate(names)}
    first_image = base + len(special)
    first = first_image + (image_fsq.vocabulary if image_fsq is not None else 0)
    end = first + fsq.vocabulary
    # mean_resizing=True would give a thousand near-identical rows (std 0.001) at the price of a covariance.
    with torch.random.fork_rng(devices=[]):  # it fills the new rows from the global generator; they are set below
        size = -(-end // pad_to_multiple_of) * pad_to_multiple_of
        model.resize_token_embeddings(size, mean_resizing=False)  # type: ignore[operator]
    for table in embedding_tables(model):
        with torch.no_grad():
            mean = table[:base].mean(dim=0)
            table[base:] = mean
            table[first:end] += _code_rows(table, fsq, latent_init, generator, before=table[base:first_image])
            if image_fsq is not None:
                table[first_image:first] += _code_rows(table, image_fsq, latent_init, generator)
    image = None if image_fsq is None else (first_image, first)
    return Vocabulary(base, special, (first, end), fsq.levels, image)


def embedding_tables(model: nn.Module) -> list[nn.Parameter]:
    """Return the weights of input and output embeddings; one where they are tied."""
    inputs = model.get_input_embeddings().weight  # type: ignore[operator]
    outputs = model.get_output_embeddings().weight  # type: ignore[operator]
    return [inputs] if outputs is inputs else [inputs, outputs]


def _code_rows(
    table: Tensor, fsq: FSQ, latent_init: LatentInit, generator: torch.Generator, before: Tensor | None = None
) -> Tensor:
    """Return offsets of one row per code. `before`: rows without a code whose noise is sampled first, in place."""
    # The order of the random numbers is part of every seed: mixing matrix, rows without a code, codes.
    codes = fsq.codes_of(torch.arange(fsq.vocabulary))
    plain = 0 if before is None else len(before)
    mixing = torch.randn(codes.shape[1], table.shape[1], generator=generator)
    noise = torch.randn(plain + len(codes), table.shape[1], generator=generator)
    if before is not None:
        before += (NEW_ROW_STD * noise[:plain]).to(before)
    offsets = codes @ mixing + 0.25 * noise[plain:] if latent_init == "fsq" else noise[plain:]
    return (NEW_ROW_STD * offsets).to(table)
