"""Pictures: what is on the axes, for results of every kind."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from anndata import AnnData
from conftest import make_adata

import scdecode as sd
from scdecode import plot
from scdecode.errors import InputError, MissingExtraError

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures() -> object:
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def path(model: sd.SCVI) -> sd.Trajectory:
    adata = make_adata()
    ends = [model.posterior(adata[adata.obs["branch"] == name]) for name in ("trunk", "branch_1")]
    return sd.Trajectory.between(model, *ends, n_points=20)


@pytest.fixture(scope="module")
def expression(model: sd.SCVI, path: sd.Trajectory) -> AnnData:
    return model.decode(path, batch="batch_1", library_size=1e4, n_samples=16)


def test_trends_draw_the_values_with_their_bands(expression: AnnData) -> None:
    genes = list(expression.var_names[:3])
    ax = plot.trends(expression, genes)
    assert [line.get_label() for line in ax.lines] == genes
    for line, gene in zip(ax.lines, genes, strict=True):
        np.testing.assert_allclose(line.get_xdata(), expression.obs["time"])
        np.testing.assert_allclose(line.get_ydata(), expression[:, gene].X[:, 0], rtol=1e-6)
    assert len(ax.collections) == 3
    assert ax.get_xlabel() == "position along the path (time)"
    assert ax.get_ylabel() == "expected counts, library of 10,000 counts"


def test_trends_in_log(expression: AnnData) -> None:
    ax = plot.trends(expression, [expression.var_names[0]], log=True)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), np.log1p(expression.X[:, 0]), rtol=1e-6)
    assert ax.get_ylabel().startswith("log1p of ")


def test_unsupported_stretches_are_marked(model: sd.SCVI) -> None:
    points = np.linspace(0, 50, 6)[:, None] * np.ones(4)
    with pytest.warns(sd.errors.SupportWarning):
        far = model.decode(points, batch="batch_1")
    ax = plot.trends(far, [far.var_names[0]])
    stripes = [patch for patch in ax.patches if patch.get_width() > 0]
    assert len(stripes) == int((~far.obs["supported"]).sum())
    _, labels = ax.get_legend_handles_labels()
    assert "far from training cells" in labels
    axes = plot.latent(model, points=points)
    assert "far from training cells" in axes.get_legend_handles_labels()[1]


def test_trends_of_counts_from_a_file(model: sd.SCVI, path: sd.Trajectory, tmp_path: Path) -> None:
    gene = model.schema.genes[0]
    for name in ("c.h5ad", "c.zarr"):
        drawn = model.decode(path, quantity="counts", out=tmp_path / name)
        assert plot.trends(drawn, [gene]).get_ylabel() == "drawn counts, library of 10,000 counts"


def test_units_follow_the_quantity(model: sd.SCVI, path: sd.Trajectory) -> None:
    gene = model.schema.genes[0]
    scale = model.decode(path, quantity="scale", n_samples=2)
    assert plot.trends(scale, [gene]).get_ylabel() == "fraction of RNA"
    sizes = model.decode(path, library_size=np.linspace(100, 200, 20), n_samples=2)
    assert plot.trends(sizes, [gene]).get_ylabel() == "expected counts, library of each point"


def test_heatmap_is_scaled_and_ordered_by_where_genes_peak(expression: AnnData) -> None:
    ax = plot.heatmap(expression)
    shown = np.asarray(ax.collections[0].get_array()).reshape(30, 20)
    np.testing.assert_allclose(shown.min(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(shown.max(axis=1), 1, atol=1e-6)
    assert (np.diff(shown.argmax(axis=1) * 10 // 20) >= 0).all()
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(names) == sorted(plot.most_changing(expression))
    values = np.log1p(expression[:, names[0]].X[:, 0])
    np.testing.assert_allclose(shown[0], (values - values.min()) / np.ptp(values), atol=1e-4)


def test_pictures_follow_time_and_not_the_order_of_rows(expression: AnnData) -> None:
    shuffled = expression[np.random.default_rng(0).permutation(expression.n_obs)].copy()
    gene = expression.var_names[0]
    for made, again in (
        (plot.trends(expression, gene).lines[0].get_ydata(), plot.trends(shuffled, gene).lines[0].get_ydata()),
        (plot.heatmap(expression).collections[0].get_array(), plot.heatmap(shuffled).collections[0].get_array()),
    ):
        np.testing.assert_allclose(made, again)


def test_points_without_an_order_are_dots(model: sd.SCVI) -> None:
    cells = model.decode(model.reference_latents()[:9], batch="batch_1")
    line = plot.trends(cells, cells.var_names[0]).lines[0]
    assert line.get_linestyle() == "None"
    assert line.get_marker() == "."


def test_latent_shows_cells_by_category_and_the_path(model: sd.SCVI, adata: AnnData, path: sd.Trajectory) -> None:
    z = model.get_latent_representation(adata)
    ax = plot.latent(model, points=path, cells=z, colour=adata.obs["branch"].to_numpy())
    assert {"trunk", "branch_1", "branch_2", "path"} <= set(ax.get_legend_handles_labels()[1])
    assert sum(len(c.get_offsets()) for c in ax.collections[:3]) == adata.n_obs
    many = plot.latent(model, cells=z, colour=[f"type {i % 25}" for i in range(len(z))])
    assert len(many.get_legend_handles_labels()[1]) == 25
    numbers = plot.latent(model, path, cells=z, colour=adata.obs["pseudotime"])
    np.testing.assert_allclose(numbers.collections[0].get_array(), adata.obs["pseudotime"])
    assert numbers.figure.axes[1].get_ylabel() == "pseudotime"
    assert plot.latent(model).collections[0].get_offsets().shape[0] == len(model.reference_latents())


def test_history_has_both_losses(model: sd.SCVI) -> None:
    ax = plot.history(model)
    assert [line.get_label() for line in ax.lines] == ["train cells", "validation cells"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), model.history_table["elbo_train"])


def test_pictures_refuse(model: sd.SCVI, adata: AnnData, expression: AnnData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean"):
        plot.trends(expression, [expression.var_names[0] + "x"])
    with pytest.raises(InputError, match=r"a result of model\.decode"):
        plot.trends(adata, [adata.var_names[0]])
    with pytest.raises(InputError, match="one for each of the"):
        plot.latent(model, colour=["a"])
    with pytest.raises(InputError, match=r"ends in \.png"):
        plot.save(plot.history(model), tmp_path / "p.docx")
    sd.SCVI.setup_anndata(adata)
    fresh = sd.SCVI(adata)
    with pytest.raises(InputError, match="no history"):
        plot.history(fresh)


def test_without_matplotlib_the_install_line_is_printed(model: sd.SCVI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'scdecode\[plot\]'"):
        plot.history(model)
