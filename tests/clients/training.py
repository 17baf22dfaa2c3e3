"""What every client's model has to go through: a short sparse training, interrupted and resumed."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import sparsekern as sk
from sparsekern.nn import SparseLayer, SparsifyReport

# Updates follow steps 5, 10, 15 and 20; the checkpoint lies between two of them.
STEPS, EVERY, CHECKPOINT = 24, 5, 12


@dataclass
class Client:
    """A model as its library makes it, and a batch to overfit.

    `make` returns a fresh model, `loss` its loss on the batch, a function of the model alone.
    """

    make: Callable[[], nn.Module]
    loss: Callable[[nn.Module], Tensor]
    exclude: tuple[str, ...] = ()
    learning_rate: float = 3e-3
    sparsity: float = 0.9


class Run:
    """A sparse model, its optimizer and RigL, from a seed."""

    def __init__(self, client: Client, seed: int):
        self.loss = client.loss
        torch.manual_seed(seed)
        self.model = client.make().train()
        self.report = sk.sparsify_(
            self.model,
            client.sparsity,
            distribution="erk",
            init="per_neuron",
            exclude=client.exclude,
            generator=torch.Generator().manual_seed(seed),
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), client.learning_rate)
        self.method = sk.RigL(self.model, self.optimizer, update_every=EVERY, drop_fraction=0.3)
        self.losses: list[float] = []

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = self.loss(self.model)
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.item())

    def save(self) -> bytes:
        buffer = io.BytesIO()
        torch.save({"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}, buffer)
        return buffer.getvalue()

    def load(self, saved: bytes) -> None:
        states = torch.load(io.BytesIO(saved), weights_only=True)
        self.model.load_state_dict(states["model"])
        self.optimizer.load_state_dict(states["optimizer"])

    @property
    def layers(self) -> dict[str, SparseLayer]:
        return {name: m for name, m in self.model.named_modules() if isinstance(m, SparseLayer)}


def assert_trains_and_resumes(client: Client, margin: float = 0.6) -> SparsifyReport:
    """The loss falls to `margin` of the first or less, patterns move and keep their size, and a run that is
    resumed in the middle ends at the same bits. Returns the report, whose every line is accounted for."""
    run = Run(client, seed=0)
    assert_accounted_for(run)
    before = {name: layer.pattern for name, layer in run.layers.items()}
    run.train(CHECKPOINT)
    saved = run.save()
    run.train(STEPS - CHECKPOINT)
    assert run.method.updates == STEPS // EVERY
    assert run.losses[-1] < margin * run.losses[0]
    assert_patterns_moved(run, before)

    resumed = Run(client, seed=1)
    assert any(layer.pattern != run.layers[name].pattern for name, layer in resumed.layers.items())
    resumed.load(saved)
    resumed.train(STEPS - CHECKPOINT)
    assert resumed.losses == run.losses[CHECKPOINT:]
    expected = run.model.state_dict()
    for name, tensor in resumed.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert resumed.optimizer.state_dict()["state"].keys() == run.optimizer.state_dict()["state"].keys()
    return run.report


def assert_accounted_for(run: Run) -> None:
    """Each weight is in the report once: converted and stored at the size it says, or left for a reason."""
    rows = {row.name: row for row in run.report.layers}
    converted = {row.name for row in run.report.converted}
    assert converted == {name for name, layer in run.layers.items() if rows[name].tied_to is None}
    assert run.report.sparsity > 0.899
    for row in run.report.left:
        assert row.reason
        assert row.shape
    for name, module in run.model.named_modules():
        if any(p.dim() > 1 for p in module.parameters(recurse=False)):
            assert name in rows or type(module).__name__ in rows


def assert_patterns_moved(run: Run, before: dict[str, object]) -> None:
    moved = 0
    for row in run.report.converted:
        layer = run.layers[row.name]
        assert layer.pattern.nnz == layer.values.numel() == row.nnz
        state = run.optimizer.state[layer.values]
        assert state["exp_avg"].shape == layer.values.shape
        moved += layer.pattern != before[row.name]
    # Where ERK keeps a layer dense nothing can move.
    assert moved == sum(0 < row.nnz < row.numel for row in run.report.converted)
