"""scdecode: any point of an scVI latent space to gene expression."""

from importlib.metadata import version as _version

from scdecode import datasets, dynamics, errors, geometry, likelihoods, lineages, plot
from scdecode.config import ModelConfig, TrainConfig
from scdecode.converting import convert
from scdecode.counterfactual import Counterfactual, counterfactual
from scdecode.ensemble import Ensemble
from scdecode.errors import ScdecodeError, ScdecodeWarning
from scdecode.linear_scvi import LinearSCVI
from scdecode.model import SCVI
from scdecode.opening import load
from scdecode.paths.flows import velocity_field
from scdecode.provenance import decode_arguments
from scdecode.refitting import refit
from scdecode.scanvi import SCANVI
from scdecode.trajectory import Trajectory

__version__ = _version("scdecode")

__all__ = [
    "SCANVI",
    "SCVI",
    "Counterfactual",
    "Ensemble",
    "LinearSCVI",
    "ModelConfig",
    "ScdecodeError",
    "ScdecodeWarning",
    "TrainConfig",
    "Trajectory",
    "convert",
    "counterfactual",
    "datasets",
    "decode_arguments",
    "dynamics",
    "errors",
    "geometry",
    "likelihoods",
    "lineages",
    "load",
    "plot",
    "refit",
    "velocity_field",
]
