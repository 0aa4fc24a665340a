"""`starcoder ...` and `python -m starcoder ...`: run the command line, answer Ctrl-C at any moment."""

import os
import signal
import sys

_INTERRUPTED = 130  # what a shell reports for a program that SIGINT ended
_FAREWELL = "error: interrupted\nhint: what was printed is complete up to this point\n"


def main() -> int:
    """Run the process's arguments and return the exit code."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Python drops a KeyboardInterrupt that falls into a callback of its import machinery; nothing is
        # under way yet, so leave at once.
        signal.signal(signal.SIGINT, _leave)
    from starcoder.cli import main as run  # inside, so that Ctrl-C is also answered while it loads

    try:
        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        return run(sys.argv[1:])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one must not break the farewell
        if sys.stdout.isatty():
            sys.stdout.write("\n")  # the stream stopped in the middle of a line
        sys.stderr.write(_FAREWELL)
        return _INTERRUPTED


def _leave(*_: object) -> None:
    sys.stderr.write(_FAREWELL)
    sys.stderr.flush()
    os._exit(_INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
