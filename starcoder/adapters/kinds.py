"""The kinds of adapters that PEFT offers, in PEFT's words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starcoder.adapters.settings import AdapterSettings, Layout
from starcoder.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from peft import PeftConfig

# Kinds that are LoRA with a switch; any other kind is PEFT's method of that name.
_SWITCHES: dict[str, dict[str, object]] = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
}
# These move a part of the base into the adapter when they start.
MOVES_BASE = ("pissa", "olora")
ON_QUANTIZED = ("lora", "rslora")
WITH_TOKENS = tuple(_SWITCHES)  # PEFT's config of no other kind has a word for rows of tokens


def new_config(settings: AdapterSettings, targets: list[str]) -> "PeftConfig":
    require_peft()
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


def targets_of(asked: Sequence[str], layout: Layout) -> list[str]:
    names = [name for parts in layout.values() for name in parts.names]
    last = sorted({name.rpartition(".")[2] for name in names})
    for target in asked:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            raise ConfigError(f"no layer to adapt is called {target!r}", f"the layers are {', '.join(last)}")
    return list(asked) or last


def require_peft() -> None:
    try:
        import peft  # noqa: F401
    except ImportError:
        raise MissingExtraError("adapters need PEFT", "train") from None
