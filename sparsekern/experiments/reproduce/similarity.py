"""Tables 2 and 6: how alike the functions are that networks of one mask have learnt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sparsekern import analysis
from sparsekern.experiments.reproduce.accuracy import TITLES
from sparsekern.experiments.reproduce.document import Section, Table
from sparsekern.experiments.reproduce.failures import left_out_notes
from sparsekern.experiments.reproduce.paper import SIMILARITY
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import PaperRun
from sparsekern.experiments.reproduce.statistics import RULE, Printed, Sample, printed_text, verdict

GROUPS = {
    "lottery": "Lottery",
    "scratch": "Scratch",
    "scratch_other_init": "Scratch, other initializations",
    "restart": "Prune restart",
    "pruned": "Pruned, other initializations",
}


def agreement_section(results: Results, network: str) -> Section:
    """Table 2 of a network: accuracy, ensembles and disagreement."""
    headers = ["solutions", "quantity", "paper", "here", "agreement"]
    rows = []
    for group, label in GROUPS.items():
        measured = _measured(results, network, group)
        printed = SIMILARITY[group] if network == "lenet5" else (None,) * 4
        rows += _rows(label, measured, printed, results.quick)
    rule = [RULE] if network == "lenet5" and not results.quick else []
    return Section(
        f"Table 2: {TITLES[network]}",
        [_TEXT, _DISAGREEMENT],
        [Table(headers, rows, [*rule, *_notes(results, network)])],
    )


def divergence_section(results: Results, network: str) -> Section:
    """Table 6 of a network: divergences of predicted probabilities."""
    headers = ["solutions", "KL, pairs", "KL from the pruned", "JSD, pairs", "JSD with the pruned"]
    rows = []
    for group, label in GROUPS.items():
        measured = _measured(results, network, group)
        keys = ("kl", "kl_with_pruned", "jsd", "jsd_with_pruned")
        rows.append([label, *(f"{measured[key]:.4f}" if measured else "not run" for key in keys)])
    table = Table(headers, rows, _notes(results, network))
    return Section(f"Table 6: {TITLES[network]}", [_TEXT, _DIVERGENCE], [table])


def _notes(results: Results, network: str) -> list[str]:
    solutions = results.paper[network].solutions()
    return left_out_notes(results, {label: solutions[group] for group, label in GROUPS.items()})


_TEXT = (
    "All networks but the last group's have the mask of the first pruning run. Lottery and Scratch differ "
    "in the order of the data alone; a prune restart trains on from the pruning solution with the whole "
    "schedule again; the last group are pruning runs of other seeds, with masks of their own."
)
_DISAGREEMENT = (
    "Disagreement is the fraction of test examples that two networks classify differently: its mean over "
    "all pairs, and with the pruning solution. An ensemble predicts by the mean of its networks' "
    "probabilities. Where the pruning solution is itself one of a group, it is not compared with itself."
)
_DIVERGENCE = (
    "In nats, means over test examples. KL(p, q) is the sum over classes of p log(p / q): over all ordered "
    "pairs of networks; from the pruned, p is a network and q the pruning solution. JSD is the mean of "
    "KL(p, m) and KL(q, m) with m = (p + q) / 2. The paper's values are not printed beside ours."
)


def _rows(
    label: str, measured: dict[str, Any] | None, printed: Sequence[Printed | None], quick: bool
) -> list[list[str]]:
    if measured is None:
        return [[label, "", "", "not run", ""]]
    accuracy = Sample(tuple(100 * value for value in measured["accuracies"]))
    quantities = [
        ("test accuracy, %", accuracy, 2),
        ("ensemble, %", Sample((100 * measured["ensemble"],)), 2),
        ("disagreement", Sample((measured["disagreement"],)), 4),
        ("with the pruned", Sample((measured["disagreement_with_pruned"],)), 4),
    ]
    rows = []
    for (quantity, sample, digits), value in zip(quantities, printed):
        shown = sample.text(digits) if len(sample.values) > 1 else f"{sample.mean:.{digits}f}"
        has_spread = value is not None and value.std is not None
        agreement = verdict(sample, value, digits) if has_spread else _difference(sample, value, digits)
        rows.append([label, quantity, printed_text(value, digits), shown, "" if quick else agreement])
    return rows


def _difference(sample: Sample, printed: Printed | None, digits: int) -> str:
    """By how much a value without a spread is off."""
    return "" if printed is None else f"{sample.mean - printed.mean:+.{digits}f}"


def _measured(results: Results, network: str, group: str) -> dict[str, Any] | None:
    """None if fewer than two runs of the group, or not the pruning run, came to their end."""
    paper = results.paper[network]
    reference = results.finished([paper.prune(paper.seeds[0])])
    runs = results.finished(paper.solutions()[group])
    if len(runs) < 2 or not reference:
        return None
    folders = [run.folder for run in (*reference, *runs)]
    return results.cached("similarity", {"runs": folders}, lambda: _measure(results, reference[0], runs))


def _measure(results: Results, reference: PaperRun, runs: Sequence[PaperRun]) -> dict[str, Any]:
    images, labels = results.dataset.test_images, results.dataset.test_labels

    def probabilities(run: PaperRun) -> Tensor:
        return analysis.predict(results.final(run), images)

    pruned = probabilities(reference)
    all_of_them = [probabilities(run) for run in runs]
    others = [p for p, run in zip(all_of_them, runs) if run != reference]
    return {
        "accuracies": [float((p.argmax(1) == labels).double().mean()) for p in all_of_them],
        "ensemble": analysis.ensemble_accuracy(all_of_them, labels),
        "disagreement": analysis.pairwise_disagreement(all_of_them),
        "disagreement_with_pruned": analysis.disagreement_with(others, pruned),
        "kl": analysis.pairwise_kl_divergence(all_of_them),
        "kl_with_pruned": sum(analysis.kl_divergence(p, pruned) for p in others) / len(others),
        "jsd": analysis.pairwise_jensen_shannon_divergence(all_of_them),
        "jsd_with_pruned": sum(analysis.jensen_shannon_divergence(p, pruned) for p in others) / len(others),
    }
