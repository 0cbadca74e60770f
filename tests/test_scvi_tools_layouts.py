"""Model directories of scvi-tools as other versions wrote them, and such as are wrong: opened, or refused by name."""

import pickle
import re
import shutil

import numpy as np
import pytest
import torch
from saved_models import NAMES, changed, content_of, copy_of, legacy, read_saved

import scdecode as sd
from scdecode.errors import (
    ConditionWarning,
    CorruptModelError,
    ForeignModelError,
    FormatError,
    NotTrainedError,
    UnsafeModelError,
)
from scdecode.formats import scvi_tools
from scdecode.formats.reading import read_model

HEAD = "decoder.px_scale_decoder.0.weight"


def registry_in(content):
    return content["attr_dict"]["registry_"]


def fields_in(content):
    return registry_in(content)["field_registries"]


def assert_same(one, other, *, names=True):
    """The same numbers, options and, unless they are lost, names."""
    assert one.class_name == other.class_name and one.config == other.config
    assert one.schema.genes == other.schema.genes
    if names:
        assert (one.schema.batch, one.schema.labels, one.schema.categorical, one.schema.continuous) == (
            other.schema.batch,
            other.schema.labels,
            other.schema.categorical,
            other.schema.continuous,
        )
    weights = other.vae.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in one.vae.state_dict().items())
    for name, values in one.summary["history"].items():
        known = [value for value in other.summary["history"][name] if not np.isnan(value)]
        assert known == [value for value in values if not np.isnan(value)]


# -- older and newer versions ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registry", [False, True], ids=["setup_dict", "registry"])
@pytest.mark.parametrize("name", ["scvi", "scvi_no_batch", "scvi_everything", "scvi_embedding", "scvi_size_factor"])
def test_three_files(name, registry, tmp_path):
    if name == "scvi_size_factor" and not registry:
        pytest.skip("there were no size factors then")
    saved = read_saved(name)
    stored = scvi_tools.read(legacy(name, tmp_path / "model", registry=registry))
    before = scvi_tools.read(saved.path)
    assert_same(before, stored)
    assert stored.schema.n_cells == before.schema.n_cells == 60
    assert stored.schema.columns == before.schema.columns
    assert stored.origin.version == ("1.4.2" if registry else "0.8.0")
    decoded = sd.load(tmp_path / "model").decode(
        saved["z"], quantity="scale", library_size=saved["z_library"].numpy(), **saved.conditions()[-1]
    )
    np.testing.assert_allclose(decoded.X, saved["scale"][-1], rtol=1e-5)


def test_three_files_with_a_prefix(tmp_path):
    path = legacy("scvi", tmp_path / "model")
    for file in list(path.iterdir()):
        file.rename(path / f"old_{file.name}")
    assert_same(read_model(read_saved("scvi").path), read_model(path, prefix="old_"))


def older_registry(content):
    """0.15 and 0.16: it does not say by which method the cells were set up."""
    del registry_in(content)["setup_method_name"]
    registry_in(content)["scvi_version"] = "0.16.1"


def names_by_modality(content):
    """1.2: MuData has the names of each modality."""
    content["var_names"] = {"rna": content["var_names"]}


def names_of_another_modality_too(content):
    content["var_names"] = {"protein": np.array(["CD3", "CD4"], dtype=object), "rna": content["var_names"]}


def names_in_the_registry_alone(content):
    content["var_names"] = None


def names_beside_the_weights_alone(content):
    del fields_in(content)["X"]["state_registry"]["column_names"]


def names_as_a_list(content):
    content["var_names"] = list(content["var_names"])


def no_store_of_pyro(content):
    del content["model_state_dict"]["pyro_param_store"]


def a_store_of_pyro(content):
    """1.3: what is no tensor stands among the weights."""
    content["model_state_dict"]["pyro_param_store"] = {"params": {}, "constraints": {}}


def a_plain_dict_of_weights(content):
    content["model_state_dict"] = dict(content["model_state_dict"])


def flat_options(content):
    nested = content["attr_dict"]["init_params_"]
    flat = {key: value for part in nested["kwargs"].values() for key, value in part.items()}
    content["attr_dict"]["init_params_"] = nested["non_kwargs"] | {"model_kwargs": flat, "use_gpu": None}


def of_a_datamodule(content):
    """1.3.1: its attributes without the underscore, no cells, and levels as a mapping to codes, in any order."""
    content["attr_dict"] |= {"n_batch": 3, "n_labels": 1, "batch_labels": {"d10": 0, "d2": 1, "d7": 2}}
    content["attr_dict"]["init_params_"]["non_kwargs"] |= {"adata": None, "registry": {"a": 1}, "datamodule": None}
    registry = registry_in(content)
    registry["setup_method_name"] = "setup_datamodule"
    registry["setup_args"]["samples_key"] = None
    registry["field_registries"]["batch"]["state_registry"]["categorical_mapping"] = {"d7": 2, "d10": 0, "d2": 1}
    registry["field_registries"]["sample"] = {"data_registry": {}, "state_registry": {"categorical_mapping": None}}
    if registry["model_name"] == "SCVI":  # it names an unlabelled category, whether there are labels or not
        labels = {"categorical_mapping": None, "original_key": "label", "unlabeled_category": "Unknown"}
        registry["field_registries"]["labels"]["state_registry"] = labels


def in_double_precision(content):
    weights = content["model_state_dict"]
    for name, tensor in weights.items():
        if isinstance(tensor, torch.Tensor) and tensor.is_floating_point():
            weights[name] = tensor.double()


def no_version(content):
    del registry_in(content)["scvi_version"]


LAYOUTS = [
    older_registry,
    names_by_modality,
    names_of_another_modality_too,
    names_in_the_registry_alone,
    names_beside_the_weights_alone,
    names_as_a_list,
    no_store_of_pyro,
    a_store_of_pyro,
    a_plain_dict_of_weights,
    flat_options,
    of_a_datamodule,
    in_double_precision,
    no_version,
]


@pytest.mark.parametrize("name", ["scvi", "scanvi"])
@pytest.mark.parametrize("change", LAYOUTS, ids=lambda change: change.__name__)
def test_another_layout(change, name, tmp_path):
    if change is names_in_the_registry_alone and name == "scanvi":
        pytest.skip("one is enough")
    stored = scvi_tools.read(changed(name, tmp_path / "model", change))
    assert_same(scvi_tools.read(read_saved(name).path), stored)


def test_no_genes_are_numbered(tmp_path):
    def change(content):
        content["var_names"] = None
        del fields_in(content)["X"]["state_registry"]["column_names"]

    with pytest.warns(ConditionWarning, match=r"gene_0.*gene_19"):
        stored = scvi_tools.read(changed("scvi", tmp_path / "model", change))
    assert stored.schema.genes == tuple(f"gene_{i}" for i in range(20))


def without_a_registry(content):
    del content["attr_dict"]["registry_"]


def without_a_batch(content):
    del fields_in(content)["batch"]["state_registry"]["categorical_mapping"]


@pytest.mark.parametrize("change", [without_a_registry, without_a_batch], ids=lambda change: change.__name__)
def test_no_levels_are_numbered(change, tmp_path):
    saved = read_saved("scvi")
    with pytest.warns(ConditionWarning, match=r"does not name the 3 levels of 'batch'|levels of 'donor'"):
        model = sd.load(changed("scvi", tmp_path / "model", change))
    assert model.schema.batch.names == ("0", "1", "2") and model.schema.batch.kind == "int"
    for code, expected in enumerate(saved["scale"]):
        decoded = model.decode(saved["z"], quantity="scale", batch=str(code))
        np.testing.assert_allclose(decoded.X, expected, rtol=1e-5)


def test_no_history(tmp_path):
    def change(content):
        content["attr_dict"]["history_"] = None

    model = sd.load(changed("scvi", tmp_path / "model", change))
    assert model.history == {} and model.is_trained


def test_a_learned_library_whose_prior_was_not_kept(tmp_path):
    """Until 0.9 or so it was kept with the cells."""

    def change(content):
        for name in ("library_log_means", "library_log_vars"):
            del content["model_state_dict"][name]

    saved = read_saved("scvi_everything")
    with pytest.warns(ConditionWarning, match="total counts are taken"):
        model = sd.load(changed("scvi_everything", tmp_path / "model", change))
    assert not model.config.learns_library
    decoded = model.decode(saved["z"], quantity="scale", **saved.conditions()[7])
    np.testing.assert_allclose(decoded.X, saved["scale"][7], rtol=1e-5)


def test_one_that_is_not_trained(tmp_path):
    def change(content):
        content["attr_dict"]["is_trained_"] = False

    model = sd.load(changed("scvi", tmp_path / "model", change))
    assert not model.is_trained and "not trained" in repr(model)
    with pytest.raises(NotTrainedError):
        model.decode([[0.0, 0.0, 0.0]])


# -- wrong ones --------------------------------------------------------------------------------------------------------


def fewer_genes(content):
    content["var_names"] = content["var_names"][:-1]
    fields_in(content)["X"]["state_registry"]["column_names"] = content["var_names"]


def a_gene_twice(content):
    names = content["var_names"].copy()
    names[1] = names[0]
    content["var_names"] = names


def more_levels(content):
    fields_in(content)["batch"]["state_registry"]["categorical_mapping"] = np.array(list("abcd"), dtype=object)


def a_level_twice(content):
    fields_in(content)["batch"]["state_registry"]["categorical_mapping"] = np.array(list("aab"), dtype=object)


def levels_that_are_no_names(content):
    fields_in(content)["batch"]["state_registry"]["categorical_mapping"] = [None, (1, 2), b"c"]


def another_width(content):
    content["attr_dict"]["init_params_"]["non_kwargs"]["n_hidden"] = 128


def another_depth(content):
    content["attr_dict"]["init_params_"]["non_kwargs"]["n_layers"] = 2


def another_dispersion(content):
    content["attr_dict"]["init_params_"]["non_kwargs"]["dispersion"] = "gene-batch"


def an_unknown_likelihood(content):
    content["attr_dict"]["init_params_"]["non_kwargs"]["gene_likelihood"] = "binomial"


def weights_that_are_no_numbers(content):
    content["model_state_dict"][HEAD][3, 1] = torch.nan


def infinite_weights(content):
    content["model_state_dict"]["px_r"][0] = torch.inf


def a_weight_of_another_shape(content):
    weights = content["model_state_dict"]
    weights[HEAD] = weights[HEAD][:, :-1].clone()


def a_weight_too_few(content):
    del content["model_state_dict"]["decoder.px_dropout_decoder.bias"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (fewer_genes, "names 19 genes, and its weights are of 20"),
        (a_gene_twice, "names a gene twice"),
        (more_levels, "'donor' has 4 levels in its registry and 3 in its weights"),
        (a_level_twice, "levels of 'donor' are no names, each once"),
        (levels_that_are_no_names, "levels of 'donor' are no names"),
        (another_width, "n_hidden is 128 in init_params_ and 8 in the weights"),
        (another_depth, "n_layers is 2 in init_params_ and 1 in the weights"),
        (another_dispersion, "dispersion is 'gene-batch' in init_params_ and 'gene' in the weights"),
        (an_unknown_likelihood, "gene_likelihood.*binomial"),
        (weights_that_are_no_numbers, r"decoder\.scale\.weight has NaN"),
        (infinite_weights, "log_theta has NaN or infinite"),
        (a_weight_of_another_shape, r"decoder\.scale\.weight is float32 \(20, 7\), float32 \(20, 8\) was expected"),
        (a_weight_too_few, r"decoder\.zi_logits\.bias is missing"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_parts_that_do_not_fit(change, message, tmp_path):
    path = changed("scvi", tmp_path / "model", change)
    with pytest.raises(CorruptModelError, match=message) as error:
        sd.load(path)
    assert str(path) in str(error.value)


def test_parts_of_a_classifier_that_do_not_fit(tmp_path):
    def another_kind(content):
        content["attr_dict"]["init_params_"]["non_kwargs"]["linear_classifier"] = True

    def not_last(content):
        state = fields_in(content)["labels"]["state_registry"]
        state["categorical_mapping"] = state["categorical_mapping"][::-1].copy()

    def one_class_more(content):
        state = fields_in(content)["labels"]["state_registry"]
        state["categorical_mapping"] = np.array(["B", *state["categorical_mapping"]], dtype=object)

    for change, message in (
        (another_kind, "linear_classifier"),
        (not_last, "'Astray' is not the last"),
        (one_class_more, "classification|classifier|y_prior"),
    ):
        with pytest.raises(CorruptModelError, match=message):
            sd.load(changed("scanvi", tmp_path / change.__name__, change))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("log_variational", False),
        ("var_activation", "softplus"),
        ("extra_decoder_kwargs", {"activation_fn": "relu"}),
        ("extra_encoder_kwargs", {"inject_covariates": False}),
        ("use_batch_embedding_of_tomorrow", 3),
    ],
)
def test_an_option_that_is_not_offered(option, value, tmp_path):
    def change(content):
        content["attr_dict"]["init_params_"]["kwargs"]["kwargs"][option] = value

    with pytest.raises(ForeignModelError, match=f"{option}=.*does not offer"):
        sd.load(changed("scvi", tmp_path / "model", change))


@pytest.mark.parametrize(
    ("option", "value"), [("log_variational", True), ("var_activation", None), ("extra_decoder_kwargs", {})]
)
def test_an_option_that_changes_nothing(option, value, tmp_path):
    def change(content):
        content["attr_dict"]["init_params_"]["kwargs"]["kwargs"][option] = value

    assert sd.load(changed("scvi", tmp_path / "model", change)).is_trained


def test_an_unknown_weight(tmp_path):
    def change(content):
        content["model_state_dict"]["decoder.new_head.weight"] = torch.zeros(3)

    with pytest.raises(ForeignModelError, match=r"decoder\.new_head"):
        sd.load(changed("scvi", tmp_path / "model", change))


@pytest.mark.parametrize("name", ["PEAKVI", "TOTALVI", "SCANVI", "LinearSCVI"])
def test_another_class(name, tmp_path):
    def change(content):
        registry_in(content)["model_name"] = name

    with pytest.raises(ForeignModelError, match=name):
        sd.load(changed("scvi", tmp_path / "model", change))


def test_a_class_without_weights_that_are_known(tmp_path):
    def change(content):
        weights = content["model_state_dict"]
        content["model_state_dict"] = {"new." + name: tensor for name, tensor in weights.items()}

    with pytest.raises(ForeignModelError, match=r"says that it is a SCVI of scvi-tools 1\.4\.2"):
        sd.load(changed("scvi", tmp_path / "model", change))


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], {"model_state_dict": 3, "attr_dict": 4}], ids=str)
def test_a_file_of_something_else(content, tmp_path):
    torch.save(content, tmp_path / "model.pt")
    with pytest.raises(ForeignModelError, match=r"not what.* scvi-tools saves"):
        sd.load(tmp_path)


class _Runs:
    """What runs something where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return shutil.rmtree, (self.path,)


def test_a_file_that_asks_for_code(tmp_path):
    victim = tmp_path / "victim"
    victim.mkdir()

    def change(content):
        content["attr_dict"]["extra_"] = _Runs(victim)

    with pytest.raises(UnsafeModelError, match="rmtree"):
        sd.load(changed("scvi", tmp_path / "model", change))
    path = legacy("scvi", tmp_path / "old")
    (path / "attr.pkl").write_bytes(pickle.dumps({"registry_": _Runs(victim)}))
    with pytest.raises(UnsafeModelError, match="rmtree"):
        sd.load(path)
    assert victim.is_dir()


# -- files that are not there ------------------------------------------------------------------------------------------


def test_three_files_of_which_one_is_missing(tmp_path):
    path = legacy("scvi", tmp_path / "model")
    (path / "var_names.csv").unlink()
    with pytest.warns(ConditionWarning, match="does not name its genes"):
        sd.load(path)
    (path / "attr.pkl").unlink()
    with pytest.raises(CorruptModelError, match=r"model_params\.pt but no attr\.pkl"):
        sd.load(path)


def test_nothing_there(tmp_path):
    with pytest.raises(FormatError, match="no such directory"):
        sd.load(tmp_path / "nowhere")
    with pytest.raises(FormatError, match="was expected"):
        sd.load(tmp_path)
    for read in (scvi_tools.read, lambda path: scvi_tools.read(path, prefix="a_")):
        with pytest.raises(FormatError, match=r"no (a_)?model\.pt"):
            read(tmp_path)


def test_a_wrong_prefix(tmp_path):
    path = copy_of("scvi_prefix_and_cells", tmp_path / "model")
    with pytest.raises(FormatError, match=r"no other_model\.pt .*one of \['kept_'\]"):
        sd.load(path, prefix="other_")
    with pytest.raises(FormatError, match=r"holds .*'model\.pt'"):
        sd.load(read_saved("scvi").path, prefix="other_")
    read_saved("scvi").open().save(tmp_path / "ours")
    with pytest.raises(FormatError, match=r"'other_' came, but .* leave it out"):
        sd.load(tmp_path / "ours", prefix="other_")


def test_the_only_prefix_need_not_be_said(tmp_path):
    path = copy_of("scvi_prefix_and_cells", tmp_path / "model")
    assert_same(read_model(path, prefix="kept_"), read_model(path))
    shutil.copy(path / "kept_model.pt", path / "other_model.pt")
    with pytest.raises(FormatError, match=r"'kept_'.*'other_'"):
        sd.load(path)


def test_prefixes():
    assert scvi_tools.prefixes(read_saved("scvi_prefix_and_cells").path) == ["kept_"]
    assert scvi_tools.prefixes(read_saved("scvi").path) == []


@pytest.mark.parametrize("name", NAMES)
def test_a_truncated_file(name, tmp_path):
    saved = read_saved(name)
    path = copy_of(name, tmp_path / "model")
    file = path / saved.model_file.name
    data = file.read_bytes()
    for share in (0, 0.3, 0.9):
        file.write_bytes(data[: int(share * len(data))])
        with pytest.raises(CorruptModelError, match=re.escape(str(file))):
            sd.load(path, prefix=saved.prefix)


def test_every_case_is_of_a_file_that_opens(tmp_path):
    """The changes above are of a file that opens as it is: written again by torch, and unchanged."""
    stored = scvi_tools.read(changed("scvi", tmp_path / "model", lambda content: None))
    assert_same(scvi_tools.read(read_saved("scvi").path), stored)
    assert set(content_of("scvi")) == {"model_state_dict", "var_names", "attr_dict"}
