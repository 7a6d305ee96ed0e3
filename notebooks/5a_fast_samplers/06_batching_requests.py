# %% [markdown]
# # Batching requests: who leaves makes room
#
# | | |
# | --- | --- |
# | **You will build** | a server that adds and removes requests after every token, and a cache that hands out memory in blocks |
# | **Time** | half a minute on a laptop, without a GPU |
# | **You need** | the transformer and its cache; no knowledge of queues |
# | **Of the five nouns** | sampler |
# | **Systems** | continuous batching (Orca), Flover, paged attention (vLLM) |
#
# So far every image and every text was drawn for its own sake. A server draws for many people at once. Their requests come when they
# like and end when they like, and one pass over eight of them costs far less than eight passes. How should they share the passes? And
# how should they share the memory? Neither answer touches a single token: everybody gets exactly what they would have got alone.

# %% tags=["exercise-setup"]
import inspect
from collections import deque
from dataclasses import replace
from itertools import groupby

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import to_rgb

from minimal import checkpoints, data, metrics, viz
from minimal.nn.cache import StaticKVCache
from minimal.nn.paged_cache import PagedKVCache
from minimal.recipes.text import nats_per_character, windows
from minimal.samplers.batching import NetworkEngine, sample_batched
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast import FastRaster
from minimal.samplers.queueing import SimulatedEngine, saturated_gain, step_costs, workload
from minimal.samplers.scheduler import CONTINUOUS, SHRINKING, STATIC, serve

viz.style()
torch.set_num_threads(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The question
#
# The server has a buffer of $S = 8$ rows, and one decode step brings a token for every row. 48 requests wait; each wants between 16
# and 256 tokens. The obvious way is a *static batch*: take the first eight, run until all are done, take the next eight. The other way
# looks after *every step* whether a row has become free, and gives it to whoever waits. Here is an afternoon of both, on paper: every
# step takes one unit of time.

# %%
lengths = torch.randint(16, 257, (48,), generator=seeded(7))
unit = SimulatedEngine(lambda rows: 1.0)
day = {
    "static": serve(workload(lengths), unit, 8, STATIC),
    "continuous": serve(workload(lengths), unit, 8, CONTINUOUS),
}
for name, run in day.items():
    print(f"{name:10s} {len(run.steps):4d} steps, {run.padding:.0%} of their rows for nobody")

# %% mystnb={"figure": {"caption": "Each bar is a request in its row of the buffer, dark grey is padding. A static batch (top) waits for its longest member; a continuous one (below) gives every free row away at once. Towards the end nobody waits; then the last row moves up into the hole, as request 46 does three times.", "name": "fig-5a-06-gantt"}, "image": {"alt": "Two charts of eight rows over time with one coloured bar per request. In the upper one six blocks of bars end raggedly and large dark grey areas fill them up. In the lower one bars follow each other without gaps and all is done after about two thirds of the time."}} tags=["hide-input"]
def gantt(ax, served):
    colours = viz.code_colours(len(served.requests))
    for row in range(8):
        spans = [(step, step.rows[row]) for step in served.steps if row < len(step.rows)]
        for r, group in groupby(spans, key=lambda span: span[1]):
            steps = [step for step, _ in group]
            begin, end = steps[0].start, steps[-1].start + steps[-1].seconds
            colour = viz.GREY if r is None else colours[r]
            ax.barh(row, end - begin, left=begin, height=0.92, color=colour, ec="w", lw=0.5)
            if r is not None and end - begin > 25:
                ax.text((begin + end) / 2, row, str(r), ha="center", va="center", fontsize=6.5)
    ax.set(ylim=(7.6, -0.6), ylabel="row", yticks=[])
    ax.grid(False)


figure, axes = plt.subplots(2, 1, figsize=(8.4, 4.4), sharex=True)
for ax, (name, run) in zip(axes, day.items()):
    gantt(ax, run)
    ax.axvline(len(run.steps), color=viz.RED, lw=1.2)
    ax.set_title(f"{name}: {len(run.steps)} steps")
axes[1].set(xlabel="step", xlim=(0, len(day["static"].steps) + 8));

# %% [markdown]
# ## A scheduler in ten lines
#
# If only the number of running requests is asked, the whole idea is one loop. `left` holds the tokens that each running request still
# wants, and one word decides: are newcomers admitted while others run?

# %%
def widths(lengths, slots, refill):
    """How many requests run in each step, if all of them wait at the beginning."""
    waiting, left, running = deque(lengths), [], []
    while waiting or left:
        if refill or not left:
            while waiting and len(left) < slots:
                left.append(waiting.popleft())
        running.append(len(left))
        left = [tokens - 1 for tokens in left if tokens > 1]
    return running


for name, run in day.items():
    live = [sum(r is not None for r in step.rows) for step in run.steps]
    assert widths(lengths.tolist(), 8, refill=name == "continuous") == live

# %% [markdown]
# The package's scheduler has more to keep books about: requests arrive at different times, each lives in a certain row, and work takes
# time. It does not know *what* does the work. An engine writes a request into a row, makes a step, moves a row, and says how
# many seconds that took; the clock adds them up. So the same lines run a real network and a simulation.

# %%
print(inspect.getsource(serve))

# %% [markdown]
# Two rows of a step are at different positions, which a cache with a length per row takes care of. Holes can only appear when nobody
# waits. Then the last row moves into the hole, so that rows $0 \dots m - 1$ are always the living ones and no pass computes padding.
#
# ## The gain, without a machine
#
# A step over $m$ rows takes $c(m)$ seconds. Suppose that everybody waits. A static batch of $S$ requests with lengths $\ell_1 \dots
# \ell_S$ takes $c(S) \max_i \ell_i$ seconds. In a continuous one every row is busy all the time, so $S$ requests take $c(S)
# \frac{1}{S}\sum_i \ell_i$. The ratio of the two, in the long run, is
#
# $$\text{gain} = \frac{c(S)\,\mathbb{E}[\max(\ell_1, \dots, \ell_S)]}{c(S)\,\mathbb{E}[\ell]} = \frac{\mathbb{E}[\max(\ell_1, \dots, \ell_S)]}{\mathbb{E}[\ell]}.$$
#
# The cost of a step cancels! Neither the model nor the machine occurs in the gain, only the distribution of lengths and the
# number of rows. If $n$ lengths are sorted, the maximum of $S$ draws is at most the $i$-th with probability $(i/n)^S$:

# %%
def gain(lengths, S):
    ordered = lengths.double().sort().values
    at_most = (torch.arange(len(lengths) + 1) / len(lengths)).double() ** S
    return ((ordered * at_most.diff()).sum() / ordered.mean()).item()


n = 600
u = torch.rand(n, generator=seeded(1))
mixtures = {
    "all 64": torch.full((n,), 64),
    "48 to 64": torch.randint(48, 65, (n,), generator=seeded(1)),
    "16 to 256": torch.randint(16, 257, (n,), generator=seeded(1)),
    "geometric, mean 64": (u.log() / np.log(1 - 1 / 64)).ceil(),
    "80 % 16, 20 % 256": torch.where(u < 0.8, 16, 256),
}


def throughput(policy, lengths, S=8, cost=lambda rows: 1 + 0.02 * rows, **arrivals):
    requests = workload(lengths, generator=seeded(2), **arrivals)
    return serve(requests, SimulatedEngine(cost), S, policy).throughput


slots = (2, 4, 8, 16)
simulated = {
    name: [throughput(CONTINUOUS, x, S) / throughput(STATIC, x, S) for S in slots]
    for name, x in mixtures.items()
}
print("gain, predicted / simulated" + "".join(f"{f'S = {S}':>14s}" for S in slots))
for name, ratios in simulated.items():
    predicted = [saturated_gain(mixtures[name], S) for S in slots]
    assert np.allclose(predicted, [gain(mixtures[name], S) for S in slots], atol=1e-6)
    pairs = (f"{f'{a:.2f} / {b:.2f}':>14s}" for a, b in zip(predicted, ratios))
    print(f"{name:27s}" + "".join(pairs))
    assert np.allclose(predicted, ratios, rtol=0.1)
assert simulated["all 64"] == [1.0] * 4 and simulated["16 to 256"][2] >= 1.5
twenty = mixtures["16 to 256"][:20]  # with one row both are a plain queue
assert throughput(CONTINUOUS, twenty, 1) == throughput(STATIC, twenty, 1)

# %% mystnb={"figure": {"caption": "Gain in throughput of continuous over static batching when everybody waits. Lines are the formula, dots the simulated server with 600 requests. Equal lengths gain nothing, however many rows.", "name": "fig-5a-06-gain"}, "image": {"alt": "Five curves of the gain over the number of rows from 1 to 16. Equal lengths stay at 1, lengths of 48 to 64 rise to 1.15, uniform lengths of 16 to 256 to 1.8, geometric lengths to 3.1 and a mixture of 16 and 256 to 3.9. The dots lie on the lines or slightly below."}} tags=["hide-input"]
figure, ax = plt.subplots(figsize=(6.0, 3.4))
fine, ends = range(1, 17), []
for (name, x), colour in zip(mixtures.items(), viz.PALETTE):
    curve = [saturated_gain(x, S) for S in fine]
    ax.plot(fine, curve, color=colour)
    ax.plot(slots, simulated[name], "o", color=colour)
    ends.append((name, colour, 16, curve[-1]))
ax.set(xlabel="rows S", ylabel="continuous / static", xticks=(1, *slots))
ax.set(xlim=(0.8, 16.3), ylim=(0.9, 4.1))
viz.name_ends(ax, ends)

# %% [markdown]
# (600 requests are a sample, and they end in a tail with fewer than $S$ running. The formula knows of neither.)
#
# A fairer opponent? A static batch may leave finished rows *out* of its passes, though it admits nobody. It then pays for the rows that
# live. With $c(m) = c_0 + c_1 m$, where $c_0$ is what a step costs in any case and $c_1$ what a row adds, a batch costs
# $c_0 \max_i \ell_i + c_1 \sum_i \ell_i$. Against this one, only the fixed share of a full step is left of the gain:
#
# $$\text{gain} - 1 \;\to\; \frac{c_0}{c_0 + c_1 S} \, (\text{gain} - 1).$$
#
# Now the machine is back. On a large GPU $c_0$, the reading of the weights, is nearly everything. On a processor rows have to be paid for.

# %%
x = mixtures["16 to 256"]
print("           gain over a static batch")
print("c1 / c0    with padding   that leaves it out   predicted")
for per_row in (0.02, 0.15, 0.3):
    cost = lambda rows: 1 + per_row * rows
    padded, without, ours = (
        throughput(policy, x, cost=cost) for policy in (STATIC, SHRINKING, CONTINUOUS)
    )
    predicted = 1 + (saturated_gain(x, 8) - 1) / (1 + 8 * per_row)
    print(f"{per_row:7.2f}{ours / padded:16.2f}{ours / without:21.2f}{predicted:12.2f}")
    assert abs(ours / without / predicted - 1) < 0.03
    assert abs(ours / padded / saturated_gain(x, 8) - 1) < 0.03

# %% [markdown]
# ## Nobody waits: the gain disappears
#
# Everybody waiting is a special case. Let requests arrive by chance instead, at a steady mean rate, and let the *load* be that rate as a
# share of what the continuous server could do at most. Both servers get the same arrivals. The static one plays fair: it takes whoever
# waits, up to eight, never waits for a full batch, and hands out an answer as soon as its own last token is there.

# %%
capacity = throughput(CONTINUOUS, x) / x.double().mean().item()  # requests per unit of time
loads = (0.1, 0.25, 0.4, 0.5, 0.55, 0.6, 0.75, 0.9, 1.0, 1.5, 2.0)
answers = {}
for load in loads:
    requests = workload(x, rate=load * capacity, generator=seeded(3))
    engine = SimulatedEngine(lambda rows: 1 + 0.02 * rows)
    for name, policy in (("static", STATIC), ("continuous", CONTINUOUS)):
        answers[name, load] = serve(requests, engine, 8, policy)
print("load   throughput ratio   latency: static  continuous   ratio")
for load in loads:
    static, ours = answers["static", load], answers["continuous", load]
    a, b = static.latency.mean().item(), ours.latency.mean().item()
    ratio = ours.throughput / static.throughput
    print(f"{load:4.2f}{ratio:14.2f}{a:22.0f}{b:12.0f}{a / b:11.1f}")

# %% mystnb={"figure": {"caption": "Left: tokens per unit of time as a share of what is possible; below a load of 0.59 both servers simply do what arrives. Right: mean time from arrival to the last token. The static server is slower even when it is not busy, and from 0.59 on its queue grows for as long as requests come (here 600).", "name": "fig-5a-06-load"}, "image": {"alt": "Two panels over the load. Left, both throughputs rise together along the diagonal; the static one flattens at 0.59, the continuous one at 1. Right, on a logarithmic axis, static latency lies above continuous latency everywhere and rises steeply at 0.59, long before the continuous one does at 1."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.2))
top = capacity * x.double().mean().item()
for ax, value in (
    (axes[0], lambda run: run.throughput / top),
    (axes[1], lambda run: run.latency.mean().item()),
):
    ends = []
    for name, colour in (("static", viz.AMBER), ("continuous", viz.BLUE)):
        y = [value(answers[name, load]) for load in loads]
        ax.plot(loads, y, "o-", color=colour)
        ends.append((name, colour, loads[-1], y[-1]))
    ax.axvline(1 / saturated_gain(x, 8), color=viz.GREY, lw=0.9, ls="--")
    ax.set(xlabel="load", xlim=(0, 2.0))
    viz.name_ends(ax, ends)
axes[0].set(ylabel="share of the largest throughput", ylim=(0, 1.1))
axes[1].set(ylabel="mean latency, in units of time", yscale="log")
ticks = (200, 500, 1000, 2000, 5000)
axes[1].set_yticks(ticks, map(str, ticks))
axes[1].minorticks_off();

# %%
print(f"the static server is saturated at a load of {1 / saturated_gain(x, 8):.2f}")
for load in (0.5, 2.0):
    static, ours = answers["static", load], answers["continuous", load]
    ratio = ours.throughput / static.throughput
    waits = static.latency.mean() / ours.latency.mean()
    assert (abs(ratio - 1) < 0.03 and waits > 1.5) if load == 0.5 else ratio >= 1.5

# %% [markdown]
# Here is the surprise. At half load the better scheduler does *not* serve one token more per second: both do what arrives, and nobody can do
# more. What it gains is *time*: a newcomer need not wait until the present batch is over. A benchmark at half load would say
# "throughput: no difference", and a benchmark with equal lengths would say so at any load. Both would be right. A gain in
# throughput without lengths, rows and load beside it says nothing.
#
# ## For real
#
# Now a network: the character model of this part, on prompts from the validation text. Batching cannot change what comes out, but a model
# that had learnt nothing would still be a poor thing to serve:

# %%
gpt = checkpoints.load("pydoc_ar")
model = FastRaster(gpt)  # the same network with fewer operations per token
train, text = data.load("pydoc", "train"), data.load("pydoc", "validation")
held_out = windows(text.tokens)[:20]
counts = train.tokens.bincount(minlength=len(train.vocabulary)) + 1.0
alone = -(counts / counts.sum()).log()[held_out].mean().item()
with torch.inference_mode():
    loss = nats_per_character(gpt, held_out)
    sensitivity = metrics.context_sensitivity(gpt, held_out)
print(f"nats per character: {loss:.2f}; counting characters alone: {alone:.2f}")
print(f"another beginning changes the forecast by {sensitivity:.2f} in total variation")
assert loss < alone - 0.5 and sensitivity > 0.3

# %% [markdown]
# Each request has its own noise: one uniform number for every position, drawn from its own seed. Take the noise from one generator for
# everybody instead, and a request's text would depend on who else was there. This is how the same text comes out in any company:

# %%
def ask(n, seed=0, most=256, **arrivals):
    """`n` requests: prompts of 1 to 32 characters, 16 to `most` to come."""
    lengths = torch.randint(16, most + 1, (n,), generator=seeded(seed))
    requests = workload(lengths, prompt=31, generator=seeded(seed + 1), **arrivals)
    spots = torch.randint(len(text) - 32, (n,), generator=seeded(seed + 2)).tolist()
    prompts = (text.tokens[s : s + 1 + len(r.prompt)] for s, r in zip(spots, requests))
    return [replace(r, prompt=prompt) for r, prompt in zip(requests, prompts)]


def by_itself(net, request, **filters):
    options = dict(prompt=request.prompt[None], generator=seeded(request.seed))
    whole = sample_cached(net, 1, **options, **filters).tokens[0]
    return whole[: len(request.prompt) + request.new_tokens]


exact = FastRaster(checkpoints.load("pydoc_ar").double())
few = ask(5, seed=3, most=48)
for filters in ({"temperature": 0}, {"temperature": 0.8}):
    single = [by_itself(exact, request, **filters) for request in few]
    for policy in (STATIC, CONTINUOUS):
        together = sample_batched(exact, few, slots=3, policy=policy, **filters).tokens
        assert all(torch.equal(a, b) for a, b in zip(single, together))
    print(f"{filters}: all five get the text that they get alone")
show = lambda tokens: repr("".join(text.vocabulary[t] for t in tokens.tolist()))
print(show(few[1].prompt), "->", show(together[1][len(few[1].prompt) :]))

# %% [markdown]
# (In float64, since a pass over eight rows rounds otherwise than one over a single row, and a token may hang on the last bit.)
#
# Now the clock. The virtual clock of the scheduler advances by what each piece of work took in processor time of this thread, prefills and
# moves included, so that other work on the machine hardly counts. 48 requests wait; the policies take turns, twice.

# %% tags=["nbval-ignore-output"]
crowd = ask(48)
policies = {"static": STATIC, "static, padding left out": SHRINKING, "continuous": CONTINUOUS}
rounds = [
    {name: sample_batched(model, crowd, policy=policy) for name, policy in policies.items()}
    for _ in range(2)
]
real = rounds[0]
speed = {name: np.mean([each[name].throughput for each in rounds]) for name in policies}
c0, c1 = step_costs(real["static, padding left out"])  # its steps have all widths
prefill = np.mean([run.spent["prefill"] for run in real.values()]) / len(crowd)
paper = SimulatedEngine(lambda rows: c0 + c1 * rows, lambda length: prefill)
print(f"a step over 8 rows takes {(c0 + 8 * c1) / (c0 + c1):.1f} times as long as one over 1;"
      f" the fixed share of it is {c0 / (c0 + 8 * c1):.0%}")
print("                             steps   padding   prefill   throughput   simulated")
first = serve(crowd, paper, 8, STATIC).throughput
for name, run in real.items():
    predicted = serve(crowd, paper, 8, policies[name]).throughput / first
    ratio = speed[name] / speed["static"]
    prefilling = run.spent["prefill"] / sum(run.spent.values())
    print(f"{name:26s}{len(run.steps):8d}{run.padding:10.0%}{prefilling:10.0%}"
          f"{ratio:11.2f} x{predicted:10.2f} x")
    assert abs(ratio / predicted - 1) < 0.25
same = sum(torch.equal(a, b) for a, b in zip(real["static"].tokens, real["continuous"].tokens))
print(f"{same} of {len(crowd)} texts are identical in float32 too")
new_tokens = torch.tensor([request.new_tokens for request in crowd])
print(f"without end, the formula says {saturated_gain(new_tokens, 8):.2f} x")
assert speed["continuous"] / speed["static"] >= 1.3 and same >= len(crowd) - 2

# %% [markdown]
# Prediction and clock agree to a tenth or so. (The formula says more than the simulation, since 48 requests have a long tail: six batches against
# one stream whose last request runs alone for a while.) Against a static batch that leaves its padding out less remains, as
# predicted, since on a processor every row costs.
#
# Prefills are not free: a prompt goes through the network by itself, while seven other rows wait. Both servers do it in the same way. Large
# servers cut long prompts into chunks that ride along with decode steps.
#
# And at half load, as on paper?

# %% tags=["nbval-ignore-output"]
mean = new_tokens.double().mean().item()
visitors = ask(60, seed=5, rate=0.5 * speed["continuous"] / mean)
both = {
    "measured": [sample_batched(model, visitors, policy=p) for p in (STATIC, CONTINUOUS)],
    "simulated": [serve(visitors, paper, 8, p) for p in (STATIC, CONTINUOUS)],
}
for how, (static, ours) in both.items():
    ratio = ours.throughput / static.throughput
    waits = static.latency.mean() / ours.latency.mean()
    print(f"half load, {how}: throughput {ratio:.2f} x, latency {waits:.2f} times shorter")
    assert abs(ratio - 1) < 0.15 and waits > 1.2

# %% [markdown]
# ## No holes: temporal fusion
#
# Was it right to *move* rows? The alternative leaves a hole where it is and computes it as padding. A move copies a row's keys once, a hole
# costs in every step:

# %% tags=["nbval-ignore-output"]
with torch.inference_mode():
    engine = NetworkEngine(model, 8)
    for row in range(8):
        engine.prefill(row, crowd[row])
    for _ in range(100):
        engine.step(8)
    moves = []
    for _ in range(20):
        moves.append(engine.move(7, 3))
        engine.cache.fork(3, 7)
swap = np.median(moves)
print(f"a move: {swap * 1e6:.0f} microseconds; a row of padding: {c1 * 1e6:.0f} in every step")
assert swap < 2 * c1

# %% [markdown]
# A move pays after a single step.
#
# All this is *iteration-level scheduling*, which Orca introduced. Flover calls it *temporal fusion*: whatever their positions, requests in
# flight take their next step together. The loop is the same. What Flover adds is engineering around it: prompts are processed beside the
# loop and handed over when ready, and the buffer is kept dense by reordering, as here, instead of being padded. (Our prefill runs in the
# loop, one after the other, and is paid for.)
#
# ## Memory: a cache in pages
#
# The static cache reserves 288 positions for every row, since a request *might* become that long. A *paged* cache reserves nothing. It
# owns a pool of blocks with $b$ positions each, and a table says which block holds which part of a row: position $t$ of row $r$ lies in
# block `table[r, t // b]` at offset `t % b`. Blocks are taken when a row grows over a border, and given back when it ends.
#
# Blocks can be shared, too. Two requests with the same beginning can hold the same blocks, and each block counts its holders. To see
# it, let keys be characters and blocks have four of them:

# %%
def write(cache, row, characters):
    keys = torch.tensor([ord(c) for c in characters], dtype=torch.float).view(1, 1, -1, 1)
    part = cache.rows(row, row + 1)
    part.append(0, keys, keys)
    part.advance(len(characters))


def snapshot(cache):
    pool = cache.k[0, 0, :, :, 0].int().tolist()
    blocks = ["".join(chr(c) if c else " " for c in block) for block in pool]
    tables = [[b for b in row if b >= 0] for row in cache.table.tolist()]
    return blocks, list(cache.references), tables


toy = PagedKVCache(1, 2, 1, 12, 1, block=4, blocks=6)
write(toy, 0, "import")
story = [("row 0 writes its prompt", snapshot(toy))]
toy.fork(0, 1)
story.append(("row 1 is forked from it: the same blocks, no copy", snapshot(toy)))
write(toy, 0, "ed")
story.append(("row 0 writes on, into a shared block: it makes a copy first", snapshot(toy)))
write(toy, 1, "ant")
story.append(("row 1 is now alone in the old block and writes into it", snapshot(toy)))
for event, (_, _, tables) in story:
    print(f"{event:60s} {tables}")
read = toy.read(toy.k[0])[:, 0, :, 0]
held = ["".join(chr(int(c)) for c in row[:length]) for row, length in zip(read, toy.length)]
assert held == ["imported", "important"] and toy.used == 4

# %% mystnb={"figure": {"caption": "The pool after each of the four steps. Plum blocks have two holders, blue ones belong to row 0, amber ones to row 1. Copy-on-write keeps the rows apart: neither sees what the other appends.", "name": "fig-5a-06-pages"}, "image": {"alt": "Four rows of six boxes with four characters each. First impo and rt belong to row 0. Then both have two holders. Then rt has been copied to a third block, where it goes on as rted. At last the old block reads rtan and a fourth block holds the t."}} tags=["hide-input"]
figure, axes = plt.subplots(4, 1, figsize=(7.4, 4.6))
for ax, (title, (blocks, references, tables)) in zip(axes, story):
    for b, (block, count) in enumerate(zip(blocks, references)):
        owner = [r for r, table in enumerate(tables) if b in table]
        colour = viz.PLUM if count > 1 else (viz.BLUE, viz.AMBER)[owner[0]] if count else "w"
        for i, c in enumerate(block):
            box = dict(fc=(*to_rgb(colour), 0.28 if count else 0), ec=viz.GREY, lw=0.5)
            ax.add_patch(plt.Rectangle((b * 5 + i, 0), 1, 1, **box))
            ax.text(b * 5 + i + 0.5, 0.47, c, ha="center", va="center", family="monospace")
        ax.add_patch(plt.Rectangle((b * 5, 0), 4, 1, fc="none", ec=viz.INK, lw=1.1))
        style = dict(ha="center", va="top", fontsize=6.5, color=viz.GREY)
        ax.text(b * 5 + 2, -0.18, f"block {b}", **style)
    ax.set(xlim=(-0.2, 29.2), ylim=(-0.6, 1.1))
    ax.set_title(title, pad=3, fontsize=8.5)
    viz.bare(ax)

# %% [markdown]
# Whoever reads gets the rows as a static cache would show them, gathered from the pool. So the network computes the same numbers, bit
# for bit. The gather copies all keys at every step, and that is why real servers have an attention kernel that follows the table. What
# is to be learnt here is the bookkeeping.

# %% tags=["nbval-ignore-output"]
ragged = torch.tensor([1, 15, 16, 17, 32, 100, 200, 255])
canvas = held_out[:8]
logits = []
for kind in (StaticKVCache, PagedKVCache):
    cache = gpt.new_cache(8, 288, kind)
    with torch.inference_mode():
        gpt.logits(canvas, cache=cache, n=256)
        cache.truncate(ragged)
        logits.append(gpt.logits(canvas, cache=cache, n=20))
assert torch.equal(*logits)
print("eight rows of lengths", ragged.tolist(), "plus 20: equal bit for bit")


class Watched(NetworkEngine):
    """Keeps a picture of the block table after every step."""

    def step(self, rows):
        seconds = super().step(rows)
        self.pictures.append((self.cache.table.clone(), self.cache.length.clone()))
        return seconds


some = crowd[:32]
watched = Watched(model, 8, PagedKVCache)
watched.pictures = []
with torch.inference_mode():
    paged = serve(some, watched, 8)
assert all(torch.equal(a, b) for a, b in zip(paged.tokens, real["continuous"].tokens))
full = lambda run: np.median([step.seconds for step in run.steps if len(step.rows) == 8])
slower = full(paged) / full(real["continuous"])
print(f"with the gather a step over eight rows takes {slower:.1f} times as long")

# %% mystnb={"figure": {"caption": "Memory of eight rows over time, in blocks of 16 positions; a colour is a request. Left: the static cache holds 18 blocks for each row, most of them idle (grey). Right: the pool of the paged cache in the same run. What is white is free for other requests.", "name": "fig-5a-06-pool"}, "image": {"alt": "Two pictures of 144 blocks over some hundred steps. Left, eight bands with growing coloured staircases, each below a large grey area. Right, thin coloured bars fill the lower two thirds of the picture, and the upper third stays white."}} tags=["hide-input"]
colours = np.array(viz.code_colours(len(some)))
left, right = (np.ones((144, len(paged.steps), 3)) for _ in range(2))
left[:] = to_rgb(viz.GREY)
tokens = taken = 0
for t, (step, (table, length)) in enumerate(zip(paged.steps, watched.pictures)):
    for row, r in enumerate(step.rows):
        mine = [b for b in table[row].tolist() if b >= 0]
        left[18 * row : 18 * row + len(mine), t] = colours[r]
        right[mine, t] = colours[r]
        tokens, taken = tokens + int(length[row]), taken + len(mine)
peak = max(int((table >= 0).sum()) for table, _ in watched.pictures)
of_static, of_paged = tokens / (144 * 16 * len(paged.steps)), tokens / (16 * taken)
figure, axes = plt.subplots(1, 2, figsize=(8.6, 3.6), sharey=True)
for ax, image in zip(axes, (left, right)):
    ax.imshow(image, aspect="auto", origin="lower", interpolation="nearest")
    ax.set(xlabel="step", yticks=range(0, 145, 36))
    ax.grid(False)
axes[0].set(ylabel="block", title=f"static: {of_static:.0%} of what is reserved holds a token")
axes[1].set(title=f"paged: {of_paged:.0%} of what is taken holds a token");

# %%
held = [
    n
    for step, (_, length) in zip(paged.steps, watched.pictures)
    for n in length[: len(step.rows)].tolist()
]
idle = [-n % 16 for n in held]
print(f"static: {of_static:.0%} of the reserved positions hold a token")
print(f"paged: {of_paged:.0%} of the taken ones; at the most {peak} of 144 blocks were taken")
print(f"idle positions per row: static {288 - np.mean(held):.0f}, paged {np.mean(idle):.1f}")
assert max(idle) <= 15 and peak < 110 and of_paged > 0.85 and of_static < 0.5

# %% [markdown]
# A row wastes less than one block, at most $b - 1 = 15$ positions, where the static cache wastes $288 - T$. The blocks that are never taken
# could serve other requests in the same memory. More rows per pass is what a server buys with them.
#
# ## Exercise 1: the gain from a table (★, 5 minutes)
#
# The lengths $1, \dots, n$ have probabilities $p_1, \dots, p_n$. What is the gain of continuous over static batching with $S$ rows when
# everybody waits?

# %% tags=["exercise"]
def gain_of(p, S):
    """E[max of S lengths] / E[length] for lengths 1..n with probabilities p (n,)."""
    return None  # your code

# %% tags=["exercise-check"]
dice = torch.full((6,), 1 / 6, dtype=torch.float64)
answer = gain_of(dice, 2)
if answer is None:
    print("Hint: p.cumsum(0) ** S is the chance that the longest of S has at most that length.")
else:
    answer = float(answer)
    wrong = "the longest of S has the distribution function F ** S, and its mean is needed"
    assert abs(answer - 161 / 126) < 1e-9, f"expected 1.278, got {answer:.3f}: {wrong}"
    one = float(gain_of(dice, 1))
    assert abs(one - 1) < 1e-9, f"a single row gains nothing, got {one:.3f}"
    print("Right: with two dice the larger one is 4.47 on average, a die 3.5.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# The differences of the distribution function $F^S$ are the probabilities of the maximum. Put a zero in front before taking
# differences.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def gain_of(p, S):
#     length = torch.arange(1, len(p) + 1, dtype=p.dtype)
#     at_most = torch.cat((p.new_zeros(1), p.cumsum(0) ** S))
#     return (length * at_most.diff()).sum() / (length * p).sum()
# ```
#
# </details>
# <details><summary>Wrong: takes the longest length there is</summary>
#
# No batch waits longer than that, but few batches hold such a request. Only for $S \to \infty$ is it right.
#
# ```python
# def gain_of(p, S):
#     length = torch.arange(1, len(p) + 1, dtype=p.dtype)
#     return length.max() / (length * p).sum()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: close the holes (★★, 10 minutes)
#
# After a step some rows are empty and nobody waits. Write down the moves `(source, row)` that make the living rows a block at the
# front. A move copies a whole row of the cache, so make no more of them than necessary.

# %% tags=["exercise"]
def moves(rows):
    """`rows`: a request or None for each. Moves (source, row), to be made in that order."""
    return None  # your code

# %% tags=["exercise-check"]
before = ["a", None, "c", None, "e", "f"]
answer = moves(list(before))
if answer is None:
    print("Hint: the last living row goes into the first hole, if that lies before it.")
else:
    for example in (before, ["a", "b"], [None, None, "c"], ["a", None], [None]):
        after, plan_ = list(example), moves(list(example))
        for source, row in plan_:
            assert after[row] is None, f"{example}: {after[row]} in row {row} would be lost"
            after[row], after[source] = after[source], None
        living = [r for r in example if r is not None]
        at_front = sorted(r for r in after[: len(living)] if r is not None)
        assert at_front == living, f"{example}: the living should be in front, got {after}"
        holes = example[: len(living)].count(None)
        wrong = "only rows behind the new end have to move, one for each hole before it"
        said = f"{example}: {holes} moves suffice, got {len(plan_)}: {wrong}"
        assert len(plan_) == holes, said
    print("Right: the order of the rows does not matter, so nobody else moves.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# Pop rows from the end. An empty one needs nothing. A living one goes to the first `None` that is left, if there is one.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def moves(rows):
#     plan = []
#     while None in rows:
#         last = rows.pop()
#         if last is not None:
#             hole = rows.index(None)
#             rows[hole] = last
#             plan.append((len(rows), hole))
#     return plan
# ```
#
# </details>
# <details><summary>Wrong: everybody moves up</summary>
#
# It keeps the order, as a queue of people would. Rows of a buffer need no order, and each of these moves is a copy.
#
# ```python
# def moves(rows):
#     plan, end = [], 0
#     for source, r in enumerate(rows):
#         if r is not None:
#             if source != end:
#                 plan.append((source, end))
#             end += 1
#     return plan
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: count the blocks (★★, 10 minutes)
#
# Several rows were forked from one prompt of `shared` tokens, and each has written on since. Row $i$ now has `lengths[i]` tokens, more
# than the prompt. How many blocks of $b$ positions do they hold together?

# %% tags=["exercise"]
def blocks_of(lengths, shared, b):
    """Number of different blocks of rows with `lengths`, all forked from `shared` tokens."""
    return None  # your code

# %% tags=["exercise-check"]
def count(lengths, shared, b):
    """What the cache itself says."""
    cache = PagedKVCache(1, len(lengths), 1, 64, 1, block=b)

    def grow(row, n):
        part = cache.rows(row, row + 1)
        part.append(0, torch.zeros(1, 1, n, 1), torch.zeros(1, 1, n, 1))
        part.advance(n)

    grow(0, shared)
    for row in range(1, len(lengths)):
        cache.fork(0, row)
    for row, length in enumerate(lengths):
        grow(row, length - shared)
    return cache.used


answer = blocks_of([7, 9, 12], 6, 4)
if answer is None:
    print("Hint: which blocks of the prompt will never be written to again?")
else:
    wrong = "a partly filled block is copied by whoever writes into it"
    for case in (([7, 9, 12], 6, 4), ([9, 9], 8, 4), ([20, 17, 30], 16, 16), ([5, 5], 3, 8)):
        truth, said = count(*case), blocks_of(*case)
        assert said == truth, f"{case}: the cache holds {truth} blocks, you say {said}: {wrong}"
    print("Right: what is full is shared for good, what is not is soon one's own.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `shared // b` blocks are full. Row $i$ has $\lceil \ell_i / b \rceil$ blocks in all.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def blocks_of(lengths, shared, b):
#     common = shared // b
#     return common + sum(-(-length // b) - common for length in lengths)
# ```
#
# </details>
# <details><summary>Wrong: shares the last block of the prompt</summary>
#
# After the first write the rows differ inside that block, so each needs its own. It was common only until then.
#
# ```python
# def blocks_of(lengths, shared, b):
#     common = -(-shared // b)
#     return common + sum(-(-length // b) - common for length in lengths)
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * Schedule tokens, not requests: after every step who is done leaves, and who waits comes in.
# * When everybody waits, throughput gains $\mathbb{E}[\max] / \mathbb{E}[\ell]$, whatever the machine: 1 for equal lengths, 1.7 for 16 to 256 and eight rows.
# * When nobody waits, throughput gains nothing and latency does. Lengths, rows and load belong beside every such number.
# * Noise of one's own and a length per row make a request's tokens independent of its neighbours.
# * Memory in blocks wastes less than a block per row, and shared beginnings are stored once, until somebody writes.
#
# ## Where this stands
#
# Iteration-level scheduling is due to Orca (Yu et al., [OSDI 2022](https://www.usenix.org/conference/osdi22/presentation/yu)), which reports 36.9 times the throughput of FasterTransformer on GPT-3 175B at
# equal latency; its *selective batching* runs attention request by request and everything else in one batch. Flover (Yao et al.,
# [2305.13484](https://arxiv.org/abs/2305.13484)) reports more than 11 times on GPT and 16 times on LLaMA against set-ups of FasterTransformer. Such factors contain the kernels, the
# lengths and the load of each comparison; the part that scheduling has in them is the formula above. Blocks, tables and copy-on-write for
# caches are from vLLM (Kwon et al., [2309.06180](https://arxiv.org/abs/2309.06180)), which reports two to four times the throughput of earlier servers at equal latency. It also
# evicts requests when the pool is exhausted and computes them again later, which our cache leaves to its caller: it says that no block is free.
