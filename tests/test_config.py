"""`ModelConfig` reads the config.json of real checkpoints, old and new, and refuses what it cannot run."""

import pytest

from starcoder.config import ModelConfig
from starcoder.errors import CheckpointError
from tests.tiny import VARIANTS

# As published: bigcode/starcoderbase-1b and bigcode/starcoder2-3b, less what the network does not use.
STARCODER_1B = {
    "model_type": "gpt_bigcode",
    "activation_function": "gelu_pytorch_tanh",
    "layer_norm_epsilon": 1e-05,
    "multi_query": True,
    "n_embd": 2048,
    "n_head": 16,
    "n_inner": 8192,
    "n_layer": 24,
    "n_positions": 8192,
    "scale_attn_weights": True,
    "vocab_size": 49152,
}
STARCODER2_3B = {
    "model_type": "starcoder2",
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 3072,
    "intermediate_size": 12288,
    "max_position_embeddings": 16384,
    "mlp_type": "default",
    "norm_epsilon": 1e-05,
    "norm_type": "layer_norm",
    "num_attention_heads": 24,
    "num_hidden_layers": 30,
    "num_key_value_heads": 2,
    "rope_theta": 999999.4420358813,
    "sliding_window": 4096,
    "use_bias": True,
    "vocab_size": 49152,
}


def test_published_starcoder_has_its_published_size():
    config = ModelConfig.from_hf(STARCODER_1B)

    assert (config.num_kv_heads, config.head_size, config.rope_theta) == (1, 128, None)
    assert config.num_parameters == 1_137_207_296


def test_published_starcoder2_has_its_published_size():
    config = ModelConfig.from_hf(STARCODER2_3B)

    assert (config.num_kv_heads, config.sliding_window) == (2, 4096)
    assert config.rope_theta == 999999.4420358813
    assert config.num_parameters == 3_030_371_328


def test_rotary_base_of_transformers_5_is_read_too():
    new = {key: value for key, value in STARCODER2_3B.items() if key != "rope_theta"}
    new["rope_parameters"] = {"rope_type": "default", "rope_theta": 999999.4420358813}

    assert ModelConfig.from_hf(new) == ModelConfig.from_hf(STARCODER2_3B)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_written_is_read_back(variant):
    config = ModelConfig.from_hf(VARIANTS[variant])

    assert ModelConfig.from_hf(config.to_hf()) == config


def test_inner_size_defaults_to_four_times_hidden():
    assert ModelConfig.from_hf(STARCODER_1B | {"n_inner": None}).intermediate_size == 8192


@pytest.mark.parametrize("name", ["gelu_pytorch_tanh", "gelu_new", "gelu_fast"])
def test_every_name_of_the_tanh_gelu_is_known(name):
    assert ModelConfig.from_hf(STARCODER_1B | {"activation_function": name}).activation == "gelu_tanh"


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({}, "model_type None"),
        ({"model_type": "gemma2"}, "model_type 'gemma2'"),
        (STARCODER_1B | {"activation_function": "relu"}, "activation 'relu'"),
        (STARCODER_1B | {"scale_attn_weights": False}, "scale_attn_weights"),
        (STARCODER_1B | {"n_head": 15}, "n_embd 2048, which is not a multiple of 15"),
        (STARCODER_1B | {"n_layer": "24"}, "n_layer '24'"),
        (STARCODER_1B | {"vocab_size": None}, "vocab_size None"),
        (STARCODER_1B | {"quantization_config": {"quant_method": "gptq"}}, "quantized"),
        (STARCODER2_3B | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "scaling of type 'dynamic'"),
        (
            STARCODER2_3B | {"rope_scaling": {"type": "linear", "factor": "2"}},
            "factor '2'",
        ),
        (
            STARCODER2_3B | {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}},
            "has no 'factor'|has no 'low",
        ),
        (STARCODER2_3B | {"norm_epsilon": "1e-5"}, "norm_epsilon '1e-5'; expected a number"),
        (STARCODER2_3B | {"norm_epsilon": float("nan")}, "norm_epsilon nan; expected a number"),
        (STARCODER2_3B | {"rope_theta": None, "rope_parameters": None}, "rope_theta None; expected a number"),
        (STARCODER2_3B | {"rope_theta": True}, "rope_theta True; expected a number"),
        (STARCODER2_3B | {"rope_scaling": "yarn"}, "rope_scaling 'yarn'; expected an object"),
        (STARCODER2_3B | {"use_bias": "false"}, "use_bias 'false'; expected true or false"),
        (STARCODER2_3B | {"tie_word_embeddings": None}, "tie_word_embeddings None; expected true or false"),
        (STARCODER2_3B | {"num_hidden_layers": True}, "num_hidden_layers True"),
        (STARCODER2_3B | {"hidden_act": None}, "activation None"),
        (STARCODER2_3B | {"partial_rotary_factor": 0.5}, "partial_rotary_factor 0.5"),
        (STARCODER2_3B | {"norm_type": "rms_norm"}, "norm_type 'rms_norm'"),
        (STARCODER2_3B | {"mlp_type": "gated"}, "mlp_type 'gated'"),
        (STARCODER2_3B | {"num_key_value_heads": 5}, "num_attention_heads 24, which is not a multiple of 5"),
        (STARCODER2_3B | {"sliding_window": 0}, "sliding_window 0"),
    ],
)
def test_what_this_package_cannot_run_is_refused(config, complaint):
    with pytest.raises(CheckpointError, match=complaint) as refused:
        ModelConfig.from_hf(config)
    assert refused.value.hint


@pytest.mark.parametrize("complete", [STARCODER_1B, STARCODER2_3B], ids=["gpt_bigcode", "starcoder2"])
def test_a_missing_number_is_named(complete):
    del (config := dict(complete))["vocab_size"]

    with pytest.raises(CheckpointError, match="has no 'vocab_size'"):
        ModelConfig.from_hf(config)
