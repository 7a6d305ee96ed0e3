"""Speculative Jacobi decoding: the target's distribution for every block, though guesses come from wrong beginnings."""

from functools import partial

import pytest
import torch
from tiny import markov_bench, seeded, sequence_counts, tiny_gpt

from minimal.samplers import speculative_jacobi
from minimal.samplers.cached import sample_cached
from minimal.samplers.logits import inverse_cdf
from minimal.samplers.speculative import verify
from minimal.samplers.speculative_jacobi import sample_speculative_jacobi
from minimal.statistics import chi_square, enumerate_joint


def counts_of(model, n=100_000, *, seed, **options):
    return sequence_counts(partial(sample_speculative_jacobi, model, **options), model, n, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("block", [3, 5])
def test_all_sequences_of_a_markov_chain_come_out_as_often_as_they_should(block, seed):
    model = markov_bench(10)
    counts, samples = counts_of(model, block=block, seed=seed)
    assert chi_square(counts, enumerate_joint(model, 5)).p_value > 0.01
    assert 0.2 < samples[0].trace.acceptance < 0.8  # both branches were at work


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_all_sequences_of_a_transformer_come_out_as_often_as_they_should(seed):
    model = tiny_gpt(3, dtype=torch.float32, vocab_size=3, length=4, grid_width=2, dim=8, layers=1)
    counts, _ = counts_of(model, block=4, seed=seed)
    assert chi_square(counts, enumerate_joint(model, 4)).p_value > 0.01


def wrong_residual(p, q, drafts, coins, repair):
    kept, _ = verify(p, q, drafts, coins, repair)
    row = torch.arange(len(p))
    return kept, inverse_cdf(p[row, kept], repair[row, kept])


def keeps_everything(p, q, drafts, coins, repair):
    return verify(p, q, drafts, torch.zeros_like(coins), repair)


def forgets_where_guesses_came_from(p, q, drafts, coins, repair):
    """Judges all guesses as if they had been drawn uniformly."""
    return verify(p, torch.full_like(q, 1 / q.shape[-1]), drafts, coins, repair)


@pytest.mark.parametrize("rule", [wrong_residual, keeps_everything, forgets_where_guesses_came_from])
def test_a_wrong_rule_is_found_out(rule, monkeypatch):
    model = markov_bench(10, vocab_size=3, length=4)
    joint = enumerate_joint(model, 4)
    assert chi_square(counts_of(model, 20_000, block=4, seed=1)[0], joint).p_value > 0.01
    monkeypatch.setattr(speculative_jacobi, "verify", rule)
    assert chi_square(counts_of(model, 20_000, block=4, seed=1)[0], joint).p_value < 1e-6


def test_the_point_mass_rule_is_the_same_rule_with_a_one_hot_draft():
    """Keep x with probability p(x), otherwise draw from p without x: what a guess without a distribution deserves."""
    p, x = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64), 1
    steps = (torch.arange(20).double() + 0.5) / 20  # midpoints: they integrate coins and repairs exactly
    coins, repair = torch.cartesian_prod(steps, steps).unbind(-1)
    C, q = len(coins), torch.nn.functional.one_hot(torch.tensor(x), 3).double()
    drafts = torch.full((C, 1), x)
    kept, token = verify(p.expand(C, 2, 3), q.expand(C, 1, 3), drafts, coins[:, None], repair[:, None].expand(C, 2))
    assert abs(kept.double().mean() - p[x]) < 1e-12
    repaired = token[kept == 0].bincount(minlength=3) / (kept == 0).sum()
    torch.testing.assert_close(repaired, torch.tensor([0.25, 0.0, 0.75]), rtol=0, atol=1e-6)


# Identities


@pytest.mark.parametrize("block", [2, 5, 12])
def test_greedy_tokens_are_those_of_plain_greedy_decoding(block, task):
    model, n, options = task
    options = options | {"temperature": 0}
    expected = sample_cached(model, n, **options).tokens
    assert torch.equal(sample_speculative_jacobi(model, n, block=block, **options).tokens, expected)


def test_tokens_that_ignore_their_context_are_all_kept_once_they_were_drawn_from_the_model():
    model = markov_bench(0, length=12)
    model.table.copy_(model.table[:, :1].expand_as(model.table))
    trace = sample_speculative_jacobi(model, 50, block=12, generator=seeded(1)).trace
    assert trace.forwards["target"] <= 3  # uniform guesses, then the model's own, and one for what the first pass left


def test_each_row_goes_its_own_pace_as_if_it_were_alone():
    model, n, block = tiny_gpt(), 5, 4
    together = sample_speculative_jacobi(model, n, block=block, generator=seeded(1))
    passes = []
    for i in range(n):
        generator = seeded(1)
        torch.rand(i, model.length + block, 3, generator=generator)  # the noise of the rows above
        alone = sample_speculative_jacobi(model, 1, block=block, generator=generator)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        passes.append(alone.trace.forwards["target"])
    assert together.trace.forwards["target"] == max(passes) and together.trace.rows["target"] == sum(passes)


@pytest.mark.parametrize("length", [1, 5, 11, 12])
def test_a_prompt_of_any_length_is_continued(length):
    model, prompt = tiny_gpt(), torch.randint(5, (4, length), generator=seeded(0))
    sample = sample_speculative_jacobi(model, 4, block=3, prompt=prompt, generator=seeded(1))
    assert torch.equal(sample.tokens[:, :length], prompt) and sample.tokens.shape == (4, 12)


def test_the_trace_counts_what_a_coin_decided_and_every_token_once():
    model, n = tiny_gpt(), 6
    trace = sample_speculative_jacobi(model, n, block=4, generator=seeded(0)).trace
    assert trace.positions["target"] == 4 * trace.rows["target"]
    assert 0 < trace.accepted < trace.drafted
    assert trace.accepted + trace.rows["target"] >= n * model.length  # a pass adds a token, unless the image is full


def test_samples_can_be_trained_on():
    model = tiny_gpt().requires_grad_(True)
    model.loss(sample_speculative_jacobi(model, 4, block=4, generator=seeded(0)).tokens)[0].backward()


@pytest.mark.parametrize(
    "options, message", [({"block": 1}, "block is 1; work on between 2 and 12"), ({"block": 13}, "block is 13")]
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample_speculative_jacobi(tiny_gpt(), 2, **options)
