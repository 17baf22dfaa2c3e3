"""Methods attached to the optimizer that is handed to a Hugging Face `Trainer`."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import sparsekern as sk
from sparsekern.nn import SparseLayer

# A warning of ours fails the test.
pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
]
STEPS, EVERY = 30, 5


class Regression(nn.Module):
    """Any module that returns its loss."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(20, 33), nn.Tanh(), nn.Linear(33, 7))

    def forward(self, x, labels):
        prediction = self.network(x)
        return {"loss": nn.functional.mse_loss(prediction, labels), "logits": prediction}


def bert():
    return BertForSequenceClassification(
        BertConfig(
            vocab_size=50,
            hidden_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=40,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )


MODELS = {"module": Regression, "bert": bert}


def samples(kind):
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator}
    if kind == "module":
        x = torch.randn(240, 20, dtype=torch.float64, **draw)
        return [{"x": a, "labels": b} for a, b in zip(x, x[:, :7].sin())]
    tokens = torch.randint(50, (240, 9), **draw)
    return [{"input_ids": row, "labels": row[0] % 2} for row in tokens]


def train(folder, kind="module", steps=STEPS, batch=8, accumulate=1, seed=0, checkpoint=None, **settings):
    """The model, its method and the trainer after a run in float64."""
    torch.manual_seed(seed)
    model = MODELS[kind]().double()
    sk.sparsify_(model, sparsity=0.8, init="per_neuron")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, STEPS)
    method = sk.RigL(model, optimizer, update_every=EVERY, schedule="lr")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulate,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        save_strategy="steps",
        save_steps=STEPS // 2,
        **settings,
    )
    trainer = Trainer(model, arguments, train_dataset=samples(kind), optimizers=(optimizer, scheduler))
    trainer.train(resume_from_checkpoint=checkpoint)
    return model, method


def masks(model):
    return {name: m.mask for name, m in model.named_modules() if isinstance(m, SparseLayer)}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


@pytest.mark.parametrize("kind", MODELS)
def test_resumed_run_is_the_unbroken_one(tmp_path, kind):
    model, method = train(tmp_path, kind)
    assert (method.steps, method.updates) == (STEPS, STEPS // EVERY)
    assert method.last_update.grown > 0
    # The learning rate has fallen to a tenth but one step, and the share of weights to drop with it.
    assert method.last_update.drop_fraction < 0.05
    checkpoint = str(tmp_path / f"checkpoint-{STEPS // 2}")
    resumed, other = train(tmp_path, kind, seed=5, checkpoint=checkpoint)
    assert (other.steps, other.updates) == (method.steps, method.updates)
    assert_equal(resumed.state_dict(), model.state_dict())


def test_accumulated_gradients(tmp_path):
    whole, method = train(tmp_path / "whole")
    parts, other = train(tmp_path / "parts", batch=4, accumulate=2)
    assert (other.steps, other.updates) == (method.steps, method.updates) == (STEPS, STEPS // EVERY)
    assert_equal(masks(parts), masks(whole))
    torch.testing.assert_close(parts.state_dict(), whole.state_dict(), rtol=1e-8, atol=1e-10)
