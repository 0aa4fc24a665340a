"""One adapter on one model: add, train, switch off, weigh, merge, save and load."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from starcoder.adapters.files import read_config, read_weights, write
from starcoder.adapters.kinds import MOVES_BASE, ON_QUANTIZED, WITH_TOKENS, new_config, targets_of
from starcoder.adapters.settings import AdapterSettings, Layout, Selectable, Tables
from starcoder.adapters.tokens import TokenRows, take_rows
from starcoder.adapters.tree import Joined, fused, take_apart
from starcoder.errors import CheckpointError, ConfigError, StarcoderError

if TYPE_CHECKING:
    from peft import PeftConfig

_NAME = "default"  # PEFT's own for the only adapter of a model
_PREFIX = "base_model.model."


class Adapter:
    """One adapter on one model. Made by `add` and `load`; the model runs with it as it did without."""

    def __init__(
        self,
        model: nn.Module,
        layout: Layout,
        config: "PeftConfig",
        tokens: TokenRows,
        *,
        moves_base: bool = False,
    ):
        """Changes `model`: its weights are frozen, targeted layers wrapped and `tokens` put on."""
        self._model, self._layout, self._config = model, layout, config
        self._base = config.base_model_name_or_path
        config.base_model_name_or_path = None  # PEFT would ask the hub for its config.json
        model.requires_grad_(False)
        self._tree = take_apart(model, layout)
        try:
            _inject(self._tree, config, model)
        except ConfigError:
            self._put_together()
            raise
        self._tree.train(model.training)
        self._put_back()
        self._start = {n: x.clone() for n, x in self._own_state().items()} if moves_base else {}
        self._tokens = tokens
        tokens.put_on(is_learning=not config.inference_mode)

    @property
    def vocab_size(self) -> int:
        """How many tokens the model has with this adapter."""
        return self._tokens.vocab_size

    @property
    def base(self) -> str | None:
        """The model that the file says it was trained on."""
        return self._base

    def parameters(self) -> list[nn.Parameter]:
        """What is trained, and nothing of the base."""
        own = [x for n, x in self._tree.named_parameters() if _is_adapter(n, self._config)]
        return own + self._tokens.parameters()

    def state(self) -> dict[str, Tensor]:
        """The adapter's tensors by their names in PEFT's file; sharded ones are gathered on every rank."""
        return self._own_state() | self._token_state()

    def _token_state(self) -> dict[str, Tensor]:
        return {_PREFIX + name: _gathered(tensor) for name, tensor in self._tokens.state().items()}

    def _own_state(self) -> dict[str, Tensor]:
        """Without rows of tokens."""
        from peft import get_peft_model_state_dict

        found = cast(dict[str, Tensor], get_peft_model_state_dict(self._tree, adapter_name=_NAME))
        return {_PREFIX + name: _gathered(tensor.detach()) for name, tensor in found.items()}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take the tensors of `state`.

        Raises:
            CheckpointError: some are missing, unknown or of another shape.
        """
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
        rows = self._tokens.state()
        self._tokens.load_state({name: state.pop(name) for name in rows})
        self._load_own_state(state)

    def _load_own_state(self, state: Mapping[str, Tensor]) -> None:
        from peft import set_peft_model_state_dict

        state = {name.removeprefix(_PREFIX): tensor for name, tensor in state.items()}
        set_peft_model_state_dict(self._tree, state, adapter_name=_NAME)

    def save(self, folder: Path, *, base: str | None = None) -> None:
        """Write adapter_config.json and adapter_model.safetensors as PEFT does, each whole or not at all.

        `base` is the hub id or folder of the model below. What PiSSA and OLoRA moved out of the base is
        written as LoRA of twice the rank, so that the file goes on the base as it is.
        """
        state, config = self._own_state(), copy(self._config)
        config.base_model_name_or_path = base or self.base
        config.inference_mode = True
        if self._start:
            state = {name: _less(name, tensor, self._start[name]) for name, tensor in state.items()}
            _double_rank(config)
        if rows := self._token_state():
            state |= rows
            config.trainable_token_indices = self._tokens.indices  # type: ignore[attr-defined]
        broken = [name for name, tensor in state.items() if not bool(tensor.isfinite().all())]
        assert state and not broken, f"an adapter is saved whole and finite, but {broken[:1]} is not"
        write(folder, state, config)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Inside, the model is the one below the adapter."""
        trained = {n: x.clone() for n, x in self._own_state().items()} if self._start else {}
        if self._start:
            self._load_own_state(self._start)
        else:
            self._enable(False)
        self._tokens.enable(False)
        try:
            yield
        finally:
            if self._start:
                self._load_own_state(trained)
            else:
                self._enable(True)
            self._tokens.enable(True)

    def weigh(self, weight: float) -> None:
        """Let the adapter count `weight` times.

        Raises:
            ConfigError: it is not LoRA, or holds rows of tokens.
        """
        from peft.tuners.lora import LoraLayer
        from peft.tuners.tuners_utils import BaseTunerLayer

        if getattr(self._config, "use_dora", False) or str(self._config.peft_type) != "PeftType.LORA":
            raise ConfigError("only plain LoRA can be weighted", "leave this adapter's weight at 1")
        if self._tokens.indices:
            raise ConfigError(
                "an adapter with tokens of its own cannot be weighted, nor mixed with others",
                "merge it alone, or first, and train the others on what comes out",
            )
        for layer in self._tree.modules():
            if isinstance(layer, LoraLayer) and isinstance(layer, BaseTunerLayer):
                layer.scaling[_NAME] *= weight

    def merge(self) -> None:
        """Add the adapter to the model's weights, in their dtype; the model is then as before `add`.

        But for its vocabulary: tables that grew stay so.

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
        self._tokens.merge()
        self.remove()

    def remove(self) -> None:
        """Take the adapter off; the model is then as before `add`, with what was merged."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        for path, layer in list(self._tree.named_modules()):
            if isinstance(layer, BaseTunerLayer):
                self._tree.set_submodule(path, layer.get_base_layer())
        self._tokens.remove()
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
                self._model.set_submodule(path, Joined(layers, parts.order))

    def _put_together(self) -> None:
        """Bare layers to their places in the model, whole."""
        for path, parts in self._layout.items():
            layers = [self._tree.get_submodule(name) for name in parts.names]
            if parts.is_whole:
                self._model.set_submodule(path, layers[0])
            elif not isinstance(layers[0], nn.Linear):
                joined = Joined(layers, parts.order)
                self._model.set_submodule(path, joined)
            else:
                self._model.set_submodule(path, fused(cast(list[nn.Linear], layers), parts.order))


def add(model: nn.Module, settings: AdapterSettings, layout: Layout, tables: Tables) -> Adapter:
    """A new adapter on `model`, whose own weights are frozen.

    Untrained it changes nothing, but for kinds that PEFT starts at random, such as fourierft; rows that no
    table has are the mean of those it has.

    Raises:
        ConfigError: PEFT is missing, has no such kind or gives it no tokens, or no layer is called as
            `targets` say.
    """
    config = new_config(settings, targets_of(settings.targets, layout))
    quantized = [p for p in layout if not isinstance(model.get_submodule(p), nn.Linear)]
    if quantized and settings.kind not in ON_QUANTIZED:
        raise ConfigError(
            f"an adapter of kind {settings.kind} does not go on quantized weights", "choose lora or rslora"
        )
    if settings.tokens and settings.kind not in WITH_TOKENS:
        raise ConfigError(
            f"an adapter of kind {settings.kind} holds no rows of tokens", f"choose {', '.join(WITH_TOKENS)}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        tokens = TokenRows(model, tables, dict.fromkeys(tables.learning, settings.tokens))
        return Adapter(model, layout, config, tokens, moves_base=settings.kind in MOVES_BASE)


def load(
    model: nn.Module, folder: Path, layout: Layout, tables: Tables, *, trainable: bool = False
) -> Adapter:
    """The adapter of PEFT's `folder` on `model`.

    Raises:
        CheckpointError: a file is missing or broken, or the adapter is of another model.
        ConfigError: PEFT is missing.
    """
    config, indices = read_config(folder, layout, tables)
    config.inference_mode = not trainable
    state = {name.removeprefix(_PREFIX): tensor for name, tensor in read_weights(folder).items()}
    try:
        rows = take_rows(state, indices, model, tables)
        tokens = TokenRows(model, tables, rows)
        adapter = Adapter(model, layout, config, tokens)
    except StarcoderError as error:
        raise CheckpointError(f"'{folder}': {error.message}", error.hint) from None
    tokens.fill(rows)
    try:
        adapter.load_state(state | tokens.state())
    except CheckpointError as error:
        adapter.remove()
        raise CheckpointError(f"'{folder}': {error.message}", error.hint) from None
    return adapter


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


def _less(name: str, trained: Tensor, start: Tensor) -> Tensor:
    """The two ranks of B A - B0 A0, side by side."""
    if ".lora_A." in name:
        return torch.cat([trained, start])
    return torch.cat([trained, -start], dim=1)


def _double_rank(config: "PeftConfig") -> None:
    config.r, config.lora_alpha = 2 * config.r, 2 * config.lora_alpha  # type: ignore[attr-defined]
    config.init_lora_weights = True  # type: ignore[attr-defined]
