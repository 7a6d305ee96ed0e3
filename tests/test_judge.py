"""The judges: frozen, accurate, blind to nothing that a bad sampler does."""

import math

import pytest
import torch
import torch.nn.functional as F

from minimal import checkpoints, judge
from minimal.data import found, load
from minimal.judge import Judge, jittered
from minimal.metrics import batched, frechet_distance, frechet_floor, kernel_distance, label_accuracy, precision_recall
from minimal.train import adamw, fit


@pytest.fixture(scope="module")
def digits():
    """The judge of the digits, and two halves of real images with the same share of each class."""
    real = load("digits", "train")
    order = real.labels.argsort(stable=True)
    return checkpoints.load("judge_digits"), real.select(order[::2]), real.select(order[1::2])


# Frozen


@pytest.mark.parametrize("name", judge.RECIPES)
def test_shipped_judges_are_the_frozen_ones_and_good_enough(name):
    header = checkpoints.header(name)
    assert header["sha256"] == judge.SHA256[name], "the judge changed: new VERSION, and measure all distances again"
    assert header["class"] == "minimal.judge.Judge" and header["recipe"] == name
    bar = 0.99 if name == "judge_shapes" else 0.985
    assert header["metrics"]["validation_accuracy"] >= bar and header["metrics"]["test_accuracy"] >= bar
    assert checkpoints.locate(name).stat().st_size < 300_000


def test_version_and_hashes_change_together():
    assert judge.VERSION == 1 and set(judge.SHA256) == set(judge.RECIPES)


def remeasured(name, count):
    recipe = judge.RECIPES[name]
    part = load(recipe.data, "validation", **recipe.options).select(slice(count))
    return label_accuracy(checkpoints.load(name), part.images, part.labels)


def test_the_accuracy_on_digits_is_the_recorded_one():
    assert remeasured("judge_digits", 180) == checkpoints.header("judge_digits")["metrics"]["validation_accuracy"]


def test_the_judge_of_shapes_tells_all_sixteen_apart():
    assert remeasured("judge_shapes", 160) >= 0.99


@pytest.mark.slow
@pytest.mark.skipif(any(row.name == "mnist" and row.missing for row in found()), reason="needs the files of MNIST")
def test_the_accuracy_on_mnist_is_the_recorded_one():
    recorded = checkpoints.header("judge_mnist14")["metrics"]["validation_accuracy"]
    assert remeasured("judge_mnist14", 5000) == pytest.approx(recorded, abs=4e-4)  # two images, float16 weights


@pytest.mark.slow
def test_a_sixth_of_the_recipe_already_recognises_digits():
    trained, accuracy = judge.train_judge("judge_digits", steps=200, progress=False)
    assert accuracy["validation_accuracy"] > 0.93 and not trained.training


# The network


@pytest.mark.parametrize("channels, size", [(1, 8), (1, 14), (3, 32), (1, 4)])
def test_features_and_logits_have_their_shapes_and_logits_are_linear_in_features(channels, size):
    net = Judge(7, channels=channels, image_size=size, width=8, feature_dim=5).eval()
    x = torch.rand(3, channels, size, size) * 2 - 1
    features, logits = net.features(x), net(x)
    assert features.shape == (3, 5) and logits.shape == (3, 7)
    torch.testing.assert_close(logits, features @ net.head.weight.T + net.head.bias)


def test_an_image_is_judged_alone(digits):
    net, real, _ = digits
    torch.testing.assert_close(batched(net, real.images[:20], batch_size=1), batched(net, real.images[:20]))


def test_a_checkpoint_rebuilds_the_judge(tmp_path):
    net, x = Judge(3, width=8, feature_dim=5).eval(), torch.rand(2, 1, 8, 8)
    checkpoints.save(net, tmp_path / "judge.safetensors", half=False)
    assert torch.equal(checkpoints.load(tmp_path / "judge.safetensors")(x), net(x))


def test_a_small_judge_learns_eight_images_by_heart():
    real = load("digits", "train").select(slice(8))
    net = Judge(10, width=8, dropout=0.0)
    fit(net, (real.images, real.labels), adamw(net, 1e-2), steps=60, batch_size=8, progress=False)
    assert label_accuracy(net, real.images, real.labels) == 1.0


@pytest.mark.parametrize(
    "images, word",
    [
        (torch.zeros(2, 1, 9, 9), "shape"),
        (torch.zeros(2, 3, 8, 8), "shape"),
        (torch.zeros(1, 8, 8), "shape"),
        (torch.full((2, 1, 8, 8), 1.1), "clamp"),
        (torch.full((2, 1, 8, 8), math.nan), "NaN"),
    ],
)
def test_images_that_the_judge_cannot_see_are_refused(images, word):
    with pytest.raises(ValueError, match=word):
        Judge(10, width=8)(images)


# Jitter


def blob(x, y, size=32):
    """A smooth dot at (x, y) pixels from the centre of a black image, (1, 1, size, size)."""
    place = torch.arange(size) - (size - 1) / 2
    return 2 * torch.exp(-((place[None, :] - x) ** 2 + (place[:, None] - y) ** 2) / 8)[None, None] - 1


def centroid(images):
    """Where the light of each image is, (B,) and (B,), in pixels from the centre."""
    light, place = (images[:, 0] + 1), torch.arange(images.shape[-1]) - (images.shape[-1] - 1) / 2
    total = light.sum((1, 2))
    return (light.sum(1) * place).sum(1) / total, (light.sum(2) * place).sum(1) / total


def test_jitter_moves_by_up_to_so_many_pixels(generator):
    x, y = centroid(jittered(blob(0, 0).repeat(400, 1, 1, 1), generator, degrees=0, scale=0, pixels=1.5))
    for moved in (x, y):
        assert 1.4 < moved.max() < 1.501 and -1.4 > moved.min() > -1.501
    assert abs(torch.corrcoef(torch.stack([x, y]))[0, 1]) < 0.2


def test_jitter_turns_by_up_to_so_many_degrees_and_resizes_by_up_to_such_a_share(generator):
    x, y = centroid(jittered(blob(8, 0).repeat(400, 1, 1, 1), generator, degrees=30, scale=0, pixels=0))
    angles = torch.atan2(y, x).rad2deg()
    assert 28.5 < angles.max() < 30.1 and -28.5 > angles.min() > -30.1
    torch.testing.assert_close((x**2 + y**2).sqrt(), torch.full((400,), 8.0), atol=0.05, rtol=0)
    x, y = centroid(jittered(blob(8, 0).repeat(400, 1, 1, 1), generator, degrees=0, scale=0.2, pixels=0))
    assert 8 / 0.81 < x.max() < 8 / 0.795 and 8 / 1.205 < x.min() < 8 / 1.19 and y.abs().max() < 1e-3


def test_no_jitter_is_the_identity_and_a_seed_repeats_it(generator):
    x = torch.rand(5, 3, 8, 6) * 2 - 1
    torch.testing.assert_close(jittered(x, generator, degrees=0, scale=0, pixels=0), x, atol=1e-5, rtol=0)
    first, again = (jittered(x, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, again) and first.abs().max() <= 1
    flat = torch.full((5, 1, 8, 8), 0.7)
    torch.testing.assert_close(jittered(flat, generator), flat)  # no border of another colour comes in


# What the distances see


def blurred(x, share):
    kernel = torch.tensor([share, 1 - 2 * share, share])
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), (kernel[:, None] * kernel).view(1, 1, 3, 3))


DAMAGE = {
    "noise": (lambda x, s: x + s * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), (0.1, 0.2, 0.4)),
    "blur": (blurred, (0.1, 0.2, 0.3)),
    "lost contrast": (lambda x, s: (x + 1) * (1 - s) - 1, (0.1, 0.3, 0.5)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_distances_grow_with_damage_from_the_floor_on(digits, damage):
    net, real, others = digits
    spoil, strengths = DAMAGE[damage]
    reference = batched(net.features, real.images)
    for distance in (frechet_distance, kernel_distance):
        steps = [others.images, *(spoil(others.images, s).clamp(-1, 1) for s in strengths)]
        values = [distance(reference, batched(net.features, x)) for x in steps]
        assert values == sorted(values) and values[-1] > 5 * abs(values[0])


def test_real_images_are_at_the_floor_and_a_missing_class_is_far_above_it(digits, generator):
    net, real, others = digits
    reference, rest = (batched(net.features, part.images) for part in (real, others))
    both = torch.cat([reference, rest])
    floor = frechet_floor(both, 718, generator, labels=torch.cat([real.labels, others.labels]))
    assert 0.5 * floor < frechet_distance(reference, rest) < 2 * floor
    assert frechet_distance(reference, rest[others.labels != 9]) > 20 * floor
    assert precision_recall(reference, rest).recall > 0.8
    assert (
        precision_recall(reference, rest[others.labels != 9]).recall < precision_recall(reference, rest).recall - 0.05
    )


def test_without_balanced_labels_most_of_the_floor_is_the_luck_of_the_draw(digits, generator):
    net, real, _ = digits
    features = batched(net.features, real.images)
    balanced = frechet_floor(features, 300, generator, labels=real.labels)
    assert frechet_floor(features, 300, generator) > 2 * balanced
