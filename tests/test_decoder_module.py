"""The decoder as a network: equal to decode, and taken by torch.func, torch.export and ONNX; distributions, too."""

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model
from torch.func import jacfwd, jacrev, jvp, vmap
from typer.testing import CliRunner

import scdecode as sd
from scdecode.cli import app
from scdecode.exporting import export_onnx

GIVEN = {"batch": "batch_1", "categorical": {"sex": "male", "chem": "v1"}, "continuous": {"age": 50.0, "pct": 0.05}}


@pytest.fixture(scope="module")
def model():
    return make_model(make_adata(120, 20), setup=EVERYTHING, epochs=1, gene_likelihood="zinb")


@pytest.mark.parametrize("quantity", ["scale", "rate", "mean"])
@pytest.mark.parametrize(
    "given", [{}, GIVEN, {"batch": {"batch_1": 3, "batch_2": 1}}], ids=["average", "one", "weights"]
)
def test_it_decodes_as_decode_does(model, given, quantity):
    asked = {"quantity": quantity, "genes": list(model.schema.genes[3:8]), **given}
    z = torch.from_numpy(model.reference_latents()[:6])
    module = model.decoder(**asked).module()
    np.testing.assert_allclose(module(z), model.decode(z, **asked).X, rtol=2e-5, atol=1e-6)
    exported = torch.export.export(module, (z,)).module()
    torch.testing.assert_close(exported(z), module(z))
    jacobian = vmap(jacrev(module))(z)
    assert jacobian.shape == (6, 5, 4)
    torch.testing.assert_close(jacobian, vmap(jacfwd(module))(z), rtol=1e-3, atol=1e-3)
    pushed = jvp(module, (z,), (torch.ones_like(z),))[1]
    torch.testing.assert_close(pushed, jacobian.sum(-1), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("given", [{}, GIVEN], ids=["average", "one"])
def test_distributions_within_torch_func(model, given):
    z, x = torch.from_numpy(model.reference_latents()[:4]), torch.ones(4, 20)
    x[:, ::2] = 0

    def log_prob(z, x):
        return model.distribution(z[None], **given).log_prob(x[None]).sum()

    found = vmap(torch.func.grad(log_prob))(z, x)
    own = z.clone().requires_grad_()
    model.distribution(own, **given).log_prob(x).sum().backward()
    torch.testing.assert_close(found, own.grad, rtol=1e-3, atol=1e-3)


def test_onnx(model, tmp_path):
    pytest.importorskip("onnxruntime")
    _, n_points, difference = export_onnx(model, tmp_path / "decoder.onnx", quantity="mean", **GIVEN)
    assert n_points > 100 and difference < 1e-5
    with pytest.raises(OSError, match=r"decoder\.onnx"):
        export_onnx(model, tmp_path / "decoder.onnx", **GIVEN)


def _of_class(model_class, **setup):
    cells = make_adata(120, 20)
    model_class.setup_anndata(cells, batch_key="batch", **setup)
    model = model_class(cells, n_latent=4, n_hidden=8)
    model.train(1, device="cpu", progress=False)
    return model


KINDS = {
    "LinearSCVI": lambda: _of_class(sd.LinearSCVI),
    "SCANVI": lambda: _of_class(sd.SCANVI, labels_key="cell_type", unlabeled_category="Unknown"),
    "ln": lambda: make_model(make_adata(120, 20), epochs=1, latent_distribution="ln"),
    "size factor": lambda: make_model(
        make_adata(120, 20), setup={"batch_key": "batch", "size_factor_key": "size_factor"}, epochs=1
    ),
    "layer norm": lambda: make_model(make_adata(120, 20), epochs=1, use_layer_norm="both", use_batch_norm="none"),
    "deep": lambda: make_model(make_adata(120, 20), epochs=1, n_layers=3),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decoders_of_every_kind_of_model(kind):
    """Equal to decode; compiled as one graph; with weights that can be doubled."""
    model = KINDS[kind]()
    z = torch.from_numpy(model.reference_latents()[:6])
    for quantity in ("rate", "scale"):
        module = model.decoder(quantity=quantity).module()
        expected = model.decode(z, quantity=quantity).X
        np.testing.assert_allclose(module(z), expected, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(module.double()(z.double()), expected, rtol=2e-5, atol=1e-6)
    module = model.decoder(genes=list(model.schema.genes[2:5])).module()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")  # without a compiler of C++, which takes long
    torch.testing.assert_close(compiled(z), module(z))


def test_the_command_that_exports(model, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    model.save(tmp_path / "model")
    out = tmp_path / "decoder.onnx"
    given = [
        "--batch",
        "batch_1",
        "--categorical",
        "sex=male",
        "--categorical",
        "chem=v1",
        "--genes",
        "gene_03,gene_01",
    ]
    command = ["export", str(tmp_path / "model"), str(out), *given, "--library-size", "100"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert "points (n, 4) to 2 genes" in result.output
    z = model.reference_latents()[:6]
    session = onnxruntime.InferenceSession(out)
    found = session.run(None, {session.get_inputs()[0].name: z})[0]
    asked = {
        "batch": "batch_1",
        "categorical": GIVEN["categorical"],
        "library_size": 100,
        "genes": ["gene_03", "gene_01"],
    }
    np.testing.assert_allclose(found, model.decode(z, **asked).X, rtol=2e-5, atol=1e-6)
    before = out.read_bytes()
    assert CliRunner().invoke(app, command).exit_code != 0  # it is there already
    assert out.read_bytes() == before
    assert CliRunner().invoke(app, [*command, "--overwrite"]).exit_code == 0
    assert CliRunner().invoke(app, ["export", str(tmp_path / "model"), str(tmp_path / "decoder.txt")]).exit_code != 0
    assert not (tmp_path / "decoder.txt").exists()
