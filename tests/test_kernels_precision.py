"""``precision="bf16"`` on the CPU: close to single precision where it is offered, refused where it is not."""

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode import kernels, training
from scdecode.errors import ConfigError
from scdecode.kernels.heads import Heads

has_bf16 = pytest.mark.skipif(
    not (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()),
    reason="this processor has no instructions for bf16",
)

MODELS = {
    "nb": {},
    "zinb, everything": {"gene_likelihood": "zinb", "setup": EVERYTHING, "n_layers": 2},
    "by autograd": {"gene_likelihood": "zinb", "dispersion": "gene-cell"},
    "poisson, softplus": {
        "gene_likelihood": "poisson",
        "setup": {"batch_key": "batch", "size_factor_key": "size_factor"},
    },
}


def losses(model):
    columns = [name for name in model.history_table if name.endswith(("loss_train", "elbo_train", "elbo_validation"))]
    return model.history_table[columns].to_numpy(float)


@has_bf16
@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS)
def test_losses_are_close_and_validation_is_in_single_precision(monkeypatch, options):
    seen, validating = set(), []
    compute, validate = Heads.compute, training._validate

    def look(self, hidden, likelihood, logits):
        seen.add((self.precision, "validation" if validating else "training"))
        return compute(self, hidden, likelihood, logits)

    def look_at_validation(*arguments):
        validating.append(1)
        row = validate(*arguments)
        validating.pop()
        return row

    monkeypatch.setattr(Heads, "compute", look)
    monkeypatch.setattr(training, "_validate", look_at_validation)
    low = make_model(make_adata(), epochs=8, train={"precision": "bf16"}, **options)
    assert seen == {(torch.bfloat16, "training"), (torch.float32, "validation")}
    assert low.vae.decoder.precision == torch.float32
    seen.clear()
    high = make_model(make_adata(), epochs=8, **options)
    assert {precision for precision, _ in seen} == {torch.float32}
    assert np.isfinite(losses(low)).all()
    np.testing.assert_allclose(losses(low), losses(high), rtol=0.01)
    assert not np.array_equal(losses(low), losses(high))
    assert all(value.dtype != torch.bfloat16 for value in low.vae.state_dict().values())


@has_bf16
def test_a_scanvi_in_low_precision():
    adata = make_adata()
    sd.SCANVI.setup_anndata(adata, labels_key="cell_type", unlabeled_category="unknown", batch_key="batch")
    model = sd.SCANVI(adata, n_latent=4, n_hidden=16)
    model.train(3, device="cpu", progress=False, precision="bf16")
    assert np.isfinite(losses(model)).all()
    assert model.vae.decoder.precision == torch.float32


@pytest.fixture
def processor(monkeypatch):
    """As if the processor had the instructions, or had them not."""

    def pretend(has):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return pretend


def refused(model, text, **options):
    before = {name: value.clone() for name, value in model.vae.state_dict().items()}
    with pytest.raises(ConfigError, match=text):
        model.train(2, device="cpu", progress=False, **({"precision": "bf16"} | options))
    assert model.vae.decoder.precision == torch.float32
    for name, value in model.vae.state_dict().items():
        assert torch.equal(value, before[name]) and value.is_contiguous(), name


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"gene_likelihood": "normal"}, "gene_likelihood='normal'"), ({"encode_covariates": True}, "encode_covariates")],
    ids=str,
)
def test_refused_where_no_kernel_is_for_it(processor, options, reason):
    processor(True)
    refused(make_model(make_adata(), epochs=0, **options), f"'bf16' came, but not on the CPU where {reason}")


def test_refused_for_a_linear_decoder(processor):
    processor(True)
    adata = make_adata()
    sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    refused(sd.LinearSCVI(adata, n_latent=4), "where the decoder is linear")


def test_refused_without_numba(processor, monkeypatch):
    processor(True)
    monkeypatch.setattr(training, "usable", lambda: False)
    refused(make_model(make_adata(), epochs=0), "where Numba does not work")


def test_refused_where_the_processor_has_it_not(processor):
    processor(False)
    refused(make_model(make_adata(), epochs=0), "neither AVX512-BF16 nor AMX; pass precision='fp32'")
    assert kernels.precision_of("fp32") == torch.float32
    make_model(make_adata(), epochs=1, train={"precision": "fp32"})


@pytest.mark.parametrize("name", ["_is_avx512_bf16_supported", "_is_amx_tile_supported"])
def test_either_instructions_do(processor, monkeypatch, name):
    processor(False)
    monkeypatch.setattr(torch.cpu, name, lambda: True)
    assert kernels.precision_of("bf16") == torch.bfloat16


@pytest.mark.parametrize("word", [32, "32", "32-true", "fp32"])
def test_words_of_lightning(word):
    model = make_model(make_adata(), epochs=1, train={"precision": word})
    np.testing.assert_array_equal(losses(model), losses(make_model(make_adata(), epochs=1)))


@pytest.mark.parametrize("how", ["itself", "trainer_config"])
def test_lightnings_word_for_bf16(processor, how):
    """It reaches the check of the processor, so it was understood."""
    processor(False)
    given = {"precision": "bf16-mixed"}
    with pytest.raises(ConfigError, match="neither AVX512-BF16 nor AMX"):
        make_model(make_adata(), epochs=1, train=given if how == "itself" else {how: given})


@pytest.mark.parametrize("word", ["16-mixed", 16, "64", 64, "bf16-true", "transformer-engine", "half", 0, True, ""])
def test_other_words_are_refused(word):
    refused(
        make_model(make_adata(), epochs=0), r"precision: .*one of (the 2 choices )?\['fp32', 'bf16'\]", precision=word
    )


def test_single_precision_again_after_an_error(processor):
    processor(True)  # torch itself multiplies bf16 on any processor
    model, seen = make_model(make_adata(), epochs=0), []

    def stop(done, total, row):
        seen.append(model.vae.decoder.precision)
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        model.train(3, device="cpu", progress=False, precision="bf16", on_epoch=stop)
    assert seen == [torch.bfloat16]
    assert model.vae.decoder.precision == torch.float32
    assert len(model.history_table) == 1
