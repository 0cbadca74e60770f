"""AnnData of every form to the same cells, and each thing that can be wrong with one."""

import dataclasses

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode._utils.rows import check_rows
from scdecode.cells import (
    SETUP_KEY,
    UNREAD,
    Cells,
    check_cells,
    check_unchanged,
    open_anndata,
    read_cells,
    read_training_cells,
    setup_of,
)
from scdecode.config import ModelConfig
from scdecode.errors import ConditionError, ConditionWarning, CountsError, InputError
from scdecode.schema import Columns

SETUP = EVERYTHING | {"size_factor_key": "size_factor"}


def training_cells(adata, **setup):
    sd.SCVI.setup_anndata(adata, **setup)
    return read_training_cells(adata)


def assert_same(one: Cells, other: Cells):
    assert isinstance(one.counts, sp.csr_matrix)
    assert isinstance(other.counts, sp.csr_matrix)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(one.counts, name), getattr(other.counts, name))
    for field in dataclasses.fields(Cells)[1:]:
        if field.name == "state":  # of the AnnData, which may hold the same cells in other ways
            continue
        mine, others = getattr(one, field.name), getattr(other, field.name)
        assert (mine is None) == (others is None), field.name
        if mine is not None:
            assert mine.dtype == others.dtype, field.name
            np.testing.assert_array_equal(mine, others)


def replaced(adata, **columns):
    """A copy with other columns of ``obs``; None takes one away."""
    adata = adata.copy()
    for key, values in columns.items():
        if values is None:
            del adata.obs[key]
        else:
            adata.obs[key] = values
    return adata


# -- the same cells from every form ------------------------------------------------------------------------------------

FORMS = {
    "csr": sp.csr_matrix,
    "csc": sp.csc_matrix,
    "dense": lambda x: x.toarray(),
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "float64": lambda x: x.astype(np.float64),
    "int64": lambda x: x.astype(np.int64),
    "dense uint16": lambda x: x.toarray().astype(np.uint16),
    "Fortran order": lambda x: np.asfortranarray(x.toarray()),
}


@pytest.fixture
def expected(adata):
    return training_cells(adata.copy(), **SETUP)


def test_what_is_read(adata, expected):
    schema, cells = expected
    np.testing.assert_array_equal(cells.counts.toarray(), adata.X.toarray())
    np.testing.assert_array_equal(cells.library_n, adata.X.toarray().sum(axis=1))
    columns = ("batch", "sex", "chem", "cell_type")
    categories = (schema.batch, *schema.categorical, schema.labels)
    for j, (key, category) in enumerate(zip(columns, categories, strict=True)):
        assert category.key == key
        assert [category.names[code] for code in cells.codes_nc[:, j]] == adata.obs[key].tolist()
    np.testing.assert_array_equal(cells.continuous_nd, adata.obs[["age", "pct"]].to_numpy(np.float32))
    np.testing.assert_array_equal(cells.size_factor_n, adata.obs["size_factor"].to_numpy(np.float32))
    assert schema.genes == tuple(adata.var_names)
    assert schema.n_cells == len(cells) == 300
    assert schema.median_library == np.median(cells.library_n)
    assert schema.median_size_factor == np.median(cells.size_factor_n)
    assert schema.max_size_factor == cells.size_factor_n.max()


@pytest.mark.parametrize("empty", [[], [0], [0, 1], [299], [298, 299], [7, 8, 200], range(300)])
def test_totals_with_empty_cells(adata, empty):
    x = adata.X.toarray()
    x[list(empty)] = 0
    adata.X = sp.csr_matrix(x)
    np.testing.assert_array_equal(training_cells(adata)[1].library_n, x.sum(axis=1))


def test_totals_are_added_up_in_double_precision(adata):
    x = np.ones((300, 40), dtype=np.float32)
    x[:, 0] = 2**25
    adata.X = x
    np.testing.assert_array_equal(training_cells(adata)[1].library_n, np.float32(2**25 + 39))


@pytest.mark.parametrize("place", ["X", "layer"])
@pytest.mark.parametrize("form", FORMS)
def test_forms_in_memory(adata, expected, form, place):
    counts = FORMS[form](adata.X)
    if place == "X":
        adata.X = counts
        schema, cells = training_cells(adata, **SETUP)
    else:
        adata.layers["counts"] = counts
        adata.X = np.full(adata.shape, np.nan, dtype=np.float32)  # nobody looks there
        schema, cells = training_cells(adata, layer="counts", **SETUP)
    assert_same(cells, expected[1])
    assert_same(read_cells(adata, schema, need_conditions=True), expected[1])


@pytest.mark.parametrize("place", ["X", "layer"])
@pytest.mark.parametrize("form", ["csr", "csc", "dense", "int64"])
def test_backed(adata, expected, tmp_path, form, place):
    setup = SETUP if place == "X" else SETUP | {"layer": "counts"}
    counts = FORMS[form](adata.X)
    if place == "X":
        adata.X = counts
    else:
        adata.layers["counts"] = counts
    adata.write_h5ad(tmp_path / "cells.h5ad")
    backed = ad.read_h5ad(tmp_path / "cells.h5ad", backed="r")
    schema, cells = training_cells(backed, **setup)
    assert_same(cells, expected[1])
    assert_same(read_cells(backed, schema, need_conditions=True), expected[1])
    some = np.array([5, 3, 250])
    part = backed[some]
    assert_same(read_cells(part, schema, need_conditions=True), expected[1].at(some))
    backed.file.close()


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_h5ad_and_zarr(adata, expected, tmp_path, form):
    adata.X = FORMS[form](adata.X)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata.write_zarr(tmp_path / "cells.zarr")
    for name in ("cells.h5ad", "cells.zarr"):
        opened = open_anndata(tmp_path / name)
        assert_same(training_cells(opened, **SETUP)[1], expected[1])


@pytest.mark.parametrize("form", ["csr", "dense"])
def test_a_matrix_that_stays_in_a_zarr_store(adata, expected, tmp_path, form):
    import zarr

    adata.X = FORMS[form](adata.X)
    adata.write_zarr(tmp_path / "cells.zarr")
    element = zarr.open_group(tmp_path / "cells.zarr", mode="r")["X"]
    adata.X = element if form == "dense" else ad.io.sparse_dataset(element)
    assert_same(training_cells(adata, **SETUP)[1], expected[1])


def test_dask(adata, expected):
    dask_array = pytest.importorskip("dask.array")
    adata.X = dask_array.from_array(adata.X.toarray(), chunks=(100, 40))
    assert_same(training_cells(adata, **SETUP)[1], expected[1])


def test_a_view(adata, expected):
    schema, cells = expected
    some = np.array([7, 0, 299])
    view = adata[some]
    assert_same(read_cells(view, schema, need_conditions=True), cells.at(some))
    assert view.is_view
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    schema, cells = read_training_cells(adata[adata.obs["batch"] == "batch_2"])
    assert schema.batch.names == ("batch_2",)
    assert set(cells.codes_nc[:, 0]) == {0}


def test_true_or_false_counts(adata):
    adata.X = adata.X.toarray() > 0
    cells = training_cells(adata)[1]
    assert cells.counts.dtype == np.float32
    assert cells.counts.sum() == (adata.X > 0).sum()


def test_nothing_of_the_users_is_changed(adata):
    data, indices, indptr = adata.X.data, adata.X.indices, adata.X.indptr
    for row in range(adata.n_obs):  # genes in another order within each row
        part = slice(indptr[row], indptr[row + 1])
        data[part], indices[part] = data[part][::-1].copy(), indices[part][::-1].copy()
    adata.X = sp.csr_matrix((data, indices, indptr), shape=adata.shape)
    assert not adata.X.has_sorted_indices
    before = adata.copy()
    schema, cells = training_cells(adata, **EVERYTHING)
    read_cells(adata, schema, need_conditions=True)
    reordered = adata[:, ::-1].copy()
    still = reordered.X.indices.copy()
    read_cells(reordered, schema, need_conditions=True)
    np.testing.assert_array_equal(reordered.X.indices, still)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(adata.X, name), getattr(before.X, name))
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)
    np.testing.assert_array_equal(cells.counts.toarray(), before.X.toarray())
    assert set(adata.uns) == set(before.uns) | {SETUP_KEY}


def test_csr_of_float32_is_not_copied(adata):
    schema, cells = training_cells(adata)
    assert np.shares_memory(cells.counts.data, adata.X.data)
    assert np.shares_memory(read_cells(adata, schema, need_conditions=True).counts.data, adata.X.data)


def test_counts_that_changed_in_place_are_noticed(adata):
    cells = training_cells(adata)[1]
    check_unchanged(cells)
    adata.X.data[:5] /= 2
    with pytest.raises(
        CountsError, match=r"the counts of 1 of 300 cells changed after the model was made.*layer='counts'"
    ):
        check_unchanged(cells)


# -- setup -------------------------------------------------------------------------------------------------------------


def test_setup_survives_files_copies_and_subsets(adata, tmp_path):
    adata.layers["counts"] = adata.X
    sd.SCVI.setup_anndata(adata, layer="counts", **SETUP)
    columns = Columns(
        layer="counts",
        batch_key="batch",
        labels_key="cell_type",
        size_factor_key="size_factor",
        categorical_covariate_keys=("sex", "chem"),
        continuous_covariate_keys=("age", "pct"),
    )
    adata.write_h5ad(tmp_path / "cells.h5ad")
    adata.write_zarr(tmp_path / "cells.zarr")
    for one in (
        adata,
        adata.copy(),
        adata[:10],
        adata[:10, :5].copy(),
        ad.read_h5ad(tmp_path / "cells.h5ad"),
        ad.read_h5ad(tmp_path / "cells.h5ad", backed="r"),
        ad.io.read_zarr(tmp_path / "cells.zarr"),
    ):
        assert setup_of(one) == columns


@pytest.mark.parametrize("keys", [[], ["sex"], ["sex", "chem"]])
def test_any_number_of_covariates_survives_a_file(adata, tmp_path, keys):
    sd.SCVI.setup_anndata(adata, categorical_covariate_keys=keys)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert setup_of(ad.read_h5ad(tmp_path / "cells.h5ad")) == Columns(categorical_covariate_keys=tuple(keys))


def test_a_second_setup_takes_the_place_of_the_first(adata):
    sd.SCVI.setup_anndata(adata, **SETUP)
    sd.SCVI.setup_anndata(adata, batch_key="chem")
    assert setup_of(adata) == Columns(batch_key="chem")


@pytest.mark.parametrize(
    ("setup", "message"),
    [
        (
            {"layer": "count"},
            r"layer: 'count' is not .* layers of the AnnData \['counts'\]; did you mean 'counts'",
        ),
        ({"batch_key": "Batch"}, r"batch_key: 'Batch' is not one of the 10 columns .*'sex'.*; did you mean 'batch'\?"),
        ({"labels_key": "celltype"}, r"labels_key: 'celltype' is not .*; did you mean 'cell_type'\?"),
        ({"size_factor_key": "x"}, "size_factor_key: 'x' is not one of"),
        ({"categorical_covariate_keys": ["sex", "x"]}, "categorical_covariate_keys: 'x' is not one of"),
        ({"continuous_covariate_keys": ["Age"]}, r"continuous_covariate_keys: 'Age' .*; did you mean 'age'\?"),
        ({"categorical_covariate_keys": "sex"}, r"a list of columns was expected: \['sex'\]"),
        ({"batch_key": ["batch"]}, r"batch_key: got \['batch'\] .*, expected the name of a column"),
        ({"batch_key": 0}, "batch_key: 0 is not one of"),
    ],
)
def test_names_that_are_not_there(adata, setup, message):
    adata.layers["counts"] = adata.X
    with pytest.raises(InputError, match=message):
        sd.SCVI.setup_anndata(adata, **setup)
    assert SETUP_KEY not in adata.uns


def test_no_anndata(model):
    for call in (sd.SCVI.setup_anndata, sd.SCVI, setup_of, model.get_latent_representation):
        with pytest.raises(InputError, match=r"adata: .*ndarray .*expected"):
            call(np.ones((3, 3)))


def test_no_setup(adata):
    with pytest.raises(InputError, match=r"it was not set up; call SCVI.setup_anndata\(adata, .* first"):
        sd.SCVI(adata)


@pytest.mark.parametrize("noted", [5, "batch", {"batchkey": "batch"}, ["batch"]])
def test_a_setup_that_somebody_else_wrote(adata, noted):
    adata.uns[SETUP_KEY] = noted
    with pytest.raises(InputError, match=r"adata.uns\['scdecode_setup'\]: .* came, which setup_anndata did not write"):
        sd.SCVI(adata)


def test_a_column_that_is_gone_since(adata):
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(InputError, match="batch_key: 'batch' is not one of the 9 columns"):
        sd.SCVI(replaced(adata, batch=None))


def test_two_columns_of_one_name(adata):
    adata.obs = pd.concat([adata.obs, adata.obs[["batch"]]], axis=1)
    with pytest.raises(InputError, match=r"batch_key: adata.obs has 2 columns 'batch'; remove all but one"):
        sd.SCVI.setup_anndata(adata, batch_key="batch")


# -- genes -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:(Variable|Observation) names are not unique:UserWarning")
@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_genes_in_another_order_and_more_of_them(adata, expected, form):
    schema, cells = expected
    adata.X = FORMS[form](adata.X)
    rng = np.random.default_rng(0)
    more = ad.AnnData(
        np.full((300, 7), -1.5), obs=adata.obs, var=pd.DataFrame(index=[f"other_{i // 2}" for i in range(7)])
    )
    both = ad.concat([more, adata], axis=1, merge="same")
    both = both[:, rng.permutation(47)].copy()
    assert not both.var_names.is_unique  # not the model's genes
    assert_same(read_cells(both, schema, need_conditions=True), cells)
    assert_same(
        read_cells(both, schema, need_conditions=True, indices=np.array([3, 3, 1])), cells.at(np.array([3, 3, 1]))
    )


def test_genes_that_are_missing(adata, expected):
    with pytest.raises(
        CountsError, match=r"2 of the model's 40 genes are missing \['gene_01', 'gene_04'\].*\['gene_02'"
    ):
        read_cells(adata[:, [1, 2, *range(4, 40)]], expected[0], need_conditions=True)
    adata.var_names = [f"ENSG{i}" for i in range(40)]
    with pytest.raises(CountsError, match=r"40 of the model's 40 genes .* 30 more\].*symbols or identifiers.*'ENSG0'"):
        read_cells(adata, expected[0], need_conditions=True)
    with pytest.raises(CountsError, match="40 of the model's 40 genes are missing"):
        read_cells(adata[:, []], expected[0], need_conditions=True)


@pytest.mark.filterwarnings("ignore:Variable names are not unique:UserWarning")
def test_genes_of_one_name(adata, expected):
    names = adata.var_names.tolist()
    adata.var_names = [names[1], *names[1:]]
    with pytest.raises(CountsError, match=r"1 genes are named more than once \['gene_02'\]; call adata.var_names_make"):
        training_cells(adata)
    doubled = ad.concat([adata, adata[:, :1]], axis=1, merge="same")
    doubled.var_names = [*names, names[0]]
    with pytest.raises(CountsError, match=r"1 genes are named more than once \['gene_01'\]"):
        read_cells(doubled, expected[0], need_conditions=True)


def test_too_few_cells_or_genes(adata):
    for few in (adata[:1], adata[:0], adata[:, :0]):
        with pytest.raises(CountsError, match="at least two cells and a gene were expected"):
            training_cells(few.copy())
    assert training_cells(adata[:2, :1].copy())[0].n_genes == 1


def test_no_counts_at_all(adata):
    empty = ad.AnnData(obs=adata.obs, var=adata.var, layers={"counts": adata.X})
    with pytest.raises(CountsError, match=r"adata.X: there is none; .*layer=...\); the layers are \['counts'\]"):
        training_cells(empty)


# -- values ------------------------------------------------------------------------------------------------------------


def with_value(adata, value, row=3):
    adata = adata.copy()
    x = adata.X.toarray()
    x[row, 1] = value
    adata.X = x
    return adata


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_values_that_are_never_counts(adata, expected, value):
    wrong = with_value(adata, value)
    with pytest.raises(CountsError, match=r"adata.X: .* in row 3\)"):
        training_cells(wrong)
    with pytest.raises(CountsError, match=r"adata.X: .* in row 3\)"):
        read_cells(wrong, expected[0], need_conditions=True)


def test_the_layer_is_named(adata):
    adata.layers["scaled"] = adata.X - 5 * (adata.X > 0).astype(np.float32)
    with pytest.raises(CountsError, match=r"adata.layers\['scaled'\]: .* negative"):
        training_cells(adata, layer="scaled")


def test_fractions_when_the_model_is_made_and_when_it_encodes(adata, model):
    wrong = with_value(adata, 0.5)
    sd.SCVI.setup_anndata(wrong, batch_key="batch")
    with pytest.raises(CountsError, match=r"not whole numbers \(the first: 0.5, in row 3\).*gene_likelihood='normal'"):
        sd.SCVI(wrong, gene_likelihood="nb")
    with pytest.raises(CountsError, match="not whole numbers"):
        model.get_latent_representation(wrong)
    normal = make_model(wrong, gene_likelihood="normal", epochs=1)
    assert np.isfinite(normal.get_latent_representation(wrong)).all()


def test_a_cell_without_counts_when_the_model_is_made(adata):
    x = adata.X.toarray()
    x[[3, 8]] = 0
    adata.X = x
    names = adata.obs_names[[3, 8]].tolist()
    message = r"2 of 300 cells have no counts in the model's genes \(rows \[3, 8\]\).*scanpy.pp.filter_cells"
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    with pytest.raises(CountsError, match=message) as error:
        sd.SCVI(adata)
    assert str(names) in str(error.value)


@pytest.mark.parametrize("options", [{"use_observed_lib_size": False}, {"setup": {"size_factor_key": "size_factor"}}])
def test_a_cell_without_counts_is_allowed_where_its_total_is_not_used(adata, options):
    x = adata.X.toarray()
    x[3] = 0
    adata.X = x
    model = make_model(adata, epochs=1, **options)
    assert np.isfinite(model.get_latent_representation(adata)).all()
    assert np.isfinite(model.history_table.to_numpy()).all()


def test_checks_for_each_likelihood(expected):
    cells = expected[1]
    check_cells(cells, ModelConfig())
    halves = dataclasses.replace(cells, counts=cells.counts * 0.5, library_n=np.zeros(300, np.float32))
    check_cells(halves, ModelConfig(gene_likelihood="normal", use_observed_lib_size=False))
    check_cells(halves, ModelConfig(gene_likelihood="normal", use_size_factor=True))
    with pytest.raises(CountsError, match="not whole"):
        check_cells(halves, ModelConfig(use_observed_lib_size=False))
    with pytest.raises(CountsError, match="no counts"):
        check_cells(halves, ModelConfig(gene_likelihood="normal"))


# -- conditions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (np.arange(300) % 2 == 0, ("False", "True")),
        (np.arange(300) % 12, tuple(str(i) for i in range(12))),  # in the order of numbers, not of text
        (np.array(["b", "a", "c"] * 100), ("a", "b", "c")),
        (pd.array(["b", "a", "c"] * 100, dtype="string"), ("a", "b", "c")),
        (pd.array([3, 1, 2] * 100, dtype="Int64"), ("1", "2", "3")),
        (pd.array([True, False, True] * 100, dtype="boolean"), ("False", "True")),
        (pd.Categorical(["b", "a", "c"] * 100, categories=["c", "b", "a"]), ("c", "b", "a")),
        (pd.Categorical(["b", "a", "c"] * 100, categories=["c", "unused", "b", "a"], ordered=True), ("c", "b", "a")),
        (pd.Categorical([20, 3, 1] * 100), ("1", "3", "20")),
        (pd.to_datetime(["2020-01-02", "2020-01-01"] * 150), ("2020-01-01 00:00:00", "2020-01-02 00:00:00")),
        (np.array([1.0, 2.5] * 150), ("1.0", "2.5")),
    ],
)
def test_categories_of_every_kind(adata, values, names):
    adata.obs["batch"] = values
    schema, cells = training_cells(adata, batch_key="batch")
    assert schema.batch.names == names
    assert [names[code] for code in cells.codes_nc[:, 0]] == [str(value) for value in adata.obs["batch"]]
    adata.obs["batch"] = [str(value) for value in adata.obs["batch"]]  # by name, whatever the type
    assert_same(read_cells(adata, schema, need_conditions=True), cells)


def test_levels_that_read_the_same(adata):
    adata.obs["batch"] = np.array([1, "1", "b"] * 100, dtype=object)
    with pytest.raises(ConditionError, match=r"adata.obs\['batch'\]: two of its levels have the same name as text"):
        training_cells(adata, batch_key="batch")


def test_values_that_are_no_names(adata):
    adata.obs["batch"] = pd.Series([[1, 2]] * 300, index=adata.obs_names)
    with pytest.raises(ConditionError, match=r"adata.obs\['batch'\]: its values are no names .* names were expected"):
        training_cells(adata, batch_key="batch")


def test_fewer_levels_than_in_training(adata, expected):
    schema, cells = expected
    rows = np.flatnonzero(adata.obs["batch"] == "batch_3")
    assert_same(read_cells(adata[rows].copy(), schema, need_conditions=True), cells.at(rows))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("batch", "batch1", r"\['batch1'\] came, not among the 3 levels .*'batch_1'.*; did you mean 'batch_1'\?"),
        ("sex", "other", r"\['other'\] came, not among the 2 levels of the training data \['female', 'male'\]"),
        ("cell_type", "Trunk", r"\['Trunk'\] came, .*to encode, the column is not needed: you may delete it"),
    ],
)
def test_a_level_that_the_model_does_not_know(adata, expected, column, value, message):
    strange = adata.obs[column].astype(str)
    strange.iloc[-1] = value
    with pytest.raises(ConditionError, match=rf"adata.obs\['{column}'\]: {message}"):
        read_cells(replaced(adata, **{column: strange}), expected[0], need_conditions=True)


def test_all_unknown_levels_are_listed(adata, expected):
    with pytest.raises(ConditionError, match=r"\['x', 'y'\] came"):
        read_cells(replaced(adata, batch=["x", "y"] * 150), expected[0], need_conditions=True)


@pytest.mark.parametrize("column", ["batch", "sex", "cell_type", "age", "size_factor"])
def test_values_that_are_missing(adata, expected, column):
    values = adata.obs[column].astype(object)
    values.iloc[[4, 9]] = None
    holes = replaced(adata, **{column: values})
    message = rf"adata.obs\['{column}'\]: 2 of 300 values are missing or infinite \(rows \[4, 9\]\); fill them in"
    with pytest.raises(ConditionError, match=message):
        training_cells(holes, **SETUP)
    with pytest.raises(ConditionError, match=message):
        read_cells(holes, expected[0], need_conditions=True)


def test_missing_levels_of_a_categorical(adata):
    adata.obs["batch"] = pd.Categorical.from_codes([0, -1, 1] * 100, ["a", "b"])
    with pytest.raises(ConditionError, match="100 of 300 values are missing"):
        training_cells(adata, batch_key="batch")


@pytest.mark.parametrize(
    "values",
    [
        np.arange(300),
        np.arange(300) % 2 == 0,
        pd.array(range(300), dtype="Int64"),
        pd.array(np.arange(300) / 7, dtype="Float64"),
        pd.Categorical(np.arange(300) % 5),
        np.arange(300).astype(object),
        (np.arange(300) / 8).astype(np.float16),
    ],
)
def test_numbers_of_every_kind(adata, values):
    adata.obs["age"] = values
    cells = training_cells(adata, continuous_covariate_keys=["age"])[1]
    assert cells.continuous_nd.dtype == np.float32
    np.testing.assert_array_equal(cells.continuous_nd[:, 0], np.asarray(values, dtype=np.float32))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["old"] * 300, "object came, numbers were expected; a covariate of names is a categorical one"),
        (pd.Categorical(["a", "b", "c"] * 100), "category came, numbers were expected"),
        (pd.to_datetime(["2020-01-01"] * 300), "datetime64.* came, numbers were expected"),
        (pd.to_timedelta(np.arange(300), unit="D"), "timedelta64.* came, numbers were expected"),
        (np.ones(300) * 1j, "complex128 came, numbers were expected"),
        ([1.0, np.inf, -np.inf] * 100, r"200 of 300 values are missing or infinite \(rows \[1, 2, 4, 5, 7, "),
        (pd.array([1, 2, None] * 100, dtype="Int64"), "100 of 300 values are missing"),
        ([1.0, 1e39, 1.0] * 100, "100 of 300 values are missing or infinite"),  # in single precision
    ],
)
@pytest.mark.parametrize("key", ["continuous_covariate_keys", "size_factor_key"])
def test_columns_that_are_no_numbers(adata, values, message, key):
    adata.obs["age"] = values
    with pytest.raises(ConditionError, match=rf"adata.obs\['age'\]: {message}"):
        training_cells(adata, **{key: ["age"] if key.endswith("keys") else "age"})


@pytest.mark.parametrize("value", [0, -1.5, 1e-60])
def test_a_size_factor_that_is_not_positive(adata, expected, value):
    adata.obs.loc[adata.obs_names[[5, 7]], "size_factor"] = value
    message = r"size_factor_key: 'size_factor' has 2 values of zero or below \(rows \[5, 7\]\); positive"
    with pytest.raises(ConditionError, match=message):
        training_cells(adata, size_factor_key="size_factor")
    with pytest.raises(ConditionError, match=message):
        read_cells(adata, expected[0], need_conditions=True)


@pytest.mark.parametrize(
    ("setup", "levels"),
    [
        ({"batch_key": "barcode"}, 300),
        ({"labels_key": "barcode"}, 300),
        ({"categorical_covariate_keys": ["barcode"]}, 300),
    ],
)
def test_a_level_for_each_cell_is_a_warning(adata, setup, levels):
    adata.obs["barcode"] = adata.obs_names.to_numpy()
    with pytest.warns(
        ConditionWarning, match=rf"adata.obs\['barcode'\]: it has {levels} levels for 300 cells; a column of"
    ):
        training_cells(adata, **setup)


def test_many_levels_of_several_cells_are_no_warning(adata):
    adata.obs["batch"] = np.arange(300) % 150
    assert training_cells(adata, batch_key="batch")[0].n_batches == 150
    few = adata[:6].copy()
    assert training_cells(few, batch_key="batch")[0].n_batches == 6  # a toy, not a mistake


# -- cells to encode ---------------------------------------------------------------------------------------------------


def test_columns_that_the_encoder_does_not_need(adata, expected):
    schema, cells = expected
    bare = ad.AnnData(adata.X, var=adata.var)
    read = read_cells(bare, schema, need_conditions=False)
    assert (read.codes_nc == UNREAD).all()
    assert np.isnan(read.continuous_nd).all()
    assert np.isnan(read.size_factor_n).all()
    assert read.continuous_nd.shape == (300, 2)
    np.testing.assert_array_equal(read.counts.toarray(), cells.counts.toarray())
    with pytest.raises(InputError, match=r"batch_key: 'batch' was given, but there are no columns of adata.obs"):
        read_cells(bare, schema, need_conditions=True)


@pytest.mark.parametrize("column", ["cell_type", "size_factor"])
def test_no_encoder_needs_labels_or_a_size_factor(adata, expected, column):
    assert len(read_cells(replaced(adata, **{column: None}), expected[0], need_conditions=True)) == 300


def test_a_label_that_is_also_the_batch_is_needed(adata):
    schema, _ = training_cells(adata, batch_key="batch", labels_key="batch")
    with pytest.raises(InputError, match="batch_key: 'batch' is not one of"):
        read_cells(replaced(adata, batch=None), schema, need_conditions=True)


def test_encoding_without_the_batch(adata, model):
    z_nk = model.get_latent_representation(adata)
    np.testing.assert_array_equal(model.get_latent_representation(replaced(adata, batch=None)), z_nk)


def test_encoding_without_the_conditions_that_the_encoder_looks_at(adata):
    model = make_model(adata, setup=EVERYTHING, encode_covariates=True, epochs=1)
    z_nk = model.get_latent_representation(adata)
    np.testing.assert_array_equal(model.get_latent_representation(replaced(adata, cell_type=None)), z_nk)
    for column in ("batch", "sex", "age"):
        with pytest.raises(InputError, match=f"'{column}' is not one of"):
            model.get_latent_representation(replaced(adata, **{column: None}))


def test_encoding_knows_the_genes_by_name(adata, model):
    z_nk = model.get_latent_representation(adata)
    shuffled = adata[:, np.random.default_rng(0).permutation(40)].copy()
    np.testing.assert_array_equal(model.get_latent_representation(shuffled), z_nk)


@pytest.mark.parametrize(
    ("rows", "positions"),
    [
        ([2, 0], [2, 0]),
        ([-1], [-1]),
        ([], []),
        (np.array([], dtype=np.int32), []),
        (range(3), [0, 1, 2]),
        (np.arange(5) == 3, [3]),
        (pd.Series([True, False, False, False, True]), [0, 4]),
        (np.array([4], dtype=np.uint8), [4]),
    ],
)
def test_positions_and_masks(rows, positions):
    assert check_rows(rows, 5).tolist() == positions


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([5], "indices: 5 came, but there are 5 cells: positions 0 to 4"),
        ([-6], "indices: -6 came"),
        ([0.5], "of float64 came; positions of cells, or a mask of 5 values, were expected"),
        (["a"], "positions of cells"),
        ([True, False], r"shape \(2,\) of bool came"),
        ([[0, 1]], r"shape \(1, 2\)"),
        (3, r"shape \(\)"),
        (slice(0, 2), r"shape \(\) of object"),
        ([None], "of object"),
    ],
)
def test_no_positions(rows, message):
    with pytest.raises(InputError, match=message):
        check_rows(rows, 5)


def test_some_of_the_cells(adata, expected, model):
    schema, cells = expected
    mask_n = np.arange(300) % 7 == 0
    assert_same(read_cells(adata, schema, need_conditions=True, indices=mask_n), cells.at(np.flatnonzero(mask_n)))
    assert_same(cells.at(mask_n), cells.at(np.flatnonzero(mask_n)))
    z_nk = model.get_latent_representation(adata)
    np.testing.assert_allclose(
        model.get_latent_representation(adata, indices=[5, 2]), z_nk[[5, 2]], rtol=1e-4, atol=1e-5
    )
    with pytest.raises(InputError, match="indices: 300 came"):
        model.get_latent_representation(adata, indices=[300])


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Element '/.*' was written without encoding metadata")
def test_files_that_are_no_anndata(adata, tmp_path):
    import h5py
    import zarr

    adata.write_h5ad(tmp_path / "whole.h5ad")
    whole = (tmp_path / "whole.h5ad").read_bytes()
    (tmp_path / "truncated.h5ad").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "begun.h5ad").write_bytes(whole[:50])
    (tmp_path / "empty.h5ad").touch()
    (tmp_path / "text.csv").write_text("a,b\n1,2\n")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file["x"] = [1, 2, 3]
    (tmp_path / "folder").mkdir()
    zarr.open_array(tmp_path / "array.zarr", mode="w", shape=(3,), dtype="f4")
    for path in tmp_path.iterdir():
        if path.name == "whole.h5ad":
            assert open_anndata(path).shape == adata.shape
        else:
            with pytest.raises(
                InputError, match=rf"{path.name}: it cannot be read as an AnnData \(.+\); expected an .h5ad file or"
            ):
                open_anndata(path)


def test_a_zarr_store_with_a_damaged_chunk(adata, tmp_path):
    adata.write_zarr(tmp_path / "cells.zarr")
    for path in (tmp_path / "cells.zarr").rglob("0"):
        if path.is_file():
            path.write_bytes(b"nonsense")
    with pytest.raises(InputError, match="it cannot be read as an AnnData"):
        open_anndata(tmp_path / "cells.zarr")


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"there is no such file; an .h5ad file or a .zarr store was expected"):
        open_anndata(tmp_path / "no.h5ad")


def test_the_simulation_is_fit_for_these_tests():
    adata = make_adata()
    assert adata.shape == (300, 40)
    assert adata.obs[["batch", "sex", "chem", "cell_type"]].nunique().tolist() == [3, 2, 3, 3]
    assert adata.obs[["age", "pct", "size_factor"]].notna().all(axis=None)


@pytest.mark.parametrize("keys", ["categorical_covariate_keys", "continuous_covariate_keys"])
def test_a_column_named_twice(adata, keys):
    column = "sex" if keys.startswith("categorical") else "age"
    with pytest.raises(InputError, match=rf"{keys}: \['{column}', '{column}'\] came, which names a column twice"):
        sd.SCVI.setup_anndata(adata, **{keys: [column, column]})
