"""A judge for tests about anything but the sandbox: runs the tests' own programs in this process."""

from concurrent.futures import Future

from starcoder.evaluate.sandbox.verdicts import Program, Verdict


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
            future.set_result(Verdict("passed"))
        except AssertionError as error:
            future.set_result(Verdict("assertion", str(error)))
        except SyntaxError as error:
            future.set_result(Verdict("syntax", str(error)))
        except Exception as error:
            future.set_result(Verdict("error", repr(error)))
        return future
