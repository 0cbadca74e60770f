"""The names that a pickle may ask for, and what each becomes here: our own pure functions, or inert data.

Nothing is called that a file names. A name is looked up in one table, and the function beside it gets the arguments,
checks them, and makes plain data of them. Arrays are built from the text of the dtype, the shape and the bytes, which
have to fit each other.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

_Charge = Callable[[int], None]  # counts bytes of memory; raises where they are too many for the file
_Maker = Callable[[str, tuple[Any, ...], _Charge], Any]  # from the name, its arguments, and the above

_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|[mM]8|[SU][0-9]{1,7}|O[48]?")
_TIME_UNITS = (b"Y", b"M", b"W", b"D", b"h", b"m", b"s", b"ms", b"us", b"ns")
_MOST_DIMENSIONS = 32
_MOST_EMPTY = 2**24  # of an axis of an array without elements, which no bytes bound


@dataclass(eq=False, slots=True)
class Captured:
    """What a file says of an object that is not made here.

    Attributes
    ----------
    name
        The global that would have made it: ``"pandas.core.frame.DataFrame"``.
    args
        What it would have been called with; None where the file holds nothing but the name.
    state
        What the object would have been told afterwards.
    """

    name: str
    args: tuple[Any, ...] | None = None
    state: Any = None

    def __repr__(self) -> str:
        return self.name


class Storage:
    """What a persistent id may stand for: the memory of tensors. ``archives.py`` has the one that is real."""

    def tensor(self, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
        """The tensor that lies in this memory."""
        raise NotImplementedError


class Pending:
    """An array or a dtype whose content comes later; then the value takes its place in the memo."""

    __slots__ = ("code", "keys")

    def __init__(self, code: str | None) -> None:
        self.code = code  # of a dtype; an array has none
        self.keys: list[int] = []  # of the memo

    def filled(self, state: Any, charge: _Charge) -> Any:
        """The array or dtype of this content."""
        if not isinstance(state, tuple):
            raise ValueError("the content of an array or of a dtype is no tuple")
        if self.code is not None:
            return _dtype_of(self.code, state)
        if len(state) != 5 or not _is(state[0], 1):
            raise ValueError("the content of an array is not as numpy writes it")
        _, shape, dtype, fortran, data = state
        return _array_of(data, dtype, shape, "F" if fortran is True or _is(fortran, 1) else "C", charge)


def check_key(key: Any) -> None:
    """Raise ``ValueError`` unless this may be a key of a dict or a member of a set.

    Hashing is recursive, so tuples are short and flat. Whole numbers are of 64 bits, as it is easy to find longer ones
    with one hash, that make a dict slow. (Tuples of one hash can be found, too: ``opcodes.py`` counts them.)
    """
    for part in key if type(key) is tuple else (key,):
        if not (part is None or isinstance(part, str | bytes | bool | float) or _is_int64(part)):
            raise ValueError(f"a {type(part).__name__} is a key, or a part of one")
    if type(key) is tuple and len(key) > 8:
        raise ValueError(f"a key has {len(key):,} parts")


def _is(value: Any, *expected: int | str) -> bool:
    """Whether a value is one of these, and no array or tensor, whose comparison is another one."""
    return type(value) in (int, str) and value in expected


def _is_int64(value: Any) -> bool:
    return type(value) is int and -(2**63) <= value < 2**63


def _is_size(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) <= _MOST_DIMENSIONS and all(_is_int64(n) and n >= 0 for n in value)


def _expect(fits: bool, name: str) -> None:
    if not fits:
        raise ValueError(f"{name} has other arguments than honest files give it")


def _dtype_of(code: str, state: tuple[Any, ...]) -> np.dtype[Any]:
    # version, byte order, three of structured dtypes, bytes of an element, alignment, flags; then metadata
    known = len(state) in (8, 9) and _is(state[0], 3, 4) and _is(state[1], "<", ">", "|")
    if not known or any(part is not None for part in state[2:5]):
        raise ValueError("a dtype is not as numpy writes it, or a structured one")
    kind, order = code[0], state[1]
    if kind == "O":
        return np.dtype(object)
    length = int(code[1:])
    if kind in "mM":
        return _time_dtype(f"{'<' if order == '|' else order}{code}", state[8:])
    if kind in "SU":
        if not _is(state[5], length * (4 if kind == "U" else 1)):
            raise ValueError("the text of a dtype is of two lengths")
    elif (order == "|") != (length == 1) and order != "<":
        raise ValueError("a dtype has no byte order")
    return np.dtype(f"{order}{kind}{length}")


def _time_dtype(code: str, metadata: tuple[Any, ...]) -> np.dtype[Any]:
    """The dtype of dates or durations; its unit is the first part of ``(anything, (unit, 1, 1, 1))``."""
    part = metadata[0][1] if metadata and isinstance(metadata[0], tuple) and len(metadata[0]) == 2 else None
    if not isinstance(part, tuple) or len(part) != 4 or part[0] not in _TIME_UNITS or part[1:] != (1, 1, 1):
        raise ValueError("a dtype of dates has no unit")
    return np.dtype(f"{code}[{part[0].decode()}]")


def _array_of(data: Any, dtype: Any, shape: Any, order: Any, charge: _Charge) -> np.ndarray[Any, Any]:
    """An array of its own memory, once its parts fit each other."""
    if not isinstance(dtype, np.dtype) or not _is_size(shape) or not _is(order, "C", "F"):
        raise ValueError("an array has no dtype, no shape or no order")
    n_elements = math.prod(shape)
    if dtype.hasobject:
        return _objects_of(data, shape, n_elements, order, charge)
    if not isinstance(data, bytes) or n_elements * dtype.itemsize != len(data):
        raise ValueError(f"the content of an array is not that of shape {shape} and dtype {dtype}")
    if not data:  # of no elements, or of strings of length 0
        if max(shape, default=1) > _MOST_EMPTY or n_elements > _MOST_EMPTY:
            raise ValueError("an empty array is larger than any honest one")
        charge(n_elements * 4)
        return np.zeros(shape, dtype)
    charge(len(data))
    flat_n = np.frombuffer(data, dtype)
    if dtype.kind == "b" and flat_n.view(np.uint8).max() > 1:
        raise ValueError("an array of booleans has other values")
    if dtype.kind == "U":
        code_n = flat_n.view(np.dtype("u4").newbyteorder(dtype.byteorder))
        if (code_n > 0x10FFFF).any() or ((code_n >= 0xD800) & (code_n < 0xE000)).any():
            raise ValueError("an array of text has characters that do not exist")
    native = dtype.newbyteorder("=")  # as numpy itself does it; torch takes no other order
    return flat_n.reshape(shape, order=order).astype(native, order="K")


def _objects_of(data: Any, shape: tuple[int, ...], n: int, order: Any, charge: _Charge) -> np.ndarray[Any, Any]:
    if not isinstance(data, list) or len(data) != n or max(shape, default=1) > max(n, _MOST_EMPTY):
        raise ValueError(f"an array of objects of shape {shape} has not so many")
    charge(8 * n)
    flat_n = np.empty(n, dtype=object)
    for i, item in enumerate(data):
        # numpy frees arrays within arrays recursively, which a deep enough nest would not survive
        if isinstance(item, Pending) or (isinstance(item, np.ndarray) and item.dtype.hasobject):
            raise ValueError("an array of objects holds another one")
        flat_n[i] = item
    return np.asarray(flat_n.reshape(shape), order=order)  # numpy writes objects row by row, whatever their order


def _array(name: str, args: tuple[Any, ...], charge: _Charge) -> Pending:
    is_array = len(args) == 3 and isinstance(args[0], Captured) and args[0].name == "numpy.ndarray"
    _expect(is_array and args[0].args is None, name)
    return Pending(None)


def _dtype(name: str, args: tuple[Any, ...], charge: _Charge) -> Pending:
    code = args[0] if len(args) == 3 else None
    if not isinstance(code, str) or not _DTYPE.fullmatch(code):
        raise ValueError(f"a dtype is {code[:20]!r}" if isinstance(code, str) else "a dtype has no text")
    return Pending(code)


def _frombuffer(name: str, args: tuple[Any, ...], charge: _Charge) -> np.ndarray[Any, Any]:
    _expect(len(args) in (4, 5), name)
    data, dtype, shape, order = args[:4]
    axes = args[4] if len(args) == 5 else None
    if not _is(order, "K") or axes is None:
        _expect(axes is None, name)
        return _array_of(data, dtype, shape, order, charge)
    _expect(_is_size(shape) and _is_size(axes) and sorted(axes) == list(range(len(shape))), name)
    return _array_of(data, dtype, shape, "C", charge).transpose(axes)


def _scalar(name: str, args: tuple[Any, ...], charge: _Charge) -> Any:
    _expect(len(args) == 2 and isinstance(args[0], np.dtype) and not args[0].hasobject, name)
    return _array_of(args[1], args[0], (), "C", charge)[()]


def _tensor(name: str, args: tuple[Any, ...], charge: _Charge) -> Any:
    # storage, offset, size, stride, requires_grad, backward hooks, metadata
    _expect(len(args) in (6, 7), name)
    storage, offset, size, stride = args[:4]
    if isinstance(storage, Captured):  # of a tensor that was pickled without torch.save
        return Captured(name, args)
    _expect(isinstance(storage, Storage) and _is_int64(offset) and offset >= 0, name)
    _expect(_is_size(size) and _is_size(stride) and len(size) == len(stride), name)
    return storage.tensor(offset, size, stride)


def _parameter(name: str, args: tuple[Any, ...], charge: _Charge) -> Any:
    _expect(len(args) == 3, name)
    return args[0]


def _size(name: str, args: tuple[Any, ...], charge: _Charge) -> tuple[int, ...]:
    _expect(len(args) == 1 and _is_size(args[0]), name)
    return args[0]


def _dict(name: str, args: tuple[Any, ...], charge: _Charge) -> dict[Any, Any]:
    factory = len(args) == 1 and (args[0] is None or isinstance(args[0], Captured))
    _expect(not args or (factory and name.endswith("defaultdict")), name)
    return {}


def _encode(name: str, args: tuple[Any, ...], charge: _Charge) -> bytes:
    """Protocols below 3 have no bytes, and write them as text; below 5 they have no bytearray, and write a call."""
    if not args and not name.endswith("encode"):
        return b""
    if len(args) == 1 and isinstance(args[0], bytes) and name.endswith("bytearray"):
        return args[0]
    _expect(len(args) == 2 and isinstance(args[0], str) and _is(args[1], "latin1", "latin-1"), name)
    charge(len(args[0]))
    return args[0].encode("latin-1")


def _set(name: str, args: tuple[Any, ...], charge: _Charge) -> Any:
    _expect(len(args) == 1 and isinstance(args[0], list), name)
    charge((64 + sum(type(key) is tuple for key in args[0])) * len(args[0]))  # tuples may all be of one hash
    for key in args[0]:
        check_key(key)
    return frozenset(args[0]) if name.endswith("frozenset") else set(args[0])


def _slice(name: str, args: tuple[Any, ...], charge: _Charge) -> slice:
    _expect(len(args) == 3 and all(part is None or _is_int64(part) for part in args), name)
    return slice(*args)


def capture(name: str, args: tuple[Any, ...], charge: _Charge) -> Captured:
    """The object as its name and parts."""
    return Captured(name, args)


def _reconstruct(name: str, args: tuple[Any, ...], charge: _Charge) -> Captured:
    """Protocols 0 and 1 make an object of a class so: by the class, its base, and the state of the base."""
    known = len(args) == 3 and all(isinstance(part, Captured) and part.args is None for part in args[:2])
    _expect(known and MAKERS[args[0].name] is capture and args[1].name.endswith(".object") and args[2] is None, name)
    return Captured(args[0].name, ())


_BUILTINS: dict[str, _Maker | None] = {
    **dict.fromkeys(("list", "dict", "int", "float", "str", "object"), None),  # what a defaultdict makes; a base
    **dict.fromkeys(("set", "frozenset"), _set),
    **dict.fromkeys(("bytes", "bytearray"), _encode),
    "slice": _slice,
    "range": capture,
}
_TORCH_NAMES = (
    *(f"{t}Storage" for t in ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")),
    *("float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
)
# the classes and functions of pandas 1 to 3, and of pyarrow where pandas has it, that tables of numbers ask for
_TABLES = {
    "pandas": "DataFrame Series Index RangeIndex MultiIndex CategoricalIndex Categorical CategoricalDtype StringDtype",
    "pandas.arrays": "StringArray ArrowStringArray IntegerArray FloatingArray BooleanArray NumpyExtensionArray",
    "pyarrow.lib": "_restore_array py_buffer type_for_alias chunked_array",
    "pandas.core.frame": "DataFrame",
    "pandas.core.series": "Series",
    "pandas.core.flags": "Flags",
    "pandas.core.internals.managers": "BlockManager SingleBlockManager",
    "pandas._libs.internals": "_unpickle_block",
    "pandas._libs.arrays": "__pyx_unpickle_NDArrayBacked",
    "pandas.core.indexes.base": "_new_Index Index",
    "pandas.core.indexes.numeric": "Int64Index UInt64Index Float64Index",
    "pandas.core.indexes.range": "RangeIndex",
    "pandas.core.indexes.category": "CategoricalIndex",
    "pandas.core.indexes.multi": "MultiIndex",
    "pandas.core.indexes.frozen": "FrozenList",
    "pandas.core.arrays.categorical": "Categorical",
    "pandas.core.arrays.integer": "IntegerArray Int64Dtype Int32Dtype",
    "pandas.core.arrays.floating": "FloatingArray Float64Dtype Float32Dtype",
    "pandas.core.arrays.boolean": "BooleanArray BooleanDtype",
    "pandas.core.arrays.numpy_": "NumpyExtensionArray PandasArray",
    "pandas.core.arrays.string_": "StringArray StringDtype",
    "pandas.core.arrays.string_arrow": "ArrowStringArray",
    "pandas.core.dtypes.dtypes": "CategoricalDtype NumpyEADtype PandasDtype",
    # levels of a column that are neither text nor numbers; pandas_values.py makes values of them
    "pandas._libs.interval": "Interval",
    "pandas._libs.tslibs.period": "Period",
    "pandas._libs.tslibs.timestamps": "_unpickle_timestamp",
    "pandas._libs.tslibs.timedeltas": "_timedelta_unpickle",
    "pandas._libs.tslibs.offsets": "YearEnd QuarterEnd MonthEnd Week BusinessDay Day Hour Minute Second Milli Micro",
    "datetime": "date datetime timedelta timezone",
    "pytz": "_UTC _p",
}

_ACTIVATIONS = "ReLU ReLU6 LeakyReLU PReLU RReLU ELU CELU SELU GELU SiLU Mish Softplus Tanh Sigmoid Hardswish Identity"

ALLOWED: dict[tuple[str, str], _Maker | None] = {  # without a maker: only the name may be used
    **{(module, name): maker for module in ("builtins", "__builtin__") for name, maker in _BUILTINS.items()},
    **{(module, "_reconstructor"): _reconstruct for module in ("copyreg", "copy_reg")},
    ("collections", "OrderedDict"): _dict,
    ("collections", "defaultdict"): _dict,
    ("_codecs", "encode"): _encode,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _dtype,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _frombuffer for core in ("core", "_core")},
    **{("torch", name): None for name in _TORCH_NAMES},
    ("torch", "Size"): _size,
    ("torch", "device"): capture,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    # an option of the networks, in init_params_
    **{("torch.nn.modules.activation", name): None for name in _ACTIVATIONS.split()},
    ("torch.storage", "UntypedStorage"): None,
    ("torch.storage", "_load_from_bytes"): capture,
    **{(module, name): capture for module, names in _TABLES.items() for name in names.split()},
}
MAKERS = {".".join(name): maker for name, maker in ALLOWED.items()}
