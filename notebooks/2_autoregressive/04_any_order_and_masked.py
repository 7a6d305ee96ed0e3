# %% [markdown]
# # Any order and masked: does a picture have a beginning?
#
# | | |
# | --- | --- |
# | **You will build** | a model that fills in what is hidden, a likelihood from its loss, a sampler that writes eight times and is done, and one causal model for every order |
# | **Time** | under a minute on a laptop, without a GPU |
# | **You need** | the raster transformer and guidance (chapter 01), masks and caches (0.2) |
# | **Of the five nouns** | model, sampler |
# | **Systems** | MaskGIT; any-order models (ARDM, $\sigma$-GPT) |
#
# A sentence has a first word. A picture has none: that chapter 01 wrote its codes from the upper left to the lower right was a habit of ours, and two prices are
# paid for it. There is a forward for each code, and the model knows only one thing to do with half a picture: continue it downwards. This chapter drops the
# order, in two ways, and finds out what is lost.

# %% tags=["exercise-setup"]
import itertools
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

from minimal import checkpoints, data, viz
from minimal.ar.masked import MaskedTransformer, cosine, hide, linear
from minimal.metrics import batched, frechet_floor, label_accuracy
from minimal.nn.masks import before
from minimal.recipes.masked import diagonals
from minimal.samplers.cached import sample_cached
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.masked import hidden_counts, ramp, sample_masked

viz.style()
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def seeded(number):
    return torch.Generator().manual_seed(number)


# %% [markdown]
# ## The question
#
# Three orders for the 64 codes of a picture. The chain rule does not care which one we take: $\log p(x) = \sum_i \log p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}})$ for
# every permutation $o$ of the places. Three trained models read the same codes: the raster GPT of chapter 01, which knows the first order, and two new ones, which know
# none and all of them. All have a million weights and cost the same arithmetic to train.

# %%
tokenizer = checkpoints.load("shapes_vq")  # 8 x 8 cells, each one of 625 codes
raster = checkpoints.load("shapes_gpt")
maskgit = checkpoints.load("shapes_maskgit")  # made by the recipes of these names
any_order = checkpoints.load("shapes_any_order")
judge = checkpoints.load("judge_shapes")
held_out = data.load("shapes", "validation", version="single")
images, labels = held_out.images, held_out.labels  # (1000, 3, 32, 32), (1000,)
codes = batched(tokenizer.encode, images, 250)  # (1000, 64)
N, V, MASK = 64, 625, 625
orders = {
    "raster": torch.arange(N),
    "diagonal": diagonals(8, 8),
    "random": torch.randperm(N, generator=seeded(0)),
}
for name, net in (("raster", raster), ("masked", maskgit), ("any order", any_order)):
    print(f"{name:10s}{sum(p.numel() for p in net.parameters()):9,} weights")

# %% mystnb={"figure": {"caption": "When is a place written? Light is early, dark is late.", "name": "fig-2-04-orders"}, "image": {"alt": "Three grids of 8 by 8 cells with numbers from 1 to 64. In raster order they run row by row, in diagonal order from corner to corner, in random order there is no pattern."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9))
for ax, (name, order) in zip(axes, orders.items()):
    step = order.argsort().view(8, 8)
    ax.imshow(step, cmap=viz.SEQUENTIAL, vmin=-6, vmax=80)
    for (i, j), s in np.ndenumerate(step.numpy()):
        colour = "white" if s > 34 else viz.INK
        ax.text(j, i, s + 1, ha="center", va="center", fontsize=6.5, color=colour)
    ax.set_title(name)
    viz.bare(ax)

# %% [markdown]
# ## Who may see whom
#
# Give each place a level, and let a place be predicted from the places of lower levels: `before`, the same predicate for all. In raster order the level is the
# position. In another order it is the rank in that order, the same triangle with rows and columns shuffled. A *masked* model has two levels: what is visible, and
# what is hidden. Every hidden place is predicted from everything visible.

# %%
shuffled = torch.randperm(16, generator=seeded(3))
visible = torch.rand(16, generator=seeded(1)) < 0.4
levels = {
    "raster": torch.arange(16),
    "a random order": shuffled.argsort(),
    "masked": (~visible).long(),
}
pictures = {name: before.square(level) for name, level in levels.items()}
assert torch.equal(pictures["raster"], torch.ones(16, 16).tril(-1).bool())
assert torch.equal(pictures["a random order"][shuffled][:, shuffled], pictures["raster"])
assert torch.equal(pictures["masked"], ~visible[:, None] & visible)

# %% mystnb={"figure": {"caption": "Which places (columns) does the prediction of a place (row) use? A grid of 4 x 4, places in reading order.", "name": "fig-2-04-masks"}, "image": {"alt": "Three squares of 16 by 16 cells. Raster: filled below the diagonal. A random order: as many cells filled, scattered. Masked: whole columns filled for visible places, in the rows of the hidden ones."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9))
for ax, (name, mask) in zip(axes, pictures.items()):
    viz.mask_picture(mask, ax=ax)
    ax.set_title(name)

# %% [markdown]
# ## Hide and guess
#
# MaskGIT is trained like this. Take the codes $x$ $(N,)$ of a picture, hide $k$ of them behind a code MASK, and guess each hidden one from the canvas that is left,
# with a transformer that sees all of it. How many are hidden is drawn anew for every picture, from one to all:
#
# $$r \sim U(0, 1), \qquad k = \lceil \cos(\tfrac{\pi}{2} r)\, N \rceil, \qquad \text{loss} = -\operatorname{mean}_{j \text{ hidden}} \log p(x_j \mid \text{visible})$$
#
# The network is the raster GPT's with two changes: no mask in its attention, and MASK among its inputs (not among its outputs). Places have a learned embedding beside the
# rotary one, since a MASK must know where it stands. The loss in five lines:

# %%
def masked_loss(model, x, label, generator):
    """Mean cross-entropy of the hidden codes of x (B, N), in nats."""
    k = (cosine(torch.rand(len(x), generator=generator)) * N).ceil()  # (B,)
    rank = torch.rand(x.shape, generator=generator).argsort(-1).argsort(-1)
    hidden = rank < k[:, None]  # (B, N), exactly k of them
    logits = model.logits(x.masked_fill(hidden, MASK), label)  # (B, N, V)
    return F.cross_entropy(logits[hidden], x[hidden])


few = codes[:40], labels[:40]
ours = masked_loss(maskgit, *few, seeded(0))
assert torch.equal(ours, maskgit.loss(*few, generator=seeded(0))[0])
print(f"{ours:.2f} nats per hidden code")

# %% [markdown]
# The fewer are hidden, the easier the guess. Look at one picture with 4, 32, 56 and all 64 codes hidden, and what the network would write if it had to
# write everything at once:

# %% mystnb={"figure": {"caption": "Above: what is visible. Below: one guess for all hidden codes together. With few hidden the guess is nearly the picture; with all hidden the cells know the label, but agree on no outline.", "name": "fig-2-04-guess"}, "image": {"alt": "Two rows of pictures. In the upper row more and more cells of a picture are blank. In the lower row the guesses are complete, and get worse from left to right: a clean red square at first, a ragged red blot at last."}} tags=["hide-input"]
def blanked(picture, hidden):
    """Pictures (B, 3, 32, 32) with hidden cells (B, 64) in grey."""
    cells = hidden.view(-1, 1, 8, 8).repeat_interleave(4, 2).repeat_interleave(4, 3)
    return torch.where(cells, torch.tensor(0.3), picture)


i, ks = 20, (4, 16, 32, 48, 56, 60, 64)
canvas, hidden = hide(codes[[i] * len(ks)], torch.tensor(ks), MASK, seeded(5))
logits = maskgit.logits(canvas, labels[[i] * len(ks)])
guess = torch.where(hidden, draw(logits, uniform_noise(len(ks), N, seeded(1))), canvas)
shown = blanked(tokenizer.decode(codes[[i] * len(ks)]), hidden)
titles = [f"{k} hidden" for k in ks]
rows = torch.cat((shown, tokenizer.decode(guess)))
viz.image_grid(rows, ncol=len(ks), titles=titles, row_labels=["visible", "guessed"]);

# %% [markdown]
# ## From guesses to a likelihood
#
# A loss on random holes looks like a trick to learn features. It is more. Write the codes one by one in a random order $o$, every order equally likely, and ask what
# that costs on average:
#
# $$\begin{gathered} \mathbb{E}_o\big[-\log p(x \mid o)\big] = \sum_{i=1}^{N} \mathbb{E}_o\big[-\log p(x_{o_i} \mid x_{o_1}, \dots, x_{o_{i-1}})\big] \\ = \sum_{k=1}^{N} \mathbb{E}_{|H| = k} \Big[\frac{1}{k} \sum_{j \in H} -\log p(x_j \mid \text{all but } H)\Big] \end{gathered}$$
#
# The second line collects the orders by what is still hidden at step $i$: a random set $H$ of $k = N - i + 1$ places, of which the next one is any, with probability
# $1/k$. So hide a uniform number $k$, weigh the loss by $1/k$, multiply by $N$: that is the mean likelihood over all orders, from one forward (ARDM). MaskGIT hides by the cosine
# and weighs all codes alike. It is the same game with other stakes: more is staked on canvases that are nearly empty. The identity can be checked on a
# model of four places, where all 24 orders and all 15 holes can be listed:

# %%
torch.manual_seed(0)
toy = MaskedTransformer(3, 4, grid_width=2, dim=16, layers=1, heads=2).double().eval()
for p in toy.parameters():
    torch.nn.init.normal_(p, std=0.5)
x = torch.tensor([[2, 0, 1, 1]])
every_order = [toy.logprob(x, order=torch.tensor(o)) for o in itertools.permutations(range(4))]
by_orders = -torch.stack(every_order).mean().item()
by_holes = 0.0
for k in range(1, 5):
    for H in map(list, itertools.combinations(range(4), k)):
        canvas = x.clone()
        canvas[:, H] = 3  # MASK
        logp = toy.logits(canvas).log_softmax(-1)[0, H, x[0, H]]
        by_holes -= logp.sum().item() / k / math.comb(4, k)
assert abs(by_orders - by_holes) < 1e-9 and len(every_order) == 24
spread = torch.stack(every_order).std().item()
print(f"{by_orders:.6f} nats by orders, {by_holes:.6f} by holes; orders differ by {spread:.2f}")

# %% [markdown]
# (The last number is a warning: nothing forces the network to give $x$ the same probability in two orders. An order is part of the model.) For the trained model, with
# a few random holes per picture:

# %%
masked_metrics = checkpoints.header("shapes_maskgit")["metrics"]
raster_metrics = checkpoints.header("shapes_gpt")["metrics"]
bound = maskgit.any_order_nats(codes[:250], labels[:250], draws=4, generator=seeded(0))
nats = {
    "masked, mean over orders": masked_metrics["validation_nats_any_order"],
    "raster GPT": raster_metrics["validation_nats_per_image"],
}
for name, value in nats.items():
    print(f"{name:26s}{value:7.1f} nats per picture")
print(f"{'the first, now, 250 images':26s}{bound.mean():7.1f} +- {bound.std() / 250**0.5:.1f}")

# %% [markdown]
# ## Writing in parallel
#
# Now the sampler. It starts with MASK everywhere. Every step guesses *all* hidden codes, each from its own distribution, keeps some, and hides the others again. How many? The
# schedule says: after step $t$ of $T$, $\lfloor \gamma(t/T)\, N \rfloor$ are hidden, with $\gamma(r) = \cos(\pi r / 2)$ as in training. Which? Those that the network was surest of, with
# some noise:
#
# $$\text{score}_j = \log p(x_j) + \tau \Big(1 - \frac{t}{T}\Big)\, g_j, \qquad g_j = -\log(-\log u_j)$$
#
# $x_j$ is the code that was *drawn*, not the likeliest one, and $\tau$ is called the choice temperature; the Gumbel noise $g$ fades as the canvas fills.

# %%
def write(model, n, label, T, tau, generator):
    """Codes (n, N), and what each step saw: its guess, its log p, and what was then kept."""
    canvas, history = torch.full((n, N), MASK), []
    noise = uniform_noise(n, T * 2 * N, generator).view(n, T, 2, N)  # image by image
    for t in range(1, T + 1):
        hidden = canvas == MASK
        logits = model.logits(canvas, label)
        guess = draw(logits, noise[:, t - 1, 0])  # (n, N)
        logp = logits.log_softmax(-1).gather(-1, guess[..., None]).squeeze(-1)
        gumbel = -(-noise[:, t - 1, 1].log()).log()
        score = (logp + tau * (1 - t / T) * gumbel).masked_fill(~hidden, math.inf)
        again = math.floor(cosine(torch.tensor(t / T)) * N + 1e-5)
        keep = score.argsort(-1).argsort(-1) >= again  # all but the lowest scores
        history.append((torch.where(hidden, guess, canvas), logp, keep))
        canvas = torch.where(hidden & keep, guess, canvas)
    return canvas, history


wish = torch.arange(16)
ours, history = write(maskgit, 16, wish, 8, 4.5, seeded(2))
sample = sample_masked(maskgit, 16, cond=wish, num_steps=8, generator=seeded(2))
assert torch.equal(ours, sample.tokens)
print(sample.trace.forwards["target"], "forwards; the raster GPT needs", raster.length)
print("hidden after each step:", hidden_counts(torch.tensor([N]), 8, cosine)[0].tolist())

# %% mystnb={"figure": {"caption": "One picture in eight steps. Above, what is kept so far; in the middle, the guess for everything; below, how likely the drawn code was, dark is unlikely.", "name": "fig-2-04-filling"}, "image": {"alt": "Three rows of eight pictures. Above, cells of a green square appear, two at first, twenty-four in the last two steps. In the middle, a ragged green blot becomes a square with one rough corner. Below, maps of confidence: bright inside the shape, dark at its outline and on the ground."}} tags=["hide-input"]
i = 6
guesses = torch.stack([guess[i] for guess, _, _ in history])
kept = torch.stack([keep[i] for _, _, keep in history])
sure = torch.stack([logp[i] for _, logp, _ in history])
painted = tokenizer.decode(guesses)
map_of_p = (sure / 4 + 1).clamp(-1, 1).view(-1, 1, 8, 8).expand(-1, 3, -1, -1)
map_of_p = map_of_p.repeat_interleave(4, 2).repeat_interleave(4, 3)
rows = torch.cat((blanked(painted, ~kept), painted, map_of_p))
titles = [f"step {t}: {int(k.sum())}" for t, k in enumerate(kept, 1)]
viz.image_grid(rows, ncol=8, titles=titles, row_labels=["kept", "guess", "sure?"]);

# %% [markdown]
# The cosine is slow at first, when little is known: two codes in the first step, and more than a third of the canvas in the last two, when each code follows from its neighbours.
#
# ## What is wrong with two at a time
#
# Codes of one step do not know of each other. Take three cells in a row and three colours with shares 0.6, 0.3 and 0.1; a cell copies its left neighbour with probability 0.7, otherwise it is
# drawn afresh. The *exact* network for this world is a table, so every error that is left is the sampler's; and 27 pictures are few enough to compute what a
# sampler does to the last digit.

# %%
share = np.array([0.6, 0.3, 0.1])
follow = 0.7 * np.eye(3) + 0.3 * share  # (3, 3), row: left neighbour
world = share[:, None, None] * follow[:, :, None] * follow[None]  # (3, 3, 3), sums to one


def law_of(joint, per_step, surest):
    """The exact distribution (3, 3, 3) of what a sampler writes, `per_step` codes a step."""
    law = np.zeros_like(joint)

    def step(canvas, mass):
        hidden = [j for j in range(3) if canvas[j] is None]
        if not hidden:
            law[tuple(canvas)] += mass
            return
        rest = joint[tuple(slice(None) if v is None else v for v in canvas)]
        rest, axes = rest / rest.sum(), range(len(hidden))
        p = [rest.sum(axis=tuple(a for a in axes if a != i)) for i in axes]  # one at a time
        for guess in itertools.product(range(3), repeat=len(hidden)):
            sure = [p[i][v] for i, v in enumerate(guess)]
            sets = list(itertools.combinations(axes, min(per_step, len(hidden))))
            if surest:
                sets = [max(sets, key=lambda s: sum(sure[i] for i in s))]
            for kept in sets:
                new = list(canvas)
                for i in kept:
                    new[hidden[i]] = guess[i]
                step(new, mass * math.prod(sure) / len(sets))

    step([None] * 3, 1.0)
    return law


entropy = lambda p: -(p * np.log(p)).sum()
table = {}
print("per step   which      total variation   entropy")
for per_step, surest in ((1, False), (2, False), (3, False), (1, True)):
    law = law_of(world, per_step, surest)
    tv = abs(law - world).sum() / 2
    table[per_step, surest] = tv, entropy(law)
    which = "surest" if surest else "random"
    print(f"{per_step:8d}   {which:8s}{tv:15.3f}{entropy(law):13.3f}")
print(f"the world itself {entropy(world):28.3f} nats")
product = share[:, None, None] * share[:, None] * share
lost = (world * np.log(world / product)).sum()
assert abs(law_of(world, 3, False) - product).max() < 1e-12
assert table[1, False][0] < 1e-12 < 0.05 < table[2, False][0] < table[3, False][0]
print(f"all at once forgets {lost:.3f} nats: what the cells know of each other")

# %% [markdown]
# One code a step in a random order is exact. Two or three a step lose what the codes of a step know of each other: all at once leaves the product of the marginals, and
# the loss is their mutual information. Those two rows one expects. The last one is worse than it should be: a single code per step, in *any* order, obeys the chain rule, so how can it
# fail? Because the order is chosen by the draw. A likely code is kept; an unlikely one is hidden and drawn again, until something likely comes. The sample is pulled towards
# what is common, and its entropy falls.

# %%
sharper = entropy(world) - table[1, True][1]
print(f"surest first loses {sharper:.3f} nats of variety, two at random gain "
      f"{table[2, False][1] - entropy(world):.3f}")
assert sharper > 0.2 and table[1, True][0] > table[2, False][0]

# %% [markdown]
# ## How many steps?
#
# Independence costs less the more is known already, so the error should fall fast with $T$. Measured when the model was trained, on 500 pictures without guidance: does the judge
# see the class that was asked for, and how far are the pictures from real ones? (Its distance between two real sets of 500 is the floor.)

# %%
m = masked_metrics
features = batched(judge.features, images)
floor = frechet_floor(features, 500, seeded(0), labels=labels)
STEPS = (1, 2, 4, 8, 16, 64)


def line(name, key, digits=2):
    values = f"{m[f'accuracy_{key}']:9.1%}{m[f'frechet_{key}']:10.{digits}f}"
    print(f"{name:22s}{values}{m[f'recall_{key}']:9.2f}")


print(f"{'forwards':22s} accuracy   Fréchet   recall")
for T in STEPS:
    line(f"{T}", f"steps_{T}")
print(f"floor of the Fréchet distance: {floor:.2f}")
accuracy = {T: m[f"accuracy_steps_{T}"] for T in STEPS}
distance = {T: m[f"frechet_steps_{T}"] for T in STEPS}
assert accuracy[4] > accuracy[1] + 0.15 and distance[4] < 0.75 * distance[1]
assert max(accuracy[T] for T in (16, 64)) < accuracy[4] + 0.05
assert min(distance[T] for T in (16, 64)) > 0.9 * distance[4]

# %% mystnb={"figure": {"caption": "Quality over the number of forwards, without guidance. After a few steps more of them help little.", "name": "fig-2-04-steps"}, "image": {"alt": "Two plots over the number of forwards from 1 to 64 on a logarithmic axis: accuracy rises and flattens, the Fréchet distance falls and flattens far above its floor."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.8))
left.semilogx(STEPS, [m[f"accuracy_steps_{T}"] for T in STEPS], "o-")
right.semilogx(STEPS, [m[f"frechet_steps_{T}"] for T in STEPS], "o-")
right.axhline(floor, color=viz.GREY, lw=1, ls="--")
right.text(1, floor + 0.2, "two real sets", color=viz.GREY, fontsize=8)
left.set(ylabel="accuracy", ylim=(0, 1))
right.set(ylabel="Fréchet distance", ylim=(0, None))
for ax in (left, right):
    ax.set(xlabel="forwards per picture")
    ax.set_xticks(STEPS, [str(T) for T in STEPS])

# %% [markdown]
# From one forward to four the pictures get much better, and then no more: sixteen or sixty-four forwards buy nothing that 500 pictures could show (the standard error of an accuracy near 0.8 is 0.02).
# That is MaskGIT's claim, and it needs a grain of salt. When the steps have ceased to be the weakest link, it is the network: without guidance one picture in five shows something else than was asked
# for, in *any* number of steps, and the distance stays far above the floor. A better network would find more steps worth their price. We come to guidance below.
#
# ## Which to keep
#
# How many to keep is the schedule's choice, which ones is the choice temperature's. With $\tau = 0$ the surest codes come first, with $\tau = \infty$ the order is random.

# %%
print(f"{'':22s} accuracy   Fréchet   recall")
for name, key in (
    ("4 steps, linear", "linear_4"),
    ("4 steps, cosine", "steps_4"),
    ("8 steps, linear", "linear_8"),
    ("8 steps, cosine", "steps_8"),
):
    line(name, key)
print()
CHOICE = {"0": "choice_0", "1": "choice_1", "4.5": "steps_8", "15": "choice_15"}
CHOICE["random order"] = "choice_inf"
for name, key in CHOICE.items():
    line(f"8 steps, tau {name}" if name[0] != "r" else "8 steps, random", key)
assert m["accuracy_choice_0"] > m["accuracy_choice_inf"] + 0.03
assert m["recall_choice_0"] < m["recall_choice_inf"] - 0.2
assert m["frechet_linear_4"] < 1.05 * m["frechet_steps_4"]

# %% mystnb={"figure": {"caption": "Ten times the same wish, a green star, in eight steps. Above, the surest codes first; in the middle, with the usual noise; below, in random order.", "name": "fig-2-04-choice"}, "image": {"alt": "Three rows of ten pictures of green stars. In the upper row they fill the picture and are much alike. In the middle sizes, places and grounds vary more and outlines are rough. In the lower row specks of other colours appear."}} tags=["hide-input"]
same = torch.full((10,), 14)
rows = [
    sample_masked(maskgit, 10, cond=same, choice_temperature=tau, generator=seeded(0)).tokens
    for tau in (0.0, 4.5, math.inf)
]
names = ["tau = 0", "tau = 4.5", "random"]
viz.image_grid(tokenizer.decode(torch.cat(rows)), ncol=10, row_labels=names);

# %% [markdown]
# Here is the surprise of the tiny world again, in a trained model. Surest first shows what was asked for *more often* than a random order, and covers *much less* of what there is: recall, the share of real
# pictures that have a sample near them, falls by a third. Confidence is not only knowledge. Among draws it prefers the common ones, and eight times in a row. The noise in the scores is there to
# stop that.
#
# The schedule hardly matters: linear steps were at least as good as the cosine here, though the paper found the cosine best on ImageNet.
#
# ## Guidance, and when
#
# Guidance works as in chapter 01: the batch is doubled, and the logits are pushed away from those of the null class. Here every step has a scale of its own. A common choice lets it
# grow from 1 as the canvas fills, so that the first codes, which decide what the picture will be, keep their variety. Now with 1,000 pictures each:

# %%
print(f"{'8 steps, guidance':22s} accuracy   Fréchet   recall")
for name, key in (
    ("none", "guidance_1"),
    ("2 in every step", "guidance_2"),
    ("3 in every step", "guidance_3"),
    ("from 1 up to 3", "ramp_3"),
    ("from 1 up to 5", "ramp_5"),
):
    line(name, key)
assert m["accuracy_guidance_3"] > 0.9 > m["accuracy_guidance_1"]
assert m["frechet_guidance_3"] < 0.4 * m["frechet_guidance_1"]
assert m["accuracy_ramp_5"] > m["accuracy_guidance_3"] - 0.02
assert m["recall_ramp_5"] > m["recall_guidance_3"] + 0.03

# %% [markdown]
# Guidance does for this model what steps could not: the class is right nineteen times in twenty, and the distance falls to a fifth. And the ramp keeps its word. Going up to 5 it is as accurate as 3 all the
# time, with more of the variety left.

# %% mystnb={"figure": {"caption": "All sixteen classes in eight forwards each, guidance from 1 up to 5.", "name": "fig-2-04-guided"}, "image": {"alt": "Two rows of eight pictures: circles, squares, triangles and stars in red, yellow, green and blue. All colours are right and nearly all shapes can be told, but outlines are rough."}} tags=["hide-input"]
guided = sample_masked(maskgit, 16, cond=wish, guidance=ramp(5.0), generator=seeded(1))
viz.image_grid(tokenizer.decode(guided.tokens), ncol=8);

# %% [markdown]
# ## One causal model for all orders
#
# A masked model pays for its freedom with the cache: each forward recomputes the whole canvas. Must it? Shuffle the codes and give them to a *causal* transformer. The chain rule
# holds in every order, so what comes out is a likelihood, from one forward, and the cache works as always. The network only has to be told two places: where
# the code belongs that it has just read, and which place it has to write next.
#
# $$\text{input}_i = E[x_{o_{i-1}}] + I[o_i], \qquad \text{score}_{ij} = \big\langle R(o_i)\, q_i,\ R(o_{j-1})\, k_j \big\rangle$$
#
# $E$ are the embeddings of the codes, $I$ $(N, D)$ those of the *instruction* "write here". $R$ is the rotary embedding by row and column: keys are turned to where their code lies, and queries,
# unlike in chapter 01, to the place that is asked for. So a head can look at "the left neighbour of what I write", in any order. (The turning of the queries is ours;
# $\sigma$-GPT adds two embeddings, RandAR gives the instruction a position of its own in the sequence.)

# %%
order = orders["random"]
view = any_order.in_order(order)  # the same weights, another order
x, label = codes[:8][:, order], labels[:8]  # tokens in the order of generation
logits = view.logits(x, label)
cache = view.new_cache(8)
parts = [view.logits(x, label, cache=cache, n=n) for n in (20, 1, 1, 42)]
assert torch.allclose(torch.cat(parts, 1), logits, atol=1e-4)
other = x.clone()
other[:, 10] = (other[:, 10] + 1) % V
moved = (view.logits(other, label) != logits).any(-1).any(0)
assert torch.equal(moved, torch.arange(N) > 10)
print("code 11 of this order moves the", int(moved.sum()), "predictions behind it, no other")

# %% [markdown]
# Every order is now a question that can be asked exactly:

# %%
any_metrics = checkpoints.header("shapes_any_order")["metrics"]
for name in orders:
    nats[f"any order, {name}"] = any_metrics[f"validation_nats_{name}"]
now = -view.logprob(codes[:250][:, order], labels[:250]).mean().item()
for name, value in nats.items():
    print(f"{name:26s}{value:7.1f} nats per picture")
print(f"{'the last, now, 250 images':26s}{now:7.1f}")
price = nats["any order, raster"] - nats["raster GPT"]
print(f"price of knowing all orders: {price:.1f} nats in the one that the raster GPT knows")
assert 30 < price and nats["any order, random"] < nats["any order, raster"] - 3
assert max(nats[f"any order, {name}"] for name in orders) < nats["masked, mean over orders"] - 5

# %% [markdown]
# Freedom is expensive. With the same weights and the same arithmetic the any-order model spends some sixty nats more than the raster GPT, in each of the three orders, and the masked model more
# still. Random order is the cheapest of the three: it is what the model has practised. Where do the nats go?

# %% mystnb={"figure": {"caption": "What a code costs when so many are already visible, mean over 200 pictures; for the any-order and the masked model in random orders. The area under a curve is the cost of a picture.", "name": "fig-2-04-cost"}, "image": {"alt": "Three curves of nats per code over the number of visible codes from 0 to 63. Raster falls from 3.4 to about 1 and goes up and down with the rows, any order from 4.3 to 1.7, masked from 4.4 to 2.5."}} tags=["hide-input"]
def cost(net, o):
    """Nats of each code (64,) in the orders o (B, N)."""
    x = codes[:200].gather(1, o)
    logp = net.logits(x, labels[:200]).log_softmax(-1)
    return -logp.gather(-1, x[..., None]).squeeze(-1).mean(0)


mixed = torch.rand(200, N, generator=seeded(4)).argsort(-1)
counts = (1, 8, 16, 32, 48, 56, 60, 64)
of_masked = []
for k in counts:
    canvas, hidden = hide(codes[:200], torch.full((200,), k), MASK, seeded(k))
    of_masked.append(-maskgit.read(canvas, codes[:200], labels[:200])[hidden].mean())
place = torch.arange(N)
smooth = lambda y: F.avg_pool1d(F.pad(y[None], (2, 2), "replicate"), 5, 1)[0]
lines = {
    "raster": (place, smooth(cost(raster, orders["raster"].expand(200, -1)))),
    "any order": (place, smooth(cost(any_order.in_order(mixed), mixed))),
    "masked": ([N - k for k in counts][::-1], of_masked[::-1]),
}
axes = viz.curves(lines, ylabel="nats per code", xlabel="codes visible")
axes.set(ylim=(0, None))
ends = {name: float(y[-1]) for name, (_, y) in lines.items()}
assert ends["raster"] < ends["any order"] - 0.3 < ends["masked"] - 0.6

# %% [markdown]
# In raster order the codes to the left and above are always there, and the network learns to read these. In a random order every surrounding is new, and the same weights must be ready for all. The masked model learns least
# from a canvas that is almost full: MaskGIT's stakes are on the empty ones, and the codes it does not hide, on average $1 - 2/\pi$ or 36 %, teach nothing in that step. The two new models were still learning when the
# budget was spent, and were trained with the learning rate that suited the raster GPT (short pilots, noted in the recipe, found hardly a better one for the masked
# model). So this is a statement about equal arithmetic, not about the best that each could do.

# %% [markdown]
# ## A hole in the picture
#
# Hide a block in the middle, or the upper half, and let each model complete the picture *without a label*: what it is must be read from what is left. The three models go about it in three ways.
#
# * **Any order**: known places first in the order, then the hole. $p(\text{hole} \mid \text{known})$ is then what the model gives, exactly, with the known codes as one block in the cache.
# * **Masked**: the known codes stand on the canvas from the start, the hole is filled in eight steps.
# * **Raster**: it writes from top to bottom, known codes are forced when their turn comes. What it writes above has not seen what is known below.

# %%
def hole_of(rows, columns):
    hole = torch.zeros(8, 8, dtype=torch.bool)
    hole[rows, columns] = True
    return hole.flatten()


holes = {
    "middle": hole_of(slice(2, 6), slice(2, 6)),
    "upper half": hole_of(slice(0, 4), slice(0, 8)),
}
MODELS = ("any order", "masked", "raster")
n = 160
truth, known_labels = codes[:n], labels[:n]


def complete(who, hole, seed=0):
    """Completed codes (n, N), and the number of forwards."""
    if who == "any order":
        order = torch.cat(((~hole).nonzero()[:, 0], hole.nonzero()[:, 0]))  # known first
        view, prompt = any_order.in_order(order), truth[:, order[: int((~hole).sum())]]
        sample = sample_cached(view, n, prompt=prompt, generator=seeded(seed))
        return sample.tokens[:, order.argsort()], sample.trace.forwards["target"]
    forced = truth.masked_fill(hole, -1)
    if who == "masked":
        sample = sample_masked(maskgit, n, forced=forced, generator=seeded(seed))
    else:
        sample = sample_cached(raster, n, forced=forced, generator=seeded(seed))
    return sample.tokens, sample.trace.forwards["target"]


def right(tokens):
    return label_accuracy(judge, tokenizer.decode(tokens).clamp(-1, 1), known_labels)


filled, score = {}, {}
print("hole         model        forwards   class as before")
for where, hole in holes.items():
    for who in MODELS:
        tokens, forwards = complete(who, hole)
        assert torch.equal(tokens[:, ~hole], truth[:, ~hole])
        filled[where, who], score[where, who] = tokens, right(tokens)
        print(f"{where:13s}{who:13s}{forwards:7d}{score[where, who]:16.1%}")
for who in ("any order", "masked"):
    assert score["upper half", who] > score["upper half", "raster"] + 0.15
assert score["middle", "raster"] > score["upper half", "raster"] + 0.3

# %% mystnb={"figure": {"caption": "Two holes, filled three times. The raster model did not see the lower half when it wrote the upper one.", "name": "fig-2-04-holes"}, "image": {"alt": "Two blocks of five rows of pictures: the original, the picture with a grey hole, and the completions by the any-order, the masked and the raster model. In the block with the upper half missing, the raster model puts shapes on top that do not fit the lower half, often in another colour."}} tags=["hide-input"]
figure, axes = plt.subplots(2, 1, figsize=(7.4, 7.6))
some = torch.arange(20, 30)
whole = tokenizer.decode(truth[some])
for ax, (where, hole) in zip(axes, holes.items()):
    rows = [whole, blanked(whole, hole.expand(len(some), -1))]
    rows += [tokenizer.decode(filled[where, who][some]) for who in MODELS]
    names = ["original", "known", "any order", "masked", "raster"]
    viz.image_grid(torch.cat(rows), ncol=len(some), row_labels=names, ax=ax)

# %% [markdown]
# For the upper half the order decides. The raster model paints some upper half and is then surprised by the lower one; the two that saw it first agree with it two or three times as often. The hole in the
# middle is another matter, and the honest failure of this chapter: there the raster model, which sees only what lies above, is right *more often* than the two that see everything around. It
# has learned so much more from the same arithmetic that half of the evidence is enough. Freedom of order pays where the order stands in the way.
#
# How much do the known codes tell? For the any-order model that is a difference of two exact numbers: what the true codes of the hole cost when they are written first, and when they are written last.

# %%
def cost_of_hole(first, last):
    """Nats of the true codes of the hole, without a label, `first` before `last`."""
    order = torch.cat((first, last))
    logp = any_order.in_order(order).logits(truth[:, order]).log_softmax(-1)
    logp = logp.gather(-1, truth[:, order, None]).squeeze(-1)[:, order.argsort()]
    return -logp[:, hole].sum(1).mean().item()


told = {}
for where, hole in holes.items():
    inside, outside = hole.nonzero()[:, 0], (~hole).nonzero()[:, 0]
    told[where] = cost_of_hole(inside, outside), cost_of_hole(outside, inside)
    alone, given = told[where]
    print(f"{where:12s} alone {alone:6.1f} nats, given the rest {given:6.1f} nats")
    assert given < 0.9 * alone

# %% [markdown]
# ## Exercise 1: the plan (★, 5 minutes)
#
# Write how many of $M$ hidden codes stay hidden after each of $T$ steps, for a schedule $\gamma$: the rounded-down share, but never less than one before the last step, and always
# fewer than before.

# %% tags=["exercise"]
def plan(M, T, gamma):
    """A list of T numbers, the last is 0. `gamma` takes and gives a number in [0, 1]."""
    return None  # your code

# %% tags=["exercise-check"]
half_cosine = lambda r: math.cos(math.pi * r / 2)
answer = plan(64, 4, half_cosine)
if answer is None:
    print("Hint: floor of gamma(t / T) * M, then max with 1, then min with the last less 1.")
else:
    answer = [int(k) for k in answer]
    assert answer == [59, 45, 24, 0], f"expected 59, 45, 24, 0 of 64 in 4 steps, got {answer}"
    short = [int(k) for k in plan(3, 3, half_cosine)]
    assert short == [2, 1, 0], f"3 codes in 3 steps are one a step, got {short}"
    few_ = [int(k) for k in plan(8, 4, lambda r: (1 - r) ** 4)]
    stays = "a steep schedule must leave something for every step"
    assert few_ == [2, 1, 0, 0] or few_ == [2, 1, 0], f"got {few_}: {stays}"
    print("Right: a step that writes nothing would be a wasted forward.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Start with `left = M` and keep the result of each step for the next one. Below zero there is nothing.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def plan(M, T, gamma):
#     left, result = M, []
#     for t in range(1, T + 1):
#         wanted = math.floor(gamma(t / T) * M + 1e-6)
#         left = max(0, min(max(wanted, int(t < T)), left - 1))
#         result.append(left)
#     return result
# ```
#
# </details>
# <details><summary>Wrong: only rounds the schedule</summary>
#
# With three codes the cosine leaves $\lfloor 2.6 \rfloor$ and $\lfloor 1.5 \rfloor$, which is fine, but a steep schedule leaves 0 too early and its last steps do nothing.
#
# ```python
# def plan(M, T, gamma):
#     return [math.floor(gamma(t / T) * M + 1e-6) for t in range(1, T + 1)]
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: keep the surest (★★, 10 minutes)
#
# Given the scores of one step, say which codes are kept so that exactly `again[b]` of row $b$ stay hidden. What was written before is kept whatever its score.

# %% tags=["exercise"]
def keep_surest(score, hidden, again):
    """True (B, N) where a code is kept; score (B, N), hidden (B, N) bool, again (B,) long."""
    return None  # your code

# %% tags=["exercise-check"]
score_ = torch.tensor([[-1.0, -9.0, -3.0, -2.0], [-5.0, -1.0, -0.5, -4.0]])
hidden_ = torch.tensor([[True, False, True, True], [True, True, True, True]])
answer = keep_surest(score_, hidden_, torch.tensor([1, 3]))
if answer is None:
    print("Hint: +inf where nothing is hidden; the rank of a score is its argsort's argsort.")
else:
    left = (hidden_ & ~answer).sum(1).tolist()
    assert answer[0, 1], "code 2 of row 1 was written before: its low score must not matter"
    assert left == [1, 3], f"1 and 3 codes should stay hidden, got {left}"
    wanted = [[True, True, False, True], [False, False, True, False]]
    assert answer.tolist() == wanted, "those with the lowest scores stay hidden"
    print("Right: a whole batch at once, each row with its own number.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `rank < again[:, None]` are the ones to hide again.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def keep_surest(score, hidden, again):
#     score = score.masked_fill(~hidden, float("inf"))
#     return score.argsort(-1).argsort(-1) >= again[:, None]
# ```
#
# </details>
# <details><summary>Wrong: takes the indices of the sort for ranks</summary>
#
# `argsort` says which place comes first, not how far up a place comes.
#
# ```python
# def keep_surest(score, hidden, again):
#     score = score.masked_fill(~hidden, float("inf"))
#     return score.argsort(-1) >= again[:, None]
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: what a step forgets (★★, 10 minutes)
#
# Two codes are written in one step. Compute what is lost: the relative entropy $\sum_{a,b} p(a, b) \log \frac{p(a, b)}{p(a)\, p(b)}$ of their joint distribution to the product that is
# drawn from, in nats. Terms with $p(a, b) = 0$ count zero.

# %% tags=["exercise"]
def forgotten(joint):
    """Mutual information, a number, of a joint distribution (V, V)."""
    return None  # your code

# %% tags=["exercise-check"]
copies = torch.eye(4, dtype=torch.float64) / 4
answer = forgotten(copies)
if answer is None:
    print("Hint: the marginals are joint.sum(1) and joint.sum(0); xlogy(p, p) helps at 0.")
else:
    answer = float(answer)
    assert math.isfinite(answer), "0 log 0 counts zero: xlogy(p, p), or leave out the zeros"
    assert abs(answer - math.log(4)) < 1e-9, f"two copies of one code: log 4, got {answer:.3f}"
    free = torch.outer(torch.tensor([0.9, 0.1]), torch.tensor([0.2, 0.8])).double()
    apart = float(forgotten(free))
    assert abs(apart) < 1e-6, f"independent codes lose nothing; got {apart:.3f}"
    skewed = torch.tensor([[0.5, 0.1], [0.1, 0.3]], dtype=torch.float64)
    loss_ = float(forgotten(skewed))
    assert abs(loss_ - 0.1777) < 1e-3, f"expected 0.178 for an uneven joint, got {loss_:.3f}"
    print("Right: what is dangerous is dependence, not uncertainty.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# It is also $H(a) + H(b) - H(a, b)$, with `torch.special.entr`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def forgotten(joint):
#     parts = (joint.sum(1), joint.sum(0))
#     alone = sum(torch.special.entr(p).sum() for p in parts)
#     return alone - torch.special.entr(joint).sum()
# ```
#
# </details>
# <details><summary>Wrong: compares with the uniform distribution</summary>
#
# That is how far the pair is from *uncertain*. Two independent codes, one of them almost sure, would count as dangerous.
#
# ```python
# def forgotten(joint):
#     return math.log(joint.numel()) - torch.special.entr(joint).sum()
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * Hide a random part, guess it from the rest: with weight $1/k$ the loss is the mean likelihood over all orders.
# * Writing in parallel takes $T$ forwards instead of $N$. Codes of one step are independent, and what they know of each other is lost.
# * Which codes are kept matters as much as how many: keeping what is likely sharpens, even one code at a time. The choice temperature sets how much.
# * A causal model of shuffled codes, told which place comes next, has an exact likelihood in every order and keeps its cache; it pays in nats.
# * A hole is filled by putting the known codes first. A model of one order cannot do that, but may know more.
#
# ## Where this stands
#
# MaskGIT: Chang et al. ([2202.04200](https://arxiv.org/abs/2202.04200)), 6.2 FID on ImageNet at 256 pixels in 8 steps. The paper smooths its labels by 0.1; we do not, so that the loss stays a
# likelihood. Order-agnostic models and the bound: Uria, Murray and Larochelle ([1310.1757](https://arxiv.org/abs/1310.1757)); ARDM: Hoogeboom et al.
# ([2110.02037](https://arxiv.org/abs/2110.02037)). Causal models of shuffled tokens: $\sigma$-GPT, Pannatier, Courdier and Fleuret ([2404.09562](https://arxiv.org/abs/2404.09562)); for
# images RandAR, Pang et al. ([2412.01827](https://arxiv.org/abs/2412.01827)). Masked models as diffusion, and rules that choose better which codes to keep, come in Part 5b.
