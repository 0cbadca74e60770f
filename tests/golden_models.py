"""The golden models: scvi-tools' weights in our network, and its setup as a schema."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from safetensors import safe_open
from torch import Tensor

from scdecode._utils.levels import Category
from scdecode.cells import Cells
from scdecode.config import ModelConfig
from scdecode.formats.scvi_names import to_ours
from scdecode.minibatches import Minibatch
from scdecode.schema import Columns, Schema, tabulate_conditions
from scdecode.vae import VAE

GOLDEN = Path(__file__).parent / "golden"
FILES = sorted(GOLDEN.glob("*.safetensors"))


@dataclass(frozen=True, eq=False)
class Golden:
    """One golden file; README.md there lists the tensors."""

    name: str
    config: ModelConfig
    schema: Schema
    state: dict[str, Tensor]  # under scvi-tools' names
    tensors: dict[str, Tensor]  # inputs and outputs

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def codes(self, prefix: str = "") -> Tensor:
        """Codes of the cells, or with the prefix ``z_`` of the points: batch, categorical covariates, label."""
        batch_n, label_n = self[f"{prefix}batch"], self[f"{prefix}labels"]
        categorical_nc = self.tensors.get(f"{prefix}cat", torch.zeros(len(batch_n), 0, dtype=torch.int64))
        return torch.cat([batch_n[:, None], categorical_nc, label_n[:, None]], dim=1)

    def continuous(self, prefix: str = "") -> Tensor:
        """Continuous covariates of the cells, or with the prefix ``z_`` of the points."""
        return self.tensors.get(f"{prefix}cont", torch.zeros(len(self[f"{prefix}batch"]), 0))

    def library(self) -> Tensor:
        """Total counts of the cells, or their size factors, ``(n, 1)``."""
        return (self["size_factor"] if "size_factor" in self else self["x"].sum(1))[:, None]

    def minibatch(self, dtype: torch.dtype = torch.float32) -> Minibatch:
        """The cells, as the network takes them."""
        return Minibatch(
            x_ng=self["x"].to(dtype),
            codes_nc=self.codes(),
            continuous_nd=self.continuous().to(dtype),
            library_n1=self.library().to(dtype),
        )

    def cells(self) -> Cells:
        """The cells, as ``encoding`` takes them."""
        x_ng = self["x"].numpy()
        return Cells(
            counts=sp.csr_matrix(x_ng),
            library_n=x_ng.sum(1),
            codes_nc=self.codes().numpy(),
            continuous_nd=self.continuous().numpy(),
            size_factor_n=self["size_factor"].numpy() if "size_factor" in self else None,
        )

    def vae(self, dtype: torch.dtype = torch.float32) -> VAE:
        """Our network with scvi-tools' weights: every parameter of it is filled, and from the right shape."""
        state, _ = to_ours(self.state, self.config)
        prior = None
        if self.config.learns_library:
            n_batches = self.schema.n_batches
            prior = torch.full((n_batches,), torch.nan), torch.full((n_batches,), torch.nan)
        vae = VAE(self.config, self.schema.n_genes, self.schema.n_levels, len(self.schema.continuous), prior)
        vae.load_state_dict(state, strict=True)
        return vae.to(dtype).eval().requires_grad_(False)


def read_golden(path: Path) -> Golden:
    """Read a golden file."""
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        metadata = file.metadata()
    setup = json.loads(metadata["setup"])
    return Golden(
        name=metadata["case"],
        config=ModelConfig(**json.loads(metadata["config"]), use_size_factor=setup["size_factor"]),
        schema=_schema(setup, tensors),
        state={name.removeprefix("state/"): t for name, t in tensors.items() if name.startswith("state/")},
        tensors={name: t for name, t in tensors.items() if not name.startswith("state/")},
    )


def _schema(setup: dict[str, Any], tensors: Mapping[str, Tensor]) -> Schema:
    """The schema of a model whose training cells had the conditions of the file's cells and points."""

    def both(name: str) -> np.ndarray:
        return torch.cat([tensors[name], tensors[f"z_{name}"]]).numpy()

    def category(key: str, names: list[str] | None) -> Category | None:
        return None if names is None else Category(key, tuple(names))

    categorical = tuple(Category(key, tuple(names)) for key, names in setup["categorical"].items())
    codes = [both("batch"), *(both("cat").T if categorical else ()), both("labels")]
    continuous_nd = both("cont") if setup["continuous"] else np.zeros((len(codes[0]), 0))
    factor_n = tensors["size_factor"] if setup["size_factor"] else None
    return Schema(
        genes=tuple(setup["genes"]),
        columns=Columns(
            batch_key="batch" if setup["batch"] else None,
            labels_key="labels" if setup["labels"] else None,
            size_factor_key="size_factor" if setup["size_factor"] else None,
            categorical_covariate_keys=tuple(setup["categorical"]),
            continuous_covariate_keys=tuple(setup["continuous"]),
        ),
        batch=category("batch", setup["batch"]),
        labels=category("labels", setup["labels"]),
        categorical=categorical,
        continuous=tuple(setup["continuous"]),
        conditions=tabulate_conditions(np.stack(codes, axis=1), continuous_nd),
        n_cells=len(codes[0]),
        median_library=float(tensors["x"].sum(1).median()),
        median_size_factor=None if factor_n is None else float(factor_n.median()),
        max_size_factor=None if factor_n is None else float(factor_n.max()),
    )
