"""How an image was converted, kept in its boot record, so that its next version is converted alike."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, get_args

from oci2boot.boot.dracut import DracutOptions
from oci2boot.boot.initrd import InitrdName
from oci2boot.boot.loader import EnrollMode, LoaderName
from oci2boot.errors import FormatError, TargetError
from oci2boot.formats.file_contexts.specs import Rules
from oci2boot.formats.x509 import to_pem
from oci2boot.oci.manifest import Platform
from oci2boot.oci.source import SourceOptions
from oci2boot.rootfs.verity import VerityOptions
from oci2boot.store.images import Bootable
from oci2boot.tree.prepare import Xattrs
from oci2boot.workflows.keys.signing import read_trusted
from oci2boot.workflows.requests import (
    BootOptions,
    ConvertRequest,
    ErofsVersion,
    FlowChoice,
    KargStyle,
    TreeOptions,
    parse_source,
)

BUILDERS: Final = ("auto", "builtin")
"""Of UKIs, that are the same on every machine; a path is not."""


def remembered(request: ConvertRequest) -> dict[str, Any]:
    """Return what the record keeps: nothing secret, and nothing that it says elsewhere, as the architecture."""
    found: dict[str, Any] = {"tls_verify": request.options.tls_verify}
    if not request.tree.bootable:
        found["plain"] = True
    if request.options.platform and request.options.platform.variant:
        found["platform"] = str(request.options.platform)
    if request.uki_layer is not None:
        found["uki_layer"] = request.uki_layer
    if request.verity:
        found["verity"] = request.verity.to_json()
    if boot := request.boot:
        found |= {
            "kernel": boot.kernel,
            "kargs": list(boot.kargs),
            "karg_style": boot.karg_style,
            "ukify": boot.ukify if boot.ukify in BUILDERS else "auto",
            "flow": boot.flow,
            "uki": boot.uki,
            "allow_missing_verity": boot.allow_missing_verity,
            "loader": boot.loader,
            "timeout": boot.timeout,
            "signed": boot.signing is not None,
            "secure_boot_enroll": boot.secure_boot_enroll,
            "console": boot.console,
            "size_limit": boot.size_limit,
            "initrd": boot.initrd,
            "initrd_tools": list(boot.initrd_tools),
            "dracut": boot.dracut.to_json(),
            "db": [to_pem("CERTIFICATE", certificate.der).decode() for certificate in read_trusted(list(boot.db))],
        }
    return found


def request_again(bootable: Bootable, repo: Path, scratch: Path, given: BootOptions) -> ConvertRequest:
    """Return the request for the same image as it is now.

    `given` brings what no record can hold, keys above all; certificates go to files in `scratch`.
    """
    kept = bootable.options
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
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FormatError(f"the record of {bootable.name} cannot be read", hint="convert the image again") from error
    if kept.get("signed") and given.signing is None and bootable.flow != "sealed":
        raise TargetError(
            f"{bootable.name} was signed when it was converted: its next version would not boot without a signature",
            hint="--secureboot-key and --secureboot-certificate sign it; a sealed image needs no key here",
        )
    return ConvertRequest(
        source=parse_source(bootable.source),
        repo=repo,
        name=bootable.name,
        options=options,
        tree=rules,
        boot=replace(boot, signing=given.signing, db=given.db or boot.db),
        uki_layer=layer,
        verity=verity,
        root_signing=given.signing,
    )


def _boot_options(kept: Mapping[str, Any], scratch: Path) -> BootOptions:
    default = BootOptions()
    db = []
    for number, certificate in enumerate(kept.get("db", [])):
        path = scratch / f"db{number}.pem"
        path.write_text(certificate, encoding="ascii")
        db.append(path)
    return BootOptions(
        kernel=kept.get("kernel"),
        kargs=tuple(map(str, kept.get("kargs", ()))),
        karg_style=_one_of(kept.get("karg_style", default.karg_style), KargStyle),
        ukify=str(kept.get("ukify", default.ukify)),
        flow=_one_of(kept.get("flow", default.flow), FlowChoice),
        uki=kept.get("uki"),
        allow_missing_verity=kept.get("allow_missing_verity") is True,
        db=tuple(db),
        loader=_one_of(kept.get("loader", default.loader), LoaderName),
        timeout=int(kept.get("timeout", default.timeout)),
        secure_boot_enroll=_one_of(kept["secure_boot_enroll"], EnrollMode) if kept.get("secure_boot_enroll") else None,
        console=kept.get("console"),
        size_limit=int(kept["size_limit"]) if kept.get("size_limit") else None,
        initrd=_one_of(kept.get("initrd", default.initrd), InitrdName),
        initrd_tools=tuple(map(str, kept.get("initrd_tools", ()))),
        dracut=DracutOptions.parse(**kept.get("dracut", {})),
    )


def _one_of(value: Any, words: Any) -> Any:
    if value not in get_args(words):
        raise ValueError
    return value
