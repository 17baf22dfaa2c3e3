"""From dense to 95 % while it trains, then compact; written to a file, and read again to the last bit."""

import argparse
import tempfile
from pathlib import Path

import torch
from digits import accuracy, digits, network, train

import sparsekern as sk


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    steps = max(8, parser.parse_args().steps)
    torch.manual_seed(0)
    model = network()
    sk.sparsify_(model, sparsity=0.0, storage="masked")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    every = max(1, steps // 40)
    sk.GradualPruning(
        model, optimizer, sparsity=0.95, begin=steps // 4, end=3 * steps // 4, update_every=every
    )
    loss = train(model, optimizer, steps)
    print(f"pruned and compact: loss {loss:.4f}  accuracy {accuracy(model):.2f} %")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        sk.export.save_safetensors(model, path)
        dense = 4 * sum(p.numel() for p in network().parameters())
        print(f"{path.name}: {path.stat().st_size:,} bytes; dense {dense:,}")
        loaded = network()
        sk.sparsify_(loaded, sparsity=0.95)  # any pattern: the file's takes its place
        sk.export.load_safetensors(loaded, path)
    *_, images, _ = digits()
    same = torch.equal(model.eval()(images), loaded.eval()(images))
    print(f"the loaded model predicts {'the same bits' if same else 'something else'}")


if __name__ == "__main__":
    main()
