"""One model class, tiny and random, through the real capture and back: does the store hold what eager attention says?

Everything that a store of it claims is computed once more by transformers alone (its own `output_attentions`, its own
tail with another depth's residual put in), the text fed as a generation feeds it.
"""

from __future__ import annotations

import json
import resource
import tempfile
import traceback
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
import zarr

from attnlens.benchmarks.models.gguf_round_trip import round_trips
from attnlens.benchmarks.models.reference import Reference, one_pass, one_pass_of, reference_of, replayed
from attnlens.benchmarks.models.tiny_configs import names, tiny_config
from attnlens.benchmarks.models.tiny_overrides import NEEDS_CACHE, NOT_BUILT
from attnlens.benchmarks.models.tiny_tokenizer import byte_tokenizer
from attnlens.benchmarks.models.unused import unused_refused
from attnlens.capture import capture
from attnlens.schemas.errors import AttnlensError
from attnlens.store.verify import verify

MEMORY = 6 << 30
LARGEST = 10_000_000
"""Parameters; a configuration that asks for more was not made small."""
PROMPT = "Look where the tokens look, then say it."
N_NEW = 6
ATTENTION_LIMIT = 4e-4
"""Float16 rounds a weight below 1 by at most 2.5e-4."""
LENS_LIMIT = 1e-4
GIVEN_LIMIT = 6e-4
"""Two numbers that were rounded to float16, on their way from different kernels."""


@dataclass(kw_only=True)
class Verdict:
    """What came of one class. `works` is None where it could not be built here; `alone`: why it cannot generate."""

    kind: str
    name: str
    works: bool | None
    wrong: str = ""
    reason: str = ""
    layers: str = ""
    lens: str = ""
    attention: str = ""
    given: str = ""
    gguf: str = ""
    unused: str = ""
    alone: str = ""
    compared: str = ""
    attention_error: float | None = None
    lens_error: float | None = None


def build(kind: str, **changes: Any) -> Any:
    """A small random model, its weights larger than usual so that attention is far from uniform."""
    model_class = getattr(transformers, names()[kind])
    config = tiny_config(kind, **changes)
    if model_class.config_class is config.sub_configs.get("text_config"):
        config = config.get_text_config()
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class._from_config(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters: not made small")
    torch.manual_seed(0)
    model = model_class._from_config(config, attn_implementation="eager").eval()
    # How tokens are chosen is another matter; some classes force their last one.
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear | torch.nn.Embedding):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator) * 0.3)
        for name, parameter in model.named_parameters():
            if name.endswith("sinks"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def examine(kind: str) -> Verdict:
    """Builds, captures, verifies and compares one class."""
    verdict = Verdict(kind=kind, name=names()[kind], works=None)
    if kind in NOT_BUILT:
        verdict.reason = NOT_BUILT[kind]
        return verdict
    try:
        model = build(kind)
    except Exception as error:  # noqa: BLE001 - whatever a foreign constructor raises
        verdict.reason = f"cannot be built small: {type(error).__name__}: {' '.join(str(error).split())}"
        return verdict
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.zarr")
        try:
            capture(model, byte_tokenizer(), PROMPT, path, raw=True, max_new_tokens=N_NEW, temperature=0)
        except AttnlensError as refusal:
            verdict.works, verdict.reason = False, str(refusal)
            if path.exists():
                verdict.wrong = "refused only after the store was begun"
            return verdict
        verdict.works = True
        problems = [f"{finding.where}: {finding.message}" for finding in verify(path).problems]
        if problems:
            verdict.wrong = "; ".join(problems[:3])
        compare(model, zarr.open_group(path, mode="r")["0000"], verdict)
        load_files(model, Path(folder), verdict)
    return verdict


def load_files(model: Any, folder: Path, verdict: Verdict) -> None:
    """Whether the class comes back from a GGUF file, and whether a tensor too many in its folder is refused."""
    for place in ("gguf", "unused"):
        (folder / place).mkdir()
    verdict.gguf = round_trips(verdict.kind, folder / "gguf")
    verdict.unused = unused_refused(model, byte_tokenizer(), folder / "unused")
    for what, said in (("GGUF", verdict.gguf), ("an unused tensor", verdict.unused)):
        if said.startswith("no:"):
            verdict.wrong = "; ".join([*([verdict.wrong] if verdict.wrong else []), f"{what}: {said}"])


def compare(model: Any, group: Any, verdict: Verdict) -> None:
    """Holds the store's arrays against transformers' own computation."""
    about = group.attrs["attnlens"]
    table = about["model"]["layers"]
    calling = [row for row in table if row["kind"] != "none"]
    verdict.layers = f"{len(calling)} of {len(table)}"
    verdict.lens = about["lens_absent"] or "yes"
    verdict.attention = "functions" if calling[0]["key_features"] else "reported"
    ids = group["token_id"][:].tolist()
    cache = transformers.DynamicCache() if verdict.kind in NEEDS_CACHE else None
    prompt = ids[: about["n_prompt"]]
    reference = reference_of(model, prompt, N_NEW, [row["path"] for row in calling], cache=cache)
    verdict.compared, verdict.alone = reference.how, reference.trouble
    complaints = [verdict.wrong] if verdict.wrong else []
    if ids != reference.ids:
        verdict.wrong = "; ".join([*complaints, f"the text is {ids}, generate's is {reference.ids}"])
        return
    expected = rows_of(reference, calling, len(ids))
    stored = group["attention_weight"][:][:, :, : expected.shape[2]].astype(np.float32)
    verdict.attention_error = difference(stored[[row["index"] for row in calling]], expected)
    if not verdict.attention_error <= ATTENTION_LIMIT:
        complaints.append(f"attention is off by {verdict.attention_error:.2g}")
    if about["lens"] is not None:
        path = table[0]["path"].rpartition(".")[0]
        depth = calling[len(calling) // 2 - 1]["index"] + 1
        verdict.lens_error = max(_lens_error(group, reference), _replay_error(model, group, reference, path, depth))
        if not verdict.lens_error <= LENS_LIMIT:
            complaints.append(f"the lens is off the model's own tail by {verdict.lens_error:.2g}")
    verdict.given, complaint = as_given(model, group, calling, expected)
    verdict.wrong = "; ".join([*complaints, *([complaint] if complaint else [])])


def rows_of(reference: Reference, calling: list[dict[str, Any]], n_token: int) -> Any:
    """Attention float32 (layer with attention, head, query, key) of the queries that were fed, NaN where a layer has
    fewer heads."""
    n_fed, n_head = len(reference.logits), max(row["n_head"] for row in calling)
    rows = np.full((len(calling), n_head, n_fed, n_token), np.nan, np.float32)
    for layer, (row, steps) in enumerate(zip(calling, reference.attention, strict=True)):
        rows[layer, : row["n_head"]] = 0
        first = 0
        for own in steps:
            end = first + own.shape[1]
            rows[layer, : row["n_head"], first:end, end - own.shape[2] : end] = own.float().numpy()
            first = end
    return rows


def difference(one: Any, other: Any) -> float:
    """Largest difference between arrays; infinite if not the same numbers are absent in both."""
    if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
        return float("inf")
    return float(np.nanmax(np.abs(one.astype(np.float32) - other.astype(np.float32)), initial=0))


def as_given(model: Any, group: Any, calling: list[dict[str, Any]], generated: Any) -> tuple[str, str]:
    """The same text captured again, given instead of generated.

    Returns whether the two agree or why they differ by definition, and a complaint if neither is so. `generated`:
    transformers' own rows (layer, head, query, key) of the text as it was generated.
    """
    about = group.attrs["attnlens"]
    ids, n_prompt = group["token_id"][:].tolist(), about["n_prompt"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "given.zarr")
        capture(model, byte_tokenizer(), ids[:n_prompt], path, token_ids=ids[n_prompt:])
        given: Any = zarr.open_group(path, mode="r")["0000"]
        n_fed = generated.shape[2]
        off = difference(group["attention_weight"][:][:, :, :n_fed], given["attention_weight"][:][:, :, :n_fed])
        names = ("lens_probability", "next_probability") if about["lens"] is not None else ()
        read = max((difference(group[name][:][:, :n_fed], given[name][:][:, :n_fed]) for name in names), default=0.0)
    if max(off, read) <= GIVEN_LIMIT:
        return "yes", ""
    dropped = next((note for note in about["notes"] if "drops its keys" in note), None)
    if dropped is not None:
        return f"differs by definition: {dropped} ({off:.2g})", ""
    whole = one_pass_of(model, ids, [row["path"] for row in calling])
    own = difference(rows_of(whole, calling, len(ids))[:, :, :n_fed], generated)
    if abs(off - own) <= GIVEN_LIMIT < own:
        return f"differs by definition: with a cache the model itself has other rows than in one pass ({own:.2g})", ""
    return "no", f"given, the text has other rows ({off:.2g}; the model itself {own:.2g}) or readings ({read:.2g})"


def _lens_error(group: Any, reference: Reference) -> float:
    """Depth L against the model's own next-token probabilities."""
    fed = len(reference.logits)
    own = torch.log_softmax(reference.logits.double(), dim=-1)
    following = torch.tensor(group["token_id"][1 : fed + 1].astype(np.int64))
    chosen = own.gather(1, following[:, None])[:, 0].exp().numpy()
    top = own.max(dim=-1).values.exp().numpy()
    last = group["lens_probability"].shape[0] - 1
    errors = (
        np.abs(group["next_probability"][last, :fed] - chosen).max(),
        np.abs(group["lens_probability"][last, :fed, 0] - top).max(),
    )
    return float(max(errors))


def _replay_error(model: Any, group: Any, reference: Reference, path: str, depth: int) -> float:
    """A depth against the model's own tail; 0 where one pass differs from a cached one by itself."""
    fed = len(reference.logits)
    ids = group["token_id"][:fed].tolist()
    whole = one_pass(model, ids)
    if not torch.allclose(whole, reference.logits, atol=1e-3 * float(whole.abs().max())):
        return 0.0
    top = torch.softmax(replayed(model, ids, path, depth).double(), dim=-1).max(dim=-1).values.numpy()
    return float(np.abs(group["lens_probability"][depth, :fed, 0] - top).max())


def examine_bounded(kind: str, answer: Any) -> None:
    """In a process of its own: sends the verdict as JSON through the pipe `answer`."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    try:
        verdict = examine(kind)
    except Exception as error:  # noqa: BLE001 - a traceback of ours is a finding too
        traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        verdict = Verdict(kind=kind, name=names()[kind], works=None, wrong=f"the examination fails: {what}")
    answer.send(json.dumps(asdict(verdict)))
