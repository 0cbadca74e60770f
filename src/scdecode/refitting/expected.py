"""What a model expects of pooled cells along a path, in their own conditions: trends, and how far cells scatter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scdecode._utils.inference import in_evaluation
from scdecode._utils.progress import tracked
from scdecode.conditions import Conditions, resolve
from scdecode.decoding import draw_tiles, make_request, slot_inputs
from scdecode.likelihoods import NegativeBinomial
from scdecode.model import SCVI
from scdecode.points import Points, read_points
from scdecode.refitting.pooling import Pooled

_KNOTS = 34  # points of a path at which the model is asked in every condition; between them it is interpolated
LEAST = 1e-8
"""Of the expression of all genes: what is below is rounding, and has no logarithm to speak of."""


@dataclass(frozen=True, eq=False)
class Expected:
    """Per unit of the library, at some points of a path, the knots."""

    time_k: np.ndarray
    log_trend_kg: np.ndarray  # averaged over the combinations of conditions of the cells
    log_ratio_mkg: np.ndarray  # of each combination to that
    noise_kg: np.ndarray  # variance of cells' expected counts beyond the mean's: of their states and of zero inflation
    dispersion_lg: np.ndarray  # 1 / theta of each level that it depends on; one row where it depends on none
    level_b: np.ndarray | None  # of each pooled row, where it depends on the batch

    def kappa(self, pooled: Pooled) -> np.ndarray:
        """Of each row, ``(b, g)``: variance of its counts as ``mean + kappa mean^2``.

        A cell at a given time has a state that scatters around the path, with a relative variance c, and counts that
        scatter around what its state expects, with ``1 / theta``: together ``(1 + c) (1 + 1 / theta) - 1``.
        """
        if pooled.labels_bl.shape[1]:
            dispersion_bg = pooled.labels_bl @ self.dispersion_lg
        else:
            dispersion_bg = self.dispersion_lg if self.level_b is None else self.dispersion_lg[self.level_b]
        scatter_bg = between(self.time_k, pooled.time_b) @ self.noise_kg
        return np.asarray(((1 + scatter_bg) * (1 + dispersion_bg) - 1) * pooled.lone_b[:, None])


def between(time_k: np.ndarray, time_n: np.ndarray) -> np.ndarray:
    """The matrix that interpolates linearly from some times to others, ``(n, k)``; constant beyond the ends."""
    right = np.clip(np.searchsorted(time_k, time_n, side="right"), 1, len(time_k) - 1)
    share = np.clip((time_n - time_k[right - 1]) / (time_k[right] - time_k[right - 1]), 0.0, 1.0)
    matrix = np.zeros((len(time_n), len(time_k)))
    matrix[np.arange(len(time_n)), right - 1] = 1 - share
    matrix[np.arange(len(time_n)), right] += share
    return matrix


def knots_of(n_points: int, *, every: bool) -> np.ndarray:
    """Positions of points at which the model is asked: all, or a few."""
    return (
        np.arange(n_points)
        if every
        else np.unique(np.linspace(0, n_points - 1, min(_KNOTS, n_points)).round()).astype(int)
    )


def expect(
    model: SCVI,
    points: Points,
    knots: np.ndarray,
    pooled: Pooled,
    *,
    seed: int | None,
) -> Expected:
    """Ask the model for the trends of the cells' combinations of conditions.

    Parameters
    ----------
    points
        Of one path, with its spread.
    knots
        Positions of those to look at.
    pooled
        The cells.
    seed
        Of the draws for the spread, as for :meth:`scdecode.SCVI.decode`.
    """
    z = points.z_nk[knots]
    spread = None if points.spread is None else points.spread[knots]
    assert points.time is not None, "a path has times"
    time_k = points.time[knots].astype(np.float64)
    here = read_points(z, model.config.n_latent, spread=spread, simplex=points.simplex)
    library_m = np.bincount(pooled.combination_b, weights=pooled.library_b, minlength=pooled.n_combinations)
    trend_mkg = np.empty((pooled.n_combinations, len(knots), model.schema.n_genes), dtype=np.float32)
    noise_kg = np.zeros(trend_mkg.shape[1:])
    for m, share in enumerate(library_m / library_m.sum()):
        given = _conditions_of(model, pooled, m, time_k)
        mean_kg, std_kg = _decode(model, here, given, "mean", seed)
        trend_mkg[m] = mean_kg
        least = LEAST * mean_kg.sum(axis=1, keepdims=True)
        noise_kg += share * (std_kg / (mean_kg + least)) ** 2
    share_m = library_m / library_m.sum()
    log_trend_kg = log_of(np.tensordot(share_m, trend_mkg, axes=1))
    most = int(library_m.argmax())
    given = _conditions_of(model, pooled, most, time_k)
    if model.config.gene_likelihood == "zinb":
        rate_kg, _ = _decode(model, here, given, "rate", seed)
        kept_kg = np.clip(trend_mkg[most] / np.maximum(rate_kg, 1e-30), 1e-6, 1.0)
        noise_kg = (1 + noise_kg) / kept_kg - 1  # of m counts, (1 - kept) / kept m^2 is that of a zero or not
    dispersion_lg, level_b = _dispersion(model, z, given, pooled)
    return Expected(
        time_k=time_k,
        log_trend_kg=log_trend_kg,
        log_ratio_mkg=np.stack([log_of(trend_kg) - log_trend_kg for trend_kg in trend_mkg]).astype(np.float32),
        noise_kg=noise_kg,
        dispersion_lg=dispersion_lg,
        level_b=level_b,
    )


def log_of(values_ng: np.ndarray) -> np.ndarray:
    """Natural logarithm of the expression of all genes, kept from minus infinity."""
    values = values_ng.astype(np.float64)
    return np.asarray(np.log(values + LEAST * values.sum(axis=1, keepdims=True)))


def moments_of(
    model: SCVI, points: Points, conditions: Conditions, quantity: str, seed: int | None, library_n: np.ndarray | float
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the spread of all genes, divided by ``library_n``, ``(n, g)`` each."""
    request = make_request(
        quantity,
        points,
        model.schema.n_genes,
        genes=None,
        n_samples=None,
        seed=seed,
        chunk_size=None,
        count_noise=False,
    )
    mean_ng, std_ng = (np.empty((len(points), model.schema.n_genes)) for _ in range(2))
    tiles = draw_tiles(model.vae, points, conditions, request, torch.device("cpu"))
    for rows, draws_sng in tracked(
        tiles, "refitting: the decoded trend", unit="points", total=len(points), size=lambda tile: len(tile[1][0])
    ):
        mean_ng[rows] = draws_sng.mean(axis=0)
        std_ng[rows] = draws_sng.std(axis=0)
    return mean_ng / library_n, std_ng / library_n


def _conditions_of(model: SCVI, pooled: Pooled, combination: int, time_k: np.ndarray) -> dict[str, Any]:
    """A combination of conditions as arguments; covariates that are numbers as its cells have them along the path."""
    schema = model.schema
    batch, *others = pooled.codes_mc[combination].tolist()
    given: dict[str, Any] = {}
    if schema.batch is not None:
        given["batch"] = schema.batch.names[batch]
    given["categorical"] = {c.key: c.names[code] for c, code in zip(schema.categorical, others, strict=True)}
    own = np.flatnonzero(pooled.combination_b == combination)
    own = own[np.argsort(pooled.time_b[own], kind="stable")]
    given["continuous"] = {
        key: np.interp(time_k, pooled.time_b[own], pooled.continuous_bd[own, d])
        for d, key in enumerate(schema.continuous)
    }
    return given


def _decode(
    model: SCVI, points: Points, given: Mapping[str, Any], quantity: str, seed: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the spread, per unit of the library, ``(k, g)`` each."""
    unit = 1e4 if model.schema.columns.size_factor_key is None else 1.0
    conditions = _resolve(model, points, given, unit)
    return moments_of(model, points, conditions, quantity, seed, unit)


def _resolve(model: SCVI, points: Points, given: Mapping[str, Any], library_size: float) -> Conditions:
    return resolve(model.schema, len(points), library_size=library_size, **given)


def _dispersion(
    model: SCVI, z: torch.Tensor, given: Mapping[str, Any], pooled: Pooled
) -> tuple[np.ndarray, np.ndarray | None]:
    """1 / theta of each level, and the level of each row where that is its batch."""
    vae, kind = model.vae, model.config.dispersion
    if model.config.gene_likelihood == "poisson":
        return np.zeros((1, model.schema.n_genes)), None
    if vae.log_theta is None:  # it depends on the cell: its mean along the path
        points = read_points(z, model.config.n_latent, simplex=model.config.latent_distribution == "ln")
        codes, continuous, _ = slot_inputs(_resolve(model, points, given, 1e4), slice(0, len(points)), 0, z.device)
        with torch.no_grad():
            log_theta = in_evaluation(vae).decode(points.z_nk, codes, continuous).log_theta
        assert log_theta is not None, "the decoder has a head for it"
        return _inverse(log_theta).mean(axis=0, keepdims=True), None
    return _inverse(vae.log_theta), pooled.codes_mc[pooled.combination_b, 0] if kind == "gene-batch" else None


def _inverse(log_theta: torch.Tensor) -> np.ndarray:
    theta = NegativeBinomial(log_theta.detach(), log_theta.detach()).theta  # kept within its bounds
    return np.asarray(1.0 / theta.double().cpu().numpy())
