"""`starcoder ...` and `python -m starcoder ...`: run the command line, answer Ctrl-C at any moment."""

import signal
import sys


def main() -> int:
    """Run the process's arguments and return the exit code."""
    try:
        from starcoder.cli import main as run  # inside, so that Ctrl-C is also answered while it loads

        return run(sys.argv[1:])
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second one must not break the farewell
        if sys.stdout.isatty():
            sys.stdout.write("\n")  # the stream stopped in the middle of a line
        sys.stderr.write("error: interrupted\nhint: what was printed is complete up to this point\n")
        return 130


if __name__ == "__main__":
    sys.exit(main())
