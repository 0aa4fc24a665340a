"""How often completions were shown and accepted, by language. Kept on this machine; nothing is sent."""

import fcntl
import json
from collections import Counter
from pathlib import Path

from starcoder.files import replace_atomically

_KINDS = ("shown", "accepted", "accepted_characters")


class Statistics:
    """Counts of this process, added to those in a file that all language servers share."""

    def __init__(self, path: Path):
        self.path = path
        self._new: Counter[tuple[str, str]] = Counter()

    def shown(self, language: str) -> None:
        self._new[language, "shown"] += 1

    def accepted(self, language: str, num_characters: int) -> None:
        self._new[language, "accepted"] += 1
        self._new[language, "accepted_characters"] += num_characters

    def totals(self) -> dict[str, dict[str, int]]:
        """All counts so far, by language."""
        totals = self._saved()
        for (language, kind), number in self._new.items():
            row = totals.setdefault(language, dict.fromkeys(_KINDS, 0))
            row[kind] = row.get(kind, 0) + number
        return totals

    def save(self) -> None:
        """Add this process's counts to the file."""
        if not self._new:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.with_suffix(".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            totals = self.totals()
            with replace_atomically(self.path) as partial:
                partial.write_text(json.dumps(totals, indent=1, sort_keys=True) + "\n", "utf-8")
        self._new.clear()

    def _saved(self) -> dict[str, dict[str, int]]:
        try:
            found = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        rows = found.items() if isinstance(found, dict) else ()
        return {str(name): dict(row) for name, row in rows if isinstance(row, dict)}
