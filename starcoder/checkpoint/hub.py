"""Where a checkpoint is: the bundled model, a local folder, or a download from the hub."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from starcoder.checkpoint.files import first_line, read_config, weight_files
from starcoder.checkpoint.gguf_reader import unpacked
from starcoder.errors import CheckpointError
from starcoder.files import MODEL_FILES, bundled

BUNDLED = bundled()

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SAFETENSORS = ["model*.safetensors", "model.safetensors.index.json"]
_BIN = ["pytorch_model*.bin", "pytorch_model.bin.index.json"]


def resolve(model: str | Path | None) -> Path:
    """The local folder of a checkpoint: None is the bundled model, and text may be a hub id or a GGUF file.

    A complete copy in the hub's cache is used without the network (`hf download ID` renews it);
    otherwise what is missing is downloaded, and an interrupted download goes on where it stopped.

    Raises:
        CheckpointError: no such folder or repository, a gated repository, no network, or the folder is no
            checkpoint that runs here.
    """
    folder = _local(model) or _cached(str(model)) or _download(str(model))
    read_config(folder)  # before any other file is missed: it says what else a folder may be
    return folder


def resolve_config(model: str | Path | None) -> Path:
    """Like `resolve`, but of a model of the hub only config.json is there for certain.

    Raises:
        CheckpointError: as `resolve`.
    """
    folder = _local(model)
    if folder is not None:
        return folder
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(str(model), "config.json")
    if isinstance(cached, str):
        return Path(cached).parent
    with _explained(str(model)):
        return Path(hf_hub_download(str(model), "config.json")).parent


def resolve_adapter(adapter: str | Path) -> Path:
    """The local folder of an adapter; text may be a hub id.

    Raises:
        CheckpointError: no such folder or repository, a gated repository, or no network.
    """
    folder = _local(adapter)
    if folder is None:
        from huggingface_hub import snapshot_download

        with _explained(str(adapter)):
            files = ["adapter_config.json", "adapter_model.safetensors", *MODEL_FILES]
            folder = Path(snapshot_download(str(adapter), allow_patterns=files))
    return folder


def resolve_text(model: str | Path | None, adapter: str | Path | None = None) -> Path:
    """The folder whose tokenizer and templates go with a model: the adapter's where it has its own.

    Raises:
        CheckpointError: as `resolve`.
    """
    if adapter is not None and (folder := resolve_adapter(adapter)).joinpath("tokenizer.json").is_file():
        return folder
    return resolve(model)


def push(folder: Path, hub_id: str) -> str:
    """Upload a folder to the hub, to a repository that is made private if it is new; its address.

    Raises:
        CheckpointError: the hub refuses, or cannot be reached.
    """
    from huggingface_hub import HfApi

    if not _HUB_ID.fullmatch(hub_id):
        raise CheckpointError(f"{hub_id!r} is not a name on the hub", "it looks like user/model")
    with _explained(hub_id):
        api = HfApi()
        address = api.create_repo(hub_id, private=True, exist_ok=True)
        api.upload_folder(repo_id=hub_id, folder_path=folder)
        return str(address)


def _local(model: str | Path | None) -> Path | None:
    """The folder of a model that is on this machine, None for a hub id."""
    if model is None:
        return BUNDLED
    folder = Path(model).expanduser()
    if folder.is_dir():
        files = [] if (folder / "config.json").is_file() else list(folder.glob("*.gguf"))
        return unpacked(files[0]) if len(files) == 1 else folder
    if folder.suffix == ".gguf" and folder.is_file():
        return unpacked(folder)
    if folder.exists():
        raise CheckpointError(
            f"'{model}' is a file, not a checkpoint", "give the folder with it, or a .gguf file"
        )
    if isinstance(model, str) and _HUB_ID.fullmatch(model):
        return None
    raise CheckpointError(
        f"there is no folder '{model}'",
        "give a folder with config.json and weights, a .gguf file, or a hub id: bigcode/starcoder2-3b",
    )


def _cached(hub_id: str) -> Path | None:
    from huggingface_hub import errors, snapshot_download

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=list(MODEL_FILES), local_files_only=True))
        weight_files(folder)
    except (errors.LocalEntryNotFoundError, CheckpointError):
        return None
    return folder if (folder / "tokenizer.json").is_file() else None


def _download(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download

    with _explained(hub_id):
        folder = Path(snapshot_download(hub_id, allow_patterns=[*MODEL_FILES, *_SAFETENSORS]))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(hub_id, allow_patterns=_BIN)
        return folder


@contextmanager
def _explained(hub_id: str) -> Iterator[None]:
    """Turns what goes wrong with the hub into our errors."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{hub_id}"
    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(
            f"'{hub_id}' is gated: its license has to be accepted on the hub",
            f"accept it at {page} and run `hf auth login`",
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(
            f"there is no folder '{hub_id}', and on the hub no such repository that you may read",
            f"check the name; if {page} is private, run `hf auth login`",
        ) from None
    except errors.EntryNotFoundError as error:
        # A file that cannot be looked up for want of a network is an EntryNotFoundError as well.
        if not isinstance(error, errors.LocalEntryNotFoundError):
            raise CheckpointError(
                f"'{hub_id}' has no config.json, so it is not a checkpoint", f"see {page}"
            ) from None
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _failed(hub_id, error.__cause__) from None
        raise CheckpointError(
            f"'{hub_id}' is not on this machine, and the hub cannot be reached: {first_line(error)}",
            "connect to the network and try again, or give a local folder",
        ) from None
    # The HTTP library's own errors; which library that is changes with huggingface_hub's versions.
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        raise _failed(hub_id, error) from None


def _failed(hub_id: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the download of '{hub_id}' failed: {first_line(error)}",
        "try again, it goes on where it stopped; if access is denied, accept the license at "
        f"https://huggingface.co/{hub_id} and run `hf auth login`",
    )
