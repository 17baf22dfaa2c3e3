"""Methods made in `configure_optimizers`: a Lightning run is the plain loop, bit for bit."""

from __future__ import annotations

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsekern as sk
from sparsekern.nn import SparseLayer

# A warning of ours fails the test; Lightning's own, about how many workers load the data, does not.
pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
STEPS, EVERY, EPOCH = 30, 5, 15


class Regression(LightningModule):
    def __init__(self, method=sk.RigL, seed=0, **options):
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(20, 33), nn.Tanh(), nn.Linear(33, 7))
        sk.sparsify_(self, sparsity=0.8, init="per_neuron")
        self.method_type, self.options = method, options

    def training_step(self, batch, index=0):
        x, target = batch
        return nn.functional.mse_loss(self.network(x), target)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), 1e-2)
        self.method = self.method_type(self, optimizer, update_every=EVERY, **self.options)
        return optimizer


def batches(accumulate=1):
    generator = torch.Generator().manual_seed(1)
    samples = EPOCH * accumulate * 4
    x, target = (torch.randn(samples, size, generator=generator) for size in (20, 7))
    return DataLoader(TensorDataset(x, target), batch_size=4)


def fit(model, accumulate=1, checkpoint=None, **settings):
    trainer = Trainer(
        max_epochs=STEPS // EPOCH,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=accumulate,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, batches(accumulate), ckpt_path=checkpoint)


def plain(model, accumulate=1, autocast=False, clip=None):
    optimizer = model.configure_optimizers()
    loader = [batch for _ in range(STEPS // EPOCH) for batch in batches(accumulate)]
    for step in range(STEPS):
        optimizer.zero_grad()
        for batch in loader[step * accumulate : (step + 1) * accumulate]:
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = model.training_step(batch)
            (loss / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def assert_equal(one, other):
    assert (one.method.steps, one.method.updates) == (other.method.steps, other.method.updates)
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    for key, tensor in mine.items():
        assert torch.equal(tensor, theirs[key]), key


def assert_moved(model, first):
    """The weights of every layer are elsewhere than at first, and as many."""
    layers = [m for m in model.modules() if isinstance(m, SparseLayer)]
    for layer, begin in zip(layers, (m for m in first.modules() if isinstance(m, SparseLayer))):
        assert layer.pattern != begin.pattern
        assert layer.pattern.nnz == begin.pattern.nnz


WAYS = {
    "plain": ({}, {}),
    "accumulated": ({"accumulate": 2}, {"accumulate": 2}),
    "bf16_mixed": ({"precision": "bf16-mixed"}, {"autocast": True}),
    "clipped": ({"gradient_clip_val": 0.05}, {"clip": 0.05}),
    "clipped_accumulated": (
        {"gradient_clip_val": 0.05, "accumulate": 2},
        {"clip": 0.05, "accumulate": 2},
    ),
}


@pytest.mark.parametrize("method", [sk.RigL, sk.SET], ids=["RigL", "SET"])
@pytest.mark.parametrize(("settings", "loop"), WAYS.values(), ids=WAYS.keys())
def test_the_trainer_is_the_plain_loop(method, settings, loop):
    model, expected = Regression(method), Regression(method)
    fit(model, **settings)
    plain(expected, **loop)
    assert (model.method.steps, model.method.updates) == (STEPS, STEPS // EVERY)
    assert_moved(model, Regression(method))
    assert_equal(model, expected)


def test_update_in_place_of_a_step():
    """Lightning computes the gradients inside of `step`, in a closure."""
    model, expected = (Regression(update="replaces_step") for _ in range(2))
    fit(model)
    plain(expected)
    assert_moved(model, Regression())
    assert_equal(model, expected)


class Save(Callback):
    """A checkpoint after each epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("accumulate", [1, 2], ids=["each_batch", "accumulated"])
def test_resumed_run_is_the_unbroken_one(tmp_path, accumulate):
    """The method's state lies in the optimizer's, so Lightning's own checkpoints have it."""
    unbroken, resumed = Regression(), Regression(seed=5)
    fit(unbroken, accumulate, callbacks=[Save(tmp_path)])
    # The first epoch ends after step 15, which an update follows.
    fit(resumed, accumulate, checkpoint=tmp_path / "0.ckpt")
    assert unbroken.method.updates == STEPS // EVERY
    assert_equal(resumed, unbroken)
    for layer, other in zip(resumed.method.layers, unbroken.method.layers):
        assert torch.equal(layer.explored.words, other.explored.words)
