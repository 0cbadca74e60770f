"""What trajectory tools leave in an AnnData, read by name: synthetic cells, and the real ones where they are."""

import os
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csr_matrix

from scdecode.errors import InputError
from scdecode.lineages import Lineage, read_lineages

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
