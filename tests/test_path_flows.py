"""Paths along velocity fields: against exact solutions, in every form a field may have, and fields that fail."""

import numpy as np
import pytest
import torch
from scipy.linalg import expm
from torch import nn

from scdecode.errors import ConfigError, PointsError
from scdecode.paths.flows import METHODS, integrate, velocity_field

RNG = np.random.default_rng(0)
STARTS = RNG.normal(size=(30, 4))
TIMES = np.array([0.0, 0.1, 0.7, 2.0])


def linear(stiff=-1.0):
    """A matrix with one fast direction."""
    matrix = np.random.default_rng(1).normal(size=(4, 4)) - 1.5 * np.eye(4)
    matrix[0, 0] = stiff
    return matrix


def exact(matrix, z0, times):
    return np.stack([z0 @ expm(matrix * (t - times[0])).T for t in times], axis=1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stiff", [-1.0, -60.0])
def test_a_linear_field_has_a_matrix_exponential(method, stiff):
    matrix = linear(stiff)
    path = integrate(lambda t, z: z @ matrix.T, STARTS, TIMES, method=method)
    assert path.shape == (30, 4, 4) and path.dtype == np.float32
    np.testing.assert_allclose(path, exact(matrix, STARTS, TIMES), atol=3e-4)
    np.testing.assert_array_equal(path[:, 0], STARTS.astype(np.float32))


def test_one_hard_start_among_many_easy_ones():
    """The solver's norm is a mean over all: without care the one start that moves would be off by sqrt(m)."""
    z0 = np.zeros((5000, 2))
    z0[0] = [1.0, 0.0]
    spin = np.array([[0.0, 20.0], [-20.0, 0.0]])
    times = np.linspace(0, 3, 4)
    path = integrate(lambda t, z: z @ spin.T, z0, times)
    alone = integrate(lambda t, z: z @ spin.T, z0[:1], times)
    error, error_alone = (np.abs(p[0] - exact(spin, z0[:1], times)[0]).max() for p in (path, alone))
    assert error < 1.5 * error_alone and error_alone < 5e-3


def test_backwards_leads_back():
    matrix = linear()
    there = integrate(lambda t, z: z @ matrix.T, STARTS, [0.0, 1.0])
    back = integrate(lambda t, z: z @ matrix.T, there[:, -1], [1.0, 0.4, 0.0])
    np.testing.assert_allclose(back[:, -1], STARTS, atol=2e-3)
    np.testing.assert_allclose(back[:, 1], exact(matrix, STARTS, [0.0, 0.4])[:, 1], atol=2e-3)


def test_time_and_place_in_either_order_or_place_alone():
    expected = STARTS * np.exp(0.5)
    fields = [
        lambda t, z: z * t,
        lambda z, t: z * t,
        lambda x, time: x * time,
        lambda t, z, scale=1.0: scale * z * t,
        lambda z: z / 2,
        lambda z, scale=0.5: z * scale,
        lambda t, z: torch.as_tensor(z) * t,
        lambda t, z: z.mul(t),  # tensors only
    ]
    for field in fields:
        np.testing.assert_allclose(integrate(field, STARTS, [0, 1])[:, -1], expected, rtol=1e-4)
    np.testing.assert_allclose(integrate(fields[0], STARTS[0], [0, 1])[0, -1], expected[0], rtol=1e-4)


class Network(nn.Module):
    """A velocity with a layer that differs in training, of time in a given shape."""

    def __init__(self, n_dims, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(4, dtype=dtype) / 2)
        self.dropout = nn.Dropout(0.5)
        self.n_dims = n_dims

    def forward(self, t, z):
        assert t.dim() == self.n_dims and z.dtype == self.weight.dtype and not torch.is_grad_enabled()
        if self.n_dims == 0:
            return self.dropout(z @ self.weight * 2 * t)
        if self.n_dims == 1:
            return self.dropout((z @ self.weight) * 2 * torch.stack([t[i] for i in range(len(z))])[:, None])
        joint = torch.cat([z @ self.weight, t], dim=1)
        return self.dropout(joint[:, :4] * 2 * joint[:, 4:])


class Strict(Network):
    """One that says itself what it cannot take."""

    def forward(self, t, z):
        if t.dim() != self.n_dims:
            raise ValueError("time has another shape")
        return super().forward(t, z)


@pytest.mark.parametrize("n_dims", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_networks_get_the_time_as_they_take_it(n_dims, dtype):
    network = Strict(n_dims, dtype)
    network.dropout.eval()
    network.train()
    network.dropout.eval()
    path = integrate(network, torch.as_tensor(STARTS), torch.tensor([0.0, 1.0]))
    np.testing.assert_allclose(path[:, -1], STARTS * np.exp(0.5), rtol=1e-4)
    assert network.training and not network.dropout.training  # as it was
    np.testing.assert_allclose(integrate(network.forward, STARTS, [0, 1]), path, rtol=1e-6)


def test_a_network_in_training_is_at_rest_meanwhile():
    network = Strict(0)
    assert network.dropout.training
    np.testing.assert_allclose(integrate(network, STARTS, [0, 1])[:, -1], STARTS * np.exp(0.5), rtol=1e-4)
    assert network.training and network.dropout.training


@pytest.mark.parametrize(
    ("field", "message"),
    [
        (lambda t, z: z[:, :2], r"shape \(30, 2\) for 30 starts, velocities \(30, 4\)"),
        (lambda t, z: z**2, r"blew up; by time 0\.\d+, \d+ of 30 starts"),
        (lambda t, z: np.where(t > 0.5, np.nan, z), r"NaN or infinite velocities at time 0\.\d+ for 30 of 30"),
        (lambda t, z: z["a"], r"called as field\(t, z\) with \(30, 4\) starts at time 0 it raised IndexError"),
        (3, "int came, a function"),
    ],
)
def test_fields_that_cannot_be_followed(field, message):
    with pytest.raises(PointsError, match=message):
        integrate(field, STARTS, [0, 5])


def test_a_field_that_takes_for_ever():
    with pytest.raises(PointsError, match=r"500 evaluations led from time 0 to 0\.\d+ only; .*BDF"):
        integrate(lambda t, z: -1e4 * z, STARTS, [0, 10], max_evaluations=500)


def test_a_field_with_a_pole_names_the_time_reached():
    with pytest.raises(PointsError, match=r"blew up; by time (0\.9|1)"):
        integrate(lambda t, z: np.sign(z) / np.maximum(1 - t, 1e-300) ** 2, STARTS, [0, 0.5, 1.5])


@pytest.mark.parametrize(
    ("z0", "t", "message"),
    [
        (np.ones((2, 3, 4)), [0, 1], r"z0: shape \(2, 3, 4\)"),
        (np.ones((0, 4)), [0, 1], "z0: shape"),
        ([[np.nan, 1.0], [1.0, 1.0]], [0, 1], "z0: 1 of 2 starts"),
        (STARTS, [0.0], "t: shape"),
        (STARTS, [0.0, 1.0, 0.5], "all increasing or all decreasing"),
        (STARTS, [0.0, np.inf], "t: shape"),
    ],
)
def test_starts_and_times_are_checked(z0, t, message):
    with pytest.raises(PointsError, match=message):
        integrate(lambda t, z: z, z0, t)


def test_options_are_checked():
    for options in ({"method": "Euler"}, {"rtol": 0.0}, {"atol": -1.0}, {"max_evaluations": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            integrate(lambda t, z: z, STARTS, [0, 1], **options)


def test_velocities_of_cells_make_a_field():
    rng = np.random.default_rng(0)
    cells = rng.uniform(-2, 2, size=(4000, 2))
    turning = np.array([[0.0, 1.0], [-1.0, 0.0]])
    field = velocity_field(cells, cells @ turning.T + 0.3 * rng.normal(size=cells.shape))
    points = rng.uniform(-1, 1, size=(50, 2))
    assert np.abs(field(points) - points @ turning.T).mean() < 0.1
    path = integrate(field, [[1.0, 0.0]], np.linspace(0, 2 * np.pi, 50))
    np.testing.assert_allclose(np.linalg.norm(path[0], axis=1), 1, atol=0.15)
    assert np.linalg.norm(path[0, -1] - path[0, 0]) < 0.3


def test_the_field_of_cells_ends_where_they_end_and_does_not_jump():
    rng = np.random.default_rng(0)
    cells = rng.normal(size=(1000, 3))
    field = velocity_field(cells, np.ones((1000, 3)), n_neighbours=20)
    assert field(cells).min() > 0.8
    assert np.abs(field(np.full((1, 3), 50.0))).max() < 1e-12
    line = np.linspace(-3, 3, 6001)[:, None] * np.ones(3)
    assert np.abs(np.diff(field(line), axis=0)).max() < 0.02
    outwards = integrate(field, [[0.0, 0.0, 0.0]], [0.0, 100.0])
    assert np.isfinite(outwards).all() and outwards.max() < 20


def test_few_cells_make_a_field_too():
    field = velocity_field([[0.0], [1.0]], [[1.0], [3.0]], bandwidth=1.0)
    assert 1.5 < field(np.array([[0.5]]))[0, 0] < 2.5
    assert velocity_field([[0.0], [0.0]], [[1.0], [1.0]])(np.array([[0.0]])).item() == pytest.approx(1, rel=0.01)


@pytest.mark.parametrize(
    ("z", "velocity", "message"),
    [
        (np.ones((5, 2)), np.ones((5, 3)), r"shapes \(5, 2\) and \(5, 3\)"),
        (np.ones((1, 2)), np.ones((1, 2)), "two or more"),
        (np.ones((5, 2)), np.full((5, 2), np.nan), "5 of 5 cells"),
    ],
)
def test_velocities_are_checked(z, velocity, message):
    with pytest.raises(PointsError, match=message):
        velocity_field(z, velocity)
