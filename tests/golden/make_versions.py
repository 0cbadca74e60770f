"""Make the models that other versions of scvi-tools saved, 0.8 to 1.3: directories of theirs, with what they compute.

Recipe (it needs Python 3.11 with scvi-tools 1.4.2 and torch 2.13, as for the other golden files, pip and an index)::

    python tests/golden/make_versions.py --packages /tmp/packages

For each version it installs that scvi-tools, and what must be as old, into folders of their own (without what these
depend on, so 400 MB in all and no second torch), and runs itself there, with the folders before all others on the path.
What is then still missing is a stand-in for a package that the models here make no use of (``ABSENT``), or a name that
moved (``mend``); no file of scvi-tools is changed. Every model is made, trained and saved by scvi-tools' own methods.

What each directory holds, and ``expected.safetensors`` beside it, is as ``make_saved.py`` has it; README.md says more.
``--versions 0.8.1 1.3.3`` makes only those, ``--all`` every case of each, ``--out DIRECTORY`` writes elsewhere.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import importlib.abc
import importlib.machinery
import inspect
import itertools
import json
import logging
import os
import shutil
import subprocess
import sys
import traceback
import types
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

OLD = "numpy==1.26.4 pandas==1.5.3 scipy==1.11.4 anndata==0.8.0 scikit-learn==1.2.2 h5py==3.9.0 mudata==0.2.3"
OLD += " setuptools==65.5.0"
PACKAGES = {
    "old": OLD,
    "metrics-0.6": "torchmetrics==0.6.0 pyDeprecate==0.3.1",
    "metrics-0.11": "torchmetrics==0.11.4 pyDeprecate==0.3.2",
    "lightning-1.2": "pytorch-lightning==1.2.10",
    "lightning-1.3": "pytorch-lightning==1.3.8",
    "lightning-1.5": "pytorch-lightning==1.5.10",
    "lightning-1.7": "pytorch-lightning==1.7.7",
    "lightning-1.9": "pytorch-lightning==1.9.5 lightning==1.9.5",
}
"""Folders of packages, and what pip installs into each."""

VERSIONS = {
    "0.8.0": ["old"],
    "0.8.1": ["old"],
    "0.9.1": ["lightning-1.2", "metrics-0.11", "old"],
    "0.10.1": ["lightning-1.2", "metrics-0.11", "old"],
    "0.11.0": ["lightning-1.3", "metrics-0.6", "old"],
    "0.12.2": ["lightning-1.3", "metrics-0.6", "old"],
    "0.13.0": ["lightning-1.3", "metrics-0.6", "old"],
    "0.14.6": ["lightning-1.3", "metrics-0.6", "old"],
    "0.15.5": ["lightning-1.5", "metrics-0.11", "old"],
    "0.16.4": ["lightning-1.5", "metrics-0.11", "old"],
    "0.17.4": ["lightning-1.7", "metrics-0.11", "old"],
    "0.18.0": ["lightning-1.7", "metrics-0.11", "old"],
    "0.19.0": ["lightning-1.7", "metrics-0.11", "old"],
    "0.20.3": ["lightning-1.9", "metrics-0.11", "old"],
    "1.0.4": [],
    "1.1.6.post2": [],
    "1.2.2.post2": [],
    "1.3.3": [],
    "1.4.0": [],
}
"""The versions, each with the folders that it needs."""

ABSENT = {"jax", "jaxlib", "flax", "numpyro", "optax", "chex", "orbax", "ipywidgets", "IPython", "openpyxl", "hyperopt"}
ABSENT |= {"requests", "xgboost", "ray"}


class Anything:
    """What stands for anything that an absent package has: it can be called, subclassed and asked for more."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Take anything."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Take anything."""

    def __class_getitem__(cls, key: Any) -> Any:
        return cls

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        is_decorator = len(args) == 1 and callable(args[0]) and not kwargs
        return args[0] if is_decorator else Anything()

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()

    def __getitem__(self, key: Any) -> Any:
        return Anything()


class Absent(types.ModuleType):
    """A module that is not installed."""

    __path__: tuple[str, ...] = ()
    __version__ = "0"
    dataclass = staticmethod(dataclasses.dataclass)  # flax and chex lend theirs to the losses of torch modules

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if self.__name__ == "jax.numpy":  # counts are checked with it
            return getattr(np, name)
        return type(name, (Anything,), {}) if name[0].isupper() else importlib.import_module(f"{self.__name__}.{name}")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return args[0] if self.__name__ == "jax.device_put" else Anything()(*args, **kwargs)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the absent packages."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Say that it is here."""
        if name.partition(".")[0] in ABSENT:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec: Any) -> Any:
        """Make it."""
        return Absent(spec.name)

    def exec_module(self, module: Any) -> None:
        """Nothing is in it."""


def mend() -> None:
    """Put back what was otherwise with older packages and an older Python."""
    import anndata

    if not hasattr(anndata, "read"):
        anndata.read = anndata.read_h5ad
    from pytorch_lightning.trainer import states

    if hasattr(states, "TrainerFn"):
        states.TrainerFn.__format__ = lambda self, spec: format(self.value, spec)  # as it was until Python 3.10


if __name__ == "__main__" and "--here" in sys.argv:  # before scvi-tools is imported, with what it asks for
    sys.meta_path.insert(0, Finder())
    mend()

import scvi  # noqa: E402
import torch  # noqa: E402
from make_golden import write  # noqa: E402
from make_saved import BATCH, LABELS, N_DECODED, N_ENCODED, Case, make_cells  # noqa: E402

VERSION = tuple(int(part) for part in scvi.__version__.split(".")[:2])
COVARIATES = {"categorical_covariate_keys": ["chem", "sex"], "continuous_covariate_keys": ["pct", "age"]}

CASES = {
    "covariates": Case(
        {**BATCH, "labels_key": "cell_type", **COVARIATES},
        {"n_layers": 2, "encode_covariates": True, "dispersion": "gene-batch", "use_layer_norm": "both"},
    ),
    "gene_label": Case({**BATCH, "labels_key": "cell_type"}, {"dispersion": "gene-label", "gene_likelihood": "nb"}),
    "layer": Case({"layer": "counts"}, {"gene_likelihood": "nb", "use_batch_norm": "none"}),
    "size_factor": Case({**BATCH, "size_factor_key": "factor"}, {"gene_likelihood": "poisson"}),
    "learned": Case(
        {"batch_key": "run"},
        {
            "use_observed_lib_size": False,
            "latent_distribution": "ln",
        },
    ),
    "gene_cell": Case(BATCH, {"dispersion": "gene-cell", "n_layers": 2, "deeply_inject_covariates": False}),
    "linear": Case(BATCH, kind="LinearSCVI"),
    "scanvi": Case({**BATCH, **LABELS, "continuous_covariate_keys": ["age"]}, kind="SCANVI"),
    "scanvi_all_labelled": Case({**BATCH, "labels_key": "cell_type", "unlabeled_category": "nobody"}, kind="SCANVI"),
    "scanvi_from_scvi": Case(
        {**BATCH, "labels_key": "cell_type"},
        {"gene_likelihood": "nb"},
        kind="SCANVI",
        from_scvi={"unlabeled_category": "Astray"},
    ),
    "scanvi_linear": Case({**BATCH, **LABELS}, {"linear_classifier": True}, kind="SCANVI"),
    "embedding": Case(BATCH, {"batch_representation": "embedding", "encode_covariates": True}),
    "query": Case(
        BATCH, {"use_layer_norm": "both", "use_batch_norm": "none", "encode_covariates": True, "n_layers": 2}
    ),
}
SINCE = {"scanvi_from_scvi": (0, 9), "gene_label": (0, 11), "size_factor": (0, 15)}
SINCE |= {"scanvi_linear": (1, 0), "embedding": (1, 2)}
"""The first version that can do it."""

QUERIED = "d7"
"""The batch of the cells that the model of the case "query" is carried over to."""

KEPT = {
    "0.8.1": ("covariates", "scanvi"),
    "0.9.1": ("covariates", "scanvi_all_labelled"),
    "0.10.1": ("linear",),
    "0.12.2": ("learned",),
    "0.14.6": ("scanvi", "query"),
    "0.15.5": ("size_factor",),
    "0.16.4": ("linear",),
    "0.17.4": ("scanvi_from_scvi",),
    "0.19.0": ("learned",),
    "0.20.3": ("gene_label",),
    "1.0.4": ("scanvi_linear",),
    "1.1.6.post2": ("query",),
    "1.2.2.post2": ("embedding",),
    "1.3.3": ("scanvi",),
}
"""Which cases of which versions are golden files, so that each case and each change of the layout is among them."""

BEFORE_TORCH_1_6 = {"0.8.1-scanvi"}
"""Saved as torch did until 1.5, which scvi-tools 0.8 ran with; today's torch can still write it."""


def set_up(case: Case, cells: Any, first: Any) -> dict[str, Any]:
    """Register the columns as this version does it; gives the arguments that the constructor then still needs."""
    setup = dict(case.setup)
    if VERSION < (0, 9):  # it stops at any
        setup.pop("continuous_covariate_keys", None)
    if VERSION < (0, 14):
        unlabeled = setup.pop("unlabeled_category", None)
        scvi.data.setup_anndata(cells, **setup)
        return {} if unlabeled is None else {"unlabeled_category": unlabeled}
    registers = "unlabeled_category" in inspect.signature(first.setup_anndata).parameters
    unlabeled = None if registers else setup.pop("unlabeled_category", None)
    first.setup_anndata(cells, **setup)
    return {} if unlabeled is None else {"unlabeled_category": unlabeled}


def train(case: Case, cells: Any) -> Any:
    """Train the model of a case."""
    first = scvi.model.SCVI if case.from_scvi is not None else getattr(scvi.model, case.kind)
    missing = set_up(case, cells, first)
    model = first(cells, **missing, **{"n_hidden": 8, "n_latent": 3} | case.options)
    fit(model)
    if case.from_scvi is not None:
        model = scvi.model.SCANVI.from_scvi_model(model, **case.from_scvi)
        fit(model)
    module(model).eval()
    return model


def fit(model: Any) -> None:
    """Four epochs."""
    if VERSION < (0, 9):  # a loop of its own, before lightning
        epochs = "n_epochs_unsupervised" in inspect.signature(model.train).parameters
        how: dict[str, Any] = {"n_epochs_unsupervised": 4, "n_epochs_semisupervised": 2} if epochs else {"n_epochs": 4}
        model.train(train_size=1.0, frequency=1, lr=0.02, **how)
        return
    lr = {} if type(model).__name__ == "SCANVI" and VERSION < (0, 10) else {"plan_kwargs": {"lr": 0.02}}
    quiet = {"accelerator": "cpu"} if VERSION >= (1, 0) else {"use_gpu": False}
    bar: dict[str, Any] = {"enable_progress_bar": False} if VERSION >= (0, 15) else {"progress_bar_refresh_rate": 0}
    if (0, 17) <= VERSION < (0, 20):  # these stop at it
        bar = {}
    model.train(max_epochs=4, batch_size=20, train_size=1.0, **lr, **quiet, **bar)


def module(model: Any) -> Any:
    """The network."""
    return model.model if VERSION < (0, 9) else model.module


def tensors_of(model: Any, rows: Any) -> dict[str, Any]:
    """Cells as the data loader gives them, by today's names."""
    loader = next(getattr(model, name) for name in ("_make_data_loader", "_make_scvi_dl") if hasattr(model, name))
    adata = model._validate_anndata(None)
    (tensors,) = loader(adata, indices=rows, batch_size=len(rows))
    names = {"batch_indices": "batch", "cat_covs": "extra_categorical_covs", "cont_covs": "extra_continuous_covs"}
    tensors = {names.get(name, name): value for name, value in tensors.items()}
    return tensors | {name: tensors[name].long() for name in ("batch", "labels")}


def levels(codes: Any, values: Any) -> list[Any]:
    """The levels in the order of their codes, from the codes that the data loader gives of all cells."""
    pairs = {int(code): value for code, value in zip(codes.reshape(-1).tolist(), values.tolist(), strict=True)}
    return [pairs[code] for code in sorted(pairs)]


def describe(case: Case, model: Any, cells: Any) -> dict[str, Any]:
    """Say by name what the model is."""
    everything = tensors_of(model, np.arange(cells.n_obs))
    setup = dict(case.setup) | (case.from_scvi or {})
    if VERSION < (0, 9):  # registered or not, its network has no place for them
        for name in COVARIATES:
            setup.pop(name, None)
    keys = setup.get("categorical_covariate_keys", [])
    covariates = everything.get("extra_categorical_covs")
    labels = levels(everything["labels"], cells.obs[setup["labels_key"]]) if "labels_key" in setup else None
    if labels is not None and setup.get("unlabeled_category") not in (None, *labels):
        if VERSION < (0, 15):  # which has then one label less than the others
            del setup["unlabeled_category"]
        else:
            labels.append(setup["unlabeled_category"])
    batch = levels(everything["batch"], cells.obs[setup["batch_key"]]) if "batch_key" in setup else None
    if batch == [QUERIED]:  # behind those of the cells before
        batch = ["d10", "d2", QUERIED]
    return {
        "class": case.kind,
        "setup": setup,
        "options": {"n_hidden": 8, "n_latent": 3} | case.options,
        "prefix": None,
        "genes": [str(name) for name in cells.var_names],
        "batch": batch,
        "labels": labels,
        "categorical": {key: levels(covariates[:, i], cells.obs[key]) for i, key in enumerate(keys)},
        "n_cells": cells.n_obs,
        "scvi_version": scvi.__version__,
    }


def inputs(said: dict[str, Any], model: Any, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Points and library sizes, with every combination of the conditions, a row of ``z_codes`` each."""
    sizes = [len(said["batch"] or [0]), *map(len, said["categorical"].values()), len(said["labels"] or [0])]
    combinations = torch.tensor(list(itertools.product(*map(range, sizes))))
    if module(model).dispersion != "gene-label":  # the label changes nothing then
        combinations = combinations[combinations[:, -1] == 0]
    z_pk = torch.from_numpy(rng.normal(0, 1.5, (N_DECODED, 3))).float()
    n_continuous = len(said["setup"].get("continuous_covariate_keys", []))
    low, high = (0.3, 3.0) if "size_factor_key" in said["setup"] else (100, 20_000)
    return {
        "z": z_pk.softmax(-1) if said["options"].get("latent_distribution") == "ln" else z_pk,
        "z_library": torch.from_numpy(np.exp(rng.uniform(np.log(low), np.log(high), N_DECODED))).float(),
        "z_codes": combinations,
        "z_cont": torch.from_numpy(rng.normal(0, 2, (len(combinations), n_continuous))).float(),
    }


def decoded(said: dict[str, Any], model: Any, given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Decode all points in each combination of conditions: ``(combinations, points, genes)``."""
    found: dict[str, list[torch.Tensor]] = {}
    for codes, continuous in zip(given["z_codes"], given["z_cont"], strict=True):
        full = codes.expand(N_DECODED, -1)
        rate, theta, scale, logits = parameters(said, model, given, full, continuous.expand(N_DECODED, -1))
        likelihood = module(model).gene_likelihood
        # early networks give parameters and no distribution, so that the mean is made here
        quantities = {"scale": scale, "rate": rate, "mean": rate}
        if likelihood == "zinb":
            quantities["pi"] = logits.sigmoid()
            quantities["mean"] = rate * (1 - quantities["pi"])
        if likelihood != "poisson":
            quantities["theta"] = theta.expand_as(rate)
        for name, value in quantities.items():
            found.setdefault(name, []).append(value)
    return {name: torch.stack(values) for name, values in found.items()}


def parameters(said: dict[str, Any], model: Any, given: dict[str, torch.Tensor], codes: Any, continuous: Any) -> Any:
    """Rate, inverse dispersion, scale and logits of the zero inflation, of this version's own network."""
    z, library = given["z"], given["z_library"].log()[:, None]
    batch, y, net = codes[:, :1], codes[:, -1:], module(model)
    if VERSION < (0, 9):  # one method encodes and decodes: its own two encoders are told what to say
        hooks = [
            net.z_encoder.register_forward_hook(lambda _m, _i, out: (*out[:2], z)),
            net.l_encoder.register_forward_hook(lambda _m, _i, out: (*out[:2], library)),
        ]
        x = torch.zeros(N_DECODED, len(said["genes"]))
        x[:, 0] = given["z_library"]
        px = net.inference(x, batch, y)
        for hook in hooks:
            hook.remove()
    else:
        arguments = {
            "cat_covs": codes[:, 1:-1] if codes.shape[1] > 2 else None,
            "cont_covs": continuous if continuous.shape[1] else None,
            "y": y,
        }
        if "size_factor_key" in said["setup"]:
            arguments["size_factor"] = library
        px = net.generative(z=z, library=library, batch_index=batch, **arguments)
    if "px" not in px:
        return px["px_rate"], px["px_r"], px["px_scale"], px["px_dropout"]
    px, likelihood = px["px"], net.gene_likelihood
    if likelihood == "poisson":
        return px.rate, None, px.get_normalized("scale") if hasattr(px, "get_normalized") else px.scale, None
    return px.mu, px.theta, px.scale, px.zi_logits if likelihood == "zinb" else None


def encoded(case: Case, said: dict[str, Any], model: Any, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Encode some cells; of a SCANVI, classify them too; of a LinearSCVI, its loadings."""
    rows = np.sort(rng.choice(model.adata.n_obs, N_ENCODED, replace=False))
    tensors = tensors_of(model, rows)
    x = tensors["X"].float()
    if VERSION < (0, 9):
        inference = module(model).inference(x, tensors["batch"], tensors["labels"])
    else:
        inference = module(model).inference(
            x,
            batch_index=tensors["batch"],
            cat_covs=tensors.get("extra_categorical_covs"),
            cont_covs=tensors.get("extra_continuous_covs"),
        )
    found = {"x": x, "rows": torch.from_numpy(rows), "batch": tensors["batch"], "labels": tensors["labels"]}
    for letter in "zl":
        q = inference.get(f"q{letter}")
        mean, variance = (q.loc, q.variance) if q is not None else (inference.get(f"q{letter}_{m}") for m in "mv")
        if mean is not None and (letter == "z" or not module(model).use_observed_lib_size):
            found |= {f"q{letter}_mean": mean, f"q{letter}_var": variance}
    kept = {"extra_categorical_covs": "categorical_covariate_keys", "size_factor": "size_factor_key"}
    for name, key in (kept | {"extra_continuous_covs": "continuous_covariate_keys"}).items():
        if key in said["setup"]:
            found[name] = tensors[name]
    if case.kind == "SCANVI":
        found["probabilities"] = torch.from_numpy(np.asarray(model.predict(indices=rows, soft=True)))
    if case.kind == "LinearSCVI":
        found["loadings"] = torch.from_numpy(np.asarray(model.get_loadings()))
    return found


def make(name: str, case: Case, path: Path, *, save_anndata: bool) -> None:
    """Make one directory."""
    scvi.settings.seed = zlib.crc32(name.encode())
    torch.manual_seed(zlib.crc32(name.encode()))
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    cells = make_cells()
    if name == "query":
        queried_n = (cells.obs["donor"] == QUERIED).to_numpy()
        model = train(case, cells[~queried_n].copy())
        cells = cells[queried_n].copy()
        model = scvi.model.SCVI.load_query_data(cells, model)
        fit(model)
        module(model).eval()
    else:
        model = train(case, cells)
    with torch.no_grad():
        said = describe(case, model, cells)
        given = inputs(said, model, rng)
        tensors = given | decoded(said, model, given) | encoded(case, said, model, rng)
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values()), name
    save = torch.save
    if path.name in BEFORE_TORCH_1_6:
        torch.save = functools.partial(save, _use_new_zipfile_serialization=False)
    model.save(str(path), save_anndata=save_anndata)
    torch.save = save
    write(path / "expected.safetensors", tensors, {"said": json.dumps(said), "torch_version": torch.__version__})
    print(path.name, {file.name: file.stat().st_size for file in sorted(path.iterdir())}, flush=True)


def run_here(out: Path, *, everything: bool) -> None:
    """Make the directories of the version that is running."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    scvi.settings.verbosity = logging.ERROR  # old versions put their level back while they work
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    for name, case in CASES.items():
        path = out / f"{scvi.__version__}-{name}"
        if not everything and name not in KEPT.get(scvi.__version__, ()):
            continue
        if SINCE.get(name, VERSION) > VERSION:
            continue
        if path.exists():
            shutil.rmtree(path)
        try:
            make(name, case, path, save_anndata=everything)
        except Exception:
            if not everything:
                raise
            traceback.print_exc()


def install(folder: Path, packages: str) -> str:
    """Install into a folder of their own, without what they depend on."""
    if not folder.is_dir():
        pip = [sys.executable, "-m", "pip", "-q", "install", "--no-deps", "--target", str(folder)]
        subprocess.run([*pip, *packages.split()], check=True)
    return str(folder)


def main() -> None:
    """Make the directories of every version, each in a process of its own."""
    parser = argparse.ArgumentParser(description="Train and save small models with other versions of scvi-tools.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "saved_versions", help="where to write")
    parser.add_argument(
        "--packages", type=Path, default=Path("/tmp/packages"), help="where to install; what is there already is taken"
    )
    parser.add_argument("--versions", nargs="*", help="instead of all of them")
    parser.add_argument("--all", action="store_true", help="every case, not only those that are golden files")
    parser.add_argument("--here", action="store_true", help="run in the version that can be imported")
    arguments = parser.parse_args()
    if arguments.here:
        run_here(arguments.out, everything=arguments.all)
        return
    for version in arguments.versions or (VERSIONS if arguments.all else KEPT):
        folders = [install(arguments.packages / f"scvi-{version}", f"scvi-tools=={version}")]
        folders += [install(arguments.packages / name, PACKAGES[name]) for name in VERSIONS[version]]
        command = [sys.executable, __file__, "--here", "--out", str(arguments.out), *["--all"] * arguments.all]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True)


if __name__ == "__main__":
    main()
