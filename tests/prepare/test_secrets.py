"""Secrets that are planted are masked, code that holds none stays, and no report says what a secret was."""

import sysconfig
from collections import Counter
from pathlib import Path

import pytest

from starcoder.errors import ConfigError
from starcoder.prepare.secrets import KINDS, SecretSettings, find, mask
from tests.prepare import planting
from tests.prepare.planting import plants


def survives(plant: planting.Plant, text: str) -> bool:
    """Whether the secret, or for a private key any line of it, is still there."""
    if plant.kind == "private_key":
        return any(plant.secret[start : start + 32] in text for start in range(0, len(plant.secret), 64))
    return plant.secret in text


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_planted_secrets_are_masked(seed):
    planted = plants(320, seed)
    assert len(planting.KINDS) >= 15
    missed = Counter(plant.kind for plant in planted if survives(plant, mask(plant.text).text))
    assert missed.total() <= 0.01 * len(planted), missed


def test_masking_twice_changes_nothing():
    for plant in plants(160, seed=5):
        once = mask(plant.text).text
        assert mask(once).text == once


def test_the_rest_of_a_file_stays_as_it_is():
    for plant in plants(64, seed=6):
        clean = {line for line in plant.text.splitlines() if not find(line)}
        masked = mask(plant.text).text.splitlines()
        lost = clean - set(masked)
        assert len(lost) <= (13 if plant.kind == "private_key" else 1), plant.kind


def test_the_standard_library_is_hardly_touched():
    """Besides real addresses, and names in author tags: at most one mask in a thousand lines."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    files += sorted((Path(sysconfig.get_path("stdlib")) / "test").glob("test_*.py"))
    num_lines, found = 0, Counter[str]()
    for path in files[::2]:
        text = path.read_text("utf-8", "replace")
        num_lines += text.count("\n")
        found.update(mask(text, SecretSettings(leave_secrets=frozenset({"email", "name"}))).found)
    assert num_lines > 50_000
    assert found.total() <= num_lines / 1000, found


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


def test_what_detect_secrets_finds_is_found_without_it():
    pytest.importorskip("detect_secrets", reason="detect-secrets is not installed")
    both = SecretSettings(detect_secrets=True)
    found = Counter[bool]()
    for plant in plants(96, seed=11):
        line = next((line for line in plant.text.splitlines() if plant.secret in line), "")
        for finding in find(line, both):
            if finding.kind == "detect_secrets":
                found[any(f.start <= finding.start and finding.end <= f.end for f in find(line))] += 1
        assert not survives(plant, mask(line, both).text)
    assert found[False] == 0, found


def test_without_detect_secrets_the_extra_is_named(monkeypatch):
    import sys

    from starcoder.prepare import secrets

    monkeypatch.setitem(sys.modules, "detect_secrets.core.plugins.util", None)
    secrets._detectors.cache_clear()
    with pytest.raises(ConfigError) as caught:
        mask("x = 1", SecretSettings(detect_secrets=True))
    assert "starcoder-kit[prepare]" in caught.value.hint
    secrets._detectors.cache_clear()
