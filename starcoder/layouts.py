"""Where each family of models expects its special tokens: one table, used to write and to parse.

`FAMILIES` has a row for each family: how its sentinels are spelled, the orders in which it was trained to
infill, and where the repository and the path go. `Sentinels` binds a row to the ids of a vocabulary and
writes tokens; `parse` takes a prompt in any family's sentinels apart, so that it can be rebuilt for the model
that is loaded. The layouts of commits, notebooks and issues are text with tags, as `prepare` stores them.

Limits: chat templates are `starcoder.chat`. What a client says about other families' repositories in plain
comments (DeepSeek-Coder, Codestral) stays part of the prefix.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

from starcoder.errors import CheckpointError, RequestError

FimOrder = Literal["psm", "spm"]
Encode = Callable[[str], list[int]]


@dataclass(frozen=True, kw_only=True, slots=True)
class FamilyLayout:
    """One family: the spelling of its sentinels and where they go.

    `psm` and `spm` name the order in which an infill is written: capitals are sentinels, `prefix` and
    `suffix` the text; None if the family was not trained on it. `header` says where repository and path go:
    `tags` are all inside an infill's prefix; `path` has the repository and the file's sentinel before the
    infill and the path's line inside; `before` has all of it before the infill.
    """

    name: str
    source: str
    end: str = "<|endoftext|>"
    begin: str | None = None  # a client may write it first; the tokenizer adds it where the model needs it
    pre: str | None = None
    suf: str | None = None
    mid: str | None = None
    pad: str | None = None
    psm: str | None = "PRE prefix SUF suffix MID"
    spm: str | None = None
    header: Literal["none", "tags", "path", "before"] = "none"
    repo: str | None = None
    file: str | None = None  # comes before the path of each file
    stars: str | None = None
    ends_lines: bool = False  # the repository's name and each file end with a line break
    is_padded: bool = False  # SentencePiece's blank belongs to the sentinels: "▁<PRE>"
    is_plain: bool = False  # its sentinels also occur in other text: a prompt begins with one
    other_ends: tuple[str, ...] = ()  # a generation also ends at these
    special_tokens: tuple[str, ...] = ()  # all of them, in the order of their ids, where we make vocabularies

    @property
    def num_sentinels(self) -> int:
        """Sentinels that an infill takes."""
        return sum(word.isupper() for word in (self.psm or self.spm or "").split())


_SPM_JOINED = "PRE SUF suffix MID prefix"  # SPM's variant 2: no sentinel between prefix and middle
_SPM_PLAIN = "SUF suffix PRE prefix MID"

_FIM_TOKENS = ("<|endoftext|>", "<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>")
_TALK_TOKENS = ("<issue_start>", "<issue_comment>", "<issue_closed>")
_JUPYTER_TOKENS = ("<jupyter_start>", "<jupyter_text>", "<jupyter_code>", "<jupyter_output>")
_COMMIT_TOKENS = ("<commit_before>", "<commit_msg>", "<commit_after>")
_PR_TOKENS = (
    *("<pr>", "<pr_status>", "<pr_is_merged>", "<pr_base>", "<pr_file>", "<pr_base_code>", "<pr_diff>"),
    *("<pr_diff_hunk>", "<pr_comment>", "<pr_event_id>", "<pr_review>", "<pr_review_state>"),
    *("<pr_review_comment>", "<pr_in_reply_to_review_id>", "<pr_in_reply_to_comment_id>"),
    "<pr_diff_hunk_comment_line>",
)
MASKS = ("<NAME>", "<EMAIL>", "<KEY>", "<PASSWORD>")  # stand for personal data and secrets in training data

FAMILIES = {
    row.name: row
    for row in (
        FamilyLayout(
            name="starcoder",
            source="arXiv:2305.06161; bigcode-dataset: preprocessing/add_content_with_meta.py; "
            "bigcode-project/Megatron-LM: megatron/data/gpt_dataset.py, permute",
            pre="<fim_prefix>",
            suf="<fim_suffix>",
            mid="<fim_middle>",
            pad="<fim_pad>",
            spm=_SPM_JOINED,
            header="tags",
            repo="<reponame>",
            file="<filename>",
            stars="<gh_stars>",
            other_ends=("<commit_before>", "<issue_start>", "<jupyter_start>"),
            special_tokens=(
                *_FIM_TOKENS,
                *("<filename>", "<gh_stars>"),
                *_TALK_TOKENS,
                *_JUPYTER_TOKENS,
                "<empty_output>",
                *_COMMIT_TOKENS,
                "<reponame>",
            ),
        ),
        FamilyLayout(
            name="starcoder2",
            source="arXiv:2402.19173, section 5; huggingface/nanotron: nemo_dataset, fim_split_sample",
            pre="<fim_prefix>",
            suf="<fim_suffix>",
            mid="<fim_middle>",
            pad="<fim_pad>",
            spm=_SPM_JOINED,
            header="path",
            repo="<repo_name>",
            file="<file_sep>",
            other_ends=("<issue_start>", "<jupyter_start>"),
            special_tokens=(
                *_FIM_TOKENS,
                *("<repo_name>", "<file_sep>"),
                *_TALK_TOKENS,
                *_JUPYTER_TOKENS,
                *("<jupyter_script>", "<empty_output>", "<code_to_intermediate>", "<intermediate_to_code>"),
                *_PR_TOKENS,
                *MASKS,
            ),
        ),
        FamilyLayout(
            name="santacoder",
            source="arXiv:2301.03988; bigcode/santacoder: tokenizer.json",
            pre="<fim-prefix>",
            suf="<fim-suffix>",
            mid="<fim-middle>",
            pad="<fim-pad>",
            spm=_SPM_JOINED,
            special_tokens=("<|endoftext|>", "<fim-prefix>", "<fim-middle>", "<fim-suffix>", "<fim-pad>"),
        ),
        FamilyLayout(
            name="qwen2.5-coder",
            source="arXiv:2409.12186, section 3; QwenLM/Qwen2.5-Coder: README.md, file and repository level",
            pre="<|fim_prefix|>",
            suf="<|fim_suffix|>",
            mid="<|fim_middle|>",
            pad="<|fim_pad|>",
            header="before",
            repo="<|repo_name|>",
            file="<|file_sep|>",
            ends_lines=True,
            other_ends=("<|im_end|>",),
        ),
        FamilyLayout(
            name="codellama",
            source="arXiv:2308.12950; meta-llama/codellama: llama/generation.py, infilling_prompt_tokens",
            begin="<s>",
            end="</s>",
            pre="<PRE>",
            suf="<SUF>",
            mid="<MID>",
            spm=_SPM_JOINED,
            is_padded=True,
            is_plain=True,
            other_ends=("▁<EOT>",),
        ),
        FamilyLayout(
            name="codestral",
            source="mistralai/mistral-common: tokens/tokenizers/instruct.py, encode_fim",
            begin="<s>",
            end="</s>",
            pre="[PREFIX]",
            suf="[SUFFIX]",
            psm=None,
            spm="SUF suffix PRE prefix",
            is_plain=True,
        ),
        FamilyLayout(
            name="deepseek-coder",
            source="arXiv:2401.14196, section 3.1.2; deepseek-ai/DeepSeek-Coder: README.md, code insertion",
            begin="<\uff5cbegin▁of▁sentence\uff5c>",
            end="<\uff5cend▁of▁sentence\uff5c>",
            pre="<\uff5cfim▁begin\uff5c>",
            suf="<\uff5cfim▁hole\uff5c>",
            mid="<\uff5cfim▁end\uff5c>",
            other_ends=("<|EOT|>",),
        ),
        FamilyLayout(
            name="seed-coder",
            source="arXiv:2506.03524, section 3; ByteDance-Seed/Seed-Coder-8B-Base: model card",
            begin="<[begin▁of▁sentence]>",
            end="<[end▁of▁sentence]>",
            pre="<[fim-prefix]>",
            suf="<[fim-suffix]>",
            mid="<[fim-middle]>",
            pad="<[PAD▁TOKEN]>",
            psm=None,
            spm=_SPM_PLAIN,
        ),
        # The vocabularies of the last two look like StarCoder's: they are chosen by name, not recognized.
        FamilyLayout(
            name="mellum",
            source="arXiv:2510.05788; JetBrains/Mellum-4b-base: model card, fill-in-the-middle with files",
            pre="<fim_prefix>",
            suf="<fim_suffix>",
            mid="<fim_middle>",
            pad="<fim_pad>",
            psm=None,
            spm=_SPM_PLAIN,
            header="before",
            repo="<reponame>",
            file="<filename>",
        ),
        FamilyLayout(
            name="granite",
            source="arXiv:2405.04324, section 3; ibm-granite/granite-8b-code-base: model card",
            pre="<fim_prefix>",
            suf="<fim_suffix>",
            mid="<fim_middle>",
            pad="<fim_pad>",
            spm=_SPM_JOINED,
        ),
    )
}

# Other tokens that open a document or end a turn: a model writes them when the present text is finished.
_OTHER_ENDS = ("<|end|>", "<|im_end|>", "<|end_of_text|>")

# Special in every vocabulary that has them, even where its tokenizer.json does not say so.
SENTINELS = frozenset(
    text
    for name in ("santacoder", "starcoder", "starcoder2")
    for row in (FAMILIES[name],)
    for text in (row.end, row.pre, row.suf, row.mid, row.pad, row.repo, row.file, row.stars)
    if text is not None
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """What says which file a text is: the parts in the order in which they are written.

    An infill's first sentinel comes between `file` and `tags`.
    """

    repository: tuple[int, ...] = ()  # once, before all files of a repository
    file: tuple[int, ...] = ()
    tags: tuple[int, ...] = ()
    line: str = ""  # ends in a line break; encoded together with the text, as in training
    shown: frozenset[str] = frozenset()  # which of repo, path and stars it has


@dataclass(frozen=True, kw_only=True, slots=True)
class Sentinels:
    """The special tokens of one vocabulary by what they do; None where it has none. Writes layouts as ids."""

    style: str  # the family's name in `FAMILIES`
    eos: int
    fim_prefix: int | None = None  # these three are None together: the model cannot infill
    fim_middle: int | None = None  # None as well in a family that ends its prompt with the prefix
    fim_suffix: int | None = None
    fim_pad: int | None = None
    filename: int | None = None  # a tag inside the prefix
    repo_name: int | None = None
    gh_stars: int | None = None
    file_sep: int | None = None  # separates the files of a repository
    end_ids: frozenset[int]  # a generation ends at any of these
    own_ends: tuple[int, ...] = ()  # of them, those that the checkpoint's own configuration names

    @property
    def layout(self) -> FamilyLayout:
        return FAMILIES[self.style]

    @property
    def can_infill(self) -> bool:
        return self.fim_prefix is not None

    @classmethod
    def resolve(cls, token_to_id: Callable[[str], int | None], *, family: str | None = None) -> "Sentinels":
        """Look the sentinels up by their text; `token_to_id` gives None for what is not one token.

        Families whose vocabularies look alike (StarCoder, Mellum, Granite) need `family`.

        Raises:
            CheckpointError: no end-of-text token, or only some of the infilling sentinels.
        """

        def id_of(text: str | None) -> int | None:
            found = None if text is None else token_to_id(text)
            return token_to_id(f"▁{text}") if text is not None and found is None and row.is_padded else found

        row = FAMILIES[family] if family is not None else _recognize(token_to_id)
        eos = id_of(row.end)
        if eos is None:
            raise CheckpointError(
                f"the tokenizer has no token {row.end!r}", "is it of the StarCoder family, and complete?"
            )
        fim = {text: id_of(text) for text in (row.pre, row.mid, row.suf) if text is not None}
        missing = [repr(text) for text, id in fim.items() if id is None]
        if 0 < len(missing) < len(fim):
            raise CheckpointError(
                f"the tokenizer has only some infilling tokens; missing: {', '.join(missing)}",
                "tokenizer.json may be of another checkpoint; download it again",
            )
        is_tag = row.header == "tags"
        ends = map(id_of, (row.end, *fim, row.pad, *row.other_ends, *_all_ends()))
        return cls(
            style=row.name,
            eos=eos,
            fim_prefix=fim.get(row.pre or ""),
            fim_middle=fim.get(row.mid or ""),
            fim_suffix=fim.get(row.suf or ""),
            fim_pad=id_of(row.pad),
            filename=id_of(row.file) if is_tag else None,
            repo_name=id_of(row.repo),
            gh_stars=id_of(row.stars),
            file_sep=None if is_tag else id_of(row.file),
            end_ids=frozenset(id for id in ends if id is not None),
        )

    def order(self, wanted: FimOrder) -> FimOrder:
        """The order asked for, or the only one that the family was trained on."""
        return wanted if getattr(self.layout, wanted) is not None else "spm" if wanted == "psm" else "psm"

    def infill(self, order: FimOrder, prefix: Sequence[int], suffix: Sequence[int]) -> list[int]:
        """Ids of an infilling prompt or document, up to where the middle begins.

        Raises:
            RequestError: the model has no infilling tokens, or was not trained on this order.
        """
        if not self.can_infill:
            raise RequestError(
                "this model cannot infill: its tokenizer has no infilling tokens",
                "leave the suffix out, or use a StarCoder base model",
            )
        words = self.layout.psm if order == "psm" else self.layout.spm
        if words is None:
            raise RequestError(
                f"models of the family {self.style} do not infill in the order {order}",
                f"use the layout {self.order(order)}, or auto",
            )
        parts: dict[str, Sequence[int]] = {"prefix": prefix, "suffix": suffix}
        for word, id in (("PRE", self.fim_prefix), ("SUF", self.fim_suffix), ("MID", self.fim_middle)):
            parts[word] = [id] if id is not None else []
        return [id for word in words.split() for id in parts[word]]

    def header(
        self, encode: Encode, *, repo: str = "", path: str = "", stars: str = "", is_infill: bool = False
    ) -> Header:
        """What precedes a file, as the family was trained; "" is not shown, nor what the family never saw.

        Families that separate files knew the paths of all files or of none: without `path` the header is
        the separator alone.
        """
        row = self.layout
        if row.header == "tags":
            given = (("repo", self.repo_name, repo), ("path", self.filename, path))
            return _tagged((*given, ("stars", self.gh_stars, stars)), encode)
        if self.file_sep is None:
            return Header()
        if not path:
            return Header(file=(self.file_sep,))
        repository = self.repository(encode, repo) if repo else ()
        line = f"{path}\n"
        is_before = is_infill and row.header == "before"
        return Header(
            repository=repository,
            file=(self.file_sep, *(encode(line) if is_before else ())),
            line="" if is_before else line,
            shown=frozenset(("path", "repo") if repository else ("path",)),
        )

    def repository(self, encode: Encode, name: str) -> tuple[int, ...]:
        """What precedes all files of a repository; () in a family without it."""
        if self.repo_name is None:
            return ()
        return (self.repo_name, *encode(f"{name}\n" if self.layout.ends_lines else name))

    def file(self, encode: Encode, path: str, text: str) -> list[int]:
        """One whole file of a repository; its path is not shown if empty."""
        assert self.file_sep is not None, "asked of families that separate files"
        if self.layout.ends_lines and not text.endswith("\n"):
            text += "\n"
        return [self.file_sep, *encode(f"{path}\n{text}" if path else text)]


def _tagged(given: Iterable[tuple[str, int | None, str]], encode: Encode) -> Header:
    shown = [(name, tag, text) for name, tag, text in given if tag is not None and text]
    if not shown:
        return Header()
    *first, (_, last, line) = shown
    return Header(
        tags=(*(id for _, tag, text in first for id in (tag, *encode(text))), last),
        line=f"{line}\n",
        shown=frozenset(name for name, _, _ in shown),
    )


def _recognize(token_to_id: Callable[[str], int | None]) -> FamilyLayout:
    """The first family that a vocabulary can be of: by its infilling tokens, else by its end of text."""

    def has(row: FamilyLayout, text: str | None) -> bool:
        if text is None:
            return False
        spelled = (text, f"▁{text}") if row.is_padded else (text,)
        return any(token_to_id(one) is not None for one in spelled)

    # Rows that share their sentinels are told apart by the one that separates files, so that row goes first.
    rows = [FAMILIES["starcoder2"], *(row for row in FAMILIES.values() if row.name != "starcoder2")]
    for row in rows:
        if any(has(row, text) for text in (row.pre, row.suf, row.mid)) and (
            row.header != "path" or has(row, row.file)
        ):
            return row
    if has(FAMILIES["starcoder2"], "<|endoftext|>"):
        return FAMILIES["starcoder2" if has(FAMILIES["starcoder2"], "<file_sep>") else "starcoder"]
    return next((row for row in rows if has(row, row.end)), FAMILIES["starcoder"])


@cache
def _all_ends() -> tuple[str, ...]:
    """Tokens that only open another document, or end one, in any family."""
    found = [
        text
        for row in FAMILIES.values()
        for text in (row.repo, row.file, row.stars, *row.other_ends)
        if text is not None
    ]
    return tuple(dict.fromkeys([*found, *_OTHER_ENDS]))


# Prompts with sentinels, as clients write them


@dataclass(frozen=True, kw_only=True, slots=True)
class ParsedPrompt:
    """What a prompt with sentinels stands for."""

    prefix: str
    suffix: str | None = None  # None: left to right
    path: str | None = None
    repo: str | None = None
    files: tuple[tuple[str, str], ...] = ()  # path ("" where not shown) and text of the repository's others


def parse(text: str) -> ParsedPrompt | None:
    """What a raw prompt stands for; None if it has no sentinels, or they are in no known layout.

    Understood are the infilling orders of every family of the table, SPM with the suffix first, a lost first
    sentinel, and layouts of repositories with the path inside or before the infill. Commits, issues and
    notebooks are not: they are for the model as they are.
    """
    return next((found for one in _spellings() if (found := one.parse(text)) is not None), None)


def any_of(texts: Iterable[str]) -> re.Pattern[str]:
    """Matches any of the texts, the longest first."""
    longest = sorted(texts, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest)) or r"(?!)")


@cache
def _spellings() -> tuple["_Spelling", ...]:
    groups: dict[str, list[FamilyLayout]] = {}
    for row in FAMILIES.values():
        groups.setdefault((row.pre or "").replace("-", "_"), []).append(row)
    return tuple(map(_Spelling.of, groups.values()))


_PATH = re.compile(r"[^\s<>\"'(){}=,;]{1,200}\.\w{1,12}|[^\s<>\"'(){}=,;]*/[^\s<>\"'(){}=,;]{1,200}")
# What templates of other servers put after the middle sentinel.
_TRAILER = re.compile(r"\s*(?:<\|endoftext\|>|<\|end_of_text\|>)\s*\Z")


@dataclass(frozen=True, slots=True)
class _Spelling:
    """Families whose infilling sentinels look the same: a client may mix what they have."""

    rows: tuple[FamilyLayout, ...]
    role_of: dict[str, str]  # of an infilling sentinel
    repos: re.Pattern[str]
    files: re.Pattern[str]
    stars: re.Pattern[str]
    special: re.Pattern[str]

    @classmethod
    def of(cls, rows: Sequence[FamilyLayout]) -> "_Spelling":
        def texts(*names: str) -> list[str]:
            return [text for row in rows for name in names if (text := getattr(row, name)) is not None]

        roles = {"pre": "prefix", "suf": "suffix", "mid": "middle"}
        special = texts("begin", "end", "pre", "suf", "mid", "pad", "repo", "file", "stars")
        special += [
            text for row in rows for text in (*row.other_ends, *row.special_tokens) if text not in MASKS
        ]
        return cls(
            rows=tuple(rows),
            role_of={text: role for name, role in roles.items() for text in texts(name)},
            repos=any_of(texts("repo")),
            files=any_of(texts("file")),
            stars=any_of(texts("stars")),
            special=any_of({*special, *_OTHER_ENDS} - {*MASKS}),
        )

    def parse(self, text: str) -> ParsedPrompt | None:
        for row in self.rows:
            text = text.removeprefix(row.begin or "")
        if self.rows[0].is_plain and not text.startswith(tuple(self.role_of)):
            return None
        pieces = re.split(f"({any_of(self.role_of).pattern})", text)
        roles = [self.role_of[one] for one in pieces[1::2]]
        if self.rows[0].is_padded:
            pieces = _without_padding(pieces, roles)
        pieces[-1] = _TRAILER.sub("", pieces[-1]) if len(pieces) > 1 else pieces[-1]
        needed = {"middle"} if "middle" in self.role_of.values() else {"prefix"}
        if not roles and (self.repos.search(text) or self.files.search(text)):
            found = self._left_to_right(text)
        elif len(roles) > 1 and len(set(roles)) == len(roles) and needed <= set(roles):
            found = self._infill(dict(zip(roles, pieces[2::2], strict=True)), pieces[0])
        else:
            return None
        shown = [
            found.prefix,
            found.suffix,
            found.path,
            found.repo,
            *(x for file in found.files for x in file),
        ]
        return None if any(self.special.search(part or "") for part in shown) else found

    def _left_to_right(self, text: str) -> ParsedPrompt:
        """The last file of a repository is the one to complete."""
        repo, files = self._split(text)
        path, prefix = files.pop()
        return ParsedPrompt(prefix=prefix, path=path or None, repo=repo, files=_shown(files))

    def _infill(self, after: dict[str, str], head: str) -> ParsedPrompt:
        """`after` is the text behind each sentinel, `head` the text before the first."""
        if "prefix" not in after:  # cut off at the front: what is there is the end of the prefix
            head, after = "", after | {"prefix": head}
        repo, files = self._split(head, is_head=True)
        path, lead = files.pop()
        if path and not lead.strip():
            lead = ""
        elif path and not self._has_tags(head):  # the present file has lost its separator
            files.append((path, lead))
            path = lead = ""
        # In SPM the tags and the prefix follow the middle's sentinel; in PSM the middle has begun there.
        tagged, begun = after["prefix"], after.get("middle", "")
        if not tagged:
            tagged, begun = begun, ""
        inner_repo, inner_files = self._split(tagged)
        inner_path, prefix = inner_files.pop()
        path, prefix = path or inner_path, lead + prefix + begun
        if not path and self.files.search(head):
            path, prefix = _take_path(prefix)
        return ParsedPrompt(
            prefix=prefix,
            suffix=after.get("suffix", ""),
            path=path or None,
            repo=repo or inner_repo,
            files=_shown([*files, *inner_files]),
        )

    def _has_tags(self, text: str) -> bool:
        return any(row.header == "tags" and row.file is not None and row.file in text for row in self.rows)

    def _split(self, text: str, *, is_head: bool = False) -> tuple[str | None, list[tuple[str, str]]]:
        """The repository's name, and path and text of each file: at least one, the last one the present.

        `is_head`: a sentinel follows, so that a path needs no line break.
        """
        before, *files = self.files.split(text)
        repo = None
        if named := self.repos.match(before):
            name, _, before = before[named.end() :].partition("\n")
            repo = self.stars.split(name)[0].strip() or None
        found = [("", before)] if before.strip() or not files else []
        for file in files:
            line, newline, body = file.partition("\n")
            path = self.stars.split(line)[0].strip()
            is_path = self._has_tags(text) or _PATH.fullmatch(path) is not None
            found.append((path, body) if path and is_path and (newline or is_head) else ("", file))
        return repo, found


def _without_padding(pieces: Sequence[str], roles: Sequence[str]) -> list[str]:
    """The pieces without SentencePiece's blanks next to the sentinels; none follows that of the suffix."""
    out = list(pieces)
    for at in range(0, len(out), 2):
        if at and roles[at // 2 - 1] != "suffix":
            out[at] = out[at].removeprefix(" ")
        if at + 1 < len(out):
            out[at] = out[at].removesuffix(" ")
    return out


def _take_path(text: str) -> tuple[str, str]:
    """The path in the first line of a file, "" if it does not look like one; and the rest."""
    line, newline, rest = text.partition("\n")
    return (line.strip(), rest) if newline and _PATH.fullmatch(line.strip()) else ("", text)


def _shown(files: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    return tuple((path, text) for path, text in files if path or text.strip())


# Commits, notebooks, issues and pull requests: text with tags

_TAGS = any_of(
    text
    for name in ("starcoder", "starcoder2")
    for text in FAMILIES[name].special_tokens
    if text not in MASKS
)


def holds_tags(*texts: str) -> bool:
    """Whether a text spells one of StarCoder's or Starcoder2's special tokens."""
    return any(_TAGS.search(text) for text in texts)


def without_tags(text: str) -> str:
    """The text, with a blank inside whatever spells a special token."""
    return _TAGS.sub(lambda match: f"< {match.group()[1:]}", text)


def write_commit(before: str, message: str, after: str) -> str:
    return f"<commit_before>{before}<commit_msg>{message}<commit_after>{after}"


def parse_commit(document: str) -> tuple[str, str, str] | None:
    """The file before, the message and the file after; None: it is no commit."""
    found = re.fullmatch(r"<commit_before>(.*?)<commit_msg>(.*?)<commit_after>(.*)", document, re.S)
    return (found[1], found[2], found[3]) if found else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Cell:
    """A cell of a notebook; `output` is None for text."""

    text: str
    output: str | None = None


def write_notebook(cells: Iterable[Cell]) -> str:
    def written(cell: Cell) -> str:
        if cell.output is None:
            return f"<jupyter_text>{cell.text}"
        return f"<jupyter_code>{cell.text}<jupyter_output>{cell.output or '<empty_output>'}"

    return "<jupyter_start>" + "".join(map(written, cells))


def parse_notebook(document: str) -> tuple[Cell, ...] | None:
    """The cells of a notebook as `write_notebook` lays it out; None: it is none."""
    start, *pieces = re.split("(<jupyter_text>|<jupyter_code>)", document)
    if start != "<jupyter_start>" or not pieces:
        return None
    cells = []
    for kind, text in zip(pieces[::2], pieces[1::2], strict=True):
        text, _, output = text.partition("<jupyter_output>")
        is_text = kind == "<jupyter_text>"
        cells.append(Cell(text=text, output=None if is_text else output.replace("<empty_output>", "")))
    return tuple(cells)


@dataclass(frozen=True, kw_only=True, slots=True)
class Talk:
    """An issue: its posts in order, the first of which opens it with its title."""

    posts: tuple[str, ...]
    is_closed: bool = False


def write_issue(talk: Talk) -> str:
    return f"<issue_start>{'<issue_comment>'.join(talk.posts)}{'<issue_closed>' * talk.is_closed}"


def parse_issue(document: str) -> Talk | None:
    """The issue of a document as `write_issue` lays it out; None: it is none."""
    if not document.startswith("<issue_start>"):
        return None
    body = document.removeprefix("<issue_start>")
    posts = body.removesuffix("<issue_closed>").split("<issue_comment>")
    return Talk(posts=tuple(posts), is_closed=body.endswith("<issue_closed>"))
