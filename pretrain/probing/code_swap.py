"""The swap test: the first frame of clip A is decoded with the codes of clip B, and its motion compared with B's.

If codes carry motion and the anchor carries appearance, the decoded clip moves as B did. Motion is estimated from
images by a reader that was fitted on true clips of other demonstrations: change of the shrunk image -> displacement of
the end effector. It sees the change only, not the first frame, so it cannot guess A's motion from A's position. It is
fitted on windows that begin at every step of the training demonstrations of all data sets. Its correlation on true
clips is the ceiling of the test (`ceiling`); beside it stands that on clips decoded with the codes they were encoded to
(`unswapped`). Negative control: the motion of a random third clip.
"""

# P pairs · n clips · T frames · M latent steps · D pixels of the shrunk change
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vw2_robot.errors import InputError
from vw2_robot.models.dldm.dldm import DLDM
from vw2_robot.pixels import to_model_range, to_pixels

from .features import shrink
from .probes import LinearProbe, MLPProbe, Split, fit_linear, fit_mlp, principal_components, score_correlation

Decode = Callable[[Tensor, Tensor], Tensor]
"""(clips A, clips B), both [B, T, 3, H, W] in [-1, 1] -> the first frames of A with the codes of B, the same shape."""
READER_WIDTH = 192
AXES = ("x", "y", "z")


@dataclass(frozen=True, eq=False)
class MovingClips:
    """Clips of one data set without padding.

    Attributes:
        name: of the data set.
        pixels: uint8 [n, T, H, W, 3].
        displacement: [n, 3], how far the end effector moved from the first frame to the last.
        group: [n], the demonstrations.
        split: of the clips.
    """

    name: str
    pixels: NDArray[np.uint8]
    displacement: NDArray[np.float64]
    group: NDArray[np.int64]
    split: Split


class Changes(NamedTuple):
    """The data of a reader: changes [n, D] of shrunk images, displacement [n, 3], and the split [n]."""

    change: NDArray[np.float32]
    displacement: NDArray[np.float64]
    split: Split


def change_of(first: NDArray[np.uint8], last: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return shrunk `last` minus shrunk `first` [n, D], both uint8 [n, H, W, 3]."""
    difference: NDArray[np.float32] = (shrink(last) - shrink(first)).reshape(len(first), -1)
    return difference


class MotionReader:
    """Estimator of the end effector's displacement from the change of an image.

    The better of a linear probe and a small network, by the validation side.

    Args:
        seen: what both are fitted on.
        seed: of the network.
    """

    def __init__(self, seen: Changes, *, seed: int) -> None:
        change, displacement, split = seen
        # Fewer directions than pixels: with all of them a linear probe would fit noise.
        self._mean, self._directions = principal_components(change[split.train], READER_WIDTH)
        x = self._project(change)
        probes: list[LinearProbe | MLPProbe] = [
            # Without refit: the two are compared on the validation side, which must stay unseen.
            fit_linear(x, displacement, split, refit=False),
            fit_mlp(x, displacement, split, seed=seed),
        ]
        wanted = displacement[split.validation]
        errors = [float(((probe.predict(x[split.validation]) - wanted) ** 2).sum()) for probe in probes]
        self.form = ("linear", "mlp")[int(np.argmin(errors))]
        self._probe = probes[int(np.argmin(errors))]

    def _project(self, change: NDArray[np.float32]) -> NDArray[np.float32]:
        projected: NDArray[np.float32] = ((change - self._mean) @ self._directions).astype(np.float32)
        return projected

    def read(self, change: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the displacement [P, 3] of changes [P, D]."""
        return self._probe.predict(self._project(change))


def decode_with_codes_of(dldm: DLDM) -> Decode:
    """Return the decoder under test: A's anchor and first frame, B's codes."""

    @torch.no_grad()
    def decode(a: Tensor, b: Tensor) -> Tensor:
        # The trunk is causal, so the feature of frame 0 needs frame 0 alone.
        anchor = dldm.features(a[:, :1])[:, 0]
        return dldm.decode(dldm.encode(b).codes_BMNL, anchor, a[:, 0])

    return decode


def swap_test(
    decode: Decode,
    first: MovingClips,
    donor: MovingClips,
    *,
    reader: MotionReader,
    pairs: int,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Correlate the estimated motion of decoded clips with that of the donor, of the clip itself, and of a third clip.

    Args:
        decode: the decoder under test.
        first: gives the first frames, of its test side.
        donor: gives the codes; may be the same data set.
        reader: estimates motion from images.
        pairs: of clips; those of one demonstration are left out afterwards.
        seed: of the pairs and of the intervals.
        device: of the decoder.
    """
    rng = np.random.default_rng([seed, 0])
    a, b, c = sample_pairs(first, donor, pairs, rng)
    # From the true first frame, which the decoder is given, not from its copy of it.
    swapped = change_of(first.pixels[a, 0], decode_last(decode, first, a, donor, b, device))
    unswapped = change_of(first.pixels[a, 0], decode_last(decode, first, a, first, a, device))
    read = reader.read(swapped)
    groups = donor.group[b]

    def score(motion: NDArray[np.float64], estimated: NDArray[np.float64]) -> dict[str, Any]:
        # The same bootstrap samples for every score, so that their intervals can be compared.
        return score_correlation(motion, estimated, groups, AXES, rng=np.random.default_rng([seed, 1]))

    return {
        "first": first.name,
        "donor": donor.name,
        "pairs": len(a),
        "reader": reader.form,
        "follows_donor": score(donor.displacement[b], read),
        "follows_own": score(first.displacement[a], read),
        "follows_third": score(donor.displacement[c], read),
        "unswapped": score(first.displacement[a], reader.read(unswapped)),
        "ceiling": score(first.displacement[a], reader.read(change_of(first.pixels[a, 0], first.pixels[a, -1]))),
    }


def sample_pairs(
    first: MovingClips, donor: MovingClips, pairs: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Sample clips a of `first`, b and c of `donor`, of pairwise different demonstrations within a data set.

    a and b are on the test side. Of c only the motion is used, so it may be on any.

    Args:
        first: the data set of clips a.
        donor: the data set of clips b and c; may be the same object as `first`.
        pairs: number of samples drawn, before those that share a demonstration are left out.
        rng: generator that the clips are drawn with.

    Returns:
        Clip indices a, b and c, each int [P], where P is at most `pairs`.

    Raises:
        InputError: there are not enough whole clips on the test side.
    """
    pool_a = np.flatnonzero(first.split.test)
    pool_b = np.flatnonzero(donor.split.test)
    if not len(pool_a) or not len(pool_b) or (first is donor and len(np.unique(first.group[pool_a])) < 2):
        raise InputError(
            f"{first.name}: the swap test needs whole clips of two test demonstrations; use more demonstrations "
            "(episodes), a larger test_share or longer ones"
        )
    a, b, c = (rng.choice(pool, size=pairs) for pool in (pool_a, pool_b, np.arange(len(donor.group))))
    different = donor.group[b] != donor.group[c]
    if first is donor:
        different &= (first.group[a] != donor.group[b]) & (first.group[a] != donor.group[c])
    return a[different], b[different], c[different]


def decode_last(
    decode: Decode,
    first: MovingClips,
    a: NDArray[np.int64],
    donor: MovingClips,
    b: NDArray[np.int64],
    device: torch.device,
    *,
    batch_size: int = 32,
) -> NDArray[np.uint8]:
    """Return the last frames [P, H, W, 3] of clips `a` of `first`, decoded with the codes of clips `b` of `donor`.

    Args:
        decode: the decoder under test.
        first: gives anchor and first frame.
        a: int [P], indices of clips of `first`.
        donor: gives the codes; may be the same data set.
        b: int [P], indices of clips of `donor`.
        device: of the decoder.
        batch_size: pairs that are decoded at once.

    Returns:
        Pixels uint8 [P, H, W, 3] in [0, 255].
    """
    last = []
    for i in range(0, len(a), batch_size):
        x_a, x_b = (
            to_model_range(torch.from_numpy(clips.pixels[rows[i : i + batch_size]]).to(device))
            for clips, rows in ((first, a), (donor, b))
        )
        last.append(to_pixels(decode(x_a, x_b)[:, -1]).cpu().numpy())
    return np.concatenate(last)


def swap_examples(
    decode: Decode, first: MovingClips, donor: MovingClips, *, rows: int, seed: int, device: torch.device
) -> list[NDArray[np.uint8]]:
    """Return the columns [rows, H, W, 3] of an image: A first, A last, B first, B last, A with B's codes, with A's.

    Args:
        decode: the decoder under test.
        first: gives the clips A.
        donor: gives the clips B.
        rows: how many pairs.
        seed: of the pairs to choose from.
        device: of the decoder.
    """
    a, b, _ = sample_pairs(first, donor, 200, np.random.default_rng([seed, 2]))
    move_a = first.displacement[a]
    move_b = donor.displacement[b]
    # Largest where both motions are large and point in opposite directions: there a swap shows best.
    contrast = np.linalg.norm(move_b, axis=1) * np.linalg.norm(move_a, axis=1) - (move_a * move_b).sum(1)
    chosen = np.argsort(-contrast, kind="stable")[:rows]
    a = a[chosen]
    b = b[chosen]
    swapped = decode_last(decode, first, a, donor, b, device)
    unswapped = decode_last(decode, first, a, first, a, device)
    return [first.pixels[a, 0], first.pixels[a, -1], donor.pixels[b, 0], donor.pixels[b, -1], swapped, unswapped]
