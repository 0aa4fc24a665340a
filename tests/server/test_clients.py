"""Real clients of other servers work against ours, unchanged."""

import gc
import importlib.util

import huggingface_hub
import ollama
import openai
import pytest

from starcoder.request import CompletionRequest, SamplingParams

PROMPT = "def add(first, second):\n"


def request(max_tokens=12, **fields):
    return CompletionRequest(**{"prefix": PROMPT} | fields, sampling=SamplingParams(max_tokens=max_tokens))


@pytest.fixture
def openai_client(idle):
    with openai.OpenAI(base_url=f"{idle.url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


class TestOpenAI:
    def test_completes(self, openai_client, oracle):
        reply = openai_client.completions.create(model="x", prompt=PROMPT, max_tokens=12)
        assert oracle.text(request()) == reply.choices[0].text
        assert reply.object == "text_completion"
        assert reply.usage.completion_tokens <= 12
        assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens

    def test_infills(self, openai_client, oracle):
        reply = openai_client.completions.create(
            model="x", prompt=PROMPT, suffix="    return x\n", max_tokens=12
        )
        assert oracle.text(request(suffix="    return x\n")) == reply.choices[0].text

    def test_streams(self, openai_client, oracle):
        chunks = list(
            openai_client.completions.create(
                model="x", prompt=PROMPT, max_tokens=12, stream=True, stream_options={"include_usage": True}
            )
        )
        assert oracle.text(request()) == "".join(c.choices[0].text for c in chunks if c.choices)
        assert chunks[-1].choices == []
        assert chunks[-1].usage.completion_tokens == len(oracle.samples(request())[0].tokens)

    def test_takes_several_prompts_and_token_ids(self, openai_client, oracle, tokenizer):
        ids = tokenizer.encode("class Box:")
        reply = openai_client.completions.create(
            model="x", prompt=[ids, tokenizer.encode(PROMPT)], max_tokens=5
        )
        assert [choice.index for choice in reply.choices] == [0, 1]
        wanted = [oracle.text(request(5, prefix=text, heal=False)) for text in ("class Box:", PROMPT)]
        assert wanted == [choice.text for choice in reply.choices]

    def test_samples_n_times_and_repeats_by_seed(self, openai_client):
        def ask():
            reply = openai_client.completions.create(
                model="x", prompt=PROMPT, max_tokens=8, n=3, temperature=1.0, seed=5
            )
            return [choice.text for choice in reply.choices]

        texts = ask()
        assert texts == ask()
        assert len(set(texts)) > 1

    def test_gives_logprobs_whose_offsets_find_the_tokens(self, openai_client):
        reply = openai_client.completions.create(
            model="x", prompt=PROMPT, max_tokens=6, logprobs=2, extra_body={"heal": False}
        )
        found = reply.choices[0].logprobs
        assert "".join(found.tokens) == reply.choices[0].text
        assert found.text_offset[0] == 0
        assert all(2 >= len(top) >= 1 for top in found.top_logprobs)
        assert all(value <= 0 for value in found.token_logprobs)

    def test_echoes(self, openai_client, oracle):
        reply = openai_client.completions.create(model="x", prompt=PROMPT, max_tokens=5, echo=True)
        assert PROMPT + oracle.text(request(5)) == reply.choices[0].text
        nothing = openai_client.completions.create(model="x", prompt=PROMPT, max_tokens=0, echo=True)
        assert nothing.choices[0].text == PROMPT

    def test_lists_models_with_their_context(self, openai_client):
        models = list(openai_client.models.list())
        assert models[0].id == "tiny/starcoder2"
        assert models[0].context_length == 512
        assert "starcoder2" in [model.id for model in models]
        assert openai_client.models.retrieve("starcoder2").id == "starcoder2"
        with pytest.raises(openai.NotFoundError, match="nonesuch"):
            openai_client.models.retrieve("nonesuch")

    def test_chats(self, openai_client):
        turns = [{"role": "user", "content": "Add two numbers."}]
        whole = openai_client.chat.completions.create(model="x", messages=turns, max_tokens=8)
        parts = openai_client.chat.completions.create(model="x", messages=turns, max_tokens=8, stream=True)
        text = "".join(c.choices[0].delta.content or "" for c in parts)
        assert whole.choices[0].message.role == "assistant"
        assert whole.choices[0].message.content == text

    def test_errors_are_its_own(self, openai_client):
        with pytest.raises(openai.BadRequestError, match="temperature is -1"):
            openai_client.completions.create(model="x", prompt=PROMPT, temperature=-1)


@pytest.fixture
def hub_client(idle):
    with huggingface_hub.InferenceClient(idle.url, timeout=30) as client:
        yield client
    huggingface_hub.close_session()


class TestHuggingFace:
    def test_generates_text(self, hub_client, oracle):
        assert oracle.text(request()) == hub_client.text_generation(PROMPT, max_new_tokens=12)

    def test_gives_details(self, hub_client, oracle):
        reply = hub_client.text_generation(PROMPT, max_new_tokens=6, details=True, decoder_input_details=True)
        sample = oracle.samples(request(6))[0]
        assert reply.generated_text == sample.text
        assert [token.id for token in reply.details.tokens] == list(sample.tokens)
        assert reply.details.prefill

    def test_streams(self, hub_client, oracle):
        parts = list(hub_client.text_generation(PROMPT, max_new_tokens=12, stream=True))
        assert oracle.text(request()) == "".join(parts)

    def test_streams_details(self, hub_client, oracle):
        parts = list(hub_client.text_generation(PROMPT, max_new_tokens=12, stream=True, details=True))
        assert parts[-1].generated_text == oracle.text(request())
        assert parts[-1].details.finish_reason in ("length", "eos_token")

    def test_stops(self, hub_client, oracle):
        whole = oracle.text(request())
        stop = whole[4:6]
        assert (
            hub_client.text_generation(PROMPT, max_new_tokens=12, stop=[stop]) == whole[: whole.index(stop)]
        )

    def test_chats(self, hub_client):
        turns = [{"role": "user", "content": "Add two numbers."}]
        whole = hub_client.chat_completion(turns, max_tokens=8)
        parts = hub_client.chat_completion(turns, max_tokens=8, stream=True)
        text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
        assert text == whole.choices[0].message.content


@pytest.mark.skipif(
    importlib.util.find_spec("text_generation") is None,
    reason="text-generation pins huggingface_hub below 1.0: install it by hand with --no-deps",
)
@pytest.mark.filterwarnings("ignore:The `dict` method is deprecated:DeprecationWarning")  # its own
@pytest.mark.filterwarnings("ignore:.*socket.socket:pytest.PytestUnraisableExceptionWarning")
class TestTextGeneration:
    @pytest.fixture
    def client(self, idle):
        from text_generation import Client

        yield Client(idle.url, timeout=30)
        gc.collect()  # it closes no connection of a stream

    def test_generates(self, client, oracle):
        reply = client.generate(PROMPT, max_new_tokens=12)
        assert reply.generated_text == oracle.text(request())
        assert reply.details.generated_tokens >= 1

    def test_streams(self, client, oracle):
        parts = list(client.generate_stream(PROMPT, max_new_tokens=12))
        assert parts[-1].generated_text == oracle.text(request())
        assert "".join(p.token.text for p in parts if not p.token.special) == oracle.text(request())

    def test_errors_are_its_own(self, client):
        from text_generation.errors import ValidationError

        with pytest.raises(ValidationError, match="frequency_penalty is 5"):
            client.generate(PROMPT, max_new_tokens=3, frequency_penalty=5.0)


class TestOllama:
    @pytest.fixture
    def client(self, idle):
        with ollama.Client(host=idle.url, timeout=30) as client:
            yield client

    def test_generates(self, client, oracle):
        reply = client.generate("starcoder2", PROMPT, options={"num_predict": 12})
        assert reply.response == oracle.text(request())
        assert reply.done and reply.done_reason in ("stop", "length")
        assert reply.prompt_eval_count and reply.eval_count

    def test_infills(self, client, oracle):
        reply = client.generate("starcoder2", PROMPT, suffix="    return x\n", options={"num_predict": 12})
        assert reply.response == oracle.text(request(suffix="    return x\n"))

    def test_streams(self, client, oracle):
        parts = list(client.generate("starcoder2", PROMPT, options={"num_predict": 12}, stream=True))
        assert "".join(part.response for part in parts) == oracle.text(request())
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]

    def test_chats(self, client):
        turns = [{"role": "user", "content": "Add two numbers."}]
        whole = client.chat("starcoder2", turns, options={"num_predict": 8})
        parts = client.chat("starcoder2", turns, options={"num_predict": 8}, stream=True)
        assert "".join(part.message.content for part in parts) == whole.message.content

    def test_describes(self, client):
        assert "tiny/starcoder2" in [model.model for model in client.list().models]
        assert "insert" in client.show("starcoder2").capabilities
        assert client.ps().models

    def test_an_empty_prompt_only_loads(self, client):
        assert client.generate("starcoder2", "").done_reason == "load"

    def test_errors_are_its_own(self, client):
        with pytest.raises(ollama.ResponseError, match="temperature is -1"):
            client.generate("starcoder2", PROMPT, options={"temperature": -1})
