"""Make the saved models: small directories that the real scvi-tools saved, each with what it computes beside it.

Recipe (one command; it needs scvi-tools 1.4.2 and what it installs; 20 seconds on one core)::

    python tests/golden/make_saved.py

Each entry of ``CASES`` becomes one directory ``saved/<case>``: what ``model.save(...)`` of scvi-tools wrote, and
``expected.safetensors`` with what that model computes of fixed latent points, in every combination of its conditions,
and of some of its cells. README.md lists the tensors. The files of scvi-tools hold an identifier of the run, so two
runs give the same numbers and not the same bytes. ``--out DIRECTORY`` writes elsewhere, to compare.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import shutil
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from make_golden import write

N_CELLS, N_GENES, N_ENCODED, N_DECODED = 60, 20, 6, 3
QUIET = {"accelerator": "cpu", "enable_progress_bar": False}  # the logger stays, as the history is what it heard


@dataclass(frozen=True)
class Case:
    """A model, and how it is saved."""

    setup: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    kind: str = "SCVI"
    save: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    from_scvi: dict[str, Any] | None = None  # the options of from_scvi_model


BATCH = {"batch_key": "donor"}
LABELS = {"labels_key": "cell_type", "unlabeled_category": "Astray"}
CASES = {
    "scvi": Case(BATCH, train={"check_val_every_n_epoch": 2, "train_size": 0.8}),
    "scvi_no_batch": Case(options={"gene_likelihood": "nb"}),
    "scvi_everything": Case(
        {
            **BATCH,
            "labels_key": "cell_type",
            "categorical_covariate_keys": ["chem", "sex"],
            "continuous_covariate_keys": ["pct", "age"],
        },
        {
            "dispersion": "gene-label",
            "latent_distribution": "ln",
            "use_observed_lib_size": False,
            "n_layers": 2,
            "encode_covariates": True,
            "deeply_inject_covariates": False,
            "use_layer_norm": "both",
            "use_batch_norm": "encoder",
        },
    ),
    "scvi_size_factor": Case(
        {**BATCH, "layer": "counts", "size_factor_key": "factor"},
        {"gene_likelihood": "nb", "dispersion": "gene-batch"},
    ),
    "scvi_embedding": Case(
        {"batch_key": "run", "categorical_covariate_keys": ["treated"]},
        {
            "gene_likelihood": "poisson",
            "batch_representation": "embedding",
            "batch_embedding_kwargs": {"embedding_dim": 2},
            "encode_covariates": True,
        },
    ),
    "scvi_gene_cell": Case(
        BATCH, {"gene_likelihood": "nb", "dispersion": "gene-cell", "use_batch_norm": "decoder", "dropout_rate": 0.2}
    ),
    "linear_scvi": Case(BATCH, kind="LinearSCVI"),
    "scanvi": Case({**BATCH, **LABELS, "continuous_covariate_keys": ["age"]}, {"n_layers": 2}, kind="SCANVI"),
    "scanvi_from_scvi": Case(
        {**BATCH, "labels_key": "cell_type"},
        {"gene_likelihood": "nb"},
        kind="SCANVI",
        from_scvi={"unlabeled_category": "Astray", "linear_classifier": True},
    ),
    "scvi_prefix_and_cells": Case(
        {"batch_key": "run", "labels_key": "cell_type"},
        {"gene_likelihood": "normal"},
        save={"prefix": "kept_", "save_anndata": True},
    ),
}
"""Each with as much as the others do not have. Small sizes are filled in: see ``train``."""

LEVELS = {
    # neither the unlabelled category nor "none" is the label of a cell: scvi-tools then counts all five as classes
    "scanvi_unused_labels": Case(
        {**BATCH, "labels_key": "kind", "unlabeled_category": "Astray"}, {"gene_likelihood": "nb"}, kind="SCANVI"
    ),
    "scvi_dates": Case(
        {"batch_key": "month", "categorical_covariate_keys": ["day", "span", "third"]},
        {"gene_likelihood": "poisson"},
    ),
}
"""Levels that are neither text nor plain numbers, or are no cell's; they go to ``saved_levels``."""


def make_cells() -> anndata.AnnData:
    """Make the cells: levels that are text, whole numbers, fractions and booleans, in no particular order."""
    rng = np.random.default_rng(20180031)
    kind_n, donor_n = rng.permutation(np.arange(N_CELLS) % 3), rng.permutation(np.arange(N_CELLS) % 3)
    programs_lg = rng.gamma(0.8, size=(3, N_GENES)) + 0.05
    effects_bg = np.exp(rng.normal(0, 0.4, (3, N_GENES)))
    rate_ng = programs_lg[kind_n] * effects_bg[donor_n] * rng.gamma(3, 1 / 3, (N_CELLS, N_GENES))
    x_ng = rng.poisson(rate_ng / rate_ng.sum(1, keepdims=True) * rng.lognormal(4.5, 0.5, (N_CELLS, 1)))
    x_ng[:, 0] += 1  # no empty cell
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(N_CELLS)])
    obs["donor"] = np.array(["d7", "d10", "d2"])[donor_n]
    obs["run"] = np.array([10, 2, 9])[donor_n]
    obs["cell_type"] = np.array(["NK", "Astray", "T"])[kind_n]
    obs["chem"] = rng.permutation(np.array([3, 1, 2])[np.arange(N_CELLS) % 3])
    obs["sex"] = rng.permutation(np.array(["male", "female"])[np.arange(N_CELLS) % 2])
    obs["treated"] = rng.permutation(np.array([True, False])[np.arange(N_CELLS) % 2])
    obs["age"] = rng.uniform(20, 80, N_CELLS).round()
    obs["pct"] = rng.random(N_CELLS)
    obs["factor"] = x_ng.sum(1) / x_ng.sum(1).mean()
    obs["kind"] = pd.Categorical(np.array(["NK", "B", "T"])[kind_n], categories=["T", "Astray", "NK", "none", "B"])
    obs["month"] = pd.period_range("2024-01", periods=3, freq="M")[donor_n]
    obs["day"] = pd.to_datetime(["2024-01-31", "2024-02-29"])[kind_n % 2]
    obs["span"] = pd.cut(np.arange(N_CELLS), [-1, 29, 59])
    obs["third"] = np.array([1 / 3, 2 / 3], dtype=np.float32)[donor_n // 2]
    var = pd.DataFrame(index=[f"gene_{i}" for i in rng.permutation(N_GENES)])
    adata = anndata.AnnData(x_ng.astype(np.float32), obs=obs, var=var)
    adata.layers["counts"] = adata.X.copy()
    return adata


def train(case: Case, cells: anndata.AnnData) -> Any:
    """Train the model of a case."""
    first = scvi.model.SCVI if case.from_scvi is not None else getattr(scvi.model, case.kind)
    first.setup_anndata(cells, **case.setup)
    model = first(cells, **{"n_hidden": 8, "n_latent": 3} | case.options)
    how = {"max_epochs": 4, "batch_size": 20, "plan_kwargs": {"lr": 0.02}, **QUIET}
    model.train(**{"train_size": 1.0} | how | case.train)
    if case.from_scvi is not None:
        model = scvi.model.SCANVI.from_scvi_model(model, **case.from_scvi)
        model.train(**{"train_size": 1.0} | how)
    model.module.eval()
    return model


def describe(case: Case, model: Any) -> dict[str, Any]:
    """Say by name what the model is, from scvi-tools' own registry: what a reader of the files has to find."""
    manager = model.adata_manager

    def level(value: Any) -> Any:
        if isinstance(value, np.datetime64 | np.timedelta64):
            return str(pd.Timestamp(value) if isinstance(value, np.datetime64) else pd.Timedelta(value))
        if isinstance(value, np.float32):
            return float(str(value))  # the shortest that rounds to it
        value = value.item() if isinstance(value, np.generic) else value
        return value if isinstance(value, str | int | float) else str(value)

    def levels(values: Any) -> list[Any]:
        return [level(value) for value in values]

    def category(field: str, key: str) -> Any:
        if case.setup.get(key) is None:
            return None
        return levels(manager.get_state_registry(field).categorical_mapping)

    keys = case.setup.get("categorical_covariate_keys", [])
    mappings = manager.get_state_registry("extra_categorical_covs").mappings if keys else {}
    return {
        "class": case.kind,
        "setup": case.setup | (case.from_scvi or {}),
        "options": {"n_hidden": 8, "n_latent": 3} | case.options,
        "prefix": case.save.get("prefix"),
        "genes": [str(name) for name in model.adata.var_names],
        "batch": category("batch", "batch_key"),
        "labels": category("labels", "labels_key"),
        "categorical": {key: levels(mappings[key]) for key in keys},
        "n_cells": model.adata.n_obs,
        "history": {  # epoch and value: not every quantity is known of every epoch
            name: [[int(epoch), float(value)] for epoch, value in table.iloc[:, 0].items()]
            for name, table in model.history.items()
        },
    }


def inputs(case: Case, model: Any, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Points and library sizes, with every combination of the conditions, a row of ``z_codes`` each."""
    said = describe(case, model)
    sizes = [len(said["batch"] or [0]), *map(len, said["categorical"].values()), len(said["labels"] or [0])]
    combinations = torch.tensor(list(itertools.product(*map(range, sizes))))
    if model.module.dispersion != "gene-label":  # the label changes nothing then
        combinations = combinations[combinations[:, -1] == 0]
    z_pk = torch.from_numpy(rng.normal(0, 1.5, (N_DECODED, 3))).float()
    n_continuous = len(case.setup.get("continuous_covariate_keys", []))
    low, high = (0.3, 3.0) if "size_factor_key" in case.setup else (100, 20_000)
    return {
        "z": model.module.z_encoder.z_transformation(z_pk),
        "z_library": torch.from_numpy(np.exp(rng.uniform(np.log(low), np.log(high), N_DECODED))).float(),
        "z_codes": combinations,
        "z_cont": torch.from_numpy(rng.normal(0, 2, (len(combinations), n_continuous))).float(),
    }


def decoded(model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Decode all points in each combination of conditions: ``(combinations, points, genes)``."""
    log_library = given["z_library"].log()[:, None]
    found: dict[str, list[torch.Tensor]] = {}
    for codes, continuous in zip(given["z_codes"], given["z_cont"], strict=True):
        full = codes.expand(N_DECODED, -1)
        px = model.module.generative(
            z=given["z"],
            library=log_library,
            size_factor=log_library,  # read in place of the library by models that have one
            batch_index=full[:, :1],
            y=full[:, -1:],
            cat_covs=full[:, 1:-1] if full.shape[1] > 2 else None,
            cont_covs=continuous.expand(N_DECODED, -1) if len(continuous) else None,
        )["px"]
        likelihood = model.module.gene_likelihood
        rate = px.loc if likelihood == "normal" else px.rate if likelihood == "poisson" else px.mu
        quantities = {"scale": px.get_normalized("scale"), "rate": rate, "mean": px.mean}
        if likelihood != "poisson":
            quantities["theta"] = (px.scale if likelihood == "normal" else px.theta).expand_as(rate)
        if likelihood == "zinb":
            quantities["pi"] = px.zi_probs
        for name, value in quantities.items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in found.items()}


def encoded(case: Case, model: Any, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Encode some cells; of a SCANVI, classify them too; of a LinearSCVI, its loadings."""
    rows = np.sort(rng.choice(N_CELLS, N_ENCODED, replace=False))
    (tensors,) = model._make_data_loader(model.adata, indices=rows, batch_size=N_ENCODED)
    inference = model.module.inference(
        tensors["X"],
        batch_index=tensors["batch"],
        cat_covs=tensors.get("extra_categorical_covs"),
        cont_covs=tensors.get("extra_continuous_covs"),
    )
    found = {
        "x": tensors["X"].float(),
        "rows": torch.from_numpy(rows),
        "qz_mean": inference["qz"].loc,
        "qz_var": inference["qz"].variance,
    }
    if inference["ql"] is not None:
        found |= {"ql_mean": inference["ql"].loc, "ql_var": inference["ql"].variance}
    for name in ("extra_categorical_covs", "extra_continuous_covs", "size_factor", "batch", "labels"):
        if tensors.get(name) is not None:
            found[name] = tensors[name]
    if case.kind == "SCANVI":
        found["probabilities"] = torch.from_numpy(model.predict(indices=rows, soft=True).to_numpy())
    if case.kind == "LinearSCVI":
        found["loadings"] = torch.from_numpy(model.get_loadings().to_numpy())
    return found


def main() -> None:
    """Make every directory."""
    parser = argparse.ArgumentParser(description="Train small models with scvi-tools and save them.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="where to write saved, saved_levels")
    into: Path = parser.parse_args().out
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    for folder in ("saved", "saved_levels"):
        shutil.rmtree(into / folder, ignore_errors=True)
    for name, case in (CASES | LEVELS).items():
        out = into / ("saved" if name in CASES else "saved_levels")
        scvi.settings.seed = zlib.crc32(name.encode())
        rng = np.random.default_rng(zlib.crc32(name.encode()))
        cells = make_cells()
        model = train(case, cells)
        with torch.no_grad():
            given = inputs(case, model, rng)
            tensors = given | decoded(model, given) | encoded(case, model, rng)
        assert all(torch.isfinite(tensor).all() for tensor in tensors.values()), name
        if case.save.get("save_anndata"):  # what the model does not need is left out
            keep = [key for key in ("batch_key", "labels_key") if key in case.setup]
            del cells.layers["counts"]
            model.adata.obs = model.adata.obs[[case.setup[key] for key in keep] + ["_scvi_batch", "_scvi_labels"]]
        model.save(out / name, **case.save)
        metadata = {"said": json.dumps(describe(case, model)), "scvi_version": scvi.__version__}
        write(out / name / "expected.safetensors", tensors, metadata | {"torch_version": torch.__version__})
        sizes = {file.name: file.stat().st_size for file in sorted((out / name).iterdir())}
        print(name, sizes, flush=True)


if __name__ == "__main__":
    main()
