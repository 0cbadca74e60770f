"""Settings of the whole package: how much it says."""

from __future__ import annotations

import logging
import operator
from typing import Any

from scdecode._utils.logs import logger
from scdecode.errors import ConfigError, suggestion

VERBOSITIES = ("silent", "warning", "info", "debug")
"""In the order of their numbers, 0 to 3."""

_LEVELS = dict(zip(VERBOSITIES, (logging.CRITICAL, logging.WARNING, logging.INFO, logging.DEBUG), strict=True))
_WORD_OF = {level: word for word, level in _LEVELS.items()}
_ELSEWHERE = {
    "seed": "pass seed= to the model and to its methods",
    "num_threads": "call torch.set_num_threads(n)",
    "batch_size": "pass batch_size= to train and to the methods that encode cells",
    "progress_bar_style": "there is one; settings.verbosity = 'warning' leaves it out",
    "dl_num_workers": "cells are read by threads without being asked",
    "dl_persistent_workers": "cells are read by threads without being asked",
    "logging_dir": "nothing is logged to files; add a handler to logging.getLogger('scdecode')",
}


class Settings:
    """How much scdecode says; the one instance is ``scdecode.settings``.

    Attributes
    ----------
    verbosity : str
        ``"silent"`` (0), ``"warning"`` (1), ``"info"`` (2, the default) or ``"debug"`` (3). At ``"info"`` slow calls
        show their progress: a bar in a terminal or a notebook, a line every so often elsewhere. It is the level of
        ``logging.getLogger("scdecode")``, whose records go to standard error unless the application has set up
        logging. Warnings go through :mod:`warnings`, whatever the verbosity.

    Examples
    --------
    >>> import scdecode as sd
    >>> sd.settings.verbosity = "warning"  # no progress
    >>> sd.settings.verbosity = 2
    >>> sd.settings.verbosity
    'info'
    """

    __slots__ = ()

    @property
    def verbosity(self) -> str:
        """How much is said: ``"silent"``, ``"warning"``, ``"info"`` or ``"debug"``."""
        level = logger.getEffectiveLevel()
        return next((word for word in reversed(VERBOSITIES) if level <= _LEVELS[word]), "silent")

    @verbosity.setter
    def verbosity(self, value: str | int) -> None:
        logger.setLevel(_LEVELS[_read_verbosity(value)])

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "verbosity":
            raise AttributeError(_missing(name), name=name, obj=self)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        """Raise an error that names the setting that was meant."""
        raise AttributeError(_missing(name), name=name, obj=self)

    def __dir__(self) -> list[str]:
        return ["verbosity"]

    def __repr__(self) -> str:
        return f"Settings(verbosity={self.verbosity!r})"


def _read_verbosity(value: Any) -> str:
    """Return the word for a word, a number 0 to 3, or a level of :mod:`logging` such as ``logging.INFO``."""
    if isinstance(value, str) and value.lower() in VERBOSITIES:
        return value.lower()
    level = operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else -1
    if 0 <= level < len(VERBOSITIES):
        return VERBOSITIES[level]
    if level in {*_WORD_OF, logging.ERROR}:
        return _WORD_OF.get(level, "silent")
    raise ConfigError(f"verbosity: got {value!r}, expected one of {list(VERBOSITIES)} or a number from 0 to 3")


def _missing(name: str) -> str:
    hint = f"; {_ELSEWHERE[name]}" if name in _ELSEWHERE else suggestion(name, ["verbosity"])
    return f"scdecode.settings has no setting {name!r}, only 'verbosity'{hint}"


settings = Settings()
"""The settings of this process."""
