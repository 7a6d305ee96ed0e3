"""VAR: whole maps at a time. No row reads its own map, a cache changes nothing, training and sampling read alike."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import close, seeded, wild

from minimal.ar.scale import NextScale
from minimal.nn.cache import KVCache, SlidingKVCache, StaticKVCache
from minimal.nn.masks import not_after
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided, linear
from minimal.statistics import all_sequences
from minimal.tokenizers.multiscale import MultiScaleTokenizer

SCALES = (1, 2, 3, 4)  # 30 tokens
ENDS = (0, 1, 5, 14, 30)


def tiny_var(seed=0, dtype=torch.float64, scales=SCALES, **changes):
    """A NextScale of two narrow layers, random, in eval mode, with a random quantizer."""
    sizes = dict(codebook_size=7, code_dim=5, scales=scales, num_classes=3, dim=16, layers=2, heads=2, hidden=16)
    torch.manual_seed(seed)
    return wild(NextScale(**(sizes | changes)), 100 * seed).to(dtype)


def random_tokens(model, batch, seed=0):
    return torch.randint(model.vocab_size, (batch, model.length), generator=seeded(seed))


def labels(*values):
    return torch.tensor(values)


# The order


def test_levels_are_the_scales_and_the_mask_is_made_of_them():
    model = tiny_var()
    assert model.length == 30 and model.sizes == [1, 4, 9, 16]
    assert model.levels.bincount().tolist() == [1, 4, 9, 16] and model.levels.diff().min() >= 0
    mask = not_after.square(model.levels)
    for start, end in pairwise(ENDS):
        assert mask[start:end, :end].all() and not mask[start:end, end:].any()


def test_a_token_moves_every_row_of_later_scales_and_no_other_row():
    model, cond = tiny_var(), labels(0, 2)
    tokens = random_tokens(model, 2)
    logits = model.logits(tokens, cond)
    assert logits.shape == (2, 30, 7)
    for j in range(model.length):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        changed = (model.logits(other, cond) != logits).any(-1)
        later = model.levels > model.levels[j]
        assert changed[:, later].all() and not changed[:, ~later].any()  # equal to the last bit


def test_what_stands_where_nothing_was_drawn_yet_does_not_matter():
    model, cond = tiny_var(), labels(1, 1)
    tokens = random_tokens(model, 2)
    full = model.logits(tokens, cond)
    for start, end in pairwise(ENDS):
        canvas = tokens.clone()
        canvas[:, start:] = 0
        assert torch.equal(model.logits(canvas, cond)[:, :end], full[:, :end])
        torch.testing.assert_close(model.logits(canvas[:, :end], cond), full[:, :end], **close(torch.float64))


def test_every_row_depends_on_the_label_and_none_is_the_null_class():
    model = tiny_var()
    tokens = random_tokens(model, 1)
    rows = torch.cat([model.logits(tokens, labels(c)) for c in range(4)])
    assert all((rows[a] != rows[b]).any(-1).all() for a in range(4) for b in range(a))
    assert torch.equal(model.logits(tokens), rows[3:])


# What a scale reads


def tiny_pair(dtype=torch.float64):
    """A random tokenizer and a random model of its tokens."""
    torch.manual_seed(0)
    tokenizer = MultiScaleTokenizer((3, 8, 8), widths=(8, 8), codebook_size=11, dim=5, scales=(1, 2, 4)).eval()
    for phi in tokenizer.quantizer.phis:
        torch.nn.init.normal_(phi.weight, std=0.2)
    model = wild(NextScale.of(tokenizer, 3, dim=16, layers=2, heads=2), 0)
    model.quantizer.load_state_dict(tokenizer.quantizer.state_dict())
    return tokenizer.to(dtype), model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_reads_what_the_tokenizer_says_to_the_last_bit(dtype):
    tokenizer, model = tiny_pair(dtype)
    tokens = torch.randint(11, (3, 21), generator=seeded(1))
    read = torch.cat(model.pictures(tokens, 0, 3), dim=1)
    assert torch.equal(read, tokenizer.teacher_forcing_input(tokens))
    assert torch.equal(torch.cat(model.pictures(tokens, 2, 3), dim=1), read[:, 4:])


def test_training_reads_what_sampling_read_to_the_last_bit():
    _, model = tiny_pair(torch.float32)
    met, pictures = [], model.pictures
    model.pictures = lambda *args: met.append(pictures(*args)) or met[-1]
    tokens = sample_cached(model, 5, cond=labels(0, 1, 2, 0, 1), generator=seeded(0)).tokens
    del model.pictures
    assert [len(read) for read in met] == [0, 1, 1]
    assert torch.equal(torch.cat([read[0] for read in met[1:]], dim=1), torch.cat(model.pictures(tokens, 0, 3), dim=1))


def test_the_quantizer_is_a_copy_and_is_not_trained():
    tokenizer, model = tiny_pair()
    assert not any(p.requires_grad for p in model.quantizer.parameters())
    before = model.quantizer.tables[0].codebook.clone()
    tokenizer.quantizer.tables[0].codebook.zero_()
    assert torch.equal(model.quantizer.tables[0].codebook, before)
    model.train().requires_grad_(True).quantizer.requires_grad_(False)
    model.loss(torch.randint(11, (2, 21)), labels(0, 1))[0].backward()
    assert all(p.grad is None for p in model.quantizer.parameters())
    assert model.word.weight.grad.abs().max() > 0


# Caches


GROUPS = [[1, 4, 9, 16], [5, 9, 16], [1, 13, 16], [1, 29], [30], [14, 16]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("groups", GROUPS, ids=str)
def test_scale_by_scale_equals_one_masked_pass_in_any_grouping(groups, dtype):
    model = tiny_var(dtype=dtype)
    tokens, cond = random_tokens(model, 3), labels(0, 1, 3)
    cache, parts, end = model.new_cache(3), [], 0
    for n in groups:
        end += n
        parts.append(model.logits(tokens[:, :end], cond, cache=cache))
        assert parts[-1].shape == (3, n, 7) and cache.length == end
    whole = model.logits(tokens, cond)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **close(dtype))
    nats = -torch.cat(parts, dim=1).log_softmax(-1).gather(-1, tokens[..., None]).flatten(1).sum(1)
    torch.testing.assert_close(-nats, model.logprob(tokens, cond), rtol=0, atol=30 * close(dtype)["atol"])


def test_the_next_n_rows_of_a_full_canvas_are_the_same():
    model = tiny_var()
    tokens, cache = random_tokens(model, 2), model.new_cache(2)
    parts = [model.logits(tokens, cache=cache, n=n) for n in (1, 4, 9, 16)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.logits(tokens), **close(torch.float64))


def test_a_cache_rolls_back_to_the_end_of_a_scale():
    model = tiny_var()
    tokens, other, cache = random_tokens(model, 2), random_tokens(model, 2, seed=1), model.new_cache(2)
    other[:, :1] = tokens[:, :1]
    model.logits(tokens, cache=cache)
    cache.truncate(5)  # scale 2 has read scale 1 alone
    torch.testing.assert_close(model.logits(other, cache=cache), model.logits(other)[:, 5:], **close(torch.float64))


# Sampling


@pytest.mark.parametrize("scale", [None, 2.0, "ramp"])
def test_cached_and_uncached_sampling_draw_the_same_tokens_whatever_the_batch(scale):
    model, cond = tiny_var(), labels(0, 1, 2, 0, 1)
    if scale is not None:
        model = Guided(model, linear(model.levels, 3.0) if scale == "ramp" else scale)
    expected = sample_cached(model, 5, cond=cond, generator=seeded(0))
    slow = sample_uncached(model, 5, cond=cond, generator=seeded(0))
    assert torch.equal(slow.tokens, expected.tokens)
    assert torch.equal(sample_cached(model, 2, cond=cond[:2], generator=seeded(0)).tokens, expected.tokens[:2])
    assert expected.trace.forwards["target"] == slow.trace.forwards["target"] == 4
    assert expected.trace.positions["target"] == 5 * 30
    assert slow.trace.positions["target"] == 5 * (1 + 5 + 14 + 30)
    assert len(expected.tokens.unique(dim=0)) == 5


def test_a_ramp_leaves_the_first_scale_unguided_and_ends_at_its_height():
    model, cond = tiny_var(), labels(0, 1)
    tokens = random_tokens(model, 2)
    ramp = Guided(model, linear(model.levels, 3.0)).logits(tokens, cond)
    torch.testing.assert_close(ramp[:, :1], model.logits(tokens, cond)[:, :1], **close(torch.float64))
    for k, s in enumerate((1.0, 5 / 3, 7 / 3, 3.0)):
        rows = slice(ENDS[k], ENDS[k + 1])
        constant = Guided(model, s).logits(tokens, cond)[:, rows]
        torch.testing.assert_close(ramp[:, rows], constant, rtol=0, atol=1e-5)  # scales are float32


def test_forced_tokens_stay_and_the_others_answer_to_them():
    model, cond = tiny_var(), labels(0, 1, 2, 0)
    free = sample_cached(model, 4, cond=cond, generator=seeded(0)).tokens
    forced = torch.where(torch.rand(4, 30, generator=seeded(1)) < 0.5, random_tokens(model, 4, seed=2), -1)
    tokens = sample_cached(model, 4, cond=cond, forced=forced, generator=seeded(0)).tokens
    kept = forced >= 0
    assert torch.equal(tokens[kept], forced[kept]) and not torch.equal(tokens[~kept], free[~kept])
    assert torch.equal(sample_uncached(model, 4, cond=cond, forced=forced, generator=seeded(0)).tokens, tokens)
    last = torch.where(model.levels == 3, free, -1)  # nothing comes after it: the scales before are drawn as ever
    assert torch.equal(sample_cached(model, 4, cond=cond, forced=last, generator=seeded(0)).tokens, free)


# Likelihood


@pytest.mark.parametrize("cond", [None, 0, 2])
def test_the_probabilities_of_all_pyramids_sum_to_one(cond):
    model = tiny_var(scales=(1, 2), codebook_size=3)
    everything = all_sequences(3, 5)
    label = None if cond is None else torch.full((243,), cond)
    assert model.logprob(everything, label).exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_the_loss_is_minus_logprob_per_token_and_the_first_prediction_is_uniform():
    model, cond = tiny_var(), labels(0, 1, 3)
    tokens = random_tokens(model, 3)
    assert model.loss(tokens, cond)[0].item() == pytest.approx(-model.logprob(tokens, cond).mean().item() / 30)
    fresh = NextScale(7, 5, SCALES, 3, dim=16, layers=2, heads=2).eval()
    assert fresh.loss(tokens, cond)[0].item() == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.slow
def test_a_tiny_model_learns_four_pyramids_by_heart():
    torch.manual_seed(0)
    model = NextScale(4, 3, (1, 2), 4, dim=16, layers=1, heads=2, label_dropout=0.0)
    tokens, cond = random_tokens(model, 4), labels(0, 1, 2, 3)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(200):
        optimizer.zero_grad()
        loss, _ = model.loss(tokens, cond)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_constructor_is_remembered():
    model = tiny_var()
    again = NextScale(**model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.double().eval().logits(random_tokens(model, 2)), model.logits(random_tokens(model, 2)))


def test_a_first_scale_of_several_cells_reads_the_label_in_each():
    model = tiny_var(scales=(2, 3))
    tokens = random_tokens(model, 2)
    assert model.logits(tokens, labels(0, 1)).shape == (2, 13, 7)
    assert sample_cached(model, 2, cond=labels(0, 1), generator=seeded(0)).trace.forwards["target"] == 2


# Bad input


@settings(max_examples=30)
@given(st.integers(2, 29))
def test_partial_scales_are_refused(n):
    model = tiny_var()
    tokens = random_tokens(model, 1)[:, :n]
    if n in ENDS:
        assert model.logits(tokens).shape == (1, n, 7)
        return
    with pytest.raises(ValueError, match=f"{n} tokens are not whole scales, which end at 1, 5, 14, 30"):
        model.logits(tokens)
    with pytest.raises(ValueError, match="not whole scales"):
        model.logits(random_tokens(model, 1), cache=model.new_cache(1), n=n)


def test_a_canvas_without_a_new_scale_and_caches_of_other_kinds_are_refused():
    model = tiny_var()
    tokens, cache = random_tokens(model, 2), model.new_cache(2)
    model.logits(tokens[:, :5], cache=cache)
    with pytest.raises(ValueError, match="no rows to compute: the cache holds 5 tokens, and the canvas ends at 5"):
        model.logits(tokens[:, :5], cache=cache)
    with pytest.raises(ValueError, match="use a KVCache, not a StaticKVCache"):
        model.logits(tokens, cache=model.new_cache(2, kind=StaticKVCache), n=1)
    with pytest.raises(ValueError, match="one position at a time"):
        sample_scales = model.new_cache(2, kind=SlidingKVCache)
        model.logits(tokens, cache=sample_scales)
    assert type(model.new_cache(2)) is KVCache


@pytest.mark.parametrize(
    "tokens, cond, message",
    [
        (torch.zeros(2, 30), None, r"tokens must be long \(B, N\), got torch.float32"),
        (torch.full((2, 30), 7), None, "tokens run from 7 to 7, the vocabulary from 0 to 6"),
        (torch.zeros(2, 31, dtype=torch.long), None, "31 tokens are longer than the context of 30"),
        (torch.zeros(2, 30, dtype=torch.long), labels(0, 4), "labels run from 0 to 4"),
    ],
)
def test_bad_input_is_refused(tokens, cond, message):
    model = tiny_var()
    for entrance in (model.logprob, model.loss):
        with pytest.raises(ValueError, match=message):
            entrance(tokens, cond)
