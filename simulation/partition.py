"""Divides the documents of one data set among simulated sites. A document is never split.

Every method is deterministic under its seed and gives each note to exactly one site; within a site, notes
keep the order of the data set.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from common.errors import InputError, ValidationError
from common.records import Note
from common.validation import nearest, require_choice, require_float, require_int

METHODS: tuple[str, ...] = ("even", "power_law", "dirichlet", "by_column")

# A Dirichlet draw that leaves a site short is drawn again this often before the plan is refused.
_MAX_DRAWS = 100
_NO_ENTITY = ""

Documents = Mapping[str, Sequence[int]]
Shares = list[list[str]]


def partition(
    notes: Sequence[Note],
    *,
    method: str,
    sites: int,
    seed: int,
    minimum_examples: int = 1,
    alpha: float = 1.0,
    column: str | None = None,
) -> list[list[Note]]:
    """Divide `notes` among `sites` sites.

    Args:
        notes: The data set; notes of one `document_id` stay together.
        method: `even` (sites of equal size, as far as documents allow), `power_law` (site `i` of 0, 1, ... is
            proportional to `(i + 1) ** -alpha`), `dirichlet` (for each entity type, the documents in which it
            leads are dealt out by shares from Dirichlet(alpha), as in Hsu et al. 2019, section 3), or
            `by_column` (documents with equal values of `column` stay together).
        sites: The number of sites, 1 to 100,000.
        seed: Keys every choice, 0 or more.
        minimum_examples: The fewest notes a site may have, 1 or more.
        alpha: The concentration of `dirichlet` (small is skewed) or the exponent of `power_law` (large is
            skewed), above 0 and at most 10,000; the other methods do not use it.
        column: The column of `Note.columns` for `by_column`; `patient_id` names the patient.

    Returns:
        The notes of each site, each with at least `minimum_examples`.

    Raises:
        ValidationError: An argument is outside its range, or a note lacks the column.
        InputError: The minimum cannot be met.
    """
    require_choice("method", method, METHODS)
    require_int("sites", sites, minimum=1, maximum=100_000)
    require_int("seed", seed, minimum=0, maximum=2**63 - 1)
    require_int("minimum_examples", minimum_examples, minimum=1, maximum=10**9)
    require_float("alpha", alpha, minimum=0, maximum=10_000, open_minimum=True)
    documents = _documents(notes)
    _require_enough(len(notes), len(documents), method, sites, minimum_examples)
    rng = np.random.default_rng(seed)
    match method:
        case "even":
            shares = _fill(documents, np.full(sites, 1 / sites), rng)
        case "power_law":
            raw = np.arange(1, sites + 1, dtype=np.float64) ** -alpha
            shares = _fill(documents, raw / raw.sum(), rng)
        case "dirichlet":
            shares = _dirichlet(notes, documents, sites, alpha, minimum_examples, rng)
        case _:
            shares = _by_column(notes, documents, sites, column)
    _require_minimum(shares, documents, method, minimum_examples)
    return [[notes[i] for i in sorted(i for d in share for i in documents[d])] for share in shares]


def _documents(notes: Sequence[Note]) -> dict[str, list[int]]:
    """Return the indices of the notes of each document, in the order of the data set."""
    documents: defaultdict[str, list[int]] = defaultdict(list)
    for index, note in enumerate(notes):
        # The two kinds of name are kept apart: a note's id may equal another's document id.
        key = f"note:{note.note_id}" if note.document_id is None else f"document:{note.document_id}"
        documents[key].append(index)
    return dict(documents)


def _fill(documents: Documents, targets: NDArray[np.float64], rng: np.random.Generator) -> Shares:
    """Deal out shuffled documents, the largest first, each to the site that lacks the largest share.

    Args:
        documents: Indices of notes by document.
        targets: The share of the notes that each site should have, `(sites,)`, summing to one.
        rng: Shuffles documents of equal size.
    """
    names = list(documents)
    order = [names[i] for i in rng.permutation(len(names))]
    order.sort(key=lambda name: -len(documents[name]))
    missing = targets * sum(len(documents[name]) for name in names)
    shares: Shares = [[] for _ in targets]
    for name in order:
        site = int(np.argmax(missing))
        shares[site].append(name)
        missing[site] -= len(documents[name])
    return shares


def _dirichlet(
    notes: Sequence[Note],
    documents: Documents,
    sites: int,
    alpha: float,
    minimum: int,
    rng: np.random.Generator,
) -> Shares:
    """Draw until every site has its minimum; the last draw is returned if none does."""
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, indices in documents.items():
        groups[_leading_label(notes, indices)].append(name)
    shares: Shares = []
    for _ in range(_MAX_DRAWS):
        shares = [[] for _ in range(sites)]
        for label in sorted(groups):
            _deal(groups[label], shares, rng.dirichlet(np.full(sites, alpha)), rng)
        if min(_size(share, documents) for share in shares) >= minimum:
            break
    return shares


def _deal(
    names: Sequence[str], shares: Shares, proportions: NDArray[np.float64], rng: np.random.Generator
) -> None:
    """Cut the shuffled documents of one entity type at the cumulated `proportions`, `(sites,)`."""
    order = [names[i] for i in rng.permutation(len(names))]
    cuts = np.rint(np.cumsum(proportions)[:-1] * len(order)).astype(int)
    bounds = [0, *cuts.tolist(), len(order)]
    for share, start, end in zip(shares, bounds, bounds[1:], strict=False):
        share.extend(order[start:end])


def _leading_label(notes: Sequence[Note], indices: Sequence[int]) -> str:
    """Return the document's most frequent entity type; of equals, the first by name."""
    counts = Counter(span.label for i in indices for span in notes[i].spans)
    return min(counts, key=lambda label: (-counts[label], label)) if counts else _NO_ENTITY


def _by_column(notes: Sequence[Note], documents: Documents, sites: int, column: str | None) -> Shares:
    """Keep equal values together; where they outnumber sites, the largest go to the smallest site so far."""
    if column is None:
        raise ValidationError("column is not set; the method by_column needs the name of a column.")
    groups: defaultdict[str, list[str]] = defaultdict(list)
    for name, indices in documents.items():
        groups[_document_value(notes, indices, column)].append(name)
    if len(groups) < sites:
        raise InputError(
            f"column {column!r} has {len(groups)} different values, which cannot fill {sites} sites; "
            f"set sites to {len(groups)} or less, or choose another column."
        )
    shares: Shares = [[] for _ in range(sites)]
    sizes = [0] * sites
    # With as many values as sites this gives site i the i-th value by name.
    ordered = (
        sorted(groups)
        if len(groups) == sites
        else sorted(groups, key=lambda v: (-_size(groups[v], documents), v))
    )
    for value in ordered:
        site = sizes.index(min(sizes))
        shares[site].extend(groups[value])
        sizes[site] += _size(groups[value], documents)
    return shares


def _document_value(notes: Sequence[Note], indices: Sequence[int], column: str) -> str:
    """Return the column's value of a document, which must be the same in all its notes."""
    values = {_value(notes[i], column) for i in indices}
    if len(values) > 1:
        raise ValidationError(
            f"column {column!r} has {len(values)} different values within one document (the note "
            f"{notes[indices[0]].note_id!r} and its companions), but a document is never split; "
            "choose a column that is the same throughout a document."
        )
    return values.pop()


def _value(note: Note, column: str) -> str:
    """Return the note's value of `column`, where `patient_id` is always a column."""
    value = note.patient_id if column == "patient_id" else note.columns.get(column)
    if value is None:
        known = sorted({*note.columns, "patient_id"})
        hint = nearest(column, known)
        raise ValidationError(
            f"column is {column!r}, which the note {note.note_id!r} does not have; it has "
            f"{', '.join(known)}." + (f" Did you mean {hint!r}?" if hint and hint != column else "")
        )
    return value


def _size(share: Sequence[str], documents: Documents) -> int:
    """Return the number of notes in the documents of `share`."""
    return sum(len(documents[name]) for name in share)


def _require_enough(notes: int, documents: int, method: str, sites: int, minimum: int) -> None:
    """Refuse what no division at all can meet."""
    if documents < sites or notes < sites * minimum:
        raise InputError(
            f"{notes} notes in {documents} documents cannot give {sites} sites at least {minimum} examples "
            f"each (method {method}); lower sites to at most {min(documents, notes // minimum)}, lower "
            "minimum_examples, or use more data."
        )


def _require_minimum(shares: Shares, documents: Documents, method: str, minimum: int) -> None:
    """Refuse a division that leaves a site short."""
    sizes = [_size(share, documents) for share in shares]
    if min(sizes) >= minimum:
        return
    site = sizes.index(min(sizes))
    remedy = {
        "even": "use smaller documents or fewer sites",
        "power_law": "lower alpha or sites",
        "dirichlet": f"raise alpha, lower sites or try another seed ({_MAX_DRAWS} draws were made)",
        "by_column": "lower sites or choose another column",
    }[method]
    raise InputError(
        f"method {method} leaves site-{site} with {sizes[site]} of the {minimum} examples that "
        f"minimum_examples asks for, {len(shares)} sites sharing {sum(sizes)} notes; {remedy}, or lower "
        "minimum_examples."
    )
