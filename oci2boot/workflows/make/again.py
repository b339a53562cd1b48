"""How an image was converted, kept in its boot record, so that its next version is converted alike."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints

from oci2boot.boot.dracut import DracutOptions
from oci2boot.errors import FormatError, TargetError
from oci2boot.formats.file_contexts.specs import Rules
from oci2boot.formats.x509 import Certificate, read_certificates, to_pem
from oci2boot.oci.manifest import Platform
from oci2boot.oci.reference import DirectoryReference
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.dmverity import VerityOptions
from oci2boot.store.images import LOOSE, Bootable
from oci2boot.tree.prepare import Xattrs
from oci2boot.tree.times import SECONDS, Times
from oci2boot.workflows.keys.signing import read_trusted
from oci2boot.workflows.options import without_none
from oci2boot.workflows.requests import BootOptions, ConvertRequest, ErofsVersion, TreeOptions
from oci2boot.workflows.sources import parse_source

BUILDERS: Final = ("auto", "builtin")
"""Of UKIs, that are the same on every machine; a path is not."""
APART: Final = frozenset({"ukify", "db", "dracut", "signing"})
"""Options of booting that a record does not hold as they are."""
OUTCOME: Final = "outcome"
"""Key of the record for what came of it: `boot.outcome`."""
OF_ONE_IMAGE: Final = ("kernel", "uki")
"""Options of booting that name a part of an image."""


def remembered(request: ConvertRequest) -> dict[str, Any]:
    """Return what the record keeps: nothing secret, and nothing that it says elsewhere, as the architecture."""
    found: dict[str, Any] = {"tls_verify": request.options.tls_verify}
    if not request.tree.bootable:
        found["plain"] = True
    if request.options.platform and request.options.platform.variant:
        found["platform"] = str(request.options.platform)
    if request.uki_layer is not None:
        found["uki_layer"] = request.uki_layer
    if isinstance(request.source, DirectoryReference):
        found["times"] = str(request.tree.times)
        if request.tree.times_below:
            found["times_below"] = str(request.tree.times_below)
    if request.verity:
        found["verity"] = request.verity.to_json()
    if boot := request.boot:
        for name in _kinds():
            value = getattr(boot, name)
            found[name] = list(value) if isinstance(value, tuple) else value
        found |= {
            "ukify": boot.ukify if boot.ukify in BUILDERS else "auto",
            "db": [to_pem("CERTIFICATE", certificate.der).decode() for certificate in read_trusted(list(boot.db))],
            "dracut": boot.dracut.to_json(),
            "signed": boot.signing is not None,
        }
    return found


def request_again(
    bootable: Bootable,
    repo: Path,
    scratch: Path,
    given: BootOptions,
    authfile: Path | None = None,
    *,
    unsigned: bool = False,
) -> ConvertRequest:
    """Return the request for the same image as it is now.

    `given` brings what no record can hold, keys above all; certificates go to files in `scratch`. With `unsigned` what
    was signed need not be so any more.
    """
    request, boot = _read(bootable, repo, scratch)
    db = given.db or boot.db
    # Signatures may be beside the image, and a UKI or root hash for which --db finds none is refused.
    elsewhere = unsigned or (bool(db) and bootable.flow == "local")
    if bootable.options.get("signed") and given.signing is None and bootable.flow != "sealed" and not elsewhere:
        raise TargetError(
            f"{bootable.name} was signed when it was converted: its next version would not boot without a signature",
            hint="--secureboot-key and --secureboot-certificate sign it; a sealed image needs no key here, nor does "
            "--db where `oci2boot attach` put signatures beside the image",
        )
    return replace(
        request,
        options=replace(request.options, authfile=authfile),
        boot=replace(boot, signing=given.signing, db=db),
        root_signing=given.signing,
    )


def request_like(
    bootable: Bootable, wanted: ConvertRequest, said: Collection[str], repo: Path, scratch: Path
) -> ConvertRequest:
    """Return the request for another image, to be made as this one was.

    `said` names the fields of `wanted.boot` that somebody asked for: they go before what is remembered, and kernel
    arguments behind it. What names a part of the one image, as its kernel, is not remembered for another.
    """
    request, kept = _read(bootable, repo, scratch)
    asked = wanted.boot or BootOptions()
    chosen: dict[str, Any] = {name: getattr(asked, name) for name in {*said, *OF_ONE_IMAGE, "signing"}}
    if "kargs" in said:
        chosen["kargs"] = tuple(dict.fromkeys((*kept.kargs, *asked.kargs)))
    return replace(
        request,
        source=wanted.source,
        name=wanted.name,
        # How a registry is reached was said of the other one.
        options=replace(wanted.options, platform=wanted.options.platform or request.options.platform),
        # The rules of a sealed image are its UKI's, and nobody's wish.
        tree=wanted.tree if bootable.flow == "sealed" else request.tree,
        boot=replace(kept, **chosen),
        uki_layer=wanted.uki_layer,
        root_signing=asked.signing,
    )


def _read(bootable: Bootable, repo: Path, scratch: Path) -> tuple[ConvertRequest, BootOptions]:
    """Return what an image's record remembers, without keys."""
    kept = bootable.options
    if bootable.flow in LOOSE:
        raise TargetError(
            f"{bootable.name} is booted by files that a boot loader of the board's own loads (--flow {bootable.flow})",
            hint="convert its next version, and give the new files to that boot loader",
        )
    try:
        boot = _boot_options(kept, scratch)
        platform = (
            Platform.parse(kept["platform"]) if kept.get("platform") else Platform("linux", bootable.architecture)
        )
        options = SourceOptions(platform, kept.get("tls_verify") is not False)
        layer = int(kept["uki_layer"]) if "uki_layer" in kept else None
        verity = VerityOptions.from_json(kept["verity"]) if "verity" in kept else None
        rules = TreeOptions(
            selinux_rules=_one_of(bootable.selinux_rules, Rules),
            xattrs=_one_of(bootable.xattrs, Xattrs),
            erofs_version=_one_of(bootable.root.erofs_version, ErofsVersion),
            times=Times.parse(kept["times"]) if "times" in kept else SECONDS,
            times_below=Path(kept["times_below"]) if "times_below" in kept else None,
        )
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise FormatError(f"the record of {bootable.name} cannot be read", hint="convert the image again") from error
    request = ConvertRequest(
        source=parse_source(bootable.source),
        repo=repo,
        name=bootable.name,
        options=options,
        tree=rules,
        uki_layer=layer,
        verity=verity,
    )
    return request, boot


def trusted_by(bootable: Bootable) -> list[Certificate]:
    """Return the certificates of `--db`, by which an image was taken."""
    try:
        return [one for text in bootable.options.get("db", []) for one in read_certificates(text.encode("ascii"))]
    except (TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the record of {bootable.name} cannot be read", hint="convert the image again") from error


def _kinds() -> dict[str, Any]:
    """Return the types of those options that stand in a record as they are, by their names in it."""
    return {name: kind for name, kind in get_type_hints(BootOptions).items() if name not in APART}


def _boot_options(kept: Mapping[str, Any], scratch: Path) -> BootOptions:
    """Read what `remembered` wrote; what an older version did not know is as it is by default."""
    db = []
    for number, certificate in enumerate(kept.get("db", [])):
        path = scratch / f"db{number}.pem"
        path.write_text(certificate, encoding="ascii")
        db.append(path)
    found = {name: _value(kept[name], kind) for name, kind in _kinds().items() if kept.get(name) is not None}
    dracut = DracutOptions.parse(**kept.get("dracut", {}))
    return BootOptions(**found, ukify=str(kept.get("ukify", "auto")), db=tuple(db), dracut=dracut)


def _value(value: Any, hint: Any) -> Any:
    kind, _ = without_none(hint)
    if get_origin(kind) is Literal:
        return _one_of(value, kind)
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError
        return tuple(map(str, value))
    return value is True if kind is bool else kind(value)


def _one_of(value: Any, words: Any) -> Any:
    if value not in get_args(words):
        raise ValueError
    return value
