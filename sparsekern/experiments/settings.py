"""The keys of a recipe, in groups."""

from dataclasses import dataclass
from typing import ClassVar

from sparsekern.experiments.data import DATASETS, TOKENS
from sparsekern.experiments.keys import (
    choice,
    count,
    fraction,
    moment,
    number,
    path,
    positive,
    rising,
    switch,
    whole,
)
from sparsekern.experiments.models import GPT_SIZES, MODELS
from sparsekern.experiments.schedule import SCHEDULES

#: Methods that train a dense network, whatever the sparsity.
DENSE_METHODS = ("dense", "small_dense")
#: Methods that change the masks during training, and of these the ones that grow by the gradient.
UPDATING_METHODS = ("set", "rigl", "rigl_inverted", "snfs")
GRADIENT_METHODS = ("rigl", "rigl_inverted")
#: Methods that train a network whose weights are 2:4, whatever the sparsity.
TWO_FOUR_METHODS = ("sr_ste", "ste", "two_four_fixed")
#: Methods that start dense and remove weights as they train.
PRUNING_METHODS = ("gradual_pruning",)
METHODS = (*DENSE_METHODS, "static", *UPDATING_METHODS, *PRUNING_METHODS, *TWO_FOUR_METHODS)


@dataclass(frozen=True, kw_only=True)
class Network:
    """What is trained."""

    title: ClassVar[str] = "the network and its data"

    model: str = choice("network", MODELS)
    dataset: str = choice("data set", DATASETS)
    method: str = choice(
        "dense and small_dense (the dense twin of as many parameters) and the 2:4 methods sr_ste, ste and "
        "two_four_fixed ignore the sparsity, static keeps its masks, gradual_pruning starts dense and "
        "removes weights, the others update their masks",
        METHODS,
        "static",
    )
    image_size: int = count("image_folder: pixels of an image's side", 224, least=16)
    num_classes: int = count("image_folder: its classes, and outputs of the network", 1000)
    width_multiplier: float = positive("resnet20: its channels, in multiples of the usual ones", 1.0)
    gpt_size: str = choice("gpt: its layers, heads and width", GPT_SIZES, "tiny")
    context: int = count("text: tokens that gpt looks at together", 128)
    tokens: str = choice("text: what a token is", TOKENS, "bytes")


@dataclass(frozen=True, kw_only=True)
class Masks:
    """Where training starts."""

    title: ClassVar[str] = "the masks and the weights that training starts from"

    sparsity: float = number("fraction of zero weights; 0 trains the dense network", 0.0, below=1)
    distribution: str = choice("how sparsity is spread over the layers", ("uniform", "er", "erk"), "uniform")
    masks: str | None = path(
        "file of masks to start from, not random ones: a run's checkpoint.pt, .safetensors or .pt"
    )
    at_init: str | None = choice(
        "masks by scores of the initial weights (init dense keeps these), not random ones (default: none)",
        ("random", "magnitude", "snip", "grasp", "synflow"),
        None,
        optional=True,
    )
    at_init_scope: str = choice(
        "at_init: the weights of all layers compete, or each layer has its share by distribution",
        ("global", "layer"),
        "global",
    )
    at_init_examples: int = count(
        "examples of each class that snip and grasp score by, the first ones of the training set", 10
    )
    weights: str | None = path("checkpoint.pt of a run to take the weights of, in place of init")
    storage: str = choice("compact keeps nnz values, masked a dense weight", ("compact", "masked"), "compact")
    init: str = choice(
        "initial weights: dense (as the dense network), per_layer (Liu et al.), per_neuron (Evci et al.)",
        ("dense", "per_layer", "per_neuron"),
        "per_neuron",
    )


@dataclass(frozen=True, kw_only=True)
class Updates:
    """How masks change; without effect on the methods that keep theirs."""

    title: ClassVar[str] = "the updates of the masks, for set, rigl, rigl_inverted and snfs"

    update_every: int = count("steps between updates", 100)
    drop_fraction: float = fraction("fraction of a layer's active weights that an update drops", 0.3)
    drop_schedule: str = choice(
        "drop_fraction: cosine falls to 0 at stop_at, constant stays, lr follows the learning rate",
        ("cosine", "constant", "lr"),
        "lr",
    )
    stop_at: int | str | None = moment("no update from this step on (default: none)", None)
    update: str = choice(
        "an update comes after the optimizer's step or replaces it",
        ("after_step", "replaces_step"),
        "after_step",
    )
    regrow_dropped: bool = switch("whether what was just dropped may grow back, with its value", True)
    grow_gradient: str = choice(
        "rigl and rigl_inverted grow by the gradient of the step's own batch, or of a fixed one (holdout, "
        "with its L2 term)",
        ("batch", "holdout"),
        "batch",
    )
    grow_batch_size: int = count("examples of the fixed batch, consecutive ones of the training set", 1000)
    grow_batch_start: int = count("training examples before them", 0, least=0)
    new_values: str = choice(
        "values of weights that grow: zero, or drawn as init per_neuron does", ("zero", "per_neuron"), "zero"
    )


@dataclass(frozen=True, kw_only=True)
class Pruning:
    """When weights are removed; without effect on other methods."""

    title: ClassVar[str] = "pruning while training, for gradual_pruning"

    prune_begin: int = count("steps before the first weights are removed", 3000)
    prune_end: int = count("steps until the sparsity is reached, in updates of update_every steps", 7000)


@dataclass(frozen=True, kw_only=True)
class TwoFour:
    """How 2:4 weights are trained; without effect on other methods."""

    title: ClassVar[str] = "2:4 weights, for sr_ste, ste and two_four_fixed"

    transposable: bool = switch("whether masks are 2:4 along both dimensions of a weight", False)
    refresh_every: int = count("steps between choices of the mask, for sr_ste and ste", 1)
    sr_ste_decay: float = number("decay of pruned weights, for sr_ste", 2e-4)


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """The optimizer and its schedule."""

    title: ClassVar[str] = "the optimizer"

    optimizer: str = choice("optimizer", ("sgd", "adamw"), "sgd")
    learning_rate: float = positive("initial learning rate")
    momentum: float = number("momentum of sgd, first beta of adamw", 0.9, below=1)
    nesterov: bool = switch("whether sgd's momentum is Nesterov's", False)
    weight_decay: float = number(
        "PyTorch's weight_decay, on weights only, never on biases (Keras' l2 is half of it)", 0.0
    )
    schedule: str = choice(
        "learning rate: cosine falls to 0 over all steps, constant stays, step falls at milestones",
        SCHEDULES,
        "cosine",
    )
    warmup_steps: int | str = moment("steps in which the learning rate rises from 0 at first", 0, least=0)
    milestones: str | None = rising("schedule step: the steps from which the learning rate is lower")
    step_factor: float = fraction("schedule step: what it is multiplied by at each of them", 0.1)
    label_smoothing: float = number("share of a training label that is spread over all classes", 0.0, below=1)
    steps: int = count("training steps")
    first_step: int = count(
        "step to start at, of the schedule and of the data: that of the weights a ticket goes back to",
        0,
        least=0,
    )
    batch_size: int = count("examples in a batch, at most those of the training set", 128)


@dataclass(frozen=True, kw_only=True)
class Records:
    """What a run writes; of no effect on its weights."""

    title: ClassVar[str] = "what is written, and when"

    log_every: int = count("steps between lines of training metrics", 100)
    evaluate_every: int = count("steps between evaluations on the test set", 1000)
    checkpoint_every: int = count("steps between checkpoints", 1000)
    keep_step: int | None = count(
        "step whose state is kept as step-N.pt, for tickets that go back to it", None, optional=True
    )
    gradient_flow_every: int = count(
        "steps between measurements of the gradient's norm, which is also taken around mask updates; 0 takes "
        "none",
        0,
        least=0,
    )
    gradient_flow_examples: int = count(
        "examples that it is measured on, the first of the training set", 1000
    )
    benchmark_steps: int = count(
        "steps to time against the dense network after training; 0 times none", 0, least=0
    )


@dataclass(frozen=True, kw_only=True)
class Seeds:
    """Where randomness comes from."""

    title: ClassVar[str] = "the seeds"

    seed: int = whole("seed of the three below, and of what an update draws", 0)
    init_seed: int | None = whole("seed of the initial weights (default: seed)")
    mask_seed: int | None = whole("seed of the random masks (default: seed)")
    data_seed: int | None = whole("seed of the order of examples (default: seed)")


#: In the order in which files and help have them.
GROUPS = (Network, Masks, Updates, Pruning, TwoFour, Optimization, Records, Seeds)
