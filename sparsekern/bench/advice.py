"""What the figures of a model mean for its user: a function of the figures alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from sparsekern.bench.findings import Findings, LayerFinding, Variant

# Nearer than this to dense counts as equal: medians of one run do not tell such figures apart.
MARGIN = 0.05
# Where steps of one model vary more than this, or so many processes want each core, figures are rough.
VARIES, CROWDED = 0.2, 1.2
# Below so many seconds a layer's forward and backward pass is mostly the cost of calls.
SMALL = 2e-4


@dataclass(frozen=True)
class Advice:
    """What to do.

    Attributes
    ----------
    lines : tuple of str
        Sentences.
    exclude : dict of Variant to tuple of str
        For ``sparsify_(exclude=...)``: the layers that are slower with the variant than dense.
    """

    lines: tuple[str, ...]
    exclude: dict[Variant, tuple[str, ...]]


def advise(findings: Findings) -> Advice:
    """What to make sparse and how, by the figures of one machine."""
    slower = {variant: slower_layers(findings, variant) for variant in findings.variants}
    every = [name for layer in findings.layers for name in layer.names]
    everything = [*every, *findings.left]
    exclude = {variant: shortened(names, everything) for variant, names in slower.items()}
    lines = [
        *_verdict(findings),
        *_patterns(findings),
        *_keep_dense(findings, slower, exclude, len(every)),
        *_small(findings, slower),
        *_bound(findings),
        *_memory(findings),
        *_noise(findings),
    ]
    return Advice(tuple(lines), exclude)


def slower_layers(findings: Findings, variant: Variant) -> list[str]:
    """The layers whose training is slower than dense, by more than the margin."""
    return [
        name
        for layer in findings.layers
        for name in layer.names
        if (gain := layer.gain(variant)) is not None and gain < 1 - MARGIN
    ]


def pays_from(layer: LayerFinding, pattern: str) -> Variant | None:
    """The least sparsity of a pattern from which on all measured ones train no slower than dense."""
    found = None
    for variant in sorted((v for v in layer.sparse if v.pattern == pattern), reverse=True):
        gain = layer.gain(variant)
        if gain is None or gain < 1 - MARGIN:
            break
        found = variant
    return found


def shortened(names: Sequence[str], everything: Iterable[str]) -> tuple[str, ...]:
    """Names as glob patterns, where one matches several of them and no other layer.

    ``blocks.0.key`` and ``blocks.1.key`` become ``blocks.*.key`` unless there is a ``blocks.2.key`` that is
    not among the names.
    """
    others = set(everything) - set(names)
    patterns: dict[str, None] = {}
    for name in names:
        pattern = ".".join("*" if part.isdecimal() else part for part in name.split("."))
        alone = sum(_matches(pattern, each) for each in names) == 1
        patterns[name if alone or any(_matches(pattern, other) for other in others) else pattern] = None
    return tuple(patterns)


def _matches(pattern: str, name: str) -> bool:
    """As `sparsify_` has it: a pattern that matches a module matches all that is in it."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:depth]), pattern) for depth in range(1, len(parts) + 1))


def _verdict(findings: Findings) -> list[str]:
    """Of the whole model, all layers converted: when a step is faster, and how fast."""
    variants = findings.variants
    best = max(variants, key=findings.gain)
    gain = findings.gain(best)
    if gain <= 1 - MARGIN:
        lines = [
            f"Training: sparse is slower than dense here, whatever the sparsity ({times(gain)} at the best, "
            f"{best}). Do not expect time from it on this machine."
        ]
    elif gain < 1 + MARGIN:
        lines = [f"Training: sparse is about as fast as dense here ({times(gain)} at the best, {best})."]
    else:
        lines = [f"Training: a step is {times(gain)} as fast as dense at {best}, the fastest of all."]
        slow = [variant for variant in variants if findings.gain(variant) < 1 - MARGIN]
        if slow:
            listed = ", ".join(f"{variant} ({times(findings.gain(variant))})" for variant in slow)
            lines.append(f"Slower than dense: {listed}.")
    best = max(variants, key=lambda variant: findings.gain(variant, "evaluation"))
    gain = findings.gain(best, "evaluation")
    word = "slower than dense" if gain < 1 - MARGIN else "no faster" if gain < 1 + MARGIN else "faster"
    lines.append(f"Evaluation: {word}, {times(gain)} as fast at the best, {best}.")
    simulated = findings.dense.cost.step / findings.masked.cost.step
    lines.append(f"Masks multiplied to dense weights train {times(simulated)} as fast as dense.")
    return lines


def _patterns(findings: Findings) -> list[str]:
    if len(findings.patterns) < 2:
        return []
    best = {
        pattern: max((v for v in findings.variants if v.pattern == pattern), key=findings.gain)
        for pattern in findings.patterns
    }
    ranked = sorted(best.values(), key=findings.gain, reverse=True)
    listed = ", then ".join(f"{variant} ({times(findings.gain(variant))})" for variant in ranked)
    pays = [variant for variant in ranked if findings.gain(variant) > 1 + MARGIN]
    if not pays:
        return [f"No pattern pays here; the nearest: {listed}."]
    return [f"The pattern that pays most here is {pays[0].pattern}: {listed}."]


def _keep_dense(
    findings: Findings,
    slower: dict[Variant, list[str]],
    exclude: dict[Variant, tuple[str, ...]],
    number: int,
) -> list[str]:
    if not any(slower.values()):
        return ["No layer by itself is slower sparse than dense: nothing to exclude."]
    lines = ["Layers that are slower sparse, to be kept dense:"]
    groups: dict[tuple[str, ...], list[Variant]] = {}
    for variant in findings.variants:
        groups.setdefault(exclude[variant], []).append(variant)
    for names, variants in groups.items():
        at = listed_variants(variants)
        converted = _converted(findings, variants[0])
        if not names:
            lines.append(f"  {at}: none")
        elif len(slower[variants[0]]) == converted:
            what = "all" if converted == number else "all that fit the pattern"
            lines.append(f"  {at}: {what}, so leave the model dense")
        else:
            lines.append(f"  {at}: exclude=[{', '.join(map(repr, names))}]".replace("'", '"'))
    some = [v for v in findings.variants if 0 < len(slower[v]) < _converted(findings, v)]
    if not some:
        return lines
    best = min(some, key=lambda variant: expected(findings, variant))
    gain = findings.dense.cost.step / expected(findings, best)
    if gain > max(1 + MARGIN, findings.gain(best) * (1 + MARGIN)):
        lines.append(
            f"  so a step at {best} should be about {times(gain)} as fast: measure it with --exclude"
        )
    return lines


def _converted(findings: Findings, variant: Variant) -> int:
    return sum(len(layer.names) for layer in findings.layers if layer.gain(variant) is not None)


def expected(findings: Findings, variant: Variant) -> float:
    """Seconds of a step with the slower layers left dense, as the figures of single layers have it."""
    names = set(slower_layers(findings, variant))
    saved = 0.0
    for layer in findings.layers:
        cost = layer.sparse.get(variant)
        if cost is not None:
            saved += sum(name in names for name in layer.names) * (cost.step - layer.dense.step)
    # Layers by themselves may add up to more than the model they are of.
    return max(findings.sparse[variant].cost.step - saved, 0.1 * findings.dense.cost.step)


def _small(findings: Findings, slower: dict[Variant, list[str]]) -> list[str]:
    names = {name for each in slower.values() for name in each}
    layers = [layer for layer in findings.layers if names.intersection(layer.names)]
    if not layers or not all(layer.dense.step < SMALL for layer in layers):
        return []
    slowest = max(layer.dense.step for layer in layers)
    return [
        f"They take at most {1e3 * slowest:.2f} ms each: a call's own cost decides, and a larger batch helps."
    ]


def _bound(findings: Findings) -> list[str]:
    """Amdahl's law."""
    step = findings.dense.cost.step
    rest = 1 - min(findings.convertible_seconds / step, 1.0)
    if rest < 0.02:
        return ["Nearly all of a dense step is in layers that can be sparse."]
    best = max(map(findings.gain, findings.variants))
    if best > 1 / rest:
        return [
            f"Layers by themselves add up to {1 - rest:.0%} of a dense step, too little for a step that is "
            f"{times(best)} as fast: no bound follows."
        ]
    bound = f"however sparse, a step cannot be more than {1 / rest:.1f} times as fast"
    return [f"About {rest:.0%} of a dense step is not in layers that can be sparse: {bound}."]


def _memory(findings: Findings) -> list[str]:
    least = min(findings.variants, key=lambda variant: findings.sparse[variant].bytes.held)
    dense, sparse = findings.dense.bytes, findings.sparse[least].bytes
    held = f"{size(dense.held)} dense, {size(sparse.held)} at {least} ({_less(dense.held, sparse.held)})"
    peak = f"{size(dense.peak)} and {size(sparse.peak)} ({_less(dense.peak, sparse.peak)})"
    lines = [f"Held to train: {held}; a step's peak, with activations: {peak}."]
    if max(map(findings.gain, findings.variants)) <= 1 + MARGIN and dense.held > 1.2 * sparse.held:
        lines.append("Memory is what sparsity gains here.")
    return lines


def _noise(findings: Findings) -> list[str]:
    lines = []
    if findings.load > CROWDED:
        lines.append(
            f"The machine was busy when this began, {findings.load:.1f} processes for each core: long calls "
            "are interrupted more than short ones, which flatters what is faster. Measure again when idle."
        )
    if findings.spread > VARIES:
        lines.append(
            f"These figures are rough: a dense step varies by {findings.spread:.0%} between quartiles."
        )
    return lines


def listed_variants(variants: Sequence[Variant]) -> str:
    """``50, 80 and 90 % unstructured, 2:4``."""
    parts = []
    for pattern in dict.fromkeys(variant.pattern for variant in variants):
        percents = [v.percent.removesuffix(" %") for v in variants if v.pattern == pattern]
        *before, last = percents
        joined = f"{', '.join(before)} and {last}" if before else last
        parts.append(pattern if pattern == "2:4" else f"{joined} % {pattern}")
    return ", ".join(parts)


def times(gain: float) -> str:
    """A speed-up in words."""
    return f"{gain:.2f} times"


def size(number: int) -> str:
    """Bytes in the unit that fits them."""
    for exponent, unit in ((30, "GiB"), (20, "MiB")):
        if number >= 2**exponent:
            return f"{number / 2**exponent:.2f} {unit}"
    return f"{number / 2**10:.1f} KiB"


def _less(dense: int, sparse: int) -> str:
    gain = dense / sparse
    return f"{gain:.1f} times less" if gain >= 1.05 else "no less"
