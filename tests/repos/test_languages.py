"""Languages promise: linguist's table and patterns; own mappings, aliases and notebooks' kernels."""

import json
import os
from pathlib import Path

import pytest

from starcoder.errors import ConfigError
from starcoder.repos.languages import (
    check_language_map,
    is_generated,
    is_vendored,
    known_language,
    language_named,
    language_of,
    language_of_notebook,
    languages,
    mapped_language,
    may_be_source,
    trained_languages,
)

FILES = [
    ("a.d", "module a;\nimport std.stdio;\n", "D"),
    ("a.d", "obj/a.o: src/a.c \\\n  src/b.h\n", "Makefile"),
    ("a.cr", "puts 1\n", "Crystal"),
    ("a.cob", "       IDENTIFICATION DIVISION.\n", "COBOL"),
    ("a.abap", "REPORT x.\n", "ABAP"),
    ("A.cls", "public class A { }\n", "Apex"),
    ("a.cls", "\\NeedsTeXFormat{LaTeX2e}\n", "TeX"),
    ("a.gd", "extends Node2D\nfunc _ready():\n\tpass\n", "GDScript"),
    ("a.hlsl", "float4 main() : SV_Target { return 1; }\n", "HLSL"),
    ("a.bicep", "param x string\n", "Bicep"),
    ("a.prisma", "model A { id Int @id }\n", "Prisma"),
    ("a.jinja2", "{% for x in y %}{% endfor %}\n", "Jinja"),
    ("a.html.erb", "<%= x %>\n", "HTML+ERB"),
    ("a.feature", "Feature: a\n  Scenario: b\n", "Gherkin"),
    (".vimrc", "set nocompatible\n", "Vim script"),
    ("a.fish", "function a\nend\n", "fish"),
    ("a.puml", "@startuml\n@enduml\n", "PlantUML"),
    ("nginx.conf", "server { listen 80; }\n", "Nginx"),
    ("a.pp", "class a {\n  file { '/x': ensure => present }\n}\n", "Puppet"),
    ("a.pp", "program a;\nbegin\nend.\n", "Pascal"),
    ("a.m", "@interface A : NSObject\n@end\n", "Objective-C"),
    ("a.m", "function y = f(x)\n% comment\ny = x;\nend\n", "MATLAB"),
    ("a.h", "@interface A : NSObject\n@end\n", "Objective-C"),
    ("a.h", "#include <vector>\ntemplate <class T> class A {};\n", "C++"),
    ("a.h", "int f(void);\n", "C"),
    ("a.v", "Require Import List.\nTheorem t : True. Proof. Qed.\n", "Rocq Prover"),
    ("a.v", "module a(input b);\nendmodule\n", "Verilog"),
    ("a.ts", '<?xml version="1.0"?>\n<TS version="2.1">\n</TS>\n', "XML"),
    ("a.ts", "export const x: number = 1;\n", "TypeScript"),
    ("a.pro", "HEADERS += a.h\nSOURCES += a.cpp\n", "QMake"),
    ("a.pl", ":- module(a, []).\na(X) :- b(X).\n", "Prolog"),
    ("a.pl", "use strict;\nmy $x = 1;\n", "Perl"),
    ("a.sol", "pragma solidity ^0.8.0;\ncontract A {}\n", "Solidity"),
    ("run", "#!/usr/bin/env -S python3.12 -u\n", "Python"),
    ("run", "#!/bin/sh\n", "Shell"),
    ("run", "#!/usr/bin/env node\n", "JavaScript"),
    ("settings", "# -*- mode: ruby -*-\n", "Ruby"),
    ("settings", "# vim: set ft=python :\n", "Python"),
    ("thing", '<?xml version="1.0"?>\n<a/>\n', "XML"),
    ("CMakeLists.txt", "project(a)\n", "CMake"),
    ("Jenkinsfile", "node {}\n", "Groovy"),
    ("a.unheard-of", "x\n", None),
    ("picture.stl", "solid x\n", None),
]  # fmt: skip


@pytest.mark.parametrize(("path", "text", "language"), FILES)
def test_files_by_name_and_text(path, text, language):
    assert language_of(path, text.encode()) == language


def test_samples_of_linguist_are_recognized():
    folder = os.environ.get("LINGUIST")
    if not folder:
        pytest.skip(
            "LINGUIST names no checkout of github-linguist/linguist, whose samples are not ours to copy"
        )
    samples = Path(folder) / "samples"
    renamed = {"Fstar": "F*", "ProC": "Pro*C"}
    paths = [path for path in sorted(samples.rglob("*")) if path.is_file()]
    right = sum(
        language_of(path.name, path.read_bytes())
        == renamed.get(path.relative_to(samples).parts[0], path.relative_to(samples).parts[0])
        for path in paths
    )
    assert len(paths) > 3000
    assert right / len(paths) >= 0.97


def test_every_pattern_is_quick_on_hostile_text():
    for text in (" " * 20_000, "a" * 20_000, "<" * 20_000, "(" * 20_000, "\n" * 20_000, "% " * 10_000):
        for extension in (
            "m",
            "h",
            "pl",
            "pro",
            "inc",
            "ts",
            "cls",
            "bas",
            "asm",
            "yaml",
            "txt",
            "1",
            "v",
            "fs",
        ):
            language_of(f"a.{extension}", text.encode())


def test_names_without_text_are_not_given_up():
    assert may_be_source("a.sol")
    assert may_be_source("bin/run")
    assert may_be_source("a.1")
    assert not may_be_source("a.unheard-of")


def test_own_mappings_come_first_and_the_last_wins():
    entries = ("*.inc=PHP", "conf/*=ini", ".tpl=html", "conf/x.inc=sql")
    found = [
        mapped_language(path, entries) for path in ("a/b.inc", "conf/a", "v/a.tpl", "conf/x.inc", "a.py")
    ]
    assert found == ["PHP", "INI", "HTML", "SQL", None]
    with pytest.raises(ConfigError, match="there is no language 'Pytohn'") as caught:
        check_language_map(("*.x=Pytohn",))
    assert caught.value.hint == "is it Python?"
    with pytest.raises(ConfigError, match="names no language"):
        check_language_map(("PHP",))


def test_languages_by_alias():
    assert [known_language(name) for name in ("c++", "golang", "PYTHON", "js")] == [
        "C++",
        "Go",
        "Python",
        "JavaScript",
    ]
    assert language_named("nonesuch") is None


def test_trained_languages_are_in_the_table():
    assert trained_languages("santacoder") == {"Java", "JavaScript", "Python"}
    assert trained_languages("starcoder") <= set(languages()) | {"Maple"}  # which linguist does not know
    assert 600 < len(trained_languages("starcoder2")) < len(languages())


@pytest.mark.parametrize(
    ("metadata", "language"),
    [
        ({"language_info": {"name": "python"}}, "Python"),
        ({"kernelspec": {"language": "R", "name": "ir"}}, "R"),
        ({"kernelspec": {"name": "julia-1.9", "language": "julia"}}, "Julia"),
        ({"kernelspec": None}, None),
        ({}, None),
    ],
)
def test_notebooks_have_the_language_of_their_kernel(metadata, language):
    assert language_of_notebook(json.dumps({"cells": [], "metadata": metadata})) == language
    assert language_of_notebook("no JSON") is None


def test_vendored_and_generated_files():
    vendored = [
        "node_modules/x.js",
        "static/js/jquery-3.6.0.js",
        "extern/a.c",
        "dist/a.js",
        "configure",
        "a/vendor/b.go",
    ]
    assert [path for path in vendored if not is_vendored(path)] == []
    assert not is_vendored("src/main.c")
    paths = [
        "package-lock.json",
        "a/poetry.lock",
        "Pods/a.m",
        ".idea/x.xml",
        "a.designer.cs",
        "x/__generated__/q.js",
    ]
    assert [path for path in paths if not is_generated(path, "")] == []
    assert is_generated("a_pb.rb", "# Generated by the protocol buffer compiler.  DO NOT EDIT!\n")
    assert not is_generated(
        "a.rb", "puts 1\n" * 9 + "# Generated by the protocol buffer compiler.  DO NOT EDIT!\n"
    )
