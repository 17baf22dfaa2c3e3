"""Training steps of whole networks, as a GPU is to measure them, on tiny networks of the CPU."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import training
from benchmarks.gpu.tables import training_tables
from benchmarks.store import KEYS
from sparsekern.experiments.models.gpt import GPT_SIZES
from sparsekern.experiments.models.resnet20 import ResNet20


def test_the_gpt_has_a_billion_positions():
    assert GPT_SIZES["1b"].linear_weights > 1e9


def test_each_contender_is_measured_once_and_both_sparsities_are():
    jobs = training.jobs("cuda", quick=False)
    assert len(set(jobs)) == len(jobs)
    for network in (training.RESNET, training.GPT_1B):
        models = {(job.model, job.sparsity) for job in jobs if job.network == network}
        assert models >= {("dense", 0.0), ("sparsekern", 0.8), ("sparsekern", 0.9), ("masked-dense", 0.9)}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run, single-threaded: its records and document."""
    folder = tmp_path_factory.mktemp("results")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        status = main(["gpu-training", "--quick", "--threads", "1", "--output", str(folder)])
    torch.set_num_threads(threads)
    assert status == 0
    (path,) = folder.glob("*.json")
    records = json.loads(path.read_text())["sections"]["gpu-training"]
    return records, path.with_suffix(".md").read_text()


def test_a_quick_run_trains_every_contender(quick):
    records, document = quick
    assert all(set(KEYS["gpu-training"]) <= record.keys() for record in records)
    assert [record.get("failed") for record in records] == [None] * len(training.jobs("cpu", quick=True))
    assert all(record["step_ms"] > 0 for record in records)
    assert "ResNet-50, a training step of 2 examples" in document
    assert "GPT 1b, a training step of 2 examples" in document


def test_memory_is_that_of_the_networks(quick):
    by_name = {(each["network"], each["model"], each["sparsity"]): each for each in quick[0]}
    config = GPT_SIZES["tiny"]
    dense, sparse = by_name["GPT 1b", "dense", 0.0], by_name["GPT 1b", "sparsekern", 0.9]
    assert dense["weights_bytes"] == dense["gradients_bytes"] == 4 * config.parameters
    others = config.parameters - config.linear_weights
    assert sparse["weights_bytes"] == 4 * (others + round(0.1 * config.linear_weights))
    masked = by_name["GPT 1b", "masked-dense", 0.9]
    assert masked["pattern_bytes"] == 4 * config.linear_weights
    resnet = by_name["ResNet-50", "sparsekern", 0.9]
    weights = sum(p.numel() for p in ResNet20(10).parameters() if p.ndim > 1)
    momenta = sum(p.numel() for p in ResNet20(10).parameters()) - weights + round(0.1 * weights)
    assert resnet["optimizer_bytes"] == 4 * momenta
    for record in by_name.values():
        held = sum(record[f"{part}_bytes"] for part in ("weights", "gradients", "optimizer", "pattern"))
        assert record["peak_bytes"] > held


def test_the_table_compares_with_dense_and_tells_of_failures():
    sizes = {f"{part}_bytes": 2**20 for part in ("weights", "gradients", "optimizer", "pattern")}
    about = {"network": "net", "batch": 2}
    dense = {**about, "model": "dense", "sparsity": 0.0, "step_ms": 30.0, "peak_bytes": 8 * 2**20, **sizes}
    sparse = {**dense, "model": "sparsekern", "sparsity": 0.9, "step_ms": 20.0, "peak_bytes": 5 * 2**20}
    failed = {**about, "model": "masked-dense", "sparsity": 0.9, "failed": "no memory"}
    (table,) = training_tables([sparse, dense, failed])
    assert table.rows[0] == ["sparsekern", "90%", "20.0", "1.50", "4.0", "1.0x", "5.0", "1.6x"]
    assert table.rows[2] == ["masked-dense", "90%", *["-"] * 6]
    assert "could not be measured: no memory" in table.text()
    (alone,) = training_tables([sparse])
    assert alone.rows[0][3] == "-"


def test_a_contender_that_broke_its_process_is_told_of():
    job = training.jobs("cpu", quick=True)[0]
    assert job.measure({job.model: "illegal access"}, print) == {"batch": 2, "failed": "illegal access"}
