"""The sparse first layer equals the dense one, and gathered rows are those of scipy."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from scdecode.kernels.rows import Gatherer
from scdecode.kernels.sparse_layer import SparseLinear, lay_by_input, lay_plainly, sparse_gradient, sparse_product
from scdecode.kernels.sparse_loops import GENES
from scdecode.kernels.threads import own_threads


def counts_of(n, g, *, density=0.1, seed=0, whole=True):
    rng = np.random.default_rng(seed)
    x = rng.geometric(0.2, (n, g)) * (rng.random((n, g)) < density)
    x = np.where(rng.random((n, g)) < 0.01, 100_000 * rng.random((n, g)) // 1, x)
    return sp.csr_matrix((x if whole else x * 0.3).astype(np.float32))


@settings(max_examples=50, deadline=None)
@given(n=st.integers(1, 40), g=st.integers(1, 200), density=st.sampled_from([0.0, 0.1, 1.0]), seed=st.integers(0, 99))
def test_gathered_rows_are_those_of_scipy(n, g, density, seed):
    counts = counts_of(n, g, density=density, seed=seed, whole=seed % 2 == 0)
    gatherer = Gatherer(counts)
    rng = np.random.default_rng(seed)
    for size in (n, 1, 2 * n):
        rows = rng.integers(0, n, size)
        some, expected = gatherer.gather(rows), counts[rows]
        assert len(some) == size and some.n_genes == g
        np.testing.assert_array_equal(some.indptr, expected.indptr)
        np.testing.assert_array_equal(some.indices, expected.indices)
        np.testing.assert_array_equal(some.values, expected.data)
        np.testing.assert_allclose(some.logs, np.log1p(expected.data), rtol=1e-6)
        by_gene = sp.csc_matrix((some.cell_logs, some.cells, some.gene_indptr), shape=(size, g))
        np.testing.assert_allclose(by_gene.toarray(), np.log1p(expected.toarray()), rtol=1e-6)


@pytest.mark.parametrize("by_gene", [True, False])
@pytest.mark.parametrize(("n", "g", "h"), [(1, 1, 1), (9, 130, 16), (40, 700, 33)])
def test_equals_the_dense_layer(n, g, h, by_gene):
    counts = counts_of(n, g)
    weight = torch.nn.Parameter(torch.randn(h, g) / g**0.5)
    bias = torch.nn.Parameter(torch.randn(h))
    dense = torch.from_numpy(np.log1p(counts.toarray())).double()
    expected = linear(dense, weight.double(), bias.double())
    if by_gene:
        lay_by_input(weight)
    out = SparseLinear.apply(Gatherer(counts).gather(np.arange(n)), weight, bias)
    torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
    d_out = torch.randn(n, h)
    out.backward(d_out)
    torch.testing.assert_close(weight.grad.double(), d_out.double().t() @ dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(bias.grad, d_out.sum(0))
    if by_gene:
        assert weight.grad.stride() == weight.stride() == (1, h)  # laid alike, as the optimiser takes them
    kept = weight.detach().clone()
    lay_plainly(weight)
    assert weight.is_contiguous() and torch.equal(weight, kept)


def test_the_number_of_threads_changes_no_bit():
    rows = Gatherer(counts_of(100, 300)).gather(np.arange(100))
    weight, bias, d_out = torch.randn(32, 300), torch.randn(32), torch.randn(100, 32)
    found = []
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            one = weight.clone().requires_grad_()
            out = SparseLinear.apply(rows, one, bias)
            out.backward(d_out)
            found.append((out.detach(), one.grad))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def indexed(counts, index):
    """The same counts with indices of another width; scipy itself would narrow them."""
    counts = counts.copy()
    counts.indices, counts.indptr = counts.indices.astype(index), counts.indptr.astype(index)
    return counts


@pytest.mark.parametrize("index", [np.int32, np.int64])
@pytest.mark.parametrize("rows", [[4, 0, 4, 4, 2, 1], [3], [3, 3], [], [5, 4, 3, 2, 1, 0]], ids=str)
def test_gathered_in_any_order(rows, index):
    x = counts_of(6, 50, density=0.3).toarray()
    x[3] = 0
    counts = sp.csr_matrix(x)
    rows, gatherer = np.array(rows, np.int64), Gatherer(indexed(counts, index))
    gatherer.gather(np.arange(6))  # the memory has been used
    some, expected = gatherer.gather(rows), counts[rows]
    assert some.indptr.dtype == np.int64 and some.indices.dtype == np.int32
    np.testing.assert_array_equal(some.indptr, expected.indptr)
    np.testing.assert_array_equal(some.indices, expected.indices)
    np.testing.assert_array_equal(some.values, expected.data)
    by_gene = expected.tocsc()
    np.testing.assert_array_equal(some.gene_indptr, by_gene.indptr)
    np.testing.assert_array_equal(some.cells, by_gene.indices)  # in order within each gene
    np.testing.assert_allclose(some.cell_logs, np.log1p(by_gene.data), rtol=1e-6)


def test_cells_without_counts_have_the_bias_alone():
    counts = sp.csr_matrix((3, 20), dtype=np.float32)
    weight, bias = torch.randn(4, 20), torch.randn(4)
    rows = Gatherer(counts).gather(np.arange(3))
    assert torch.equal(sparse_product(rows, weight, bias), bias.expand(3, 4))
    assert (sparse_gradient(rows, torch.randn(3, 4)) == 0).all()


def test_log1p_of_any_count():
    """Those below 256 that are whole come from a table, and no other may."""
    whole = [0.0, 1.0, 2.0, 254.0, 255.0, 256.0, 257.0, 1000.0, 2.0**24, 3e9, 1e30]
    others = [1e-30, 1e-6, 0.5, 0.999, 1.5, 254.5, 255.0001, 255.9999, 256.5, 3.4e38, -0.25]
    x = np.array([whole + others], np.float32)
    counts = sp.csr_matrix((x[0], np.arange(x.size), [0, x.size]), shape=x.shape)  # the zero is kept as well
    some = Gatherer(counts).gather(np.array([0, 0]))
    expected = np.log1p(np.tile(x[0].astype(float), 2))
    np.testing.assert_allclose(some.logs, expected, rtol=2e-7)
    np.testing.assert_array_equal(some.values, np.tile(x[0], 2))
    np.testing.assert_allclose(some.cell_logs, np.repeat(expected[: x.size], 2), rtol=2e-7)


def test_what_is_no_number_stays_none():
    counts = sp.csr_matrix((np.array([np.nan, np.inf], np.float32), [0, 1], [0, 2]), shape=(1, 2))
    some = Gatherer(counts).gather(np.array([0]))
    assert np.isnan(some.logs[0]) and np.isinf(some.logs[1])


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("density", [0.0, 0.002, 0.1, 1.0])
@pytest.mark.parametrize(("n", "g", "h"), [(30, 2 * GENES + 5, 7), (25, GENES, 16), (7, GENES + 1, 1), (50, 3, 128)])
def test_product_and_gradient_are_the_dense_ones(n, g, h, density, threads):
    counts = counts_of(n, g, density=density, seed=g) if density else sp.csr_matrix((n, g), dtype=np.float32)
    generator = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(h, g, generator=generator) / g**0.5, torch.randn(h, generator=generator)
    d_out = torch.randn(h, n, generator=generator).t()
    order = np.random.default_rng(0).integers(0, n, 2 * n)[:n]
    dense = torch.from_numpy(np.log1p(counts[order].toarray().astype(float)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with own_threads():
            rows = Gatherer(counts).gather(order)
            out, d_weight = sparse_product(rows, weight, bias), sparse_gradient(rows, d_out)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(out.double(), linear(dense, weight.double(), bias.double()), rtol=1e-5, atol=2e-5)
    expected = d_out.double().t() @ dense
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(d_weight.double(), expected, rtol=1e-5, atol=1e-6 * scale)
