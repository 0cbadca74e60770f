"""What torch.save writes, without torch.load: equal to it where honest, an error of ours where not."""

import contextlib
import io
import os
import pickle
import struct
import tracemalloc
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hostile import archive_of, by_pickle, hostile, lying_size, makers, overlapping, rezipped, tensor_pickle

from scdecode.errors import CorruptModelError, ScdecodeError, UnsafeModelError
from scdecode.formats.archives import read_archive, read_pickle_file

MODELS = Path(os.environ.get("SCDECODE_MODELS") or Path(__file__).parents[2] / "shared" / "models")
realdata = [
    pytest.mark.realdata,
    pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models in {MODELS}; SCDECODE_MODELS may name another folder"),
]
SIX = np.arange(6, dtype="<f4").tobytes()


def saved(path, value, legacy=False, **options):
    torch.save(value, path, _use_new_zipfile_serialization=not legacy, **options)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.pt"


def honest():
    base = torch.arange(24.0).reshape(4, 6)
    names = ("float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8")
    return {
        "weight": base,
        "view": base[1:3, ::2],
        "transposed": base.T,
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5),
        "truth": torch.tensor([True, False]),
        "dtypes": [torch.tensor([1, 2, 3]).to(getattr(torch, name)) for name in names],
        "other": (np.arange(3), "text", None, {"a": 1.5}),
        "shared": [base, base],
    }


def equal(ours, theirs):
    if isinstance(theirs, torch.Tensor):
        same = ours.dtype == theirs.dtype and ours.shape == theirs.shape and ours.stride() == theirs.stride()
        return same and ours.device.type == "cpu" and not ours.requires_grad and torch.equal(ours, theirs.detach())
    if isinstance(theirs, dict):
        return list(ours) == list(theirs) and all(equal(ours[key], theirs[key]) for key in theirs)
    if isinstance(theirs, list | tuple):
        return type(ours) is type(theirs) and all(map(equal, ours, theirs)) and len(ours) == len(theirs)
    return np.array_equal(ours, theirs) if isinstance(theirs, np.ndarray) else ours == theirs


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_torch_saved(path, legacy, protocol):
    value = honest()
    ours = read_archive(saved(path, value, legacy, pickle_protocol=protocol))
    assert equal(ours, value)
    assert ours["shared"][0].data_ptr() == ours["weight"].data_ptr()
    before = ours["weight"].clone()
    path.write_bytes(b"\0" * path.stat().st_size)  # the tensors are no pages of the file
    assert torch.equal(ours["weight"], before)


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict_of_a_module(path, legacy):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    value = module.state_dict()
    ours = read_archive(saved(path, value, legacy))
    assert equal(ours, dict(value))
    module.load_state_dict(ours)


def test_tensors_of_a_gpu_come_to_the_cpu(path):
    pickled = tensor_pickle().replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
    path.write_bytes(archive_of(pickled, [("0", SIX)]))
    assert read_archive(path).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_keys_and_top_folders_of_any_name(path):
    path.write_bytes(archive_of(tensor_pickle(key="140450467075536"), [("140450467075536", SIX)], top="my model"))
    assert read_archive(path).shape == (2, 3)


def test_storages_that_no_tensor_uses_are_not_read(path):
    data = bytearray(archive_of(tensor_pickle(), [("0", SIX), ("1", b"unused bytes")]))
    data[data.index(b"unused")] ^= 1  # its checksum is wrong, and nobody looks
    path.write_bytes(data)
    assert read_archive(path).shape == (2, 3)
    data[data.index(SIX) + 4] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptModelError, match="checksum"):
        read_archive(path)


@pytest.mark.parametrize("legacy", [False, True])
def test_memory_stays_near_the_size_of_the_file(path, legacy):
    saved(path, {str(i): torch.zeros(250_000) for i in range(8)}, legacy)
    tracemalloc.start()  # numpy's and Python's memory; torch's is the tensors alone
    read_archive(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.2 * path.stat().st_size if legacy else peak < 200_000


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "web page"),
        (b"<html>", "web page"),
        (b"\x89HDF\r\n\x1a\n", "HDF5"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"Not found\n", "text that begins with"),
        (b"\x00\x01\x02", "something that begins with"),
        (b"\x80\x02N.", "not one that torch.save wrote"),
        (b"\x80", "truncated"),
        (b"PK\x03\x04", "no whole zip archive"),
    ],
)
def test_files_of_another_kind_are_named(path, data, says):
    path.write_bytes(data)
    with pytest.raises(CorruptModelError, match=says) as error:
        read_archive(path)
    assert str(error.value).startswith(str(path))


def test_files_that_are_not_there(path):
    for read in (read_archive, read_pickle_file):
        for place in (path, path.parent):
            with pytest.raises(CorruptModelError, match="cannot be read"):
                read(place)


def test_pickle_files(path):
    path.write_bytes(pickle.dumps({"a": np.arange(3)}))
    assert read_pickle_file(path)["a"].tolist() == [0, 1, 2]
    path.write_bytes(pickle.dumps(["a"], 0))
    assert read_pickle_file(path) == ["a"]
    for data, says in (
        (b"", "an empty file"),
        (b"PK\x03\x04", "a zip archive"),
        (b"version https://git-lfs", "Git LFS"),
    ):
        path.write_bytes(data)
        with pytest.raises(CorruptModelError, match=says):
            read_pickle_file(path)


BAD = {
    "beyond its end": {"offset": 1},
    "too many": {"size": (3, 3)},
    "a stride too far": {"stride": (4, 1)},
    "a negative stride": {"stride": (-1, 1)},
    "a negative size": {"size": (-2, -3)},
    "a negative offset": {"offset": -1},
    "stride 0": {"size": (100, 100), "stride": (0, 0)},
    "huge": {"size": (2**62, 2**62), "stride": (0, 0)},
    "huge and empty": {"size": (2**62, 0), "stride": (1, 1)},
    "huge strides of nothing": {"size": (0, 2), "stride": (2**63 - 1, 2**63 - 1)},
    "sizes without strides": {"stride": (1,)},
    "40 axes": {"size": (1,) * 40, "stride": (1,) * 40},
    "2^63": {"offset": 2**63},
    "too large a storage": {"n": 7},
    "a negative storage": {"n": -6},
    "a storage of 2^60": {"n": 2**60},
    "of another type": {"kind": "DoubleStorage"},
    "no storage type": {"kind": "Size"},
    "a missing key": {"key": "1"},
    "a path": {"key": "../data.pkl"},
    "another entry": {"key": "0/../../data.pkl"},
    "no storage": {"word": "module"},
}


@pytest.mark.parametrize("name", BAD)
def test_tensors_that_do_not_lie_within_their_storage(path, name):
    path.write_bytes(archive_of(tensor_pickle(), [("0", SIX)]))
    assert read_archive(path).tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(archive_of(tensor_pickle(**BAD[name]), [("0", SIX)]))
    if name == "huge strides of nothing":
        assert read_archive(path).numel() == 0
    else:
        with pytest.raises(CorruptModelError):
            read_archive(path)
    legacy = tensor_pickle(**BAD[name])[:-1].replace(b"X\x03\x00\x00\x00cpu", b"X\x03\x00\x00\x00cpu")
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    for n in (6, 2**60, -1):
        path.write_bytes(head + legacy + b"." + pickle.dumps(["0"], 2) + struct.pack("<q", n) + SIX)
        if name == "huge strides of nothing" and n == 6:
            assert read_archive(path).numel() == 0
        else:
            with pytest.raises(CorruptModelError):
                read_archive(path)


def test_booleans_that_are_neither(path):
    path.write_bytes(archive_of(tensor_pickle(kind="BoolStorage"), [("0", b"\0\1\0\1\1\1")]))
    assert read_archive(path).dtype == torch.bool
    path.write_bytes(archive_of(tensor_pickle(kind="BoolStorage"), [("0", b"\0\1\2\1\1\1")]))
    with pytest.raises(CorruptModelError, match="booleans"):
        read_archive(path)


def test_archives_that_lie(path):
    good = archive_of(tensor_pickle(), [("0", SIX), ("1", SIX)])
    bomb = archive_of(b"]" * 10_000_000 + b".", compression=zipfile.ZIP_DEFLATED)
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = archive_of(tensor_pickle(), [("0", SIX), ("0", SIX)])
    lies = {
        "compressed": bomb,
        "there twice": twice,
        "within another": overlapping(good),
        "ends outside": lying_size(good, 10_000_000),
        "top folders": archive_of(tensor_pickle(), [("0", SIX)], extra=[("other/data.pkl", b"N.")]),
        "no data.pkl": archive_of(b"N.").replace(b"data.pkl", b"dada.pkl"),
        "TorchScript": archive_of(b"N.", extra=[("archive/constants.pkl", b"N.")]).replace(b"data.pkl", b"dada.pkl"),
        "little-endian": archive_of(b"N.", extra=[("archive/byteorder", b"big")]),
    }
    for says, data in lies.items():
        path.write_bytes(data)
        tracemalloc.start()
        with pytest.raises(CorruptModelError, match=says):
            read_archive(path)
        assert tracemalloc.get_traced_memory()[1] < len(data) + 500_000
        tracemalloc.stop()


@pytest.mark.parametrize("legacy", [False, True])
def test_truncated_at_any_length(path, legacy):
    data = saved(path, {"a": torch.arange(5.0), "b": torch.arange(3)}, legacy).read_bytes()
    for n in [*range(0, len(data), 13), len(data) - 1]:
        path.write_bytes(data[:n])
        with pytest.raises(CorruptModelError):
            read_archive(path)
    path.write_bytes(data + b"more")
    if legacy:
        with pytest.raises(CorruptModelError, match="follow"):
            read_archive(path)


def test_no_hostile_archive_runs(tmp_path, path):
    target = tmp_path / "ran"
    head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    for name, _, data in hostile(target):
        files = {
            "zip": archive_of(data),
            "legacy": head + data + pickle.dumps([], 2),
            "pickle": b"\x80\x02" + data,
        }
        for kind, contents in files.items():
            path.write_bytes(contents)
            with pytest.raises(UnsafeModelError) as error:
                read_pickle_file(path) if kind == "pickle" else read_archive(path)
            assert name.partition(" (")[0] in str(error.value)
            assert not target.exists()
    for _, protocol, data in by_pickle(target):
        path.write_bytes(data)
        with pytest.raises(UnsafeModelError):
            read_pickle_file(path)
        path.write_bytes(head + pickle.dumps("a", 2) + data if protocol else archive_of(data))
        with pytest.raises(UnsafeModelError):
            read_archive(path)
        assert not target.exists()


def test_hostile_parts_of_the_older_layout(tmp_path, path):
    target = tmp_path / "ran"
    parts = [pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, [1], [])]
    path.write_bytes(b"".join(parts))
    assert read_archive(path) == [1]
    program = b"\x80\x02" + makers(target)["posix.system"] + b"."
    for i in range(5):
        path.write_bytes(b"".join([*parts[:i], program, *parts[i + 1 :]]))
        with pytest.raises(UnsafeModelError, match=r"posix\.system"):
            read_archive(path)
        assert not target.exists()


def mutated(data, rng, pieces):
    """Bytes flipped, cut, put in or moved, once or a few times."""
    data = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        at, other = (int(i) for i in rng.integers(0, len(data), 2))
        match rng.integers(0, 12):
            case 0 | 7 | 8:
                data[at] ^= 1 << int(rng.integers(0, 8))
            case 1 | 9 | 10:
                data[at] = int(rng.integers(0, 256))
            case 2:
                del data[at : at + int(rng.integers(1, 20))]
            case 3:
                data[at:at] = pieces[int(rng.integers(0, len(pieces)))]
            case 4:
                data[at], data[other] = data[other], data[at]
            case 5:
                data[at : at + 8] = data[other : other + 8]
            case _:
                del data[at:]
        data = data or bytearray(b"N")
    return bytes(data)


OPCODES = b"(.0125FGIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x85\x88\x8a\x92\x93\x94\x95\x96\x97"
PIECES = [bytes([code]) for code in OPCODES]
PIECES += [b"\xff\xff\xff\x7f", b"\xff" * 8, b"cos\nsystem\n", b"\x8a\x09" + b"\x7f" * 9, b"q\x01", b"h\x01"]


def fuzz(path, data, read, n, rng, change):
    n_read = 0
    for _ in range(n):
        path.write_bytes(change(data, rng))
        with contextlib.suppress(ScdecodeError):
            read(path)
            n_read += 1
    return n_read


def pickles_changed(data, rng):
    """The archive whose pickle is mutated, with checksums that fit."""
    return rezipped(
        io.BytesIO(data), lambda name, entry: mutated(entry, rng, PIECES) if name.endswith("data.pkl") else entry
    )


def bytes_changed(data, rng):
    return mutated(data, rng, PIECES)


def test_mutated_files_give_values_or_errors_of_ours(path):
    rng = np.random.default_rng(0)
    value = {"a": torch.arange(5.0), "b": np.array(["x", "y"], dtype=object), "c": [1, {"d": (2.5, None)}]}
    for legacy in (False, True):
        data = saved(path, value, legacy).read_bytes()
        fuzz(path, data, read_archive, 500, rng, bytes_changed)
    data = saved(path, value).read_bytes()
    assert fuzz(path, data, read_archive, 700, rng, pickles_changed) > 10
    assert fuzz(path, pickle.dumps(value["c"]), read_pickle_file, 500, rng, bytes_changed) > 10


@pytest.mark.parametrize("file", sorted(MODELS.glob("*/*.p[tk]*")), ids=lambda file: f"{file.parent.name}-{file.name}")
class TestRealFiles:
    pytestmark = realdata

    def test_is_read(self, file):
        value = read_archive(file) if file.suffix == ".pt" else read_pickle_file(file)
        assert isinstance(value, dict)
        if file.name == "model.pt":
            assert set(value) == {"model_state_dict", "var_names", "attr_dict"}
            weights = value["model_state_dict"]
        elif file.name == "model_params.pt":
            weights = value
        else:
            assert value["is_trained_"] is True
            return
        tensors = {name: tensor for name, tensor in weights.items() if name != "pyro_param_store"}
        assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values())

    def test_mutated(self, file, path):
        rng = np.random.default_rng(1)
        data = file.read_bytes()
        if file.suffix == ".pkl":
            fuzz(path, data, read_pickle_file, 150, rng, bytes_changed)
        else:
            fuzz(path, data, read_archive, 40, rng, bytes_changed)
            with zipfile.ZipFile(file) as archive:
                info = next(info for info in archive.infolist() if info.filename.endswith("data.pkl"))
                pickled = archive.read(info)
            top = info.filename.partition("/")[0]  # without the storages, which are long: they are missing, then
            fuzz(path, pickled, read_archive, 60, rng, lambda d, r: archive_of(mutated(d, r, PIECES), top=top))
            fuzz(path, data, read_archive, 8, rng, pickles_changed)
