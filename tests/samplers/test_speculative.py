"""Speculative sampling: the output is the target's, by enumeration of every draft and coin, then by chi-square."""

import itertools
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Markov, markov_bench, seeded, sequence_counts, tiny_gpt

from minimal import checkpoints
from minimal.samplers import speculative
from minimal.samplers.cached import sample_cached
from minimal.samplers.guidance import Guided
from minimal.samplers.logits import inverse_cdf, probabilities
from minimal.samplers.speculative import sample_speculative, verify, verify_greedy
from minimal.statistics import chi_square, enumerate_joint

# The rule, exactly. With probabilities in parts of 1/3 (or 1/4) every threshold p / q and every step of a residual's
# cumulative distribution is a multiple of 1/6 (or 1/12), so that many midpoints integrate coins and repairs exactly.

STEPS = {3: 6, 4: 12}


def parts_of(D):
    """All distributions over 3 tokens whose probabilities are multiples of 1 / D."""
    return [torch.tensor(c).double() / D for c in itertools.product(range(D + 1), repeat=3) if sum(c) == D]


def everything_that_can_happen(p, q, D):
    """All drafts (with probability q), coins and repairs (equally likely): weights (C,), kept (C,), emitted (C, k + 1).

    p (k + 1, V) and q (k, V) do not depend on the tokens before; tokens that are not emitted are -1.
    """
    k, V = q.shape
    midpoints = (torch.arange(STEPS[D]) + 0.5).double() / STEPS[D]
    cells = torch.cartesian_prod(*[torch.arange(V)] * k, *[torch.arange(STEPS[D])] * (2 * k + 1))
    weights = q[torch.arange(k), cells[:, :k]].prod(-1) / STEPS[D] ** (2 * k + 1)
    weights, cells = weights[weights > 0], cells[weights > 0]
    drafts, coins, repair = cells[:, :k], midpoints[cells[:, k : 2 * k]], midpoints[cells[:, 2 * k :]]
    C = len(weights)
    kept, token = verify(p.expand(C, -1, -1), q.expand(C, -1, -1), drafts, coins, repair)
    emitted = torch.cat((drafts, torch.full((C, 1), -1)), dim=1).scatter(1, kept[:, None], token[:, None])
    return weights, kept, emitted.masked_fill(torch.arange(k + 1) > kept[:, None], -1)


def exactly(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def check_every_token_against_the_target(p, q, D):
    weights, kept, emitted = everything_that_can_happen(p, q, D)
    for i in range(len(q) + 1):
        for prefix in itertools.product(range(3), repeat=i):  # all ways to keep i guesses
            here = (kept >= i) & (emitted[:, :i] == torch.tensor(prefix, dtype=torch.long)).all(-1)
            mass = torch.tensor([min(p[j, x], q[j, x]) for j, x in enumerate(prefix)]).double().prod()
            exactly(weights[here].sum(), mass)  # sums to 1 - TV: no coupling keeps more
            following = torch.zeros(3).double().index_add(0, emitted[here, i], weights[here])
            exactly(following, p[i] * mass)  # the token behind them is the target's, whatever they were


@settings(max_examples=30)
@given(*[st.sampled_from(parts_of(4))] * 3)
def test_a_guess_or_its_repair_has_exactly_the_targets_distribution_and_so_has_the_free_token(p, p_next, q):
    check_every_token_against_the_target(torch.stack([p, p_next]), q[None], 4)


@settings(max_examples=10)
@given(*[st.sampled_from(parts_of(3))] * 5)
def test_two_guesses_their_repairs_and_the_free_token_have_exactly_the_targets_distribution(p1, p2, p3, q1, q2):
    check_every_token_against_the_target(torch.stack([p1, p2, p3]), torch.stack([q1, q2]), 3)


def test_equal_distributions_keep_everything_whatever_the_coin():
    p = torch.rand(100, 4, 9, generator=seeded(0)).softmax(-1)
    drafts = torch.randint(9, (100, 3), generator=seeded(1))
    kept, token = verify(p, p[:, :3], drafts, torch.full((100, 3), 1 - 2.0**-24), torch.full((100, 4), 0.5))
    assert (kept == 3).all()
    assert torch.equal(token, inverse_cdf(p[:, 3], torch.full((100,), 0.5)))


def test_a_guess_that_the_target_rules_out_is_refused_whatever_the_coin():
    p, q = torch.tensor([[[0.0, 1.0], [0.5, 0.5]]]), torch.tensor([[[1.0, 0.0]]])
    kept, token = verify(p, q, torch.tensor([[0]]), torch.zeros(1, 1), torch.zeros(1, 2))
    assert kept.tolist() == [0] and token.tolist() == [1]


def test_a_refusal_by_rounding_alone_draws_from_the_target():
    q = torch.tensor([[[0.5, 0.5]]])
    p = torch.nextafter(q, torch.zeros(1)).repeat(1, 2, 1)  # nowhere above q, so that nothing is left to repair with
    coins = torch.full((1, 1), 1 - 2.0**-24)
    for u, expected in ((0.2, 0), (0.8, 1)):
        kept, token = verify(p, q, torch.tensor([[0]]), coins, torch.full((1, 2), u))
        assert kept.tolist() == [0] and token.tolist() == [expected]


def test_at_temperature_zero_the_rule_is_to_keep_what_the_target_would_have_chosen():
    logits = torch.randint(3, (500, 4, 3), generator=seeded(0)).float()  # with many ties
    drafts, coins = torch.randint(3, (500, 3), generator=seeded(1)), torch.rand(500, 4, generator=seeded(2))
    p = probabilities(logits, temperature=0)
    q = torch.nn.functional.one_hot(drafts, 3).float()
    for mine, theirs in zip(verify_greedy(logits, drafts), verify(p, q, drafts, coins[:, :3], coins)):
        assert torch.equal(mine, theirs)


# The sampler, on enumerable targets


def counts_of(model, draft, n=100_000, *, seed, **options):
    return sequence_counts(partial(sample_speculative, model, draft, **options), model, n, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_all_sequences_of_a_markov_chain_come_out_as_often_as_they_should(seed):
    model, draft = markov_bench(10), markov_bench(11)
    counts, samples = counts_of(model, draft, k=3, seed=seed)
    assert chi_square(counts, enumerate_joint(model, 5)).p_value > 0.01
    assert chi_square(counts, enumerate_joint(draft, 5)).p_value < 1e-6
    assert 0.2 < samples[0].trace.acceptance < 0.8  # both branches were at work


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_all_sequences_of_a_transformer_come_out_as_often_as_they_should(seed):
    sizes = dict(dtype=torch.float32, vocab_size=3, length=4, grid_width=2, dim=8, layers=1)
    model, draft = tiny_gpt(3, **sizes), tiny_gpt(4, **sizes)
    counts, _ = counts_of(model, draft, k=2, seed=seed)
    assert chi_square(counts, enumerate_joint(model, 4)).p_value > 0.01
    assert chi_square(counts, enumerate_joint(draft, 4)).p_value < 1e-6


@pytest.mark.slow
def test_guidance_labels_and_filters_are_part_of_the_target():
    model, draft = Guided(markov_bench(12, classes=2, length=4), 1.6), markov_bench(13, classes=2, length=4)
    cond, filters = torch.ones(20_000, dtype=torch.long), {"temperature": 1.3, "top_k": 3}
    counts, _ = counts_of(model, draft, k=2, seed=1, cond=cond, **filters)

    def filtered(tokens):
        return probabilities(model.logits(tokens, cond[: len(tokens)]), **filters).log()

    assert chi_square(counts, enumerate_joint(filtered, 4)).p_value > 0.01


def wrong_residual(p, q, drafts, coins, repair):
    """After a refusal draws from p instead of (p - q)_+."""
    kept, _ = verify(p, q, drafts, coins, repair)
    row = torch.arange(len(p))
    return kept, inverse_cdf(p[row, kept], repair[row, kept])


def keeps_everything(p, q, drafts, coins, repair):
    return verify(p, q, drafts, torch.zeros_like(coins), repair)


def shares_noise(p, q, drafts, coins, repair):
    """Decides the refusal and its repair by one number."""
    return verify(p, q, drafts, coins, torch.cat((coins, repair[:, -1:]), dim=1))


@pytest.mark.parametrize("rule", [wrong_residual, keeps_everything, shares_noise])
def test_a_wrong_rule_is_found_out(rule, monkeypatch):
    model, draft = markov_bench(10, vocab_size=3, length=3), markov_bench(11, vocab_size=3, length=3)
    joint = enumerate_joint(model, 3)
    assert chi_square(counts_of(model, draft, 20_000, k=2, seed=1)[0], joint).p_value > 0.01
    monkeypatch.setattr(speculative, "verify", rule)
    assert chi_square(counts_of(model, draft, 20_000, k=2, seed=1)[0], joint).p_value < 1e-6


@pytest.mark.parametrize("k", [1, 3])
def test_acceptance_is_one_minus_total_variation_over_the_prefixes_that_were_visited(k, monkeypatch):
    model, draft, n = markov_bench(14), markov_bench(15), 4000
    rounds = []

    def watched(p, q, drafts, coins, repair):
        kept, token = verify(p, q, drafts, coins, repair)
        rounds.append((torch.minimum(p[:, :-1], q).sum(-1).double(), kept))
        return kept, token

    monkeypatch.setattr(speculative, "verify", watched)
    trace = sample_speculative(model, draft, n, k=k, generator=seeded(1)).trace
    length, overlaps, accepted = torch.zeros(n, dtype=torch.long), [], 0
    for overlap, kept in rounds:
        room = (model.length - length).clamp(max=k)
        decided = torch.arange(k) < (kept + 1).minimum(room)[:, None]  # coins that were looked at
        overlaps.append(overlap[decided])
        accepted += int(kept.minimum(room).sum())
        length = (length + kept + 1).clamp(max=model.length)
    overlap = torch.cat(overlaps)
    assert trace.drafted == len(overlap) and trace.accepted == accepted
    error = (overlap * (1 - overlap)).sum().sqrt().item() / len(overlap)
    assert abs(trace.acceptance - overlap.mean().item()) < 2.576 * error  # the 99 % interval
    assert 0.2 < trace.acceptance < 0.8 and error < 0.01


# Identities


@pytest.mark.parametrize("k", [1, 2, 4, 7])
def test_greedy_tokens_are_those_of_plain_greedy_decoding(k, task):
    model, n, options = task
    options = options | {"temperature": 0}
    expected = sample_cached(model, n, **options).tokens
    for draft in (tiny_gpt(1), tiny_gpt(2, layers=1, dim=8, grid_width=None)):
        assert torch.equal(sample_speculative(model, draft, n, k=k, generator=seeded(0), **options).tokens, expected)


@pytest.mark.slow
@pytest.mark.parametrize("target, draft", [("digits_ar", "digits_draft"), ("pydoc_ar", "pydoc_draft")])
def test_greedy_tokens_of_the_shipped_models_are_those_of_plain_greedy_decoding(target, draft):
    target, draft = checkpoints.load(target).double(), checkpoints.load(draft).double()
    prompt = torch.randint(target.vocab_size, (4, 8), generator=seeded(0))
    options = dict(temperature=0, prompt=prompt, cond=torch.arange(4) if target.num_classes else None)
    expected = sample_cached(target, 4, **options).tokens
    sample = sample_speculative(target, draft, 4, k=8, **options)
    assert torch.equal(sample.tokens, expected)
    assert sample.trace.rows["target"] < 0.45 * (expected.numel() - prompt.numel())


@pytest.mark.parametrize("filters", [{}, {"temperature": 1.5, "top_p": 0.7}], ids=["plain", "filtered"])
@pytest.mark.parametrize("k", [1, 3, 5, 12])
def test_a_draft_equal_to_the_target_is_always_believed(k, filters):
    model, n = tiny_gpt(), 5
    sample = sample_speculative(model, model, n, k=k, generator=seeded(1), **filters)
    assert sample.trace.acceptance == 1 and sample.trace.drafted > 0
    assert sample.trace.forwards["target"] == -(-model.length // (k + 1))  # every pass emits k + 1 tokens


def test_a_draft_that_never_says_what_the_target_may_say_is_never_believed_and_does_no_harm():
    left, right = torch.tensor([1.0, 2.0, 0.0, 0.0]).log(), torch.tensor([0.0, 0.0, 3.0, 1.0]).log()
    model, draft = Markov(left.expand(1, 5, 4), 3), Markov(right.expand(1, 5, 4), 3)
    counts, samples = counts_of(model, draft, 10_000, k=2, seed=1)
    assert all(sample.trace.accepted == 0 and sample.trace.forwards["target"] == 3 for sample in samples)
    assert chi_square(counts, enumerate_joint(model, 3)).p_value > 0.01


@pytest.mark.parametrize("guided", [False, True])
def test_each_row_goes_its_own_pace_as_if_it_were_alone(guided):
    model, draft, n, k = tiny_gpt(), tiny_gpt(1), 6, 3
    model = Guided(model, 1.5) if guided else model
    cond, prompt = torch.arange(n) % 4, torch.randint(5, (n, 2), generator=seeded(9))
    together = sample_speculative(model, draft, n, k=k, cond=cond, prompt=prompt, generator=seeded(1))
    forwards = []
    for i in range(n):
        generator = seeded(1)
        torch.rand(i, model.length + k + 1, 3, generator=generator)  # the noise of the rows above
        row = {"cond": cond[i : i + 1], "prompt": prompt[i : i + 1]}
        alone = sample_speculative(model, draft, 1, k=k, generator=generator, **row)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        forwards.append(alone.trace.forwards["target"])
    assert together.trace.forwards["target"] == max(forwards)
    assert together.trace.rows["target"] == sum(forwards) and min(forwards) < max(forwards)


@pytest.mark.parametrize("length", [1, 5, 11, 12])
def test_a_prompt_of_any_length_is_continued(length):
    model, draft = tiny_gpt(), tiny_gpt(1)
    prompt = torch.randint(5, (4, length), generator=seeded(0))
    sample = sample_speculative(model, draft, 4, k=3, prompt=prompt, generator=seeded(1))
    assert torch.equal(sample.tokens[:, :length], prompt) and sample.tokens.shape == (4, 12)
    greedy = {"temperature": 0, "prompt": prompt}
    fast = sample_speculative(model, draft, 4, k=3, **greedy).tokens
    assert torch.equal(fast, sample_cached(model, 4, **greedy).tokens)


def test_as_many_guesses_as_the_image_has_tokens_are_allowed_while_rows_finish_at_different_times():
    model, draft = tiny_gpt(), tiny_gpt(1)
    sample = sample_speculative(model, draft, 20, k=model.length, generator=seeded(0))
    assert sample.trace.forwards["target"] > 1 and sample.tokens.shape == (20, 12)


def test_a_longer_draft_serves_a_shorter_target():
    model, draft = tiny_gpt(), tiny_gpt(1, length=20)
    fast = sample_speculative(model, draft, 3, temperature=0).tokens
    assert torch.equal(fast, sample_cached(model, 3, temperature=0).tokens)


def test_the_trace_counts_every_forward_of_both_networks():
    model, draft, n, k = tiny_gpt(), tiny_gpt(1), 4, 3
    trace = sample_speculative(model, draft, n, k=k, generator=seeded(0)).trace
    assert trace.forwards["draft"] == k * trace.forwards["target"]
    assert trace.positions["target"] == (k + 1) * trace.rows["target"]
    assert trace.positions["draft"] == trace.rows["draft"] + trace.rows["target"] - n  # one more in each later round
    assert 0 < trace.accepted < trace.drafted and trace.seconds > 0


def test_the_same_seed_gives_the_same_sample_and_samples_can_be_trained_on():
    model, draft = tiny_gpt().requires_grad_(True), tiny_gpt(1)
    first, again, other = (sample_speculative(model, draft, 4, generator=seeded(s)).tokens for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    model.loss(first)[0].backward()


def test_low_precision_models_sample_tokens_of_the_vocabulary():
    model, draft = tiny_gpt(dtype=torch.bfloat16), tiny_gpt(1, dtype=torch.float32)
    tokens = sample_speculative(model, draft, 20, generator=seeded(0), top_p=0.9).tokens
    assert 0 <= tokens.min() and tokens.max() < 5


# Bad input


@pytest.mark.parametrize(
    "draft, options, message",
    [
        (lambda: tiny_gpt(vocab_size=6), {}, "the draft has 6 tokens and the target 5"),
        (lambda: tiny_gpt(length=8), {}, "context of 8 is shorter than the target's 12"),
        (lambda: tiny_gpt().train(), {}, "the draft is in training mode"),
        (tiny_gpt, {"k": 0}, "k is 0; draft between 1 and 12"),
        (tiny_gpt, {"k": 13}, "k is 13"),
        (tiny_gpt, {"top_p": 0}, "top_p is 0"),
        (tiny_gpt, {"temperature": -1}, "temperature is -1; give 0 for greedy"),
        (tiny_gpt, {"prompt": torch.zeros(3, 2, dtype=torch.long)}, "2 samples from 3 prompts"),
        (tiny_gpt, {"prompt": torch.zeros(2, 13, dtype=torch.long)}, "13 tokens are longer than the context of 12"),
        (lambda: tiny_gpt(num_classes=0), {"cond": torch.tensor([1, 2])}, "labels run from 1 to 2"),
    ],
)
def test_a_pair_that_cannot_work_together_is_refused(draft, options, message):
    with pytest.raises(ValueError, match=message):
        sample_speculative(tiny_gpt(), draft(), 2, **options)


def test_a_target_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        sample_speculative(tiny_gpt().train(), tiny_gpt(1), 2)
