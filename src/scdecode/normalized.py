"""The expression of cells as the model sees it: normalised, as parameters of the likelihood, drawn, correlated.

These functions are the methods of the same names of :class:`scdecode.SCVI`; names, arguments and results are those of
scvi-tools. What is drawn is drawn from a seed of its own. :meth:`scdecode.SCVI.decode` decodes points that are no
cell's, with names, error bars and support.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import IndicesLike, LibrarySize, NamesLike, Seed, Values
from scdecode._utils.memory import check_draws
from scdecode._utils.progress import counting_progress
from scdecode.arguments import refuse_loaders
from scdecode.asked import (
    TILE_BYTES,
    Batch,
    Computing,
    Latents,
    OnCells,
    choose,
    computing,
    conditions_at,
    encode_with_library,
    gene_positions,
    read_batches,
    tiles_of,
)
from scdecode.cells import Cells
from scdecode.errors import LARGEST_DRAWS, InputError, ScdecodeWarning, check_integer, check_number, missing_extra, warn
from scdecode.likelihoods import draw_counts
from scdecode.vae import VAE


@checked
def get_normalized_expression(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    transform_batch: Values = None,
    gene_list: NamesLike | None = None,
    library_size: LibrarySize = 1,
    n_samples: int = 1,
    n_samples_overall: int | None = None,
    weights: str | None = None,
    batch_size: int | None = None,
    return_mean: bool = True,
    return_numpy: bool | None = None,
    silent: bool = True,
    dataloader: None = None,
    data_loader_kwargs: None = None,
    *,
    seed: Seed = 0,
    device: str = "cpu",
    **importance_weighting_kwargs: Any,
) -> pd.DataFrame | np.ndarray:
    """Expression of cells at latent points drawn from their posteriors: the scale rho, times a library size.

    Parameters
    ----------
    adata
        Cells; by default those that the model was made of.
    indices
        Positions or a mask of the cells wanted; by default all.
    transform_batch
        The name of a batch to decode all cells in; a list of names to average over, or a mapping of names to weights;
        or a Series or an array with a name for each cell. By default a cell's own, as None is in a list. As in
        scvi-tools, a number is a name too, and an array of names that differ is averaged over.
    gene_list
        Names of genes to keep, which come in the order of the model.
    library_size
        What to multiply the scale by, in counts; ``"latent"`` for each cell's own, the total count or what the model
        learned.
    n_samples
        Points drawn for each cell.
    n_samples_overall
        That many rows, each of a cell and a draw picked at random, and not one for each cell.
    return_mean
        Whether to average over the draws.
    return_numpy
        Whether to return an array. Several draws that are not averaged, or picked at random, always come as one.
    batch_size
        Cells that are made dense at once.
    silent
        Whether to show no progress bar.
    seed
        Of the draws.
    device
        Where to compute.
    weights, dataloader, data_loader_kwargs, **importance_weighting_kwargs
        Of scvi-tools, and not offered but for their defaults.

    Returns
    -------
    pandas.DataFrame or numpy.ndarray
        Cells x genes, float32; draws x cells x genes without the mean; or rows x genes of ``n_samples_overall``.

    Raises
    ------
    NotTrainedError, InputError, CountsError, ConditionError
        For an untrained model, and for cells, genes and batches that do not fit it.
    """
    refuse_loaders(
        "get_normalized_expression",
        importance_weighting_kwargs,
        weights=weights,
        dataloader=dataloader,
        data_loader_kwargs=data_loader_kwargs,
    )
    check_integer("n_samples", n_samples, 1, LARGEST_DRAWS)
    own_library = isinstance(library_size, str) and library_size == "latent"
    if not own_library:
        check_number("library_size", library_size, 0.0)
    chosen = choose(model, adata, indices, need_library=own_library)
    batches = read_batches(model.schema, transform_batch, chosen.cell_names)
    genes = gene_positions(model.schema, gene_list)
    overall = n_samples_overall is not None
    as_array = overall or (n_samples > 1 and not return_mean)
    if overall:
        check_integer("n_samples_overall", n_samples_overall, 1, LARGEST_DRAWS)
        if n_samples != 1:
            raise InputError(
                f"n_samples, n_samples_overall: {n_samples} and {n_samples_overall} came; pass one of them"
            )
    if as_array and return_numpy is False:
        warn(
            "get_normalized_expression: return_numpy=False came, but draws that are not averaged have no cell's name; "
            "an array is returned",
            ScdecodeWarning,
        )
    with computing(model.vae, device, seed) as here:
        latents = encode_with_library(here.network, chosen.cells, batch_size, here.device)
        rows: np.ndarray | None = None
        copies: np.ndarray | slice = slice(None)
        if n_samples_overall is not None:
            rows, copies = _pick(len(chosen.cells), n_samples_overall, seed)
        values = _expression(
            here,
            chosen.cells,
            latents,
            rows=rows,
            batches=batches,
            genes=genes,
            library_size=None if own_library else float(library_size),
            n_samples=n_samples,
            mean=return_mean or n_samples == 1,
            silent=silent,
        )
    if overall:
        return values[copies]
    if as_array or return_numpy:
        return values
    names = chosen.gene_names if genes is None else chosen.gene_names[genes]
    return pd.DataFrame(values, index=chosen.cell_names, columns=names, copy=False)


def _pick(n_cells: int, n_samples_overall: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The cells of the draws that are wanted at all, and the place of each row among these.

    As in scvi-tools each row is one of the cells' draws, with replacement; those that nobody picked are not decoded.
    """
    if n_cells == 0:
        raise InputError("n_samples_overall: there are no cells to draw from")
    n_samples = n_samples_overall // n_cells + 1
    picked = np.random.default_rng(seed).integers(n_samples * n_cells, size=n_samples_overall)
    draws, copies = np.unique(picked, return_inverse=True)
    return draws % n_cells, copies.reshape(-1)


def _expression(
    here: Computing[VAE],
    cells: Cells,
    latents: Latents,
    *,
    rows: np.ndarray | None,
    batches: list[tuple[Batch, float]],
    genes: np.ndarray | None,
    library_size: float | None,
    n_samples: int,
    mean: bool,
    silent: bool,
) -> np.ndarray:
    """The scale times the library size (None: each cell's own), averaged over batches; ``([draws,] cells, genes)``."""
    vae, device = here.network, here.device
    rows = np.arange(len(cells)) if rows is None else rows
    n_genes = vae.n_genes if genes is None else len(genes)
    kept = None if genes is None else torch.from_numpy(genes).to(device)
    z_snk, log_library = latents.draw(vae, n_samples, here.cpu_generator, rows)
    shape = (len(rows), n_genes) if mean else (n_samples, len(rows), n_genes)
    check_draws(1 if mean else n_samples, len(rows) * n_genes)
    values = np.zeros(shape, dtype=np.float32)
    draws_at_once = min(n_samples, max(TILE_BYTES // (4 * n_genes), 1))
    with counting_progress("decoding", len(rows), enabled=not silent) as advance:
        for tile in tiles_of(len(rows), n_genes, draws_at_once):
            for start in range(0, n_samples, draws_at_once):
                draws = slice(start, min(start + draws_at_once, n_samples))
                total: Tensor | float = 0.0
                for batch, weight in batches:
                    codes, continuous = conditions_at(cells, rows[tile], batch, device)
                    total = total + weight * vae.scale(z_snk[draws, tile].to(device), codes, continuous, genes=kept)
                assert isinstance(total, Tensor), "there is at least one batch"
                if library_size is None:
                    own = log_library if len(log_library) == 1 else log_library[draws]
                    total *= own[:, tile].exp().to(device)
                elif library_size != 1:
                    total *= library_size
                if mean:
                    values[tile] += (total[0] if n_samples == 1 else total.sum(0) / n_samples).cpu().numpy()
                else:
                    values[draws, tile] = total.cpu().numpy()
            advance(tile.stop - tile.start)
    return values


@checked
def get_likelihood_parameters(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    n_samples: int | None = 1,
    give_mean: bool | None = False,
    batch_size: int | None = None,
    dataloader: None = None,
    *,
    seed: Seed = 0,
    device: str = "cpu",
    **data_loader_kwargs: Any,
) -> dict[str, np.ndarray]:
    """Parameters of p(x | z, l) of each cell, at latent points drawn from its posterior.

    Parameters
    ----------
    adata, indices, batch_size, seed, device
        As for :meth:`get_normalized_expression`.
    n_samples
        Points drawn for each cell.
    give_mean
        Whether to average the parameters over the draws.
    dataloader, **data_loader_kwargs
        Of scvi-tools, and not offered.

    Returns
    -------
    dict of str to numpy.ndarray
        Each ``(n, g)`` float32, or ``(n_samples, n, g)`` of several draws without the mean. ``"mean"``: l rho, in
        counts, before zero inflation. ``"dispersions"``: theta, or the standard deviation of a normal; a Poisson has
        none. ``"dropout"``: pi, of a zero-inflated likelihood.
    """
    refuse_loaders("get_likelihood_parameters", data_loader_kwargs, dataloader=dataloader)
    n_samples = 1 if n_samples is None else n_samples
    check_integer("n_samples", n_samples, 1, LARGEST_DRAWS)
    chosen, vae = choose(model, adata, indices), model.vae
    n, mean = len(chosen.cells), bool(give_mean) or n_samples == 1
    names = ["mean"]
    names += ["dropout"] if vae.config.gene_likelihood == "zinb" else []
    names += ["dispersions"] if vae.config.gene_likelihood != "poisson" else []
    shape = (n, vae.n_genes) if mean else (n_samples, n, vae.n_genes)
    check_draws(1 if mean else n_samples, n * vae.n_genes)
    found = {name: np.empty(shape, dtype=np.float32) for name in names}
    with computing(vae, device, seed) as here:
        vae, there = here.network, here.device
        latents = encode_with_library(vae, chosen.cells, batch_size, there)
        z_snk, log_library = latents.draw(vae, n_samples, here.cpu_generator)
        for tile in tiles_of(n, vae.n_genes, n_samples):
            codes, continuous = conditions_at(chosen.cells, tile, None, there)
            output = vae.decode(z_snk[:, tile].to(there), codes, continuous)
            log_theta = vae.dispersion(output, codes)
            parts = {"mean": (log_library[:, tile].to(there) + output.log_scale).exp()}
            if output.zi_logits is not None:
                parts["dropout"] = torch.sigmoid(output.zi_logits)
            if log_theta is not None:
                parts["dispersions"] = log_theta.exp().expand(parts["mean"].shape)
            for name in names:
                if mean:
                    found[name][tile] = parts[name].mean(0).cpu().numpy()
                else:
                    found[name][:, tile] = parts[name].cpu().numpy()
    return found


@checked
def posterior_predictive_sample(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    transform_batch: Values = None,
    n_samples: int = 1,
    gene_list: NamesLike | None = None,
    batch_size: int | None = None,
    dataloader: None = None,
    silent: bool = True,
    *,
    seed: Seed = 0,
    device: str = "cpu",
    **data_loader_kwargs: Any,
) -> Any:
    """Counts drawn from the likelihood at latent points drawn from the posterior of each cell.

    Parameters
    ----------
    adata, indices, transform_batch, gene_list, batch_size, silent, seed, device
        As for :meth:`get_normalized_expression`; over several batches, the counts drawn in each, by the same
        random numbers, are averaged with their weights.
    n_samples
        Draws for each cell.
    dataloader, **data_loader_kwargs
        Of scvi-tools, and not offered.

    Returns
    -------
    sparse.GCXS
        ``(n, g)`` float32, of several draws ``(n, g, n_samples)``. It needs the package sparse.

    Raises
    ------
    MissingExtraError
        Where the package sparse is not installed.
    """
    refuse_loaders("posterior_predictive_sample", data_loader_kwargs, dataloader=dataloader)
    try:
        import sparse
    except ImportError as error:
        raise missing_extra("sparse", "sparse", "posterior_predictive_sample") from error
    check_integer("n_samples", n_samples, 1, LARGEST_DRAWS)
    chosen, vae = choose(model, adata, indices), model.vae
    batches = read_batches(model.schema, transform_batch, chosen.cell_names)
    genes = gene_positions(model.schema, gene_list)
    n_genes = vae.n_genes if genes is None else len(genes)
    parts = []
    with (
        computing(vae, device, seed) as here,
        counting_progress("drawing", len(chosen.cells), enabled=not silent) as add,
    ):
        vae, there = here.network, here.device
        kept = None if genes is None else torch.from_numpy(genes).to(there)
        latents = encode_with_library(vae, chosen.cells, batch_size, there)
        z_snk, log_library = latents.draw(vae, n_samples, here.cpu_generator)
        generators = [here.generator.clone_state() for _ in batches]  # the same draws in each batch
        for tile in tiles_of(len(chosen.cells), n_genes, n_samples):
            total: Tensor | float = 0.0
            for (batch, weight), generator in zip(batches, generators, strict=True):
                codes, continuous = conditions_at(chosen.cells, tile, batch, there)
                output = vae.decode(z_snk[:, tile].to(there), codes, continuous, genes=kept)
                likelihood = vae.likelihood(output, log_library[:, tile].to(there), codes, kept)
                total = total + weight * draw_counts(likelihood, generator)
            assert isinstance(total, Tensor), "there is at least one batch"
            drawn = total.permute(1, 2, 0) if n_samples > 1 else total[0]
            parts.append(sparse.GCXS.from_numpy(drawn.cpu().numpy()))
            add(tile.stop - tile.start)
    if not parts:  # no cell was chosen
        return sparse.GCXS.from_numpy(np.zeros((0, n_genes) if n_samples == 1 else (0, n_genes, n_samples), "f4"))
    return sparse.concatenate(parts, axis=0)


@checked
def get_feature_correlation_matrix(
    model: OnCells,
    adata: AnnData | None = None,
    indices: IndicesLike | None = None,
    n_samples: int = 10,
    batch_size: int = 64,
    rna_size_factor: float = 1000,
    transform_batch: Values = None,
    correlation_type: str = "spearman",
    silent: bool = True,
    *,
    seed: Seed = 0,
    device: str = "cpu",
) -> pd.DataFrame:
    """Correlations of genes over cells, of the rate that the negative binomial draws its counts from.

    That rate is gamma-distributed with the mean ``rna_size_factor * rho`` and the shape theta: it has the spread that
    the model saw, and neither the noise of counting nor cells of different sizes.

    Parameters
    ----------
    adata, indices, transform_batch, batch_size, silent, seed, device
        As for :meth:`get_normalized_expression`; over several batches, the correlations are averaged
        with their weights.
    n_samples
        Draws for each cell, of its latent point and of its rates.
    rna_size_factor
        The library size of all cells, in counts.
    correlation_type
        ``"spearman"`` or ``"pearson"``.

    Returns
    -------
    pandas.DataFrame
        Genes x genes; NaN for a gene whose rates are all the same.

    Raises
    ------
    InputError
        For a likelihood without an inverse dispersion.
    """
    if correlation_type not in ("spearman", "pearson"):
        raise InputError(f"correlation_type: {correlation_type!r} came, 'spearman' or 'pearson' was expected")
    if model.config.gene_likelihood not in ("nb", "zinb"):
        raise InputError(
            f"get_feature_correlation_matrix: a model with gene_likelihood={model.config.gene_likelihood!r} has no "
            "inverse dispersion to draw rates with; 'nb' or 'zinb' was expected"
        )
    from scipy.stats import rankdata  # here, since importing it takes a third of a second

    check_integer("n_samples", n_samples, 1, LARGEST_DRAWS)
    check_number("rna_size_factor", rna_size_factor, 0.0, open_minimum=True)
    chosen, vae = choose(model, adata, indices, need_library=False), model.vae
    batches, n = read_batches(model.schema, transform_batch, chosen.cell_names), len(chosen.cells)
    total_gg = np.zeros((vae.n_genes, vae.n_genes))
    with (
        computing(vae, device, seed) as here,
        counting_progress("drawing", n * len(batches), enabled=not silent) as advance,
    ):
        vae, there = here.network, here.device
        latents = encode_with_library(vae, chosen.cells, batch_size, there)
        z_snk, _ = latents.draw(vae, n_samples, here.cpu_generator)
        for batch, weight in batches:
            generator = here.generator.clone_state()  # the same draws in each batch
            check_draws(n_samples, n * vae.n_genes)
            rates = np.empty((n_samples, n, vae.n_genes))
            for tile in tiles_of(n, vae.n_genes, n_samples):
                codes, continuous = conditions_at(chosen.cells, tile, batch, there)
                output = vae.decode(z_snk[:, tile].to(there), codes, continuous)
                log_theta = vae.dispersion(output, codes)
                assert log_theta is not None, "these likelihoods have one"
                theta = log_theta.exp().expand(output.log_scale.shape)
                drawn = torch._standard_gamma(theta, generator) * (output.log_scale.exp() * rna_size_factor / theta)
                rates[:, tile] = drawn.cpu().numpy()
                advance(tile.stop - tile.start)
            flat = rates.reshape(-1, vae.n_genes)
            with np.errstate(divide="ignore", invalid="ignore"):  # a gene without variance has no correlation
                total_gg += weight * np.corrcoef(
                    rankdata(flat, axis=0) if correlation_type == "spearman" else flat, rowvar=False
                )
    return pd.DataFrame(total_gg, index=chosen.gene_names, columns=chosen.gene_names)
