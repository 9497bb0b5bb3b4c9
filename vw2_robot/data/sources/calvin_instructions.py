"""Embeddings of instructions by feature hashing, for the `emb` entries of CALVIN's label files.

The published files hold 384 numbers for each instruction from a pretrained language model. Recordings of this package
hold hashed embeddings of the same shape instead: words, pairs of words and character n-grams are hashed into signed
bins and the sum is scaled to length 1. Equal instructions get equal embeddings on every machine, different ones get
different ones, and instructions that share words lie closer together. Synonyms are not recognized, and these embeddings
must not be mixed with those of a language model. Policies of this package read the text of the instruction instead.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter

import numpy as np
from numpy.typing import NDArray

EMBEDDING_WIDTH = 384
NGRAM_LENGTHS = (3, 4)
"""Lengths of the character n-grams; words get marks at both ends, so that "led" is not found in "pulled"."""
# The keys are part of what is hashed: they never change.
WEIGHTS = {"word": 1.0, "pair": 0.7, "piece": 0.3}


def instruction_embedding(instruction: str) -> NDArray[np.float32]:
    """Return float32 [384] of length 1 (all zeros for an instruction without letters or digits)."""
    tokens = re.findall(r"[^\W_]+", instruction.lower())
    features = Counter(("word", token) for token in tokens)
    features.update(("pair", " ".join(pair)) for pair in itertools.pairwise(tokens))
    for token in tokens:
        marked = f"<{token}>"
        features.update(
            ("piece", marked[i : i + length]) for length in NGRAM_LENGTHS for i in range(len(marked) - length + 1)
        )
    vector = np.zeros(EMBEDDING_WIDTH)
    for (kind, text), count in features.items():
        # The hash gives bin and sign; random signs let collisions cancel on average.
        number = int.from_bytes(hashlib.blake2b(f"{kind}:{text}".encode(), digest_size=8).digest(), "little")
        sign = 1.0 if number >> 63 else -1.0
        vector[number % EMBEDDING_WIDTH] += sign * WEIGHTS[kind] * count
    length = float(np.linalg.norm(vector))
    return (vector / length if length else vector).astype(np.float32)
