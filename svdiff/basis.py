"""The singular basis of a model's weights (paper, Sec. 3.2, Fig. 2): W = U diag(sigma) V^T, computed once per weight.

A convolution's kernel [C_out, C_in, kh, kw] is read as the matrix [C_out, C_in kh kw]. Shifts mean something only in
the basis they were trained in, so it is computed in float64, kept on disk under a hash of the weight, and shared by all
runs and all parameter subsets.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from common.runs import InputError, cache_folder, progress, write_once

log = logging.getLogger(__name__)

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
    """Every layer with a `weight` by its path, in the model's order; biases are never tuned. Raises InputError for a
    layer that has a weight and no spectral form (grouped or padded-by-reflection convolutions)."""
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


def shift_length(layer: nn.Module) -> int:
    """How many numbers shift a layer: min(rows, columns) of its matrix; of a vector, its length."""
    return layer.weight.numel() if layer.weight.ndim == 1 else min(as_matrix(layer).shape)


def decompose(matrix: Tensor) -> Basis:
    """The economy SVD of [m, n], in float64 through the symmetric eigenproblem of the short side (four times as fast as
    LAPACK's SVD at Stable Diffusion's shapes, and as exact for float32 use).

    Where the Gram matrix, which squares the condition number, would lose the smallest values, LAPACK's SVD takes over.
    """
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


def base_hash(model: nn.Module, hashes: Mapping[str, str] | None = None) -> str:
    """What tells one base model from another: a hash over the weight_hash of every tunable layer, by name. Of float32
    weights: hash before a model is cast to another format."""
    hashes = hashes or {path: weight_hash(layer) for path, layer in tunable(model).items()}
    lines = (f"{path} {of_layer} " for path, of_layer in sorted(hashes.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


class Bases:
    """Hashes and singular bases of a pipeline's parts ("unet", "text_encoder", ...): each is computed, or read, once.

    pipe: float32; ask for a part before its weights change or are cast. folder: where bases are kept, by default
    `spectral_basis` in the project's cache (4.3 GB for Stable Diffusion 1.x).
    """

    def __init__(self, pipe, folder: str | Path | None = None):
        self.pipe, self.folder = pipe, folder
        self._hashes: dict[str, dict[str, str]] = {}
        self._found: dict[str, dict[str, Basis]] = {}

    def hashes(self, part: str) -> dict[str, str]:
        if part not in self._hashes:
            self._hashes[part] = {path: weight_hash(one) for path, one in tunable(getattr(self.pipe, part)).items()}
        return self._hashes[part]

    def base(self, part: str) -> str:
        """The base_hash of a part."""
        return base_hash(getattr(self.pipe, part), self.hashes(part))

    def find(self, part: str, paths: Iterable[str], keep: bool = False) -> dict[str, Basis]:
        """find_bases of a part's layers. keep: hold them in memory for the next question."""
        paths, found = set(paths), self._found.setdefault(part, {})
        new = find_bases(getattr(self.pipe, part), paths - found.keys(), self.folder, self.hashes(part))
        if keep:
            found |= new
        return {path: basis for path, basis in (found | new).items() if path in paths}


def read(file: Path) -> Basis | None:
    """A kept basis; None where there is none. A damaged file is taken away."""
    try:
        return Basis(**load_file(file))
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, TypeError):
        file.unlink(missing_ok=True)
        return None


def write(path: str, layer: nn.Module, file: Path) -> None:
    """Raises InputError for a weight that is not finite. path: the layer's."""
    if not (matrix := as_matrix(layer)).isfinite().all():
        raise InputError(f"{path} holds NaN or infinity; the model is damaged")
    save_file({name: part.cpu() for name, part in vars(decompose(matrix)).items()}, file)


@torch.no_grad()
def find_bases(
    model: nn.Module, paths: Iterable[str], folder: str | Path | None = None, hashes: Mapping[str, str] | None = None
) -> dict[str, Basis]:
    """The basis of each named layer that is not a vector, on the CPU: from files in `folder`, or computed now on the
    layer's own device and put there. model: float32, unchanged. hashes: of its layers, where they are known.

    An interrupted computation goes on where it stopped; several processes share one. Logs a warning for layers whose
    singular values are so close that shifts are not portable. Raises InputError for a weight that is not finite.
    """
    wanted, folder = set(paths), Path(folder) if folder else cache_folder("spectral_basis")
    layers = {path: layer for path, layer in tunable(model).items() if path in wanted and layer.weight.ndim > 1}
    hashes = hashes or {path: weight_hash(layer) for path, layer in layers.items()}
    files = {path: folder / f"{hashes[path]}.safetensors" for path in layers}
    bases = {path: read(file) for path, file in files.items()}
    missing = [path for path, found in bases.items() if found is None]
    for path in progress(missing, "singular value decompositions", shown=bool(missing)):
        bases[path] = Basis(**load_file(write_once(files[path], partial(write, path, layers[path]))))
    close = {path: count for path, basis in bases.items() if (count := close_pairs(basis.sigma))}
    if close:
        path = max(close, key=close.get)
        log.warning(
            "%d layers have singular values too close to tell their vectors apart (%s: %d pairs): shifts of "
            "these layers hold on this machine's basis, and may not elsewhere",
            len(close),
            path,
            close[path],
        )
    return bases
