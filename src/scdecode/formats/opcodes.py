"""The stack machine of pickles: what each opcode does, to data alone.

It is given opcodes whose names were all looked up already, and looks them up again: nothing comes onto its stack but
plain data, and inert names that only the functions of ``allowed.py`` make anything of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from scdecode.errors import UnsafeModelError
from scdecode.formats.allowed import ALLOWED, MAKERS, Captured, Pending, capture, check_key


def short(text: str) -> str:
    """Text of a file for a message: its beginning, and printable."""
    return text if len(text) < 200 and text.isprintable() else repr(text[:200])


def unsafe(place: str, what: str) -> UnsafeModelError:
    """The error for a file that asks for what no model needs."""
    return UnsafeModelError(
        f"{place}: it {what}, which no honest scvi-tools model needs; nothing was run; "
        "do not open it with a program that unpickles, and ask whoever gave it to you"
    )


def check_name(name: tuple[str | None, ...], place: str) -> None:
    """Raise :class:`UnsafeModelError` unless the table has this module and name."""
    if None in name:
        raise unsafe(place, f"asks for a global whose name is computed ({short(str(name[0]))}.{short(str(name[1]))})")
    if name not in ALLOWED:
        raise unsafe(place, f"asks for the global {short('.'.join(map(str, name)))}")


_MOST_TUPLES = 5_000  # keys of a pickle; an honest one has none or a few


class Machine:
    """The stack, the marks and the memo, and what each opcode does to them."""

    def __init__(self, place: str, persistent: Callable[[Any], Any] | None, size: int) -> None:
        self.place = place
        self.persistent = persistent
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.n_tuples = 0  # keys whose hash is not random: a stranger finds as many of one hash as he likes
        self.budget = 64 * size + 1_000_000  # bytes; a pickle can ask for one of its parts again and again

    def check_keys(self, keys: list[Any]) -> None:
        """Raise ``ValueError`` unless all these may be keys, and there are not too many that can be made to collide."""
        for key in keys:
            check_key(key)
            self.n_tuples += type(key) is tuple
        if self.n_tuples > _MOST_TUPLES:
            raise ValueError(f"more than {_MOST_TUPLES:,} tuples are keys")

    def charge(self, n_bytes: int) -> None:
        """Count the memory of a copy; raise where there are far more of them than the file has bytes."""
        self.budget -= n_bytes
        if self.budget < 0:
            raise ValueError("it asks for far more memory than it holds data")

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self) -> Any:
        """Take the top of the stack."""
        return self.stack.pop()

    def mark(self, _: Any) -> None:
        """Begin a new stack above this one."""
        self.below.append(self.stack)
        self.stack = []

    def marked(self) -> list[Any]:
        """Take all down to the last mark."""
        items, self.stack = self.stack, self.below.pop()
        return items

    def push_marked(self, kind: type) -> None:
        """A tuple, list or frozenset of all down to the mark."""
        items = self.marked()
        if kind is frozenset:
            self.check_keys(items)
        self.push(kind(items))

    def drop(self, _: Any) -> None:
        """Take the top away, be it a value or a mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.marked()

    def drop_marked(self) -> None:
        """Take all down to the mark away."""
        self.marked()

    def remember(self, key: int | None) -> None:
        """Store the top in the memo; without a key, in its next place."""
        value = self.stack[-1]
        key = len(self.memo) if key is None else key
        self.memo[key] = value
        if isinstance(value, Pending):
            value.keys.append(key)

    def recall(self, key: int) -> None:
        """Put what the memo has onto the stack."""
        if key not in self.memo:
            raise ValueError("it asks for something that it has not stored")
        self.stack.append(self.memo[key])

    def several(self, kind: type, method: str) -> None:
        """Add the marked values to the list or set below the mark."""
        items = self.marked()
        target = self.stack[-1]
        if type(target) is not kind:
            raise ValueError(f"it adds values to a {type(target).__name__}")
        if kind is set:
            self.check_keys(items)
        getattr(target, method)(items)

    def append(self, _: Any) -> None:
        """Add one value to the list below it."""
        item = self.pop()
        if type(self.stack[-1]) is not list:
            raise ValueError(f"it adds a value to a {type(self.stack[-1]).__name__}")
        self.stack[-1].append(item)

    def set_items(self, items: list[Any]) -> None:
        """Add keys and values, in turns, to the dict on the stack."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise ValueError(f"it adds keys to a {type(target).__name__}, or one without a value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str:
                self.check_keys([key])
            target[key] = value

    def set_item(self, _: Any) -> None:
        """Add one key and its value to the dict below them."""
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def new_dict(self, _: Any) -> None:
        """A dict of all down to the mark."""
        items = self.marked()
        self.push({})
        self.set_items(items)

    def new_tuple(self, n: int) -> None:
        """A tuple of the last few values."""
        if len(self.stack) < n:
            raise IndexError
        items = tuple(self.stack[-n:])
        del self.stack[-n:]
        self.stack.append(items)

    def name(self, name: tuple[str, str]) -> None:
        """Put a name onto the stack, as a name."""
        check_name(name, self.place)
        self.stack.append(Captured(".".join(name)))

    def stack_name(self, _: Any) -> None:
        """The same, from the two texts on the stack."""
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            check_name((None, None), self.place)
        self.name((module, name))

    def reduce(self, _: Any) -> None:
        """What a name and its arguments become, which is for our own table to say."""
        args, function = self.pop(), self.pop()
        if not isinstance(function, Captured) or function.args is not None or not isinstance(args, tuple):
            raise ValueError(f"it calls a {type(function).__name__}, or with a {type(args).__name__} as arguments")
        maker = MAKERS[function.name]
        if maker is None:
            raise ValueError(f"it calls {function.name}, of which only the name may be used")
        self.stack.append(maker(function.name, args, self.charge))

    def new_object(self, _: Any) -> None:
        """An object of a class of another library: its name and its arguments."""
        args, kind = self.pop(), self.pop()
        named = isinstance(kind, Captured) and kind.args is None and MAKERS[kind.name] is capture
        if not named or not isinstance(args, tuple):
            raise ValueError(f"it makes an object of a {getattr(kind, 'name', type(kind).__name__)}")
        self.stack.append(Captured(kind.name, args))

    def set_state(self, _: Any) -> None:
        """Give an object what it has to hold."""
        state, target = self.pop(), self.stack[-1]
        if isinstance(target, Pending):
            value = self.stack[-1] = target.filled(state, self.charge)
            for key in target.keys:
                if self.memo.get(key) is target:
                    self.memo[key] = value
        elif isinstance(target, Captured) and target.args is not None and target.state is None:
            target.state = state
        elif type(target) is not dict or type(state) is not dict:  # torch's _metadata of a state dict is not needed
            raise ValueError(f"it gives a state to a {type(target).__name__}")

    def find(self, persistent_id: Any) -> None:
        """Put what a persistent id stands for onto the stack."""
        if self.persistent is None:
            raise ValueError("it asks for something outside of this file (a persistent id)")
        self.stack.append(self.persistent(persistent_id))

    def check_protocol(self, protocol: int) -> None:
        """Raise for a protocol that does not exist yet."""
        if protocol > 5:
            raise ValueError(f"it is of pickle protocol {protocol}, up to 5 was expected")


REMEMBER = frozenset({"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"})
RECALL = frozenset({"GET", "BINGET", "LONG_BINGET"})
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXTS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("SHORT_BINBYTES", "BINBYTES", "BINBYTES8")

HANDLERS: dict[str, Callable[[Machine, Any], None]] = {
    **dict.fromkeys((*_NUMBERS, *_TEXTS, *_BYTES), Machine.push),
    **dict.fromkeys(REMEMBER, Machine.remember),
    **dict.fromkeys(RECALL, Machine.recall),
    "BYTEARRAY8": lambda m, arg: m.push(bytes(arg)),
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "TUPLE1": lambda m, _: m.new_tuple(1),
    "TUPLE2": lambda m, _: m.new_tuple(2),
    "TUPLE3": lambda m, _: m.new_tuple(3),
    "TUPLE": lambda m, _: m.push_marked(tuple),
    "LIST": lambda m, _: m.push_marked(list),
    "FROZENSET": lambda m, _: m.push_marked(frozenset),
    "DICT": Machine.new_dict,
    "APPEND": Machine.append,
    "APPENDS": lambda m, _: m.several(list, "extend"),
    "ADDITEMS": lambda m, _: m.several(set, "update"),
    "SETITEM": Machine.set_item,
    "SETITEMS": lambda m, _: m.set_items(m.marked()),
    "MARK": Machine.mark,
    "POP": Machine.drop,
    "POP_MARK": lambda m, _: m.drop_marked(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "GLOBAL": Machine.name,
    "STACK_GLOBAL": Machine.stack_name,
    "REDUCE": Machine.reduce,
    "NEWOBJ": Machine.new_object,
    "BUILD": Machine.set_state,
    "PERSID": Machine.find,
    "BINPERSID": lambda m, _: m.find(m.pop()),
    "PROTO": Machine.check_protocol,
    "FRAME": lambda m, _: None,
    "STOP": lambda m, _: None,
}
