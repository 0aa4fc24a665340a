"""The sandbox says of a program what running it says, once for equal ones, and nothing gets out of it."""

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from starcoder.errors import SandboxError
from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.sandbox.verdicts import GUARANTEES, LAYERS, Isolation, Limits, Program
from tests.evaluate.hostile.programs import HOSTILE, PREAMBLE, filled

ADD = "def add(a, b):\n    return a + b\n"
TESTS = """
def check(candidate):
    assert candidate(2, 3) == 5
    assert candidate("a", "b") == "ab"

check(add)
"""
LIMITS = Limits(timeout_s=2.5, memory_bytes=512 << 20)


@pytest.fixture(scope="module")
def sandbox():
    with Sandbox(workers=2, limits=LIMITS) as sandbox:
        yield sandbox


def verdict(sandbox, source, tests=TESTS, language="python", **more):
    return sandbox.submit(Program(source, tests, language, **more)).result()


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        (ADD, "passed"),
        ("def add(a, b): return a - b", "assertion"),
        ("def add(a, b) return a", "syntax"),
        ("def add(a, b: return a", "syntax"),
        ("def sub(a, b): return a", "name"),
        ("def add(a, b): return a + c", "name"),
        ("import nonesuch", "error"),
        ("def add(a, b): return 1 / 0", "error"),
        ("def add(a, b): return add(a, b)", "error"),
        ("def add(a, b):\n  while True: pass", "timeout"),
        ("def add(a, b): return [0] * 10 ** 10", "memory"),
        ("raise SystemExit", "exit"),
        ("import os; os._exit(0)", "exit"),
        ("def add(a, b): return open('/usr/mine', 'w')", "isolation"),
        ("import socket\ndef add(a, b): return socket.socket()", "isolation"),
    ],
)
def test_each_way_to_end_has_its_kind(sandbox, source, kind):
    assert verdict(sandbox, source).kind == kind


def test_detail_names_the_line_of_the_tests(sandbox):
    failed = verdict(sandbox, "def add(a, b): return 5")
    assert failed.detail == "AssertionError (line 4 of the tests)"


@pytest.mark.parametrize(
    "value",
    ["None", "True", "2**70", "-(2**70)", "1.5", "float('inf')", "'\\ud800é'", "b'a'", "bytearray(b'a')",
     "[1, [2, (3,)]]", "(1, 'a')", "{1, 2}", "frozenset({1})", "{(1, 2): [3], 'k': {}}", "1j", "range(3)",
     "[(1, 'a'), (2,), ()]", "[(1, (2,)), (3,)]", "[(2**70,), (1,)]", "[1, 2**70]", "[[1, 2], [None, True]]",
     "__import__('decimal').Decimal('1.1')", "__import__('fractions').Fraction(1, 3)", "int", "type(None)",
     "__import__('datetime').date(2024, 2, 29)", "__import__('datetime').datetime(2024, 2, 29, 1, 2, 3, 4)",
     "__import__('datetime').datetime(2024, 1, 1, tzinfo=__import__('datetime').timezone.utc)",
     "__import__('datetime').timedelta(-1, 2, 3)", "__import__('datetime').time(1, 2)",
     "__import__('collections').deque([1, (2,)], 3)", "__import__('collections').Counter('aab')",
     "__import__('collections').OrderedDict(b=1, a=2)",
     "__import__('collections').defaultdict(list, {1: [2]})"],
)  # fmt: skip
def test_plain_values_travel_unchanged(sandbox, value):
    tests = f"value = {value}\nback = same(value)\nassert back == value and type(back) is type(value)"
    assert verdict(sandbox, "def same(x): return x", tests).passed
    assert verdict(sandbox, f"def same(x): return {value}", tests).passed


def test_arguments_are_copies_and_tests_that_look_at_a_change_are_not_confirmed(sandbox):
    tests = "items = [3, 1, 2]\nassert order(items) is None\nassert items == [1, 2, 3]"
    assert verdict(sandbox, "def order(items): items.sort()", tests).kind == "unconfirmed"
    assert verdict(sandbox, "def order(items): items = sorted(items)", tests).kind == "assertion"
    kept = "items = [3, 1, 2]\nassert order(items) == [1, 2, 3]\nassert items == [3, 1, 2]"
    assert verdict(sandbox, "def order(items): return sorted(items)", kept).passed
    assert verdict(sandbox, "def order(items):\n  items.sort()\n  return items", kept).kind == "assertion"
    unseen = "items = [3, 1, 2]\nassert order(items) == [1, 2, 3]\nassert order([2, 1]) == [1, 2]"
    assert verdict(sandbox, "def order(items):\n  items.sort()\n  return items", unseen).passed


@pytest.mark.parametrize(
    ("source", "tests"),
    [
        ("def f(): return {1: 2, 3: 4}.keys()", "assert f() == {1, 3}"),
        ("def f(): return {1: 2}.items()", "assert f() == {(1, 2)} and (1, 2) in f()"),
        ("def f(): return {1: 2}.values()", "assert list(f()) == [2] and f() != [2]"),
        ("def f(x): return type(x)", "assert f(1) == int and f('') is str"),
        ("import datetime\ndef f(): return datetime.date(2024, 1, 2)",
         "import datetime\nassert f() == datetime.date(2024, 1, 2)"),
        ("from collections import deque\ndef f(): return deque([3])",
         "from collections import deque\nassert f() == deque([3])"),
        ("from collections import namedtuple\nP = namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
         "assert f() == (1, 2) and f().x == 1 and f()._replace(y=5) == (1, 5)"),
        ("import enum\nclass C(enum.IntEnum):\n  A = 3\ndef f(): return C.A", "assert f() == 3"),
        ("def f(n):\n  while True:\n    yield n\n    n += 1",
         "g = f(3)\nassert next(g) == 3 and next(g) == 4 and g != [3]"),
        ("f = (x * x for x in range(3))", "assert list(f) == [0, 1, 4]"),
        ("def f(): return map(str, [1, 2])", "assert list(f()) == ['1', '2']"),
        ("f = int", "assert f('12') == 12"),
        ("import re\ndef f(s): return re.search('(?P<a>x+)(y)?', s)",
         "m = f('oxx')\nassert m and m.group() == m['a'] == 'xx' and m.span() == (1, 3)\n"
         "assert m.groups() == ('xx', None) and m.groupdict('') == {'a': 'xx'} and m.end(2) == -1\n"
         "assert m.group(1, 2) == ('xx', None) and not f('o') and m != f('oxx')"),
        ("class Node:\n  def __init__(self, v): self.v = v\ndef value(node): return node.v",
         "assert value(Node(3)) == 3"),
    ],
)  # fmt: skip
def test_values_compare_as_in_one_process(sandbox, source, tests):
    exec(f"{source}\n{tests}", {})
    found = verdict(sandbox, source, tests)
    assert found.passed, found


def test_objects_that_are_not_data_are_not_confirmed(sandbox):
    source = """
class V:
    def __init__(self, x): self.x = x
    def __eq__(self, other): return self.x == other.x
    def __add__(self, other): return V(self.x + other.x)
    def __len__(self): return self.x
def f(x): return V(x)
"""
    for tests in ("assert f(1) + f(2) == V(3)", "assert len(V(2)) == 2", "assert f(3).x == 3", "assert V(1)"):
        assert verdict(sandbox, source, tests).kind == "unconfirmed"
    assert verdict(sandbox, source, "assert f(1) == V(2)").kind == "assertion"


def test_tests_see_exceptions_of_the_candidate(sandbox):
    tests = "try: fail()\nexcept ValueError as error: assert str(error) == 'no'\nelse: assert False"
    assert verdict(sandbox, "def fail(): raise ValueError('no')", tests).passed
    assert verdict(sandbox, "class Mine(ValueError): pass\ndef fail(): raise Mine('no')", tests).passed


def test_only_the_task_decides_what_names_mean(sandbox):
    source = "import math\nfrom collections import Counter\ndef root(x): return math.sqrt(x)"
    assert verdict(sandbox, source, "assert math.isclose(root(4), 2)").passed  # Python's math, not its
    fake = "class math:\n  def isclose(*a): return True\ndef root(x): return 0"
    assert verdict(sandbox, fake, "assert math.isclose(root(4), 2)").kind == "assertion"
    helper, tests = "def half(x): return x / 2\n", "assert half(double(4)) == 4"
    entry = {"entry_points": ("double",), "setup": helper + "def double(x): return 2 * x"}
    assert verdict(sandbox, "def double(x): return x + x", tests, **entry).passed
    cheat = "def half(x): return 4\ndef double(x): return 0"
    assert verdict(sandbox, cheat, tests, **entry).kind == "assertion"
    assert verdict(sandbox, "def other(): pass", tests, **entry).kind == "name"


def test_a_candidate_named_like_a_builtin_is_tested_only_where_the_task_says_so(sandbox):
    source, tests = "def sum(a, b): return a + b", "assert sum(2, 3) == 5"
    assert verdict(sandbox, source, tests, entry_points=("sum",)).passed
    assert not verdict(sandbox, source, tests).passed
    cheat = "def all(x): return True\ndef double(x): return x"
    assert verdict(sandbox, cheat, "assert all(double(x) == 2 * x for x in [1, 2])").kind == "assertion"


def test_tests_that_pass_functions_run_together_with_the_candidate_and_are_not_confirmed(sandbox):
    source = "def twice(f, x): return f(f(x))"
    passed = verdict(sandbox, source, "assert twice(lambda x: x + 1, 0) == 2")
    assert (passed.kind, passed.passed) == ("unconfirmed", False)
    assert verdict(sandbox, source, "assert twice(lambda x: x + 1, 0) == 3").kind == "assertion"
    early = "import sys\ndef twice(f, x): sys.exit(0)"
    assert verdict(sandbox, early, "assert twice(lambda x: x + 1, 0) == 2").kind == "exit"


def test_classes_that_the_task_knows_are_tested_by_their_members(sandbox):
    source = """
class Stack:
    def __init__(self): self.items = []; self.top = None
    def push(self, item):
        self.items.append(item)
        self.top = item
        return self
    def pop(self): return self.items.pop()
    def __len__(self): return len(self.items)
    def __iter__(self): return iter(self.items)
    def __getitem__(self, i): return self.items[i]
"""
    tests = """
stack = Stack()
assert not stack
stack.push(1).push(2)
assert len(stack) == 2 and list(stack) == [1, 2] and stack[0] == 1 and stack.top == 2 and stack
assert stack.pop() == 2 and stack.items == [1]
"""
    entry = {"entry_points": ("Stack",), "setup": source}
    assert verdict(sandbox, source, tests, **entry).passed
    assert verdict(sandbox, source, "assert Stack() == Stack()", **entry).kind == "assertion"
    more = source + "    def equals(self, other): return True\n    def __eq__(self, other): return True\n"
    for cheat in ("assert Stack().equals([1])", "assert Stack() == 5"):
        assert verdict(sandbox, more, cheat, **entry).kind == "unconfirmed"


def test_a_failure_shows_input_expected_and_found(sandbox):
    found = verdict(sandbox, "def add(a, b): return a - b", "x = 3\nassert add(1, 2) == [x]")
    assert (found.input, found.expected, found.found) == ("add(1, 2)", "[3]", "-1")


def test_equal_programs_are_run_once(sandbox):
    source = "import os, time\ndef now(): return time.time_ns()\n"
    programs = [Program(source, "assert now() % 2 == 0")] * 8
    assert len({verdict.kind for _, verdict in sandbox.run(programs)}) == 1
    assert sandbox.submit(programs[0]) is sandbox.submit(Program(source, "assert now() % 2 == 0"))


def test_verdicts_belong_to_their_programs(sandbox):
    programs = [Program(f"def n(): return {i}", "assert n() % 3 == 0") for i in range(40)]
    kinds = {index: verdict.kind for index, verdict in sandbox.run(programs)}
    assert kinds == {i: "assertion" if i % 3 else "passed" for i in range(40)}


def test_verdicts_belong_to_their_programs_though_some_kill_their_worker_or_are_cancelled():
    def program(i):
        return Program(f"def n(): return {i}", "assert n() % 3 == 0")

    with Sandbox(workers=2, limits=LIMITS) as own:
        futures = [own.submit(program(i)) for i in range(300)]
        cancelled = [future.cancel() for future in futures[100::7]]
        for worker, at in zip(own._workers, (20, 60), strict=True):
            futures[at].result()
            worker._process.kill()
        kinds = {i: future.result().kind for i, future in enumerate(futures) if not future.cancelled()}
    assert any(cancelled) and len(kinds) == 300 - sum(cancelled)
    assert kinds == {i: "assertion" if i % 3 else "passed" for i in kinds}


def test_closing_in_the_middle_leaves_nobody_waiting():
    own = Sandbox(workers=2, limits=LIMITS)
    futures = [own.submit(Program(f"import time; time.sleep(0.01)  # {i}", "")) for i in range(100)]
    futures[5].result()
    own.close()
    assert all(future.cancelled() or future.done() for future in futures)


def test_programs_share_nothing(sandbox):
    leave = "import os, builtins, math\nopen('/tmp/left', 'w').close()\nmath.left = builtins.left = 1\n" + ADD
    look = (
        "import os, builtins, math\ndef left(): return os.path.exists('/tmp/left') or hasattr(math, 'left')"
    )
    for _ in range(2):
        assert verdict(sandbox, leave).passed
    assert verdict(sandbox, look, "assert not left()").passed


def test_every_layer_and_every_guarantee_is_named(sandbox):
    layers = sandbox.isolation
    assert set(layers.reached) <= set(LAYERS) and not set(layers.reached) & set(layers.missing)
    assert set(sandbox.holds) == set(GUARANTEES)
    assert Isolation(("net-namespace",), ()).lacks == (
        "files",
        "signals",
        "memory",
        "disk",
        "cpu-time",
        "processes",
    )


def test_a_guarantee_that_cannot_be_given_is_refused_until_it_is_accepted_by_name():
    with pytest.raises(SandboxError, match="cannot guarantee memory, cpu-time") as caught:
        Sandbox(workers=1, without={"usage-watch"})
    assert "--accept-missing memory" in caught.value.hint
    with pytest.raises(SandboxError, match="cpu-time"):
        Sandbox(workers=1, without={"usage-watch"}, accept_missing=["memory"])
    with pytest.raises(SandboxError, match="there is no guarantee 'walls'"):
        Sandbox(workers=1, accept_missing=["walls"])
    accepted = ["memory", "cpu-time"]
    with Sandbox(workers=1, limits=LIMITS, without={"usage-watch"}, accept_missing=accepted) as lesser:
        assert lesser.holds["memory"] == () and lesser.holds["network"]
        assert verdict(lesser, ADD).passed


MACHINES = {
    "no namespaces": {"user-namespace"},
    "no Landlock": {"landlock"},
    "no scope of signals": {"signal-scope"},
    "no namespaces and no scope of signals": {"user-namespace", "signal-scope"},
    "no filter": {"seccomp"},
    "no namespaces and no Landlock": {"user-namespace", "landlock"},
    "no namespaces and no filter": {"user-namespace", "seccomp"},
    "nothing": {"user-namespace", "landlock", "seccomp"},
}
BREAK = {
    "network": "import socket\nsocket.create_connection(('127.0.0.1', {port}), 1)\nwon()",
    "files": "open({secret!r}).read()\nwon()",
    "signals": "import os\nos.kill({bystander}, 9)\nwon()",
    "signals of all": "import os\nos.kill(-1, 9)",
    "memory": "import mmap, os, time\nfor _ in range(2): os.fork()\n"
    "m = mmap.mmap(-1, 200 << 20)\nfor i in range(0, 200 << 20, 4096): m[i] = 1\ntime.sleep(9)\nwon()",
}


@pytest.mark.parametrize("machine", MACHINES)
def test_each_guarantee_holds_or_the_sandbox_refuses(machine, tmp_path):
    """The number of root's processes and the size of /tmp need namespaces; that alone is accepted here."""
    secret = tmp_path / "secret"
    secret.write_text("x")
    server = socket.create_server(("127.0.0.1", 0))
    bystander = subprocess.Popen(["sleep", "60"])
    blanks = {"port": server.getsockname()[1], "secret": str(secret), "bystander": bystander.pid}
    try:
        own = Sandbox(
            workers=1, limits=LIMITS, without=MACHINES[machine], accept_missing=["processes", "disk"]
        )
    except SandboxError as error:
        assert "cannot guarantee" in str(error)
    else:
        with own:
            assert set(own.isolation.lacks) <= {"processes", "disk"}
            assert verdict(own, ADD).passed
            for what, text in BREAK.items():
                source = PREAMBLE + text.format(**blanks)
                assert not verdict(own, source).passed, what
                assert verdict(own, f"{ADD}# after {what}").passed
            worker = own._workers[0]._process
            assert worker.poll() is None
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
        server.close()


def test_a_program_gets_what_it_needs_and_the_next_one_no_more():
    source = "import time\ndef wait():\n    time.sleep(0.5)\n    return len(bytearray(300 << 20))\n"
    needs = Limits(timeout_s=20, memory_bytes=1 << 30)
    with Sandbox(workers=1, limits=Limits(timeout_s=0.3, memory_bytes=256 << 20)) as own:
        for program, kind in (
            (Program(source, "assert wait()", needs=needs), "passed"),
            (Program(source, "assert wait()"), "timeout"),
            (Program(source.replace("0.5", "0"), "assert wait()"), "memory"),
            (Program(source, "assert wait() > 0", needs=needs), "passed"),
        ):
            assert own.submit(program).result().kind == kind


def test_limits_are_widened_only_where_needed():
    narrow, wide = Limits(timeout_s=1, memory_bytes=9), Limits(timeout_s=2, memory_bytes=8)
    assert narrow.at_least(wide) == Limits(timeout_s=2, memory_bytes=9)
    assert narrow.at_least(None) is narrow


def test_packages_are_visible_when_asked_for(tmp_path):
    (tmp_path / "mine.py").write_text("VALUE = 3\n")
    tmp_path.chmod(0o755)  # programs are nobody where the tests are root
    source = "import mine\ndef add(a, b): return mine.VALUE"
    with Sandbox(workers=1, limits=LIMITS, packages=[tmp_path]) as own:
        assert verdict(own, source, "assert add(1, 2) == 3").passed


def test_a_worker_that_is_killed_is_replaced(sandbox):
    with Sandbox(workers=1, limits=LIMITS) as own:
        assert verdict(own, ADD).passed
        own._workers[0]._process.kill()
        assert verdict(own, ADD + "# again").passed


def test_closing_leaves_no_process_and_no_file():
    own = Sandbox(workers=2, limits=LIMITS)
    own.submit(Program("import time; time.sleep(60)", ""))
    folder, process = own._scratch.name, own._workers[0]._process
    own.close()
    own.close()
    assert process.poll() is not None
    assert not os.path.exists(folder)


def test_the_process_behind_it_ends_with_a_killed_caller():
    script = (
        "import os\nfrom starcoder.evaluate.sandbox.pool import Sandbox\n"
        "s = Sandbox(workers=1)\nprint(s._workers[0]._process.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60
    )
    worker = int(done.stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{worker}"):
            return
        threading.Event().wait(0.05)
    pytest.fail("the worker outlives its caller")


OTHER = {
    "javascript": ("const add = (a, b) => a + b;", "if (add(2, 3) !== 5) throw new Error('assert');"),
    "bash": ("add() { echo $(($1 + $2)); }", "set -e\n[ $(add 2 3) = 5 ]"),
    "perl": ("sub add { return $_[0] + $_[1]; }", "die 'assert' unless add(2, 3) == 5;"),
    "cpp": (
        "int add(int a, int b) { return a + b; }",
        "#include <cassert>\nint main() {\n assert(add(2, 3) == 5);\n}",
    ),
    "rust": ("fn add(a: i32, b: i32) -> i32 { a + b }", "fn main() {\n assert_eq!(add(2, 3), 5);\n}"),
    "java": (
        "class Problem { static int add(int a, int b) { return a + b; }",
        "public static void main(String[] a) {\n assert add(2, 3) == 5;\n}\n}",
    ),
}
EARLY = {
    "javascript": "process.exit(0);",
    "bash": "exit 0",
    "perl": "exit 0;",
    "cpp": "#include <cstdlib>\nint before = (std::exit(0), 0);\nint add(int a, int b) { return 0; }",
    "rust": "fn add(a: i32, b: i32) -> i32 { std::process::exit(0) }",
    "java": "class Problem { static int add(int a, int b) { System.exit(0); return 0; }",
}


@pytest.mark.parametrize("language", OTHER)
def test_other_languages_pass_fail_and_exit_early(language):
    with Sandbox(workers=1, limits=Limits(timeout_s=10)) as own:
        if not own.available(language):
            pytest.skip(f"no tool-chain for {language} on this machine")
        source, tests = OTHER[language]
        assert verdict(own, source, tests, language).kind == "unconfirmed"
        wrong = verdict(own, source.replace("+", "-"), tests, language)
        assert wrong.kind in ("assertion", "error")
        assert verdict(own, EARLY[language], tests, language).kind == "exit"
        assert verdict(own, "((( !", tests, language).kind not in ("unconfirmed", "exit")


def test_a_language_without_tools_is_unavailable_not_failed(sandbox):
    assert not sandbox.available("cobol")
    assert verdict(sandbox, "", "", "cobol").kind == "unavailable"


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """What programs must not reach, and a list of what reached it."""
    folder: Path = tmp_path_factory.mktemp("home")
    (folder / "secret").write_text("the user's\n")
    reached: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.bind(("127.0.0.1", port))
    path = str(folder / "socket")
    local, abstract = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
    local.bind(path)
    abstract.bind("\0" + path)
    sockets = (server, datagrams, local, abstract)
    for listener in (server, local, abstract):
        listener.listen()
    for each in sockets:
        each.setblocking(False)

    def contacts():
        for each in sockets:
            try:
                each.recv(1) if each is datagrams else each.accept()[0].close()
            except BlockingIOError:
                continue
            reached.append(str(each))
        return reached + sorted(name for name in os.listdir(folder) if name not in ("secret", "socket"))

    yield folder, port, path, contacts
    for each in sockets:
        each.close()


def test_no_hostile_program_passes_or_escapes_and_the_run_goes_on(targets):
    folder, port, path, contacts = targets
    os.environ["SECRET_OF_THE_TESTS"] = "1"
    programs = filled(str(folder / "secret"), str(folder), port, path)
    assert len(programs) == len(HOSTILE) >= 60
    mixed = []
    for number, source in enumerate(programs.values()):
        mixed += [Program(source, TESTS), Program(f"{ADD}# {number}", TESTS)]
    with Sandbox(workers=2, limits=LIMITS) as own:
        if "pid-namespace" not in own.isolation.reached:
            pytest.skip("without namespaces bombs would go off in the tests' own user")
        verdicts = dict(own.run(mixed))
        processes = [worker._process.pid for worker in own._workers]
        assert all(os.path.exists(f"/proc/{process}") for process in processes)
    del os.environ["SECRET_OF_THE_TESTS"]
    hostile = {name: verdicts[2 * number] for number, name in enumerate(programs)}
    assert {name: verdict for name, verdict in hostile.items() if verdict.passed} == {}
    honest = [verdicts[2 * number + 1] for number in range(len(programs))]
    assert [verdict for verdict in honest if not verdict.passed] == []
    assert contacts() == []


def test_an_object_equal_to_everything_passes_where_the_tests_do_not_run_apart():
    """Else the test above would prove nothing of it."""
    exec(filled("", "", 0, "")["equal to everything"] + TESTS, {})
