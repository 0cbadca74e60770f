"""``convert``: a model directory of scdecode to one of scvi-tools, or the other way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from scdecode import parity
from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import FilePrefix
from scdecode.errors import InputError, check_choice
from scdecode.formats import native, scvi_tools
from scdecode.opening import load

TARGETS = ("scdecode", "scvi-tools")


@checked
def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str = "scdecode",
    prefix: FilePrefix | None = None,
    reference: Any = None,
    verify: bool = False,
    overwrite: bool = False,
) -> pd.DataFrame | None:
    """Write a model directory, of scdecode or of scvi-tools, in the format of either.

    Parameters
    ----------
    source
        A model directory; nothing in it is executed.
    target
        The directory to write.
    to
        ``"scdecode"``: JSON and safetensors. ``"scvi-tools"``: a ``model.pt`` that scvi-tools 1.x opens with
        ``SCVI.load(target, adata)``; what it has no place for, as the reference cells, is left out.
    prefix
        Of the source's files, where scvi-tools saved them with one.
    reference
        Training cells for :meth:`SCVI.attach_reference`, which scvi-tools' files lack; for ``to="scdecode"`` alone.
    verify
        Compare scvi-tools' own network with ours, by random points and cells, before anything is written;
        scvi-tools has to be installed.
    overwrite
        Whether to replace the target.

    Returns
    -------
    DataFrame or None
        With ``verify``: the largest relative difference of each quantity.

    Raises
    ------
    FormatError
        Where the source cannot be opened, or the two networks differ by more than 1e-5.
    OutputError
        Where the target cannot be written.
    MissingExtraError
        With ``verify``, where scvi-tools is not installed.
    """
    check_choice("to", to, TARGETS)
    (native if to == "scdecode" else scvi_tools).check_target(target, overwrite=overwrite)
    if reference is not None and to != "scdecode":
        raise InputError("reference: cells came, and scvi-tools' files have no place for them; leave them out")
    model = load(source, prefix=prefix)
    if reference is not None:
        model.attach_reference(reference)
    stored = model.stored()
    table = None
    if verify:
        table = parity.compare(stored, scvi_tools.weights_of(stored))
        parity.check(table, str(source))
    if to == "scdecode":
        model.save(target, overwrite=overwrite)
    else:
        scvi_tools.write(target, stored, overwrite=overwrite)
    return table
