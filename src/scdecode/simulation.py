"""Simulated cells whose truth is known everywhere.

::

    simulate_branching   cells that differentiate along a trunk and its branches
    true_scale           their expected expression at any pseudotime, on any branch, in any batch
"""

from __future__ import annotations

from typing import Any, Literal

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse
from scipy.special import expit, logit, softmax

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import NumbersLike, Seed, Values
from scdecode._utils.memory import check_memory
from scdecode.errors import (
    ConditionError,
    ConfigError,
    InputError,
    check_choice,
    check_integer,
    check_number,
    got,
    unknown_name,
)

BRANCH_POINT = 0.4  # the pseudotime at which the trunk ends
MAX_REDRAWS = 100
CHUNK = 2_000  # cells whose dense rates are held at once, so that memory grows with the counts and not with n x g

Floats = npt.NDArray[np.float64]


@checked
def simulate_branching(
    n_cells: int = 2000,
    n_genes: int = 1000,
    *,
    n_branches: int = 2,
    n_batches: int = 1,
    library_size: float = 1000.0,
    library_sd: float = 0.3,
    batch_sd: float = 0.3,
    noise: Literal["nb", "zinb", "poisson"] = "nb",
    inverse_dispersion: float = 5.0,
    zero_inflation: float = 0.2,
    n_latent: int = 10,
    truth_layers: bool = True,
    seed: Seed = 0,
) -> ad.AnnData:
    """Simulate cells that differentiate along a trunk and then along one of several branches.

    A cell has a pseudotime t, uniform on 0 to 1; at 0.4 the trunk ends and every later cell is on a branch, each
    equally likely. Its coordinates are t and, for each branch b, how far it went along that branch: with
    s = (t - 0.4) / 0.6, ``1.25 s^2 / (s + 0.25)``, which leaves the trunk without a kink. The latent is a rotation of
    these into ``n_latent`` dimensions. Each gene follows at most one coordinate c::

        log f_g(t, b) = log_base_g + log_fold_change_g * shape_g((c - center_g) / width_g)
        scale = softmax over genes of log f                                            (rho, sums to one)
        rate  = library_size of the cell * softmax over genes of log f + batch_effect  (counts)

    with shape 0 (``constant``, 40 % of genes), a logistic ``switch`` (40 %) or a Gaussian ``transient`` (20 %);
    half of the last two follow pseudotime, the others one branch. ``constant`` genes too move a little in ``scale``,
    as all fractions do when other genes rise. Counts are negative binomial, zero-inflated or not, or Poisson.

    No cell is empty: one that came out all zero is drawn again with the same pseudotime, branch, batch and library.
    Its counts then follow the model given that they are not all zero, an expected ``1 / (1 - P(empty))`` times more:
    nothing to speak of from a few dozen counts on. ``uns["simulation"]["n_redrawn"]`` says how often it happened.

    Parameters
    ----------
    n_cells, n_genes
        At least 1 and 2.
    n_branches
        At least 1, which makes a single unbranched line.
    n_batches
        Batches of cells, assigned at random. With one, there is no batch effect.
    library_size
        Median library size of a cell, in counts, above 0. Each batch's own median differs by about 10 %.
    library_sd
        Standard deviation of the natural log of the library size within a batch.
    batch_sd
        Standard deviation of a batch's log fold changes, on a random half of the genes; they sum to zero over batches.
    noise
        ``"nb"``, ``"zinb"`` or ``"poisson"``.
    inverse_dispersion
        Median over genes of theta, log-normal with sd 0.5; variance = rate + rate**2 / theta. Not for Poisson.
    zero_inflation
        Median over genes of the probability of a zero that is not sampling, 0 to below 1; only for ``"zinb"``.
    n_latent
        Dimensions of the true latent, at least ``1 + n_branches``.
    truth_layers
        Whether to store the dense layers; :func:`true_scale` gives the same numbers without them.
    seed
        The same arguments give the same data. Genes and their trends depend on ``seed``, ``n_genes`` and
        ``n_branches`` alone; batch effects on ``n_batches`` and ``batch_sd`` too: other cells of the same truth come
        with another ``n_cells``, ``noise`` or ``library_size``.

    Returns
    -------
    AnnData, n_cells x n_genes:

    - ``X``: CSR float32, counts
    - ``obs``: ``pseudotime`` (0 to 1), ``branch`` ("trunk", "branch_1", ...), ``batch`` ("batch_1", ...),
      ``library_size`` (the true one, in counts: what the sum of a row is expected to be before zero inflation)
    - ``obsm["latent"]``: n_cells x n_latent, the true latent
    - ``layers["scale"]``: float32, fractions, the truth WITHOUT batch effects: what decoded trends should follow
    - ``layers["rate"]``: float32, counts, the truth of the cell in its batch; times ``1 - zero_inflation``, its mean
    - ``var``: ``kind``, ``driver`` ("none", "pseudotime", "branch_1", ...), ``log_base``, ``log_fold_change``,
      ``center``, ``width`` (in the driver's units), ``inverse_dispersion`` (inf for Poisson), ``zero_inflation``,
      ``mean_scale`` (mean of the batch-free scale over the cells)
    - ``varm["batch_effect"]``: n_genes x n_batches, natural log fold changes
    - ``uns["simulation"]``: the arguments, ``branch_point``, ``n_redrawn`` and ``rotation`` (1 + n_branches x n_latent)

    Raises
    ------
    ConfigError
        An argument is out of its range, or so few counts are asked for that cells stay empty.
    """
    for place, value, least in (
        ("n_cells", n_cells, 1),
        ("n_genes", n_genes, 2),
        ("n_branches", n_branches, 1),
        ("n_batches", n_batches, 1),
        ("n_latent", n_latent, 1 + n_branches if isinstance(n_branches, int) else 2),  # else: reported just above
        ("seed", seed, 0),
    ):
        check_integer(place, value, least)
    n_columns = n_branches + n_batches + n_latent
    check_memory("n_cells, n_genes", n_cells, 8 * (2 * n_cells + n_columns) * n_genes + 8 * n_cells * n_columns)
    check_number("library_size", library_size, 0, 1e6, open_minimum=True)
    check_number("inverse_dispersion", inverse_dispersion, 1e-6, 1e9)
    check_number("library_sd", library_sd, 0, 3)
    check_number("batch_sd", batch_sd, 0, 3)
    check_number("zero_inflation", zero_inflation, 0, 1 - 1e-6)
    check_choice("noise", noise, ("nb", "zinb", "poisson"))
    parameters: dict[str, Any] = {
        "n_branches": n_branches,
        "n_batches": n_batches,
        "library_size": float(library_size),
        "library_sd": float(library_sd),
        "batch_sd": float(batch_sd),
        "noise": noise,
        "seed": seed,
        "branch_point": BRANCH_POINT,
    }

    # Three streams, so that asking for more cells or batches leaves the genes as they are.
    gene_rng, batch_rng, cell_rng = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(3))
    var = _genes(gene_rng, n_genes, n_branches)
    theta_g = inverse_dispersion * np.exp(0.5 * gene_rng.standard_normal(n_genes))
    dropout_g = expit(logit(zero_inflation) + 0.5 * gene_rng.standard_normal(n_genes))
    theta_g = np.full(n_genes, np.inf) if noise == "poisson" else theta_g
    dropout_g = dropout_g if noise == "zinb" else np.zeros(n_genes)
    # Orthonormal rows: a distance between two cells is the same in the latent as in the coordinates.
    basis_kd, upper_dd = np.linalg.qr(gene_rng.standard_normal((n_latent, 1 + n_branches)))
    rotation = (basis_kd * np.sign(np.diag(upper_dd))).T  # LAPACKs differ in the signs

    effect_gb = batch_sd * _centred(batch_rng.standard_normal((n_genes, n_batches)))
    effect_gb *= batch_rng.random((n_genes, 1)) < 0.5
    shift_b = 0.1 * _centred(batch_rng.standard_normal((1, n_batches)))[0]

    t_n = cell_rng.random(n_cells)
    branch_n = np.where(t_n <= BRANCH_POINT, 0, cell_rng.integers(1, n_branches + 1, n_cells))
    batch_n = cell_rng.integers(0, n_batches, n_cells)
    library_n = library_size * np.exp(shift_b[batch_n] + library_sd * cell_rng.standard_normal(n_cells))
    coordinates_nd = _coordinates(t_n, branch_n, n_branches)

    pieces, n_redrawn, total_g = [], 0, np.zeros(n_genes)
    layers = {k: np.empty((n_cells, n_genes), np.float32) for k in (("scale", "rate") if truth_layers else ())}
    for start in range(0, n_cells, CHUNK):
        rows = slice(start, start + CHUNK)
        log_ng = _log_expression(var, coordinates_nd[rows])
        scale_ng = softmax(log_ng, axis=1)
        log_ng += effect_gb.T[batch_n[rows]]
        rate_ng = library_n[rows, None] * softmax(log_ng, axis=1)
        counts_ng, again = _draw(cell_rng, rate_ng, theta_g, dropout_g)
        pieces.append(sparse.csr_matrix(counts_ng))
        total_g += scale_ng.sum(axis=0)
        n_redrawn += again
        for key, value_ng in (("scale", scale_ng), ("rate", rate_ng)) if truth_layers else ():
            layers[key][rows] = value_ng

    var["inverse_dispersion"], var["zero_inflation"], var["mean_scale"] = theta_g, dropout_g, total_g / n_cells
    branches, batches = ["trunk", *_names("branch", n_branches)], _names("batch", n_batches)
    obs = pd.DataFrame(
        {
            "pseudotime": t_n,
            "branch": pd.Categorical.from_codes(branch_n, branches),
            "batch": pd.Categorical.from_codes(batch_n, batches),
            "library_size": library_n,
        },
        index=pd.Index([f"cell_{i:0{len(str(n_cells))}d}" for i in range(1, n_cells + 1)]),
    )
    adata = ad.AnnData(sparse.vstack(pieces, format="csr"), obs=obs, var=var, layers=layers)
    adata.obsm["latent"] = coordinates_nd @ rotation
    adata.varm["batch_effect"] = effect_gb
    adata.uns["simulation"] = parameters | {
        "inverse_dispersion": float(inverse_dispersion),
        "zero_inflation": float(zero_inflation),
        "n_redrawn": n_redrawn,
        "rotation": rotation,
    }
    return adata


@checked
def true_scale(adata: ad.AnnData, pseudotime: NumbersLike, branch: Values, batch: Values = None) -> Floats:
    """Return the expression that :func:`simulate_branching` holds for true, at any pseudotime, in no cell.

    Everything it needs is in ``var``, ``varm`` and ``uns``, so it works after ``write_h5ad`` too, and on a subset of
    the genes: there it is the composition among the genes that are left, as a model of those genes would learn it.

    Parameters
    ----------
    adata
        What :func:`simulate_branching` returned, with any cells.
    pseudotime
        0 to 1; one number or n of them.
    branch
        One name or n of them. A branch includes the trunk that leads to it, so ``"branch_1"`` is a lineage from 0 to 1
        (continuous, as is its first derivative); ``"trunk"`` ends at pseudotime 0.4.
    batch
        One name or n of them; None for the truth without batch effects.

    Returns
    -------
    n x n_genes, float64: fractions of the cell's RNA (rho); each row sums to one. Times a library size: counts.

    Raises
    ------
    InputError
        ``adata`` does not come from :func:`simulate_branching`, or lost what describes its genes.
    ConfigError
        A pseudotime outside 0 to 1 or of the wrong length, an unknown branch, a trunk beyond its end.
    ConditionError
        An unknown batch.
    """
    needed = {"kind", "driver", "log_base", "log_fold_change", "center", "width"}
    if "simulation" not in adata.uns or "batch_effect" not in adata.varm or not needed.issubset(adata.var.columns):
        raise InputError(
            f"adata: uns has {list(adata.uns)}, varm has {list(adata.varm)}; uns['simulation'], "
            f"varm['batch_effect'] and the var columns {sorted(needed)} were expected; "
            "give what simulate_branching returned"
        )
    n_branches = int(adata.uns["simulation"]["n_branches"])
    branch_point = float(adata.uns["simulation"]["branch_point"])
    try:
        t_n = np.atleast_1d(np.asarray(pseudotime, dtype=np.float64))
    except (TypeError, ValueError):
        t_n = np.array([np.nan])
    if t_n.ndim != 1 or not ((t_n >= 0) & (t_n <= 1)).all():  # NaN fails both
        raise ConfigError(f"pseudotime: {pseudotime!r} came, one number or a vector of numbers in 0 to 1 was expected")
    branch_n = _codes("branch", branch, ["trunk", *_names("branch", n_branches)], len(t_n), ConfigError)
    late_n = (branch_n == 0) & (t_n > branch_point)
    if late_n.any():
        raise ConfigError(
            f"branch: 'trunk' came with pseudotime {t_n[late_n][0]:g}, but the trunk ends at {branch_point:g}; "
            f"name the branch: one of {_names('branch', n_branches)}"
        )
    log_ng = _log_expression(adata.var, _coordinates(t_n, branch_n, n_branches, branch_point))
    if batch is not None:
        effect_gb = np.asarray(adata.varm["batch_effect"])
        batch_n = _codes("batch", batch, _names("batch", effect_gb.shape[1]), len(t_n), ConditionError)
        log_ng += effect_gb.T[batch_n]
    return np.asarray(softmax(log_ng, axis=1))


def _names(kind: str, n: int) -> list[str]:
    return [f"{kind}_{i}" for i in range(1, n + 1)]


def _codes(place: str, value: Any, known: list[str], n: int, error: type[InputError]) -> npt.NDArray[np.intp]:
    """The position of each name among those known, one per point; ``error`` for another name or another length."""
    try:
        names = pd.Index([value] * n if isinstance(value, str) else np.atleast_1d(np.asarray(value, dtype=object)))
        codes: npt.NDArray[np.intp] = pd.Index(known).get_indexer(names)
    except (TypeError, ValueError) as problem:  # more axes than one; values that are no names
        raise error(f"{place}: got {got(value)}, expected one name or a list of names") from problem
    if len(names) != n:
        raise error(f"{place}: {len(names):,} names came, one or as many as there are pseudotimes ({n:,}) was expected")
    if (codes < 0).any():
        raise error(unknown_name(place, names[codes < 0][0], known, f"simulated {place} names"))
    return codes


def _centred(draw_gb: Floats) -> Floats:
    """Standard normals made to sum to zero over batches, and of unit variance all the same; one batch gives zeros."""
    n_batches = draw_gb.shape[1]
    centred_gb: Floats = draw_gb - draw_gb.mean(axis=1, keepdims=True)
    return centred_gb * float(np.sqrt(n_batches / max(n_batches - 1, 1)))


def _coordinates(
    t_n: Floats, branch_n: npt.NDArray[np.intp], n_branches: int, branch_point: float = BRANCH_POINT
) -> Floats:
    """Pseudotime, then the progress along each branch (0 to 1, 0 off that branch): n x (1 + n_branches), float64."""
    s_n = np.maximum(t_n - branch_point, 0.0) / (1 - branch_point)
    progress_n = 1.25 * s_n**2 / (s_n + 0.25)  # slope 0 at the branch point, nearly constant later
    on_branch_nb = branch_n[:, None] == np.arange(1, n_branches + 1)
    return np.column_stack([t_n, progress_n[:, None] * on_branch_nb])


def _genes(rng: np.random.Generator, n_genes: int, n_branches: int) -> pd.DataFrame:
    """One row a gene: what it does, along which coordinate, and from which mean (log-normal: most are low)."""
    kind_g = rng.choice(["constant", "switch", "transient"], n_genes, p=[0.4, 0.4, 0.2])
    driver_g = np.where(rng.random(n_genes) < 0.5, 0, rng.integers(1, n_branches + 1, n_genes))
    low_g, high_g = np.where(kind_g == "transient", [[0.08], [0.15]], [[0.04], [0.1]])
    fold_g = rng.choice([-1.0, 1.0], n_genes) * rng.uniform(1.0, 3.0, n_genes)
    drivers = ["none", "pseudotime", *_names("branch", n_branches)]
    return pd.DataFrame(
        {
            "kind": pd.Categorical(kind_g, ["constant", "switch", "transient"]),
            "driver": pd.Categorical.from_codes(np.where(kind_g == "constant", 0, driver_g + 1), drivers),
            # Both of a gene's levels are at most its log-normal mean; were rising genes to start from there, the total
            # would grow along each branch and every constant gene's share of it would halve.
            "log_base": 1.5 * rng.standard_normal(n_genes) - np.maximum(np.where(kind_g == "constant", 0.0, fold_g), 0),
            "log_fold_change": np.where(kind_g == "constant", 0.0, fold_g),
            # A branch's genes start after the branch point, where their coordinate is still 0.
            "center": np.where(driver_g == 0, rng.uniform(0.1, 0.9, n_genes), rng.uniform(0.3, 0.8, n_genes)),
            "width": rng.uniform(low_g, high_g),
        },
        index=pd.Index([f"gene_{i:0{len(str(n_genes))}d}" for i in range(1, n_genes + 1)]),
    )


def _log_expression(var: pd.DataFrame, coordinates_nd: Floats) -> Floats:
    """Log of unnormalised expression, n x g, from the genes' table alone."""
    # By name and not by category code: AnnData drops categories that a subset of the genes no longer has.
    axis_of = {"none": 0, "pseudotime": 0} | {f"branch_{b}": b for b in range(1, coordinates_nd.shape[1])}
    axis_g = np.array([axis_of[str(name)] for name in var["driver"]])
    center_g, width_g, fold_g, base_g = (
        var[column].to_numpy(np.float64) for column in ("center", "width", "log_fold_change", "log_base")
    )
    kind_g = var["kind"].to_numpy().astype(str)
    log_ng = np.tile(base_g, (len(coordinates_nd), 1))
    for kind, shape in (("switch", expit), ("transient", lambda x_ng: np.exp(-0.5 * x_ng**2))):
        of_kind_g = kind_g == kind
        x_ng = (coordinates_nd[:, axis_g[of_kind_g]] - center_g[of_kind_g]) / width_g[of_kind_g]
        log_ng[:, of_kind_g] += fold_g[of_kind_g] * shape(x_ng)
    return log_ng


def _draw(
    rng: np.random.Generator, rate_ng: Floats, theta_g: Floats, dropout_g: Floats
) -> tuple[npt.NDArray[np.float32], int]:
    """Counts (n x g, float32) with no empty row, and the number of rows that were drawn again."""
    counts_ng = np.zeros(rate_ng.shape, dtype=np.float32)
    empty = np.arange(len(rate_ng))
    n_redrawn = 0
    for _ in range(1 + MAX_REDRAWS):
        mean_ng = rate_ng[empty]
        if np.isfinite(theta_g).all():  # a negative binomial is a Poisson whose mean is gamma distributed
            mean_ng *= rng.standard_gamma(theta_g, mean_ng.shape) / theta_g
        drawn_ng = rng.poisson(mean_ng)
        if dropout_g.any():
            drawn_ng[rng.random(drawn_ng.shape) < dropout_g] = 0
        counts_ng[empty] = drawn_ng
        empty = empty[drawn_ng.sum(axis=1) == 0]
        if not len(empty):
            return counts_ng, n_redrawn
        n_redrawn += len(empty)
    raise ConfigError(
        f"library_size: {len(empty):,} cells had no count at all in {1 + MAX_REDRAWS} draws, their library is about "
        f"{rate_ng[empty].sum(axis=1).mean():.2g} counts; give more counts, or less zero_inflation or library_sd"
    )
