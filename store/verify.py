"""Checking a store without the model: format, bytes, chunks, and whether the values can be what they claim to be."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from typing import Any

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import AttnlensError, StoreError
from attnlens.schemas.metadata import IndexEntry, StoreMetadata
from attnlens.schemas.problems import Problem
from attnlens.schemas.validate import CAPTURE_NAME, LIST_FOLDER, validate_capture
from attnlens.store.check_archive import check_archive
from attnlens.store.check_attention import check_attention
from attnlens.store.check_evidence import check_evidence
from attnlens.store.check_files import (
    check_chunks,
    check_consolidated,
    check_digest,
    check_front,
    check_manifest,
)
from attnlens.store.check_lens import check_lens
from attnlens.store.check_numbers import check_numbers
from attnlens.store.check_tokens import check_tokens
from attnlens.store.check_vectors import check_vectors
from attnlens.store.descriptions import default_limits, describe_array
from attnlens.store.files import PARTIAL
from attnlens.store.findings import Findings
from attnlens.store.lists import batches_of, beginning, index_of, listed
from attnlens.store.manifest import place_hash
from attnlens.store.places import Place
from attnlens.store.presence import missing_file
from attnlens.store.reader import Store, open_store, read_capture
from attnlens.store.root import root_entries


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """What `verify` found. `checked`: how many of what was looked at; `captures`: name → status.

    `notes`: what is worth knowing and no fault of the store, numbers that an earlier writer rounded too much.
    """

    path: str
    problems: list[Problem]
    notes: list[Problem]
    checked: dict[str, int]
    captures: dict[str, str]

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        problems, notes = (
            [{"where": p.where, "kind": p.kind, "message": p.message} for p in found]
            for found in (self.problems, self.notes)
        )
        return {"path": self.path, "passed": self.passed, "captures": self.captures,
                "checked": self.checked, "problems": problems, "notes": notes}  # fmt: skip


def verify(path: str | PathLike[str], *, progress: Progress | None = None) -> VerifyReport:
    """Check everything in the store at `path`, and report every problem at once.

    A capture that is not complete is checked as far as it was committed.

    Raises:
        StoreError: `path` is not a store of this format version, so that there is nothing to check.
    """
    progress = progress or Silent()
    findings = Findings()
    store = open_store(path, checked=False)
    _check_root(store.place, store.metadata, findings)
    check_archive(store.place, findings)
    captures: dict[str, str] = {}
    for name in store.ids:
        captures[name] = _check_capture(store, name, findings, progress)
    progress.end()
    return VerifyReport(
        path=str(path),
        problems=findings.problems(),
        notes=findings.notes(),
        checked=findings.checked,
        captures=captures,
    )


def _check_root(place: Place, about: StoreMetadata, findings: Findings) -> None:
    """The store's own metadata: their digest, and that the index says what the captures say."""
    check_digest(place.document(), "", findings)
    named = {one.folder for one in listed(about)}
    present = {name for name in place.folders() if not name.endswith(PARTIAL)}
    for name in sorted(present - set(about.planned) - named):
        if CAPTURE_NAME.fullmatch(name):
            findings.add(name, "format", "is a capture that the store does not list")
        elif LIST_FOLDER.fullmatch(name):
            findings.add(name, "format", "is a list that the store does not name, left by a write; delete it")
        else:
            findings.add(name, "format", "is not of the format")
    _check_lists(place, about, findings)
    current = {entry.id: entry for entry in root_entries(place, about.planned)}
    try:
        for entry in index_of(place, about):
            if entry.id not in current:
                findings.add(entry.id, "metadata", "the store's index lists it, but it cannot be read")
            elif not _agrees(entry, current[entry.id]):
                findings.add(entry.id, "metadata", "differs from what the store's index says of it")
    except AttnlensError as error:
        findings.add("", "metadata", str(error))


def _agrees(entry: IndexEntry, current: IndexEntry) -> bool:
    """Whether an entry says what the capture does. Those of earlier writers have whole texts, and no model."""
    cut = {"prompt": beginning(entry.prompt), "completion": beginning(entry.completion)}
    told = {} if entry.model else {name: getattr(current, name) for name in ("model", "label", "changes")}
    return entry.model_copy(update=cut | told) == current


def _check_lists(place: Place, about: StoreMetadata, findings: Findings) -> None:
    """The arrays that lists are in: every file is the one that was written, and there is no other."""
    for one in listed(about):
        present = {path.removeprefix(f"{one.folder}/") for path in place.files(one.folder)}
        for name in sorted(present - one.files.keys()):
            findings.add(f"{one.folder}/{name}", "manifest", "is not among the files that the store's zarr.json names")
        for name, digest in sorted(one.files.items()):
            findings.count("files")
            try:
                if place_hash(place, f"{one.folder}/{name}") != digest:
                    findings.add(f"{one.folder}/{name}", "manifest", "its bytes are not those that were written")
            except FileNotFoundError:
                findings.add(f"{one.folder}/{name}", "manifest", "is missing")
            except OSError as error:
                findings.add(f"{one.folder}/{name}", "manifest", f"cannot be read ({error.strerror or error})")
    try:
        batches_of(place, about)
    except AttnlensError as error:
        findings.add("", "metadata", str(error))


def _check_capture(store: Store, name: str, findings: Findings, progress: Progress) -> str:
    """One capture; returns its status."""
    limits = default_limits()
    document, documents, problems = read_capture(store.place, name, limits)
    descriptions = {key: describe_array(text, limits) for key, text in documents.items()}
    attributes = document.get("attributes", {})
    if document:
        problems += [
            problem
            for problem in validate_capture(attributes, descriptions, where=name)
            if problem.where not in {known.where for known in problems}
        ]
    findings.count("arrays", len(documents))
    findings.extend(problems)
    if not document:
        return "damaged"
    check_digest(document, name, findings)
    if problems:
        return "damaged"
    check_consolidated(store.place, name, document, findings)
    capture = store[name]
    if capture.sealed:
        check_manifest(store.place, capture, findings, progress)
        check_front(store.place, capture, findings)
    if capture.status not in ("planned", "failed"):  # neither has a row
        whole = _check_arrays(store, name, findings, progress)
        checks: list[Callable[[], None]] = [lambda: check_tokens(capture, findings)]
        if "attention_weight" in whole:
            checks.append(lambda: check_attention(capture, findings, progress))
        if {"attention_q", "attention_k"} <= whole:
            checks.append(lambda: check_vectors(capture, findings, progress))
        checks += [
            lambda: check_lens(capture, findings, progress),
            lambda: check_evidence(capture, findings, progress),
            lambda: check_numbers(capture, findings, progress),
        ]
        for check in checks:
            try:
                check()
            except StoreError as error:  # of an array that a check needs and that was told of already
                message = f"not all values can be checked: {str(error).split('; run ')[0]}"
                findings.add(name, "value", message)
    return capture.status


def _check_arrays(store: Store, name: str, findings: Findings, progress: Progress) -> set[str]:
    """Decode every file of every array; returns the names of the arrays that could be opened."""
    capture, opened = store[name], set()
    progress.stage(f"{name} chunks", None, "files")
    for key in capture.names:
        try:
            array = capture[key]
        except AttnlensError as error:
            findings.add(f"{name}/{key}", "array", str(error))
            continue
        opened.add(key)
        check_chunks(array.zarr, findings, progress)
        with suppress(StoreError):  # what says how much there must be is damaged, and told of itself
            if (missing := missing_file(capture, array)) is not None:
                findings.add(f"{name}/{key}/{missing}", "chunk", "is missing")
    return opened
