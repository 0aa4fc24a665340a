"""Licenses promise: whole texts of the SPDX list, notices, nested folders; what was changed is unknown."""

from pathlib import Path

import pytest

import starcoder
from starcoder.repos.license_expressions import expression_of, is_wanted, license_named, this_version
from starcoder.repos.license_texts import templates
from starcoder.repos.licenses import (
    PROPRIETARY,
    UNKNOWN,
    is_license_file,
    license_of_file,
    license_of_header,
    license_of_text,
    licenses_of_tree,
)

ROOT = Path(starcoder.__file__).parent.parent


def text_of(identifier: str) -> str:
    """The words of the list's text, titles and appendices included."""
    return " ".join(next(one for one in templates() if one.identifier == identifier).words)


def as_comment(text: str, sign: str = "#") -> str:
    words = text.split()
    lines = [" ".join(words[at : at + 12]) for at in range(0, len(words), 12)]
    return "".join(f"{sign} {line}\n" for line in lines) + "\nx = 1\n"


def gnu(name: str, version: str) -> str:
    return (
        f"This is free software; you can redistribute it and/or modify it under the terms of the {name} "
        f"as published by the Free Software Foundation; {version}"
    )


NOTICES = {
    "GPL-3.0-or-later": gnu(
        "GNU General Public License",
        "either version 3 of the License, or (at your option) any later version.",
    ),
    "GPL-2.0-only": gnu("GNU General Public License version 2", "see the file COPYING."),
    "LGPL-2.1-or-later": gnu(
        "GNU Lesser General Public License",
        "either version 2.1 of the License, or (at your option) any later version.",
    ),
    "AGPL-3.0-or-later": gnu(
        "GNU Affero General Public License",
        "either version 3 of the License, or (at your option) any later version.",
    ),
    "Apache-2.0": 'Licensed under the Apache License, Version 2.0 (the "License"); you may not use this file '
    "except in compliance with the License. You may obtain a copy of the License at "
    "http://www.apache.org/licenses/LICENSE-2.0",
    "MPL-2.0": "This Source Code Form is subject to the terms of the Mozilla Public License, v. 2.0. If a "
    "copy of the MPL was not distributed with this file, You can obtain one at mozilla.org/MPL/2.0/.",
    "BSL-1.0": "Distributed under the Boost Software License, Version 1.0. (See file LICENSE_1_0.txt)",
    "MIT": "Copyright (c) Microsoft Corporation. All rights reserved. Licensed under the MIT License.",
    "MIT OR GPL-2.0-only": "Dual licensed under the MIT or GPL Version 2 licenses.",
    "Apache-2.0 OR MIT": "Licensed under the Apache License, Version 2.0 or the MIT license, at your option.",
    PROPRIETARY: "Copyright (c) 2020 ACME Corp. All rights reserved. Proprietary and confidential.",
    UNKNOWN: "Copyright (c) 2020 ACME Corp. All rights reserved.",
}


@pytest.mark.parametrize("part", range(8))
def test_texts_of_the_list_are_recognized(part):
    listed = [one for one in templates() if not one.is_exception and not one.is_deprecated][part::8]
    found = {one.identifier: license_of_text(" ".join(one.words)) for one in listed}
    right = [name for name, license in found.items() if license == this_version(name)]
    wrong = {name: it for name, it in found.items() if it not in (None, name, this_version(name))}
    # The same words stand in both: only a text's name could tell them apart.
    wrong = {name: it for name, it in wrong.items() if not name.startswith(("OFL-", "MPL-2.0-no-", "GFDL-"))}
    assert wrong == {}
    assert len(right) >= 0.97 * len(found), sorted(set(found) - set(right))


@pytest.mark.parametrize(("license", "notice"), NOTICES.items())
@pytest.mark.parametrize("sign", ["#", "//", " *", "--"])
def test_notices_of_single_files(license, notice, sign):
    start = "/*\n" if sign == " *" else ""
    assert license_of_header(start + as_comment(notice, sign)) == license


def test_a_notice_that_points_to_a_license_file_says_nothing_itself():
    pointing = (
        "Copyright 2013 The Authors. All rights reserved. Use of this source code is governed by a BSD-style "
    )
    assert license_of_header(as_comment(pointing + "license that can be found in the LICENSE file.")) is None


@pytest.mark.parametrize("identifier", ["MIT", "BSD-3-Clause", "ISC", "Zlib", "Apache-2.0"])
def test_whole_texts_in_comments(identifier):
    assert license_of_header(as_comment(text_of(identifier))) == identifier


def test_a_tag_counts_where_it_is_a_line_of_its_own_and_valid():
    assert license_of_header("// SPDX-License-Identifier: (MIT OR Apache-2.0)\n") == "MIT OR Apache-2.0"
    assert license_of_header("/* SPDX-License-Identifier: GPL-2.0+ */") == "GPL-2.0-or-later"
    assert license_of_header("# SPDX-License-Identifier: LicenseRef-Ours\n") == "LicenseRef-Ours"
    prose = '"""Write SPDX-License-Identifier: GPL-2.0-only at the top of kernel files."""\n'
    assert license_of_header(prose) is None
    assert license_of_header('x = 1\nTAG = "SPDX-License-Identifier: MIT"\n') is None


@pytest.mark.parametrize(
    ("base", "old", "new"),
    [
        ("MIT", "to deal in", "to deal noncommercially in"),
        ("MIT", "to the following conditions", "to the following conditions it may not be used by any army"),
        ("BSD-3-Clause", "are permitted provided", "are not permitted unless"),
        ("ISC", "for any purpose", "for any academic purpose"),
        ("Apache-2.0", "perpetual worldwide", "revocable evaluation"),
    ],
)
def test_a_text_that_was_changed_is_not_its_original(base, old, new):
    text = text_of(base)
    assert old in text
    assert license_of_text(text.replace(old, new)) in (None, PROPRIETARY)
    assert license_of_text(f"{text} The Software shall not be used for commercial purposes.") is None


def test_several_texts_in_one_file():
    assert license_of_text(f"{text_of('MIT')}\n\n{text_of('Zlib')}") == "MIT AND Zlib"
    choice = f"You can choose one of two licenses.\n{text_of('MIT')}\n\n{text_of('Apache-2.0')}"
    assert license_of_text(choice) == "Apache-2.0 OR MIT"
    text = f"{text_of('Apache-2.0')}\n{text_of('LLVM-exception')}"
    assert license_of_text(text) == "Apache-2.0 WITH LLVM-exception"


def test_trees():
    files = {
        "LICENSE": text_of("MIT"),
        "a.py": "x = 1\n",
        "closed/LICENSE": "Ask Bob before you do anything with this.",
        "two/LICENSE-MIT": text_of("MIT"),
        "two/LICENSE-APACHE": text_of("Apache-2.0"),
        "later/COPYING": text_of("GPL-3.0-only"),
        "later/pyproject.toml": '[project]\nname = "x"\nlicense = "GPL-3.0-or-later"\n',
        "lesser/COPYING": text_of("GPL-3.0-only"),
        "lesser/COPYING.LESSER": text_of("LGPL-3.0-only"),
        "node/package.json": '{"license": "(ISC OR BSD-2-Clause)"}',
        "crate/Cargo.toml": '[package]\nname = "x"\nlicense = "MIT/Apache-2.0"\n',
        "old/setup.py": 'setup(classifiers=["License :: OSI Approved :: Apache Software License"])',
        "read/README.md": "# It\n\n## License\n\nReleased under the [BSD 3-Clause](x) license.\n",
        "REUSE.toml": 'version = 1\n[[annotations]]\npath = "img/**"\nSPDX-License-Identifier = "CC0-1.0"\n',
        "img/a/b.svg": "",
        "c.bin": "",
        "c.bin.license": "SPDX-License-Identifier: Zlib\n",
        "code/license_checker.py": text_of("GPL-3.0-only"),
    }
    licenses = licenses_of_tree(files, files.__getitem__)
    expected = {
        "a.py": "MIT",
        "closed/a.py": UNKNOWN,
        "two/x/a.py": "Apache-2.0 OR MIT",
        "later/a.py": "GPL-3.0-or-later",
        "lesser/a.py": "LGPL-3.0-only",
        "node/a.js": "ISC OR BSD-2-Clause",
        "crate/a.rs": "MIT OR Apache-2.0",
        "old/a.py": "Apache-2.0",
        "read/a.py": "BSD-3-Clause",
        "img/a/b.svg": "CC0-1.0",
        "c.bin": "Zlib",
        "code/b.py": "MIT",
    }
    assert {path: license_of_file(path, files.get(path, ""), licenses) for path in expected} == expected


def test_this_project_is_apache():
    names = [name for name in ("LICENSE", "pyproject.toml", "README.md") if (ROOT / name).exists()]
    if "LICENSE" not in names:
        pytest.skip("the package is installed without its source tree")
    sources = [path for path in sorted((ROOT / "starcoder").rglob("*.py")) if "bundled" not in path.parts]
    licenses = licenses_of_tree(names, lambda name: (ROOT / name).read_text("utf-8"))
    found = {
        license_of_file(str(path.relative_to(ROOT)), path.read_text("utf-8"), licenses) for path in sources
    }
    assert found == {"Apache-2.0"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            "LICENSE LICENSE.md LICENCE.txt COPYING COPYING.LESSER LICENSE-MIT MIT-LICENSE UNLICENSE",
            True,
        ),
        ("license_checker.py LicenseManager.java licenses.json copyright.rb copying_gc.c license.go", False),
        ("THIRD-PARTY-LICENSES.txt LICENSE.third-party LICENSE-docs NOTICE", False),
    ],
)
def test_license_files_by_name(names, expected):
    assert {name: is_license_file(f"sub/{name}") for name in names.split()} == dict.fromkeys(
        names.split(), expected
    )


@pytest.mark.parametrize(
    ("name", "license"),
    [
        ("MIT License", "MIT"),
        ("The MIT License (MIT)", "MIT"),
        ("Apache License, Version 2.0", "Apache-2.0"),
        ("GPLv3+", "GPL-3.0-or-later"),
        ("GNU Lesser General Public License v2 or later (LGPLv2+)", "LGPL-2.0-or-later"),
        ("New BSD", "BSD-3-Clause"),
        ("mit or apache-2.0", "MIT OR Apache-2.0"),
        ("(MIT OR ISC) AND GPL-2.0", "(MIT OR ISC) AND GPL-2.0-only"),
        ("BSD License", None),
        ("SEE LICENSE IN LICENSE.txt", None),
    ],
)
def test_names(name, license):
    assert license_named(name) == license
    assert license is None or expression_of(license) == license


def test_patterns_understand_expressions():
    assert is_wanted("MIT OR GPL-3.0-only", ["MIT"], ["GPL*"])
    assert not is_wanted("MIT AND GPL-3.0-only", ["MIT"], [])
    assert not is_wanted("MIT AND GPL-3.0-only", [], ["gpl*"])
    assert is_wanted("GPL-3.0-or-later", ["GPL-3.0"], [])
    assert is_wanted("GPL-2.0-only WITH Classpath-exception-2.0", ["GPL-2.0"], [])
    assert is_wanted("MPL-2.0", ["MPL*"], ["AGPL*"])
    assert not is_wanted(UNKNOWN, ["MIT"], [])
    assert is_wanted(UNKNOWN, [], ["GPL*"])
