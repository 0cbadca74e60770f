"""``convert``: one format to the other, and what cannot be converted."""

import importlib.util

import numpy as np
import pytest
import torch
from golden_models import GOLDEN

import scdecode as sd
from scdecode.errors import ConfigError, FormatError, InputError, MissingExtraError, OutputError
from scdecode.parity import TOLERANCE, check

SAVED = GOLDEN / "saved"


def weights_of(path):
    model = sd.load(path)
    return model.vae.state_dict() | {f"kept {name}": weight for name, weight in model.stored().kept.items()}


def test_there_and_back(tmp_path):
    assert sd.convert(SAVED / "scvi_everything", tmp_path / "ours") is None
    sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools")
    assert (tmp_path / "ours" / "model.json").is_file()
    assert [path.name for path in (tmp_path / "theirs").iterdir()] == ["model.pt"]
    first, *others = (weights_of(path) for path in (SAVED / "scvi_everything", tmp_path / "ours", tmp_path / "theirs"))
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert str(sd.load(tmp_path / "theirs")) == str(sd.load(SAVED / "scvi_everything"))  # also who trained it


def test_who_trained_it(model, tmp_path):
    model.save(tmp_path / "ours")
    sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools")
    assert sd.load(tmp_path / "theirs").info()["trained_by"] == f"scdecode {sd.__version__}"
    assert sd.load(SAVED / "scvi").info()["trained_by"].startswith("scvi-tools 1.")


def test_a_reference_on_the_way(model, adata, tmp_path):
    model.save(tmp_path / "ours")
    sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools")
    assert sd.load(tmp_path / "theirs").info()["n_reference"] == 0
    sd.convert(tmp_path / "theirs", tmp_path / "again", reference=adata)
    again = sd.load(tmp_path / "again")
    assert again.info()["n_reference"] == adata.n_obs
    assert again.schema.median_library == model.schema.median_library
    z = model.get_latent_representation()[:20]
    assert np.allclose(again.decode(z).X, model.decode(z).X, rtol=1e-5)  # the same average over the batches


def test_what_is_wrong(tmp_path):
    with pytest.raises(ConfigError, match="to: 'onnx' is not one of"):
        sd.convert(SAVED / "scvi", tmp_path / "out", to="onnx")
    with pytest.raises(FormatError):
        sd.convert(tmp_path / "nothing", tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "thesis.txt").write_text("years")
    with pytest.raises(OutputError):
        sd.convert(SAVED / "scvi", tmp_path / "there")
    with pytest.raises(OutputError):
        sd.convert(SAVED / "scvi", tmp_path / "there", overwrite=True)
    assert (tmp_path / "there" / "thesis.txt").read_text() == "years"
    with pytest.raises(InputError):
        sd.convert(SAVED / "scvi", tmp_path / "out", reference=3)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("scvi") is not None, reason="scvi-tools is installed")
def test_without_scvi_tools_nothing_can_be_compared(tmp_path):
    with pytest.raises(MissingExtraError, match="scvi-tools"):
        sd.convert(SAVED / "scvi", tmp_path / "out", verify=True)
    with pytest.raises(MissingExtraError, match="scvi-tools"):
        sd.load(SAVED / "scvi", verify=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [1e-3, float("nan"), float("inf")])
def test_a_difference_is_an_error(value):
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame({"largest difference": {"scale": TOLERANCE / 2, "rate": value}})
    with pytest.raises(FormatError, match=r"place: .* rate differs by up to"):
        check(table, "place")


def test_a_reference_has_no_place_in_the_other_format(model, adata, tmp_path):
    model.save(tmp_path / "ours")
    with pytest.raises(InputError, match="scvi-tools' files have no place for them"):
        sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools", reference=adata)
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("to", ["scdecode", "scvi-tools"])
def test_an_empty_folder_is_taken(tmp_path, to):
    (tmp_path / "empty").mkdir()
    sd.convert(SAVED / "scvi", tmp_path / "empty", to=to)
    assert str(sd.load(tmp_path / "empty")) == str(sd.load(SAVED / "scvi"))
