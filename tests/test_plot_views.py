"""The latent view of an AnnData as scanpy names things, differences, volcanoes, and how pictures fit a page."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from plot_inputs import between, drawn, lineages, words

import scdecode as sd
from scdecode import plot
from scdecode.errors import InputError
from scdecode.plot.palettes import palette

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def expression(model: sd.SCVI) -> AnnData:
    return model.decode(between(model, 0, 1), batch="batch_1", library_size=1e4, n_samples=8)


@pytest.fixture(scope="module")
def found(model: sd.SCVI) -> Any:
    return sd.counterfactual(model, between(model, 0, 1), over="batch", levels=["batch_1", "batch_2"], n_samples=8)


@pytest.fixture
def named(adata: AnnData) -> AnnData:
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(adata.n_obs, 2))
    adata.obsm["X_pca"] = np.random.default_rng(1).normal(size=(adata.n_obs, 5))
    adata.obs["cell_type"] = adata.obs["branch"].astype(str).astype("category")
    adata.uns["cell_type_colors"] = np.array(["#111111", "red", "#00ff00"])
    return adata


# an AnnData and names


def test_latent_takes_an_anndata_and_names(model: sd.SCVI, named: AnnData) -> None:
    path = between(model, 0, 1)
    ax = plot.latent(model, path, cells=named, embedding="X_umap", colour="cell_type")
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UMAP 1", "UMAP 2")
    np.testing.assert_allclose(
        np.sort(ax.collections[0].get_offsets()[:, 0]), np.sort(named.obsm["X_umap"][:, 0]), rtol=1e-6
    )
    assert words(ax)[:3] == list(named.obs["cell_type"].cat.categories)
    handles = ax.get_legend().legend_handles[:3]
    assert [mpl.colors.to_hex(one.get_color()) for one in handles] == ["#111111", "#ff0000", "#00ff00"]
    other = plot.latent(model, path, cells=named, embedding="umap", color="cell_type")  # scanpy's own spellings
    assert words(other) == words(ax)
    z = model.get_latent_representation(named)
    by_array = plot.latent(model, path, cells=z, embedding=named.obsm["X_umap"], colour=named.obs["cell_type"].array)
    np.testing.assert_allclose(drawn(ax)[0].get_xydata(), drawn(by_array)[0].get_xydata())
    pca = plot.latent(model, cells=named, embedding="pca", colour="pseudotime")
    assert pca.get_xlabel() == "PC 1"
    assert pca.figure.axes[1].get_ylabel() == "pseudotime"


def test_latent_takes_genes(model: sd.SCVI, named: AnnData) -> None:
    ax = plot.latent(model, cells=named, colour="gene_03")
    counts = named.X.toarray()
    expected = np.log1p(1e4 * counts[:, 2] / counts.sum(axis=1))
    np.testing.assert_allclose(ax.collections[1].get_array(), np.sort(expected), rtol=1e-5)  # high ones on top
    assert ax.figure.axes[1].get_ylabel().startswith("gene_03")
    named.layers["logs"] = np.log1p(counts)
    ax = plot.latent(model, cells=named, colour="gene_03", layer="logs")
    np.testing.assert_allclose(ax.collections[1].get_array(), np.sort(np.log1p(counts[:, 2])), rtol=1e-5)


def test_names_are_those_of_the_anndata_of_the_model(model: sd.SCVI, adata: AnnData) -> None:
    assert model.adata is not None
    assert words(plot.latent(model, colour="branch"))[:3] == list(model.adata.obs["branch"].cat.categories)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"colour": "cell_typ"}, "colour: 'cell_typ' is not one of .*did you mean 'cell_type'"),
        ({"embedding": "X_umpa"}, "embedding: 'X_umpa' is not one of .*did you mean 'X_umap'"),
        ({"colour": "cell_type", "color": "branch"}, "color: got color and colour"),
        ({"colour": "cell_type", "layer": "logs"}, "layer: 'logs'"),
        ({"colour": "WHOLE"}, "colour: got AnnData"),
        ({"embedding": "WHOLE"}, "embedding: got AnnData"),
        ({"ends": "HSC"}, "ends: got 'HSC'.*, expected a tuple"),
        ({"colour": np.zeros((300, 2))}, r"colour: got .*shape \(300, 2\)"),
    ],
)
def test_latent_refuses_what_is_no_value(model: sd.SCVI, named: AnnData, how: dict[str, Any], message: str) -> None:
    how = {name: named if isinstance(value, str) and value == "WHOLE" else value for name, value in how.items()}
    with pytest.raises(InputError, match=message):
        plot.latent(model, between(model, 0, 1), cells=named, **how)


def test_names_need_an_anndata(model: sd.SCVI, tmp_path: Any) -> None:
    with pytest.raises(InputError, match="colour: got a name beside latents"):
        plot.latent(model, cells=model.reference_latents(), colour="branch")
    model.save(tmp_path / "m")
    loaded = sd.load(tmp_path / "m")
    with pytest.raises(InputError, match="embedding: got the name 'X_umap', but the model has no AnnData"):
        plot.latent(loaded, embedding="X_umap")


def test_compare_paths_takes_the_same_names(model: sd.SCVI, named: AnnData) -> None:
    paths = {"one": between(model, 0, 1), "two": between(model, 0, 2)}
    axes = plot.compare_paths(model, paths, cells=named, color="cell_type", embedding="umap", batch="batch_1")
    assert axes[0].get_xlabel() == "UMAP 1"
    with pytest.raises(InputError, match="color: got color and colour"):
        plot.compare_paths(model, paths, cells=named, color="cell_type", colour="branch")


# keys, colours and names


@pytest.mark.parametrize("n", [1, 7, 8, 9, 20, 21, 28, 60])
def test_no_colour_is_there_twice(n: int) -> None:
    assert len(set(palette(n))) == len(set(palette(n, lines=True))) == n


def test_many_lineages_and_types_have_a_colour_each(model: sd.SCVI) -> None:
    z = model.reference_latents()
    paths = sd.Trajectory.from_points(np.stack([np.linspace(z[0], z[i], 5) for i in range(1, 13)]), spread=0.1)
    ax = plot.trends(model.decode(paths, n_samples=2, batch="batch_1"), "gene_01")
    assert len({line.get_color() for line in drawn(ax)}) == 12
    ax = plot.latent(model, cells=z, colour=[f"type {i % 20}" for i in range(len(z))])
    assert len({handle.get_color() for handle in ax.get_legend().legend_handles}) == 20


def test_a_path_of_the_name_of_its_cells_has_one_entry(model: sd.SCVI, adata: AnnData) -> None:
    side = np.where(adata.obs["branch"] == "trunk", "right", "other")
    ax = plot.latent(model, lineages(model), cells=adata, colour=side)
    assert words(ax) == ["other", "right", "left", "1 sd of the cells around it"]


def test_ends_have_the_names_of_their_cells(model: sd.SCVI) -> None:
    z = model.reference_latents()
    first, last = z[np.argsort(z[:, 0])[[2, -3]]]
    path = sd.Trajectory.from_points(np.linspace(first, last, 5))
    half = np.where(z[:, 0] < np.median(z[:, 0]), "low", "high")
    texts = {text.get_text() for text in plot.latent(model, path, cells=z, colour=half).texts}
    assert {"low", "high"} <= texts and not {"start", "end"} & texts
    texts = {text.get_text() for text in plot.latent(model, path, cells=z, colour=half, ends=("A", "B")).texts}
    assert {"A", "B"} <= texts
    assert {"start", "end"} <= {text.get_text() for text in plot.latent(model, path, cells=z).texts}


# the order of genes


def waves(expression: AnnData, n: int = 30) -> tuple[AnnData, np.ndarray]:
    """Genes that peak one after the other, shuffled."""
    peak = np.linspace(-0.3, 1.3, n)[np.random.default_rng(0).permutation(n)]
    time = expression.obs["time"].to_numpy()
    made = expression[:, :n].copy()
    made.X = (1 + 50 * np.exp(-0.5 * ((time[:, None] - peak) / 0.15) ** 2)).astype(np.float32)
    return made, peak


def test_peaks_are_a_diagonal(expression: AnnData) -> None:
    made, peak = waves(expression)
    ax = plot.heatmap(made, list(made.var_names))
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert names == [made.var_names[i] for i in np.argsort(peak)]
    assert names == [label.get_text() for label in plot.heatmap(made, names[::-1], order="peak").get_yticklabels()]
    given = plot.heatmap(made, names[::-1], order="given")
    assert [label.get_text() for label in given.get_yticklabels()] == names[::-1]


def test_shapes_are_groups_and_marks_are_where_colours_change(expression: AnnData) -> None:
    made, peak = waves(expression, 12)
    shape = np.where(peak < 0.1, "down", np.where(peak > 0.9, "up", "transient"))
    table = pd.DataFrame({"gene": made.var_names, "shape": shape, "time": 0.5})  # whatever the table's time is
    ax = plot.heatmap(made, table, order="shape")
    names = [label.get_text() for label in ax.get_yticklabels()]
    of = dict(zip(made.var_names, shape, strict=True))
    order = ["down", "transient", "up"]
    assert [order.index(of[name]) for name in names] == sorted(order.index(of[name]) for name in names)
    marks = next(line for line in ax.lines if line.get_label() == "_time of change").get_xdata()
    time, log = expression.obs["time"].to_numpy(), np.log2(np.asarray(made[:, names].X) + 0.1)
    scaled = (log - log.min(axis=0)) / np.ptp(log, axis=0)
    for i, name in enumerate(names):
        at = np.interp(marks[i], time, scaled[:, i])
        assert at == pytest.approx(1.0 if of[name] == "transient" else 0.5, abs=0.02)
    assert words(ax) == ["half-way through the change, or at its peak or trough"]


def test_orders_are_refused(expression: AnnData) -> None:
    with pytest.raises(InputError, match=r"order: 'peaks' is not one of .*did you mean 'peak'"):
        plot.heatmap(expression, order="peaks")
    with pytest.raises(InputError, match="sort: got sort and order"):
        plot.heatmap(expression, order="peak", sort=True)


# differences and volcanoes


def test_differences_of_a_counterfactual(found: Any) -> None:
    genes = ["gene_03", "gene_01"]
    axes = plot.differences(found, genes)
    assert [one.get_title(loc="left") for one in axes] == genes
    for ax, gene in zip(axes, genes, strict=True):
        rows = found.difference[:, gene]
        (line,) = [one for one in ax.lines if len(one.get_xdata()) == 20]
        np.testing.assert_allclose(line.get_ydata(), rows.layers["log2_fold_change"][:, 0], rtol=1e-6)
        band = ax.collections[0].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose(band.max(), rows.layers["log2_fold_change_q95"].max(), rtol=1e-6)
        np.testing.assert_allclose(band.min(), rows.layers["log2_fold_change_q05"].min(), rtol=1e-6)
    assert axes.figure.get_supylabel().replace("\n", " ") == "log2 fold change, batch_2 over batch_1"
    assert "smaller than counted ones" in axes.figure.get_supxlabel().replace("\n", " ")
    assert len(plot.differences(found)) == 6


def test_differences_of_a_comparison(model: sd.SCVI) -> None:
    both = lineages(model)
    ends = [sd.Trajectory.from_points(points, spread=0.3) for points in both.points]
    compared = sd.dynamics.compare(
        model, *ends, names=("left", "right"), n_samples=8, min_change=0.01, least_score=0.01
    )
    gene = compared.table["gene"][0]
    ax = plot.differences(compared, gene)
    line = next(one for one in ax.lines if one.get_label() == gene)
    np.testing.assert_allclose(line.get_ydata(), compared.trends(gene)["difference"])
    assert ax.get_ylabel().replace("\n", " ") == "log2 fold change, right over left"
    when = compared.table["divergence_time"][0]
    parting = [one for one in ax.lines if one.get_label() == "_parting"]
    assert [one.get_xdata()[0] for one in parting] == ([when] if np.isfinite(when) else [])


def test_differences_and_volcano_refuse(model: sd.SCVI, found: Any, expression: AnnData) -> None:
    with pytest.raises(InputError, match=r"result: got AnnData of shape .*, expected a Comparison"):
        plot.differences(expression)
    with pytest.raises(InputError, match="did you mean 'gene_07'"):
        plot.differences(found, "gene_07x")
    with pytest.raises(InputError, match="ax: got one Axes for 2 genes"):
        plot.differences(found, ["gene_01", "gene_02"], ax=plot.differences(found, "gene_01"))
    with pytest.raises(InputError, match="result: got AnnData"):
        plot.volcano(expression)
    with pytest.raises(InputError, match="did you mean 'gene_07'"):
        plot.volcano(found, label=["gene_07x"])
    with pytest.raises(InputError, match="condition: 'batch_9' is not"):
        plot.volcano(found, condition="batch_9")
    bare = sd.counterfactual(model, between(model, 0, 1).points, over="batch")
    with pytest.raises(InputError, match="it has no q-values"):
        plot.volcano(bare)


def test_volcano_is_fold_change_against_q(found: Any) -> None:
    ax = plot.volcano(found, label=3, min_change=0.0)
    table = found.table
    places = np.concatenate([np.asarray(one.get_offsets()) for one in ax.collections])
    assert len(places) == len(table)
    np.testing.assert_allclose(np.sort(places[:, 0]), np.sort(table["log2_fold_change"]), rtol=1e-5)
    expected = np.minimum(-np.log10(np.maximum(table["q_value"], 1e-300)), 10)
    np.testing.assert_allclose(np.sort(places[:, 1]), np.sort(expected), rtol=1e-5, atol=1e-9)
    assert words(ax)[0].startswith("more (") and words(ax)[-1] == "q of 0.05, change of 0"
    assert ax.get_xlabel() == "log2 fold change, batch_2 over batch_1"
    assert plot.volcano(table.head(10), label=0).collections


# on a page


def _within(figure: Any) -> None:
    """No text of a figure is cut by its edge, and the names above panels lie beside one another."""
    figure.canvas.draw()
    edge = figure.bbox
    for ax in figure.axes:
        box = ax.get_tightbbox()
        assert box.x0 >= -2 and box.x1 <= edge.x1 + 2 and box.y0 >= -2 and box.y1 <= edge.y1 + 2
    # labels of ticks beyond the limits are there, but not drawn; those that are, are in the boxes above
    ticks = {label for ax in figure.axes for label in [*ax.get_xticklabels(), *ax.get_yticklabels()]}
    for text in set(figure.findobj(mpl.text.Text)) - ticks:
        if text.get_visible() and text.get_text().strip() and text.get_figure() is not None:
            box = text.get_window_extent()
            assert box.x0 >= edge.x0 - 1 and box.x1 <= edge.x1 + 1, text.get_text()
            assert box.y0 >= edge.y0 - 1 and box.y1 <= edge.y1 + 1, text.get_text()
    titles = [ax.title if ax.get_title() else ax._left_title for ax in figure.axes]
    boxes = [title.get_window_extent() for title in titles if title.get_text()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])


@pytest.mark.parametrize("kind", ["one", "long names", "differences", "volcano", "heatmap", "zero"])
def test_nothing_is_cut_and_no_text_is_on_another(model: sd.SCVI, expression: AnnData, found: Any, kind: str) -> None:
    long = expression.copy()
    long.var_names = [f"ENSG00000{name}_a_very_long_name_of_a_transcript" for name in expression.var_names]
    zero = expression.copy()
    zero.X = np.zeros(zero.shape, dtype=np.float32)
    zero.layers.clear()
    drawings = {
        "one": lambda: plot.trends(expression, "gene_01"),
        "long names": lambda: plot.trends(long, list(long.var_names[:3])),
        "differences": lambda: plot.differences(found, "gene_01"),
        "volcano": lambda: plot.volcano(found),
        "heatmap": lambda: plot.heatmap(long, list(long.var_names[:3])),
        "zero": lambda: plot.trends(zero, ["gene_01", "gene_02"]),
    }
    drawn_on = drawings[kind]()
    _within(drawn_on.figure)
    if kind == "zero":
        assert [ax.get_ylim() for ax in drawn_on] == [(0, 1)] * 2


def test_dark_grounds(model: sd.SCVI, expression: AnnData, adata: AnnData) -> None:
    import matplotlib.pyplot as plt

    with plt.style.context("dark_background"):
        ax = plot.latent(model, between(model, 0, 1), cells=adata, colour="branch")
        trend = plot.trends(expression, "gene_01", cells=adata)
    assert drawn(ax)[0].get_color() == "#ffffff"  # black cannot be seen
    halo = next(line for line in ax.lines if line.get_label() == "_halo")
    assert mpl.colors.to_hex(halo.get_color()) == "#000000"
    (means,) = (line for line in trend.lines if line.get_label() == "_means")
    assert mpl.colors.to_hex(means.get_markerfacecolor()) == "#000000"


def test_several_panels_are_a_list_that_is_saved(expression: AnnData, tmp_path: Any) -> None:
    axes = plot.trends(expression, ["gene_01", "gene_02"])
    assert repr(axes) == "Panels: 2 Axes of one figure ('gene_01', 'gene_02')"
    for number, drawn_on in enumerate((axes, list(plot.trends(expression, ["gene_01", "gene_02"])))):
        plot.save(drawn_on, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").stat().st_size > 1000
    plot.save(plot.trends(expression, "gene_01").figure, tmp_path / "figure.png")
    for wrong in ("picture", None, [], expression):
        with pytest.raises(InputError, match=r"ax: got .*, expected Axes, a list of Axes or a figure"):
            plot.save(wrong, tmp_path / "x.png")
