"""Model directories that other people saved, through scvi-tools and through scdecode: the same numbers.

They are strangers' pickles, and scvi-tools runs what a pickle asks for: our reader, which refuses every name that an
honest file does not have, goes first. Where the folder is absent these tests are skipped.
"""

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import scvi
import torch
from anndata import AnnData
from grid import WORST, compare, our_answers, questions, their_answers
from test_scvi_tools_strangers import HONEST, MODELS

import scdecode as sd
from scdecode.formats import scvi_tools
from scdecode.formats.archives import read_archive

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models of others in {MODELS}"),
    # of old files: keys that were added since, and versions
    pytest.mark.filterwarnings("ignore::UserWarning:scvi", "ignore::FutureWarning"),
]
N_CELLS = 60
CLOSED = {"SCVI-0.16.1-pancreas"}
"""Those that scvi-tools 1.4.2 cannot open: with a table of a pandas that is older than the one it needs."""

_FOLDER = tempfile.TemporaryDirectory()


@pytest.fixture(scope="module", autouse=True)
def _report():
    yield
    print("\nlargest relative differences:")
    for quantity, (largest, n) in sorted(WORST.items()):
        print(f"  {quantity:<45} {largest:.1e} of {n:,} numbers")


def cells_for(schema):
    """Cells that fit a model: its genes, and every level of its columns."""
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 4.0, (N_CELLS, schema.n_genes))).astype(np.float32)
    counts[:, 0] += 1
    adata = AnnData(counts)
    adata.obs_names = [f"cell_{i}" for i in range(N_CELLS)]
    adata.var_names = list(schema.genes)
    for category in (schema.batch, *schema.categorical, schema.labels):
        if category is not None:
            adata.obs[category.key] = category.values[np.arange(N_CELLS) % len(category.names)]
    return adata


@functools.cache
def opened(name):
    """Ours, theirs, and cells."""
    stored = scvi_tools.read(MODELS / name)  # first: an error for every file that asks for code
    adata, folder = cells_for(stored.schema), MODELS / name
    kind = getattr(scvi.model, stored.class_name)
    if name in CLOSED:  # scvi-tools opens what we write of it
        scvi_tools.write(Path(_FOLDER.name) / name, stored)
        folder = Path(_FOLDER.name) / name
    elif (folder / "model_params.pt").exists():
        kind.convert_legacy_save(folder, Path(_FOLDER.name) / name)
        folder = Path(_FOLDER.name) / name
    theirs = kind.load(folder, adata=adata.copy(), accelerator="cpu")
    theirs.module.eval()
    return sd.load(MODELS / name), theirs, adata


@pytest.fixture(params=HONEST)
def name(request):
    return request.param


def setup_of(ours):
    columns = ours.schema.columns
    return {"batch_key": columns.batch_key, "labels_key": columns.labels_key}


@pytest.mark.parametrize("name", CLOSED)
def test_those_that_scvi_tools_cannot_open(name):
    ours, _, adata = opened(name)
    with pytest.raises(ModuleNotFoundError, match="pandas"):
        type(opened(name)[1]).load(MODELS / name, adata=adata.copy(), accelerator="cpu")
    raw = read_archive(MODELS / name / "model.pt")["model_state_dict"]
    written = scvi_tools.weights_of(ours.stored())
    assert set(raw) == set(written) and all(torch.equal(raw[key], written[key]) for key in raw)


def test_every_quantity_in_every_condition(name):
    ours, theirs, _ = opened(name)
    z_nk, our_arguments, their_arguments = questions(theirs, setup_of(ours), n_points=60)
    expected, found = their_answers(theirs, their_arguments), our_answers(ours, z_nk, our_arguments)
    assert set(found) == set(expected) == {"scale", "rate", "mean", "theta", "pi"}
    for quantity, values in expected.items():
        # of (1 - pi) rate, next to pi = 1, scvi-tools rounds as much as 1.0e-5 away from its own double precision
        compare(quantity, found[quantity], values, 2e-5 if quantity == "mean" else 1e-5)


def test_the_posterior(name):
    ours, theirs, adata = opened(name)
    mean, variance = theirs.get_latent_representation(return_dist=True)
    posterior = ours.posterior(adata)
    compare("posterior mean", posterior.mean, mean, 1e-5, beside=np.sqrt(variance))
    compare("posterior variance", posterior.variance, variance, 1e-5)


def test_the_same_weights_and_names(name):
    ours, theirs, _ = opened(name)
    written = scvi_tools.weights_of(ours.stored())
    expected = {key: value for key, value in theirs.module.state_dict().items() if isinstance(value, torch.Tensor)}
    assert set(written) == set(expected)
    assert all(torch.equal(written[key].reshape(expected[key].shape), expected[key]) for key in expected)
    registry = theirs.adata_manager.get_state_registry
    for field, category in (("batch", ours.schema.batch), ("labels", ours.schema.labels)):
        if category is not None:
            assert category.values.tolist() == list(registry(field).categorical_mapping)


def test_predictions():
    ours, theirs, adata = opened("SCANVI-1.0.3")
    soft = ours.predict(adata, soft=True)
    assert list(soft.columns) == list(theirs.predict(soft=True).columns)
    compare("probabilities", soft, theirs.predict(soft=True), 1e-5)


def test_written_by_scdecode_it_opens_there(name, tmp_path):
    ours, theirs, adata = opened(name)
    scvi_tools.write(tmp_path / "model", ours.stored())
    again = type(theirs).load(tmp_path / "model", adata=adata.copy(), accelerator="cpu")
    _, _, arguments = questions(theirs, setup_of(ours))
    expected, found = their_answers(theirs, arguments), their_answers(again, arguments)
    assert all(torch.equal(found[quantity], values) for quantity, values in expected.items())
