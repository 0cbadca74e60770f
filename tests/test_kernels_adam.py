"""``KernelAdam`` takes the steps of torch's Adam, wherever the weights, the gradients and the moments lie."""

import copy
import itertools

import numpy as np
import pytest
import torch
from test_steps import threads_of_torch

from scdecode.kernels.adam import KernelAdam
from scdecode.kernels.threads import own_threads

SHAPES = [(3,), (17, 5), (40_001,), (1,), (16,), (33, 7), (2, 130), (1, 9)]
TURNED = (1, 5, 6)
OPTIONS = {"lr": 1e-2, "eps": 1e-3, "weight_decay": 1e-2}


def turned(x):
    """The same numbers, laid by column."""
    return x.detach().t().contiguous().t()


def two_sets(shapes=SHAPES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ours = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    theirs = [torch.nn.Parameter(one.detach().clone()) for one in ours]
    for i in TURNED:
        if i < len(ours) and ours[i].ndim == 2:
            ours[i].data = turned(ours[i])
    return ours, theirs


def give(ours, theirs, step):
    """New gradients, in place or as other tensors, plain or turned round."""
    generator = torch.Generator().manual_seed(1000 + step)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        gradient = torch.randn(a.shape, generator=generator) * 10.0 ** (i % 3 - 1)
        b.grad = gradient.clone()
        if a.grad is not None and (step + i) % 3 == 0:
            a.grad.copy_(gradient)
        else:
            a.grad = turned(gradient) if gradient.ndim == 2 and (step + i) % 3 == 1 else gradient


def assert_same_state(ours, theirs, one, other):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        assert one.state[a]["step"] == other.state[b]["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            mine, its = one.state[a][name], other.state[b][name]
            # 1 - beta in single precision is known to 2e-5 of it
            torch.testing.assert_close(mine, its, rtol=1e-4, atol=3e-5 * float(its.abs().max()))


@pytest.mark.parametrize("n", [1, 2, 3])
def test_many_steps_are_those_of_torch(n):
    ours, theirs = two_sets()
    one, other = KernelAdam(ours, **OPTIONS), torch.optim.Adam(theirs, **OPTIONS)
    with threads_of_torch(n), own_threads():
        for step in range(80):
            give(ours, theirs, step)
            one.step()
            other.step()
    assert_same_state(ours, theirs, one, other)


def test_small_and_large_gradients_over_many_steps():
    ours, theirs = two_sets([(50,)])
    one, other = (KernelAdam(ours, eps=1e-8), torch.optim.Adam(theirs, eps=1e-8))
    for step in range(300):
        gradient = torch.linspace(-8, 8, 50).sinh() * (1e-4 if step % 7 else 1.0)
        ours[0].grad, theirs[0].grad = gradient.clone(), gradient.clone()
        one.step()
        other.step()
    assert_same_state(ours, theirs, one, other)


def test_weights_stay_what_refers_to_them_and_begin_at_64_bytes():
    ours, theirs = two_sets()
    one, other = KernelAdam(ours, **OPTIONS), torch.optim.Adam(theirs, **OPTIONS)
    give(ours, theirs, 1)
    one.step()
    other.step()
    starts = sorted(one.stretch(weight) for weight in ours)
    assert all(start % 16 == 0 for start, _ in starts)
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(starts))
    for i, weight in enumerate(ours):
        assert weight.is_contiguous() != (i in TURNED and min(weight.shape) > 1) or weight.ndim == 1
        assert weight.grad.shape == weight.shape
        start, stop = one.stretch(weight)
        numbers = one.arrays(start, stop)[0]
        laid = weight.detach() if weight.is_contiguous() else weight.detach().t()
        np.testing.assert_array_equal(numbers, laid.reshape(-1).numpy())


def test_no_gradient_no_change():
    ours, theirs = two_sets()
    kept = ours[1].detach().clone()
    one, other = KernelAdam(ours, **OPTIONS), torch.optim.Adam(theirs, **OPTIONS)
    for step in range(5):
        give(ours, theirs, step)
        ours[1].grad = theirs[1].grad = None
        one.step()
        other.step()
    assert torch.equal(ours[1], kept)
    assert one.state_dict()["state"].keys() == other.state_dict()["state"].keys() == {0, 2, 3, 4, 5, 6, 7}
    assert_same_state(*([x for i, x in enumerate(some) if i != 1] for some in (ours, theirs)), one, other)


@pytest.mark.parametrize("laid", [False, True])
def test_the_state_of_torch_goes_on(laid):
    """As a checkpoint's does: into an optimiser that has taken no step, before its weights are laid."""
    ours, theirs = two_sets()
    other = torch.optim.Adam(theirs, **OPTIONS)
    for step in range(7):
        give(ours, theirs, step)
        other.step()
    for a, b in zip(ours, theirs, strict=True):
        a.data.copy_(b.data)
    one = KernelAdam(ours, **OPTIONS)
    one.load_state_dict(other.state_dict())
    if laid:
        one.lay()
        assert_same_state(ours, theirs, one, other)
    for step in range(7, 20):
        give(ours, theirs, step)
        one.step()
        other.step()
    assert_same_state(ours, theirs, one, other)


@pytest.mark.parametrize("kept", [False, True], ids=["as it is", "as a checkpoint keeps it"])
def test_torch_goes_on_from_our_state(kept):
    ours, theirs = two_sets()
    one, other = KernelAdam(ours, **OPTIONS), torch.optim.Adam(theirs, **OPTIONS)
    for step in range(7):
        give(ours, theirs, step)
        one.step()
        other.step()
    next_one = torch.optim.Adam(ours, **OPTIONS)
    state = one.state_dict()
    if kept:
        each = {i: {name: value.clone() for name, value in some.items()} for i, some in state["state"].items()}
        state = {"state": each, "param_groups": state["param_groups"]}
    next_one.load_state_dict(state)
    for step in range(7, 20):
        give(ours, theirs, step)
        next_one.step()
        other.step()
    assert_same_state(ours, theirs, next_one, other)


@pytest.mark.parametrize("restored", [False, True])
def test_large_weights_are_given_their_gradients(restored):
    """In several stretches, as threads take them; the others have places."""
    ours, theirs = two_sets()
    other = torch.optim.Adam(theirs, **OPTIONS)
    one = KernelAdam(ours, **OPTIONS)
    if restored:
        for step in range(3):
            give(ours, theirs, step)
            other.step()
        for a, b in zip(ours, theirs, strict=True):
            a.data.copy_(b.data)
        one.load_state_dict(other.state_dict())
    large = [ours[5], ours[6], ours[2]]
    others = [weight for weight in ours if not any(weight is big for big in large)]
    for weight in ours:
        weight.grad = None
    one.lay(others, large)
    assert all(weight.grad is None for weight in large)
    assert all((weight.grad == 0).all() for weight in others)
    begin = min(one.stretch(weight)[0] for weight in large)
    for step in range(10):
        generator = torch.Generator().manual_seed(step)
        one.begin_step()
        for a, b in zip(ours, theirs, strict=True):
            b.grad = torch.randn(a.shape, generator=generator)
            if a.grad is not None:
                a.grad.copy_(b.grad)
                continue
            start, stop = one.stretch(a)
            laid = (b.grad if a.is_contiguous() else b.grad.t()).reshape(-1).numpy()
            middle = start + (stop - start) // 3
            one.change(start, middle, laid[: middle - start].copy())
            one.change(middle, stop, laid[middle - start :].copy())
        one.change(0, begin)
        other.step()
    assert_same_state(ours, theirs, one, other)


def test_a_state_restored_after_some_steps():
    """The moments lie elsewhere by then, and the restored ones count."""
    ours, theirs = two_sets()
    one, other = KernelAdam(ours, **OPTIONS), torch.optim.Adam(theirs, **OPTIONS)
    for step in range(9):
        if step == 3:
            kept = copy.deepcopy(other.state_dict())
        if step == 6:
            one.load_state_dict(copy.deepcopy(kept))
            other.load_state_dict(copy.deepcopy(kept))
        give(ours, theirs, step)
        one.step()
        other.step()
    assert_same_state(ours, theirs, one, other)


def test_a_gradient_that_is_taken_away_is_not_used_again():
    weights, _ = two_sets([(4,), (5,)])
    optimizer = KernelAdam(weights, **OPTIONS)
    for weight in weights:
        weight.grad = torch.ones(len(weight))
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    weights[0].grad = torch.ones(4)
    with pytest.raises(AssertionError, match="has one in each step"):
        optimizer.step()


def test_what_is_laid_keeps_its_numbers():
    ours, _ = two_sets()
    kept = [weight.detach().clone() for weight in ours]
    gradients = [torch.randn(weight.shape) for weight in ours]
    for weight, gradient in zip(ours, gradients, strict=True):
        weight.grad = gradient.clone()
    KernelAdam(ours).lay()
    for weight, before, gradient in zip(ours, kept, gradients, strict=True):
        assert torch.equal(weight, before) and torch.equal(weight.grad, gradient)
