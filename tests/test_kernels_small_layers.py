"""The small layers equal torch's own modules: outputs, gradients, statistics and random numbers."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import one_hot

from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.small_layers import conditioned_linear, draw_posterior, normal_relu_dropout
from scdecode.kernels.sparse_layer import lay_by_input
from scdecode.networks import LEAST_VARIANCE, CovariateLinear, Encoder, HiddenLayer
from scdecode.step_layers import NOTHING, Memory, StepHidden, StepPosterior


def close(one, other, *, rtol=1e-5, scale=1.0):
    torch.testing.assert_close(one.double(), other.double(), rtol=rtol, atol=1e-5 * scale)


def norms(h):
    """Two with the same weights and statistics, that are none of the first ones; the second in double precision."""
    one = nn.BatchNorm1d(h, eps=1e-3, momentum=0.01)
    with torch.no_grad():
        one.weight.copy_(torch.randn(h))  # also negative
        one.bias.copy_(torch.randn(h))
        one.running_mean.copy_(torch.randn(h))
        one.running_var.copy_(torch.rand(h) + 0.5)
    return one, copy.deepcopy(one).double()


@pytest.mark.parametrize("rate", [None, 0.1, 0.7])
@pytest.mark.parametrize(("n", "h"), [(2, 1), (5, 17), (128, 64), (129, 3)])
def test_norm_relu_dropout(n, h, rate):
    torch.manual_seed(n + h)
    (norm, expected_norm), dropout = norms(h), None if rate is None else nn.Dropout(rate)
    for _ in range(3):  # the statistics move on
        x = (torch.randn(n, h) * 3 + torch.randn(h) * 10).requires_grad_()
        expected_x = x.detach().double().requires_grad_()
        state = torch.get_rng_state()
        out = normal_relu_dropout(x, norm, dropout)
        after = torch.get_rng_state()
        torch.set_rng_state(state)
        kept = torch.ones(n, h) if dropout is None else dropout(torch.ones(n, h))
        assert torch.equal(torch.get_rng_state(), after)  # the draws are torch's
        expected = torch.relu(expected_norm(expected_x)) * kept
        close(out, expected, scale=10)
        d_out = torch.randn(h, n).t()  # laid the other way
        for one in (norm, expected_norm):
            one.zero_grad(set_to_none=True)
        out.backward(d_out)
        expected.backward(d_out.double())
        # two cells that are close to each other are divided by their small distance
        scale = max(1.0, float(expected_x.grad.abs().max())) * (10 if n > 2 else 100)
        close(x.grad, expected_x.grad, scale=scale)
        close(norm.weight.grad, expected_norm.weight.grad, scale=scale)
        close(norm.bias.grad, expected_norm.bias.grad, scale=scale)
        close(norm.running_mean, expected_norm.running_mean)
        close(norm.running_var, expected_norm.running_var)
    assert norm.num_batches_tracked == expected_norm.num_batches_tracked == 3


def test_norm_of_columns_that_do_not_vary():
    """All cells alike: no division by zero, and the shift alone is left."""
    norm, expected = norms(4)
    x = torch.full((9, 4), 2.5, requires_grad=True)
    out = normal_relu_dropout(x, norm, None)
    close(out, torch.relu(expected(x.detach().double())))
    out.sum().backward()
    assert torch.isfinite(x.grad).all() and x.grad.abs().max() < 1e-4


def test_no_number_goes_through_the_norm():
    norm, _ = norms(3)
    x = torch.randn(5, 3)
    x[2, 1] = float("nan")
    out = normal_relu_dropout(x, norm, None)
    assert out[:, 1].isnan().all() and torch.isfinite(out[:, [0, 2]]).all()


@pytest.mark.parametrize("by_input", [True, False])
@pytest.mark.parametrize(
    ("n", "n_in", "h", "n_levels"), [(1, 1, 1, [2]), (40, 7, 13, [3]), (65, 5, 16, [2, 1, 4]), (30, 4, 8, [1, 200])]
)
def test_a_linear_layer_beside_one_hot_columns(n, n_in, h, n_levels, by_input):
    torch.manual_seed(0)
    layer = CovariateLinear(n_in, h, n_levels)
    if by_input:
        lay_by_input(layer.weight)
    codes = torch.stack([torch.randint(0, k, (n,)) for k in n_levels], 1)
    x = torch.randn(n_in, n).t().requires_grad_() if n > 1 else torch.randn(n, n_in, requires_grad=True)
    out = conditioned_linear(x, codes, layer.weight, layer.bias, layer.firsts)
    columns = [one_hot(codes[:, j], k) for j, k in enumerate(n_levels) if k > 1]
    dense = torch.cat([x.detach(), *columns], 1).double().requires_grad_()
    weight, bias = (one.detach().double().requires_grad_() for one in (layer.weight, layer.bias))
    expected = nn.functional.linear(dense, weight, bias)
    close(out, expected)
    d_out = torch.randn(h, n).t()
    out.backward(d_out)
    expected.backward(d_out.double())
    close(x.grad, dense.grad[:, :n_in], scale=10)
    close(layer.weight.grad, weight.grad, scale=10)
    close(layer.bias.grad, bias.grad, scale=10)
    layer.fused = True  # and the layer itself takes the kernel to the same
    close(layer(x, codes), expected)
    layer.fused = False
    close(layer(x, codes), expected)


@pytest.mark.parametrize(("n", "k"), [(1, 1), (40, 10), (7, 33)])
def test_a_draw_and_its_kl(n, k):
    torch.manual_seed(1)
    mean = (3 * torch.randn(n, k)).requires_grad_()
    log_variance = (torch.randn(n, k) * 4 - 2).requires_grad_()  # also far below the least variance
    theirs = [one.detach().double().requires_grad_() for one in (mean, log_variance)]
    state = torch.get_rng_state()
    z, kl = draw_posterior(mean, log_variance, LEAST_VARIANCE)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    same = Normal(mean.detach(), (log_variance.detach().exp() + LEAST_VARIANCE).sqrt()).rsample()
    assert torch.equal(torch.get_rng_state(), after)
    close(z, same, scale=10)
    torch.set_rng_state(state)
    noise = torch.normal(torch.zeros(n, k), torch.ones(n, k)).double()
    variance = theirs[1].exp() + LEAST_VARIANCE
    expected_z = theirs[0] + variance.sqrt() * noise
    prior = Normal(torch.zeros(n, k).double(), 1.0)
    expected_kl = kl_divergence(Normal(theirs[0], variance.sqrt()), prior).sum(-1)
    close(z, expected_z, scale=10)
    close(kl, expected_kl, scale=float(expected_kl.detach().abs().max()))
    d_z, d_kl = torch.randn(k, n).t(), torch.randn(n)
    torch.autograd.backward([z, kl], [d_z, d_kl])
    torch.autograd.backward([expected_z, expected_kl], [d_z.double(), d_kl.double()])
    for one, other in zip((mean, log_variance), theirs, strict=True):
        close(one.grad, other.grad, scale=max(1.0, float(other.grad.abs().max())))


@pytest.mark.parametrize("used", ["z", "kl"])
def test_a_draw_of_which_one_output_is_used(used):
    mean, log_variance = torch.randn(5, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    torch.manual_seed(3)
    z, kl = draw_posterior(mean, log_variance, LEAST_VARIANCE)
    (z if used == "z" else kl).sum().backward()
    ours = [mean.grad.clone(), log_variance.grad.clone()]
    mean.grad = log_variance.grad = None
    torch.manual_seed(3)
    posterior = Normal(mean, (log_variance.exp() + LEAST_VARIANCE).sqrt())
    expected = posterior.rsample() if used == "z" else kl_divergence(posterior, Normal(torch.zeros(5, 3), 1.0))
    expected.sum().backward()
    close(ours[0], mean.grad)
    close(ours[1], log_variance.grad)


def test_gradients_are_differences():
    """Of a sum of everything along a random direction, without any other derivation of them."""

    def whole(mean, log_variance, weight, bias, norm):
        torch.manual_seed(5)
        z, kl = draw_posterior(mean, log_variance, LEAST_VARIANCE)
        hidden = conditioned_linear(z, codes, weight, bias, [(0, 3)])
        return (normal_relu_dropout(hidden, norm, nn.Dropout(0.2)) * factors).sum() + kl.sum()

    torch.manual_seed(4)
    codes, factors = torch.randint(0, 2, (30, 1)), torch.rand(30, 6)
    given = [torch.randn(30, 3), torch.randn(30, 3), torch.randn(6, 5), torch.randn(6)]
    norm, _ = norms(6)
    with torch.no_grad():
        norm.bias.fill_(8.0)  # no unit is near its kink
    tensors = [one.clone().requires_grad_() for one in given]
    whole(*tensors, norm).backward()
    for i, tensor in enumerate(tensors[:3]):
        direction, step = torch.sign(tensor.grad) / tensor.numel() ** 0.5, 3e-2
        ends = []
        for sign in (1, -1):
            moved = [one + sign * step * direction if j == i else one for j, one in enumerate(given)]
            ends.append(float(whole(*moved, norm).detach()))
        slope = float((tensor.grad * direction).sum())
        np.testing.assert_allclose((ends[0] - ends[1]) / (2 * step), slope, rtol=2e-2)


# -- the same by hand --------------------------------------------------------------------------------------------------


def laid(module):
    """Gradients with a place for all weights of a module, and the optimiser that has them."""
    optimizer = KernelAdam(module.parameters())
    for layer in module.modules():
        if isinstance(layer, HiddenLayer):
            lay_by_input(layer.linear.weight)
    optimizer.lay(list(module.parameters()))
    return optimizer


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("n_levels", [[], [3], [2, 1, 4]], ids=str)
def test_a_hidden_layer_by_hand(rate, n_levels):
    torch.manual_seed(7)
    layer = HiddenLayer(5, 9, n_levels, batch_norm=True, layer_norm=False, dropout=rate).train()
    other = copy.deepcopy(layer).double()
    laid(layer)
    step = StepHidden(layer, 33)
    for n in (33, 8, 33):
        x = torch.randn(n, 5)
        codes = torch.stack([torch.zeros(n, dtype=torch.int64), *(torch.randint(0, k, (n,)) for k in n_levels)], 1)[
            :, 1:
        ]
        kept = step.draw(n, torch.Generator().manual_seed(n))
        assert (rate == 0.0) == (kept is NOTHING)
        out = step.forward(x, codes.numpy(), kept).clone()
        torch.manual_seed(n)
        mask = torch.ones(n, 9) if rate == 0.0 else nn.Dropout(rate)(torch.ones(n, 9))
        expected_x = x.double().requires_grad_()
        expected = torch.relu(other.batch_norm(other.linear(expected_x, codes if n_levels else None))) * mask
        close(out, expected)
        d_out = torch.randn(n, 9)
        d_x = step.backward(d_out)
        other.zero_grad()
        expected.backward(d_out.double())
        close(d_x, expected_x.grad, scale=10)
        for (name, mine), its in zip(layer.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), its.grad, rtol=1e-4, atol=1e-4, msg=name)
        for mine, its in zip(layer.buffers(), other.buffers(), strict=True):
            close(mine, its)


def test_a_posterior_by_hand():
    torch.manual_seed(8)
    encoder = Encoder(nn.Module(), 6, 4)
    other = copy.deepcopy(encoder).double()
    laid(encoder)
    step = StepPosterior(encoder, 20)
    for n in (20, 3, 20):
        hidden, noise, d_z = torch.randn(n, 6), torch.randn(n, 4), torch.randn(n, 9)[:, :4]
        z, kl = step.forward(hidden, noise)
        expected_hidden = hidden.double().requires_grad_()
        mean, variance = other.mean(expected_hidden), other.log_variance(expected_hidden).exp() + LEAST_VARIANCE
        expected_z = mean + variance.sqrt() * noise.double()
        prior = Normal(torch.zeros(n, 4).double(), 1.0)
        expected_kl = kl_divergence(Normal(mean, variance.sqrt()), prior).sum(-1)
        close(z, expected_z)
        close(kl, expected_kl, scale=10)
        d_hidden = step.backward(d_z, 0.37)
        other.zero_grad()
        torch.autograd.backward([expected_z, expected_kl], [d_z.double(), torch.full((n,), 0.37).double()])
        close(d_hidden, expected_hidden.grad, scale=10)
        for (name, mine), its in zip(encoder.named_parameters(), other.named_parameters(), strict=True):
            torch.testing.assert_close(mine.grad.double(), its[1].grad, rtol=1e-4, atol=1e-4, msg=name)


def test_memory_is_cut_and_taken_over():
    memory = Memory(10, wide=3, single=0)
    tensors, arrays = memory.of(4)
    assert tensors.wide.shape == arrays.wide.shape == (4, 3) and tensors.single.shape == (4,)
    arrays.wide[:] = 5.0
    assert (tensors.wide == 5).all()
    assert memory.of(4)[0] is tensors
    whole, _ = memory.of(10)
    assert (whole.wide[:4] == 5).all() and len(whole.single) == 10
