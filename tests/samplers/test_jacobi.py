"""Jacobi decoding: one fixed point, the sequential sample, from every guess, with every block, in at most N passes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import Markov, counting_chain, seeded, tiny_gpt

from minimal.samplers import jacobi
from minimal.samplers.cached import sample_cached
from minimal.samplers.jacobi import gumbel_draw, sample_jacobi, settled
from minimal.samplers.logits import probabilities
from minimal.statistics import chi_square


@pytest.mark.parametrize("block", [1, 2, 5, 12])
def test_the_samples_are_those_of_sequential_decoding(block, task):
    model, n, options = task
    expected = sample_cached(model, n, generator=seeded(1), **options).tokens
    sample = sample_jacobi(model, n, block=block, generator=seeded(1), **options)
    assert torch.equal(sample.tokens, expected)
    assert sample.trace.forwards["target"] <= model.length - len(options.get("prompt", expected[:, :0]).T)


@pytest.mark.parametrize("options", [{}, {"temperature": 0}], ids=["sampled", "greedy"])
@pytest.mark.parametrize("block", [3, 12])
def test_any_first_guess_leads_to_the_same_sample(block, options):
    model, n = tiny_gpt(), 4
    expected = sample_cached(model, n, generator=seeded(1), **options).tokens
    wrong_throughout = (expected + 1) % model.vocab_size
    for guess in (expected, wrong_throughout, *(torch.randint(5, (n, 12), generator=seeded(s)) for s in range(5))):
        sample = sample_jacobi(model, n, block=block, guess=guess, generator=seeded(1), **options)
        assert torch.equal(sample.tokens, expected)
        assert sample.trace.forwards["target"] <= model.length


def test_each_row_settles_as_if_it_were_alone():
    model, n = tiny_gpt(), 5
    cond = torch.arange(n) % 4
    together = sample_jacobi(model, n, block=4, cond=cond, generator=seeded(1))
    passes = []
    for i in range(n):
        generator = seeded(1)
        torch.rand(i, model.length, generator=generator)  # the noise of the rows above
        alone = sample_jacobi(model, 1, block=4, cond=cond[i : i + 1], generator=generator)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        passes.append(alone.trace.forwards["target"])
    assert together.trace.forwards["target"] == max(passes) and together.trace.rows["target"] == sum(passes)


# Gumbel noise


def one_by_one(model, noise, cond=None, **filters):
    """Sequential sampling by the Gumbel rule, spelled out: noise (n, N, V)."""
    canvas = torch.zeros(noise.shape[:2], dtype=torch.long)
    for j in range(model.length):
        p = probabilities(model.logits(canvas, cond)[:, j], **filters)
        canvas[:, j] = (p.log() - (-noise[:, j].log()).log()).argmax(-1)
    return canvas


@pytest.mark.parametrize("filters", [{}, {"temperature": 0}, {"temperature": 1.3, "top_k": 3}], ids=str)
@pytest.mark.parametrize("block", [1, 5, 12])
def test_with_gumbel_noise_the_samples_are_those_of_the_gumbel_rule_one_by_one(block, filters):
    model, n = tiny_gpt(), 6
    expected = one_by_one(model, torch.rand(n, 12, 5, generator=seeded(1)), **filters)
    for guess in (None, (expected + 1) % 5):
        sample = sample_jacobi(model, n, block=block, guess=guess, gumbel=True, generator=seeded(1), **filters)
        assert torch.equal(sample.tokens, expected)


def test_gumbel_noise_selects_tokens_as_often_as_they_should_be():
    logits = torch.randn(6, generator=seeded(0))
    u = torch.rand(50_000, 6, generator=seeded(1))
    counts = gumbel_draw(logits.expand_as(u), u, temperature=1.5).bincount(minlength=6)
    assert chi_square(counts, probabilities(logits, temperature=1.5)).p_value > 0.01
    assert chi_square(counts, probabilities(logits)).p_value < 1e-6
    assert gumbel_draw(logits, torch.zeros(6).index_fill(0, torch.tensor(3), 0.5)) == 3  # the number 0 never wins


# How many passes


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("block", [1, 2, 5, 12])
def test_where_each_token_decides_the_next_a_wrong_start_takes_as_many_passes_as_tokens(block, n):
    model = counting_chain(vocab_size=7, length=12)
    sample = sample_jacobi(model, n, block=block, guess=torch.full((n, 12), 3), temperature=0)
    assert sample.tokens.tolist() == [[i % 7 for i in range(12)]] * n
    assert sample.trace.forwards["target"] == 12 and sample.trace.accepted == 0


@pytest.mark.parametrize("block", [1, 3, 5, 12])
def test_a_right_guess_takes_one_pass_per_block(block):
    model = tiny_gpt()
    answer = sample_cached(model, 3, generator=seeded(1)).tokens
    trace = sample_jacobi(model, 3, block=block, guess=answer, generator=seeded(1)).trace
    assert trace.forwards["target"] == -(-12 // block)
    assert trace.accepted == trace.drafted or block == 1


def test_tokens_that_ignore_their_context_settle_in_two_passes():
    table = torch.randn(5, generator=seeded(0)).double().expand(1, 6, 5)
    trace = sample_jacobi(Markov(table, 12), 50, block=12, generator=seeded(1)).trace
    assert trace.forwards["target"] == 2


def test_the_trace_counts_rows_positions_and_what_came_for_free():
    model, n, block = tiny_gpt(), 4, 5
    trace = sample_jacobi(model, n, block=block, generator=seeded(1)).trace
    assert trace.positions["target"] == block * trace.rows["target"]
    assert trace.accepted + trace.rows["target"] == n * model.length  # each pass settles one token, and the free ones
    assert 0 < trace.accepted < trace.drafted
    prompt = torch.zeros(n, 4, dtype=torch.long)
    prompted = sample_jacobi(model, n, block=block, prompt=prompt, generator=seeded(1)).trace
    assert prompted.positions["target"] == block * prompted.rows["target"] + 4 * n


# What is settled


@pytest.mark.parametrize(
    "old, new, count",
    [
        ("aaaa", "baaa", 1),  # the first entry never depends on the others
        ("aaaa", "abaa", 2),
        ("aaaa", "aaba", 3),
        ("aaaa", "aaab", 4),
        ("aaaa", "aaaa", 4),
        ("aaaa", "bbbb", 1),
        ("aaaa", "abab", 2),  # entry 3 is unchanged, but was computed from a wrong entry 2
        ("aaaa", "baab", 1),
        ("a", "a", 1),
        ("a", "b", 1),
    ],
)
def test_entries_up_to_and_including_the_first_change_are_settled(old, new, count):
    old, new = (torch.tensor([[ord(letter) for letter in word]]) for word in (old, new))
    assert settled(old, new).tolist() == [count]


@given(st.integers(1, 6).flatmap(lambda n: st.lists(st.lists(st.booleans(), min_size=n, max_size=n), min_size=1)))
def test_settled_counts_each_row_by_itself(changes):
    new = torch.tensor(changes).long()
    expected = [row.index(True) + 1 if True in row else len(row) for row in changes]
    assert settled(torch.zeros_like(new), new).tolist() == expected


def keeps_all_unchanged(old, new):
    """Trusts every entry that did not change, also behind the first change."""
    return (old == new).sum(-1).clamp(min=1)


def one_too_many(old, new):
    return (settled(old, new) + 1).clamp(max=old.shape[1])


def last_unchanged(old, new):
    position = torch.arange(1, old.shape[1] + 1)
    return ((old == new) * position).amax(-1).clamp(min=1)


@pytest.mark.parametrize("rule", [keeps_all_unchanged, one_too_many, last_unchanged])
def test_trusting_more_than_that_is_found_out(rule, monkeypatch):
    model = tiny_gpt()
    expected = sample_cached(model, 20, generator=seeded(1)).tokens
    monkeypatch.setattr(jacobi, "settled", rule)
    assert not torch.equal(sample_jacobi(model, 20, block=6, generator=seeded(1)).tokens, expected)


def test_samples_can_be_trained_on():
    model = tiny_gpt().requires_grad_(True)
    model.loss(sample_jacobi(model, 4, block=4, generator=seeded(0)).tokens)[0].backward()


# Bad input


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block": 0}, "block is 0; solve for between 1 and 12"),
        ({"block": 13}, "block is 13"),
        ({"block": 4, "guess": torch.zeros(2, 12)}, "tokens must be long"),
        ({"block": 4, "guess": torch.full((2, 12), 5)}, "tokens run from 5 to 5"),
        ({"block": 4, "guess": torch.zeros(2, 7, dtype=torch.long)}, r"guess .*\(2, 12\).*\(2, 7\)"),
        ({"block": 4, "guess": torch.zeros(1, 12, dtype=torch.long)}, r"guess .*\(2, 12\).*\(1, 12\)"),
        ({"block": 4, "temperature": -1}, "temperature is -1"),
        ({"block": 4, "cond": torch.tensor([0, 7])}, "labels run from 0 to 7"),
    ],
)
def test_what_cannot_be_solved_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample_jacobi(tiny_gpt(), 2, **options)


def test_a_model_in_training_mode_is_refused():
    with pytest.raises(ValueError, match=r"call model.eval\(\)"):
        sample_jacobi(tiny_gpt().train(), 2, block=4)
