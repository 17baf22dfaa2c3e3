"""The argument parser of every command."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Reports a mistake as one line; ``--help`` is there for the rest."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")
