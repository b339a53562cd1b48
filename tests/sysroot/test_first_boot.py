"""What a new machine is told: files where Debian's tools look for them. hostname(5), systemd.exec(5)."""

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from oci2boot.errors import Error, FormatError, TargetError
from oci2boot.formats.file_contexts.policy import Policy
from oci2boot.sysroot.first_boot import FirstBoot, with_first_boot
from oci2boot.tree.model import SELINUX_XATTR, Directory, Inode, Metadata, Symlink, walk
from oci2boot.workflows.make.first_boot import read_first_boot, read_secret
from tests.sysroot.images import ETC, SSH, directory, file, image, read
from tests.witness import program


def told(
    settings: FirstBoot, tree: Directory, policy: Policy | None = None
) -> tuple[dict[str, Inode], Directory | None]:
    upper, var = with_first_boot(settings, tree, policy, read)
    return {path.decode(): inode for path, inode in walk(upper)} if upper else {}, var


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys") / "id"
    subprocess.run([program("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return path


def keys(key: Path) -> bytes:
    return key.with_suffix(".pub").read_bytes()


def test_nothing_said_is_nothing_written() -> None:
    assert with_first_boot(FirstBoot(), image(), None, read) == (None, None)


def test_the_upper_directory_holds_the_new_files_only() -> None:
    """P.8: directories of the image keep owner and mode, for overlayfs takes the upper one's."""
    upper, var = told(FirstBoot("box.example", None, {"wifi.psk": b"\0secret"}), image())
    assert list(upper) == ["/", "/credstore", "/credstore/wifi.psk", "/hostname"]
    assert read(upper["/hostname"]) == b"box.example\n"  # type: ignore[arg-type]
    assert read(upper["/credstore/wifi.psk"]) == b"\0secret"  # type: ignore[arg-type]
    assert [upper[path].meta.mode for path in upper] == [0o755, 0o700, 0o600, 0o644]
    assert upper["/"].meta == ETC
    assert var is None


def test_keys_go_where_a_drop_in_sends_sshd(key: Path) -> None:
    """/root is in the read-only image."""
    upper, var = told(FirstBoot(ssh_keys=keys(key)), image())
    assert var is None
    assert read(upper["/ssh/authorized_keys.d/root"]) == keys(key)  # type: ignore[arg-type]
    dropin = read(upper["/ssh/sshd_config.d/10-oci2boot.conf"])  # type: ignore[arg-type]
    assert dropin.split() == [b"AuthorizedKeysFile", b".ssh/authorized_keys", b"/etc/ssh/authorized_keys.d/%u"]
    assert upper["/ssh"].meta == SSH
    assert "/ssh/sshd_config" not in upper


@pytest.mark.parametrize("there", [True, False])
def test_keys_go_into_a_home_in_var(key: Path, there: bool) -> None:
    tree = image(sshd=None, root=Symlink(Metadata(mode=0o777), b"var/roothome"))
    home = Metadata(mode=0o700, mtime=99)
    if there:
        var = tree.entries[b"var"]
        assert isinstance(var, Directory)
        filled = replace(var, entries={**var.entries, b"roothome": directory({b".profile": file(b"x")}, home)})
        tree = replace(tree, entries={**tree.entries, b"var": filled})
    upper, new_var = told(FirstBoot(ssh_keys=keys(key)), tree)
    assert upper == {}
    assert new_var
    found = {path.decode(): inode for path, inode in walk(new_var)}
    assert read(found["/roothome/.ssh/authorized_keys"]) == keys(key)  # type: ignore[arg-type]
    assert [found[f"/roothome{path}"].meta.mode for path in ("", "/.ssh", "/.ssh/authorized_keys")] == [
        0o700,
        0o700,
        0o600,
    ]
    assert {"/lib", "/spool"} <= set(found)
    assert ("/roothome/.profile" in found) == there


@pytest.mark.parametrize("sshd", [None, b"Port 22\n#Include /etc/ssh/sshd_config.d/*.conf\n"])
def test_keys_that_nobody_would_find_are_refused(key: Path, sshd: bytes | None) -> None:
    with pytest.raises(TargetError, match="would not find keys of root"):
        told(FirstBoot(ssh_keys=keys(key)), image(sshd))


def test_new_files_are_labelled_by_the_image_s_policy(key: Path) -> None:
    policy = Policy.parse(
        {"file_contexts": b"/.*\tu:o:any:s0\n/etc/hostname\t--\tu:o:hostname:s0\n"}, "test", "libselinux"
    )
    upper, _ = told(FirstBoot("box", keys(key)), image(), policy)
    labels = {path: inode.meta.xattrs.get(SELINUX_XATTR) for path, inode in upper.items()}
    assert labels["/hostname"] == b"u:o:hostname:s0"
    assert labels["/ssh/authorized_keys.d"] == labels["/ssh/authorized_keys.d/root"] == b"u:o:any:s0"


@pytest.mark.parametrize("name", ["", "-a", "a-", "a..b", "a b", "a" * 65, "ä", "a/b", "a\n", "a" * 64])
def test_what_is_no_host_name_is_refused(name: str) -> None:
    with pytest.raises(FormatError, match="not a host name"):
        FirstBoot(name).check()


@pytest.mark.parametrize("words", ["novalue", "../x=1", "=1", "a/b=1", ".x=1", "n" * 256 + "=1"])
def test_what_is_no_credential_is_refused(words: str) -> None:
    with pytest.raises(FormatError, match="credential"):
        read_first_boot(None, [], [words])


def test_a_private_key_is_refused(key: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="private"):
        read_first_boot(None, [key], [])
    (tmp_path / "other").write_text("hello\n")
    with pytest.raises(FormatError, match="not a list of public SSH keys"):
        read_first_boot(None, [tmp_path / "other"], [])


def test_credentials_come_as_words_or_from_files(key: Path, tmp_path: Path) -> None:
    (tmp_path / "value").write_bytes(b"from a file\n")
    found = read_first_boot("box", [key.with_suffix(".pub")] * 2, ["a=b=c", f"d=@{tmp_path / 'value'}"])
    assert found == FirstBoot("box", keys(key) * 2, {"a": b"b=c", "d": b"from a file\n"})
    with pytest.raises(FormatError, match="two credentials"):
        read_first_boot(None, [], ["a=1", "a=2"])
    assert "b=c" not in repr(found)


@pytest.mark.parametrize(
    ("text", "passphrase"), [(b"sesame", b"sesame"), (b"sesame 2 \n", b"sesame 2 "), (b"sesame\r\n", b"sesame")]
)
def test_a_passphrase_is_what_will_be_typed(text: bytes, passphrase: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(text)
    secret = read_secret(tmp_path / "file")
    assert secret
    assert secret.passphrase == passphrase
    assert "sesame" not in repr(secret)


@pytest.mark.parametrize("text", [b"", b"\n", b"one\ntwo", b"a\0b", b"x" * 513, b"x" * 5000])
def test_what_cannot_be_typed_is_no_passphrase(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(text)
    with pytest.raises(Error, match=r"one line|at most"):
        read_secret(tmp_path / "file")


def test_the_memory_that_a_passphrase_takes_is_bounded(tmp_path: Path) -> None:
    """P.8: cryptsetup counts in KiB; without a passphrase there is nothing to take it for."""
    (tmp_path / "file").write_bytes(b"sesame")
    secret = read_secret(tmp_path / "file", 64 << 20)
    assert secret
    assert secret.pbkdf_memory == 65536
    for memory in (0, (32 << 10) - 1, (4 << 30) + 1):
        with pytest.raises(FormatError, match="from 32K to 4G"):
            read_secret(tmp_path / "file", memory)
    assert read_secret(None) is None
    with pytest.raises(FormatError, match="not encrypted"):
        read_secret(None, 64 << 20)
