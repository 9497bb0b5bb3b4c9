import copy

import pytest
import torch

from vw2_robot.models.dldm.vq import VQ


def build(vocabulary=8, width=4, *, seed=0):
    torch.manual_seed(seed)
    return VQ(vocabulary, width)


def test_index_and_entry_are_a_bijection():
    vq = build().eval()
    every = torch.arange(8)
    assert torch.equal(vq.indices(vq.codes_of(every)), every)
    assert vq.levels == (vq.vocabulary,) == (8,)


def test_in_eval_mode_every_vector_becomes_its_nearest_entry():
    vq, z = build().eval(), torch.randn(3, 5, 4)
    by_hand = torch.stack([(v - vq.codebook).norm(dim=1).argmin() for v in z.flatten(0, 1)]).view(3, 5)
    assert torch.equal(vq.indices(z), by_hand)
    assert torch.equal(vq(z), vq.codebook[by_hand])
    assert int(vq.batches) == 0


def test_training_puts_the_code_at_the_distance_of_the_nearest_entry_in_a_random_direction():
    vq, z = build().train(), torch.randn(64, 4)
    nearest = vq.codebook[vq.indices(z)]
    first, second = vq(z), vq(z)
    torch.testing.assert_close((first - z).norm(dim=1), (z - nearest).norm(dim=1))
    assert not torch.equal(first, second)
    directions = torch.nn.functional.normalize(first - z, dim=1)
    assert directions.mean(0).norm() < 0.5  # no direction is preferred


def test_noise_substitution_teaches_the_vector_and_the_entry_alike():
    vq, z = build().train(), torch.randn(64, 4, requires_grad=True)
    used = vq.indices(z).unique()
    vq(z).square().sum().backward()
    assert z.grad.abs().min() > 0
    assert vq.codebook.grad[used].abs().sum(1).min() > 0
    unused = [i for i in range(8) if i not in used.tolist()]
    assert not vq.codebook.grad[unused].any()


def test_noise_depends_on_the_saved_count_of_batches_alone():
    vq, z = build().train(), torch.randn(16, 4)
    vq(z)
    again = build(seed=1).train()
    again.load_state_dict(copy.deepcopy(vq.state_dict()))
    torch.manual_seed(123)
    assert torch.equal(vq(z), again(z))


def test_micro_batches_give_the_codes_and_counts_of_the_batch():
    whole, parts, z = build().train(), build().train(), torch.randn(12, 2, 4)
    parts.micro_batches = 3
    for _ in range(12):  # entries are replaced before batch 10
        expected = whole(z)
        torch.testing.assert_close(torch.cat([parts(part) for part in z.split(4)]), expected)
        z = z + 0.1
    assert int(whole.batches) == 12
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(parts.state_dict()[name], value)


def test_entries_that_no_batch_uses_join_used_ones_and_stop_joining_late_in_training():
    vq = build().train()
    near = vq.codebook[3].detach() + 0.01 * torch.randn(200, 4)
    for _ in range(11):  # looked at before batch 10
        vq(near)
    with torch.no_grad():
        assert (vq.codebook - vq.codebook[3]).norm(dim=1).max() < 0.05
    late = build().train()
    late.batches.fill_(5000)
    before = late.codebook.detach().clone()
    for _ in range(2):
        late(near)
    assert torch.equal(late.codebook, before)


def test_quantizer_stays_in_float32_under_autocast():
    vq, z = build().train(), torch.randn(32, 4)
    clone = copy.deepcopy(vq)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        codes = vq(z)
    assert codes.dtype == torch.float32
    assert torch.equal(codes, clone(z))


@pytest.mark.parametrize("size", [(1, 4), (8, 0)])
def test_codebooks_that_make_no_sense_are_refused(size):
    with pytest.raises(ValueError, match="codebook"):
        VQ(*size)
