"""What a CUDA graph records and what it therefore cannot see, on any machine (id `cuda-graphs`).

A graph is a list of kernel launches, each with its sizes, its numbers and its addresses. Replaying it runs the kernels
and no line of Python. So a step may be recorded only if, every time, it does the same to the same places:

    no way back        `.item()`, `if tensor:`, `nonzero`, boolean indices wait for a number of the device
    fixed shapes       every operator returns what it returned in the first step, by shape
    fixed addresses    what a step finds (weights, caches, canvas) lies where the first step found it
    fixed numbers      a Python number that an operator is given stays what it was in the first step

A capture refuses the first by itself. The other three it records without a word, and replays what is no longer true.
`check_capture` refuses all four. `Recording` is a graph made of operators instead of kernels: it replays on a CPU just
what a CUDA graph would replay on a GPU, right or wrong, so that both can be tested without one.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Operators(TorchDispatchMode):
    """Shows each operator that reaches a kernel to `see`; compositions, such as linear, are taken apart first."""

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch._C._dispatch_has_kernel_for_dispatch_key(op.name(), "CompositeImplicitAutograd"):
            with self:
                return op.decompose(*args, **kwargs)
        return self.see(op, args, kwargs)

    def see(self, op, args: tuple, kwargs: dict):
        raise NotImplementedError


# The rules


class Call(NamedTuple):
    """What a graph would know of one operator."""

    name: str
    shapes: list[tuple[int, ...]]  # of what it returns
    addresses: list[int | None]  # of the tensors it is given; None for those that the step itself has made
    numbers: list  # and everything else it is given


class CaptureRules(Operators):
    """Use as a context around each step, and call `next_step` behind it. Raises RuntimeError where a rule is broken."""

    READ = {"aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero", "aten::masked_select", "aten::equal"}

    def __init__(self):
        super().__init__()
        self.first: list[Call] | None = None
        self.start()

    def start(self) -> None:
        self.now: list[Call] = []
        self.found, self.made = set(), set()  # storages that were there before the step, and its own

    def see(self, op, args, kwargs):
        name, given = op._schema.name, tree_leaves((args, kwargs))
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        self.check_host(name, tensors)
        addresses = [self.address(tensor) for tensor in tensors]
        out = op(*args, **kwargs)
        results = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.check_device(name, tensors + results)
        self.made |= {storage(tensor) for tensor in results} - self.found
        numbers = [leaf for leaf in given if not isinstance(leaf, Tensor)]
        self.compare(Call(name, [tuple(tensor.shape) for tensor in results], addresses, numbers))
        return out

    def check_host(self, name: str, tensors: list[Tensor]) -> None:
        if name in self.READ:
            raise RuntimeError(f"{name} reads values back to the host")
        if name == "aten::index" and any(index.dtype == torch.bool for index in tensors[1:]):
            raise RuntimeError("a boolean index has to count what it selects, on the host")
        if name in ("aten::lift_fresh", "aten::lift_fresh_copy"):
            raise RuntimeError("a tensor made of Python numbers is a copy from the host; allocate it before the step")

    def check_device(self, name: str, tensors: list[Tensor]) -> None:
        if name in ("aten::copy_", "aten::_to_copy") and len(kinds := {tensor.device.type for tensor in tensors}) > 1:
            raise RuntimeError(f"{name} copies between {' and '.join(sorted(kinds))}, and waits for it")

    def address(self, tensor: Tensor) -> int | None:
        if storage(tensor) in self.made:
            return None  # a graph keeps a place for it in its own pool
        self.found.add(storage(tensor))
        return tensor.data_ptr()

    def compare(self, call: Call) -> None:
        self.now.append(call)
        if self.first is None:
            return
        if len(self.now) > len(self.first) or call.name != self.first[len(self.now) - 1].name:
            raise RuntimeError(f"{call.name} is not what the first step ran here")
        before = self.first[len(self.now) - 1]
        if call.shapes != before.shapes:
            raise RuntimeError(f"{call.name} returns {call.shapes}, unlike in the first step: {before.shapes}")
        if call.addresses != before.addresses:
            raise RuntimeError(f"{call.name} is given another address than in the first step; write in place instead")
        if call.numbers != before.numbers:
            raise RuntimeError(f"{call.name} is given {call.numbers}, unlike in the first step: {before.numbers}")

    def next_step(self) -> None:
        if self.first is not None and len(self.now) < len(self.first):
            raise RuntimeError(f"the step ran {len(self.now)} operators, the first one {len(self.first)}")
        self.first = self.now
        self.start()


def storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


@torch.inference_mode()
def check_capture(step: Callable[[], object], times: int = 3) -> list[str]:
    """Run `step()` `times` times under the rules, and once before to warm up, as before a capture.

    Returns the names of its operators, in order. RuntimeError says which rule is broken, and by what.
    """
    if times < 2:
        raise ValueError(f"a step is compared with the first one; watch it at least twice, not {times} times")
    step()
    rules = CaptureRules()
    for _ in range(times):
        with rules:
            step()
        rules.next_step()
    if not rules.first:
        raise ValueError("the step ran no operator on tensors; there is nothing to record")
    return [call.name for call in rules.first]


# A graph of operators


class Recording(Operators):
    """`Recording(step)` runs `step()` once and keeps its operators; `replay()` runs these again, without any Python.

    As in a graph, every tensor keeps its place, and whatever Python decided or counted is as it was. (Unlike a CUDA
    graph it does run the step while it records.)
    """

    @torch.inference_mode()
    def __init__(self, step: Callable[[], object]):
        super().__init__()
        self.calls = []
        with self:
            step()

    def see(self, op, args, kwargs):
        out = op(*args, **kwargs)
        self.calls.append((op, args, kwargs, out))
        return out

    @torch.inference_mode()
    def replay(self) -> None:
        for op, args, kwargs, place in self.calls:
            for kept, new in zip(tree_leaves(place), tree_leaves(op(*args, **kwargs)), strict=True):
                if isinstance(kept, Tensor) and kept.data_ptr() != new.data_ptr():  # else a view, or written in place
                    kept.copy_(new)
