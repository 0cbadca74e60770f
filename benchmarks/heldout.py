"""Held-out likelihood and separation of cell types on real cells, both packages trained alike.

The cells are shuffled, then split unshuffled, so that both packages validate on the same cells, the first tenth, and
train on the others. Both models are evaluated by one piece of code, ``evidence``: scvi-tools' weights are copied into
our network (``scdecode.formats.scvi_names`` has the table of names), which ``tests/peer`` proves equal to its own.

    benchmarks/heldout.py                          # all: worm and kang, nb and zinb, three seeds; half an hour
    benchmarks/heldout.py --cells kang --likelihoods nb --seeds 5
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import anndata
import numpy as np
import peer
import scvi
import torch
from anndata import AnnData
from report import HERE, Section, number, record
from sklearn.model_selection import StratifiedKFold, cross_val_score
from sklearn.neighbors import KNeighborsClassifier
from torch.distributions import Normal, kl_divergence

import scdecode as sd
from scdecode.cells import read_cells
from scdecode.formats.scvi_names import to_ours
from scdecode.formats.stored import build_vae
from scdecode.minibatches import Minibatch, gather, split_cells
from scdecode.vae import VAE

DATA = Path(os.environ.get("SCDECODE_DATA", HERE.parents[1] / "shared" / "data"))
N_DRAWS = 200
N_NEIGHBOURS = 15
TRAIN_SIZE = 0.9


@dataclass(frozen=True)
class Case:
    file: str
    batch_key: str
    type_key: str
    max_epochs: int


CASES = {
    # 400 epochs are the default of both; of 10,000 genes they take scvi-tools six minutes on two cores
    "worm": Case("worm_embryo_packer2019.h5ad", "batch", "cell.type", 100),
    "kang": Case("kang_muscat_4samples.h5ad", "sample_id", "cluster_id", 400),
}

METHOD = (
    "Both packages with their defaults, a batch key, all genes, and the same cells to train and to validate on (the "
    f"first {1 - TRAIN_SIZE:.0%} of the shuffled cells). Nats a cell of the validation cells: -ELBO is the mean over "
    f"{N_DRAWS} draws of z; -log p(x) is importance-weighted with the same {N_DRAWS} draws. One piece of code "
    "evaluates both: scvi-tools' weights are copied into our network; its own get_elbo (ten draws) agrees to the "
    "percentage in the last column. kNN: accuracy of cell types in the latent means of all cells, "
    f"{N_NEIGHBOURS} neighbours, 5-fold cross-validation. Mean and standard deviation over seeds, each with a split of "
    "its own; the difference is taken seed by seed."
)


@dataclass(frozen=True)
class Scores:
    """Of one model: nats a cell, and a fraction."""

    elbo: float
    likelihood: float
    accuracy: float


@dataclass(frozen=True)
class Pair:
    ours: Scores
    theirs: Scores
    own_elbo: float  # what scvi-tools' own code says of theirs, in nats a cell


def compare(case: Case, likelihood: str, seed: int, max_epochs: int) -> Pair:
    """Train both packages on one split and score them."""
    cells = anndata.io.read_h5ad(DATA / case.file)
    cells = cells[np.random.default_rng(seed).permutation(cells.n_obs)].copy()
    ours, theirs = _train(cells, case, likelihood, seed, max_epochs)
    split = split_cells(cells.n_obs, ours.train_config)
    np.testing.assert_array_equal(split.validation, theirs.validation_indices)
    np.testing.assert_array_equal(np.sort(split.train), np.sort(theirs.train_indices))

    held_out = gather(
        read_cells(cells, ours.schema, need_conditions=True).at(split.validation), slice(None), torch.device("cpu")
    )
    copied = copy_weights(theirs, ours)
    types = cells.obs[case.type_key].to_numpy()
    own = [float(theirs.get_elbo(indices=split.validation)) for _ in range(10)]
    return Pair(
        ours=Scores(*evidence(ours.vae, held_out, seed), accuracy(ours.get_latent_representation(), types)),
        theirs=Scores(*evidence(copied, held_out, seed), accuracy(theirs.get_latent_representation(), types)),
        own_elbo=-statistics.mean(own),
    )


def _train(cells: AnnData, case: Case, likelihood: str, seed: int, max_epochs: int) -> tuple[sd.SCVI, scvi.model.SCVI]:
    sd.SCVI.setup_anndata(cells, batch_key=case.batch_key)
    ours = sd.SCVI(cells, gene_likelihood=likelihood, seed=seed)
    split = {"train_size": TRAIN_SIZE, "shuffle_set_split": False}
    ours.train(max_epochs, seed=seed, device="cpu", progress=False, **split)

    scvi.settings.seed = seed
    scvi.model.SCVI.setup_anndata(cells, batch_key=case.batch_key)
    theirs = scvi.model.SCVI(cells, gene_likelihood=likelihood)
    peer.train(theirs, max_epochs, **split)
    theirs.module.eval()
    return ours, theirs


def copy_weights(theirs: scvi.model.SCVI, ours: sd.SCVI) -> VAE:
    """A network of ours with the weights of scvi-tools' model of the same options and cells."""
    names = theirs.adata_manager.get_state_registry("batch").categorical_mapping
    assert ours.schema.batch is not None, "there is a batch key"
    assert tuple(names) == ours.schema.batch.names, "both give a batch the same code"
    state, _ = to_ours(theirs.module.state_dict(), ours.config)
    vae = build_vae(ours.config, ours.schema)
    vae.load_state_dict(state)
    return vae.eval().requires_grad_(False)


@torch.no_grad()
def evidence(vae: VAE, cells: Minibatch, seed: int) -> tuple[float, float]:
    """-ELBO and the importance-weighted -log p(x), in nats a cell; the draws are the same for every model."""
    generator = torch.Generator().manual_seed(seed)
    posterior = vae.encode(cells)
    prior = Normal(torch.zeros_like(posterior.loc), 1.0)
    log_library = cells.library_n1.log()
    reconstruction, weights = [], []
    for _ in range(N_DRAWS):
        z = posterior.loc + posterior.scale * torch.randn(posterior.loc.shape, generator=generator)
        output = vae.decode(z, cells.codes_nc, cells.continuous_nd)
        log_prob = vae.likelihood(output, log_library, cells.codes_nc).log_prob(cells.x_ng).double().sum(-1)
        reconstruction.append(log_prob)
        weights.append(log_prob + (prior.log_prob(z) - posterior.log_prob(z)).double().sum(-1))
    elbo = torch.stack(reconstruction).mean(0) - kl_divergence(posterior, prior).sum(-1)
    likelihood = torch.stack(weights).logsumexp(0) - np.log(N_DRAWS)
    return float(-elbo.mean()), float(-likelihood.mean())


def accuracy(latent_nk: np.ndarray, types: np.ndarray) -> float:
    """Cross-validated accuracy of the nearest neighbours' cell type."""
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    return float(cross_val_score(KNeighborsClassifier(N_NEIGHBOURS), latent_nk, types, cv=folds).mean())


def lines_of(name: str, likelihood: str, max_epochs: int, pairs: Sequence[Pair]) -> list[list[str]]:
    """Three lines of the table: the bound, the likelihood, the accuracy."""

    def mean(values: Sequence[float]) -> str:
        spread = f" ± {number(statistics.stdev(values))}" if len(values) > 1 else ""
        return f"{number(statistics.mean(values))}{spread}"

    def line(what: str, ours: list[float], theirs: list[float], *, relative: bool, agreement: str = "") -> list[str]:
        differences = [100 * (a / b - 1 if relative else a - b) for a, b in zip(ours, theirs, strict=True)]
        worse = statistics.mean(differences) * (1 if relative else -1)
        unit, bar = ("%", 0.2) if relative else ("points", 1.0)
        spread = f" ± {statistics.stdev(differences):.2f}" if len(differences) > 1 else ""
        difference = f"{statistics.mean(differences):+.2f}{spread} {unit}"
        verdict = "yes" if worse <= bar else "**no**"
        start = [f"{name}, {likelihood}, {max_epochs} epochs", what, mean(ours), mean(theirs)]
        return [*start, difference, f"worse by at most {bar:g} {unit}", verdict, agreement]

    apart = max(abs(pair.own_elbo / pair.theirs.elbo - 1) for pair in pairs)
    elbo = [[getattr(pair, whose).elbo for pair in pairs] for whose in ("ours", "theirs")]
    likelihoods = [[getattr(pair, whose).likelihood for pair in pairs] for whose in ("ours", "theirs")]
    accuracies = [[getattr(pair, whose).accuracy for pair in pairs] for whose in ("ours", "theirs")]
    return [
        line("-ELBO, nats a cell", *elbo, relative=True, agreement=f"{apart:.3%}"),
        line("-log p(x), nats a cell", *likelihoods, relative=True),
        line("kNN accuracy", *accuracies, relative=False),
    ]


HEADER = ["cells", "what", "scdecode", peer.NAME, "difference", "bar", "met", "get_elbo differs by"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cells", default=",".join(CASES), help="some of %(default)s")
    parser.add_argument("--likelihoods", default="nb,zinb")
    parser.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    parser.add_argument("--epochs", type=int, help="of every training; by default as in CASES")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.json and README.md")
    given = parser.parse_args()
    if not DATA.is_dir():
        parser.error(f"{DATA}: no such folder; set SCDECODE_DATA to the folder with {CASES['worm'].file}")
    torch.set_num_threads(given.threads)
    peer.quiet()
    table = [HEADER]
    for name in given.cells.split(","):
        for likelihood in given.likelihoods.split(","):
            max_epochs = given.epochs or CASES[name].max_epochs
            pairs = []
            for seed in range(given.seeds):
                start = time.perf_counter()
                pairs.append(compare(CASES[name], likelihood, seed, max_epochs))
                print(f"{name} {likelihood} seed {seed}: {time.perf_counter() - start:.0f} s, {pairs[-1]}", flush=True)
            table += lines_of(name, likelihood, max_epochs, pairs)
    section = Section("Held-out likelihood and cell types", [], METHOD, table)
    key = " ".join(["heldout", *given.cells.split(",")])
    record(key, section, " ".join(["benchmarks/heldout.py", *sys.argv[1:]]), folder=given.out)


if __name__ == "__main__":
    main()
