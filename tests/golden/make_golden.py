"""Make the golden files: small SCVI models trained by the real scvi-tools, with what they encode and decode.

Recipe (one command; it needs scvi-tools 1.4.2, anndata, torch and safetensors; 15 seconds on one core)::

    python tests/golden/make_golden.py

Each line of ``GRID`` is one case and becomes one file ``<case>.safetensors`` beside this script. For each, the script

1. makes the same 80 cells x 24 genes of counts, with batches, labels, covariates and a size factor (``make_cells``);
2. registers the columns that the case uses, builds ``scvi.model.SCVI`` with the case's options and trains it for three
   epochs of minibatches of 20 at learning rate 0.02, so that weights and BatchNorm's running statistics have moved;
3. in evaluation mode, encodes 12 of the cells and decodes 10 latent points that are not cells (``encoded``,
   ``decoded``);
4. writes the weights under scvi-tools' own names, the inputs and the outputs; reads the file back and checks it.

The seed of a case is the CRC of its name, so adding a case leaves the others as they are. On the same machine and
versions two runs give the same bytes. ``--out DIRECTORY`` writes elsewhere, to compare. README.md lists the tensors.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import math
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import scvi
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch.distributions import kl_divergence

N_CELLS, N_GENES, N_ENCODED, N_DECODED = 80, 24, 12, 10
N_HIDDEN, N_LATENT = 8, 3
BATCHES = ("b0", "b1", "b2")
LABELS = ("B", "NK", "T")
CATEGORICAL = {"sex": ("female", "male"), "chem": ("v1", "v2", "v3"), "site": ("hub",)}

COVARIATES: dict[str, tuple[list[str], list[str]]] = {
    "none": ([], []),
    "one-level": (["site"], []),
    "cats": (["sex", "chem"], []),
    "cont": ([], ["age", "pct"]),
    "cats-cont": (["sex", "chem"], ["age", "pct"]),
    "all": (["sex", "site", "chem"], ["age", "pct"]),
}
"""Names of the categorical and of the continuous covariates, for each value of the grid's column ``covariates``."""

LIBRARY_OPTIONS = {  # whether a size factor is registered, use_observed_lib_size
    "observed": (False, True),
    "learned": (False, False),
    "factor": (True, True),
    "factor-learned": (True, False),  # the size factor wins: no library is learned
}

# `batch` is how the decoder is told the batch; `none` and `sole-embedding` have no batch key, and the latter embeds the
# single batch that scvi-tools then makes up. The first ten lines are plain models, for a failing test to point at; with
# the others, each pair of values of any two columns occurs, and so does each likelihood with each dispersion.
GRID = """
likelihood dispersion latent library        batch          covariates encode inject  layers batch_norm layer_norm labels
zinb       gene       normal observed       none           none       no     deep    1      both       none       no
zinb       gene       normal observed       one-hot        none       no     deep    1      both       none       no
nb         gene       normal observed       one-hot        cats       no     deep    2      both       none       no
nb         gene-batch normal observed       one-hot        cats-cont  yes    deep    2      both       none       no
nb         gene-label normal learned        one-hot        cats       yes    shallow 2      both       none       yes
zinb       gene       normal learned        one-hot        none       no     deep    1      both       none       no
nb         gene       normal factor         one-hot        none       no     deep    1      both       none       no
nb         gene       normal observed       embedding      none       no     deep    1      both       none       no
zinb       gene-cell  ln     observed       one-hot        cont       no     deep    1      both       none       no
nb         gene       normal observed       one-hot        cats       yes    deep    3      encoder    both       yes
zinb       gene       ln     learned        embedding      one-level  no     deep    3      both       decoder    no
zinb       gene-batch normal factor         embedding      cont       yes    shallow 2      encoder    encoder    yes
zinb       gene-batch ln     observed       none           none       yes    deep    3      encoder    none       yes
zinb       gene-batch ln     factor         one-hot        cats-cont  no     shallow 3      both       none       no
zinb       gene-label normal learned        embedding      cont       no     deep    3      none       encoder    yes
zinb       gene-label normal factor-learned none           cats-cont  no     deep    3      none       decoder    yes
zinb       gene-label ln     observed       sole-embedding all        yes    deep    1      both       both       no
zinb       gene-label ln     factor         none           all        no     shallow 2      decoder    both       no
zinb       gene-label ln     factor-learned one-hot        cont       yes    deep    1      both       decoder    yes
zinb       gene-cell  normal factor-learned sole-embedding cats       yes    shallow 3      encoder    encoder    no
zinb       gene-cell  ln     observed       none           cont       yes    shallow 2      encoder    decoder    yes
nb         gene       ln     factor-learned none           one-level  no     deep    1      decoder    both       no
nb         gene       ln     factor-learned sole-embedding none       yes    shallow 2      decoder    decoder    yes
nb         gene-batch ln     observed       none           all        yes    deep    1      encoder    none       yes
nb         gene-label normal factor-learned embedding      one-level  yes    deep    2      encoder    both       yes
nb         gene-label ln     factor         sole-embedding one-level  no     shallow 1      decoder    none       yes
nb         gene-cell  normal learned        sole-embedding cats       no     deep    1      none       both       yes
nb         gene-cell  normal factor         embedding      cats-cont  yes    deep    1      decoder    encoder    no
nb         gene-cell  ln     learned        none           cont       no     deep    2      none       encoder    yes
nb         gene-cell  ln     learned        one-hot        one-level  yes    deep    2      both       encoder    yes
poisson    gene       normal observed       sole-embedding cont       no     shallow 1      decoder    decoder    yes
poisson    gene       ln     observed       one-hot        all        no     shallow 1      both       encoder    no
poisson    gene       ln     observed       embedding      all        no     shallow 1      none       none       yes
poisson    gene       ln     factor-learned none           cont       yes    deep    3      both       encoder    yes
poisson    gene-batch normal factor-learned one-hot        one-level  no     shallow 3      decoder    none       yes
poisson    gene-batch ln     learned        sole-embedding cats       yes    deep    2      decoder    none       no
poisson    gene-label normal factor         sole-embedding none       no     deep    2      encoder    none       no
poisson    gene-label ln     factor-learned embedding      cats-cont  no     shallow 1      encoder    both       no
poisson    gene-cell  normal observed       sole-embedding cats-cont  yes    deep    2      decoder    encoder    yes
poisson    gene-cell  normal learned        embedding      all        yes    deep    3      decoder    decoder    no
poisson    gene-cell  ln     factor         none           one-level  yes    shallow 2      none       decoder    yes
normal     gene       normal learned        sole-embedding cats-cont  no     shallow 2      none       none       yes
normal     gene       ln     factor         one-hot        all        yes    deep    2      none       both       no
normal     gene-batch normal observed       embedding      cats       yes    deep    3      none       none       yes
normal     gene-batch normal learned        one-hot        none       yes    shallow 3      none       both       no
normal     gene-batch ln     learned        none           cats       yes    shallow 1      encoder    decoder    yes
normal     gene-batch ln     factor-learned sole-embedding all        no     shallow 3      decoder    encoder    yes
normal     gene-label normal observed       sole-embedding one-level  yes    deep    1      none       encoder    no
normal     gene-label ln     learned        none           cats       no     deep    2      both       decoder    no
normal     gene-label ln     factor         embedding      cats       no     deep    1      none       decoder    no
normal     gene-cell  normal factor         sole-embedding cont       yes    shallow 3      both       both       no
normal     gene-cell  normal factor-learned none           cats-cont  yes    shallow 3      decoder    both       no
normal     gene-cell  ln     observed       embedding      none       yes    shallow 1      encoder    encoder    yes
normal     gene-cell  ln     factor-learned one-hot        one-level  yes    shallow 3      encoder    decoder    no
"""

Case = dict[str, str]
Tensors = dict[str, torch.Tensor]


def read_grid(text: str) -> list[Case]:
    """Give one mapping from column to value for each line of the table."""
    header, *lines = [line.split() for line in text.strip().splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


def missing_pairs(cases: list[Case]) -> list[tuple[str, str, str, str]]:
    """Give the pairs of values of two columns that no case has together."""
    values = {column: sorted({case[column] for case in cases}) for column in cases[0]}
    return [
        (one, a, other, b)
        for one, other in itertools.combinations(values, 2)
        for a, b in itertools.product(values[one], values[other])
        if not any(case[one] == a and case[other] == b for case in cases)
    ]


def case_name(case: Case) -> str:
    """Name a case by its likelihood, dispersion and batch, then by what differs from scvi-tools' defaults."""
    depth = f"{case['inject']}{case['layers']}"
    batch = {"none": "nobatch", "one-hot": "onehot", "sole-embedding": "nobatch-embedding"}
    parts = [
        case["likelihood"],
        case["dispersion"],
        batch.get(case["batch"], case["batch"]),
        "" if case["covariates"] == "none" else case["covariates"],
        "encode" if case["encode"] == "yes" else "",
        "" if depth == "deep1" else depth,
        "" if case["library"] == "observed" else case["library"],
        "" if case["latent"] == "normal" else case["latent"],
        "" if case["batch_norm"] == "both" else f"batchnorm-{case['batch_norm']}",
        "" if case["layer_norm"] == "none" else f"layernorm-{case['layer_norm']}",
        "labels" if case["labels"] == "yes" else "",
    ]
    return "_".join(part for part in parts if part)


def make_cells() -> anndata.AnnData:
    """Make the cells: three programs of expression, an effect of the batch, a total of 10 to 300 counts a cell."""
    rng = np.random.default_rng(20180030)
    programs_lg = rng.gamma(0.8, size=(len(LABELS), N_GENES)) + 0.05
    batch_effects_bg = np.exp(rng.normal(0, 0.4, size=(len(BATCHES), N_GENES)))

    def levels(names: tuple[str, ...]) -> np.ndarray:
        return rng.permutation(np.arange(N_CELLS) % len(names))

    batch_n, label_n = levels(BATCHES), levels(LABELS)
    fraction_ng = programs_lg[label_n] * batch_effects_bg[batch_n] * rng.gamma(3, 1 / 3, size=(N_CELLS, N_GENES))
    fraction_ng /= fraction_ng.sum(1, keepdims=True)
    total_n = np.clip(rng.lognormal(math.log(80), 0.7, size=N_CELLS), 10, 300).astype(int)
    x_ng = np.stack(
        [rng.multinomial(total, fraction_g) for total, fraction_g in zip(total_n, fraction_ng, strict=True)]
    )

    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(N_CELLS)])
    obs["batch"] = pd.Categorical.from_codes(batch_n, BATCHES)
    obs["labels"] = pd.Categorical.from_codes(label_n, LABELS)
    for name, names in CATEGORICAL.items():
        obs[name] = pd.Categorical.from_codes(levels(names), names)
    obs["age"] = rng.normal(size=N_CELLS)
    obs["pct"] = rng.random(N_CELLS)
    obs["size_factor"] = total_n / total_n.mean() * np.exp(rng.normal(0, 0.1, size=N_CELLS))
    var = pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)])
    return anndata.AnnData(x_ng.astype(np.float32), obs=obs, var=var)


def train(case: Case, cells: anndata.AnnData) -> tuple[scvi.model.SCVI, dict[str, Any]]:
    """Train the model of a case; give it and the options of its constructor."""
    has_size_factor, use_observed_lib_size = LIBRARY_OPTIONS[case["library"]]
    categorical, continuous = COVARIATES[case["covariates"]]
    scvi.model.SCVI.setup_anndata(
        cells,
        batch_key="batch" if case["batch"] in ("one-hot", "embedding") else None,
        labels_key="labels" if case["labels"] == "yes" else None,
        size_factor_key="size_factor" if has_size_factor else None,
        categorical_covariate_keys=categorical or None,
        continuous_covariate_keys=continuous or None,
    )
    config = {
        "n_hidden": N_HIDDEN,
        "n_latent": N_LATENT,
        "n_layers": int(case["layers"]),
        "dropout_rate": 0.1,
        "dispersion": case["dispersion"],
        "gene_likelihood": case["likelihood"],
        "latent_distribution": case["latent"],
        "use_observed_lib_size": use_observed_lib_size,
        "encode_covariates": case["encode"] == "yes",
        "deeply_inject_covariates": case["inject"] == "deep",
        "batch_representation": "embedding" if case["batch"].endswith("embedding") else "one-hot",
        "use_batch_norm": case["batch_norm"],
        "use_layer_norm": case["layer_norm"],
    }
    model = scvi.model.SCVI(cells, **config)
    model.train(
        max_epochs=3,
        batch_size=20,
        train_size=1.0,
        plan_kwargs={"lr": 0.02},
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
    )
    model.module.eval()
    return model, config


def describe_setup(model: scvi.model.SCVI) -> dict[str, Any]:
    """Say what was registered, levels in the order of their codes, as scvi-tools' registry has it."""
    manager = model.adata_manager
    arguments = manager.registry["setup_args"]

    def levels(field: str) -> list[str]:
        return [str(level) for level in manager.get_state_registry(field).categorical_mapping]

    categorical = {}
    if arguments["categorical_covariate_keys"]:
        registry = manager.get_state_registry("extra_categorical_covs")
        categorical = {name: [str(level) for level in registry.mappings[name]] for name in registry.field_keys}
    return {
        "batch": levels("batch") if arguments["batch_key"] else None,
        "labels": levels("labels") if arguments["labels_key"] else None,
        "categorical": categorical,
        "continuous": list(arguments["continuous_covariate_keys"] or []),
        "size_factor": arguments["size_factor_key"] is not None,
        "genes": [str(gene) for gene in model.adata.var_names],
    }


def column(code_n: torch.Tensor) -> torch.Tensor:
    """Give one value per cell the trailing axis that the module wants."""
    return code_n[:, None]


def distribution_of_counts(
    model: scvi.model.SCVI, z_nk: torch.Tensor, log_library_n: torch.Tensor, given: Tensors, prefix: str = ""
) -> dict[str, Any]:
    """Run the module's generative half; ``log_library_n`` is the log of the size factor where one is registered."""
    outputs: dict[str, Any] = model.module.generative(
        z=z_nk,
        library=column(log_library_n),
        size_factor=column(log_library_n),  # read only by models with a size factor, which do not read `library`
        batch_index=column(given[f"{prefix}batch"]),
        y=column(given[f"{prefix}labels"]),
        cat_covs=given.get(f"{prefix}cat"),
        cont_covs=given.get(f"{prefix}cont"),
    )
    return outputs


def encoded(model: scvi.model.SCVI, setup: dict[str, Any], rng: np.random.Generator) -> Tensors:
    """Encode some cells: counts, conditions, q(z|x), q(l|x), their KL, and the reconstruction error at q's mean."""
    cells = model.adata
    row_n = np.sort(rng.choice(N_CELLS, N_ENCODED, replace=False))
    while any(
        cells.obs[name].iloc[row_n].nunique() < cells.obs[name].nunique() for name in ("batch", "labels", *CATEGORICAL)
    ):
        row_n = np.sort(rng.choice(N_CELLS, N_ENCODED, replace=False))

    def registered(field: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.as_tensor(np.asarray(model.adata_manager.get_from_registry(field))[row_n]).to(dtype)

    given = {
        "x": registered("X", torch.float32),
        "batch": registered("batch", torch.int64).squeeze(1),
        "labels": registered("labels", torch.int64).squeeze(1),
    }
    if setup["categorical"]:
        given["cat"] = registered("extra_categorical_covs", torch.int64)
    if setup["continuous"]:
        given["cont"] = registered("extra_continuous_covs", torch.float32)
    if setup["size_factor"]:
        given["size_factor"] = registered("size_factor", torch.float32).squeeze(1)

    inference = model.module.inference(
        given["x"], batch_index=column(given["batch"]), cat_covs=given.get("cat"), cont_covs=given.get("cont")
    )
    qz, ql = inference["qz"], inference["ql"]
    latent_nk = model.module.z_encoder.z_transformation(qz.loc)
    if setup["size_factor"]:
        log_library_n = given["size_factor"].log()
    else:
        log_library_n = given["x"].sum(1).log() if ql is None else ql.loc.squeeze(1)
    generative = distribution_of_counts(model, latent_nk, log_library_n, given)
    given |= {
        "qz_mean": qz.loc,
        "qz_var": qz.variance,
        "latent": latent_nk,
        "kl_z": kl_divergence(qz, generative["pz"]).sum(1),
        "reconstruction": -generative["px"].log_prob(given["x"]).sum(1),
    }
    if ql is not None:
        given |= {
            "ql_mean": ql.loc.squeeze(1),
            "ql_var": ql.variance.squeeze(1),
            "kl_l": kl_divergence(ql, generative["pl"]).squeeze(1),
        }
    if model.module.latent_distribution == "normal":  # for `ln` scvi-tools averages random draws instead
        expected_nk = model.get_latent_representation(indices=row_n)
        np.testing.assert_allclose(latent_nk.numpy(), expected_nk, rtol=1e-5, atol=1e-6)
    return given


def decoded(model: scvi.model.SCVI, setup: dict[str, Any], rng: np.random.Generator) -> Tensors:
    """Decode points that are not cells: the points, their conditions, and the distribution of the counts there."""
    z_pk = torch.from_numpy(rng.normal(0, 1.5, size=(N_DECODED, N_LATENT))).float()
    low, high = (0.3, 3.0) if setup["size_factor"] else (100.0, 20_000.0)
    library_p = torch.from_numpy(np.exp(rng.uniform(math.log(low), math.log(high), size=N_DECODED))).float()

    def codes(names: list[str] | None) -> torch.Tensor:
        return torch.from_numpy(rng.permutation(np.arange(N_DECODED) % len(names or [""])))

    given = {
        "z": model.module.z_encoder.z_transformation(z_pk),
        "z_library": library_p,
        "z_batch": codes(setup["batch"]),
        "z_labels": codes(setup["labels"]),
    }
    if setup["categorical"]:
        given["z_cat"] = torch.stack([codes(names) for names in setup["categorical"].values()], dim=1)
    if setup["continuous"]:
        values = np.stack([rng.normal(size=N_DECODED), rng.random(N_DECODED)], axis=1)  # age, pct
        given["z_cont"] = torch.from_numpy(values).float()

    px = distribution_of_counts(model, given["z"], library_p.log(), given, prefix="z_")["px"]
    is_normal, is_poisson = model.module.gene_likelihood == "normal", model.module.gene_likelihood == "poisson"
    rate_pg = px.loc if is_normal else px.rate if is_poisson else px.mu
    spread_pg = rate_pg.double().numpy() * rng.gamma(2, 0.5, size=rate_pg.shape)
    x_pg = rng.poisson(spread_pg) * (
        rng.random(rate_pg.shape) > 0.4
    )  # plenty of zeros, and counts on both sides of the rate
    given |= {
        "scale": px.get_normalized("scale"),
        "rate": rate_pg,
        "mean": px.mean,
        "z_x": torch.from_numpy(x_pg).float(),
    }
    given["log_prob"] = px.log_prob(given["z_x"])
    if not is_poisson:
        given["theta"] = (px.scale if is_normal else px.theta).expand_as(rate_pg)
    if model.module.gene_likelihood == "zinb":
        given["zi_logits"] = px.zi_logits
    return given


def write(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a safetensors file with a sorted header, for the library leaves the order of the metadata to chance."""
    raw = save({name: value.contiguous().clone() for name, value in tensors.items()}, metadata)
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.dumps(json.loads(raw[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    path.write_bytes(struct.pack("<Q", len(header)) + header + raw[8 + length :])


def check(path: Path) -> None:
    """Read a file back; everything is finite and of the right type, the identities hold and no head is constant."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        setup = json.loads(file.metadata()["setup"])
    for name, value in tensors.items():
        assert value.dtype in (torch.float32, torch.int64), (path.stem, name, value.dtype)
        assert torch.isfinite(value).all(), (path.stem, name)
    scale_pg, rate_pg = tensors["scale"], tensors["rate"]
    assert (scale_pg >= 0).all(), path.stem
    assert (scale_pg.std(0) > 0).all(), path.stem
    assert (scale_pg.std(1) > 0).all(), path.stem
    if not setup["size_factor"]:
        torch.testing.assert_close(scale_pg.sum(1), torch.ones(N_DECODED))
    torch.testing.assert_close(rate_pg, tensors["z_library"][:, None] * scale_pg)
    mean_pg = rate_pg
    if "zi_logits" in tensors:
        assert (tensors["zi_logits"].std(0) > 0).all(), path.stem
        mean_pg = rate_pg * torch.sigmoid(-tensors["zi_logits"])
    torch.testing.assert_close(tensors["mean"], mean_pg)
    assert 0.3 < (tensors["z_x"] == 0).float().mean() < 0.95, path.stem
    for prefix in ("", "z_"):
        codes = {"batch": setup["batch"], "labels": setup["labels"]}
        columns = {name: tensors[prefix + name] for name in codes}
        for i, (name, names) in enumerate(setup["categorical"].items()):
            codes[name], columns[name] = names, tensors[f"{prefix}cat"][:, i]
        for name, names in codes.items():
            assert columns[name].unique().tolist() == list(range(len(names or [""]))), (path.stem, prefix, name)


def main() -> None:
    """Make every file of the grid."""
    parser = argparse.ArgumentParser(
        description="Train the models of the grid with scvi-tools and write the golden files."
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent, help="where to write (default: beside this script)"
    )
    out: Path = parser.parse_args().out
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)

    cases = {case_name(case): case for case in read_grid(GRID)}
    assert len(cases) == len(read_grid(GRID)), "two lines of the grid have one name"
    assert not missing_pairs(list(cases.values())), missing_pairs(list(cases.values()))
    out.mkdir(parents=True, exist_ok=True)
    for stale in out.glob("*.safetensors"):
        stale.unlink()
    size = 0
    for name, case in cases.items():
        seed = zlib.crc32(name.encode())
        scvi.settings.seed = seed
        rng = np.random.default_rng(seed)
        model, config = train(case, make_cells())
        setup = describe_setup(model)
        with torch.no_grad():
            state = {f"state/{key}": value for key, value in model.module.state_dict().items()}
            tensors = state | encoded(model, setup, rng) | decoded(model, setup, rng)
        metadata = {
            "case": name,
            "config": json.dumps(config),
            "setup": json.dumps(setup),
            "scvi_version": scvi.__version__,
            "torch_version": torch.__version__,
        }
        path = out / f"{name}.safetensors"
        write(path, tensors, metadata)
        check(path)
        size += path.stat().st_size
        print(f"{path.stat().st_size:6d} bytes  {name}", flush=True)
    print(f"{len(cases)} cases, {size:,} bytes")


if __name__ == "__main__":
    main()
