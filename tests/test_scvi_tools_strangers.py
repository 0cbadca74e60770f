"""Model directories that other people saved with scvi-tools, of versions 0.8 to 1.3.

They are not ours to copy; where the folder is absent these tests are skipped. ``tests/peer/test_peer_strangers.py``
compares their numbers with those of scvi-tools.
"""

import warnings

import numpy as np
import pytest
from test_realdata import DATA

import scdecode as sd
from scdecode.errors import ForeignModelError
from scdecode.formats import scvi_tools

MODELS = DATA.parent / "models"

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models of others in {MODELS}"),
]

# class, version, genes, batches, labels
HONEST = {
    "SCVI-0.8.0-legacy": ("SCVI", "0.0.0", 100, 2, 3),  # a version of a developer, who had not numbered it
    "SCVI-0.15.5": ("SCVI", "0.15.5", 100, 2, 3),
    "SCVI-0.16.1-pancreas": ("SCVI", "0.16.1", 1000, 3, 1),
    "SCANVI-1.0.3": ("SCANVI", "1.0.3", 100, 1, 3),
}


@pytest.fixture(params=HONEST)
def name(request):
    return request.param


def test_it_opens(name):
    kind, version, n_genes, n_batches, n_labels = HONEST[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = sd.load(MODELS / name)
    assert type(model).__name__ == kind and model.is_trained
    assert model.info()["trained_by"] == f"scvi-tools {version}"
    assert (model.schema.n_genes, model.schema.n_batches, model.schema.n_labels) == (n_genes, n_batches, n_labels)


def test_what_it_decodes_is_a_distribution_in_every_batch(name):
    model = sd.load(MODELS / name)
    z_nk = np.random.default_rng(0).normal(0, 1.5, (50, model.config.n_latent))
    found = []
    for batch in (None,) if model.schema.batch is None else model.schema.batch.names:
        scale = model.decode(z_nk, quantity="scale", batch=batch).X
        assert np.isfinite(scale).all() and (scale >= 0).all()
        np.testing.assert_allclose(scale.sum(1), 1.0, rtol=1e-5)
        mean = model.decode(z_nk, quantity="mean", batch=batch, library_size=1e4).X
        assert np.isfinite(mean).all() and (mean <= 1e4 * scale * (1 + 1e-5)).all()
        found.append(scale)
    assert len(found) == model.schema.n_batches
    assert all(np.abs(one - found[0]).max() > 1e-4 for one in found[1:])


def test_the_pancreas():
    """Its options, of which layer normalisation leaves no trace in the weights; its history; its names."""
    model = sd.load(MODELS / "SCVI-0.16.1-pancreas")
    config = model.config
    assert (config.n_layers, config.use_layer_norm, config.use_batch_norm) == (2, "both", "none")
    assert config.encode_covariates and not config.deeply_inject_covariates
    assert model.schema.n_cells == 10_294 and model.schema.genes[:2] == ("COL3A1", "CPA2")
    assert model.schema.batch.key == "study" and "Pancreas CelSeq" in model.schema.batch.names
    elbo = model.history_table["elbo_train"].dropna()
    assert len(elbo) == 2 and elbo.is_monotonic_decreasing


def test_the_cells_beside_a_model_are_those_it_was_trained_on():
    model = sd.SCANVI.load(MODELS / "SCANVI-1.0.3")
    assert model.adata.shape == (400, 100)
    predicted = model.predict()
    assert set(predicted) <= {"label_1", "label_2"}
    assert np.median(model.support(model.get_latent_representation())) == pytest.approx(50, abs=5)


def test_it_is_written_and_read_again(name, tmp_path):
    stored = scvi_tools.read(MODELS / name)
    scvi_tools.write(tmp_path / "model", stored)
    again = scvi_tools.read(tmp_path / "model")
    assert again.config == stored.config and again.schema.genes == stored.schema.genes
    one, other = stored.vae.state_dict() | stored.kept, again.vae.state_dict() | again.kept
    assert set(one) == set(other) and all((one[key] == other[key]).all() for key in one)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("TOTALVI-1.3.2-unsupported", r"it is a TOTALVI of scvi-tools 1\.3\.2; scdecode opens"),
        ("scPoli-not-scvi-tools", "scPoli.*scdecode opens"),
    ],
)
def test_what_cannot_be_opened_is_called_by_its_name(name, message):
    with pytest.raises(ForeignModelError, match=message):
        sd.load(MODELS / name)
