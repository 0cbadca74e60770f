"""Pickles read as data: their opcodes are walked, and nothing that a file names is imported, looked up or called.

A pickle is a program for a small stack machine, and any program at all may stand where a model was expected. So there
is no unpickler here. The standard library's ``pickletools`` tells the opcodes apart. A first pass over them finds every
name that the file asks for, and stops at one that is not in the table of ``allowed.py``. A second pass (``opcodes.py``)
builds plain data. The functions that the table names are our own, and pure. What belongs to a library that is not
needed to read a model (pandas, mostly) is kept as :class:`Captured`: its name and its parts, inert.

Bytes come from strangers, so all sizes are checked before memory is taken, no step is recursive, and what comes out has
no cycles and no great depth: whoever walks it comes to an end.
"""

from __future__ import annotations

import io
import pickletools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, NoReturn

import numpy as np

from scdecode.errors import CorruptModelError, ScdecodeError
from scdecode.formats.allowed import Captured, Pending, Storage
from scdecode.formats.opcodes import HANDLERS, RECALL, REMEMBER, Machine, check_name, short, unsafe

__all__ = ["Captured", "PickleStream", "Storage", "build", "read_only_pickle", "read_pickle", "scan"]

_MOST_OPCODES = 2_000_000  # of one pickle, some hundred bytes of memory each; a model has some thousands
_MOST_PARTS = 2_000_000  # of one value, where a part that stands in two places counts twice; more in a larger file
_MOST_DEPTH = 100  # of lists in lists
_WITH_PARTS = (dict, list, tuple, Captured, np.ndarray, Pending, Storage)
_MOST_BITS = 1024  # of a whole number: the state of a random number generator has 128


class PickleStream(io.BytesIO):
    r"""Bytes with pickles in them.

    ``pickletools`` undoes the escapes of Python 2's strings, and gives a warning where they are wrong. Nothing that
    scvi-tools wrote has any, so a line with one is refused, but for those of text (``V``, whose ``\\u`` are its own).
    """

    def readline(self, size: int | None = -1, /) -> bytes:
        """One line, without escapes."""
        start = self.tell()
        line = super().readline(size)
        if b"\\" in line:
            self.seek(start - 1)
            if self.read(1) != b"V":
                raise ValueError("a string with escapes, as Python 2 wrote them")
            self.seek(start + len(line))
        return line


@dataclass(eq=False, slots=True)
class Scanned:
    """The opcodes of one pickle, whose names are all known to be harmless."""

    # lists side by side: a tuple for each opcode would keep the garbage collector busy
    handlers: list[Callable[[Machine, Any], None]]
    args: list[Any]
    positions: list[int]
    size: int  # in bytes


def read_pickle(stream: BinaryIO, place: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    """One pickle, from where the stream stands; others may follow it.

    Parameters
    ----------
    stream
        It is left at the end of the pickle.
    place
        The file, for errors.
    persistent
        Gives the object for a persistent id. A :class:`Storage` can become tensors.

    Returns
    -------
    Plain data: numbers, text, bytes, lists, tuples, dicts (all kinds are dict), sets, slices, numpy arrays, scalars and
    dtypes, tensors where ``persistent`` gives storages, and :class:`Captured`. It holds no cycles.

    Raises
    ------
    UnsafeModelError
        Where it asks for a global that is not in the table; then nothing was built.
    CorruptModelError
        Where it is damaged.
    """
    start = stream.tell()
    source = stream if isinstance(stream, PickleStream) else PickleStream(stream.read())
    scanned = scan(source, place)
    stream.seek(start + scanned.size)
    return build(scanned, place, persistent)


def read_only_pickle(data: bytes, place: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The one pickle that these bytes are; what follows it is searched for names, too, before anything is built."""
    stream = PickleStream(data)
    scanned = scan(stream, place)
    if scanned.size < len(data):
        scan(stream, place)
        raise CorruptModelError(f"{place}: {len(data) - scanned.size:,} bytes follow the end of the pickle")
    return build(scanned, place, persistent)


def scan(stream: PickleStream, place: str) -> Scanned:
    """The first pass: read the opcodes, and raise :class:`UnsafeModelError` at the first name that is not allowed."""
    start = position = stream.tell()
    scanned = Scanned([], [], [], 0)
    handlers, args, positions = scanned.handlers, scanned.args, scanned.positions
    stack: list[str | None] = []  # since the last open mark; only text is of interest, the rest is None
    below: list[list[str | None]] = []
    memo: dict[int, str | None] = {}
    try:
        for opcode, given, at in pickletools.genops(stream):
            arg: Any = given
            position = at or 0
            kind, handler, n_popped = _STEPS[opcode.name]
            if kind == _PUSHES:
                if isinstance(arg, str):
                    if not arg.isascii():
                        arg.encode()  # half of a surrogate pair is a str that nobody can print
                    stack.append(arg)
                else:
                    if isinstance(arg, int) and arg.bit_length() > _MOST_BITS:
                        raise ValueError(f"a whole number of {arg.bit_length():,} bits")
                    stack.append(None)
            elif kind == _REMEMBERS:
                memo[len(memo) if arg is None else arg] = stack[-1]
            elif kind == _RECALLS:
                stack.append(memo[arg])
            elif kind == _MARKS:
                below.append(stack)
                stack = []
            elif kind == _DOUBLES:
                stack.append(stack[-1])
            elif kind == _REFUSES:
                _check_instance(opcode.name, arg, place)
            else:
                if kind == _NAMES:
                    arg = (stack[-2], stack[-1]) if arg is None else tuple(arg.split(" "))
                    check_name(arg, place)
                elif kind == _COLLECTS or (kind == _DROPS and not stack):
                    stack = below.pop()
                    n_popped -= kind == _DROPS
                if n_popped > len(stack):
                    raise IndexError
                del stack[len(stack) - n_popped :]
                if opcode.stack_after:
                    stack.append(None)
            handlers.append(handler)
            args.append(arg)
            positions.append(position)
            if len(args) > _MOST_OPCODES:
                raise ValueError(f"more than {_MOST_OPCODES:,} opcodes")
    except IndexError as error:
        raise _damaged(place, position, "it takes from an empty stack") from error
    except KeyError as error:  # of the memo: the steps have every opcode that pickletools knows
        raise _damaged(place, position, "it asks for something that it has not stored") from error
    except ScdecodeError:
        raise
    except (ValueError, OverflowError, MemoryError) as error:
        raise _damaged(place, stream.tell(), short(str(error))) from error
    scanned.size = stream.tell() - start
    return scanned


def build(scanned: Scanned, place: str, persistent: Callable[[Any], Any] | None = None) -> Any:
    """The second pass: the value of a pickle whose names are known to be harmless."""
    machine = Machine(place, persistent, scanned.size)
    position = 0
    try:
        for operation, arg, at in zip(scanned.handlers, scanned.args, scanned.positions, strict=True):
            position = at
            operation(machine, arg)
        value = machine.pop()
        if machine.below or machine.stack:
            raise ValueError("something is left on the stack at its end")
        _check_extent(value, max(_MOST_PARTS, scanned.size))
    except IndexError as error:
        raise _damaged(place, position, "it takes from an empty stack") from error
    except ScdecodeError:
        raise
    except (ValueError, OverflowError, MemoryError) as error:
        raise _damaged(place, position, short(str(error))) from error
    return value


def _damaged(place: str, position: int, reason: str) -> CorruptModelError:
    return CorruptModelError(f"{place}: at byte {position:,}: {reason}; it was truncated or edited; copy it again")


def _check_instance(opcode: str, arg: Any, place: str) -> NoReturn:
    """Raise for the opcodes that make objects in ways that no honest file uses."""
    if opcode == "INST":
        check_name(tuple(arg.split(" ")), place)
        raise unsafe(place, f"makes an object of {short(arg.replace(' ', '.'))} by the opcode INST")
    raise unsafe(place, f"makes an object by the opcode {opcode}" + ("" if arg is None else f" {arg}"))


def _check_extent(value: Any, most: int) -> None:
    """Raise ``ValueError`` where a value contains itself, is deep, or has more than ``most`` parts written out."""
    known: dict[int, tuple[int, int]] = {}  # by id: number of parts and depth; the value keeps all of them alive
    unfinished: set[int] = set()
    waiting = [value]
    while waiting:
        node = waiting[-1]
        if id(node) in known:
            waiting.pop()
            continue
        n_own, inner = _parts(node)
        if id(node) in unfinished:  # its parts are known by now
            waiting.pop()
            unfinished.discard(id(node))
            n_parts = 1 + n_own + sum(known[id(part)][0] for part in inner)
            depth = 1 + max((known[id(part)][1] for part in inner), default=0)
            if n_parts > most or depth > _MOST_DEPTH:
                raise ValueError("it is nested too deeply, or into too many copies of itself")
            known[id(node)] = n_parts, depth
            continue
        unfinished.add(id(node))
        for part in inner:
            if id(part) in unfinished:
                raise ValueError("it contains itself")
        waiting += inner


def _parts(node: Any) -> tuple[int, list[Any]]:
    """The number of parts of a value, and those that have parts of their own."""
    if isinstance(node, Pending):
        raise ValueError("an array or a dtype has no content, or contains itself")
    if isinstance(node, Storage):
        raise ValueError("the memory of a tensor stands where a tensor was expected")
    parts: Iterable[Any]
    if isinstance(node, dict):
        parts = node.values()
    elif isinstance(node, list | tuple):
        parts = node
    elif isinstance(node, Captured):
        parts = (node.args, node.state)
    elif isinstance(node, np.ndarray) and node.dtype.hasobject:
        parts = node.flat
    else:
        return (node.size if isinstance(node, np.ndarray) else 0), []
    inner = [part for part in parts if isinstance(part, _WITH_PARTS)]
    return (2 if isinstance(node, Captured) else len(node) if not isinstance(node, np.ndarray) else node.size), inner


_PUSHES, _REMEMBERS, _RECALLS, _MARKS, _DOUBLES, _REFUSES, _NAMES, _COLLECTS, _DROPS, _OTHER = range(10)
_KINDS = {
    **dict.fromkeys(REMEMBER, _REMEMBERS),
    **dict.fromkeys(RECALL, _RECALLS),
    **dict.fromkeys(("INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"), _REFUSES),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), _NAMES),
    "MARK": _MARKS,
    "DUP": _DOUBLES,
    "POP": _DROPS,
    "PERSID": _OTHER,  # its argument is no text on the stack
}


def _steps() -> dict[str, tuple[int, Callable[[Machine, Any], None], int]]:
    """Of each opcode: its kind in the first pass, what it does in the second, and how many values it takes."""
    steps = {}
    for opcode in pickletools.opcodes:
        before, after = opcode.stack_before, opcode.stack_after
        marked = pickletools.markobject in before
        kind = _COLLECTS if marked else _PUSHES if after and not before else _OTHER
        n_popped = before.index(pickletools.markobject) if marked else len(before)
        name = opcode.name
        steps[name] = _KINDS.get(name, kind), HANDLERS.get(name, Machine.check_protocol), n_popped
    return steps


_STEPS = _steps()
