"""Whatever holds counts to canonical CSR float32, without a change to what the caller holds."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import scdecode as sd
from scdecode import matrices
from scdecode.errors import CountsError
from scdecode.matrices import check_counts, check_no_empty_cells, to_csr

COUNTS = np.array([[0, 3, 0, 1], [2, 0, 0, 0], [0, 0, 0, 0], [1, 1, 5, 200]])

FORMS = {
    "array": lambda x: x,
    "Fortran order": np.asfortranarray,
    "matrix": np.matrix,
    "masked": np.ma.masked_array,
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "coo_matrix": sp.coo_matrix,
    "lil_matrix": sp.lil_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "slice": lambda x: np.repeat(x, 2, axis=0)[::2],
    "table": pd.DataFrame,
    "nullable table": lambda x: pd.DataFrame(x).convert_dtypes(),
    "table of several types": lambda x: pd.DataFrame(x).astype({0: "Int16", 1: "float64", 2: "Float32"}),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.int32, np.uint16, np.uint8, np.int8])
def test_every_form_and_type(form, dtype):
    x = COUNTS.clip(max=100).astype(dtype)
    before = x.copy()
    given = FORMS[form](x)
    csr = to_csr(given, "adata.X")
    assert isinstance(csr, sp.csr_matrix)
    assert csr.dtype == np.float32
    assert csr.has_canonical_format
    assert (csr.data != 0).all()
    np.testing.assert_array_equal(csr.toarray(), before)
    np.testing.assert_array_equal(x, before)


def _with_zeros(x):
    """CSR whose every entry is stored, the zeros too, in no order within a row."""
    n, g = x.shape
    order = np.argsort(np.random.default_rng(0).random((n, g)), axis=1)
    return sp.csr_matrix((np.take_along_axis(x, order, 1).ravel(), order.ravel(), np.arange(0, n * g + 1, g)), x.shape)


def _with_duplicates(x):
    """COO whose counts are parts that add up, some of them to zero."""
    row, column = np.indices(x.shape).reshape(2, -1)
    part = x.ravel() // 2
    values = np.concatenate([x.ravel() - part, part, np.ones(x.size), -np.ones(x.size)]).astype(x.dtype)
    return sp.coo_matrix((values, (np.tile(row, 4), np.tile(column, 4))), x.shape)


STORED = {
    "zeros and no order": _with_zeros,
    "zeros, CSC": lambda x: sp.csc_matrix(_with_zeros(x)),
    "zeros, array": lambda x: sp.csr_array(_with_zeros(x)),
    "negative zeros": lambda x: _with_zeros(np.where(x == 0, -0.0, x)),
    "negative zeros, dense": lambda x: np.where(x == 0, -0.0, x),
    "duplicates": _with_duplicates,
    "duplicates, CSR": lambda x: _csr_with_duplicates(x),
    "zeros, float64": lambda x: _with_zeros(x.astype(np.float64)),
    "zeros, whole": lambda x: _with_zeros(x.astype(np.int64)),
    "zeros, 64 bit": lambda x: _wide(_with_zeros(x)),
    "nothing masked": lambda x: np.ma.masked_array(x, mask=np.zeros(x.shape, dtype=bool)),
}


def _csr_with_duplicates(x):
    coo = _with_duplicates(x)
    order = np.argsort(coo.row, kind="stable")
    indptr = np.concatenate([[0], np.cumsum(np.bincount(coo.row, minlength=len(x)))])
    return sp.csr_matrix((coo.data[order], coo.col[order], indptr), x.shape)


def _wide(csr):
    csr.indices, csr.indptr = csr.indices.astype(np.int64), csr.indptr.astype(np.int64)
    return csr


@pytest.mark.parametrize("stored", STORED)
def test_the_same_counts_are_the_same_arrays(stored):
    plain = to_csr(COUNTS.astype(np.float32), "x")
    given = STORED[stored](COUNTS.astype(np.float32))
    held = [a for a in (getattr(given, name, None) for name in ("data", "indices", "indptr")) if a is not None]
    before = [np.array(a) for a in held]
    csr = to_csr(given, "x")
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(csr, name), getattr(plain, name))
    assert not np.signbit(csr.data).any()
    for array, was in zip(held, before, strict=True):  # never the caller's own
        np.testing.assert_array_equal(array, was)


@pytest.mark.parametrize("place", ["X", "layer"])
@pytest.mark.parametrize("stored", ["zeros and no order", "duplicates, CSR"])
def test_the_same_counts_are_the_same_training(stored, place):
    """To the last bit: weights, latents and expression."""
    counts = np.random.default_rng(0).poisson(2.0, (60, 10)).astype(np.float32)
    models = []
    for matrix in (sp.csr_matrix(counts), STORED[stored](counts)):
        adata = ad.AnnData(matrix if place == "X" else sp.csr_matrix(counts.shape, dtype=np.float32))
        if place == "layer":
            adata.layers["counts"] = matrix
        sd.SCVI.setup_anndata(adata, layer=None if place == "X" else "counts")
        model = sd.SCVI(adata, n_latent=2, n_hidden=8)
        model.train(2, progress=False, device="cpu", batch_size=32)
        models.append(model)
    for name, weights in models[0].vae.state_dict().items():
        np.testing.assert_array_equal(models[1].vae.state_dict()[name], weights, err_msg=name)
    latents = [model.get_latent_representation() for model in models]
    np.testing.assert_array_equal(*latents)
    np.testing.assert_array_equal(models[0].get_latent_representation(models[1].adata), latents[0])


@pytest.mark.parametrize("kind", ["Int32", "Float64", "boolean"])
def test_a_missing_count_of_a_table_is_none(kind):
    table = pd.DataFrame({"a": pd.array([1, None, 0], dtype=kind), "b": pd.array([1, 1, 0], dtype=kind)})
    with pytest.raises(CountsError, match=r"x: 1 of its .* NaN or infinite .*row 1"):
        check_counts(to_csr(table, "x"), "x", whole=True)


@pytest.mark.parametrize("place", ["X", "layer"])
def test_masked_counts_are_refused(place):
    masked = np.ma.masked_array(np.full((8, 4), 3.0, dtype=np.float32), mask=np.arange(32).reshape(8, 4) % 5 == 0)
    with pytest.raises(CountsError, match=r"x: got a masked array, 7 of its 32 values masked; .*filled\(0\)"):
        to_csr(masked, "x")
    adata = ad.AnnData(masked if place == "X" else np.ones((8, 4), dtype=np.float32))
    if place == "layer":
        adata.layers["counts"] = masked
    held = adata.X if place == "X" else adata.layers["counts"]
    if not isinstance(held, np.ma.MaskedArray):
        pytest.skip("this anndata does not keep masks")
    sd.SCVI.setup_anndata(adata, layer=None if place == "X" else "counts")
    with pytest.raises(CountsError, match="got a masked array"):
        sd.SCVI(adata)


def test_half_precision_and_true_or_false():
    np.testing.assert_array_equal(to_csr(COUNTS.astype(np.float16), "x").toarray(), COUNTS)
    np.testing.assert_array_equal(to_csr(COUNTS > 0, "x").toarray(), COUNTS > 0)
    np.testing.assert_array_equal(to_csr(sp.csr_matrix(COUNTS > 0), "x").toarray(), COUNTS > 0)


def test_big_endian():
    np.testing.assert_array_equal(to_csr(COUNTS.astype(">f4"), "x").toarray(), COUNTS)


@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array])
def test_csr_of_float32_is_not_copied(kind):
    given = kind(COUNTS.astype(np.float32))
    csr = to_csr(given, "x")
    assert np.shares_memory(csr.data, given.data)
    assert np.shares_memory(csr.indices, given.indices)


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("kind", [sp.csr_matrix, sp.csr_array])
def test_duplicates_and_disorder_are_mended_in_a_copy(kind, dtype):
    data, indices, indptr = np.array([1, 2, 3, 4], dtype=dtype), np.array([2, 0, 2, 1]), np.array([0, 3, 4])
    given = kind((data, indices, indptr), shape=(2, 3))
    csr = to_csr(given, "x")
    np.testing.assert_array_equal(csr.toarray(), [[2, 0, 4], [0, 4, 0]])
    assert csr.has_canonical_format
    assert given.data.tolist() == [1, 2, 3, 4]
    assert given.indices.tolist() == [2, 0, 2, 1]
    assert given.indptr.tolist() == [0, 3, 4]


def test_duplicates_in_csc():
    given = sp.csc_matrix((np.ones(3), np.array([1, 1, 0]), np.array([0, 2, 3])), shape=(2, 2))
    np.testing.assert_array_equal(to_csr(given, "x").toarray(), [[0, 1], [2, 0]])
    assert given.data.tolist() == [1, 1, 1]


def test_no_rows_and_no_columns():
    assert to_csr(np.zeros((0, 3)), "x").shape == (0, 3)
    assert to_csr(np.zeros((3, 0)), "x").shape == (3, 0)
    assert to_csr(sp.csr_matrix((0, 3)), "x").shape == (0, 3)


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
@pytest.mark.parametrize("form", ["array", "csr_matrix", "csc_matrix"])
def test_matrices_on_disk(tmp_path, store, form):
    import h5py
    import zarr

    group = h5py.File(tmp_path / "x.h5", "w") if store == "h5ad" else zarr.open_group(tmp_path / "x.zarr", mode="w")
    with ad.settings.override(auto_shard_zarr_v3=False):
        ad.io.write_elem(group, "x", FORMS[form](COUNTS.astype(np.float64)))
    given = group["x"] if form == "array" else ad.io.sparse_dataset(group["x"])
    np.testing.assert_array_equal(to_csr(given, "x").toarray(), COUNTS)
    if store == "h5ad":
        group.close()


def test_a_matrix_that_is_yet_to_be_computed():
    class Lazy:  # as dask's, which is not installed here
        def compute(self):
            return sp.csc_matrix(COUNTS)

    np.testing.assert_array_equal(to_csr(Lazy(), "x").toarray(), COUNTS)


def test_a_dense_matrix_on_disk_is_read_in_blocks(tmp_path, monkeypatch):
    import zarr

    monkeypatch.setattr(matrices, "_BLOCK", 8)
    array = zarr.open_group(tmp_path / "x.zarr", mode="w").create_array("x", data=COUNTS.astype(np.float32))
    np.testing.assert_array_equal(to_csr(array, "x").toarray(), COUNTS)
    np.testing.assert_array_equal(to_csr(COUNTS, "x").toarray(), COUNTS)
    monkeypatch.setattr(matrices, "_BLOCK", 1)  # a row is longer than a block
    np.testing.assert_array_equal(to_csr(COUNTS, "x").toarray(), COUNTS)


@pytest.mark.parametrize(
    "given", [COUNTS[0], COUNTS[None], COUNTS.astype(object), COUNTS.astype(str), COUNTS * 1j, None, "x"]
)
def test_no_matrix_of_numbers(given):
    with pytest.raises(CountsError, match=r"adata.layers\['a'\]: shape .* came, a matrix of counts was expected"):
        to_csr(given, "adata.layers['a']")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"adata.X: 1 of its 7 non-zero values is NaN or infinite \(the first: nan, in row 3\)"),
        (np.inf, r"NaN or infinite \(the first: inf, in row 3\); counts were expected; remove those cells or genes"),
        (-np.inf, "NaN or infinite"),
        (-1, r"negative \(the first: -1, in row 3\), as after scaling .*setup_anndata\(adata, layer=...\)"),
        (0.5, r"not whole numbers \(the first: 0.5, in row 3\), as after normalising.*layer=.*numpy.rint.*'normal'"),
        (1e-3, "not whole numbers"),
    ],
)
def test_values_that_are_no_counts(value, message):
    x = COUNTS.astype(np.float32)
    x[3, 1] = value
    with pytest.raises(CountsError, match=message):
        check_counts(to_csr(x, "x"), "adata.X", whole=True)


def test_many_values_that_are_no_counts():
    with pytest.raises(
        CountsError, match=r"5 of its 7 non-zero values are not whole numbers \(the first: 1.5, in row 0\)"
    ):
        check_counts(to_csr(COUNTS / 2, "x"), "adata.X", whole=True)


def test_fractions_are_allowed_where_they_are_asked_for():
    check_counts(to_csr(COUNTS / 2, "x"), "x", whole=False)
    check_counts(to_csr(COUNTS, "x"), "x", whole=True)
    check_counts(to_csr(np.zeros((0, 3)), "x"), "x", whole=True)
    with pytest.raises(CountsError, match="negative"):
        check_counts(to_csr(-COUNTS / 2, "x"), "x", whole=False)


def test_the_row_of_the_first_wrong_value_after_empty_rows():
    x = np.zeros((5, 2))
    x[4, 0] = -1
    with pytest.raises(CountsError, match="in row 4"):
        check_counts(to_csr(x, "x"), "x", whole=True)


def test_cells_without_counts():
    check_no_empty_cells(np.array([1.0, 2.0]), "adata")
    with pytest.raises(
        CountsError, match=r"adata: 2 of 3 cells have no counts .*rows \[0, 2\].*scanpy.pp.filter_cells"
    ):
        check_no_empty_cells(np.array([0.0, 2.0, 0.0]), "adata")
