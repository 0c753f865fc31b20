"""The tiny bundle as teacher and student."""

import pytest

from demo.systems import Systems


@pytest.fixture(scope="module")
def shared(exported):
    """Systems that the tests of a file share, and leave as they are."""
    opened = Systems.open([exported], str(exported), "int8", 1)
    yield opened
    opened.close()
