"""scdecode: any point of an scVI latent space to gene expression.

The names below are imported when they are first used, so that ``import scdecode`` and ``scdecode --help`` load neither
torch nor anndata.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scdecode import datasets, dynamics, errors, geometry, likelihoods, lineages, plot
    from scdecode._utils.settings import settings
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

    __version__: str

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
    "settings",
    "velocity_field",
]

_MODULE_OF = {
    "SCANVI": "scanvi",
    "SCVI": "model",
    "Counterfactual": "counterfactual",
    "Ensemble": "ensemble",
    "LinearSCVI": "linear_scvi",
    "ModelConfig": "config",
    "ScdecodeError": "errors",
    "ScdecodeWarning": "errors",
    "TrainConfig": "config",
    "Trajectory": "trajectory",
    "convert": "converting",
    "counterfactual": "counterfactual",
    "decode_arguments": "provenance",
    "load": "opening",
    "refit": "refitting",
    "settings": "_utils.settings",
    "velocity_field": "paths.flows",
}
"""The module that defines a public name; the other public names are modules themselves."""


def __getattr__(name: str) -> Any:
    """Import a public name at its first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: Any = version("scdecode")
    elif name in _MODULE_OF:
        value = getattr(import_module(f"scdecode.{_MODULE_OF[name]}"), name)
    elif name in __all__:
        value = import_module(f"scdecode.{name}")
    else:
        raise AttributeError(f"module 'scdecode' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)


class _Package(ModuleType):
    """The package. Importing the module ``counterfactual`` must not hide the function of the same name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "counterfactual" and isinstance(value, ModuleType):
            value = value.counterfactual
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
