"""Recipes of any-subset models: only measuring opens the test split; what is shipped is as good as its header says."""

import pytest
import torch

from minimal import checkpoints, recipes
from minimal.ar.histogram import Histogram
from minimal.recipes import any_subset, start, text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["digits_any_subset", "pydoc_any_subset"])
def test_a_recipe_trains_saves_and_measures_and_only_measuring_opens_the_test_split(name, tmp_path, monkeypatch):
    seen = []
    for which, splits in (("digits", start.digits), ("pydoc", text.pydoc)):
        monkeypatch.setattr(any_subset, which, lambda split, splits=splits: seen.append(split) or splits(split))
    monkeypatch.setattr(any_subset, "measured", lambda model, held_out: {"before": len(seen)})
    path = recipes.run(name, out=str(tmp_path / f"{name}.safetensors"), steps=2)
    assert checkpoints.header(path)["recipe"] == name
    assert set(seen) == {"train", "validation"} and checkpoints.header(path)["metrics"]["before"] == len(seen)
    assert checkpoints.load(path).head.weight.abs().max() > 0  # it moved: the head starts at zero


@pytest.mark.slow
def test_the_shipped_pixel_model_is_as_good_as_its_header_says_and_uses_what_it_knows():
    model, metrics = checkpoints.load("digits_any_subset"), checkpoints.header("digits_any_subset")["metrics"]
    train, validation = start.digits("train"), start.digits("validation")
    encode = start.pixel_tokenizer(train).encode
    tokens, labels = encode(validation.images), validation.labels
    with torch.inference_mode():
        nothing = -model.logprob(tokens, labels).mean().item() / 64
    assert nothing == pytest.approx(metrics["validation_nats_nothing_known"], abs=2e-3)  # stored in float16
    histogram = Histogram(encode(train.images), 17, train.labels, 10)
    baseline = -histogram.logprob(tokens, labels).mean().item() / 64
    assert nothing < baseline - 0.1
    assert metrics["validation_nats_half_known"] < nothing - 0.03  # grey levels are noisy


@pytest.mark.slow
def test_the_shipped_text_model_is_as_good_as_its_header_says_and_uses_what_it_knows():
    model, metrics = checkpoints.load("pydoc_any_subset"), checkpoints.header("pydoc_any_subset")["metrics"]
    train, held_out = (text.pydoc(split).tokens for split in ("train", "validation"))
    share = (train.bincount(minlength=96) + 0.1) / (len(train) + 9.6)
    baseline = -share[held_out].log().mean().item()
    with torch.inference_mode():
        nothing = -model.logprob(text.windows(held_out, 64)).mean().item() / 64
    assert nothing == pytest.approx(metrics["validation_nats_nothing_known"], abs=2e-3)
    assert nothing < baseline - 1
    assert metrics["validation_nats_half_known"] < nothing - 0.1
