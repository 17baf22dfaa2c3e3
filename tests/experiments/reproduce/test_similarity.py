"""Tables 2 and 6: networks whose answers are made up, so that what they have in common can be counted."""

from itertools import combinations, permutations

import numpy
import pytest
import torch
from torch import nn

from sparsekern.experiments.data import InMemoryDataset
from sparsekern.experiments.reproduce.similarity import agreement_section, divergence_section
from sparsekern.experiments.reproduce.statistics import RULE

EXAMPLES, CLASSES = 200, 4
LABELS = numpy.arange(EXAMPLES) % CLASSES
#: Method, init, and the seeds of data, initial weights and mask; the test examples that a network gets wrong.
WRONG = {
    ("static", "dense", 1003, 3, 3): {0, 1},
    ("static", "dense", 1004, 3, 3): {1, 2, 3},
    ("static", "dense", 1007, 3, 3): {0, 20, 21, 22},
    ("static", "per_neuron", 1003, 1003, 3): {*range(30, 38)},
    ("static", "per_neuron", 1004, 1003, 3): {*range(34, 43)},
    ("static", "per_neuron", 1007, 1003, 3): {*range(50, 60)},
    ("static", "per_neuron", 1004, 1004, 3): {*range(36, 41)},
    ("static", "per_neuron", 1007, 1007, 3): {*range(60, 66)},
    ("static", "dense", 1003, "pruned 3", 3): {*range(11)},
    ("static", "dense", 1004, "pruned 3", 3): {*range(4, 16)},
    ("static", "dense", 1007, "pruned 3", 3): {*range(70, 83)},
    ("gradual_pruning", "dense", 3, 3, None): {*range(7)},
    ("gradual_pruning", "dense", 4, 4, None): {*range(80, 94)},
    ("gradual_pruning", "dense", 7, 7, None): {*range(90, 105)},
}
LOTTERY, SCRATCH, (FIRST_SCRATCH, *_) = list(WRONG)[:3], list(WRONG)[3:6], list(WRONG)[3:]
OTHERS, RESTART, PRUNED = [FIRST_SCRATCH, *list(WRONG)[6:8]], list(WRONG)[8:11], list(WRONG)[11:]
GROUPS = {
    "Lottery": LOTTERY,
    "Scratch": SCRATCH,
    "Scratch, other initializations": OTHERS,
    "Prune restart": RESTART,
    "Pruned, other initializations": PRUNED,
}
#: Test accuracy and its deviation, the ensemble's, disagreement among themselves and with the pruned one.
PAPER = {
    "Lottery": (98.52, 0.02, 98.58, 0.0043, 0.0089),
    "Scratch": (97.04, 0.15, 98.00, 0.0316, 0.0278),
    "Scratch, other initializations": (97.19, 0.33, 98.43, 0.0352, 0.0278),
    "Prune restart": (98.60, 0.01, 98.63, 0.0027, 0.0077),
    "Pruned, other initializations": (98.30, 0.23, 99.07, 0.0214, 0.0197),
}


def wrong_of(network, run):
    """Those of the MLP are one more, of its own, for all but the pruned ones."""
    return WRONG[run] | ({150 + list(WRONG).index(run)} if network == "mlp" and run not in PRUNED else set())


def probabilities(network, run):
    """0.6 for the right class, or 0.55 for the next one where it is wrong, or 0.97 at every fifth example."""
    table = numpy.full((EXAMPLES, CLASSES), 0.4 / 3)
    table[range(EXAMPLES), LABELS] = 0.6
    for example in wrong_of(network, run):
        surely = 0.97 if example % 5 == 0 else 0.55
        table[example] = (1 - surely) / 3
        table[example, (LABELS[example] + 1) % CLASSES] = surely
    return table


def answering(facts):
    """A network that takes the number of an example, one-hot."""
    model = nn.Linear(EXAMPLES, CLASSES, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.from_numpy(probabilities(facts.network, facts[1:])).log().T)
    return model


@pytest.fixture
def results(made_up):
    """Makes results; ``ends`` says of some runs how they ended, by what WRONG calls them."""
    labels = torch.from_numpy(LABELS)
    numbers = torch.eye(EXAMPLES, dtype=torch.float64)
    dataset = InMemoryDataset("numbers", numbers[:0], labels[:0], numbers, labels, "0" * 64)

    def make(ends=None, **options):
        # The tables measure the networks themselves: accuracies that runs noted are not theirs.
        def outcome(facts):
            return (ends or {}).get(facts[1:], 0.5)

        return made_up(outcome, final=answering, dataset=dataset, **options).results

    return make


def kl(p, q):
    return (p * numpy.log(p / q)).sum(1).mean()


def jsd(p, q):
    return (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2


def mean_of(function, pairs):
    return numpy.mean([function(*pair) for pair in pairs])


def rows_of(label, network, runs, with_paper=True):
    """The four rows of a group in Table 2."""
    wrong = [wrong_of(network, run) for run in runs]
    others = [wrong_of(network, run) for run in runs if run != PRUNED[0]]
    accuracies = [100 * (1 - len(examples) / EXAMPLES) for examples in wrong]
    mean, std = numpy.mean(accuracies), numpy.std(accuracies, ddof=0)
    together = sum(probabilities(network, run) for run in runs).argmax(1) == LABELS
    ensemble = 100 * together.mean()
    # Two that are wrong give the same answer.
    pairs = mean_of(lambda a, b: len(a ^ b) / EXAMPLES, combinations(wrong, 2))
    with_pruned = numpy.mean([len(a ^ WRONG[PRUNED[0]]) / EXAMPLES for a in others])
    here = [f"{mean:.2f} ± {std:.2f} ({len(runs)})", f"{ensemble:.2f}", f"{pairs:.4f}", f"{with_pruned:.4f}"]
    paper = verdicts = [""] * 4
    if with_paper:
        printed, printed_std, *rest = PAPER[label]
        paper = [f"{printed:.2f} ± {printed_std:.2f}", f"{rest[0]:.2f}", f"{rest[1]:.4f}", f"{rest[2]:.4f}"]
        agrees = abs(mean - printed) <= std + printed_std + 0.01
        verdicts = [
            "agrees" if agrees else f"differs: {mean - printed:+.2f}",
            f"{ensemble - rest[0]:+.2f}",
            f"{pairs - rest[1]:+.4f}",
            f"{with_pruned - rest[2]:+.4f}",
        ]
    names = ["test accuracy, %", "ensemble, %", "disagreement", "with the pruned"]
    return [[label, *row] for row in zip(names, paper, here, verdicts, strict=True)]


def only_table(section):
    (table,) = section.tables
    return table


def test_every_cell_of_table_2_is_of_its_own_networks(results):
    section = agreement_section(results(), "lenet5")
    assert section.title == "Table 2: LeNet-5, 95 % sparse, MNIST"
    table = only_table(section)
    assert table.headers == ["solutions", "quantity", "paper", "here", "agreement"]
    expected = [rows_of(label, "lenet5", runs) for label, runs in GROUPS.items()]
    assert table.rows == [row for rows in expected for row in rows]
    assert table.notes == [RULE]
    verdicts = {row[4].partition(":")[0] for row in table.rows if row[1] == "test accuracy, %"}
    assert verdicts == {"agrees", "differs"}


def test_rows_of_tickets_worked_out_by_hand(results):
    """Wrong are {0, 1}, {1, 2, 3} and {0, 20, 21, 22}, and the pruned one is wrong at 0 to 6."""
    rows = only_table(agreement_section(results(), "lenet5")).rows[:4]
    # Together they are wrong at 1, where two are, and at 0 and 20, where one is sure of it. Pairs differ at
    # 3, 4 and 7 examples, and from the pruned one at 5, 4 and 9.
    assert rows == [
        ["Lottery", "test accuracy, %", "98.52 ± 0.02", "98.50 ± 0.41 (3)", "agrees"],
        ["Lottery", "ensemble, %", "98.58", "98.50", "-0.08"],
        ["Lottery", "disagreement", "0.0043", "0.0233", "+0.0190"],
        ["Lottery", "with the pruned", "0.0089", "0.0300", "+0.0211"],
    ]


def test_nothing_is_printed_of_the_mlp(results):
    section = agreement_section(results(), "mlp")
    assert section.title == "Table 2: MLP 784-300-100-10, 98 % sparse, MNIST"
    expected = [rows_of(label, "mlp", runs, with_paper=False) for label, runs in GROUPS.items()]
    assert only_table(section).rows == [row for rows in expected for row in rows]


def test_a_quick_report_has_the_printed_values_and_no_verdicts(results):
    table = only_table(agreement_section(results(quick=True), "lenet5"))
    expected = [rows_of(label, "lenet5", runs) for label, runs in GROUPS.items()]
    assert table.rows == [[*row[:4], ""] for rows in expected for row in rows]
    assert table.notes == []


def test_runs_without_an_end_are_left_out_and_groups_of_one_are_not_measured(results):
    ends = {
        LOTTERY[0]: "failed",
        SCRATCH[1]: "diverged",
        SCRATCH[2]: "failed",
        RESTART[2]: "diverged",
        PRUNED[1]: "failed",
    }
    left = {label: [run for run in runs if run not in ends] for label, runs in GROUPS.items()}
    assert [len(runs) for runs in left.values()] == [2, 1, 3, 2, 2]
    found = results(ends)
    expected = []
    for label, runs in left.items():
        expected += rows_of(label, "lenet5", runs) if len(runs) > 1 else [[label, "", "", "not run", ""]]
    agreement, divergence = (
        only_table(section(found, "lenet5")) for section in (agreement_section, divergence_section)
    )
    assert agreement.rows == expected
    assert [row[0] for row in divergence.rows if "not run" in row] == ["Scratch"]
    named = [
        "Lottery: 1 of 3 runs failed and are left out.",
        "Scratch: 1 of 3 runs diverged and are left out, 1 of 3 runs failed and are left out.",
        "Prune restart: 1 of 3 runs diverged and are left out.",
        "Pruned, other initializations: 1 of 3 runs failed and are left out.",
    ]
    assert agreement.notes == [RULE, *named]
    assert divergence.notes == named


def test_without_the_pruning_solution_nothing_is_measured(results):
    found = results({PRUNED[0]: "failed"})
    expected = [[label, "", "", "not run", ""] for label in GROUPS]
    assert only_table(agreement_section(found, "lenet5")).rows == expected
    rows = only_table(divergence_section(found, "lenet5")).rows
    assert rows == [[label, *["not run"] * 4] for label in GROUPS]


@pytest.mark.parametrize("network", ["lenet5", "mlp"])
def test_every_cell_of_table_6_is_of_its_own_networks(results, network):
    table = only_table(divergence_section(results(), network))
    assert table.headers == [
        "solutions",
        "KL, pairs",
        "KL from the pruned",
        "JSD, pairs",
        "JSD with the pruned",
    ]
    pruned = probabilities(network, PRUNED[0])
    expected = []
    for label, runs in GROUPS.items():
        given = [probabilities(network, run) for run in runs]
        with_pruned = [(probabilities(network, run), pruned) for run in runs if run != PRUNED[0]]
        quantities = [
            mean_of(kl, permutations(given, 2)),
            mean_of(kl, with_pruned),
            mean_of(jsd, combinations(given, 2)),
            mean_of(jsd, with_pruned),
        ]
        expected.append([label, *(f"{value:.4f}" for value in quantities)])
    assert table.rows == expected
    # Cells that are exchanged show.
    assert table.notes == []
    assert all(len(set(cells)) == len(cells) for cells in (*expected, *zip(*expected)))
