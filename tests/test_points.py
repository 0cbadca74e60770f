"""Latent points in every form that people have them, and in every form that is no latent point."""

from __future__ import annotations

import math
from types import SimpleNamespace

import anndata as ad
import hypothesis.extra.numpy as hnp
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from torch.distributions import Independent, LogNormal, LowRankMultivariateNormal, MultivariateNormal, Normal

import scdecode as sd
from scdecode.errors import PointsError, SupportWarning
from scdecode.points import conditions_of, draw, read_points

K = 3
Z = np.array([[0.5, -1.0, 2.0], [0.25, 0.0, -0.75], [1.5, 3.0, -2.5], [0.0, 1.0, 0.125]])  # exact in float16
COVARIANCE = np.array([[1.0, 0.5, 0.0], [0.5, 2.0, -0.5], [0.0, -0.5, 1.0]])


class Lazy:
    """What dask's arrays are to us: something with ``compute``."""

    def __init__(self, values):
        self.values = values

    def compute(self):
        return self.values


def adata_with(**obsm):
    return ad.AnnData(obs=pd.DataFrame(index=list("abcd")), obsm=obsm)


# -- accepted forms


@pytest.mark.parametrize(
    "points",
    [
        pytest.param(Z, id="float64"),
        pytest.param(Z.astype(np.float32), id="float32"),
        pytest.param(Z.astype(np.float16), id="float16"),
        pytest.param(np.asfortranarray(Z), id="fortran"),
        pytest.param(np.repeat(Z, 2, axis=0)[::2], id="strided"),
        pytest.param(Z.astype(">f8"), id="big endian"),
        pytest.param(Z.astype(object), id="objects"),
        pytest.param(np.ma.masked_array(Z, mask=False), id="mask of nothing"),
        pytest.param(Z.tolist(), id="list"),
        pytest.param(tuple(map(tuple, Z)), id="tuple"),
        pytest.param(list(Z), id="list of arrays"),
        pytest.param(torch.tensor(Z), id="torch float64"),
        pytest.param(torch.tensor(Z).half(), id="torch float16"),
        pytest.param(torch.tensor(Z).bfloat16(), id="torch bfloat16"),
        pytest.param(torch.tensor(Z, requires_grad=True), id="torch with gradient"),
        pytest.param([torch.tensor(z, requires_grad=True) for z in Z], id="list of torch"),
        pytest.param(torch.tensor(Z).to_sparse(), id="torch sparse"),
        pytest.param(torch.tensor(Z.T.copy()).t(), id="torch transposed view"),
        pytest.param(sp.csr_matrix(Z), id="scipy sparse"),
        pytest.param(pd.DataFrame(Z), id="DataFrame"),
        pytest.param(pd.DataFrame(Z).astype("Float64"), id="DataFrame of nullable floats"),
        pytest.param(Lazy(Z), id="lazy"),
        pytest.param(Lazy(torch.tensor(Z)), id="lazy torch"),
        pytest.param(Lazy(pd.DataFrame(Z)), id="lazy DataFrame"),
    ],
)
def test_forms(points):
    read = read_points(points, K)
    assert read.z_nk.dtype == torch.float32
    assert read.z_nk.is_contiguous()
    assert read.shape == (4,)
    assert len(read) == 4
    np.testing.assert_array_equal(read.z_nk.numpy(), Z)
    assert read.spread is None
    assert read.time is None


def test_dask():
    array = pytest.importorskip("dask.array")
    np.testing.assert_array_equal(read_points(array.from_array(Z, chunks=2), K).z_nk.numpy(), Z)


@pytest.mark.parametrize("dtype", [np.int8, np.uint16, np.int64, bool])
def test_whole_numbers(dtype):
    values = np.array([[0, 1, 1], [1, 0, 1]], dtype=dtype)
    np.testing.assert_array_equal(read_points(values, K).z_nk.numpy(), values.astype(np.float32))
    np.testing.assert_array_equal(read_points(torch.tensor(values.astype(int)), K).z_nk.numpy(), values)


def test_one_point():
    read = read_points(Z[0], K)
    assert read.shape == ()
    assert read.z_nk.shape == (1, K)
    assert read_points(Z[0].tolist(), K).shape == ()
    assert read_points(pd.Series(Z[0]), K).shape == ()


@given(hnp.array_shapes(min_dims=0, max_dims=4, max_side=4))
@settings(max_examples=30, deadline=None)
def test_leading_axes(shape):
    values = np.random.default_rng(0).normal(size=(*shape, K)).astype(np.float32)
    read = read_points(values, K)
    assert read.shape == shape
    np.testing.assert_array_equal(read.z_nk.numpy().reshape(values.shape), values)


def test_leading_axes_one_is_as_wide_as_the_latent_space():
    assert read_points(np.zeros((5, K, K)), K).shape == (5, K)


def test_the_points_are_a_copy():
    values = Z.astype(np.float32)
    read = read_points(values, K)
    values += 1  # as in a loop that moves the points
    np.testing.assert_array_equal(read.z_nk.numpy(), Z)
    values.flags.writeable = False
    read_points(values, K)  # torch would warn of an array that cannot be written


def test_dataframe_keeps_its_index():
    assert list(read_points(pd.DataFrame(Z, index=list("abcd")), K).names) == list("abcd")
    assert list(read_points(pd.DataFrame(Z, index=[7, 8, 9, 10]), K).names) == ["7", "8", "9", "10"]
    pairs = pd.MultiIndex.from_product([["s1", "s2"], [0, 1]])
    assert list(read_points(pd.DataFrame(Z, index=pairs), K).names) == ["s1-0", "s1-1", "s2-0", "s2-1"]
    assert list(read_points(Z, K).names) == ["0", "1", "2", "3"]


def test_anndata():
    adata = adata_with(X_scVI=Z, other=Z + 1)
    read = read_points(adata, K)
    np.testing.assert_array_equal(read.z_nk.numpy(), Z)
    assert list(read.names) == list("abcd")
    np.testing.assert_array_equal(read_points(adata, K, use_rep="other").z_nk.numpy(), Z + 1)
    np.testing.assert_array_equal(read_points(adata[[2, 0]], K).z_nk.numpy(), Z[[2, 0]])
    frame = adata_with(X_scVI=pd.DataFrame(Z, index=list("abcd")), sparse=sp.csr_matrix(Z))
    np.testing.assert_array_equal(read_points(frame, K).z_nk.numpy(), Z)
    np.testing.assert_array_equal(read_points(frame, K, use_rep="sparse").z_nk.numpy(), Z)


def test_anndata_without_the_representation():
    with pytest.raises(
        PointsError, match=r"an AnnData came without obsm\['X_scVI'\]; .* or name one of \['X_scvi'\] with use_rep="
    ):
        read_points(adata_with(X_scvi=Z), K)
    with pytest.raises(PointsError, match=r"use_rep: 'X_scV' is not .*\['X_scvi'\]; did you mean 'X_scvi'"):
        read_points(adata_with(X_scvi=Z), K, use_rep="X_scV")


def test_use_rep_without_an_anndata():
    with pytest.raises(PointsError, match="use_rep: 'X_scVI' came, but the points are ndarray and no AnnData"):
        read_points(Z, K, use_rep="X_scVI")


# -- refused


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (np.zeros((5, 4)), r"shape \(5, 4\) came, \(\.\.\., 3\) was expected"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\) came"),
        (np.zeros((3, 7)), r"shape \(3, 7\) came.*; the array looks transposed"),
        (np.zeros(4), r"shape \(4,\)"),
        (1.5, r"shape \(\) came"),
        (None, r"shape \(\) came|NoneType came"),
        ([], r"shape \(0,\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\) came, which has no points"),
        (np.zeros((2, 0, 3)), "no points"),
        (pd.DataFrame(Z).iloc[:0], "no points"),
        ("X_scVI", "str came that is no array of numbers"),
        ([["a", "b", "c"]], "list came that is no array of numbers"),
        ([[1.0, 2.0], [3.0]], "list came that is no array of numbers"),
        ([torch.zeros(3), torch.zeros(2)], "list came that is no array of numbers"),
        ({"z": Z}, "dict came that is no array of numbers"),
        ((z for z in Z), "generator came that is no array of numbers"),
        (np, "module came that is no array of numbers"),
        (Z + 1j, "ndarray came that is no array of numbers .*complex128"),
        (torch.tensor(Z + 1j), "Tensor came that is no array of numbers .*complex128"),
        ((Z + 1j).tolist(), "list came that is no array of numbers"),
        (np.zeros((2, 3), dtype="M8[s]"), "datetime64"),
        (pd.DataFrame({"a": [1.0], "b": [2.0], "c": ["x"]}), "DataFrame came that is no array of numbers"),
        (torch.empty(2, 3, device="meta"), "Tensor came that is no array of numbers"),
        (Lazy("nonsense"), "Lazy came that is no array of numbers"),
    ],
)
def test_refused(points, message):
    with pytest.raises(PointsError, match=message):
        read_points(points, K)


def test_transposed_is_not_said_of_what_cannot_be():
    with pytest.raises(PointsError) as error:
        read_points(np.zeros((2, 7)), K)
    assert "transposed" not in str(error.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39, -1e300, 1e31])
@pytest.mark.parametrize("form", [np.asarray, torch.tensor, pd.DataFrame, np.ndarray.tolist])
def test_not_finite(bad, form):
    values = Z.copy()
    values[1, 2] = values[3, 0] = bad
    with pytest.raises(PointsError, match=r"2 of 4 points have NaN, infinite or too large values \(points \[1, 3\]\)"):
        read_points(form(values), K)


def test_missing_values():
    with pytest.raises(PointsError, match=r"1 of 4 points .*\[2\]"):
        read_points(np.ma.masked_array(Z, mask=np.arange(12).reshape(4, 3) == 7), K)
    with pytest.raises(PointsError, match=r"1 of 2 points .*\[0\]"):
        read_points([[None, 1.0, 2.0], [1.0, 2.0, 3.0]], K)
    frame = pd.DataFrame(Z).astype("Float64")
    frame.iloc[0, 0] = pd.NA
    with pytest.raises(PointsError):
        read_points(frame, K)


def test_many_bad_points_are_counted_and_not_all_listed():
    with pytest.raises(PointsError, match=r"1,000 of 1,000 .*\[0, 1, 2, 3, 4, ... and 995 more\]"):
        read_points(np.full((1000, K), np.nan), K)


def test_points_of_a_simplex():
    good = np.array([[0.2, 0.3, 0.5], [1.0, 0.0, 0.0]])
    read_points(good, K, simplex=True)
    read_points(good.astype(np.float16), K, simplex=True)
    with pytest.warns(SupportWarning, match="2 of 3 points are negative somewhere or do not sum to one"):
        read_points([[0.2, 0.3, 0.5], [0.2, 0.3, 0.6], [-0.5, 0.5, 1.0]], K, simplex=True)


# -- distributions and paths


def test_normal():
    sd_nk = np.abs(Z) + 0.1
    for distribution in (
        Normal(torch.tensor(Z), torch.tensor(sd_nk)),
        Normal(torch.tensor(Z, requires_grad=True), torch.tensor(sd_nk, requires_grad=True)),
        Independent(Normal(torch.tensor(Z), torch.tensor(sd_nk)), 1),
        Independent(Independent(Normal(torch.tensor(Z), torch.tensor(sd_nk)), 1), 1),
    ):
        read = read_points(distribution, K)
        np.testing.assert_array_equal(read.z_nk.numpy(), Z)
        np.testing.assert_allclose(read.spread, sd_nk, rtol=1e-6)
    assert read_points(Normal(torch.tensor(Z), 0.5), K).spread.shape == (4, K)


def test_multivariate_normal():
    one = MultivariateNormal(torch.tensor(Z), torch.tensor(COVARIANCE))
    read = read_points(one, K)
    np.testing.assert_array_equal(read.z_nk.numpy(), Z)
    np.testing.assert_allclose(read.spread, np.broadcast_to(COVARIANCE, (4, K, K)), rtol=1e-5)
    single = read_points(MultivariateNormal(torch.zeros(K), torch.eye(K)), K)
    assert single.shape == ()
    assert single.spread.shape == (1, K, K)


@pytest.mark.parametrize(
    "distribution",
    [
        LogNormal(torch.zeros(2, K), torch.ones(2, K)),
        LowRankMultivariateNormal(torch.zeros(2, K), torch.ones(2, K, 1), torch.ones(2, K)),
        torch.distributions.Poisson(torch.ones(2, K)),
    ],
)
def test_other_distributions(distribution):
    with pytest.raises(PointsError, match="of the distributions Normal and MultivariateNormal are accepted"):
        read_points(distribution, K)


def test_a_given_spread_goes_before_that_of_the_distribution():
    read = read_points(Normal(torch.tensor(Z), 0.5), K, spread=2.0)
    np.testing.assert_array_equal(read.spread, np.full((4, K), 2.0))


def test_spread_as_yes_or_no():
    """Not as standard deviations of 1 and 0, which truth values would pass for."""
    normal = Normal(torch.tensor(Z), 0.5)
    assert read_points(normal, K, spread=False).spread is None
    assert read_points(SimpleNamespace(points=Z, spread=COVARIANCE, time=None), K, spread=False).spread is None
    assert read_points(Z, K, spread=False).spread is None
    np.testing.assert_array_equal(read_points(normal, K, spread=True).spread, np.full((4, K), 0.5))
    with pytest.raises(PointsError, match="spread: True came, but the points have none of their own"):
        read_points(Z, K, spread=True)


def test_a_posterior_is_no_point_of_a_simplex():
    with pytest.raises(PointsError, match=r"latent_distribution='ln' sum to one, as no normal does .*get_latent_"):
        read_points(Normal(torch.zeros(2, K), 1.0), K, simplex=True)


def test_path():
    path = SimpleNamespace(points=Z, spread=np.broadcast_to(COVARIANCE, (4, K, K)), time=np.linspace(0, 1, 4))
    read = read_points(path, K)
    np.testing.assert_array_equal(read.time, path.time)
    np.testing.assert_allclose(read.spread, path.spread, rtol=1e-6)
    assert read_points(SimpleNamespace(points=Z, spread=None, time=None), K).time is None
    assert read.time_name is read.lineage is None
    with pytest.raises(PointsError, match=r"time: shape \(3,\) came, one number per point, \(4,\), was expected"):
        read_points(SimpleNamespace(points=Z, spread=None, time=np.arange(3)), K)
    with pytest.raises(PointsError, match=r"time: .*no array of numbers"):
        read_points(SimpleNamespace(points=Z, spread=None, time=list("abcd")), K)


def test_several_paths():
    points, time = np.stack([Z, Z + 1]), np.linspace(0, 1, 8).reshape(2, 4)
    made = SimpleNamespace(points=points, spread=None, time=time, time_name="days", lineages=("a", "b"))
    read = read_points(made, K)
    assert read.shape == (2, 4)
    assert read.time_name == "days"
    assert read.lineage.tolist() == ["a"] * 4 + ["b"] * 4
    np.testing.assert_array_equal(read.time, time.ravel())
    made.lineages = ("a",)
    with pytest.raises(PointsError, match="lineages: 1 names came for points of shape"):
        read_points(made, K)


def test_conditions_that_a_path_brings():
    age, batch = np.arange(8.0).reshape(2, 4), ["a", "b"]
    conditions = {"batch": batch, "continuous": {"age": age, "pct": 0.1}, "library_size": age}
    path = SimpleNamespace(points=Z, spread=None, time=None, conditions=conditions)
    found = conditions_of(path)
    assert found["batch"] == batch
    np.testing.assert_array_equal(found["continuous"]["age"], np.arange(8))
    np.testing.assert_array_equal(found["library_size"], np.arange(8))
    assert found["continuous"]["pct"] == 0.1
    assert conditions_of(Z) == conditions_of(SimpleNamespace(points=Z, spread=None, time=None)) == {}


# -- spread


@pytest.mark.parametrize(
    ("spread", "shape"),
    [
        (0.5, (4, K)),
        (0, (4, K)),
        (np.float32(0.5), (4, K)),
        (np.full((4, K), 0.5), (4, K)),
        (torch.full((4, K), 0.5, requires_grad=True), (4, K)),
        (pd.DataFrame(np.full((4, K), 0.5)), (4, K)),
        (COVARIANCE, (4, K, K)),
        (np.stack([COVARIANCE] * 4), (4, K, K)),
        (np.ones((K, K)), (4, K, K)),  # of rank one
        (np.zeros((K, K)), (4, K, K)),
    ],
)
def test_forms_of_spread(spread, shape):
    read = read_points(Z, K, spread=spread)
    assert read.spread.shape == shape
    assert read.spread.dtype == np.float32
    assert read.factors.shape == shape
    if len(shape) == 3:
        np.testing.assert_allclose((read.factors @ read.factors.mT).numpy(), read.spread, atol=1e-6)


def test_spread_of_one_point_and_of_more_axes():
    assert read_points(Z[0], K, spread=np.ones(K)).spread.shape == (1, K)
    assert read_points(Z[0], K, spread=COVARIANCE).spread.shape == (1, K, K)
    several = np.zeros((2, 4, K))
    assert read_points(several, K, spread=np.ones((2, 4, K))).spread.shape == (8, K)
    assert read_points(several, K, spread=COVARIANCE).spread.shape == (8, K, K)
    assert read_points(several, K, spread=np.zeros((2, 4, K, K))).spread.shape == (8, K, K)


@pytest.mark.parametrize(
    ("spread", "message"),
    [
        (-0.1, "negative standard deviations"),
        (np.full((4, K), -0.1), "negative standard deviations"),
        (np.nan, "NaN, infinite or too large"),
        (np.inf, "NaN, infinite or too large"),
        (1e39, "NaN, infinite or too large"),
        (np.full((K, K), np.nan), "NaN, infinite or too large"),
        (np.ones(K), r"shape \(3,\) came; one number, standard deviations \(4, 3\) or covariances \(4, 3, 3\)"),
        (np.ones((4, 1)), r"shape \(4, 1\) came"),
        (np.ones((2, K)), r"shape \(2, 3\) came"),
        (np.ones((0, K)), r"shape \(0, 3\) came"),
        (np.triu(np.ones((K, K))), "not symmetric"),
        (-np.eye(K), "negative eigenvalues"),
        (np.array([[1.0, 2, 0], [2, 1, 0], [0, 0, 1]]), "negative eigenvalues"),
        ("wide", "spread: str came that is no array of numbers"),
        (1j, "spread: complex came that is no array of numbers"),
    ],
)
def test_refused_spread(spread, message):
    with pytest.raises(PointsError, match=message):
        read_points(Z, K, spread=spread)


def test_one_bad_covariance_among_many():
    covariances = np.stack([COVARIANCE] * 4)
    covariances[2] *= -1
    with pytest.raises(PointsError, match="negative eigenvalues"):
        read_points(Z, K, spread=covariances)


def test_k_by_k_for_k_points():
    """Standard deviations of each point or one covariance for all: where it could be either, it is an error."""
    deviations = np.arange(1.0, 10.0).reshape(K, K)
    assert read_points(Z[:K], K, spread=deviations).spread.shape == (K, K)  # not symmetric: no covariance
    assert read_points(Z[:K], K, spread=np.full((K, K), 0.5)).spread.shape == (K, K)  # one number, spelt out
    for covariance in (np.eye(K), COVARIANCE):
        with pytest.raises(PointsError, match=r"symmetric array of shape \(3, 3\) came for 3 points"):
            read_points(Z[:K], K, spread=covariance)
        spelt_out = np.broadcast_to(covariance, (K, K, K))
        assert read_points(Z[:K], K, spread=spelt_out).spread.shape == (K, K, K)
    assert read_points(np.zeros((1, 1)), 1, spread=np.ones((1, 1))).spread.shape == (1, 1)


# -- draws


def test_draws_have_the_given_moments():
    n = 40_000
    generator = torch.Generator().manual_seed(1)
    read = read_points(Z, K, spread=COVARIANCE)
    drawn = draw(read, slice(1, 3), torch.randn(n, 2, K, generator=generator)).numpy()
    assert drawn.shape == (n, 2, K)
    for i in (0, 1):
        # five standard errors: sqrt(var / n) of a mean, at most sqrt(2) var / sqrt(n) of a covariance, with var <= 2
        np.testing.assert_allclose(drawn[:, i].mean(axis=0), Z[1 + i], atol=5 * math.sqrt(2 / n))
        np.testing.assert_allclose(np.cov(drawn[:, i].T), COVARIANCE, atol=5 * math.sqrt(2) * 2 / math.sqrt(n))
    read = read_points(Z, K, spread=np.broadcast_to([0.0, 1.0, 3.0], (4, K)))
    drawn = draw(read, slice(0, 4), torch.randn(n, 4, K, generator=generator)).numpy()
    np.testing.assert_array_equal(drawn[..., 0], np.broadcast_to(Z[:, 0].astype(np.float32), (n, 4)))
    # of a standard deviation: sd / sqrt(2 n)
    np.testing.assert_allclose(drawn.std(axis=0)[:, 1:], [[1.0, 3.0]] * 4, rtol=5 / math.sqrt(2 * n))


def test_points_without_a_spread_are_drawn_as_they_are():
    drawn = draw(read_points(Z, K), slice(0, 2), torch.randn(5, 2, K))
    np.testing.assert_array_equal(drawn.numpy(), np.broadcast_to(Z[:2].astype(np.float32), (5, 2, K)))


def test_one_noise_moves_every_point_alike():
    read = read_points(Z, K, spread=COVARIANCE)
    noise = torch.randn(5, 1, K)
    moved = draw(read, slice(0, 4), noise) - read.z_nk
    np.testing.assert_allclose(moved, np.broadcast_to(moved[:, :1], moved.shape), atol=1e-6)
    assert torch.allclose(draw(read, slice(0, 4), noise.expand(5, 4, K)), draw(read, slice(0, 4), noise))


def test_near_covariances_have_near_factors():
    """Or else one noise would move two neighbours on a path apart: eigenvectors change their sign at will."""
    steps = np.linspace(0, 1, 50)[:, None, None]
    read = read_points(np.zeros((50, K)), K, spread=(1 - steps) * COVARIANCE + steps * np.diag([1.0, 2.0, 3.0]))
    assert read.factors.diff(dim=0).abs().max() < 0.05
    np.testing.assert_allclose(read.factors @ read.factors.mT, read.spread, atol=1e-5)


# -- through the model


def test_decode_takes_every_form_alike(model):
    z = model.reference_latents()[:4]
    z = z[model.support(z) < 90]
    names = [f"p{i}" for i in range(len(z))]
    held = ad.AnnData(obs=pd.DataFrame(index=names), obsm={"X_scVI": z})
    expected = model.decode(z, batch="batch_1").X
    for points in (
        torch.tensor(z, requires_grad=True),
        z.astype(np.float64),
        z.tolist(),
        Lazy(z),
        pd.DataFrame(z, index=names),
        held,
        z[None, :, None],
    ):
        np.testing.assert_array_equal(model.decode(points, batch="batch_1").X, expected)
    assert list(model.decode(held, batch="batch_1").obs_names) == names
    single = model.decode(z[0], batch="batch_1")
    assert single.shape == (1, 40)
    np.testing.assert_allclose(single.X[0], expected[0], rtol=1e-5)


def test_decode_takes_a_trajectory(model):
    z = model.reference_latents()
    path = sd.Trajectory.between(model, z[0], z[1], n_points=5)
    expression = model.decode(path, batch="batch_1")
    np.testing.assert_array_equal(expression.obs["time"], path.time)
    by_hand = model.decode(path.points, spread=path.spread, batch="batch_1")
    np.testing.assert_array_equal(expression.X, by_hand.X)
    bare = model.decode(path, spread=False, batch="batch_1")
    np.testing.assert_array_equal(bare.X, model.decode(path.points, batch="batch_1").X)


def test_names_that_are_no_good_for_a_file(model, tmp_path):
    """A DataFrame whose index bears the name of a column of the result was an error of anndata's, at the very end."""
    z = model.reference_latents()[:2]
    frame = pd.DataFrame(z, index=pd.Index(["a", "b"], name="batch"))
    expression = model.decode(frame, batch="batch_1", out=tmp_path / "x.h5ad")
    assert list(expression.obs_names) == ["a", "b"]
    assert list(expression.obs["batch"]) == ["batch_1", "batch_1"]
    kept = model.decode(frame.rename_axis("cell"), batch="batch_1")
    assert kept.obs_names.name == "cell"


def test_an_error_is_one_of_ours(model):
    for points in (np.full((2, 4), np.nan), np.zeros((2, 3)), "x", None, [], np.zeros((2, 4)) + 1j):
        with pytest.raises(sd.ScdecodeError) as error:
            model.decode(points)
        assert isinstance(error.value, ValueError)
        assert str(error.value).startswith("points: ")


def test_the_largest_points_decode_to_numbers(model):
    for size in (1e3, 1e10, 9e29):
        with pytest.warns(SupportWarning):
            expression = model.decode(np.full((1, 4), size) * [1, -1, 1, -1], batch="batch_1")
        assert np.isfinite(expression.X).all()
        assert expression.obs["support"].item() == 100


def test_a_spread_whose_dimensions_are_in_another_order():
    points = pd.DataFrame(np.zeros((3, 2)), columns=["latent_0", "latent_1"])
    spread = pd.DataFrame(np.ones((3, 2)) * [1.0, 2.0], columns=points.columns)
    assert read_points(points, 2, spread=spread).spread[0].tolist() == [1.0, 2.0]
    with pytest.raises(PointsError, match=r"spread: .*another order.*spread\[points.columns\]"):
        read_points(points, 2, spread=spread[["latent_1", "latent_0"]])
    renamed = spread.set_axis(["sd_0", "sd_1"], axis=1)  # other names are no other order
    assert read_points(points, 2, spread=renamed).spread[0].tolist() == [1.0, 2.0]
