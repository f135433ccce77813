"""Where a model came from and what was done to it before it ran: what a store records and the model cannot say."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from attnlens.schemas.errors import InputError, Setting
from attnlens.schemas.metadata import LABEL_LIMIT, Adapter, LeftOut
from attnlens.schemas.plain_text import printable


@dataclass(frozen=True, kw_only=True)
class Origin:
    """What to record about a model.

    Attributes:
        id: its name; None: the model's own.
        revision: commit of a hub model.
        quantization: what the weights went through; None: what the model's config says.
        tokenizer: name of the tokenizer, where it does not come with the model.
        left_out: tensors of the checkpoint that the model does not use, and why that is right.
        adapters: adapters that were loaded with the model.
        label: free text that tells this run from others: one line, at most 200 characters.

    Raises:
        InputError: the label cannot be shown as it is.
    """

    id: str | None = None
    revision: str | None = None
    quantization: dict[str, Any] | None = None
    tokenizer: str | None = None
    left_out: tuple[LeftOut, ...] = ()
    adapters: tuple[Adapter, ...] = ()
    label: str | None = None

    def __post_init__(self) -> None:
        check_label(self.label)

    def given(
        self, *, id: str | None, revision: str | None, quantization: dict[str, Any] | None, label: str | None
    ) -> Origin:
        """The same with what was given beside it in its place."""
        values: dict[str, Any] = {"id": id, "revision": revision, "quantization": quantization, "label": label}
        return replace(self, **{name: value for name, value in values.items() if value is not None})


def check_label(label: str | None) -> None:
    """See that a label can stand in one line, as it is: in a list, above a picture.

    Raises:
        InputError: it is empty, too long, or holds a character that cannot be shown.
    """
    if label is None:
        return
    wanted = f"expected one line of text, at most {LABEL_LIMIT} characters"
    if not label.strip():
        raise InputError(Setting("label"), f" is empty; {wanted}")
    if len(label) > LABEL_LIMIT:
        raise InputError(Setting("label"), f" has {len(label)} characters; {wanted}")
    odd = next((character for character in label if printable(character) != character), None)
    if odd is not None:
        raise InputError(Setting("label"), f" holds U+{ord(odd):04X}, which cannot be shown; {wanted}")
