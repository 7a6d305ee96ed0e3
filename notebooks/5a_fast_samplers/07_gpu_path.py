# %% [markdown]
# # The GPU path: why is it idle?
#
# | | |
# | --- | --- |
# | **You will build** | a recording of a decoding step that replays without Python, a checker for the steps that may be recorded, and speculation in which the host never waits |
# | **Time** | half a minute on a laptop, without a GPU |
# | **You need** | key-value caches (0.2) and speculative sampling as in the tour |
# | **Of the five nouns** | sampler |
# | **Systems** | CUDA graphs and decoding steps of static shape |
#
# A GPU reads the weights of a small model in a microsecond and then waits, for us. Between two tokens our Python program asks for a hundred
# little operations, one at a time, and each request takes longer than its answer. A *CUDA graph* records all requests once and repeats
# them with a single one. What a step must be like to be recorded is the subject of this chapter.
#
# To be plain about it: this chapter was written and executed on a machine **without a GPU**. Everything but the replay on a GPU can be built
# and checked on a CPU, and we shall even replay there. Where a CUDA device is present, the same cells use it.

# %% tags=["exercise-setup"]
import copy
import inspect
import statistics
import time
from collections import Counter

import matplotlib.pyplot as plt
import torch
from matplotlib.patches import Patch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from minimal import checkpoints, data, recipes, viz
from minimal.nn.cache import StaticKVCache
from minimal.nn.masks import not_after
from minimal.roofline import bytes_per_step, count_operators
from minimal.samplers.cached import sample_cached
from minimal.samplers.capture import Recording, check_capture
from minimal.samplers.cuda_graph import StaticDecoder, record
from minimal.samplers.fast import FastRaster
from minimal.samplers.guidance import Guided
from minimal.samplers.logits import draw, filter_logits, uniform_noise
from minimal.samplers.speculative import sample_speculative
from minimal.samplers.static_speculative import StaticSpeculator
from minimal.samplers.trace import multiply_adds

viz.style()
torch.set_num_threads(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The question
#
# A *dispatch mode* stands between PyTorch and its kernels and sees every operator on its way. Here is one that writes down the names of
# those that compute something. Views only describe a tensor anew and start nothing on a device. We let the pixel transformer of the tour
# draw one pixel of one image.

# %%
target, draft = checkpoints.load("digits_ar"), checkpoints.load("digits_draft")
tokenizer = recipes.pixel_tokenizer(data.load("digits", "train"))
N = target.length


class Watch(TorchDispatchMode):
    """Names of the operators that compute."""

    # a view by another name, and two questions that the host answers by itself
    FREE = ("_unsafe_view", "promote_types", "_fused_sdp_choice")

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name = op.overloadpacket.__name__
        if not op.is_view and name not in self.FREE:
            self.names.append(name)
        return op(*args, **(kwargs or {}))


class Ordinary:
    """The loop of `sample_cached`, one step at a time."""

    def __init__(self, cond, seed=0):
        n = len(cond)
        self.cond, self.j = cond, 0
        self.canvas = torch.zeros(n, N + 1, dtype=torch.long)
        self.noise, self.cache = uniform_noise(n, N, seeded(seed)), target.new_cache(n)

    def step(self):
        logits = target.logits(self.canvas, self.cond, cache=self.cache, n=1)[:, -1]
        self.canvas[:, self.j] = draw(logits, self.noise[:, self.j])
        self.j += 1


@torch.no_grad()
def watched(step):
    step()  # what is made once, such as a table of frequencies, is no part of a step
    with Watch() as watch:
        step()
    return watch.names


names = watched(Ordinary(torch.tensor([3])).step)
print(f"{len(names)} operators for one pixel:", dict(Counter(names).most_common(6)))

# %% [markdown]
# Most of them are tiny: to square a vector, take its mean, add a number. What would a GPU make of that? Reading all weights and the cache
# is the least work there is, and an A100 with 80 GB reads two terabytes per second. But somebody must ask. NVIDIA's introduction to
# graphs ([Getting Started with CUDA Graphs](https://developer.nvidia.com/blog/cuda-graphs/), on a V100, in C++) launches a kernel that runs
# for 2.9 µs: back to back it takes 3.8 µs, and 9.6 µs if the host waits for each. In PyTorch every launch also goes through Python and the
# dispatcher. We shall reckon with 5 µs for a launch and 2 µs for a tiny kernel.

# %%
LAUNCH, KERNEL, BANDWIDTH = 5e-6, 2e-6, 2e12  # assumptions: seconds, seconds, bytes per second
needed = bytes_per_step(target, batch=1, context=N // 2).total
launching, running = len(names) * LAUNCH, len(names) * KERNEL
print(f"one pixel reads {needed / 1e6:.1f} MB: {needed / BANDWIDTH * 1e6:.1f} µs")
print(f"its kernels run for {running * 1e6:.0f} µs, launching takes {launching * 1e6:.0f} µs")
assert launching > 2 * running and running > 100 * needed / BANDWIDTH

# %% mystnb={"figure": {"caption": "A schematic: the sequence of operators is the one counted above, their durations are assumed (5 µs a launch, 2 µs a kernel). Above, the device waits for the host between any two kernels. Below, one launch starts them all.", "name": "fig-5a-07-timeline"}, "image": {"alt": "Two timelines of one pixel. In the upper one the host is busy all the time and the device lane has thin coloured bars with gaps between them. In the lower one the host has a single short bar and the device lane is filled without gaps and ends much earlier."}} tags=["hide-input"]
KINDS = {"products": viz.BLUE, "attention": viz.AMBER, "cache": viz.GREEN}


def colour(name):
    if "attention" in name:
        return KINDS["attention"]
    return {"mm": KINDS["products"], "copy_": KINDS["cache"]}.get(name, viz.GREY)


figure, ax = plt.subplots(figsize=(8.6, 2.9))
micro = 1e6
for i, name in enumerate(names):
    launch = dict(height=0.6, align="edge", ec="white", lw=0.35)
    ax.barh(3.2, LAUNCH * micro, left=i * LAUNCH * micro, color=viz.PALE, **launch)
    start = (i + 1) * LAUNCH * micro
    ax.barh(2.4, KERNEL * micro, left=start, color=colour(name), height=0.6, align="edge")
    start = 2 * LAUNCH * micro + i * KERNEL * micro
    ax.barh(0.2, KERNEL * micro, left=start, color=colour(name), height=0.6, align="edge")
ax.barh(1.0, 2 * LAUNCH * micro, color=viz.GREY, height=0.6, align="edge")
ax.set_yticks([3.5, 2.7, 1.3, 0.5], ["host", "device", "host", "device"])
ax.text(0, 3.95, f"eager: {len(names)} launches", va="bottom", fontweight="bold", fontsize=9)
ax.text(0, 1.7, "graph: 1 launch", va="bottom", fontweight="bold", fontsize=9)
end = (2 * LAUNCH + running) * micro
ax.text(end + 8, 0.5, "free for the next pixel", va="center", color=viz.GREY)
handles = [Patch(color=value, label=key) for key, value in KINDS.items()]
handles.append(Patch(color=viz.GREY, label="all the rest"))
ax.legend(handles=handles, loc="lower right", ncols=4, bbox_to_anchor=(1.0, -0.02))
ax.set(xlabel="microseconds (assumed durations, counted operators)", ylim=(-0.55, 4.5))
ax.grid(axis="y", visible=False)
ax.set_xlim(0, (launching + 2 * LAUNCH) * micro);

# %% [markdown]
# How much of that is Python's fault can be measured without a GPU. An operator on a single number has nothing to compute, so what it takes
# is the price of being called:

# %% tags=["nbval-ignore-output"]
number, start = torch.zeros(1), time.thread_time()
for _ in range(5000):
    number.add_(1)
print(f"an operator without work: {(time.thread_time() - start) / 5000 * 1e6:.1f} µs here")

# %% [markdown]
# ## A graph that runs on a CPU
#
# A graph is a list of launches: which kernel, on which sizes, with which numbers, from and to which addresses. On a CPU we have no
# kernels to launch, but we have operators. So let us record *those*, with the very tensors they were given, and replay the list. What
# an operator makes anew, a replay writes to the place of the recorded result, as a graph does.

# %%
class Tape(TorchDispatchMode):
    @torch.no_grad()
    def __init__(self, step):
        super().__init__()
        self.calls = []
        with self:
            step()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        place = op(*args, **(kwargs or {}))
        self.calls.append((op, args, kwargs or {}, place))
        return place

    @torch.no_grad()
    def replay(self):
        for op, args, kwargs, place in self.calls:
            for old, new in zip(tree_leaves(place), tree_leaves(op(*args, **kwargs))):
                if not isinstance(old, torch.Tensor) or old.data_ptr() == new.data_ptr():
                    continue  # a number; or a view, or what was written in place
                old.copy_(new)


# %% [markdown]
# No line of the step runs during a replay: no loop, no `if`, no counter, no module. This twin of a CUDA graph makes the same mistakes
# as a real one, which is what we want it for. First, the ordinary step. We draw two rows of pixels of ten digits in the usual manner,
# record the next step, and replay it for the rest.

# %%
labels = torch.arange(10)
plain = sample_cached(target, 10, cond=labels, generator=seeded(0)).tokens


@torch.no_grad()
def run(sampler, recorded):
    """Canvas after N steps; with `recorded`, all but the first 17 are replays."""
    for _ in range(16):
        sampler.step()
    if recorded:
        step = Tape(sampler.step).replay
    else:
        step = sampler.step
        step()
    for _ in range(N - 17):
        step()
    return sampler.canvas[:, :N].clone()


drawn = {"ordinary step": [run(Ordinary(labels), recorded) for recorded in (False, True)]}
run_right, replayed_right = (torch.equal(x, plain) for x in drawn["ordinary step"])
print(f"ordinary step: run, it is right: {run_right}; replayed, it is right: {replayed_right}")
assert run_right and not replayed_right

# %% [markdown]
# It wrote pixel 16 forty-eight times, since `self.j` is a Python number. So the position must be a tensor that the step itself advances. The
# package has a cache whose lengths live in a tensor, `StaticKVCache`, and a step that uses it, `StaticDecoder.step`:

# %%
print(inspect.getsource(StaticDecoder.step))

# %% [markdown]
# Its state is a canvas, the noise and the cache, all allocated once. Before we trust it, let us see what else can go wrong, by adding one
# mistake at a time:
#
# * **shape**: hand only the filled part of the cache to attention, as the ordinary cache does. Why compute what is masked?
# * **address**: turn the noise by one place per step, into a *new* tensor, and read its first column.

# %%
class Growing(StaticKVCache):
    """Returns the filled part alone: the step's shapes grow."""

    filled = 0

    def key_positions(self, n):
        return self.slots[: self.filled + n]

    def append(self, layer, k, v):
        k, v = super().append(layer, k, v)
        return k[:, :, : self.filled + 1], v[:, :, : self.filled + 1]

    def advance(self, n):
        super().advance(n)
        self.filled += n


class Grows(StaticDecoder):
    def __init__(self, *args):
        super().__init__(*args)
        self.cache = self.model.new_cache(self.n, N, Growing)


class Moves(StaticDecoder):
    def step(self):
        position = self.cache.length[:, None].clone()
        logits = self.model.logits(self.canvas, self.cond, cache=self.cache, n=1)[:, -1]
        self.canvas.scatter_(1, position, draw(logits, self.noise[:, 0])[:, None])
        self.noise = self.noise.roll(-1, 1)


def ready(kind, n=10):
    decoder = kind(target, n)
    decoder.cond.copy_(labels[:n])
    decoder.noise.copy_(uniform_noise(n, N, seeded(0)))
    decoder.rewind()
    return decoder


kinds = {"shapes grow": Grows, "a new buffer": Moves, "static step": StaticDecoder}
print("                run, it is right   replayed, it is right")
for title, kind in kinds.items():
    drawn[title] = [run(ready(kind), recorded) for recorded in (False, True)]
    run_right, replayed_right = (torch.equal(x, plain) for x in drawn[title])
    print(f"{title:15s} {run_right!s:>16s}   {replayed_right!s:>21s}")
    assert run_right and replayed_right == (kind is StaticDecoder)

# %% mystnb={"figure": {"caption": "Ten digits whose first 16 pixels were drawn step by step and whose others were replayed from a recording of step 17. Only the static step draws what plain decoding draws. The other three are right when they are run; no error is raised when they are replayed.", "name": "fig-5a-07-replays"}, "image": {"alt": "Five rows of ten digits. Plain decoding and the replayed static step show the same clean digits. The replayed ordinary step shows only the first two rows of pixels. With growing shapes the lower half loses its form, and with a new buffer strokes run on as straight lines or swell to blobs."}} tags=["hide-input"]
rows = [plain, *(drawn[title][1] for title in ("ordinary step", *kinds))]
row_labels = ["plain", "a Python\nnumber", "shapes\ngrow", "a new\nbuffer", "static\nstep"]
viz.image_grid(tokenizer.decode(torch.cat(rows)), row_labels=row_labels);

# %% [markdown]
# These failures are treacherous. A number that Python had at the time is *frozen* into the recording; a slice of length 17 stays 17 long, so
# that later pixels see only the beginning; a buffer that was replaced is read where it used to be. Nothing complains. Only one kind of
# mistake is refused by CUDA itself: to read a value back. The host would have to wait for a number that a recording does not compute.
#
# ## The rules, and a checker
#
# 1. **No way back.** No `.item()`, no `if tensor:`, no `nonzero`, no boolean index.
# 2. **Fixed shapes.** Every operator returns the same shapes in every step.
# 3. **Fixed addresses.** What was there before the step is found at the same place every time. What the step makes on its way may
#    lie anywhere; a graph keeps a place for it.
#
# And, since we were caught by it: **fixed numbers**. All of this a dispatch mode can see.

# %%
class Rules(TorchDispatchMode):
    """Compares each operator with the one that the first step ran in its place."""

    def __init__(self):
        super().__init__()
        self.first = None

    @torch.no_grad()
    def watch(self, step):
        self.now, self.found, self.made = [], set(), set()
        with self:
            step()
        self.first = self.first or self.now

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        name, given = op.overloadpacket.__name__, tree_leaves((args, kwargs))
        if name in ("_local_scalar_dense", "nonzero", "masked_select"):
            raise RuntimeError(f"{name}: reads a value back")
        storage = lambda x: x.untyped_storage().data_ptr()
        tensors = [x for x in given if isinstance(x, torch.Tensor)]
        self.found |= {storage(x) for x in tensors} - self.made
        out = op(*args, **(kwargs or {}))
        results = [x for x in tree_leaves(out) if isinstance(x, torch.Tensor)]
        self.made |= {storage(x) for x in results} - self.found
        call = {
            "operator": name,
            "shape": [x.shape for x in results],
            "address": [x.data_ptr() for x in tensors if storage(x) in self.found],
            "number": [x for x in given if not isinstance(x, torch.Tensor)],
        }
        for what in call if self.first else ():
            if call[what] != self.first[len(self.now)][what]:
                raise RuntimeError(f"{name}: another {what} than in the first step")
        self.now.append(call)
        return out


def verdict(check):
    try:
        check()
    except RuntimeError as error:
        return str(error)
    return "may be recorded"


def mine(step):
    with torch.no_grad():
        step()  # to warm up
    rules = Rules()
    for _ in range(3):
        rules.watch(step)


# %% [markdown]
# The package's version is `check_capture`. It knows a few more ways to break the first rule, such as tensors made of Python numbers,
# which must travel from the host. Both judge our steps, and one that stops early:

# %%
class Peeks(StaticDecoder):
    def step(self):
        super().step()
        if (self.cache.length == N).all():  # are we there yet?
            self.canvas.clamp_(max=16)


suspects = {
    "static step": lambda: ready(StaticDecoder),
    "peeks": lambda: ready(Peeks),
    "ordinary step": lambda: Ordinary(labels),
    "shapes grow": lambda: ready(Grows),
    "a new buffer": lambda: ready(Moves),
}
for title, make in suspects.items():
    verdicts = [verdict(lambda: check(make().step)) for check in (mine, check_capture)]
    print(f"{title:14s} {verdicts[0]}")
    good = title == "static step"
    assert [words == "may be recorded" for words in verdicts] == [good, good]

# %% [markdown]
# ## What makes the step static
#
# **A mask in place of a slice.** Attention sees the whole buffer in every step; the mask `not_after` lets through the slots up to the row's
# own position. Slots that are empty, or stale from an earlier sample, stand behind it.

# %% mystnb={"figure": {"caption": "The mask of a static step: row j is what step j lets through of the 64 slots (blue). An ordinary cache hands over the blue part alone; a static one computes with the grey part too, about as much again.", "name": "fig-5a-07-mask"}, "image": {"alt": "A square of 64 by 64 cells. The lower left triangle with the diagonal is blue, the upper right triangle is pale grey."}} tags=["hide-input"]
steps = torch.arange(N)
mask = not_after(steps, steps)
ax = viz.mask_picture(mask, ax=plt.subplots(figsize=(3.4, 3.4))[1])
ax.set(xlabel="slot of the cache", ylabel="step")
share = mask.float().mean().item()
ax.set_title(f"{share:.0%} of the buffer is needed")
assert abs(share - (N + 1) / (2 * N)) < 1e-6

# %% [markdown]
# **Positions are tensors.** `scatter_` writes keys, values and the token to where `cache.length` says, row by row; `advance` adds to it in
# place.
#
# **Sampling by inverse CDF.** A token is the place where the cumulated probabilities pass a uniform number: a sum and a comparison, nothing
# to be read back. `torch.multinomial` would draw its own random numbers inside of the step.
#
# **Random numbers from outside.** A generator keeps its state on the host or in a place of its own, and a recording that used it would need
# special care: PyTorch registers CUDA generators with a graph and moves their offsets at each replay, and a generator on the CPU cannot be
# used at all ([PyTorch on CUDA graphs](https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs)). We draw all noise of a
# sample before its first step, one number per image and position, into a buffer. So eager, replayed and plain decoding use equal
# numbers, and *equal tokens* is a test, not a hope:

# %%
guided, prompt = Guided(target, 2.0), plain[:, :20]
cases = {
    "plain": (target, {}, {}),
    "greedy": (target, dict(temperature=0), {}),
    "filtered": (target, dict(temperature=0.8, top_k=8, top_p=0.9), {}),
    "guided, with a prompt": (guided, {}, dict(prompt=prompt)),
}
for title, (net, filters, asked) in cases.items():
    decoder = StaticDecoder(net, 10, **filters)
    check_capture(decoder.step)
    decoder.rewind()
    decoder.graph = Recording(decoder.step)
    for seed in (1, 2):
        options = dict(cond=labels, generator=seeded(seed), **asked)
        replayed = decoder.sample(**options).tokens
        options["generator"] = seeded(seed)
        assert torch.equal(replayed, sample_cached(net, 10, **options, **filters).tokens)
print("replayed = plain decoding, token for token:", ", ".join(cases))

# %% [markdown]
# `Recording` is our tape in the package. One recording served two samples with different noise: a replay reads what the buffers hold *now*.
# New labels, prompts and noise are copied into the old places.
#
# **Warm-up and rewinding.** On a GPU, `record` makes the graph. Before the recording the step runs three times on a side stream, so that
# libraries choose their kernels and allocate their workspaces. These runs were real and moved the lengths, so the state is rewound. The
# recording itself computes nothing.

# %%
print(inspect.getsource(record))

# %% [markdown]
# **Attention without Triton.** `scaled_dot_product_attention` chooses among kernels that come with PyTorch: flash, memory-efficient, cuDNN and
# a plain formula. Flash attention takes no mask of our making ("does not support non-null attn_mask", says PyTorch's
# source, `sdp_utils_cpp.h`), so a masked static step is served by one of the others; grouped queries are, by the
# [documentation](https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html), for flash and the
# plain formula only. None of them is compiled at run time. `torch.compile` with its default backend would generate Triton code, and so would
# FlexAttention. (A test draws with our samplers in a fresh process and finds neither Triton nor the compiler imported.) Which kernel serves
# us here, on a CPU?

# %%
served = {name for name in check_capture(ready(StaticDecoder).step) if "attention" in name}
print("attention:", ", ".join(served))

# %% [markdown]
# ## The bill
#
# How many operators does a token take in each form, and how much arithmetic? `FastRaster` is the model of the tour's fast step, with folded
# weights. A speculative round, to which we come below, guesses four pixels and checks them.

# %%
k = 4
one = torch.tensor([3])
speculator = StaticSpeculator(target, draft, 10, k=k)
trace = speculator.sample(cond=labels, generator=seeded(0)).trace
tokens_per_round = 10 * N / trace.rows["target"]


def static_step(net):
    decoder = StaticDecoder(net, 1)
    return decoder.step


alone = StaticSpeculator(target, draft, 1, k=k)
alone.rewind(1)
megabytes = lambda net, T=N, n=1: bytes_per_step(net, 1, T, n).total / 1e6
whole = megabytes(target)
both = megabytes(target, n=k + 1) + k * megabytes(draft)
counted = {  # operators and megabytes of a step, and tokens that it makes
    "ordinary step": (len(names), megabytes(target, N // 2), 1),
    "static step": (len(watched(static_step(target))), whole, 1),
    "static step, fast": (len(watched(static_step(FastRaster(target)))), whole, 1),
    "static speculative round": (len(watched(alone.round)), both, tokens_per_round),
}
print("                          operators   a token   MB a token   launches a token")
for title, (operators, read, made) in counted.items():
    launches = f"{1 / made:.2f} as a graph" if "static" in title else f"{operators / made:.0f}"
    row = f"{operators:10d}{operators / made:10.0f}{read / made:13.2f}   {launches:>16s}"
    print(f"{title:25s}{row}")

# %%
decoder = StaticDecoder(target, 1)
with torch.no_grad():
    decoder.step()
    calls = count_operators(decoder.step)  # the package's counter
assert calls.total() - calls["view"] == counted["static step"][0]
work = {
    "ordinary": multiply_adds(lambda: sample_cached(target, 1, cond=one, generator=seeded(0))),
    "static": multiply_adds(lambda: decoder.sample(cond=one, generator=seeded(0))),
}
ratio = work["static"] / work["ordinary"]
more = counted["static step"][0] / counted["ordinary step"][0]
print(f"the static step: {ratio:.3f} times the arithmetic, {more:.2f} times the operators")
assert 1 < ratio < 1.2 and more > 1.1

# %% tags=["nbval-ignore-output"]
timed = {
    "ordinary": lambda: sample_cached(target, 1, cond=one, generator=seeded(0)),
    "static": lambda: decoder.sample(cond=one, generator=seeded(0)),
}
seconds = {name: [] for name in timed}
for turn in range(9):
    for name, sample in timed.items():
        start = time.thread_time()
        sample()
        seconds[name].append(time.thread_time() - start)
slower = statistics.median(seconds["static"]) / statistics.median(seconds["ordinary"])
print(f"here the static step takes {slower:.2f} times as long")

# %% [markdown]
# Here is the surprise. The step that was made for speed does *more* of everything: more arithmetic, since it attends to empty slots, and more
# operators, for the mask and for writing at positions that are tensors. On a CPU that makes it slower, and so it should. It pays with
# work for *sameness*, and sameness is what can be recorded. On a GPU the host then pays for one launch instead of all of them, and
# what the device does more takes next to nothing of its time.
#
# The waste grows with the buffer. A context of thousands, of which a short prompt fills a hundred, would be read whole in every step. The
# usual cure is *bucketing*: one graph for each of a few lengths, 64, 128, 256, and a step from one to the next as the sequence grows.
#
# ## Speculation without looking
#
# In speculative sampling the shapes seem to depend on luck. How many of the $k$ guesses are kept, only the device knows, and the ordinary
# sampler asks it in each round. But nobody *needs* to know. Keep the count where it is made. With $u$ the coins, $(B, k)$, and $p$, $q$ the
# chances of the guesses,
#
# $$\text{kept} = \sum_{i=1}^{k} \prod_{j \le i} \mathbb{1}[u_j \, q_j < p_j], \qquad \text{length} \leftarrow \min(\text{length} + \text{kept} + 1, N),$$
#
# and the next round starts from `length`, a tensor $(B,)$. Guesses behind a refusal are not erased. They lie beyond the length, the
# mask hides them, and the next round writes over them. So a round has one shape: $k$ passes of the draft, one of the target.

# %%
source = inspect.getsource(StaticSpeculator.round)
print(source[source.index("        k, N,") :])

# %% [markdown]
# A row that is done would like to run over the end. Its length stays at $N$, and it goes on guessing idly in $k + 1$ spare places behind
# the canvas. That leaves one question: when does the host stop? It must look, but not often. A round writes at most $k + 1$ pixels. If
# the shortest row lacks $r$, the next $\lceil r / (k + 1) \rceil$ rounds are needed whatever happens, and the host can ask for all of
# them before it looks again. No round is wasted.

# %%
class Watched(StaticSpeculator):
    def round(self, *lacks, **options):
        super().round(*lacks, **options)
        self.lengths.append(self.length.clone())


speculator = Watched(target, draft, 10, k=k)
speculator.lengths = []
options = dict(cond=labels, generator=seeded(0))
static = speculator.sample(**options)
options["generator"] = seeded(0)
ordinary = sample_speculative(target, draft, 10, k=k, **options)
assert torch.equal(static.tokens, ordinary.tokens)
for what in ("forwards", "rows", "positions", "drafted", "accepted"):
    assert getattr(static.trace, what) == getattr(ordinary.trace, what)

lengths = torch.stack(speculator.lengths)  # (rounds, 10)
looks = [1]
while (left := N - int(lengths[looks[-1] - 1].min())) > 0:
    looks.append(looks[-1] + -(-left // (k + 1)))
rounds = len(lengths)
print(f"the same images and the same trace; {rounds} rounds, looks after rounds {looks}")
assert looks[-1] == rounds

# %% mystnb={"figure": {"caption": "Ten images drawn together, each at its own pace. The host looks at the lengths only where an amber line stands; between two lines it asks for rounds without waiting for any.", "name": "fig-5a-07-looks"}, "image": {"alt": "Ten rising staircase curves of finished pixels over rounds, from 0 to 64, with a few vertical amber lines: far apart at the beginning and denser towards the end."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(6.6, 3.0))
for round_ in looks:
    ax.axvline(round_, color=viz.AMBER, lw=2)
for row in range(10):
    curve = [0, *lengths[:, row].tolist()]
    ax.step(range(rounds + 1), curve, where="post", color=viz.BLUE, lw=1, alpha=0.6)
ax.axhline(N, color=viz.INK, lw=0.8)
ax.set(xlabel="round", ylabel="pixels that are final", xlim=(0, rounds + 0.5), ylim=(0, N + 3))
ax.set_title(f"{rounds} rounds, {len(looks)} looks");

# %%
speculator = StaticSpeculator(target, draft, 10, k=k)
samplers = {
    "ordinary": lambda g: sample_speculative(target, draft, 10, k=k, cond=labels, generator=g),
    "static": lambda g: speculator.sample(cond=labels, generator=g),
}
reads = {
    name: count_operators(lambda: sampler(seeded(0)))["_local_scalar_dense"]
    for name, sampler in samplers.items()
}
print("values read back while ten images are drawn:", reads)
assert reads["static"] < reads["ordinary"] / 5
speculator.rewind(1)
operators = check_capture(speculator.round)
print(f"a round has {len(operators)} operators, views included, and may be recorded")
speculator.rewind(1)
speculator.graph = Recording(speculator.round)
assert torch.equal(speculator.sample(cond=labels, generator=seeded(0)).tokens, static.tokens)

# %% [markdown]
# Of the values that the static sampler still reads, a few belong to the checks of its input. Its round passes the rules, and replayed it
# draws the same images again. As a graph a round is one launch for about three pixels.
#
# ## Half the bytes
#
# Once launches are out of the way, bytes count. In bfloat16 a number has two of them, so weights and cache are read in half the time.
# Logits are made in bfloat16 then, and tokens are still drawn in float32. What changes? Continue the first eight pixels of a hundred
# drawings greedily, in bfloat16, and ask the float32 model about each choice after its own past.

# %%
half = copy.deepcopy(target).bfloat16()
many = torch.arange(100) % 10
begun = sample_cached(target, 100, cond=many, generator=seeded(5)).tokens[:, :8]
decoder = StaticDecoder(half, 100, temperature=0)
choices = decoder.sample(cond=many, prompt=begun).tokens
with torch.inference_mode():
    logits = target.logits(choices, many)[:, 8:]
lack = logits.amax(-1) - logits.gather(-1, choices[:, 8:, None])[..., 0]
other = int((lack > 0).sum())
print(f"{other} of {lack.numel()} choices are not float32's; there the best logit is ahead")
print(f"by {lack[lack > 0].median():.3f} in the median, by {lack.max():.3f} at most")
full, two = (bytes_per_step(net, 1, N).total / 1e6 for net in (target, half))
print(f"bytes a pixel: {full:.2f} MB in float32, {two:.2f} MB in bfloat16")
assert decoder.cache.k.dtype == torch.bfloat16 and 0 < other < 0.02 * lack.numel()
assert lack.max() < 0.2 and two == full / 2

# %% [markdown]
# Near-ties, and nothing else. Behind a near-tie two greedy pictures may part, so one compares choices and not pictures.
#
# ## On a GPU
#
# The next cell races the eager step against its graph where there is a device, and says so where there is none. For the whole table,
# batches 1 and 16, bfloat16, and the share of what the memory allows, run `minimal bench gpu --device cuda`.

# %% tags=["nbval-ignore-output"]
if torch.cuda.is_available():
    there = copy.deepcopy(target).cuda()
    decoder = StaticDecoder(there, 1)
    graph, times, tokens = decoder.graph, {}, {}
    for title, decoder.graph in (("eager", None), ("graph", graph)) * 3:
        sample = decoder.sample(cond=one.cuda(), generator=seeded(0))
        times[title], tokens[title] = sample.trace.seconds, sample.tokens
    assert torch.equal(tokens["eager"], tokens["graph"])
    ratio = times["eager"] / times["graph"]
    print(f"{torch.cuda.get_device_name()}: {ratio:.1f} times as fast as a graph")
else:
    print("no CUDA device here: no graph of kernels was replayed, only recordings of operators")

# %% [markdown]
# For the exercises:

# %% tags=["exercise-setup"]
example = torch.randn(4, 17, generator=seeded(0))
END = 0


def refused(step):
    """None if the step may be recorded, else the reason."""
    try:
        check_capture(step)
    except RuntimeError as error:
        return str(error)


# %% [markdown]
# ## Exercise 1: top-k without a look (★, 5 minutes)
#
# Keep the $k$ largest logits of each row and set the others to $-\infty$, by operators that may be recorded.

# %% tags=["exercise"]
def top_k(logits, k):
    """Logits (n, V) -> (n, V), -inf outside of the k largest of each row."""
    return None  # your code

# %% tags=["exercise-check"]
answer = top_k(example, 5)
if answer is None:
    print("Hint: the last column of logits.topk(k).values is the k-th largest of each row.")
else:
    reason = refused(lambda: top_k(example, 5))
    assert reason is None, f"this step cannot be recorded: {reason}"
    expected = filter_logits(example, top_k=5)
    assert torch.equal(answer, expected), "keep, in every row, the 5 largest logits as they are"
    print("Right: a comparison and a masked_fill, for any number of rows.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `masked_fill` takes a mask of the shape of the logits and needs to know nothing about how many it selects.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def top_k(logits, k):
#     smallest = logits.topk(k).values[:, -1:]
#     return logits.masked_fill(logits < smallest, -torch.inf)
# ```
#
# </details>
# <details><summary>Wrong: takes the threshold to the host</summary>
#
# The result is right. But `item` waits for the device, once per row and token, and a capture would end with an error.
#
# ```python
# def top_k(logits, k):
#     out = logits.clone()
#     for row in out:
#         smallest = row.topk(k).values[-1].item()
#         row.masked_fill_(row < smallest, -torch.inf)
#     return out
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: stop without stopping (★★, 10 minutes)
#
# Text ends with an end token, here 0, and rows end at different times. A recorded step cannot leave the loop. Write what happens to a
# freshly drawn token instead: a row that is done writes the end token for ever, and `done` remembers it for the next step.

# %% tags=["exercise"]
def finish(token, done):
    """Token (n,) to be written; `done` (n,) bool is brought up to date for the next step."""
    return None  # your code

# %% tags=["exercise-check"]
done_ = torch.tensor([False, True, False])
answer = finish(torch.tensor([7, 5, END]), done_)
if answer is None:
    print("Hint: torch.where chooses per row; done.logical_or_(...) writes into done itself.")
else:
    assert answer.tolist() == [7, END, END], f"expected [7, 0, 0], got {answer.tolist()}"
    stale = "the buffer `done` must change in place: a recording reads it where it was"
    assert done_.tolist() == [False, True, True], f"{stale}; it holds {done_.tolist()}"
    drawn_ = torch.tensor([1, 2, 3])
    reason = refused(lambda: finish(drawn_, done_))
    assert reason is None, f"this step cannot be recorded: {reason}"
    print("Right: the host may look at done.all() every 32 steps or so.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# First the token, by the old `done`; then `done`, by the token.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def finish(token, done):
#     token = torch.where(done, END, token)
#     done.logical_or_(token == END)
#     return token
# ```
#
# </details>
# <details><summary>Wrong: makes a new `done`</summary>
#
# The name now means another tensor, and the caller's buffer, which the next step reads, has not changed.
#
# ```python
# def finish(token, done):
#     token = torch.where(done, END, token)
#     done = done | (token == END)
#     return token
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: what bfloat16 is worth (★★, 10 minutes)
#
# A step launches its kernels one after another, `launches` times `per_launch` seconds, and cannot be faster than its bytes over the
# bandwidth. Whichever takes longer is its time. How many times faster is bfloat16, if it halves the bytes?

# %% tags=["exercise"]
def gain_of_bfloat16(bytes_read, bandwidth, launches, per_launch):
    """Time of a step in float32 over its time in bfloat16; `bytes_read` is meant in float32."""
    return None  # your code

# %% tags=["exercise-check"]
answer = gain_of_bfloat16(32e9, 2e12, 500, 5e-6)  # 8 billion weights
if answer is None:
    print("Hint: the time of a step is max(bytes / bandwidth, launches * per_launch).")
else:
    assert abs(answer - 2) < 1e-9, f"8e9 weights wait for memory: expected 2, not {answer}"
    tiny = gain_of_bfloat16(2e6, 2e12, 130, 5e-6)
    assert abs(tiny - 1) < 1e-9, f"2 MB wait for launches alone: expected 1, not {tiny}"
    graph = gain_of_bfloat16(6e9, 2e12, 400, 5e-6)
    assert abs(graph - 1.5) < 1e-9, f"in between launches take over: expected 1.5, not {graph}"
    print("Right: fewer bytes help whom bytes delay. The graph comes first.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Write the time as a function of the bytes and call it twice.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def gain_of_bfloat16(bytes_read, bandwidth, launches, per_launch):
#     seconds = lambda read: max(read / bandwidth, launches * per_launch)
#     return seconds(bytes_read) / seconds(bytes_read / 2)
# ```
#
# </details>
# <details><summary>Wrong: adds the two times</summary>
#
# Host and device work at the same time: while one kernel reads, the next is launched. What counts is the slower of the two.
#
# ```python
# def gain_of_bfloat16(bytes_read, bandwidth, launches, per_launch):
#     seconds = lambda read: read / bandwidth + launches * per_launch
#     return seconds(bytes_read) / seconds(bytes_read / 2)
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * A small model at batch 1 leaves a GPU idle: a pixel needs a microsecond of reading and well over a hundred launches.
# * A graph replays operators, shapes, numbers and addresses. What Python decides is frozen, and only reading back raises an error.
# * Three rules make a step recordable, and a dispatch mode checks them on any machine: no way back, fixed shapes, fixed addresses.
# * The static step does more work, in exchange for being the same every time. On a CPU it is slower, with the same tokens.
# * Speculation needs no look at the device: counts stay there, and the host asks only when all rows could be done.
#
# ## Where this stands
#
# The constraints of a capture, the treatment of generators and the private memory of a graph are described in
# [PyTorch's notes](https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs) and in NVIDIA's
# [guide](https://docs.nvidia.com/dl-cuda-graph/latest). Static caches for decoding became common with
# [gpt-fast](https://pytorch.org/blog/accelerating-generative-ai-2/), which records its steps through `torch.compile`, and so needs a compiler and
# Triton; we take the static cache and leave these. Speculative sampling is due to Leviathan et al.
# ([2211.17192](https://arxiv.org/abs/2211.17192)) and Chen et al. ([2302.01318](https://arxiv.org/abs/2302.01318)), grouped queries, which shrink the
# cache, to Ainslie et al. ([2305.13245](https://arxiv.org/abs/2305.13245)). Serving systems with paged caches (Kwon et al.,
# [2309.06180](https://arxiv.org/abs/2309.06180)) need fixed shapes for the same reason, and a table of addresses in the place of one.
