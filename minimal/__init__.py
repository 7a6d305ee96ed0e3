"""minimal: how images become tokens, how models learn their distribution, and how to sample from them fast.

One file per idea, read from top to bottom: `data` and `nn` below, `tokenizers`, `ar` and `flows` on top of them,
`samplers` on top of those.

Conventions that hold everywhere:

* time    t = 0 is noise, t = 1 is data. A straight path is `x_t = (1 - t) * x0 + t * x1`, with noise `x0`, data `x1`
          and velocity `x1 - x0`; a sampler integrates from 0 to 1.
* images  float (B, C, H, W) in [-1, 1]; discrete tokens long (B, N); continuous tokens float (B, N, D).
* labels  long (B,) in 0 .. num_classes - 1; the id `num_classes` is the null class, which guidance uses.
* axes    B batch, N positions, D width, H heads, V vocabulary, C channels.
* noise   everything random takes a `torch.Generator`; the same seed gives the same result on the same machine.
"""

__version__ = "0.1.0"
