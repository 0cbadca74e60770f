"""Pickles that would do harm: most would make a file, were they run by an unpickler; and archives that lie."""

import io
import pickle
import struct
import zipfile


def text(word):
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def call(module, name, *args):
    """Opcodes that call a global with texts."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(map(text, args)) + b"tR"


def command(target):
    return call("posix", "system", f"touch {target}")


class Calls:
    """Pickles as a call."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def makers(target):
    """Programs as the opcodes of one value each, by the name that has to be in the error."""
    shell, python = f"touch {target}", f"open({str(target)!r}, 'w').close()"
    four, called = b"\x80\x04", b"(" + text(shell) + b"tR"
    getattr_system = b"cbuiltins\ngetattr\n(cos\n__dict__\n" + text("system") + b"tR(" + text(shell) + b"tR"
    return {
        "posix.system": command(target),
        "os.system": call("os", "system", shell),
        "nt.system": call("nt", "system", shell),
        "subprocess.Popen": call("subprocess", "Popen", shell),
        "builtins.eval": call("builtins", "eval", python),
        "builtins.exec": call("builtins", "exec", python),
        "__builtin__.eval": call("__builtin__", "eval", python),
        "builtins.open": call("builtins", "open", str(target), "w"),
        "builtins.getattr": getattr_system,
        "operator.attrgetter": call("operator", "attrgetter", "system"),
        "torch.load": call("torch", "load", str(target)),
        "torch.hub.load": call("torch.hub", "load", str(target)),
        "numpy.load": call("numpy", "load", str(target)),
        "pickle.loads": b"cpickle\nloads\n(C" + bytes([len(b"c.")]) + b"c.tR",
        "pandas.read_pickle": call("pandas", "read_pickle", str(target)),
        "pandas.core.frame.DataFrame.eval": four + text("pandas.core.frame") + text("DataFrame.eval") + b"\x93)R",
        "numpy.core.multiarray.scalar.x": four + text("numpy.core.multiarray") + text("scalar.x") + b"\x93)R",
        "posix.system (stack)": four + text("posix") + text("system") + b"\x93" + called,
        "posix.system (memo)": four + text("posix") + b"q\x010" + text("system") + b"q\x020h\x01h\x02\x93" + called,
        "posix.system (dup)": four + text("posix") + b"20" + text("system") + b"\x93" + called,
        "computed": four + call("_codecs", "encode", "posix", "latin1") + text("system") + b"\x93" + called,
        "posix.system (inst)": b"(" + text(shell) + b"iposix\nsystem\n",
        "OBJ": b"(cbuiltins\nlist\n" + text(shell) + b"o",
        "INST": b"(" + text(shell) + b"ipandas\nDataFrame\n",
        "EXT1": b"\x82\x07(" + text(shell) + b"tR",
        "EXT2": b"\x83\x07\x01(" + text(shell) + b"tR",
        "EXT4": b"\x84\x07\x01\x00\x00(" + text(shell) + b"tR",
        "NEWOBJ_EX": b"\x80\x04cpandas\nDataFrame\n)}\x92",
        "NEXT_BUFFER": b"\x80\x05\x97",
        "posix.system (newobj)": b"\x80\x02cposix\nsystem\n(" + text(shell) + b"t\x81",
        "posix.system (no call)": b"cposix\nsystem\n",
    }


# where a value may stand; the program takes the place of @
PLACES = {
    "alone": b"@",
    "in a list": b"](@e",
    "as a value": b"}X\x01\x00\x00\x00a@s",
    "as a key": b"}@K\x01s",
    "as a key of several": b"}(@K\x01u",
    "as a persistent id": b"@Q",
    "within a persistent id": b"(X\x07\x00\x00\x00storage@X\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x01tQ",
    "as an argument of a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(@K\x00))\x89}tR",
    "as the hooks of a tensor": b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89@tR",
    "in an array of objects": b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tX\x01\x00\x00\x00btR"
    b"(K\x01(K\x01tcnumpy\ndtype\n(X\x01\x00\x00\x00O\x89\x88tR(K\x03X\x01\x00\x00\x00|NNNK\x00K\x00K\x00tb\x89](@etb",
    "as a dtype": b"cnumpy\ndtype\n(@\x89\x88tR",
    "as a state": b"ccollections\nOrderedDict\n)R@b",
    "as the state of a table": b"\x80\x02cpandas.core.frame\nDataFrame\n)\x81@b",
    "as what a defaultdict makes": b"ccollections\ndefaultdict\n(@tR",
    "thrown away": b"@0N",
    "thrown away with a mark": b"(@1N",
    "after a damaged call": b"NNR@",
    "in a frame": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00@",
}


def hostile(target):
    """Whole pickles by the global that has to be named and where it stands."""
    programs = makers(target)
    yield from ((name, "alone", program + b".") for name, program in programs.items())
    for place, frame in PLACES.items():
        yield "posix.system", place, frame.replace(b"@", programs["posix.system"]) + b"."
        yield "builtins.getattr", place, frame.replace(b"@", programs["builtins.getattr"]) + b"."
    yield "posix.system", "after the end", b"N." + programs["posix.system"]
    yield "posix.system", "in a second pickle", b"\x80\x02N." + programs["posix.system"] + b"."


def by_pickle(target):
    """The same kind of thing as pickle itself writes it, in all protocols."""
    import os
    import subprocess

    calls = {
        "system": Calls(os.system, f"touch {target}"),
        "eval": Calls(eval, f"open({str(target)!r}, 'w')"),
        "run": [Calls(subprocess.check_output, ["touch", str(target)])],
        "nested": {"a": (1, Calls(getattr, Calls(__import__, "os"), "system"))},
    }
    for name, value in calls.items():
        for protocol in range(6):
            yield name, protocol, pickle.dumps(value, protocol)


def rezipped(path, change):
    """The bytes of a zip archive whose entries ``change(name, data)`` has changed, with right checksums."""
    out = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = change(info.filename, old.read(info))
            if data is not None:
                new.writestr(zipfile.ZipInfo(info.filename), data)
    return out.getvalue()


def archive_of(pickled, storages=(), top="archive", compression=zipfile.ZIP_STORED, extra=()):
    """A zip archive as torch.save writes it, around any pickle."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as file:
        file.writestr(f"{top}/data.pkl", pickled)
        for key, data in storages:
            file.writestr(f"{top}/data/{key}", data)
        for name, data in extra:
            file.writestr(name, data)
    return out.getvalue()


def tensor_pickle(offset=0, size=(2, 3), stride=(3, 1), n=6, kind="FloatStorage", key="0", word="storage"):
    """A pickle of one tensor whose parts are what the caller says."""

    def number(value):
        return b"I" + str(value).encode() + b"\n"

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    persistent = b"(" + text(word) + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(n) + b"tQ"
    rest = number(offset) + numbers(size) + numbers(stride) + b"I00\nccollections\nOrderedDict\n)RtR."
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + persistent + rest


def overlapping(archive):
    """The archive with the directory's first two entries at one place."""
    data = bytearray(archive)
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    return bytes(data)


def lying_size(archive, size):
    """The archive whose directory says of the last entry that it is of another size."""
    data = bytearray(archive)
    last = data.rindex(b"PK\x01\x02")
    data[last + 20 : last + 28] = struct.pack("<II", size, size)
    return bytes(data)
