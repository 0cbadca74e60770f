"""Values that no argument expects, by name, and every public function with arguments that it does expect."""

import collections
import datetime
import decimal
import fractions
import importlib
import inspect
import math
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from torch.distributions import Bernoulli, Normal

import scdecode as sd

MODULES = ("", ".dynamics", ".geometry", ".lineages", ".datasets", ".plot")
"""Where public functions and classes are."""


@dataclass(frozen=True)
class Fresh:
    """An argument that is made anew for each call, which may change it or read it to its end."""

    make: Callable[[], Any]


class Raising:
    """An object whose every question is answered by an error."""

    def _fail(self, *_):
        raise RuntimeError("hostile")

    __repr__ = __str__ = __len__ = __iter__ = __array__ = __bool__ = __float__ = __index__ = __getitem__ = _fail
    __eq__ = __lt__ = __contains__ = __fspath__ = _fail
    __hash__ = None


class Mocked:
    """An object that has every attribute."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return self


def recursive_list():
    values = []
    values.append(values)
    return values


def recursive_dict():
    values = {}
    values["a"] = values
    return values


def deep_list():
    values = [1.0]
    for _ in range(2_000):
        values = [values]
    return values


def values(model, adata, path):
    """Hostile values by name; the model, the cells and the path are hostile where something else is expected."""
    return {
        "None": None,
        "True": True,
        "0": 0,
        "-1": -1,
        "3": 3,
        "10**7": 10**7,
        "10**9": 10**9,
        "2**62": 2**62,
        "10**30": 10**30,
        "10**400": 10**400,
        "10**5000": 10**5000,
        "-10**400": -(10**400),
        "1.5": 1.5,
        "-0.0": -0.0,
        "1e308": 1e308,
        "5e-324": 5e-324,
        "nan": math.nan,
        "inf": math.inf,
        "-inf": -math.inf,
        "complex": 1 + 2j,
        "Decimal": decimal.Decimal("1.5"),
        "Decimal nan": decimal.Decimal("nan"),
        "Fraction": fractions.Fraction(1, 3),
        "np.int8": np.int8(3),
        "np.uint64": np.uint64(2**64 - 1),
        "np.float16": np.float16(0.5),
        "np.float64 nan": np.float64("nan"),
        "np.bool": np.bool_(True),
        "np.str": np.str_("batch_1"),
        "np.void": np.void(b"abc"),
        "datetime64": np.datetime64("2020-01-01"),
        "NaT": pd.NaT,
        "NA": pd.NA,
        "Timestamp": pd.Timestamp("2020-01-01"),
        "Interval": pd.Interval(0, 1),
        "date": datetime.date(2020, 1, 1),
        "empty string": "",
        "word": "abracadabra",
        "digits": "12",
        "long string": "a" * 5_000,
        "long path": "/".join(["a" * 200] * 40),
        "NUL": "a\0b",
        "surrogate": "a\ud800b",
        "escape": "\x1b[31mred\x1b[0m\n\r\nline",
        "bidi": "\u202eabc\u2066",
        "slash": "a/b/c",
        "dots": "../..",
        "bytes": b"batch_1",
        "bytearray": bytearray(b"abc"),
        "empty list": [],
        "empty dict": {},
        "empty tuple": (),
        "empty set": set(),
        "list of None": [None, None],
        "list of NaN": [math.nan],
        "list of words": ["a", "b"],
        "list of one word": ["batch_1"],
        "twice": ["batch_1", "batch_1"],
        "mixed": [1, "a", None, 2.5],
        "ragged": [[1.0], [1.0, 2.0]],
        "nested": [[[["a"]]]],
        "recursive list": recursive_list(),
        "recursive dict": recursive_dict(),
        "deep list": deep_list(),
        "dict of None": {None: None},
        "dict of numbers": {1: 2, 3: 4},
        "dict of words": {"a": "b"},
        "dict of lists": {"batch": ["a"]},
        "weights": {"batch_1": math.nan},
        "range": range(10**18),
        "generator": Fresh(lambda: (i for i in range(3))),
        "endless": Fresh(lambda: iter(int, 1)),
        "map": Fresh(lambda: map(str, [1])),
        "slice": slice(None),
        "ellipsis": ...,
        "scalar array": np.array(3),
        "empty array": np.zeros((0, 3)),
        "array": np.arange(3.0),
        "matrix": np.zeros((4, 4)),
        "cube": np.zeros((2, 3, 4)),
        "array of NaN": np.full((5, 3), np.nan),
        "array of inf": np.full(3, np.inf),
        "array of int": np.arange(12),
        "array of bool": np.array([True, False]),
        "array of words": np.array(["a", "b"]),
        "array of objects": np.array([None, "a", 1, [2]], dtype=object),
        "array of dates": np.array(["2020-01-01", "NaT"], dtype="datetime64[D]"),
        "array of complex": np.ones(3, dtype=complex),
        "structured": np.zeros(3, dtype=[("a", int), ("b", float)]),
        "masked": np.ma.masked_array([1.0, 2.0, 3.0], mask=[0, 1, 0]),
        "masked words": np.ma.masked_array(["a", "b"], mask=[0, 1]),
        "longdouble": np.longdouble("1e400"),
        "sparse": sp.csr_matrix(np.eye(3)),
        "sparse array": sp.coo_array(np.eye(3)),
        "Series": pd.Series([1.0, 2.0, np.nan], index=["a", "b", "c"]),
        "Series of NA": pd.Series([1, pd.NA], dtype="Int64"),
        "Categorical": pd.Categorical(["a", None, "b"]),
        "Index": pd.Index(["a", "a"]),
        "MultiIndex": pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]),
        "DataFrame": pd.DataFrame({"a": [1.0, 2.0], "b": ["x", "y"]}),
        "empty DataFrame": pd.DataFrame(),
        "tensor": torch.zeros(3),
        "meta tensor": torch.zeros(3, 3, device="meta"),
        "sparse tensor": torch.eye(3).to_sparse(),
        "complex tensor": torch.zeros(2, dtype=torch.complex64),
        "grad tensor": torch.zeros(2, 3, requires_grad=True),
        "bool tensor": torch.zeros(2, dtype=torch.bool),
        "dtype": torch.float16,
        "np.dtype": np.dtype("int8"),
        "Normal": Normal(torch.zeros(3), torch.ones(3)),
        "Bernoulli": Bernoulli(torch.full((3,), 0.5)),
        "module of torch": torch.nn.Linear(2, 2),
        "AnnData": Fresh(adata.copy),
        "small AnnData": anndata.AnnData(np.ones((2, 2), dtype=np.float32)),
        "list of AnnData": [adata, adata],
        "dict of AnnData": {"batch": adata},
        "model": model,
        "class of a model": sd.SCVI,
        "Trajectory": path,
        "list of Trajectory": [path],
        "Ensemble": sd.Ensemble([model, model]),
        "module": math,
        "class": dict,
        "type": type,
        "lambda": lambda: None,
        "function": len,
        "object": object(),
        "mocked": Mocked(),
        "raising": Raising(),
        "list of raising": [Raising()],
        "namespace": types.SimpleNamespace(points=1, time=2, spread=3),
        "Counter": collections.Counter("aab"),
        "exception": ValueError("a"),
    }


def public():
    """Every public function and method, ``name -> (function, class or None)``; a function is public with its module."""
    found = {}
    for suffix in MODULES:
        module = importlib.import_module(f"scdecode{suffix}")
        for name in getattr(module, "__all__", [n for n in dir(module) if not n.startswith("_")]):
            value = getattr(module, name)
            if not getattr(value, "__module__", "").startswith("scdecode") or value.__module__ == "scdecode.errors":
                continue
            if inspect.isfunction(value):
                found[f"{module.__name__}.{name}"] = (value, None)
            elif inspect.isclass(value) and not issubclass(value, BaseException):
                for method, function in methods(value):
                    found[f"{name}.{method}"] = (function, value)
    return found


def methods(kind):
    """Public methods and the constructor of a class, as functions."""
    for name in dir(kind):
        if name.startswith("_") and name != "__init__":
            continue
        value = inspect.getattr_static(kind, name)
        function = value.__func__ if isinstance(value, classmethod | staticmethod) else value
        if inspect.isfunction(function) and inspect.unwrap(function).__module__.startswith("scdecode"):
            yield name, function
