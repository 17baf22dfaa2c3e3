"""Tables 1 and 5: test accuracy of every method from every initialization."""

from __future__ import annotations

from sparsekern.experiments.reproduce.document import Section, Table
from sparsekern.experiments.reproduce.failures import accuracy_notes
from sparsekern.experiments.reproduce.paper import ACCURACY, IMAGENET, Printed
from sparsekern.experiments.reproduce.results import Results
from sparsekern.experiments.reproduce.runs import INITS, SPARSE_METHODS, PaperRun, PaperRuns
from sparsekern.experiments.reproduce.statistics import RULE, Sample, printed_text, verdict

NAMES = {
    "scratch": "Scratch",
    "set": "SET",
    "rigl": "RigL",
    "rigl_inverted": "RigL Inverted",
    "dense": "Dense",
    "lottery": "Lottery",
    "small_dense": "Small-Dense",
    "prune": "Pruning",
    "restart": "Prune restart",
}
INIT_NAMES = {"dense": "Original", "per_layer": "Liu et al.", "per_neuron": "Ours"}
TITLES = {"lenet5": "LeNet-5, 95 % sparse, MNIST", "mlp": "MLP 784-300-100-10, 98 % sparse, MNIST"}


def accuracy_section(results: Results, network: str, name: str) -> Section:
    """The table of a network."""
    paper = results.paper[network]
    rows, groups = [], {}
    for (role, init), runs in _cells(paper).items():
        accuracies = [results.accuracy(run) for run in runs]
        sample = Sample.of([None if a is None else 100 * a for a in accuracies])
        printed = ACCURACY[network].get((role, init))
        rows.append(_row(role, init, sample, printed, results.quick))
        groups[_label(role, init)] = runs
    notes = [*([] if results.quick else [RULE]), *accuracy_notes(results, groups)]
    return Section(f"{name}: {TITLES[network]}", [_TEXT], [Table(_HEADERS, rows, notes)])


_TEXT = (
    "Test accuracy in %. Every seed has a pruning run of its own, whose final mask its Lottery, Scratch, "
    "SET and RigL runs start from. Original is Glorot's initialization, masked; Ours the paper's."
)
_HEADERS = ["method", "initialization", "paper", "here, mean ± std (runs)", "agreement"]


def _row(role: str, init: str, sample: Sample, printed: Printed | None, quick: bool) -> list[str]:
    shown = INIT_NAMES[init] if role in ("scratch", "set", "rigl") else ""
    return [
        NAMES[role],
        shown,
        printed_text(printed),
        sample.text(),
        "" if quick else verdict(sample, printed),
    ]


def _cells(paper: PaperRuns) -> dict[tuple[str, str], list[PaperRun]]:
    seeds = paper.seeds
    cells = {("dense", "dense"): [paper.dense(seed) for seed in seeds]}
    cells["prune", "dense"] = [paper.prune(seed) for seed in seeds]
    cells["lottery", "dense"] = [paper.lottery(seed) for seed in seeds]
    cells["small_dense", "dense"] = [paper.small_dense(seed) for seed in seeds]
    for method in SPARSE_METHODS:
        for init in INITS:
            runs = [paper.sparse(method, init, seed) for seed in seeds]
            cells[runs[0].role, init] = runs
    return cells


def _label(role: str, init: str) -> str:
    return f"{NAMES[role]}, {INIT_NAMES[init]}" if role in ("scratch", "set", "rigl") else NAMES[role]


def imagenet_section() -> Section:
    """What is only on ImageNet: printed values, and the commands that would run it."""
    rows = [
        [
            network,
            NAMES[role],
            f"{value:.2f}",
            "not run",
            f"`sparsekern train {recipe} --data-dir DIR{options}`",
        ]
        for network, recipe in (("VGG-16", "vgg16-imagenet"), ("ResNet-50", "resnet50-imagenet"))
        for role, value in IMAGENET[network].items()
        for options in [_options(role)]
    ]
    text = (
        "Settings of Table 1 that need ImageNet are complete as recipes; none was run for this report. DIR "
        "is the folder of ImageNet's `train` and `val`, PRUNED that of a run with the options `--method "
        "gradual_pruning --keep-step 2000 --output PRUNED`."
    )
    return Section(
        "Table 1: ImageNet", [text], [Table(["network", "method", "paper", "here", "command"], rows)]
    )


def _options(role: str) -> str:
    method = {"scratch": "static", "lottery": "static"}.get(role, role)
    extra = (
        " --masks PRUNED/checkpoint.pt --weights PRUNED/step-2000.pt --first-step 2000"
        if role == "lottery"
        else ""
    )
    return f" --method {method}{extra}"
