"""Hugging Face folder or hub id <-> `Transformer`: the only place that knows their names.

No code of a checkpoint ever runs and nothing is unpickled but tensors: weights are safetensors, or `.bin`
files through `torch.load(weights_only=True)`; besides them only `config.json` and the index are read.
"""

from starcoder.checkpoint.adapter import add_adapter, load_adapter
from starcoder.checkpoint.files import read_config, scheme_of
from starcoder.checkpoint.gguf import GgufReport, GgufType, export_gguf
from starcoder.checkpoint.hub import BUNDLED, push, resolve, resolve_adapter, resolve_config, resolve_text
from starcoder.checkpoint.merge import MergeReport, merge_folder
from starcoder.checkpoint.reader import default_scheme, load, quantize
from starcoder.checkpoint.writer import quantize_folder, save

__all__ = [
    "BUNDLED",
    "GgufReport",
    "GgufType",
    "MergeReport",
    "add_adapter",
    "default_scheme",
    "export_gguf",
    "load",
]
__all__ += ["load_adapter", "merge_folder", "push", "quantize", "quantize_folder", "read_config", "resolve"]
__all__ += ["resolve_adapter", "resolve_config", "resolve_text", "save", "scheme_of"]
