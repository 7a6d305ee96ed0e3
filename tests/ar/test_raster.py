"""Raster GPT: a distribution over sequences, read from a canvas that no row looks ahead on."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import close, learn_by_heart, seeded, tiny_gpt

from minimal.ar.raster import RasterGPT
from minimal.nn.cache import KVCache, SlidingKVCache, StaticKVCache
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.fast import FastRaster
from minimal.samplers.guidance import Guided
from minimal.samplers.jacobi import sample_jacobi
from minimal.samplers.speculative import sample_speculative
from minimal.statistics import all_sequences, enumerate_joint


def random_tokens(model, batch, length=None, seed=0):
    return torch.randint(model.vocab_size, (batch, length or model.length), generator=seeded(seed))


def labels(*values):
    return torch.tensor(values)


# The canvas


@pytest.mark.parametrize("grid_width", [None, 4])
def test_row_j_never_reads_token_j_or_what_follows(grid_width):
    model = tiny_gpt(grid_width=grid_width)
    tokens, cond = random_tokens(model, 2), labels(0, 2)
    logits = model.logits(tokens, cond)
    for j in range(model.length):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        changed = (model.logits(other, cond) != logits).any(-1)
        assert not changed[:, : j + 1].any()  # to the last bit
        assert changed[:, j + 1 :].all()  # and everything behind does read it


def test_placeholders_where_nothing_was_sampled_yet_do_not_matter():
    model, cond = tiny_gpt(), labels(1, 1)
    tokens = random_tokens(model, 2)
    for j in range(1, model.length):
        canvas = tokens.clone()
        canvas[:, j:] = 0
        torch.testing.assert_close(model.logits(canvas, cond)[:, j], model.logits(tokens, cond)[:, j], rtol=0, atol=0)
        torch.testing.assert_close(model.logits(tokens[:, : j + 1], cond)[:, j], model.logits(tokens, cond)[:, j])


def test_every_row_depends_on_the_label_and_none_is_the_null_class():
    model = tiny_gpt()
    tokens = random_tokens(model, 1)
    rows = torch.cat([model.logits(tokens, labels(c)) for c in range(4)])
    assert all((rows[a] != rows[b]).any(-1).all() for a in range(4) for b in range(a))
    assert torch.equal(model.logits(tokens), rows[3:])  # id num_classes


def test_rows_and_columns_tell_places_apart():
    flat, grid = tiny_gpt(grid_width=None), tiny_gpt(grid_width=4)
    tokens = random_tokens(flat, 2)
    assert (flat.logits(tokens) - grid.logits(tokens)).abs().max() > 1e-3  # the same weights, another geometry


def test_the_class_stands_before_the_first_token_and_each_token_where_it_is_in_the_image():
    assert tiny_gpt().coordinates[:6].tolist() == [[-1, -1], [0, 0], [0, 1], [0, 2], [0, 3], [1, 0]]
    assert tiny_gpt(grid_width=None).coordinates[:3].tolist() == [[-1], [0], [1]]


# Caches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 6], [12], [1, 11]])
@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_cached_rows_equal_uncached_rows(kv_heads, kind, chunks, dtype):
    model = tiny_gpt(kv_heads=kv_heads, dtype=dtype)
    tokens, cond = random_tokens(model, 3), labels(0, 1, 3)
    cache, parts = model.new_cache(3, kind=kind), []
    for n in chunks:
        parts.append(model.logits(tokens, cond, cache=cache, n=n))
        assert parts[-1].shape == (3, n, model.vocab_size)
    torch.testing.assert_close(torch.cat(parts, dim=1), model.logits(tokens, cond), **close(dtype))
    assert torch.as_tensor(cache.length).unique().tolist() == [12]


def test_with_a_cache_only_the_rows_that_it_lacks_are_computed():
    model = tiny_gpt()
    tokens, cache = random_tokens(model, 2), model.new_cache(2)
    full = model.logits(tokens)
    for end, begin in [(1, 0), (4, 1), (5, 4), (12, 5)]:
        part = model.logits(tokens[:, :end], cache=cache)
        torch.testing.assert_close(part, full[:, begin:end], **close(torch.float64))
        assert cache.length == end


@settings(max_examples=20)
@given(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.integers(1, 3))
def test_with_a_length_per_row_the_next_n_rows_of_each_are_computed(lengths, n):
    model = tiny_gpt()
    tokens, cond = random_tokens(model, 3), labels(0, 1, 2)
    cache = model.new_cache(3, kind=StaticKVCache)
    model.logits(tokens, cond, cache=cache, n=9)
    cache.truncate(torch.tensor(lengths))
    got, full = model.logits(tokens, cond, cache=cache, n=n), model.logits(tokens, cond)
    for b, length in enumerate(lengths):
        torch.testing.assert_close(got[b], full[b, length : length + n], **close(torch.float64))


def test_truncate_then_extend_otherwise_equals_a_fresh_run():
    model = tiny_gpt()
    tokens, other, cache = random_tokens(model, 2), random_tokens(model, 2, seed=1), model.new_cache(2)
    other[:, :5] = tokens[:, :5]
    model.logits(tokens, cache=cache)
    cache.truncate(6)  # row 5 has read tokens 0 to 4
    torch.testing.assert_close(model.logits(other, cache=cache), model.logits(other)[:, 6:], **close(torch.float64))


def test_new_caches_fit_the_model():
    model = tiny_gpt(dtype=torch.float32)
    for kind in (KVCache, StaticKVCache, SlidingKVCache):
        cache = model.new_cache(3, kind=kind)
        assert type(cache) is kind and cache.k.shape == cache.v.shape == (2, 3, 1, 12, 8)
        assert cache.k.dtype == torch.float32
    assert model.new_cache(1, 7).k.shape[3] == 7
    assert tiny_gpt(kv_heads=2, dtype=torch.bfloat16).new_cache(1).k.shape[2] == 2
    assert tiny_gpt(dtype=torch.bfloat16).new_cache(1).k.dtype == torch.bfloat16


def test_a_sliding_cache_that_never_overflows_equals_a_full_one():
    model = tiny_gpt()
    tokens, cache = random_tokens(model, 2), model.new_cache(2, kind=SlidingKVCache)
    parts = [model.logits(tokens[:, : j + 1], cache=cache) for j in range(12)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model.logits(tokens), **close(torch.float64))


# Captions: a condition of several words


def tiny_reader(**changes):
    """A RasterGPT told 3 words out of 7, the last id (7) being none."""
    return tiny_gpt(num_classes=7, cond_length=3, **changes)


def captions(batch, seed=5):
    return torch.randint(7, (batch, 3), generator=seeded(seed))


def test_words_stand_above_the_picture_each_in_its_column():
    assert tiny_reader().coordinates[:5].tolist() == [[-1, -3], [-1, -2], [-1, -1], [0, 0], [0, 1]]
    assert tiny_reader(grid_width=None).coordinates[:5].tolist() == [[-3], [-2], [-1], [0], [1]]
    assert tiny_reader().levels.tolist() == list(range(12))


def test_every_word_moves_every_row_and_its_place_matters():
    model, words = tiny_reader(), captions(2)
    tokens = random_tokens(model, 2)
    logits = model.logits(tokens, words)
    assert logits.shape == (2, 12, 5)
    for place in range(3):
        other = words.clone()
        other[:, place] = (other[:, place] + 1) % 7
        assert (model.logits(tokens, other) != logits).any(-1).all()
    assert (model.logits(tokens, words.roll(1, dims=1)) != logits).any(-1).all()


def test_with_a_caption_row_j_reads_the_tokens_before_j_and_no_others():
    model, words = tiny_reader(), captions(2)
    tokens = random_tokens(model, 2)
    logits = model.logits(tokens, words)
    for j in range(model.length):
        other = tokens.clone()
        other[:, j] = (other[:, j] + 1) % model.vocab_size
        changed = (model.logits(other, words) != logits).any(-1)
        assert not changed[:, : j + 1].any() and changed[:, j + 1 :].all()


def test_no_caption_is_the_null_word_in_every_place():
    model = tiny_reader()
    tokens = random_tokens(model, 2)
    assert torch.equal(model.logits(tokens), model.logits(tokens, torch.full((2, 3), 7)))
    seen = labels_seen(tiny_reader(label_dropout=0.5).train(), captions(400), generator=seeded(0))
    none = seen == 7
    assert torch.equal(none.any(1), none.all(1)) and 100 < none.all(1).sum() < 300  # a caption drops as a whole


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 6], [12], [1, 11]], ids=str)
def test_cached_rows_after_a_caption_equal_uncached_rows(chunks, dtype):
    model, words = tiny_reader(dtype=dtype), captions(3)
    tokens, cache, parts = random_tokens(model, 3), model.new_cache(3), []
    assert cache.length == -2 and cache.k.shape[3] == 14
    for n in chunks:
        parts.append(model.logits(tokens, words, cache=cache, n=n))
        assert parts[-1].shape == (3, n, 5)
    torch.testing.assert_close(torch.cat(parts, dim=1), model.logits(tokens, words), **close(dtype))


@pytest.mark.parametrize("length", [0, 1, 6])
def test_a_roll_back_after_a_caption_keeps_the_words(length):
    model, words = tiny_reader(), captions(2)
    tokens, other, cache = random_tokens(model, 2), random_tokens(model, 2, seed=1), model.new_cache(2)
    other[:, : max(length - 1, 0)] = tokens[:, : max(length - 1, 0)]
    model.logits(tokens, words, cache=cache)
    cache.truncate(length)
    again = model.logits(other, words, cache=cache)
    torch.testing.assert_close(again, model.logits(other, words)[:, length:], **close(torch.float64))


def test_the_probabilities_of_all_sequences_given_a_caption_sum_to_one():
    model, words = tiny_reader(vocab_size=3, length=4), captions(1)
    logprob = model.logprob(all_sequences(3, 4), words.expand(81, 3))
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    assert model.loss(all_sequences(3, 4), words.expand(81, 3))[0].item() == pytest.approx(-logprob.mean().item() / 4)


@pytest.mark.parametrize("scale", [None, 1.7], ids=["plain", "guided"])
def test_samplers_agree_token_for_token_when_a_caption_is_in_front(scale):
    model = tiny_reader() if scale is None else Guided(tiny_reader(), scale)
    draft, words = tiny_reader(seed=1), captions(6)
    expected = sample_cached(model, 6, cond=words, generator=seeded(0)).tokens
    assert torch.equal(sample_uncached(model, 6, cond=words, generator=seeded(0)).tokens, expected)
    assert torch.equal(sample_cached(model, 2, cond=words[:2], generator=seeded(0)).tokens, expected[:2])
    assert not torch.equal(sample_cached(model, 6, cond=words.roll(1, 0), generator=seeded(0)).tokens, expected)
    alone = sample_jacobi(model, 1, block=5, cond=words[:1], generator=seeded(0))
    assert torch.equal(alone.tokens, expected[:1])
    for seed in range(3):
        greedy = sample_cached(model, 1, cond=captions(1, seed), temperature=0).tokens
        for guess in (draft, model):
            fast = sample_speculative(model, guess, 1, k=3, cond=captions(1, seed), temperature=0)
            assert torch.equal(fast.tokens, greedy)
    assert fast.trace.forwards["target"] == 3  # it guesses itself: 4 tokens a round


def test_a_prompt_and_forced_tokens_follow_the_caption():
    model, words = tiny_reader(), captions(2)
    whole = sample_cached(model, 2, cond=words, generator=seeded(0)).tokens
    continued = sample_cached(model, 2, cond=words, prompt=whole[:, :5], generator=seeded(0)).tokens
    forced = torch.where(torch.arange(12) < 5, whole, -1)
    assert torch.equal(continued, whole)
    assert torch.equal(sample_cached(model, 2, cond=words, forced=forced, generator=seeded(0)).tokens, whole)


def test_a_caption_needs_a_cache_with_room_in_front():
    model = tiny_reader()
    for kind in (StaticKVCache, SlidingKVCache):
        with pytest.raises(ValueError, match=f"captions need a KVCache; {kind.__name__} has no room in front"):
            model.new_cache(2, kind=kind)
    with pytest.raises(ValueError, match="captions need a KVCache"):
        sample_jacobi(model, 2, block=5, cond=captions(2))


@pytest.mark.parametrize(
    "words, message",
    [
        (labels(0, 1), r"captions must be long \(2, 3\).* got torch.int64 \(2,\)"),
        (captions(2)[:, :2], r"captions must be long \(2, 3\).* got torch.int64 \(2, 2\)"),
        (captions(2).float(), r"captions must be long \(2, 3\).* got torch.float32"),
        (captions(2) + 2, "captions run from [0-9] to 8; classes end at 6, 7 is none"),
    ],
)
def test_bad_captions_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        tiny_reader().logprob(torch.zeros(2, 12, dtype=torch.long), words)


# Likelihood


@pytest.mark.parametrize("cond", [None, 0, 2])
def test_the_probabilities_of_all_sequences_sum_to_one(cond):
    model = tiny_gpt(vocab_size=3, length=4)
    everything = all_sequences(3, 4)
    label = None if cond is None else torch.full((81,), cond)
    logprob = model.logprob(everything, label)
    assert logprob.shape == (81,)
    assert logprob.double().exp().sum().item() == pytest.approx(1, abs=1e-6)
    joint = enumerate_joint(lambda tokens: model.logits(tokens, None if cond is None else label[: len(tokens)]), 4)
    torch.testing.assert_close(logprob.double().exp(), joint, rtol=1e-5, atol=1e-7)


def test_logprob_is_the_sum_of_the_log_probabilities_of_the_tokens():
    model, cond = tiny_gpt(), labels(0, 1)
    tokens = random_tokens(model, 2)
    log_p = model.logits(tokens, cond).log_softmax(-1)
    for b in range(2):
        expected = sum(log_p[b, j, x].item() for j, x in enumerate(tokens[b]))
        assert model.logprob(tokens, cond)[b].item() == pytest.approx(expected, rel=1e-6)


def test_logprob_keeps_float64_and_widens_bfloat16():
    tokens = random_tokens(tiny_gpt(), 2)
    assert tiny_gpt().logprob(tokens).dtype == torch.float64
    assert tiny_gpt(dtype=torch.bfloat16).logprob(tokens).dtype == torch.float32


def test_the_loss_is_minus_logprob_per_token():
    model, cond = tiny_gpt(), labels(0, 1, 3)
    tokens = random_tokens(model, 3)
    loss, logs = model.loss(tokens, cond)
    assert loss.item() == pytest.approx(-model.logprob(tokens, cond).mean().item() / 12, rel=1e-6)
    assert logs["nats_per_token"] == loss and not logs["nats_per_token"].requires_grad


def test_the_first_prediction_is_uniform():
    model = RasterGPT(17, 16, num_classes=10, grid_width=4, dim=16, layers=2, heads=2)
    tokens = random_tokens(model, 4)
    loss, _ = model.loss(tokens, labels(0, 3, 9, 10))
    assert loss.item() == pytest.approx(math.log(17), rel=1e-6)
    torch.testing.assert_close(model.logprob(tokens), torch.full((4,), -16 * math.log(17)))


def test_a_tiny_model_learns_four_sequences_by_heart():
    torch.manual_seed(0)
    model = RasterGPT(4, 6, num_classes=4, dim=16, layers=1, heads=2, label_dropout=0.0)
    assert learn_by_heart(model) < 0.05
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


# Label dropout


def labels_seen(model, cond, **options):
    """What the network was told when its loss was asked for."""
    seen, logits = [], model.logits
    model.logits = lambda tokens, cond: seen.append(cond) or logits(tokens, cond)
    model.loss(torch.zeros(len(cond), 1, dtype=torch.long), cond, **options)
    del model.logits
    return seen[0]


def test_labels_drop_to_the_null_class_at_their_rate_and_only_there():
    model, n, rate = tiny_gpt(label_dropout=0.2, length=4).train(), 20_000, 0.2
    cond = torch.randint(3, (n,), generator=seeded(1))
    seen = labels_seen(model, cond, generator=seeded(2))
    dropped = seen != cond
    assert (seen[dropped] == model.num_classes).all()
    assert dropped.double().mean().item() == pytest.approx(rate, abs=4 * (rate * (1 - rate) / n) ** 0.5)
    assert torch.equal(seen, labels_seen(model, cond, generator=seeded(2)))  # the same seed, the same labels
    assert not torch.equal(seen, labels_seen(model, cond, generator=seeded(3)))


def test_labels_stay_in_eval_mode_and_without_dropout():
    cond = torch.randint(3, (1000,), generator=seeded(1))
    assert torch.equal(labels_seen(tiny_gpt(label_dropout=0.5, length=4), cond), cond)
    assert torch.equal(labels_seen(tiny_gpt(label_dropout=0.0, length=4).train(), cond), cond)


# Precision and bad input


def test_a_bfloat16_model_predicts_what_the_float32_one_does():
    exact, rough = tiny_gpt(dtype=torch.float32), tiny_gpt(dtype=torch.bfloat16)
    tokens, cond = random_tokens(exact, 4), labels(0, 1, 2, 3)
    p, q = exact.logits(tokens, cond).softmax(-1), rough.logits(tokens, cond).float().softmax(-1)
    assert rough.logits(tokens, cond).dtype == torch.bfloat16
    assert ((p - q).abs().sum(-1) / 2).mean() < 0.05
    loss, _ = rough.loss(tokens, cond)
    assert loss.item() == pytest.approx(-rough.logprob(tokens, cond).mean().item() / 12, rel=1e-4)


def test_the_constructor_is_remembered():
    model = tiny_gpt()
    again = RasterGPT(**model.config)
    again.load_state_dict(model.state_dict())
    tokens = random_tokens(model, 2)
    assert torch.equal(again.double().eval().logits(tokens), model.logits(tokens))


TOKENS = torch.zeros(2, 12, dtype=torch.long)

BAD = {
    "float tokens": ((TOKENS.float(),), r"tokens must be long \(B, N\), got torch.float32 \(2, 12\)"),
    "int tokens": ((TOKENS.int(),), "got torch.int32"),
    "one sequence without batch": ((TOKENS[0],), r"got torch.int64 \(12,\)"),
    "an image": ((TOKENS.view(2, 3, 4),), r"got torch.int64 \(2, 3, 4\)"),
    "token too large": ((TOKENS + 5,), "tokens run from 5 to 5, the vocabulary from 0 to 4"),
    "token negative": ((TOKENS - 1,), "tokens run from -1 to -1"),
    "too long": ((torch.zeros(2, 13, dtype=torch.long),), "13 tokens are longer than the context of 12"),
    "float labels": ((TOKENS, torch.zeros(2)), r"labels must be long \(2,\).* got torch.float32"),
    "too few labels": ((TOKENS, labels(1)), r"labels must be long \(2,\).* got torch.int64 \(1,\)"),
    "labels of rank 2": ((TOKENS, labels(1, 1)[:, None]), r"got torch.int64 \(2, 1\)"),
    "label too large": ((TOKENS, labels(0, 4)), "labels run from 0 to 4; "),
    "label negative": ((TOKENS, labels(-1, 0)), "labels run from -1 to 0"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_refused_at_every_entrance(what):
    model, (arguments, message) = tiny_gpt(), BAD[what]
    for entrance in (model.check, model.logprob, model.loss):
        with pytest.raises(ValueError, match=message):
            entrance(*arguments)


def test_a_label_beside_the_null_class_needs_a_conditional_model():
    with pytest.raises(ValueError, match="labels run from 1 to 1"):
        tiny_gpt(num_classes=0).logprob(TOKENS, labels(1, 1))
    assert tiny_gpt(num_classes=0).logprob(TOKENS, labels(0, 0)).shape == (2,)  # the null class itself


def test_with_a_length_per_row_the_number_of_rows_must_be_given():
    model = tiny_gpt()
    with pytest.raises(ValueError, match="how many rows"):
        model.logits(TOKENS, cache=model.new_cache(2, kind=StaticKVCache))


# Trees: many continuations of one prefix in a single pass


def family(parents):
    """Depth (m,) and ancestor matrix (m, m) of a tree of which each node names an earlier one as parent, or -1."""
    ancestors = torch.eye(len(parents), dtype=torch.bool)
    for i, parent in enumerate(parents):
        if parent >= 0:
            ancestors[i] |= ancestors[parent]
    return ancestors.sum(1) - 1, ancestors


def branch(ancestors, i):
    """The nodes on the way to node i, itself included."""
    return ancestors[i].nonzero().flatten()


TREES = {
    "chain": [-1, 0, 1, 2],
    "two branches": [-1, 0, 1, 0, 3],
    "bushy": [-1, 0, 0, 1, 1, 2, 5],
    "forest": [-1, -1, 0, 1, 2],
}


@pytest.mark.parametrize("parents", TREES.values(), ids=TREES)
@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@pytest.mark.parametrize("what", ["plain", "guided", "fast"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tree_in_one_pass_equals_a_pass_per_branch(parents, kind, what, dtype):
    model = tiny_gpt(dtype=dtype)
    if what == "guided":
        model = Guided(model, torch.linspace(0.5, 2, model.length))
    if what == "fast":
        model = FastRaster(model)
    prefix, cond, (depth, ancestors) = random_tokens(model, 2, 5), labels(0, 2), family(parents)
    nodes = torch.randint(model.vocab_size, (2, len(parents)), generator=seeded(3))
    cache = model.new_cache(2, kind=kind)
    model.logits(prefix, cond, cache=cache, n=5)  # has read tokens 0 to 3: node 0 stands for token 4
    got = model.tree_logits(nodes, depth, ancestors, cache)
    for i in range(len(parents)):
        alone = torch.cat((prefix[:, :4], nodes[:, branch(ancestors, i)], prefix[:, :1]), dim=1)
        expected = model.logits(alone, cond)[:, -1]
        torch.testing.assert_close(got[:, i], expected, **close(dtype))
    assert torch.as_tensor(cache.length).unique().tolist() == [5]  # nothing is counted yet


@pytest.mark.parametrize("guided", [False, True])
def test_rows_of_different_lengths_carry_the_same_tree(guided):
    model = Guided(tiny_gpt(), 1.7) if guided else tiny_gpt()
    tokens, cond, (depth, ancestors) = random_tokens(model, 3), labels(0, 1, 2), family(TREES["bushy"])
    nodes = torch.randint(model.vocab_size, (3, len(depth)), generator=seeded(3))
    cache, lengths = model.new_cache(3, kind=StaticKVCache), [1, 5, 3]
    model.logits(tokens, cond, cache=cache, n=9)
    cache.truncate(torch.tensor(lengths))
    got = model.tree_logits(nodes, depth, ancestors, cache)
    for b, length in enumerate(lengths):
        for i in range(len(depth)):
            alone = torch.cat((tokens[b, : length - 1], nodes[b, branch(ancestors, i)], tokens[b, :1]))[None]
            expected = model.logits(alone, cond[b : b + 1])[:, -1]
            torch.testing.assert_close(got[b : b + 1, i], expected, **close(torch.float64))


@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@pytest.mark.parametrize("guided", [False, True])
def test_a_branch_that_is_kept_was_as_good_as_fed(kind, guided):
    model = Guided(tiny_gpt(), 1.7) if guided else tiny_gpt()
    tokens, cond, (depth, ancestors) = random_tokens(model, 2), labels(0, 2), family(TREES["two branches"])
    nodes = torch.randint(model.vocab_size, (2, 5), generator=seeded(3))
    nodes[:, [0, 3, 4]] = tokens[:, 4:7]  # the second branch is right
    cache = model.new_cache(2, kind=kind)
    model.logits(tokens, cond, cache=cache, n=5)
    model.tree_logits(nodes, depth, ancestors, cache)
    cache.keep(torch.tensor([[0, 3, 4], [0, 3, 4]]))
    rest = model.logits(tokens, cond, cache=cache, n=4)
    torch.testing.assert_close(rest, model.logits(tokens, cond)[:, 8:], **close(torch.float64))


def test_each_row_keeps_its_own_branch_and_may_keep_less():
    model, (depth, ancestors) = tiny_gpt(), family(TREES["two branches"])
    tokens = random_tokens(model, 2)
    nodes = torch.randint(model.vocab_size, (2, 5), generator=seeded(3))
    nodes[0, [0, 3, 4]], nodes[1, [0, 1]] = tokens[0, 4:7], tokens[1, 4:6]
    cache = model.new_cache(2, kind=StaticKVCache)
    model.logits(tokens, cache=cache, n=5)
    model.tree_logits(nodes, depth, ancestors, cache)
    cache.keep(torch.tensor([[0, 3, 4], [0, 1, 2]]))
    cache.truncate(torch.tensor([8, 7]))
    rest, full = model.logits(tokens, cache=cache, n=4), model.logits(tokens)
    for b, length in enumerate((8, 7)):
        torch.testing.assert_close(rest[b], full[b, length : length + 4], **close(torch.float64))


def test_a_tree_hangs_on_a_caption_as_well():
    model = tiny_gpt(num_classes=7, cond_length=3)
    prefix, words = random_tokens(model, 1, 5), torch.tensor([[2, 6, 1]])
    depth, ancestors = family(TREES["two branches"])
    nodes, cache = torch.randint(model.vocab_size, (1, 5), generator=seeded(3)), model.new_cache(1)
    model.logits(prefix, words, cache=cache, n=5)
    got = model.tree_logits(nodes, depth, ancestors, cache)
    for i in range(5):
        alone = torch.cat((prefix[:, :4], nodes[:, branch(ancestors, i)], prefix[:, :1]), dim=1)
        torch.testing.assert_close(got[:, i], model.logits(alone, words)[:, -1], **close(torch.float64))
