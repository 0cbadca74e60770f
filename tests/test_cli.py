"""The command line: each command as a user types it, with what it prints, what it writes and how it fails."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from cli_runs import TRAIN, make_place, run

import scdecode as sd
from scdecode.cli import app


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells, points and a model that the command line trained."""
    return make_place(tmp_path_factory.mktemp("cli"))


def test_train_wrote_the_options_it_was_given(place: Path) -> None:
    model = sd.load(place / "model")
    assert model.config.n_latent == 4
    assert model.config.use_layer_norm == "encoder"
    assert model.train_config.n_epochs_kl_warmup == 1
    assert model.schema.columns.layer == "counts"
    assert len(model.history_table) == 2


def test_train_does_not_replace_a_model_unasked(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (place / "model" / "model.json").read_bytes()
    assert run("train", place / "cells.h5ad", "--out", place / "model", *TRAIN) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert (place / "model" / "model.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-key", "btch"), "did you mean 'batch'?"),
        (("--layer", "raw"), "layer: 'raw' is not one of the 3 layers"),
        (("--set", "epss=1"), "did you mean 'eps'?"),
        (("--set", "lr=0.1"), "--set: 'lr' is not one of"),  # it has an option of its own
        (("--set", "eps"), "NAME=VALUE was expected"),
        (("--set", "eps=0.1", "--set", "eps=0.2"), "came twice"),
        (("--gene-likelihood", "negbin"), "gene_likelihood: 'negbin' is not one of the 4 choices"),
        (("--lr", "-1"), "lr: -1.0 came"),
        (("--device", "gpu"), "device: got 'gpu'"),
    ],
)
def test_train_refuses(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("train", place / "cells.h5ad", "--out", tmp_path / "new", *arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "new").exists()


def test_train_goes_on_from_a_checkpoint(place: Path, tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    for epochs, out in (("1", "one"), ("3", "three")):
        options = [*TRAIN[:-2], "--max-epochs", epochs, "--checkpoint", state, "--out", tmp_path / out]
        assert run("train", place / "cells.h5ad", *options) == 0
    assert run("train", place / "cells.h5ad", *TRAIN[:-2], "--max-epochs", "3", "--out", tmp_path / "unbroken") == 0
    resumed, unbroken = (sd.load(tmp_path / name).vae.state_dict() for name in ("three", "unbroken"))
    assert all((resumed[name] == unbroken[name]).all() for name in unbroken)


def test_info_as_a_table_and_as_json(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", place / "model") == 0
    table = capsys.readouterr().out
    for word in ("300 x 40", "batch (3 levels)", "'batch_1'", "gene_likelihood=nb", "age", "2 (finished)"):
        assert word in table
    assert run("info", place / "model", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["n_genes"] == len(facts["genes"]) == 40
    assert facts["categories"]["sex"] == ["F", "M"]


def test_encode_writes_what_the_model_says(place: Path, tmp_path: Path) -> None:
    cells = ad.read_h5ad(place / "cells.h5ad")
    expected = sd.load(place / "model").get_latent_representation(cells)
    for name in ("z.npy", "z.csv", "z.tsv", "z.h5ad"):
        assert run("encode", place / "model", place / "cells.h5ad", "--out", tmp_path / name) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "z.npy"), expected)
    np.testing.assert_allclose(pd.read_csv(tmp_path / "z.csv", index_col=0), expected, rtol=1e-6)
    table = pd.read_csv(tmp_path / "z.tsv", index_col=0, sep="\t")
    assert list(table.index) == list(cells.obs_names)
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "z.h5ad").obsm["X_scVI"], expected)
    assert run("encode", place / "model", place / "cells.h5ad", "--out", tmp_path / "d.npy", "--n-samples", 3) == 0
    assert np.load(tmp_path / "d.npy").shape == (3, 300, 4)


def test_decode_writes_what_the_model_says(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--batch", "batch_2", "--categorical", "sex=F", "--continuous", "age=30", "--library-size", "5000")
    model, points = sd.load(place / "model"), np.load(place / "points.npy")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.ScdecodeWarning)
        expected = model.decode(
            points, batch="batch_2", categorical={"sex": "F"}, continuous={"age": 30}, library_size=5000
        )
    for name in ("e.h5ad", "e.zarr", "e.csv"):
        assert run("decode", place / "model", place / "points.npy", *options, "--out", tmp_path / name) == 0
    assert "7 x 40 genes" in capsys.readouterr().out
    np.testing.assert_array_equal(ad.read_h5ad(tmp_path / "e.h5ad").X, expected.X)
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "e.zarr").X, expected.X)
    table = pd.read_csv(tmp_path / "e.csv", index_col="point")
    np.testing.assert_allclose(table[list(expected.var_names)], expected.X, rtol=1e-5)
    assert set(table["batch"]) == {"batch_2"}


def test_decode_averages_over_several_batches_and_keeps_chosen_genes(place: Path, tmp_path: Path) -> None:
    options = ("--batch", "batch_1", "--batch", "batch_2", "--genes", "gene_03,gene_01", "--quantity", "scale")
    assert run("decode", place / "model", place / "points.npy", *options, "--out", tmp_path / "e.h5ad") == 0
    result = ad.read_h5ad(tmp_path / "e.h5ad")
    assert list(result.var_names) == ["gene_03", "gene_01"]
    assert set(result.obs["batch"]) == {"average"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.ScdecodeWarning)
        expected = sd.load(place / "model").decode(
            np.load(place / "points.npy"), batch=["batch_1", "batch_2"], quantity="scale", genes=["gene_03", "gene_01"]
        )
    np.testing.assert_array_equal(result.X, expected.X)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch", "batch1"), "did you mean 'batch_1'?"),
        (("--continuous", "age=old"), "--continuous age: 'old' came, a number was expected"),
        (("--categorical", "sex"), "NAME=VALUE was expected"),
        (("--categorical", "sx=F"), "did you mean 'sex'?"),
        (("--library-size", "many"), "--library-size: 'many' came"),
        (("--library-size", "-3"), "library_size: [-3.0] came"),
        (("--quantity", "rates"), "did you mean 'rate'?"),
        (("--n-samples", "5"), "the points have no spread"),
        (("--use-rep", "X"), "use_rep: 'X' came"),
    ],
)
def test_decode_refuses(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    status = run("decode", place / "model", place / "points.npy", "--out", tmp_path / "e.h5ad", *arguments)
    assert status == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["missing.npy", "points.txt", "broken.npy", "words.csv"])
def test_decode_refuses_files_that_hold_no_points(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    (tmp_path / "points.txt").write_text("1 2 3 4")
    (tmp_path / "broken.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "words.csv").write_text("name,a,b,c,d\nx,one,two,three,four\n")
    assert run("decode", place / "model", tmp_path / name, "--out", tmp_path / "e.h5ad") == 1
    assert "error: " in capsys.readouterr().err
    assert not (tmp_path / "e.h5ad").exists()


def test_a_pickle_inside_an_npy_is_not_loaded(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    assert run("decode", place / "model", tmp_path / "evil.npy", "--out", tmp_path / "e.h5ad") == 1
    assert "allow_pickle=False" in capsys.readouterr().err


def test_a_warning_is_one_line(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--library-size", "9.2", "--out", tmp_path / "e.h5ad")
    assert run("decode", place / "model", place / "points.npy", *options) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: library_size")]
    assert len(lines) == 1
    assert "9,897" in lines[0]


def test_a_cell_file_that_is_none(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cells.h5ad").write_text("not HDF5")
    for cells in (tmp_path / "cells.h5ad", tmp_path / "missing.h5ad"):
        assert run("encode", place / "model", cells, "--out", tmp_path / "z.npy") == 1
        assert capsys.readouterr().err.startswith(f"error: {cells}: ")


def test_debug_shows_the_traceback(place: Path) -> None:
    for arguments in (("--debug", "info", "nowhere"), ("info", "nowhere", "--debug")):
        with pytest.raises(sd.errors.FormatError, match="there is no such directory"):
            run(*arguments)


def test_help_of_each_command_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    listed = capsys.readouterr().out
    names = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert set(names) == {"train", "info", "convert", "path", "encode", "decode", "generate", "export", "demo"}
    for name in names:
        assert name in listed
        assert run(name, "--help") == 0
        assert re.search(rf"Examples?: scdecode\s+{name}", capsys.readouterr().out)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out == f"scdecode {sd.__version__}\n"


def test_as_a_module_a_missing_option_is_a_usage_error() -> None:
    done = subprocess.run([sys.executable, "-m", "scdecode", "decode", "m", "p.npy"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "--out" in done.stderr


def test_results_do_not_replace_what_is_there_unasked(place: Path, tmp_path: Path) -> None:
    cells = tmp_path / "cells.h5ad"
    cells.write_bytes((place / "cells.h5ad").read_bytes())
    ends = ("--from", "trunk", "--to", "branch_1", "--key", "branch")
    for words in (
        ("encode", place / "model", cells, "--out", cells),
        ("decode", place / "model", cells, "--use-rep", "latent", "--out", cells),
        ("path", place / "model", cells, *ends, "--out", cells),
        ("path", place / "model", cells, *ends, "--out", tmp_path / "p.csv", "--plot", cells.with_suffix(".png")),
    ):
        cells.with_suffix(".png").write_text("a picture")
        assert run(*words) == 1
        assert cells.read_bytes() == (place / "cells.h5ad").read_bytes()
        assert cells.with_suffix(".png").read_text() == "a picture"
        assert not (tmp_path / "p.csv").exists()
    out = tmp_path / "z.npy"
    for _ in range(2):
        assert run("encode", place / "model", cells, "--out", out, "--overwrite") == 0


def test_train_looks_where_it_will_write_before_it_trains(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd.SCVI, "train", lambda *_, **__: pytest.fail("it trained"))
    (tmp_path / "file").touch()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "figure.png").touch()
    for out in (tmp_path / "file" / "model", tmp_path / "results"):
        assert run("train", place / "cells.h5ad", "--out", out, "--overwrite", *TRAIN) == 1
        assert capsys.readouterr().err.startswith("error: ")
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["figure.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "results"]


def test_train_keeps_the_last_whole_epoch_where_the_loss_breaks(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = sd.SCVI.train

    def break_after_two(self: sd.SCVI, *arguments: object, **options: object) -> None:
        def poison(done: int, total: int, row: dict[str, float]) -> None:
            if done == 2:
                self.vae.z_encoder.mean.weight.data.fill_(float("nan"))

        original(self, *arguments, on_epoch=poison, **options)

    monkeypatch.setattr(sd.SCVI, "train", break_after_two)
    options = [*TRAIN, "--max-epochs", "5"]
    assert run("train", place / "cells.h5ad", "--out", tmp_path / "model", *options) == 1
    assert "the loss is no longer a number in epoch 3" in capsys.readouterr().err
    kept = sd.load(tmp_path / "model")
    assert len(kept.history_table) == 2
    assert kept.info()["ending"] == "failed"


def test_a_note_on_a_kl_term_that_hardly_counted(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for word in TRAIN if not word.startswith("n_epochs_kl_warmup")][:-1]
    assert run("train", place / "cells.h5ad", "--out", tmp_path / "model", *options) == 0
    assert "note: the KL term ended at a weight of 0.00" in capsys.readouterr().err


def test_a_table_without_a_header_is_no_table_of_points(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    points = np.load(place / "points.npy")
    pd.DataFrame(points, index=list("abcdefg")).to_csv(tmp_path / "no_header.csv", header=False)
    np.savetxt(tmp_path / "bare.csv", points, delimiter=",")
    (tmp_path / "ragged.csv").write_text("name,a,b\nx,1,2\ny,1,2,3,4\n")
    for name in ("no_header.csv", "bare.csv", "ragged.csv"):
        assert run("decode", place / "model", tmp_path / name, "--out", tmp_path / "e.h5ad") == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert name == "ragged.csv" or "its first row is numbers" in error


def test_names_in_square_brackets_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    adata = sd.datasets.simulate_branching(60, 10, n_batches=2)
    adata.obs["batch"] = adata.obs["batch"].cat.rename_categories(["T [act] x", "[/bold]"])
    sd.SCVI.setup_anndata(adata, batch_key="batch")
    model = sd.SCVI(adata, n_hidden=4)
    model.train(1, progress=False)
    model.save(tmp_path / "model")
    assert run("info", tmp_path / "model") == 0
    shown = capsys.readouterr().out
    assert "T [act] x" in shown
    assert "[/bold]" in shown


def test_convert_and_info_of_a_model_of_scvi_tools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs = Path(__file__).parent / "golden" / "saved" / "scvi"
    assert run("info", theirs) == 0
    out = capsys.readouterr().out
    assert "trained by scvi-tools 1." in out and "--reference" in out
    assert run("convert", theirs, tmp_path / "ours") == 0
    assert f"{tmp_path / 'ours'}: SCVI: " in capsys.readouterr().out
    assert run("convert", tmp_path / "ours", tmp_path / "theirs", "--to", "scvi-tools") == 0
    assert "in the format of scvi-tools" in capsys.readouterr().out
    assert (tmp_path / "theirs" / "model.pt").is_file()
    assert run("convert", theirs, tmp_path / "ours") == 1
    assert "it is there already; choose another name, or pass --overwrite" in capsys.readouterr().err
    assert run("convert", theirs, tmp_path / "ours", "--overwrite") == 0


def test_convert_with_a_reference(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("convert", place / "model", tmp_path / "theirs", "--to", "scvi-tools") == 0
    assert run("convert", tmp_path / "theirs", tmp_path / "again", "--reference", place / "cells.h5ad") == 0
    capsys.readouterr()
    assert run("info", tmp_path / "again", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["n_reference"], facts["n_cells"]) == (300, 300)
    assert run("convert", tmp_path / "theirs", tmp_path / "no", "--reference", place / "points.npy") == 1
    assert "points.npy: it cannot be read as an AnnData" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


@pytest.fixture(scope="module")
def labelled(place: Path) -> Path:
    """A model that knows labels."""
    options = [*TRAIN, "--labels-key", "branch"]
    assert run("train", place / "cells.h5ad", "--out", place / "labelled", *options) == 0
    return place / "labelled"


def test_generate_writes_what_the_model_says(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("--labels", "trunk", "--labels", "branch_1", "--batch", "batch_2", "--categorical", "sex=F", "--seed", 3)
    for name in ("cells.h5ad", "cells.zarr", "cells.csv"):
        assert run("generate", labelled, "--n", 30, *asked, "--out", tmp_path / name) == 0
        assert f"{name}: 30 cells x 40 genes, counts, from " in capsys.readouterr().out
    expected = sd.load(labelled).generate(
        30, labels=["trunk", "branch_1"], batch="batch_2", categorical={"sex": "F"}, seed=3
    )
    written = ad.read_h5ad(tmp_path / "cells.h5ad")
    np.testing.assert_array_equal(written.X.toarray(), expected.X.toarray())
    pd.testing.assert_frame_equal(written.obs, expected.obs)
    np.testing.assert_array_equal(ad.read_zarr(tmp_path / "cells.zarr").X.toarray(), expected.X.toarray())
    table = pd.read_csv(tmp_path / "cells.csv", index_col=0)
    np.testing.assert_array_equal(table[list(expected.var_names)], expected.X.toarray())
    genes = f"{expected.var_names[1]},{expected.var_names[2]}"
    options = ("--library-size", "700", "--genes", genes, "--out", tmp_path / "cells.h5ad", "--overwrite")
    assert run("generate", labelled, "--n", 5, *options) == 0
    written = ad.read_h5ad(tmp_path / "cells.h5ad")
    assert written.shape == (5, 2)
    assert set(written.obs["library_size"]) == {700}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--n", "0"), "n: 0 came, a whole number of at least 1 was expected"),
        (("--n", "5", "--labels", "trnk"), "did you mean 'trunk'?"),
        (("--n", "5", "--library-size", "deep"), "--library-size: 'deep' came, a number was expected"),
        (("--n", "5", "--library-size", "-5"), "library_size: [-5.0] came, positive finite numbers were expected"),
        (("--n", "5", "--categorical", "sex"), "NAME=VALUE was expected"),
    ],
)
def test_generate_refuses(
    labelled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert run("generate", labelled, *arguments, "--out", tmp_path / "cells.h5ad") == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(tmp_path.iterdir())


def test_generate_of_a_model_without_labels(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "cells.h5ad"
    assert run("generate", place / "model", "--n", 5, "--labels", "trunk", "--out", out) == 1
    assert "the model was set up without labels" in capsys.readouterr().err
    assert run("generate", place / "model", "--n", 5, "--batch", "batch_1", "--out", out) == 0
    assert run("generate", place / "model", "--n", 5, "--out", out) == 1
    assert "pass --overwrite" in capsys.readouterr().err
