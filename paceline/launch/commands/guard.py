"""How every command ends: with an exit code, and with a message instead of a traceback."""

from __future__ import annotations

import errno
import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import ParamSpec

import typer

from paceline.launch.errors import ArgumentError, LaunchError, RunFailedError
from paceline.pipeline.problem import TopologyError

__all__ = ["guarded"]

_P = ParamSpec("_P")


def guarded(command: Callable[_P, None]) -> Callable[_P, None]:
    """Turn what a command raises into a message on standard error and an exit code; `--debug` adds the traceback."""

    @functools.wraps(command)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            _check_working_directory()
            command(*args, **kwargs)
            sys.stdout.flush()
        except typer.Exit:
            raise
        except TopologyError as error:
            _say(str(error))
            raise typer.Exit(2) from error
        except LaunchError as error:
            _say(f"paceline: {error}")
            if isinstance(error, RunFailedError) and error.detail:
                _say(error.detail)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            _say("paceline: interrupted")
            raise typer.Exit(130) from None
        except BrokenPipeError:
            # As behind `| head`: Typer ends the command without a word, with exit code 1.
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC and error.filename is None and _output_is_full():
                _say(f"paceline: standard output can't be written: {error.strerror}; make room, or send it elsewhere")
                raise typer.Exit(1) from error
            _unexpected(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), kwargs)
        except Exception as error:
            _unexpected(f"{type(error).__name__}: {error}", kwargs)

    return run


def _check_working_directory() -> None:
    """Raise `ArgumentError` where it was removed: libraries that load others then fail without a clear message."""
    try:
        os.getcwd()
    except FileNotFoundError:
        raise ArgumentError("the working directory was removed; change to one that exists") from None


def _output_is_full() -> bool:
    """Whether standard output takes nothing more. What it did not take is gone by now, so one byte is tried."""
    try:
        os.write(sys.stdout.fileno(), b"\n")
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def _unexpected(message: str, options: dict[str, object]) -> None:
    if options.get("debug"):
        _say(traceback.format_exc())
        raise typer.Exit(1)
    _say(f"paceline: {message}; run again with --debug for the traceback")
    raise typer.Exit(1)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
