"""Wrong codes: none at alpha 0, uniform over the nearest at alpha 1, and every level keeps to its own table."""

import pytest
import torch
from scipy.stats import chisquare

from minimal.tokenizers.kl import KLTokenizer
from minimal.tokenizers.lfq import LFQTokenizer
from minimal.tokenizers.multiscale import MultiScaleTokenizer
from minimal.tokenizers.perturb import code_at, perturb_indices, perturb_tokens
from minimal.tokenizers.pixels import PixelTokenizer
from minimal.tokenizers.residual import ResidualTokenizer
from minimal.tokenizers.vq import VQTokenizer

CODES = torch.randn(40, 3, generator=torch.Generator().manual_seed(5))


def ranks(before, after):
    """How many codes are nearer to each old code than its new one is."""
    apart = torch.cdist(CODES, CODES)[before]
    return (apart < apart.gather(1, after[:, None])).sum(1)


def test_no_share_and_no_neighbours_change_nothing(generator):
    indices = torch.randint(40, (6, 7), generator=generator)
    assert torch.equal(perturb_indices(indices, CODES, 0.0, 40, generator), indices)
    assert torch.equal(perturb_indices(indices, CODES, 1.0, 1, generator), indices)


def test_ranks_are_uniform_over_the_nearest(generator):
    before = torch.randint(40, (20_000,), generator=generator)
    rank = ranks(before, perturb_indices(before, CODES, 1.0, 8, generator))
    assert chisquare(rank.bincount(minlength=8)).pvalue > 1e-3 and rank.max() == 7


def test_the_share_that_changes_is_alpha_less_the_draws_of_itself(generator):
    before = torch.randint(40, (20_000,), generator=generator)
    changed = (perturb_indices(before, CODES, 0.3, 5, generator) != before).double().mean()
    assert abs(changed - 0.3 * 4 / 5) < 0.015  # 4.5 standard errors


def test_a_seed_repeats_and_equal_codes_do_not_confuse_rank_zero():
    twins = torch.zeros(6, 2)
    indices = torch.arange(6).repeat(9)
    assert torch.equal(perturb_indices(indices, twins, 1.0, 1), indices)
    first, again = (perturb_indices(indices, twins, 0.5, 6, torch.Generator().manual_seed(2)) for _ in range(2))
    assert torch.equal(first, again) and not torch.equal(first, indices)


@pytest.mark.parametrize(
    "alpha, delta, indices, word",
    [
        (1.2, 3, torch.zeros(2, dtype=torch.long), "share"),
        (-0.1, 3, torch.zeros(2, dtype=torch.long), "share"),
        (float("nan"), 3, torch.zeros(2, dtype=torch.long), "share"),
        (0.5, 0, torch.zeros(2, dtype=torch.long), "1 to 40"),
        (0.5, 41, torch.zeros(2, dtype=torch.long), "1 to 40"),
        (0.5, 3, torch.tensor([40]), "0 .. 39"),
        (0.5, 3, torch.zeros(2), "long"),
    ],
)
def test_bad_requests_are_explained(alpha, delta, indices, word):
    with pytest.raises(ValueError, match=word):
        perturb_indices(indices, CODES, alpha, delta)


# Whole tokenizers


def random_tables(tokenizer):
    """Codebooks that differ from level to level."""
    for k, table in enumerate(tokenizer.quantizer.tables):
        table.codebook = torch.randn(table.codebook.shape, generator=torch.Generator().manual_seed(k))
    return tokenizer


def test_tokens_of_a_grid_move_within_its_codebook(generator):
    tokenizer = VQTokenizer((1, 8, 8), codebook_size=40, dim=3, widths=(8, 8))
    tokenizer.quantizer.codebook = CODES
    tokens = torch.randint(40, (500, 16), generator=generator)
    moved = perturb_tokens(tokenizer, tokens, 1.0, 4, generator)
    assert ranks(tokens.flatten(), moved.flatten()).max() == 3
    assert torch.equal(perturb_tokens(tokenizer, tokens, 0.0, 4, generator), tokens)


@pytest.mark.parametrize("kind", [ResidualTokenizer, MultiScaleTokenizer])
def test_each_level_moves_within_its_own_table(kind, generator):
    tokenizer = kind((1, 8, 8), codebook_size=20, dim=3, widths=(8, 8), shared=False)
    random_tables(tokenizer)
    tokens = torch.randint(20, (40, tokenizer.length), generator=generator)
    moved = perturb_tokens(tokenizer, tokens, 1.0, 5, generator)
    for level, (before, after) in enumerate(zip(*map(tokenizer.quantizer.split, (tokens, moved)), strict=True)):
        table = tokenizer.quantizer.table(level).codebook
        apart = torch.cdist(table, table)[before.flatten()]
        rank = (apart < apart.gather(1, after.reshape(-1, 1))).sum(1)
        assert rank.max() == 4 and rank.min() == 0


def test_a_bit_flips_where_two_codes_are_asked_of_a_cube(generator):
    tokenizer = LFQTokenizer((1, 8, 8), bits=6, widths=(8, 8))
    tokens = torch.randint(64, (50, 16), generator=generator)
    moved = perturb_tokens(tokenizer, tokens, 1.0, 7, generator)  # itself and the six at distance one bit
    flipped = (tokenizer.embed(tokens) != tokenizer.embed(moved)).sum(-1)
    assert flipped.max() == 1


def test_pixels_move_to_a_grey_level_beside_them(generator):
    tokenizer = PixelTokenizer(9, (1, 4, 4))
    tokens = torch.randint(1, 8, (50, 16), generator=generator)
    assert (perturb_tokens(tokenizer, tokens, 1.0, 3, generator) - tokens).abs().max() == 1


def test_codes_are_what_a_tokenizer_embeds():
    tokenizer = VQTokenizer((1, 8, 8), codebook_size=40, dim=3, widths=(8, 8))
    assert torch.equal(code_at(tokenizer, torch.arange(40), 5), tokenizer.quantizer.codebook)


def test_real_numbers_have_no_codes_to_confuse():
    with pytest.raises(ValueError, match="real numbers"):
        perturb_tokens(KLTokenizer((1, 8, 8), widths=(8, 8)), torch.zeros(1, 16, 4), 0.5, 2)
