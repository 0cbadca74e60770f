"""Pickles as data: honest ones equal what pickle itself gives, and no other one runs, hangs or takes memory."""

import collections
import contextlib
import io
import math
import pickle
import pickletools
import struct
import time
import tracemalloc

import numpy as np
import pandas as pd
import pytest
import torch
from hostile import PLACES, by_pickle, hostile, makers
from hypothesis import given, settings
from hypothesis import strategies as st

from scdecode.errors import CorruptModelError, ScdecodeError, UnsafeModelError
from scdecode.formats.pickles import Captured, PickleStream, read_only_pickle, read_pickle

PROTOCOLS = range(6)


def read(data, persistent=None):
    return read_only_pickle(data, "model.pt", persistent)


def same(ours, theirs):
    """Whether two values are equal, and of the same types; dicts of any kind are dicts here."""
    if isinstance(theirs, np.ndarray):
        return (
            isinstance(ours, np.ndarray)
            and ours.dtype == theirs.dtype.newbyteorder("=")
            and ours.shape == theirs.shape
            and ours.flags.f_contiguous == theirs.flags.f_contiguous
            and all(same(a, b) for a, b in zip(ours.ravel().tolist(), theirs.ravel().tolist(), strict=True))
        )
    if isinstance(theirs, dict):
        return type(ours) is dict and list(ours) == list(theirs) and all(same(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, bytearray):
        return ours == bytes(theirs)
    if type(ours) is not type(theirs):
        return False
    if isinstance(theirs, list | tuple):
        return len(ours) == len(theirs) and all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    if isinstance(theirs, float):
        return ours == theirs or (math.isnan(ours) and math.isnan(theirs))
    return bool(ours == theirs)


HONEST = {
    "numbers": [0, 1, -1, 255, 256, 65_536, -(2**31), 2**40, -(2**63), 2**127, 0.5, -1e300, math.inf, math.nan],
    "truth": [True, False, None],
    "text": ["", "a", "CD8 T cell", "naïve", "\U0001f9ec", "a\nb\\c'\"", "x" * 300, "y" * 70_000],
    "bytes": [b"", b"\x00\xff", b"z" * 300, bytearray(b"abc"), bytearray()],
    "nested": {"a": [1, (2, 3), (), [], {}], "b": {"c": ((1,), (1, 2), (1, 2, 3), (1, 2, 3, 4))}},
    "keys": {1: "a", "b": 2, None: 3, 2.5: 4, (1, "a"): 5, b"c": 6},
    "sets": [{1, 2, "a"}, frozenset(["b"]), set(), frozenset()],
    "ordered": collections.OrderedDict(a=1, b=2),
    "default": [collections.defaultdict(list, {"a": [1]}), collections.defaultdict(dict), collections.defaultdict()],
    "slice": [slice(0, 1, 1), slice(None), slice(None, 3)],
    "sizes": torch.Size([2, 3]),
    **{
        f"array of {code}": np.arange(6).reshape(2, 3).astype(code)
        for code in ("<f8", ">f4", "f2", "i1", "u8", ">i2", "?")
    },
    "array of text": np.array(["a", "bcd", "é"]),
    "array of bytes": np.array([b"a", b"bcd"]),
    "array of objects": np.array(["a", None, 2, 2.5, True], dtype=object),
    "array of objects of two axes": np.array([["a", "b"], ["c", "d"], ["e", "f"]], dtype=object),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "fortran objects": np.asfortranarray(np.array([["a", "b", "c"], ["d", "e", "f"]], dtype=object)),
    "of no axis": np.array(2.5),
    "empty": [np.array([]), np.zeros((0, 3)), np.array([], dtype=object), np.array([], dtype=str)],
    "strided": np.arange(10)[::3],
    "transposed": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "scalars": [np.float32(1.5), np.int64(3), np.bool_(True), np.str_("a"), np.uint8(255)],
    "dtypes": [np.dtype("f8"), np.dtype("O"), np.dtype("U5"), np.dtype(">i4")],
    "shared": (lambda x: [x, x, {"x": x}])(np.arange(3)),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("name", HONEST)
def test_honest_pickles_are_what_pickle_gives(name, protocol):
    value = HONEST[name]
    data = pickle.dumps(value, protocol)
    for written in (data, pickletools.optimize(data)):
        ours, theirs = read(written), pickle.loads(written)
        if isinstance(theirs, tuple):
            theirs = tuple(theirs)  # torch.Size is one
        assert same(ours, theirs), (ours, theirs)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**200), 2**200) | st.floats() | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text() | st.integers(-(2**62), 2**62), inner) | st.tuples(inner, inner)
    ),
    max_leaves=20,
)


@given(values, st.sampled_from(PROTOCOLS))
@settings(max_examples=150, deadline=None)
def test_any_plain_value(value, protocol):
    assert same(read(pickle.dumps(value, protocol)), value)


def test_numpy_arrays_are_writable_and_own_their_memory():
    ours = read(pickle.dumps(np.arange(3)))
    ours[0] = 5
    assert ours.tolist() == [5, 1, 2]


def test_several_pickles_follow_each_other():
    data = pickle.dumps([1]) + pickle.dumps("b", 0) + b"tail"
    for stream in (io.BytesIO(data), PickleStream(data)):
        assert read_pickle(stream, "x") == [1]
        assert read_pickle(stream, "x") == "b"
        assert stream.read() == b"tail"
    with pytest.raises(CorruptModelError, match="bytes follow the end"):
        read(data[: -len(b"tail")])


def test_other_libraries_objects_are_captured():
    frame = read(pickle.dumps(pd.DataFrame({"a": [1.5]}), 2))
    assert isinstance(frame, Captured)
    assert frame.name == "pandas.core.frame.DataFrame"
    assert frame.args == ()
    assert frame.state["_mgr"].name == "pandas.core.internals.managers.BlockManager"
    inner = b"\x80\x02cposix\nsystem\n."
    kept = read(b"ctorch.storage\n_load_from_bytes\n(C" + bytes([len(inner)]) + inner + b"tR.")
    assert (kept.name, kept.args) == ("torch.storage._load_from_bytes", (inner,))  # bytes, which nobody reads
    assert read(pickle.dumps(torch.float32, 2)).name == "torch.float32"
    assert read(pickle.dumps(torch.device("cuda:0"), 2)).args == ("cuda", 0)
    assert read(pickle.dumps(range(3))).args == (0, 3, 1)


def ids(cases):
    return [f"{name}-{place}".replace(" ", "_") for name, place, _ in cases]


CASES = list(hostile("/nowhere/ran"))


@pytest.mark.parametrize("i", range(len(CASES)), ids=ids(CASES))
def test_no_hostile_pickle_runs(i, tmp_path):
    target = tmp_path / "ran"
    name, _, data = list(hostile(target))[i]
    asked = []
    with pytest.raises(UnsafeModelError) as error:
        read(data, asked.append)
    assert name.partition(" (")[0] in str(error.value)
    assert str(error.value).startswith("model.pt: it ")
    assert not target.exists()
    assert asked == []


@pytest.mark.parametrize("name", ["posix.system", "posix.system (stack)", "posix.system (memo)", "builtins.exec"])
def test_hostile_programs_would_run(name, tmp_path):
    # that the tests above test something: the interpreter of pickle itself runs them
    target = tmp_path / "ran"
    pickle.loads(makers(target)[name] + b".")
    assert target.exists()


def test_what_pickle_writes_of_hostile_objects(tmp_path):
    target = tmp_path / "ran"
    for name, protocol, data in by_pickle(target):
        with pytest.raises(UnsafeModelError, match=r"asks for the global"):
            read(data)
        assert not target.exists(), (name, protocol)


def test_every_place_is_a_place_for_harmless_values():
    # the frames around the hostile programs are no damage that would have stopped them anyway
    for place in ("in a list", "as a value", "as a state", "in an array of objects", "thrown away", "in a frame"):
        value = b"}" if place == "as a state" else b"N"
        read(PLACES[place].replace(b"@", value) + b".")


DAMAGED = {
    "nothing": b"",
    "only an end": b".",
    "no end": b"]",
    "unknown opcode": b"\xff.",
    "a protocol to come": b"\x80\x06N.",
    "underflow": b"\x85.",
    "underflow at a mark": b"N(\x86.",
    "no mark": b"t.",
    "no mark to drop": b"0.",
    "no mark for a list": b"]e.",
    "two values": b"NN.",
    "an open mark": b"(N.",
    "a missing memo": b"h\x05.",
    "a missing long memo": b"j\xff\xff\xff\x7f.",
    "a missing text memo": b"g-3\n.",
    "text memo of words": b"gx\n.",
    "bytes of 2^60": b"\x8e" + struct.pack("<Q", 2**60) + b".",
    "bytearray of 2^60": b"\x96" + struct.pack("<Q", 2**60) + b".",
    "text of 2^60": b"\x8d" + struct.pack("<Q", 2**60) + b".",
    "text of 2^64 - 1": b"\x8d" + b"\xff" * 8 + b".",
    "bytes of 2^31": b"B" + struct.pack("<I", 2**31) + b".",
    "a number of -1 bytes": b"\x8b\xff\xff\xff\xff.",
    "a number of 5000 digits": b"L" + b"9" * 5000 + b"L\n.",
    "a number of 10000 bits": b"\x8b" + struct.pack("<i", 1250) + b"\x7f" * 1250 + b".",
    "words for a number": b"Iabc\n.",
    "words for a float": b"Fabc\n.",
    "no utf-8": b"X\x02\x00\x00\x00\xff\xfe.",
    "half of a pair": b"X\x03\x00\x00\x00\xed\xa0\x80.",
    "half of a pair, written": b"V\\ud800\n.",
    "escapes": b"S'\\d'\n.",
    "escapes of a name": b"cpo\\x73ix\nsystem\n.",
    "no quotes": b"Sabc\n.",
    "a list as a key": b"}]Ns.",
    "a dict as a key": b"}(}Nu.",
    "a number of 70 bits as a key": b"}\x8a\x0a" + b"\x01" * 10 + b"Ns.",
    "a long key": b"}((" + b"N" * 9 + b"tNu.",
    "a nested key": b"}N\x85\x85Ns.",
    "a list in a set": b"\x8f(]\x90.",
    "a list in a frozenset": b"(]\x91.",
    "a key without a value": b"}(Nu.",
    "values for no dict": b"](NNu.",
    "a value for no list": b"}Na.",
    "values for a tuple": b")(Ne.",
    "a call of nothing": b"NNR.",
    "a call of text": b"X\x01\x00\x00\x00a)R.",
    "a call with a list": b"ccollections\nOrderedDict\n]R.",
    "a call of what was made": b"cpandas\nDataFrame\n)\x81)R.",
    "a call of a name": b"cnumpy\nndarray\n)R.",
    "an object of a function": b"c_codecs\nencode\n)\x81.",
    "an object of a list": b"cbuiltins\nlist\n)\x81.",
    "a state for a list": b"]}b.",
    "a state for a number": b"K\x01}b.",
    "a state for a name": b"cpandas\nDataFrame\n}b.",
    "two states": b"\x80\x02cpandas\nDataFrame\n)\x81}b}b.",
    "a persistent id": b"K\x01Q.",
    "a persistent id of text": b"Pabc\n.",
    "other codec": b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR.",
    "a dtype of nothing": b"cnumpy\ndtype\n)R.",
    "a dtype without content": b"cnumpy\ndtype\n(X\x02\x00\x00\x00f8\x89\x88tR.",
    "a structured dtype": b"cnumpy\ndtype\n(X\x02\x00\x00\x00V8\x89\x88tR.",
    "a dtype of dates": b"cnumpy\ndtype\n(X\x02\x00\x00\x00M8\x89\x88tR.",
    "an array without content": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tX\x01\x00\x00\x00btR.",
    "an array of a class": b"cnumpy.core.multiarray\n_reconstruct\n(cpandas\nDataFrame\n(K\x00tX\x01\x00\x00\x00btR.",
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_an_error_of_ours(name):
    with pytest.raises(CorruptModelError, match=r"^model\.pt: at byte "):
        read(DAMAGED[name])


def array_pickle(dtype="f8", order="<", shape=(3,), data=b"\0" * 24, fortran=False, version=1, size=-1, flags=0):
    """A numpy array whose parts are what the caller says, as protocol 4 writes it."""
    out = b"\x80\x04cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR("

    def plain(value):  # the opcodes of a value, without the frame around
        return pickle.dumps(value, 3)[2:-1]

    out += plain(version) + plain(shape)
    out += (
        b"cnumpy\ndtype\n(" + plain(dtype) + b"\x89\x88tR" + plain((3, order, None, None, None, size, -1, flags)) + b"b"
    )
    return out + plain(fortran) + plain(data) + b"tb."


@pytest.mark.parametrize(
    "parts",
    [
        {"shape": (4,)},
        {"shape": (2**62,)},
        {"shape": (2**32, 2**32)},
        {"shape": (2**70,)},
        {"shape": (-3,)},
        {"shape": (-1, -3)},
        {"shape": [3]},
        {"shape": (3.0,)},
        {"shape": (1,) * 33 + (3,)},
        {"shape": (2**60, 0), "data": b""},
        {"shape": (3,), "data": b""},
        {"shape": (3,), "data": "a"},
        {"shape": (3,), "data": [1, 2, 3]},
        {"dtype": "f9"},
        {"dtype": "f16"},
        {"dtype": "c8"},
        {"dtype": "f8,f8"},
        {"dtype": "("},
        {"dtype": "f8\n"},
        {"dtype": "U999999999", "size": 3999999996},
        {"dtype": "U3", "size": 8, "data": b"\0" * 24},
        {"dtype": "U0", "size": 0, "shape": (2**50,), "data": b""},
        {"dtype": "S0", "size": 0, "shape": (2**50,), "data": b"", "order": "|"},
        {"dtype": "U2", "size": 8, "data": b"\xff" * 24},
        {"dtype": "U2", "size": 8, "data": b"\x00\xd8\x00\x00" * 6},
        {"dtype": "b1", "order": "|", "data": b"\x02" * 3},
        {"order": "x"},
        {"order": "|"},
        {"order": None},
        {"version": 2},
        {"version": True},
        {"dtype": "O8", "order": "|", "data": b"\0" * 24},
        {"dtype": "O8", "order": "|", "data": [1, 2]},
        {"dtype": "O8", "order": "|", "data": [], "shape": (2**50, 0)},
        {"dtype": ["f8"]},
        {"fortran": [0], "shape": (4,)},
    ],
    ids=str,
)
def test_arrays_whose_parts_do_not_fit(parts):
    assert read(array_pickle()).tolist() == [0, 0, 0]
    tracemalloc.start()
    with pytest.raises(CorruptModelError):
        read(array_pickle(**parts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_arrays_and_dtypes_where_numbers_were_expected():
    # comparisons of arrays are arrays; none may decide anything
    whole = array_pickle()
    array = whole[2:-1]
    for part in (b"K\x01", b"K\x03", b"\x89"):
        for at in range(len(whole)):
            if whole.startswith(part, at):
                changed = whole[:at] + array + whole[at + len(part) :]
                with contextlib.suppress(ScdecodeError):
                    read(changed)


def test_values_within_themselves():
    cycles = {
        "list": b"]q\x00h\x00a.",
        "dict": b"}q\x00Nh\x00s.",
        "by a tuple": b"]q\x00h\x00\x85a.",
        "table": b"\x80\x02cpandas\nDataFrame\n)\x81q\x00h\x00b.",
        "table by its arguments": b"\x80\x02]q\x00cpandas\nDataFrame\nh\x00\x85\x81a.",
        "array": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btRq\x60(K\x01K\x01\x85"
        b"cnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tR(K\x03X\x01\x00\x00\x00|NNNK\x00K\x00K\x00tb\x89]h\x60\x85atb.",
    }
    for data in cycles.values():
        with pytest.raises(CorruptModelError, match="contains itself"):
            read(data)


def test_depth_is_bounded():
    for begin, end in ((b"]", b"a"), (b"(", b"t"), (b"(", b"l"), (b"}N", b"s")):
        assert read(begin * 50 + b"N" + end * 50 + b".") is not None
        with pytest.raises(CorruptModelError, match="nested"):
            read(begin * 20_000 + b"N" + end * 20_000 + b".")
    deep = b"\x80\x02" + b"cpandas\nDataFrame\n" * 20_000 + b")" + b"\x81\x85" * 20_000 + b"."
    with pytest.raises(CorruptModelError):
        read(deep)


def test_deep_values_that_are_never_finished():
    nested = b"\x80\x04" + b"]" + b"q\x00\x85q\x00" * 200_000  # left to be freed when the error comes
    with pytest.raises(CorruptModelError):
        read(nested)
    arrays = b"".join(
        array_pickle("O8", "|", (1,), [0])[2:-1].replace(b"K\x00a", b"j" + struct.pack("<I", i) + b"a")
        + b"r"
        + struct.pack("<I", i + 1)
        + b"0"
        for i in range(300, 2000)
    )
    with pytest.raises(CorruptModelError):
        read(b"\x80\x04Nr" + struct.pack("<I", 300) + b"0" + arrays + b"N.")


def test_copies_of_copies_are_bounded():
    laughs = b"]q\x00"
    for i in range(40):  # a list of ten of the one before
        laughs += b"0](" + (b"h" + bytes([i])) * 10 + b"eq" + bytes([i + 1])
    with pytest.raises(CorruptModelError, match="copies of itself"):
        read(laughs + b".")


def test_one_part_asked_for_again_and_again():
    letters = "x" * 1_000_000
    data = (
        b"\x80\x02" + pickle.dumps(letters, 2)[2:-1] + b"q\x010X\x06\x00\x00\x00latin1q\x020c_codecs\nencode\nq\x030]("
    )
    data += b"h\x03h\x01h\x02\x86R" * 2000 + b"e."
    tracemalloc.start()
    with pytest.raises(CorruptModelError, match="memory"):
        read(data)
    assert tracemalloc.get_traced_memory()[1] < 100 * len(data)
    tracemalloc.stop()


def test_no_warning_and_no_long_message():
    with pytest.raises(UnsafeModelError) as error:
        read(b"c" + b"m" * 100_000 + b"\n\x1b[31m\x07\n.")
    assert len(str(error.value)) < 600 and str(error.value).isprintable()
    with pytest.raises(UnsafeModelError) as error:
        read(b"ca b\nc\n.")  # "a" and "b c", or "a b" and "c"
    assert "a.b.c" in str(error.value)


def test_a_hundred_thousand_opcodes_are_quick():
    data = pickle.dumps([[str(i), i] for i in range(15_000)], 2)
    assert sum(1 for _ in pickletools.genops(data)) > 100_000
    start = time.process_time()
    read(data)
    assert time.process_time() - start < 2  # 0.2 s, with room for a busy machine


def test_random_opcodes():
    """Programs of random opcodes with small arguments: a value or an error of ours, whatever they are."""
    rng = np.random.default_rng(0)
    names = [b"cnumpy\ndtype\n", b"cnumpy\nndarray\n", b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n"]
    names += [b"cnumpy.core.multiarray\n_reconstruct\n", b"cnumpy.core.multiarray\nscalar\n", b"cbuiltins\nslice\n"]
    names += [b"ctorch._utils\n_rebuild_tensor_v2\n", b"cnumpy._core.numeric\n_frombuffer\n", b"cbuiltins\nset\n"]
    names += [b"cpandas\nDataFrame\n", b"ccopyreg\n_reconstructor\n", b"cbuiltins\nobject\n", array_pickle()[2:-1]]
    pieces = [
        b"(",
        b"N",
        b"\x88",
        b"]",
        b"}",
        b")",
        b"K\x01",
        b"K\x00",
        b"X\x02\x00\x00\x00f8",
        b"C\x02ab",
        b"X\x01\x00\x00\x00C",
    ]
    pieces += [
        b"t",
        b"l",
        b"d",
        b"R",
        b"b",
        b"\x81",
        b"a",
        b"e",
        b"s",
        b"u",
        b"\x85",
        b"\x86",
        b"\x87",
        b"2",
        b"0",
        b"1",
    ]
    pieces += [b"q\x00", b"h\x00", b"q\x01", b"h\x01", b"\x94", b"\x8f", b"\x90", b"\x91", b"Q"]
    pieces += [b"G" + struct.pack(">d", math.nan), b"X\x01\x00\x00\x00<", *names, *names]
    n_read = 0
    for _ in range(3000):
        data = b"".join(pieces[i] for i in rng.integers(0, len(pieces), rng.integers(1, 25)))
        for end in (b".", b"\x85.", b"R."):
            try:
                read(data + end, lambda persistent_id: persistent_id)
            except ScdecodeError:
                continue
            n_read += 1
    assert n_read > 20
