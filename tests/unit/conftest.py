"""What unit tests of analysis and paper share."""

import pytest
from rendering import build, copied, draw


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    """The made-up study with its CSV files, tables, numbers and figures, for looking only; as
    `rendering.build` returns it."""
    src, generated = build(tmp_path_factory.mktemp("rendered"))
    draw(src, generated)
    return src, generated


@pytest.fixture
def rendered_copy(rendered, tmp_path):
    """The same, for a test of its own to change."""
    return copied(rendered[0], tmp_path)
