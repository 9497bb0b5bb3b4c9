"""Vectors of sentences: one per sentence, the same everywhere, near for near sentences."""

import itertools
import subprocess
import sys

import numpy as np

from vw2_robot.data.sources.calvin_instructions import EMBEDDING_WIDTH, instruction_embedding

SENTENCES = ("open the drawer", "pull open the drawer", "open the drawers", "turn on the led light", "Turn on the lamp")


def test_vectors_have_length_one_and_tell_sentences_apart():
    vectors = [instruction_embedding(sentence) for sentence in SENTENCES]
    for vector in vectors:
        assert (vector.dtype, vector.shape) == (np.float32, (EMBEDDING_WIDTH,))
        assert abs(np.linalg.norm(vector) - 1) < 1e-6
    assert max(float(a @ b) for a, b in itertools.combinations(vectors, 2)) < 0.99


def test_sentences_that_share_words_lie_closer():
    drawer, pulled, drawers, led, lamp = (instruction_embedding(sentence) for sentence in SENTENCES)
    assert drawer @ pulled > 0.6 > drawer @ led
    assert drawer @ drawers > drawer @ lamp
    assert led @ lamp > led @ drawer


def test_order_of_words_counts_and_case_does_not():
    assert not np.array_equal(instruction_embedding("red over blue"), instruction_embedding("blue over red"))
    np.testing.assert_array_equal(instruction_embedding("Open the drawer."), instruction_embedding("open the drawer"))
    assert not instruction_embedding("...").any()


def test_another_process_makes_the_same_vector():
    script = "import sys; from vw2_robot.data.sources.calvin_instructions import instruction_embedding as v; "
    script += "sys.stdout.buffer.write(v('open the drawer').tobytes())"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert result.stdout == instruction_embedding("open the drawer").tobytes()
