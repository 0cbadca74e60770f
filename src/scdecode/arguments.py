"""What scvi-tools calls the arguments of a model and of its training, into what they are called here.

An argument that would change nothing here is accepted at its default and is an error at any other value: what a user
asks for is done or refused, never dropped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from scdecode.config import ModelConfig, TrainConfig
from scdecode.errors import ConfigError, InputError, listing, shown, suggestion

Refusals = Mapping[str, tuple[tuple[Any, ...], str]]
"""Names of arguments, with the values that change nothing and what to do instead of passing another one."""

_LEAVE_OUT = "leave it out"
_CELLS = "give the cells as an AnnData: adata=..., indices=..."
_ADAM = "it is trained with Adam; lr, weight_decay and eps can be set"
_ONE_RATE = "the learning rate stays as it is; set lr"
_WHOLE_KL = "the weight of the KL term rises from 0 to 1; set n_epochs_kl_warmup"
_OWN_STATE = "train(checkpoint='file') keeps the state after each epoch and goes on from it"
_WHOLE_EPOCHS = "training is of whole epochs; set max_epochs"
_TABLE = "model.history and model.history_table have what was logged; on_epoch=... is told of each epoch"

_MODEL: Refusals = {
    "registry": ((None,), "a model is made of cells, SCVI(adata), or opened from its files, scdecode.load(path)"),
    "log_variational": ((True,), "the encoder always sees log(1 + counts)"),
    "extra_payload_autotune": ((False,), _LEAVE_OUT),
    "library_log_means": ((None,), "the prior of the library size is computed from the cells"),
    "library_log_vars": ((None,), "the prior of the library size is computed from the cells"),
    "var_activation": ((None,), "the variance of the posterior is the exponential of what the encoder gives"),
    "extra_encoder_kwargs": ((None, {}), "see scdecode.ModelConfig for the options of the networks"),
    "extra_decoder_kwargs": ((None, {}), "see scdecode.ModelConfig for the options of the networks"),
}

_PLAN: Refusals = {
    "optimizer": (("Adam",), _ADAM),
    "optimizer_creator": ((None,), _ADAM),
    "update_only_decoder": ((False,), _LEAVE_OUT),
    "reduce_lr_on_plateau": ((False,), _ONE_RATE),
    "lr_factor": ((0.6,), _ONE_RATE),
    "lr_patience": ((30,), _ONE_RATE),
    "lr_threshold": ((0.0,), _ONE_RATE),
    "lr_scheduler_metric": (("elbo_validation",), _ONE_RATE),
    "lr_min": ((0,), _ONE_RATE),
    "n_steps_kl_warmup": (
        (None,),
        "count in epochs: n_epochs_kl_warmup=..., where an epoch has (training cells / batch_size) steps",
    ),
    "max_kl_weight": ((1.0,), _WHOLE_KL),
    "min_kl_weight": ((0.0,), _WHOLE_KL),
    "compile": ((False,), _LEAVE_OUT),
    "compile_kwargs": ((None, {}), _LEAVE_OUT),
    "on_step": ((False,), _TABLE),
    "on_epoch": ((True,), _TABLE),
}

_SPLITTER: Refusals = {
    "load_sparse_tensor": ((False,), "the counts are sparse until a minibatch needs them"),
    "pin_memory": ((False,), _LEAVE_OUT),
    "external_indexing": ((None,), "the split is drawn by train_size, validation_size, shuffle_set_split and seed"),
    "drop_last": ((False,), "every training cell is seen in every epoch"),
    "drop_dataset_tail": ((False,), "every training cell is seen in every epoch"),
    "shuffle": ((True,), "the training cells are shuffled anew for every epoch"),
    "num_workers": ((0,), "the cells are in memory and need no workers"),
    "persistent_workers": ((False,), "the cells are in memory and need no workers"),
    "distributed_sampler": ((None, False), "a model is trained on one device"),
}

_TRAINER: Refusals = {
    "early_stopping_monitor": (("elbo_validation",), "early stopping looks at elbo_validation"),
    "early_stopping_mode": (("min",), "early stopping looks at elbo_validation, the smaller the better"),
    "benchmark": ((True, None), _LEAVE_OUT),
    "default_root_dir": ((None,), _OWN_STATE),
    "enable_checkpointing": ((False,), _OWN_STATE),
    "checkpointing_monitor": (("validation_loss",), _OWN_STATE),
    "ckpt_path": ((None,), _OWN_STATE),
    "num_sanity_val_steps": ((0,), _LEAVE_OUT),
    "enable_model_summary": ((False,), "print(model)"),
    "progress_bar_refresh_rate": ((1,), "the progress bar counts epochs; progress=False leaves it out"),
    "simple_progress_bar": ((True,), "the progress bar counts epochs; progress=False leaves it out"),
    "logger": ((None, False), _TABLE),
    "log_every_n_steps": ((10, None), "the history has a row an epoch"),
    "learning_rate_monitor": ((False,), _ONE_RATE),
    "log_save_dir": ((None,), _TABLE),
    "callbacks": ((None, []), "on_epoch=... is told of each epoch"),
    "strategy": ((None, "auto"), "a model is trained on one device"),
    "num_nodes": ((1,), "a model is trained on one device"),
    "use_distributed_sampler": ((True, False), "a model is trained on one device"),
    "sync_batchnorm": ((False,), "a model is trained on one device"),
    "gradient_clip_val": ((None, 0), "gradients are not clipped; a lower lr is the remedy here"),
    "gradient_clip_algorithm": ((None,), "gradients are not clipped; a lower lr is the remedy here"),
    "accumulate_grad_batches": ((1,), "set batch_size"),
    "deterministic": ((None, False), "training on the CPU repeats itself with the same seed"),
    "min_epochs": ((None,), "early_stopping_warmup_epochs is the least before early stopping looks"),
    "min_steps": ((None,), _WHOLE_EPOCHS),
    "max_steps": ((-1, None), _WHOLE_EPOCHS),
    "max_time": ((None,), _WHOLE_EPOCHS),
    "limit_train_batches": ((None, 1.0), "set train_size"),
    "limit_val_batches": ((None, 1.0), "set validation_size"),
    "val_check_interval": ((None, 1.0), "set check_val_every_n_epoch"),
    "fast_dev_run": ((False,), "set max_epochs"),
    "profiler": ((None,), "history_table['seconds'] has the time of each epoch"),
    "detect_anomaly": ((False,), "a loss that is no number ends training with an error that names the step"),
}

_LOADERS: Refusals = {
    "dataloader": ((None,), _CELLS),
    "data_loader_kwargs": ((None, {}), "batch_size=... is how many cells are made dense at once"),
    "weights": ((None, "uniform"), "importance weights are not offered; every draw counts the same"),
}


def refuse(place: str, given: Mapping[str, Any], table: Refusals) -> None:
    """Raise :class:`InputError` for an argument that has another value than one that changes nothing.

    Parameters
    ----------
    place
        What was called: ``"train"``.
    given
        The arguments that came.
    table
        Those that are known; any other name is an error too.
    """
    for name, value in given.items():
        if name not in table:
            raise InputError(f"{place}: there is no argument {name!r}; leave it out{suggestion(name, list(table))}")
        neutral, remedy = table[name]
        if not any(_same(value, one) for one in neutral):
            expected = " or ".join(repr(one) for one in neutral)
            raise InputError(
                f"{place}: {name}={shown(value)} came, which scvi-tools knows and scdecode does not offer; "
                f"{expected} was expected: {remedy}"
            )


def refuse_loaders(place: str, given: Mapping[str, Any], **others: Any) -> None:
    """Raise :class:`InputError` for the ways of giving cells and weights that scvi-tools has and we have not."""
    refuse(place, {**others, **given}, _LOADERS)


def model_options(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of :class:`ModelConfig` from keywords of scvi-tools' module that are called otherwise here.

    Parameters
    ----------
    kind
        The class of the model.
    given
        The keywords.

    Raises
    ------
    ConfigError, InputError
        For one that does not exist, or that is not offered.
    """
    options: dict[str, Any] = {}
    others = dict(given)
    embedding = dict(others.pop("batch_embedding_kwargs", None) or {})
    if "embedding_dim" in embedding:
        options["batch_embedding_dim"] = embedding.pop("embedding_dim")
    if embedding:
        raise InputError(
            f"{kind}: batch_embedding_kwargs has {listing(embedding)}, and only 'embedding_dim' is offered"
        )
    if "use_size_factor_key" in others:
        raise InputError(f"{kind}: use_size_factor_key came; name the column in setup_anndata(size_factor_key=...)")
    known = [field.name for field in dataclasses.fields(ModelConfig)]
    for name in others:
        if name not in _MODEL:
            raise ConfigError(f"{kind}: there is no option {name!r}{suggestion(name, [*known, *_MODEL])}")
    refuse(kind, others, _MODEL)
    return options


def train_options(
    *,
    plan_config: Any = None,
    plan_kwargs: Any = None,
    trainer_config: Any = None,
    datasplitter_kwargs: Any = None,
    datamodule: Any = None,
    **given: Any,
) -> tuple[dict[str, Any], bool]:
    """Fields of :class:`TrainConfig` from the arguments of scvi-tools' ``train``, and whether to show progress.

    As there, ``plan_kwargs`` goes before ``plan_config``, and what is passed by itself before everything else.

    Raises
    ------
    ConfigError, InputError
        For arguments that do not exist, or that are not offered.
    """
    if datamodule is not None:
        raise InputError("train: datamodule came; a model is trained on the AnnData it was made of: SCVI(adata)")
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    plan = {**_mapping("plan_config", plan_config), **_mapping("plan_kwargs", plan_kwargs)}
    splitter, trainer = _mapping("datasplitter_kwargs", datasplitter_kwargs), _mapping("trainer_config", trainer_config)
    for name, default in (("max_epochs", 400), ("accelerator", "auto"), ("devices", "auto")):
        value = trainer.pop(name, None)  # scvi-tools' TrainerConfig always has them, and there, too, train's own count
        if value not in (None, default) and isinstance(trainer_config, Mapping):
            raise InputError(
                f"train: {name}={shown(value)} came in trainer_config; pass it to train itself: {name}=..."
            )
    bars = [values.pop("enable_progress_bar") for values in (trainer, given) if "enable_progress_bar" in values]
    options: dict[str, Any] = {}
    own = ("max_epochs", "train_size", "validation_size", "shuffle_set_split", "batch_size", "early_stopping")
    tables = ((_PLAN, plan), (_SPLITTER, splitter), (_TRAINER, trainer), ({**_TRAINER, **_PLAN, **_SPLITTER}, given))
    for table, values in tables:
        others = {name: value for name, value in values.items() if name not in defaults}
        for name in others:
            if name not in table:
                raise ConfigError(f"train: there is no option {name!r}{_OLD.get(name) or _suggested(name, table)}")
        refuse("train", others, table)
        for name in values.keys() - others.keys():
            value = defaults[name] if values[name] is None and name not in _NONE_MEANS else values[name]
            if name == "precision" and isinstance(value, int | str):
                value = _PRECISIONS.get(value, value)
            # what nobody said, as train passes it on, does not overrule what somebody said
            said = values is given and name not in own
            if said or name not in options or value != defaults[name]:
                options[name] = value
    return options, all(bars)


def _suggested(name: str, table: Refusals) -> str:
    return suggestion(name, sorted({*(field.name for field in dataclasses.fields(TrainConfig)), *table}))


_OLD = {"use_gpu": "; pass accelerator='gpu' or 'cpu'", "use_cuda": "; pass accelerator='gpu' or 'cpu'"}
"""Arguments of earlier versions of scvi-tools."""

_PRECISIONS = {32: "fp32", "32": "fp32", "32-true": "fp32", "bf16-mixed": "bf16"}
"""Words of lightning, and ours."""

_NONE_MEANS = ("max_epochs", "n_epochs_kl_warmup", "validation_size")
"""Fields of which None is a value; of another, as ``train_size`` in scvi-tools, it is the default."""


def device_name(accelerator: Any = "auto", devices: Any = "auto", device: str = "auto") -> str:
    """The one device that scvi-tools' ``accelerator`` and ``devices`` speak of, or ours.

    Parameters
    ----------
    accelerator
        ``"auto"``, ``"cpu"``, ``"gpu"`` or ``"cuda"``, ``"mps"``.
    devices
        ``"auto"``, ``1``, or a list of the number of one device; as text too.
    device
        Our own word; where it is given, the other two may not be.

    Raises
    ------
    ConfigError
        For several devices, and for kinds of devices that are not offered.
    """
    if device != "auto":
        if accelerator != "auto" or devices != "auto":
            raise ConfigError(
                f"device: {device!r} came beside accelerator={accelerator!r}, devices={devices!r}; pass one of the two"
            )
        return device
    kinds = {"auto": "auto", "cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
    if not isinstance(accelerator, str) or accelerator not in kinds:
        raise ConfigError(f"accelerator: {accelerator!r} came, one of {listing(kinds)} was expected")
    number = _device_number(devices)
    kind = kinds[accelerator]
    if kind == "auto" and number is not None:
        kind = "auto" if number == 0 else "cuda"
    if kind != "cuda" and number:
        raise ConfigError(f"devices: {devices!r} came, but accelerator={accelerator!r} is one device; leave it out")
    return f"{kind}:{number}" if kind == "cuda" and number is not None else kind


def _device_number(devices: Any) -> int | None:
    """Which device; None where it does not matter."""
    devices = devices.tolist() if isinstance(devices, np.ndarray | np.generic) else devices
    if isinstance(devices, str) and devices not in ("auto", "-1"):
        numbers = [part.strip() for part in devices.split(",") if part.strip()]
        if all(part.isdigit() for part in numbers):  # "2" is two devices, "2," the one of number 2, as in lightning
            devices = int(numbers[0]) if len(numbers) == 1 and "," not in devices else [int(part) for part in numbers]
    if devices in ("auto", "-1") or (devices in (1, -1) and not isinstance(devices, bool)):
        return None
    if isinstance(devices, list | tuple) and len(devices) == 1 and isinstance(devices[0], int) and devices[0] >= 0:
        return devices[0]
    raise ConfigError(
        f"devices: {devices!r} came, and a model is trained on one device; 'auto', 1 or a list of one number was "
        "expected"
    )


def _mapping(name: str, value: Any) -> dict[str, Any]:
    """A mapping, or a configuration that can become one, as a dict."""
    if value is None:
        return {}
    if callable(getattr(value, "to_kwargs", None)):  # scvi-tools' TrainingPlanConfig and TrainerConfig
        value = value.to_kwargs()
    if not isinstance(value, Mapping):
        raise InputError(f"train: {name}={shown(value)} came, a mapping of names to values was expected")
    return dict(value)


def _same(value: Any, other: Any) -> bool:
    """Whether two values are equal and of one kind: 0 is not False, and an array is no value of these."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    try:
        return bool(value == other)
    except (TypeError, ValueError, RuntimeError):  # arrays, tables and tensors
        return False
