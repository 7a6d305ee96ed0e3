"""Any-subset model: whatever is known, a row reads exactly the known tokens and the hidden ones before its own."""

import math

import pytest
import torch
from tiny import close, seeded, wild

from minimal.ar.any_subset import AnySubsetGPT, ranks
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.statistics import all_sequences, enumerate_joint

SIZES = dict(vocab_size=5, length=12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2, hidden=16)


def tiny_subset(seed=0, dtype=torch.float64, **changes):
    return wild(AnySubsetGPT(**(SIZES | changes)), 100 * seed).to(dtype)


def random_tokens(model, batch, seed=0):
    return torch.randint(model.vocab_size, (batch, model.length), generator=seeded(seed))


def places(text):
    """'.#.' -> the places of the hashes are known."""
    return torch.tensor([character == "#" for character in text])


KNOWN = {
    "nothing": places("............"),
    "a beginning": places("#####......."),
    "an end": places("........####"),
    "scattered": places(".#..##...#.#"),
    "all but one": places("#######.####"),
    "all": places("############"),
}
sets = pytest.mark.parametrize("known", list(KNOWN.values()), ids=list(KNOWN))


# Levels


def test_hidden_places_count_from_left_to_right_and_known_ones_are_zero():
    assert ranks(KNOWN["scattered"]).tolist() == [1, 0, 2, 3, 0, 0, 4, 5, 6, 0, 7, 0]
    both = torch.stack([KNOWN["nothing"], KNOWN["all"]])
    assert ranks(both).tolist() == [list(range(1, 13)), [0] * 12]


# Who reads what


@sets
def test_exactly_the_rows_of_higher_level_read_a_token(known):
    model, levels = tiny_subset(), ranks(known)
    tokens, cond = random_tokens(model, 2), torch.tensor([0, 2])
    before = model.logits(tokens, cond, levels=levels)
    for place in range(12):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % model.vocab_size
        moved = (model.logits(other, cond, levels=levels) != before).any(-1)
        assert torch.equal(moved, (levels[place] < levels).expand(2, -1))


@sets
def test_no_gradient_leaks_from_a_token_to_its_own_query_or_to_lower_levels(known):
    model, levels = tiny_subset().requires_grad_(True), ranks(known)
    seen = []
    model.embedding.register_forward_hook(lambda module, inputs, out: seen.append(out))
    logits = model.logits(random_tokens(model, 1), levels=levels)
    for place in range(12):
        [gradient] = torch.autograd.grad(logits[0, place].square().sum(), seen[0], retain_graph=True)
        reached = gradient[0].abs().sum(-1) > 0
        assert reached[0]  # the label
        assert torch.equal(reached[1:], levels < levels[place])


def test_a_mask_that_lets_a_query_read_its_own_token_is_found_out(monkeypatch):
    from minimal.ar import any_subset
    from minimal.nn.masks import not_after

    monkeypatch.setattr(any_subset, "before", not_after)
    with pytest.raises(AssertionError):
        test_exactly_the_rows_of_higher_level_read_a_token(KNOWN["scattered"])
    with pytest.raises(AssertionError):
        test_no_gradient_leaks_from_a_token_to_its_own_query_or_to_lower_levels(KNOWN["scattered"])


def test_known_tokens_read_each_other_in_both_directions():
    """With two blocks a prediction feels how known tokens were read: change one, and the content of the other moves."""
    model, levels, contents = tiny_subset(), ranks(KNOWN["scattered"]), []
    model.blocks[0].register_forward_hook(lambda module, inputs, out: contents.append(out))
    tokens = random_tokens(model, 1)
    model.logits(tokens, levels=levels)
    for place in range(12):
        other = tokens.clone()
        other[:, place] = (other[:, place] + 1) % model.vocab_size
        model.logits(other, levels=levels)
        moved = (contents[-1] != contents[0]).any(-1)[0, 1:13]
        assert torch.equal(moved, levels >= levels[place])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@sets
def test_a_row_equals_a_fresh_forward_in_which_only_earlier_tokens_are_visible(known, dtype):
    model, levels = tiny_subset(dtype=dtype), ranks(known)
    tokens, cond = random_tokens(model, 3), torch.tensor([0, 1, 3])
    whole = model.logits(tokens, cond, levels=levels)
    for place in (~known).nonzero().flatten().tolist():
        level = levels[place]
        blind = torch.where(levels < level, tokens, random_tokens(model, 3, seed=1))
        draft = model.logits(blind, cond, levels=levels.clamp(max=int(level)), asked=torch.full((3, 1), place))
        torch.testing.assert_close(draft[:, 0], whole[:, place], **close(dtype))


def test_places_of_one_level_are_predicted_from_the_same_tokens():
    model, levels = tiny_subset(), ranks(KNOWN["scattered"]).clamp(max=3)
    tokens = random_tokens(model, 2)
    other = torch.where(levels < 3, tokens, random_tokens(model, 2, seed=1))
    rows = levels == 3
    assert rows.sum() == 5
    assert torch.equal(model.logits(tokens, levels=levels)[:, rows], model.logits(other, levels=levels)[:, rows])


def test_places_may_be_asked_for_in_any_order_and_twice():
    model, levels = tiny_subset(), ranks(KNOWN["scattered"])
    tokens, asked = random_tokens(model, 2), torch.tensor([[11, 2, 2, 7], [0, 8, 3, 11]])
    whole, some = model.logits(tokens, levels=levels), model.logits(tokens, levels=levels, asked=asked)
    torch.testing.assert_close(some, whole.gather(1, asked[..., None].expand(-1, -1, 5)), **close(torch.float64))


def test_every_row_of_a_batch_may_know_something_else():
    model, cond = tiny_subset(), torch.tensor([0, 1, 2, 3, 0, 1])
    tokens, levels = random_tokens(model, 6), ranks(torch.stack(list(KNOWN.values())))
    together = model.logits(tokens, cond, levels=levels)
    for b in range(6):
        alone = model.logits(tokens[b : b + 1], cond[b : b + 1], levels=levels[b])
        torch.testing.assert_close(alone, together[b : b + 1], **close(torch.float64))


# Likelihood


@pytest.mark.parametrize("known", ["....", "#...", "..#.", "#..#", "####"])
def test_the_probabilities_of_all_completions_sum_to_one(known):
    model, known = tiny_subset(vocab_size=3, length=4, grid_width=2), places(known)
    everything = all_sequences(3, 4)
    completions = everything[(everything[:, known] == 2).all(1)]
    logprob = model.logprob(completions, known=known.expand(len(completions), -1))
    assert logprob.exp().sum().item() == pytest.approx(1, abs=1e-9)
    if not known.any():
        torch.testing.assert_close(logprob.exp(), enumerate_joint(model, 4), rtol=0, atol=1e-9)


def test_with_nothing_known_it_is_a_model_in_reading_order_and_any_plain_sampler_takes_it():
    model = tiny_subset()
    sample = sample_uncached(model, 3, cond=torch.tensor([0, 1, 2]), generator=seeded(0)).tokens
    canvas, noise = torch.zeros(3, 12, dtype=torch.long), torch.rand(3, 12, generator=seeded(0))
    for j in range(12):
        p = model.logits(canvas[:, : j + 1], torch.tensor([0, 1, 2]))[:, j].softmax(-1)
        canvas[:, j] = (p.cumsum(-1) <= noise[:, j, None]).sum(-1)
    assert torch.equal(sample, canvas)


# Training


def test_the_loss_is_the_likelihood_of_what_is_hidden_where_levels_hold_one_token():
    """The second example of each pair is written one by one: its share of the loss is its log-likelihood."""
    model, tokens, seen = tiny_subset(), None, []
    tokens = random_tokens(model, 40)
    plain = model.logits

    def spy(x, cond=None, *, levels, **options):
        seen.append(levels)
        return plain(x, cond, levels=levels, **options)

    model.logits = spy
    loss, logs = model.loss(tokens, torch.zeros(40, dtype=torch.long), generator=seeded(0))
    levels = seen[0]
    known = levels == 0
    assert torch.equal(levels[1::2], ranks(known)[1::2])
    drafted = (levels != ranks(known)).any(1)
    assert not drafted[1::2].any() and drafted[::2].float().mean() > 0.5
    for row in levels[::2]:  # drafts are the last of what is hidden, all in one level
        assert torch.equal(row, ranks(row == 0).clamp(max=int(row.max())))
    hidden = (~known).sum(1)
    assert hidden.min() >= 1 and hidden.max() <= 12 and len(hidden.unique()) > 8
    logp = plain(tokens, torch.zeros(40, dtype=torch.long), levels=levels).log_softmax(-1)
    logp = logp.gather(-1, tokens[..., None]).squeeze(-1)
    assert loss.item() == pytest.approx(-logp[~known].mean().item(), rel=1e-6)
    assert logs["nats_per_hidden_token"] == loss
    alone = model.logprob(tokens[1:2], torch.zeros(1, dtype=torch.long), known=known[1:2]).item()
    assert alone == pytest.approx(logp[1][~known[1]].sum().item(), rel=1e-9)


def test_the_first_prediction_is_uniform():
    model = AnySubsetGPT(17, 16, num_classes=10, grid_width=4, dim=16, layers=2, heads=2)
    assert model.loss(random_tokens(model, 4))[0].item() == pytest.approx(math.log(17), rel=1e-6)


def test_every_weight_learns():
    torch.manual_seed(0)
    model = AnySubsetGPT(5, 12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2)
    torch.nn.init.normal_(model.head.weight)
    model.loss(random_tokens(model, 8), torch.tensor([0, 1, 2, 0] * 2))[0].backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in model.parameters())


# Bad input


def test_bad_input():
    model, tokens = tiny_subset(), torch.zeros(2, 12, dtype=torch.long)
    with pytest.raises(ValueError, match="known is boolean"):
        ranks(torch.zeros(12))
    for levels in (torch.zeros(11, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long), torch.zeros(12)):
        with pytest.raises(ValueError, match="ranks"):
            model.logits(tokens, levels=levels)
    with pytest.raises(ValueError, match="not negative"):
        model.logits(tokens, levels=torch.full((12,), -1))
    with pytest.raises(ValueError, match="without a cache"):
        sample_cached(model, 2)
    for bad, message in ((tokens.float(), "must be long"), (tokens + 5, "tokens run from 5"), (tokens[0], "be long")):
        for entrance in (model.logprob, model.loss):
            with pytest.raises(ValueError, match=message):
                entrance(bad)
