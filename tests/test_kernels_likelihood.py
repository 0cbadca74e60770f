"""The fused likelihood equals that of plain torch in double precision, in value and in every gradient."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scdecode.kernels import functions
from scdecode.kernels.likelihood import fused_likelihood
from scdecode.kernels.rows import Gatherer, SparseRows
from scdecode.likelihoods import make_likelihood
from scdecode.networks import log_softplus

KINDS = ["nb", "zinb", "poisson"]


def sparse_rows(x_ng) -> SparseRows:
    csr = sp.csr_matrix(np.asarray(x_ng, dtype=np.float32))
    return Gatherer(csr).gather(np.arange(csr.shape[0]))


def reference(x, logits, log_library, log_theta, zi, kind, softmax):
    """Plain torch in double precision: what is to be met."""
    log_scale = torch.log_softmax(logits, -1) if softmax else log_softplus(logits)
    return -make_likelihood(kind, log_library + log_scale, log_theta, zi).log_prob(x.double()).sum(-1)


def inputs(x, kind, by_cell, logits, log_library, log_theta, zi):
    theta = log_theta if by_cell else log_theta[0]
    given = [logits, log_library, None if kind == "poisson" else theta, zi if kind == "zinb" else None]
    return [None if one is None else one.float().double() for one in given]


def check(x, tensors, kind, softmax, weight=None, tolerance=1e-5):
    ours = [None if t is None else t.float().requires_grad_() for t in tensors]
    theirs = [None if t is None else t.clone().requires_grad_() for t in tensors]
    loss = fused_likelihood(*ours, sparse_rows(x), kind, softmax=softmax)
    expected = reference(x, *theirs, kind, softmax)
    # the logarithm of a mean is known to some 1e-7, and a count multiplies it
    assert ((loss - expected).abs() <= tolerance * (1 + expected.abs()) + 3e-7 * x.double().sum(1)).all()
    if weight is None:
        weight = torch.full((len(x),), 1 / len(x))
    loss.backward(weight)
    expected.backward(weight.double())
    # a gradient is a difference of terms as large as the mean and the count, and single precision goes with those
    log_scale = torch.log_softmax(theirs[0], -1) if softmax else log_softplus(theirs[0])
    mu = (theirs[1] + log_scale).detach().exp()
    term = float((weight[:, None].abs() * torch.maximum(mu, x.double())).max())
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            scale = max(float(other.grad.abs().max()), term, 1.0)
            torch.testing.assert_close(one.grad.double(), other.grad, rtol=tolerance, atol=tolerance * scale)


def random_case(n, g, *, seed, density=0.1, largest=1.0, spread=1.0):
    rng = np.random.default_rng(seed)
    x = rng.geometric(0.3, (n, g)) * (rng.random((n, g)) < density)
    some = rng.random((n, g)) < 0.01
    x = np.where(some, np.rint(largest ** rng.random((n, g))), x)
    draw = lambda *shape, s=spread: torch.from_numpy(rng.normal(size=shape) * s)  # noqa: E731
    return torch.from_numpy(x).float(), draw(n, g), draw(n, 1) + 6, draw(n, g, s=2.0), draw(n, g, s=2.0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("by_cell", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (19, 700), (33, 1025)])
def test_equals_plain_torch(kind, softmax, by_cell, shape):
    x, *given = random_case(*shape, seed=1, largest=1e4)
    check(x, inputs(x, kind, by_cell, *given), kind, softmax)


@pytest.mark.parametrize("kind", KINDS)
def test_any_weight_of_the_cells(kind):
    x, *given = random_case(20, 50, seed=2)
    check(x, inputs(x, kind, False, *given), kind, True, weight=torch.randn(20))


extreme = st.fixed_dictionaries(
    {
        "logit": st.sampled_from([1.0, 10.0, 50.0]),
        "log_theta": st.sampled_from([np.log(1e-4), -2.0, 0.0, 3.0, np.log(1e6), 30.0]),
        "zi": st.sampled_from([-50.0, -3.0, 0.0, 3.0, 50.0]),
        "library": st.sampled_from([1.0, 100.0, 1e4, 1e6]),
        "largest": st.sampled_from([1.0, 20.0, 1e3, 1e5]),
        "density": st.sampled_from([0.0, 0.1, 1.0]),
        "seed": st.integers(0, 2**31),
    }
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("softmax", [True, False])
@settings(max_examples=40, deadline=None)
@given(case=extreme, by_cell=st.booleans())
def test_equals_plain_torch_at_extremes(kind, softmax, case, by_cell):
    n, g = 4, 60
    rng = np.random.default_rng(case["seed"])
    x, *_ = random_case(n, g, seed=case["seed"], density=case["density"], largest=case["largest"])
    x[0, 0] = case["largest"]
    logits = torch.from_numpy(rng.uniform(-1, 1, (n, g)) * case["logit"])
    log_library = torch.full((n, 1), float(np.log(case["library"])))
    log_theta = torch.from_numpy(rng.normal(size=(n, g)) + case["log_theta"])
    zi = torch.from_numpy(rng.normal(size=(n, g)) + case["zi"])
    check(x, inputs(x, kind, by_cell, logits, log_library, log_theta, zi), kind, softmax)


def test_logits_far_from_zero():
    x, logits, *others = random_case(6, 40, seed=3)
    for shift in (-200.0, -60.0, 60.0, 200.0):
        check(x, inputs(x, "zinb", False, logits + shift, *others), "zinb", True)


def test_counts_that_are_not_whole():
    x, *given = random_case(6, 40, seed=4)
    check(x * 0.37, inputs(x, "nb", False, *given), "nb", True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_number_stays_no_number(kind):
    x, *given = random_case(6, 40, seed=5)
    tensors = [None if t is None else t.float() for t in inputs(x, kind, False, *given)]
    tensors[0][2, 3] = float("nan")
    loss = fused_likelihood(*tensors, sparse_rows(x), kind, softmax=True)
    assert loss.isnan().tolist() == [False, False, True, False, False, False]


def test_the_number_of_threads_changes_no_bit():
    x, *given = random_case(100, 300, seed=6)
    found = []
    before = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            tensors = [t.float().requires_grad_() for t in inputs(x, "zinb", False, *given)]
            loss = fused_likelihood(*tensors, sparse_rows(x), "zinb", softmax=True)
            loss.mean().backward()
            found.append([loss.detach(), *(t.grad for t in tensors)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_exp_and_log_of_single_precision():
    x = np.concatenate([np.linspace(-87.3, 88.3, 20_001), np.linspace(-1e-3, 1e-3, 101)]).astype(np.float32)
    ours = np.array([functions.exp32(one) for one in x])
    np.testing.assert_allclose(ours, np.exp(x.astype(float)), rtol=3e-7)
    y = np.exp(np.linspace(-87, 88, 20_001)).astype(np.float32)
    y = np.concatenate([y, np.linspace(0.9, 1.1, 1001).astype(np.float32)])
    ours = np.array([functions.log32(one) for one in y])
    np.testing.assert_allclose(ours, np.log(y.astype(float)), rtol=3e-7, atol=1e-9)
    assert functions.exp32(np.float32(-1e9)) < 1e-37
    assert np.isnan(functions.exp32(np.float32("nan")))


@settings(max_examples=300, deadline=None)
@given(
    x=st.one_of(st.integers(1, 40), st.integers(1, 100_000)).map(float) | st.floats(0.01, 1e5),
    log_theta=st.floats(-46, 40),
)
def test_gamma_terms(x, log_theta):
    """Against sums over k (whole x) or the gamma function of 50 digits."""
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 50
    theta = float(np.exp(log_theta))
    value, rest = functions.gamma_terms(x, theta, float(np.log(theta)))
    t, c = mpmath.mpf(theta), mpmath.mpf(x)
    expected = mpmath.loggamma(c + t) - mpmath.loggamma(t)
    np.testing.assert_allclose(value, float(expected), rtol=1e-9, atol=1e-9)
    expected = c - t * (mpmath.digamma(c + t) - mpmath.digamma(t))
    np.testing.assert_allclose(rest, float(expected), rtol=1e-7, atol=1e-7)
