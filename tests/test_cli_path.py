"""``scdecode path``: every way to make a path, every output, and how it fails."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from cli_runs import make_place, run

import scdecode as sd
from scdecode.counterfactual import counterfactual

ENDS = ("--from", "trunk", "--to", "branch_1", "--key", "branch")
SAID = ("--batch", "batch_1", "--categorical", "sex=F", "--continuous", "age=30")
AS_SAID = {"batch": "batch_1", "categorical": {"sex": "F"}, "continuous": {"age": 30.0}}
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with cells, which have pseudotimes of several tools, and a model."""
    folder = make_place(tmp_path_factory.mktemp("cli_path"), "--max-epochs", "60", "--n-hidden", "32", "--lr", "0.01")
    cells = ad.read_h5ad(folder / "cells.h5ad")
    cells.obs["weight"] = np.where(cells.obs["branch"] == "branch_2", 0.0, 1.0)
    cells.obs["palantir_pseudotime"] = cells.obs["pseudotime"]
    right = (cells.obs["branch"] == "branch_2").astype(float)
    fates = np.where(cells.obs["branch"] == "trunk", 0.5, right)
    cells.obsm["palantir_fate_probabilities"] = pd.DataFrame({"left": 1 - fates, "right": fates}, index=cells.obs_names)
    cells.write_h5ad(folder / "cells.h5ad")
    return folder


@pytest.fixture(scope="module")
def model(place: Path) -> sd.SCVI:
    return sd.load(place / "model")


@pytest.fixture
def cells(place: Path) -> ad.AnnData:
    return ad.read_h5ad(place / "cells.h5ad")


def path(place: Path, *arguments: object) -> int:
    return run("path", place / "model", place / "cells.h5ad", *arguments)


def decoded(model: sd.SCVI, made: sd.Trajectory, **said: object) -> ad.AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.ScdecodeWarning)
        return model.decode(made, **{**AS_SAID, **said})


def between(model: sd.SCVI, cells: ad.AnnData, *names: str, n_points: int = 9, **said: object) -> sd.Trajectory:
    places = [model.posterior(cells[cells.obs["branch"] == name]) for name in names]
    return sd.Trajectory.through(model, places, n_points, **{**AS_SAID, **said})


def assert_same(written: ad.AnnData, expected: ad.AnnData) -> None:
    np.testing.assert_allclose(written.X, expected.X, rtol=1e-5)
    assert set(written.layers) == set(expected.layers)
    for layer in expected.layers:
        np.testing.assert_allclose(written.layers[layer], expected.layers[layer], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(written.obs["time"], expected.obs["time"])


# -- ways


def test_from_one_category_to_another(place, model, cells, tmp_path, capsys):
    for name in ("p.h5ad", "p.zarr", "p.csv", "p.tsv"):
        assert path(place, *ENDS, *SAID, "--n-points", 9, "--out", tmp_path / name) == 0
        assert f"{name}: 9 x 40 genes, expected counts" in capsys.readouterr().out
    expected = decoded(model, between(model, cells, "trunk", "branch_1"))
    assert set(expected.layers) == {"q05", "q95", "std", "std_counts"}
    assert_same(ad.read_h5ad(tmp_path / "p.h5ad"), expected)
    assert_same(ad.read_zarr(tmp_path / "p.zarr"), expected)
    for name, separator in (("p.csv", ","), ("p.tsv", "\t")):
        table = pd.read_csv(tmp_path / name, sep=separator)
        assert list(table.columns) == [
            *("gene", "time", "mean", "low", "high", "std", "std_counts", "supported", "unit")
        ]
        assert len(table) == 9 * 40
        for column, layer in (("mean", None), ("low", "q05"), ("high", "q95"), ("std_counts", "std_counts")):
            wide = table.pivot(index="time", columns="gene", values=column)[list(expected.var_names)]
            np.testing.assert_allclose(wide, expected.to_df(layer), rtol=1e-4)
        np.testing.assert_allclose(table.loc[table["gene"] == "gene_03", "time"], np.linspace(0, 1, 9))


def test_a_long_table_of_lineages_and_without_error_bars(place, model, cells, tmp_path):
    words = ("--lineages", "palantir", "--n-points", 5, "--no-spread", "--genes", "gene_03,gene_01")
    assert path(place, *words, *SAID, "--out", tmp_path / "p.csv") == 0
    text = (tmp_path / "p.csv").read_text()
    table = pd.read_csv(tmp_path / "p.csv")
    assert list(table.columns[:6]) == ["gene", "time", "mean", "low", "high", "lineage"]
    assert table["gene"].unique().tolist() == ["gene_03", "gene_01"]
    assert table["low"].isna().all() and table["high"].isna().all()
    assert len(table) == 2 * 5 * table["lineage"].nunique() and table["lineage"].nunique() == 2
    numbers = [word for line in text.splitlines()[1:] for word in line.split(",")[1:3]]
    assert max(len(word) for word in numbers) <= 12  # six digits, not seventeen


def test_a_bare_line(place, model, cells, tmp_path):
    assert path(place, *ENDS, *SAID, "--n-points", 9, "--no-spread", "--out", tmp_path / "l.h5ad") == 0
    written = ad.read_h5ad(tmp_path / "l.h5ad")
    assert set(written.layers) == {"std_counts"}
    assert_same(written, decoded(model, between(model, cells, "trunk", "branch_1", spread=False)))


@pytest.mark.parametrize("how", ["linear", "graph", "geodesic"])
def test_through_others(place, model, cells, tmp_path, capsys, how):
    way = ("--through", "branch_2", "--how", how, "--n-points", 9)
    assert path(place, *ENDS, *way, *SAID, "--out", tmp_path / "p.h5ad") == 0
    told = capsys.readouterr().out
    made = between(model, cells, "trunk", "branch_2", "branch_1", how=how)
    assert_same(ad.read_h5ad(tmp_path / "p.h5ad"), decoded(model, made))
    if how == "geodesic":
        assert f"length: {made.report['length']:.4g}" in told
        assert f"straight length: {made.report['straight_length']:.4g}" in told
        assert f"ratio: {made.report['ratio']:.4g}" in told
    else:
        assert "length" not in told


@pytest.mark.filterwarnings("ignore:the curve has fewer")
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pseudotime", "pseudotime"), {"pseudotime": "pseudotime"}),
        (("--pseudotime", "pseudotime", "--weights", "weight"), {"pseudotime": "pseudotime", "weights": "weight"}),
        (("--lineages", "palantir"), {"source": "palantir"}),
        (("--lineages", "auto", "--lineage", "right"), {"lineages": ["right"]}),
        (("--lineages", "auto", "--lineage", "right", "--lineage", "left"), {"lineages": ["right", "left"]}),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_along_a_pseudotime(place, model, cells, tmp_path, words, said):
    assert path(place, *words, *SAID, "--n-points", 8, "--out", tmp_path / "p.h5ad") == 0
    made = sd.Trajectory.from_lineages(model, cells, **said, n_points=8)
    written = ad.read_h5ad(tmp_path / "p.h5ad")
    assert_same(written, decoded(model, made))
    assert written.uns["scdecode"]["time_name"] == made.time_name
    if made.lineages is None:
        assert "lineage" not in written.obs
    else:
        assert written.obs["lineage"].tolist() == [name for name in made.lineages for _ in range(8)]


def test_units_genes_and_draws(place, model, cells, tmp_path):
    options = ("--quantity", "scale", "--genes", "gene_03,gene_01", "--n-samples", 16, "--seed", 4)
    assert path(place, *ENDS, *SAID, *options, "--n-points", 5, "--out", tmp_path / "p.h5ad") == 0
    made = between(model, cells, "trunk", "branch_1", n_points=5)
    expected = decoded(model, made, quantity="scale", genes=["gene_03", "gene_01"], n_samples=16, seed=4)
    written = ad.read_h5ad(tmp_path / "p.h5ad")
    assert_same(written, expected)
    assert list(written.var_names) == ["gene_03", "gene_01"]
    for size, number in (("700", 700), ("observed", model.schema.median_library)):
        out = tmp_path / f"{size}.h5ad"
        assert path(place, *ENDS, *SAID, "--library-size", size, "--n-points", 3, "--no-spread", "--out", out) == 0
        np.testing.assert_allclose(ad.read_h5ad(out).obs["library_size"], number)
    several = ("--batch", "batch_1", "--batch", "batch_2", "--max-conditions", 50)
    assert path(place, *ENDS, *several, "--n-points", 3, "--no-spread", "--out", tmp_path / "s.h5ad") == 0
    assert set(ad.read_h5ad(tmp_path / "s.h5ad").obs["batch"]) == {"average"}


# -- conditions


@pytest.mark.parametrize("over", ["batch", "sex"])
def test_over_conditions(place, model, cells, tmp_path, over):
    said = ("--continuous", "age=30", "--n-points", 5)
    outputs = ("--out", tmp_path / "e.h5ad", "--difference", tmp_path / "d.h5ad", "--plot", tmp_path / "p.png")
    assert path(place, *ENDS, *said, "--condition", over, *outputs) == 0
    made = between(model, cells, "trunk", "branch_1", n_points=5, batch=None, categorical=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sd.ScdecodeWarning)
        expected = counterfactual(model, made, over)
    for name, result in (("e.h5ad", expected.expression), ("d.h5ad", expected.difference)):
        written = ad.read_h5ad(tmp_path / name)
        assert_same(written, result)
        assert written.obs["condition"].tolist() == result.obs["condition"].tolist()
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)


def test_levels_of_a_condition(place, tmp_path):
    levels = ("--condition", "batch", "--level", "batch_3", "--level", "batch_1", "--n-points", 4)
    outputs = ("--out", tmp_path / "e.csv", "--difference", tmp_path / "d.tsv")
    assert path(place, *ENDS, *levels, *outputs) == 0
    table = pd.read_csv(tmp_path / "e.csv")
    assert list(table.columns[:6]) == ["gene", "time", "mean", "low", "high", "condition"]
    assert table["condition"].tolist() == (["batch_3"] * 4 + ["batch_1"] * 4) * 40
    table = pd.read_csv(tmp_path / "d.tsv", sep="\t")
    assert set(table["condition"]) == {"batch_1"}
    assert {"low", "high", "log2_fold_change", "log2_fold_change_q05", "log2_fold_change_q95"} <= set(table)


# -- more results


@pytest.mark.filterwarnings("ignore:the curve has fewer")
@pytest.mark.parametrize(
    "way", [ENDS, ("--pseudotime", "pseudotime"), ("--lineages", "palantir")], ids=["ends", "pseudotime", "lineages"]
)
def test_tables_and_pictures(place, model, tmp_path, capsys, way):
    pictures = {"--plot": "trends.png", "--heatmap": "cascade.png", "--latent": "latent.png", "--change": "change.png"}
    outputs = [word for option, name in pictures.items() for word in (option, tmp_path / name)]
    tables = ("--genes-table", tmp_path / "genes.csv", "--out", tmp_path / "p.zarr")
    assert path(place, *way, *SAID, "--n-points", 12, *tables, *outputs) == 0
    told = capsys.readouterr().out
    for name in pictures.values():
        picture = (tmp_path / name).read_bytes()
        assert picture.startswith(PNG)
        assert len(picture) > 5000
        assert name in told
    table = pd.read_csv(tmp_path / "genes.csv")
    n_lineages = 2 if "--lineages" in way else 1
    assert len(table) == 40 * n_lineages
    assert set(table["gene"]) == set(model.schema.genes)
    assert ("lineage" in table) == (n_lineages > 1)
    assert f"genes.csv: {len(table)} rows, a gene each" in told
    # its first and last values are those of the path
    written = ad.read_zarr(tmp_path / "p.zarr")
    first = table[table["lineage"] == "left"] if n_lineages > 1 else table
    rows = written.obs["lineage"] == "left" if n_lineages > 1 else np.full(12, True)
    ends = written[rows].to_df().iloc[[0, -1]]
    by_gene = first.set_index("gene").loc[list(ends.columns)]
    np.testing.assert_allclose(by_gene[["start", "end"]].to_numpy().T, ends, rtol=0.02)


def test_pictures_of_other_kinds(place, tmp_path):
    assert path(place, *ENDS, "--n-points", 4, "--out", tmp_path / "p.csv", "--plot", tmp_path / "p.svg") == 0
    assert "<svg" in (tmp_path / "p.svg").read_text()
    assert path(place, *ENDS, "--n-points", 4, "--out", tmp_path / "q.csv", "--latent", tmp_path / "p.pdf") == 0
    assert (tmp_path / "p.pdf").read_bytes().startswith(b"%PDF")


# -- what it refuses


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "path: nothing says where it goes; pass --from, --to and --key"),
        (("--from", "trunk"), "path: ['--from'] came without ['--to', '--key']"),
        (("--from", "trunk", "--to", "branch_1"), "came without ['--key']"),
        (("--through", "branch_1", "--key", "branch"), "came without ['--from', '--to']"),
        ((*ENDS, "--pseudotime", "pseudotime"), "path: --from and --pseudotime came; a path goes"),
        ((*ENDS, "--lineages", "auto"), "path: --from and --lineages came"),
        (("--key", "branch"), "path: --key came alone; --from and --to, --pseudotime or --lineages was expected"),
        (("--weights", "weight"), "path: --weights came alone"),
        (("--lineage", "left"), "path: --lineage came alone"),
        (("--from", "trnk", "--to", "branch_1", "--key", "branch"), "--from: 'trnk' is not one of the 3 categories"),
        ((*ENDS, "--through", "brnch_2"), "--through: 'brnch_2' is not one of the 3 categories of 'branch'"),
        (("--from", "trunk", "--to", "branch9", "--key", "branch"), "--to: 'branch9' is not one of the 3"),
        (("--from", "trunk", "--to", "branch_1", "--key", "brnch"), "--key: 'brnch' is not one of"),
        (("--from", "trunk", "--to", "trunk", "--key", "branch"), "the same point"),
        ((*ENDS, "--how", "curved"), "how: 'curved' is not one of the 3 ways ['linear', 'graph', 'geodesic']"),
        ((*ENDS, "--n-points", "1"), "n_points: got 1 (int), expected a whole number from 2 to"),
        ((*ENDS, "--batch", "batch1"), "did you mean 'batch_1'?"),
        ((*ENDS, "--categorical", "sex"), "NAME=VALUE was expected"),
        ((*ENDS, "--genes", "gene_99"), "genes: 'gene_99' is not one of"),
        ((*ENDS, "--quantity", "rates"), "did you mean 'rate'?"),
        (("--pseudotime", "pseudotme"), "did you mean 'pseudotime'?"),
        (("--pseudotime", "pseudotime", "--weights", "wait"), "'wait'"),
        (("--lineages", "monocle"), "source: 'monocle' is not one of"),
        (("--lineages", "auto", "--lineage", "middle"), "lineages: 'middle' is not one of the 2 lineages"),
        ((*ENDS, "--level", "batch_1"), "--level: got it without --condition"),
        ((*ENDS, "--difference", "d.h5ad"), "--difference: got it without --condition"),
        ((*ENDS, "--condition", "bach"), "--condition: 'bach' is not one of the 2 conditions of the model"),
        ((*ENDS, "--condition", "batch", "--level", "batch_1"), "--level: ['batch_1'] came, two or more"),
        (
            (*ENDS, "--condition", "batch", "--genes-table", "g.csv"),
            "--condition: got it with --genes-table, --heatmap or",
        ),
        ((*ENDS, "--plot", "p.jpg"), "p.jpg: a name that ends in one of .png"),
        ((*ENDS, "--genes-table", "g.h5ad"), "g.h5ad: a name that ends in one of .csv, .tsv was expected"),
        (
            (*ENDS, "--condition", "batch", "--difference", "d.zarr"),
            "d.zarr: a name that ends in one of .h5ad, .csv, .tsv",
        ),
        ((*ENDS, "--out", "p.xlsx"), "p.xlsx: a name that ends in one of .h5ad, .zarr, .csv, .tsv"),
        ((*ENDS, "--condition", "batch", "--out", "p.zarr"), "--out: got 'p.zarr' with --condition"),
        (("--pseudotime", "pseudotime", "--key", "brnch", "--latent", "latent.png"), "--key: 'brnch' is not one of"),
    ],
    ids=lambda words: " ".join(words[-2:]) if isinstance(words, tuple) else "",
)
def test_refused(place, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    out = () if "--out" in words else ("--out", "p.h5ad")
    assert path(place, *words, *out) == 1
    error = capsys.readouterr().err
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, error
    assert message in lines[0]
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


def test_it_needs_an_output(place, capsys):
    assert path(place, *ENDS) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--out", "--plot", "--heatmap", "--latent", "--change", "--genes-table"])
def test_nothing_is_replaced_unasked(place, tmp_path, capsys, option):
    there = tmp_path / ("there.png" if option in ("--plot", "--heatmap", "--latent", "--change") else "there.csv")
    there.write_text("a thesis")
    out = () if option == "--out" else ("--out", tmp_path / "p.csv")
    assert path(place, *ENDS, "--n-points", 4, option, there, *out) == 1
    assert f"{there}: it is there already; choose another name, or pass --overwrite" in capsys.readouterr().err
    assert there.read_text() == "a thesis"
    assert [file.name for file in tmp_path.iterdir()] == [there.name]
    if option in ("--out", "--plot"):
        assert path(place, *ENDS, "--n-points", 4, option, there, *out, "--overwrite") == 0
        assert there.read_bytes() != b"a thesis"


def test_a_path_out_of_the_cells_is_a_warning_of_one_line(place, tmp_path, capsys):
    assert path(place, *ENDS, "--library-size", "9.2", "--n-points", 4, "--out", tmp_path / "p.csv") == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: library_size")]
    assert len(lines) == 1


def test_help_names_every_option(capsys):
    assert run("path", "--help") == 0
    told = capsys.readouterr().out
    for option in (
        *("--out", "--from", "--to", "--through", "--key", "--how", "--pseudotime", "--weights", "--lineages"),
        *(
            "--lineage",
            "--n-points",
            "--no-spread",
            "--batch",
            "--categorical",
            "--continuous",
            "--labels",
            "--quantity",
        ),
        *(
            "--library-size",
            "--genes",
            "--condition",
            "--level",
            "--difference",
            "--genes-table",
            "--plot",
            "--heatmap",
        ),
        *("--latent", "--change", "--n-samples", "--max-conditions", "--device", "--overwrite", "--seed"),
    ):
        assert f"{option} " in told, option
    for word in ("linear", "graph", "geodesic", "palantir", "cellrank", "dpt", "paga", "scvelo", "slingshot"):
        assert word in told


@pytest.mark.filterwarnings("ignore:pseudotime")
def test_observed_cells_with_more_genes_than_the_model(place, cells, tmp_path):
    """They are divided by their counts in the model's genes, whichever genes are drawn."""
    counts = cells.layers["counts"]
    extra = ad.AnnData(
        counts[:, :5], cells.obs[[]], pd.DataFrame(index=list("abcde")), layers={"counts": counts[:, :5]}
    )
    more = ad.concat([cells, extra], axis=1)
    more.obs = cells.obs
    more.write_h5ad(tmp_path / "more.h5ad")
    genes = ",".join(cells.var_names[:2])
    words = (*SAID, "--pseudotime", "pseudotime", "--genes", genes, "--out", tmp_path / "p.h5ad")
    assert run("path", place / "model", tmp_path / "more.h5ad", *words, "--plot", tmp_path / "p.png") == 0
    assert (tmp_path / "p.png").read_bytes().startswith(PNG)


@pytest.mark.filterwarnings("ignore:pseudotime")
def test_trends_refitted_to_the_counts(place, model, cells, tmp_path):
    refitted = tmp_path / "r.h5ad"
    words = (*SAID, "--pseudotime", "pseudotime", "--weights", "weight", "--n-points", "9")
    assert path(place, *words, "--out", tmp_path / "p.h5ad", "--refit", refitted, "--plot", tmp_path / "p.png") == 0
    made = sd.Trajectory.from_lineages(model, cells, pseudotime="pseudotime", weights="weight", n_points=9)
    expected = sd.refit(model, made, cells, pseudotime="pseudotime", weights="weight", **AS_SAID, library_size=None)
    np.testing.assert_allclose(ad.read_h5ad(refitted).X, expected.X, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:pseudotime")
def test_several_models(place, model, cells, tmp_path):
    words = (*SAID, "--pseudotime", "pseudotime", "--n-points", "9", "--out", tmp_path / "p.h5ad")
    assert path(place, *words, "--ensemble", place / "model", "--genes-table", tmp_path / "g.csv") == 0
    written = ad.read_h5ad(tmp_path / "p.h5ad")
    np.testing.assert_allclose(written.layers["std_models"], 0, atol=1e-6)  # twice the same
    made = sd.Trajectory.from_lineages(model, cells, pseudotime="pseudotime", n_points=9)
    np.testing.assert_allclose(written.X, decoded(model, made).X, rtol=1e-5)
    assert "std_models" in pd.read_csv(tmp_path / "g.csv").columns


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--ensemble", "model", "--condition", "batch"), "--ensemble: got several models with --condition"),
        ((*ENDS, "--refit", "r.h5ad"), "--refit: it came with --from"),
        (("--pseudotime", "pseudotime", "--how", "graph"), "--how: 'graph' came with --pseudotime"),
        (
            ("--pseudotime", "pseudotime", "--condition", "batch", "--batch", "batch_1"),
            "--condition: got 'batch' with a value",
        ),
    ],
)
def test_what_does_not_go_together(place, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    if words[0] == "--ensemble":
        words = (*words, "--pseudotime", "pseudotime")
    assert path(place, *words, "--out", "p.h5ad") == 1
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new"), [("--over", "--condition"), ("--also", "--ensemble"), ("--line", "--no-spread")]
)
def test_options_that_were_renamed(place, tmp_path, capsys, old, new):
    assert path(place, *ENDS, old, "batch", "--out", tmp_path / "p.h5ad") == 2
    assert capsys.readouterr().err == f"error: {old} is called {new} now; see scdecode path --help\n"
