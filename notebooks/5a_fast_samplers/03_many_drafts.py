# %% [markdown]
# # Many drafts: how often can one of several guesses be kept?
#
# | | |
# | --- | --- |
# | **You will build** | the best possible judge of several guesses, three simple ones, and a sampler that uses them |
# | **Time** | half a minute on a laptop, without a GPU |
# | **You need** | speculative sampling as in the tour; no knowledge of optimal transport |
# | **Of the five nouns** | sampler |
# | **Systems** | SpecTr (K-SEQ), optimal multi-draft speculative decoding |
#
# Speculative sampling asks a cheap draft model for a guess and keeps it with a certain probability, so that what comes out has
# exactly the distribution of the large model, the target. A refused guess costs a pass of the target. So why make only one guess? Let
# the draft offer several, and keep whichever will do. But *how* do we choose among them without bending the distribution, and how much
# can be gained at best? The second question has a beautiful answer, and it will judge every answer to the first.

# %% tags=["exercise-setup"]
import itertools
import math
import time
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.optimize import linprog

from minimal import checkpoints, data, recipes, viz
from minimal.ar.histogram import Histogram
from minimal.samplers.cached import sample_cached
from minimal.samplers.logits import inverse_cdf, probabilities
from minimal.samplers.multi_draft import RULES, k_seq, sample_multi_draft
from minimal.samplers.optimal_transport import (
    best_coupling,
    draft_sets,
    k_seq_acceptance,
    k_seq_scale,
    membership,
    normalised,
    optimal_acceptance,
    recursive_acceptance,
    smallest_cut,
)
from minimal.statistics import chi_square, total_variation

viz.style()
torch.set_num_threads(1)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


# %% [markdown]
# ## The question
#
# The target is the pixel transformer of the tour, the draft a network of one layer. For every pixel of an image that the target draws,
# both give a distribution over 17 levels of grey: $p$ and $q$, each of shape $(17,)$. One guess $x \sim q$ is kept with probability
#
# $$\sum_x \min(p(x), q(x)) = 1 - \mathrm{TV}(p, q),$$
#
# and no way of judging a single guess keeps more. On the left an image, in the middle that chance for each of its pixels, and on the
# right what this chapter is about: the best that could be done with four guesses.

# %%
target, draft = checkpoints.load("digits_ar"), checkpoints.load("digits_draft")
tokenizer = recipes.pixel_tokenizer(data.load("digits", "train"))


@torch.inference_mode()
def forecasts(n, temperature=1.0, seed=0):
    """`n` images of the target: tokens y (n, 64), and p and q (n, 64, 17) for each pixel."""
    labels = torch.arange(n) % 10
    options = dict(cond=labels, temperature=temperature, generator=seeded(seed))
    y = sample_cached(target, n, **options).tokens
    p, q = (
        probabilities(net.logits(y, labels), temperature=temperature).double()
        for net in (target, draft)
    )
    return y, p, q


y, p, q = forecasts(100)
one = torch.minimum(p, q).sum(-1)
best = optimal_acceptance(p, q, 4)  # we shall see what is inside
print(f"kept on average: one guess {one.mean():.2f}, at best one of four {best.mean():.2f}")

# %% mystnb={"figure": {"caption": "Chance that a guess for a pixel is kept. Refusals sit at the edges of strokes; with four guesses nearly all of them could be avoided.", "name": "fig-5a-03-question"}, "image": {"alt": "A drawn digit beside two heat maps of its pixels: with one guess many pixels of the stroke have a chance below one half, with four guesses nearly all are close to one."}} tags=["hide-input"]
i = 85
figure, axes = plt.subplots(1, 3, figsize=(7.6, 2.5), width_ratios=(1, 1, 1))
viz.image_grid(tokenizer.decode(y[i : i + 1]), ncol=1, ax=axes[0])
axes[0].set_title("a drawn 5")
for ax, chance, title in ((axes[1], one, "one guess"), (axes[2], best, "one of four, at best")):
    shown = ax.imshow(chance[i].view(8, 8), cmap="magma", vmin=0, vmax=1)
    ax.set_title(f"{title}: {chance[i].mean():.2f}")
    viz.bare(ax)
figure.colorbar(shown, ax=axes[1:].tolist(), label="chance to be kept");

# %% [markdown]
# ## A transport problem
#
# Take three tokens, a, b and c, and two guesses drawn independently from $q$. Only the *set* of guesses matters, since a guess
# that came twice is no better than one that came once. There are six sets $s$, with probabilities $Q(s)$. We look for a joint
# distribution of the set and the output, $\pi(s, y)$: six rows, three columns. Its row sums must be $Q$, since that is how guesses
# come. Its column sums must be $p$, since that is what the target demands. And as much of it as possible should lie on cells with
# $y \in s$. Mass is moved from rows to columns, and a cell costs 1 if its token is not in its set. This is *optimal transport with
# membership cost*. What is moved inside the sets solves a linear program:
#
# $$\max_{\pi \ge 0} \sum_s \sum_{y \in s} \pi(s, y) \quad \text{with} \quad \sum_{y \in s} \pi(s, y) \le Q(s), \quad \sum_{s \ni y} \pi(s, y) \le p(y).$$

# %%
p3 = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
q3 = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)

sets = {}  # Q(s)
for pair in itertools.product(range(3), repeat=2):
    s = frozenset(pair)
    sets[s] = sets.get(s, 0) + q3[list(pair)].prod().item()
cells = [(s, x) for s in sets for x in s]  # the cells that cost nothing
rows = [[float(cell[0] == s) for cell in cells] for s in sets]
columns = [[float(cell[1] == x) for cell in cells] for x in range(3)]
bounds = [*sets.values(), *p3.tolist()]
solution = linprog([-1] * len(cells), A_ub=rows + columns, b_ub=bounds)
kept_at_best = -solution.fun

Q = draft_sets(q3, 2)  # the package: (8,), a set is a number whose bit x stands for token x
plan = best_coupling(p3, Q)  # (8, 3), filled up with what lies outside the sets
assert abs(kept_at_best - membership(plan)) < 1e-9
print(f"one guess {torch.minimum(p3, q3).sum():.2f}, one of two at best {kept_at_best:.2f}")

# %% mystnb={"figure": {"caption": "The best coupling of two guesses (rows) and one output (columns). Blue mass lies inside its set: there the output is one of the guesses. Amber mass had to be moved outside, all of it to c, of which the draft offers too little.", "name": "fig-5a-03-coupling"}, "image": {"alt": "A table with six rows, the sets of guesses, and three columns, the tokens. Blue squares inside the sets carry 0.86 of the mass, amber squares in column c carry the other 0.14."}} tags=["hide-input"]
order = [0b001, 0b010, 0b100, 0b011, 0b101, 0b110]
name = lambda s: "{" + ", ".join("abc"[x] for x in range(3) if s >> x & 1) + "}"
figure, ax = plt.subplots(figsize=(5.4, 4.2))
for r, s in enumerate(order):
    for x in range(3):
        inside, mass = s >> x & 1, plan[s, x].item()
        cell = dict(fc=viz.PALE if inside else "white", ec=viz.GREY, lw=0.6, zorder=1)
        ax.add_patch(plt.Rectangle((x - 0.5, r - 0.5), 1, 1, **cell))
        if mass > 1e-9:
            side = (mass / 0.35) ** 0.5
            colour = viz.BLUE if inside else viz.AMBER
            corner, wide = (x - side / 2, r - side / 2), mass > 0.08
            ax.add_patch(plt.Rectangle(corner, side, side, fc=colour, zorder=2))
            text = dict(ha="center" if wide else "left", va="center", fontsize=7.5, zorder=3)
            text["color"] = "white" if wide and inside else viz.INK
            ax.text(x if wide else x + side / 2 + 0.04, r, f"{mass:.2f}", **text)
    ax.text(2.65, r, f"Q = {Q[s]:.2f}", va="center")
for x in range(3):
    ax.text(x, 5.75, f"p = {p3[x]:.1f}", ha="center", va="center")
ax.set(xlim=(-0.6, 3.5), ylim=(6.0, -0.6), xlabel="", ylabel="the two guesses")
ax.set_xticks(range(3), list("abc"))
ax.xaxis.tick_top()
ax.set_yticks(range(6), [name(s) for s in order])
ax.set_title(f"output: inside the set with probability {membership(plan):.2f}", pad=22)
ax.spines[:].set_visible(False)
ax.grid(False);

# %% [markdown]
# A plan is also a judge: when the guesses are $s$, draw the output from row $s$. It cannot be beaten. But with $V$ tokens and $k$
# guesses there are about $V^k / k!$ rows, and a linear program for every token of a vocabulary of thousands is out of the question.
# Can we at least know *how good* the best judge would be?
#
# ## The dual: a minimum over sets of tokens
#
# Read the program as water in pipes. A source feeds each set with at most $Q(s)$, each set feeds its own tokens, and each token drains
# at most $p(y)$. What flows through is what is kept. The most that can flow equals the smallest total capacity of pipes whose removal
# separates source and drain: *maximal flow is minimal cut*.

# %% mystnb={"figure": {"caption": "The same coupling as a flow; the width of a pipe is what runs through it, numbers are capacities. Cutting the red pipes stops all water. Tokens a and b drain everything they can, and so do the sets that contain c.", "name": "fig-5a-03-flow"}, "image": {"alt": "A network from a source through six sets and three tokens to a drain. The cut, in red, goes through the pipes to the sets that contain c and through the drains of tokens a and b; their capacities add up to 0.86."}} tags=["hide-input"]
value, H = smallest_cut(p3, Q)
figure, ax = plt.subplots(figsize=(8.2, 3.9))
place = {s: (1.1, 5 - 1.0 * r) for r, s in enumerate(order)}
drain = {x: (2.4, 4.5 - 2.0 * x) for x in range(3)}
source, sink = (0, 2.5), (3.5, 2.5)


def pipe(a, b, flow, cut, label=None, at=0.6):
    style = dict(color=viz.RED if cut else viz.SKY, solid_capstyle="butt", zorder=1)
    ax.plot(*zip(a, b), lw=0.6 + 26 * flow, **style)
    if label:
        x, y = a[0] + at * (b[0] - a[0]), a[1] + at * (b[1] - a[1])
        box = dict(fc="white", ec="none", pad=0.8)
        ax.text(x, y, label, ha="center", va="center", fontsize=7.5, bbox=box, zorder=3)


for s in order:
    inside = [x for x in range(3) if s >> x & 1]
    through = plan[s, inside].sum().item()
    pipe(source, place[s], through, s & ~H, f"{Q[s]:.2f}")
    for x in inside:
        pipe(place[s], drain[x], plan[s, x].item(), False)
for x in range(3):
    arriving = sum(plan[s, x].item() for s in order if s >> x & 1)
    pipe(drain[x], sink, arriving, H >> x & 1, f"{p3[x]:.2f}", 0.45)
dots = [(source, "source"), (sink, "drain"), *((place[s], name(s)) for s in order)]
for spot, text in dots + [(drain[x], "abc"[x]) for x in range(3)]:
    box = dict(boxstyle="round,pad=0.35", fc="white", ec=viz.INK, lw=0.8)
    ax.text(*spot, text, ha="center", va="center", fontsize=8.5, bbox=box, zorder=4)
ax.set(xlim=(-0.3, 3.8), ylim=(-0.6, 5.6))
ax.set_title(f"H = {name(H)}: the red pipes carry {value:.2f}")
viz.bare(ax);

# %% [markdown]
# Which cuts are there? Choose the tokens $H$ that stay connected to the source. Their drains must be cut: $P(H) = \sum_{y \in H} p(y)$.
# And every set with a token outside $H$ must lose its supply. What is left are the sets *inside* $H$, with total probability $Q(H)$, the
# chance that *all* guesses lie in $H$. So the cut has capacity $P(H) + 1 - Q(H)$, and the best acceptance is
#
# $$\alpha^* = 1 + \min_{H} \bigl( P(H) - Q(H) \bigr).$$
#
# In words: if the draft says, more often than the target would like, that everything comes from $H$, then the difference is lost,
# whatever the judge does. For one guess this is $1 - \max_H (q(H) - p(H))$, which is $1 - \mathrm{TV}$. For $k$ independent guesses
# $Q(H) = q(H)^k$. The program has become a search through subsets:

# %%
subsets = [list(H) for r in range(4) for H in itertools.combinations(range(3), r)]
alpha = 1 + min((p3[H].sum() - q3[H].sum() ** 2).item() for H in subsets)
assert abs(alpha - kept_at_best) < 1e-9
print(f"{alpha:.2f} again, from {len(subsets)} subsets")

# %% [markdown]
# $2^V$ subsets are still too many. But to make $q(H)^k$ large while $P(H)$ stays small, take the tokens with the largest $q/p$ first:
# the best $H$ is a prefix of that order, and $V$ candidates are enough. Three lines, for any vocabulary:

# %%
def best_acceptance(p, q, k):
    order = (q / p).argsort(descending=True)
    P, Q = p[order].cumsum(0), q[order].cumsum(0) ** k
    return 1 + min(0, (P - Q).min().item())


def random_pair(V, rng, related):
    """Target and draft (V,): two unrelated distributions, or a draft that is half right."""
    p, q = (torch.from_numpy(rng.dirichlet([0.5] * V)) for _ in range(2))
    return p, (p + q) / 2 if related else q


rng, worst = np.random.default_rng(0), 0.0
for trial in range(60):
    V, k = int(rng.integers(3, 9)), 2 + trial % 2
    a, b = random_pair(V, rng, trial % 2)
    for scheme in ("independent", "distinct", "greedy"):
        law = draft_sets(b, k, scheme)
        program, cut = membership(best_coupling(a, law)), smallest_cut(a, law)[0]
        formula = optimal_acceptance(a, b, k, scheme).item()
        worst = max(worst, abs(program - cut), abs(cut - formula))
    assert abs(best_acceptance(a, b, k) - optimal_acceptance(a, b, k).item()) < 1e-12
assert worst < 1e-9
print("linear program = subsets = formula, up to 8 tokens: differences below 1e-9")

# %% [markdown]
# The loop also tried two other ways of making guesses, *distinct* and *greedy* ones, to which we come below.
#
# ## K-SEQ: blow up the draft
#
# Now for judges that one can afford. Here is the one of the SpecTr paper. Take the guesses in order and keep $x$ with probability
#
# $$\min\Bigl(1, \frac{p(x)}{\rho\, q(x)}\Bigr), \qquad 1 \le \rho \le k.$$
#
# With $\rho = 1$ we would ask each guess as in speculative sampling, and together they would hand out more of some tokens than $p$ has. With
# $\rho = k$ we are surely safe, and needlessly strict. A single guess is kept with probability $\beta = \sum_x \min(q(x), p(x)/\rho)$, one
# of $k$ with $1 - (1 - \beta)^k$. Where $p(x) < \rho q(x)$ a single guess hands out $p(x)/\rho$, all together
# $\frac{p(x)}{\rho} \cdot \frac{1 - (1 - \beta)^k}{\beta}$, and that must not exceed $p(x)$:
#
# $$1 - (1 - \beta)^k \le \rho \beta.$$
#
# The left side falls with $\rho$, the right side, $\rho\beta = \sum_x \min(\rho q(x), p(x))$, rises. The best scale is where they meet, and
# bisection finds it.

# %%
def scale(p, q, k):
    """The rho (a number) at which k guesses from q (V,) hand out just what p (V,) has."""
    low, high = 1.0, float(k)
    for _ in range(32):
        rho = (low + high) / 2
        beta = torch.minimum(q, p / rho).sum().item()
        if 1 - (1 - beta) ** k <= rho * beta:  # safe: try smaller
            high = rho
        else:
            low = rho
    return high


rho = scale(p3, q3, 2)
accepted = torch.minimum(rho * q3, p3).sum().item()
assert abs(rho - k_seq_scale(p3, q3, 2).item()) < 1e-8
assert abs(accepted - k_seq_acceptance(p3, q3, 2).item()) < 1e-8
print(f"rho = {rho:.3f}; kept: one guess 0.70, K-SEQ {accepted:.3f}, at best {alpha:.3f}")

# %% [markdown]
# At the meeting point something pretty happens. The guesses hand out $\min(\rho q, p)$ in total, so what is left for a repair is
# $(p - \rho q)_+$. That is speculative sampling with the draft $\rho q$, which sums to more than one! Many guesses act like one guess from
# an *inflated* draft, and $\rho$ says how many guesses they are worth. Below, for one of the hard pixels above.

# %%
hard = (one[i] > 0.35) & (one[i] < 0.6)
j = int(torch.where(hard, q[i].amax(-1), 2.0).argmin())  # a hard one with an undecided draft
pj, qj = p[i, j], q[i, j]
rho4 = scale(pj, qj, 4)
at_rho = torch.minimum(rho4 * qj, pj)
print(f"pixel {j}: four guesses are worth {rho4:.2f}; one is kept: {at_rho.sum():.2f}")

# %% mystnb={"figure": {"caption": "K-SEQ for one pixel and four guesses. Left: what the guesses hand out falls with the scale, what p has for them rises; left of the crossing they would hand out more than there is. Right: the picture of speculative sampling, with the draft inflated by rho. Grey is kept, blue is what a repair draws from; together they are p.", "name": "fig-5a-03-kseq"}, "image": {"alt": "Left, two curves over the scale rho cross once; the region left of the crossing is shaded: there more would be handed out than there is. Right, bars of the target distribution split into a kept grey part and a repaired blue part, with the hatched surplus of the inflated draft above."}} tags=["hide-input"]
figure, (left, right) = plt.subplots(1, 2, figsize=(8.8, 3.0), width_ratios=(1, 1.5))
scales = torch.linspace(1, 4, 100, dtype=torch.float64)
beta = torch.minimum(qj, pj / scales[:, None]).sum(-1)
left.axvspan(1, rho4, color=viz.PALE)
left.plot(scales, 1 - (1 - beta) ** 4, color=viz.RED)
left.plot(scales, scales * beta, color=viz.BLUE)
left.plot(rho4, torch.minimum(rho4 * qj, pj).sum(), "o", color=viz.INK, ms=5, zorder=4)
low_end = (1 - (1 - beta) ** 4)[-1] - 0.03
left.text(3.95, low_end, "handed out", color=viz.RED, ha="right", va="top")
left.text(3.1, (scales * beta)[70] + 0.02, "available", color=viz.BLUE, ha="right", va="bottom")
left.text(1 + (rho4 - 1) / 2, 0.36, "more than there is", ha="center", va="bottom")
left.set(xlabel="scale ρ", ylabel="probability", xlim=(1, 4), ylim=(0.33, 1.05))
left.set_title(f"they meet at ρ = {rho4:.2f}")
grey = range(17)
right.bar(grey, at_rho, color="0.75", label="kept: min(p, ρ q)")
rest = (pj - rho4 * qj).clamp(min=0)
right.bar(grey, rest, bottom=at_rho, color=viz.BLUE, label="repair: p − ρ q")
surplus = dict(fc="none", ec=viz.AMBER, hatch="///", label="refused: ρ q − p")
right.bar(grey, (rho4 * qj - pj).clamp(min=0), bottom=at_rho, **surplus)
right.set(xlabel="grey level", xticks=range(0, 17, 4), title=f"kept: {at_rho.sum():.2f}")
right.legend();

# %% [markdown]
# The whole judge is a loop and a repair. It uses the uniform numbers `coins` $(k,)$ and `repair`:

# %%
def choose(p, q, guesses, coins, repair):
    rho = scale(p, q, len(guesses))
    for x, u in zip(guesses, coins):
        if u * rho * q[x] < p[x]:
            return x
    left = (p - rho * q).clamp(min=0)
    return inverse_cdf(left, repair) if left.sum() > 0 else inverse_cdf(p, repair)


noise = torch.rand(200, 9, generator=seeded(0)).double()
guesses = inverse_cdf(qj.expand(200, 4, -1).contiguous(), noise[:, :4])  # (200, 4)
mine = [choose(pj, qj, guesses[r], noise[r, 4:8], noise[r, 8]) for r in range(200)]
everyone = torch.ones(200, 4, dtype=torch.bool)
several = (x.expand(200, -1) for x in (pj, qj))
package = k_seq(*several, guesses, everyone, noise[:, 4:8], noise[:, 8])  # all rows at once
assert mine == package.tolist()

# %% [markdown]
# Is it exact? Draw 100,000 outputs and test them against $p$; then do it with the scale that is too small, $\rho = 1$, which looks so
# natural: "ask each guess as usual, and repair as usual if all are refused".

# %%
def outputs(rho, n=100_000, k=4):
    noise = torch.rand(n, 2 * k + 1, generator=seeded(1)).double()
    guesses = inverse_cdf(qj.expand(n, k, -1).contiguous(), noise[:, :k])
    keep = noise[:, k:-1] * rho * qj[guesses] < pj[guesses]
    first = guesses.gather(1, keep.int().argmax(1, keepdim=True))[:, 0]
    left = (pj - rho * qj).clamp(min=0).repeat(n, 1)
    repaired = inverse_cdf(left, noise[:, -1])
    return torch.where(keep.any(1), first, repaired), keep.any(1).double().mean().item()


for label, value in (("K-SEQ", rho4), ("rho = 1", 1.0)):
    drawn, rate = outputs(value)
    test = chi_square(drawn.bincount(minlength=17), pj)
    verdict = "passes" if test.p_value > 0.01 else "fails"
    print(f"{label:8s} keeps {rate:.3f} and {verdict} the chi-square test")
    assert (test.p_value > 0.001) if label == "K-SEQ" else (test.p_value < 1e-6)
print(f"theory for K-SEQ: {at_rho.sum():.3f}")
assert abs(outputs(rho4)[1] - at_rho.sum().item()) < 0.005

# %% [markdown]
# The hasty judge keeps more, and it cheats. How far is the honest one from the best? The paper proves that K-SEQ keeps at least
# $1 - (1 - 1/k)^k$ of the optimum: 3/4 for two guesses, 63 % for ever so many. Here are a thousand random pairs, half of them unrelated,
# half with a draft that is half right.

# %%
rng = np.random.default_rng(1)
instances = [random_pair(int(rng.integers(2, 18)), rng, n % 2) for n in range(1000)]
share = {}
for k in (2, 4, 8):
    reached = [k_seq_acceptance(a, b, k).item() for a, b in instances]
    optimum = [optimal_acceptance(a, b, k).item() for a, b in instances]
    share[k] = np.array(reached) / np.array(optimum)
    bound = 1 - (1 - 1 / k) ** k
    assert (share[k] >= bound - 1e-9).all() and (share[k] <= 1 + 1e-9).all()
    worst, mean = share[k].min(), share[k].mean()
    print(f"k = {k}: promised {bound:.3f}, worst {worst:.3f}, mean {mean:.3f}")

# %% mystnb={"figure": {"caption": "What K-SEQ keeps, as a share of the optimum, on a thousand random pairs for each number of guesses. The red lines are the guarantee; ordinary pairs stay far above it.", "name": "fig-5a-03-guarantee"}, "image": {"alt": "Three histograms of the share of the optimum that K-SEQ reaches, for two, four and eight guesses. All mass lies above 0.8, the guarantees are at 0.75, 0.68 and 0.66."}} tags=["hide-input"]
axes = plt.subplots(1, 3, figsize=(8.4, 2.3))[1]
for ax, k in zip(axes, share):
    ax.hist(share[k], bins=np.linspace(0.6, 1, 41), color=viz.BLUE)
    bound = 1 - (1 - 1 / k) ** k
    ax.axvline(bound, color=viz.RED, lw=1.5)
    ax.text(bound + 0.008, ax.get_ylim()[1] * 0.9, "promised", color=viz.RED, fontsize=8)
    ax.set(title=f"{k} guesses", xlabel="share of the optimum", xlim=(0.6, 1.005))
axes[0].set_ylabel("pairs");

# %% [markdown]
# ## Other guesses, other judges
#
# *Recursive rejection* is the older idea: judge the first guess as in speculative sampling. If it is refused, the output must come
# from $(p - q)_+$; take that, normalised, as the new target for the second guess, and so on. As a formula it is its own description:

# %%
def recursive(p, q, k):
    keep = torch.minimum(p, q).sum()
    after = normalised((p - q).clamp(min=0), p)
    return keep if k == 1 else keep + (1 - keep) * recursive(after, q, k - 1)


assert abs(recursive(p3, q3, 2) - recursive_acceptance(p3, q3, 2)) < 1e-12
print(f"a, b, c: recursive rejection {recursive(p3, q3, 2):.3f}, K-SEQ {accepted:.3f}")

# %% [markdown]
# But why should guesses be independent at all? A refused guess that comes a second time is refused again. We may choose the guesses
# as we like, if the judge knows how they were made.
#
# * **distinct**: draw without replacement. Recursive rejection goes through, with $q$ renormalised after each removal.
# * **greedy**: take the $k - 1$ most likely tokens of $q$, call them $A$, without any dice; draw only the last guess, from the rest of $q$,
#   which we call $q'$. Judge that one by $\min(1, p/q')$, and repair with $(p - q')_+$ as usual. Since $q' = 0$ on $A$, repairs land there
#   often, and a repair that lands on a guess *is* a kept guess. One coin, and the subset formula says that no judge of these guesses can
#   do better:
#
# $$\alpha^* = p(A) + \sum_{x \notin A} \min(p(x), q'(x)).$$
#
# Now the comparison on real contexts: every pixel of 20 images, at two temperatures. The table counts *refusals*, in per cent of all
# pixels, since each of them costs a pass.

# %%
best_of = lambda scheme: partial(optimal_acceptance, scheme=scheme)
judges = {
    "independent, recursive": recursive_acceptance,
    "independent, K-SEQ": k_seq_acceptance,
    "independent, best possible": best_of("independent"),
    "distinct, recursive": partial(recursive_acceptance, distinct=True),
    "distinct, best possible": best_of("distinct"),
    "greedy, one coin (best)": best_of("greedy"),
}
cases = [(temperature, k) for temperature in (1.0, 0.5) for k in (2, 4)]
at = {}
contexts = {t: [x.flatten(0, 1) for x in forecasts(20, t)[1:]] for t in (1.0, 0.5)}
for temperature, pair in contexts.items():  # p and q, (1280, 17) each
    for k in (1, 2, 4):
        for label, judge in judges.items():
            at[temperature, k, label] = judge(*pair, k)
refused = {key: 100 * (1 - value.mean().item()) for key, value in at.items()}

print(f"{'% refused':28s}" + "".join(f"{f'T={t:g} k={k}':>11s}" for t, k in cases))
single = [refused[t, 1, "independent, K-SEQ"] for t, _ in cases]
print(f"{'one guess':28s}" + "".join(f"{value:11.1f}" for value in single))
for label in judges:
    print(f"{label:28s}" + "".join(f"{refused[t, k, label]:11.1f}" for t, k in cases))

# %% mystnb={"figure": {"caption": "Refusals with four guesses. Filled: rules that one can run. Open: the limit for that way of guessing. At low temperature the simple rules for distinct and for greedy guesses beat the limit of independent ones.", "name": "fig-5a-03-schemes"}, "image": {"alt": "Two dot plots of refused guesses for six combinations of guessing and judging, at temperatures 1 and one half. At one half, greedy and distinct guesses lie left of the dashed line that marks the best possible rule for independent guesses."}} tags=["hide-input"]
figure, axes = plt.subplots(1, 2, figsize=(8.6, 2.6), sharey=True)
colours = {"independent": viz.BLUE, "distinct": viz.GREEN, "greedy": viz.AMBER}
for ax, temperature in zip(axes, (1.0, 0.5)):
    limit = refused[temperature, 4, "independent, best possible"]
    ax.axvline(limit, color=viz.BLUE, lw=1, ls="--")
    for row, label in enumerate(judges):
        value, colour = refused[temperature, 4, label], colours[label.split(",")[0]]
        ax.hlines(row, 0, value, color=viz.PALE, lw=2)
        fill = "w" if "possible" in label else colour
        ax.plot(value, row, "o", ms=8, mec=colour, mew=2, mfc=fill)
        box = dict(fc="white", ec="none", pad=0.6)
        ax.text(value + 0.4, row, f"{value:.1f}", va="center", fontsize=8, bbox=box)
    ax.set(xlabel="% refused, four guesses", xlim=(0, 12.8))
    ax.set_title(f"temperature {temperature:g}")
    ax.set_yticks(range(len(judges)), list(judges))
axes[0].set_ylim(len(judges) - 0.5, -0.5);

# %% [markdown]
# At temperature 1 the best judge of independent guesses would halve the refusals of K-SEQ, if only one could afford a linear program
# per pixel. And here is the surprise. At temperature 0.5 it would not even be worth it: with four guesses, two simple rules, for
# distinct and for greedy guesses, beat the best rule that could *ever* be found for independent ones. A confident draft that
# guesses independently repeats itself, and no judge can help that. How guesses are made matters as much as how they are judged.
# Look at it context by context:

# %% mystnb={"figure": {"caption": "Each dot is a pixel with temperature 1 and two guesses: what greedy guesses gain over the best possible judge of independent ones, against the uncertainty of the draft. A draft with a few favourites gains from going down its list, one that knows nothing gains from throwing dice.", "name": "fig-5a-03-entropy"}, "image": {"alt": "A scatter plot over the entropy of the draft. The mean lies above zero for entropies up to about three bits and falls clearly below it towards four bits."}} tags=["hide-input"]
guessing = contexts[1.0][1]
entropy = -(guessing * guessing.clamp(min=1e-12).log2()).sum(-1)
gain = at[1.0, 2, "greedy, one coin (best)"] - at[1.0, 2, "independent, best possible"]
figure, ax = plt.subplots(figsize=(5.8, 2.9))
ax.axhline(0, color=viz.INK, lw=0.8)
ax.scatter(entropy, gain, s=7, color=viz.BLUE, alpha=0.35, lw=0)
edges = torch.linspace(0, 4, 9)
middle = [gain[(entropy >= a) & (entropy < b)].mean() for a, b in zip(edges, edges[1:])]
ax.plot((edges[1:] + edges[:-1]) / 2, middle, "o-", color=viz.AMBER, label="mean")
ax.set(xlabel="entropy of the draft, in bits", ylabel="greedy − best independent")
ax.legend(loc="upper right");

# %%
for k in (2, 4):
    limit = refused[0.5, k, "independent, best possible"]
    assert refused[0.5, k, "greedy, one coin (best)"] < limit
    assert refused[0.5, k, "distinct, recursive"] < limit + 0.3
    for t in (1.0, 0.5):
        row = lambda label: refused[t, k, label]
        assert row("distinct, best possible") < row("independent, best possible")
        assert row("independent, best possible") < row("independent, K-SEQ")
        assert row("independent, K-SEQ") < row("independent, recursive")
sure, unsure = gain[entropy < 2.5].mean(), gain[entropy > 3.5].mean()
print(f"greedy guesses gain {sure:+.3f} below 2.5 bits, {unsure:+.3f} above 3.5 bits")
assert sure > 0.01 and unsure < -0.01

# %% [markdown]
# ## Chains: from one token to many
#
# One pass of the target can judge more than one position. SpecTr draws $k$ *chains* of $L$ tokens each, and the target runs over all of
# them at once. Then we walk: judge the $k$ first tokens; chains whose first token is the output stay *alive*, the others are dead. Judge
# the second tokens of the living ones, with $k$ now their number, and so on, until no chain is left. As in speculative sampling every
# round also brings one token that the target drew itself.

# %%
@torch.inference_mode()
def draw_with_chains(k, L, label, noise):
    """One image, without caches: its tokens, and for each round (drafts, outputs, alive)."""
    image, rounds, labels = [], [], label.expand(k)
    blank = torch.zeros(k, 1, dtype=torch.long)  # row j of the logits never reads token j
    while len(image) < 64:
        start, u, q = len(image), noise[len(image) :], []
        chains = torch.tensor([image] * k, dtype=torch.long)
        for i in range(L):  # guess
            logits = draft.logits(torch.cat((chains, blank), 1), labels)[:, -1]
            q.append(probabilities(logits))
            chains = torch.cat((chains, inverse_cdf(q[i], u[i, :k])[:, None]), 1)
        logits = target.logits(torch.cat((chains, blank), 1), labels)  # check, all at once
        p = probabilities(logits)[:, start:]  # (k, L + 1, 17)
        alive = [list(range(k))]
        for i in range(L):
            c = alive[i][0]  # all living chains share their past
            guesses, coins = chains[alive[i], start + i], u[i, [k + a for a in alive[i]]]
            image.append(int(choose(p[c, i], q[i][c], guesses, coins, u[i, -1])))
            alive.append([a for a in alive[i] if chains[a, start + i] == image[-1]])
            if not alive[-1]:
                break
        else:
            image.append(int(inverse_cdf(p[alive[L][0], L], u[L, -1])))
        rounds.append((chains[:, start:], image[start:], alive))
    return torch.tensor(image[:64]), rounds


three = torch.tensor([3])
drawn, rounds = draw_with_chains(4, 4, three, torch.rand(64 + 5, 9, generator=seeded(8)))
package = sample_multi_draft(target, draft, 1, k=4, depth=4, cond=three, generator=seeded(8))
assert torch.equal(package.tokens[0], drawn)
assert package.trace.forwards["target"] == len(rounds)
print(f"{len(rounds)} passes of the target instead of 64, the same image as the package draws")

# %% mystnb={"figure": {"caption": "Three rounds of that drawing. Each row is a chain of four guessed pixels. Blue: alive after the judgement; red: died here; faded: never looked at. Below them the output; amber marks what the target drew itself.", "name": "fig-5a-03-chains"}, "image": {"alt": "Three panels, each with four rows of four grey pixels and an output row below. Blue frames mark living chains, red frames where chains die, and the output row is one pixel longer than the chains that survived."}} tags=["hide-input"]
lengths = [len(out) for _, out, _ in rounds]
chosen = []  # rounds in which something happens: a death in the middle, a long survival
for wanted in (5, 3, 2):
    deaths = lambda r: len({len(a) for a in rounds[r][2]})
    fitting = [r for r in range(len(rounds)) if lengths[r] == wanted and r not in chosen]
    chosen.append(max(fitting, key=deaths))
figure, axes = plt.subplots(1, 3, figsize=(8.4, 2.9))
for ax, r in zip(axes, sorted(chosen)):
    drafts, out, alive = rounds[r]

    def pixel(x, y, token, edge, alpha=1.0):
        style = dict(fc=str(token / 16), ec=edge, lw=2.6, alpha=alpha)
        ax.add_patch(plt.Rectangle((x - 0.4, y - 0.4), 0.8, 0.8, **style))

    for c in range(4):
        for t in range(4):
            looked = t < len(alive) and c in alive[t]
            lives = looked and t + 1 < len(alive) and c in alive[t + 1]
            edge = viz.BLUE if lives else viz.RED if looked else "0.85"
            pixel(t, c, int(drafts[c, t]), edge, 1 if looked else 0.3)
    for t, token in enumerate(out):
        pixel(t, 4.4, token, viz.BLUE if t < len(out) - 1 else viz.AMBER)
    ax.set(xlim=(-0.6, 4.6), ylim=(5.0, -0.6), aspect="equal")
    ax.set_title(f"round {r + 1}: {len(out)} tokens")
    viz.bare(ax)
    ax.set_yticks([*range(4), 4.4], ["1", "2", "3", "4", "out"]);

# %% [markdown]
# The package's version does the same for many images in batches, with caches: chains are rows of the batch, and after a round the
# cache of every chain becomes a copy of the survivor's. Its `rule` may also be `"distinct"` or `"greedy"`: then the *first* tokens of
# the chains are chosen in that way, and each chain goes on by itself.
#
# ## Predict the passes, then count them
#
# First, is the target worth the trouble? A model that ignores what is there already would be easy to guess for. So compare it with the
# histogram of each pixel in each class, and ask how much its forecasts change, in total variation, when the pixels before are those of
# another image of the same class.

# %%
train, validation = data.load("digits", "train"), data.load("digits", "validation")
tokens, order = tokenizer.encode(validation.images), validation.labels.argsort(stable=True)
tokens, labels = tokens[order], validation.labels[order]
histogram = Histogram(tokenizer.encode(train.images), 17, train.labels, num_classes=10)
bits = [
    recipes.bits(net, tokenizer.encode, validation, 64)["bits_per_dim"]
    for net in (histogram, draft, target)
]
with torch.inference_mode():
    own, other = (probabilities(target.logits(x, labels)) for x in (tokens, tokens.roll(1, 0)))
sensitivity = total_variation(own, other).mean().item()
print("bits per pixel: histogram {:.2f}, draft {:.2f}, target {:.2f}".format(*bits))
print(f"another image's pixels change the target's forecast by {sensitivity:.2f}")
assert bits[2] < bits[1] < bits[0] and bits[2] < bits[0] - 0.15 and sensitivity > 0.15

# %% [markdown]
# Suppose we know the image that will come out. What remains random is which chains live, and that is a small Markov chain: from $m$
# living chains to $m'$, given the output token $y$ and the two forecasts $p, q$. So two ordinary passes over a finished image predict how
# many passes its drawing needs *on average*, without any speculation. For K-SEQ, the $i$-th living guess is the one accepted with
# probability $(1 - \beta)^{i - 1} \min(q(y), p(y)/\rho) / p(y)$; each guess before it was $y$ too with the chance $r$ that a refused guess
# is $y$, each guess behind it with chance $q(y)$.

# %%
def survivors(p, q, y, k):
    """Chances (n, 64, k + 1, k + 1): from m living chains (row) to m' (column), given y."""
    at_y = lambda x: x.gather(-1, y[..., None])
    table = torch.zeros(*y.shape, k + 1, k + 1, dtype=torch.float64)
    for m in range(1, k + 1):
        kept = torch.minimum(q, p / k_seq_scale(p, q, m))
        refuse = 1 - kept.sum(-1, keepdim=True)
        r = (at_y(q - kept) / refuse.clamp(min=1e-12)).clamp(0, 1)
        for i in range(m):  # guess i is accepted; count those that say the same
            count = torch.zeros(*y.shape, k + 1, dtype=torch.float64)
            count[..., 1] = 1
            for other in [r] * i + [at_y(q)] * (m - 1 - i):
                count = (1 - other) * count + other * count.roll(1, -1)
            table[..., m, :] += refuse**i * at_y(kept) / at_y(p) * count
    table[..., 0] = 1 - table[..., 1:].sum(-1)
    return table


def part_at_once(p, q, y, k):
    """The same for greedy guesses: from k chains to one, and then speculative sampling."""
    keep = lambda q: (torch.minimum(p, q) / p).gather(-1, y[..., None])[..., 0]
    table = torch.zeros(*y.shape, k + 1, k + 1, dtype=torch.float64)
    top = q.topk(k - 1, -1).indices
    caught = (top == y[..., None]).any(-1)
    table[..., 1, 1] = keep(q)
    table[..., k, 1] = torch.where(caught, 1, keep(normalised(q.scatter(-1, top, 0))))
    table[..., 0] = 1 - table[..., 1:].sum(-1)
    return table


def expected_passes(table, L):
    """Mean number of rounds (n,) until 64 tokens are there."""
    begins = torch.zeros(len(table), 64 + L + 1, dtype=torch.float64)  # a round begins at t
    begins[:, 0] = 1
    for t in range(64):
        alive = torch.zeros(len(table), table.shape[-1], dtype=torch.float64)
        alive[:, -1] = begins[:, t]
        for i in range(min(L, 64 - t)):
            alive = torch.einsum("nm,nmk->nk", alive, table[:, t + i])
            begins[:, t + i + 1] += alive[:, 0]
            alive[:, 0] = 0
        begins[:, min(t + L + 1, 64)] += alive.sum(-1)
    return begins[:, :64].sum(-1)


tables = {("k-seq", k): survivors(p, q, y, k) for k in (1, 2, 4, 8)}
tables |= {("greedy", k): part_at_once(p, q, y, k) for k in (2, 4)}
predicted = {
    (*key, L): expected_passes(table, L).mean().item() / 64
    for key, table in tables.items()
    for L in (1, 2, 3, 4, 6, 8, 12, 16)
}

# %%
n, labels = 60, torch.arange(60) % 10
runs = [("k-seq", k, 4) for k in (1, 2, 4, 8)] + [("k-seq", 4, 8), ("greedy", 4, 4)]
print("                 passes per pixel      tokens    positions    draft passes")
print("rule   k  L    predicted  measured   per pass    per pixel       per pixel")
for rule, k, L in runs:
    options = dict(k=k, depth=L, rule=rule, cond=labels, generator=seeded(1))
    trace = sample_multi_draft(target, draft, n, **options).trace
    passes, positions, drafting = (
        counter[network] / n / 64
        for counter, network in (
            (trace.rows, "target"),
            (trace.positions, "target"),
            (trace.rows, "draft"),
        )
    )
    print(f"{rule:6s} {k}  {L}{predicted[rule, k, L]:13.3f}{passes:10.3f}{1 / passes:11.2f}"
          f"{positions:13.1f}{drafting:16.2f}")
    assert abs(passes / predicted[rule, k, L] - 1) < 0.08  # sampling error: about 0.02
    assert passes < 0.45

# %% [markdown]
# Predicted and measured agree. Four chains of four get along with a sixth fewer passes than one chain, for three times its positions;
# the number of draft passes is $L$ a round, however many chains there are. Which shape is best, long or wide? That depends on what
# is scarce.

# %% mystnb={"figure": {"caption": "Predicted passes of the target against the positions it computes, both per pixel, for chains of 1 to 16 tokens (dots). A single chain cannot get below its refusals, however long; more chains can, and pay in positions.", "name": "fig-5a-03-frontier"}, "image": {"alt": "Four falling curves of passes per pixel over positions per pixel, on a logarithmic axis, for one, two, four and eight chains. The curve for one chain flattens at 0.24, those for more chains start further right and end lower, at about 0.17 for eight."}} tags=["hide-input"]
lengths = (1, 2, 3, 4, 6, 8, 12, 16)
lines = {}
for k in (1, 2, 4, 8):
    passes = [predicted["k-seq", k, L] for L in lengths]
    positions = [a * k * (L + 1) for a, L in zip(passes, lengths)]
    lines[f"{k} chain" + "s" * (k > 1)] = (positions, passes)
figure, ax = plt.subplots(figsize=(6.4, 3.4))
for (label, (x, passes)), colour in zip(lines.items(), viz.PALETTE):
    ax.semilogx(x, passes, "o-", color=colour)
    style = dict(color=colour, ha="center", va="bottom", fontsize=8.5, fontweight="bold")
    ax.text(x[0], passes[0] + 0.015, label, **style)
ax.set_xticks([1, 2, 4, 8, 16, 32], ["1", "2", "4", "8", "16", "32"])
ax.set(xlabel="positions per pixel", ylabel="passes per pixel", xlim=(0.9, 36), ylim=(0, 0.65));

# %%
cost = 0.25  # a draft pass in target passes: one layer of four
for k in (1, 2, 4, 8):
    waits = {L: predicted["k-seq", k, L] * (1 + cost * L) for L in lengths}
    L = min(waits, key=waits.get)
    wait = waits[L]
    print(f"k = {k}: best length {L}, waiting {wait:.2f} target passes per pixel")
wide, long = predicted["k-seq", 8, 16], predicted["k-seq", 1, 16]
assert wide < 0.8 * long

# %% [markdown]
# If positions are scarce, lengthen the chain first. But a single chain runs into a wall at about 0.24 passes per pixel: every refusal
# costs a pass, and length does nothing about refusals. Width does. And since the passes of the draft wait for each other too, endless
# chains are no way out: with their cost counted, the best length is three or four, and from there only width shortens the wait.
#
# ## What the table of judges did not say
#
# Judged by one token, greedy guesses beat K-SEQ clearly. Judged by chains of four they lose! This is the honest failure of our
# one-token theory:

# %%
print("passes per pixel, predicted   K-SEQ   greedy")
for k, L in ((2, 1), (2, 8), (4, 1), (4, 4)):
    seq, gre = predicted["k-seq", k, L], predicted["greedy", k, L]
    print(f"{k} chains of length {L}           {seq:.3f}    {gre:.3f}")
assert predicted["greedy", 2, 1] < predicted["k-seq", 2, 1]
assert predicted["greedy", 4, 4] > predicted["k-seq", 4, 4]

# %% [markdown]
# Greedy chains part at their first token, by design. Whatever is kept, only one of them survives, and from then on the draft has a single
# guess. Independent chains often *agree*, which looked like waste, and so several survive into the second position and can help
# there. To have both, guesses must branch anew at every position: a tree. Trees are what large systems draw today, and one pass with a
# tree mask (`ancestor` in `minimal/nn/masks.py`) judges them.
#
# And the clock? A pass over more rows is not free, at least not here. How much longer does the target take for $k$ chains of five
# positions than for a single position, as in plain cached decoding?

# %% tags=["nbval-ignore-output"]
@torch.inference_mode()
def seconds(rows, positions, repeats=30):
    tokens, label = y[:1].expand(rows, -1).contiguous(), three.expand(rows)
    cache, times = target.new_cache(rows), []
    target.logits(tokens[:, :32], label, cache=cache)
    for _ in range(repeats):
        start = time.perf_counter()
        target.logits(tokens[:, : 32 + positions], label, cache=cache)
        times.append(time.perf_counter() - start)
        cache.truncate(32)
    return min(times)


plain = seconds(1, 1)
for k in (1, 2, 4, 8):
    print(f"k = {k}, L = 4: a pass takes {seconds(k, 5) / plain:.1f} times as long")

# %% [markdown]
# Eight chains of four bring 4 tokens a pass, one chain brings 3: a third more. So width pays in seconds only if the wider pass, and
# the wider draft passes before it, take less than a third longer. On a small processor they usually take more. Where arithmetic
# idles while weights are read, on a large GPU with one request, a wider pass takes hardly longer, and there the passes of the table
# are the time.
#
# For the exercises, a pair of distributions over four tokens:

# %% tags=["exercise-setup"]
p_ = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
q_ = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)

# %% [markdown]
# ## Exercise 1: greedy guesses (★, 5 minutes)
#
# Compute how often one of $k$ greedy guesses is kept: $p(A) + \sum_{x \notin A} \min(p(x), q'(x))$, where $A$ holds the $k - 1$ most likely
# tokens of $q$ and $q'$ is $q$ without them, normalised.

# %% tags=["exercise"]
def greedy_acceptance(p, q, k):
    """Chance that one of k greedy guesses from q (V,) is kept for the target p (V,)."""
    return None  # your code

# %% tags=["exercise-check"]
answer = greedy_acceptance(p_, q_, 2)
if answer is None:
    print("Hint: q.topk(k - 1).indices is A; set q to zero there and divide by the sum.")
else:
    alone = float(greedy_acceptance(p_, q_, 1))
    assert abs(alone - 0.6) < 1e-9, f"for k = 1, A is empty and 1 - TV = 0.6; got {alone:.3f}"
    best_ = float(optimal_acceptance(p_, q_, 2, "greedy"))
    wrong = "the rest of p must not be renormalised: p(A) + rest has to stay p"
    answer = float(answer)
    assert abs(answer - best_) < 1e-9, f"expected {best_:.3f}, got {answer:.3f}: {wrong}"
    print(f"Right: {best_:.2f} with two guesses, {alone:.2f} with one.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# `q.index_fill(0, top, 0)` removes the tokens `top`. The sum over $x \notin A$ is the sum over all $x$ of $\min(p, q')$, since $q'$ is zero on
# $A$.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def greedy_acceptance(p, q, k):
#     top = q.topk(k - 1).indices
#     rest = q.index_fill(0, top, 0)
#     rest = rest / rest.sum()
#     return p[top].sum() + torch.minimum(p, rest).sum()
# ```
#
# </details>
# <details><summary>Wrong: renormalises the target too</summary>
#
# The last guess is one case of the whole, not a problem of its own. With $p$ blown up outside $A$ it is kept too often, and
# less than $p(A)$ is left for $A$.
#
# ```python
# def greedy_acceptance(p, q, k):
#     top = q.topk(k - 1).indices
#     rest, rest_of_p = q.index_fill(0, top, 0), p.index_fill(0, top, 0)
#     rest, rest_of_p = rest / rest.sum(), rest_of_p / rest_of_p.sum()
#     return p[top].sum() + torch.minimum(rest_of_p, rest).sum()
# ```
#
# </details>

# %% [markdown]
# ## Exercise 2: the best judge of distinct guesses (★★, 15 minutes)
#
# Two guesses are drawn without replacement. Compute the best possible acceptance, $1 + \min_H (P(H) - Q(H))$, by trying all subsets of
# a small vocabulary. You need the chance that both guesses lie in $H$:
# $Q(H) = \sum_{x \in H} q(x) \, \frac{q(H) - q(x)}{1 - q(x)}$.

# %% tags=["exercise"]
def best_of_two_distinct(p, q):
    """Best acceptance (a number) of two guesses from q (V,), drawn without replacement."""
    return None  # your code

# %% tags=["exercise-check"]
answer = best_of_two_distinct(p_, q_)
if answer is None:
    print("Hint: loop over itertools.combinations(range(V), size) for every size from 0 to V.")
else:
    best_ = float(optimal_acceptance(p_, q_, 2, "distinct"))
    wrong = "Q(H) is the chance that ALL guesses lie in H; the empty H is a candidate too"
    answer = float(answer)
    assert abs(answer - best_) < 1e-9, f"expected {best_:.3f}, got {answer:.3f}: {wrong}"
    same = float(best_of_two_distinct(p_, p_))
    assert abs(same - 1) < 1e-9, f"for q = p everything can be kept, got {same:.3f}"
    print(f"Right: {best_:.3f}; independent guesses reach {optimal_acceptance(p_, q_, 2):.3f}.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# For the subset `H` as a list of tokens, `q[H]` are its probabilities, and the formula is one line of arithmetic on them.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def best_of_two_distinct(p, q):
#     gaps = []
#     for size in range(len(p) + 1):
#         for H in map(list, itertools.combinations(range(len(p)), size)):
#             Q = (q[H] * (q[H].sum() - q[H]) / (1 - q[H])).sum()
#             gaps.append(p[H].sum() - Q)
#     return 1 + min(gaps)
# ```
#
# </details>
# <details><summary>Wrong: asks that some guess lies in H</summary>
#
# A set of guesses loses its supply in the cut as soon as *one* of its tokens lies outside $H$. What stays connected are the
# sets that lie in $H$ with all their tokens.
#
# ```python
# def best_of_two_distinct(p, q):
#     gaps = []
#     for size in range(len(p) + 1):
#         for H in map(list, itertools.combinations(range(len(p)), size)):
#             out = [x for x in range(len(p)) if x not in H]
#             none = (q[out] * (q[out].sum() - q[out]) / (1 - q[out])).sum()
#             gaps.append(p[H].sum() - (1 - none))
#     return 1 + min(gaps)
# ```
#
# </details>

# %% [markdown]
# ## Exercise 3: tokens per pass (★★, 10 minutes)
#
# Chains part at their first token, as greedy ones do. The first token is kept with probability `first`, each later one with probability
# `later`, independently. What is the mean number of tokens that one pass with chains of length $L$ brings?

# %% tags=["exercise"]
def tokens_per_pass(first, later, L):
    """Mean number of tokens per target pass, the one that the target adds included."""
    return None  # your code

# %% tags=["exercise-check"]
answer = tokens_per_pass(0.9, 0.5, 3)
if answer is None:
    print("Hint: 1 + P(first kept) + P(first two kept) + ... + P(all L kept).")
else:
    assert abs(tokens_per_pass(0.0, 1.0, 5) - 1) < 1e-9, "if all first guesses fail, one comes"
    assert abs(tokens_per_pass(1.0, 1.0, 5) - 6) < 1e-9, "if nothing fails, L + 1 come"
    wrong = "only the first position has several guesses; behind it a single chain is left"
    assert abs(answer - 2.575) < 1e-9, f"expected 2.575, got {answer:.3f}: {wrong}"
    print("Right: after the first token, width is spent.")

# %% [markdown] tags=["exercise-solution"]
# <details><summary>Hint</summary>
#
# The first $i$ tokens are all kept with probability $a_1 a^{i-1}$, where $a_1$ is `first` and $a$ is `later`.
#
# </details>
# <details><summary>Solution</summary>
#
# ```python
# def tokens_per_pass(first, later, L):
#     return 1 + first * sum(later**i for i in range(L))
# ```
#
# </details>
# <details><summary>Wrong: every position has k guesses</summary>
#
# This is what a tree that branches at every position would reach.
#
# ```python
# def tokens_per_pass(first, later, L):
#     return sum(first**i for i in range(L + 1))
# ```
#
# </details>

# %% [markdown]
# ## Recap
#
# * Choosing among guesses is optimal transport: couple sets of guesses with outputs, and pay where the output is not in the set.
# * The best acceptance is $1 + \min_H (P(H) - Q(H))$, a minimal cut; $V$ sorted candidates find it for any vocabulary.
# * K-SEQ is speculative sampling with the draft inflated by $\rho$; it keeps at least $1 - (1 - 1/k)^k$ of the optimum, in practice 85 to 100 %.
# * How guesses are made can matter more than how they are judged: confident drafts should not repeat themselves.
# * One-token optimality is not the whole story. Chains that part early leave one survivor; width pays in positions and saves waiting.
#
# ## Where this stands
#
# SpecTr, with the transport view, K-SEQ and its guarantee, is due to Sun et al. ([2310.15141](https://arxiv.org/abs/2310.15141)). Recursive rejection over
# a tree of guesses appeared with SpecInfer (Miao et al., [2305.09781](https://arxiv.org/abs/2305.09781)); without replacement in Recursive Speculative Decoding
# (Jeon et al., [2402.14160](https://arxiv.org/abs/2402.14160)) and Sequoia (Chen et al., [2402.12374](https://arxiv.org/abs/2402.12374)), which also computes the best shape of the tree. The
# subset formula, its sorted prefixes and greedy drafts are from Hu et al. ([2502.18779](https://arxiv.org/abs/2502.18779)). Khisti et al.
# ([2410.18234](https://arxiv.org/abs/2410.18234)) split the optimal judge into importance sampling and speculative sampling; Thomas and Pal
# ([2511.15898](https://arxiv.org/abs/2511.15898)) compute it by convex optimisation instead of a linear program.
