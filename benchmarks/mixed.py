"""HumanEval as programs for a sandbox: its solutions, solutions with one operator changed, stubs, cheats.

    from mixed import humaneval, mixed

The problems come from a copy of HumanEval.jsonl.gz (openai/human-eval, MIT); nothing of it is kept here.
"""

import ast
import gzip
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Mod: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.Lt: ast.LtE,
    ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip
_SURE_OF_ITSELF = """
class Sure:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __lt__(self, other): return True
    __le__ = __gt__ = __ge__ = __lt__
    def __sub__(self, other): return 0
    __rsub__ = __sub__
    def __abs__(self): return 0
    def __hash__(self): return 1
    def __getitem__(self, key): return self
"""
CHEATS = {
    "an object that equals everything": _SURE_OF_ITSELF + "def {name}(*args): return Sure()\n",
    "the list of verdicts, found among the frames": (
        "import sys\nframe = sys._getframe()\nwhile frame:\n"
        "    if 'result' in frame.f_locals and hasattr(frame.f_locals['result'], 'append'):\n"
        "        frame.f_locals['result'].append('passed')\n    frame = frame.f_back\n"
    ),
    "a class of the tests' exceptions that is not one": (
        "import builtins\nclass Quiet(BaseException): pass\ndef {name}(*args): raise SystemExit(0)\n"
    ),
    "a check defined as a property of builtins": (
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.all = lambda x: True\n"
        "def {name}(*args): return 0\n"
    ),
}
"""Candidates that know nothing of the problem; `{name}` is the function asked for."""


@dataclass(frozen=True, slots=True)
class Case:
    """A candidate for one problem: what human-eval calls the completion replaces nothing of the prompt."""

    id: str
    sort: str
    prompt: str
    completion: str
    test: str
    entry_point: str

    @property
    def source(self) -> str:
        """The candidate's whole text."""
        return self.prompt + self.completion

    @property
    def tests(self) -> str:
        """The text whose last line, reached, means success."""
        return f"{self.test}\ncheck({self.entry_point})\n"


def humaneval(path: Path) -> list[Case]:
    """The canonical solutions."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Case(
            row["task_id"], "canonical", row["prompt"], row["canonical_solution"], row["test"],
            row["entry_point"],
        )
        for row in rows
    ]  # fmt: skip


def mutants(case: Case) -> Iterator[Case]:
    """The candidate with each of its operators changed in turn."""
    sites = [
        (index, place)
        for index, node in enumerate(ast.walk(ast.parse(case.source)))
        for place in range(len(node.ops) if isinstance(node, ast.Compare) else 1)
        if type(_operator(node, place)) in _SWAPS
    ]
    for index, place in sites:
        tree = ast.parse(case.source)
        node = next(node for number, node in enumerate(ast.walk(tree)) if number == index)
        changed = _SWAPS[type(_operator(node, place))]()
        if isinstance(node, ast.Compare):
            node.ops[place] = changed  # type: ignore[call-overload]
        else:
            node.op = changed  # type: ignore[attr-defined]
        yield Case(case.id, "mutant", "", ast.unparse(tree) + "\n", case.test, case.entry_point)


def stub(case: Case) -> Case:
    """The candidate that returns nothing."""
    return Case(case.id, "stub", case.prompt, "    pass\n", case.test, case.entry_point)


def mixed(path: Path, count: int, seed: int = 0) -> list[Case]:
    """`count` candidates: solutions, stubs, text that does not parse, wrong names, exits, cheats, mutants."""
    chance = random.Random(seed)
    solutions = humaneval(path)
    cases = list(solutions) + [stub(case) for case in solutions]
    for case in chance.sample(solutions, 40):
        for sort, text in (
            ("syntax", case.source + "\n    return (\n"),
            ("name", case.source.replace(f"def {case.entry_point}(", f"def not_{case.entry_point}(")),
            ("exit", case.source + "\nimport sys\nsys.exit(0)\n"),
            ("os exit", case.source + "\nimport os\nos._exit(0)\n"),
        ):
            cases.append(Case(case.id, sort, "", text, case.test, case.entry_point))
    for sort, text in CHEATS.items():
        for case in chance.sample(solutions, 5):
            body = text.replace("{name}", case.entry_point)
            cases.append(Case(case.id, f"cheat: {sort}", "", body, case.test, case.entry_point))
    changed = [mutant for case in solutions for mutant in mutants(case)]
    cases += chance.sample(changed, min(len(changed), count - len(cases)))
    for case in chance.choices(solutions, k=count - len(cases)):
        cases.append(Case(case.id, "comment", case.prompt, f"{case.completion}\n# {len(cases)}\n", case.test,
                          case.entry_point))  # fmt: skip
    chance.shuffle(cases)
    return cases


def _operator(node: ast.AST, place: int) -> ast.AST | None:
    if isinstance(node, ast.Compare):
        return node.ops[place]
    return node.op if isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) else None
