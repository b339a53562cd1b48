import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.digest import VerityDigest
from oci2boot.errors import Error, FormatError, LimitError
from oci2boot.formats import cmdline
from oci2boot.formats.cmdline import ComposefsArg
from tests.formats.cmdlines import REFUSED, SHA256
from tests.witness import program

SHA512 = (
    "6f06b5e82420abec546d6e6d3ddd612c50cfa9b707c129345b7ec16f456b92fe"
    "35df68999b042e1a6a70dfe75f2fed8cf9f67afd0bf08d2374678d75e2f65a02"
)


# lib/cmdline.c, next_arg(): a quote toggles, white space inside quotes belongs to the word; the last quote may miss.
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("rw rhgb  quiet\n", ["rw", "rhgb", "quiet"]),
        ('dyndbg="file a.c +p" x', ['dyndbg="file a.c +p"', "x"]),
        ('"a b=c d" e', ['"a b=c d"', "e"]),
        ('a"b c"d e', ['a"b c"d', "e"]),
        ('x "no end', ["x", '"no end']),
        ("", []),
    ],
)
def test_words_end_where_the_kernel_ends_them(line: str, words: list[str]) -> None:
    assert cmdline.split(line) == words


WORDS = st.builds(
    "{}{}".format,
    st.sampled_from(["rw", "a.b", "console", "x-y"]),
    st.sampled_from(["", "=", "=ttyS0,115200n8", '="a  b"', '=a" "b', "=/dev/x"]),
)


@given(st.lists(WORDS, max_size=20))
def test_joined_words_split_into_themselves(words: list[str]) -> None:
    assert cmdline.split(cmdline.join(words)) == words


@pytest.mark.parametrize("words", [["a b"], ["a\n"], ['"a', "b"], ["\u00e4"], ["a\0"], [""]])
def test_words_that_the_kernel_would_take_apart_are_refused(words: list[str]) -> None:
    with pytest.raises(FormatError):
        cmdline.join(words)


def test_a_line_that_the_kernel_would_cut_off_is_refused() -> None:
    cmdline.join(["a" * 2047])
    with pytest.raises(LimitError, match="2048 bytes"):
        cmdline.join(["a" * 2048])


def test_a_section_ends_at_its_first_nul() -> None:
    """dracut --uefi and mkosi write one."""
    assert cmdline.read_section(b"rw composefs=ab\0\0composefs=cd") == "rw composefs=ab"
    assert cmdline.read_section(b"rw\n") == "rw"


def hashed(hex_digits: str) -> VerityDigest:
    return VerityDigest.parse(hex_digits)


@pytest.mark.parametrize(
    ("word", "argument"),
    [
        (f"composefs={SHA256}", ComposefsArg(hashed(SHA256))),
        (f"composefs=?{SHA512}", ComposefsArg(hashed(SHA512), insecure=True)),
        (f"composefs.digest=v1-sha256-12:{SHA256}", ComposefsArg(hashed(SHA256), 1)),
        (f"composefs.digest=?v1-sha512-12:{SHA512}", ComposefsArg(hashed(SHA512), 1, insecure=True)),
        (f"composefs.digest=v2-sha512-12:{SHA512}", ComposefsArg(hashed(SHA512), 2)),
    ],
)
def test_both_forms_of_the_argument_are_read_and_written(word: str, argument: ComposefsArg) -> None:
    assert ComposefsArg.parse(word) == argument
    assert str(argument) == word


def test_the_argument_that_cfsctl_prints_is_read(tmp_path: Path) -> None:
    for directory in ("usr/bin", "boot", "sysroot"):
        (tmp_path / "root" / directory).mkdir(parents=True)
    argv = [program("cfsctl"), "--hash", "sha256", "compute-karg", str(tmp_path / "root")]
    printed = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    argument = ComposefsArg.parse(printed)
    assert (str(argument), argument.version, argument.digest.algorithm) == (printed, 1, "sha256")


@pytest.mark.parametrize("word", REFUSED)
def test_look_alikes_of_the_argument_are_refused(word: str) -> None:
    with pytest.raises(FormatError):
        cmdline.find_composefs(["rw", word])


def test_other_arguments_pass() -> None:
    words = ["rw", "composefsx=1", "rd.composefs=1", 'a="composefs=1"']
    assert cmdline.find_composefs([*words, f"composefs={SHA256}"]) == [ComposefsArg(hashed(SHA256))]


@given(st.text(max_size=60))
def test_any_text_is_an_argument_or_an_error(text: str) -> None:
    try:
        words = cmdline.split(text)
        for argument in cmdline.find_composefs(words):
            assert str(argument) in words
    except Error:
        pass
