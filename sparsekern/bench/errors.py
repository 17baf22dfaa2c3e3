"""What a user of ``sparsekern bench`` can mend; the command prints it as one line."""


class BenchError(Exception):
    """What was asked for cannot be measured."""
