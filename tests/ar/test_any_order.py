"""Any-order GPT: one set of weights, an exact likelihood in every order, and in-painting by putting the known first."""

import math

import pytest
import torch
from tiny import close, seeded, wild

from minimal.ar.any_order import AnyOrderGPT
from minimal.nn.cache import KVCache, StaticKVCache
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided
from minimal.statistics import all_sequences, chi_square, enumerate_joint, sequence_index

ORDERS = {
    "raster": list(range(12)),
    "backwards": list(range(11, -1, -1)),
    "diagonal": [0, 1, 4, 2, 5, 8, 3, 6, 9, 7, 10, 11],
    "shuffled": [7, 2, 11, 0, 5, 9, 1, 10, 4, 8, 3, 6],
}
orders = pytest.mark.parametrize("order", [torch.tensor(order) for order in ORDERS.values()], ids=list(ORDERS))


def tiny_any(seed=0, dtype=torch.float64, **changes):
    sizes = dict(vocab_size=5, length=12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2, kv_heads=1, hidden=16)
    return wild(AnyOrderGPT(**(sizes | changes)), 100 * seed).to(dtype)


def random_tokens(model, batch, seed=0):
    return torch.randint(model.vocab_size, (batch, model.length), generator=seeded(seed))


# Who sees what


@orders
def test_exactly_the_rows_later_in_the_order_read_a_place(order):
    model = tiny_any()
    picture, cond, view = random_tokens(model, 2), torch.tensor([0, 2]), model.in_order(order)
    before = view.logits(picture[:, order], cond)
    for place in range(12):
        other = picture.clone()
        other[:, place] = (other[:, place] + 1) % model.vocab_size
        moved = (view.logits(other[:, order], cond) != before).any(-1)
        step = order.tolist().index(place)
        assert not moved[:, : step + 1].any() and moved[:, step + 1 :].all()


def test_a_row_depends_on_the_place_it_is_to_write_and_on_no_later_one():
    model = tiny_any()
    tokens, order = random_tokens(model, 2), torch.tensor(ORDERS["shuffled"])
    before = model.in_order(order).logits(tokens)
    for step in range(11):
        other = order.clone()
        other[[step, 11]] = order[[11, step]]  # another place is written at this step, and this one at the end
        moved = (model.in_order(other).logits(tokens) != before).any(-1)
        assert not moved[:, :step].any() and moved[:, step:].all()


def test_a_row_depends_on_where_the_tokens_before_it_lie():
    model = tiny_any()
    tokens, order = random_tokens(model, 2), torch.tensor(ORDERS["shuffled"])
    before = model.in_order(order).logits(tokens)
    for step in range(10):
        other = order.clone()
        other[[step, step + 1]] = order[[step + 1, step]]  # same tokens, two of them in each other's places
        assert (model.in_order(other).logits(tokens) != before).any(-1)[:, step + 2 :].all()


def test_keys_turn_to_where_the_token_lies_and_queries_to_where_the_next_one_goes():
    model, order, seen = tiny_any(), torch.tensor(ORDERS["shuffled"]), []
    view = model.in_order(order)
    view.rotation = lambda read, asked: seen.append((read, asked)) or model.rotation(read, asked)
    view.logits(random_tokens(model, 1))
    cache = view.new_cache(1)
    view.logits(random_tokens(model, 1), cache=cache, n=5)
    view.logits(random_tokens(model, 1), cache=cache)
    front = 12  # where the label stands: above and left of the picture
    assert model.coordinates[front].tolist() == [-1, -1] and model.coordinates[6].tolist() == [1, 2]
    for (read, asked), part in zip(seen, (slice(0, 12), slice(0, 5), slice(5, 12)), strict=True):
        assert asked[0].tolist() == ORDERS["shuffled"][part]
        assert read[0].tolist() == [front, *ORDERS["shuffled"]][part]


def test_queries_turn_by_the_place_asked_for_and_keys_by_the_place_read():
    """Shift read and asked places alike, and all scores stay: turning tells differences only."""
    model = tiny_any(length=64, grid_width=8)
    attention = model.blocks[0].attention
    x = torch.randn(1, 5, 16, generator=seeded(0), dtype=torch.float64)
    read, asked = torch.tensor([[0, 9, 18, 3, 27]]), torch.tensor([[9, 18, 3, 27, 1]])

    def scores(shift_read, shift_asked):
        q, k, _ = attention.project(x, model.rotation(read + shift_read, asked + shift_asked))
        return q @ k.mT

    torch.testing.assert_close(scores(17, 17), scores(0, 0), rtol=0, atol=1e-9)  # two rows and a column further
    assert (scores(17, 0) - scores(0, 0)).abs().max() > 0.01
    assert (scores(0, 17) - scores(0, 0)).abs().max() > 0.01


def test_a_view_shares_the_weights_and_leaves_the_model_alone():
    model = tiny_any()
    view = model.in_order(torch.tensor(ORDERS["backwards"]))
    assert model.order.tolist() == ORDERS["raster"] and view.order.tolist() == ORDERS["backwards"]
    assert all(a is b for a, b in zip(model.parameters(), view.parameters(), strict=True))
    assert "order" not in model.state_dict()


def test_every_row_may_have_its_own_order():
    model = tiny_any()
    tokens, cond = random_tokens(model, 4), torch.tensor([0, 1, 2, 3])
    own = torch.tensor(list(ORDERS.values()))
    together = model.in_order(own).logits(tokens, cond)
    for b in range(4):
        alone = model.in_order(own[b]).logits(tokens[b : b + 1], cond[b : b + 1])
        torch.testing.assert_close(together[b : b + 1], alone, **close(torch.float64))


# Caches


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("chunks", [[1] * 12, [5, 1, 6], [12]])
@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@orders
def test_cached_rows_equal_uncached_rows(order, kind, chunks, dtype):
    model = tiny_any(dtype=dtype).in_order(order)
    tokens, cond = random_tokens(model, 3), torch.tensor([0, 1, 3])
    cache, parts = model.new_cache(3, kind=kind), []
    for n in chunks:
        parts.append(model.logits(tokens, cond, cache=cache, n=n))
    torch.testing.assert_close(torch.cat(parts, dim=1), model.logits(tokens, cond), **close(dtype))


@orders
@pytest.mark.parametrize("guided", [False, True])
def test_cached_and_uncached_samples_are_equal(order, guided):
    model = tiny_any().in_order(order)
    model = Guided(model, 1.7) if guided else model
    cond = torch.tensor([0, 1, 2])
    cached, plain = (s(model, 3, cond=cond, generator=seeded(4)).tokens for s in (sample_cached, sample_uncached))
    assert torch.equal(cached, plain)


def test_guidance_knows_orders_per_row():
    own = torch.tensor(list(ORDERS.values()))
    model, cond = tiny_any(), torch.tensor([0, 1, 2, 0])
    sample = sample_cached(Guided(model.in_order(own), 1.7), 4, cond=cond, generator=seeded(4)).tokens
    noise = seeded(4)
    for b in range(4):  # image by image, noise comes from the same stream
        alone = sample_cached(Guided(model.in_order(own[b]), 1.7), 1, cond=cond[b : b + 1], generator=noise).tokens
        assert torch.equal(alone, sample[b : b + 1])


# Likelihood


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 1, 0, 2]])
def test_the_probabilities_of_all_sequences_sum_to_one(order):
    view = tiny_any(vocab_size=3, length=4, grid_width=2).in_order(torch.tensor(order))
    everything = all_sequences(3, 4)
    logprob = view.logprob(everything)
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(logprob.exp(), enumerate_joint(view.logits, 4), rtol=0, atol=1e-9)


@orders
def test_the_likelihood_does_not_depend_on_how_it_is_batched(order):
    view, cond = tiny_any().in_order(order), torch.tensor([0, 1, 2, 3])
    tokens = random_tokens(view, 4)
    whole = view.logprob(tokens, cond)
    cache, logp = view.new_cache(4), 0.0
    for n in (1, 4, 2, 5):
        first = cache.length
        rows = view.logits(tokens, cond, cache=cache, n=n).log_softmax(-1)
        logp = logp + rows.gather(-1, tokens[:, first : first + n, None]).sum((1, 2))
    torch.testing.assert_close(logp, whole, rtol=0, atol=1e-9)
    alone = torch.cat([view.logprob(tokens[b : b + 1], cond[b : b + 1]) for b in range(4)])
    torch.testing.assert_close(alone, whole, rtol=0, atol=1e-10)


def test_the_loss_shuffles_every_example_and_is_then_the_likelihood():
    model, cond = tiny_any(), torch.tensor([0, 1, 2, 3])
    picture = random_tokens(model, 4)
    shuffle = torch.rand(4, 12, generator=seeded(5)).argsort(-1)
    expected = -model.in_order(shuffle).logprob(picture.gather(1, shuffle), cond).mean().item() / 12
    loss, logs = model.loss(picture, cond, generator=seeded(5))
    assert loss.item() == pytest.approx(expected, rel=1e-9) and logs["nats_per_token"] == loss
    assert shuffle.unique(dim=0).shape == (4, 12)
    order = torch.tensor(ORDERS["shuffled"])  # a view takes tokens in its own order, as everywhere
    own = model.in_order(order).loss(picture[:, order], cond, generator=seeded(5))[0]
    mixed = order.expand(4, -1).gather(1, shuffle)
    assert own.item() == pytest.approx(
        -model.in_order(mixed).logprob(picture.gather(1, mixed), cond).mean().item() / 12
    )


def test_the_first_prediction_is_uniform():
    model = AnyOrderGPT(17, 16, num_classes=10, grid_width=4, dim=16, layers=2, heads=2)
    assert model.loss(random_tokens(model, 4))[0].item() == pytest.approx(math.log(17), rel=1e-6)


def test_every_weight_learns():
    torch.manual_seed(0)
    model = AnyOrderGPT(5, 12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2)
    torch.nn.init.normal_(model.head.weight)
    model.loss(random_tokens(model, 4), torch.tensor([0, 1, 2, 0]))[0].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


# In-painting


@pytest.mark.slow
def test_known_tokens_first_is_exact_conditioning():
    """Of the joint in that order, given the known tokens: every completion as often as it should be."""
    order = torch.tensor([2, 3, 0, 1])
    view = tiny_any(vocab_size=3, length=4, grid_width=2, seed=1).in_order(order)
    known = torch.tensor([[2, 1]])
    n = 30_000
    drawn = sample_cached(view, n, prompt=known.expand(n, -1), generator=seeded(0)).tokens
    assert (drawn[:, :2] == known).all()
    everything = all_sequences(3, 4)
    joint = view.logprob(everything).exp()
    agrees = (everything[:, :2] == known).all(1)
    given = joint[agrees] / joint[agrees].sum()
    counts = sequence_index(drawn[:, 2:], 3).bincount(minlength=9)
    assert chi_square(counts, given).p_value > 0.01
    forced = torch.cat((known, torch.full((1, 2), -1)), 1).expand(n, -1)
    assert torch.equal(sample_cached(view, n, forced=forced, generator=seeded(0)).tokens[:, :2], drawn[:, :2])
    late = view.in_order(order.flip(0))  # known tokens written last, as a raster model must: the rest did not see them
    last = sample_cached(late, n, forced=forced.flip(1), generator=seeded(0)).tokens.flip(1)
    assert chi_square(sequence_index(last[:, 2:], 3).bincount(minlength=9), given).p_value < 1e-6


# Bad input


@pytest.mark.parametrize(
    "order",
    [torch.zeros(12, dtype=torch.long), torch.arange(11), torch.arange(13), torch.arange(1, 13), torch.tensor(3)],
    ids=["repeats", "too short", "too long", "shifted", "a number"],
)
def test_what_is_no_order_is_refused(order):
    with pytest.raises(ValueError, match="names each of the places 0 .. 11 once"):
        tiny_any().in_order(order)


def test_other_bad_input():
    model, tokens = tiny_any(), torch.zeros(2, 12, dtype=torch.long)
    with pytest.raises(ValueError, match="orders for 4 rows, got a batch of 2"):
        model.in_order(torch.tensor(list(ORDERS.values()))).logprob(tokens[:2])
    for bad, message in (
        (tokens.float(), "must be long"),
        (tokens + 5, "tokens run from 5"),
        (tokens[0], "must be long"),
    ):
        for entrance in (model.logprob, model.loss):
            with pytest.raises(ValueError, match=message):
                entrance(bad)
    with pytest.raises(ValueError, match="whole pictures of 12"):
        model.loss(tokens[:, :5])
