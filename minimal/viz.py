"""The figures of the course, all in one manner.

    viz.style()                                   once per notebook, or for a while: `with viz.style(): ...`
    viz.image_grid(samples, ncol=10, row_labels=["real", "ours"])

Every function draws into `ax`, or into a figure of its own that fits the content, and returns the Axes, so that a
title or another axis is one more line. Backgrounds are opaque white (pages may be dark). The six colours keep apart
for the colour-blind, and the first five in a grey print too; lines carry their name at their end, so that no legend
has to be matched. Images are float (B, C, H, W) in [-1, 1], as everywhere.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, hsv_to_rgb, to_rgb
from torch import Tensor

BLUE, AMBER, GREEN, RED, PLUM, SKY = PALETTE = ("#1d5ba6", "#f2a72e", "#2fa58b", "#c9452f", "#5b2a6e", "#98cbf0")
INK, GREY, PALE = "#23272e", "#8a919c", "#e9ecf0"
SEQUENTIAL = LinearSegmentedColormap.from_list("paper to ink", ["#ffffff", "#c7dcf2", "#6fa3da", BLUE, "#0d2a52"])

STYLE = {
    "figure.facecolor": "white",
    "figure.dpi": 110,
    "figure.figsize": (5.6, 3.2),
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
    "savefig.dpi": 160,
    "savefig.bbox": "tight",
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 9,
    "text.color": INK,
    "axes.facecolor": "white",
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.prop_cycle": mpl.cycler(color=PALETTE),
    "grid.color": PALE,
    "grid.linewidth": 0.8,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 3.8,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "image.cmap": "gray",
    "image.interpolation": "nearest",
}


def style() -> ExitStack:
    """Set the course's style. From then on; or within `with viz.style():`, and what was set before returns after it."""
    before = {key: mpl.rcParams[key] for key in STYLE}
    mpl.rcParams.update(STYLE)
    stack = ExitStack()
    stack.callback(mpl.rcParams.update, before)
    return stack


# Images and tokens


def image_grid(
    images: Tensor,
    ncol: int = 10,
    titles: Sequence | None = None,
    row_labels: Sequence | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Images (B, C, H, W) in [-1, 1], grey or RGB, in rows of `ncol`; values outside the range are clamped.

    titles: one per image, or one per column. row_labels: one per row. Image (row r, column c) is centred at (c, r).
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or not len(images):
        raise ValueError(f"images are (B, C, H, W) with 1 or 3 channels and B >= 1, got {tuple(images.shape)}")
    images = images.detach().float().cpu()
    if not images.isfinite().all():
        raise ValueError("images have NaN or inf")
    ncol = min(ncol, len(images))
    nrow = -(-len(images) // ncol)
    for name, given, allowed in (("titles", titles, {len(images), ncol}), ("row_labels", row_labels, {nrow})):
        if given is not None and len(given) not in allowed:
            raise ValueError(f"{len(given)} {name} for {len(images)} images in {nrow} rows of {ncol}")

    each = titles is not None and len(titles) > ncol  # a title above every image needs room between the rows
    picture, shape = mosaic(images, nrow, ncol, headroom=0.3 if each else 0.0)
    width = min(0.72, 8.4 / ncol) * ncol
    height = width * picture.shape[0] / picture.shape[1]
    ax = ax or new_axes(width + (0.1 if row_labels is None else 1.0), height + (0.1 if titles is None else 0.25))
    ax.imshow(picture, extent=(-0.5, ncol - 0.5, nrow - 0.5, -0.5), aspect=shape[0] / shape[1], interpolation="nearest")
    bare(ax)
    if titles is not None:
        longest = max(1, *(len(str(title)) for title in titles))
        size = min(7.5, 120 * width / ncol / longest)  # a letter is about 0.6 of its size wide, an inch is 72 points
        for i, title in enumerate(titles):
            top = i // ncol - 0.5 + (0.22 if each else -0.04)
            ax.text(i % ncol, top, str(title), ha="center", va="bottom", fontsize=size)
    if row_labels is not None:
        ax.set_yticks(range(nrow), [str(label) for label in row_labels])
    return ax


def mosaic(images: Tensor, nrow: int, ncol: int, headroom: float) -> tuple[np.ndarray, tuple[int, int]]:
    """Images (B, C, H, W) on white paper, (height, width, 3), and the shape of one cell. Pixels become squares."""
    count, _, height, width = images.shape
    zoom = -(-64 // max(height, width))
    tiles = ((images.clamp(-1, 1) + 1) / 2).expand(-1, 3, -1, -1)
    tiles = tiles.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3).permute(0, 2, 3, 1)  # (B, H, W, 3)
    gap, above = round(0.03 * max(height, width) * zoom), round(headroom * height * zoom)
    cells = torch.ones(nrow * ncol, height * zoom + 2 * gap + above, width * zoom + 2 * gap, 3)
    cells[:count, gap + above : gap + above + height * zoom, gap : gap + width * zoom] = tiles
    rows = cells.unflatten(0, (nrow, ncol)).permute(0, 2, 1, 3, 4)  # (nrow, cell height, ncol, cell width, 3)
    return rows.flatten(2, 3).flatten(0, 1).numpy(), tuple(cells.shape[1:3])


def token_map(tokens: Tensor, grid: tuple[int, int], vocab_size: int, ax: Axes | None = None) -> Axes:
    """Tokens (N,) of one image on its grid (rows, columns), N = rows · columns. Equal codes have equal colours.

    Codes are names, not quantities, so neighbouring numbers get unlike colours. -1 is a place not drawn yet: left pale.
    """
    rows, columns = grid
    if tokens.shape != (rows * columns,) or tokens.is_floating_point():
        raise ValueError(
            f"a grid of {grid} holds {rows * columns} integer tokens, got {tokens.dtype} {tuple(tokens.shape)}"
        )
    if tokens.min() < -1 or tokens.max() >= vocab_size:
        raise ValueError(f"tokens lie in 0..{vocab_size - 1}, or are -1, got {tokens.min()}..{tokens.max()}")
    codes = tokens.cpu().view(rows, columns).numpy()
    colours = np.where(codes[..., None] < 0, to_rgb(PALE), code_colours(vocab_size)[codes])
    side = min(0.42, 3.4 / max(grid))
    ax = ax or new_axes(side * columns + 0.1, side * rows + 0.1)
    ax.imshow(colours, interpolation="nearest")
    bare(ax)
    rule(ax, rows, columns, "white", 1.5 if max(grid) <= 16 else 0.5)
    if max(grid) <= 10:
        for (row, column), code in np.ndenumerate(codes):
            ax.text(column, row, str(code) if code >= 0 else "", ha="center", va="center", fontsize=7.5)
    return ax


def code_colours(vocab_size: int) -> np.ndarray:
    """Light colours (V, 3): hues a golden angle apart, in three strengths, so that black digits can be read on all."""
    code = np.arange(vocab_size)
    strength = np.array([[0.34, 0.95], [0.16, 0.97], [0.48, 0.86]])[code % 3]  # saturation, value
    return hsv_to_rgb(np.concatenate([(code * 0.6180339887 % 1)[:, None], strength], 1))


# Attention


def attention_map(weights: Tensor, labels: Sequence | None = None, ax: Axes | None = None) -> Axes:
    """Attention weights (queries, keys) in [0, 1]: white is none, ink is the largest. `labels` name the positions."""
    if weights.ndim != 2 or not (weights >= 0).all():
        raise ValueError(f"attention weights are (queries, keys), not negative, got {tuple(weights.shape)}")
    queries, keys = weights.shape
    side = min(0.3, 3.6 / max(queries, keys))
    ax = ax or new_axes(side * keys + 1.1, side * queries + 0.5)
    image = ax.imshow(weights.detach().float().cpu().numpy(), cmap=SEQUENTIAL, vmin=0, interpolation="nearest")
    framed(ax, labels, labels)
    bar = ax.figure.colorbar(image, ax=ax, shrink=0.7, pad=0.03, aspect=18)
    bar.outline.set_visible(False)
    return ax


def mask_picture(mask: Tensor, levels: Tensor | None = None, ax: Axes | None = None) -> Axes:
    """A mask (queries, keys), True where a query may see a key: filled. With `levels` (keys,): in the key's colour."""
    if mask.ndim != 2 or mask.dtype != torch.bool:
        raise ValueError(f"a mask is boolean (queries, keys), got {mask.dtype} {tuple(mask.shape)}")
    if levels is not None and levels.shape != mask.shape[1:]:
        raise ValueError(f"levels are ({mask.shape[1]},), one per key, got {tuple(levels.shape)}")
    queries, keys = mask.shape
    palette = np.array([to_rgb(colour) for colour in PALETTE])
    colour = palette[np.zeros(keys, int) if levels is None else levels.cpu().numpy() % len(PALETTE)]
    cells = np.where(mask.cpu().numpy()[..., None], colour, to_rgb(PALE))
    side = min(0.22, 3.2 / max(queries, keys))
    ax = ax or new_axes(side * keys + 0.5, side * queries + 0.5)
    ax.imshow(cells, interpolation="nearest")
    framed(ax)
    rule(ax, queries, keys, "white", 1.2 if max(queries, keys) <= 32 else 0.4)
    return ax


# Paths, curves, bars


def trajectories(paths: Tensor, ax: Axes | None = None) -> Axes:
    """Paths (T, B, 2) of B points through T times: from noise (grey rings) to data (amber), darker as time goes on."""
    if paths.ndim != 3 or paths.shape[2] != 2 or len(paths) < 2:
        raise ValueError(f"paths are (T, B, 2) with T >= 2, got {tuple(paths.shape)}")
    paths = paths.detach().float().cpu().numpy()
    ax = ax or new_axes(3.4, 3.4)
    segments = np.stack([paths[:-1], paths[1:]], 2)  # (T - 1, B, 2 ends, 2)
    time = np.repeat(np.linspace(0.15, 0.85, len(segments)), paths.shape[1])
    lines = LineCollection(segments.reshape(-1, 2, 2), array=time, cmap=SEQUENTIAL, lw=0.8, alpha=0.8, capstyle="round")
    lines.set_clim(0, 1)
    ax.add_collection(lines)
    ax.scatter(*paths[0].T, s=9, facecolors="white", edgecolors=GREY, linewidths=0.8, zorder=3)
    ax.scatter(*paths[-1].T, s=14, color=AMBER, edgecolors="white", linewidths=0.5, zorder=4)
    ax.set_aspect("equal")
    ax.margins(0.05)
    bare(ax)
    return ax


def curves(
    histories: Mapping,
    ylabel: str = "loss",
    xlabel: str = "step",
    xscale: str = "linear",
    yscale: str = "linear",
    ax: Axes | None = None,
) -> Axes:
    """One line per entry, named at its end. An entry is what `train.fit` returned, numbers, or a pair (x, y).

    Of a training history the losses are drawn thin (a running mean) and the validation values on top, with dots.
    """
    ax = ax or new_axes(5.6, 3.2)
    ends = []
    for i, (name, history) in enumerate(histories.items()):
        colour = PALETTE[i % len(PALETTE)]
        if hasattr(history, "losses"):
            losses = np.asarray(history.losses, float)
            width = max(1, len(losses) // 50)
            x, y = np.arange(width, len(losses) + 1), np.convolve(losses, np.full(width, 1 / width), "valid")
            if history.validation:
                ax.plot(x, y, color=colour, lw=0.9, alpha=0.45)
                x, y = list(history.validation), list(history.validation.values())
        else:
            x, y = history if isinstance(history, tuple) else (range(1, len(history) + 1), history)
        x, y = np.asarray(x, float), np.asarray(y, float)
        if len(x) != len(y) or not len(x):
            raise ValueError(f"{name}: a curve has as many x as y, at least one; got {len(x)} and {len(y)}")
        ax.plot(x, y, color=colour, marker="o" if len(x) <= 30 else None)
        ends.append((name, colour, x[-1], y[-1]))
    ax.set(xlabel=xlabel, ylabel=ylabel, xscale=xscale, yscale=yscale)
    name_ends(ax, ends)
    return ax


def name_ends(ax: Axes, ends: list[tuple]) -> None:
    """Write each name at the end (x, y) of its line, lowest first, and lift those that would cover the one below."""
    below = -np.inf
    ax.autoscale_view()  # matplotlib would put it off, and `transData` would not know the limits yet
    for name, colour, x, y in sorted(ends, key=lambda end: end[3]):
        height = ax.transData.transform((x, y))[1] * 72 / ax.figure.dpi  # in points
        lift = max(0.0, below + 13 - height)
        below = height + lift
        style = {"color": colour, "fontsize": 8.5, "fontweight": "bold", "va": "center", "annotation_clip": False}
        ax.annotate(str(name), (x, y), (7, lift), textcoords="offset points", **style)


def bars(values: Mapping, errors: Mapping | None = None, fmt: str = "{:.3g}", ax: Axes | None = None) -> Axes:
    """A horizontal bar per entry, the first on top, its value at the end; `errors` are half-widths of intervals."""
    if not values or not np.isfinite(list(values.values())).all():
        raise ValueError(f"bars need finite values, got {dict(values)}")
    names, lengths = [str(name) for name in values], [float(value) for value in values.values()]
    reach = [0.0 if errors is None else float(errors[name]) for name in values]
    ax = ax or new_axes(5.2, 0.34 * len(values) + 0.4)
    ax.barh(names, lengths, height=0.62, color=BLUE)
    if errors is not None:
        ax.errorbar(lengths, names, xerr=reach, fmt="none", ecolor=INK, elinewidth=1.1, capsize=2.5)
    for name, length, more in zip(names, lengths, reach):
        sign = -1 if length < 0 else 1
        place = {"textcoords": "offset points", "ha": "right" if sign < 0 else "left", "va": "center"}
        ax.annotate(fmt.format(length), (length + sign * more, name), (4 * sign, 0), fontsize=8.5, **place)
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(axis="x", labelbottom=False)
    ax.spines["bottom"].set_visible(False)
    ax.margins(x=0.14)
    return ax


# Axes


def new_axes(width: float, height: float) -> Axes:
    """Axes of a figure of their own, in inches."""
    return plt.subplots(figsize=(width, height), layout="constrained")[1]


def bare(ax: Axes) -> None:
    """Nothing but the picture."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    ax.grid(False)


def rule(ax: Axes, rows: int, columns: int, colour: str, width: float) -> None:
    """Lines between the cells of a table."""
    ax.hlines(np.arange(rows + 1) - 0.5, -0.5, columns - 0.5, colors=colour, linewidths=width)
    ax.vlines(np.arange(columns + 1) - 0.5, -0.5, rows - 0.5, colors=colour, linewidths=width)


def framed(ax: Axes, keys: Sequence | None = None, queries: Sequence | None = None) -> None:
    """Axes of attention: keys to the right, queries downwards; a thin frame shows where white cells end."""
    bare(ax)
    ax.spines[:].set(visible=True, color=PALE)
    if keys is not None:
        ax.set_xticks(range(len(keys)), keys)
        ax.set_yticks(range(len(queries)), queries)
    ax.set(xlabel="key", ylabel="query")
