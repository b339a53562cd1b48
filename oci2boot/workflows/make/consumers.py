"""Who else boots a UKI, and by what they know a root file system: digests as each of them computes them.

composefs-rs 0.9, `cfsctl compute-karg`: `composefs=` stands for EROFS format V2, `composefs.digest=v1-…` for V1; its
setup-root walks the arguments in order and mounts the first that the disk has. bootc has sha512 alone, and before 1.17
one argument (bootc#2248).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal

from oci2boot.digest import Hash
from oci2boot.errors import FormatError
from oci2boot.formats.cmdline import ComposefsArg
from oci2boot.workflows.requests import BootOptions, ErofsVersion, KargStyle, TreeOptions

Consumer = Literal["bootc", "composefs-rs"]


@dataclass(frozen=True, slots=True)
class Preset:
    """What a consumer expects."""

    hash: Hash
    erofs_version: ErofsVersion
    karg_style: KargStyle


PRESETS: Final[Mapping[Consumer, Preset]] = MappingProxyType(
    {"bootc": Preset("sha512", 2, "composefs"), "composefs-rs": Preset("sha512", 1, "digest")}
)


def settle(
    consumer: Consumer | None, algorithm: Hash | None, tree: TreeOptions, boot: BootOptions
) -> tuple[Hash | None, TreeOptions, BootOptions]:
    """Return hash, rules and form of the argument for a consumer; both of these label by the rules of composefs-rs.

    Raises `FormatError` where something else was asked for.
    """
    if consumer is None:
        return algorithm, tree, boot
    preset = PRESETS[consumer]
    usual_tree, usual_boot = TreeOptions(), BootOptions()
    for option, asked, usual, wanted in (
        ("--hash", algorithm, None, preset.hash),
        ("--erofs-version", tree.erofs_version, usual_tree.erofs_version, preset.erofs_version),
        ("--selinux-rules", tree.selinux_rules, usual_tree.selinux_rules, "composefs-rs"),
        ("--karg-style", boot.karg_style, usual_boot.karg_style, preset.karg_style),
    ):
        if asked not in (usual, wanted):
            raise FormatError(
                f"{option} {asked}, and --for {consumer}, which expects {wanted}", hint="leave one of the two out"
            )
    return (
        preset.hash,
        replace(tree, erofs_version=preset.erofs_version, selinux_rules="composefs-rs"),
        replace(boot, karg_style=preset.karg_style),
    )


@dataclass(frozen=True, slots=True)
class Accepted:
    """Whether a consumer would boot by these arguments, and what it takes them for."""

    consumer: str
    boots: bool
    why: str

    def to_json(self) -> dict[str, object]:
        return {"consumer": self.consumer, "boots": self.boots, "why": self.why}


def accepting(arguments: Sequence[ComposefsArg], glue: str | None, told: Sequence[str]) -> Iterator[Accepted]:
    """Say of each consumer whether it boots a UKI with these arguments on one command line.

    `glue` is whose code is in its initramfs; `told` are the digests that this initramfs promises by itself.
    """
    why = _refused_here(arguments, glue, told)
    yield Accepted("oci2boot", boots=why is None, why=why or "by any EROFS format, from a store of such a hash")
    formats = ", ".join(f"{'V1' if one.version == 1 else 'V2'} by {one.digest.algorithm}" for one in arguments)
    taken = f"it takes this for EROFS format {formats}"
    yield Accepted("composefs-rs", boots=glue == "composefs-setup-root", why=taken)
    if all(argument.digest.algorithm != "sha512" for argument in arguments):
        yield Accepted("bootc", boots=False, why="it has sha512 alone")
        return
    one = len(arguments) == 1 and arguments[0].version is None
    yield Accepted("bootc", boots=glue == "bootc", why=taken if one else f"{taken}; before 1.17, one composefs= alone")


def _refused_here(arguments: Sequence[ComposefsArg], glue: str | None, told: Sequence[str]) -> str | None:
    if glue != "oci2boot":
        return f"its glue is not in the initramfs, which has {f'that of {glue}' if glue else 'none'}"
    if told and not {str(argument.digest) for argument in arguments} <= set(told):
        return "its initramfs promises other digests"
    if len(arguments) > 1 and not told:
        return "of several digests it takes those that its initramfs promises, and there are none"
    return None
