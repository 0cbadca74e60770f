"""The parity report: it sees what is the same, and what is not."""

import sys

import pytest
import torch
from golden_models import GOLDEN

import scdecode as sd
from scdecode.cli import main
from scdecode.errors import FormatError
from scdecode.formats import scvi_tools
from scdecode.formats.reading import read_model
from scdecode.parity import TOLERANCE, compare

SAVED = GOLDEN / "saved"
NAMES = sorted(path.name for path in SAVED.iterdir())


def prefix_of(name):
    prefix = next(path.name for path in (SAVED / name).iterdir() if path.name.endswith("model.pt"))
    return prefix.removesuffix("model.pt") or None


@pytest.mark.parametrize("name", NAMES)
def test_every_class_and_option_is_the_same(name, tmp_path):
    table = sd.convert(SAVED / name, tmp_path / "model", prefix=prefix_of(name), verify=True)
    assert {"posterior mean", "posterior variance", "scale", "rate"} <= set(table.index)
    assert (table["largest difference"] < TOLERANCE).all()
    assert (table["numbers"] >= 512).all()
    sd.load(tmp_path / "model", verify=True)


@pytest.mark.parametrize(
    ("name", "weight", "quantities"),
    [
        ("scvi", "decoder.scale.bias", {"scale", "rate"}),
        ("scvi", "z_encoder.log_variance.bias", {"posterior variance"}),
        ("scvi", "log_theta", {"dispersion"}),
        ("scvi", "decoder.zi_logits.bias", {"zero inflation"}),
    ],
)
def test_a_weight_that_differs_is_seen_where_it_matters(name, weight, quantities):
    stored = read_model(SAVED / name)
    theirs = scvi_tools.weights_of(stored)
    theirs = {key: tensor.clone() for key, tensor in theirs.items()}
    with torch.no_grad():
        dict(stored.vae.state_dict())[weight].reshape(-1)[0].add_(0.01)
    table = compare(stored, theirs)["largest difference"]
    assert set(table.index[table > TOLERANCE]) >= quantities
    if weight != "decoder.scale.bias":
        assert set(table.index[table > TOLERANCE]) <= quantities | {"posterior mean"}


@pytest.mark.parametrize(
    ("weight", "quantity"),
    [
        ("classifier.logits.bias", "class probabilities"),
        ("encoder_z2_z1.mean.bias", "z2 mean"),
        ("encoder_z2_z1.log_variance.bias", "z2 variance"),
        ("decoder_z1_z2.mean.bias", "z1 mean"),
        ("decoder_z1_z2.log_variance.bias", "z1 variance"),
    ],
)
def test_the_networks_beside_the_vae_are_seen(weight, quantity):
    stored = read_model(SAVED / "scanvi")
    theirs = {key: tensor.clone() for key, tensor in scvi_tools.weights_of(stored).items()}
    with torch.no_grad():
        dict(stored.classification.state_dict())[weight].reshape(-1)[0].add_(0.01)
    table = compare(stored, theirs)["largest difference"]
    assert list(table.index[table > TOLERANCE]) == [quantity]


@pytest.mark.parametrize("part", ["mean", "log_variance"])
def test_a_learned_library_is_seen(part):
    stored = read_model(SAVED / "scvi_everything")
    theirs = {key: tensor.clone() for key, tensor in scvi_tools.weights_of(stored).items()}
    with torch.no_grad():
        dict(stored.vae.state_dict())[f"library_encoder.{part}.bias"].add_(0.01)
    table = compare(stored, theirs)["largest difference"]
    assert list(table.index[table > TOLERANCE]) == [f"library {'mean' if part == 'mean' else 'variance'}"]


def test_weights_of_another_network_are_no_comparison():
    stored = read_model(SAVED / "scvi")
    weights = scvi_tools.weights_of(stored)
    del weights["px_r"]
    with pytest.raises(FormatError, match="does not take these weights"):
        compare(stored, weights)


def test_the_report_of_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scdecode", "convert", str(SAVED / "scvi"), str(tmp_path / "model"), "--check"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    out = capsys.readouterr().out
    assert "largest relative difference from scvi-tools" in out
    assert "scale " in out and "zero inflation " in out
    assert f"{tmp_path / 'model'}: SCVI: " in out
