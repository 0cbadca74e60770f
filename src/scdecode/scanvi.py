"""``SCANVI``: scVI that learns cell types from labelled cells, and finds those of the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from scdecode import arguments
from scdecode import config as configs
from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ColumnName, IndicesLike, LevelName, Seed, Values
from scdecode._utils.inference import in_evaluation
from scdecode._utils.model_use import passes_to_train
from scdecode.arguments import Refusals, refuse
from scdecode.asked import cell_names, cells_for
from scdecode.cells import (
    Cells,
    check_columns,
    knowing,
    note_columns,
    note_unlabeled,
    read_cells,
    read_labels,
    read_training_cells,
    setup_of,
)
from scdecode.classification import Classification, SemiSupervised
from scdecode.config import (
    BatchRepresentation,
    ClassifierConfig,
    Dispersion,
    GeneLikelihood,
    LatentDistribution,
    ModelConfig,
    NormPlacement,
    TrainConfig,
)
from scdecode.devices import choose_device
from scdecode.draws import drawing_from, make_generator
from scdecode.encoding import BATCH_SIZE, encode, latent_draws
from scdecode.errors import ConditionError, ConfigError, InputError, check_integer, listing, suggestion
from scdecode.formats.stored import StoredModel
from scdecode.model import SCVI
from scdecode.schema import Schema
from scdecode.training import OnEpoch

_MODULE: arguments.Refusals = {
    "y_prior": ((None,), "beforehand every class is as likely as any other"),
    "labels_groups": ((None,), "classes have no groups"),
    "use_labels_groups": ((False,), "classes have no groups"),
    "datamodule": ((None,), "a model is made of cells: SCANVI(adata)"),
}
_SETUP: arguments.Refusals = {"use_minified": ((True, False), "cells are never minified")}


_NO_GRADIENTS = "model.distribution is differentiable; what a gene does to a class is not offered"
_PREDICT: Refusals = {
    "dataloader": ((None,), "give the cells as an AnnData: adata=..., indices=..."),
    "ig_interpretability": ((False,), _NO_GRADIENTS),
    "ig_args": ((None,), _NO_GRADIENTS),
}


class SCANVI(SCVI):
    """scANVI: scVI with a classifier of cell types, learned from some labelled cells (Xu et al. 2021, MSB 17:e9620).

    Everything that :class:`SCVI` does, it does too.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` was called on.
    n_hidden, n_latent, n_layers, dropout_rate, dispersion, gene_likelihood, use_observed_lib_size
        See :class:`scdecode.ModelConfig`, as for the options below; the dispersion cannot be ``"gene-label"``.
    linear_classifier
        Classify by one linear map of the latent point rather than by hidden layers.
    classifier_parameters
        ``n_layers``, ``n_hidden`` and ``dropout_rate`` of the classifier; by default those of the model.
    latent_distribution, encode_covariates, deeply_inject_covariates, batch_representation, batch_embedding_dim
        How the conditions enter the networks, and the prior of the latent state.
    use_batch_norm, use_layer_norm
        Where the hidden layers are normalised.
    seed
        Of the initial weights.
    **others
        Options of scvi-tools' ``SCANVAE`` that change nothing here; another value than the default is an error.

    Raises
    ------
    InputError, CountsError, ConditionError, ConfigError
        For cells that were not set up or are no counts, and for options that are not allowed.

    Examples
    --------
    >>> import scdecode as sd
    >>> adata = sd.datasets.simulate_branching(300, 50)
    >>> sd.SCANVI.setup_anndata(adata, labels_key="branch", unlabeled_category="unknown", batch_key="batch")
    >>> model = sd.SCANVI(adata, n_latent=4)
    >>> model.train(max_epochs=2)
    >>> model.predict().shape
    (300,)
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
        linear_classifier: bool = False,
        *,
        classifier_parameters: Mapping[str, Any] | None = None,
        latent_distribution: LatentDistribution = "normal",
        encode_covariates: bool = False,
        deeply_inject_covariates: bool = True,
        batch_representation: BatchRepresentation = "one-hot",
        batch_embedding_dim: int = 5,
        use_batch_norm: NormPlacement = "both",
        use_layer_norm: NormPlacement = "none",
        seed: Seed = 0,
        **others: Any,
    ) -> None:
        arguments.refuse("SCANVI", {name: others.pop(name) for name in _MODULE if name in others}, _MODULE)
        batch_embedding_dim = arguments.model_options("SCANVI", others).get("batch_embedding_dim", batch_embedding_dim)
        classifier = _classifier_config(linear_classifier, classifier_parameters)
        if setup_of(adata).unlabeled_category is None:
            raise InputError(
                "adata: it was not set up for SCANVI; call SCANVI.setup_anndata(adata, labels_key=..., "
                "unlabeled_category=...) first"
            )
        schema, cells = read_training_cells(adata, classes=True)
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
        self._make_all(adata, config, schema, cells, seed, classifier)

    def _make_all(
        self,
        adata: AnnData,
        config: ModelConfig,
        schema: Schema,
        cells: Cells,
        seed: Seed,
        classifier: ClassifierConfig,
    ) -> None:
        """A model with random weights, of cells that were read."""
        _check(config, schema)
        self._make(adata, config, schema, cells, seed)
        with drawing_from(make_generator(seed * 1_000_003 + 1)):  # not the numbers that scVI's weights had
            classification = Classification(config, schema.n_classes, classifier)
        self.classification = classification.eval().requires_grad_(False)
        self._is_pretrained = False

    @classmethod
    def _of(cls, stored: StoredModel) -> Self:
        """The model that a directory holds."""
        model = super()._of(stored)
        assert stored.classification is not None, "a model of this class has a classifier"
        model.classification = stored.classification
        model._is_pretrained = False
        return model

    def stored(self) -> StoredModel:
        """What a directory is to hold of the model."""
        return dataclasses.replace(super().stored(), classification=self.classification)

    def _network(self) -> SemiSupervised:
        """What is trained."""
        labels, unlabeled = self.schema.labels, self.schema.columns.unlabeled_category
        assert labels is not None, "a model of this class has labels"
        return SemiSupervised(self.vae, self.classification, None if unlabeled is None else labels.codes[unlabeled])

    @classmethod
    @checked
    def setup_anndata(  # type: ignore[override]  # the labels come first, as in scvi-tools
        cls,
        adata: AnnData,
        labels_key: ColumnName,
        unlabeled_category: LevelName,
        layer: str | None = None,
        batch_key: ColumnName | None = None,
        size_factor_key: ColumnName | None = None,
        categorical_covariate_keys: Values = None,
        continuous_covariate_keys: Values = None,
        *,
        use_raw: bool = False,
        allow_fractional_counts: bool = False,
        **others: Any,
    ) -> None:
        """Say where in an AnnData the counts, labels and conditions are; noted in ``adata.uns["scdecode_setup"]``.

        Parameters
        ----------
        adata
            Cells x genes.
        labels_key
            The column of ``adata.obs`` with the cell type of each cell.
        unlabeled_category
            What that column says of cells whose type is not known; there need be none.
        layer, batch_key, size_factor_key, categorical_covariate_keys, continuous_covariate_keys
            As for :meth:`SCVI.setup_anndata`.
        use_raw, allow_fractional_counts
            As for :meth:`SCVI.setup_anndata`.
        **others
            ``use_minified`` of scvi-tools changes nothing; any other is an error.

        Raises
        ------
        InputError
            For a layer or a column that is not there; the message lists those that are.
        """
        arguments.refuse("SCANVI.setup_anndata", others, _SETUP)
        for name, value in (("labels_key", labels_key), ("unlabeled_category", unlabeled_category)):
            if value is None:
                raise InputError(f"{name}: None came, and SCANVI needs one; SCVI needs no labels")
        super().setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            size_factor_key=size_factor_key,
            categorical_covariate_keys=categorical_covariate_keys,
            continuous_covariate_keys=continuous_covariate_keys,
            use_raw=use_raw,
            allow_fractional_counts=allow_fractional_counts,
        )
        note_unlabeled(adata, unlabeled_category)

    @classmethod
    @checked
    def from_scvi_model(
        cls,
        scvi_model: SCVI,
        unlabeled_category: LevelName,
        labels_key: ColumnName | None = None,
        adata: AnnData | None = None,
        *,
        linear_classifier: bool = False,
        classifier_parameters: Mapping[str, Any] | None = None,
        seed: Seed = 0,
        **scanvi_kwargs: Any,
    ) -> Self:
        """A model that begins with the weights of a trained :class:`SCVI`; the classifier has random ones.

        Parameters
        ----------
        scvi_model
            Trained; its weights are copied. Its genes, batches and covariates stay as they are.
        unlabeled_category
            What the labels say of cells whose type is not known.
        labels_key
            The column of labels; by default the one that the model was set up with.
        adata
            Cells to train on; by default those of the model, which one that was opened from files does not have. It is
            set up for this class, with the columns of the model.
        linear_classifier, classifier_parameters, seed
            As for :class:`SCANVI`.
        **scanvi_kwargs
            Other options of :class:`SCANVI`; they are those of the model, and an error where they differ.

        Raises
        ------
        NotTrainedError, InputError, CountsError, ConditionError, ConfigError
            For a model without weights, without cells or without labels, and for cells that do not fit it.
        """
        if not isinstance(scvi_model, SCVI):
            raise InputError(f"scvi_model: {type(scvi_model).__name__} came, a trained SCVI was expected")
        scvi_model.check_trained()
        config, schema = scvi_model.config, scvi_model.schema
        _check_same(config, scanvi_kwargs)
        check_integer("seed", seed, minimum=0)
        classifier = _classifier_config(linear_classifier, classifier_parameters)
        adata = scvi_model.adata if adata is None else adata
        if adata is None:
            raise InputError("adata: none came, and the model was opened from files and has no cells; pass an AnnData")
        labels_key = schema.columns.labels_key if labels_key is None else labels_key
        if labels_key is None:
            raise InputError("labels_key: none came, and the model was set up without one; name the column of labels")
        columns = dataclasses.replace(schema.columns, labels_key=labels_key)
        check_columns(adata, columns)
        columns = dataclasses.replace(columns, labels_key=str(labels_key))
        labels = read_labels(adata.obs, columns, unlabeled_category)
        assert labels is not None, "there is a column of labels"
        columns = dataclasses.replace(columns, unlabeled_category=labels.names[-1], n_classes=None)
        schema = dataclasses.replace(schema, columns=columns, labels=labels)
        cells = read_cells(adata, schema, need_conditions=True, need_all=True)
        note_columns(adata, columns)
        model = cls.__new__(cls)
        model._make_all(adata, config, knowing(schema, cells), cells, seed, classifier)
        model.vae.load_state_dict(scvi_model.vae.state_dict())
        model._is_pretrained = True
        model._origin = scvi_model._origin
        return model

    @checked
    @passes_to_train
    def train(  # type: ignore[override]  # in the order of scvi-tools' arguments
        self,
        max_epochs: int | None = None,
        n_samples_per_label: int | None = None,
        check_val_every_n_epoch: int | None = None,
        train_size: float | None = 0.9,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int = 128,
        accelerator: str = "auto",
        devices: Any = "auto",
        adversarial_classifier: bool | None = None,
        *,
        device: str = "auto",
        checkpoint: str | Path | None = None,
        progress: bool = True,
        on_epoch: OnEpoch | None = None,
        **options: Any,
    ) -> None:
        """Train the model; Ctrl-C ends training and keeps the model as of the last whole epoch.

        Each step sees a minibatch of all training cells and one of the labelled ones, whose order is repeated as often
        as needed. The history has the cross-entropy (nats a cell) and the accuracy of labelled cells beside the bound.

        Parameters
        ----------
        max_epochs
            Passes over the training cells; by default as for :class:`SCVI`, but after :meth:`from_scvi_model` a third
            of that, at least 2 and at most 10.
        n_samples_per_label
            Labelled cells of each class in an epoch, at most, drawn anew each time; by default all.
        check_val_every_n_epoch, train_size, validation_size, shuffle_set_split, batch_size
            See :class:`scdecode.TrainConfig`. Labelled and unlabelled cells are split in the same proportions.
        accelerator, devices, device
            Where to train, in the words of scvi-tools or in ours.
        adversarial_classifier
            Of another model of scvi-tools; given, it is an error.
        checkpoint, progress, on_epoch
            As for :meth:`SCVI.train`.
        **options
            As for :meth:`SCVI.train`; also ``classification_ratio``, by itself or in ``plan_kwargs``: the weight of the
            cross-entropy of a step's labelled cells (by default 50).

        Raises
        ------
        TrainingError, ConfigError, InputError
            As for :meth:`SCVI.train`.
        """
        if adversarial_classifier is not None:
            raise InputError(
                f"adversarial_classifier: {adversarial_classifier!r} came, which is of TOTALANVI; leave it out"
            )
        if max_epochs is None and self._is_pretrained and self._cells is not None:
            max_epochs = min(10, max(2, round(TrainConfig().epochs(len(self._cells)) / 3)))
        super().train(
            max_epochs=max_epochs,
            accelerator=accelerator,
            devices=devices,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            device=device,
            checkpoint=checkpoint,
            progress=progress,
            on_epoch=on_epoch,
            n_samples_per_label=n_samples_per_label,
            check_val_every_n_epoch=check_val_every_n_epoch,
            **options,
        )

    @checked
    def predict(
        self,
        adata: AnnData | None = None,
        indices: IndicesLike | None = None,
        soft: bool = False,
        batch_size: int | None = None,
        use_posterior_mean: bool = True,
        *,
        seed: Seed = 0,
        device: str = "cpu",
        **others: Any,
    ) -> np.ndarray | pd.DataFrame:
        """The cell type of each cell.

        Parameters
        ----------
        adata, indices, batch_size, device
            As for :meth:`posterior`; labels are not needed, conditions only where the encoder sees them.
        soft
            Return probabilities rather than the likeliest label.
        use_posterior_mean
            Classify at the mean of the posterior of the latent state; otherwise at a draw from it.
        seed
            Of the draws.
        **others
            Of scvi-tools (``dataloader``, ``ig_interpretability``, ``ig_args``), and not offered.

        Returns
        -------
        labels or probabilities
            ``(n,)`` labels as the column has them; or a DataFrame of cells x classes whose rows sum to one. The
            unlabelled category is none of them.
        """
        refuse("predict", others, _PREDICT)
        cells = cells_for(self, adata, indices, need_conditions=self.config.encode_covariates)
        size = BATCH_SIZE if batch_size is None else batch_size
        posterior = encode(self.vae, cells, batch_size=size, device=choose_device(device))
        if use_posterior_mean:
            latent_nk = posterior.mean_nk
        else:
            latent_nk = torch.from_numpy(latent_draws(posterior, self.config, 1, seed=seed)[0])
        with torch.no_grad():
            probability_ny = in_evaluation(self.classification).probabilities(latent_nk).numpy()
        assert self.schema.labels is not None, "a model of this class has labels"
        values = self.schema.labels.values[: self.schema.n_classes]
        if soft:
            return pd.DataFrame(probability_ny, index=cell_names(self, adata, indices), columns=pd.Index(values))
        return np.array(values[probability_ny.argmax(axis=1)].tolist())


def _classifier_config(linear: bool, parameters: Mapping[str, Any] | None) -> ClassifierConfig:
    given = dict(parameters or {})
    if "linear" in given:
        raise ConfigError("classifier_parameters: 'linear' came; pass linear_classifier=True")
    return configs.from_dict(ClassifierConfig, {"linear": linear, **given})


def _check(config: ModelConfig, schema: Schema) -> None:
    """Raise an error for what scANVI has no place for."""
    if config.dispersion == "gene-label":
        raise ConfigError(
            "dispersion: 'gene-label' came, but the labels of some cells are not known, so SCANVI does not take it; "
            "'gene', 'gene-batch' or 'gene-cell' was expected"
        )
    if config.decoder == "linear":
        raise ConfigError("decoder: 'linear' came, but SCANVI has a nonlinear one; begin with an SCVI")
    if schema.n_classes < 1:
        names = () if schema.labels is None else schema.labels.names
        raise ConditionError(
            f"adata.obs[{schema.columns.labels_key!r}]: no cell has a label, only {listing(names)}; label some cells"
        )


def _check_same(config: ModelConfig, given: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` for an option that is another than the model's."""
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name, value in given.items():
        if name not in known:
            raise ConfigError(f"from_scvi_model: there is no option {name!r}{suggestion(name, known)}")
        if value != getattr(config, name):
            raise ConfigError(
                f"{name}: {value!r} came, but the model has {getattr(config, name)!r} and its weights are kept; leave "
                "it out"
            )
