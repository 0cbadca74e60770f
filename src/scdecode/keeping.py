"""Models to directories and back, and what a model knows of its training cells.

These functions are the methods of the same names of :class:`scdecode.SCVI`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import numpy as np
from anndata import AnnData

from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import FilePrefix
from scdecode._utils.model_use import changes
from scdecode.arguments import Refusals, refuse
from scdecode.cells import Cells, check_cells, check_unchanged, knowing, open_anndata, read_cells, unknowing
from scdecode.config import ModelConfig, TrainConfig
from scdecode.errors import CountsError, CountsWarning, FormatError, InputError, unknown_name, warn
from scdecode.formats import native
from scdecode.formats.reading import BESIDE, cells_beside, read_model_and
from scdecode.formats.stored import Origin, StoredModel
from scdecode.minibatches import Split
from scdecode.points import LatentsLike, read_points
from scdecode.reference import Reference, make_reference, reference_of_latents
from scdecode.results import write_h5ad
from scdecode.schema import Schema
from scdecode.support import Support
from scdecode.vae import VAE

_ON_THE_CPU = "a model is opened on the CPU; train, decode and encode take device=..."
_LOAD: Refusals = {
    "accelerator": (("auto", "cpu"), _ON_THE_CPU),
    "device": (("auto", "cpu"), _ON_THE_CPU),
    "backup_url": ((None,), "download the directory first"),
    "datamodule": ((None,), "give the cells as an AnnData"),
    "allowed_classes_names_list": ((None,), "scdecode.load opens a model of any class"),
    "use_gpu": ((None, False), _ON_THE_CPU),
}
_SAVE: Refusals = {
    "prefix": ((None, ""), "a model is a directory of its own: put it into its name"),
    "save_kwargs": ((None, {}), "they are of torch.save, which is not used here"),
    "legacy_mudata_format": ((False,), "a model here is of an AnnData"),
    "datamodule": ((None,), "a model here is of an AnnData"),
}


_WRITE_H5AD = ("as_dense", "compression", "compression_opts", "convert_strings_to_categoricals", "dataset_kwargs")

_MINIFIED = "_scvi_adata_minify_type"
"""Where in ``uns`` scvi-tools notes that it took the counts away."""


class Keepable(Protocol):
    """What is kept of a model."""

    config: ModelConfig
    schema: Schema
    vae: VAE
    train_config: TrainConfig | None
    _cells: Cells | None
    _adata: AnnData | None
    _reference: Reference | None
    _support: Support | None
    _split: Split | None
    _origin: Origin | None

    def check_trained(self) -> None:
        """An error where the model has no trained weights."""

    def stored(self) -> StoredModel:
        """All that a directory is to hold."""

    @classmethod
    def _of(cls, stored: StoredModel) -> Self:
        """The model that a directory holds."""


Model = TypeVar("Model", bound=Keepable)


@checked
def save(
    model: Keepable,
    dir_path: str | Path,
    prefix: FilePrefix | None = None,
    overwrite: bool = False,
    save_anndata: bool = False,
    save_kwargs: dict[str, Any] | None = None,
    **anndata_write_kwargs: Any,
) -> None:
    """Write the model to a directory, which appears whole or not at all.

    It is scdecode's own format: JSON and safetensors. For a directory that scvi-tools opens, see
    :func:`scdecode.convert`.

    Parameters
    ----------
    dir_path
        The directory.
    overwrite
        Whether to replace one that is there.
    save_anndata
        Whether to write the cells of the model beside it, as ``adata.h5ad``; :meth:`load` finds them there.
    **anndata_write_kwargs
        Passed on to :meth:`anndata.AnnData.write_h5ad`.
    prefix, save_kwargs
        Of scvi-tools; given, they are an error.

    Raises
    ------
    OutputError
        Where it cannot be written, or is there already.
    NotTrainedError
        Before the model is trained.
    """
    others = {name: anndata_write_kwargs.pop(name) for name in _SAVE if name in anndata_write_kwargs}
    refuse("save", {"prefix": prefix, "save_kwargs": save_kwargs, **others}, _SAVE)
    if anndata_write_kwargs and not save_anndata:
        raise InputError(f"{next(iter(anndata_write_kwargs))}: it is for save_anndata=True, which was not given")
    unknown = [name for name in anndata_write_kwargs if name not in _WRITE_H5AD]
    if unknown:
        raise InputError(unknown_name("save", unknown[0], _WRITE_H5AD, "arguments of AnnData.write_h5ad"))
    if save_anndata and model._adata is None:
        raise InputError("save_anndata: this model was opened from files and has no cells; leave it out")
    model.check_trained()
    extra = {}
    if save_anndata:
        adata = model._adata
        assert adata is not None, "it was checked above"
        if model._cells is not None:
            check_unchanged(model._cells)
        options = {"convert_strings_to_categoricals": True, **anndata_write_kwargs}  # as AnnData.write_h5ad has it
        extra[BESIDE] = lambda path: write_h5ad(adata, path, **options)
    native.write(dir_path, model.stored(), overwrite=overwrite, beside=extra)


def load(
    cls: type[Model], dir_path: str | Path, adata: AnnData | None, prefix: str | None, others: Mapping[str, Any]
) -> Model:
    """What :meth:`SCVI.load` does, for any class of model; ``others`` are the arguments that it refuses."""
    refuse("load", others, _LOAD)
    beside = None

    def read_cells_beside(_: Path) -> AnnData | None:
        nonlocal beside
        beside = cells_beside(dir_path, prefix)
        return open_anndata(beside) if adata is None and beside.exists() else None

    stored, cells = read_model_and(dir_path, read_cells_beside, prefix=prefix)
    if stored.class_name != cls.__name__:
        raise FormatError(
            f"{dir_path}: it holds a {stored.class_name}, and {cls.__name__}.load was called; call "
            f"scdecode.{stored.class_name}.load(...), or scdecode.load(...), which opens any"
        )
    model = cls._of(stored)
    if cells is not None:
        adata = cells
        if _MINIFIED in adata.uns:
            warn(f"{beside}: scvi-tools took its counts away, so the model is opened without cells", CountsWarning)
            adata = None
    if adata is not None:
        give_cells(model, adata)
    return model


def give_cells(model: Keepable, adata: AnnData) -> None:
    """Make cells those that an opened model was trained on.

    Raises
    ------
    InputError, CountsError, ConditionError
        Where they do not fit the model.
    """
    model._cells, model._adata = _training_cells(model, adata), adata
    if model._reference is None or model._reference.codes_rc is None:
        model.schema = knowing(model.schema, model._cells)
        model._reference, model._support = None, None
        none = np.zeros(0, dtype=np.int64)
        model._split = Split(np.arange(len(model._cells)), none, none)  # the reference is made when it is needed


@checked
@changes
def attach_reference(model: Keepable, cells: LatentsLike | str | Path, *, use_rep: str | None = None) -> None:
    """Tell a model that scvi-tools saved of its training cells, for support and for averages over conditions.

    What the model knew of its training cells before is replaced. :meth:`save` keeps it.

    Parameters
    ----------
    cells
        The AnnData that the model was trained on, with its raw counts and its columns. Or latent points of those
        cells, ``(n, k)``, in any form that :meth:`decode` takes: support is known then, while averages are plain
        ones over the levels. A path is that of an ``.h5ad`` or ``.zarr``.
    use_rep
        The entry of ``obsm`` with latent points, for an AnnData without counts.

    Raises
    ------
    NotTrainedError, PointsError, CountsError, ConditionError, InputError
        For an untrained model; for points or cells that do not fit it.
    """
    model.check_trained()
    seed = 0 if model.train_config is None else model.train_config.seed
    if isinstance(cells, str | Path):
        cells = open_anndata(cells)
    if isinstance(cells, AnnData) and use_rep is None:
        read = _training_cells(model, cells)
        model._reference = make_reference(model.vae, read, np.arange(len(read)), seed)
        model.schema = knowing(model.schema, read)
    else:
        simplex = model.config.latent_distribution == "ln"
        points = read_points(cells, model.config.n_latent, spread=False, use_rep=use_rep, simplex=simplex)
        model._reference = reference_of_latents(points.z_nk.numpy(), seed)
        model.schema = unknowing(model.schema)
    model._support = None


def _training_cells(model: Keepable, adata: AnnData) -> Cells:
    if _MINIFIED in adata.uns:
        raise CountsError(
            "adata: scvi-tools took its counts away (minify_adata); pass the cells with their counts, or their latents "
            "to model.attach_reference(adata, use_rep='scvi_latent_qzm')"
        )
    cells = read_cells(adata, model.schema, need_conditions=True, need_all=True)
    foreign = model._origin is not None
    check_cells(cells, model.config, model.schema.columns, adata, need_library=False, foreign=foreign)
    return cells
