"""``SCVI`` and ``load``: the face of the package, thin methods over the floors below."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from torch import Tensor
from torch.distributions import Normal

from scdecode import config as configs
from scdecode import expression
from scdecode.cells import Cells, check_cells, check_unchanged, read_cells, read_training_cells, setup_anndata
from scdecode.config import (
    BatchRepresentation,
    Dispersion,
    GeneLikelihood,
    LatentDistribution,
    ModelConfig,
    NormPlacement,
    TrainConfig,
)
from scdecode.devices import choose_device, seeded
from scdecode.encoding import BATCH_SIZE, Posterior, encode, latent_draws, latent_mean
from scdecode.errors import InputError, NotTrainedError, TrainingWarning, check_integer, warn
from scdecode.formats import native
from scdecode.formats.native import StoredModel, build_vae
from scdecode.progress import training_progress
from scdecode.reference import Reference, make_reference
from scdecode.schema import Columns, Schema
from scdecode.support import Support, make_support
from scdecode.training import History, OnEpoch, fit
from scdecode.vae import VAE


class SCVI:
    """scVI: a variational autoencoder of single-cell RNA counts (Lopez et al. 2018, Nature Methods 15:1053).

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, gene_likelihood, use_observed_lib_size, latent_distribution
        See :class:`scdecode.ModelConfig`, as for the options below.
    encode_covariates, deeply_inject_covariates, batch_representation, batch_embedding_dim
        How the conditions enter the networks.
    use_batch_norm, use_layer_norm
        Where the hidden layers are normalised.
    seed
        Of the initial weights.

    Raises
    ------
    InputError, CountsError, ConditionError, ConfigError
        For cells that were not set up or are no counts, and for options that are not allowed.

    Examples
    --------
    >>> import scdecode as sd
    >>> adata = sd.datasets.simulate_branching(300, 50)
    >>> sd.SCVI.setup_anndata(adata, batch_key="batch")
    >>> model = sd.SCVI(adata, n_latent=4, gene_likelihood="nb")
    >>> model.train(max_epochs=2)
    >>> expression = model.decode([[0.0, 0.0, 0.0, 0.0]], batch="batch_1", library_size=1e4)
    >>> expression.shape
    (1, 50)
    """

    def __init__(
        self,
        adata: AnnData,
        n_hidden: int = 128,
        n_latent: int = 10,
        n_layers: int = 1,
        dropout_rate: float = 0.1,
        dispersion: Dispersion = "gene",
        gene_likelihood: GeneLikelihood = "zinb",
        use_observed_lib_size: bool = True,
        latent_distribution: LatentDistribution = "normal",
        *,
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: BatchRepresentation = "one-hot",
        batch_embedding_dim: int = 5,
        use_batch_norm: NormPlacement = "both",
        use_layer_norm: NormPlacement = "none",
        seed: int = 0,
    ) -> None:
        schema, cells = read_training_cells(adata)
        config = ModelConfig(
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            use_size_factor=schema.columns.size_factor_key is not None,
            latent_distribution=latent_distribution,
            encode_covariates=encode_covariates,
            deeply_inject_covariates=deeply_inject_covariates,
            batch_representation=batch_representation,
            batch_embedding_dim=batch_embedding_dim,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
        )
        _check(cells, config)
        check_integer("seed", seed, minimum=0)
        with seeded(seed, torch.device("cpu")):
            vae = build_vae(config, schema, _library_prior(cells, schema.n_batches))
        self._set(config, schema, vae.eval().requires_grad_(False))
        self._cells: Cells | None = cells
        self._seed = seed

    def _set(self, config: ModelConfig, schema: Schema, vae: VAE) -> None:
        self.config = config
        self.schema = schema
        self.vae = vae
        self.train_config = TrainConfig()
        self._cells = None
        self._reference: Reference | None = None
        self._train_rows: np.ndarray | None = None
        self._support: Support | None = None
        self._history = pd.DataFrame()
        self._ending = "not trained"

    @classmethod
    def _of(cls, stored: StoredModel) -> SCVI:
        model = cls.__new__(cls)
        model._set(stored.config, stored.schema, stored.vae)
        model.train_config = stored.train_config
        model._reference = stored.reference
        model._history = pd.DataFrame(stored.summary["history"]).rename_axis(index="epoch")
        model._ending = stored.summary["ending"]
        return model

    # -- cells in --------------------------------------------------------------------------------------------------

    @staticmethod
    def setup_anndata(
        adata: AnnData,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        size_factor_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        continuous_covariate_keys: Sequence[str] | None = None,
    ) -> None:
        """Say where in an AnnData the counts and the conditions are; noted in ``adata.uns["scdecode_setup"]``.

        Parameters
        ----------
        adata
            Cells x genes.
        layer
            The layer of raw counts; by default ``adata.X``.
        batch_key, labels_key
            Columns of ``adata.obs`` with the batch and with a label of each cell.
        size_factor_key
            A column of positive size factors, used in the place of the total count.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of further conditions.

        Raises
        ------
        InputError
            For a layer or a column that is not there; the message lists those that are.
        """
        lists = {
            "categorical_covariate_keys": categorical_covariate_keys,
            "continuous_covariate_keys": continuous_covariate_keys,
        }
        for name, keys in lists.items():
            if isinstance(keys, str):
                raise InputError(f"{name}: {keys!r} came, a list of columns was expected: [{keys!r}]")
        columns = Columns(
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=tuple(categorical_covariate_keys or ()),
            continuous_covariate_keys=tuple(continuous_covariate_keys or ()),
        )
        setup_anndata(adata, columns)

    # -- training --------------------------------------------------------------------------------------------------

    def train(
        self,
        max_epochs: int | None = None,
        *,
        device: str = "auto",
        checkpoint: str | Path | None = None,
        progress: bool = True,
        on_epoch: OnEpoch | None = None,
        **options: Any,
    ) -> None:
        """Train the model; Ctrl-C ends training and keeps the model as of the last whole epoch.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default fewer for more cells, at most 400.
        device
            ``"cpu"``, ``"cuda"``, ``"mps"``; ``"auto"`` takes a CUDA device where there is one.
        checkpoint
            A file to keep the state in after each epoch; where it exists, training goes on from it.
        progress
            Whether to show a progress bar; there is none where the output is no terminal.
        on_epoch
            Called after each epoch with the epochs done, the epochs to do, and the epoch's row of the history.
        **options
            The other fields of :class:`scdecode.TrainConfig`: ``batch_size``, ``early_stopping``, ``lr``,
            ``n_epochs_kl_warmup``, ``train_size``, ``seed`` and so on.

        Raises
        ------
        TrainingError
            Where the loss is no longer a number.
        ConfigError
            For options that do not exist or are not allowed.
        InputError
            For a model that was opened from files: it has no cells.
        """
        if self._cells is None:
            raise InputError(
                "train: this model was opened from files and has no cells; make a new one with SCVI(adata)"
            )
        config = configs.from_dict(TrainConfig, {"max_epochs": max_epochs, **options})
        with training_progress(enabled=progress) as show:

            def tell(done: int, total: int, row: dict[str, float]) -> None:
                show(done, total, row)
                if on_epoch is not None:
                    on_epoch(done, total, row)

            result = fit(
                self.vae,
                self._cells,
                config,
                device=choose_device(device),
                on_epoch=tell,
                checkpoint=checkpoint,
                on_failure=lambda history: self._adopt(history, config),
                model_seed=self._seed,
            )
        self._adopt(result, config)
        if result.ending == "interrupted":
            warn(f"train: interrupted; the model has the weights of epoch {len(result.table)}", TrainingWarning)

    def _adopt(self, result: History, config: TrainConfig) -> None:
        """Take over how a training went, with new reference latents; however it ended, the weights are new."""
        assert self._cells is not None, "only a model with cells is trained"
        before = self._history.iloc[: 0 if result.resumed else None]  # a resumed training tells of its first epochs too
        self.train_config = config
        self._history = pd.concat([before, result.table], ignore_index=True).rename_axis(index="epoch")
        self._ending = result.ending
        self._reference, self._support = None, None
        self._train_rows = result.split.train  # an interrupt from here on costs nothing: reference() makes it then
        self.reference()

    @property
    def is_trained(self) -> bool:
        """Whether the model has trained weights."""
        return self._reference is not None or self._train_rows is not None

    @property
    def history(self) -> pd.DataFrame:
        """A row an epoch: ELBO, reconstruction loss and KL in nats a cell, of the training and validation cells."""
        return self._history

    # -- cells to latents ------------------------------------------------------------------------------------------

    def posterior(
        self, adata: AnnData | None = None, *, indices: Any = None, batch_size: int = BATCH_SIZE, device: str = "cpu"
    ) -> Normal:
        """The posterior q(z | x) of each cell: a torch ``Normal`` of shape ``(n, k)``.

        :meth:`decode` takes it as points with a spread. For ``latent_distribution="ln"`` it is that of z before its
        softmax, and :meth:`get_latent_representation` gives latent points.

        Parameters
        ----------
        adata
            Cells; genes may be in another order and there may be more of them. By default the cells of training.
        indices
            Positions or a mask of the cells wanted; by default all.
        batch_size
            Cells that are made dense at once.
        device
            Where to compute.

        Raises
        ------
        CountsError, ConditionError, InputError
            For genes that are missing, values that are no counts, unknown categories, missing columns.
        """
        posterior = self._posterior(adata, indices, batch_size, device)
        return Normal(posterior.mean_nk, posterior.variance_nk.sqrt(), validate_args=False)

    def get_latent_representation(
        self,
        adata: AnnData | None = None,
        indices: Any = None,
        give_mean: bool = True,
        mc_samples: int = 5000,
        batch_size: int | None = None,
        *,
        n_samples: int | None = None,
        seed: int = 0,
        device: str = "cpu",
    ) -> np.ndarray:
        """Latent points of cells, ``(n, k)`` float32.

        Parameters
        ----------
        adata, indices, batch_size, device
            As for :meth:`posterior`.
        give_mean
            The posterior mean; otherwise a draw from the posterior.
        mc_samples
            Draws for the mean of ``latent_distribution="ln"``, which has no closed form.
        n_samples
            Draw that many points of each cell: ``(n_samples, n, k)``.
        seed
            Of the draws.
        """
        posterior = self._posterior(adata, indices, BATCH_SIZE if batch_size is None else batch_size, device)
        if n_samples is not None:
            return latent_draws(posterior, self.config, n_samples, seed=seed)
        if give_mean:
            return latent_mean(posterior, self.config, n_draws=mc_samples, seed=seed)
        return latent_draws(posterior, self.config, 1, seed=seed)[0]

    def _posterior(self, adata: AnnData | None, indices: Any, batch_size: int, device: str) -> Posterior:
        self.reference()  # an untrained model is an error
        if adata is not None:
            cells = read_cells(adata, self.schema, need_conditions=self.config.encode_covariates, indices=indices)
            _check(cells, self.config)
        elif self._cells is not None:
            check_unchanged(self._cells)
            cells = self._cells if indices is None else self._cells.at(indices)
        else:
            raise InputError("adata: none came, and a model that was opened from files has no cells; pass an AnnData")
        return encode(self.vae, cells, batch_size=batch_size, device=choose_device(device))

    # -- latents to expression -------------------------------------------------------------------------------------

    decode = expression.decode
    distribution = expression.distribution
    support = expression.support

    def reference_latents(self) -> np.ndarray:
        """Latents of the training cells that the model keeps, ``(r, k)``: up to 20,000."""
        return self.reference().latent_rk

    def reference(self) -> Reference:
        """The training cells that the model keeps, with their conditions.

        Raises
        ------
        NotTrainedError
            Before the model is trained.
        """
        if self._reference is None:
            if self._train_rows is None or self._cells is None:
                raise NotTrainedError("the model has no trained weights; call model.train() first")
            self._reference = make_reference(self.vae, self._cells, self._train_rows, self.train_config.seed)
        return self._reference

    def support_index(self) -> Support:
        """What :meth:`support` measures against; made when it is first needed."""
        if self._support is None:
            self._support = make_support(self.reference().latent_rk)
        return self._support

    # -- keeping ---------------------------------------------------------------------------------------------------

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the model to a directory, which appears whole or not at all.

        Parameters
        ----------
        path
            The directory.
        overwrite
            Whether to replace one that is there.

        Raises
        ------
        OutputError
            Where it cannot be written, or is there already.
        """
        summary = {"history": self._history.to_dict(orient="list"), "ending": self._ending}
        stored = StoredModel(
            config=self.config,
            schema=self.schema,
            vae=self.vae,
            reference=self.reference(),
            train_config=self.train_config,
            summary=summary,
            version=version("scdecode"),
        )
        native.write(path, stored, overwrite=overwrite)

    def info(self) -> dict[str, Any]:
        """What the model is, for people and for JSON: genes, conditions, options, training."""
        schema, last = self.schema, self._history.tail(1)
        categories = [c for c in (schema.batch, *schema.categorical, schema.labels) if c is not None]
        return {
            "class": type(self).__name__,
            "n_genes": schema.n_genes,
            "genes": list(schema.genes),
            "n_cells": schema.n_cells,
            "median_library_size": schema.median_library,
            "columns": dataclasses.asdict(schema.columns),
            "categories": {c.key: list(c.names) for c in categories},
            "continuous": list(schema.continuous),
            "n_conditions": len(schema.conditions.n_cells_m),
            "options": dataclasses.asdict(self.config),
            "training": dataclasses.asdict(self.train_config),
            "epochs": len(self._history),
            "ending": self._ending,
            "last_epoch": {str(key): float(value) for key, value in last.iloc[0].dropna().items()} if len(last) else {},
            "n_reference": 0 if self._reference is None else len(self._reference.latent_rk),
        }

    def __repr__(self) -> str:
        """The size, the options and the state, in two lines."""
        c, s = self.config, self.schema
        trained = f"trained for {len(self._history)} epochs" if self.is_trained else "not trained"
        return (
            f"{type(self).__name__}: {s.n_cells:,} cells x {s.n_genes:,} genes, {s.n_batches} batches, {trained}\n"
            f"  {c.gene_likelihood}, dispersion {c.dispersion}, {c.n_latent} latent dimensions, "
            f"{c.n_layers} hidden layer(s) of {c.n_hidden}"
        )


def load(path: str | Path) -> SCVI:
    """Open a model directory; it needs no AnnData.

    Parameters
    ----------
    path
        What :meth:`SCVI.save` wrote.

    Raises
    ------
    FormatError
        Where there is no model; its kinds say whether it was edited, is newer than this scdecode, or another program's.
    """
    return SCVI._of(native.read(path))


def _check(cells: Cells, config: ModelConfig) -> None:
    observed = config.use_observed_lib_size and not config.use_size_factor
    check_cells(cells, whole=config.has_counts, observed_library=observed)


def _library_prior(cells: Cells, n_batches: int) -> tuple[Tensor, Tensor]:
    """Mean and variance of the log total count in each batch; 0 and 1 where a batch has no counts."""
    mean, variance = torch.zeros(n_batches), torch.ones(n_batches)
    for batch in range(n_batches):
        library = cells.library_n[(cells.codes_nc[:, 0] == batch) & (cells.library_n > 0)]
        if len(library):
            logs = np.log(library.astype(np.float64))
            # a batch of equal totals has no variance, and its prior would have no density
            mean[batch], variance[batch] = float(logs.mean()), max(float(logs.var()), 1e-4)
    return mean, variance
