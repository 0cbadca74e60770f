"""Networks: codes against explicit one-hot columns, shapes, normalisation, and the limits of the heads."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot, relu, softplus

from scdecode.networks import MLP, CovariateLinear, Decoder, Encoder, HiddenLayer, log_softplus

LEVELS = (3, 1, 2)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def random_codes(*shape, levels=LEVELS):
    return torch.stack([torch.randint(0, n, shape) for n in levels], dim=-1)


def columns_of(codes, levels=LEVELS):
    """The one-hot columns of the conditions that have more than one level."""
    return torch.cat([one_hot(codes[..., j], n) for j, n in enumerate(levels) if n > 1], dim=-1).double()


def make_mlp(n_in=4, n_hidden=5, n_layers=3, levels=LEVELS, **options):
    options = {"inject": True, "batch_norm": False, "layer_norm": False, "dropout": 0.0} | options
    mlp = MLP(n_in, n_hidden, n_layers, levels, **options).double()
    for layer in mlp.layers:
        if layer.batch_norm is not None:  # as after training: no longer mean 0 and variance 1
            torch.nn.init.normal_(layer.batch_norm.running_mean)
            torch.nn.init.uniform_(layer.batch_norm.running_var, 0.2, 3.0)
            torch.nn.init.normal_(layer.batch_norm.weight)
            torch.nn.init.normal_(layer.batch_norm.bias)
    return mlp.eval()


# -- conditions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
def test_codes_are_one_hot_columns(bias):
    layer = CovariateLinear(4, 6, LEVELS, bias=bias).double()
    x, codes = torch.randn(7, 4).double(), random_codes(7)
    expected = torch.cat([x, columns_of(codes)], dim=-1) @ layer.weight.t()
    torch.testing.assert_close(layer(x, codes), expected + layer.bias if bias else expected, rtol=1e-14, atol=1e-14)


def test_a_condition_of_one_level_contributes_no_column():
    assert CovariateLinear(4, 6, LEVELS).weight.shape == (6, 4 + 3 + 2)
    for levels in ((), (1,), (1, 1, 1)):
        layer = CovariateLinear(4, 6, levels)
        assert layer.weight.shape == (6, 4)
        x = torch.randn(2, 4)
        expected = x @ layer.weight.t() + layer.bias
        torch.testing.assert_close(layer(x), expected)
        torch.testing.assert_close(layer(x, torch.zeros(2, len(levels), dtype=torch.int64)), expected)
    # wherever it stands among the others
    alone = CovariateLinear(4, 6, (3, 2))
    codes = random_codes(5, levels=(3, 2))
    x = torch.randn(5, 4)
    for place in range(3):
        among = CovariateLinear(4, 6, (*(3, 2)[:place], 1, *(3, 2)[place:]))
        among.load_state_dict(alone.state_dict())
        widened = torch.cat([codes[:, :place], torch.zeros(5, 1, dtype=torch.int64), codes[:, place:]], dim=1)
        assert torch.equal(among(x, widened), alone(x, codes))


def test_every_level_has_its_own_column():
    layer = CovariateLinear(2, 3, (3, 2))
    outputs = torch.stack([layer(torch.ones(2), torch.tensor([i, j])) for i in range(3) for j in range(2)])
    assert len(outputs.unique(dim=0)) == 6
    layer(torch.ones(1, 2), torch.tensor([[2, 0]])).sum().backward()
    assert layer.weight.grad[0].tolist() == [1, 1, 0, 0, 1, 1, 0]  # input, input, first condition, second condition


def test_a_code_for_each_condition_is_required():
    layer = CovariateLinear(2, 3, (3, 2))
    with pytest.raises(AssertionError, match="one code for each condition"):
        layer(torch.ones(1, 2), torch.zeros(1, 3, dtype=torch.int64))
    with pytest.raises(AssertionError, match="one code for each condition"):
        layer(torch.ones(1, 2))
    with pytest.raises(IndexError):
        layer(torch.ones(1, 2), torch.tensor([[0, 2]]))


@pytest.mark.parametrize("inject", [True, False])
@pytest.mark.parametrize("norm", [(False, False), (True, False), (False, True), (True, True)])
def test_layers_are_those_of_the_formula(inject, norm):
    """Linear, batch normalisation, layer normalisation, ReLU; the conditions at every layer, or at the first alone."""
    mlp = make_mlp(inject=inject, batch_norm=norm[0], layer_norm=norm[1])
    x, codes = torch.randn(7, 4).double(), random_codes(7)
    expected = x
    for i, layer in enumerate(mlp.layers):
        told = inject or i == 0
        assert layer.linear.weight.shape == (5, (4 if i == 0 else 5) + (5 if told else 0))
        expected = torch.cat([expected, columns_of(codes)], dim=-1) if told else expected
        expected = expected @ layer.linear.weight.t() + layer.linear.bias
        if norm[0]:
            bn = layer.batch_norm
            assert (bn.eps, bn.momentum) == (1e-3, 0.01)
            expected = (expected - bn.running_mean) / (bn.running_var + 1e-3).sqrt() * bn.weight + bn.bias
        if norm[1]:
            assert not list(layer.layer_norm.parameters())
            centred = expected - expected.mean(-1, keepdim=True)
            expected = centred / ((centred**2).mean(-1, keepdim=True) + 1e-5).sqrt()
        expected = relu(expected)
    torch.testing.assert_close(mlp(x, codes), expected, rtol=1e-12, atol=1e-12)


# -- shapes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("inject", [True, False])
@pytest.mark.parametrize("norm", [False, True])
def test_one_row_of_codes_serves_all_points(inject, norm):
    mlp = make_mlp(inject=inject, batch_norm=norm, layer_norm=norm)
    x, row = torch.randn(7, 4).double(), random_codes(1)
    expected = mlp(x, row.expand(7, -1))
    torch.testing.assert_close(mlp(x, row), expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(mlp(x, row[0]), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("norm", [False, True])
def test_leading_axes(norm):
    mlp = make_mlp(batch_norm=norm, layer_norm=norm)
    x, codes = torch.randn(2, 3, 7, 4).double(), random_codes(7)
    output = mlp(x, codes)
    assert output.shape == (2, 3, 7, 5)
    flat = mlp(x.reshape(-1, 4), codes.repeat(6, 1))
    torch.testing.assert_close(output.reshape(-1, 5), flat, rtol=1e-13, atol=1e-13)
    point = mlp(x[0, 0, 0], codes[0])
    torch.testing.assert_close(point, output[0, 0, 0], rtol=1e-13, atol=1e-13)


def test_batch_norm_in_training_takes_the_statistics_of_all_leading_axes():
    layer = HiddenLayer(4, 5, (), batch_norm=True, layer_norm=False, dropout=0.0).double().train()
    x = torch.randn(2, 3, 4).double()
    output = layer(x, None)
    linear = layer.linear(x.reshape(6, 4))
    expected = relu((linear - linear.mean(0)) / (linear.var(0, correction=0) + 1e-3).sqrt())
    torch.testing.assert_close(output.reshape(6, 5), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.batch_norm.running_mean, 0.01 * linear.mean(0))


def test_in_evaluation_a_point_does_not_depend_on_the_others():
    mlp = make_mlp(batch_norm=True, dropout=0.5)
    x, codes = torch.randn(7, 4).double(), random_codes(7)
    together = mlp(x, codes)
    for i in range(7):
        torch.testing.assert_close(mlp(x[i : i + 1], codes[i : i + 1])[0], together[i], rtol=1e-13, atol=1e-13)
    assert torch.equal(mlp(x, codes), together)


def test_dropout_is_there_only_where_asked_and_only_in_training():
    x = torch.ones(200, 4)
    none = HiddenLayer(4, 50, (), batch_norm=False, layer_norm=False, dropout=0.0)
    assert none.dropout is None and torch.equal(none.train()(x, None), none.eval()(x, None))
    some = HiddenLayer(4, 50, (), batch_norm=False, layer_norm=False, dropout=0.25)
    kept, all_of_it = some.train()(x, None), some.eval()(x, None)
    alive = all_of_it > 0
    dropped = (kept == 0) & alive
    assert 0.2 < dropped.sum() / alive.sum() < 0.3
    torch.testing.assert_close(kept[alive & ~dropped], all_of_it[alive & ~dropped] / 0.75)


# -- heads -------------------------------------------------------------------------------------------------------------


def test_the_encoder_variance_has_a_floor():
    encoder = Encoder(make_mlp(levels=()), 5, 2).double()
    with torch.no_grad():
        encoder.log_variance.weight.zero_()
        encoder.log_variance.bias.copy_(torch.tensor([-1000.0, math.log(2.0)]))
    mean, variance = encoder(torch.randn(3, 4).double())
    torch.testing.assert_close(variance, torch.tensor([[1e-4, 2 + 1e-4]]).double().expand(3, 2), rtol=1e-7, atol=0)
    assert mean.shape == (3, 2) and torch.isfinite(mean).all()


@pytest.mark.parametrize("softmax", [True, False])
def test_the_decoder_runs_the_heads_that_are_asked_for(softmax):
    decoder = Decoder(make_mlp(), 5, 9, softmax=softmax).double()
    x, codes = torch.randn(7, 4).double(), random_codes(7)
    hidden = decoder.mlp(x, codes)
    full = decoder(x, codes, zero_inflated=True, cell_dispersion=True)
    assert torch.equal(full.zi_logits, decoder.zi_logits(hidden))
    assert torch.equal(full.log_theta, decoder.log_theta(hidden))
    logits = decoder.scale(hidden)
    expected = torch.softmax(logits, dim=-1) if softmax else softplus(logits)
    torch.testing.assert_close(full.log_scale.exp(), expected)
    bare = decoder(x, codes, zero_inflated=False, cell_dispersion=False)
    assert bare.zi_logits is None and bare.log_theta is None
    assert torch.equal(bare.log_scale, full.log_scale)


@pytest.mark.parametrize("softmax", [True, False])
def test_a_subset_of_the_genes_has_the_columns_of_all(softmax):
    decoder = Decoder(make_mlp(), 5, 9, softmax=softmax).double()
    x, codes = torch.randn(2, 7, 4).double(), random_codes(7)
    genes = torch.tensor([8, 0, 3, 3])  # in any order, and more than once
    full = decoder(x, codes, zero_inflated=True, cell_dispersion=True)
    some = decoder(x, codes, zero_inflated=True, cell_dispersion=True, genes=genes)
    for name in ("log_scale", "zi_logits", "log_theta"):
        torch.testing.assert_close(getattr(some, name), getattr(full, name)[..., genes], rtol=1e-13, atol=1e-13)
    if softmax:
        assert (some.log_scale.exp().sum(-1) < 1.9).all()  # not a softmax of its own: the denominator is of all genes


# -- log softplus ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (-1e30, -1e30),
        (-1000.0, -1000.0),
        (-15.0, -15.000000152951141),
        (-1.0, -1.1607163753888976),
        (0.0, -0.36651292058166435),  # log(log(2))
        (1.0, 0.2725138805025834),
        (50.0, 3.912023005428146),  # log(50)
        (1e30, 69.07755278982137),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_softplus_of_literal_values(x, expected, dtype):
    assert log_softplus(torch.tensor(x, dtype=dtype)).item() == pytest.approx(expected, rel=3e-7)


@given(st.floats(-200, 200))
def test_log_softplus_and_its_gradient(value):
    x = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    y = log_softplus(x)
    y.backward()
    exact = math.log(math.log1p(math.exp(value))) if value > -36 else value
    slope = 1 / ((1 + math.exp(-value)) * math.log1p(math.exp(value))) if value > -36 else 1.0
    assert y.item() == pytest.approx(exact, abs=2e-7)
    assert x.grad.item() == pytest.approx(slope, rel=4e-7)


def test_log_softplus_in_float32_rises_throughout_with_finite_gradients():
    x = torch.linspace(-120, 120, 100_001, requires_grad=True)
    y = log_softplus(x)
    assert (y.diff() >= 0).all()
    torch.testing.assert_close(y.double(), log_softplus(x.double()), rtol=1e-6, atol=2e-7)
    y.sum().backward()
    assert torch.isfinite(x.grad).all() and (x.grad > 0).all() and (x.grad <= 1).all()
