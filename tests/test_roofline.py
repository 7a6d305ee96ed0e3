"""What a step reads and computes, counted against the storage that it touches and the products that it makes."""

import pytest
import torch
from tiny import tiny_gpt

from minimal import roofline
from minimal.ar.raster import RasterGPT
from minimal.nn.cache import KVCache
from minimal.samplers.fast import FastRaster
from minimal.samplers.trace import multiply_adds


def step_of(model, batch, context, n):
    """n new positions behind context - n cached ones."""
    cache, canvas = model.new_cache(batch), torch.zeros(batch, context, dtype=torch.long)

    @torch.no_grad()
    def step():
        cache.length = context - n
        model.logits(canvas, cache=cache, n=n)

    return step


SIZES = [(1, 12, 1), (3, 7, 1), (2, 9, 4), (1, 5, 5)]


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("batch, context, n", SIZES)
@pytest.mark.parametrize("kind", [lambda model: model, FastRaster], ids=["plain", "fast"])
def test_operations_are_two_for_each_multiply_add_of_the_real_step(kind, batch, context, n, kv_heads):
    model = kind(tiny_gpt(dtype=torch.float32, kv_heads=kv_heads))
    real = multiply_adds(step_of(model, batch, context, n))
    assert roofline.operations_per_step(model, batch, context, n) == 2 * real


class Watched(KVCache):
    """Counts the bytes that it shows to the queries."""

    shown = 0

    def append(self, layer, k, v):
        k, v = super().append(layer, k, v)
        self.shown += k.nbytes + v.nbytes
        return k, v


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("batch, context, n", SIZES)
def test_bytes_are_those_of_the_parameters_and_of_the_keys_that_a_step_touches(batch, context, n, dtype):
    model = tiny_gpt(dtype=dtype)
    cache = model.new_cache(batch, kind=Watched)
    cache.length = context - n
    model.logits(torch.zeros(batch, context, dtype=torch.long), cache=cache, n=n)
    counted = roofline.bytes_per_step(model, batch, context, n)
    rows = batch * n * model.embedding.weight[0].nbytes
    everything = sum(parameter.nbytes for parameter in model.parameters())
    assert counted.weights == everything - model.embedding.weight.nbytes + rows
    assert counted.cache == cache.shown
    assert counted.total == counted.weights + counted.cache


def test_grouped_queries_divide_the_cache_and_nothing_else_of_it():
    full, grouped = (RasterGPT(7, 50, dim=16, layers=2, heads=4, kv_heads=g) for g in (4, 1))
    bytes_full, bytes_grouped = (roofline.bytes_per_step(model, 3) for model in (full, grouped))
    assert bytes_full.cache == 4 * bytes_grouped.cache
    saved = 2 * 2 * 16 * 12 * 4  # two layers, keys and values, 12 columns of 16 numbers less
    assert bytes_full.weights - bytes_grouped.weights == saved


def test_the_roofline_is_the_slower_of_memory_and_arithmetic():
    model = tiny_gpt()
    operations, read = roofline.operations_per_step(model), roofline.bytes_per_step(model).total
    assert roofline.roofline_seconds(model, bandwidth=read / 3, peak=operations / 2) == pytest.approx(3)
    assert roofline.roofline_seconds(model, bandwidth=read / 2, peak=operations / 3) == pytest.approx(3)


def test_the_machine_is_measured_in_bytes_and_operations_per_second():
    assert 1e8 < roofline.copy_bandwidth(bytes=4e6, repeats=2) < 1e13
    assert 1e8 < roofline.arithmetic_peak(size=64, repeats=2) < 1e15


def test_operators_are_counted_by_name_and_views_together():
    x = torch.ones(2, 3)
    calls = roofline.count_operators(lambda: torch.nn.functional.linear(x.view(3, 2), torch.ones(4, 2)).exp().T)
    assert calls["mm"] == calls["exp"] == 1  # linear is a product and a view, and is not counted itself
    assert calls["view"] == 3 and "linear" not in calls


def test_a_product_over_leading_axes_is_one_product_and_views():
    calls = roofline.count_operators(lambda: torch.ones(2, 3, 4) @ torch.ones(4, 5))
    assert calls["mm"] == 1 and "_unsafe_view" not in calls


@pytest.mark.parametrize("batch, context, n", [(0, 5, 1), (1, 5, 0), (1, 5, 6)])
def test_sizes_that_fit_no_step_are_refused(batch, context, n):
    for count in (roofline.bytes_per_step, roofline.operations_per_step):
        with pytest.raises(ValueError, match="context counts the n new tokens too"):
            count(tiny_gpt(), batch, context, n)
