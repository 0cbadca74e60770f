"""``LinearSCVI``: scVI whose decoder is one linear map: its weights say which genes go with a latent dimension."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from anndata import AnnData

from scdecode import arguments
from scdecode._utils.checks import checked
from scdecode._utils.checks.kinds import ColumnName, Seed
from scdecode.cells import read_training_cells
from scdecode.config import Dispersion, GeneLikelihood, LatentDistribution, ModelConfig
from scdecode.errors import ConfigError
from scdecode.model import SCVI
from scdecode.networks import LinearDecoder
from scdecode.schema import Columns


class LinearSCVI(SCVI):
    """Linearly decoded scVI (Svensson et al. 2020, Bioinformatics 36:3418).

    The encoder is that of :class:`SCVI`; the logits of the scale are a linear function of the latent point and the
    batch. Everything that :class:`SCVI` does, it does too. The defaults are those of scvi-tools: a negative binomial
    likelihood and a learned library size.

    Parameters
    ----------
    adata
        Cells that :meth:`setup_anndata` was called on; there are no covariates beside the batch, and no size factor.
    n_hidden, n_latent, n_layers, dropout_rate
        Of the encoder; see :class:`scdecode.ModelConfig`.
    dispersion
        ``"gene"`` or ``"gene-batch"``.
    gene_likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"``.
    use_observed_lib_size, latent_distribution
        See :class:`scdecode.ModelConfig`.
    use_batch_norm
        Whether the decoder has batch normalisation, too; the encoder always has it.
    bias
        Whether the decoder has a bias.
    seed
        Of the initial weights.
    **others
        Options of scvi-tools' ``LDVAE`` that change nothing here; another value than the default is an error.

    Raises
    ------
    InputError, CountsError, ConditionError, ConfigError
        For cells that were not set up or are no counts, and for options that are not allowed.

    Examples
    --------
    >>> import scdecode as sd
    >>> adata = sd.datasets.simulate_branching(300, 50)
    >>> sd.LinearSCVI.setup_anndata(adata, batch_key="batch")
    >>> model = sd.LinearSCVI(adata, n_latent=4)
    >>> model.train(max_epochs=2)
    >>> model.get_loadings().shape
    (50, 4)
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
        gene_likelihood: GeneLikelihood = "nb",
        use_observed_lib_size: bool = False,
        latent_distribution: LatentDistribution = "normal",
        *,
        use_batch_norm: bool = True,
        bias: bool = False,
        seed: Seed = 0,
        **others: Any,
    ) -> None:
        said = {name: others.pop(name) for name in _OF_THE_MODEL if name in others}  # an error there, where it is one
        said |= arguments.model_options("LinearSCVI", others)
        if not isinstance(use_batch_norm, bool):
            raise ConfigError(
                f"use_batch_norm: {use_batch_norm!r} came, True or False was expected: whether the decoder has it, too"
            )
        schema, cells = read_training_cells(adata)
        _check_columns(schema.columns)
        norm: Literal["both", "encoder"] = "both" if use_batch_norm else "encoder"
        config = ModelConfig(
            n_hidden=n_hidden,
            n_latent=n_latent,
            n_layers=n_layers,
            dropout_rate=dropout_rate,
            dispersion=dispersion,
            gene_likelihood=gene_likelihood,
            use_observed_lib_size=use_observed_lib_size,
            latent_distribution=latent_distribution,
            use_batch_norm=norm,
            decoder="linear",
            linear_bias=bias,
            **said,
        )
        self._make(adata, config, schema, cells, seed)

    @classmethod
    @checked
    def setup_anndata(  # type: ignore[override]  # fewer columns, in scvi-tools' order
        cls,
        adata: AnnData,
        batch_key: ColumnName | None = None,
        labels_key: ColumnName | None = None,
        layer: str | None = None,
        *,
        use_raw: bool = False,
        allow_fractional_counts: bool = False,
        **others: Any,
    ) -> None:
        """Say where in an AnnData the counts and the conditions are; noted in ``adata.uns["scdecode_setup"]``.

        Parameters
        ----------
        adata
            Cells x genes.
        batch_key, labels_key
            Columns of ``adata.obs`` with the batch and with a label of each cell.
        layer
            The layer of raw counts; by default ``adata.X``.
        use_raw, allow_fractional_counts
            As for :meth:`SCVI.setup_anndata`.
        **others
            There are no others; any is an error.

        Raises
        ------
        InputError
            For a layer or a column that is not there; the message lists those that are.
        """
        arguments.refuse("LinearSCVI.setup_anndata", others, {})
        super().setup_anndata(
            adata,
            layer=layer,
            batch_key=batch_key,
            labels_key=labels_key,
            use_raw=use_raw,
            allow_fractional_counts=allow_fractional_counts,
        )

    def get_loadings(self) -> pd.DataFrame:
        """How each gene's logit of the scale changes with each latent dimension: genes x ``Z_0``, ``Z_1`` ...

        Batch normalisation is folded in, with the statistics of training; the columns of the batch are left out. A
        logit is known up to what all genes have in common, since the scale is a softmax over genes.

        Raises
        ------
        NotTrainedError
            Before the model is trained.
        """
        self.check_trained()
        decoder = self.vae.decoder
        assert isinstance(decoder, LinearDecoder), "the decoder of this class is linear"
        loadings_gk = decoder.scale.loadings().detach().cpu().numpy().copy()
        columns = [f"Z_{i}" for i in range(self.config.n_latent)]
        return pd.DataFrame(loadings_gk, index=pd.Index(self.schema.genes), columns=columns)


_OF_THE_MODEL = ("encode_covariates", "deeply_inject_covariates", "batch_representation", "use_layer_norm")


def _check_columns(columns: Columns) -> None:
    """Raise :class:`ConfigError` for conditions that the linear decoder of scvi-tools has no place for."""
    keys = {
        "size_factor_key": columns.size_factor_key,
        "categorical_covariate_keys": list(columns.categorical_covariate_keys),
        "continuous_covariate_keys": list(columns.continuous_covariate_keys),
    }
    for name, value in keys.items():
        if value:
            raise ConfigError(
                f"{name}: the AnnData was set up with {value!r}, but LinearSCVI knows the batch alone; call "
                "LinearSCVI.setup_anndata(adata, batch_key=...), or take SCVI"
            )
