"""The table of genes: turning points, shapes and scores of known trends; the cascade."""

import numpy as np
import pandas as pd
import pytest
import torch
from dynamics_paths import BASE, DOWN, FLAT, HAND, TRANSIENT, UP, VALLEY, Line, hand_made, moving, winding
from scipy.interpolate import CubicSpline
from small_models import make_adata, make_model

from scdecode.dynamics import cascade, gene_dynamics
from scdecode.dynamics.hermite import extremes
from scdecode.dynamics.shapes import name_shapes, scores
from scdecode.ensemble import Ensemble
from scdecode.errors import ConfigError, InputError, PointsError, SupportWarning

pytestmark = pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")


@pytest.fixture(scope="module")
def hand():
    return hand_made()


def by_gene(table, model):
    """The rows of the first five genes, in the order of the model."""
    return table.set_index("gene").loc[list(model.schema.genes[:5])]


# -- between the points ------------------------------------------------------------------------------------------------


def test_extremes_of_cubics_are_exact():
    """Of x^3 - x on [-1, 1]: turns at -+1/sqrt(3), steepest at the ends; of x - x^3, cut at 0.7, steepest at 0."""
    t = np.array([-1.0, -0.35, 0.2, 0.7])
    up, slope = t**3 - t, 3 * t**2 - 1
    found = extremes(t, np.stack([up, -up], 1), np.stack([slope, -slope], 1))
    root = 1 / np.sqrt(3)
    np.testing.assert_allclose(found.peak_time, [-root, root], atol=1e-12)
    np.testing.assert_allclose(found.peak, 2 / 3 * root, atol=1e-12)
    np.testing.assert_allclose(found.trough_time, [root, -root], atol=1e-12)
    np.testing.assert_allclose(found.trough, -2 / 3 * root, atol=1e-12)
    np.testing.assert_allclose(found.fastest_time, [-1, -1])
    np.testing.assert_allclose(found.fastest_rate, [2, -2])
    inner = slice(1, 4)
    found = extremes(t[inner], -up[inner, None], -slope[inner, None])
    np.testing.assert_allclose(found.fastest_time, 0.0, atol=1e-12)
    np.testing.assert_allclose(found.fastest_rate, 1.0, atol=1e-12)


def test_extremes_at_the_points_alone():
    t = np.array([-1.0, -0.35, 0.2, 0.7])
    up, slope = (t**3 - t)[:, None], (3 * t**2 - 1)[:, None]
    found = extremes(t, up, slope, between=False)
    assert (found.peak_time[0], found.trough_time[0], found.fastest_time[0]) == (-0.35, 0.7, -1.0)
    assert found.peak[0] == up[1, 0]


def test_constant_and_straight_curves():
    t = np.linspace(0, 2, 5)
    value = np.stack([np.full(5, 3.0), 2 * t], 1)
    found = extremes(t, value, np.stack([np.zeros(5), np.full(5, 2.0)], 1))
    np.testing.assert_allclose(found.peak, [3, 4])
    np.testing.assert_allclose(found.peak_time, [0, 2])
    np.testing.assert_allclose(found.trough_time, [0, 0])
    np.testing.assert_allclose(found.fastest_rate, [0, 2], atol=1e-12)


# -- shapes and scores -------------------------------------------------------------------------------------------------

TRENDS = {  # start, end, peak, trough, std
    "up": [(0, 4, 4, 0, 0.1), (0, 3.5, 4, 0, 0), (1, 4, 4, 0.2, 0), (0, 1, 1.4, 0, 0.2)],
    "down": [(4, 0, 4, 0, 0.1), (4, 0, 4, -0.9, 0)],
    "transient": [(0, 0, 2, 0, 0.1), (0, 2.5, 4, 0, 0), (1, 0, 4, -0.1, 0.3), (0, 1, 4, -1.5, 0)],
    "valley": [(0, 0, 0, -2, 0.1), (3, 2, 3, 0, 0)],
    "flat": [(0, 0, 0, 0, 0), (0, 0.7, 0.7, 0, 0), (0, 2, 2, 0, 1.4), (0, 0, 0.74, 0, 0)],
}


@pytest.mark.parametrize("shape", TRENDS)
def test_shapes(shape):
    found = name_shapes(*np.array(TRENDS[shape], dtype=float).T)
    assert list(found) == [shape] * len(found)


def test_small_wiggles_are_none():
    t = np.linspace(0, 1, 101)
    rise = 4 / (1 + np.exp(-10 * (t - 0.5)))
    for wiggle in (0.0, 0.3):
        y = rise + wiggle * np.sin(40 * t)
        found = name_shapes(y[:1], y[-1:], y.max(keepdims=True), y.min(keepdims=True), np.zeros(1))
        assert found[0] == "up"


def test_scores():
    np.testing.assert_allclose(scores(np.array([3.0, -3.0, 0.5]), np.array([0.0, 0.0, 1.2]), 0.5), [6, 6, 0.5 / 1.3])


# -- the table ---------------------------------------------------------------------------------------------------------


def test_constructed_trends_of_a_bare_line(hand):
    table = gene_dynamics(hand, moving(), **HAND)
    rows = by_gene(table, hand)
    assert list(rows["shape"]) == ["up", "down", "transient", "valley", "flat"]
    assert (table["shape"][~table["gene"].isin(rows.index)] == "flat").all()
    e = np.exp(2.0)
    np.testing.assert_allclose(rows["start"], BASE, rtol=1e-3)
    np.testing.assert_allclose(rows["end"], BASE * np.array([e, 1 / e, 1, 1, 1]), rtol=1e-3)
    np.testing.assert_allclose(rows["log2_fold_change"], 2 / np.log(2) * np.array([1, -1, 0, 0, 0]), atol=1e-3)
    # the middle is between the two points nearest to it
    assert rows["peak_time"].iloc[TRANSIENT] == pytest.approx(0.5, abs=1e-4)
    assert rows["trough_time"].iloc[VALLEY] == pytest.approx(0.5, abs=1e-4)
    np.testing.assert_allclose(rows["peak"].iloc[[UP, TRANSIENT]], BASE * e, rtol=1e-3)
    np.testing.assert_allclose(rows["trough"].iloc[[DOWN, VALLEY]], BASE / e, rtol=1e-3)
    np.testing.assert_allclose(rows["fastest_rate"].iloc[[UP, DOWN]], [2 / np.log(2), -2 / np.log(2)], rtol=1e-3)
    np.testing.assert_allclose(np.abs(rows["fastest_rate"].iloc[[TRANSIENT, VALLEY]]), 2 * np.pi / np.log(2), rtol=5e-3)
    assert (table["std"] == 0).all()
    np.testing.assert_allclose(table["score"], table["log2_range"] / 0.5)
    assert list(table["rank"]) == list(range(1, 41))
    assert table["score"].is_monotonic_decreasing
    assert set(table["gene"]) == set(hand.schema.genes)


def test_the_time_of_the_fastest_change_is_between_the_points(hand):
    """z1 = 1 / (1 + exp(-20 (t - 0.43))), so that log2 of the first gene is steepest at 0.43, at rate 10 / log 2."""
    path = moving(24, first=lambda t: 1 / (1 + np.exp(-20 * (t - 0.43))))
    row = by_gene(gene_dynamics(hand, path, **HAND), hand).iloc[UP]
    assert row["fastest_time"] == pytest.approx(0.43, abs=2e-3)
    assert row["fastest_rate"] == pytest.approx(10 / np.log(2), rel=2e-2)


def test_the_error_bar_is_what_draws_do_not_share(hand):
    """A spread that stays the same shifts each draw as a whole; one that grows makes its change differ."""
    rows = by_gene(gene_dynamics(hand, moving(std=[0.5, 0.5, 1, 1]), **HAND), hand)
    np.testing.assert_allclose(rows["std"], 0, atol=2e-3)
    n = 30
    growing = np.zeros((n, 4, 4))
    growing[:, 0, 0] = np.linspace(0.0, 0.5, n) ** 2
    plain = moving()
    rows = by_gene(gene_dynamics(hand, Line(plain.points, plain.time, growing), n_samples=1024, **HAND), hand)
    # the first gene's log2 at the end scatters by 2 * 0.5 / log 2, and at the start by nothing
    np.testing.assert_allclose(rows["std"].iloc[[UP, DOWN]], 1 / np.log(2), rtol=0.02)
    np.testing.assert_allclose(rows["score"], rows["log2_range"] / np.sqrt(rows["std"] ** 2 + 0.25), rtol=1e-6)


def test_a_gene_near_zero_does_not_win(hand):
    """From 20 to 148 counts in 1e8 is 0.002 to 0.015 per ten thousand: the pseudocount of 0.1 leaves little."""
    rows = by_gene(gene_dynamics(hand, moving(), library_size=1e8), hand)
    assert rows["log2_fold_change"].iloc[UP] == pytest.approx(np.log2((0.1 + 0.01478) / 0.102), abs=1e-3)
    assert set(rows["shape"]) == {"flat"}


def test_genes_quantity_and_attributes(full_model):
    names = list(full_model.schema.genes[10:13])
    path = winding()
    table = gene_dynamics(full_model, path, genes=names, quantity="mean", batch="batch_1", n_samples=16)
    assert sorted(table["gene"]) == sorted(names)
    whole = gene_dynamics(full_model, path, quantity="mean", batch="batch_1", n_samples=16).set_index("gene")
    numbers = ["start", "end", "peak", "peak_time", "log2_range", "std", "score"]
    np.testing.assert_allclose(table.set_index("gene").loc[names, numbers], whole.loc[names, numbers], rtol=1e-4)
    assert table.attrs["unit"].startswith("expected counts, after zero inflation")
    assert (table.attrs["quantity"], table.attrs["time_name"]) == ("mean", "share of the path")
    assert table.attrs["conditions"]["batch"] == "batch_1"
    assert table["gene"].is_unique
    assert table.columns[0] == "gene"
    assert "lineage" not in table and "std_models" not in table
    decoded = full_model.decode(path, genes=names, quantity="mean", batch="batch_1", n_samples=16)
    np.testing.assert_allclose(table.set_index("gene").loc[names, "start"], decoded.X[0], rtol=1e-4)
    np.testing.assert_allclose(table.set_index("gene").loc[names, "end"], decoded.X[-1], rtol=1e-4)


def test_the_share_of_supported_points(model):
    z = model.get_latent_representation(make_adata())
    near = gene_dynamics(model, Line(z[np.argsort(z[:, 0])], np.arange(300.0)))
    assert near.attrs["supported"] > 0.98
    with pytest.warns(SupportWarning, match="extrapolation"):
        far = gene_dynamics(model, Line(50 + winding().points, winding().time))
    assert far.attrs["supported"] == 0.0


def test_whatever_the_default_type(model):
    path = winding()
    expected = gene_dynamics(model, path, n_samples=8)
    torch.set_default_dtype(torch.float64)
    try:
        found = gene_dynamics(model, path, n_samples=8)
    finally:
        torch.set_default_dtype(torch.float32)
    pd.testing.assert_frame_equal(found, expected)


def test_lineages_have_their_own_rows(model):
    paths = [winding(seed=seed) for seed in (0, 1)]
    both = Line(
        np.stack([p.points for p in paths]),
        np.stack([p.time for p in paths]),
        np.stack([p.spread for p in paths]),
        lineages=("left", "right"),
    )
    table = gene_dynamics(model, both, n_samples=16)
    assert list(table.columns[:2]) == ["gene", "lineage"]
    for name, path in zip(("left", "right"), paths, strict=True):
        own = table[table["lineage"] == name].drop(columns="lineage").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, gene_dynamics(model, path, n_samples=16), check_exact=False, rtol=1e-4)


def test_changing_conditions_keep_peaks_at_the_points(model):
    path = winding()
    table = gene_dynamics(model, path, library_size=np.linspace(1e3, 2e3, 12), n_samples=8)
    assert np.isin(table["peak_time"], path.time).all()
    assert np.isin(table["fastest_time"], path.time).all()
    decoded = model.decode(path, library_size=np.linspace(1e3, 2e3, 12), n_samples=8)
    np.testing.assert_allclose(table.set_index("gene").loc[list(model.schema.genes), "end"], decoded.X[-1], rtol=1e-4)


def test_several_models(model):
    other = make_model(make_adata(seed=0), epochs=2, n_hidden=8)
    path = winding()
    singles = [gene_dynamics(one, path, n_samples=16).set_index("gene") for one in (model, other)]
    both = gene_dynamics(Ensemble([model, other]), [path, path], n_samples=16).set_index("gene")
    genes = list(model.schema.genes)
    folds = np.stack([single.loc[genes, "log2_fold_change"] for single in singles])
    np.testing.assert_allclose(both.loc[genes, "log2_fold_change"], folds.mean(0), atol=1e-5)
    variance = np.mean([single.loc[genes, "std"] ** 2 for single in singles], axis=0)
    np.testing.assert_allclose(both.loc[genes, "std"], np.sqrt(variance), rtol=1e-4)
    assert (both["std_models"] > 0).all()
    error = both["std"] ** 2 + both["std_models"] ** 2 + 0.25
    np.testing.assert_allclose(both["score"], both["log2_range"] / np.sqrt(error), rtol=1e-5)
    same = gene_dynamics(Ensemble([model, model]), lambda _: path, n_samples=16).set_index("gene")
    assert (same["std_models"] < 1e-9).all()
    np.testing.assert_allclose(same["score"], singles[0]["score"], rtol=1e-6)


def test_what_cannot_be_told(model):
    path = winding()
    both = Ensemble([model, model])
    with pytest.raises(PointsError, match="a latent space of its own"):
        gene_dynamics(both, path)
    with pytest.raises(PointsError, match="model 1 has other times"):
        gene_dynamics(both, [path, winding(seed=1)])
    with pytest.raises(PointsError, match="model 1 has other times"):
        gene_dynamics(both, [path, winding(8)])
    with pytest.raises(ConfigError, match="min_change"):
        gene_dynamics(model, path, min_change=0)
    with pytest.raises(ConfigError, match="least_score"):
        gene_dynamics(model, path, least_score=-1)


# -- the cascade -------------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    rows = [  # gene, shape, fastest, peak, trough
        ("a", "up", 0.9, 1.0, 0.0),
        ("b", "flat", 0.5, 0.5, 0.0),
        ("c", "down", 0.3, 0.0, 1.0),
        ("d", "transient", 0.1, 0.4, 0.0),
        ("e", "valley", 0.1, 0.0, 0.6),
        ("f", "up", 0.2, 1.0, 0.0),
    ]
    frame = pd.DataFrame(rows, columns=["gene", "shape", "fastest_time", "peak_time", "trough_time"])
    return frame.assign(rank=[1, 2, 3, 4, 5, 6])


def test_the_cascade_by_shape_and_by_time(table):
    found = cascade(table)
    assert list(found["gene"]) == ["c", "d", "e", "f", "a"]
    assert list(found["time"]) == [0.3, 0.4, 0.6, 0.2, 0.9]
    assert list(found["order"]) == [0, 1, 2, 3, 4]
    assert "".join(cascade(table, by_shape=False)["gene"]) == "fcdea"
    assert "".join(cascade(table, n_top=3)["gene"]) == "cda"
    assert "".join(cascade(table, shapes=["up", "down"])["gene"]) == "fac"
    assert "".join(cascade(table, shapes="up")["gene"]) == "fa"
    assert len(cascade(table[table["gene"] == "b"])) == 0


def test_the_cascade_of_one_lineage(table):
    both = pd.concat([table.assign(lineage="left"), table.assign(lineage="right").iloc[[0]]], ignore_index=True)
    assert list(cascade(both, lineage="right")["gene"]) == ["a"]
    assert list(cascade(both[both["lineage"] == "right"])["gene"]) == ["a"]
    with pytest.raises(InputError, match=r"\['left', 'right'\]; name one"):
        cascade(both)
    with pytest.raises(InputError, match="did you mean 'left'"):
        cascade(both, lineage="lefd")
    with pytest.raises(InputError, match="one path alone"):
        cascade(table, lineage="left")


def test_the_cascade_of_a_real_table(hand):
    found = cascade(gene_dynamics(hand, moving(), **HAND))
    names = hand.schema.genes
    assert list(found["gene"]) == [names[i] for i in (DOWN, TRANSIENT, VALLEY, UP)]
    assert names[FLAT] not in set(found["gene"])


def test_what_is_no_table(table):
    for wrong in ("table", pd.DataFrame({"gene": []})):
        with pytest.raises(InputError, match="the table of gene_dynamics"):
            cascade(wrong)
    with pytest.raises(InputError, match="shapes of genes that change"):
        cascade(table, shapes=["flat"])
    with pytest.raises(ConfigError, match="n_top"):
        cascade(table, n_top=0)


def test_few_points_are_walked_in_more(hand):
    """What the spline does between points is what the table says, whatever the number of points on it."""
    few = moving(4, std=[0.2] * 4)
    spline = CubicSpline(few.time, few.points)
    time = np.linspace(0, 1, 31)
    many = Line(spline(time), time, np.broadcast_to(0.04 * np.eye(4), (31, 4, 4)))
    found, expected = (
        gene_dynamics(hand, path, **HAND, batch="batch_1").set_index("gene").sort_index() for path in (few, many)
    )
    for column in ("log2_range", "peak_time", "fastest_rate", "std", "start", "end"):
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-3, atol=1e-3, err_msg=column)
