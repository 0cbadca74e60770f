"""The same weights in scvi-tools' own network and in ours: how far apart what they decode and encode is.

The one room that imports scvi-tools, where somebody asks for the comparison and has it installed. Its network is built
by its public class and takes weights that our reader has read: none of its files is unpickled for this, either.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from scdecode.classification import Classification
from scdecode.draws import drawing_from, make_generator
from scdecode.errors import FormatError, missing_extra
from scdecode.formats.scvi_options import init_params
from scdecode.formats.stored import StoredModel
from scdecode.minibatches import Minibatch
from scdecode.vae import VAE

TOLERANCE = 1e-5
"""The largest relative difference at which two networks count as the same."""

N_POINTS = 512
"""Random points that are decoded, and random cells that are encoded; more where there are more batches."""


def compare(stored: StoredModel, weights: Mapping[str, Tensor], *, seed: int = 0) -> pd.DataFrame:
    """Decode random points, and encode random cells, through scvi-tools and through scdecode.

    Parameters
    ----------
    stored
        The model.
    weights
        Its weights under scvi-tools' names, as :func:`scdecode.formats.scvi_tools.weights_of` has them.
    seed
        Of the points, the cells and their conditions.

    Returns
    -------
    DataFrame
        A row a quantity: how many numbers were compared, and the largest relative difference.

    Raises
    ------
    MissingExtraError
        Where scvi-tools is not installed.
    FormatError
        Where its network has no place for the weights.
    """
    generator = make_generator(seed)
    with drawing_from(generator):  # scvi-tools draws weights, which are replaced, and latent points, which are not used
        theirs = _network(stored, weights)
    cells, z_nk = _random_input(stored, seed)
    with torch.no_grad(), drawing_from(generator):
        there = _theirs(theirs, cells, z_nk)
        here = _ours(stored.vae, cells, z_nk)
        if stored.classification is not None:
            there |= _classes_there(theirs, z_nk)
            here |= _classes_here(stored.classification, z_nk)
    rows = []
    for quantity, values in here.items():
        expected = there[quantity]
        size = expected.abs()
        if quantity.endswith(" mean"):  # it may be near zero; it matters beside its spread
            size = size + there[quantity.removesuffix("mean") + "variance"].sqrt()
        difference = torch.where(values == expected, 0.0, (values - expected).abs() / size)  # also where both are zero
        rows.append({"quantity": quantity, "numbers": values.numel(), "largest difference": float(difference.max())})
    return pd.DataFrame(rows).set_index("quantity")


def check(table: pd.DataFrame, place: str) -> None:
    """Raise :class:`FormatError` where :func:`compare` found more than :data:`TOLERANCE`."""
    worst = table["largest difference"].fillna(np.inf)  # a NaN is a difference too
    if (worst > TOLERANCE).any():
        raise FormatError(
            f"{place}: scvi-tools and scdecode give different numbers: {worst.idxmax()} differs by up to "
            f"{worst.max():.1e} (relative), at most {TOLERANCE:g} was expected; please report this with the model"
        )


def _network(stored: StoredModel, weights: Mapping[str, Tensor]) -> nn.Module:
    if importlib.util.find_spec("scvi") is None:
        raise missing_extra("scvi-tools", "peer", "comparing with it")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of importing scvi-tools, lightning and what they import
        from scvi import module as modules
    schema, config = stored.schema, stored.config
    classifier = None if stored.classification is None else stored.classification.config
    said = init_params(stored.class_name, config, classifier)
    options = said["non_kwargs"] | next(iter(said["kwargs"].values()))
    options |= {"n_input": schema.n_genes, "n_batch": schema.n_batches}
    if config.learns_library:
        prior = np.ones((1, schema.n_batches), dtype=np.float32)  # replaced by the weights
        options |= {"library_log_means": prior, "library_log_vars": prior}
    if stored.class_name == "LinearSCVI":
        options["n_layers_encoder"] = options.pop("n_layers")
        network: nn.Module = modules.LDVAE(**options)
    else:
        options |= {
            "n_labels": schema.n_labels if stored.class_name == "SCVI" else schema.n_classes,
            "n_continuous_cov": len(schema.continuous),
            "n_cats_per_cov": [len(category.names) for category in schema.categorical] or None,
            "use_size_factor_key": config.use_size_factor,
        }
        network = modules.VAE(**options) if stored.class_name == "SCVI" else modules.SCANVAE(**options)
    try:
        network.load_state_dict(dict(weights))
    except RuntimeError as error:
        raise FormatError(f"scvi-tools' {type(network).__name__} does not take these weights ({error})") from error
    return network.eval()


def _random_input(stored: StoredModel, seed: int) -> tuple[Minibatch, Tensor]:
    """Cells of every batch with random counts and conditions, and as many points from the prior."""
    schema, config = stored.schema, stored.config
    rng = np.random.default_rng(seed)
    n = max(N_POINTS, min(schema.n_batches, 4 * N_POINTS))
    codes_nc = np.stack([rng.permutation(np.arange(n) % levels) for levels in schema.n_levels], axis=1)
    x_ng = rng.poisson(rng.gamma(0.3, 5.0, size=(n, schema.n_genes))).astype(np.float32)
    x_ng[:, 0] += 1  # no cell is empty
    continuous_nd = rng.normal(size=(n, len(schema.continuous))).astype(np.float32)
    library_n1 = (np.exp(rng.normal(size=(n, 1))) if config.use_size_factor else x_ng.sum(1, keepdims=True)).astype(
        "f4"
    )
    z_nk = torch.from_numpy(rng.normal(size=(n, config.n_latent)).astype(np.float32))
    cells = Minibatch(
        x_ng=torch.from_numpy(x_ng),
        codes_nc=torch.from_numpy(codes_nc),
        continuous_nd=torch.from_numpy(continuous_nd),
        library_n1=torch.from_numpy(library_n1),
    )
    return cells, torch.softmax(z_nk, dim=-1) if config.latent_distribution == "ln" else z_nk


def _ours(vae: VAE, cells: Minibatch, z_nk: Tensor) -> dict[str, Tensor]:
    posterior = vae.encode(cells)
    output = vae.decode(z_nk, cells.codes_nc, cells.continuous_nd)
    values = {
        "posterior mean": posterior.mean,
        "posterior variance": posterior.variance,
        "scale": output.log_scale.exp(),
        "rate": (output.log_scale + cells.library_n1.log()).exp(),
    }
    log_theta = vae.dispersion(output, cells.codes_nc)
    if log_theta is not None:
        values["dispersion"] = log_theta.exp().expand_as(output.log_scale)
    if output.zi_logits is not None:
        values["zero inflation"] = torch.sigmoid(output.zi_logits)
    if vae.config.learns_library:
        library = vae.encode_library(cells)
        values |= {"library mean": library.mean, "library variance": library.variance}
    return values


def _classes_here(networks: Classification, z_nk: Tensor) -> dict[str, Tensor]:
    """What a SCANVI has beside the VAE: the classifier, and z2 and back for each class in turn."""
    values = {"class probabilities": networks.probabilities(z_nk)}
    class_n1 = torch.arange(len(z_nk))[:, None] % networks.n_classes
    mean, variance = networks.encoder_z2_z1(z_nk, class_n1)
    back = networks.decoder_z1_z2(z_nk, class_n1)
    return values | {"z2 mean": mean, "z2 variance": variance, "z1 mean": back.mean, "z1 variance": back.variance}


def _classes_there(network: Any, z_nk: Tensor) -> dict[str, Tensor]:
    said = network.classifier(z_nk)
    class_n1 = torch.arange(len(z_nk))[:, None] % network.n_labels
    z2, _ = network.encoder_z2_z1(z_nk, class_n1)
    mean, variance = network.decoder_z1_z2(z_nk, class_n1)
    return {
        "class probabilities": torch.softmax(said, dim=-1) if network.classifier.logits else said,
        "z2 mean": z2.loc,
        "z2 variance": z2.scale.square(),
        "z1 mean": mean,
        "z1 variance": variance,
    }


def _theirs(network: Any, cells: Minibatch, z_nk: Tensor) -> dict[str, Tensor]:
    batch_n1, categorical_nc = cells.codes_nc[:, :1], cells.codes_nc[:, 1:-1]
    covariates = {
        "cont_covs": cells.continuous_nd if cells.continuous_nd.shape[1] else None,
        "cat_covs": categorical_nc if categorical_nc.shape[1] else None,
    }
    inferred = network.inference(cells.x_ng, batch_n1, **covariates)
    posterior, library = inferred["qz"], inferred["ql"]
    log_library = cells.library_n1.log()
    p = network.generative(
        z_nk, log_library, batch_n1, size_factor=log_library, y=cells.codes_nc[:, -1:], **covariates
    )["px"]
    values = {"posterior mean": posterior.loc, "posterior variance": posterior.scale.square()}
    kind = type(p).__name__
    if kind == "Normal":
        values |= {"scale": p.normal_mu, "rate": p.loc, "dispersion": p.scale}
    elif kind == "Poisson":
        values |= {"scale": p.scale, "rate": p.rate}
    else:
        values |= {"scale": p.scale, "rate": p.mu, "dispersion": p.theta}
    if kind == "ZeroInflatedNegativeBinomial":
        values["zero inflation"] = torch.sigmoid(p.zi_logits)
    values = {
        name: value if "posterior" in name else value.expand_as(values["scale"]) for name, value in values.items()
    }
    if library is not None:
        values |= {"library mean": library.loc, "library variance": library.scale.square()}
    return values
