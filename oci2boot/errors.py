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


class TargetError(Error):
    """A place that cannot take the installation."""


class ToolError(Error):
    """Another program that is missing or failed."""


class SignatureError(Error):
    """A signature that does not hold, or a key or certificate that cannot sign."""
