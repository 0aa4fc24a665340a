"""A checkpoint loads, saves and fails as promised; parity/test_model.py compares it with transformers."""

import json
import os
import pickle
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from starcoder import checkpoint
from starcoder.config import ModelConfig
from starcoder.errors import CheckpointError, ConfigError
from starcoder.model import Transformer
from tests.tiny import VARIANTS

WEIGHTS = "model.safetensors"


def make_model(variant="bigcode", dtype=torch.float32):
    model = Transformer(ModelConfig.from_hf(VARIANTS[variant]))
    model.initialize(torch.Generator().manual_seed(0), std=0.2)
    return model.to(dtype)


@pytest.fixture
def folder(tmp_path):
    """A good checkpoint, for tests to spoil."""
    checkpoint.save(make_model(), tmp_path / "model")
    return tmp_path / "model"


def assert_same_weights(model, expected):
    ours, theirs = model.state_dict(), expected.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def change_weights(folder, change):
    """Rewrite the weights after `change` has modified the dictionary of them."""
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / WEIGHTS)


def as_bin(folder, change=lambda tensors: None):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()


# Loading and saving


@pytest.mark.parametrize("max_shard_bytes", [10**9, 50_000], ids=["whole", "sharded"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_saved_loads_bit_for_bit(variant, max_shard_bytes, tmp_path):
    model = make_model(variant)

    checkpoint.save(model, tmp_path, max_shard_bytes=max_shard_bytes)

    loaded = checkpoint.load(tmp_path)
    assert_same_weights(loaded, model)
    assert loaded.config == model.config
    assert not loaded.training


@pytest.mark.parametrize("variant", ["bigcode", "starcoder2-untied"])
def test_dtype_is_the_checkpoints_unless_asked(variant, tmp_path):
    model = make_model(variant, torch.bfloat16)
    checkpoint.save(model, tmp_path)

    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in checkpoint.load(tmp_path).parameters()} == {torch.bfloat16}
    assert_same_weights(checkpoint.load(tmp_path, dtype=torch.float32), model.float())


def test_tied_weights_stay_one_tensor(folder):
    model = checkpoint.load(folder)

    assert model.head.weight is model.embed.weight
    assert "lm_head.weight" not in load_file(folder / WEIGHTS)


def test_training_a_loaded_model_leaves_its_files_alone(folder):
    before = (folder / WEIGHTS).read_bytes()
    model = checkpoint.load(folder)

    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)

    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (folder / WEIGHTS).read_bytes() == before


def test_a_model_can_be_saved_over_the_files_it_is_mapped_from(folder):
    model = checkpoint.load(folder)
    with torch.no_grad():
        model.norm.bias.add_(1.0)

    checkpoint.save(model, folder, max_shard_bytes=50_000)
    assert_same_weights(checkpoint.load(folder), model)
    assert not (folder / WEIGHTS).exists(), "the earlier whole file would win over the new shards"

    checkpoint.save(model, folder)
    assert_same_weights(checkpoint.load(folder), model)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS]


def test_a_failed_save_leaves_the_good_files(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    written = []

    def fail_at_the_third_shard(tensors, path, **options):
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        save_file(tensors, path, **options)

    monkeypatch.setattr("starcoder.checkpoint.writing.save_file", fail_at_the_third_shard)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(make_model("starcoder2"), folder, max_shard_bytes=50_000)

    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_extra_config_is_written(tmp_path):
    checkpoint.save(make_model(), tmp_path, extra_config={"eos_token_id": 7, "recipe": "nano"})

    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["eos_token_id"], config["recipe"]) == (7, "nano")


LOAD = """
import sys
from starcoder import checkpoint
checkpoint.load(sys.argv[1])
print(*sorted(sys.modules.keys() & {"huggingface_hub", "transformers", "sympy"}))
"""


def test_loading_a_folder_imports_nothing_slow(folder):
    # sympy comes with random initialization on the meta device: 2 s that no load should pay.
    imported = subprocess.check_output([sys.executable, "-c", LOAD, str(folder)], text=True)

    assert imported.split() == []


# Old and odd layouts


def test_santacoder_style_bin_loads(folder):
    expected = checkpoint.load(folder)

    def age(tensors):
        for layer in range(3):
            tensors[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 8, 8, dtype=torch.bool)
            tensors[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
        tensors["lm_head.weight"] = tensors["transformer.wte.weight"]

    as_bin(folder, age)

    assert_same_weights(checkpoint.load(folder), expected)


def test_sharded_bin_loads(folder):
    expected = checkpoint.load(folder)
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    parts = {"pytorch_model-1.bin": sorted(tensors)[:9], "pytorch_model-2.bin": sorted(tensors)[9:]}
    for file, names in parts.items():
        torch.save({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in parts.items() for name in names}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))

    assert_same_weights(checkpoint.load(folder), expected)


@pytest.mark.parametrize("variant", ["bigcode", "starcoder2"])
def test_names_without_the_inner_models_prefix_load(variant, tmp_path):
    model = make_model(variant)
    checkpoint.save(model, tmp_path)

    def shorten(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.").removeprefix("model.")] = tensors.pop(name)

    change_weights(tmp_path, shorten)

    assert_same_weights(checkpoint.load(tmp_path), model)


def test_tied_weights_under_the_heads_name_load(folder):
    expected = checkpoint.load(folder)

    change_weights(folder, lambda w: w.update({"lm_head.weight": w.pop("transformer.wte.weight")}))

    assert_same_weights(checkpoint.load(folder), expected)


def test_safetensors_win_over_bin(folder):
    (folder / "pytorch_model.bin").write_bytes(b"never opened")

    checkpoint.load(folder)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("variant", ["bigcode-multi-head", "starcoder2"])
def test_weights_arrive_on_the_gpu(variant, tmp_path):
    model = make_model(variant)
    checkpoint.save(model, tmp_path)

    loaded = checkpoint.load(tmp_path, device="cuda", dtype=torch.bfloat16)

    assert {parameter.device.type for parameter in loaded.parameters()} == {"cuda"}
    assert_same_weights(loaded.cpu(), model.bfloat16())


# Failures: each names the file and what to do


def assert_fails(model, *parts):
    with pytest.raises(CheckpointError) as failure:
        checkpoint.load(model)
    text = f"{failure.value.message}\n{failure.value.hint}"
    assert [part for part in parts if part not in text] == [], text
    assert failure.value.hint
    assert "\n" not in failure.value.message


def test_no_config(folder):
    (folder / "config.json").unlink()
    assert_fails(folder, str(folder), "has no config.json", "give the folder")


@pytest.mark.parametrize("text", ["{", "[]", "\udcff"], ids=["cut off", "not an object", "not text"])
def test_config_is_not_json(folder, text):
    (folder / "config.json").write_bytes(text.encode(errors="surrogateescape"))
    assert_fails(folder, str(folder / "config.json"), "is not")


def test_wrong_family(folder):
    (folder / "config.json").write_text('{"model_type": "llama"}')
    assert_fails(folder, str(folder / "config.json"), "'llama'", "supported: gpt_bigcode")


def test_no_weights(folder):
    (folder / WEIGHTS).unlink()
    assert_fails(folder, str(folder), "neither model.safetensors nor pytorch_model.bin", "may be partial")


def test_missing_tensors(folder):
    change_weights(folder, lambda w: [w.pop(f"transformer.ln_f.{kind}") for kind in ("weight", "bias")])
    assert_fails(folder, str(folder), "no tensor 'transformer.ln_f.bias' (and 1 more)", "may be partial")


def test_foreign_tensors(folder):
    change_weights(folder, lambda w: w.update({"transformer.h.0.lora_A.weight": torch.ones(2)}))
    assert_fails(folder, str(folder / WEIGHTS), "'transformer.h.0.lora_A.weight'", "not merged")


def test_wrong_shape(folder):
    change_weights(folder, lambda w: w.update({"transformer.wte.weight": torch.ones(7, 64)}))
    assert_fails(folder, str(folder / WEIGHTS), "'transformer.wte.weight' has shape (7, 64)", "(320, 64)")


def test_wrong_shape_of_a_part_of_qkv(tmp_path):
    checkpoint.save(make_model("starcoder2"), tmp_path)
    change_weights(
        tmp_path, lambda w: w.update({"model.layers.1.self_attn.k_proj.weight": torch.ones(64, 64)})
    )
    assert_fails(tmp_path, "'model.layers.1.self_attn.k_proj.weight' has shape (64, 64)", "(32, 64)")


def test_quantized_weights(folder):
    name = "transformer.h.0.mlp.c_fc.weight"
    change_weights(folder, lambda w: w.update({name: w[name].to(torch.int8)}))
    assert_fails(folder, str(folder / WEIGHTS), f"{name!r} is torch.int8", "not quantized")


@pytest.mark.parametrize("size", [0, 5, 100, -1], ids=["empty", "no header", "half a header", "a byte short"])
def test_truncated_safetensors(folder, size):
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:size])
    assert_fails(folder, str(path), "cannot be read", f"has {path.stat().st_size} bytes", "may be partial")


def test_git_lfs_pointer(folder):
    (folder / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    assert_fails(folder, str(folder / WEIGHTS), "git lfs pull")


def test_index_names_a_missing_shard(tmp_path):
    checkpoint.save(make_model(), tmp_path, max_shard_bytes=50_000)
    shard = sorted(tmp_path.glob("model-*"))[1]
    shard.unlink()
    assert_fails(tmp_path, "model.safetensors.index.json", repr(shard.name), "missing", "may be partial")


@pytest.mark.parametrize("shard", ["../model.safetensors", "model.pkl"])
def test_index_cannot_lead_elsewhere(folder, shard):
    (folder / WEIGHTS).rename(folder.parent / WEIGHTS)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": shard}}))
    assert_fails(folder, "model.safetensors.index.json", repr(shard), "beside its index")


def test_index_without_a_map(folder):
    (folder / WEIGHTS).unlink()
    (folder / "model.safetensors.index.json").write_text("{}")
    assert_fails(folder, "model.safetensors.index.json", "no weight_map")


class Intruder:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save_as", [torch.save, lambda x, path: path.write_bytes(pickle.dumps(x))])
def test_bin_with_objects_is_refused_and_nothing_of_it_runs(folder, save_as):
    (folder / WEIGHTS).unlink()
    trace = folder / "trace"
    save_as({"transformer.wte.weight": Intruder(trace)}, folder / "pytorch_model.bin")

    assert_fails(folder, str(folder / "pytorch_model.bin"), "convert it to safetensors")
    assert not trace.exists()


def test_bin_of_something_else(folder):
    as_bin(folder, lambda w: w.update(model={"x": torch.ones(1)}))
    assert_fails(folder, str(folder / "pytorch_model.bin"), "not a flat dictionary of tensors")


def test_truncated_bin(folder):
    as_bin(folder)
    path = folder / "pytorch_model.bin"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_fails(folder, str(path), "cannot be read", "may be partial")


def test_python_files_of_a_checkpoint_are_not_run(folder):
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling.Model"}
    (folder / "config.json").write_text(json.dumps(config))

    checkpoint.load(folder)


@pytest.mark.parametrize("model", ["no/such/folder", "./missing", "missing", "/no/where", "a b/c"])
def test_neither_folder_nor_hub_id(model):
    assert_fails(model, f"'{model}'", "a folder with config.json", "bigcode/starcoder2-3b")


def test_a_path_object_is_never_looked_up_on_the_hub():
    assert_fails(Path("org/model"), "there is no folder 'org/model'")


def test_a_file_instead_of_its_folder(folder):
    assert_fails(folder / "config.json", "is a file", "give the folder")


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there(folder, device):
    with pytest.raises(ConfigError, match=f"device '{device}' cannot be used"):
        checkpoint.load(folder, device=device)


# Where checkpoints are


def test_no_model_named_is_the_bundled_one():
    assert checkpoint.resolve(None) == checkpoint.BUNDLED
    assert checkpoint.BUNDLED.parent.name == "bundled"


def test_home_folder_is_expanded(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert checkpoint.resolve("~/model") == folder


class Hub(ThreadingHTTPServer):
    """As much of the hub as downloads need: id -> files, or (status, error code) of a refusal."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repositories):
        super().__init__(("127.0.0.1", 0), HubHandler)
        self.repositories, self.requests = repositories, []


class HubHandler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append(f"{self.command} {self.path}")
        parts = self.path.split("?")[0].strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = parts[2:] if is_api else parts
        files = self.server.repositories.get(f"{owner}/{name}")
        if files is None:
            self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        elif isinstance(files, tuple) and not is_api:
            status, code = files
            self.answer(status, b"{}", {"X-Error-Code": code})
        elif is_api:
            known = {"config.json": b"", WEIGHTS: b""} if isinstance(files, tuple) else files
            self.answer(200, json.dumps(self.listing(rest[0], known)).encode())
        else:
            content = files[rest[2]]
            etag = f'"{hash(content) & 0xFFFFFFFF:040x}"'
            self.answer(200, content, {"ETag": etag, "X-Repo-Commit": self.server.commit})

    def listing(self, what, files):
        if what == "revision":
            return {"id": "x", "sha": self.server.commit, "siblings": [{"rfilename": name} for name in files]}
        return [{"type": "file", "path": name, "size": len(x), "oid": "0" * 40} for name, x in files.items()]

    def answer(self, status, content, headers=()):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)


RESOLVE = """
import json, sys
from starcoder import checkpoint, errors
assert "huggingface_hub" not in sys.modules, "imported before a hub id was asked for"
for model in sys.argv[1:]:
    try:
        answer = {"folder": str(checkpoint.resolve(model))}
    except errors.CheckpointError as error:
        answer = {"message": error.message, "hint": error.hint}
    print(json.dumps(answer))
"""


def resolve_elsewhere(endpoint, home, *models):
    """What `resolve` answers in a process whose hub is `endpoint` and whose cache is in `home`."""
    settings = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    run = subprocess.run(
        [sys.executable, "-c", RESOLVE, *models],
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A hub on this machine, and what it served."""
    folder = tmp_path_factory.mktemp("hub")
    checkpoint.save(make_model(), folder)
    complete = {path.name: path.read_bytes() for path in folder.iterdir()} | {"tokenizer.json": b"{}"}
    as_bin(folder)
    old = {path.name: path.read_bytes() for path in folder.iterdir()} | {"tokenizer.json": b"{}"}
    unwanted = {"pytorch_model.bin": b"twice the download", "modeling.py": b"code", "onnx/model.onnx": b"x"}
    repositories = {
        "org/complete": complete | unwanted,
        "org/old": old,
        "org/gated": (401, "GatedRepo"),
        "org/refused": (403, "GatedRepo"),
        "org/denied": (403, "TokenLacksPermission"),
    }
    with Hub(repositories) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def downloads(hub, tmp_path_factory):
    """Every kind of repository, asked for once in one process."""
    home = tmp_path_factory.mktemp("home")
    models = ["org/complete", "org/old", "org/gated", "org/refused", "org/denied", "org/missing"]
    answers = resolve_elsewhere(f"http://127.0.0.1:{hub.server_port}", home, *models)
    return home, dict(zip(models, answers, strict=True))


def test_a_hub_id_is_downloaded(downloads):
    folder = Path(downloads[1]["org/complete"]["folder"])

    assert_same_weights(checkpoint.load(folder), make_model())
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS, "tokenizer.json"]


def test_bin_weights_are_downloaded_where_there_are_no_others(downloads):
    assert_same_weights(checkpoint.load(downloads[1]["org/old"]["folder"]), make_model())


@pytest.mark.parametrize("repository", ["org/gated", "org/refused"])
def test_a_gated_repository_names_its_licence_page(downloads, repository):
    answer = downloads[1][repository]

    assert f"'{repository}' is gated" in answer["message"]
    assert f"https://huggingface.co/{repository}" in answer["hint"]
    assert "hf auth login" in answer["hint"]


def test_a_refused_download_names_the_reason_and_the_licence_page(downloads):
    answer = downloads[1]["org/denied"]

    assert "'org/denied' failed" in answer["message"]
    assert "403" in answer["message"]
    assert "https://huggingface.co/org/denied" in answer["hint"]


def test_a_repository_that_is_not_there(downloads):
    answer = downloads[1]["org/missing"]

    assert "'org/missing'" in answer["message"]
    assert "no such repository" in answer["message"]
    assert "check the name" in answer["hint"]


def test_without_network_what_is_cached_loads_and_what_is_not_says_so(downloads, hub):
    home, answers = downloads
    num_requests = len(hub.requests)
    complete = Path(answers["org/complete"]["folder"])
    (Path(answers["org/old"]["folder"]) / "pytorch_model.bin").unlink()

    again, part, new = resolve_elsewhere("http://127.0.0.1:9", home, "org/complete", "org/old", "org/new")

    assert again == {"folder": str(complete)}
    assert len(hub.requests) == num_requests
    for answer, name in ((part, "org/old"), (new, "org/new")):
        assert f"'{name}'" in answer["message"]
        assert "cannot be reached" in answer["message"]
        assert "connect to the network" in answer["hint"]
