# %% [markdown]
# # The tour: one model, many ways to draw from it
#
# | | |
# | --- | --- |
# | **You will build** | an autoregressive model of real handwritten digits, trained before your eyes, and eight samplers |
# | **Time** | about one minute on a laptop, without a GPU |
# | **You need** | Python and a first acquaintance with PyTorch and transformers |
# | **Of the five nouns** | all of them: data, tokenizer, model, sampler, picture |
# | **Systems** | raster GPT (LlamaGen), speculative sampling, Jacobi decoding, VQ-VAE, flow matching, MeanFlow |
#
# A model of images can know a great deal and still be slow to draw. Here is the reason, and a first look at every way out that
# this course teaches. Nothing is explained to the end; each idea gets its own chapter later. What you should take away is the
# *map*: which methods return exactly what the slow one would have returned, which return something as good, and what each pays.

# %% tags=["exercise-setup"]
import inspect
import math

import matplotlib.pyplot as plt
import torch

from minimal import checkpoints, data, recipes, tour, viz
from minimal.samplers.logits import draw, inverse_cdf, probabilities

viz.style()
torch.set_num_threads(1)

# %% [markdown]
# ## The question
#
# Here are real digits: 8 × 8 pixels, 17 levels of grey. There are $17^{64}$ such pictures, about $5 \cdot 10^{78}$. How can a
# network give a probability to each one of them?

# %% mystnb={"image": {"alt": "Two rows of ten small grey pictures: hand-written digits 0 to 9, eight by eight pixels each, blurry but legible."}}
splits = ("train", "validation", "test")
train, validation, test = (data.load("digits", split) for split in splits)
first = [int((train.labels == c).nonzero()[k]) for k in range(2) for c in range(10)]
viz.image_grid(train.images[first], ncol=10)
print(f"{len(train)} images to learn from, {len(validation)} to choose by, {len(test)} to judge")

# %% [markdown]
# By never looking at a whole picture. Read the pixels like text, left to right and top to bottom; then the chain rule of
# probability splits the picture into 64 easy questions, each with 17 answers:
#
# $$p(x \mid c) = \prod_{j=0}^{63} p(x_j \mid x_0, \dots, x_{j-1}, c)$$
#
# with tokens $x$ of shape $(64,)$ and a class label $c$. This is exact. Nothing was approximated, and the price is hidden in the
# dots: to *draw* $x_{63}$, the other 63 must exist already. One transformer answers all 64 questions. Let it show what it knows:
# below is a test image, how *surprised* a trained model is by each of its pixels, and its forecast for one of them.

# %%
tokenizer = recipes.pixel_tokenizer(train)  # a token is a grey level: nothing learned or lost
ar = checkpoints.load("digits_ar")  # recipe digits_ar; its training is begun anew below
image, label = test.images[:1], test.labels[:1]
tokens = tokenizer.encode(image)  # (1, 64)
assert torch.equal(tokenizer.decode(tokens), image)

with torch.inference_mode():
    logp = ar.logits(tokens, label).log_softmax(-1)  # (1, 64, 17): 64 forecasts, one forward
surprise = -logp.gather(-1, tokens[..., None])[0, :, 0] / math.log(2)  # (64,) in bits
print(f"the image: {surprise.sum():.0f} bits, or {surprise.mean():.2f} bits per pixel")

# %% mystnb={"figure": {"caption": "The model pays at the edges of strokes, and nearly nothing in the margins.", "name": "fig-0-01-surprise"}, "image": {"alt": "Left, a test digit. Middle, a heat map of its surprise per pixel: dark margins, bright edges of the stroke. Right, a bar chart of the forecast for one pixel with a dashed line at the grey level that came."}} tags=["hide-input"]
j = 27
grey = dict(xlabel="grey level", ylabel="probability", xticks=range(0, 17, 4))
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 2.6), width_ratios=(1, 1.2, 2.2))
viz.image_grid(image, ncol=1, ax=left)
left.set_title(f"a test image: {label.item()}")
shown = middle.imshow(surprise.view(8, 8), cmap="magma")
figure.colorbar(shown, ax=middle, label="bits")
middle.set_title("surprise per pixel")
viz.bare(middle)
right.bar(range(17), logp[0, j].exp())
right.axvline(tokens[0, j].item(), color=viz.AMBER, ls="--")
right.set(title=f"forecast for pixel {j}, and what came", **grey);

# %% [markdown]
# The margins cost nearly nothing: they are always dark. The model pays for edges of strokes, where a pen may or may not have gone.
#
# ## Train one now
#
# The network reads the label, then 63 pixels, and at each place forecasts the next pixel. The loss is the mean surprise. We train
# for some seconds, and compare with two models that know no context: one histogram per pixel, and one per pixel and class. Both are
# honest baselines, and the second knows the label.

# %%
from minimal.ar.histogram import Histogram

torch.manual_seed(0)
model = recipes.pixel_gpt(train)
schedule = dict(steps=120, batch_size=32, lr=4e-3, warmup=0.2)
history = recipes.fit_tokens(model, tokenizer.encode, recipes.digits, **schedule)


def bits(model, **options):
    """Bits per pixel of the validation images."""
    return recipes.bits(model, tokenizer.encode, validation, 64, **options)["bits_per_dim"]


counts = Histogram(tokenizer.encode(train.images), 17, train.labels, num_classes=10)
per_pixel, per_class, live = bits(counts, labelled=False), bits(counts), bits(model)
shipped = checkpoints.header("digits_ar")["metrics"]

# %% mystnb={"figure": {"caption": "Some seconds of training pass both histograms.", "name": "fig-0-01-training"}, "image": {"alt": "Training and validation loss in bits per pixel against the step, falling below two dotted lines for the histograms towards a third for the shipped checkpoint."}} tags=["hide-input"]
figure, axes = plt.subplots(figsize=(6.5, 3))
axes.plot([loss / math.log(2) for loss in history.losses], label="training batches")
steps = list(history.validation)
axes.plot(steps, [history.validation[k] / math.log(2) for k in steps], "o-", label="validation")
lines = {
    "histogram per pixel": per_pixel,
    "… and class": per_class,
    "shipped checkpoint": shipped["validation_bits_per_dim"],
}
for name, value in lines.items():
    axes.axhline(value, color=viz.GREY, lw=1, ls=":")
    axes.text(history.steps, value, f" {name}", va="bottom", color=viz.INK, fontsize=8)
axes.set(xlabel="step", ylabel="bits per pixel", xlim=(0, history.steps * 1.35))
axes.legend(loc="upper right", bbox_to_anchor=(0.72, 1));

# %%
print(f"on validation images, after {history.steps} steps: {live:.2f} bits per pixel")
print(f"  histogram per pixel {per_pixel:.2f}, per pixel and class {per_class:.2f}")
print("on test images, the shipped checkpoint:")
for name in ("", "_unlabelled"):
    print(f"  {shipped[f'test{name}_bits_per_dim']:.3f} {name[1:]}")
assert live < per_pixel
assert shipped["test_bits_per_dim"] <= 1.80 < per_class

# %% [markdown]
# Twenty seconds are enough to pass the first histogram, and to reach the second, which knows what an average 3 looks like. The
# shipped checkpoint saw thirty times as many images. It knows what *this* 3 looks like so far, and that is worth half a bit on every
# pixel. From here on we draw from it.
#
# ## The slow way
#
# Drawing a token from 17 probabilities takes one uniform number $u$: walk along the cumulative sum until it passes $u$. With the
# noise drawn beforehand, one number per pixel, sampling becomes a *function* of the noise. That is more than a convenience: two
# samplers that claim to be the same can be given the same noise and compared token by token.

# %% mystnb={"image": {"alt": "Ten generated digits, one of each class from 0 to 9, slightly noisy and all legible."}}
labels = torch.arange(10)  # one digit of each class
generator = torch.Generator().manual_seed(7)
noise = torch.rand(10, 64, generator=generator)

canvas = torch.zeros(10, 64, dtype=torch.long)
stages = []
with torch.inference_mode():
    for j in range(64):
        logits = ar.logits(canvas[:, : j + 1], labels)  # (10, j + 1, 17); reads what is before j
        p = logits[:, -1].softmax(-1)
        canvas[:, j] = (p.cumsum(-1) <= noise[:, j, None]).sum(-1).clamp(max=16)
        if j % 16 == 15:
            stages.append(tokenizer.decode(canvas, upto=j + 1))
viz.image_grid(torch.cat(stages), row_labels=[f"{n} forwards" for n in (16, 32, 48, 64)]);

# %% [markdown]
# A few lines, 64 forwards, and a fresh 0 to 9 that nobody wrote. The package's version is the same loop:

# %%
from minimal.samplers.cached import decode, sample_cached, sample_uncached

print(inspect.getsource(decode).split('"""')[2])
seven = lambda: torch.Generator().manual_seed(7)
package = sample_uncached(ar, 10, cond=labels, generator=seven())
assert torch.equal(package.tokens, canvas)

# %% [markdown]
# Now count. Forward $j$ runs the network over $j + 1$ positions, though only the last is new. In a causal transformer the earlier
# ones cannot have changed, since they do not see what was added. So keep their keys and values. That is a **KV cache**, and it changes
# nothing but the work:

# %%
cached = sample_cached(ar, 10, cond=labels, generator=seven())
assert torch.equal(cached.tokens, canvas)
for name, sample in (("no cache", package), ("cached", cached)):
    positions = sample.trace.positions["target"] // 10
    print(f"{name:9s} {sample.trace.forwards['target']} forwards, {positions:5d} positions per image")
assert package.trace.positions["target"] == 10 * 64 * 65 // 2
assert cached.trace.positions["target"] == 10 * 64

# %% [markdown]
# Same tokens, 32 times fewer positions. But still 64 forwards, *one after the other*, and on a GPU it is the waiting that costs. The
# rest of the tour is about waiting less.
#
# ## Guess and check: speculative sampling
#
# Most pixels are easy. Let a small model, the *draft* $q$, guess several in a row; then the large one, $p$, checks all the guesses in
# **one** forward, since forecasts for places that are already filled come in parallel. The check is a coin: keep the guess $x$ with
# probability $\min(1, p(x)/q(x))$, else draw from what $p$ has more of than $q$, the positive part of $p - q$.

# %%
draft = checkpoints.load("digits_draft")
with torch.inference_mode():
    p = probabilities(ar.logits(tokens, label))[0, 27]  # (17,), the pixel of the first picture
    q = probabilities(draft.logits(tokens, label))[0, 27]

# %% mystnb={"figure": {"caption": "What both agree on is kept; what the target has more of is drawn again.", "name": "fig-0-01-speculative"}, "image": {"alt": "Two bar charts laid over each other over 17 grey levels: the draft's and the target's probabilities, their common part in grey, what the target has more of standing out."}} tags=["hide-input"]
both = torch.minimum(p, q)
figure, axes = plt.subplots(figsize=(6.5, 2.6))
axes.bar(range(17), both, color="0.75", label="kept: min(p, q)")
axes.bar(range(17), (p - q).clamp(min=0), bottom=both, label="drawn after a refusal: p − q")
refused = dict(fc="none", ec=viz.AMBER, hatch="///", label="refused: q − p")
axes.bar(range(17), (q - p).clamp(min=0), bottom=both, **refused)
axes.set(title=f"pixel 27: a guess is kept with probability {both.sum():.2f}", **grey)
axes.legend();

# %% [markdown]
# The picture is the proof. Grey and blue stacked are exactly $p$: whatever the draft believes, the output has the large model's
# distribution. The draft decides only how *often* we wait. Here is the whole sampler, without caches:

# %%
def speculate(k, label, noise):
    """Draw one image: its tokens, who drew each (0 draft, 1 target), and the forwards it took."""
    canvas, who = torch.zeros(1, 64 + k + 1, dtype=torch.long), torch.zeros(64 + k + 1)
    length = forwards = 0
    while length < 64:
        q = []
        for i in range(k):  # guess
            logits = draft.logits(canvas[:, : length + i + 1], label)[:, -1]
            q.append(probabilities(logits)[0])
            canvas[0, length + i] = inverse_cdf(q[-1], noise[length + i, 0])
        logits = ar.logits(canvas[:, : length + k + 1], label)  # check, all at once
        p = probabilities(logits)[0, length:]
        forwards += 1
        for i in range(k + 1):
            x = canvas[0, length + i]
            if i < k and noise[length + i, 1] * q[i][x] < p[i][x]:
                continue  # keep
            residual = (p[i] - q[i]).clamp(min=0) if i < k else p[i]
            canvas[0, length + i] = inverse_cdf(residual, noise[length + i, 2])
            who[length + i] = 1
            break
        length += i + 1
    return canvas[0, :64], who[:64], forwards


from minimal.samplers.speculative import sample_speculative

three, six = torch.tensor([3]), lambda: torch.Generator().manual_seed(6)
package = sample_speculative(ar, draft, 1, k=6, cond=three, generator=six())
with torch.inference_mode():
    drawn, who, forwards = speculate(6, three, torch.rand(64 + 7, 3, generator=six()))
assert torch.equal(package.tokens[0], drawn)
assert package.trace.forwards["target"] == forwards
print(f"{forwards} forwards of the large model instead of 64")
print(f"the draft drew {int((who == 0).sum())} of 64 pixels")

# %% mystnb={"figure": {"caption": "A few pixels, most of them on the stroke, needed the large model's own draw.", "name": "fig-0-01-who"}, "image": {"alt": "Left, a generated 3. Right, the same grid with the few pixels marked that the large model drew itself."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(4.4, 2.3))
viz.image_grid(tokenizer.decode(drawn[None]), ncol=1, ax=axes[0])
axes[0].set_title("a drawn 3")
axes[1].imshow(who.view(8, 8), cmap="Oranges", vmax=1.4)
axes[1].set_title("pixels the target drew")
viz.bare(axes[1]);

# %% [markdown]
# ## Solve for all pixels at once: Jacobi
#
# No second model is needed if we are bold. With the noise fixed, the image solves 64 equations in 64 unknowns, $y = f(y)$, where $f$
# runs the network *once* over a guess and redraws every pixel. Start from a black image and repeat $y \leftarrow f(y)$. Pixel 0 is right
# after one pass, since it depends on nothing. Once the first $j$ pixels are right, the next pass makes pixel $j + 1$ right. So it must
# end within 64 passes, at the one and only solution: the image that the slow way draws.

# %%
y, passes = torch.zeros_like(canvas), 0
final = torch.zeros(10, 64)  # the pass after which a pixel never changed again
with torch.inference_mode():
    while True:
        new = draw(ar.logits(y, labels), noise)
        passes += 1
        final[new != y] = passes
        if torch.equal(new, y):
            break
        y = new
assert torch.equal(y, canvas)

print(f"{passes} passes for ten images at once; the slow way needs 64")
assert passes <= 64

# %% mystnb={"figure": {"caption": "The pass after which a pixel never changed again: many settle long before their turn.", "name": "fig-0-01-jacobi"}, "image": {"alt": "Ten generated digits above ten maps that show after which pass each pixel stopped changing; later passes lie towards the bottom."}} tags=["hide-input"]
panels = plt.subplots(2, 10, figsize=(9, 2.1))[1]
for c in range(10):
    viz.image_grid(tokenizer.decode(y[c : c + 1]), ncol=1, ax=panels[0, c])
    shown = panels[1, c].imshow(final[c].view(8, 8), cmap="viridis", vmin=0, vmax=final.max())
    viz.bare(panels[1, c])
plt.colorbar(shown, ax=panels[1].tolist(), label="last change");

# %% [markdown]
# Each pass settled several pixels because most guesses did not depend on what was still wrong. Notice what was *not* saved: a pass
# runs over all 64 pixels. Jacobi trades work for waiting.
#
# ## Fewer, larger tokens: VQ
#
# The other samplers keep the model. This one changes what a token is. An autoencoder turns the image into a 4 × 4 grid of codes from a
# learned codebook (a **VQ-VAE**), and a transformer learns the 16 codes instead of the 64 pixels.

# %% mystnb={"image": {"alt": "Two rows of ten digits: real test images, and the same images painted from sixteen codes, a little smoother."}}
vq = checkpoints.load("digits_vq")
codes = vq.encode(test.images[:10])
shown = vq.decode(codes).clamp(-1, 1)
viz.image_grid(torch.cat((test.images[:10], shown)), row_labels=["real", "from 16 codes"])
print(f"{codes.shape[1]} codes of {vq.vocab_size}: {16 * math.log2(vq.vocab_size):.0f} bits per image")
print(f"root mean square error {(shown - test.images[:10]).square().mean().sqrt():.2f} of a range of 2")
assert codes.shape[1] == 16

# %% [markdown]
# A quarter of the forwards, and a price that no sampler can buy back: what the decoder cannot show is lost.
#
# ## Move all pixels together: flows
#
# A flow gives up the order altogether. It starts from noise $x_0$ at time $t = 0$ and learns a velocity field $v(x_t, t, c)$ whose
# streamlines end at images at $t = 1$; $x$ has shape $(1, 8, 8)$ and all pixels move at once. Drawing means integrating
# $\dot x = v(x, t)$ in as many steps as you like.

# %% mystnb={"figure": {"caption": "Noise becomes a digit: the same ten flows at five times.", "name": "fig-0-01-flow"}, "image": {"alt": "Five rows of ten panels: pure noise at time 0 becomes a legible digit of each class at time 1."}}
from minimal.samplers.flow import sample_flow, sample_flow_map

flow, mean_flow = checkpoints.load("digits_flow"), checkpoints.load("digits_mean_flow")
seed = lambda: torch.Generator().manual_seed(1)
x = torch.randn(10, 1, 8, 8, generator=seed())
frames, steps = [x], 20
with torch.inference_mode():
    for i in range(steps):
        x = x + flow.velocity(x, torch.full((10,), i / steps), labels) / steps
        if i % 5 == 4:
            frames.append(x)
package = sample_flow(flow, 10, cond=labels, num_steps=20, generator=seed()).images
assert torch.allclose(x.clamp(-1, 1), package, atol=1e-5)
viz.image_grid(torch.cat(frames), row_labels=[f"t = {i / 4}" for i in range(5)]);

# %% [markdown]
# How few steps will do? Ten are fine. And one? Here it is with two different noises, one below the other:

# %% mystnb={"figure": {"caption": "One step of a flow lands on a mean, whatever the noise; one step of a mean flow lands on a digit.", "name": "fig-0-01-one-step"}, "image": {"alt": "Six rows of ten digits. Fifty and ten flow steps are sharp; one flow step gives the same blurred digit for two different noises; one mean-flow step gives sharp digits that differ with the noise."}}
other = lambda: torch.Generator().manual_seed(2)
run = lambda steps, noise: sample_flow(flow, 10, cond=labels, num_steps=steps, generator=noise)
leap = lambda noise: sample_flow_map(mean_flow, 10, cond=labels, generator=noise)
rows = {
    "flow, 50 steps": run(50, seed()),
    "flow, 10 steps": run(10, seed()),
    "flow, 1 step": run(1, seed()),
    "… other noise": run(1, other()),
    "mean flow, 1 step": leap(seed()),
    "… other noise ": leap(other()),
}
viz.image_grid(torch.cat([sample.images for sample in rows.values()]), row_labels=list(rows));

# %% [markdown]
# This is the chapter's honest failure. At pure noise the velocity points at the *mean* of all that could come, and a single step
# lands there: one blurred digit per class, whatever the noise. (A judge that only reads digits is delighted. Beware of judges.) A **flow
# map** learns the mean velocity over a whole interval of time instead; that one is right for one long step. Same network, same noise,
# and every noise gives another digit. Let the spread within a class say it in numbers, relative to real digits:

# %%
from minimal.metrics import batched, frechet_distance

judge = checkpoints.load("judge_digits")
many = torch.arange(10).repeat_interleave(50)
samples = {
    "flow, 50 steps": sample_flow(flow, 500, cond=many, num_steps=50, generator=seed()),
    "flow, 1 step": sample_flow(flow, 500, cond=many, num_steps=1, generator=seed()),
    "mean flow, 1 step": sample_flow_map(mean_flow, 500, cond=many, generator=seed()),
}
real_spread = torch.stack([train.images[train.labels == c].std(0) for c in range(10)]).mean()
real = batched(judge.features, validation.images)
spread, distance = {}, {}
for name, sample in samples.items():
    spread[name] = (sample.images.unflatten(0, (10, 50)).std(1).mean() / real_spread).item()
    distance[name] = frechet_distance(real, batched(judge.features, sample.images))
floor = frechet_distance(real, batched(judge.features, train.images[:500]))

print(f"{'500 images against 180 real ones':34s}spread   Fréchet distance")
for name in samples:
    print(f"{name:34s}{spread[name]:6.2f}{distance[name]:19.2f}")
print(f"{'500 training images':34s}{1:6.2f}{floor:19.2f}")
assert spread["flow, 1 step"] < 0.6 < spread["mean flow, 1 step"]
assert distance["mean flow, 1 step"] < 0.5 * distance["flow, 1 step"]

# %% [markdown]
# ## All of them in one table
#
# Forty images from each sampler, under classifier-free guidance (which every sampler accepts, since it changes the model and not the
# way of drawing). The last column of numbers asks a judge, a small classifier that saw none of this, whether it sees the intended digit.
# Four rows are new here, and have chapters of their own in Part 5a: several drafts at once, Jacobi with a memory for phrases (lookahead), a
# step that a GPU can record and replay, and a network that fills any set of holes and drafts for itself.

# %% mystnb={"figure": {"caption": "Every way of drawing, side by side.", "name": "fig-0-01-all"}, "image": {"alt": "Rows of samplers, columns of classes: every sampler of this chapter drew one digit of each class, below a row of real digits."}}
from minimal.samplers.guidance import Guided

guided = lambda name: Guided(checkpoints.load(name), tour.GUIDANCE)
models = tour.Models(
    pixels=guided("digits_ar"),
    draft=guided("digits_draft"),
    pixel_tokenizer=tokenizer,
    subset=guided("digits_any_subset"),
    codes=guided("digits_vq_prior"),
    code_tokenizer=vq,
    flow=flow,
    mean_flow=mean_flow,
)
results = tour.compare(models, judge, per_class=4, progress=False)
tour.picture(results, test)

# %% tags=["nbval-ignore-output"]
print(tour.table(results))

# %% [markdown]
# The table holds the surprise of this chapter: the columns disagree. By *forwards*, Jacobi and speculative sampling beat the cache by a factor of
# three. By *multiply-adds* both are behind it: Jacobi computes whole blocks again and again, and speculation throws refused guesses away.
# By the clock, for one image on this machine, Jacobi wins and speculation does not, since its draft, tiny as it is, must be called a hundred
# times, and for small networks a call costs nearly the same whatever is inside. There is no fastest sampler, only one that fits what
# your machine has too much of. Alone on a GPU, arithmetic idles and every forward is a wait; on a busy server it is the other way round.

# %%
by_name = {r.row.name: r for r in results}
forwards = {name: r.waits for name, r in by_name.items()}
work = {name: r.multiply_adds for name, r in by_name.items()}

for name in ("cached", "Jacobi", "lookahead", "static step"):
    assert by_name[f"pixels, {name}"].promise == "same tokens"
assert forwards["pixels, no cache"] == forwards["pixels, cached"] == 64
assert forwards["pixels, speculative"] < 0.45 * 64
assert forwards["pixels, Jacobi"] < 0.6 * 64
assert forwards["pixels, many drafts"] < forwards["pixels, speculative"]
assert forwards["VQ codes, cached"] == 16 and forwards["mean flow, 1 step"] == 1
assert work["pixels, Jacobi"] > work["pixels, cached"]
least = {"pixels, any subset": 0.7}  # another network, and a weaker one
seen = {name: r.accuracy for name, r in by_name.items()}
assert all(seen[name] >= least.get(name, 0.85) for name in seen), seen
print("every promise of this chapter held")

# %% [markdown]
# ## Exercise 1: how often is a guess kept? (★, 5 minutes)
#
# The chance that speculative sampling keeps a guess is the area of the grey bars above. Compute it from two distributions.

# %% tags=["exercise"]
def acceptance(p, q):
    """Probability that a token drawn from q (V,) is kept when the target is p (V,)."""
    return None  # your code

# %% tags=["exercise-check"]
p_, q_ = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
answer = acceptance(p_, q_)
if answer is None:
    print("Hint: x is drawn from q and then kept: q(x) min(1, p(x) / q(x)). Sum over all x.")
else:
    same, answer = float(acceptance(p_, p_)), float(answer)
    assert abs(same - 1) < 1e-6, f"for p = q every guess is kept: expected 1, got {same:.3f}"
    wrong = f"expected 0.7, got {answer:.3f}: total variation is *half* the sum of |p - q|"
    assert abs(answer - 0.7) < 1e-6, wrong
    print("Right: the overlap of p and q, or one minus their total variation.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# $q(x) \min(1, p(x)/q(x)) = \min(p(x), q(x))$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def acceptance(p, q):
#     return torch.minimum(p, q).sum()
# ```
#
# </details>
# <details><summary>Wrong: forgets the one half</summary>
#
# One minus the summed difference is too small: every unit of mass that moves is counted where it leaves and where it arrives.
#
# ```python
# def acceptance(p, q):
#     return 1 - (p - q).abs().sum()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: what is settled? (★★, 10 minutes)
#
# After a Jacobi pass we hold the old guess $y$ and the new $f(y)$. How many leading entries of the new one are final? Look at the
# argument above once more: it says that entry $j + 1$ of $f(y)$ is right when the first $j$ entries of $y$ were.

# %% tags=["exercise"]
def settled(old, new):
    """Number of leading entries of new (n,) that are certainly final, given old (n,) with new = f(old)."""
    return None  # your code

# %% tags=["exercise-check"]
old = torch.tensor([4, 1, 7, 7, 2])
answer = settled(old, torch.tensor([4, 1, 9, 7, 2]))
if answer is None:
    print("Hint: find the first place where old and new differ. Is the new value right there?")
else:
    wrong = "4 counts unchanged entries anywhere; behind the first change the prefix was wrong"
    assert answer != 4, wrong
    wrong = f"expected 3, got {answer}: the first change, at index 2, is already right"
    assert answer == 3, wrong
    assert settled(old, old) == 5, "if nothing changed, everything is final"
    print("Right: everything up to and including the first change.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# The entry that changed was recomputed from a prefix that did not change, so it is right now.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def settled(old, new):
#     changed = (old != new).nonzero()
#     return len(new) if len(changed) == 0 else int(changed[0]) + 1
# ```
#
# </details>
# <details><summary>Wrong: counts unchanged entries anywhere</summary>
#
# An entry behind the first change may be unchanged by luck; the next pass can still move it.
#
# ```python
# def settled(old, new):
#     return int((old == new).sum())
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * The chain rule makes the likelihood of an image exact and its drawing sequential: 64 pixels, 64 forwards that wait for each other.
# * A KV cache removes repeated work, not waiting. Same noise, same tokens: exactness can be *tested*.
# * Speculative sampling and Jacobi iteration remove waiting and keep the distribution; they pay with a draft or with extra work.
# * Larger tokens and flows change the model; then quality must be measured, and a judge must be frozen before the race.
# * One step of a velocity field lands on a mean. One step of an averaged velocity lands on a sample.
#
# ## Where this stands
#
# The pixel transformer is a Llama decoder in the manner of LlamaGen (Sun et al. 2024, [2406.06525](https://arxiv.org/abs/2406.06525)). Speculative sampling is due
# to Leviathan et al. ([2211.17192](https://arxiv.org/abs/2211.17192)) and Chen et al. ([2302.01318](https://arxiv.org/abs/2302.01318)); Jacobi decoding to
# Song et al. ([2002.03629](https://arxiv.org/abs/2002.03629)) and Santilli et al. ([2305.10427](https://arxiv.org/abs/2305.10427)). VQ-VAE: van den Oord et al.
# ([1711.00937](https://arxiv.org/abs/1711.00937)). Flow matching: Lipman et al. ([2210.02747](https://arxiv.org/abs/2210.02747)); rectified flow: Liu et al.
# ([2209.03003](https://arxiv.org/abs/2209.03003)); MeanFlow: Geng et al. ([2505.13447](https://arxiv.org/abs/2505.13447)). Guidance: Ho and Salimans
# ([2207.12598](https://arxiv.org/abs/2207.12598)). `minimal tour` runs this chapter with a longer live training, and `minimal tour --data mnist` on MNIST.
