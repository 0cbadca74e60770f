"""Names of cells and points: which values carry them, and whether two agree.

Values of several cells go by position. Where both they and the cells have names, the names must be the same in the same
order: :func:`check_names` is the one place that says so.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from scdecode.errors import ConditionError, listing


class NamedNormal(Normal):
    """A normal distribution of the latent point of each cell, which knows the names of the cells.

    Parameters
    ----------
    loc, scale
        ``(n, k)`` means and standard deviations.
    names
        ``(n,)`` names of the cells.

    Examples
    --------
    >>> posterior = NamedNormal(torch.zeros(2, 3), torch.ones(2, 3), pd.Index(["cell_1", "cell_2"]))
    >>> list(posterior.names)
    ['cell_1', 'cell_2']
    """

    def __init__(self, loc: Tensor, scale: Tensor, names: pd.Index) -> None:
        super().__init__(loc, scale, validate_args=False)
        self.names = names

    def expand(self, batch_shape: Any, _instance: Any = None) -> Normal:
        """Return the distribution in another shape: a plain ``Normal``, as its rows need not be the cells."""
        instance = Normal.__new__(Normal) if _instance is None else _instance
        expanded: Normal = super().expand(batch_shape, _instance=instance)  # type: ignore[no-untyped-call]
        return expanded


def as_names(names: pd.Index) -> pd.Index:
    """Return names as strings, those of several levels joined."""
    if isinstance(names, pd.MultiIndex):
        return pd.Index(["-".join(map(str, levels)) for levels in names])
    return names.astype(str)


def are_numbers(names: pd.Index) -> bool:
    """Return whether names are the whole numbers from 0, which pandas gives to what has no names."""
    return not isinstance(names, pd.MultiIndex) and names.equals(pd.RangeIndex(len(names)))


def names_of(points: Any) -> pd.Index | None:
    """Return the names that points or cells carry, ``(n,)``: of a DataFrame, an AnnData or a posterior; else None."""
    while isinstance(points, Independent):
        points = points.base_dist
    if isinstance(points, pd.DataFrame):
        return points.index
    if isinstance(points, AnnData):
        return points.obs_names
    if isinstance(points, Distribution):
        names, shape = getattr(points, "names", None), points.batch_shape
        # a distribution whose parameters were replaced by those of other cells has lost its names
        return names if isinstance(names, pd.Index) and tuple(shape[:1]) == (len(names),) else None
    return None


def check_names(place: str, values: Any, names: pd.Index | None, kind: str = "points") -> None:
    """Raise :class:`ConditionError` where values name other points than those they stand beside, or in another order.

    Parameters
    ----------
    place
        The argument, for messages.
    values
        One value for each point. Only a Series or a DataFrame has names; anything else goes by position.
    names
        Names of the points; None or the numbers from 0 if they have none.
    kind
        What the points are, for messages.

    Raises
    ------
    ConditionError
        For the same names in another order, and for other names. Values whose index are the numbers from 0 have no
        names, but are refused if the names of the points are these numbers in another order.
    """
    if not isinstance(values, pd.Series | pd.DataFrame) or names is None or len(values) != len(names):
        return  # the reader of the values says how many it expected
    if values.index.equals(names):
        return
    own, known = as_names(values.index), as_names(names)
    if own.equals(known):
        return
    what = type(values).__name__
    begin = f"it begins {listing(own[:3])}, they do {listing(known[:3])}"
    if set(own) == set(known):
        raise ConditionError(
            f"{place}: a {what} came that names the {kind} in another order ({begin}); bring it into theirs with "
            ".loc[...], or pass .to_numpy() to go by position"
        )
    if are_numbers(values.index) or are_numbers(names):
        return
    strange = own[~own.isin(known)]
    raise ConditionError(
        f"{place}: got a {what} with other names than the {kind} have ({begin}; {len(strange):,} of its "
        f"{len(own):,} names are not theirs), expected one value for each of the {kind}, in their order; select them "
        "with .loc[...], or pass .to_numpy() to go by position"
    )


def as_mask(mask: Any) -> np.ndarray | None:
    """Return a mask of any kind as booleans, None for what is no mask.

    Raises
    ------
    ValueError
        For a mask with missing values.
    """
    if isinstance(mask, torch.Tensor):
        mask = mask.detach().cpu().numpy()
    if isinstance(mask, np.ma.MaskedArray) and np.ma.is_masked(mask):
        raise ValueError(f"{int(np.ma.getmaskarray(mask).sum()):,} of its values are masked")
    if isinstance(mask, pd.Series | pd.Index | pd.api.extensions.ExtensionArray) and mask.dtype == "boolean":
        missing = int(pd.isna(mask).sum())
        if missing:
            raise ValueError(f"{missing:,} of its values are missing")
        return np.asarray(mask, dtype=bool)
    array = np.asarray(mask)
    return array if array.dtype == bool else None
