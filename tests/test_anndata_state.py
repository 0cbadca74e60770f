"""An AnnData that was changed in place after its model was made: an error, or the right values."""

import copy
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.errors import CountsError, InputError, ScdecodeError

ORDER = np.random.default_rng(0).permutation(60)


def made(form=sp.csr_matrix, **options):
    adata = make_adata(60, 12)
    adata.X = form(adata.X.toarray())
    adata.obs_names = [f"cell_{i}" for i in range(60)]
    return make_model(adata, setup=EVERYTHING, epochs=1, **options)


def path(model):
    z = model.reference_latents()
    return sd.Trajectory.from_points(np.linspace(z[0], z[1], 4), np.arange(4.0), spread=0.1)


METHODS = {
    "posterior": lambda model: model.posterior(),
    "latents": lambda model: model.get_latent_representation(),
    "latents of some": lambda model: model.get_latent_representation(indices=[1, 2]),
    "expression": lambda model: model.get_normalized_expression(),
    "parameters": lambda model: model.get_likelihood_parameters(),
    "elbo": lambda model: model.get_elbo(),
    "reconstruction": lambda model: model.get_reconstruction_error(),
    "likelihood": lambda model: model.get_marginal_ll(n_mc_samples=2),
    "correlation": lambda model: model.get_feature_correlation_matrix(n_samples=1),
    "library": lambda model: model.get_latent_library_size(give_mean=False),
    "train": lambda model: model.train(1, progress=False, device="cpu"),
    "refit": lambda model: sd.refit(model, path(model), pseudotime=np.linspace(0, 3, 60), n_bins=3),
}


def _reorder(adata):
    adata._inplace_subset_obs(ORDER)


def _cut(adata):
    adata._inplace_subset_obs(np.arange(50))


def _names_shuffled(adata):
    adata.obs_names = adata.obs_names[ORDER]


def _table_shuffled(adata):
    adata.obs = adata.obs.iloc[ORDER]


def _genes_reordered(adata):
    adata._inplace_subset_var(np.arange(12)[::-1])


def _genes_cut(adata):
    adata._inplace_subset_var(np.arange(8))


def _gene_names_shuffled(adata):
    adata.var_names = adata.var_names[::-1]


def _other_counts(adata):
    adata.X = adata.X[ORDER]


def _normalised(adata):
    adata.X = np.log1p(adata.X)


def _other_batches(adata):
    adata.obs["batch"] = adata.obs["batch"].to_numpy()[ORDER]


def _other_ages(adata):
    adata.obs["age"] = adata.obs["age"] + 1


CHANGES = {
    name.strip("_"): change
    for name, change in dict(globals()).items()
    if name.startswith("_") and callable(change) and getattr(change, "__module__", "") == __name__
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_method_works_on_an_anndata_that_was_changed(change):
    model = made()
    CHANGES[change](model.adata)
    for name, method in METHODS.items():
        with pytest.raises((InputError, CountsError), match=r"adata.*(pass the cells you mean as adata|than when)"):
            print(name, method(model))
    if change in ("reorder", "cut", "names_shuffled", "table_shuffled"):
        with pytest.raises(InputError, match=r"adata.obs_names: .* when the model was made"):
            print(model.train_indices)


@pytest.mark.parametrize("change", ["reorder", "cut", "genes_reordered", "table_shuffled"])
def test_the_cells_passed_by_name_are_right(change):
    """Read anew, each cell has its own value."""
    model = made()
    expected = pd.DataFrame(model.get_latent_representation(), index=model.adata.obs_names)
    rate = model.get_normalized_expression()
    CHANGES[change](model.adata)
    found = pd.DataFrame(model.get_latent_representation(model.adata), index=model.adata.obs_names)
    if change != "table_shuffled":  # the cells of another order of the table are other cells
        np.testing.assert_allclose(found, expected.loc[found.index], rtol=1e-4, atol=1e-5)
        again = model.get_normalized_expression(model.adata)
        assert set(again.columns) == set(rate.columns)


def test_what_changes_nothing_is_no_error():
    model = made()
    adata = model.adata
    latents, rate = model.get_latent_representation(), model.get_normalized_expression()

    def check():
        np.testing.assert_array_equal(model.get_latent_representation(), latents)
        np.testing.assert_array_equal(model.get_normalized_expression(), rate)

    adata.obs["batch"] = adata.obs["batch"].astype(object)
    check()
    adata.obs["batch"] = pd.Categorical(adata.obs["batch"], categories=["batch_3", "batch_1", "batch_2", "none"])
    check()
    adata.obs["age"] = adata.obs["age"].astype("Float64")
    check()
    adata.obs["cell_type"] = "predicted"  # the labels change nothing here
    check()
    adata.obs["more"] = 1
    adata.obsm["X_scVI"] = latents
    check()
    adata.X = adata.X.copy()
    check()
    assert model._cells.state.seen[0]() is adata.X
    adata.X = sp.csr_matrix(adata.X.toarray()[:, ::-1])[:, ::-1]  # the same, in another order of memory
    check()
    adata.obs_names = [f"renamed_{i}" for i in range(60)]
    check()
    assert list(model.posterior().names) == list(adata.obs_names)
    adata.var_names = [f"symbol_{i}" for i in range(12)]
    check()
    del adata.obs["batch"]
    check()
    adata.obs["batch"] = "batch_1"
    with pytest.raises(InputError, match=r"adata.obs\['batch'\]: got other values for \d+ of 60 cells"):
        model.get_latent_representation()


def test_labels_matter_for_training():
    model = made()
    model.adata.obs["cell_type"] = "predicted"
    with pytest.raises(InputError, match=r"adata.obs\['cell_type'\]: got other values"):
        model.train(1, progress=False, device="cpu")


@pytest.mark.parametrize("form", [sp.csr_matrix, sp.csc_matrix, np.asarray, sp.csr_array])
@pytest.mark.parametrize("layer", [None, "counts"])
def test_counts_of_any_form_may_be_the_same(form, layer):
    adata = make_adata(60, 12)
    counts = form(adata.X.toarray())
    if layer is None:
        adata.X = counts
    else:
        adata.layers["counts"], adata.X = counts, None
    sd.SCVI.setup_anndata(adata, layer=layer)
    model = sd.SCVI(adata, n_latent=2, n_hidden=8)
    model.train(1, progress=False, device="cpu")
    model.get_latent_representation()
    if layer is None:
        adata.X = form(sp.csr_matrix(counts).toarray() + 1)
    else:
        adata.layers["counts"] = form(sp.csr_matrix(counts).toarray() + 1)
    with pytest.raises(ScdecodeError, match="got other counts than when the model was made"):
        model.get_latent_representation()


def test_a_model_that_was_opened_with_its_cells(tmp_path):
    model = made()
    model.save(tmp_path / "model")
    adata = model.adata[:, ::-1].copy()
    again = sd.SCVI.load(tmp_path / "model", adata)
    expected = again.get_latent_representation()
    np.testing.assert_allclose(expected, model.get_latent_representation(), rtol=1e-4, atol=1e-5)
    adata.X = adata.X.copy()
    np.testing.assert_array_equal(again.get_latent_representation(), expected)
    adata._inplace_subset_obs(ORDER)
    with pytest.raises(InputError, match="are at another place than when the model was made"):
        again.get_latent_representation()


def test_copies_and_pickles():
    model = made()
    expected = model.get_latent_representation()
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(again.get_latent_representation(), expected)
        _reorder(again.adata)
        with pytest.raises(InputError):
            again.get_latent_representation()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(model.get_latent_representation(), expected)
