"""Where prompts come from: the command line, stdin, or the cursor of a real file."""

import sys
from dataclasses import dataclass
from pathlib import Path

from starcoder.errors import ConfigError, RequestError


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a file, `FILE:LINE:COL`; line and column count characters from 1; the file `-` is stdin."""

    file: str
    line: int
    column: int

    @classmethod
    def parse(cls, target: str) -> "Cursor":
        """Raises: ConfigError: not FILE:LINE:COL."""
        file, _, column = target.rpartition(":")
        file, _, line = file.rpartition(":")
        if not (file and line.isdecimal() and column.isdecimal()):
            raise ConfigError(
                f"{target!r} is not FILE:LINE:COL", "line and column count from 1, as in src/app.py:42:8"
            )
        return cls(file, int(line), int(column))

    def split(self, text: str) -> tuple[str, str]:
        """The text before and after the cursor. A line's last column is the one after its last character.

        Raises:
            ConfigError: the cursor lies outside the text.
        """
        lines = text.split("\n")
        if not 1 <= self.line <= len(lines):
            raise ConfigError(
                f"line {self.line} is outside {self.file!r}", f"its lines go from 1 to {len(lines)}"
            )
        width = len(lines[self.line - 1].removesuffix("\r"))
        if not 1 <= self.column <= width + 1:
            raise ConfigError(
                f"column {self.column} is outside line {self.line} of {self.file!r}",
                f"the columns of this line go from 1 to {width + 1}",
            )
        at = sum(len(line) + 1 for line in lines[: self.line - 1]) + self.column - 1
        return text[:at], text[at:]


def read_text(file: str) -> str:
    """The text of a UTF-8 file, or of stdin for `-`, with its line ends as they are.

    Raises:
        ConfigError: no such file, not readable, not text.
    """
    name = "stdin" if file == "-" else repr(file)
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"cannot read {name}: {error.strerror}", f"paths start from {str(Path.cwd())!r}"
        ) from None
    if b"\0" in data:
        raise ConfigError(f"{name} is a binary file", "only text can be completed")
    try:
        return data.decode("utf-8-sig")  # a byte order mark is no code
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{name} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}",
            "convert it, for example with `iconv -f latin1 -t utf-8`",
        ) from None


def read_prompt(prompt: str | None) -> str:
    """The prompt as given, or stdin for `-` and where a pipe takes the place of an argument.

    Raises:
        ConfigError: there is neither, or it is not text.
        RequestError: the prompt is empty.
    """
    if prompt is None and sys.stdin.isatty():
        raise ConfigError(
            "no prompt", 'give one, as in `starcoder generate "def add(a, b):"`, or pipe one in'
        )
    text = read_text("-") if prompt is None or prompt == "-" else checked(prompt, "the prompt")
    if not text:
        raise RequestError("the prompt is empty", 'give the start of some code, as in "def add(a, b):"')
    return text


def checked(argument: str, name: str) -> str:
    """`argument`, which the shell may have passed in another encoding.

    Raises:
        ConfigError: it is not UTF-8.
    """
    try:
        argument.encode("utf-8")
    except UnicodeEncodeError:
        raise ConfigError(
            f"{name} is not UTF-8", "use a UTF-8 locale, or a UTF-8 file through stdin"
        ) from None
    return argument
