"""One training loop for everything: `fit`.

    model = RasterGPT(...)
    history = fit(model, (tokens, labels), steps=2000, validate=held_out_bits, save_to="run.safetensors")

A step draws a batch, asks `step_fn(batch, step)` for a scalar and some numbers to log, and moves the weights. The
default step is `model.loss(*batch)`; adversarial training, distillation and policy gradients pass their own, with
several modules and optimizers. The learning rate climbs linearly and falls along a cosine, the gradient's norm is
clipped, and averaged weights (EMA) can follow:

    rate_k = k / K_warm  up to K_warm,  then  floor + (1 - floor) (1 + cos(pi (k - K_warm) / (K - K_warm))) / 2
    ema_k  = d_k ema_(k-1) + (1 - d_k) w_k,     d_k = min(decay, (1 + k) / (10 + k))

Everything the next step depends on (weights, moments, averages, random states, the order of the data) goes into
`save_to` every `save_every` steps. A run that was killed continues from there, and on a CPU ends in the same weights,
bit for bit. Under torchrun, each process takes its share of every batch (processes.py).
"""

import math
import os
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from minimal import processes
from minimal.run import Batches, History, Run

# Parts


def adamw(model, lr=1e-3, weight_decay=0.05, betas=(0.9, 0.95)):
    """AdamW that decays matrices and kernels only: gains, biases and other vectors are not pulled towards zero."""
    weights = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in weights if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in weights if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas)


def warmup_cosine(step, steps, warmup=0.05, floor=0.1):
    """The factor on the learning rate in step 0 .. steps - 1: up during the share `warmup`, then down to `floor`."""
    warm, k = round(warmup * steps), step + 1
    if k <= warm:
        return k / warm
    return floor + (1 - floor) * (1 + math.cos(math.pi * (k - warm) / (steps - warm))) / 2


class EMA:
    """Exponential moving average of the parameters of `model`; buffers are not averaged.

    The decay grows with the number of updates, so that a short run forgets its initial weights too.
    """

    def __init__(self, model, decay=0.999):
        self.model, self.decay, self.updates = model, decay, 0
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self):
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, p in self.model.named_parameters():
            self.weights[name].lerp_(p, 1 - decay)

    @torch.no_grad()
    def copy_to(self, module):
        """Write the average into `module`: the model itself, or a copy of it that serves as a teacher."""
        for name, p in module.named_parameters():
            p.copy_(self.weights[name])

    @contextmanager
    def swapped(self):
        """Within `with ema.swapped():` the model computes with the averaged weights."""
        trained = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self.copy_to(self.model)
        try:
            yield self.model
        finally:
            self.model.load_state_dict(trained, strict=False)


# The loop


def fit(
    model,
    data,
    optimizers=None,
    *,
    steps,
    step_fn=None,
    batch_size=128,
    seed=0,
    warmup=0.05,
    floor=0.1,
    clip=1.0,
    ema=None,
    autocast=False,
    validate=None,
    validate_every=200,
    keep_best=True,
    save_to=None,
    save_every=200,
    desc="train",
    progress=True,
) -> History:
    """Train `model` for `steps` steps, leave it in eval mode, and return a `History`.

    model       a module, or a dict of modules when several are trained. All of them are put in train mode and saved.
    data        a tuple of equally long tensors, or a callable `data(batch_size, generator) -> batch`.
    optimizers  one (default: `adamw(model)`) or a list. The learning rate they carry is the peak of the schedule.
    step_fn     `step_fn(batch, step) -> (scalar, logs)`; default `model.loss(*batch)`. With several optimizers it
                returns one scalar for all, or a tuple with one for each (None: that one rests). A scalar of a tuple
                moves only the parameters of its own optimizer.
    warmup      share of the steps in which the rate climbs; `floor` is what is left of it at the end.
    clip        largest gradient norm of one optimizer's parameters; `math.inf` for none.
    ema         an `EMA`, updated after every step; its weights are validated, and are left in its model at the end.
    autocast    run `step_fn` in bfloat16 where that is safe; `faster_in_bfloat16` says whether it pays.
    validate    `validate(step) -> float`, lower is better, called in eval mode without gradients after every
                `validate_every` steps and at the end. It sees the same random numbers each time, and does not change
                those of training.
    keep_best   leave the weights with the lowest validation value in the model, instead of the last ones.
    save_to     a file for the state of the run. If it exists, the run continues from it.

    Seeds torch's global generator with `seed`. ValueError for bad data or a state file of another run,
    FloatingPointError if a loss, a gradient or a validation value is NaN or infinite.
    """
    root = nn.ModuleDict(model) if isinstance(model, dict) else model
    if not isinstance(root, nn.Module):
        raise ValueError(f"fit takes a module or a dict of modules, not {type(model).__name__}. A step goes in step_fn")
    optimizers = [adamw(root)] if optimizers is None else optimizers
    optimizers = optimizers if isinstance(optimizers, (list, tuple)) else [optimizers]
    step_fn = step_fn or (lambda batch, step: model.loss(*batch) if isinstance(batch, tuple) else model.loss(batch))
    device = next(root.parameters()).device.type
    torch.manual_seed(seed)
    run = Run(
        root,
        optimizers,
        ema,
        Batches(data, batch_size, seed),
        settings=dict(
            steps=steps,
            batch_size=batch_size,
            seed=seed,
            warmup=warmup,
            floor=floor,
            clip=clip,
            keep_best=keep_best,
            validate_every=validate_every if validate else None,
        ),
    )
    if save_to is not None and Path(save_to).exists():
        run.restore(save_to)
    history = run.history
    if processes.average([history.steps], device) != [history.steps]:  # also waits: nobody writes before all have read
        raise ValueError(f"not all processes find the same {save_to}; put it where all can read it, or delete it")

    root.train()
    started, shown = time.perf_counter() - history.seconds, {}
    first = processes.rank() == 0
    hidden = not progress or "CI" in os.environ or not first
    with tqdm(total=steps, initial=history.steps, desc=desc, disable=hidden, dynamic_ncols=True) as bar:  # on stderr
        for step in range(history.steps, steps):
            batch = processes.share(run.batches.next())
            with torch.autocast(device, torch.bfloat16, enabled=autocast), processes.whole_batch_noise(batch):
                scalars, logs = step_fn(batch, step)
            loss = descend(scalars, optimizers, clip, warmup_cosine(step, steps, warmup, floor), step)
            if ema is not None:
                ema.update()
            history.losses.append(loss)
            values = [x.item() if torch.is_tensor(x) else float(x) for x in logs.values()]
            history.logs.append(dict(zip(logs, processes.average(values, device), strict=True)))

            done, shown["loss"] = step + 1, loss
            if validate is not None and (done % validate_every == 0 or done == steps):
                shown["validation"] = run.validate(validate)
            history.seconds = time.perf_counter() - started
            if save_to is not None and first and (done % save_every == 0 or done == steps):
                run.save(save_to)
            bar.set_postfix(shown, refresh=False)
            bar.update()
    if ema is not None:
        ema.copy_to(ema.model)
    if run.best:
        root.load_state_dict(run.best)
    root.eval()
    return history


def descend(scalars, optimizers, clip, rate, step):
    """One step down: gradients of each scalar for its own optimizer's parameters, clipped; then all updates.

    Returns the sum of the scalars. `item` waits for the device, on purpose: a bad number must not reach the weights.
    """
    if torch.is_tensor(scalars):
        moves = [(optimizers, scalars)]
    elif len(scalars) == len(optimizers):
        moves = [([optimizer], x) for optimizer, x in zip(optimizers, scalars, strict=True) if x is not None]
    else:
        raise ValueError(
            f"step_fn returned {len(scalars)} scalars for {len(optimizers)} optimizers; "
            "it must return one tensor for all, or a tuple with one (or None) for each"
        )
    [loss] = processes.average([sum(scalar.item() for _, scalar in moves)], moves[0][1].device)
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the loss is {loss} at step {step}. Look at the batch, lower the learning rate or "
            "warm up for longer; the weights are those before this step"
        )
    for i, (moved, scalar) in enumerate(moves, start=1):
        for optimizer in moved:
            optimizer.zero_grad()
        scalar.backward(inputs=[p for optimizer in moved for p in parameters(optimizer)], retain_graph=i < len(moves))
    moved = [optimizer for group, _ in moves for optimizer in group]
    processes.average_gradients(p for optimizer in moved for p in parameters(optimizer))
    for optimizer in moved:
        norm = nn.utils.clip_grad_norm_(parameters(optimizer), clip)
        if not norm.isfinite():
            raise FloatingPointError(
                f"the gradient's norm is {norm.item()} at step {step}, though the loss is finite. "
                "Look for a log, a square root or a division near zero"
            )
    for optimizer in moved:
        for group in optimizer.param_groups:
            group["lr"] = rate * group["initial_lr"]
        optimizer.step()
    return loss


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]


def faster_in_bfloat16(model, batch, repeats=5):
    """Whether `model.loss(*batch)` and its gradient are faster under bfloat16 autocast here. Not every CPU is."""
    device = next(model.parameters()).device.type

    def seconds(enabled):
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=enabled):
            scalar, _ = model.loss(*batch)
        scalar.backward()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    pairs = [(seconds(False), seconds(True)) for _ in range(repeats + 1)][1:]  # the first pair warms up
    full, half = (min(times) for times in zip(*pairs, strict=True))
    return half < full
