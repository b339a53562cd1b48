"""Every failure that a user can meet: one sentence, and a hint at what to do."""


class Error(Exception):
    """A failure to be shown as one sentence; the command line turns it into exit status 1."""

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class FormatError(Error):
    """Bytes or text that do not follow their format."""


class DigestError(Error):
    """Content that is not what its digest promised."""


class LimitError(Error):
    """Input beyond a named limit."""


class SourceError(Error):
    """An image that cannot be had: not there, not allowed, or broken on the way."""


class StoreError(Error):
    """A repository that cannot be used or is damaged."""


class ImageError(Error):
    """An image that cannot become a bootable root file system."""


class DeviceTreeError(ImageError):
    """Something that boots the image needs a device tree, and none was chosen."""


class StaleError(ImageError):
    """A UKI that promises another tree than the image that it is in."""


class TargetError(Error):
    """A place that cannot take the installation."""


class ToolError(Error):
    """Another program that is missing or failed."""


class SignatureError(Error):
    """A signature that does not hold, or a key or certificate that cannot sign."""


# Failures with a way out. Their hints speak of things, and the command line adds the option by the class.


class PlatformError(SourceError):
    """An index with no image for the platform asked for, or with several."""


class UntrustedError(SourceError):
    """A registry that is not encrypted, or cannot prove who it is."""


class WrongStoreError(StoreError):
    """A place where another store is, or something else."""


class ImageNameError(StoreError):
    """A name that no image can have."""


class KernelError(ImageError):
    """An image with several kernels: one must be chosen."""


class InitramfsError(ImageError):
    """An image whose own initramfs is not there, or would not do."""


class FlowError(ImageError):
    """An image whose own UKIs are not what was asked for."""


class NoStubError(ImageError):
    """An image without systemd-stub, which a UKI is made from."""


class HashError(ImageError):
    """An image whose UKI promises it by another hash than the store's."""


class OptionalVerityError(ImageError):
    """A UKI that boots without verification, too."""


class ShimError(ImageError):
    """A program that shim does not start."""


class UnsealedError(SignatureError):
    """An image that is sealed or signed less than the one that a machine has."""


class OtherSignerError(SignatureError):
    """An image that another key signed than the one that a machine has."""


class DowngradeError(ImageError):
    """An image that is older than the one that a machine has."""


class LintError(ImageError):
    """An image that does not pass a check that it was to pass."""


class ReadOnlyError(ImageError):
    """A root file system that cannot be written where it is to be."""


class NoVerityError(FormatError):
    """Options of dm-verity for an image that is to have none."""


class KargFormError(FormatError):
    """Kernel arguments that do not say where the hash tree is."""


class LoaderError(SignatureError):
    """Firmware would refuse the boot loader, and so never come to the UKI."""


class PassphraseError(SignatureError):
    """A private key whose passphrase is not given."""


class EncryptedError(FormatError):
    """A partition that cannot be read without its passphrase."""


class OccupiedError(TargetError):
    """A target with something on it."""


class NothingKeptError(TargetError):
    """A place of the machine where it keeps nothing."""


class RootSizeError(TargetError):
    """A root partition that is too small for the image."""


class TreeSizeError(TargetError):
    """A partition that is too small for the hash tree, or has no use."""


class NoBootDirectoryError(TargetError):
    """A machine whose EFI system partition is not at hand."""


class NoMachineError(TargetError):
    """A root that no deployment of ours is on."""
