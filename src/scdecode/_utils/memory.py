"""Memory that a result would take, checked before anything is allocated."""

from __future__ import annotations

import os

from scdecode.errors import ConfigError, shown


def physical_memory() -> int:
    """Return the bytes of memory of this machine; 2**40 if the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf; others may lack a name
        return 2**40


def check_memory(place: str, value: int, n_bytes: int, remedy: str = "a smaller number") -> None:
    """Raise :class:`ConfigError` if what an argument asks for takes more memory than the machine has.

    Parameters
    ----------
    place, value
        The argument and its value, for the message.
    n_bytes
        Bytes that it takes.
    remedy
        What was expected.
    """
    there = physical_memory()
    if n_bytes > there:
        raise ConfigError(
            f"{place}: got {shown(value)}, which takes {_in_words(n_bytes)} of memory, and this machine has "
            f"{_in_words(there)}; expected {remedy}"
        )


def check_draws(n_samples: int, n_values: int) -> None:
    """Raise :class:`ConfigError` if draws of ``n_values`` numbers each take more memory than the machine has.

    Counted are the draws in single precision, and two arrays of their shape that are there while they are made.
    """
    check_memory("n_samples", n_samples, 12 * n_samples * n_values, "fewer draws, cells or genes at a time")


def _in_words(n_bytes: int) -> str:
    gigabytes = n_bytes / 2**30 if n_bytes < 2**100 else float("inf")
    return f"{gigabytes:,.1f} GB" if gigabytes < 1e6 else "more than a million GB"
