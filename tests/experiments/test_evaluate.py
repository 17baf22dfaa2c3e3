import pytest
import torch
import torch.nn.functional as F

from sparsekern.experiments.evaluate import evaluate, evaluate_batches


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_loss_and_accuracy_are_those_of_the_whole_set(batch_size):
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(5, 3).double()
    x = torch.randn(20, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (20,), generator=generator)
    loss, accuracy = evaluate(model, x, y, batch_size)
    assert loss == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-12)
    assert accuracy == (model(x).argmax(1) == y).double().mean().item()


def test_batches_may_differ_in_size():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (20,), generator=generator)
    batches = [(x[:13], y[:13]), (x[13:14], y[13:14]), (x[14:], y[14:])]
    assert evaluate_batches(torch.nn.Identity(), iter(batches)) == pytest.approx(
        evaluate(torch.nn.Identity(), x, y), rel=1e-12
    )


def test_runs_in_evaluation_mode_without_gradients_and_restores_the_mode():
    seen = []

    class Model(torch.nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    for training in (True, False):
        model = Model().train(training)
        evaluate(model, torch.eye(3), torch.arange(3))
        assert model.training is training
    assert seen == [(False, False), (False, False)]
