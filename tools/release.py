"""What can be checked of a release before it is one.

    python tools/release.py version        the version is one, and CHANGELOG.md knows it
    python tools/release.py identifiers    cibuildwheel builds what docs/wheels.md promises
    python tools/release.py files DIST     DIST has the sdist, the pure wheel and all of those
    python tools/release.py here DIST      DIST has the sdist, and wheels that are in order
    python tools/release.py wheel WHEEL    the wheel is in order

Each prints a line for what it found, and ends with status 1 if that is not right.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAME = "fastsmtplib"
PURE = "py3-none-any"
#: Options of cibuildwheel by platform: all architectures that are promised.
PLATFORMS = {"linux": "x86_64,aarch64", "macos": "x86_64,arm64", "windows": "AMD64,ARM64"}


class Wrong(Exception):
    """Something that must not be released so."""


def version() -> str:
    """Return the one place's version: fastsmtp.__version__."""
    for node in ast.parse((ROOT / "src/fastsmtp/__init__.py").read_text()).body:
        match node:
            case ast.Assign(targets=[ast.Name(id="__version__")], value=ast.Constant(value=str(v))):
                return v
    raise Wrong("src/fastsmtp/__init__.py has no __version__")


def check_version() -> Iterator[str]:
    """Hold the version against CHANGELOG.md."""
    headings = re.findall(r"(?m)^## \[(.+?)\](.*)$", (ROOT / "CHANGELOG.md").read_text())
    if not headings or headings[0][0] != "Unreleased":
        raise Wrong("CHANGELOG.md does not begin with [Unreleased]")
    if version() not in dict(headings):
        raise Wrong(f"CHANGELOG.md has no section [{version()}], the version of the package")
    yield f"version {version()}, and CHANGELOG.md has its section"


def promised() -> set[str]:
    """Return the identifiers, as cibuildwheel has them, that docs/wheels.md names."""
    named = re.findall(r"`((?:cp3|manylinux|musllinux|macosx|win_)\w+)`", _wheels_page())
    interpreters = [name for name in named if name.startswith("cp")]
    platforms = [name for name in named if not name.startswith("cp")]
    return {"-".join(pair) for pair in product(interpreters, platforms)}


def _wheels_page() -> str:
    return (ROOT / "docs/wheels.md").read_text()


def check_identifiers() -> Iterator[str]:
    """Hold what cibuildwheel would build against what is promised."""
    built: set[str] = set()
    for platform, archs in PLATFORMS.items():
        command = ["cibuildwheel", "--print-build-identifiers", "--platform", platform]
        listed = subprocess.run(
            [*command, "--archs", archs, str(ROOT)], check=True, capture_output=True, text=True
        )
        found = set(listed.stdout.split())
        yield f"{platform}: {len(found)} wheels"
        built |= found
    if missing := promised() - built:
        raise Wrong(f"docs/wheels.md promises what is not built: {', '.join(sorted(missing))}")
    if unnamed := built - promised():
        raise Wrong(f"docs/wheels.md does not name {', '.join(sorted(unnamed))}")
    yield f"{len(built)} wheels, those of docs/wheels.md"


def identifier(wheel: Path) -> str:
    """Return the identifier that cibuildwheel has for a wheel, from its file name."""
    _, _, python, abi, platform = wheel.stem.split("-")
    if f"{python}-{abi}-{platform}" == PURE:
        return PURE
    # manylinux_2_28_x86_64.manylinux2014_x86_64, macosx_10_13_x86_64, win_amd64, win32 …
    system = re.sub(r"^(manylinux|musllinux|macosx)_\d+_\d+_", r"\1_", platform.split(".")[-1])
    return f"{abi}-{re.sub('^manylinux(1|2010|2014)_', 'manylinux_', system)}"


def check_files(dist: Path) -> Iterator[str]:
    """Hold a folder to be all that a release has."""
    yield from check_here(dist)
    found = {identifier(wheel) for wheel in dist.glob("*.whl")}
    wanted = promised() | {PURE}
    if found != wanted:
        lacking, beyond = sorted(wanted - found), sorted(found - wanted)
        raise Wrong(f"wheels that are missing: {lacking}; that nobody asked for: {beyond}")
    yield f"{len(found)} wheels, all that are promised"


def check_here(dist: Path) -> Iterator[str]:
    """Hold the sdist and each wheel in a folder to be as they should."""
    prefix = f"{NAME}-{version()}"
    odd = [path.name for path in dist.iterdir() if not path.name.startswith(prefix)]
    if odd:
        raise Wrong(f"not of version {version()}: {', '.join(odd)}")
    yield check_sdist(dist / f"{prefix}.tar.gz")
    for wheel in sorted(dist.glob("*.whl")):
        yield check_wheel(wheel)


def check_sdist(sdist: Path) -> str:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for needed in ("src/fastsmtp/_codec.pyx", "tests/conftest.py", "setup.py", "Makefile"):
        if needed not in names:
            raise Wrong(f"{sdist.name} lacks {needed}")
    generated = re.compile(r"src/.*\.c|.*\.(so|pyd|pyc)")
    if made := [name for name in names if generated.fullmatch(name)]:
        raise Wrong(f"{sdist.name} has what a build makes: {', '.join(made)}")
    return f"{sdist.name}: {len(names)} files, the source of the codec, nothing generated"


def check_wheel(wheel: Path) -> str:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    compiled = [name for name in names if re.fullmatch(r"fastsmtp/_codec\..*(so|pyd)", name)]
    if len(compiled) != (identifier(wheel) != PURE):
        raise Wrong(f"{wheel.name} has {compiled or 'no compiled codec'}")
    if strange := [name for name in names if name.endswith((".c", ".pyx"))]:
        raise Wrong(f"{wheel.name} has {', '.join(strange)}")
    return f"{wheel.name}: {identifier(wheel)}, {len(names)} files"


def main(what: str, *arguments: str) -> None:
    checks: dict[str, Callable[..., Iterable[str]]] = {
        "version": check_version,
        "identifiers": check_identifiers,
        "files": check_files,
        "here": check_here,
        "wheel": lambda wheel: [check_wheel(wheel)],
    }
    if what not in checks:
        sys.exit(__doc__)
    try:
        for line in checks[what](*map(Path, arguments)):
            print(line)
    except Wrong as error:
        sys.exit(f"release: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:] or ["help"])
