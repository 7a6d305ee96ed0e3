# %% [markdown]
# # Continuous latents: what is a real number worth?
#
# | | |
# | --- | --- |
# | **You will build** | an autoencoder that names regions instead of points, a dial from no regularisation to collapse, and a file made of real numbers |
# | **Time** | under a minute on a laptop, without a GPU |
# | **You need** | codebooks (chapter 01); what a Gaussian is |
# | **Of the five nouns** | tokenizer |
# | **Systems** | the KL autoencoder (variational autoencoder, and the first stage of latent diffusion) |
#
# The last chapters turned pictures into words. Why not keep real numbers? A flow or a diffusion model wants them: it cannot move noise
# towards a word. So its tokenizer stops before the rounding. But then nothing says how large the numbers are, how precise they must be, or
# how many bits they hold. This chapter puts a price on precision and turns it from zero to infinity.

# %% tags=["exercise-setup"]
import inspect
import math

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.patches import Ellipse
from torch import nn

from minimal import checkpoints, data, viz
from minimal.metrics import batched, frechet_distance, frechet_floor, perplexity, psnr
from minimal.tokenizers.kl import DiagonalGaussian, KLTokenizer, active_units
from minimal.train import EMA, adamw, fit

viz.style()
torch.set_num_threads(1)


def seed(number):
    return torch.Generator().manual_seed(number)


# %% [markdown]
# ## The question
#
# One scene, painted from 64 words of a codebook (recipe `shapes_vq`), and from 64 cells of four real numbers each (`shapes_kl`). Same
# frame, same number of steps.

# %%
words, reals = checkpoints.load("shapes_vq"), checkpoints.load("shapes_kl")
scenes = data.load("shapes", "validation", version="scene").images[:500]  # (500, 3, 32, 32)


def painted(tokenizer, tokens):
    """Images of tokens (B, N) or (B, N, D), clamped."""
    return batched(tokenizer.decode, tokens, 250).clamp(-1, 1)


def quality(x, y):
    return psnr(x, y).mean().item()


names, numbers = batched(words.encode, scenes, 250), batched(reals.encode, scenes, 250)
from_words, from_reals = painted(words, names), painted(reals, numbers)
print(f"a scene:          {8 * scenes[0].numel():6d} bits")
of_reals, of_words = quality(from_reals, scenes), quality(from_words, scenes)
print(f"256 float32:      {32 * numbers[0].numel():6d} bits, {of_reals:.1f} dB")
print(f"64 words of 625:  {64 * math.log2(625):6.0f} bits, {of_words:.1f} dB")
assert of_reals > of_words

# %% mystnb={"figure": {"caption": "A scene, from real numbers and from words. The eye has to look for the difference.", "name": "fig-1-05-question"}, "image": {"alt": "Three rows of six small scenes with coloured shapes: the originals, those painted from real numbers and those painted from words. All three rows look almost alike."}} tags=["hide-input"]
rows = torch.cat([scenes[:6], from_reals[:6], from_words[:6]])
viz.image_grid(rows, ncol=6, row_labels=("scenes", "256 reals", "64 words"));

# %% [markdown]
# The real numbers win, as they must. But is that fair? Counted in float32 they take fourteen times as many bits. Most of those bits are
# surely noise: nobody can see the 30th binary digit of a latent. How many digits are *worth* something?
#
# ## Regions instead of points
#
# An encoder that outputs a point claims infinite precision. Let it output a **region** instead: for each number of the latent a mean $\mu$
# and a width $\sigma$. In training the decoder never sees $\mu$. It gets a draw from the region,
#
# $$z = \mu + \sigma\,\varepsilon, \qquad \varepsilon \sim N(0, 1),$$
#
# so it can only use digits that survive the noise. The draw is written in this way so that gradients reach $\mu$ and $\sigma$ (the
# *reparameterisation trick*). Left to itself the encoder would choose $\sigma = 0$, or spread the means over a mile, where noise does not
# matter. So precision gets a price. It is the divergence of the region from one fixed Gaussian, $N(0, 1)$, in nats:
#
# $$\mathrm{KL} = \int q(z) \log \frac{q(z)}{p(z)}\,dz = \tfrac12 \left( \mu^2 + \sigma^2 - 1 - \log \sigma^2 \right)$$
#
# Each term pulls. $\mu^2$ pulls the mean to zero, $-\log \sigma^2$ widens the region, $\sigma^2$ stops it at one. The price is zero for
# $\mu = 0, \sigma = 1$: a region that is the same for every image, and therefore says nothing.

# %% tags=["exercise-setup"]
def draw(mean, logvar, generator=None):
    """One point of each region; mean, logvar (..., D)."""
    noise = torch.randn(mean.shape, generator=generator)
    return mean + (logvar / 2).exp() * noise


def price(mean, logvar):
    """KL divergence of each region from N(0, 1), (..., D), in nats."""
    return (mean**2 + logvar.exp() - 1 - logvar) / 2


# %%
mean, logvar = torch.tensor([0.0, 2.0, 0.0, 2.0]), 2 * torch.tensor([1.0, 1.0, 0.1, 0.1]).log()
z = draw(mean.expand(200_000, 4), logvar.expand(200_000, 4), seed(0))
ratio = torch.distributions.Normal(mean, (logvar / 2).exp()).log_prob(z)
ratio = ratio - torch.distributions.Normal(0.0, 1.0).log_prob(z)  # log q(z) / p(z)
print("mean  width   nats   from 200,000 draws")
for row in zip(mean, (logvar / 2).exp(), price(mean, logvar), ratio.mean(0)):
    print("{:4.0f} {:6.1f} {:7.3f} {:9.3f}".format(*map(float, row)))
assert torch.allclose(price(mean, logvar), ratio.mean(0), rtol=0.01, atol=0.01)
region = DiagonalGaussian(torch.cat((mean, logvar)))  # the package's version
assert torch.allclose(region.kl(), price(mean, logvar), atol=1e-6)
assert torch.equal(region.sample(seed(1)), draw(mean, logvar, seed(1)))

# %% [markdown]
# A region of a tenth of the width costs 1.8 nats: a bit less than one decimal digit ($\ln 10 = 2.3$), since a narrow region saves the
# $\sigma^2$. So nats of KL count digits.
#
# Now an autoencoder of digits around it, small enough to train while you watch. The loss is the squared error, a mean over the $P = 64$
# pixels as everywhere in this part, plus a weight $w$ times the KL, *summed* over the latent and averaged over the batch:
#
# $$\text{loss} = \frac1P\, |x - \hat x(z)|^2 + w \sum_{j=1}^{D} \mathrm{KL}_j$$

# %%
digits, held_out = data.load("digits"), data.load("digits", "validation")


class Autoencoder(nn.Module):
    """Digits to `dim` regions and back, with two layers of 128 each way."""

    def __init__(self, dim, weight):
        super().__init__()
        self.dim, self.weight = dim, weight
        inwards = nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()
        self.encoder = nn.Sequential(nn.Flatten(), *inwards, nn.Linear(128, 2 * dim))
        outwards = nn.Linear(dim, 128), nn.SiLU(), nn.Linear(128, 128), nn.SiLU()
        self.decoder = nn.Sequential(*outwards, nn.Linear(128, 64), nn.Unflatten(1, (1, 8, 8)))

    def loss(self, x):
        mean, logvar = self.encoder(x).chunk(2, dim=-1)  # (B, dim) each
        mse = F.mse_loss(self.decoder(draw(mean, logvar)), x)
        kl = price(mean, logvar).sum(1).mean()  # a sum over the latent, a mean over the batch
        return mse + self.weight * kl, {"mse": mse.detach(), "kl": kl.detach()}


def trained(dim, weight, steps=800):
    torch.manual_seed(0)
    model = Autoencoder(dim, weight)
    schedule = dict(steps=steps, batch_size=64, ema=EMA(model, 0.99), progress=False)
    fit(model, (digits.images,), adamw(model, 5e-3), **schedule)
    return model


@torch.no_grad()
def regions(model, images):
    return DiagonalGaussian(model.encoder(images))


# %% [markdown]
# With two numbers per digit we can look at the whole latent. Three weights:

# %%
planes = {weight: trained(2, weight) for weight in (0.0, 1e-2, 5e-2)}

# %% mystnb={"figure": {"caption": "Above: the regions of held-out digits (ellipses of one standard deviation), coloured by class. Below: what the decoder paints for points of the square from −3 to 3, the home of N(0, I).", "name": "fig-1-05-plane"}, "image": {"alt": "Three columns. Left, weight zero: points without visible ellipses, most of them far outside of the square, which shows only some of the digits. Middle: clusters of small ellipses fill the square, and most digits appear in it. Right: large overlapping ellipses around the origin, and blurred digits."}} tags=["hide-input"]
line = torch.linspace(-3, 3, 9)
places = torch.stack(torch.meshgrid(line, line.flip(0), indexing="xy"), -1).view(-1, 2)
figure, axes = plt.subplots(2, 3, figsize=(9, 6.2))
colours = plt.get_cmap("tab10")
for (above, below), (weight, model) in zip(axes.T, planes.items()):
    region = regions(model, held_out.images)
    ellipses = zip(region.mean.tolist(), (2 * region.std).tolist(), held_out.labels.tolist())
    for centre, (width, height), label in ellipses:
        oval = Ellipse(centre, width, height, color=colours(label), alpha=0.35, lw=0)
        above.add_patch(oval)
    above.scatter(*region.mean.T, s=3, c=held_out.labels.tolist(), cmap=colours)
    above.add_patch(plt.Rectangle((-3, -3), 6, 6, fill=False, ec=viz.INK, lw=1))
    above.set_aspect("equal", adjustable="datalim")
    bits = region.kl().sum(1).mean().item() / math.log(2)
    above.set_title(f"weight {weight:g}: {bits:.1f} bits")
    with torch.no_grad():
        viz.image_grid(model.decoder(places), ncol=9, ax=below)

# %% [markdown]
# **Weight zero.** The widths shrink to nothing and the plane is as large as the encoder likes. Between the digits lie deserts that the
# decoder was never asked about. **A small weight.** The same clusters, now at home in the square, and shoulder to shoulder: an empty place
# costs room that somebody could use to stand further apart. **A large weight.** Precision is too dear. The regions swell until they
# overlap, and the decoder paints means of whatever shares a place.
#
# ## What each weight buys, on paper
#
# How large is "small"? Multiply the loss by $P / 2s^2$ with
#
# $$s^2 = \frac{w P}{2}: \qquad \frac{|x - \hat x|^2}{2 s^2} + \mathrm{KL}$$
#
# Up to a constant this is a bound on $-\log p(x)$ for pixels with Gaussian noise of standard deviation $s$. So
# **the weight is a noise level**: it says which differences between pixels we do not care to pay for. It also shows the trap in every
# comparison of weights. Whoever sums squared errors, or averages the KL over the latent, writes another number for the same thing.
#
# For *linear* encoder and decoder the best weights are known exactly (Lucas et al. 2019). They find the principal components of the data. A
# component of variance $\lambda_i$ larger than $s^2$ is kept, at $\tfrac12 \log (\lambda_i / s^2)$ nats, and $s^2$ of its variance stays as
# an error. A smaller one is not worth its price. Its unit goes silent: $\mu = 0, \sigma = 1$. That is reverse water-filling, the optimal
# code for a Gaussian source, with $s^2$ for the water level. When it rises over $\lambda_1$ everything is silent:
# **posterior collapse**, at the weight $w^* = 2 \lambda_1 / P$.

# %%
flat = digits.images.flatten(1)
spectrum = torch.linalg.svdvals(flat - flat.mean(0)).square() / len(flat)  # (64,): λ


def on_paper(weight, dim=16):
    """Active units, bits and PSNR of the best linear autoencoder."""
    level = weight * 64 / 2
    kept = spectrum[:dim][spectrum[:dim] > level]
    error = spectrum.sum() - kept.sum() + level * len(kept)
    nats = (kept / level).log().sum() / 2 if weight else math.inf
    return len(kept), float(nats) / math.log(2), 10 * math.log10(4 / (error / 64))


weights = (0.0, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
print("weight    s in pixels   active of 16   bits     dB")
for weight in weights:
    units, bits, decibels = on_paper(weight)
    row = f"{weight:<8g} {(32 * weight) ** 0.5:12.4f} {units:11d} {bits:11.1f} {decibels:7.1f}"
    print(row)
collapse = 2 * spectrum[0].item() / 64
print(f"\ncollapse at {collapse:.3f}")
assert [on_paper(w)[0] for w in weights][-2:] == [0, 0]

# %% mystnb={"figure": {"caption": "Variances of the principal components of digits, and the water level of five weights. What lies below the water is not encoded. What lies above costs half a bit for every doubling.", "name": "fig-1-05-water"}, "image": {"alt": "A falling curve of 60 variances on a logarithmic axis, crossed by five horizontal lines; the line of weight 0.1 lies just above the first variance, that of 0.01 crosses at the fourteenth."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(6.4, 3))
ax.bar(range(1, 65), spectrum, color=viz.BLUE, width=0.8)
for weight in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6):
    ax.axhline(32 * weight, color=viz.AMBER, lw=1.4)
    ax.text(65, 32 * weight, f" {weight:g}", va="center", fontsize=8)
ax.set(yscale="log", ylim=(1e-5, 6), xlim=(0, 65), xlabel="component")
ax.set_ylabel("variance");

# %% [markdown]
# ## From zero to collapse
#
# Networks bend, so they should do better than the line on paper, but the silent units should come at the same place: around "all silent" a
# network looks linear. Seven networks, alike but for the weight. A unit counts as **active** if its mean varies between images by more than
# $\mathrm{Var}[\mu] > 0.01$. PSNR is that of held-out digits, painted from the middle of the region and from a draw.

# %%
networks = {weight: trained(16, weight) for weight in weights}


def report(model):
    """PSNR from the middle, from a draw, on training digits; bits; active units."""
    region = regions(model, held_out.images)
    seen = regions(model, digits.images)
    with torch.no_grad():
        middle = model.decoder(region.mean).clamp(-1, 1)
        drawn = model.decoder(region.sample(seed(0))).clamp(-1, 1)
        learned = model.decoder(seen.mean).clamp(-1, 1)
    return {
        "middle": quality(middle, held_out.images),
        "draw": quality(drawn, held_out.images),
        "training": quality(learned, digits.images),
        "bits": region.kl().sum(1).mean().item() / math.log(2),
        "active": active_units(seen.mean),
        "spread": seen.mean.std(0).mean().item(),
        "width": region.std.mean().item(),
    }


table = {weight: report(model) for weight, model in networks.items()}
print("weight   dB middle   draw  training   bits   active   spread of μ   width")
for weight, row in table.items():
    print(
        f"{weight:<8g}{row['middle']:8.1f}{row['draw']:9.1f}{row['training']:8.1f}"
        f"{row['bits']:9.1f}{row['active']:7d}{row['spread']:12.2f}{row['width']:11.4f}"
    )

# %%
seen = [row["training"] for row in table.values()]
assert all(before > after - 0.5 for before, after in zip(seen, seen[1:]))
assert table[1.0]["active"] == table[0.1]["active"] == 0 and table[1e-4]["active"] == 16
assert abs(table[0.0]["middle"] - table[1e-6]["middle"]) < 0.2
assert table[1e-2]["active"] < 14 and table[1e-4]["bits"] < 0.6 * table[1e-6]["bits"]

# %% mystnb={"figure": {"caption": "Held-out digits, and what comes back at each weight.", "name": "fig-1-05-sweep"}, "image": {"alt": "Eight rows of twelve digits. The first four rows look alike; at 0.001 strokes soften, at 0.01 digits are blurred, at 0.1 and 1 all twelve are the same grey cloud."}} tags=["hide-input"]
shown = held_out.images[:12]
rows = [shown]
for model in networks.values():
    with torch.no_grad():
        rows.append(model.decoder(regions(model, shown).mean))
labels = ["digits"] + [f"{w:g}" for w in weights]
viz.image_grid(torch.cat(rows), ncol=12, row_labels=labels);

# %% [markdown]
# Read the table from its foot. At 1 and at 0.1 every unit is silent, and all digits come back as their mean: collapse lies between 0.01 and
# 0.1, where the paper has it. At 0.01 fewer units speak than the line on paper would use, for fewer bits and a better picture: a unit that
# bends is worth more. Further up the quality saturates. From 0.001 to 0.0001 the bits double for one or two decibels, and from there to
# $10^{-6}$ they double again for a fifth of one. That is the flat part of the curve, and the place where tokenizers live.
#
# Two lines deserve a second look. *Zero and* $10^{-6}$ *are twins* in every column but one: the price is too low to be felt within 800
# steps, even the spread of the means is still 1.7 and not 1. All it did was to say how wide the regions may be. And the bits in the row of
# weight zero are no price at all: nobody paid them, and longer training goes on raising them.
#
# ## Samples from the prior
#
# In the books this autoencoder is a generator. Every region was asked to look like $N(0, I)$, so perhaps together they do: draw $z$ from
# $N(0, I)$ and decode it. We try that at every weight. Beside it stand two cheap alternatives, which need no price. Measure, *after*
# training, the mean and the spread of each of the 16 numbers; or their whole covariance, a table of $16 \times 16$; and draw from the
# Gaussian that has them.

# %%
judge = checkpoints.load("judge_digits")
real = batched(judge.features, torch.cat([held_out.images, digits.images]))
floor = frechet_floor(real, len(real) // 2, seed(0))


def gaussians(model):
    """1000 latents from N(0, I), N(m, diag) and N(m, S), with m, S of the training means."""
    z = torch.randn(1000, model.dim, generator=seed(0))
    means = regions(model, digits.images).mean
    root = torch.linalg.cholesky(torch.cov(means.T) + 1e-6 * torch.eye(model.dim))
    return {
        "N(0, I)": z,
        "own spread": means.mean(0) + means.std(0) * z,
        "own covariance": means.mean(0) + z @ root.T,
    }


def sampled(model):
    with torch.no_grad():
        return {name: model.decoder(z).clamp(-1, 1) for name, z in gaussians(model).items()}


samples = {weight: sampled(model) for weight, model in networks.items()}
distance = {
    weight: {k: frechet_distance(batched(judge.features, x), real) for k, x in pictures.items()}
    for weight, pictures in samples.items()
}
print("Fréchet distance of 1,000 samples from")
print("weight     N(0, I)    own spread    own covariance")
for weight, row in distance.items():
    print(f"{weight:<8g}" + "{:10.1f}{:14.1f}{:18.1f}".format(*row.values()))
print(f"two halves of the real digits: {floor:.1f}")
best = min(distance, key=lambda weight: distance[weight]["N(0, I)"])
cheap, costly = distance[0.0]["own covariance"], distance[best]["N(0, I)"]
assert best == 1e-2 and distance[0.0]["N(0, I)"] > 2 * costly
assert floor < 3 < cheap < costly + 2

# %% mystnb={"figure": {"caption": "Decoded draws. Left from N(0, I), right from a Gaussian with the covariance of the latents.", "name": "fig-1-05-prior"}, "image": {"alt": "Two blocks of digits in four rows. Left, weight zero and 1e-4 give broken strokes, 0.01 gives soft digits. Right, even weight zero gives shapes that often resemble digits."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(9.4, 2.5))
picked = (0.0, 1e-4, 1e-3, 1e-2)
for ax, name in zip(axes, ("N(0, I)", "own covariance")):
    rows = torch.cat([samples[weight][name][:10] for weight in picked])
    viz.image_grid(rows, ncol=10, row_labels=[f"{w:g}" for w in picked], ax=ax)
    ax.set_title(name)

# %% [markdown]
# The first column is the story of the books. Without a price, draws from $N(0, I)$ fall into deserts. The distance falls and falls with the
# weight, is best at 0.01, and explodes at collapse, where the decoder knows one picture.
#
# Now the third column. **No price at all, and a small table measured afterwards, is as good as the best of the first column**, on top of an
# autoencoder that is 5 dB better. What the price had bought for samples was mostly size and correlation, and both can be had for nothing
# once training is over (Ghosh et al. 2020 saw the same on photographs). Neither is good: two halves of the real digits are ten times
# closer. The latents of real digits form a shape that no Gaussian has. To learn that shape is the work of a flow, Part 3. This is why
# tokenizers for flows have tiny weights, and why nobody should choose the weight by looking at draws from $N(0, I)$.
#
# ## What the price does buy
#
# A flow's samples will be slightly wrong. A decoder that grew up with draws should mind less. Shake the latents by noise, measured in
# shares of their own spread:

# %%
@torch.no_grad()
def shaken(model, share):
    """PSNR after noise of `share` times the spread of the latents."""
    z = regions(model, held_out.images).mean
    spread = (z - z.mean(0)).square().mean().sqrt()
    noise = torch.randn(z.shape, generator=seed(1))
    return quality(model.decoder(z + share * spread * noise).clamp(-1, 1), held_out.images)


shares = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
steady = {w: [shaken(networks[w], share) for share in shares] for w in weights[:5]}
print("noise   " + "".join(f"{w:>9g}" for w in steady))
for j, share in enumerate(shares):
    print(f"{share:<8g}" + "".join(f"{row[j]:9.1f}" for row in steady.values()))
loss = {w: row[0] - row[-1] for w, row in steady.items()}
assert loss[0.0] > loss[1e-3] + 1 and abs(loss[0.0] - loss[1e-6]) < 0.5

# %% [markdown]
# It does mind less. Noise of half the spread costs almost 6 dB at weight zero and less than 4 dB at 0.001, which is then the better of the
# two. A part of this insurance is free: 0.0001 paints undisturbed digits as well as zero does, and shaken ones better. At $10^{-6}$ there
# is none. Regions that narrow train nobody to stand noise of a tenth. What even the smallest price buys is that every number has a finite
# precision that is *known*. We shall use it below.
#
# ## The package's version, and a scale for those who come later
#
# The package keeps the frame of all grid tokenizers and puts regions into its waist. Its tokens are the means, deterministic. One thing is
# added. A flow starts from noise of variance one, and its whole schedule is made for data of that size. Weight $10^{-6}$ does not promise
# such a size (on digits it came out near 1.7), and forgetting this makes a good flow look broken. So after training `calibrate` stores the
# mean of each channel and one standard deviation, and `encode` uses them. `embed` undoes them for the decoder:

# %%
print(inspect.getsource(KLTokenizer.encode))
print(inspect.getsource(KLTokenizer.embed))
with torch.inference_mode():
    region = reals.posterior(scenes[:100])
    shift, scale = reals.quantizer.shift, reals.quantizer.scale
    assert torch.allclose(reals.encode(scenes[:100]), (region.mean - shift) / scale)
    assert torch.allclose(region.kl(), price(region.mean, region.logvar), atol=1e-3)
    assert torch.allclose(reals.embed(reals.encode(scenes[:100])), region.mean, atol=1e-5)
raw = numbers * scale + shift
print("channels as the decoder sees them: mean", *[f"{v:6.2f}" for v in raw.mean((0, 1))])
print("                                    std", *[f"{v:6.2f}" for v in raw.std((0, 1))])
print(f"tokens: mean {numbers.mean():.2f}, standard deviation {numbers.std():.2f}")
assert abs(numbers.mean()) < 0.05 and abs(numbers.std() - 1) < 0.05

# %% [markdown]
# ## What is a real number worth?
#
# Back to the question. The scenes were trained with $w = 10^{-6}$, which on $P = 3072$ numbers per image is a pixel noise of $s = 0.04$:
# not at all the same dial as on digits, where $10^{-6}$ was 0.006. Here the price is felt. What do the regions of a scene cost?

# %%
with torch.inference_mode():
    parts = scenes.split(250)
    found = [reals.posterior(part) for part in parts]
    means = torch.cat([part.mean for part in found])  # (500, 64, 4), as the decoder sees them
    widths = torch.cat([part.std for part in found])
    bits = torch.cat([part.kl() for part in found]) / math.log(2)
    drawn = torch.cat([reals.sample(part, seed(3)) for part in parts])
total = bits.sum((1, 2))  # (500,)
sent = total.mean().item(), quality(painted(reals, drawn), scenes)
noise = (reals.weight * scenes[0].numel() / 2) ** 0.5
print(f"pixel noise s: {noise:.3f}")
print(f"a scene: {sent[0]:.0f} bits, from {total.min():.0f} to {total.max():.0f}")
print(f"a cell: {sent[0] / 64:.1f} bits, a number: {sent[0] / 256:.2f} bits")
print(f"painted from draws: {sent[1]:.1f} dB, from means: {of_reals:.1f} dB")
assert sent[0] / 256 < 4 and sent[1] > of_words + 0.5

# %% mystnb={"figure": {"caption": "Scenes, and the price of each cell in bits (white 0, ink 30).", "name": "fig-1-05-price"}, "image": {"alt": "Six scenes; below each an 8 by 8 map of blue cells, pale where the background is plain and dark along the outlines of the shapes."}} tags=["hide-input"]
figure, axes = plt.subplots(2, 6, figsize=(8.6, 3))
for (above, below), scene, cells in zip(axes.T, scenes[:6], bits[:6].sum(-1)):
    viz.image_grid(scene[None], ax=above)
    below.imshow(cells.view(8, 8), cmap=viz.SEQUENTIAL, vmin=0, vmax=30)
    viz.bare(below)
    below.set_xlabel(f"{cells.sum():.0f} bits", color=viz.INK)

# %% [markdown]
# The price map is a drawing of what is hard to say. Most cells show plain ground and cost a few bits, whose regions are wide; outlines cost
# around twenty. A codebook cannot do that: each of its words has the same length, 9.3 bits, wherever it stands. The cheapest scene costs
# less than a third of the dearest.
#
# Is a price in nats a size one could send? A theorem says nearly so: if both sides share random numbers, a draw from a region costs about
# its KL (Havasi et al. 2018). Let us try something plainer and round. An error that is uniform in a cell of width $\Delta$ has the variance
# $\Delta^2 / 12$, so a step that is as coarse as the region is $\Delta = \sqrt{12}\,\sigma$. First with the step of each number's own
# region, as if the reader knew it, at $-\log_2$ of the mass that $N(0, 1)$ has in the cell. Then the same on grids that are moved by random
# offsets, known to both sides. Last with one step for all, as a plain file would have to, at the entropy of the whole numbers.

# %%
def entropy(symbols):
    """Bits per symbol of whole numbers of any shape, by how often each occurs."""
    symbols = symbols - symbols.min()
    return math.log2(perplexity(symbols, int(symbols.max()) + 1))


def rounded(step):
    """Bits per scene and PSNR, if all tokens are multiples of `step`."""
    k = (numbers / step).round().long()  # (500, 64, 4)
    each = sum(64 * entropy(channel) for channel in k.unbind(-1))
    return each, quality(painted(reals, k * step), scenes)


def by_region(offset):
    """The same with each number's own step, on a grid that is moved by `offset` steps."""
    step = 12**0.5 * widths
    z = ((means / step - offset).round() + offset) * step
    normal = torch.distributions.Normal(0.0, 1.0)
    mass = normal.cdf((z + step / 2).double()) - normal.cdf((z - step / 2).double())
    each = -mass.log2().sum((1, 2)).mean().item()
    return each, quality(painted(reals, (z - shift) / scale), scenes)


plain, dithered = by_region(0.0), by_region(torch.rand(means.shape, generator=seed(5)) - 0.5)
by_words = 64 * entropy(names), of_words
steps = (2.0, 1.0, 0.7, 0.5, 0.35, 0.25, 0.12)
curve = [rounded(step) for step in steps]
equal = np.interp(by_words[1], [d for _, d in curve], [b for b, _ in curve])
print(f"words:                        {by_words[0]:5.0f} bits {by_words[1]:6.1f} dB")
print("draws, by their KL:           {:5.0f} bits {:6.1f} dB".format(*sent))
print("rounded by region:            {:5.0f} bits {:6.1f} dB".format(*plain))
print("the same, with shared offsets:{:5.0f} bits {:6.1f} dB".format(*dithered))
for step, point in zip(steps, curve):
    print("rounded to steps of {:4.2f}:      {:5.0f} bits {:6.1f} dB".format(step, *point))
print(f"one step, as good as words:   {equal:5.0f} bits, {equal / 256:.2f} a number")
more = (dithered[0] - sent[0]) / 256
print(f"shared offsets: {more:.2f} bits a number above the KL")
assert abs(dithered[1] - sent[1]) < 0.6 and 0.1 < more < 0.45
assert plain[1] < dithered[1] - 0.8 and by_words[0] < equal < 900

# %% mystnb={"figure": {"caption": "Quality of held-out scenes against bits. Line: all tokens rounded to one step, ever finer.", "name": "fig-1-05-rate"}, "image": {"alt": "A rising line of rounded tokens from 26 decibels at 270 bits to 38 at 1240, with three marked points above it: words at 35 decibels and 560 bits, draws at 37 decibels and 600 bits, rounding by region with offsets 80 bits to the right of the draws."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(6.2, 3.4))
ax.plot(*zip(*curve), color=viz.BLUE, marker="o")
ax.text(curve[-2][0], curve[-2][1] - 1.2, "one step for all", color=viz.BLUE, fontsize=8.5)
marks = {"64 words": by_words, "draws, by KL": sent, "by region, offsets": dithered}
for (name, point), colour in zip(marks.items(), (viz.AMBER, viz.INK, viz.GREEN)):
    ax.plot(*point, "o", color=colour, ms=6.5)
    side = "left" if point is dithered else "right"
    lift = (7 if side == "left" else -7, 4)
    ax.annotate(name, point, lift, textcoords="offset points", ha=side, fontsize=8.5)
ax.set(xlabel="bits per scene", ylabel="PSNR in dB");

# %% [markdown]
# So a real number of a scene is worth 2.4 bits, not 32, and at that price the picture is 2 dB better than from words of nearly the same
# length. But the price must be *realised*. Rounded by region the picture is worse than from draws, although the errors have the same
# variance. The reason can be seen in the map: cells of plain ground have nearly equal means, so all of them are rounded the same way, and
# the whole ground changes its tint. Independent errors average out, errors in step do not. Random offsets break the step, at once and for
# nothing; what remains above the KL is the quarter of a bit by which cubes fill space worse than balls
# ($\tfrac12 \log_2 \tfrac{2 \pi e}{12} = 0.25$). And a plain file, with one step for all and no knowledge of the regions, pays for
# precision where nobody needs it: as good as words, it is longer than they are. Words are not a poor man's latents. They come with their
# file; real numbers come with a price that takes skill to realise, and are what a flow can move.
#
# ## Exercise 1: the price of an image (★, 5 minutes)
#
# From the encoder's output, means and logarithms of variances one behind the other, to the price of each image in nats.

# %% tags=["exercise"]
def image_price(moments):
    """Nats per image (B,), from moments (B, N, 2D): D means, then D log variances, per cell."""
    return None  # your code

# %% tags=["exercise-check"]
torch.manual_seed(0)
moments = torch.randn(3, 4, 6)
answer = image_price(moments)
if answer is None:
    print("Hint: chunk the last dimension, price every number, then sum. Over what?")
else:
    expected = DiagonalGaussian(moments).kl().flatten(1).sum(1)
    assert answer.shape == (3,), f"one price per image, (3,); got {tuple(answer.shape)}"
    times = (expected / answer).mean().item()
    wrong = f"{times:.0f} times too cheap: a sum over the 4 · 3 numbers, not their mean"
    assert abs(times - 1) < 1e-3, wrong
    assert torch.allclose(answer, expected, atol=1e-4), f"expected {expected}, got {answer}"
    print("Right: a larger latent of the same precision costs more, as it should.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `flatten(1).sum(1)` sums over everything but the batch.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def image_price(moments):
#     mean, logvar = moments.chunk(2, dim=-1)
#     return price(mean, logvar).flatten(1).sum(1)
# ```
#
# </details>
# <details><summary>Wrong: a mean over the latent</summary>
#
# Then the same weight means something else for every size of the latent. On our scenes it would be 256 times too weak.
#
# ```python
# def image_price(moments):
#     mean, logvar = moments.chunk(2, dim=-1)
#     return price(mean, logvar).flatten(1).mean(1)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: who falls silent? (★★, 10 minutes)
#
# Given images and a weight, predict the number of active units of the best linear autoencoder, and the bits that it spends per image.

# %% tags=["exercise"]
def forecast(images, weight):
    """(active units, bits per image) from images (M, P) and the weight of the KL."""
    return None  # your code

# %% tags=["exercise-check"]
torch.manual_seed(0)
rows = torch.randn(4000, 8)
rows = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).U * 4000**0.5
rows = rows * torch.tensor([8.0, 4.0, 2.0, 1.0, 0.5, 0.1, 0.1, 0.1]).sqrt() + 3.0
answer = forecast(rows, 0.2)
if answer is None:
    print("Hint: squared singular values of centred rows, over M; compare with weight · P / 2.")
else:
    units, bits = int(answer[0]), float(answer[1])
    wrong = f"the water level is weight · P / 2 = 0.8: four components above it, got {units}"
    assert units == 4, wrong
    expected = sum(math.log2(v / 0.8) / 2 for v in (8, 4, 2, 1))
    wrong = f"expected {expected:.2f} bits, got {bits:.2f}: half a log2 of variance over level"
    assert abs(bits - expected) < 0.02, wrong
    print("Right: and the network of this chapter falls silent at the same place.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `torch.linalg.svdvals(x).square() / len(x)` are the variances of the components of centred `x`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def forecast(images, weight):
#     centred = images - images.mean(0)
#     variance = torch.linalg.svdvals(centred).square() / len(images)
#     level = weight * images.shape[1] / 2
#     kept = variance[variance > level]
#     return len(kept), (kept / level).log2().sum() / 2
# ```
#
# </details>
# <details><summary>Wrong: forgets that the error is a mean over pixels</summary>
#
# With a mean over $P$ pixels each nat is $P$ times dearer than with a sum.
#
# ```python
# def forecast(images, weight):
#     centred = images - images.mean(0)
#     variance = torch.linalg.svdvals(centred).square() / len(images)
#     level = weight / 2
#     kept = variance[variance > level]
#     return len(kept), (kept / level).log2().sum() / 2
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: translate a weight (★★, 10 minutes)
#
# Somebody trains with the squared error *summed* over the $P$ pixels of an image and $\beta$ times the KL *averaged* over the $D$ numbers
# of the latent. Which weight $w$ of this chapter has the same best network?

# %% tags=["exercise"]
def translated(beta, pixels, numbers):
    """The weight of a summed KL beside a mean squared error."""
    return None  # your code

# %% tags=["exercise-check"]
torch.manual_seed(0)
gap = torch.randn(5, 64, requires_grad=True)  # x − x̂
mu = torch.randn(5, 16, requires_grad=True)
theirs = gap.square().sum(1).mean() + 0.5 * price(mu, torch.zeros(5, 16)).mean()
answer = translated(0.5, 64, 16)
if answer is None:
    print("Hint: multiplying a whole loss by a constant changes nothing. Which constant?")
else:
    ours = gap.square().mean() + float(answer) * price(mu, torch.zeros(5, 16)).sum(1).mean()
    pulls = [torch.autograd.grad(loss, (gap, mu)) for loss in (theirs, ours)]
    wanted, got = ((g.norm() / m.norm()).item() for g, m in pulls)
    wrong = f"the error should pull {wanted:.3g} times as hard as the price, got {got:.3g}"
    assert abs(got / wanted - 1) < 1e-3, wrong
    print("Right: weights of two papers can differ a thousandfold and mean the same.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Divide their loss by $P$. Then write the mean over $D$ numbers as a sum.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def translated(beta, pixels, numbers):
#     return beta / (pixels * numbers)
# ```
#
# </details>
# <details><summary>Wrong: translates one of the two only</summary>
#
# The mean over the latent hides another factor.
#
# ```python
# def translated(beta, pixels, numbers):
#     return beta / pixels
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * A region costs $\tfrac12(\mu^2 + \sigma^2 - 1 - \log \sigma^2)$ nats per number, summed over the image. The decoder sees a draw, so it can use no
#   digit that was not paid for.
# * The weight is a pixel noise in disguise, $s^2 = wP/2$: a water level. Components below it fall silent, and above $2\lambda_1/P$ all of them.
# * Between the two ends lies a wide flat part: bits halve, and the picture stays. Tokenizers live there.
# * $N(0, I)$ is a reference, not a result. Spread and covariance can be measured afterwards; the rest is for a flow. Its scale comes with the tokenizer.
# * A real number is worth as many bits as survive the noise: in a scene between two and three, not 32.
#
# ## Where this stands
#
# The variational autoencoder: Kingma and Welling ([1312.6114](https://arxiv.org/abs/1312.6114)) and Rezende et al.
# ([1401.4082](https://arxiv.org/abs/1401.4082)). With a weight: β-VAE, Higgins et al. (ICLR 2017); as a rate and a distortion: Alemi et al.
# ([1711.00464](https://arxiv.org/abs/1711.00464)). A tiny weight, and a generator behind it: latent diffusion, Rombach et al.
# ([2112.10752](https://arxiv.org/abs/2112.10752)). Linear maps, and why units fall silent: Lucas et al.
# ([1911.02469](https://arxiv.org/abs/1911.02469)). Active units were counted by Burda et al.
# ([1509.00519](https://arxiv.org/abs/1509.00519)); free bits against silence, and richer regions: Kingma et al.
# ([1606.04934](https://arxiv.org/abs/1606.04934)). A density fitted after training: Ghosh et al.
# ([1903.12436](https://arxiv.org/abs/1903.12436)). Sending a draw for its KL: Havasi et al.
# ([1810.00440](https://arxiv.org/abs/1810.00440)). What an autoencoder knows about the density of its data without any prior, the score, is
# in Alain and Bengio ([1211.4246](https://arxiv.org/abs/1211.4246)), the seed of diffusion models.
