"""2:4 sparsity with SR-STE, then packed, then int8: accuracy and bytes of each stage."""

import argparse
import tempfile
from pathlib import Path

import torch
from digits import accuracy, network, train

import sparsekern as sk


def stored(model: torch.nn.Module, folder: str) -> int:
    path = Path(folder) / "model.safetensors"
    sk.export.save_safetensors(model, path)
    return path.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400)
    steps = parser.parse_args().steps
    torch.manual_seed(0)
    model = network()
    print(sk.sparsify_(model, pattern="2:4", method="sr_ste", init="dense"), end="\n\n")
    train(model, torch.optim.AdamW(model.parameters(), lr=1e-3), steps)
    with tempfile.TemporaryDirectory() as folder:
        print(f"trained with SR-STE  accuracy {accuracy(model):.2f} %  {stored(model, folder):,} bytes")
        sk.nn.fix_masks_(model)
        print(f"packed 2:4           accuracy {accuracy(model):.2f} %  {stored(model, folder):,} bytes")
        sk.nn.quantize_int8_(model.eval())
        print(f"int8 2:4             accuracy {accuracy(model):.2f} %  {stored(model, folder):,} bytes")


if __name__ == "__main__":
    main()
