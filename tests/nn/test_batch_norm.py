"""Statistics of batch normalization anew: by hand, against PyTorch's, and as before after errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

import sparsekern as sk
from sparsekern.nn import recalibrate_batch_norm_


def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(96, 11),
        nn.BatchNorm1d(11, momentum=0.3),
        nn.Linear(11, 5),
    ).double()
    model(torch.randn(8, 2, 6, 6).double())  # statistics of before, which must not count
    return model


def batches(count=4, samples=7):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(samples, 2, 6, 6, generator=generator, dtype=torch.float64) for _ in range(count)]


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def test_is_the_mean_over_batches_by_hand():
    norm = nn.Sequential(nn.BatchNorm1d(1))
    found = recalibrate_batch_norm_(norm, [torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [16.0]])])
    assert found == 1
    assert norm[0].running_mean.tolist() == [(2 + 13) / 2]
    assert norm[0].running_var.tolist() == [(2 + 18) / 2]
    assert norm[0].num_batches_tracked == 2


def test_a_moving_average_begins_with_the_first_batch():
    norm = nn.Sequential(nn.BatchNorm1d(1))
    data = [torch.tensor([[1.0], [3.0]]), torch.tensor([[10.0], [16.0]])]
    recalibrate_batch_norm_(norm, data, momentum=0.25)
    assert norm[0].running_mean.tolist() == [0.75 * 2 + 0.25 * 13]
    assert norm[0].running_var.tolist() == [0.75 * 2 + 0.25 * 18]


def test_is_that_of_pytorch_where_nothing_else_depends_on_the_mode():
    model = network()
    sk.prune_(model, 0.8)
    theirs = copy.deepcopy(model)
    update_bn(batches(), theirs)
    assert recalibrate_batch_norm_(model, batches()) == 2
    for name, buffer in buffers(theirs).items():
        torch.testing.assert_close(buffers(model)[name], buffer, rtol=1e-12, atol=1e-14)


def test_statistics_of_before_do_not_count_even_where_they_are_none():
    norm = nn.Sequential(nn.BatchNorm1d(1))
    norm[0].running_mean.fill_(torch.nan)
    recalibrate_batch_norm_(norm, [torch.tensor([[1.0], [3.0]])], momentum=0.5)
    assert norm[0].running_mean.tolist() == [2]


def test_dropout_is_off():
    data = torch.tensor([[1.0], [3.0]]).expand(2, 50).contiguous()
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(50))
    recalibrate_batch_norm_(model, [data])
    assert (model[1].running_mean == 2).all()


def test_modes_momenta_and_gradients_are_as_before():
    model = network()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    recalibrate_batch_norm_(model, batches())
    assert [module.training for module in model.modules()] == modes
    assert (model[1].momentum, model[5].momentum) == (0.1, 0.3)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["tuples", "lists", "mappings", "function", "generator"])
def test_kinds_of_batches(kind):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network()

        def forward(self, images):
            return self.net(images)

    model, other = Named(), Named()
    given = {
        "tuples": [(x, 3) for x in batches()],
        "lists": [[x] for x in batches()],
        "mappings": [{"images": x} for x in batches()],
        "function": [{"x": x, "y": 0} for x in batches()],
        "generator": (x for x in batches()),
    }[kind]
    forward = (lambda m, batch: m(batch["x"])) if kind == "function" else None
    recalibrate_batch_norm_(model, given, forward=forward)
    recalibrate_batch_norm_(other, batches())
    assert all(torch.equal(a, b) for a, b in zip(buffers(model).values(), buffers(other).values()))


def test_without_batch_normalization_no_batch_is_read():
    assert recalibrate_batch_norm_(nn.Sequential(nn.Linear(2, 2)), iter([1])) == 0
    untracked = nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False))
    assert recalibrate_batch_norm_(untracked, iter([1])) == 0


@pytest.mark.parametrize(
    ("given", "options", "error", "message"),
    [
        ([], {}, ValueError, "batches must have at least one batch, got none"),
        (3, {}, TypeError, "batches must be an iterable of batches, got 3"),
        ([*batches(2), "a"], {}, TypeError, "batches must be tensors, .*, got 'a'"),
        ([*batches(2), ()], {}, TypeError, r"batches must be tensors, .*, got \(\)"),
        ([*batches(2), torch.ones(3, 4).double()], {}, RuntimeError, "."),
        (batches(), {"momentum": 0}, ValueError, r"momentum must be a number in \(0, 1\] or None, got 0"),
        (batches(), {"momentum": "x"}, ValueError, "momentum must be a number"),
        (batches(), {"forward": 1}, TypeError, "forward must be a function of model and batch, got 1"),
    ],
)
def test_all_is_as_before_after_an_error(given, options, error, message):
    model = network()
    model[5].eval()
    before, modes = buffers(model), [module.training for module in model.modules()]
    with pytest.raises(error, match=message):
        recalibrate_batch_norm_(model, given, **options)
    assert all(torch.equal(buffer, before[name]) for name, buffer in buffers(model).items())
    assert [module.training for module in model.modules()] == modes


def test_what_is_no_model():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got 3"):
        recalibrate_batch_norm_(3, [])
