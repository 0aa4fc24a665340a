"""Sessions: what the engine remembers of an editor's last request, so that typing only appends to the prompt.

Three things would break that and are handled here: an editor that closes a bracket by itself and so changes
the beginning of the suffix, a client that sends a window which moves along, and a layout that puts the suffix
behind the typed text. A session also answers from its last completion while the user types what that says,
and names the request to prepare while the engine is idle.
"""

from collections import OrderedDict
from dataclasses import dataclass, replace
from threading import Lock

from starcoder.engine.postprocess import AutoClosed
from starcoder.request import CompletionRequest, FinishReason, Layout

# What editors insert by themselves behind the cursor, and its maximum length: "\n    }" and the like.
_CLOSING, _BLANK = frozenset(")]}>\"'`"), frozenset(" \t\r\n;,")
_MAX_INSERTED = 24

# Two windows with this many equal characters show the same text.
_SURE = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class SessionPlan:
    """A request as the model sees it."""

    request: CompletionRequest
    inserted: str = ""  # the beginning of the real suffix, which the model does not see


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """A whole completion, and the request that it answers."""

    plan: SessionPlan
    text: str
    finish_reason: FinishReason
    prompt_tokens: int
    stop: str | int | None = None
    trimmed: tuple[str, ...] = ()


@dataclass(slots=True)
class _Session:
    plan: SessionPlan
    answer: Answer | None = None
    prepared: Answer | None = None  # to the request that follows if the user accepts `answer`


class Sessions:
    """The last plan and answer of each session; the least recently used session is evicted first.

    `plan` and `find_answer` may be called from any thread, the rest from the engine's.
    """

    def __init__(self, max_sessions: int):
        self._max_sessions = max_sessions
        self._sessions: OrderedDict[str, _Session] = OrderedDict()
        self._lock = Lock()  # of `_sessions`; a `_Session` is replaced field by field and read once

    def __len__(self) -> int:
        return len(self._sessions)

    def _session(self, name: str | None) -> _Session | None:
        with self._lock:
            return None if name is None else self._sessions.get(name)

    def plan(self, request: CompletionRequest) -> SessionPlan:
        """How to ask the model so that its prompt begins as the session's last one; remembers nothing.

        Prompts of a session with text after the cursor are SPM unless the request names a layout.
        """
        if request.session is None or request.tokens is not None:
            return SessionPlan(request=request)
        session, inserted = self._session(request.session), None
        prefix, suffix = request.prefix, request.suffix
        last = session.plan.request if session is not None else None
        if last is not None and (last.path, last.repo) == (request.path, request.repo):
            prefix = _same_start(last.prefix, prefix)
            if last.suffix is not None and suffix is not None:
                inserted = _inserted(last.suffix, suffix)
                suffix = suffix if inserted is None else last.suffix
        is_infill = request.layout == "auto" and suffix is not None and suffix.strip()
        layout: Layout = "spm" if is_infill else request.layout
        request = replace(request, prefix=prefix, suffix=suffix, layout=layout)
        return SessionPlan(request=request, inserted=inserted or "")

    def asked(self, plan: SessionPlan) -> None:
        """Remember what the model was asked."""
        name = plan.request.session
        if name is None:
            return
        with self._lock:
            session = self._sessions.setdefault(name, _Session(plan))
            session.plan = plan
            self._sessions.move_to_end(name)
            if len(self._sessions) > self._max_sessions:
                self._sessions.popitem(last=False)

    def answered(self, answer: Answer) -> None:
        """Remember the answer to a request."""
        session = self._session(answer.plan.request.session)
        if session is not None:
            session.answer, session.prepared = answer, None

    def upcoming(self, name: str) -> SessionPlan | None:
        """What a session will ask if its user accepts the last answer; None: there is nothing to accept."""
        session = self._session(name)
        last = session.answer if session is not None else None
        if last is None or last.plan.inserted or not last.text or not _can_repeat(last.plan.request):
            return None  # what the editor inserted stands in the way of the text that was accepted
        request = last.plan.request
        return replace(last.plan, request=replace(request, prefix=request.prefix + last.text))

    def prepared(self, answer: Answer) -> None:
        """Remember the answer to the upcoming request."""
        session = self._session(answer.plan.request.session)
        if session is not None:
            session.prepared = answer

    def typed_through(self, plan: SessionPlan) -> Answer | None:
        """As `find_answer`; a prepared answer becomes the last one: the user accepted the one before it."""
        session, answer = self._session(plan.request.session), self.find_answer(plan)
        prepared = None if session is None else session.prepared
        if prepared is not None and answer is not None and answer.plan == prepared.plan:
            self.answered(prepared)
        return answer

    def find_answer(self, plan: SessionPlan) -> Answer | None:
        """What is left of the last answer, if the user typed its beginning and changed nothing else.

        A text drawn at random is not repeated for an equal request: that asks for another one.
        """
        session = self._session(plan.request.session)
        if session is None:
            return None
        prepared = self._rest(session.prepared, plan, is_new=True)
        return prepared or self._rest(session.answer, plan, is_new=False)

    def _rest(self, last: Answer | None, plan: SessionPlan, *, is_new: bool) -> Answer | None:
        """`last` less what was typed of it; `is_new`: nobody has seen it."""
        request = plan.request
        if last is None or not _can_repeat(request) or not _same_but_for_typing(last.plan, plan):
            return None
        typed = request.prefix[len(last.plan.request.prefix) :]
        if not last.text.startswith(typed) or not (typed or is_new or request.sampling.temperature == 0):
            return None
        text, trimmed = last.text[len(typed) :], last.trimmed
        if plan.inserted != last.plan.inserted:
            closed = AutoClosed(plan.inserted)
            text, _ = closed.push(text)
            text += "" if closed.is_trimmed else closed.flush()
            trimmed = (*trimmed, closed.name) if closed.is_trimmed else trimmed
        return replace(last, text=text, trimmed=trimmed) if text.strip() else None


class Ahead:
    """Preparing ahead: which request to run while nothing else does, and whether it runs."""

    def __init__(self, sessions: Sessions, *, is_on: bool):
        self._sessions, self._is_on = sessions, is_on
        self._session = ""
        self.is_wanted = False  # `plan` should be run as soon as nothing else does
        self.running = ""  # id of the request that nobody sent

    def want(self, session: str | None) -> None:
        """This session has a new answer, which its user may accept."""
        if self._is_on and session is not None:
            self._session, self.is_wanted = session, True

    def plan(self) -> SessionPlan | None:
        return self._sessions.upcoming(self._session)


def _can_repeat(request: CompletionRequest) -> bool:
    return request.sampling.n == 1 and request.sampling.logprobs is None and request.tokens is None


def _same_but_for_typing(old: SessionPlan, new: SessionPlan) -> bool:
    if not new.request.prefix.startswith(old.request.prefix):
        return False
    if old.inserted and old.inserted != new.inserted:
        return False
    return replace(new.request, prefix="") == replace(old.request, prefix="")


def _same_start(old: str, new: str) -> str:
    """`new`, with what `old` has before it if the window moved by less than half its length."""
    head = new[:_SURE]
    if len(head) < _SURE or old.startswith(head):
        return new
    at = old.find(head)
    is_sure = at >= 0 and old.find(head, at + 1) < 0
    return old[:at] + new if is_sure and 2 * at <= len(new) else new


def _inserted(old: str, new: str) -> str | None:
    """The closing brackets or quotes inserted at the head of `old` to make `new`; None: another change."""
    for length in range(min(_MAX_INSERTED, len(new)) + 1):
        inserted = new[:length]
        if inserted and inserted[-1] not in _CLOSING | _BLANK:
            return None
        is_closing = not inserted or not _CLOSING.isdisjoint(inserted)
        if is_closing and _same_window(old, new[length:]):
            return inserted
    return None


def _same_window(old: str, new: str) -> bool:
    if min(len(old), len(new)) < _SURE:
        return old == new
    return old.startswith(new) or new.startswith(old)
