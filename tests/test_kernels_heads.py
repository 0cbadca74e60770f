"""The heads and the likelihood as one step equal linear layers and the fused likelihood, in value and gradients."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from test_steps import few_at_once, threads_of_torch
from torch import nn
from torch.nn.functional import linear

from scdecode.kernels import heads
from scdecode.kernels.heads import heads_likelihood
from scdecode.kernels.likelihood import fused_likelihood
from scdecode.kernels.rows import Gatherer
from scdecode.kernels.threads import own_threads


def case(n=70, g=90, h=16, *, kind="zinb", theta="by gene", seed=0):
    """Rows of counts, and the tensors: hidden, both heads, log library, log theta."""
    generator = torch.Generator().manual_seed(seed)
    rng = np.random.default_rng(seed)
    x = rng.geometric(0.3, (n, g)) * (rng.random((n, g)) < 0.15)
    rows = Gatherer(sp.csr_matrix(x.astype(np.float32))).gather(np.arange(n))
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    shape = {"by gene": (g,), "by cell": (n, g)}[theta]
    return rows, {
        "hidden": draw(n, h).relu(),
        "weight": draw(g, h) / h**0.5,
        "bias": draw(g),
        "zi_weight": draw(g, h) / h**0.5 if kind == "zinb" else None,
        "zi_bias": draw(g) if kind == "zinb" else None,
        "log_library": torch.tensor(x.sum(1), dtype=torch.float32).clamp(min=1).log()[:, None],
        "log_theta": None if kind == "poisson" else draw(*shape),
    }


def head_of(weight, bias):
    head = nn.Linear(weight.shape[1], len(weight))
    head.weight, head.bias = weight, bias
    return head


def ours(rows, tensors, kind, softmax, precision=torch.float32):
    scale = head_of(tensors["weight"], tensors["bias"])
    zi = head_of(tensors["zi_weight"], tensors["zi_bias"]) if kind == "zinb" else None
    return heads_likelihood(
        tensors["hidden"], scale, zi, tensors["log_library"], tensors["log_theta"], rows, kind, softmax=softmax,
        precision=precision,
    )  # fmt: skip


def reference(rows, tensors, kind, softmax):
    logits = linear(tensors["hidden"], tensors["weight"], tensors["bias"])
    zi = linear(tensors["hidden"], tensors["zi_weight"], tensors["zi_bias"]) if kind == "zinb" else None
    return fused_likelihood(logits, tensors["log_library"], tensors["log_theta"], zi, rows, kind, softmax=softmax)


def fresh(tensors):
    return {name: None if one is None else nn.Parameter(one.clone()) for name, one in tensors.items()}


def check(rows, tensors, kind, softmax, weights, *, threads=1):
    """``weights`` of the cells: one pass back for each, after one another."""
    names = [name for name, one in tensors.items() if one is not None]
    mine, its = fresh(tensors), fresh(tensors)
    with threads_of_torch(threads), own_threads():
        loss = ours(rows, mine, kind, softmax)
        found = [gradients_of(loss, mine, names, weight) for weight in weights]
    expected = reference(rows, its, kind, softmax)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    for weight, gradients in zip(weights, found, strict=True):
        for name, one, other in zip(names, gradients, gradients_of(expected, its, names, weight), strict=True):
            scale = max(1e-3, float(other.abs().max()))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, n=name: f"{n}: {m}")


def gradients_of(loss, tensors, names, weight):
    return torch.autograd.grad(loss, [tensors[name] for name in names], weight, retain_graph=True)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("theta", ["by gene", "by cell"])
@pytest.mark.parametrize("softmax", [True, False])
@pytest.mark.parametrize("kind", ["nb", "zinb", "poisson"])
def test_equals_linear_layers_and_the_likelihood(kind, softmax, theta, threads):
    rows, tensors = case(kind=kind, theta=theta)
    check(rows, tensors, kind, softmax, [torch.full((70,), 1 / 70)], threads=threads)
    check(rows, tensors, kind, softmax, [torch.randn(70)], threads=threads)


@pytest.mark.parametrize("small", [False, True], ids=["cells shared", "genes shared"])
@pytest.mark.parametrize("n", [1, 16, 17, 40])
def test_any_number_of_cells(monkeypatch, n, small):
    if small:
        few_at_once(monkeypatch)
    rows, tensors = case(n, 61, 5)
    check(rows, tensors, "zinb", True, [torch.full((n,), 1 / n)], threads=3)


@pytest.mark.parametrize("kind", ["nb", "zinb"])
def test_back_more_than_once(kind):
    """The gradients kept for the mean have been taken; they are computed again, for whatever weights."""
    rows, tensors = case(kind=kind)
    mean, other = torch.full((70,), 1 / 70), torch.rand(70)
    check(rows, tensors, kind, True, [mean, mean])
    check(rows, tensors, kind, True, [other, mean, other], threads=2)


@pytest.mark.parametrize("of", [ours, reference], ids=["with the heads", "the likelihood alone"])
def test_gradients_that_are_added_up(of):
    """Adding to the gradient of the library size, in place, changes nothing of the loss."""
    rows, tensors = case()
    tensors = fresh(tensors)
    loss = of(rows, tensors, "zinb", True)
    for _ in range(3):
        loss.mean().backward(retain_graph=True)
    expected = gradients_of(of(rows, tensors, "zinb", True), tensors, tensors, torch.full((70,), 3 / 70))
    for one, other in zip(tensors.values(), expected, strict=True):
        torch.testing.assert_close(one.grad, other, rtol=1e-4, atol=1e-5 * float(other.abs().max()))


def test_no_gradients_are_computed_where_none_can_be_asked_for(monkeypatch):
    """As in validation, where the weights could be learned and torch records nothing."""
    asked, compute = [], heads.Heads.compute

    def look(self, hidden, likelihood, logits):
        asked.append(likelihood.gradients)
        return compute(self, hidden, likelihood, logits)

    monkeypatch.setattr(heads.Heads, "compute", look)
    rows, tensors = case()
    ours(rows, fresh(tensors), "zinb", True)
    with torch.no_grad():
        ours(rows, fresh(tensors), "zinb", True)
    assert asked == [True, False]


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_more_genes_than_one_thread_takes(threads):
    rows, tensors = case(20, heads._WIDE + 13, 4)
    check(rows, tensors, "zinb", True, [torch.full((20,), 1 / 20)], threads=threads)
    check(rows, tensors, "zinb", True, [torch.rand(20)], threads=threads)


@pytest.mark.parametrize("threads", [1, 3])
def test_what_is_given_stays_and_no_gradient_is_needed(threads):
    rows, tensors = case()
    kept = {name: one.clone() for name, one in tensors.items()}
    with threads_of_torch(threads), own_threads(), torch.no_grad():
        given = fresh(tensors)
        loss = ours(rows, given, "zinb", True)
        torch.testing.assert_close(loss, reference(rows, given, "zinb", True), rtol=1e-5, atol=1e-4)
    check(rows, tensors, "zinb", True, [torch.rand(70)], threads=threads)
    for name, one in tensors.items():
        assert torch.equal(one, kept[name]), name


def test_some_weights_are_not_learned():
    rows, tensors = case(kind="nb")
    tensors = fresh(tensors)
    for name in ("hidden", "log_library", "log_theta"):
        tensors[name].requires_grad_(False)
    ours(rows, tensors, "nb", True).mean().backward()
    assert tensors["hidden"].grad is tensors["log_theta"].grad is tensors["log_library"].grad is None
    its = {name: None if one is None else one.detach().clone() for name, one in tensors.items()}
    its["weight"].requires_grad_()
    reference(rows, its, "nb", True).mean().backward()
    torch.testing.assert_close(tensors["weight"].grad, its["weight"].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("small", [False, True], ids=["cells shared", "genes shared"])
def test_products_in_low_precision(monkeypatch, small):
    """What bf16 rounds are the factors of the products, each to 1 in 256; and all threads round alike."""
    rows, tensors = case(theta="by cell")
    if small:
        few_at_once(monkeypatch)
    found = []
    for n in (1, 2, 3):
        mine = fresh(tensors)
        with threads_of_torch(n), own_threads():
            loss = ours(rows, mine, "zinb", True, torch.bfloat16)
            loss.mean().backward()
        found.append([loss.detach(), *(one.grad for one in mine.values())])
    its = fresh(tensors)
    expected = reference(rows, its, "zinb", True)
    expected.mean().backward()
    torch.testing.assert_close(found[0][0], expected.detach(), rtol=1e-2, atol=0)
    assert not torch.equal(found[0][0], expected)
    for one, (name, other) in zip(found[0][1:], its.items(), strict=True):
        assert one.dtype == torch.float32
        assert float((one - other.grad).norm()) < 0.02 * float(other.grad.norm()), name
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-3 * float(one.abs().max()))
