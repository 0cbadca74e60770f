"""Several models decoded together: what is averaged, what the models differ by, and what cannot be put together."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
import torch
from small_models import make_adata, make_model

import scdecode as sd
from scdecode.decoding import draw_tiles
from scdecode.errors import InputError, NotTrainedError, PointsError
from scdecode.expression import prepare

pytestmark = pytest.mark.filterwarnings("ignore:points")  # of support
SAID = {"batch": "batch_1", "library_size": 2000, "n_samples": 32}


@pytest.fixture(scope="module")
def cells():
    return make_adata(150, 20)


@pytest.fixture(scope="module")
def models(cells):
    """Three that differ in their seed, their latent space and their likelihood."""
    return (
        make_model(cells, epochs=2, train={"seed": 0}),
        make_model(cells, epochs=2, n_latent=3, train={"seed": 1}),
        make_model(cells, epochs=2, gene_likelihood="zinb", train={"seed": 2}),
    )


@pytest.fixture(scope="module")
def ensemble(models):
    return sd.Ensemble(models)


@pytest.fixture(scope="module")
def paths(models, cells):
    """The same cells' path in each latent space."""
    return [
        sd.Trajectory.along_pseudotime(model.posterior(cells), cells.obs["pseudotime"], n_points=7) for model in models
    ]


def draws_of(model, path, **said):
    asked = prepare(model, path, **said)
    tiles = draw_tiles(model.vae, asked.points, asked.conditions, asked.request, torch.device("cpu"))
    return np.concatenate([draws for _, draws in tiles], axis=1)


def test_one_model_twice_is_that_model(models, paths):
    alone = models[0].decode(paths[0], **SAID)
    twice = sd.Ensemble([models[0]] * 2).decode([paths[0]] * 2, **SAID)
    np.testing.assert_allclose(twice.X, alone.X, rtol=1e-6)
    np.testing.assert_array_equal(twice.layers["std_models"], 0)
    for layer in ("std", "std_counts"):
        np.testing.assert_allclose(twice.layers[layer], alone.layers[layer], rtol=1e-5)
    doubled = np.repeat(draws_of(models[0], paths[0], **SAID), 2, axis=0)
    np.testing.assert_allclose(twice.layers["q05"], np.quantile(doubled, 0.05, axis=0), rtol=1e-5)
    assert set(twice.layers) == {*alone.layers, "std_models"}
    assert list(twice.obs) == list(alone.obs)
    np.testing.assert_array_equal(twice.obs["support"], alone.obs["support"])
    assert list(twice.var_names) == list(alone.var_names)


@pytest.mark.parametrize("quantity", ["rate", "mean", "scale"])
def test_by_hand(ensemble, models, paths, quantity):
    said = {**SAID, "quantity": quantity}
    found = ensemble.decode(paths, **said)
    draws = [draws_of(model, path, **said).astype(np.float64) for model, path in zip(models, paths, strict=True)]
    means = np.stack([of_model.mean(axis=0) for of_model in draws])
    np.testing.assert_allclose(found.X, means.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.layers["std_models"], means.std(axis=0, ddof=1), rtol=1e-3, atol=1e-7)
    variances = np.stack([of_model.var(axis=0) for of_model in draws])
    np.testing.assert_allclose(found.layers["std"], np.sqrt(variances.mean(axis=0)), rtol=1e-3, atol=1e-7)
    pooled = np.concatenate(draws)
    for layer, q in (("q05", 0.05), ("q95", 0.95)):
        np.testing.assert_allclose(found.layers[layer], np.quantile(pooled, q, axis=0), rtol=1e-4)
    if quantity == "scale":
        assert "std_counts" not in found.layers
    else:
        own = [model.decode(path, **said).layers["std_counts"] for model, path in zip(models, paths, strict=True)]
        np.testing.assert_allclose(found.layers["std_counts"], np.sqrt(np.mean(np.square(own), axis=0)), rtol=1e-5)


def test_what_the_result_says(ensemble, models, paths):
    found = ensemble.decode(paths, genes=["gene_03", "gene_01"], **SAID)
    assert list(found.var_names) == ["gene_03", "gene_01"]
    np.testing.assert_array_equal(found.obs["time"], paths[0].time)
    support = np.stack([model.support(path) for model, path in zip(models, paths, strict=True)])
    np.testing.assert_allclose(found.obs["support"], support.max(axis=0))
    assert found.obs["supported"].tolist() == (support <= 99).all(axis=0).tolist()
    for i, path in enumerate(paths):
        np.testing.assert_array_equal(found.obsm[f"latent_{i}"], path.points)
        np.testing.assert_array_equal(found.obsm[f"latent_covariance_{i}"].reshape(path.spread.shape), path.spread)
    assert found.uns["scdecode"]["models"] == 3
    assert found.uns["scdecode"]["time_name"] == "pseudotime"
    assert set(found.obs["batch"]) == {"batch_1"}
    with pytest.raises(InputError, match="a result of model"):
        sd.decode_arguments(found)
    assert repr(ensemble) == "Ensemble of 3 models, 20 genes"
    assert len(ensemble) == 3


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_tiles_do_not_matter(ensemble, paths, chunk_size):
    whole, cut = (ensemble.decode(paths, **SAID, **said) for said in ({}, {"chunk_size": chunk_size}))
    np.testing.assert_allclose(cut.X, whole.X, rtol=1e-5)
    for layer in whole.layers:
        np.testing.assert_allclose(cut.layers[layer], whole.layers[layer], rtol=1e-3, atol=1e-4)


def test_forms_of_paths(ensemble, models, paths, cells):
    expected = ensemble.decode(paths, **SAID)
    made = ensemble.decode(
        lambda model: sd.Trajectory.along_pseudotime(model.posterior(cells), cells.obs["pseudotime"], n_points=7),
        **SAID,
    )
    np.testing.assert_array_equal(made.X, expected.X)
    np.testing.assert_array_equal(ensemble.decode(tuple(paths), **SAID).X, expected.X)
    points = ensemble.decode(lambda model: model.posterior(cells[:5]), **SAID)
    assert points.shape == (5, 20)
    assert "std_counts" not in points.layers
    assert "time" not in points.obs
    asked = ensemble.decode(lambda model: model.posterior(cells[:5]), count_noise=True, **SAID)
    assert "std_counts" in asked.layers


def test_bare_lines(ensemble, models, paths):
    found = ensemble.decode(paths, spread=False, batch="batch_1")
    assert set(found.layers) == {"std_models", "std_counts"}
    each = np.stack([model.decode(path.points, batch="batch_1").X for model, path in zip(models, paths, strict=True)])
    np.testing.assert_allclose(found.X, each.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(found.layers["std_models"], each.std(axis=0, ddof=1), rtol=1e-4)


@pytest.mark.parametrize("name", ["x.h5ad", "x.zarr"])
def test_to_a_file(ensemble, paths, tmp_path, name):
    expected, seen = ensemble.decode(paths, **SAID), []
    ensemble.decode(paths, out=tmp_path / name, on_tile=seen.append, chunk_size=6, **SAID)
    assert sum(seen) == 7
    assert len(seen) > 1
    read = (ad.read_h5ad if name.endswith("h5ad") else ad.read_zarr)(tmp_path / name)
    np.testing.assert_allclose(read.X, expected.X, rtol=1e-5)
    assert set(read.layers) == set(expected.layers)
    for layer in expected.layers:
        np.testing.assert_allclose(read.layers[layer], expected.layers[layer], rtol=1e-3, atol=1e-4)
    assert set(read.obsm) == set(expected.obsm)


@pytest.mark.filterwarnings("ignore:the curve has fewer")
def test_several_lineages(ensemble, models, cells):
    found = ensemble.decode(
        lambda model: sd.Trajectory.from_lineages(
            model, cells, pseudotime="pseudotime", weights="cell_type", n_points=4, bandwidth=0.3
        ),
        **SAID,
    )
    names = list(cells.obs["cell_type"].cat.categories)
    assert found.obs["lineage"].tolist() == [name for name in names for _ in range(4)]
    assert found.shape == (12, 20)


def test_support_is_missing_where_one_model_has_no_cells(models, paths, tmp_path):
    models[0].save(tmp_path / "ours")
    sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools")
    without = sd.load(tmp_path / "theirs")
    found = sd.Ensemble([models[0], without]).decode([paths[0]] * 2, **SAID)
    np.testing.assert_array_equal(found.layers["std_models"], 0)
    assert found.obs["support"].isna().all()
    assert found.obs["supported"].isna().all()


def test_refused_models(models, cells):
    for few in ([], models[:1]):
        with pytest.raises(InputError, match=rf"models: {len(few)} came, two or more .* model\.decode"):
            sd.Ensemble(few)
    other = make_model(make_adata(100, 21), epochs=1)
    with pytest.raises(InputError, match=r"genes of model 1 are not those of model 0 \(it has \['gene_21'\]\)"):
        sd.Ensemble([models[0], other])
    turned = make_model(cells[:, ::-1].copy(), epochs=1)
    with pytest.raises(InputError, match=r"model 2 .* fewer or in another order"):
        sd.Ensemble([*models[:2], turned])
    with pytest.raises(NotTrainedError):
        sd.Ensemble([models[0], make_model(cells, epochs=0)])


def test_refused_paths(ensemble, paths):
    for one in (paths[0], paths[:2], paths[0].points, {"a": 1}):
        with pytest.raises(PointsError, match="each of the 3 models has a latent space of its own: pass a list of 3"):
            ensemble.decode(one)
    with pytest.raises(InputError, match="quantity: 'counts' came; draw counts from one model"):
        ensemble.decode(paths, quantity="counts")
    with pytest.raises(PointsError, match=r"points: shape \(7, 3\) came, \(\.\.\., 4\) was expected"):
        ensemble.decode([paths[1], paths[1], paths[0]])


def shorter(path):
    return sd.Trajectory(path.points[:5], path.time[:5], path.spread[:5])


def later(path):
    return sd.Trajectory(path.points, path.time + 1, path.spread)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shorter, "points: 5 points came for model 1 and 7 for model 0"),
        (later, "time: the path of model 1 has other times than that of model 0"),
        (lambda path: sd.Trajectory(path.points, path.time), "the points have no spread to draw from"),
    ],
)
def test_paths_that_are_not_alike(ensemble, paths, change, message):
    with pytest.raises(PointsError, match=message):
        ensemble.decode([paths[0], change(paths[1]), paths[2]], **SAID)


def test_a_line_beside_tubes(ensemble, paths):
    line = sd.Trajectory(paths[1].points, paths[1].time)
    with pytest.raises(PointsError, match=r"\(without a spread and with a spread\); alike paths were expected"):
        ensemble.decode([paths[0], line, paths[2]])


@pytest.mark.parametrize("first", [True, False])
def test_a_path_beside_points_without_a_time(ensemble, models, paths, cells, first):
    """They are as many, and have a spread; but only one of them says where on a path it is."""
    points = models[0].posterior(cells[:7])
    given = [points, paths[1], paths[2]] if first else [paths[0], models[1].posterior(cells[:7]), paths[2]]
    with pytest.raises(PointsError, match="time"):
        ensemble.decode(given, **SAID)


def test_an_argument_that_there_is_not(ensemble, paths):
    with pytest.raises(InputError, match="transform_batch"):
        ensemble.decode(paths, transform_batch="batch_1")


def test_models_that_were_set_up_otherwise(model):
    """The same arguments of decode would mean other things to them."""
    adata = make_adata()
    fewer = make_model(adata[adata.obs["batch"] != "batch_3"].copy(), epochs=1)
    with pytest.raises(InputError, match=r"^models: batch of model 1 is .*'batch_2'\)\), of model 0 .*'batch_3'"):
        sd.Ensemble([model, fewer])
    sized = make_model(make_adata(), setup={"batch_key": "batch", "size_factor_key": "size_factor"}, epochs=1)
    with pytest.raises(InputError, match=r"^models: size factor of model 1 is True, of model 0 False"):
        sd.Ensemble([model, sized])
    with pytest.raises(InputError, match=r"^models: got .*'model/'\] \(list\), expected a list of models"):
        sd.Ensemble([model, "model/"])


def test_paths_in_other_conditions(model):
    z = model.reference_latents()[:2]
    paths = [sd.Trajectory.from_points(z, batch=name) for name in ("batch_1", "batch_2")]
    with pytest.raises(PointsError, match=r"^points: 'batch' of the path of model 1 is not that of model 0"):
        sd.Ensemble([model, model]).decode(paths)
