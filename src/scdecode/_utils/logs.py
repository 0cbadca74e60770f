"""The logger ``scdecode``: lines on standard error, unless the application has set up logging of its own."""

from __future__ import annotations

import logging
import sys


class _StandardError(logging.StreamHandler):  # type: ignore[type-arg]  # its stream is looked up for each record
    """Write records to the present standard error if no other handler would show them."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record, or leave it to the handlers of the application."""
        if not _shown_elsewhere():
            self.stream = sys.stderr
            super().emit(record)


def _shown_elsewhere() -> bool:
    """Return whether the application has handlers for the records."""
    return len(logger.handlers) > 1 or (logger.propagate and bool(logging.getLogger().handlers))


logger = logging.getLogger("scdecode")
if logger.level == logging.NOTSET:
    logger.setLevel(logging.INFO)
if not logger.handlers:
    logger.addHandler(_StandardError())
