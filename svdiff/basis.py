"""The singular basis of a model's weights (paper, Sec. 3.2, Fig. 2): W = U diag(sigma) V^T, computed once per weight.

A convolution's kernel [C_out, C_in, kh, kw] is read as the matrix [C_out, C_in kh kw]. Shifts mean something only in
the basis they were trained in, so it is computed in float64, kept on disk under a hash of the weight, and shared by all
runs and all parameter subsets.
"""

import hashlib
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from common.runs import ROOT, InputError, atomic_path

log = logging.getLogger(__name__)

FOLDER = ROOT / "outputs" / "spectral_basis"  # 4.3 GB for Stable Diffusion 1.x
LAYERS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.Embedding, nn.GroupNorm, nn.LayerNorm)
# Two squared singular values nearer than this (of the largest squared) share a plane that float64 itself cannot split.
TOO_CLOSE = 1e-10
ILL_CONDITIONED = 1e-5  # smallest over largest singular value, below which the Gram matrix says too little


@dataclass(frozen=True, eq=False)
class Basis:
    """Float32: U [m, r], sigma [r] descending, Vh [r, n], r = min(m, n), of a weight read as a matrix [m, n]."""

    U: Tensor
    sigma: Tensor
    Vh: Tensor


def tunable(model: nn.Module) -> dict[str, nn.Module]:
    """Every layer with a `weight` by its path, in the model's order; biases are never tuned.

    Raises InputError for a layer that has a weight and no spectral form (grouped or padded-by-reflection convolutions).
    """
    found = {}
    for path, layer in model.named_modules():
        if getattr(layer, "weight", None) is None or not isinstance(layer.weight, Tensor):
            continue
        if not isinstance(layer, LAYERS) or getattr(layer, "groups", 1) != 1:
            raise InputError(f"{path} ({type(layer).__name__}) has no spectral form; this model cannot be tuned so")
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise InputError(f"{path} pads by {layer.padding_mode}; only padding by zeros has a spectral form")
        found[path] = layer
    return found


def as_matrix(layer: nn.Module) -> Tensor:
    """The weight as Fig. 2 reads it: [C_out, C_in kh kw], row-major; linear layers and embeddings as they are."""
    weight = layer.weight
    if isinstance(layer, nn.ConvTranspose2d):  # stored as [C_in, C_out, kh, kw]
        weight = weight.movedim(1, 0)
    return weight.reshape(weight.shape[0], -1)


def from_matrix(layer: nn.Module, matrix: Tensor) -> Tensor:
    """The inverse of as_matrix: a matrix in the shape of the layer's weight."""
    shape = layer.weight.shape
    if isinstance(layer, nn.ConvTranspose2d):
        return matrix.reshape(shape[1], shape[0], *shape[2:]).movedim(0, 1).contiguous()
    return matrix.reshape(shape)


def decompose(matrix: Tensor) -> Basis:
    """The economy SVD of [m, n], in float64 through the symmetric eigenproblem of the short side (four times as fast as
    LAPACK's SVD at Stable Diffusion's shapes, and as exact for float32 use).

    Where the Gram matrix, which squares the condition number, would lose the smallest values, LAPACK's SVD takes over.
    Raises InputError for a weight that is not finite.
    """
    if not matrix.isfinite().all():
        raise InputError("a weight holds NaN or infinity; the model is damaged")
    tall = matrix.shape[0] > matrix.shape[1]
    W = (matrix.T if tall else matrix).double()
    squares, vectors = torch.linalg.eigh(W @ W.T)
    U = vectors.flip(1)
    Vh = U.T @ W  # rows sigma_i v_i
    sigma = Vh.norm(dim=1)
    if not sigma[-1] > ILL_CONDITIONED * sigma[0]:
        U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
    else:
        order = sigma.argsort(descending=True, stable=True)
        U, sigma = U[:, order], sigma[order]
        Vh = Vh[order] / sigma[:, None]
    U, Vh = (Vh.T, U.T) if tall else (U, Vh)
    return Basis(*(part.float().contiguous() for part in (U, sigma, Vh)))


def close_pairs(sigma: Tensor) -> int:
    """How many neighbouring singular values are too close for their vectors to be the same everywhere."""
    squares = sigma.double() ** 2
    return int(((squares[:-1] - squares[1:]) < TOO_CLOSE * squares[0]).sum()) if squares[0] > 0 else len(sigma) - 1


def weight_hash(layer: nn.Module) -> str:
    """Sixteen bytes, in hex, of SHA-256 over the weight's shape and float32 values."""
    weight = as_matrix(layer).detach().to("cpu", torch.float32).contiguous()
    digest = hashlib.sha256(f"{tuple(weight.shape)}".encode())
    digest.update(weight.numpy().data)
    return digest.hexdigest()[:32]


def base_hash(model: nn.Module) -> str:
    """What tells one base model from another: a hash over every tunable weight, by name. Of float32 weights: hash
    before a model is cast to another format."""
    digest = hashlib.sha256()
    for path, layer in sorted(tunable(model).items()):
        digest.update(f"{path} {weight_hash(layer)} ".encode())
    return digest.hexdigest()[:32]


def read(file: Path) -> Basis | None:
    """A kept basis; None where there is none, or a damaged one."""
    try:
        return Basis(**load_file(file))
    except (OSError, SafetensorError, TypeError):
        return None


@torch.no_grad()
def find_bases(model: nn.Module, paths: Iterable[str], folder: str | Path | None = None) -> dict[str, Basis]:
    """The basis of each named layer that is not a vector, on the CPU: from `folder` (FOLDER by default), or computed
    now on the layer's own device and put there. model: float32, unchanged. An interrupted computation goes on where it
    stopped.

    Logs a warning for layers whose singular values are so close that shifts are not portable.
    """
    wanted, folder = set(paths), Path(folder or FOLDER)
    layers = {path: layer for path, layer in tunable(model).items() if path in wanted and layer.weight.ndim > 1}
    files = {path: folder / f"{weight_hash(layer)}.safetensors" for path, layer in layers.items()}
    bases = {path: found for path, file in files.items() if (found := read(file))}
    missing = [path for path in layers if path not in bases]
    for path in tqdm(missing, "singular value decompositions", disable=None if missing else True):
        matrix = as_matrix(layers[path])
        matrix = matrix.cpu() if matrix.device.type == "mps" else matrix  # which has no float64
        try:
            bases[path] = Basis(*(part.cpu() for part in vars(decompose(matrix)).values()))
        except InputError as problem:
            raise InputError(f"{path}: {problem}") from None
        with atomic_path(files[path]) as temporary:
            save_file(vars(bases[path]), temporary)
    close = {path: count for path, basis in bases.items() if (count := close_pairs(basis.sigma))}
    if close:
        path = max(close, key=close.get)
        log.warning(
            "%d layers have singular values too close to tell their vectors apart (%s: %d pairs): shifts of these "
            "layers hold on this machine's basis, and may not elsewhere", len(close), path, close[path],
        )  # fmt: skip
    return {path: bases[path] for path in layers}
