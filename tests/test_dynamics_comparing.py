"""Two paths beside one another, and trends as long tables."""

import numpy as np
import pandas as pd
import pytest
from dynamics_paths import DOWN, HAND, TRANSIENT, UP, Line, hand_made, moving, winding

from scdecode.dynamics import compare, trend_table
from scdecode.errors import ConfigError, InputError, PointsError

pytestmark = pytest.mark.filterwarnings("ignore::scdecode.errors.SupportWarning")


@pytest.fixture(scope="module")
def hand():
    return hand_made(batch_effect=1.5)


def parting(at=0.4, **options):
    """As ``moving``, but from ``at`` on z1 turns back: the first gene's log2 falls behind by 2 * 2 (t - at) / log 2."""
    return moving(first=lambda t: np.where(t < at, t, 2 * at - t), **options)


def test_where_two_paths_part(hand):
    std = [0.1, 0.1, 0.1, 0.1]
    found = compare(hand, moving(101, std=std), parting(n=101, std=std), names=("on", "back"), **HAND, batch="batch_1")
    table = found.table.set_index("gene")
    names = hand.schema.genes
    # half a log2, the least change of interest, is reached after 0.5 log(2) / 4
    expected = 0.4 + 0.5 * np.log(2) / 4
    assert table.loc[names[UP], "divergence_time"] == pytest.approx(expected, abs=2e-3)
    assert table.loc[names[DOWN], "divergence_time"] == pytest.approx(expected, abs=2e-3)
    assert table["divergence_time"].notna().sum() == 2
    assert table.loc[names[UP], "end_difference"] == pytest.approx(-2.4 / np.log(2), rel=1e-3)
    assert table.loc[names[UP], "max_difference"] == table.loc[names[UP], "end_difference"]
    assert table.loc[names[UP], "max_time"] == 1.0
    assert table.loc[names[UP], "start_difference"] == pytest.approx(0, abs=1e-4)
    assert set(table.index[:2]) == {names[UP], names[DOWN]}
    np.testing.assert_allclose(found.difference_ng[:, UP], -4 / np.log(2) * np.maximum(found.time - 0.4, 0), atol=1e-3)
    overall = found.overall
    share = np.sqrt(2 / 40)
    np.testing.assert_allclose(overall["difference"], np.abs(found.difference_ng[:, UP]) * share, rtol=1e-3, atol=1e-4)
    # four genes scatter by 2 * 0.1 / log 2 along either path
    np.testing.assert_allclose(overall["spread"], 0.2 / np.log(2) * np.sqrt(4 / 40), rtol=0.03)
    assert overall["n_genes"].iloc[-1] == 2 and overall["n_genes"].iloc[0] == 0
    assert found.divergence_time == pytest.approx(0.4 + 0.2 * np.sqrt(2) / 4, abs=3e-3)
    assert repr(found).startswith("Comparison: back over on, 101 times, 2 of 40 genes part; the paths part at 0.47")
    assert found.names == ("on", "back")


def test_differences_within_the_error_bars_are_none(hand):
    """A tube that widens along z1 on one path alone: the means differ, but the draws fall on both sides."""
    plain = moving(41)
    wide = np.zeros((41, 4, 4))
    wide[:, 0, 0] = np.linspace(0, 1.2, 41) ** 2
    narrow = np.zeros((41, 4, 4)) + 1e-8 * np.eye(4)
    a, b = (Line(plain.points, plain.time, spread) for spread in (narrow, wide))
    found = compare(hand, a, b, n_samples=512, **HAND, batch="batch_1", least_score=0)
    row = found.table.set_index("gene").loc[hand.schema.genes[UP]]
    assert row["end_difference"] == pytest.approx(0.5 * (2 * 1.2) ** 2 / np.log(2), rel=0.1)
    assert row["score"] < 1.5
    assert np.isnan(row["divergence_time"])
    assert (found.overall["n_genes"] == 0).all()
    assert (found.q05_ng[-1, UP] < 0) and (found.q95_ng[-1, UP] > 0)
    np.testing.assert_allclose(found.q95_ng[-1, UP], 1.645 * 2.4 / np.log(2), rtol=0.03)
    np.testing.assert_allclose(found.std_ng[-1, UP], 2.4 / np.log(2), rtol=0.03)


def test_a_small_score_is_no_parting(hand):
    asked = {"kwargs_b": {"batch": "batch_2"}, **HAND, "batch": "batch_1"}
    assert compare(hand, moving(), **asked).table["divergence_time"].notna().sum() == 1
    # of 2.16 log2 the score is 4.3
    strict = compare(hand, moving(), **asked, least_score=5)
    assert strict.table["divergence_time"].isna().all()
    assert (strict.overall["n_genes"] == 0).all()


def test_a_path_does_not_part_from_itself(model):
    path = winding()
    found = compare(model, path, path, n_samples=16)
    assert (found.difference_ng == 0).all() and (found.std_ng == 0).all()
    assert found.table["divergence_time"].isna().all()
    assert np.isnan(found.divergence_time)
    assert "the paths part nowhere" in repr(found)


def test_one_path_in_two_batches(hand):
    path = moving(std=[0.3] * 4)
    found = compare(hand, path, kwargs_a={"batch": "batch_1"}, kwargs_b={"batch": "batch_2"}, **HAND)
    row = found.table.iloc[0]
    assert row["gene"] == hand.schema.genes[UP]
    assert row["max_difference"] == pytest.approx(1.5 / np.log(2), rel=1e-3)
    assert row["divergence_time"] == 0.0
    # what both share is in no error bar
    assert row["std"] == pytest.approx(0, abs=1e-3)
    assert found.overall["n_genes"].eq(1).all()
    swapped = compare(hand, path, kwargs_b={"batch": "batch_1"}, **(HAND | {"batch": "batch_2"}))
    np.testing.assert_allclose(swapped.difference_ng, -found.difference_ng, atol=1e-5)


def test_bare_lines(hand):
    found = compare(hand, moving(101), parting(n=101), **HAND, batch="batch_1")
    row = found.table.set_index("gene").loc[hand.schema.genes[UP]]
    assert row["divergence_time"] == pytest.approx(0.4 + 0.5 * np.log(2) / 4, abs=2e-3)
    assert found.overall["spread"].isna().all()
    assert np.isnan(found.divergence_time)
    mixed = compare(hand, moving(101), parting(n=101, std=[0.1] * 4), **HAND, batch="batch_1")
    assert np.isfinite(mixed.divergence_time)


def test_paths_of_other_numbers_of_points(hand):
    """Resampled by their splines, and the spread with them."""
    std = [0.2, 0.1, 0.1, 0.1]
    few, many = moving(21, std=std), moving(50, std=std)
    found = compare(hand, few, many, **HAND)
    assert len(found.time) == 50
    np.testing.assert_allclose(found.difference_ng, 0, atol=2e-3)
    assert found.time_name == "share of each path's time"
    assert len(compare(hand, few, many, n_points=7, **HAND).time) == 7


def test_times_in_common(hand):
    a = moving(40)
    b = Line(a.points, a.time + 0.5, None, time_name="pseudotime")
    found = compare(hand, Line(a.points, a.time, time_name="pseudotime"), b, align="time", n_points=11, **HAND)
    np.testing.assert_allclose(found.time, np.linspace(0.5, 1.0, 11))
    assert found.time_name == "pseudotime"
    # half a unit later, the first gene is behind by 2 * 0.5 / log 2
    np.testing.assert_allclose(found.difference_ng[:, UP], -1 / np.log(2), atol=1e-3)
    same = compare(hand, a, moving(40, second=lambda t: 0 * t), align="time", **HAND)
    np.testing.assert_array_equal(same.time, a.time)
    assert same.table["gene"].iloc[0] in hand.schema.genes[2:4]
    with pytest.raises(PointsError, match="do not overlap"):
        compare(hand, a, Line(a.points, a.time + 5), align="time")


def test_a_difference_in_passing_has_no_time(hand):
    """z2 is up in the middle of the first path alone."""
    found = compare(hand, moving(), moving(second=lambda t: 0 * t), **HAND)
    row = found.table.set_index("gene").loc[hand.schema.genes[TRANSIENT]]
    assert row["max_difference"] == pytest.approx(-2 / np.log(2), rel=1e-2)
    assert row["max_time"] == pytest.approx(0.5, abs=0.02)
    assert np.isnan(row["divergence_time"])
    assert found.overall["n_genes"].iloc[15] == 2


def test_conditions_of_points_are_resampled_with_them(full_model):
    path = winding(12)
    own = Line(path.points, path.time, path.spread, {"continuous": {"age": np.linspace(20, 80, 12)}})
    found = compare(full_model, own, winding(12, seed=1), n_points=23, n_samples=8, library_size=np.full(12, 1e4))
    assert found.difference_ng.shape == (23, 40)
    assert np.isfinite(found.difference_ng).all()


def test_the_differences_as_a_long_table(model):
    found = compare(model, winding(), winding(seed=1), n_samples=8)
    genes = list(model.schema.genes[3:5])
    table = found.trends(genes)
    assert list(table.columns) == ["gene", "time", "difference", "std", "q05", "q95"]
    assert len(table) == 24
    first = table[table["gene"] == genes[0]]
    np.testing.assert_array_equal(first["difference"], found.difference_ng[:, 3])
    np.testing.assert_array_equal(first["time"], found.time)
    assert len(found.trends()) == 12 * 40
    assert len(found.trends(genes[0])) == 12
    with pytest.raises(InputError, match="compared genes"):
        found.trends(["GATA1"])


@pytest.mark.parametrize(
    ("asked", "error", "match"),
    [
        ({}, InputError, "nothing came; another path"),
        ({"path_b": winding(), "align": "warp"}, InputError, "ways to align"),
        ({"kwargs_b": {"genes": ["a"]}}, InputError, "kwargs_b: 'genes'"),
        ({"path_b": winding(), "n_points": 2}, ConfigError, "n_points"),
        ({"path_b": winding(), "min_change": -1}, ConfigError, "min_change"),
        ({"path_b": winding(), "least_score": -1}, ConfigError, "least_score"),
        ({"path_b": Line(np.zeros((2, 5, 4)), np.tile(np.arange(5), (2, 1)))}, PointsError, "path_b: 2 lineages"),
    ],
)
def test_what_cannot_be_compared(model, asked, error, match):
    with pytest.raises(error, match=match):
        compare(model, winding(), **asked)


# -- values ------------------------------------------------------------------------------------------------------------


def test_trends_as_a_long_table(model):
    path = winding()
    decoded = model.decode(path, n_samples=8)
    genes = [model.schema.genes[i] for i in (5, 2)]
    table = trend_table(decoded, genes)
    assert list(table.columns[:6]) == ["gene", "time", "mean", "std", "q05", "q95"]
    assert list(table["gene"].cat.categories) == genes
    for gene in genes:
        own = table[table["gene"] == gene]
        np.testing.assert_allclose(own["time"], path.time)
        np.testing.assert_array_equal(own["mean"], decoded[:, gene].X[:, 0])
        for layer in ("std", "q05", "q95"):
            np.testing.assert_array_equal(own[layer], decoded[:, gene].layers[layer][:, 0])
        assert list(own["supported"]) == list(decoded.obs["supported"])
    assert set(table["unit"]) == {decoded.uns["scdecode"]["unit"]}
    assert table.attrs["time_name"] == "share of the path"
    assert len(trend_table(decoded)) == 12 * 40
    assert len(trend_table(decoded, genes[0])) == 12


def test_a_long_table_of_lineages_and_of_files(model, tmp_path):
    both = Line(
        np.stack([winding(seed=s).points for s in (0, 1)]), np.tile(np.arange(12.0), (2, 1)), lineages=("left", "right")
    )
    decoded = model.decode(both)
    table = trend_table(decoded, model.schema.genes[:2])
    assert table.groupby(["gene", "lineage"], observed=True).size().eq(12).all()
    left = table[(table["lineage"] == "left") & (table["gene"] == model.schema.genes[1])]
    np.testing.assert_array_equal(left["mean"], decoded.X[:12, 1])
    assert "std" not in table
    on_disk = model.decode(both, out=tmp_path / "path.h5ad")
    pd.testing.assert_frame_equal(trend_table(on_disk, model.schema.genes[:2]), table)
    on_disk.file.close()


def test_what_has_no_trends(model):
    with pytest.raises(InputError, match=r"model.decode\(path\)"):
        trend_table(model.decode(winding().points))
    with pytest.raises(InputError, match=r"model.decode\(path\)"):
        trend_table(pd.DataFrame())
    with pytest.raises(InputError, match="drawn counts"):
        trend_table(model.decode(winding(), quantity="counts"))
    with pytest.raises(InputError, match="decoded genes"):
        trend_table(model.decode(winding(), n_samples=4), ["GATA1"])


def test_deeper_libraries_are_no_change_of_genes(hand):
    path = moving(std=[0.1] * 4)
    with pytest.raises(InputError, match=r"by the library alone by \+1.00 log2; pass one library_size"):
        compare(hand, path, kwargs_b={"library_size": 2e4})
    own = Line(path.points, path.time, path.spread, {"library_size": np.linspace(100, 200, 30)})
    with pytest.raises(InputError, match="10000 came for path_a and 100 for"):
        compare(hand, path, own)
    scale = compare(hand, path, kwargs_b={"library_size": 2e4}, quantity="scale")
    assert (scale.difference_ng == 0).all()
    assert (compare(hand, path, own, library_size=1e4).difference_ng == 0).all()


def test_a_bare_line_does_not_halve_the_scatter_of_a_tube(hand):
    tube = moving(std=[0.3] * 4)
    both = compare(hand, tube, tube, **HAND, batch="batch_1").overall["spread"]
    one = compare(hand, tube, moving(), **HAND, batch="batch_1").overall["spread"]
    np.testing.assert_allclose(one, both, rtol=1e-6)


@pytest.mark.parametrize("names", ["ab", ("a",), ["a", "b", "c"]])
def test_two_paths_have_two_names(model, names):
    with pytest.raises(InputError, match="two names, of path_a and path_b"):
        compare(model, winding(), winding(seed=1), names=names)
