"""What is said of directories, init, /etc and /var, each with an image that has it and one that has not.

What bootc's checks of the same names look for is from `bootc container lint --list` of bootc 1.17.
"""

from pathlib import Path

import pytest

from oci2boot.rootfs.dmverity import Overlay, VerityOptions
from tests.workflows.lint.images import Changes, found

CONTEXTS = "etc/selinux/p/contexts/files/file_contexts"
LITERAL = b"/lit system_u:object_r:x:s0\n/l.*t system_u:object_r:y:s0\n"
POLICY = {
    "etc/selinux/config": b"SELINUX=enforcing\nSELINUXTYPE=p\n",
    CONTEXTS: b"/.* system_u:object_r:x:s0\n",
    "etc/selinux/p/policy/policy.33": b"\x8c\xff\x7c\xf9",
}
BOOTC: Changes = {"usr/bin/bootc": b"\x7fELF", "ostree": Path("sysroot/ostree")}
OSTREE: Changes = {
    **BOOTC,
    "usr/bin/ostree": b"\x7fELF",
    "usr/lib/ostree/prepare-root.conf": b"[composefs]\nenabled = verity\n",
}
TMPFILES = "usr/lib/tmpfiles.d"
WEB = b"# a comment\nd /var/lib/web 0755 root root -\nf /var/lib/web/index 0644 - - -\nC /var/lib/copied - - - -\n"
SYSUSERS = b'u root 0 "Super User" /root\nu! web - "web server"\ng wheel -\nm web staff\n'
PASSWD = b"root:x:0:0::/root:/bin/sh\nweb:x:997:997::/:/bin/sh\n"
GROUP = b"root:x:0:\nweb:x:997:\nwheel:x:10:\nstaff:x:50:web\n"


@pytest.mark.parametrize(
    ("check", "changes", "said"),
    [
        ("init", {"usr/lib/systemd/systemd": None, "sbin/init": None}, ["the image has no init: neither"]),
        ("init", {"usr/lib/systemd/systemd": b"no program", "sbin/init": Path("/nowhere")}, ["the image has no init"]),
        ("systemd", {"usr/lib/systemd/systemd": None, "sbin/init": b"#!/bin/sh\n"}, ["the image has no systemd"]),
        ("os-release", {"usr/lib/os-release": None}, ["the image has no os-release file"]),
        ("os-release", {"usr/lib/os-release": b""}, ["the image has no os-release file"]),
        ("api-base-directories", {"proc/": None}, ["the image does not have: /proc"]),
        ("api-base-directories", {"var/": None, "var": Path("data")}, ["something else than a directory at: /var"]),
        ("baseimage-root", {"sysroot/": None}, ["the image has no /sysroot"]),
        ("baseimage-root", {"sysroot/": None, "sysroot": b""}, ["/sysroot of the image is no directory"]),
        ("baseimage-root", {"usr/bin/bootc": b"\x7fELF"}, ["/ostree is no symlink to sysroot/ostree"]),
        ("baseimage-root", {**BOOTC, "ostree": Path("elsewhere")}, ["/ostree is no symlink to sysroot/ostree"]),
        ("baseimage-composefs", {**OSTREE, "usr/lib/ostree/prepare-root.conf": None}, ["no prepare-root.conf that"]),
        (
            "baseimage-composefs",
            {"usr/lib/ostree/prepare-root.conf": b"[composefs]\nenabled = no\n"},
            ["/usr/lib/ostree/prepare-root.conf turns composefs off"],
        ),
        ("nonempty-boot", {"boot/": None}, ["the image has no /boot"]),
        ("nonempty-boot", {"boot/": None, "boot": b""}, ["/boot of the image is no directory"]),
        ("nonempty-boot", {"boot/grub2/grub.cfg": b"", "boot/EFI/": b""}, ["what the image has there: /boot/grub2"]),
        ("nonempty-run-tmp", {"run/lock/": b"", "tmp/x": b""}, ["which hide: /run/lock, /tmp/x"]),
        ("nonempty-run-tmp", {"run/systemd/resolve/stub-resolv.conf": b"", "run/systemd/x": b""}, ["/run/systemd"]),
        ("var-run", {"var/run/": b""}, ["/var/run is no symlink"]),
        ("read-only-home", {"home": None, "home/": b""}, ["a directory of the verified root: /home"]),
        ("machine-identity", {"etc/machine-id": b"0" * 32}, ["the machine-id of the image: /etc/machine-id"]),
        ("machine-identity", {"var/lib/dbus/machine-id": b"0" * 32}, ["machine-id of the image: /var/lib/dbus"]),
        ("machine-identity", {"etc/ssh/ssh_host_rsa_key": b"k"}, ["ssh host keys of the image"]),
        ("utf8", {"usr/latin1-\udce4": b""}, ["are kept, but bootc's ostree refuses them: /usr/latin1-\\xe4"]),
        ("utf8", {"usr/link": Path("to-\udce4")}, ["refuses them: /usr/link"]),
        ("etc-usretc", {"usr/etc/": b""}, ["the image has both /etc and /usr/etc"]),
        (
            "etc-usretc",
            {"etc/a": b"1", "usr/etc/a": b"2", "etc/same": b"", "usr/etc/same": b"", "usr/etc/only": Path("a")},
            [
                "the image has both /etc and /usr/etc",
                "these files of /etc are others than those of /usr/etc: /etc/a",
                "these files of /usr/etc are not in /etc: /usr/etc/only",
            ],
        ),
        ("buildah-injected", {"etc/hostname": b"", "etc/resolv.conf": b""}, ["/etc/hostname, /etc/resolv.conf"]),
        ("selinux-policy", {"etc/selinux/config": POLICY["etc/selinux/config"]}, ["file_contexts is missing, and"]),
        ("selinux-policy", {"etc/selinux/targeted/": b""}, ["has a policy but no config that names it"]),
        (
            "selinux-kernel-policy",
            {**POLICY, "etc/selinux/p/policy/policy.33": None},
            ["no /etc/selinux/p/policy/policy.*: systemd stops the boot"],
        ),
        # To composefs-rs, the last line that matches counts: no literal beats it.
        ("selinux-rules", {**POLICY, CONTEXTS: LITERAL, "lit": b""}, ["composefs-rs label /lit differently"]),
        ("sysusers", {"etc/passwd": PASSWD}, ["users that no file in sysusers.d makes: root, web;"]),
        (
            "sysusers",
            {"etc/passwd": PASSWD, "usr/lib/sysusers.d/a.conf": SYSUSERS, "etc/group": GROUP + b"games:x:60:\n"},
            ["groups that no file in sysusers.d makes: games;"],
        ),
        (
            "sysusers",
            {"etc/passwd": PASSWD, "usr/lib/sysusers.d/a.conf": SYSUSERS, "etc/sysusers.d/a.conf": b""},
            ["users that no file in sysusers.d makes: root, web;"],
        ),
        ("sysusers", {"usr/lib/sysusers.d/a.conf": b'u "root\n'}, ["/sysusers.d/a.conf has a line with an open quote"]),
        ("var-log", {"var/log/dpkg.log": b"x"}, ["logs of the build, which go to every machine: /var/log/dpkg.log"]),
        ("var-tmpfiles", {"var/lib/web/x": b""}, ["version of the image: /var/lib, /var/lib/web, /var/lib/web/x"]),
        (
            "var-tmpfiles",
            {f"{TMPFILES}/var.conf": b"d /var/lib\n", "var/lib/web/": b"", f"{TMPFILES}/web.txt": WEB},
            ["later version of the image: /var/lib/web"],
        ),
        ("var-tmpfiles", {"var/data": b"", f"{TMPFILES}/a.conf": b"d /var/%m\n"}, ["version of the image: /var/data"]),
    ],
)  # fmt: skip
def test_it_is_found(check: str, changes: Changes, said: list[str]) -> None:
    """P.12: bootc's `container lint`, and what more a verified root wants."""
    texts = found(changes, check)
    assert len(texts) == len(said), texts
    for text, part in zip(texts, said, strict=True):
        assert part in text


@pytest.mark.parametrize(
    ("check", "changes"),
    [
        ("init", {"usr/lib/systemd/systemd": None, "sbin/init": b"#!/bin/sh\n"}),
        ("systemd", {"sbin/init": None}),
        ("systemd", {"usr/lib/systemd/systemd": None, "lib/systemd/systemd": b"\x7fELF"}),
        ("os-release", {"usr/lib/os-release": None, "etc/os-release": b"ID=x\n"}),
        ("baseimage-root", BOOTC),
        ("baseimage-composefs", OSTREE),
        ("nonempty-boot", {f"boot/{name}": b"" for name in ("vmlinuz", "vmlinuz-6", "initrd.img-6", "config-6")}),
        ("nonempty-boot", {"boot/EFI/Linux/": b"", "boot/loader/entries/": b"", "boot/composefs/": b""}),
        ("nonempty-run-tmp", {"run/systemd/resolve/stub-resolv.conf": b""}),
        ("nonempty-run-tmp", {"run/systemd/resolve/": b""}),
        ("var-run", {"var/run": Path("../run")}),
        ("read-only-home", {"home": None, "root": None}),
        (
            "read-only-home",
            {"home": None, "home/": b"", "usr/lib/composefs/setup-root-conf.toml": b"[root]\ntransient = true\n"},
        ),
        ("machine-identity", {"etc/machine-id": b"", "etc/ssh/ssh_host_rsa_key.pub": b"k"}),
        ("machine-identity", {"var/lib/dbus/machine-id": Path("/etc/machine-id")}),
        ("utf8", {"usr/smörgås": b""}),
        ("etc-usretc", {"usr/share/etc/": b""}),
        ("buildah-injected", {"etc/hostname": b"name\n", "etc/resolv.conf": Path("../run/resolv.conf")}),
        ("selinux-policy", POLICY),
        ("selinux-kernel-policy", POLICY),
        ("selinux-rules", POLICY),
        (
            "selinux-kernel-policy",
            {
                **POLICY, "etc/selinux/config": b"SELINUX=disabled\nSELINUXTYPE=p\n",
                "etc/selinux/p/policy/policy.33": None,
            },
        ),
        ("sysusers", {"etc/passwd": PASSWD, "etc/group": GROUP, "usr/lib/sysusers.d/a.conf": SYSUSERS}),
        ("var-log", {"var/log/lastlog": b"", "var/log/README": Path("../../usr/share/doc/README")}),
        ("var-tmpfiles", {"var/lib/dpkg/status": b"", "var/cache/apt/": b"", f"{TMPFILES}/a.conf": b"d /var/lib\n"}),
        (
            "var-tmpfiles",
            {
                "var/lib/web/index": b"x", "var/lib/copied/deep/file": b"",
                f"{TMPFILES}/a.conf": WEB, "etc/tmpfiles.d/b.conf": b'd "/var/lib"\n',
            },
        ),
        # A line speaks of what its path leads to: /srv is a symlink into /var.
        (
            "var-tmpfiles",
            {"srv": Path("var/srv"), "var/srv/www/": b"", f"{TMPFILES}/a.conf": b"d /srv/www\nd /var/srv\n"},
        ),
    ],
)  # fmt: skip
def test_it_is_not_found_where_it_is_not(check: str, changes: Changes) -> None:
    assert found(changes, check) == []


def test_what_an_overlay_covers_can_be_written() -> None:
    changes: Changes = {"home": None, "home/": b""}
    assert found(changes, "read-only-home", verity=VerityOptions(overlays=(Overlay("/home"),))) == []
    assert len(found(changes, "read-only-home", verity=VerityOptions())) == 1


def test_names_cannot_steer_a_terminal() -> None:
    (text,) = found({"tmp/\x1b[2J": b""}, "nonempty-run-tmp")
    assert text.endswith(r": /tmp/\x1b[2J")
    (text,) = found({"etc/passwd": b"\x1b[2J:x:0:0::/:/bin/sh\n"}, "sysusers")
    assert r"makes: \x1b[2J;" in text


def test_var_that_lies_over_the_image_is_no_trap() -> None:
    """P.10"""
    changes: Changes = {"var/data": b""}
    assert found(changes, "var-tmpfiles", verity=VerityOptions()) == []
    overlay = {**changes, "usr/lib/composefs/setup-root-conf.toml": b'[var]\nmount = "overlay"\n'}
    assert found(overlay, "var-tmpfiles") == []
    assert len(found({**changes, "usr/lib/composefs/setup-root-conf.toml": b"[var]\n"}, "var-tmpfiles")) == 1


def test_many_paths_are_counted() -> None:
    (text,) = found({f"tmp/{number}": b"" for number in range(8)}, "nonempty-run-tmp")
    assert text.endswith(": /tmp/0, /tmp/1, /tmp/2, /tmp/3, /tmp/4 and 3 more")
