"""The other languages: which command compiles and runs a file, and where its tests report success."""

PASSED_MARK = "@@PASSED@@"
"""A line of tests that is replaced by the statement that reports success."""


def available(language: str) -> bool:
    """Whether this machine has the tool-chain of `language` ("python" always)."""
    return language == "python"
