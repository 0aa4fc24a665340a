"""Matrices in the form of torch's int4 matmul stand for the weights that were packed, as its CPU op shows."""

import pytest
import torch
from torch import Tensor

from starcoder.kernels import cuda
from starcoder.kernels.packed import Packed, Scheme, dequantize
from starcoder.quantize import QuantizedLinear, quantize_matrix

SHAPES = [(48, 256), (33, 100), (100, 192), (8, 32)]  # whole and padded; 8, 4 and 2 tiles of 16 inputs
# Weights and results are rounded to bfloat16, scales before them: three times 2^-9.
BFLOAT16 = 6e-3


def convert_for_cpu(nibbles: Tensor, tiles: int) -> Tensor:
    found: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles, tiles)
    return found


def matrix(scheme: Scheme, columns: int, inputs: int) -> Packed:
    weight = torch.randn(columns, inputs, generator=torch.Generator().manual_seed(0))
    return quantize_matrix(weight, scheme)


def rows(count: int, inputs: int) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(1)).bfloat16()


def assert_close(found: Tensor, x: Tensor, packed: Packed) -> None:
    expected = x.float() @ dequantize(packed).T
    assert found.shape == expected.shape
    assert float((found.float() - expected).norm() / expected.norm()) < BFLOAT16


@pytest.mark.parametrize(("columns", "inputs"), SHAPES)
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_tiled_weights_multiply_as_packed_ones(scheme, columns, inputs):
    packed, x = matrix(scheme, columns, inputs), rows(5, inputs)
    weight = cuda.tiled(packed, convert_for_cpu)
    found = cuda.small_batch(x, weight, torch.ops.aten._weight_int4pack_mm_for_cpu)
    assert_close(found, x, packed)


def test_the_form_for_cuda_has_the_even_input_in_the_upper_half(monkeypatch):
    """Source: pytorch/pytorch: aten/src/ATen/native/cuda/int4mm.cu takes (columns, inputs / 2) bytes."""
    given: list[Tensor] = []
    monkeypatch.setattr(
        torch.ops.aten, "_convert_weight_to_int4pack", lambda halves, tiles: given.append(halves)
    )
    cuda.convert_for_cuda(torch.tensor([[1, 2, 3, 15]], dtype=torch.int32), 2)
    assert given[0].tolist() == [[0x12, 0x3F]]
    assert given[0].dtype == torch.uint8


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("count", [1, 7, 63, 64, 200])
@pytest.mark.parametrize(("columns", "inputs"), SHAPES)
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_a_layer_on_the_gpu_equals_its_weights(scheme, columns, inputs, count):
    packed, x = matrix(scheme, columns, inputs), rows(count, inputs)
    layer = QuantizedLinear(packed, None).cuda()
    with torch.inference_mode():
        found = layer(x.cuda())
    assert_close(found.cpu(), x, packed)
