"""The model directory: everything comes back to the last bit, and everything that is wrong with one is said."""

import copy
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.errors import (
    CorruptModelError,
    ForeignModelError,
    FormatError,
    InputError,
    NewerFormatError,
    NotTrainedError,
    OutputError,
    ScdecodeError,
)
from scdecode.files import sha256
from scdecode.formats import native
from scdecode.schema import to_dict

FILES = ["model.json", "reference.safetensors", "weights.safetensors"]
SHARED_MODELS = Path(os.environ.get("SCDECODE_MODELS", Path(__file__).parents[2] / "shared" / "models"))


@pytest.fixture
def folder(full_model, tmp_path):
    """A saved model, to be spoiled."""
    full_model.save(tmp_path / "model")
    return tmp_path / "model"


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def manifest_of(folder):
    return json.loads((folder / "model.json").read_text())


def rewrite(folder, change):
    """Change the manifest."""
    manifest = manifest_of(folder)
    change(manifest)
    (folder / "model.json").write_text(json.dumps(manifest))


def forge(folder, file, change):
    """Change the tensors of a file, and its digest with them."""
    tensors = load_file(folder / file)
    change(tensors)
    save_file(tensors, folder / file)
    rewrite(folder, lambda manifest: manifest["sha256"].update({file: sha256(folder / file)}))


# -- everything comes back ---------------------------------------------------------------------------------------------


def assert_same(one, other):
    assert one.config == other.config
    assert one.train_config == other.train_config
    assert to_dict(one.schema) == to_dict(other.schema)
    history, its = one.history_table, other.history_table
    assert history.equals(its)
    assert history.dtypes.equals(its.dtypes)
    assert (history.index.name, history.index.tolist()) == ("epoch", its.index.tolist())
    assert repr(one.info()) == repr(other.info())  # NaN is not NaN
    mine, others = one.vae.state_dict(), other.vae.state_dict()
    assert list(mine) == list(others)
    for name, tensor in mine.items():
        assert tensor.dtype == others[name].dtype
        assert torch.equal(tensor, others[name]), name
    for field in dataclasses.fields(one.reference()):
        array, another = (getattr(model.reference(), field.name) for model in (one, other))
        assert array.dtype == another.dtype
        np.testing.assert_array_equal(array, another)


def test_everything_comes_back(full_model, folder):
    assert names(folder) == FILES
    loaded = sd.load(folder)
    assert_same(loaded, full_model)
    assert not loaded.vae.training
    assert not any(parameter.requires_grad for parameter in loaded.vae.parameters())
    z_nk = full_model.reference_latents()[:10]
    np.testing.assert_array_equal(loaded.support(z_nk), full_model.support(z_nk))
    np.testing.assert_array_equal(loaded.decode(z_nk).X, full_model.decode(z_nk).X)


def test_a_second_save_writes_the_same_files(folder, tmp_path):
    sd.load(folder).save(tmp_path / "again")
    for name in FILES:
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_epochs_without_a_validation_and_other_endings_come_back(adata, tmp_path):
    model = make_model(adata, epochs=5, train={"check_val_every_n_epoch": 2, "early_stopping": True, "lr": 1 / 3000})
    model.save(tmp_path / "model")
    assert_same(sd.load(tmp_path / "model"), model)
    text = (tmp_path / "model" / "model.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_names_of_every_script_come_back(adata, tmp_path):
    adata.var_names = [f"γ{i} \"gene\" 'é' \n \\ 基因" for i in range(40)]
    adata.obs["батч"] = adata.obs["batch"].astype(str).replace({"batch_1": "", "batch_2": "None", "batch_3": "∅"})
    model = make_model(adata, setup={"batch_key": "батч"}, epochs=1)
    model.save(tmp_path / "模型 model")
    loaded = sd.load(tmp_path / "模型 model")
    assert_same(loaded, model)
    assert loaded.schema.batch.names == ("", "None", "∅")


def test_it_loads_without_the_cells_and_draws_no_random_numbers(folder):
    state = torch.get_rng_state()
    loaded = sd.load(str(folder))
    assert torch.equal(torch.get_rng_state(), state)
    assert loaded.decode(loaded.reference_latents()[:2], batch="batch_1").shape == (2, 40)


def test_it_loads_whatever_torch_s_default_type_is(full_model, folder):
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(sd.load(folder), full_model)
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_loaded_model_does_not_need_its_files(full_model, folder):
    loaded = sd.load(folder)
    for name in FILES:
        (folder / name).write_bytes(b"\0" * 10)
    shutil.rmtree(folder)
    assert_same(loaded, full_model)


def test_two_thousand_genes_load_in_under_a_second(tmp_path):
    model = make_model(make_adata(100, 2000), epochs=1, n_hidden=128, n_latent=10)
    model.save(tmp_path / "model")
    start = time.perf_counter()
    sd.load(tmp_path / "model")
    assert time.perf_counter() - start < 1


def test_an_untrained_model_is_not_saved(adata, tmp_path):
    with pytest.raises(NotTrainedError, match=r"call model.train\(\) first"):
        make_model(adata, epochs=0).save(tmp_path / "model")
    assert names(tmp_path) == []


# -- writing -----------------------------------------------------------------------------------------------------------


def test_nothing_is_replaced_unless_asked_for(model, full_model, folder):
    with pytest.raises(OutputError, match=r"model: it is there already; .*overwrite=True"):
        model.save(folder)
    assert_same(sd.load(folder), full_model)
    model.save(folder, overwrite=True)
    assert_same(sd.load(folder), model)
    assert names(folder.parent) == ["model"]


def test_an_empty_folder_is_taken(model, tmp_path):
    model.save(tmp_path)
    assert_same(sd.load(tmp_path), model)


def test_files_that_are_no_model_s_are_never_removed(model, folder):
    (folder / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"it holds \['thesis.tex'\], which replacing it would remove"):
        model.save(folder, overwrite=True)
    with pytest.raises(OutputError, match=r"it holds \['model'\]"):
        model.save(folder.parent, overwrite=True)
    assert (folder / "thesis.tex").read_text() == "mine"


class Crash(Exception):
    pass


@pytest.mark.parametrize("failure", [Crash, KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("step", ["mkdir", "write_bytes", "sha256", "dumps", "write_text", "_swap"])
def test_a_crash_at_any_step_leaves_the_old_model(model, full_model, folder, monkeypatch, step, failure):
    from scdecode import files

    def fail(*arguments, **options):
        raise failure

    place = {"sha256": native, "dumps": native.json, "_swap": files}.get(step, Path)
    monkeypatch.setattr(place, step, fail)
    with pytest.raises((Crash, KeyboardInterrupt, OutputError)):
        model.save(folder, overwrite=True)
    monkeypatch.undo()
    assert names(folder.parent) == ["model"]
    assert_same(sd.load(folder), full_model)


def test_a_killed_save_leaves_the_old_model(folder):
    code = """
import os, signal, sys
import scdecode as sd
from scdecode.formats import native
model = sd.load(sys.argv[1])
def die(path):
    os.kill(os.getpid(), signal.SIGKILL)
native.sha256 = die
model.save(sys.argv[1], overwrite=True)
"""
    before = {name: (folder / name).read_bytes() for name in FILES}
    assert subprocess.run([sys.executable, "-c", code, str(folder)], check=False).returncode == -signal.SIGKILL
    assert {name: (folder / name).read_bytes() for name in FILES} == before
    assert [name for name in names(folder.parent) if not name.startswith(".")] == ["model"]
    sd.load(folder)


# -- what is no model --------------------------------------------------------------------------------------------------


def test_nothing_there(tmp_path, full_model):
    with pytest.raises(FormatError, match=r"no: there is no such directory; that of a model was expected"):
        sd.load(tmp_path / "no")
    with pytest.raises(FormatError, match=r"there is neither model.json .* nor model.pt .* \(it holds \[\]\)"):
        sd.load(tmp_path)
    (tmp_path / "cells.h5ad").touch()
    with pytest.raises(FormatError, match=r"it holds \['cells.h5ad'\]"):
        sd.load(tmp_path)
    with pytest.raises(FormatError, match=r"no lin_model.pt \(it holds"):
        sd.load(tmp_path, prefix="lin_")
    with pytest.raises(FormatError, match=r"cells.h5ad: it is a file, and no model"):
        sd.load(tmp_path / "cells.h5ad")
    full_model.save(tmp_path / "mine")
    with pytest.raises(FormatError, match=r"pass one of its folders that do \['mine'\]"):
        sd.load(tmp_path)
    with pytest.raises(FormatError, match=r"it is one file of a model; pass the directory that it is in: .*mine$"):
        sd.load(tmp_path / "mine" / "model.json")
    with pytest.raises(FormatError, match=r"https://x.org/m: a URL came; download the directory first"):
        sd.load("https://x.org/m")
    with pytest.raises(InputError, match="directory: got None"):
        sd.load(None)


@pytest.mark.parametrize("name", ["model.pt", "model_params.pt"])
def test_a_model_of_another_program_is_read_by_its_own_reader(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.")
    with pytest.raises(FormatError, match=name):
        sd.load(tmp_path)
    with pytest.raises(FormatError, match=r"there is no model.json; a directory"):
        native.read(tmp_path)


@pytest.mark.parametrize("text", ["{}", "[]", "3", '{"format": "other"}', '{"model_type": "bert"}', "null"])
def test_a_manifest_of_another_program(folder, text):
    (folder / "model.json").write_text(text)
    with pytest.raises(ForeignModelError, match=r"model.json: it does not say that it is scdecode's"):
        sd.load(folder)


# -- damaged files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing(folder, name):
    (folder / name).unlink()
    with pytest.raises(FormatError, match=name) as caught:
        sd.load(folder)
    assert isinstance(caught.value, CorruptModelError) == (name != "model.json")


@pytest.mark.parametrize("name", FILES[1:])
@pytest.mark.parametrize("damage", ["empty", "half", "last byte", "one bit", "longer", "other"])
def test_a_file_that_was_truncated_or_edited(folder, name, damage):
    whole = (folder / name).read_bytes()
    bit = bytearray(whole)
    bit[-5] ^= 1
    spoiled = {
        "empty": b"",
        "half": whole[: len(whole) // 2],
        "last byte": whole[:-1],
        "one bit": bytes(bit),
        "longer": whole + b"\0",
        "other": b"hello",
    }
    (folder / name).write_bytes(spoiled[damage])
    with pytest.raises(CorruptModelError, match=rf"{name}: its sha256 is \w+\.\.\., \w+\.\.\. was expected"):
        sd.load(folder)


@pytest.mark.parametrize("damage", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": 1e', b"\0"])
def test_a_manifest_that_is_no_json(folder, damage):
    (folder / "model.json").write_bytes(damage)
    with pytest.raises(CorruptModelError, match=r"model.json: it is no JSON"):
        sd.load(folder)


def test_a_truncated_manifest(folder):
    whole = (folder / "model.json").read_bytes()
    for length in range(0, len(whole), len(whole) // 20):
        (folder / "model.json").write_bytes(whole[:length])
        with pytest.raises(CorruptModelError, match=r"model.json: it is no JSON .*truncated"):
            sd.load(folder)


def test_the_weights_of_another_model(folder, model, tmp_path):
    model.save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / "weights.safetensors", folder)
    with pytest.raises(CorruptModelError, match=r"weights.safetensors: its sha256"):
        sd.load(folder)


def test_a_newer_format(folder):
    rewrite(folder, lambda manifest: manifest.update(format_version=3, version="9.1", config={"new": 1}, sha256={}))
    with pytest.raises(NewerFormatError, match=r"its format version is 3, .* up to 2; .* by scdecode 9.1: pip"):
        sd.load(folder)


def test_a_class_of_a_newer_version(folder):
    rewrite(folder, lambda manifest: manifest.update({"class": "TOTALVI"}))
    with pytest.raises(NewerFormatError, match=r"it is a 'TOTALVI', this scdecode reads .'SCVI', 'Lin"):
        sd.load(folder)


def test_the_first_format_is_read(folder, full_model):
    """It had neither the class of the others nor what came of scvi-tools, and levels were of no kind."""

    def older(manifest):
        manifest["format_version"] = 1
        for name in ("trained", "origin", "classifier"):
            del manifest[name]
        for category in (manifest["schema"]["batch"], manifest["schema"]["labels"], *manifest["schema"]["categorical"]):
            if category is not None:
                del category["kind"]
        del manifest["schema"]["columns"]["unlabeled_category"]
        manifest["sha256"]["model.json"] = native._digest_of(manifest)

    rewrite(folder, older)
    assert_same(sd.load(folder), full_model)


@pytest.mark.parametrize("version", [None, "1", 0, -1, 1.5, True, [1]])
def test_a_format_version_that_is_none(folder, version):
    rewrite(folder, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(CorruptModelError, match=r"its format version is .*, a whole number was expected"):
        sd.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("decoder.scale.bias"), "decoder.scale.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "extra is not of this model"),
        (
            lambda t: t.update({"log_theta": torch.zeros(1, 39)}),
            r"log_theta is float32 \(1, 39\)",
        ),
        (lambda t: t.update({"log_theta": t["log_theta"].double()}), "log_theta is float64"),
        (lambda t: t["log_theta"].fill_(float("nan")), "log_theta has NaN or infinite values"),
        (lambda t: t.clear(), r"\(n_layers is 1, and there are 0 weights in all\); copy both again"),
    ],
)
def test_weights_that_do_not_fit(folder, change, message):
    forge(folder, "weights.safetensors", change)
    with pytest.raises(CorruptModelError, match=rf"weights.safetensors: it does not fit model.json.*{message}"):
        sd.load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("codes_rc"), "came, .* was expected"),
        (lambda t: t.update(extra=torch.zeros(1)), "'extra'"),
        (
            lambda t: t.update(latent_rk=t["latent_rk"][:, :3].clone()),
            r"latent_rk is .*, 3\), .* \(270, 4\)",
        ),
        (lambda t: t.update(mean_rk=t["mean_rk"][:3].clone()), "mean_rk is"),
        (lambda t: t.update(library_r=t["library_r"].double()), "library_r is float64"),
        (lambda t: t.update(codes_rc=t["codes_rc"].int()), "codes_rc is int32"),
        (lambda t: t["variance_rk"].fill_(float("inf")), "variance_rk .* without NaN"),
        (lambda t: t["codes_rc"].fill_(3), "its conditions do not fit"),
        (lambda t: t["codes_rc"].fill_(-1), "its conditions do not fit"),
        (lambda t: t.update({name: tensor[:0].clone() for name, tensor in t.items()}), "it has no cells"),
        (lambda t: t.update(latent_rk=torch.zeros(())), "was expected"),
    ],
)
def test_a_reference_that_does_not_fit(folder, change, message):
    forge(folder, "reference.safetensors", change)
    with pytest.raises(CorruptModelError, match=rf"reference.safetensors: .*{message}"):
        sd.load(folder)


def test_no_safetensors_file_for_all_its_digest(folder):
    for name in FILES[1:]:
        (folder / name).write_bytes(b"\x80\x04no tensors")
        rewrite(folder, lambda manifest, name=name: manifest["sha256"].update({name: sha256(folder / name)}))
        with pytest.raises(CorruptModelError, match="it is no safetensors file"):
            native._read_tensors((folder / name).read_bytes(), folder / name)
    with pytest.raises(CorruptModelError, match=r"weights.safetensors: it is no safetensors file"):
        sd.load(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["config", "n_hidden"], 10**12),
        (["config", "n_hidden"], 10**30),
        (["config", "n_layers"], 10**9),
        (["config", "n_layers"], 1e30),
        (["config", "batch_embedding_dim"], 10**30),
        (["config", "n_latent"], 2**62),
        (["config", "n_latent"], 0),
        (["config", "dropout_rate"], float("nan")),
        (["config", "encode_covariates"], "no"),
        (["config", "unheard"], 1),
        (["config", "use_size_factor"], True),
        (["config"], []),
        (["train_config", "lr"], -1),
        (["train_config"], None),
        (["schema", "genes"], ["A"] * 40),
        (["schema", "n_cells"], "300"),
        (["summary"], 3),
        (["summary", "history"], [1]),
        (["summary", "history", "elbo_train"], [1]),
        (["summary", "history", "elbo_train", 0], "low"),
        (["summary", "history", "elbo_train", 0], [1]),
        (["summary", "ending"], None),
        (["sha256"], {}),
        (["sha256"], None),
        (["sha256", "weights.safetensors"], None),
        (["sha256", "weights.safetensors"], 5),
        (["sha256", "../../etc/passwd"], "0"),
    ],
)
def test_hostile_fields(folder, path, value):
    def change(manifest):
        place = manifest
        for key in path[:-1]:
            place = place[key]
        place[path[-1]] = value

    rewrite(folder, change)
    with pytest.raises(CorruptModelError):
        sd.load(folder)


FIELDS = ["version", "config", "train_config", "schema", "summary", "sha256", "class", "format_version"]


@pytest.mark.parametrize("key", FIELDS)
def test_fields_that_are_missing(folder, key):
    rewrite(folder, lambda manifest: manifest.pop(key))
    with pytest.raises(FormatError, match=r"model.json: .*"):
        sd.load(folder)


HOSTILE = [None, True, False, 0, -1, 1, 2, 1.5, 10**6, 10**20, 10**400, float("nan"), float("inf")]
HOSTILE += ["", "x", "1", "gene", "\ud800", [], {}, [[]], [None], {"x": 1}, ["x"], [1, 2, 3], [[1], [2, 3]]]


def places(values, path=()):
    """Every place in a nest of lists and mappings."""
    items = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.filterwarnings("ignore::scdecode.ScdecodeWarning")
def test_a_manifest_with_random_edits_loads_or_says_why_not(folder, seed):
    rng = random.Random(seed)
    whole = manifest_of(folder)
    everywhere = list(places(whole))
    few = [place for place in everywhere if "conditions" not in place and "genes" not in place]  # these are most
    refused = 0
    for _ in range(60):
        manifest = copy.deepcopy(whole)
        *parents, last = rng.choice(few if rng.random() < 0.8 else everywhere)
        place = manifest
        for key in parents:
            place = place[key]
        kind = rng.random()
        if kind < 0.2:
            del place[last]
        elif kind < 0.3 and isinstance(place, list):
            place.append(copy.deepcopy(place[last]))
        elif kind < 0.4 and isinstance(place, dict):
            place[rng.choice(["x", "n_hidden", "genes"])] = place.pop(last)
        else:
            place[last] = rng.choice(HOSTILE)
        (folder / "model.json").write_text(json.dumps(manifest))
        try:
            loaded = sd.load(folder)
        except FormatError:
            refused += 1
            continue
        try:  # what loads, works
            loaded.info()
            repr(loaded)
            assert np.isfinite(loaded.decode(np.zeros((2, 4))).X).all()
            loaded.decode(np.zeros((1, 4)), batch=loaded.schema.batch.names[0], library_size="observed")
        except ScdecodeError:
            pass
    assert refused > 20


def test_the_manifest_of_every_kind_of_model(adata, tmp_path):
    setups = ({}, EVERYTHING, {"size_factor_key": "size_factor"}, {"labels_key": "cell_type"})
    for i, setup in enumerate(setups):
        model = make_model(adata, setup=setup, epochs=1)
        model.save(tmp_path / str(i))
        assert_same(sd.load(tmp_path / str(i)), model)


def test_a_manifest_that_was_edited_without_a_trace(folder):
    """Every field is as it may be; only the digest knows that two genes changed their places."""

    def swap(manifest):
        genes = manifest["schema"]["genes"]
        genes[0], genes[1] = genes[1], genes[0]

    rewrite(folder, swap)
    with pytest.raises(CorruptModelError, match=r"model\.json: it was edited after it was written"):
        sd.load(folder)
