"""A model as an ONNX file of dense weights, checked before it is written."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsekern.export.dense import PACKED
from sparsekern.export.paths import checked_path
from sparsekern.files import write_atomically
from sparsekern.formats.checks import check_bool, describe
from sparsekern.nn import densify_

# Largest difference from the model's results, as a share of the largest of them: an ONNX runtime adds in
# another order.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2}
# One message of protobuf, and so one file, has at most so many bytes.
MOST_BYTES = (1 << 31) - 1


def to_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example_inputs: Tensor | Sequence[Any] | Mapping[str, Any],
    *,
    dynamic_batch: bool = True,
) -> None:
    """Write a model as it is in evaluation mode to an ONNX file that any runtime reads.

    A dense copy is exported by ``torch.onnx.export(dynamo=True)``: sparse weights are written with their
    zeros, since runtimes hardly take sparse ones, and int8 layers as the float32 weights that their integers
    stand for. What is fused or folded is the exporter's affair. Before the file is written, a runtime
    (onnxruntime, or the reference of the package onnx) has given the dense copy's results on the example
    inputs, to rounding; with `dynamic_batch` on a batch of another size too.

    Parameters
    ----------
    model : torch.nn.Module
        With or without sparse layers, or one sparse layer; it is left unchanged.
    path : path
        Ends in ``.onnx``. Written whole or not at all.
    example_inputs : Tensor, sequence or mapping
        What the model takes: one tensor, the arguments, or the keyword arguments.
    dynamic_batch : bool
        Leaves the first dimension of every tensor open; it is one batch size, for inputs and results.

    Raises
    ------
    TypeError, ValueError
        When an argument is none of the above, the model does not take the inputs or cannot be exported, the
        results differ, or a file of 2 GiB would not do.
    ImportError
        Without the packages onnx and onnxscript (the extra ``onnx``).
    OSError
        When the file cannot be written; one that was there is still there.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {describe(model)}")
    path = checked_path(path, ".onnx")
    check_bool(dynamic_batch, "dynamic_batch")
    arguments, keywords = _as_call(example_inputs)
    tensors = [leaf for leaf in (*arguments, *keywords.values()) if isinstance(leaf, Tensor)]
    if dynamic_batch:
        _check_batch(tensors)
    _check_packages()
    dense = _dense_copy(model)
    _check_weights(dense, tensors)
    arguments, keywords = (_map(part, lambda x: x.detach().cpu()) for part in (arguments, keywords))
    expected = _results(dense, arguments, keywords)
    content = _export(dense, arguments, keywords, dynamic_batch)
    _compare(content, arguments, keywords, expected)
    if dynamic_batch:
        twice = [_map(part, lambda x: torch.cat([x, x.flip(0), x])) for part in (arguments, keywords)]
        _compare(content, *twice, _results(dense, *twice))
    write_atomically(path, content)


def _as_call(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    rule = "example_inputs must be a tensor, a sequence of arguments or a mapping of keyword arguments"
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if isinstance(inputs, Mapping):
        if not all(isinstance(key, str) for key in inputs):
            raise TypeError(f"{rule}, got a mapping with other keys than names")
        arguments, keywords = (), dict(inputs)
    elif isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes)):
        arguments, keywords = tuple(inputs), {}
    else:
        raise TypeError(f"{rule}, got {describe(inputs)}")
    if not any(isinstance(value, Tensor) for value in (*arguments, *keywords.values())):
        raise ValueError(f"{rule}, got no tensor in it")
    return arguments, keywords


def _check_batch(tensors: list[Tensor]) -> None:
    sizes = {tensor.shape[0] if tensor.dim() else None for tensor in tensors}
    if len(sizes) != 1 or None in sizes or 0 in sizes:
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in tensors)
        raise ValueError(
            "example_inputs must have one batch size of at least 1, the first dimension of every tensor, got "
            f"shapes {shapes}; or pass dynamic_batch=False"
        )


def _check_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "an .onnx file needs the packages onnx and onnxscript: pip install onnx onnxscript onnxruntime"
        ) from error


def _dense_copy(model: nn.Module) -> nn.Module:
    dense = copy.deepcopy(model).eval().requires_grad_(False).cpu()
    if isinstance(dense, PACKED):
        return dense.to_dense_module()
    densify_(dense)
    return dense


def _check_weights(dense: nn.Module, inputs: list[Tensor]) -> None:
    weights = [*dense.parameters(), *dense.buffers()]
    for tensor in (*weights, *inputs):
        if tensor.is_floating_point() and tensor.dtype not in TOLERANCE:
            names = ", ".join(map(str, TOLERANCE))
            raise TypeError(f"model and example_inputs must be in one of {names}, got {tensor.dtype}")
    size = sum(tensor.numel() * tensor.element_size() for tensor in weights)
    if size > MOST_BYTES:
        raise ValueError(f"model must have at most {MOST_BYTES:,} bytes of weights when dense, got {size:,}")


def _map(part: Any, function: Any) -> Any:
    """The tensors among arguments or keyword arguments, through a function."""
    if isinstance(part, dict):
        return {key: function(value) if isinstance(value, Tensor) else value for key, value in part.items()}
    return tuple(function(value) if isinstance(value, Tensor) else value for value in part)


@torch.no_grad()
def _results(model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> list[Tensor]:
    try:
        results = tree_leaves(model(*arguments, **keywords))
    except Exception as error:  # whatever the model's own code raises
        shapes = ", ".join(describe(value) for value in (*arguments, *keywords.values()))
        raise ValueError(
            f"example_inputs must be what the model takes, got {shapes}: {type(error).__name__}: {error}"
        ) from error
    return [result for result in results if isinstance(result, Tensor)]


def _export(
    model: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any], dynamic_batch: bool
) -> bytes:
    shapes = None
    if dynamic_batch:
        batch = torch.export.Dim("batch")
        # torch.export takes a size of 1 for one that is always 1.
        if _batch_size(arguments, keywords) == 1:
            arguments, keywords = (_map(part, lambda x: torch.cat([x, x])) for part in (arguments, keywords))
        shapes = tuple(
            {0: batch} if isinstance(value, Tensor) else None for value in (*arguments, *keywords.values())
        )
        shapes = dict(zip(keywords, shapes, strict=True)) if keywords else shapes
    try:
        with _quietly():
            program = torch.onnx.export(
                model, arguments, kwargs=keywords, dynamo=True, dynamic_shapes=shapes, verbose=False
            )
    except Exception as error:  # the exporter wraps what PyTorch's compilers raise, which is anything
        cause = error.__cause__ or error  # the exporter's own text is advice on how to report a bug
        raise ValueError(
            f"model must be one that torch.onnx.export can export, got {type(model).__name__}, and "
            f"{type(cause).__name__}: {str(cause).strip().partition(chr(10))[0]}"
        ) from error
    return program.model_proto.SerializeToString()


def _batch_size(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> int:
    return next(len(value) for value in (*arguments, *keywords.values()) if isinstance(value, Tensor))


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the exporter's advice, such as that torchvision is not there."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _compare(
    content: bytes, arguments: tuple[Any, ...], keywords: dict[str, Any], expected: list[Tensor]
) -> None:
    values = [value for value in (*arguments, *keywords.values()) if isinstance(value, Tensor)]
    runtime, results = _run(content, [value.numpy() for value in values])
    found = [torch.from_numpy(result.copy()) for result in results]
    differences = [_difference(ours, theirs) for ours, theirs in zip(expected, found)]
    if len(found) != len(expected):
        differences.append(f"{len(found)} tensors in place of {len(expected)}")
    for i, difference in enumerate(differences):
        if difference is not None:
            raise ValueError(
                f"model must give the results of its ONNX export in {runtime}, got for result {i} "
                f"{difference}"
            )


def _difference(ours: Tensor, theirs: Tensor) -> str | None:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return f"{describe(theirs)} in place of {describe(ours)}"
    if not ours.is_floating_point():
        return None if torch.equal(ours, theirs) else "other integers"
    finite = ours[ours.isfinite()].abs()
    scale = finite.max().item() if finite.numel() else 0.0
    near = ours.isclose(theirs, rtol=0, atol=TOLERANCE[ours.dtype] * scale, equal_nan=True)
    apart = (ours - theirs)[~near]
    return f"a difference of {apart[0].item():.3g}, results being up to {scale:.3g}" if len(apart) else None


def _run(content: bytes, inputs: list[Any]) -> tuple[str, list[Any]]:
    """Which runtime ran the file, and its results."""
    import onnx.reference

    with contextlib.suppress(Exception):  # it is not there, or lacks a kernel, as of float64 convolutions
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        names = [value.name for value in session.get_inputs()]
        return "onnxruntime", session.run(None, dict(zip(names, inputs)))
    evaluator = onnx.reference.ReferenceEvaluator(onnx.load_from_string(content))
    return "onnx.reference", evaluator.run(None, dict(zip(evaluator.input_names, inputs)))
