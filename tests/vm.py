"""Disks and machines for the boot tests: what is asked in the guest, and what is done to a disk from outside."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from oci2boot.boot.uki import UkiParts, build_uki
from oci2boot.formats import pe
from oci2boot.system.qemu import VirtualMachine, boot, credential, find_firmware, unit_credentials
from tests import flips
from tests.partitions import table
from tests.witness import program
from tests.workflows.sealable import stub

ROOT = Path(__file__).parent.parent

BOOT_SECONDS = 600
"""A boot takes 30 to 60 seconds under TCG; the rest is for a machine that does much else."""

FLIPPED = b"1" * 1048576
"""The content of /usr/share/demo/sizes/1048576, an object of the demo image that no boot needs."""

REPORT_UNIT = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
LoadCredential=oci2boot.report
ExecStart=/bin/sh ${CREDENTIALS_DIRECTORY}/oci2boot.report
"""

REPORT = r"""
exec >/dev/ttyS1 2>&1
say() { printf '%s=%s\n' "$1" "$(eval "$2" 2>&1 | tr '\n' ';')"; }
say multi-user 'systemctl is-active multi-user.target'
say getty 'systemctl is-active serial-getty@ttyS0.service'
say failed-units 'systemctl list-units --failed --plain --no-legend'
say python 'command -v python3; command -v oci2boot'
say root 'findmnt -no FSTYPE,SOURCE,OPTIONS /'
say sysroot 'findmnt -no FSTYPE,OPTIONS /sysroot'
say sysroot-size 'findmnt -bno SIZE /sysroot'
say etc-kept 'cat /etc/written'
say var-kept 'cat /var/written'
say etc 'echo kept >/etc/written && cat /etc/written'
say var 'echo kept >/var/written && cat /var/written'
say usr 'touch /usr/written'
say top 'touch /written'
"""

REPORT_CONTENT = r"""
cd /sysroot/composefs/objects
say objects 'find . -type f | wc -l'
say measured 'find . -type f | xargs fsverity measure | sed "s/^sha[0-9]*://" | tr -d ./ | awk "\$1 == \$2" | wc -l'
cd /usr/share/demo
say flipped 'cat sizes/1048576 >/dev/null'
say kernel 'dmesg | grep fs-verity'
say intact 'sha256sum <sizes/20000001'
say sparse 'sha256sum <sizes/sparse'
say set-id 'stat -c %U:%g:%a /usr/bin/demo-setuid'
say unnamed-ids 'stat -c %u:%g:%a sticky'
say capability '/sbin/getcap /usr/bin/demo-capable'
say hard-links 'stat -c %h:%i sizes/65536 names/65536.hard | uniq'
say inline 'cat names/64.hard'
say names 'LC_ALL=C ls -b names'
say deleted 'ls /usr/bin/yes'
say replaced 'ls -A /usr/share/lintian'
say pipe 'stat -c %F pipe'
"""

REPORT_END = "echo end\n"
REBOOT = "[ -e /etc/booted ] || { touch /etc/booted; echo reboot; systemctl --no-block reboot; exit; }\n"


def with_report(
    machine: VirtualMachine, *, content: bool = True, reboot: bool = False, more: str = ""
) -> VirtualMachine:
    """Have the guest say on ttyS1 what it is, once multi-user.target is reached; `more` asks for more."""
    script = REPORT + (REPORT_CONTENT if content else "") + more + (REBOOT if reboot else "") + REPORT_END
    return replace(
        machine,
        smbios=(
            *machine.smbios,
            *unit_credentials("oci2boot-report.service", REPORT_UNIT, wanted_by="multi-user.target"),
            credential("oci2boot.report", script.encode()),
        ),
        may_reboot=reboot,
    )


def parse_report(text: str) -> dict[str, str]:
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {key: value.rstrip(";") for key, value in pairs}


def machine(disk: Path, *smbios: str) -> VirtualMachine:
    return VirtualMachine(disk=disk, firmware=find_firmware(), smbios=smbios)


# ---- an ordinary user


def oci2boot(*words: str | Path, home: Path, demote: bool = True) -> str:
    """Run the program as nobody when the tests run as root: it may not need more."""
    prefix: list[str] = []
    if demote and os.geteuid() == 0:
        # Python itself may lie in root's home: reading is allowed, and that is all.
        rights = "-all,+dac_read_search"
        prefix = [program("setpriv"), "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
        prefix += [f"--inh-caps={rights}", f"--ambient-caps={rights}", f"--bounding-set={rights}"]
    done = subprocess.run(
        [*prefix, str(Path(sys.executable).with_name("oci2boot")), *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        env={"HOME": str(home), "TMPDIR": str(home), "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def users_folder(path: Path) -> Path:
    """Make a folder that the ordinary user may write to."""
    path.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, 65534, 65534)
    return path


# ---- machines


def package() -> dict[str, bytes | Path]:
    """Return what a machine of `scripts/machine-image` lacks: this package, by its path in the image."""
    files = sorted(path for path in (ROOT / "oci2boot").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {f"usr/lib/oci2boot/{path.relative_to(ROOT)}": path.read_bytes() for path in files}


def refusal(disk: Path, folder: Path, *smbios: str) -> str:
    """Boot what must not boot: the guest reboots, which ends the machine; return the reason on its console."""
    with boot(machine(disk, *smbios), folder / "vm") as running:
        running.wait_end(BOOT_SECONDS)
        console = running.console
    assert "login:" not in console
    assert "switch root" not in console.lower()
    reason = re.search(r"oci2boot: FATAL: .*", console)
    assert reason, console[-3000:]
    return reason[0]


# ---- a disk, from outside


def copy(disk: Path, target: Path) -> Path:
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", disk, target], check=True)
    target.chmod(0o644)
    return target


def debugfs(disk: Path, command: str, *, write: bool = False) -> str:
    argv = [program("debugfs"), *(["-w"] if write else []), "-R", command, f"{disk}?offset={table(disk)[1]['start']}"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    refused = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    assert not refused, refused
    return done.stdout


def flip(disk: Path, path: str, position: int) -> None:
    """Flip the bits of one byte of a file on the root file system, as an attacker with the disk in hand."""
    block = int(debugfs(disk, f"bmap {path} {position // 4096}").split()[-1])
    assert block, f"{path} has a hole at {position}"
    flips.flip(disk, table(disk)[1]["start"] + block * 4096 + position % 4096, 0xFF)


def object_path(digest: str) -> str:
    return f"/composefs/objects/{digest[:2]}/{digest[2:]}"


def digest_of(content: bytes, folder: Path) -> str:
    """Return the fs-verity digest of some content, by fsverity-utils."""
    file = folder / "content"
    file.write_bytes(content)
    argv = [program("fsverity"), "digest", "--compact", str(file)]
    digest = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    file.unlink()
    return digest


def read_uki(disk: Path, folder: Path) -> tuple[str, bytes]:
    """Return the name on the ESP and the bytes of the one UKI."""
    esp = f"{disk}@@{table(disk)[0]['start']}"
    listing = subprocess.check_output([program("mdir"), "-b", "-i", esp, "::EFI/Linux"], text=True)
    (name,) = (line for line in listing.splitlines() if line.endswith(".efi"))
    target = folder / "uki.efi"
    subprocess.run([program("mcopy"), "-n", "-i", esp, name, target], check=True)
    content = target.read_bytes()
    target.unlink()
    return name, content


def replace_uki(disk: Path, name: str, content: bytes, folder: Path) -> None:
    source = folder / "uki.new"
    source.write_bytes(content)
    subprocess.run([program("mcopy"), "-o", "-i", f"{disk}@@{table(disk)[0]['start']}", source, name], check=True)


def promised_digest(disk: Path, folder: Path) -> str:
    """Return the digest on the command line of the UKI."""
    found: set[bytes] = set(re.findall(rb"composefs=([0-9a-f]{64})\b", read_uki(disk, folder)[1]))
    assert len(found) == 1, found
    return found.pop().decode()


def without_promise(uki: bytes) -> bytes:
    """Return the UKI as a vendor would build it: kernel and initramfs the same, no argument about composefs."""
    headers = pe.parse(uki)
    parts = {section.name: pe.contents(uki, section) for section in headers.sections}
    words = parts[b".cmdline"].decode().split()
    assert len([word for word in words if word.startswith("composefs")]) == 1
    line = " ".join(word for word in words if not word.startswith("composefs"))
    return build_uki(
        stub(),
        UkiParts(
            kernel=parts[b".linux"],
            initrds=(parts[b".initrd"],),
            cmdline=line,
            os_release=parts[b".osrel"],
            uname=parts[b".uname"].decode(),
        ),
    )
