"""Saving with cells, opening as a class, attaching a reference: what a model knows of its training cells."""

import shutil

import anndata as ad
import numpy as np
import pytest
from golden_models import GOLDEN
from small_models import EVERYTHING, make_adata, make_model

import scdecode as sd
from scdecode.errors import (
    ConditionWarning,
    ConfigError,
    CountsError,
    CountsWarning,
    FormatError,
    InputError,
    NotTrainedError,
    OutputError,
    PointsError,
)

SAVED = GOLDEN / "saved"


def test_the_cells_beside_a_model(model, adata, tmp_path):
    model.save(tmp_path / "model", save_anndata=True, compression="gzip")
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "adata.h5ad",
        "model.json",
        "reference.safetensors",
        "weights.safetensors",
    ]
    opened = sd.SCVI.load(tmp_path / "model")
    assert opened.adata.obs_names.equals(adata.obs_names)
    assert np.array_equal(opened.get_latent_representation(), model.get_latent_representation())
    with pytest.raises(InputError, match="opened from files"):
        sd.load(tmp_path / "model").get_latent_representation()


def test_a_model_goes_on_with_its_cells(model, adata, tmp_path):
    model.save(tmp_path / "model")
    opened = sd.SCVI.load(tmp_path / "model", adata)
    before = {name: weight.clone() for name, weight in opened.vae.state_dict().items()}
    opened.train(2, progress=False)
    assert len(opened.history_table) == len(model.history_table) + 2
    assert any(not weight.equal(before[name]) for name, weight in opened.vae.state_dict().items())


@pytest.mark.parametrize("said", [True, False])
def test_a_model_of_scvi_tools_with_its_cells_knows_them(said):
    prefix = prefix_of("scvi_prefix_and_cells")
    adata = ad.read_h5ad(SAVED / "scvi_prefix_and_cells" / f"{prefix}adata.h5ad")
    model = sd.SCVI.load(SAVED / "scvi_prefix_and_cells", prefix=prefix if said else None)
    assert model.adata.n_obs == adata.n_obs == model.schema.n_cells
    assert model.schema.median_library == np.median(np.asarray(adata.X.sum(1)))
    expression = model.decode(model.get_latent_representation()[:5])
    assert expression.obs["supported"].all()
    assert expression.uns["scdecode"]["averaged_by"] == "training cells"
    model.train(1, progress=False)  # and it can be trained further
    assert len(model.reference().latent_rk) == len(model.train_indices)


def test_cells_without_counts_are_no_cells(tmp_path):
    shutil.copytree(SAVED / "scvi", tmp_path / "model")
    cells = make_adata(60, 10)
    cells.uns["_scvi_adata_minify_type"] = "latent_posterior_parameters"
    cells.write_h5ad(tmp_path / "model" / "adata.h5ad")
    with pytest.warns(CountsWarning, match="took its counts away, so the model is opened without cells"):
        assert sd.SCVI.load(tmp_path / "model").adata is None
    with pytest.raises(CountsError, match=r"took its counts away \(minify_adata\); pass the cells with their counts"):
        sd.SCVI.load(tmp_path / "model", cells)


def prefix_of(name):
    return next(path.name for path in (SAVED / name).iterdir() if path.name.endswith("model.pt")).removesuffix(
        "model.pt"
    )


def test_the_class_is_asked_for(tmp_path):
    with pytest.raises(FormatError, match=r"it holds a SCANVI, and SCVI.load was called; call scdecode.SCANVI.load"):
        sd.SCVI.load(SAVED / "scanvi")
    assert isinstance(sd.SCANVI.load(SAVED / "scanvi"), sd.SCANVI)


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ({"accelerator": "gpu"}, "a model is opened on the CPU"),
        ({"device": 0}, r"device: got 0 \(int\), expected a string"),
        ({"backup_url": "https://x"}, "download the directory first"),
    ],
)
def test_what_load_refuses(argument, remedy):
    with pytest.raises(InputError, match=remedy):
        sd.SCVI.load(SAVED / "scvi", **argument)


@pytest.mark.parametrize(
    ("argument", "remedy"),
    [
        ({"prefix": "a_"}, "put it into its name"),
        ({"save_kwargs": {"pickle_protocol": 5}}, "torch.save"),
        ({"compression": "gzip"}, "it is for save_anndata=True"),
    ],
)
def test_what_save_refuses(model, tmp_path, argument, remedy):
    with pytest.raises(InputError, match=remedy):
        model.save(tmp_path / "model", **argument)
    assert not (tmp_path / "model").exists()


def test_cells_that_are_not_there_are_not_saved(model, tmp_path):
    model.save(tmp_path / "model")
    with pytest.raises(InputError, match="save_anndata: this model was opened from files"):
        sd.load(tmp_path / "model").save(tmp_path / "other", save_anndata=True)


def test_cells_beside_a_model_are_not_lost(model, tmp_path):
    model.save(tmp_path / "model", save_anndata=True)
    with pytest.raises(OutputError, match=r"adata.h5ad.*which replacing it would remove"):
        model.save(tmp_path / "model", overwrite=True)
    model.save(tmp_path / "model", overwrite=True, save_anndata=True)


def test_an_untrained_model_takes_no_reference():
    model = make_model(make_adata(60, 10), epochs=0)
    with pytest.raises(NotTrainedError):
        model.attach_reference(np.zeros((5, 4)))


def test_a_reference_that_does_not_fit():
    model = sd.load(SAVED / "scvi")
    with pytest.raises(PointsError, match="latent"):
        model.attach_reference(np.zeros((5, 7)))
    others = make_adata(60, 10)
    others.var_names = [f"other_{name}" for name in others.var_names]
    others.obs = others.obs.assign(**dict.fromkeys(model.schema.columns.obs_keys, "a"))
    with pytest.raises(CountsError, match="genes are missing"):
        model.attach_reference(others)
    assert model.info()["n_reference"] == 0


def test_latents_alone_give_support_and_nothing_else(tmp_path):
    model = sd.load(SAVED / "scvi")
    latents = np.random.default_rng(0).normal(size=(30_000, model.config.n_latent)).astype(np.float32)
    model.attach_reference(latents)
    assert model.reference().latent_rk.shape == (20_000, model.config.n_latent)
    assert model.reference().codes_rc is None
    assert 20 < model.support(latents[:1000]).mean() < 80
    assert model.schema.conditions is None
    model.save(tmp_path / "model")
    opened = sd.load(tmp_path / "model")
    assert np.array_equal(opened.support(latents[:10]), model.support(latents[:10]))
    assert opened.reference().variance_rk is None


def test_another_reference_replaces_that_of_training():
    model = make_model(make_adata(200, 20), setup=EVERYTHING)
    before = model.reference()
    other = make_adata(150, 20, seed=1)
    model.attach_reference(other)
    assert len(model.reference().latent_rk) == 150 == model.schema.n_cells
    assert model.schema.conditions.n_cells_m.sum() == 150
    assert not np.array_equal(model.reference().latent_rk, before.latent_rk[:150])
    del other.obs["cell_type"]
    with pytest.raises(InputError, match="labels_key: 'cell_type'"):
        model.attach_reference(other)


def test_latents_in_an_anndata():
    model = sd.load(SAVED / "scvi")
    cells = ad.AnnData(obsm={"X_scVI": np.random.default_rng(0).normal(size=(50, model.config.n_latent))})
    model.attach_reference(cells, use_rep="X_scVI")
    assert len(model.reference().latent_rk) == 50


# -- in odd orders -----------------------------------------------------------------------------------------------------


def test_a_training_on_other_cells_knows_those(model, tmp_path):
    model.save(tmp_path / "model")
    others = make_adata(90, seed=5)
    others = others[others.obs["batch"] == others.obs["batch"].iloc[0]].copy()
    opened = sd.SCVI.load(tmp_path / "model", others)
    opened.train(1, progress=False)
    assert opened.schema.n_cells == others.n_obs == opened.schema.conditions.n_cells_m.sum()
    assert len(opened.schema.conditions.n_cells_m) == 1
    assert opened.schema.median_library == np.median(np.asarray(others.X.sum(1)))
    assert len(opened.reference().latent_rk) == len(opened.train_indices)


def test_latents_in_the_place_of_cells_take_their_conditions_away():
    model = make_model(make_adata(120, 20))
    z = model.get_latent_representation()
    model.attach_reference(z)
    with pytest.warns(ConditionWarning, match="plain average"):
        expression = model.decode(z[:3])
    assert expression.uns["scdecode"]["averaged_by"] == "levels, equally"
    assert model.schema.n_cells == 120


def test_a_checkpoint_of_other_first_weights_is_refused(tmp_path):
    adata = make_adata(120, 20)
    one, other = (make_model(adata, epochs=epochs) for epochs in (1, 2))
    for model, name in ((one, "one"), (other, "other")):
        model.save(tmp_path / name)
    first = sd.SCVI.load(tmp_path / "one", adata)
    first.train(1, checkpoint=tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=r"is of another training .*crc32 of the first weights"):
        sd.SCVI.load(tmp_path / "other", adata).train(2, checkpoint=tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="is of another training"):
        make_model(adata, epochs=0).train(2, checkpoint=tmp_path / "run", progress=False)
    again = sd.SCVI.load(tmp_path / "one", adata)
    again.train(2, checkpoint=tmp_path / "run", progress=False)  # it goes on
    first.train(2, checkpoint=tmp_path / "run2", progress=False)
    assert len(again.history_table) == 1 + 2


def test_who_trained_it_last(tmp_path):
    adata = make_adata(120, 20)
    model = make_model(adata, train={"lr": 5e-3, "batch_size": 64})
    model.save(tmp_path / "ours")
    assert model.info()["training"]["lr"] == 5e-3
    sd.convert(tmp_path / "ours", tmp_path / "theirs", to="scvi-tools")
    back = sd.load(tmp_path / "theirs")
    assert back.info()["training"] is None  # nobody knows any more
    assert back.info()["trained_by"] == f"scdecode {sd.__version__}"
    theirs = sd.load(SAVED / "scvi_prefix_and_cells")
    assert theirs.info()["training"] is None
    theirs = sd.SCVI.load(SAVED / "scvi_prefix_and_cells")
    before = theirs.info()["trained_by"]
    theirs.train(1, progress=False, lr=2e-3)
    assert theirs.info()["trained_by"] == f"{before}, then scdecode {sd.__version__}"
    assert theirs.info()["training"]["lr"] == 2e-3
    theirs.save(tmp_path / "both")
    sd.convert(tmp_path / "both", tmp_path / "there", to="scvi-tools")
    assert sd.load(tmp_path / "there").info()["trained_by"] == theirs.info()["trained_by"]


def test_cells_that_changed_are_not_saved(tmp_path):
    adata = make_adata(60, 10)
    model = make_model(adata)
    adata.X.data[:] = 1
    with pytest.raises(CountsError, match="changed after the model was made"):
        model.save(tmp_path / "model", save_anndata=True)
    assert not (tmp_path / "model").exists()


def test_a_reference_by_its_path(tmp_path):
    adata = make_adata(60, 10)
    model = make_model(adata)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    model.attach_reference(str(tmp_path / "cells.h5ad"))
    assert len(model.reference().latent_rk) == 60


def test_the_split_is_known_after_a_training(tmp_path):
    model = make_model(make_adata(100, 10))
    parts = (model.train_indices, model.validation_indices, model.test_indices)
    assert sorted(np.concatenate(parts)) == list(range(100)) and len(parts[0]) == 90
    model.save(tmp_path / "model")
    assert sd.load(tmp_path / "model").train_indices is None
