# %% [markdown]
# # Caches and the roofline: how fast could it be?
#
# | | |
# | --- | --- |
# | **You will build** | a count of all that a decode step must read and compute, the roofline of your machine, and the reason why this part of the course exists |
# | **Time** | half a minute on a laptop, without a GPU |
# | **You need** | a transformer and its key-value cache ([chapter 0.2](../0_start/02_transformer_and_cache.ipynb)) |
# | **Of the five nouns** | sampler |
# | **Systems** | key-value caches, grouped queries, attention sinks |
#
# A cache spares a transformer what it knows already. What is left per token is one pass over one position, and it seems that nothing
# can be spared any more. Is it fast, then? There is a way to know without comparing it with anybody: count the bytes that the step has to read
# and the operations that it has to do, and ask the machine how long that takes at least. The gap between this and the clock is
# what all other chapters of this part live on.

# %% tags=["exercise-setup"]
import statistics
import time
from collections import Counter, defaultdict

import matplotlib.pyplot as plt
import torch

from minimal import checkpoints, viz
from minimal.ar.raster import RasterGPT
from minimal.nn.cache import KVCache, SlidingKVCache, StaticKVCache
from minimal.nn.masks import not_after, sink, window
from minimal.nn.token_model import log_probabilities
from minimal.recipes.text import pydoc, windows
from minimal.roofline import (
    arithmetic_peak,
    bytes_per_step,
    copy_bandwidth,
    count_operators,
    operations_per_step,
    roofline_seconds,
)
from minimal.samplers.capture import Operators
from minimal.samplers.fast import FastRaster

viz.style()
torch.set_num_threads(1)


# %% [markdown]
# ## The question
#
# The character model of this part has eight layers of width 96. Half way through a text, with 143 positions in its cache, a step reads one
# character and forecasts the next. What does it have to do?

# %%
gpt = checkpoints.load("pydoc_ar")
T = 144  # keys that the step attends to, its own included
L, attention = len(gpt.blocks), gpt.blocks[0].attention
H, G, d, width = attention.heads, attention.kv_heads, attention.head_dim, gpt.head.in_features
table = gpt.embedding.weight.numel()  # of which a step reads one row
W = sum(p.numel() for p in gpt.parameters()) - table
s = 4  # bytes of a number

by_hand = (W * s + width * s, 2 * L * G * d * T * s)
assert tuple(bytes_per_step(gpt, context=T)) == by_hand
matrices = sum(p.numel() for p in gpt.parameters() if p.ndim == 2) - table
operations = 2 * matrices + 4 * L * H * d * T
assert operations_per_step(gpt, context=T) == operations

print(f"weights {by_hand[0] / 1e6:.2f} MB, keys and values {by_hand[1] / 1e6:.2f} MB")
print(f"{operations / 1e6:.2f} million operations, {operations / sum(by_hand):.2f} per byte")

# %% [markdown]
# By hand: each of $W$ weights is read once, and with $L$ layers, $G$ key-value heads of $d$ channels and $T$ positions the cache holds $2 L G d T$
# numbers. Each weight takes part in one multiplication and one addition, each of $H$ query heads does $4 d T$ operations with the cache.
# So there is about *half an operation per byte*. Is that much or little? The machine must say. It copies memory at $M$ bytes per second, and
# does $F$ operations per second in a large matrix product. The step then takes at least
#
# $$\text{seconds} \ge \max\left(\frac{\text{operations}}{F}, \frac{\text{bytes}}{M}\right),$$
#
# and below $F / M$ operations per byte it waits for memory. This is the **roofline**.

# %% tags=["nbval-ignore-output"]
M, F = copy_bandwidth(), arithmetic_peak()
print(f"this thread copies {M / 1e9:.0f} GB/s and computes {F / 1e9:.0f} billion operations/s;")
print(f"it waits for memory below {F / M:.1f} operations per byte,")
print(f"and a decode step has {operations / sum(by_hand):.1f}")


def step_of(model, batch=1, n=1, context=T):
    """A call that runs n new positions in each of `batch` rows, behind context - n cached."""
    cache, canvas = model.new_cache(batch), torch.zeros(batch, model.length, dtype=torch.long)

    @torch.no_grad()
    def step():
        cache.length = context - n  # whatever these slots hold costs the same
        model.logits(canvas, cache=cache, n=n)

    return step


def race(steps, rounds=7, repeats=10):
    """Median seconds of one call of each step; they take turns, on this thread's clock."""
    times = defaultdict(list)
    for _ in range(rounds):
        for name, step in steps.items():
            start = time.thread_time()
            for _ in range(repeats):
                step()
            times[name].append((time.thread_time() - start) / repeats)
    return {name: statistics.median(values) for name, values in times.items()}


[seconds] = race({"gpt": step_of(gpt)}).values()
least = roofline_seconds(gpt, context=T, bandwidth=M, peak=F)
print(f"\nat most {1 / least:,.0f} characters per second;")
print(f"measured {1 / seconds:,.0f}, {least / seconds:.0%}")
assert least < 0.5 * seconds

# %% [markdown]
# A small fraction of what is possible. Neither memory nor arithmetic is busy. What is?
#
# ## Where the time goes
#
# PyTorch passes every operation through a dispatcher. A *dispatch mode* stands there and sees them all, so it can hold a stop watch to
# each. (Watching takes time too, about as much for each call, so it overstates the many cheap ones, views above all.) Beside the textbook model stands
# `FastRaster`, which holds the same weights in a form that takes fewer operations.


# %%
class StopWatch(Operators):
    """Seconds and calls of every operator; views only describe memory anew, one group."""

    def __init__(self):
        super().__init__()
        self.log = []

    def see(self, op, args, kwargs):
        start = time.perf_counter()
        out = op(*args, **kwargs)
        name = "views" if op.is_view else op.overloadpacket.__name__
        self.log.append((name, time.perf_counter() - start))
        return out


KINDS = {
    "products": ("mm", "addmm", "bmm"),
    "attention": ("_scaled_dot_product_flash_attention_for_cpu", "_softmax"),
    "cache": ("copy_",),
    "views": ("views", "_unsafe_view"),
}


def blame(model, repeats=30):
    """Microseconds and calls of each kind of operator in a step, best of `repeats` for each."""
    step, logs = step_of(model), []
    step()
    for _ in range(repeats):
        with StopWatch() as watch:
            step()
        logs.append(watch.log)
    spent, calls = Counter(), Counter()
    for same in zip(*logs):
        kind = next((k for k, names in KINDS.items() if same[0][0] in names), "the rest")
        spent[kind] += 1e6 * min(seconds for _, seconds in same)
        calls[kind] += 1
    return spent, calls


torch.manual_seed(0)
wide = RasterGPT(96, 288, dim=512, layers=8, heads=16).eval()  # time does not ask for training
blamed = {
    "width 96": blame(gpt),
    "width 96, fast": blame(FastRaster(gpt)),
    "width 512": blame(wide),
    "width 512, fast": blame(FastRaster(wide)),
}
counts = {
    name: count_operators(step_of(model))
    for name, model in (("plain", gpt), ("fast", FastRaster(gpt)))
}
computing = {name: calls.total() - calls["view"] for name, calls in counts.items()}
for name, calls in counts.items():
    print(f"{name}: {computing[name]} operators that compute, {calls['view']} views")
    print("   ", *(f"{op} {n}" for op, n in calls.most_common(8) if op != "view"))

# %% mystnb={"figure": {"caption": "Time of one step by kind of operator, as a share of the whole. In the small network the products, which are all that the formula knows of, are a minor item: most of the time goes to small operations and to views, a microsecond or so for each call. At width 512 the products take most of it. (In the fast form attention is two products a layer.)", "name": "fig-5a-01-blame"}, "image": {"alt": "Four stacked horizontal bars. At width 96 products are a small part, the rest and views are the largest; at width 512 products fill most of the bar."}} tags=["hide-input", "nbval-ignore-output"]
figure, ax = plt.subplots(figsize=(8.0, 2.6))
kinds = [*KINDS, "the rest"]
colours = (viz.BLUE, viz.AMBER, viz.GREEN, viz.PALE, viz.GREY)
for y_, (name, (spent, calls)) in enumerate(blamed.items()):
    left = 0
    for kind, colour in zip(kinds, colours):
        share = spent[kind] / spent.total()
        ax.barh(y_, share, left=left, color=colour, height=0.7, label=None if y_ else kind)
        if share > 0.08:
            dark = colour in (viz.BLUE, viz.GREEN)
            look = dict(ha="center", va="center", fontsize=7.5, color="w" if dark else viz.INK)
            ax.text(left + share / 2, y_, f"{calls[kind]} calls", **look)
        left += share
ax.set_yticks(range(len(blamed)), blamed)
ax.set(xlim=(0, 1), xlabel="share of the step", ylim=(3.5, -0.5))
ax.xaxis.set_major_formatter(lambda x, _: f"{x:.0%}")
ax.grid(False)
ax.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.45, 1.0));

# %%
share = {name: spent["products"] / spent.total() for name, (spent, _) in blamed.items()}
assert share["width 96"] < 0.35 < share["width 512"]
assert computing["fast"] < 0.85 * computing["plain"]

# %% [markdown]
# Here is the surprise. At the scale of this course a decode step is limited by **neither memory nor arithmetic, but by the number of calls**. So
# there are three ways to make a pass cheaper: fewer bytes, fewer operations, fewer calls. Which of them helps depends on the size of
# the network. Let the width grow, and measure each network beside its roofline, and beside the sum of roofline and calls, at a price per
# call that is taken from the smallest network alone:

# %% tags=["nbval-ignore-output"]
widths = (32, 64, 128, 256, 512)
nets = {}
for w in widths:
    torch.manual_seed(0)
    plain = RasterGPT(96, 288, dim=w, layers=4, heads=w // 32).eval()
    nets[w, "plain"], nets[w, "fast"] = plain, FastRaster(plain)
measured = race({key: step_of(net) for key, net in nets.items()})
roof = {k: roofline_seconds(net, context=T, bandwidth=M, peak=F) for k, net in nets.items()}
calls = {k: (c := count_operators(step_of(net))).total() - c["view"] for k, net in nets.items()}
price = {
    kind: (measured[32, kind] - roof[32, kind]) / calls[32, kind] for kind in ("plain", "fast")
}
print(
    "price of a call:",
    *(f"{kind} {1e6 * p:.1f} µs," for kind, p in price.items()),
    "views included",
)
print("width            tokens/s   of the roofline   roofline + calls, of the time")
for (w, kind), seconds in measured.items():
    both = roof[w, kind] + calls[w, kind] * price[kind]
    share = roof[w, kind] / seconds
    print(f"{w:5d} {kind:6s} {1 / seconds:12,.0f} {share:17.0%} {both / seconds:22.2f}")
for kind in ("plain", "fast"):
    assert roof[32, kind] / measured[32, kind] < 0.15 < roof[512, kind] / measured[512, kind]
    assert all(measured[w, "fast"] < measured[w, "plain"] for w in widths)

# %% mystnb={"figure": {"caption": "Seconds per step against the number of weights, for a network of four layers. The small ones pay for calls, whatever their size; the large ones pay for bytes, and run parallel to the roofline. Fewer calls help where the lines are flat.", "name": "fig-5a-01-widths"}, "image": {"alt": "On log-log axes two measured curves, plain above fast, are flat at first and then rise in parallel to a straight roofline that lies far below them on the left and near them on the right."}} tags=["hide-input", "nbval-ignore-output"]
figure, ax = plt.subplots(figsize=(6.2, 3.4))
size = [bytes_per_step(nets[w, "plain"], context=T).weights / 4e6 for w in widths]
ends = []
for kind, colour in (("plain", viz.AMBER), ("fast", viz.BLUE)):
    y_ = [1e3 * measured[w, kind] for w in widths]
    ax.plot(size, y_, "o-", color=colour)
    ends.append((kind, colour, size[-1], y_[-1]))
y_ = [1e3 * roof[w, "plain"] for w in widths]
ax.plot(size, y_, color=viz.INK, lw=1.2)
ends.append(("roofline", viz.INK, size[-1], y_[-1]))
ax.set(xscale="log", yscale="log", xlabel="millions of weights", ylabel="milliseconds per step")
viz.name_ends(ax, ends);

# %% [markdown]
# Up to a width of 128 the two explain nine tenths of the time or more, and for the small ones calls are nearly all of it. At 256 they
# explain three quarters to nine tenths, the more the quieter the machine, at 512 half: the weights no longer fit into the processor's cache, and a product with a single row reads them more slowly than a copy would
# (`minimal bench decode` measures such bare products). For small networks it is the other way round. Their weights do lie in that cache,
# and come faster than $M$ says, so the true bound is lower still and the case against calls stronger.
#
# ## Rows cost less than their number
#
# What if a pass does more? A step over $B$ rows of a batch reads the weights *once* for all of them, and makes as many calls. So does a
# pass over $n$ positions of one sequence. Only the cache differs: each row of a batch has a cache of its own, whereas $n$ positions of one
# sequence share theirs. The intensity grows with $B$ or $n$, and the dot wanders to the right under the roof. (For the narrow network 64 rows stop early:
# there the caches, one for each row, soon outweigh the weights.)

# %% tags=["nbval-ignore-output"]
models = {"width 96": FastRaster(gpt), "width 512": FastRaster(wide)}
batches, news = (1, 4, 16, 64), (1, 2, 3, 5, 9, 17)
steps = {}
for name, net in models.items():
    steps |= {(name, "rows", b): step_of(net, batch=b) for b in batches}
    steps |= {(name, "positions", n): step_of(net, n=n) for n in news}
times = race(steps, rounds=5, repeats=3)
for name in models:
    one = times[name, "rows", 1]
    print(f"{name}, times as long as one row:")
    for kind, sizes in (("rows", batches), ("positions", news)):
        ratios = {m: times[name, kind, m] / times[name, kind, 1] for m in sizes}
        print(f"   {kind:10s}", *(f"{m}: {r:.2f}  " for m, r in ratios.items()))
for name in models:
    assert times[name, "rows", 16] < 0.6 * 16 * times[name, "rows", 1]
    assert times[name, "positions", 9] < 0.5 * 9 * times[name, "positions", 1]

# %% mystnb={"figure": {"caption": "The roofline of this machine. Each dot is a measured pass: operations per byte against operations per second. Circles: 1, 4, 16, 64 rows of a batch. Crosses: 1 to 17 positions of one sequence. The line is what the machine could do. Wider networks lie nearer to it, and more rows carry a pass to the right, out of the region where it waits.", "name": "fig-5a-01-roofline"}, "image": {"alt": "Log-log plot. A roof rises with slope one and becomes flat at the arithmetic peak. Dots of the narrow network start far below the slope at one half operation per byte and climb along a parallel line; dots of the wide one start nearer to the slope and come within a factor of two of the flat part."}} tags=["hide-input", "nbval-ignore-output"]
figure, ax = plt.subplots(figsize=(7.0, 3.8))
x_ = torch.logspace(-1, 2.2, 100)
ax.plot(x_, (x_ * M).clamp(max=F) / 1e9, color=viz.INK, lw=1.6)
for (name, net), colour in zip(models.items(), (viz.AMBER, viz.BLUE)):
    for kind, sizes, marker in (("rows", batches, "o"), ("positions", news, "x")):
        xs, ys = [], []
        for m in sizes:
            shape = dict(batch=m) if kind == "rows" else dict(n=m)
            ops = operations_per_step(net, context=T, **shape)
            xs.append(ops / bytes_per_step(net, context=T, **shape).total)
            ys.append(ops / times[name, kind, m] / 1e9)
        ax.plot(xs, ys, marker, ls="-", lw=0.7, color=colour, label=f"{name}, {kind}")
ax.set(
    xscale="log",
    yscale="log",
    xlabel="operations per byte",
    ylabel="billion operations per second",
)
ax.set(xlim=(0.1, 30))
ax.legend(loc="lower right");

# %% [markdown]
# This is the premise of the whole part. Sixteen rows take far less than sixteen times as long, so a server *batches*
# ([chapter 6](06_batching_requests.ipynb)). Nine positions of one sequence cost the narrow network little more than one, and the wide one about two steps,
# so whoever *guesses* eight tokens can have them checked for the price of one or two (chapters [2](02_speculative_sampling.ipynb) to [5](05_any_subset.ipynb)). And where the time goes to calls, they can be recorded once and replayed with a single one
# ([chapter 7](07_gpu_path.ipynb)). On a GPU the ridge lies at hundreds of operations per byte instead of a few, and guesses are cheaper still.
#
# ## What a cache costs
#
# [Chapter 0.2](../0_start/02_transformer_and_cache.ipynb) derived the cache and its three forms. Here is the bill. The obvious cache *concatenates*: every step makes new buffers, one position
# longer, and copies the old ones. It is correct:


# %%
class Concatenating(KVCache):
    """The dynamic cache: keys and values of a layer are a tensor that grows."""

    def __init__(self, *sizes, **options):
        super().__init__(*sizes, **options)
        self.grown, self.copied = {}, 0

    def append(self, layer, *new):  # keys and values
        old = self.grown.get(layer, [x[:, :, :0] for x in new])
        self.grown[layer] = [torch.cat(pair, dim=2) for pair in zip(old, new)]
        self.copied += sum(x.nbytes for x in old)
        return self.grown[layer]


page = windows(pydoc("validation").tokens)[:1]  # (1, 288)
forms = (Concatenating, KVCache, StaticKVCache)
with torch.inference_mode():
    whole = gpt.logits(page)
    caches = {kind: gpt.new_cache(1, kind=kind) for kind in forms}
    for j in range(gpt.length):
        for cache in caches.values():
            row = gpt.logits(page[:, : j + 1], cache=cache, n=1)
            assert torch.allclose(row, whole[:, j : j + 1], atol=1e-4)
copied = caches[Concatenating].copied
per_position = 2 * L * G * d * 4
assert copied == per_position * sum(range(gpt.length))
print(f"all three equal a full forward; a position is {per_position:,} bytes,")
kept = per_position * gpt.length
print(f"and {copied / 1e6:.0f} MB were copied for {kept / 1e6:.1f} MB at the end")

# %% [markdown]
# Copying grows with the *square* of the length. `KVCache` allocates once and writes in place. `StaticKVCache` in addition shows the whole buffer
# to every query, behind a mask: more to read, but shapes that never change. Two more ways make the bytes fewer. **Grouped queries** let $H / G$
# query heads share a key-value head. A **sliding window** keeps the last positions and the first few, the *sinks*:

# %%
cached = {}
for kv_heads in (4, 2, 1):
    net = RasterGPT(96, 4096, dim=96, layers=8, heads=4, kv_heads=kv_heads).eval()
    cached[kv_heads] = [bytes_per_step(net, context=t).cache / 1e6 for t in (288, 4096)]
    weights = bytes_per_step(net).weights / 1e6
    print(
        f"G = {kv_heads}: weights {weights:.2f} MB, cache of 288 / 4,096 positions "
        f"{cached[kv_heads][0]:.2f} / {cached[kv_heads][1]:.2f} MB"
    )
assert cached[4][1] == 4 * cached[1][1]
sliding = SlidingKVCache(L, 1, G, 64, d, sinks=4)
print(f"window of 64: {2 * sliding.k.nbytes / 1e6:.2f} MB, for ever")

# %% tags=["nbval-ignore-output"]
steps = {}
for kv_heads in (4, 2, 1):
    net = RasterGPT(96, 4096, dim=96, layers=8, heads=4, kv_heads=kv_heads).eval()
    steps[kv_heads] = step_of(FastRaster(net), batch=4, context=4096)
times = race(steps, rounds=5, repeats=1)
for kv_heads, seconds in times.items():
    print(f"4,096 positions, G = {kv_heads}: {times[4] / seconds:.2f} times as fast as G = 4")
assert times[1] < 0.85 * times[4]

# %% mystnb={"figure": {"caption": "Which positions each cache holds while twelve tokens come: one row a step, the number is the position. The static cache always shows its whole buffer, and a mask hides the pale part. The window of five with two sinks forgets the middle, and its ring writes over the oldest slot.", "name": "fig-5a-01-caches"}, "image": {"alt": "Three panels of steps against slots. Dynamic: a filled triangle. Static: the same triangle in dark inside a pale square. Sliding: five slots; the first two keep positions zero and one, the other three are overwritten in turn, with the position written in each."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 3, figsize=(9.0, 3.3), width_ratios=(12, 12, 5))
n = 12
for ax, title in zip(axes, ("dynamic", "static", "sliding")):
    slots = 5 if title == "sliding" else n
    ring = SlidingKVCache(1, 1, 1, 5, 2, sinks=2)
    held = {}
    for t in range(n):
        if title == "sliding":
            held[int(ring.slot(torch.tensor(t)))] = t
        for slot in range(slots):
            seen = slot in held if title == "sliding" else slot <= t
            if not seen and title != "static":
                continue
            colour = viz.BLUE if seen else viz.PALE
            ax.add_patch(plt.Rectangle((slot - 0.5, t - 0.5), 1, 1, fc=colour, ec="w", lw=0.8))
            if title == "sliding" or (title == "static" and seen) or title == "dynamic":
                label = held[slot] if title == "sliding" else slot
                ax.text(slot, t, label, ha="center", va="center", fontsize=6, color="w")
    ax.set(xlim=(-0.5, slots - 0.5), ylim=(n - 0.5, -0.5), title=title, xlabel="slot")
    ax.set(xticks=range(0, slots, 2), yticks=range(0, n, 2))
    ax.grid(False)
axes[0].set_ylabel("step");

# %% [markdown]
# A ring cannot be rolled back to what it has written over, and guessing needs to roll back. It says so, and says what would help:

# %%
ring = SlidingKVCache(1, 1, 1, 6, 2, sinks=2)
for _ in range(12):
    ring.append(0, torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 1, 2))
    ring.advance(1)
try:
    ring.truncate(9)
except ValueError as error:
    print(error)

# %% [markdown]
# Bytes are not everything. What does a window cost in *likelihood*? We let `pydoc_ar` forecast held-out text under the mask of a window, with and
# without four sinks. It never saw a window in training.

# %%
pages = windows(pydoc("validation").tokens)[::2]  # (67, 288)
counts = pydoc("train").tokens.bincount(minlength=96) + 0.1
alone = -(counts / counts.sum()).log()[pages].mean().item()


@torch.inference_mode()
def nats_under(mask):
    """Nats per character (67,), of the last 144: there the window has long moved on."""
    places = torch.arange(gpt.length)
    inputs = torch.cat((gpt.start(None, len(pages), pages.device), pages[:, :-1]), dim=1)
    rotation, _ = gpt.places(gpt.length, None)
    logits = gpt.run(inputs, rotation, mask(places, places), None)
    return -log_probabilities(logits, pages)[:, 144:].mean(1)


full = nats_under(not_after).mean().item()
print(f"character frequencies {alone:.3f}, all positions {full:.3f} nats per character")
print("window   alone   with 4 sinks, as many positions in all")
nats = {}
for size in (16, 32, 64, 128):
    plain = nats_under(not_after & window(size))
    sinks = nats_under(not_after & (window(size - 4) | sink(4)))
    change = sinks - plain  # page by page
    error = 2 * change.std() / len(change) ** 0.5
    nats[size] = plain.mean().item()
    print(f"{size:6d} {nats[size]:7.3f} {change.mean():+9.4f} ± {error:.4f}")
assert full < nats[128] + 0.02 and nats[16] > full + 0.1 and full < alone - 1

# %% [markdown]
# A window of 64 costs little, one of 16 a lot: so far back does this model look. The sinks gain nothing here. They take the places of four
# recent positions, and those were worth as much or a little more. This is no verdict on sinks. In large language models many heads send the attention that
# they cannot use to the first positions, and a window that drops these fails at once ([2309.17453](https://arxiv.org/abs/2309.17453)). Eight narrow layers that were
# trained on pages which begin anywhere show no sign of such a habit in their loss.
#
# The bytes of many rows at once, where each grows at its own pace, are the subject of paging, in [chapter 6](06_batching_requests.ipynb).

# %% [markdown]
# ## Exercise 1: when does a batch stop being free? (★, 5 minutes)
#
# Forget the cache and the calls. A step over $B$ rows reads $W$ weights of $s$ bytes once and does $2 W B$ operations. From which $B$ on does it
# take longer than with one row? The machine has $M$ bytes and $F$ operations per second.


# %% tags=["exercise"]
def largest_free_batch(M, F, s):
    """The batch (a number, not rounded) at which the step is no longer bound by memory."""
    return None  # your code


# %% tags=["exercise-check"]
answer = largest_free_batch(2e12, 6e13, 2)
if answer is None:
    print("Hint: memory takes W s / M seconds, arithmetic 2 W B / F. When are they equal?")
else:
    wrong = "set W s / M equal to 2 W B / F; the weights cancel"
    assert abs(answer - 30) < 1e-9, f"expected 30 rows, got {answer:.3g}: {wrong}"
    assert abs(largest_free_batch(2e12, 6e13, 4) - 60) < 1e-9, "twice the bytes, twice the rows"
    print("Right: 30 rows in half precision, 60 in single. A narrower number moves the ridge.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# The intensity of the step is $2 W B / (W s) = 2 B / s$ operations per byte. Set it equal to $F / M$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def largest_free_batch(M, F, s):
#     return F * s / (2 * M)
# ```
#
# </details>
# <details><summary>Wrong: one operation per weight</summary>
#
# A weight is multiplied *and* the product is added.
#
# ```python
# def largest_free_batch(M, F, s):
#     return F * s / M
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: how many people fit? (★★, 10 minutes)
#
# A server has `memory` bytes. Weights take `weights` bytes, and every request a cache of up to $T$ positions in $L$ layers, $G$ key-value heads of
# $d$ channels, numbers of $s$ bytes. How many requests fit at once?


# %% tags=["exercise"]
def requests_that_fit(memory, weights, L, G, d, T, s):
    """A whole number."""
    return None  # your code


# %% tags=["exercise-check"]
case = dict(memory=80e9, weights=16e9, L=32, G=8, d=128, T=8192, s=2)
answer = requests_that_fit(**case)
if answer is None:
    print("Hint: how many numbers does one position of one request store, in all layers?")
else:
    wrong = "a position stores a key AND a value in each layer and key-value head"
    assert answer == 59, f"expected 59 requests, got {answer}: {wrong}"
    assert requests_that_fit(**case | {"G": 32}) == 14, (
        "four times the heads, a quarter of the room"
    )
    print("Right: 59, and 14 if every one of 32 query heads had keys of its own.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# $2 L G d$ numbers a position, $T$ positions a request, and only whole requests count.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def requests_that_fit(memory, weights, L, G, d, T, s):
#     return int((memory - weights) // (2 * L * G * d * T * s))
# ```
#
# </details>
# <details><summary>Wrong: keys only</summary>
#
# Values are as many as keys.
#
# ```python
# def requests_that_fit(memory, weights, L, G, d, T, s):
#     return int((memory - weights) // (L * G * d * T * s))
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * A decode step reads every weight and every cached number once, and does about half an operation per byte: it could only ever wait for memory.
# * In a small network it does not even do that. Time goes to calls of operators, and fewer calls are the first thing to save.
# * More rows, or more positions of one row, share weights and calls. They cost far less than their number, and that is what guessing and batching spend.
# * Caches are paid in bytes per position, $2 L G d s$: concatenation copies them again and again, grouped queries divide them, a window bounds them.
# * A roofline compares a program with its machine instead of with another program.
#
# ## Where this stands
#
# The roofline is by Williams, Waterman and Patterson (Communications of the ACM 52, 2009). Pope et al. ([2211.05102](https://arxiv.org/abs/2211.05102)) count the bytes and
# operations of large transformers on accelerators in the same way. Grouped queries are by Ainslie et al. ([2305.13245](https://arxiv.org/abs/2305.13245)), after the multi-query attention of Shazeer
# ([1911.02150](https://arxiv.org/abs/1911.02150)); sliding windows with sinks by Xiao et al. ([2309.17453](https://arxiv.org/abs/2309.17453)), who rotate keys by their place *in the
# cache*, which ours does not. Paged caches are from vLLM (Kwon et al., [2309.06180](https://arxiv.org/abs/2309.06180)).
