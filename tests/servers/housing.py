"""Servers from Debian's packages, run in houses of their own: nothing is installed.

    debs = fetch("exim4-daemon-heavy")
    with House(debs, users=["Debian-exim"]) as house:
        (house.folder / "exim.conf").write_text(...)
        house.run("exec exim4 -bdf -C /house/exim.conf")
        house.wait_for(("127.0.0.1", port))

Only one mail server can be installed at a time, and none should be because a test
wants it.  So the packages are downloaded and unpacked over a view of this system,
an overlay that lives in memory, in a mount and process namespace of its own.  In
there a server finds its files where its package puts them, its users in
/etc/passwd, and `House.folder` as /house; out here nothing has changed.  The house
ends, with all its processes and files, when it is closed or this process is gone,
killed or not.  The network is shared: servers listen on 127.0.0.1.

It takes Linux, root (for the namespaces, and because mail servers change users)
and apt.  `missing()` says in one line what is not there.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

#: What was downloaded stays here, by base system and package.
STORE = Path(__file__).parents[2] / ".servers"
PATIENCE = 30.0  # seconds: how long a server may take to start
FIRST_UID = 61000  # free on Debian: neither system users nor people
ROOM = 1 << 30  # octets: less memory than this is left alone

NAMESPACES = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]

MOUNT = """\
set -e
mount -t tmpfs tmpfs "$FOLDER/.system"
cd "$FOLDER/.system" && mkdir upper work root
mount_system() {
    mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$PWD/upper,workdir=$PWD/work" root
}
"""

BUILD = """\
# Packages still have files in /lib, which is a link to /usr/lib.
for name in bin sbin lib lib64; do mkdir -p upper/usr/$name; ln -s usr/$name upper/$name; done
for deb in "$DEBS"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C upper
done
mkdir -p upper/etc upper/house && cp -a "$FOLDER/.etc/." upper/etc
mount_system
mount --bind "$FOLDER" root/house
mount --rbind /dev root/dev
mount -t tmpfs tmpfs root/run
mount -t tmpfs -o mode=1777 tmpfs root/tmp
# The processes of the house must not be told of a display, a proxy or a locale of ours.
exec chroot root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C TZ=UTC sh -c "$LIVE"
"""

# Standard input is a pipe whose other end the test holds, and nobody else: it ends when the
# test closes it or dies.  This shell is the first process of its namespace, which kill -1
# spares; when it ends, so does what is left.
LIVE = """\
mount -t proc proc /proc
cd /house
exec 3<&0 </dev/null
(cat <&3; [ -e .ended ] || kill -KILL -1) &
sh .run 3<&-
: >.ended
cat <&3
rm -rf /house/* /house/.[!.]*
"""


def missing() -> str | None:
    """Say what this machine lacks for a house, or None."""
    tools = ["apt-get", "dpkg-deb", "unshare", "chroot"]
    if absent := [tool for tool in tools if not shutil.which(tool)]:
        return f"{', '.join(absent)} not found"
    if os.geteuid():
        return "not root"
    # A container's root may mount nothing, and a kernel know no overlays: only trying tells.
    with tempfile.TemporaryDirectory(prefix="fastsmtp-house-") as folder:
        os.mkdir(f"{folder}/.system")
        trial = subprocess.run(
            [*NAMESPACES, "sh", "-c", f"{MOUNT}mount_system"],
            check=False,
            env={**os.environ, "FOLDER": folder, "BASE": "/"},
            capture_output=True,
            text=True,
        )
    said = " ".join(trial.stderr.split())
    return f"no namespaces with overlay file systems: {said}" if trial.returncode else None


# -- packages -----------------------------------------------------------------


def fetch(*packages: str, base: str = "/") -> Path:
    """Download what *packages* need beyond what *base* has; return the folder of .deb files."""
    name = "newest" if base != "/" else "debian"
    folder = STORE / name / "+".join(packages)
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(STORE / ".lock"):
        if not (folder / ".complete").exists():
            try:
                _download(packages, folder, base)
            except subprocess.CalledProcessError:
                # What the lists name may be gone: servers keep the newest version alone.
                _apt(base, "apt-get", "update", "-qq")
                _download(packages, folder, base)
            (folder / ".complete").touch()
    return folder


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(packages: Iterable[str], folder: Path, base: str) -> None:
    # What is installed already is wanted too: it may be gone tomorrow, what is unpacked is not.
    wanted = sorted({*packages, *_would_be_installed(packages, base)})
    inside = Path(base, "fetched") if base != "/" else folder
    for old in (*inside.glob("*.deb"), *folder.glob("*.deb")):
        old.unlink(missing_ok=True)
    _apt(base, "apt-get", "download", "-qq", "-o", "APT::Sandbox::User=root", *wanted, cwd=folder)
    if inside != folder:
        for deb in inside.glob("*.deb"):
            shutil.move(deb, folder / deb.name)


def _would_be_installed(packages: Iterable[str], base: str) -> list[str]:
    plan = _apt(base, "apt-get", "install", "--simulate", "--no-install-recommends", *packages)
    return [line.split()[1] for line in plan.splitlines() if line.startswith("Inst ")]


def _apt(base: str, *command: str, cwd: Path | None = None) -> str:
    """Run *command* in *base*, there in the folder /fetched; return what it prints."""
    if base != "/":
        script = 'mkdir -p /fetched && cd /fetched && exec "$@"'
        command = ("chroot", base, "sh", "-c", script, "sh", *command)
    return subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.PIPE, text=True).stdout


# -- addresses ----------------------------------------------------------------

# Below those that the kernel gives to clients: no connection takes one meanwhile.
_ports = itertools.count(random.randrange(10_000, 30_000))


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on; another one each time."""
    for port in _ports:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("there is always a next one")


def wait_until(true: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Return when *true* says so; a TimeoutError that names *what* after *patience* seconds."""
    end = time.monotonic() + patience
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(f"not within {patience:g} seconds: {what}")
        time.sleep(0.02)


def listening(address: tuple[str, int] | str) -> bool:
    """Whether a connection to *address*, a (host, port) or a socket's path, is accepted."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe, contextlib.suppress(OSError):
        probe.connect(address)
        return True
    return False


# -- the house ----------------------------------------------------------------


class House:
    """A system of its own for one server: this one, with packages unpacked over it.

    *debs* is what fetch() returned; *users* are made, each with a group of its
    name; *groups* besides.  *base* is the system below: a folder that debootstrap
    made, or this one.  Files go into `folder`, which is /house inside and is
    deleted when the house is closed.
    """

    def __init__(
        self, debs: Path, *, users: Iterable[str] = (), groups: Iterable[str] = (), base: str = "/"
    ) -> None:
        self.debs, self.base = debs, base
        self.folder = Path(tempfile.mkdtemp(prefix="fastsmtp-house-", dir=_memory()))
        self.folder.chmod(0o755)
        (self.folder / ".system").mkdir()
        self.ids: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._write_users(list(users), list(groups))

    def _write_users(self, users: list[str], groups: list[str]) -> None:
        etc = self.folder / ".etc"
        etc.mkdir()
        passwd, group = (Path(self.base, "etc", name).read_text() for name in ("passwd", "group"))
        for number, name in enumerate(dict.fromkeys(users + groups), FIRST_UID):
            if f"\n{name}:" not in group:
                group += f"{name}:x:{number}:\n"
            if name in users and f"\n{name}:" not in passwd:
                passwd += f"{name}:x:{number}:{number}::/nonexistent:/usr/sbin/nologin\n"
        (etc / "passwd").write_text(passwd)
        (etc / "group").write_text(group)
        (etc / "hosts").write_text("127.0.0.1 localhost mail.example.test\n")
        self.ids = {
            name: int(uid) for name, _, uid, *_ in (line.split(":") for line in passwd.splitlines())
        }

    def run(self, script: str) -> None:
        """Begin *script* (sh, as root, in /house), whose end is the end of the server.

        What it prints is in the file log of the folder.
        """
        (self.folder / ".run").write_text(script)
        paths = {"DEBS": str(self.debs), "BASE": self.base, "FOLDER": str(self.folder)}
        with open(self.folder / "log", "wb") as log:
            self._process = subprocess.Popen(
                [*NAMESPACES, "sh", "-c", MOUNT + BUILD],
                env={**os.environ, **paths, "LIVE": LIVE},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # what a terminal sends to us is not for the server
            )

    def wait_for(self, *addresses: tuple[str, int] | str) -> None:
        """Return when all *addresses* accept connections; RuntimeError with the log if not."""
        try:
            for address in addresses:
                wait_until(lambda address=address: self._ended() or listening(address), "a start")
                if self._ended():
                    raise TimeoutError("it ended")
        except TimeoutError as error:
            raise RuntimeError(f"the server does not listen ({error}):\n{self.log}") from None

    def _ended(self) -> bool:
        process = self._process
        return process is None or process.poll() is not None or (self.folder / ".ended").exists()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End all processes of the house, and delete its folder."""
        if self._process is not None:
            self._process.stdin.close()  # see LIVE
            self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _memory() -> str | None:
    """A folder in memory if there is room: there no server waits for a disk (fsync)."""
    shared = "/dev/shm"
    return shared if os.path.isdir(shared) and shutil.disk_usage(shared).free >= ROOM else None


def files(folder: Path, pattern: str) -> Iterator[Path]:
    """The files that match, oldest first."""
    return iter(sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns))
