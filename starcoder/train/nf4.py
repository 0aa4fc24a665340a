"""QLoRA's own rounding of a frozen base: bitsandbytes' 4-bit NormalFloat, layer by layer onto the device.

Source: Dettmers et al. 2023, arXiv:2305.14314; blocks of 64 weights whose scales are rounded too.
"""

import torch
from torch import nn

from starcoder.errors import ConfigError


def round_to_nf4(blocks: nn.Module, device: torch.device, dtype: torch.dtype) -> int:
    """Round the frozen linear layers below `blocks`, which stand anywhere, onto `device`; how many.

    Products are computed in `dtype`. What learns, such as adapters around them, stays as it is.

    Raises:
        ConfigError: bitsandbytes is not there.
    """
    try:
        from bitsandbytes import nn as bnb  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise ConfigError(
            "nf4 needs bitsandbytes", "pip install bitsandbytes, or --quantize int4, which needs nothing"
        ) from None
    frozen = [
        (path, layer)
        for path, layer in blocks.named_modules()
        if type(layer) is nn.Linear and not layer.weight.requires_grad
    ]
    for path, layer in frozen:
        with torch.device("meta"):
            rounded = bnb.Linear4bit(
                layer.in_features,
                layer.out_features,
                bias=layer.bias is not None,
                compute_dtype=dtype,
                quant_type="nf4",
            )
        weight = bnb.Params4bit(
            layer.weight.detach().to(dtype), requires_grad=False, quant_type="nf4", compress_statistics=True
        )
        rounded.weight = weight.to(device)  # which rounds it
        if layer.bias is not None:
            rounded.bias = nn.Parameter(layer.bias.detach().to(device, dtype), requires_grad=False)
        blocks.set_submodule(path, rounded)
    return len(frozen)
