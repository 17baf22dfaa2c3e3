"""Tickets that go back to a step of a pruning run."""

import torch

from sparsekern.experiments.build import build_model
from sparsekern.experiments.checkpoint import read_checkpoint
from sparsekern.experiments.metrics import read_metrics
from sparsekern.experiments.run import RunOptions, run
from sparsekern.experiments.schedule import learning_rate
from sparsekern.methods import load_masks


def quiet(text):
    pass


def test_a_ticket_starts_with_the_weights_data_and_schedule_of_its_step(short_recipe, digits, tmp_path):
    pruned = tmp_path / "pruned"
    changes = {"method": "gradual_pruning", "prune_begin": 6, "prune_end": 10, "update_every": 2}
    recipe = short_recipe.override({**changes, "keep_step": 4})
    run(recipe, RunOptions(pruned, bar=False), say=quiet)
    ticket = short_recipe.override(
        {
            "method": "static",
            "masks": str(pruned / "checkpoint.pt"),
            "weights": str(pruned / "step-4.pt"),
            "first_step": 4,
            "log_every": 1,
        }
    )

    model, _ = build_model(ticket, digits)
    kept = read_checkpoint(pruned / "step-4.pt")["trainer"]
    assert kept["step"] == 4
    masks = load_masks(pruned / "checkpoint.pt")
    for name, layer in model.named_children():
        expected = torch.where(masks[name].to_mask(), kept["model"][f"{name}.weight"], 0)
        assert torch.equal(layer.to_dense(), expected)
        assert torch.equal(layer.bias, kept["model"][f"{name}.bias"])

    folder = tmp_path / "ticket"
    run(ticket, RunOptions(folder, bar=False), say=quiet)
    trained = [record for record in read_metrics(folder / "metrics.jsonl") if record["kind"] == "train"]
    assert [record["step"] for record in trained] == list(range(5, 13))
    rates = [learning_rate(ticket.schedule, ticket.learning_rate, step, 12) for step in range(4, 12)]
    assert [record["learning_rate"] for record in trained] == rates
    epochs = 4 * ticket.batch_size / len(digits.train_labels)
    assert trained[0]["epoch"] == epochs * 5 / 4


def test_a_ticket_is_resumed_from_where_it_stopped(short_recipe, tmp_path):
    ticket = short_recipe.override({"first_step": 3, "checkpoint_every": 5, "keep_step": 10})
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    run(ticket, RunOptions(whole, bar=False), say=quiet)

    class Stop(Exception):
        pass

    class Watcher:
        def __init__(self, recipe, first):
            self.step = first

        def advance(self):
            self.step += 1
            if self.step == 8:
                raise Stop

        def record(self, record):
            pass

        def close(self):
            pass

    try:
        run(ticket, RunOptions(cut, bar=False), say=quiet, watch=Watcher)
    except Stop:
        pass
    run(ticket, RunOptions(cut, resume=True, bar=False), say=quiet)
    for file in ("checkpoint.pt", "step-10.pt"):
        one, other = (read_checkpoint(folder / file)["trainer"]["model"] for folder in (whole, cut))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_overwriting_removes_kept_states(short_recipe, tmp_path):
    run(short_recipe.override({"keep_step": 4}), RunOptions(tmp_path, bar=False), say=quiet)
    assert (tmp_path / "step-4.pt").exists()
    run(short_recipe, RunOptions(tmp_path, overwrite=True, bar=False), say=quiet)
    assert not (tmp_path / "step-4.pt").exists()
