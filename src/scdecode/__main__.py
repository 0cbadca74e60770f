"""``python -m scdecode``: the command line."""

from scdecode.cli import main

main()
