"""One capture: probe the model, run it once over prompt and generation, and stream the evidence into a store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnlens.capture.describe import device_name, model_info, versions
from attnlens.capture.evidence import ROW_SUM_LIMIT
from attnlens.capture.forward import input_device
from attnlens.capture.memory import return_freed_memory
from attnlens.capture.passes import Passes
from attnlens.capture.plan import Text, check_options, plan_capture, read_prompt
from attnlens.capture.probe import probe
from attnlens.capture.sampling import Sampler
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import Interrupted
from attnlens.schemas.metadata import CaptureMetadata, Sampling, SelfCheck
from attnlens.store.layout import MIB
from attnlens.store.writer import CaptureWriter, StoreWriter


@dataclass(frozen=True, kw_only=True)
class CaptureReport:
    """What a capture did. `completion` is the generated (or given) text; `seconds` is the whole capture's."""

    path: Path
    capture_id: str
    n_prompt: int
    n_token: int
    n_fed: int
    completion: str
    seconds: float
    bytes_written: int


def capture(
    model: nn.Module,
    tokenizer: Any,
    prompt: Text,
    store: str | PathLike[str],
    *,
    system: str | None = None,
    raw: bool = False,
    completion: str | None = None,
    token_ids: Sequence[int] | None = None,
    max_new_tokens: int = 256,
    temperature: float = 0.1,
    top_p: float = 0.9,
    seed: int = 0,
    lens: bool = True,
    top_k: int = 5,
    overwrite: bool = False,
    append: bool = False,
    buffer_bytes: int = 64 * MIB,
    model_id: str | None = None,
    revision: str | None = None,
    quantization: dict[str, Any] | None = None,
    progress: Progress | None = None,
) -> CaptureReport:
    """Runs a causal language model once and writes its attention, lens tokens and metadata to `store`.

    The model may be one that you loaded and changed yourself (adapters, hooks of your own): it is put into eval mode
    and eager attention for the duration, and is left as it was found.

    Args:
        model: a causal language model of transformers, on any device.
        tokenizer: its tokenizer.
        prompt: text, chat messages ({role, content}), or token ids, which are fed as they are.
        store: path of the `.zarr` folder to make.
        system: a system message before a text prompt.
        raw: feed the text as it is, without the chat template.
        completion: capture this text after the prompt instead of generating (teacher forcing).
        token_ids: the same, as token ids.
        max_new_tokens: how many tokens to generate at the most.
        temperature: of sampling; 0 takes the most probable token.
        top_p: nucleus of sampling, Holtzman et al. 2020.
        seed: of sampling.
        lens: read the residual stream of every depth through the logit lens.
        top_k: how many tokens of each reading to keep.
        overwrite: replace a store that is there.
        append: add a capture to the store that is there.
        buffer_bytes: host memory that rows may take while they wait to be written.
        model_id: name to record; by default the model's own.
        revision: of the model, to record.
        quantization: to record, where the model's config does not say.
        progress: is told what happens.

    Raises:
        InputError: an argument cannot be used.
        ModelError: the model cannot be captured truthfully.
        StoreError: the store cannot be written.
        Interrupted: Ctrl-C; what was committed is kept.
    """
    started = time.perf_counter()
    progress = progress or Silent()
    return_freed_memory()
    check_options(max_new_tokens=max_new_tokens, temperature=temperature, top_p=top_p, top_k=top_k)
    writer = StoreWriter.create(store, overwrite=overwrite, append=append)  # writes nothing yet
    plan = plan_capture(
        model, tokenizer, read_prompt(tokenizer, prompt, system=system, raw=raw), completion, token_ids, max_new_tokens
    )
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(_evaluating(model))
        progress.stage("probe")
        device = input_device(model)
        # Before anything is written: a model that cannot be captured leaves no trace.
        sampler = Sampler(model, temperature=temperature, top_p=top_p, seed=seed, n_prompt=plan.n_prompt, device=device)
        probed = probe(model, torch.tensor(plan.prompt.ids, device=device), lens=lens)
        vocabulary = Vocabulary(tokenizer, probed.vocabulary_size)
        metadata = CaptureMetadata(
            id="pending",
            status="planned",
            committed=0,
            n_prompt=plan.n_prompt,
            n_token=plan.n_prompt,
            n_fed=0,
            prompt=plan.prompt.text,
            messages=plan.prompt.messages,
            attention="dense",
            model=model_info(
                model, probed, name=model_id or _name_of(model), revision=revision, quantization=quantization
            ),
            lens=probed.lens.info(min(top_k, probed.vocabulary_size)) if probed.lens else None,
            lens_absent=probed.lens_absent,
            sampling=Sampling(
                forced=plan.given is not None,
                max_new_tokens=plan.max_new_tokens,
                temperature=float(temperature),
                top_p=float(top_p),
                seed=seed,
                generation_config=sampler.settings,
            ),
            versions=versions(),
            device=device_name(device),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            self_checks=list(probed.checks),
        )
        metadata = metadata.model_copy(update={"id": writer.new_id()})
        rows: CaptureWriter | None = None
        try:
            with writer.capture(metadata, capacity=plan.capacity, buffer_bytes=buffer_bytes) as rows:
                passes = Passes(
                    model, tokenizer, plan, probed, vocabulary, rows, sampler, device, progress, top_k=top_k
                )
                passes.run()
                progress.stage("writing")
                completion_text = _decoded(tokenizer, passes.generated)
                rows.finish(_learnt(metadata, passes, completion_text, time.perf_counter() - started))
        except KeyboardInterrupt:
            raise Interrupted(_kept(Path(store), rows.metadata if rows is not None else metadata)) from None
    progress.end()
    return CaptureReport(
        path=Path(store),
        capture_id=metadata.id,
        n_prompt=plan.n_prompt,
        n_token=passes.n_token,
        n_fed=passes.seen,
        completion=completion_text,
        seconds=time.perf_counter() - started,
        bytes_written=rows.bytes_written,
    )


def _learnt(metadata: CaptureMetadata, passes: Passes, completion: str, seconds: float) -> dict[str, Any]:
    """What is known of a capture only when it is over."""
    row_sums = SelfCheck(name="capture: row sums", passed=True, value=passes.worst_row_sum, limit=ROW_SUM_LIMIT)
    timings = {**passes.timings, "total_s": seconds}
    return {
        "completion": completion,
        "model": metadata.model.model_copy(update={"layers": passes.table}),
        "timings": {name: round(value, 3) for name, value in timings.items()},
        "self_checks": [*metadata.self_checks, row_sums],
    }


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text = str(tokenizer.decode(list(ids), skip_special_tokens=True)) if ids else ""
    return text.encode("utf-8", "replace").decode("utf-8")


def _kept(store: Path, metadata: CaptureMetadata) -> str:
    """What an interrupted capture leaves."""
    if metadata.committed == 0:
        return f"interrupted before the first rows were safe: nothing of capture {metadata.id} is kept in {store}"
    return (
        f"interrupted: {metadata.committed} rows of capture {metadata.id} are kept in {store}, marked partial; "
        "`lens info` and `lens render` read them"
    )


def _name_of(model: nn.Module) -> str:
    """Hub name of a model as transformers recorded it; the last part where it is a path on this machine."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", "") or type(model).__name__)
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = {id(module): module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module in model.modules():
            module.training = training.get(id(module), module.training)
