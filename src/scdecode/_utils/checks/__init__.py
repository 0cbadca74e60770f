"""Checks of arguments by their annotations: the decorator, the checks of types, and the named kinds of values."""

from scdecode._utils.checks.checked import checked
from scdecode._utils.checks.hints import REFUSED, Between, Kind

__all__ = ["REFUSED", "Between", "Kind", "checked"]
