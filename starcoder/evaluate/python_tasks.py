"""Rules of the Python benchmarks: rows of HumanEval, MBPP, EvalPlus and infilling sets -> problems.

Sources: openai/human-eval, openai/human-eval-infilling, evalplus/humanevalplus_release,
evalplus/mbppplus_release and google-research/google-research: mbpp, for the formats of their files.
"""

import ast
from dataclasses import replace

from starcoder.errors import ConfigError
from starcoder.evaluate.problems import Problem, Row, text, texts, values
from starcoder.evaluate.sandbox.schema import plain
from starcoder.evaluate.sandbox.verdicts import Cases, Limits, Program
from starcoder.request import CompletionRequest, SamplingParams

# Where a function has ended. Source: bigcode-evaluation-harness: tasks/humaneval.py, tasks/mbpp.py.
FUNCTION_ENDS = ("\nclass", "\ndef", "\n#", "\n@", "\nprint", "\nif", "\n```", "\nassert")
PROGRAM_ENDS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n```")

_TEST_SPLIT = range(11, 511)  # of MBPP's numbers; the others are few-shot examples and training data
# Problems of MBPP+ whose own answers need more memory than others.
_NEEDS = {
    **{f"Mbpp/{number}": Limits(memory_bytes=2 << 30) for number in (123, 271, 392, 592, 603)},
    "Mbpp/255": Limits(memory_bytes=12 << 30),
}
# Source: evalplus v0.3.1: eval/__init__.py, eval/_special_oracle.py.
_SETS = (
    *("similar_elements", "find_char_long", "common_in_nested_lists", "extract_singly"),
    *("larg_nnum", "intersection_array", "find_dissimilar", "Diff"),
)
_RULES = {
    "find_zero": "root",
    "are_equivalent": "any",
    "sum_div": "or zero",
    "surface_Area": "surface",
    "digit_distance_nums": "digits",
    **dict.fromkeys(("check_str", "text_match_three", "text_starta_endb"), "is given"),
    **dict.fromkeys(_SETS, "set"),
}


def humaneval(row: Row) -> Problem:
    """The body of a function, after its signature and docstring."""
    request = CompletionRequest(prefix=text(row, "prompt"), sampling=SamplingParams(stop=FUNCTION_ENDS))
    return _checked(row, request)


def infilling(row: Row) -> Problem:
    """Some of a function's body, between what stands before and after it."""
    return _checked(row, CompletionRequest(prefix=text(row, "prompt"), suffix=text(row, "suffix")))


def hole(row: Row) -> Problem:
    """A line of the known solution, between the lines before and after it; for our own `starter` set."""
    number = row.get("hole")
    if not isinstance(number, int):
        raise ConfigError(
            f"a problem has {number!r:.40} for 'hole'; expected a line's number", "is the file of this task?"
        )
    lines = [f"{line}\n" for line in text(row, "canonical_solution").removesuffix("\n").split("\n")]
    request = CompletionRequest(
        prefix=text(row, "prompt") + "".join(lines[:number]),
        suffix="\n" + "".join(lines[number + 1 :]),
        sampling=SamplingParams(max_lines=1),
        layout="psm",
    )
    problem = _checked(row, request)
    return replace(problem, id=f"{problem.id}/line-{number}", reference=lines[number].rstrip("\n"))


def _checked(row: Row, request: CompletionRequest) -> Problem:
    entry, solution = text(row, "entry_point"), text(row, "canonical_solution")
    tests = f"{text(row, 'test')}\ncheck({entry})\n"
    known = text(row, "prompt") + solution + (text(row, "suffix") if "suffix" in row else "")
    return Problem(
        id=text(row, "task_id"),
        request=request,
        check=lambda code: Program(code, tests, entry_points=(entry,), setup=known),
        reference=solution,
    )


def mbpp(row: Row) -> Problem | None:
    """A function from its description and one of its tests; None for rows outside of the test split."""
    number = row.get("task_id")
    if number not in _TEST_SPLIT:
        return None
    assertions, solution = texts(row, "test_list"), text(row, "code")
    tests = "\n".join([text(row, "test_setup_code"), *assertions, ""])
    entry_points = _defined(solution)
    return Problem(
        id=f"Mbpp/{number}",
        request=CompletionRequest(
            prefix=f'"""\n{text(row, "text")}\n{assertions[0]}\n"""\n',
            sampling=SamplingParams(stop=PROGRAM_ENDS),
        ),
        check=lambda code: Program(code, tests, entry_points=entry_points, setup=solution),
        reference=solution,
    )


def _defined(solution: str) -> tuple[str, ...]:
    """The functions and classes that a known solution defines: a candidate's are tested under their names."""
    try:
        body = ast.parse(solution).body
    except SyntaxError as error:
        raise ConfigError(f"a known solution does not parse: {error}", "is the file of this task?") from None
    return tuple(node.name for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef))


def humaneval_plus(row: Row) -> Problem:
    """As `humaneval`, judged on many more inputs by what the known solution returns."""
    return _plus(row, values(row, "base_input") + _more(row), FUNCTION_ENDS)


def mbpp_plus(row: Row) -> Problem:
    """As `mbpp`, judged on many more inputs by what the known solution returns."""
    number = int(text(row, "task_id").rpartition("/")[2])
    inputs = [restored(number, item) for item in values(row, "base_input") + _more(row)]
    return _plus(row, inputs, PROGRAM_ENDS)


def _more(row: Row) -> list[object]:
    return values(row, "plus_input") if row.get("plus_input") else []


def _plus(row: Row, inputs: list[object], stop: tuple[str, ...]) -> Problem:
    prompt, entry, solution = text(row, "prompt"), text(row, "entry_point"), text(row, "canonical_solution")
    tolerance = row.get("atol")

    cases = Cases(
        entry_point=entry,
        inputs=plain(inputs),
        reference=prompt + solution,
        rule=_RULES.get(entry, "equal"),
        tolerance=tolerance if isinstance(tolerance, int | float) else 0.0,
    )
    needs = _NEEDS.get(text(row, "task_id"))
    return Problem(
        id=text(row, "task_id"),
        request=CompletionRequest(prefix=prompt, sampling=SamplingParams(stop=stop)),
        check=lambda code: Program(code, needs=needs, cases=cases),
        reference=solution,
    )


_PAIRS = {
    *(2, 116, 132, 143, 222, 261, 273, 394, 399, 421, 424),
    *(429, 470, 560, 579, 596, 616, 630, 726, 740, 744, 809),
}
_LISTS_OF_PAIRS = {63, 64, 70, 94, 120, 237, 272, 299, 400, 409, 417, 438, 473, 614, 780}
_FIRST_LIST_OF_PAIRS = {75, 413, 444, 753}
_FIRST_TUPLE = {250, 307, 405, 446, 617, 720, 763, 808}
_TUPLES_OF_TUPLES = {259, 401, 445}
_ALL_TUPLES = {580, 615, 791}


def restored(number: int, arguments: object) -> object:
    """The arguments of an MBPP+ problem with the types that JSON has not: tuples, sets, complex numbers.

    Source: evalplus v0.3.1: data/mbpp.py, for which problems have which.
    """
    assert isinstance(arguments, list), "a row of inputs is a list of arguments"
    first, *others = arguments or [None]
    if number in _PAIRS:
        return [tuple(item) for item in arguments]
    if number in _LISTS_OF_PAIRS:
        return [[tuple(pair) for pair in item] for item in arguments]
    if number in _TUPLES_OF_TUPLES:
        return [tuple(tuple(pair) for pair in item) for item in arguments]
    if number in _ALL_TUPLES:
        return _tuples(arguments)
    if number in _FIRST_LIST_OF_PAIRS:
        return [[tuple(pair) for pair in first], *others]
    if number in _FIRST_TUPLE:
        return [tuple(first), *others]
    match number:
        case 106 | 750:
            return [first, tuple(others[0])]
        case 115:
            return [[set(item) if isinstance(item, list) and item else {} for item in first]]
        case 124:
            return [float(first), complex(others[0])]
        case 252:
            return [complex(first)]
        case 278:
            return [tuple(tuple(item) if isinstance(item, list) else item for item in first)]
        case 722:
            return [{key: tuple(value) for key, value in first.items()}, *others]
    return arguments


def _tuples(value: object) -> object:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
