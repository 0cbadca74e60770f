"""The tables of what an AnnData was set up with."""

import pytest

from scdecode.errors import InputError


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")


def test_places_and_levels(full_model, capsys):
    assert full_model.view_anndata_setup() is None
    text = capsys.readouterr().out
    assert "Setup via `SCVI.setup_anndata` with arguments:" in text
    assert "'batch_key': 'batch'" in text
    for title in (
        "Summary Statistics",
        "Data Registry",
        "batch State Registry",
        "extra_continuous_covs State Registry",
    ):
        assert title in text
    for words in (["n_cells", "300"], ["n_vars", "40"], ["batch", "adata.obs['batch']"], ["X", "adata.X"]):
        assert any(all(word in line for word in words) for line in text.splitlines()), words
    for name in (*full_model.schema.batch.names, *full_model.schema.labels.names, "female", "v3"):
        assert name in text


def test_without_levels(full_model, adata, capsys):
    full_model.view_anndata_setup(adata[:7], hide_state_registries=True)
    text = capsys.readouterr().out
    assert "State Registry" not in text
    assert any("n_cells" in line and " 7 " in line for line in text.splitlines())


def test_cells_without_the_columns(full_model, adata):
    del adata.obs["chem"]
    with pytest.raises(InputError, match="categorical_covariate_keys: 'chem' is not"):
        full_model.view_anndata_setup(adata)
    with pytest.raises(InputError, match=r"adata: got .*, expected an AnnData"):
        full_model.view_anndata_setup({})
