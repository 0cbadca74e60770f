"""``model.decoder``: conditions resolved once; its numbers are those of ``model.decode``."""

import numpy as np
import pandas as pd
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode import decode_plan
from scdecode.errors import ConditionError, InputError, NotTrainedError, PointsError, SupportWarning

SAID = {"batch": "batch_2", "categorical": {"sex": "male", "chem": "v1"}, "continuous": {"age": 40.0, "pct": 0.05}}


@pytest.fixture
def z(full_model):
    return full_model.reference_latents()[:6]


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize("quantity", ["rate", "scale", "mean"])
@pytest.mark.parametrize("said", [SAID, {}, {"batch": ["batch_1", "batch_3"]}])
@pytest.mark.parametrize("some", [None, slice(30, 20, -3)])
def test_equals_decode(full_model, z, quantity, said, some):
    genes = None if some is None else list(full_model.schema.genes[some])
    asked = {"quantity": quantity, "library_size": 3000, "genes": genes, **said}
    decode, expected = full_model.decoder(**asked), full_model.decode(z, **asked)
    np.testing.assert_allclose(decode(z), expected.X, rtol=1e-5)
    assert decode(z).dtype == np.float32
    assert decode.genes == tuple(expected.var_names)
    assert decode.quantity == quantity
    assert decode.unit == expected.uns["scdecode"]["unit"]


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize(
    "options",
    [
        {"n_layers": 2},
        {"batch_representation": "embedding", "use_layer_norm": "both"},
        {"latent_distribution": "ln", "gene_likelihood": "poisson"},
        {"dispersion": "gene-label", "use_batch_norm": "none"},
    ],
)
def test_options(options):
    model = make_model(make_adata(150, 15), setup=EVERYTHING, epochs=1, **options)
    z = model.reference_latents()[:5]
    np.testing.assert_allclose(model.decoder(**SAID)(z), model.decode(z, **SAID).X, rtol=1e-5)


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
def test_linear_and_size_factor():
    adata = make_adata(150, 15)
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    linear = sd.LinearSCVI(adata, n_hidden=16, n_latent=4)
    linear.train(1, device="cpu", progress=False)
    factor = make_model(make_adata(150, 15), setup={"size_factor_key": "size_factor"})
    for model in (linear, factor):
        z = model.reference_latents()[:5]
        np.testing.assert_allclose(model.decoder()(z), model.decode(z).X, rtol=1e-5)


def test_axes(model):
    decode, z = model.decoder(batch="batch_1"), model.reference_latents()[:6]
    expected = decode(z)
    n_genes = model.schema.n_genes
    assert decode(z[0]).shape == (n_genes,)
    np.testing.assert_array_equal(decode(z.reshape(2, 3, 4)), expected.reshape(2, 3, n_genes))
    for form in (z.tolist(), torch.from_numpy(z).requires_grad_(), pd.DataFrame(z), z.astype(np.float64)):
        np.testing.assert_array_equal(decode(form), expected)


def test_many_points(model, monkeypatch):
    """In pieces, and by the loops."""
    decode, z = model.decoder(batch="batch_1"), model.reference_latents()[:30]
    expected = decode(z)
    monkeypatch.setattr("scdecode.decoders._TILE_VALUES", 7 * model.schema.n_genes)
    np.testing.assert_allclose(decode(z), expected, rtol=1e-5)
    monkeypatch.setattr(decode_plan, "LARGE", 1)
    np.testing.assert_allclose(decode(z), expected, rtol=1e-5)


def test_what_it_says(model):
    decode = model.decoder(batch="batch_2", library_size=5000, genes=list(model.schema.genes[:3]))
    assert decode.conditions == {"batch": "batch_2", "library_size": 5000.0}
    for part in ("(..., 4) -> (..., 3)", "rate: expected counts", "batch='batch_2'", "library_size=5000.0"):
        assert part in repr(decode)
    assert "batch='average'" in repr(model.decoder())


def test_later_training_does_not_change_it():
    model = make_model(make_adata(150, 15), epochs=1)
    z, decode = model.reference_latents()[:3], model.decoder(batch="batch_1")
    before = decode(z)
    model.train(1, device="cpu", progress=False)
    np.testing.assert_array_equal(decode(z), before)
    assert not np.allclose(model.decoder(batch="batch_1")(z), before, rtol=1e-6)


@pytest.mark.parametrize("points", [np.zeros((3, 5)), np.full((1, 4), np.nan), np.zeros((0, 4)), "text", [[1e31] * 4]])
def test_bad_points(model, points):
    with pytest.raises(PointsError, match="points: "):
        model.decoder(batch="batch_1")(points)


def test_points_off_the_simplex():
    model = make_model(make_adata(150, 15), epochs=1, latent_distribution="ln")
    with pytest.warns(SupportWarning, match="sum to one"):
        model.decoder(batch="batch_1")(np.ones((1, 4)))


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"quantity": "counts"}, InputError, "quantity: 'counts' came, which are draws"),
        ({"quantity": "rates"}, InputError, "did you mean 'rate'"),
        ({"genes": ["nothing"]}, InputError, "genes: 'nothing'"),
        ({"batch": "batch1"}, ConditionError, "did you mean 'batch_1'"),
        ({"batch": np.array(["batch_1"])}, ConditionError, "batch: an array came, but a decoder has the same"),
        ({"library_size": np.array([1e4, 2e4])}, ConditionError, "library_size: an array came"),
        ({"continuous": pd.DataFrame({"age": [1.0]})}, ConditionError, r"continuous\['age'\]: an array came"),
        ({"categorical": {"sex": pd.Series(["male"])}}, ConditionError, r"categorical\['sex'\]: an array came"),
    ],
)
def test_bad_arguments(full_model, said, error, message):
    with pytest.raises(error, match=message):
        full_model.decoder(**said)


def test_untrained():
    with pytest.raises(NotTrainedError):
        make_model(make_adata(150, 15), epochs=0).decoder()


def test_what_is_no_array_belongs_to_decode(model, adata):
    decode = model.decoder(batch="batch_1")
    for points in (adata, model.posterior(adata), sd.Trajectory.between(model, [0.0] * 4, [1.0] * 4, n_points=3)):
        with pytest.raises(PointsError, match="a decoder takes arrays alone"):
            decode(points)


@pytest.mark.parametrize(
    ("word", "meant"), [("transform_batch", "did you mean batch="), ("spread", "model.decode"), ("nonsense", "")]
)
def test_arguments_that_a_decoder_has_not(model, word, meant):
    with pytest.raises(InputError, match=f"decoder: there is no argument '{word}'.*{meant}"):
        model.decoder(**{word: 1})
