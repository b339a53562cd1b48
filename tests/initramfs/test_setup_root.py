"""setup-root under Debian's kernel, which alone can tell whether a promise is kept: one boot, many disks."""

import random
import re
from pathlib import Path

import pytest

from oci2boot.digest import Hash
from oci2boot.formats.fsverity import measure
from tests.initramfs.machine import Case, Disk, Outcome, make_repository, object_path, run

pytestmark = [pytest.mark.boot, pytest.mark.xdist_group("setup-root")]

BIG = random.Random(7).randbytes(300_001)
FILE = b"verified content of the image, more than 64 bytes of it, so that it is an object"
IMAGE_FILES = 600
"""So many that the EROFS image has several blocks."""
TRANSIENT_ETC = "[etc]\\ntransient = true\\n"
TRANSIENT_ROOT = "# all of it\\n[root]\\ntransient = true\\n"
VERITY = "[composefs]\\nenabled = verity\\n"
NO_VAR = '[var]\\nmount = "none"\\n'

PLANTED = "/run/planted"
LED_ASTRAY = {
    "state": "state",
    "state-deploy": "state/deploy",
    "deployment": "state/deploy/HEX",
    "etc": "state/deploy/HEX/etc",
    "upper": "state/deploy/HEX/etc/upper",
    "work": "state/deploy/HEX/etc/work",
    "var": "state/deploy/HEX/var",
    "os": "state/os",
    "os-default": "state/os/default",
    "os-var": "state/os/default/var",
    "composefs": "composefs",
    "objects": "composefs/objects",
    "digits": "composefs/objects/XX",
    "object": "composefs/objects/XX/REST",
}
"""Where an attacker puts a symlink that leads out of the disk."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    scratch = tmp_path_factory.mktemp("setup-root")
    root = scratch / "root"
    for path in ("usr/share/many", "boot", "sysroot", "etc", "var", "run", "proc", "sys", "dev"):
        (root / path).mkdir(parents=True)
    (root / "usr/share/file").write_bytes(FILE)
    (root / "usr/share/big").write_bytes(BIG)
    (root / "etc/conf").write_bytes(b"of the image\n")
    for number in range(IMAGE_FILES):
        (root / f"usr/share/many/{number:064}").write_bytes(b"%d" % number)
    disk = Disk(scratch)
    digests = {algorithm: make_repository(root, algorithm, scratch / algorithm) for algorithm in ("sha256", "sha512")}
    digest = digests["sha256"]
    image = object_path(digest)
    content = (scratch / "sha256/objects" / image).read_bytes()
    add_store(disk, "sha512", scratch / "sha512", "sha512", digests["sha512"])
    for store in ("good", "untouched", "missing", "other", "plain", "flipped", "flipped-file"):
        add_store(disk, store, scratch / "sha256", "sha256", digest)
    disk.remove(f"missing/composefs/objects/{image}")
    disk.add(f"other/composefs/objects/{image}", content[:-1] + b"x", "sha256")
    disk.add(f"plain/composefs/objects/{image}", content, None)
    for name, path in LED_ASTRAY.items():
        mislead(
            disk, name, path.replace("HEX", digest).replace("XX/REST", image).replace("XX", image[:2]), image, content
        )
    add_store(disk, "shared-var", scratch / "sha256", "sha256", digest)
    disk.symlink(f"shared-var/state/deploy/{digest}/var", "../../os/default/var")
    disk.mkdir("shared-var/state/os/default/var")
    add_store(disk, "file", scratch / "sha256", "sha256", digest)
    disk.add(f"file/state/deploy/{digest}/etc", b"", None)
    disk.write()
    disk.flip(f"flipped/composefs/objects/{image}", len(content) - 100)
    file = object_path(str(measure(BIG)))
    disk.flip(f"flipped-file/composefs/objects/{file}", 200_000)
    assert len(content) > 16 * 4096
    promise = f"composefs={digest}"
    both = f"{digest}\\n{digests['sha512']}"
    also = f"composefs={digests['sha512']}"
    not_an_image = f"composefs={measure(BIG)}"
    return run(
        [
            Case("good", "good", f"rw {promise} quiet"),
            Case("digest", "good", f"composefs.digest=v1-sha256-12:{digest}"),
            Case("sha512", "sha512", f"composefs.digest=v1-sha512-12:{digests['sha512']}"),
            Case("sealed", "good", "quiet", sealed=digest),
            Case("sealed-and-said", "good", promise, sealed=digest),
            Case("sealed-otherwise", "good", promise, sealed=str(measure(BIG))),
            Case("sealed-insecure", "good", f"composefs=?{digest}", sealed=digest),
            Case("set", "good", "rw quiet", sealed=both),
            Case("set-said", "good", f"{promise} {also}", sealed=both),
            Case("set-other-store", "sha512", f"{promise} {also}", sealed=both),
            Case("set-one-of-it", "sha512", also, sealed=both),
            Case("set-flipped", "flipped", f"{promise} {also}", sealed=both),
            Case("set-stranger", "good", f"{promise} {not_an_image}", sealed=both),
            Case("set-not-here", "good", also, sealed=both),
            Case("none", "good", "rw quiet"),
            Case("two", "good", f"{promise} {promise}"),
            Case("missing", "missing", promise),
            Case("other", "other", promise),
            Case("plain", "plain", promise),
            Case("plain-insecure", "plain", f"composefs=?{digest}"),
            Case("flipped", "flipped", promise),
            Case("flipped-file", "flipped-file", promise),
            Case("not-an-image", "good", not_an_image),
            Case("transient-etc", "untouched", promise, TRANSIENT_ETC),
            Case("transient-root", "good", promise, TRANSIENT_ROOT),
            Case("transient-both", "good", promise, TRANSIENT_ROOT + TRANSIENT_ETC),
            Case("no-var", "good", promise, NO_VAR),
            Case("transient-var", "good", promise, '[var]\\nmount = "transient"\\n'),
            Case("etc-none", "good", promise, '[etc]\\nmount = "none"\\n'),
            Case("root-and-var", "untouched", promise, TRANSIENT_ROOT + '[var]\\nmount = "overlay"\\n'),
            Case("writable-sysroot", "good", promise, "[sysroot]\\nreadonly = false\\n"),
            Case("verity", "good", promise, VERITY),
            Case("verity-insecure", "plain", f"composefs=?{digest}", VERITY),
            Case("maybe-missing", "missing", promise, "[composefs]\\nenabled = maybe\\n"),
            Case("off", "good", promise, "[composefs]\\nenabled = no\\n"),
            Case("signed", "good", promise, "[composefs]\\nenabled = signed\\n"),
            Case("override", "plain", f"{promise} ostree.prepare-root.composefs=0"),
            Case("override-good", "good", f"{promise} ostree.prepare-root.composefs=0"),
            Case("shallow", "good", promise),
            Case("shallow-flipped", "flipped", promise),
            Case("on-demand", "good", promise),
            Case("on-demand-other", "other", promise),
            Case("on-demand-plain", "plain", promise),
            Case("on-demand-missing", "missing", promise),
            Case("on-demand-flipped", "flipped", promise),
            Case("on-demand-insecure", "good", f"composefs=?{digest}"),
            Case("unknown-read", "good", promise),
            *(Case(f"astray-{name}", f"astray-{name}", promise) for name in LED_ASTRAY),
            Case("shared-var", "shared-var", promise),
            Case("file", "file", promise),
            Case("strange-setting", "good", promise, "[root]\\nverity = false\\n"),
        ],
        disk.image,
        scratch,
    )


def add_store(disk: Disk, store: str, repository: Path, algorithm: Hash, digest: str) -> None:
    objects = repository / "objects"
    for path in objects.rglob("*"):
        if path.is_file():
            disk.add(f"{store}/composefs/objects/{path.relative_to(objects)}", path.read_bytes(), algorithm)
    disk.mkdir(f"{store}/state/deploy/{digest}")


def mislead(disk: Disk, name: str, path: str, image: str, content: bytes) -> None:
    """Make a store with a symlink at `path`: to what is no place for it, or for what is verified, to the same again."""
    store = f"astray-{name}"
    if path.startswith("state/os"):
        disk.mkdir(f"{store}/state/deploy")
        disk.symlink(f"{store}/state/deploy/{image.replace('/', '')}/var", "../../os/default/var")
    if not path.startswith("composefs"):
        disk.add(f"{store}/composefs/objects/{image}", content, "sha256")
        disk.symlink(f"{store}/{path}", PLANTED)
        return
    disk.add(f"{store}/aside/{path}" + f"/composefs/objects/{image}"[len(f"/{path}") :], content, "sha256")
    disk.symlink(f"{store}/{path}", f"{'../' * path.count('/')}aside/{path}")


BOOTS = (
    *("good", "digest", "sha512", "sealed", "sealed-and-said", "verity", "override-good", "shallow", "on-demand"),
    *("set", "set-said", "set-other-store", "set-one-of-it"),
)
"""`shallow`: the kernel takes the second attempt, by a loop device."""


@pytest.mark.parametrize("name", BOOTS)
def test_a_promise_that_is_kept_becomes_the_root(name: str, outcomes: dict[str, Outcome]) -> None:
    """C.15, C.16, D.3: both forms of the argument, both hash functions, or a digest in the initramfs."""
    found = outcomes[name]
    assert found.seen["exit"] == "0"
    assert "root is the image sha" in found.said
    assert found.seen["file"] == FILE.decode()
    assert found.seen["big"] == str(len(BIG))


@pytest.mark.parametrize("name", BOOTS)
def test_only_etc_and_var_can_be_written(name: str, outcomes: dict[str, Outcome]) -> None:
    """O.11, O.12, K0.17"""
    seen = outcomes[name].seen
    assert "Read-only file system" in seen["usr"]
    assert "Read-only file system" in seen["top"]
    assert "Read-only file system" in seen["physical"]
    assert seen["etc"] == "of the image\nnew"
    assert seen["etc-kept"] == "1"
    assert seen["var"] == "written"


@pytest.mark.parametrize("name", BOOTS)
def test_no_mount_is_left_in_the_initramfs(name: str, outcomes: dict[str, Outcome]) -> None:
    """C.21"""
    seen = outcomes[name].seen
    assert seen["left"] == "0"
    assert seen["root"] == "- overlay"  # the disk is not beneath it any more
    assert seen["link"].startswith("/dev/block/")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "no composefs argument on the command line"),
        ("two", "more than one composefs argument on the command line"),
        ("missing", "found is no such object"),
        ("other", "has the wrong fs-verity digest"),
        ("plain", "has no fs-verity digest"),
        ("flipped", "FILE CORRUPTED!"),
        ("not-an-image", "cannot mount the root file system"),
        ("sealed-otherwise", "the initramfs promises"),
        ("sealed-insecure", "the initramfs promises"),
        ("set-flipped", "FILE CORRUPTED!"),
        ("set-stranger", "the initramfs promises"),
        ("set-not-here", "found is no such object"),
        ("verity-insecure", "demands fs-verity, which composefs=?"),
        ("maybe-missing", "found is no such object"),
        ("off", "there is nothing else to boot"),
        ("signed", "cannot check"),
        ("override", "has no fs-verity digest"),
        ("shallow-flipped", "FILE CORRUPTED!"),
        ("on-demand-other", "has the wrong fs-verity digest"),
        ("on-demand-plain", "has no fs-verity digest"),
        ("on-demand-missing", "found is no such object"),
        ("on-demand-insecure", "reads the image on demand, verified by fs-verity, which composefs=?"),
        ("unknown-read", "a way to read the image that this version does not know: later"),
        ("strange-setting", "a setting that this version does not know: verity = false"),
    ],
)
def test_a_promise_that_is_not_kept_stops_the_boot(name: str, words: str, outcomes: dict[str, Outcome]) -> None:
    """C.23, O.4, O.13, O.15: what was promised and what was found is said, and the disk is not switched to."""
    found = outcomes[name]
    assert found.seen["exit"] == "1"
    assert words in found.said
    assert "FATAL" in found.said
    assert "overlay" not in found.seen["root"]


@pytest.mark.parametrize("name", LED_ASTRAY)
def test_no_symlink_of_the_disk_is_followed(name: str, outcomes: dict[str, Outcome]) -> None:
    """B.12: what is on the disk is anybody's who had it, and in the initramfs a symlink leads into the initramfs."""
    found = outcomes[f"astray-{name}"]
    assert (found.seen["exit"], found.seen["planted"]) == ("1", "")
    assert "FATAL: on the disk, /sysroot/" in found.said
    assert "is a symlink" in found.said or "leads elsewhere than to" in found.said
    assert "overlay" not in found.seen["root"]


def test_only_a_directory_holds_state(outcomes: dict[str, Outcome]) -> None:
    assert "/etc is no directory, and none can be made" in outcomes["file"].said


def test_deployments_may_share_their_var(outcomes: dict[str, Outcome]) -> None:
    """O.11: as cfsctl and composefs-setup-root have it"""
    seen = outcomes["shared-var"].seen
    assert (seen["exit"], seen["var"]) == ("0", "written")


@pytest.mark.parametrize("name", [*BOOTS, "transient-etc", "transient-var", "root-and-var", "writable-sysroot"])
def test_what_nothing_verifies_gives_nobody_rights(name: str, outcomes: dict[str, Outcome]) -> None:
    """B.12: mount(8): a set-uid program, or a device, that was put there while the machine was off has no effect."""
    flags = dict(re.findall(r"/sysroot/(\w+) (\S+)", outcomes[name].seen["flags"]))
    assert set(flags) == {"etc", "var", "sysroot"}
    for place, found in flags.items():
        assert {"nosuid", "nodev"} <= set(found.split(",")), place
    assert "noexec" in flags["sysroot"].split(",")


@pytest.mark.parametrize("name", [*BOOTS, "transient-root", "transient-both"])
def test_programs_of_the_image_run_while_nothing_lies_over_it(name: str, outcomes: dict[str, Outcome]) -> None:
    """B.12: but for the disk that they grow, which is mounted in it. ld.so(8): /etc/ld.so.preload"""
    assert re.findall(r"^grow-over=(.*)$", outcomes[name].said, re.MULTILINE) == ["1"]


@pytest.mark.parametrize("name", ["missing", "other", "plain", "flipped"])
def test_the_digest_that_was_promised_is_named(name: str, outcomes: dict[str, Outcome]) -> None:
    good = outcomes["good"].said.partition("root is the image ")[2].split()[0]
    assert f"promised is the image {good}, found is" in outcomes[name].said


def test_a_file_that_was_changed_on_disk_cannot_be_read(outcomes: dict[str, Outcome]) -> None:
    """D.3, O.14: verified when it is read, so the others still can."""
    seen = outcomes["flipped-file"].seen
    assert seen["exit"] == "0"
    assert "I/O error" in seen["big"] or "Input/output error" in seen["big"]
    assert seen["file"] == FILE.decode()


def test_how_the_image_was_read_is_said_with_the_time(outcomes: dict[str, Outcome]) -> None:
    """C.20, D.5: opened by its digest, or read whole; the kernel's clock says how long that took."""
    for name, way in (("good", "ahead"), ("sealed", "ahead"), ("on-demand", "on-demand")):
        (line,) = [line for line in outcomes[name].said.splitlines() if "the image is verified" in line]
        begin, end = map(float, re.fullmatch(rf".*, {way}, from (\d+\.\d\d) to (\d+\.\d\d) s", line).groups())  # type: ignore[union-attr]
        assert 0 < begin <= end < begin + 60


def test_on_demand_a_flipped_bit_is_an_error_and_never_other_content(outcomes: dict[str, Outcome]) -> None:
    """D.5, O.14: the digest is compared as ever, and the damaged block is verified when it is read."""
    found = outcomes["on-demand-flipped"]
    assert "FILE CORRUPTED!" in found.said or "nput/output error" in found.seen["damage"]
    assert FILE.decode() in found.seen["file"] or "rror" in found.seen["file"]


def test_optional_verification_boots_anything_and_says_so(outcomes: dict[str, Outcome]) -> None:
    """C.32"""
    found = outcomes["plain-insecure"]
    assert found.seen["exit"] == "0"
    assert "NOTHING on this system is verified" in found.said


def test_a_transient_etc_leaves_nothing_on_the_disk(outcomes: dict[str, Outcome]) -> None:
    """O.12"""
    seen = outcomes["transient-etc"].seen
    assert (seen["exit"], seen["etc-kept"], seen["var"]) == ("0", "0", "written")
    assert seen["etc"] == "of the image\nnew"
    assert "Read-only file system" in seen["top"]


@pytest.mark.parametrize("name", ["transient-root", "transient-both"])
def test_a_transient_root_takes_new_directories(name: str, outcomes: dict[str, Outcome]) -> None:
    """O.11, O.12"""
    seen = outcomes[name].seen
    assert (seen["exit"], seen["top"], seen["etc"], seen["var"]) == ("0", "written", "of the image\nnew", "written")
    assert "Read-only file system" in seen["physical"]
    assert seen["left"] == "0"


def test_var_may_stay_the_images(outcomes: dict[str, Outcome]) -> None:
    seen = outcomes["no-var"].seen
    assert seen["exit"] == "0"
    assert "Read-only file system" in seen["var"]


def test_transient_and_kept_directories_go_together(outcomes: dict[str, Outcome]) -> None:
    """O.12, P.10: var transient; etc the image's; a transient root over which etc and var keep their own state."""
    seen = outcomes["transient-var"].seen
    assert (seen["exit"], seen["var"], seen["etc"]) == ("0", "written", "of the image\nnew")
    seen = outcomes["etc-none"].seen
    assert seen["exit"] == "0"
    assert "Read-only file system" in seen["etc"]
    seen = outcomes["root-and-var"].seen
    assert (seen["exit"], seen["top"], seen["var"], seen["etc-kept"]) == ("0", "written", "written", "1")


def test_a_writable_sysroot_is_asked_for(outcomes: dict[str, Outcome]) -> None:
    """O.12: sysroot.readonly of ostree, whose default with composefs is true"""
    seen = outcomes["writable-sysroot"].seen
    assert (seen["exit"], seen["physical"]) == ("0", "")


def test_a_kernel_with_fewer_levels_of_stacking_gets_a_loop_device(outcomes: dict[str, Outcome]) -> None:
    """The first attempt, on the file itself, leaves nothing behind."""
    found = outcomes["shallow"]
    assert "too deep" in found.said
    assert (found.seen["exit"], found.seen["left"]) == ("0", "0")
