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

MY_REPO, PERPLEXITY = (
    "my-repo",
    "perplexity",
)  # tasks whose data is the user's own, see `repository`, `perplexity`

_SHIPPED = Path(__file__).parent / "starter.jsonl"
_GITHUB = "https://raw.githubusercontent.com"
_INFILLING = f"{_GITHUB}/openai/human-eval-infilling/88062ff9859c875d04db115b698ed4b0f0395170/data"
_EVALPLUS = "https://github.com/evalplus"
_PACK = f"{_GITHUB}/bigcode-project/octopack/main/evaluation/create/humaneval-x/data"


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


def _infilling(name: str, file: str, sha256: str, num_problems: int, max_tokens: int) -> Task:
    return Task(
        name=f"humaneval-infilling{name}",
        about=f"HumanEval with {file} left out",
        rule=python_tasks.infilling,
        source=Source(url=f"{_INFILLING}/HumanEval-{file}.jsonl.gz", sha256=sha256, licence="MIT"),
        num_problems=num_problems,
        max_tokens=max_tokens,
    )


_PACK_SHA256 = {
    "python": "b1376d72be4bd016a62ad043d9de3846edb8d63edf1222da802a31330c14c3a7",
    "js": "04c86c1fac5f33818d9187cba278ed1dfc66cc259372dd8342126aa580fb7569",
    "java": "a8d077d300bbdc2eda91e1a733deb2944678bce8fcc7eb272214626516768cc1",
    "cpp": "891a390c1b9d2cb85dd8fbebcf1d88dbdd565734a6b2b3259f9ddb3fe95e33d7",
    "go": "0ee2cdca46d70afb33d913a0d4b205624fe4ded2f28c2efdb241727221837993",
    "rust": "01ece28eaf490d7af037ce53095083dacfd38022cf5b82662ccb78024dc269a1",
}

TASKS: tuple[Task, ...] = (
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
        source=Source(
            url=f"{_GITHUB}/openai/human-eval/master/data/HumanEval.jsonl.gz",
            sha256="b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            licence="MIT",
        ),
        num_problems=164,
    ),
    Task(
        name="humanevalplus",
        about="HumanEval with 80 times the tests",
        rule=python_tasks.humaneval_plus,
        source=Source(
            url=f"{_EVALPLUS}/humanevalplus_release/releases/download/v0.1.10/HumanEvalPlus.jsonl.gz",
            licence="Apache-2.0",
        ),
        num_problems=164,
    ),
    Task(
        name="humanevalplus-mini",
        about="the same with the fewest tests that tell as much",
        rule=python_tasks.humaneval_plus,
        source=Source(
            url=f"{_EVALPLUS}/humanevalplus_release/releases/download/v0.1.10/HumanEvalPlus-Mini.jsonl.gz",
            sha256="91486741f1627101021fbe50523df08eebb5b0bf5e804b633dcd5ca3c14dbd2f",
            licence="Apache-2.0",
        ),
        num_problems=164,
    ),
    Task(
        name="mbpp",
        about="short programs from a sentence and a test",
        rule=python_tasks.mbpp,
        source=Source(
            url=f"{_GITHUB}/google-research/google-research/master/mbpp/mbpp.jsonl", licence="Apache-2.0"
        ),
        num_problems=500,
    ),
    Task(
        name="mbppplus",
        about="378 of MBPP, mended, with 35 times the tests",
        rule=python_tasks.mbpp_plus,
        source=Source(
            url=f"{_EVALPLUS}/mbppplus_release/releases/download/v0.2.0/MbppPlus.jsonl.gz",
            sha256="af43697e8791c4c149bdfd6b489d8b5412507551ac20e28a439f650b8225db63",
            licence="Apache-2.0",
        ),
        num_problems=378,
    ),
    _infilling(
        "",
        "SingleLineInfilling",
        "1277073e7ddce163ef68598c2bca777f688a53df99422f097e37362090f88e1f",
        1033,
        128,
    ),
    _infilling(
        "-multiline",
        "MultiLineInfilling",
        "2f341612eee1d35da1357a4f365e0c0b3ba6e2b62eb491e88aaefa4855af0349",
        5815,
        256,
    ),
    _infilling(
        "-span",
        "RandomSpanInfilling",
        "b4f330d8a8ff97bf85d9def497dffcae4d741e506449386a877236e422e33e8d",
        1640,
        256,
    ),
    _infilling(
        "-span-light",
        "RandomSpanInfillingLight",
        "1432250ecac0cb56e6f97f8faf0970419ef892a98fda7e1f5aa4c4b87209b760",
        164,
        256,
    ),
    Task(
        name="santacoder-fim",
        about="one line left out, in Python, Java and JavaScript; exact match",
        rule=languages.santacoder_fim,
        source=Source(hub="bigcode/santacoder-fim-task", licence="openrail"),
        max_tokens=64,
        is_executed=False,
        language="python, java, javascript",
    ),
    *(
        Task(
            name=f"multiple-{short}",
            about="HumanEval translated by MultiPL-E",
            rule=partial(languages.multiple, language=language),
            source=Source(hub="nuprl/MultiPL-E", pattern=f"humaneval-{short}/*.parquet", licence="MIT"),
            language=language,
        )
        for short, language in languages.MULTIPLE.items()
    ),
    *(
        Task(
            name=f"humanevalpack-{short}",
            about="HumanEval translated by hand for OctoPack",
            rule=partial(languages.pack, language=language),
            source=Source(
                url=f"{_PACK}/{short}/data/humanevalpack.jsonl",
                sha256=_PACK_SHA256[short],
                licence="Apache-2.0",
            ),
            language=language,
            num_problems=164,
        )
        for short, language in languages.PACK.items()
    ),
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
