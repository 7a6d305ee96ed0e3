import matplotlib
import matplotlib.pyplot as plt
import pytest
import torch

from minimal import viz

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_a_grid_shows_every_image_where_it_belongs():
    images = torch.linspace(-1, 1, 6).view(6, 1, 1, 1).expand(6, 1, 4, 4)
    ax = viz.image_grid(images, ncol=3, titles=["a", "b", "c"], row_labels=["top", "bottom"])
    sheet = torch.from_numpy(ax.images[0].get_array().data)[..., 0]
    assert sheet.shape == (4 + 1 + 4, 3 * 4 + 2)
    assert sheet[::5, ::5].flatten().tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1], abs=1e-6)
    assert (sheet[4] == 1).all() and (sheet[:, 4] == 1).all()  # white between the images
    assert [t.get_text() for t in ax.get_yticklabels()] == ["top", "bottom"]


def test_values_outside_the_range_are_clamped_and_colours_stay():
    ax = viz.image_grid(torch.tensor([2.0, -3.0, 0.0]).view(1, 3, 1, 1))
    assert ax.images[0].get_array()[0, 0].tolist() == [1, 0, 0.5]


def test_images_of_a_wrong_shape_are_refused():
    with pytest.raises(ValueError, match="n, 1 or 3, H, W"):
        viz.image_grid(torch.zeros(4, 8, 8))


def test_style_as_a_context_puts_back_what_was_there():
    before = matplotlib.rcParams.copy()
    with viz.style():
        assert matplotlib.rcParams["axes.facecolor"] == "white"
        assert matplotlib.rcParams != before
    assert matplotlib.rcParams == before


def test_smoothing_keeps_a_constant_and_follows_a_step():
    assert viz.smooth([2.0] * 50) == pytest.approx([2.0] * 50)
    averages = viz.smooth([0.0] * 100 + [1.0] * 100)
    assert 0 < averages[101] < averages[110] < 1 and averages[-1] > 0.99


@pytest.mark.parametrize(
    "make",
    [
        lambda ax: viz.token_map(torch.arange(6), (2, 3), 10, ax=ax),
        lambda ax: viz.heat_map(torch.rand(3, 4), ax=ax, label="bits"),
        lambda ax: viz.mask_picture(torch.rand(4, 5) < 0.5, ax=ax),
        lambda ax: viz.attention_map(torch.rand(4, 5), ax=ax),
        lambda ax: viz.trajectories(torch.randn(7, 5, 2), ax=ax),
        lambda ax: viz.curves({"train": [3.0, 2.0, 1.0], "validation": {0: 3.0, 2: 1.5}}, ax=ax),
        lambda ax: viz.image_grid(torch.zeros(2, 1, 4, 4), ax=ax),
    ],
)
def test_a_picture_draws_into_given_axes_or_makes_its_own(make):
    ax = plt.subplots()[1]
    assert make(ax) is ax
    assert make(None).figure is not ax.figure
    make(None).figure.canvas.draw()
