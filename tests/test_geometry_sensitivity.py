"""Sensitivity and attribution, against finite differences, linear decoders and completeness."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import make_adata
from test_geometry_metric import FULL

import scdecode as sd
from scdecode.errors import ConfigError, InputError, PointsError
from scdecode.geometry import ParameterMap, attribution, parameter_map, sensitivity


def some_points(n, k=4, seed=0):
    return np.random.default_rng(seed).normal(0, 0.7, (n, k))


def test_sensitivity_is_the_derivative_by_finite_differences(full_model):
    decoder = parameter_map(full_model, **FULL, dtype=torch.float64)
    z = torch.from_numpy(some_points(6))
    steps = 1e-6 * torch.eye(4, dtype=torch.float64)
    slopes = torch.stack([(decoder.log_mean(z + e) - decoder.log_mean(z - e)) / 2e-6 for e in steps])  # (k, n, g)
    found = sensitivity(decoder, z)
    np.testing.assert_allclose(found.mean.to_numpy().T, slopes.mean(1), atol=1e-6)
    np.testing.assert_allclose(found.rms.to_numpy().T, slopes.square().mean(1).sqrt(), atol=1e-6)
    single = sensitivity(full_model, z.float(), **FULL)
    np.testing.assert_allclose(single.mean, found.mean, atol=1e-4)
    assert list(single.mean.columns) == ["Z_0", "Z_1", "Z_2", "Z_3"] and single.n_points == 6
    assert tuple(single.mean.index) == full_model.schema.genes


def test_sensitivity_is_that_of_the_averaged_scale(model):
    """Two slots; the scale is what decode gives, and its logarithm is what is differentiated."""
    said = {"batch": {"batch_1": 1, "batch_2": 3}}
    decode = model.decoder(quantity="scale", **said)
    z = some_points(5)
    h = 1e-2
    slope = [
        np.log(decode(z + h * e) / decode(z - h * e)).mean(0) / (2 * h) for e in np.eye(4)
    ]  # float32, and the bends of hidden units
    np.testing.assert_allclose(sensitivity(model, z, **said).mean.to_numpy().T, slope, atol=0.02)


def test_tiles_are_all_at_once(model, monkeypatch):
    z = some_points(9)
    whole = sensitivity(model, z, batch="batch_1")
    monkeypatch.setattr("scdecode.geometry.decoded.TILE_VALUES", 40 * 8)
    parts = sensitivity(model, z, batch="batch_1")
    np.testing.assert_allclose(parts.rms, whole.rms, rtol=1e-4, atol=1e-6)
    path = attribution(model, z, batch="batch_1")
    monkeypatch.undo()
    np.testing.assert_allclose(attribution(model, z, batch="batch_1").contributions, path.contributions, atol=1e-4)


def test_a_linear_decoder_is_its_loadings():
    adata = make_adata()
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    linear = sd.LinearSCVI(adata, n_latent=3, n_hidden=16)
    linear.train(2, device="cpu", progress=False)
    z = some_points(1, k=3)
    loadings = linear.get_loadings()
    rho = linear.decoder(quantity="scale", batch="batch_1")(z)[0]
    expected = loadings - rho @ loadings.to_numpy()  # a softmax: less what all genes have in common
    found = sensitivity(linear, z, batch="batch_1")
    np.testing.assert_allclose(found.mean, expected, atol=1e-4)
    assert list(found.mean.columns) == list(loadings.columns) and list(found.mean.index) == list(loadings.index)


def test_the_top_genes_of_each_dimension(model):
    found = sensitivity(model, some_points(5), batch="batch_1")
    top = found.top(3)
    assert list(top.columns) == ["dimension", "rank", "gene", "mean", "rms"] and len(top) == 12
    first = top[(top.dimension == "Z_2") & (top["rank"] == 1)].iloc[0]
    assert first.gene == found.rms["Z_2"].idxmax() and first.rms == found.rms["Z_2"].max()
    assert first["mean"] == found.mean.loc[first.gene, "Z_2"]
    with pytest.raises(ConfigError, match=r"^n: 0"):
        found.top(0)
    assert repr(found) == "Sensitivity: 40 genes x 4 dimensions, over 5 points"


def test_genes_are_chosen_by_name(model):
    z = some_points(5)
    genes = [model.schema.genes[7], model.schema.genes[2]]
    whole, some = sensitivity(model, z, batch="batch_1"), sensitivity(model, z, genes=genes, batch="batch_1")
    pd.testing.assert_frame_equal(some.mean, whole.mean.loc[genes], rtol=1e-4)
    one = attribution(model, z, genes[0], batch="batch_1")
    assert list(one.contributions.index) == genes[:1]
    with pytest.raises(InputError, match=r"did you mean"):
        sensitivity(model, z, genes=[genes[0] + "x"], batch="batch_1")


@pytest.mark.parametrize("n", [2, 30])
def test_contributions_add_up_to_the_change(model, full_model, n):
    z = np.linspace(*some_points(2, seed=4), n).astype(np.float32)
    for which, said in ((model, {}), (full_model, FULL)):
        found = attribution(which, z, **said)
        assert found.unexplained.abs().max() < 1e-4
        expression = which.decoder(quantity="scale", **said)(z)
        np.testing.assert_allclose(found.change, np.log(expression[-1] / expression[0]), atol=1e-4)
        parts = found.contributions.sum(axis=1)
        np.testing.assert_allclose(parts + found.unexplained, found.change, atol=1e-9)
        assert found.change.abs().max() > 0.1


def test_a_dimension_that_stays_contributes_nothing(model):
    z = np.zeros((5, 4))
    z[:, 1] = np.linspace(-1, 1, 5)
    found = attribution(model, z, batch="batch_1").contributions
    assert (found[["Z_0", "Z_2", "Z_3"]] == 0).all(axis=None) and found["Z_1"].abs().max() > 0


def test_a_product_is_shared_as_the_path_goes():
    """Of x y along the sides of a square, who moves last gets all; along the diagonal each gets half."""
    decoder = ParameterMap.of_function(lambda z: z[:, :1] * z[:, 1:], 2, genes=["product"])
    diagonal = attribution(decoder, [[0.0, 0.0], [1.0, 1.0]]).contributions.loc["product"]
    np.testing.assert_allclose(diagonal, [0.5, 0.5], atol=1e-12)
    sides = attribution(decoder, [[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]).contributions.loc["product"]
    np.testing.assert_allclose(sides, [0, 1], atol=1e-12)


def test_bad_paths(model):
    with pytest.raises(PointsError, match=r"^path: 1 point came"):
        attribution(model, some_points(1), batch="batch_1")
    with pytest.raises(ConfigError, match=r"^tolerance: 0"):
        attribution(model, some_points(3), tolerance=0, batch="batch_1")
    assert repr(attribution(model, some_points(2), batch="batch_1")) == "Attribution: 40 genes to 4 dimensions"


def test_a_path_brings_its_conditions(model):
    z = model.reference_latents()[:5]
    path = sd.Trajectory.from_points(z, batch={"batch_1": 1.0, "batch_2": 9.0})
    asked = {"batch": {"batch_1": 1.0, "batch_2": 9.0}}
    np.testing.assert_allclose(sensitivity(model, path).mean, sensitivity(model, z, **asked).mean)
    np.testing.assert_allclose(attribution(model, path).change, attribution(model, z, **asked).change)
    assert not np.allclose(sensitivity(model, path).mean, sensitivity(model, z).mean, rtol=1e-5)
