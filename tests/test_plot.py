"""Pictures of cascades, latents, changes and trainings: what is on the axes."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from plot_inputs import Tube, between, drawn, lineages, with_support, words

import scdecode as sd
from scdecode import plot
from scdecode.errors import InputError, MissingExtraError, PointsError
from scdecode.plot.labels import apart, beside_points
from scdecode.plot.planes import embedded_plane, principal_plane

mpl.use("Agg")


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture(scope="module")
def expression(model: sd.SCVI) -> AnnData:
    return model.decode(between(model, 0, 1), batch="batch_1", library_size=1e4, n_samples=16)


def changes(n: int = 60, **columns: object) -> pd.DataFrame:
    """A table as ``dynamics.gene_dynamics`` gives it."""
    rng = np.random.default_rng(0)
    fold = rng.normal(0, 2, n)
    score = np.abs(fold) * 2 + rng.exponential(0.3, n)
    shape = np.where(score < 1.5, "flat", np.where(fold > 0, "up", "down")).astype(object)
    shape[:2] = "transient", "valley"
    order = np.argsort(-score)
    table = pd.DataFrame(
        {"gene": [f"g{i}" for i in range(n)], "log2_fold_change": fold, "score": score, "shape": shape} | columns
    )
    return table.iloc[order].reset_index(drop=True).assign(rank=np.arange(1, n + 1))


# the cascade


def test_heatmap_is_scaled_and_ordered_by_where_genes_peak(expression: AnnData) -> None:
    ax = plot.heatmap(expression)
    shown = np.asarray(ax.collections[0].get_array()).reshape(30, 20)
    np.testing.assert_allclose(shown.min(axis=1), 0, atol=1e-6)
    np.testing.assert_allclose(shown.max(axis=1), 1, atol=1e-6)
    assert (np.diff(shown.argmax(axis=1) * 10 // 20) >= 0).all()
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(names) == sorted(plot.most_changing(expression))
    values = log2_counts(expression[:, names[0]].X[:, 0])
    np.testing.assert_allclose(shown[0], (values - values.min()) / np.ptp(values), atol=1e-4)
    assert ax.get_xlabel() == "pseudotime"
    assert ax.get_legend() is None
    assert ax.get_ylim() == (29.5, -0.5)  # the first gene is on top


def test_heatmap_says_what_is_not_supported(expression: AnnData) -> None:
    far = np.zeros(20, dtype=bool)
    far[5:8] = True
    ax = plot.heatmap(with_support(expression, far))
    (veil,) = ax.patches
    assert veil.get_hatch()
    np.testing.assert_allclose([veil.get_x(), veil.get_width()], [4.5 / 19, 3 / 19])
    assert words(ax) == ["far from training cells"]


def test_heatmap_keeps_the_order_of_a_table(expression: AnnData) -> None:
    genes = list(expression.var_names[[7, 3, 11]])
    table = pd.DataFrame({"gene": genes, "time": [0.2, 0.4, 0.9]})
    ax = plot.heatmap(expression, table)
    assert [label.get_text() for label in ax.get_yticklabels()] == genes
    (marks,) = ax.lines
    np.testing.assert_allclose(marks.get_xydata(), [(0.2, 0), (0.4, 1), (0.9, 2)])
    assert words(ax) == ["time of change"]
    by_index = plot.heatmap(expression, pd.DataFrame(index=genes))
    assert [label.get_text() for label in by_index.get_yticklabels()] == genes
    listed = plot.heatmap(expression, genes, sort=False)
    assert [label.get_text() for label in listed.get_yticklabels()] == genes
    with pytest.raises(InputError, match="did you mean"):
        plot.heatmap(expression, pd.DataFrame({"gene": ["gene_1x"]}))


def test_heatmap_of_a_cascade(model: sd.SCVI, expression: AnnData) -> None:
    from scdecode.dynamics import cascade, gene_dynamics

    table = cascade(gene_dynamics(model, between(model, 0, 1), n_samples=8, least_score=0.01))
    ax = plot.heatmap(expression, table, order="given")
    assert [label.get_text() for label in ax.get_yticklabels()] == list(table["gene"])


def test_heatmap_of_lineages_has_one_scale_for_all(model: sd.SCVI) -> None:
    two = model.decode(lineages(model), n_samples=8)
    ax = plot.heatmap(two, list(two.var_names[:4]), sort=False)
    left, right = ax.figure.axes[:2]
    assert [left.get_title(), right.get_title()] == ["left", "right"]
    shown = np.concatenate([np.asarray(one.collections[0].get_array()).reshape(4, 20) for one in (left, right)], axis=1)
    values = log2_counts(two.X[:, :4]).T
    np.testing.assert_allclose(
        shown, (values - values.min(1, keepdims=True)) / np.ptp(values, axis=1)[:, None], atol=1e-4
    )
    with pytest.raises(InputError, match="one Axes came for 2 lineages"):
        plot.heatmap(two, ax=ax[0])


def test_heatmap_of_many_genes_names_some(expression: AnnData) -> None:
    names = pd.DataFrame(index=[f"g{i}" for i in range(160)])
    wide = AnnData(np.tile(expression.X, 4), obs=expression.obs, var=names, uns=dict(expression.uns))
    ax = plot.heatmap(wide, list(wide.var_names))
    assert len(ax.get_yticklabels()) == 54
    assert ax.get_ylabel() == "160 genes, one in 3 named"


# the latent view


def test_latent_shows_cells_by_category_and_the_path(model: sd.SCVI, adata: AnnData) -> None:
    z = model.get_latent_representation(adata)
    path = between(model, 0, 1)
    ax = plot.latent(model, points=path, cells=z, colour=adata.obs["branch"].to_numpy())
    assert words(ax) == ["branch_1", "branch_2", "trunk", "path", "1 sd of the cells around it"]
    assert len(ax.collections[0].get_offsets()) == adata.n_obs
    (line,) = drawn(ax)
    plane = principal_plane(z)
    np.testing.assert_allclose(line.get_xydata(), plane.carry(path.points, None)[0], atol=1e-5)
    assert ax.get_xlabel().startswith("latent principal axis 1 (")
    assert {text.get_text() for text in ax.texts} == {"start", "end", ""}  # the last: arrows
    many = plot.latent(model, cells=z, colour=[f"type {i % 25}" for i in range(len(z))])
    assert len(words(many)) == 25
    looks = {(handle.get_color(), handle.get_marker()) for handle in many.get_legend().legend_handles}
    assert len(looks) == 25
    numbers = plot.latent(model, path, cells=z, colour=adata.obs["pseudotime"])
    np.testing.assert_allclose(numbers.collections[1].get_array(), adata.obs["pseudotime"])
    assert numbers.figure.axes[1].get_ylabel() == "pseudotime"
    assert words(plot.latent(model)) == [f"{len(model.reference_latents())} cells"]


def test_latent_axes_are_the_principal_axes(model: sd.SCVI) -> None:
    z = model.reference_latents()
    values = np.linalg.eigvalsh(np.cov(z, rowvar=False))[::-1]
    xy = plot.latent(model).collections[0].get_offsets()
    np.testing.assert_allclose(xy.var(axis=0, ddof=1), values[:2], rtol=1e-4)


def test_the_band_is_one_standard_deviation(model: sd.SCVI) -> None:
    path = between(model, 0, 1)
    ax = plot.latent(model, path)
    area = next(c for c in ax.collections if "Contour" in type(c).__name__)
    place = principal_plane(model.reference_latents()).carry(path.points, None)[0]
    corners = np.concatenate([one.vertices for one in area.get_paths()])
    away = np.sqrt(((corners[:, None] - np.linspace(place[0], place[-1], 500)[None]) ** 2).sum(-1)).min(1)
    assert away.max() == pytest.approx(np.sqrt(0.1), rel=0.05)
    assert not [c for c in plot.latent(model, path, spread=False).collections if "Contour" in type(c).__name__]


def test_latent_marks_what_is_not_supported(model: sd.SCVI) -> None:
    points = np.linspace(0, 50, 6)[:, None] * np.ones(4)
    ax = plot.latent(model, points=points)
    assert "far from training cells" in words(ax)
    hollow = next(line for line in ax.lines if line.get_color() == "white" and line.get_linewidth() == 1.5)
    far = model.support(points) > 99
    xy = principal_plane(model.reference_latents()).carry(points, None)[0]
    np.testing.assert_allclose(hollow.get_xydata()[1:-1], xy[far], rtol=1e-5)


def test_latent_of_several_paths(model: sd.SCVI, adata: AnnData) -> None:
    ax = plot.latent(model, lineages(model))
    assert [line.get_label() for line in drawn(ax)] == ["left", "right"]
    assert {text.get_text() for text in ax.texts} == {"start", "left", "right", ""}
    z, side = model.get_latent_representation(adata), np.where(adata.obs["branch"] == "trunk", "right", "other")
    ax = plot.latent(model, lineages(model), cells=z, colour=side)
    left, right = drawn(ax)
    assert right.get_color() == plot.COLOURS[1]  # of its category
    assert left.get_color() not in plot.COLOURS[:2]
    paths = {"a": between(model, 0, 1, report={"length": 2.0, "ratio": 1.5}), "b": between(model, 0, 2)}
    assert {"a: length 2, straight 1.50 times it", "b"} <= set(words(plot.latent(model, paths)))
    assert [line.get_label() for line in drawn(plot.latent(model, np.stack([paths["a"].points] * 2)))] == [
        "path 1",
        "path 2",
    ]


def test_an_embedding_carries_paths_by_the_cells_around_them(model: sd.SCVI, adata: AnnData) -> None:
    z = model.get_latent_representation(adata).astype(float)
    matrix = np.random.default_rng(0).normal(size=(4, 2))
    linear = embedded_plane(z, z @ matrix)
    tube = between(model, 0, 1)
    mean, around = linear.carry(tube.points, tube.spread)
    i = 7  # by hand: normal weights
    off = z - tube.points[i]
    weight = np.exp(-0.5 * (off**2).sum(1) / 0.1)
    weight /= weight.sum()
    np.testing.assert_allclose(mean[i], weight @ z @ matrix, rtol=1e-4)
    np.testing.assert_allclose(around[i], np.cov(z @ matrix, rowvar=False, aweights=weight, bias=True), rtol=1e-3)
    cell, none = linear.carry(z[:3], None)
    assert none is None
    assert np.linalg.norm(cell - z[:3] @ matrix, axis=1).max() < np.linalg.norm(np.ptp(z @ matrix, axis=0)) / 4
    table = pd.DataFrame(z @ matrix, columns=["UMAP 1", "UMAP 2"])
    ax = plot.latent(model, tube, cells=z, embedding=table)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("UMAP 1", "UMAP 2")
    assert ax.figure.get_supxlabel() == "Points of a path are at the mean place of the cells around them."
    assert len(words(ax)) == len(ax.get_legend().legend_handles) == 3
    np.testing.assert_allclose(drawn(ax)[0].get_xydata(), mean)


def test_a_latent_space_of_one_dimension() -> None:
    plane = principal_plane(np.arange(5.0)[:, None])
    np.testing.assert_allclose(np.abs(plane.cells_n2[:, 0]), [2, 1, 0, 1, 2])
    assert plane.labels == ("latent principal axis 1 (100% of variance)", "")


def test_latent_refuses(model: sd.SCVI) -> None:
    with pytest.raises(InputError, match="one for each of the"):
        plot.latent(model, colour=["a"])
    with pytest.raises(InputError, match=r"embedding: shape \(3, 2\) came"):
        plot.latent(model, embedding=np.zeros((3, 2)))
    with pytest.raises(PointsError, match=r"\(\.\.\., 4\) was expected"):
        plot.latent(model, np.zeros((3, 5)))
    with pytest.raises(InputError, match="an empty mapping"):
        plot.latent(model, {})


# paths beside each other


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
def test_compared_paths_have_their_lengths(model: sd.SCVI) -> None:
    from scdecode.geometry.metric import path_length

    straight, z = between(model, 0, 1), model.reference_latents()
    middle = Tube(np.stack([z[0], z[5], z[1]]), np.array([0.0, 0.5, 1.0]), None)
    ax = plot.compare_paths(model, {"straight": straight, "detour": middle}, batch="batch_1")
    lengths = [path_length(model, path.points, batch="batch_1").length for path in (straight, middle)]
    assert words(ax)[-2:] == [f"straight: length {lengths[0]:.1f}", f"detour: length {lengths[1]:.1f}"]
    _, near, fast = ax
    assert list(ax) == ax.figure.axes
    np.testing.assert_allclose(near.lines[0].get_ydata(), model.support(straight.points))
    speed = fast.lines[0].get_ydata()
    assert speed.mean() == pytest.approx(lengths[0], rel=1e-5)  # in a time of one, with even steps
    assert near.get_ylabel() == "support\n(percentile of cells)"
    assert fast.get_xlabel() == "share of the length"
    with pytest.raises(InputError, match="a mapping of names to paths"):
        plot.compare_paths(model, [straight])
    with pytest.raises(InputError, match="has one point"):
        plot.compare_paths(model, {"a": z[:1]})


# changes


def test_change_is_fold_change_against_score_by_shape() -> None:
    table = changes()
    ax = plot.change(table, label=5)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("log2 fold change, end over start", "score of the change")
    sizes = {c.get_label(): len(c.get_offsets()) for c in ax.collections}
    assert sizes == table["shape"].value_counts().to_dict()
    assert words(ax) == [f"{s} ({sizes[s]})" for s in ("up", "down", "transient", "valley", "flat")]
    assert len({str(c.get_paths()[0].vertices.tolist()) for c in ax.collections}) == 5  # a marker each
    assert [text.get_text() for text in ax.texts] == list(table["gene"][:5])
    for text in ax.texts:
        row = table.set_index("gene").loc[text.get_text()]
        np.testing.assert_allclose(text.xy, (row["log2_fold_change"], row["score"]))
    assert ax.get_ylim()[0] == 0
    assert sum(ax.get_xlim()) == pytest.approx(0)


def test_change_names_lie_beside_each_other() -> None:
    ax = plot.change(changes(200), label=25)
    ax.figure.draw_without_rendering()
    boxes = [mpl.text.Text.get_window_extent(text) for text in ax.texts]  # without the lines to the points
    assert len(boxes) >= 20
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert ax.get_window_extent().padded(1).contains(box.x0, box.y0)


def test_change_of_lineages_named_genes_and_threshold() -> None:
    table = pd.concat([changes(lineage="left"), changes(lineage="right")], ignore_index=True).set_index("gene")
    ax = plot.change(table, label=["g3"], threshold=2.5)
    left, right = ax.figure.axes
    assert [left.get_title(), right.get_title()] == ["left", "right"]
    assert [[text.get_text() for text in one.texts] for one in (left, right)] == [["g3"], ["g3"]]
    assert "score 2.5" in words(right)
    assert left.lines[1].get_ydata()[0] == 2.5
    marked = changes()
    marked.attrs["least_score"] = 1.5
    assert "score 1.5" in words(plot.change(marked))
    with pytest.raises(InputError, match="one Axes came for 2 lineages"):
        plot.change(table, ax=left)


def test_change_of_a_path(model: sd.SCVI) -> None:
    from scdecode.dynamics import gene_dynamics

    table = gene_dynamics(model, between(model, 0, 1), n_samples=8)
    assert sum(len(c.get_offsets()) for c in plot.change(table).collections) == model.schema.n_genes


def test_change_refuses() -> None:
    with pytest.raises(InputError, match=r"no \['shape'\]"):
        plot.change(changes().drop(columns="shape"))
    with pytest.raises(InputError, match="gene_dynamics"):
        plot.change("table")
    with pytest.raises(InputError, match=r"label: 'g_3' .*did you mean 'g3'"):
        plot.change(changes(), label=["g_3"])
    with pytest.raises(InputError, match="did you mean 'up'"):
        plot.change(changes(shape="upp"))
    with pytest.raises(InputError, match="no gene with a number"):
        plot.change(changes(score=np.nan))


# names beside lines and points


def test_apart_moves_as_little_as_it_can() -> None:
    np.testing.assert_allclose(apart(np.array([0.1, 0.5, 0.9]), 0.2), [0.1, 0.5, 0.9])
    np.testing.assert_allclose(apart(np.array([0.5, 0.5]), 0.2), [0.4, 0.6])
    np.testing.assert_allclose(apart(np.array([0.52, 0.9, 0.48]), 0.2), [0.6, 0.9, 0.4])
    np.testing.assert_allclose(apart(np.zeros(3), 0.2), [0, 0.2, 0.4])
    np.testing.assert_allclose(apart(np.ones(3), 0.2), [0.6, 0.8, 1])
    np.testing.assert_allclose(np.sort(apart(np.full(11, 0.5), 0.5)), np.linspace(0, 1, 11))
    assert apart(np.zeros(0), 0.1).shape == (0,)


def test_names_without_room_are_left_out() -> None:
    import matplotlib.pyplot as plt

    ax = plt.subplots(figsize=(1, 1))[1]
    place = np.full(50, 0.5)
    others = np.column_stack([place, place])
    written = beside_points(ax, place, place, [f"name {i}" for i in range(50)], others=others)
    assert 0 < len(written) < 50
    assert written == [text.get_text() for text in ax.texts]


# the training, files


def test_history_has_both_losses_and_whole_epochs(model: sd.SCVI) -> None:
    ax = plot.history(model)
    assert [line.get_label() for line in ax.lines] == ["train cells", "validation cells"]
    np.testing.assert_allclose(ax.lines[0].get_ydata(), model.history_table["elbo_train"])
    ax.figure.draw_without_rendering()
    assert all(float(tick).is_integer() for tick in ax.get_xticks())


def test_pictures_refuse(model: sd.SCVI, adata: AnnData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"ends in \.png"):
        plot.save(plot.history(model), tmp_path / "p.docx")
    sd.SCVI.setup_anndata(adata)
    fresh = sd.SCVI(adata)
    with pytest.raises(InputError, match="no history"):
        plot.history(fresh)


@pytest.mark.parametrize("ending", plot.PICTURES)
def test_every_picture_is_saved(model: sd.SCVI, expression: AnnData, tmp_path: Path, ending: str) -> None:
    for number, ax in enumerate(
        (
            plot.trends(expression, list(expression.var_names[:6])),
            plot.heatmap(expression),
            plot.latent(model, lineages(model)),
            plot.change(changes()),
        )
    ):
        file = tmp_path / f"{number}{ending}"
        plot.save(ax, file)
        assert file.stat().st_size > 1_000


def test_without_matplotlib_the_install_line_is_printed(model: sd.SCVI, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'scdecode\[plot\]'"):
        plot.history(model)


# what changes


def log2_counts(values: np.ndarray) -> np.ndarray:
    return np.log2(values + 0.1)


def test_what_changes_most_depends_on_no_library(model: sd.SCVI) -> None:
    path = between(model, 0, 1)
    made = [
        model.decode(path, batch="batch_1", n_samples=8, **asked)
        for asked in ({}, {"library_size": 100.0}, {"library_size": 1e6}, {"quantity": "scale"})
    ]
    assert len({tuple(plot.most_changing(one, 8)) for one in made}) == 1
    shown = [np.asarray(plot.heatmap(one).collections[0].get_array()) for one in made]
    for other in shown[1:]:
        np.testing.assert_allclose(other, shown[0], atol=1e-3)
    ax = plot.heatmap(made[0])
    assert ax.figure.axes[-1].get_ylabel().startswith("log expression")
    assert "log2 (counts per 10,000 + 0.1)" in ax.figure.get_supxlabel()


def test_differences_are_on_a_scale_around_zero(model: sd.SCVI) -> None:
    apart = sd.counterfactual(model, between(model, 0, 1), over="batch", n_samples=4).difference
    ax, other = plot.heatmap(apart)
    assert (ax.get_title(), other.get_title()) == ("batch_2", "batch_3")
    names = [label.get_text() for label in ax.get_yticklabels()]
    assert sorted(names) == sorted(plot.most_changing(apart))
    largest = np.abs(apart.X).max(axis=0)
    assert set(names) == set(apart.var_names[np.argsort(-largest)[:30]])
    mesh = ax.collections[0]
    assert mesh.get_clim() == pytest.approx((-largest.max(), largest.max()))
    np.testing.assert_allclose(np.asarray(mesh.get_array()).reshape(30, 20), apart[:20, names].X.T)
    assert ax.figure.axes[-1].get_ylabel().endswith("difference from batch_1")
    negative = apart.copy()
    del negative.uns["scdecode"]["baseline"]
    with pytest.raises(InputError, match="negative values, which have no logarithm"):
        plot.heatmap(negative)


def test_long_paths_are_carried_by_few_points(model: sd.SCVI) -> None:
    z = model.reference_latents().astype(float)
    plane = embedded_plane(z, z[:, :2])
    time = np.linspace(0, 1, 4_991)[:, None]
    points = z[0] + time * (z[1] - z[0])
    spread = np.broadcast_to(0.1 * np.eye(4), (len(points), 4, 4))
    mean, around = plane.carry(points, spread)
    some = np.array([0, 777, 4_990])
    few, around_few = plane.carry(points[some], spread[some])
    np.testing.assert_allclose(mean[some], few, atol=1e-4)
    np.testing.assert_allclose(around[some], around_few, atol=1e-4)


def test_a_number_without_a_name_has_no_label(model: sd.SCVI) -> None:
    ax = plot.latent(model, colour=model.reference_latents()[:, 0])
    assert ax.figure.axes[1].get_ylabel() == ""


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own forward mode
def test_lengths_of_other_conditions_or_ends_are_not_compared_in_silence(model: sd.SCVI) -> None:
    from scdecode.geometry import geodesic

    z = model.reference_latents()
    one = sd.Trajectory.from_points(z[:2], batch="batch_1")
    other = sd.Trajectory.from_points(z[:2], batch=["batch_1", "batch_2"])
    with pytest.raises(InputError, match=r"'b' in batch=.*their lengths do not compare"):
        plot.compare_paths(model, {"a": one, "b": other})
    shorter = sd.Trajectory.from_points(z[0] + np.array([[0.2], [1.0]]) * (z[1] - z[0]), batch="batch_1")
    found = geodesic(model, z[0], z[1], batch="batch_1")
    ax = plot.compare_paths(model, {"a": one, "b": shorter, "c": found})
    said = words(ax)[-3:]
    assert [word.endswith(", ends differ") for word in said] == [False, True, False]
    assert said[2] == f"c: length {found.length:.1f}, its straight line {found.straight_length:.1f}"
    plot.compare_paths(model, {"a": one, "b": other}, batch="batch_2")
