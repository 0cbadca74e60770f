"""A part of a result makes that part again: the same genes, the same points, or an error."""

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp
from small_models import make_adata, make_model

import scdecode as sd
from scdecode.errors import InputError

PARTS = {
    "genes": (slice(None), ["gene_05", "gene_01"]),
    "a gene": (slice(None), ["gene_07"]),
    "genes in another order": (slice(None), [f"gene_{i:02d}" for i in reversed(range(1, 13))]),
    "points": ([4, 1], slice(None)),
    "a point": ([3], slice(None)),
    "points in another order": ([5, 4, 3, 2, 1, 0], slice(None)),
    "a point twice": ([2, 2, 0], slice(None)),
    "points and genes": ([5, 0, 2], ["gene_09", "gene_02"]),
}
FORMS = {
    "one": {"batch": "batch_2"},
    "averaged": {"quantity": "scale"},
    "per point": {
        "batch": np.array(["batch_1", "batch_2", "batch_3"] * 2),
        "library_size": np.geomspace(100, 12_345.678, 6),
    },
    "spread": {"batch": "batch_1", "spread": np.linspace(0.1, 0.5, 24).reshape(6, 4), "n_samples": 5},
}


@pytest.fixture(scope="module")
def model():
    return make_model(make_adata(100, 12), epochs=1)


@pytest.fixture(scope="module")
def z(model):
    return model.reference_latents()[:6]


def assert_again(model, part):
    again = model.decode(**sd.decode_arguments(part))
    assert list(again.var_names) == list(part.var_names)
    np.testing.assert_allclose(again.X, part.X, rtol=1e-5)
    for name in part.layers:
        np.testing.assert_allclose(again.layers[name], part.layers[name], rtol=1e-4, atol=1e-6)
    assert again.obs["batch"].astype(str).tolist() == part.obs["batch"].astype(str).tolist()
    np.testing.assert_array_equal(again.obsm["latent"], part.obsm["latent"])


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("form", FORMS)
def test_a_part_makes_itself_again(model, z, tmp_path, part, form):
    rows, genes = PARTS[part]
    chosen = model.decode(z, **FORMS[form])[rows][:, genes]
    assert_again(model, chosen)
    if chosen.obs_names.is_unique:
        chosen.copy().write_h5ad(tmp_path / "x.h5ad")
        assert_again(model, ad.io.read_h5ad(tmp_path / "x.h5ad"))


def test_a_part_of_genes_that_were_asked_for(model, z):
    result = model.decode(z, genes=["gene_05", "gene_01", "gene_09"])
    assert sd.decode_arguments(result)["genes"] == ["gene_05", "gene_01", "gene_09"]
    assert_again(model, result[:, ["gene_09", "gene_05"]])
    assert_again(model, result[::2, ::-1])
    renamed = result.copy()
    renamed.var_names = ["a", "b", "c"]
    with pytest.raises(InputError, match="genes: 'a' is not one of the 12 genes of the model"):
        model.decode(**sd.decode_arguments(renamed))


def test_parts_of_a_path(model, z):
    points = np.stack([np.linspace(z[0], z[1], 5), np.linspace(z[0], z[2], 5)])
    path = sd.Trajectory.from_points(points, lineages=["left", "right"], spread=0.2)
    result = model.decode(path, n_samples=4, batch="batch_1")
    again = model.decode(**sd.decode_arguments(result))
    assert again.obs["lineage"].tolist() == ["left"] * 5 + ["right"] * 5
    np.testing.assert_array_equal(again.X, result.X)
    left = result[result.obs["lineage"] == "left"]
    assert_again(model, left)
    np.testing.assert_array_equal(model.decode(**sd.decode_arguments(left)).obs["time"], left.obs["time"])
    assert_again(model, result[[9, 2, 4], ["gene_03"]])


def test_results_put_together(model, z):
    whole = model.decode(z, batch="batch_1")
    halves = [whole[:3], whole[3:]]
    with pytest.raises(InputError, match="uns_merge='same'"):
        sd.decode_arguments(ad.concat(halves))
    assert_again(model, ad.concat(halves, uns_merge="same"))
    assert_again(model, ad.concat(halves[::-1], uns_merge="same"))
    other = model.decode(z, batch="batch_2")
    other.obs_names = [f"other_{i}" for i in range(6)]
    mixed = ad.concat([whole[:3], other[:3]], uns_merge="first")
    with pytest.raises(InputError, match=r"3 of its 6 rows are not of the result that uns\['scdecode'\] tells of"):
        sd.decode_arguments(mixed)
    changed = whole.copy()
    changed.obsm["latent"] = changed.obsm["latent"] + 1
    with pytest.raises(InputError, match=r"6 of its 6 rows .* were changed"):
        sd.decode_arguments(changed)
    changed = whole.copy()
    del changed.obs["library_size"]
    with pytest.raises(InputError, match=r"adata.obs: \['library_size'\] are missing"):
        sd.decode_arguments(changed)
    with pytest.raises(InputError, match="0 of its 0 rows"):
        sd.decode_arguments(whole[:0])


def test_an_older_result_is_read_by_its_names(model, z):
    result = model.decode(z, batch="batch_1")
    for key in ("row_columns", "row_digests", "gene_order"):
        del result.uns["scdecode"][key]
    assert_again(model, result)
    assert_again(model, result[:, ["gene_04", "gene_02"]])
    with pytest.raises(InputError, match="it has 2 of the 6 points"):
        sd.decode_arguments(result[:2])


@pytest.mark.parametrize("n_samples", [None, 3])
def test_counts_are_drawn_again_as_a_whole(model, z, n_samples):
    result = model.decode(z, quantity="counts", n_samples=n_samples, seed=2)
    again = model.decode(**sd.decode_arguments(result))
    assert sp.issparse(again.X)
    assert (again.X != result.X).nnz == 0
    for some in (result[:2], result[::-1], result[result.obs_names != result.obs_names[-1]]):
        with pytest.raises(InputError, match="expected the whole result: call decode_arguments before choosing rows"):
            sd.decode_arguments(some)
    with pytest.warns(sd.ScdecodeWarning, match="counts of 2 genes chosen after they were drawn .* are other draws"):
        arguments = sd.decode_arguments(result[:, ["gene_05", "gene_01"]])
    assert list(model.decode(**arguments).var_names) == ["gene_05", "gene_01"]
