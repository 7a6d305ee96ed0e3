"""The state of a training run: everything that the next step depends on, and the way to the disk and back.

`train.fit` makes a `Run`. What it saves is one sealed file (see checkpoints.py): weights, moments of the optimizers,
averages, random states, the order of the data and the history. A run that continues from such a file ends in the
weights that it would have reached without the interruption; one that was started with other settings refuses the file.
"""

import math
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field

import torch

from minimal import checkpoints


class Batches:
    """Batches without end: from tensors, each example once an epoch in a new order; from a callable, what it draws.

    Every batch has `batch_size` examples; one that reaches the end of an epoch is filled from the next.
    """

    def __init__(self, data, batch_size, seed):
        if not callable(data):
            sizes = [len(x) for x in data] if isinstance(data, (tuple, list)) else None
            if not sizes or len(set(sizes)) > 1 or sizes[0] == 0:
                raise ValueError(
                    "data must be a tuple of equally long, non-empty tensors or a callable(batch_size, "
                    f"generator); got {type(data).__name__} with lengths {sizes}"
                )
        self.data, self.batch_size = data, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)  # the examples still to come, in order

    def next(self):
        if callable(self.data):
            return self.data(self.batch_size, self.generator)
        while len(self.order) < self.batch_size:
            epoch = torch.randperm(len(self.data[0]), generator=self.generator)
            self.order = torch.cat([self.order, epoch])
        index, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
        return tuple(x[index.to(x.device)] for x in self.data)


@dataclass
class History:
    """What happened in a run. `fit` returns it, `viz` draws it."""

    losses: list[float] = field(default_factory=list)  # one per step; their sum, if step_fn returns several
    logs: list[dict[str, float]] = field(default_factory=list)  # one per step
    validation: dict[int, float] = field(default_factory=dict)  # weight updates so far -> value, lower is better
    best_step: int | None = None  # where the validation value was lowest
    seconds: float = 0.0  # over all pieces of an interrupted run

    @property
    def steps(self):
        return len(self.losses)

    @property
    def best(self):
        return self.validation.get(self.best_step)


class Run:
    """Everything that the next step depends on, and the way to the disk and back."""

    def __init__(self, root, optimizers, ema, batches, settings):
        self.root, self.optimizers, self.ema, self.batches = root, optimizers, ema, batches
        self.history, self.best, self.seed = History(), {}, settings["seed"]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        self.identity = {
            **settings,
            "ema": ema and ema.decay,
            "examples": None if callable(batches.data) else len(batches.data[0]),
            # `initial_lr` outlives a run, so that an optimizer can be used again: the schedule overwrites `lr`.
            "learning rates": [group.setdefault("initial_lr", group["lr"]) for group in groups],
            "optimizers": [type(optimizer).__name__ for optimizer in optimizers],
            **{f"shape of {name}": list(value.shape) for name, value in root.state_dict().items()},
        }

    def validate(self, validate):
        self.root.eval()
        weights = nullcontext() if self.ema is None else self.ema.swapped()
        with torch.no_grad(), weights, torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(self.seed)
            value = float(validate(self.history.steps))
            if not math.isfinite(value):
                raise FloatingPointError(f"the validation value is {value} after {self.history.steps} steps")
            if self.history.best_step is None or value < self.history.best:
                self.history.best_step = self.history.steps
                if self.identity["keep_best"]:
                    self.best = {name: x.detach().clone() for name, x in self.root.state_dict().items()}
        self.history.validation[self.history.steps] = value
        self.root.train()
        return value

    def save(self, path):
        tensors = {
            "random.cpu": torch.get_rng_state(),
            "random.data": self.batches.generator.get_state(),
            "order": self.batches.order,
        }
        if torch.cuda.is_available():
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        tensors |= {f"model.{name}": x for name, x in self.root.state_dict().items()}
        tensors |= {f"best.{name}": x for name, x in self.best.items()}
        if self.ema is not None:
            tensors |= {f"ema.{name}": x for name, x in self.ema.weights.items()}
        for i, optimizer in enumerate(self.optimizers):
            for j, moments in optimizer.state_dict()["state"].items():
                tensors |= {
                    f"optimizer.{i}.{j}.{key}": torch.as_tensor(x) for key, x in moments.items() if x is not None
                }
        header = {"run": self.identity, "history": asdict(self.history), "updates": self.ema and self.ema.updates}
        checkpoints.write(path, tensors, header)

    def restore(self, path):
        header, tensors = checkpoints.read(path)
        there, here = header.get("run", {}), self.identity
        differ = [
            f"{key}: {there.get(key)} there, {here.get(key)} here"
            for key in {**there, **here}
            if there.get(key) != here.get(key)
        ]
        if differ:
            raise ValueError(
                f"{path} is the state of another run ({'; '.join(differ[:3])}). "
                "Delete it to start afresh, or choose another `save_to`"
            )

        def part(prefix):
            return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}

        self.root.load_state_dict(part("model."))
        self.best = part("best.")
        if self.ema is not None:
            self.ema.updates = header["updates"]
            for name, x in part("ema.").items():
                self.ema.weights[name].copy_(x)
        for i, optimizer in enumerate(self.optimizers):
            state = {}
            for name, x in part(f"optimizer.{i}.").items():
                j, key = name.split(".", 1)
                state.setdefault(int(j), {})[key] = x
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        history = header["history"]
        history["validation"] = {int(step): value for step, value in history["validation"].items()}
        self.history = History(**history)
        self.batches.order = tensors["order"]
        self.batches.generator.set_state(tensors["random.data"])
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["random.cuda"])
