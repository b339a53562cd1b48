"""Commands that are stopped in the middle: run one, run it until its n-th change, see what it did in which order."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.server import STATE
from tests.witness import program

HERE = Path(__file__).parent
KILLED = -9


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    changes: int
    """Calls that changed something, or would have: the last one when the command was killed."""
    output: str


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    path: str
    target: str = ""


@dataclass(slots=True)
class Commands:
    """Runs `oci2boot`, each time in a new process that starts at once."""

    folder: Path
    process: subprocess.Popen[str]
    environment: dict[str, str] = field(default_factory=dict)

    def run(self, *words: str | Path, limit: int = 0, now: int = 0, log: bool = False, **more: Any) -> Ran:
        """Run a command, which is killed at its change number `limit` and takes `now` for the time."""
        output = self.folder / "output"
        output.write_bytes(b"")
        (self.folder / "calls").write_bytes(b"")
        request = {"words": [*map(str, words)], "limit": limit, "now": now, "log": int(log), "output": str(output)}
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({**request, **more}) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        return Ran(answer["status"], answer["count"], output.read_text(errors="replace"))

    def succeed(self, *words: str | Path, **more: Any) -> Ran:
        ran = self.run(*words, **more)
        assert ran.status == 0, f"{' '.join(map(str, words))}\n{ran.output}"
        return ran

    def calls(self) -> list[Call]:
        """Return what the last command did, where it was run with `log`."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [Call(*line.split("\t")) for line in lines]


@contextmanager
def commands(folder: Path) -> Iterator[Commands]:
    library = folder / "cut.so"
    argv = [program("gcc"), "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "cut.c"), "-ldl"]
    subprocess.run(argv, check=True)
    state, calls = folder / "state", folder / "calls"
    state.write_bytes(bytes(STATE.size))
    calls.write_bytes(b"")
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "LD_PRELOAD": str(library),
        "CUT_STATE": str(state),
        "CUT_LOG": str(calls),
    }
    with subprocess.Popen(
        [sys.executable, "-m", "tests.faults.server"],
        cwd=HERE.parent.parent,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        yield Commands(folder, process)
        assert process.stdin
        process.stdin.close()


def spread(total: int, wanted: int) -> Sequence[int]:
    """Return `wanted` numbers from 1 to `total`, all where there are fewer: the last ones, and the others evenly."""
    if total <= wanted:
        return range(1, total + 1)
    last = min(8, wanted // 2)
    early = wanted - last
    return [*(1 + index * (total - last) // early for index in range(early)), *range(total - last + 1, total + 1)]
