"""Draws coloured shapes with soft edges: signed distances, then layers of paint.

d(p) is the distance of pixel p from a shape's outline, negative inside. One pixel of antialiasing is then
alpha = clamp(1/2 - d, 0, 1), whatever the shape, and the same d, read further up and left, is a soft shadow.
A scene is a dict of tensors with N rows and K objects: `shape`, `colour` long (N, K), -1 where there is no object;
`x`, `y`, `radius` in pixels and `angle` in degrees, float (N, K); `background` long (N,).
"""

import math

import torch
from torch import Tensor

SIZE = 32
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "yellow", "green", "blue")
PALETTE = torch.tensor([(229, 72, 77), (246, 182, 40), (48, 164, 108), (62, 99, 221)]) / 255  # (4, 3)
CREAM, BLUSH, MINT, SKY = (251, 243, 228), (251, 233, 230), (229, 244, 235), (228, 238, 251)
LILAC, STONE = (238, 233, 248), (238, 238, 234)
BACKGROUNDS = torch.tensor([CREAM, BLUSH, MINT, SKY, LILAC, STONE]) / 255  # (6, 3)
REACH = 1.2  # no shape goes further from its centre than this times its radius
CHUNK = 128  # images drawn at a time: the working set then fits in a processor's cache


def circle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    return (x * x + y * y).sqrt() - 0.95 * r


def square(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    dx, dy = x.abs() - 0.76 * r, y.abs() - 0.76 * r
    outside = (dx.clamp(min=0) ** 2 + dy.clamp(min=0) ** 2).sqrt()
    return outside + torch.maximum(dx, dy).clamp(max=0) - 0.1 * r  # the last term rounds the corners


def triangle(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Equilateral, point up, centroid at the origin; folded onto one edge by its symmetry."""
    k, half = math.sqrt(3), 0.9 * r
    x, y = x.abs() - half, y + half / k
    beyond = x + k * y > 0
    x, y = torch.where(beyond, (x - k * y) / 2, x), torch.where(beyond, -(k * x + y) / 2, y)
    x = x - torch.maximum(x.clamp(max=0), -2 * half)
    return -(x * x + y * y).sqrt() * y.sign() - 0.12 * r


def star(x: Tensor, y: Tensor, r: Tensor) -> Tensor:
    """Five points, one up; folded onto half a point by reflections in its axes of symmetry."""
    c, s, outer = math.cos(math.pi / 5), math.sin(math.pi / 5), 1.14 * r
    x = x.abs()
    for side in (c, -c):
        fold = 2 * (side * x - s * y).clamp(min=0)
        x, y = x - side * fold, y + s * fold
    x, y = x.abs(), y - outer
    edge_x, edge_y = 0.5 * s, 0.5 * c - 1  # from the outer point to the inner corner, for outer radius 1
    along = ((x * edge_x + y * edge_y) / (edge_x**2 + edge_y**2)).clamp(min=0)
    along = torch.minimum(along, outer)
    dx, dy = x - edge_x * along, y - edge_y * along
    return (dx * dx + dy * dy).sqrt() * (y * edge_x - x * edge_y).sign() - 0.06 * r


DISTANCES = (circle, square, triangle, star)


def distances(shape: Tensor, x: Tensor, y: Tensor, radius: Tensor, angle: Tensor, margin: int) -> Tensor:
    """Signed distance maps (M, SIZE + margin, SIZE + margin) of M objects; the margin is at the top and the left."""
    place = torch.arange(-margin, SIZE) + 0.5
    dx, dy = place - x[:, None], y[:, None] - place  # (M, W), (M, H); up is positive here
    turn = angle[:, None, None] * (math.pi / 180)
    u = turn.cos() * dx[:, None, :] + turn.sin() * dy[:, :, None]
    v = turn.cos() * dy[:, :, None] - turn.sin() * dx[:, None, :]
    out = torch.empty_like(u)
    for code, distance in enumerate(DISTANCES):
        rows = (shape == code).nonzero()[:, 0]
        out[rows] = distance(u[rows], v[rows], radius[rows, None, None])
    return out


def draw(scene: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scenes -> `images` float (N, 3, 32, 32) on 256 levels of [-1, 1], `masks` bool (N, K, 32, 32) of what is visible
    of each object, `edges` bool (N, 32, 32) where the visible object changes. Later objects lie on top."""
    starts = range(0, len(scene["x"]), CHUNK)
    chunks = [_draw({key: value[i : i + CHUNK] for key, value in scene.items()}) for i in starts]
    return {key: torch.cat([chunk[key] for chunk in chunks]) for key in chunks[0]}


def _draw(scene: dict[str, Tensor]) -> dict[str, Tensor]:
    (n, k), margin = scene["shape"].shape, 2
    present = scene["shape"].flatten() >= 0
    keys = ("shape", "x", "y", "radius", "angle")
    d = torch.full((n * k, SIZE + margin, SIZE + margin), 1e3)
    d[present] = distances(*(scene[key].flatten()[present] for key in keys), margin=margin)
    d = d.view(n, k, SIZE + margin, SIZE + margin)

    down = (torch.arange(SIZE)[:, None] + 0.5) / SIZE  # (H, 1): light falls from above
    image = BACKGROUNDS[scene["background"]][:, :, None, None] + 0.03 * (0.5 - down).expand(SIZE, SIZE)
    owner = torch.full((n, SIZE, SIZE), -1)
    for j in range(k):
        inside, up_left = d[:, j, margin:, margin:], d[:, j, :-margin, 1:-1]
        alpha = (0.5 - inside).clamp(0, 1)
        shadow = 0.16 * torch.sigmoid(-1.6 * up_left)
        light = 1 + 0.24 * (scene["y"][:, j, None, None] / SIZE - down)  # (n, H, 1)
        paint = PALETTE[scene["colour"][:, j].clamp(min=0)][:, :, None, None] * light[:, None]  # (n, 3, H, 1)
        image = torch.lerp(image * (1 - shadow[:, None]), paint, alpha[:, None])
        owner = torch.where(alpha >= 0.5, j, owner)

    masks = owner[:, None] == torch.arange(k)[:, None, None]
    edges = torch.zeros(n, SIZE, SIZE, dtype=torch.bool)
    edges[:, :, :-1] |= owner[:, :, :-1] != owner[:, :, 1:]
    edges[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    levels = (image.clamp(0, 1) * 255).round()
    return {"images": levels / 127.5 - 1, "masks": masks, "edges": edges}
