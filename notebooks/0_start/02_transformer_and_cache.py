# %% [markdown]
# # A transformer and its KV cache
#
# | | |
# | --- | --- |
# | **You will build** | a transformer from its formulas, a proof that it is causal, and a cache that spares it 97 % of the positions |
# | **Time** | about half a minute on a laptop, without a GPU |
# | **You need** | PyTorch, matrix products, a first acquaintance with the word "attention" |
# | **Of the five nouns** | model (the block that all of them share) and sampler (the plain one) |
# | **Systems** | the Llama block, rotary positions, grouped queries, key-value cache, attention sinks |
#
# Almost every model of this course is the same stack of blocks. What changes is who may look at whom. After this chapter you can
# write the block from memory, you can *prove* that it never sees the future, and you know what a key-value cache stores, what it
# saves and what it costs.

# %% tags=["exercise-setup"]
import copy
import inspect
import math
import time
from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import ListedColormap

from minimal import checkpoints, data, recipes, viz
from minimal.nn.masks import before, not_after, prefix, same, sink, window

viz.style()
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## The question
#
# A transformer reads all positions at once. Yet a model that writes a picture pixel by pixel must never see the future. And when it
# writes, it is called once per pixel, each time on everything so far. Count the positions that pass through the network:

# %% mystnb={"figure": {"caption": "Every row is one forward. Blue: the new position. Amber: positions that the network has seen before.", "name": "fig-0-02-work"}, "image": {"alt": "Two squares, step against position. Without a cache a whole triangle is filled, almost all of it repeated work; with a cache only the diagonal."}} tags=["hide-input"]
def work_picture(ax, again):
    step = torch.arange(64)
    kind = (step[:, None] == step) * 1.0 + (step[:, None] > step) * again * 2.0
    ax.imshow(kind, cmap=ListedColormap(["white", viz.BLUE, viz.AMBER]), vmax=2)
    ax.grid(False)
    ax.set(xlabel="position", ylabel="forward", xticks=(0, 31, 63), yticks=(0, 31, 63))
    return int((kind > 0).sum())


figure, axes = plt.subplots(1, 2, figsize=(6.4, 3))
axes[0].set_title(f"without a cache: {work_picture(axes[0], True):,} positions")
axes[1].set_title(f"with a cache: {work_picture(axes[1], False)} positions");

# %% [markdown]
# Sixty-four of 2,080 are new. The other 97 % are repeated. How can we be sure that repeating them would give the same numbers again?
# And what exactly must be remembered so that nobody has to? The answer needs every part of the block, so we begin with the smallest.
#
# ## Attention, small enough to read
#
# Four tokens. Each brings a *query* (what it looks for), a *key* (what it offers) and a *value* (what it hands over), here two numbers
# wide. A score is the dot product of a query and a key. Softmax turns the scores of one query into weights that sum to one. The output
# is the weighted mean of the values:
#
# $$\mathrm{out}_i = \sum_j w_{ij}\, v_j, \qquad w_{ij} = \frac{e^{s_{ij}}}{\sum_{j'} e^{s_{ij'}}}, \qquad s_{ij} = \frac{q_i \cdot k_j}{\sqrt d}$$
#
# with $q, k, v$ of shape $(n, d)$, and $s, w$ of shape $(n, n)$. The root keeps scores of wide vectors from growing with $d$.

# %%
q = torch.tensor([[0.0, 0.0], [4.0, 0.0], [1.0, 1.0], [-1.0, 3.0]])
k = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0]])
v = torch.tensor([[0.0, 0.0], [4.0, 0.0], [4.0, 3.0], [0.0, 3.0]])

scores = q @ k.T / math.sqrt(2)  # (4, 4): a row for each query, a column for each key
weights = scores.exp() / scores.exp().sum(-1, keepdim=True)  # softmax, by hand
out = weights @ v  # (4, 2)
print(scores, weights, out, sep="\n\n")

# %% [markdown]
# Read the rows. Query 0 is zero: it asks nothing, all scores are equal, and it gets the plain mean of the values. Query 1 likes keys
# whose first number is positive, keys 0 and 1, and gets the mean of these two. The library and our package say the same:

# %%
from minimal.nn.attention import attention_weights, plain_attention

print(inspect.getsource(plain_attention))
heads = [x[None, None] for x in (q, k, v)]  # (batch, heads, n, d)
assert torch.allclose(F.scaled_dot_product_attention(*heads)[0, 0], out, atol=1e-6)
assert torch.allclose(plain_attention(*heads)[0, 0], out, atol=1e-6)
assert torch.allclose(attention_weights(*heads[:2])[0, 0].sum(-1), torch.ones(4))

# %% mystnb={"figure": {"caption": "Left: the weights, a row for each query. Right: the four values at the corners, and the four outputs. An output is a mean, so it cannot leave the shape that the values span.", "name": "fig-0-02-mean"}, "image": {"alt": "Left, a four by four map of attention weights. Right, a rectangle whose corners are the values; the outputs lie inside, output 0 exactly in the middle."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.7), width_ratios=(1, 1.3))
viz.attention_map(weights, range(4), ax=left)
right.fill(*v.T, fc=viz.PALE, ec=viz.GREY, lw=0.8)
right.scatter(*v.T, s=60, color=viz.BLUE, zorder=3)
right.scatter(*out.T, s=60, color=viz.AMBER, zorder=3)
for i in range(4):
    side, up = (1 if v[i, 0] else -1), (1 if v[i, 1] else -1)
    right.annotate(f"value {i}", v[i], (side * 8, up * 3), textcoords="offset points",
                   ha="left" if v[i, 0] else "right", va="center", color=viz.BLUE)  # fmt: skip
    right.annotate(f"output {i}", out[i], (7, 5), textcoords="offset points")
right.set(xlim=(-1.6, 5.6), ylim=(-0.7, 3.7), aspect="equal", xticks=(0, 2, 4), yticks=(0, 3))
right.grid(False);

# %% [markdown]
# Notice what is *not* in the formula: order. Attention looks at a set. Swap two tokens and the others do not notice, which is good for
# sets and bad for pictures. Two things are missing: who may look at whom, and where everybody stands.

# %%
swapped = [x[:, :, [2, 1, 0, 3]] for x in heads[1:]]  # tokens 0 and 2 trade places
assert torch.allclose(plain_attention(heads[0], *swapped)[0, 0], out, atol=1e-6)

# %% [markdown]
# ## Who may look at whom: masks
#
# A mask is a table of yes and no, $(\text{queries}, \text{keys})$. Where it says no, the score becomes $-\infty$, and the weight becomes
# $e^{-\infty} = 0$: exactly zero, not merely small. Forbid the future, and token 0 sees only itself, token 1 sees two, and so on:

# %%
position = torch.arange(4)
causal = position[None, :] <= position[:, None]  # key <= query
print(scores.masked_fill(~causal, -torch.inf).softmax(-1))
assert torch.equal(causal, not_after(position, position))

# %% [markdown]
# Here is the one idea behind all masks of this course. **Every token has an integer level**: the step at which it is generated. The
# rule `not_after` says that a query may see keys whose level is not after its own. Take a 4 × 4 grid of tokens, always read in the same
# order, and change nothing but the levels:

# %%
row, column = torch.arange(16) // 4, torch.arange(16) % 4
even = ((row % 2 == 0) & (column % 2 == 0)).long()
shuffled = torch.randperm(16, generator=torch.Generator().manual_seed(3))
levels = {
    "pixel by pixel": torch.arange(16),
    "row by row": row,
    "anti-diagonals": row + column,
    "coarse to fine": 2 - even - (row + column == 0).long(),
    "any order": shuffled,
}
masks = {name: not_after.square(level) for name, level in levels.items()}  # (16, 16) each

# %% mystnb={"figure": {"caption": "Top: the level of each token on the grid. Bottom: the mask that follows, a colour for each level of the key. One rule, five families of models.", "name": "fig-0-02-levels"}, "image": {"alt": "Five columns: pixel by pixel, row by row, anti-diagonals, coarse to fine, any order. Above, a four by four grid of level numbers; below, the resulting sixteen by sixteen mask."}} tags=["hide-input"]
figure, axes = plt.subplots(2, 5, figsize=(7.8, 3.6), height_ratios=(0.66, 1))
for (name, level), above, below in zip(levels.items(), *axes):
    colours = [viz.PALETTE[i % 6] for i in range(int(level.max()) + 1)]
    above.imshow(level.view(4, 4), cmap=ListedColormap(colours))
    viz.bare(above)
    viz.rule(above, 4, 4, "white", 1.5)
    for i, n in enumerate(level.tolist()):
        dark = colours[n] not in (viz.AMBER, viz.SKY)
        ink = "white" if dark else viz.INK
        above.text(i % 4, i // 4, n, ha="center", va="center", color=ink)
    above.set_title(name)
    viz.mask_picture(masks[name], level, ax=below)
    below.set(xlabel="key", ylabel="query" if name == "pixel by pixel" else None)

# %% [markdown]
# With the pixel's own number as its level we get the triangle of every language model. With equal levels, whole rows, diagonals or
# scales see each other and are generated together. Several tokens per step, fewer steps: half of Part 2 is a choice of levels. (Tokens
# of one level see each other, so what stands at their inputs must not be themselves. We come to that contract below.) The last masks look
# wild only because tokens are stored in reading order. Stored in the order of generation, every one of them is a staircase:

# %%
for name, mask in masks.items():
    order = levels[name].argsort()
    stairs = mask[order][:, order]
    assert (stairs[1:] >= stairs[:-1]).all() and (stairs[:, 1:] <= stairs[:, :-1]).all()
    print(f"{name:16s}{len(levels[name].unique()):3d} steps for 16 tokens")

# %% [markdown]
# A level says *when*. Other predicates say *where*, by position, and all of them combine with `&` (and) and `|` (or):

# %% mystnb={"figure": {"caption": "Predicates and their combinations, on twelve tokens; the last two on four levels of three tokens.", "name": "fig-0-02-mask"}, "image": {"alt": "Six masks of twelve tokens: a causal triangle, a band along the diagonal, the band with two sink columns, a triangle with a full prefix, blocks on the diagonal, and blocks below the diagonal with one sink column."}} tags=["hide-input"]
blocks = torch.arange(12) // 3
shown = {
    "not_after": not_after,
    "not_after & window(4)": not_after & window(4),
    "not_after &\n(window(4) | sink(2))": not_after & (window(4) | sink(2)),
    "not_after | prefix(4)": not_after | prefix(4),
    "same": same,
    "before | sink(1)": before | sink(1),
}
figure, axes = plt.subplots(2, 3, figsize=(6.3, 4.4))
for (name, mask), ax in zip(shown.items(), axes.flat):
    by_level = blocks if name in ("same", "before | sink(1)") else torch.arange(12)
    viz.mask_picture(mask.square(by_level), by_level if by_level is blocks else None, ax=ax)
    ax.set_title(name, fontsize=8.5, family="monospace")

# %% [markdown]
# * `window(4)`: only the last four keys. Work and memory per token stop growing with the length.
# * `sink(2)`: the first two keys, always. We will see at the end of the chapter why one adds them.
# * `prefix(4)`: a prompt that may read itself in both directions, then text or pixels one by one.
# * `same`: blocks that do not know of each other. `before`: everything strictly earlier, so a sink gives the first something to see.
#
# The package's file of masks is short. A predicate is a function of two places, and a place is a level and a position:

# %%
from minimal.nn import masks as mask_file

source = inspect.getsource(mask_file)
print(source[source.index("not_after = ") : source.index("def prefix")].strip())

# %% [markdown]
# ## Where everybody stands: rotary positions
#
# Give tokens a place without adding anything to them. Read the channels of a query or a key in pairs, as arrows in a plane, and
# **turn** the arrow of pair $i$ by an angle proportional to the position $m$:
#
# $$q_m^{(i)} \mapsto R(m\, \omega_i)\; q_m^{(i)}, \qquad \omega_i = 10000^{-2i/d}, \qquad i = 0, \dots, d/2 - 1$$
#
# Turning both arrows by the same angle does not change the angle between them. So the score of a query at $m$ and a key at $n$ knows
# only the difference $m - n$. The fast pairs tell neighbours apart, the slow ones tell far from near.

# %%
def angles(coordinates, d, base=10000.0):
    """Angles (n, d / 2) for coordinates (n, A): the channels are split evenly among A axes."""
    axes = coordinates.shape[-1]
    speed = base ** (-torch.arange(0, d // axes, 2) / (d // axes))  # (d / 2A,)
    return (coordinates[..., None] * speed).flatten(-2)


def turn(x, angle):
    """Turn the pairs of channels of x (..., n, d) by angle (n, d / 2)."""
    a, b, cos, sin = x[..., 0::2], x[..., 1::2], angle.cos(), angle.sin()
    return torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1).flatten(-2)


generator = torch.Generator().manual_seed(0)
query, key = torch.randn(2, 1, 24, generator=generator)  # one vector (1, 24) each
line = angles(torch.arange(200)[:, None], 24)  # (200, 12)
score = lambda m, n: (turn(query, line[m]) @ turn(key, line[n]).T).item()

for m, n in ((5, 2), (25, 22), (150, 147), (150, 140)):
    print(f"query at {m:3d}, key at {n:3d}: score {score(m, n):6.2f}")
assert abs(score(5, 2) - score(150, 147)) < 1e-4 < abs(score(5, 2) - score(150, 140))

# %% [markdown]
# The first three agree: same distance, same score, wherever they stand. That also means that a cached key, once turned to its place,
# is right for every later query. Keep this in mind.
#
# An image has two directions. **Two axes** are no harder than one: half of the pairs turn with the row, the other half with the column.
# Compare what a query "sees" if all tokens carry the same content, so that position alone decides:

# %%
from minimal.nn.rope import raster_coordinates, rotary, rotate

flat, grid = raster_coordinates(64, None), raster_coordinates(64, 8)  # (64, 1), (64, 2)
ones = torch.ones(64, 24)
place_scores = {}
for name, coordinates in (("1-D: number of the pixel", flat), ("2-D: row and column", grid)):
    turned = turn(ones, angles(coordinates, 24))
    package = rotate(ones[None, None], rotary(coordinates, 24))[0, 0]
    assert torch.allclose(turned, package, atol=1e-5)
    place_scores[name] = turned @ turned.T / 24  # (64, 64): 1 where the places agree

above, left, behind = 28, 35, 31  # one row up, one to the left, the end of the row above
print("score of pixel 36 with       above   left   end of the row above")
for name, s in place_scores.items():
    print(f"{name:26s}{s[36, above]:8.2f}{s[36, left]:7.2f}{s[36, behind]:10.2f}")
one, two = place_scores.values()
assert abs(two[36, above] - two[36, left]) < 1e-5 and two[36, above] > two[36, behind]
assert one[36, behind] > one[36, above]

# %% mystnb={"figure": {"caption": "How near each pixel seems to the marked one. On a line, the row above is eight steps away and rows are streaks. On the grid, up and left are the same distance.", "name": "fig-0-02-rope"}, "image": {"alt": "Left, score against distance, for the fast pairs and for all. Middle, a score map with 1-D positions, horizontal streaks. Right, a score map with 2-D positions that fades evenly in all four directions from the marked pixel."}} tags=["hide-input"]
figure, (curve, *axes) = plt.subplots(1, 3, figsize=(8, 2.5), width_ratios=(1.5, 1, 1.12))
offset = torch.arange(64)
for pairs, name, colour in ((4, "fast third", viz.AMBER), (12, "all pairs", viz.BLUE)):
    curve.plot(offset, line[offset, :pairs].cos().mean(-1), color=colour, label=name)
curve.set(xlabel="distance on a line", ylabel="score", ylim=(-0.8, 1.05))
curve.legend(loc="upper right", ncol=2)
for (name, s), ax in zip(place_scores.items(), axes):
    shown = ax.imshow(s[36].view(8, 8), cmap=viz.SEQUENTIAL, vmin=0.1, vmax=1)
    ax.add_patch(plt.Rectangle((3.5, 3.5), 1, 1, fc="none", ec=viz.AMBER, lw=2))
    ax.set_title(name)
    viz.bare(ax)
figure.colorbar(shown, ax=axes, label="score", shrink=0.9);

# %% [markdown]
# On a line, the end of the row above looks nearer than the pixel just above. On the grid, one step up is one step. And a head that has
# learned "look one row up" keeps that skill on a wider image: the difference is still (1, 0), where on a line it would move from 8 to 16.
# What becomes of this in a trained network we see as soon as we have one.
#
# ## The block
#
# Now the pieces go together. A **residual stream** $h$ of shape $(B, n, D)$ runs through the network. Each block reads a normalised
# copy of it twice, and adds what it found:
#
# $$h \leftarrow h + \mathrm{attention}(\mathrm{norm}(h)), \qquad h \leftarrow h + \mathrm{swiglu}(\mathrm{norm}(h))$$
#
# Attention moves information *between* positions; everything else works on each position alone. The norm divides by the root mean
# square. SwiGLU is a feed-forward network with a gate, $W_o\,(\mathrm{silu}(W_g x) \odot W_u x)$. Heads are attention done $H$ times on
# slices of $d = D / H$ channels, so that one token can look for several things at once.

# %%
def rms_norm(x, gain):
    return gain * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def swiglu(x, gate_up, out):
    gate, up = (x @ gate_up.T).chunk(2, dim=-1)
    return (F.silu(gate) * up) @ out.T


def attend(q, k, v, mask):
    """q (B, H, n, d), k and v (B, H, T, d), mask (n, T) -> (B, H, n, d)"""
    scores = q @ k.mT / math.sqrt(q.shape[-1])
    return scores.masked_fill(~mask, -torch.inf).softmax(-1) @ v


def block(h, w, angle, mask, remember=lambda k, v: (k, v)):
    """h (B, n, D) -> (B, n, D). `w` holds the six weights; `remember` is for later."""
    x = rms_norm(h, w["norm1.weight"])
    q, k, v = (x @ w["attention.qkv.weight"].T).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
    q, k = turn(q, angle), turn(k, angle)  # (B, 4, n, d)
    k, v = remember(k, v)
    x = attend(q, k, v, mask).transpose(1, 2).flatten(2)  # heads side by side
    h = h + x @ w["attention.out.weight"].T
    x = rms_norm(h, w["norm2.weight"])
    return h + swiglu(x, w["feed_forward.gate_up.weight"], w["feed_forward.out.weight"])

# %% [markdown]
# Thirty lines, and it is the block of Llama. The network around it is an embedding table in front and a matrix behind. Inputs are
# the class label, then the pixels: input 0 is the label and forecasts pixel 0; input $j$ is pixel $j - 1$ and forecasts pixel $j$.

# %%
ar = checkpoints.load("digits_ar").requires_grad_(False)  # recipe digits_ar
places = torch.cat((torch.tensor([[-1, -1]]), grid))  # the label stands outside of the picture


def forward(model, inputs, mask, remember=None, first=0):
    """Inputs (B, n) at positions first, first + 1, ... -> logits (B, n, V)."""
    h = model.embedding.weight[inputs]
    angle = angles(places[first : first + inputs.shape[1]], 24)
    for i, layer in enumerate(model.blocks):
        w = dict(layer.named_parameters())
        h = block(h, w, angle, mask, *([] if remember is None else [remember[i]]))
    return rms_norm(h, model.norm.weight) @ model.head.weight.T


validation = data.load("digits", "validation")
tokens = recipes.pixel_tokenizer(validation).encode(validation.images)  # (180, 64)
labels = validation.labels


def inputs_of(tokens, labels):
    """The model's inputs (B, 64): the label, numbered after the 17 greys, then the pixels."""
    return torch.cat((17 + labels[:, None], tokens[:, :-1]), dim=1)


causal = not_after.square(torch.arange(64))
inputs = inputs_of(tokens, labels)
ours, package = forward(ar, inputs, causal), ar.logits(tokens, labels)
difference = (ours - package).abs().max()
print(f"logits {tuple(ours.shape)}, largest difference from the package {difference:.0e}")
assert torch.allclose(ours, package, atol=1e-3)

# %% [markdown]
# Our formulas, the shipped weights, the package's numbers. Let us look inside. For each head we average the attention weight by *offset*:
# how many rows up and columns left of the forecast pixel is the key?

# %%
def by_offset(weights):
    """Mean weight (6, 11) by rows up (5 .. 0) and columns (-5 .. 5) from attention (64, 64)."""
    total, count = torch.zeros(6, 11), torch.zeros(6, 11)
    for j in range(64):
        if j % 8 == 0:
            continue  # the forecast for a row's first pixel is made at the end of the row above
        for i in range(1, j + 1):  # input i is pixel i - 1
            up, right = j // 8 - (i - 1) // 8, (i - 1) % 8 - j % 8
            if up < 6 and abs(right) < 6:
                total[5 - up, 5 + right] += weights[j, i]
                count[5 - up, 5 + right] += 1
    return total / count.clamp(min=1)


attention = []  # (4 layers, 4 heads, 64, 64), mean over images
h = ar.embedding(inputs)
for layer in ar.blocks:
    heads = layer.attention.project(layer.norm1(h), rotary(places[:64], 24))
    attention.append(attention_weights(*heads[:2], causal).mean(0))
    h = layer(h, rotary(places[:64], 24), causal)
attention = torch.stack(attention)

# %% mystnb={"figure": {"caption": "Mean attention by offset in six of sixteen heads. The amber square is the pixel to be forecast; pixels to its right do not exist yet. Each panel has its own scale, its maximum is in the title.", "name": "fig-0-02-heads"}, "image": {"alt": "Six heat maps around a marked pixel. Four heads have one dark spot: two pixels to the left, above, above to the right, above to the left. Two are spread over many pixels."}} tags=["hide-input"]
chosen = {
    (3, 2): "two left",
    (2, 2): "above",
    (2, 0): "above right",
    (1, 1): "above left",
    (0, 0): "far",
    (3, 1): "two rows",
}
figure, axes = plt.subplots(2, 3, figsize=(7.6, 3.2))
for ((layer, head), name), ax in zip(chosen.items(), axes.flat):
    mean = by_offset(attention[layer, head])
    ax.imshow(mean, cmap=viz.SEQUENTIAL, vmin=0)
    viz.framed(ax)
    ax.set(xlabel=None, ylabel=None)
    viz.rule(ax, 6, 11, "white", 1)
    frame = dict(fc="none", ec=viz.AMBER, lw=2, zorder=4, clip_on=False)
    ax.add_patch(plt.Rectangle((4.5, 4.5), 1, 1, **frame))
    ax.set_title(f"layer {layer + 1}, head {head + 1}: {name}, {mean.max():.2f}", fontsize=8.5)

# %%
up = by_offset(attention[2, 2])[4, 5]
print(f"layer 3, head 3 puts {up:.0%} of its attention on the pixel above")
assert up > 0.25

# %% [markdown]
# Nobody told the network about neighbours. It was given a place for every pixel, and built detectors for two to the left, above, and the
# two diagonals, each the same everywhere on the grid, as a convolution would. No head needs to look at the pixel *just* left: that one is
# the query's own input and is in its stream already.
#
# ## Causality, proved
#
# A mask in every layer forbids the future. Does the *stack* obey? Ask the derivative. If $\partial h_l[j] / \partial h_0[i]$ is exactly
# zero, nothing at input $i$ can reach position $j$ after $l$ layers. We compute it for every pair and every layer of the trained network,
# under two masks: causal, and causal with a window of four.

# %%
def reach(mask, n=24):
    """|d h_l[j] / d h_0[i]| along one random direction of h_l[j], as (layers, n, n)."""
    exact = copy.deepcopy(ar).double()
    h = start = exact.embedding(inputs[:1, :n]).requires_grad_()
    direction = torch.randn(96, generator=torch.Generator().manual_seed(0)).double()
    sizes = []
    for layer in exact.blocks:
        h = block(h, dict(layer.named_parameters()), angles(places[:n], 24).double(), mask)
        along = h[0] @ direction  # (n,)
        slopes = [torch.autograd.grad(one, start, retain_graph=True)[0] for one in along]
        sizes.append(torch.cat(slopes).norm(dim=-1))
    return torch.stack(sizes)


place = torch.arange(24)
seen_by = {"causal": not_after, "window of 4": not_after & window(4)}
fields = {name: reach(mask.square(place)) for name, mask in seen_by.items()}

for l in range(4):
    assert torch.equal(fields["causal"][l] > 0, not_after.square(place))
    reached = fields["window of 4"][l] > 0
    assert torch.equal(reached, (not_after & window((l + 1) * 3 + 1)).square(place))
    print(f"window of 4, layer {l + 1}: position 23 depends on {reached[23].sum():2d} inputs")

# %% mystnb={"figure": {"caption": "Size of the derivative of a layer's output (down) by an input (across), on a logarithmic scale. White is exactly zero. Top: causal. Bottom: a window of 4, which grows by three positions with every layer.", "name": "fig-0-02-field"}, "image": {"alt": "Two rows of four triangular heat maps, one for each layer. Everything above the diagonal is white. In the lower row a band along the diagonal widens from four to thirteen positions."}} tags=["hide-input"]
figure, axes = plt.subplots(2, 4, figsize=(7.8, 4.1))
for (name, field), panels in zip(fields.items(), axes):
    for l, ax in enumerate(panels):
        size = field[l].where(field[l] > 0, torch.nan)  # exact zeros stay white
        ax.imshow(size.log10(), cmap=viz.SEQUENTIAL, vmin=-4.5, vmax=1.5)
        viz.framed(ax)
        ax.set(xlabel="input" if name != "causal" else None, ylabel=None)
        ax.set_title(f"{name}, layer {l + 1}")
    panels[0].set_ylabel("output");

# %% [markdown]
# Above the diagonal stand true zeros: causality holds, bit for bit. (A derivative is taken at one input. But these zeros come from the mask,
# which never looks at the input, so they stand there for every input.) Below, everything reaches everything. And a window of $w$ is no
# wall: after $L$ layers a position has heard of $L\,(w - 1) + 1$ inputs, itself included, since what a neighbour heard is passed on. Long
# sequences live on that.
#
# For an image model one more step is needed. Its logits in row $j$ are the forecast *for* pixel $j$, so row $j$ must not read pixel $j$
# itself. The shift by one input (the label in front) takes care of that. This is the **canvas contract** of every model in the package:
# hand `logits` a canvas of tokens, and row $j$ reads only what is before $j$. So a sampler may leave rubbish at places that are not drawn
# yet. We test it without derivatives too: change pixel $j$, and no bit of rows $0, \dots, j$ may move.

# %%
seen = ar.embedding(inputs[:8]).requires_grad_()  # (8 images, 64, 96)
h = seen
for layer in ar.blocks:
    h = layer(h, rotary(places[:64], 24), causal)
forecast = (ar.head(ar.norm(h)) @ torch.randn(17, generator=generator)).sum(0)  # (64,) rows
slopes = [torch.autograd.grad(row, seen, retain_graph=True)[0] for row in forecast]
contract = torch.stack(slopes).norm(dim=-1).mean(1)[:, 1:]  # (64 rows, 63 pixels)
assert torch.equal(contract > 0, before(torch.arange(64), torch.arange(63)))

canvas = tokens[:1].repeat(64, 1)  # 64 copies; in copy j we change pixel j
changed = canvas.clone()
changed.diagonal().copy_((changed.diagonal() + 1) % 17)
label = labels[:1].expand(64)
moved = (ar.logits(changed, label) != ar.logits(canvas, label)).any(-1)  # (copy j, row)
assert torch.equal(moved.T, before.square(torch.arange(64)))  # a row moved only if j < row
print(f"{moved.sum()} of {64 * 63 // 2} later rows moved; {moved.tril().sum()} others")

# %% mystnb={"figure": {"caption": "Left: the forecast in row j against the pixels of the canvas; the diagonal is white, too. Right: one row of it, as a picture: what the forecast for the marked pixel rests on.", "name": "fig-0-02-canvas"}, "image": {"alt": "Left, a strictly lower triangle, dark just below the diagonal and along a second line eight pixels from it. Right, an eight by eight picture: dark around the marked pixel to the left and above, white from the marked pixel on."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(7, 3))
for ax, size in zip(axes, (contract, F.pad(contract[36], (0, 1)).view(8, 8))):
    size = size.where(size > 0, torch.nan).log10()
    low = size.nanquantile(0.02) - 0.3
    ax.imshow(size, cmap=viz.SEQUENTIAL, vmin=low)
    viz.framed(ax)
axes[0].set(xlabel="pixel of the canvas", ylabel="row of logits", title="who reads whom")
axes[1].set(xlabel=None, ylabel=None, title="row 36")
axes[1].add_patch(plt.Rectangle((3.5, 3.5), 1, 1, fc="none", ec=viz.AMBER, lw=2));

# %% [markdown]
# A second dark line runs eight pixels left of the diagonal: that is the pixel above. All else that is not white is used a little.

# %%
back = [contract.diagonal(-distance).mean().item() for distance in range(14)]
print("distance back  mean slope")
for distance in (0, 1, 4, 8, 12):
    print(f"{distance:13d}{back[distance]:12.2f}")
assert back[0] == 0 and back[1] > back[8] > 1.2 * max(back[4], back[12])

# %% [markdown]
# ## The cache, derived
#
# Suppose positions $0, \dots, n - 1$ have been computed and a token is added at $n$. By causality no older $h_l[i]$ changes. So nothing
# about the old positions needs computing again. What does the *new* position need from them? Follow it through one layer:
#
# * its own query $q_n$, made from its own $h$;
# * the keys $k_0, \dots, k_n$, to score against: **old ones wanted**;
# * the values $v_0, \dots, v_n$, to average: **old ones wanted**;
# * norms and feed-forward: its own $h$ alone.
#
# Old *queries* appear nowhere. $q_i$ was used once, for $\mathrm{out}_i$, and that is finished. So remember $k$ and $v$ of every
# position in every layer. That is the whole KV cache. In our block it is the line `k, v = remember(k, v)`:

# %%
class Past:
    """The keys and values of one layer so far."""

    k = v = torch.zeros(1, 4, 0, 24)  # (B, H, 0, d)

    def __call__(self, k, v):
        self.k, self.v = torch.cat((self.k, k), dim=2), torch.cat((self.v, v), dim=2)
        return self.k, self.v


past = [Past() for _ in ar.blocks]
rows = []
for j in range(64):  # one new position at a time; it sees all that is remembered
    new = inputs[:1, j : j + 1]
    rows.append(forward(ar, new, torch.ones(1, j + 1).bool(), past, first=j))
stepwise = torch.cat(rows, dim=1)
print(f"step by step against all at once: {(stepwise - ours[:1]).abs().max():.0e}")
assert torch.allclose(stepwise, ours[:1], atol=1e-3)

# %% [markdown]
# Each step ran the network on *one* position, and no mask was needed: a single new query may see all keys there are. The numbers agree
# up to rounding, since the sums run in another order. The package allocates the memory once, for the longest sequence, and writes
# into it; `append` is our `remember`:

# %%
from minimal.nn.cache import KVCache, SlidingKVCache, StaticKVCache

print(inspect.getsource(KVCache.append))
cache = ar.new_cache(1)
with torch.inference_mode():
    steps = [ar.logits(tokens[:1, : j + 1], labels[:1], cache=cache) for j in range(64)]
assert torch.allclose(torch.cat(steps, dim=1), package[:1], atol=1e-3)
assert all(torch.allclose(cache.k[l], past[l].k, atol=1e-4) for l in range(4))

# %% [markdown]
# A step may also bring several positions. A prompt goes in at once, and later chapters check eight guesses in one call. Then the mask is
# needed again, with a row for each *new* query and a column for every key: old keys are seen by all, new ones by those not before them.

# %%
cache = ar.new_cache(1)
with torch.inference_mode():
    parts = [ar.logits(tokens[:1, :end], labels[:1], cache=cache) for end in (40, 41, 48, 64)]
print("rows computed by each call:", [part.shape[1] for part in parts])
assert torch.allclose(torch.cat(parts, dim=1), package[:1], atol=1e-3)

# %% [markdown]
# ## Counted
#
# Now draw images with and without, from the same noise. The tokens must be equal, all of them. The trace of each sampler counts:

# %%
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.trace import multiply_adds

seed = lambda: torch.Generator().manual_seed(0)
digits = torch.arange(10)
samples = {
    "no cache": sample_uncached(ar, 10, cond=digits, generator=seed()),
    "cached": sample_cached(ar, 10, cond=digits, generator=seed()),
}
assert torch.equal(samples["no cache"].tokens, samples["cached"].tokens)


def last_token(cache):
    """Draw the last pixel."""
    if cache is not None:
        cache.length = 63
    with torch.inference_mode():
        return ar.logits(tokens[:1], labels[:1], cache=cache)


last = {
    "no cache": multiply_adds(lambda: last_token(None)),
    "cached": multiply_adds(lambda: last_token(cache)),
}
print("per image    forwards   positions   multiply-adds for the last pixel")
for name, sample in samples.items():
    forwards = sample.trace.forwards["target"]
    positions = sample.trace.positions["target"] // 10
    print(f"{name:9s}{forwards:12d}{positions:12,d}{last[name]:22,d}")

N = 64
assert samples["no cache"].trace.positions["target"] // 10 == N * (N + 1) // 2
assert samples["cached"].trace.positions["target"] // 10 == N
assert samples["no cache"].trace.forwards == samples["cached"].trace.forwards
assert 50 < last["no cache"] / last["cached"] < 70

# %% [markdown]
# The same number of forwards, $N (N + 1) / 2$ positions against $N$. And the price, in memory, is two vectors for each layer, head and
# position:
#
# $$\text{bytes} = 2 \cdot \text{layers} \cdot \text{key-value heads} \cdot d \cdot N \cdot \text{bytes per number}$$

# %%
def cache_bytes(layers, kv_heads, head_dim, length, size):
    return 2 * layers * kv_heads * head_dim * length * size


held = cache.k.nbytes + cache.v.nbytes
network = sum(p.nbytes for p in ar.parameters())
print(f"cache {held:,} bytes, weights {network:,} bytes")
assert held == cache_bytes(layers=4, kv_heads=4, head_dim=24, length=64, size=4)

# %% [markdown]
# ## Measured, and a surprise
#
# The last pixel needs 64 times fewer multiply-adds, a whole picture 32 times fewer positions. So a picture should come 32 times faster.
# Time it, best of several runs:

# %% tags=["nbval-ignore-output"]
def best(run, times=5):
    """Shortest time of `run()` in seconds, after a warm-up."""
    run()
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


slow = fast = math.inf
for _ in range(3):  # by turns, lest a disturbance hit one of them alone
    slow = min(slow, best(lambda: sample_uncached(ar, 1, generator=seed()), 2))
    fast = min(fast, best(lambda: sample_cached(ar, 1, generator=seed()), 2))
print(f"one image: {1000 * slow:.0f} ms without a cache, {1000 * fast:.0f} ms with one")
print(f"{slow / fast:.1f} times faster")
assert slow / fast < 16

# %% [markdown]
# About twice as fast. Not thirty-two times. Where did the rest go? Let an untrained network of the same size, but with a longer context,
# add *one* token to sequences of many lengths:

# %% tags=["nbval-ignore-output"]
from minimal.ar.raster import RasterGPT

torch.manual_seed(0)
long = RasterGPT(17, 2048, 10, grid_width=64).eval()
scratch, lengths = long.new_cache(1), [2**i for i in range(3, 12)]
blank = torch.zeros(1, 2048, dtype=torch.long)


def one_more(n, cache):
    """The n-th token, with n - 1 in the cache or without one."""
    if cache is not None:
        cache.length = n - 1
    return long.logits(blank[:, :n], cache=cache)


cached, uncached = [math.inf] * len(lengths), [math.inf] * len(lengths)
for _ in range(3):
    for i, n in enumerate(lengths):
        with torch.inference_mode():
            cached[i] = min(cached[i], 1000 * best(lambda: one_more(n, scratch)))
            uncached[i] = min(uncached[i], 1000 * best(lambda: one_more(n, None), 1 + 500 // n))
print("length      no cache      cached     ratio")
for n, a, b in zip(lengths, uncached, cached):
    print(f"{n:6d}{a:11.2f} ms{b:9.2f} ms{a / b:9.1f}")

# %% mystnb={"figure": {"caption": "Time to add one token, against the length of what is there already. Both axes are logarithmic; dotted lines show proportional and quadratic growth.", "name": "fig-0-02-time"}, "image": {"alt": "Two curves of milliseconds per token against length from 8 to 2048. Cached stays almost flat near one millisecond; uncached is flat at first, then climbs with slope one and more, to over a hundred milliseconds."}} tags=["hide-input", "nbval-ignore-output"]
ax = viz.curves(
    {"no cache": (lengths, uncached), "cached": (lengths, cached)},
    xlabel="length", ylabel="milliseconds per token", xscale="log", yscale="log",
)  # fmt: skip
ax.set_xticks(lengths, lengths)
guide = torch.tensor([256.0, 2048.0])
for power, name in ((1, "∝ length"), (2, "∝ length²")):
    y = uncached[5] * (guide / 256) ** power
    ax.plot(guide, y, ":", color=viz.GREY, lw=1)
    ax.text(2150, y[1], name, color=viz.GREY, fontsize=8, va="center")
ax.axvline(64, color=viz.PALE, lw=6, zorder=0)
ax.text(66, 60, "a digit", color=viz.GREY, fontsize=8);

# %% tags=["nbval-ignore-output"]
def slope(times, a, b):
    """Growth exponent between lengths a and b."""
    i, j = lengths.index(a), lengths.index(b)
    return math.log(times[j] / times[i]) / math.log(b / a)


print("growth exponent         no cache   cached")
for a, b in ((8, 64), (512, 2048)):
    print(f"from {a:3d} to {b:4d}{slope(uncached, a, b):17.2f}{slope(cached, a, b):9.2f}")
assert slope(uncached, 512, 2048) > 0.7 and slope(cached, 64, 1024) < 0.5
assert uncached[-1] / cached[-1] > 16

# %% [markdown]
# There are three regimes. In the thousands attention dominates: an uncached token costs nearly the square of the length, and the cache is
# a hundred times faster. In the hundreds, cost is proportional to the length. But on the left **the line is nearly flat: eight positions
# cost hardly more than one, and 64 cost about twice as much, not 64 times**. What is being paid there? Count the operations that Python
# hands to PyTorch:

# %% tags=["nbval-ignore-output"]
from torch.utils._python_dispatch import TorchDispatchMode

from minimal.samplers.fast import FastRaster


class Count(TorchDispatchMode):
    calls = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        return function(*args, **(kwargs or {}))


def operations(run):
    with torch.inference_mode(), Count() as counter:
        run()
    return counter.calls


few, many = operations(lambda: last_token(cache)), operations(lambda: last_token(None))
print(f"{few} operations to compute 1 position, {many} to compute 64")
thin = FastRaster(ar)
seconds = {"as it comes": math.inf, "thinner calls": math.inf}
for _ in range(4):
    for name, model in zip(seconds, (ar, thin)):
        run = partial(sample_cached, model, 1, generator=seed())
        seconds[name] = min(seconds[name], best(run, 2))
for name, time_taken in seconds.items():
    print(f"one image, cached, {name:13s}{1000 * time_taken:4.0f} ms")
assert 0.5 < many / few < 2

# %% [markdown]
# About as many for one position as for 64, and each costs some microseconds to issue, whatever is inside. A small network pays for *calls*,
# not for arithmetic. `FastRaster` holds the same weights in a form that asks less of the library. It helps nearly as much as the cache did.
# Large networks have a flat stretch too, for another reason: every weight must be read from memory once per forward, for one position as
# for a hundred. A cache removes arithmetic. Where arithmetic is not what you pay for, it removes little. This is why Part 5a exists.
#
# ## Fewer keys: grouped queries
#
# At length the balance turns: weights are shared by everybody, a cache belongs to one sequence. The formula above has one factor that
# we can cut without touching the width of the network: the number of key-value heads. Let $H$ query heads share $G$ key-value heads,
# $H / G$ to each. $G = H$ is multi-head attention, $G = 1$ is multi-query, and all between is **grouped-query attention**. It is one code
# path:

# %%
from minimal.nn.attention import Attention

print("G        queries           keys, values      numbers kept per token and layer")
for groups in (8, 2, 1):
    torch.manual_seed(0)
    layer = Attention(dim=96, heads=8, kv_heads=groups)
    q, k, v = layer.project(torch.randn(1, 10, 96))
    shapes = f"{str(tuple(q.shape)):18s} {str(tuple(k.shape)):18s}"
    print(f"{groups}   {shapes}{2 * groups * layer.head_dim:14d}")
    copied = [x.repeat_interleave(8 // groups, dim=1) for x in (k, v)]  # for each query head
    kernel = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
    assert torch.allclose(kernel, plain_attention(q, *copied), atol=1e-5)

# %% mystnb={"figure": {"caption": "Eight query heads (dots) and the key-value heads (squares) that they read.", "name": "fig-0-02-gqa"}, "image": {"alt": "Three diagrams: eight dots joined to eight squares one by one, eight dots joined to two squares, four each, and eight dots joined to one square."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(8, 1.5))
names = {8: "multi-head, G = 8", 2: "grouped-query, G = 2", 1: "multi-query, G = 1"}
for ax, (groups, name) in zip(axes, names.items()):
    for head in range(8):
        share = 8 // groups
        home = (head // share) * share + (share - 1) / 2
        colour = viz.PALETTE[head // share % 6]
        ax.plot([head, home], [1, 0], color=colour, lw=1.2)
        ax.scatter(head, 1, s=36, color=colour, zorder=3)
        ax.scatter(home, 0, s=90, color=colour, marker="s", zorder=3)
    ax.set(ylim=(-0.45, 1.35), xlim=(-0.6, 7.6))
    ax.set_title(name)
    viz.bare(ax)

# %% [markdown]
# What that means for networks that people use (shapes from their published configurations; two bytes per number):

# %%
published = {  # layers, query heads, key-value heads, channels per head, tokens, parameters
    "LlamaGen-XXL, 384 px": (48, 24, 24, 64, 576, 1.4e9),
    "Llama 2 7B": (32, 32, 32, 128, 4096, 6.7e9),
    "Llama 3 8B": (32, 32, 8, 128, 8192, 8.0e9),
    "Llama 2 70B": (80, 64, 8, 128, 4096, 69e9),
}
print("                        kB per     MB per sequence       sequences as heavy")
print("                         token   G = H  as built  G = 1      as the network")
for name, (layers, H, G, d, length, parameters) in published.items():
    each = [cache_bytes(layers, groups, d, length, 2) / 1e6 for groups in (H, G, 1)]
    weigh = 2 * parameters / 1e6 / each[1]
    token = 1000 * each[1] / length
    full, built, single = each
    print(f"{name:22s}{token:8.0f}{full:8.0f}{built:10.0f}{single:7.0f}{weigh:15.1f}")

# %% [markdown]
# Six sequences of Llama 2 7B weigh as much as the network itself, and every decoded token reads the whole cache of its sequence. Llama 3
# doubles the context and still holds a sequence in half of the bytes. LlamaGen's pictures are short sequences, and it kept $G = H$.
#
# ## Three caches with one face
#
# All caches of the package have the same methods: `append`, `advance`, `truncate`, `reorder`, `length`, `positions`, `key_positions`. A
# model does not know which one it is given. They differ in what their memory does. Let every key *be* its position, and look into it:

# %%
def add(cache, n=1, rows=1):
    """Append n positions whose keys are the numbers of the positions."""
    for _ in range(n):
        number = cache.positions(1).reshape(-1, 1, 1, 1).float()  # one per row, or one for all
        cache.append(0, number.expand(rows, 1, 1, 1), number.expand(rows, 1, 1, 1))
        cache.advance(1)


def content(cache):
    """Slots of the first layer (rows, capacity)."""
    return cache.k[0, :, 0, :, 0].long().clone()


dense, static = KVCache(1, 1, 1, 10, 1), StaticKVCache(1, 3, 1, 10, 1)
ring = SlidingKVCache(1, 1, 1, 6, 1, sinks=2)
for each in (dense, static, ring):
    each.k.fill_(-1)  # an empty slot

# of each cache: (label, what the slots hold, the slots in use)
story = {"KVCache": [], "StaticKVCache": [], "SlidingKVCache": []}
changes = {
    "7 appended": lambda: add(dense, 7),
    "truncate(4)": lambda: dense.truncate(4),
    "1 more": lambda: add(dense),
}
for label, change in changes.items():
    change()
    story["KVCache"].append((label, content(dense)[0], dense.key_positions(0).tolist()))

add(static, 6, rows=3)
static.truncate(torch.tensor([6, 2, 4]))  # each row forgets as much as it likes
add(static, 1, rows=3)
for b, length in enumerate(static.length.tolist()):
    story["StaticKVCache"].append((f"row {b}", content(static)[b], list(range(length))))

for total in (6, 7, 10):
    add(ring, total - ring.length)
    kept = ring.slot(ring.key_positions(0)).tolist()
    story["SlidingKVCache"].append((f"{total} appended", content(ring)[0], kept))

# %% mystnb={"figure": {"caption": "What the slots hold. The number is the position whose key lies there. Blue: in use. Amber: a sink. Grey: stale, written once and no longer seen. White: empty.", "name": "fig-0-02-slots"}, "image": {"alt": "Three tables of memory slots, one below the other. The plain cache fills from the left and keeps stale entries after truncation. The static cache has a different length in each of three rows. The sliding cache keeps positions 0 and 1 and overwrites the other four slots in a ring."}} tags=["hide-input"]
titles = {
    "KVCache": "KVCache: one length",
    "StaticKVCache": "StaticKVCache: a length per row",
    "SlidingKVCache": "SlidingKVCache: 2 sinks, ring of 4",
}
figure, axes = plt.subplots(3, 1, figsize=(4.6, 4.6))
for (name, lines), ax in zip(story.items(), axes):
    for r, (label, slots, kept) in enumerate(lines):
        for c, number in enumerate(slots.tolist()):
            used, pinned = c in kept, name == "SlidingKVCache" and c < 2
            face = viz.AMBER if pinned else viz.BLUE if used else viz.PALE
            face = "white" if number < 0 else face
            ink = "white" if face == viz.BLUE else viz.INK if used else viz.GREY
            edge = viz.GREY if number < 0 else "white"
            ax.add_patch(plt.Rectangle((c - 0.5, r - 0.5), 1, 1, fc=face, ec=edge, lw=0.6))
            place = dict(ha="center", va="center", color=ink, fontsize=7.5)
            ax.text(c, r, "" if number < 0 else number, **place)
    viz.bare(ax)
    ax.set(xlim=(-0.6, 9.6), ylim=(len(lines) - 0.4, -0.6), aspect="equal")
    ax.set_yticks(range(len(lines)), [label for label, *_ in lines])
    ax.set_title(titles[name])

# %%
assert content(dense)[0].tolist() == [0, 1, 2, 3, 4, 5, 6, -1, -1, -1] and dense.length == 5
assert static.length.tolist() == [7, 3, 5]
assert content(ring)[0].tolist() == [0, 1, 6, 7, 8, 9]

# %% [markdown]
# * **`KVCache`** returns the filled part, so no work is wasted. Forgetting (`truncate`) only moves the mark; the next `append` writes
#   over what is stale. Speculative sampling takes back its refused guesses that way.
# * **`StaticKVCache`** always returns the whole buffer, and the mask hides the rest. Shapes and addresses never change, which CUDA graphs
#   demand, and rows may have different lengths, which batches of requests have.
# * **`SlidingKVCache`** never grows. A ring overwrites its oldest entry; the first few positions, the sinks, stay for ever. Its price: what
#   was overwritten is gone, and a roll-back that needs it is refused, with the size that would have been enough.

# %%
try:
    ring.truncate(5)
except ValueError as refusal:
    print(refusal)
else:
    raise AssertionError("positions 2 to 4 were overwritten, so this must be refused")

# %% [markdown]
# All three give the same logits, as long as the window holds everything:

# %%
kinds = {"dense": KVCache, "static": StaticKVCache, "sliding": partial(SlidingKVCache, sinks=2)}
for name, kind in kinds.items():
    cache = ar.new_cache(1, kind=kind)
    with torch.inference_mode():
        steps = [ar.logits(tokens[:1], labels[:1], cache=cache, n=1) for _ in range(64)]
    difference = (torch.cat(steps, dim=1) - package[:1]).abs().max()
    print(f"{name:8s} largest difference from one full forward: {difference:.0e}")
    assert difference < 1e-3

# %% [markdown]
# ## A failure: the window that nobody trained
#
# It is tempting. The clearest heads look at neighbours only, as we saw. Let the cache keep only the last 16 positions, two rows, and save
# three quarters of its memory. We need no new training, no new code, only another cache. And we can measure the damage exactly, in bits
# per pixel on the validation images. Since it is known that the first positions matter more than they should, we also try 15 recent
# positions and one sink, in the same memory:

# %%
from minimal.ar.histogram import Histogram
from minimal.metrics import bits_per_dim


@torch.inference_mode()
def bits(mask, labels=labels, model=ar):
    """Bits per pixel (180,) of the validation images when attention is cut down to `mask`."""
    logits = forward(model, inputs_of(tokens, labels), mask.square(torch.arange(64)))
    logp = logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]  # (180, 64)
    return bits_per_dim(-logp.sum(-1), 64)


def recent(slots, sinks=0):
    """What a sliding cache of `slots` slots shows, `sinks` of them for the first positions."""
    return not_after & (window(slots - sinks) | sink(sinks))


def show(name, values):
    print(f"{name:37s}{values.mean():.3f} bits per pixel")


full, blunt, kind = bits(not_after), bits(recent(16)), bits(recent(16, sinks=1))
show("all 64 positions", full)
show("the last 16", blunt)
show("the last 15 and the first", kind)
assert blunt.mean() > full.mean() + 0.15 and kind.mean() < blunt.mean() - 0.05

cache = ar.new_cache(180, capacity=16, kind=partial(SlidingKVCache, sinks=1))  # 16 slots, truly
with torch.inference_mode():
    steps = [ar.logits(tokens[:, : j + 1], labels, cache=cache) for j in range(64)]
nats = F.cross_entropy(torch.cat(steps, dim=1).mT, tokens, reduction="none").sum(-1)
assert torch.allclose(bits_per_dim(nats, 64), kind, atol=1e-3)
print("a real sliding cache gives the same number as the mask")

near = (attention * recent(16).square(torch.arange(64))).sum(-1)[..., 16:].mean()
print(f"share of the attention that fell on the last 16: {near:.0%}")

# %% [markdown]
# A third of a bit on every pixel: that is a lot, as the class label itself is worth only half as much to this model (1.84 without it, 1.70
# with it). It should not surprise: four tenths of the attention fell on what we took away. But trading the oldest of the 16 positions for
# the very first gives back nearly half of the damage. Here is the whole curve:

# %%
train = data.load("digits", "train")
encode = recipes.pixel_tokenizer(train).encode
counts = Histogram(encode(train.images), 17, train.labels, num_classes=10)
baseline = bits_per_dim(-counts.logprob(tokens, labels), 64).mean().item()  # knows no context

sizes = (8, 9, 10, 12, 16, 24, 32, 48)
damage = {s: [bits(recent(slots, s)).mean().item() for slots in sizes] for s in (0, 1)}
for curve in damage.values():
    curve.append(full.mean().item())  # 64 slots: everything
sizes = (*sizes, 64)

# %% mystnb={"figure": {"caption": "Bits per pixel of a model trained with full attention, when its cache keeps only so many positions. Lower is better.", "name": "fig-0-02-window"}, "image": {"alt": "Two falling curves of bits per pixel against cache slots, one without and one with a sink. Below nine slots the sink hurts, above it helps; both meet full attention at 64. A dotted line marks the histogram baseline, which small windows fail to beat."}} tags=["hide-input"]
ax = viz.curves(
    {"no sink": (sizes, damage[0]), "1 sink": (sizes, damage[1])},
    xlabel="slots of the cache", ylabel="bits per pixel", xscale="log",
)  # fmt: skip
for text in list(ax.texts):
    text.remove()  # both lines end in one point; we name them where they are apart
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.set(xlim=(7.2, 68), ylim=(1.6, 2.7))
place = dict(fontsize=8.5, fontweight="bold")
ax.text(12.6, damage[0][3] + 0.03, "no sink", color=viz.BLUE, **place)
ax.text(9.2, 1.93, "1 sink", color=viz.AMBER, ha="right", **place)
grey = dict(color=viz.GREY, fontsize=8)
for value in (baseline, full.mean()):
    ax.axhline(value, color=viz.GREY, lw=1, ls=":")
ax.text(64, baseline + 0.015, "histogram per pixel and class", ha="right", va="bottom", **grey)
ax.text(7.4, full.mean() - 0.012, "full attention", va="top", **grey);

# %% [markdown]
# Two things are in this picture. **At eight slots a sink makes it worse**: it takes the place of the eighth position, and that is the pixel
# just above the one to be drawn. A window shorter than a row cannot look straight up, and the transformer is then worse than a histogram.
# With nine slots both have room, and the sink wins, until the window is nearly the whole picture.
#
# Why should the *first* position matter? Here it is the class label, so it says something. That would be a boring reason. Take it away:
# give all images the null class ("no label"). Then the first input is the same for every image and carries no information at all.

# %%
none = torch.full_like(labels, 10)  # the null class
without, with_null = bits(recent(16), none), bits(recent(16, sinks=1), none)
gain = without - with_null
error = gain.std() / math.sqrt(180)
show("no label, all 64 positions", bits(not_after, none))
show("no label, the last 16", without)
show("no label, the last 15, the first", with_null)
print(f"a token that says nothing is worth {gain.mean():.3f} ± {error:.3f} bits per pixel")

far = attention[:, :, 32:, 0].mean(-1)  # (layers, heads): weight on input 0, lower half
print(f"one head gives it {far.max():.0%} of its attention; 32 and more others compete")
assert gain.mean() > 4 * error and far.max() > 0.15

# %% [markdown]
# It says nothing, and the model misses it. Such a position is called an **attention sink**, and the usual explanation is this: softmax
# weights must sum to one, so a head that finds nothing must put its attention *somewhere*. The first position is always visible, and
# training has made it the place for "nothing found". Remove it, and these weights are spread over pixels that never asked for them.
#
# The sink is a plaster. The wound is that the model never trained with a window. Give it a few seconds of that:

# %%
def tune(mask, steps=20, rate=1.5e-3):
    """Continue the training of a copy under `mask`."""
    model = copy.deepcopy(ar).requires_grad_()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1, (step + 1) / 5) * (1 - step / steps)
        rows = torch.randint(len(train), (32,), generator=generator)
        x = encode(train.images[rows])
        logits = forward(model, inputs_of(x, train.labels[rows]), mask.square(torch.arange(64)))
        optimizer.zero_grad()
        F.cross_entropy(logits.mT, x).backward()
        optimizer.step()
    return model


healed = bits(recent(16), model=tune(recent(16)))
control = bits(not_after, model=tune(not_after))
show("the last 16, as shipped", blunt)
show("the last 15 and the first", kind)
show("the last 16, after 20 steps", healed)
show("all 64 positions", full)
show("all 64, after 20 steps", control)
left_over = ((healed - full).mean() / (blunt - full).mean()).item()
print(f"{left_over:.0%} of the damage is left")
assert left_over < 0.55 and baseline < damage[0][0]
assert control.mean() > full.mean() - 0.02

# %% [markdown]
# Twenty steps undo more than half of the damage, without any sink. So most of what we lost was not information. With four layers, a
# window of 16 can hear of $4 \cdot 15 + 1 = 61$ positions; the network had simply never learned to pass things on. (Was it just more
# training? The last line is the control: the same 20 steps under the old mask make nothing better.) The lesson is wider
# than windows: **a mask is part of the model**. What you change at test time, you should have trained, or you must measure what it costs.
#
# ## Exercise 1: when the cache outweighs the network (★, 5 minutes)
#
# Weights are shared by all sequences of a batch. Caches are not. At which length do the caches of a batch weigh as much as the weights, if
# both are stored in the same number format?

# %% tags=["exercise"]
def break_even(parameters, layers, kv_heads, head_dim, batch):
    """Length (a float) at which `batch` caches hold as many numbers as there are parameters."""
    return None  # your code

# %% tags=["exercise-check"]
answer = break_even(1200, layers=2, kv_heads=3, head_dim=10, batch=1)
if answer is None:
    print("Hint: how many numbers does one position add, to the caches of the whole batch?")
else:
    assert answer != 20, "20 counts the keys only; every position leaves a key and a value"
    assert abs(answer - 10) < 1e-6, f"expected 1200 / 120 numbers per token = 10, got {answer}"
    two = break_even(1200, layers=2, kv_heads=3, head_dim=10, batch=2)
    assert abs(two - 5) < 1e-6, f"two sequences have two caches: expected 5, got {two}"
    llama = break_even(6.7e9, layers=32, kv_heads=32, head_dim=128, batch=16)
    print(f"Right. Llama 2 7B, 16 users: from {llama:.0f} tokens on, the caches are heavier.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# One position of one sequence adds $2 \cdot \text{layers} \cdot \text{kv heads} \cdot d$ numbers.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def break_even(parameters, layers, kv_heads, head_dim, batch):
#     return parameters / (2 * layers * kv_heads * head_dim * batch)
# ```
#
# </details>
# <details><summary>Wrong: forgets that every sequence has its own cache</summary>
#
# For one sequence this is right. But a batch shares the weights, not the caches.
#
# ```python
# def break_even(parameters, layers, kv_heads, head_dim, batch):
#     return parameters / (2 * layers * kv_heads * head_dim)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: what can reach what (★★, 10 minutes)
#
# We *measured* which inputs reach which outputs. Now predict it from the mask alone: a boolean table $(n, n)$ that says whether
# information can flow from input $i$ to position $j$ after $L$ blocks. Mind that a block *adds* to the stream.

# %% tags=["exercise"]
def reachable(mask, layers):
    """Boolean (n, n): True where h_layers[j] may depend on h_0[i], for a mask (n, n)."""
    return None  # your code

# %% tags=["exercise-check"]
place = torch.arange(12)
banded = (not_after & window(3)).square(place)
answer = reachable(banded, 3)
if answer is None:
    print("Hint: one block lets i reach j if mask[j, i].")
    print("Two blocks do if some m has both mask[j, m] and mask[m, i].")
else:
    wrong = f"expected a boolean table, got {answer.dtype}; compare with zero at the end"
    assert answer.dtype == torch.bool, wrong
    wrong = "three layers of a window of 3 reach 3 · 2 + 1 = 7 positions"
    assert torch.equal(answer, (not_after & window(7)).square(place)), wrong
    strict = reachable(before.square(place), 2)  # here a query does not see its own key
    wrong = "with `before` nobody attends to itself, but the residual stream carries it along"
    assert strict.diagonal().all(), wrong
    wrong = "two strict layers reach all that is not after"
    assert torch.equal(strict, not_after.square(place)), wrong
    print("Right: a power of (mask or identity). The identity is the residual stream.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Composition of relations is the product of their matrices. The residual stream adds the identity to every mask.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def reachable(mask, layers):
#     step = mask.double() + torch.eye(len(mask)).double()
#     return torch.linalg.matrix_power(step, layers) > 0
# ```
#
# </details>
# <details><summary>Wrong: forgets the residual stream</summary>
#
# The power of the mask alone is right for every mask whose diagonal is true, which hides the mistake. Where a query may not see its own
# key, what it knew already would be lost.
#
# ```python
# def reachable(mask, layers):
#     return torch.linalg.matrix_power(mask.double(), layers) > 0
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: the ring (★★, 10 minutes)
#
# A sliding cache has `capacity` slots. The first `sinks` positions stay in the first slots for ever. The other slots are a ring: position
# after position, and from the start again. In which slot does a position go?

# %% tags=["exercise"]
def slot(position, sinks, capacity):
    """The slot (an integer) of a sliding cache into which `position` is written."""
    return None  # your code

# %% tags=["exercise-check"]
first = [slot(p, 2, 6) for p in range(6)]
if first[0] is None:
    print("Hint: before the ring begins, slot = position.")
    print("The ring has capacity - sinks slots; where does it start?")
else:
    wrong = f"an empty cache fills in order: expected 0 to 5, got {first}"
    assert first == [0, 1, 2, 3, 4, 5], wrong
    later = [slot(p, 2, 6) for p in range(6, 200)]
    wrong = "a later position was written over a sink; only the slots behind them form the ring"
    assert min(later) >= 2, wrong
    wrong = f"positions 6 to 13 go round the ring twice, got {later[:8]}"
    assert later[:8] == [2, 3, 4, 5] * 2, wrong
    print("Right: the last four positions are always in four different slots.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Count positions from the end of the sinks, go round a ring of `capacity - sinks`, and add the sinks again.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def slot(position, sinks, capacity):
#     if position < sinks:
#         return position
#     return sinks + (position - sinks) % (capacity - sinks)
# ```
#
# </details>
# <details><summary>Wrong: a ring over all slots</summary>
#
# The remainder by the whole capacity comes round to slot 0, and overwrites the sinks.
#
# ```python
# def slot(position, sinks, capacity):
#     return position % capacity
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * Attention is a weighted mean of values; a mask sets weights to exactly zero; one integer level per token describes who comes after whom.
# * Rotary positions turn queries and keys so that scores know only differences, on a line or on a grid.
# * Causality can be proved by derivatives that are exactly zero. A window of $w$ hears of $L\,(w - 1) + 1$ positions after $L$ layers.
# * A KV cache keeps keys and values, since old queries are never needed again: $N$ positions instead of $N (N + 1) / 2$, for
#   $2 \cdot \text{layers} \cdot G \cdot d$ numbers per token. In small networks, calls cost more than what it saves.
# * A mask is part of the model. A window that was not trained costs a third of a bit per pixel; a sink is a plaster for it.
#
# ## Where this stands
#
# The transformer is due to Vaswani et al. ([1706.03762](https://arxiv.org/abs/1706.03762)). The block is Llama's (Touvron et al.
# [2302.13971](https://arxiv.org/abs/2302.13971)): RMSNorm (Zhang and Sennrich [1910.07467](https://arxiv.org/abs/1910.07467)), SwiGLU (Shazeer
# [2002.05202](https://arxiv.org/abs/2002.05202)), rotary positions (Su et al. [2104.09864](https://arxiv.org/abs/2104.09864)), which LlamaGen (Sun et al.
# [2406.06525](https://arxiv.org/abs/2406.06525)) uses in 2-D and Heo et al. ([2403.13298](https://arxiv.org/abs/2403.13298)) compare for vision. Multi-query
# attention: Shazeer ([1911.02150](https://arxiv.org/abs/1911.02150)); grouped-query: Ainslie et al. ([2305.13245](https://arxiv.org/abs/2305.13245)); used by
# Llama 2 ([2307.09288](https://arxiv.org/abs/2307.09288)) and Llama 3 ([2407.21783](https://arxiv.org/abs/2407.21783)). Attention sinks and the sliding cache:
# StreamingLLM (Xiao et al. [2309.17453](https://arxiv.org/abs/2309.17453)); why sinks arise: Gu et al. ([2410.10781](https://arxiv.org/abs/2410.10781)). The next
# chapter reads the likelihood of this model; Part 2 changes the levels, and Part 5a the caches.
