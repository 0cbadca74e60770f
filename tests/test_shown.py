"""How results are shown: a line or two in a terminal, a table in a notebook, never a long array or 2,000 names."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from small_models import make_adata, make_model

import scdecode as sd
from scdecode._utils.notebook import brief
from scdecode.describing import _INSTEAD

N_GENES = 300


@pytest.fixture(scope="module")
def large():
    """A model of more genes than anybody wants to see printed."""
    return make_model(make_adata(120, N_GENES), epochs=1)


@pytest.fixture(scope="module")
def path(large):
    cells = large.adata
    return sd.Trajectory.along_pseudotime(large.posterior(cells), cells.obs["pseudotime"], n_points=5)


@pytest.fixture(scope="module")
def results(large, path):
    start, end = path.points[0], path.points[-1]
    return {
        "model": large,
        "path": path,
        "ensemble": sd.Ensemble([large, large]),
        "counterfactual": sd.counterfactual(large, path, "batch"),
        "comparison": sd.dynamics.compare(large, path, path, batch="batch_1"),
        "geodesic": sd.geometry.geodesic(large, start, end, n_points=5, max_iterations=1, penalty=0),
        "length": sd.geometry.path_length(large, path.points),
        "sensitivity": sd.geometry.sensitivity(large, path.points),
        "attribution": sd.geometry.attribution(large, path.points),
        "config": large.config,
        "train_config": large.train_config,
        "schema": large.schema,
        "conditions": large.schema.conditions,
        "reference": large.reference(),
        "support": large.support_index(),
        "info": large.info(),
        "lineage": next(iter(sd.lineages.read_lineages(large.adata, pseudotime="pseudotime").values())),
    }


NAMES = [
    *("model", "path", "ensemble", "counterfactual", "comparison", "geodesic", "length", "sensitivity", "attribution"),
    *("config", "train_config", "schema", "conditions", "reference", "support", "info", "lineage"),
]


@pytest.mark.filterwarnings("ignore::scdecode.errors.ScdecodeWarning")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_short_and_says_what_it_is(results, name):
    shown = results[name]
    text = repr(shown)
    kind = "Trajectory" if name == "path" else type(shown).__name__
    assert len(text) < 1500 and "array(" not in text and "tensor(" not in text and text.count("gene_") < 12
    assert name == "info" or kind in text
    table = shown._repr_html_()
    assert table.startswith("<div>") and table.endswith("</table></div>") and len(table) < 6000
    assert table.count("<tr>") == table.count("</tr>") >= 1 and table.count("gene_") < 20


def test_info_is_a_dict_of_everything(large):
    facts = large.info()
    assert isinstance(facts, dict) and len(facts["genes"]) == N_GENES and facts == copy.deepcopy(facts)
    assert f"... {N_GENES - 6} more" in repr(facts)


def test_names_are_escaped():
    adata = make_adata(60, 10)
    adata.obs["batch"] = adata.obs["batch"].astype("category").cat.rename_categories(["<b>x</b>", "a&b", '"q"'])
    table = make_model(adata, epochs=0)._repr_html_()
    assert "<b>x" not in table and "&lt;b&gt;x" in table and "a&amp;b" in table


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.zeros((3, 1000)), "ndarray of 3 x 1,000"),
        (torch.zeros(2), "Tensor of 2"),
        (list(range(10)), "[0, 1, 2, 3, 4, 5, ... 4 more]"),
        ({"a": np.zeros(5)}, "{'a': ndarray of 5}"),
        (1.5, "1.5"),
        ("x" * 300, "'" + "x" * 95 + " ..."),
        (None, "None"),
    ],
)
def test_brief(value, text):
    assert brief(value) == text


# -- what scvi-tools' models have --------------------------------------------------------------------------------------


def test_a_model_says_where_it_is(large):
    assert large.device == torch.device("cpu")
    with pytest.raises(AttributeError):
        large.device = "cuda"


@pytest.mark.parametrize("name", sorted(_INSTEAD))
def test_what_scvi_tools_has_and_this_has_not_says_what_to_do(large, name):
    assert not hasattr(large, name)
    with pytest.raises(AttributeError, match=f"'SCVI' object has no attribute '{name}'; .{{10}}"):
        getattr(large, name)


def test_copies_of_a_model_are_models(large):
    assert copy.copy(large).config == large.config
