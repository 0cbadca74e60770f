"""Every public function with arguments that it takes, so that one of them can be made hostile."""

import copy
import inspect
import random
import resource
import signal
import sys
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import torch
from hostile_values import Fresh, public, values
from matplotlib import pyplot as plt
from small_models import make_adata

import scdecode as sd
from scdecode.errors import ScdecodeError
from scdecode.geometry.divergences import Parameters

RESULTS = {
    "Attribution",
    "Comparison",
    "Counterfactual",
    "Fisher",
    "Geodesic",
    "Lineage",
    "Move",
    "ParameterMap",
    "Parameters",
    "PathLength",
    "Sensitivity",
}
"""Classes whose objects functions return; their constructors keep what they are given."""

CHANGING = {"train", "attach_reference", "setup_anndata", "__init__", "from_scvi_model"}
"""Methods that change a model or an AnnData, which is then a copy."""

SLOW = {
    ("train", "max_epochs", "None"),
    ("train", "max_epochs", "10**7"),
    ("move", "n_steps", "10**7"),
    ("generate", "n", "10**7"),
    ("get_feature_correlation_matrix", "n_samples", "10**7"),
    ("posterior_predictive_sample", "adata", "None"),
}
"""Good values of which a call rightly takes long: (method, argument, value)."""

MOST_MEMORY = 8 * 2**30
"""Bytes that a call may map beyond what is mapped already."""

LONGEST = 10
"""Seconds of one call; a longer one hangs."""


class Bench:
    """Small models of every class, cells, a path, and results made of them."""

    def __init__(self, folder: Path) -> None:
        warnings.simplefilter("ignore")
        self.adata = make_adata(80, 12)
        options = {"n_latent": 3, "n_hidden": 8}
        for kind, key in ((sd.SCVI, "scvi"), (sd.LinearSCVI, "linear")):
            kind.setup_anndata(self.adata, batch_key="batch")
            model = kind(self.adata, gene_likelihood="nb", **options)
            model.train(2, device="cpu", progress=False)
            setattr(self, key, model)
        sd.SCVI.setup_anndata(self.adata, batch_key="batch")
        labelled = self.adata.copy()
        sd.SCANVI.setup_anndata(labelled, "cell_type", "unknown", batch_key="batch")
        self.scanvi = sd.SCANVI(labelled, **options)
        self.scanvi.train(1, device="cpu", progress=False)
        self.labelled = labelled
        sd.SCVI.setup_anndata(self.adata, batch_key="batch")
        embedding = {"batch_representation": "embedding", "batch_embedding_dim": 2, "use_observed_lib_size": False}
        self.embedded = sd.SCVI(self.adata, **options, **embedding)
        self.embedded.train(1, device="cpu", progress=False)
        for kind in ("scvi", "linear", "scanvi"):
            getattr(self, kind).save(folder / kind)
        self.saved = folder / "scvi"
        self.file = folder / "path.safetensors"
        self.z = self.scvi.get_latent_representation()
        time = np.arange(80) / 80
        self.path = sd.Trajectory.along_pseudotime(self.scvi.posterior(), time, n_points=5)
        self.path.save(self.file)
        several = sd.Trajectory.along_pseudotime(self.scvi.posterior(), np.array([time, time]).T, n_points=5)
        self.several = several
        self.decoded = self.scvi.decode(self.path, n_samples=4)
        self.table = sd.dynamics.gene_dynamics(self.scvi, self.path, n_samples=4)
        self.adata.obs["palantir_pseudotime"] = time
        self.simulated = sd.datasets.simulate_branching(20, 10)
        self.objects = {
            "SCVI": self.scvi,
            "LinearSCVI": self.linear,
            "SCANVI": self.scanvi,
            "Ensemble": sd.Ensemble([self.scvi, self.scvi]),
            "Trajectory": self.path,
            "ModelConfig": sd.ModelConfig(),
            "TrainConfig": sd.TrainConfig(),
            "ParameterMap": sd.geometry.parameter_map(self.scvi, batch="batch_1"),
            "Sensitivity": sd.geometry.sensitivity(self.scvi, self.path),
            "Comparison": sd.dynamics.compare(self.scvi, self.path, self.path, n_points=5, n_samples=4),
            "Counterfactual": sd.counterfactual(self.scvi, self.path, "batch", n_samples=4),
            "Parameters": Parameters(torch.zeros(2, 3), torch.zeros(2, 3), torch.zeros(3)),
        }
        self.objects["Fisher"] = sd.geometry.fisher_information("nb", self.objects["Parameters"])
        self.by_name = {
            "adata": Fresh(self.adata.copy),
            "ax": Fresh(lambda: plt.figure().gca()),
            "cells": self.z,
            "branch": "branch_1",
            "dir_path": "saved",
            "directory": self.saved,
            "give_mean": False,
            "end": self.z[1],
            "epoch": 1,
            "expression": self.decoded,
            "field": lambda t, z: 0 * z + 1,
            "first": self.objects["Parameters"],
            "second": self.objects["Parameters"],
            "parameters": self.objects["Parameters"],
            "function": torch.exp,
            "gene_likelihood": "nb",
            "genes": ["gene_01"],
            "labels_key": "cell_type",
            "mean": torch.zeros(2, 3),
            "zero": None,
            "model": self.scvi,
            "models": [self.scvi, self.scvi],
            "n": 3,
            "n_cells": 30,
            "n_directions": 2,
            "n_latent": 3,
            "n_points": 5,
            "over": "batch",
            "path": self.path,
            "path_a": self.path,
            "path_b": self.path,
            "paths": {"a": self.path},
            "place": "points",
            "point": self.z[0],
            "points": self.z[:4],
            "pseudotime": time,
            "result": self.objects["Counterfactual"],
            "rows": slice(0, 1),
            "scvi_model": Fresh(lambda: copy.deepcopy(self.scvi)),
            "source": self.saved,
            "start": self.z[0],
            "t": [0.0, 0.5, 1.0],
            "table": self.table,
            "target": "converted",
            "targets": {"gene_01": "+"},
            "unlabeled_category": "unknown",
            "values": torch.zeros(4, 6),
            "velocity_rk": np.ones_like(self.z),
            "waypoints": [self.z[0], self.z[1]],
            "z": self.z,
            "z0": self.z[0],
            "z_rk": self.z,
        }
        self.values = values(self.scvi, self.adata, self.path)
        few = {"n_samples": 2}
        self.by_function = {
            "scdecode.load": {"directory": self.saved},
            "scdecode.plot.save": {"path": "picture.png"},
            "scdecode.datasets.simulate_branching": {"n_cells": 20, "n_genes": 10},
            "scdecode.datasets.true_scale": {"adata": self.simulated, "pseudotime": 0.5},
            "scdecode.geometry.geodesic": {"max_iterations": 2, "n_points": 5},
            "scdecode.geometry.move": {"z": self.z[0], "n_steps": 2},
            "scdecode.geometry.attribution": {"tolerance": 0.1},
            "scdecode.dynamics.compare": {"path_b": self.path, "n_points": 5, **few},
            "scdecode.dynamics.gene_dynamics": few,
            "scdecode.counterfactual": few,
            "SCANVI.__init__": {"adata": Fresh(self.labelled.copy)},
            "SCANVI.from_scvi_model": {"labels_key": "cell_type"},
            "SCANVI.load": {"dir_path": folder / "scanvi"},
            "LinearSCVI.load": {"dir_path": folder / "linear"},
            "scdecode.refit": {"n_bins": 5, "n_courses": 4},
            "scdecode.lineages.read_lineages": {"source": "palantir", "adata": self.adata},
            "scdecode.decode_arguments": {"adata": self.decoded},
            "Trajectory.from_points": {"model": self.scvi},
            "Trajectory.from_lineages": {
                "adata": self.adata,
                "pseudotime": "palantir_pseudotime",
                "source": "auto",
                "n_points": 5,
            },
            "Trajectory.load": {"file": self.file},
            "Trajectory.save": {"file": "path.safetensors", "overwrite": True},
            "Trajectory.__init__": {"points": self.path.points, "time": self.path.time},
            "Ensemble.decode": {"points": [self.path, self.path]},
            "Ensemble.paths": {"points": [self.path, self.path]},
            "ParameterMap.of_function": {"function": lambda z: z.exp(), "gene_likelihood": "normal"},
            "ParameterMap.jacobian": {"z": torch.zeros(2, 3)},
            "ParameterMap.log_mean": {"z": torch.zeros(2, 3)},
        }
        self.by_method = {
            "distribution": {"z": torch.tensor(self.z[:3])},
            "train": {"max_epochs": 1, "device": "cpu", "progress": False},
            "get_marginal_ll": {"n_mc_samples": 3, "indices": [0, 1]},
            "get_feature_correlation_matrix": {"n_samples": 1, "indices": [0, 1, 2]},
            "between": {"n_points": 5},
            "through": {"n_points": 5},
            "along_pseudotime": {"n_points": 5, "bandwidth": 0.2},
            "load": {"dir_path": self.saved},
            "save": {"overwrite": True},
            "decode": {"points": self.z[:3]},
        }

    def calls(self) -> dict:
        """Return every public function with its good arguments: name -> (function, what it is bound to, arguments)."""
        found = {}
        for name, (function, kind) in public().items():
            method = name.rpartition(".")[2]
            if kind is not None and method == "__init__" and kind.__name__ in RESULTS:
                continue
            parameters = list(inspect.signature(function).parameters.values())
            bound = self._bound(name, function, kind, method)
            parameters = [p for p in parameters[bound is not None :] if p.kind not in (p.VAR_POSITIONAL,)]
            names = {p.name for p in parameters}
            given = self.by_method.get(method, {}) if kind is not None else {}
            given = {key: value for key, value in given.items() if key in names}
            given = given | self.by_function.get(name, {})
            for p in parameters:
                if p.default is p.empty and p.kind is not p.VAR_KEYWORD and p.name not in given:
                    given[p.name] = self.by_name[p.name]  # KeyError: a new required argument; add a good value of it
            found[name] = (function, bound, given, [p for p in parameters if p.name not in ("self", "cls")])
        return found

    def _bound(self, name, function, kind, method):
        if kind is None:
            return None
        if isinstance(inspect.getattr_static(kind, method), classmethod) or method == "__init__":
            return kind
        if method in ("get_batch_representation", "get_latent_library_size"):
            return self.embedded
        return self.several if name == "Trajectory.pooled" else self.objects[kind.__name__]


def run(function, bound, arguments, allowed=(ScdecodeError,)) -> str | None:
    """Call a function; return what it raised that is not ours, in words."""
    arguments = {name: value.make() if isinstance(value, Fresh) else value for name, value in arguments.items()}
    method = function.__name__
    if method == "__init__":
        call = bound
    elif isinstance(bound, type):
        call = getattr(bound, method)
    elif bound is None:
        call = function
    else:
        call = function.__get__(copy.deepcopy(bound) if method in CHANGING else bound)
    before = states()
    try:
        with limited(LONGEST), little_memory(), warnings.catch_warnings(), redirect_stdout(None):
            warnings.simplefilter("ignore")
            call(**arguments)
    except allowed as error:
        message = str(error)
        if len(message) > 500 or not message.isprintable():
            return f"message of {len(message)} characters: {message[:200]!r}"
    except Exception as error:
        if isinstance(error, TypeError) and "unexpected keyword argument" in str(error):
            return None  # Python's own words for it
        if any(given in (len, torch.exp) or isinstance(given, torch.nn.Module) for given in callbacks(arguments)):
            return None  # what a function of the user raises is theirs
        where = error.__traceback__
        while where.tb_next is not None and "scdecode" in where.tb_next.tb_frame.f_code.co_filename:
            where = where.tb_next
        place = f"{Path(where.tb_frame.f_code.co_filename).name}:{where.tb_lineno}"
        return f"{type(error).__name__} at {place}: {str(error)[:150]!r}"
    if method == "view_anndata_setup":
        return None  # rich numbers its styles by Python's random numbers
    changed = [name for name, (a, b) in zip(NAMES, zip(before, states(), strict=True), strict=True) if a != b]
    return f"global state changed: {changed}" if changed else None


@contextmanager
def limited(seconds):
    def stop(*_):
        raise TimeoutError(f"longer than {seconds} s")

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


@contextmanager
def little_memory():
    """Let no call map much more memory than is mapped already."""
    if sys.platform != "linux":
        yield
        return
    old = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MOST_MEMORY, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def callbacks(arguments):
    """Return the functions among arguments."""
    named = ("on_", "field", "function", "points")
    return [value for name, value in arguments.items() if name.startswith(named) and callable(value)]


NAMES = ("random", "numpy", "torch", "dtype", "grad", "threads")


def states():
    """Global states that no call may change."""
    return (
        random.getstate(),
        np.random.get_state()[2],  # noqa: NPY002
        torch.get_rng_state().sum().item(),
        torch.get_default_dtype(),
        torch.is_grad_enabled(),
        torch.get_num_threads(),
    )
