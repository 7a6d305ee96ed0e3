# %% [markdown]
# # Codebooks: how a picture becomes words
#
# | | |
# | --- | --- |
# | **You will build** | k-means, a codebook that follows a network, two cures for its collapse, and four gradients through a lookup |
# | **Time** | under a minute on a laptop, without a GPU |
# | **You need** | the tour, PyTorch, and what a gradient is |
# | **Of the five nouns** | tokenizer |
# | **Systems** | VQ-VAE with moving averages, the cosine codebook of ViT-VQGAN, straight-through, Gumbel-softmax, the rotation trick |
#
# A language model predicts the next word. Before it can do the same for pictures, somebody must say which words there are. This
# chapter is about that list. It is learned, it is short, and left alone it dies: we watch it die, and cure it. Then we ask how a
# network can learn *through* a lookup, whose derivative is zero, and find that it learns surprisingly well even from a list that
# nobody learned.

# %% tags=["exercise-setup"]
import inspect
import math
from functools import cache

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from minimal import checkpoints, data, viz
from minimal.metrics import batched, codebook_usage, perplexity, psnr
from minimal.tokenizers import gradients
from minimal.tokenizers.gradients import nearest
from minimal.tokenizers.vq import (
    CosineVectorQuantizer,
    GradientVectorQuantizer,
    VectorQuantizer,
    kmeans,
)

viz.style()
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## The question
#
# Here is a scene, 32 × 32 pixels in colour. A trained tokenizer (recipe `shapes_vq`) turns it into 8 × 8 whole numbers below 625, and
# paints the scene again from nothing but these numbers:

# %%
tokenizer = checkpoints.load("shapes_vq")
scenes = data.load("shapes", "validation", version="scene").images  # (1000, 3, 32, 32)
one = scenes[4:5]
tokens = tokenizer.encode(one)  # (1, 64)
painted = tokenizer.decode(tokens)  # (1, 3, 32, 32)
bits = 64 * math.log2(tokenizer.vocab_size)
print(f"{one.numel()} bytes in, {bits:.0f} bits out; PSNR {psnr(painted, one).item():.1f} dB")

# %% mystnb={"figure": {"caption": "A scene, its tokens, and what the decoder makes of them. Equal numbers have equal colours, which mean nothing else.", "name": "fig-1-01-question"}, "image": {"alt": "Left, a scene of a few coloured shapes on a pale background. Middle, a table of 8 by 8 numbers. Right, the same scene again, a little blurred at the edges."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(8.6, 2.9))
viz.image_grid(one, ax=axes[0])
viz.token_map(tokens[0], tokenizer.grid, tokenizer.vocab_size, ax=axes[1])
viz.image_grid(painted, ax=axes[2])
for ax, title in zip(axes, ("a scene", "64 tokens", "painted from them")):
    ax.set_title(title);

# %% [markdown]
# Forty times fewer bits, and the picture is still there. The numbers are names in a **codebook**, a table of 625 vectors, one row per
# word. An encoder turns each cell of the picture into a vector, the vector is replaced by the nearest row, and a decoder paints from the
# rows. Two questions. Who chooses the rows? And how did the encoder learn, with a lookup behind it?
#
# ## Nearest of a few
#
# Three codes, five vectors, two numbers each. With vectors $z$ of shape $(M, D)$ and codes $e$ of shape $(K, D)$,
#
# $$k_i = \arg\min_j\, |z_i - e_j|^2, \qquad q_i = e_{k_i}$$

# %%
codes = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 3.0]])
z = torch.tensor([[1.0, 0.0], [3.0, 1.0], [0.0, 2.0], [2.5, 2.0], [-1.0, -1.0]])
squares = (z[:, None] - codes[None]).square().sum(-1)  # (5, 3)
k = squares.argmin(1)  # (5,)
print(squares, k, codes[k], sep="\n\n")

# %% [markdown]
# For a real codebook the differences, $(M, K, D)$, would fill the memory. They are not needed. In $|z - e|^2 = |z|^2 - 2\,z \cdot e + |e|^2$ the
# first term is the same for all codes, so the nearest code is the one with the largest $z \cdot e - |e|^2 / 2$: one matrix product. The
# package does just that, a few hundred rows at a time:

# %%
assert torch.equal((z @ codes.T - codes.square().sum(-1) / 2).argmax(1), k)
assert torch.equal(nearest(z, codes), k)
print(inspect.getsource(nearest))

# %% [markdown]
# ## What good codes are
#
# All places that go to one code form its *cell*. Codes are good when vectors lie close to them, that is, when the mean squared error is
# small. **k-means** (Lloyd's algorithm) gets there by turns: give every vector to its nearest code, then move every code to the mean of
# what it got. Neither half can make the error larger. Below, two arms of points in the plane play the vectors of an encoder.

# %% tags=["exercise-setup"]
def swirl(n, generator, centre=(0.0, 0.0)):
    """n points (n, 2) on two spiral arms around `centre`."""
    radius = 0.4 + 2.6 * torch.rand(n, generator=generator).sqrt()
    angle = 1.9 * radius + math.pi * torch.randint(2, (n,), generator=generator)
    noise = 0.08 * torch.randn(n, 2, generator=generator)
    arms = radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1)
    return arms + noise + torch.tensor(centre)


def error(z, codes):
    return (z - codes[nearest(z, codes)]).square().sum(1).mean().item()

# %%
points = swirl(4000, torch.Generator().manual_seed(0))
stages = {}
for iterations in (0, 1, 3, 30):
    torch.manual_seed(3)
    stages[iterations] = kmeans(points, 24, iterations)
errors = [error(points, codes) for codes in stages.values()]
assert errors == sorted(errors, reverse=True) and errors[-1] < 0.4 * errors[0]

# %% mystnb={"figure": {"caption": "k-means with 24 codes (white dots). Each cell is the set of places that go to one code. The codes start at random points and spread along the arms.", "name": "fig-1-01-kmeans"}, "image": {"alt": "Four pictures of the plane cut into coloured cells around white dots, on a spiral of points. From left to right the dots spread evenly along the spiral and the error falls to a fifth."}} tags=["hide-input"]
def cells(ax, codes, points, frame=(-3.5, 3.5, -3.5, 3.5), pick=nearest):
    """Draw cells, points, living codes (dots) and dead ones (crosses); return how many live."""
    x, y = torch.linspace(*frame[:2], 240), torch.linspace(*frame[2:], 240)
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)  # (240, 240, 2)
    ax.imshow(viz.code_colours(len(codes))[pick(places, codes)], extent=frame, origin="lower")
    alive = torch.zeros(len(codes), dtype=torch.bool)
    alive[nearest(points, codes)] = True
    ax.scatter(*points.T, s=1, color=viz.INK, alpha=0.3, lw=0)
    ax.scatter(*codes[~alive].T, s=12, marker="x", color=viz.INK, lw=0.8, zorder=4)
    ax.scatter(*codes[alive].T, s=14, color="white", edgecolors=viz.INK, lw=0.8, zorder=5)
    ax.set(xlim=frame[:2], ylim=frame[2:])
    viz.bare(ax)
    return int(alive.sum())


figure, axes = plt.subplots(1, 4, figsize=(9, 2.5))
for ax, (iterations, codes), e in zip(axes, stages.items(), errors):
    cells(ax, codes, points[:1500])
    ax.set_title(f"{iterations} rounds: error {e:.3f}");

# %% [markdown]
# A name for one of $K$ codes costs $\log_2 K$ bits. What does a bit buy? If vectors fill $d$ dimensions, halving the distance between
# codes takes $2^d$ times as many of them: $d$ bits for 6 dB. The spiral has a twist. From afar it is a curve, $d = 1$; close up it has
# a width, $d = 2$.

# %%
sizes = [2**b for b in range(3, 11)]
many, held_out = (swirl(16_000, torch.Generator().manual_seed(seed)) for seed in (1, 2))
torch.manual_seed(0)
decibels = [-10 * math.log10(error(held_out, kmeans(many, K, iterations=20))) for K in sizes]
gain = [after - before for before, after in zip(decibels, decibels[1:])]
for K, value, more in zip(sizes[1:], decibels[1:], gain):
    print(f"{K:5d} codes: {value:5.1f} dB, of which the last bit bought {more:.1f}")
assert sum(gain[:3]) / 3 > 4 and sum(gain[-3:]) / 3 < 3.2

# %% [markdown]
# Nearly 5 dB per bit, on average, while the codes only have to follow the arms, then less than 3: from about 100 codes on they must also tell the
# inside of an arm from its outside. The slope of such a curve says how many dimensions the data fill. We shall read it off for pictures too.
#
# ## When the vectors move: averages
#
# In an autoencoder the vectors are made by a network that learns, so they move, and nobody ever sees all of them at once. k-means then
# becomes a running mean. Each code keeps a running count $N_j$ of the vectors that it serves and a running sum $M_j$ of them. With $n_j$ and
# $s_j$ the count and the sum in this batch, and $\gamma$ a little below one,
#
# $$\begin{gathered} N_j \leftarrow \gamma N_j + (1 - \gamma)\, n_j, \\ M_j \leftarrow \gamma M_j + (1 - \gamma)\, s_j, \qquad e_j = M_j / \tilde N_j, \end{gathered}$$
#
# where $\tilde N_j = (N_j + \varepsilon)\, \frac{\sum N}{\sum N + K \varepsilon}$ keeps a code without customers from dividing by zero. A dozen lines; then the
# package's `VectorQuantizer`, which must agree after fifty batches:

# %%
def averaged(codes, N, M, z, decay=0.95, eps=1e-5):
    """One step, from codes (K, D), counts N (K,), sums M (K, D) and vectors z (B, D)."""
    k = nearest(z, codes)
    n = torch.bincount(k, minlength=len(codes)).float()  # (K,)
    s = torch.zeros_like(codes).index_add(0, k, z)  # (K, D)
    N, M = decay * N + (1 - decay) * n, decay * M + (1 - decay) * s
    total = N.sum()
    smoothed = (N + eps) / (total + len(codes) * eps) * total
    return M / smoothed[:, None], N, M


torch.manual_seed(0)
package = VectorQuantizer(64, 2, decay=0.95, revive_below=0, kmeans_init=False)
codes = package.codebook.clone()
N, M = torch.ones(64), codes.clone()
g = torch.Generator().manual_seed(0)
for _ in range(50):
    batch = swirl(256, g)
    codes, N, M = averaged(codes, N, M, batch)
    package(batch)  # a new module is in training mode: it learns from what it quantizes
assert torch.allclose(codes, package.codebook, atol=1e-5)

# %% [markdown]
# ## How a codebook dies
#
# Codes are usually drawn from a Gaussian, and the vectors of an encoder lie wherever its last bias put them. Let us put them a little
# to the right. We train twice on the same batches. Above, running means alone. Below, each code whose running count falls under one is
# *revived*: moved onto a random vector of the batch.

# %%
def centre(step, drift):
    """Where the swirl is: it rests, wanders from step 150 to 350, and rests again."""
    way = drift * min(1, max(0, (step - 150) / 200))
    return (4.5 - way, way)


def watch(quantizer, steps=400, drift=0.0, keep=()):
    """Train on batches of 256; returns codes at the steps `keep`, and use and perplexity."""
    g = torch.Generator().manual_seed(1)
    weights = list(quantizer.parameters())  # none, unless the codebook learns by gradient
    optimizer = torch.optim.Adam(weights, 0.03) if weights else None
    kept, history = [], []
    for step in range(steps + 1):
        if step in keep:
            kept.append(quantizer.codebook.detach().clone())
        if step % 10 == 0:
            fresh = torch.Generator().manual_seed(9)
            k = quantizer.nearest(swirl(2000, fresh, centre(step, drift)))
            history.append((codebook_usage(k, 64), perplexity(k, 64)))
        _, _, loss = quantizer(swirl(256, g, centre(step, drift)))
        if optimizer:
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return kept, torch.tensor(history)


def made(kind=VectorQuantizer, **options):
    torch.manual_seed(0)  # equal codes to begin with
    return kind(64, 2, **options)


plain = dict(decay=0.95, revive_below=0, kmeans_init=False)
keep = (0, 10, 50, 200, 400)
left_alone, _ = watch(made(**plain), keep=keep)
revived, _ = watch(made(**plain | {"revive_below": 1}), keep=keep)

# %% mystnb={"figure": {"caption": "64 codes start as a Gaussian cloud at the origin; the vectors lie on the right. White dots serve vectors, crosses serve none. Top: running means alone. Bottom: with revival.", "name": "fig-1-01-collapse"}, "image": {"alt": "Two rows of five pictures, from step 0 to step 400. In the upper row a handful of dots end up sharing the spiral and all crosses gather in one point at the origin. In the lower row all 64 dots sit along the spiral soon after the start and then spread evenly."}} tags=["hide-input"]
where = swirl(1500, torch.Generator().manual_seed(9), centre(0, 0))
figure, axes = plt.subplots(2, 5, figsize=(10, 3.4))
living = {}
for row, name, stages in zip(axes, ("left alone", "revived"), (left_alone, revived)):
    for ax, step, codes in zip(row, keep, stages):
        living[name] = cells(ax, codes, where, frame=(-3, 7.8, -3.5, 3.5))
        ax.set_title(f"step {step}: {living[name]} of 64 live")
assert living["left alone"] <= 12 and living["revived"] >= 60

# %% [markdown]
# In the upper row a few codes that happened to face the vectors won all of them, and moved in. Now every vector is closer to a winner
# than to any of the rest. The losers get no vectors, hence no mean, hence never move: of 64 words a handful are spoken. This is
# **collapse**, and more training does not help.
#
# The dead codes of the last picture did move: all sit at the origin. Count and sum of a dead code both fade like $\gamma^t$, so their quotient
# rests, until the count is as small as $\varepsilon$. From then on the denominator stays while the sum still fades. An accident, and a
# treacherous one: where vectors surround the origin it revives codes, some hundred steps late, and hides a bug in the real revival.
#
# ## Three cures, and what each survives
#
# *k-means on the first batch* starts the codes where the vectors are. *Revival* moves those that serve nobody. And the *gradient* codebook
# of the first paper does without averages: its codes are parameters, drawn to their vectors by a term of the loss,
#
# $$|\mathrm{sg}(z) - q|^2 + \beta\, |z - \mathrm{sg}(q)|^2,$$
#
# with sg for *stop gradient*: the first term moves codes, the second commits vectors to their codes. Which of these is a cure? From step
# 150 on we let the vectors wander, as those of a learning encoder do.

# %%
cases = {
    "gradient": made(GradientVectorQuantizer, kmeans_init=False),
    "averages": made(**plain),
    "averages, k-means": made(**plain | {"kmeans_init": True}),
    "averages, k-means, revival": made(decay=0.95),
}
wandering = {name: watch(quantizer, drift=3.0)[1] for name, quantizer in cases.items()}
print(f"{'after 150 and 400 steps':28s}  codes used    perplexity")
for name, history in wandering.items():
    (used, spread), (later, less) = history[15].tolist(), history[-1].tolist()
    print(f"{name:28s} {used:5.0%} {later:5.0%}   {spread:5.0f} {less:5.0f}")
used = {name: history[-1, 0].item() for name, history in wandering.items()}
assert used["averages"] < 0.35 and used["averages, k-means"] < 0.7
assert used["averages, k-means, revival"] > 0.9

# %% mystnb={"figure": {"caption": "Share of codes in use, and perplexity, while the vectors rest, wander (shaded) and rest. Only revival survives the journey.", "name": "fig-1-01-cures"}, "image": {"alt": "Two charts over 400 steps with four lines each. Gradient and plain averages begin near a tenth of the codes and stay below a third. With k-means all codes are used until the vectors wander, then two thirds die. With revival use dips to four fifths and returns to all."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9, 3))
steps = range(0, 401, 10)
for column, (ax, ylabel) in enumerate(zip(axes, ("share of codes used", "perplexity"))):
    ax.axvspan(150, 350, color=viz.PALE, lw=0)
    viz.curves({name: (steps, h[:, column]) for name, h in wandering.items()}, ylabel, ax=ax)
    ax.set(ylim=(0, None), xlim=(0, 400));

# %% [markdown]
# **Perplexity** is $\exp(-\sum_j p_j \log p_j)$, with $p_j$ the share of vectors that code $j$ serves: how many *equally* busy codes would be as
# diverse. It is the stricter number, since a codebook may use every code once and one code for all the rest.
#
# Only revival survives the journey. k-means is a good start and no more, since it looks at vectors that will soon be elsewhere. The
# gradient codebook gains a few codes as the vectors pass by them, which is luck.
#
# ## A gradient through a lookup
#
# So much for the codes. Now the encoder. Move a vector a little, and its code stays the same: the derivative of the lookup is zero. The
# encoder would never hear from the decoder.

# %%
z = torch.tensor([[1.0, 0.4]], requires_grad=True)
codes = torch.tensor([[1.2, 0.9], [3.0, 0.0]])
q = codes[nearest(z, codes)]
nudged = codes[nearest(z + 0.01, codes)]
print("q", q, " after a nudge", nudged, " has a gradient:", q.requires_grad)

# %% [markdown]
# The oldest way out is to pretend: let forward be the lookup and backward the identity. With $g$ the gradient that arrives at $q$,
# **straight-through** gives $z$ the same $g$. One line does it, since what is inside `detach` counts as a constant:

# %%
loss = lambda q: (q * torch.tensor([2.0, -1.0])).sum()  # any loss; its gradient at q is (2, -1)
out = z + (q - z).detach()
print("value", out.detach(), " gradient", torch.autograd.grad(loss(out), z)[0])
assert torch.allclose(gradients.straight_through(z, codes)[0], out)

# %% [markdown]
# Every vector of a cell gets the same push, wherever it lies. The **rotation trick** minds the geometry. Write $q = \lambda R z$ with
# $\lambda = |q| / |z|$ and the rotation $R$ that turns the direction $u$ of $z$ into the direction $v$ of $q$. Hold $\lambda$ and $R$ fixed and differentiate
# this product instead:
#
# $$\begin{gathered} R = I - 2 w w^\top + 2 v u^\top, \quad w = \frac{u + v}{|u + v|}, \\ \frac{\partial q}{\partial z} = \lambda R, \qquad g \mapsto \lambda R^\top g \end{gathered}$$
#
# (Two reflections, first along $w$, then along $v$, make this rotation.) What reaches $z$ stands at the same angle to $z$ as $g$ does to $q$.
# Check all of it on numbers:

# %%
u, v = F.normalize(z.detach(), dim=-1)[0], F.normalize(q, dim=-1)[0]
w = F.normalize(u + v, dim=0)
R = torch.eye(2) - 2 * torch.outer(w, w) + 2 * torch.outer(v, u)
scale = q.norm() / z.detach().norm()
assert torch.allclose(R @ u, v) and torch.allclose(R.T @ R, torch.eye(2), atol=1e-6)

out = gradients.rotated(z, q)
arrived = torch.autograd.grad(loss(out), z)[0][0]
g = torch.tensor([2.0, -1.0])
print("value", out.detach(), " gradient", arrived)
assert torch.allclose(out, q) and torch.allclose(arrived, scale * R.T @ g, atol=1e-6)
assert torch.allclose(F.cosine_similarity(arrived, u, dim=0), F.cosine_similarity(g, v, dim=0))
print(inspect.getsource(gradients.rotated).split('"""')[2])

# %% [markdown]
# Two more rules draw the code instead of taking the nearest, with $p_j \propto e^{\ell_j}$ and $\ell_j = -|z - e_j|^2 / T$. So neighbours get
# a chance, most of all at the border of a cell. Adding Gumbel noise $\eta_j = -\log(-\log r_j)$, with $r_j$ uniform, and taking the largest is
# such a draw.
#
# * **sampled**: draw, then straight-through.
# * **Gumbel-softmax**: the same draw, but backward is that of the mean code under $\mathrm{softmax}((\ell + \eta) / \tau)$: it tells $z$ which
#   *other* codes would have been better.
#
# The picture shows where the decoder would like to have the code of the middle cell (red), and where each rule therefore sends the vectors
# of that cell (blue).

# %% mystnb={"figure": {"caption": "One cell, one wish of the decoder (red), and the step that a vector at each place of the cell takes (blue). The cross is the origin, about which rotation turns. Right: the code drawn for each place by the sampling rule.", "name": "fig-1-01-fields"}, "image": {"alt": "Four pictures of the same seven cells. Straight-through: all arrows parallel and equal. Rotation: arrows fan out, turned by the angle between place and code, longer nearer to the origin. Gumbel: arrows bend towards the neighbouring codes that lie in the wished direction. Sampled: the borders between cells are frayed."}} tags=["hide-input"]
codes = torch.tensor(
    [[2.0, 1.0], [0.6, 1.9], [3.4, 1.9], [3.3, -0.1], [1.7, -0.6], [0.3, 0.3], [2.1, 2.5]]
)
side = torch.arange(-1.0, 3.6, 0.24)
places = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1).flatten(0, 1)
places = places[(nearest(places, codes) == 0) & ((places - codes[0]).norm(dim=1) > 0.2)]
places.requires_grad_()
wish = torch.tensor([0.5, 0.9])
torch.manual_seed(0)
often = lambda z: z.expand(400, -1, -1)  # the noise of 400 draws, averaged
rules = {
    "straight-through": lambda z: gradients.straight_through(z, codes)[0],
    "rotation": lambda z: gradients.rotation(z, codes)[0],
    "Gumbel-softmax, mean": lambda z: gradients.gumbel(often(z), codes, 0.4)[0].mean(0),
}
frame = (-0.4, 4.0, -1.2, 3.1)
figure, axes = plt.subplots(1, 4, figsize=(9.6, 2.6))
fields = {}
for ax, (name, rule) in zip(axes, rules.items()):
    step = torch.autograd.grad((rule(places) @ wish).sum(), places)[0]
    fields[name] = step
    cells(ax, codes, codes, frame)
    arrows = dict(scale=13, zorder=6)
    ax.quiver(*places.detach().T, *step.T, width=0.011, color=viz.BLUE, **arrows)
    ax.quiver(*codes[0], *wish, width=0.018, color=viz.RED, **arrows)
    ax.plot(0, 0, "+", color=viz.INK, ms=8)
    ax.set_title(name)
cells(axes[3], codes, codes, frame, pick=lambda z, codes: gradients.sampled(z, codes, 0.25)[1])
axes[3].set_title("sampled: the code drawn");

# %%
straight, turned = fields["straight-through"], fields["rotation"].norm(dim=1)
assert torch.equal(straight, wish.expand_as(straight))
low, high = turned.min(), turned.max()
print(f"rotation makes steps {low / wish.norm():.2f} to {high / wish.norm():.2f} times as long")

# %% [markdown]
# ## Does it matter? A VQ-VAE in a dozen lines
#
# Encoder, quantizer, decoder: two small perceptrons on the real digits, 8 × 8 pixels to 16 vectors of 8 numbers, each replaced by one of 128
# codes. First the rule for gradients changes and nothing else. Then the codebook: one on the unit sphere (*cosine*: vectors and codes have
# length one, so the nearest code is the one at the smallest angle), learned by gradient. And two controls that should fail. Their codes are
# drawn once from a Gaussian and **never learn**. Three seeds show how far to trust a difference.

# %%
from minimal.train import adamw, fit

digits, others = (data.load("digits", split).images for split in ("train", "validation"))


class Autoencoder(nn.Module):
    def __init__(self, quantizer, width=256, cells=16):
        super().__init__()
        D = quantizer.dim
        mlp = lambda a, b: (nn.Flatten(), nn.Linear(a, width), nn.GELU(), nn.Linear(width, b))
        self.encoder = nn.Sequential(*mlp(64, cells * D), nn.Unflatten(1, (cells, D)))
        self.quantizer = quantizer
        self.decoder = nn.Sequential(*mlp(cells * D, 64), nn.Unflatten(1, (1, 8, 8)))

    def loss(self, x):
        q, k, aux_loss = self.quantizer(self.encoder(x))
        return F.mse_loss(self.decoder(q), x) + aux_loss, {}


@cache  # the larger tables below ask for some of these again
def trial(name, K=128, seed=0, steps=240):
    """Train one; returns PSNR on held-out digits, share of codes used, and perplexity."""
    torch.manual_seed(seed)
    model = Autoencoder(makers[name](K))
    schedule = dict(steps=steps, batch_size=32, seed=seed, warmup=0.1)
    fit(model, (digits,), adamw(model, 3e-3), **schedule, progress=False)
    with torch.inference_mode():
        q, k, _ = model.quantizer(model.encoder(others))
        shown = model.decoder(q).clamp(-1, 1)
    return psnr(shown, others).mean().item(), codebook_usage(k, K), perplexity(k, K)


def averages(rule):
    return lambda K: VectorQuantizer(K, 8, decay=0.95, gradient=rule)


def never(kind):
    return lambda K: kind(K, 8, kmeans_init=False).requires_grad_(False)


makers = {f"averages, {rule}": averages(rule) for rule in gradients.ESTIMATORS}
makers |= {
    "cosine, learned": lambda K: CosineVectorQuantizer(K, 8),
    "Gaussian, never learned": never(GradientVectorQuantizer),
    "cosine, never learned": never(CosineVectorQuantizer),
}
results = {
    name: torch.tensor([trial(name, seed=seed) for seed in range(3)])  # (3 seeds, 3 numbers)
    for name in makers
}

# %%
print(f"{'128 codes, 240 steps':28s}  PSNR, three seeds    mean    codes used   perplexity")
for name, r in results.items():
    seeds = " ".join(f"{value:.2f}" for value in r[:, 0])
    decibel, used, diversity = r.mean(0)
    print(f"{name:28s}  {seeds}   {decibel:6.2f}   {used:9.0%}   {diversity:10.0f}")
mean = {name: r[:, 0].mean().item() for name, r in results.items()}
by_rule = [mean[f"averages, {rule}"] for rule in gradients.ESTIMATORS]
assert max(by_rule) - min(by_rule) < 1
assert min(by_rule) > mean["Gaussian, never learned"] + 0.3
assert mean["cosine, never learned"] > mean["Gaussian, never learned"] + 0.4
assert mean["cosine, never learned"] > min(by_rule) - 0.6

# %%
pair = ("averages, straight_through", "cosine, never learned")
learned, never_learned = (trial(name, steps=600)[0] for name in pair)
print(f"after 600 steps: {learned:.2f} dB (averages), {never_learned:.2f} dB (never learned)")
assert learned > never_learned

# %% [markdown]
# First, the rules. Their means differ by a quarter of a decibel. Sampling is level with straight-through; Gumbel's three seeds lie further apart than
# the four means; and rotation is *behind* straight-through in every seed, though its paper reports clear gains for large autoencoders
# of photographs. With one seed each, one could have put three of the four in first place.
#
# Then the surprise: the last line of the table. A dictionary of random directions, which nobody ever learned, lies among the learned
# ones, and all of its words are spoken. Encoder and decoder can agree on *any* words, as long as all of them are within reach. That is what
# fails in the line above it: a Gaussian code of 8 numbers has a length of about 3, the vectors of an untrained encoder are short, so only
# the shortest codes are ever nearest. On the sphere no code is out of reach. With more steps (below the table, one seed) learning the words
# does pay. Remember it for the next chapter: if words need not be learned, why keep a table?
#
# ## More words, fewer spoken
#
# An honest failure. Codes that start as a Gaussian and learn by gradient, without any cure, lose about half a decibel. Perhaps they need
# more words?

# %%
sizes = (128, 512)
makers["gradient, no cure"] = lambda K: GradientVectorQuantizer(K, 8, kmeans_init=False)
grown = {
    name: [trial(name, K) for K in sizes]
    for name in ("averages, straight_through", "gradient, no cure", "cosine, never learned")
}
print(f"{'':28s}" + "".join(f"{f'K = {K}':>22s}" for K in sizes))
for name, row in grown.items():
    entries = [f"{db:5.2f} dB, {K * used:3.0f} used" for K, (db, used, _) in zip(sizes, row)]
    print(f"{name:28s}" + "".join(f"{entry:>22s}" for entry in entries))
share = [used for _, used, _ in grown["gradient, no cure"]]
assert share[1] < share[0] and share[1] < 0.5 < grown["averages, straight_through"][1][1]
assert grown["cosine, never learned"][1][0] > grown["gradient, no cure"][1][0]

# %% [markdown]
# Four times as many words, and the share that is spoken falls from half to a third. The loss does not give it away: it improved. The count
# does. A table that nobody learned, but that is within reach, beats one that learned and died; in a run as short as this it is ahead
# even of the averages.
#
# ## Pictures of words
#
# Back to the scenes. What would k-means do without a network? Cut training scenes into patches of 4 × 4 pixels, run k-means with 625
# codes, and write each patch of a held-out scene as its nearest code: as many tokens, as many bits. As a stronger baseline, our own
# quantizer with revival on the same raw patches.

# %%
cut = lambda x: F.unfold(x, 4, stride=4).mT  # images (B, 3, 32, 32) to patches (B, 64, 48)
paste = lambda p: F.fold(p.mT, 32, 4, stride=4)  # and back
assert torch.equal(paste(cut(scenes)), scenes)
learn = data.load("shapes", version="scene").images[:1000]
patches = cut(learn).flatten(0, 1)  # (64,000, 48)

torch.manual_seed(0)
lloyd = kmeans(patches, 625, iterations=10)
running = VectorQuantizer(625, 48, decay=0.9)
for _ in range(60):
    running(patches[torch.randint(len(patches), (4096,))])


def painted_by(codes, images):
    """Images from the nearest code of each patch, and the codes chosen."""
    k = nearest(cut(images), codes)
    return paste(codes[k]), k


tokens = batched(tokenizer.encode, scenes, 250)  # (1000, 64)
decoded = batched(tokenizer.decode, tokens, 250).clamp(-1, 1)
shown = {
    "k-means on patches": painted_by(lloyd, scenes),
    "… with revival": painted_by(running.codebook, scenes),
    "VQ-VAE": (decoded, tokens),
}
quality = {name: psnr(images, scenes).mean().item() for name, (images, _) in shown.items()}
print(f"{'625 codes':20s}   PSNR   codes used   perplexity")
for name, (_, k) in shown.items():
    used, spread = codebook_usage(k, 625), perplexity(k, 625)
    print(f"{name:20s} {quality[name]:8.1f} {used:11.1%} {spread:12.0f}")
assert quality["… with revival"] > quality["k-means on patches"] + 0.1
assert quality["VQ-VAE"] > max(quality["k-means on patches"], quality["… with revival"]) + 4
assert codebook_usage(tokens, 625) >= 0.9

# %% mystnb={"figure": {"caption": "Held-out scenes from 64 tokens of 625 codes. Patches of k-means do not know their neighbours; the network's words are read together with them.", "name": "fig-1-01-scenes"}, "image": {"alt": "Three rows of eight scenes of coloured shapes. From codes of raw patches the outlines are stairs and blocks; from the VQ-VAE they are smooth and nearly indistinguishable from the originals below."}} tags=["hide-input"]
some = [4, 7, 12, 19, 23, 42, 57, 64]
rows = [shown["k-means on patches"][0][some], decoded[some], scenes[some]]
labels = ["k-means", "VQ-VAE", "scene"]
ax = plt.subplots(figsize=(8.8, 3.3))[1]
viz.image_grid(torch.cat(rows), ncol=8, row_labels=labels, ax=ax);

# %% [markdown]
# Seven decibels beyond the better of the two, at equal bits: a fifth of the squared error. Why is a network so much better, when it also has
# only 625 words? Look at how the words are used. On top, a scene painted from one word alone, 64 times. Below, places where that word
# stands, in the framed middle.

# %% mystnb={"figure": {"caption": "Ten words, from the most common to rarer ones. Top: the word alone. Below: seven places in held-out scenes that got this word (the framed cell) with their surroundings.", "name": "fig-1-01-words"}, "image": {"alt": "Ten columns. The two commonest words stand in plain background of one tint. Rarer ones stand at or beside edges of shapes, on various backgrounds. Alone, they paint a tint or a texture that resembles none of these places."}} tags=["hide-input"]
count = tokens.flatten().bincount(minlength=625)
order = count.argsort(descending=True)
words = order[[0, 8, 80, 150, 200, 250, 300, 350, 400, 450]]
framed = F.pad(scenes, (4, 4, 4, 4), mode="replicate")
with torch.inference_mode():
    alone = tokenizer.decode(words[:, None].expand(-1, 64))[:, :, 10:22, 10:22]
places = []
for word in words:
    found = (tokens == word).nonzero()
    found = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(2))[:7]]
    corner = [(image, 4 * (cell // 8), 4 * (cell % 8)) for image, cell in found.tolist()]
    places.append(torch.stack([framed[b, :, r : r + 12, c : c + 12] for b, r, c in corner]))
grid = torch.cat((alone[:, None], torch.stack(places)), dim=1)  # (10 words, 1 + 7, 3, 12, 12)
labels = ["alone", *[""] * 7]
ax = plt.subplots(figsize=(8, 6.3))[1]
viz.image_grid(grid.transpose(0, 1).flatten(0, 1), ncol=10, row_labels=labels, ax=ax)
for row in range(1, 8):
    for column in range(10):
        box = (column - 0.157, row - 0.157), 0.314, 0.314
        ax.add_patch(plt.Rectangle(*box, fill=False, ec=viz.INK, lw=0.7))

# %% [markdown]
# A word is not a patch. The common ones are tints of background. Rarer ones stand at edges, some of them with shapes of mostly one colour,
# on any background, and others beside several colours: the neighbours say the rest. Alone, such a word paints a texture that resembles
# none of its places, since no scene ever consisted of one word. How far does a word reach? Change one word in 200 scenes, and look where
# the pictures change:

# %% mystnb={"figure": {"caption": "Left: where pictures change when the word of the framed cell changes. Middle: all words, by how often they occur in held-out scenes. Right: words by the share of their uses in flat cells (patches of one tint).", "name": "fig-1-01-use"}, "image": {"alt": "Left, a spot that fills the framed cell and fades beyond its borders. Middle, a falling curve: the commonest words are eight times as frequent as average, the last ones occur a few times. Right, a histogram with two peaks: over 250 words occur almost only at edges, about 100 almost only in flat cells."}} tags=["hide-input"]
changed = tokens[:200].clone()
changed[:, 27] = (changed[:, 27] + 311) % 625  # row 3, column 3
with torch.inference_mode():
    reach = (tokenizer.decode(changed) - tokenizer.decode(tokens[:200])).square().mean((0, 1))
own = (reach[12:16, 12:16].sum() / reach.sum()).item()
flat = cut(scenes).unflatten(-1, (3, 16)).std(-1).amax(-1) < 0.05  # (1000, 64)
in_flat = tokens[flat].bincount(minlength=625) / count.clamp(min=1)

figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9.4, 2.7))
left.imshow(reach[4:24, 4:24], cmap=viz.SEQUENTIAL, extent=(4, 24, 24, 4))
left.add_patch(plt.Rectangle((12, 12), 4, 4, fill=False, ec=viz.AMBER, lw=1.5))
left.set_title(f"reach of a word: {own:.0%} in its cell")
viz.bare(left)
middle.plot(range(1, 626), count[order] / count.sum())
middle.axhline(1 / 625, color=viz.GREY, lw=1, ls=":")
middle.set(xlabel="word, by rank", ylabel="frequency", yscale="log", title="how often")
right.hist(in_flat, bins=10, color=viz.BLUE, rwidth=0.9)
right.set(xlabel="share of its uses in flat cells", ylabel="words", title="where");

# %%
wrong = cut(decoded - scenes).square().mean(-1)  # (1000, 64)
entropy = math.log2(perplexity(tokens, 625))
in_error = wrong[flat].sum() / wrong.sum()
print(f"flat cells: {flat.float().mean():.0%} of all, {in_error:.0%} of the squared error")
print(f"words never or hardly ever used there: {int((in_flat < 0.1).sum())} of 625")
print(f"a token could cost {entropy:.2f} bits instead of {math.log2(625):.2f}")
assert in_error < 0.2 and (in_flat < 0.1).sum() > 150
assert 0.3 < own < 0.8 and entropy < math.log2(625)

# %% [markdown]
# The words overlap, as tiles never could: more than a quarter of what a word changes lies outside its cell. And two languages live in one
# table. Some hundred words name tints of background, over 250 are spoken only at edges, and there nearly all of the error remains. Last,
# every word is in use, but not equally often: an entropy coder would save half a bit on each token. The transformer that predicts tokens
# is such a coder, and a better one, since it also reads the neighbours.
#
# ## What a bit buys
#
# Keep the trained network, throw its table away, and make tables of other sizes by k-means on the encoder's vectors $z$. Two errors tell
# what the size does: that of the vectors, $|z - q|^2$ relative to their spread, and that of the painted scenes. The last row of the table
# does not quantize at all.

# %%
z_fit = batched(tokenizer.latents, learn[:500], 250).flatten(0, 1)  # (32,000, 8)
z = batched(tokenizer.latents, scenes[:500], 250)  # (500, 64, 8)


def painted_psnr(q):
    """Mean PSNR of the first 500 held-out scenes, painted from vectors (500, 64, 8)."""
    return psnr(batched(tokenizer.paint, q, 250).clamp(-1, 1), scenes[:500]).mean().item()


sizes = (5, 25, 125, 625, 3125)
by_bits = {"vectors": [], "scenes": [], "raw patches": []}
spread = (z - z.mean((0, 1))).square().sum()
for K in sizes:
    torch.manual_seed(0)
    table = kmeans(z_fit, K)
    q = table[nearest(z, table)]
    by_bits["vectors"].append(10 * (spread / (z - q).square().sum()).log10().item())
    by_bits["scenes"].append(painted_psnr(q))
    values = by_bits["vectors"][-1], by_bits["scenes"][-1]
    print(f"{K:5d} codes: vectors {values[0]:5.1f} dB, scenes {values[1]:5.1f} dB")
ceiling = painted_psnr(z)
print(f"no quantization:             scenes {ceiling:5.1f} dB")
tables = [kmeans(patches[::5], K) for K in sizes[:3]] + [lloyd]  # 5: patches from all 64 places
by_bits["raw patches"] = [
    psnr(painted_by(table, scenes[:500])[0], scenes[:500]).mean().item() for table in tables
]
steps = [after - before for before, after in zip(by_bits["vectors"], by_bits["vectors"][1:])]
dimensions = [6.02 * math.log2(5) / step for step in steps]
print("dimensions, from the slope of the vectors:", " ".join(f"{d:.1f}" for d in dimensions))
assert min(dimensions) > 2 and dimensions[0] + 0.5 < dimensions[-1] < 6
assert by_bits["scenes"] == sorted(by_bits["scenes"]) and by_bits["scenes"][-1] < ceiling
assert ceiling - quality["VQ-VAE"] < 3

# %% mystnb={"figure": {"caption": "PSNR of held-out scenes against bits per cell, on 8 × 8 cells. Tables of all sizes were refitted to one network, which had been trained with 625 codes (circle).", "name": "fig-1-01-bits"}, "image": {"alt": "Two rising lines. The network's line climbs steeply to 125 codes and then bends below a dotted ceiling at 37 decibels. k-means on raw patches rises in a straight line, seven decibels lower at 625 codes."}} tags=["hide-input"]
bits_per_cell = [math.log2(K) for K in sizes]
ax = viz.curves(
    {
        "network, refitted table": (bits_per_cell, by_bits["scenes"]),
        "k-means on raw patches": (bits_per_cell[:4], by_bits["raw patches"]),
    },
    ylabel="PSNR in dB",
    xlabel="bits per cell",
)
ax.axhline(ceiling, color=viz.GREY, lw=1, ls=":")
ax.text(bits_per_cell[0], ceiling + 0.3, "no quantization", color=viz.INK, fontsize=8)
ax.plot(math.log2(625), quality["VQ-VAE"], "o", ms=9, mfc="none", mec=viz.INK)
ax.set_xticks(bits_per_cell, [f"{b:.1f}\n{K} codes" for b, K in zip(bits_per_cell, sizes)]);

# %% [markdown]
# The vectors have eight numbers, but their slope is that of three dimensions, and of four for the largest tables. And the scenes reach a
# ceiling: without any quantization this network would gain less than 2 dB over its 625 words; the rest of the error is its own. Small
# tables suffer twice, since the network was not trained with them: one trained for 25 words should do better than this line says.

# %% [markdown]
# ## Exercise 1: how many words are spoken? (★, 5 minutes)
#
# Compute the perplexity of a list of codes: the number of equally frequent codes that would be as diverse.

# %% tags=["exercise"]
def spoken(indices, size):
    """Perplexity, a float in [1, size], of codes `indices` (any shape, long) below `size`."""
    return None  # your code

# %% tags=["exercise-check"]
halves = torch.tensor([[0, 0, 3, 3], [0, 0, 3, 3]])
answer = spoken(halves, 8)
if answer is None:
    print("Hint: count with bincount, divide; a code with p = 0 adds nothing.")
else:
    answer = float(answer)
    assert not math.isnan(answer), "0 log 0 counts as 0: leave out the codes that never occur"
    wrong = f"two codes, equally often, are 2 words; got {answer:.2f}: one base for log and exp"
    assert abs(answer - 2) < 1e-5, wrong
    skewed = torch.tensor([0, 0, 0, 1])
    found, expected = float(spoken(skewed, 8)), perplexity(skewed, 8)
    assert abs(found - expected) < 1e-5, f"3 to 1 are {expected:.3f} words, got {found:.3f}"
    print("Right: 1 for a monologue, the size of the table for perfect balance.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `torch.special.entr(p)` is $-p \log p$ with the right value at zero.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def spoken(indices, size):
#     p = indices.flatten().bincount(minlength=size) / indices.numel()
#     return torch.special.entr(p).sum().exp().item()
# ```
#
# </details>
# <details><summary>Wrong: entropy in bits, raised to e</summary>
#
# An entropy in bits belongs under a power of two.
#
# ```python
# def spoken(indices, size):
#     p = indices.flatten().bincount(minlength=size) / indices.numel()
#     return (torch.special.entr(p).sum() / math.log(2)).exp().item()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: revive the dead (★★, 10 minutes)
#
# Write the revival. Codes whose count is below the limit move onto vectors of the batch; all others stay. Mind that many codes may be
# dead at once, and that they should not all rise in one place.

# %% tags=["exercise"]
def revive(codes, counts, batch, limit=1.0):
    """New codes (K, D), from codes (K, D), running counts (K,) and vectors `batch` (M, D)."""
    return None  # your code

# %% tags=["exercise-check"]
torch.manual_seed(0)
old, batch = torch.full((40, 2), 9.0), torch.rand(500, 2)
old[:4] = torch.tensor([[0.2, 0.2], [0.2, 0.8], [0.8, 0.2], [0.8, 0.8]])
counts = torch.cat((torch.full((4,), 50.0), torch.zeros(36)))
before = old.clone()
answer = revive(old, counts, batch)
if answer is None:
    print("Hint: dead = counts < limit; torch.randint draws a row of the batch for each.")
else:
    assert answer.shape == (40, 2), f"expected codes (40, 2), got {tuple(answer.shape)}"
    assert torch.equal(answer[:4], before[:4]), "codes with enough vectors must not move"
    born = answer[4:]
    spread = len(born.unique(dim=0))
    wrong = f"36 dead codes rose in {spread} places: equal codes share a cell, and one gets all"
    assert spread > 18, wrong
    there = (born[:, None] == batch[None]).all(-1).any(1)
    assert there.all(), "a revived code should lie exactly on some vector of the batch"
    old_error, new_error = error(batch, before), error(batch, answer)
    assert new_error < 0.3 * old_error
    print(f"Right: the error falls from {old_error:.3f} to {new_error:.3f} at once.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `codes[dead] = batch[torch.randint(len(batch), (int(dead.sum()),))]`, on a copy.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def revive(codes, counts, batch, limit=1.0):
#     codes, dead = codes.clone(), counts < limit
#     codes[dead] = batch[torch.randint(len(batch), (int(dead.sum()),))]
#     return codes
# ```
#
# The package also gives a revived code the running count `limit`, and the sum that fits: otherwise it would be dead again in the next step.
#
# </details>
# <details><summary>Wrong: all onto the mean of the batch</summary>
#
# The mean is the safest place for one code, and a useless one for thirty-six.
#
# ```python
# def revive(codes, counts, batch, limit=1.0):
#     return torch.where((counts < limit)[:, None], batch.mean(0), codes)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: the push that arrives (★★★, 15 minutes)
#
# Without autograd: given a vector, its code and the gradient $g$ at the code, compute what the rotation trick hands to the vector,
# $\lambda R^\top g$. Build no matrix. The formula of $R$ is above; mind the transpose.

# %% tags=["exercise"]
def handed_over(z, q, g):
    """The gradient (D,) at z (D,) for the gradient g (D,) at its code q (D,)."""
    return None  # your code

# %% tags=["exercise-check"]
torch.manual_seed(1)
z_, q_, g_ = torch.randn(3, 5).unbind()
answer = handed_over(z_, q_, g_)
if answer is None:
    print("Hint: transpose R term by term. The matrix a bᵀ times g is (b · g) a.")
else:
    leaf = z_.clone().requires_grad_()
    expected = torch.autograd.grad((gradients.rotated(leaf, q_) * g_).sum(), leaf)[0]
    longer = (answer.norm() / expected.norm()).item()
    assert abs(longer - 1) < 1e-4, f"{longer:.2f} times too long: mind λ = |q| / |z|"
    kept = F.cosine_similarity(answer, z_, dim=0), F.cosine_similarity(g_, q_, dim=0)
    wrong = f"cosine with z is {kept[0]:.2f}, of g with q {kept[1]:.2f}: turned the wrong way"
    assert abs(kept[0] - kept[1]) < 1e-4, wrong
    wrong = "length and angle fit, the direction does not"
    assert torch.allclose(answer, expected, atol=1e-5), wrong
    print("Right: same angle to z as g has to q, and λ times as long.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# $R^\top = I - 2 w w^\top + 2 u v^\top$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def handed_over(z, q, g):
#     u, v = z / z.norm(), q / q.norm()
#     w = (u + v) / (u + v).norm()
#     return q.norm() / z.norm() * (g - 2 * (w @ g) * w + 2 * (v @ g) * u)
# ```
#
# </details>
# <details><summary>Wrong: forgets the transpose</summary>
#
# $R$ turns $u$ to $v$. A gradient goes the other way, from the code to the vector.
#
# ```python
# def handed_over(z, q, g):
#     u, v = z / z.norm(), q / q.norm()
#     w = (u + v) / (u + v).norm()
#     return q.norm() / z.norm() * (g - 2 * (w @ g) * w + 2 * (u @ g) * v)
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * A codebook cuts space into cells, one word for each. $\log_2 K$ bits name a word; in $d$ dimensions $d$ bits buy 6 dB.
# * In a network, running means play k-means. Codes that serve nobody get no signal: without revival the rich take all.
# * k-means is a start, revival is what survives vectors that move. Watch use *and* perplexity, on held-out images.
# * The lookup has no gradient. Straight-through copies it, rotation turns it, Gumbel softens the choice, sampling explores. The differences are
#   smaller than the names.
# * Encoder and decoder adapt to any words that are within reach, even to random ones. The next chapter starts from there.
#
# ## Where this stands
#
# VQ-VAE, straight-through and both kinds of codebook: van den Oord et al. ([1711.00937](https://arxiv.org/abs/1711.00937)); moving averages as online k-means, and a
# hierarchy: Razavi et al. ([1906.00446](https://arxiv.org/abs/1906.00446)). Revival of unused codes by vectors of the batch: Jukebox, Dhariwal et al. ([2005.00341](https://arxiv.org/abs/2005.00341)); SoundStream, Zeghidour et al. ([2107.03312](https://arxiv.org/abs/2107.03312)). The codebook on the sphere,
# with few dimensions: ViT-VQGAN, Yu et al. ([2110.04627](https://arxiv.org/abs/2110.04627)), and LlamaGen, Sun et al. ([2406.06525](https://arxiv.org/abs/2406.06525)). Straight-through as an estimator: Bengio et al.
# ([1308.3432](https://arxiv.org/abs/1308.3432)); Gumbel-softmax: Jang et al. ([1611.01144](https://arxiv.org/abs/1611.01144)) and Maddison et al. ([1611.00712](https://arxiv.org/abs/1611.00712)); the rotation trick: Fifty et al. ([2410.06424](https://arxiv.org/abs/2410.06424)). That a
# fixed random table can serve as a quantizer was used in speech by Chiu et al. ([2202.01855](https://arxiv.org/abs/2202.01855)). The next chapter does away with the table.
