import pytest
import torch

from minimal import checkpoints, recipes


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
