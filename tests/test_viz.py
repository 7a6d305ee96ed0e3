"""Figures are checked by what they draw: pixels at their places, colours that differ, names that do not overlap."""

import itertools

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from skimage.color import rgb2lab

from minimal import viz
from minimal.nn.masks import not_after
from minimal.train import History

# Machado, Oliveira and Fernandes (2009): what red- and green-blind eyes see, in linear RGB
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]


@pytest.fixture(autouse=True)
def without_window():
    plt.switch_backend("agg")
    yield
    plt.close("all")


def cell(ax, column, row):
    """Colour of the drawn picture at data position (column, row), from the artist that `imshow` made."""
    image = ax.images[0]
    left, right, bottom, top = image.get_extent()
    pixels = image.get_array()
    x = int((column - left) / (right - left) * pixels.shape[1])
    y = int((row - top) / (bottom - top) * pixels.shape[0])
    return np.asarray(pixels[y, x])


def texts(ax):
    return [text.get_text() for text in ax.texts]


# Style


def test_style_holds_within_a_block_and_then_gives_back_what_was_before():
    with mpl.rc_context():
        mpl.rcParams["font.size"] = 17.0
        with viz.style():
            assert mpl.rcParams["font.size"] == 9
            assert mpl.rcParams["figure.facecolor"] == "white"
        assert mpl.rcParams["font.size"] == 17.0
        viz.style()
        assert mpl.rcParams["font.size"] == 9


def test_figures_are_opaque():
    with viz.style():
        figure = viz.bars({"a": 1}).figure
    figure.canvas.draw()
    assert (np.asarray(figure.canvas.buffer_rgba())[..., 3] == 255).all()


@pytest.mark.parametrize("eye", [np.eye(3), DEUTERANOPIA, PROTANOPIA], ids=["all cones", "deuteranopia", "protanopia"])
def test_colours_keep_apart_for_every_eye(eye):
    rgb = np.array([to_rgb(colour) for colour in viz.PALETTE])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.array(eye).T
    seen = np.clip(linear, 0, 1)
    lab = rgb2lab(np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055))
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 18  # Okabe and Ito's: 18, 21


def test_the_first_five_colours_keep_apart_in_a_grey_print():
    lightness = np.sort(rgb2lab(np.array([to_rgb(colour) for colour in viz.PALETTE[:5]]))[:, 0])
    assert np.diff(lightness).min() > 8


# Images


def test_image_r_c_is_drawn_at_c_r_and_minus_one_is_black():
    images = torch.linspace(-1, 1, 7).view(7, 1, 1, 1).expand(7, 1, 8, 8)
    ax = viz.image_grid(images, ncol=3)
    for i in range(7):
        assert cell(ax, i % 3, i // 3) == pytest.approx([i / 6] * 3, abs=1e-6)
    assert cell(ax, 2, 2) == pytest.approx([1, 1, 1])  # paper where no image is left


def test_pixels_keep_their_places_and_colours_and_are_clamped():
    image = torch.tensor([[[[3.0, -1.0], [-1.0, -1.0]], [[-1.0, 0.0], [-1.0, -1.0]], [[-1.0, -1.0], [1.0, -9.0]]]])
    ax = viz.image_grid(image, ncol=1)
    for (x, y), colour in {(-1, -1): [1, 0, 0], (1, -1): [0, 0.5, 0], (-1, 1): [0, 0, 1], (1, 1): [0, 0, 0]}.items():
        assert cell(ax, 0.25 * x, 0.25 * y) == pytest.approx(colour, abs=1e-6)


@pytest.mark.parametrize("height, width, titles", [(8, 8, None), (6, 10, None), (8, 8, 6), (8, 4, 6), (8, 8, 3)])
def test_pixels_are_square_on_the_page(height, width, titles):
    ax = viz.image_grid(torch.zeros(6, 1, height, width), ncol=3, titles=titles and list("abcdef")[:titles])
    ax.figure.canvas.draw()
    dark = (np.asarray(ax.figure.canvas.buffer_rgba())[..., :3] == 127).all(-1)  # mid-grey pixels of the page
    rows, columns = dark.sum(0).max() / (2 * height), dark.sum(1).max() / (3 * width)  # page pixels per image pixel
    assert rows == pytest.approx(columns, rel=0.05)


def test_titles_stand_over_images_or_columns_and_labels_beside_rows():
    images = torch.zeros(5, 1, 8, 8)
    assert texts(viz.image_grid(images, 5, titles=range(5))) == list("01234")
    assert texts(viz.image_grid(images, 2, titles=["left", "right"])) == ["left", "right"]
    ax = viz.image_grid(images, 2, row_labels=["a", "b", "c"])
    assert [(tick.get_text(), place) for tick, place in zip(ax.get_yticklabels(), ax.get_yticks())] == [
        ("a", 0), ("b", 1), ("c", 2),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="titles"):
        viz.image_grid(images, 2, titles="abc")
    with pytest.raises(ValueError, match="row_labels"):
        viz.image_grid(images, 2, row_labels="ab")


@pytest.mark.parametrize("images", [torch.zeros(2, 8, 8), torch.zeros(2, 2, 8, 8), torch.zeros(0, 1, 8, 8)])
def test_what_is_no_batch_of_images_is_refused(images):
    with pytest.raises(ValueError, match="channels"):
        viz.image_grid(images)
    with pytest.raises(ValueError, match="NaN"):
        viz.image_grid(torch.full((1, 1, 8, 8), torch.nan))


# Tokens and attention


def test_equal_tokens_have_equal_colours_and_places_not_drawn_are_pale():
    ax = viz.token_map(torch.tensor([5, 6, 7, 5, -1, 6]), (2, 3), 8)
    assert texts(ax) == ["5", "6", "7", "5", "", "6"]
    assert (cell(ax, 0, 0) == cell(ax, 0, 1)).all() and (cell(ax, 1, 0) == cell(ax, 2, 1)).all()
    assert np.abs(cell(ax, 0, 0) - cell(ax, 1, 0)).max() > 0.1
    assert cell(ax, 1, 1) == pytest.approx(to_rgb(viz.PALE))


def test_every_code_has_a_colour_of_its_own_on_which_black_is_legible():
    colours = viz.code_colours(1024)
    assert len(np.unique(colours.round(6), axis=0)) == 1024
    assert (colours @ [0.2126, 0.7152, 0.0722]).min() > 0.35
    for step in (1, 2, 3):
        assert np.abs(colours[step:] - colours[:-step]).max(1).min() > 0.04


@pytest.mark.parametrize(
    "tokens", [torch.tensor([0, 1, 8, 2]), torch.tensor([0, 1, -2, 2]), torch.zeros(3).long(), torch.zeros(4)]
)
def test_tokens_that_do_not_fit_are_refused(tokens):
    with pytest.raises(ValueError, match="tokens"):
        viz.token_map(tokens, (2, 2), 8)


def test_attention_is_darkest_where_it_is_largest():
    weights = torch.tensor([[1.0, 0.0, 0.0], [0.25, 0.75, 0.0]])
    ax = viz.attention_map(weights, labels=None)
    assert torch.equal(torch.tensor(np.asarray(ax.images[0].get_array())), weights)
    assert ax.images[0].cmap(ax.images[0].norm(1.0))[0] < ax.images[0].cmap(ax.images[0].norm(0.25))[0]
    assert ax.images[0].get_clim() == (0, 1)
    with pytest.raises(ValueError, match="queries, keys"):
        viz.attention_map(weights - 1)


def test_a_mask_is_filled_where_attention_is_allowed_in_the_colour_of_the_keys_level():
    levels = torch.tensor([0, 1, 1])
    ax = viz.mask_picture(not_after.square(levels), levels)
    expected = {(0, 0): viz.BLUE, (0, 1): viz.PALE, (1, 0): viz.BLUE, (1, 2): viz.AMBER, (2, 1): viz.AMBER}
    for (query, key), colour in expected.items():
        assert cell(ax, key, query) == pytest.approx(to_rgb(colour))
    with pytest.raises(ValueError, match="boolean"):
        viz.mask_picture(torch.ones(3, 3))
    with pytest.raises(ValueError, match="levels"):
        viz.mask_picture(not_after.square(levels), levels[:2])


# Paths, curves, bars


def test_trajectories_join_consecutive_times_and_mark_both_ends():
    paths = torch.arange(24.0).view(4, 3, 2)
    ax = viz.trajectories(paths)
    lines, start, end = ax.collections
    segments = {tuple(map(tuple, segment)) for segment in np.asarray(lines.get_segments())}
    assert segments == {tuple(map(tuple, paths[t : t + 2, b].numpy())) for t in range(3) for b in range(3)}
    assert np.allclose(start.get_offsets(), paths[0]) and np.allclose(end.get_offsets(), paths[-1])
    assert (np.diff(lines.get_array().reshape(3, 3), axis=0) > 0).all()  # colour follows time, not the point
    with pytest.raises(ValueError, match="T, B, 2"):
        viz.trajectories(paths[:1])


def test_curves_take_histories_numbers_and_pairs():
    history = History(losses=[4.0, 3.0, 2.0, 1.0], validation={2: 3.5, 4: 1.5})
    ax = viz.curves({"ours": history, "numbers": [1.0, 2.0], "pair": ([10, 20], [0.5, 0.25])})
    drawn = [(line.get_xdata().tolist(), line.get_ydata().tolist()) for line in ax.lines]
    assert drawn == [
        ([1, 2, 3, 4], [4, 3, 2, 1]), ([2, 4], [3.5, 1.5]), ([1, 2], [1, 2]), ([10, 20], [0.5, 0.25]),
    ]  # fmt: skip
    assert sorted(texts(ax)) == ["numbers", "ours", "pair"]
    with pytest.raises(ValueError, match="as many x as y"):
        viz.curves({"broken": ([1, 2], [1])})


def test_long_losses_are_drawn_as_a_running_mean_at_the_step_where_its_window_ends():
    losses = torch.arange(100.0).tolist()
    (line,) = viz.curves({"ours": History(losses=losses)}).lines
    assert line.get_xdata()[0] == 2 and line.get_ydata()[0] == 0.5
    assert line.get_xdata()[-1] == 100 and line.get_ydata()[-1] == 98.5


@pytest.mark.parametrize("yscale", ["linear", "log"])
def test_names_of_lines_that_end_together_do_not_overlap(yscale):
    for gap in (0.0, 0.1, 0.3, 0.5, 0.7, 0.9):
        ends = {"first": 10.0, "second": 10.0 + gap, "third": 14.0}
        with viz.style():
            mpl.rcParams["figure.dpi"] = 200  # distances are in points, whatever the resolution
            ax = viz.curves({name: ([0, 1], [20.0, end]) for name, end in ends.items()}, yscale=yscale)
            ax.figure.canvas.draw()
        assert ax.get_yscale() == yscale
        boxes = [text.get_window_extent() for text in ax.texts]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2)), gap


def test_bars_start_at_the_top_and_carry_their_values():
    ax = viz.bars({"a": 2.0, "b": -0.5}, errors={"a": 0.25, "b": 0.1}, fmt="{:.1f}")
    assert [bar.get_width() for bar in ax.patches] == [2.0, -0.5]
    assert texts(ax) == ["2.0", "-0.5"]
    assert ax.yaxis_inverted()
    (segments,) = [c.get_segments() for c in ax.collections]
    assert [s[:, 0].tolist() for s in segments] == [[1.75, 2.25], [-0.6, -0.4]]
    with pytest.raises(ValueError, match="finite"):
        viz.bars({"a": float("nan")})


def test_every_figure_draws_into_given_axes():
    ax = plt.subplots()[1]
    calls = [
        lambda: viz.image_grid(torch.zeros(1, 1, 8, 8), ax=ax),
        lambda: viz.token_map(torch.zeros(4).long(), (2, 2), 8, ax=ax),
        lambda: viz.attention_map(torch.eye(2), ax=ax),
        lambda: viz.mask_picture(torch.eye(2).bool(), ax=ax),
        lambda: viz.trajectories(torch.zeros(2, 1, 2), ax=ax),
        lambda: viz.curves({"a": [1.0]}, ax=ax),
        lambda: viz.bars({"a": 1.0}, ax=ax),
    ]
    assert all(call() is ax for call in calls) and len(plt.get_fignums()) == 1
