"""The figures of a model as one picture."""

from __future__ import annotations

import io
from typing import Any

from sparsekern.bench.errors import BenchError
from sparsekern.bench.findings import Findings, LayerFinding, Variant, WholeFinding
from sparsekern.bench.model_tables import label

MOST_LAYERS = 24
# Told apart by markers, so that they also are without colour.
STYLES = {
    "unstructured": {"color": "black", "marker": "o"},
    "block": {"color": "tab:blue", "marker": "s"},
    "2:4": {"color": "tab:orange", "marker": "D"},
}


def require() -> None:
    """Raise `BenchError` where there is no matplotlib."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise BenchError("--plot needs the package matplotlib: pip install matplotlib") from None


def draw(findings: Findings, suffix: str) -> bytes:
    """The whole model's speed-ups and memory, and the speed-up of each layer.

    Parameters
    ----------
    findings : Findings
    suffix : str
        The format: ``"png"``, ``"svg"`` or ``"pdf"``.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    layers = sorted(findings.layers, key=lambda layer: layer.total, reverse=True)[:MOST_LAYERS]
    figure = Figure(figsize=(14.0, max(4.8, 1.9 + 0.27 * len(layers))), layout="constrained")
    FigureCanvasAgg(figure)
    speed, memory, each = figure.subplots(1, 3, width_ratios=(1.25, 1.0, 1.25))
    _speed(speed, findings)
    _memory(memory, findings)
    _layers(each, findings, layers)
    about = findings.about
    figure.suptitle(
        f"{about.name}: inputs {about.inputs}, {about.optimizer}, {about.precision}, {about.device}"
    )
    content = io.BytesIO()
    figure.savefig(content, format=suffix, dpi=120)
    return content.getvalue()


def _speed(axis: Any, findings: Findings) -> None:
    for pattern in findings.patterns:
        variants = [variant for variant in findings.variants if variant.pattern == pattern]
        at = [100 * variant.sparsity for variant in variants]
        step = [findings.gain(variant) for variant in variants]
        evaluation = [findings.gain(variant, "evaluation") for variant in variants]
        style = STYLES[pattern]
        axis.plot(at, step, label=f"{pattern}, training step", **style)
        axis.plot(
            at, evaluation, label=f"{pattern}, evaluation", linestyle="--", markerfacecolor="white", **style
        )
    simulated = findings.dense.cost.step / findings.masked.cost.step
    axis.axhline(simulated, color="0.5", linestyle=":", label="masked-dense, training step")
    axis.axhline(1, color="black", linewidth=0.8)
    axis.set(title="whole model", xlabel="sparsity (%)", ylabel="times as fast as dense")
    axis.set_ylim(bottom=0)
    axis.grid(color="0.9", linewidth=0.6)
    _legend_below(axis)


def _memory(axis: Any, findings: Findings) -> None:
    rows: dict[str, WholeFinding] = {"dense": findings.dense, "masked-dense": findings.masked}
    rows |= {str(variant): found for variant, found in findings.sparse.items()}
    names = list(rows)
    mib = 2**20
    held = [found.bytes.held / mib for found in rows.values()]
    rest = [(found.bytes.peak - found.bytes.held) / mib for found in rows.values()]
    axis.barh(names, held, color="0.25", label="held from step to step")
    axis.barh(names, rest, left=held, color="0.8", label="a step's peak")
    axis.invert_yaxis()
    axis.set(title="memory", xlabel="MiB")
    axis.grid(color="0.9", linewidth=0.6, axis="x")
    axis.set_axisbelow(True)
    _legend_below(axis)


def _legend_below(axis: Any) -> None:
    axis.legend(fontsize=8, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.14))


def _layers(axis: Any, findings: Findings, layers: list[LayerFinding]) -> None:
    places = range(len(layers))
    for variant in findings.variants:
        gains = [layer.gain(variant) for layer in layers]
        known = [(gain, place) for gain, place in zip(gains, places, strict=True) if gain is not None]
        if known:
            axis.scatter(
                *zip(*known, strict=True), label=str(variant), s=26, zorder=3, **_shade(findings, variant)
            )
    step = findings.dense.cost.step
    everything = [name for layer in findings.layers for name in layer.names]
    labels = [f"{label(layer, everything)}  {layer.total / step:.0%}" for layer in layers]
    axis.set_yticks(list(places), labels, fontsize=8)
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.grid(color="0.9", linewidth=0.6)
    axis.set(title="layers, with their share of a dense step", xlabel="times as fast as dense (training)")
    axis.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _shade(findings: Findings, variant: Variant) -> dict[str, Any]:
    """A pattern's marker, the darker the sparser."""
    same = [each for each in findings.variants if each.pattern == variant.pattern]
    style = STYLES[variant.pattern]
    alpha = 0.25 + 0.75 * (same.index(variant) + 1) / len(same)
    return {"color": style["color"], "marker": style["marker"], "alpha": alpha}
