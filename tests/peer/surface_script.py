"""A notebook written for scvi-tools' SCVI, as a function of the class that it imports: every public call.

``run`` takes the trained model of either package; nothing in here knows which.
"""

import contextlib
import io

import numpy as np

BATCH = 10  # a number, as the batches of the cells are
GENES = ["gene_17", "gene_3", "gene_29"]


def make(SCVI, adata, setup, options, *, epochs=3, **training):
    """Set up, make and train a model."""
    SCVI.setup_anndata(adata, **setup)
    model = SCVI(adata, **options)
    model.train(
        max_epochs=epochs,
        accelerator="cpu",
        devices="auto",
        train_size=0.9,
        validation_size=None,
        shuffle_set_split=True,
        batch_size=25,
        early_stopping=True,
        early_stopping_monitor="elbo_validation",
        early_stopping_patience=45,
        early_stopping_min_delta=0.0,
        early_stopping_mode="min",
        check_val_every_n_epoch=1,
        enable_progress_bar=False,
        plan_kwargs={"lr": 0.02, "weight_decay": 1e-6, "eps": 0.01, "n_epochs_kl_warmup": 10},
        **training,
    )
    return model


def shown(call, *args, **kwargs):
    """What a call prints, and what it returns."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        result = call(*args, **kwargs)
    return printed.getvalue(), result


def latents(model, adata):
    """Calls whose results do not depend on chance, but for a draw."""
    return {
        "latent": model.get_latent_representation(),
        "latent, positional": model.get_latent_representation(adata, [5, 2, 7], True, 100, 64),
        "latent, distribution": model.get_latent_representation(adata, return_dist=True),
        "latent, draw": model.get_latent_representation(give_mean=False),
        "library, draw": model.get_latent_library_size(give_mean=False),
    }


def expression(model, adata):
    """Decoded cells of any likelihood."""
    mask = np.arange(adata.n_obs) % 4 == 0
    call = model.get_normalized_expression
    return {
        "expression": call(),
        "expression, some": call(adata, indices=[9, 3, 4], gene_list=GENES),
        "expression, mask": call(indices=mask, library_size=1e4),
        "expression, latent library": call(library_size="latent", batch_size=33),
        "expression, array": call(return_numpy=True),
        "expression, overall": call(n_samples_overall=50, return_numpy=True, weights="uniform"),
        "expression, positional": call(adata, None, None, GENES, 1e4, 1, None, None, None, True, True, True),
        "counts": model.posterior_predictive_sample(),
        "counts, genes": model.posterior_predictive_sample(adata, [3, 4], None, 1, GENES),
    }


def expression_in_batches(model, adata):
    """Decoded cells in other batches."""
    call = model.get_normalized_expression
    return {
        "expression, batch": call(transform_batch=BATCH),
        "expression, batches": call(transform_batch=[2, BATCH]),
        "expression, own and another": call(transform_batch=[None, 9], library_size=100),
    }


def likelihood(model, adata):
    """Of the likelihoods with an inverse dispersion."""
    return {
        "parameters": model.get_likelihood_parameters(),
        "parameters, draws": model.get_likelihood_parameters(adata, [4, 5], n_samples=3),
        "parameters, mean": model.get_likelihood_parameters(n_samples=3, give_mean=True),
        "correlation": model.get_feature_correlation_matrix(n_samples=2),
        "correlation, pearson": model.get_feature_correlation_matrix(
            indices=np.arange(50), n_samples=1, rna_size_factor=500, correlation_type="pearson"
        ),
    }


def several_draws(model, adata):
    """Of a cell; scvi-tools cannot draw several where the batch is embedded."""
    call = model.get_normalized_expression
    return {
        "expression, draws": call(n_samples=3, return_mean=False, indices=[1, 2]),
        "expression, mean": call(n_samples=3, indices=[1, 2]),
        "expression, array of the mean": call(adata, None, None, GENES, 1e4, 2, None, None, None, True, True),
        "counts, draws": model.posterior_predictive_sample(indices=[3, 4], n_samples=5, gene_list=GENES),
    }


def evidence(model, adata):
    """How likely the cells are."""
    return {
        "elbo": model.get_elbo(),
        "elbo, cells": model.get_elbo(adata, [3, 1, 8], return_mean=False),
        "reconstruction": model.get_reconstruction_error(batch_size=50),
        "reconstruction, cells": model.get_reconstruction_error(return_mean=False),
        "marginal": model.get_marginal_ll(n_mc_samples=4, batch_size=50),
        "marginal, cells": model.get_marginal_ll(adata, [7, 2], 4, return_mean=False),
    }


def about(model, adata):
    """What the model says of itself."""
    printed, result = shown(model.view_anndata_setup, adata)
    return {
        "trained": model.is_trained,
        "cells": model.adata is adata,
        "history": dict(model.history),
        "view": result,
        "view, rows": sorted({line.split("│")[1].strip() for line in printed.splitlines() if line.count("│") > 2}),
        "view, hidden": shown(model.view_anndata_setup, hide_state_registries=True)[1],
    }


def run(model, adata, *, batches, dispersed, learned, embedded):
    """All calls that a model of these options has, by name."""
    results = latents(model, adata) | expression(model, adata) | evidence(model, adata)
    results |= about(model, adata)
    if batches:
        results |= expression_in_batches(model, adata)
    if dispersed:
        results |= likelihood(model, adata)
    if learned:
        results["library"] = model.get_latent_library_size()
    if not embedded:
        results |= several_draws(model, adata)
    else:
        results["embedding"] = model.get_batch_representation(indices=[1, 2, 3])
    return results
