"""A whole training run of LeNet-5 on MNIST, sparse against dense PyTorch, data included.

``python -m benchmarks.mnist_run --data-dir MNIST`` trains the paper's 11,719 steps of 128 examples twice, in
turns of 200 steps: the dense network by a plain loop that indexes tensors in memory, the 95 % sparse one as
``sparsekern train lenet5-mnist`` does. Both go through the training set in random order.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.machine import commit
from sparsekern.env import collect_env
from sparsekern.experiments.build import build_model
from sparsekern.experiments.data import Dataset, load_dataset
from sparsekern.experiments.models import LeNet5
from sparsekern.experiments.recipe import Recipe, load_recipe
from sparsekern.experiments.runtime import flushed_denormals
from sparsekern.experiments.schedule import learning_rate
from sparsekern.experiments.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
TURN = 200


def dense_steps(dataset: Dataset, recipe: Recipe) -> Callable[[int], None]:
    """One step of dense PyTorch at a time, as a user would write it."""
    torch.manual_seed(0)
    model = LeNet5()
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": recipe.weight_decay}, {"params": biases}]
    optimizer = torch.optim.SGD(groups, lr=recipe.learning_rate, momentum=recipe.momentum, fused=True)
    images, labels = dataset.train_images, dataset.train_labels
    batch, order, generator = recipe.batch_size, torch.empty(0, dtype=torch.int64), torch.Generator()

    def step(number: int) -> None:
        nonlocal order
        if len(order) < batch:
            order = torch.cat([order, torch.randperm(len(labels), generator=generator)])
        rate = learning_rate(recipe.schedule, recipe.learning_rate, number, recipe.steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        indices, order = order[:batch], order[batch:]
        optimizer.zero_grad()
        F.cross_entropy(model(images[indices]), labels[indices]).backward()
        optimizer.step()

    return step


def sparse_steps(dataset: Dataset, recipe: Recipe) -> tuple[Callable[[int], None], Trainer]:
    """One step of the sparse run at a time, with the metrics that it keeps."""
    trainer = Trainer(build_model(recipe, dataset)[0], dataset, recipe)
    return lambda number: trainer.train_step(), trainer


@flushed_denormals()
def measure(data_dir: Path, steps: int | None) -> dict[str, Any]:
    """Seconds of both, and the test accuracy of the sparse network."""
    recipe = load_recipe("lenet5-mnist")
    if steps:
        recipe = recipe.override({"steps": steps})
    dataset = load_dataset(recipe.dataset, data_dir)
    sparse, trainer = sparse_steps(dataset, recipe)
    runs = {"dense": dense_steps(dataset, recipe), "sparse": sparse}
    seconds = dict.fromkeys(runs, 0.0)
    for start in range(0, recipe.steps, TURN):
        for name, step in runs.items():
            began = time.perf_counter()
            for number in range(start, min(start + TURN, recipe.steps)):
                step(number)
            seconds[name] += time.perf_counter() - began
    return {
        "date": date.today().isoformat(),
        "commit": commit(),
        "environment": collect_env(),
        "threads": torch.get_num_threads(),
        "steps": recipe.steps,
        "seconds": seconds,
        "share": seconds["sparse"] / seconds["dense"],
        "test_accuracy": trainer.test_record()["accuracy"],
    }


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data-dir", type=Path, required=True, help="the folder of MNIST's four files")
    parser.add_argument("--steps", type=int, help="fewer steps, for a trial")
    parser.add_argument("--threads", type=int, help="PyTorch's threads (default: its own choice)")
    parser.add_argument("--output", type=Path, default=RESULTS / "mnist-run.json")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    found = measure(options.data_dir, options.steps)
    seconds = found["seconds"]
    print(
        f"{found['steps']:,} steps, {found['threads']} threads: dense PyTorch {seconds['dense']:.1f} s, "
        f"sparse {seconds['sparse']:.1f} s, {found['share']:.1%} of it; "
        f"test accuracy {found['test_accuracy']:.2%}"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
