"""Decoders as ONNX files, which other programs and languages run."""

from __future__ import annotations

import json
import logging
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scdecode.decoding.module import DecoderModule
from scdecode.errors import FormatError, missing_extra
from scdecode.files import replacing

TOLERANCE = 1e-4
"""The largest difference from ``decode`` that is rounding, relative to the largest value of a point."""


def write_onnx(
    module: DecoderModule, path: str | Path, points_nk: np.ndarray, expected_ng: np.ndarray, **options: Any
) -> float:
    """Write a decoder as an ONNX file, once it gives the right values there.

    The file has one input, ``points`` (n, k), and one output, ``expression`` (n, genes), both float32, for any n. Its
    metadata name the genes, the quantity, the unit and the conditions, as JSON under ``scdecode``.

    Parameters
    ----------
    module
        The decoder.
    path
        The file to write.
    points_nk
        Points to try it on.
    expected_ng
        What they decode to.
    **options
        ``overwrite``: whether to replace a file; ``conditions``: those of the decoder, for the metadata.

    Returns
    -------
    float
        The largest difference found, relative to the largest value of its point.

    Raises
    ------
    FormatError
        If onnxruntime computes other values; nothing is written.
    MissingExtraError
        If onnx, onnxscript or onnxruntime is not installed.
    OutputError
        If the file exists, or cannot be written.
    """
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise missing_extra("onnx, onnxscript and onnxruntime", "export", "writing ONNX files") from error
    with replacing(path, overwrite=options.get("overwrite", False)) as temporary:
        program = _export(module)
        about = {
            "scdecode": version("scdecode"),
            "quantity": module.quantity,
            "unit": module.unit,
            "conditions": options.get("conditions", {}),
            "genes": list(module.genes),
        }
        content = program.model_proto
        onnx.helper.set_model_props(content, {"scdecode": json.dumps(about, default=str)})
        onnx.save_model(content, str(temporary))
        session = onnxruntime.InferenceSession(str(temporary), providers=["CPUExecutionProvider"])
        (found_ng,) = session.run(None, {"points": points_nk.astype(np.float32)})
        largest_n1 = np.abs(expected_ng).max(axis=1, keepdims=True)
        difference = float((np.abs(found_ng - expected_ng) / largest_n1).max())
        if not difference <= TOLERANCE:  # neither may it be NaN
            raise FormatError(
                f"{path}: got values from onnxruntime that differ from decode by up to {difference:.1e} of the largest "
                f"value of a point, expected at most {TOLERANCE:g}; nothing was written; please report this with the "
                "model"
            )
    return difference


def _export(module: DecoderModule) -> torch.onnx.ONNXProgram:
    """Trace the decoder for any number of points."""
    example = torch.zeros(2, module.n_latent, dtype=torch.float32)
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(action="ignore"):  # of deprecated parts of the exporter's own
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                input_names=["points"],
                output_names=["expression"],
                dynamic_shapes=({0: torch.export.Dim("n")},),
                verbose=False,
            )
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None, "the exporter returns what it made"
    return program
