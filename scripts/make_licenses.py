"""Make starcoder/repos/licenses.txt.xz from the SPDX license list.

    git clone --branch v3.28.0 --depth 1 https://github.com/spdx/license-list-XML
    python scripts/make_licenses.py license-list-XML 3.28.0

The list is data under CC0-1.0. One line is one license or exception: kind, identifier, name, "deprecated" or
nothing, words. `?word` may be missing; `*n` stands for up to n words of any kind, `~word` for a word that may
come in addition.
"""

import lzma
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from starcoder.repos.license_words import words_of

_SPACE = "{http://www.spdx.org/license}"
_OPTIONAL = ("optional", "titleText", "copyrightText", "bullet", "standardLicenseHeader", "alt")
_ANY = 40  # words in the place of a name
_LEFT_OUT = ("crossRefs", "notes", "obsoletedBys")


def main(folder: Path, version: str) -> None:
    """Write the table."""
    lines = [f"SPDX license list {version}, github.com/spdx/license-list-XML"]
    for path in sorted((folder / "src").rglob("*.xml")):
        for element in ElementTree.parse(path).getroot():
            kind = element.tag.removeprefix(_SPACE)
            identifier = element.get("licenseId") or element.get("exceptionId") or ""
            deprecated = "deprecated" if element.get("deprecatedVersion") else ""
            words = " ".join(_words(element.find(f"{_SPACE}text"), is_optional=False))
            lines.append("\t".join([kind, identifier, element.get("name", ""), deprecated, words]))
    data = lzma.compress("\n".join(lines).encode(), preset=9 | lzma.PRESET_EXTREME)
    (Path(__file__).parent.parent / "starcoder" / "repos" / "licenses.txt.xz").write_bytes(data)


def _words(element: ElementTree.Element | None, *, is_optional: bool) -> Iterator[str]:
    """The words below an element, marked."""
    if element is None:
        return
    tag = element.tag.removeprefix(_SPACE)
    if tag in _LEFT_OUT:
        return
    is_optional = is_optional or tag in _OPTIONAL
    yield from _marked(element.text, is_optional)
    for child in element:
        yield from _words(child, is_optional=is_optional)
        yield from _marked(child.tail, is_optional)
    if tag == "copyrightText":
        yield f"*{_ANY}"
    if tag == "alt":
        match = element.get("match", "")
        if re.search(r"\.[+*{]|\]\+", match):
            yield f"*{_ANY}"
        else:
            yield from (f"~{word}" for word in words_of(re.sub(r"\\s[+*]?|\\[rntf]|[()?]", " ", match)))


def _marked(text: str | None, is_optional: bool) -> Iterator[str]:
    for word in words_of(text or ""):
        yield f"?{word}" if is_optional else word


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
