# %% [markdown]
# # Pixels as tokens: how good is a model of images?
#
# | | |
# | --- | --- |
# | **You will build** | an exact likelihood, a compressor that proves it, six models ranked by it, the four knobs of sampling, and a classifier that nobody trained |
# | **Time** | under a minute on a laptop, without a GPU |
# | **You need** | the tour; logarithms and conditional probability |
# | **Of the five nouns** | tokenizer (the trivial one), model (what its numbers mean), sampler (its knobs) |
# | **Systems** | pixels as tokens (PixelRNN, Image GPT), raster GPT (LlamaGen) |
#
# Most models of images are judged by other networks, or by eye. An autoregressive model can be judged by itself: it gives every picture a
# probability, exactly. After this chapter you know what that number means down to the last bit, how to compare models with it without
# cheating (there are three popular ways to cheat), what the knobs of sampling do to it, and what it does *not* tell.

# %% tags=["exercise-setup"]
import bz2
import lzma
import math
import zlib
from bisect import bisect_right
from itertools import accumulate

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch.distributions import Normal

from minimal import checkpoints, data, recipes, viz
from minimal.ar.histogram import Histogram
from minimal.ar.raster import RasterGPT
from minimal.data.augment import random_shift
from minimal.metrics import bits_per_dim, label_accuracy
from minimal.samplers.cached import sample_cached
from minimal.samplers.logits import filter_logits, inverse_cdf, probabilities
from minimal.statistics import all_sequences, mean_interval, total_variation

viz.style()
torch.set_num_threads(1)


def seed(number):
    return torch.Generator().manual_seed(number)


# %% [markdown]
# ## The question
#
# Here are the samples of three models, and real digits. Put the four rows in order.

# %%
train, validation = data.load("digits"), data.load("digits", "validation")
tokenizer = recipes.pixel_tokenizer(train)
tokens, labels = tokenizer.encode(validation.images), validation.labels  # (180, 64), (180,)
learn = tokenizer.encode(train.images)  # (1437, 64)
assert torch.equal(tokenizer.decode(tokens), validation.images)  # a token is a grey level

counts = Histogram(learn, 17, train.labels, num_classes=10)
ar = checkpoints.load("digits_ar")  # made by the recipe of that name
digits = torch.arange(10)

# %% mystnb={"figure": {"caption": "Four rows of ten digits. Which of them are real, and how much better is one model than another?", "name": "fig-0-03-question"}, "image": {"alt": "Four rows of ten digits of 8 by 8 pixels. Two rows look like handwriting, one like digits seen through snow, one like grey clouds."}} tags=["hide-input"]
noise, empty = torch.rand(10, 64, generator=seed(0)), torch.zeros(10, 64, dtype=torch.long)
real = torch.stack([validation.images[labels == c][1] for c in range(10)])
rows = [
    tokenizer.decode(inverse_cdf(counts.logits(empty, digits).exp(), noise)),
    tokenizer.decode(sample_cached(ar, 10, cond=digits, generator=seed(7)).tokens),
    real,
    tokenizer.decode(inverse_cdf(counts.logits(empty).exp(), noise)),
]
viz.image_grid(torch.cat(rows), row_labels=list("ABCD"));

# %% [markdown]
# From best to worst: C is real, B a transformer, A draws every pixel from its own histogram for that class, D from its own histogram. But *how
# much* better is B than A? Would you notice if B were a tenth better still? Eyes give no number, and at the end of this chapter they will be
# deceived in both directions. We want one number that nobody can argue with.
#
# ## A probability for every picture
#
# A picture is a row of $N = 64$ tokens $x_j \in \{0, \dots, 16\}$, its grey levels in reading order. The chain rule holds for *any* distribution:
#
# $$p(x \mid c) = \prod_{j=0}^{N-1} p(x_j \mid x_0, \dots, x_{j-1}, c)$$
#
# A network that gives, for each $j$, 17 numbers that sum to one therefore defines a distribution over all $17^{64}$ pictures. Nothing needs
# to be normalised: sum over the last pixel first, that gives 1; then over the one before; and so on. On a model with 3 pixels and 3 levels we
# can look at all $3^3 = 27$ pictures. Its weights are random, which makes no difference:

# %% tags=["exercise-setup"]
torch.manual_seed(34)
tiny = RasterGPT(vocab_size=3, length=3, dim=16, layers=1, heads=2).eval()
torch.nn.init.normal_(tiny.head.weight, std=0.4)  # zeros in the package: all equal
pictures = all_sequences(3, 3)  # (27, 3)
with torch.no_grad():
    logp = tiny.logits(pictures).log_softmax(-1)  # (27, 3 pixels, 3 levels)
    logp = logp.gather(-1, pictures[..., None])[..., 0].double()  # (27, 3): of what came
chance = logp.sum(1).exp()  # (27,)

# %%
with torch.no_grad():
    assert torch.allclose(tiny.logprob(pictures).exp().double(), chance)
print(f"{len(pictures)} pictures, from {chance.min():.4f} to {chance.max():.4f} likely")
print(f"together {chance.sum():.6f}")
assert abs(chance.sum() - 1) < 1e-6

# %% mystnb={"figure": {"caption": "The line from 0 to 1, divided by the first pixel, then by the second, then by the third. Each of the 27 pictures owns an interval as wide as it is probable. No gaps, no overlaps.", "name": "fig-0-03-intervals"}, "image": {"alt": "Three bars above each other, each from 0 to 1, cut into 3, 9 and 27 pieces of black, grey and white. The pieces of a lower bar are cuts of the pieces above. The interval of one picture is marked in amber."}} tags=["hide-input"]
def intervals(ax, marked):
    for j in range(3):
        prefixes = all_sequences(3, j + 1)
        width = logp[:: 3 ** (2 - j), : j + 1].sum(1).exp()
        start = width.cumsum(0) - width
        shade = [("#15181d", "#8a919c", "#f4f5f7")[v] for v in prefixes[:, -1]]
        ax.barh(2 - j, width, 0.82, start, color=shade, edgecolor=viz.BLUE, lw=0.7)
        r = marked // 3 ** (2 - j)
        box = dict(facecolor="none", edgecolor=viz.AMBER, lw=2.4, zorder=3)
        ax.barh(2 - j, width[r], 0.82, start[r], **box)
    ax.set_yticks(range(3), ("third pixel", "second", "first"))
    ax.set_xlim(-0.003, 1.003)
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return start[marked].item(), width[marked].item()


marked = 11  # the picture 1, 0, 2
figure, axes = plt.subplots(figsize=(8.6, 2.1))
start, width = intervals(axes, marked)
name = ", ".join("black grey white".split()[v] for v in pictures[marked])
axes.set_title(f"marked: {name}, the interval from {start:.4f} to {start + width:.4f}");

# %% [markdown]
# The picture is the proof: each row tiles the line, so the 27 widths sum to one.
#
# ## A probability is a length
#
# The same picture shows what a probability is *good for*. To tell a friend which of the 27 pictures we mean, it is enough to name a number
# inside its interval; she has the same model, draws the same bars and looks where the number falls. Wide intervals contain short numbers. In binary,
# an interval of width $p$ always contains a number with at most $\lceil -\log_2 p \rceil + 1$ digits whose every continuation also lies inside, so
# that the next message can follow without a comma:
#
# $$\text{length}(x) < -\log_2 p(x) + 2 \quad \text{bits}$$
#
# One bit is one coin flip. This is **arithmetic coding**, and it makes likelihood concrete: *a model that gives a picture probability* $p$ *can
# write it down in* $-\log_2 p$ *bits.* Let us not believe this but do it, with whole numbers only, so that nothing is ever rounded. A forecast becomes
# 17 whole numbers that sum to $2^{24}$; an interval is then a pair of whole numbers `low` and `width`, counted in units of $2^{-24 n}$ after $n$ symbols.

# %% tags=["exercise-setup"]
PRECISION = 24


def whole(logits):
    """Forecasts (B, V) as whole numbers of at least 1 that sum to 2^24 in every row."""
    p = logits.double().softmax(-1)
    share = (p * (2**PRECISION - p.shape[-1])).floor().long() + 1
    rest = 2**PRECISION - share.sum(-1, keepdim=True)
    return share.scatter_add(-1, p.argmax(-1, keepdim=True), rest)


def slots(share, symbols):
    """Start and size of the slot of each symbol (B,) in its row of `share` (B, V)."""
    size = share.gather(-1, symbols[:, None])
    start = share.cumsum(-1).gather(-1, symbols[:, None]) - size
    return torch.cat((start, size), -1).tolist()


def write(slots):
    """All slots -> one whole number `code` of `length` binary digits."""
    low, width = 0, 1
    for start, size in slots:  # cut the old interval into 2^24 parts, keep `size`
        low, width = (low << PRECISION) + width * start, width * size
    spare = width.bit_length() - 2  # digits that need not be sent: 2 · 2^spare <= width
    return (low >> spare) + 1, PRECISION * len(slots) - spare


class Reader:
    """Gives back one symbol after the other, if asked with the same forecasts."""

    def __init__(self, code, length, symbols):
        self.left = PRECISION * symbols
        self.rest, self.width = code << self.left - length, 1

    def read(self, share):
        self.left -= PRECISION
        unit, ends = self.width << self.left, list(accumulate(share))
        symbol = bisect_right(ends, self.rest // unit)  # whose slot does the number fall into?
        self.rest -= unit * (ends[symbol] - share[symbol])
        self.width *= share[symbol]
        return symbol


# %% [markdown]
# Twenty lines, and Python's whole numbers grow as long as they must. Try it on the marked picture: one forecast for each of its pixels.

# %%
with torch.no_grad():
    share = whole(tiny.logits(pictures[marked : marked + 1])[0])  # (3 pixels, 3 levels)
code, length = write(slots(share, pictures[marked]))
number = code / 2**length
print(f"0.{code:0{length}b} in binary is {number:.6f}: {length} digits, the interval needs")
print(f"-log2 {width:.4f} = {-math.log2(width):.2f}")
reader = Reader(code, length, 3)
assert [reader.read(row) for row in share.tolist()] == pictures[marked].tolist()
assert start < number < number + 2**-length < start + width
assert length < -math.log2(width) + 2

# %% [markdown]
# Now the real thing: all 180 validation images and their labels in *one* number. Labels first, ten equal slots each; then pixel 0 of every image, then
# pixel 1, and so on. Writer and reader run the same loop over the same network. The reader fills in each pixel just in time for the next forecast,
# which is the sampling loop of the tour with a message in place of the dice.

# %%
@torch.no_grad()
def forecasts(canvas, labels):
    """Shares (B, 17) for pixels 0 .. 63 of the canvas (B, 64), each made before it is read."""
    cache = ar.new_cache(len(canvas))
    for j in range(64):
        yield j, whole(ar.logits(canvas[:, : j + 1], labels, cache=cache)[:, -1])


ten = whole(torch.zeros(len(labels), 10))
message = slots(ten, labels)
for j, share in forecasts(tokens, labels):
    message += slots(share, tokens[:, j])
code, length = write(message)

reader = Reader(code, length, len(message))
read_labels = torch.tensor([reader.read(row) for row in ten.tolist()])
canvas = torch.zeros_like(tokens)
for j, share in forecasts(canvas, read_labels):
    canvas[:, j] = torch.tensor([reader.read(row) for row in share.tolist()])
assert torch.equal(canvas, tokens) and torch.equal(read_labels, labels)

# %%
with torch.no_grad():
    ideal = -ar.logprob(tokens, labels).double().sum().item() / math.log(2)
    ideal += len(labels) * math.log2(10)
raw = bytes(tokens.flatten().tolist())
packers = {"zlib": zlib.compress(raw, 9), "lzma": lzma.compress(raw), "bz2": bz2.compress(raw)}
size = {"a byte per pixel": len(raw), "17 equal slots": 64 * len(tokens) * math.log2(17) / 8}
size |= {name: len(packed) for name, packed in packers.items()}
size |= {"our number, with labels": math.ceil(length / 8)}
for name, count in size.items():
    print(f"{name:25s}{count:7.0f} bytes{8 * count / tokens.numel():7.2f} bits per pixel")
print(f"\n-log2 p of labels and pixels: {ideal:.1f} bits")
print(f"digits of the number:         {length}")
assert abs(length - ideal) < 3
assert size["our number, with labels"] < 0.75 * min(len(packed) for packed in packers.values())

# %% [markdown]
# Twelve thousand symbols came back without an error, and the whole message is at most two bits longer than the sum of all the $-\log_2 p$. So
# when we say "1.7 bits per pixel" from now on, that is a file size. (One thing is not in the file: the network. Its 0.45 million weights
# take 0.9 MB, hundreds of such files. We do not count them, and keep the comparison honest in another way: the images are not those it
# learned from. A file that fits only one computer is another matter: writer and reader must compute the same floats to the last digit.)
#
# ## One number, and three ways to cheat
#
# Divide by the number of pixels (and channels), and models of small and large images can stand in one table:
#
# $$\text{bits per dimension} = -\frac{1}{N} \log_2 p(x)$$
#
# A uniform model pays $\log_2 17 = 4.09$. Before we fill the table, here is how *not* to fill it.
#
# **Cheat 1: a density instead of a probability.** Gaussians, flows and diffusion models have densities. A density can be as large as you like where
# the data lie on a grid. Fit a Gaussian to the levels, with a floor under its variances:

# %%
def gaussian_nats(x, mean, covariance):
    """-log density (B,) of x (B, 64)."""
    gap = x - mean
    quadratic = (gap @ torch.linalg.inv(covariance) * gap).sum(1)
    return (torch.logdet(2 * math.pi * covariance) + quadratic) / 2


levels, mean = learn.double(), learn.double().mean(0)
covariance, eye = torch.cov(levels.T), torch.eye(64, dtype=torch.float64)
for floor in (1 / 12, 1e-4, 1e-10, 1e-20, 1e-40):
    nats = gaussian_nats(tokens.double(), mean, covariance + floor * eye).mean().item()
    print(f"variances at least {floor:.0e}: {bits_per_dim(nats, 64):6.2f} “bits” per pixel")
assert nats < 0
constant = int((covariance.diagonal() == 0).sum())
print(f"{constant} of 64 pixels never change")

# %% [markdown]
# The smaller the floor, the better the "model": it passes the transformer and ends below zero, which no file can. Four pixels are black in every
# training image, and a density may be as high as it likes there. The cure is three lines. Let token $t$ own the unit cell $[t, t + 1)^N$ and give it
# the mass that the density $f$ has in there; that *is* a probability. By Jensen's inequality, with $u$ uniform in the unit cell,
#
# $$-\log_2 \int f(t + u) \, du \;\le\; \mathbb{E}_u \left[ -\log_2 f(t + u) \right],$$
#
# so the mean density of the data with uniform noise added (**dequantisation**) gives an upper bound on a true code length (Theis et al. 2015). For a
# Gaussian with precision $\Lambda$ the mean over $u$ is known: it adds $\operatorname{tr} \Lambda / 24$ nats to the value at the middle of the cell. We keep the $k$
# first principal components and one variance for all the rest (a PCA-Gaussian), and choose $k$ on validation.

# %%
middle = mean + 0.5
variance, axis = torch.linalg.eigh(covariance + eye / 12)  # uniform noise has variance 1/12
variance, axis = variance.flip(0), axis.flip(1)  # the largest first


def pca_gaussian(x, k):
    """Upper bound on the bits (B,) of x (B, 64) from k principal components."""
    kept = torch.where(torch.arange(64) < k, variance, variance[k:].sum() / max(64 - k, 1))
    nats = gaussian_nats(x + 0.5, middle, axis * kept @ axis.T) + (1 / kept).sum() / 24
    return nats / math.log(2)


drawn = tokens[0] + torch.rand(4000, 64, generator=seed(0))  # one image with noise, 4,000 times
drawn = gaussian_nats(drawn.double(), middle, axis * variance @ axis.T) / math.log(2)
formula = pca_gaussian(tokens[:1], 64).item()
assert abs(drawn.mean() - formula) < 5 * drawn.std() / 4000**0.5

ranks = (0, 10, 20, 30, 40, 50, 60, 64)
by_rank = {k: pca_gaussian(tokens, k).mean().item() / 64 for k in ranks}
rank = min(by_rank, key=by_rank.get)
print("rank", ", ".join(f"{k}: {value:.2f}" for k, value in by_rank.items()))

# %% [markdown]
# Nearly three bits, where a *histogram per pixel*, which knows nothing of any neighbour, pays 2.42. Is dequantisation to blame, or the Gaussian? Here
# is the same linear knowledge as an autoregressive model: forecast pixel $j$ from those before by least squares, put a Gaussian around the forecast, and
# let each level own a bin of width one. Then no bound is needed. And the outer bins may reach to infinity, since nothing is blacker than black:

# %%
def fit_linear(learn):
    """For each pixel: weights (j + 1,) of 1 and the pixels before it, and the spread."""
    fitted = []
    for j in range(64):
        before = F.pad(learn[:, :j].double(), (1, 0), value=1.0)  # (1437, j + 1)
        gram = before.T @ before + 10 * torch.eye(j + 1)
        weights = torch.linalg.solve(gram, before.T @ learn[:, j].double())
        spread = ((learn[:, j] - before @ weights).square().mean() + 1e-4).sqrt()
        fitted.append((weights, spread))
    return fitted


def bins(fitted, before, tails=True):
    """Probabilities (B, 17) of the next pixel after `before` (B, j)."""
    weights, spread = fitted[before.shape[1]]
    forecast = F.pad(before.double(), (1, 0), value=1.0) @ weights
    edges = torch.arange(18) - 0.5
    if tails:
        edges[0], edges[-1] = -math.inf, math.inf
    mass = Normal(forecast[:, None], spread).cdf(edges).diff(dim=-1)
    return (1 - 17e-4) * mass + 1e-4  # a pinch of uniform: never zero


def linear_bits(fitted, x, tails=True):
    """Bits (B, 64) of every pixel of x (B, 64)."""
    mass = [bins(fitted, x[:, :j], tails).gather(1, x[:, j : j + 1]) for j in range(64)]
    return -torch.cat(mass, 1).log2()


fitted = fit_linear(learn)
with_tails, without = linear_bits(fitted, tokens), linear_bits(fitted, tokens, tails=False)
assert torch.allclose(bins(fitted, tokens[:, :30]).sum(-1), torch.ones(180).double())
print(f"dequantised Gaussian, rank {rank}:             {by_rank[rank]:.2f}")
print(f"linear forecasts, bins of width one:       {without.mean():.2f}")
print(f"linear forecasts, outer bins without end:  {with_tails.mean():.2f}")
assert by_rank[rank] - with_tails.mean() > 0.5 and without.mean() - with_tails.mean() > 0.4

# %% [markdown]
# The Gaussian was innocent, and so was the bound. What cost 0.7 bits were the *ends of the scale*: half of all pixels are black, and a density leaks mass to
# levels below black that do not exist. Remember this number when you meet the next table. How a model treats the grid can be worth more
# than what it knows, and two rows are comparable only if both are probabilities of the *same integers*.
#
# **Cheat 2: a label for free.** Our transformer is told which digit comes. A file would have to say so as well. Two fair ways: ask the network without
# a label (it has a null class), or send the label first, $\log_2 10$ bits. The second can be had a little cheaper, since different labels
# may lead to the same picture. Sum over them:
#
# $$p(x) = \sum_{c=0}^{9} p(c) \, p(x \mid c), \qquad p(c) = \tfrac{1}{10}$$

# %%
@torch.no_grad()
def read(tokens):
    """log p(x_j | x_before, c) in nats, (B, 64, 10), for all ten classes."""
    logp = []
    for c in range(10):
        given = ar.logits(tokens, torch.full((len(tokens),), c)).log_softmax(-1)
        logp.append(given.gather(-1, tokens[..., None])[..., 0])
    return torch.stack(logp, -1)


def without_label(logp):
    """Bits (B,) of an image from its log p(x | c), (B, 10)."""
    return (math.log(10) - logp.logsumexp(-1)) / math.log(2)


logp = read(tokens)  # (180, 64, 10)
image = torch.arange(len(tokens))
given = -logp[image, :, labels] / math.log(2)  # (180, 64) bits of each pixel, label given
with torch.no_grad():
    null = -ar.logprob(tokens) / math.log(2)
by_class = [counts.logprob(tokens, torch.full_like(labels, c)) for c in range(10)]
by_class = torch.stack(by_class, 1)  # (180, 10)
bits = {
    "uniform": torch.full((180,), 64 * math.log2(17)),
    f"PCA-Gaussian, rank {rank} (bound)": pca_gaussian(tokens, rank),
    "counts per pixel": -counts.logprob(tokens) / math.log(2),
    "linear, Gaussian bins": with_tails.sum(1),
    "counts per pixel and class": without_label(by_class),
    "transformer, null class": null,
    "transformer, sum over classes": without_label(logp.sum(1)),
    "… the label for free": given.sum(1),
}
bits = {name: value.double() / 64 for name, value in bits.items()}
bpd = {name: mean_interval(value) for name, value in bits.items()}

# %% mystnb={"figure": {"caption": "Bits per pixel of 180 validation images; whiskers are 95 % confidence intervals over images. The last bar did not pay for the label.", "name": "fig-0-03-table"}, "image": {"alt": "Bars from 4.09 bits for the uniform model down to about 1.75 for the transformer; the Gaussian is worse than counting."}} tags=["hide-input"]
reach = {name: float(value.high - value.mean) for name, value in bpd.items()}
viz.bars({name: value.mean for name, value in bpd.items()}, reach, fmt="{:.2f}");

# %%
for name, value in bpd.items():
    print(f"{name:34s}{value.mean:6.3f} ± {reach[name]:.3f} bits per pixel")
order = list(bpd)
fair = [bpd[name].mean for name in order]
assert fair[0] > fair[1] > fair[2] > fair[3] > fair[5] > fair[6]
assert bpd["transformer, sum over classes"].mean < 1.80

# %% [markdown]
# The same network, the same images, and a surprise in the last three rows. The label is worth 0.14 bits per pixel compared to the null class. But it
# costs only $\log_2 10 / 64 = 0.05$. So it *pays* to send it: the sum over ten labels beats the network's own opinion of what an unlabelled digit
# looks like. Probabilities can be combined into better ones; scores cannot.
#
# **Cheat 3: report what you chose by.** These are validation images, and they were used to stop the training of the shipped checkpoint. Its header
# holds the measurement on test images, made once:

# %%
shipped = checkpoints.header("digits_ar")["metrics"]
for split in ("validation", "test"):
    value, error = (shipped[f"{split}_{key}"] for key in ("bits_per_dim", "standard_error"))
    print(f"{split:11s}{value:.3f} ± {1.97 * error:.3f} with labels")
assert abs(shipped["validation_bits_per_dim"] - given.mean()) < 0.005

# %% [markdown]
# Is a difference real? Images differ much more than models do: some are simply hard, for all models. So compare *per image* and put the interval
# around the mean difference. As an example take a change that the table above could not resolve: divide all logits by a number $T$. We choose it on
# the even images and report on the odd ones, or it would be cheat 3.

# %%
with torch.no_grad():
    logits = ar.logits(tokens, labels)  # (180, 64, 17)


def tempered(T):
    """Bits per pixel (180,) of the images, labels given, when all logits are divided by T."""
    forecast = (logits / T).log_softmax(-1).gather(-1, tokens[..., None])
    return -forecast.sum((1, 2)).double() / 64 / math.log(2)


def half(interval):
    return float(interval.high - interval.mean)


tries = {T: tempered(T) for T in (0.6, 0.8, 0.9, 1.0, 1.05, 1.1, 1.15, 1.2, 1.3, 1.5, 2.0)}
T = min(tries, key=lambda T: tries[T][::2].mean())  # chosen on 90 images
before, after = tries[1.0][1::2], tries[T][1::2]  # reported on the other 90
paired = mean_interval(before - after)
for name, interval in {"T = 1": mean_interval(before), f"T = {T}": mean_interval(after)}.items():
    print(f"{name:20s}{interval.mean:.3f} ± {half(interval):.3f}")
print(f"{'difference, paired':20s}{paired.mean:.4f} ± {half(paired):.4f}")
assert 1 < T < 1.4 and half(paired) < half(mean_interval(before)) / 3 and paired.low > 0

# %% [markdown]
# Two intervals that overlap almost entirely, and yet the second model is better: the paired interval stays clear of zero. (The network is a little
# too sure of itself on images that it has not seen. We will come back to this temperature.)
#
# ## What surprises it
#
# The bits of an image are a sum over pixels. So we can see *where* they are spent. Here are the validation images that cost least and most:

# %% mystnb={"figure": {"caption": "The five cheapest and the five dearest of 180 images, and what each pixel cost. The cheap ones are all ones: little ink, little to tell. The dear ones have strokes where nobody expects them.", "name": "fig-0-03-surprise"}, "image": {"alt": "Ten digits and below each a heat map of surprise in bits. The cheap ones are slim ones and plain digits with faint maps; the dear ones have odd shapes and bright spots in their maps."}} tags=["hide-input"]
ranked = given.sum(1).argsort()
chosen = torch.cat((ranked[:5], ranked[-5:]))
figure, axes = plt.subplots(2, 10, figsize=(8.8, 2.2))
for k, i in enumerate(chosen.tolist()):
    viz.image_grid(validation.images[i : i + 1], ncol=1, ax=axes[0, k])
    axes[0, k].set_title(f"{labels[i]}: {given[i].sum():.0f} bits", loc="center", fontsize=7.5)
    shown = axes[1, k].imshow(given[i].view(8, 8), cmap="magma", vmin=0, vmax=8)
    viz.bare(axes[1, k])
figure.colorbar(shown, ax=axes.ravel().tolist(), label="bits", extend="max", aspect=14);

# %% mystnb={"figure": {"caption": "Mean bits of each pixel (mind the third scale). Counting already knows the margins. Context saves most below and to the right, where most has been read.", "name": "fig-0-03-where"}, "image": {"alt": "Three heat maps of 8 by 8 pixels: bits by counting, bits by the transformer, and what context saves. Margins are dark in all; the transformer's map is darker everywhere inside. Savings are smallest in the top row and largest at the lower right."}} tags=["hide-input"]
counted = -counts.logits(tokens, labels).gather(-1, tokens[..., None])[..., 0] / math.log(2)
panels = {
    "counts per pixel and class": counted.mean(0),
    "transformer": given.mean(0),
    "saved by context": (counted - given).mean(0),
}
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.4))
for ax, (name, value) in zip(axes, panels.items()):
    top = 1.2 if name == "saved by context" else 4
    shown = ax.imshow(value.view(8, 8), cmap="magma", vmin=0, vmax=top)
    ax.set_title(name)
    viz.bare(ax)
    if name != "counts per pixel and class":
        figure.colorbar(shown, ax=ax, label="bits");

# %%
by_row = {name: value.view(8, 8).mean(1) for name, value in panels.items()}
print("row of pixels             ", "".join(f"{r:6d}" for r in range(1, 9)))
for name, value in by_row.items():
    print(f"{name:26s}", "".join(f"{v:6.2f}" for v in value))
assert by_row["saved by context"][1:].min() > by_row["saved by context"][0]

# %% [markdown]
# In the top row there is hardly any context, and the transformer saves a fifth of a bit. Then strokes have begun, and what begins must go on: further
# down it saves half a bit and more. Remember the cheapest five, too. They are not the *best* digits, they are those with the least to tell.
#
# ## Does the order matter?
#
# We read like a book. The chain rule does not care: it holds for columns, too, and for pixels in a shuffled order. Every order gives an exact
# likelihood. Does every order give the *same*? We ask the linear model, and a small transformer (one layer of width 32) that is trained live for 160
# steps. It knows where each pixel that it has read lies on the grid. A second version is also told, by one learned vector per step, *which pixel comes
# next*. In reading order that is no secret, but in a shuffled one?

# %%
class Told(RasterGPT):
    """A RasterGPT whose input j also says that pixel j of the order is asked."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.asked = torch.nn.Embedding(self.length, self.embedding.embedding_dim)
        torch.nn.init.normal_(self.asked.weight, std=0.02)

    def forward(self, inputs, cache=None):
        rotation, mask = self.places(inputs.shape[1], cache)
        x = self.embedding(inputs) + self.asked.weight[: inputs.shape[1]]
        for layer, block in enumerate(self.blocks):
            x = block(x, rotation, mask, cache, layer)
        return self.head(self.norm(x))


def small_transformer(kind, order):
    """Bits per pixel after a short training on pixels in that order."""
    torch.manual_seed(0)
    model = kind(17, 64, 10, grid_width=8, **recipes.DRAFT)
    model.coordinates[1:65] = model.coordinates[1:65][order].clone()  # where pixels lie
    encode = lambda x: tokenizer.encode(x)[:, order]
    schedule = dict(steps=160, batch_size=32, lr=5e-3, warmup=0.1, progress=False)
    recipes.fit_tokens(model, encode, recipes.digits, **schedule)
    return recipes.bits(model, encode, validation, 64)["bits_per_dim"]


reading = torch.arange(64)
orders = {
    "rows": reading,
    "columns": reading.view(8, 8).T.flatten(),
    "shuffled": torch.randperm(64, generator=seed(0)),
}
by_order = {}
for name, order in orders.items():
    straight = linear_bits(fit_linear(learn[:, order]), tokens[:, order]).mean().item()
    both = [small_transformer(kind, order) for kind in (RasterGPT, Told)]
    by_order[name] = (straight, *both)

print("bits per pixel    linear   transformer   told what is next")
for name, row in by_order.items():
    print(f"{name:18s}" + "{:6.2f}{:14.2f}{:20.2f}".format(*row))
lines, plain, told = zip(*by_order.values())  # each: rows, columns, shuffled
assert max(lines) - min(lines) < 0.05
assert abs(plain[0] - plain[1]) < 0.25 and plain[2] > plain[0] + 0.3
assert told[2] < plain[2] - 0.2

# %% [markdown]
# The chain rule is indifferent, and so is a linear model: it has the same few pixels to lean on, whatever the order. Rows and columns are
# about equal for the network as well. A shuffled order is a disaster, worse than counting, and more than half of that disaster is *our* fault: the network
# had to find out for itself which pixel it was asked for. A single vector repairs that. What remains is what 160 steps do not
# learn: neighbours are no longer at a fixed distance in the sequence. So orders differ, but not in what is *possible*: only in what a given network learns in
# a given time. Part 2 is about choosing them well.

# %% [markdown]
# ## The four knobs
#
# From here on we draw. At every pixel the network leaves us 17 logits, and nobody forces us to draw from just those. Four ways to reshape them are in use
# everywhere. With $p = \operatorname{softmax}(\ell)$ the forecast for one pixel, $\ell$ of shape $(17,)$:
#
# | knob | rule | idea |
# | --- | --- | --- |
# | temperature $T$ | divide $\ell$ by $T$ | below 1 sharper, above 1 flatter, 0 always takes the best |
# | top-$k$ | keep the $k$ likeliest | at most $k$ choices, come what may |
# | top-$p$ (nucleus) | keep the fewest that together reach $p$ | many choices where many are plausible |
# | min-$p$ | keep what has at least the share $p$ of the best one's probability | the bar rises with the model's confidence |

# %%
def temperature(logits, T):
    return logits / T


def top_k(logits, k):
    return logits.masked_fill(logits < logits.topk(k).values[..., -1:], -math.inf)


def top_p(logits, p):
    ordered, place = logits.sort(descending=True)
    mass = ordered.softmax(-1)
    beyond = mass.cumsum(-1) - mass > p  # those *before* this one already reach p
    return logits.masked_fill(beyond.scatter(-1, place, beyond), -math.inf)


def min_p(logits, p):
    mass = logits.softmax(-1)
    return logits.masked_fill(mass < p * mass.amax(-1, keepdim=True), -math.inf)


row = logits[:20].flatten(0, 1)  # 1,280 real forecasts, against the package's version
assert torch.equal(temperature(row, 0.6), filter_logits(row, temperature=0.6))
assert torch.equal(top_k(row, 4), filter_logits(row, top_k=4))
assert torch.equal(top_p(row, 0.8), filter_logits(row, top_p=0.8))
assert torch.equal(min_p(row, 0.15), filter_logits(row, min_p=0.15))

# %% [markdown]
# Two real forecasts, for two pixels of one validation image: one where the model is nearly sure, and one where it has no idea.

# %% mystnb={"figure": {"caption": "The four knobs on a sure forecast (top) and an unsure one (bottom). The outline is the forecast before. Top-k treats both alike; top-p and min-p do not.", "name": "fig-0-03-knobs"}, "image": {"alt": "Two rows of five bar charts over 17 grey levels. Top row, a forecast with one high bar; bottom row, a broad one. Columns: as is, temperature, top-k, top-p, min-p, each with the number of levels kept."}} tags=["hide-input"]
knobs = {
    "as it is": dict(),
    "temperature 0.6": dict(temperature=0.6),
    "top-k, 4": dict(top_k=4),
    "top-p, 0.8": dict(top_p=0.8),
    "min-p, 0.15": dict(min_p=0.15),
}
entropy = torch.special.entr(logits[0].softmax(-1)).sum(-1)  # (64,)
unsure = int(entropy.argmax())
sure = int((logits[0].softmax(-1).amax(-1) - 0.7).abs().argmin())
figure, axes = plt.subplots(2, 5, figsize=(9, 3.4), sharex=True, sharey="row")
kept = {}
for r, j in enumerate((sure, unsure)):
    for ax, (name, knob) in zip(axes[r], knobs.items()):
        before, after = probabilities(logits[0, j]), probabilities(logits[0, j], **knob)
        kept[name, r] = int((after > 0).sum())
        ax.bar(range(17), after, color=viz.BLUE)
        ax.bar(range(17), before, fill=False, edgecolor=viz.AMBER, lw=0.8)
        ax.text(16, 0.9 * ax.get_ylim()[1], f"{kept[name, r]} kept", ha="right", fontsize=8)
        ax.set_xticks(range(0, 17, 8))
        if r == 0:
            ax.set_title(name)
for r, word in enumerate(("sure", "unsure")):
    axes[r, 0].set_ylabel(f"{word}: pixel {(sure, unsure)[r]}")
figure.supxlabel("grey level", fontsize=9);

# %% [markdown]
# Temperature changes every bar and removes none. The others remove bars and scale up the rest.
#
# One warning before we turn the knobs on whole pictures: **a local change is not a global one.** Dividing every forecast by $T$ does *not* sample from
# $p(x)^{1/T}$, normalised over pictures; and taking the best pixel each time does *not* find the best picture. On the tiny model we can compare all
# 27 probabilities exactly:

# %%
def pixel_by_pixel(T):
    """Probabilities (27,) of all pictures when each forecast is divided by T."""
    with torch.no_grad():
        tempered = (tiny.logits(pictures) / T).log_softmax(-1)
    return tempered.gather(-1, pictures[..., None]).double().sum((1, 2)).exp()


def picture_by_picture(T):
    return chance ** (1 / T) / (chance ** (1 / T)).sum()


for T in (1, 0.5, 0.2):
    apart = total_variation(pixel_by_pixel(T), picture_by_picture(T)).item()
    print(f"T = {T}: {apart:.3f} of the probability lies elsewhere")
greedy, best = pixel_by_pixel(0.01).argmax(), chance.argmax()
for name, i in (("greedy", greedy), ("the best", best)):
    print(f"{name:9s}{pictures[i].tolist()} with probability {chance[i]:.4f}")
assert total_variation(pixel_by_pixel(1), chance) < 1e-6
assert total_variation(pixel_by_pixel(0.2), picture_by_picture(0.2)) > 0.05
assert greedy != best

# %% [markdown]
# ## The knobs on digits
#
# Now the same on pictures of 64 pixels. All rows use the same noise, so that differences come from the knob alone:

# %% mystnb={"figure": {"caption": "Temperature times digit, the same noise in every row. Cold digits are smooth and alike, hot ones fall apart. Look at the 1 in the top row.", "name": "fig-0-03-temperature"}, "image": {"alt": "Six rows of ten digits at temperatures 0, 0.4, 0.7, 1, 1.4 and 2. The top row is plain, and its 1 is entirely black; the bottom row is mostly noise."}} tags=["hide-input"]
grid = [
    sample_cached(ar, 10, cond=digits, temperature=T, generator=seed(5)).tokens
    for T in (0, 0.4, 0.7, 1, 1.4, 2)
]
names = [f"T = {T}" for T in (0, 0.4, 0.7, 1, 1.4, 2)]
viz.image_grid(tokenizer.decode(torch.cat(grid)), row_labels=names);

# %% [markdown]
# Asked for a 1 at temperature 0, the model hands in a black page, and the other greedy digits cling to the right edge. Keep that in mind, we will come
# back to it. First the measurements: 120 images per setting; a judge that reads digits; how far apart images of one class are, relative to real ones; and two exact numbers. The
# first is the code length of the *validation* images under the reshaped model. The second is the share of them that it can draw at all.

# %%
judge = checkpoints.load("judge_digits")
spread = torch.stack([train.images[train.labels == c].std(0) for c in range(10)]).mean()
twelve = digits.repeat_interleave(12)


def measured(**knob):
    """Judge's accuracy, spread, bits per pixel of real images, share of them possible."""
    drawn = sample_cached(ar, 120, cond=twelve, generator=seed(1), **knob).tokens
    drawn = tokenizer.decode(drawn)
    accuracy = label_accuracy(judge, drawn, twelve)
    diversity = (drawn.unflatten(0, (10, 12)).std(1).mean() / spread).item()
    p = probabilities(logits, **knob).gather(-1, tokens[..., None])[..., 0]  # (180, 64)
    cost = -p.double().log2().sum(1).mean().item() / 64
    return accuracy, diversity, cost, (p > 0).all(1).double().mean().item()


settings = {f"T = {T}": dict(temperature=T) for T in (0.4, 0.7, 1.0, 1.4, 2.0)}
settings["top-k, 5"] = dict(top_k=5)
settings["top-p, 0.9"] = dict(top_p=0.9)
settings["min-p, 0.1"] = dict(min_p=0.1)
results = {name: measured(**knob) for name, knob in settings.items()}
moved = random_shift(train.images, seed(1), share=0.5)  # what the network was trained on
moved = torch.stack([moved[train.labels == c].std(0) for c in range(10)]).mean() / spread

print("            judge   spread   bits per real pixel   real images possible")
for name, (accuracy, diversity, cost, possible) in results.items():
    print(f"{name:12s}{accuracy:5.2f}{diversity:9.2f}{cost:14.2f}{possible:20.0%}")
print(f"\nspread of real digits, half of them shifted as in training: {moved:.2f}")

# %%
cold, plain, hot = (results[name] for name in ("T = 0.7", "T = 1.0", "T = 2.0"))
assert cold[0] > hot[0] + 0.1 and results["T = 0.4"][1] < plain[1] < hot[1]
assert cold[2] > plain[2] and plain[3] == 1
assert all(results[name][3] < 0.5 for name in ("top-k, 5", "top-p, 0.9", "min-p, 0.1"))

# %% [markdown]
# The two judges disagree. For looks, one goes *below* 1: fewer accidents, less variety. For likelihood, one goes *above*: a model must
# keep something back for what it has not seen. And a truncated model has no likelihood left to speak of: top-p of 0.9 declares
# most real digits to be impossible, since sooner or later each of them contains a pixel that was not among the favourites. An infinite code
# length, and the samples look better. So a sampler with knobs is not "the model, a little cleaner". It is another distribution.
#
# ## A classifier that nobody trained
#
# The network was trained to forecast pixels. But it can be asked backwards: which label makes this picture likeliest? That is Bayes' rule
# with equal priors,
#
# $$p(c \mid x) = \frac{p(x \mid c)}{\sum_{c'} p(x \mid c')},$$
#
# and since the log-likelihood is a running sum over pixels, the answer can be read off after *every* pixel, while the image comes in.

# %%
so_far = logp.cumsum(1)  # (180, 64, 10): log p(x_0 .. x_j | c)
posterior = so_far.softmax(-1)  # p(c | x_0 .. x_j)
right = (posterior.argmax(-1) == labels[:, None]).double()  # (180, 64)
by_counts = (by_class.argmax(1) == labels).double().mean().item()

from sklearn.linear_model import LogisticRegression

regression = LogisticRegression(C=10, max_iter=5000).fit(learn.numpy() / 16, train.labels)
trained = regression.score(tokens.numpy() / 16, labels)
accuracy = right.mean(0)
print(f"counts per pixel and class (naive Bayes)  {by_counts:.1%}")
print(f"logistic regression, trained to classify  {trained:.1%}")
print(f"transformer, trained to forecast pixels   {accuracy[-1]:.1%}")
print("… after the first rows:", "  ".join(f"{v:.0%}" for v in accuracy[7::8]))
assert accuracy[-1] > 0.96 and accuracy[-1] > by_counts + 0.04
assert accuracy[31] > 0.8 and accuracy[7] < 0.6

# %% mystnb={"figure": {"caption": "Left: how often the likeliest class is the right one, after each pixel. Right: the images that it misreads at the end, with its verdict; the second guess is in brackets.", "name": "fig-0-03-bayes"}, "image": {"alt": "A curve of accuracy that climbs from one tenth through 89 percent at half of the image to nearly one; beside it the few misread digits."}} tags=["hide-input"]
wrong = (right[:, -1] == 0).nonzero()[:, 0][:3]
options = dict(width_ratios=(3, *[1] * len(wrong)), squeeze=False)
figure, axes = plt.subplots(1, 1 + len(wrong), figsize=(8, 2.7), **options)
axes = axes[0]
axes[0].plot(range(1, 65), accuracy, label="transformer, so far")
for value, name, colour in (
    (trained, "logistic regression", viz.GREEN),
    (by_counts, "naive Bayes", viz.AMBER),
):
    axes[0].axhline(value, color=colour, ls="--", lw=1.2, label=f"{name}, whole image")
axes[0].set(xlabel="pixels read", ylabel="accuracy", xticks=range(0, 65, 8), ylim=(0, 1.03))
axes[0].legend(loc="lower right")
for ax, i in zip(axes[1:], wrong.tolist()):
    viz.image_grid(validation.images[i : i + 1], ncol=1, ax=ax)
    first, second = posterior[i, -1].topk(2).indices.tolist()
    ax.set_title(f"label {labels[i]}\nread {first} ({second})", loc="center", fontsize=8)

# %% [markdown]
# A surprise that one should enjoy: a model that never saw a classification loss reads digits better than a classifier that saw nothing else (a linear
# one, to be fair; a convolutional network such as our judge gets 99.4 %). Half of the image is enough for nine digits out of ten.
#
# ## Completing half an image
#
# The same sums answer another question. Given the upper half, what could the rest be? First draw a class from $p(c \mid \text{upper half})$, then the lower
# half by ordinary sampling with the upper half as a prompt: together that is an exact draw from the sum over classes. There is a neat way to
# check it. A forecast that is right must not *expect* to change its mind: the mean of $p(c \mid \text{whole})$ over many completions has to be
# the $p(c \mid \text{half})$ from which we started.

# %%
before = posterior[:, 31].double()  # after four of eight rows
doubt = torch.special.entr(before).sum(-1).argsort(descending=True)
halves = doubt[[1, 3, 5, 120]]  # three that could be several digits, and an easy one
many = halves.repeat_interleave(40)  # 40 completions of each
drawn = inverse_cdf(before[many], torch.rand(160, generator=seed(3)).double())
prompt = tokens[many, :32]
completed = sample_cached(ar, 160, prompt=prompt, cond=drawn, generator=seed(2)).tokens
after = read(completed).sum(1).softmax(-1).double()  # (160, 10)
after_mean = after.view(4, 40, 10).mean(1)
distance = total_variation(after_mean, before[halves])
with torch.no_grad():
    verdict = judge(tokenizer.decode(completed)).argmax(1)


def share(read_as):
    """Share of the completions of each image that are read as the class that was drawn."""
    return (read_as == drawn).view(4, 40).double().mean(1)


for name, values in {
    "belief before and after, total variation": distance,
    "read as the class drawn, by Bayes": share(after.argmax(1)),
    "read as the class drawn, by the judge": share(verdict),
}.items():
    print(f"{name:42s}", "  ".join(f"{v:.2f}" for v in values))
assert distance.max() < 0.3 and (after.argmax(1) == drawn).double().mean() > 0.85

# %% mystnb={"figure": {"caption": "Real images, their upper halves, and eight completions each. Right: the belief about the class after the upper half (amber lines), and its mean over 40 completed images (bars).", "name": "fig-0-03-halves"}, "image": {"alt": "Four rows: a real digit, its upper half above grey, eight different completions, and a bar chart of the classes. In three rows completions become two or three different digits, in the last row always the same. Bars and lines agree."}} tags=["hide-input"]
figure, axes = plt.subplots(4, 2, figsize=(9, 4.4), width_ratios=(2.6, 1), sharex="col")
for r, i in enumerate(halves.tolist()):
    given_half = tokenizer.decode(tokens[i : i + 1], upto=32)
    completions = tokenizer.decode(completed[40 * r : 40 * r + 8])
    shown = torch.cat((validation.images[i : i + 1], given_half, completions))
    viz.image_grid(shown, ncol=10, ax=axes[r, 0])
    axes[r, 1].bar(digits, after_mean[r], color=viz.BLUE)
    axes[r, 1].hlines(before[i], digits - 0.45, digits + 0.45, color=viz.AMBER, lw=2.2)
    axes[r, 1].set(xticks=range(10), yticks=(0, 0.5, 1), ylim=(0, 1.05))
axes[0, 0].set_title("real, given, eight completions")
axes[0, 1].set_title("belief: before and after");

# %% [markdown]
# One half, several plausible wholes: that is what a distribution is for. A network trained to *repair* images with a squared error would have answered
# with their average. Belief before and after agree, up to the luck of 40 draws. But look at the second row, and at the last line of numbers: the model
# leans to 0, the picture is a 9, and the judge sees a 0 in hardly any of its "zeros". *Consistent with itself is not the same as right.*
#
# ## What a likelihood does not tell
#
# We have a number that cannot be argued with. So let us see how it can deceive.
#
# **A good likelihood, useless samples.** Build a new model: toss a coin that shows heads once in a hundred times. Heads: draw from the
# transformer. Tails: draw every pixel uniformly. Its probability is a mixture, and a mixture is at least as large as each of its parts:
#
# $$-\log_2 \left( \tfrac{1}{100}\, p(x) + \tfrac{99}{100}\, 17^{-64} \right) \;\le\; -\log_2 p(x) + \log_2 100$$
#
# The second term is 6.6 bits for the whole image: a tenth of a bit per pixel, however large the image's other costs.

# %%
ours = -without_label(logp.sum(1)).double() * math.log(2)  # log p(x) in nats
mixed = torch.logaddexp(math.log(0.01) + ours, torch.tensor(math.log(0.99) - 64 * math.log(17)))
mixed = -mixed / math.log(2) / 64
summed, straight = bits["transformer, sum over classes"], bits["linear, Gaussian bins"]
print(f"transformer                  {summed.mean():.3f} bits per pixel")
print(f"99 % noise, 1 % transformer  {mixed.mean():.3f}")
print(f"linear                       {straight.mean():.3f}")
lead = mean_interval(straight - mixed)
print(f"the noisy one leads the linear one by {lead.mean:.2f} ± {half(lead):.2f}")
assert lead.low > 0.2

# %% mystnb={"figure": {"caption": "Twenty samples of each. By likelihood, the model below is far better than the one above.", "name": "fig-0-03-mixture"}, "image": {"alt": "Two blocks of twenty images. The upper ones are blurred, some of them nearly digits; the lower ones are nothing but noise."}} tags=["hide-input"]
noise, drawn = torch.rand(20, 64, generator=seed(4)), torch.zeros(20, 0, dtype=torch.long)
for j in range(64):
    new = inverse_cdf(bins(fitted, drawn), noise[:, j].double())
    drawn = torch.cat((drawn, new[:, None]), 1)
heads = torch.rand(20, generator=seed(0)) < 0.01  # on average one in five such rows has one
snow = torch.randint(17, (20, 64), generator=seed(4))
snow[heads] = sample_cached(ar, 20, generator=seed(4)).tokens[heads]
names = [f"linear: {straight.mean():.2f}", "", f"mixture: {mixed.mean():.2f}", ""]
viz.image_grid(tokenizer.decode(torch.cat((drawn, snow))), row_labels=names);

# %% [markdown]
# Ninety-nine of its samples in a hundred are noise, and it beats the linear model by far. Likelihood punishes what a model *forgets*, without mercy; what it
# draws *in addition* costs the logarithm of its share, and logarithms are small. The converse fails as well: a photocopier that hands out training
# images has perfect samples, and an infinite code length for every new digit. Samples and likelihood are two examinations. A
# model must sit both.
#
# **The likeliest picture is not a digit.** Remember the black page. How probable is it, among the ones?

# %%
page = torch.zeros(1, 64, dtype=torch.long)
greedy = grid[0]  # one per class, at T = 0
one = torch.tensor([1])
with torch.no_grad():
    black = -ar.logprob(page, one).item() / math.log(2)
    coldest = -ar.logprob(greedy, digits) / math.log(2)
    forecast = ar.logits(page, one)[0].softmax(-1)  # (64, 17)
ones = given.sum(1)[labels == 1]
print(f"a black page, as a 1:     {black:5.1f} bits")
print(f"the cheapest real 1:      {ones.min():5.1f} bits; on average {ones.mean():.1f}")
print(f"the greedy digits, 0 to 9: {', '.join(f'{v:.0f}' for v in coldest)}")
print(f"black is the best guess for {int((forecast.argmax(-1) == 0).sum())} of 64 pixels of it")
cheapest = torch.stack([given.sum(1)[labels == c].min() for c in range(10)])
print("cheapest real digits:      ", ", ".join(f"{v:.0f}" for v in cheapest))
assert black < ones.min() - 10 and (coldest < cheapest).all()

# %% [markdown]
# The black page is $2^{28}$ times likelier than the most ordinary of our ones. That need not be a defect of the network. A stroke may begin here or a little
# further to the right, so at *every single pixel* black is the best guess, and greedy decoding believes it 64 times. (This also
# explains why the other greedy digits cling to the right edge: a stroke is put off until there is no room left.) Think of
# a coin that shows heads in 6 of 10 tosses: the likeliest sequence of 64 is "heads" 64 times, and you will never see it. A typical 1 costs about 80
# bits, but there are about $2^{80}$ like it. Samples come from where *number times probability* is large, the **typical set**, and its members
# all have about the same, moderate, probability.
#
# This has a consequence that took the field by surprise (Nalisnick et al. 2018). It sounds reasonable to use the likelihood as an alarm: an image that
# costs many bits is not a digit. We try it on images that are not, without labels. *Alarm* is the chance that one of them costs more than a
# real digit: 1 is a perfect alarm, 0.5 is guessing, 0 is wrong every time. The last column asks instead whether its cost lies outside of
# the range of the middle 95 % of real digits, on either side: a test for typicality.

# %%
letters = data.load("glyphs", "validation")
letters = F.avg_pool2d(letters.images[letters.labels < 52], 4).clamp(-1, 1)  # 32 -> 8 pixels
upper = tokens.clone()
upper[:, 32:] = 0
cool = sample_cached(ar, 180, cond=labels, temperature=0.7, generator=seed(6)).tokens
strange = {
    "real digits": tokens,
    "noise": torch.randint(17, (180, 64), generator=seed(6)),
    "inverted digits": 16 - tokens,
    "digits upside down": tokenizer.encode(validation.images.flip(2)),
    "printed letters": tokenizer.encode(letters),
    "upper half, rest black": upper,
    "drawn at T = 0.7": cool,
    "a black page": page,
}
cost = {}
for name, x in strange.items():
    with torch.no_grad():
        cost[name] = -ar.logprob(x) / 64 / math.log(2)
usual = cost["real digits"]
low, high = usual.quantile(0.025), usual.quantile(0.975)
alarm = {name: (c[:, None] > usual).double().mean().item() for name, c in cost.items()}
atypical = {name: ((c < low) | (c > high)).double().mean().item() for name, c in cost.items()}
print("                        bits per pixel   alarm   not typical")
for name, c in cost.items():
    print(f"{name:24s}{c.mean():10.2f}{alarm[name]:13.2f}{atypical[name]:11.0%}")
assert alarm["noise"] > 0.99 and alarm["inverted digits"] > 0.99
assert alarm["a black page"] == 0 and alarm["drawn at T = 0.7"] < 0.35
assert alarm["upper half, rest black"] < 0.45 and alarm["printed letters"] < 0.9
assert atypical["a black page"] == 1 and atypical["upper half, rest black"] < 0.3

# %% mystnb={"figure": {"caption": "What images cost. Everything left of the amber heap is, by likelihood, more of a digit than digits are.", "name": "fig-0-03-alarm"}, "image": {"alt": "Histograms of bits per pixel: real digits around 1.8, half-erased digits and cool samples to their left, letters to their right but overlapping, inverted digits near 4.6, noise beyond 5; a line far left marks the black page. Small example images beside."}} tags=["hide-input"]
shown = [name for name in strange if name != "a black page"]
figure, axes = plt.subplots(len(shown), 2, figsize=(8.6, 5.6), width_ratios=(1, 2.4))
edges = torch.linspace(0.5, 7.5, 71)
for (left, right), name in zip(axes, shown):
    viz.image_grid(tokenizer.decode(strange[name][3:9]), ncol=6, ax=left)
    left.set_title(name, fontsize=8, pad=3)
    colour = viz.AMBER if name == "real digits" else viz.BLUE
    right.hist(cost[name], edges, color=colour)
    right.axvline(cost["a black page"].item(), color=viz.INK, lw=1.2)
    right.set(xlim=(0.5, 7.6), yticks=[])
    right.spines["left"].set_visible(False)
    if name != shown[-1]:
        right.tick_params(labelbottom=False)
axes[0, 1].set_title("the line: a black page")
axes[-1, 1].set_xlabel("bits per pixel");

# %% [markdown]
# This is the chapter's honest failure. Against noise the alarm is perfect. Against a black page it is wrong every time, and a digit whose lower half was
# wiped away looks *more* like a digit to it than a whole one. Likelihood mostly measures how much there is to tell: less content, fewer
# bits. The test for typicality catches the page, but not the halves, nor most letters. What the number says is how well the model predicts
# images *that come from the data*. About other images it promised nothing.
#
# ## Exercise 1: the price of a label (★, 5 minutes)
#
# A class-conditional model gives ten log-likelihoods per image. What does the image cost, in bits per pixel, when nobody tells the label?

# %% tags=["exercise"]
def fair_bits(logp, dims):
    """Bits per dimension (B,) from log p(x | c) in nats, (B, C), with equal priors."""
    return None  # your code

# %% tags=["exercise-check"]
example = torch.tensor([[-100.0, -130.0], [-90.0, -90.0]])
answer = fair_bits(example, 64)
if answer is None:
    print("Hint: p(x) is the mean of the p(x | c). Means of probabilities, not of logarithms.")
else:
    one, two = (float(v) * 64 * math.log(2) for v in answer)  # back to nats
    wrong = f"equal classes cost 90 nats, however many; got {two:.2f}: divide the sum by C"
    assert abs(two - 90) < 1e-3, wrong
    wrong = f"expected 100.69 nats, got {one:.2f}: a class that explains nothing costs log 2"
    assert abs(one - 100 - math.log(2)) < 1e-3, wrong
    print("Right: one good class among C costs at most log2 C bits for the whole image.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `torch.logsumexp` adds probabilities that are given as logarithms, without underflow: $e^{-100}$ is fine, $e^{-1000}$ is zero in any float.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def fair_bits(logp, dims):
#     nats = math.log(logp.shape[1]) - logp.logsumexp(1)
#     return nats / dims / math.log(2)
# ```
#
# </details>
# <details><summary>Wrong: averages the logarithms</summary>
#
# The mean of logarithms is that of a file that was written for a label drawn at random. One class that explains nothing would ruin it.
#
# ```python
# def fair_bits(logp, dims):
#     return -logp.mean(1) / dims / math.log(2)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: the nucleus (★★, 10 minutes)
#
# Top-$p$ keeps the *fewest* tokens that together reach the mass $p$. So the token whose mass crosses the line is kept. Write it for probabilities.

# %% tags=["exercise"]
def nucleus(probability, p):
    """The mask (V,), True for the tokens of probability (V,) that top-p keeps."""
    return None  # your code

# %% tags=["exercise-check"]
forecast = torch.tensor([0.05, 0.5, 0.15, 0.3])
answer = nucleus(forecast, 0.7)
if answer is None:
    print("Hint: sort, largest first. Look at the mass that comes *before* each token.")
else:
    kept = answer.nonzero()[:, 0].tolist()
    assert kept != [1], "0.5 alone does not reach 0.7: the token that crosses the line is kept"
    assert kept == [1, 3], f"0.5 and 0.3 reach 0.7: expected tokens [1, 3], got {kept}"
    sure = nucleus(torch.tensor([0.04, 0.96]), 0.7).tolist()
    assert sure == [False, True], f"one token is always kept, here [False, True]; got {sure}"
    print("Right: never empty, and never more than needed.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# With `mass` sorted, `mass.cumsum(-1) - mass` is what comes before each. Keep while that is below $p$; then carry the answer back to the original
# places with `scatter`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def nucleus(probability, p):
#     mass, place = probability.sort(descending=True)
#     keep = mass.cumsum(-1) - mass < p
#     return torch.zeros_like(keep).scatter(-1, place, keep)
# ```
#
# </details>
# <details><summary>Wrong: drops the token that crosses the line</summary>
#
# The kept mass stays below $p$, and if the first token alone is larger than $p$ nothing is left to draw from.
#
# ```python
# def nucleus(probability, p):
#     mass, place = probability.sort(descending=True)
#     keep = mass.cumsum(-1) <= p
#     return torch.zeros_like(keep).scatter(-1, place, keep)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: a density in honest units (★★, 10 minutes)
#
# A flow reports $\log f(y)$, in nats, for images scaled to $[-1, 1]$ with uniform noise as wide as one level. The images have `levels` grey levels,
# from $-1$ to $1$. Turn it into bits per dimension that may stand in the table above.

# %% tags=["exercise"]
def honest_bits(log_density, dims, levels):
    """Bits per dimension (B,) of tokens, from log f(y) (B,) for y in [-1, 1]^dims."""
    return None  # your code

# %% tags=["exercise-check"]
width = 2 / 16  # of one of 17 levels: a density of 1 / (17 width) in each dimension is uniform
uniform = torch.tensor([-64 * math.log(17 * width)])
answer = honest_bits(uniform, 64, 17)
if answer is None:
    print("Hint: mass is density times volume. How wide is the cell of one level?")
else:
    got, expected = float(answer[0]), math.log2(17)
    wrong = f"the uniform model pays {expected:.2f} bits, got {got:.2f}: cells are not 1 wide"
    assert abs(got - math.log2(17 * width)) > 1e-3, wrong
    wrong = f"the uniform model pays log2 17 = {expected:.2f} bits, got {got:.2f}"
    assert abs(got - expected) < 1e-3, wrong
    uniform = torch.tensor([-12 * math.log(256 * 2 / 255)])
    wrong = "256 levels cost 8 bits: 256 levels have 255 gaps between them"
    assert abs(float(honest_bits(uniform, 12, 256)[0]) - 8) < 1e-3, wrong
    print("Right: and now you can read the tables of papers on flows.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# One level is $2 / (\text{levels} - 1)$ wide. A cell's mass is the density times that width to the power of `dims`; take $-\log_2$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def honest_bits(log_density, dims, levels):
#     nats = -log_density / dims - math.log(2 / (levels - 1))
#     return nats / math.log(2)
# ```
#
# </details>
# <details><summary>Wrong: forgets the width of a cell</summary>
#
# On the scale of $[-1, 1]$ this is 3 bits per pixel too good for 17 levels, and 7 bits for 256: cheat 1.
#
# ```python
# def honest_bits(log_density, dims, levels):
#     return -log_density / dims / math.log(2)
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * The chain rule gives every picture a probability, and $-\log_2 p$ is a file size: we wrote the file, and it was two bits longer at most.
# * Bits per dimension compare models if all are probabilities of the same integers, pay for their labels, and were not chosen by the images that
#   are reported. Compare per image: the paired interval is far narrower.
# * Temperature reshapes every forecast; top-$k$, top-$p$ and min-$p$ cut it. All of them change the distribution, and a cut one has no likelihood.
# * Asked backwards, a generative model classifies; asked halfway, it completes.
# * Likelihood is about the data. It does not grade samples, its maximum is no sample at all, and it is no alarm for what is foreign.
#
# ## Where this stands
#
# Pixels as tokens: PixelRNN (van den Oord et al. [1601.06759](https://arxiv.org/abs/1601.06759)), PixelCNN++ with its Gaussian-like bins
# (Salimans et al. [1701.05517](https://arxiv.org/abs/1701.05517)), and with a transformer Image GPT (Chen et al., ICML 2020). That a model is a compressor goes back to
# Shannon (1948) and arithmetic coding to Rissanen (1976); Delétang et al. ([2309.10668](https://arxiv.org/abs/2309.10668)) compress images with language models.
# Dequantisation: Uria et al. ([1306.0186](https://arxiv.org/abs/1306.0186)); why its bound is sound, and why likelihood and samples are two things, with the mixture above: Theis
# et al. ([1511.01844](https://arxiv.org/abs/1511.01844)). Models for every order: Uria et al. ([1310.1757](https://arxiv.org/abs/1310.1757)); σ-GPT
# (Pannatier et al. [2404.09562](https://arxiv.org/abs/2404.09562)) tells the network which token is next. Top-$k$: Fan et al. ([1805.04833](https://arxiv.org/abs/1805.04833)); top-$p$: Holtzman
# et al. ([1904.09751](https://arxiv.org/abs/1904.09751)); min-$p$: Nguyen et al. ([2407.01082](https://arxiv.org/abs/2407.01082)). Likelihood as a failing alarm: Nalisnick
# et al. ([1810.09136](https://arxiv.org/abs/1810.09136)); typicality: the same ([1906.02994](https://arxiv.org/abs/1906.02994)); complexity as the reason: Serrà
# et al. ([1909.11480](https://arxiv.org/abs/1909.11480)). Part 2 changes the order and the tokens; Part 3 has densities, and will need exercise 3.
