"""The tasks: each is data plus the rule that makes problems of its rows.

Limits: MBPP, MultiPL-E and SantaCoder's set were not at hand to pin their checksums; results name the
checksum of the file that was read. HumanEvalPack's tests for Go and Rust need packages of those languages.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

from starcoder.errors import ConfigError
from starcoder.evaluate import data, languages, python_tasks
from starcoder.evaluate.data import Data, Source
from starcoder.evaluate.problems import Problem, Row

# Tasks whose data is the user's own, see `repository`, `perplexity`.
MY_REPO, PERPLEXITY = "my-repo", "perplexity"

_SHIPPED = Path(__file__).parent / "starter.jsonl"
_GITHUB = "https://raw.githubusercontent.com"
_HUMANEVAL = f"{_GITHUB}/openai/human-eval/master/data/"
_INFILLING = f"{_GITHUB}/openai/human-eval-infilling/88062ff9859c875d04db115b698ed4b0f0395170/data/HumanEval-"
_MBPP = f"{_GITHUB}/google-research/google-research/master/mbpp/"
_HUMANEVAL_PLUS = "https://github.com/evalplus/humanevalplus_release/releases/download/v0.1.10/"
_MBPP_PLUS = "https://github.com/evalplus/mbppplus_release/releases/download/v0.2.0/"
_PACK = f"{_GITHUB}/bigcode-project/octopack/main/evaluation/create/humaneval-x/data/"

# Of the files that were at hand, by the end of their address.
_SHA256 = {
    "HumanEval.jsonl.gz": "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
    "SingleLineInfilling.jsonl.gz": "1277073e7ddce163ef68598c2bca777f688a53df99422f097e37362090f88e1f",
    "MultiLineInfilling.jsonl.gz": "2f341612eee1d35da1357a4f365e0c0b3ba6e2b62eb491e88aaefa4855af0349",
    "RandomSpanInfilling.jsonl.gz": "b4f330d8a8ff97bf85d9def497dffcae4d741e506449386a877236e422e33e8d",
    "RandomSpanInfillingLight.jsonl.gz": "1432250ecac0cb56e6f97f8faf0970419ef892a98fda7e1f5aa4c4b87209b760",
    "HumanEvalPlus-Mini.jsonl.gz": "91486741f1627101021fbe50523df08eebb5b0bf5e804b633dcd5ca3c14dbd2f",
    "MbppPlus.jsonl.gz": "af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63",
    "python/data/humanevalpack.jsonl": "b1376d72be4bd016a62ad043d9de3846edb8d63edf1222da802a31330c14c3a7",
    "js/data/humanevalpack.jsonl": "04c86c1fac5f33818d9187cba278ed1dfc66cc259372dd8342126aa580fb7569",
    "java/data/humanevalpack.jsonl": "a8d077d300bbdc2eda91e1a733deb2944678bce8fcc7eb272214626516768cc1",
    "cpp/data/humanevalpack.jsonl": "891a390c1b9d2cb85dd8fbebcf1d88dbdd565734a6b2b3259f9ddb3fe95e33d7",
    "go/data/humanevalpack.jsonl": "0ee2cdca46d70afb33d913a0d4b205624fe4ded2f28c2efdb241727221837993",
    "rust/data/humanevalpack.jsonl": "01ece28eaf490d7af037ce53095083dacfd38022cf5b82662ccb78024dc269a1",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """A benchmark by name. `source` None: its data ships with the package."""

    name: str
    about: str
    rule: Callable[[Row], Problem | None]
    source: Source | None = None
    language: str = "python"
    num_problems: int | None = None
    max_tokens: int = 512
    is_executed: bool = True  # else answers are compared with the known one

    def load(self, dataset: Path | None = None) -> tuple[tuple[Problem, ...], Data]:
        """The problems, of a file if one is given, and which file they come from.

        Raises:
            ConfigError: the data cannot be had, is of another task, or is not what its checksum says.
        """
        if dataset is not None:
            rows = data.read(dataset)
        else:
            rows = data.read(_SHIPPED) if self.source is None else data.fetch(self.source)
        problems = tuple(problem for row in rows.rows if (problem := self.rule(row)) is not None)
        ids = {problem.id for problem in problems}
        if len(ids) != len(problems) or not problems:
            raise ConfigError(
                f"{rows.origin!r} has {len(problems)} problems with {len(ids)} names",
                "is the file of this task?",
            )
        return problems, rows


def _file(place: str, name: str, license: str = "MIT") -> Source:
    return Source(url=place + name, sha256=_SHA256.get(name, ""), license=license)


_OF_PYTHON = (
    Task(
        name="starter",
        about="20 small functions of our own, offline",
        rule=python_tasks.humaneval,
        num_problems=20,
        max_tokens=128,
    ),
    Task(
        name="starter-infilling",
        about="the same functions with one line left out",
        rule=python_tasks.hole,
        num_problems=20,
        max_tokens=64,
    ),
    Task(
        name="humaneval",
        about="functions from their docstrings",
        rule=python_tasks.humaneval,
        source=_file(_HUMANEVAL, "HumanEval.jsonl.gz"),
        num_problems=164,
    ),
    Task(
        name="humanevalplus",
        about="HumanEval with 80 times the tests",
        rule=python_tasks.humaneval_plus,
        source=_file(_HUMANEVAL_PLUS, "HumanEvalPlus.jsonl.gz", "Apache-2.0"),
        num_problems=164,
    ),
    Task(
        name="humanevalplus-mini",
        about="the same with the fewest tests that tell as much",
        rule=python_tasks.humaneval_plus,
        source=_file(_HUMANEVAL_PLUS, "HumanEvalPlus-Mini.jsonl.gz", "Apache-2.0"),
        num_problems=164,
    ),
    Task(
        name="mbpp",
        about="short programs from a sentence and a test",
        rule=python_tasks.mbpp,
        source=_file(_MBPP, "mbpp.jsonl", "Apache-2.0"),
        num_problems=500,
    ),
    Task(
        name="mbppplus",
        about="378 of MBPP, mended, with 35 times the tests",
        rule=python_tasks.mbpp_plus,
        source=_file(_MBPP_PLUS, "MbppPlus.jsonl.gz", "Apache-2.0"),
        num_problems=378,
    ),
)

_OF_HUMANEVAL_INFILLING = tuple(
    Task(
        name=f"humaneval-infilling{suffix}",
        about=f"HumanEval's solutions with {hole} left out",
        rule=python_tasks.infilling,
        source=_file(_INFILLING, f"{file}.jsonl.gz"),
        num_problems=num_problems,
        max_tokens=max_tokens,
    )
    for suffix, file, hole, num_problems, max_tokens in (
        ("", "SingleLineInfilling", "one line", 1033, 128),
        ("-multiline", "MultiLineInfilling", "some lines", 5815, 256),
        ("-span", "RandomSpanInfilling", "a piece of any kind", 1640, 256),
        ("-span-light", "RandomSpanInfillingLight", "one piece of any kind each", 164, 256),
    )
)

_OF_SANTACODER = Task(
    name="santacoder-fim",
    about="one line left out, in Python, Java and JavaScript; exact match",
    rule=languages.santacoder_fim,
    source=Source(hub="bigcode/santacoder-fim-task", license="openrail"),
    max_tokens=64,
    is_executed=False,
    language="python, java, javascript",
)

_OF_MULTIPLE = tuple(
    Task(
        name=f"multiple-{short}",
        about="HumanEval translated by MultiPL-E",
        rule=partial(languages.multiple, language=language),
        source=Source(hub="nuprl/MultiPL-E", pattern=f"humaneval-{short}/*.parquet", license="MIT"),
        language=language,
    )
    for short, language in languages.MULTIPLE.items()
)

_OF_PACK = tuple(
    Task(
        name=f"humanevalpack-{short}",
        about="HumanEval translated by hand for OctoPack",
        rule=partial(languages.pack, language=language),
        source=_file(_PACK, f"{short}/data/humanevalpack.jsonl", "Apache-2.0"),
        language=language,
        num_problems=164,
    )
    for short, language in languages.PACK.items()
)

TASKS: tuple[Task, ...] = (
    *_OF_PYTHON,
    *_OF_HUMANEVAL_INFILLING,
    _OF_SANTACODER,
    *_OF_MULTIPLE,
    *_OF_PACK,
)


def find(names: Sequence[str]) -> tuple[Task, ...]:
    """The tasks with these names; `*` stands for any text.

    Raises:
        ConfigError: a name that no task has.
    """
    found: list[Task] = []
    for name in names:
        matching = [task for task in TASKS if fnmatch(task.name, name)]
        if not matching:
            known = [*(task.name for task in TASKS), MY_REPO, PERPLEXITY]
            close = get_close_matches(name, known, n=1)
            raise ConfigError(
                f"there is no task {name!r}",
                f"did you mean {close[0]!r}?" if close else "`starcoder evaluate --list` names them all",
            )
        found += [task for task in matching if task not in found]
    return tuple(found)
