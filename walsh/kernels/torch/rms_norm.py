"""Root-mean-square normalisation (SPEC.md, section *rms_norm*).

    y = x / sqrt(mean(x^2) + eps) * weight                                                      x [..., C], weight [C]
    dx = (g - xhat * mean(g * xhat)) / rms,  g = dy * weight,  xhat = x / rms,  dweight = sum over tokens of dy * xhat

Zhang and Sennrich, *Root Mean Square Layer Normalization* (arXiv 1910.07467).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from walsh.kernels.torch._check import accumulate_dtype, require_features, require_float, require_number, require_shape


class _RMSNorm(Function):
    """Saves x, weight and one number per token."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.work = accumulate_dtype(x, weight)
        wide = x.to(ctx.work)
        rms = wide.square().mean(dim=-1, keepdim=True).add_(eps).sqrt_()
        ctx.save_for_backward(x, weight, rms)
        return (wide / rms).mul_(weight.to(ctx.work)).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rms = ctx.saved_tensors
        dx = dweight = None
        dy = dy.to(ctx.work)
        xhat = x.to(ctx.work) / rms
        if ctx.needs_input_grad[1]:
            dweight = (dy * xhat).sum(dim=tuple(range(x.ndim - 1))) if x.ndim > 1 else dy * xhat
            dweight = dweight.to(weight.dtype)
        if ctx.needs_input_grad[0]:
            g = dy * weight.to(ctx.work)
            dx = g.sub_(xhat * (g * xhat).mean(dim=-1, keepdim=True)).div_(rms).to(x.dtype)
        return dx, dweight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Divide each row by its root mean square and scale its features.

    Args:
        x: float [..., C].
        weight: float [C].
        eps: added to the mean square.

    Returns:
        y [..., C] in the dtype of x.

    Raises:
        ShapeError, DTypeError: arguments that do not fit. ParameterError: eps is negative or not finite.
    """
    require_float("x", x)
    require_float("weight", weight)
    require_number("eps", eps, 0.0)
    require_shape("weight", weight, (None,), "[C]")
    require_features("x", x, weight.shape[0], "C")
    result: Tensor = _RMSNorm.apply(x, weight, eps)
    return result
