"""Figures 5, 10 and 11: networks of known weights, so that distances and losses on lines are known too."""

import numpy
import pytest
import torch
from torch import nn

from sparsekern.experiments.data import InMemoryDataset
from sparsekern.experiments.reproduce.figures.landscape import interpolation_section, positions_section
from sparsekern.experiments.reproduce.statistics import RULE

SEEDS = (3, 4, 7)
PRUNED = ("gradual_pruning", "dense", 3, 3, None)
#: By seed: method, init, and the seeds of data, initial weights and mask, which is that of the first seed.
RUNS = {
    "Lottery": lambda seed: ("static", "dense", 1000 + seed, 3, 3),
    "Scratch": lambda seed: ("static", "per_neuron", 1000 + seed, 1000 + seed, 3),
}
NAMES = {"lenet5": "LeNet-5", "mlp": "MLP"}
#: Of the parameters of a network of which losses are taken.
SIZES = ((3, 2), 3, (4, 3), 4)
NOT_THERE = ["The runs it needs are not there."]

#: Where the networks of two parameters lie as seen from the pruning solution, by group, end and seed.
PLACES = {
    ("Lottery", "start"): [(3, 4)],
    ("Lottery", "end"): [(0, 1), (-2, 0), (0, -3)],
    ("Scratch", "start"): [(-8, 6), (8, 15), (-12, 16)],
    ("Scratch", "end"): [(20, 0), (0, 21), (-22, 0)],
}
#: Tickets start at 5 and end at 1, 2 and 3; the others start at 10, 17 and 20 and end at 20 to 22. The paper
#: has distances of LeNet-5 alone.
DISTANCES = {
    "lenet5": [
        ["Lottery", "13.61", "5.00 (1)", "differs: -8.61", "8.03", "2.00 ± 0.82 (3)", "differs: -6.03"],
        ["Scratch", "17.46", "15.67 ± 4.19 (3)", "agrees", "25.64", "21.00 ± 0.82 (3)", "differs: -4.64"],
    ],
    "mlp": [
        ["Lottery", "", "10.00 (1)", "", "", "4.00 ± 1.63 (3)", ""],
        ["Scratch", "", "31.33 ± 8.38 (3)", "", "", "42.00 ± 1.63 (3)", ""],
    ],
}
ALPHAS = numpy.arange(29) * 0.05 - 0.2


def which(facts):
    """The group and the number of a run, or None for the pruning solution."""
    if facts[1:] == PRUNED:
        return None
    ((label, number),) = [
        (name, number) for name, of in RUNS.items() for number, s in enumerate(SEEDS) if of(s) == facts[1:]
    ]
    return label, number


def number_of_network(run, end):
    """All tickets start from one network."""
    return 0 if (run[0], end) == ("Lottery", "start") else run[1]


def point(facts, end):
    """A network of a weight and a bias; those of the MLP are twice as far apart."""
    network = nn.Linear(1, 1, dtype=torch.float64)
    run = which(facts)
    x, y = (0, 0) if run is None else PLACES[run[0], end][number_of_network(run, end)]
    scale = 2 if facts.network == "mlp" else 1
    with torch.no_grad():
        network.weight.fill_(1.5 + scale * x)
        network.bias.fill_(-2.5 + scale * y)
    return network


@pytest.fixture
def positions(made_up):
    def make(network, ends=None, **options):
        results = made_up(
            lambda facts: (ends or {}).get(facts[1:], 0.9),
            initial=lambda facts: point(facts, "start"),
            final=lambda facts: point(facts, "end"),
            **options,
        ).results
        return positions_section(results, network, "fig5a", "5a")

    return make


def only(items):
    (item,) = items
    return item


@pytest.mark.parametrize("network", ["lenet5", "mlp"])
def test_points_and_distances_are_those_of_the_networks_that_their_labels_name(positions, network):
    section = positions(network)
    assert section.title == f"Figure 5a: where the solutions of the {NAMES[network]} lie"
    figure = only(section.figures)
    panel = only(figure.panels)
    labels = ["Pruning solution", *(" ".join(place) for place in PLACES)]
    assert list(panel.groups) == labels
    assert [len(points) for points in panel.groups.values()] == [1, 1, 3, 3, 3]
    places = numpy.array([(0, 0), *(place for group in PLACES.values() for place in group)], float)
    places *= 2 if network == "mlp" else 1
    shown = numpy.array([place for points in panel.groups.values() for place in points])
    lengths = distances(places)
    assert numpy.abs(distances(shown) - lengths).max() < 1e-3 * lengths.max()
    expected = [("Lottery start", 0, "Lottery end", i) for i in range(3)]
    expected += [("Scratch start", i, "Scratch end", i) for i in range(3)]
    assert panel.paths == expected
    assert f"a sum of squared distances of {(lengths**2).sum() / 2:.3g}." in figure.caption
    assert figure.name == "fig5a"
    table = only(section.tables)
    assert table.headers[1:] == [
        *("paper, start", "here, start", "agreement, start"),
        *("paper, end", "here, end", "agreement, end"),
    ]
    assert table.rows == DISTANCES[network]
    assert table.notes[1:] == ([RULE] if network == "lenet5" else [])


def distances(points):
    return numpy.linalg.norm(points[:, None] - points[None], axis=2)


def test_runs_without_an_end_have_no_place(positions):
    ends = {RUNS["Lottery"](3): "failed", RUNS["Scratch"](4): "diverged"}
    section = positions("lenet5", ends, quick=True)
    panel = only(only(section.figures).panels)
    assert [len(points) for points in panel.groups.values()] == [1, 1, 2, 2, 2]
    assert panel.paths == [
        ("Lottery start", 0, "Lottery end", 0),
        ("Lottery start", 0, "Lottery end", 1),
        ("Scratch start", 0, "Scratch end", 0),
        ("Scratch start", 1, "Scratch end", 1),
    ]
    # Left are 5, 2 and 3; 10 and 20, 20 and 22.
    table = only(section.tables)
    assert table.rows == [
        ["Lottery", "13.61", "5.00 (1)", "", "8.03", "2.50 ± 0.50 (2)", ""],
        ["Scratch", "17.46", "15.00 ± 5.00 (2)", "", "25.64", "21.00 ± 1.00 (2)", ""],
    ]
    assert table.notes[1:] == [
        "Lottery: 1 of 3 runs failed and are left out.",
        "Scratch: 1 of 3 runs diverged and are left out.",
    ]


@pytest.mark.parametrize(
    "missing", [[PRUNED], [RUNS["Lottery"](s) for s in SEEDS], [RUNS["Scratch"](s) for s in SEEDS]]
)
def test_nothing_is_placed_without_the_pruning_solution_or_a_whole_group(positions, missing):
    section = positions("lenet5", dict.fromkeys(missing, "failed"))
    assert (section.text, section.tables, section.figures) == (NOT_THERE, [], [])


def parameters(network, run, end):
    """Weights (3, 2), (4, 3) and biases (3,), (4,) of a network, different for each.

    All but the pruning solution are near its mirror image, which has its hidden units with another sign and
    computes what it does: half way between the two, nothing is left.
    """
    key = [*NAMES].index(network), ["start", "end"].index(end)
    solution = numpy.random.default_rng(key[0])
    pruned = [2 * solution.normal(size=size) for size in SIZES]
    if run is None:
        return pruned
    draw = numpy.random.default_rng([*key, [*RUNS].index(run[0]), number_of_network(run, end)])
    return [
        sign * value + 0.5 * draw.normal(size=value.shape) for sign, value in zip((-1, -1, -1, 1), pruned)
    ]


def logits_of(parts, x):
    w1, b1, w2, b2 = parts
    return numpy.tanh(x @ w1.T + b1) @ w2.T + b2


def curved(facts, end):
    network = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 4)).double()
    with torch.no_grad():
        for parameter, value in zip(
            network.parameters(), parameters(facts.network, which(facts), end), strict=True
        ):
            parameter.copy_(torch.from_numpy(value))
    return network


@pytest.fixture
def lines(made_up):
    def make(network, examples=50, ends=None, **options):
        used = 1000 if options.get("quick") else 10_000
        images = numpy.random.default_rng(examples).normal(size=(examples, 2))
        images[used:] *= 1000
        labels = logits_of(parameters(network, None, "end"), images).argmax(1)
        labels[used:] = 0
        given = torch.from_numpy(images), torch.from_numpy(labels)
        dataset = InMemoryDataset("made-up", *given, given[0][:0], given[1][:0], "0" * 64)
        made = made_up(
            lambda facts: (ends or {}).get(facts[1:], 0.9),
            initial=lambda facts: curved(facts, "start"),
            final=lambda facts: curved(facts, "end"),
            dataset=dataset,
            **options,
        )
        section = interpolation_section(made.results, network, "fig5b", "5b")

        def losses(label, end, numbers):
            x, y = images[:used], labels[:used]
            return numpy.array([on_line(network, (label, number), end, x, y) for number in numbers])

        return section, losses

    return make


def on_line(network, run, end, x, y):
    """The losses on the line from a network to the pruning solution, in plain numpy."""
    found = []
    for alpha in ALPHAS:
        pairs = zip(parameters(network, run, end), parameters(network, None, "end"))
        parts = [(1 - alpha) * mine + alpha * theirs for mine, theirs in pairs]
        logits = logits_of(parts, x)
        found.append((numpy.log(numpy.exp(logits).sum(1)) - logits[range(len(y)), y]).mean())
    return found


def barriers(losses):
    inside = slice(4, 25)  # 0 to 1
    ends = losses[:, 4:5] * (1 - ALPHAS[inside]) + losses[:, 24:25] * ALPHAS[inside]
    return (losses[:, inside] - ends).max(1)


def check(series, label, losses):
    assert series.label == label
    numpy.testing.assert_allclose(series.x, ALPHAS, atol=1e-12)
    numpy.testing.assert_allclose(series.y, losses.mean(0), rtol=1e-9)
    spread = losses.std(0, ddof=0) if len(losses) > 1 else []
    numpy.testing.assert_allclose(series.spread, spread, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("network", ["lenet5", "mlp"])
def test_losses_are_on_the_lines_to_the_pruning_solution(lines, network):
    section, losses = lines(network)
    assert section.title == f"Figure 5b: loss between solutions of the {NAMES[network]}"
    figure = only(section.figures)
    assert figure.name == "fig5b"
    assert [panel.title for panel in figure.panels] == [
        f"{NAMES[network]}, from solutions",
        f"{NAMES[network]}, from starting points",
    ]
    rows = []
    for panel, end in zip(figure.panels, ("end", "start"), strict=True):
        assert panel.log_y
        for series, label in zip(panel.series, RUNS, strict=True):
            expected = losses(label, end, [0] if (label, end) == ("Lottery", "start") else [0, 1, 2])
            check(series, label, expected)
            own = barriers(expected)
            assert own.max() > 0.01
            name = {"end": "solutions", "start": "starting points"}[end]
            spread = f" ± {own.std(ddof=0):.3f}" if len(own) > 1 else ""
            rows.append([f"{label}, {name}", f"{own.mean():.3f}{spread} ({len(own)})"])
    table = only(section.tables)
    assert table.headers == ["line to the pruning solution, from", "barrier in nats, mean ± std (networks)"]
    assert table.rows == rows
    assert len({row[1] for row in rows}) == 4


def test_runs_without_an_end_are_not_on_the_lines(lines):
    ends = {RUNS["Scratch"](3): "failed", RUNS["Scratch"](7): "diverged"}
    ends |= {RUNS["Lottery"](seed): "failed" for seed in SEEDS}
    section, losses = lines("lenet5", ends=ends)
    for panel, end in zip(only(section.figures).panels, ("end", "start"), strict=True):
        check(only(panel.series), "Scratch", losses("Scratch", end, [1]))
    assert [row[0] for row in only(section.tables).rows] == ["Scratch, solutions", "Scratch, starting points"]
    assert all(row[1].endswith(" (1)") for row in only(section.tables).rows)
    assert only(section.tables).notes[1:] == [
        "Lottery: 3 of 3 runs failed and are left out.",
        "Scratch: 1 of 3 runs diverged and are left out, 1 of 3 runs failed and are left out.",
    ]


def test_there_is_no_line_without_the_pruning_solution(lines):
    section, _ = lines("lenet5", ends={PRUNED: "diverged"})
    assert (section.text, section.tables, section.figures) == (NOT_THERE, [], [])


@pytest.mark.parametrize(("quick", "examples", "shown"), [(False, 10_003, "10,000"), (True, 1003, "1,000")])
def test_the_first_examples_are_taken_and_the_caption_says_how_many(lines, quick, examples, shown):
    missing = [RUNS["Scratch"](seed) for seed in SEEDS] + [RUNS["Lottery"](seed) for seed in (3, 7)]
    section, losses = lines("lenet5", examples, dict.fromkeys(missing, "failed"), quick=quick)
    figure = only(section.figures)
    assert figure.caption.endswith(f"; {shown} training examples.")
    check(only(figure.panels[0].series), "Lottery", losses("Lottery", "end", [1]))
