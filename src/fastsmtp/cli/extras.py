"""Libraries that only one command needs, and the extras that bring them."""

from importlib.util import find_spec

from .exits import Failure

EX_CONFIG = 78


def require(command: str, module: str, extra: str) -> None:
    """Raise Failure, with what to install, if a module is not there."""
    if find_spec(module) is None:
        install = f"pip install 'fastsmtplib[{extra}]'"
        raise Failure(f"{command} needs {module}: {install}", EX_CONFIG)
