"""The errors this package raises for its users: each has a message and a hint that says what to do."""

# The name on PyPI, where `starcoder` is an unrelated project. A test compares it with the metadata.
DISTRIBUTION = "starcoder-kit"


class StarcoderError(Exception):
    """Something the user can mend. `hint` says how, in one sentence, or is empty."""

    exit_code = 1

    def __init__(self, message: str, hint: str = ""):
        super().__init__(message)
        self.message, self.hint = message, hint


class ConfigError(StarcoderError):
    """A flag, TOML key or argument that cannot be."""

    exit_code = 2


class MissingExtraError(ConfigError):
    """A package of one of the optional extras is not installed; the hint is the command that installs it."""

    def __init__(self, message: str, extra: str):
        super().__init__(message, f"pip install '{DISTRIBUTION}[{extra}]'")


class RequestError(StarcoderError):
    """A prompt or parameter that the engine must refuse."""

    exit_code = 2


class CapacityError(StarcoderError):
    """The queue is full or the memory is planned away; the same request may succeed later."""


class CheckpointError(StarcoderError):
    """Files of a checkpoint are missing, truncated, of the wrong shape or of another family."""


class SandboxError(StarcoderError):
    """The sandbox itself failed, not the program in it."""
