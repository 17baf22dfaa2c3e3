"""``sparsekern convert``: weights from one format to another."""

from __future__ import annotations

import argparse
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsekern.convert.convert import Result, convert
from sparsekern.convert.errors import ConvertError
from sparsekern.convert.layers import find_layers
from sparsekern.convert.model import (
    fixed_masks,
    layer_shapes,
    load_dense,
    named_model,
    recipe_model,
    run_recipe,
)
from sparsekern.convert.source import Source, read_source
from sparsekern.convert.table import table
from sparsekern.convert.targets import TARGETS, Options
from sparsekern.convert.write import TORCH_ENDINGS, write_state
from sparsekern.experiments.parser import Parser
from sparsekern.export import to_onnx

_PROG = "sparsekern convert"
FORMATS = (*TARGETS, "onnx")
DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "int64", "int32")}
_EPILOG = """\
formats:
  packed   what is sparse, as small as it gets: a bit for each position and the values; 2:4 and int8 stay as
           they are (the default)
  dense    every weight with its zeros, under the names of the dense model
  masked   the dense weight and its pattern, as storage="masked" loads it
  2:4      two of every four weights, for those that are 2:4 already; others with --prune
  csr, bsr torch.sparse tensors in place of the weights of linear layers (.pt)
  onnx     the dense model (.onnx): needs --model, unless IN is a run's checkpoint, and --input-shape

A weight of a file that says nothing of masks is sparse where it is 0.
"""


def convert_command(arguments: list[str]) -> int:
    """Run ``sparsekern convert`` with ``arguments`` and return the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        check_options(options)
        _check_output(options)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse .SR tensor support is in beta state")
            _convert(options)
    except ConvertError as error:
        print(f"{_PROG}: error: {error}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> Parser:
    """The parser."""
    parser = Parser(
        prog=_PROG,
        description="Convert the weights of a file.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "source",
        type=Path,
        metavar="IN",
        help="a .safetensors file, a file of torch.save with a state dict, or a folder of a run or of shards",
    )
    parser.add_argument(
        "output", type=Path, metavar="OUT", help=f".safetensors, .onnx or {', '.join(TORCH_ENDINGS)}"
    )
    parser.add_argument("--to", choices=FORMATS, metavar="FORMAT", help=f"one of {', '.join(FORMATS)}")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is there")
    parser.add_argument(
        "--exclude", action="append", default=[], metavar="LAYER", help="name or glob; that layer is dense"
    )
    parser.add_argument(
        "--min-sparsity",
        type=_fraction,
        default=0.05,
        metavar="X",
        help="dense weights with a smaller fraction of zeros stay dense (default: 0.05)",
    )
    parser.add_argument("--prune", action="store_true", help="2:4: set the least weights to 0")
    parser.add_argument("--block-size", type=_count, metavar="N", help="bsr (default: 64)")
    parser.add_argument(
        "--model", metavar="MODEL", help="module:callable that makes the dense model, or a recipe's name"
    )
    parser.add_argument(
        "--input-shape", type=_shape, metavar="N,N,...", help="onnx: of the model's input, batch first"
    )
    parser.add_argument("--input-dtype", choices=tuple(DTYPES), default="float32", help="onnx")
    parser.add_argument("--static-batch", action="store_true", help="onnx: for this batch size only")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Settle the format; refuse options that it would not look at."""
    ending = options.output.suffix
    if options.to is None:
        options.to = "onnx" if ending == ".onnx" else "packed"
    endings = {"onnx": (".onnx",), "csr": TORCH_ENDINGS, "bsr": TORCH_ENDINGS}
    expected = endings.get(options.to, (".safetensors", *TORCH_ENDINGS))
    if ending not in expected:
        raise ConvertError(
            f"OUT must end in {' or '.join(expected)} for --to {options.to}, got {str(options.output)!r}"
        )
    only = {
        "--prune": ("2:4", options.prune),
        "--block-size": ("bsr", options.block_size),
        "--input-shape": ("onnx", options.input_shape),
        "--static-batch": ("onnx", options.static_batch),
    }
    for name, (to, given) in only.items():
        if given and options.to != to:
            raise ConvertError(f"{name} must be left out unless --to {to}, got it with --to {options.to}")
    if options.to == "onnx" and options.input_shape is None:
        raise ConvertError("--input-shape must be given for --to onnx, such as 1,3,32,32")
    if options.to in ("dense", "onnx") and options.exclude:
        raise ConvertError(f"--exclude must be left out for --to {options.to}, where all layers are dense")


def _check_output(options: argparse.Namespace) -> None:
    source, output = options.source, options.output
    if not source.exists():
        raise ConvertError(f"{source}: there is no such file")
    if output.exists():
        if output.is_dir() or not options.overwrite:
            what = "is a folder" if output.is_dir() else "is there already: --overwrite replaces it"
            raise ConvertError(f"{output} {what}")
    if not output.absolute().parent.is_dir():
        raise ConvertError(f"{output}: cannot be written: there is no folder {output.absolute().parent}")


def _convert(options: argparse.Namespace) -> None:
    source = read_source(options.source)
    if options.output.exists() and any(map(options.output.samefile, source.files)):
        raise ConvertError(f"OUT must be another file than IN, got {options.output}")
    model, state = _model(options, source)
    to = "dense" if options.to == "onnx" else options.to
    how = Options(to, options.min_sparsity, options.prune, options.block_size or 64)
    try:
        layers = find_layers(state, source.layers, {} if model is None else layer_shapes(model))
        result = convert(state, layers, how, options.exclude)
    except ConvertError as error:
        raise ConvertError(f"{source.path}: {error}") from None
    if options.to == "onnx":
        _write_onnx(options, model, result, source)
    else:
        if model is not None and to == "dense":
            load_dense(model, result.state, source.path)
        write_state(options.output, result.state, result.layers)
    _report(options, source, result, model is not None)


def _model(options: argparse.Namespace, source: Source) -> tuple[nn.Module | None, dict[str, Any]]:
    """The dense model, where one is named or needed, and the state dict with the masks of the recipe."""
    state, model = source.state, None
    if source.recipe is not None:
        recipe = run_recipe(source.recipe, source.path)
        if recipe.is_two_four and recipe.method != "two_four_fixed":
            state = fixed_masks(recipe, state, source.path)
        packed = any(key.endswith("metadata") for key in state)
        if options.model is None and (packed or options.to == "onnx"):
            model = recipe_model(recipe, source.path)
    if options.model is not None:
        model = named_model(options.model)
    if model is None and options.to == "onnx":
        raise ConvertError("--model must be given for --to onnx: module:callable, or a recipe's name")
    return model, state


def _write_onnx(options: argparse.Namespace, model: nn.Module, result: Result, source: Source) -> None:
    load_dense(model, result.state, source.path)
    dtype = DTYPES[options.input_dtype]
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        model.to(dtype)
        example = torch.randn(options.input_shape, generator=generator).to(dtype)
    else:
        example = torch.zeros(options.input_shape, dtype=dtype)
    try:
        to_onnx(model, options.output, example, dynamic_batch=not options.static_batch)
    except OSError as error:
        raise ConvertError(f"{options.output}: cannot be written: {error.strerror or error}") from None
    except (ImportError, TypeError, ValueError) as error:
        raise ConvertError(" ".join(str(error).split())) from error


def _report(options: argparse.Namespace, source: Source, result: Result, knows_shapes: bool) -> None:
    print(f"{source.path}: {source.what}, {source.nbytes:,} bytes")
    print(table(result.rows, result.others, result.other_bytes))
    print(f"{options.output}: {options.to}, {options.output.stat().st_size:,} bytes")
    for note in _notes(source, result, knows_shapes):
        print(f"note: {note}")
    for row in result.rows:
        if row.pruned:
            print(
                f"{_PROG}: WARNING: --prune set {row.pruned:,} weights of {row.name!r} to 0 that were not: "
                "the model computes something else now",
                file=sys.stderr,
            )


def _notes(source: Source, result: Result, knows_shapes: bool) -> list[str]:
    notes = [
        f"{row.name}: {row.zeros:,} of its stored weights are 0; {row.after} does not keep where"
        for row in result.rows
        if row.zeros
    ]
    unpacked = [row for row in result.rows if row.after != row.before]
    if rounded := [row.name for row in unpacked if row.before == "int8 2:4"]:
        notes.append(f"{', '.join(rounded)}: float weights now, and activations are not rounded to int8")
    shapeless = [row for row in result.rows if row.before in ("2:4", "int8 2:4")]
    if shapeless and not source.layers and not knows_shapes:
        notes.append("a state dict has no shape of packed 2:4 weights: --model tells those of convolutions")
    known = {row.name for row in result.rows}
    for key in result.state:
        name, _, own = key.rpartition(".")
        if own in ("values", "pattern", "metadata") and name not in known:
            notes.append(f"{key} is as it was, for want of what else a sparse layer stores")
    if source.left_out:
        notes.append(f"left out, being no tensors: {', '.join(source.left_out)}")
    return notes


def _fraction(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, got {text!r}")
    return value


def _count(text: str) -> int:
    if not re.fullmatch("[0-9]{1,6}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, got {text!r}")
    return int(text)


def _shape(text: str) -> tuple[int, ...]:
    if not re.fullmatch("[0-9]{1,7}(,[0-9]{1,7})*", text) or "0" in text.split(","):
        raise argparse.ArgumentTypeError(f"must be sizes such as 1,3,32,32, got {text!r}")
    return tuple(map(int, text.split(",")))
