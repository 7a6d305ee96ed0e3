# %% [markdown]
# # One table: which way to say a picture?
#
# | | |
# | --- | --- |
# | **You will build** | a map of the field in four questions, one check that fits every model of this part, and the table that compares them all |
# | **Time** | under a minute on a laptop, without a GPU |
# | **You need** | chapters 01 to 04 of this part |
# | **Of the five nouns** | model, sampler |
# | **Systems** | the survey of autoregressive models in vision, as a map |
#
# Seven models of this part say the same pictures in seven ways: token by token, diagonal by diagonal, map by map, or by guessing everything and keeping the
# best of it. Each has its own paper, and every paper wins its own table. Here all of them have the same data, the same million weights and the same
# arithmetic for training, so that the table means something. Then we look at what it does *not* mean.

# %% tags=["exercise-setup"]
import math
from itertools import product

import matplotlib.pyplot as plt
import torch

from minimal import checkpoints, data, viz
from minimal.ar.histogram import Histogram
from minimal.bench import race
from minimal.metrics import (
    batched,
    bits_per_dim,
    frechet_distance,
    frechet_floor,
    label_accuracy,
)
from minimal.recipes.autoregressive import BATCH, BUDGET, coded, equal_steps
from minimal.recipes.flex_scale import LISTS, shown
from minimal.samplers.cached import bounds, sample_cached
from minimal.samplers.guidance import Guided
from minimal.samplers.logits import draw, uniform_noise
from minimal.samplers.masked import sample_masked
from minimal.samplers.trace import multiply_adds

viz.style()
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def seeded(number):
    return torch.Generator().manual_seed(number)


# %% [markdown]
# ## The question
#
# Each of these rows was drawn by another model, for the same labels. They differ in how many times the network was asked: 64 times for one row, 4 times for
# another. Can you see which?

# %%
vq = checkpoints.load("shapes_vq")  # 8 x 8 tokens of 625 codes
pyramid = checkpoints.load("shapes_multiscale")  # VAR's 1 + 4 + 16 + 64 tokens of 256 codes
flex = checkpoints.load("shapes_flex")  # FlexVAR's maps of any size, 512 codes
FILES = {  # checkpoints, each made by the recipe of that name
    "raster": "shapes_gpt",
    "axial": "shapes_axial",
    "neighbour": "shapes_nar",
    "any order": "shapes_any_order",
    "masked": "shapes_maskgit",
    "scale": "shapes_var",
    "flexible scale": "shapes_flexvar",
}
models = {name: checkpoints.load(file) for name, file in FILES.items()}
models["flexible scale"] = models["flexible scale"].with_scales((1, 2, 4, 8))
place = models["neighbour"].order.argsort()  # its tokens lie in the order of diagonals
PAINT = dict.fromkeys(models, vq.decode) | {
    "neighbour": lambda tokens: vq.decode(tokens[:, place]),
    "scale": pyramid.decode,
    "flexible scale": shown(flex, models["flexible scale"]),
}


metrics = {name: checkpoints.header(file)["metrics"] for name, file in FILES.items()}
STRENGTH = {  # of guidance: each model may choose among three, on validation
    name: min((1.0, 2.0, 3.0), key=lambda s: m[f"frechet_guidance_{s:g}"])
    for name, m in metrics.items()
}


def sample(name, n, cond, seed=0, steps=None):
    """`n` samples of a model, with the guidance that suits it best.

    `steps`, where one may choose: by default 8 for the masked model, 4 maps of flexible sizes.
    """
    model, options = models[name], dict(cond=cond, generator=seeded(seed))
    if name == "flexible scale" and steps is not None:
        model = model.with_scales(LISTS[steps])
    model = Guided(model, STRENGTH[name])
    if name == "masked":
        return sample_masked(model, n, num_steps=steps or 8, **options)
    return sample_cached(model, n, **options)


labels = torch.arange(96) % 16  # six of each class
drawn = {name: sample(name, len(labels), labels) for name in models}
pictures = {name: PAINT[name](drawn[name].tokens).clamp(-1, 1) for name in models}

# %% mystnb={"figure": {"caption": "One picture of each of 12 classes. Every column has one label, every row is one model.", "name": "fig-2-06-samples"}, "image": {"alt": "Seven rows of twelve small pictures, one row for each model. In every column all seven show the same kind of shape in the same colour."}} tags=["hide-input"]
rows = torch.cat([images[16:28] for images in pictures.values()])
viz.image_grid(rows, ncol=12, row_labels=list(pictures));

# %% [markdown]
# ## A map of the field
#
# The survey of Xiong et al. sorts some 250 papers by *what is put into a sequence*:
#
# * **pixels**: intensities, one after another (chapter 0.3 did that with digits);
# * **tokens**: codes of a tokenizer, in raster order, in random order, or masked;
# * **scales**: whole maps, from coarse to fine.
#
# This says what a symbol is. To tell the models of this part apart we ask four questions of each. Nearly every paper changes one answer and keeps the others.
#
# | model | predicted per step | who sees whom | what feeds the next step | what happens to the logits |
# | --- | --- | --- | --- | --- |
# | **raster** | one token | all before it | that token | one draw |
# | **axial** | one token | the rows above, what is left of it | that token; a finished row feeds the rows below | one draw |
# | **neighbour** | one diagonal | all up to its own diagonal | the tokens of the diagonal | two heads averaged, independent draws |
# | **any order** | one token, anywhere | all before it | that token, and which place is next | one draw |
# | **masked** | every hidden token | everybody | the canvas, with fewer masks | most draws are thrown away again |
# | **scale** | one map | all up to its own map | the sum of the maps so far, shrunk | independent draws |
# | **flexible scale** | one map, of any size | all up to its own map | the map before, enlarged | independent draws |
#
# The first question has a picture. Give every cell the number of the step in which its token is written: its *level*. One array of integers says how a model
# generates. The mask is made of it (`not_after`), and the sampler's loop, and the number of forwards. For the masked model there is no such array: which tokens are
# kept depends on what was drawn. So we watch it draw one picture.

# %%
class Watched(Guided):
    """Remembers which tokens of the first canvas were still hidden at each forward."""

    def __init__(self, model, scale):
        super().__init__(model, scale)
        self.hidden = []

    def logits(self, tokens, cond=None, **options):
        self.hidden.append(tokens[0] == self.vocab_size)
        return super().logits(tokens, cond, **options)


watched = Watched(models["masked"], STRENGTH["masked"])
sample_masked(watched, 1, num_steps=8, cond=labels[:1], generator=seeded(0))
levels = {name: model.levels for name, model in models.items() if name != "masked"}
levels["neighbour"] = levels["neighbour"][place]  # as it lies in the picture
levels["any order"] = torch.randperm(64, generator=seeded(0)).argsort()  # one of many
levels["masked"] = torch.stack(watched.hidden).sum(0) - 1
steps = {name: 1 + int(levels[name].max()) for name in models}
for name in models:
    print(f"{name:16s}{len(levels[name]):3d} tokens in {steps[name]:2d} steps")
assert list(steps.values()) == [64, 64, 15, 64, 8, 4, 4]
assert all(drawn[name].trace.forwards["target"] == steps[name] for name in models)

# %% mystnb={"figure": {"caption": "The step in which a token is written, from dark (first) to light (last). The models of scales write four maps; all of them cover the whole picture.", "name": "fig-2-06-levels"}, "image": {"alt": "Seven squares of eight by eight cells coloured by step. Raster and axial grow lighter row by row, neighbour along diagonals, any order and masked are scattered, and the two scale models show four maps of rising size, each in one colour."}} tags=["hide-input"]
figure, axes = plt.subplots(2, 4, figsize=(8.6, 4.7))
corners = {1: (0.0, 0.0), 2: (1.35, 0.0), 4: (0.0, 1.35), 8: (1.35, 1.35)}  # of the four maps
for ax, name in zip(axes.flat, models):
    level, top = levels[name], steps[name] - 1
    options = dict(cmap="viridis", vmin=0, vmax=top, interpolation="nearest")
    if len(level) == 64:
        ax.imshow(level.view(8, 8), **options)
        for (row, column), value in zip(torch.cartesian_prod(*[torch.arange(8)] * 2), level):
            ink = "white" if value < 0.6 * top else viz.INK
            ax.text(column, row, int(value), ha="center", va="center", fontsize=6, color=ink)
    else:
        for k, (side, (x, y)) in enumerate(corners.items()):
            part = torch.full((side, side), k)
            ax.imshow(part, extent=(x, x + 1.15, y + 1.15, y), **options)
            lines = [i * 1.15 / side for i in range(1, side)]
            ax.hlines([y + line for line in lines], x, x + 1.15, colors="white", lw=0.6)
            ax.vlines([x + line for line in lines], y, y + 1.15, colors="white", lw=0.6)
        ax.set(xlim=(-0.05, 2.55), ylim=(2.55, -0.05))
    ax.set_title(f"{name}: {steps[name]} steps", fontsize=9)
    viz.bare(ax)
axes.flat[-1].set_visible(False)

# %% [markdown]
# ## One check for all: the chain rule
#
# A model with levels has an exact likelihood, whatever the levels are:
#
# $$\log p(x \mid c) = \sum_{l} \; \sum_{j:\, \text{level}(j) = l} \log p(x_j \mid \text{lower levels}, c)$$
#
# The sum does not care how we compute it. All levels in one forward, as in training. One level per forward through a cache, as in sampling. Three levels at a
# time. If these disagree, training and sampling do not use the same model: a mask is wrong, or a cache, or a position. So this is the check to write first for
# any new autoregressive model, and it is eight lines for all of them.

# %%
def by_steps(model, tokens, cond, group):
    """log p (B,) of tokens (B, N), `group` levels per forward, through a cache."""
    cache, total, ends = model.new_cache(len(tokens)), 0.0, bounds(model)[1:]
    for end in sorted({*ends[group - 1 :: group], ends[-1]}):
        logp = model.logits(tokens[:, :end], cond, cache=cache).log_softmax(-1)
        new = tokens[:, end - logp.shape[1] : end]
        total = total + logp.gather(-1, new[..., None]).sum((1, 2))
    return total


few = slice(0, 20)
print("largest difference in nats        one by one   3 levels at once   image by image")
for name, model in models.items():
    if name == "masked":
        continue
    x, c = drawn[name].tokens[few], labels[few]
    whole = model.logprob(x, c)
    others = [by_steps(model, x, c, 1), by_steps(model, x, c, 3)]
    others.append(torch.cat([model.logprob(x[i : i + 1], c[i : i + 1]) for i in range(len(x))]))
    apart = [(other - whole).abs().max().item() for other in others]
    gaps = "".join(f"{gap:14.5f}" for gap in apart)
    print(f"{name:16s} of {-whole.mean():6.1f}       {gaps}")
    assert max(apart) < 1e-2 < 1 < whole.abs().min()

# %% [markdown]
# The masked model is missing. It has a chain rule for *every* order of the tokens, and nothing makes two of them agree: each order is a distribution of its own.
# `logprob` takes one forward for each token; the mean over all orders is an upper bound of the negative log-likelihood of their mixture, and a
# few random canvases estimate it.

# %%
masked, x, c = models["masked"], drawn["raster"].tokens[:4], labels[:4]
orders = [torch.arange(64)] + [torch.randperm(64, generator=seeded(s)) for s in range(2)]
nats = torch.stack([-masked.logprob(x, c, order) for order in orders])  # (3, 4)
mean = masked.any_order_nats(x, c, draws=32, generator=seeded(0)).mean()
print("nats of four pictures, row by row  ", "".join(f"{v:8.1f}" for v in nats[0]))
for i in (1, 2):
    print(f"in random order {i}                  ", "".join(f"{v:8.1f}" for v in nats[i]))
print(f"means {', '.join(f'{v:.1f}' for v in nats.mean(1))}; over all orders about {mean:.1f}")
assert (nats[0] - nats[1]).abs().min() > 0.1

# %% [markdown]
# ## The rules of the comparison
#
# All models have blocks of width 128, read the frozen tokens of a shipped tokenizer, and see the same 10,000 pictures in batches of 32, at one learning rate. Training stops when a
# fixed number of multiply-adds is spent. A map of 85 tokens costs more than a row of 64, so its model gets fewer steps. That is the price of its order, and it
# should pay it. The column of steps is derived here again from the models. (The recipe of
# flexible scales, where every batch has a list of maps of its own, estimated its mean cost from 32 lists; here it is taken over all 64.)

# %%
train = data.load("shapes", "train", version="single")
validation = data.load("shapes", "validation", version="single")
codes = coded(vq)  # tokens and labels of every split
counts = Histogram(codes["train"][0], vq.vocab_size, codes["train"][1], num_classes=16)


def size_of(model):
    """Trained numbers; codebooks are copies of the tokenizer's and stay as they are."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


batch_of = dict.fromkeys(models, tuple(part[:BATCH] for part in codes["train"]))
batch_of["scale"] = (pyramid.encode(train.images[:BATCH]), train.labels[:BATCH])
size, spent = {"histogram": counts.table.numel()}, {"histogram": 0.0}
print("                  weights    steps   multiply-adds")
for name, model in models.items():
    if name == "flexible scale":  # every batch has a list of its own: the mean over all 64
        every = model.with_scales(range(1, 9))
        one = flex.pyramid(train.images[:1], every.scales), train.labels[:1]
        costs = []
        for kept in product((False, True), repeat=6):
            sides = (1, *(p for p, keep in enumerate(kept, 2) if keep), 8)
            view, tokens = every.with_scales(sides), every.maps(one[0], sides)
            costs.append(BATCH * multiply_adds(lambda: view.loss(tokens, one[1])))
        cost = sum(costs) / len(costs)
        n = 10 * round(BUDGET / cost / 10)
    else:
        cost = multiply_adds(lambda: model.loss(*batch_of[name]))
        n = equal_steps(model, batch_of[name])
    size[name], spent[name] = size_of(model), n * cost
    print(f"{name:16s}{size[name] / 1e6:7.2f} M{n:9d}{n * cost / 1e12:10.2f} T")
assert max(spent.values()) < 1.03 * spent["raster"]

# %% [markdown]
# Two more rules. Every Fréchet distance is measured with 1,000 pictures, and two sets of 1,000 *real* pictures are not at distance zero: that is the
# floor. Guidance is tuned alike: each model takes the best of three strengths, 1, 2 or 3, chosen on validation. The numbers stand in the headers of the checkpoints, where the recipes wrote them. We need not believe a header, so
# the 96 pictures from above are judged again.

# %%
judge = checkpoints.load("judge_shapes")
some = batched(judge.features, train.images[:2000])
floor = frechet_floor(some, 1000, seeded(0), labels=train.labels[:2000])
real = batched(judge.features, validation.images)

cond = torch.arange(1000) % 16
u = uniform_noise(1000, 64, seeded(0))
painted = vq.decode(draw(counts.logits(codes["train"][0][:1000], cond), u)).clamp(-1, 1)
quality = {
    "histogram": {
        "accuracy": label_accuracy(judge, painted, cond),
        "frechet": frechet_distance(real, batched(judge.features, painted)),
    }
}
print("                 guidance   Fréchet   labels right, of 1,000   of our 96")
for name, m in metrics.items():
    at = f"guidance_{STRENGTH[name]:g}"
    quality[name] = {key: m[f"{key}_{at}"] for key in ("accuracy", "frechet")}
    share, again = quality[name]["accuracy"], label_accuracy(judge, pictures[name], labels)
    print(
        f"{name:16s}{STRENGTH[name]:9g}{quality[name]['frechet']:10.2f}"
        f"{share:25.1%}{again:12.1%}"
    )
    assert abs(share - again) < 4 * (max(share * (1 - share), 0.01) / 96) ** 0.5
seven = {key: metrics["flexible scale"][f"{key}_steps_7"] for key in ("accuracy", "frechet")}
quality["flexible, 7"] = seven  # maps of sides 1, 2, 3, 4, 5, 6, 8; at guidance 2
assert STRENGTH["flexible scale"] == 2
print(f"  with 7 maps            {seven['frechet']:10.2f}{seven['accuracy']:25.1%}")
found = quality["histogram"]
print(f"histogram                {found['frechet']:10.2f}{found['accuracy']:25.1%}")
print(f"real pictures            {floor:10.2f}")

# %% [markdown]
# ## What a likelihood is the likelihood of
#
# Five of the models, and the histogram, speak the same 64 tokens. Their nats may be compared; for the any-order model they are those of reading order,
# for the masked model an average over orders. The two models of scales speak other tokens, more of them, from smaller or larger codebooks, so their nats are about something
# else. To bring all to the same thing, the picture itself, add what the decoder leaves open. Take it as a Gaussian around the painted picture, of one width
# $\sigma$ for all pixels, fitted on training pictures:
#
# $$-\log p(x) \;\le\; -\log p(\text{tokens}) \; - \; \log \mathcal{N}(x;\, \text{decode}(\text{tokens}), \sigma^2)$$
#
# It is a bound, since other tokens could paint the same picture. In bits per dimension, with pixels on 256 levels:

# %%
def decoder_nats(tokenizer, count=500):
    """-log p(x | tokens) in nats: mean over validation pictures."""
    width = 0.0
    for images in (train.images[:count], validation.images[:count]):
        painted = batched(lambda x: tokenizer.decode(tokenizer.encode(x)), images, 250)
        error = (painted.clamp(-1, 1) - images).square().mean().item()
        width = width or error  # of the training pictures
    dims = images[0].numel()
    level = math.log(2 / 255)  # a density, times the distance of two grey levels
    return dims * (0.5 * math.log(2 * math.pi * width) + error / (2 * width) - level), dims


SPEAKS = dict.fromkeys(["histogram", *models], vq) | {"scale": pyramid, "flexible scale": flex}
left = {tokenizer: decoder_nats(tokenizer) for tokenizer in (vq, pyramid, flex)}
held_out, their_labels = codes["validation"]
nats = {"histogram": -counts.logprob(held_out, their_labels).mean().item()}
for name, m in metrics.items():
    key = {"masked": "nats_any_order", "any order": "nats_raster"}.get(name, "nats_per_image")
    nats[name] = m[f"validation_{key}"]
print("                 nats of tokens   + decoder      = bits per dimension")
for name, value in nats.items():
    rest, dims = left[SPEAKS[name]]
    print(f"{name:16s}{value:15.1f}{rest:12.0f}{bits_per_dim(value + rest, dims):18.3f}")
same = [nats[name] for name in models if SPEAKS[name] is vq]
spread, apart = max(same) - min(same), left[pyramid][0] - left[vq][0]
print(f"models of the same tokens differ by {spread:.0f} nats, the decoders by {apart:.0f}")
assert nats["histogram"] > 1.3 * max(same) and apart > 3 * spread

# %% [markdown]
# Of some 8,600 nats the tokens are about a hundred. Whether a decoder paints two decibels better decides everything, and the generator hardly counts. So a
# likelihood of tokens cannot rank models across tokenizers, and a likelihood of pictures ranks the tokenizers. What remains is a fair comparison among those that
# speak the same tokens, and there the nats say something: how much a model loses by drawing tokens together that depend on each other, as the
# neighbours do, or by learning every order instead of one.

# %% [markdown]
# ## What a picture costs
#
# Papers count forwards, since on a large GPU one request at a time waits for them. But a forward is not a unit. The raster model's reads one token; the masked
# model's reads all 64, and no cache can help it, since every token sees every other. So next to the forwards stand the multiply-adds for one guided picture, and the time,
# as a multiple of the raster GPT's: once for a single picture, once for sixteen together.

# %% tags=["nbval-ignore-output"]
CASES = {name: (name, None) for name in models}
CASES |= {"flexible, 7": ("flexible scale", 7), "masked, 16": ("masked", 16)}
one, many = 1, 16


def job(name, steps, n):
    return lambda: sample(name, n, torch.arange(n) % 16, steps=steps)


forwards, work = {"histogram": 0}, {"histogram": 0}
for case, (name, n) in CASES.items():
    work[case] = multiply_adds(job(name, n, one))
    forwards[case] = job(name, n, one)().trace.forwards["target"]
times = {}
for count, rounds in ((one, 3), (many, 2)):
    jobs = {case: job(name, n, count) for case, (name, n) in CASES.items()}
    seconds = race(jobs, rounds)  # in turns; the median of each
    times[count] = {case: value / seconds["raster"] for case, value in seconds.items()}
print("                 forwards   multiply-adds   time alone   time of 16 together")
for case in CASES:
    print(
        f"{case:16s}{forwards[case]:9d}{work[case] / 1e6:13.0f} M"
        f"{times[one][case]:12.2f} x{times[many][case]:18.2f} x"
    )
assert forwards["raster"] > forwards["neighbour"] > forwards["masked"] > forwards["scale"]
assert forwards["scale"] * 6 <= forwards["raster"] and work["masked"] > 5 * work["raster"]
assert times[one]["scale"] < 0.5 and times[many]["masked"] > 1.5

# %% [markdown]
# This is the surprise of the chapter. Count forwards, and the masked model needs an eighth of what the raster GPT needs. Count arithmetic, and it needs more than *eight
# times* as much: 8 forwards over 64 positions that no cache can spare, against 64 forwards over one. Alone it is faster all the same, since for one picture a small
# forward costs what it costs to start. With sixteen pictures in a batch it is the slowest of all by far. The models of scales keep both advantages: their
# levels are few *and* everything is computed once. They pay for the coarse maps, 85 positions instead of 64. And the axial model, 64 forwards like raster, is cheaper than
# it, since only one of its five blocks runs for every token.

# %% [markdown]
# ## One table
#
# All of it together. A mark behind the nats says whose tokens they are about: none for `shapes_vq`, ' for VAR's pyramid, " for FlexVAR's maps. For the masked model with
# 16 steps there is no quality: its recipe measured 1,000 guided pictures with 8 steps only. What more steps do without guidance, with 500 pictures each, stands below.

# %% tags=["nbval-ignore-output"]
print("                 weights  training    nats   Fréchet   right  forwards   M-adds    time")
for case in ["histogram", *CASES]:
    name = CASES.get(case, (case,))[0]
    line = f"{case:16s}{size[name] / 1e6:6.2f} M{spent[name] / 1e12:8.2f} T"
    mark = {vq: " ", pyramid: "'", flex: '"'}[SPEAKS[name]]
    line += f"{nats[case]:8.0f}{mark}" if case in nats else " " * 9
    if case in quality:
        line += f"{quality[case]['frechet']:9.2f}{quality[case]['accuracy']:8.1%}"
    line = f"{line:60s}{forwards[case]:8d}{work[case] / 1e6:9.0f}"
    print(line + (f"{times[one][case]:8.2f}" if case in CASES else ""))
print(f"real pictures    {'':27s}{floor:9.2f}")
m = metrics["masked"]
print("\nmasked, unguided, 500 pictures: steps   1      2      4      8     16     64")
by_count = [m[f"frechet_steps_{n}"] for n in (1, 2, 4, 8, 16, 64)]
print("                              Fréchet" + "".join(f"{value:7.2f}" for value in by_count))

fd = {case: found["frechet"] for case, found in quality.items()}
assert quality["raster"]["accuracy"] > 0.95 < quality["scale"]["accuracy"]
assert max(fd["raster"], fd["axial"]) < fd["neighbour"] < fd["flexible scale"] < fd["scale"]
assert fd["flexible, 7"] < 0.7 * fd["flexible scale"]
assert min(fd["masked"], fd["any order"]) > 1.1 * fd["scale"]
assert nats["axial"] < nats["raster"] < nats["neighbour"]
assert min(nats["masked"], nats["any order"]) > 1.4 * nats["raster"]
assert by_count[-1] > by_count[2]

# %% mystnb={"figure": {"caption": "Quality against cost, in two currencies. Fréchet distances of 1,000 pictures, on a logarithmic axis; the dashed line is the floor. On the left cost is forwards, on the right multiply-adds: the masked model moves from one end to the other.", "name": "fig-2-06-pareto"}, "image": {"alt": "Two scatter plots of the named models, Fréchet distance against forwards per picture and against multiply-adds per picture. On the left the scale models and the masked model are cheapest; on the right the masked model is the most expensive of all."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(8.8, 3.3), sharey=True)
colours = (*viz.PALETTE[:5], viz.GREY, viz.INK, viz.INK)
for ax, cost, label in zip(axes, (forwards, work), ("forwards", "multiply-adds")):
    unit = 1 if cost is forwards else 1e6
    for name, colour in zip([*models, "flexible, 7"], colours):
        x, y = cost[name] / unit, quality[name]["frechet"]
        ax.plot(x, y, "o", color=colour, ms=6)
        right = x < 40 if cost is forwards else 120 < x < 500
        style = dict(ha="left" if right else "right", va="center", fontsize=8)
        text = dict(textcoords="offset points", color=colour, fontweight="bold")
        lift = {"axial": 6, "raster": -6}.get(name, 0)  # they would cover each other
        ax.annotate(name, (x, y), (7 if right else -7, lift), **style, **text)
    ax.axhline(floor, ls="--", lw=1, color=viz.INK)
    ax.set(xscale="log", yscale="log", xlabel=f"{label} per picture")
axes[0].set(ylabel="Fréchet distance", xlim=(2.5, 100))
axes[0].set_xticks([4, 8, 16, 32, 64], ["4", "8", "16", "32", "64"])
axes[1].set(xlabel="multiply-adds per picture, millions", xlim=(45, 2000))
axes[1].set_xticks([100, 200, 500, 1000], ["100", "200", "500", "1000"])
for ax in axes:
    ax.minorticks_off()
axes[0].text(2.7, floor * 1.08, "two sets of real pictures", fontsize=8)
axes[0].set_yticks([0.1, 0.2, 0.5, 1, 2], ["0.1", "0.2", "0.5", "1", "2"]);

# %% [markdown]
# What the table says:
#
# * **Steps buy quality, and not evenly.** The two models that write token by token in reading order are nearest to real pictures, and the axial one, which
#   only looks along rows and columns, has the fewest nats of all. Neighbours give up little for a quarter of the forwards. Four maps give up more, and yet *seven* maps of the same flexible model, same weights, are back beside the neighbours with half of their forwards.
# * **An order to learn is cheaper than all orders.** The masked and the any-order model have the most to learn from the same arithmetic, and it shows in nats
#   and in pictures. It is not that the masked model draws too much at once: with 64 steps, a token at a time, it does no better than with 4.
# * **Nats and pictures are not one scale.** Of the last two the one with fewer nats has the worse pictures. And FlexVAR's nats against VAR's say nothing at
#   all: they speak of other tokens.
# * **A cost has a situation.** For one request, count forwards. For a batch, count arithmetic.
#
# What it does not say. There is one seed of each, so small differences in the distance may be luck. These are a million weights, eight trillion multiply-adds and 32 pixels a side;
# VAR's authors, with models hundreds of times larger, report maps ahead of raster order ([2404.02905](https://arxiv.org/abs/2404.02905)). And equal arithmetic is one choice: at
# equal *steps* the models of scales would have had more of it, as the column of steps shows. What carries over is the way of asking.

# %% [markdown]
# ## Exercise 1: how much work is a cache worth? (★, 5 minutes)
#
# From the levels of a model, compute for how many positions the network runs to write one picture: with a cache, where every position is computed once,
# and without, where each step recomputes everything up to and including its own level.

# %% tags=["exercise"]
def positions(levels):
    """Levels (N,), rising from 0 without gaps -> (with a cache, without), two numbers."""
    return None  # your code

# %% tags=["exercise-check"]
answer = positions(torch.tensor([0, 1, 1, 2]))
if answer is None:
    print("Hint: torch.bincount(levels) says how many tokens each step writes.")
else:
    with_, without = (int(v) for v in answer)
    assert with_ == 4, f"with a cache each of the 4 positions is computed once, got {with_}"
    wrong = "step 1 runs over position 0 and its own two, step 2 over all four"
    assert without == 1 + 3 + 4, f"without: expected 8, got {without}: {wrong}"
    scales_ = torch.arange(4).repeat_interleave(torch.tensor([1, 4, 16, 64]))
    ratios = []
    for levels_ in (torch.arange(64), scales_):
        with_, without = (int(v) for v in positions(levels_))
        ratios.append(f"{without / with_:.1f} times")
    print(f"Right: without a cache, raster does {ratios[0]} the work, scales {ratios[1]}.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# The cumulative sum of the counts is where each level ends.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def positions(levels):
#     ends = torch.bincount(levels).cumsum(0)
#     return ends[-1], ends.sum()
# ```
#
# </details>
# <details><summary>Wrong: one position per step</summary>
#
# This counts steps. It is right for raster order, where a level is one token.
#
# ```python
# def positions(levels):
#     steps = levels.unique()
#     return len(levels), (steps + 1).sum()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: nats of each level (★★, 10 minutes)
#
# Where does a likelihood come from? Given logits (B, N, V), tokens (B, N) and levels (N,), return the nats that each level costs, (B, K), so that a row sums to
# $-\log p(x)$.

# %% tags=["exercise"]
def nats_of_levels(logits, tokens, levels):
    """Logits (B, N, V), tokens (B, N), levels (N,) of K steps -> nats (B, K)."""
    return None  # your code

# %% tags=["exercise-check"]
scores = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
codes_ = torch.tensor([[0, 6, 2, 3, 1], [5, 5, 5, 0, 0], [1, 2, 3, 4, 5]])
level_ = torch.tensor([0, 2, 1, 2, 1])  # not sorted: a picture, not the order of generation
answer = nats_of_levels(scores, codes_, level_)
if answer is None:
    print("Hint: gather the log-probability of each token, then add up by level: index_add.")
else:
    assert tuple(answer.shape) == (3, 3), f"3 rows and 3 levels, got {tuple(answer.shape)}"
    logp_ = scores.log_softmax(-1)
    first = -logp_[0, 0, 0]
    assert abs(answer[0, 0] - first) < 1e-5, f"level 0 is {first:.3f}, got {answer[0, 0]:.3f}"
    second = -(logp_[0, 2, 2] + logp_[0, 4, 1])
    wrong = "level 1 holds tokens 2 and 4: levels need not come in blocks"
    assert abs(answer[0, 1] - second) < 1e-5, f"expected {second:.3f}: {wrong}"
    print("Right: and a row sums to the nats of its picture.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `torch.zeros(B, K).index_add(1, levels, nats)` adds column j of `nats` to column `levels[j]`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def nats_of_levels(logits, tokens, levels):
#     nats = -logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
#     zeros = torch.zeros(len(tokens), int(levels.max()) + 1)
#     return zeros.index_add(1, levels, nats)
# ```
#
# </details>
# <details><summary>Wrong: cuts the row where a level should end</summary>
#
# It is right as long as tokens lie in the order in which they are generated.
#
# ```python
# def nats_of_levels(logits, tokens, levels):
#     nats = -logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)
#     parts = nats.split(torch.bincount(levels).tolist(), dim=1)
#     return torch.stack([part.sum(1) for part in parts], dim=1)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: nobody is better in everything (★★, 10 minutes)
#
# A model is *dominated* if another is at least as good in every column and better in one. Return the rows that are not, for columns of which less is better.

# %% tags=["exercise"]
def frontier(table):
    """Names that no other dominates, of {name: (number, number, ..)}; less is better."""
    return None  # your code

# %% tags=["exercise-check"]
toy = {"a": (4, 1.6), "b": (15, 0.5), "c": (64, 0.4), "d": (64, 0.5), "e": (15, 0.5)}
answer = frontier(toy)
if answer is None:
    print("Hint: compare each name with each other one, column by column.")
else:
    got = set(answer)
    assert "d" not in got, "d needs as many forwards as c and is worse: dominated"
    wrong = "b and e are equal; neither is better in a column, so neither dominates"
    assert {"b", "e"} <= got, f"got {sorted(got)}: {wrong}"
    assert got == {"a", "b", "c", "e"}, f"expected a, b, c and e, got {sorted(got)}"
    print("Right: add a column, and the frontier can only keep or gain members.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `all(x <= y ...)` and `any(x < y ...)` over the pairs of two rows.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def frontier(table):
#     def dominates(p, q):
#         pairs = list(zip(p, q))
#         return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)
#
#     rows = table.items()
#     return [name for name, q in rows if not any(dominates(p, q) for p in table.values())]
# ```
#
# </details>
# <details><summary>Wrong: at least as good is enough</summary>
#
# Every row is at least as good as itself, and of two equal rows each would remove the other.
#
# ```python
# def frontier(table):
#     def dominates(p, q):
#         return all(x <= y for x, y in zip(p, q))
#
#     rows = table.items()
#     return [n for n, q in rows if not any(dominates(p, q) for m, p in rows if m != n)]
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * Four questions place a model: what is predicted per step, who sees whom, what feeds the next step, what happens to the logits.
# * The answer to the first is an array of integers. Mask, sampler and number of forwards follow from it.
# * The likelihood is a sum over levels, however they are batched; checking that finds wrong masks, caches and positions.
# * Nats of different tokens are nats about different things. The decoder's share of a picture is far larger than what separates the models.
# * A forward is not a unit of cost: ask what it reads, and how many pictures wait for it.
#
# ## Where this stands
#
# The sorting into pixels, tokens and scales follows the survey of Xiong et al. ([2411.05902](https://arxiv.org/abs/2411.05902)). The models: LlamaGen (Sun et
# al. [2406.06525](https://arxiv.org/abs/2406.06525)), Axial Transformers (Ho et al. [1912.12180](https://arxiv.org/abs/1912.12180)), neighbours (He et
# al. [2503.10696](https://arxiv.org/abs/2503.10696)), any order (Pannatier et al. [2404.09562](https://arxiv.org/abs/2404.09562)), MaskGIT (Chang et
# al. [2202.04200](https://arxiv.org/abs/2202.04200)) with the bound of Hoogeboom et al. ([2110.02037](https://arxiv.org/abs/2110.02037)), VAR (Tian et
# al. [2404.02905](https://arxiv.org/abs/2404.02905)), FlexVAR (Jiao et al. [2502.20313](https://arxiv.org/abs/2502.20313)). Chapter 05 asks what becomes of errors that a
# model has made itself, and Part 5 makes the slow ones fast.
