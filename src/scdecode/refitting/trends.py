"""``refit``: the trends of a path, from the counts of the cells along it."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, NamesLike, PerPoint, Seed, Values
from scdecode.asked import cells_for
from scdecode.cells import UNREAD, Cells, check_libraries
from scdecode.decoding import gene_positions
from scdecode.errors import ConditionError, InputError, PointsError, check_integer
from scdecode.expression import Asked, prepare
from scdecode.model import SCVI
from scdecode.points import PointsLike
from scdecode.provenance import without_arguments
from scdecode.refitting.cells_along import of_lineage, place_cells, read_values
from scdecode.refitting.expected import moments_of
from scdecode.refitting.posterior import refit_line

_QUANTITIES = ("rate", "scale", "mean")


@checked
def refit(
    model: SCVI,
    path: PointsLike,
    adata: AnnData | None = None,
    *,
    pseudotime: Values,
    weights: Values = None,
    quantity: str = "rate",
    library_size: LibrarySize = None,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    genes: NamesLike | str | None = None,
    n_bins: int = 40,
    n_courses: int = 10,
    seed: Seed | None = None,
) -> AnnData:
    """Estimate the trends of genes along a path from the counts of the cells, with a band for each trend.

    Where counts and a pseudotime of the cells are known, this is the best estimate of the trend, and its band is one of
    the trend: that of the mean of the cells at a time, not that of the cells. What a decoder says of a path has errors
    of its own, which are smooth in time and alike in models that are trained on the same cells, so that neither a
    smoother nor an ensemble removes or shows them.

    The model gives the few time courses that genes follow, the first ``n_courses`` left singular vectors of its decoded
    log trends, the effects of batches and covariates, and the dispersion. How much of each course a gene has is
    estimated from its counts, shrunk by a prior that is learned from all genes (empirical Bayes): genes that do not
    change, or of which little was counted, get flat trends; the decoded trend of a gene itself plays no part.

    The counts are pooled into bins of time x combinations of conditions, and taken as negative binomial of mean::

        (library sizes of the cells) exp(level_g + sum_j beta_gj course_j(t) + delta_gm + effect_gm(t))

    where ``effect`` is the model's, of combination of conditions m against their average, and ``delta`` what the counts
    say of it beyond, around zero. ``beta`` has the prior of adaptive shrinkage (Stephens, 2017, Biostatistics 18:275;
    for several coefficients Urbut et al., 2019, Nature Genetics 51:187), a mixture of normals of several shapes and
    scales; the posterior of each is approximated by a normal.

    Parameters
    ----------
    model
        Of counts: ``nb``, ``zinb`` or ``poisson``.
    path
        A :class:`scdecode.Trajectory`, of one or several lineages, whose time is the pseudotime of the cells; as by
        :meth:`scdecode.Trajectory.along_pseudotime`.
    adata
        The cells, with counts; by default those that the model was made of.
    pseudotime
        Of each cell, in the units of the path's time: a column of ``adata.obs``, or an array, ``(n,)``; for several
        lineages also ``(n, lineages)``, as a DataFrame with their names or as an entry of ``adata.obsm``. Cells before
        or after the path are left out, and those for which a column has NaN or infinity.
    weights
        How far each cell belongs to the lineage, in these forms; by default all alike. The largest counts as one
        cell, half of it as half a cell.
    quantity
        ``"rate"``, ``"scale"`` or ``"mean"``.
    library_size, batch, labels, categorical, continuous, seed
        As for :meth:`scdecode.SCVI.decode`: the conditions that the trend is told for, whatever those of the cells are;
        the path's own hold where none are given.
    genes
        Names of the genes to return. The prior is learned from all genes, whichever are returned.
    n_bins
        Bins of time that cells are pooled into.
    n_courses
        Time courses, at most.

    Returns
    -------
    AnnData
        Points x genes, as :meth:`scdecode.SCVI.decode` gives them. ``X`` is the posterior mean of the trend; layers
        ``std`` its posterior standard deviation, ``q05`` and ``q95`` the 90 % band, of a posterior that is normal in
        the logarithm; ``decoded`` the trend as the model decodes it. ``var`` has ``counts``, the weighted counts of the
        cells, and ``misfit``, their mean squared Pearson residual, near 1 where counts scatter as is assumed; with
        several lineages, a column each. ``uns["scdecode"]["refit"]`` says what was done, and what prior was learned.

    Raises
    ------
    InputError
        For a model that is not of counts, columns that are not there, other lengths, cells with weight but without a
        pseudotime, no cells with weight.
    PointsError
        For what has no time, or another time than the cells.
    CountsError, ConditionError, ConfigError
        For cells that do not fit the model, and as :meth:`scdecode.SCVI.decode`.

    Notes
    -----
    Most of the gain over the decoded trend, and over a smoother for each gene, is that genes are shrunk together: with
    smooth curves of no model in the place of the decoder's time courses it is nearly the same. It says nothing for the
    decoder, then, and needs the cells: without them, ``model.decode(path)`` is what there is.

    The band takes the pseudotime, the lineages and the library sizes for right, and the time courses for enough: what
    no gene of the model does in time, no gene is found to do. Pooling takes cells of a bin to be at its mean time and
    to be independent: of donors in the place of cells it knows nothing but ``delta``. A pooled count is negative
    binomial only where library sizes are equal; its mean and variance are right, for independent cells, where they
    are not. The variance is Poisson's, and beyond that of the model's theta, of zero inflation, and of the scatter of
    the cells' states around the path, times a factor (``scatter`` in ``uns``) by which the counts of the median gene
    scatter as they do.

    In the benchmark of simulated branches, 2,000 cells x 1,000 genes, the band covers 87 to 91 % of the true trends,
    averaged over genes and times (``benchmarks/truth.md``); of genes below a count in 130 cells, 82 to 84 %.
    """
    check_integer("n_bins", n_bins, minimum=2, maximum=100_000)
    check_integer("n_courses", n_courses, minimum=1, maximum=1_000)
    if not model.config.has_counts:
        raise InputError(
            f"model: gene_likelihood={model.config.gene_likelihood!r} came, which is not one of counts; a model with "
            "'nb', 'zinb' or 'poisson' was expected"
        )
    if quantity not in _QUANTITIES:
        raise InputError(f"quantity: {quantity!r} came, one of {list(_QUANTITIES)} was expected")
    wanted = gene_positions(model.schema, genes)
    asked = prepare(
        model,
        path,
        quantity=quantity,
        library_size=library_size,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        seed=seed,
        count_noise=False,
    )
    lines = _lines(asked)
    cells, library_n = _read_cells(model, adata)
    source = model.adata if adata is None else adata
    times = read_values("pseudotime", pseudotime, source, len(cells))
    shares = read_values("weights", weights, source, len(cells))
    if not times:
        raise InputError("pseudotime: None came; a column of adata.obs or one number a cell was expected")
    names = tuple(str(name) for name in lines)
    if len(names) > 1 and not shares:
        raise InputError(
            f"weights: none came, and the path has lineages {list(names)}; say how far each cell belongs to each, a "
            f"DataFrame with these columns, or refit one of them with path[{names[0]!r}]"
        )
    decoded_ng, _ = moments_of(model, asked.points, asked.conditions, quantity, seed, 1.0)
    layers = {name: np.empty(decoded_ng.shape, dtype=np.float32) for name in ("X", "std", "q05", "q95")}
    suffixes = _suffixes(lines, several=len(asked.points.shape) > 1)
    var, done = asked.frame.var.copy(), {}
    for lineage, points in lines.items():
        time_n, share_n = of_lineage("pseudotime", times, lineage, names), of_lineage("weights", shares, lineage, names)
        assert time_n is not None and asked.points.time is not None, "checked above"
        if isinstance(pseudotime, str):  # cells outside of the lineage, such as those that dpt did not reach
            share_n = np.where(np.isfinite(time_n), 1.0 if share_n is None else share_n, 0.0)
        path_time = asked.points.time[points].astype(np.float64)
        along = place_cells(time_n, share_n, path_time, asked.points.time_name or "time", lineage)
        trend = refit_line(model, asked, points, cells, library_n, along, decoded_ng, n_bins, n_courses, seed)
        for name, values in trend.layers.items():
            layers[name][points] = values
        after = suffixes[lineage]
        var[f"counts{after}"], var[f"misfit{after}"] = trend.counts_g, trend.misfit_g
        done[after[1:] or "path"] = trend.report
    made = without_arguments(asked.frame.uns["scdecode"])  # they are decode's, of one layer
    result = AnnData(
        X=layers.pop("X"),
        obs=asked.frame.obs,
        var=var,
        obsm=asked.frame.obsm,
        layers={**layers, "decoded": decoded_ng.astype(np.float32)},
        uns={"scdecode": {**made, "band": "90 % of the trend", "refit": done}},
    )
    return result if wanted is None else result[:, list(wanted)].copy()


def _lines(asked: Asked) -> dict[str | None, np.ndarray]:
    """Positions of the points of each lineage."""
    points = asked.points
    if points.time is None:
        raise PointsError(
            "path: points without a time came; a Trajectory was expected, as of Trajectory.along_pseudotime(...)"
        )
    if points.lineage is None:
        return {None: np.arange(len(points))}
    return {str(name): np.flatnonzero(points.lineage == name) for name in dict.fromkeys(points.lineage)}


def _suffixes(lines: dict[str | None, np.ndarray], *, several: bool) -> dict[str | None, str]:
    """What the columns of each lineage end in; names that differ only in ``/``, a folder in a file, get a number."""
    suffixes: dict[str | None, str] = {}
    for lineage in lines:
        suffix = first = f"_{lineage}".replace("/", "_") if several else ""
        while suffix in suffixes.values():
            suffix = f"{first}_{len(suffixes)}"
        suffixes[lineage] = suffix
    return suffixes


def _read_cells(model: SCVI, adata: AnnData | None) -> tuple[Cells, np.ndarray]:
    """The cells, and what the scale is multiplied with to give their expected counts."""
    cells = cells_for(model, adata, None, need_conditions=True)
    columns = model.schema.columns
    if model.config.dispersion == "gene-label" and (cells.codes_nc[:, -1] == UNREAD).any():
        raise ConditionError(f"adata.obs: there is no {columns.labels_key!r}, which dispersion='gene-label' needs")
    if model.config.learns_library:
        return cells, model.get_latent_library_size(adata, give_mean=True).reshape(-1)
    if not model.config.use_size_factor:
        source = model.adata if adata is None else adata
        check_libraries(cells, model.config, None if source is None else source.obs_names)
        return cells, cells.library_n
    if cells.size_factor_n is None or np.isnan(cells.size_factor_n).any():
        raise ConditionError(f"adata.obs: there is no {columns.size_factor_key!r}, the size factor of this model")
    return cells, cells.size_factor_n
