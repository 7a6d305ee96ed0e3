"""FlexVAR: one set of weights, any list of scales; on each list it is a next-scale model like VAR."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from tiny import close, seeded, wild

from minimal.ar.flex_scale import FlexScale, waves
from minimal.nn.masks import not_after
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided, linear
from minimal.statistics import all_sequences
from minimal.tokenizers.flex_scale import FlexScaleTokenizer

LISTS = [(1, 2, 3, 4), (1, 2, 4), (1, 4), (4,), (2, 3), (1, 3, 6)]  # the last ends beyond the map of positions


def tiny_flex(scales=(1, 2, 4), seed=0, dtype=torch.float64, **changes):
    sizes = dict(codebook_size=7, code_dim=5, side=4, num_classes=3, dim=16, layers=2, heads=2, hidden=16)
    torch.manual_seed(seed)
    return wild(FlexScale(**(sizes | changes)), 100 * seed).to(dtype).with_scales(scales)


def random_tokens(model, batch, seed=0):
    return torch.randint(model.vocab_size, (batch, model.length), generator=seeded(seed))


def labels(*values):
    return torch.tensor(values)


# Lists


@pytest.mark.parametrize("scales", LISTS, ids=str)
def test_a_view_has_the_tokens_and_levels_of_its_list_and_leaves_the_model_alone(scales):
    model = tiny_flex((1, 2, 3, 4))
    view = model.with_scales(scales)
    assert view.length == len(view.levels) == sum(p * p for p in scales)
    assert view.levels.bincount().tolist() == [p * p for p in scales]
    assert model.scales == (1, 2, 3, 4) and model.length == len(model.levels) == 30
    assert all(a is b for a, b in zip(view.parameters(), model.parameters(), strict=True))
    assert [m.shape[1] for m in view.split(random_tokens(view, 2))] == view.sizes
    assert view.new_cache(2).capacity == view.length


@pytest.mark.parametrize("scales", LISTS, ids=str)
def test_on_every_list_a_token_moves_every_row_of_the_scales_after_it_and_no_other(scales):
    model, cond = tiny_flex(scales), labels(0, 2)
    tokens = random_tokens(model, 2)
    logits = model.logits(tokens, cond)
    for j in range(model.length):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        changed = (model.logits(other, cond) != logits).any(-1)
        later = model.levels > model.levels[j]
        assert changed[:, later].all() and not changed[:, ~later].any()


def test_one_scale_alone_is_bidirectional_attention():
    model, cond = tiny_flex((4,)), labels(0, 1)
    assert not_after.square(model.levels).all()
    tokens = random_tokens(model, 2)
    logits = model.logits(tokens, cond)
    assert torch.equal(model.logits(random_tokens(model, 2, seed=1), cond), logits)  # it reads no token
    for cell in range(16):
        moved = tiny_flex((4,))
        moved.grid.data[cell] += 1
        assert (moved.logits(tokens, cond) != logits).any(-1).all()  # every row sees every cell


def test_the_tokens_of_a_shorter_list_are_those_of_its_maps():
    model = tiny_flex((1, 2, 3, 4))
    tokens = random_tokens(model, 2)
    assert torch.equal(model.maps(tokens, (1, 2, 3, 4)), tokens)
    assert torch.equal(model.maps(tokens, (2, 4)), torch.cat((tokens[:, 1:5], tokens[:, 14:]), dim=1))


def test_random_lists_begin_with_one_end_with_the_full_side_and_take_half_of_the_others():
    model = tiny_flex((1, 2, 3, 4))
    torch.manual_seed(0)
    drawn = [model.random_scales() for _ in range(400)]
    assert set(drawn) == {(1, 4), (1, 2, 4), (1, 3, 4), (1, 2, 3, 4)}
    for p in (2, 3):
        assert sum(p in scales for scales in drawn) / 400 == pytest.approx(0.5, abs=0.1)
    torch.manual_seed(0)
    assert [model.random_scales() for _ in range(400)] == drawn
    assert tiny_flex((1, 2), side=2).random_scales() == (1, 2)
    for scales in set(drawn):  # each can be trained on
        loss, _ = model.with_scales(scales).loss(model.maps(random_tokens(model, 2), scales), labels(0, 1))
        assert loss.isfinite()


# What a scale reads, and where it stands


def test_a_scale_reads_the_map_before_it_enlarged_and_nothing_older():
    model = tiny_flex((1, 2, 4))
    tokens = random_tokens(model, 2)
    read = model.pictures(tokens, 0, 3)
    for k, (p, size) in enumerate(((1, 2), (2, 4))):
        codes = model.codes[model.split(tokens)[k]].mT.unflatten(-1, (p, p))
        expected = F.interpolate(codes, (size, size), mode="bicubic").flatten(2).mT
        torch.testing.assert_close(read[k], expected, rtol=0, atol=0)
    other = tokens.clone()
    other[:, 0] = (other[:, 0] + 1) % 7
    assert torch.equal(model.pictures(other, 2, 3)[0], read[1])


def test_training_reads_what_sampling_read_to_the_last_bit():
    model = tiny_flex((1, 3, 4), dtype=torch.float32)
    met, pictures = [], model.pictures
    model.pictures = lambda *args: met.append(pictures(*args)) or met[-1]
    tokens = sample_cached(model, 5, cond=labels(0, 1, 2, 0, 1), generator=seeded(0)).tokens
    del model.pictures
    assert all(torch.equal(a[0], b) for a, b in zip(met[1:], model.pictures(tokens, 0, 3), strict=True))


def test_the_map_of_positions_at_its_own_size_is_itself_and_shrinks_by_averaging():
    model = tiny_flex((1, 2, 4))
    places = model.places(0, 3)
    assert torch.equal(places[5:], model.grid)
    torch.testing.assert_close(places[:1], model.grid.mean(0, keepdim=True))
    quarters = model.grid.view(2, 2, 2, 2, 16).mean((1, 3)).flatten(0, 1)
    torch.testing.assert_close(places[1:5], quarters)
    assert torch.equal(model.places(1, 2), places[1:5])
    assert model.with_scales((6,)).places(0, 1).shape == (36, 16)


def test_positions_start_as_waves_of_row_and_column():
    grid = waves(8, 16).view(8, 8, 16)
    assert torch.equal(grid[:, 0, :8], grid[:, 5, :8]) and torch.equal(grid[0, :, 8:], grid[5, :, 8:])
    assert len(grid.flatten(0, 1).unique(dim=0)) == 64
    torch.testing.assert_close(grid.square().sum(-1), torch.full((8, 8), 8.0))


def test_it_holds_the_codes_of_its_tokenizer_on_the_unit_sphere():
    torch.manual_seed(0)
    tokenizer = FlexScaleTokenizer((3, 16, 16), 11, 4, widths=(8, 8)).eval()
    model = FlexScale.of(tokenizer, 3, dim=16, layers=1, heads=2)
    assert model.scales == (1, 2, 3, 4) and model.vocab_size == 11
    tokens = torch.arange(11)[None]
    assert torch.equal(model.codes[tokens], tokenizer.quantizer.codes(tokens)) and not model.codes.requires_grad
    torch.testing.assert_close(model.codes.norm(dim=1), torch.ones(11))


# On a list it is a next-scale model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scales", LISTS, ids=str)
def test_scale_by_scale_equals_one_masked_pass_on_every_list(scales, dtype):
    model = tiny_flex(scales, dtype=dtype)
    tokens, cond = random_tokens(model, 3), labels(0, 1, 3)
    whole = model.logits(tokens, cond)
    for step in (1, 2):  # scales at a time
        ends = [sum(model.sizes[:k]) for k in range(0, len(scales), step)] + [model.length]
        cache = model.new_cache(3)
        parts = [model.logits(tokens[:, :end], cond, cache=cache) for _, end in pairwise(ends)]
        torch.testing.assert_close(torch.cat(parts, dim=1), whole, **close(dtype))
        nats = torch.cat(parts, dim=1).log_softmax(-1).gather(-1, tokens[..., None]).flatten(1).sum(1)
        torch.testing.assert_close(nats, model.logprob(tokens, cond), rtol=0, atol=50 * close(dtype)["atol"])


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("scales", LISTS, ids=str)
def test_cached_and_uncached_sampling_draw_the_same_tokens_whatever_the_batch(scales, guided):
    model, cond = tiny_flex(scales), labels(0, 1, 2, 0, 1)
    if guided:
        model = Guided(model, linear(model.levels, 3.0))
    expected = sample_cached(model, 5, cond=cond, generator=seeded(0))
    assert expected.trace.forwards["target"] == len(scales)
    assert torch.equal(sample_uncached(model, 5, cond=cond, generator=seeded(0)).tokens, expected.tokens)
    assert torch.equal(sample_cached(model, 2, cond=cond[:2], generator=seeded(0)).tokens, expected.tokens[:2])


def test_forced_tokens_stay():
    model, cond = tiny_flex(), labels(0, 1, 2, 0)
    forced = torch.where(torch.rand(4, 21, generator=seeded(1)) < 0.5, random_tokens(model, 4, seed=2), -1)
    tokens = sample_cached(model, 4, cond=cond, forced=forced, generator=seeded(0)).tokens
    assert torch.equal(tokens[forced >= 0], forced[forced >= 0])


@pytest.mark.parametrize("scales", [(1, 2), (2,), (1,)], ids=str)
def test_the_probabilities_of_all_pyramids_of_a_list_sum_to_one(scales):
    model = tiny_flex(scales, codebook_size=3)
    everything = all_sequences(3, model.length)
    cond = torch.zeros(len(everything), dtype=torch.long)
    assert model.logprob(everything, cond).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_constructor_is_remembered():
    model = tiny_flex((1, 2, 3, 4))
    again = FlexScale(**model.config)
    again.load_state_dict(model.state_dict())
    tokens = random_tokens(model, 2)
    assert torch.equal(again.double().eval().logits(tokens), model.logits(tokens))


# Bad input


@pytest.mark.parametrize("scales", [(), (0, 2), (2, 2), (4, 2)], ids=str)
def test_lists_that_do_not_rise_are_refused(scales):
    with pytest.raises(ValueError, match="scales are rising sides of at least 1, got"):
        tiny_flex().with_scales(scales)


def test_partial_scales_and_maps_that_are_not_there_are_refused():
    model = tiny_flex((1, 2, 4))
    with pytest.raises(ValueError, match="6 tokens are not whole scales, which end at 1, 5, 21"):
        model.logits(random_tokens(model, 1)[:, :6])
    with pytest.raises(ValueError, match=r"there are maps of sides \(1, 2, 4\), none of \[3\]"):
        model.maps(random_tokens(model, 1), (1, 3))
    with pytest.raises(ValueError, match="divisible by 4, got 18"):
        FlexScale(7, 5, 4, dim=18, heads=2)
    with pytest.raises(ValueError, match="30 tokens are longer than the context of 21"):
        model.logprob(torch.zeros(1, 30, dtype=torch.long))
