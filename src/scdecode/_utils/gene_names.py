"""Names of genes: each once, and where those of a model are among them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from scdecode.errors import CountsError, listing


def check_unique(genes: Sequence[str] | pd.Index, place: str) -> None:
    """Raise :class:`CountsError` if a gene is named twice.

    Parameters
    ----------
    genes
        Names.
    place
        Where they come from: ``"adata.var_names"`` or ``"adata.raw.var_names"``.
    """
    index = pd.Index(genes)
    if not index.is_unique:
        twice = index[index.duplicated()].unique().tolist()
        remedy = "call adata.var_names_make_unique() first"
        if "raw" in place:
            remedy = "raw = adata.raw.to_adata(); raw.var_names_make_unique(); adata.raw = raw makes them unique"
        raise CountsError(f"{place}: {len(twice):,} genes are named more than once {listing(twice, 5)}; {remedy}")


def positions_of(genes: tuple[str, ...], names: pd.Index, place: str, more_names: pd.Index | None) -> np.ndarray | None:
    """Return where the genes of a model are among names; None if they are the same in the same order.

    Parameters
    ----------
    genes
        Of the model.
    names
        Of the cells.
    place
        As for :func:`check_unique`.
    more_names
        Names in ``adata.raw``, where the counts are looked for in another place.

    Raises
    ------
    CountsError
        If genes are missing; the message lists them, and says if ``adata.raw`` has them.
    """
    names = pd.Index(names.astype(str))
    if tuple(names) == genes:
        return None
    wanted = np.flatnonzero(names.isin(genes))
    check_unique(names[wanted], place)
    found = names[wanted].get_indexer(pd.Index(genes))
    missing = [genes[i] for i in np.flatnonzero(found < 0)]
    if missing:
        raw = ""
        if more_names is not None and set(more_names.astype(str)).issuperset(genes):
            raw = "; adata.raw has all of them: use_raw=True reads its counts"
        raise CountsError(
            f"{place}: {len(missing):,} of the model's {len(genes):,} genes are missing "
            f"{listing(missing)}; give the AnnData before genes were selected, or check that both name genes alike "
            f"(symbols or identifiers: the AnnData begins {listing(names[:3])}){raw}"
        )
    return np.asarray(wanted[found])
