"""The tour's machinery on tiny untrained networks: every row draws, promises are checked, the table tells the costs."""

import matplotlib.pyplot as plt
import pytest
import torch

from minimal import data, recipes, tour
from minimal.ar.any_subset import AnySubsetGPT
from minimal.ar.raster import RasterGPT
from minimal.flows.flow_matching import FlowMatching
from minimal.flows.mean_flow import MeanFlow
from minimal.judge import Judge
from minimal.samplers.cached import sample_cached
from minimal.samplers.guidance import Guided
from minimal.tokenizers.vq import VQTokenizer


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    digits = data.load("digits")

    def guided(model):
        torch.nn.init.normal_(model.head.weight)
        return Guided(model.double().eval(), 1.5)  # float64: the width of a pass must not flip a token

    codes = VQTokenizer(digits.image_shape, codebook_size=9, dim=3, widths=(8, 8)).eval()
    return tour.Models(
        guided(recipes.pixel_gpt(digits, dim=16, layers=2, heads=2)),
        guided(recipes.pixel_gpt(digits, **recipes.DRAFT)),
        recipes.pixel_tokenizer(digits),
        guided(AnySubsetGPT(17, 64, 10, grid_width=8, dim=16, layers=1, heads=2)),
        guided(RasterGPT(9, 16, 10, grid_width=4, dim=16, layers=1, heads=2)),
        codes,
        FlowMatching(num_classes=10, width=16, depth=1).eval(),
        MeanFlow(num_classes=10, width=16, depth=1).eval(),
    )


@pytest.fixture(scope="module")
def results(models):
    return tour.compare(models, Judge(10).eval(), per_class=1, progress=False)


def test_every_row_draws_images_of_every_class(results):
    assert len(results) == len(tour.ROWS) >= 12
    assert all(r.images.shape == (10, 1, 8, 8) and r.images.abs().max() <= 1 for r in results)


def test_forwards_are_those_of_the_methods(results):
    forwards = {r.row.name: r.forwards for r in results}
    assert forwards["pixels, no cache"] == forwards["pixels, cached"] == {"target": 64}
    assert forwards["VQ codes, cached"] == {"target": 16}
    assert forwards["flow, 50 steps"] == {"velocity": 50}
    assert forwards["mean flow, 1 step"] == {"average velocity": 1}
    assert 64 / 7 <= forwards["pixels, speculative"]["target"] <= 64
    assert 64 / 7 <= forwards["pixels, many drafts"]["target"] <= 64
    assert max(forwards[f"pixels, {name}"]["target"] for name in ("Jacobi", "lookahead", "any subset")) <= 64
    assert forwards["pixels, static step"] == {"target": 64}


def test_a_cache_saves_multiply_adds(results):
    work = {r.row.name: r.multiply_adds for r in results}
    assert work["pixels, no cache"] > 20 * work["pixels, cached"]


def test_rows_that_promise_the_same_tokens_keep_their_word(results):
    promises = {r.row.name: r.promise for r in results}
    for name in ("cached", "Jacobi", "lookahead", "static step"):
        assert promises[f"pixels, {name}"] == "same tokens"


def test_a_broken_promise_is_told(models):
    liar = tour.Row(
        "liar",
        lambda m, n, **o: sample_cached(m.pixels, n, **o | {"generator": torch.Generator().manual_seed(9)}),
        "same tokens",
    )
    result = tour.compare(models, Judge(10).eval(), rows=[tour.ROWS[0], liar], per_class=1, progress=False)[1]
    assert result.promise.endswith("% same tokens")


def test_the_table_has_a_line_per_row_and_the_picture_an_image_per_class(results):
    lines = tour.table(results).splitlines()
    assert [line[:22].strip() for line in lines[2:]] == [row.name for row in tour.ROWS]
    figure = tour.picture(results, data.load("digits", "test"))
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "real images",
        *(row.name for row in tour.ROWS),
    ]
    plt.close(figure)


def test_an_unknown_data_set_is_a_clear_error():
    with pytest.raises(ValueError, match="digits, mnist"):
        tour.build("cifar10")


@pytest.mark.slow
def test_the_whole_tour_runs_with_a_few_steps(tmp_path, capsys):
    tour.main(steps=4, out=str(tmp_path / "tour.png"))
    printed = capsys.readouterr().out
    assert "bits per dimension" in printed and "mean flow, 1 step" in printed
    assert (tmp_path / "tour.png").stat().st_size > 10_000
