"""Trends: what is on the axes, for results of every kind."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from plot_inputs import Tube, between, drawn, lineages, with_support, words
from small_models import make_adata

import scdecode as sd
from scdecode import plot
from scdecode.errors import CountsError, CountsWarning, InputError

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def expression(model: sd.SCVI) -> AnnData:
    return model.decode(between(model, 0, 1), batch="batch_1", library_size=1e4, n_samples=16)


@pytest.fixture(scope="module")
def two(model: sd.SCVI) -> AnnData:
    return model.decode(lineages(model), batch="batch_1", library_size=1e4, n_samples=16)


def with_models(expression: AnnData) -> AnnData:
    changed = expression.copy()
    changed.layers["std_models"] = 0.2 * changed.layers["std"]
    return changed


def test_lines_are_the_values_with_their_bands(expression: AnnData) -> None:
    genes = list(expression.var_names[:3])
    ax = plot.trends(expression, genes, panels=False)
    lines = drawn(ax)
    assert [line.get_label() for line in lines] == genes
    for line, gene in zip(lines, genes, strict=True):
        np.testing.assert_allclose(line.get_xdata(), expression.obs["time"])
        np.testing.assert_allclose(line.get_ydata(), expression[:, gene].X[:, 0], rtol=1e-6)
    assert len(ax.collections) == 3
    for band, gene in zip(ax.collections, genes, strict=True):
        y = band.get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose(
            [y.min(), y.max()], [expression[:, gene].layers["q05"].min(), expression[:, gene].layers["q95"].max()]
        )
    assert ax.get_xlabel() == "pseudotime"
    assert ax.get_ylabel() == "expected counts per 10,000"
    assert ax.get_ylim()[0] == 0
    assert ax.get_xlim() == (0, 1)
    assert words(ax) == ["mean", "5–95 % of the cells’ spread"]
    assert len({str(line.get_linestyle()) + str(line._unscaled_dash_pattern) for line in lines}) == 3
    named = sorted((text.xyann[1], text.get_text()) for text in ax.texts)
    ends = sorted((line.get_ydata()[-1], line.get_label()) for line in lines)
    assert [name for _, name in named] == [name for _, name in ends]  # names are in the order of the ends


def test_the_time_is_called_what_it_is(model: sd.SCVI, expression: AnnData) -> None:
    share = model.decode(between(model, 0, 1, time_name="share of the path"), n_samples=2)
    assert plot.trends(share, share.var_names[0]).get_xlabel() == "share of the path"
    bare = expression.copy()
    del bare.uns["scdecode"]["time_name"]
    assert plot.trends(bare, bare.var_names[0]).get_xlabel() == "position along the path"


def test_in_log(expression: AnnData) -> None:
    ax = plot.trends(expression, [expression.var_names[0]], log=True)
    np.testing.assert_allclose(drawn(ax)[0].get_ydata(), np.log1p(expression.X[:, 0]), rtol=1e-6)
    assert ax.get_ylabel().startswith("log1p of ")


@pytest.mark.parametrize("n", [2, 3, 4, 5, 12])
def test_each_gene_has_axes_of_its_own(expression: AnnData, n: int) -> None:
    genes = list(expression.var_names[:n])
    axes = plot.trends(expression, genes)
    assert isinstance(axes, list) and axes == axes.figure.axes
    assert [one.get_title(loc="left") for one in axes] == genes
    assert [len(drawn(one)) for one in axes] == [1] * n
    assert {one.get_xlabel() for one in axes} == {"pseudotime", ""} or n < 4
    assert axes[-1].get_xlabel() == "pseudotime"
    assert axes.figure.get_supylabel().replace("\n", " ") == "expected counts per 10,000"


def test_genes_on_the_same_axes(expression: AnnData) -> None:
    genes = list(expression.var_names[:5])
    together = plot.trends(expression, genes, panels=False)
    assert len(drawn(together)) == 5
    assert len(drawn(plot.trends(expression, genes, ax=together))) == 10
    assert [word for word in words(together) if word in genes] == genes  # beside Axes that came there may be no room


def test_unsupported_stretches_are_one_stripe_each(expression: AnnData) -> None:
    far = np.zeros(20, dtype=bool)
    far[[3, 4, 5, 19]] = True
    ax = plot.trends(with_support(expression, far), expression.var_names[0])
    stripes = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in ax.patches)
    np.testing.assert_allclose(stripes, [(2.5 / 19, 5.5 / 19), (18.5 / 19, 1)])
    assert "far from training cells" in words(ax)
    assert "far from training cells" not in words(plot.trends(with_support(expression, far & False), "gene_01"))


def test_lineages_are_lines_and_hollow_where_not_supported(two: AnnData) -> None:
    far = np.zeros(40, dtype=bool)
    far[25:30] = True  # of the second
    gene = two.var_names[0]
    ax = plot.trends(with_support(two, far), gene)
    left, right = drawn(ax)
    np.testing.assert_allclose(right.get_ydata(), two.X[20:, 0])
    assert left.get_color() != right.get_color()
    assert left._unscaled_dash_pattern != right._unscaled_dash_pattern
    assert words(ax) == ["left", "right", "5–95 % of the cells’ spread", "far from training cells"]
    core = [line for line in ax.lines if line.get_color() == "white"]
    assert len(core) == 1
    np.testing.assert_allclose(core[0].get_ydata()[1:-1], two.X[25:30, 0])
    assert not ax.patches
    several = plot.trends(two, list(two.var_names[:3]))
    assert [len(drawn(one)) for one in several.figure.axes] == [2, 2, 2]
    together = plot.trends(two, list(two.var_names[:3]), panels=False)
    assert [line.get_color() for line in drawn(together)] == [c for c in plot.COLOURS[:3] for _ in range(2)]
    assert isinstance(several, list) and not isinstance(together, list)


def test_conditions_are_lines_and_differences_may_be_negative(model: sd.SCVI) -> None:
    from scdecode.counterfactual import counterfactual

    made = counterfactual(model, between(model, 0, 1), "batch", n_samples=8)
    ax = plot.trends(made.expression, "gene_01")
    assert words(ax)[:3] == ["batch_1", "batch_2", "batch_3"]
    apart = plot.trends(made.difference, "gene_01")
    assert "difference from batch_1" in apart.get_ylabel()
    assert apart.get_ylim()[0] < 0
    with pytest.raises(InputError, match="log: the expression has negative"):
        plot.trends(made.difference, list(made.difference.var_names), log=True)


def test_error_bars_by_part(expression: AnnData) -> None:
    gene, made = "gene_01", with_models(expression)
    assert words(plot.trends(made, gene)) == ["mean", "± 1 sd: between models", "5–95 % of the cells’ spread"]
    assert words(plot.trends(made, gene, band="none")) == []
    value, cells, counts = (made[:, gene].layers[name][:, 0] for name in ("std_models", "std", "std_counts"))
    ax = plot.trends(made, gene, band="models")
    top = ax.collections[0].get_paths()[0].vertices[:, 1].max()
    np.testing.assert_allclose(top, (made[:, gene].X[:, 0] + value).max(), rtol=1e-6)
    ax = plot.trends(made, gene, band="parts")
    assert words(ax) == ["mean", "± 1 sd: between models", "and the cells’ spread", "and the count noise"]
    total = made[:, gene].X[:, 0] + np.sqrt(value**2 + cells**2 + counts**2)
    y = ax.collections[0].get_paths()[0].vertices[:, 1]
    np.testing.assert_allclose([y.min(), y.max()], [0, total.max()], rtol=1e-6)  # no negative counts
    assert len(plot.trends(made, list(made.var_names[:2]), band="parts").figure.axes) == 2
    with pytest.raises(InputError, match=r"band: 'models' came, .*'std_models'.*Ensemble"):
        plot.trends(expression, gene, band="models")
    with pytest.raises(InputError, match="did you mean 'models'"):
        plot.trends(expression, gene, band="model")
    bare = expression.copy()
    for name in list(bare.layers):
        del bare.layers[name]
    assert not plot.trends(bare, gene).collections
    with pytest.raises(InputError, match="no layers of standard deviations"):
        plot.trends(bare, gene, band="parts")


def test_observed_cells_are_in_the_unit_of_the_expression(expression: AnnData, adata: AnnData) -> None:
    genes = list(expression.var_names[:2])
    ax = plot.trends(expression, genes, cells=adata)  # by the column of the name of the path's time
    assert len(ax.figure.axes) == 2
    counts = adata.X.toarray().astype(float)
    expected = 1e4 * counts / counts.sum(axis=1, keepdims=True)
    for j, one in enumerate(ax.figure.axes):
        dots = next(c for c in one.collections if len(c.get_offsets()) == adata.n_obs)
        order = np.argsort(dots.get_offsets()[:, 0])
        by_time = np.argsort(adata.obs["pseudotime"].to_numpy())
        np.testing.assert_allclose(dots.get_offsets()[order, 0], adata.obs["pseudotime"].to_numpy()[by_time])
        np.testing.assert_allclose(dots.get_offsets()[order, 1], expected[by_time, j])
        (means,) = (line for line in one.lines if line.get_label() == "_means")
        bins = np.array_split(by_time, 12)
        np.testing.assert_allclose(means.get_ydata(), [expected[part, j].mean() for part in bins])
        np.testing.assert_allclose(means.get_xdata(), [adata.obs["pseudotime"].iloc[part].mean() for part in bins])
        assert one.get_ylim()[1] >= max(means.get_ydata())
    assert any(word.startswith("300 observed cells") for word in words(ax))
    assert "mean of 25 cells, ± standard error" in words(ax)
    logs = plot.trends(expression, genes[0], cells=adata, log=True)
    (means,) = (line for line in logs.lines if line.get_label() == "_means")
    np.testing.assert_allclose(means.get_ydata(), np.log1p([expected[part, 0].mean() for part in bins]))


def test_observed_cells_by_layer_size_time_and_of_fewer_genes(model: sd.SCVI, adata: AnnData) -> None:
    adata.layers["counts"], adata.X = adata.X, adata.X * 0
    some = model.decode(between(model, 0, 1), genes=["gene_03", "gene_01"], quantity="scale", n_samples=2)
    time = adata.obs["pseudotime"].to_numpy().copy()
    time[:7], time[7:9] = np.nan, 1.5  # no time, and after the path
    ax = plot.trends(some, "gene_01", cells=adata, time=time, layer="counts")
    dots = ax.collections[1].get_offsets()
    assert len(dots) == adata.n_obs - 9
    counts = adata.layers["counts"].toarray()[9:]
    np.testing.assert_allclose(np.sort(dots[:, 1]), np.sort(counts[:, 0] / counts.sum(axis=1)), rtol=1e-6)
    ax = plot.trends(some, "gene_01", cells=adata, time=time, layer="counts", library_size="library_size")
    own = counts[:, 0] / adata.obs["library_size"].to_numpy()[9:]
    np.testing.assert_allclose(np.sort(ax.collections[1].get_offsets()[:, 1]), np.sort(own), rtol=1e-6)


def test_observed_cells_of_lineages(two: AnnData, adata: AnnData) -> None:
    side = np.where(adata.obs["branch"] == "branch_1", "left", np.where(adata.obs["branch"] == "trunk", "", "right"))
    ax = plot.trends(two, "gene_01", cells=adata, lineage=side)
    sizes = {len(c.get_offsets()) for c in ax.collections[2:]}
    assert {int((side == name).sum()) for name in ("", "left", "right")} <= sizes
    colours = {line.get_markeredgecolor() for line in ax.lines if line.get_label() == "_means"}
    assert colours == {line.get_color() for line in drawn(ax)}
    ax = plot.trends(two, "gene_01", cells=adata)
    assert not [line for line in ax.lines if line.get_label() == "_means"]  # a mean over lineages is that of none


def test_cells_that_do_not_fit_are_refused(model: sd.SCVI, expression: AnnData, adata: AnnData) -> None:
    def draw(**how: object) -> None:
        plot.trends(expression, "gene_01", **({"cells": adata} | how))

    with pytest.raises(InputError, match="did you mean 'pseudotime'"):
        draw(time="pseudotimes")
    with pytest.raises(InputError, match="of type category came, numbers were expected"):
        draw(time="branch")
    with pytest.raises(InputError, match=r"time: shape \(3,\) came"):
        draw(time=[1, 2, 3])
    with pytest.raises(InputError, match=r"none of the 300 cells lies between 0 and 1"):
        draw(time=np.full(300, np.nan))
    timeless = adata.copy()
    del timeless.obs["pseudotime"]
    with pytest.raises(InputError, match=r"which is no column of cells\.obs"):
        draw(cells=timeless)
    with pytest.raises(InputError, match="layer: 'counts' was given, but there are no layers"):
        draw(cells=adata, layer="counts")
    with pytest.raises(InputError, match="cells: 'gene_01' is not one of"):
        draw(cells=adata[:, 1:])
    with pytest.raises(InputError, match="1 of the model's 40 genes are not among theirs"):
        draw(cells=adata[:, :-1])
    with pytest.raises(InputError, match="an AnnData with counts"):
        draw(cells=adata.X)
    with pytest.raises(InputError, match="one line without a name"):
        draw(cells=adata, lineage="branch")
    with pytest.raises(InputError, match="numbers above 0"):
        draw(cells=adata, library_size=np.zeros(300))
    logged, negative = adata.copy(), adata.copy()
    logged.X, negative.X = logged.X.log1p(), -negative.X
    with pytest.raises(CountsWarning, match=r"cells\.X: it has fractions"):
        draw(cells=logged)
    with pytest.raises(CountsError, match="negative"):
        draw(cells=negative)
    sizes = model.decode(between(model, 0, 1), library_size=np.linspace(100, 200, 20), n_samples=2)
    with pytest.raises(InputError, match="decoded at 20 library sizes"):
        plot.trends(sizes, "gene_01", cells=make_adata())


def test_lineages_of_cells_that_are_none_are_refused(two: AnnData, adata: AnnData) -> None:
    with pytest.raises(InputError, match=r"none of \['branch_1', .*one of the expression's lines \['left', 'right'\]"):
        plot.trends(two, "gene_01", cells=adata, lineage="branch")


def test_cells_of_a_model_with_a_size_factor(adata: AnnData) -> None:
    from small_models import make_model

    sized = make_model(adata, setup={"size_factor_key": "size_factor"}, epochs=1)
    made = sized.decode(between(sized, 0, 1), library_size=2.0, n_samples=2)
    with pytest.raises(InputError, match="the model has a size factor"):
        plot.trends(made, "gene_01", cells=adata)
    ax = plot.trends(made, "gene_01", cells=adata, library_size="size_factor")
    own = 2.0 * adata.X.toarray()[:, 0] / adata.obs["size_factor"].to_numpy()
    np.testing.assert_allclose(np.sort(ax.collections[1].get_offsets()[:, 1]), np.sort(own), rtol=1e-6)


def test_counts_from_a_file(model: sd.SCVI, tmp_path: Path) -> None:
    gene = model.schema.genes[0]
    for name in ("c.h5ad", "c.zarr"):
        counts = model.decode(between(model, 0, 1), quantity="counts", out=tmp_path / name)
        assert plot.trends(counts, [gene]).get_ylabel() == "drawn counts per 10,000"


def test_units_follow_the_quantity(model: sd.SCVI) -> None:
    gene, path = model.schema.genes[0], between(model, 0, 1)
    scale = model.decode(path, quantity="scale", n_samples=2)
    assert plot.trends(scale, [gene]).get_ylabel() == "fraction of RNA"
    sizes = model.decode(path, library_size=np.linspace(100, 200, 20), n_samples=2)
    ax = plot.trends(sizes, [gene])
    assert ax.get_ylabel() == "expected counts"
    assert ax.figure.get_supxlabel() == "Expected at the library size of each point."


def test_points_without_an_order_and_several_draws_are_dots(model: sd.SCVI) -> None:
    cells = model.decode(model.reference_latents()[:9], batch="batch_1")
    counts = model.decode(between(model, 0, 1), quantity="counts", n_samples=3)
    for made, n in ((cells, 9), (counts, 60)):
        line = drawn(plot.trends(made, list(made.var_names[:2]), panels=False))[0]
        assert line.get_linestyle() == "None"
        assert line.get_marker() == "."
        assert len(line.get_xdata()) == n
    assert words(plot.trends(cells, list(cells.var_names[:2]), panels=False)) == list(cells.var_names[:2])


def test_pictures_follow_time_and_not_the_order_of_rows(expression: AnnData) -> None:
    shuffled = expression[np.random.default_rng(0).permutation(expression.n_obs)].copy()
    gene = expression.var_names[0]
    for made, again in (
        (drawn(plot.trends(expression, gene))[0].get_ydata(), drawn(plot.trends(shuffled, gene))[0].get_ydata()),
        (plot.heatmap(expression).collections[0].get_array(), plot.heatmap(shuffled).collections[0].get_array()),
    ):
        np.testing.assert_allclose(made, again)
    assert plot.most_changing(expression) == plot.most_changing(shuffled)


def test_trends_refuse(expression: AnnData, adata: AnnData) -> None:
    with pytest.raises(InputError, match="did you mean"):
        plot.trends(expression, [expression.var_names[0] + "x"])
    with pytest.raises(InputError, match="genes: none came"):
        plot.trends(expression, [])
    with pytest.raises(InputError, match=r"a result of model\.decode"):
        plot.trends(adata, [adata.var_names[0]])
    with pytest.raises(InputError, match="panels: True came with ax"):
        plot.trends(expression, "gene_01", panels=True, ax=plot.trends(expression, "gene_01"))


def test_a_path_of_one_point_is_drawn(model: sd.SCVI) -> None:
    path = between(model, 0, 1)
    single = model.decode(Tube(path.points[:1], path.time[:1], path.spread[:1]), n_samples=4)
    assert len(drawn(plot.trends(single, "gene_01"))) == 1


def test_the_library_of_cells_is_that_of_all_genes_of_the_model(
    model: sd.SCVI, expression: AnnData, adata: AnnData
) -> None:
    counts = adata.X.toarray().astype(float)
    right = np.sort(1e4 * counts[:, 0] / counts.sum(axis=1))
    some = model.decode(between(model, 0, 1), batch="batch_1", genes=["gene_01", "gene_07"], n_samples=2)
    shuffled = adata[:, ::-1].copy()
    for made in (expression, expression[:, :20], some):
        for cells in (adata, shuffled):
            dots = next(
                c for c in plot.trends(made, "gene_01", cells=cells).collections if len(c.get_offsets()) == adata.n_obs
            )
            np.testing.assert_allclose(np.sort(dots.get_offsets()[:, 1]), right, rtol=1e-6)
    more = AnnData(
        np.c_[counts, counts], obs=adata.obs, var=pd.DataFrame(index=[*adata.var_names, *map(str, range(40))])
    )
    plot.trends(expression, "gene_01", cells=more)
    for made, cells in ((some, more), (expression[:, :20], adata[:, :30]), (some, adata[:, :2])):
        with pytest.raises(InputError, match="pass library_size=, the counts of each cell in the model's genes"):
            plot.trends(made, "gene_01", cells=cells)
    empty = adata.copy()
    empty.X = np.where(np.arange(300)[:, None] == 3, 0, counts)
    with pytest.raises(CountsError, match=r"have no counts in the model's genes .*; leave them out"):
        plot.trends(expression, "gene_01", cells=empty)


def test_a_rate_before_zero_inflation_says_so(adata: AnnData) -> None:
    from small_models import make_model

    zinb = make_model(adata, gene_likelihood="zinb", epochs=1)
    rate, mean = (zinb.decode(between(zinb, 0, 1), quantity=q, n_samples=2) for q in ("rate", "mean"))
    ax = plot.trends(rate, "gene_01", cells=adata)
    assert ax.get_ylabel() == "expected counts per 10,000"
    said = ax.figure.get_supxlabel().replace("\n", " ")
    assert "before zero inflation" in said and "more zeros than the line" in said
    assert "more zeros" not in plot.trends(mean, "gene_01", cells=adata).figure.get_supxlabel()
    assert all(handle.get_visible() for handle in ax.figure.legends[0].legend_handles)
    given = plot.trends(rate, "gene_01", ax=plot.trends(mean, "gene_01"))  # has no caption
    assert given.get_ylabel() == "expected counts per 10,000\n(before zero inflation)"


@pytest.mark.parametrize("n", [2, 3])
def test_labels_stay_below_the_key(model: sd.SCVI, adata: AnnData, n: int) -> None:
    found = sd.counterfactual(model, between(model, 0, 1), over="batch", n_samples=2).difference
    single = model.decode(between(model, 0, 1), quantity="mean", library_size=1e4, n_samples=2)
    genes = list(found.var_names[:n])
    for ax in (plot.trends(found, genes), plot.trends(single, genes, cells=adata)):
        figure = ax.figure
        figure.canvas.draw()
        label, key = figure._supylabel.get_window_extent(), figure.legends[0].get_window_extent()
        assert label.y1 <= key.y0 and label.y0 >= 0
        assert key.x1 <= figure.bbox.x1
