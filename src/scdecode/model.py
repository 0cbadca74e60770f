"""``SCVI`` and ``load``: the face of the package, thin methods over the floors below."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from torch import Tensor

from scdecode import arguments, describing, evidence, expression, generation, keeping, latents, normalized, view
from scdecode import config as configs
from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ColumnName, FilePrefix, Seed, Values
from scdecode._utils.model_use import trains
from scdecode._utils.obs_columns import column_keys
from scdecode._utils.progress import training_progress
from scdecode.cells import Cells, check_cells, check_libraries, knowing, read_training_cells, setup_anndata
from scdecode.config import (
    BatchRepresentation,
    Dispersion,
    GeneLikelihood,
    LatentDistribution,
    ModelConfig,
    NormPlacement,
    TrainConfig,
)
from scdecode.decoders import decoder as fixed_decoder
from scdecode.devices import choose_device
from scdecode.draws import drawing_from, make_generator
from scdecode.errors import InputError, NotTrainedError, TrainingWarning, check_integer, warn
from scdecode.formats.stored import Origin, StoredModel, build_vae
from scdecode.library_prior import library_prior
from scdecode.minibatches import Split
from scdecode.reference import Reference, make_reference
from scdecode.schema import Columns, Schema
from scdecode.support import Support, make_support
from scdecode.training import History, Network, OnEpoch, digest_of, fit
from scdecode.vae import VAE


class SCVI:
    """scVI: a variational autoencoder of single-cell RNA counts (Lopez et al. 2018, Nature Methods 15:1053).

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, gene_likelihood, use_observed_lib_size, latent_distribution
        See :class:`scdecode.ModelConfig`, as for the options below.
    encode_covariates, deeply_inject_covariates, batch_representation, batch_embedding_dim, use_*_norm
        How the conditions enter the networks; where the hidden layers are normalised.
    seed
        Of the initial weights.
    **others
        Of scvi-tools: ``batch_embedding_kwargs={"embedding_dim": ...}`` is ``batch_embedding_dim``; whatever else its
        network takes is an error unless it is the default.

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

    @checked
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
        seed: Seed = 0,
        **others: Any,
    ) -> None:
        embedding_dim = arguments.model_options("SCVI", others).get("batch_embedding_dim", batch_embedding_dim)
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
            batch_embedding_dim=embedding_dim,
            use_batch_norm=use_batch_norm,
            use_layer_norm=use_layer_norm,
        )
        self._make(adata, config, schema, cells, seed)

    def _make(self, adata: AnnData, config: ModelConfig, schema: Schema, cells: Cells, seed: int) -> None:
        """A model with random weights, of cells that were read."""
        check_cells(cells, config, schema.columns, adata)
        check_integer("seed", seed, minimum=0)
        with drawing_from(make_generator(int(seed))):
            vae = build_vae(config, schema, library_prior(cells, schema.n_batches))
        self._set(config, schema, vae.eval().requires_grad_(False))
        self._cells: Cells | None = cells
        self._adata: AnnData | None = adata

    def _network(self) -> Network:
        """What is trained."""
        return self.vae

    def _set(self, config: ModelConfig, schema: Schema, vae: VAE) -> None:
        """Everything but the cells, as it is before training."""
        self.config = config
        self.schema = schema
        self.vae = vae
        self.train_config: TrainConfig | None = None
        self._cells, self._adata = None, None
        self._start: str | None = None  # of the weights before any training here, for checkpoints
        self._n_before = 0  # epochs that they had been trained for
        self._reference: Reference | None = None
        self._split: Split | None = None
        self._trained = False
        self._origin: Origin | None = None
        self._kept: dict[str, Tensor] = {}
        self._support: Support | None = None
        self._history = pd.DataFrame()
        self._ending = "not trained"

    @classmethod
    def _of(cls, stored: StoredModel) -> Self:
        """The model that a directory holds."""
        model = cls.__new__(cls)
        model._set(stored.config, stored.schema, stored.vae)
        model.train_config = stored.train_config
        model._reference = stored.reference
        model._trained = stored.trained
        model._origin = stored.origin
        model._kept = stored.kept
        model._history = pd.DataFrame(stored.summary["history"]).rename_axis(index="epoch")
        model._ending = stored.summary["ending"]
        return model

    @classmethod
    @checked
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        batch_key: ColumnName | None = None,
        labels_key: ColumnName | None = None,
        size_factor_key: ColumnName | None = None,
        categorical_covariate_keys: Values = None,
        continuous_covariate_keys: Values = None,
        *,
        use_raw: bool = False,
        allow_fractional_counts: bool = False,
        **kwargs: Any,
    ) -> None:
        """Say where in an AnnData the counts and the conditions are; noted in ``adata.uns["scdecode_setup"]``.

        Parameters
        ----------
        adata
            Cells x genes.
        layer
            The layer of raw counts; by default ``adata.X``. ``"raw"`` is ``adata.raw``, unless a layer has that name.
        batch_key, labels_key
            Columns of ``adata.obs`` with the batch and with a label of each cell.
        size_factor_key
            A column of positive size factors, used in the place of the total count.
        categorical_covariate_keys, continuous_covariate_keys
            Columns of further conditions: a list of names.
        use_raw
            Read the counts, and the names of their genes, of ``adata.raw``, as in CELLxGENE's files.
        allow_fractional_counts
            Take fractions, as SoupX estimates counts: the likelihood is then evaluated between whole numbers.
        **kwargs
            There are no others; any is an error.

        Raises
        ------
        InputError
            For a layer or a column that is not there; the message lists those that are.
        """
        arguments.refuse(f"{cls.__name__}.setup_anndata", kwargs, {})
        columns = Columns(
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=column_keys("categorical_covariate_keys", categorical_covariate_keys),
            continuous_covariate_keys=column_keys("continuous_covariate_keys", continuous_covariate_keys),
            allow_fractional_counts=allow_fractional_counts,
        )
        setup_anndata(adata, columns, layer=layer, use_raw=use_raw)

    # -- training --------------------------------------------------------------------------------------------------

    @checked
    @trains
    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        load_sparse_tensor: bool = False,
        batch_size: int | None = 128,
        early_stopping: bool = False,
        datasplitter_kwargs: Mapping[str, Any] | None = None,
        plan_config: Any = None,
        plan_kwargs: Any = None,
        datamodule: None = None,
        trainer_config: Any = None,
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
        accelerator, devices
            scvi-tools' words for ``device``: ``accelerator="gpu", devices=[1]`` is ``device="cuda:1"``.
        train_size, validation_size, shuffle_set_split, batch_size, early_stopping
            See :class:`scdecode.TrainConfig`.
        plan_kwargs, plan_config, trainer_config, datasplitter_kwargs
            Mappings of further options, or scvi-tools' configurations. What is passed by itself goes first.
        device
            ``"cpu"``, ``"cuda"``, ``"mps"``; ``"auto"`` takes a CUDA device where there is one.
        checkpoint
            A file to keep the state in after each epoch; where it exists, training goes on from it.
        progress
            Whether to show a progress bar (``enable_progress_bar`` in scvi-tools), where there is a terminal.
        on_epoch
            Called after each epoch with the epochs done, the epochs to do, and the epoch's row of the history.
        load_sparse_tensor, datamodule
            Of scvi-tools, and not offered.
        **options
            The other fields of :class:`scdecode.TrainConfig`: ``lr``, ``n_epochs_kl_warmup``, ``seed`` and so on. Other
            options of scvi-tools are an error unless they are the default.

        Raises
        ------
        TrainingError
            Where the loss is no longer a number; when called while this thread is using or training the model.
        ConfigError
            For options that do not exist or are not allowed.
        InputError
            For a model that was opened from files: it has no cells.
        """
        if self._cells is None:
            name = type(self).__name__
            raise InputError(
                "train: this model was opened from files and has no cells; open it with them, "
                f"{name}.load(directory, adata), or make a new one, {name}(adata)"
            )
        fields, bar = arguments.train_options(
            max_epochs=max_epochs,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            load_sparse_tensor=load_sparse_tensor,
            batch_size=batch_size,
            early_stopping=early_stopping,
            datasplitter_kwargs=datasplitter_kwargs,
            plan_config=plan_config,
            plan_kwargs=plan_kwargs,
            datamodule=datamodule,
            trainer_config=trainer_config,
            **options,
        )
        config = configs.from_dict(TrainConfig, fields)
        check_libraries(self._cells, self.config, None if self._adata is None else self._adata.obs_names)
        if self._start is None:
            self._start, self._n_before = digest_of(self._network()), len(self._history)
        with training_progress(enabled=progress and bar) as show:

            def tell(done: int, total: int, row: dict[str, float]) -> None:
                show(done, total, row)
                if on_epoch is not None:
                    on_epoch(done, total, row)

            result = fit(
                self._network(),
                self._cells,
                config,
                device=choose_device(arguments.device_name(accelerator, devices, device)),
                on_epoch=tell,
                checkpoint=checkpoint,
                on_failure=lambda history: self._adopt(history, config),
                start=self._start,
            )
        self._adopt(result, config)
        if result.ending == "interrupted":
            warn(f"train: interrupted; the model has the weights of epoch {len(result.table)}", TrainingWarning)

    def _adopt(self, result: History, config: TrainConfig) -> None:
        """Take over how a training went, with new reference latents; however it ended, the weights are new."""
        assert self._cells is not None, "only a model with cells is trained"
        before = self._history.iloc[: self._n_before if result.resumed else None]  # a resumed one has its first epochs
        self.train_config = config
        self.schema = knowing(self.schema, self._cells)  # they may be others than those of an earlier training
        if self._origin is not None:
            self._origin = self._origin.then_trained_by("scdecode", version("scdecode"))
        self._history = pd.concat([before, result.table], ignore_index=True).rename_axis(index="epoch")
        self._ending = result.ending
        self._reference, self._support, self._trained = None, None, True
        self._split = result.split  # an interrupt from here on costs nothing: reference() makes it then
        self.reference()

    @property
    def is_trained(self) -> bool:
        """Whether the model has trained weights."""
        return self._trained

    device = describing.device
    train_indices = describing.positions("train")
    validation_indices = describing.positions("validation")
    test_indices = describing.positions("test")

    def check_trained(self) -> None:
        """Raise :class:`NotTrainedError` where the model has no trained weights."""
        if not self._trained:
            raise NotTrainedError("the model has no trained weights; call model.train() first")

    @property
    def history(self) -> dict[str, pd.DataFrame]:
        """The history as scvi-tools gives it: a table of one column for each quantity, with the epochs it is known of.

        Losses in nats a cell, of the training and of the validation cells: ``elbo`` (negative), ``kl_global`` (zero),
        ``reconstruction_loss``, ``kl_local``, ``train_loss`` and ``validation_loss``. Empty before training.
        """
        return describing.history_tables(self._history)

    @property
    def history_table(self) -> pd.DataFrame:
        """A row an epoch: ELBO, reconstruction loss and KL in nats a cell, of the training and validation cells."""
        return self._history

    @property
    def adata(self) -> AnnData | None:
        """The AnnData that the model was made of; None where it was opened from files without one."""
        return self._adata

    # -- cells to latents ------------------------------------------------------------------------------------------

    posterior = latents.posterior
    get_latent_representation = latents.get_latent_representation
    get_latent_library_size = latents.get_latent_library_size
    get_batch_representation = latents.get_batch_representation

    # -- cells to what the model makes of them: as in scvi-tools ---------------------------------------------------

    get_normalized_expression = normalized.get_normalized_expression
    get_likelihood_parameters = normalized.get_likelihood_parameters
    posterior_predictive_sample = normalized.posterior_predictive_sample
    get_feature_correlation_matrix = normalized.get_feature_correlation_matrix
    get_elbo = evidence.get_elbo
    get_reconstruction_error = evidence.get_reconstruction_error
    get_marginal_ll = evidence.get_marginal_ll

    # -- latents to expression -------------------------------------------------------------------------------------

    decode = expression.decode
    distribution = expression.distribution
    decoder = fixed_decoder
    support = expression.support
    generate = generation.generate

    def reference_latents(self) -> np.ndarray:
        """Latents of the training cells that the model keeps, ``(r, k)``: up to 20,000."""
        return self.reference().latent_rk

    def reference(self) -> Reference:
        """The training cells that the model keeps, with their conditions.

        Raises
        ------
        NotTrainedError
            Before the model is trained.
        InputError
            For a model that keeps none: one of scvi-tools, until :meth:`attach_reference`.
        """
        reference = self._known_reference()
        if reference is None:
            raise InputError(
                "reference: this model keeps no training cells (files of scvi-tools have none); call "
                "model.attach_reference(adata) with them (on the command line: scdecode convert --reference CELLS)"
            )
        return reference

    def _known_reference(self) -> Reference | None:
        self.check_trained()
        if self._reference is None and self._split is not None and self._cells is not None:
            seed = 0 if self.train_config is None else self.train_config.seed
            self._reference = make_reference(self.vae, self._cells, self._split.train, seed)
        return self._reference

    def support_index(self) -> Support | None:
        """What :meth:`support` measures against, made when it is first needed; None without a reference."""
        if self._support is None and (reference := self._known_reference()) is not None:
            self._support = make_support(reference.latent_rk)
        return self._support

    save = keeping.save
    attach_reference = keeping.attach_reference
    info = describing.info
    view_anndata_setup = view.view_anndata_setup

    @classmethod
    @checked
    def load(
        cls,
        dir_path: str | Path,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: str = "auto",
        prefix: FilePrefix | None = None,
        backup_url: str | None = None,
        **others: Any,
    ) -> Self:
        """Open a model directory, of scdecode or of scvi-tools; :func:`scdecode.load` does so without cells.

        Parameters
        ----------
        dir_path, prefix
            As for :func:`scdecode.load`.
        adata
            The cells that the model was trained on: they are then its cells, as after a training, and it can be trained
            further. By default ``adata.h5ad`` in the directory, where there is one; otherwise the model has none.
        accelerator, device, backup_url, **others
            Of scvi-tools; other values than the default are an error: each method is told where to compute.

        Raises
        ------
        FormatError
            As for :func:`scdecode.load`; also for a model of another class.
        InputError, CountsError, ConditionError
            Where the cells do not fit the model.
        """
        others |= {"accelerator": accelerator, "device": device, "backup_url": backup_url}
        return keeping.load(cls, dir_path, adata, prefix, others)

    def stored(self) -> StoredModel:
        """What a directory is to hold of the model."""
        return StoredModel(
            class_name=type(self).__name__,
            config=self.config,
            schema=self.schema,
            vae=self.vae,
            reference=self._known_reference(),
            train_config=self.train_config,
            summary={"history": self._history.to_dict(orient="list"), "ending": self._ending},
            version=version("scdecode"),
            trained=self._trained,
            origin=self._origin,
            kept=self._kept,
        )

    if not TYPE_CHECKING:  # type checkers are to go on finding what is not there

        def __getattr__(self, name):
            """What scvi-tools' models have and this has not is an error that says what to do instead."""
            raise AttributeError(describing.missing_attribute(type(self).__name__, name), name=name, obj=self)

    __repr__ = describing.in_two_lines
    _repr_html_ = describing.in_html
