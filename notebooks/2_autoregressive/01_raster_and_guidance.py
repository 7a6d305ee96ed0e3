# %% [markdown]
# # Raster order and guidance: how to get what you asked for
#
# | | |
# | --- | --- |
# | **You will build** | a transformer that paints code by code, guidance from three lines of algebra, its schedules, and a model that reads captions |
# | **Time** | about a minute on a laptop, without a GPU |
# | **You need** | the block and its cache (0.2), likelihood and the four knobs (0.3), codebooks (1.1) |
# | **Of the five nouns** | model, and the front of every sampler |
# | **Systems** | LlamaGen (raster GPT), classifier-free guidance, sampling controls |
#
# A tokenizer has turned a picture into 64 codes on a grid. Read them row by row and a picture is a sentence; so take the machine that writes
# sentences. This chapter builds that machine, asks it for a red star, and finds out why it does not always listen, what makes it listen, and what the
# price is.

# %% tags=["exercise-setup"]
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from scipy import ndimage

from minimal import checkpoints, data, viz
from minimal.data.drawing import COLOURS, PALETTE, SHAPES
from minimal.data.shapes import CLASS_NAMES, WORDS, encode_captions
from minimal.metrics import batched, frechet_distance, frechet_floor
from minimal.metrics import label_accuracy, precision_recall
from minimal.nn.labels import drop_labels
from minimal.nn.masks import not_after
from minimal.nn.rope import raster_coordinates, rotary, rotate
from minimal.nn.token_model import TokenModel
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided, interval, linear
from minimal.samplers.logits import filter_logits, inverse_cdf
from minimal.statistics import all_sequences, chi_square, enumerate_joint, total_variation

viz.style()
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def seed(number):
    return torch.Generator().manual_seed(number)


# %% [markdown]
# ## The question
#
# The model below has learned the codes of 10,000 pictures, 16 classes, four shapes in four colours. It writes code after code from the upper left to
# the lower right, and the decoder shows what is there so far. Four labels, four pictures.

# %%
model = checkpoints.load("shapes_gpt")  # made by the recipe of that name
tokenizer = checkpoints.load("shapes_vq")  # 8 x 8 cells, each one of 625 codes
held_out = data.load("shapes", "validation")
images, labels = held_out.images, held_out.labels  # (1000, 3, 32, 32), (1000,)
codes = batched(tokenizer.encode, images, 250)  # (1000, 64)
print(f"{sum(p.numel() for p in model.parameters()):,} weights, V = {model.vocab_size}")

# %% mystnb={"figure": {"caption": "From left to right: what the first 8, 16, .., 64 codes show. Cells not yet written hold the mean code.", "name": "fig-2-01-painting"}, "image": {"alt": "Four rows of eight pictures. In each row a coloured shape appears from top to bottom, a row of cells at a time, on a grey ground, until the last picture is complete."}} tags=["hide-input"]
asked = torch.tensor([0, 6, 9, 15])
drawn = sample_cached(model, 4, cond=asked, generator=seed(3)).tokens
stages = range(8, 65, 8)
cells = torch.stack([tokenizer.decode(drawn, upto=k) for k in stages], 1)
names = [CLASS_NAMES[c] for c in asked]
viz.image_grid(cells.flatten(0, 1), ncol=8, titles=list(stages), row_labels=names);

# %% [markdown]
# ## A picture as a sentence
#
# Nothing here is new, which is the point (LlamaGen). The chain rule gives one forecast per code, a Llama decoder makes all of them in one pass, and
# the class is a word in front:
#
# $$\begin{gathered} \log p(x \mid c) = \sum_{j=0}^{63} \log p(x_j \mid x_0, \dots, x_{j-1}, c), \\ [\,c, x_0, \dots, x_{62}\,] \;\longrightarrow\; \text{logits } (64, 625) \end{gathered}$$
#
# Input $x_{j-1}$ stands where its own cell is and forecasts the *next* one. In full:

# %%
places = torch.cat((torch.tensor([[-1, -1]]), raster_coordinates(63, 8)))  # (row, column)


def forecasts(tokens, labels):
    """Codes (B, 64) and labels (B,) to logits (B, 64, 625)."""
    start = model.vocab_size + labels[:, None]  # labels follow the codes in one table
    inputs = torch.cat((start, tokens[:, :-1]), 1)  # (B, 64)
    h = model.embedding(inputs)  # (B, 64, 128)
    turn, order = rotary(places, 32), torch.arange(64)
    for block in model.blocks:
        h = block(h, turn, not_after.square(order))
    return model.head(model.norm(h))


few, theirs = codes[:8], labels[:8]
assert torch.allclose(forecasts(few, theirs), model.logits(few, theirs), atol=1e-4)


def write(labels, noise):
    """Labels (B,) and one uniform number per code (B, 64) to codes (B, 64)."""
    canvas = torch.zeros(len(labels), 64, dtype=torch.long)
    for j in range(64):
        p = forecasts(canvas, labels)[:, j].softmax(-1)  # (B, 625)
        canvas[:, j] = inverse_cdf(p, noise[:, j])
    return canvas


package = sample_cached(model, 8, cond=theirs, generator=seed(0)).tokens
assert torch.equal(write(theirs, torch.rand(8, 64, generator=seed(0))), package)

# %% [markdown]
# The loop above computes 64 positions for each code; `sample_cached` computes one and keeps the keys of the others (0.2). Same numbers, same
# pictures.
#
# **Where is a code?** The one thing that knows about pictures is the rotary embedding. Half of the channels of a query and a key are turned by the
# row, the other half by the column. Their product then depends on the *difference* of rows and the difference of columns, and on nothing else. On a
# line, the cell below would be as far away as the cell eight to the right, in the next row; on the grid it is next door.

# %%
q, k = torch.randn(2, 1, 1, 1, 32, generator=seed(0))
at = lambda x, place: rotate(x, rotary(torch.tensor([place]), 32))
score = lambda a, b: (at(q, a) * at(k, b)).sum().item()  # query at a, key at b
for a, b in (((5, 2), (3, 6)), ((7, 7), (0, 0)), ((-1, -1), (4, 4))):
    moved = [(row + 2, column - 3) for row, column in (a, b)]
    assert abs(score(a, b) - score(*moved)) < 1e-4
assert abs(score((5, 2), (3, 6)) - score((5, 2), (3, 5))) > 1e-2

# %% mystnb={"figure": {"caption": "How well a query in the marked cell fits a key with the same content elsewhere, before anything is learned. On the line the fit follows the row and forgets the column; on the grid, nearness is nearness.", "name": "fig-2-01-rotary"}, "image": {"alt": "Two heat maps of 8 by 8 cells. Left, on a line: the marked cell's row is bright, and the cell above it is as dark as far ones. Right, on a grid: brightness falls off in all four directions along row and column."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(5.2, 2.6))
ones, here = torch.ones(1, 1, 64, 32), 4 * 8 + 4
for ax, width, title in zip(axes, (None, 8), ("on a line", "on a grid")):
    turned = rotate(ones, rotary(raster_coordinates(64, width), 32))[0, 0]
    ax.imshow((turned @ turned[here]).view(8, 8), cmap=viz.SEQUENTIAL)
    ax.plot(4, 4, "s", ms=15, mfc="none", mec=viz.AMBER, mew=2)
    ax.set_title(title)
    viz.bare(ax)

# %% [markdown]
# ## What the label is worth
#
# How much does the label tell the network? Ask for the forecasts under all 16 labels. Bayes' rule turns them into a posterior of the label after
# every code, and into the forecast of somebody who was told nothing, *by the same network*:
#
# $$\begin{gathered} p(c \mid x_{<j}) \propto \prod_{i<j} p(x_i \mid x_{<i}, c), \\ \bar p(x_j \mid x_{<j}) = \sum_c p(c \mid x_{<j})\, p(x_j \mid x_{<j}, c) \end{gathered}$$

# %%
def nats(tokens, labels):
    """log p of each code (B, 64)."""
    logp = model.logits(tokens, labels).log_softmax(-1)
    return logp.gather(-1, tokens[..., None])[..., 0]


count = 100
some, truth = codes[:count], labels[:count]
under_all = torch.stack([nats(some, torch.full_like(truth, c)) for c in range(16)], 1)
before = F.pad(under_all, (1, -1)).cumsum(-1).log_softmax(1)  # (100, 16, 64), log p(c | x_<j)
told = under_all[torch.arange(count), truth]  # (100, 64)
untold = (before + under_all).logsumexp(1)  # (100, 64), the sum over c above
worth = (told - untold).mean(0)  # (64,)
print(f"-log p(x | c)           {-told.sum(1).mean():7.1f} nats per picture")
print(f"-log p(x), by Bayes     {-untold.sum(1).mean():7.1f}")
print(f"the label is worth      {worth.sum():7.2f}, log 16 is {math.log(16):.2f}")
rows = worth.view(8, 8).sum(1) / worth.sum()
print("of that, row by row    ", "  ".join(f"{r:4.0%}" for r in rows))
guess = (before[:, :, 8].argmax(1) == truth).float().mean()
print(f"classes that the first row of codes gives away: {guess:.0%}")
assert abs(worth.sum() - math.log(16)) < 0.1 and rows[:2].sum() > 0.95 and guess > 0.5

# %% mystnb={"figure": {"caption": "What the label adds to the log-likelihood, by cell. It speaks in the first row, and then it is silent: the codes have said it.", "name": "fig-2-01-worth"}, "image": {"alt": "Left, a heat map of 8 by 8 cells: dark in the first row, darkest in the corner, nearly white below. Right, a curve of the sum over the first j codes that climbs steeply within the first 16 codes and then stays at the dotted line at log 16."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(7, 2.6), width_ratios=(1, 1.7))
left.imshow(worth.view(8, 8), cmap=viz.SEQUENTIAL, vmin=0)
viz.bare(left)
left.set_title("nats per code")
right.plot(range(1, 65), worth.cumsum(0))
right.axhline(math.log(16), color=viz.GREY, ls=":", lw=1)
right.text(50, math.log(16) + 0.06, "log 16", color=viz.GREY)
right.set(xlabel="codes written", ylabel="nats, sum so far", ylim=(0, 3.2));

# %% [markdown]
# The whole value of the label is in the first row or two. Look at the figure above: eight codes show an empty wall. They give the class away all the
# same, since the encoder that wrote them looked at more than one cell each. From then on the codes carry the class, and the label repeats what is
# known.
#
# To us the label is everything: it is what we asked for. To the loss it is less than three nats of a hundred, for 16 classes cannot hold more than
# $\log 16$. Almost all of what the network is trained on is edges, places and backgrounds. How well does it listen?

# %%
def draw(sampler, n, **filters):
    """`n` pictures' codes, each class as often as the others, 250 at a time."""
    cond, generator, tokens = torch.arange(n) % 16, seed(0), []
    for part in cond.split(250):
        options = dict(cond=part, generator=generator, **filters)
        tokens.append(sample_cached(sampler, len(part), **options).tokens)
    return torch.cat(tokens)


def judged(name, tokens):
    """What the judge says of pictures whose classes go round."""
    x = batched(tokenizer.decode, tokens, 250).clamp(-1, 1)
    cond, seen = torch.arange(len(x)) % 16, batched(judge.features, x)
    fidelity, coverage = precision_recall(real, seen)
    spread = torch.stack([x[cond == c].var(0).mean() for c in range(16)]).mean().sqrt()
    accuracy, frechet = label_accuracy(judge, x, cond), frechet_distance(real, seen)
    return dict(name=name, tokens=tokens, images=x, accuracy=accuracy, frechet=frechet,
                precision=fidelity, recall=coverage, spread=spread.item())  # fmt: skip


COLUMNS = ("accuracy", "frechet", "precision", "recall", "spread")


def table(results):
    print(f"{len(results[0]['images'])} pictures each" + "".join(f"{c:>11s}" for c in COLUMNS))
    for result in results:
        print(f"{result['name']:17s}" + "".join(f"{result[c]:11.3f}" for c in COLUMNS))


judge = checkpoints.load("judge_shapes")
real = batched(judge.features, images)
floor = {n: frechet_floor(real, n, seed(0), labels=labels) for n in (250, 500)}
one = judged("as trained", draw(model, 500))
table([one])
print(f"Fréchet distance of two sets of 500 real pictures: {floor[500]:.2f}")

# %% [markdown]
# Precision is the share of drawn pictures that lie among real ones, recall the share of real pictures that lie among drawn ones (1.7). The model
# covers nearly everything, and too many of its pictures are nothing in particular.
#
# ## The knobs
#
# The oldest way to better pictures is to distrust the forecast. Here is one for a code that could be many. A dozen codes are plausible;
# behind them is a tail of 600 codes, each nearly impossible. Nearly, times 600, times 64 draws.

# %%
log_p = model.logits(codes[:200], labels[:200]).log_softmax(-1)  # (200, 64, 625)
p = log_p.exp()
tail = p.masked_fill(p >= 0.01, 0).sum(-1).mean().item()
print(f"mass of codes below 1 %, per draw:   {tail:.1%}")
print(f"expected draws of such a code:       {64 * tail:.1f} of 64")
entropy = -(p * log_p).sum(-1)
i, j = divmod((entropy - 2.5).abs().argmin().item(), 64)
row = log_p[i, j]  # (625,)


def nucleus(logits, top_p):
    """Keep the likeliest codes until they hold `top_p` of the mass."""
    p, order = logits.softmax(-1).sort(descending=True)
    keep = order[p.cumsum(-1) - p <= top_p]  # the mass before it is not yet enough
    return torch.full_like(logits, -torch.inf).index_copy(0, keep, logits[keep])


assert torch.equal(nucleus(row, 0.8), filter_logits(row, top_p=0.8))

# %% mystnb={"figure": {"caption": "One forecast, its 24 likeliest codes; the outline is the forecast as it came. Temperature changes all bars and removes none, the others cut the tail and scale up the rest.", "name": "fig-2-01-knobs"}, "image": {"alt": "Five bar charts of probabilities in falling order. As is: a few high bars and a long tail. Temperature 0.6: higher first bars, a thin tail. Top-k 5, top-p 0.8 and min-p 0.2: only the first few bars are left, and higher."}} tags=["hide-input"]
settings = {"as it came": {}, "temperature 0.6": dict(temperature=0.6)}
settings |= {"top-k 5": dict(top_k=5), "top-p 0.8": dict(top_p=0.8)}
settings |= {"min-p 0.2": dict(min_p=0.2)}
figure, axes = plt.subplots(1, 5, figsize=(8.6, 2), sharey=True)
rank = row.argsort(descending=True)[:24]
for ax, (name, filters) in zip(axes, settings.items()):
    after = filter_logits(row, **filters).softmax(-1)
    ax.bar(range(24), after[rank], color=viz.BLUE, width=0.9)
    ax.step(range(24), row.exp()[rank], where="mid", color=viz.INK, lw=0.8)
    ax.set(title=f"{name}\n{int((after > 0).sum())} codes", xticks=[])
axes[0].set_ylabel("probability");

# %%
unguided = judged("T = 1", one["tokens"][:250])
cool, hot = (judged(f"T = {T}", draw(model, 250, temperature=T)) for T in (0.7, 1.3))
cut = judged("top-p 0.9", draw(model, 250, top_p=0.9))
table([cool, unguided, hot, cut])
print("spread: standard deviation of a pixel within a class")
print(f"Fréchet distance of two sets of 250 real pictures: {floor[250]:.2f}")
assert cool["spread"] < unguided["spread"] < hot["spread"]
assert cool["accuracy"] > hot["accuracy"] + 0.01 and cool["precision"] > hot["precision"] + 0.1
assert cool["recall"] < unguided["recall"] - 0.03

# %% [markdown]
# A cool model is more precise and more alike, a hot one spreads and errs. (The accuracies of 250 pictures are uncertain by a percent.) None of the
# knobs brought the drawn set nearer to the real one than the model as it is. And no knob knows what we asked for: they sharpen *whatever* the
# forecast says.
#
# ## Guidance in three lines
#
# We want a knob that turns up the *label*. By Bayes, the label's share in a forecast is the ratio of the two forecasts the network can make:
#
# $$\begin{gathered} p(c \mid x_{\le j}) \;\propto\; p(c \mid x_{<j})\; \frac{p(x_j \mid x_{<j}, c)}{p(x_j \mid x_{<j})} \\ \tilde p(x_j) \;\propto\; p(x_j \mid x_{<j}, c)\,\Big(\frac{p(x_j \mid x_{<j}, c)}{p(x_j \mid x_{<j})}\Big)^{s-1} \\ \phantom{\tilde p(x_j)} = p(x_j \mid x_{<j}, c)^s\; p(x_j \mid x_{<j})^{1-s} \\ \tilde\ell = \ell_\emptyset + s\,(\ell_c - \ell_\emptyset) \end{gathered}$$
#
# The first line is a classifier that nobody trained. The second counts its evidence $s$ times. The third says the same of logits: go from the
# forecast without a label through the one with it, and on. This is *classifier-free guidance*; $s = 1$ is the model as it is. (Some papers count
# $t = s - 1$.) It costs a doubled batch:

# %%
def guided(tokens, labels, s):
    """Guided logits (B, N, V)."""
    none = torch.full_like(labels, 16)
    both = model.logits(tokens.repeat(2, 1), torch.cat((labels, none)))
    conditional, null = both.chunk(2)
    return null + s * (conditional - null)


package = Guided(model, 2.0).logits(few, theirs)
assert torch.allclose(guided(few, theirs, 2.0), package, atol=1e-4)
as_it_is = Guided(model, 1.0).logits(few, theirs)
assert torch.allclose(as_it_is, model.logits(few, theirs), atol=1e-4)

# %% [markdown]
# ## A toy with known densities
#
# Is that what a sampler draws? Two codes out of three words, two classes, everything known. The first code says nothing about the class. After a 0
# neither does the second; after a 1 it says a little, after a 2 nearly all.

# %%
class Toy(TokenModel):
    """Two codes out of three, classes A and B, and "none", which is their mean."""

    vocab_size, length, num_classes, levels = 3, 2, 2, torch.arange(2)

    def __init__(self):
        super().__init__()
        a = [[0.34, 0.33, 0.33], [0.60, 0.20, 0.20], [0.90, 0.05, 0.05]]
        a = torch.tensor(a, dtype=torch.float64)  # a[x]: the second code after a first code x
        b = a[:, [1, 0, 2]]
        self.second = torch.nn.Parameter(torch.stack((a, b, (a + b) / 2)).log())  # (3, 3, 3)

    def logits(self, tokens, cond=None, *, cache=None, n=None):
        first = torch.zeros(len(tokens), 1, 3, dtype=torch.float64)
        second = self.second[cond, tokens[:, 0]][:, None]
        return torch.cat((first, second), 1)[:, : tokens.shape[1]]


toy, s = Toy().eval(), 3.0


def joint(model, label):
    """Probabilities (9,) of 00, 01, 02, 10, .. 22."""
    told = lambda tokens: model.logits(tokens, torch.full((len(tokens),), label))
    return enumerate_joint(told, 2)


step = toy.second[0].exp() ** s * toy.second[2].exp() ** (1 - s)  # p(b | a, A)^s p(b | a)^(1-s)
Z = step.sum(-1)  # (3,): what a step lacks to one, for each first code
closed = (step / Z[:, None] / 3).flatten()
assert torch.allclose(joint(Guided(toy, s), 0), closed)
n = 50_000
asked = torch.zeros(n, dtype=torch.long)
pairs = sample_uncached(Guided(toy, s), n, cond=asked, generator=seed(1)).tokens
counts = (3 * pairs[:, 0] + pairs[:, 1]).bincount(minlength=9)
print(f"drawn against the closed form: p-value {chi_square(counts, closed).p_value:.2f}")
assert chi_square(counts, closed).p_value > 0.01

# %% [markdown]
# It is. Yet here is the trap. Guidance is often written for whole pictures, $p(x \mid c)^s\, p(x)^{1-s}$, and step by step one draws something else.
# Every step is normalised by its own $Z_j(x_{<j})$, and these differ from prefix to prefix:
#
# $$\begin{gathered} p(x \mid c)^s\, p(x)^{1-s} = \Big[\prod_j \tilde p(x_j)\Big] \cdot \prod_j Z_j(x_{<j}), \\ Z_j(x_{<j}) = \sum_v p(v \mid x_{<j}, c)^s\, p(v \mid x_{<j})^{1-s} \ge 1 \end{gathered}$$

# %%
tilt = joint(toy, 0) ** s * joint(toy, 2) ** (1 - s)  # (9,)
assert torch.allclose(closed * Z.repeat_interleave(3), tilt)
tilt = tilt / tilt.sum()
print("first code        ", "".join(f"{v:8d}" for v in range(3)))
rivals = {"as trained": joint(toy, 0), "guided, by step": closed, "tilted, as a whole": tilt}
for name, p in rivals.items():
    print(f"{name:18s}", "".join(f"{v:8.3f}" for v in p.view(3, 3).sum(1)))
apart = total_variation(closed, tilt).item()
print(f"total variation between the last two: {apart:.2f}")
assert apart > 0.2 and chi_square(counts, tilt).p_value < 1e-6

# %% mystnb={"figure": {"caption": "All nine sentences of class A. Guided step by step, the first code is drawn as if it did not matter, since by itself it says nothing. The tilt of whole sentences begins with 2, where the class can be shown best.", "name": "fig-2-01-toy"}, "image": {"alt": "Grouped bars for the nine sentences 00 to 22, three bars each. As trained and guided by step give each first code a third; tilted as a whole gives most of its mass to the sentence 20."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(7.4, 2.5))
names = ["".join(map(str, pair)) for pair in all_sequences(3, 2).tolist()]
for k, (name, p) in enumerate(rivals.items()):
    colour = (viz.GREY, viz.BLUE, viz.AMBER)[k]
    ax.bar([i + 0.27 * (k - 1) for i in range(9)], p, 0.26, color=colour, label=name)
ax.set(xticks=range(9), ylabel="probability")
ax.set_xticklabels(names)
ax.legend();

# %% [markdown]
# Guidance does not look ahead: it takes each fork as it comes and never asks which road will let it show the class. Is that a subtlety of toys? The
# product of the $Z_j$ is the weight by which a drawn picture would have to be corrected. If few pictures carry all the weight, the two distributions
# have little in common.

# %%
sweep = [one | {"name": "s = 1"}]
sweep += [judged(f"s = {s:g}", draw(Guided(model, s), 500)) for s in (1.5, 2.0, 3.0, 5.0)]


def log_weights(tokens, labels, s):
    """The sum of log Z_j for each picture (B,)."""
    conditional, null = (model.logits(tokens, c).log_softmax(-1) for c in (labels, None))
    return (s * conditional + (1 - s) * null).logsumexp(-1).sum(-1)


for result, s in ((sweep[1], 1.5), (sweep[2], 2.0)):
    tokens, name = result["tokens"][:240], result["name"]
    w = log_weights(tokens, torch.arange(240) % 16, s).softmax(0)
    effective = 1 / w.square().sum().item()
    print(f"{name}: 240 pictures are worth {effective:.1f} of the tilted distribution")
    assert effective < 24

# %% [markdown]
# One picture of 240 would carry all the weight. So "guidance samples $p(x \mid c)^s p(x)^{1-s}$" is not nearly true. It is a rule for steps, and what
# it does to pictures has to be measured.
#
# ## Fidelity against diversity

# %%
table(sweep)
print(f"Fréchet distance of two sets of 500 real pictures: {floor[500]:.2f}")
two, five = sweep[2], sweep[4]
header = checkpoints.header("shapes_gpt")["metrics"]  # 1,000 pictures each
of_header = {s: header[f"accuracy_guidance_{s}"] for s in ("1", "1.5", "2", "3")}
print("accuracy of 1,000:", ", ".join(f"s = {s}: {a:.1%}" for s, a in of_header.items()))
assert two["accuracy"] > 0.95 and of_header["2"] > of_header["1"] + 0.01
assert two["accuracy"] > one["accuracy"] + 0.005 and two["recall"] < one["recall"] - 0.02
assert two["frechet"] < one["frechet"] - 0.1
assert five["accuracy"] < one["accuracy"] - 0.05 and five["frechet"] > 2 * one["frechet"]

# %% mystnb={"figure": {"caption": "The same noise and the same labels at five scales.", "name": "fig-2-01-scales"}, "image": {"alt": "Five rows of sixteen pictures, one for each class. Up to scale 2 they are clear shapes with small faults; at 3 some outlines are torn; at 5 several shapes have patches of another colour or miss a part."}} tags=["hide-input"]
cells = torch.cat([r["images"][16:32] for r in sweep])
viz.image_grid(cells, ncol=16, row_labels=[r["name"] for r in sweep]);

# %% mystnb={"figure": {"caption": "Guidance buys fidelity with diversity, up to a point; beyond it, it buys nothing.", "name": "fig-2-01-tradeoff"}, "image": {"alt": "Left: against the scale, accuracy rises a little up to 2 and falls to 0.83 at 5, precision rises and falls to 0.2, recall falls up to 3 and rises again. Right: the Fréchet distance falls to a minimum near 2 and rises steeply to scale 5; the dotted floor is below."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.4, 2.9))
scales = [1, 1.5, 2, 3, 5]
viz.curves(
    {what: (scales, [r[what] for r in sweep]) for what in ("accuracy", "precision", "recall")},
    xlabel="guidance scale", ylabel="share", ax=left,
)  # fmt: skip
viz.curves(
    {"guided": (scales, [r["frechet"] for r in sweep])},
    xlabel="guidance scale", ylabel="Fréchet distance", ax=right,
)  # fmt: skip
right.axhline(floor[500], color=viz.GREY, ls=":", lw=1)
right.text(4.2, floor[500] + 0.08, "floor", color=viz.GREY)
right.set_ylim(0);

# %% [markdown]
# Up to a scale of 2 the pictures do what they are told and look better, and there are fewer kinds of them: accuracy and precision up, recall down.
# That is the trade as it is always told. Beyond it nothing is bought. At 5 even the *label* is lost: a ratio of two small probabilities is noise, and
# its fourth power is loud. (Recall seems to recover there. It does not mean diversity: it asks whether real pictures lie among the drawn ones, and
# torn pictures lie all over the place.)

# %% [markdown]
# ## Away from what?
#
# Guidance walks away from the forecast without a label. We have two of those. One is made by Bayes' rule from the 16 forecasts. The other comes from
# the network itself, told "none", which is what everybody uses. They should be the same distribution. Are they?

# %%
none = nats(some, None)  # (100, 64)
dropped = drop_labels(torch.zeros(10_000, dtype=torch.long), 0.1, 16, seed(0))
print(f"labels dropped in training: {(dropped == 16).float().mean():.1%}")
print(f"-log p(x | c)             {-told.sum(1).mean():7.1f} nats per picture")
print(f"-log p(x), by Bayes       {-untold.sum(1).mean():7.1f}")
print(f"-log p(x), told \"none\"    {-none.sum(1).mean():7.1f}")


def guided_by_bayes(labels, s, noise, stop=24):
    """The first `stop` codes (B, stop), guided away from the mean over all labels."""
    B, all_labels = len(labels), torch.arange(16).repeat(len(labels))
    cache, evidence = model.new_cache(16 * B), torch.zeros(B, 16)
    canvas = torch.zeros(B, stop, dtype=torch.long)
    for j in range(stop):
        sixteen = canvas[:, : j + 1].repeat_interleave(16, 0)
        logp = model.logits(sixteen, all_labels, cache=cache)[:, -1].log_softmax(-1)
        logp = logp.view(B, 16, -1)
        null = (evidence.log_softmax(1)[..., None] + logp).logsumexp(1)  # (B, 625)
        conditional = logp[torch.arange(B), labels]
        p = torch.lerp(null, conditional, s).softmax(-1)
        canvas[:, j] = inverse_cdf(p, noise[:, j])
        evidence += logp[torch.arange(B), :, canvas[:, j]]
    return canvas


asked, noise = torch.arange(250) % 16, torch.rand(250, 64, generator=seed(0))
pairs = zip(asked.split(50), noise.split(50))
start = torch.cat([guided_by_bayes(c, 2.0, u) for c, u in pairs])
rest = sample_cached(model, 250, cond=asked, prompt=start, generator=seed(0))  # silent there
by_bayes = judged("by Bayes, s = 2", rest.tokens)
by_none = judged("by none, s = 2", two["tokens"][:250])
table([unguided | {"name": "s = 1"}, by_bayes, by_none])
waste = (untold - none).mean(0).view(8, 8).sum(1)
print(f"\"none\" is worse by {waste.sum():.1f} nats:", " ".join(f"{w:4.1f}" for w in waste))
assert waste.sum() > 4 * worth.sum() and waste[2:].sum() > 0.3 * waste.sum()
assert min(by_bayes["accuracy"], by_none["accuracy"]) > unguided["accuracy"] + 0.005
assert by_none["frechet"] < by_bayes["frechet"] - 0.15

# %% [markdown]
# Here is the surprise. Asked without a label, the network is not the mean over labels. It is a *worse model*, by four times as many nats as the label
# is worth; it was trained on one picture in ten. And the two effects come apart. Walking away from the honest mean makes the pictures obey, as much as
# ordinary guidance does, but it takes them only part of the way to the real ones. The rest of the way comes from leaving a bad model, and the difference
# to that one lies in all rows of the picture, also where the label has long been silent. That one can guide away from a worse model *on purpose*,
# without any label, is autoguidance (Karras et al. 2024).

# %% [markdown]
# ## Schedules
#
# Where should guidance act? The scale may differ from code to code. Ramps begin unguided, so that the layout is drawn freely and only its execution
# is guided; VAR does this over its scales. Or one half of the picture only. To be fair, all of them get the same mean scale, 2.

# %%
def with_mean(schedule, mean):
    """Stretch what a schedule adds to 1 until its mean is `mean`."""
    return 1 + (schedule - 1) * (mean - 1) / (schedule - 1).mean()


schedules = {
    "ramp": linear(model.levels, 2.0),
    "ramp, reversed": linear(model.levels, 2.0).flip(0),
    "first half": interval(model.levels, 2.0, 0.0, 0.5),
    "second half": interval(model.levels, 2.0, 0.5, 1.0),
}
schedules = {name: with_mean(schedule, 2.0) for name, schedule in schedules.items()}
scheduled = [by_none | {"name": "constant"}]
for name, schedule in schedules.items():
    scheduled.append(judged(name, draw(Guided(model, schedule), 250)))
table(scheduled)
constant, ramp, backwards, first, second = scheduled
assert min(ramp["recall"], second["recall"]) > constant["recall"] + 0.02
assert max(backwards["recall"], first["recall"]) < second["recall"] - 0.04
assert second["frechet"] < unguided["frechet"] - 0.2
assert constant["frechet"] < min(r["frechet"] for r in scheduled) + 0.1
of_var = linear(torch.tensor([0, 1, 2, 3]), 5.0).tolist()
print("VAR's ramp to s = 5 over four scales:", ", ".join(f"{s:.2f}" for s in of_var))

# %% mystnb={"figure": {"caption": "Four schedules of mean 2. Grey: what the label is worth, code by code (not to scale).", "name": "fig-2-01-schedules"}, "image": {"alt": "Guidance scale against the number of codes written: a rising and a falling ramp between 1 and 3, and two steps at 3 in the first and in the second half. A grey area at the far left, over the first dozen codes."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(6.4, 2.8))
ax.fill_between(range(1, 65), 1, 1 + 2 * worth.clamp(min=0) / worth.max(), color=viz.PALE)
for (name, schedule), colour in zip(schedules.items(), viz.PALETTE):
    ax.plot(range(1, 65), schedule, color=colour, label=name)
ax.set(xlabel="codes written", ylabel="guidance scale")
ax.legend(loc="upper center", ncol=2, bbox_to_anchor=(0.5, 1.25));

# %% [markdown]
# Recall is lost at the beginning, where the layout is drawn: guide late and most of it stays, guide early and it falls. It is no free lunch, for in
# Fréchet distance no schedule beats the constant here. And look at the last line. In the second half the label has nothing left to say, and still guidance
# brings the pictures nearer to the real ones: it is the worse model that it leaves there. (The package has a cosine ramp and free intervals as well.)

# %% [markdown]
# ## A sentence instead of a label
#
# Nothing in this model is about class labels. Put sixteen words in front instead of one, from a table of 19, and let the picture read them (the
# recipe `scene_gpt`: the same size, the same arithmetic, scenes of one to four objects). The words stand in the row above the picture, and guidance
# drops all of them together.

# %%
scene = checkpoints.load("scene_gpt")
wishes = (
    "a large green star",
    "a small red circle left of a large blue square",
    "a large yellow triangle above a small green circle",
    "a red star, a yellow star and a blue star",
    "a blue circle, a green square, a red triangle and a yellow star",
)
words = encode_captions(wishes)  # (5, 16)
print(" ".join(WORDS[w] or "·" for w in words[1]))
six = words.repeat_interleave(8, 0)
canvas = sample_cached(Guided(scene, 2.0), len(six), cond=six, generator=seed(0)).tokens
pictures = tokenizer.decode(canvas).clamp(-1, 1)

# %% mystnb={"figure": {"caption": "Captions of our own, eight draws each.", "name": "fig-2-01-captions"}, "image": {"alt": "Five rows of eight pictures, each row with its caption: mostly the right colours in the right places, shapes that are rough, now and then an object too few or too many."}} tags=["hide-input"]
short = ["a large\ngreen star", "a small red circle\nleft of a\nlarge blue square"]
short += ["a large yellow\ntriangle above a\nsmall green circle"]
short += ["a red star,\na yellow star\nand a blue star"]
short += ["a blue circle,\na green square,\na red triangle and\na yellow star"]
viz.image_grid(pictures, ncol=8, row_labels=short);

# %% [markdown]
# Does it do what the sentence says? Three things can be read from a picture without a network: which colours occur, how many objects there are
# (connected regions of one colour), and, for two objects of different colours, whether they lie as asked. The rule itself makes mistakes, where
# objects touch. So it is read beside two others: the *true* pictures through the tokenizer, which nobody can beat, and the draws held against
# somebody else's caption.

# %%
hues = F.normalize(PALETTE - PALETTE.mean(1, keepdim=True), dim=1)  # (4, 3)


def objects(image):
    """An image (3, H, W) to a list of (colour, x, y), one for each connected region."""
    vivid = image.amax(0) - image.amin(0) > 0.6  # backgrounds and shadows are pale
    hue = torch.einsum("kc,chw->khw", hues, image - image.mean(0)).argmax(0)
    found = []
    for colour in range(4):
        regions, count = ndimage.label((vivid & (hue == colour)).numpy())
        for region in range(1, count + 1):
            y, x = (regions == region).nonzero()
            if len(x) >= 8:
                found.append((colour, x.mean(), y.mean()))
    return found


def asked_for(caption):
    """Colours in the order of the caption, and how the first object lies to the second."""
    words = caption.replace(",", "").split()
    relation = next((w for w in words if w in ("left", "right", "above", "below")), None)
    return [COLOURS.index(w) for w in words if w in COLOURS], relation


def agreement(images, captions):
    """Shares of pictures with the colours, the number of objects and the relation asked for."""
    hits = {"colours": [], "number": [], "relation": []}
    for image, caption in zip(images, captions):
        found, (colours, relation) = objects(image), asked_for(caption)
        hits["colours"].append({c for c, _, _ in found} == set(colours))
        hits["number"].append(len(found) == len(colours))
        if relation and colours[0] != colours[1]:
            place = {c: (x, y) for c, x, y in found}
            if set(colours) <= set(place):
                dx, dy = (a - b for a, b in zip(place[colours[0]], place[colours[1]]))
                holds = dict(left=dx < 0, right=dx > 0, above=dy < 0, below=dy > 0)
                hits["relation"].append(bool(holds[relation]))
    return {what: sum(values) / max(1, len(values)) for what, values in hits.items()}


scenes = data.load("shapes", "validation", version="scene")
count = 240
captions, told_words = scenes.captions[:count], scenes.attributes["words"][:count]
through = tokenizer.decode(tokenizer.encode(scenes.images[:count])).clamp(-1, 1)


def drawn_for(words, scale):
    sampler = Guided(scene, scale) if scale != 1 else scene
    tokens = sample_cached(sampler, count, cond=words, generator=seed(1)).tokens
    return tokenizer.decode(tokens).clamp(-1, 1)


by_caption = {s: drawn_for(told_words, s) for s in (1.0, 2.0)}
others = captions[1:] + captions[:1]
read = {"true, through the tokenizer": agreement(through, captions)}
for s, x in by_caption.items():
    read[f"drawn, s = {s:g}"] = agreement(x, captions)
read["drawn, another's caption"] = agreement(by_caption[2.0], others)
print(f"{'':28s}" + "".join(f"{what:>10s}" for what in ("colours", "number", "relation")))
for name, shares in read.items():
    print(f"{name:28s}" + "".join(f"{share:10.1%}" for share in shares.values()))
header = checkpoints.header("scene_gpt")["metrics"]
likelihood = [header["validation_nats_per_image" + of] for of in ("", "_none", "_another")]
print("nats per picture: own caption {:.1f}, none {:.1f}, another's {:.1f}".format(*likelihood))
crowd = [len(asked_for(caption)[0]) for caption in captions]
by_number = []
for k in (1, 2, 3, 4):
    chosen = [i for i, size in enumerate(crowd) if size == k]
    x, theirs = by_caption[2.0][chosen], [captions[i] for i in chosen]
    by_number.append(agreement(x, theirs)["colours"])
print("colours right, one to four objects:", ", ".join(f"{share:.0%}" for share in by_number))
own, other = read["drawn, s = 2"], read["drawn, another's caption"]
assert own["colours"] > other["colours"] + 0.4 and own["number"] > other["number"] + 0.3
assert own["relation"] > 0.8 and own["colours"] > read["drawn, s = 1"]["colours"] + 0.03

# %% [markdown]
# It reads. When both colours are there, they nearly always lie as asked: words for places have become places. In seven of ten pictures the colours
# are the right ones, and guidance helps, by a tenth. In three of ten they are not, most of them where three or four objects were asked for: this is
# what a million weights and 10,000 scenes give. Shapes and sizes are not checked here, and the figure shows that they are rough.

# %% [markdown]
# ## Exercise 1: guidance on probabilities (★, 5 minutes)
#
# Write the guided distribution of one step from the two distributions of the network.

# %% tags=["exercise"]
def tilted(p, p_null, s):
    """Distributions p, p_null (..., V) and a scale s to the guided one (..., V)."""
    return None  # your code

# %% tags=["exercise-check"]
p = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.2, 0.6]])
p_null = torch.tensor([[0.25, 0.25, 0.5], [0.2, 0.2, 0.6]])
answer = tilted(p, p_null, 2.0)
if answer is None:
    print("Hint: p^s p_null^(1 - s) is not yet a distribution.")
else:
    total = answer.sum(-1)
    wrong = f"each row should sum to 1, got {total.tolist()}"
    assert torch.allclose(total, torch.ones(2)), wrong
    guided_p = torch.lerp(p_null.log(), p.log(), 2.0).softmax(-1)
    assert torch.allclose(answer, guided_p), "it should equal softmax(l_null + s (l - l_null))"
    assert torch.allclose(answer[1], p[1]), "a label that says nothing changes nothing"
    print("Right: and the second row, where the label says nothing, stayed as it was.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Divide by the sum over the last axis, with `keepdim=True`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def tilted(p, p_null, s):
#     power = p**s * p_null ** (1 - s)
#     return power / power.sum(-1, keepdim=True)
# ```
#
# </details>
# <details><summary>Wrong: forgets to divide</summary>
#
# Then a row sums to its $Z_j$, which is what sets guidance by step apart from the tilt of whole pictures.
#
# ```python
# def tilted(p, p_null, s):
#     return p**s * p_null ** (1 - s)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: a triangle (★★, 10 minutes)
#
# Write a schedule that rises from 1 at the first code to a peak in the middle and falls back to 1 at the last one, in straight lines, with a given
# *mean* scale.

# %% tags=["exercise"]
def triangle(N, mean):
    """Scales (N,), N odd."""
    return None  # your code

# %% tags=["exercise-check"]
answer = triangle(65, 2.0)
if answer is None:
    print("Hint: draw a triangle between 0 and 1 first. How far must it be stretched?")
else:
    assert answer.shape == (65,), f"one scale per code, (65,); got {tuple(answer.shape)}"
    ends = [answer[0].item(), answer[-1].item()]
    assert ends == [1.0, 1.0], f"1 at both ends, got {ends}"
    mean = answer.mean().item()
    assert abs(mean - 2) < 1e-4, f"the mean should be 2, got {mean:.2f}"
    assert answer.argmax() == 32, f"the peak is at code 32, got {int(answer.argmax())}"
    assert torch.allclose(answer, answer.flip(0)), "it should fall as it rose"
    slope = answer[:33].diff()
    assert torch.allclose(slope, slope[:1], atol=1e-4), "it should rise in a straight line"
    print(f"Right: the peak is at {answer.max():.2f}.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `torch.arange(N)` and its flip, whichever is smaller, is a triangle. Stretch what it adds to 1.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def triangle(N, mean):
#     up = torch.arange(N).float()
#     shape = torch.minimum(up, up.flip(0))
#     return 1 + shape * (mean - 1) / shape.mean()
# ```
#
# </details>
# <details><summary>Wrong: the peak is the mean</summary>
#
# A triangle is half as high on average as at its peak.
#
# ```python
# def triangle(N, mean):
#     up = torch.arange(N).float()
#     shape = torch.minimum(up, up.flip(0))
#     return 1 + shape * (mean - 1) / shape.max()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: the classifier inside (★★, 10 minutes)
#
# The first line of the derivation, all the way: from the log-probability of every code under every class, the posterior of the class after each code,
# all classes equally likely at first.

# %% tags=["exercise"]
def posterior(logp):
    """logp (C, N), log p(x_j | x_<j, c), to p(c | x_0 .. x_j), (C, N)."""
    return None  # your code

# %% tags=["exercise-check"]
logp = torch.tensor([[0.5, 0.1, 0.8], [0.5, 0.3, 0.2]]).log()  # two classes, three codes
answer = posterior(logp)
if answer is None:
    print("Hint: after code j, all evidence up to j counts: a cumulative sum of logs.")
else:
    got = [round(float(v), 3) for v in answer[0]]
    assert torch.allclose(answer.sum(0), torch.ones(3)), "classes sum to 1 after every code"
    wanted = [0.5, 0.25, 0.571]
    assert got == wanted, f"class 0: expected {wanted}, got {got}; evidence adds up"
    print("Right: the third code turned the verdict round.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `logp.cumsum(1)` are the log-likelihoods of the prefixes; a softmax over the classes is Bayes' rule.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def posterior(logp):
#     return logp.cumsum(1).softmax(0)
# ```
#
# </details>
# <details><summary>Wrong: forgets what came before</summary>
#
# It judges every code by itself.
#
# ```python
# def posterior(logp):
#     return logp.softmax(0)
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * Codes in reading order, a class in front, positions by row and column: a picture is a sentence, and a Llama writes it.
# * The label is worth $\log 16$ nats of a picture and hardly matters to the loss; nearly all of it is said in the first two rows.
# * Guidance counts the label's evidence $s$ times, at every step. Steps are normalised one by one, so whole pictures are *not* tilted by
#   $p(x \mid c)^s p(x)^{1-s}$.
# * It buys fidelity with diversity up to a scale, and breaks pictures beyond. Ramps keep more of the diversity.
# * The label makes pictures obey. That they look better comes in good part from leaving a worse model, the network that was told "none".
#
# ## Where this stands
#
# Raster order with a plain Llama: LlamaGen (Sun et al. [2406.06525](https://arxiv.org/abs/2406.06525)). Classifier-free guidance: Ho and Salimans
# ([2207.12598](https://arxiv.org/abs/2207.12598)), over the scales of VAR: Tian et al. ([2404.02905](https://arxiv.org/abs/2404.02905)), in an
# interval of the noise levels of diffusion: Kynkäänniemi et al. ([2404.07724](https://arxiv.org/abs/2404.07724)). Guiding away from a worse model:
# Karras et al. ([2406.02507](https://arxiv.org/abs/2406.02507)). Precision and recall: Kynkäänniemi et al.
# ([1904.06991](https://arxiv.org/abs/1904.06991)). Top-p: Holtzman et al. ([1904.09751](https://arxiv.org/abs/1904.09751)); min-p: Nguyen et al.
# ([2407.01082](https://arxiv.org/abs/2407.01082)). The next chapter replaces reading order by scales.
