"""`starcoder lsp` over stdio: what is asked of the server, what editors are shown, and what never is."""

import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.lsp.editor import ROOT, Editor, editor, scripted

SOURCE = "def area(width, height):\n    return \n\n\nprint(area(1, 2))\n"


def test_a_completion_is_shown_at_the_cursor_with_an_empty_range(tmp_path: Path) -> None:
    with scripted(lambda body: "width * height") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("shapes.py", SOURCE)
        answer = vim.wait(vim.begin_complete(uri, 1, 11))["result"]["items"][0]
        place = {"line": 1, "character": 11}
        assert answer["insertText"] == "width * height"
        assert answer["range"] == {"start": place, "end": place}
        (body,) = server.bodies
        assert body["prompt"] == "def area(width, height):\n    return "
        assert body["suffix"] == "\n\n\nprint(area(1, 2))\n"
        assert body["path"] == "shapes.py"
        assert body["stop_at"] == "line"
        assert body["session"].endswith(uri)
        assert vim.stop() == 0


@pytest.mark.parametrize(
    ("line", "expected"),
    [("", "block"), ("    ", "block"), ("if x:", "block"), ("x = foo", "line"), ("call(a, b)", "line")],
)
def test_several_lines_are_asked_for_where_a_block_begins(tmp_path: Path, line: str, expected: str) -> None:
    with scripted(lambda body: "y") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", f"import os\n{line}\n")
        vim.complete(uri, 1, len(line))
        assert server.bodies[0]["stop_at"] == expected


def test_nothing_is_asked_while_much_is_right_of_the_cursor_unless_the_user_asks(tmp_path: Path) -> None:
    with scripted(lambda body: "x") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", "value = compute(first, second)\n")
        assert vim.complete(uri, 0, 8) is None
        assert server.bodies == []
        assert vim.complete(uri, 0, 8, kind=1) == "x"


def test_what_is_typed_along_a_completion_is_answered_without_a_request(tmp_path: Path) -> None:
    with scripted(lambda body: "width * height") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", SOURCE)
        vim.complete(uri, 1, 11)
        for number, letter in enumerate("width"):
            vim.insert(uri, 1, 11 + number, letter)
            assert vim.complete(uri, 1, 12 + number) == "width * height"[number + 1 :]
        assert len(server.bodies) == 1
        vim.insert(uri, 1, 16, "x")
        vim.complete(uri, 1, 17)
        assert len(server.bodies) == 2


def test_an_answer_for_an_older_version_is_never_shown(tmp_path: Path) -> None:
    """Neovim does not cancel: the server itself compares versions and keeps the newest request."""
    release = threading.Event()

    def answer(body):
        if body["prompt"].endswith("return "):
            release.wait(20)
        return f"after {body['prompt'][-1]!r}"

    with scripted(answer) as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", SOURCE)
        old = vim.begin_complete(uri, 1, 11)
        while not server.bodies:
            time.sleep(0.01)
        vim.insert(uri, 1, 11, "q")
        new = vim.begin_complete(uri, 1, 12)
        assert vim.wait(new)["result"]["items"][0]["insertText"] == "after 'q'"
        release.set()
        assert vim.wait(old)["result"] is None


def test_an_edit_alone_makes_an_answer_stale(tmp_path: Path) -> None:
    release = threading.Event()

    def answer(body):
        release.wait(20)
        return "stale"

    with scripted(answer) as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", SOURCE)
        number = vim.begin_complete(uri, 1, 11)
        while not server.bodies:
            time.sleep(0.01)
        vim.insert(uri, 0, 0, "# a comment\n")
        vim.ask("workspace/executeCommand", {"command": "starcoder.accepted", "arguments": []})
        release.set()
        assert vim.wait(number)["result"] is None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_characters_before_the_cursor_are_counted_in_the_agreed_encoding(tmp_path: Path, encoding) -> None:
    line = "name = '😀é' + "
    units = {"utf-8": len(line.encode()), "utf-16": len(line.encode("utf-16-le")) // 2, "utf-32": len(line)}
    with scripted(lambda body: "x") as server:
        vim = Editor(tmp_path, options={"url": server.url})
        try:
            assert vim.start((encoding,))["positionEncoding"] == encoding
            uri = vim.open("a.py", f"\u2028\f\n{line}\n")
            assert vim.complete(uri, 1, units[encoding]) == "x"
            assert server.bodies[0]["prompt"] == f"\u2028\f\n{line}"
        finally:
            vim.close()


def test_a_file_with_crlf_gets_crlf(tmp_path: Path) -> None:
    with scripted(lambda body: "x\n    y") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", "def f():\r\n    \r\n")
        assert vim.complete(uri, 1, 4) == "x\r\n    y"


def test_other_files_go_along_but_never_ignored_or_secret_ones(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("generated/\n")
    (tmp_path / "geometry.py").write_text(
        "def circle_area(radius):\n    return 3.14 * radius ** 2\n\n\nx = 1\n"
    )
    (tmp_path / "generated").mkdir()
    (tmp_path / "generated" / "made.py").write_text("def made_area(radius):\n    return 0\n")
    outside = tmp_path.parent / "outside.py"
    outside.write_text("def outside_area(): ...\n")
    (tmp_path / "linked.py").symlink_to(outside)
    text = (
        "from geometry import circle_area\nfrom generated.made import made_area\n"
        "from linked import outside_area\n\ntotal_radius = "
    )
    with scripted(lambda body: "x") as server, editor(tmp_path, url=server.url) as vim:
        vim.open(".env", "RADIUS_TOKEN=total_radius\n", "plaintext")
        vim.open("keys/server.pem", "total_radius", "plaintext")
        vim.open("helper.py", "def helper(total_radius):\n    return total_radius\n")
        vim.open("generated/made.py", "total_radius = 3\n")
        uri = vim.open("main.py", text)
        vim.complete(uri, 4, 15)
        (body,) = server.bodies
        paths = {extra["path"]: extra["text"] for extra in body["extras"]}
        assert sorted(paths) == ["geometry.py", "helper.py"]
        assert paths["geometry.py"] == "def circle_area(radius):\n    return 3.14 * radius ** 2\n"
        assert vim.complete(vim.uri(".env"), 0, 26) is None
        assert vim.complete(vim.uri("keys/server.pem"), 0, 12, kind=1) is None
        assert len(server.bodies) == 1


def test_a_project_cannot_choose_where_code_is_sent(tmp_path: Path) -> None:
    with scripted(lambda body: "ours") as ours, scripted(lambda body: "theirs") as theirs:
        (tmp_path / "starcoder.toml").write_text(f'[lsp]\nurl = "{theirs.url}"\nmax_tokens = 7\n')
        config = tmp_path / ".config" / "starcoder"
        config.mkdir(parents=True)
        (config / "starcoder.toml").write_text(f'[lsp]\nurl = "{ours.url}"\n')
        with editor(tmp_path) as vim:
            uri = vim.open("a.py", SOURCE)
            assert vim.complete(uri, 1, 11) == "ours"
            assert theirs.bodies == []
            assert ours.bodies[0]["max_tokens"] == 7
            assert any("url" in message and "ignored" in message for message in vim.messages())


@pytest.mark.parametrize(
    "content",
    ["[lsp\n", "[lsp]\nmax_tokens = 'many'\n", "[lsp]\nmax_tokens = true\n", "[lsp]\nnew = 1\n", "lsp = 3\n"],
)
def test_wrong_settings_are_one_message_and_the_rest_works(tmp_path: Path, content: str) -> None:
    (tmp_path / "starcoder.toml").write_text(content)
    with scripted(lambda body: "x") as server, editor(tmp_path, "--url", server.url) as vim:
        uri = vim.open("a.py", SOURCE)
        assert vim.complete(uri, 1, 11) == "x"
        assert len(vim.messages()) == 1
        assert "starcoder.toml" in vim.messages()[0]


def test_a_server_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    with editor(tmp_path, url="http://127.0.0.1:9") as vim:
        uri = vim.open("a.py", SOURCE)
        for _ in range(3):
            assert vim.complete(uri, 1, 11) is None
        assert len(vim.messages()) == 1
        assert "127.0.0.1:9" in vim.messages()[0]


def test_a_refusal_of_the_server_is_shown_and_a_superseded_request_is_not(tmp_path: Path) -> None:
    refusals = iter([(409, {"error": {"message": "superseded"}}), (401, {"error": {"message": "no key"}})])
    with scripted(lambda body: next(refusals)) as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", SOURCE)
        assert vim.complete(uri, 1, 11) is None
        assert vim.messages() == []
        assert vim.complete(uri, 1, 11) is None
        assert "no key" in vim.messages()[0]


def test_acceptance_is_counted_on_this_machine_across_processes(tmp_path: Path) -> None:
    for _ in range(2):
        with scripted(lambda body: "width") as server, editor(tmp_path, url=server.url) as vim:
            uri = vim.open("a.py", SOURCE)
            item = vim.wait(vim.begin_complete(uri, 1, 11))["result"]["items"][0]
            vim.command(item["command"]["command"], *item["command"]["arguments"])
            vim.command(item["command"]["command"], *item["command"]["arguments"])
            status = vim.command("starcoder.status")
            assert status["ready"] and status["model"] == "scripted"
            assert vim.stop() == 0
    saved = json.loads((tmp_path / ".state" / "starcoder" / "completions.json").read_text())
    assert saved == {"python": {"shown": 2, "accepted": 2, "accepted_characters": 10}}


def test_toggle_switches_completions_off_and_on(tmp_path: Path) -> None:
    with scripted(lambda body: "x") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", SOURCE)
        assert vim.command("starcoder.toggle") is False
        assert vim.complete(uri, 1, 11) is None
        assert vim.complete(uri, 1, 11, kind=1) == "x", "the user's own wish"
        assert vim.command("starcoder.toggle") is True
        vim.insert(uri, 1, 11, "q")
        assert vim.complete(uri, 1, 12) == "x"


def test_plain_completion_is_off_until_asked_for(tmp_path: Path) -> None:
    place = {"position": {"line": 1, "character": 13}}
    for is_on in (False, True):
        with (
            scripted(lambda body: "dth *\n  height") as server,
            editor(tmp_path, url=server.url, completion=is_on, completion_deadline_ms=20_000) as vim,
        ):
            uri = vim.open("a.py", SOURCE.replace("return ", "return wi"))
            result = vim.ask("textDocument/completion", {"textDocument": {"uri": uri}, **place})["result"]
            assert result["isIncomplete"] is is_on
            assert [item["label"] for item in result["items"]] == (["width *…"] if is_on else [])
            if is_on:
                (item,) = result["items"]
                assert item["filterText"] == "wi"
                assert item["insertText"] == "width *\n  height"


def test_a_plain_completion_is_empty_after_its_deadline(tmp_path: Path) -> None:
    def slow(body):
        time.sleep(3)
        return "late"

    with scripted(slow) as server, editor(tmp_path, url=server.url, completion=True) as vim:
        uri = vim.open("a.py", SOURCE)
        started = time.perf_counter()
        params = {"textDocument": {"uri": uri}, "position": {"line": 1, "character": 11}}
        assert vim.ask("textDocument/completion", params)["result"]["items"] == []
        assert time.perf_counter() - started < 2.5


def test_a_selection_is_filled_by_one_versioned_edit(tmp_path: Path) -> None:
    with scripted(lambda body: "width * height") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", "def f(width, height):\n    return None\n")
        span = {"start": {"line": 1, "character": 11}, "end": {"line": 1, "character": 15}}
        (action,) = vim.ask(
            "textDocument/codeAction",
            {"textDocument": {"uri": uri}, "range": span, "context": {"diagnostics": []}},
        )["result"]
        assert action["title"] == "StarCoder: fill the selection"
        vim.command(action["command"]["command"], *action["command"]["arguments"])
        (change,) = vim.edits[0]["edit"]["documentChanges"]
        assert change["textDocument"] == {"uri": uri, "version": 1}
        assert change["edits"] == [{"range": span, "newText": "width * height"}]
        assert server.bodies[0]["suffix"] == "\n"


def test_broken_messages_and_odd_documents_do_not_end_the_server(tmp_path: Path) -> None:
    with scripted(lambda body: "x") as server, editor(tmp_path, url=server.url) as vim:
        vim.send_raw(b"{not json")
        vim.send_raw(b'{"jsonrpc": "2.0", "id": 7000, "method": 3}')
        assert "error" in vim.ask("starcoder/unknown", {})
        vim.notify("$/unknown", {})
        binary = vim.open("a.bin", "a\0b\n" * 10, "plaintext")
        assert vim.complete(binary, 1, 1) is None
        large = vim.open("large.py", "value = 1\n" * 150_000)
        assert vim.complete(large, 75_000, 9) == "x"
        assert len(server.bodies[-1]["prompt"]) + len(server.bodies[-1]["suffix"]) < 100_000
        assert vim.complete(vim.uri("never opened.py"), 0, 0) is None
        unsaved = "untitled:Untitled-1"
        item = {"uri": unsaved, "languageId": "python", "version": 1, "text": "def f():\n    "}
        vim.notify("textDocument/didOpen", {"textDocument": item})
        assert vim.complete(unsaved, 1, 4) == "x"
        gone = vim.open("gone/folder/a.py", "from . import b\nx = ")
        assert vim.complete(gone, 1, 4) == "x"
        assert vim.complete(gone, 999, 999) == "x"
        assert vim.stop() == 0


def test_a_thousand_random_edits_from_two_editors_show_nothing_stale(tmp_path: Path) -> None:
    """The answer names the text it was made for: it has to be the text that the editor has."""

    def answer(body):
        time.sleep(random.random() * 0.01)
        return f"<{len(body['prompt'])}>"

    with scripted(answer) as server:
        failures: list[object] = []

        def work(seed: int) -> None:
            rng = random.Random(seed)
            try:
                with editor(tmp_path, url=server.url, context_characters=0, max_line_suffix=10_000) as vim:
                    uri, text, pending = vim.open(f"{seed}.py", ""), "", []
                    for _ in range(500):
                        at = rng.randint(0, len(text))
                        text = text[:at] + "q" + text[at:]
                        vim.insert(uri, 0, at, "q")
                        pending.append((vim.versions[uri], at + 1, vim.begin_complete(uri, 0, at + 1)))
                    shown = 0
                    for version, cursor, number in pending:
                        result = vim.wait(number)["result"]
                        if result is not None:
                            shown += 1
                            assert result["items"][0]["insertText"] == f"<{cursor}>", version
                    assert shown >= 1
                    assert result is not None, "the newest request is answered"
                    assert vim.stop() == 0
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []


def test_it_is_small_and_starts_without_torch(tmp_path: Path) -> None:
    with scripted(lambda body: "x") as server, editor(tmp_path, url=server.url) as vim:
        uri = vim.open("a.py", SOURCE)
        assert vim.complete(uri, 1, 11) == "x"
        status = Path(f"/proc/{vim.process.pid}/status")
        if not status.exists():
            pytest.skip("resident memory is read from /proc, which this system does not have")
        fields = dict(line.split(":", 1) for line in status.read_text().split("\n") if ":" in line)
        assert int(fields["VmRSS"].split()[0]) < 80_000
        maps = Path(f"/proc/{vim.process.pid}/maps").read_text()
        assert "torch" not in maps


def test_importing_the_server_is_quick() -> None:
    """Half a second of CPU time; wall time would measure what else the machine does."""
    code = "import time, starcoder.cli.lsp, starcoder.lsp.server; print(time.process_time())"
    taken = [
        float(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True).stdout)
        for _ in range(3)
    ]
    assert min(taken) < 0.5
