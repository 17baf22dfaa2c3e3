"""The measurements for GPUs on tensors of the CPU: every line runs, and records say what they mean."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.gpu import bars, jobs, memory, tables
from benchmarks.gpu.cases import FEW, LARGE, MAIN, MIDDLE, PRODUCTS, Case, cases, products, quick_cases
from benchmarks.gpu.jobs import BUILDERS, OpJob, bars_of, judged
from benchmarks.gpu.problem import Problem
from benchmarks.store import KEYS

OPS = {*BUILDERS}


def test_all_ops_are_measured_and_each_case_once():
    found = cases()
    assert {case.op for case in found} == OPS == {case.op for case in quick_cases()}
    assert len(set(found)) == len(found)
    assert {case.sparsity for case in found} >= {0.5, 0.8, 0.9, 0.95, 0.98}
    assert {case.block for case in found} == {None, 64, 128}
    networks = {case.layer.network for case in found}
    assert networks == {"transformer", "ResNet-50", "VGG-16", "LeNet-5"}


def test_every_bar_is_answered_to_early():
    named = {bar.name for case in cases()[:40] for bar in bars_of(case)}
    rates = {bars.BLOCKS, bars.BLOCKS_BREAK_EVEN, bars.UNSTRUCTURED, bars.UNSTRUCTURED_FLOAT32, bars.CONV}
    two_four = {bars.TWO_FOUR_PACK.name, bars.TWO_FOUR_LINEAR.name, bars.TWO_FOUR_TRAINING.name}
    assert named == rates | two_four | {bars.FEW, bars.FEW_EXAMPLE, bars.TOPOLOGY.name, bars.GROW.name}


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """A quick run, single-threaded: its results, document and output."""
    folder = tmp_path_factory.mktemp("results")
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        # Processes of the run take it from there.
        patch.setenv("OMP_NUM_THREADS", "1")
        status = main(["gpu-memory", "gpu", "--quick", "--threads", "1", "--output", str(folder)])
    torch.set_num_threads(threads)
    (path,) = folder.glob("*.json")
    return status, json.loads(path.read_text()), path.with_suffix(".md").read_text()


def test_a_quick_run_measures_every_op(quick):
    status, results, document = quick
    assert status == 0
    records = results["sections"]["gpu"]
    assert {record["op"] for record in records} == OPS
    assert all(set(KEYS["gpu"]) <= record.keys() for record in records)
    for record in records:
        assert record.get("failed") is None
        # Growing is an op of its own that may not be there yet; all others run on CPUs.
        if not record["op"].startswith("grow"):
            assert record["times"]["sparsekern"]["median_ms"] > 0, record
        assert not any("wrong" in time for time in record["times"].values()), record
        assert f"{record['op']}: microseconds" in document
    assert "says nothing about speed" in document or "say nothing about speed" in document


def test_a_quick_run_trains_every_model(quick):
    records = quick[1]["sections"]["gpu-memory"]
    assert {(record["model"], record["autocast"]) for record in records} == {
        (model, autocast) for model in memory.MODELS for autocast in (True, False)
    }
    by_model = {record["model"]: record for record in records}
    # 2 blocks of 12 x 64 x 64 weights at 90 %; layer norms and biases stay.
    others = 2 * (4 * 64 + 9 * 64)
    assert by_model["dense"]["weights_bytes"] == 4 * (98304 + others)
    sparse = sum(round(0.1 * size * 64 * 64) for size in (3, 1, 4, 4)) * 2
    assert by_model["sparsekern"]["weights_bytes"] == 4 * (sparse + others)
    assert by_model["sparsekern"]["pattern_bytes"] > 0
    assert "Training a transformer with AdamW: 2 blocks, 64 wide" in quick[2]


def test_tiny_sizes_are_not_judged(quick):
    assert all(record["bars"] == [] for record in quick[1]["sections"]["gpu"])
    assert memory.judged(quick[1]["sections"]["gpu-memory"]) == []


def test_the_model_has_a_billion_weights():
    assert memory.SIZE["blocks"] * 12 * memory.SIZE["width"] ** 2 == 1_006_632_960


def record_of(case, dense, ours, **times):
    record = {
        "bytes": 24_000_000,
        "times": {"dense": {"median_ms": dense}, "sparsekern": {"median_ms": ours}, **times},
    }
    return {**jobs.name_of(case), **record, "bars": judged(case, record, on_h200=True)}


def test_bars_are_judged_by_what_they_measure():
    (speed,) = record_of(Case("linear", MAIN, 0.90, "bfloat16"), 1.0, 2.0)["bars"]
    assert (speed["reached"], speed["wanted"], speed["met"]) == (0.5, 0.9, False)
    # 24 MB at 4.8 TB/s take 5 us.
    roofline, example = record_of(Case("linear", FEW, 0.90, "bfloat16"), 0.040, 0.00625)["bars"]
    assert (roofline["measure"], roofline["reached"], roofline["met"]) == ("roofline", 0.8, True)
    assert (example["reached"], example["met"]) == (6.4, True)
    (update,) = record_of(Case("update_topology", LARGE, 0.90, "float32"), 1.0, 0.2)["bars"]
    assert (update["reached"], update["met"]) == (200.0, False)
    gradient = {"dense gradient": {"median_ms": 0.5}}
    (grow,) = record_of(Case("grow_candidates", LARGE, 0.90, "bfloat16"), 1.0, 0.9, **gradient)["bars"]
    assert (grow["reached"], grow["met"]) == (1.8, True)


def test_two_four_is_judged_on_large_layers_in_bfloat16():
    def verdict(op, layer, dtype="bfloat16"):
        return [
            (bar["wanted"], bar["met"]) for bar in record_of(Case(op, layer, 0.5, dtype), 0.06, 0.03)["bars"]
        ]

    assert verdict("pack_two_four", MAIN) == [(25.0, False)]
    assert verdict("pack_two_four", LARGE) == []
    assert verdict("two_four_linear", MAIN) == verdict("two_four_linear", LARGE) == [(1.6, True)]
    assert verdict("two_four_training", MAIN) == [(1.33, True)]
    assert verdict("two_four_linear", FEW) == verdict("two_four_training", MAIN, "float32") == []


def test_what_is_two_four_is_called_so():
    assert {case.pattern for case in cases()} == {"random", "block 64", "block 128", "2:4"}
    assert {(case.sparsity, case.block) for case in cases() if case.pattern == "2:4"} == {(0.5, None)}


def test_the_faster_memory_format_counts():
    formats = {"channels-last": {"median_ms": 1.0}, "sparsekern channels-last": {"median_ms": 1.25}}
    (bar,) = record_of(Case("conv2d", MIDDLE, 0.90, "bfloat16"), 3.0, 5.0, **formats)["bars"]
    assert (bar["reached"], bar["met"]) == (0.8, True)


def test_absolute_bars_hold_for_the_gpu_that_they_were_set_for():
    record = {"bytes": 24_000_000, "times": {"dense": {"median_ms": 1.0}, "sparsekern": {"median_ms": 0.1}}}
    assert judged(Case("update_topology", LARGE, 0.90, "float32"), record, on_h200=False) == []
    found = judged(Case("linear", FEW, 0.90, "bfloat16"), record, on_h200=False)
    assert [bar["measure"] for bar in found] == ["speed-up"]


def test_what_was_not_measured_is_not_judged():
    record = {"times": {"dense": {"median_ms": 1.0}, "sparsekern": {"missing": "no kernel"}}}
    assert judged(Case("linear", MAIN, 0.90, "bfloat16"), record, on_h200=True) == []


def test_a_wrong_result_is_not_timed(monkeypatch):
    wrong = lambda p: jobs.Contender("sparsekern", lambda: p.right.to(p.dtype) + 1)  # noqa: E731
    monkeypatch.setitem(BUILDERS["linear"], "sparsekern", wrong)
    found = OpJob(quick_cases()[0], "cpu", 0.001).measure({}, lambda name: None)["times"]
    assert found["sparsekern"].keys() == {"wrong"}
    assert found["dense"]["median_ms"] > 0


def test_contenders_that_broke_a_process_are_left_out():
    told = []
    found = OpJob(quick_cases()[0], "cpu", 0.001).measure({"torch CSR": "illegal access"}, told.append)[
        "times"
    ]
    assert found["torch CSR"] == {"missing": "illegal access"}
    assert "torch CSR" not in told
    with pytest.raises(RuntimeError, match="timing ended the process: hung"):
        OpJob(quick_cases()[0], "cpu", 0.001).measure({jobs.TIMING: "hung"}, told.append)


@pytest.mark.parametrize("case", [c for c in quick_cases() if c.op in sum(PRODUCTS.values(), ())], ids=str)
def test_right_results_are_those_of_the_reference(case):
    import sparsekern as sk

    p = Problem(case, "cpu")
    op, geometry = getattr(sk.ops, case.op), p.geometry if case.layer.kind == "conv2d" else {}
    weight, right = p.values.double(), p.right.double()
    x, grad_y = p.x.double(), p.grad_y.double()
    arguments = {
        case.layer.kind: (x, weight, p.pattern, p.bias.double()),
        f"{case.layer.kind}_grad_input": (grad_y, weight, p.pattern, *([x.shape] if geometry else [])),
        f"{case.layer.kind}_grad_values": (grad_y, x, p.pattern),
    }[case.op]
    expected = op(*arguments, **geometry, backend="reference")
    torch.testing.assert_close(right, expected, rtol=1e-4, atol=1e-4)


def test_the_table_of_bars_counts_and_shows_the_farthest():
    main_case = Case("linear", MAIN, 0.90, "bfloat16")
    records = [record_of(main_case, 1.0, ours) for ours in (1.0, 2.0, 4.0)]
    dense = {"model": "dense", "autocast": True, "width": 2048}
    sizes = {"weights_bytes": 1, "gradients_bytes": 1, "optimizer_bytes": 2, "pattern_bytes": 0}
    models = [
        {**dense, **{name: 10 * size for name, size in sizes.items()}},
        {**dense, **sizes, "model": "sparsekern"},
    ]
    table = tables.bar_table({"gpu": records, "gpu-memory": models})
    assert table.rows == [
        [bars.UNSTRUCTURED, "1/3", "0.25x", "0.90x", "missed"],
        [bars.MEMORY.name, "1/1", "10.0x less", "9.0x less", "met"],
    ]


def test_what_did_not_run_is_listed_with_its_reason():
    case = products(MAIN, 0.90)[0]
    records = [
        {**jobs.name_of(case), "times": {"sparsekern": {"missing": "no kernel"}}},
        {**jobs.name_of(case), "times": {"sparsekern": {"wrong": 0.5}}},
        {**jobs.name_of(case), "times": {}, "failed": "no memory"},
        {**jobs.name_of(case), "times": {"sparsekern": {"median_ms": 1.0}}},
    ]
    lines = tables.missing({"gpu": records})
    assert [line.partition("bfloat16: ")[2] for line in lines] == [
        "missing: no kernel",
        "wrong by 5.0e-01",
        "missing: no memory",
    ]


def test_no_time_left_measures_nothing(capsys):
    assert main(["gpu", "--quick", "--seconds-total", "0"]) == 0
    assert capsys.readouterr().out == "No bar could be judged.\n\nNothing was measured.\n"
