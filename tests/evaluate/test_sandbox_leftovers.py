"""What one program leaves, does or finds out never reaches the next, though both come from one process."""

from dataclasses import replace

import pytest

from starcoder.evaluate.sandbox.pool import Sandbox
from starcoder.evaluate.sandbox.verdicts import Limits, Program

NUMBER = "import os\ndef number(): return os.getpid()\n"
LIMITS = Limits(timeout_s=2.5, memory_bytes=512 << 20)

LEFT = {
    "a file": ("open('/tmp/left', 'w').close()", "import os\ndef sound(): return os.listdir('/tmp') == []"),
    "a file that was removed": (
        "import os\nopen('/tmp/left', 'w').close(); os.remove('/tmp/left')",
        "import os\ndef sound(): return os.listdir('/tmp') == []",
    ),
    "a locked /tmp": (
        "import os\nos.chmod('/tmp', 0)",
        "def sound(): return open('/tmp/mine', 'w').write('x') == 1",
    ),
    "a working folder, a mask, limits, a priority": (
        "import os, resource\nos.mkdir('/tmp/a'); os.chdir('/tmp/a'); os.umask(0o777); os.nice(19)\n"
        "for kind in range(16):\n"
        "    try: resource.setrlimit(kind, (1, 1))\n"
        "    except (OSError, ValueError): pass",
        "import os, resource\n"
        "def sound():\n"
        "    kinds = [resource.RLIMIT_NOFILE, resource.RLIMIT_AS, resource.RLIMIT_CPU]\n"
        "    return (os.getcwd() == '/tmp' and os.umask(0) != 0o777 and os.getpriority(0, 0) < 19\n"
        "            and min(resource.getrlimit(kind)[0] for kind in kinds) > 1)",
    ),
    "a process": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(60)",
        "import os\n"
        "def there(number):\n"
        "    try: os.kill(number, 0)\n"
        "    except ProcessLookupError: return False\n"
        "    except PermissionError: return True\n"
        "    return True\n"
        "def sound(): return not any(there(n) for n in range(2, 500) if n != os.getpid())",
    ),
    "a lock and flags on the open files of all": (
        "import fcntl\nfor fd in range(3):\n    fcntl.flock(fd, fcntl.LOCK_EX)\n"
        "    fcntl.fcntl(fd, fcntl.F_SETFL, 2048)",
        "import fcntl\n"
        "def sound():\n"
        "    fcntl.flock(0, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "    return all(not fcntl.fcntl(fd, fcntl.F_GETFL) & 2048 for fd in range(3))",
    ),
    "a socket with a name": (
        "import socket\npair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)\npair[0].bind('\\0left')",
        "import socket\n"
        "def sound():\n"
        "    try: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)[0].sendto(b'x', '\\0left')\n"
        "    except OSError: return True\n"
        "    return False",
    ),
    "signals shut off": (
        "import os, signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, signal.SIG_IGN); os.kill(os.getppid(), n)\n"
        "    except (OSError, ValueError): pass",
        "import signal\n"
        "def sound(): return signal.getsignal(signal.SIGTERM) == signal.SIG_DFL and not signal.sigpending()",
    ),
    "a changed module and builtin": (
        "import builtins, math\nmath.left = builtins.left = 1",
        "import builtins, math\n"
        "def sound(): return not hasattr(math, 'left') and not hasattr(builtins, 'left')",
    ),
}  # fmt: skip

TEXTS_IN_MEMORY = r"""
import ctypes, gc, os, re
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
reader, writer = os.pipe()
def page(address):
    if libc.write(writer, ctypes.c_void_p(address), 4096) != 4096: return b''
    return os.read(reader, 4096)
def pages(start, step):
    address = start & ~4095
    while found := page(address):
        yield found
        address += step
def texts():
    for start in {libc.sbrk(0) - 4096, id(gc), id(texts), id(''), id(page), id(10 ** 20)}:
        for step in (-4096, 4096):
            yield b''.join(pages(start, step))[: 64 << 20]
def found():
    return sorted({text.decode() for part in texts() for text in re.findall(rb'MARK_[A-Z]+_\d{6}', part)})
"""


@pytest.fixture
def sandbox():
    with Sandbox(workers=1, limits=LIMITS) as sandbox:
        if "pid-namespace" not in sandbox.isolation.reached:
            pytest.skip("without pid namespaces no two programs share a process")
        yield sandbox


def verdict(sandbox, source, tests):
    return sandbox.submit(Program(source, tests)).result()


def test_programs_that_leave_nothing_come_from_one_process(sandbox):
    for number in (2, 3, 4):
        assert verdict(sandbox, f"{NUMBER}# {number}", f"assert number() == {number}").passed
    assert not verdict(sandbox, f"{NUMBER}# no", "assert number() < 0").passed
    assert verdict(sandbox, f"{NUMBER}# 6", "assert number() == 6").passed


@pytest.mark.parametrize(
    "source",
    [
        "open('/tmp/left', 'w').close()",
        "import os\nos.fork() or os._exit(0)",
        "import os, time\nos.fork() or time.sleep(60)",
        "while True: pass",
        "import os\nos.kill(os.getpid(), 19)",
    ],
)
def test_after_a_program_that_leaves_something_comes_a_new_process(sandbox, source):
    assert verdict(sandbox, NUMBER, "assert number() == 2").passed
    verdict(sandbox, source, "")
    assert verdict(sandbox, f"{NUMBER}# again", "assert number() == 2").passed


@pytest.mark.parametrize("what", LEFT)
def test_the_next_program_meets_nothing_of(sandbox, what):
    leave, look = LEFT[what]
    assert verdict(sandbox, look, "assert sound()").passed
    for times in range(2):
        verdict(sandbox, f"{leave}\n# {times}", "")
        found = verdict(sandbox, f"{look}\n# {times}", "assert sound()")
        assert found.passed, found


def test_a_candidate_finds_no_text_of_others_nor_its_own_tests_in_memory(sandbox):
    own = verdict(sandbox, TEXTS_IN_MEMORY + "# MARK_OWN_123456", "assert found() == ['MARK_OWN_123456']")
    assert own.passed, own  # or the search would prove nothing
    for _ in range(3):
        tests = "assert 'MARK_TESTS_123456' and True"
        verdict(sandbox, "# MARK_SOURCE_123456\ntext = 'MARK_SOURCE_123456' * 1000", tests)
        found = verdict(
            sandbox, TEXTS_IN_MEMORY, "texts = found()\nassert texts == [], texts\n'MARK_TESTS_654321'"
        )
        assert found.passed, found


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("import math\nmath.tau = 3", "import math\nassert math.tau > 6"),
        ("import sys\nsys.setrecursionlimit(60)", "def f(n): return n and f(n - 1)\nassert f(200) == 0"),
        ("import builtins\nbuiltins.sum = len", "assert sum([2, 3]) == 5"),
        ("__builtins__['sum'] = len", "assert sum([2, 3]) == 5"),
        ("globals()['__builtins__']['sum'] = len", "assert sum([2, 3]) == 5"),
        ("class A: pass\nA.b = 1", "assert sum([2, 3]) == 5"),
    ],
)
def test_tests_with_effects_do_not_reach_the_next_tests(sandbox, first, second):
    source = "def add(a, b): return a + b\n"
    assert verdict(sandbox, source, first).passed
    assert verdict(sandbox, source, second).passed


def test_what_a_candidate_lends_by_name_does_not_reach_the_next_tests(sandbox):
    assert verdict(sandbox, "from sys import setrecursionlimit as add", "assert add(60) is None").passed
    assert verdict(sandbox, "import this, sys\ndef add(a): return a", "assert add(1) == 1").passed
    assert verdict(sandbox, "", "import sys\nassert 'this' not in sys.modules").passed
    assert verdict(
        sandbox, "def add(a): return a", "def f(n): return n and f(n - 1)\nassert f(200) == 0"
    ).passed


def test_after_an_answer_of_many_bytes_comes_the_next():
    large = "def large(): return ['x' * 1000] * 150000"
    with Sandbox(workers=1, limits=replace(LIMITS, timeout_s=30)) as sandbox:  # 2 s where nothing else runs
        found = verdict(sandbox, large, "assert len(large()) == 150000")
        assert found.passed, found
        assert verdict(sandbox, "def add(a): return a", "assert add(1) == 1").passed


def test_a_court_that_tests_hung_is_left(sandbox):
    assert verdict(sandbox, "def add(a): return a", "while True: pass").kind == "timeout"
    assert verdict(sandbox, "def add(a): return a", "assert add(1) == 1").passed
