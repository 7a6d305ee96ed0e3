# %% [markdown]
# # A table that nobody looks up
#
# | | |
# | --- | --- |
# | **You will build** | four quantizers without a codebook, the one-line change of iFSQ, and an entropy over 1,024 codes that never visits them |
# | **Time** | about forty seconds on a laptop, without a GPU |
# | **You need** | [Codebooks](01_codebooks.ipynb) |
# | **Of the five nouns** | tokenizer |
# | **Systems** | FSQ, iFSQ, LFQ (MAGVIT-v2), BSQ |
#
# A learned codebook is a garden. It must be planted by k-means, watered by moving averages, and weeded when codes die. This chapter
# asks what happens if we pave it over: fix the codes for ever, on a grid so regular that the nearest one is found by rounding.

# %% tags=["exercise-setup"]
import inspect
import math
import time

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from minimal import checkpoints, data, recipes, viz
from minimal.metrics import codebook_usage, perplexity, psnr
from minimal.tokenizers.bsq import BSQ, BSQTokenizer
from minimal.tokenizers.fsq import FSQ, FSQTokenizer
from minimal.tokenizers.ifsq import IFSQ
from minimal.tokenizers.lfq import LFQ, LFQTokenizer, mean_distribution
from minimal.tokenizers.vq import VQTokenizer, kmeans, nearest

viz.style()
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## The question
#
# A quantizer cuts space into cells and gives each cell one code. A learned codebook puts the cells where the data is. The other three
# pictures do not look at the data at all. Can they be any good?

# %% mystnb={"figure": {"caption": "Four ways to cut the plane. Grey: 400 latent vectors. Black: the codes that the decoder sees. Only the first picture depends on the data.", "name": "fig-1-02-cells"}, "image": {"alt": "Four squares cut into coloured cells. VQ: 25 irregular cells that follow the points. FSQ: a five by five grid of rectangles, wider outside. LFQ: four quadrants with codes at the corners of a square. BSQ: the same quadrants with codes on the unit circle."}} tags=["hide-input"]
points = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
torch.manual_seed(1)
table = kmeans(points, 25, 30)
quantizers = {"FSQ: 5 × 5 levels": FSQ((5, 5)), "LFQ: 2 bits": LFQ(2), "BSQ: a circle": BSQ(2)}
axis = torch.linspace(-3, 3, 300)
plane = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1).flatten(0, 1)  # (90000, 2)


def cells(ax, indices, codes, title):
    colours = viz.code_colours(len(codes))[indices.view(300, 300)]
    ax.imshow(colours, extent=(-3, 3, -3, 3), origin="lower")
    ax.scatter(*points.T, s=3, color=viz.GREY)
    ax.scatter(*codes.T, s=16, color=viz.INK, zorder=3)
    ax.set(title=title, xlim=(-3, 3), ylim=(-3, 3), xticks=(-2, 0, 2), yticks=(-2, 0, 2))
    ax.grid(False)


figure, axes = plt.subplots(1, 4, figsize=(10, 2.75))
cells(axes[0], nearest(plane, table), table, "VQ: 25 codes, learned")
for ax, (title, quantizer) in zip(axes[1:], quantizers.items()):
    codes = quantizer.codes(torch.arange(quantizer.vocab_size))
    cells(ax, quantizer.nearest(plane), codes, title)
axes[3].add_patch(plt.Circle((0, 0), 1, fill=False, color=viz.INK, lw=0.8));

# %% [markdown]
# One hope lies in the word *latent*. An encoder stands in front of the cells, and it can learn to send its vectors wherever the codes
# are. The codebook of a VQ learns to follow the encoder; here the encoder must follow the codebook.
#
# ## FSQ: squash and round
#
# Take a vector of few coordinates. Squash each into a range, round it to one of $L_j$ levels, and call the combination a code. With
# $z, y, k, q$ of shape $(\dots, d)$ and one level count $L_j$ per coordinate,
#
# $$\begin{gathered} y_j = h_j \tanh z_j, \qquad k_j = \mathrm{round}(y_j), \\ q_j = k_j \,/\, \lfloor L_j / 2 \rfloor, \qquad h_j = (L_j - 1)/2 \end{gathered}$$
#
# Numbers small enough to read: levels $(5, 3)$, so that the first coordinate rounds to $-2 \dots 2$ and the second to $-1 \dots 1$.

# %%
z = torch.tensor([[-2.0, 0.1], [0.1, 0.0], [0.6, -0.9], [3.0, 2.0]])
y = torch.tanh(z) * torch.tensor([2.0, 1.0])
k = y.round()
q = k / torch.tensor([2.0, 1.0])
print("      z             y          k         q")
for row in zip(z, y, k, q):
    print("  ".join(f"{a:5.2f} {b:5.2f}" for a, b in row[:2]), end="   ")
    print(f"{row[2][0]:2.0f} {row[2][1]:2.0f}   {row[3][0]:4.1f} {row[3][1]:4.1f}")

# %% [markdown]
# Which token is that? Counted from the lowest level, $k$ becomes digits, the first below 5 and the second below 3: a number in *mixed
# radix*, like hours, minutes and seconds. The first digit is worth 1, the second 5, the next one would be worth 15.

# %%
digits = k.long() + torch.tensor([2, 1])
place = torch.tensor([1, 5])
index = (digits * place).sum(-1)
back = index[:, None] // place % torch.tensor([5, 3])
for d, i in zip(digits.tolist(), index.tolist()):
    print(f"{d[0]} + 5 · {d[1]} = {i}")
assert torch.equal(back, digits)

grid = FSQ((5, 3))
their_q, their_index, loss = grid(z)
assert torch.equal(their_q, q) and torch.equal(their_index, index)
assert torch.equal(grid.codes(index), q) and loss == 0

# %% mystnb={"figure": {"caption": "All 15 codes of levels (5, 3), at their places, with their numbers. The four vectors of the example landed on the amber ones.", "name": "fig-1-02-radix"}, "image": {"alt": "A grid of five by three dots numbered 0 to 14, row by row from the bottom left. Four are amber."}} tags=["hide-input"]
codes = grid.codes(torch.arange(15))
ax = viz.new_axes(4.6, 2.2)
hit = torch.isin(torch.arange(15), index)
ax.scatter(*codes[~hit].T, s=420, color=viz.SKY)
ax.scatter(*codes[hit].T, s=420, color=viz.AMBER)
for i, (a, b) in enumerate(codes.tolist()):
    ax.text(a, b, str(i), ha="center", va="center", fontsize=9)
ax.set(xlabel="first coordinate: worth 1", ylabel="second: worth 5", xlim=(-1.25, 1.25))
ax.set(ylim=(-1.5, 1.5), xticks=(-1, -0.5, 0, 0.5, 1), yticks=(-1, 0, 1))
ax.grid(False);

# %% [markdown]
# That is the whole codebook. It is never stored: `codes` computes the vector from the number when it is asked.
#
# **The gradient.** A staircase has slope zero, so the encoder would learn nothing. The old trick again: use the staircase forwards and
# the smooth curve backwards. Written as $k + (y - \mathrm{sg}(y))$ the value is *exactly* $k$, because the bracket is zero, and the
# derivative is that of $y$.

# %%
z = torch.linspace(-3, 3, 601)[:, None].requires_grad_()
five = FSQ((5,))
stairs = five(z)[0]
[slope] = torch.autograd.grad(stairs.sum(), z)
assert len(stairs.unique()) == 5
assert torch.allclose(slope, 1.001 * (1 - torch.tanh(z) ** 2), atol=1e-5)

# %% mystnb={"figure": {"caption": "What the decoder sees (blue) and what the encoder believes (amber). The encoder gets the slope of the amber curve.", "name": "fig-1-02-stairs"}, "image": {"alt": "A staircase of five levels and the smooth tanh curve running through it."}} tags=["hide-input"]
x = z.detach().squeeze()
steps, smooth = stairs.detach().squeeze(), five.bound(x[:, None]).squeeze() / 2
ax = viz.curves({"rounded": (x, steps), "smooth": (x, smooth)}, "q", "z")
ax.figure.set_size_inches(5.2, 2.6);

# %% [markdown]
# (The package's range is wider by a thousandth, hence the 1.001: so $y$ can get past the last level. It also takes an even number of
# levels, whose grid has no middle and is moved by half a step.)
#
# **A trap.** The number of a code is a whole number and must be computed as one. Floating numbers count in whole steps only up to $2^{24}$
# in float32, and up to 256 in bfloat16, the usual format on a GPU. What if the sum over digits runs in the format of the latents?

# %%
def in_floats(quantizer, dtype, n=10_000):
    """Share of random codes whose number comes out wrong when it is summed in `dtype`."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(quantizer.vocab_size, (n,), generator=generator)
    digits = drawn[:, None] // quantizer.place_values % quantizer.levels
    floats = (digits.to(dtype) * quantizer.place_values.to(dtype)).sum(-1).long()
    ours = quantizer.indices(quantizer.codes(drawn).to(dtype))  # the sum in integers
    return (floats != drawn).double().mean().item(), (ours != drawn).double().mean().item()


print(f"{'levels':>18} {'codes':>13}   format     wrong in floats   in integers")
for levels, dtype in (
    ((5,) * 4, torch.bfloat16),
    ((17,) * 4, torch.bfloat16),
    ((17,) * 4, torch.float32),
    ((8,) * 10, torch.float32),
):
    quantizer = FSQ(levels)
    wrong, right = in_floats(quantizer, dtype)
    size = f"{levels[0]}^{len(levels)}"
    print(f"{size:>18} {quantizer.vocab_size:13,}   {str(dtype)[6:]:9s}", end="")
    print(f"{wrong:16.1%} {right:13.0%}")
    assert right == 0
assert in_floats(FSQ((5,) * 4), torch.bfloat16)[0] > 0.2

# %% [markdown]
# No error is raised anywhere; a generator would be trained on wrong tokens. And ten coordinates of eight levels name a billion codes that
# no memory could hold, yet every number finds its way back.
#
# ## Does the encoder follow?
#
# Train one, live, on the handwritten digits: 4 × 4 cells, three coordinates of five levels, 125 codes. No k-means, no averages, no
# revival, and no loss beside the picture's error.

# %%
digits_seen, held_out = (data.load("digits", split).images for split in ("train", "validation"))
rows = {}


def learn(name, build, steps=100):
    """Train for seconds; note dB on held-out digits, and the codes of the training digits."""
    torch.manual_seed(0)
    model = build()
    recipes.fit_vq(model, recipes.digits, steps=steps, batch_size=64)
    with torch.inference_mode():
        tokens = model.encode(digits_seen)  # (1437, 16)
        shown = model.decode(model.encode(held_out)).clamp(-1, 1)
    quality = psnr(shown, held_out).mean().item()
    rows[name] = (model, tokens, quality)
    used = codebook_usage(tokens, model.vocab_size)
    diverse = perplexity(tokens, model.vocab_size)
    count = round(used * model.vocab_size)
    print(f"{name:20s} {quality:5.1f} dB   {count:5,} of {model.vocab_size:6,} codes", end="")
    print(f" used, as diverse as {diverse:.0f} equally frequent ones")
    return model


small = dict(widths=(16, 32))  # a tenth of the usual network: seconds, not minutes
fsq = learn("FSQ 5 × 5 × 5", lambda: FSQTokenizer(levels=(5, 5, 5), **small))
assert codebook_usage(rows["FSQ 5 × 5 × 5"][1], 125) > 0.85

# %% mystnb={"figure": {"caption": "Held-out digits, and what 16 numbers below 125 keep of them after three seconds of training.", "name": "fig-1-02-digits"}, "image": {"alt": "Two rows of ten handwritten digits: the originals, and slightly blurred but legible reconstructions."}} tags=["hide-input"]
with torch.inference_mode():
    shown = fsq.decode(fsq.encode(held_out[:10])).clamp(-1, 1)
viz.image_grid(torch.cat([held_out[:10], shown]), row_labels=["real", "from 16 codes"]);

# %% [markdown]
# It follows. Nearly all codes are in use, and there was nothing to tend: a code cannot die when it is only a place in a grid. But "used"
# is not "used equally". Why does the grid not come out flat?
#
# ## iFSQ: one line
#
# Suppose that the latents of a coordinate are normal, as sums of many things tend to be. Rounding uses all levels alike if the *squashed*
# value is uniform on $(-1, 1)$. For that, the squashing must be the normal's own distribution function. The tanh is not, and there is
# one line to change:
#
# $$\text{FSQ:}\quad \tanh z = 2\sigma(2z) - 1 \qquad\qquad \text{iFSQ:}\quad 2\sigma(1.6\, z) - 1$$
#
# In the package it really is one line, the slope:

# %%
print(inspect.getsource(IFSQ).split("def __init__")[0].rstrip())
a = torch.linspace(-5, 5, 1001)
assert torch.allclose(torch.tanh(a), 2 * torch.sigmoid(2 * a) - 1, atol=1e-6)

# %% [markdown]
# Everything about a normal can be computed without drawing one. The density of $y$ is the normal's density over the slope of the
# squashing; the share of a level is the normal's mass between two borders. How wide are the levels, though? There are two ways to round
# $L$ levels out of $(-1, 1)$, and they are not the same:
#
# * **endpoint** (FSQ, and iFSQ as released): the outermost levels sit at $\pm 1$. They can be approached from one side only, so their bins
#   are **half as wide**;
# * **equal**: the range is cut into $L$ bins of one width, and codes sit in their middles.

# %%
def shares(slope, L, bins):
    """Mass of a standard normal in each of L levels, (L,), after 2σ(slope z) − 1."""
    half = (L - 1) / 2 if bins == "endpoint" else L / 2
    border = (torch.arange(1, L, dtype=torch.float64) - L / 2) / half  # (L - 1,), in (-1, 1)
    z = torch.log((1 + border) / (1 - border)) / slope  # undo the squashing
    mass = torch.special.ndtr(z)
    return torch.cat([mass, torch.ones(1)]) - torch.cat([torch.zeros(1), mass])


def gap(slope, L, bins):
    """Bits that the entropy of one level lacks to log2(L)."""
    p = shares(slope, L, bins)
    return math.log2(L) - torch.special.entr(p).sum().item() / math.log(2)


z = torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
for quantizer, slope in ((FSQ, 2.0), (IFSQ, 1.6)):
    for bins in ("endpoint", "equal"):
        drawn = quantizer((17,), bins)(z)[1].bincount(minlength=17) / len(z)
        assert torch.allclose(drawn.double(), shares(slope, 17, bins), atol=3e-3)

# %% mystnb={"figure": {"caption": "Left: the squashed normal; uniform would be the dotted line. Middle and right: how often each of 17 levels is used. With equal bins the use follows the density; endpoint bins halve both outer levels.", "name": "fig-1-02-histogram"}, "image": {"alt": "Three panels. Densities: tanh makes two humps near the ends, iFSQ is nearly flat. Use with equal bins: FSQ has two humps, iFSQ is flat except for somewhat lower ends. Use with endpoint bins: the humps of FSQ are cut, and the two outer levels of iFSQ nearly vanish."}} tags=["hide-input"]
y = torch.linspace(-0.999, 0.999, 800)
figure, axes = plt.subplots(1, 3, figsize=(10, 2.7))
for name, slope, colour in (("FSQ", 2.0, viz.AMBER), ("iFSQ", 1.6, viz.BLUE)):
    latent = torch.log((1 + y) / (1 - y)) / slope
    normal = torch.exp(-(latent**2) / 2) / math.sqrt(2 * math.pi)
    axes[0].plot(y, normal * 2 / (slope * (1 - y**2)), color=colour, label=name)
    for ax, bins in zip(axes[1:], ("equal", "endpoint")):
        ax.stairs(shares(slope, 17, bins), torch.arange(18) + 0.5, color=colour, lw=1.8)
axes[0].axhline(0.5, color=viz.INK, ls=":", lw=1)
axes[0].set(title="density of the squashed normal", xlabel="y", ylim=(0, 0.85))
axes[0].legend(loc="lower center")
for ax, bins in zip(axes[1:], ("equal", "endpoint")):
    ax.axhline(1 / 17, color=viz.INK, ls=":", lw=1)
    ax.set(title=f"{bins} bins: share of a level", xlabel="level", ylim=(0, 0.09))
    ax.set(xticks=(1, 5, 9, 13, 17), xlim=(0, 18));

# %%
print("bits that a level lacks to log2 L, on a standard normal")
print(f"{'L':>4}   {'':12s}{'FSQ':>8}{'iFSQ':>8}{'ratio':>8}")
for L in (5, 9, 17):
    for bins in ("equal", "endpoint"):
        plain, changed = gap(2.0, L, bins), gap(1.6, L, bins)
        print(f"{L:4d}   {bins:12s}{plain:8.4f}{changed:8.4f}{changed / plain:8.2f}")
        assert changed <= 0.4 * plain if bins == "equal" else changed > 2 * plain

# %% [markdown]
# With equal bins the one line removes two thirds of the gap at 17 levels and nearly all of it at five. **With the released rounding it
# makes the gap larger.** The reason is in the right-hand picture. A uniform value reaches a bin of half the width half as often. The tanh
# happens to pile mass up near the ends, just where the narrow bins are, and so makes up for them. Turn the slope and watch the two
# roundings disagree about which one is best:

# %% mystnb={"figure": {"caption": "The entropy gap of 17 levels against the slope of the squashing. Equal bins want about 1.7, close to iFSQ. Endpoint bins want exactly the tanh.", "name": "fig-1-02-slope"}, "image": {"alt": "Two curves of entropy gap against slope. The one for equal bins has its minimum near 1.7, between iFSQ at 1.6 and FSQ at 2. The one for endpoint bins lies higher and has its minimum at 2."}} tags=["hide-input"]
slopes = torch.linspace(1.4, 2.6, 61).tolist()
kinds = ("equal", "endpoint")
curves = {f"{bins} bins": (slopes, [gap(s, 17, bins) for s in slopes]) for bins in kinds}
ax = viz.curves(curves, "bits lacking to log2 17", "slope")
for slope, name in ((1.6, "iFSQ"), (2.0, "FSQ")):
    ax.axvline(slope, color=viz.GREY, lw=1, ls=":")
    ax.text(slope, 0.125, f" {name}", color=viz.INK)
ax.set(ylim=(0, 0.2))
ax.figure.set_size_inches(5.8, 2.8)

# %%
print("best slope, and the gap there, against that of the tanh")
for L in (5, 9, 17):
    for bins in ("equal", "endpoint"):
        best = min(slopes, key=lambda slope: gap(slope, L, bins))
        lowest, plain = gap(best, L, bins), gap(2.0, L, bins)
        print(f"{L:4d}   {bins:10s}{best:6.2f}{lowest:9.4f}{plain:9.4f}")
        assert 1.6 <= best <= 1.75 if bins == "equal" else 1.95 <= best <= 2.35

# %% [markdown]
# With 17 levels, the number that iFSQ recommends, and endpoint bins, the best slope of the whole family is 2. There the tanh needs no
# correction at all. So the one-line change is two: the slope *and* the bins. In the package `IFSQ` takes equal bins by default and says so.

# %% [markdown]
# ## LFQ: a sign is enough
#
# Go to the extreme: two levels per coordinate, the sign. Then $b$ coordinates are $b$ bits, and 18 of them name 262,144 codes, the
# vocabulary of MAGVIT-v2. The codes are the corners of a cube, and the nearest corner is read off:
#
# $$q = \mathrm{sign}(z) \in \{-1, 1\}^b, \qquad \mathrm{index} = \sum_{j=0}^{b-1} [z_j > 0]\; 2^{\,b-1-j}$$

# %%
z = torch.tensor([[1.2, -0.3, 0.8], [-2.0, 0.1, 0.4]])
bits = (z > 0).long()
index = (bits * torch.tensor([4, 2, 1])).sum(-1)
print([f"{''.join(map(str, b))} = {i}" for b, i in zip(bits.tolist(), index.tolist())])
assert torch.equal(LFQ(3)(z)[1], index)

# %% [markdown]
# Let the digits try it: 8 bits a cell, with the usual commitment term $w_c\, |z - q|^2$, $w_c = 1/4$, which keeps $z$ near its corner.

# %%
lfq = learn("LFQ", lambda: LFQTokenizer(bits=8, entropy_weight=0.0, **small))

# %% [markdown]
# Nearly nine in ten codes are never used. In FSQ a neighbouring level is a small step away. Here the only neighbour is across zero, and the
# commitment pulls every vector back into the corner in which it began. Hold it ten times more loosely:

# %%
loose = dict(bits=8, commitment_weight=0.025, **small)
learn("LFQ, held loosely", lambda: LFQTokenizer(entropy_weight=0.0, **loose))
used = {name: codebook_usage(rows[name][1], 256) for name in ("LFQ", "LFQ, held loosely")}
assert used["LFQ, held loosely"] > 2.5 * used["LFQ"]
assert rows["LFQ, held loosely"][2] > rows["LFQ"][2] + 0.7

# %% [markdown]
# Much better, in codes and in decibels. Still two in five codes are idle, and nothing in the loss speaks for them.
#
# So usage must be *asked for*. Make the choice of a code soft, with a sharpness $\tau$, so that it has a gradient:
#
# $$\begin{gathered} p(c \mid z) \propto e^{-\tau\, |z - c|^2}, \\ \text{loss} = w \Big( \underbrace{\mathbb{E}_z\, H(p(\cdot \mid z))}_{\text{each sample: certain}} - \gamma\, \underbrace{H(\mathbb{E}_z\, p(\cdot \mid z))}_{\text{all together: diverse}} \Big) \end{gathered}$$
#
# Both at once is what a good code does: every sample knows its code, and all codes get their turn.

# %%
for name, weight in (("gently", 0.01), ("hard", 0.1)):
    learn(f"LFQ, asked {name}", lambda: LFQTokenizer(entropy_weight=weight, **loose))
asked = codebook_usage(rows["LFQ, asked hard"][1], 256)
assert asked > max(1.3 * used["LFQ, held loosely"], 3 * used["LFQ"])
assert rows["LFQ, asked gently"][2] > rows["LFQ, asked hard"][2] + 0.1

# %% [markdown]
# Asking works, and it has a price. Asked hard ($w = 0.1$), the encoder uses nine codes in ten and paints *worse* than asked gently
# ($w = 0.01$). The entropies are of size $\ln 256$, and the picture's error is far smaller. An encoder that hashes its cells evenly over all
# codes may please such a loss more than one that describes them.
#
# ## An entropy that visits no code
#
# The loss sums over all $2^b$ codes, for each of $N$ vectors. At 18 bits and 16,384 vectors that is four billion numbers. None of them
# is needed, because a cube has so much structure. Two identities, both exact.
#
# **First: bits are independent, given $z$.** In $|z - c|^2 = |z|^2 - 2 z \cdot c + b$ only $z \cdot c = \sum_j z_j c_j$ depends on the code,
# so $p$ is a product over coordinates, and each factor is a logistic function. The entropy of independent bits is the sum of their
# entropies, each $H_2(p) = -p \ln p - (1 - p) \ln (1 - p)$:
#
# $$\begin{gathered} p(c \mid z) = \prod_{j=1}^{b} \sigma(4 \tau z_j c_j) \\ \Longrightarrow\quad H(p(\cdot \mid z)) = \sum_{j=1}^{b} H_2(\sigma(4 \tau z_j)) \end{gathered}$$

# %%
tau = 0.5
z = torch.tensor([[1.2, -0.3, 0.8]], dtype=torch.float64)
cube = LFQ(3).codes(torch.arange(8)).double()  # (8, 3)
softmax = (-tau * (z - cube).square().sum(-1)).softmax(-1)  # over all codes
on = torch.sigmoid(4 * tau * z)  # (1, 3): each bit is 1 with this probability
product = torch.where(cube > 0, on, 1 - on).prod(-1)
print("code      " + "   ".join(f"{i:03b}" for i in range(8)))
print("softmax  ", *(f"{p:.3f}" for p in softmax))
print("product  ", *(f"{p:.3f}" for p in product))
assert torch.allclose(softmax, product, rtol=0, atol=1e-14)

# %% [markdown]
# **Second: the mean is a matrix product.** The mean over $n$ of products is not a product, so this one does not split into bits. But cut
# the bits into a first half and a second half. Within a sample the halves are independent: $p_n(a, c) = A_{na}\, C_{nc}$, with $A$ and
# $C$ of shape $(N, 2^{b/2})$. Hence
#
# $$\frac1N \sum_n p_n(a, c) = \frac1N \sum_n A_{na} C_{nc} = \frac1N (A^{\mathsf T} C)_{ac}$$
#
# The whole distribution, all $2^b$ numbers of it, is one product of two thin matrices. Here with 6 bits, against enumeration:

# %%
N, b = 200, 6
u = torch.randn(N, b, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
u[:, 3] = u[:, 0] + 0.3 * u[:, 3]  # two bits that know of each other
half = LFQ(3).codes(torch.arange(8)).double()  # (8, 3): the corners of half the bits
A = (2 * tau * u[:, :3] @ half.T).softmax(-1)  # (N, 8)
C = (2 * tau * u[:, 3:] @ half.T).softmax(-1)  # (N, 8)
mean = A.T @ C / N  # (8, 8)

whole = LFQ(6).codes(torch.arange(64)).double()
p = (2 * tau * u @ whole.T).softmax(-1)  # (N, 64): what we want to avoid
assert torch.allclose(mean.flatten(), p.mean(0), rtol=0, atol=1e-14)
assert torch.allclose(mean_distribution(4 * tau * u), p.mean(0), rtol=0, atol=1e-14)

# %% mystnb={"figure": {"caption": "The first 24 rows of A and C, and the mean distribution of all 64 codes, laid out as first half against second half. The first bit of each half is tied to that of the other, so two of the four blocks are pale.", "name": "fig-1-02-halves"}, "image": {"alt": "Two tall heat maps with eight columns, and a square one of eight by eight whose upper left and lower right quarters are darker than the other two."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(7.6, 3.1), width_ratios=(1, 1, 2.4))
for ax, matrix, title in zip(axes, (A[:24], C[:24], mean), ("A", "C", "AᵀC / N")):
    shown = ax.imshow(matrix, cmap=viz.SEQUENTIAL, vmin=0, aspect="auto")
    ax.set(title=title, xticks=(0, 7), yticks=())
    ax.grid(False)
axes[0].set(ylabel="samples", xlabel="first half")
axes[1].set(xlabel="second half")
axes[2].set(xlabel="second half", ylabel="first half", yticks=(0, 7))
figure.colorbar(shown, ax=axes[2], label="mean probability");

# %% [markdown]
# Both entropies and their gradients, ours against enumeration, at 10 bits in double precision; then the time, and the size of the
# largest table that each way forms:

# %%
def enumerate_codes(quantizer, u):
    """Both entropies by forming p(c | z) for every vector and code, (N, 2^b)."""
    codes = quantizer.codes(torch.arange(quantizer.vocab_size)).to(u.dtype)
    p = (2 * quantizer.sharpness * u @ codes.T).softmax(-1)
    return torch.special.entr(p).sum(-1).mean(), torch.special.entr(p.mean(0)).sum()


ten = LFQ(10, sharpness=tau)
u = torch.randn(300, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
u.requires_grad_()
for name, ours, slow in zip(("each", "mean"), ten.entropies(u), enumerate_codes(ten, u)):
    [gradient] = torch.autograd.grad(ours, u, retain_graph=True)
    [expected] = torch.autograd.grad(slow, u, retain_graph=True)
    difference = abs(ours - slow).item()
    print(f"H of {name}: {ours.item():.6f} nats, difference {difference:.0e}", end="")
    print(f", of gradients {(gradient - expected).abs().max().item():.0e}")
    assert abs(ours - slow) < 1e-12 and torch.allclose(gradient, expected, atol=1e-12)

# %% tags=["nbval-ignore-output"]
u = torch.randn(16_384, 10, generator=torch.Generator().manual_seed(3))
seconds = {}
for name, way in (("enumerated", enumerate_codes), ("factorised", LFQ.entropies)):
    started = time.thread_time()
    leaf = u.clone().requires_grad_()
    each, mean = way(ten, leaf)
    (each - mean).backward()
    seconds[name] = time.thread_time() - started
for name, numbers in (("enumerated", 16_384 * 1024), ("factorised", 2 * 16_384 * 32)):
    print(f"{name}: {numbers:10,} numbers, {1000 * seconds[name]:6.0f} ms")
assert seconds["enumerated"] > 4 * seconds["factorised"]

# %% [markdown]
# At 16 bits two matrices of 256 columns give all 65,536 means. Beyond that even the result grows too large, and one gives up exactness:
# split the bits into groups and add the groups' entropies. The sum is an *upper bound* on the entropy, tight if the groups are independent.
# A bound of the wrong side is still useful, since maximising it makes every group diverse. But it cannot see that two groups say the same:

# %%
same = torch.randn(2000, 4, generator=torch.Generator().manual_seed(4)).double().repeat(1, 2)
exact = LFQ(8, sharpness=10.0).entropies(same)[1].item() / math.log(2)
bound = LFQ(8, sharpness=10.0, group=4).entropies(same)[1].item() / math.log(2)
print(f"8 bits, of which the last four copy the first: {exact:.2f} bits")
print(f"as two groups of four: {bound:.2f}")
assert bound > 1.5 * exact

# %% [markdown]
# ## BSQ: the same on a sphere
#
# LFQ rounds a vector that may be anywhere, so its error has no limit. Scale the vector to length one first, and take the corners of the
# cube whose corners touch the sphere:
#
# $$\begin{gathered} u = z / |z|, \qquad q = \mathrm{sign}(u)/\sqrt b, \\ |u - q|^2 = 2 - \frac{2}{\sqrt b}\,|u|_1 \;\le\; 2 - \frac{2}{\sqrt b} \end{gathered}$$
#
# For a vector of length one, $|u|_1$ is at least 1, and it is 1 only on an axis: hence the bound. It is reached by nobody. In many
# dimensions a typical vector is nearly as long in every coordinate, and the error gathers around $2 - 2\sqrt{2/\pi} \approx 0.40$.

# %%
errors = {}
for b in (2, 9, 36):
    z = torch.randn(20_000, b, generator=torch.Generator().manual_seed(b))
    u, q = F.normalize(z, dim=-1), BSQ(b)(z)[0]
    errors[b] = (u - q).square().sum(-1)
    limit = 2 - 2 / math.sqrt(b)
    assert torch.allclose(errors[b], 2 - 2 / math.sqrt(b) * u.abs().sum(-1), atol=1e-5)
    loosest = (z - z.sign()).square().sum(-1).max()
    print(f"{b:2d} bits: mean {errors[b].mean():.2f}, largest {errors[b].max():.2f}", end="")
    print(f", bound {limit:.2f}; LFQ's largest {loosest:.0f}")
    assert errors[b].max() <= limit + 1e-5

# %% mystnb={"figure": {"caption": "Squared error of rounding random directions. Dashed: the bound for that number of bits.", "name": "fig-1-02-bound"}, "image": {"alt": "Three histograms of the squared error. With 2 bits it is spread from 0 to the bound 0.59; with 36 bits it is a narrow peak near 0.4, far below its bound of 1.67."}} tags=["hide-input"]
ax = viz.new_axes(5.8, 2.6)
for (b, error), colour in zip(errors.items(), (viz.SKY, viz.AMBER, viz.BLUE)):
    look = dict(histtype="stepfilled", alpha=0.75, color=colour, label=f"{b} bits")
    ax.hist(error, bins=60, density=True, **look)
    limit, turned = 2 - 2 / math.sqrt(b), dict(rotation=90, va="top", ha="right", fontsize=8)
    ax.axvline(limit, color=colour, ls="--")
    ax.text(limit - 0.01, 5.7, f"bound, {b} bits", **turned)
ax.set(xlabel="squared error |u − q|²", ylabel="density", xlim=(0, 1.75), ylim=(0, 6))
ax.legend(loc="upper left", bbox_to_anchor=(0.4, 1));

# %% [markdown]
# The sphere does something else. On it no coordinate can grow without shrinking the others, so a vector is never deep inside a corner. Ask
# for nothing, hold it as tightly as the first LFQ, and see which codes are used:

# %%
bsq = learn("BSQ", lambda: BSQTokenizer(bits=8, entropy_weight=0.0, **small))
assert codebook_usage(rows["BSQ"][1], 256) > 2.5 * used["LFQ"]
assert rows["BSQ"][2] > rows["LFQ"][2] + 1

# %% [markdown]
# No weight had to be found. Now the other two at 8 bits, a learned codebook and a grid, for the same hundred steps:

# %%
learn("VQ", lambda: VQTokenizer(codebook_size=256, **small))
learn("FSQ 4^4", lambda: FSQTokenizer(levels=(4, 4, 4, 4), **small))
equal = ("VQ", "FSQ 4^4", "BSQ", "LFQ, asked gently", "LFQ")
print("\n8 bits a cell         entropy     dB")
for name in equal:
    _, tokens, quality = rows[name]
    print(f"{name:20s} {math.log2(perplexity(tokens, 256)):8.2f} {quality:6.1f}")
assert rows["VQ"][2] > rows["BSQ"][2] + 0.5
assert rows["FSQ 4^4"][2] > rows["LFQ, asked gently"][2] + 0.5

# %% [markdown]
# The learned codebook leads, the grid is half a decibel behind, and the signs follow. That is no wonder: eight coordinates of two levels and
# four of four are both 8 bits, but a vector rounded to two levels is rounded coarsely in every direction.

# %% mystnb={"figure": {"caption": "Share of the tokens that go to the most frequent code, the second, and so on, of 256; equal use would be the dotted line.", "name": "fig-1-02-rank"}, "image": {"alt": "Five falling curves of frequency against rank, on logarithmic axes. LFQ ends before rank 40. The others go on to between 150 and 256; that of VQ is the flattest."}} tags=["hide-input"]
ax = viz.new_axes(6.4, 3.2)
for name in equal:
    counts = rows[name][1].unique(return_counts=True)[1].sort(descending=True).values
    ax.plot(range(1, len(counts) + 1), counts / counts.sum(), lw=1.8, label=name)
ax.axhline(1 / 256, color=viz.INK, ls=":", lw=1)
ax.set(xlabel="rank of the code", ylabel="share of tokens", xscale="log", yscale="log")
ax.legend(loc="lower left");

# %% [markdown]
# ## A grid against a garden
#
# A hundred steps on digits are a sketch. Now the real comparison: coloured scenes, 8 × 8 cells, and 625 codes a cell, or 512 where a power
# of two is needed. The same encoder and decoder, the same 3,000 steps (recipes `shapes_vq`, `shapes_fsq`, `shapes_ifsq`, `shapes_lfq`,
# `shapes_bsq`); only the middle differs. All of them measured on the thousand scenes of the validation split:

# %%
scenes = data.load("shapes", "validation", version="scene").images  # (1000, 3, 32, 32)
names = {"vq": "VQ", "fsq": "FSQ", "ifsq": "iFSQ", "lfq": "LFQ", "bsq": "BSQ"}
models = {name: checkpoints.load(f"shapes_{key}") for key, name in names.items()}
written, painted, results = {}, {}, {}
with torch.inference_mode():
    for name, model in models.items():
        tokens = torch.cat([model.encode(part) for part in scenes.split(125)])  # (1000, 64)
        written[name] = tokens
        shown = torch.cat([model.decode(part) for part in tokens.split(125)])
        painted[name] = shown.clamp(-1, 1)
        stored = sum(v.numel() for k, v in model.state_dict().items() if k.endswith("codebook"))
        results[name] = (
            psnr(painted[name], scenes).mean().item(),
            codebook_usage(tokens, model.vocab_size),
            math.log2(perplexity(tokens, model.vocab_size)),
            stored,
        )

print("        codes   bits  entropy    used      dB   numbers in the codebook")
for name, (dB, used, entropy, stored) in results.items():
    size = models[name].vocab_size
    print(f"{name:6s} {size:6d} {math.log2(size):6.2f} {entropy:8.2f}", end="")
    print(f" {used:7.1%} {dB:7.2f} {stored:10,}")
dB = {name: row[0] for name, row in results.items()}
entropy = {name: row[2] for name, row in results.items()}
assert min(results[name][1] for name in ("VQ", "FSQ", "iFSQ")) > 0.97
assert results["FSQ"][3] == results["iFSQ"][3] == 0 < results["VQ"][3]
assert 0.5 < dB["VQ"] - dB["FSQ"] < 1.3 and abs(dB["iFSQ"] - dB["FSQ"]) < 0.3

# %% mystnb={"figure": {"caption": "Ten validation scenes, and what each tokenizer paints from 64 codes. Look at small shapes and slanted edges in the rows of LFQ and BSQ.", "name": "fig-1-02-scenes"}, "image": {"alt": "Six rows of ten colourful scenes with small shapes: real, VQ, FSQ, iFSQ, LFQ and BSQ. VQ, FSQ and iFSQ look like the originals. LFQ and BSQ do at first sight; the points of small stars are rounder and edges a little ragged."}} tags=["hide-input"]
chosen = [scenes[:10], *(images[:10] for images in painted.values())]
labels = ["real", *(f"{name}, {value:.1f} dB" for name, value in dB.items())]
viz.image_grid(torch.cat(chosen), row_labels=labels);

# %% [markdown]
# **The surprise:** a grid that was drawn before the first image was seen, and that holds no number at all, comes within one decibel of a
# codebook that was learned, averaged and weeded for 3,000 steps. By eye the two rows are hard to tell apart.
#
# **The disappointment:** we had asked for half a decibel, and it is nearly twice that. The width of the bins is not the reason: FSQ has
# endpoint bins here, iFSQ equal ones, and they differ by almost nothing. Nor do codes lie idle: practically all are in use. But look at the
# column beside it. *Used* is not *used equally*, and the entropy of the learned codebook is higher. Where does the grid lose it? Most of
# a scene is background. Call a cell flat if its 4 × 4 pixels hardly differ, and count the levels of each coordinate:

# %%
patches = F.unfold(scenes, 4, stride=4).mT.unflatten(-1, (3, 16))  # (1000, 64 cells, 3, 16)
flat = patches.std(-1).amax(-1) < 0.02  # (1000, 64)
print(f"{flat.double().mean():.0%} of the cells are flat")
print("bits of entropy   flat cells   the others")
for name in ("VQ", "FSQ", "iFSQ"):
    bits = [math.log2(perplexity(written[name][cells], 625)) for cells in (flat, ~flat)]
    print(f"{name:15s} {bits[0]:12.2f} {bits[1]:12.2f}")

# %% mystnb={"figure": {"caption": "How often FSQ uses each of the five levels, in each of its four coordinates. Dotted: equal use. The flat cells crowd on two levels of the fourth.", "name": "fig-1-02-levels"}, "image": {"alt": "Four charts with five stacked bars each, flat cells below, others above. Three coordinates make a hill around the middle. In the fourth the lowest level has almost half of all tokens, the next almost a third, and nearly all flat cells are in these two."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 4, figsize=(10, 2.5), sharey=True)
for j, ax in enumerate(axes):
    level = written["FSQ"] // 5**j % 5
    part = [level[cells].bincount(minlength=5) / level.numel() for cells in (flat, ~flat)]
    ax.bar(range(-2, 3), part[0], color=viz.SKY, label="flat cells")
    ax.bar(range(-2, 3), part[1], bottom=part[0], color=viz.BLUE, label="others")
    ax.axhline(0.2, color=viz.INK, ls=":", lw=1)
    ax.set(title=f"coordinate {j + 1}", xlabel="level", xticks=(-2, -1, 0, 1, 2))
axes[0].set(ylabel="share of tokens")
axes[0].legend(loc="upper left");

# %% [markdown]
# Where the data is crowded, k-means puts more codes. A grid cannot: its levels are where they are, and the encoder would have to stretch
# the crowd over several of them. The loss does not ask it to. Nor are these coordinates normal, and so the promise of iFSQ (*if* they are
# normal, all levels are used alike) has nothing to hold on to.
#
# How many decibels is that? A rule of thumb: halving the step of a quantizer costs one bit per coordinate and buys
# $20 \log_{10} 2 = 6.02$ dB. So a grid of four coordinates that wastes $\Delta H$ bits a cell should lose $6.02\, \Delta H / 4$ dB.

# %%
print("against VQ      bits a cell   rule of thumb    measured")
for name in ("FSQ", "iFSQ"):
    lacks, loses = entropy["VQ"] - entropy[name], dB["VQ"] - dB[name]
    print(f"{name:14s} {-lacks:12.2f} {-6.02 * lacks / 4:12.2f} dB {-loses:8.2f} dB")
    assert lacks > 0.4 and abs(6.02 * lacks / 4 - loses) < 0.5

# %% [markdown]
# The rule accounts for the gap, about as well as a rule of thumb can. (It is no proof: the codes of VQ live in eight dimensions.)
#
# **And the signs?** They come last, though every one of their 512 codes is in use. LFQ and BSQ have a weight on the entropies and one on the
# commitment. How much do they ask, beside the picture's error?

# %%
print("        picture's error   asked by the quantizer   entropy      dB")
asked = {}
with torch.inference_mode():
    for name in ("LFQ", "BSQ"):
        error = (painted[name] - scenes).square().mean().item()
        asked[name] = models[name].quantizer(models[name].latents(scenes[:250]))[2].item()
        print(f"{name:8s} {error:14.4f} {asked[name]:24.4f} {entropy[name]:9.2f} {dB[name]:7.2f}")
assert asked["LFQ"] < -0.02 and abs(asked["BSQ"]) < 0.002
assert entropy["LFQ"] > entropy["FSQ"] + 0.3 and dB["FSQ"] > dB["BSQ"] + 1 > dB["LFQ"] + 1.5

# %% [markdown]
# LFQ is asked for ten times more than the picture is worth, and does what it is told. It has the entropy of the learned codebook, more than
# any grid, and paints three decibels worse than FSQ. **Full use of a codebook is a means, not an end.** What counts is what the codes say;
# and a cell rounded to two levels in each of nine directions says it coarsely.
#
# On the sphere the entropies ask gently. There $|u_j|$ is about $1/\sqrt b$, each bit stays undecided, the two entropies nearly cancel, and
# the picture has its say: less entropy than LFQ, and a better picture.
#
# The weights had to be found ($w = 0.01$ for LFQ, $0.001$ for BSQ, $w_c = 0.01$, by short runs). With the customary $w = 0.1$ and
# $w_c = 1/4$, which suit larger errors than ours, LFQ loses even the colours of the backgrounds. FSQ has no weight to find.
#
# ## How far can a vocabulary grow?
#
# Nothing in FSQ or LFQ becomes slower with the number of codes, and nothing has to be stored. Searching a table does, and must:

# %% tags=["nbval-ignore-output"]
def milliseconds(job):
    started = time.thread_time()
    job()
    return 1000 * (time.thread_time() - started)


z = torch.randn(2048, 8, generator=torch.Generator().manual_seed(5))
print("2,048 vectors to tokens, in ms:   search a table   round (FSQ)   sign (LFQ)")
for bits in (8, 10, 12, 14):
    table = torch.randn(2**bits, 8)
    levels = (2 ** (bits // 2),) * 2
    grid, cube = FSQ(levels), LFQ(8)
    jobs = (lambda: nearest(z, table), lambda: grid.nearest(z[:, :2]), lambda: cube.nearest(z))
    search, rounding, sign = (min(milliseconds(job) for _ in range(3)) for job in jobs)
    print(f"{2**bits:30,} {search:18.1f} {rounding:13.1f} {sign:12.1f}")

# %% [markdown]
# So why not take 83,521 codes, the $17^4$ of iFSQ? Let the digits say:

# %%
for levels in ((5,) * 4, (9,) * 4, (17,) * 4):
    name = f"FSQ {levels[0]}^{len(levels)}"
    learn(name, lambda: FSQTokenizer(levels=levels, **small))
grown = {name: row for name, row in rows.items() if name.startswith("FSQ")}
print(f"\n{len(digits_seen) * 16:,} training tokens     bits     dB   codes met   of them once")
once = {}
for name, (model, tokens, quality) in grown.items():
    counts = tokens.flatten().unique(return_counts=True)[1]
    once[name] = (counts == 1).double().mean().item()
    bits = math.log2(model.vocab_size)
    print(f"{name:24s} {bits:8.1f} {quality:6.1f} {len(counts):11,} {once[name]:14.0%}")
assert grown["FSQ 17^4"][2] > grown["FSQ 5^4"][2] + 0.5 and once["FSQ 17^4"] > 0.3

# %% [markdown]
# The picture gets better with every bit, and the vocabulary worse. At $17^4$ most codes never occur, and of those that do, nearly half
# occur *once* in the whole training set. What could a generator learn about a word that it met once? And it must have an output for every
# word. Count the weights of its last layer, for a transformer 256 wide:

# %%
print("codes                one head      two heads, one for each half of the bits or digits")
for name, codes in (("625 = 5^4", 625), ("83,521 = 17^4", 17**4), ("262,144 = 2^18", 2**18)):
    half = round(codes**0.5)
    print(f"{name:15s} {256 * codes:13,} {2 * 256 * half:14,}")

# %% [markdown]
# The second column is the way out, and another gift of codes that are computed: such a token *has* parts. A generator can predict the
# two halves of its digits at once (ELM), or the second given the first (iFSQ). A learned table offers no such thing: its numbers are only
# names. The cost has moved from the tokenizer to the generator, where Part 2 will meet it.
#
# ## Exercise 1: read a number (★, 5 minutes)
#
# Turn the number of an FSQ code into its digits.

# %% tags=["exercise"]
def read_digits(index, levels):
    """The digits of a code's number, a list, first coordinate first: it counts least."""
    return None  # your code

# %% tags=["exercise-check"]
answer = read_digits(37, [5, 3, 4])
if answer is None:
    print("Hint: 37 = d0 + 5 (d1 + 3 d2). What is left over when 37 is divided by 5?")
else:
    answer = [int(digit) for digit in answer]
    wrong = "3 · 12 + 0 · 4 + 1 = 37 counts the *last* coordinate least; here it is the first"
    assert answer != [3, 0, 1], wrong
    assert answer == [2, 1, 2], f"37 = 2 + 1 · 5 + 2 · 15, so [2, 1, 2]; got {answer}"
    middle = torch.tensor([2, 1, 2])
    last = FSQ((5, 3, 4)).codes(torch.tensor([59]))[0] * middle + middle
    assert list(read_digits(59, [5, 3, 4])) == last.tolist(), "59 has the highest digits"
    print("Right: the remainder is a digit, the quotient goes on.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `divmod(index, levels[0])` gives the rest of the number, and the first digit.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def read_digits(index, levels):
#     digits = []
#     for level in levels:
#         index, digit = divmod(index, level)
#         digits.append(digit)
#     return digits
# ```
#
# </details>
# <details><summary>Wrong: the most significant digit first</summary>
#
# It reads the number as we read decimal numbers, with the last coordinate in the place of ones.
#
# ```python
# def read_digits(index, levels):
#     digits = []
#     for level in reversed(levels):
#         index, digit = divmod(index, level)
#         digits.append(digit)
#     return digits[::-1]
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: a perfect squashing (★★, 10 minutes)
#
# Let $y$ be exactly uniform on $(-1, 1)$: no squashing could do better. With equal bins every level is used alike. How many bits does a
# level lack to $\log_2 L$ with *endpoint* bins?

# %% tags=["exercise"]
def lost(L):
    """Bits lost to log2(L) when a uniform y is rounded to L levels, the outer half as wide."""
    return None  # your code

# %% tags=["exercise-check"]
answer = lost(17)
if answer is None:
    print("Hint: L - 2 bins have width one and two have one half. What are their shares?")
else:
    wrong = "log2(17 / 16) would be right for 16 equal bins, but the outer ones are two halves"
    assert abs(answer - math.log2(17 / 16)) > 1e-3, wrong
    assert abs(answer - 0.02496) < 1e-4, f"expected 0.0250 bits at 17 levels, got {answer:.4f}"
    assert abs(lost(3) - (math.log2(3) - 1.5)) < 1e-9, "three levels: shares 1/4, 1/2, 1/4"
    print("Right: 0.025 bits at 17 levels, as much as the tanh lacks with equal bins.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# The widths are $\tfrac12, 1, \dots, 1, \tfrac12$, together $L - 1$. Each outer level has the share $1 / (2 (L - 1))$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def lost(L):
#     inner, outer = 1 / (L - 1), 1 / (2 * (L - 1))
#     entropy = -(L - 2) * inner * math.log2(inner) - 2 * outer * math.log2(outer)
#     return math.log2(L) - entropy
# ```
#
# </details>
# <details><summary>Wrong: joins the two half bins to one</summary>
#
# The two outer bins together are as wide as one inner bin, but they are two levels, and which of them was hit is one more bit.
#
# ```python
# def lost(L):
#     return math.log2(L) - math.log2(L - 1)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: how sure is a token? (★★, 10 minutes)
#
# Give the entropy of one LFQ token without visiting its codes.

# %% tags=["exercise"]
def token_entropy(z, sharpness):
    """Nats of entropy of p(c | z), a softmax of -sharpness |z - c|^2 over corners; z (b,)."""
    return None  # your code

# %% tags=["exercise-check"]
z_ = torch.tensor([0.3, -0.1, 0.7], dtype=torch.float64)
answer = token_entropy(z_, 0.5)
if answer is None:
    print("Hint: bit j is 1 with probability sigmoid(4 * sharpness * z_j), independently.")
else:
    corners_ = LFQ(3).codes(torch.arange(8)).double()
    p_ = (-0.5 * (z_ - corners_).square().sum(-1)).softmax(-1)
    truth = torch.special.entr(p_).sum().item()
    on_ = torch.sigmoid(2 * 0.5 * z_)
    soft = (torch.special.entr(on_) + torch.special.entr(1 - on_)).sum().item()
    wrong = "the corners are 2 apart: |z + 1|^2 - |z - 1|^2 = 4 z, not 2 z"
    assert abs(float(answer) - soft) > 1e-6, wrong
    assert abs(float(answer) - truth) < 1e-9, f"expected {truth:.4f} nats, got {answer:.4f}"
    print("Right: three terms instead of eight; at 18 bits, 18 instead of 262,144.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `torch.special.entr(p)` is $-p \ln p$. A bit has two of them.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def token_entropy(z, sharpness):
#     on = torch.sigmoid(4 * sharpness * z)
#     return (torch.special.entr(on) + torch.special.entr(1 - on)).sum()
# ```
#
# </details>
# <details><summary>Wrong: half the distance between the corners</summary>
#
# The two values of a bit are −1 and 1. Their squared distances to $z_j$ differ by $4 z_j$.
#
# ```python
# def token_entropy(z, sharpness):
#     on = torch.sigmoid(2 * sharpness * z)
#     return (torch.special.entr(on) + torch.special.entr(1 - on)).sum()
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * FSQ: squash, round, read the levels as a number. Nothing is learned, stored or searched, and no code can die. A grid cannot follow a
#   crowd, though: with 625 codes it is about one decibel behind a learned codebook.
# * The number of a code is an integer. Sums in bfloat16 give wrong tokens without a word.
# * iFSQ: a slope makes normal latents nearly uniform. It pays with bins of equal width; with the released rounding it costs. The latents
#   of our scenes were not normal, and nothing was gained.
# * LFQ: a sign is a bit, and usage must be asked for, not too hard. The entropy over $2^b$ codes needs $b$ terms for one sample, one matrix
#   product for the mean.
# * BSQ: on a sphere the error is bounded, and codes are used without being asked.
#
# ## Where this stands
#
# FSQ is due to Mentzer et al. ([2309.15505](https://arxiv.org/abs/2309.15505)); LFQ to Yu et al., in MAGVIT-v2
# ([2310.05737](https://arxiv.org/abs/2310.05737)); BSQ to Zhao et al. ([2406.07548](https://arxiv.org/abs/2406.07548)), who also use
# that the entropy of one sample factorises. iFSQ is [2601.17124](https://arxiv.org/abs/2601.17124). Predicting a large token in parts:
# MAGVIT-v2, iFSQ, and ELM ([2410.16257](https://arxiv.org/abs/2410.16257)). The reference implementation against which ours are tested is
# the library `vector-quantize-pytorch`. Next: [residual and multi-scale quantization](03_residual_and_multiscale.ipynb), where a cell gets several small
# tokens instead of one large.
