"""`starcoder merge`: adapters and the model they were trained on, as one checkpoint."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from starcoder.cli.flags import Section
from starcoder.cli.options import OutputOptions
from starcoder.errors import ConfigError

# Flags of the original project's script, by what they are called here; "" is a positional argument.
OLD_NAMES = {"base-model-name-or-path": "model", "peft-model-path": ""}
_SAME_NAME = "auto"
BARE = {"push-to-hub": _SAME_NAME}


def run(
    *adapters: str,
    output: Annotated[Path | None, Parameter(alias="-o")] = None,
    model: Annotated[str | None, Parameter(alias="-m")] = None,
    adapter_weight: tuple[float, ...] = (),
    push_to_hub: str | None = None,
    printed: Annotated[OutputOptions, Section("Output")] = OutputOptions(),
) -> None:
    """Merge adapters into their model and write a checkpoint that every tool loads.

    The data type is the base's, tokenizer and chat template are the adapter's. Logits
    before and after are compared. Nothing leaves this machine without --push-to-hub.

    $ starcoder merge runs/mine --output ./merged

    $ starcoder merge runs/style runs/api --adapter-weight 0.7 --adapter-weight 0.3 --output ./both

    Args:
        adapters: Folders or Hugging Face ids of adapters of one model.
        output: Folder to write the checkpoint to; by default the name of --model with "-merged" behind it.
        model: Model that the adapters were trained on; by default the one they name.
        adapter_weight: Weight of an adapter, once for each adapter; 1 by default.
        push_to_hub: Also upload the folder under this name, or its own; a new repository is private.
    """
    if not adapters:
        raise ConfigError(
            "there is no adapter to merge", "give its folder, as in `starcoder merge runs/mine`"
        )
    if output is None and model is None:
        raise ConfigError("there is no folder to write to", "name one with --output, such as ./merged")
    output = Path(f"{model}-merged") if output is None else output
    if push_to_hub == _SAME_NAME:
        push_to_hub = str(output)
    if len(adapter_weight) not in (0, len(adapters)):
        raise ConfigError(
            f"there are {len(adapters)} adapters and {len(adapter_weight)} weights",
            "give --adapter-weight once for each adapter, in their order",
        )
    from starcoder import checkpoint  # imports torch

    printed.start_logging()

    weights = adapter_weight or (1.0,) * len(adapters)
    report = checkpoint.merge_folder(list(zip(adapters, weights, strict=True)), output, base=model)
    address = checkpoint.push(output, push_to_hub) if push_to_hub else None
    if printed.json:
        print(json.dumps(asdict(report) | {"address": address}))
        return
    print(
        f"{report.num_parameters / 1e6:,.1f}M parameters in {report.dtype} written to {output}; merged "
        f"logits differ by {report.logit_difference:.2g} of {report.largest_logit:.3g}"
    )
    if address:
        print(f"uploaded to {address}")
