"""What trajectory tools leave in an AnnData, read by name: synthetic cells, and the real ones where they are."""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scdecode.errors import InputError, PointsError
from scdecode.lineages import Lineage, read_lineages
from scdecode.path_inputs import by_lineage

DATA = Path(os.environ.get("SCDECODE_DATA") or Path(__file__).parents[2] / "shared" / "data")
N = 30
TIME = np.linspace(0, 1, N)
FATES = np.stack([TIME, 1 - TIME], axis=1)


@pytest.fixture
def cells():
    obs = pd.DataFrame({"type": pd.Categorical(["a", "b", "c"] * 10)}, index=[f"cell{i}" for i in range(N)])
    return ad.AnnData(np.zeros((N, 2), dtype=np.float32), obs=obs)


def written(adata, path):
    """As it is after writing and reading."""
    adata.write_h5ad(path / "cells.h5ad")
    return ad.io.read_h5ad(path / "cells.h5ad")


class NamedArray(np.ndarray):
    """As CellRank's Lineage: an array with names, which are lost when it is written."""

    names: np.ndarray

    def __array_finalize__(self, source):
        self.names = getattr(source, "names", None)


def named(array, names):
    view = array.view(NamedArray)
    view.names = np.array(names)
    return view


def test_palantir_with_a_frame(cells, tmp_path):
    cells.obs["palantir_pseudotime"] = TIME
    cells.obsm["palantir_fate_probabilities"] = pd.DataFrame(FATES, index=cells.obs_names, columns=["Ery", "Mono"])
    for adata in (cells, written(cells, tmp_path)):
        found = read_lineages(adata)
        assert list(found) == ["Ery", "Mono"]
        lineage = found["Mono"]
        assert isinstance(lineage, Lineage)
        np.testing.assert_array_equal(lineage.weight_n, 1 - TIME)
        np.testing.assert_array_equal(lineage.pseudotime_n[:-1], TIME[:-1])
        assert np.isnan(lineage.pseudotime_n[-1])  # its weight is zero
        assert lineage.pseudotime_n.dtype == lineage.weight_n.dtype == np.float64
        assert (lineage.name, lineage.time_name, lineage.source) == ("Mono", "palantir_pseudotime", "palantir")
    assert list(read_lineages(cells, lineages="Mono")) == ["Mono"]
    assert list(read_lineages(cells, lineages=["Mono", "Ery"])) == ["Mono", "Ery"]
    with pytest.raises(InputError, match=r"lineages: 'Mon' is not one of the 2 lineages.*did you mean 'Mono'"):
        read_lineages(cells, lineages=["Mon"])


def test_palantir_with_an_array(cells):
    cells.obs["palantir_pseudotime"] = TIME
    cells.obsm["palantir_fate_probabilities"] = FATES
    assert list(read_lineages(cells)) == ["lineage_1", "lineage_2"]
    cells.uns["palantir_fate_probabilities_columns"] = np.array(["Ery", "Mono"])
    assert list(read_lineages(cells)) == ["Ery", "Mono"]
    del cells.obsm["palantir_fate_probabilities"]
    assert read_lineages(cells)["all"].weight_n.sum() == N


@pytest.mark.parametrize(
    ("key", "column"),
    [("lineages_fwd", "term_states_fwd"), ("lineages_fwd", "terminal_states"), ("to_terminal_states", None)],
)
def test_cellrank_takes_the_time_of_others(cells, tmp_path, key, column):
    cells.obs["latent_time"] = TIME
    cells.obsm[key] = named(FATES, ["Alpha", "Beta"])
    assert list(read_lineages(cells)) == ["Alpha", "Beta"]
    cells.obsm[key] = FATES  # as written and read
    if column is None:
        cells.uns[f"{key}_names"] = np.array(["Alpha", "Beta"])
    else:
        cells.obs[column] = pd.Categorical([None] * 28 + ["Alpha", "Beta"], categories=["Alpha", "Beta"])
    found = read_lineages(written(cells, tmp_path))
    assert list(found) == ["Alpha", "Beta"]
    assert (found["Beta"].time_name, found["Beta"].source) == ("latent_time", "cellrank")
    np.testing.assert_array_equal(found["Alpha"].weight_n, TIME)
    cells.obs["dpt_pseudotime"] = TIME**2
    with pytest.raises(InputError, match=r"obs has \['latent_time', 'dpt_pseudotime'\]; .*pseudotime='latent_time'"):
        read_lineages(cells)
    chosen = read_lineages(cells, "cellrank", pseudotime="dpt_pseudotime")["Alpha"]
    np.testing.assert_array_equal(chosen.pseudotime_n[1:], TIME[1:] ** 2)


def test_cellrank_without_any_time(cells):
    cells.obsm["lineages_fwd"] = FATES
    with pytest.raises(InputError, match="name a column by pseudotime="):
        read_lineages(cells)


def test_dpt_leaves_infinity_where_it_did_not_reach(cells):
    cells.obs["dpt_pseudotime"] = np.where(np.arange(N) < 5, np.inf, TIME).astype(np.float32)
    lineage = read_lineages(cells)["all"]
    assert np.isnan(lineage.pseudotime_n[:5]).all() and (lineage.weight_n[:5] == 0).all()
    assert (lineage.weight_n[5:] == 1).all()
    np.testing.assert_allclose(lineage.pseudotime_n[5:], TIME[5:], rtol=1e-6)
    cells.obs["dpt_pseudotime"] = np.inf
    with pytest.raises(InputError, match="lineage 'all': no cell has both"):
        read_lineages(cells)


def test_scvelo_prefers_latent_time(cells):
    cells.obs["velocity_pseudotime"] = TIME
    assert read_lineages(cells)["all"].time_name == "velocity_pseudotime"
    cells.obs["latent_time"] = TIME
    assert read_lineages(cells)["all"].time_name == "latent_time"
    assert read_lineages(cells, "scvelo", pseudotime="velocity_pseudotime")["all"].time_name == "velocity_pseudotime"


def test_slingshot_columns_with_and_without_weights(cells):
    for number, column in enumerate(FATES.T, start=1):
        cells.obs[f"slingshot_pseudotime_{number}"] = TIME
        cells.obs[f"slingshot_weight_{number}"] = column
    found = read_lineages(cells)
    assert list(found) == ["lineage_1", "lineage_2"]
    np.testing.assert_array_equal(found["lineage_2"].weight_n, 1 - TIME)
    assert np.isnan(found["lineage_1"].pseudotime_n[0]) and found["lineage_1"].time_name == "slingshot_pseudotime_1"


def test_slingshot_as_r_names_it_has_nan_outside(cells):
    cells.obs["slingPseudotime_1"] = np.where(TIME < 0.5, TIME, np.nan)
    cells.obs["slingPseudotime_2"] = TIME * 10
    found = read_lineages(cells, "slingshot")
    np.testing.assert_array_equal(found["lineage_1"].weight_n, TIME < 0.5)
    assert found["lineage_2"].weight_n.sum() == N


@pytest.fixture
def connected(cells):
    """Four groups: a - b - c, and a - d, d - c weakly; d is not used by the way from a to c."""
    names = list("abcd")
    cells.obs["group"] = pd.Categorical(np.repeat(names, [10, 10, 5, 5]), categories=names)
    matrix = np.zeros((4, 4))
    for one, other, strength in [(0, 1, 0.9), (1, 2, 0.8), (0, 3, 0.1), (3, 2, 0.1)]:
        matrix[one, other] = matrix[other, one] = strength
    cells.uns["paga"] = {"connectivities": csr_matrix(matrix), "groups": "group"}
    cells.obs["dpt_pseudotime"] = TIME
    return cells


def test_paga_takes_the_best_connected_groups(connected):
    for lineages in ([("a", "c")], ("a", "c"), {"a to c": ("a", "c")}, {"a to c": ["a", "b", "c"]}):
        found = read_lineages(connected, "paga", lineages=lineages)
        assert list(found) == ["a to c"]
        np.testing.assert_array_equal(found["a to c"].weight_n, connected.obs["group"].isin(["a", "b", "c"]))
        assert np.isnan(found["a to c"].pseudotime_n[-5:]).all()
    two = read_lineages(connected, lineages={"long": ("a", "c"), "short": ("a", "d")})
    assert list(two) == ["long", "short"] and two["short"].weight_n.sum() == 15 and two["short"].source == "paga"


def test_paga_says_what_it_needs(connected):
    with pytest.raises(
        InputError, match=r"pairs \(first group, last group\) of obs\['group'\] .*\['a', 'b', 'c', 'd'\]"
    ):
        read_lineages(connected, "paga")
    with pytest.raises(InputError, match=r"lineages: 'e' is not one of the 4 groups of obs\['group'\]"):
        read_lineages(connected, "paga", lineages=[("a", "e")])
    connected.uns["paga"]["connectivities"] = csr_matrix((4, 4))
    with pytest.raises(InputError, match="does not connect 'a' and 'c'"):
        read_lineages(connected, "paga", lineages=[("a", "c")])
    connected.uns["paga"]["connectivities"] = csr_matrix((3, 3))
    with pytest.raises(InputError, match=r"connects 3 groups, obs.* has 4"):
        read_lineages(connected, "paga", lineages=[("a", "c")])
    connected.uns["paga"]["groups"] = "nothing"
    with pytest.raises(InputError, match="'nothing', which are no categorical column"):
        read_lineages(connected, "paga", lineages=[("a", "c")])
    del connected.uns["paga"]
    with pytest.raises(InputError, match=r"run sc\.tl\.paga"):
        read_lineages(connected, "paga", lineages=[("a", "c")])


def test_columns_of_ones_own(cells):
    cells.obs["age"] = np.arange(N)
    cells.obs["mine"] = TIME
    cells.obs["chosen"] = TIME > 0.5
    cells.obsm["fates"] = pd.DataFrame(FATES, index=cells.obs_names, columns=["x", "y"])
    cells.obsm["bare"] = csr_matrix(FATES)
    plain = read_lineages(cells, pseudotime="age")["all"]
    assert (plain.time_name, plain.source) == ("age", "columns") and (plain.pseudotime_n == np.arange(N)).all()
    np.testing.assert_array_equal(read_lineages(cells, pseudotime="age", weights="mine")["mine"].weight_n, TIME)
    np.testing.assert_array_equal(
        read_lineages(cells, pseudotime="age", weights="chosen")["chosen"].weight_n, TIME > 0.5
    )
    assert list(read_lineages(cells, pseudotime="age", weights="fates")) == ["x", "y"]
    assert list(read_lineages(cells, pseudotime="age", weights="bare", lineages="lineage_2")) == ["lineage_2"]
    by_type = read_lineages(cells, pseudotime="age", weights="type")
    assert list(by_type) == ["a", "b", "c"] and by_type["b"].weight_n.sum() == 10


def test_several_tools_are_a_choice(cells):
    cells.obs["dpt_pseudotime"] = TIME
    cells.obs["latent_time"] = TIME
    with pytest.raises(InputError, match=r"\['dpt', 'scvelo'\] are there; choose one: source='dpt' or source='scvelo'"):
        read_lineages(cells)
    assert read_lineages(cells, "dpt")["all"].source == "dpt"
    assert read_lineages(cells, pseudotime="dpt_pseudotime")["all"].source == "columns"


def test_nothing_is_there(cells):
    cells.obs["age"] = TIME
    cells.obsm["X_umap"] = FATES
    with pytest.raises(InputError, match=r"no pseudotime of .* Numeric columns of obs: \['age'\]; obsm: \['X_umap'\]"):
        read_lineages(cells)
    for source in ("palantir", "dpt", "scvelo", "slingshot", "cellrank"):
        with pytest.raises(InputError, match=r"Numeric columns of obs: \['age'\]; obsm: \['X_umap'\]"):
            read_lineages(cells, source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": "monocle"}, "source: 'monocle' is not one of the 7 sources"),
        ({"pseudotime": "agee"}, "pseudotime: 'agee' is not .*did you mean 'age'"),
        ({"pseudotime": "type"}, "holds category, numbers were expected"),
        ({"pseudotime": "age", "weights": "wrong"}, "weights: 'wrong' is not one of the"),
        ({"pseudotime": "age", "weights": "signed"}, "weights: 1 of 30 of lineage 'signed' are negative"),
        ({"pseudotime": "age", "weights": "none"}, "lineage 'none': no cell has both"),
        ({"pseudotime": "age", "weights": "cube"}, r"obsm\['cube'\] has shape \(30, 2, 2\)"),
        ({"source": "dpt", "weights": "age"}, "source='dpt' has its own"),
        ({"weights": "type"}, "pseudotime: none of .* is in obs"),
    ],
)
def test_what_cannot_be_read(cells, options, message):
    cells.obs["age"], cells.obs["signed"], cells.obs["none"] = TIME, np.r_[-1.0, np.ones(N - 1)], 0.0
    cells.obsm["cube"] = np.ones((N, 2, 2))
    with pytest.raises(InputError, match=message):
        read_lineages(cells, **options)


def test_repeated_names_and_other_objects(cells):
    cells.obs["palantir_pseudotime"] = TIME
    cells.obsm["palantir_fate_probabilities"] = FATES
    cells.uns["palantir_fate_probabilities_columns"] = np.array(["same", "same"])
    with pytest.raises(InputError, match=r"names .* repeat"):
        read_lineages(cells)
    with pytest.raises(InputError, match=r"adata: got DataFrame of shape .*, expected an AnnData"):
        read_lineages(cells.obs)


@pytest.mark.realdata
@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real cells in {DATA}; SCDECODE_DATA may name another folder")
def test_slingshot_of_real_cells():
    adata = ad.io.read_h5ad(DATA / "paul15_tradeseq240.h5ad")
    found = read_lineages(adata)
    assert list(found) == ["lineage_1", "lineage_2"]
    for number, lineage in enumerate(found.values(), start=1):
        np.testing.assert_array_equal(lineage.weight_n, adata.obs[f"slingshot_weight_{number}"])
        inside = lineage.weight_n > 0
        np.testing.assert_array_equal(lineage.pseudotime_n[inside], adata.obs[f"slingshot_pseudotime_{number}"][inside])
        assert np.isnan(lineage.pseudotime_n[~inside]).all()


# -- numbers of clusters, categories of numbers


WHOLE = np.tile([0, 1, 2], N // 3)


@pytest.mark.parametrize(
    "values",
    [
        WHOLE,
        WHOLE.astype(np.uint8),
        WHOLE.astype(float),
        np.where(np.arange(N) > 3, WHOLE, np.nan),
        pd.array(np.where(np.arange(N) > 3, WHOLE, None), dtype="Int64"),
        WHOLE.astype(object),
        WHOLE - 1,
        2 * (WHOLE % 2),
        np.ma.masked_array(WHOLE, mask=np.arange(N) < 2),
    ],
    ids=["int", "uint8", "float", "NaN", "Int64", "object", "-1", "0 and 2", "masked"],
)
def test_whole_numbers_may_be_clusters(cells, values):
    """Cluster 0 would be left out, and cluster 2 count twice: an error says how to say which is meant."""
    cells.obs["age"] = TIME
    cells.obs["leiden"] = np.ma.filled(values.astype(float), np.nan) if np.ma.isMaskedArray(values) else values
    message = "whole numbers up to [12], which may be the numbers of clusters or weights"
    if cells.obs["leiden"].max() > 1:
        with pytest.raises(InputError, match=message):
            read_lineages(cells, pseudotime="age", weights="leiden")
        for given in (values, cells.obs["leiden"], {"a": values}, cells.obs[["leiden"]]):
            with pytest.raises(InputError, match=message):
                by_lineage("weights", given)
        with pytest.raises(InputError, match=message):
            read_lineages(cells, pseudotime="age", weights=cells.obs["leiden"])
    named = cells.obs["leiden"].astype("category")
    cells.obs["leiden"] = named
    found = read_lineages(cells, pseudotime="age", weights="leiden")
    assert list(found) == [str(level) for level in named.cat.categories]
    for name, lineage in found.items():
        np.testing.assert_array_equal(lineage.weight_n, (named.astype(str) == name) & np.isfinite(TIME))


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("ordered", [False, True])
def test_clusters_by_number_are_names_where_they_are_categories(cells, tmp_path, text, ordered):
    cells.obs["age"] = TIME
    values = WHOLE * 5
    cells.obs["leiden"] = pd.Categorical(values.astype(str) if text else values, ordered=ordered)
    for adata in (cells, written(cells, tmp_path)):
        found = read_lineages(adata, pseudotime="age", weights="leiden")
        assert set(found) == {"0", "5", "10"}
        np.testing.assert_array_equal(found["0"].weight_n, WHOLE == 0)
        np.testing.assert_array_equal(found["10"].weight_n, WHOLE == 2)
        for given in (adata.obs["leiden"], adata.obs["leiden"].array, pd.CategoricalIndex(adata.obs["leiden"])):
            assert by_lineage("weights", given)["10"].tolist() == (WHOLE == 2).astype(float).tolist()
    cells.obs["plain"] = [str(x) for x in WHOLE]  # text in a column is a name, as scanpy has it
    assert list(read_lineages(cells, pseudotime="age", weights="plain")) == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("values", "weights"),
    [
        (TIME > 0.5, TIME > 0.5),
        ((TIME > 0.5).astype(int), TIME > 0.5),
        (np.ones(N) * 3, np.ones(N) * 3),
        (WHOLE / 2, WHOLE / 2),
        (WHOLE * 1.5, WHOLE * 1.5),
        (pd.Categorical(TIME > 0.5), TIME > 0.5),
        (pd.Categorical((TIME > 0.5).astype(str)), TIME > 0.5),
        (pd.Categorical(WHOLE / 4), WHOLE / 4),
        (pd.array(TIME > 0.5, dtype="boolean"), TIME > 0.5),
    ],
)
def test_masks_and_fractions_are_weights(cells, values, weights):
    cells.obs["age"], cells.obs["mine"] = TIME, values
    (lineage,) = read_lineages(cells, pseudotime="age", weights="mine").values()
    assert lineage.name == "mine"
    np.testing.assert_array_equal(lineage.weight_n, np.asarray(weights, dtype=float))


DAYS = np.repeat([1, 2, 10], N // 3)


@pytest.mark.parametrize(
    "values",
    [
        pd.Categorical(DAYS),
        pd.Categorical(DAYS.astype(float), ordered=True),
        pd.Categorical(DAYS.astype(str)),
        pd.Categorical(DAYS.astype(str), categories=["1", "2", "10", "99"], ordered=True),
        DAYS.astype(np.int8),
        DAYS.astype(object),
        pd.array(DAYS, dtype="Float64"),
    ],
)
def test_numeric_categories_are_pseudotimes(cells, tmp_path, values):
    cells.obs["day"] = values
    for adata in (cells, written(cells, tmp_path)) if isinstance(values, pd.Categorical) else (cells,):
        found = read_lineages(adata, pseudotime="day")["all"]
        np.testing.assert_array_equal(found.pseudotime_n, DAYS)  # and not the places of categories in their order
    np.testing.assert_array_equal(by_lineage("pseudotime", cells.obs["day"])[None], DAYS)
    np.testing.assert_array_equal(read_lineages(cells, pseudotime=cells.obs["day"])["all"].pseudotime_n, DAYS)


def test_stages_that_are_no_numbers(cells):
    cells.obs["stage"] = pd.Categorical(["E8", "E9", "E10"] * 10, ordered=True)
    with pytest.raises(InputError, match=r"obs\['stage'\] holds category, numbers were expected .*series\.cat\.codes"):
        read_lineages(cells, pseudotime="stage")
    with pytest.raises(PointsError, match=r"series\.cat\.codes"):
        by_lineage("pseudotime", cells.obs["stage"])
    cells.obs["known"] = pd.Categorical([1.0, None, 2.0] * 10)
    assert np.isnan(read_lineages(cells, pseudotime="known")["all"].pseudotime_n[1::3]).all()


# -- lineages that are wanted, and others


def test_only_the_lineages_that_are_wanted_must_have_cells(cells):
    cells.obs["palantir_pseudotime"] = TIME
    table = pd.DataFrame({"A": TIME, "B": 1 - TIME, "Unreached": 0.0, "odd": -1.0}, index=cells.obs_names)
    cells.obsm["palantir_fate_probabilities"] = table
    assert list(read_lineages(cells, lineages=["A", "B"])) == ["A", "B"]
    assert list(read_lineages(cells, lineages="B")) == ["B"]
    with pytest.raises(InputError, match=r"'Unreached': no cell has .* leave it out by lineages=\['A', 'B', 'odd'\]"):
        read_lineages(cells)
    with pytest.raises(InputError, match="lineage 'odd' are negative"):
        read_lineages(cells, lineages=["odd"])
    for source, options in (("auto", {"weights": table}), ("palantir", {})):
        found = read_lineages(cells, source, **options, pseudotime="palantir_pseudotime", lineages=("B", "A"))
        assert list(found) == ["B", "A"]
    with pytest.raises(InputError, match="lineages: got an empty list"):
        read_lineages(cells, lineages=[])
    with pytest.raises(InputError, match="groups, which are for PAGA"):
        read_lineages(cells, "palantir", lineages={"A": ("a", "b")})


def test_names_of_lineages_may_be_numbers_or_have_slashes(cells, tmp_path):
    cells.obs["palantir_pseudotime"] = TIME
    cells.obsm["palantir_fate_probabilities"] = pd.DataFrame(FATES, index=cells.obs_names, columns=[3, 7])
    assert list(read_lineages(cells, lineages=[7])) == ["7"]
    cells.obsm["palantir_fate_probabilities"].columns = ["CD4/CD8", "a b"]
    assert list(read_lineages(cells, lineages=["CD4/CD8"])) == ["CD4/CD8"]


def test_cellranks_lineage_keeps_its_names(cells):
    cells.obs["age"] = TIME
    fates = named(FATES, ["Ery", "Mono"])
    assert list(by_lineage("weights", fates)) == ["Ery", "Mono"]
    for given in (fates, fates[::-1].copy()):
        found = read_lineages(cells, pseudotime="age", weights=given)
        assert list(found) == ["Ery", "Mono"]
        np.testing.assert_array_equal(found["Mono"].weight_n, np.asarray(given)[:, 1])
    cells.obsm["fates"] = fates
    assert list(read_lineages(cells, pseudotime="age", weights="fates", lineages=["Mono"])) == ["Mono"]
    with pytest.raises(InputError, match="names that differ"):
        by_lineage("weights", named(FATES, ["Ery", "Ery"]))


# -- fitted objects


class Curve:
    """As pcurvepy2's PrincipalCurve, of which pyslingshot has one for each lineage."""

    def __init__(self, pseudotimes_interp):
        self.pseudotimes_interp = pseudotimes_interp


class Slingshot:
    """As pyslingshot 0.2's, which needs numpy below 2 and cannot be installed beside this package's versions."""

    curves = None
    cell_weights = None

    def fit(self):
        self.curves = [Curve(TIME * 2), Curve(TIME * 3)]
        self.cell_weights = np.stack([TIME < 0.6, TIME > 0.4], axis=1).astype(float)


def test_a_fitted_slingshot(cells):
    slingshot = Slingshot()
    with pytest.raises(InputError, match=r"without curves; fit it first: slingshot\.fit\(\)"):
        read_lineages(cells, slingshot)
    slingshot.fit()
    found = read_lineages(cells, slingshot)
    assert list(found) == ["lineage_1", "lineage_2"]
    for i, lineage in enumerate(found.values()):
        np.testing.assert_array_equal(lineage.weight_n, slingshot.cell_weights[:, i])
        inside = lineage.weight_n > 0
        np.testing.assert_array_equal(lineage.pseudotime_n[inside], slingshot.curves[i].pseudotimes_interp[inside])
        assert np.isnan(lineage.pseudotime_n[~inside]).all()
        assert (lineage.time_name, lineage.source) == ("slingshot_pseudotime", "slingshot")
    assert list(read_lineages(cells, slingshot, lineages=["lineage_2"])) == ["lineage_2"]
    by_hand = read_lineages(
        cells, pseudotime=slingshot.curves[1].pseudotimes_interp, weights=slingshot.cell_weights[:, 1]
    )["all"]
    np.testing.assert_array_equal(by_hand.pseudotime_n, found["lineage_2"].pseudotime_n)
    with pytest.raises(InputError, match="which has its own"):
        read_lineages(cells, slingshot, weights="type")
    with pytest.raises(InputError, match=r"got shape \(30,\), one value a cell, \(20,\)"):
        read_lineages(cells[:20].copy(), slingshot)


def test_palantirs_result(cells):
    result = type("PResults", (), {})()
    result.pseudotime = pd.Series(TIME, cells.obs_names)
    result.branch_probs = pd.DataFrame(FATES, index=cells.obs_names, columns=["Ery", "Mono"])
    found = read_lineages(cells, result)
    assert list(found) == ["Ery", "Mono"]
    np.testing.assert_array_equal(found["Mono"].weight_n, 1 - TIME)
    result.pseudotime = result.pseudotime[::-1]
    with pytest.raises(InputError, match="another order"):
        read_lineages(cells, result)
    for other in (object(), 3, cells, FATES):
        with pytest.raises(InputError, match="source"):
            read_lineages(cells, other)
