"""Calls of the extension that are right, and each of their arguments as it would be wrong.

A right call is a list of arguments. Each knows the values that the extension has to refuse in its place while
all others stay; `refuse_wrong_arguments` tries them, and nothing may be written meanwhile.
"""

from dataclasses import dataclass, field

import numpy as np

HUGE = (2**31, 2**40, 2**62, 2**63 - 1)
NO_INTEGER = (1.5, None, "1", 2**64)
REFUSALS = (ValueError, TypeError)


@dataclass(frozen=True)
class Argument:
    """A value, and those that are wrong in its place."""

    value: object
    wrong: tuple = ()


@dataclass
class Call:
    """A function of the extension and what it is handed.

    Attributes
    ----------
    function : callable
    arguments : list of Argument
    outputs : list of Buffer
        What the function writes.
    inputs : list of Buffer
        What has to live as long as the call.
    """

    function: object
    arguments: list
    outputs: list = field(default_factory=list)
    inputs: list = field(default_factory=list)

    def __call__(self):
        return self.function(*(argument.value for argument in self.arguments))


def data(buffer, optional=False):
    """Address and count of a buffer of exactly so many elements; an `optional` one may be null."""
    wrong_address = [*NO_INTEGER, -1]
    if buffer.count > 0:
        wrong_address += [] if optional else [0]
        wrong_address += [buffer.address + 1] if buffer.itemsize > 1 else []
    counts = {0, 1, buffer.count - 1, buffer.count + 1, -1, -(2**31), -(2**63), *HUGE} - {buffer.count}
    return [Argument(buffer.address, tuple(wrong_address)), Argument(buffer.count, (*counts, *NO_INTEGER))]


def words(buffer):
    """A packed pattern."""
    address, count = data(buffer)
    return [Argument(address.value, (*address.wrong, address.value + 4)), count]


def matrix(buffer, rows, cols, row_stride, col_stride):
    """A strided matrix without its number of columns, which follows from the weight."""
    address, count = data(buffer)
    last = (rows - 1) * row_stride + (cols - 1) * col_stride
    few = () if rows == 0 or cols == 0 else (0, last, -1, -(2**63))
    row_strides = (buffer.count, -1, -(2**63), *HUGE) if rows > 1 and cols else ()
    col_strides = (buffer.count, -1, -(2**63), *HUGE) if cols > 1 and rows else ()
    return [
        Argument(address.value, address.wrong if few else NO_INTEGER),
        Argument(count.value, (*few, *NO_INTEGER)),
        size(rows),
        Argument(row_stride, (*row_strides, *NO_INTEGER)),
        Argument(col_stride, (*col_strides, *NO_INTEGER)),
    ]


def result(buffer):
    """A contiguous matrix that the extension writes, which may be part of a larger buffer."""
    address, count = data(buffer)
    few = () if buffer.count == 0 else (0, buffer.count - 1, -1, -(2**63))
    return [address, Argument(count.value, (*few, *NO_INTEGER))]


def without_rows(arguments):
    """A matrix that has as many rows as another."""
    return [*arguments[:2], *arguments[3:]]


def size(value):
    return Argument(value, (-1, -(2**63), *HUGE, value + 1, *NO_INTEGER))


def threads(value):
    return Argument(value, (0, -1, -(2**31), 10**6, 2**31 - 1, 2**31, *NO_INTEGER))


def choice(value, choices):
    """One of the codes 0 .. choices - 1."""
    return Argument(value, (-1, choices, 255, 2**31 - 1, -(2**31), 2**31, *NO_INTEGER))


def element_size(value):
    return Argument(value, (0, -1, 3, 16, 2**63 - 1, -(2**63), *NO_INTEGER))


def outcome(function, *arguments):
    """What a call returns, and how it is refused."""
    try:
        return function(*arguments), None
    except REFUSALS as refusal:
        return None, refusal


def refuse_wrong_arguments(call, generator, tries=12):
    """Put wrong values in the place of some arguments, one at a time: all are refused, nothing is written."""
    before = [buffer.array.copy() for buffer in call.outputs]
    places = [place for place, argument in enumerate(call.arguments) if argument.wrong]
    for place in generator.choice(places, tries):
        argument = call.arguments[place]
        values = [other.value for other in call.arguments]
        values[place] = argument.wrong[generator.integers(len(argument.wrong))]
        _, refusal = outcome(call.function, *values)
        assert refusal, f"argument {place} of {call.function.__name__}: {values[place]!r} was taken"
        assert str(refusal)
    for buffer, contents in zip(call.outputs, before):
        np.testing.assert_array_equal(buffer.array.view(np.uint8), contents.view(np.uint8))
