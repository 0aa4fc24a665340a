"""The torch operators: known to torch.compile and meta tensors, and the same without the native library."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from starcoder.kernels import available, describe, native
from starcoder.kernels.ops import native_linear, quantized_linear, quantized_rows
from starcoder.kernels.packed import dequantize
from starcoder.kernels.rounding import round_rows
from starcoder.quantize import QuantizedLinear, quantize, quantize_matrix

needs_native = pytest.mark.skipif(native.library() is None, reason="the native kernels are not built here")


def layer(scheme: str = "int4") -> QuantizedLinear:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(70, 33))
    quantize(net, "int4" if scheme == "int4" else "int8")
    quantized = net[0]
    assert isinstance(quantized, QuantizedLinear)
    return quantized


def test_describe_says_what_runs():
    assert available() == (native.library() is not None)
    assert describe().startswith(native.variants()[0] if available() else "none")


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_torch_accepts_the_operator(scheme):
    """torch's own checks: schema, fake tensors, autograd registration, dynamic shapes."""
    linear = layer(scheme)
    shape = linear.packed
    arguments = shape.scheme, shape.columns, shape.inputs, shape.group_size
    x = torch.randn(3, 70)
    torch.library.opcheck(quantized_linear, (x, linear.data, linear.scales, linear.bias, *arguments))


def test_meta_tensors_have_the_right_shape():
    linear = layer().to("meta")
    assert linear(torch.empty(2, 5, 70, device="meta")).shape == (2, 5, 33)


@needs_native
@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_without_the_library_torch_gives_the_same_to_8_bits(scheme, monkeypatch):
    """The fallback keeps activations as floats, so the two differ by the rounding of activations alone."""
    linear, x = layer(scheme), torch.randn(6, 70, generator=torch.Generator().manual_seed(1))
    with_native = linear(x)
    monkeypatch.setattr(native, "library", lambda: None)
    without = linear(x)
    assert not torch.equal(with_native, without)
    assert float((with_native - without).norm() / without.norm()) < 0.01


def test_other_dtypes_come_back_as_they_went_in():
    x = torch.randn(2, 3, 70, dtype=torch.bfloat16)
    out = layer()(x)
    assert (out.dtype, out.shape) == (torch.bfloat16, (2, 3, 33))


@needs_native
def test_no_rows_give_no_rows():
    packed = quantize_matrix(torch.randn(8, 32), "int4")
    assert native_linear(torch.empty(0, 32), packed).shape == (0, 8)


@pytest.mark.parametrize("scheme", ["int4", "int8"])
def test_rows_of_a_table_are_those_of_the_matrix(scheme):
    packed = quantize_matrix(torch.randn(50, 90, generator=torch.Generator().manual_seed(2)), scheme)
    which = torch.tensor([[49, 0], [16, 15]])
    assert torch.equal(quantized_rows(which, packed), dequantize(packed)[which])


@needs_native
@pytest.mark.parametrize("scheme", ["int4", "int8"])
@pytest.mark.parametrize("factors", [[1.0], [0.8, 1.0, 1.1]])
def test_native_rounding_is_that_of_torch(scheme, factors):
    if scheme == "int8":
        factors = [1.0]  # smaller scales would break the promise on neighbours
    weight = torch.randn(37, 150, generator=torch.Generator().manual_seed(3))
    weight[4] = 0
    mine, my_wrong, my_total = round_rows(weight, scheme, 64, factors)
    theirs, their_wrong, their_total = round_rows(weight, scheme, 64, factors, is_native=False)
    assert torch.equal(mine.data, theirs.data) and torch.equal(mine.scales, theirs.scales)
    assert (my_wrong, my_total) == pytest.approx((their_wrong, their_total), rel=1e-4)
    empty = torch.empty(0)
    assert replace(mine, data=empty, scales=empty) == replace(theirs, data=empty, scales=empty)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own compiler still uses it
def test_compiled_networks_call_the_operator():
    linear, x = layer(), torch.randn(4, 70, generator=torch.Generator().manual_seed(4))
    compiled = torch.compile(lambda x: torch.relu(linear(x)), fullgraph=True)
    torch.testing.assert_close(compiled(x), torch.relu(linear(x)))
