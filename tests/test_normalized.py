"""Normalised expression, likelihood parameters, posterior predictive draws and correlations of cells."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import spearmanr
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode._utils import memory
from scdecode.errors import (
    ConditionError,
    ConfigError,
    CountsError,
    CountsWarning,
    InputError,
    MissingExtraError,
    NotTrainedError,
    ScdecodeWarning,
)

METHODS = [
    "get_normalized_expression",
    "get_likelihood_parameters",
    "posterior_predictive_sample",
    "get_feature_correlation_matrix",
    "get_elbo",
    "get_reconstruction_error",
    "get_marginal_ll",
    "get_latent_representation",
    "get_latent_library_size",
]


@pytest.fixture
def at_the_mean(monkeypatch):
    """Draws are the means."""

    monkeypatch.setattr("scdecode.draws.draw_standard", lambda like, generator: torch.zeros_like(like))


def latents_of(model):
    return torch.from_numpy(model.get_latent_representation())


def codes_of(model, batch=None):
    codes = torch.from_numpy(model._cells.codes_nc).clone()
    if batch is not None:
        codes[:, 0] = batch
    return codes


class TestNormalizedExpression:
    def test_values_by_hand(self, model, at_the_mean):
        continuous = torch.from_numpy(model._cells.continuous_nd)
        scale = model.vae.scale(latents_of(model), codes_of(model), continuous).numpy()
        np.testing.assert_allclose(model.get_normalized_expression(), scale, rtol=1e-5)
        np.testing.assert_allclose(model.get_normalized_expression(library_size=1e4), 1e4 * scale, rtol=1e-5)
        own = scale * model._cells.library_n[:, None]
        np.testing.assert_allclose(model.get_normalized_expression(library_size="latent"), own, rtol=1e-5)
        np.testing.assert_allclose(scale.sum(1), 1.0, rtol=1e-5)

    def test_another_batch(self, model, at_the_mean):
        continuous = torch.from_numpy(model._cells.continuous_nd)
        scales = [model.vae.scale(latents_of(model), codes_of(model, b), continuous).numpy() for b in range(3)]
        names = model.schema.batch.names
        np.testing.assert_allclose(model.get_normalized_expression(transform_batch=names[1]), scales[1], rtol=1e-5)
        both = model.get_normalized_expression(transform_batch=[names[0], names[2]])
        np.testing.assert_allclose(both, (scales[0] + scales[2]) / 2, rtol=1e-5)
        mixed = model.get_normalized_expression(transform_batch=[None, names[2]])
        own = model.get_normalized_expression().to_numpy()
        np.testing.assert_allclose(mixed, (own + scales[2]) / 2, rtol=1e-5)

    def test_a_number_names_a_batch(self, adata):
        adata.obs["batch"] = adata.obs["batch"].map({f"batch_{i}": i + 7 for i in range(10)}).astype(int)
        model = make_model(adata, epochs=1)
        named = model.get_normalized_expression(transform_batch=model.schema.batch.names[0])
        assert named.equals(model.get_normalized_expression(transform_batch=int(model.schema.batch.names[0])))
        with pytest.raises(ConditionError, match=r"transform_batch: 0 is not one of the 3 training batches"):
            model.get_normalized_expression(transform_batch=0)

    def test_without_a_batch_there_is_one_called_0(self, adata):
        model = make_model(adata, setup={}, epochs=1)
        assert model.get_normalized_expression(transform_batch=0).equals(model.get_normalized_expression())

    def test_a_table_with_names(self, model):
        table = model.get_normalized_expression()
        assert isinstance(table, pd.DataFrame)
        assert table.index.equals(model.adata.obs_names)
        assert table.columns.equals(model.adata.var_names)
        assert set(table.dtypes) == {np.dtype(np.float32)}
        some = model.get_normalized_expression(indices=[5, 2], gene_list=["gene_09", "gene_03"])
        assert list(some.index) == list(model.adata.obs_names[[5, 2]])
        assert list(some.columns) == ["gene_03", "gene_09"]

    @pytest.fixture
    def genes(self, model):
        return list(model.adata.var_names)

    def test_genes_come_in_the_order_of_the_model(self, model, genes):
        table = model.get_normalized_expression(gene_list=[genes[7], genes[2]])
        assert list(table.columns) == [genes[2], genes[7]]
        np.testing.assert_allclose(table, model.get_normalized_expression()[[genes[2], genes[7]]], rtol=1e-5)

    def test_genes_that_are_not_there(self, model, genes):
        with pytest.warns(CountsWarning, match=r"gene_list: 1 of 2 names are not among the 40 genes .*\['nope'\]"):
            table = model.get_normalized_expression(gene_list=["nope", genes[0]])
        assert list(table.columns) == [genes[0]]
        with pytest.raises(InputError, match="none of which is among"):
            model.get_normalized_expression(gene_list=["nope"])
        with pytest.raises(InputError, match=r"gene_list: got 'gene' .*, expected a list"):
            model.get_normalized_expression(gene_list="gene")

    def test_several_draws(self, model):
        draws = model.get_normalized_expression(n_samples=5, return_mean=False)
        assert isinstance(draws, np.ndarray)
        assert draws.shape == (5, 300, 40)
        assert draws.dtype == np.float32
        assert draws.std(0).min() > 0
        mean = model.get_normalized_expression(n_samples=5)
        assert isinstance(mean, pd.DataFrame)
        np.testing.assert_allclose(mean, draws.mean(0), rtol=1e-4)
        array = model.get_normalized_expression(n_samples=5, return_numpy=True)
        assert np.array_equal(array, mean.to_numpy())
        with pytest.warns(ScdecodeWarning, match="an array is returned"):
            model.get_normalized_expression(n_samples=5, return_mean=False, return_numpy=False)

    def test_tiles_change_nothing(self, model, monkeypatch):
        whole = model.get_normalized_expression(n_samples=7, return_numpy=True)
        draws = model.get_normalized_expression(n_samples=7, return_mean=False, library_size="latent")
        monkeypatch.setattr("scdecode.asked.TILE_BYTES", 4 * 40 * 3)
        monkeypatch.setattr("scdecode.normalized.TILE_BYTES", 4 * 40 * 3)
        np.testing.assert_allclose(model.get_normalized_expression(n_samples=7, return_numpy=True), whole, rtol=1e-5)
        again = model.get_normalized_expression(n_samples=7, return_mean=False, library_size="latent", batch_size=11)
        np.testing.assert_allclose(again, draws, rtol=1e-4)

    def test_rows_picked_at_random(self, model):
        some = model.get_normalized_expression(n_samples_overall=11)
        assert some.shape == (11, 40)
        many = model.get_normalized_expression(n_samples_overall=4000, return_numpy=True)
        assert many.shape == (4000, 40)
        each = model.get_normalized_expression(n_samples=10, return_numpy=True)
        error = many.std(0) / np.sqrt(4000)
        assert (np.abs(many.mean(0) - each.mean(0)) < 5 * error).all()
        assert len(np.unique(many, axis=0)) < 4000, "with replacement"
        with pytest.raises(InputError, match="n_samples, n_samples_overall: 2 and 11 came"):
            model.get_normalized_expression(n_samples=2, n_samples_overall=11)

    def test_seeds(self, model):
        torch.manual_seed(3)
        before = torch.get_rng_state()
        one = model.get_normalized_expression()
        assert one.equals(model.get_normalized_expression())
        assert not one.equals(model.get_normalized_expression(seed=1))
        assert torch.equal(torch.get_rng_state(), before), "torch's own generator is untouched"
        assert not model.vae.training

    def test_the_mean_of_draws_of_a_learned_library(self):
        model = make_model(make_adata(), use_observed_lib_size=False)
        mean = model.get_normalized_expression(library_size="latent", n_samples=400).sum(axis=1)
        expected = model.get_latent_library_size()[:, 0]
        assert np.abs(mean / expected - 1).max() < 0.2
        one = model.get_normalized_expression(library_size="latent").sum(axis=1).to_numpy()
        draw = model.get_latent_library_size(give_mean=False)[:, 0]
        assert draw.shape == one.shape
        assert not np.allclose(draw, expected)

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"weights": "importance"}, "weights='importance' came.*every draw counts the same"),
            ({"dataloader": []}, r"dataloader=\[\] came.*adata=..., indices=..."),
            ({"data_loader_kwargs": {"num_workers": 1}}, "data_loader_kwargs=.* came.*batch_size"),
            ({"max_cells": 3}, "there is no argument 'max_cells'"),
            ({"library_size": "observed"}, "library_size: 'observed' came"),
            ({"n_samples": 0}, "n_samples: 0 came"),
            ({"transform_batch": "b"}, "transform_batch: 'b' is not one of"),
            ({"transform_batch": []}, "transform_batch: an empty list came"),
        ],
    )
    def test_what_is_refused(self, model, given, message):
        with pytest.raises(InputError, match=message):
            model.get_normalized_expression(**given)


class TestOtherCells:
    def test_a_second_anndata_in_another_order(self, full_model, at_the_mean):
        adata = full_model.adata
        mixed = adata[::-3, np.random.default_rng(0).permutation(adata.n_vars)].copy()
        ours = full_model.get_normalized_expression(mixed)
        assert list(ours.columns) == list(adata.var_names)
        assert ours.index.equals(mixed.obs_names)
        np.testing.assert_allclose(ours, full_model.get_normalized_expression().loc[mixed.obs_names], rtol=1e-4)
        assert "scdecode_setup" in mixed.uns

    def test_a_model_from_files_needs_cells(self, model, adata, tmp_path):
        model.save(tmp_path / "m")
        opened = sd.load(tmp_path / "m")
        assert opened.adata is None
        np.testing.assert_allclose(
            opened.get_normalized_expression(adata), model.get_normalized_expression(), rtol=1e-5
        )
        with pytest.raises(InputError, match="adata: none came"):
            opened.get_normalized_expression()

    def test_what_the_decoder_needs(self):
        model = make_model(make_adata(), setup=EVERYTHING, dispersion="gene-label")
        bare = make_adata()
        del bare.obs["cell_type"]
        with pytest.raises(ConditionError, match="there is no 'cell_type', which dispersion='gene-label' needs"):
            model.get_normalized_expression(bare)
        del bare.obs["batch"]
        with pytest.raises(InputError, match="batch_key: 'batch' is not"):
            model.get_elbo(bare)

    def test_a_size_factor(self, at_the_mean):
        setup = {"batch_key": "batch", "size_factor_key": "size_factor"}
        model = make_model(make_adata(), setup=setup)
        scale = model.get_normalized_expression()
        own = model.get_normalized_expression(library_size="latent")
        factor = model.adata.obs["size_factor"].to_numpy()[:, None]
        np.testing.assert_allclose(own, scale * factor, rtol=1e-4)
        bare = make_adata()
        del bare.obs["size_factor"]
        np.testing.assert_allclose(model.get_normalized_expression(bare), scale, rtol=1e-5)
        with pytest.raises(ConditionError, match="there is no 'size_factor', the size factor"):
            model.get_likelihood_parameters(bare)

    def test_cells_that_were_left_out_since(self, adata):
        """Their names would no longer be those of the cells that the model was made of."""
        model = make_model(adata, epochs=1)
        adata._inplace_subset_obs(np.arange(300) > 0)
        with pytest.raises(
            InputError, match=r"adata.obs_names: got 299 cells, and there were 300 when the model was made"
        ):
            model.get_normalized_expression()
        assert model.get_normalized_expression(adata).index.equals(adata.obs_names)

    @pytest.mark.parametrize("method", METHODS)
    def test_an_untrained_model(self, adata, method):
        with pytest.raises(NotTrainedError):
            getattr(make_model(adata, epochs=0), method)()

    @pytest.mark.parametrize("method", METHODS)
    def test_counts_that_changed(self, adata, method):
        model = make_model(adata, epochs=1)
        model.adata.X *= 2
        with pytest.raises(CountsError, match="changed after the model was made"):
            getattr(model, method)()


class TestLikelihoodParameters:
    @pytest.mark.parametrize(
        ("likelihood", "names"),
        [
            ("zinb", ["mean", "dropout", "dispersions"]),
            ("nb", ["mean", "dispersions"]),
            ("poisson", ["mean"]),
            ("normal", ["mean", "dispersions"]),
        ],
    )
    def test_values_by_hand(self, likelihood, names, at_the_mean):
        model = make_model(make_adata(), gene_likelihood=likelihood, epochs=1)
        found = model.get_likelihood_parameters()
        assert list(found) == names
        own = model.get_normalized_expression(library_size="latent")
        np.testing.assert_allclose(found["mean"], own, rtol=1e-4)
        if "dispersions" in names:
            theta = np.broadcast_to(model.vae.log_theta.exp().numpy(), (300, 40))
            np.testing.assert_allclose(found["dispersions"], theta, rtol=1e-5)
        assert all(value.dtype == np.float32 and value.shape == (300, 40) for value in found.values())

    def test_several_draws(self, full_model):
        draws = full_model.get_likelihood_parameters(n_samples=4, indices=range(9))
        assert {value.shape for value in draws.values()} == {(4, 9, 40)}
        mean = full_model.get_likelihood_parameters(n_samples=4, indices=range(9), give_mean=True)
        for name, value in mean.items():
            np.testing.assert_allclose(value, draws[name].mean(0), rtol=1e-5)
        assert (draws["dropout"] > 0).all()
        assert (draws["dropout"] < 1).all()

    @pytest.mark.parametrize("dispersion", ["gene-batch", "gene-label", "gene-cell"])
    def test_dispersions_of_a_cell(self, dispersion):
        model = make_model(make_adata(), setup=EVERYTHING, dispersion=dispersion, epochs=1)
        theta = model.get_likelihood_parameters()["dispersions"]
        if dispersion != "gene-cell":
            codes = model._cells.codes_nc[:, 0 if dispersion == "gene-batch" else -1]
            np.testing.assert_allclose(theta, model.vae.log_theta.exp().numpy()[codes], rtol=1e-5)
        assert len(np.unique(theta, axis=0)) == {"gene-batch": 3, "gene-label": 3, "gene-cell": 300}[dispersion]


class TestPosteriorPredictive:
    sparse = pytest.importorskip("sparse")

    def test_one_draw(self, model):
        drawn = model.posterior_predictive_sample()
        assert isinstance(drawn, self.sparse.GCXS)
        assert drawn.shape == (300, 40)
        assert drawn.dtype == np.float32
        counts = drawn.todense()
        assert (counts == np.rint(counts)).all()
        assert np.array_equal(counts, model.posterior_predictive_sample().todense())
        assert not np.array_equal(counts, model.posterior_predictive_sample(seed=2).todense())

    def test_the_mean_and_the_variance(self, full_model, at_the_mean):
        drawn = full_model.posterior_predictive_sample(n_samples=800, indices=[0, 50, 9]).todense()
        assert drawn.shape == (3, 40, 800)
        found = full_model.get_likelihood_parameters(indices=[0, 50, 9])
        mean = (1 - found["dropout"]) * found["mean"]
        variance = mean * (1 + found["mean"] * (found["dropout"] + 1 / found["dispersions"]))
        assert (np.abs(drawn.mean(-1) - mean) < 5 * np.sqrt(variance / 800)).all()

    def test_genes_and_batches(self, model):
        genes = list(model.adata.var_names)
        drawn = model.posterior_predictive_sample(
            gene_list=[genes[3], genes[1]], transform_batch=list(model.schema.batch.names), n_samples=2
        ).todense()
        assert drawn.shape == (300, 2, 2)
        assert ((3 * drawn).round(4) == np.rint(3 * drawn)).all(), "a mean of three draws"

    def test_without_the_package(self, model, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "sparse", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'scdecode\[sparse\]'"):
            model.posterior_predictive_sample()


class TestCorrelations:
    def test_the_table(self, model):
        table = model.get_feature_correlation_matrix(n_samples=2)
        assert table.index.equals(model.adata.var_names)
        assert table.columns.equals(model.adata.var_names)
        assert set(table.dtypes) == {np.dtype(np.float64)}
        np.testing.assert_allclose(np.diag(table), 1.0)
        np.testing.assert_allclose(table, table.T)

    @pytest.mark.parametrize("kind", ["spearman", "pearson"])
    def test_values_by_hand(self, model, monkeypatch, at_the_mean, kind):
        """With gamma draws at their mean, the rates are a thousand times the scale."""
        monkeypatch.setattr(torch, "_standard_gamma", lambda theta, generator: theta)
        scale = model.get_normalized_expression(return_numpy=True).astype(np.float64)
        expected = spearmanr(scale)[0] if kind == "spearman" else np.corrcoef(scale, rowvar=False)
        np.testing.assert_allclose(model.get_feature_correlation_matrix(correlation_type=kind), expected, atol=2e-3)

    def test_the_spread_of_the_rates(self, model, monkeypatch, at_the_mean):
        """Gamma draws of shape theta and mean 1000 rho."""
        seen = []
        monkeypatch.setattr(np, "corrcoef", lambda flat, rowvar: seen.append(flat) or np.eye(flat.shape[1]))
        model.get_feature_correlation_matrix(n_samples=2000, indices=[4], correlation_type="pearson")
        mean = 1000 * model.get_normalized_expression(indices=[4], return_numpy=True)[0]
        theta = model.vae.log_theta.exp().numpy()[0]
        error = mean / np.sqrt(theta * 2000)
        assert seen[0].shape == (2000, 40)
        assert (np.abs(seen[0].mean(0) - mean) < 5 * error).all()
        np.testing.assert_allclose(seen[0].std(0), mean / np.sqrt(theta), rtol=0.4)

    def test_an_average_over_batches(self, model):
        names = list(model.schema.batch.names)
        table = model.get_feature_correlation_matrix(n_samples=1, transform_batch=names)
        assert table.shape == (40, 40)

    def test_what_is_refused(self, model):
        with pytest.raises(InputError, match="correlation_type: 'kendall' came"):
            model.get_feature_correlation_matrix(correlation_type="kendall")
        poisson = make_model(make_adata(), gene_likelihood="poisson", epochs=1)
        with pytest.raises(InputError, match="gene_likelihood='poisson' has no inverse dispersion"):
            poisson.get_feature_correlation_matrix()


class TestEmbedding:
    def test_the_batch_representation(self, adata):
        options = {"batch_representation": "embedding", "batch_embedding_kwargs": {"embedding_dim": 3}}
        model = make_model(adata, **options, epochs=1)
        found = model.get_batch_representation(indices=range(20))
        assert isinstance(found, np.ndarray)
        assert found.shape == (20, 3)
        table = model.vae.batch_embedding.weight.numpy()
        assert np.array_equal(found, table[model._cells.codes_nc[:20, 0]])

    def test_a_model_without_one(self, model):
        with pytest.raises(InputError, match="no embedding of the batch"):
            model.get_batch_representation()


class TestLatents:
    def test_mean_and_variance(self, model):
        mean, variance = model.get_latent_representation(return_dist=True)
        assert (mean.dtype, variance.dtype) == (np.float32, np.float32)
        assert np.array_equal(mean, model.get_latent_representation())
        np.testing.assert_allclose(variance, model.posterior().variance, rtol=1e-5)

    def test_total_counts(self, model):
        found = model.get_latent_library_size(give_mean=False, indices=[3, 1])
        assert found.shape == (2, 1)
        assert np.array_equal(found[:, 0], model._cells.library_n[[3, 1]])
        with pytest.raises(InputError, match="learns no library size"):
            model.get_latent_library_size()

    def test_what_is_refused(self, model):
        with pytest.raises(InputError, match=r"dataloader=\[\] came"):
            model.get_latent_representation(dataloader=[])
        with pytest.raises(InputError, match="there is no argument 'num_workers'"):
            model.get_latent_representation(num_workers=2)


class TestMemory:
    """Draws that do not fit are refused before they are made."""

    @pytest.mark.parametrize(
        "call",
        [
            lambda model: model.get_normalized_expression(n_samples=5000, return_mean=False),
            lambda model: model.get_likelihood_parameters(n_samples=5000),
            lambda model: model.get_likelihood_parameters(n_samples=5000, give_mean=False),
            lambda model: model.posterior_predictive_sample(n_samples=5000),
            lambda model: model.get_feature_correlation_matrix(n_samples=5000),
            lambda model: model.get_latent_representation(n_samples=5000),
            lambda model: model.decode(np.zeros((9_000, model.config.n_latent))),
        ],
    )
    def test_what_does_not_fit(self, model, call, monkeypatch):
        monkeypatch.setattr(memory, "physical_memory", lambda: 2**20)
        with pytest.raises(ConfigError, match=r"takes .* GB of memory, and this machine has"):
            call(model)
