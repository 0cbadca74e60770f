"""Public functions give the same numbers, whatever the program has told torch to do in general."""

from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.training import digest_of

STATES = ["autocast", "float64", "inference", "no_grad", "meta", "deterministic"]


@contextmanager
def state_of(name):
    """One of torch's ambient states."""
    if name == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
    elif name == "inference":
        with torch.inference_mode():
            yield
    elif name == "no_grad":
        before = torch.is_grad_enabled()
        torch.set_grad_enabled(False)
        try:
            yield
        finally:
            torch.set_grad_enabled(before)
    elif name == "meta":  # a device that has no numbers
        torch.set_default_device("meta")
        try:
            yield
        finally:
            torch.set_default_device(None)
    elif name == "float64":
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)
    else:
        torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)


class World:
    """A model, and what its functions are called with."""

    def __init__(self):
        self.adata = make_adata(120, 20)
        self.adata.obs["pseudotime"] = np.linspace(0, 1, 120)
        self.model = make_model(self.adata, setup=EVERYTHING, epochs=1, gene_likelihood="zinb")
        self.given = {
            "batch": "batch_1",
            "categorical": {"sex": "male", "chem": "v1"},
            "continuous": {"age": 50.0, "pct": 0.05},
        }
        self.z = self.model.reference_latents()[:7]
        self.path = sd.Trajectory.along_pseudotime(
            self.model.posterior(), self.adata.obs["pseudotime"], n_points=6, **self.given
        )
        self.genes = list(self.adata.var_names[:2])
        other = make_model(self.adata, setup=EVERYTHING, epochs=1, gene_likelihood="zinb", seed=1)
        self.ensemble = sd.Ensemble([self.model, other])
        self.decoder = self.model.decoder(**self.given)
        sd.SCANVI.setup_anndata(self.adata, labels_key="cell_type", unlabeled_category="none", batch_key="batch")
        self.scanvi = sd.SCANVI(self.adata, n_latent=4, n_hidden=16)
        self.scanvi.train(1, progress=False)
        sd.SCVI.setup_anndata(self.adata, **EVERYTHING)


@pytest.fixture(scope="module")
def world():
    return World()


def near(w):
    """The points of a straight path between two cells."""
    return sd.Trajectory.between(w.model, w.z[0], w.z[1], n_points=4, how="linear")


CALLS = {
    "posterior": lambda w: w.model.posterior().mean,
    "get_latent_representation": lambda w: w.model.get_latent_representation(give_mean=False),
    "decode": lambda w: w.model.decode(w.z),
    "decode scale": lambda w: w.model.decode(w.z, quantity="scale", **w.given),
    "decode counts": lambda w: w.model.decode(w.z, quantity="counts", n_samples=2),
    "decode a path": lambda w: w.model.decode(w.path),
    "decoder": lambda w: w.model.decoder(**w.given)(w.z),
    "an older decoder": lambda w: w.decoder(w.z),
    "module": lambda w: w.model.decoder(**w.given).module(),
    "distribution": lambda w: w.model.distribution(torch.from_numpy(w.z), **w.given),
    "distribution of averages": lambda w: w.model.distribution(torch.from_numpy(w.z)),
    "support": lambda w: w.model.support(w.z),
    "generate": lambda w: w.model.generate(9),
    "get_normalized_expression": lambda w: w.model.get_normalized_expression(n_samples=2),
    "get_likelihood_parameters": lambda w: w.model.get_likelihood_parameters(n_samples=2)["mean"],
    "posterior_predictive_sample": lambda w: w.model.posterior_predictive_sample(),
    "get_feature_correlation_matrix": lambda w: w.model.get_feature_correlation_matrix(n_samples=2),
    "get_elbo": lambda w: w.model.get_elbo(return_mean=False),
    "get_reconstruction_error": lambda w: w.model.get_reconstruction_error()["reconstruction_loss"],
    "get_marginal_ll": lambda w: w.model.get_marginal_ll(n_mc_samples=3, return_mean=False),
    "predict": lambda w: w.scanvi.predict(soft=True),
    "elbo with classes": lambda w: w.scanvi.get_elbo(),
    "along_pseudotime": lambda w: (
        sd.Trajectory.along_pseudotime(w.model.posterior(), w.adata.obs["pseudotime"], n_points=5).points
    ),
    "between on the graph": lambda w: sd.Trajectory.between(w.model, w.z[0], w.z[1], n_points=4, how="graph").points,
    "geodesic": lambda w: sd.geometry.geodesic(w.model, w.z[0], w.z[1], n_points=4, **w.given).points,
    "metric": lambda w: sd.geometry.metric(w.model, w.z, **w.given),
    "path_length": lambda w: sd.geometry.path_length(w.model, near(w), **w.given).length,
    "sensitivity": lambda w: sd.geometry.sensitivity(w.model, w.z, genes=w.genes, **w.given).mean,
    "attribution": lambda w: sd.geometry.attribution(w.model, near(w), **w.given).contributions,
    "move": lambda w: sd.geometry.move(w.model, w.z[0], {w.genes[0]: 0.3}, **w.given).points,
    "gene_dynamics": lambda w: sd.dynamics.gene_dynamics(w.model, w.path),
    "counterfactual": lambda w: (
        sd.counterfactual(w.model, w.path, {"a": {"batch": "batch_1"}, "b": {"batch": "batch_2"}}).difference
    ),
    "refit": lambda w: sd.refit(w.model, w.path, w.adata, pseudotime=w.adata.obs["pseudotime"]),
    "ensemble": lambda w: w.ensemble.decode([w.z, w.z]),
    "train": lambda w: np.frombuffer(digest_of(_trained(w).vae).encode(), np.uint8),
    "train by autograd": lambda w: _trained(w, encode_covariates=True).history_table["elbo_train"],
    "train a learned library": lambda w: _trained(w, use_observed_lib_size=False).decode(w.z * 0 + 0.1),
}


def _trained(w, **options):
    return make_model(w.adata, setup=EVERYTHING, epochs=2, **options)


def numbers_of(result):
    """The numbers of a result, as one array; what a result computes later is computed now, outside of the state."""
    if isinstance(result, torch.nn.Module):
        result = result(torch.linspace(-1, 1, 8).reshape(2, 4))
    if isinstance(result, torch.distributions.Distribution):
        result = result.mean
    for name in ("X", "table", "values"):
        if not isinstance(result, torch.Tensor | np.ndarray | pd.DataFrame | pd.Series) and hasattr(result, name):
            result = getattr(result, name)
    if hasattr(result, "todense"):
        result = result.todense()
    if isinstance(result, pd.DataFrame):
        result = result.select_dtypes("number").to_numpy(dtype=float)
    if isinstance(result, torch.Tensor):
        assert not result.is_inference()
        result = result.detach().numpy()
    return np.asarray(result, dtype=float) if not sparse.issparse(result) else result.toarray()


@pytest.fixture(scope="module")
def plain(world):
    """The numbers without any ambient state, computed once."""
    found = {}

    def get(name):
        if name not in found:
            found[name] = numbers_of(CALLS[name](world))
        return found[name]

    return get


@pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")
@pytest.mark.filterwarnings("ignore::scdecode.errors.ConvergenceWarning")
@pytest.mark.parametrize("name", CALLS)
def test_public_functions_do_not_depend_on_the_state_of_torch(world, plain, name):
    expected = plain(name)
    assert expected.size
    for state in STATES:
        with state_of(state):
            found = CALLS[name](world)
        np.testing.assert_array_equal(numbers_of(found), expected, err_msg=state)


@pytest.mark.parametrize("state", STATES)
def test_a_model_made_in_any_state_is_as_good_as_another(world, state, tmp_path):
    """It can be decoded, differentiated and trained further outside of the state."""
    world.model.save(tmp_path / "model")
    with state_of(state):
        trained = _trained(world)
        loaded = sd.load(tmp_path / "model", world.adata)
    again = _trained(world)
    np.testing.assert_array_equal(trained.decode(world.z).X, again.decode(world.z).X)
    np.testing.assert_array_equal(loaded.decode(world.z).X, world.model.decode(world.z).X)
    for model in (trained, loaded):
        z = torch.from_numpy(world.z).requires_grad_()
        model.distribution(z, **world.given).mean.log().sum().backward()
        assert torch.isfinite(z.grad).all()
    for model in (trained, again):
        model.train(1, progress=False)
    assert digest_of(trained.vae) == digest_of(again.vae)
    loaded.train(1, progress=False)


def test_a_distribution_follows_the_gradients_of_its_caller(world):
    z = torch.from_numpy(world.z).requires_grad_()
    assert world.model.distribution(z, **world.given).mean.requires_grad
    with torch.no_grad():
        assert not world.model.distribution(z, **world.given).mean.requires_grad
    with torch.inference_mode():
        assert not world.model.distribution(z, **world.given).mean.requires_grad


def test_the_state_of_a_program_is_seen_by_nobody_else(world):
    """While a call is isolated, what the program has set stays set: in other threads, too, and afterwards."""
    seen = []

    def look(n):
        seen.append((torch.get_default_dtype(), torch.tensor(1.5).dtype))

    with state_of("float64"), state_of("meta"), torch.autocast("cpu", dtype=torch.bfloat16):
        world.model.decode(world.z, on_tile=look)
        assert torch.get_default_dtype() is torch.float64
        assert torch.zeros(1).device.type == "meta"
        assert torch.is_autocast_enabled("cpu")
    assert seen == [(torch.float64, torch.float32)]
