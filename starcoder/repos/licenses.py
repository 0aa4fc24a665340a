"""Tells the license of a file from its SPDX header, and of a folder from the text of its LICENSE file.

Licenses are SPDX identifiers; "unknown" where nothing tells. Limits: texts are known by phrases that no
other license has, not by comparing them whole; a folder's license counts for what is below it.
"""

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

UNKNOWN = "unknown"
MAX_LICENSE_BYTES = 100_000

_SPDX = re.compile(r"SPDX-License-Identifier:\s*([\w.+() -]+?)\s*(?:\*/|-->|[\"'#}]|$)", re.MULTILINE)
_NAME = re.compile(r"(un)?licen[cs]e|copying|copyright", re.IGNORECASE)
_HEADER_CHARACTERS = 3000

# Phrases that must all stand in the text, most telling license first.
# Source: the texts of spdx.org/licenses, in lower case with runs of blanks as one.
_PHRASES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("AGPL-3.0", ("gnu affero general public license", "version 3")),
    ("LGPL-3.0", ("gnu lesser general public license", "version 3, 29 june 2007")),
    ("LGPL-2.1", ("gnu lesser general public license", "version 2.1")),
    ("GPL-3.0", ("gnu general public license", "version 3, 29 june 2007")),
    ("GPL-2.0", ("gnu general public license", "version 2, june 1991")),
    ("MPL-2.0", ("mozilla public license version 2.0",)),
    ("MPL-2.0", ("mozilla public license, version 2.0",)),
    ("EPL-2.0", ("eclipse public license - v 2.0",)),
    ("EUPL-1.2", ("european union public license v. 1.2",)),
    ("Apache-2.0", ("apache license", "version 2.0")),
    ("PSF-2.0", ("python software foundation license version 2",)),
    ("BSL-1.0", ("boost software license - version 1.0",)),
    ("CC0-1.0", ("cc0 1.0 universal",)),
    ("CC-BY-SA-4.0", ("attribution-sharealike 4.0",)),
    ("CC-BY-4.0", ("attribution 4.0 international",)),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",)),
    ("WTFPL", ("do what the fuck you want to public license",)),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms", "this product includes software")),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms", "endorse or promote")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms",)),
    ("ISC", ("permission to use, copy, modify, and/or distribute this software for any", "copyright notice")),
    ("ISC", ("permission to use, copy, modify, and distribute this software for any", "copyright notice")),
    ("Zlib", ("this software is provided 'as-is'", "altered source versions must be plainly marked")),
    ("MIT", ("permission is hereby granted, free of charge", "the software is provided")),
)


def is_license_file(path: str) -> bool:
    """Whether a file of this name tells the license of its folder."""
    return _NAME.match(PurePosixPath(path).name) is not None


def license_of_text(text: str) -> str | None:
    """The license that a LICENSE file's text grants; None: not recognised."""
    header = license_of_header(text)
    if header:
        return header
    flat = " ".join(text.lower().split())
    return next((name for name, phrases in _PHRASES if all(p in flat for p in phrases)), None)


def license_of_header(text: str) -> str | None:
    """The SPDX expression at the top of a source file."""
    match = _SPDX.search(text, 0, _HEADER_CHARACTERS)
    return match[1].strip(" ()") if match else None


def license_of_path(path: str, folders: Mapping[str, str]) -> str:
    """The license of the nearest folder above `path` that has one; `folders` are paths, "" the root."""
    for parent in PurePosixPath(path).parents:
        name = "" if str(parent) == "." else str(parent)
        if name in folders:
            return folders[name]
    return UNKNOWN


def is_wanted(license: str, allow: Sequence[str], deny: Sequence[str]) -> bool:
    """Whether no pattern (as in shells, any case) denies the license and, if there are any, one allows it."""
    name = license.lower()
    if any(fnmatchcase(name, pattern.lower()) for pattern in deny):
        return False
    return not allow or any(fnmatchcase(name, pattern.lower()) for pattern in allow)
