"""What goes wrong when people call a decoder by hand: the first table of the design, a test for each row.

Each is named after what they do; its docstring has what they get from ``module.generative(...)``, and what here.
"""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from small_models import make_adata, make_model

import scdecode as sd
from scdecode.errors import ConditionError, ConditionWarning, PointsError, SupportWarning


@pytest.fixture(scope="module")
def z(model):
    latents = model.reference_latents()
    return latents[np.argsort(np.abs(model.support(latents) - 50), kind="stable")[:6]]


def test_pass_numpy_latents(model, z):
    """There: ``'int' object is not callable``. Here numpy, torch, pandas, AnnData, lists and dask are all accepted."""

    class Dask:  # what of it is used
        def compute(self):
            return z

    names = [f"p{i}" for i in range(len(z))]
    expected = model.decode(z, batch="batch_1").X
    for points in (
        z,
        z.astype(np.float64),
        torch.tensor(z),
        torch.tensor(z, requires_grad=True),
        pd.DataFrame(z, index=names),
        ad.AnnData(obs=pd.DataFrame(index=names), obsm={"X_scVI": z}),
        z.tolist(),
        Dask(),
    ):
        np.testing.assert_array_equal(model.decode(points, batch="batch_1").X, expected)
    for nonsense in ("X_scVI", np.full((2, 4), np.nan), np.zeros((2, 5)), z + 1j):
        with pytest.raises(PointsError):
            model.decode(nonsense)


def test_pass_the_library_as_counts_where_its_log_is_wanted(model, z):
    """There: ``Inf``. Here it is always counts, and a value that looks like a log is a warning that says so."""
    expression = model.decode(z, library_size=10_000, batch="batch_1")
    assert np.isfinite(expression.X).all()
    np.testing.assert_allclose(expression.X.sum(axis=1), 10_000, rtol=1e-5)
    with pytest.warns(ConditionWarning, match=r"looks like the logarithm of a library size.* exponential, 10,000"):
        model.decode(z, library_size=np.log(10_000), batch="batch_1")
    for impossible in (0, -1, np.inf, np.nan):
        with pytest.raises(ConditionError, match="positive finite numbers"):
            model.decode(z, library_size=impossible)


def test_leave_out_the_batch_or_a_covariate(model, full_model, z):
    """There: ``cat not provided``, or silently batch 0. Here it is averaged over, and the result says so."""
    shares = make_adata().obs["batch"].value_counts(normalize=True)
    by_hand = sum(share * model.decode(z, batch=batch).X for batch, share in shares.items())
    expression = model.decode(z)
    np.testing.assert_allclose(expression.X, by_hand, rtol=1e-5)
    assert (expression.obs["batch"] == "average").all()
    assert not np.allclose(expression.X, model.decode(z, batch="batch_1").X, rtol=1e-3)  # batch 0 it is not
    point = full_model.reference_latents().mean(axis=0)
    partly = full_model.decode(point, batch="batch_2", categorical={"sex": "male"})
    assert partly.obs[["batch", "sex", "chem"]].iloc[0].tolist() == ["batch_2", "male", "average"]
    assert partly.uns["scdecode"]["conditions_covered"] == 1


def test_give_integer_codes_for_the_wrong_batch(model, z):
    """There: silently wrong. Here categories go by name, and an unknown one is an error that lists the known ones."""
    for code in (0, 1, np.int64(2), np.zeros(6, dtype=int), torch.zeros(6, dtype=torch.long), [0, 1]):
        with pytest.raises(ConditionError, match=r"batch: .* is not one of the 3 .*'batch_1', 'batch_2', 'batch_3'"):
            model.decode(z, batch=code)
    with pytest.raises(ConditionError, match="did you mean 'batch_1'"):
        model.decode(z, batch="batch1")
    named = make_adata(120, 12)
    named.obs["batch"] = named.obs["batch"].map({"batch_1": 7, "batch_2": 5, "batch_3": 11}).astype(int)
    numbered = make_model(named, epochs=1)
    point = numbered.reference_latents().mean(axis=0)
    assert numbered.decode(point, batch=7).obs["batch"].tolist() == ["7"]  # a batch named 7 is no code 7
    with pytest.raises(ConditionError, match=r"batch: 0 is not one of the 3 .*'5', '7', '11'"):
        numbered.decode(point, batch=0)


def test_confuse_px_scale_px_rate_and_the_mean(full_model):
    """There: off by the library, or by the zero inflation. Here they are quantities with names and units."""
    point = full_model.reference_latents().mean(axis=0)
    said = {"library_size": 2000, "batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}}
    decoded = {q: full_model.decode(point, quantity=q, **said) for q in ("scale", "rate", "mean", "counts")}
    np.testing.assert_allclose(decoded["scale"].X.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(decoded["rate"].X.sum(), 2000, rtol=1e-5)
    np.testing.assert_allclose(decoded["rate"].X, 2000 * decoded["scale"].X, rtol=1e-5)
    assert (decoded["mean"].X < decoded["rate"].X).all()
    assert decoded["counts"].X.dtype == np.int32
    units = {q: expression.uns["scdecode"]["unit"] for q, expression in decoded.items()}
    assert len(set(units.values())) == 4
    assert "fraction" in units["scale"]
    assert "before zero inflation" in units["rate"]
    assert "after zero inflation" in units["mean"]
    drawn = full_model.decode(point, quantity="counts", n_samples=5000, **said).X.toarray()
    error = 6 * drawn.std(axis=0) / np.sqrt(5000)
    assert (np.abs(drawn.mean(axis=0) - decoded["mean"].X[0]) < error).all()  # what one expects to observe
    assert (decoded["rate"].X[0] - drawn.mean(axis=0) > error).any()
    for scvi_name in ("px_scale", "px_rate"):
        with pytest.raises(sd.ScdecodeError, match=r"quantity: .*'rate', 'scale', 'mean', 'counts'"):
            full_model.decode(point, quantity=scvi_name)


def test_decode_in_train_mode(model, z):
    """There: silently wrong, by the BatchNorm of the minibatch. Here decoding never touches training state."""
    expected = model.decode(z).X
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    model.vae.train()
    try:
        np.testing.assert_array_equal(model.decode(z).X, expected)
        np.testing.assert_allclose(model.decode(z[0]).X[0], expected[0], rtol=1e-5)  # alone or with others
        np.testing.assert_allclose(model.distribution(torch.tensor(z), library_size=1e4).mean, expected, rtol=1e-5)
    finally:
        model.vae.eval()
    after = model.vae.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_need_an_anndata_of_the_training_shape(model, z, tmp_path):
    """There: refused. Here a model directory is enough."""
    model.save(tmp_path / "model")
    opened = sd.load(tmp_path / "model")
    for points in (z, z[:1], np.concatenate([z] * 3)):
        expression = opened.decode(points, batch="batch_1")
        assert expression.shape == (len(points), 40)
        np.testing.assert_array_equal(expression.X, model.decode(points, batch="batch_1").X)
    np.testing.assert_array_equal(opened.support(z), model.support(z))
    np.testing.assert_array_equal(opened.decode(z).X, model.decode(z).X)  # the training average too


def test_decode_points_far_from_every_cell(model, z):
    """There: plausible nonsense. Here every decoded point carries its support."""
    points = np.concatenate([z, z[:2] + 20])
    with pytest.warns(SupportWarning, match=r"points: 2 of 8 are farther .* extrapolation"):
        expression = model.decode(points)
    assert expression.obs["supported"].tolist() == [True] * 6 + [False] * 2
    assert expression.obs["support"].tolist()[-2:] == [100, 100]
    assert (expression.obs["support"].iloc[:6] < 90).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert "support" in model.decode(z).obs


def test_average_or_interpolate_decoded_values(model, z):
    """There: no error bars. Here draws, standard deviations and quantiles on request."""
    expression = model.decode(z, spread=0.5, n_samples=200, batch="batch_1")
    assert set(expression.layers) == {"std", "q05", "q95"}
    assert (expression.layers["std"] > 0).all()
    assert (expression.layers["q05"] < expression.X).mean() > 0.95
    assert (expression.layers["q95"] > expression.X).mean() > 0.95
    latents = z[0] + 0.5 * np.random.default_rng(0).normal(size=(4000, 4)).astype(np.float32)
    decoded = model.distribution(torch.tensor(latents), library_size=1e4, batch="batch_1").mean.numpy()
    error = 6 * decoded.std(axis=0) / np.sqrt(200)
    assert (np.abs(expression.X[0] - decoded.mean(axis=0)) < error).all()
    np.testing.assert_allclose(expression.layers["std"][0], decoded.std(axis=0), rtol=0.4)
    draws = model.decode(z, quantity="counts", spread=0.5, n_samples=7)
    assert draws.shape == (42, 40)
