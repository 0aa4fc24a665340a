"""Hugging Face folder or hub id <-> `Transformer`: the only place that knows their names.

No code of a checkpoint ever runs and nothing is unpickled but tensors: weights are safetensors, or `.bin`
files through `torch.load(weights_only=True)`; besides them only `config.json` and the index are read.
"""

from starcoder.checkpoint.gguf import GgufReport, GgufType, export_gguf
from starcoder.checkpoint.hub import BUNDLED, resolve, resolve_config
from starcoder.checkpoint.packed import scheme_of
from starcoder.checkpoint.quantizing import quantize_folder
from starcoder.checkpoint.reading import load, quantize, read_config
from starcoder.checkpoint.writing import save

__all__ = ["BUNDLED", "GgufReport", "GgufType", "export_gguf", "load", "quantize", "quantize_folder"]
__all__ += ["read_config", "resolve", "resolve_config", "save", "scheme_of"]
