"""`lens export run.zarr run.inif.json`: tokens, spans and first choices of the lens for the tools around nnsight.

INIF, the interpretability interchange format of the package `inif`, is JSON; its models make every part of it here,
one after the other, so that a long text need not be in memory at once.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from io import TextIOWrapper
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, TextIO, cast

import numpy as np

from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import AbsentError, InputError
from attnlens.schemas.plain_text import one_line
from attnlens.store.files import clean, clean_text
from attnlens.store.naming import model_name, told
from attnlens.store.reader import Capture, open_store
from attnlens.store.tools.exports import ExportReport, chosen, report_of, require
from attnlens.store.tools.lens_table import Texts
from attnlens.store.tools.output import new_file

ABSENT = "absent"
"""Id of the sequence that stands for a token that was redacted or cropped away, and the span of these: the format knows
no token without an id."""
GZIPPED = (".gz", ".inif")
"""Endings by which the package knows that a file is compressed."""
BLOCK_TOKENS = 64
"""What lenses read of so many tokens is in memory at a time."""
Reading = dict[str, dict[str, list[Any]]]
"""Lens → depth, id, text, probability, entropy: lists of one length."""


def export_inif(
    store: str | PathLike[str],
    output: str | PathLike[str],
    *,
    captures: Sequence[str] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> ExportReport:
    """Write captures as samples of an INIF document: tokens with their log probability, the spans `prompt` and
    `generated`, messages as texts, and in each token's `data` what each lens holds most probable at every depth.

    Args:
        store: The store.
        output: The file; compressed if it ends in .inif or .gz.
        captures: Which captures, all if empty.
        overwrite: Replace a file that is there.
        progress: Where captures are counted.

    Raises:
        AbsentError: there is no such capture, or none has tokens.
        InputError: something is at `output`, or the captures are of several models, of which a document has one.
        MissingExtraError: inif is not installed.
        StoreError: a chunk is damaged, or the disk refuses.
    """
    progress, inif = progress or Silent(), require("inif", "INIF", "inif")
    opened, path = open_store(store), Path(output)
    asked = chosen(opened, captures)
    there = [capture for capture in asked if "token_id" in capture]
    notes = [f"capture {capture.id} is {capture.status}: it has no tokens" for capture in asked if capture not in there]
    if not there:
        raise AbsentError(f"{store} holds no tokens yet, there is nothing to export")
    models = {_identity(capture) for capture in there}
    if len(models) > 1:
        names = ", ".join(sorted({one_line(model[0]) for model in models}))
        raise InputError(f"{store}: an INIF document is of one model, and these are {names}; choose with --capture")
    progress.stage("exporting", len(there), "captures")
    with new_file(path, overwrite=overwrite) as temporary, _open(temporary, path.name.endswith(GZIPPED)) as file:
        _write(file, inif, there, progress)
    progress.end()
    return report_of(path, there, notes)


@contextmanager
def _open(path: Path, compressed: bool) -> Iterator[TextIO]:
    with path.open("xb") as file, ExitStack() as inner:
        # Without name and time, so that equal stores give equal files.
        raw = inner.enter_context(gzip.GzipFile("", "wb", 6, file, 0)) if compressed else file
        text = inner.enter_context(TextIOWrapper(cast(BinaryIO, raw), "utf-8", newline="\n"))
        yield text


def _write(file: TextIO, inif: Any, captures: Sequence[Capture], progress: Progress) -> None:
    document = inif.InifDocument(metadata=_metadata(inif, captures))
    if any((capture.token_id < 0).any() for capture in captures):
        document.sequences.append(inif.Sequence(id=ABSENT, tokens=[""], n_tokens=1))
    file.write(f'{_json(document)[:-1]}, "samples": [')
    for number, capture in enumerate(captures):
        file.write(f'{", " if number else ""}{_json(_sample(inif, capture))[:-1]}, "tokens": [')
        for position, token in enumerate(_tokens(inif, capture)):
            file.write(f"{', ' if position else ''}{_json(token)}")
        file.write("]}")
        progress.advance()
    file.write("]}")


def _json(part: Any) -> str:
    """A part of the document as JSON, as the package writes it: without what is empty."""
    return json.dumps(clean(part.model_dump(exclude_none=True, exclude_defaults=True)), ensure_ascii=False)


def _identity(capture: Capture) -> tuple[str, ...]:
    """What is equal for captures of one model, changed in one way: its name first."""
    about = capture.metadata
    changes = [one.model_dump_json() for one in (*about.model.adapters, *about.model.hooks)]
    return model_name(about), str(about.model.revision), *changes


def _metadata(inif: Any, captures: Sequence[Capture]) -> Any:
    first = captures[0].metadata
    sampling = first.sampling.model_dump(mode="json")
    same = all(capture.metadata.sampling == first.sampling for capture in captures)
    model = inif.ModelInfo(
        name=clean_text(model_name(first)),
        revision=first.model.revision,
        generation_config=clean(sampling) if same else {},
        loading_config=clean({name: value for name, value in told(first).items() if name != "label"}),
    )
    return inif.Metadata(
        model=model, packages=dict(first.versions), created_at=first.created, total_samples=len(captures)
    )


def _sample(inif: Any, capture: Capture) -> Any:
    """The sample without its tokens."""
    about, n_token = capture.metadata, len(capture.token_id)
    sides = {
        "prompt": range(min(capture.n_prompt, n_token)),
        "generated": range(capture.n_prompt, n_token),
        ABSENT: np.flatnonzero(capture.token_id < 0).tolist(),
    }
    texts = [_text_of(message) for message in about.messages or []] or [about.prompt]
    return inif.Sample(
        id=capture.id,
        texts=[*texts, about.completion] if about.completion else texts,
        spans=[inif.Span(name=name, positions=list(side)) for name, side in sides.items() if side],
        metadata={"prompt_id": about.prompt_id, "status": about.status, "lenses": capture.lens_names},
        input_tokens=capture.n_prompt,
        output_tokens=max(0, n_token - capture.n_prompt),
    )


def _text_of(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content is a text, a list of parts, or nothing beside calls of tools."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content)
    calls = message.get("tool_calls")
    return str(content) if content is not None else json.dumps(calls, ensure_ascii=False) if calls else ""


def _tokens(inif: Any, capture: Capture) -> Iterator[Any]:
    """The tokens, in order. What was not computed of one is left out of it."""
    ids, texts, special = capture.token_id, capture.token_text, capture.token_special
    before = capture["model_probability"][:] if "model_probability" in capture else np.full(len(ids), np.nan)
    for position, (number, data) in enumerate(zip(ids.tolist(), _readings(capture), strict=True)):
        extra: dict[str, Any] = {"tags": ["special"]} if special[position] else {}
        likely = float(before[position - 1]) if position else math.nan
        if likely > 0:
            extra["logprob"] = math.log(likely)
        if data:
            extra["data"] = data
        if number < 0:
            yield inif.Token(id=-1, sequence_id=ABSENT, **extra)
        else:
            yield inif.Token(id=number, token=texts[position], **extra)


def _readings(capture: Capture) -> Iterator[Reading]:
    """For each token, lens by lens: what it holds most probable, at each depth that there is."""
    size = len(capture.token_id)
    texts = Texts(capture)
    for first in range(0, size, BLOCK_TOKENS):
        tokens = slice(first, min(size, first + BLOCK_TOKENS))
        found: list[Reading] = [{} for _ in range(tokens.start, tokens.stop)]
        for lens in capture.lens_names:
            for of_token, reading in zip(found, _of_lens(capture, lens, tokens, texts), strict=True):
                if reading["depth"]:
                    of_token[f"{lens}_lens"] = reading
        yield from found


def _of_lens(capture: Capture, lens: str, tokens: slice, texts: Texts) -> Iterator[dict[str, list[Any]]]:
    names = {name: capture.reading_name(f"lens_{name}", lens) for name in ("token", "probability", "entropy")}
    if names["token"] not in capture:
        yield from ({"depth": []} for _ in range(tokens.start, tokens.stop))
        return
    cells = {
        name: capture[array][:, tokens, 0] if name != "entropy" else capture[array][:, tokens]
        for name, array in names.items()
        if array in capture
    }
    depth = capture["depth"][:]
    for place in range(tokens.stop - tokens.start):
        ids = cells["token"][:, place]
        there = np.flatnonzero(ids >= 0)
        known: dict[str, list[Any]] = {
            "depth": depth[there].tolist(),
            "id": ids[there].tolist(),
            "text": texts.of(np.ma.MaskedArray(ids[there])).tolist(),
        }
        for name in (name for name in cells if name != "token"):
            values = cells[name][there, place]
            known[name] = [None if math.isnan(value) else value for value in values.tolist()]
        yield known
