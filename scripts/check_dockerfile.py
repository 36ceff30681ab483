"""Run the steps of a Dockerfile in a clean root filesystem, without a container engine.

    python scripts/check_dockerfile.py Dockerfile --args "--steps 1" --then "ls runs"

debootstrap installs the Debian that FROM names, COPY copies, RUN runs under chroot with the user,
folder and variables of that line. Then ENTRYPOINT is started as by `docker run`, without a network;
a HEALTHCHECK must succeed. Needs root, Linux, debootstrap, iproute2, and 1 to 3 GB in the temporary
folder. The root gets this machine's access to package registries: apt's sources, pip's
configuration, certificates and proxies.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"  # Docker's
BASE = re.compile(r"debian:([a-z]+)-slim")
TAIL = 30
IGNORED = {
    "COMMENT",
    "ARG",
    "ENV",
    "EXPOSE",
    "LABEL",
}  # ARG and ENV are part of each step's variables
CERTIFICATES = ("/etc/ssl/certs/ca-certificates.crt", "/usr/local/share/ca-certificates")
HOST_VARIABLES = re.compile(r"(PIP|UV)_.*|.*_PROXY|.*_proxy|.*_CA_BUNDLE|SSL_CERT_FILE")


class CheckError(Exception):
    """A step is not supported or failed; the message says which."""


@dataclass(frozen=True)
class Step:
    """One instruction, and the variables that it sees: of ENV and of ARG."""

    name: str
    value: str
    env: Mapping[str, str]
    args: Mapping[str, str]


@dataclass
class Image:
    """The root filesystem and the state that the steps so far have set.

    Attributes:
        root: the folder that becomes `/`.
        folders: folders of this machine that are visible to steps (package indexes on its disk).
    """

    root: Path
    folders: Sequence[Path] = ()
    workdir: str = "/"
    user: str = "root"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def run(self, script: str, env: Mapping[str, str], *, network: bool = True) -> None:
        """Run a shell script inside, in namespaces whose mounts and processes end with it.

        Args:
            script: for /bin/sh.
            env: its variables; HOME is added.
            network: False for no network, and to show its output while it runs.

        Raises:
            CheckError: it failed; the message ends with its last output.
        """
        q, root = shlex.quote, shlex.quote(str(self.root))
        outside = [f"mount -t proc proc {root}/proc", f"mount --rbind /dev {root}/dev"]
        for folder in self.folders:
            outside += [f"mkdir -p {root}{q(str(folder))}"]
            outside += [f"mount --bind {q(str(folder))} {root}{q(str(folder))}"]
        if not network:
            outside += ["ip link set lo up"]
        ids = self.user if ":" in self.user else f"{self.user}:"  # with the user's groups
        variables = [f"{name}={value}" for name, value in {"HOME": self.home(), **env}.items()]
        inside = ["chroot", f"--userspec={ids}", str(self.root), "/usr/bin/env", "-i"]
        inside += [f"--chdir={self.workdir}", *variables, "/bin/sh", "-c", script]
        namespaces = ["--mount", "--pid", "--fork", "--kill-child", *([] if network else ["--net"])]
        outside += [f"exec {shlex.join(inside)}"]
        command = ["unshare", *namespaces, "sh", "-ec", "\n".join(outside)]
        with tempfile.TemporaryFile("w+") as log:
            output, errors = (log, subprocess.STDOUT) if network else (None, None)
            if code := subprocess.call(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors
            ):
                log.seek(0)
                last = "".join(log.readlines()[-TAIL:])
                raise CheckError(f"exit status {code} of: {' '.join(script.split())}\n{last}")

    def home(self) -> str:
        """Return the user's home folder, from the image's /etc/passwd.

        Raises:
            CheckError: the user is not listed there.
        """
        for line in (self.root / "etc" / "passwd").read_text().splitlines():
            name, _, uid, _, _, home, _ = line.split(":")
            if self.user.split(":")[0] in (name, uid):
                return home
        raise CheckError(f"USER must be one of the image's /etc/passwd, got {self.user}")

    def inside(self, path: str) -> Path:
        """Return where a path of the image, absolute or relative to WORKDIR, is on this machine."""
        return self.root / os.path.normpath(os.path.join(self.workdir, path)).lstrip("/")

    def copy(self, context: Path, words: Sequence[str]) -> None:
        """Copy files or the contents of folders as COPY does.

        Raises:
            CheckError: a source is missing, or an option is given.
        """
        *sources, target = words
        for source in sources:
            path, place = context / source, self.inside(target)
            if source.startswith("--") or not path.exists():
                raise CheckError(f"COPY expects files of {context}, got {source}")
            if path.is_dir():
                ignore = shutil.ignore_patterns("__pycache__")
                shutil.copytree(path, place, dirs_exist_ok=True, ignore=ignore)
                continue
            if target.endswith(("/", ".")) or len(sources) > 1:
                place /= path.name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, place)

    def take(self, step: Step, context: Path, host: Mapping[str, str]) -> None:
        """Execute one step after FROM.

        Raises:
            CheckError: the instruction is not supported, or it failed.
        """
        words = shlex.split(step.value)
        if step.name == "RUN":
            self.run(step.value, {**host, **step.args, **step.env})
        elif step.name == "COPY":
            self.copy(context, words)
        elif step.name == "WORKDIR":
            self.workdir = os.path.normpath(os.path.join(self.workdir, step.value))
            self.inside(".").mkdir(parents=True, exist_ok=True)
        elif step.name == "USER":
            self.user = step.value
        elif step.name == "ENTRYPOINT":
            self.entrypoint, self.command = json.loads(step.value), []
        elif step.name == "CMD":
            self.command = json.loads(step.value)
        elif step.name == "HEALTHCHECK":
            self.health = json.loads(step.value.split("CMD", 1)[1])
        elif step.name not in IGNORED:
            raise CheckError(f"no step known here: {step.name} {step.value}")

    def start(self, args: Sequence[str] | None, then: str, seconds: int) -> str:
        """Return the shell script of what `docker run` starts, followed by a check.

        Args:
            args: arguments of the container, None for those of CMD.
            then: the check, run once HEALTHCHECK succeeds, or without one after the program.
            seconds: time limit of the program, or of the wait for HEALTHCHECK.
        """
        command = self.command if args is None else args
        program = shlex.join([*self.entrypoint, *command])
        if not self.health:
            return f"timeout {seconds} {program} && {then}"
        ask = f"until {shlex.join(self.health)} 2>/dev/null; do kill -0 $p || exit 1; sleep 1; done"
        return f"{program} & p=$!; export p; timeout {seconds} sh -c {shlex.quote(ask)} && {then}"


def steps(dockerfile: str, build_args: Mapping[str, str]) -> Iterator[Step]:
    """Yield the instructions of a Dockerfile, each with the variables that it sees.

    Raises:
        CheckError: the file has no ARG for a build argument, or dockerfile-parse is missing.
    """
    try:
        from dockerfile_parse import DockerfileParser
    except ImportError as error:
        raise CheckError("dockerfile-parse is missing: install the extra 'dev'") from error
    parser = DockerfileParser(
        fileobj=io.BytesIO(dockerfile.encode()),
        build_args=dict(build_args),
        parent_env={"PATH": PATH},
    )
    contexts = parser.context_structure
    if unknown := set(build_args) - {name for context in contexts for name in context.args}:
        raise CheckError(f"no ARG of this name: {', '.join(sorted(unknown))}")
    for line, context in zip(parser.structure, contexts, strict=True):
        yield Step(line["instruction"], line["value"], dict(context.envs), dict(context.args))


def install_debian(release: str, root: Path, mirror: str | None) -> None:
    """Install a minimal Debian, as in the `debian:<release>-slim` images.

    Raises:
        CheckError: debootstrap is missing or failed.
    """
    if shutil.which("debootstrap") is None:
        raise CheckError("debootstrap is missing. As root: apt-get install debootstrap")
    command = [
        "debootstrap",
        "--variant=minbase",
        release,
        str(root),
        *([mirror] if mirror else []),
    ]
    if subprocess.call(command, stdout=subprocess.DEVNULL):
        raise CheckError(f"failed: {shlex.join(command)}")


def copy_registry_access(release: str, root: Path) -> tuple[list[Path], dict[str, str]]:
    """Give the root this machine's access to package registries.

    Returns:
        Folders of package indexes on this machine's disk, and environment variables.
    """
    apt = ["/etc/apt/sources.list", "/etc/apt/sources.list.d"]  # copied for the same release only
    own = platform.freedesktop_os_release().get("VERSION_CODENAME") == release
    rules = [str(p) for p in Path("/etc/apt/apt.conf.d").glob("*") if "Acquire" in p.read_text()]
    pip = {"/etc/pip.conf": "/etc/pip.conf"}
    pip |= {str(Path.home() / ".config/pip/pip.conf"): "/etc/xdg/pip/pip.conf"}
    files = {name: name for name in [*CERTIFICATES, "/etc/resolv.conf", *rules]} | pip
    for source, target in (files | ({name: name for name in apt} if own else {})).items():
        place = root / target.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if Path(source).is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
        elif Path(source).exists():
            shutil.copyfile(source, place)
    env = {name: value for name, value in os.environ.items() if HOST_VARIABLES.fullmatch(name)}
    texts = [*env.values(), *(Path(name).read_text() for name in pip if Path(name).is_file())]
    named = re.findall(r"(?:file://|(?<![\w:/.]))(/[^\s,'\"]+)", "\n".join(texts))
    folders = {Path(name) for name in named if Path(name).is_dir()}
    # An index links to files beside its own folder.
    return sorted({path.parent if path.name == "simple" else path for path in folders}), env


def check(dockerfile: Path, root: Path, options: argparse.Namespace) -> None:
    """Execute every step, then start the image.

    Raises:
        CheckError: FROM is not a Debian, or a step failed.
    """
    build_args = dict(pair.split("=", 1) for pair in options.build_arg)
    every = [s for s in steps(dockerfile.read_text(), build_args) if s.name != "COMMENT"]
    release = BASE.fullmatch(every[0].value) if every and every[0].name == "FROM" else None
    if release is None:
        raise CheckError("the first instruction must be FROM debian:<release>-slim")
    install_debian(release[1], root, options.mirror)
    folders, host = copy_registry_access(release[1], root)
    image = Image(root, folders)
    for step in every[1:]:
        began = time.perf_counter()
        image.take(step, dockerfile.parent, host)
        done = f"{time.perf_counter() - began:6.1f} s" if step.name == "RUN" else " " * 8
        print(f"{done}  {step.name} {' '.join(step.value.split())[:80]}", flush=True)
    args = None if options.args is None else shlex.split(options.args)
    env = {**every[-1].env, "TINI_SUBREAPER": "1"}  # a shell, not tini, is process 1 here
    image.run(image.start(args, options.then, options.seconds), env, network=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Check a Dockerfile and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "dockerfile", type=Path, help="the Dockerfile; its folder is the build context"
    )
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE",
                        help="build argument, may be repeated")  # fmt: skip
    parser.add_argument("--args", help="arguments of the container (default: those of CMD)")
    parser.add_argument("--then", default="true", help="command to run inside after the program, "
                        "or beside it once HEALTHCHECK succeeds")  # fmt: skip
    parser.add_argument(
        "--seconds", type=int, default=300, help="time limit of the program, or of HEALTHCHECK"
    )
    parser.add_argument("--mirror", help="Debian mirror for debootstrap")
    parser.add_argument("--keep", action="store_true", help="keep the root filesystem")
    options = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="check-dockerfile-"))
    root.chmod(0o755)
    began = time.perf_counter()
    try:
        check(options.dockerfile.resolve(), root, options)
    except CheckError as error:
        print(f"{options.dockerfile}: failed: {error}", file=sys.stderr)
        return 1
    finally:
        print(f"{root}: kept" if options.keep else f"removing {root}", flush=True)
        if not options.keep:
            shutil.rmtree(root)
    print(f"{options.dockerfile}: works, {time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
