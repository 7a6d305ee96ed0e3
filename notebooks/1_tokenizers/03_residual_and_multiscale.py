# %% [markdown]
# # Quantize what is left over: residual and multi-scale codes
#
# | | |
# | --- | --- |
# | **You will build** | a residual quantizer, and VAR's pyramid, which describes a picture first in one token, then in four, then in sixteen ... |
# | **Time** | about half a minute on a laptop, without a GPU |
# | **You need** | chapter 01 of this part: codebooks and the straight-through gradient |
# | **Of the five nouns** | the tokenizer |
# | **Systems** | residual VQ (RQ-VAE, SoundStream), the tokenizer of VAR |
#
# In the last two chapters every cell of a picture was described by one word. Here it is described by several, each of which says
# only what the words before it left out. That simple change makes a dictionary grow without growing, lets a picture be cut off after any
# word, and, once the words have different *sizes*, turns a picture into an order from coarse to fine.

# %% tags=["exercise-setup"]
import inspect
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from minimal import checkpoints, data, viz
from minimal.metrics import codebook_usage, perplexity, psnr
from minimal.tokenizers.gradients import nearest
from minimal.tokenizers.multiscale import MultiScaleQuantizer, MultiScaleTokenizer
from minimal.tokenizers.residual import ResidualQuantizer, ResidualTokenizer
from minimal.tokenizers.vq import kmeans
from minimal.train import adamw, fit

viz.style()
torch.set_num_threads(1)

# %% [markdown]
# ## The question
#
# A codebook is a table. One more bit for each cell doubles its rows: rows to store, to search, and to find enough examples for. A table
# of 625 rows makes our scenes look good; four times the bits per cell would take 150 thousand million. *Is there a way to say more
# without a longer dictionary?*
#
# People have one. Nobody has a word for "4.37 metres"; we say four metres, and thirty-seven centimetres more. Below, every cell of some
# held-out scenes is described in one word, then corrected by a second, a third and a fourth. Each of the four tables holds **five** words
# (recipe `shapes_residual`).

# %% mystnb={"figure": {"caption": "The same scenes from one, two, three and four words per cell, out of tables of five words each. The first word knows a few colours; each later one corrects what the words before it left.", "name": "fig-1-03-depths"}, "image": {"alt": "Seven synthetic scenes with coloured shapes. From row to row, blotchy colours and rough edges become clean; the fourth row is close to the originals in the last row."}} tags=["hide-input"]
residual = checkpoints.load("shapes_residual")
train = data.load("shapes", "train", version="scene")
validation = data.load("shapes", "validation", version="scene")
scenes = validation.images[[1, 4, 8, 12, 13, 16, 25]]
with torch.inference_mode():
    tokens = residual.encode(scenes)
    rows = [residual.decode(tokens, upto=k) for k in (1, 2, 3, 4)]
labels = ["1 word a cell", "2 words", "3 words", "4 words", "original"]
viz.image_grid(torch.cat([*rows, scenes]), ncol=7, row_labels=labels);

# %% [markdown]
# ## Two tables, by hand
#
# Let the first table hold tens and the second one corrections. A number is described by the index of the nearest ten, then by the index
# of the correction that is nearest to what is *left over*.

# %%
tens, corrections = torch.tensor([0.0, 10.0, 20.0]), torch.tensor([-3.0, 0.0, 3.0])
for z in (12.0, 9.0, 16.0):
    k1 = int((z - tens).abs().argmin())
    left = z - tens[k1]
    k2 = int((left - corrections).abs().argmin())
    lost = left - corrections[k2]
    said = f"{tens[k1]:2.0f} and {corrections[k2]:2.0f}"
    print(f"{z:2.0f} is {said}: tokens {k1}, {k2}; lost {lost:2.0f}")

# %% [markdown]
# Six rows stand in the tables, and nine numbers can be said. In general, with $z$ a vector of shape $(D,)$, tables $e^{(j)}$ of shape $(K, D)$ and
# depth $J$:
#
# $$\begin{gathered} r_0 = z, \qquad k_j = \arg\min_i |r_{j-1} - e^{(j)}_i|, \\ r_j = r_{j-1} - e^{(j)}_{k_j}, \qquad \hat z_j = \sum_{i \le j} e^{(i)}_{k_i} \end{gathered}$$
#
# $JK$ rows describe $K^J$ vectors in $J \log_2 K$ bits. Each token refines the sum of those before, so we may stop after any of them.
#
# What does the second table see? Not the data. It sees the errors of the first, all moved to the origin and laid on top of each other:

# %%
generator = torch.Generator().manual_seed(0)
angle = 2 * math.pi * torch.rand(1500, generator=generator)
radius = 1 + 0.12 * torch.randn(1500, 1, generator=generator)
points = torch.stack((angle.cos(), angle.sin()), dim=1) * radius  # (1500, 2), a ring


def fitted(rows, size):
    """The best of five tables (size, D), and the index of its nearest row for each row."""
    torch.manual_seed(0)
    tables = [kmeans(rows, size, iterations=50) for _ in range(5)]
    table = min(tables, key=lambda t: (rows - t[nearest(rows, t)]).square().sum())
    return table, nearest(rows, table)


table1, index1 = fitted(points, 4)
left = points - table1[index1]
table2, index2 = fitted(left, 4)
sums = (table1[:, None] + table2).flatten(0, 1)  # all 16 that can be said

# %% mystnb={"figure": {"caption": "Left: four words for a ring. Middle: what they leave over, moved to the origin; the second table of four words lies among it. Right: the 16 sums. The same stencil is stamped around each first word, so many of the sums lie where no data is.", "name": "fig-1-03-ring"}, "image": {"alt": "Three scatter plots. A ring of points split into four coloured arcs with a cross in each; the four arcs moved on top of each other at the origin, with four plus signs; the ring again with sixteen plus signs, four around each arc, many of them inside or outside the ring."}} tags=["hide-input"]
panels = plt.subplots(1, 3, figsize=(8.6, 3.1), sharex=True, sharey=True)[1]
for k in range(4):
    for ax, rows in zip(panels, (points, left, points)):
        ax.scatter(*rows[index1 == k].T, s=3, lw=0, color=viz.PALETTE[k], alpha=0.45)
mark = dict(color=viz.INK, s=60, zorder=3)
panels[0].scatter(*table1.T, marker="X", **mark)
panels[1].scatter(*table2.T, marker="P", **mark)
panels[2].scatter(*sums.T, marker="P", **mark | {"s": 32})
for ax, title in zip(panels, ("first table", "what it leaves over, second table", "all sums")):
    ax.set(title=title, aspect="equal");

# %%
def distortion(rows, table):
    """Mean squared distance of points to the nearest row of a table."""
    return (rows - table[nearest(rows, table)]).square().sum(1).mean().item()


stacked = (left - table2[index2]).square().sum(1).mean().item()
eight, sixteen = (distortion(points, fitted(points, size)[0]) for size in (8, 16))
print("rows stored   bits   distortion")
print(f"         4      2   {distortion(points, table1):.3f}")
print(f"     4 + 4      4   {stacked:.3f}")
print(f"         8      3   {eight:.3f}")
print(f"        16      4   {sixteen:.3f}")
used = nearest(points, sums).bincount(minlength=16) / 1500
print(f"{int((used < 0.02).sum())} of the 16 sums are nearest to less than 2 % of the points")
assert sixteen < stacked < distortion(points, table1)

# %% [markdown]
# The picture shows both the trick and its price. Two tables of four say sixteen things, and with as many rows that is (slightly) better than
# one table of eight. But the sixteen are not free: the second table must serve all four arcs with one and the same stencil. One table of sixteen would lay its
# words along the ring and lose half as much. **Residual codes save rows, not bits.**
#
# ## The same bargain on pictures
#
# No network yet: cut scenes into 4 × 4 patches of 48 numbers, fit tables by k-means, level after level, and look at held-out patches. A stack
# of depth one is a flat table.

# %%
def patches(images):
    """Images (B, 3, 32, 32) to their 4 x 4 patches, (B, 64, 48)."""
    return F.unfold(images, 4, stride=4).mT


learn, held_out = patches(train.images[:400]), patches(validation.images[:200])


def decibels(size, depth):
    """Held-out patches from `depth` tables of `size` rows: decibels after each level."""
    torch.manual_seed(0)
    quantizer = ResidualQuantizer(size, 48, depth).train()
    quantizer.quantize(learn, learn=True)  # the first batch fits the tables by k-means
    _, sums = quantizer.quantize(held_out)
    return [10 * math.log10(4 / (held_out - q).square().mean().item()) for q in sums]


flat = {size: decibels(size, 1)[0] for size in (4, 16, 64, 256, 512)}
stacks = {size: decibels(size, 4) for size in (16, 64)}

# %% mystnb={"figure": {"caption": "Held-out patches of scenes. At equal bits the flat table is better (left). At equal rows the stacks are (right).", "name": "fig-1-03-rate"}, "image": {"alt": "Two line plots of decibels. Against bits per patch the flat table's line rises above those of the stacks with 16 and 64 words a level, but ends at 9 bits while the stacks go on to 16 and 24. Against rows stored, on a logarithmic axis, the stacks lie above the flat table."}} tags=["hide-input"]
panels = plt.subplots(1, 2, figsize=(9, 3.1), sharey=True)[1]
by_bits = {"flat": ([math.log2(size) for size in flat], list(flat.values()))}
by_rows = {"": (list(flat), list(flat.values()))}
for size, values in stacks.items():
    by_bits[f"{size} a level"] = ([math.log2(size) * j for j in (1, 2, 3, 4)], values)
    by_rows[" " * size] = ([size * j for j in (1, 2, 3, 4)], values)
viz.curves(by_bits, xlabel="bits per patch", ylabel="dB (held-out patches)", ax=panels[0])
viz.curves(by_rows, xlabel="rows stored", ylabel="", xscale="log", ax=panels[1]);

# %%
two, four = stacks[16][1], stacks[16][3]
print(f"8 bits : one table of 256 rows {flat[256]:.1f} dB, 2 tables of 16 rows {two:.1f} dB")
print(f"64 rows: one table of 64 rows {flat[64]:.1f} dB, 4 tables of 16 rows {four:.1f} dB")
assert flat[256] > two + 1 and four > flat[64] + 1

# %% [markdown]
# ## The whole quantizer
#
# In code, the recursion is a loop that quantizes `z - total`. Here it runs on the latents of the shipped tokenizer, 8 × 8 cells of 8 numbers,
# and must find the tokens that the package finds:

# %%
def residual_quantize(z, tables):
    """z (M, D) and tables (K, D) each: tokens (M, J), and the sum after each level."""
    total, tokens, sums = torch.zeros_like(z), [], []
    for table in tables:
        tokens.append(nearest(z - total, table))  # what is left over
        total = total + table[tokens[-1]]
        sums.append(total)
    return torch.stack(tokens, dim=1), sums


with torch.inference_mode():
    z = residual.latents(scenes)  # (7, 64, 8)
    tables = [table.codebook for table in residual.quantizer.tables]
    mine, sums = residual_quantize(z.flatten(0, 1), tables)  # (448, 4)
    packaged = residual.encode(scenes)  # (7, 256): level 1 of all cells, then level 2 ...
assert torch.equal(mine.view(7, 64, 4).mT.flatten(1), packaged)
print("one cell:", mine.view(7, 64, 4)[0, 27].tolist())
print(inspect.getsource(ResidualQuantizer.quantize))

# %% [markdown]
# The package's loop has room for two things that come later (`down` and `up` do nothing yet), and it teaches: tables follow the leftovers that they
# serve by moving averages, as in chapter 01. Two details are easy to get wrong.
#
# * The gradient goes straight through *once*, from the whole sum to $z$: `z + (total - z).detach()`. If each level is a straight-through
#   estimator of its own and the outputs are added, $z$ receives the gradient as many times as there are levels (exercise 2).
# * The encoder is committed to every $\hat z_j$, not to the last alone, so that it keeps close to what *few* words can say:
#   $\frac{\beta}{J} \sum_j |z - \mathrm{sg}(\hat z_j)|^2$.
#
# ## Cutting off
#
# "We may stop after any token" was a promise about vectors. A decoder that has only ever seen sums of four levels may do strange things with one.
# **Quantizer dropout** teaches it: during training, some images are painted from the first $j$ levels, $j$ drawn at random. Two
# tokenizers of real digits, trained live, 32 words a level:

# %%
digits, unseen = data.load("digits", "train").images, data.load("digits", "validation").images


def on_digits(tokenizer):
    """Train it for 200 steps; unseen digits from its first level, its first two, and so on."""
    sizes = dict(steps=200, batch_size=64, desc=type(tokenizer).__name__)
    fit(tokenizer, (digits,), adamw(tokenizer, 3e-3), **sizes)
    with torch.inference_mode():
        tokens = tokenizer.encode(unseen)
        depths = range(1, tokenizer.quantizer.depth + 1)
        return [tokenizer.decode(tokens, upto=j).clamp(-1, 1) for j in depths]


frame = dict(widths=(16, 32), decay=0.95)
errors, pictures = {}, {}
for name, dropout in {"whole": 0.0, "random depth": 1.0}.items():
    torch.manual_seed(0)
    shown = on_digits(ResidualTokenizer(codebook_size=32, depth=4, dropout=dropout, **frame))
    errors[name] = [(x - unseen).square().mean().item() for x in shown]
    pictures[name] = shown[0][:8]

# %% mystnb={"figure": {"caption": "Trained to be shown whole, and trained at random depth: the second is better at one level and worse at four.", "name": "fig-1-03-dropout"}, "image": {"alt": "Left: error on a logarithmic axis against the number of levels shown, two falling lines that cross between two and three levels. Right: eight digits painted from one level by both tokenizers, above the originals."}} tags=["hide-input"]
figure, panels = plt.subplots(1, 2, figsize=(9.4, 2.5), width_ratios=(1, 1.9))
depths = [1, 2, 3, 4]
lines = {name: (depths, values) for name, values in errors.items()}
labels = dict(xlabel="levels shown", ylabel="mean squared error")
viz.curves(lines, **labels, yscale="log", ax=panels[0])
panels[0].set(xticks=depths, xlim=(0.8, 5.6))
rows = torch.cat([*pictures.values(), unseen[:8]])
names = ["whole", "random depth", "original"]
viz.image_grid(rows, ncol=8, row_labels=names, ax=panels[1])
panels[1].set_title("painted from one level");

# %%
print("levels shown  " + "".join(f"{j:9d}" for j in depths))
for name, values in errors.items():
    print(f"{name:14s}" + "".join(f"{value:9.4f}" for value in values))
one, four = (errors["random depth"][j] / errors["whole"][j] for j in (0, 3))
print(f"random depth: error x {one:.2f} at one level, x {four:.1f} at four")
assert one < 0.9 and four > 1.2
for values in errors.values():
    assert all(after < before for before, after in zip(values, values[1:]))

# %% [markdown]
# Each level lowers the error, and the choice is a choice: who always shows all levels should not train for cut-offs. Audio codecs, which must
# serve many bit rates, drop levels for half of the batch as a compromise (Kumar et al. 2023).
#
# ## From levels to scales
#
# For a generator, levels have a blemish. Even the roughest picture costs 64 tokens, one for each cell, and it must begin with the
# corner at the top left. One would like to begin with the gist. So let the *first* level have **one** token for the whole picture, the second
# 2 × 2, then 4 × 4, and only the last 8 × 8: this is the tokenizer of VAR. Only two lines of the loop change. Before the lookup, what is left over is shrunk
# to $p_k \times p_k$ cells by averaging; after it, the codes are enlarged to the full grid, and a small convolution $\varphi_k$ mends what enlarging smeared:
#
# $$\begin{gathered} i_k = \mathrm{nearest}\big(\mathrm{area}(f - \hat f_{k-1},\, p_k)\big), \\ \hat f_k = \hat f_{k-1} + \varphi_k\big(\mathrm{bicubic}(e_{i_k},\, 8)\big), \qquad \varphi(h) = \tfrac12 h + \tfrac12\, \mathrm{conv}_{3 \times 3}(h) \end{gathered}$$
#
# with $f$ the latent, $(D, 8, 8)$. All scales share one codebook. The leftover is always kept at full resolution, so no scale has to be right: what one smears, the next
# one sees.

# %%
def pyramid(f, codebook, convolutions, scales):
    """Latents f (B, D, 8, 8): a token map (B, p, p) per scale, and the sum f_hat after each."""
    f_hat, maps, sums = torch.zeros_like(f), [], []
    for p, conv in zip(scales, convolutions):
        small = F.interpolate(f - f_hat, (p, p), mode="area")  # (B, D, p, p)
        rows = small.permute(0, 2, 3, 1).flatten(0, 2)
        maps.append(nearest(rows, codebook).view(len(f), p, p))
        h = codebook[maps[-1]].permute(0, 3, 1, 2)
        h = F.interpolate(h, (8, 8), mode="bicubic")
        f_hat = f_hat + h.lerp(F.conv2d(h, conv.weight, conv.bias, padding=1), 0.5)
        sums.append(f_hat)
    return maps, sums


multiscale = checkpoints.load("shapes_multiscale")
quantizer = multiscale.quantizer
with torch.inference_mode():
    f = multiscale.latents(scenes).mT.unflatten(-1, (8, 8))
    convolutions = [quantizer.phi(k) for k in range(len(quantizer.scales))]
    maps, sums = pyramid(f, quantizer.tables[0].codebook, convolutions, quantizer.scales)
    mine, packaged = torch.cat([m.flatten(1) for m in maps], dim=1), multiscale.encode(scenes)
same = (mine == packaged).double().mean().item()
print(f"scales {quantizer.scales}: {multiscale.length} tokens, {same:.1%} as in the package")
assert same > 0.99  # the order of summation may decide a tie
print(inspect.getsource(MultiScaleQuantizer.down) + inspect.getsource(MultiScaleQuantizer.up))

# %% [markdown]
# One scene as the generator will have to write it, and what can be seen after each map:

# %% mystnb={"figure": {"caption": "Above: the token maps of one scene, 1 + 4 + 16 + 64 tokens of one vocabulary. Below: what the decoder paints once a map has been added to those before it.", "name": "fig-1-03-maps"}, "image": {"alt": "Four square maps of numbered cells, with 1, 4, 16 and 64 cells, above four pictures of a scene: two plain grounds, a faint scene with one green blob, and the sharp scene, beside the original."}} tags=["hide-input"]
panels = plt.subplots(2, 5, figsize=(9.4, 4))[1]
with torch.inference_mode():
    previews = [multiscale.decode(packaged, upto=k) for k in (1, 2, 3, 4)]
for k, p in enumerate(quantizer.scales):
    viz.token_map(maps[k][2].flatten(), (p, p), multiscale.vocab_size, ax=panels[0, k])
    viz.image_grid(previews[k][2:3], ncol=1, ax=panels[1, k])
    panels[0, k].set_title(f"scale {k + 1}: {p * p} token{'s' * (k > 0)}")
    for text in panels[0, k].texts:
        text.set_fontsize(6)
viz.image_grid(scenes[2:3], ncol=1, ax=panels[1, 4])
panels[1, 4].set_title("original")
panels[0, 4].set_axis_off();

# %% mystnb={"figure": {"caption": "Previews: every prefix of the pyramid is a picture. One and five tokens show a ground, 21 a few blobs; nearly everything comes with the last map.", "name": "fig-1-03-previews"}, "image": {"alt": "Seven scenes in five rows. After one token and after five only plain pale grounds; after 21 a few blurred blobs in the right colours; after 85 the scenes, nearly as in the last row, the originals."}} tags=["hide-input"]
counts = [1, 5, 21, 85]
labels = [f"{n} token{'s' * (n > 1)}" for n in counts] + ["original"]
viz.image_grid(torch.cat([*previews, scenes]), ncol=7, row_labels=labels);

# %% [markdown]
# In numbers, over 500 held-out scenes. Do all scales speak, and how much does each contribute to the latent and to the picture?

# %%
real = validation.images[:500]
with torch.inference_mode():
    tokens = torch.cat([multiscale.encode(part) for part in real.split(250)])
    f = torch.cat([multiscale.latents(part) for part in real.split(250)])  # (500, 64, 8)
    sums = multiscale.partial_sums(tokens)
    decoded = [multiscale.paint(total).clamp(-1, 1) for total in sums]
spread = (f - f.mean((0, 1))).square().mean()
db = [psnr(x, real).mean().item() for x in decoded]
nothing = psnr(train.images.mean(0).expand_as(real), real).mean().item()
use = []
print("scale  tokens  codes in use  perplexity  latent explained     dB")
print(f"the mean picture of the training set{nothing:28.1f}")
for k, p in enumerate(quantizer.scales):
    mine = tokens[:, multiscale.levels == k]
    use.append(codebook_usage(mine, multiscale.vocab_size))
    explained = 1 - (f - sums[k]).square().mean() / spread
    print(
        f"{k + 1:5d}{p * p:8d}{use[-1] * multiscale.vocab_size:14.0f}"
        f"{perplexity(mine, multiscale.vocab_size):12.1f}{explained:18.0%}{db[k]:7.1f}"
    )
assert codebook_usage(tokens, multiscale.vocab_size) >= 0.9
assert abs(db[1] - nothing) < 1.5 and db[2] > db[1] + 1 and db[3] > db[2] + 10

# %% [markdown]
# ## Would dropout mend the previews?
#
# All scales speak, and each explains more of the latent. Yet in pixels one token or five are worse than none: 14.9 dB, where the mean picture has 15.7. The first 21
# reach 17.2, and the last 64 bring 16 more. No wonder: this decoder never saw a sum of fewer than four maps. Let us do as before, and show it, for half of the images,
# the sum after a random scale. Two pyramids of digits, 1 + 4 + 16 tokens out of 64 words, trained live and alike:

# %%
drawn, levels_db = {}, {}
print("                1 token   5 tokens  21 tokens   words in use at scales 1, 2, 4")
for name, dropout in {"whole": 0.0, "half cut off": 0.5}.items():
    torch.manual_seed(0)
    small = MultiScaleTokenizer(codebook_size=64, scales=(1, 2, 4), dropout=dropout, **frame)
    drawn[name] = on_digits(small)
    levels_db[name] = [psnr(x, unseen).mean().item() for x in drawn[name]]
    with torch.inference_mode():
        words = [len(part.unique()) for part in small.quantizer.split(small.encode(unseen))]
    row = "".join(f"{value:8.1f} dB" for value in levels_db[name])
    print(f"{name:12s}{row}{words[0]:8d}{words[1]:4d}{words[2]:4d}")
gain = [b - a for a, b in zip(levels_db["whole"], levels_db["half cut off"])]
assert gain[1] > 1.5 and gain[2] < -1.5

# %% mystnb={"figure": {"caption": "Digits from 1, 5 and 21 tokens, without and with quantizer dropout. With it, five tokens are a blurred digit; without it, a grey cloud.", "name": "fig-1-03-cut"}, "image": {"alt": "Seven rows of eight digits. Without dropout the first two rows are almost the same grey smudge everywhere and the third shows sharp digits. With dropout the first row shows smudges that differ, the second blurred digits, the third digits a little softer than before. The last row shows the originals."}} tags=["hide-input"]
rows = torch.cat([x[:8] for part in drawn.values() for x in part] + [unseen[:8]])
labels = [f"{name}, {n}" for name in drawn for n in (1, 5, 21)] + ["original"]
viz.image_grid(rows, ncol=8, row_labels=labels);

# %% [markdown]
# It would, and the price is high: the five-token preview gains 3.1 dB, and the whole picture loses 2.7. The words change too: without dropout one word
# serves as the first token of all digits. For a generator that always writes all maps, the whole picture counts,
# so our pyramid is trained without. ImageFolder cuts off one image in ten, as a compromise.

# %% [markdown]
# ## Which tokens carry the colour?
#
# By decibels the first five tokens of our pyramid are worth less than nothing. Is nothing in them? Let us ask differently. Take pictures with a *single* object on one of six grounds, and
# let a linear probe guess from a few tokens what is in the picture: the five coarsest; five of the finest, from the middle, where the object is;
# and the first five tokens that a raster generator would write with the flat tokenizer of chapter 01.

# %%
count = {"train": 2000, "validation": 1000}
single = {s: data.load("shapes", s, version="single", count=n) for s, n in count.items()}


def probe(tokenizer, places):
    """Held-out accuracy of a linear probe (ridge regression on the codes at `places`)."""
    seen = {}
    with torch.inference_mode():
        for split, images in single.items():
            parts = images.images.split(250)
            codes = torch.cat([tokenizer.encode(part)[:, places] for part in parts])
            seen[split] = F.one_hot(codes, tokenizer.vocab_size).flatten(1).float()
    x, result = seen["train"], {}
    gram = x @ x.mT + torch.eye(len(x))
    for name in ("colour", "background", "shape"):
        truth = {split: images.attributes[name].flatten() for split, images in single.items()}
        targets = F.one_hot(truth["train"]).float()
        weight = x.mT @ torch.linalg.solve(gram, targets - targets.mean(0))
        guess = (seen["validation"] @ weight + targets.mean(0)).argmax(-1)
        result[name] = (guess == truth["validation"]).double().mean().item()
    return result


vq = checkpoints.load("shapes_vq")
middle = [21 + cell for cell in (27, 28, 35, 36, 43)]
results = {
    "pyramid, the first token": probe(multiscale, [0]),
    "pyramid, the first 5": probe(multiscale, [0, 1, 2, 3, 4]),
    "pyramid, 5 of the last map": probe(multiscale, middle),
    "flat VQ, the first 5": probe(vq, [0, 1, 2, 3, 4]),
}

# %%
print(f"{'':28s}colour (of 4)   ground (of 6)   shape (of 4)")
for name, row in results.items():
    print(f"{name:28s}{row['colour']:13.2f}{row['background']:16.2f}{row['shape']:15.2f}")
gist, fine, corner = list(results.values())[1:]
assert gist["colour"] > fine["colour"] + 0.15 and gist["colour"] > corner["colour"] + 0.05
assert gist["background"] > fine["background"] + 0.3 and fine["shape"] > gist["shape"] + 0.1
assert corner["background"] > gist["background"] + 0.1

# %% [markdown]
# This is the surprise of the chapter. Five tokens that paint worse than a mean picture name the colour of the object in four pictures of five, more often than five fine
# tokens from the middle, where it is. The fine ones see the outline better, and know nothing of the ground (one in six is chance). So the knowledge is there; the decoder does not
# show it, because nobody taught it to. The error of a preview measures a habit of the decoder, not what the tokens know.
#
# The last row keeps us honest. Five flat tokens from the top row, which is mostly ground, know the ground better than the gist does, and the colour of
# the object far better than chance. A token is no peephole: the convolutions of the encoder reach some 16 pixels beyond the cell, and its
# group normalisation sees the whole picture. That coarse tokens carry the gist, and others do not, is a matter of degree.
#
# ## What it does not buy
#
# Does an order from coarse to fine make better pictures? The same frame, the same schedule, three ways to spend tokens on the same 500 scenes:

# %%
table = {"flat VQ": (vq, None), "pyramid": (multiscale, None)}
table |= {f"residual, {k} level{'s' * (k > 1)}": (residual, k) for k in (1, 2, 3, 4)}
quality = {}
print("                     tokens   bits   rows     dB")
for name, (tokenizer, upto) in table.items():
    with torch.inference_mode():
        tokens = torch.cat([tokenizer.encode(part) for part in real.split(250)])
        shown = torch.cat([tokenizer.decode(part, upto=upto) for part in tokens.split(250)])
    quality[name] = psnr(shown.clamp(-1, 1), real).mean().item()
    length = tokenizer.length if upto is None else upto * 64
    words = tokenizer.vocab_size
    bits, stored = length * math.log2(words), words * (upto or 1)
    print(f"{name:20s}{length:7d}{bits:7.0f}{stored:7d}{quality[name]:7.1f}")
assert quality["flat VQ"] > max(quality["pyramid"], quality["residual, 4 levels"]) + 1

# %% [markdown]
# It does not. The flat codebook is best, with fewer tokens and fewer bits than the pyramid, which spends 21 of its 85 tokens on maps that add little to the picture. The stack of
# four words has exactly the bits of the flat codebook, and stores 20 rows instead of 625; it pays for that with 2.6 dB. (Part of
# that may be the price of the dropout that it was trained with, for the picture at the beginning.)
#
# What these codes buy is *order*. A stack can be cut off at any level. A pyramid lets a generator begin with the gist, and write all tokens of a map at
# once: four steps instead of 64. What that is worth, and what it costs, Part 2 will measure.
#
# ## What the generator will read
#
# A generator of Part 2 writes map after map, and all tokens of a map at once. What does it read before it writes map $k + 1$? Not
# the codes of map $k$, which mean little without those before them, but the sum so far, $\hat f_k$, shrunk to the size of the map that it must write. In training all
# tokens are known, so all inputs come at once (*teacher forcing*); when sampling they come one by one, from tokens just drawn. Both must agree to the last bit:

# %%
tokens = packaged  # (7, 85)
with torch.inference_mode():
    inputs = multiscale.teacher_forcing_input(tokens)  # (7, 84, 8), all at once
    f_hat, read = 0.0, []
    for k, indices in enumerate(quantizer.split(tokens)):  # a sampler draws these
        f_hat = quantizer.accumulate(f_hat, indices, k)
        if k < 3:
            read.append(quantizer.next_input(f_hat, k))  # (7, 4, 8), (7, 16, 8), (7, 64, 8)
    assert torch.equal(torch.cat(read, dim=1), inputs)
    assert torch.equal(multiscale.paint(f_hat), multiscale.decode(tokens))
print([tuple(part.shape) for part in read], "together", tuple(inputs.shape))

# %% mystnb={"figure": {"caption": "What is read before each map is written: the sum so far at the size of that map, in the colours of its three main directions. The first map is written from the class label alone.", "name": "fig-1-03-inputs"}, "image": {"alt": "For three scenes, a row each: a 2 by 2, a 4 by 4 and an 8 by 8 map of coloured cells that the generator reads, then the full sum, then the scene. The maps grow from plain patches to outlines of the scene."}} tags=["hide-input"]
with torch.inference_mode():
    cells = sums[-1].flatten(0, 1)
    centre, axes3 = cells.mean(0), torch.pca_lowrank(cells, 3)[2]
    reach = 2.2 * ((cells - centre) @ axes3).std(0)


def coloured(rows):
    """Rows (B, p·p, 8) to pictures (B, 3, 8, 8)."""
    p = math.isqrt(rows.shape[1])
    x = ((rows - centre) @ axes3 / reach).mT.unflatten(-1, (p, p))
    return F.interpolate(x, (8, 8), mode="nearest")


figure, panels = plt.subplots(3, 6, figsize=(8.6, 4.6))
for row, i in enumerate((1, 2, 4)):
    stages = [torch.zeros(1, 3, 8, 8)] + [coloured(part[i : i + 1]) for part in read]
    stages += [coloured(f_hat[i : i + 1]), scenes[i : i + 1]]
    for ax, x in zip(panels[row], stages):
        viz.image_grid(x, ncol=1, ax=ax)
for ax in panels[:, 0]:
    ax.clear()
    viz.bare(ax)
    ax.text(0.5, 0.5, "a label", ha="center", va="center", transform=ax.transAxes)
titles = ["read for 1 x 1", "for 2 x 2", "for 4 x 4", "for 8 x 8", "all maps", "scene"]
for ax, title in zip(panels[0], titles):
    ax.set_title(title)

# %% [markdown]
# ## Exercise 1: greedy is not best (★, 10 minutes)
#
# The loop takes the nearest row of the first table and makes the best of it. Is the sum that it finds the nearest of all sums? Write the
# search over all pairs of rows.

# %% tags=["exercise"]
def best_pair(z, table1, table2):
    """z (M, D), tables (K, D): pairs of indices (M, 2) whose sums of rows are nearest to z."""
    return None  # your code

# %% tags=["exercise-check"]
torch.manual_seed(0)
z_, table1_, table2_ = torch.randn(400, 2), torch.randn(5, 2), 0.5 * torch.randn(5, 2)
answer = best_pair(z_, table1_, table2_)
if answer is None:
    print("Hint: write down all 25 sums as one table, and look up the nearest.")
else:
    assert answer.shape == (400, 2), f"expected indices (400, 2), got {tuple(answer.shape)}"
    error = lambda i, j: (z_ - table1_[i] - table2_[j]).square().sum(1)
    least = torch.stack([error(i, j) for i in range(5) for j in range(5)]).min(0).values
    missed = int((error(answer[:, 0], answer[:, 1]) > least + 1e-5).sum())
    why = "the best pair need not begin with the nearest row of the first table"
    assert missed == 0, f"for {missed} of 400 vectors another pair is nearer: {why}"
    other = (answer[:, 0] != nearest(z_, table1_)).double().mean()
    print(f"Right. {other:.0%} of the best pairs do not begin with the nearest first row.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `(table1[:, None] + table2).flatten(0, 1)` is the table of all sums; row $n$ of it belongs to the pair $(n // K, n \bmod K)$.
#
# </details>
# <details><summary>Solution</summary>
#
# All pairs cost $K^2$ rows, which is what we wanted to avoid; with four levels it is out of the question. A *beam* keeps the best few
# sums after each level and lies between the two.
#
# ```python
# def best_pair(z, table1, table2):
#     n = nearest(z, (table1[:, None] + table2).flatten(0, 1))
#     return torch.stack((n // len(table2), n % len(table2)), dim=1)
# ```
#
# </details>
# <details><summary>Wrong: the greedy loop</summary>
#
# The nearest first row may leave an error for which the second table has no good answer.
#
# ```python
# def best_pair(z, table1, table2):
#     first = nearest(z, table1)
#     return torch.stack((first, nearest(z - table1[first], table2)), dim=1)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: straight through, once (★★, 10 minutes)
#
# Return the sum of all codes with the gradient of $z$: as if the quantizer were the identity.

# %% tags=["exercise"]
def straight_through(z, codes):
    """z (M, D), codes (M, D) of each level: their sum, whose gradient reaches z once."""
    return None  # your code

# %% tags=["exercise-check"]
z_ = torch.zeros(3, 2, requires_grad=True)
codes_ = [torch.full((3, 2), 0.5), torch.full((3, 2), 0.25), torch.full((3, 2), 0.125)]
answer = straight_through(z_, codes_)
if answer is None:
    print("Hint: z plus something that has the right value and no gradient.")
else:
    right = torch.allclose(answer, torch.tensor(0.875))
    assert right, "the value should be the sum of the codes"
    assert answer.requires_grad, "no gradient reaches z"
    answer.sum().backward()
    times = z_.grad.mean().item()
    wrong = f"z receives the gradient {times:.0f} times: each level passes a copy of its own"
    assert abs(times - 1) < 1e-6, wrong
    print("Right: one value, one gradient, however many levels.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `z + (value - z).detach()` has the value `value` and the gradient of `z`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def straight_through(z, codes):
#     return z + (sum(codes) - z).detach()
# ```
#
# </details>
# <details><summary>Wrong: a straight-through estimator for each level</summary>
#
# What is left over, `z - total`, carries the gradient of z at every level. Each estimator passes it on, and their sum is three times as steep.
#
# ```python
# def straight_through(z, codes):
#     total, left = 0, z
#     for code in codes:
#         total = total + left + (code - left).detach()
#         left = left - code
#     return total
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: what may a scale read? (★★, 10 minutes)
#
# From the sums after each scale, make what a generator reads before it writes scales 2, 3, and so on. The shapes allow two answers. One of them makes training
# wonderfully easy and sampling impossible.

# %% tags=["exercise"]
def next_inputs(sums, scales):
    """f_hat (B, D, 8, 8) after each scale: inputs for scales 2, 3, ..., (B, D, p, p) each."""
    return None  # your code

# %% tags=["exercise-check"]
torch.manual_seed(0)
sums_ = [torch.randn(1, 3, 8, 8) for _ in range(4)]
answer = next_inputs(sums_, (1, 2, 4, 8))
if answer is None:
    print("Hint: the input of scale 2 has 2 x 2 cells. Which sum is known when it is written?")
else:
    shapes = [tuple(x.shape[2:]) for x in answer]
    expected = [(2, 2), (4, 4), (8, 8)]
    assert shapes == expected, f"expected maps of 2, 4 and 8 cells a side, got {shapes}"
    leak = (answer[0] - F.interpolate(sums_[1], (2, 2), mode="area")).abs().max() < 1e-6
    assert not leak, "scale 2 reads the sum that holds its own tokens: it would copy the answer"
    for k, x in enumerate(answer):
        expected = F.interpolate(sums_[k], x.shape[2:], mode="area")
        same = torch.allclose(x, expected, atol=1e-6)
        assert same, f"scale {k + 2} reads sum {k + 1}, shrunk by averaging"
    print("Right: each scale reads the sum of those before it, at its own size.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Pair the sum after scale $k$ with the size of scale $k + 1$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def next_inputs(sums, scales):
#     return [F.interpolate(f, (p, p), mode="area") for f, p in zip(sums[:-1], scales[1:])]
# ```
#
# </details>
# <details><summary>Wrong: reads its own answer</summary>
#
# The sum after scale 2 contains the tokens of scale 2. In training the model would copy them and its loss would fall to nothing; when sampling there is nothing
# to copy.
#
# ```python
# def next_inputs(sums, scales):
#     return [F.interpolate(f, (p, p), mode="area") for f, p in zip(sums[1:], scales[1:])]
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * Quantize, subtract, quantize the rest: $JK$ rows say $K^J$ things. That saves rows, not bits.
# * Any first few levels are a description; quantizer dropout teaches the decoder to paint from them, at a price for the whole.
# * A pyramid is the same loop with few tokens at first: shrink the leftover before the lookup, enlarge the codes after it.
# * Coarse tokens know the colour before the outline, even where a decoder that never saw them alone shows nothing of it.
# * A generator reads the sum so far at the size of the map that it writes next. Training and sampling must build it alike, to the bit.
#
# ## Where this stands
#
# Quantizing in stages is old (Juang and Gray 1982, for speech). SoundStream ([2107.03312](https://arxiv.org/abs/2107.03312)) put it into a
# network and added quantizer dropout; EnCodec ([2210.13438](https://arxiv.org/abs/2210.13438)) and the codec of Kumar et al.
# ([2306.06546](https://arxiv.org/abs/2306.06546)) refined it. RQ-VAE ([2203.01941](https://arxiv.org/abs/2203.01941)) brought it to images with one shared
# codebook. The pyramid is that of VAR (Tian et al. 2024, [2404.02905](https://arxiv.org/abs/2404.02905)), which learns its codebook by gradient and adds adversarial and perceptual
# losses (the next chapter). FlexVAR ([2502.20313](https://arxiv.org/abs/2502.20313)) gives up the residual, so that scales can be chosen freely; ImageFolder
# ([2410.01756](https://arxiv.org/abs/2410.01756)) drops scales as one drops levels. The generators follow in Part 2.
