"""Secrets that are planted are masked, code that holds none stays, and no report says what a secret was."""

import ast
import json
import random
import sysconfig
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from starcoder.errors import ConfigError
from starcoder.prepare.secrets import KINDS, SecretSettings, audit, find, mask
from tests.prepare import planting, secret_kinds
from tests.prepare.planting import plants


def survives(plant: planting.Plant, text: str) -> bool:
    """Whether the secret, or for a private key any line of it, is still there."""
    if plant.kind == "private_key":
        return any(plant.secret[start : start + 32] in text for start in range(0, len(plant.secret), 64))
    return plant.secret in text


@pytest.mark.parametrize("seed", [0, 1])
def test_planted_secrets_are_masked(seed):
    planted = plants(160, seed)
    assert len(planting.KINDS) >= 15
    missed = Counter(plant.kind for plant in planted if survives(plant, mask(plant.text).text))
    assert missed.total() <= 0.01 * len(planted), missed


def test_masking_twice_changes_nothing():
    for plant in plants(48, seed=5):
        once = mask(plant.text).text
        assert mask(once).text == once


def test_the_rest_of_a_file_stays_as_it_is():
    for plant in plants(32, seed=6):
        clean = {line for line in plant.text.splitlines() if not find(line)}
        masked = mask(plant.text).text.splitlines()
        lost = clean - set(masked)
        assert len(lost) <= (13 if plant.kind == "private_key" else 1), plant.kind


def test_the_standard_library_is_hardly_touched():
    """Besides real addresses, and names in author tags: at most 0.3 masks in a thousand lines."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    files += sorted((Path(sysconfig.get_path("stdlib")) / "test").glob("test_*.py"))
    num_lines, found = 0, Counter[str]()
    for path in files[::6]:
        text = path.read_text("utf-8", "replace")
        num_lines += text.count("\n")
        found.update(mask(text, SecretSettings(leave_secrets=frozenset({"email", "name"}))).found)
    assert num_lines > 30_000
    assert found.total() <= 0.3 * num_lines / 1000, found


def test_findings_and_counts_never_hold_the_secret():
    plant = next(p for p in plants(16, seed=8) if p.kind == "github")
    masked = mask(plant.text)
    assert plant.secret not in repr(find(plant.text))
    assert plant.secret not in repr(masked)
    assert masked.found["github"] == 1


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("mail bob@corp.io now", "mail <EMAIL> now"),
        ("mail bob@example.com now", "mail bob@example.com now"),
        ("jane.roe@corp.net.bin", "<EMAIL>.bin"),
        ("y = x@W.to(d)", "y = x@W.to(d)"),
        ("git clone git@github.com:org/repo.git", "git clone git@github.com:org/repo.git"),
        ("y = a@b.T + c@d.transpose()", "y = a@b.T + c@d.transpose()"),
        ("# Author: Jane Q. Doe <jane@doe.org>", "# Author: <NAME> <<EMAIL>>"),
        (" * @author Max van Beck", " * @author <NAME>"),
        ('__author__ = "Jane Doe"', '__author__ = "<NAME>"'),
        ("# Copyright (c) 2020 Jane Doe", "# Copyright (c) 2020 Jane Doe"),
        ("db://app:s3cr3tX@host/x", "db://app:<PASSWORD>@host/x"),
        ("db://app:${PASSWORD}@host/x", "db://app:${PASSWORD}@host/x"),
        ('password = "hunter2"', 'password = "<PASSWORD>"'),
        ('password = "password"', 'password = "password"'),
        ("password = getpass.getpass()", "password = getpass.getpass()"),
        ("token = next(tokens)", "token = next(tokens)"),
        ("token = self.tokens[index2]", "token = self.tokens[index2]"),
        ('SECRET_KEY = "your-secret-key-here-123"', 'SECRET_KEY = "your-secret-key-here-123"'),
        ('access_token_name = "oauth2_access_token_v2"', 'access_token_name = "oauth2_access_token_v2"'),
        ("listen 127.0.0.1 and 10.1.2.3 and 8.8.8.8", "listen 127.0.0.1 and 10.1.2.3 and 8.8.8.8"),
        ("std::vector<int>::iterator a::b::c", "std::vector<int>::iterator a::b::c"),
        ('version = "4.18.2.1"', 'version = "4.18.2.1"'),
        ("Chrome/91.0.4472.124", "Chrome/91.0.4472.124"),
        ("at 12:30:45 from aa:bb:cc:dd:ee:ff", "at 12:30:45 from aa:bb:cc:dd:ee:ff"),
    ],
)
def test_examples(text, masked):
    assert mask(text).text == masked


def test_addresses_become_the_private_ones_of_the_family():
    masked = mask("ssh 93.184.216.34 and 2600:1901:0:38d7::4 and 93.184.216.34").text.split()
    assert masked[1] == masked[5]
    assert masked[1].startswith(("172.16.", "192.168."))
    assert masked[3].startswith("f")


def test_a_secret_is_masked_wherever_it_stands_again():
    secret = "".join(["q7Rt", "Zx29", "LmPa", "0vKe"])
    text = f'api_key = "{secret}"\n# earlier: {secret}, and in a log <{secret}>\n'
    assert secret not in mask(text).text


def test_positions_hold_where_lower_case_is_longer():
    text = 'name = "İİİ"\npassword = "hunter2"\n'
    assert mask(text).text == 'name = "İİİ"\npassword = "<PASSWORD>"\n'


def test_kinds_can_be_left_alone():
    text = 'mail = "bob@corp.io"\npassword = "hunter2"\n'
    left = mask(text, SecretSettings(leave_secrets=frozenset({"email"})))
    assert left.text == 'mail = "bob@corp.io"\npassword = "<PASSWORD>"\n'
    assert left.found == {"password": 1}
    with pytest.raises(ConfigError, match="expected kinds among"):
        SecretSettings(leave_secrets=frozenset({"nonesuch"}))
    assert {"email", "ip", "name", "private_key"} <= set(KINDS)


@pytest.mark.parametrize("seed", [0, 1])
def test_secrets_of_many_kinds_are_masked(seed):
    """At least 120 kinds, each in a real file."""
    planted = secret_kinds.planted(seed)
    assert len({kind for kind, _, _ in planted}) >= 120
    missed = []
    for (kind, secret, line), source in zip(
        planted, planting.sources(random.Random(seed), 200), strict=False
    ):
        lines = source.splitlines()[:300]
        at = len(lines) // 2
        if secret in mask("\n".join([*lines[:at], line, *lines[at:]])).text:
            missed.append(kind)
    assert len(missed) <= 0.03 * len(planted), missed


def test_look_alikes_stay():
    assert [line for line in secret_kinds.LOOK_ALIKES if mask(line).text != line] == []


def test_a_word_is_never_masked_elsewhere():
    text = (
        "services:\n  db:\n    image: postgres:14\n    url: postgres://postgres:postgres@postgres:5432/app\n"
    )
    assert mask(text).text == text.replace(":postgres@", ":<PASSWORD>@")
    code = "import rabbitmq\nurl = 'amqp://rabbitmq:rabbitmq@mq'\nrabbitmq.connect(url)\n"
    assert mask(code).text == code.replace(":rabbitmq@", ":<PASSWORD>@")


@pytest.mark.parametrize("seed", [3, 4])
def test_what_parsed_still_parses(seed):
    made = {line for kind, _, line in secret_kinds.planted(seed) if kind.startswith(("name_", "key_"))}
    for line in made:
        for text, parse in (
            (f"import os\n{line}\n", ast.parse),
            (f"[table]\n{line}\n", tomllib.loads),
            (f"{{{line.strip().rstrip(',')}}}", json.loads),
        ):
            try:
                parse(text)
            except (SyntaxError, ValueError):
                continue
            parse(mask(text).text)
    masked = mask('{"password": 83726153, "n": 83726153}').text
    assert json.loads(masked)["n"] == 83726153


def test_own_rules_and_allowed_values(tmp_path):
    rules = tmp_path / "rules.toml"
    rules.write_text(
        "[[rules]]\nid = 'acme-key'\nregex = '''acme-((?i)[a-z0-9]{8})\\z'''\nkeywords = ['acme-']\n"
        "[rules.allowlist]\nstopwords = ['dead']\n"
    )
    settings = SecretSettings(secret_rules=rules)
    assert mask("x acme-a1B2c3D4", settings).text == "x acme-<KEY>"
    assert mask("x acme-a1B2c3D4", settings).found == {"acme": 1}
    assert mask("x acme-deadbeef", settings).text == "x acme-deadbeef"
    text = 'password = "hunter2"'
    assert mask(text, SecretSettings(secret_allow=("^hunter",))).text == text
    rules.write_text("[[rules]]\nid = 'x'\nregex = '('\n")
    with pytest.raises(ConfigError, match="rule 'x'"):
        SecretSettings(secret_rules=rules)
    with pytest.raises(ConfigError, match="cannot be read"):
        SecretSettings(secret_rules=tmp_path / "none.toml")


def test_an_audit_names_lines_and_rules_but_no_secret():
    secret = "gh" + "p_" + "q7RtZx29LmPa0vKeW3uY8sBnC4dF6hJ1kT5g"
    text = f"x = 1\ntoken = '{secret}'  # ana@corp.io\n"
    found = audit(text)
    assert [(one.line, one.kind) for one in found] == [(2, "github"), (2, "email")]
    assert found[0].preview == "token = '<KEY>'  # <EMAIL>"
    assert secret not in repr(found)


def test_key_markers_without_a_body_are_left():
    marker = "-----BEGIN RSA PRIV" + "ATE KEY-----"
    text = f'if "{marker}" in line:\n    found()\n' + "def f():\n    return 1\n" * 300
    assert mask(text).text == text


def test_hostile_texts_take_linear_time():
    for unit in (
        "-----BEGIN PRIVATE KEY-----",
        "password=",
        "://a:",
        "a@b.",
        "curl -u ",
        "key: |\n ",
        "'",
        "1.2.3.",
    ):
        mask((unit * 20_000)[:20_000])
