"""Sentences as vectors, for the `emb` entries of CALVIN's label files.

The published files carry 384 numbers per sentence from a pretrained language model. Recordings of ours carry 384
numbers of our own making instead, in the same places and of the same form: words, pairs of words and pieces of words
are hashed into signed bins and the sum is scaled to length 1. Equal sentences get equal vectors on every machine and
in every process, other sentences get others, and sentences that share words lie closer together. They know no
synonyms, and they must not be mixed with vectors of another model. Policies of this package read the sentences.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

EMBEDDING_WIDTH = 384
PIECE_LENGTHS = (3, 4)
"""Lengths of the pieces of words; a word carries its two ends, so that "led" is not found in "pulled"."""
WEIGHTS = {"word": 1.0, "pair": 0.7, "piece": 0.3}


def sentence_vector(sentence: str) -> NDArray[np.float32]:
    """Return float32 [384] of length 1 (all zeros for a sentence without letters or digits)."""
    vector = np.zeros(EMBEDDING_WIDTH)
    for (kind, text), count in _features(sentence).items():
        number = int.from_bytes(hashlib.blake2b(f"{kind}:{text}".encode(), digest_size=8).digest(), "little")
        sign = 1.0 if number >> 63 else -1.0
        vector[number % EMBEDDING_WIDTH] += sign * WEIGHTS[kind] * count
    length = float(np.linalg.norm(vector))
    return (vector / length if length else vector).astype(np.float32)


def _features(sentence: str) -> Counter[tuple[str, str]]:
    words = re.findall(r"[^\W_]+", sentence.lower())
    found = Counter(("word", word) for word in words)
    found.update(("pair", " ".join(pair)) for pair in itertools.pairwise(words))
    for word in words:
        marked = f"<{word}>"
        found.update(
            ("piece", marked[i : i + length]) for length in PIECE_LENGTHS for i in range(len(marked) - length + 1)
        )
    return found
