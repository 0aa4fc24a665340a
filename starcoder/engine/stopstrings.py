"""Stop strings: finds the one that is completed first, and holds back only what may begin one."""

from collections.abc import Collection


class StopStrings:
    """Finds the stop string that is completed first, however the text is cut into pieces.

    Of two completed by the same character the longer wins. Work is proportional to the new text:
    one state per stop string. Source: Knuth, Morris and Pratt 1977, "Fast pattern matching in strings".
    """

    def __init__(self, stops: Collection[str]):
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [borders(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)  # characters of each stop string that the text ends with
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """Text that no stop string can cut any more, and the stop string if one is complete."""
        if not self._stops:
            return text, None
        held = self._held + text
        for at in range(len(self._held), len(held)):
            stop = self._step(held[at])
            if stop is not None:
                self._held = ""
                return held[: at + 1 - len(stop)], stop
        cut = len(held) - max(self._states)
        self._held = held[cut:]
        return held[:cut], None

    def flush(self) -> str:
        """Text held back for a stop string that did not come."""
        held, self._held = self._held, ""
        return held

    def _step(self, char: str) -> str | None:
        found = None
        for i, (stop, borders) in enumerate(zip(self._stops, self._borders, strict=True)):
            state = self._states[i]
            while state and stop[state] != char:
                state = borders[state - 1]
            state += stop[state] == char
            self._states[i] = state
            if state == len(stop) and found is None:
                found = stop
        return found


def borders(pattern: str) -> list[int]:
    """For each beginning of `pattern`, the length of its longest proper beginning that also ends it."""
    borders, length = [0] * len(pattern), 0
    for i in range(1, len(pattern)):
        while length and pattern[length] != pattern[i]:
            length = borders[length - 1]
        length += pattern[length] == pattern[i]
        borders[i] = length
    return borders
