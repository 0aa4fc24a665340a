"""Tells the programming language of a file from its name, its extension or its first line.

Source: the 86 languages of StarCoder (arXiv 2305.06161, table 1) by the names and extensions that GitHub's
linguist gives them (github-linguist/linguist: lib/linguist/languages.yml), and a few of The Stack v2.
"""

import re
from functools import cache
from pathlib import PurePosixPath

# language | extensions | file names | interpreters. Where two languages share an extension it stands with
# the one that is more common in The Stack.
_TABLE = """
Ada|adb ads ada||
Agda|agda||
Alloy|als||
ANTLR|g4 g||
AppleScript|applescript scpt||osascript
Assembly|asm s nasm inc||
Augeas|aug||
AWK|awk gawk||awk gawk mawk
Batchfile|bat cmd||
Bluespec|bsv||
C|c h||tcc
C#|cs csx cake||
C++|cc cpp cxx c++ hh hpp hxx h++ inl ipp tpp ino||
Clojure|clj cljs cljc edn boot||clojure bb
CMake|cmake|CMakeLists.txt|
CoffeeScript|coffee cson iced|Cakefile|coffee
Common Lisp|lisp lsp cl asd||sbcl clisp ecl lisp
CSS|css||
CUDA|cu cuh||
Dart|dart||dart
Dockerfile|dockerfile|Dockerfile Containerfile|
Elixir|ex exs|mix.lock|elixir
Elm|elm||
Emacs Lisp|el|.emacs .spacemacs|emacs
Erlang|erl hrl escript|rebar.config rebar.lock|escript
F#|fs fsi fsx||
Fortran|f90 f95 f03 f08 f for f77||
GLSL|glsl vert frag geom tesc tese comp||
Go|go||
Go Module||go.mod go.sum|
GraphQL|graphql gql||
Groovy|groovy gradle gvy|Jenkinsfile|groovy
Haskell|hs hsc||runhaskell runghc
HCL|tf hcl tfvars||
HTML|html htm xhtml||
Idris|idr lidr||
INI|ini cfg|.editorconfig setup.cfg|
Isabelle|thy||
Java|java||
Java Server Pages|jsp||
JavaScript|js mjs cjs jsx||node nodejs
JSON|json jsonl geojson webmanifest|.babelrc .eslintrc .prettierrc|
Julia|jl||julia
Jupyter Notebook|ipynb||
Kotlin|kt kts||kotlin
Lean|lean||
Less|less||
Literate Agda|lagda||
Literate CoffeeScript|litcoffee||
Literate Haskell|lhs||
Lua|lua rockspec||lua luajit
Makefile|mk mak make|Makefile makefile GNUmakefile Kbuild|make
Maple|mpl||
Markdown|md markdown mdx|README|
Mathematica|wl wls nb mathematica||
MATLAB|matlab m||octave
Nim|nim nims||
Nix|nix||
Objective-C|mm||
OCaml|ml mli mll mly||ocaml
Pascal|pas pp dpr lpr||
Perl|pl pm t perl|cpanfile|perl
PHP|php php3 php5 phtml inc.php||php
PowerShell|ps1 psm1 psd1||pwsh
Prolog|pro prolog||swipl
Protocol Buffer|proto||
Python|py pyi pyw py3 pyx pxd pxi wsgi|SConstruct SConscript BUILD.bazel WORKSPACE|python python2 python3 pypy
R|r rd|.Rprofile|Rscript
Racket|rkt rktd scrbl||racket
reStructuredText|rst rest||
RMarkdown|rmd||
Ruby|rb rake gemspec ru podspec|Gemfile Rakefile Vagrantfile Podfile Guardfile|ruby jruby
Rust|rs||rust-script
SAS|sas||
Scala|scala sbt sc||scala
Scheme|scm ss sld sls||guile scheme
SCSS|scss sass||
Shell|sh bash zsh ksh bats command|.bashrc .bash_profile .profile .zshrc PKGBUILD|sh bash dash zsh ksh ash
Smalltalk|st||gst
Solidity|sol||
SPARQL|sparql rq||
SQL|sql ddl dml pgsql||
Stan|stan||
Standard ML|sml sig fun||
Stata|do ado dta.do||
Starlark|bzl star|BUILD|
Svelte|svelte||
Swift|swift||swift
SystemVerilog|sv svh||
Tcl|tcl tm||tclsh wish
Tcsh|csh tcsh||csh tcsh
TeX|tex sty cls bib ltx||
Text|txt|LICENSE COPYING NOTICE|
Thrift|thrift||
TOML|toml|Cargo.lock Pipfile poetry.lock|
TypeScript|ts tsx mts cts||ts-node deno bun
Verilog|v vh||
VHDL|vhd vhdl||
Visual Basic|vb vbs bas frm||
Vue|vue||
XML|xml xsd svg plist csproj vbproj fsproj props targets rss|pom.xml|
XSLT|xslt xsl||
Yacc|y yy yacc||
YAML|yml yaml|.clang-format .clang-tidy|
Zig|zig||
"""

_SHEBANG = re.compile(rb"#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*(?:\w+=\S+\s+)*)?(?:\S*/)?([A-Za-z_+-]+)")
_SPACES = re.compile(r"[\d.]+$")


@cache
def _table() -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Language by extension, by file name and by interpreter."""
    tables: tuple[dict[str, str], ...] = ({}, {}, {})
    for line in _TABLE.strip().splitlines():
        language, *columns = line.split("|")
        for table, words in zip(tables, columns, strict=True):
            for word in words.split():
                table.setdefault(word, language)
    return tables[0], tables[1], tables[2]


def languages() -> tuple[str, ...]:
    """Every language that can be told, sorted."""
    return tuple(sorted(line.partition("|")[0] for line in _TABLE.strip().splitlines()))


def language_of(path: str, start: bytes = b"") -> str | None:
    """The language of a file by its path and first bytes; None: of none that is known."""
    extensions, names, interpreters = _table()
    name = PurePosixPath(path).name
    if name in names:
        return names[name]
    if name.partition(".")[0] in ("Dockerfile", "Containerfile"):
        return "Dockerfile"
    suffix = name.rpartition(".")[2].lower() if "." in name[1:] else ""
    if suffix in extensions:
        return _shared(extensions[suffix], suffix, start)
    if suffix == "" and (match := _SHEBANG.match(start)):
        word = match[1].decode()
        return interpreters.get(word) or interpreters.get(_SPACES.sub("", word))
    return None


def _shared(language: str, suffix: str, start: bytes) -> str:
    """Tells apart the languages of an extension where a glance at the text suffices."""
    if suffix == "h" and re.search(rb"^\s*(class|namespace|template)\b|\bstd::", start, re.MULTILINE):
        return "C++"
    if suffix == "m" and re.search(
        rb"^\s*(@interface|@implementation|#import|@class)\b", start, re.MULTILINE
    ):
        return "Objective-C"
    if suffix == "ts" and start.lstrip().startswith(b"<?xml"):
        return "XML"
    return language
