"""DetailFlow: the law of resolution, groups that see no later ones, targets by length, and a second look."""

import pytest
import torch

from minimal import checkpoints
from minimal.data import load
from minimal.tokenizers.detail_flow import (
    DetailFlowTokenizer,
    boundaries,
    degraded,
    group_levels,
    resolution,
    truncated,
)
from minimal.tokenizers.nested import kept


def small(**changes):
    torch.manual_seed(0)
    options = dict(image_shape=(3, 8, 8), length=6, group=2, codebook_size=16, neighbours=3)
    options |= dict(dim=5, patch=4, width=16, layers=2, heads=2) | changes
    return DetailFlowTokenizer(**options).eval()


def images(count=6, seed=0):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1


# The law


def test_the_paper_law_for_16_tokens_and_32_pixels():
    expected = [1, 4, 6, 9, 12, 15, 17, 19, 22, 24, 26, 27, 29, 30, 31, 32]
    assert [resolution(t, 16, 32) for t in range(1, 17)] == expected


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5, 3.0])
@pytest.mark.parametrize("length", [2, 7, 16, 128])
def test_one_token_answers_for_one_pixel_all_for_the_image_and_more_never_for_less(length, power):
    sizes = [resolution(t, length, 32, power) for t in range(1, length + 1)]
    assert sizes[0] == 1 and sizes[-1] == 32 and sizes == sorted(sizes)


def test_degraded_is_the_mean_colour_at_one_pixel_and_the_image_at_full_size():
    x = images()
    assert degraded(x, 8) is x
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(degraded(x, 1), mean)
    errors = [(degraded(x, size) - x).square().mean().item() for size in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] == 0


def test_groups_the_first_token_by_token():
    assert group_levels(12, 4).tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5]
    assert boundaries(group_levels(12, 4)) == [1, 2, 3, 4, 8, 12]
    assert group_levels(3, 1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="groups of 4"):
        group_levels(10, 4)


def test_lengths_are_rounded_up_to_the_end_of_a_group():
    law = truncated(group_levels(12, 4), share=0.6)
    assert law == pytest.approx([0.05, 0.05, 0.05, 0.05, 0, 0, 0, 0.2, 0, 0, 0, 0.6])
    assert kept(law)[0] == pytest.approx(1)


# The tokens


def test_a_group_depends_on_its_own_queries_and_those_before():
    x, before = images(), small().latents(images())
    for j, level in enumerate((0, 1, 2, 2, 3, 3)):
        model = small()
        model.queries.data[j] += 1.0
        changed = (model.latents(x) - before).abs().amax((0, 2)) > 0
        assert changed.tolist() == [other >= level for other in (0, 1, 2, 2, 3, 3)]


def test_a_cut_image_ignores_later_tokens_bit_by_bit():
    model, tokens = small(), torch.randint(16, (3, 6))
    other = tokens.clone()
    other[:, 4:] = (other[:, 4:] + 1) % 16
    assert torch.equal(model.decode(tokens, upto=4), model.decode(other, upto=4))
    assert not torch.allclose(model.decode(tokens), model.decode(other))


def test_every_image_is_compared_at_the_resolution_of_its_length():
    model, x = small(), images(3)
    lengths = torch.tensor([6, 1, 4])
    target = model.target(x, lengths)
    assert torch.equal(target[0], x[0])
    torch.testing.assert_close(target[1], x[1].mean((1, 2), keepdim=True).expand(3, 8, 8))
    assert torch.equal(target[2:], degraded(x[2:], resolution(4, 6, 8)))


# Self-correction


def test_only_the_chosen_group_is_perturbed_and_only_into_neighbours():
    model = small()
    tokens, starts = torch.randint(16, (200, 6)), torch.tensor([0, 2] * 100)
    wrong = model.perturb(tokens, starts, generator=torch.Generator().manual_seed(0))
    place = torch.arange(6)
    chosen = (place >= starts[:, None]) & (place < starts[:, None] + 2)
    assert torch.equal(wrong[~chosen], tokens[~chosen]) and (wrong[chosen] != tokens[chosen]).all()
    distance = torch.cdist(model.quantizer.codebook, model.quantizer.codebook)
    rank = distance[tokens[chosen], :].argsort(1).argsort(1).gather(1, wrong[chosen][:, None])
    assert rank.min() == 1 and rank.max() == 3 and rank.unique().tolist() == [1, 2, 3]


def test_a_second_look_depends_on_the_tokens_before_and_not_on_those_it_replaces():
    model, x, starts = small(), images(), torch.tensor([0, 2, 0, 2, 0, 2])
    tokens = torch.randint(16, (6, 6))
    looked = model.second_look(x, tokens, starts)
    place = torch.arange(6)
    later = place >= starts[:, None] + 2
    other = torch.where(later, (tokens + 1) % 16, tokens)
    assert torch.equal(model.second_look(x, other, starts), looked)
    other = tokens.clone()
    other[:, 0] = (tokens[:, 0] + 1) % 16
    changed = (model.second_look(x, other, starts) - looked).abs().amax(-1) > 0
    assert changed[later].all()
    corrected = model.correct(x, tokens, starts)
    assert torch.equal(corrected[~later], tokens[~later])
    assert torch.equal(corrected[later], model.quantizer.nearest(looked)[later])


def test_the_codes_fed_back_get_no_gradient_and_everything_else_learns():
    model = small().train()
    model.loss(images(64))[0].backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    assert not model.quantizer.codebook.requires_grad


def test_commitment_of_the_second_look_is_for_corrected_tokens_only():
    model, x = small().train(), images(8)
    seen = []
    model.quantizer.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    torch.manual_seed(1)
    model.loss(x)
    first, second = seen
    assert first <= 8 * 6 and second % 2 == 0 and 4 * 2 <= second <= 4 * 4  # of 4 images, one or two groups of two


# Shipped


def test_the_error_against_what_was_asked_is_flat_while_that_against_the_image_falls():
    model, x = checkpoints.load("shapes_detail_flow"), load("shapes", "validation", version="single").images[:300]
    tokens, asked, whole = model.encode(x), [], []
    for t in boundaries(model.levels):
        shown = model.decode(tokens, upto=t)
        asked.append((shown - degraded(x, resolution(t, 16, 32))).square().mean().item())
        whole.append((shown - x).square().mean().item())
    assert max(asked) < 2 * min(asked) and whole[0] > 5 * whole[-1]
    assert whole == sorted(whole, reverse=True)
