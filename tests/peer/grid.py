"""A covering grid of options, and one model of each of its cases in both packages."""

import functools
import itertools
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData

import scdecode as sd

N_CELLS, N_GENES, N_POINTS, N_LATENT = 150, 25, 4, 3
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}

VALUES = {
    "gene_likelihood": ["zinb", "nb", "poisson", "normal"],
    "dispersion": ["gene", "gene-batch", "gene-label", "gene-cell"],
    "conditions": ["none", "batch", "categorical", "continuous", "labels"],  # each with those before it
    "use_batch_norm": ["both", "encoder", "decoder", "none"],
    "use_layer_norm": ["none", "both", "encoder", "decoder"],
    "deeply_inject_covariates": [True, False],
    "encode_covariates": [False, True],
    "library": ["observed", "learned", "factor"],
    "latent_distribution": ["normal", "ln"],
    "n_layers": [1, 2, 3],
    "batch_representation": ["one-hot", "embedding"],
}
CONDITIONS = {
    "batch": {"batch_key": "donor"},
    "categorical": {"categorical_covariate_keys": ["sex", "chem"]},
    "continuous": {"continuous_covariate_keys": ["age", "pct"]},
    "labels": {"labels_key": "cell_type"},
}


def pairs_of(case):
    """What a case has two of at once."""
    return set(itertools.combinations(case.items(), 2))


def all_pairs(values):
    """All that some case has to have at once."""
    columns = [[(name, value) for value in among] for name, among in values.items()]
    return {pair for one, other in itertools.combinations(columns, 2) for pair in itertools.product(one, other)}


def covering(values, at_least, seed=0):
    """Cases in which every two values of different options occur together, chosen greedily from random ones."""
    rng = np.random.default_rng(seed)
    missing, cases = all_pairs(values), []
    while missing or len(cases) < at_least:
        candidates = [{name: among[rng.integers(len(among))] for name, among in values.items()} for _ in range(100)]
        best = max(candidates, key=lambda case: len(pairs_of(case) & missing))
        if best not in cases:
            cases.append(best)
            missing -= pairs_of(best)
    return cases


GRID = covering(VALUES, at_least=48)


def name_of(case):
    """What a failing test is called."""
    return "-".join(value if isinstance(value, str) else f"{name}={value}" for name, value in case.items())


def setup_and_options(case):
    """The arguments of ``setup_anndata`` and of the model, which are the same in both packages."""
    options = {"n_hidden": 8, "n_latent": N_LATENT} | case
    conditions, library = options.pop("conditions"), options.pop("library")
    setup = {}
    for name, keys in CONDITIONS.items():
        if conditions != "none":
            setup |= keys
        if name == conditions:
            break
    if library == "factor":
        setup["size_factor_key"] = "factor"
    options["use_observed_lib_size"] = library != "learned"
    if options["batch_representation"] == "embedding":
        options["batch_embedding_kwargs"] = {"embedding_dim": 2}
    return setup, options


def make_cells(seed=0):
    """Cells with every kind of condition: levels that are text, whole numbers and booleans."""
    rng = np.random.default_rng(seed)
    kind, donor = rng.integers(0, 3, N_CELLS), rng.integers(0, 3, N_CELLS)
    programs = rng.gamma(0.8, size=(3, N_GENES)) + 0.05
    rate = programs[kind] * np.exp(rng.normal(0, 0.4, (3, N_GENES)))[donor] * rng.gamma(3, 1 / 3, (N_CELLS, N_GENES))
    counts = rng.poisson(rate / rate.sum(1, keepdims=True) * rng.lognormal(4.5, 0.5, (N_CELLS, 1)))
    counts[:, 0] += 1  # no empty cell
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(N_CELLS)])
    obs["donor"] = np.array([10, 2, 9])[donor]
    obs["cell_type"] = np.array(["NK", "Astray", "T"])[kind]
    obs["sex"] = rng.choice([True, False], N_CELLS)
    obs["chem"] = rng.choice(["v3", "v1", "v2"], N_CELLS)
    obs["age"] = rng.normal(size=N_CELLS)
    obs["pct"] = rng.random(N_CELLS)
    obs["factor"] = counts.sum(1) / counts.sum(1).mean()
    return AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)]))


@dataclass(frozen=True, eq=False)
class Bridge:
    """A model that scvi-tools trained and saved, and the same opened by scdecode."""

    theirs: object
    adata: AnnData
    setup: dict
    options: dict
    folder: Path
    ours: sd.SCVI


_FOLDER = tempfile.TemporaryDirectory()


def save_and_open(theirs, name):
    """By scvi-tools' own ``save``, and by ours without any cells."""
    folder = Path(_FOLDER.name) / name
    theirs.save(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return folder, sd.load(folder)


@functools.cache
def trained(number):
    """The case of that number, trained for one epoch."""
    setup, options = setup_and_options(GRID[number])
    adata = make_cells()
    scvi.settings.seed = number
    scvi.model.SCVI.setup_anndata(adata, **setup)
    theirs = scvi.model.SCVI(adata, **options)
    theirs.train(max_epochs=1, batch_size=50, train_size=1.0, plan_kwargs={"lr": 0.02}, **QUIET)
    theirs.module.eval()
    return Bridge(theirs, adata, setup, options, *save_and_open(theirs, f"grid_{number}"))


# -- the same question to both -----------------------------------------------------------------------------------------


def levels_of(theirs, setup):
    """Of each categorical condition its name in the arguments of ``decode``, and its levels by scvi-tools' registry."""
    registry = theirs.adata_manager.get_state_registry
    found = {}
    if setup.get("batch_key"):
        found["batch"] = list(registry("batch").categorical_mapping)
    for key in setup.get("categorical_covariate_keys", []):
        found[key] = list(registry("extra_categorical_covs").mappings[key])
    if setup.get("labels_key") and theirs.module.dispersion == "gene-label":
        found["labels"] = list(registry("labels").categorical_mapping)
    return found


def questions(theirs, setup, n_points=N_POINTS, seed=0):
    """Random points in every condition: the arguments of our ``decode``, and those of scvi-tools' ``generative``."""
    rng = np.random.default_rng(seed)
    levels = levels_of(theirs, setup)
    combinations = list(itertools.product(*(range(len(values)) for values in levels.values())))
    n = n_points * len(combinations)
    codes = {
        name: np.repeat([combination[j] for combination in combinations], n_points) for j, name in enumerate(levels)
    }
    names = {name: np.array([str(value) for value in levels[name]])[column] for name, column in codes.items()}
    z_nk = torch.from_numpy(rng.normal(0, 1.5, (n, theirs.module.n_latent))).float()
    if theirs.module.latent_distribution == "ln":
        z_nk = torch.softmax(z_nk, dim=-1)
    low, high = (0.3, 3.0) if setup.get("size_factor_key") else (100, 20_000)
    library_n = np.exp(rng.uniform(np.log(low), np.log(high), n)).astype(np.float32)
    keys, numbers = setup.get("categorical_covariate_keys", []), setup.get("continuous_covariate_keys", [])
    values_nd = rng.normal(size=(n, len(numbers))).astype(np.float32)
    ours = {
        "library_size": library_n,
        "batch": names.get("batch"),
        "labels": names.get("labels"),
        "categorical": {key: names[key] for key in keys},
        "continuous": {key: values_nd[:, j] for j, key in enumerate(numbers)},
    }
    log_library = torch.from_numpy(library_n).log()[:, None]
    zeros = np.zeros(n, dtype=np.int64)
    columns = {name: torch.from_numpy(column)[:, None] for name, column in codes.items()}
    their = {
        "z": z_nk,
        "library": log_library,
        "size_factor": log_library,
        "batch_index": columns.get("batch", torch.from_numpy(zeros)[:, None]),
        "y": columns.get("labels", torch.from_numpy(zeros)[:, None]),
        "cat_covs": torch.cat([columns[key] for key in keys], dim=1) if keys else None,
        "cont_covs": torch.from_numpy(values_nd) if numbers else None,
    }
    return z_nk, {key: value for key, value in ours.items() if value is not None and len(value)}, their


@torch.inference_mode()
def their_answers(theirs, arguments):
    """What scvi-tools' network decodes, by quantity."""
    px = theirs.module.eval().generative(**arguments)["px"]
    likelihood = theirs.module.gene_likelihood
    rate = px.loc if likelihood == "normal" else px.rate if likelihood == "poisson" else px.mu
    found = {"scale": px.get_normalized("scale"), "rate": rate, "mean": px.mean}
    if likelihood != "poisson":
        found["theta"] = (px.scale if likelihood == "normal" else px.theta).expand_as(rate)
    if likelihood == "zinb":
        found["pi"] = px.zi_probs
    return found


def our_answers(model, z_nk, arguments):
    """The same by name, through ``decode`` and ``distribution``."""
    found = {}
    for quantity in ("scale", "rate", "mean"):
        found[quantity] = torch.from_numpy(np.asarray(model.decode(z_nk, quantity=quantity, **arguments).X))
    px = model.distribution(z_nk, **arguments)
    likelihood = model.config.gene_likelihood
    if likelihood != "poisson":
        found["theta"] = (px.scale if likelihood == "normal" else px.theta).expand_as(found["scale"])
    if likelihood == "zinb":
        found["pi"] = torch.sigmoid(px.zi_logits)
    return found


WORST = {}
"""The largest relative difference of each quantity in all tests so far."""


def compare(quantity, ours, theirs, at_most, beside=0.0):
    """Raise unless two arrays are as near each other as ``at_most`` times their values plus ``beside``."""
    ours, theirs = torch.as_tensor(np.asarray(ours)).double(), torch.as_tensor(np.asarray(theirs)).double()
    assert ours.shape == theirs.shape, quantity
    assert torch.isfinite(theirs).all() and torch.isfinite(ours).all(), quantity
    difference = torch.where(ours == theirs, 0.0, (ours - theirs).abs() / (theirs.abs() + torch.as_tensor(beside)))
    largest = float(difference.max())
    WORST[quantity] = max(WORST.get(quantity, (0.0, 0))[0], largest), WORST.get(quantity, (0.0, 0))[1] + ours.numel()
    assert largest <= at_most, f"{quantity} differs by {largest:.1e} of its value"
