"""Rules of the benchmarks in other languages: MultiPL-E, HumanEvalPack and SantaCoder's infilling set.

Sources: nuprl/MultiPL-E, bigcode/humanevalpack and bigcode/santacoder-fim-task, for their rows.
"""

from starcoder.evaluate.problems import Problem, Row, text, texts
from starcoder.evaluate.sandbox.verdicts import Program
from starcoder.request import CompletionRequest, SamplingParams

# MultiPL-E's short name -> the sandbox's name of the language.
MULTIPLE = {
    "js": "javascript",
    "java": "java",
    "cpp": "cpp",
    "rs": "rust",
    "sh": "bash",
    "pl": "perl",
    "go": "go",
    "php": "php",
    "lua": "lua",
    "rb": "ruby",
    "ts": "typescript",
    "cs": "csharp",
    "swift": "swift",
    "jl": "julia",
    "r": "r",
    "scala": "scala",
    "d": "d",
    "rkt": "racket",
}
PACK = {
    "python": "python",
    "js": "javascript",
    "java": "java",
    "cpp": "cpp",
    "go": "go with testify",
    "rust": "rust with crates",
}

# Source: bigcode-evaluation-harness: tasks/humanevalpack.py.
_PACK_ENDS = {
    "python": ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\nassert"),
    "javascript": ("\nconst ", "\nfunction ", "\n/*", "\n//", "\nconsole.log"),
    "java": ("\npublic class", "\nclass Main", "\n\n\n"),
    "cpp": ("\nint main", "\n/*", "\n#include", "\n//"),
    "go with testify": ("\nfunc ", "\n//", "\npackage ", "\nimport "),
    "rust with crates": ("\nfn ", "\n/*", "\n//", "\n#[cfg"),
}
# `console.assert` only writes a line where the assertion fails; here it must end the program.
_STRICT_CONSOLE = "console.assert = (held, ...rest) => { if (!held) throw new Error('assertion failed') }\n"
# What HumanEvalPack's prompts leave out. Source: bigcode-evaluation-harness: tasks/humanevalpack.py.
_PACK_IMPORTS = {
    "cpp": "#include<stdlib.h>\n#include<algorithm>\n#include<cmath>\n#include<math.h>\n#include<numeric>\n"
    "#include<stdio.h>\n#include<vector>\n#include<set>\n#include<map>\n#include<queue>\n#include<stack>\n"
    "#include<list>\n#include<deque>\n#include<string>\n#include<climits>\n"
    "#include<cstring>\n#include<iostream>\n#include<sstream>\n#include<fstream>\n"
}


def multiple(row: Row, language: str) -> Problem:
    """A function of a language from its translated docstring; both parts and the tests make one file."""
    tests = text(row, "tests")
    return Problem(
        id=text(row, "name"),
        request=CompletionRequest(
            prefix=text(row, "prompt"), sampling=SamplingParams(stop=texts(row, "stop_tokens"))
        ),
        check=lambda code: Program(code, tests, language),
        language=language,
    )


def pack(row: Row, language: str) -> Problem:
    """HumanEval in a language, written by hand; `synthesize` in the words of OctoPack."""
    tests = text(row, "test")
    before = _PACK_IMPORTS.get(language, "")

    def check(code: str) -> Program:
        if language == "javascript":
            return Program(code, _STRICT_CONSOLE + tests, language)
        return Program(before + code, tests, language)

    return Problem(
        id=text(row, "task_id"),
        request=CompletionRequest(
            prefix=text(row, "prompt"), sampling=SamplingParams(stop=_PACK_ENDS[language])
        ),
        check=check,
        reference=text(row, "canonical_solution"),
        language=language,
    )


def santacoder_fim(row: Row) -> Problem:
    """One line of a function, compared with the one that stood there."""
    language = text(row, "language")
    number = row.get("name", row.get("task_id", ""))
    prompt, suffix = text(row, "prompt"), text(row, "suffix")
    return Problem(
        id=f"{language}/{number}",
        request=CompletionRequest(prefix=prompt, suffix=suffix),
        reference=text(row, "canonical_solution"),
        language={"py": "python", "js": "javascript"}.get(language, language),
        group=language,
    )
