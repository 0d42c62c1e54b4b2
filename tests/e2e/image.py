"""The lines of the Dockerfile, each tried in a root directory of its own, where there is no Docker.

    debootstrap --variant=minbase jammy ROOT http://archive.ubuntu.com/ubuntu
    python -m tests.e2e.image ROOT [OLD=NEW ...]

Without GPU builds, with `bookworm` as the root and its Python 3.11 in place of the PPA's:

    'add-apt-repository -y ppa:deadsnakes/ppa=true' '[gpu,lora,serve]=[cpu,lora,serve]'
    '; assert torch.version.cuda=' ' boto3= boto3 && pip uninstall --yes torchvision torchaudio torchcodec'

Needs Linux and the user root. RUN lines run in ROOT (chroot, with mounts of their own), as the user, in the folder and
with the environment of the lines before them. Every OLD in a line is replaced by NEW: what a place cannot reach (a
repository, GPU builds of 10 GB). Prints a row for each line; ends at the first one that fails, with its last output.
"""

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
MOUNTS = "mount --bind /proc {root}/proc && mount --bind /dev {root}/dev"
# What a container gets of its host: name resolution, and how pip finds packages.
OF_HOST = ("/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf")


def instructions(text: str) -> list[tuple[str, str]]:
    """Instruction and arguments of each line, without comments; continued lines are joined."""
    lines = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", text, flags=re.M)).splitlines()
    return [(line.partition(" ")[0], line.partition(" ")[2].strip()) for line in lines if line.strip()]


class Image:
    """What the lines so far have left: the files in `root`, and user, folder and environment of the next ones."""

    def __init__(self, root: Path) -> None:
        self.root, self.user, self.folder = root, "root", "/"
        self.env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        self.env |= {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "http"))}
        for path in filter(os.path.isfile, OF_HOST):
            shutil.copy(path, f"{root}{path}")

    def execute(self, instruction: str, arguments: str) -> str | None:
        """Does what a line says; the last output where that failed. ValueError for an unknown instruction."""
        match instruction:
            case "FROM":
                return None
            case "ENV":
                for pair in shlex.split(arguments):
                    key, _, value = pair.partition("=")
                    self.env[key] = re.sub(r"\$(\w+)", lambda name: self.env.get(name[1], ""), value)
                return None
            case "USER":
                self.user = arguments
                return None
            case "WORKDIR":
                self.folder = arguments
                return self.run(f"mkdir -p {shlex.quote(arguments)}", "/")
            case "COPY":
                return self.copy(shlex.split(arguments))
            case "RUN":
                return self.run(arguments, self.folder)
        raise ValueError(f"no such instruction is known here: {instruction}")

    def copy(self, arguments: list[str]) -> str | None:
        """Files and folders of the repository, with the owner that `--chown` names."""
        owner, *sources, target = arguments
        place = Path(f"{self.root}{os.path.join(self.folder, target)}")
        for source in sources:
            inside = place / source if target.endswith("/") else place
            if (REPOSITORY / source).is_dir():
                shutil.copytree(REPOSITORY / source, inside, dirs_exist_ok=True)
            else:
                shutil.copy(REPOSITORY / source, inside)
        user, self.user = self.user, "root"
        failed = self.run(f"chown -R {owner.removeprefix('--chown=')} .", self.folder)
        self.user = user
        return failed

    def run(self, command: str, folder: str) -> str | None:
        """A shell command in the root."""
        shell = f"cd {shlex.quote(folder)} && {command}"
        inside = ["chroot", f"--userspec={self.user}", str(self.root), "/bin/sh", "-c", shell]
        script = f"{MOUNTS.format(root=shlex.quote(str(self.root)))} && exec {shlex.join(inside)}"
        home = {"HOME": "/root" if self.user == "root" else f"/home/{self.user}"}
        outside = ["unshare", "--mount", "sh", "-c", script]
        done = subprocess.run(outside, env={**self.env, **home}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        return done.stdout.decode(errors="replace")[-3000:] if done.returncode else None


def main() -> int:
    """Tries the lines one after the other; 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, metavar="ROOT")
    parser.add_argument("changes", nargs="*", metavar="OLD=NEW")
    arguments = parser.parse_args()
    text = (REPOSITORY / "Dockerfile").read_text()
    for change in arguments.changes:
        before, _, after = change.partition("=")
        if before not in text:
            parser.error(f"no line has '{before}'")
        text = text.replace(before, after)
    image = Image(arguments.root.absolute())
    for instruction, rest in instructions(text):
        start = time.monotonic()
        failed = image.execute(instruction, rest)
        result = "failed" if failed is not None else "done"
        print(f"{time.monotonic() - start:7.1f} s  {result:6}  {instruction} {' '.join(rest.split())[:90]}", flush=True)
        if failed is not None:
            print(failed)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
