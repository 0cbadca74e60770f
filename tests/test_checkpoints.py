"""The state of a training on disk: killed runs, other trainings, damaged files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save as save_tensors
from small_models import EVERYTHING, make_adata, make_model

from scdecode import training
from scdecode.checkpoints import Checkpoint, read_checkpoint, write_checkpoint
from scdecode.errors import ConfigError, CorruptModelError, OutputError, TrainingWarning

OPTIONS = {"setup": EVERYTHING, "gene_likelihood": "zinb", "latent_distribution": "ln", "use_observed_lib_size": False}
"""Whatever has a state: learned libraries, dropout, batch normalisation, noise."""
TRAIN = {"early_stopping": True, "early_stopping_patience": 20, "batch_size": 64}


def untrained(**options):
    return make_model(make_adata(), epochs=0, **OPTIONS | options)


def train(model, epochs, **options):
    model.train(epochs, device="cpu", progress=False, **TRAIN | options)
    return model


def assert_same(one, other):
    for name, tensor in other.vae.state_dict().items():
        assert torch.equal(one.vae.state_dict()[name], tensor), name
    assert one.history_table.drop(columns="seconds").equals(other.history_table.drop(columns="seconds"))


@pytest.fixture(scope="module")
def unbroken():
    return train(untrained(), 6)


def test_written_and_read(tmp_path):
    identity = {"lr": 1e-3, "name": "a"}
    progress = {"rows": [{"elbo_train": 1.5}], "best": float("inf"), "since_best": 0}
    weights, moments = {"w": torch.arange(6.0).reshape(2, 3).t()}, {"0/step": torch.tensor(3.0)}
    write_checkpoint(tmp_path / "c", Checkpoint(weights, moments, progress, identity))
    read = read_checkpoint(tmp_path / "c", identity)
    assert torch.equal(read.weights["w"], weights["w"])
    assert torch.equal(read.moments["0/step"], moments["0/step"])
    assert (read.progress, read.identity) == (progress, identity)


def test_a_killed_run_goes_on_as_if_it_had_not_been(tmp_path, unbroken):
    code = """
import os, sys, torch
torch.set_num_threads(1)  # as in conftest.py: another number rounds otherwise
sys.path.insert(0, sys.argv[1])
from test_checkpoints import train, untrained
train(untrained(), 6, checkpoint=sys.argv[2], on_epoch=lambda done, total, row: os._exit(9) if done == 3 else None)
"""
    done = subprocess.run([sys.executable, "-c", code, os.path.dirname(__file__), str(tmp_path / "c")], check=False)
    assert done.returncode == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == [".c.training.lock", "c"]  # a file that locks nothing
    told = []
    resumed = train(untrained(), 6, checkpoint=tmp_path / "c", on_epoch=lambda *epoch: told.append(epoch[:2]))
    assert told == [(4, 6), (5, 6), (6, 6)]
    assert_same(resumed, unbroken)
    z_nk = unbroken.get_latent_representation(mc_samples=20)
    np.testing.assert_array_equal(resumed.get_latent_representation(mc_samples=20), z_nk)


def test_a_run_that_is_killed_while_it_writes(tmp_path, unbroken, monkeypatch):
    model, calls = untrained(), []

    def killed(path, checkpoint):
        calls.append(path)
        if len(calls) == 4:
            raise SystemExit(9)
        write_checkpoint(path, checkpoint)

    monkeypatch.setattr(training, "write_checkpoint", killed)
    with pytest.raises(SystemExit):
        train(model, 6, checkpoint=tmp_path / "c")
    monkeypatch.undo()
    assert_same(train(untrained(), 6, checkpoint=tmp_path / "c"), unbroken)


def test_an_interrupted_run_goes_on(tmp_path, unbroken):
    def interrupt(done, total, row):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.warns(TrainingWarning, match="interrupted"):
        train(untrained(), 6, checkpoint=tmp_path / "c", on_epoch=interrupt)
    assert_same(train(untrained(), 6, checkpoint=tmp_path / "c"), unbroken)


def test_more_epochs_than_the_last_time(tmp_path, unbroken):
    train(untrained(), 4, checkpoint=tmp_path / "c")
    assert_same(train(untrained(), 6, checkpoint=tmp_path / "c"), unbroken)


def test_a_finished_run_is_opened_and_not_trained_again(tmp_path, unbroken):
    train(untrained(), 6, checkpoint=tmp_path / "c")
    again = train(untrained(), 6, checkpoint=tmp_path / "c", on_epoch=lambda *_: pytest.fail("there is nothing to do"))
    assert_same(again, unbroken)


def test_fewer_epochs_than_the_checkpoint_has(tmp_path):
    train(untrained(), 3, checkpoint=tmp_path / "c")
    with pytest.warns(TrainingWarning, match=r"has 3 epochs, more than the 2 asked for.*another file name"):
        assert len(train(untrained(), 2, checkpoint=tmp_path / "c").history_table) == 3


def test_early_stopping_goes_on_counting(tmp_path):
    options = {"early_stopping_min_delta": 1e9, "early_stopping_patience": 3}
    train(untrained(), 2, checkpoint=tmp_path / "c", **options)
    resumed = train(untrained(), 50, checkpoint=tmp_path / "c", **options)
    assert len(resumed.history_table) == 4  # the first validation, and three without an improvement
    again = train(untrained(), 50, checkpoint=tmp_path / "c", **options)
    assert len(again.history_table) == 4
    assert again.info()["ending"] == "early stopping"


# -- other trainings ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    path = tmp_path_factory.mktemp("kept") / "c"
    train(untrained(), 1, checkpoint=path)
    return path


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"lr": 1e-4}, r"\(lr: 0.001 there, 0.0001 here\)"),
        ({"seed": 1}, r"\(seed: 0 there, 1 here\)"),
        ({"batch_size": 32, "train_size": 0.8}, "train_size: 0.9 there, 0.8 here; batch_size: 64 there, 32 here"),
        ({"n_epochs_kl_warmup": None}, "n_epochs_kl_warmup: 400 there, None here"),
    ],
)
def test_another_training(kept, options, difference):
    with pytest.raises(ConfigError, match=rf"c is of another training .*{difference}.*another file name to begin anew"):
        train(untrained(), 2, checkpoint=kept, **options)


@pytest.mark.parametrize(
    ("options", "difference"),
    [
        ({"n_latent": 5}, r"\(n_latent: 4 there, 5 here;"),
        ({"gene_likelihood": "nb"}, "gene_likelihood: 'zinb' there, 'nb' here"),
        ({"setup": EVERYTHING | {"batch_key": None}}, "crc32 of the counts and conditions"),
        ({"setup": EVERYTHING | {"batch_key": "chem", "categorical_covariate_keys": ["sex", "batch"]}}, "crc32 of the"),
        ({"setup": EVERYTHING | {"continuous_covariate_keys": ["pct", "age"]}}, "crc32 of the counts and conditions"),
    ],
)
def test_another_model(kept, options, difference):
    with pytest.raises(ConfigError, match=f"is of another training .*{difference}"):
        train(untrained(**options), 2, checkpoint=kept)


def test_other_cells(kept):
    for cells, difference in [
        (make_adata()[:299].copy(), "n_cells: 300 there, 299 here"),
        (make_adata()[::-1].copy(), r"\(crc32 of the counts and conditions: '\w{8}' there, '\w{8}' here\)"),
        (make_adata(seed=1), "total_counts: .* there"),
    ]:
        with pytest.raises(ConfigError, match=difference):
            train(make_model(cells, epochs=0, **OPTIONS), 2, checkpoint=kept)


def test_a_refused_checkpoint_leaves_the_model_as_it_was(kept):
    model = untrained()
    before = {name: tensor.clone() for name, tensor in model.vae.state_dict().items()}
    with pytest.raises(ConfigError):
        train(model, 2, checkpoint=kept, lr=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.vae.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.vae.parameters())
    assert not model.is_trained


# -- damaged files and disks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["truncated", "header", "empty", "text", "other safetensors"])
def test_a_damaged_checkpoint(kept, tmp_path, damage):
    whole = kept.read_bytes()
    path = tmp_path / "c"
    if damage == "other safetensors":
        from safetensors.torch import save_file

        save_file({"w": torch.zeros(2)}, path)
    else:
        path.write_bytes({"truncated": whole[:-10], "header": whole[:20], "empty": b"", "text": b"hello"}[damage])
    with pytest.raises(CorruptModelError, match=r"c: .*truncated.*pass another file"):
        train(untrained(), 2, checkpoint=path)


def test_a_folder_in_the_place_of_a_checkpoint(tmp_path):
    (tmp_path / "mine").touch()
    with pytest.raises(CorruptModelError, match="it is no checkpoint"):
        train(untrained(), 2, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_a_place_that_cannot_be_written_is_known_before_the_first_epoch(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        train(untrained(), 2, checkpoint=tmp_path / "file" / "c", on_epoch=lambda *_: pytest.fail("too late"))


def test_a_disk_that_fills_up_does_not_cost_the_training(tmp_path, unbroken, monkeypatch):
    calls = []

    def full(path, checkpoint):
        calls.append(path)
        if len(calls) > 3:
            raise OutputError(f"{path}: the disk is full; nothing was changed")
        write_checkpoint(path, checkpoint)

    monkeypatch.setattr(training, "write_checkpoint", full)
    with pytest.warns(TrainingWarning, match="c: the disk is full; nothing was changed; training goes on"):
        model = train(untrained(), 6, checkpoint=tmp_path / "c")
    assert_same(model, unbroken)
    monkeypatch.undo()
    assert_same(train(untrained(), 6, checkpoint=tmp_path / "c"), unbroken)


# -- every byte counts


def flipped(data, position, bit=0):
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def regions(data):
    """A few positions of each part of a checkpoint: its length, each key and value of its header, the tensors."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = range(8, end)
    return [*range(8), *header[:: max(1, len(header) // 150)], *range(end, len(data), max(1, (len(data) - end) // 100))]


def test_one_flipped_bit_anywhere(kept, tmp_path):
    data, path = kept.read_bytes(), tmp_path / "c"
    identity = read_identity(kept)
    generator = np.random.default_rng(0)
    for position in [*regions(data), *generator.integers(0, len(data), 50)]:
        path.write_bytes(flipped(data, int(position), int(generator.integers(8))))
        with pytest.raises(CorruptModelError, match="c: "):
            read_checkpoint(path, identity)


def test_every_byte_of_the_metadata(kept, tmp_path):
    data, path = kept.read_bytes(), tmp_path / "c"
    identity = read_identity(kept)
    start = data.index(b'"__metadata__"')
    for position in range(start, data.index(b'"}', start) + 2):
        path.write_bytes(flipped(data, position, 2))
        with pytest.raises(CorruptModelError):
            read_checkpoint(path, identity)


def read_identity(path):
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["identity"])


def rewritten(path, change):
    """The checkpoint written again by other hands, without a new digest."""
    with safe_open(path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    return save_tensors(tensors, metadata=metadata)


def swap_tensors(metadata, tensors):
    names = [name for name in tensors if name.startswith("moments/") and name.endswith("exp_avg")]
    one, other = next((a, b) for a in names for b in names if a < b and tensors[a].shape == tensors[b].shape)
    tensors[one], tensors[other] = tensors[other], tensors[one]


def drop_row(metadata, tensors):
    progress = json.loads(metadata["progress"])
    del progress["rows"][-1]
    metadata["progress"] = json.dumps(progress)


def drop_moment(metadata, tensors):
    del tensors[next(name for name in tensors if name.startswith("moments/"))]


def other_shape(metadata, tensors):
    name = next(name for name, tensor in tensors.items() if tensor.ndim == 2 and tensor.shape[0] != tensor.shape[1])
    tensors[name] = tensors[name].reshape(tensors[name].shape[::-1])


@pytest.mark.parametrize("change", [swap_tensors, drop_row, drop_moment, other_shape, lambda m, t: m.update(more="1")])
def test_an_edited_checkpoint(kept, tmp_path, change):
    path = tmp_path / "c"
    path.write_bytes(rewritten(kept, change))
    with pytest.raises(CorruptModelError, match=r"its sha256 is not the one that was written.*begin anew"):
        train(untrained(), 2, checkpoint=path)


@pytest.mark.parametrize("damage", [lambda d: d[:-1], lambda d: d[: len(d) // 2], lambda d: d + b"\0", lambda d: d + d])
def test_a_checkpoint_of_another_length(kept, tmp_path, damage):
    path = tmp_path / "c"
    path.write_bytes(damage(kept.read_bytes()))
    with pytest.raises(CorruptModelError, match="the checkpoint was truncated or edited"):
        read_checkpoint(path, read_identity(kept))


def test_a_checkpoint_of_an_earlier_version_has_no_digest(kept, tmp_path):
    path = tmp_path / "c"
    path.write_bytes(rewritten(kept, lambda metadata, tensors: metadata.pop("sha256")))
    with pytest.raises(CorruptModelError, match="has no digest: it was damaged, or written by an earlier version"):
        train(untrained(), 2, checkpoint=path)


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 3e38])
def test_weights_that_no_training_leads_to(kept, tmp_path, number):
    identity = read_identity(kept)
    checkpoint = read_checkpoint(kept, identity)
    next(t for t in checkpoint.weights.values() if t.is_floating_point()).view(-1)[0] = number
    write_checkpoint(tmp_path / "c", checkpoint)
    with pytest.raises(CorruptModelError, match="its weights cannot be right"):
        read_checkpoint(tmp_path / "c", identity)


def test_a_checkpoint_of_other_tensors(kept, tmp_path):
    identity = read_identity(kept)
    checkpoint = read_checkpoint(kept, identity)
    del checkpoint.weights[next(iter(checkpoint.weights))]
    write_checkpoint(tmp_path / "c", checkpoint)
    with pytest.raises(CorruptModelError, match="it does not fit the model"):
        train(untrained(), 2, checkpoint=tmp_path / "c")


# -- two trainings


def test_two_trainings_on_one_checkpoint(tmp_path):
    path, errors = tmp_path / "c", []

    def second(done, total, row):
        with pytest.raises(OutputError, match=r"another training is writing .*c; wait.*or pass another file name") as e:
            train(untrained(), 1, checkpoint=path)
        errors.append(e)

    train(untrained(), 1, checkpoint=path, on_epoch=second)
    assert len(errors) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
    train(untrained(), 2, checkpoint=path)  # the lock has ended with the training


def test_a_killed_training_holds_no_lock(tmp_path):
    code = (
        "import os, sys; from scdecode.checkpoints import training_lock\nwith training_lock(sys.argv[1]): os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "c")], check=False)
    train(untrained(), 1, checkpoint=tmp_path / "c")
    assert [p.name for p in tmp_path.iterdir()] == ["c"]
