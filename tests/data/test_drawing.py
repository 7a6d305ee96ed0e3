"""Shapes are drawn from true distances: checked against polygons measured point by point."""

import math

import numpy as np
import pytest
import torch

from minimal.data import drawing


def polygon_distance(points: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a polygon, by brute force: nearest edge, and the parity of crossings for the sign."""
    nearest, inside = np.full(x.shape, np.inf), np.zeros(x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(points, np.roll(points, -1, axis=0), strict=True):
        t = (((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / ((bx - ax) ** 2 + (by - ay) ** 2)).clip(0, 1)
        nearest = np.minimum(nearest, np.hypot(x - ax - t * (bx - ax), y - ay - t * (by - ay)))
        crosses = (ay > y) != (by > y)
        inside ^= crosses & (x < ax + (y - ay) / np.where(by == ay, 1, by - ay) * (bx - ax))
    return np.where(inside, -nearest, nearest)


def corners(name: str) -> tuple[np.ndarray, float]:
    """The corners of a shape of radius 1, and how much it is rounded."""
    if name == "square":
        return 0.76 * np.array([(1, 1), (-1, 1), (-1, -1), (1, -1)]), 0.1
    if name == "triangle":
        angles = math.pi / 2 + 2 * math.pi / 3 * np.arange(3)
        return 0.9 * 2 / math.sqrt(3) * np.stack([np.cos(angles), np.sin(angles)], 1), 0.12
    angles = math.pi / 2 + math.pi / 5 * np.arange(10)
    radii = 1.14 * np.where(np.arange(10) % 2, 0.5, 1)
    return radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1), 0.06


@pytest.mark.parametrize("name", ["square", "triangle", "star"])
def test_distances_are_those_of_the_polygon(name):
    x, y = np.meshgrid(np.linspace(-15, 15, 61) + 0.013, np.linspace(-15, 15, 61) + 0.007)
    points, rounding = corners(name)
    r = 7.3
    distance = drawing.DISTANCES[drawing.SHAPES.index(name)]
    ours = distance(torch.from_numpy(x), torch.from_numpy(y), torch.tensor(r, dtype=torch.float64))
    np.testing.assert_allclose(ours.numpy(), polygon_distance(r * points, x, y) - r * rounding, atol=1e-6)


def one(**changes):
    scene = dict(shape=[[0]], colour=[[0]], x=[[16.0]], y=[[16.0]], radius=[[8.0]], angle=[[0.0]], background=[0])
    return {key: torch.tensor(value) for key, value in (scene | changes).items()}


@pytest.mark.parametrize("shape", range(4))
def test_no_shape_reaches_further_than_it_says(shape):
    place = torch.linspace(-12, 12, 241)
    d = drawing.DISTANCES[shape](place[:, None].expand(241, 241), place.expand(241, 241), torch.tensor(8.0))
    far = (place[:, None] ** 2 + place**2).sqrt()[d <= 0].max()
    assert far <= drawing.REACH * 8


def test_a_turn_of_ninety_degrees_turns_the_mask():
    turned = drawing.draw(one(shape=[[3]], angle=[[90.0]]))["masks"]
    assert torch.equal(turned, drawing.draw(one(shape=[[3]]))["masks"].rot90(1, (2, 3)))


def test_a_move_by_whole_pixels_moves_the_mask():
    moved = drawing.draw(one(shape=[[2]], x=[[18.0]], y=[[13.0]]))["masks"]
    assert torch.equal(moved, drawing.draw(one(shape=[[2]]))["masks"].roll((-3, 2), (2, 3)))


def test_later_objects_hide_earlier_ones_and_masks_never_overlap():
    pair = one(
        shape=[[1, 0]], colour=[[0, 3]], x=[[16.0, 18.0]], y=[[16.0] * 2], radius=[[8.0, 4.0]], angle=[[0.0] * 2]
    )
    drawn = drawing.draw(pair)
    below, above = drawn["masks"][0]
    assert not (below & above).any() and above[16, 18] and below[16, 11]
    red, blue = drawing.PALETTE[0], drawing.PALETTE[3]
    for (row, column), paint in {(16, 18): blue, (16, 11): red}.items():
        assert ((drawn["images"][0, :, row, column] + 1) / 2 - paint).abs().max() < 0.03


def test_edges_lie_where_the_visible_object_changes():
    drawn = drawing.draw(one(shape=[[1]]))
    mask, edges = drawn["masks"][0, 0], drawn["edges"][0]
    by_hand = torch.zeros_like(mask)
    for row in range(32):
        for column in range(32):
            here = mask[row, column]
            right = column < 31 and here != mask[row, column + 1]
            below = row < 31 and here != mask[row + 1, column]
            by_hand[row, column] = bool(right or below)
    assert torch.equal(edges, by_hand)


def test_an_absent_object_leaves_no_trace():
    absent = one(shape=[[0, -1]], colour=[[0, -1]], x=[[16.0, 0]], y=[[16.0, 0]], radius=[[8.0, 0]], angle=[[0.0, 0]])
    assert torch.equal(drawing.draw(absent)["images"], drawing.draw(one())["images"])
    assert not drawing.draw(absent)["masks"][:, 1].any()
