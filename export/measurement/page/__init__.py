"""The report as a self-contained page: verdict first, then the figures that it follows from."""

from export.measurement.page.page import is_page, write_page
from export.measurement.page.source import Source, read_sources

__all__ = ["Source", "is_page", "read_sources", "write_page"]
