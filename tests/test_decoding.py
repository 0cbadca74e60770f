"""Latents to expression: units, draws, chunks, and what decoding must leave alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import make_adata, make_model
from torch.distributions import Independent, Normal

import scdecode as sd
from scdecode.decoding import DEFAULT_DRAWS, draw_tiles, make_request, summary
from scdecode.draws import even_normals
from scdecode.errors import ConfigError, InputError, PointsError
from scdecode.expression import prepare
from scdecode.points import draw, read_points

FIXED = {"batch": "batch_1"}
SAID = {
    "batch": "batch_2",
    "categorical": {"sex": "male", "chem": "v1"},
    "continuous": {"age": 40.0, "pct": 0.05},
}


def typical(model, n):
    """The ``n`` training cells of the most ordinary support, which no warning is about."""
    z = model.reference_latents()
    return z[np.argsort(np.abs(model.support(z) - 50), kind="stable")[:n]]


@pytest.fixture(scope="module")
def z(model):
    return typical(model, 12)


@pytest.fixture(scope="module")
def z_full(full_model):
    return typical(full_model, 6)


OPTIONS = {
    "zinb": {"gene_likelihood": "zinb"},
    "zinb gene-cell": {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
    "nb gene-batch": {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    "nb gene-cell": {"gene_likelihood": "nb", "dispersion": "gene-cell"},
    "poisson": {"gene_likelihood": "poisson"},
    "normal": {"gene_likelihood": "normal"},
    "embedding": {"batch_representation": "embedding", "n_layers": 2, "deeply_inject_covariates": False},
    "layer norm": {"use_batch_norm": "none", "use_layer_norm": "both"},
    "ln": {"latent_distribution": "ln"},
    "learned library": {"use_observed_lib_size": False},
}


@pytest.fixture(scope="module", params=OPTIONS)
def any_model(request):
    return make_model(make_adata(150, 15), epochs=1, **OPTIONS[request.param])


# -- the four quantities


def test_quantities(any_model):
    z = typical(any_model, 4)
    decoded = {q: any_model.decode(z, quantity=q, library_size=5000).X for q in ("scale", "rate", "mean")}
    assert all(values.dtype == np.float32 for values in decoded.values())
    np.testing.assert_allclose(decoded["scale"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(decoded["rate"], 5000 * decoded["scale"], rtol=1e-5)
    if any_model.config.gene_likelihood == "zinb":
        assert (decoded["mean"] < decoded["rate"]).all()
        assert (decoded["mean"] > 0).all()
    else:
        np.testing.assert_array_equal(decoded["mean"], decoded["rate"])


def test_the_mean_is_the_rate_of_what_is_not_lost(full_model, z_full):
    rate, mean = (full_model.decode(z_full, quantity=q, library_size=800, **SAID).X for q in ("rate", "mean"))
    likelihood = full_model.distribution(torch.tensor(z_full), library_size=800, **SAID)
    np.testing.assert_allclose(mean / rate, 1 - likelihood.zi_probs.numpy(), rtol=1e-5)
    assert np.ptp(mean / rate) > 0.05


def test_rate_is_the_default_and_says_its_unit(model, z):
    expression = model.decode(z, **FIXED)
    assert expression.uns["scdecode"]["quantity"] == "rate"
    assert expression.uns["scdecode"]["unit"].startswith("expected counts")
    np.testing.assert_array_equal(expression.X, model.decode(z, quantity="rate", library_size=1e4, **FIXED).X)


def test_the_decoder_by_hand(model, z):
    """The layers of the design, written out in numpy: injected one-hot, batch normalisation at rest, ReLU, softmax."""
    weights = {name: value.double().numpy() for name, value in model.vae.state_dict().items()}
    linear, norm = "decoder.mlp.layers.0.linear", "decoder.mlp.layers.0.batch_norm"
    one_hot = np.tile([0.0, 1.0, 0.0], (len(z), 1))
    hidden = np.concatenate([z, one_hot], axis=1) @ weights[f"{linear}.weight"].T + weights[f"{linear}.bias"]
    hidden = (hidden - weights[f"{norm}.running_mean"]) / np.sqrt(weights[f"{norm}.running_var"] + 1e-3)
    hidden = np.maximum(hidden * weights[f"{norm}.weight"] + weights[f"{norm}.bias"], 0)
    logits = hidden @ weights["decoder.scale.weight"].T + weights["decoder.scale.bias"]
    scale = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.decode(z, quantity="scale", batch="batch_2").X, scale, rtol=1e-5)


# -- what must not matter


@given(chunk_size=st.integers(1, 20))
@settings(max_examples=15, deadline=None)
def test_chunks_do_not_matter(model, z, chunk_size):
    whole = model.decode(z, chunk_size=1000)
    np.testing.assert_allclose(model.decode(z, chunk_size=chunk_size).X, whole.X, rtol=1e-5)


def test_chunks_do_not_matter_to_what_is_per_point(full_model, z_full):
    said = {
        "batch": np.array(["batch_1", "batch_2", "batch_3"] * 2),
        "categorical": {"sex": np.array(["male", "female"] * 3)},
        "continuous": {"age": np.linspace(30, 60, 6)},
        "library_size": np.linspace(1e3, 1e4, 6),
    }
    for quantity in ("rate", "mean", "scale"):
        whole = full_model.decode(z_full, quantity=quantity, **said).X
        for chunk_size in (1, 2, 5):
            np.testing.assert_allclose(
                full_model.decode(z_full, quantity=quantity, chunk_size=chunk_size, **said).X, whole, rtol=1e-5
            )


def test_the_other_points_do_not_matter(model, z):
    together = model.decode(z).X
    for i in range(3):
        np.testing.assert_allclose(model.decode(z[i]).X[0], together[i], rtol=1e-5)


@pytest.mark.parametrize("part", ["vae", "vae.decoder", "vae.decoder.mlp"])
def test_training_mode_does_not_matter(model, z, part):
    """In training mode BatchNorm takes the minibatch's own mean, and moves its running one."""
    expected = model.decode(z, **FIXED).X
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    module = model
    for name in part.split("."):
        module = getattr(module, name)
    module.train()
    try:
        np.testing.assert_array_equal(model.decode(z, **FIXED).X, expected)
        np.testing.assert_allclose(model.decode(z[:1], **FIXED).X, expected[:1], rtol=1e-5)
        mean = model.distribution(torch.tensor(z), **FIXED, library_size=1e4).mean.numpy()
        np.testing.assert_allclose(mean, expected, rtol=1e-5)
        model.decode(z, quantity="counts", **FIXED)
        model.decode(z, spread=0.1, n_samples=3, **FIXED)
        assert module.training  # and it is left as it was
    finally:
        model.vae.eval()
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_training_mode_comes_back_after_an_error(model, z):
    def stop(n):
        raise KeyError("stop")

    model.vae.train()
    try:
        with pytest.raises(KeyError):
            model.decode(z, **FIXED, on_tile=stop)
        assert model.vae.training
    finally:
        model.vae.eval()


def test_decoding_between_two_epochs():
    """A second training that looks at its own progress is the same as one that does not."""
    weights = []
    for looks in (False, True):
        model = make_model(make_adata(150, 15), epochs=1)
        z = typical(model, 3)

        def look(*_, model=model, z=z):
            before = model.vae.training
            model.decode(z, quantity="counts", spread=0.1, n_samples=2)
            assert model.vae.training == before

        torch.manual_seed(0)
        model.train(2, device="cpu", progress=False, on_epoch=look if looks else None)
        weights.append(torch.cat([value.double().ravel() for value in model.vae.state_dict().values()]))
    assert torch.equal(*weights)


@pytest.mark.parametrize("quantity", ["rate", "counts"])
def test_nothing_outside_is_touched(full_model, z_full, quantity):
    weights = {name: value.clone() for name, value in full_model.vae.state_dict().items()}
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002  (the global generator is what must stay)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    full_model.decode(z_full, quantity=quantity, spread=0.2, n_samples=3, seed=1)
    full_model.distribution(torch.tensor(z_full)).mean.sum()
    full_model.support(z_full)
    assert torch.equal(torch.get_rng_state(), torch_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)  # noqa: NPY002
    for name, value in full_model.vae.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert not any(p.requires_grad for p in full_model.vae.parameters())
    assert not any(module.training for module in full_model.vae.modules())
    assert torch.is_grad_enabled()


def test_torchs_defaults_do_not_matter(model, z):
    def both():
        drawn = model.decode(z, spread=0.2, n_samples=3)
        return drawn.X, model.decode(z, quantity="counts").X.toarray()

    usual = both()
    torch.set_default_dtype(torch.float64)
    try:
        for found, expected in zip(both(), usual, strict=True):
            np.testing.assert_array_equal(found, expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        np.testing.assert_array_equal(both()[0], usual[0])
    with torch.inference_mode():
        np.testing.assert_array_equal(both()[0], usual[0])


def test_the_points_are_not_written_to(model, z):
    points = z.copy()
    expression = model.decode(points, **FIXED)
    np.testing.assert_array_equal(points, z)
    points += 1
    np.testing.assert_array_equal(expression.obsm["latent"], z)


# -- genes


@pytest.mark.parametrize("quantity", ["rate", "scale", "mean"])
def test_genes_are_columns_of_the_whole(full_model, z_full, quantity):
    whole = full_model.decode(z_full, quantity=quantity)
    some = ["gene_30", "gene_02", "gene_17"]
    part = full_model.decode(z_full, quantity=quantity, genes=some)
    assert list(part.var_names) == some
    np.testing.assert_allclose(part.X, whole[:, some].X, rtol=1e-6)
    drawn = full_model.decode(z_full, quantity=quantity, genes=some, spread=0.2, n_samples=7)
    whole = full_model.decode(z_full, quantity=quantity, spread=0.2, n_samples=7)
    np.testing.assert_allclose(drawn.X, whole[:, some].X, rtol=1e-5)
    for layer in ("std", "q05", "q95"):
        np.testing.assert_allclose(drawn.layers[layer], whole[:, some].layers[layer], rtol=1e-4, atol=1e-6)


def test_forms_of_genes(model, z):
    one = model.decode(z, genes="gene_05", **FIXED)
    assert list(one.var_names) == ["gene_05"]
    for genes in (np.array(["gene_05"]), ("gene_05",), model.decode(z, **FIXED).var_names[4:5]):
        np.testing.assert_array_equal(model.decode(z, genes=genes, **FIXED).X, one.X)
    counts = model.decode(z, genes=["gene_05", "gene_01"], quantity="counts", **FIXED)
    assert counts.shape == (12, 2)


def test_gene_subset_of_the_distribution(full_model, z_full):
    z = torch.tensor(z_full)
    for said in (SAID, {}):
        whole, part = (full_model.distribution(z, genes=genes, **said) for genes in (None, ["gene_30", "gene_02"]))
        torch.testing.assert_close(part.mean, whole.mean[:, [29, 1]])
        torch.testing.assert_close(part.variance, whole.variance[:, [29, 1]], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        (["gene_5"], r"genes: 'gene_5' is not one of the 40 .*; did you mean 'gene_.5'\?"),
        (["gene_05", "nope"], "genes: 'nope' is not one of the 40"),
        ([4], r"genes: got \[4\] \(list\), expected a list of names"),
        ([], "genes: .* empty or names a gene twice"),
        (["gene_05", "gene_01", "gene_05"], "genes: .* empty or names a gene twice"),
        (np.ones(40, dtype=bool), r"genes: got ndarray of shape \(40,\), expected a list of names"),
    ],
)
def test_refused_genes(model, z, genes, message):
    with pytest.raises(InputError, match=message):
        model.decode(z, genes=genes)
    with pytest.raises(InputError, match=message):
        model.distribution(torch.tensor(z), genes=genes)


# -- what cannot be asked for


@pytest.mark.parametrize(
    ("said", "kind", "message"),
    [
        ({"quantity": "rates"}, InputError, "quantity: 'rates' is not one of the 4 .*did you mean 'rate'"),
        ({"quantity": "px_scale"}, InputError, "quantity: 'px_scale' is not one of the 4"),
        ({"quantity": None}, InputError, "quantity: got None, expected a string"),
        ({"n_samples": 5}, PointsError, "n_samples: draws were asked for, but the points have no spread"),
        ({"n_samples": 0, "spread": 1.0}, ConfigError, "n_samples: 0 came, a whole number of at least 1"),
        (
            {"n_samples": 2.5, "spread": 1.0},
            ConfigError,
            r"n_samples: got 2\.5 \(float\), expected a whole number",
        ),
        ({"n_samples": True, "spread": 1.0}, ConfigError, "n_samples: got True"),
        ({"chunk_size": 0}, ConfigError, "chunk_size: 0 came"),
        ({"seed": -1}, ConfigError, "seed: -1 came"),
        ({"seed": "a"}, ConfigError, "seed: got 'a'"),
        ({"device": "cuda:99"}, ConfigError, "device: got 'cuda:99'"),
        ({"device": "tpu"}, ConfigError, "device: got 'tpu'"),
        ({"device": ""}, ConfigError, "device: got ''"),
        ({"device": "cpu:7"}, ConfigError, "device: got 'cpu:7'"),
        ({"device": "cpu:x"}, ConfigError, "device: got 'cpu:x'"),
        ({"out": "expression.csv"}, InputError, r"out: 'expression.csv' came, a name that ends in \.h5ad or \.zarr"),
        ({"out": 3}, InputError, "out: got 3"),
    ],
)
def test_refused(model, z, said, kind, message):
    if said.get("device") == "cuda:99" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(kind, match=message):
        model.decode(z, **said)


def test_counts_of_a_model_that_has_none(tmp_path):
    normal = make_model(make_adata(60, 10), epochs=1, gene_likelihood="normal")
    out = tmp_path / "x.h5ad"
    for said in ({}, {"out": out}):
        with pytest.raises(InputError, match="gene_likelihood='normal' draws no whole numbers"):
            normal.decode(typical(normal, 2), quantity="counts", **said)
    assert list(tmp_path.iterdir()) == []


# -- counts


def test_counts_are_whole_and_sparse(full_model, z_full):
    expression = full_model.decode(z_full, quantity="counts", library_size=300, n_samples=4, seed=2)
    assert expression.shape == (24, 40)
    assert expression.X.format == "csr"
    assert expression.X.dtype == np.int32
    assert expression.X.data.min() >= 1  # zeros are not stored
    assert expression.obs["point"].tolist() == np.repeat(np.arange(6), 4).tolist()
    assert expression.obs["draw"].tolist() == [0, 1, 2, 3] * 6
    assert list(expression.obs_names[:5]) == ["0-0", "0-1", "0-2", "0-3", "1-0"]
    np.testing.assert_array_equal(expression.obsm["latent"], np.repeat(z_full, 4, axis=0))
    one = full_model.decode(z_full, quantity="counts")
    assert one.shape == (6, 40)
    assert "draw" not in one.obs


@pytest.mark.parametrize("likelihood", ["zinb", "nb", "poisson"])
def test_moments_of_the_counts(likelihood):
    model = make_model(make_adata(150, 12), epochs=1, gene_likelihood=likelihood)
    z = typical(model, 2)
    n = 4000
    drawn = model.decode(z, quantity="counts", library_size=200, n_samples=n, seed=5, **FIXED).X.toarray()
    drawn = drawn.reshape(2, n, 12).astype(float)
    expected = model.distribution(torch.tensor(z), library_size=200, **FIXED)
    mean, variance = expected.mean.numpy(), expected.variance.numpy()
    # 24 means: six standard errors; of a variance the standard error takes the fourth moment, here the sample's own
    assert (np.abs(drawn.mean(axis=1) - mean) < 6 * np.sqrt(variance / n)).all()
    fourth = ((drawn - drawn.mean(axis=1, keepdims=True)) ** 4).mean(axis=1)
    assert (np.abs(drawn.var(axis=1) - variance) < 6 * np.sqrt((fourth - variance**2).clip(0) / n) + 1e-3).all()
    np.testing.assert_allclose(mean, model.decode(z, quantity="mean", library_size=200, **FIXED).X, rtol=1e-5)


def test_each_draw_of_counts_has_one_condition(model):
    """Averaged over batches, counts are of a mixture: some draws of each batch, none of their average."""
    z = typical(model, 1)
    n = 6000
    weights = {"batch_1": 0.25, "batch_3": 0.75}
    drawn = model.decode(z, quantity="counts", batch=weights, n_samples=n, library_size=5000, seed=1).X.toarray()
    each = {b: model.distribution(torch.tensor(z), batch=b, library_size=5000) for b in weights}
    means = {b: d.mean.numpy()[0] for b, d in each.items()}
    mean = sum(w * means[b] for b, w in weights.items())
    second = sum(w * (each[b].variance.numpy()[0] + means[b] ** 2) for b, w in weights.items())
    variance = second - mean**2
    assert (np.abs(drawn.mean(axis=0) - mean) < 6 * np.sqrt(variance / n)).all()
    # genes go together, as all of a draw come from one batch: the covariance is that of the batches' means
    shift = math.sqrt(0.25 * 0.75) * (means["batch_1"] - means["batch_3"])
    i, j = np.argsort(-np.abs(shift / np.sqrt(variance)))[:2]
    error = 6 * math.sqrt(variance[i] * variance[j] / n)
    assert np.cov(drawn[:, i], drawn[:, j])[0, 1] == pytest.approx(shift[i] * shift[j], abs=error)


def test_counts_of_each_points_own_batch(model):
    z = typical(model, 3)
    batch = np.array(["batch_1", "batch_2", "batch_3"])
    n = 3000
    drawn = (
        model.decode(z, quantity="counts", batch=batch, n_samples=n, library_size=1000).X.toarray().reshape(3, n, 40)
    )
    expected = model.distribution(torch.tensor(z), batch=batch, library_size=1000)
    error = 6 * np.sqrt(expected.variance.numpy() / n)
    assert (np.abs(drawn.mean(axis=1) - expected.mean.numpy()) < error).all()


def test_counts_too_large_for_their_type(model, tmp_path):
    for said in ({}, {"out": tmp_path / "x.h5ad"}):
        with pytest.raises(InputError, match=r"library_size: counts up to .* were drawn, below 2,147,483,648"):
            model.decode(typical(model, 1), quantity="counts", library_size=1e13, **said)
    assert list(tmp_path.iterdir()) == []


def test_counts_with_a_spread(model):
    """The spread of the latent widens the counts; their mean is the mean over the spread."""
    z = typical(model, 1)
    spread, n = 1.0, 4000
    wide = model.decode(z, quantity="counts", spread=spread, n_samples=n, library_size=5000, **FIXED)
    np.testing.assert_array_equal(wide.obsm["latent_spread"], np.full((n, 4), spread))
    drawn = wide.X.toarray()
    mean = model.decode(z, spread=spread, n_samples=n, library_size=5000, seed=9, **FIXED)
    total_variance = drawn.var(axis=0)
    error = 6 * np.sqrt((total_variance + mean.layers["std"][0] ** 2) / n)
    assert (np.abs(drawn.mean(axis=0) - mean.X[0]) < error).all()
    narrow = model.decode(z, quantity="counts", n_samples=n, library_size=5000, **FIXED).X.toarray()
    widest = np.argmax(mean.layers["std"][0] ** 2 / narrow.var(axis=0))
    assert total_variance[widest] > narrow[:, widest].var() * 1.05


# -- draws around the points


def test_draws_against_numpy(full_model, z_full):
    """The same latents, drawn explicitly, decoded one by one, and summarised by numpy."""
    spread = np.abs(z_full) * 0.3 + 0.05
    n = 31
    expression = full_model.decode(z_full, spread=spread, n_samples=n, seed=11, chunk_size=4, **SAID)
    points = read_points(z_full, 4, spread=spread)
    latents = draw(points, slice(0, 6), even_normals(n, 4, seed=11).unsqueeze(1))
    decoded = full_model.distribution(latents.reshape(-1, 4), library_size=1e4, **SAID).mu
    decoded = decoded.reshape(n, 6, 40).numpy().astype(float)
    np.testing.assert_allclose(expression.X, decoded.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(expression.layers["std"], decoded.std(axis=0), rtol=1e-3, atol=1e-4)
    for layer, q in (("q05", 0.05), ("q95", 0.95)):
        np.testing.assert_allclose(expression.layers[layer], np.quantile(decoded, q, axis=0), rtol=1e-3)


@pytest.mark.parametrize("n_samples", [2, 20])
def test_few_draws(model, z, n_samples):
    drawn = model.decode(z, spread=0.3, n_samples=n_samples, **FIXED)
    assert set(drawn.layers) == {"std", "q05", "q95"}
    assert (drawn.layers["q05"] <= drawn.layers["q95"]).all()


def test_one_draw_is_no_spread(model, z):
    with pytest.raises(PointsError, match="one draw has no spread"):
        model.decode(z, spread=0.3, n_samples=1, **FIXED)


def test_no_spread_is_the_point_itself(model, z):
    bare = model.decode(z, **FIXED)
    assert not bare.layers
    still = model.decode(z, spread=0.0, n_samples=3, **FIXED)
    np.testing.assert_allclose(still.X, bare.X, rtol=1e-5)
    np.testing.assert_allclose(still.layers["std"], 0, atol=2e-3)
    np.testing.assert_allclose(still.layers["q95"], bare.X, rtol=1e-5)


def test_a_small_spread_is_its_own_linearisation(model, z):
    """To first order the standard deviation is |gradient| times that of the latent."""
    small = 1e-2
    drawn = model.decode(z[:2], spread=small, n_samples=2000, library_size=1e4, **FIXED)
    points = torch.tensor(z[:2], requires_grad=True)
    mean = model.distribution(points, library_size=1e4, **FIXED).mean
    for gene in range(0, 40, 13):
        gradient = torch.autograd.grad(mean[:, gene].sum(), points, retain_graph=True)[0].norm(dim=1)
        # the error of a standard deviation of 2000 draws is 1 / sqrt(4000) of it
        np.testing.assert_allclose(drawn.layers["std"][:, gene], small * gradient, rtol=6 / math.sqrt(4000))


def test_seeds(model, z):
    def values(**said):
        return model.decode(z, spread=0.4, n_samples=5, **FIXED, **said).X

    np.testing.assert_array_equal(values(), values())
    np.testing.assert_array_equal(values(), values(seed=0))
    np.testing.assert_array_equal(values(seed=7), values(seed=7))
    assert not np.array_equal(values(seed=7), values(seed=8))
    torch.manual_seed(123)
    np.testing.assert_array_equal(values(seed=7), values(seed=7))
    counts = [model.decode(z, quantity="counts", seed=seed).X.toarray() for seed in (0, 0, 1, None)]
    np.testing.assert_array_equal(counts[0], counts[1])
    np.testing.assert_array_equal(counts[0], counts[3])
    assert not np.array_equal(counts[0], counts[2])
    assert values(seed=2**70).shape == (12, 40)


def test_counts_differ_between_points_and_tiles(model, z):
    same = np.repeat(z[:1], 8, axis=0)
    counts = model.decode(same, quantity="counts", chunk_size=3, **FIXED).X.toarray()
    assert len(np.unique(counts, axis=0)) == 8
    spread = model.decode(same, quantity="counts", spread=2.0, chunk_size=3, library_size=1e6, **FIXED).X.toarray()
    assert len(np.unique(spread, axis=0)) == 8


def test_summaries_of_draws_do_not_depend_on_the_tiles(model, z):
    whole = model.decode(z, spread=0.4, n_samples=20, chunk_size=12, **FIXED)
    cut = model.decode(z, spread=0.4, n_samples=20, chunk_size=5, **FIXED)
    for name in (None, *whole.layers):
        np.testing.assert_allclose(cut.to_df(layer=name), whole.to_df(layer=name), rtol=1e-5, atol=1e-5)


def all_draws(model, points, **said):
    """The draws themselves, ``(draws, n, genes)``, of all tiles."""
    asked = prepare(model, points, **said)
    tiles = list(draw_tiles(model.vae, asked.points, asked.conditions, asked.request, torch.device("cpu")))
    assert [rows.start for rows, _ in tiles] == list(range(0, len(points), asked.request.chunk_size))
    return np.concatenate([draws for _, draws in tiles], axis=1)


@pytest.mark.parametrize("said", [FIXED, {}, {"quantity": "mean"}, {"genes": ["gene_07", "gene_01"]}], ids=str)
def test_draws_do_not_depend_on_the_tiles(full_model, z_full, said):
    said = {"continuous": {"age": 40.0, "pct": 0.05}, "spread": 0.4, "n_samples": 20, "seed": 5, **said}
    whole = all_draws(full_model, z_full, chunk_size=6, **said)
    assert whole.shape == (20, 6, len(said.get("genes", full_model.schema.genes)))
    for chunk_size in (1, 4, 100):
        np.testing.assert_allclose(all_draws(full_model, z_full, chunk_size=chunk_size, **said), whole, rtol=1e-5)


def test_a_result_is_the_summary_of_its_draws(model, z):
    said = {"spread": 0.4, "n_samples": 50, **FIXED}
    draws, expression = all_draws(model, z, **said), model.decode(z, **said)
    np.testing.assert_allclose(expression.X, draws.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(expression.layers["std"], draws.std(axis=0), rtol=1e-4)
    for layer, q in (("q05", 0.05), ("q95", 0.95)):
        np.testing.assert_allclose(expression.layers[layer], np.quantile(draws, q, axis=0), rtol=1e-5)
    tile = summary(draws, slice(3, 15))
    assert (tile.start, tile.stop) == (3, 15)
    np.testing.assert_array_equal(tile.values, expression.X)
    assert (tile.layers.keys()) == {"std", "q05", "q95"}
    bare = all_draws(model, z, **FIXED)  # without a spread there is one, the point itself
    np.testing.assert_array_equal(bare, model.decode(z, **FIXED).X[None])


def test_draws_are_standard_normal_and_more_even_than_chance():
    noise = even_normals(512, 5, seed=3).numpy()
    assert noise.shape == (512, 5)
    assert np.isfinite(noise).all()
    assert np.abs(noise.mean(axis=0)).max() < 0.01  # by chance: 1 / sqrt(512) = 0.044
    np.testing.assert_allclose(np.cov(noise.T), np.eye(5), atol=0.05)
    np.testing.assert_array_equal(noise, even_normals(512, 5, seed=3).numpy())
    assert not np.array_equal(noise, even_normals(512, 5, seed=4).numpy())


@pytest.mark.filterwarnings("ignore:points:scdecode.errors.SupportWarning")
def test_few_draws_are_as_good_as_many_by_chance(model, z):
    truth = model.decode(z, spread=0.8, n_samples=16_384, genes=list(model.schema.genes[:5]), **FIXED).X
    few = [model.decode(z, spread=0.8, seed=seed, genes=list(model.schema.genes[:5]), **FIXED).X for seed in range(4)]
    generator = torch.Generator().manual_seed(0)
    by_chance = []
    for _ in range(4):
        moved = torch.tensor(z) + 0.8 * torch.randn(DEFAULT_DRAWS, *z.shape, generator=generator)
        by_chance.append(model.decode(moved, genes=list(model.schema.genes[:5]), **FIXED).X.reshape(-1, 12, 5).mean(0))
    error, chance = (np.sqrt(np.mean((np.array(values) - truth) ** 2)) for values in (few, by_chance))
    assert error < chance / 2


def test_spread_of_a_distribution(model, adata):
    posterior = model.posterior(adata[:6])
    keep = model.support(posterior.loc) < 95
    posterior = Normal(posterior.loc[keep], posterior.scale[keep])
    expected = model.decode(posterior.loc, spread=posterior.scale, seed=3, **FIXED)
    assert expected.uns["scdecode"]["arguments"].count(f'"n_samples": {DEFAULT_DRAWS}') == 1
    for distribution in (posterior, Independent(posterior, 1)):
        found = model.decode(distribution, seed=3, **FIXED)
        np.testing.assert_array_equal(found.X, expected.X)
        np.testing.assert_array_equal(found.layers["q95"], expected.layers["q95"])


def test_correlated_spread(model, z):
    """A covariance of rank one along a direction is the spread along that direction alone."""
    direction = np.array([1.0, -2.0, 0.5, 0.0])
    drawn = model.decode(z[0], spread=np.outer(direction, direction), n_samples=4000, **FIXED)
    steps = torch.randn(4000, 1, generator=torch.Generator().manual_seed(5))
    along = torch.tensor(z[0]) + steps * torch.tensor(direction, dtype=torch.float32)
    by_hand = model.distribution(along, library_size=1e4, **FIXED).mean.numpy()
    np.testing.assert_allclose(drawn.X[0], by_hand.mean(axis=0), atol=8 * by_hand.std(axis=0).max() / math.sqrt(4000))
    np.testing.assert_allclose(drawn.layers["std"][0], by_hand.std(axis=0), rtol=0.2)


# -- the chunk, when none is given


def test_default_chunks_hold_memory_in_bounds():
    bare, spread = read_points(np.zeros((1, 2)), 2), read_points(np.zeros((1, 2)), 2, spread=1.0)

    def request(quantity, points, n_genes, n_samples=None):
        return make_request(quantity, points, n_genes, genes=None, n_samples=n_samples, seed=None, chunk_size=None)

    assert 16 <= request("rate", bare, 2000).chunk_size <= 4096
    assert request("rate", bare, 10).chunk_size == 4096
    assert request("rate", bare, 10**7).chunk_size == 16
    for n_genes, n_samples in ((2000, 100), (20_000, 1000), (60_000, 100)):
        made = request("rate", spread, n_genes, n_samples)
        assert made.chunk_size >= 1
        assert made.chunk_size * n_genes * n_samples * 4 <= max(2**28, n_genes * n_samples * 4)
    assert request("counts", bare, 2000, 10**7).chunk_size == 1


# -- progress


def test_on_tile(model, z, tmp_path):
    for out in (None, tmp_path / "x.h5ad", tmp_path / "x.zarr"):
        done = []
        model.decode(z, chunk_size=5, on_tile=done.append, out=out, **FIXED)
        assert done == [5, 5, 2]


# -- the distribution


def test_distribution_has_the_mean_of_decode(any_model):
    z = typical(any_model, 3)
    for said in (FIXED, {}, {"batch": np.array(["batch_3", "batch_1", "batch_2"])}):
        expected = any_model.decode(z, quantity="mean", library_size=700, **said).X
        distribution = any_model.distribution(torch.tensor(z), library_size=700, **said)
        np.testing.assert_allclose(distribution.mean.expand(3, 15).numpy(), expected, rtol=1e-5)
        assert distribution.batch_shape == (3, 15)
        assert distribution.sample().shape == (3, 15)
        assert distribution.sample((2,)).shape == (2, 3, 15)
        assert (distribution.variance > 0).all()


def test_gradient_against_finite_differences(full_model, z_full):
    counts = torch.tensor([0.0, 1.0, 3.0, 0.0, 12.0] * 8)
    vae = full_model.vae.double()
    try:
        for said in (SAID, {}):
            # in float32 the differences drown: the same functions in float64, by way of the vae
            def of(point, said=said):
                conditions = sd.conditions.resolve(full_model.schema, 1, library_size=900, **said)
                return sd.decoding.distribution(vae, point, conditions, None)

            point = torch.tensor(z_full[:1], dtype=torch.float64)
            for function in (lambda p: of(p).log_prob(counts.double()).sum(), lambda p: of(p).mean[0, 3]):
                variable = point.clone().requires_grad_(True)
                gradient = torch.autograd.grad(function(variable), variable)[0][0]
                assert gradient.abs().min() > 0
                for k in range(4):
                    step = torch.zeros_like(point)
                    step[0, k] = 1e-5
                    difference = (function(point + step) - function(point - step)).item() / 2e-5
                    assert gradient[k].item() == pytest.approx(difference, rel=1e-3, abs=1e-6)
    finally:
        full_model.vae.float()


def test_gradient_through_the_public_call(full_model, z_full):
    z = torch.tensor(z_full, requires_grad=True)
    before = [None if p.grad is None else p.grad.clone() for p in full_model.vae.parameters()]
    for said in (SAID, {}):
        z.grad = None
        full_model.distribution(z, **said).log_prob(torch.ones(6, 40)).sum().backward()
        assert z.grad is not None
        assert torch.isfinite(z.grad).all()
        assert (z.grad != 0).any(dim=1).all()
    for p, grad in zip(full_model.vae.parameters(), before, strict=True):
        assert not p.requires_grad
        assert p.grad is grad is None or torch.equal(p.grad, grad)


def test_gradient_descent_finds_a_cell(model, z):
    """What people train on top: from the middle of the latent space to the point that explains given counts."""
    target = torch.tensor(z[:1])
    counts = model.distribution(target, library_size=1e5, **FIXED).mean.round()
    point = torch.zeros(1, 4, requires_grad=True)
    optimizer = torch.optim.Adam([point], lr=0.05)
    losses = []
    for _ in range(60):
        loss = -model.distribution(point, library_size=1e5, **FIXED).log_prob(counts).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert losses[-1] < -model.distribution(target, library_size=1e5, **FIXED).log_prob(counts).sum() * 1.05


def test_log_prob_of_a_mixture_is_that_of_its_parts(full_model, z_full):
    z = torch.tensor(z_full)
    counts = full_model.distribution(z, library_size=500, **SAID).sample()
    said = {"categorical": SAID["categorical"], "continuous": SAID["continuous"], "library_size": 500}
    weights = {"batch_1": 0.2, "batch_2": 0.5, "batch_3": 0.3}
    mixture = full_model.distribution(z, batch=weights, **said)
    parts = torch.stack(
        [full_model.distribution(z, batch=b, **said).log_prob(counts) + math.log(w) for b, w in weights.items()]
    )
    torch.testing.assert_close(mixture.log_prob(counts), torch.logsumexp(parts, dim=0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        mixture.mean, full_model.decode(z_full, quantity="mean", batch=weights, **said).X, rtol=1e-5
    )


def test_a_mixture_of_one_has_nothing_of_the_others():
    """Points with fewer combinations than others: what fills up their mixture has no weight, in the tails neither."""
    adata = make_adata(150, 12)
    may_be_male = (adata.obs["batch"] != "batch_3") & (np.arange(150) % 2 == 0)
    adata.obs["sex"] = np.where(may_be_male, "male", "female")
    setup = {"batch_key": "batch", "categorical_covariate_keys": ["sex"]}
    model = make_model(adata, setup=setup, epochs=1)
    with torch.no_grad():  # theta of 1000, so that batches are far apart, and the batches' columns stand out
        model.vae.log_theta.fill_(7.0)
        for layer in model.vae.decoder.mlp.layers:
            layer.linear.weight[:, 4:] *= 30
    z = torch.tensor(typical(model, 2))
    batch = np.array(["batch_3", "batch_2"])  # one combination, and two; what fills up is of batch 1
    mixture = model.distribution(z, batch=batch, library_size=1e5)
    alone = model.distribution(z[:1], batch="batch_3", categorical={"sex": "female"}, library_size=1e5)
    counts = model.distribution(z[:1], batch="batch_1", categorical={"sex": "female"}, library_size=1e5).mean.round()
    expected = alone.log_prob(counts)
    assert expected.min() < -30  # the tails: a weight of 1e-7 would be worth -16
    torch.testing.assert_close(mixture.log_prob(counts.expand(2, -1))[:1], expected, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(mixture.mean[:1], alone.mean, rtol=1e-5, atol=1e-5)
    assert torch.isfinite(mixture.variance).all()
    z.requires_grad_(True)
    again = model.distribution(z, batch=batch, library_size=1e5)
    gradient = torch.autograd.grad(again.log_prob(counts.expand(2, -1)).sum(), z)[0]
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize(
    ("z", "message"),
    [
        (np.zeros((2, 4), dtype=np.float32), r"z: got ndarray of shape \(2, 4\), expected a tensor of latent points"),
        (torch.zeros(4), r"z: \(4,\) came, a tensor of shape \(n, 4\)"),
        (torch.zeros(2, 3), r"z: \(2, 3\) came"),
        (torch.zeros(2, 2, 4), r"z: \(2, 2, 4\) came"),
        (torch.full((2, 4), math.nan), "2 of 2 points have NaN"),
        (torch.zeros(0, 4), "no points"),
        (torch.zeros(2, 4, dtype=torch.complex64), "no array of numbers"),
    ],
)
def test_refused_by_the_distribution(model, z, message):
    with pytest.raises(PointsError, match=message):
        model.distribution(z)


def test_distribution_takes_float64_and_whole_numbers(model):
    expected = model.distribution(torch.zeros(1, 4), **FIXED).mean
    for dtype in (torch.float64, torch.int64, torch.float16):
        found = model.distribution(torch.zeros(1, 4, dtype=dtype), **FIXED).mean
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected)
