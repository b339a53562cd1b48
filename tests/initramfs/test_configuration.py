"""The configuration files of the initramfs: what setup-root reads under each shell, and what convert reads, are one."""

import random
import subprocess
from pathlib import Path

import pytest

from oci2boot.boot.configuration import RootConfiguration, configuration_files
from oci2boot.errors import ImageError
from oci2boot.formats.cmdline import ComposefsArg
from tests.boot.trees import read_inline, tree_of
from tests.initramfs.scripts import SETUP_ROOT, SHELLS, shell

TOML, OSTREE = "composefs/setup-root-conf.toml", "ostree/prepare-root.conf"
DEFAULT = "overlay bind false true maybe"
Files = dict[str, str]


def by_setup_root(name: str, files: Files, folder: Path) -> str:
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content.encode("latin-1"))
    argv = [*shell(name), str(SETUP_ROOT), "configuration", str(folder)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, errors="surrogateescape", env={})
    assert (done.returncode == 0) == (done.stderr == ""), done.stderr
    return done.stdout.strip() or "refused"


def by_convert(files: Files) -> str:
    tree = tree_of({path: content.encode("latin-1") for path, content in files.items()})
    found = RootConfiguration()
    try:
        for path, content in configuration_files(tree, read_inline):
            found = found.with_file(path, content)
    except ImageError:
        return "refused"
    flags = (str(flag).lower() for flag in (found.root_transient, found.sysroot_readonly))
    return " ".join((found.etc, found.var, *flags, found.composefs))


CASES: list[tuple[Files, str]] = [
    ({}, DEFAULT),
    # composefs-setup-root 0.9, `struct Config`: mount counts before transient
    ({f"usr/lib/{TOML}": '[etc]\nmount = "transient"\n[var]\nmount = "none"\n'}, "transient none false true maybe"),
    ({f"usr/lib/{TOML}": '[etc]\nmount = "bind"\ntransient = true\n'}, "bind bind false true maybe"),
    (
        {f"usr/lib/{TOML}": '[var]\nmount="overlay" # all of it\n[root]\ntransient=true'},
        "overlay overlay true true maybe",
    ),
    # O.3: /etc, then /usr/lib
    (
        {f"etc/{TOML}": "[root]\ntransient = true\n", f"usr/lib/{TOML}": "[etc]\ntransient = true\n"},
        "overlay bind true true maybe",
    ),
    # ostree-prepare-root(1), and what CentOS's and Fedora's bootc images ship
    ({f"usr/lib/{OSTREE}": "[composefs]\nenabled = yes\n[sysroot]\nreadonly = true\n"}, "overlay bind false true yes"),
    (
        {f"etc/{OSTREE}": "[composefs]\nenabled=verity\nkeypath=/a b\n[etc]\ntransient=true\n[root]\ntransient=true\n"},
        "transient bind true true verity",
    ),
    ({f"usr/lib/{OSTREE}": "[composefs]\nenabled = 1\n[sysroot]\nreadonly = false\n"}, "overlay bind false false yes"),
    # both: what composefs-setup-root's says, and the rest of ostree's
    (
        {
            f"etc/{OSTREE}": "[composefs]\nenabled = verity\n[etc]\ntransient = true\n[root]\ntransient = true\n",
            f"usr/lib/{TOML}": "[etc]\ntransient = false\n",
        },
        "overlay bind true true verity",
    ),
    *(
        ({f"usr/lib/{OSTREE}": f"[composefs]\nenabled = {value}\n"}, "refused")
        for value in ("no", "false", "0", "signed", '"no"', "perhaps", "", "yes no")
    ),
    *(
        ({f"usr/lib/{TOML}": text}, "refused")
        for text in (
            "transient = true\n",
            "[root]\ntransient = yes\n",
            "[root]\ntransient-ro = true\n",
            "[etc]\nmount = overlay\n",
            "[var]\nreadonly = true\n",
            "[boot]\n",
            "[etc]\r\ntransient = true\r\n",
            "x = [etc]\n",
            "[[etc]]\n",
        )
    ),
]


@pytest.mark.parametrize("name", SHELLS)
@pytest.mark.parametrize(("files", "expected"), CASES, ids=range(len(CASES)))
def test_what_is_read(name: str, files: Files, expected: str, tmp_path: Path) -> None:
    """O.3, O.4, O.12"""
    assert by_setup_root(name, files, tmp_path) == expected
    assert by_convert(files) == expected


def test_every_combination_is_read_alike(tmp_path: Path) -> None:
    """O.12: convert refuses what would not boot, and nothing else."""
    chance = random.Random(12)
    etc_var = ["transient = true", "transient=false", 'mount = "none"', 'mount\t=\t"bind"', 'mount="overlay" # "bind"']
    settings = {
        "[etc]": etc_var,
        "[var]": etc_var,
        " [root] ": ["transient = true", "transient = false"],
        "[sysroot]": ["readonly=true", "readonly = false"],
        "[composefs]": ["enabled = verity", 'enabled = "yes"', "enabled = maybe # a word", "keypath = /a = b"],
    }
    odd = ["mount = none", "= true", "é = 1", "transient", "[ etc]", "# [etc]", "", "\t", "enabled = no"]

    def table() -> str:
        name = chance.choice(list(settings))
        lines = [chance.choice(settings[name] if chance.random() < 0.97 else odd) for _ in range(chance.randrange(4))]
        return "\n".join([name, *lines])

    answers = set()
    for number in range(120):
        text = ["\n".join(table() for _ in range(chance.randrange(4))) for _ in "12"]
        files = {
            f"{chance.choice(('etc', 'usr/lib'))}/{path}": one for path, one in zip((TOML, OSTREE), text, strict=True)
        }
        folder = tmp_path / str(number)
        folder.mkdir()
        answer = by_setup_root(SHELLS[number % len(SHELLS)], files, folder)
        assert by_convert(files) == answer, files
        answers.add(answer)
    assert len(answers) > 10


@pytest.mark.parametrize(
    ("value", "words"),
    [("no", "nothing else to boot"), ("signed", "cannot check"), ("perhaps", "does not know: enabled")],
)
def test_convert_says_why_a_machine_would_not_boot(value: str, words: str) -> None:
    """O.4"""
    with pytest.raises(ImageError, match=words) as caught:
        RootConfiguration().with_file(b"etc/ostree/prepare-root.conf", f"[composefs]\nenabled = {value}\n".encode())
    assert "/etc/ostree/prepare-root.conf" in caught.value.message


def test_verity_that_the_image_demands_cannot_be_made_optional() -> None:
    """O.4, O.15"""
    demanded = RootConfiguration().with_file(b"c", b"[composefs]\nenabled = verity\n")
    demanded.check(ComposefsArg.parse(f"composefs={'ab' * 32}"))
    with pytest.raises(ImageError, match="demands fs-verity"):
        demanded.check(ComposefsArg.parse(f"composefs=?{'ab' * 32}"))
    RootConfiguration().check(ComposefsArg.parse(f"composefs=?{'ab' * 32}"))


def test_a_file_that_shells_would_read_differently_is_refused() -> None:
    """O.3: a shell leaves NULs out, or ends the line there."""
    tree = tree_of({f"etc/{TOML}": b"[root]\ntransient = fal\0se\n"})
    with pytest.raises(ImageError, match="holds a NUL"):
        list(configuration_files(tree, read_inline))
