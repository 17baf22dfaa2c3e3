"""`torch.export` of models with sparse layers: saved, loaded, and computing the same bits."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from tests.convert.models import KINDS, images, model_of

LOADS = """
import sys, torch, sparsekern
for path in sys.argv[1:]:
    x, expected = torch.load(path + ".results", weights_only=True)
    with torch.no_grad():
        assert torch.equal(torch.export.load(path).module()(x), expected), path
"""


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "block"])
def test_a_loaded_program_computes_the_same_bits(kind, tmp_path):
    model, path = model_of(kind), tmp_path / "program.pt2"
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images(3),), dynamic_shapes=({0: batch},))
    assert any("sparsekern" in str(node.target) for node in program.graph.nodes)
    torch.export.save(program, path)
    loaded = torch.export.load(path).module()
    with torch.no_grad():
        for size in (1, 2, 33, 65):
            assert torch.equal(loaded(images(size)), model(images(size))), size


@pytest.mark.slow
def test_another_process_loads_it(tmp_path):
    paths = []
    for i, kind in enumerate(KINDS):
        model, path = model_of(kind), tmp_path / f"{i}.pt2"
        torch.export.save(torch.export.export(model, (images(3),)), path)
        with torch.no_grad():
            torch.save((images(3), model(images(3))), f"{path}.results")
        paths.append(str(path))
    done = subprocess.run([sys.executable, "-c", LOADS, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
