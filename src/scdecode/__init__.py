"""scdecode: any point of an scVI latent space to gene expression."""

from importlib.metadata import version as _version

from scdecode import datasets, errors, likelihoods, plot
from scdecode.config import ModelConfig, TrainConfig
from scdecode.errors import ScdecodeError, ScdecodeWarning
from scdecode.model import SCVI, load
from scdecode.provenance import decode_arguments
from scdecode.trajectory import Trajectory

__version__ = _version("scdecode")

__all__ = [
    "SCVI",
    "ModelConfig",
    "ScdecodeError",
    "ScdecodeWarning",
    "TrainConfig",
    "Trajectory",
    "datasets",
    "decode_arguments",
    "errors",
    "likelihoods",
    "load",
    "plot",
]
