"""Made-up secrets of many kinds and the lines they are found in, put together when the tests run.

A kind is `prefix`, an alphabet and a length, or parts of them, and a line with `{}` for the secret.
"""

import base64
import random
import string

W = string.ascii_letters + string.digits
U = string.ascii_uppercase + string.digits
L = string.ascii_lowercase + string.digits
H = "0123456789abcdef"
D = string.digits
B = W + "+/"
S = W + "-_"
P = W + "!#%&*@^"
DJANGO = L + "!@#$%^&*(-_=+)"

# kind: (line, parts); a part is a literal or (alphabet, length)
FORMATS = {
    "xai": ("client = X(key='{}')", ["xa" + "i-", (W, 80)]),
    "perplexity": ("token {}", ["ppl" + "x-", (W, 48)]),
    "langsmith": ("# {}", ["lsv" + "2_pt_", (H, 32), "_", (H, 10)]),
    "azure_ad": ("cs = '{}'", [(W, 3), "8" + "Q~", (W, 34)]),
    "azure_sas": ("url = 'https://a.blob.core.windows.net/c?sv=2020&sig={}'", [(W, 43), "%3D"]),
    "google_refresh": ("r = '{}'", ["1/" + "/0", (S, 60)]),
    "fcm": ("server: {}", ["AA" + "AA", (S, 7), ":", (S, 140)]),
    "teams": (
        "hook = 'https://acme.webhook.office.com/webhookb2/{}'",
        [(H, 36), "@", (H, 36), "/IncomingWebhook/", (H, 32)],
    ),
    "slack_workflow": (
        "u = 'https://hooks.slack.com/workflows/{}'",
        ["T", (U, 9), "/A", (U, 9), "/", (D, 17), "/", (W, 24)],
    ),
    "gitlab_ci": ("t = '{}'", ["glc" + "bt-", (S, 26)]),
    "gitlab_routable": ("t = '{}'", ["glp" + "at-", (S, 27), ".0", "1", ".", (L, 9)]),
    "nuget": ("nuget push -k {}", ["oy" + "2", (L, 43)]),
    "rubygems": (":rubygems: {}", ["ruby" + "gems_", (H, 48)]),
    "brevo": ("k = '{}'", ["xkey" + "sib-", (H, 64), "-", (W, 16)]),
    "mailgun": ("mailgun: '{}'", [(H, 32), "-", (H, 8), "-", (H, 8)]),
    "square": ("k = '{}'", ["EA" + "AA", (S, 60)]),
    "braintree": ("k = '{}'", ["access_" + "token$production$", (L, 16), "$", (H, 32)]),
    "sentry": ("k = '{}'", ["sntr" + "yu_", (H, 64)]),
    "pagerduty": ("pagerduty_key = '{}'", [(S, 20)]),
    "bitbucket": ("p = '{}'", ["AT" + "BB", (W, 32)]),
    "notion": ("n = '{}'", ["secr" + "et_", (W, 43)]),
    "asana": ("a = '{}'", ["1/", (D, 16), ":", (H, 32)]),
    "airtable": ("a = '{}'", ["pa" + "t", (W, 14), ".", (H, 64)]),
    "dropbox": ("a = '{}'", ["s" + "l.", (S, 130)]),
    "facebook": ("a = '{}'", ["EA" + "A", (W, 120)]),
    "mapbox": ("a = '{}'", ["sk.e" + "yJ", (S, 60), ".", (S, 22)]),
    "cloudflare_origin": ("a = '{}'", ["v1" + ".0-", (H, 24), "-", (H, 146)]),
    "fly": ("a = '{}'", ["fo" + "1_", (S, 43)]),
    "supabase": ("a = '{}'", ["sb_se" + "cret_", (S, 31)]),
    "planetscale": ("a = '{}'", ["pscale" + "_pw_", (S, 43)]),
    "neon": ("a = '{}'", ["nap" + "i_", (L, 64)]),
    "netlify": ("a = '{}'", ["nf" + "p_", (W, 36)]),
    "circleci": ("a = '{}'", ["CCI" + "PAT_", (W, 22), "_", (H, 40)]),
    "buildkite": ("a = '{}'", ["bk" + "ua_", (H, 40)]),
    "sonar": ("a = '{}'", ["sq" + "p_", (H, 40)]),
    "artifactory": ("a = '{}'", ["AK" + "Cp", (W, 69)]),
    "onepassword": ("a = '{}'", ["A3" + "-", (U, 6), "-", (U, 11), "-", (U, 5), "-", (U, 5), "-", (U, 5)]),
    "tailscale": ("a = '{}'", ["tskey" + "-auth-", (W, 12), "-", (W, 32)]),
    "pulumi": ("a = '{}'", ["pu" + "l-", (H, 40)]),
    "newrelic": ("a = '{}'", [(H, 36), "NR" + "AL"]),
    "heroku": ("a = '{}'", ["HR" + "KU-", (S, 58)]),
    "putty": ("Private-Lines: 1\n{}\n", [(B, 64)]),
    "wif": ("wallet.wif = '{}'", ["5", ("123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz", 50)]),
    "phpass": ("h = '{}'", ["$" + "P$", (W, 31)]),
    "anthropic": ("a = '{}'", ["sk-a" + "nt-api03-", (S, 93), "AA"]),
    "openai": ("a = '{}'", ["s" + "k-proj-", (W, 60)]),
    "github": ("a = '{}'", ["gh" + "p_", (W, 36)]),
    "github_fine": ("a = '{}'", ["github" + "_pat_", (W, 22), "_", (W, 59)]),
    "aws_id": ("a = '{}'", ["AK" + "IA", ("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)]),
    "slack": ("a = '{}'", ["xo" + "xb-", (D, 12), "-", (D, 12), "-", (W, 24)]),
    "stripe": ("a = '{}'", ["sk" + "_live_", (W, 24)]),
    "google_api": ("a = '{}'", ["AI" + "za", (S, 34), "Q"]),
    "sendgrid": ("a = '{}'", ["S" + "G.", (S, 22), ".", (S, 43)]),
    "npm": ("a = '{}'", ["np" + "m_", (W, 36)]),
    "pypi": ("a = '{}'", ["pyp" + "i-AgEIcHlwaS5vcmc", (S, 80)]),
    "digitalocean": ("a = '{}'", ["do" + "p_v1_", (H, 64)]),
    "shopify": ("a = '{}'", ["shp" + "at_", (H, 32)]),
    "hugging_face": ("a = '{}'", ["h" + "f_", (string.ascii_letters, 34)]),
    "databricks": ("a = '{}'", ["dap" + "i", (H, 32)]),
    "doppler": ("a = '{}'", ["dp." + "pt.", (W, 43)]),
    "linear": ("a = '{}'", ["lin_" + "api_", (W, 40)]),
    "grafana": ("a = '{}'", ["gl" + "sa_", (W, 32), "_", (H, 8)]),
    "postman": ("a = '{}'", ["PM" + "AK-", (H, 24), "-", (H, 34)]),
    "age": ("a = '{}'", ["AGE-SE" + "CRET-KEY-1", ("QPZRY9X8GF2TVDW0S3JN54KHCE6MUA7L", 58)]),
    "vault": ("a = '{}'", ["hv" + "s.", (S, 95)]),
    "telegram": ("a = '{}'", [(D, 9), ":A" + "A", (S, 33)]),
    "twilio": ("a = '{}'", ["S" + "K", (H, 32)]),
    "discord_hook": ("u = 'https://discord.com/api/webhooks/{}'", [(D, 18), "/", (S, 68)]),
    "groq": ("a = '{}'", ["gs" + "k_", (W, 52)]),
    "docker": ("a = '{}'", ["dckr" + "_pat_", (S, 27)]),
    "replicate": ("a = '{}'", ["r" + "8_", (W, 37)]),
}
NAMES = {
    "db_pass": "DB_PASS={}",
    "pass_colon": "  pass: {}",
    "pass_json": '"pass": "{}",',
    "smtp_pass": "smtp_pass = '{}'",
    "db_pw": "db_pw = '{}'",
    "ansible": "ansible_become_pass: {}",
    "ansible_ssh": "ansible_ssh_pass={}",
    "java": 'String DB_PASS = "{}";',
    "password": "password = '{}'",
    "go": 'dbPassword := "{}"',
    "php": "'password' => '{}',",
    "xml": "<password>{}</password>",
    "attribute": '<add key="DbPassword" value="{}"/>',
    "k8s_env": "- name: DB_PASSWORD\n  value: {}",
    "ecs": '{{"name": "DB_PASSWORD", "value": "{}"}}',
    "connection": "postgres://svc:{}@db.corp.net:5432/x",
    "redis": "redis://:{}@10.0.0.5:6379/0",
    "ado": "Server=a;User Id=b;Password={};",
    "jdbc": "jdbc:mysql://h/d?user=a&password={}",
    "mysql": "mysql -u root -p{} app",
    "curl": "curl -u admin:{} https://h.corp.net/x",
    "docker_login": "docker login -u me -p {} registry.corp.net",
    "sshpass": "sshpass -p {} ssh root@h",
    "block": "password: >-\n  {}\n",
    "terraform": 'variable "db_password" {{\n  default = "{}"\n}}',
    "german": "passwort = '{}'",
    "spanish": 'contraseña: "{}"',
    "netrc": "machine h.corp.net login me password {}",
    "export": "export PGPASSWORD='{}'",
    "setter": 'ds.setPassword("{}");',
    "default": 'os.getenv("DB_PASSWORD", "{}")',
    "typed": "password: str = '{}'",
    "properties": "spring.datasource.password={}",
    "comment": "# password: {}",
}
KEYS = {
    "app_key": "app_key = '{}'", "service_key": "service_key: '{}'", "license_key": 'license_key = "{}"',
    "consumer_key": "CONSUMER_KEY={}", "azure_openai": "AZURE_OPENAI_KEY={}", "api_dot_key": "api.key={}",
    "api_key": '"api_key": "{}",', "long_token": 'SECRET_TOKEN="{}"', "session": "AWS_SESSION_TOKEN={}",
    "client_secret": "clientSecret: '{}'", "yaml_block": "token: |\n  {}\n",
    "npmrc": "//registry.npmjs.org/:_authToken={}",
    "define": "define('AUTH_KEY',         '{}');", "salt": "define('AUTH_SALT', '{}');",
    "bearer": "Authorization: Bearer {}",
    "access_token": "access_token={}", "encryption": 'encryptionKey := "{}"', "signing": "signing_key = '{}'",
    "tf_token": 'variable "api_token" {{\n  default = "{}"\n}}', "argument": 'Client("AC01", "{}")',
}  # fmt: skip
LONG = {"long_token", "session"}


def some(g: random.Random, alphabet: str, length: int) -> str:
    return "".join(g.choice(alphabet) for _ in range(length))


def planted(seed: int) -> list[tuple[str, str, str]]:
    """(kind, secret, line) of every kind."""
    g = random.Random(seed)
    made = []
    for kind, (line, parts) in FORMATS.items():
        secret = "".join(one if isinstance(one, str) else some(g, *one) for one in parts)
        made.append((kind, secret, line.replace("{}", secret)))
    for kind, line in NAMES.items():
        drawn = [*some(g, string.ascii_letters, g.randrange(7, 12)), *some(g, D, 3), g.choice("!#*^")]
        g.shuffle(drawn)
        secret = g.choice(string.ascii_letters) + "".join(drawn) + g.choice(W)
        made.append((f"name_{kind}", secret, line.format(secret)))
    for kind, line in KEYS.items():
        length = 700 if kind in LONG else g.choice([32, 40, 43, 64])
        secret = some(g, W, length)
        made.append((f"key_{kind}", secret, line.format(secret)))
    django = some(g, DJANGO, 50)
    made.append(("django", django, f"SECRET_KEY = 'django-insecure-{django}'"))
    made.append(("django_plain", django, f'SECRET_KEY = "{django}"'))
    laravel = base64.b64encode(g.randbytes(32)).decode()
    made.append(("laravel", laravel, f"APP_KEY=base64:{laravel}"))
    pair = base64.b64encode(f"me:{some(g, P, 12)}".encode()).decode()
    made.append(("docker_auth", pair, f'{{"auths": {{"r.io": {{"auth": "{pair}"}}}}}}'))
    made.append(("npm_auth", pair, f"_auth={pair}"))
    data = base64.b64encode(some(g, P, 18).encode()).decode()
    made.append(("kubernetes", data, f"apiVersion: v1\nkind: Secret\ndata:\n  anything: {data}\n"))
    secret = some(g, B, 40)
    made.append(("s3", secret, f'S3Connection("AK{"IA"}{some(g, U, 16)}", "{secret}")'))
    body = base64.b64encode(g.randbytes(400)).decode()
    lines = "\n".join(body[at : at + 64] for at in range(0, len(body), 64))
    for name in ("RSA ", "EC ", "", "ENCRYPTED ", "OPENSSH "):
        made.append(
            (f"pem_{name}", body[64:128], f"-----BEGIN {name}PRIV{'ATE'} KEY-----\n{lines}\n-----END")
        )
    static = "\n".join(some(g, H, 32) for _ in range(8))
    made.append(("openvpn", static[33:65], f"-----BEGIN OpenVPN Static key V1-----\n{static}\n-----END"))
    made += [
        ("email_museum", "ana.b@artes.museum", "contact: <ana.b@artes.museum>"),
        ("email_quote", "joe.o'hara@corp.io", "# joe.o'hara@corp.io"),
        ("email_idn", "jörg@müller.de", "mail an jörg@müller.de"),
        ("author_second", "John Smith", "# Author: Jane Doe, John Smith"),
        ("author_and", "Omar Haddad", "# Authors: Jane Doe <j@d.org> and Omar Haddad"),
        ("author_cjk", "山田太郎", "# Author: 山田太郎"),
        ("signed_off", "Jane Doe", "Signed-off-by: Jane Doe <jane@doe.org>"),
        ("pyproject", "Jane Doe", 'authors = [{name = "Jane Doe", email = "jane@doe.org"}]'),
        ("package", "Jane Doe", '"author": "Jane Doe <jane@doe.org>",'),
        ("ec2", "93-184-216-34", "host = 'ec2-93-184-216-34.compute-1.amazonaws.com'"),
        ("ipv6", "2a00:1450:4001::200e", "ping 2a00:1450:4001::200e"),
        ("ip", "93.184.216.34", "ssh root@93.184.216.34"),
        ("phone", "+49 30 9018 2673", "call +49 30 9018 2673"),
        ("iban", "DE89 3704 0044 0532 0130 00", "IBAN DE89 3704 0044 0532 0130 00"),
        ("card", "4539 1488 0343 6467", "card = '4539 1488 0343 6467'"),
        ("ssn", "536-22-8726", "ssn: 536-22-8726"),
        ("home", "jkowalski", "open('/home/jkowalski/x')"),
    ]
    return made


LOOK_ALIKES = r"""
image: postgres:14
      POSTGRES_PASSWORD: postgres
command: ["postgres", "-c", "log_statement=all"]
import rabbitmq
database.execute("use database")
if "-----BEGIN RSA PRIVATE KEY-----" in line:
strings.HasPrefix(s, "-----BEGIN PRIVATE KEY-----")
return s.startswith("-----BEGIN OPENSSH PRIVATE KEY-----")
git clone https://$USER:$TOKEN@github.com/o/r.git
DSN = "https://examplePublicKey@o0.ingest.sentry.io/0"
__version__ = "20.4.1.2"
<version>5.3.21.3</version>
## 12.4.0.1 (2020-01-01)
OID = "2.5.4.10"
opencv-python==4.10.0.84
[assembly: AssemblyVersion("4.8.1.5")]
y = x@W.to(d)
z = attn@self.w.id
foo@media.in
@app.route("/x")
# Author: Apache Software Foundation
# Author: Microsoft Corporation
# Created by Visual Studio Code
# Written by: Please Read This
--color-token: #3fa2b4;
secretName: my-app-tls-v2x9
password = getpass.getpass()
password = os.environ["DB_PASSWORD"]
password: ${{ secrets.DB_PASSWORD }}
token = next(tokens)
token = self.tokens[index2]
pad_token = "<|endoftext|>"
SECRET_KEY = "your-secret-key-here-123"
access_token_name = "oauth2_access_token_v2"
key = "user_settings_dark_mode"
cache_key = f"user:{user_id}:profile"
primary_key = "customer_order_line_id"
PUBLIC_KEY = "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAABgQC7"
api_key = os.getenv("API_KEY")
api_key: str | None = None
"api_key": "<your key>",
"password": "********",
"password": null,
password_field = "user_password_confirm"
pass
    pass  # nothing to do
bypass = compute_bypass(x1, y2)
passed = 12
token_type_ids = torch.zeros(1, 128)
max_tokens = 4096
keyword = "select1"
keyboard = Keyboard(layout="us2")
monkey = "bananas42"
auth = HTTPBasicAuth(user, password)
auth: true
author = "someone"
key: value1
sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
"integrity": "sha512-Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4",
commit = "9fceb02d0ae598e95dc970b74767f19372d61af8"
uuid = "123e4567-e89b-12d3-a456-426614174000"
checksum: 5d41402abc4b2a76b9719d911017c592
listen 127.0.0.1:8080
allow 10.1.2.3
nameserver 8.8.8.8
User-Agent: Chrome/91.0.4472.124
std::vector<int>::iterator a::b::c
at 12:30:45 from aa:bb:cc:dd:ee:ff
git@github.com:org/repo.git
noreply@example.com
user@example.org
curl -u "$USER:$PASS" https://x
mysql -u root -p app
docker login -u me --password-stdin
ssh -p 2222 host
mkdir -p build/output
cp -p a b
curl -X POST https://api.x.io/v1/things
redis-cli -h localhost
db.connect(host="localhost", password=password)
def login(username, password):
Client("localhost", 8080)
connect("amqp://localhost")
postgres://localhost/db
mongodb://user:password@host/db
https://user:pass@host/x
ftp://anonymous@ftp.gnu.org/
jdbc:mysql://h/d?user=a&password=${PASSWORD}
tel = telemetry.start(12)
phone = models.CharField(max_length=20)
+1 more
x = a + 12 - 34
/home/user/project
/Users/runner/work
C:\Users\admin\x
1.2.3.4
version = "4.18.2.1"
ver: 10.0.19041.1
"2.5.29.15": "keyUsage",
SSN_PATTERN = r"\d{3}-\d{2}-\d{4}"
card = "4242 4242 4242 4242"
secret = "correct horse"
salt = os.urandom(16)
signing_key = load_key(path)
KEY_LENGTH = 2048
key_id = "projects/p/locations/l"
token: ${TOKEN}
token: {{ .Values.token }}
password: "{{ vault_password }}"
DB_PASS=
DB_PASS=$DB_PASS
SECRET=
BUILD_ID=a8f7
Bearer {token}
Authorization: Bearer <token>
basic authentication scheme
# password must have 8 characters
print("password1 is wrong")
label = "Password:"
placeholder="Enter your password"
raise ValueError("invalid token at 12")
assert token == expected_token_value_1
data = {"key": "abc", "value": 12}
keys = ["alpha1", "beta2"]
msgpack.unpackb(data, raw=False)
hash = "d41d8cd98f00b204e9800998ecf8427e"
etag: "33a64df551425fcc55e4d42a148795d9f25f89d4"
$2y is a bcrypt prefix
const passRate = 0.95
passthrough: "enabled1"
compass = "north2"
secretary = "Anna2"
tokenizer = "gpt2"
tokenize = "utf8"
sort_key = "created_at2"
partition_key: "tenant_id2"
s3_key = "uploads/2020/photo1.png"
object_key = "a/b/c1"
license: MIT
license_key = None
""".strip("\n").split("\n")
