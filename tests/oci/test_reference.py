"""Names of images, by the rules of distribution/reference and containers-transports(5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oci2boot.errors import Error, FormatError
from oci2boot.oci.reference import LayoutReference, Reference, RegistryReference

HEX = "a" * 64

# Normalised forms as `docker image inspect` and skopeo print them.
NAMES = {
    "docker://quay.io/os/demo:1": "docker://quay.io/os/demo:1",
    "quay.io/os/demo:1": "docker://quay.io/os/demo:1",
    "quay.io/os/demo": "docker://quay.io/os/demo:latest",
    "docker://debian": "docker://docker.io/library/debian:latest",
    "debian:trixie": "docker://docker.io/library/debian:trixie",
    "docker.io/debian:trixie": "docker://docker.io/library/debian:trixie",
    "index.docker.io/library/debian": "docker://docker.io/library/debian:latest",
    "user/image": "docker://docker.io/user/image:latest",
    "localhost/x": "docker://localhost/x:latest",
    "localhost:5000/x:y": "docker://localhost:5000/x:y",
    "127.0.0.1:5000/a.b/c__d/e-f": "docker://127.0.0.1:5000/a.b/c__d/e-f:latest",
    "[::1]:5000/x": "docker://[::1]:5000/x:latest",
    f"quay.io/os/demo@sha256:{HEX}": f"docker://quay.io/os/demo@sha256:{HEX}",
    f"quay.io/os/demo:1@sha256:{HEX}": f"docker://quay.io/os/demo:1@sha256:{HEX}",
    "oci:layout": "oci:layout",
    "oci:/a/layout:v1": "oci:/a/layout:v1",
    "oci:layout:docker.io/library/debian:trixie": "oci:layout:docker.io/library/debian:trixie",
    "oci-archive:image.tar:v": "oci-archive:image.tar:v",
    "docker-archive:image.tar": "docker-archive:image.tar",
    "docker-archive:image.tar:debian:trixie": "docker-archive:image.tar:debian:trixie",
    "containers-storage:localhost/demo:1": "containers-storage:localhost/demo:1",
    "containers-storage:[vfs@/a+/b]demo": "containers-storage:[vfs@/a+/b]demo",
    "dir:/srv/root:fs": "dir:/srv/root:fs",
    "dumpfile:a.dump": "dumpfile:a.dump",
}


@pytest.mark.parametrize(("text", "canonical"), NAMES.items())
def test_a_name_has_one_canonical_form_which_is_read_back(text: str, canonical: str) -> None:
    """P.2, C.28: every kind of source has a name."""
    reference = Reference.parse(text)
    assert str(reference) == canonical
    assert Reference.parse(canonical) == reference


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("quay.io/os/demo:1", "demo:1"),
        ("debian", "debian:latest"),
        (f"quay.io/demo@sha256:{HEX}", f"demo@sha256:{HEX}"),
        ("oci:/srv/images/demo:v1", "demo:v1"),
        ("oci:/srv/images/demo", "demo"),
        ("oci-archive:/srv/demo.oci.tar", "demo"),
        ("docker-archive:/srv/demo.tar:os/demo:1", "demo:1"),
        ("docker-archive:/srv/demo.tar", "demo"),
        ("containers-storage:localhost/demo:1", "demo:1"),
        ("dir:/srv/rootfs/", "rootfs"),
        ("dir:/", "root"),
        ("dumpfile:/srv/tree.dump", "tree"),
    ],
)
def test_a_reference_has_a_short_name(text: str, name: str) -> None:
    assert Reference.parse(text).name == name


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "docker://"),
        ("quay.io/", "docker://"),
        ("quay.io/Demo", "quay.io/demo"),
        ("quay.io/demo:", "docker://"),
        ("quay.io/demo:a b", "docker://"),
        ("quay.io/de..mo", "docker://"),
        ("quay.io/../demo", "docker://"),
        ("quay.io//demo", "docker://"),
        ("quay.io:port/demo", "docker://"),
        ("-host-.io/demo", "docker://"),
        ("user@quay.io/demo", None),
        ("quay.io/demo@sha256:123", None),
        ("quay.io/demo@md5:123", None),
        ("docker:debian", "docker://debian"),
        ("./rootfs", "dir:./rootfs"),
        ("/srv/image", "oci:/srv/image"),
        ("oci:", None),
        ("oci:layout:", None),
        ("oci:layout:-x", None),
        ("oci:layout:a//b", None),
        ("dir:", None),
        ("a\nb", "docker://"),
        ("https://quay.io/demo", "docker://"),
        ("quay.io/" + "x" * 250, "docker://"),
        ("docker-daemon:x:1", "skopeo copy docker-daemon:x:1 oci:DIR"),
        ("containers-storage:", "buildah images"),
        ("containers-storage:-x", "buildah images"),
    ],
)
def test_what_is_no_name_is_refused_with_a_hint(text: str, hint: str | None) -> None:
    with pytest.raises(FormatError) as caught:
        Reference.parse(text)
    if hint:
        assert hint in (caught.value.hint or "")


def test_a_tag_does_not_belong_to_the_path_of_a_layout() -> None:
    reference = Reference.parse("oci:some/dir:v1.2")
    assert isinstance(reference, LayoutReference)
    assert (str(reference.path), reference.tag) == ("some/dir", "v1.2")


def test_a_digest_alone_gets_no_tag() -> None:
    reference = Reference.parse(f"quay.io/x@sha256:{HEX}")
    assert isinstance(reference, RegistryReference)
    assert reference.tag is None


@given(st.text(max_size=60))
def test_any_text_is_a_name_or_an_error_of_ours(text: str) -> None:
    for prefix in ("", "docker://", "oci:", "quay.io/"):
        try:
            reference = Reference.parse(prefix + text)
        except Error:
            continue
        assert Reference.parse(str(reference)) == reference
