"""Dates, periods, durations and intervals that a pickle names, as values: built here from their checked parts.

The reader of pickles keeps such an object as :class:`Captured`, its name and its arguments. What is made of these is
made by the functions of this file alone; an object that none of them knows stays captured.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd

from scdecode.formats.allowed import Captured

_UNITS: dict[int, Any] = {7: "s", 8: "ms", 9: "us", 10: "ns"}  # pandas' codes of the resolution of a date or a duration
_ANCHORS = {"QuarterEnd": "startingMonth", "YearEnd": "month", "Week": "weekday"}  # a third argument of an offset


def value_of(item: Any) -> Any:
    """Return the value that a captured object stands for; the object itself if it is none that is known.

    Parameters
    ----------
    item
        Anything out of a pickle; what is not captured comes back as it is.
    """
    if isinstance(item, tuple):
        return tuple(value_of(part) for part in item)
    make = _MAKERS.get(item.name) if isinstance(item, Captured) and isinstance(item.args, tuple) else None
    if make is None:
        return item
    try:
        return make(*item.args)
    except (TypeError, ValueError, OverflowError, AttributeError, LookupError):  # parts that pandas did not write
        return item


def _whole(value: Any) -> int:
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError("a whole number was expected")
    return int(value)


def _interval(left: Any, right: Any, closed: Any) -> pd.Interval:
    return pd.Interval(value_of(left), value_of(right), closed)


def _period(_: Any, frequency: Any, ordinal: Any) -> pd.Period:
    module, _, kind = frequency.name.rpartition(".")
    if module != "pandas._libs.tslibs.offsets":
        raise TypeError("an offset was expected")
    n, _normalize, *anchor = (*frequency.args, False)[: max(len(frequency.args), 2)]
    anchors = {_ANCHORS[kind]: _whole(anchor[0])} if anchor else {}
    offset: Any = getattr(pd.offsets, kind)(_whole(n), **anchors)
    return pd.Period(ordinal=_whole(ordinal), freq=offset)


def _timestamp(value: Any, _frequency: Any, zone: Any, resolution: Any = 10) -> pd.Timestamp:
    moment = pd.Timestamp(_whole(value), unit=_UNITS[_whole(resolution)])
    return moment if zone is None else moment.tz_localize("UTC").tz_convert(_zone(zone))


def _zone(zone: Any) -> Any:
    if zone.name == "pytz._UTC":
        return "UTC"
    if zone.name == "pytz._p" and isinstance(zone.args[0], str):
        return zone.args[0]
    if zone.name == "datetime.timezone":
        return datetime.timezone(value_of(zone.args[0]).to_pytimedelta())
    raise TypeError("a time zone was expected")


def _timedelta(value: Any, resolution: Any = 10) -> pd.Timedelta:
    return pd.Timedelta(_whole(value), unit=_UNITS[_whole(resolution)])


def _plain_timedelta(days: Any, seconds: Any, microseconds: Any) -> pd.Timedelta:
    parts = {"days": _whole(days), "seconds": _whole(seconds), "microseconds": _whole(microseconds)}
    return pd.Timedelta(datetime.timedelta(**parts))


def _date(packed: bytes) -> datetime.date:
    high, low, month, day = packed
    return datetime.date(256 * high + low, month, day)


def _datetime(packed: bytes) -> datetime.datetime:
    high, low, month, day, hour, minute, second, *rest = packed
    return datetime.datetime(256 * high + low, month, day, hour, minute, second, int.from_bytes(bytes(rest), "big"))


_MAKERS: dict[str, Callable[..., Any]] = {
    "pandas._libs.interval.Interval": _interval,
    "pandas._libs.tslibs.period.Period": _period,
    "pandas._libs.tslibs.timestamps._unpickle_timestamp": _timestamp,
    "pandas._libs.tslibs.timedeltas._timedelta_unpickle": _timedelta,
    "datetime.timedelta": _plain_timedelta,
    "datetime.date": _date,
    "datetime.datetime": _datetime,
}
