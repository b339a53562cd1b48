"""A TPM 2.0 in software, for a virtual machine. swtpm(8)"""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from oci2boot.errors import ToolError
from oci2boot.system.run import find_program

SWTPM: Final = "swtpm"
SOCKET_SECONDS: Final = 60
SOCKET_PATH_MAX: Final = 107
"""Bytes. unix(7)"""


def has_swtpm() -> bool:
    return find_program(SWTPM) is not None


def check_socket(path: Path) -> None:
    if len(bytes(path)) > SOCKET_PATH_MAX:
        raise ToolError(
            f"{path} is too long a name for a socket", hint="set TMPDIR to a folder with a shorter name, such as /tmp"
        )


@contextmanager
def software_tpm(folder: Path) -> Iterator[Path]:
    """Run a TPM for one machine, with the state that it last had in `folder`; give the socket that QEMU takes."""
    program = find_program(SWTPM)
    if program is None:
        raise ToolError(f"{SWTPM} is not installed", hint="install the package swtpm, or test without a TPM")
    state, socket = folder / "tpm", folder / "tpm.socket"
    check_socket(socket)
    state.mkdir(mode=0o700, exist_ok=True)
    socket.unlink(missing_ok=True)
    words = ["--tpm2", "--tpmstate", f"dir={state}", "--ctrl", f"type=unixio,path={socket}", "--terminate"]
    with (folder / "tpm.messages").open("w+") as messages:
        process = subprocess.Popen(
            [program, "socket", *words], stdin=subprocess.DEVNULL, stdout=messages, stderr=messages
        )
        try:
            deadline = time.monotonic() + SOCKET_SECONDS
            while not socket.exists():
                if process.poll() is not None or time.monotonic() > deadline:
                    messages.seek(0)
                    raise ToolError(f"{SWTPM} did not start: {messages.read(4096).strip() or 'it said nothing'}")
                time.sleep(0.05)
            yield socket
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
