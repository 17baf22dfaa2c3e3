"""A sparse GPT sharded by FSDP2, with RigL at 90 %: torchrun --nproc-per-node 2 examples/fsdp2.py

With --checkpoint DIR it saves as it goes, and with --resume too it goes on, with any number of processes.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from gpt import Gradients, arguments, batch, loss_of, network, report, start
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import sparsekern as sk


def padded_bytes(model: nn.Module, size: int) -> int:
    """Of all Parameters, each made a multiple of the number of processes in length."""
    return sum(
        math.ceil(len(parameter) / size) * size * parameter[:1].numel() * parameter.element_size()
        for parameter in model.parameters()
    )


def main() -> None:
    options = arguments()
    rank, size, device = start()
    torch.manual_seed(0)
    model = network()
    dense = padded_bytes(model, size)
    sk.sparsify_(model, sparsity=0.9, init="per_neuron", exclude=["head"])
    # Vectors of the nonzeros, and what is dense: embeddings, norms, biases, the head. One process sends none.
    stored = padded_bytes(model, size) if size > 1 else 0
    model.to(device)
    mesh = init_device_mesh(device.type, (size,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    method = sk.RigL(model, optimizer, update_every=10, stop_at=75)
    first = 0
    if options.resume:
        first = sk.distributed.load_checkpoint(options.checkpoint, model, optimizer, method)["step"]
    for step in range(first, options.steps):
        optimizer.zero_grad()
        loss = loss_of(model, batch(step, rank, size, device))
        with Gradients() as sent:
            loss.backward()
        assert sent.bytes == stored, f"{sent.bytes} bytes of gradients, for Parameters of {stored}"
        optimizer.step()
        if (step + 1) % options.save_every == 0:
            nnz = sum(layer.pattern.nnz for layer in method.layers)
            report(step + 1, options.steps, loss, nnz, sent.bytes, dense)
            if options.checkpoint is not None:
                sk.distributed.save_checkpoint(
                    options.checkpoint, model, optimizer, method, {"step": step + 1}
                )


if __name__ == "__main__":
    main()
    # Once the model is gone: freed after its process group, it can wait for a thread that waits for Python.
    dist.destroy_process_group()
