"""The tour: the whole course in small. Train one model on real digits, then draw from it in every way we know.

    minimal tour        trains for about a minute, prints one table, draws one picture

Rows of the table are entries of `ROWS`. A sampler that keeps the model must either give the same tokens as the plain
sampler from the same noise, which is checked here, or the same distribution, which the tests prove by chi-square.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

from minimal import checkpoints, data, recipes, viz
from minimal.ar.histogram import Histogram
from minimal.metrics import label_accuracy
from minimal.recipes import any_subset
from minimal.samplers.any_subset import sample_any_subset
from minimal.samplers.cached import sample_cached, sample_uncached
from minimal.samplers.cuda_graph import sample_static
from minimal.samplers.flow import sample_flow, sample_flow_map
from minimal.samplers.guidance import Guided
from minimal.samplers.jacobi import sample_jacobi
from minimal.samplers.lookahead import sample_lookahead
from minimal.samplers.multi_draft import sample_multi_draft
from minimal.samplers.speculative import sample_speculative
from minimal.samplers.trace import Sample, multiply_adds

GUIDANCE = 1.5


@dataclass
class Models:
    """What the rows draw from. `pixels`, `draft`, `subset` and `codes` are guided token models."""

    pixels: nn.Module
    draft: nn.Module
    pixel_tokenizer: nn.Module
    subset: nn.Module
    codes: nn.Module
    code_tokenizer: nn.Module
    flow: nn.Module
    mean_flow: nn.Module


@dataclass(frozen=True)
class Row:
    """A line of the table. `draw(models, n, cond=, generator=)` samples; `tokenizer` names who decodes its tokens."""

    name: str
    draw: Callable[..., Sample]
    promise: str
    tokenizer: str = "pixel_tokenizer"

    def images(self, models: Models, sample: Sample) -> Tensor:
        return sample.images if sample.tokens is None else getattr(models, self.tokenizer).decode(sample.tokens)


ROWS = [
    Row("pixels, no cache", lambda m, n, **o: sample_uncached(m.pixels, n, **o), "the reference"),
    Row("pixels, cached", lambda m, n, **o: sample_cached(m.pixels, n, **o), "same tokens"),
    Row(
        "pixels, speculative", lambda m, n, **o: sample_speculative(m.pixels, m.draft, n, k=6, **o), "same distribution"
    ),
    Row(
        "pixels, many drafts",
        lambda m, n, **o: sample_multi_draft(m.pixels, m.draft, n, k=4, depth=6, **o),
        "same distribution",
    ),
    Row("pixels, Jacobi", lambda m, n, **o: sample_jacobi(m.pixels, n, block=16, **o), "same tokens"),
    Row("pixels, lookahead", lambda m, n, **o: sample_lookahead(m.pixels, n, **o), "same tokens"),
    Row("pixels, static step", lambda m, n, **o: sample_static(m.pixels, n, **o), "same tokens"),
    Row("pixels, any subset", lambda m, n, **o: sample_any_subset(m.subset, n, k=8, **o), "another model"),
    Row("VQ codes, cached", lambda m, n, **o: sample_cached(m.codes, n, **o), "another model", "code_tokenizer"),
    Row(
        "flow, 50 steps",
        lambda m, n, **o: sample_flow(m.flow, n, num_steps=50, guidance_scale=GUIDANCE, **o),
        "another model",
    ),
    Row(
        "flow, 10 steps",
        lambda m, n, **o: sample_flow(m.flow, n, num_steps=10, guidance_scale=GUIDANCE, **o),
        "another model",
    ),
    Row("mean flow, 1 step", lambda m, n, **o: sample_flow_map(m.mean_flow, n, num_steps=1, **o), "another model"),
]


@dataclass
class Result:
    """One line of the finished table; `images` has `per_class` samples of every class, class by class."""

    row: Row
    images: Tensor
    forwards: dict[str, float]  # per image and network
    multiply_adds: float  # per image
    milliseconds: float  # per image, drawn one at a time
    accuracy: float  # share of samples in which the judge sees the label
    promise: str

    @property
    def waits(self) -> float:
        """Forwards that an image waits for, one after the other, not counting those of a draft."""
        return sum(count for name, count in self.forwards.items() if name != "draft")


def main(
    data: str = "digits", steps: int | None = None, seed: int = 0, out: str | None = None, device: str = "cpu"
) -> None:
    """Train, sample, print the table and save the picture to `out` (default: tour_<data>.png)."""
    started = time.perf_counter()
    models, judge, real = build(data, steps, seed, device)
    results = compare(models, judge, seed=seed)
    print("\n" + table(results))
    path = Path(out or f"tour_{data}.png")
    picture(results, real).savefig(path, dpi=160)
    print(f"\nPicture: {path}. {time.perf_counter() - started:.0f} seconds in all.")


# Models


def build(
    name: str, steps: int | None = None, seed: int = 0, device: str = "cpu"
) -> tuple[Models, nn.Module, data.Images]:
    """Train the pixel model and its draft, load or train the others. Returns models, judge, and real test images."""
    if name not in TOURS:
        raise ValueError(f"the tour knows {', '.join(TOURS)}, not {name!r}")
    tour = TOURS[name]
    train, test = tour.load("train"), tour.load("test")
    encode = recipes.pixel_tokenizer(train).encode
    torch.manual_seed(seed)
    pixels, draft = recipes.pixel_gpt(train, dropout=tour.dropout), recipes.pixel_gpt(train, **recipes.DRAFT)
    print(f"{len(train):,} training images of {name}, {pixels.length} pixels each, {train.num_classes} classes")
    schedule = dict(steps=steps or tour.steps, batch_size=32, lr=4e-3, warmup=0.1, seed=seed, device=device)
    recipes.fit_tokens(pixels, encode, tour.load, desc="pixel transformer", **schedule)
    recipes.fit_tokens(draft, encode, tour.load, desc="its draft", **schedule)
    print(likelihoods(pixels, encode, train, test))
    others = {role: module.to(device) for role, module in tour.others(seed, device).items()}
    models = Models(Guided(pixels, GUIDANCE), Guided(draft, GUIDANCE), recipes.pixel_tokenizer(train), **others)
    models.codes, models.subset = Guided(models.codes, GUIDANCE), Guided(models.subset, GUIDANCE)
    return models, checkpoints.load(tour.judge, device), test


def likelihoods(model: nn.Module, encode: Callable, train: data.Images, test: data.Images) -> str:
    """Bits per dimension of held-out images, under models that use more and more of what is known."""
    dims, levels = model.length, model.vocab_size
    counts = Histogram(encode(train.images), levels, train.labels, train.num_classes)
    lines = [
        ("uniform", torch.tensor(levels).log2().item()),
        ("a histogram per pixel", recipes.bits(counts, encode, test, dims, labelled=False)["bits_per_dim"]),
        ("a histogram per pixel and class", recipes.bits(counts, encode, test, dims)["bits_per_dim"]),
        (
            "the transformer, not told the class",
            recipes.bits(model, encode, test, dims, labelled=False)["bits_per_dim"],
        ),
        ("the transformer, told the class", recipes.bits(model, encode, test, dims)["bits_per_dim"]),
    ]
    return "\n".join(["bits per dimension on the test images", *(f"  {name:38s} {value:.3f}" for name, value in lines)])


def shipped(seed: int, device: str) -> dict[str, nn.Module]:
    """The other networks of the digits come as checkpoints; `minimal train NAME` makes each anew."""
    names = {
        "subset": "digits_any_subset",
        "codes": "digits_vq_prior",
        "code_tokenizer": "digits_vq",
        "flow": "digits_flow",
        "mean_flow": "digits_mean_flow",
    }
    return {role: checkpoints.load(name, device) for role, name in names.items()}


def mnist_networks(seed: int, device: str) -> dict[str, nn.Module]:
    """Those of MNIST are trained now."""
    subset, _ = any_subset.fit_pixel_subsets(partial(mnist, held_out=200), steps=300, seed=seed, device=device)
    return {"subset": subset, **recipes.tour_networks(mnist, seed, device)}


def mnist(split: str, held_out: int = 1000) -> data.Images:
    """MNIST at 14 x 14 pixels, 196 tokens instead of 784; a thousand images suffice to validate and to test."""
    images = data.load("mnist", split, size=14)
    return images if split == "train" else images.select(slice(held_out))


@dataclass(frozen=True)
class Tour:
    """A data set that the tour can visit."""

    load: Callable[[str], data.Images]
    steps: int  # of live training
    dropout: float  # a few hundred steps over many images cannot overfit
    judge: str
    others: Callable[[int, str], dict[str, nn.Module]]


TOURS = {
    "digits": Tour(recipes.digits, steps=1000, dropout=0.1, judge="judge_digits", others=shipped),
    "mnist": Tour(
        mnist,
        steps=700,
        dropout=0.0,
        judge="judge_mnist14",
        others=mnist_networks,
    ),
}


# Comparing samplers


def compare(
    models: Models, judge: nn.Module, rows: list[Row] = ROWS, per_class: int = 10, seed: int = 0, progress: bool = True
) -> list[Result]:
    """Draw `per_class` samples of every class with every row, from the same seed; then one at a time, for the clock."""
    device = next(judge.parameters()).device
    labels = torch.arange(models.pixels.num_classes, device=device).repeat_interleave(per_class)
    noise = lambda: torch.Generator().manual_seed(seed)  # noqa: E731
    samples = {
        row.name: row.draw(models, len(labels), cond=labels, generator=noise())
        for row in tqdm(rows, desc="drawing", disable=not progress)
    }
    milliseconds = latencies(models, rows, labels[:1], noise)
    results = []
    for row in rows:
        sample = samples[row.name]
        images = row.images(models, sample).clamp(-1, 1)
        results.append(
            Result(
                row,
                images,
                {name: count / len(labels) for name, count in sample.trace.rows.items()},
                multiply_adds(lambda: row.images(models, row.draw(models, 1, cond=labels[:1], generator=noise()))),
                milliseconds[row.name],
                label_accuracy(judge, images, labels),
                kept_promise(row, sample, samples),
            )
        )
    return results


def latencies(models: Models, rows: list[Row], label: Tensor, noise: Callable, rounds: int = 3) -> dict[str, float]:
    """Median milliseconds to draw and decode a single image; the rows take turns."""
    times = {row.name: [] for row in rows}
    for _ in range(rounds):
        for row in rows:
            start = time.perf_counter()
            row.images(models, row.draw(models, 1, cond=label, generator=noise())).sum().item()
            times[row.name].append(1000 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def kept_promise(row: Row, sample: Sample, samples: dict[str, Sample]) -> str:
    """What the row promises; where it promises the reference's tokens, how many of them really are equal."""
    if row.promise != "same tokens":
        return row.promise
    reference = samples[ROWS[0].name].tokens
    equal = (sample.tokens == reference).float().mean().item()
    return "same tokens" if equal == 1 else f"{equal:.2%} same tokens"


def table(results: list[Result]) -> str:
    """The results as text."""
    columns = "{:20s}{:>10s}{:>11s}{:>13s}{:>9s}{:>9s}   {}"
    lines = [
        columns.format("sampler", "forwards", "+ draft's", "M mult-adds", "ms", "judge", "exact?"),
        columns.format("", "per image", "per image", "per image", "for one", "agrees", ""),
    ]
    for r in results:
        draft = f"{r.forwards['draft']:.1f}" if "draft" in r.forwards else ""
        work, time = f"{r.multiply_adds / 1e6:.1f}", f"{r.milliseconds:.1f}"
        lines.append(columns.format(r.row.name, f"{r.waits:.1f}", draft, work, time, f"{r.accuracy:.0%}", r.promise))
    return "\n".join(line.rstrip() for line in lines)


def picture(results: list[Result], real: data.Images) -> Figure:
    """Samples of every row, one column per class, beside the number of forwards that an image waits for."""
    classes = range(real.num_classes)
    rows = [torch.stack([real.images[real.labels == c][0] for c in classes])]
    rows += [r.images.cpu().unflatten(0, (len(classes), -1))[:, 0] for r in results]
    with viz.style():
        figure = Figure(figsize=(9.6, 0.62 * len(rows) + 0.5), layout="none")
        left = figure.add_axes((0.15, 0.09, 0.58, 0.9))
        names = ["real images", *(r.row.name for r in results)]
        viz.image_grid(torch.cat(rows), ncol=len(classes), row_labels=names, ax=left)
        right = left.inset_axes((1.03, 0, 0.42, 1))  # as high as the grid, where row r is centred at y = r
        waits = [r.waits for r in results]
        right.barh(range(1, len(rows)), waits, left=0.8, height=0.5)
        for y, value in enumerate(waits, start=1):
            right.text((value + 0.8) * 1.12, y, f"{value:.0f}", va="center")
        right.set(xscale="log", xlabel="forwards per image (log scale)", xlim=(0.8, 2 * max(waits)))
        right.set(ylim=left.get_ylim(), yticks=[])
        right.grid(False)
        right.spines["bottom"].set_visible(False)
        right.set_xticks([], minor=True)
        right.set_xticks([])
    return figure
