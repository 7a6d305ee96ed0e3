"""The fast step is the model: same logits, same samples, for every cache, group size and sampler."""

import pytest
import torch

from minimal.ar.raster import RasterGPT
from minimal.nn.cache import KVCache, StaticKVCache
from minimal.samplers.cached import sample_cached
from minimal.samplers.fast import FastRaster
from minimal.samplers.guidance import Guided
from minimal.samplers.jacobi import sample_jacobi
from minimal.samplers.speculative import sample_speculative


@pytest.fixture(params=[None, 2, 1], ids=["multi-head", "grouped", "multi-query"])
def model(request):
    torch.manual_seed(0)
    model = RasterGPT(11, 16, 3, grid_width=4, dim=32, layers=3, heads=4, kv_heads=request.param).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # norm weights away from one, so that folding them matters
            parameter.copy_(torch.randn_like(parameter) * (0.2 if "norm" not in name else 1.0))
    return model


def noise():
    return torch.Generator().manual_seed(1)


def test_fast_logits_equal_the_models(model):
    tokens, labels = torch.randint(11, (5, 16)), torch.tensor([0, 1, 2, 3, 0])
    logits = FastRaster(model).logits(tokens, labels)
    torch.testing.assert_close(logits, model.logits(tokens, labels), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", [KVCache, StaticKVCache])
@pytest.mark.parametrize("chunks", [[1] * 16, [1, 3, 1, 11], [16]])
def test_fast_logits_through_a_cache_equal_the_models(model, kind, chunks):
    tokens, labels = torch.randint(11, (3, 16)), torch.tensor([0, 1, 2])
    fast = FastRaster(model)
    cache = fast.new_cache(3, kind=kind)
    rows = torch.cat([fast.logits(tokens, labels, cache=cache, n=n) for n in chunks], dim=1)
    torch.testing.assert_close(rows, model.logits(tokens, labels), rtol=1e-9, atol=1e-9)


def test_every_sampler_draws_the_same_tokens_from_the_fast_step(model):
    labels = torch.tensor([0, 1, 2, 1])
    fast = FastRaster(model)
    for wrap in (lambda m: m, lambda m: Guided(m, 2.0)):
        slow, quick = wrap(model), wrap(fast)
        for draw in (sample_cached, sample_jacobi, lambda m, n, **o: sample_speculative(m, m, n, k=3, **o)):
            expected = draw(slow, 4, cond=labels, generator=noise()).tokens
            assert torch.equal(draw(quick, 4, cond=labels, generator=noise()).tokens, expected)


def test_the_fast_step_leaves_the_model_as_it_was(model):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    FastRaster(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_snapshot_refuses_to_be_cast(model):
    with pytest.raises(ValueError, match="make a new one"):
        FastRaster(model).float()
