"""The other languages: how a file of each is compiled and run, and where its tests report success."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

PASSED_MARK = "@@PASSED@@"
"""A line of tests that is replaced by the statement that reports success."""


@dataclass(frozen=True, slots=True)
class Language:
    """A tool-chain. In commands `{file}`, `{name}` (the file's stem) and `{memory_mib}` are filled in."""

    name: str
    tools: tuple[str, ...]
    file: str
    run: tuple[str, ...]
    report: str  # the statement that writes {nonce} to descriptor 3
    compile: tuple[str, ...] = ()
    preamble: str = ""
    braces: int = 0  # closing braces after which there is no place for a statement
    environment: dict[str, str] = field(default_factory=dict)

    def join(self, source: str, tests: str, nonce: str) -> str:
        """One file of a candidate and its tests that reports success after the last of these."""
        report = self.report.replace("{nonce}", nonce)
        if PASSED_MARK in tests:
            tests = tests.replace(PASSED_MARK, report)
        else:
            end = len(tests)
            for _ in range(self.braces):
                end = tests.rfind("}", 0, end)
            tests = f"{tests[: max(end, 0)]}\n{report}\n{tests[max(end, 0) :]}"
        return f"{self.preamble}{source}\n{tests}"

    def file_for(self, text: str) -> str:
        """The file's name; Java wants it to be that of the public class, or the class with `main`."""
        if self.name != "java":
            return self.file
        public = re.search(r"public\s+(?:final\s+)?class\s+(\w+)", text)
        before_main = re.findall(r"\bclass\s+(\w+)", text.partition("static void main")[0])
        name = public[1] if public else before_main[-1] if before_main else "Main"
        return f"{name}.java"


_JAVA_REPORT = (
    'try (java.io.OutputStream verdict = new java.io.FileOutputStream("/dev/fd/3")) '
    '{ verdict.write("{nonce}".getBytes()); } '
    "catch (java.io.IOException unwritten) { throw new RuntimeException(unwritten); }"
)
_RUST_REPORT = (
    '{ use std::io::Write; std::fs::OpenOptions::new().write(true).open("/dev/fd/3").unwrap()'
    '.write_all(b"{nonce}").unwrap(); }'
)

LANGUAGES = {
    language.name: language
    for language in (
        Language(
            "javascript",
            ("node",),
            "main.js",
            ("node", "--max-old-space-size={memory_mib}", "{file}"),
            'require("fs").writeSync(3, "{nonce}");',
        ),
        Language(
            "java",
            ("javac", "java"),
            "Main.java",
            ("java", "-ea", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-XX:-UsePerfData",
             "-Xmx{memory_mib}m", "-cp", "/tmp", "{name}"),
            _JAVA_REPORT,
            ("javac", "-J-XX:+UseSerialGC", "-J-XX:TieredStopAtLevel=1", "-J-XX:-UsePerfData", "-nowarn",
             "-d", "/tmp", "{file}"),
            braces=2,
        ),
        Language(
            "cpp",
            ("g++",),
            "main.cpp",
            ("/tmp/main",),
            'if (::write(3, "{nonce}", 32) != 32) return 1;',
            ("g++", "-std=c++17", "-O1", "-w", "-o", "/tmp/main", "{file}"),
            preamble="#include <unistd.h>\n",
            braces=1,
        ),
        Language(
            "rust",
            ("rustc", "cc"),
            "main.rs",
            ("/tmp/main",),
            _RUST_REPORT,
            ("rustc", "--edition", "2021", "-C", "debug-assertions=on", "-A", "warnings", "-o", "/tmp/main",
             "{file}"),
            braces=1,
        ),
        Language("bash", ("bash",), "main.sh", ("bash", "{file}"), "printf %s {nonce} >&3"),
        Language(
            "perl",
            ("perl",),
            "main.pl",
            ("perl", "{file}"),
            'open(my $verdict, ">&=", 3); print $verdict "{nonce}"; close $verdict;',
        ),
    )
}  # fmt: skip
"""The languages that the sandbox can run, by name, besides Python."""


def available(language: str) -> bool:
    """Whether this machine has the tool-chain of `language` ("python" always)."""
    return language == "python" or bool(tools(language))


def tools(language: str) -> dict[str, str]:
    """The absolute paths of a tool-chain's programs; empty when one is missing."""
    import shutil  # not above: the worker imports this module, and every fork pays for what it imports

    if language not in LANGUAGES:
        return {}
    found = {tool: shutil.which(tool) for tool in LANGUAGES[language].tools}
    whole = {tool: path for tool, path in found.items() if path}
    if len(whole) < len(found):
        return {}
    if "rustc" in whole and (sysroot := _rust_home(whole["rustc"])):
        whole["rustc"] = f"{sysroot}/bin/rustc"
    return whole


def folders(paths: dict[str, str]) -> Iterator[str]:
    """The folders outside the system's own that a tool-chain needs to see."""
    for path in paths.values():
        real = os.path.realpath(path)
        if not real.startswith(("/usr/", "/bin/")):
            yield os.path.dirname(os.path.dirname(real))


def _rust_home(rustc: str) -> str:
    """Where the compiler itself lives: the command may be rustup's, which needs the user's home folder."""
    import subprocess

    done = subprocess.run([rustc, "--print", "sysroot"], capture_output=True, text=True, check=False)
    return done.stdout.strip()
