"""Plants made-up secrets of many kinds in real source files: what they are, and where they were put.

Everything is put together when it runs, so that no file of the repository looks as if it held a key.
"""

import random
import string
import sysconfig
from base64 import b64encode, urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

_WORD = string.ascii_letters + string.digits
_UPPER = string.ascii_uppercase + string.digits
_HEX = "0123456789abcdef"


@dataclass(frozen=True)
class Plant:
    """A file with one secret, which must nowhere be found afterwards."""

    kind: str
    secret: str
    text: str


def _some(generator: random.Random, alphabet: str, length: int) -> str:
    return "".join(generator.choice(alphabet) for _ in range(length))


def _aws(g):
    return "AK" + "IA" + _some(g, _UPPER, 16)


def _github(g):
    return g.choice(["gh" + "p_", "gh" + "o_", "gh" + "s_"]) + _some(g, _WORD, 36)


def _gitlab(g):
    return "gl" + "pat-" + _some(g, _WORD + "-_", 19) + "a"


def _slack(g):
    numbers = [_some(g, string.digits, 12) for _ in range(2)]
    return "-".join(["xo" + "x" + g.choice("bp"), *numbers, _some(g, _WORD, 24)])


def _stripe(g):
    return g.choice("sr") + "k_" + "live_" + _some(g, _WORD, 24)


def _google(g):
    return "AI" + "za" + _some(g, _WORD + "-_", 34) + "Q"


def _openai(g):
    return g.choice(["s" + "k-", "s" + "k-proj-"]) + _some(g, _WORD, 48)


def _sendgrid(g):
    return "S" + "G." + _some(g, _WORD, 22) + "." + _some(g, _WORD, 43)


def _npm(g):
    return "np" + "m_" + _some(g, _WORD, 36)


def _jwt(g):
    parts = ('{"alg":"HS256","typ":"JWT"}', f'{{"sub":"{_some(g, string.digits, 10)}","iat":1516239022}}')
    encoded = [urlsafe_b64encode(part.encode()).decode().rstrip("=") for part in parts]
    return ".".join([*encoded, _some(g, _WORD + "-_", 43)])


def _private_key(g):
    kind = g.choice(["RSA ", "EC ", "OPENSSH ", ""])
    body = b64encode(g.randbytes(600)).decode()
    lines = [body[i : i + 64] for i in range(0, len(body), 64)]
    return "\n".join(
        [f"-----BEGIN {kind}PRIV" + "ATE KEY-----", *lines, f"-----END {kind}PRIV" + "ATE KEY-----"]
    )


def _api_key(g):
    alphabet, length = g.choice([(_HEX, 32), (_HEX, 40), (_WORD, 32), (_WORD, 40), (_WORD + "+/", 44)])
    return _some(g, alphabet, length)


def _password(g):
    letters, digits = (
        _some(g, string.ascii_letters, g.randrange(6, 10)),
        _some(g, string.digits, g.randrange(1, 4)),
    )
    drawn = [*letters, *digits, g.choice("!@#$%&*?")]
    g.shuffle(drawn)
    return letters[0] + "".join(drawn)


def _person(g):
    first = g.choice(["anna", "jean.luc", "m_keller", "li", "omar77", "j.r.hartley"])
    ending = g.choice(["com", "org", "de", "co.uk", "io"])
    return f"{first}{g.randrange(100)}@{_some(g, string.ascii_lowercase, 7)}.{ending}"


def _address(g):
    first = g.choice([5, 23, 45, 78, 91, 144, 185, 212])
    return f"{first}.{g.randrange(256)}.{g.randrange(256)}.{g.randrange(1, 255)}"


_QUOTED = [
    '{name} = "{secret}"',
    "{name}: str = '{secret}'",
    "    self.{name} = '{secret}'  # for now",
    'os.environ["{upper}"] = "{secret}"',
    'client = Client({name}="{secret}")',
    'const {name} = "{secret}";',
    '"{name}": "{secret}",',
    '#define {upper} "{secret}"',
    "{upper}={secret}",
    "export {upper}='{secret}'",
    "  {name}: {secret}",
    '# {name} = "{secret}"',
    "<{name}>{secret}</{name}>",
    'config.set("{name}", "{secret}")',
]
_ANYWHERE = [*_QUOTED, "# use {secret} until Monday", "    call({secret!r})", 'x = ["{secret}"]']
_KEY_NAMES = [
    "api_key",
    "apiKey",
    "secret_key",
    "access_token",
    "auth_token",
    "client_secret",
    "encryption_key",
]
_PASSWORD_NAMES = ["password", "db_password", "passwd", "PGPASSWORD", "smtp_pwd", "admin_password"]

# kind: its maker, the names it is given, the lines it stands in.
_KINDS = {
    "aws": (_aws, ["key_id"], _ANYWHERE),
    "github": (_github, ["gh"], _ANYWHERE),
    "gitlab": (_gitlab, ["ci"], _ANYWHERE),
    "slack": (_slack, ["bot"], _ANYWHERE),
    "stripe": (_stripe, ["pay"], _ANYWHERE),
    "google": (_google, ["maps"], _ANYWHERE),
    "openai": (_openai, ["model"], _ANYWHERE),
    "sendgrid": (_sendgrid, ["mailer"], _ANYWHERE),
    "npm": (_npm, ["registry"], _ANYWHERE),
    "jwt": (_jwt, ["session"], [*_ANYWHERE, 'headers = {{"Authorization": "Bearer {secret}"}}']),
    "private_key": (
        _private_key,
        ["pem"],
        ['{name} = """{secret}\n"""', "{secret}", "const {name} = `{secret}`;"],
    ),
    "assignment": (_api_key, _KEY_NAMES, _QUOTED),
    "password": (_password, _PASSWORD_NAMES, _QUOTED),
    "connection": (
        _password,
        ["url"],
        [
            'DATABASE_URL = "postgres://app:{secret}@db.internal:5432/main"',
            "redis = Redis.from_url('redis://:{secret}@10.0.0.5:6379/0')",
            "url: mongodb+srv://admin:{secret}@cluster0.mongo.net/test",
            "git clone https://deploy:{secret}@git.corp.net/team/app.git",
            "AMQP=amqp://guest:{secret}@queue",
        ],
    ),
    "email": (_person, ["contact"], [*_ANYWHERE, "# Questions: {secret}", " * @author <{secret}>"]),
    "ip": (
        _address,
        ["host"],
        ['{name} = "{secret}"', "ssh root@{secret}", "# see {secret}:8080", "{upper}={secret}"],
    ),
}
KINDS = tuple(_KINDS)


def sources(generator: random.Random, num: int) -> list[str]:
    """Files of the standard library."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return [path.read_text("utf-8", "replace") for path in generator.choices(files, k=num)]


def plants(num: int, seed: int) -> list[Plant]:
    """`num` files with one secret each, of every kind in turn."""
    generator = random.Random(seed)
    made = []
    for number, source in enumerate(sources(generator, num)):
        kind = KINDS[number % len(KINDS)]
        make, names, templates = _KINDS[kind]
        secret, name = make(generator), generator.choice(names)
        line = generator.choice(templates).format(secret=secret, name=name, upper=name.upper())
        lines = source.splitlines(keepends=True)
        lines.insert(generator.randrange(len(lines) + 1), line + "\n")
        body = "".join(secret.splitlines()[1:-1]) if kind == "private_key" else secret
        made.append(Plant(kind, body, "".join(lines)))
    return made
