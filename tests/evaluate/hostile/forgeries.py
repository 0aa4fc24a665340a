"""Programs that try to pass a task's real tests without a solution of it, by attacking how verdicts are made.

Each is a function of the entry point's name. None contains an answer, so whatever passes was forged. Those of
`SPEAKERS` take over the line to the test runner: `say` sends a document there.
"""

from collections.abc import Callable
from functools import partial

_SAY = """
import gc, json, os, socket, struct, sys
line = socket.socket(fileno=os.dup(3))
def say(document, times=1):
    data = json.dumps(document).encode()
    line.sendall((struct.pack('<I', len(data)) + data) * times)
def hear():
    size = struct.unpack('<I', line.recv(4, socket.MSG_WAITALL))[0]
    return json.loads(line.recv(size, socket.MSG_WAITALL))
def serve(reply):
    say(['value', None, []])
    while True:
        request = hear()
        say(['value', {'object': 0}, []] if request[0] == 'entry' else reply(request))
"""
_OFFER = """
offers = {'ENTRY': ['value', {'t': 'lent', 'v': 0}], 'exec': ['value', {'t': 'lent', 'v': 1}],
          'abs': ['value', {'t': 'lent', 'v': 2}], 'all': ['value', {'t': 'lent', 'v': 2}],
          '__builtins__': ['value', {'t': 'lent', 'v': 3}]}
form = {'t': 'dict', 'v': [[name, offer] for name, offer in offers.items()]}
"""

SPEAKERS = {
    "offers as lists": _OFFER + "say(['value', form])\n"
    "while True:\n    hear(); say(['value', [True, {'t': 'dict', 'v': []}]])",
    "offers as the first reply of today": _OFFER
    + "say(['value', {'dict': [[k, v] for k, v in offers.items()]}, []])",
    "values for every call": "serve(lambda request: ['value', True, []])",
    "no changes but many": "serve(lambda request: ['value', None, [0, 1, 2]])",
    "changes with values": "serve(lambda request: ['value', True, [[0, {'dict': []}]]])",
    "objects for every call": "serve(lambda request: ['value', {'object': 0}, []])",
    "iterators of themselves": "serve(lambda request: ['value', {'iterator': 0}, []])",
    "types for every call": "serve(lambda request: ['value', {'type': 'bool'}, []])",
    "a nonce for every call": "serve(lambda request: ['nonce', '0' * 32])",
    "the argument back": "serve(lambda request: ['value', request[2][0] if len(request) > 2 and request[2] else 0, []])",
    "StopIteration": "serve(lambda request: ['raised', 'StopIteration', '', None])",
    "GeneratorExit": "serve(lambda request: ['raised', 'GeneratorExit', '', None])",
    "an exception that lies about its type": "serve(lambda request: ['raised', 'exit', 'print', None])",
    "a type of its own as exception": "serve(lambda request: ['raised', '__import__', 'os', 1])",
    "an outcome": "say({'kind': 'passed', 'detail': '', 'nonce': ''}, 50)",
    "half a frame": "serve(lambda request: line.send(b'\\xff\\xff') and [hear() for _ in range(9)])",
    "half a document": "say(['value', None, []]); line.send(struct.pack('<I', 100) + b'[\"value\", '); hear(); hear()",
    "a frame of no bytes": "say(['value', None, []])\nfor _ in range(99): line.send(struct.pack('<I', 0))",
    "deep JSON": "say(['value', None, []])\nhear()\n"
    "line.sendall(struct.pack('<I', 200000) + b'[' * 100000 + b']' * 100000); hear(); hear()",
    "deep values": "d = []\nfor _ in range(900): d = {'tuple': [d]}\nserve(lambda request: ['value', d, []])",
    "a form of two names": "serve(lambda request: ['value', {'int': '1', 'type': 'int'}, []])",
    "forms with dunders": "serve(lambda request: ['value', {'_value': None}, []])",
    "a record with dunders": "serve(lambda request: ['value', {'record': [['__eq__', '__class__'], [True, True]]}, []])",
    "an array of objects": "serve(lambda request: ['value', {'array': ['|O', [1], [1]]}, []])",
    "an array of enormous texts": "serve(lambda request: ['value', {'array': ['<U400000000', [1], ['x']]}, []])",
    "numbers that are not": "serve(lambda request: ['value', float('nan'), []])",
    "replies ahead of the calls": "say(['value', None, []]); say(['value', True, []], 5000)\nhear()",
    "many frames": "while True: say(['value', {'object': 0}, []], 1000)",
    "colliding keys": "serve(lambda request: ['value', {'set': [i * (2 ** 61 - 1) for i in range(1, 20000)]}, []])",
}

PLAIN = {
    "a module under the name": "import math as ENTRY\ndef exec(source, names):\n"
    "    names['verify'] = lambda *a, **k: None\n    names['ENTRY'] = 1",
    "a package under the name": "import json as ENTRY",
    "a builtin type under the name": "ENTRY = bool",
    "type under the name": "ENTRY = type",
    "object under the name": "ENTRY = object",
    "eval under the name": "ENTRY = eval",
    "isinstance under the name": "ENTRY = isinstance",
    "a mock under the name": "from unittest.mock import MagicMock as ENTRY",
    "ANY under the name": "from unittest.mock import ANY\ndef ENTRY(*a, **k): return ANY",
    "a class under the name": "class ENTRY:\n    def __new__(cls, *a, **k): return cls\n"
    "    def __eq__(self, o): return True",
    "a metaclass under the name": "class M(type):\n    def __call__(cls, *a, **k): return cls\n"
    "    def __eq__(cls, o): return True\n    __hash__ = type.__hash__\nclass ENTRY(metaclass=M): pass",
    "a value under the name": "ENTRY = 5",
    "a generator under the name": "ENTRY = (True for _ in range(10 ** 9))",
    "an exception under the name": "ENTRY = StopIteration",
    "every builtin replaced": "def ENTRY(*a, **k): return None\n"
    "abs = all = any = set = sorted = len = float = round = tuple = isinstance = lambda *a, **k: 0\n"
    "exec = eval = compile = lambda *a, **k: None\nmath = copy = None",
    "every builtin replaced in builtins": "import builtins\ndef ENTRY(*a, **k): return None\n"
    "for name in ('abs', 'all', 'len', 'set', 'float', 'exec'): setattr(builtins, name, lambda *a, "
    "**k: True)",
    "dunder offers": "def ENTRY(*a, **k): return None\n"
    "__builtins__ = {'abs': lambda x: 0, 'all': lambda x: True, 'AssertionError': ZeroDivisionError}\n"
    "__name__ = 'tests'; __loader__ = None",
    "check and candidate": "def check(candidate): pass\ndef ENTRY(*a, **k): return None\ncandidate = assertion = ENTRY",
    "METADATA and inputs": "inputs = results = []\ndef assertion(*a): pass\ndef ENTRY(*a, **k): return None",
    "equal to everything": "class S:\n    def __eq__(self, o): return True\n    def __ne__(self, o): return False\n"
    "    __lt__ = __gt__ = __le__ = __ge__ = __contains__ = __eq__\n    def __hash__(self): return 0\n"
    "    def __sub__(self, o): return 0\n    __rsub__ = __abs__ = __sub__\n    def __len__(self): return 0\n"
    "    def __iter__(self): return iter(())\n    def __bool__(self): return True\n"
    "    def __getattr__(self, n): return S()\n    def __call__(self, *a): return S()\n"
    "def ENTRY(*a, **k): return S()",
    "a number equal to everything": "class S(float):\n    def __eq__(self, o): return True\n    __hash__ = float.__hash__\n"
    "    def __sub__(self, o): return S(0)\ndef ENTRY(*a, **k): return S(0)",
    "a list equal to everything": "class S(list):\n    def __eq__(self, o): return True\ndef ENTRY(*a, **k): return S()",
    "a text equal to everything": "class S(str):\n    def __eq__(self, o): return True\n    __hash__ = str.__hash__\n"
    "def ENTRY(*a, **k): return S()",
    "a tuple with fields": "from collections import namedtuple\n"
    "def ENTRY(*a, **k): return namedtuple('T', 'index count')(0, 0)",
    "arguments emptied": "def ENTRY(*a, **k):\n    for x in a:\n        if hasattr(x, 'clear'): x.clear()\n    return None",
    "arguments back": "def ENTRY(*a, **k):\n    return a[0] if a else None",
    "raise AssertionError's sibling": "class E(AssertionError):\n    def __str__(self): raise SystemExit\n"
    "def ENTRY(*a, **k): raise E",
    "raise StopIteration": "def ENTRY(*a, **k): raise StopIteration",
    "raise SystemExit": "def ENTRY(*a, **k): raise SystemExit(0)",
    "raise a lying type": "class E(Exception): pass\nE.__module__ = 'builtins'; E.__name__ = 'SystemExit'\n"
    "def ENTRY(*a, **k): raise E",
    "raise an exception group": "def ENTRY(*a, **k): raise ExceptionGroup('', [StopIteration()])",
    "endless items": "def ENTRY(*a, **k):\n    while True: yield None",
    "leave at once": "import os; os._exit(0)",
    "leave when called": "import os\ndef ENTRY(*a, **k): os._exit(0)",
    "leave after a fork": "import os\ndef ENTRY(*a, **k):\n    os.fork()\n    return None",
    "names of the runner patched": "import sys\ndef ENTRY(*a, **k): return None\n"
    "for n, m in list(sys.modules.items()):\n    if n.startswith('starcoder'):\n"
    "        for k, v in list(vars(m).items()):\n"
    "            if callable(v) and k not in ('encode', 'Channel'):\n"
    "                setattr(m, k, lambda *a, **k: None)",
    "an object that is not data": "def ENTRY(*a, **k): return ENTRY",
    "a frame's locals": "import sys\ndef ENTRY(*a, **k):\n    f = sys._getframe()\n    while f:\n"
    "        for v in list(f.f_locals.values()):\n            if isinstance(v, dict): v['passed'] = True\n"
    "        f = f.f_back\n    return None",
}


def _named(text: str, entry: str) -> str:
    return text.replace("ENTRY", entry)


FORGERIES: dict[str, Callable[[str], str]] = {
    **{name: partial(_named, text) for name, text in PLAIN.items()},
    **{name: partial(_named, _SAY + text) for name, text in SPEAKERS.items()},
}
