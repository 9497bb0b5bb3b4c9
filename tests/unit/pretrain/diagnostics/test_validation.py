from dataclasses import replace

import numpy as np
import pytest
import torch

from vw2_robot.models.dldm.config import DLDMConfig, LevelConfig, QFormerConfig, StemConfig
from vw2_robot.models.dldm.dldm import DLDM, fake_clip, pad_to_stride
from vw2_robot.models.video.config import CodecConfig
from vw2_robot.models.video.video_codec import DCTCodec
from vw2_robot.pretrain.diagnostics.code_usage import used_and_perplexity
from vw2_robot.pretrain.diagnostics.explained_change import RiseMonitor
from vw2_robot.pretrain.diagnostics.reconstructions import contact_sheet, one_per_episode
from vw2_robot.pretrain.diagnostics.validation import explain_shortfall, validate

CONFIG = DLDMConfig(
    num_frames=9,
    height=8,
    width=8,
    stem=StemConfig("pixel", 4, 4, 1),
    levels=(LevelConfig(8, 1),),
    qformer=QFormerConfig(heads=2, role_embedding=True, value_pos=True, difference_values=True),
    z_channels=8,
    z_norm="layer",
)


def test_usage_counts_codes_and_their_perplexity():
    assert used_and_perplexity(torch.tensor([0, 7, 7, 0, 7, 7])) == (4, pytest.approx(4.0))
    assert used_and_perplexity(torch.tensor([0, 10, 0])) == (1, pytest.approx(1.0))
    share = np.array([0.5, 0.25, 0.25])
    assert used_and_perplexity(torch.tensor([2, 1, 1])) == (
        3,
        pytest.approx(float(np.exp(-(share * np.log(share)).sum()))),
    )
    assert used_and_perplexity(torch.zeros(4, dtype=torch.long)) == (0, pytest.approx(1.0))


class Renderer:
    """Stands for the VDM: it costs less with right codes, and renders the truth with them and a still clip without."""

    def __init__(self, right, latents, weight):
        self.right = right
        self.latents = latents
        self.weight = weight
        self.noises = []

    def denoising_loss(self, latents, codes, *, control_video, valid, noise, valid_steps):
        self.noises.append(noise.randn())
        return (1 + self.weight * self.distance(codes) + 0.0 * control_video.sum()).sum()

    def still_video(self, first, num_frames):
        return first[:, :, None].expand(-1, -1, num_frames, -1, -1)

    def distance(self, codes):
        return (codes - self.right[self.rows]).abs().mean(dim=(1, 2, 3))

    def velocity(self, noisy, time, first, codes, *, control_video, keep_codes):
        # From 1, with the right codes, to 0 with wrong ones or none; x0_hat moves from still to true.
        share = torch.exp(-self.weight * self.distance(codes)) * keep_codes * (self.weight > 0)
        still = self.still_video(first, noisy.shape[2])
        estimate = still + share[:, None, None, None, None] * (self.latents[self.rows] - still)
        return (noisy - estimate) / time[:, None, None, None, None]


def validation(*, rec=None, weight=0.0, reads="codes and control", chunk=6, num_frames=9):
    torch.manual_seed(0)
    dldm = DLDM(CONFIG).train()
    x = fake_clip(replace(CONFIG, num_frames=num_frames), 6)
    valid = torch.ones(6, 2, dtype=torch.bool)
    valid[3, 1] = False
    dldm.eval()
    encoded = dldm.encode(x)
    dldm.train()
    if rec is not None:
        dldm.decode = lambda codes, anchor, first: rec(x[renderer.rows])
    codec = DCTCodec(CodecConfig())
    renderer = Renderer(encoded.codes_BMNL.detach(), codec.encode(pad_to_stride(x, 4)), weight)

    def clips():
        for rows in np.split(np.arange(6), range(chunk, 6, chunk)):
            renderer.rows = rows
            yield rows, x[rows], valid[rows]

    values = validate(dldm, renderer, codec, clips, reads=reads, seed=0, grayscale=True)
    assert dldm.training
    return values, renderer, encoded, valid


def test_ratio_to_copy_is_one_for_a_still_clip_and_zero_for_the_truth():
    assert validation(rec=lambda x: x[:, :1].expand_as(x))[0]["dldm/ratio_to_copy"] == pytest.approx(1.0)
    assert validation(rec=lambda x: x)[0]["dldm/ratio_to_copy"] == 0.0
    wrong_anchor = validation(rec=lambda x: torch.cat([x[:, :1] + 9, x[:, 1:]], dim=1))[0]
    assert wrong_anchor["dldm/ratio_to_copy"] == 0.0  # the anchor is given, so it is no evidence


def test_codes_are_counted_over_valid_steps_only():
    values, _, encoded, valid = validation()
    assert values["dldm/codes_used"] == len(encoded.indices_BMN[valid].unique())


def test_shuffle_ratio_tells_a_renderer_that_reads_the_codes_from_one_that_does_not():
    deaf, renderer, _, _ = validation(weight=0.0)
    assert deaf["dldm/shuffle_ratio"] == deaf["dldm/shuffle_ratio_no_control"] == pytest.approx(1.0)
    attentive, _, _, _ = validation(weight=5.0)
    assert attentive["dldm/shuffle_ratio"] > 1.1
    # Right and shuffled codes are judged on the same noise.
    samples = torch.stack(renderer.noises)
    assert all(torch.equal(samples[0], other) for other in samples[1:])
    assert len(samples[0].unique()) == 6


def test_explained_change_is_one_for_the_truth_zero_for_a_still_clip_and_tells_whose_codes_were_read():
    values = validation(weight=5.0, rec=lambda x: x)[0]
    for t in (0.8, 0.9, 0.97):
        assert values[f"dldm/explained_change_t{t}"] == pytest.approx(1.0, abs=1e-4)
        assert 0 < values[f"dldm/explained_change_shuffled_t{t}"] < 0.9
        assert values[f"dldm/explained_change_null_t{t}"] == pytest.approx(0.0, abs=1e-4)
    assert values["dldm/explained_change_decoder"] == pytest.approx(1.0)
    deaf = validation(weight=0.0, rec=lambda x: x[:, :1].expand_as(x))[0]
    assert deaf["dldm/explained_change_t0.97"] == pytest.approx(0.0, abs=1e-4)
    assert deaf["dldm/explained_change_decoder"] == pytest.approx(0.0, abs=1e-6)


def test_the_reader_ends_when_the_explained_change_stops_rising():
    monitor = RiseMonitor()
    values = [0.1, 0.2, 0.205, 0.201, 0.25, 0.2, 0.25, 0.255]
    assert [monitor.stopped(value, patience=3, min_rise=0.01) for value in values] == [False] * 7 + [True]


def test_a_validation_in_several_chunks_finds_what_one_finds():
    whole, _, _, _ = validation(weight=5.0)
    parts, renderer, _, _ = validation(weight=5.0, chunk=4)
    assert {len(noise) for noise in renderer.noises} == {4, 2}
    assert parts == pytest.approx(whole, rel=1e-5, abs=1e-6)


def test_a_clip_that_ends_within_a_latent_step_is_judged_too():
    values = validation(weight=5.0, num_frames=8)[0]
    assert values["dldm/explained_change_t0.97"] == pytest.approx(1.0, abs=1e-4)


def test_the_reader_is_not_asked_about_control_videos_which_it_never_saw():
    values, renderer, _, _ = validation(weight=5.0, reads="codes")
    assert len(renderer.noises) == 2
    assert "dldm/shuffle_ratio" not in values
    assert values["dldm/shuffle_ratio_no_control"] > 1.1


def test_phase_one_does_not_ask_the_renderer():
    values, renderer, _, _ = validation(reads="nothing")
    assert renderer.noises == []
    assert set(values) == {"dldm/ratio_to_copy", "dldm/codes_used", "dldm/perplexity"}


def test_a_sheet_shows_columns_side_by_side_and_rows_below_one_another():
    columns = [np.full((2, 3, 5, 3), shade, np.uint8) for shade in (10, 200)]
    columns[1][1] = 90
    sheet = contact_sheet(columns, scale=2, gap=4)
    assert sheet.shape == (16, 24, 3)
    assert {int(sheet[r, c, 0]) for r, c in ((0, 0), (5, 9), (10, 0))} == {10}
    assert [int(sheet[r, c, 0]) for r, c in ((0, 14), (10, 14), (7, 0), (0, 11))] == [200, 90, 255, 255]


def test_a_shortfall_is_blamed_on_the_data_when_the_training_clips_fit():
    assert "more different video" in explain_shortfall(0.7, 0.3, limit=0.5)


def test_a_shortfall_is_blamed_on_the_schedule_when_the_training_clips_do_not_fit():
    assert "more steps" in explain_shortfall(0.9, 0.8, limit=0.5)


def test_images_show_different_episodes_before_showing_one_twice():
    moved = np.array([5.0, 9.0, 1.0, 8.0, 2.0], np.float32)
    episode = np.array([0, 0, 1, 0, 2])
    assert one_per_episode(moved, episode, 4) == [1, 4, 2, 3]
