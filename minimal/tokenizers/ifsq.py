"""iFSQ: FSQ with another slope, so that normal latents use all levels alike (arXiv 2601.17124; id `ifsq`).

The levels of FSQ lie at equal distances, so they are used equally if the squashed value is uniform. A standard normal
z would need its own distribution function, 2Φ(z) − 1. The logistic function comes within 0.02 of it at slope 1.6, and
within 0.01 at 1.702; the tanh of FSQ, which is the logistic function of slope 2, stays 0.04 away:

    FSQ:  tanh(z) = 2σ(2z) − 1          iFSQ:  2σ(1.6 z) − 1

Uniform values use all levels alike only if the bins are equally wide. The authors' rounding to (L − 1)/2 has outer bins
of half the width ("endpoint"); tanh, with its heavier ends, happens to suit those better. Here `bins="equal"` is the
default and the published form is at hand; it has no margin of 0.001 on the range (fsq.py), ours does.

Shapes: as in fsq.py.
"""

from minimal.tokenizers.fsq import FSQ, FSQTokenizer


class IFSQ(FSQ):
    """Rounds coordinate j, squashed with slope 1.6, to `levels[j]` values."""

    slope = 1.6

    def __init__(self, levels: tuple[int, ...] = (17, 17, 17, 17), bins: str = "equal"):
        super().__init__(levels, bins)
        if any(level % 2 == 0 for level in levels):
            raise ValueError(f"iFSQ needs odd levels, since an even grid is not centred on zero; got {levels}")


class IFSQTokenizer(FSQTokenizer):
    """Images to one code of a fixed grid of codes per cell, and back; the bins are equal by default."""

    quantizer_class = IFSQ

    def __init__(self, *args, bins: str = "equal", **options):
        super().__init__(*args, bins=bins, **options)
