"""One callback makes a run of Hugging Face's `Trainer` sparse: as by hand, and resumed exactly."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import sparsekern as sk
from sparsekern import seeds
from sparsekern.nn import SparseLayer

SparseTraining = sk.integrations.transformers.SparseTraining

pytestmark = [
    pytest.mark.filterwarnings("error::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
]
STEPS, EVERY, RATE = 20, 5, 1e-2
OPTIONS = {"distribution": "erk", "init": "per_neuron", "update_every": EVERY, "seed": 3}


def bert(seed=0):
    torch.manual_seed(seed)
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


class Plain(nn.Module):
    """No model of theirs, but one that returns its loss."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(50, 20)
        self.network = nn.Sequential(nn.Linear(20, 33), nn.Tanh(), nn.Linear(33, 2))

    def forward(self, input_ids, labels):
        logits = self.network(self.embedding(input_ids).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def samples():
    tokens = torch.randint(50, (160, 9), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row[0] % 2} for row in tokens]


def trainer(folder, model, *callbacks, optimizers=(None, None), **settings):
    given = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "steps",
        "save_steps": STEPS // 2,
    } | settings
    data = samples()
    return Trainer(
        model,
        TrainingArguments(**given),
        train_dataset=data,
        eval_dataset=data[:8],
        optimizers=optimizers,
        callbacks=list(callbacks),
    )


def train(folder, model, callback, checkpoint=None, **settings):
    run = trainer(folder, model, callback, **settings)
    run.train(resume_from_checkpoint=checkpoint)
    return run


def by_hand(model):
    generator = seeds.generator(3, "mask")
    sk.sparsify_(model, sparsity=0.8, distribution="erk", init="per_neuron", generator=generator)
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.0, fused=True)
    return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for key, tensor in one.items():
        assert torch.equal(tensor, other[key]), key


def is_sparse(model):
    return any(isinstance(module, SparseLayer) for module in model.modules())


WAYS = {
    "plain": {},
    "accumulated": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "bf16": {"bf16": True},
    "recomputed": {"activation_checkpointing": True},
}


@pytest.mark.parametrize("settings", WAYS.values(), ids=WAYS.keys())
def test_a_run_is_that_by_hand_and_resumes_exactly(tmp_path, settings):
    expected = bert()
    optimizers = by_hand(expected)
    moved = sk.RigL(expected, optimizers[0], update_every=EVERY, seed=3)
    trainer(tmp_path / "hand", expected, optimizers=optimizers, **settings).train()

    callback, model = SparseTraining(0.8, **OPTIONS), bert()
    train(tmp_path / "callback", model, callback, **settings)
    assert callback.report.sparsity == pytest.approx(0.8, abs=1e-3)
    assert (callback.method.steps, callback.method.updates) == (moved.steps, moved.updates) == (STEPS, 4)
    assert_equal(model.state_dict(), expected.state_dict())

    again, resumed = SparseTraining(0.8, **OPTIONS), bert(seed=9)
    train(tmp_path / "again", resumed, again, str(tmp_path / "callback/checkpoint-10"), **settings)
    assert (again.method.steps, again.method.updates) == (STEPS, 4)
    assert_equal(resumed.state_dict(), model.state_dict())
    for layer, other in zip(again.method.layers, moved.layers):
        assert torch.equal(layer.explored.words, other.explored.words)


def test_a_trainer_trains_twice_and_goes_back(tmp_path):
    """The second time the optimizer has the method already, when the checkpoint is loaded."""
    callback, model = SparseTraining(0.8, method="snfs", **OPTIONS), Plain()
    run = train(tmp_path, model, callback)
    end, method = {key: tensor.clone() for key, tensor in model.state_dict().items()}, callback.method
    run.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert callback.method is method
    assert (method.steps, method.updates) == (STEPS, 4)
    assert_equal(model.state_dict(), end)
    assert list(run.optimizer.param_groups[0]) == list(run.optimizer.param_groups[1])
    run.train()
    assert (method.steps, method.updates) == (2 * STEPS, 8)


def test_an_optimizer_of_a_sparse_model(tmp_path):
    model = Plain()
    optimizers = by_hand(model)
    callback = SparseTraining(update_every=EVERY)
    train(tmp_path, model, callback, optimizers=optimizers)
    assert callback.method.updates == 4
    resumed = Plain()
    optimizers = by_hand(resumed)
    run = trainer(tmp_path, resumed, again := SparseTraining(update_every=EVERY), optimizers=optimizers)
    run.train(resume_from_checkpoint=True)
    assert (again.method.steps, again.method.updates) == (STEPS, 4)
    assert_equal(resumed.state_dict(), model.state_dict())


def test_the_best_model_comes_back_with_its_patterns(tmp_path):
    class Best(TrainerCallback):
        """The first checkpoint is the best."""

        def on_evaluate(self, args, state, control, metrics, **others):
            metrics["eval_score"] = -state.global_step

    kept = {}

    class Keep(TrainerCallback):
        def on_save(self, args, state, control, model, **others):
            kept[state.global_step] = {key: tensor.clone() for key, tensor in model.state_dict().items()}

    model = Plain()
    run = trainer(
        tmp_path,
        model,
        SparseTraining(0.8, **OPTIONS),
        Best(),
        Keep(),
        load_best_model_at_end=True,
        metric_for_best_model="score",
        eval_strategy="steps",
        eval_steps=STEPS // 2,
    )
    run.train()
    assert run.state.best_global_step == STEPS // 2
    assert_equal(model.state_dict(), kept[STEPS // 2])
    assert not torch.equal(model.network[0].pattern.data, kept[STEPS]["network.0.pattern"])


class Recorder(TrainerCallback):
    def __init__(self):
        self.steps = []

    def on_log(self, args, state, control, logs, **others):
        if "sparsekern/grown" in logs:
            self.steps.append(state.global_step)


@pytest.mark.parametrize("logged", [True, False])
def test_statistics_are_logged_at_every_update(tmp_path, logged):
    seen, recorder = [], Recorder()
    callback = SparseTraining(0.8, on_update=seen.append, **OPTIONS)
    run = trainer(tmp_path, Plain(), callback, recorder)
    if logged:
        callback.log_to(run)
    run.train()
    names = ("dropped", "grown", "drop_fraction", "exploration_rate")
    expected = [
        {"sparsekern/sparsity": callback.report.sparsity}
        | {f"sparsekern/{name}": getattr(statistics, name) for name in names}
        | {"epoch": statistics.step / STEPS, "step": statistics.step}
        for statistics in seen
    ]
    assert len(seen) == 4
    assert run.state.log_history[:4] == expected
    assert recorder.steps == ([5, 10, 15, 20] if logged else [])
    with pytest.raises(ValueError, match="trainer must be the Trainer that has this callback"):
        SparseTraining(0.8).log_to(run)


def test_what_does_not_go_together_is_refused(tmp_path):
    def refused(words, callback, model=None, **settings):
        model = Plain() if model is None else model
        with pytest.raises(ValueError, match=words):
            train(tmp_path, model, callback, **settings)

    refused("sparsity must be given for a model without sparse layers", SparseTraining())
    model = Plain()
    made = (torch.optim.SGD(model.parameters(), 0.1), None)
    refused("optimizers must be left out where SparseTraining", SparseTraining(0.8), model, optimizers=made)
    assert not is_sparse(model)
    sk.sparsify_(model, sparsity=0.5)
    refused("that is sparse already and taken as it is", SparseTraining(0.8), model)
    words = "optimizer must hold the weights of all sparse layers, got SGD without"
    refused(words, SparseTraining(), model, optimizers=made)
    refused(
        "model must have an nn.Linear or nn.Conv2d to convert", SparseTraining(0.8), nn.Sequential(nn.Tanh())
    )
    with pytest.raises(TypeError, match=r"SparseTraining of sparsekern\.integrations\.transformers"):
        train(tmp_path, Plain(), sk.integrations.lightning.SparseTraining(0.8))
    run = trainer(tmp_path, Plain())
    run.add_callback(SparseTraining(0.8))
    with pytest.raises(ValueError, match=r"made sparse before its optimizer .* add_callback is too late"):
        run.train()
    arguments = run.args
    arguments.fsdp = "full_shard"
    with pytest.raises(ValueError, match=r"args must leave Parameters whole, .* got fsdp='full_shard'"):
        SparseTraining(0.8).on_init_end(arguments, None, None, model=Plain())


def test_models_that_the_trainer_makes(tmp_path):
    def sparse():
        sk.sparsify_(model := Plain(), sparsity=0.8, init="per_neuron")
        return model

    arguments = trainer(tmp_path, Plain()).args
    run = Trainer(None, arguments, train_dataset=samples(), model_init=Plain, callbacks=[SparseTraining(0.8)])
    with pytest.raises(ValueError, match=r"model must be made sparse .* model_init made another one"):
        run.train()
    callback = SparseTraining(update_every=EVERY)
    run = Trainer(None, arguments, train_dataset=samples(), model_init=sparse, callbacks=[callback])
    run.train()
    run.train()
    assert callback.method.updates == 4
    assert callback.method.layers[0].layer is run.model.network[0]


def test_a_checkpoint_without_the_method_says_so(tmp_path):
    model = Plain()
    by_hand(model)
    trainer(tmp_path, model).train()
    again = Plain()
    by_hand(again)
    with pytest.warns(UserWarning, match="checkpoint of step 10 has no state of RigL, which counts from 0"):
        train(tmp_path, again, SparseTraining(update_every=4), str(tmp_path / "checkpoint-10"))


def test_a_checkpoint_of_other_options_is_refused(tmp_path):
    train(tmp_path, Plain(), SparseTraining(0.8, **OPTIONS))
    words = "state must be of a method with update_every=4, got update_every=5"
    with pytest.raises(ValueError, match=words):
        train(tmp_path, Plain(), SparseTraining(0.8, **OPTIONS | {"update_every": 4}), True)
