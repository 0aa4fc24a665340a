"""A judge for tests about anything but the sandbox: runs the tests' own programs in this process."""

import copy
import json
from concurrent.futures import Future

from starcoder.evaluate.oracle import agree
from starcoder.evaluate.sandbox.schema import Reader
from starcoder.evaluate.sandbox.verdicts import Cases, Program, Verdict


class PlainJudge:
    """Believes every program, so only for known solutions and harmless mistakes. Remembers what it ran."""

    def __init__(self) -> None:
        self.programs: list[Program] = []

    def submit(self, program: Program) -> "Future[Verdict]":
        self.programs.append(program)
        future: Future[Verdict] = Future()
        names: dict[str, object] = {"__name__": "candidate"}
        try:
            exec(program.source + "\n" + program.tests, names)
            if program.cases is not None:
                _compare(names, program.cases)
            future.set_result(Verdict("passed"))
        except AssertionError as error:
            future.set_result(Verdict("assertion", str(error)))
        except SyntaxError as error:
            future.set_result(Verdict("syntax", str(error)))
        except Exception as error:
            future.set_result(Verdict("error", repr(error)))
        return future


def _compare(names: dict[str, object], cases: Cases) -> None:
    known: dict[str, object] = {}
    exec(cases.reference, known)
    found, wanted = names[cases.entry_point], known[cases.entry_point]
    for arguments in Reader(lambda number, is_iterator: None).read(json.loads(cases.inputs)):
        first, second = (function(*copy.deepcopy(arguments)) for function in (found, wanted))
        assert agree(first, second, arguments, rule=cases.rule, tolerance=cases.tolerance)
