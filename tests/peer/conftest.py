"""scvi-tools for the comparisons: imported quietly, and its own warnings ignored by name; any other is an error."""

import importlib.util
import logging
import warnings
from pathlib import Path

import pytest

HERE = Path(__file__).parent

if importlib.util.find_spec("scvi") is None:
    collect_ignore_glob = ["test_*.py"]  # `make test-peer` has an environment with scvi-tools
else:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of importing scvi-tools, lightning and what they import
        import scvi  # noqa: F401
    for name in ("lightning.pytorch", "lightning.fabric", "scvi"):
        logging.getLogger(name).setLevel(logging.ERROR)

FILTERS = (
    "error",
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning",  # lightning 2.6, of torch
    "ignore:. cells moved from training set to validation set:UserWarning",  # scvi-tools' default split
)
"""The later, the stronger."""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.peer)
            item.add_marker(pytest.mark.filterwarnings(*FILTERS), append=False)  # first, so that a test's own win
