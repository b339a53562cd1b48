"""Options that several commands share, besides those that requests bring."""

from typing import Annotated

from oci2boot.cli.groups import Only
from oci2boot.cli.output import Output
from oci2boot.workflows.machine.place import AskedPlace
from oci2boot.workflows.make.consumers import Consumer
from oci2boot.workflows.options import Option
from oci2boot.workflows.requests import BootOptions, Fetching, SigningOptions, TreeOptions

BootableTree = Annotated[TreeOptions, Only("selinux_rules", "xattrs", "erofs_version", "times", "times_below")]
Uki = Annotated[
    BootOptions,
    Only(
        *(
            "kargs",
            "karg_style",
            "kernel",
            "ukify",
            "size_limit",
            "read",
            "loader",
            "console",
            "initrd",
            "initrd_tools",
            "strip_kernel",
            "both_hashes",
        ),
    ),
]
"""What a UKI is built of, and what is signed with it to start it."""
For = Annotated[
    Consumer | None,
    Option("--for", "who is to boot it: hash, EROFS format, labels and argument are as this one computes them"),
]
Signing = SigningOptions | None
SigningNow = Annotated[
    SigningOptions | None, Only("key", "certificate", "passphrase", "command", "tool", "pkcs11_module")
]
"""Without the ways that wait for another machine."""
SigningOrAnswer = Annotated[
    SigningOptions | None, Only("key", "certificate", "passphrase", "command", "tool", "pkcs11_module", "response")
]
"""Also by what another machine has answered already."""
Registry = Annotated[Fetching, Only("tls_verify", "authfile")]
Authfile = Annotated[Fetching, Only("authfile")]
TlsVerify = Annotated[Fetching, Only("tls_verify")]
AttestHook = Annotated[
    str | None,
    Option(
        "--attest-hook",
        "command to run with two files as arguments: the manifest of every path, and the PCRs that a TPM will hold",
        metavar="COMMAND",
    ),
]
AllowMissingVerity = Annotated[
    bool, Option("--allow-missing-verity", "mount even if the file system has no fs-verity: nothing is verified then")
]
DryRun = Annotated[bool, Option("--dry-run", "only show the plan; write nothing")]

JustJson = Annotated[Output, Only("as_json")]
JustQuiet = Annotated[Output, Only("quiet")]
Shown = Annotated[Output, Only("as_json", "quiet")]
"""Of what takes no time that is worth events."""

Mounted = Annotated[AskedPlace, Only("sysroot", "esp")]
"""Of what there is for deployments in directories alone."""
MountedRoot = Annotated[AskedPlace, Only("sysroot")]
