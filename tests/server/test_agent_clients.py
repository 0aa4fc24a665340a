"""Anthropic's and Google's own clients, at pinned versions and in an environment of their own."""

import subprocess
import sys
import venv

import pytest

from tests.server.test_agents import wide

__all__ = ["wide"]

VERSIONS = ["anthropic==2.15.0", "google-genai==3.6.1"]

SCRIPT = """
import sys
import anthropic
from google import genai

url, text = sys.argv[1], "Add two numbers."
client = anthropic.Anthropic(base_url=url, api_key="none", max_retries=0)
talk = [{"role": "user", "content": text}]
whole = client.messages.create(model="x", max_tokens=12, messages=talk)
with client.messages.stream(model="x", max_tokens=12, messages=talk) as stream:
    streamed = "".join(stream.text_stream)
assert streamed == whole.content[0].text
assert client.messages.count_tokens(model="x", messages=talk).input_tokens > 10
number = {"type": "integer", "minimum": 0, "maximum": 9}
schema = {"type": "object", "properties": {"n": number}, "required": ["n"]}
tools = [{"name": "add", "description": "Add.", "input_schema": schema}]
called = client.messages.create(
    model="x", max_tokens=200, messages=talk, tools=tools, tool_choice={"type": "any"}
)
assert called.content[0].type == "tool_use" and 0 <= called.content[0].input["n"] <= 9
try:
    client.messages.create(model="x", max_tokens=5, messages=[])
    raise SystemExit("an empty conversation was answered")
except anthropic.BadRequestError as error:
    assert "messages" in str(error)
google = genai.Client(api_key="none", http_options={"base_url": url})
config = {"max_output_tokens": 12}
answer = google.models.generate_content(model="x", contents=text, config=config)
parts = google.models.generate_content_stream(model="x", contents=text, config=config)
assert "".join(part.text or "" for part in parts) == answer.text == streamed
print("both clients work")
"""


@pytest.mark.slow
def test_anthropics_and_googles_clients(wide, tmp_path):
    venv.create(tmp_path / "clients", with_pip=True)
    python = str(tmp_path / "clients" / "bin" / "python")
    install = [python, "-m", "pip", "install", "-q", *VERSIONS]
    done = subprocess.run(install, capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        pytest.skip(f"{', '.join(VERSIONS)} cannot be installed here: {done.stderr.strip()[-200:]}")
    done = subprocess.run(
        [python, "-c", SCRIPT, wide.url], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "both clients work\n", sys.version
