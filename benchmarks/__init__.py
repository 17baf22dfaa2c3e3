"""Measurements of sparsekern against what a user would pick instead: ``python -m benchmarks --help``.

A development tool: it is run from the root of the source tree and is not installed.
"""
