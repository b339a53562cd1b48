"""Images to registries. OCI distribution-spec 1.1, "Push"."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from oci2boot.digest import OciDigest
from oci2boot.errors import DigestError, SourceError, TargetError
from oci2boot.formats.pieces import Pieces
from oci2boot.oci.client import RegistryClient, read_capped
from oci2boot.oci.documents import MAX_DOCUMENT, parse_object
from oci2boot.oci.manifest import OCI_INDEX, Descriptor, parse_layout_index, referrers_tag
from oci2boot.oci.outgoing import ImageDestination, Open, checked, pack_json, referring
from oci2boot.oci.reference import RegistryReference

UPLOAD_ATTEMPTS: Final = 3
"""For one blob; an upload that broke begins again."""
_THERE: Final = (200, 301, 302, 303, 307, 308)
"""A blob that lies elsewhere is there, too."""


class RegistryDestination(ImageDestination):
    def __init__(self, reference: RegistryReference, *, tls_verify: bool, authfile: Path | None) -> None:
        if reference.digest:
            raise TargetError(f"{reference} names an image that is there already, by its digest", hint="give a tag")
        self._reference = reference
        self._client = RegistryClient(reference, tls_verify=tls_verify, authfile=authfile)

    def __exit__(self, *_: object) -> None:
        self._client.session.close()

    def has(self, descriptor: Descriptor) -> bool:
        with self._client.do_request(self._client.blob_url(str(descriptor.digest)), "HEAD") as response:
            if response.status_code == 404:
                return False
            if response.status_code not in _THERE:
                raise self._refusal(response)
            return True

    def put(self, descriptor: Descriptor, content: Open) -> None:
        for attempt in range(1, UPLOAD_ATTEMPTS + 1):
            try:
                response = self._upload(descriptor, content)
            except requests.RequestException as error:
                problem = SourceError(f"{self._reference.registry} broke off an upload: {type(error).__name__}")
                if attempt == UPLOAD_ATTEMPTS:
                    raise problem from error
                continue
            with response:
                if response.status_code == 201:
                    self._check_digest(response, descriptor)
                    return
                if attempt == UPLOAD_ATTEMPTS or response.status_code not in (401, 429, 500, 502, 503, 504):
                    raise self._refusal(response)

    def _upload(self, descriptor: Descriptor, content: Open) -> requests.Response:
        """Begin an upload, which also brings the authorization for it, and send the blob in one request."""
        uploads = self._client.blob_url("uploads/")
        with self._client.do_request(uploads, "POST", headers={"Content-Length": "0"}) as response:
            if response.status_code != 202 or "Location" not in response.headers:
                raise self._refusal(response)
            place = urljoin(uploads, response.headers["Location"])
        query = urlencode({"digest": str(descriptor.digest)})
        place += ("&" if urlsplit(place).query else "?") + query
        headers = {"Content-Type": "application/octet-stream"}
        return self._client.upload(place, _Body(descriptor, content), headers)

    def name(self, descriptor: Descriptor, manifest: bytes) -> None:
        self._put_manifest(str(self._reference.tag), descriptor, manifest)

    def refer(self, descriptor: Descriptor, manifest: bytes, subject: OciDigest, artifact_type: str) -> None:
        """Put the manifest, and into a list as well where the registry keeps none. "Pushing Manifests with Subject"."""
        if "OCI-Subject" in self._put_manifest(str(descriptor.digest), descriptor, manifest):
            return
        tag, what = referrers_tag(subject), f"what refers to {subject} in {self._reference}"
        listed: list[Any] = []
        with self._client.do_request(self._client.manifest_url(tag), headers={"Accept": OCI_INDEX}) as response:
            if response.status_code == 200:
                data = read_capped(response, MAX_DOCUMENT, what)
                parse_layout_index(data, what)
                listed = parse_object(data, what)["manifests"]
            elif response.status_code != 404:
                raise self._refusal(response)
        kept = [one for one in listed if one["digest"] != str(descriptor.digest)]
        manifests = [*kept, referring(descriptor, artifact_type)]
        index = pack_json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests})
        self._put_manifest(tag, Descriptor(OCI_INDEX, OciDigest.of(index), len(index), {}), index)

    def _put_manifest(self, name: str, descriptor: Descriptor, manifest: bytes) -> Mapping[str, str]:
        """Return the headers of the answer."""
        headers = {"Content-Type": descriptor.media_type}
        with self._client.do_request(self._client.manifest_url(name), "PUT", manifest, headers) as response:
            if response.status_code != 201:
                raise self._refusal(response)
            self._check_digest(response, descriptor)
            return response.headers

    def _check_digest(self, response: requests.Response, descriptor: Descriptor) -> None:
        found = response.headers.get("Docker-Content-Digest")
        if found and found != str(descriptor.digest):
            raise DigestError(f"{self._reference.registry} stored {found}, but {descriptor.digest} was sent")

    def _refusal(self, response: requests.Response) -> SourceError:
        registry = self._reference.registry
        if response.status_code in (401, 403, 405):
            return SourceError(
                f"{registry} does not let this user push to {self._reference}", hint=f"podman login {registry}"
            )
        return SourceError(f"{registry} answers a push to {self._reference} with status {response.status_code}")


class _Body(Pieces):
    """A blob as a request's body: its length is known, its bytes are not held."""

    def __init__(self, descriptor: Descriptor, content: Open) -> None:
        super().__init__(checked(descriptor, content()))
        self._size = descriptor.size

    def __len__(self) -> int:
        return self._size
