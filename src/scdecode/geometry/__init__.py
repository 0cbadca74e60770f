"""Geometry of the latent space as the decoder sees it: metric, geodesics, sensitivity, and steps towards genes."""

from scdecode.geometry.decoded import ParameterMap, parameter_map
from scdecode.geometry.divergences import Fisher, Parameters, fisher_information, kl_divergence
from scdecode.geometry.geodesics import Geodesic, geodesic
from scdecode.geometry.metric import PathLength, metric, path_length
from scdecode.geometry.moving import Move, move
from scdecode.geometry.sensitivity import Attribution, Sensitivity, attribution, sensitivity

__all__ = [
    "Attribution",
    "Fisher",
    "Geodesic",
    "Move",
    "ParameterMap",
    "Parameters",
    "PathLength",
    "Sensitivity",
    "attribution",
    "fisher_information",
    "geodesic",
    "kl_divergence",
    "metric",
    "move",
    "parameter_map",
    "path_length",
    "sensitivity",
]


def __dir__() -> list[str]:
    """Return the public names, for tab completion."""
    return list(__all__)
