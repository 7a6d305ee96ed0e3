# %% [markdown]
# # Adversarial and perceptual losses: what PSNR likes and what an eye likes
#
# | | |
# | --- | --- |
# | **You will build** | a distance that looks with a network, a discriminator of patches, the balance between the two, and the step that trains both |
# | **Time** | about half a minute on a laptop, without a GPU |
# | **You need** | chapter 1 of this part (codebooks), and what a gradient is |
# | **Of the five nouns** | tokenizer |
# | **Systems** | VQGAN, the perceptual distance LPIPS, the patch discriminator of pix2pix |
#
# A tokenizer with few tokens cannot keep everything. What it paints in place of what it lost depends on the loss, and on nothing
# else. A squared error paints a blur. This chapter says why, replaces it by two losses that do not, and shows the price: what
# they paint is sharp, plausible, and partly invented.

# %% tags=["exercise-setup"]
import inspect
import math

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torch import nn

from minimal import checkpoints, data, viz
from minimal.metrics import (
    batched,
    frechet_distance,
    frechet_floor,
    label_accuracy,
    psnr,
    ssim,
)
from minimal.tokenizers.adversarial import (
    AdversarialStep,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    generator_loss,
)
from minimal.tokenizers.perceptual import PerceptualDistance, sharpness, unit
from minimal.tokenizers.vq import VQTokenizer
from minimal.train import EMA, adamw, fit

viz.style()
torch.set_num_threads(1)
torch.set_printoptions(precision=2, sci_mode=False)

# %% [markdown]
# ## Which of two reconstructions is better?
#
# We damage one scene in five ways, and turn each dial until the mean squared error is exactly that of a shift by one pixel.

# %%
scenes = data.load("shapes", "validation", version="scene").images  # (1000, 3, 32, 32)


def blurred(x, sigma):
    """Images (B, C, H, W), smoothed by a Gaussian of this width in pixels."""
    offsets = torch.arange(-8, 9)
    kernel = torch.softmax(-(offsets**2) / (2 * sigma**2), 0).expand(x.shape[1], 1, 1, -1)
    x = F.conv2d(F.pad(x, (8, 8, 0, 0), mode="replicate"), kernel, groups=x.shape[1])
    return F.conv2d(F.pad(x, (0, 0, 8, 8), mode="replicate"), kernel.mT, groups=x.shape[1])


def blur_of_error(x, error):
    """The blurred `x` (1, C, H, W) with this mean squared error, by bisection."""
    low, high = 0.1, 8.0
    for _ in range(24):
        middle = (low + high) / 2
        weak = (blurred(x, middle) - x).square().mean() < error
        low, high = (middle, high) if weak else (low, middle)
    return blurred(x, middle)


def damages(x, generator):
    """The image `x` (1, C, H, W) and five damaged copies of equal squared error."""
    shifted = F.pad(x, (1, 0, 0, 0), mode="replicate")[..., :-1]
    error = (shifted - x).square().mean()
    noise = torch.randn(x.shape, generator=generator)
    flat = x.mean((2, 3), keepdim=True)
    return {
        "original": x,
        "shifted by a pixel": shifted,
        "darker": x - error.sqrt(),
        "less contrast": x + (flat - x) * error.sqrt() / (flat - x).square().mean().sqrt(),
        "noise": x + noise * error.sqrt() / noise.square().mean().sqrt(),
        "blurred": blur_of_error(x, error),
    }


one = scenes[12:13]
copies = damages(one, torch.Generator().manual_seed(0))
decibels = {name: psnr(copy, one).item() for name, copy in copies.items()}
spread = [value for name, value in decibels.items() if name != "original"]
assert max(spread) - min(spread) < 0.01

# %% mystnb={"figure": {"caption": "Five copies with the same PSNR. The first differs from the original by nothing that anybody would mention.", "name": "fig-1-04-equal"}, "image": {"alt": "Six versions of one scene: the original, the same moved by one pixel, darker, paler, covered with coloured noise, and so blurred that its shapes cannot be told. The last five have equal PSNR."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 6, figsize=(8.8, 1.9))
for ax, (name, copy) in zip(axes, copies.items()):
    viz.image_grid(copy, ax=ax)
    ax.set_title(name + ("\n" if copy is one else f"\n{decibels[name]:.1f} dB"), fontsize=8);

# %% [markdown]
# For PSNR these five are equally good. Nobody who looks at them agrees. PSNR compares each pixel with the pixel at its place, and
# squares the difference. It does not know what an edge is. A decoder that is trained by it paints the last of the five, never the
# first. Why? Leave pictures aside for a moment.
#
# ## The mean of all plausible details
#
# A code of few bits says "there is an edge somewhere in this stretch". Nine places are equally plausible. What should the decoder
# paint? Whatever the code, the decoder paints one thing $\hat x$, and its squared error is
#
# $$\begin{gathered} \mathbb E\,|x - \hat x|^2 = \underbrace{\mathbb E\,|x - \bar x|^2}_{\text{not the decoder's fault}} + |\bar x - \hat x|^2, \\ \bar x = \mathbb E\,[x \mid \text{code}] \end{gathered}$$
#
# The best it can do is $\bar x$, the mean: a ramp, though no edge in the data is a ramp. If it painted one of the plausible edges
# instead, drawn at random, then $\hat x$ would be as far from $\bar x$ as $x$ is, and the error exactly **twice** the least one.

# %%
edges = torch.sign(torch.arange(16) - torch.arange(3.5, 12)[:, None])  # (9, 16)
ramp = edges.mean(0)
least = (edges - ramp).square().mean()
drawn = (edges[:, None] - edges[None]).square().mean()  # every pair of truth and painting
lost = 10 * math.log10(drawn / least)
print(f"the mean: {least:.3f}   an edge at random: {drawn:.3f}   {lost:.2f} dB lost")
assert abs(drawn / least - 2) < 1e-5

# %% mystnb={"figure": {"caption": "Nine edges, equally plausible, and their mean (bold). The mean has the least squared error and is the only one of the ten that never occurs.", "name": "fig-1-04-mean"}, "image": {"alt": "Thin step functions that jump from minus one to one at nine neighbouring places, and a bold slanted ramp through the middle of them."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(5.6, 2.2))
for k, edge in enumerate(edges):
    ax.step(range(16), edge, where="mid", color=viz.SKY, lw=1)
ax.plot(ramp, color=viz.BLUE, lw=2.6)
ax.set(xlabel="pixel", ylabel="brightness", yticks=(-1, 0, 1));

# %% [markdown]
# Three decibels are the price of looking real. That is no accident of edges. Blau and Michaeli proved that a reconstruction whose
# distribution is that of real images can never have the least error unless nothing was lost, and that for squared error it never
# needs to pay more than these 3 dB. **Perception and distortion are traded for one another**; where on the curve you stand is
# decided by the loss.
#
# Now in two dimensions, live. All plausible details lie on a ring. The decoder owns one point $c$. With the squared error it goes
# to the centre, where nothing real is. Beside it we train a small network $D$ that gives high numbers to points of the ring and
# low ones to $c$, and let $c$ climb on it:

# %%
def ring(n):
    angle = 2 * math.pi * torch.rand(n)
    return torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(n, 2)


def walk(weight, steps=500, start=(0.9, 0.5)):
    """The path (steps, 2) of one painted point, and its critic, heard from half time on."""
    torch.manual_seed(1)
    c = torch.tensor(start, requires_grad=True)
    layers = nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
    D = nn.Sequential(*layers)
    painter, critic = torch.optim.SGD([c], lr=0.02), torch.optim.Adam(D.parameters(), lr=0.01)
    path = []
    for step in range(steps):
        x = ring(64)
        loss = (x - c).square().sum(1).mean() - weight * (step >= steps // 2) * D(c).mean()
        painter.zero_grad()
        loss.backward()
        painter.step()
        path.append(c.detach().clone())
        past = torch.stack(path)[torch.randint(len(path), (64,))]  # anything painted so far
        judged = discriminator_loss(D(x), D(past + 0.1 * torch.randn(64, 2)))  # see below
        critic.zero_grad()
        judged.backward()
        critic.step()
    return torch.stack(path), D


paths = {"squared error alone": walk(0.0), "and a critic, from half time": walk(0.6)}
radius = {name: path[-50:].norm(dim=1).mean().item() for name, (path, _) in paths.items()}
for name, value in radius.items():
    print(f"{name:30s} distance from the centre {value:.2f}")
assert radius["squared error alone"] < 0.2 and radius["and a critic, from half time"] > 0.5

# %% mystnb={"figure": {"caption": "The path of the painted point (dark to bright). Left, the squared error leads it to the centre. Right, from half time on a critic (shaded: what it takes for real) drives it out onto the ring, and along it.", "name": "fig-1-04-ring"}, "image": {"alt": "Two panels with a ring of dots. Left a path from the ring to the centre that stays there. Right the same, then the path leaves the centre, reaches the ring and wanders along it."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(7.4, 3.4))
side = torch.linspace(-1.7, 1.7, 120)
places = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
torch.manual_seed(2)
dots = ring(300)
for ax, (name, (path, D)) in zip(axes, paths.items()):
    if "critic" in name:
        with torch.no_grad():
            field = D(places)[..., 0].clamp(-2, 2)
        ax.imshow(field, extent=(-1.7, 1.7, -1.7, 1.7), origin="lower", cmap="BuGn", alpha=0.7)
    ax.scatter(*dots.T, s=4, color=viz.GREY, lw=0)
    ax.scatter(*path.T, s=7, c=range(len(path)), cmap="plasma", lw=0)
    ax.set(title=name, xlim=(-1.7, 1.7), ylim=(-1.7, 1.7), aspect="equal")
    viz.bare(ax)

# %% [markdown]
# The critic does not know which point of the ring was the true one. It only knows that the centre is none. So it pushes the
# painter to *some* plausible place, and when that place has been painted too often, to another. Keep that in mind for the end of
# the chapter. (The point shot over the ring at first, where the critic had never looked. Here it is shown everything that was
# ever painted. Shown the latest only, it and the painter chase each other about: try it. Adversarial training has no valley to
# roll into.)
#
# Two losses, then, that like edges better than blur. One looks through a network that was trained before, the other trains its
# own.
#
# ## A distance that looks with a network
#
# A classifier of shapes must know edges and corners, and must not care about a pixel more to the left. So its hidden layers are a
# good place to compare images. LPIPS (Zhang et al. 2018) takes a network that was trained on photographs. Here is a small one of
# our own, trained in a minute to name the shape and colour of a single object (recipe `perceptual_shapes`), and frozen since.

# %%
network = checkpoints.load("perceptual_shapes")
trunk = network.trunk  # a list of layers
x, y = one, copies["blurred"]

stages = []
f, g = x, y
with torch.no_grad():
    for layer in trunk:
        before = f, g
        f, g = layer(f), layer(g)
        if f.shape[2:] != before[0].shape[2:]:  # halved, or flattened
            stages.append(before)
for f, g in stages:
    print(f"features {str(tuple(f.shape)):16s} mean square {f.square().mean():8.2f}")

# %% [markdown]
# The stages differ in loudness, and so do places within a stage. So every feature vector (over the channels, at each place) is
# first divided by its length. Then, with $f_l$ of shape $(c_l, h_l, w_l)$,
#
# $$P(x, y) = \sum_l \frac{1}{h_l w_l} \sum_{\text{places}} \Big| \frac{f_l(x)}{|f_l(x)|} - \frac{f_l(y)}{|f_l(y)|} \Big|^2$$
#
# LPIPS also learns a weight for each channel from people's answers to the question above this section. We have no people here,
# and all weights are one.

# %%
by_hand = sum((unit(f) - unit(g)).square().sum(1).mean() for f, g in stages)
P = PerceptualDistance(trunk)
with torch.no_grad():
    torch.testing.assert_close(P(x, y)[0], by_hand)
    assert P(x, x).item() == 0 and torch.equal(P(x, y), P(y, x))
print(inspect.getsource(PerceptualDistance.features))
print(inspect.getsource(unit))

# %% [markdown]
# What does it say to the five copies? One scene could be luck, so we damage fifty, each with five errors of one size.

# %%
generator = torch.Generator().manual_seed(1)
table = {}
with torch.no_grad():
    for x in scenes[:50].split(1):
        for name, copy in damages(x, generator).items():
            row = psnr(copy, x), ssim(copy, x), P(copy, x)
            table.setdefault(name, []).append(torch.tensor([float(value) for value in row]))
print(f"{'mean of 50 scenes':20s}{'PSNR':>7s}{'SSIM':>7s}{'P':>7s}")
table = {name: torch.stack(rows) for name, rows in table.items() if name != "original"}
for name, rows in table.items():
    print("{:20s}{:7.1f}{:7.2f}{:7.2f}".format(name, *rows.mean(0)))
first = (table["shifted by a pixel"][:, 2] < table["blurred"][:, 2]).double().mean()
print(f"P prefers the shift to the blur in {first:.0%} of the scenes")
assert first > 0.9

# %% [markdown]
# $P$ forgives the shift and minds the blur most of all, as an eye does. It is no eye. It hardly sees that a picture is too dark,
# since dividing by the length took loudness away; and noise costs little more than a shift, since naming shapes teaches a network
# to look through noise. SSIM has the opposite taste: the noise is worst, and the blur almost as good as the shift. No number sees
# everything. So $P$ is never used alone: the squared error stays in the loss, holds brightness and keeps things in their places.
#
# ## What it asks of a picture
#
# A loss is known by its gradient. We stand at the blurred copy and ask both losses how each pixel should change.

# %%
start = copies["blurred"].clone().requires_grad_()
[wish_pixels] = torch.autograd.grad((start - one).square().sum(), start)
[wish_network] = torch.autograd.grad(P(start, one).sum(), start)
difference = one - copies["blurred"]
cosine = F.cosine_similarity(-wish_pixels.flatten(), -wish_network.flatten(), dim=0)
print(f"cosine between the two wishes: {cosine:.2f}")

# %% mystnb={"figure": {"caption": "What the losses would like to change in the blurred scene (red: brighter, blue: darker; summed over colours).", "name": "fig-1-04-wish"}, "image": {"alt": "Four panels: a scene, its blurred copy, and two maps of wished changes."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 4, figsize=(8.6, 2.4))
viz.image_grid(one, ax=axes[0])
viz.image_grid(copies["blurred"], ax=axes[1])
for ax, wish in zip(axes[2:], (wish_pixels, wish_network)):
    change = -wish.sum(1)[0]
    reach = change.abs().quantile(0.995)
    ax.imshow(change, cmap="RdBu_r", vmin=-reach, vmax=reach)
    viz.bare(ax)
for ax, title in zip(axes, ("original", "blurred", "squared error", "perceptual distance")):
    ax.set_title(title);

# %% [markdown]
# The two hardly agree. The squared error wants each pixel to be what it was, and is silent where nothing is wrong. The network
# asks for structure, edges in neighbourhoods as large as its filters, and it also rubs at the empty background, where it should
# not care. A network is not smooth in its pixels; a single gradient of it looks like noise, and the decoder averages over many.
#
# **Its blind spot.** Let us follow that gradient as far as it goes: from the blurred copy, by changing pixels until $P$ is
# content. And ask *another* network of the same kind, the judge of this course, what it thinks of the result.

# %%
judge = checkpoints.load("judge_shapes")
J = PerceptualDistance(judge.trunk)
x = scenes[:8]
with torch.no_grad():
    start = torch.cat([blur_of_error(part, 0.02) for part in x.split(1)])  # 23 dB
pixels = start.clone().requires_grad_()
optimizer = torch.optim.Adam([pixels], lr=0.02)
for _ in range(120):
    optimizer.zero_grad()
    P(pixels, x).sum().backward()
    optimizer.step()
    with torch.no_grad():
        pixels.clamp_(-1, 1)
with torch.no_grad():
    rows = {"blurred": start, "after 120 steps on P": pixels}
    print(f"{'distance to the original':22s}{'P':>5s}{'judge':>8s}{'PSNR':>7s}")
    for name, painted in rows.items():
        values = P(painted, x).mean(), J(painted, x).mean(), psnr(painted, x).mean()
        print("{:22s}{:7.3f}{:8.3f}{:7.1f}".format(name, *values))
    own, other = ((net(start, x).mean() / net(pixels, x).mean()).item() for net in (P, J))
print(f"closer by a factor of {own:.0f} in its own eyes, {other:.0f} in those of the judge")
assert own > 4 * other

# %% mystnb={"figure": {"caption": "The loss's network can hardly tell the last row from the first. We can.", "name": "fig-1-04-blind"}, "image": {"alt": "Three rows of eight scenes: originals, blurred copies, and the result of descending on P. The last row has sharp shapes again, but with a grain of coloured pixels, wrong shades and stripes inside the shapes."}} tags=["hide-input"]
names = ["original", "blurred", "P is content"]
viz.image_grid(torch.cat([x, start, pixels]), ncol=8, row_labels=names);

# %% [markdown]
# Shapes came back, sharp and in their places, from a distance that never compares two pixels. That is what the loss is good for.
# But look at the numbers. In the eyes of its own network the pictures came more than a hundred times closer; another network of
# the same kind saw about a tenth of that. The rest was won by pleasing this one network: grain, stripes, shades that it happens
# not to see. **Never measure with the network that was the loss.** In this course the loss has `perceptual_shapes`, and the
# judge, twice as wide and from another seed, has never been a loss.
#
# ## A discriminator of patches
#
# The second loss has no fixed network. A **discriminator** $D$ looks at images $x$ and at reconstructions $\hat x$, and is
# trained to tell them apart; the tokenizer is trained to be mistaken. VQGAN takes the patch discriminator of pix2pix: a few
# strided convolutions, and one logit per window, not one per image. A window is enough to see blur, there are many of them in
# every image, and so a batch teaches a lot. (Between the convolutions each image is normalised, alone, so the mean and spread of
# the whole image reach every logit besides.)

# %%
torch.manual_seed(0)
D = PatchDiscriminator(3, widths=(32, 64))
x = scenes[:1].clone().requires_grad_()
logits = D(x)
weights = sum(p.numel() for p in D.parameters())
print(f"{tuple(x.shape)} to logits {tuple(logits.shape)}, {weights} weights")
convolutions = [layer for layer in D if isinstance(layer, nn.Conv2d)]
window = 1
for layer in reversed(convolutions):  # from one logit back to the pixels
    window = (window - 1) * layer.stride[0] + layer.kernel_size[0]
print(f"one logit sees {window} x {window} pixels")
assert window == 18

# %% [markdown]
# Its logits should exceed $1$ on real images and fall below $-1$ on painted ones; what is beyond that is ignored (the **hinge**).
# The tokenizer wants the logits of its paintings up, without a hinge:
#
# $$\begin{gathered} L_D = \tfrac12\big[\operatorname{mean} \max(0,\, 1 - D(x)) + \operatorname{mean} \max(0,\, 1 + D(\hat x))\big], \\ L_{\text{adv}} = -\operatorname{mean} D(\hat x) \end{gathered}$$
#
# The hinge keeps a discriminator from running away. Once it is right by a margin it stops learning, and waits for the tokenizer.

# %%
real, painted = torch.tensor([2.0, 0.5]), torch.tensor([-3.0, 1.0])
by_hand = ((0 + 0.5) / 2 + (0 + 2) / 2) / 2
assert discriminator_loss(real, painted).item() == by_hand
assert generator_loss(painted).item() == 1.0
print(inspect.getsource(discriminator_loss))

# %% [markdown]
# ## Two gradients in balance
#
# The logits have no unit. A discriminator whose last layer doubles would push twice as hard. VQGAN weighs its push by a number
# $\lambda$ that makes the two gradients equally long at one place, the last layer $W$ of the decoder:
#
# $$\begin{gathered} L = L_{\text{rec}} + w_a\,\lambda\,L_{\text{adv}} + L_{\text{vq}}, \qquad L_{\text{rec}} = |x - \hat x|^2 + w_p\,P(x, \hat x), \\ \lambda = \frac{|\nabla_W L_{\text{rec}}|}{|\nabla_W L_{\text{adv}}| + 10^{-4}} \end{gathered}$$

# %%
tokenizer = checkpoints.load("low_rate_mse")  # 4 x 4 tokens of 16: see below
x = data.load("shapes", "validation", version="single").images[:32]
painted = tokenizer.paint(tokenizer.embed(tokenizer.encode(x)))
W = tokenizer.decoder[-1].weight


def length(loss):
    return torch.autograd.grad(loss, W, retain_graph=True)[0].norm().item()


reconstruction = F.mse_loss(painted, x) + 0.05 * P(painted, x).mean()
print("logits   |grad of L_rec|   |grad of L_adv|   lambda   lambda |grad of L_adv|")
for gain in (1, 10, 100):
    L_adv = generator_loss(gain * D(painted))
    weight = adaptive_weight(reconstruction, L_adv, W).item()
    wanted, found = length(reconstruction), length(L_adv)
    print(f"x {gain:<5d}{wanted:13.4f}{found:18.4f}{weight:13.4f}{weight * found:17.4f}")
    assert abs(weight * found / wanted - 1) < 0.05
print()
print(inspect.getsource(adaptive_weight))

# %% [markdown]
# The step that trains both players returns two losses. `fit` gives each optimizer the gradient of its own: the discriminator is
# not moved by the tokenizer's wish to fool it, and the tokenizer is not moved by $L_D$, since that sees only a detached copy of
# $\hat x$.

# %%
print(inspect.getsource(AdversarialStep.__call__))
print(inspect.getsource(AdversarialStep.against))

# %% [markdown]
# ## Live, on digits
#
# Four tokens of 16 per digit, 16 bits. That is too few for any digit to be kept, so something must be made up. Twice the same
# tokenizer and the same steps; in the second run a discriminator joins after 40 % of them. Earlier it would
# have an easy game, against a decoder that paints nothing yet.

# %%
digits, held_out = (data.load("digits", split).images for split in ("train", "validation"))


def train(weight, steps=400):
    torch.manual_seed(0)
    tokenizer = VQTokenizer((1, 8, 8), codebook_size=16, dim=8, widths=(32, 32), patch=2)
    D = PatchDiscriminator(1, widths=(32,))
    step = AdversarialStep(
        tokenizer, D if weight else None, start=2 * steps // 5, adversarial_weight=weight
    )
    players = {"tokenizer": tokenizer, "discriminator": D}
    optimizers = [adamw(tokenizer, 2e-3), adamw(D, 1e-3, betas=(0.5, 0.9))]
    options = dict(batch_size=32, ema=EMA(tokenizer, 0.98))
    fit(players, (digits,), optimizers, steps=steps, step_fn=step, **options)
    with torch.no_grad():
        return tokenizer.decode(tokenizer.encode(held_out)).clamp(-1, 1)


painted = {"squared error": train(0.0), "and a discriminator": train(0.8)}
print(f"{'':22s}{'PSNR':>6s}{'sharpness':>11s}")
live = {}
for name, images in painted.items():
    live[name] = psnr(images, held_out).mean().item(), sharpness(images, held_out)
    print("{:22s}{:6.2f}{:11.2f}".format(name, *live[name]))
plain, full = live.values()
assert plain[0] > full[0] and plain[1] < full[1]

# %% mystnb={"figure": {"caption": "Digits from 16 bits. The discriminator asks for black and white where the squared error hedges with grey.", "name": "fig-1-04-digits"}, "image": {"alt": "Three rows of twelve small digits: real ones, softer copies with much grey, and copies with a little more contrast, some strokes of which lie elsewhere."}} tags=["hide-input"]
rows = torch.cat([held_out[:12], *(images[:12] for images in painted.values())])
viz.image_grid(rows, ncol=12, row_labels=["real", *painted]);

# %% [markdown]
# *Sharpness* is the energy of the finest detail (what a 3 × 3 mean takes away) over that of the originals. The trade is there
# after a few seconds: less PSNR, more detail. Which of the two is the better picture, 180 digits cannot say; that takes more
# pictures, and a judge.
#
# ## Three losses at one rate
#
# Now at length. Pictures of one object, 4 × 4 tokens of 16: **64 bits** for 3072 bytes. (At the 594 bits of chapter 1 nothing is
# blurred, and there is nothing to repair.) Three tokenizers of one build, 1000 steps each, trained by the recipes `low_rate_mse`,
# `low_rate_perceptual` and `low_rate_adversarial`; the discriminator of the third joins after 400 steps. The last weights are
# kept: to choose by the squared error on held-out pictures would be to choose against the discriminator. The judge of this course
# was trained on such pictures too, so it can say which object it sees.

# %%
names = {
    "squared error": "low_rate_mse",
    "+ perceptual": "low_rate_perceptual",
    "+ discriminator": "low_rate_adversarial",
}
singles = data.load("shapes", "validation", version="single")
objects = singles.images  # (1000, 3, 32, 32)
arms = {}
for name, checkpoint in names.items():
    tokenizer = checkpoints.load(checkpoint)
    arms[name] = batched(lambda x: tokenizer.decode(tokenizer.encode(x)).clamp(-1, 1), objects)
bits = 16 * math.log2(tokenizer.vocab_size)
print(f"{bits:.0f} bits an image, {objects[0].numel()} bytes before")

# %% mystnb={"figure": {"caption": "The same 64 bits, three losses. Compare the corners of squares and the tips of stars.", "name": "fig-1-04-arms"}, "image": {"alt": "Four rows of ten single objects: originals, and reconstructions by three tokenizers. With the squared error squares have round corners; in the rows below corners and tips are more pointed, and backgrounds paler."}} tags=["hide-input"]
chosen = objects[20:30]
rows = torch.cat([chosen, *(images[20:30] for images in arms.values())])
viz.image_grid(rows, ncol=10, row_labels=["original", *arms]);

# %% [markdown]
# How do we measure "looks like one of ours"? With the judge, which no loss has seen. The Fréchet distance compares the cloud of
# its features over 500 reconstructions with the cloud over 500 *other* real pictures; two sets of real ones of that size are a
# distance apart that is called the floor. *Legible* is the share of pictures in which the judge finds the object that was there.
# The last column is the mistake to avoid: the Fréchet distance in the features of the network that was the loss.

# %%
nets = {"judge": judge, "own network": network}
truth = {column: batched(net.features, objects) for column, net in nets.items()}


def row(images):
    values = {
        "PSNR": psnr(images, objects).mean().item(),
        "SSIM": ssim(images[:200], objects[:200]).mean().item(),
        "sharpness": sharpness(images, objects),
        "legible": label_accuracy(judge, images, singles.labels),
    }
    for column, net in nets.items():  # 500 reconstructions, 500 other originals
        seen = batched(net.features, images[:500])
        values[column] = frechet_distance(seen, truth[column][500:])
    return values


results = {name: row(images) for name, images in arms.items()}
print(f"{'':18s}" + "".join(f"{column:>12s}" for column in results["squared error"]))
for name, values in results.items():
    print(f"{name:18s}" + "".join(f"{value:12.3f}" for value in values.values()))
generator = torch.Generator().manual_seed(0)
floors = {
    column: frechet_floor(features, 500, generator, labels=singles.labels)
    for column, features in truth.items()
}
print(f"{'real (the floor)':66s}" + "".join(f"{value:12.3f}" for value in floors.values()))
plain, full = results["squared error"], results["+ discriminator"]
assert plain["PSNR"] > full["PSNR"] + 0.3 and plain["judge"] > full["judge"] + 0.3
assert full["legible"] > plain["legible"]

# %% [markdown]
# The trade, measured. With the squared error alone the PSNR is better, by more than half a decibel. With the new losses the
# judge's distance falls to less than half, and it reads nearly every object. Look at the corners: those of squares and stars came
# back. The last column tells why one must not ask the loss's own network. There the perceptual loss looks five times better than
# the squared error; in the eyes of the judge it is a little more than twice.
#
# Now without hope. Nearly all of the gain is the *perceptual* loss. The discriminator takes a little more PSNR, adds a trace of
# sharpness and two legible objects in a thousand, and leaves the judge's distance where it was. And nothing is sharp yet: the
# finest detail has a fifth of the energy of the real one. Papers let the discriminator join after tens of thousands of steps and
# play for hundreds of thousands; ours had 600. Each row is one run. What we stand behind is the first row against the other two.

# %% [markdown]
# ## What was there, and what is plausible
#
# Sharpness counts the energy of fine detail, not whether it is in its place. So look at the correlation of the painted detail
# with the real one, too: 1 if every edge lies where it lay, 0 if edges were strewn at random.

# %%
def detail(images):
    """What a 3 x 3 mean takes away from images (B, C, H, W)."""
    return images - F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, stride=1)


real = detail(objects).flatten()
print(f"{'fine detail':18s}{'energy':>8s}{'correlation':>13s}")
fits = {}
for name, images in arms.items():
    fits[name] = F.cosine_similarity(detail(images).flatten(), real, dim=0).item()
    print(f"{name:18s}{sharpness(images, objects):8.2f}{fits[name]:13.2f}")
assert fits["squared error"] > fits["+ discriminator"] + 0.02

gap = psnr(arms["squared error"], objects) - psnr(arms["+ discriminator"], objects)
worst = gap.argsort(descending=True)[:8]
better = (gap > 0).double().mean()
print(f"the PSNR is better without the discriminator in {better:.0%} of the pictures")

# %% mystnb={"figure": {"caption": "The eight pictures in which sharpness cost most PSNR (the numbers, in dB). The last row looks like pictures of our world, and shows other ones than the first.", "name": "fig-1-04-invented"}, "image": {"alt": "Three rows of eight single objects. Originals; what the squared error painted, soft with round corners; and what the tokenizer with a discriminator painted, with crisp corners, but squares and stars turned to another angle and tinted backgrounds gone grey."}} tags=["hide-input"]
shown = ["squared error", "+ discriminator"]
pictures = torch.cat([objects[worst], *(arms[name][worst] for name in shown)])
titles = [f"-{value:.1f}" for value in gap[worst]]
viz.image_grid(pictures, ncol=8, titles=titles, row_labels=["original", *shown]);

# %% [markdown]
# Here is the chapter's honest failure. Where the squared error was not sure of an angle, it rounded the corners off: soft, and
# true to its doubt. The other tokenizer shows less doubt than it has. It paints a crisper square, turned by a few degrees,
# because squares have corners; and it lets the tint of the background go, to which neither of its networks pays much attention.
# There is more fine detail in its pictures, and less of it where it was. **A tokenizer of this kind reconstructs what is
# plausible, not what was there.** For a generator of images that is what you want. For a photograph of a number plate, or of a
# lung, it is not.

# %% [markdown]
# ## Exercise 1: the hinge (★, 5 minutes)
#
# Write the loss of the discriminator for logits of any shape. It should be zero once all real logits are at least 1 and all
# painted ones at most −1.

# %% tags=["exercise"]
def hinge(real, painted):
    """A scalar, from the logits of real and of painted patches."""
    return None  # your code

# %% tags=["exercise-check"]
answer = hinge(torch.tensor([3.0, 0.0]), torch.tensor([-0.5, -2.0]))
if answer is None:
    print("Hint: relu(1 - real) is what a real logit lacks. And a painted one?")
else:
    settled = float(hinge(torch.tensor([[1.5]]), torch.tensor([[-1.0]])))
    assert settled == 0, f"right by a margin costs nothing, got {settled:.2f}: cut it off"
    assert float(answer) > 0, f"a real logit of 0 is within the margin; got {float(answer):.2f}"
    wrong = f"expected (0.5 + 0.25) / 2 = 0.375, got {float(answer):.3f}: half of two means"
    assert abs(float(answer) - 0.375) < 1e-6, wrong
    print("Right: and who guesses, with all logits zero, pays exactly one.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `F.relu(1 - real)` is zero beyond the margin. For painted logits the margin lies at $-1$, so the sign turns: `F.relu(1 +
# painted)`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def hinge(real, painted):
#     return (F.relu(1 - real).mean() + F.relu(1 + painted).mean()) / 2
# ```
#
# </details>
# <details><summary>Wrong: no cut at the margin</summary>
#
# Without the cut the loss has no lower end: the discriminator gains by shouting, and its weights grow without bound.
#
# ```python
# def hinge(real, painted):
#     return ((1 - real).mean() + (1 + painted).mean()) / 2
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: the price of looking real (★★, 10 minutes)
#
# A code leaves $n$ images plausible, with probabilities $p$. Return two squared errors (mean over pixels): that of the best
# single painting, and that of a decoder that draws one of the plausible images at random. The truth is drawn with the same
# probabilities.

# %% tags=["exercise"]
def two_errors(images, p):
    """(least, drawn), two numbers, from plausible images (n, d) and probabilities (n,)."""
    return None  # your code

# %% tags=["exercise-check"]
plausible = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
answer = two_errors(plausible, torch.tensor([0.25, 0.75]))
if answer is None:
    print("Hint: the best single painting is the mean, weighted by p.")
else:
    least, drawn = (float(value) for value in answer)
    wrong = f"the mean of these two is (3, 0), its error 1.5; got {least:.2f}: weigh by p"
    assert abs(least - 1.5) < 1e-5, wrong
    wrong = f"expected 3, got {drawn:.2f}: truth and painting are drawn apart, both with p"
    assert abs(drawn - 3) < 1e-5, wrong
    print("Right: twice the least error, whatever the images and the probabilities.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# With `squares[i, j]` the squared distance of images $i$ and $j$, the second error is $\sum_{ij} p_i\, p_j$ `squares[i, j]`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def two_errors(images, p):
#     mean = p @ images
#     least = p @ (images - mean).square().mean(1)
#     squares = (images[:, None] - images[None]).square().mean(-1)
#     return least, p @ squares @ p
# ```
#
# </details>
# <details><summary>Wrong: forgets the probabilities of the mean</summary>
#
# The unweighted mean is best only when all images are equally plausible.
#
# ```python
# def two_errors(images, p):
#     mean = images.mean(0)
#     least = p @ (images - mean).square().mean(1)
#     squares = (images[:, None] - images[None]).square().mean(-1)
#     return least, p @ squares @ p
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: what a logit sees (★★, 10 minutes)
#
# How many pixels wide is the window of one logit? The layers are given as (kernel, stride), first layer first.

# %% tags=["exercise"]
def window_of(layers):
    """Width in pixels, from a list of (kernel, stride)."""
    return None  # your code

# %% tags=["exercise-check"]
answer = window_of([(4, 2), (4, 2), (3, 1)])
if answer is None:
    print("Hint: begin at the logit, with a window of 1, and walk back through the layers.")
else:
    one_layer = window_of([(4, 2)])
    assert one_layer == 4, f"a single layer sees its kernel, 4 pixels; got {one_layer}"
    wrong = f"18 pixels, got {answer}: positions next to one another are a stride apart below"
    assert answer == 18, wrong
    assert window_of([(4, 2)] * 3 + [(4, 1)] * 2) == 70, "the discriminator of pix2pix sees 70"
    print("Right: pix2pix found 70 x 70 pixels enough for images of 256 x 256.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# If the next layer's window is $w$ positions wide, then on this layer's input these positions begin `stride` apart: $(w - 1)
# \cdot$ `stride` $+$ `kernel`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def window_of(layers):
#     width = 1
#     for kernel, stride in reversed(layers):
#         width = (width - 1) * stride + kernel
#     return width
# ```
#
# </details>
# <details><summary>Wrong: walks forwards</summary>
#
# The stride of a layer stretches the windows of the layers that come after it, so one has to begin at the end.
#
# ```python
# def window_of(layers):
#     width = 1
#     for kernel, stride in layers:
#         width = (width - 1) * stride + kernel
#     return width
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * The squared error paints the mean of everything plausible. Where few bits leave much open, that is a blur; a plausible image costs 3 dB.
# * A perceptual distance compares unit features of a frozen network. It forgives small shifts, and it can be fooled: never measure with the network that was the loss.
# * A patch discriminator learns what real windows look like, by a hinge that stops at a margin; $\lambda$ makes its push as strong as that of the other losses.
# * Choose checkpoints by neither PSNR nor loss alone, and quote a Fréchet distance with its floor.
# * Sharp is not true. Part of the new detail is invented, and nobody can tell by looking at the reconstruction alone.
#
# ## Where this stands
#
# VQGAN is by Esser et al. ([2012.09841](https://arxiv.org/abs/2012.09841)); nearly every tokenizer of images since has its two
# losses. LPIPS: Zhang et al. ([1801.03924](https://arxiv.org/abs/1801.03924)); before it, features as a loss: Johnson et al.
# ([1603.08155](https://arxiv.org/abs/1603.08155)). Patch discriminators come from pix2pix (Isola et al.
# [1611.07004](https://arxiv.org/abs/1611.07004)), the hinge from Lim and Ye ([1705.02894](https://arxiv.org/abs/1705.02894)) and,
# with a bound on the slope, Miyato et al. ([1802.05957](https://arxiv.org/abs/1802.05957)); adversarial networks themselves from
# Goodfellow et al. ([1406.2661](https://arxiv.org/abs/1406.2661)). The trade of perception for distortion: Blau and Michaeli
# ([1711.06077](https://arxiv.org/abs/1711.06077)). SSIM: Wang et al., IEEE TIP 2004.
