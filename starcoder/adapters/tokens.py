"""Rows of single tokens that learn beside an adapter; all other rows of embedding and head stay as they are.

In files they are PEFT's `trainable_token_indices`, of its three forms the one with the least surprise: it
holds the rows and nothing else (`modules_to_save` and `save_embedding_layers` hold both whole tables), and
PEFT puts them onto transformers' resized model whatever resizing left there. The other two are read: rows
that differ from the base's are those that learned.
Rows stand apart from the tables, so that these may be rounded, mapped from a file or shared.
Limits: PEFT gives this form to LoRA and its switches alone. Two adapters' rows cannot be mixed.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from starcoder.adapters.settings import Dequantizable, Tables
from starcoder.errors import CheckpointError, ConfigError

Rows = Mapping[str, Mapping[int, Tensor]]
"""File's name of a table -> id of a token -> its row (D,)."""
_DELTA = "token_adapter.trainable_tokens_delta"


class TrainableTokens(nn.Module):
    """The rows of some tokens (n, D), in float32, which small steps need."""

    ids: Tensor
    start: Tensor

    def __init__(self, ids: Sequence[int], table: nn.Module, num_own: int):
        """They start as the table's own rows; those beyond its `num_own` rows as the mean of these."""
        super().__init__()
        own = _values(table)
        self.num_own, self.num_inside = num_own, sum(id < num_own for id in ids)
        start = own.mean(0, dtype=torch.float32).repeat(len(ids), 1)
        start[: self.num_inside] = own[list(ids[: self.num_inside])].float()
        self.is_on = True
        self.weight = nn.Parameter(start.clone())
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("ids", torch.tensor(ids, device=own.device), persistent=False)

    @property
    def rows(self) -> Tensor:
        return self.weight if self.is_on else self.start


class TokenEmbedding(nn.Module):
    """A table of embeddings under the rows that learn."""

    def __init__(self, table: nn.Module, learned: TrainableTokens):
        super().__init__()
        self.table, self.learned = table, learned

    def forward(self, tokens: Tensor) -> Tensor:
        ids = self.learned.ids
        at = torch.searchsorted(ids, tokens).clamp(max=ids.numel() - 1)
        own: Tensor = self.table(tokens.clamp(max=self.learned.num_own - 1))
        rows = F.embedding(at, self.learned.rows).to(own.dtype)
        return torch.where((ids[at] == tokens)[..., None], rows, own)


class TokenHead(nn.Module):
    """A head under the rows that learn."""

    def __init__(self, table: nn.Module, learned: TrainableTokens):
        super().__init__()
        self.table, self.learned = table, learned
        self.in_features = learned.weight.size(1)
        self.out_features = learned.num_own + len(learned.ids) - learned.num_inside

    def forward(self, x: Tensor) -> Tensor:
        own: Tensor = self.table(x)
        inside = self.learned.num_inside
        new = F.linear(x, self.learned.rows.to(x.dtype)).to(own.dtype)
        if inside:
            own = own.index_copy(-1, self.learned.ids[:inside], new[..., :inside])
        return torch.cat([own, new[..., inside:]], dim=-1)


class TokenRows:
    """What learns over both tables of one model, whose vocabulary grows to the largest id."""

    def __init__(self, model: nn.Module, tables: Tables, ids: Mapping[str, Collection[int]]):
        """`ids` are by the file's names of tables, the embedding's if they are tied. Changes nothing yet."""
        self._model, self._tables = model, tables
        num_own = cast(int, model.get_submodule(tables.paths[1]).out_features)
        self.vocab_size = max(num_own, *(id + 1 for wanted in ids.values() for id in wanted), 0)
        # Both tables have every row: those beyond one that only the other learns are among its own.
        beyond = range(num_own, self.vocab_size)
        wanted = {name: sorted({*ids.get(name, ()), *beyond}) for name in tables.learning}
        self._learned = {
            name: TrainableTokens(wanted[name], model.get_submodule(path), num_own)
            for name, path in zip(tables.learning, tables.paths, strict=False)
            if wanted[name]
        }

    def put_on(self, *, is_learning: bool) -> None:
        """Wrap the model's tables in place."""
        owners = (self._tables.learning[0], self._tables.learning[-1])
        for path, owner, kind in zip(self._tables.paths, owners, (TokenEmbedding, TokenHead), strict=True):
            if owner in self._learned:
                over = kind(self._model.get_submodule(path), self._learned[owner].requires_grad_(is_learning))
                self._model.set_submodule(path, over.train(self._model.training))

    @property
    def indices(self) -> dict[str, list[int]]:
        """As PEFT's config has them: by the last word of the table's name."""
        return {name.rpartition(".")[2]: x.ids.tolist() for name, x in self._learned.items()}

    def parameters(self) -> list[nn.Parameter]:
        return [learned.weight for learned in self._learned.values()]

    def state(self) -> dict[str, Tensor]:
        """By PEFT's names, without its prefix."""
        return {f"{name}.{_DELTA}": learned.weight.detach() for name, learned in self._learned.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        for name, learned in self._learned.items():
            learned.weight.copy_(state[f"{name}.{_DELTA}"])

    @torch.no_grad()
    def fill(self, rows: Rows) -> None:
        """Take these rows."""
        for name, of_table in rows.items():
            learned, ids = self._learned[name], torch.tensor(list(of_table))
            at = torch.searchsorted(learned.ids, ids.to(learned.ids.device))
            learned.weight[at] = torch.stack(list(of_table.values())).to(learned.weight)

    def enable(self, is_on: bool) -> None:
        for learned in self._learned.values():
            learned.is_on = is_on

    def merge(self) -> None:
        """Write the rows into the tables, in their dtype, which grow; the model is plain afterwards.

        Raises:
            ConfigError: the tables are rounded.
        """
        overs = [self._model.get_submodule(path) for path in self._tables.paths]
        merged = {
            id(over.learned): _merged(over.table, over.learned)
            for over in overs
            if isinstance(over, TokenEmbedding | TokenHead)
        }
        for over in overs:
            if isinstance(over, TokenEmbedding | TokenHead):
                _set_rows(over.table, merged[id(over.learned)])
        self.remove()

    def remove(self) -> None:
        """The tables back in their places."""
        for path in self._tables.paths:
            over = self._model.get_submodule(path)
            if isinstance(over, TokenEmbedding | TokenHead):
                self._model.set_submodule(path, over.table)


def take_rows(state: dict[str, Tensor], indices: object, model: nn.Module, tables: Tables) -> Rows:
    """Take all that is of tables out of `state`, whose names lack PEFT's prefix.

    `indices` are `trainable_token_indices` of the config: a list of the embedding's, or by table.

    Raises:
        CheckpointError: rows and ids do not fit, or embedding and head differ where the model ties them.
        ConfigError: the model has such rows already.
    """
    found: dict[str, Mapping[int, Tensor]] = {}
    for name, path in zip(tables.names, tables.paths, strict=True):
        of_table = {key: state.pop(key) for key in sorted(state) if key.startswith(f"{name}.")}
        whole = of_table.get(f"{name}.weight", of_table.get(f"{name}.token_adapter.base_layer.weight"))
        rows = {} if whole is None else _changed(whole, _values(model.get_submodule(path)))
        if (delta := of_table.get(f"{name}.{_DELTA}")) is not None:
            ids = _ids_of(name, indices, is_embedding=tables.is_tied or name == tables.names[0])
            if delta.shape != (wanted := (len(ids), model.get_submodule(tables.paths[1]).in_features)):
                message = f"the adapter's rows of {name} are of shape {tuple(delta.shape)}, not {wanted}"
                raise CheckpointError(message, "is it the adapter of this model, and whole?")
            rows |= dict(zip(ids, delta, strict=True))
        if rows:
            found[name] = rows
    if tables.is_tied and (head := found.pop(tables.names[1], None)) is not None:
        _require_same(found.get(tables.names[0], {}), head)
    return found


def _values(table: nn.Module) -> Tensor:
    if isinstance(table, Dequantizable):
        return table.dequantized()
    if not isinstance(table, nn.Embedding | nn.Linear):
        raise ConfigError("the model has an adapter already", "merge it first")
    return table.weight.detach()


def _merged(table: nn.Module, learned: TrainableTokens) -> nn.Parameter:
    if isinstance(table, Dequantizable):
        raise ConfigError(
            "an adapter cannot be merged into quantized weights",
            "merge it into the model that they were made from, and quantize that",
        )
    own, inside = _values(table), learned.num_inside
    rows = learned.weight.detach().to(own.dtype)
    weight = torch.cat([own, rows[inside:]])
    weight[learned.ids[:inside]] = rows[:inside]
    return nn.Parameter(weight, requires_grad=False)


def _set_rows(table: nn.Module, weight: nn.Parameter) -> None:
    assert isinstance(table, nn.Embedding | nn.Linear), "others are not merged into"
    table.weight = weight
    if isinstance(table, nn.Embedding):
        table.num_embeddings = weight.size(0)
    else:
        table.out_features = weight.size(0)


def _changed(whole: Tensor, own: Tensor) -> dict[int, Tensor]:
    """Rows of a whole table that are not the model's own; those beyond it are all."""
    if whole.dim() != 2 or whole.size(1) != own.size(1):
        found, wanted = tuple(whole.shape), tuple(own.shape)
        raise CheckpointError(
            f"the adapter's table of tokens is of shape {found}, the model's of {wanted}",
            "is the adapter of this model?",
        )
    both = min(len(whole), len(own))
    is_other = (whole[:both].float() != own[:both].float().to(whole.device)).any(1)
    return {id: whole[id] for id in (*is_other.nonzero().flatten().tolist(), *range(both, len(whole)))}


def _ids_of(name: str, indices: object, *, is_embedding: bool) -> list[int]:
    if isinstance(indices, Mapping):
        named = [ids for key, ids in indices.items() if name.endswith(str(key))]
        # PEFT writes a tied head's rows, and may name the embedding alone.
        chosen = named or (list(indices.values()) if is_embedding else [])
        return [int(id) for id in chosen[0]] if chosen else []
    return [int(id) for id in indices] if isinstance(indices, Sequence) and is_embedding else []


def _require_same(embedding: Mapping[int, Tensor], head: Mapping[int, Tensor]) -> None:
    if embedding.keys() != head.keys() or not all(torch.equal(x, head[id]) for id, x in embedding.items()):
        raise CheckpointError(
            "the adapter holds a head of its own, but the model's is its embedding",
            "train it with the two tied, or on a base that unties them",
        )
