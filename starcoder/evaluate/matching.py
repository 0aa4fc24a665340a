"""How near a text is to the one that stood there: the same, by edits, by identifiers; whether it parses."""

import ast
import re
import warnings
from collections.abc import Mapping

from starcoder.evaluate.problems import Problem

_WORD = re.compile(r"[^\W\d]\w*")
# Words that are no identifiers in most languages; a word of another language's here does no harm.
_KEYWORDS = frozenset(
    """and as assert async await break case catch class const continue def default del do elif else enum
    except export extends false False final finally fn for from func function global if impl implements
    import in instanceof int interface is lambda let match mut new nil None nonlocal not null or package
    pass private protected public pub raise return self static struct super switch this throw true True
    try type use var void while with yield""".split()  # noqa: SIM905 -- a list of 90 literals reads worse
)


def compared(problem: Problem, completion: str) -> Mapping[str, float]:
    """Scores from 0 to 1 by name; `parses` only where the language is Python."""
    scores = {
        "exact_match": float(completion.strip() == problem.reference.strip()),
        "edit_similarity": edit_similarity(completion.strip(), problem.reference.strip()),
        "identifier_match": float(identifiers(completion) == identifiers(problem.reference)),
    }
    if problem.language == "python":
        scores["parses"] = float(parses(problem.code(completion)))
    return scores


def edit_similarity(first: str, second: str) -> float:
    """1 less the Levenshtein distance as a share of the longer text; 1 for two empty ones."""
    longest = max(len(first), len(second))
    return 1 - _distance(first, second) / longest if longest else 1.0


def _distance(first: str, second: str) -> int:
    """Levenshtein distance, a column of the table at a time as the bits of two numbers.

    Source: H. Hyyrö, Explaining and extending the bit-parallel approximate string matching algorithm of
    Myers, 2001.
    """
    if not first:
        return len(second)
    places: dict[str, int] = {}
    for at, character in enumerate(first):
        places[character] = places.get(character, 0) | 1 << at
    mask, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    above, below, distance = mask, 0, len(first)  # where a column steps up, where it steps down
    for character in second:
        same = places.get(character, 0)
        diagonal = (((same & above) + above) ^ above) | same | below
        right_up, right_down = below | ~(diagonal | above) & mask, above & diagonal
        distance += bool(right_up & last) - bool(right_down & last)
        right_up = right_up << 1 | 1
        above = (right_down << 1 | ~(diagonal | right_up)) & mask
        below = right_up & diagonal & mask
    return distance


def identifiers(code: str) -> list[str]:
    """The names in a piece of code, in order; words in its strings and comments count too."""
    return [word for word in _WORD.findall(code) if word not in _KEYWORDS]


def parses(code: str) -> bool:
    """Whether it is Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a model's invalid escapes are its own affair
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
