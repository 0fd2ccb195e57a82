"""The command line: `shoal`, and `python -m shoal.cli`."""

from shoal.cli.command import main

__all__ = ["main"]
