"""A world of moving squares: an oracle that decodes rightly passes the swap test, one that ignores codes does not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip
from vw2_robot.pretrain.probing.code_swap import (
    Changes,
    MotionReader,
    MovingClips,
    change_of,
    decode_with_codes_of,
    swap_examples,
    swap_test,
)
from vw2_robot.pretrain.probing.features import one_hot_fsq
from vw2_robot.pretrain.probing.nuisance import COMPARED, KINDS, nuisance_examples, nuisance_test, sample_others
from vw2_robot.pretrain.probing.probes import fit_linear, split_groups

SIDE, FRAMES = 32, 5
CONFIG = DLDMConfig(
    num_frames=FRAMES,
    height=SIDE,
    width=SIDE,
    stem=StemConfig("pixel", 4, 8, 1),
    levels=(LevelConfig(8, 1),),
    queries=2,
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_norm="batch",
    z_channels=8,
)


def draw(place_n2, move_n2, shade_n):
    """Clips [n, T, H, W, 3] of a bright square of 8 pixels on a background of its own shade."""
    rows, columns = np.mgrid[:SIDE, :SIDE]
    clips = np.zeros((len(place_n2), FRAMES, SIDE, SIDE, 3), np.uint8)
    for t in range(FRAMES):
        at = place_n2 + move_n2 * t / (FRAMES - 1)
        inside = (np.abs(rows - at[:, 1, None, None]) < 4) & (np.abs(columns - at[:, 0, None, None]) < 4)
        clips[:, t] = np.where(inside, 230, shade_n[:, None, None])[..., None]
    return clips


def squares(name="squares", *, count=400, seed=0):
    rng = np.random.default_rng(seed)
    place, move = rng.uniform(14, 18, (count, 2)), rng.uniform(-6, 6, (count, 2))
    clips = draw(place, move, rng.integers(20, 60, count))
    group = np.arange(count) // 4
    split = split_groups(group, rng=rng, shares=(0.2, 0.3))
    return MovingClips(name, clips, np.concatenate([move, rng.normal(size=(count, 1))], axis=1), group, split)


@pytest.fixture(scope="module")
def world():
    clips, many = squares(), squares(count=2000, seed=1)
    changes = Changes(change_of(many.pixels[:, 0], many.pixels[:, -1]), many.displacement, many.split)
    return clips, MotionReader(changes, seed=0)


def center(image):
    """Place of the bright square in [B, 3, H, W]."""
    bright = (image[:, 0] > 0.5).float()
    total = bright.sum((1, 2)).clamp(min=1)
    x = (bright.sum(1) * torch.arange(SIDE)).sum(1) / total
    return torch.stack([x, (bright.sum(2) * torch.arange(SIDE)).sum(1) / total], dim=1)


def oracle(a, b):
    """A's square, moved as B's was."""
    place, move = center(a[:, 0]), center(b[:, -1]) - center(b[:, 0])
    shade = np.rint((a[:, 0, 0, 0, 0].numpy() + 1) * 127.5)
    clips = draw(place.numpy().astype(float), move.numpy().astype(float), shade)
    return torch.movedim(torch.from_numpy(clips).float() / 127.5 - 1, -1, -3)


def ignores_codes(a, b):
    return a


def judged(decode, world):
    clips, reader = world
    return swap_test(decode, clips, clips, reader=reader, pairs=200, seed=0, device=torch.device("cpu"))


def plane(entry):
    return (entry["x"]["correlation"] + entry["y"]["correlation"]) / 2


def test_an_oracle_follows_the_donor_and_nobody_else(world):
    found = judged(oracle, world)
    assert plane(found["ceiling"]) > 0.85
    assert plane(found["follows_donor"]) > 0.8
    assert found["follows_donor"]["x"]["ci95"][0] > 0.7
    for other in ("follows_own", "follows_third"):
        assert abs(plane(found[other])) < 0.2
    assert abs(found["follows_donor"]["z"]["correlation"]) < 0.25  # depth cannot be seen in this world


def test_a_decoder_that_ignores_codes_follows_the_first_clip(world):
    found = judged(ignores_codes, world)
    assert abs(plane(found["follows_donor"])) < 0.2
    assert plane(found["follows_own"]) == pytest.approx(plane(found["ceiling"]))


def test_the_codes_of_another_data_set_can_be_the_donor(world):
    clips, reader = world
    found = swap_test(
        oracle, clips, squares("other", seed=5), reader=reader, pairs=100, seed=0, device=torch.device("cpu")
    )
    assert (found["first"], found["donor"]) == ("squares", "other")
    assert plane(found["follows_donor"]) > 0.75


def test_the_decoder_under_test_takes_only_the_first_frame_of_a():
    torch.manual_seed(0)
    decode = decode_with_codes_of(DLDM(CONFIG).eval())
    a, b, c = (fake_clip(CONFIG, 2, seed=s) for s in range(3))
    same_start = torch.cat([a[:, :1], c[:, 1:]], dim=1)
    assert torch.equal(decode(a, b), decode(same_start, b))
    assert not torch.equal(decode(a, b), decode(c, b))
    assert decode(a, b).shape == a.shape


def test_examples_show_pairs_that_move_apart(world):
    clips, _ = world
    columns = swap_examples(oracle, clips, clips, rows=3, seed=0, device=torch.device("cpu"))
    assert len(columns) == 6
    assert {column.shape for column in columns} == {(3, SIDE, SIDE, 3)}
    place = [center(torch.movedim(torch.from_numpy(c).float() / 127.5 - 1, -1, -3)) for c in columns]
    own, donor, swapped = place[1] - place[0], place[3] - place[2], place[4] - place[0]
    assert ((own * donor).sum(1) < 0).all()
    assert torch.allclose(swapped, donor, atol=1.5)


class Sees:
    """Stands for a dLDM whose code is a function of the pixels of a step."""

    def __init__(self, code):
        self.config, self._code = CONFIG, code
        self.fsq = DLDM(CONFIG).fsq

    def indices(self, x):
        return self._code(x)


def moved_square(x):
    """Digit 0 of both codes: whether the square went right; blind to light and to the camera's first half pixel."""
    right = (center(x[:, -1]) - center(x[:, 0]))[:, 0] > 0
    return torch.stack([right.long() * 7, right.long() * 3], dim=1)[:, None]


def motion_and_light(x):
    """The same in one code, the change of the light in the other."""
    level = ((x[:, -1].mean((1, 2, 3)) - x[:, 0].mean((1, 2, 3))) * 60).round().clamp(-3, 4).long() + 3
    return torch.stack([moved_square(x)[:, 0, 0], level], dim=1)[:, None]


def nuisances(code):
    clips = squares(count=120)
    model = Sees(code)
    indices = code(torch.movedim(torch.from_numpy(clips.pixels).float() / 127.5 - 1, -1, -3))[:, 0].numpy()
    motion = np.concatenate([clips.displacement, np.zeros((120, 4))], axis=1)
    probe = fit_linear(one_hot_fsq(indices, model.fsq), motion, clips.split)
    return nuisance_test(
        model,
        model.fsq,
        clips.pixels,
        clips.group,
        probe=probe,
        motion=motion,
        seed=0,
        device=torch.device("cpu"),
    )


def test_codes_that_see_motion_alone_ignore_the_light():
    found = nuisances(moved_square)["kinds"]
    assert set(found) == {"still", "camera_cut", *KINDS}
    assert found["still"]["sensitivity"]["ratio"] == 0.0
    assert found["still"]["pixel_change"]["ratio"] == 0.0
    assert found["light"]["sensitivity"]["ratio"] == 0.0
    assert found["light"]["on_action"]["ratio"] == 0.0
    assert found["light"]["phantom_motion"]["ratio"] == 0.0
    assert found["camera_cut"]["sensitivity"]["ratio"] > 0.5


def test_codes_that_see_the_light_are_found_out():
    found = nuisances(motion_and_light)["kinds"]
    assert found["light"]["sensitivity"]["ci95"][0] > 0.3
    assert found["light"]["on_action"]["ci95"][0] > 0.3


def test_a_nuisance_changes_later_frames_and_not_the_first():
    clips = squares(count=12).pixels
    still = np.repeat(clips[0][:1], FRAMES, axis=0)
    for change in KINDS.values():
        made = change(still, np.arange(FRAMES) / 4, 1.0)
        assert made.shape == still.shape
        assert np.array_equal(made[0], still[0])
        difference = np.abs(made.astype(int) - still).mean((1, 2, 3))
        assert (np.diff(difference) > 0).all()
    rows = nuisance_examples(clips[:2], 4)
    assert [len(row) for row in rows] == [len(KINDS) + 3] * 2


def test_action_codes_are_compared_with_those_of_other_demonstrations():
    group = np.repeat(np.arange(5), 3)
    others = sample_others(group, np.random.default_rng(0))
    assert others.shape == (15, COMPARED)
    assert (group[others] != group[:, None]).all()
