"""scvi-tools' saves whose levels are dates, months, intervals or no cell's, with what it computes beside them."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from anndata import AnnData
from golden_models import GOLDEN
from saved_models import changed, read_saved

import scdecode as sd
from scdecode.errors import ConditionWarning, CorruptModelError
from scdecode.formats import scvi_tools

FOLDER = GOLDEN / "saved_levels"


@pytest.fixture(params=["scanvi_unused_labels", "scvi_dates"])
def saved(request):
    return read_saved(request.param, FOLDER)


@pytest.mark.filterwarnings("ignore:labels. the model's dispersion:scdecode.errors.ConditionWarning")
def test_its_numbers(saved):
    model = saved.open()
    posterior = model.posterior(saved.cells())
    torch.testing.assert_close(posterior.mean, saved["qz_mean"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(posterior.variance, saved["qz_var"], rtol=1e-5, atol=1e-6)
    for row, conditions in enumerate(saved.conditions()[:6]):
        for quantity in ("scale", "rate"):
            decoded = model.decode(saved["z"], quantity=quantity, library_size=saved["z_library"].numpy(), **conditions)
            torch.testing.assert_close(torch.from_numpy(decoded.X), saved[quantity][row], rtol=2e-5, atol=1e-7)


def test_classes_are_those_of_the_weights():
    """Categories of no cell count as classes in scvi-tools, and so does the unlabelled one, wherever it stands."""
    saved = read_saved("scanvi_unused_labels", FOLDER)
    model = saved.open()
    schema = model.schema
    assert schema.labels.names == tuple(saved.said["labels"]) == ("T", "Astray", "NK", "none", "B")
    assert (schema.columns.unlabeled_category, schema.n_classes) == ("Astray", 5)
    found = model.predict(saved.cells(), soft=True)
    assert found.columns.tolist() == list(schema.labels.names)
    np.testing.assert_allclose(found, saved["probabilities"], atol=1e-6)


def test_it_comes_back_and_is_trained_further(tmp_path):
    saved = read_saved("scanvi_unused_labels", FOLDER)
    model = saved.open()
    model.save(tmp_path / "ours")
    again = sd.load(tmp_path / "ours")
    assert again.schema.columns == model.schema.columns
    sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools")
    back = sd.load(tmp_path / "theirs")
    assert (back.schema.labels, back.schema.n_classes) == (model.schema.labels, 5)
    pd.testing.assert_frame_equal(back.predict(saved.cells(), soft=True), model.predict(saved.cells(), soft=True))
    few = saved.cells()
    obs = few.obs.iloc[np.arange(48) % 6].set_axis([f"c{i}" for i in range(48)])
    adata = AnnData(few.X[np.arange(48) % 6], obs=obs, var=few.var)
    adata.obs["kind"] = np.array(["T", "Astray", "NK", "B"], dtype=object)[np.arange(48) % 4]
    opened = sd.load(tmp_path / "ours", adata)
    opened.train(max_epochs=1, progress=False, device="cpu", train_size=1.0, batch_size=16)
    labelled = opened._network().unlabeled_code
    assert opened.schema.labels.names[labelled] == "Astray"  # cells of it have no label to learn from
    assert np.isfinite(opened.history_table.dropna(axis=1).to_numpy()).all()


def test_dates_by_their_names_and_as_dates():
    model = read_saved("scvi_dates", FOLDER).open()
    assert model.schema.batch.names == ("2024-01", "2024-02", "2024-03")
    kinds = {category.key: (category.kind, category.names) for category in model.schema.categorical}
    assert kinds == {
        "day": ("datetime", ("2024-01-31 00:00:00", "2024-02-29 00:00:00")),
        "span": ("other", ("(-1, 29]", "(29, 59]")),
        "third": ("float32", ("0.33333334", "0.6666667")),
    }
    z = np.zeros((1, 3))
    months = ["2024-02", pd.Period("2024-02", freq="M")]
    days = ["2024-02-29", pd.Timestamp("2024-02-29"), np.datetime64("2024-02-29")]
    thirds = [1 / 3, np.float32(1 / 3), "0.33333334"]
    found = [
        model.decode(z, batch=month, categorical={"day": day, "span": pd.Interval(29, 59), "third": third}).X
        for month, day, third in itertools.product(months, days, thirds)
    ]
    for one in found:
        np.testing.assert_array_equal(one, found[0])


def test_dates_written_for_scvi_tools(tmp_path):
    model = read_saved("scvi_dates", FOLDER).open()
    with pytest.warns(ConditionWarning, match=r"adata.obs\['month'\].map\(str\)"):
        scvi_tools.write(tmp_path / "theirs", model.stored())
    back = sd.load(tmp_path / "theirs")
    assert back.schema.batch.names == model.schema.batch.names
    assert {c.key: c.values.dtype.kind for c in back.schema.categorical} == {"day": "M", "span": "O", "third": "f"}


def test_an_unlabelled_category_that_no_label_is(tmp_path):
    def another(content):
        registry = content["attr_dict"]["registry_"]
        registry["field_registries"]["labels"]["state_registry"]["unlabeled_category"] = "nowhere"

    with pytest.raises(CorruptModelError, match="'nowhere' is none of its labels"):
        sd.load(changed("scanvi", tmp_path / "model", another))
