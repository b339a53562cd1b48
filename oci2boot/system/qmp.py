"""QEMU's monitor, as far as a picture of the screen takes it. docs/interop/qmp-spec.txt"""

import json
import socket
from pathlib import Path
from typing import Any, Final

from oci2boot.errors import ToolError

ANSWER_SECONDS: Final = 60
LINE_MAX: Final = 1 << 20


def save_screen(monitor: Path, target: Path) -> None:
    """Have QEMU (7.1 and newer) write what its graphics card shows to `target`, as PNG."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_SECONDS)
            connection.connect(str(monitor))
            with connection.makefile("rwb") as stream:
                _read(stream)
                _ask(stream, "qmp_capabilities", {})
                _ask(stream, "screendump", {"filename": str(target), "format": "png"})
    except (OSError, ValueError) as error:
        raise ToolError(f"QEMU gave no picture of the screen: {error}") from error


def _ask(stream: Any, command: str, arguments: dict[str, str]) -> None:
    stream.write(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
    stream.flush()
    while True:
        answer = _read(stream)
        if "error" in answer:
            raise ToolError(
                f"QEMU gave no picture of the screen: {answer['error'].get('desc', 'it gives no reason')}",
                hint="it takes QEMU 7.1 or newer, built with libpng",
            )
        if "return" in answer:  # else an event
            return


def _read(stream: Any) -> dict[str, Any]:
    line = stream.readline(LINE_MAX)
    answer = json.loads(line) if line.endswith(b"\n") else None
    if not isinstance(answer, dict):
        raise ToolError("QEMU gave no picture of the screen: it ended")
    return answer
