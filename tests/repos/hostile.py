"""Repositories whose owner wants a reader to run a program, open a connection or take another's content."""

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

from tests.repos.repositories import git

SECRET = "content_of_the_victim"  # in the victim's files alone
CODE = "def area(width, height):\n    return width * height  # of a rectangle\n"


class Makers:
    """Makes each repository in a folder of its own; `trap` is a program that must never run."""

    def __init__(self, trap: Path, victim: Path, port: int):
        self.trap, self.victim, self.port = trap, victim, port

    def all(self, folder: Path) -> list[Path]:
        made = []
        for name in sorted(name for name in dir(self) if name.startswith("make_")):
            place = folder / name.removeprefix("make_")
            place.mkdir(parents=True)
            plain(place)
            make: Callable[[Path], None] = getattr(self, name)
            make(place)
            made.append(place)
        return made

    def config(self, folder: Path, text: str) -> None:
        with (folder / ".git" / "config").open("a") as file:
            file.write(text.replace("TRAP", str(self.trap)).replace("PORT", str(self.port)))

    def make_signature(self, folder: Path) -> None:
        commit = git(folder, "cat-file", "commit", "HEAD")
        head, _, message = commit.partition("\n\n")
        signature = "gpgsig -----BEGIN PGP SIGNATURE-----\n \n iQ\n -----END PGP SIGNATURE-----"
        signed = f"{head}\n{signature}\n\n{message}\n"
        command = ["git", "-C", str(folder), "hash-object", "-t", "commit", "-w", "--stdin"]
        done = subprocess.run(command, input=signed, capture_output=True, text=True, check=True)
        git(folder, "update-ref", "HEAD", done.stdout.strip())
        self.config(
            folder, '[log]\nshowSignature = true\n[gpg]\nprogram = TRAP\n[gpg "ssh"]\nprogram = TRAP\n'
        )

    def promisor(self, folder: Path, remote: str) -> None:
        blob = git(folder, "rev-parse", "HEAD:area.py")
        (folder / ".git" / "objects" / blob[:2] / blob[2:]).unlink()
        git(folder, "config", "core.repositoryFormatVersion", "1")
        self.config(
            folder, f'[extensions]\npartialClone = origin\n[remote "origin"]\npromisor = true\n{remote}'
        )

    def make_promisor_program(self, folder: Path) -> None:
        self.promisor(folder, f"url = {self.victim}\nuploadpack = TRAP\n")

    def make_promisor_ext(self, folder: Path) -> None:
        self.promisor(folder, 'url = ext::TRAP %S\n[protocol "ext"]\nallow = always\n')

    def make_promisor_http(self, folder: Path) -> None:
        self.promisor(folder, "url = http://127.0.0.1:PORT/x.git\n")

    def make_promisor_ssh(self, folder: Path) -> None:
        self.promisor(folder, "url = ssh://127.0.0.1/x.git\n[core]\nsshCommand = TRAP\ngitProxy = TRAP\n")

    def make_promisor_helper(self, folder: Path) -> None:
        self.promisor(folder, "url = trap::x\nvcs = trap\n[protocol]\nallow = always\n")

    def make_monitor_and_hooks(self, folder: Path) -> None:
        for name in ("post-index-change", "reference-transaction", "post-checkout", "fsmonitor-watchman"):
            (folder / ".git" / "hooks" / name).write_bytes(self.trap.read_bytes())
            (folder / ".git" / "hooks" / name).chmod(0o755)
        self.config(folder, "[core]\nfsmonitor = TRAP\nhooksPath = .git/hooks\nuntrackedCache = true\n")

    def make_filter(self, folder: Path) -> None:
        (folder / ".gitattributes").write_text("*.py filter=x ident text eol=crlf\n")
        self.config(folder, '[filter "x"]\nclean = TRAP\nsmudge = TRAP\nprocess = TRAP\nrequired = true\n')
        self.save(folder)

    def make_textconv(self, folder: Path) -> None:
        (folder / ".gitattributes").write_text("*.py diff=x merge=x\n")
        drivers = '[diff "x"]\ntextconv = TRAP\ncommand = TRAP\n[merge "x"]\ndriver = TRAP %O %A %B\n'
        self.config(folder, f"[diff]\nexternal = TRAP\n{drivers}")
        self.save(folder)

    def make_tools(self, folder: Path) -> None:
        self.config(
            folder,
            "[core]\npager = TRAP\neditor = TRAP\naskPass = TRAP\nalternateRefsCommand = TRAP\n"
            "[credential]\nhelper = !TRAP\n[alias]\nlog = !TRAP\nls-tree = !TRAP\ncat-file = !TRAP\n"
            "[uploadpack]\npackObjectsHook = TRAP\n[tar \"tar\"]\ncommand = TRAP\n[man]\nviewer = TRAP\n"
            '[trace2]\neventTarget = af_unix:/tmp/none\n[sendemail]\nsendmailCmd = TRAP\n',
        )  # fmt: skip

    def make_include(self, folder: Path) -> None:
        (folder / ".git" / "more").write_text(f"[core]\nfsmonitor = {self.trap}\n")
        os.mkfifo(folder / ".git" / "endless")
        self.config(folder, '[include]\npath = more\n[includeIf "gitdir:**"]\npath = endless\n')

    def make_submodule(self, folder: Path) -> None:
        inside = f'[submodule "x"]\npath = x\nurl = ext::{self.trap} %S\nupdate = !{self.trap}\n'
        (folder / ".gitmodules").write_text(inside)
        git(folder, "update-index", "--add", "--cacheinfo", f"160000,{'1' * 40},x")
        self.save(folder)
        self.config(folder, '[submodule "x"]\nactive = true\nurl = ext::TRAP %S\nupdate = !TRAP\n')

    def make_alternates(self, folder: Path) -> None:
        (folder / ".git" / "objects" / "info" / "alternates").write_text(f"{self.victim}/.git/objects\n")
        (folder / ".git" / "objects" / "info" / "http-alternates").write_text(
            f"http://127.0.0.1:{self.port}/\n"
        )
        self.point_to_victim(folder)

    def make_linked_objects(self, folder: Path) -> None:
        for objects in (self.victim / ".git" / "objects").iterdir():
            place = folder / ".git" / "objects" / objects.name
            if not place.exists():
                place.symlink_to(objects)
        self.point_to_victim(folder)

    def make_git_file(self, folder: Path) -> None:
        (folder / ".git").rename(folder / "unused")
        (folder / ".git").write_text(f"gitdir: {self.victim}/.git\n")

    def make_git_link(self, folder: Path) -> None:
        (folder / ".git").rename(folder / "unused")
        (folder / ".git").symlink_to(self.victim / ".git")

    def make_common_folder(self, folder: Path) -> None:
        (folder / ".git" / "commondir").write_text(f"{self.victim}/.git\n")

    def make_other_worktree(self, folder: Path) -> None:
        self.config(folder, f"[core]\nworktree = {self.victim}\n")

    def make_submodule_of_the_victim(self, folder: Path) -> None:
        inside = folder / "x"
        inside.mkdir()
        (inside / ".git").write_text(f"gitdir: {self.victim}/.git\n")
        head = git(self.victim, "rev-parse", "HEAD")
        git(folder, "update-index", "--add", "--cacheinfo", f"160000,{head},x")
        self.save(folder)

    def make_link_above(self, folder: Path) -> None:
        (folder / "above").symlink_to(self.victim, target_is_directory=True)
        (folder / "file.py").symlink_to(self.victim / "secret.py")
        self.save(folder)

    def make_pipes(self, folder: Path) -> None:
        for name in ("packed-refs", "index", "shallow", "refs/heads/pipe", "info/exclude", "info/attributes"):
            path = folder / ".git" / name
            path.unlink(missing_ok=True)
            path.parent.mkdir(exist_ok=True)
            os.mkfifo(path)

    def make_head_pipe(self, folder: Path) -> None:
        (folder / ".git" / "HEAD").unlink()
        os.mkfifo(folder / ".git" / "HEAD")

    def make_replaced(self, folder: Path) -> None:
        command = ["git", "-C", str(folder), "hash-object", "-w", "--stdin"]
        done = subprocess.run(command, input=SECRET, capture_output=True, text=True, check=True)
        git(folder, "replace", git(folder, "rev-parse", "HEAD:area.py"), done.stdout.strip())

    def save(self, folder: Path) -> None:
        quiet = ("-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false")
        off = [x for key in ("clean", "process") for x in ("-c", f"filter.x.{key}=")] + [
            "-c",
            "filter.x.required=false",
        ]
        git(folder, *quiet, *off, "add", "-A")
        git(folder, *quiet, *off, "commit", "-qm", "Change")

    def point_to_victim(self, folder: Path) -> None:
        (folder / ".git" / "HEAD").write_text(git(self.victim, "rev-parse", "HEAD") + "\n")


def plain(folder: Path) -> None:
    """A repository of two commits."""
    git(folder, "init", "-q")
    (folder / "area.py").write_text(CODE)
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "Compute the area of a rectangle")
    (folder / "area.py").write_text(CODE + "\n\nSIDES = 4  # that a rectangle has\n")
    git(folder, "commit", "-qam", "Say how many sides a rectangle has")


# What a calling process may have set, each of which makes git itself run the trap or take the victim.
def environment(trap: Path, victim: Path) -> dict[str, str]:
    return {
        "GIT_DIR": f"{victim}/.git",
        "GIT_WORK_TREE": str(victim),
        "GIT_INDEX_FILE": f"{victim}/.git/index",
        "GIT_OBJECT_DIRECTORY": f"{victim}/.git/objects",
        "GIT_ALTERNATE_OBJECT_DIRECTORIES": f"{victim}/.git/objects",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "core.fsmonitor",
        "GIT_CONFIG_VALUE_0": str(trap),
        "GIT_EXTERNAL_DIFF": str(trap),
        "GIT_SSH_COMMAND": str(trap),
        "GIT_ASKPASS": str(trap),
        "GIT_PAGER": str(trap),
        "GIT_EXEC_PATH": str(trap.parent),
        "GIT_TEMPLATE_DIR": str(trap.parent),
    }
