# %% [markdown]
# # Next scale: sixty-four steps, or four?
#
# | | |
# | --- | --- |
# | **You will build** | a generator that writes whole maps from coarse to fine, its mask, its sampler with a cache, in-painting, and a second one that lets you choose the number of steps |
# | **Time** | about a minute on a laptop, without a GPU |
# | **You need** | the raster GPT (chapter 01 of this part), the pyramid of codes (1.3) |
# | **Of the five nouns** | model, sampler |
# | **Systems** | VAR, FlexVAR |
#
# A raster GPT writes 64 codes, and each waits for the one before. Nobody paints like that. One starts with a smudge in the right colour and
# refines it everywhere at once. This chapter builds the model that does, sees what it costs, and finds out who wins.

# %% tags=["exercise-setup"]
import inspect
import math
import time
from itertools import pairwise
from statistics import median

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F

from minimal import checkpoints, data, viz
from minimal.ar.flex_scale import FlexScale
from minimal.ar.scale import NextScale
from minimal.data.shapes import CLASS_NAMES
from minimal.metrics import batched, frechet_distance, frechet_floor, label_accuracy, psnr
from minimal.nn.adaln import modulate
from minimal.nn.masks import not_after
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.guidance import Guided, linear
from minimal.samplers.logits import draw, uniform_noise
from minimal.tokenizers.multiscale import resize

viz.style()
torch.set_num_threads(1)
torch.set_grad_enabled(False)


def seeded(number):
    return torch.Generator().manual_seed(number)


# %% [markdown]
# ## The question
#
# In chapter 1.3 a picture became a pyramid: one token for the whole of it, then 2 × 2, then 4 × 4, then 8 × 8, each map saying what those before it left over. A network of the size
# of the raster GPT has learned those pyramids (recipe `shapes_var`: the same pictures, the same arithmetic of training). On the left it writes four pictures in four forwards.
# On the right the raster GPT of the last chapter writes four in 64.

# %%
tokenizer, var = checkpoints.load("shapes_multiscale"), checkpoints.load("shapes_var")
vq, gpt = checkpoints.load("shapes_vq"), checkpoints.load("shapes_gpt")
held_out = data.load("shapes", "validation")
images, labels = held_out.images, held_out.labels  # (1000, 3, 32, 32), (1000,)
pyramids = batched(tokenizer.encode, images, 250)  # (1000, 85)
asked = torch.tensor([0, 6, 9, 15])
drawn = sample_cached(Guided(var, 2.0), 4, cond=asked, generator=seeded(1))
raster = sample_cached(Guided(gpt, 2.0), 4, cond=asked, generator=seeded(1))
print(f"forwards: {drawn.trace.forwards['target']} and {raster.trace.forwards['target']}")
for model in (var, gpt):
    print(f"{type(model).__name__:10s}{sum(p.numel() for p in model.parameters()):12,} weights")

# %% mystnb={"figure": {"caption": "Left: next scale, painted from the sum of all maps written so far. Right: raster order, after 16, 32, 48 and 64 codes.", "name": "fig-2-02-question"}, "image": {"alt": "Four rows, one per label, of eight pictures. In the left four columns plain grounds turn into a blurred blob and then into a sharp shape. In the right four columns a shape is uncovered from top to bottom."}} tags=["hide-input"]
coarse = [tokenizer.decode(drawn.tokens, upto=k) for k in (1, 2, 3, 4)]
rows = [vq.decode(raster.tokens, upto=k) for k in (16, 32, 48, 64)]
titles = ["1 x 1", "2 x 2", "4 x 4", "8 x 8", "16 codes", "32", "48", "64"]
names = [CLASS_NAMES[c] for c in asked]
cells = torch.stack(coarse + rows, 1).flatten(0, 1)
viz.image_grid(cells, ncol=8, titles=titles, row_labels=names);

# %% [markdown]
# ## A map at a time
#
# Let $x_k$ be the $k$-th map, $p_k^2$ tokens out of $V = 256$, and $c$ the label. The chain rule holds for maps as for tokens:
#
# $$\begin{gathered} \log p(x \mid c) = \sum_{k=1}^{4} \log p(x_k \mid x_1, \dots, x_{k-1}, c), \\ \log p(x_k \mid \dots) = \sum_{i=1}^{p_k^2} \log p(x_{k,i} \mid x_1, \dots, x_{k-1}, c) \end{gathered}$$
#
# The first line is exact. The second is a decision: given the coarser maps, the cells of a map are drawn *independently*. In return a map costs one forward, however many cells it has.
# That is the whole idea of VAR; the rest answers two questions. Who may see whom, and what is there to be seen?
#
# **Who may see whom.** Give every token the index of its scale as its *level*. A query may see a key whose level is not above its own: its whole
# map, and all coarser ones. It is the predicate that made the raster mask; only the levels are new.

# %%
scales = (1, 2, 4, 8)
levels = torch.arange(4).repeat_interleave(torch.tensor([p * p for p in scales]))  # (85,)
mask = not_after.square(levels)  # (85, 85): level of key <= level of query
assert torch.equal(levels, var.levels)
print(levels[:25].tolist(), "...")

# %% [markdown]
# If all of a map is visible, does a token not see itself, the very thing that it must predict? It does not. What stands at its place is not the token but an
# *input*, made from coarser maps alone. We can prove it on the trained network: change one token, and see which forecasts move.

# %%
x, c = pyramids[:1], labels[:1]
changed = x.repeat(85, 1)
changed[range(85), range(85)] = (x[0] + 1) % 256  # row j: token j is another one
before, after = var.logits(x, c), var.logits(changed, c.expand(85))
moves = (after - before).abs().amax(-1).T > 1e-4  # (85, 85): forecast i, token j
assert torch.equal(moves, levels[:, None] > levels[None])

# %% mystnb={"figure": {"caption": "Left: the mask, coloured by the scale of the key (the first 21 of 85 places). Right, measured on the trained model: which tokens (columns) move which forecasts (rows). A forecast depends on all coarser maps, and on no token of its own.", "name": "fig-2-02-mask"}, "image": {"alt": "Left: a staircase of blocks of 1, 4 and 16 rows; each block sees all columns up to and including its own. Right: 85 by 85 cells, a staircase that stops one block earlier, so that blocks on the diagonal are empty."}} tags=["hide-input"]
panels = plt.subplots(1, 2, figsize=(7.4, 3.6))[1]
viz.mask_picture(mask[:21, :21], levels[:21], ax=panels[0])
viz.mask_picture(moves, levels, ax=panels[1])
panels[0].set_title("may see")
panels[1].set_title("depends on")
panels[1].set(xlabel="token changed", ylabel="forecast");

# %% [markdown]
# ## What is there to be seen
#
# Before map $k$ is written, its places must hold something. The obvious choice is map $k - 1$, enlarged. VAR takes another: the *picture so far*, $\hat f_{k-1}$, the sum of
# everything that the maps before have added, shrunk to the size of the map that comes next,
#
# $$\begin{gathered} \text{input}_k = W\, \mathrm{area}(\hat f_{k-1},\, p_k), \\ \hat f_k = \hat f_{k-1} + \varphi_k\big(\mathrm{bicubic}(e_{x_k},\, 8)\big), \end{gathered}$$
#
# with codes $e$ of 8 numbers and $W$ of shape $(128, 8)$. Why not the codes of the last map? Each map holds what was *left over*. Its codes are corrections, and a correction says
# little without the thing that it corrects. Let us ask a straight line: from the 8 numbers in a place, how well can the latent of the true picture be told there?

# %%
f = batched(tokenizer.latents, images, 250)  # (1000, 64, 8)
sums = tokenizer.partial_sums(pyramids)  # f_hat after each scale, (1000, 64, 8)
codes = tokenizer.quantizer.split(tokenizer.embed(pyramids))  # (1000, p², 8)


def explained(x, y):
    """Rows x, y (1000, n, 8): share of the variance of y that a line from x tells, unseen."""
    x = F.pad(x, (0, 1), value=1.0)
    x, new_x, y, new_y = (part.flatten(0, 1) for part in (x[:500], x[500:], y[:500], y[500:]))
    guess = new_x @ torch.linalg.lstsq(x, y).solution
    return 1 - ((new_y - guess).square().sum() / (new_y - y.mean(0)).square().sum()).item()


known = {}
print("before map     codes of the last map     picture so far")
for k, p in list(enumerate(scales))[1:]:
    truth = resize(f, p, "area")
    choices = resize(codes[k - 1], p, "bicubic"), resize(sums[k - 1], p, "area")
    known[p] = [explained(x, truth) for x in choices]
    print(f"{p:5d} x {p}{known[p][0]:22.0%}{known[p][1]:19.0%}")
assert all(picture > last for last, picture in list(known.values())[1:])

# %% mystnb={"figure": {"caption": "What a place could be told before the next map is written, in the colours of the three main directions of the latent. The codes of the last map forget what the maps before it said.", "name": "fig-2-02-inputs"}, "image": {"alt": "For two pictures, two rows each: the picture so far at 2 by 2, 4 by 4 and 8 by 8 cells grows from plain patches to an outline of the scene; the enlarged codes of the last map stay blotchy. At the right the full latent and the picture."}} tags=["hide-input"]
flat = f.flatten(0, 1)
centre, axes3 = flat.mean(0), torch.linalg.eigh(torch.cov(flat.T)).eigenvectors[:, -3:]
reach = 2.2 * ((flat - centre) @ axes3).std(0)


def coloured(rows):
    """Rows (B, p·p, 8) to pictures (B, 3, 32, 32)."""
    p = math.isqrt(rows.shape[1])
    x = ((rows - centre) @ axes3 / reach).mT.unflatten(-1, (p, p))
    return F.interpolate(x, (32, 32), mode="nearest")


shown = []
for i in (5, 26):
    one = slice(i, i + 1)
    for x, mode in ((sums, "area"), (codes, "bicubic")):
        shown += [coloured(resize(x[k][one], scales[k + 1], mode)) for k in range(3)]
        shown += [coloured(f[one]), images[one]]
titles = ["before 2 x 2", "before 4 x 4", "before 8 x 8", "the latent", "the picture"]
kinds = ["picture so far", "last codes"] * 2
viz.image_grid(torch.cat(shown), ncol=5, titles=titles, row_labels=kinds);

# %% [markdown]
# The network could add up the maps by itself, since it sees them all. But then it would have to learn what bicubic enlargement and the convolutions $\varphi$ do, and spend layers on it. VAR
# does that arithmetic outside, exactly, and hands over the result.
#
# ## The network, step by step
#
# In training all maps are known. So all inputs are made at once, and one masked pass gives all 85 forecasts:

# %%
def through(model, inputs, cond):
    """Inputs (B, L, 128) that stand in their places, labels (B,): logits (B, L, 256)."""
    label, mask = model.labels(cond)[:, None], not_after.square(model.levels)
    shared, h = model.modulation.linear(F.silu(label)), inputs  # (B, 1, 6 · 128)
    for block in model.blocks:
        h = block(h, mask=mask, cond=shared)
    shift, scale = model.last_modulation(label)
    return model.head(modulate(model.norm(h), shift, scale))


def forecasts(model, tokens, cond):
    """Tokens (B, 85), labels (B,): logits (B, 85, 256)."""
    inputs = [model.labels(cond)[:, None]]  # (B, 1, 128): all that is known at first
    f_hat = 0.0
    for k, indices in enumerate(model.split(tokens)[:-1]):
        f_hat = model.quantizer.accumulate(f_hat, indices, k)  # (B, 64, 8)
        inputs.append(model.word(resize(f_hat, scales[k + 1], "area")))  # (B, p², 128)
    places = model.position.weight + model.level(levels)  # (85, 128)
    return through(model, torch.cat(inputs, 1) + places, cond)


few, told = pyramids[:8], labels[:8]
assert torch.allclose(forecasts(var, few, told), var.logits(few, told), atol=1e-4)
print(inspect.getsource(NextScale.logits))

# %% [markdown]
# Two things differ from the raster GPT besides inputs and mask. Places are learned vectors, one for each of the 85, and every scale adds a vector of its own. And the label is not only the first input: it also
# shifts, scales and gates every block (adaptive layer norm, [2212.09748](https://arxiv.org/abs/2212.09748)), with one large matrix that all blocks share, as in the largest model of the paper.
#
# ## A cache for each scale
#
# When sampling, maps come one by one. A new map brings $p_k^2$ queries; keys and values of the maps before are in the cache; and since the new places may see each other and everything before,
# *no mask is needed at all*.

# %%
def sample(model, cond, generator):
    """Labels (B,) to tokens (B, 85), a map per forward."""
    n, cache = len(cond), model.new_cache(len(cond))
    noise = uniform_noise(n, 85, generator)  # a number per image and token, drawn up front
    canvas = torch.zeros(n, 85, dtype=torch.long)
    for start, end in pairwise((0, 1, 5, 21, 85)):
        logits = model.logits(canvas[:, :end], cond, cache=cache)  # (B, p², 256): the new rows
        canvas[:, start:end] = draw(logits, noise[:, start:end])
    return canvas


mine = sample(var, told, seeded(0))
package = sample_cached(var, 8, cond=told, generator=seeded(0))
slow = sample_uncached(var, 8, cond=told, generator=seeded(0))
assert torch.equal(mine, package.tokens) and torch.equal(mine, slow.tokens)

cache, whole = var.new_cache(8), var.logits(few, told)
parts = [var.logits(few[:, :end], told, cache=cache) for end in (1, 5, 21, 85)]
apart = (torch.cat(parts, 1) - whole).abs().max().item()
assert apart < 1e-4
print("scale by scale equals one masked pass; the largest difference is below 0.0001")

# %% [markdown]
# There is no loop of its own in the package for this. `sample_cached` asks a model for its `levels` and writes one level per forward; for the raster GPT a level is one token. How much does the cache save?

# %%
costs = {}
print("            forwards   positions computed: without cache   with cache")
for name, model in {"next scale": var, "raster": gpt}.items():
    options = dict(cond=told[:1], generator=seeded(0))
    traces = [run(model, 1, **options).trace for run in (sample_uncached, sample_cached)]
    costs[name] = [trace.positions["target"] for trace in traces]
    print(f"{name:12s}{traces[0].forwards['target']:8d}" + "{:32d}{:13d}".format(*costs[name]))
assert costs == {"next scale": [112, 85], "raster": [2080, 64]}

# %% [markdown]
# For raster order the cache is everything: 2080 positions become 64. For next scale it hardly matters: 112 become 85, because the last map alone holds three quarters of all tokens. (With
# the ten scales of the paper, 1710 become 680.) And notice that VAR does not compute *less* than a cached raster GPT. It computes 85 positions instead of 64. It computes them *together*:

# %% tags=["nbval-ignore-output"]
def milliseconds(model, n, repeats=5):
    """Median time of sampling n pictures, in ms per picture."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        sample_cached(model, n, cond=torch.arange(n) % 16, generator=seeded(0))
        times.append(1000 * (time.perf_counter() - begun) / n)
    return median(times)


print("pictures at once     next scale      raster")
for n, repeats in ((1, 5), (32, 1)):
    ms = [milliseconds(model, n, repeats) for model in (var, gpt)]
    print(f"{n:10d}{ms[0]:18.1f} ms{ms[1]:9.1f} ms     {ms[1] / ms[0]:.1f} times faster")

# %% [markdown]
# One picture alone is where it pays: there a forward is mostly waiting, and VAR waits four times. With many pictures at once the processor is busy with arithmetic, of which VAR has a little more, and the lead melts.
#
# ## Guidance on a ramp
#
# Guidance compares the forecasts with and without the label and exaggerates the difference (chapter 01). VAR does not exaggerate equally everywhere: with $K$ scales, map $k = 0, \dots, K - 1$ gets
#
# $$s_k = 1 + (s - 1)\, \frac{k}{K - 1} .$$
#
# The first token, which decides about the ground and the light, is drawn unguided, so pictures stay different; the last map, which decides about edges, is guided most. In the package a schedule is a
# tensor with one strength per token, `linear(var.levels, s)`. A ramp to 3 has the same mean over the scales as a constant 2. Which is better?

# %%
judge, some = checkpoints.load("judge_shapes"), torch.arange(320) % 16
real = batched(judge.features, images)


def paint(tokens):
    return batched(tokenizer.decode, tokens).clamp(-1, 1)


def judged(model, paint, cond=some, seed=0):
    """Share of right labels, and Fréchet distance to held-out pictures, a sample per label."""
    pictures = paint(sample_cached(model, len(cond), cond=cond, generator=seeded(seed)).tokens)
    distance = frechet_distance(real, batched(judge.features, pictures))
    return label_accuracy(judge, pictures, cond), distance


schedules = {"constant 2": 2.0, "ramp to 3": linear(var.levels, 3.0)}
guided = {name: [] for name in schedules}
print("seed" + "".join(f"{name:>32s}" for name in schedules))
for seed in range(3):
    for name, strength in schedules.items():
        guided[name].append(judged(Guided(var, strength), paint, seed=seed))
    row = (guided[name][seed] for name in schedules)
    print(f"{seed:4d}" + "".join(f"{right:12.1%} right, Fréchet {d:.2f}" for right, d in row))
means = {name: sum(d for _, d in rows) / 3 for name, rows in guided.items()}
floor = frechet_floor(real, 320, seeded(0), labels=labels)
print(", ".join(f"{name}: {d:.2f} on average" for name, d in means.items()))
print(f"two sets of 320 real pictures: {floor:.2f}")
assert means["ramp to 3"] < means["constant 2"] + 0.1
assert all(right > 0.92 for rows in guided.values() for right, _ in rows)

# %% [markdown]
# The ramp: its distance is smaller with each of the three seeds, and the labels are about as often right. (The seeds differ by as much as the two schedules do, so trust the sign more than the size.)
#
# ## The claim
#
# Both models have about a million weights, saw the same 10,000 pictures, and were trained until they had done the same number of multiplications. The numbers below
# were measured by their recipes, 1,000 samples each.

# %%
files = {"raster GPT": "shapes_gpt", "next scale": "shapes_var"}
metrics = {name: checkpoints.header(file)["metrics"] for name, file in files.items()}
print("guidance  " + "".join(f"{name:>29s}" for name in metrics))
for s in ("1", "1.5", "2", "3"):
    row = [(m[f"accuracy_guidance_{s}"], m[f"frechet_guidance_{s}"]) for m in metrics.values()]
    print(f"{s:10s}" + "".join(f"{a:14.1%} right, {d:5.2f}" for a, d in row))
more = data.load("shapes", "train", count=1000)
pool = torch.cat((real, batched(judge.features, more.images)))
floor = frechet_floor(pool, 1000, seeded(0), labels=torch.cat((labels, more.labels)))
print(f"forwards  {64:29d}{4:29d}\nfloor of the distance, real against real: {floor:.2f}")
assert raster.trace.forwards["target"] == 16 * drawn.trace.forwards["target"]
assert all(m["accuracy_guidance_2"] >= 0.95 for m in metrics.values())
best = [min(v for key, v in m.items() if key.startswith("frechet")) for m in metrics.values()]
assert best[1] > 2 * best[0] > 2 * floor

# %% [markdown]
# **The raster GPT wins on quality, and clearly.** Its best distance is a quarter of VAR's, and both are above the floor. VAR wins on steps: 4 forwards instead of 64. Asked with guidance 2, both
# paint the right thing in more than 95 cases of 100. That is the reverse of the paper's ranking, where VAR is far ahead of its raster baseline in quality as well. Pictures of 8 × 8 cells are no hardship for a raster
# model, and the likelihoods cannot be compared, since the two read different tokens. So where does the
# gap come from?
#
# ## The price of drawing together
#
# Take the smallest map there is, two cells, and let them always be equal: 00 or 11, each half of the time. Given nothing, each cell alone is a fair coin. Whoever draws both at once and
# independently gets 01 and 10 half of the time, and *no network can do better*. What the best one loses has a name, the **total correlation**:
#
# $$\mathrm{TC} = \sum_i H(x_i) - H(x) = \mathrm{KL}\Big(p(x) \,\Big\|\, \prod_i p(x_i)\Big) .$$
#
# For the two coins it is $\ln 2$. A coarse map drawn first can help, by the part of the agreement that it fixes. Let us do the sum for a world that fits on a line: a row of eight cells, dark up to an
# edge and light after it, the edge at one of nine places. A coarser map holds the majority of what lies below each of its cells.

# %%
edge = torch.arange(9)[:, None]
world = (torch.arange(8) >= edge).long()  # (9, 8): all rows there are


def at(p):
    """The nine rows at p cells, (9, p)."""
    return (world.view(9, p, -1).float().mean(-1) >= 0.5).long()


def uncertainty(cell, seen):
    """H(cell | seen) in nats: cell (9,), seen (9, m), the nine rows equally likely."""
    _, group = F.pad(seen, (1, 0)).unique(dim=0, return_inverse=True)
    size = group.bincount()
    light = torch.zeros(len(size)).index_add_(0, group, cell.float()) / size
    nats = -torch.xlogy(light, light) - torch.xlogy(1 - light, 1 - light)
    return (size / 9 * nats).sum().item()


def price(scales):
    """Nats lost by writing a row in these maps, each at once."""
    seen, total = torch.zeros(9, 0), -math.log(9)  # less the entropy of the row itself
    for p in scales:
        total += sum(uncertainty(cell, seen) for cell in at(p).T)
        seen = torch.cat((seen, at(p)), dim=1)
    return total


prices = {steps: price(steps) for steps in ((8,), (1, 8), (2, 8), (1, 2, 8), (1, 2, 4, 8))}
one_by_one = sum(uncertainty(world[:, j], world[:, :j]) for j in range(8)) - math.log(9)
for steps, nats in prices.items():
    print(f"maps of {str(steps):14s}{len(steps)} forwards  {abs(nats):.2f} nats lost")
print(f"cell by cell          8 forwards  {abs(one_by_one):.2f}")
assert abs(one_by_one) < 1e-6 and abs(prices[(1, 2, 4, 8)]) < 1e-6
assert prices[(8,)] > 2 > prices[(1, 8)] > prices[(2, 8)] > prices[(1, 2, 8)] > 0

# %% [markdown]
# In this tidy world a single forward loses more than a row has entropy, one coarse token saves most of it, and the whole pyramid loses *nothing*: once four cells are known, only one of the eight is
# still open. That is the bargain of next-scale prediction. What cells must agree upon is settled by a map with fewer cells, in which there is less to agree upon.
#
# How much of this is to be seen in our pictures? Hand the model the first $k$ maps of *real* pictures, and let it draw the others. If the distance is
# still large when only the last map is drawn, then it is the last map that fails: 64 tokens, all at once.

# %%
own, true = labels[:320], pyramids[:320]
assert torch.equal(own, some)  # the same labels as before: 16 pictures, each class once
lost = {0: guided["constant 2"][0]}
for k in (1, 2, 3, 4):
    given, tokens = torch.where(levels < k, true, -1), true
    if k < 4:
        options = dict(cond=own, forced=given, generator=seeded(0))
        tokens = sample_cached(Guided(var, 2.0), 320, **options).tokens
    pictures = paint(tokens)
    distance = frechet_distance(real, batched(judge.features, pictures))
    lost[k] = label_accuracy(judge, pictures, own), distance
print("true maps   right labels   Fréchet distance (320 pictures)")
for k, (right, distance) in lost.items():
    print(f"{k:5d}{right:17.1%}{distance:15.2f}")
first, third, last = (lost[a][1] - lost[b][1] for a, b in ((0, 2), (2, 3), (3, 4)))
assert third > 1.2 * max(first, last) and last > 0.1

# %% mystnb={"figure": {"caption": "The first three maps of a real picture (left: all four), and the last map drawn by the model, four times. The last column takes the likeliest token in each cell.", "name": "fig-2-02-price"}, "image": {"alt": "Four rows: a blue circle, a green square, a yellow star, a red square. The second column is a blurred blob of the right colour; the others are the object with slightly different, bumpy outlines each time, one arm of the star ragged or doubled."}} tags=["hide-input"]
chosen = torch.tensor([3, 6, 13, 20])
given = torch.where(levels < 3, pyramids[chosen], -1)
columns = [tokenizer.decode(pyramids[chosen]), tokenizer.decode(pyramids[chosen], upto=3)]
for seed in range(4):
    drawing = sample_cached(var, 4, cond=labels[chosen], forced=given, generator=seeded(seed))
    columns.append(tokenizer.decode(drawing.tokens))
drawing = sample_cached(var, 4, cond=labels[chosen], forced=given, temperature=0)
columns.append(tokenizer.decode(drawing.tokens))
titles = ["all maps", "three maps", "drawn", "again", "again", "again", "likeliest"]
viz.image_grid(torch.stack(columns, 1).flatten(0, 1), ncol=7, titles=titles);

# %% [markdown]
# The tokenizer is not to blame: in the last row all maps are true, and little distance is left. Nor is it the last map. (This is the surprise of the chapter.) Whether the first two maps are true or drawn makes little difference; the last one, with its 64 cells, adds some ragged edges; most of the distance arises in the *third*, where sixteen cells
# are drawn at once. There, nothing yet says where in the picture the object is. Each of the cells knows only that it is red and somewhere, and each decides for itself. In the words of the toy: two maps were not enough
# to settle what the third has to agree upon. (A network that is simply poor at its third map would leave the same trace. We shall meet that suspect again.) Cells that know their neighbours, like those of the last map, do far better.
#
# ## In-painting without training
#
# A model that writes maps can be asked to keep a part of a picture. Shrink the mask of what is to be kept to the size of every map; where more than half of a cell is kept, write the picture's own token, elsewhere the
# one that the model draws. The sampler needs one argument for it, `forced`, with −1 where it is free:

# %%
def kept_tokens(tokens, keep, scales):
    """Tokens (B, L), keep (H, W) of zeros and ones: -1 where the model may write."""
    shrunk = [F.interpolate(keep[None, None], (p, p), mode="area").flatten() for p in scales]
    return torch.where(torch.cat(shrunk) > 0.5, tokens, -1)


keep = torch.ones(32, 32)
keep[:, 16:] = 0  # the right half is to be invented
chosen = torch.tensor([1, 6, 8, 15])
forced = kept_tokens(pyramids[chosen], keep, scales)  # (4, 85)
print("tokens kept in each map:", [(part >= 0).sum(1)[0].item() for part in var.split(forced)])
filled = [
    sample_cached(Guided(var, 2.0), 4, cond=c, forced=forced, generator=seeded(seed)).tokens
    for seed, c in enumerate((labels[chosen], labels[chosen], torch.tensor([12, 5, 10, 3])))
]
assert all(torch.equal(t[forced >= 0], forced[forced >= 0]) for t in filled)

# %% mystnb={"figure": {"caption": "VAR keeps the left half and invents the right one, twice for the picture's own label and once for another.", "name": "fig-2-02-inpainting"}, "image": {"alt": "Four rows: picture, left half with a grey right half, two fillings that continue the object with rough outlines and some stray blotches, and one in which the object changes its colour or its outline at the seam."}} tags=["hide-input"]
hole = torch.where(keep > 0, images[chosen], 0.6)
columns = [images[chosen], hole, *(tokenizer.decode(t) for t in filled)]
titles = ["picture", "kept", "filled", "again", "another label"]
viz.image_grid(torch.stack(columns, 1).flatten(0, 1), ncol=5, titles=titles);

# %% [markdown]
# It works, and nobody trained it to. (Asked for another label, it does what it can: half an object of each kind.) But look at the blotches, also on the left, where tokens were kept. A kept token of the last map is a *correction*, and it corrects maps of which
# the model has drawn a part anew. It says "a little less blue" to a blue that is no longer there.
#
# ## Maps that are pictures
#
# FlexVAR cuts the tie between a map and those before it. Its tokenizer is one ordinary VQ autoencoder with a trick. The encoder's grid is shrunk by averaging to *any* size, quantized, and decoded by convolutions, which
# do not mind the size, into a picture of that size. In training it is compared with the picture shrunk to that size: always at 8 × 8 cells, and at two smaller sizes drawn anew for every batch
# (recipe `shapes_flex`, 512 codes on the unit sphere). There is nothing left over, and nothing to add up. Every map is a whole picture.

# %%
flexible, flexvar = checkpoints.load("shapes_flex"), checkpoints.load("shapes_flexvar")
chosen = torch.tensor([1, 6, 8, 15])
views = [flexible.decode(flexible.pyramid(images[chosen], (p,))) for p in scales]
print([tuple(x.shape[2:]) for x in views], "pixels")

# %% mystnb={"figure": {"caption": "Left: VAR's sum so far. Right: FlexVAR's maps, each decoded alone, at 4, 8, 16 and 32 pixels.", "name": "fig-2-02-maps"}, "image": {"alt": "Four objects in nine columns. VAR after 1 and 5 tokens: plain grounds; after 21: a blurred blob; after 85: the object. FlexVAR: a coloured block of 4 by 4 pixels, a coarse blob of 8 by 8, a recognisable object of 16 by 16, the object; then the original."}} tags=["hide-input"]
def enlarged(x):
    """Pictures of any size to 32 x 32, pixels as squares."""
    return F.interpolate(x, (32, 32), mode="nearest")


columns = [tokenizer.decode(pyramids[chosen], upto=k) for k in (1, 2, 3, 4)]
columns += [*map(enlarged, views), images[chosen]]
titles = [f"{name}{p} x {p}" for name in ("VAR ", "FlexVAR ") for p in scales] + ["picture"]
viz.image_grid(torch.stack(columns, 1).flatten(0, 1), ncol=9, titles=titles);

# %%
def seen_at(x, labels):
    """Share of right labels when pictures of any size are enlarged for the judge."""
    x = F.interpolate(x, (32, 32), mode="bicubic") if x.shape[-1] < 32 else x
    return label_accuracy(judge, x.clamp(-1, 1), labels)


partial, alone = {}, {}
for k, p in enumerate(scales):
    partial[p] = seen_at(tokenizer.decode(true, upto=k + 1), own)
    alone[p] = seen_at(flexible.decode(flexible.pyramid(images[:320], (p,))), own)
print("right labels, real pictures   " + "".join(f"{p} x {p}  " for p in scales))
for name, row in {"VAR, sum so far": partial, "FlexVAR, one map": alone}.items():
    print(f"{name:28s}" + "".join(f"{value:6.0%} " for value in row.values()))
assert alone[4] > 0.9 > 0.6 > partial[4]

# %% [markdown]
# What does the generator read? The obvious thing that VAR avoided: the map before, enlarged. Now it *is* the picture so far. Beyond that, everything that told the model which list of scales it works
# with is taken away. There is no vector for the scale. Places come from a single learned map of 8 × 8 vectors, shrunk to the size of each scale as if it were a picture too. And in training every batch has a list of its own: always sides 1 and
# 8, each of 2 to 7 with probability one half (recipe `shapes_flexvar`).

# %%
def flexible_forecasts(model, tokens, cond):
    """Tokens (B, L) of the model's list of scales, labels (B,): logits (B, L, 512)."""
    inputs, places = [], []
    for k, p in enumerate(model.scales):
        label = model.labels(cond)[:, None].expand(-1, p * p, -1)
        before = model.split(tokens)[k - 1]
        codes = resize(model.codes[before], p, "bicubic")  # (B, p², 8)
        inputs.append(model.word(codes) if k else label)
        places.append(resize(model.grid[None], p, "area"))  # (1, p², 128)
    return through(model, torch.cat(inputs, 1) + torch.cat(places, 1), cond)


for chosen_list in ((1, 2, 4, 8), (1, 3, 8), (8,)):
    view = flexvar.with_scales(chosen_list)
    tokens = flexible.pyramid(images[:8], chosen_list)
    mine = flexible_forecasts(view, tokens, told)
    assert torch.allclose(mine, view.logits(tokens, told), atol=1e-4)
    print(f"scales {str(chosen_list):14s}{view.length:4d} tokens")
print(inspect.getsource(FlexScale.with_scales))

# %% [markdown]
# `with_scales` returns a view: the same weights with another list, so other `levels`, and `sample_cached` does the rest. More steps, or fewer, or a last map of 12 × 12 cells, which the model never saw in training:

# %%
lists = [(1, 4, 8), (1, 2, 4, 8), (1, 2, 4, 6, 8), (1, 2, 3, 4, 5, 6, 8), (1, 2, 4, 8, 12)]
finals, last_maps = [], None
for chosen_list in lists:
    view = flexvar.with_scales(chosen_list)
    drawn = sample_cached(Guided(view, 2.0), 4, cond=asked, generator=seeded(2))
    assert drawn.trace.forwards["target"] == len(chosen_list)
    maps = view.split(drawn.tokens)
    finals.append(flexible.decode(maps[-1]))
    if len(chosen_list) == 7:
        last_maps = [enlarged(flexible.decode(m)) for m in maps]

# %% mystnb={"figure": {"caption": "One sample per label in seven steps, map after map, each painted on its own.", "name": "fig-2-02-flexible"}, "image": {"alt": "Four rows, one per label: red circle, green square, yellow triangle, blue star. From left to right the object grows from a block of pixels to a sharp shape; every step is a picture of the same object at a finer resolution."}} tags=["hide-input"]
titles, cells = [f"{p} x {p}" for p in lists[3]], torch.stack(last_maps, 1).flatten(0, 1)
viz.image_grid(cells, ncol=7, titles=titles, row_labels=names);

# %% mystnb={"figure": {"caption": "One set of weights, five lists of scales. The last column is 48 pixels wide, from a map of a size that was never trained.", "name": "fig-2-02-lists"}, "image": {"alt": "Four labels in five columns. With three steps the square and the triangle have dented outlines; with four, five and seven they are cleaner. In the last column the objects are smaller and softer, the star bent, but all are recognisable."}} tags=["hide-input"]
titles = ["3 steps", "4 steps", "5 steps", "7 steps", "up to 12 x 12"]
small = [F.interpolate(x, (96, 96), mode="nearest") for x in finals]
viz.image_grid(torch.stack(small, 1).flatten(0, 1), ncol=5, titles=titles, row_labels=names);

# %%
m = checkpoints.header("shapes_flexvar")["metrics"]
print("guidance 2, 1,000 samples    right labels   Fréchet distance")
rows = {k: f"{k} steps" for k in ("3", "4", "5", "7")}
rows["larger"] = "5 steps to 12 x 12, shrunk"
for key, name in rows.items():
    print(f"{name:29s}{m[f'accuracy_steps_{key}']:9.1%}{m[f'frechet_steps_{key}']:17.2f}")
steps = (3, 4, 5, 7)
right, distance = ([m[f"{key}_steps_{k}"] for k in steps] for key in ("accuracy", "frechet"))
assert all(b > a - 0.02 for a, b in pairwise(right)) and m["accuracy_steps_larger"] > 0.9
assert all(b < a for a, b in pairwise(distance)) and distance[3] < 0.5 * distance[0]
assert distance[1] < 0.8 * metrics["next scale"]["frechet_guidance_2"]
assert distance[3] > min(metrics["raster GPT"][f"frechet_guidance_{s}"] for s in ("1.5", "2"))

# %% [markdown]
# Every further map makes the pictures better: the distance falls from 1.53 with three maps to 0.51 with seven, and *one set of weights* did all of it. That is the toy again: a map that comes close after the last one has little left
# to agree upon. It also speaks against the other suspect, a network too weak for its coarse maps, since the network is the same in all rows. With VAR's own list of four, FlexVAR is at 0.99 where VAR has 1.59, for as much training, most of it spent on other lists. (Its tokenizer differs too, so this is no contest of generators alone.) And seven steps come near to the 64 of
# the raster GPT, 0.38, without reaching it.
#
# The 12 × 12 map is a stretch. Labels survive when the 48 pixels are shrunk to 32 for the judge; the distance, 1.87, is the worst of the table, and the objects come out small and soft. What the model extrapolates is the place of a
# cell, and nothing taught it how an object looks at that size.
#
# And in-painting? A kept token of FlexVAR's last map *is* what is to be seen there. A kept token of VAR's is a correction to three maps of which the model has drawn a part anew. The same half is kept of 64
# pictures; how true is what was kept?

# %%
four = flexvar.with_scales(scales)


def last_map(tokens):
    """Tokens (B, 85) to the picture of FlexVAR's last map."""
    return flexible.decode(four.split(tokens)[-1])


models = {
    "VAR": (var, pyramids[:64], tokenizer.decode),
    "FlexVAR": (four, flexible.pyramid(images[:64], scales), last_map),
}
faithful, half = {}, images[:64, ..., :12]  # away from the seam
print("the kept half, dB     all tokens kept     other half drawn")
for name, (model, tokens, decode) in models.items():
    forced = kept_tokens(tokens, keep, scales)
    options = dict(cond=labels[:64], forced=forced, generator=seeded(0))
    both = (tokens, sample_cached(Guided(model, 2.0), 64, **options).tokens)
    shown = [decode(t)[..., :12].clamp(-1, 1) for t in both]
    faithful[name] = [psnr(x, half).mean().item() for x in shown]
    print(f"{name:20s}{faithful[name][0]:16.1f}{faithful[name][1]:21.1f}")
drop = {name: both - drawn for name, (both, drawn) in faithful.items()}
assert drop["VAR"] > drop["FlexVAR"] + 1.5

# %% mystnb={"figure": {"caption": "FlexVAR fills in the same halves.", "name": "fig-2-02-flexible-inpainting"}, "image": {"alt": "The same four pictures and halves. The fillings continue circle, square, triangle and star cleanly across the seam; with another label the colour or the outline changes from one half to the other."}} tags=["hide-input"]
forced = kept_tokens(flexible.pyramid(images[chosen], scales), keep, scales)
columns = [images[chosen], hole]
for seed, c in enumerate((labels[chosen], labels[chosen], torch.tensor([12, 5, 10, 3]))):
    drawing = sample_cached(Guided(four, 2.0), 4, cond=c, forced=forced, generator=seeded(seed))
    columns.append(last_map(drawing.tokens))
titles = ["picture", "kept", "filled", "again", "another label"]
viz.image_grid(torch.stack(columns, 1).flatten(0, 1), ncol=5, titles=titles);

# %% [markdown]
# FlexVAR keeps what it was told to keep, but for the reach of the decoder's convolutions across the seam. Where every map is a picture, a part of a map is a part of the picture.
#
# ## Exercise 1: the mask of any list (★, 5 minutes)
#
# FlexVAR needs a new mask for every batch. Write it without a loop over tokens: which of the $L = \sum_k p_k^2$ places may see which?

# %% tags=["exercise"]
def mask_of(scales):
    """Sides of maps to a boolean mask (queries L, keys L)."""
    return None  # your code

# %% tags=["exercise-check"]
answer = mask_of((1, 2, 3))
if answer is None:
    print("Hint: give every place the index of its map, and compare two of those.")
else:
    assert answer.shape == (14, 14), f"1 + 4 + 9 places, got {tuple(answer.shape)}"
    assert not answer[1:5, 5:].any(), "map 2 x 2 sees map 3 x 3, which is not written yet"
    why = "the places of one map hold inputs, not answers, so they may see each other"
    assert answer[1:5, 1:5].all() and answer[5:, 5:].all(), why
    assert answer[5:, :5].all(), "a map sees all maps before it"
    assert mask_of((3,)).all(), "with one map everybody sees everybody"
    print("Right: one comparison of levels, whatever the list.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `repeat_interleave` turns 0, 1, 2 into 0, 1, 1, 1, 1, 2, ...
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def mask_of(scales):
#     sizes = torch.tensor([p * p for p in scales])
#     level = torch.arange(len(scales)).repeat_interleave(sizes)
#     return level[None] <= level[:, None]
# ```
#
# </details>
# <details><summary>Wrong: the raster mask</summary>
#
# Each place then sees only those that happen to stand before it in the list. It trains, and worse; and a cache that adds a whole map at once would give
# other numbers than training saw, since there a new place sees all of its map.
#
# ```python
# def mask_of(scales):
#     n = sum(p * p for p in scales)
#     return torch.ones(n, n, dtype=torch.bool).tril()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: what one step cannot say (★★, 10 minutes)
#
# Two cells have a joint distribution, a table of probabilities. How many nats does the best model lose that draws both at once?

# %% tags=["exercise"]
def lost(joint):
    """joint (V, W), sums to one: nats lost by drawing row and column independently."""
    return None  # your code

# %% tags=["exercise-check"]
coins = torch.tensor([[0.5, 0.0], [0.0, 0.5]])
answer = lost(coins)
if answer is None:
    print("Hint: the best independent model has the right marginals. Take their product.")
else:
    answer = float(answer)
    assert not math.isnan(answer), "0 log 0 counts as 0: torch.xlogy knows that"
    off = abs(answer - math.log(2))
    assert off < 1e-5, f"for two equal coins it is ln 2 = 0.693, got {answer:.3f}"
    free = torch.outer(torch.tensor([0.2, 0.8]), torch.tensor([0.1, 0.6, 0.3]))
    nothing = float(lost(free))
    assert abs(nothing) < 1e-5, f"independent cells cost nothing, got {nothing:.3f}"
    print("Right: the sum of the single entropies, less the joint one.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `torch.xlogy(p, q)` is $p \ln q$, and 0 where $p = 0$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def lost(joint):
#     product = torch.outer(joint.sum(1), joint.sum(0))
#     return (torch.xlogy(joint, joint) - torch.xlogy(joint, product)).sum()
# ```
#
# </details>
# <details><summary>Wrong: the entropies of the two cells</summary>
#
# Some of that is honest chance, which no model can save: the entropy of the pair has to be taken off.
#
# ```python
# def lost(joint):
#     return -sum(torch.xlogy(p, p).sum() for p in (joint.sum(0), joint.sum(1)))
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: guide the maps, not the tokens (★★, 10 minutes)
#
# Write a ramp whose mean over the *maps* is $s$: from 1 at the first map, in equal steps. The sampler wants one strength per token.

# %% tags=["exercise"]
def ramp(levels, s):
    """levels (L,) from 0 to K - 1: strengths (L,) of which the mean over maps is s."""
    return None  # your code

# %% tags=["exercise-check"]
level_ = torch.arange(4).repeat_interleave(torch.tensor([1, 4, 16, 64]))
answer = ramp(level_, 2.0)
if answer is None:
    print("Hint: equal steps from 1 with mean s end at 2 s - 1.")
else:
    assert answer.shape == (85,), f"one strength per token, got {tuple(answer.shape)}"
    each = torch.stack([answer[level_ == k].float().mean() for k in range(4)])
    assert abs(each[0] - 1) < 1e-5, f"the first map is unguided, strength 1; got {each[0]:.2f}"
    mean = each.mean().item()
    assert abs(mean - 2) < 1e-5, f"the mean over the four maps should be 2, got {mean:.2f}"
    assert torch.allclose(each.diff(), each.diff()[:1], atol=1e-5), "the steps are not equal"
    print("Right: 1, 1.67, 2.33, 3, and most tokens get the last.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `levels / levels.max()` runs from 0 to 1.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def ramp(levels, s):
#     return 1 + 2 * (s - 1) * levels / levels.max()
# ```
#
# </details>
# <details><summary>Wrong: the mean over tokens</summary>
#
# Three quarters of the tokens are in the last map, so this ramp stays low: its last strength is little above $s$.
#
# ```python
# def ramp(levels, s):
#     rise = levels / levels.max()
#     return 1 + (s - 1) * rise / rise.mean()
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * The chain rule over maps instead of tokens: $K$ forwards, whatever the number of cells. The mask is the old predicate on new levels.
# * A place reads the picture so far at its own size. In training these inputs come all at once, in sampling one by one, bit for bit the same.
# * Cells of a map are drawn independently. What they must agree upon and no coarser map has settled is lost: the total correlation. Here it is the third map that pays.
# * A cache saves little where the last map holds most tokens; what counts is that four forwards wait for each other, not 64. The raster GPT made better pictures all the same.
# * FlexVAR's maps are pictures, not leftovers: any list of steps from one set of weights, better with each step, and in-painting that keeps what it should.
#
# ## Where this stands
#
# Next-scale prediction is VAR (Tian et al. [2404.02905](https://arxiv.org/abs/2404.02905)), which reports a Fréchet distance of 1.80 against 18.65 of its raster baseline on ImageNet, about 20 times faster, and a
# straight line of loss against size in a log-log plot. FlexVAR (Jiao et al. [2502.20313](https://arxiv.org/abs/2502.20313)) predicts maps instead of leftovers; a billion weights reach 2.21 in 10 steps, and 2.08 in 13, a
# number they were not trained for. The raster model beside them is LlamaGen ([2406.06525](https://arxiv.org/abs/2406.06525)). That tokens drawn together are drawn independently is the old trouble of parallel decoding (Gu et
# al. [1711.02281](https://arxiv.org/abs/1711.02281)); part 5b is about it. What a model does after its own mistakes is the subject of chapter 05.
