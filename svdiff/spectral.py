"""Spectral shifts (paper, Sec. 3.2): a layer's weight is U diag(ReLU(sigma + delta)) V^T, and delta alone is trained.

`rebuilt`, used to merge, makes the new weight. The layers below apply the three factors to the activations instead,

    y = U (s * (V^T x)),  s = ReLU(sigma + delta),

so that a training step costs a quarter more than the frozen model's and not several times as much: no W', and no
gradient of a weight; that of delta falls off for nothing (V^T x, which is kept, times U^T g, which the input's needs
anyway). Only where U and V cost about twice what W does is (U s) V^T multiplied out (SpectralLayer.dense).

Vectors (weights of norms) are shifted elementwise and without ReLU, W + delta, as the author does.
The spectrum is float32 whatever the network's format: a step of 1e-3 is lost beside a sigma of 1 in float16.
"""

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from svdiff.basis import Basis, from_matrix, tunable

Shifts = dict[str, Tensor]  # path of a layer -> delta [r]


def spectrum(sigma: Tensor, delta: Tensor, scale: float = 1.0) -> Tensor:
    """ReLU(sigma + scale * delta) [r] (Eq. 2); the scale of a shift stands inside of the ReLU."""
    return torch.relu(torch.add(sigma, delta, alpha=scale))


def rebuilt(layer: nn.Module, basis: Basis | None, delta: Tensor, scale: float = 1.0) -> Tensor:
    """The layer's new weight, in its own shape and format. basis: None for a vector.

    W + U diag(ReLU(sigma + delta) - sigma) V^T: Eq. 2 and, as the author does, what the rounding of U, sigma and V lost
    of W, put back. So zero shifts give W bit for bit.
    """
    if basis is None:
        return layer.weight + (scale * delta).to(layer.weight)
    sigma, delta = basis.sigma.to(layer.weight.device), delta.to(layer.weight.device)
    change = spectrum(sigma, delta, scale) - sigma
    U, Vh = basis.U.to(change), basis.Vh.to(change)
    return layer.weight + from_matrix(layer, (U * change) @ Vh).to(layer.weight)


def at_least_float32(before: Tensor, after: Tensor) -> Tensor:
    """A tensor from before a cast, where that cast took its like, and in its format unless that is below float32."""
    return before.to(after.device, torch.promote_types(after.dtype, torch.float32))


class SpectralLayer(nn.Module):
    """A layer in activation space. `delta` [r] is the only thing that can be trained."""

    def __init__(self, layer: nn.Module, basis: Basis):
        super().__init__()
        bias, like = getattr(layer, "bias", None), layer.weight
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        for name, part in (("U", basis.U.to(like)), ("sigma", basis.sigma.to(like.device)), ("Vh", basis.Vh.to(like))):
            self.register_buffer(name, part, persistent=False)
        self.delta = nn.Parameter(torch.zeros_like(self.sigma))
        self.train(layer.training)

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts as any module, but never takes the spectrum below float32."""
        exact = self.sigma, self.delta.data
        super()._apply(fn, recurse)
        self.sigma, self.delta.data = (at_least_float32(before, self.sigma) for before in exact)
        return self

    @property
    def matrix(self) -> Tensor:
        """W' as a matrix, made anew on every access (Eq. 2)."""
        return ((self.U * spectrum(self.sigma, self.delta)) @ self.Vh.to(self.sigma.dtype)).to(self.U.dtype)

    @property
    def weight(self) -> Tensor:
        """For those who ask a layer for its weight."""
        return self.matrix

    def dense(self, tokens: int) -> bool:
        """Whether W' written out costs fewer operations, forward and backward, than its factors at so many tokens:
        6 t m n + 4 m n r against 4 t r (m + n). Of square matrices: with more tokens than 2 r. In half precision never,
        for there the new weight would be rounded as a whole."""
        m, n, r = len(self.U), self.Vh.shape[1], len(self.sigma)
        return self.U.dtype == self.sigma.dtype and tokens * (2 * r * (m + n) - 3 * m * n) > 2 * m * n * r

    def scaled(self, h: Tensor, dim: int = -1) -> Tensor:
        """h = V^T x with its r channels (at `dim`) scaled by the new singular values."""
        s = spectrum(self.sigma, self.delta)
        return (h * (s if dim == -1 else s[:, None])).to(h.dtype)


class SpectralLinear(SpectralLayer):
    def forward(self, x: Tensor) -> Tensor:
        if self.dense(x.numel() // x.shape[-1]):
            return F.linear(x, self.matrix, self.bias)
        return F.linear(self.scaled(F.linear(x, self.Vh)), self.U, self.bias)


class SpectralEmbedding(SpectralLayer):
    """Rows of U looked up, scaled, times V^T: of the table no more than what the prompt names."""

    def forward(self, ids: Tensor) -> Tensor:
        return (self.scaled(F.embedding(ids, self.U)) @ self.Vh).to(self.U.dtype)  # a table is not autocast


class SpectralConv(SpectralLayer):
    """A convolution into r channels with V^T as its kernels, of the layer's stride, padding and dilation, then U at
    every place (Fig. 2: kernels as matrices). Products with matrices, U and 1x1 kernels, are written as such: torch's
    1x1 convolutions are slow for small batches."""

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, basis: Basis):
        super().__init__(layer, basis)
        self.transposed = isinstance(layer, nn.ConvTranspose2d)
        self.kernel = (layer.in_channels, *layer.kernel_size)
        self.geometry = {"stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation}
        if self.transposed:
            self.geometry["output_padding"] = layer.output_padding
        plain = {"kernel_size": (1, 1), "stride": (1, 1), "padding": (0, 0), "output_padding": (0, 0)}
        self.pointwise = all(getattr(layer, name) == value for name, value in plain.items())

    @property
    def weight(self) -> Tensor:
        return self.in_place(self.matrix)

    def in_place(self, matrix: Tensor) -> Tensor:
        """A matrix [k, C_in kh kw] as the kernels of a convolution into k channels."""
        kernels = matrix.unflatten(1, self.kernel)
        return kernels.movedim(1, 0) if self.transposed else kernels

    def forward(self, x: Tensor, output_size=None) -> Tensor:
        if self.pointwise and self.dense(x.numel() // x.shape[1]):
            return self.at_every_place(self.matrix, x.flatten(2)).unflatten(2, x.shape[2:])
        if self.pointwise:
            size, h = x.shape[2:], self.Vh @ x.flatten(2)
        else:
            convolve = F.conv_transpose2d if self.transposed else F.conv2d
            h = convolve(x, self.in_place(self.Vh), **self.geometry)
            size, h = h.shape[2:], h.flatten(2)
        return self.at_every_place(self.U, self.scaled(h, 1)).unflatten(2, size)

    def at_every_place(self, matrix: Tensor, h: Tensor) -> Tensor:
        """matrix [m, k] times h [B, k, places], and the bias."""
        matrix = matrix.expand(len(h), -1, -1)
        return torch.bmm(matrix, h) if self.bias is None else torch.baddbmm(self.bias[:, None], matrix, h)


class SpectralNorm(nn.Module):
    """A norm whose weight is shifted elementwise, and computed in float32: beside a weight of 1 a shift of 1e-3 is lost
    in bfloat16. `norm` is the layer itself, frozen."""

    def __init__(self, layer: nn.GroupNorm | nn.LayerNorm):
        super().__init__()
        self.norm = layer
        self.delta = nn.Parameter(torch.zeros_like(layer.weight, dtype=torch.float32, requires_grad=True))

    @property
    def bias(self) -> Tensor | None:
        return self.norm.bias

    @property
    def weight(self) -> Tensor:
        return self.norm.weight + self.delta

    def _apply(self, fn, recurse: bool = True):
        """Moves and casts as any module, but never takes weight and shift below float32."""
        exact = self.delta.data, self.norm.weight.data
        super()._apply(fn, recurse)
        self.delta.data, self.norm.weight.data = (at_least_float32(before, self.delta) for before in exact)
        return self

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        shifted = {"weight": weight} | ({} if self.bias is None else {"bias": self.bias.to(weight)})
        return functional_call(self.norm, shifted, (x.to(weight),)).to(x.dtype)


def spectral_form(layer: nn.Module, basis: Basis | None) -> nn.Module:
    if basis is None:
        return SpectralNorm(layer)
    if isinstance(layer, nn.Linear):
        return SpectralLinear(layer, basis)
    return (SpectralEmbedding if isinstance(layer, nn.Embedding) else SpectralConv)(layer, basis)


def attach(model: nn.Module, paths: Iterable[str], bases: Mapping[str, Basis]) -> dict[str, nn.Module]:
    """Put the layers at `paths` into their spectral form, with zero shifts; returns them by path. W leaves the model:
    for a plain one load it anew and give the shifts to merging.write_into."""
    layers, attached = tunable(model), {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        attached[path] = spectral_form(layers.pop(path), bases.get(path))  # W goes before the next U and V come
        setattr(model.get_submodule(parent), name, attached[path])
    return attached


def shifts_of(attached: Mapping[str, nn.Module]) -> Shifts:
    """The shifts of layers in spectral form: float32, on the CPU."""
    return {path: layer.delta.detach().float().cpu().clone() for path, layer in attached.items()}


@torch.no_grad()
def dead_share(layers: Iterable[nn.Module]) -> float:
    """The share of the singular values of layers in spectral form that ReLU holds at zero; vectors have none."""
    moved = [layer.sigma + layer.delta for layer in layers if isinstance(layer, SpectralLayer)]
    return (torch.cat(moved) <= 0).float().mean().item() if moved else 0.0
