"""Models whose latent points sum to one (``latent_distribution="ln"``): what is a point there, and what is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_models import make_adata, make_model

from scdecode.errors import ConfigError, PointsError
from scdecode.points import draw, read_points


@pytest.fixture(scope="module")
def ln_model():
    return make_model(make_adata(), latent_distribution="ln")


def test_latents_sum_to_one_and_do_not_depend_on_the_cells_beside_them(ln_model):
    cells = make_adata()
    latents = ln_model.get_latent_representation(cells)
    np.testing.assert_allclose(latents.sum(axis=1), 1, rtol=1e-5)
    assert (latents > 0).all()
    np.testing.assert_allclose(ln_model.get_latent_representation(cells[7:9]), latents[7:9], atol=1e-5)
    drawn = ln_model.get_latent_representation(cells, n_samples=4000)
    np.testing.assert_allclose(drawn.mean(axis=0), latents, atol=0.02)


def test_training_cells_are_typical(ln_model):
    support = ln_model.support(ln_model.get_latent_representation(make_adata()))
    assert 45 < np.median(support) < 55


def test_a_posterior_is_no_latent_point(ln_model):
    posterior = ln_model.posterior(make_adata()[:5])
    for use in (ln_model.support, ln_model.decode):
        with pytest.raises(PointsError, match="latent points of a model with latent_distribution='ln' sum to one"):
            use(posterior)


def test_draws_around_a_point_stay_on_the_simplex():
    points = read_points(np.array([[0.98, 0.01, 0.01], [1 / 3, 1 / 3, 1 / 3]]), 3, spread=0.2, simplex=True)
    drawn = draw(points, slice(0, 2), torch.randn(500, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert (drawn >= 0).all()
    np.testing.assert_allclose(drawn.sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("mc_samples", [0, -1, 2.5])
def test_a_mean_of_no_draws(ln_model, mc_samples):
    with pytest.raises(ConfigError, match="mc_samples"):
        ln_model.get_latent_representation(make_adata()[:3], mc_samples=mc_samples)
