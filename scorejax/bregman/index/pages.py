# SPDX-License-Identifier: Apache-2.0
"""Rows on pages, and a count of the pages that a query reads.

A page holds as many whole rows as fit; a row longer than a page starts a page of its own. Distinct
pages are counted, whether or not the operating system has them cached.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

LARGEST_PAGE = 2**30


@dataclasses.dataclass(frozen=True)
class PagedRows:
    """Rows (n, d) as records of rows_per_page rows, in memory or mapped from a file."""

    records: np.ndarray  # (records, rows_per_page, d); the last is padded with zeros
    num_rows: int
    pages_per_record: int

    @property
    def rows_per_page(self) -> int:
        """Number of rows of a record: those of one page, or one row that is longer than a page."""
        return self.records.shape[1]

    @property
    def num_pages(self) -> int:
        """Number of pages of all records."""
        return len(self.records) * self.pages_per_record

    def take(self, positions: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
        """The rows at these positions, in their order."""
        return self.records[positions // self.rows_per_page, positions % self.rows_per_page]

    def block(self, start: int, stop: int) -> Float[np.ndarray, "m d"]:
        """The rows of a range that starts with a record."""
        per_page = self.rows_per_page
        records = self.records[start // per_page : -(-stop // per_page)]
        return records.reshape(-1, records.shape[2])[: stop - start]


def check_page_bytes(page_bytes: int) -> None:
    """Raises ValueError unless 1 <= page_bytes <= LARGEST_PAGE."""
    if not 1 <= page_bytes <= LARGEST_PAGE:
        raise ValueError(f"page_bytes needs to be in [1, {LARGEST_PAGE}]; got {page_bytes}.")


def page_layout(row_bytes: int, page_bytes: int) -> tuple[int, int]:
    """Rows per record, and pages per record. Raises: as `check_page_bytes`."""
    check_page_bytes(page_bytes)
    if row_bytes <= page_bytes:
        return page_bytes // row_bytes, 1
    return 1, -(-row_bytes // page_bytes)


def paged(
    rows: Float[np.ndarray, "n d"], page_bytes: int, *, order: Int[np.ndarray, "n"] | None = None
) -> PagedRows:
    """Rows in memory, arranged as if on pages; `order` permutes them."""
    per_record, pages = page_layout(rows.shape[1] * rows.itemsize, page_bytes)
    num_records = -(-len(rows) // per_record)
    records = np.zeros((num_records, per_record, rows.shape[1]), rows.dtype)
    held = records.reshape(-1, rows.shape[1])[: len(rows)]
    if order is None:
        held[:] = rows
    else:
        # All numbers are in range; "clip" avoids the copy that "raise" would make.
        np.take(rows, order, axis=0, out=held, mode="clip")
    return PagedRows(records, len(rows), pages)


class PageReader:
    """Reads rows for one query and counts candidates and pages."""

    def __init__(self, rows: PagedRows) -> None:
        self._rows = rows
        self._is_read = np.zeros(len(rows.records), bool)
        self.num_candidates = 0

    def take(self, positions: Int[np.ndarray, "m"]) -> Float[np.ndarray, "m d"]:
        """The rows at these positions; each counts as a candidate, and its pages as read."""
        self._is_read[positions // self._rows.rows_per_page] = True
        self.num_candidates += len(positions)
        return self._rows.take(positions)

    @property
    def num_pages(self) -> int:
        """Distinct pages read so far."""
        return int(self._is_read.sum()) * self._rows.pages_per_record
