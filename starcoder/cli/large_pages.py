"""Asks for large pages of memory, for the verbs that train."""

import os


def ask_for_large_pages() -> None:
    """Have torch put tensors of 2 MiB and more on pages of 2 MiB, where Linux has them.

    To be called before torch makes its first tensor. What the user set already stays.
    """
    # torch then aligns those tensors to whole pages, and glibc gives their memory back when they go; without
    # it keeps holes that the next tensor of the same size does not fit, a third of a step's memory.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
