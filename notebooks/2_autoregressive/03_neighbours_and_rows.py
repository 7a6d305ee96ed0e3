# %% [markdown]
# # Neighbours and rows: what does an order buy?
#
# | | |
# | --- | --- |
# | **You will build** | a model that writes a picture diagonal by diagonal with two heads, a cache that runs one diagonal behind, and a model that looks along one axis at a time with a cache of rows |
# | **Time** | under a minute on a laptop, without a GPU |
# | **You need** | the raster GPT (2.1), masks and the KV cache (0.2) |
# | **Of the five nouns** | model |
# | **Systems** | NAR (next neighbour), Axial Transformer |
#
# A raster GPT writes 64 tokens in 64 passes. Nothing in a picture asks for that: the last token of a row and the first of the next one are neighbours in
# the sequence and strangers in the picture. Which tokens may be written *at once*, and what does it cost if they are? This chapter gives two answers
# from opposite ends. One changes the order and takes 15 passes. The other keeps the order, token by token, and makes most of a pass unnecessary.

# %% tags=["exercise-setup"]
import statistics
import time

import matplotlib.pyplot as plt
import torch
from matplotlib.colors import to_rgb

from minimal import checkpoints, data, viz
from minimal.ar.axial import AxialTransformer, shift_down, shift_right
from minimal.ar.neighbour import NextNeighbour
from minimal.ar.raster import RasterGPT
from minimal.metrics import batched, frechet_floor, label_accuracy
from minimal.nn.masks import not_after
from minimal.nn.rope import rotary
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided
from minimal.samplers.trace import multiply_adds

viz.style()
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The question
#
# Three models write the same pictures, 32 x 32 pixels in $8 \times 8$ tokens of 625 codes (chapter 1.1), and have about a million weights each. They were
# trained by the recipes `shapes_gpt`, `shapes_nar` and `shapes_axial`, each until it had spent the same number of multiply-adds. The numbers below say
# when a token is written.

# %%
tokenizer = checkpoints.load("shapes_vq")
gpt, nar, axial = (checkpoints.load(f"shapes_{name}") for name in ("gpt", "nar", "axial"))
place = nar.order.argsort()  # token of the picture -> its number in the sequence of `nar`
for name, model in (("raster GPT", gpt), ("next neighbour", nar), ("axial", axial)):
    weights = sum(p.numel() for p in model.parameters())
    levels = int(model.levels.max()) + 1
    print(f"{name:15s}{weights / 1e6:6.2f} million weights, {levels:3d} levels")

# %% mystnb={"figure": {"caption": "When each token is written: one after another; by distance from the corner; one after another again, but a large network runs only where a row begins (dark edge) and a small one in between.", "name": "fig-2-03-orders"}, "image": {"alt": "Three 8 by 8 tables. Raster: numbers 0 to 63 in reading order. Next neighbour: numbers 0 to 14, equal along anti-diagonals. Axial: row number and column number, with a dark edge on the left of each row."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(8.8, 3.1))
raster = torch.arange(64)
maps = {
    "raster: 64 passes": raster,
    "next neighbour: 15 passes": nar.levels[place],
    "axial: rows, and tokens in them": raster // 8,
}
for ax, (title, steps) in zip(axes, maps.items()):
    light = dict(vmin=-0.3 * steps.max(), vmax=2 * steps.max())
    ax.imshow(steps.view(8, 8), cmap=viz.SEQUENTIAL, **light)
    for k, step in enumerate(steps.tolist()):
        text = f"{step}.{k % 8}" if "axial" in title else step
        ax.text(k % 8, k // 8, text, ha="center", va="center", fontsize=7.5)
    ax.set_title(title)
    viz.bare(ax)
    viz.rule(ax, 8, 8, "white", 1.2)
ends = torch.arange(8)
axes[2].vlines([-0.5] * 8, ends - 0.45, ends + 0.45, colors=viz.INK, lw=3);

# %% [markdown]
# Here is the second of them at work. Fifteen passes, and after each of them one more diagonal is known.

# %% mystnb={"figure": {"caption": "The wave: what is known of two pictures after 1, 3, 5, ... and all 15 passes.", "name": "fig-2-03-wave"}, "image": {"alt": "Two rows of eight pictures. From left to right a triangle in the upper left corner grows along its diagonal until it covers the whole picture, in which a red star and a blue circle have appeared."}} tags=["hide-input"]
asked = torch.tensor([12, 3])  # a red star, a blue circle
drawn = sample_cached(Guided(nar, 2.0), 2, cond=asked, generator=seeded(3))
assert drawn.trace.forwards["target"] == 15
pictures = tokenizer.decode(drawn.tokens[:, place]).clamp(-1, 1)
cells = []
for picture in pictures:
    for level in range(0, 15, 2):
        known = (nar.levels[place] <= level).view(8, 8)
        known = known.repeat_interleave(4, 0).repeat_interleave(4, 1)
        cells.append(torch.where(known, picture, 1.0))
titles = [f"{level + 1}" for level in range(0, 15, 2)]
viz.image_grid(torch.stack(cells), ncol=8, titles=titles);

# %% [markdown]
# ## Who borders on whom
#
# Give each place $(i, j)$ the level $i + j$, its distance from the corner in steps. Tokens of level $l$ are written in pass $l$, given all tokens of lower
# levels and nothing else:
#
# $$\log p(x \mid c) = \sum_{l=0}^{2n-2} \; \sum_{i+j=l} \log p(x_{ij} \mid \text{levels} < l,\; c)$$
#
# The likelihood is exact. But it is the likelihood of a model in which the tokens of one diagonal do not know of each other. That is the price; we shall
# see where it is paid.
#
# Who predicts $x_{ij}$? In a raster GPT it is the output at the token before. Here it is the neighbours: the output at the left one says what stands to its
# *right*, the output at the upper one what stands *below*. So there are two heads, $R$ and $B$, from one transformer. In the first row and the first column
# one neighbour exists, inside there are two, and their logits are averaged:
#
# $$\begin{gathered} \ell_{ij} = \tfrac12 \left( R_{i,j-1} + B_{i-1,j} \right), \\ \ell_{0j} = R_{0,j-1}, \qquad \ell_{i0} = B_{i-1,0} \in \mathbb{R}^V \end{gathered}$$
#
# The corner has no neighbour; both heads at the label predict it.

# %% mystnb={"figure": {"caption": "Who predicts whom, on a 4 x 4 grid. Blue arrows are the right head, amber ones the head below; numbers are levels.", "name": "fig-2-03-parents"}, "image": {"alt": "A 4 by 4 grid of circles numbered 0 to 6 by level. From every circle a blue arrow goes to the right neighbour and an amber arrow to the one below. Every circle but those of the first row and column has two arrows coming in."}} tags=["hide-input"]
toy = NextNeighbour(5, (4, 4), dim=16, heads=2)
inputs = toy.coordinates.tolist()  # the label at (-1, -1), then the tokens
figure, ax = plt.subplots(figsize=(3.6, 3.6))
for k, (row, column) in enumerate(inputs[1:]):
    for head, colour in ((0, viz.BLUE), (1, viz.AMBER)):
        if toy.share[k, head]:
            y, x = inputs[toy.parents[k, head]]
            bend = "arc3,rad=" + ("0.25" if k == 0 and head else "-0.25" if k == 0 else "0")
            style = dict(arrowstyle="-|>", color=colour, lw=1.8, shrinkA=11, shrinkB=11)
            style["connectionstyle"] = bend
            ax.annotate("", (column, row), (x, y), arrowprops=style)
    colour = plt.get_cmap(viz.SEQUENTIAL)(0.1 + 0.09 * (row + column))
    ax.add_patch(plt.Circle((column, row), 0.27, color=colour, zorder=3))
    text = dict(ha="center", va="center", zorder=4)
    ax.text(column, row, row + column, color="white" if row + column > 3 else viz.INK, **text)
ax.text(-1, -1, "label", ha="center", va="center")
ax.set(xlim=(-1.5, 3.5), ylim=(3.5, -1.5), aspect="equal")
viz.bare(ax);

# %% [markdown]
# The inputs are the label and *all* tokens, in diagonal order. Nothing is shifted by one, as it was in the raster GPT, because the heads carry the offset. An
# input sees every input that is not of a higher level: `not_after` once more, with levels instead of positions. It sees its own diagonal too. That is
# no leak, since what is predicted from it lies on the next one.

# %% mystnb={"figure": {"caption": "Who sees whom on a 4 x 4 grid: rows look, columns are looked at, the label comes first. Left the raster order, right the diagonals.", "name": "fig-2-03-mask"}, "image": {"alt": "Two square masks. Left a lower triangle with a straight staircase. Right a staircase with blocks of 1, 2, 3, 4, 3, 2, 1 on its diagonal, in colours by level."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(7.0, 3.4))
viz.mask_picture(not_after.square(torch.arange(17)), ax=axes[0])
viz.mask_picture(not_after.square(toy.input_levels), toy.input_levels, ax=axes[1])
axes[0].set_title("raster")
axes[1].set_title("next neighbour");

# %% [markdown]
# ## The model, written out
#
# The right head is read after three blocks. One more block stands on top, and the head below is read after that one: a shared body, and a little room for the
# two to differ. With four blocks in all it is as large as the raster GPT.

# %%
def by_diagonals(model, tokens, cond):
    """Logits (B, N, V) of tokens (B, N) in diagonal order: every diagonal in one pass."""
    places = [(i, l - i) for l in range(15) for i in range(8) if 0 <= l - i < 8]
    levels = torch.tensor([0] + [i + j + 1 for i, j in places])  # the label comes before all
    see = not_after.square(levels)  # (N + 1, N + 1)
    turn = rotary(torch.tensor([(-1, -1)] + places), head_dim=32)  # where each input stands

    x = model.embedding(torch.cat((model.vocab_size + cond[:, None], tokens), dim=1))
    for block in model.blocks[:-1]:
        x = block(x, turn, see)
    right = model.right(model.right_norm(x))  # (B, N + 1, V)
    x = model.blocks[-1](x, turn, see)
    below = model.below(model.below_norm(x))

    number, logits = {where: 1 + k for k, where in enumerate(places)}, []
    for i, j in places:
        votes = [right[:, number[i, j - 1]]] if j else []
        votes += [below[:, number[i - 1, j]]] if i else []
        votes = votes or [right[:, 0], below[:, 0]]
        logits.append(sum(votes) / len(votes))
    return torch.stack(logits, dim=1)


held_out = data.load("shapes", "validation", version="single")
images, labels = held_out.images[:500], held_out.labels[:500]
tokens = batched(tokenizer.encode, images, 250)  # (500, 64), in the order of the picture
diagonal = tokens[:, nar.order]  # the same tokens in diagonal order
few = slice(0, 8)
whole = nar.logits(diagonal[few], labels[few])
assert torch.allclose(by_diagonals(nar, diagonal[few], labels[few]), whole, atol=1e-4)
print("the same logits as minimal/ar/neighbour.py:", tuple(whole.shape))

# %% [markdown]
# ## A cache that runs one diagonal behind
#
# To write diagonal $l$ the network must read diagonal $l - 1$, and only that: everything before is in the cache. So a pass feeds the last diagonal
# written and returns the logits of the next. Two rules of the KV cache keep this exact. A key that is stored must never change: it does not, for an input
# sees nothing of later levels. And whatever is fed in one call must be free to see all of itself: it is, for it is one level.

# %%
fed = []


def note(_, inputs, __):
    fed.append(inputs[0].shape[1])


listen = nar.embedding.register_forward_hook(note)
cache, parts = nar.new_cache(8), []
for end in nar.bounds[1:]:  # 1, 3, 6, 10, ...
    parts.append(nar.logits(diagonal[few, :end], labels[few], cache=cache))
listen.remove()
error = (torch.cat(parts, dim=1) - whole).abs().max().item()
print("inputs fed:    ", *fed)
print("tokens written:", *(part.shape[1] for part in parts))
assert error < 1e-4 and len(parts) == 15 and sum(fed) == 64
fast = sample_cached(nar, 8, cond=labels[few], generator=seeded(0))
slow = sample_uncached(nar, 8, cond=labels[few], generator=seeded(0))
assert torch.equal(fast.tokens, slow.tokens)
print(f"cached = uncached, in {fast.trace.forwards['target']} passes")

# %% [markdown]
# The first pass feeds the label; the last token of all is never fed. The sampler is `sample_cached`, the one of the raster GPT. It asks a model for its `levels` and
# writes one after another.
#
# ## What it costs: likelihood
#
# Both models assign a probability to the same 64 tokens, so their likelihoods can be compared, in nats per picture. Both see a picture from its first
# token to its last. They differ in what is known when a token is written.

# %%
def nats(logits, tokens):
    """Negative log-likelihood of every token (B, N)."""
    return -logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def cells(model, tokens):
    """Nats of every token (B, N), 125 pictures at a time."""
    parts = zip(tokens.split(125), labels.split(125))
    return torch.cat([nats(model.logits(part, cond), part) for part, cond in parts])


cost = {"raster GPT": cells(gpt, tokens), "axial": cells(axial, tokens)}
header = {
    name: checkpoints.header(f"shapes_{key}")["metrics"]
    for name, key in (("raster GPT", "gpt"), ("axial", "axial"), ("next neighbour", "nar"))
}
votes = [
    nar.votes(part, cond)[:2] for part, cond in zip(diagonal.split(125), labels.split(125))
]
right, below = (torch.cat(part) for part in zip(*votes))  # (500, 64, 625) each
share = nar.share  # (64, 2): how much each of the two counts
averaged = share[:, :1] * right + share[:, 1:] * below
cost["next neighbour"] = nats(averaged, diagonal)[:, place]  # in the order of the picture
print("nats per picture   500 here   1,000 of validation   test")
for name, values in cost.items():
    here = values.sum(1).mean().item()
    validation, test = (header[name][f"{s}_nats_per_image"] for s in ("validation", "test"))
    print(f"{name:18s}{here:9.1f}{validation:16.1f}{test:16.1f}")
    assert abs(here - validation) < 6
gap = (cost["next neighbour"] - cost["raster GPT"]).sum(1)  # (500,)
error = gap.std().item() / len(gap) ** 0.5
print(f"price of the order: {gap.mean():.1f} nats per picture, standard error {error:.1f}")

# %% mystnb={"figure": {"caption": "Nats per token by place: raster GPT, next neighbour, and the difference. Red: the diagonals pay more. Blue: they pay less.", "name": "fig-2-03-price"}, "image": {"alt": "Three heat maps of 8 by 8 places. The difference is blue in the upper right, where the wave has seen more of the picture, and red in the lower left and the middle."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(9.0, 2.9))
first, second = (cost[name].mean(0).view(8, 8) for name in ("raster GPT", "next neighbour"))
top = max(first.max(), second.max()).item()
for ax, values, title in ((axes[0], first, "raster GPT"), (axes[1], second, "next neighbour")):
    shown = ax.imshow(values, cmap="magma", vmin=0, vmax=top)
    ax.set_title(f"{title}: {values.sum():.0f} nats")
    viz.bare(ax)
figure.colorbar(shown, ax=axes[:2].tolist(), shrink=0.8)
difference = second - first
limit = difference.abs().max().item()
shown = axes[2].imshow(difference, cmap="RdBu_r", vmin=-limit, vmax=limit)
axes[2].set_title(f"difference: {difference.sum():+.0f} nats")
viz.bare(axes[2])
figure.colorbar(shown, ax=axes[2], shrink=0.8);

# %% [markdown]
# The order costs 8 nats, a twelfth of the whole. The picture shows where. At the top and on the right the wave pays nothing, or even less: when it gets to the last token of the first row, it has
# already seen the left half of the picture, and the raster GPT has seen seven tokens. On the left and at the bottom it pays. There the raster GPT has seen whole
# rows, to their right end, and the wave has not been there. Count what is known:

# %%
i, j = torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij")
seen_raster = 8 * i + j
level = i + j
seen_wave = (level.flatten()[:, None] > level.flatten()).sum(1).view(8, 8)
regions = {
    "the wave knows more": seen_wave > seen_raster,
    "the wave knows less": seen_wave < seen_raster,
}
print("                      places   known: raster   wave   nats: wave - raster")
for name, where in regions.items():
    known = [seen[where].float().mean() for seen in (seen_raster, seen_wave)]
    line = f"{name:22s}{where.sum():6d}{known[0]:14.1f}{known[1]:9.1f}"
    print(f"{line}{difference[where].sum():17.1f}")
pairs = {"raster": seen_raster.sum().item(), "wave": seen_wave.sum().item()}
print("pairs (token, token known when it is written):", pairs)
less = difference[regions["the wave knows less"]].sum()
assert 4 < gap.mean() < 14 and less > 0.7 * difference.sum()

# %% [markdown]
# Where the wave knows more it gains nothing, but it loses next to nothing either. Nearly the whole price is paid where it knows less. And the sums are close: 1,876 pairs
# of tokens against 2,016. Only 140 pairs are lost, those on a common diagonal. The others are exchanged: what lies above and to the right is gone, and what lies
# below and to the left came for it. (Which part of the price is due to the exchange, and which to the 140 pairs? Only a third
# model could tell, one that writes the diagonals token by token. We have not trained it.)

# %% [markdown]
# ## Two voices
#
# What does averaging do? An average of logits is not an average of probabilities. It multiplies:
#
# $$\text{softmax}\left(\tfrac12 (R + B)\right) \propto \sqrt{p_R \; p_B}$$
#
# So each neighbour has a veto: a token that either of them thinks impossible is impossible. An average of probabilities would keep it at half its chance.
# And nobody taught the single heads to speak alone: in training only the average was judged. We compare the four at the 49 places that have two neighbours. Since a
# single voice may be too loud or too quiet, every one is also scored at the temperature that suits it best.

# %%
inside = (share == 0.5).all(1)
inside[0] = False  # the corner has two votes and no neighbour
one, two, truth = right[:200, inside], below[:200, inside], diagonal[:200, inside]
mean = torch.logaddexp(one.log_softmax(-1), two.log_softmax(-1)) - torch.tensor(2.0).log()
voices = {
    "right alone": one,
    "below alone": two,
    "probabilities averaged": mean,
    "logits averaged": (one + two) / 2,
}
scores = {}
print(f"{inside.sum()} places with           nats per    at its best    best guess")
print("two neighbours             token    temperature      is right")
for name, logits in voices.items():
    plain = nats(logits, truth).mean().item()
    tuned = {T: nats(logits / T, truth).mean().item() for T in (0.5, 0.7, 1.0, 1.4, 2.0, 2.8)}
    T = min(tuned, key=tuned.get)
    hit = (logits.argmax(-1) == truth).float().mean().item()
    scores[name] = (plain, tuned[T], hit)
    print(f"{name:24s}{plain:8.2f}{tuned[T]:8.2f} (T = {T}){hit:12.1%}")
*others, best = scores.values()
assert all(best[1] < other[1] - 0.3 and best[2] > other[2] + 0.05 for other in others)

# %% [markdown]
# The average of the logits wins by far, whatever the temperature: two weak voices with a veto make a good one. The head below is better than the right one, for it
# has one block more.
#
# Does one see that in pictures? We let one head decide wherever there are two, draw 240 samples with guidance 1.5, and ask the judge of the course how many show the label that was
# asked for.

# %%
judge = checkpoints.load("judge_shapes")
asked = torch.arange(240) % 16


def painted(model, cond, seed=0):
    """Pictures (B, 3, 32, 32) of tokens in the model's own order."""
    drawn = sample_cached(model, len(cond), cond=cond, generator=seeded(seed)).tokens
    order = getattr(model.model, "order", None)
    drawn = drawn if order is None else drawn[:, order.argsort()]
    return tokenizer.decode(drawn).clamp(-1, 1)


accuracy = {}
for name, weight in (("right", (1.0, 0.0)), ("below", (0.0, 1.0)), ("both", (0.5, 0.5))):
    nar.share = torch.where(inside[:, None], torch.tensor(weight), share)
    accuracy[name] = label_accuracy(judge, painted(Guided(nar, 1.5), asked), asked)
nar.share = share
assert accuracy["both"] > 0.92 and accuracy["both"] > accuracy["right"] + 0.15
print("right label of 240 samples:", {name: f"{a:.1%}" for name, a in accuracy.items()})

# %% [markdown]
# ## Rows: attention along one axis at a time
#
# Now the other end. Keep the raster order, token by token, exactly. What is wasteful about it? That all four blocks run again for every token, over all
# tokens before it, although seven of eight tokens share the rows above. The Axial Transformer splits what a token may know in two:
#
# * **the rows above**, the same for the whole row: a large *outer* network looks at them once a row,
# * **the row so far**: a small *inner* network looks at that, token by token.
#
# The outer network attends along one axis at a time. Masked attention along columns tells place $(i, j)$ of everything above it in its column; attention along
# rows, *without* a mask, spreads that over the row. After both, place $(i, j)$ knows all rows down to its own, and that is too much: its own row
# includes its future. So the result is moved down by a row, to where that row is past. The inner network adds the tokens to the left:
#
# $$\begin{gathered} u = \text{outer}(e), \\ h = \text{inner}\big(\text{ShiftDown}(u) + \text{ShiftRight}(e) + \text{label}\big), \\ p(x_{ij} \mid \cdot) = \text{softmax}(W h_{ij}), \\ e, u, h \in \mathbb{R}^{H \times W \times D} \end{gathered}$$

# %%
def along_columns(block, x, mask):
    """One block on every column of x (B, H, W, D), as if they were sequences of a batch."""
    B, H, W, D = x.shape
    columns = block(x.transpose(1, 2).reshape(B * W, H, D), mask=mask)
    return columns.view(B, W, H, D).transpose(1, 2)


def along_rows(block, x, mask=None):
    B, H, W, D = x.shape
    return block(x.reshape(B * H, W, D), mask=mask).view(B, H, W, D)


def by_axes(model, e, label, down=shift_down, stages=5):
    """Hidden states (B, H, W, D) after so many stages, from embeddings e (B, H, W, D)."""
    triangle = not_after.square(torch.arange(8))  # (8, 8)
    u = e
    for i, block in enumerate(model.outer[: 1 if stages == 1 else None]):
        u = along_rows(block, u) if i % 2 else along_columns(block, u, triangle)
    if stages <= 2:
        return u
    h = down(u) + label
    if stages >= 4:
        h = h + shift_right(e)
    for block in model.inner if stages == 5 else ():
        h = along_rows(block, h, triangle)
    return h


def embedded(model, tokens, cond):
    """Embeddings of tokens (B, 64), (B, 8, 8, D), and of their label, (B, 1, 1, D)."""
    label = model.labels(cond)[:, None, None]
    places = model.rows.weight[:, None] + model.columns.weight
    return model.embedding(tokens.view(-1, 8, 8)) + places + label, label


e, label = embedded(axial, tokens[few], labels[few])
logits = axial.head(axial.norm(by_axes(axial, e, label))).flatten(1, 2)
assert torch.allclose(logits, axial.logits(tokens[few], labels[few]), atol=1e-4)
print("the same logits as minimal/ar/axial.py:", tuple(logits.shape))

# %% [markdown]
# Is this really the raster order? Ask the gradient. Take the output at one place, and color every token whose embedding it depends on.

# %%
target = (4, 3)


def reads(stages, down=shift_down):
    """Which places' embeddings move the state at `target`: (8, 8) bool."""
    with torch.enable_grad():
        leaf = e[:1].detach().requires_grad_()
        state = by_axes(axial, leaf, label[:1], down, stages)
        [slope] = torch.autograd.grad(state[0, *target].square().sum(), leaf)
    return slope[0].abs().amax(-1) > 0


STAGES = ("along columns", "... and rows", "ShiftDown", "+ ShiftRight", "inner rows")
fields = {name: reads(k + 1) for k, name in enumerate(STAGES)}
leak = reads(5, down=lambda u: u)  # what if we forget ShiftDown?
before = torch.arange(64).view(8, 8) < 8 * target[0] + target[1]
assert torch.equal(fields["inner rows"], before)
assert (leak & ~before).sum() == 8 - target[1]
print(f"reads {fields['inner rows'].sum()} places, which are all before {target} and no other")

# %% mystnb={"figure": {"caption": "What the ringed place depends on, stage by stage: gradients of the trained model. The fifth picture is the raster order. The last one forgot ShiftDown, and the place sees itself and its future (red).", "name": "fig-2-03-field"}, "image": {"alt": "Six 8 by 8 grids with a ring at row 4, column 3. Coloured are: the column down to the ring; five whole rows; four whole rows; four rows and the left neighbour; four rows and all left neighbours; and in the last grid five rows with the ring and all to its right in red."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 6, figsize=(9.4, 1.95))
for ax, (name, field) in zip(axes, [*fields.items(), ("without ShiftDown", leak)]):
    colours = torch.tensor([to_rgb(c) for c in (viz.PALE, viz.BLUE, viz.RED)])
    kind = field.long()
    if name == "without ShiftDown":
        kind = kind + (field & ~before).long()
    ax.imshow(colours[kind])
    ring = plt.Circle(target[::-1], 0.36, fill=False, ec=viz.AMBER, lw=2, zorder=4)
    ax.add_patch(ring)
    ax.set_title(name, fontsize=8.5)
    viz.bare(ax)
    viz.rule(ax, 8, 8, "white", 0.8)

# %% [markdown]
# ## What attention costs
#
# Attention between all places of an $n \times n$ grid takes $n^4$ pairs. Along columns there are $n$ sequences of $n$, hence $n \cdot n^2$ pairs, along rows as
# many: $HW(H + W) = 2 n^3$. At $8 \times 8$ nobody would notice. How do the two grow? We count the multiply-adds of a whole forward pass, of untrained models of the
# sizes of ours.

# %%
print("                     pairs in attention       multiply-adds of a pass, millions")
print("  n    full n⁴   causal n²(n²+1)/2   axial 2n³      GPT    axial    ratio")
for n in (8, 16, 32):
    some = torch.zeros(1, n * n, dtype=torch.long)
    dense = RasterGPT(625, n * n, 16, grid_width=n, dim=128, layers=4, heads=4).eval()
    config = axial.config | {"grid": (n, n)}
    sparse = AxialTransformer(**config).eval()
    counts = [multiply_adds(lambda: m.logits(some)) / 1e6 for m in (dense, sparse)]
    row = f"{n:3d}{n**4:11d}{n * n * (n * n + 1) // 2:14d}{2 * n**3:15d}"
    print(f"{row}{counts[0]:13.0f}{counts[1]:9.0f}{counts[0] / counts[1]:9.2f}")

# %% [markdown]
# At our size the two are equal: nearly all arithmetic is in projections and feed-forwards, which do not care who looks at whom. At $32 \times 32$ the axial network does half
# of the work, and from there on the gap grows with every doubling.
#
# ## Semi-parallel sampling
#
# When a row begins, the outer network runs once, on the row that was just finished, all its places in parallel; the keys of its column attention are
# in a cache, one row of the batch for every column. What comes out stays for eight tokens. Between, only the inner network runs, one token at a time, with a cache that
# is emptied when the row ends. We count with hooks on the first block of either network.

# %%
calls = {"outer": 0, "inner": 0}


def count(name):
    def hook(*_):
        calls[name] += 1

    return hook


hooks = [getattr(axial, name)[0].register_forward_hook(count(name)) for name in calls]
two = torch.arange(2)
fast = sample_cached(axial, 2, cond=two, generator=seeded(0)).tokens
once = dict(calls)
slow = sample_uncached(axial, 2, cond=two, generator=seeded(0)).tokens
for hook in hooks:
    hook.remove()
assert torch.equal(fast, slow) and once == {"outer": 7, "inner": 64}
print("passes with the row cache:", once, "and the same tokens as without")

# %% [markdown]
# Seven outer passes, not eight: above the first row there is nothing to look at. So what does a picture cost, all in all?

# %% tags=["nbval-ignore-output"]
sixteen = torch.arange(16)


def run(model, sampler=sample_cached, n=16):
    return sampler(model, n, cond=sixteen[:n], generator=seeded(0))


rivals = {"raster GPT": gpt, "next neighbour": nar, "axial": axial}
work = {name: multiply_adds(lambda: run(model, n=1)) / 1e6 for name, model in rivals.items()}
work["axial, no cache"] = multiply_adds(lambda: run(axial, sample_uncached, n=1)) / 1e6
times = {name: [] for name in rivals}
for _ in range(5):
    for name, model in rivals.items():
        start = time.perf_counter()
        run(model)
        times[name].append(time.perf_counter() - start)
median = {name: statistics.median(seconds) for name, seconds in times.items()}
waits = {"raster GPT": "64", "next neighbour": "15", "axial": "7 outer + 64 inner"}
print("                  passes               million multiply-adds   time / raster GPT")
for name, millions in work.items():
    ratio = f"{median[name] / median['raster GPT']:.2f}" if name in median else ""
    print(f"{name:18s}{waits.get(name, '64'):22s}{millions:12.1f}{ratio:>23s}")
assert work["axial"] < 0.1 * work["axial, no cache"]
for name in ("next neighbour", "axial"):
    assert 0.8 < work[name] / work["raster GPT"] < 1.25
    assert median[name] < 0.9 * median["raster GPT"]

# %% [markdown]
# Look at the middle column. All three do nearly the same arithmetic! With a cache every token goes through every block once, in whatever order. **An order buys no
# arithmetic at all.** What it buys is waiting: a pass over eight tokens takes less than eight passes over one, so 15 passes are faster than 64, and 64 passes
# of one block and a head are faster than 64 of four blocks. And the row cache is what makes it so: without it, the same samples cost 40 times as much.
#
# ## What it buys: the table
#
# The recipes drew 1,000 samples of each model, every class as often as the others, at four scales of guidance. The judge says whether a sample shows its
# label, and how far the samples are from 1,000 held-out images (Fréchet distance in the judge's features). The floor is the distance between two sets of 1,000 real
# images.

# %%
train = data.load("shapes", "train", version="single")
features = batched(judge.features, train.images[:2000])
floor = frechet_floor(features, 1000, seeded(0), labels=train.labels[:2000])
print("                            guidance 1        1.5          2           3")
for name, metrics in header.items():
    for what in ("accuracy", "frechet"):
        row = [metrics[f"{what}_guidance_{s}"] for s in ("1", "1.5", "2", "3")]
        print(f"{name:16s}{what:10s}" + "".join(f"{value:12.3f}" for value in row))
print(f"floor of the Fréchet distance for 1,000 images: {floor:.2f}")
for metrics in header.values():
    assert metrics["accuracy_guidance_1.5"] >= 0.95
nats_of = {name: metrics["test_nats_per_image"] for name, metrics in header.items()}
assert nats_of["next neighbour"] > nats_of["raster GPT"] + 4
assert nats_of["axial"] < nats_of["raster GPT"] - 1

# %% mystnb={"figure": {"caption": "Sixteen classes, drawn by each model with guidance 2: raster GPT in 64 passes, next neighbour in 15, axial in 7 large and 64 small ones.", "name": "fig-2-03-samples"}, "image": {"alt": "Three rows of sixteen pictures, one of each class: circles, squares, triangles and stars in red, yellow, green and blue."}} tags=["hide-input"]
rows = [painted(Guided(model, 2.0), sixteen, seed=5) for model in rivals.values()]
viz.image_grid(torch.cat(rows), ncol=16, row_labels=list(rivals));

# %% [markdown]
# The surprise stands in the middle. The axial network has the *best* likelihood of the three, 98.6 nats on the test split against 103.0 of the raster GPT, with as many weights and as much
# arithmetic in training; and drawn without guidance it has the *worst* samples, in label accuracy and in Fréchet distance. With guidance 1.5 it is level with the raster GPT.
# A likelihood is a sum over all tokens, most of them background; a judge looks at the object. (One training run each. We do not claim that axial networks are
# better, only that nothing was lost by never comparing all with all.)
#
# Next neighbour pays in both currencies: 9 nats, and at guidance 2 a Fréchet distance of 0.54 instead of 0.38, both well above the floor. It still shows the label
# in 97 of 100 samples, in 15 passes. That is the offer. All three are worse at guidance 3 than at their best: there is too much of it.

# %% [markdown]
# ## Exercise 1: in the order of the wave (★, 5 minutes)
#
# List the places of a grid in the order in which next neighbour writes them: by distance from the corner, and within a diagonal from top to bottom. A place
# is its number in reading order, row times columns plus column.

# %% tags=["exercise"]
def wave(rows, columns):
    """A list of the rows * columns places, in the order of generation."""
    return None  # your code

# %% tags=["exercise-check"]
answer = wave(3, 3)
if answer is None:
    print("Hint: sort the places by a pair of numbers; the first is row + column.")
else:
    got = [int(k) for k in answer]
    assert sorted(got) == list(range(9)), f"each of the 9 places comes once, got {got}"
    levels = [k // 3 + k % 3 for k in got]
    assert levels == sorted(levels), f"the distances from the corner must not fall: {levels}"
    wanted = [0, 1, 3, 2, 4, 6, 5, 7, 8]
    assert got == wanted, f"expected {wanted}, got {got}: from top to bottom in a diagonal"
    oblong = [int(k) for k in wave(2, 4)]
    assert oblong == [0, 1, 4, 2, 5, 3, 6, 7], f"2 x 4 places: {oblong}"
    print("Right: two heads can only be paired if everybody agrees on this order.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `sorted(range(rows * columns), key=...)`, with a key that returns `(row + column, row)`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def wave(rows, columns):
#     return sorted(
#         range(rows * columns), key=lambda k: (k // columns + k % columns, k // columns)
#     )
# ```
#
# </details>
# <details><summary>Wrong: from bottom to top</summary>
#
# As good an order as any, but not the one of the model: its weights would read every diagonal backwards.
#
# ```python
# def wave(rows, columns):
#     return sorted(
#         range(rows * columns), key=lambda k: (k // columns + k % columns, k % columns)
#     )
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: from one diagonal to the next (★★, 15 minutes)
#
# The tokens of diagonal `level` of an $n \times n$ grid, from top to bottom, have said $R$ and $B$, each $(t, V)$. Put the logits of the next diagonal
# together. The diagonals grow up to level $n - 1$ and shrink from there on.

# %% tags=["exercise"]
def next_diagonal(right, below, level, n):
    """Logits of the tokens of diagonal level + 1, from top to bottom; right, below (t, V)."""
    return None  # your code

# %% tags=["exercise-check"]
R = torch.tensor([[10.0], [12.0], [16.0]])
B = torch.tensor([[20.0], [21.0], [23.0]])
answer = next_diagonal(R[:2], B[:2], 1, 3)
if answer is None:
    print("Hint: which token lies right of one and below another token of the diagonal?")
else:
    got = answer.flatten().tolist()
    assert len(got) == 3, f"diagonal 1 of 3 x 3 has 2 tokens, the next one 3; got {len(got)}"
    assert got[0] == 10 and got[2] == 21, f"the ends have one parent each, got {got}"
    assert got[1] == 16, f"the middle lies right of the lower, below the upper one: {got}"
    got = next_diagonal(R, B, 2, 3).flatten().tolist()
    assert got == [16, 18.5], f"behind the main diagonal the ends fall off: {got}"
    print("Right: this and a softmax is the whole sampler.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# The $a$-th token of the diagonal stands at row $r_0 + a$. Below it, in row $r_0 + a + 1$, is the place right of the token $a + 1$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def next_diagonal(right, below, level, n):
#     middle = (right[1:] + below[:-1]) / 2
#     if level >= n - 1:
#         return middle
#     return torch.cat((right[:1], middle, below[-1:]))
# ```
#
# </details>
# <details><summary>Wrong: pairs the heads the other way round</summary>
#
# Right of the upper token and below the lower one are two different places.
#
# ```python
# def next_diagonal(right, below, level, n):
#     middle = (right[:-1] + below[1:]) / 2
#     if level >= n - 1:
#         return middle
#     return torch.cat((right[:1], middle, below[-1:]))
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: who does not know of whom (★, 5 minutes)
#
# Two tokens of one diagonal are written without knowing of each other. How many such pairs are there on an $n \times n$ grid?

# %% tags=["exercise"]
def blind_pairs(n):
    """The number of pairs of tokens that share a diagonal."""
    return None  # your code

# %% tags=["exercise-check"]
answer = blind_pairs(2)
if answer is None:
    print("Hint: t tokens make t (t - 1) / 2 pairs. The lengths are 1, 2, .., n, .., 2, 1.")
else:
    assert answer == 1, f"2 x 2: only the two in the middle share a diagonal; got {answer}"
    assert blind_pairs(8) == 140, f"8 x 8: expected 140, got {blind_pairs(8)}"
    print(f"Right: {140 / (64 * 63 / 2):.0%} of all pairs at 8 x 8.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Diagonal $l$ has $\min(l, 2n - 2 - l) + 1$ tokens.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def blind_pairs(n):
#     lengths = [min(level, 2 * n - 2 - level) + 1 for level in range(2 * n - 1)]
#     return sum(t * (t - 1) // 2 for t in lengths)
# ```
#
# </details>
# <details><summary>Wrong: counts every pair twice</summary>
#
# A pair has no order.
#
# ```python
# def blind_pairs(n):
#     lengths = [min(level, 2 * n - 2 - level) + 1 for level in range(2 * n - 1)]
#     return sum(t * (t - 1) for t in lengths)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 4: two shifts (★★, 10 minutes)
#
# Write ShiftDown(u) + ShiftRight(e), without the helpers of the package.

# %% tags=["exercise"]
def shifted(u, e):
    """u one row further down plus e one column further right; both (B, H, W, D)."""
    return None  # your code

# %% tags=["exercise-check"]
u = torch.arange(1.0, 7.0).view(1, 2, 3, 1)
answer = shifted(u, 0 * u)
if answer is None:
    print("Hint: start from zeros, and write u[:, :-1] where it belongs.")
else:
    got = answer[0, :, :, 0].tolist()
    assert got[0] == [0, 0, 0], f"nothing lies above the first row, it must be zero: {got[0]}"
    assert got[1] == [1, 2, 3], f"the second row hears of the first, got {got[1]}"
    got = shifted(0 * u, u)[0, :, :, 0].tolist()
    assert got == [[0, 1, 2], [0, 4, 5]], f"ShiftRight stays within its row, got {got}"
    print("Right: and it is these two lines that make the model autoregressive.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `out = torch.zeros_like(u)`, then `out[:, 1:] += u[:, :-1]`, and the same along the other axis.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def shifted(u, e):
#     out = torch.zeros_like(u)
#     out[:, 1:] += u[:, :-1]
#     out[:, :, 1:] += e[:, :, :-1]
#     return out
# ```
#
# </details>
# <details><summary>Wrong: rolls</summary>
#
# What falls out at the bottom comes in again at the top: the first row would know the last one.
#
# ```python
# def shifted(u, e):
#     return u.roll(1, 1) + e.roll(1, 2)
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * An order is a list of levels. What one level writes is written at once, and its tokens do not know of each other.
# * Next neighbour: levels are diagonals, two heads carry the step to the right and the step down, and where they meet their logits are averaged; 15 passes instead
#   of 64.
# * A cache for diagonals feeds the last level and returns the next. It is exact because nothing in it ever looks ahead.
# * The Axial Transformer keeps the raster order and splits the network: a large part for the rows above, once a row, and a small one for the row so far.
# * With caches all three do the same arithmetic. An order buys fewer waits, and pays with what tokens do not know of each other
#   when they are written.
#
# ## Where this stands
#
# Next neighbour is due to He et al. ([2503.10696](https://arxiv.org/abs/2503.10696)), who report 2.4 times the throughput of a baseline with four tokens a step on images, and use
# three heads for video: right, below and the next frame. The Axial Transformer is due to Ho et al. ([1912.12180](https://arxiv.org/abs/1912.12180)). Diagonals are older than
# both: PixelRNN's diagonal LSTM (van den Oord et al., [1601.06759](https://arxiv.org/abs/1601.06759)) walks along them to let every pixel see all before it. Chapter 2.2 writes whole scales at once;
# chapter 2.4 gives up a fixed order altogether.
