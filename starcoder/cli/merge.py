"""`starcoder merge`: adapters and the model they were trained on, as one checkpoint."""

import json as json_format
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from starcoder.errors import ConfigError


def run(
    *adapters: str,
    output: Annotated[Path, Parameter(alias="-o")],
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    adapter_weight: tuple[float, ...] = (),
    push_to_hub: str | None = None,
    json: Annotated[bool, Parameter(show_default=False)] = False,
) -> None:
    """Write a checkpoint with adapters merged in, which every tool loads like any other.

    The dtype is the base's, the tokenizer and chat template the adapter's. Logits
    before and after are compared. Nothing leaves this machine without --push-to-hub.

    $ starcoder merge runs/mine --output ./merged

    $ starcoder merge runs/style runs/api --adapter-weight 0.7 --adapter-weight 0.3 --output ./both

    Args:
        adapters: Folders or Hugging Face ids of adapters of one model.
        output: The new folder.
        model: The model that they were trained on; the one they name if not given.
        adapter_weight: How much an adapter counts, once for each adapter; 1 if not given.
        push_to_hub: Also upload the folder under this name, to a private repository if it is new.
        json: Print one JSON document instead of text.
    """
    if not adapters:
        raise ConfigError(
            "there is no adapter to merge", "give its folder, as in `starcoder merge runs/mine`"
        )
    if len(adapter_weight) not in (0, len(adapters)):
        raise ConfigError(
            f"there are {len(adapters)} adapters and {len(adapter_weight)} weights",
            "give --adapter-weight once for each adapter, in their order",
        )
    from starcoder import checkpoint  # imports torch

    weights = adapter_weight or (1.0,) * len(adapters)
    report = checkpoint.merge_folder(list(zip(adapters, weights, strict=True)), output, base=model)
    address = checkpoint.push(output, push_to_hub) if push_to_hub else None
    if json:
        print(json_format.dumps(asdict(report) | {"address": address}))
        return
    print(
        f"{report.num_parameters / 1e6:,.1f}M parameters in {report.dtype} written to {output}; merged "
        f"logits differ by {report.logit_difference:.2g} of {report.largest_logit:.3g}"
    )
    if address:
        print(f"uploaded to {address}")
