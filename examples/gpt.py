"""What the examples train: a small GPT, on text that follows one rule nine times out of ten."""

from __future__ import annotations

import argparse
import os
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sparsekern.experiments.models import GPT, GPTConfig

SYMBOLS, LENGTH, BATCH = 64, 64, 16


def network() -> GPT:
    """Two blocks, and a head of its own."""
    return GPT(GPTConfig(vocabulary=SYMBOLS, context=LENGTH, layers=2, heads=4, width=128, tied=False))


def loss_of(model: nn.Module, text: Tensor) -> Tensor:
    """The cross-entropy of each next symbol, on average."""
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def batch(step: int, rank: int, size: int, device: torch.device) -> Tensor:
    """This process's part of a step's batch: a symbol follows from the one before, or is any."""
    generator = torch.Generator().manual_seed(step)
    follows = torch.randperm(SYMBOLS, generator=torch.Generator().manual_seed(0))
    text = torch.randint(SYMBOLS, (BATCH, LENGTH), generator=generator)
    ruled = torch.rand(BATCH, LENGTH, generator=generator) < 0.9
    for i in range(1, LENGTH):
        text[:, i] = torch.where(ruled[:, i], follows[text[:, i - 1]], text[:, i])
    return text.chunk(size)[rank].to(device)


class Gradients(TorchDispatchMode):
    """Counts the bytes that this process hands over to have gradients summed, and under FSDP2 shared out."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.c10d.allreduce_.default:
            self.bytes += sum(bucket.nbytes for bucket in args[0])
        elif func is torch.ops.c10d._reduce_scatter_base_.default:
            self.bytes += args[1].nbytes
        return func(*args, **(kwargs or {}))


def start() -> tuple[int, int, torch.device]:
    """Join the processes that torchrun has started: rank, their number, and this one's device."""
    rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if torch.cuda.is_available():
        torch.cuda.set_device(local)
        device = torch.device("cuda", local)
        dist.init_process_group("nccl", device_id=device)
    else:
        device = torch.device("cpu")
        dist.init_process_group("gloo")
    return rank, size, device


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument(
        "--save-every", type=int, default=20, help="steps between lines, and between checkpoints"
    )
    parser.add_argument("--checkpoint", metavar="DIR", help="where to save, and to resume from")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint")
    options = parser.parse_args()
    if options.resume and options.checkpoint is None:
        parser.error("--resume needs --checkpoint DIR")
    return options


def report(step: int, steps: int, loss: Tensor, nnz: int, sent: int, dense: int) -> None:
    """One line, of the first process: the loss is the mean over all."""
    dist.all_reduce(mean := loss.detach() / dist.get_world_size())
    if dist.get_rank() == 0:
        print(
            f"step {step:,}/{steps:,}   loss {float(mean):.6f}   nnz {nnz:,}   "
            f"gradients sent {sent:,} bytes a step, dense {dense:,}",
            flush=True,
        )
