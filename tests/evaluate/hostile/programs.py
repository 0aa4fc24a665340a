"""Programs that try to pass without an answer, to get out, or to take the machine down.

Each is a candidate for `add(a, b)`. One that tries to reach something calls `won()` when it did, which
defines a right `add`: so a program passes if and only if the sandbox failed. Bombs stop by themselves at 300
processes, 2 GB or 500 MB, should nothing else stop them. `{secret}`, `{folder}`, `{port}` and `{socket}` are
a file, a folder, a TCP and UDP port and a socket of the host that are open to the user who runs the tests.
"""

PREAMBLE = """
def add(a, b):
    return None

def won():
    global add
    def add(a, b):
        return a + b
"""

LIBC = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
"""

EXITS = {
    "os._exit": "import os; os._exit(0)",
    "sys.exit": "import sys; sys.exit(0)",
    "sys.exit when called": "import sys\ndef add(a, b): sys.exit(0)",
    "os._exit when called": "import os\ndef add(a, b): os._exit(0)",
    "atexit": "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
    "abort": "import os; os.abort()",
    "kill oneself": "import os; os.kill(os.getpid(), 9)",
    "become another program": "import os; os.execv('/bin/true', ['/bin/true'])",
    "exit from a thread": "import threading, os; threading.Thread(target=os._exit, args=(0,)).start()",
    "an exception no test expects": "def add(a, b): raise KeyboardInterrupt",
    "exit in a destructor": "import os\nclass D:\n    def __del__(self): os._exit(0)\nD()",
}

FORGERIES = {
    "equal to everything": """
class Sure:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __bool__(self): return True
def add(a, b): return Sure()
""",
    "a number equal to everything": """
class Sure(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def add(a, b): return Sure(0)
""",
    "a text equal to everything": """
class Sure(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def add(a, b): return Sure()
""",
    "a metaclass": """
class Meta(type):
    def __eq__(cls, other): return True
    __hash__ = type.__hash__
class add(metaclass=Meta):
    def __new__(cls, a, b): return cls
""",
    "no assertion errors": """
import builtins
class AssertionError(Exception): pass
builtins.AssertionError = AssertionError
builtins.compile = lambda *a, **k: ''
builtins.exec = lambda *a, **k: None
""",
    "another check": "def check(candidate): pass\nimport sys\nsys.modules['tests'] = sys.modules[__name__]",
    "builtins as globals": "abs = all = len = isinstance = lambda *a: True\nnot_add = add",
    "trace out the tests": """
import sys, threading
def trace(frame, event, arg):
    if frame.f_code.co_name == 'check':
        frame.f_lineno = frame.f_lineno + 3
    return trace
sys.settrace(trace); threading.settrace(trace)
""",
    "write passed to every descriptor": r"""
import os, json, struct
for shape in (["passed", "", ""], ["value", None], {"kind": "passed", "detail": "", "seconds": 0}):
    data = json.dumps(shape).encode()
    for fd in range(64):
        try: os.write(fd, struct.pack('<I', len(data)) + data)
        except OSError: pass
""",
    "read every descriptor and say it back": r"""
import os, re, threading, time
def listen(fd):
    try:
        data = os.read(fd, 1 << 16)
        for nonce in re.findall(rb'[0-9a-f]{32}', data):
            os.write(fd, nonce)
    except OSError: pass
for fd in range(64):
    threading.Thread(target=listen, args=(fd,), daemon=True).start()
time.sleep(0.3)
""",
    "find the nonce in memory": r"""
import gc, re, sys
def texts():
    frame = sys._getframe()
    while frame:
        yield from map(repr, frame.f_locals.values()); frame = frame.f_back
    for thing in gc.get_objects():
        if isinstance(thing, (list, tuple, dict)):
            try: yield repr(thing)[:10000]
            except Exception: pass
found = {nonce for text in texts() for nonce in re.findall(r'[0-9a-f]{32}', text)}
import os, json, struct
for nonce in found:
    data = json.dumps(["passed", "", nonce]).encode()
    for fd in range(64):
        try: os.write(fd, struct.pack('<I', len(data)) + data)
        except OSError: pass
""",
    "answer every question from the channel": """
import gc, sys
frame = sys._getframe()
while frame:
    channel = frame.f_locals.get('channel')
    if channel:
        for _ in range(50):
            channel.send(["value", {"t": "tuple", "v": [True, {"t": "dict", "v": []}]}])
        break
    frame = frame.f_back
""",
    "patch the harness": """
import sys
for name, module in list(sys.modules.items()):
    if name.startswith('starcoder'):
        for attribute in ('classify', '_judge', '_post_mortem', '_believe', '_raised', 'decode', 'encode'):
            if hasattr(module, attribute):
                setattr(module, attribute, lambda *a, **k: ('passed', ''))
""",
    "answer twice from a fork": """
import os
for _ in range(4): os.fork()
""",
    "code that runs when unpickled": """
class Bomb:
    def __reduce__(self): return (exec, ("won()",))
    def __getstate__(self): return {}
def add(a, b): return [Bomb(), {1: Bomb()}]
""",
    "bytes that are a pickle": r"""
def add(a, b): return b"cposix\nsystem\n(S'true'\ntR."
""",
    "forms the reader should not know": """
import sys
frame = sys._getframe()
while 'channel' not in frame.f_locals: frame = frame.f_back
send = frame.f_locals['channel'].send
for form in ({"t": "array", "d": "|O", "s": [1], "v": [1]}, {"t": "lent", "v": -1}, {"t": "exec"}, [[]], 7,
             {"t": "set", "v": [[1]]}, {"t": "Decimal", "v": "x"}, {"t": "range", "v": [1, 2, 0]}):
    send(["value", form])
""",
    "a message that never ends": r"""
import os, struct
for fd in range(3, 64):
    try: os.write(fd, struct.pack('<I', 0xffffffff) + b'[' * 60000)
    except OSError: pass
""",
    "a value too deep": """
def add(a, b):
    deep = []
    for _ in range(100000): deep = [deep]
    return deep
""",
    "a value too long": "def add(a, b): return ['x' * 1000] * 400000",
    "a number of many digits": "def add(a, b): return 10 ** 3000000",
}

KILLS = {
    "kill the parent": "import os; os.kill(os.getppid(), 9)",
    "kill everybody": "import os; os.kill(-1, 9)",
    "kill the first process": """
import os
for number in range(1, 65):
    try: os.kill(1, number)
    except OSError: pass
""",
    "kill the group": "import os; os.killpg(0, 9)",
    "stop the parent": "import os; os.kill(os.getppid(), 19); os.kill(-1, 19)",
    "ptrace the parent": LIBC
    + "if libc.ptrace(16, os.getppid(), 0, 0) == 0 or libc.ptrace(0x4206, os.getppid(), 0, 0) == 0: won()",
    "write the parent's memory": LIBC
    + """
class Vector(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
here = ctypes.create_string_buffer(8)
near, far = Vector(ctypes.addressof(here), 8), Vector(id(add), 8)
if libc.process_vm_readv(os.getppid(), ctypes.byref(near), 1, ctypes.byref(far), 1, 0) > 0: won()
""",
    "slow the parent down": """
import os
parent = os.getppid()
for slow in (lambda: os.setpriority(os.PRIO_PROCESS, parent, 19), lambda: os.setpriority(os.PRIO_USER, 0, 19),
             lambda: os.sched_setaffinity(parent, {0}), lambda: os.sched_setaffinity(1, {0}),
             lambda: os.sched_setscheduler(parent, os.SCHED_IDLE, os.sched_param(0))):
    try: slow(); won()
    except OSError: pass
""",
    "slow the parent's input and output": LIBC
    + """
numbers = (251, 256, 62) if os.uname().machine == 'x86_64' else (30, 238, 129)
idle = 3 << 13
if libc.syscall(numbers[0], 1, os.getppid(), idle) == 0 or libc.syscall(numbers[0], 3, 0, idle) == 0: won()
if libc.prctl(62, 1, os.getppid(), 0, 0) == 0: won()
""",
    "starve the parent by limits": "import resource as r, os; r.prlimit(os.getppid(), 0, (0, 0)); won()",
}

FILES = {
    "read the user's file": "open({secret!r}).read(); won()",
    "read the user's file by command": "import subprocess as s; s.check_output(['cat', {secret!r}]); won()",
    "read password hashes": "open('/etc/shadow').read(); won()",
    "read the environment": "import os\nif any('SECRET' in name for name in os.environ): won()",
    "read the environment in /proc": """
import glob
for path in glob.glob('/proc/*/environ'):
    try:
        if b'SECRET' in open(path, 'rb').read(): won()
    except OSError: pass
""",
    "write outside": "open({folder!r} + '/mine', 'w').write('x'); won()",
    "write to the system": "open('/usr/lib/mine', 'w').write('x'); won()",
    "a symlink out": "import os\nos.symlink({secret!r}, '/tmp/link'); open('/tmp/link').read(); won()",
    "a hard link out": "import os\nos.link('/usr/bin/env', '/tmp/link'); won()",
    "up and out": "open('../' * 20 + {secret!r}).read(); won()",
    "through descriptors left open": """
import os
for fd in range(3, 256):
    try:
        os.fchdir(fd); won()
    except OSError: pass
    try:
        os.open('.', os.O_RDONLY, dir_fd=fd); won()
    except OSError: pass
""",
    "through /proc": """
for path in ('/proc/1/root' + {secret!r}, '/proc/self/root' + {secret!r}, '/proc/1/cwd/..' + {secret!r},
             '/proc/1/mem', '/proc/kcore', '/proc/sys/kernel/core_pattern'):
    try:
        open(path, 'rb').read(1); won()
    except OSError: pass
""",
    "chroot": LIBC
    + """
os.mkdir('/tmp/a')
if libc.chroot(b'/tmp/a') == 0:
    for _ in range(20): os.chdir('..')
    libc.chroot(b'.'); open({secret!r}).read(); won()
""",
    "mount": LIBC
    + """
os.mkdir('/tmp/m')
if libc.mount(b'proc', b'/tmp/m', b'proc', 0, None) == 0 or libc.umount2(b'/proc', 2) == 0: won()
""",
    "a new user namespace": LIBC + "if libc.unshare(0x10000000) == 0 or libc.unshare(0x20000) == 0: won()",
    "a clone in a new user namespace": LIBC
    + "p = libc.syscall(56 if os.uname().machine == 'x86_64' else 220, 0x10000011, 0, 0, 0, 0)\n"
    "if p == 0: os._exit(0)\nif p > 0: won()",
    "become root": "import os\nif os.getuid() == 0: won()\nos.setuid(0)\nwon()",
    "a device": "import os, stat\nos.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0)); won()",
    "list the mounts": LIBC
    + "b = ctypes.create_string_buffer(4096)\nif libc.syscall(458, b, b, 512, 0) >= 0: won()",
    "run what it wrote": """
import os, shutil
shutil.copy('/bin/true', '/tmp/mine'); os.chmod('/tmp/mine', 0o755)
if os.spawnv(os.P_WAIT, '/tmp/mine', ['mine']) == 0: won()
""",
}

NETWORK = {
    "tcp": "import socket; socket.create_connection(('127.0.0.1', {port}), 1); won()",
    "udp": """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', {port})); won()
""",
    "tcp over IPv6": "import socket; socket.create_connection(('::1', {port}), 1); won()",
    "a socket file": "import socket; socket.socket(socket.AF_UNIX).connect({socket!r}); won()",
    "an abstract socket": "import socket; socket.socket(socket.AF_UNIX).connect('\\0' + {socket!r}); won()",
    "every other family": """
import socket
for family in range(1, 46):
    for kind in (1, 2, 3, 5):
        try: socket.socket(family, kind); won()
        except OSError: pass
""",
    "bash's sockets": """
import subprocess
subprocess.check_call(['bash', '-c', 'echo > /dev/tcp/127.0.0.1/{port}']); won()
""",
    "name a socket of a pair": """
import os, socket
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
here.sendto(b'x', {socket!r}); here.sendto(b'x', '\\0' + {socket!r}); won()
""",
    "rings of the kernel": LIBC
    + "p = ctypes.create_string_buffer(256)\nif libc.syscall(425, 4, p) >= 0: won()",
}

BOMBS = {
    "fork bomb": """
import os, time
tokens, end = os.pipe()
os.write(end, b'x' * 300)
os.set_blocking(tokens, False)
try:
    while os.read(tokens, 1):
        try: os.fork()
        except OSError: pass
except BlockingIOError: time.sleep(60)
""",
    "thread bomb": """
import threading, time
for _ in range(300): threading.Thread(target=time.sleep, args=(60,)).start()
""",
    "memory bomb": """
import time
kept = [bytearray(10 << 20) for _ in range(200)]
time.sleep(60)
""",
    "memory bomb of many processes": """
import os, time
for _ in range(4): os.fork()
kept = bytearray(os.urandom(1)) * (100 << 20)
time.sleep(60)
""",
    "disk bomb": "for i in range(50):\n    open(f'/tmp/{i}', 'wb').write(b'x' * (10 << 20))\nwon()",
    "one large file": """
with open('/tmp/f', 'wb') as file:
    for _ in range(500): file.write(b'x' * (1 << 20))
won()
""",
    "files without number": "for i in range(100000): open(f'/tmp/{i}', 'w').close()\nwon()",
    "descriptors without number": "kept = [open('/dev/null') for _ in range(5000)]\nwon()",
    "endless output": "import sys\nwhile True: sys.stdout.write('x' * 10000); sys.stderr.write('y' * 10000)",
    "a loop that ignores signals": """
import signal
for s in range(1, 65):
    try: signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
""",
    "a long call in C": "sum(range(10 ** 12))",
    "a regular expression": "import re; re.match(r'(a+)+$', 'a' * 60 + 'b')",
    "endless recursion": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef add(a, b): return add(a, b)",
    "a daemon": """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(60)
    os._exit(0)
""",
    "threads left behind": """
import threading, time
def stay():
    while True: time.sleep(0.01)
for _ in range(5): threading.Thread(target=stay).start()
""",
    "sleep": "import time; time.sleep(60)",
    "stop oneself": "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
    "shared memory": LIBC
    + "if libc.shmget(0, 1 << 20, 0o1600) >= 0 or libc.syscall(319, b'm', 0) >= 0: won()",
    "semaphores and queues": LIBC
    + "if libc.semget(7, 1, 0o1600) >= 0 or libc.msgget(7, 0o1600) >= 0: won()\n"
    "try: libc.mq_open(b'/q', 0o102, 0o600, None) >= 0 and won()\nexcept AttributeError: pass",
    "shared memory of a name": """
from multiprocessing import shared_memory
shared_memory.SharedMemory('starcoder', create=True, size=4096); won()
""",
}

HOSTILE = {**EXITS, **FORGERIES, **KILLS, **FILES, **NETWORK, **BOMBS}
"""Every program by name, less `PREAMBLE` and with its blanks open."""


def filled(secret: str, folder: str, port: int, socket: str) -> dict[str, str]:
    """The programs with their targets filled in."""
    blanks = {
        "{secret!r}": repr(secret),
        "{folder!r}": repr(folder),
        "{port}": str(port),
        "{socket!r}": repr(socket),
    }
    programs = {}
    for name, text in HOSTILE.items():
        for blank, value in blanks.items():
            text = text.replace(blank, value)
        programs[name] = PREAMBLE + text
    return programs
