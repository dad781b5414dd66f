"""Spectral shifts against a naive reading of Eq. 2, and the form in activation space against the rebuilt one."""

import copy
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from common.tables import published_table
from svdiff import basis, merging, spectral, subsets
from tests.refusing import refuses
from tests.tiny import tiny_sd

LAYERS = {
    "linear": (lambda: nn.Linear(12, 7), (5, 12)),
    "square linear, many tokens": (lambda: nn.Linear(6, 6), (2, 40, 6)),
    "nearly square linear, many tokens": (lambda: nn.Linear(6, 8, bias=False), (90, 6)),
    "conv 1x1, few places": (lambda: nn.Conv2d(7, 5, 1, bias=False), (1, 7, 2, 2)),
    "conv 1x1, stride 2": (lambda: nn.Conv2d(5, 5, 1, stride=2), (2, 5, 6, 6)),
    "tall linear without bias": (lambda: nn.Linear(4, 9, bias=False), (2, 3, 4)),
    "conv": (lambda: nn.Conv2d(5, 6, 3, padding=1), (2, 5, 8, 8)),
    "conv, stride 2": (lambda: nn.Conv2d(5, 70, (3, 2), stride=2, padding=(2, 0)), (1, 5, 9, 8)),
    "conv, dilated": (lambda: nn.Conv2d(3, 4, 3, dilation=2, bias=False), (1, 3, 9, 9)),
    "conv, padding same": (lambda: nn.Conv2d(3, 4, 3, padding="same"), (1, 3, 5, 5)),
    "conv 1x1": (lambda: nn.Conv2d(5, 5, 1), (2, 5, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(5, 4, 3, stride=2, padding=1, output_padding=1), (2, 5, 4, 4)),
    "group norm": (lambda: nn.GroupNorm(2, 6), (2, 6, 4, 4)),
    "layer norm": (lambda: nn.LayerNorm(6), (2, 3, 6)),
}


def exact(layer):
    """The basis of a layer in float64, by LAPACK."""
    if layer.weight.ndim == 1:
        return None
    U, sigma, Vh = torch.linalg.svd(basis.as_matrix(layer).detach().double(), full_matrices=False)
    return basis.Basis(U, sigma, Vh)


def naive(layer, found, delta, scale=1.0):
    """Eq. 2 as it is printed, with an explicit diagonal matrix; of a vector the sum."""
    if found is None:
        return layer.weight + scale * delta
    matrix = found.U @ torch.diag(torch.clamp(found.sigma + scale * delta, min=0)) @ found.Vh
    if isinstance(layer, nn.ConvTranspose2d):
        out, (into, _, *kernel) = layer.weight.shape[1], layer.weight.shape
        return matrix.reshape(out, into, *kernel).transpose(0, 1)
    return matrix.reshape(layer.weight.shape)


def some_shift(layer, found):
    """Large enough that ReLU, at scale 1.7, cuts the last value off."""
    length = subsets.shift_length(layer)
    shift = (0.5 if found is None else float(found.sigma.mean())) * torch.randn(length, dtype=torch.float64)
    if found is not None:
        shift[-1] = -found.sigma[-1]
    return shift


@pytest.mark.parametrize("kind", LAYERS)
def test_outputs_and_gradients_of_both_forms_agree(kind):
    torch.manual_seed(0)
    make, shape = LAYERS[kind]
    layer = make().double().requires_grad_(False)
    nn.init.normal_(layer.weight, 1.0)
    found = exact(layer)
    fast = spectral.spectral_form(copy.deepcopy(layer), found).double()
    fast.delta.data = 1.7 * some_shift(layer, found)
    if found is not None:
        assert (found.sigma + fast.delta < 0).any()
    x = torch.randn(shape, dtype=torch.float64)
    apart, results = fast.delta.detach().clone().requires_grad_(), []
    for delta, form in (
        (apart, lambda inputs: functional_call(layer, {"weight": naive(layer, found, apart)}, (inputs,))),
        (apart, lambda inputs: functional_call(layer, {"weight": spectral.rebuilt(layer, found, apart)}, (inputs,))),
        (fast.delta, fast),
        (fast.delta, lambda inputs: checkpoint(fast, inputs, use_reentrant=False)),
    ):
        inputs = x.clone().requires_grad_()
        y = form(inputs)
        loss = (y * torch.linspace(-1, 2, y.numel(), dtype=y.dtype).reshape(y.shape)).sum()
        results.append((y.detach(), *torch.autograd.grad(loss, (inputs, delta))))
    for other in results[1:]:
        for one, two in zip(results[0], other, strict=True):
            assert (one - two).abs().max() <= 1e-13 * max(1.0, float(one.abs().max()))
    torch.testing.assert_close(fast.weight, naive(layer, found, fast.delta), rtol=1e-10, atol=1e-10)
    scaled = spectral.rebuilt(layer, found, fast.delta.detach() / 1.7, 1.7)  # the scale stands inside of the ReLU
    torch.testing.assert_close(scaled, fast.weight.detach(), rtol=1e-10, atol=1e-10)


def test_the_form_with_fewer_operations_is_taken():
    """Of square matrices W' with more tokens than 2 r; of long ones never; in half precision never."""
    layers = nn.Linear(6, 6), nn.Linear(6, 24)
    square, long = (spectral.spectral_form(layer, exact(layer)).double() for layer in layers)
    assert [square.dense(tokens) for tokens in (1, 12, 13, 400)] == [False, False, True, True]
    assert not long.dense(4000) and not square.to(torch.bfloat16).dense(4000)


def test_embedding_looks_up_the_rows_of_the_rebuilt_table():
    torch.manual_seed(0)
    layer, ids = nn.Embedding(30, 8).double(), torch.tensor([[3, 3, 29], [0, 7, 1]])
    found = exact(layer)
    fast = spectral.spectral_form(layer, found).double()
    fast.delta.data = some_shift(layer, found)
    torch.testing.assert_close(fast(ids), naive(layer, found, fast.delta)[ids], rtol=1e-10, atol=1e-10)
    assert fast.weight.shape == (30, 8)  # CLIP asks the position table for its length


@pytest.fixture(scope="module")
def unet():
    return tiny_sd().unet


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("basis")


@pytest.fixture(scope="module")
def bases(unet, folder):
    return basis.find_bases(unet, subsets.chosen(unet), folder)


def inputs():
    torch.manual_seed(1)
    return torch.randn(2, 4, 16, 16), torch.tensor([3, 700]), torch.randn(2, 77, 32)


def merge(model, attached, folder):
    """Shifts of layers in spectral form, written into a plain model."""
    change = {f"unet.{path}.delta": delta for path, delta in spectral.shifts_of(attached).items()}
    pipe = SimpleNamespace(unet=model)
    merging.write_into(pipe, change, bases=basis.Bases(pipe, folder))


@pytest.mark.parametrize("size", [0.0, 0.1])
def test_merged_equals_unmerged_and_only_shifts_are_trained(unet, bases, folder, size):
    """And zero shifts are the base model."""
    merged, spectral_unet = copy.deepcopy(unet), copy.deepcopy(unet)
    attached = spectral.attach(spectral_unet, subsets.chosen(unet), bases)
    torch.manual_seed(2)
    for path, layer in attached.items():
        layer.delta.data = size * torch.randn_like(layer.delta) * (bases[path].sigma.mean() if path in bases else 1)
    trainable = {name for name, p in spectral_unet.named_parameters() if p.requires_grad}
    assert trainable == {f"{path}.delta" for path in attached}
    merge(merged, attached, folder)
    with torch.no_grad():
        one, two, base = (model(*inputs()).sample for model in (merged, spectral_unet, unet))
    assert (one - two).norm() <= (1e-4 if size else 1e-5) * one.norm()
    assert torch.equal(one, base) if size == 0 else (one - base).norm() > 1e-2 * base.norm()
    spectral_unet.enable_gradient_checkpointing()
    grads = []
    for training in (True, False):
        spectral_unet.train(training)  # checkpointing acts in training mode only
        spectral_unet.zero_grad()
        spectral_unet(*inputs()).sample.square().mean().backward()
        grads.append([layer.delta.grad.clone() for layer in attached.values()])
    assert all(grad.abs().sum() > 0 for grad in grads[0])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


def test_the_spectrum_stays_float32(unet, bases):
    half = copy.deepcopy(unet)
    attached = spectral.attach(half, subsets.chosen(unet), bases)
    layer = attached["conv_in"]
    layer.delta.data += 1e-5
    half.to(torch.bfloat16)
    assert layer.sigma.dtype == layer.delta.dtype == torch.float32 and layer.U.dtype == torch.bfloat16
    assert torch.equal(layer.sigma, bases["conv_in"].sigma) and float(layer.delta.data[0]) == pytest.approx(1e-5)
    norm = attached["conv_norm_out"]
    norm.delta.data += 1e-4  # lost beside a weight of 1 in bfloat16
    assert norm.delta.dtype == torch.float32
    assert torch.equal(norm.weight, unet.conv_norm_out.weight + 1e-4)
    noise = half(*(x.bfloat16() if x.is_floating_point() else x for x in inputs())).sample
    assert noise.dtype == torch.bfloat16 and noise.isfinite().all()


@pytest.mark.parametrize("shape, rank", [
    ((20, 50), 20), ((50, 20), 20), ((16, 16), 16), ((1, 9), 1), ((9, 1), 1), ((8, 20), 3), ((20, 8), 0),
])  # fmt: skip
def test_decomposition(shape, rank):
    """Of weights without full rank too, whose basis is whole all the same."""
    generator, r = torch.Generator().manual_seed(0), min(shape)
    matrix = torch.randn(shape[0], rank, generator=generator) @ torch.randn(rank, shape[1], generator=generator)
    found = basis.decompose(matrix)
    assert found.U.shape == (shape[0], r) and found.Vh.shape == (r, shape[1]) and found.sigma.dtype == torch.float32
    torch.testing.assert_close((found.U * found.sigma) @ found.Vh, matrix, rtol=1e-5, atol=1e-5)
    for product in (found.U.T @ found.U, found.Vh @ found.Vh.T):
        torch.testing.assert_close(product, torch.eye(r), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.sigma, torch.linalg.svdvals(matrix.double()).float(), rtol=1e-5, atol=1e-5)
    assert basis.close_pairs(found.sigma) >= r - rank - 1  # the values that are zero


def test_small_values_are_not_lost_in_the_gram_matrix():
    torch.manual_seed(0)
    U, V = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] for _ in range(2))
    sigma = torch.tensor([1.0, 1e-2, 1e-4, 1e-6, 1e-7, 1e-8], dtype=torch.float64)
    found = basis.decompose((U * sigma) @ V)
    torch.testing.assert_close(found.sigma, sigma.float(), rtol=1e-4, atol=0)


def test_a_basis_is_kept_found_again_and_made_anew_where_damaged(unet, tmp_path, monkeypatch):
    paths = ["conv_in", "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"]
    first = basis.find_bases(unet, paths, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 2 and set(load_file(files[0])) == {"U", "sigma", "Vh"}
    calls, original = [], basis.decompose
    monkeypatch.setattr(basis, "decompose", lambda matrix: calls.append(1) or original(matrix))
    again = basis.find_bases(unet, [*paths, "conv_out", "conv_norm_out"], tmp_path)
    assert len(calls) == 1 and set(again) == {*paths, "conv_out"}  # vectors have no basis
    assert all(torch.equal(first[path].U, again[path].U) for path in paths)
    files[0].write_bytes(files[0].read_bytes()[:100])
    basis.find_bases(unet, paths, tmp_path)
    assert len(calls) == 2


def test_the_hash_tells_bases_apart(unet):
    other = copy.deepcopy(unet)
    other.conv_in.bias.data += 1  # biases are no part of it
    assert basis.base_hash(unet) == basis.base_hash(other)
    other.mid_block.resnets[0].norm1.weight.data[3] += 1e-6
    assert basis.base_hash(unet) != basis.base_hash(other)


@pytest.mark.parametrize("layer, words", [
    (nn.Conv2d(4, 4, 3, groups=2), "no spectral form"), (nn.Conv2d(4, 4, 3, padding_mode="reflect"), "pads by"),
    (nn.Bilinear(2, 2, 2), "no spectral form"),
])  # fmt: skip
def test_layers_without_a_spectral_form_are_refused(layer, words):
    refuses(words, basis.tunable, nn.Sequential(layer))


def test_weights_of_nan_are_refused_and_close_singular_values_warned_of_by_name(tmp_path, caplog):
    model = nn.Sequential(nn.Linear(4, 4))
    model[0].weight.data = torch.eye(4)
    basis.find_bases(model, ["0"], tmp_path)
    assert "0: 3 pairs" in caplog.text and basis.close_pairs(torch.tensor([3.0, 2.0, 1.0])) == 0
    model[0].weight.data[1, 1] = float("nan")
    refuses("0 holds NaN", basis.find_bases, model, ["0"], tmp_path)


# -------------------------------------------------------------------------------------------------------- Table 1

COUNTS = {  # subset: tensors, values
    "UNet": (391, 322856), "UNet-CA": (64, 43776), "UNet-CA-KV": (32, 18816), "UNet-1D": (109, 100160),
    "UNet-2D": (184, 140416), "UNet-4D": (98, 82280), "Up-Blocks": (219, 181568), "Down-Blocks": (141, 107072),
    "Mid-Block": (26, 32256), "Up-CA": (36, 23808), "Down-CA": (24, 15872), "Mid-CA": (4, 4096),
}  # fmt: skip


def test_table_1_on_stable_diffusions_unet():
    model = subsets.stable_diffusion_unet()
    assert sum(p.numel() for p in model.parameters()) == 859_520_964 and model.conv_in.weight.is_meta
    printed = {row["subset"]: row["values"][0] for row in published_table("svdiff", "1")["rows"]}
    assert set(subsets.SUBSETS) == set(COUNTS) == set(printed)
    for subset, kilobytes in printed.items():
        found = subsets.cost(model, subset)
        assert (found["tensors"], found["values"]) == COUNTS[subset], subset
        tolerance = 0.05 if subset == "Mid-CA" else 0.01  # the container's fixed records weigh in small files
        assert found["torch_bytes"] / 1024 == pytest.approx(kilobytes, rel=tolerance), subset
