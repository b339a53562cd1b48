"""What the tests that make UKIs and images share."""

import pytest

from tests.oci.layouts import Layout
from tests.workflows.sealable import add_image, base


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    """A layout with one image, tagged `base`."""
    layout = Layout(tmp_path_factory.mktemp("images") / "layout")
    add_image(layout, base(), "base")
    return layout
