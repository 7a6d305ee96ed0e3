# %% [markdown]
# # Jacobi iteration: solve for all tokens at once
#
# | | |
# | --- | --- |
# | **You will build** | a sampler that guesses everything and repairs it until nothing changes, and four variations of it |
# | **Time** | half a minute on a laptop, without a GPU |
# | **You need** | the transformer with its cache; speculative sampling as in the tour |
# | **Of the five nouns** | sampler |
# | **Systems** | Jacobi decoding, speculative Jacobi decoding, lookahead decoding, Jacobi Forcing |
#
# A draft model is a nuisance. It must be trained, kept, and called between any two passes of the model that we care about. Can a model
# be its own draft? One pass over 64 tokens gives 64 forecasts, whether or not the tokens are right. So write down *anything*, let the
# model correct all of it, and repeat. It sounds too careless to be exact. It is exact to the last token. Whether it is *fast* depends on
# the data far more than one would think.

# %% tags=["exercise-setup"]
import time
import zlib

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import ListedColormap

from minimal import checkpoints, data, recipes, viz
from minimal.ar.histogram import Histogram
from minimal.ar.jacobi_forcing import forcing_loss, noisy_blocks, progressive, right_so_far
from minimal.ar.raster import RasterGPT
from minimal.metrics import context_sensitivity
from minimal.recipes.text import nats_per_character, pydoc, windows
from minimal.samplers import lookahead
from minimal.samplers.cached import sample_cached
from minimal.samplers.jacobi import gumbel_draw, sample_jacobi, settled, trajectories
from minimal.samplers.logits import draw, probabilities
from minimal.samplers.lookahead import sample_lookahead
from minimal.samplers.multi_block import sample_multi_block
from minimal.samplers.speculative import verify
from minimal.samplers.speculative_jacobi import sample_speculative_jacobi
from minimal.statistics import chi_square, enumerate_joint, sequence_index

viz.style()
torch.set_num_threads(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The question
#
# Start where there is no network. A sequence counts modulo seven: its first token is 0, each further one is its predecessor plus one. As
# a function from a guess $y$ of shape $(n,)$ to corrected tokens of the same shape:
#
# $$f(y)_0 = 0, \qquad f(y)_j = (y_{j-1} + 1) \bmod 7.$$
#
# The sequence that we want is the one that $f$ does not change, $y = f(y)$. Begin with zeros, and apply $f$ to all tokens at once:

# %%
def count(y):
    return torch.cat((torch.zeros_like(y[..., :1]), (y[..., :-1] + 1) % 7), dim=-1)


def iterate(f, y):
    """All iterates (passes + 1, n) from the guess y (n,) to the first that f leaves alone."""
    history = [y]
    while not torch.equal(new := f(history[-1]), history[-1]):
        history.append(new)
    return torch.stack(history)


for k, y in enumerate(iterate(count, torch.zeros(10, dtype=torch.long))):
    print(f"after {k} passes   {' '.join(map(str, y.tolist()))}")

# %% [markdown]
# The right beginning grows by one token per pass, and never by more: no token can be known before its predecessor. Nine passes repair nine
# tokens, and sequential counting would have been as fast. Now the same iteration for two networks. One draws digits of 64 pixels,
# the other writes the documentation of Python, character by character. For both, $f$ is *one pass over the whole guess*:
#
# $$f(y)_j = \mathrm{draw}\bigl(p(\cdot \mid y_0, \dots, y_{j-1}),\, u_j\bigr),$$
#
# where $p$ has shape $(V,)$ and $u_j$ is a uniform number, drawn once for each place and then *kept*. `draw` is the inverse of the
# cumulative distribution, so that the token is a function of $p$ and $u_j$. (Greedy decoding needs no $u$.)

# %%
digits, text = checkpoints.load("digits_ar"), checkpoints.load("pydoc_ar")
pictures, characters = data.load("digits", "validation"), pydoc("validation")
pixels = recipes.pixel_tokenizer(data.load("digits", "train"))
pages = windows(characters.tokens)  # (134, 288)
P = 224  # characters of a page that are given; 64 are to come


def correct(model, noise, cond=None, prompt=None):
    """f for unknowns (64,) behind a prompt (P,), with noise (64,)."""

    @torch.inference_mode()
    def f(y):
        whole = y[None] if prompt is None else torch.cat((prompt, y))[None]
        return draw(model.logits(whole, cond)[0, -64:], noise)

    return f


u = torch.rand(64, generator=seeded(2))
zeros = torch.zeros(64, dtype=torch.long)
histories = {
    "counting": iterate(count, zeros),
    "text": iterate(correct(text, u, prompt=pages[3, :P]), zeros),
    "a digit": iterate(correct(digits, u, cond=torch.tensor([3])), zeros),
}
for name, history in histories.items():
    print(f"{name:9s} {len(history) - 1:3d} passes for 64 tokens")

# %% mystnb={"figure": {"caption": "Each row is a pass, each column a token. Dark: wrong. Light: right, but nobody can know it yet. White: certain, because everything in front has stopped changing. In counting and in text the boundary is a diagonal; the pixels of a digit come right in stripes, long before their turn.", "name": "fig-5a-04-heat"}, "image": {"alt": "Three panels of passes over tokens. Counting shows a dark triangle above a diagonal, with thin light diagonals in it. Text shows nearly the same triangle, with a few light cells. The digit is done after a third of the passes, and wide light vertical stripes fill most of that third."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(9.2, 3.4), sharey=True)
shades = ListedColormap(["#ffffff", viz.SKY, viz.INK])
for ax, (name, history) in zip(axes, histories.items()):
    wrong = history != history[-1]
    certain = torch.zeros_like(wrong)
    length = 0
    for k in range(1, len(history)):
        rest = slice(length, 64)
        length += settled(history[k - 1 : k, rest], history[k : k + 1, rest]).item()
        certain[k, :length] = True
    state = 1 - certain.int() + wrong.int()
    box = (0, 64, len(history) - 0.5, 0.5)
    ax.imshow(state[1:], cmap=shades, vmin=0, vmax=2, aspect="auto", extent=box)
    ax.set(title=f"{name}: {len(history) - 1} passes", xlabel="token", ylim=(64.5, 0.5))
    ax.set_xticks(range(0, 65, 16))
    ax.grid(False)
axes[0].set_ylabel("pass");

# %% [markdown]
# Two of the three pictures are nearly the same. That is the surprise of this chapter in one figure, and it will be a number below.
#
# ## Why it is exact
#
# $f(y)_0$ does not depend on $y$ at all, so it is right after one pass. If the first $j$ tokens of $y$ are right, then the first $j + 1$
# tokens of $f(y)$ are. By induction $n$ passes make $n$ tokens right, from any guess, and since a fixed point must have the right first
# token, then the right second one, and so on, there is no other. It is the sequence that sequential decoding draws with the same $u$.
#
# How does one *notice* that tokens are right, without knowing the answer? Compare a pass with the one before. As long as nothing changed,
# the inputs were what the outputs say, and the next token was computed from a right beginning. So is the first token that *did*
# change. Everything up to and including the first change is settled. Behind it nothing is, whether it changed or not: it was computed
# from a wrong token. In the figure these are the light stripes.
#
# Settled tokens need not be computed again. Keep a block of $B$ unknowns and let it slide: what is settled leaves on the left, fresh guesses
# enter on the right. This is the whole sampler, without its cache:

# %%
@torch.inference_mode()
def jacobi(model, noise, block, cond=None, prompt=None):
    """Tokens (N,) by a sliding block, with noise (N,), and the number of passes."""
    N, length, passes = model.length, 0 if prompt is None else len(prompt), 0
    y = torch.zeros(1, N, dtype=torch.long)
    if prompt is not None:
        y[0, :length] = prompt
    while length < N:
        here = slice(length, min(length + block, N))
        new = draw(model.logits(y[:, : here.stop], cond)[:, here], noise[None, here])
        unchanged = (new == y[:, here]).cumprod(1).sum().item()
        y[:, here], passes = new, passes + 1
        length = min(length + unchanged + 1, here.stop)
    return y[0], passes


one = {  # one sequence of each
    "digits": (digits, {"cond": torch.tensor([3])}),
    "text": (text, {"prompt": pages[3:4, :P]}),
}
for model, given in one.values():
    mine = {name: x[0] if name == "prompt" else x for name, x in given.items()}
    answer = sample_cached(model, 1, **given, generator=seeded(0)).tokens[0]
    for block in (8, 16, 64):
        y, passes = jacobi(model, torch.rand(model.length, generator=seeded(0)), block, **mine)
        package = sample_jacobi(model, 1, block=block, **given, generator=seeded(0))
        assert torch.equal(y, answer) and torch.equal(package.tokens[0], answer)
        assert passes == package.trace.forwards["target"]
print("three block sizes, two models: token for token what sequential decoding draws")

# %% [markdown]
# The noise must be kept. Draw a fresh number for every token in every pass, and each pass is a different equation:

# %%
generator = seeded(3)
fresh = lambda y: correct(digits, torch.rand(64, generator=generator), torch.tensor([3]))(y)
kept = correct(digits, u, torch.tensor([3]))
changes = {"noise kept": [], "fresh noise": []}
for (name, counts), f in zip(changes.items(), (kept, fresh)):
    y = zeros
    for _ in range(30):
        new = f(y)
        counts.append(int((new != y).sum()))
        y = new
    print(f"{name:11s} tokens changed in passes 1, 4, 7, ...:", *counts[::3])
assert changes["noise kept"][-1] == 0 and min(changes["fresh noise"]) > 16

# %% [markdown]
# ## Is the target worth it?
#
# A model that ignores what it has read is solved in two passes, and a speed-up on it means nothing. So, before any speed: the loss on
# held-out data (of the text, 40 pages), the loss of a *histogram* that knows the place (and the class) but no other token, and how much a forecast moves when the
# beginning is exchanged for that of another example (total variation, between 0 and 1).

# %%
train = data.load("digits", "train")
codes, labels = pixels.encode(pictures.images), pictures.labels
blind = Histogram(pixels.encode(train.images), 17, train.labels, 10)
common = pydoc("train").tokens.bincount(minlength=96)  # no place is like another in a text
letters = (common / common.sum())[pages[:40]].log()
with torch.inference_mode():
    worth = {
        "digits": (
            -digits.logprob(codes, labels).mean().item() / 64,
            -blind.logprob(codes, labels).mean().item() / 64,
            context_sensitivity(digits, codes, labels),
        ),
        "text": (
            nats_per_character(text, pages[:40]),
            -letters.mean().item(),
            context_sensitivity(text, pages[:20]),
        ),
    }
print("nats per token   model   histogram   context sensitivity")
for name, (loss, blind_loss, sensitivity) in worth.items():
    print(f"{name:14s} {loss:7.3f} {blind_loss:11.3f} {sensitivity:16.2f}")
assert worth["digits"][2] < 0.5 < worth["text"][2]

# %% [markdown]
# Both models beat their histogram. But the digits do so by a quarter, and more than half of each forecast stays as it is when the
# beginning is that of another image. Tell the class, and pixels depend on each other only weakly. Text is another world: what counts is
# what was read.
#
# ## Passes per token
#
# We draw 20 digits, and continue 4 pages by 64 characters. An iteration over a block is not a step over one token, so the
# *positions* that were computed stand beside the passes.

# %%
cases = {
    "digits": (digits, 20, {"cond": torch.arange(20) % 10}),
    "text": (text, 4, {"prompt": pages[::34, :P]}),
}


def cost(sampler, name, **options):
    """Passes per new token, positions per new token, and the tokens."""
    model, n, given = cases[name]
    sample = sampler(model, n, **given, **options, generator=seeded(0))
    prompt = n * P if name == "text" else 0  # read once, by every sampler
    rows, positions = sample.trace.rows["target"], sample.trace.positions["target"]
    return rows / (n * 64), (positions - prompt) / (n * 64), sample.tokens


passes, answers = {}, {}
for name in cases:
    for temperature in (0, 1):
        *_, answers[name, temperature] = cost(sample_cached, name, temperature=temperature)
print("                    block   passes per token   positions per token")
for name, temperature in answers:
    for block in (8, 16, 64):
        options = dict(block=block, temperature=temperature)
        rate, positions, tokens = cost(sample_jacobi, name, **options)
        assert torch.equal(tokens, answers[name, temperature])
        passes[name, temperature, block] = rate
        kind = f"{name}, {'sampled' if temperature else 'greedy'}"
        print(f"{kind:18s} {block:6d} {rate:18.3f} {positions:21.1f}")

# %% [markdown]
# The digits need a third of the passes, without any training and without a draft. Sampled text needs nearly nine tenths; for large
# language models a speed-up of 1.05 is reported ([2403.00835](https://arxiv.org/abs/2403.00835)). The method is the same, the code is the same. *A speed-up
# measured on data with weak dependence says something about the data.* And blocks beyond 16 bring next to nothing: they cost positions,
# and far behind a wrong token a guess is not worth much.
#
# The clock, for one sequence and blocks of 16. Each time is a median over alternating runs, as a multiple of cached decoding:

# %% tags=["nbval-ignore-output"]
def seconds(*runs, repeats=3):
    """Median processor time of each run, in turns."""
    times = [[] for _ in runs]
    for _ in range(repeats):
        for run, spent in zip(runs, times):
            start = time.thread_time()
            run()
            spent.append(time.thread_time() - start)
    return [sorted(spent)[repeats // 2] for spent in times]


for name, (model, given) in one.items():
    plain, fast = seconds(
        lambda: sample_cached(model, 1, **given, generator=seeded(0)),
        lambda: sample_jacobi(model, 1, **given, generator=seeded(0)),
    )
    print(f"{name:7s} Jacobi takes {fast / plain:.2f} of the time of cached decoding")

# %% [markdown]
# A pass over 16 positions costs more than a step over one, but not 16 times as much. So the digits win by the clock as well, and text loses.
#
# Does the first guess matter? Zeros are black pixels, and no character at all. Try random tokens, and for each place the token that a
# histogram thinks most likely:

# %%
favourites = {
    "digits": blind.table[cases["digits"][2]["cond"]].argmax(-1),
    "text": common.argmax().expand(4, text.length),
}
print("passes per token, block 16    zeros   random   most common")
for name, (model, n, _) in cases.items():
    dice = torch.randint(model.vocab_size, (n, model.length), generator=seeded(5))
    rates = []
    for guess in (None, dice, favourites[name].contiguous()):
        rate, _, tokens = cost(sample_jacobi, name, block=16, guess=guess)
        assert torch.equal(tokens, answers[name, 1])
        rates.append(rate)
    print(f"{name:22s} {rates[0]:12.3f} {rates[1]:8.3f} {rates[2]:13.3f}")

# %% [markdown]
# Never the sample, only the number of passes.
#
# ## Which noise?
#
# Why did the digits need any more than two passes? Because behind a wrong token stands another distribution, and the same $u_j$ may select
# another token from it. How often depends on *how* noise selects. Inverse CDF lays the tokens side by side on $[0, 1)$ and looks where $u$
# falls. If $q$ stood behind the wrong token and $p$ stands behind the right one, the guess was good when $u$ falls into the segments of the
# same token in both. The *Gumbel rule* gives each token its own number and takes the winner, which is $\sim p$ too:
#
# $$y_j = \arg\max_v \bigl(\log p(v) + G_{jv}\bigr), \qquad G = -\log(-\log u),$$
#
# with $u$ of shape $(N, V)$.
#
# Grey levels are ordered, characters are not. So one would expect inverse CDF to suit grey levels. Compute the chance of a good guess for
# both, and for the best coupling there is, $\sum_v \min(p(v), q(v)) = 1 - \mathrm{TV}$, on real pairs: $q$ behind a first, mostly wrong iterate, $p$
# behind the final tokens.

# %%
def same_by_cdf(p, q):
    """Chance that one u falls into the same token's segment of p and q (..., V)."""
    P, Q = p.cumsum(-1), q.cumsum(-1)
    overlap = torch.minimum(P, Q) - torch.maximum(P - p, Q - q)
    return overlap.clamp(min=0).sum(-1)


def same_by_gumbel(p, q):
    """Chance that one token wins in both: its share if it met the larger odds of each rival."""
    odds = torch.maximum(p[..., None, :] / p[..., None], q[..., None, :] / q[..., None])
    return (1 / odds.sum(-1)).sum(-1)


def best(p, q):
    return torch.minimum(p, q).sum(-1)


@torch.inference_mode()
def pairs(name):
    """p behind the final tokens, q behind the first iterate, (n, 63, V): all places but one."""
    model, n, given = cases[name]
    final, cond, first = answers[name, 1], given.get("cond"), model.length - 64
    noise = torch.rand(n, model.length, generator=seeded(0))
    guess = final.clone()
    guess[:, first:] = 0
    guess[:, first:] = draw(model.logits(guess, cond), noise)[:, first:]
    look = lambda tokens: probabilities(model.logits(tokens, cond)[:, first + 1 :]).double()
    return look(final), look(guess)


print("chance of a good guess   inverse CDF   Gumbel   best")
chance = {}
for name in cases:
    p, q = pairs(name)
    chance[name] = [f(p, q).mean().item() for f in (same_by_cdf, same_by_gumbel, best)]
    print(f"{name:22s} {chance[name][0]:13.3f} {chance[name][1]:8.3f} {chance[name][2]:6.3f}")
    assert chance[name][0] < chance[name][1] < chance[name][2]

p, q = (x.flatten(0, 1) for x in pairs("digits"))
j = int((same_by_gumbel(p, q) - same_by_cdf(p, q)).argmax())  # the pixel of the figure
u = torch.rand(20_000, 17, generator=seeded(1)).double()  # the formulas, tried out
won = (gumbel_draw(p[j].log(), u) == gumbel_draw(q[j].log(), u)).double().mean()
by_cdf = lambda d: draw(d.log().expand(20_000, -1), u[:, 0])
fell = (by_cdf(p[j]) == by_cdf(q[j])).double().mean()
assert abs(won - same_by_gumbel(p[j], q[j])) < 0.015
assert abs(fell - same_by_cdf(p[j], q[j])) < 0.015

# %% mystnb={"figure": {"caption": "One pixel, two distributions over grey levels. Inverse CDF: both are laid out along u, and a guess is good where segments above each other belong to the same level (marked). This is the pixel where it fails worst: a little mass leaves the dark end, and all that follows is shifted.", "name": "fig-5a-04-coupling"}, "image": {"alt": "Two bars above each other, each split into segments of seventeen grey levels, much alike but shifted against each other. Segments of equal level meet only at the two ends, where short amber marks stand."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(7.6, 1.9))
for height, d in ((1, q[j]), (0, p[j])):
    left = 0.0
    for level in range(17):
        shade = dict(color=str(0.1 + 0.85 * level / 16), ec=viz.GREY, lw=0.4)
        ax.barh(height, d[level], left=left, height=0.55, **shade)
        left += d[level].item()
ends = torch.stack((p[j], q[j])).cumsum(1)
starts = torch.maximum(*(ends - torch.stack((p[j], q[j]))))
for low, high in zip(starts, torch.minimum(*ends)):
    if high > low:
        ax.plot([low, high], [0.5, 0.5], color=viz.AMBER, lw=5, solid_capstyle="butt")
ax.set_yticks([1, 0], ["q, the guess", "p, the answer"])
numbers = [rule(p[j], q[j]) for rule in (same_by_cdf, same_by_gumbel, best)]
title = "good guess: inverse CDF {:.2f}, Gumbel {:.2f}, best {:.2f}".format(*numbers)
ax.set(xlabel="u", xlim=(0, 1), title=title)
ax.grid(False);

# %% [markdown]
# The expectation was wrong. A guess is good or it is not: a *near* miss of a grey level is a miss. And what one segment gains shifts all
# those behind it, so that inverse CDF may lose many times the total variation. Gumbel loses at most $2\,\mathrm{TV} / (1 + \mathrm{TV})$, whatever the
# order, and in the worst case no rule does better that sees $p$ and $q$ one at a time ([2408.07978](https://arxiv.org/abs/2408.07978)). One argument of the sampler changes the rule. With Gumbel noise the sequential sample is another one, and again the block does not
# matter:

# %%
print("passes per token, block 16   inverse CDF   Gumbel")
for name in cases:
    for_cdf = passes[name, 1, 16]
    rate, _, tokens = cost(sample_jacobi, name, block=16, gumbel=True)
    assert torch.equal(tokens, cost(sample_jacobi, name, block=8, gumbel=True)[2])
    print(f"{name:26s} {for_cdf:13.3f} {rate:8.3f}")
    assert rate < for_cdf

# %% [markdown]
# ## Keep guesses by a coin
#
# The best coupling is within reach. It is what speculative sampling does: a guess $x \sim q$ is kept with probability $\min(1, p(x)/q(x))$, and
# otherwise replaced by a draw from $(p - q)_+$. We know $q$: it is what the *last* pass said of this place. So let the last iterate be
# the draft. This is speculative Jacobi decoding; `verify` is the judge of speculative sampling, unchanged. A round in three lines:
#
# ```python
# p = probabilities(model.logits(canvas, cond, cache=cache, n=block))
# kept, token = verify(p, q, guesses, coins, repair)
# q = p[..., kept + 1 :]     # what this pass said of the places behind is the next draft
# ```
#
# There is a simpler judge for guesses of which *no* distribution is known, from a dictionary or a pool: keep $x$ with probability $p(x)$,
# otherwise draw from $p$ without $x$. It needs no code of its own. It is `verify` with all of $q$ on the guess:

# %%
j = int(p.amax(-1).sub(0.6).abs().argmin())  # a pixel that is fairly sure
guess, n = int(p[j].argmax()), 50_000
noise = torch.rand(n, 2, generator=seeded(0)).double()
point = torch.zeros_like(p[j]).index_fill(0, torch.tensor(guess), 1.0)
drafts = torch.full((n, 1), guess)
coins, repair = noise[:, :1], noise[:, 1:].expand(-1, 2)
kept, token = verify(p[j].expand(n, 2, -1), point.expand(n, 1, -1), drafts, coins, repair)
out = torch.where(kept == 1, guess, token)
test = chi_square(out.bincount(minlength=17), p[j])
print(f"kept {kept.double().mean():.3f} of the guesses, p is {p[j, guess]:.3f} there", end="; ")
print("outputs pass the chi-square test" if test.p_value > 0.01 else "outputs fail")
assert abs(kept.double().mean() - p[j, guess]) < 0.01 and test.p_value > 0.01

# %% [markdown]
# Is the whole sampler exact? Its guesses come from beginnings that turned out wrong, and each place uses the same three random numbers in
# every pass. The argument is in the module: before the coin of a place is thrown, everything there was decided by the noise of earlier
# places and by the one number that draws its guess. The test draws 100,000 sequences from a small random transformer, of which all
# $3^4$ probabilities are known.

# %%
torch.manual_seed(0)
small = RasterGPT(3, 4, dim=8, layers=1, heads=1, hidden=8).eval().requires_grad_(False)
for weight in small.parameters():
    weight.copy_(torch.randn_like(weight) * 0.8)
generator = seeded(1)
many = lambda: sample_speculative_jacobi(small, 20_000, block=4, generator=generator).tokens
drawn = torch.cat([many() for _ in range(5)])
test = chi_square(sequence_index(drawn, 3).bincount(minlength=81), enumerate_joint(small, 4))
print("100,000 sequences", "pass" if test.p_value > 0.01 else "fail", "the chi-square test")
assert test.p_value > 0.01

print("from random guesses, block 16   inverse CDF   Gumbel   by a coin")
for name, (model, n, _) in cases.items():
    dice = torch.randint(model.vocab_size, (n, model.length), generator=seeded(5))
    options = dict(block=16, guess=dice)
    rates = [cost(sample_jacobi, name, **options, gumbel=gumbel)[0] for gumbel in (False, True)]
    rates.append(cost(sample_speculative_jacobi, name, block=16)[0])
    print(f"{name:29s} {rates[0]:13.3f} {rates[1]:8.3f} {rates[2]:11.3f}")
    assert max(rates[1:]) < rates[0]

# %% [markdown]
# Better couplings save passes, and Gumbel is nearly as good as the best one, as the chances above said. The coin has another price: its
# sample is no longer the sequential one, it only has the same distribution. And no coupling changes what digits and text have taught us.
#
# ## Lookahead: keep what stood in the wrong place
#
# Text punishes Jacobi iteration because a guess behind a wrong token is usually wrong *there*. But it may be a good phrase, one place too
# early. Lookahead decoding keeps such phrases. Each pass does two things at once, under one mask:
#
# * a **window** of $W$ columns and $N - 1$ rows, the last $N - 1$ iterates, each row one place further to the right. Its pass makes the
#   next iterate, and turns each column into a phrase of $N$ tokens. The phrase goes into a pool, under its first token.
# * **candidates**, up to $g$ phrases from the pool that begin with the last token of the text. If their next tokens are what the model
#   draws there, with the noise of the place, they are right, and up to $N$ tokens come at once.

# %% mystnb={"figure": {"caption": "The mask of one pass with W = 5, N = 4 and three candidates: a row is a query. Blue, amber and green are the three rows of the window, red the candidates. All of them see what is cached, and column 0, the last token of the text.", "name": "fig-5a-04-mask"}, "image": {"alt": "A square mask of 24 queries and keys. The first five form a triangle, the next ten see a part of the first row and their own column as diagonals, and three small triangles at the lower right are the candidates."}} tags=["hide-input"]
depth, ancestors = lookahead.tree(5, 4, 3)
group = torch.cat((torch.arange(3).repeat_interleave(5), torch.full((9,), 3)))
ax = viz.mask_picture(ancestors, levels=group)
ax.set(xlabel="keys", ylabel="queries")
for at, label in ((2, "row 0"), (7, "row 1"), (12, "row 2"), (19, "candidates")):
    ax.text(24, at, label, va="center")

# %% [markdown]
# The window pays when a text repeats itself. We take the four pages of the validation text that `zlib` compresses best, and four from the
# middle of that list.

# %%
size = torch.tensor([len(zlib.compress(characters.decode(page).encode())) for page in pages])
order = size.argsort()
chosen = {"repetitive": pages[order[:4]], "ordinary": pages[order[len(order) // 2 :][:4]]}
rates = {}
print("                       passes per token                 positions per token")
print("                       cached   Jacobi   lookahead      lookahead")
for kind, some in chosen.items():
    for temperature in (0, 1):
        given = dict(prompt=some[:, :P], temperature=temperature)
        plain, fast, ahead = (
            sampler(text, 4, **given, generator=seeded(0))
            for sampler in (sample_cached, sample_jacobi, sample_lookahead)
        )
        assert torch.equal(plain.tokens, fast.tokens)
        assert torch.equal(plain.tokens, ahead.tokens)
        rate = [s.trace.rows["target"] / (4 * 64) for s in (plain, fast, ahead)]
        positions = (ahead.trace.positions["target"] - 4 * P) / (4 * 64)
        rates[kind, temperature] = rate
        label = f"{kind}, {'sampled' if temperature else 'greedy'}"
        print(f"{label:21s} {rate[0]:7.3f} {rate[1]:8.3f} {rate[2]:11.3f} {positions:14.1f}")
        assert rate[2] < rate[1]

# %% [markdown]
# The text is the same, token for token, greedy or sampled, and phrases save far more passes than guesses that stay in their place, most of
# all where the text repeats itself. The price is in the last column: a pass looks at up to $(W + g)(N - 1)$ positions, here 30.
# On an idle GPU they cost little; by the clock of this machine:

# %% tags=["nbval-ignore-output"]
for kind, some in chosen.items():
    given = dict(prompt=some[:1, :P], temperature=0)
    plain, ahead = seconds(
        lambda: sample_cached(text, 1, **given), lambda: sample_lookahead(text, 1, **given)
    )
    print(f"{kind:10s} lookahead takes {ahead / plain:.2f} of the time of cached decoding")

# %% [markdown]
# On such pages it is between even and a quarter faster. That is less than the passes promise, and more than the positions do: in a network
# as small as this one, much of a pass is overhead that does not depend on its width ([chapter 1](01_caches_and_roofline.ipynb)).

# %% [markdown]
# ## Jacobi Forcing
#
# Text gains so little because a wrong character makes everything behind it wrong as well. But must it? A network that has seen half-solved
# blocks might say much about the end of a block whose middle is still garbage. Ours never has: in training every character stood behind
# a right beginning. Jacobi Forcing shows the network what it will have to read. Run greedy Jacobi iteration behind many prompts, keep
# *every iterate*, and train on these paths. Here is one path of `pydoc_ar`, and one of the same network after such training.

# %%
forced = checkpoints.load("pydoc_jacobi")
block = 16
prompt = pages[6:7, :P]
paths = {}
for name, model in (("before", text), ("after", forced)):
    paths[name] = trajectories(model, prompt, block, temperature=0)[0]  # (4, 17, 16)
    needed = (right_so_far(paths[name][None]) < block).sum(-1)[0]
    print(f"{name:7s} passes until each of 4 blocks is right: {needed.tolist()}")

# %% mystnb={"figure": {"caption": "The same 32 characters of greedy text, in two blocks, pass by pass, before training (top) and after (bottom). Dark: wrong. Light: right, but behind something wrong. White: the right beginning. Dots are spaces, ¶ is a new line.", "name": "fig-5a-04-paths"}, "image": {"alt": "Four tables of sixteen characters by pass. Before training the right beginning grows by one character a pass, a staircase in both blocks. After training the first block is right in nine passes instead of fifteen, whole words at once, and the second in two."}} tags=["hide-input"]
figure, axes = plt.subplots(2, 2, figsize=(8.6, 7.2), sharex=True, sharey=True)
shades = ListedColormap(["#ffffff", viz.SKY, viz.INK])
for (name, path), pair in zip(paths.items(), axes):
    for b, ax in enumerate(pair):
        wrong = path[b] != path[b, -1]
        behind = wrong.cumsum(-1) > 0
        ax.imshow(behind.int() + wrong.int(), cmap=shades, vmin=0, vmax=2, aspect="auto")
        for k, row in enumerate(path[b]):
            letters_ = characters.decode(row).replace("\n", "¶").replace(" ", "·")
            for j, letter in enumerate(letters_):
                look = dict(ha="center", va="center", fontsize=7.5, family="monospace")
                ax.text(j, k, letter, color="white" if wrong[k, j] else viz.INK, **look)
        ax.set_title(f"{name}, block {b + 1}: {int(behind.any(-1).sum())} passes")
        ax.set_xticks(range(0, block, 5))
        ax.grid(False)
    pair[0].set_ylabel("pass")
for ax in axes[1]:
    ax.set_xlabel("place in the block")

# %% [markdown]
# Let $y$ of shape $(n,)$ be an iterate of a block, $x$ its fixed point, and $m$ the length of the right beginning of $y$. Its *noise*
# is $(n - m) / n$. The loss asks the network to say behind the noisy block what it says behind the right one, from the first wrong
# entry on, and to go on saying the text itself:
#
# $$\mathcal{L} = \frac{1}{n - m} \sum_{j \ge m} \mathrm{CE}\bigl(\bar p(\cdot \mid x_{<j}),\, p(\cdot \mid y_{<j})\bigr) \; - \; \frac{\lambda}{n} \sum_{j} \log p(x_j \mid x_{<j}).$$
#
# Both distributions have shape $(V,)$; the bar stops the gradient. Sequential decoding never reads $y$, so nothing in the first term asks
# the network to write anything else than before. But its weights are shared, so we shall look.
#
# A page has many blocks, and all are trained in one pass. Which iterate should each show? If all were very noisy, the last block would
# stand behind two hundred wrong characters, and nothing could be learnt there. The paper lets the noise climb from 0 to 1 and start
# again, *progressive noise*. Then every few blocks there is a nearly right one. In code, for the path above:

# %%
iterates = torch.stack(list(paths.values()))  # (2, 4, 17, 16): two examples of four blocks
ratios = progressive(4, 4, torch.tensor([0, 0]))  # (2, 4)
both = prompt.repeat(2, 1)
x = torch.cat((both, iterates[:, :, -1].flatten(1)), dim=1)  # (2, 288)
y = torch.cat((both, noisy_blocks(iterates, ratios).flatten(1)), dim=1)
with torch.inference_mode():
    p_clean, log_p = text.logits(x)[:, P:].softmax(-1), text.logits(x)[:, P:].log_softmax(-1)
    log_q = text.logits(y)[:, P:].log_softmax(-1)
    wrong = (x != y)[:, P:].view(2, 4, block)
    counts = (wrong.cumsum(-1) > 0).flatten(1)
    consistency = -(p_clean * log_q).sum(-1)[counts].mean()
    ordinary = -log_p.gather(-1, x[:, P:, None]).mean()
    loss, parts = forcing_loss(text, both, iterates, ratios, weight=0.3)
assert torch.allclose(loss, consistency + 0.3 * ordinary, atol=1e-4)
print("noise of the four blocks", [round(r, 2) for r in ratios[0].tolist()])
print(f"consistency {consistency:.2f} nats, ordinary {ordinary:.2f}: the package agrees")

# %% [markdown]
# The noisy copy of a page sees the prompt and the noisy blocks before it, the clean copy the prompt and the clean ones. The paper packs
# both behind one prompt, under a mask that keeps them apart. Two rows of a batch do the same, without a mask.
#
# ## What training changed
#
# The recipe `pydoc_jacobi` collects paths behind prompts of the training text, and trains on them and on the text itself.
# Its control goes on for as many steps on the text alone. The header of the checkpoint holds what was measured behind 32 prompts of the
# validation text, 256 characters each:

# %%
header = checkpoints.header("pydoc_jacobi")["metrics"]
rows = {"before": "before_", "control": "control_", "after": ""}
print("         nats per     Jacobi passes per token                     phrases that")
print("         character    greedy: block 8   16     32    sampled: 16  repeat, greedy")
for name, prefix in rows.items():
    nats, *passes_, repeat, random = (
        header[prefix + key]
        for key in (
            "validation_nats_per_character",
            *(f"greedy_iterations_{b}" for b in (8, 16, 32)),
            "greedy_repeats",
            "sampled_iterations_16",
        )
    )
    numbers = "".join(f"{value:7.3f}" for value in passes_)
    print(f"{name:8s} {nats:8.3f} {numbers:>34s} {random:11.3f} {repeat:14.2f}")
gain = header["greedy_iterations_16"] / header["before_greedy_iterations_16"]
cost_ = header["validation_nats_per_character"] / header["before_validation_nats_per_character"]
less = header["sampled_iterations_16"] / header["before_sampled_iterations_16"]
print(f"block 16: greedy {gain:.2f}, sampled {less:.2f} of the passes before; loss {cost_:.3f} of it")
assert gain <= 0.7 and cost_ <= 1.03

# %% [markdown]
# Three tenths of the passes, at a price of one per cent in likelihood. The control needs as many as ever, so it is the paths that help,
# not further training. But look at the last columns. Greedy text of so small a network falls into loops, such as "the string of the
# string of the". Eight of ten phrases of eight characters have stood there before, after training even more. A loop is easy to foresee,
# and much of the gain is just that. *Sampled* text was never trained on, and gains less. So we ask again on pages of this chapter, which
# begin with 224 characters written by people:

# %%
several = pages[::8][:16, :P]
ratio = {}
for temperature, kind in ((0, "greedy"), (1, "sampled")):
    rate, repeat = [], []
    for model in (text, forced):
        given = dict(prompt=several, temperature=temperature, generator=seeded(0))
        sample = sample_jacobi(model, 16, block=block, **given)
        rate.append(sample.trace.rows["target"] / (16 * 64))
        repeat.append(recipes.jacobi_forcing.repeats(sample.tokens[:, P:]))
    ratio[kind] = rate[1] / rate[0]
    print(f"{kind:8s} passes per token: {rate[0]:.2f} before, {rate[1]:.2f} after, ratio {ratio[kind]:.2f}")
    print(f"         phrases that repeat: {repeat[0]:.2f} before, {repeat[1]:.2f} after")
assert ratio["greedy"] < ratio["sampled"] < 1

# %% [markdown]
# Here is the sober result. Sampled text that hardly repeats itself gains one pass in ten. What the network has learnt is to see the end of
# what it can predict; where the next character is open, no training can tell it. And what must not be forgotten: exact is the *decoder*.
# It returns what the *forced* network would write, which is not what the network wrote before.

# %% mystnb={"figure": {"caption": "Left: passes per token of greedy text against the size of the block, from the header. Right: the pass after which each of 64 characters is right, for eight pages each, and their means. The dotted diagonal is one character a pass.", "name": "fig-5a-04-forcing"}, "image": {"alt": "Left, the lines of the network before training and of the control lie flat near 0.9, the line after training near 0.3. Right, two fans of rising steps: before training close to the diagonal, after training far below it."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.4))
colours = {"before": viz.GREY, "control": viz.AMBER, "after": viz.BLUE}
for (name, prefix), colour in zip(rows.items(), colours.values()):
    values = [header[f"{prefix}greedy_iterations_{b}"] for b in (8, 16, 32)]
    left.plot((0, 1, 2), values, color=colour, marker="o")
    shift = {"before": -0.03, "control": 0.03}.get(name, 0)
    left.text(2.1, values[-1] + shift, name, va="center", color=colour)
left.set(ylim=(0, 1), xlim=(-0.2, 2.8), xlabel="block", ylabel="passes per token")
left.set_xticks((0, 1, 2), ("8", "16", "32"))
place = torch.arange(64)
for name, model in (("before", text), ("after", forced)):
    known = right_so_far(trajectories(model, several[::2], 64, temperature=0))[:, 0]  # (8, 65)
    fan = (known[..., None] <= place).sum(1).float()  # (8, 64)
    right.plot(place + 1, fan.T, color=colours[name], lw=0.7, alpha=0.5)
    right.plot(place + 1, fan.mean(0), color=colours[name], lw=2.4)
    right.text(66, fan.mean(0)[-1], name, color=colours[name], va="center")
right.plot((1, 64), (1, 64), ":", color=viz.INK, lw=1)
right.set(xlabel="character", ylabel="right after pass", xlim=(0, 82), ylim=(0, 66))
for set_ticks in (right.set_xticks, right.set_yticks):
    set_ticks(range(0, 65, 16))

# %% [markdown]
# ## Several blocks, and what was thrown away
#
# The forced network deserves a decoder that uses it. Two ideas of the same paper. **Several blocks in flight**: when a share $r$ of a block is
# at rest, the next one enters, up to $K$ of them. It is iterated behind guesses, and nothing of it is final before all in front of it is.
# **Rejection recycling**: what a pass wrote behind its first change is refused, but may be right a little further on. A pool keeps it, and
# up to $P$ phrases that begin with the last final token are judged in the same pass, as branches of a tree. Neither can change the
# text. A guess counts if and only if it is what the model draws at its place, wherever it comes from.

# %%
flights = {
    "plain": dict(K=1, P=0),
    "recycling": dict(K=1, P=4),
    "two blocks": dict(K=2, r=0.5, P=0),
    "both": dict(K=2, r=0.5, P=4),
}
few = several[::4]
table = {}
print("                       passes      positions   tokens")
print("                       per token   per token   per pass")
for name, model in (("before", text), ("after", forced)):
    answer = sample_cached(model, 4, prompt=few, temperature=0).tokens
    for flight, options in flights.items():
        given = dict(prompt=few, temperature=0, block=block)
        sample = sample_multi_block(model, 4, **given, **options)
        assert torch.equal(sample.tokens, answer)
        rows_, positions = (sample.trace.rows["target"], sample.trace.positions["target"] - 4 * P)
        table[name, flight] = rows_ / 256
        print(f"{name:7s} {flight:13s} {rows_ / 256:8.3f} {positions / 256:11.1f} {256 / rows_:10.2f}")
for name in ("before", "after"):
    assert table[name, "recycling"] < table[name, "plain"]
assert table["after", "both"] < table["before", "both"]

# %% [markdown]
# Recycling pays for both networks. A second block brings little: what is iterated behind a half-solved block is noise until that block is
# solved. ("Plain" solves one block to its end before the next begins, so its passes run over fewer and fewer unknowns; the sliding block
# above is always full.) By the clock, for two pages one by one, as multiples of cached decoding with the same network:

# %% tags=["nbval-ignore-output"]
def two_pages(sampler, **options):
    for page in few[1:3]:
        sampler(model, 1, prompt=page[None], temperature=0, **options)


for name, model in (("before", text), ("after", forced)):
    runs = [lambda: two_pages(sample_cached)]
    runs += [lambda o=o: two_pages(sample_multi_block, **o) for o in flights.values()]
    plain, *times = seconds(*runs)
    ratios_ = ", ".join(f"{flight} {t / plain:.2f}" for flight, t in zip(flights, times))
    print(f"{name:7s} {ratios_}")

# %% [markdown]
# On one thread positions are not free. On these pages training turns a loss into a gain; recycling, which saves passes by looking at more
# positions, gives some of it back. Its place is a device that is idle for most of a pass.

# %% [markdown]
# For the exercises, two iterates, each with one row per sequence:

# %% tags=["exercise-setup"]
old_ = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5], [1, 2, 3, 4, 5]])
new_ = torch.tensor([[1, 2, 3, 4, 5], [1, 2, 9, 4, 5], [9, 2, 3, 4, 5]])

# %% [markdown]
# ## Exercise 1: what is settled? (★, 5 minutes)
#
# `new` is $f$ of `old`, both of shape $(B, n)$. For each row: how many tokens of `new`, from the left, are certainly final?

# %% tags=["exercise"]
def how_many_are_final(old, new):
    """Number of leading tokens (B,) of new = f(old) that no further pass can change."""
    return None  # your code

# %% tags=["exercise-check"]
answer = how_many_are_final(old_, new_)
if answer is None:
    print("Hint: the first changed token was computed from unchanged ones.")
else:
    answer = answer.tolist()
    assert answer[0] == 5, f"nothing changed in the first row: all 5 are final, got {answer[0]}"
    wrong = "unchanged tokens behind a change were computed from a wrong one and may yet change"
    assert answer != [5, 4, 4], f"expected [5, 3, 1], got {answer}: {wrong}"
    assert answer == [5, 3, 1], f"expected [5, 3, 1], got {answer}: the first change counts too"
    assert torch.equal(how_many_are_final(old_, new_), settled(old_, new_))
    print("Right: all up to and including the first change.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `cumprod` of ones and zeros stays one until the first zero. And there are only five tokens.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def how_many_are_final(old, new):
#     unchanged = (old == new).cumprod(-1).sum(-1)
#     return (unchanged + 1).clamp(max=old.shape[1])
# ```
#
# </details>
# <details><summary>Wrong: trusts whatever did not change</summary>
#
# It looks as if the iteration had converged everywhere but in one place. In the first figure these are the light stripes and also
# some dark cells: a token can stand still for a few passes and still be wrong.
#
# ```python
# def how_many_are_final(old, new):
#     return (old == new).sum(-1)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: what a shift costs (★★, 10 minutes)
#
# Let $q$ be uniform over $V$ tokens. Behind another beginning a little mass $\epsilon$ moves from the last token to the first: $p = q$,
# but $p(0) = 1/V + \epsilon$ and $p(V - 1) = 1/V - \epsilon$, with $\epsilon \le 1 / V$. The total variation is $\epsilon$. How often does a
# guess by inverse CDF change, with the same $u$ for both?

# %% tags=["exercise"]
def changed_by_cdf(V, epsilon):
    """Chance that u selects different tokens from p and q."""
    return None  # your code

# %% tags=["exercise-check"]
answer = changed_by_cdf(10, 0.01)
if answer is None:
    print("Hint: each of the V - 1 borders between segments moves by epsilon.")
else:
    wrong = "every border between two segments moves, not only the one behind token 0"
    two = float(changed_by_cdf(2, 0.1))
    assert abs(two - 0.1) < 1e-9, f"for V = 2 there is one border, so 0.1; got {two:.3f}"
    answer = float(answer)
    assert abs(answer - 0.09) < 1e-9, f"expected 0.09, got {answer:.3f}: {wrong}"
    print("Right: V - 1 times as often as a coin would refuse it.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Draw both rows of segments one above the other, for $V = 3$. Where do $u$ fall that select different tokens?
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def changed_by_cdf(V, epsilon):
#     return (V - 1) * epsilon
# ```
#
# </details>
# <details><summary>Wrong: the total variation</summary>
#
# That is what the best coupling loses. Inverse CDF is not the best one: it keeps the *order*, and pays for it.
#
# ```python
# def changed_by_cdf(V, epsilon):
#     return epsilon
# ```
#
# </details>

# %% [markdown]
# For the exercise, the path of a block of four:

# %% tags=["exercise-setup"]
path_ = torch.tensor([[0, 0, 0, 0], [7, 0, 5, 4], [7, 3, 5, 4], [7, 3, 5, 4]])

# %% [markdown]
# ## Exercise 3: how noisy is an iterate? (★, 5 minutes)
#
# For every iterate of a path of shape $(K, n)$, whose last row is the fixed point: the noise $(n - m) / n$, where $m$ is the length of its
# right beginning.

# %% tags=["exercise"]
def noise_of_iterates(path):
    """Noise (K,) of the iterates path (K, n); the last row is right."""
    return None  # your code

# %% tags=["exercise-check"]
answer = noise_of_iterates(path_)
if answer is None:
    print("Hint: the right beginning ends at the first wrong entry, however many are right behind it.")
else:
    answer = answer.tolist()
    assert answer[-1] == 0, f"the fixed point has no noise, got {answer[-1]}"
    wrong = "entries behind the first wrong one are right by luck and do not count"
    assert answer != [1.0, 0.25, 0.0, 0.0], f"expected [1, 0.75, 0, 0], got {answer}: {wrong}"
    assert answer == [1.0, 0.75, 0.0, 0.0], f"expected [1, 0.75, 0, 0], got {answer}"
    print("Right: after one pass one entry is sure, though three are right.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# As in exercise 1, `cumprod` finds the right beginning.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def noise_of_iterates(path):
#     right = (path == path[-1]).cumprod(-1).sum(-1)
#     return (path.shape[1] - right) / path.shape[1]
# ```
#
# </details>
# <details><summary>Wrong: counts all wrong entries</summary>
#
# An entry that is right behind a wrong one was computed from a wrong beginning. Decoding cannot know that it is right, so training
# must not take the iterate for nearly solved.
#
# ```python
# def noise_of_iterates(path):
#     return (path != path[-1]).float().mean(-1)
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * With its noise fixed, a sample is the one solution of $y = f(y)$. All up to and including the first change is settled, nothing behind it.
# * Digits need 0.3 passes per token without training, sampled text 0.9: dependence decides, so name the data and the block.
# * A guess survives as often as the coupling allows: inverse CDF, Gumbel, a coin, in that order, even on grey levels.
# * Lookahead keeps phrases that stood in the wrong place, and pays in positions for every pass that it saves.
# * Jacobi Forcing trains a network on its own half-solved blocks: 0.30 of the passes for greedy text, which loops, far less of a gain for
#   sampled text, which does not. The decoder is exact, the network another one.
#
# ## Where this stands
#
# Feed-forward computation as a system of equations, solved by Jacobi iteration, is from Song et al.
# ([2002.03629](https://arxiv.org/abs/2002.03629)); decoding of transformers in this way from Santilli et al.
# ([2305.10427](https://arxiv.org/abs/2305.10427)). Lookahead decoding is due to Fu et al. ([2402.02057](https://arxiv.org/abs/2402.02057)); there the pool may also be filled from
# the prompt, and sampling judges phrases as point masses, where we keep the noise fixed and return the sequential sample. Speculative
# Jacobi decoding was made for images, by Teng et al. ([2410.01699](https://arxiv.org/abs/2410.01699)), with several initial guesses that use the neighbourhood of a pixel.
# Consistency training on Jacobi paths began with CLLMs (Kou et al., [2403.00835](https://arxiv.org/abs/2403.00835)); progressive noise, several blocks in flight
# and recycling are due to Jacobi Forcing (Hu et al., [2512.14681](https://arxiv.org/abs/2512.14681)), which reports 3.8 times the speed for models of 7 billion weights
# on code and mathematics. Ours
# differs in two things: the noise climbs over 4 blocks in place of 16, and half of every batch is ordinary text.
