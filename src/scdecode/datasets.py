"""Cells to try things on: real ones that scanpy's wheel carries, and simulated ones whose truth is known."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import sparse

from scdecode.errors import CountsError, missing_extra
from scdecode.simulation import simulate_branching, true_scale

__all__ = ["pbmc68k_reduced", "simulate_branching", "true_scale"]


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)


PBMC_SHAPE = (700, 765)
PBMC_FILE = "datasets/10x_pbmc68k_reduced.h5ad"

Floats = npt.NDArray[np.float64]


def pbmc68k_reduced() -> ad.AnnData:
    """Return 700 peripheral blood cells with the integer counts of 765 genes.

    The cells are a sample of the 68,579 "fresh 68k PBMC, donor A" of 10x Genomics [1]_, as scanpy's wheel ships them
    (nothing is downloaded, and scanpy itself is not imported). The file holds ``log1p(counts / total * 1e4)`` to
    three decimals; the counts are computed back, to within 0.1, and rounded.

    The genes were chosen for how much they vary: the sum of a row is about a fifth of what the cell had, so use it as
    the library size of these 765 genes and not as the cell's sequencing depth. All cells have more than 1,000 genes.

    Returns
    -------
    AnnData, 700 x 765, without layers or raw:

    - ``X``: CSR float32, counts (UMIs), whole numbers
    - ``obs``: ``cell_type`` (10 categories, from the correlation with sorted cells), ``louvain``, ``phase``
      (categorical), ``fraction_mito`` (0 to 1), ``total_counts_all_genes`` and ``n_genes_all_genes`` (before the genes
      were selected)
    - ``var``: index of gene symbols; ``highly_variable``, the file's own stricter selection (309 genes)
    - ``obsm``: ``X_pca`` (700 x 50), ``X_umap`` (700 x 2), both as in the file

    Raises
    ------
    MissingExtraError
        scanpy is not installed.
    CountsError
        This release of scanpy lacks the file, or has changed what is in it.

    References
    ----------
    .. [1] Zheng et al. (2017), Massively parallel digital transcriptional profiling of single cells,
       Nature Communications 8:14049, https://doi.org/10.1038/ncomms14049
    """
    path = _pbmc_path()
    with warnings.catch_warnings():
        # Up to scanpy 1.11 the file is in an old layout, of which anndata warns in several ways; 1.12 rewrote it.
        warnings.simplefilter("ignore")
        try:
            stored = ad.read_h5ad(path)
        except OSError as error:
            raise _changed(f"{path} cannot be read ({error})", "an h5ad file") from error
    columns = ["bulk_labels", "louvain", "phase", "percent_mito", "n_counts", "n_genes"]
    absent = [c for c in columns if c not in stored.obs]
    absent += [k for k in ("X_pca", "X_umap") if k not in stored.obsm]
    absent += [c for c in ("highly_variable",) if c not in stored.var]
    if absent or stored.raw is None:
        raise _changed(f"its file lacks {absent or 'raw'}", f"raw, the columns {columns} and two embeddings")
    obs = pd.DataFrame(
        {
            "cell_type": stored.obs["bulk_labels"].astype("category"),
            "louvain": stored.obs["louvain"].astype("category"),
            "phase": stored.obs["phase"].astype("category"),
            "fraction_mito": stored.obs["percent_mito"],  # the file calls it percent; its largest value is 0.04
            "total_counts_all_genes": stored.obs["n_counts"],
            "n_genes_all_genes": stored.obs["n_genes"],
        },
        index=pd.Index(stored.obs_names, name=None),
    )
    counts_ng = _counts_from_log(sparse.csr_matrix(stored.raw.X), obs["total_counts_all_genes"].to_numpy(np.float64))
    var = stored.var.loc[stored.raw.var_names, ["highly_variable"]].rename_axis(None)
    obsm = {key: np.asarray(stored.obsm[key]) for key in ("X_pca", "X_umap")}
    return ad.AnnData(counts_ng, obs=obs, var=var, obsm=obsm)


def _pbmc_path() -> Path:
    # Importing scanpy costs seconds (numba, scikit-learn, ...), and only the place of its files is wanted.
    spec = importlib.util.find_spec("scanpy")
    if spec is None or spec.origin is None:
        raise missing_extra("scanpy", "scanpy", "pbmc68k_reduced")
    path = Path(spec.origin).parent / PBMC_FILE
    if not path.is_file():
        raise _changed(f"there is no file {path}", f"the file scanpy/{PBMC_FILE}")
    return path


def _changed(came: str, expected: str) -> CountsError:
    try:
        version = importlib.metadata.version("scanpy")
    except importlib.metadata.PackageNotFoundError:
        version = "of unknown version"
    return CountsError(
        f"pbmc68k_reduced: scanpy {version} is installed and {came}; {expected} was expected, "
        "as in scanpy 1.11 and 1.12; install one of these with: pip install 'scanpy>=1.11,<1.13', "
        "or use simulate_branching()"
    )


def _counts_from_log(log_ng: sparse.csr_matrix, total_n: Floats) -> sparse.csr_matrix:
    """Whole counts (n x g, float32) from ``log1p(counts / total * 1e4)``; CountsError where they are not whole."""
    if log_ng.shape != PBMC_SHAPE:
        raise _changed(f"its raw.X has the shape {log_ng.shape}", f"the shape {PBMC_SHAPE}")
    total_of_entry = np.repeat(total_n, np.diff(log_ng.indptr))
    value = np.expm1(log_ng.data.astype(np.float64)) * total_of_entry / 1e4
    if not np.isfinite(value).all() or value.min(initial=0.0) < 0:
        raise _changed("its raw.X gives negative counts, NaN or infinity", "log1p(counts / n_counts * 1e4)")
    whole = np.rint(value)
    deviation = float(np.abs(value - whole).max(initial=0.0))
    # 0.08 in scanpy 1.11 and 1.12, from three decimals of a logarithm; near 0.5 the rounding would be a guess.
    if deviation > 0.1:
        raise _changed(
            f"its raw.X gives counts up to {deviation:.2f} away from a whole number",
            "log1p(counts / n_counts * 1e4), within 0.1 of whole counts,",
        )
    counts_ng = sparse.csr_matrix((whole.astype(np.float32), log_ng.indices, log_ng.indptr), shape=log_ng.shape)
    counts_ng.eliminate_zeros()
    counts_ng.sort_indices()
    return counts_ng
