"""The command line: the public calls that a notebook makes."""

from scdecode.cli import export, models, paths, points  # noqa: F401  (their commands join the app)
from scdecode.cli.app import app, main

__all__ = ["app", "main"]
