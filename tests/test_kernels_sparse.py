"""The sparse first layer equals the dense one, and gathered rows are those of scipy."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import linear

from scdecode.kernels.rows import Gatherer
from scdecode.kernels.sparse_layer import SparseLinear, lay_by_input, lay_plainly


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
