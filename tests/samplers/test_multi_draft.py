"""Many drafts, one kept: every rule has the target's distribution and the acceptance that theory gives it."""

import itertools
from dataclasses import replace
from functools import partial

import pytest
import torch
from tiny import Markov, markov_bench, seeded, sequence_counts, tiny_gpt

from minimal import checkpoints
from minimal.samplers import multi_draft
from minimal.samplers.cached import sample_cached
from minimal.samplers.guidance import Guided
from minimal.samplers.logits import inverse_cdf, probabilities
from minimal.samplers.multi_draft import RULES, Rule, greedy, k_seq, recursive, sample_multi_draft
from minimal.samplers.optimal_transport import (
    best_coupling,
    draft_sets,
    k_seq_acceptance,
    k_seq_scale,
    membership,
    normalised,
    optimal_acceptance,
    recursive_acceptance,
)
from minimal.samplers.speculative import sample_speculative
from minimal.statistics import chi_square, enumerate_joint

THEORY = {
    "k-seq": k_seq_acceptance,
    "recursive": recursive_acceptance,
    "distinct": partial(recursive_acceptance, distinct=True),
    "greedy": partial(optimal_acceptance, scheme="greedy"),
}
SCHEME = {"k-seq": "independent", "recursive": "independent", "distinct": "distinct", "greedy": "greedy"}

# One token: the rules themselves


def random_pair(seed, V=5, related=False):
    torch.manual_seed(seed)
    p, q = torch.distributions.Dirichlet(torch.full((V,), 0.7)).sample((2,))
    return p, (p + q) / 2 if related else q


def draws_of(rule, p, q, k, n, seed):
    """`n` draft tuples (n, k) and outputs (n,)."""
    noise = torch.rand(n, 2 * k + 1, generator=seeded(seed))
    tokens = rule.propose(q.expand(n, -1), noise[:, :k])
    alive = torch.ones(n, k, dtype=torch.bool)
    return tokens, rule.first(p.expand(n, -1), q.expand(n, -1), tokens, alive, noise[:, k:-1], noise[:, -1])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("related", [False, True], ids=["unrelated", "related"])
def test_the_output_follows_the_target_and_is_a_draft_as_often_as_theory_says(name, k, related):
    n, (p, q) = 200_000, random_pair(20 + k, related=related)
    tokens, output = draws_of(RULES[name], p, q, k, n, seed=2)
    assert chi_square(output.bincount(minlength=5), p).p_value > 0.01
    expected = min(1.0, THEORY[name](p.double(), q.double(), k).item())
    hit = (tokens == output[:, None]).any(-1).double().mean().item()
    assert abs(hit - expected) <= 2.576 * (expected * (1 - expected) / n) ** 0.5 + 1e-6  # the 99 % interval


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_drafts_follow_the_law_that_the_theory_is_about(name, k):
    q = random_pair(3)[1]
    tokens, _ = draws_of(RULES[name], q, q, k, 100_000, seed=2)
    sets = torch.zeros(len(tokens), 5, dtype=torch.long).scatter(1, tokens, 1) @ 2 ** torch.arange(5)
    assert chi_square(sets.bincount(minlength=32), draft_sets(q, k, SCHEME[name])).p_value > 0.01


def test_greedy_drafts_are_judged_as_well_as_any_rule_could_and_the_others_are_not():
    p, q = random_pair(4)
    assert abs(THEORY["greedy"](p, q, 3) - membership(best_coupling(p, draft_sets(q, 3, "greedy")))) < 1e-6
    for name in ("k-seq", "recursive", "distinct"):
        assert THEORY[name](p, q, 3) < optimal_acceptance(p, q, 3, SCHEME[name]) - 0.005


@pytest.mark.parametrize("name", ["k-seq", "distinct", "greedy"])
def test_the_program_itself_is_a_rule_and_keeps_as_much_as_it_promised(name):
    n, k, (p, q) = 200_000, 2, random_pair(6)
    sets = draft_sets(q, k, SCHEME[name])
    plan = best_coupling(p, sets)
    tokens = RULES[name].propose(q.expand(n, -1), torch.rand(n, k, generator=seeded(1)))
    drafted = torch.zeros(n, 5, dtype=torch.long).scatter(1, tokens, 1) @ 2 ** torch.arange(5)
    output = inverse_cdf(plan[drafted], torch.rand(n, generator=seeded(2)).double())
    assert chi_square(output.bincount(minlength=5), p).p_value > 0.01
    expected = membership(plan)
    hit = (tokens == output[:, None]).any(-1).double().mean().item()
    assert abs(hit - expected) < 2.576 * (expected * (1 - expected) / n) ** 0.5
    assert hit > THEORY["k-seq"](p, q, k) + 0.005 or name == "k-seq"


@pytest.mark.parametrize("rule", [k_seq, recursive])
def test_dead_chains_have_no_say(rule):
    n, (p, q) = 100_000, random_pair(7)
    noise = torch.rand(n, 9, generator=seeded(1))
    tokens = torch.zeros(n, 4, dtype=torch.long)  # whatever dead chains hold
    tokens[:, [1, 3]] = inverse_cdf(q.expand(n, 2, -1).contiguous(), noise[:, :2])
    alive = torch.tensor([False, True, False, True]).expand(n, -1)
    output = rule(p.expand(n, -1), q.expand(n, -1), tokens, alive, noise[:, 4:8], noise[:, 8])
    assert chi_square(output.bincount(minlength=5), p).p_value > 0.01
    expected = (k_seq_acceptance if rule is k_seq else recursive_acceptance)(p, q, 2).item()
    hit = (tokens[:, [1, 3]] == output[:, None]).any(-1).double().mean().item()
    assert abs(hit - expected) < 0.005


@pytest.mark.parametrize("rule", [k_seq, recursive])
def test_with_no_chain_alive_the_output_is_a_plain_draw_from_the_target(rule):
    p, q = (x.expand(50, -1) for x in random_pair(8))
    u = torch.rand(50, generator=seeded(1))
    dead = torch.zeros(50, 3, dtype=torch.bool)
    assert torch.equal(rule(p, q, torch.zeros(50, 3, dtype=torch.long), dead, torch.zeros(50, 3), u), inverse_cdf(p, u))


# All sequences


def counts_of(model, draft, n=100_000, *, seed, **options):
    return sequence_counts(partial(sample_multi_draft, model, draft, **options), model, n, seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("rule", RULES)
def test_all_sequences_of_a_markov_chain_come_out_as_often_as_they_should(rule, seed):
    model, draft = markov_bench(10), markov_bench(11)
    counts, samples = counts_of(model, draft, k=3, depth=3, rule=rule, seed=seed)
    assert chi_square(counts, enumerate_joint(model, 5)).p_value > 0.01
    assert chi_square(counts, enumerate_joint(draft, 5)).p_value < 1e-6
    assert 0.2 < samples[0].trace.acceptance < 0.8  # both branches were at work


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 3])
@pytest.mark.parametrize("rule", ["k-seq", "greedy"])
def test_all_sequences_of_a_transformer_come_out_as_often_as_they_should(rule, seed):
    sizes = dict(dtype=torch.float32, vocab_size=3, length=4, grid_width=2, dim=8, layers=1)
    model, draft = tiny_gpt(3, **sizes), tiny_gpt(4, **sizes)
    counts, _ = counts_of(model, draft, k=2, depth=2, rule=rule, seed=seed)
    assert chi_square(counts, enumerate_joint(model, 4)).p_value > 0.01
    assert chi_square(counts, enumerate_joint(draft, 4)).p_value < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_guidance_labels_and_filters_are_part_of_the_target(rule):
    model, draft = Guided(markov_bench(12, classes=2, length=4), 1.6), markov_bench(13, classes=2, length=4)
    cond, filters = torch.ones(20_000, dtype=torch.long), {"temperature": 1.3, "top_k": 3}
    counts, _ = counts_of(model, draft, k=4, depth=2, rule=rule, seed=1, cond=cond, **filters)

    def filtered(tokens):
        return probabilities(model.logits(tokens, cond[: len(tokens)]), **filters).log()

    assert chi_square(counts, enumerate_joint(filtered, 4)).p_value > 0.01


# Wrong rules: each is one slip away from a right one


def repairs_with_the_target(p, q, tokens, alive, coins, repair):
    """K-SEQ that draws from p instead of (p - rho q)_+ after all were refused."""
    output = k_seq(p, q, tokens, alive, coins, repair)
    refused = ~(alive & (tokens == output[:, None])).any(-1)
    return torch.where(refused, inverse_cdf(p, repair), output)


def accepts_as_if_alone(p, q, tokens, alive, coins, repair):
    """K-SEQ with the scale of a single draft, rho = 1, and its residual."""
    accepted = alive & (coins * q.gather(-1, tokens) < p.gather(-1, tokens))
    first = tokens.gather(-1, accepted.int().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(accepted.any(-1), first, inverse_cdf(normalised((p - q).clamp(min=0), p), repair))


def counts_the_dead(p, q, tokens, alive, coins, repair):
    """K-SEQ with the scale of all k chains, although some no longer follow."""
    rho = k_seq_scale(p, q, tokens.shape[1])
    accepted = alive & (coins * rho * q.gather(-1, tokens) < p.gather(-1, tokens))
    first = tokens.gather(-1, accepted.int().argmax(-1, keepdim=True)).squeeze(-1)
    return torch.where(accepted.any(-1), first, inverse_cdf(normalised((p - rho * q).clamp(min=0), p), repair))


def forgets_the_refusal(p, q, tokens, alive, coins, repair):
    """Recursive rejection whose second target is p again, and not its residual."""
    output = recursive(p, q, tokens[:, :1], alive[:, :1], coins[:, :1], torch.zeros_like(repair))
    kept = alive[:, 0] & (tokens[:, 0] == output)
    again = recursive(p, q, tokens[:, 1:], alive[:, 1:], coins[:, 1:], repair)
    return torch.where(kept, output, again)


def renormalises(p, q, tokens, alive, coins, repair):
    """Greedy drafts whose last one is judged by p restricted to the rest, renormalised like q."""
    rest_of_p = normalised(p.scatter(-1, tokens[:, :-1], 0), p)
    x, rest = tokens[:, -1:], normalised(q.scatter(-1, tokens[:, :-1], 0), q)
    keep = coins[:, -1:] * rest.gather(-1, x) < rest_of_p.gather(-1, x)
    repaired = inverse_cdf(normalised((p - rest).clamp(min=0), p), repair)
    return torch.where(keep, x, repaired[:, None]).squeeze(-1)


WRONG = {
    "repairs with the target": replace(RULES["k-seq"], first=repairs_with_the_target),
    "accepts as if alone": replace(RULES["k-seq"], first=accepts_as_if_alone, later=accepts_as_if_alone),
    "counts the dead": replace(RULES["k-seq"], later=counts_the_dead),
    "forgets the refusal": replace(RULES["recursive"], first=forgets_the_refusal),
    "puts refused tokens back": replace(RULES["distinct"], first=recursive),
    "distinct drafts taken for independent": replace(RULES["distinct"], first=k_seq),
    "renormalises the target": replace(RULES["greedy"], first=renormalises),
    "greedy beyond the first token": replace(RULES["k-seq"], later=greedy),
}


@pytest.mark.slow
@pytest.mark.parametrize("slip", WRONG)
def test_a_wrong_rule_is_found_out(slip):
    model, draft = markov_bench(10, vocab_size=3, length=3), markov_bench(11, vocab_size=3, length=3)
    counts, _ = counts_of(model, draft, k=3, depth=2, rule=WRONG[slip], seed=1)
    assert chi_square(counts, enumerate_joint(model, 3)).p_value < 1e-6


@pytest.mark.slow
def test_noise_that_drafts_and_coins_share_is_found_out(monkeypatch):
    model, draft = markov_bench(10, vocab_size=3, length=3), markov_bench(11, vocab_size=3, length=3)
    joint, right = enumerate_joint(model, 3), multi_draft.verify
    assert chi_square(counts_of(model, draft, k=3, depth=2, seed=1)[0], joint).p_value > 0.01

    def shares(p, q, drafts, coins, repair, rule):
        return right(p, q, drafts, repair[:, :-1, None].expand_as(coins), repair, rule)

    monkeypatch.setattr(multi_draft, "verify", shares)
    assert chi_square(counts_of(model, draft, k=3, depth=2, seed=1)[0], joint).p_value < 1e-6


# How often, how many passes


def same_everywhere(logits, length):
    return Markov(logits.expand(1, len(logits) + 1, -1), length)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_trace_measures_the_acceptance_that_theory_predicts(name, k):
    p, q = random_pair(9)
    model, draft = same_everywhere(p.log(), 12), same_everywhere(q.log(), 12)
    trace = sample_multi_draft(model, draft, 3000, k=k, depth=1, rule=name, generator=seeded(1)).trace
    expected = THEORY[name](p.double(), q.double(), k).item()
    assert trace.drafted > 10_000
    assert abs(trace.acceptance - expected) < 2.576 * (expected * (1 - expected) / trace.drafted) ** 0.5


def survivors(p, q, k):
    """Chance (k + 1, k + 1) that of `row` independent drafts, judged by K-SEQ, `column` hold the output."""
    table = torch.zeros(k + 1, k + 1, dtype=torch.float64)
    for alive in range(1, k + 1):
        accept = (p / (k_seq_scale(p, q, alive) * q)).clamp(max=1)
        for tokens in itertools.product(range(len(q)), repeat=alive):
            none_yet = q[list(tokens)].prod()
            for x in tokens:
                table[alive, tokens.count(x)] += none_yet * accept[x]
                none_yet = none_yet * (1 - accept[x])
            table[alive, 0] += none_yet
    return table


def passes_needed(kept, length):
    """Mean number of rounds until `length` tokens are there, when a round emits 1 + i of them with chance kept[i]."""
    rounds = torch.zeros(length + 1, dtype=torch.float64)  # by number of tokens still missing
    for missing in range(1, length + 1):
        rounds[missing] = 1 + sum(chance * rounds[max(missing - 1 - i, 0)] for i, chance in enumerate(kept.tolist()))
    return rounds[length].item()


@pytest.mark.parametrize("name", ["k-seq", "distinct", "greedy"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_number_of_target_passes_is_as_predicted(name, k):
    n, N, depth, (p, q) = 2000, 24, 3, random_pair(10, V=4, related=True)
    model, draft = same_everywhere(p.log(), N), same_everywhere(q.log(), N)
    p, q = p.double(), q.double()
    if name == "k-seq":
        state, kept = torch.eye(k + 1, dtype=torch.float64)[k], []
        for _ in range(depth):
            state = state @ survivors(p, q, k)
            kept.append(state[0].item())
            state[0] = 0
        kept = torch.tensor([*kept, state.sum()], dtype=torch.float64)
    else:  # behind the first token a single chain is left
        first, later = THEORY[name](p, q, k).item(), torch.minimum(p, q).sum().item()
        reached = [1.0] + [first * later**i for i in range(depth)] + [0.0]
        kept = -torch.tensor(reached, dtype=torch.float64).diff()
    kept = kept / kept.sum()  # p and q were float32
    predicted = passes_needed(kept, N)
    trace = sample_multi_draft(model, draft, n, k=k, depth=depth, rule=name, generator=seeded(1)).trace
    assert abs(trace.rows["target"] / n - predicted) < 0.01 * predicted  # about three standard errors
    assert trace.rows["draft"] == depth * trace.rows["target"]


def test_more_chains_need_fewer_passes():
    model, draft = markov_bench(14, length=20), markov_bench(15, length=20)
    for rule in RULES:
        passes = [
            sample_multi_draft(model, draft, 200, k=k, depth=3, rule=rule, generator=seeded(1)).trace.rows["target"]
            for k in (1, 2, 4)
        ]
        assert passes[0] > passes[1] > passes[2]


# Identities


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("n", [1, 5])
def test_a_single_chain_is_speculative_sampling_token_for_token(rule, n):
    model, draft = tiny_gpt(), tiny_gpt(1)
    for depth in (1, 3, 12):
        one = sample_multi_draft(model, draft, n, k=1, depth=depth, rule=rule, generator=seeded(1))
        other = sample_speculative(model, draft, n, k=depth, generator=seeded(1))
        assert torch.equal(one.tokens, other.tokens)
        for counter in ("forwards", "rows", "positions", "drafted", "accepted"):
            assert getattr(one.trace, counter) == getattr(other.trace, counter)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("k, depth", [(3, 1), (3, 5)])
def test_greedy_tokens_are_those_of_plain_greedy_decoding(rule, k, depth, task):
    model, n, options = task
    options = options | {"temperature": 0}
    expected = sample_cached(model, n, **options).tokens
    sample = sample_multi_draft(model, tiny_gpt(1), n, k=k, depth=depth, rule=rule, generator=seeded(0), **options)
    assert torch.equal(sample.tokens, expected)


@pytest.mark.parametrize("rule", RULES)
def test_the_shipped_digits_models_draw_the_same_digits_greedily(rule):
    model, draft = (checkpoints.load(name).double() for name in ("digits_ar", "digits_draft"))
    cond = torch.tensor([2, 3, 8])
    expected = sample_cached(model, 3, cond=cond, temperature=0)
    fast = sample_multi_draft(model, draft, 3, rule=rule, cond=cond, temperature=0)
    assert torch.equal(fast.tokens, expected.tokens)
    assert fast.trace.rows["target"] < 0.45 * expected.trace.rows["target"]


def test_at_temperature_zero_greedy_drafts_are_the_runners_up_and_save_passes():
    model, draft, cond = tiny_gpt(), tiny_gpt(1), torch.arange(40) % 4

    def passes(rule):
        return sample_multi_draft(model, draft, 40, k=4, rule=rule, cond=cond, temperature=0).trace.rows["target"]

    assert passes("greedy") < 0.9 * passes("k-seq")  # equal chains are of no use


@pytest.mark.parametrize("filters", [{}, {"temperature": 1.5, "top_p": 0.7}], ids=["plain", "filtered"])
@pytest.mark.parametrize("rule", ["k-seq", "recursive"])
def test_a_draft_equal_to_the_target_is_always_believed(rule, filters):
    model, n, depth = tiny_gpt(), 5, 3
    sample = sample_multi_draft(model, model, n, k=3, depth=depth, rule=rule, generator=seeded(1), **filters)
    assert sample.trace.acceptance == 1 and sample.trace.drafted > 0
    assert sample.trace.forwards["target"] == -(-model.length // (depth + 1))


@pytest.mark.parametrize("rule", ["k-seq", "recursive"])
def test_drafts_that_the_target_never_says_are_never_believed_and_do_no_harm(rule):
    left, right = torch.tensor([1.0, 2.0, 0.0, 0.0]).log(), torch.tensor([0.0, 0.0, 3.0, 1.0]).log()
    model, draft = same_everywhere(left, 3), same_everywhere(right, 3)
    counts, samples = counts_of(model, draft, 10_000, k=3, depth=2, rule=rule, seed=1)
    assert all(sample.trace.accepted == 0 and sample.trace.forwards["target"] == 3 for sample in samples)
    assert chi_square(counts, enumerate_joint(model, 3)).p_value > 0.01


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("guided", [False, True])
def test_each_row_goes_its_own_pace_as_if_it_were_alone(rule, guided):
    model, draft, n, k, depth = tiny_gpt(), tiny_gpt(1), 6, 3, 2
    model = Guided(model, torch.linspace(0, 3, model.length)) if guided else model
    draft = Guided(draft, 1.5) if guided else draft
    cond, prompt = torch.arange(n) % 4, torch.randint(5, (n, 2), generator=seeded(9))
    options = {"k": k, "depth": depth, "rule": rule}
    together = sample_multi_draft(model, draft, n, cond=cond, prompt=prompt, generator=seeded(1), **options)
    forwards = []
    for i in range(n):
        generator = seeded(1)
        torch.rand(i, model.length + depth + 1, 2 * k + 1, generator=generator)  # the noise of the rows above
        row = {"cond": cond[i : i + 1], "prompt": prompt[i : i + 1]}
        alone = sample_multi_draft(model, draft, 1, generator=generator, **row, **options)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        forwards.append(alone.trace.forwards["target"])
    assert together.trace.forwards["target"] == max(forwards)
    assert together.trace.rows["target"] == sum(forwards) and min(forwards) < max(forwards)


@pytest.mark.parametrize("length", [1, 5, 11, 12])
@pytest.mark.parametrize("rule", ["k-seq", "greedy"])
def test_a_prompt_of_any_length_is_continued(rule, length):
    model, draft = tiny_gpt(), tiny_gpt(1)
    prompt = torch.randint(5, (4, length), generator=seeded(0))
    sample = sample_multi_draft(model, draft, 4, prompt=prompt, rule=rule, generator=seeded(1))
    assert torch.equal(sample.tokens[:, :length], prompt) and sample.tokens.shape == (4, 12)
    options = {"temperature": 0, "prompt": prompt}
    fast = sample_multi_draft(model, draft, 4, rule=rule, **options).tokens
    assert torch.equal(fast, sample_cached(model, 4, **options).tokens)


@pytest.mark.parametrize("rule", RULES)
def test_as_many_drafts_as_there_are_tokens_and_positions_are_allowed(rule):
    model, draft = tiny_gpt(), tiny_gpt(1)
    sample = sample_multi_draft(model, draft, 10, k=5, depth=12, rule=rule, generator=seeded(0))
    assert sample.tokens.shape == (10, 12) and sample.trace.forwards["target"] > 1


@pytest.mark.parametrize("rule", ["distinct", "greedy"])
@pytest.mark.parametrize("filters", [{"top_k": 2}, {"temperature": 0}, {"temperature": 0.01}], ids=str)
def test_filters_that_leave_fewer_tokens_than_drafts_do_no_harm(rule, filters):
    model, draft = tiny_gpt(), tiny_gpt(1)
    tokens = sample_multi_draft(model, draft, 50, k=5, rule=rule, generator=seeded(0), **filters).tokens
    p = probabilities(model.logits(tokens), **filters).gather(-1, tokens[..., None])
    assert (p > 0).all()


def test_a_longer_draft_serves_a_shorter_target():
    model, draft = tiny_gpt(), tiny_gpt(1, length=20)
    fast = sample_multi_draft(model, draft, 3, temperature=0).tokens
    assert torch.equal(fast, sample_cached(model, 3, temperature=0).tokens)


def test_the_trace_counts_every_forward_of_both_networks_and_every_position_of_every_chain():
    model, draft, n, k, depth = tiny_gpt(), tiny_gpt(1), 4, 3, 2
    trace = sample_multi_draft(model, draft, n, k=k, depth=depth, generator=seeded(0)).trace
    assert trace.forwards["draft"] == depth * trace.forwards["target"]
    assert trace.positions["target"] == k * (depth + 1) * trace.rows["target"]
    assert trace.positions["draft"] == k * (trace.rows["draft"] + trace.rows["target"] - n)
    assert 0 < trace.accepted < trace.drafted and trace.seconds > 0


def test_the_same_seed_gives_the_same_sample_and_samples_can_be_trained_on():
    model, draft = tiny_gpt().requires_grad_(True), tiny_gpt(1)
    first, again, other = (sample_multi_draft(model, draft, 4, generator=seeded(s)).tokens for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    model.loss(first)[0].backward()


@pytest.mark.parametrize("rule", RULES)
def test_low_precision_models_sample_tokens_of_the_vocabulary(rule):
    model, draft = tiny_gpt(dtype=torch.bfloat16), tiny_gpt(1, dtype=torch.float32)
    tokens = sample_multi_draft(model, draft, 20, rule=rule, generator=seeded(0), top_p=0.9).tokens
    assert 0 <= tokens.min() and tokens.max() < 5


def test_a_rule_of_ones_own_may_be_given():
    trusting = Rule(
        RULES["k-seq"].propose, lambda p, q, tokens, *_: tokens[:, 0], lambda p, q, tokens, *_: tokens[:, 0]
    )
    trace = sample_multi_draft(tiny_gpt(), tiny_gpt(1), 3, rule=trusting).trace
    assert trace.acceptance == 1


# Bad input


@pytest.mark.parametrize(
    "draft, options, message",
    [
        (lambda: tiny_gpt(vocab_size=6), {}, "the draft has 6 tokens and the target 5"),
        (lambda: tiny_gpt(length=8), {}, "context of 8 is shorter than the target's 12"),
        (lambda: tiny_gpt().train(), {}, "the draft is in training mode"),
        (tiny_gpt, {"k": 0}, "k is 0; at least one draft"),
        (tiny_gpt, {"k": -2}, "k is -2"),
        (tiny_gpt, {"k": 6, "rule": "distinct"}, "only 5 different tokens"),
        (tiny_gpt, {"k": 6, "rule": "greedy"}, "only 5 different tokens"),
        (tiny_gpt, {"depth": 0}, "depth is 0; draft between 1 and 12"),
        (tiny_gpt, {"depth": 13}, "depth is 13"),
        (tiny_gpt, {"rule": "luck"}, "no rule 'luck'; there are k-seq, recursive, distinct, greedy"),
        (tiny_gpt, {"top_p": 0}, "top_p is 0"),
        (tiny_gpt, {"prompt": torch.zeros(3, 2, dtype=torch.long)}, "2 samples from 3 prompts"),
        (lambda: tiny_gpt(num_classes=0), {"cond": torch.tensor([1, 2])}, "labels run from 1 to 2"),
    ],
)
def test_a_pair_that_cannot_work_together_is_refused(draft, options, message):
    with pytest.raises(ValueError, match=message):
        sample_multi_draft(tiny_gpt(), draft(), 2, **options)


def test_a_target_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        sample_multi_draft(tiny_gpt().train(), tiny_gpt(1), 2)
