"""Recipes: everything about asking that moves a score, under a name and with a hash that results carry.

Two results may be compared when their recipes' hashes are equal. Numbers published for the family stand
beside the recipe that made them, as far as their authors tell it.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from typing import Literal

from starcoder.errors import ConfigError
from starcoder.evaluate.problems import Problem
from starcoder.request import Layout

Strip = Literal["none", "end", "both"]
DType = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How problems are put to a model. None leaves a choice to the task."""

    name: str
    about: str = ""
    lead: str = ""  # before every prompt that is written left to right; a comment, as it is run too
    path: str | None = None  # shown as the file's name, where the family had names
    strip: Strip = "none"  # which blanks of the prompt are taken away
    stop: tuple[str, ...] | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    n: int = 1
    max_tokens: int | None = None
    dtype: DType | None = None
    layout: Layout = "psm"

    @property
    def hash(self) -> str:
        """12 hexadecimal digits of all that moves a score: everything but name and description."""
        fields = {key: value for key, value in asdict(self).items() if key not in ("name", "about")}
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]

    def asked(self, problem: Problem, *, max_tokens: int, seed: int) -> Problem:
        """The problem as this recipe puts it; `max_tokens` is the task's own, 0 leaves it to the problem."""
        request = problem.request
        prefix = request.prefix
        if request.suffix is None:
            stripped = {"none": prefix, "end": prefix.rstrip(), "both": prefix.strip()}
            prefix = self.lead + stripped[self.strip]
        sampling = replace(
            request.sampling,
            temperature=self.temperature,
            top_p=self.top_p,
            n=self.n,
            max_tokens=self.max_tokens or max_tokens or request.sampling.max_tokens,
            stop=request.sampling.stop if self.stop is None or request.suffix is not None else self.stop,
            seed=_seed(seed, problem.id),
        )
        layout = request.layout if request.suffix is None else self.layout
        return replace(
            problem,
            request=replace(
                request, prefix=prefix, path=self.path or request.path, sampling=sampling, layout=layout
            ),
        )


def _seed(seed: int, problem: str) -> int:
    """Each problem's own, so that a problem's samples are the same whatever else is asked."""
    digest = hashlib.sha256(f"{seed}/{problem}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


_EVALPLUS_ENDS = (
    *("\nif __name__", "\ndef main(", "\nprint(", "\ndef "),
    *("\nclass ", "\nimport ", "\nfrom ", "\nassert "),
)
_BIGCODE = Recipe(
    name="bigcode",
    about="the papers' numbers: 0.2 and 0.95, stripped prompts; 200 samples there, 20 here",
    strip="both",
    temperature=0.2,
    top_p=0.95,
    n=20,
)

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        name="greedy",
        about="the most probable token always; no blanks at a prompt's end",
        # A tokenizer joins a line end and the indentation after it: behind a bare line end the indented
        # body is not what training saw, and nano ended 147 of HumanEval's 164 answers at once.
        strip="end",
    ),
    _BIGCODE,
    replace(
        _BIGCODE,
        name="bigcode-pass100",
        about="the papers' pass@100: temperature 0.8",
        temperature=0.8,
        n=200,
    ),
    replace(
        _BIGCODE,
        name="starcoder-prompted",
        about="StarCoder's 40.8: the prompt opens as a file of solutions",
        path="solutions/solution_1.py",
        lead="# Here is the correct implementation of the code exercise\n",
    ),
    Recipe(
        name="evalplus",
        about="EvalPlus's table: greedy, stripped prompts, its own stops",
        strip="both",
        stop=_EVALPLUS_ENDS,
        max_tokens=768,
    ),
    Recipe(name="infilling-spm", about="greedy, suffix before prefix", layout="spm"),
)


@dataclass(frozen=True, slots=True)
class Published:
    """A number that others report, in percent, and who does."""

    model: str
    task: str
    score: float
    recipe: str
    source: str


_CARD, _BLOG, _PAPERS = "model card", "huggingface.co/blog/starcoder", "paperswithcode"
_PLUS = "evalplus.github.io: results.json"
_CARD_1B = {"humaneval": 15.17} | {
    f"multiple-{short}": score
    for short, score in {
        "cpp": 11.68, "java": 14.2, "js": 13.38, "php": 9.94, "lua": 12.52, "rs": 10.24, "swift": 3.92,
        "jl": 11.31, "r": 5.37,
    }.items()
}  # fmt: skip

# What a source says of a model that was asked by a recipe: by task.
_SCORES: dict[tuple[str, str, str], dict[str, float]] = {
    ("santacoder", "bigcode", _PAPERS): {"humaneval": 18.0, "mbpp": 35.0},
    ("santacoder", "evalplus", _PLUS): {"humaneval": 14.6, "humanevalplus": 14.0},
    ("starcoderbase-1b", "bigcode", _CARD): _CARD_1B,
    ("starcoderbase-1b", "evalplus", _PLUS): {"humaneval": 14.6, "humanevalplus": 12.2},
    ("starcoderbase-3b", "bigcode", _CARD): {"humaneval": 21.46},
    ("starcoderbase-3b", "evalplus", _PLUS): {"humaneval": 17.7, "humanevalplus": 15.9},
    ("starcoderbase-7b", "evalplus", _PLUS): {"humaneval": 24.4, "humanevalplus": 21.3},
    ("starcoderbase", "bigcode", _BLOG): {"humaneval": 30.4, "mbpp": 49.0},
    ("starcoder", "bigcode", _BLOG): {"humaneval": 33.6, "mbpp": 52.7},
    ("starcoder", "starcoder-prompted", _BLOG): {"humaneval": 40.8},
    ("starcoder", "evalplus", _PLUS): {"humaneval": 34.1, "humanevalplus": 29.3, "mbppplus": 46.1},
    ("starcoder2-3b", "evalplus", _PLUS): {"humaneval": 31.7, "humanevalplus": 27.4},
    ("starcoder2-7b", "evalplus", _PLUS): {"humaneval": 35.4, "humanevalplus": 29.9},
    ("starcoder2-15b", "evalplus", _PLUS): {"humaneval": 46.3, "humanevalplus": 37.8},
    ("starcoder2-15b", "bigcode", _PAPERS): {"mbpp": 66.2},
}
PUBLISHED: tuple[Published, ...] = tuple(
    Published(model, task, score, recipe, source)
    for (model, recipe, source), scores in _SCORES.items()
    for task, score in scores.items()
)


def named(name: str) -> Recipe:
    """Raises: ConfigError: no recipe has this name."""
    for recipe in RECIPES:
        if recipe.name == name:
            return recipe
    known = ", ".join(recipe.name for recipe in RECIPES)
    raise ConfigError(f"there is no recipe {name!r}", f"the recipes are {known}")


def published(model: str, task: str, recipe: str) -> tuple[Published, ...]:
    """What others report for a model, whose name may be a hub id or a folder; those of this recipe first."""
    name = model.rstrip("/").rpartition("/")[2].lower()
    found = [one for one in PUBLISHED if (one.model, one.task) == (name, task)]
    return tuple(sorted(found, key=lambda one: one.recipe != recipe))
