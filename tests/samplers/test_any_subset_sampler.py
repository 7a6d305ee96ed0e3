"""ASSD: every completion as often as the joint in its order says, and never more passes than tokens."""

from functools import partial

import pytest
import torch
from tiny import seeded, wild

from minimal.ar.any_subset import AnySubsetGPT, ranks
from minimal.nn.token_model import TokenModel
from minimal.samplers import any_subset
from minimal.samplers.any_subset import sample_any_subset
from minimal.samplers.cached import sample_uncached
from minimal.samplers.logits import inverse_cdf
from minimal.samplers.speculative import verify
from minimal.statistics import all_sequences, chi_square, sequence_index


class Table(TokenModel):
    """The face of an any-subset model on a joint (V^N,) that is written down: exact conditionals for every set."""

    def __init__(self, joint, vocab_size, length):
        super().__init__()
        self.joint = torch.nn.Parameter(joint, requires_grad=False)
        self.vocab_size, self.length, self.num_classes = vocab_size, length, 0
        self.sequences = all_sequences(vocab_size, length)
        self.eval()

    def logits(self, tokens, cond=None, *, levels, asked):
        levels = levels.expand_as(tokens)
        visible = levels[:, None] < levels.gather(1, asked)[..., None]  # (B, Q, N)
        agrees = self.sequences == tokens[:, None]  # (B, V^N, N)
        fits = (agrees[:, None] | ~visible[:, :, None]).all(-1) * self.joint  # (B, Q, V^N)
        values = torch.nn.functional.one_hot(self.sequences, self.vocab_size).to(self.joint.dtype)  # (V^N, N, V)
        return torch.einsum("bqs,bqsv->bqv", fits, values.transpose(0, 1)[asked]).log()


def table(seed, vocab_size=2, length=6):
    """A peaked joint in which every sequence is possible."""
    weights = torch.rand(vocab_size**length, generator=seeded(seed)).double() ** 4 + 0.002
    return Table(weights / weights.sum(), vocab_size, length)


def tiny_subset(seed=0, dtype=torch.float32, **changes):
    sizes = dict(vocab_size=3, length=4, num_classes=2, grid_width=2, dim=8, layers=2, heads=2, hidden=16)
    return wild(AnySubsetGPT(**(sizes | changes)), 100 * seed, std=0.6).to(dtype)


def holes(text):
    """'.1' -> (2,): -1 where the token is hidden."""
    return torch.tensor([-1 if character == "." else int(character) for character in text])


def completions(forced, vocab_size):
    """All sequences (C, N) that agree with `forced` (N,), in lexicographic order of their hidden tokens."""
    everything = all_sequences(vocab_size, len(forced))
    return everything[((everything == forced) | (forced < 0)).all(1)]


def counts_of(model, forced, n, *, seed, parts=10, sampler=sample_any_subset, **options):
    generator = seeded(seed)
    known = forced.expand(n // parts, -1)
    tokens = torch.cat(
        [sampler(model, n // parts, forced=known, generator=generator, **options).tokens for _ in range(parts)]
    )
    assert torch.equal(tokens[:, forced >= 0], forced[forced >= 0].expand(n, -1))
    hidden = tokens[:, forced < 0]
    return sequence_index(hidden, model.vocab_size).bincount(minlength=model.vocab_size ** hidden.shape[1])


def law(model, forced):
    """The exact distribution of the completions."""
    everything = completions(forced, model.vocab_size)
    if isinstance(model, Table):
        joint = model.joint[sequence_index(everything, model.vocab_size)]
    else:
        joint = model.logprob(everything, known=(forced >= 0).expand(len(everything), -1)).double().exp()
    return joint / joint.sum()


# Distribution


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("known", ["......", "1.....", ".0..1.", "...01.", "....10"])
def test_all_completions_of_a_table_come_out_as_often_as_they_should(known, seed):
    model, forced = table(3), holes(known)
    counts = counts_of(model, forced, 100_000, k=4, seed=seed)
    assert chi_square(counts, law(model, forced)).p_value > 0.01
    wrong = law(table(4), forced)
    assert chi_square(counts, wrong).p_value < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("known", ["....", "..1.", "2..0"])
def test_all_completions_of_a_transformer_come_out_as_often_as_they_should(known, seed):
    """Its conditionals do not agree across sets: the joint is the product in the order in use."""
    model, forced = tiny_subset(3), holes(known)
    counts = counts_of(model, forced, 100_000, k=4, seed=seed)
    assert chi_square(counts, law(model, forced)).p_value > 0.01
    everything = completions(forced, 3)
    backwards = torch.where(forced >= 0, 0, (forced < 0).sum() + 1 - ranks(forced >= 0))
    logits = model.logits(everything, levels=backwards).double().log_softmax(-1)
    other = logits.gather(-1, everything[..., None]).squeeze(-1)[:, forced < 0].sum(-1).exp()
    assert chi_square(counts, other).p_value < 1e-6


def wrong_residual(p, q, drafts, coins, repair):
    """After a refusal draws from p instead of (p - q)_+."""
    kept, _ = verify(p, q, drafts, coins, repair)
    return kept, inverse_cdf(p[torch.arange(len(p)), kept], repair[torch.arange(len(p)), kept])


def keeps_everything(p, q, drafts, coins, repair):
    return verify(p, q, drafts, torch.zeros_like(coins), repair)


@pytest.mark.parametrize("rule", [wrong_residual, keeps_everything])
def test_a_wrong_rule_is_found_out(rule, monkeypatch):
    model, forced = table(3, vocab_size=3, length=4), holes("....")
    draw = partial(counts_of, model, forced, 8_000, seed=1, parts=2, k=4)
    assert chi_square(draw(), law(model, forced)).p_value > 0.01
    monkeypatch.setattr(any_subset, "verify", rule)
    assert chi_square(draw(), law(model, forced)).p_value < 1e-6


def test_a_model_whose_known_tokens_read_the_drafts_is_refused(monkeypatch):
    from minimal.ar import any_subset as ar
    from minimal.nn.masks import Mask

    everything = Mask(lambda q, k: (q.level > -2) & (k.level > -2))
    monkeypatch.setattr(ar, "not_after", everything)
    with pytest.raises(ValueError, match="disagree on the first place"):
        sample_any_subset(tiny_subset(), 50, forced=holes("1...").expand(50, -1), generator=seeded(0))


# What it costs


def passes_of_each(model, n, seed=0, **options):
    """Passes (n,) of `n` samples drawn alone, and their hidden tokens."""
    generator, rows = seeded(seed), []
    for _ in range(n):
        trace = sample_any_subset(model, 1, generator=generator, **options).trace
        rows.append(sum(trace.forwards.values()))
    return torch.tensor(rows)


@pytest.mark.parametrize("k", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("known", ["......", ".0..1."])
def test_no_sample_takes_more_passes_than_tokens(known, k):
    model, forced = table(3), holes(known)
    tokens = int((forced < 0).sum())
    passes = passes_of_each(model, 150, forced=forced[None], k=k)
    assert (passes <= tokens).all()
    if k <= 2:
        assert (passes == tokens).all()  # two passes for two tokens: nothing gained
    else:
        assert passes.float().mean() < 0.9 * tokens and (passes >= 2 * (tokens // k)).all()


def test_the_bound_holds_for_drafts_that_are_always_refused():
    """x_1 is a fair coin, every other token its copy: drafts agree by chance."""
    joint = torch.full((2**6,), 1e-9).double()
    joint[0] = joint[-1] = 0.5
    passes = passes_of_each(Table(joint / joint.sum(), 2, 6), 200, k=6)
    assert (passes <= 6).all() and passes.max() == 4  # one round settles the coin, the next one everything


def test_a_single_hidden_token_takes_one_pass_and_none_takes_none():
    model = table(3)
    assert passes_of_each(model, 3, forced=holes("01.110")[None], k=4).tolist() == [1, 1, 1]
    sample = sample_any_subset(model, 1, forced=holes("011110")[None])
    assert sample.tokens.tolist() == [[0, 1, 1, 1, 1, 0]] and not sample.trace.forwards


def test_independent_tokens_are_never_refused():
    p = torch.tensor([0.7, 0.3]).double()
    joint = p[all_sequences(2, 6)].prod(1)
    trace = sample_any_subset(Table(joint, 2, 6), 500, k=6, generator=seeded(0)).trace
    assert trace.acceptance == 1 and trace.forwards == {"target": 2}


def test_acceptance_is_one_minus_total_variation_of_the_guesses_that_were_judged(monkeypatch):
    judged = []

    def watched(p, q, drafts, coins, repair):
        kept, token = verify(p, q, drafts, coins, repair)
        looked_at = torch.arange(1, 3) <= kept[:, None]  # the first one needs no coin
        judged.append(torch.minimum(p[:, :-1], q).sum(-1)[:, 1:][looked_at])
        return kept, token

    monkeypatch.setattr(any_subset, "verify", watched)
    model = table(5, vocab_size=3, length=3)  # after one round at most one token is left, which nobody judges
    trace = sample_any_subset(model, 10_000, k=3, generator=seeded(1)).trace
    [overlap] = judged
    assert trace.drafted == len(overlap)
    error = (overlap * (1 - overlap)).sum().sqrt().item() / len(overlap)
    assert abs(trace.acceptance - overlap.mean().item()) < 2.576 * error  # the 99 % interval
    assert 0.2 < trace.acceptance < 0.95 and error < 0.01


# The same samples


def test_one_token_a_pass_is_the_plain_sampler():
    model, cond = tiny_subset(length=12, grid_width=4, dtype=torch.float64), torch.tensor([0, 1, 2])
    ours = sample_any_subset(model, 3, k=1, cond=cond, temperature=0).tokens
    assert torch.equal(ours, sample_uncached(model, 3, cond=cond, temperature=0).tokens)


@pytest.mark.parametrize("k", [2, 3, 5, 12])
def test_greedy_samples_are_those_of_one_token_a_pass(k):
    model = tiny_subset(5, length=12, grid_width=4, vocab_size=5, dtype=torch.float64)
    forced = torch.where(torch.rand(40, 12, generator=seeded(0)) < 0.4, 2, -1)
    slow, fast = (sample_any_subset(model, 40, k=size, forced=forced, temperature=0).tokens for size in (1, k))
    assert torch.equal(slow, fast)


@pytest.mark.parametrize("k", [1, 3, 12])
def test_a_sample_does_not_depend_on_its_batch(k):
    model = tiny_subset(length=12, grid_width=4, dtype=torch.float64)
    forced = torch.where(torch.rand(5, 12, generator=seeded(0)) < torch.linspace(0, 1, 5)[:, None], 2, -1)
    cond = torch.tensor([0, 1, 2, 0, 1])
    together = sample_any_subset(model, 5, k=k, cond=cond, forced=forced, generator=seeded(3)).tokens
    noise = seeded(3)
    for b in range(5):
        alone = sample_any_subset(model, 1, k=k, cond=cond[b : b + 1], forced=forced[b : b + 1], generator=noise)
        assert torch.equal(alone.tokens[0], together[b])


def test_a_prompt_is_known_tokens_in_front():
    model = tiny_subset(length=12, grid_width=4, dtype=torch.float64)
    prompt = torch.randint(3, (4, 5), generator=seeded(0))
    forced = torch.cat((prompt, torch.full((4, 7), -1)), dim=1)
    a = sample_any_subset(model, 4, prompt=prompt, generator=seeded(1)).tokens
    b = sample_any_subset(model, 4, forced=forced, generator=seeded(1)).tokens
    assert torch.equal(a, b) and torch.equal(a[:, :5], prompt)


@pytest.mark.slow
def test_filters_are_part_of_the_target():
    model, forced = tiny_subset(3), holes("....")
    filters = {"temperature": 1.4, "top_k": 2}
    counts = counts_of(model, forced, 40_000, k=4, seed=1, **filters)
    slow = counts_of(model, forced, 40_000, k=1, seed=2, **filters)
    possible = (counts + slow) > 0
    expected = (counts + slow)[possible].double() / 80_000
    assert possible.sum() == 16
    statistic = ((counts - slow)[possible].double() ** 2 / (80_000 * expected)).sum().item()
    assert statistic < 30.6  # the 99 % point of chi-square with 15 degrees of freedom


# Bad input


def test_bad_input():
    model = tiny_subset()
    for k in (0, -1):
        with pytest.raises(ValueError, match="at least 1 token"):
            sample_any_subset(model, 2, k=k)
    for forced in (torch.full((2, 3), -1), torch.full((1, 4), -1), torch.full((4,), -1)):
        with pytest.raises(ValueError, match=r"forced must be \(2, 4\)"):
            sample_any_subset(model, 2, forced=forced)
    with pytest.raises(ValueError, match="vocabulary"):
        sample_any_subset(model, 1, forced=torch.full((1, 4), 7))
    with pytest.raises(ValueError, match="temperature"):
        sample_any_subset(model, 1, temperature=-1)
    with pytest.raises(ValueError, match="eval"):
        sample_any_subset(tiny_subset().train(), 1)
