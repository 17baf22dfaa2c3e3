"""A sparse GPT in DistributedDataParallel, with RigL at 90 %: torchrun --nproc-per-node 2 examples/ddp.py

With --checkpoint DIR it saves as it goes, and with --resume too it goes on, with any number of processes.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from gpt import Gradients, arguments, batch, loss_of, network, report, start
from torch.nn.parallel import DistributedDataParallel

import sparsekern as sk


def main() -> None:
    options = arguments()
    rank, size, device = start()
    torch.manual_seed(0)
    model = network()
    dense = sum(parameter.nbytes for parameter in model.parameters())
    sk.sparsify_(model, sparsity=0.9, init="per_neuron", exclude=["head"])
    ddp = DistributedDataParallel(model.to(device))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    method = sk.RigL(model, optimizer, update_every=10, stop_at=75)
    first = 0
    if options.resume:
        first = sk.distributed.load_checkpoint(options.checkpoint, ddp, optimizer, method)["step"]
    # Vectors of the nonzeros, and what is dense: embeddings, norms, biases, the head.
    stored = sum(parameter.nbytes for parameter in model.parameters())
    for step in range(first, options.steps):
        optimizer.zero_grad()
        loss = loss_of(ddp, batch(step, rank, size, device))
        with Gradients() as sent:
            loss.backward()
        assert sent.bytes == stored, f"{sent.bytes} bytes of gradients, for Parameters of {stored}"
        optimizer.step()
        if (step + 1) % options.save_every == 0:
            nnz = sum(layer.pattern.nnz for layer in method.layers)
            report(step + 1, options.steps, loss, nnz, sent.bytes, dense)
            if options.checkpoint is not None:
                sk.distributed.save_checkpoint(options.checkpoint, ddp, optimizer, method, {"step": step + 1})


if __name__ == "__main__":
    main()
    # Once the model is gone: freed after its process group, it can wait for a thread that waits for Python.
    dist.destroy_process_group()
