"""Which cells are trained on, in which order, and how they become tensors."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import EVERYTHING

import scdecode as sd
from scdecode import TrainConfig
from scdecode.cells import read_training_cells
from scdecode.errors import ConfigError
from scdecode.minibatches import gather, rows_of, split_cells


@pytest.mark.parametrize(
    ("n_cells", "options", "sizes"),
    [
        (300, {}, (270, 30, 0)),
        (301, {}, (271, 30, 0)),  # scvi-tools rounds the training cells up
        (10, {"train_size": 0.7}, (7, 3, 0)),
        (100, {"train_size": 0.29}, (29, 71, 0)),  # in binary 0.29 * 100 is a little less than 29
        (100, {"train_size": 0.55}, (55, 45, 0)),  # and 0.55 * 100 a little more than 55
        (300, {"train_size": 1.0}, (300, 0, 0)),
        (300, {"train_size": 0.5, "validation_size": 0.2}, (150, 60, 90)),
        (300, {"train_size": 0.5, "validation_size": 0.0}, (150, 0, 150)),
        (3, {"train_size": 0.5, "validation_size": 0.5}, (2, 1, 0)),
        (2, {}, (2, 0, 0)),
        (11, {"train_size": 0.7, "validation_size": 0.3}, (8, 3, 0)),
    ],
)
def test_sizes_of_the_sets(n_cells, options, sizes):
    split = split_cells(n_cells, TrainConfig(**options))
    assert (len(split.train), len(split.validation), len(split.test)) == sizes


@settings(deadline=None)
@given(
    n_cells=st.integers(2, 500),
    seed=st.integers(0, 10),
    train=st.floats(0.01, 1),
    left=st.floats(0, 1),
    shuffle=st.booleans(),
)
def test_each_cell_is_in_one_set(n_cells, seed, train, left, shuffle):
    config = TrainConfig(seed=seed, train_size=train, validation_size=left * (1 - train), shuffle_set_split=shuffle)
    try:
        split = split_cells(n_cells, config)
    except ConfigError:
        assert train * n_cells <= 1
        return
    parts = (split.train, split.validation, split.test)
    assert np.sort(np.concatenate(parts)).tolist() == list(range(n_cells))
    assert len(split.train) >= max(2, train * n_cells - 1e-6)
    if not shuffle:
        assert [*split.validation, *split.train, *split.test] == list(range(n_cells))


def test_the_seed_draws_the_split():
    one, same, other = (split_cells(300, TrainConfig(seed=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.train, same.train)
    assert set(one.validation) != set(other.validation)


def test_too_few_cells_to_train_on():
    with pytest.raises(
        ConfigError, match=r"train_size: 0.1 of 10 cells leaves 1 to train on, at least 2 were expected"
    ):
        split_cells(10, TrainConfig(train_size=0.1))


@pytest.mark.parametrize(
    ("n", "size", "sizes"),
    [
        (10, 5, [5, 5]),
        (11, 5, [5, 6]),  # never a minibatch of one cell
        (12, 5, [5, 5, 2]),
        (6, 5, [6]),
        (4, 5, [4]),
        (5, 5, [5]),
        (3, 2, [3]),
        (2, 2, [2]),
        (5, 2, [2, 3]),
        (0, 5, [0]),
    ],
)
def test_minibatches(n, size, sizes):
    order = np.random.default_rng(0).permutation(n)
    minibatches = list(rows_of(order, size))
    assert [len(rows) for rows in minibatches] == sizes
    np.testing.assert_array_equal(np.concatenate(minibatches), order)


@settings(deadline=None)
@given(n=st.integers(2, 400), size=st.integers(2, 150))
def test_no_minibatch_of_one_cell(n, size):
    sizes = [len(rows) for rows in rows_of(np.arange(n), size)]
    assert sum(sizes) == n
    assert min(sizes) >= 2
    assert max(sizes) <= size + 1


def test_a_lone_cell_where_it_does_no_harm():
    assert [len(rows) for rows in rows_of(np.arange(11), 5, lone=True)] == [5, 5, 1]
    assert [len(rows) for rows in rows_of(np.arange(3), 1, lone=True)] == [1, 1, 1]


def test_tensors(adata):
    sd.SCVI.setup_anndata(adata, **EVERYTHING)
    cells = read_training_cells(adata)[1]
    rows = np.array([5, 2, 299])
    minibatch = gather(cells, rows, torch.device("cpu"))
    assert len(minibatch) == 3
    assert (minibatch.x_ng.dtype, minibatch.codes_nc.dtype) == (torch.float32, torch.int64)
    np.testing.assert_array_equal(minibatch.x_ng.numpy(), adata.X[rows].toarray())
    np.testing.assert_array_equal(minibatch.codes_nc.numpy(), cells.codes_nc[rows])
    np.testing.assert_array_equal(minibatch.continuous_nd.numpy(), cells.continuous_nd[rows])
    np.testing.assert_array_equal(minibatch.library_n1.numpy(), adata.X[rows].toarray().sum(axis=1, keepdims=True))
    minibatch.x_ng[:] = -1  # they are copies
    minibatch.library_n1[:] = -1
    assert cells.counts.data.min() > 0
    assert cells.library_n.min() > 0


def test_a_size_factor_takes_the_place_of_the_total(adata):
    sd.SCVI.setup_anndata(adata, size_factor_key="size_factor")
    minibatch = gather(read_training_cells(adata)[1], np.arange(4), torch.device("cpu"))
    np.testing.assert_array_equal(minibatch.library_n1[:, 0].numpy(), adata.obs["size_factor"][:4].to_numpy(np.float32))
