"""One network, dense and at 95 % sparsity: the same loop, what both reach and what they hold."""

import argparse

import torch
from digits import accuracy, network, train

import sparsekern as sk


def held(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of weights, gradients, optimizer state and patterns."""
    state = [value for entry in optimizer.state.values() for value in entry.values()]
    tensors = [*model.parameters(), *(p.grad for p in model.parameters()), *state]
    patterns = [layer.mask_bytes for layer in model.modules() if isinstance(layer, sk.nn.SparseModule)]
    return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor)) + sum(patterns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=600)
    steps = parser.parse_args().steps
    for kind in ("dense", "sparse"):
        torch.manual_seed(0)
        model = network()
        if kind == "sparse":
            print(sk.sparsify_(model, sparsity=0.95, distribution="erk", init="per_neuron"), end="\n\n")
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        loss = train(model, optimizer, steps)
        reached = f"loss {loss:.4f}  accuracy {accuracy(model):.2f} %"
        print(f"{kind:6}  {reached}  {held(model, optimizer):,} bytes held")


if __name__ == "__main__":
    main()
