"""Other programs: found on PATH, run from a list of words, their last words kept for the error."""

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from oci2boot.errors import ToolError

Argv = Sequence[str | Path]

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
"""Where Debian keeps mke2fs and its like, off an ordinary user's PATH."""


def find_program(name: str) -> str | None:
    """Return the path of a program on PATH or in the system directories."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), *_SBIN)))


def run(
    argv: Argv,
    *,
    data: bytes | None = None,
    env: Mapping[str, str] | None = None,
    package: str | None = None,
    timeout: float | None = None,
) -> bytes:
    """Run a program to its end and return what it printed.

    `data` is its standard input, `env` is added to the environment; `package` is named where the program is missing.
    Raises `ToolError` with the last line it said.
    """
    name = str(argv[0])
    program = find_program(name)
    if program is None:
        raise ToolError(f"{name} is not installed", hint=f"install the package {package or name}")
    with subprocess.Popen(
        [program, *map(str, argv[1:])],
        stdin=subprocess.DEVNULL if data is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C.UTF-8", **(env or {})},
        process_group=None if timeout is None else 0,
    ) as process:
        try:
            output, errors = process.communicate(data, timeout)
        except BaseException as error:
            # What a shell script started holds the pipes open after it: the whole group has to go.
            if timeout is not None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ToolError(f"{name} did not end within {timeout:.0f} seconds") from error
            raise
    if process.returncode:
        said = (errors or output).decode(errors="replace").strip().splitlines()
        last = said[-1] if said else "it said nothing"
        raise ToolError(f"{Path(name).name} failed ({process.returncode}): {last}")
    return output


def said_by(argv: Argv, *, timeout: float = 60) -> str:
    """Return all that a program says, however it ends; nothing where it is not installed."""
    program = find_program(str(argv[0]))
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, *map(str, argv[1:])],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            timeout=timeout,
        )
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{argv[0]} did not end within {timeout:.0f} seconds") from error
    return done.stdout.decode(errors="replace")


def feed(argv: Argv, pieces: Iterable[bytes], *, package: str | None = None) -> None:
    """Run a program that reads `pieces` from its standard input. Raises `ToolError` with the last line it said."""
    name = str(argv[0])
    program = find_program(name)
    if program is None:
        raise ToolError(f"{name} is not installed", hint=f"install the package {package or name}")
    with (
        tempfile.TemporaryFile() as said,
        subprocess.Popen(
            [program, *map(str, argv[1:])],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        ) as process,
    ):
        assert process.stdin
        try:
            # A program that ends early says why; that its pipe is broken tells nothing.
            with suppress(BrokenPipeError):
                for piece in pieces:
                    process.stdin.write(piece)
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
        except BaseException:
            process.kill()
            raise
        if process.returncode:
            said.seek(0)
            lines = said.read().decode(errors="replace").strip().splitlines()
            last = lines[-1] if lines else "it said nothing"
            raise ToolError(f"{Path(name).name} failed ({process.returncode}): {last}")
