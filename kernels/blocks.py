"""Blocks of batch-major matrices, and which block a program owns: what the kernels of products share."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def place_of_program(blocks, groups):
    """(split, block, group) of this program.

    Blocks of samples take turns at each group of tiles, 8 blocks at a time, so that neighbouring programs
    share what they read through the cache.
    """
    program = tl.program_id(0)
    split = program // (blocks * groups)
    program = program % (blocks * groups)
    first = program // (8 * groups) * 8
    width = tl.minimum(blocks - first, 8)
    within = program % (8 * groups)
    return split, first + within % width, within // width


@triton.jit
def split_range(steps, split, SPLITS: tl.constexpr):
    """The part of `steps` steps that is this split's: [begin, end)."""
    part = tl.cdiv(steps, SPLITS)
    begin = tl.minimum(split * part, steps)
    return begin, tl.minimum(begin + part, steps)


@triton.jit
def load_samples(
    matrix, sample, samples, sample_stride, feature, features, feature_stride, TRANSPOSED: tl.constexpr
):
    """A block (sample, feature) of a matrix in memory, 0 outside of it; (feature, sample) if `TRANSPOSED`.

    `sample` is int64 and 1-D, `feature` 1-D.
    """
    if TRANSPOSED:
        sample = sample[None, :]
        feature = feature[:, None]
    else:
        sample = sample[:, None]
        feature = feature[None, :]
    inside = (sample < samples) & (feature < features)
    return tl.load(matrix + sample * sample_stride + feature * feature_stride, mask=inside, other=0)


@triton.jit
def store_samples(matrix, block, sample, samples, feature, valid, features, TRANSPOSED: tl.constexpr):
    """Writes a block (sample, feature), or (feature, sample) if `TRANSPOSED`, of a contiguous matrix.

    `valid` is that of the features.
    """
    if TRANSPOSED:
        block = tl.trans(block)
    inside = (sample < samples)[:, None] & valid[None, :]
    place = matrix + sample[:, None] * features + feature[None, :]
    tl.store(place, block.to(matrix.dtype.element_ty), mask=inside)


@triton.jit
def multiply(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in float32. Widened for the interpreter, which takes the bits of bfloat16 for integers."""
    if PRECISION == "widened":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    elif PRECISION == "half":
        return tl.dot(a, b, acc)
    else:
        return tl.dot(a, b, acc, input_precision=PRECISION)
