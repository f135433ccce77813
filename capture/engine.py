"""`capture`: one prompt, from a model and its tokenizer to a store."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

from torch import nn

from attnlens.capture.generation_fields import check_overrides
from attnlens.capture.model_kind import check_model
from attnlens.capture.origin import Origin
from attnlens.capture.parallel import on_first, parallel_of
from attnlens.capture.plan import Text, plan_capture, read_prompt
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.session import CaptureReport, open_session
from attnlens.capture.settings import Generation, Settings
from attnlens.progress import Progress, Silent
from attnlens.store.layout import MIB
from attnlens.store.writer import StoreWriter

__all__ = ["CaptureReport", "capture"]


def capture(
    model: nn.Module,
    tokenizer: Any,
    prompt: Text,
    store: str | PathLike[str],
    *,
    system: str | None = None,
    raw: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    continue_last: bool = False,
    completion: str | None = None,
    token_ids: Sequence[int] | None = None,
    seam: str = "prompt",
    max_new_tokens: int = 256,
    temperature: float = 0.1,
    top_p: float = 0.9,
    seed: int = 0,
    generation: Mapping[str, Any] | None = None,
    attention: str = "dense",
    lens: bool = True,
    lenses: Sequence[str] = ("logit",),
    lens_points: str = "layers",
    lens_tokens: str = "all",
    track: Sequence[str | int] = (),
    residuals: bool = False,
    value_norm: bool = True,
    top_k: int = 5,
    overwrite: bool = False,
    append: bool = False,
    resume: bool = False,
    buffer_bytes: int = 64 * MIB,
    model_id: str | None = None,
    revision: str | None = None,
    quantization: dict[str, Any] | None = None,
    label: str | None = None,
    origin: Origin | None = None,
    progress: Progress | None = None,
) -> CaptureReport:
    """Runs a causal language model once and writes its attention, lens tokens and metadata to `store`.

    The model may be one that you loaded and changed yourself (adapters, hooks of your own): it is put into eval mode
    and eager attention for the duration, and is left as it was found.

    Args:
        model: a causal language model of transformers, on any device.
        tokenizer: its tokenizer.
        prompt: text, chat messages ({role, content}), or token ids (a list, an array or a tensor of one axis), which
            are fed as they are.
        store: path of the `.zarr` folder to make.
        system: a system message before a text prompt.
        raw: feed the text as it is, without the chat template.
        tools: descriptions of tools for the chat template, as JSON objects.
        continue_last: continue the last message, which is the assistant's, instead of answering it.
        completion: capture this text after the prompt instead of generating (teacher forcing).
        token_ids: the same, as token ids.
        seam: where a completion begins when the tokenizer joins it with the prompt: `prompt` keeps the prompt's tokens,
            `whole` takes the tokens of the whole text.
        max_new_tokens: how many tokens to generate at the most.
        temperature: of sampling; 0 takes the most probable token.
        top_p: nucleus of sampling, Holtzman et al. 2020.
        seed: of sampling.
        generation: fields of the model's generation settings to replace; None unsets one.
        attention: keep every weight ("dense"), or the queries and keys that they are made of ("qk", linear in the
            length of the text where weights are square), or let the predicted size decide ("auto").
        lens: read the residual stream of every depth through lenses.
        lenses: which: `logit`, `tuned:FOLDER`; the first has the plain names in the store.
        lens_points: `layers` reads between layers, `all` inside them too, after attention and before the MLP.
        lens_tokens: which tokens lenses read: `all`; `generated`, from the last prompt token on; `N:`, from token N of
            the prompt on; `-N:` or `last:N`, the last N of the prompt and all after it. Rows of the others are absent.
        track: tokens whose rank and probability are kept at every depth, each by its exact text or its id.
        residuals: keep the residual streams themselves.
        value_norm: keep the length of each value through its head's output projection.
        top_k: how many tokens of each reading to keep.
        overwrite: replace a store that is there. The new one is written beside it (`run.new.zarr` for `run.zarr`) and
            takes its place when it is complete.
        append: add a capture to the store that is there.
        resume: begin again what a killed run with `overwrite` has left beside the store; with `overwrite` too, also if
            there is nothing of that kind.
        buffer_bytes: host memory that rows may take while they wait to be written.
        model_id: name to record; by default the model's own.
        revision: of the model, to record.
        quantization: to record, where the model's config does not say.
        label: free text to record and to show beside the model's name, which tells this run from others of the model:
            one line, at most 200 characters.
        origin: all of these together, as `attnlens.capture.models.load` knows them; what is given beside it goes first.
        progress: is told what happens.

    Raises:
        InputError: an argument cannot be used.
        ModelError: the model cannot be captured truthfully.
        StoreError: the store cannot be written.
        Interrupted: Ctrl-C; what was committed is kept.
    """
    started = time.perf_counter()
    progress = progress or Silent()
    settings = Settings(
        attention=attention,
        lens=lens,
        lenses=tuple(lenses),
        lens_points=lens_points,
        lens_tokens=lens_tokens,
        track=tuple(track),
        residuals=residuals,
        value_norm=value_norm,
        top_k=top_k,
        buffer_bytes=buffer_bytes,
    )
    sampling = Generation(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        overrides=check_overrides({} if generation is None else generation),
    )
    wording = PromptOptions(
        system=system,
        raw=raw,
        tools=None if tools is None else tuple(tools),
        continue_last=continue_last,
        seam=seam,
    )
    check_model(model)
    settings.check()
    sampling.check()
    wording.check()
    parallel = parallel_of(model)
    # Writes nothing yet.
    writer = on_first(parallel, lambda: StoreWriter.create(store, overwrite=overwrite, append=append, resume=resume))
    text = read_prompt(tokenizer, prompt, wording)
    plan = plan_capture(model, tokenizer, text, completion, token_ids, sampling.max_new_tokens, wording)
    with open_session(
        model,
        tokenizer,
        text.ids,
        settings,
        progress,
        origin=(origin or Origin()).given(id=model_id, revision=revision, quantization=quantization, label=label),
    ) as session:
        capture_id = writer.new_id() if writer is not None else "0000"
        report = session.capture(plan, sampling, writer, capture_id, progress, started=started)
    progress.end()
    return report
