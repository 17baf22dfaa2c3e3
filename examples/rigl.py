"""RigL against a static pattern at 99 % sparsity, interrupted half way and resumed from a checkpoint."""

import argparse
import tempfile
from pathlib import Path

import torch
from digits import accuracy, network, train

import sparsekern as sk


def build(method: type[sk.methods.DynamicMethod], steps: int) -> tuple:
    torch.manual_seed(0)
    model = network()
    sk.sparsify_(model, sparsity=0.99, distribution="erk", init="per_neuron")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, optimizer, method(model, optimizer, update_every=20, stop_at=max(1, 3 * steps // 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        for kind in (sk.Static, sk.RigL):
            model, optimizer, _ = build(kind, steps)
            train(model, optimizer, steps // 2)
            torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, checkpoint)

            model, optimizer, method = build(kind, steps)
            state = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])  # the method's state comes with it
            loss = train(model, optimizer, steps, first=steps // 2)
            reached = f"loss {loss:.4f}  accuracy {accuracy(model):.2f} %"
            print(f"{kind.__name__:6}  {reached}  {method.updates} updates")


if __name__ == "__main__":
    main()
