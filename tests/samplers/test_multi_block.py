"""Several blocks in flight, refused tokens in a pool: they change how long it takes, never what comes out."""

import pytest
import torch
from tiny import markov_bench, seeded, tiny_gpt

from minimal import checkpoints, recipes
from minimal.samplers import multi_block
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast import FastRaster
from minimal.samplers.jacobi import sample_jacobi, settled
from minimal.samplers.lookahead import longest
from minimal.samplers.multi_block import sample_multi_block, tree
from minimal.statistics import chi_square, enumerate_joint, sequence_index

FLIGHTS = [
    {"K": 1, "P": 0},
    {"K": 1, "P": 3},
    {"K": 2, "r": 0.5, "P": 0},
    {"K": 2, "r": 0.85, "P": 4},
    {"K": 4, "r": 0.0, "P": 2, "g": 3},
]


@pytest.mark.parametrize("flight", FLIGHTS, ids=str)
@pytest.mark.parametrize("block", [1, 3, 12])
def test_the_samples_are_those_of_sequential_decoding(block, flight, task):
    model, n, options = task
    expected = sample_cached(model, n, generator=seeded(1), **options).tokens
    sample = sample_multi_block(model, n, block=block, generator=seeded(1), **flight, **options)
    assert torch.equal(sample.tokens, expected)
    assert sample.trace.forwards["target"] <= model.length - len(options.get("prompt", expected[:, :0]).T)


@pytest.mark.parametrize("temperature", [0, 0.3, 1])
def test_one_image_and_a_fast_model_give_the_same_tokens(temperature):
    model = FastRaster(tiny_gpt(length=40, grid_width=None))
    options = dict(temperature=temperature, prompt=torch.tensor([[1, 2, 3]]))
    expected = sample_cached(model, 1, generator=seeded(1), **options).tokens
    assert torch.equal(sample_multi_block(model, 1, block=5, K=3, generator=seeded(1), **options).tokens, expected)


def test_each_row_goes_its_own_pace_as_if_it_were_alone():
    model, n = tiny_gpt(length=20, grid_width=None), 6
    options = dict(block=4, K=2, r=0.5, P=0, temperature=0.5)
    together = sample_multi_block(model, n, generator=seeded(1), **options)
    passes = []
    for i in range(n):
        generator = seeded(1)
        torch.rand(i, model.length, generator=generator)  # the noise of the rows above
        alone = sample_multi_block(model, 1, generator=generator, **options)
        assert torch.equal(alone.tokens[0], together.tokens[i])
        passes.append(alone.trace.forwards["target"])
    assert together.trace.rows["target"] == sum(passes) and min(passes) < max(passes)


@pytest.mark.slow
def test_the_text_is_that_of_greedy_decoding():
    """In float64, where no near-tie is decided by the width of a pass."""
    model = checkpoints.load("pydoc_jacobi").double()
    prompt = recipes.jacobi_forcing.prompts(recipes.text.pydoc("validation").tokens, 2, seed=5)
    expected = sample_cached(model, 2, prompt=prompt, temperature=0).tokens
    for flight in ({"K": 1, "P": 0}, {"K": 2, "r": 0.85, "P": 4}, {"K": 3, "r": 0.5, "P": 2, "g": 4}):
        sample = sample_multi_block(model, 2, prompt=prompt, temperature=0, **flight)
        assert torch.equal(sample.tokens, expected)


# How many passes


def blockwise(model, n, block, prompt, **filters):
    """Plain Jacobi decoding of one block after the other without a cache: the tokens, and the passes of each row."""
    canvas = torch.cat((prompt, torch.zeros(n, model.length - prompt.shape[1], dtype=torch.long)), dim=1)
    passes = torch.zeros(n, dtype=torch.long)
    for i in range(n):
        start = prompt.shape[1]
        while start < model.length:
            end, done = min(start + block, model.length), start
            while done < end:
                new = model.logits(canvas[i : i + 1, :end])[0, done:].argmax(-1)
                step = int(settled(canvas[i : i + 1, done:end], new[None]))
                canvas[i, done:end] = new
                done += step
                passes[i] += 1
            start = end
    return canvas, passes


@pytest.mark.parametrize("block", [1, 4, 5, 12])
def test_with_one_block_and_no_pool_it_is_plain_jacobi_decoding(block):
    model, prompt = tiny_gpt(), torch.randint(5, (6, 3), generator=seeded(9))
    tokens, passes = blockwise(model, 6, block, prompt)
    sample = sample_multi_block(model, 6, block=block, K=1, P=0, prompt=prompt, temperature=0)
    assert torch.equal(sample.tokens, tokens) and sample.trace.rows["target"] == passes.sum()


@pytest.mark.parametrize("options", [{}, {"temperature": 0}], ids=["sampled", "greedy"])
def test_a_block_as_long_as_the_example_takes_the_passes_of_sample_jacobi(options):
    model = tiny_gpt()
    theirs = sample_jacobi(model, 8, block=12, generator=seeded(1), **options).trace
    ours = sample_multi_block(model, 8, block=12, K=1, P=0, generator=seeded(1), **options).trace
    assert ours.forwards == theirs.forwards and ours.rows == theirs.rows and ours.accepted == theirs.accepted


@pytest.mark.parametrize("temperature", [0, 0.5, 1])
def test_what_was_refused_is_often_right_a_little_later(temperature):
    model, options = markov_bench(4, length=60), dict(block=6, K=1, g=4, temperature=temperature)
    plain, pooled = (sample_multi_block(model, 20, P=P, generator=seeded(0), **options).trace for P in (0, 4))
    assert pooled.rows["target"] < 0.9 * plain.rows["target"]  # measured: 0.70 to 0.81


def test_a_second_block_saves_passes_and_costs_positions():
    model = markov_bench(3, length=60)
    one, two = (sample_multi_block(model, 50, block=6, K=K, r=0.5, P=0, generator=seeded(0)).trace for K in (1, 2))
    assert two.rows["target"] < one.rows["target"] and two.positions["target"] > one.positions["target"]


@pytest.mark.parametrize("r, most", [(0.0, 3), (1.0, 2)])
def test_a_block_enters_when_the_newest_is_at_rest_and_no_more_than_k_are_in_flight(r, most, monkeypatch):
    """Positions of a pass say how many unknowns are in flight. With r = 1 a third block would need two at rest."""
    model, widths = tiny_gpt(length=40, grid_width=None), []
    monkeypatch.setattr(multi_block, "settled", lambda old, new: widths.append(old.shape[1]) or settled(old, new))
    sample_multi_block(model, 1, block=5, K=3, r=r, P=0, generator=seeded(1))
    assert max(widths) <= 3 * 5 and max(widths) > (most - 1) * 5 - 5
    assert widths[0] == 5 and (r > 0 or widths[1] > 5)


# Exactness


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    "flight", [{"block": 2, "K": 2, "r": 0.5, "P": 0}, {"block": 6, "K": 1, "P": 3, "g": 2}], ids=["blocks", "pool"]
)
def test_sequences_come_out_as_often_as_they_should(flight, seed, monkeypatch):
    model, n = markov_bench(seed, vocab_size=3, length=6, dtype=torch.float64), 100_000
    joint = enumerate_joint(model, 6)

    def p_value():
        tokens = [
            sample_multi_block(model, n // 10, generator=seeded(100 * seed + i), **flight).tokens for i in range(10)
        ]
        counts = torch.bincount(sequence_index(torch.cat(tokens), 3), minlength=len(joint))
        return chi_square(counts, joint).p_value

    assert p_value() > 0.01
    name, broken = ("longest", trusts_one_more) if flight["P"] else ("settled", one_too_many)
    monkeypatch.setattr(multi_block, name, broken)
    assert p_value() < 1e-6


def one_too_many(old, new):
    return (settled(old, new) + 1).clamp(max=old.shape[1])


def keeps_all_unchanged(old, new):
    return (old == new).sum(-1).clamp(min=1)


def trusts_one_more(candidates, drawn):
    best, right = longest(candidates, drawn)
    return best, (right + 1).clamp(max=candidates.shape[2])


def blind_to_branches(width, P, g):
    """Phrases that see the unknowns and each other."""
    depth, ancestors = tree(width, P, g)
    return depth, torch.ones_like(ancestors).tril()


def wrong_places(width, P, g):
    """Phrases one place too far on."""
    depth, ancestors = tree(width, P, g)
    return depth + (torch.arange(len(depth)) >= width), ancestors


@pytest.mark.parametrize(
    "name, broken",
    [
        ("settled", one_too_many),
        ("settled", keeps_all_unchanged),
        ("longest", trusts_one_more),
        ("tree", blind_to_branches),
        ("tree", wrong_places),
    ],
)
def test_a_broken_judge_is_found_out(name, broken, monkeypatch):
    model, options = tiny_gpt(length=30, grid_width=None), dict(block=4, K=2, r=0.5, P=3, g=3)
    expected = sample_cached(model, 20, generator=seeded(1)).tokens
    assert torch.equal(sample_multi_block(model, 20, generator=seeded(1), **options).tokens, expected)
    monkeypatch.setattr(multi_block, name, broken)
    assert not torch.equal(sample_multi_block(model, 20, generator=seeded(1), **options).tokens, expected)


# The parts, and bad input


def test_the_tree_of_three_unknowns_and_two_phrases():
    depth, ancestors = tree(3, 2, 2)
    assert depth.tolist() == [0, 1, 2, 1, 2, 1, 2]
    assert ancestors.int().tolist() == [
        [1, 0, 0, 0, 0, 0, 0],  # the last final token
        [1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0],
        [1, 0, 0, 1, 0, 0, 0],  # the first phrase
        [1, 0, 0, 1, 1, 0, 0],
        [1, 0, 0, 0, 0, 1, 0],  # the second
        [1, 0, 0, 0, 0, 1, 1],
    ]


def test_samples_can_be_trained_on():
    model = tiny_gpt().requires_grad_(True)
    model.loss(sample_multi_block(model, 4, block=4, generator=seeded(0)).tokens)[0].backward()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"block": 0}, "block is 0; solve for between 1 and 12"),
        ({"block": 13}, "block is 13"),
        ({"K": 0}, "K is 0"),
        ({"r": 1.5}, "r is 1.5"),
        ({"P": -1}, "P = -1, g = 4; give P >= 0"),
        ({"g": 0}, "P = 4, g = 0"),
        ({"temperature": -1}, "temperature is -1"),
        ({"prompt": torch.zeros(2, 13, dtype=torch.long)}, "longer than the context"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        sample_multi_block(tiny_gpt(), 2, **{"block": 4} | options)
