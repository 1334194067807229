# SPDX-License-Identifier: Apache-2.0
"""Rows in pages, and a count of the pages that a query touches.

A page holds as many whole rows as it has room for; a row longer than a page starts a page of its
own. The count is of distinct pages, whatever the operating system has cached.
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

LARGEST_PAGE = 2**30


@dataclasses.dataclass(frozen=True)
class PagedRows:
    """Rows (n, d) as records of rows_per_page rows, in memory or mapped from a file."""

    records: np.ndarray  # (records, rows_per_page, d); the last one may be filled up with zeros
    num_rows: int
    pages_per_record: int

    @property
    def rows_per_page(self) -> int:
        """Rows of a record: on one page, or one row that starts a page of its own."""
        return self.records.shape[1]

    @property
    def num_pages(self) -> int:
        """Pages of all records."""
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
    """Raises ValueError unless pages of so many bytes can be."""
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
    """Rows in memory, counted as if they were on pages; in another order if one is given."""
    per_record, pages = page_layout(rows.shape[1] * rows.itemsize, page_bytes)
    num_records = -(-len(rows) // per_record)
    records = np.zeros((num_records, per_record, rows.shape[1]), rows.dtype)
    held = records.reshape(-1, rows.shape[1])[: len(rows)]
    if order is None:
        held[:] = rows
    else:
        # "clip" only because "raise" would make another copy; all numbers are in range.
        np.take(rows, order, axis=0, out=held, mode="clip")
    return PagedRows(records, len(rows), pages)


class PageReader:
    """Reads rows for one query, and keeps count."""

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
