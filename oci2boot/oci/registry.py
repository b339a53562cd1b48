"""Images in registries. OCI distribution-spec 1.1, "Pull"."""

import re
import time
from pathlib import Path
from typing import Final
from urllib.parse import urlencode, urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError, LimitError, SourceError
from oci2boot.oci.blob import Blob
from oci2boot.oci.client import RegistryClient, read_capped
from oci2boot.oci.documents import MAX_DOCUMENT
from oci2boot.oci.image import ImageSource
from oci2boot.oci.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_INDEX,
    SIGNATURES,
    Descriptor,
    Platform,
    parse_referrers,
    referrers_tag,
)
from oci2boot.oci.reference import RegistryReference

MAX_RESUMES: Final = 16
"""How often the connection for one blob may break."""

MAX_PAGES: Final = 16
"""Of a list of referrers."""

_NO_REFERRERS: Final = (400, 404, 405)
"""What a registry says that knows no such list."""
_ACCEPT: Final = ", ".join((*MANIFEST_TYPES, *INDEX_TYPES))
_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-")


class RegistrySource(ImageSource):
    def __init__(
        self, reference: RegistryReference, platform: Platform | None, *, tls_verify: bool, authfile: Path | None
    ) -> None:
        super().__init__(reference, platform)
        self.reference: RegistryReference = reference
        self._client = RegistryClient(reference, tls_verify=tls_verify, authfile=authfile)

    def _root(self) -> tuple[Descriptor, bytes]:
        name = self.reference.digest or self.reference.tag
        return self._get_manifest(str(name), self.reference.digest, f"the manifest of {self.reference}")

    def _document(self, descriptor: Descriptor, what: str) -> bytes:
        found, data = self._get_manifest(str(descriptor.digest), descriptor.digest, what)
        if found.size != descriptor.size:
            raise DigestError(f"{what} has {found.size} bytes, its descriptor promises {descriptor.size}")
        return data

    def referrers(self, subject: OciDigest) -> list[Descriptor]:
        found: list[Descriptor] = []
        what = f"the list of signatures of {self.reference}"
        url = f"{self._client.referrers_url(str(subject))}?{urlencode({'artifactType': SIGNATURES})}"
        for _ in range(MAX_PAGES):
            with self._client.do_request(url, headers={"Accept": OCI_INDEX}) as response:
                if response.status_code in _NO_REFERRERS and not found:
                    return self._tagged_referrers(subject, what)
                if response.status_code != 200:
                    raise self._client.refusal(response.status_code)
                data = read_capped(response, MAX_DOCUMENT, what)
            found += parse_referrers(data, what)
            following = response.links.get("next", {}).get("url")
            if not following:
                return found
            target = urljoin(url, following)
            if urlsplit(target)[:2] != urlsplit(url)[:2]:
                raise SourceError(f"{what} goes on at {target[:200]!r}, which is another registry")
            url = target
        raise LimitError(f"{what} has more than {MAX_PAGES} pages")

    def _tagged_referrers(self, subject: OciDigest, what: str) -> list[Descriptor]:
        url = self._client.manifest_url(referrers_tag(subject))
        with self._client.do_request(url, headers={"Accept": OCI_INDEX}) as response:
            if response.status_code == 404:
                return []
            if response.status_code != 200:
                raise self._client.refusal(response.status_code)
            return parse_referrers(read_capped(response, MAX_DOCUMENT, what), what)

    def _get_manifest(self, name: str, digest: OciDigest | None, what: str) -> tuple[Descriptor, bytes]:
        with self._client.do_request(self._client.manifest_url(name), headers={"Accept": _ACCEPT}) as response:
            if response.status_code != 200:
                raise self._client.refusal(response.status_code)
            data = read_capped(response, MAX_DOCUMENT, what)
        announced = response.headers.get("Docker-Content-Digest")
        for promised in filter(None, (digest, OciDigest.parse(announced) if announced else None)):
            found = OciDigest.of(data, promised.algorithm)
            if found != promised:
                raise DigestError(f"{what} has the digest {found}, but {promised} is promised")
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        known = media_type if media_type in (*MANIFEST_TYPES, *INDEX_TYPES) else ""
        return Descriptor(known, digest or OciDigest.of(data), len(data), {}), data

    def open(self, descriptor: Descriptor) -> Blob:
        what = f"the blob {descriptor.digest}"
        return Blob(_BlobStream(self._client, descriptor, what), descriptor, what)

    def close(self) -> None:
        self._client.session.close()


class _BlobStream:
    """A blob's bytes as the registry sends them; where the connection breaks, the next one goes on from there.

    The reader does not notice, so hashes and decompression never start again.
    """

    def __init__(self, client: RegistryClient, descriptor: Descriptor, what: str) -> None:
        self._client = client
        self._descriptor = descriptor
        self._what = what
        self._response: requests.Response | None = None
        self._at = 0
        self._resumes = 0

    def read(self, size: int, /) -> bytes:
        while True:
            problem = "the registry ends it early"
            try:
                if self._response is None:
                    self._response = self._connect()
                data: bytes = self._response.raw.read(size, decode_content=False)
            except (HTTPError, OSError) as error:
                data, problem = b"", str(error)
            self._at += len(data)
            if data or self._at >= self._descriptor.size:
                return data
            self._break(problem)

    def _break(self, problem: str) -> None:
        self.close()
        self._resumes += 1
        if self._resumes > MAX_RESUMES:
            at, size = self._at, self._descriptor.size
            raise SourceError(f"{self._what} broke off {MAX_RESUMES} times, last at {at} of {size} bytes: {problem}")
        time.sleep(min(0.05 * 2**self._resumes, 5.0))

    def _connect(self) -> requests.Response:
        headers = {"Range": f"bytes={self._at}-"} if self._at else {}
        response = self._client.do_request(self._client.blob_url(str(self._descriptor.digest)), headers=headers)
        try:
            self._check(response)
        except BaseException:
            response.close()
            raise
        return response

    def _check(self, response: requests.Response) -> None:
        if response.status_code == 404:
            raise SourceError(f"{self._what} of {self._client.container.uri} is not in the registry")
        if response.status_code == 206 and self._at:
            match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
            if not match or int(match[1]) != self._at:
                raise SourceError(f"{self._what}: the registry continues elsewhere than it was asked to")
            return
        if response.status_code != 200:
            raise self._client.refusal(response.status_code)
        length = response.headers.get("Content-Length", "")
        if re.fullmatch(r"[0-9]{1,19}", length) and int(length) != self._descriptor.size:
            problem = "cut short" if int(length) < self._descriptor.size else "too long"
            raise DigestError(
                f"{self._what} is {problem}: the registry has {length} bytes, {self._descriptor.size} are promised"
            )
        skip = self._at  # a registry may ignore Range
        while skip:
            skipped = len(response.raw.read(min(skip, 1 << 20), decode_content=False))
            if not skipped:
                raise HTTPError("it broke again before the place where it went on")
            skip -= skipped

    def close(self) -> None:
        response, self._response = self._response, None
        if response is not None:
            response.close()
