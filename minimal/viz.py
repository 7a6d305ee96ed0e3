"""Pictures in one manner: grids of images, maps of tokens, masks, trajectories, curves.

Every function draws into `ax` if one is given and else makes a figure, and returns the axes. Backgrounds are opaque (pages
have a dark mode) and colours are told apart by colour-blind readers and on paper (Okabe and Ito 2008). Call `style()` once
per notebook, or use it as a context: `with viz.style(): ...`.
"""

import math
from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from torch import Tensor

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLE = {
    "figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white", "figure.dpi": 100, "savefig.dpi": 100,
    "axes.prop_cycle": cycler(color=PALETTE), "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 10,
    "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "legend.fontsize": 8, "legend.frameon": False, "font.size": 9,
    "image.interpolation": "nearest", "image.cmap": "viridis",
}


class style:
    """Set the course's look at once; as a context, put back what was there before."""

    def __init__(self):
        self.before = mpl.rcParams.copy()
        mpl.rcParams.update(STYLE)

    def __enter__(self) -> "style":
        return self

    def __exit__(self, *_) -> None:
        mpl.rcParams.update(self.before)


def axes_of(ax: Axes | None, width: float, height: float) -> Axes:
    return ax if ax is not None else plt.subplots(figsize=(width, height), layout="constrained")[1]


def image_grid(
    images: Tensor,
    ncol: int | None = None,
    titles: Sequence[str] | None = None,
    row_labels: Sequence[str] | None = None,
    ax: Axes | None = None,
    cell: float = 0.62,
) -> Axes:
    """Images (n, C, H, W) in [-1, 1], grey or RGB, side by side in rows of `ncol`; `cell` is the size of one in inches.

    `titles` stand over the columns of the first row, `row_labels` left of the rows.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images are (n, 1 or 3, H, W), got {tuple(images.shape)}")
    n, channels, height, width = images.shape
    ncol = ncol or math.ceil(math.sqrt(n))
    nrow = math.ceil(n / ncol)
    gap = max(1, round(0.08 * width))
    sheet = torch.ones(channels, nrow * (height + gap) - gap, ncol * (width + gap) - gap)
    for i, image in enumerate(images.detach().float().cpu().clamp(-1, 1)):
        top, left = (i // ncol) * (height + gap), (i % ncol) * (width + gap)
        sheet[:, top : top + height, left : left + width] = image
    label_width = 0.08 * max((len(label) for label in row_labels), default=0) if row_labels else 0
    ax = axes_of(ax, ncol * cell + label_width, nrow * cell * height / width + (0.25 if titles else 0))
    ax.imshow(((sheet.expand(3, -1, -1) + 1) / 2).permute(1, 2, 0).numpy())
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_xticks([(width + gap) * j + width / 2 for j in range(len(titles))] if titles else [], titles or [])
    ax.xaxis.tick_top()
    ax.set_yticks([(height + gap) * i + height / 2 for i in range(len(row_labels))] if row_labels else [], row_labels or [])
    return ax


def token_map(tokens: Tensor, grid: tuple[int, int], vocab_size: int, ax: Axes | None = None, numbers: bool = True) -> Axes:
    """The tokens (N,) of one image on their grid, coloured by id."""
    ax = axes_of(ax, 0.45 * grid[1] + 0.3, 0.45 * grid[0] + 0.3)
    ids = tokens.detach().cpu().view(grid).numpy()
    ax.imshow(ids, cmap="turbo", vmin=0, vmax=vocab_size - 1, alpha=0.75)
    for (row, column), token in (((r, c), ids[r, c]) for r in range(grid[0]) for c in range(grid[1])):
        if numbers:
            ax.text(column, row, token, ha="center", va="center", fontsize=7)
    return bare(ax)


def heat_map(values: Tensor, ax: Axes | None = None, label: str | None = None, **options) -> Axes:
    """A value per cell (H, W), with a colour bar named `label`; `options` go to imshow."""
    ax = axes_of(ax, 2.6, 2.2)
    shown = ax.imshow(values.detach().cpu().numpy(), **options)
    if label is not None:
        ax.figure.colorbar(shown, ax=ax, label=label, shrink=0.85)
    return bare(ax)


def mask_picture(mask: Tensor, ax: Axes | None = None) -> Axes:
    """An attention mask (Nq, Nk): dark where the query (row) may see the key (column)."""
    ax = axes_of(ax, 2.4, 2.4)
    ax.imshow(mask.detach().cpu().float().numpy(), cmap="Blues", vmin=0, vmax=1.3)
    ax.set(xlabel="key", ylabel="query")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    nq, nk = mask.shape
    if max(nq, nk) <= 32:
        ax.set_xticks([j - 0.5 for j in range(nk + 1)], minor=True)
        ax.set_yticks([i - 0.5 for i in range(nq + 1)], minor=True)
        ax.grid(which="minor", color="white", lw=1)
    ax.tick_params(which="both", length=0)
    return ax


def attention_map(weights: Tensor, ax: Axes | None = None) -> Axes:
    """Attention weights (Nq, Nk), each row a distribution over keys."""
    ax = heat_map(weights, axes_of(ax, 2.8, 2.4), label="weight", cmap="magma", vmin=0)
    ax.set(xlabel="key", ylabel="query")
    return ax


def trajectories(paths: Tensor, ax: Axes | None = None) -> Axes:
    """Paths (T, n, 2) of n points in the plane: grey where they start, coloured where they end."""
    ax, paths = axes_of(ax, 3.2, 3.2), paths.detach().cpu().numpy()
    ax.plot(paths[..., 0], paths[..., 1], color="0.75", lw=0.6, zorder=1)
    ax.scatter(*paths[0].T, s=6, color="0.55", label="noise, t = 0", zorder=2)
    ax.scatter(*paths[-1].T, s=6, color=PALETTE[0], label="data, t = 1", zorder=3)
    ax.set_aspect("equal")
    ax.legend(loc="best")
    return ax


def curves(series: dict[str, Sequence[float] | dict[int, float]], ax: Axes | None = None, xlabel: str = "step", ylabel: str = "loss") -> Axes:
    """Named curves: a list has a value per step (drawn smoothed over its noise), a dict maps steps to values (drawn with dots)."""
    ax = axes_of(ax, 5.5, 3)
    for color, (name, values) in zip(mpl.rcParams["axes.prop_cycle"].by_key()["color"], series.items()):
        if isinstance(values, dict):
            ax.plot(list(values), list(values.values()), "o-", ms=3, color=color, label=name)
            continue
        ax.plot(values, color=color, lw=0.5, alpha=0.35)
        ax.plot(smooth(values), color=color, label=name)
    ax.set(xlabel=xlabel, ylabel=ylabel)
    ax.legend()
    return ax


def smooth(values: Sequence[float], share: float = 0.03) -> list[float]:
    """An exponential average over a `share` of the curve."""
    decay, averages = 1 - 1 / max(1.0, share * len(values)), list(values[:1])
    for value in values[1:]:
        averages.append(decay * averages[-1] + (1 - decay) * value)
    return averages


def bare(ax: Axes) -> Axes:
    """Without ticks and frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    return ax
