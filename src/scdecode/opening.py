"""``load``: a model directory, whatever class of model it holds and whichever program saved it."""

from __future__ import annotations

from pathlib import Path

from anndata import AnnData

from scdecode import keeping, parity
from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import FilePrefix
from scdecode.errors import InputError
from scdecode.formats import scvi_tools
from scdecode.formats.reading import read_model
from scdecode.linear_scvi import LinearSCVI
from scdecode.model import SCVI
from scdecode.scanvi import SCANVI

_CLASSES: dict[str, type[SCVI]] = {kind.__name__: kind for kind in (SCVI, LinearSCVI, SCANVI)}


@checked
def load(
    directory: str | Path, adata: AnnData | None = None, *, prefix: FilePrefix | None = None, verify: bool = False
) -> SCVI:
    """Open a model directory; it needs no AnnData.

    Parameters
    ----------
    directory
        What :meth:`SCVI.save` wrote, or scvi-tools (versions 0.8 to 1.5; ``SCVI``, ``LinearSCVI``, ``SCANVI``), which
        need not be installed. Nothing in the files is ever executed.
    adata
        The cells that the model was trained on: they are then its cells, as with :meth:`SCVI.load`, and it can be
        trained further. By default it has none.
    prefix
        Of scvi-tools' files, where they were saved with one.
    verify
        Compare scvi-tools' own network with ours first, by random points and cells; scvi-tools has to be installed.
        :func:`scdecode.convert` gives the figures.

    Returns
    -------
    SCVI
        Or, of the classes above, the one that was saved. One of scvi-tools keeps none of its training cells: averages
        over conditions are then plain ones over the levels and support is unknown, until
        :meth:`SCVI.attach_reference`.

    Raises
    ------
    FormatError
        Where there is no model; its kinds say whether it was edited, is newer than this scdecode, another program's, or
        asks for code to be run. With ``verify``, also where the two networks differ by more than 1e-5.
    InputError, CountsError, ConditionError
        Where ``adata`` does not fit the model.
    MissingExtraError
        With ``verify``, where scvi-tools is not installed.
    """
    if isinstance(adata, str):
        raise InputError(f"adata: got {adata!r}, expected an AnnData or None; pass prefix={adata!r} for a prefix")
    stored = read_model(directory, prefix=prefix)
    if verify:
        parity.check(parity.compare(stored, scvi_tools.weights_of(stored)), str(directory))
    model = _CLASSES[stored.class_name]._of(stored)
    if adata is not None:
        keeping.give_cells(model, adata)
    return model
