"""Directories read while another process replaces them; weights that are none."""

import json
import os
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import changed, legacy
from small_models import make_adata, make_model

import scdecode as sd
from scdecode._utils import snapshots
from scdecode._utils.snapshots import Folder, read_folder, read_path
from scdecode.errors import CorruptModelError, InputError
from scdecode.files import sha256
from scdecode.formats import native

SAVER = """
import itertools, os, sys
import scdecode as sd

os.environ["OMP_NUM_THREADS"] = "1"
place, *sources = sys.argv[1:]
models = [sd.SCVI.load(source) for source in sources]
print("ready", flush=True)
for model in itertools.cycle(models):
    model.save(place, overwrite=True, save_anndata=True)
"""


def saving(*arguments):
    """A process that saves models to one directory, in turn, until it is killed."""
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(SAVER), *map(str, arguments)], stdout=subprocess.PIPE
    )
    assert process.stdout.readline() == b"ready\n"
    return process


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Two models of one shape, with other genes, weights, references and cells."""
    folder = tmp_path_factory.mktemp("two")
    for seed in (0, 1):
        adata = make_adata(40, 12, seed=seed)
        adata.var_names = [f"gene_{seed}_{i}" for i in range(12)]
        make_model(adata, epochs=1, seed=seed).save(folder / str(seed), save_anndata=True)
    return folder


def test_a_model_that_another_process_saves_meanwhile(two, tmp_path):
    known = {}
    for seed in (0, 1):
        model = sd.load(two / str(seed))
        known[model.schema.genes[0]] = (model.vae.decoder.scale.weight.clone(), model.reference_latents().copy())
    place = tmp_path / "model"
    shutil.copytree(two / "0", place)
    process = saving(place, two / "0", two / "1")
    seen = set()
    try:
        n_refused = 0
        for _ in range(40):
            try:
                model = sd.SCVI.load(place)
            except CorruptModelError as error:  # it saves without a pause, so reading the cells may always be too slow
                if "it changed while it was read, 12 times in a row" not in str(error):
                    raise
                n_refused += 1
                continue
            weight, reference = known[model.schema.genes[0]]
            assert torch.equal(model.vae.decoder.scale.weight, weight)
            np.testing.assert_array_equal(model.reference_latents(), reference)
            assert model.schema.genes[0] in model._adata.var_names
            seen.add(model.schema.genes[0])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert process.returncode == -9, "it saved until the end"
    sd.load(place)  # whole, although the saving process was killed
    assert seen == set(known)
    assert n_refused < 10


def test_a_directory_that_changes_all_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "_PAUSE", 0)
    (tmp_path / "x").write_text("0")
    n_reads = []

    def read(folder):
        n_reads.append(folder.read("x"))
        (tmp_path / "x").write_text("1" * len(n_reads))
        raise CorruptModelError("it does not fit")

    with pytest.raises(CorruptModelError, match="it changed while it was read, 12 times in a row: another process is"):
        read_folder(tmp_path, read)
    assert len(n_reads) == 12


def test_an_error_of_a_directory_that_stays_is_raised_at_once(tmp_path):
    (tmp_path / "x").write_text("0")
    n_reads = []

    def read(folder):
        n_reads.append(folder.read("x"))
        raise CorruptModelError("it does not fit")

    with pytest.raises(CorruptModelError, match=r"^it does not fit$"):
        read_folder(tmp_path, read)
    assert n_reads == [b"0"]


def test_files_are_of_the_directory_that_was_opened(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_text("old")
    (tmp_path / "a" / "y").write_text("old")
    with Folder(tmp_path / "a") as folder:
        folder.hold("x")
        os.rename(tmp_path / "a", tmp_path / "b")
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "x").write_text("new")
        (tmp_path / "b" / "x").unlink()
        assert (folder.read("x"), folder.read("y")) == (b"old", b"old")
        assert folder.changed()


def test_three_files_of_scvi_tools_of_which_one_changes(tmp_path, monkeypatch):
    path = legacy("scvi", tmp_path / "model")
    from scdecode.formats import scvi_tools

    read, n_reads = scvi_tools.read_pickle_bytes, []

    def change(data, place):
        n_reads.append(place)
        if len(n_reads) == 1:
            os.utime(path / "model_params.pt", ns=(0, 0))
        return read(data, place)

    monkeypatch.setattr(scvi_tools, "read_pickle_bytes", change)
    sd.load(path)
    assert len(n_reads) == 2


def test_a_store_that_is_replaced_while_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(snapshots, "_PAUSE", 0)
    n_reads = []

    def read(path, until):
        n_reads.append(path)
        if len(n_reads) < until:
            shutil.rmtree(path)
            path.mkdir()
            (path / str(len(n_reads))).touch()
        return sorted(p.name for p in path.iterdir())

    (tmp_path / "x.zarr").mkdir()
    assert read_path(tmp_path / "x.zarr", lambda path: read(path, 3)) == ["2"]
    with pytest.raises(InputError, match="it changed while it was read, 12 times in a row"):
        read_path(tmp_path / "x.zarr", lambda path: read(path, 100))


# -- weights that are none


def edit(folder, change):
    """Change the weights of a model of ours, with the digests that belong to them."""
    weights = load_file(folder / "weights.safetensors")
    change(weights)
    save_file(weights, folder / "weights.safetensors")
    manifest = json.loads((folder / "model.json").read_text())
    manifest["sha256"]["weights.safetensors"] = sha256(folder / "weights.safetensors")
    manifest["sha256"]["model.json"] = native._digest_of(manifest)
    (folder / "model.json").write_text(json.dumps(manifest))


def setting(name, number):
    def change(weights):
        weights[name].view(-1)[0] = number

    return change


WRONG = {
    "negative variance": ("z_encoder.mlp.layers.0.batch_norm.running_var", -0.5),
    "large": ("decoder.scale.weight", 3e38),
    "large, negative": ("decoder.scale.bias", -3e38),
    "still large": ("decoder.scale.weight", 1e20),
    "NaN": ("z_encoder.mean.weight", float("nan")),
    "infinite": ("decoder.scale.bias", float("inf")),
    "dispersion": ("log_theta", 200.0),
    "no dispersion": ("log_theta", -200.0),
}


@pytest.mark.parametrize("kind", WRONG)
def test_weights_that_no_training_leads_to(two, tmp_path, kind):
    folder = tmp_path / "model"
    shutil.copytree(two / "0", folder)
    name, number = WRONG[kind]
    names = list(load_file(folder / "weights.safetensors"))
    if name not in names:
        name = next(n for n in names if n.endswith(name.rpartition(".")[2]))
    edit(folder, setting(name, number))
    with pytest.raises(CorruptModelError, match=r"variance -0.5|has the number|NaN or infinite|no finite number"):
        sd.load(folder)


def test_weights_whose_product_overflows(tmp_path):
    """Each number could be right, and what they decode to is none."""
    folder = tmp_path / "model"
    make_model(make_adata(40, 12), epochs=1, n_layers=3).save(folder)

    def change(weights):
        for name, tensor in weights.items():
            if name.startswith("decoder.") and tensor.is_floating_point():
                tensor[:] = 0 if "running" in name else 9e8

    edit(folder, change)
    with pytest.raises(CorruptModelError, match="no finite number for the scale"):
        sd.load(folder)


@pytest.mark.parametrize("number", [-1.0, 3e38, float("nan"), float("-inf")])
@pytest.mark.parametrize(
    "name", ["z_encoder.encoder.fc_layers.Layer 0.1.running_var", "decoder.px_scale_decoder.0.weight", "px_r"]
)
def test_weights_of_scvi_tools(tmp_path, name, number):
    def change(content):
        assert name in content["model_state_dict"]
        content["model_state_dict"][name].view(-1)[0] = number

    path = changed("scvi", tmp_path / "model", change)
    if number == -1.0 and not name.endswith("var"):
        sd.load(path)
        return
    with pytest.raises(CorruptModelError, match=r"variance -1|has the number|NaN or infinite"):
        sd.load(path)
