"""What trusted texts say of names: which ones tests read without defining them, and members of classes."""

import ast
import builtins
import symtable
from collections.abc import Iterator


def free_names(tests: str) -> frozenset[str]:
    """The global names that `tests` read and that neither they nor Python's builtins define.

    None where `tests` do not parse: running them will say so.
    """
    try:
        tables = list(_tables(symtable.symtable(tests, "<tests>", "exec")))
    except (SyntaxError, ValueError, RecursionError):
        return frozenset()
    module, *inner = tables
    bound = {one.get_name() for one in module.get_symbols() if one.is_assigned() or one.is_imported()}
    read = {one.get_name() for one in module.get_symbols() if one.is_referenced()}
    for table in inner:
        for one in table.get_symbols():
            if one.is_global():
                read |= {one.get_name()} if one.is_referenced() else set()
                bound |= {one.get_name()} if one.is_assigned() else set()
    return frozenset(
        name for name in read - bound if not hasattr(builtins, name) and not name.startswith("__")
    )


def _tables(table: symtable.SymbolTable) -> Iterator[symtable.SymbolTable]:
    yield table
    for child in table.get_children():
        yield from _tables(child)


def members(solution: str) -> dict[str, dict[str, bool]]:
    """Every class that a known solution defines, with its members, and whether each is a method.

    Attributes are those that its methods assign to their first argument.
    """
    try:
        body = ast.parse(solution).body
    except (SyntaxError, ValueError, RecursionError):
        return {}
    return {node.name: dict(_members(node)) for node in body if isinstance(node, ast.ClassDef)}


def _members(node: ast.ClassDef) -> Iterator[tuple[str, bool]]:
    for part in ast.walk(node):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store):
            yield part.attr, False
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef):
            yield statement.name, not statement.decorator_list
