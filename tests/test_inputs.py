"""Input that is good and was refused: levels of any type, cells without counts, fractions, raw counts, odd names."""

import datetime

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from cli_runs import run

import scdecode as sd
from scdecode._utils.levels import Category
from scdecode.cells import read_cells
from scdecode.config import TrainConfig
from scdecode.errors import ConditionError, ConditionWarning, ConfigError, CountsError, CountsWarning, InputError
from scdecode.formats.allowed import Captured
from scdecode.formats.pandas_values import value_of
from scdecode.kernels.rows import Gatherer
from scdecode.minibatches import gather

N, G = 90, 12
Z = np.zeros((1, 2), dtype=np.float32)


def cells(**columns):
    rng = np.random.default_rng(0)
    x = rng.poisson(3, (N, G)).astype(np.float32)
    x[:, 0] += 1
    adata = ad.AnnData(sp.csr_matrix(x))
    adata.obs_names = [f"cell_{i}" for i in range(N)]
    adata.var_names = [f"g{i}" for i in range(G)]
    for name, values in columns.items():
        adata.obs[name] = values
    return adata


def trained(adata, *, options=None, kind=sd.SCVI, **setup):
    kind.setup_anndata(adata, **setup)
    model = kind(adata, **({"n_latent": 2, "n_hidden": 8, "gene_likelihood": "nb"} | (options or {})))
    model.train(max_epochs=1, batch_size=32, progress=False, n_epochs_kl_warmup=1)
    return model


def three(values):
    """Three levels, turn by turn, in whatever holds them."""
    if isinstance(values, list):
        array = np.empty(len(values), dtype=object)
        array[:] = values
        values = array
    return values[np.arange(N) % 3]


@pytest.fixture(scope="module")
def numbered():
    """Trained with batches 0 to 2, a boolean, levels in single precision and a label."""
    columns = {
        "batch": three(np.arange(3)),
        "on": np.arange(N) // 3 % 2 == 0,
        "dose": np.array([0.1, 0.2, 3.0], dtype=np.float32)[np.arange(N) // 6 % 3],
        "type": np.array([1.0, 2.0, 5.0])[np.arange(N) // 18 % 3],
    }
    adata = cells(**columns)
    return trained(adata, batch_key="batch", categorical_covariate_keys=["on", "dose"], labels_key="type")


# -- numbers are compared as numbers -----------------------------------------------------------------------------------

ONE = [1, 1.0, "1", "1.0", True, np.int8(1), np.uint64(1), np.float32(1), np.float64(1), np.bool_(True)]


@pytest.mark.parametrize("one", ONE, ids=lambda value: f"{type(value).__name__} {value}")
def test_a_level_is_named_by_its_number(numbered, one):
    given = {"categorical": {"on": 1, "dose": 0.1}}
    expected = numbered.decode(Z, batch="1", **given).X

    def same(batch):
        np.testing.assert_array_equal(numbered.decode(Z, batch=batch, **given).X, expected)

    same(one)
    same([one])
    same({one: 2.0})
    same(np.array([one]))
    same(pd.Series([one]))
    pd.testing.assert_frame_equal(
        numbered.get_normalized_expression(indices=[0, 1], transform_batch=one),
        numbered.get_normalized_expression(indices=[0, 1], transform_batch="1"),
    )
    assert set(numbered.generate(4, batch=one).obs["batch"]) == {"1"}
    assert set(numbered.generate(4, labels=one).obs["type"]) == {"1.0"}
    np.testing.assert_allclose(numbered.decoder(batch=one, **given)(Z), expected, rtol=1e-6)


@pytest.mark.parametrize("dose", [0.1, np.float32(0.1), "0.1", float(np.float32(0.1))])
@pytest.mark.parametrize("on", [True, 1, 1.0, "True", "1", np.bool_(True)])
def test_levels_in_single_precision_and_truth_values(numbered, on, dose):
    found = numbered.decode(Z, batch=0, categorical={"on": on, "dose": dose}).obs
    assert (found["on"].tolist(), found["dose"].tolist()) == (["True"], ["0.1"])


@pytest.mark.parametrize(
    "values",
    [
        three(np.array([0.0, 1.0, 2.0])),
        three(np.array(["0", "1", "2"])),
        three(np.array(["0.0", "1.0", "2.0"])),
        three([0, 1.0, "2"]),
        pd.array(three(np.arange(3)), dtype="Int64"),
        pd.array(three(np.arange(3)), dtype="Float32"),
        pd.Categorical(three(np.arange(3)), categories=[2, 1, 0, 7], ordered=True),
        three(np.arange(3)).astype(np.uint8),
        pd.array(three(np.array(["0", "1", "2"])), dtype="string"),
    ],
    ids=lambda values: str(getattr(values, "dtype", "")),
)
def test_other_cells_may_have_their_numbers_in_another_type(numbered, values):
    query = numbered.adata.copy()
    expected = numbered.get_normalized_expression(query)
    query.obs["batch"] = values
    query.obs["dose"] = query.obs["dose"].astype(float)
    query.obs["on"] = query.obs["on"].astype(int)
    pd.testing.assert_frame_equal(numbered.get_normalized_expression(query), expected)


def test_what_is_no_number_is_compared_as_text():
    category = Category.of("sample", np.array(["01", "1", "s", "1e0"], dtype=object))
    assert [category.find(v) for v in ("01", "1", "1e0", "s", "001", "1.0")] == [(0,), (1,), (3,), (2,), (), ()]
    assert category.find(1) == (1, 3)  # two levels are the number one as text
    with pytest.raises(ConditionError, match=r"batch: got 1, which may be any of the levels \['1', '1e0'\].*'1'$"):
        category.encode([1], "batch", "levels")
    large = Category.of("n", np.array([2**24, 2**53]))
    assert large.find(2**24 + 1) == large.find(2**53 + 1) == ()  # no number is rounded to another


def test_one_and_the_text_one(numbered):
    with pytest.raises(ConditionError, match=r"two of its levels have the same name as text: 1 and '1'"):
        trained(cells(batch=three([1, "1", "b"])), batch_key="batch")
    query = numbered.adata.copy()
    query.obs["batch"] = three([1, "1", 0])
    with pytest.warns(ConditionWarning, match=r"levels 1 and '1', which are both read as the training level '1'"):
        numbered.get_normalized_expression(query)


def test_the_levels_of_a_counterfactual(numbered):
    given = {"categorical": {"on": True, "dose": 0.2}}
    result = sd.counterfactual(numbered, Z, over="batch", levels=[0.0, "2"], **given)
    assert result.expression.obs["condition"].cat.categories.tolist() == ["0", "2"]
    with pytest.raises(InputError, match=r"levels: got .* expected each level once"):
        sd.counterfactual(numbered, Z, over="batch", levels=[1, 1.0], **given)


# -- levels of any type ------------------------------------------------------------------------------------------------

DAYS = ["2024-01-31", "2024-02-29", "2024-03-31"]
OF_ANY_TYPE = {
    "datetime": (pd.to_datetime(DAYS), [pd.Timestamp(DAYS[1]), DAYS[1], datetime.date(2024, 2, 29)]),
    "datetime64": (np.array(DAYS, dtype="M8[s]"), [np.datetime64(DAYS[1]), "2024-02-29 00:00:00"]),
    "time zone": (pd.to_datetime(DAYS).tz_localize("UTC"), [pd.Timestamp(DAYS[1], tz="UTC")]),
    "date": ([datetime.date.fromisoformat(day) for day in DAYS], [datetime.date(2024, 2, 29), DAYS[1]]),
    "period": (pd.period_range("2024-01", periods=3, freq="M"), [pd.Period("2024-02"), "2024-02"]),
    "week": (pd.period_range("2024-01-01", periods=3, freq="W"), [pd.Period("2024-01-08", freq="W")]),
    "interval": (pd.interval_range(0, 3), [pd.Interval(1, 2), "(1, 2]"]),
    "timedelta": (pd.to_timedelta([1, 2, 3], unit="D"), [pd.Timedelta("2D"), datetime.timedelta(2), "2 days"]),
    "tuple": ([("a", 1), ("b", 2), ("c", 3)], [("b", 2), "('b', 2)"]),
    "mixed": ([1, "b", 2.5], ["b"]),
    "float16": (np.array([0.5, 1.0, 2.0], dtype=np.float16), [1, "1.0", np.float16(1)]),
    "string": (pd.array(["a", "b", "c"], dtype="string"), ["b"]),
    "nullable": (pd.array([True, False, True], dtype="boolean"), [False, 0, "False"]),
}


@pytest.mark.parametrize("case", OF_ANY_TYPE)
def test_batches_of_any_type(tmp_path, case):
    levels, second = OF_ANY_TYPE[case]
    values = pd.Series(three(levels), index=cells().obs_names)
    model = trained(cells(batch=values), batch_key="batch")
    names = model.schema.batch.names
    own = names[model.schema.batch.find(second[0])[0]]
    if case in ("datetime", "datetime64", "date"):  # in whichever unit
        second = [*second, *(np.datetime64(DAYS[1], unit) for unit in ("D", "s", "ns"))]
    model.save(tmp_path / "model")
    opened = sd.load(tmp_path / "model")
    assert opened.schema.batch == model.schema.batch
    expected = model.decode(Z, batch=own).X
    for value in [*second, own]:
        np.testing.assert_array_equal(opened.decode(Z, batch=value).X, expected)
    latents = opened.get_normalized_expression(cells(batch=values))
    pd.testing.assert_frame_equal(latents, model.get_normalized_expression())
    if model.schema.batch.kind == "other":
        with pytest.warns(ConditionWarning, match=r"written as text; .*adata.obs\['batch'\].map\(str\)"):
            sd.convert(tmp_path / "model", tmp_path / "theirs", to="scvi-tools")
    else:
        sd.convert(tmp_path / "model", tmp_path / "theirs", to="scvi-tools")
    assert sd.load(tmp_path / "theirs").schema.batch.names == names


def test_days_are_days_in_another_type():
    """Objects of days, and pandas' times of these days."""
    days = pd.Series(three(OF_ANY_TYPE["date"][0]), index=cells().obs_names)
    model = trained(cells(batch=days), batch_key="batch")
    expected = model.get_normalized_expression()
    for values in (pd.to_datetime(days), pd.to_datetime(days).astype("M8[s]"), days.map(str)):
        pd.testing.assert_frame_equal(model.get_normalized_expression(cells(batch=values)), expected)
        given = values.iloc[: len(Z)].to_numpy()
        np.testing.assert_array_equal(
            model.decode(Z, batch=given).X, model.decode(Z, batch=days.iloc[: len(Z)].to_numpy()).X
        )


def test_a_time_is_no_number():
    category = Category.of("batch", np.array([1_577_836_800_000_000_000, 2]))
    assert category.find(np.datetime64("2020-01-01", "ns")) == ()
    assert category.find(np.timedelta64(2, "ns")) == ()


def test_a_missing_batch_is_named():
    with pytest.raises(ConditionError, match=r"adata.obs\['batch'\]: 30 of 90 values are missing"):
        trained(cells(batch=three(["a", None, "b"])), batch_key="batch")


def offset(kind, *args):
    return Captured(f"pandas._libs.tslibs.offsets.{kind}", args)


@pytest.mark.parametrize(
    ("captured", "text"),
    [
        (Captured("pandas._libs.tslibs.period.Period", (None, offset("MonthEnd", 1, False), 600)), "2020-01"),
        (Captured("pandas._libs.tslibs.period.Period", (None, offset("QuarterEnd", 1, False, 12), 200)), "2020Q1"),
        (Captured("pandas._libs.tslibs.period.Period", (None, offset("Day", 1), 0)), "1970-01-01"),
        (Captured("pandas._libs.interval.Interval", (0, 1.5, "right")), "(0, 1.5]"),
        (Captured("pandas._libs.tslibs.timestamps._unpickle_timestamp", (0, None, None, 7)), "1970-01-01 00:00:00"),
        (
            Captured("pandas._libs.tslibs.timestamps._unpickle_timestamp", (0, None, Captured("pytz._UTC", ()), 10)),
            "1970-01-01 00:00:00+00:00",
        ),
        (Captured("pandas._libs.tslibs.timedeltas._timedelta_unpickle", (10**9, 10)), "0 days 00:00:01"),
        (Captured("datetime.date", (b"\x07\xe4\x01\x02",)), "2020-01-02"),
        ((Captured("datetime.date", (b"\x07\xe4\x01\x02",)), 1), "(datetime.date(2020, 1, 2), 1)"),
    ],
)
def test_values_that_a_pickle_names(captured, text):
    assert str(value_of(captured)) == text


@pytest.mark.parametrize(
    "captured",
    [
        Captured("pandas._libs.tslibs.period.Period", (None, Captured("pandas.core.frame.DataFrame", ()), 1)),
        Captured("pandas._libs.tslibs.period.Period", (None, offset("Eval", 1), 1)),
        Captured("pandas._libs.tslibs.period.Period", (None, offset("Day", 10**30), 10**30)),
        Captured("pandas._libs.tslibs.period.Period", (None, offset("Day", "os"), 1)),
        Captured("pandas._libs.tslibs.period.Period", ("x",)),
        Captured("pandas._libs.interval.Interval", (2, 1, "right")),
        Captured("pandas._libs.interval.Interval", ([], 1, "right")),
        Captured("pandas._libs.tslibs.timestamps._unpickle_timestamp", (0, None, Captured("pytz._p", ("../x",)), 10)),
        Captured("pandas._libs.tslibs.timestamps._unpickle_timestamp", (0, None, "UTC", 99)),
        Captured("datetime.date", (b"\xff\xff\xff\xff",)),
        Captured("datetime.datetime", (b"",)),
        Captured("os.system", ("true",)),
        Captured("datetime.date"),
    ],
)
def test_what_is_no_value_stays_as_it_is(captured):
    assert value_of(captured) is captured


# -- cells without counts ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain():
    return trained(cells(batch=three(np.array(["a", "b", "c"]))), batch_key="batch")


@pytest.fixture
def with_empty(plain):
    adata = plain.adata.copy()
    x = adata.X.toarray()
    x[[3, 8]] = 0
    adata.X = sp.csr_matrix(x)
    return adata


def test_a_cell_without_counts_is_encoded_and_decoded(plain, with_empty):
    kept = np.setdiff1d(np.arange(N), [3, 8])
    latents = plain.get_latent_representation(with_empty)
    np.testing.assert_array_equal(latents[kept], plain.get_latent_representation()[kept])
    assert np.isfinite(latents).all()
    np.testing.assert_array_equal(latents[3], latents[8])
    for library_size in (1, 1e4):
        found = plain.get_normalized_expression(with_empty, library_size=library_size)
        np.testing.assert_allclose(found.sum(axis=1), library_size, rtol=1e-5)
    plain.decode(plain.posterior(with_empty, indices=[3]), batch="a")
    assert plain.get_latent_library_size(with_empty, give_mean=False)[3] == 0


@pytest.mark.parametrize(
    "call",
    [
        lambda m, a: m.get_elbo(a),
        lambda m, a: m.get_reconstruction_error(a),
        lambda m, a: m.get_marginal_ll(a, n_mc_samples=2),
        lambda m, a: m.get_normalized_expression(a, library_size="latent"),
        lambda m, a: m.get_likelihood_parameters(a),
        lambda m, a: trained(a, batch_key="batch"),
    ],
    ids=["elbo", "reconstruction", "marginal", "normalized", "parameters", "train"],
)
def test_a_cell_without_counts_is_named_where_its_library_is_needed(plain, with_empty, call):
    with pytest.raises(CountsError, match=r"2 of 90 cells have no counts .*\['cell_3', 'cell_8'\], so their library"):
        call(plain, with_empty)


def test_a_model_opened_with_a_cell_without_counts(plain, with_empty, tmp_path):
    plain.save(tmp_path / "model")
    for opened in (sd.load(tmp_path / "model", with_empty), sd.SCVI.load(tmp_path / "model", with_empty)):
        assert opened.get_latent_representation().shape == (N, 2)
        with pytest.raises(CountsError, match=r"\['cell_3', 'cell_8'\]"):
            opened.train(max_epochs=1, progress=False)
    opened.attach_reference(with_empty)
    assert len(opened.reference_latents()) == N - 2
    assert (opened.generate(200, seed=1).obs["library_size"] > 0).all()


# -- fractions ---------------------------------------------------------------------------------------------------------


def fractional(**columns):
    adata = cells(**columns)
    adata.X = adata.X * np.float32(0.83)
    return adata


def test_fractions_are_refused_unless_they_are_allowed(plain, tmp_path):
    adata = fractional(batch=three(np.array(["a", "b", "c"])))
    with pytest.raises(CountsError, match=r"not whole numbers .*allow_fractional_counts=True"):
        trained(adata, batch_key="batch")
    with pytest.raises(CountsError, match="not whole numbers"):
        plain.get_latent_representation(adata)
    model = trained(adata, batch_key="batch", allow_fractional_counts=True)
    assert np.isfinite(model.history_table.to_numpy()).all()
    model.save(tmp_path / "model")
    opened = sd.load(tmp_path / "model")
    np.testing.assert_array_equal(opened.get_latent_representation(adata), model.get_latent_representation())
    with pytest.raises(InputError, match=r"allow_fractional_counts: .*True or False"):
        sd.SCVI.setup_anndata(adata, allow_fractional_counts="yes")


def test_fractions_for_a_model_of_scvi_tools(tmp_path):
    """It may have been trained on them, and its files do not say so."""
    adata = fractional(batch=three(np.array(["a", "b", "c"])))
    model = trained(adata, batch_key="batch", allow_fractional_counts=True)
    model.save(tmp_path / "model")
    sd.convert(tmp_path / "model", tmp_path / "theirs", to="scvi-tools")
    opened = sd.load(tmp_path / "theirs")
    with pytest.warns(CountsWarning, match=r"not whole numbers .*they are taken as they are"):
        latents = opened.get_latent_representation(adata)
    np.testing.assert_array_equal(latents, model.get_latent_representation())


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_fractions_have_the_likelihood_between_whole_numbers(likelihood):
    """In plain torch, in double precision, against the kernels that train and the distributions."""
    adata = fractional()
    model = trained(adata, options={"gene_likelihood": likelihood}, allow_fractional_counts=True)
    read, rows, cpu = read_cells(adata, model.schema, need_conditions=True), np.arange(40), torch.device("cpu")
    dense, sparse = gather(read, rows, cpu), gather(read, rows, cpu, Gatherer(read.counts))
    latent, log_library = model.vae.encode(dense).mean, dense.library_n1.log()
    output = model.vae.decode(latent, dense.codes_nc, dense.continuous_nd)
    x, log_mu = dense.x_ng.double(), (log_library + output.log_scale).double()
    if likelihood == "poisson":
        expected = x * log_mu - log_mu.exp() - torch.lgamma(x + 1)
    else:
        log_theta = model.vae.dispersion(output, dense.codes_nc).double()
        theta, log_sum = log_theta.exp(), torch.logaddexp(log_theta, log_mu)
        expected = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1)
        expected = expected + theta * (log_theta - log_sum) + x * (log_mu - log_sum)
    if likelihood == "zinb":
        pi = torch.sigmoid(output.zi_logits.double())
        expected = torch.where(x > 0, torch.log1p(-pi) + expected, (pi + (1 - pi) * expected.exp()).log())
    found = model.vae.likelihood(output, log_library, dense.codes_nc).log_prob(dense.x_ng)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    fused = model.vae.fused_loss(sparse, latent, log_library)
    torch.testing.assert_close(fused.double(), -expected.sum(-1), rtol=1e-6, atol=1e-5)


# -- counts in adata.raw -----------------------------------------------------------------------------------------------


def as_cellxgene(model_genes=8):
    """Normalised values of some genes in X, and the counts of all in raw."""
    adata = cells(batch=three(np.array(["a", "b", "c"])))
    raw = adata.copy()
    adata = adata[:, :model_genes].copy()
    adata.X = np.log1p(adata.X.toarray() / 3)
    adata.raw = raw
    return adata


@pytest.mark.parametrize("setup", [{"use_raw": True}, {"layer": "raw"}, {"layer": "raw", "use_raw": True}])
def test_counts_in_raw(plain, tmp_path, setup):
    adata = as_cellxgene()
    model = trained(adata, batch_key="batch", **setup)
    assert model.schema.genes == tuple(f"g{i}" for i in range(G))
    expected = plain.get_latent_representation()
    np.testing.assert_array_equal(model.get_latent_representation(), expected)
    model.save(tmp_path / "model")
    opened = sd.load(tmp_path / "model")
    other = as_cellxgene(3)[::-1].copy()  # other genes in X, the same in raw; cells in another order
    np.testing.assert_array_equal(opened.get_latent_representation(other), expected[::-1])
    np.testing.assert_array_equal(opened.get_latent_representation(cells(), use_raw=False), expected)
    assert opened.get_normalized_expression(adata).columns.tolist() == adata.raw.var_names.tolist()
    with pytest.raises(InputError, match=r"use_raw: adata.raw is None"):
        opened.get_latent_representation(cells())
    with pytest.warns(ConditionWarning, match=r"adata.raw.to_adata\(\)"):
        sd.convert(tmp_path / "model", tmp_path / "theirs", to="scvi-tools")


def test_counts_of_other_cells_in_raw_or_in_a_layer(plain):
    expected = plain.get_latent_representation()
    adata = as_cellxgene(G)
    with pytest.raises(CountsError, match=r"adata.X: .* not whole numbers .*adata.raw.X holds whole numbers: pass"):
        plain.get_latent_representation(adata)
    with pytest.raises(CountsError, match=r"genes are missing .*adata.raw has all of them: use_raw=True"):
        plain.get_latent_representation(as_cellxgene(5))
    for given in ({"use_raw": True}, {"layer": "raw"}):
        np.testing.assert_array_equal(plain.get_latent_representation(as_cellxgene(5), **given), expected)
        np.testing.assert_array_equal(plain.posterior(as_cellxgene(5), **given).mean.numpy(), expected)
    adata.layers["umi"] = adata.raw.X
    del adata.raw
    np.testing.assert_array_equal(plain.get_latent_representation(adata, layer="umi"), expected)
    with pytest.raises(CountsError, match=r"adata.layers\['umi'\] holds whole numbers: pass layer='umi'"):
        plain.get_latent_representation(adata)
    with pytest.raises(InputError, match=r"layer, use_raw: got 'umi' and True"):
        plain.get_latent_representation(adata, layer="umi", use_raw=True)


def test_a_layer_of_the_name_raw_goes_first(plain):
    adata = cells(batch=three(np.array(["a", "b", "c"])))
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.log1p(adata.X.toarray())
    model = trained(adata, batch_key="batch", layer="raw")
    assert model.schema.columns.layer == "raw" and not model.schema.columns.use_raw
    np.testing.assert_array_equal(model.get_latent_representation(), plain.get_latent_representation())


@pytest.mark.parametrize("where", [["--layer", "raw"], ["--use-raw"]])
def test_counts_in_raw_on_the_command_line(tmp_path, plain, where):
    as_cellxgene().write_h5ad(tmp_path / "cells.h5ad")
    arguments = ["--batch-key", "batch", "--n-latent", "2", "--n-hidden", "8", "--gene-likelihood", "nb"]
    arguments += ["--max-epochs", "1", "--batch-size", "32", "--set", "n_epochs_kl_warmup=1", "--device", "cpu"]
    run("train", tmp_path / "cells.h5ad", "--out", tmp_path / "model", *arguments, *where)
    run("encode", tmp_path / "model", tmp_path / "cells.h5ad", "--out", tmp_path / "z.npy")
    expected = plain.get_latent_representation()
    np.testing.assert_allclose(np.load(tmp_path / "z.npy"), expected, atol=1e-6)
    plain.save(tmp_path / "plain")
    run("encode", tmp_path / "plain", tmp_path / "cells.h5ad", "--out", tmp_path / "z2.npy", *where)
    np.testing.assert_array_equal(np.load(tmp_path / "z2.npy"), expected)


# -- names of columns --------------------------------------------------------------------------------------------------


def test_columns_that_are_numbers_or_have_a_slash(tmp_path):
    adata = cells(**{"donor/sex": three(np.array(["a", "b", "c"]))})
    adata.obs[0] = np.arange(N) // 3 % 2
    adata.obs["age/years"] = np.arange(N) / N
    adata.obs[7] = np.arange(N) // 6 % 2
    keys = {"categorical_covariate_keys": [7], "continuous_covariate_keys": ["age/years"]}
    model = trained(adata, batch_key="donor/sex", labels_key=0, **keys)
    assert (model.schema.columns.labels_key, model.schema.columns.categorical_covariate_keys) == ("0", ("7",))
    given = {"batch": np.array(["a", "b"]), "categorical": {7: 1}, "continuous": {"age/years": 0.5}}
    points = np.zeros((2, 2))
    expected = model.decode(points, **given)
    for name in ("out.h5ad", "out.zarr"):
        found = model.decode(points, out=tmp_path / name, **given)
        assert found.obs["donor_sex"].tolist() == expected.obs["donor_sex"].tolist() == ["a", "b"]
        np.testing.assert_array_equal(np.asarray(found.X), expected.X)
        again = model.decode(**sd.decode_arguments(found))
        np.testing.assert_array_equal(again.X, expected.X)
    assert sd.SCVI.setup_anndata(adata, batch_key=np.int64(0)) is None
    with pytest.raises(InputError, match="batch_key: 5 is not one of"):
        sd.SCVI.setup_anndata(adata, batch_key=5)


@pytest.mark.parametrize("make", [list, tuple, pd.Index, np.array, pd.Series, lambda keys: dict.fromkeys(keys).keys()])
def test_lists_of_columns(make):
    adata = cells(a=three(np.arange(3)), b=three(np.arange(3)), c=np.arange(N), d=np.arange(N))
    given = {"categorical_covariate_keys": make(["a", "b"]), "continuous_covariate_keys": make(["c", "d"])}
    sd.SCVI.setup_anndata(adata, **given)
    assert adata.uns["scdecode_setup"]["categorical_covariate_keys"] == ["a", "b"]
    assert adata.uns["scdecode_setup"]["continuous_covariate_keys"] == ["c", "d"]
    for wrong in ("a", {"a": 1}, 3, {"a", "b"}):  # the order of a set differs from run to run
        with pytest.raises(InputError, match="categorical_covariate_keys: "):
            sd.SCVI.setup_anndata(adata, categorical_covariate_keys=wrong)


# -- options -----------------------------------------------------------------------------------------------------------

LEGAL = [
    {"n_epochs_kl_warmup": 10.0},
    {"max_epochs": 1.0, "batch_size": np.float64(32)},
    {"plan_kwargs": {"lr": 0, "eps": 0.01}},
    {"plan_kwargs": {"weight_decay": 0, "n_epochs_kl_warmup": None}},
    {"train_size": 1, "validation_size": None},
    {"train_size": 0.9, "validation_size": 0},
    {"batch_size": 10_000},
    {"early_stopping": True, "early_stopping_patience": 0},
    {"check_val_every_n_epoch": 1.0, "seed": 3.0},
]


@pytest.mark.parametrize("options", LEGAL, ids=str)
def test_legal_options(plain, options):
    model = sd.SCVI(plain.adata, n_latent=2, n_hidden=8.0, dropout_rate=0)
    before = [weight.clone() for weight in model.vae.parameters()]
    model.train(**{"max_epochs": 1, "progress": False, "device": "cpu", **options})
    assert all(type(v) is not float for k, v in vars(model.train_config).items() if k in ("max_epochs", "batch_size"))
    same = all(torch.equal(one, other) for one, other in zip(before, model.vae.parameters(), strict=True))
    assert same == (options.get("plan_kwargs", {}).get("lr") == 0)


def test_a_part_of_a_whole_number_is_none():
    with pytest.raises(ConfigError, match=r"n_epochs_kl_warmup: .*10\.5"):
        TrainConfig(n_epochs_kl_warmup=10.5)


def test_generated_cells_at_values_of_continuous_covariates():
    adata = cells(age=np.linspace(0, 1, N), batch=three(np.arange(3)))
    model = trained(adata, batch_key="batch", continuous_covariate_keys=["age"])
    found = model.generate(20, continuous={"age": 0.25}, seed=2)
    assert (found.obs["age"] == 0.25).all()
    as_before = model.generate(20, decode_as={"continuous": {"age": 0.25}}, seed=2)
    np.testing.assert_array_equal(found.X.toarray(), as_before.X.toarray())
    with pytest.raises(ConditionError, match="continuous: it came in decode_as, too"):
        model.generate(2, continuous={"age": 0.25}, decode_as={"continuous": {"age": 0.5}})


# -- opening -----------------------------------------------------------------------------------------------------------


def test_load_takes_cells(plain, tmp_path):
    plain.save(tmp_path / "model")
    opened = sd.load(tmp_path / "model", plain.adata)
    np.testing.assert_array_equal(opened.get_latent_representation(), plain.get_latent_representation())
    opened.train(max_epochs=1, progress=False, device="cpu")
    assert sd.load(directory=tmp_path / "model", adata=None, prefix=None).adata is None
    with pytest.raises(InputError, match=r"adata: .*'cells_'"):
        sd.load(tmp_path / "model", "cells_")


# -- matrices ----------------------------------------------------------------------------------------------------------


def with_wide_pointers(x):
    x = sp.csr_matrix(x)
    x.indptr, x.indices = x.indptr.astype(np.int64), x.indices.astype(np.int64)
    return x


@pytest.mark.parametrize(
    "convert",
    [
        lambda x: x.astype(np.uint8),
        lambda x: x.astype(np.uint16),
        lambda x: x.astype(np.int64),
        lambda x: sp.csr_matrix(x.astype(np.float64)),
        lambda x: sp.csc_matrix(x),
        lambda x: sp.csr_array(x),
        lambda x: sp.csc_array(x.astype(np.int32)),
        lambda x: sp.coo_matrix(x).tocsr(),
        with_wide_pointers,
        np.asfortranarray,
    ],
)
def test_matrices_of_every_kind_are_read_alike(plain, convert):
    adata = ad.AnnData(convert(plain.adata.X.toarray()), obs=plain.adata.obs[["batch"]], var=plain.adata.var)
    expected = plain.get_latent_representation()
    np.testing.assert_array_equal(plain.get_latent_representation(adata), expected)
    view = adata[::-1, ::-1]
    np.testing.assert_array_equal(plain.get_latent_representation(view), expected[::-1])
    np.testing.assert_array_equal(trained(adata, batch_key="batch").get_latent_representation(), expected)


def test_backed_cells_and_raw(plain, tmp_path):
    expected = plain.get_latent_representation()
    plain.adata.write_h5ad(tmp_path / "x.h5ad")
    as_cellxgene().write_h5ad(tmp_path / "raw.h5ad")
    np.testing.assert_array_equal(
        plain.get_latent_representation(ad.read_h5ad(tmp_path / "x.h5ad", backed="r")), expected
    )
    backed = ad.read_h5ad(tmp_path / "raw.h5ad", backed="r")
    np.testing.assert_array_equal(plain.get_latent_representation(backed, use_raw=True), expected)


def test_one_gene_one_cell_one_batch(plain):
    alone = plain.get_latent_representation(plain.adata[4])
    np.testing.assert_allclose(alone, plain.get_latent_representation(indices=[4]), atol=1e-6)
    small = cells(batch=["only"] * N)[:, :1].copy()
    model = trained(small, batch_key="batch")
    assert model.decode(model.get_latent_representation()[:2]).X.shape == (2, 1)
    model = trained(cells(batch=["a"] + ["b"] * (N - 1)), batch_key="batch")
    assert model.decode(model.get_latent_representation()[:2], batch="a").X.shape == (2, G)


def test_labels_that_are_numbers_and_unlabelled_cells():
    """-1 is the level -1.0 of a column of numbers, and not one more."""
    for unlabeled in (-1, -1.0, "-1", np.float32(-1)):
        adata = cells(kind=three(np.array([-1.0, 0.0, 4.0])))
        options = {"n_latent": 2, "n_hidden": 8}
        sd.SCANVI.setup_anndata(adata, labels_key="kind", unlabeled_category=unlabeled)
        model = sd.SCANVI(adata, **options)
        assert model.schema.labels.names == ("4.0", "0.0", "-1.0") and model.schema.n_classes == 2
        model.train(max_epochs=1, progress=False, device="cpu")
        assert set(model.predict()) <= {0.0, 4.0}
