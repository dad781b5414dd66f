import pytest
import torch

from spdinv.inversions.residual import gradients, mean_square


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_small_gradients_survive_the_way_through_a_narrow_network(dtype):
    """d mean((2^-10 x)^2) / dx = 2^-19 x / N: for N = 16384 that is 1e-10, and float16 ends at 6e-8."""
    x = torch.linspace(-1, 1, 16384).reshape(1, 4, 64, 64).requires_grad_()
    loss = mean_square((x.to(dtype) * 2.0**-10).float())
    (found,) = gradients(loss, [x], dtype)
    torch.testing.assert_close(found, 2.0**-19 * x.detach() / 16384, rtol=0.02, atol=1e-12)
    assert x.grad is None


def test_large_gradients_fit_through_float16():
    """d mean((2^5 x)^2) / dx, on the way 2^16 times 2^6 x / N: more than float16's 65504 at N = 4."""
    x = torch.tensor([1.0, -1.0, 0.5, 0.25]).reshape(1, 4, 1, 1).requires_grad_()
    loss = mean_square((x.half() * 2.0**5).float())
    (found,) = gradients(loss, [x], torch.float16)
    torch.testing.assert_close(found, 2.0**11 * x.detach() / 4, rtol=0.01, atol=0)
