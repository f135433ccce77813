"""One capture: probe the model, run it once over prompt and generation, and stream the evidence into a store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from attnlens.capture.describe import device_name, model_info, versions
from attnlens.capture.evidence import AttentionEvidence, LensEvidence
from attnlens.capture.forward import attempt, input_device, logits_of
from attnlens.capture.memory import return_freed_memory
from attnlens.capture.override import tapped
from attnlens.capture.probe import Probed, probe
from attnlens.capture.prompt import Prompt, build_prompt, check_ids, encode_completion
from attnlens.capture.residual import LayerTracker
from attnlens.capture.sampling import Sampler, end_tokens
from attnlens.capture.tap import AttentionTap, Call
from attnlens.capture.vocabulary import Vocabulary
from attnlens.progress import Progress, Silent
from attnlens.schemas.errors import InputError, Interrupted
from attnlens.schemas.metadata import CaptureMetadata, LayerInfo, Sampling, SelfCheck
from attnlens.store.writer import CaptureWriter, StoreWriter

MIB = 1 << 20


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


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be captured: the text, and how it goes on."""

    prompt: Prompt
    given: tuple[int, ...] | None
    max_new_tokens: int

    @property
    def n_prompt(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt.ids)

    @property
    def capacity(self) -> int:
        """Tokens that the timeline can grow to."""
        return self.n_prompt + (self.max_new_tokens if self.given is None else len(self.given))


def capture(
    model: nn.Module,
    tokenizer: Any,
    prompt: str | Sequence[Mapping[str, Any]] | Sequence[int],
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
    plan = _plan(
        model, tokenizer, _prompt(tokenizer, prompt, system=system, raw=raw), completion, token_ids, max_new_tokens
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
        try:
            with writer.capture(metadata, capacity=plan.capacity, buffer_bytes=buffer_bytes) as rows:
                run = _Run(model, tokenizer, plan, probed, vocabulary, rows, sampler, device, progress, metadata)
                done = run.finish(started)
        except KeyboardInterrupt:
            raise Interrupted(_kept(Path(store), rows.metadata)) from None
    progress.end()
    return CaptureReport(
        path=Path(store),
        capture_id=metadata.id,
        n_prompt=plan.n_prompt,
        n_token=run.n_token,
        n_fed=run.seen,
        completion=done,
        seconds=time.perf_counter() - started,
        bytes_written=rows.bytes_written,
    )


def check_options(*, max_new_tokens: int, temperature: float, top_p: float, top_k: int) -> None:
    """Refuses numbers that mean nothing.

    Raises:
        InputError: as said.
    """
    if max_new_tokens < 0:
        raise InputError(f"max_new_tokens is {max_new_tokens}, expected 0 or more")
    if not 0 <= temperature < float("inf"):
        raise InputError(f"temperature is {temperature}, expected 0 (the most probable token) or more")
    if not 0 < top_p <= 1:
        raise InputError(f"top_p is {top_p}, expected more than 0 and at most 1")
    if top_k < 1:
        raise InputError(f"top_k is {top_k}, expected 1 or more")


def _kept(store: Path, metadata: CaptureMetadata) -> str:
    """What an interrupted capture leaves."""
    if metadata.committed == 0:
        return f"interrupted before the first rows were safe: nothing of capture {metadata.id} is kept in {store}"
    return (
        f"interrupted: {metadata.committed} rows of capture {metadata.id} are kept in {store}, marked partial; "
        "`lens info` and `lens render` read them"
    )


def _prompt(
    tokenizer: Any, prompt: str | Sequence[Mapping[str, Any]] | Sequence[int], *, system: str | None, raw: bool
) -> Prompt:
    """The prompt as ids, whatever it was given as."""
    if isinstance(prompt, str):
        return build_prompt(tokenizer, text=prompt, system=system, raw=raw)
    if prompt and all(isinstance(item, int) for item in prompt):
        ids = [int(item) for item in prompt if isinstance(item, int)]
        text = str(tokenizer.decode(ids, skip_special_tokens=False))
        return Prompt(text.encode("utf-8", "replace").decode("utf-8"), ids)
    messages = [dict(item) for item in prompt if isinstance(item, Mapping)]
    if not messages or len(messages) != len(prompt):
        raise InputError("the prompt is empty or mixed, expected text, a list of messages, or a list of token ids")
    return build_prompt(tokenizer, messages=messages, system=system, raw=raw)


def _plan(
    model: nn.Module,
    tokenizer: Any,
    prompt: Prompt,
    completion: str | None,
    token_ids: Sequence[int] | None,
    max_new_tokens: int,
) -> Plan:
    """Checks the text against the model's vocabulary and context; cuts the generation to what the context holds."""
    if completion is not None and token_ids is not None:
        raise InputError("both a completion and token ids were given; expected one of them")
    given = None
    if completion is not None:
        given = tuple(encode_completion(tokenizer, completion))
    elif token_ids is not None:
        given = tuple(int(token) for token in token_ids)
    config: Any = getattr(model, "config", None)
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    size = getattr(text_config, "vocab_size", None)
    if isinstance(size, int):
        check_ids([*prompt.ids, *(given or ())], size)
    context = getattr(text_config, "max_position_embeddings", None)
    if isinstance(context, int) and context > 0:
        length = len(prompt.ids) + len(given or ())
        if length > context:
            raise InputError(
                f"the {'text' if given else 'prompt'} is {length} tokens long, the model's context holds {context}; "
                "shorten it"
            )
        # The last generated token is never fed, hence one more than the context has room for.
        max_new_tokens = min(max_new_tokens, context - len(prompt.ids) + 1)
    return Plan(prompt=prompt, given=given, max_new_tokens=max_new_tokens)


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


class _Run:
    """The passes of one capture. Made, it runs."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        plan: Plan,
        probed: Probed,
        vocabulary: Vocabulary,
        rows: CaptureWriter,
        sampler: Sampler,
        device: torch.device,
        progress: Progress,
        metadata: CaptureMetadata,
    ) -> None:
        self._model, self._tokenizer, self._plan, self._probed = model, tokenizer, plan, probed
        self._vocabulary, self._rows, self._sampler, self._device = vocabulary, rows, sampler, device
        self._progress = progress
        self._metadata = metadata
        self._timings: dict[str, float] = {}
        self._timeline: list[int] = []
        self._table = {layer.index: layer for layer in probed.table}
        names = [layer.path for layer in probed.table]
        self._attention = AttentionEvidence(rows, plan.n_prompt, names, [layer.sinks for layer in probed.table])
        self._lens = None
        if probed.lens is not None and metadata.lens is not None:
            self._lens = LensEvidence(
                rows,
                probed.lens,
                vocabulary,
                n_depth=len(probed.layers) + 1,
                top_k=metadata.lens.top_k,
                size=probed.vocabulary_size,
            )
        self._tracker = LayerTracker(
            probed.path, probed.layers, self._lens.receive if self._lens else None, begun=self._layer_begun
        )
        self._tap = AttentionTap(self._tracker, self._attention.receive, observe=self._observe)
        self._in_prefill = True
        with self._tracker, tapped(model, self._tap):
            self._passes()

    @property
    def n_token(self) -> int:
        """Tokens on the timeline."""
        return len(self._timeline)

    @property
    def seen(self) -> int:
        """Tokens that went through the model."""
        return self._tracker.seen

    def _append(self, tokens: Sequence[int]) -> None:
        """Puts tokens on the timeline, here and in the store."""
        self._timeline.extend(tokens)
        words = self._vocabulary
        self._rows.tokens(
            list(tokens),
            [words.text(token) for token in tokens],
            [words.bytes(token) for token in tokens],
            [words.special(token) for token in tokens],
        )

    def _passes(self) -> None:
        plan = self._plan
        text = [*plan.prompt.ids, *(plan.given or ())]
        self._append(text)
        started = time.perf_counter()
        self._progress.stage("prefill", total=len(self._probed.layers), unit="layers")
        logits, cache = self._pass(text, None, generating=plan.given is None and plan.max_new_tokens > 0)
        self._in_prefill = False
        self._timings["prefill_s"] = time.perf_counter() - started
        if plan.given is not None or plan.max_new_tokens == 0:
            self._given_probabilities(logits, text)
            self._complete(None)
            return
        self._rows.rows(plan.n_prompt - 1)
        self._generate(logits[-1], cache)

    def _generate(self, logits: Tensor, cache: Any) -> None:
        """The decode loop: choose a token, complete the row that predicted it, feed it."""
        plan = self._plan
        ends = end_tokens(getattr(self._model, "generation_config", None)) or _tokenizer_end(self._tokenizer)
        self._progress.stage("decode", total=plan.max_new_tokens, unit="tokens")
        started = time.perf_counter()
        while True:
            timeline = torch.tensor(self._timeline, device=self._device)
            token = self._sampler.choose(timeline, logits)
            self._rows.model_probability(self.n_token - 1, _probability_of(logits, token))
            self._append([token])
            self._complete(token)
            self._progress.advance(1, note=f"{self._rows.bytes_written / MIB:.1f} MiB written")
            if token in ends or self.n_token == plan.capacity:
                break
            rows, cache = self._pass([token], cache, generating=True)
            logits = rows[-1]
        self._timings["decode_s"] = time.perf_counter() - started

    def _pass(self, tokens: Sequence[int], cache: Any, *, generating: bool) -> tuple[Tensor, Any]:
        """Feeds tokens; returns logits (token, vocabulary) of the last ones, and the cache."""
        first = self.seen
        ids = torch.tensor([list(tokens)], device=self._device)
        if self._lens is not None:
            self._lens.begin_pass(first, ids[0, 1:])
        self._tracker.begin(len(tokens))
        output = attempt(self._model, ids, self._probed.style, cache=cache, first=first, use_cache=generating, last=1)
        self._tracker.end()
        self._tap.forget_mask()
        self._attention.end_pass()
        if self._lens is not None:
            self._lens.end_pass()
        return logits_of(self._model, output)[0], getattr(output, "past_key_values", None)

    def _complete(self, following: int | None) -> None:
        """Everything of the rows so far is known: reads the last one through the lens and lets them be committed."""
        if self._lens is not None:
            self._lens.complete(following)
        self._rows.rows(self.seen)

    def _given_probabilities(self, logits: Tensor, text: Sequence[int]) -> None:
        """The model's own probabilities of given tokens, where the pass made their logits."""
        first = len(text) - len(logits)
        for row, token in enumerate(text[first + 1 :]):
            self._rows.model_probability(first + row, _probability_of(logits[row], token))

    def _layer_begun(self, layer: int) -> None:
        if self._in_prefill:
            self._progress.advance(1, note=f"{self._rows.bytes_written / MIB:.1f} MiB written")

    def _observe(self, call: Call) -> None:
        """Corrects a declared window by the mask of a prompt that is longer than it."""
        if self._in_prefill and call.mask is not None:
            self._table[call.layer] = _seen_window(self._table[call.layer], call.mask, call.key.shape[2])

    def finish(self, started: float) -> str:
        """Completes the capture; returns the generated text."""
        self._progress.stage("writing")
        new = self._timeline[self._plan.n_prompt :]
        completion = str(self._tokenizer.decode(new, skip_special_tokens=True)) if new else ""
        checks = [
            *self._metadata.self_checks,
            SelfCheck(name="capture: row sums", passed=True, value=self._attention.worst_row_sum, limit=1e-3),
        ]
        layers = [self._table[index] for index in sorted(self._table)]
        self._timings["total_s"] = time.perf_counter() - started
        self._rows.finish(
            {
                "completion": completion.encode("utf-8", "replace").decode("utf-8"),
                "model": self._metadata.model.model_copy(update={"layers": layers}),
                "timings": {name: round(seconds, 3) for name, seconds in self._timings.items()},
                "self_checks": checks,
            }
        )
        return completion


def _seen_window(layer: LayerInfo, mask: Tensor, n_key: int) -> LayerInfo:
    """The layer with the window that its mask really has for the last query."""
    if mask.dtype == torch.bool or mask.shape[-1] < n_key or layer.kind == "chunked":
        return layer
    visible = mask[0, 0, -1, :n_key] > torch.finfo(mask.dtype).min / 2
    window = int(visible.sum())
    if layer.window is not None and window == min(layer.window, n_key):
        return layer
    if window == n_key:
        return layer.model_copy(update={"kind": "full", "window": None})
    return layer.model_copy(update={"kind": "sliding", "window": window})


def _probability_of(logits: Tensor, token: int) -> NDArray[np.float32]:
    return np.array([float(torch.log_softmax(logits.float(), dim=-1)[token].exp())], dtype=np.float32)


def _tokenizer_end(tokenizer: Any) -> frozenset[int]:
    end = getattr(tokenizer, "eos_token_id", None)
    return frozenset() if end is None else frozenset({int(end)})
