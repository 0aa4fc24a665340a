"""The sandbox: runs programs that nobody has read, and decides which of them pass their tests.

Import from its modules: `pool` (Sandbox), `verdicts` (Program, Cases, Limits, Verdict, Isolation) and
`languages`. This file stays empty: the process that runs the programs imports it too and must stay small.
"""
