"""Coverage-guided fuzzing of the codec and the serializer, by atheris (libFuzzer).

    python tests/fuzz/run.py [--seconds N] [--keep] [target ...]
    python tests/fuzz/run.py target --input "b'...'"

Each target runs for N seconds (60) in a process of its own, from its corpus and the seeds.  With
--keep what reached more code is put into the corpus, no more of it than reaches all of it.  --input
runs one input, without atheris.  Exit status: 1 if an input fails, 2 if there is no atheris.

What guides it is the coverage of the package's Python code, _codec_py among it.  The compiled codec
is held against that with each input, but its own branches are not seen.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import platform
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
#: The most octets of an input; seconds for one; MiB of memory.
LIMITS = ["-max_len=600", "-timeout=30", "-rss_limit_mb=1024"]
#: Seconds for an input that is kept.
QUICK = 0.2
#: The corpus is to stay small: what reaches new code, not what reaches old code more often.
MERGE = ["-merge=1", "-use_counters=0"]


def load(name: str):
    """Return a target; the package is imported here, and not before."""
    if str(HERE.parent) not in sys.path:
        sys.path[:0] = [str(HERE.parent), str(HERE)]
    return importlib.import_module("targets").TARGETS[name]


def fuzz(name: str, arguments: list[str]) -> None:
    """Be libFuzzer, with its arguments."""
    import atheris

    with atheris.instrument_imports(include=["fastsmtp"]):
        function = load(name)
    # Merging, libFuzzer runs itself again and again, by a shell.
    command = shlex.join([sys.executable, __file__, "--child", name])
    atheris.Setup([command, *arguments], function)
    atheris.Fuzz()


def libfuzzer(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, __file__, "--child", name, *LIMITS, *map(str, arguments)]
    return subprocess.run(
        command,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )


def run(name: str, seconds: int, *, keep: bool) -> bool:
    """Fuzz a target, print what came of it, and return whether all was well."""
    with tempfile.TemporaryDirectory() as scratch:
        found, crashes, words = (Path(scratch, each) for each in ("found", "crashes", "words"))
        found.mkdir()
        crashes.mkdir()
        begin(name, found, words)
        ended = libfuzzer(
            name,
            f"-max_total_time={seconds}",
            "-print_final_stats=1",
            f"-artifact_prefix={crashes}/",
            f"-dict={words}",
            found,
            CORPUS / name,
        )
        print(summary(name, ended.stdout), flush=True)
        for file in crashes.iterdir():
            data = file.read_bytes()
            print(f"FAILED by {data!r}\n  again: {again(name, data)}")
        if ended.returncode:
            print(ended.stdout[-4000:])
        elif keep:
            minimise(name, found)
    return not ended.returncode


def begin(name: str, found: Path, words: Path) -> None:
    """Write the seeds, and the words that inputs are made of."""
    from seeds import SEEDS, WORDS

    for number, seed in enumerate(SEEDS[name]):
        (found / f"seed{number}").write_bytes(seed)
    escaped = ["".join(f"\\x{octet:02x}" for octet in word) for word in WORDS]
    words.write_text("".join(f'"{word}"\n' for word in escaped))


def summary(name: str, output: str) -> str:
    """Return a line about a run: of its last line that tells how far it came."""
    executed = re.findall(r"number_of_executed_units: (\d+)", output)
    reached = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/(\w+)", output)
    if not reached:
        return f"{name:12} ended at once"
    edges, features, count, size = reached[-1]
    runs = executed[-1] if executed else "?"
    coverage = f"{edges:>5} edges {features:>6} features"
    return f"{name:12} {runs:>8} runs {coverage} {count:>5} inputs, {size}"


def again(name: str, data: bytes) -> str:
    return shlex.join(["python", "tests/fuzz/run.py", name, "--input", repr(data)])


def minimise(name: str, found: Path) -> None:
    """Make a corpus of what is needed of the corpus and of what was found."""
    with tempfile.TemporaryDirectory() as needed:
        merged = libfuzzer(name, *MERGE, needed, CORPUS / name, found)
        if merged.returncode:
            raise SystemExit(merged.stdout[-4000:])
        for file in (CORPUS / name).iterdir():
            file.unlink()
        for file in Path(needed).iterdir():
            if is_quick(name, file.read_bytes()):
                (CORPUS / name / file.name[:12]).write_bytes(file.read_bytes())


def is_quick(name: str, data: bytes) -> bool:
    """Say whether an input may be part of every run of the suite."""
    function = load(name)
    start = time.process_time()
    function(data)
    return time.process_time() - start < QUICK


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    names = sorted(folder.name for folder in CORPUS.iterdir() if folder.is_dir())
    parser.add_argument("targets", nargs="*", metavar="target", help=", ".join(names))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--keep", action="store_true", help="put what was found into the corpus")
    parser.add_argument("--input", type=ast.literal_eval, help="run this one, without atheris")
    chosen = parser.parse_args()
    if unknown := set(chosen.targets) - set(names):
        parser.error(f"no such target: {', '.join(sorted(unknown))}")
    chosen.targets = chosen.targets or names
    return chosen


def main() -> int:
    chosen = arguments()
    if chosen.input is not None:
        for name in chosen.targets:
            load(name)(chosen.input)
        return 0
    python = f"{platform.python_implementation()} {platform.python_version()}"
    if not importlib.util.find_spec("atheris"):
        print(f"Not fuzzed: there is no atheris for {python} here (pip install atheris).")
        return 2
    codec = "C against Python" if importlib.util.find_spec("fastsmtp._codec") else "Python alone"
    print(f"Fuzzing for {chosen.seconds} s each, codec: {codec}, on {python}", flush=True)
    well = [run(name, chosen.seconds, keep=chosen.keep) for name in chosen.targets]
    return 0 if all(well) else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
