"""What fuzzing found worth keeping, held against the same judges: no fuzzer is needed for that."""

from __future__ import annotations

import types
from pathlib import Path

import pytest
import test_codec_message
from seeds import SEEDS
from targets import TARGETS
from test_codec import FUNCTIONS

CORPUS = Path(__file__).with_name("corpus")


def inputs(name: str) -> list[bytes]:
    found = [file.read_bytes() for file in sorted((CORPUS / name).iterdir())]
    assert found, f"no corpus for {name}"
    return [b"", *SEEDS[name], *found]


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus(name: str) -> None:
    for data in inputs(name):
        try:
            TARGETS[name](data)
        except Exception as error:
            raise AssertionError(f"{name}: {data!r}") from error


def test_each_target_has_a_corpus() -> None:
    assert (
        sorted(TARGETS)
        == sorted(SEEDS)
        == sorted(folder.name for folder in CORPUS.iterdir() if folder.is_dir())
    )


# -- they can fail ------------------------------------------------------------


def parser_that_drops_white_space(module: types.ModuleType) -> type:
    class Wrong(module.ReplyParser):  # type: ignore[misc, name-defined]
        def next_reply(self):
            reply = super().next_reply()
            return reply and (reply[0], reply[1].replace(b" ", b""))

    return Wrong


@pytest.mark.parametrize("name", [*FUNCTIONS, "ReplyParser"])
def test_a_wrong_twin_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    right = test_codec_message.twins()[-1]
    wrong = types.SimpleNamespace(**vars(right))
    if name == "ReplyParser":
        wrong.ReplyParser = parser_that_drops_white_space(right)
    else:
        setattr(wrong, name, lambda *arguments, **options: changed(right, name, arguments, options))
    monkeypatch.setattr(test_codec_message, "twins", lambda: [wrong, right])
    with pytest.raises(AssertionError):
        run_seeds()


def run_seeds() -> None:
    for target, seeds in SEEDS.items():
        for data in seeds:
            TARGETS[target](data)


def changed(module: types.ModuleType, name: str, arguments: tuple, options: dict) -> object:
    """Return what a function does, but wrong, where there is something in it."""
    result = getattr(module, name)(*arguments, **options)
    if name == "data_payload":
        return result[0] + 1, result[1]
    if name == "first_values":
        return {}, result[1]
    return result and result[:-1]
