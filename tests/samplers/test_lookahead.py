"""Lookahead decoding: the sequential sample, whatever the window guesses and whatever the pool holds."""

import pytest
import torch
from tiny import counting_chain, markov_bench, seeded, tiny_gpt

from minimal.samplers import lookahead
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast import FastRaster
from minimal.samplers.lookahead import Pool, longest, sample_lookahead, tree


@pytest.mark.parametrize("W, N, g", [(1, 2, 1), (5, 4, 5), (3, 2, 4), (1, 6, 2), (10, 4, 1)])
def test_the_samples_are_those_of_sequential_decoding(W, N, g, task):
    model, n, options = task
    expected = sample_cached(model, n, generator=seeded(1), **options).tokens
    sample = sample_lookahead(model, n, W=W, N=N, g=g, generator=seeded(1), **options)
    assert torch.equal(sample.tokens, expected)
    assert sample.trace.forwards["target"] <= model.length - len(options.get("prompt", expected[:, :0]).T)


@pytest.mark.parametrize("temperature", [0, 0.3, 1])
def test_one_image_and_a_fast_model_give_the_same_tokens(temperature):
    model = FastRaster(tiny_gpt(length=40, grid_width=None))
    options = dict(temperature=temperature, prompt=torch.tensor([[1, 2, 3]]), generator=seeded(1))
    expected = sample_cached(model, 1, **options).tokens
    assert torch.equal(sample_lookahead(model, 1, **options | {"generator": seeded(1)}).tokens, expected)


def test_each_row_goes_its_own_pace_as_if_it_were_alone():
    model, n = tiny_gpt(), 6
    together = sample_lookahead(model, n, W=3, N=3, g=2, temperature=0.5, generator=seeded(1))
    passes = []
    for i in range(n):
        generator = seeded(1)
        torch.rand(i, model.length, generator=generator)  # the noise of the rows above
        alone = sample_lookahead(model, 1, W=3, N=3, g=2, temperature=0.5, generator=generator)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        passes.append(alone.trace.forwards["target"])
    assert together.trace.rows["target"] == sum(passes) and min(passes) < max(passes)


@pytest.mark.parametrize("length", [1, 5, 11, 12])
def test_a_prompt_of_any_length_is_continued(length):
    model, prompt = tiny_gpt(), torch.randint(5, (4, length), generator=seeded(0))
    expected = sample_cached(model, 4, prompt=prompt, generator=seeded(1)).tokens
    assert torch.equal(sample_lookahead(model, 4, prompt=prompt, generator=seeded(1)).tokens, expected)


# How many passes


def test_a_text_that_repeats_itself_comes_a_phrase_at_a_time():
    """Jacobi iteration alone gains nothing on the counting chain. Once the pool can count, a pass brings N tokens."""
    model = counting_chain(vocab_size=5, length=60)
    trace = sample_lookahead(model, 1, W=5, N=4, g=5, temperature=0).trace
    assert trace.forwards["target"] <= 25
    assert trace.accepted == 60 - trace.forwards["target"]


def test_never_more_than_a_phrase_and_never_less_than_a_token_per_pass():
    model = markov_bench(3, length=40)
    trace = sample_lookahead(model, 30, W=4, N=3, g=3, generator=seeded(0)).trace
    assert 40 / 3 <= trace.rows["target"] / 30 < 40
    assert trace.accepted + trace.rows["target"] == 30 * 40 and 0 < trace.accepted < trace.drafted


def test_the_trace_counts_the_window_the_candidates_and_the_prompt():
    model, prompt = tiny_gpt(), torch.zeros(1, 4, dtype=torch.long)
    trace = sample_lookahead(model, 1, W=3, N=4, g=1, prompt=prompt, generator=seeded(0)).trace
    assert trace.positions["target"] == 5 + (trace.forwards["target"] - 1) * (3 + 1) * 3


# The parts


def test_the_tree_of_two_columns_three_tokens_and_two_candidates():
    depth, ancestors = tree(2, 3, 2)
    assert depth.tolist() == [0, 1, 1, 2, 1, 2, 1, 2]
    assert ancestors.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0, 0],  # the last final token
        [1, 1, 0, 0, 0, 0, 0, 0],  # row 0 reads row 0
        [1, 0, 1, 0, 0, 0, 0, 0],  # row 1 reads row 0 up to its column, and its column
        [1, 1, 0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 1, 0, 0, 0],  # first candidate
        [1, 0, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 0, 1, 0],  # second candidate
        [1, 0, 0, 0, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("W, N, g", [(1, 2, 1), (5, 4, 3), (3, 6, 2)])
def test_every_node_stands_directly_behind_its_deepest_ancestor(W, N, g):
    depth, ancestors = tree(W, N, g)
    for i in range(1, len(depth)):
        seen = ancestors[i].clone()
        assert seen[i] and seen[0]
        assert sorted(depth[seen].tolist()) == list(range(int(depth[i]) + 1))  # one ancestor at each depth


def test_a_pool_keeps_the_latest_different_phrases_of_each_token():
    pool = Pool(2)
    for phrase in ([1, 2, 3], [1, 4, 5], [6, 0, 0], [1, 2, 3], [1, 7, 8]):
        pool.add(phrase)
    assert pool.behind(1) == [[7, 8], [2, 3]] and pool.behind(6) == [[0, 0]] and pool.behind(9) == []


def test_the_longest_right_candidate_is_found_and_only_its_right_beginning_counts():
    candidates = torch.tensor([[[1, 2, 3], [1, 5, 3], [4, 2, 3]], [[0, 0, 0], [1, 1, 1], [2, 2, 2]]])
    drawn = torch.tensor([[[1, 5, 0, 0], [1, 5, 9, 9], [1, 2, 3, 3]], [[3, 0, 0, 0], [3, 1, 1, 1], [3, 2, 2, 2]]])
    best, right = longest(candidates, drawn)
    assert best[0] == 1 and right.tolist() == [2, 0]


def trusts_all(candidates, drawn):
    best, right = longest(candidates, drawn)
    return best, torch.full_like(right, candidates.shape[2])


def counts_every_match(candidates, drawn):
    """Also those behind the first wrong guess."""
    return (candidates == drawn[..., :-1]).sum(-1).argmax(-1), (candidates == drawn[..., :-1]).sum(-1).amax(-1)


def blind_to_branches(W, N, g):
    """Candidates that see each other and the window."""
    depth, ancestors = tree(W, N, g)
    return depth, ancestors | torch.ones_like(ancestors).tril()


@pytest.mark.parametrize(
    "name, broken", [("longest", trusts_all), ("longest", counts_every_match), ("tree", blind_to_branches)]
)
def test_a_broken_judge_is_found_out(name, broken, monkeypatch):
    model = tiny_gpt()
    expected = sample_cached(model, 20, generator=seeded(1)).tokens
    assert torch.equal(sample_lookahead(model, 20, W=3, N=3, g=3, generator=seeded(1)).tokens, expected)
    monkeypatch.setattr(lookahead, name, broken)
    assert not torch.equal(sample_lookahead(model, 20, W=3, N=3, g=3, generator=seeded(1)).tokens, expected)


def test_samples_can_be_trained_on():
    model = tiny_gpt().requires_grad_(True)
    model.loss(sample_lookahead(model, 4, generator=seeded(0)).tokens)[0].backward()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"W": 0}, "W = 0, N = 4, g = 5; give a window of W >= 1"),
        ({"N": 1}, "N = 1.* N >= 2"),
        ({"g": 0}, "g = 0.* g >= 1"),
        ({"W": 8, "N": 7}, "at most 12 tokens ahead"),
        ({"temperature": -1}, "temperature"),
        ({"prompt": torch.zeros(2, 13, dtype=torch.long)}, "longer than the context"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample_lookahead(tiny_gpt(), 2, **options)
