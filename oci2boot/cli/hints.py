"""The option that is a way out of an error: below the command line, errors speak of things."""

from collections.abc import Mapping
from typing import Final

from oci2boot import errors
from oci2boot.errors import Error

OPTIONS: Final[Mapping[type[Error], str]] = {
    errors.PlatformError: "--platform chooses one",
    errors.UntrustedError: "--tls-verify=false accepts it anyway, and plain HTTP",
    errors.WrongStoreError: "--repo names another place",
    errors.ImageNameError: "--name gives it another one",
    errors.KernelError: "--kver chooses one",
    errors.InitramfsError: "--initrd builtin makes one of the image's own files",
    errors.FlowError: "--flow local builds a UKI here, --flow sealed takes one that promises the image",
    errors.StaleError: "made in a stage of the build, it needs the --times that the layers have",
    errors.NoStubError: "--flow type1 boots the image without one, with an unsigned command line",
    errors.DeviceTreeError: "--devicetree names one",
    errors.HashError: "--hash and --repo say so",
    errors.OptionalVerityError: "--allow-missing-verity accepts it",
    errors.ShimError: "--loader systemd-boot starts it without shim",
    errors.UnsealedError: "--allow-unsealed accepts it",
    errors.OtherSignerError: "--allow-other-signer accepts it",
    errors.DowngradeError: "--allow-downgrade accepts it",
    errors.LintError: "--skip NAME leaves a check out, and without --strict all of them only warn",
    errors.ReadOnlyError: "--overlay /PATH",
    errors.NoVerityError: "leave out --no-verity, or the others",
    errors.KargFormError: "--verity-karg systemd, or veritytab",
    errors.LoaderError: "--secureboot-key signs it here, --loader none leaves it to the one that is there",
    errors.PassphraseError: "--secureboot-passphrase-file FILE",
    errors.EncryptedError: "--luks-passphrase-file FILE",
    errors.OccupiedError: "--wipe replaces what is there",
    errors.NothingKeptError: "--overlay",
    errors.RootSizeError: "--root-size",
    errors.TreeSizeError: "--verity-partition-size, --verity-embedded",
    errors.NoBootDirectoryError: "--esp DIR",
    errors.NoMachineError: "--sysroot DIR --esp DIR say where it is",
}


def hint_of(error: Error) -> str | None:
    """Return what the error says to do, and the option for it, each as a sentence."""
    said, option = error.hint, OPTIONS.get(type(error))
    if said and option:
        return f"{said}{'' if said.endswith(('.', '?')) else '.'} {option}"
    return said or option
