"""Adapters (LoRA and its kin) on linear layers, through PEFT: add, train, switch off, merge, save and load.

Knows linear layers, not StarCoder: a `Layout` says under which names and in which order the file keeps the
rows of each. Layers that the file keeps in parts are taken apart while the adapter is on, so that every kind
of adapter is exactly what PEFT makes of transformers' model.
Source of the format: PEFT `utils/save_and_load.py`.
"""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from starcoder.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from peft import PeftConfig

_NAME = "default"  # PEFT's own for the only adapter of a model
_PREFIX = "base_model.model."
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"

# Kinds that are LoRA with a switch; any other kind is PEFT's method of that name.
_SWITCHES: dict[str, dict[str, object]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}
# These move a part of the base into the adapter when they start.
_MOVES_BASE = ("pissa", "olora")
_ON_QUANTIZED = ("lora", "rslora")


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterSettings:
    """Which adapter, and on what. `kind` is lora, dora, rslora, pissa, olora or a method of PEFT (loha, oft).

    `targets` are names of the file's layers or ends of them (q_proj, attn.c_proj); empty is every linear
    layer but the head. What a kind has no word for (a rank, a dropout) is left out; `options` are PEFT's
    own words.
    """

    kind: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ()
    seed: int = 0
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"an adapter's rank is {self.rank}; expected at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"an adapter's dropout is {self.dropout}; expected 0 to below 1")


@dataclass(frozen=True, slots=True)
class Parts:
    """How a file keeps one linear layer: layers `names` of `sizes` rows each, in this order.

    `order`, if the file's rows are not in ours: row i of the file is our row `order[i]`.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    order: tuple[int, ...] | None = None

    @property
    def is_whole(self) -> bool:
        return len(self.names) == 1 and self.order is None


Layout = Mapping[str, Parts]
"""Our path of each linear layer that can be adapted -> how the file keeps it."""


@runtime_checkable
class Selectable(Protocol):
    """A linear layer of another kind, such as a quantized one."""

    def select(self, rows: Tensor) -> nn.Module:
        """The layer of these output rows."""


class Adapter:
    """One adapter on one model. Made by `add` and `load`; the model runs with it as it did without."""

    def __init__(self, model: nn.Module, layout: Layout, config: "PeftConfig", *, moves_base: bool = False):
        """Changes `model`: its weights are frozen and targeted layers wrapped."""
        self._model, self._layout, self._config = model, layout, config
        self._base = config.base_model_name_or_path
        config.base_model_name_or_path = None  # PEFT would ask the hub for its config.json
        model.requires_grad_(False)
        self._tree = _take_apart(model, layout)
        try:
            _inject(self._tree, config, model)
        except ConfigError:
            self._put_together()
            raise
        self._tree.train(model.training)
        self._put_back()
        self._start = {n: x.clone() for n, x in self.state().items()} if moves_base else {}

    @property
    def base(self) -> str | None:
        """The model that the file says it was trained on."""
        return self._base

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, and nothing of the base."""
        return [x for n, x in self._tree.named_parameters() if _is_adapter(n, self._config)]

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors by their names in PEFT's file; sharded ones are gathered on every rank."""
        from peft import get_peft_model_state_dict

        found = cast(dict[str, Tensor], get_peft_model_state_dict(self._tree, adapter_name=_NAME))
        return {_PREFIX + name: _gathered(tensor.detach()) for name, tensor in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of `state`.

        Raises:
            CheckpointError: some are missing, unknown or of another shape.
        """
        from peft import set_peft_model_state_dict

        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
        own = {name.removeprefix(_PREFIX): tensor for name, tensor in self.state().items()}
        hint = "is the adapter of this model?"
        if wrong := sorted(own.keys() ^ state.keys()):
            word = "lacks" if wrong[0] in own else "has"
            raise CheckpointError(f"the adapter {word} the tensor {wrong[0]!r}", hint)
        for name, tensor in state.items():
            if tensor.shape != own[name].shape:
                found, wanted = tuple(tensor.shape), tuple(own[name].shape)
                raise CheckpointError(f"the adapter's {name!r} is of shape {found}, not {wanted}", hint)
        set_peft_model_state_dict(self._tree, dict(state), adapter_name=_NAME)

    def save(self, folder: Path, *, base: str | None = None) -> None:
        """Write adapter_config.json and adapter_model.safetensors as PEFT does, each whole or not at all.

        `base` is the hub id or folder of the model below. What PiSSA and OLoRA moved out of the base is
        written as LoRA of twice the rank, so that the file goes on the base as it is.
        """
        from safetensors.torch import save_file

        state, config = self.state(), copy(self._config)
        config.base_model_name_or_path = base or self.base
        config.inference_mode = True
        if self._start:
            state = {name: _less(name, tensor, self._start[name]) for name, tensor in state.items()}
            _double_rank(config)
        broken = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
        assert state and not broken, f"an adapter is saved whole and finite, but {broken[:1]} is not"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        partial = folder / f".{WEIGHTS}.part"
        save_file(tensors, partial, metadata={"format": "pt"})
        partial.chmod(0o644)
        partial.replace(folder / WEIGHTS)
        partial = folder / f".{CONFIG}.part"
        partial.write_text(json.dumps(_plain(config.to_dict()), indent=2, sort_keys=True) + "\n", "utf-8")
        partial.replace(folder / CONFIG)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the one below the adapter."""
        trained = {n: x.clone() for n, x in self.state().items()} if self._start else {}
        if self._start:
            self.load_state(self._start)
        else:
            self._enable(False)
        try:
            yield
        finally:
            if self._start:
                self.load_state(trained)
            else:
                self._enable(True)

    def weigh(self, weight: float) -> None:
        """Let the adapter count `weight` times.

        Raises:
            ConfigError: it is not LoRA.
        """
        from peft.tuners.lora import LoraLayer
        from peft.tuners.tuners_utils import BaseTunerLayer

        if getattr(self._config, "use_dora", False) or str(self._config.peft_type) != "PeftType.LORA":
            raise ConfigError("only plain LoRA can be weighted", "leave this adapter's weight at 1")
        for layer in self._tree.modules():
            if isinstance(layer, LoraLayer) and isinstance(layer, BaseTunerLayer):
                layer.scaling[_NAME] *= weight

    def merge(self) -> None:
        """Add the adapter to the model's weights, in their dtype; the model is then as before `add`.

        Raises:
            ConfigError: the model is quantized.
        """
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in self._tree.modules():
            if isinstance(layer, BaseTunerLayer):
                if not isinstance(layer.get_base_layer(), nn.Linear):
                    raise ConfigError(
                        "an adapter cannot be merged into quantized weights",
                        "merge it into the model that they were made from, and quantize that",
                    )
                layer.merge(safe_merge=True)
        self.remove()

    def remove(self) -> None:
        """Take the adapter off; the model is then as before `add`, with what was merged."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, layer in list(self._tree.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                self._tree.set_submodule(path, layer.get_base_layer())
        self._put_together()

    def _enable(self, enabled: bool) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for layer in self._tree.modules():
            if isinstance(layer, BaseTunerLayer):
                trainable = [p.requires_grad for p in layer.parameters()]
                layer.enable_adapters(enabled)  # also thaws and freezes, which is the trainer's to say
                for p, was in zip(layer.parameters(), trainable, strict=True):
                    p.requires_grad_(was)

    def _put_back(self) -> None:
        """Wrapped layers to their places in the model."""
        for path, parts in self._layout.items():
            layers = [self._tree.get_submodule(name) for name in parts.names]
            if parts.is_whole:
                self._model.set_submodule(path, layers[0])
            else:
                self._model.set_submodule(path, _Joined(layers, parts.order))

    def _put_together(self) -> None:
        """Bare layers to their places in the model, whole."""
        for path, parts in self._layout.items():
            layers = [self._tree.get_submodule(name) for name in parts.names]
            if parts.is_whole:
                self._model.set_submodule(path, layers[0])
            elif not isinstance(layers[0], nn.Linear):
                joined = _Joined(layers, parts.order)
                self._model.set_submodule(path, joined)
            else:
                self._model.set_submodule(path, _fused(cast(list[nn.Linear], layers), parts.order))


def add(model: nn.Module, settings: AdapterSettings, layout: Layout) -> Adapter:
    """A new adapter on `model`, whose own weights are frozen.

    Untrained it changes nothing, but for kinds that PEFT starts at random, such as fourierft.

    Raises:
        ConfigError: PEFT is missing or has no such kind, or no layer is called as `targets` say.
    """
    config = _new_config(settings, _targets(settings.targets, layout))
    quantized = [p for p in layout if not isinstance(model.get_submodule(p), nn.Linear)]
    if quantized and settings.kind not in _ON_QUANTIZED:
        raise ConfigError(
            f"an adapter of kind {settings.kind} does not go on quantized weights", "choose lora or rslora"
        )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return Adapter(model, layout, config, moves_base=settings.kind in _MOVES_BASE)


def load(model: nn.Module, folder: Path, layout: Layout, *, trainable: bool = False) -> Adapter:
    """The adapter of PEFT's `folder` on `model`.

    Raises:
        CheckpointError: a file is missing or broken, or the adapter is of another model.
        ConfigError: PEFT is missing.
    """
    config = _read_config(folder, layout)
    config.inference_mode = not trainable
    state = _read_weights(folder)
    try:
        adapter = Adapter(model, layout, config)
    except ConfigError as error:
        raise CheckpointError(f"'{folder}': {error.message}", error.hint) from None
    try:
        adapter.load_state(state)
    except CheckpointError as error:
        adapter.remove()
        raise CheckpointError(f"'{folder}': {error.message}", error.hint) from None
    return adapter


class _Joined(nn.Module):
    """A linear layer in the parts in which files keep it."""

    def __init__(self, parts: Sequence[nn.Module], order: Sequence[int] | None):
        super().__init__()
        self.parts = nn.ModuleList(parts)
        back = None if order is None else torch.tensor(order).argsort()
        self.register_buffer("back", back, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.cat([part(x) for part in self.parts], dim=-1)
        back = cast(Tensor | None, self.back)
        return out if back is None else out.index_select(-1, back.to(out.device))


def _take_apart(model: nn.Module, layout: Layout) -> nn.Module:
    """A tree of the file's names over the layers, in which PEFT finds what it looks for."""
    tree = nn.Module()
    for path, parts in layout.items():
        layer = model.get_submodule(path)
        for name, part in zip(parts.names, _split(layer, parts), strict=True):
            *parents, last = name.split(".")
            place = tree
            for parent in parents:
                if not hasattr(place, parent):
                    place.add_module(parent, nn.Module())
                place = place.get_submodule(parent)
            place.add_module(last, part)
    return tree


def _split(layer: nn.Module, parts: Parts) -> list[nn.Module]:
    if isinstance(layer, _Joined):
        if any(not isinstance(part, nn.Linear | Selectable) for part in layer.parts):
            raise ConfigError("the model has an adapter already", "merge it first")
        return list(layer.parts)
    if not isinstance(layer, nn.Linear | Selectable):
        raise ConfigError("the model has an adapter already", "merge it first")
    if parts.is_whole:
        return [layer]
    if isinstance(layer, Selectable):
        rows = torch.tensor(parts.order) if parts.order else torch.arange(sum(parts.sizes))
        return [layer.select(part) for part in torch.split(rows, list(parts.sizes))]
    weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
    if parts.order is not None:
        rows = torch.tensor(parts.order, device=weight.device)
        weight, bias = weight[rows], None if bias is None else bias[rows]
    weights = torch.split(weight, list(parts.sizes))
    biases = [None] * len(weights) if bias is None else torch.split(bias, list(parts.sizes))
    return [_linear(w, b) for w, b in zip(weights, biases, strict=True)]


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.size(1), weight.size(0), bias=bias is not None)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias, requires_grad=False)
    return layer


def _fused(layers: list[nn.Linear], order: tuple[int, ...] | None) -> nn.Linear:
    weight = torch.cat([layer.weight.detach() for layer in layers])
    has_bias = layers[0].bias is not None
    bias = torch.cat([layer.bias.detach() for layer in layers]) if has_bias else None
    if order is not None:
        back = torch.tensor(order, device=weight.device).argsort()
        weight, bias = weight[back], None if bias is None else bias[back]
    return _linear(weight, bias)


def _inject(tree: nn.Module, config: "PeftConfig", model: nn.Module) -> None:
    """Wrap the tree's targeted layers. Adapters of 16-bit weights are float32, which small steps need."""
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import Linear as LoraLinear

    others = {type(layer) for layer in tree.modules() if isinstance(layer, Selectable)}
    if isinstance(config, LoraConfig) and others:
        config._register_custom_module(dict.fromkeys(others, LoraLinear))
    try:
        with warnings.catch_warnings():
            # It warns of layers that it does not know, such as ours, and of ranks above a layer's size.
            warnings.simplefilter("ignore")
            inject_adapter_in_model(config, tree, adapter_name=_NAME)
    except (ValueError, TypeError, AttributeError) as error:
        kind = str(config.peft_type).rpartition(".")[2].lower()
        raise ConfigError(f"PEFT refuses the adapter {kind}: {str(error).splitlines()[0]}") from None
    for name, parameter in tree.named_parameters():
        if _is_adapter(name, config) and parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()


def _is_adapter(name: str, config: "PeftConfig") -> bool:
    from peft import PeftType
    from peft.mapping import PEFT_TYPE_TO_PREFIX_MAPPING

    assert config.peft_type is not None, "made from a method's own class"
    prefix: str = PEFT_TYPE_TO_PREFIX_MAPPING[PeftType(config.peft_type)]
    return prefix in name


def _gathered(tensor: Tensor) -> Tensor:
    full: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full


def _targets(asked: Sequence[str], layout: Layout) -> list[str]:
    names = [name for parts in layout.values() for name in parts.names]
    last = sorted({name.rpartition(".")[2] for name in names})
    for target in asked:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"no layer to adapt is called {target!r}", f"the layers are {', '.join(last)}")
    return list(asked) or last


def _new_config(settings: AdapterSettings, targets: list[str]) -> "PeftConfig":
    _require_peft()
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
    from peft.utils import PeftType

    is_lora = settings.kind in _SWITCHES
    method = "LORA" if is_lora else settings.kind.upper()
    kinds = [
        k for k, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items() if not getattr(tuner, "uses_shared_state", True)
    ]
    if method not in kinds:
        offered = ", ".join([*_SWITCHES, *sorted(k.value.lower() for k in kinds if k.value != "LORA")])
        raise ConfigError(f"there is no adapter of kind {settings.kind!r}", f"PEFT offers {offered}")
    config_type = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(method)]
    words: dict[str, Any] = {"target_modules": targets, "task_type": "CAUSAL_LM"}
    alpha = int(settings.alpha) if settings.alpha == int(settings.alpha) else settings.alpha
    known = config_type.__dataclass_fields__
    for name, value in (("r", settings.rank), ("lora_alpha", alpha), ("alpha", alpha)):
        words |= {name: value} if name in known else {}
    words |= {name: settings.dropout for name in known if name.endswith(("lora_dropout", "module_dropout"))}
    words |= (_SWITCHES[settings.kind] if is_lora else {}) | dict(settings.options)
    try:
        return config_type(**words)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"PEFT refuses these settings: {str(error).splitlines()[0]}") from None


def _read_config(folder: Path, layout: Layout) -> "PeftConfig":
    _require_peft()
    from peft import PeftConfig

    path = folder / CONFIG
    if not path.is_file():
        raise CheckpointError(f"'{folder}' has no {CONFIG}, so it is not an adapter")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of words that a newer PEFT has
            config: PeftConfig = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from None
    for word in ("modules_to_save", "trainable_token_indices"):
        if getattr(config, word, None):
            raise CheckpointError(
                f"'{path}' has {word}: weights beside the adapter, which are not supported",
                "merge it with PEFT, and give the merged model",
            )
    if getattr(config, "target_modules", None) == "all-linear":
        config.target_modules = _targets((), layout)  # type: ignore[attr-defined]
    return config


def _read_weights(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = folder / WEIGHTS
    if not path.is_file():
        hint = "adapters in .bin files are not read; save it again with a newer PEFT"
        raise CheckpointError(f"'{folder}' has no {WEIGHTS}", hint)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"'{path}' cannot be read: {str(error).splitlines()[0]}") from None


def _less(name: str, trained: Tensor, start: Tensor) -> Tensor:
    """The two ranks of B A - B0 A0, side by side."""
    if ".lora_A." in name:
        return torch.cat([trained, start])
    return torch.cat([trained, -start], dim=1)


def _double_rank(config: "PeftConfig") -> None:
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha  # type: ignore[attr-defined]
    config.init_lora_weights = True  # type: ignore[attr-defined]


def _plain(value: object) -> object:
    """As JSON holds it; sets in a fixed order."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(v) for v in value)  # type: ignore[type-var]
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return getattr(value, "value", value)


def _require_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError:
        raise ConfigError("adapters need PEFT", "pip install 'starcoder[train]'") from None
