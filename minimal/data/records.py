"""What a data set hands out: `Images` or `Text`, two frozen records that every part of the course reads.

Images are float32 (N, C, H, W) in [-1, 1]. `levels` counts the grey levels of a pixel, so that an image can be
turned into integers without loss:  level = round((x + 1) / 2 * (levels - 1)).  Text is a string and, beside it,
one token per character: `tokens` is long (T,), and token k stands for `vocabulary[k]`.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Images:
    """N images and what is known about each.

    images: float32 (N, C, H, W) in [-1, 1]; labels: long (N,) or None; `class_names[label]` is a label's name.
    attributes: tensors with first axis N (procedural sets: positions, masks ...); captions: one sentence per image.
    origin: where the pixels came from, when there is more than one possibility.
    """

    images: Tensor
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    name: str = ""
    split: str = ""
    levels: int = 256
    attributes: dict[str, Tensor] = field(default_factory=dict)
    captions: tuple[str, ...] = ()
    origin: str = ""

    def __post_init__(self):
        x, y, n = self.images, self.labels, len(self.images)
        if x.ndim != 4 or x.dtype != torch.float32:
            raise ValueError(f"images are float32 (N, C, H, W), got {x.dtype} {tuple(x.shape)}")
        if n and not (x.amin() >= -1 and x.amax() <= 1):
            raise ValueError(f"images lie in [-1, 1], got [{x.amin():.3g}, {x.amax():.3g}]; scale them first")
        if y is not None and (y.dtype != torch.long or y.shape != (n,)):
            raise ValueError(f"labels are long ({n},), got {y.dtype} {tuple(y.shape)}")
        if y is not None and n and not (0 <= y.amin() and y.amax() < len(self.class_names)):
            raise ValueError(f"labels lie in 0..{len(self.class_names) - 1}, got {y.amin()}..{y.amax()}")
        for key, value in {**self.attributes, **({"captions": self.captions} if self.captions else {})}.items():
            if len(value) != n:
                raise ValueError(f"{key} has {len(value)} entries for {n} images")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        return tuple(self.images.shape[1:])

    def select(self, index) -> "Images":
        """The images at `index` (a slice, a boolean mask, or integers), with everything that belongs to them."""
        rows = torch.arange(len(self))[index].reshape(-1)
        return replace(
            self,
            images=self.images[rows],
            labels=None if self.labels is None else self.labels[rows],
            attributes={key: value[rows] for key, value in self.attributes.items()},
            captions=tuple(self.captions[i] for i in rows.tolist()) if self.captions else (),
        )


@dataclass(frozen=True, eq=False)
class Text:
    """A text and its characters as tokens: long (T,), `tokens[i]` is the place of `text[i]` in `vocabulary`."""

    text: str
    vocabulary: str
    name: str = ""
    split: str = ""
    origin: str = ""
    tokens: Tensor = field(init=False, repr=False)

    def __post_init__(self):
        object.__setattr__(self, "tokens", self.encode(self.text))

    def __len__(self) -> int:
        return len(self.text)

    @property
    def vocab_size(self) -> int:
        return len(self.vocabulary)

    def encode(self, text: str) -> Tensor:
        """Characters -> long (T,). A character outside the vocabulary is an error."""
        place = {character: i for i, character in enumerate(self.vocabulary)}
        unknown = sorted(set(text) - place.keys())
        if unknown:
            raise ValueError(f"{''.join(unknown)!r} is not in the vocabulary of {self.name}: {self.vocabulary!r}")
        return torch.tensor([place[character] for character in text], dtype=torch.long)

    def decode(self, tokens) -> str:
        """Long (T,) -> characters."""
        tokens = [int(token) for token in tokens]
        if tokens and not 0 <= min(tokens) <= max(tokens) < self.vocab_size:
            raise ValueError(f"tokens lie in 0..{self.vocab_size - 1}, got {min(tokens)}..{max(tokens)}")
        return "".join(self.vocabulary[token] for token in tokens)
