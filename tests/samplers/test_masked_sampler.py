"""Parallel decoding of masked models: the plan is kept, noise belongs to images, and one token a step is exact."""

import math

import numpy as np
import pytest
import torch
from tiny import seeded, wild
from torch import nn

from minimal.ar.masked import MaskedTransformer, cosine, linear
from minimal.nn.token_model import TokenModel
from minimal.samplers.guidance import Guided
from minimal.samplers.masked import hidden_counts, ramp, sample_masked
from minimal.statistics import all_sequences, chi_square, sequence_index


def tiny_masked(seed=0, dtype=torch.float64, **changes):
    sizes = dict(vocab_size=5, length=12, num_classes=3, grid_width=4, dim=16, layers=2, heads=2, hidden=16)
    return wild(MaskedTransformer(**(sizes | changes)), 100 * seed).to(dtype)


class Table(TokenModel):
    """The exact masked model of a joint (V,) * N: row j is p(x_j | what is visible)."""

    def __init__(self, joint):
        super().__init__()
        self.joint = nn.Parameter(joint, requires_grad=False)
        self.vocab_size, self.length, self.num_classes = joint.shape[0], joint.ndim, 0
        everything = all_sequences(self.vocab_size, self.length)
        canvases = all_sequences(self.vocab_size + 1, self.length)  # the value V is MASK
        fits = ((canvases[:, None] == everything) | (canvases[:, None] == self.vocab_size)).all(-1)
        mass = fits.double() * joint.flatten()
        mass = mass / mass.sum(1, keepdim=True)
        one = nn.functional.one_hot(everything, self.vocab_size).double()  # (V^N, N, V)
        self.table = torch.einsum("ce,env->cnv", mass, one).log()
        self.eval()

    def logits(self, tokens, cond=None, *, cache=None, n=None):
        return self.table[sequence_index(tokens, self.vocab_size + 1)]


def dependent_joint(seed=0, vocab_size=3, length=3):
    """Dirichlet(0.3) cells, mixed with 5 % of uniform: far from independent, and every sequence possible."""
    cells = np.random.default_rng(seed).dirichlet([0.3] * vocab_size**length)
    cells = 0.95 * cells + 0.05 / len(cells)
    return torch.from_numpy(cells).view((vocab_size,) * length)


class Watched(nn.Module):
    """A model that remembers how many tokens were hidden each time it was asked, and with which scale."""

    def __init__(self, model):
        super().__init__()
        self.model, self.hidden = model, []
        self.vocab_size, self.length, self.num_classes = model.vocab_size, model.length, model.num_classes
        self.check = model.check
        self.eval()

    def logits(self, tokens, cond=None, *, cache=None, n=None):
        self.hidden.append((tokens == self.vocab_size).sum(1))
        return self.model.logits(tokens, cond)


# How many


@pytest.mark.parametrize("schedule", [cosine, linear])
@pytest.mark.parametrize("num_steps", [1, 2, 3, 5, 11, 12])
@pytest.mark.parametrize("choice_temperature", [0.0, 4.5, math.inf])
def test_the_number_of_masked_tokens_falls_in_every_step_and_ends_at_zero(num_steps, schedule, choice_temperature):
    model = Watched(tiny_masked())
    sample = sample_masked(
        model, 3, num_steps=num_steps, schedule=schedule, choice_temperature=choice_temperature, generator=seeded(0)
    )
    hidden = torch.stack(model.hidden)
    assert (hidden[0] == 12).all() and (hidden.diff(dim=0) < 0).all() and len(hidden) == num_steps
    assert sample.tokens.max() < model.vocab_size and sample.tokens.shape == (3, 12)
    assert sample.trace.forwards == {"target": num_steps} and sample.trace.positions["target"] == num_steps * 36
    plan = hidden_counts(torch.tensor([12]), num_steps, schedule)[0].tolist()
    assert hidden[1:, 0].tolist() == plan[:-1] and plan[-1] == 0


def test_the_plan_is_the_rounded_schedule():
    plan = hidden_counts(torch.tensor([64]), 8, cosine)[0].tolist()
    assert plan == [math.floor(64 * math.cos(math.pi / 2 * t / 8)) for t in range(1, 8)] + [0]
    assert hidden_counts(torch.tensor([64, 3]), 64, linear)[0].tolist() == list(range(63, -1, -1))


def test_with_more_steps_than_tokens_it_stops_when_all_is_written():
    model = Watched(tiny_masked())
    sample = sample_masked(model, 2, num_steps=40, generator=seeded(0))
    assert torch.stack(model.hidden)[:, 0].tolist() == list(range(12, 0, -1))
    assert sample.trace.forwards["target"] == 12


def test_a_token_that_was_written_stays():
    model, canvases = tiny_masked(), []
    logits = model.logits
    model.logits = lambda tokens, cond=None, **o: canvases.append(tokens) or logits(tokens, cond)
    final = sample_masked(model, 4, num_steps=6, generator=seeded(1)).tokens
    for canvas in canvases:
        visible = canvas != model.vocab_size
        assert torch.equal(canvas[visible], final[visible])


# Which


def test_without_noise_the_surest_draws_are_kept():
    model, canvases = tiny_masked(), []
    logits = model.logits
    model.logits = lambda tokens, cond=None, **o: canvases.append(tokens) or logits(tokens, cond)
    sample_masked(model, 4, num_steps=3, temperature=0, choice_temperature=0.0)
    best = logits(canvases[0]).log_softmax(-1).amax(-1)
    kept = canvases[1] != model.vocab_size
    assert (best.masked_fill(~kept, torch.inf).amin(1) >= best.masked_fill(kept, -torch.inf).amax(1)).all()


def test_the_choice_temperature_shrinks_linearly_and_is_not_multiplied_up():
    """One step before the end it is tau / T, so with a small one there the surest draw is hidden last."""
    model = tiny_masked()
    noise = torch.rand(2, 4, 2, 12, generator=seeded(7))
    canvases, logits = [], model.logits
    model.logits = lambda tokens, cond=None, **o: canvases.append(tokens) or logits(tokens, cond)
    final = sample_masked(model, 2, num_steps=4, choice_temperature=3.0, generator=seeded(7)).tokens
    for t, canvas in enumerate(canvases):
        after = canvases[t + 1] if t < 3 else final
        hidden, p = canvas == model.vocab_size, logits(canvas).softmax(-1)
        drawn = (p.cumsum(-1) > noise[:, t, 0, :, None]).int().argmax(-1)
        gumbel = -(-noise[:, t, 1].double().log()).log()
        score = p.gather(-1, drawn[..., None]).squeeze(-1).log() + 3.0 * (1 - (t + 1) / 4) * gumbel
        kept = hidden & (after != model.vocab_size)
        assert torch.equal(after[kept], drawn[kept])
        lost = hidden & ~kept
        assert (score.masked_fill(~kept, torch.inf).amin(1) >= score.masked_fill(~lost, -torch.inf).amax(1)).all()


# The law


def law(**options):
    """p-value that 100,000 samples of a table follow its joint."""
    joint = dependent_joint()
    drawn = sample_masked(Table(joint), 100_000, generator=seeded(0), **options).tokens
    return chi_square(sequence_index(drawn, 3).bincount(minlength=27), joint.flatten()).p_value


@pytest.mark.slow
def test_one_token_a_step_in_random_order_follows_the_joint():
    assert law(num_steps=3, schedule=linear, choice_temperature=math.inf) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        dict(num_steps=3, choice_temperature=0.0),  # one a step, but likely draws first
        dict(num_steps=3, choice_temperature=1.0),
        dict(num_steps=2, choice_temperature=math.inf),  # two at once
        dict(num_steps=1, choice_temperature=math.inf),
    ],
    ids=["surest first", "noisy", "two at once", "all at once"],
)
def test_every_other_way_does_not(options):
    assert law(schedule=linear, **options) < 1e-6


# Whose noise


@pytest.mark.parametrize("options", [{}, {"choice_temperature": math.inf}, {"guidance": ramp(3.0)}, {"top_k": 3}])
def test_an_image_does_not_depend_on_the_batch(options):
    model, cond = tiny_masked(), torch.tensor([0, 1, 2, 0, 1, 2])
    together = sample_masked(model, 6, cond=cond, generator=seeded(3), **options).tokens
    noise = seeded(3)
    parts = [sample_masked(model, len(c), cond=c, generator=noise, **options).tokens for c in cond.split([1, 3, 2])]
    assert torch.equal(torch.cat(parts), together)
    assert torch.equal(together, sample_masked(model, 6, cond=cond, generator=seeded(3), **options).tokens)
    assert not torch.equal(together, sample_masked(model, 6, cond=cond, generator=seeded(4), **options).tokens)


# In-painting


def test_forced_tokens_stay_and_are_seen_from_the_start():
    model = Watched(tiny_masked())
    forced = torch.full((2, 12), -1)
    forced[0, :4], forced[1, 5] = torch.tensor([4, 0, 3, 1]), 2
    drawn = sample_masked(model, 2, num_steps=4, forced=forced, generator=seeded(0)).tokens
    assert torch.equal(drawn[forced >= 0], forced[forced >= 0])
    assert model.hidden[0].tolist() == [8, 11]
    assert torch.stack(model.hidden).T.tolist() == [
        [8, *hidden_counts(torch.tensor([8]), 4, cosine)[0, :-1].tolist()],
        [11, *hidden_counts(torch.tensor([11]), 4, cosine)[0, :-1].tolist()],
    ]


def test_with_everything_forced_nothing_is_asked():
    forced = torch.zeros(2, 12, dtype=torch.long)
    sample = sample_masked(tiny_masked(), 2, forced=forced)
    assert torch.equal(sample.tokens, forced) and not sample.trace.forwards


@pytest.mark.slow
def test_in_painting_one_token_a_step_follows_the_conditional():
    joint, n = dependent_joint(1), 100_000
    forced = torch.tensor([[-1, 2, -1]]).expand(n, -1)
    options = dict(num_steps=2, schedule=linear, choice_temperature=math.inf, generator=seeded(0))
    drawn = sample_masked(Table(joint), n, forced=forced, **options).tokens
    given = joint[:, 2].flatten() / joint[:, 2].sum()
    counts = sequence_index(drawn[:, [0, 2]], 3).bincount(minlength=9)
    assert chi_square(counts, given).p_value > 0.01


# Guidance


def test_a_constant_guidance_is_the_guided_model():
    model, cond = tiny_masked(), torch.tensor([0, 1, 2])
    a = sample_masked(model, 3, cond=cond, guidance=lambda done: 2.5, generator=seeded(0)).tokens
    assert torch.equal(a, sample_masked(Guided(model, 2.5), 3, cond=cond, generator=seeded(0)).tokens)
    plain = sample_masked(model, 3, cond=cond, generator=seeded(0)).tokens
    ones = sample_masked(model, 3, cond=cond, guidance=ramp(1.0), generator=seeded(0)).tokens
    assert torch.equal(plain, ones) and not torch.equal(a, plain)


def test_the_ramp_sees_the_share_of_steps_done():
    seen = []
    sample_masked(tiny_masked(), 1, cond=torch.tensor([0]), num_steps=4, guidance=lambda done: seen.append(done) or 1.0)
    assert seen == [0, 0.25, 0.5, 0.75]
    assert [ramp(3.0)(done) for done in (0, 0.5, 1)] == [1, 2, 3]


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(num_steps=0), "num_steps is 0"),
        (dict(choice_temperature=-1.0), "choice_temperature is -1.0"),
        (dict(choice_temperature=math.nan), "choice_temperature is nan"),
        (dict(schedule=lambda r: r), "falls from 1 to 0"),
        (dict(schedule=lambda r: 1 - r / 2), "falls from 1 to 0"),
        (dict(forced=torch.zeros(2, 5, dtype=torch.long)), r"forced must be \(2, 12\)"),
        (dict(forced=torch.full((2, 12), 5)), "tokens run from 5 to 5"),
        (dict(temperature=-1.0), "temperature is -1.0"),
        (dict(cond=torch.tensor([0, 9])), "labels run from 0 to 9"),
        (dict(guidance=ramp(2.0)), "guidance needs labels"),
    ],
)
def test_bad_requests_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        sample_masked(tiny_masked(), 2, **options)


def test_training_mode_and_no_samples_are_refused():
    with pytest.raises(ValueError, match="training mode"):
        sample_masked(tiny_masked().train(), 2)
    with pytest.raises(ValueError, match="at least 1"):
        sample_masked(tiny_masked(), 0)
