"""How many bytes of tensors are alive at a time, on any device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sparsekern.bench.findings import Bytes
from sparsekern.nn.module import SparseModule


class LiveBytes(TorchDispatchMode):
    """Counts the storages that ops return while it is entered, until they are freed.

    What an op takes and gives back before it returns, its scratch, is not seen.

    Attributes
    ----------
    live, peak : int
        Bytes of such storages that are alive now, and at most so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        # What comes in and is not known was there before.
        inputs = {id(storage) for storage in _storages((args, kwargs))}
        result = function(*args, **kwargs)
        for storage in _storages(result):
            if id(storage) not in inputs and id(storage) not in self._known:
                self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def freed(_: Any) -> None:
            del self._known[key]
            self.live -= size

        self._known[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)


def measure_bytes(
    model: nn.Module, optimizer: torch.optim.Optimizer, step: Callable[[], Any], device: torch.device
) -> Bytes:
    """What a model holds in training, and at most in a step.

    Parameters
    ----------
    model : torch.nn.Module
    optimizer : torch.optim.Optimizer
        With the state of at least one step.
    step : callable
        Begins by setting gradients to None.
    device : torch.device
        The model's. On CUDA the caching allocator's figures are taken; elsewhere ops' results are counted.
    """
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        added = torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveBytes() as counted:
            step()
        added = counted.peak
    parameters = list(model.parameters())
    states = [value for state in optimizer.state.values() for value in state.values()]
    weights = _size([*parameters, *model.buffers()])
    state = _size([value for value in states if isinstance(value, Tensor)])
    masks = [buffer for name, buffer in model.named_buffers() if name.endswith("weight_mask")]
    pattern = _size(masks) + sum(m.mask_bytes for m in model.modules() if isinstance(m, SparseModule))
    gradients = _size([parameter.grad for parameter in parameters if parameter.grad is not None])
    weights -= _size(masks)
    return Bytes(weights, gradients, state, pattern, peak=weights + state + pattern + added)


def _size(tensors: list[Tensor]) -> int:
    """Bytes of the memory behind tensors, shared memory counted once."""
    return sum({id(storage): storage.nbytes() for storage in _storages(tensors)}.values())


def _storages(value: Any) -> list[torch.UntypedStorage]:
    tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return [tensor.untyped_storage() for tensor in tensors if tensor.layout == torch.strided]
