"""A model's decoder under fixed conditions, written for other programs and checked against ``decode``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from scdecode.decoding.module import DecoderModule
from scdecode.formats.onnx_files import write_onnx
from scdecode.model import SCVI

_N_POINTS = 256  # to compare on


def export_onnx(
    model: SCVI, path: str | Path, *, overwrite: bool = False, **arguments: Any
) -> tuple[DecoderModule, int, float]:
    """Write a decoder as an ONNX file, once onnxruntime computes what ``decode`` does.

    Parameters
    ----------
    model
        A trained model.
    path
        The file to write.
    overwrite
        Whether to replace a file.
    **arguments
        As for :meth:`scdecode.SCVI.decoder`.

    Returns
    -------
    module, n_points, difference
        What was written, the number of points on which it was compared, and the largest difference found, relative to
        the largest value of its point.
    """
    decoder = model.decoder(**arguments)
    points_nk = _points(model)
    expected_ng = model.decode(points_nk, spread=False, **arguments).X
    module = decoder.module()
    difference = write_onnx(module, path, points_nk, expected_ng, overwrite=overwrite, conditions=decoder.conditions)
    return module, len(points_nk), difference


def _points(model: SCVI) -> np.ndarray:
    """Points to compare on: reference cells, or draws from the prior where the model keeps none."""
    reference = model._known_reference()
    if reference is not None:
        return reference.latent_rk[:_N_POINTS]
    generator = np.random.default_rng(0)
    z_nk = generator.standard_normal((_N_POINTS, model.config.n_latent), dtype=np.float32)
    return torch.softmax(torch.from_numpy(z_nk), dim=-1).numpy() if model.config.latent_distribution == "ln" else z_nk
