"""One callback makes a Lightning run sparse: as by hand, bit for bit, and resumed exactly."""

from __future__ import annotations

import sys

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import sparsekern as sk
from sparsekern import seeds
from sparsekern.nn import SparseLayer

SparseTraining = sk.integrations.lightning.SparseTraining

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore::lightning.pytorch.utilities.warnings.PossibleUserWarning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning"),
]
STEPS, EPOCH = 20, 10
OPTIONS = {"distribution": "erk", "init": "per_neuron", "update_every": 5, "seed": 3}


class Regression(LightningModule):
    """Dense, as anybody would write it."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(54, 21), nn.Tanh(), nn.Linear(21, 7)
        )
        self.losses = []

    def training_step(self, batch, index=0):
        x, target = batch
        loss = nn.functional.mse_loss(self.network(x.view(-1, 1, 5, 5)), target)
        self.losses.append(loss.item())
        return loss

    test_step = training_step

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), 1e-2)


class ConfiguredLate(Regression):
    """Its layers are made on the device and in the dtype that Lightning wants."""

    def __init__(self, seed=0):
        super().__init__(seed)
        self.seed, self.network = seed, None

    def configure_model(self):
        if self.network is None:
            self.network = Regression(self.seed).network


def batches():
    generator = torch.Generator().manual_seed(1)
    x, target = (torch.randn(EPOCH * 4, size, generator=generator) for size in (25, 7))
    return DataLoader(TensorDataset(x, target), batch_size=4)


def trainer(*callbacks, **settings):
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    given = {"max_epochs": STEPS // EPOCH, "accelerator": "cpu", "devices": 1, "logger": False} | settings
    return Trainer(callbacks=list(callbacks), **quiet, **given)


def fit(model, *callbacks, checkpoint=None, **settings):
    trainer(*callbacks, **settings).fit(model, batches(), ckpt_path=checkpoint)
    return model


def by_hand(method=sk.RigL):
    model = Regression()
    generator = seeds.generator(3, "mask")
    sk.sparsify_(model, sparsity=0.8, distribution="erk", init="per_neuron", generator=generator)
    optimizer = model.configure_optimizers()
    method = method(model, optimizer, update_every=5, seed=3)
    for batch in [batch for _ in range(STEPS // EPOCH) for batch in batches()]:
        optimizer.zero_grad()
        model.training_step(batch).backward()
        optimizer.step()
    return model, method


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


class Save(Callback):
    """A checkpoint after each epoch."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_epoch_end(self, trainer, module):
        trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}.ckpt")


@pytest.mark.parametrize("module", [Regression, ConfiguredLate])
@pytest.mark.parametrize("method", ["rigl", "snfs", sk.SET], ids=["rigl", "snfs", "class"])
def test_a_run_is_that_by_hand_and_resumes_exactly(tmp_path, module, method):
    types = {"rigl": sk.RigL, "snfs": sk.SNFS}
    expected, moved = by_hand(types.get(method, method))
    callback = SparseTraining(0.8, method=method, **OPTIONS)
    model = fit(module(), callback, Save(tmp_path))
    assert callback.report.sparsity == pytest.approx(0.8, abs=1e-3)
    assert (callback.method.steps, callback.method.updates) == (moved.steps, moved.updates) == (STEPS, 4)
    assert model.losses == expected.losses
    assert_equal(model.state_dict(), expected.state_dict())

    again = SparseTraining(0.8, method=method, **OPTIONS)
    resumed = fit(module(seed=9), again, checkpoint=tmp_path / "0.ckpt")
    assert resumed.losses == model.losses[EPOCH:]
    assert_equal(resumed.state_dict(), model.state_dict())
    assert again.method.updates == 4
    for layer, other in zip(again.method.layers, moved.layers):
        assert torch.equal(layer.explored.words, other.explored.words)


@pytest.mark.parametrize(("precision", "dtype"), [("64-true", torch.float64), ("bf16-true", torch.bfloat16)])
def test_layers_made_in_another_dtype(precision, dtype):
    """Lightning's default dtype is for them, and not for what is drawn."""
    callback = SparseTraining(0.8, **OPTIONS)
    model = fit(ConfiguredLate(), callback, precision=precision)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert torch.get_default_dtype() == torch.float32
    assert callback.method.updates == 4
    first = fit(ConfiguredLate(), SparseTraining(0.8, method="static", **OPTIONS), precision=precision)
    hand = Regression().to(dtype)
    generator = seeds.generator(3, "mask")
    sk.sparsify_(hand, sparsity=0.8, distribution="erk", init="per_neuron", generator=generator)
    for layer, other in zip(first.network, hand.network):
        assert not isinstance(layer, SparseLayer) or layer.pattern == other.pattern


class Recorder(Logger):
    name = version = "recorder"

    def __init__(self):
        super().__init__()
        self.logged = {}

    def log_hyperparams(self, *args, **kwargs):
        pass

    def log_metrics(self, metrics, step=None):
        self.logged[step] = metrics


def test_statistics_are_logged_at_every_update():
    recorder, seen = Recorder(), []
    callback = SparseTraining(0.8, on_update=seen.append, **OPTIONS)
    run = trainer(callback, logger=recorder, log_every_n_steps=3)
    run.fit(Regression(), batches())
    # Lightning's own steps begin at 0.
    assert list(recorder.logged) == [4, 9, 14, 19]
    for metrics, statistics in zip(recorder.logged.values(), seen, strict=True):
        assert metrics == {
            "sparsekern/sparsity": callback.report.sparsity,
            "sparsekern/dropped": statistics.dropped,
            "sparsekern/grown": statistics.grown,
            "sparsekern/drop_fraction": 0.3,
            "sparsekern/exploration_rate": statistics.exploration_rate,
        }
    assert run.callback_metrics["sparsekern/grown"] == seen[-1].grown > 0
    silent = Recorder()
    fit(Regression(), SparseTraining(0.8, log=False, **OPTIONS), logger=silent)
    assert silent.logged == {}


def test_a_sparse_module_is_taken_as_it_is_and_fitted_twice():
    model = Regression()
    sk.sparsify_(model, sparsity=0.7, init="per_neuron")
    callback = SparseTraining(update_every=5, exclude=["network.0"])
    run = trainer(callback)
    before = {name: m.mask for name, m in model.named_modules() if isinstance(m, SparseLayer)}
    run.fit(model, batches())
    moved = {name for name, mask in before.items() if not torch.equal(model.get_submodule(name).mask, mask)}
    assert moved == {"network.3", "network.5"}
    assert callback.report is None
    first = callback.method
    trainer(callback).fit(model, batches())
    # Of the second optimizer, which the first method's hooks are not on.
    assert (first.steps, callback.method.steps, callback.method.updates) == (STEPS, STEPS, 4)


def test_what_is_tested_becomes_sparse_with_a_checkpoint_only(tmp_path):
    callback = SparseTraining(0.8, **OPTIONS)
    fit(trained := Regression(), callback, Save(tmp_path))
    model = Regression(seed=7)
    run = trainer(SparseTraining(0.8, **OPTIONS))
    run.test(model, batches(), verbose=False)
    assert not any(isinstance(m, SparseLayer) for m in model.modules())
    assert not model._load_state_dict_pre_hooks
    run.test(model, batches(), ckpt_path=tmp_path / "1.ckpt", verbose=False)
    assert_equal(model.state_dict(), trained.state_dict())


def test_an_average_follows():
    """Each of its weights is the average of what was at that position while it was active."""
    callback, average = SparseTraining(0.8, **OPTIONS), EMAWeightAveraging(decay=0.5)
    layer, expected = [], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, module, *step):
            now = module.network[3].to_dense().detach()
            kept = torch.where(module.network[3].mask, expected[-1], 0) if expected else None
            expected.append(now if kept is None else 0.5 * kept + 0.5 * now)
            layer[:] = [average._average_model.module.network[3]]
            torch.testing.assert_close(layer[0].to_dense().detach(), expected[-1])

    fit(Regression(), callback, average, Watch())
    assert callback.method.updates == 4
    with pytest.raises(ValueError, match="callbacks must have SparseTraining before EMAWeightAveraging"):
        fit(Regression(), EMAWeightAveraging(), SparseTraining(0.8, **OPTIONS))


class TwoOptimizers(Regression):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        front, back = self.network[:3], self.network[3:]
        return [torch.optim.SGD(part.parameters(), 0.1) for part in (front, back)]

    def training_step(self, batch, index=0):
        loss = super().training_step(batch)
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()


def test_one_of_several_optimizers():
    with pytest.raises(ValueError, match=r"got None for 2 optimizers: 0 \(SGD\), 1 \(SGD\)"):
        fit(TwoOptimizers(), SparseTraining(0.8, **OPTIONS))
    with pytest.raises(ValueError, match=r"got 2 for 2 optimizers: 0 \(SGD\), 1 \(SGD\)"):
        fit(TwoOptimizers(), SparseTraining(0.8, optimizer=2, **OPTIONS))
    both = SparseTraining(0.8, optimizer=0, **OPTIONS), SparseTraining(optimizer=1, update_every=5)
    fit(TwoOptimizers(), *both)
    assert [[layer.name for layer in callback.method.layers] for callback in both] == [
        ["network.0"],
        ["network.3", "network.5"],
    ]
    assert all(callback.method.updates == 4 for callback in both)
    # What only one of them trains needs no index.
    alone = SparseTraining(0.8, exclude=["network.0"], **OPTIONS)
    fit(TwoOptimizers(), alone)
    assert [layer.name for layer in alone.method.layers] == ["network.3", "network.5"]


class MadeBefore(Regression):
    def __init__(self):
        super().__init__()
        self.made = torch.optim.SGD(self.parameters(), 0.1)

    def configure_optimizers(self):
        return self.made


class MadeInSetup(Regression):
    def setup(self, stage):
        self.head = nn.Linear(7, 7)


class NoOptimizer(Regression):
    def configure_optimizers(self):
        return None


def test_what_does_not_go_together_is_refused():
    def refused(model, words, *given, **options):
        with pytest.raises(ValueError, match=words):
            fit(model, SparseTraining(*given, **options))

    refused(Regression(), "sparsity must be given for a model without sparse layers, got None and a dense")
    refused(ConfiguredLate(), "sparsity must be given for a model without sparse layers")
    refused(MadeBefore(), "optimizer must hold the weights of all sparse layers, got SGD without", 0.8)
    refused(MadeInSetup(), r"must have all its layers before setup, .* got 'head'", 0.8)
    with pytest.warns(UserWarning, match="configure_optimizers"):
        refused(NoOptimizer(), "optimizer must hold the weights .* got _MockOptimizer", 0.8)
    refused(Regression(), "exclude must be names or glob patterns", 0.8, exclude=["nothing"])
    with pytest.raises(TypeError, match=r"SparseTraining of sparsekern\.integrations\.lightning"):
        fit(Regression(), sk.integrations.transformers.SparseTraining(0.8))
    sparse = Regression()
    sk.sparsify_(sparse, sparsity=0.5)
    refused(sparse, "sparsity and masks must be left out for a model that is sparse already", 0.8)
    for index in (-1, True, "0"):
        with pytest.raises(TypeError, match="optimizer must be the index of an optimizer"):
            SparseTraining(0.8, optimizer=index)
    with pytest.raises(ValueError, match="strategy must be one that leaves Parameters whole"):
        SparseTraining(0.8).setup(_Strategy("FSDPStrategy"), sparse, "fit")


class _Strategy:
    """A Trainer whose strategy has this name: the real ones want a GPU."""

    def __init__(self, name):
        self.strategy = type(name, (), {})()


def test_the_package_to_install_is_named(monkeypatch):
    for package in ("lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "sparsekern.integrations.lightning")
    monkeypatch.delattr(sk.integrations, "lightning")
    with pytest.raises(ImportError, match="needs the package lightning: pip install lightning"):
        _ = sk.integrations.lightning


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_two_processes_resume_exactly(tmp_path):
    folders = tmp_path / "unbroken", tmp_path / "resumed"
    for seed, folder in enumerate(folders):
        checkpoint = folders[0] / "0.ckpt" if seed else None
        callbacks = SparseTraining(0.8, **OPTIONS), Save(folder)
        fit(Regression(seed), *callbacks, checkpoint=checkpoint, devices=2, strategy="ddp_fork")
    unbroken, resumed = (torch.load(folder / "1.ckpt", weights_only=True) for folder in folders)
    assert_equal(resumed["state_dict"], unbroken["state_dict"])
    method = unbroken["optimizer_states"][0]["sparsekern"][0]
    assert (method["steps"], method["updates"]) == (STEPS // 2, 2)
