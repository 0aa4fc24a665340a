"""One thread of torch for every test and two processes of tests, which is what two cores can use.

Tiny matrices gain nothing from more threads, results do not depend on the machine, and the processes that
tests start do not compete for the same cores.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported, and for programs that tests start

import torch

torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With `-n`, a process that has no tests left takes some of another's: files differ a hundredfold."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "worksteal"
