"""The page docs/models.md: which classes of causal language models can be captured, and what was seen."""

from __future__ import annotations

import re
from collections.abc import Sequence

import transformers

from attnlens.benchmarks.models.examine import Verdict

HEAD = """\
# Models

Every causal language model that transformers {version} knows by name, made small and random from its own configuration
and run through the real capture: what works, and what is refused and why. `make models` writes this page again.

Each class ran in a process of its own: a prompt of {prompt} tokens and {new} generated ones, float32, CPU. A class
*works* if all of this held: `lens verify` finds nothing; every stored row equals the row that transformers' own eager
attention gives while its greedy `generate` runs, to {attention:.0e} (float16 rounds to 2.5e-4); the text is the one of
`generate` (of a plain loop for {alone} classes that cannot generate by themselves); depth L of the lens and one depth
in the middle, read by the model's own tail, agree to {lens:.0e}. A hybrid that gives other logits with a cache than in
one pass is compared with a cache only.

- *layers*: those with attention, of all. The others (state space, recurrent, convolution, cross attention that a text
  does not need) have no rows, and the store says so.
- *attention*: `functions` is taken at transformers' attention functions; `reported` is what an older model hands out
  itself (`output_attentions`), after the checks of rows: it needs float32 and has no lengths of values.
- *given*: whether the same text, given instead of generated, has the same rows and readings within rounding; if not,
  why: the model's own generation drops keys, or the model itself computes something else with a cache.
- *gguf*: `yes` if models of the class with settings that are nobody's defaults (rope, windows, soft-caps, scales,
  biases, experts), written as llama.cpp lays them out and captured from that file, have the original's rows; else what
  the refusal names; `-` where the type is none that transformers reads from GGUF.
- *unused*: `yes` if the class's own folder is loaded whole, and refused by name with a bias or a layer that its
  configuration does not ask for.
- *lens*: `yes`, or why no logit lens can read the model.

**{works} of {total} work, {refused} are refused by name, {unbuilt} could not be built here.** None gave a wrong store.
Bidirectional encoders of their time (BERT, RoBERTa …) are asked for with `is_decoder=True`: as plain encoders they are
refused, because tokens see later ones. Composite models are run on text alone.

Worst difference of a row from eager attention: {worst:.1e}. Worst difference of the lens from the model's own tail:
{worst_lens:.1e}.
"""


COLUMNS = ("layers", "attention", "given", "gguf", "unused", "lens")
"""Fields of a verdict on a class that works, one a column."""


def page(verdicts: Sequence[Verdict], *, n_prompt: int, n_new: int, limits: tuple[float, float]) -> str:
    """The whole page, in the order of transformers' table."""
    working = [verdict for verdict in verdicts if verdict.works]
    refused = [verdict for verdict in verdicts if verdict.works is False]
    unbuilt = [verdict for verdict in verdicts if verdict.works is None]
    head = HEAD.format(
        version=transformers.__version__,
        prompt=n_prompt,
        new=n_new,
        attention=limits[0],
        lens=limits[1],
        works=len(working),
        total=len(verdicts),
        refused=len(refused),
        unbuilt=len(unbuilt),
        alone=sum(bool(verdict.alone) for verdict in working),
        worst=max(verdict.attention_error or 0.0 for verdict in working),
        worst_lens=max(verdict.lens_error or 0.0 for verdict in working),
    )
    parts = [head, "## Works\n", _table(working, COLUMNS)]
    parts += ["## Refused\n", _table(refused, ("reason",)), "## Not built\n", _table(unbuilt, ("reason",))]
    return "\n".join(parts)


def _table(verdicts: Sequence[Verdict], columns: tuple[str, ...]) -> str:
    lines = [f"| model type | class | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for verdict in verdicts:
        cells = [cell(getattr(verdict, column), verdict.name) for column in columns]
        lines.append(f"| `{verdict.kind}` | {verdict.name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def cell(text: str, name: str) -> str:
    """A reason without the class's own name before it, safe inside a table."""
    short = re.sub(rf"^{re.escape(name)}:? ", "", text)
    return short.replace("|", "\\|")


def listed(text: str) -> dict[str, tuple[str, bool | None, dict[str, str]]]:
    """What a page says: model type → class, whether it works (None: not built), its columns by their names."""
    found: dict[str, tuple[str, bool | None, dict[str, str]]] = {}
    works: bool | None = True
    names: list[str] = []
    for line in text.splitlines():
        if line.startswith("## "):
            works = {"## Works": True, "## Refused": False, "## Not built": None}[line]
        cells = [part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]]
        if line.startswith("| model type | class |"):
            names = cells[2:]
        elif match := re.match(r"\| `([^`]+)` \|", line):
            found[match[1]] = (cells[1], works, dict(zip(names, cells[2:], strict=True)))
    return found
