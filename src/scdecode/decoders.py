"""A decoder for loops: conditions are resolved once, and then every call is points in, expression out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import Tensor
from torch.distributions import Distribution

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ConditionTable, LibrarySize, NamesLike, PerPoint
from scdecode.conditions import Conditions, resolve
from scdecode.config import ModelConfig
from scdecode.decode_plan import Given, Plan, worth_loops
from scdecode.decoding import OURS, QUANTITIES, gene_positions, plan_of
from scdecode.decoding.module import DecoderModule
from scdecode.errors import ConditionError, InputError, PointsError, unknown_name
from scdecode.points import read_latents
from scdecode.provenance import unit_of
from scdecode.schema import Schema
from scdecode.vae import VAE

_TILE_VALUES = 2**20  # computed at once in plain torch


class Decodes(Protocol):
    """What a decoder needs of a model."""

    config: ModelConfig
    schema: Schema
    vae: VAE

    def check_trained(self) -> None:
        """An error where the model has no trained weights."""


class PointDecoder:
    """Latent points to expression under fixed conditions; made by :meth:`scdecode.SCVI.decoder`.

    Attributes
    ----------
    genes
        The names of the result's columns.
    quantity
        ``"rate"``, ``"scale"`` or ``"mean"``.
    unit
        The unit of the result, in words.
    conditions
        What the points are decoded with, by name; ``"average"`` where it is averaged over.
    """

    def __init__(
        self,
        plan: Plan,
        conditions: Conditions,
        config: ModelConfig,
        *,
        genes: tuple[str, ...],
        quantity: str,
        unit: str,
    ) -> None:
        self.genes = genes
        self.quantity = quantity
        self.unit = unit
        self.conditions: dict[str, Any] = conditions.obs.iloc[0].to_dict()
        self._plan = plan
        self._n_latent = config.n_latent
        self._simplex = config.latent_distribution == "ln"
        self._library_n = np.ones(1, dtype=np.float32) if quantity == "scale" else conditions.library_n
        self._n_values = plan.scale.weight_io.shape[1] * plan.n_slots  # to compute for each point

    @checked
    def __call__(self, points: Any) -> np.ndarray:
        """Decode points.

        Parameters
        ----------
        points
            ``(..., k)``: numpy, torch (without gradients), a list, a DataFrame. One point may be ``(k,)``.

        Returns
        -------
        numpy.ndarray
            ``(..., genes)`` float32, in :attr:`unit`.

        Raises
        ------
        PointsError
            For points of the wrong width, without rows, with NaN; for an AnnData, a distribution or a trajectory.
        """
        if isinstance(points, AnnData | Distribution) or hasattr(points, "points"):
            raise PointsError(
                f"points: {type(points).__name__} came, but a decoder takes arrays alone: adata.obsm['X_scVI'], "
                "distribution.mean, trajectory.points; model.decode(points, ...) takes it as it is"
            )
        z_nk, shape = read_latents(points, self._n_latent, simplex=self._simplex)
        n = len(z_nk)
        given = Given(z_nk, np.zeros(n, dtype=np.int64), self._library_n)
        size = max(1, _TILE_VALUES // self._n_values)
        if n <= size:
            return self._plan.compute(given).numpy().reshape(*shape, -1)
        values = np.empty((n, len(self.genes)), dtype=np.float32)
        if worth_loops(n * self._n_values):
            self._plan.fill(given, values)
        else:
            for start in range(0, n, size):
                some = slice(start, min(start + size, n))
                values[some] = self._plan.compute(given.at(some)).numpy()
        return values.reshape(*shape, -1)

    def module(self) -> DecoderModule:
        """Return the decoder as a :class:`torch.nn.Module`, from tensors to tensors.

        ``torch.export``, ``torch.compile``, ``torch.func`` (``vmap``, ``jacrev``, ``jvp``) and ONNX take it; see
        ``scdecode export`` for the last. It is differentiable in the points, whose values it does not check.

        Returns
        -------
        torch.nn.Module
            Maps ``(..., k)`` float32 to ``(..., genes)``, as a call of this decoder does but for rounding. The weights,
            the conditions and the library size of now are constants in it; ``.genes``, ``.quantity`` and ``.unit`` say
            what its columns are.

        Examples
        --------
        >>> import torch
        >>> import scdecode as sd
        >>> adata = sd.datasets.simulate_branching(300, 50)
        >>> sd.SCVI.setup_anndata(adata, batch_key="batch")
        >>> model = sd.SCVI(adata, n_latent=4, gene_likelihood="nb")
        >>> model.train(max_epochs=2)
        >>> module = model.decoder(batch="batch_1").module()
        >>> torch.func.vmap(torch.func.jacrev(module))(torch.zeros(3, 4)).shape
        torch.Size([3, 50, 4])
        """
        library_size = float(self._library_n[0])
        return DecoderModule(self._plan, library_size, genes=self.genes, quantity=self.quantity, unit=self.unit)

    def __repr__(self) -> str:
        """What it decodes to, and with what."""
        said = ", ".join(f"{name}={value!r}" for name, value in self.conditions.items())
        return f"<decoder: (..., {self._n_latent}) -> (..., {len(self.genes)}), {self.quantity}: {self.unit}; {said}>"


@checked
def decoder(
    model: Decodes,
    *,
    quantity: str = "rate",
    library_size: LibrarySize = None,
    batch: PerPoint = None,
    labels: PerPoint = None,
    categorical: ConditionTable = None,
    continuous: ConditionTable = None,
    genes: NamesLike | str | None = None,
    max_conditions: int = 100,
    **others: Any,
) -> PointDecoder:
    """A function from latent points to expression, for loops: solvers, optimisers, flows.

    What :meth:`decode` does for each call, but for the points, is done here once: names are resolved and what the
    conditions add to the network is computed. The result's calls take a fraction of a millisecond for one point and
    give an array: no names, no support (:meth:`support` has that), no error bars.

    Parameters
    ----------
    quantity
        ``"rate"`` (l rho, counts expected before zero inflation), ``"scale"`` (rho, the fraction of the RNA) or
        ``"mean"`` ((1 - pi) l rho, counts expected to be observed).
    library_size
        l, in counts, for all points; see :meth:`decode`.
    batch, labels, categorical, continuous, genes, max_conditions
        As for :meth:`decode`, but the same for all points: a name or number, a list to average over, or a mapping of
        names to weights.
    **others
        There are no others; for those of :meth:`decode` and of scvi-tools' methods, the error says where they belong.

    Returns
    -------
    PointDecoder
        ``decode(z)`` maps ``(..., k)`` to ``(..., genes)``, numpy float32: ``model.decode(z, ...).X`` but for rounding.
        It has the model's weights of now: after more training, make another.

    Raises
    ------
    ConditionError
        For unknown names, impossible library sizes, and values that are one per point.
    InputError
        For unknown genes or quantities, for draws (``"counts"``), and for other arguments.

    Examples
    --------
    >>> import scdecode as sd
    >>> adata = sd.datasets.simulate_branching(300, 50)
    >>> sd.SCVI.setup_anndata(adata, batch_key="batch")
    >>> model = sd.SCVI(adata, n_latent=4, gene_likelihood="nb")
    >>> model.train(max_epochs=2)
    >>> decode = model.decoder(batch="batch_1")
    >>> decode([0.0, 0.0, 0.0, 0.0]).shape
    (50,)
    """
    _check_words(others)
    model.check_trained()
    if quantity == "counts":
        raise InputError("quantity: 'counts' came, which are draws; model.decode(..., quantity='counts') draws them")
    if quantity not in QUANTITIES:
        raise InputError(unknown_name("quantity", quantity, [q for q in QUANTITIES if q != "counts"], "quantities"))
    _check_common({"batch": batch, "labels": labels, "library_size": library_size}, categorical, continuous)
    conditions = resolve(
        model.schema,
        1,
        batch=batch,
        labels=labels,
        categorical=categorical,
        continuous=continuous,
        library_size=library_size,
        max_conditions=max_conditions,
        label_matters=model.config.dispersion == "gene-label",
    )
    positions = gene_positions(model.schema, genes)
    names = model.schema.genes
    return PointDecoder(
        plan_of(model.vae, conditions, quantity, positions),
        conditions,
        model.config,
        genes=names if positions is None else tuple(names[i] for i in positions),
        quantity=quantity,
        unit=unit_of(quantity, model.schema),
    )


_OF_DECODE = (
    "out",
    "overwrite",
    "spread",
    "n_samples",
    "seed",
    "chunk_size",
    "batch_size",
    "use_rep",
    "device",
    "on_tile",
)
"""Arguments of :meth:`decode` that a decoder has not."""


def _check_words(others: Mapping[str, Any]) -> None:
    """Raise :class:`InputError` for an argument that there is not."""
    for name in others:
        meant = f"; did you mean {OURS[name]}=?" if name in OURS else ""
        if name in _OF_DECODE:
            meant = "; model.decode(points, ...) has it"
        raise InputError(f"decoder: there is no argument {name!r}{meant}")


def _check_common(
    single: Mapping[str, Any], categorical: Mapping[str, Any] | None, continuous: Mapping[str, Any] | None
) -> None:
    """Raise :class:`ConditionError` for conditions that are one per point: a decoder does not know its points."""
    said = dict(single)
    for place, mapping in {"categorical": categorical, "continuous": continuous}.items():
        if isinstance(mapping, Mapping | pd.DataFrame):
            said |= {f"{place}[{key!r}]": mapping[key] for key in mapping}
    for place, value in said.items():
        if isinstance(value, np.ndarray | pd.Series | pd.Index | Tensor) and np.ndim(value) > 0:
            one = "one value, a list to average over or a mapping of names to weights"
            raise ConditionError(
                f"{place}: an array came, but a decoder has the same conditions for all points; pass "
                f"{'one number' if place == 'library_size' else one}; model.decode(points, ...) takes one per point"
            )
