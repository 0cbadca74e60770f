"""The decoder as a network: equal to decode, and taken by torch.func, torch.export and ONNX; distributions, too."""

import numpy as np
import pytest
import torch
from small_models import EVERYTHING, make_adata, make_model
from torch.func import jacfwd, jacrev, jvp, vmap

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
