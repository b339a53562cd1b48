"""A machine in two folders with releases to come, for commands that are stopped."""

from pathlib import Path

from tests.faults.cuts import KILLED, Commands
from tests.faults.witnesses import check_boots, copied, entries, promised
from tests.workflows.machines import Machine, make_machine

BLESSER: dict[str, bytes | Path] = {"usr/lib/systemd/systemd-bless-boot": b"for boot counting"}
SECOND: dict[str, bytes | Path] = {"usr/bin/version": b"two" * 100, "etc/motd": b"image two\n", "etc/new": b"new\n"}
THIRD: dict[str, bytes | Path] = {"usr/bin/version": b"three" * 100, "etc/motd": b"image three\n"}
NOW = 1795000000
"""What the clock says: a record of a deployment has the time in it."""


class Stage:
    """A machine with three releases, and copies of it to work on."""

    def __init__(self, folder: Path, run: Commands) -> None:
        self.folder = folder
        self.run = run
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.made: Machine = make_machine(folder / "made")
        self.digests: list[str] = []
        """Of the deployments, in the order in which they came."""
        (digest,) = self.deployments(folder / "made")
        self.digests.append(digest)
        upper = folder / "made/root/state/deploy" / digest / "etc/upper"
        (upper / "hostname").write_text("box\n")
        self.one = self.keep("one", folder / "made")

    def keep(self, name: str, machine: Path) -> Path:
        target = self.folder / name
        target.mkdir()
        for part in ("root", "esp"):
            copied(machine / part, target / part)
        return target

    def work(self, machine: Path) -> Path:
        """Give a copy, always at the same place."""
        target = self.folder / "work"
        target.mkdir(exist_ok=True)
        for part in ("root", "esp"):
            copied(machine / part, target / part)
        return target

    def deployments(self, machine: Path) -> set[str]:
        return {path.name for path in (machine / "root/state/deploy").iterdir() if not path.name.startswith(".")}

    def command(self, machine: Path, *words: str, limit: int = 0, log: bool = False) -> int:
        where = ["--sysroot", str(machine / "root"), "--esp", str(machine / "esp")]
        ran = self.run.run(*words, *where, limit=limit, now=NOW, log=log)
        assert ran.status == (KILLED if limit else 0), ran.output
        return ran.changes

    def upgrade(self, name: str, machine: Path, *files: dict[str, bytes | Path]) -> Path:
        self.made.release(*files)
        work = self.work(machine)
        self.command(work, "upgrade", "--quiet")
        (new,) = self.deployments(work) - set(self.digests)
        self.digests.append(new)
        assert check_boots(work / "root", work / "esp", self.scratch) == new
        return self.keep(name, work)

    def boots(self, machine: Path) -> list[str]:
        """Return the digests that the entries promise, the first one first."""
        return [promised(uki, self.scratch) for uki in entries(machine / "esp", self.scratch)]
