"""The sandbox: runs programs nobody has read, and tells which of them pass their tests.

Import from its modules: `pool` (Sandbox), `verdicts` (Program, Limits, Verdict, Isolation) and `languages`.
This file stays empty, because the process that runs the programs imports it too and must stay small.
"""
