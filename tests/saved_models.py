"""The directories that scvi-tools saved, with what it computed; and directories that differ from them in one thing.

``tests/golden/make_saved.py`` made them, and ``make_versions.py`` those of other versions than 1.4.
"""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from anndata import AnnData
from golden_models import GOLDEN
from safetensors import safe_open
from torch import Tensor

import scdecode as sd

SAVED = GOLDEN / "saved"
NAMES = sorted(path.name for path in SAVED.iterdir()) if SAVED.is_dir() else []
OTHER_VERSIONS = Path(os.environ.get("SCDECODE_VERSIONS", GOLDEN / "saved_versions"))
"""Or all that ``make_versions.py --all --out FOLDER`` makes, where the environment says so."""

PLAIN = ("scvi", "scvi_no_batch")


@dataclass(frozen=True, eq=False)
class Saved:
    """One directory; golden/README.md lists the tensors."""

    path: Path
    said: dict[str, Any]  # what the model is, by name, from scvi-tools' registry
    tensors: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    @property
    def prefix(self) -> str | None:
        return self.said["prefix"]

    @property
    def model_file(self) -> Path:
        return self.path / f"{self.prefix or ''}model.pt"

    def open(self) -> sd.SCVI:
        """By scdecode."""
        return sd.load(self.path, prefix=self.prefix)

    def conditions(self) -> list[dict[str, Any]]:
        """The arguments of ``decode`` for each row of ``z_codes``."""
        said, keys = self.said, list(self.said["categorical"])
        rows = []
        for codes, continuous in zip(self["z_codes"].tolist(), self["z_cont"].tolist(), strict=True):
            arguments: dict[str, Any] = {}
            if said["batch"] is not None:
                arguments["batch"] = str(said["batch"][codes[0]])
            if keys:
                arguments["categorical"] = {
                    key: str(said["categorical"][key][code]) for key, code in zip(keys, codes[1:-1], strict=True)
                }
            if continuous:
                names = said["setup"]["continuous_covariate_keys"]
                arguments["continuous"] = dict(zip(names, continuous, strict=True))
            if said["options"].get("dispersion") == "gene-label":
                arguments["labels"] = str(said["labels"][codes[-1]])
            rows.append(arguments)
        return rows

    def cells(self) -> AnnData:
        """The cells that were encoded, as an AnnData with the columns that the model was set up with."""
        said, setup, columns = self.said, self.said["setup"], {}
        levels = {setup.get("batch_key"): ("batch", said["batch"]), setup.get("labels_key"): ("labels", said["labels"])}
        for key, (tensor, values) in levels.items():
            if key is not None:
                columns[key] = [values[code] for code in self[tensor].reshape(-1).tolist()]
        for j, (key, values) in enumerate(said["categorical"].items()):
            columns[key] = [values[int(code)] for code in self["extra_categorical_covs"][:, j].tolist()]
        for j, key in enumerate(setup.get("continuous_covariate_keys", [])):
            columns[key] = self["extra_continuous_covs"][:, j].numpy()
        if "size_factor_key" in setup:
            columns[setup["size_factor_key"]] = self["size_factor"].reshape(-1).numpy()
        adata = AnnData(self["x"].numpy().copy())
        adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]
        adata.var_names = said["genes"]
        for key, values in columns.items():
            adata.obs[key] = values
        if "layer" in setup:
            adata.layers[setup["layer"]] = adata.X.copy()
            adata.X = adata.X * 0 + 1.0
        return adata


def read_saved(name: str, folder: Path = SAVED) -> Saved:
    """Read what stands beside a saved model."""
    with safe_open(folder / name / "expected.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        said = json.loads(file.metadata()["said"])
    return Saved(folder / name, said, tensors)


def content_of(name: str) -> dict[str, Any]:
    """What ``model.pt`` holds, as scvi-tools itself would read it; the file is ours, so that it may be unpickled."""
    return torch.load(read_saved(name).model_file, map_location="cpu", weights_only=False)


def changed(name: str, path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A directory like a saved one, but for what ``change`` does to the content of ``model.pt``."""
    content = content_of(name)
    change(content)
    path.mkdir()
    torch.save(content, path / "model.pt")
    return path


def legacy(name: str, path: Path, *, registry: bool = False) -> Path:
    """A directory in the layout of 0.8: three files, flat ``init_params_`` and ``scvi_setup_dict_``.

    With ``registry``, that of 0.15 and 0.16 before its first release: three files, and a registry of today.
    """
    import pickle

    content = content_of(name)
    attributes = dict(content["attr_dict"])
    if not registry:
        attributes["scvi_setup_dict_"] = _setup_dict(attributes.pop("registry_"))
        nested = attributes["init_params_"]
        kwargs = {key: value for part in nested["kwargs"].values() for key, value in part.items()}
        attributes["init_params_"] = {**nested["non_kwargs"], "use_cuda": False, "model_kwargs": kwargs}
        attributes["history_"] = {name: table[name].tolist() for name, table in attributes["history_"].items()}
    path.mkdir()
    torch.save(content["model_state_dict"], path / "model_params.pt", _use_new_zipfile_serialization=registry)
    (path / "attr.pkl").write_bytes(pickle.dumps(attributes, protocol=4))
    (path / "var_names.csv").write_text("".join(f"{name}\n" for name in content["var_names"]))
    return path


def _setup_dict(registry: dict[str, Any]) -> dict[str, Any]:
    """A registry as ``setup_anndata`` of 0.8 to 0.14 kept it."""
    fields = registry["field_registries"]
    old: dict[str, Any] = {
        "scvi_version": "0.8.0",
        "summary_stats": {"n_cells": fields["X"]["summary_stats"]["n_cells"]},
        "data_registry": {"X": fields["X"]["data_registry"]},
        "categorical_mappings": {
            f"_scvi_{name}": {
                "original_key": fields[name]["state_registry"]["original_key"],
                "mapping": fields[name]["state_registry"]["categorical_mapping"],
            }
            for name in ("batch", "labels")
        },
    }
    categorical = fields["extra_categorical_covs"]["state_registry"]
    if categorical:
        old["extra_categoricals"] = {"mappings": categorical["mappings"], "keys": categorical["field_keys"]}
    continuous = fields["extra_continuous_covs"]["state_registry"]
    if continuous:
        old["extra_continuous_keys"] = continuous["columns"]
    return old


def copy_of(name: str, path: Path) -> Path:
    """A directory that may be changed."""
    shutil.copytree(SAVED / name, path)
    return path
