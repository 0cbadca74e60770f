"""Results in files: equal to those in memory, whole or absent, and of a size that memory does not feel."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr
from small_models import make_adata, make_model

from scdecode import results
from scdecode._utils import hdf5
from scdecode.errors import ConditionWarning, InputError, OutputError

KINDS = ("h5ad", "zarr")
SAID = {
    "plain": {"batch": "batch_1"},
    "average": {},
    "spread": {"spread": 0.2, "n_samples": 5, "seed": 3},
    "counts": {"quantity": "counts", "library_size": 60, "n_samples": 3},
    "genes": {"genes": ["gene_07", "gene_02"], "quantity": "scale"},
}


@pytest.fixture(scope="module")
def z(model):
    z = model.reference_latents()
    return z[np.argsort(np.abs(model.support(z) - 50), kind="stable")[:11]]


def read(path):
    return ad.io.read_h5ad(path) if path.suffix == ".h5ad" else ad.io.read_zarr(path)


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def assert_equal(found, expected):
    np.testing.assert_array_equal(dense(found.X), dense(expected.X))
    assert dense(found.X).dtype == dense(expected.X).dtype
    assert sp.issparse(found.X) == sp.issparse(expected.X)
    pd.testing.assert_frame_equal(found.obs, expected.obs, check_categorical=False)
    pd.testing.assert_frame_equal(found.var, expected.var)
    assert set(found.layers) == set(expected.layers)
    for name in expected.layers:
        np.testing.assert_array_equal(dense(found.layers[name]), expected.layers[name])
        assert found.layers[name].dtype == np.float32
    assert set(found.obsm) == set(expected.obsm)
    for name in expected.obsm:
        np.testing.assert_array_equal(found.obsm[name], expected.obsm[name])
    assert set(found.uns["scdecode"]) == set(expected.uns["scdecode"])
    for name, value in expected.uns["scdecode"].items():
        np.testing.assert_array_equal(found.uns["scdecode"][name], value)


def left_in(folder):
    """What lies in a folder, hidden or not."""
    return sorted(path.name for path in Path(folder).iterdir())


# -- what is written


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", SAID)
def test_files_equal_memory(model, z, tmp_path, kind, said):
    out = tmp_path / "new folder" / f"x.{kind}"
    expected = model.decode(z, chunk_size=4, **SAID[said])
    opened = model.decode(z, chunk_size=4, out=out, **SAID[said])
    assert left_in(out.parent) == [out.name]
    assert_equal(read(out), expected)
    assert opened.shape == expected.shape
    np.testing.assert_array_equal(dense(opened.X[:]), dense(expected.X))
    np.testing.assert_array_equal(dense(opened.X[2:5]), dense(expected.X)[2:5])
    for name in expected.layers:
        np.testing.assert_array_equal(opened.layers[name][:], expected.layers[name])
    assert_equal(opened.to_memory(), expected)
    if kind == "h5ad":
        assert_equal(ad.io.read_h5ad(out, backed="r").to_memory(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_expression_is_read_from_the_file(model, z, tmp_path, kind):
    opened = model.decode(z, out=tmp_path / f"x.{kind}")
    assert not isinstance(opened.X, np.ndarray)
    few = opened[[3, 1], ["gene_05", "gene_03"]].to_memory()
    np.testing.assert_array_equal(few.X, model.decode(z).X[[3, 1]][:, [4, 2]])
    counts = model.decode(z, quantity="counts", out=tmp_path / f"y.{kind}")
    assert not isinstance(counts.X, np.ndarray)
    assert not sp.issparse(counts.X)


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_sparse_on_disk(model, z, tmp_path, kind):
    out = tmp_path / f"x.{kind}"
    model.decode(z, quantity="counts", library_size=30, out=out, chunk_size=2)
    counts = read(out).X
    assert counts.format == "csr"
    assert counts.dtype == np.int32
    assert counts.nnz == (counts.toarray() != 0).sum() < 0.6 * counts.shape[0] * counts.shape[1]
    assert counts.has_canonical_format


@pytest.mark.parametrize("kind", KINDS)
def test_a_tile_without_a_count(model, z, tmp_path, kind):
    """Library sizes of under one count: whole tiles are empty, the first of them too."""
    sizes = np.array([1e-6] * 4 + [3e3] * 2 + [1e-6] * 5)
    out = tmp_path / f"x.{kind}"
    expected = model.decode(z, quantity="counts", library_size=sizes, chunk_size=2)
    model.decode(z, quantity="counts", library_size=sizes, chunk_size=2, out=out)
    assert expected.X.nnz > 0
    assert (expected.X[:4] != 0).nnz == 0
    assert_equal(read(out), expected)
    with pytest.warns(ConditionWarning, match="logarithm"):
        model.decode(z, quantity="counts", library_size=1e-6, chunk_size=2, out=out, overwrite=True)
    assert read(out).X.nnz == 0


@pytest.mark.parametrize("kind", KINDS)
def test_more_rows_than_a_block_on_disk(model, z, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(results, "_FILE_BLOCK", 40 * 3)  # three rows
    out = tmp_path / f"x.{kind}"
    model.decode(z, out=out, chunk_size=4)
    assert_equal(read(out), model.decode(z, chunk_size=4))


@pytest.mark.parametrize("kind", KINDS)
def test_per_point_columns_and_names_survive(full_model, tmp_path, kind):
    z = full_model.reference_latents()
    z = z[np.argsort(np.abs(full_model.support(z) - 50), kind="stable")[:4]]
    names = pd.Index(["naïve/1", "a b", "c.d", "e"], name="cell")
    said = {
        "batch": np.array(["batch_1", "batch_2", "batch_3", "batch_1"]),
        "continuous": {"age": np.array([30, 40.5, 50, 60])},
        "library_size": [100, 200, 300, 400],
    }
    out = tmp_path / f"x.{kind}"
    expected = full_model.decode(pd.DataFrame(z, index=names), **said)
    full_model.decode(pd.DataFrame(z, index=names), out=out, **said)
    assert_equal(read(out), expected)
    assert list(read(out).obs_names) == list(names)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (1,), (2, 3), (2, 1, 3)])
def test_leading_axes(model, z, tmp_path, kind, shape):
    points = z[: int(np.prod(shape))].reshape(*shape, 4)
    out = tmp_path / f"x.{kind}"
    model.decode(points, out=out)
    found = read(out)
    assert tuple(found.uns["scdecode"]["shape"]) == shape
    axes = [f"axis_{i}" for i in range(len(shape))] if len(shape) > 1 else []
    assert [column for column in found.obs if column.startswith("axis_")] == axes
    if axes:
        index = tuple(found.obs[axis].to_numpy() for axis in axes)
        np.testing.assert_array_equal(points[index], found.obsm["latent"])
        np.testing.assert_array_equal(found.X.reshape(*shape, -1)[index], found.X)


def test_paths_may_be_text_or_relative(model, z, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model.decode(z, out="x.h5ad")
    model.decode(z, out=Path("deep/er/x.zarr"))
    assert left_in(tmp_path) == ["deep", "x.h5ad"]


@pytest.mark.parametrize("name", ["expression", "expression.csv", "expression.h5", "x.h5ad.gz"])
def test_another_ending(model, z, tmp_path, name):
    with pytest.raises(InputError, match=r"out: .* came, a name that ends in \.h5ad or \.zarr was expected"):
        model.decode(z, out=tmp_path / name)
    with pytest.raises(InputError, match=r"out: got '' .*, expected the path of a file"):
        model.decode(z, out="")
    assert left_in(tmp_path) == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_open_result_may_be_replaced(model, z, tmp_path, kind):
    """A notebook cell that is run again, with the result of the first time still open."""
    out = tmp_path / f"x.{kind}"
    first = model.decode(z, out=out)
    with pytest.raises(OutputError, match=rf"x.{kind}: it is there already; .*pass overwrite=True"):
        model.decode(z, out=out, library_size=500, on_tile=lambda n: pytest.fail("the work was in vain"))
    second = model.decode(z, out=out, library_size=500, overwrite=True)
    np.testing.assert_allclose(second.X[:].sum(axis=1), 500, rtol=1e-5)
    if kind == "h5ad":  # the first still has its file, which only has no name any more
        np.testing.assert_allclose(first.X[:].sum(axis=1), 1e4, rtol=1e-5)
    assert left_in(tmp_path) == [out.name]


# -- what goes wrong on the way


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("said", "error", "there"),
    [
        ("plain", Stop, True),
        ("counts", KeyboardInterrupt, True),
        ("spread", MemoryError, True),
        ("plain", KeyboardInterrupt, False),
        ("counts", Stop, False),
    ],
)
def test_broken_off(model, z, tmp_path, kind, said, error, there):
    out = tmp_path / f"x.{kind}"
    if there:
        model.decode(z, out=out, library_size=123)
    done = []

    def stop(n):
        done.append(n)
        if len(done) == 2:
            raise error

    with pytest.raises(error):
        model.decode(z, chunk_size=3, out=out, overwrite=True, on_tile=stop, **SAID[said])
    assert done == [3, 3]
    assert left_in(tmp_path) == ([out.name] if there else [])
    if there:
        assert read(out).obs["library_size"].tolist() == [123] * 11


class SmallDisk:
    """A file on a disk that fills up when told to, half way through a write."""

    full = False

    def __init__(self, *arguments, **options):
        self.file = open(*arguments, **options)  # noqa: SIM115  (hdf5.py closes it)

    def write(self, data):
        if SmallDisk.full:
            self.file.write(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __getattr__(self, name):
        return getattr(self.file, name)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("said", ["plain", "counts", "spread"])
def test_full_disk(model, z, tmp_path, kind, said, monkeypatch):
    out = tmp_path / f"x.{kind}"
    model.decode(z, out=out, library_size=123)
    monkeypatch.setattr(results, "_FILE_BLOCK", 40 * 3)
    monkeypatch.setattr(hdf5, "open", SmallDisk, raising=False)
    monkeypatch.setattr(SmallDisk, "full", False)
    done = []

    def no_room(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def fill(n):
        done.append(n)
        if kind == "h5ad":
            SmallDisk.full = True
        else:
            monkeypatch.setattr(zarr.storage.LocalStore, "set", no_room)

    with pytest.raises(OutputError, match=rf"x\.{kind}: the disk is full; nothing was changed; make room") as caught:
        model.decode(z, chunk_size=4, out=out, overwrite=True, on_tile=fill, **SAID[said])
    assert isinstance(caught.value, OSError)

    monkeypatch.undo()
    assert left_in(tmp_path) == [out.name]
    assert read(out).obs["library_size"].tolist() == [123] * 11


def test_interrupted_in_the_midst_of_a_write(model, z, tmp_path, monkeypatch):
    """Ctrl-C while HDF5 writes: it must not see it, and we must."""

    class Interrupted(SmallDisk):
        def write(self, data):
            if len(data) > 400:
                raise KeyboardInterrupt
            return self.file.write(data)

    monkeypatch.setattr(hdf5, "open", Interrupted, raising=False)
    with pytest.raises(KeyboardInterrupt):
        model.decode(z, chunk_size=3, out=tmp_path / "x.h5ad")
    assert left_in(tmp_path) == []


FILE_SIZE_LIMIT = """
import os, resource, signal, sys, warnings
import numpy as np, scdecode as sd

folder = sys.argv[1]
sd.settings.verbosity = "warning"  # no progress on standard error, which is looked at
model = sd.load(f"{folder}/model")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that a write fails, as on a full disk, and kills no one
z = model.reference_latents()
z = z[np.argsort(np.abs(model.support(z) - 50))[:1]]
many = z + np.random.default_rng(0).normal(size=(2000, 4)) / 1000  # no two alike, which zarr would compress away
for limit, kinds, saids in (
    (4_000, ("h5ad", "zarr"), ({"quantity": "counts"},)),
    (200_000, ("h5ad",), ({}, {"quantity": "counts"}, {"spread": 0.1, "n_samples": 2})),
):
    for kind in kinds:
        for said in saids:
            out = f"{folder}/x.{kind}"
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            model.decode(z, out=out, overwrite=True, batch="batch_1")
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                model.decode(many, out=out, overwrite=True, batch="batch_1", chunk_size=300, **said)
            except sd.errors.OutputError as error:
                print(type(error).__name__, kind, "nothing was changed" in str(error))
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
            assert model.decode(z, out=out, overwrite=True, batch="batch_1").shape == (1, 40)
            print(sorted(name for name in os.listdir(folder) if name.endswith("h5ad")))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of the size of files")
def test_files_that_cannot_grow(model, tmp_path):
    """A real failure of a real write, which HDF5 does not survive: it brought the interpreter down at its end."""
    model.save(tmp_path / "model")
    done = run_python(FILE_SIZE_LIMIT, tmp_path)
    assert done.stderr == ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line for line in lines if line.startswith("OutputError")] == [
        "OutputError h5ad True",
        "OutputError zarr True",
        *["OutputError h5ad True"] * 3,
    ]
    assert {line for line in lines if line.startswith("[")} == {"['x.h5ad']"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_that_cannot_be_made(model, z, tmp_path, kind):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(OutputError, match="nothing was changed"):
        model.decode(z, out=tmp_path / "file" / f"x.{kind}")
    assert left_in(tmp_path) == ["file"]


@pytest.mark.skipif(hasattr(os, "geteuid") and os.geteuid() == 0, reason="root may write anywhere")
def test_an_unwritable_folder(model, z, tmp_path):
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="no permission"):
            model.decode(z, out=tmp_path / "x.h5ad")
    finally:
        tmp_path.chmod(0o700)


def test_a_bad_argument_touches_no_file(model, z, tmp_path):
    out = tmp_path / "x.h5ad"
    model.decode(z, out=out, library_size=123)
    for said in ({"batch": "batch_9"}, {"quantity": "rates"}, {"genes": ["x"]}, {"library_size": -1}):
        with pytest.raises(InputError):
            model.decode(z, out=out, overwrite=True, **said)
    assert left_in(tmp_path) == ["x.h5ad"]
    assert read(out).obs["library_size"].tolist() == [123] * 11


# -- memory


def run_python(script, folder):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-c", textwrap.dedent(script), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)


PEAKS = """
import json, resource, sys
import numpy as np, torch, scdecode as sd

torch.set_num_threads(1)
folder = sys.argv[1]
model = sd.load(f"{folder}/model")
z = model.reference_latents()

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

genes = list(model.schema.genes[:1000])
wanted = {
    "h5ad": (40_000, {"out": f"{folder}/x.h5ad"}),
    "zarr": (20_000, {"out": f"{folder}/x.zarr"}),
    "counts": (10_000, {"out": f"{folder}/y.h5ad", "quantity": "counts", "library_size": 1e4}),
    "spread": (15_000, {"out": f"{folder}/z.h5ad", "spread": 0.1, "n_samples": 2, "genes": genes}),
}
few, many = {}, {}
for peaks, share in ((few, 20), (many, 1)):
    for name, (n, said) in wanted.items():
        result = model.decode(np.resize(z, (n // share, 4)), batch="batch_1", overwrite=True, **said)
        assert result.X[-1:].sum() > 0
        peaks[name] = peak()
print(json.dumps([few, many]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no getrusage")
def test_peak_memory_does_not_grow_with_the_points(tmp_path):
    """40,000 points x 2,000 genes are 320 MB, and what else is written is of 100 MB or more."""
    model = make_model(make_adata(60, 2000), epochs=1, n_hidden=4)
    model.save(tmp_path / "model")
    done = run_python(PEAKS, tmp_path)
    assert done.returncode == 0, done.stderr
    few, many = json.loads(done.stdout)
    assert max(many.values()) - max(few.values()) < 100e6
    sizes = {name: (tmp_path / name).stat().st_size for name in ("x.h5ad", "y.h5ad", "z.h5ad")}
    assert min(sizes.values()) > 100e6
    assert sizes["x.h5ad"] > 320e6
