import pytest
import torch

from minimal import checkpoints, recipes
from minimal.recipes import text


def test_a_recipe_saves_a_checkpoint_that_says_how_it_was_made(tmp_path):
    path = recipes.run("digits_draft", out=str(tmp_path / "draft.safetensors"), steps=2)
    header = checkpoints.header(path)
    assert header["recipe"] == "digits_draft"
    assert 3 < header["metrics"]["test_bits_per_dim"] < 4.2  # two steps from uniform, log2(17) = 4.09
    assert checkpoints.load(path).vocab_size == 17
    assert list(tmp_path.iterdir()) == [path]  # the state of the run is gone


def test_recipes_repeat_themselves(tmp_path):
    first, second = (
        recipes.run("digits_draft", out=str(tmp_path / f"{i}.safetensors"), steps=3, seed=5) for i in (1, 2)
    )
    assert first.read_bytes() == second.read_bytes()


def test_an_unknown_recipe_is_a_clear_error():
    with pytest.raises(ValueError, match="digits_ar"):
        recipes.run("digit_ar")


@pytest.mark.parametrize("name", checkpoints.names())
def test_a_shipped_checkpoint_is_small_and_names_its_recipe(name):
    path, header = checkpoints.locate(name), checkpoints.header(name)
    assert path.stat().st_size < 2_100_000  # a million bytes as a rule; the generators of Part 2 have a million weights
    assert header["recipe"] == name and name in recipes.names()
    assert header["metrics"]
    assert all(parameter.isfinite().all() for parameter in checkpoints.load(name).parameters())


def test_the_shipped_pixel_model_is_as_good_as_its_header_says():
    model, encode = checkpoints.load("digits_ar"), recipes.pixel_tokenizer(recipes.digits("test")).encode
    metrics = checkpoints.header("digits_ar")["metrics"]
    measured = recipes.bits(model, encode, recipes.digits("validation"), 64)["bits_per_dim"]
    assert measured == pytest.approx(metrics["validation_bits_per_dim"], abs=2e-3)  # weights are stored in float16
    assert metrics["test_bits_per_dim"] <= 1.80


def test_training_never_sees_held_out_images():
    """A step draws from the training split alone: the batch function is given nothing else to draw from."""
    seen = []
    model = recipes.pixel_gpt(recipes.digits("train"), **recipes.DRAFT)
    encode = recipes.pixel_tokenizer(recipes.digits("train")).encode

    def spy(split):
        seen.append(split)
        return recipes.digits(split)

    recipes.fit_tokens(model, encode, spy, steps=1, progress=False)
    assert seen == ["train", "validation"]
    assert not torch.equal(model.head.weight, torch.zeros_like(model.head.weight))


def test_windows_cut_a_text_without_overlap():
    assert text.windows(torch.arange(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("name", ["pydoc_ar", "pydoc_draft"])
def test_the_shipped_text_models_are_as_good_as_their_headers_say_and_better_than_character_frequencies(name):
    train, held_out = (text.pydoc(split).tokens for split in ("train", "validation"))
    share = (train.bincount(minlength=96) + 0.1) / (len(train) + 9.6)
    frequencies = -share[held_out].log().mean().item()
    metrics = checkpoints.header(name)["metrics"]
    measured = text.nats_per_character(checkpoints.load(name), text.windows(held_out)[:40])
    assert measured == pytest.approx(metrics["validation_nats_per_character"], abs=0.1)  # a third of the windows
    assert metrics["test_nats_per_character"] < frequencies - 1


def test_text_is_trained_on_the_training_split_alone():
    seen = []
    model = text.text_gpt(text.pydoc("train"), dim=16, layers=1, heads=2)

    def spy(split):
        seen.append(split)
        return text.pydoc(split)

    history = text.fit_text(model, spy, steps=2, batch_size=2, progress=False)
    assert seen == ["train", "validation"]
    assert 3 < history.best < 4.7  # near the uniform log(96) = 4.56
