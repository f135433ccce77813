"""`lens capture`: from options to a store. Everything cheap is checked before the model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attnlens.capture.batch.launch import read_launch
from attnlens.capture.engine import CaptureReport, capture
from attnlens.capture.models import LoadedModel, load
from attnlens.capture.origin import check_label
from attnlens.capture.plan import Text
from attnlens.capture.prompt_files import read_conversation, read_prompt_file, read_token_ids, read_tools
from attnlens.capture.prompt_options import PromptOptions
from attnlens.capture.settings import Generation, Settings, parse_overrides
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError
from attnlens.store.layout import MIB
from attnlens.store.replacement import announce, mode_of
from attnlens.store.writer import StoreWriter


@dataclass(frozen=True, kw_only=True)
class CaptureOptions:
    """The options of `lens capture`, named as there."""

    model: str
    output: Path
    prompt: str | None = None
    prompt_file: Path | None = None
    messages: Path | None = None
    prompts: Path | None = None
    system: str | None = None
    raw: bool = False
    tools: Path | None = None
    continue_last: bool = False
    overwrite: bool = False
    append: bool = False
    resume: bool = False
    max_new_tokens: int = 256
    temperature: float = 0.1
    top_p: float = 0.9
    seed: int = 0
    completion: str | None = None
    token_ids: Path | None = None
    seam: str = "prompt"
    generation_fields: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    quantize: str | None = None
    trust_remote_code: bool = False
    revision: str | None = None
    tokenizer: str | None = None
    ignore_weights: tuple[str, ...] = ()
    label: str | None = None
    tensor_parallel: bool = False
    top_k: int = 5
    attention: str = "dense"
    lens: bool = True
    lenses: tuple[str, ...] = ("logit",)
    lens_points: str = "layers"
    lens_tokens: str = "all"
    track: tuple[str | int, ...] = ()
    residuals: bool = False
    value_norm: bool = True
    buffer_mib: int = 64

    @property
    def settings(self) -> Settings:
        """What is kept."""
        return Settings(
            attention=self.attention,
            lens=self.lens,
            lenses=self.lenses,
            lens_points=self.lens_points,
            lens_tokens=self.lens_tokens,
            track=self.track,
            residuals=self.residuals,
            value_norm=self.value_norm,
            top_k=self.top_k,
            buffer_bytes=self.buffer_mib * MIB,
        )

    @property
    def generation(self) -> Generation:
        """How a text goes on."""
        return Generation(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            overrides=parse_overrides(self.generation_fields),
        )

    @property
    def wording(self) -> PromptOptions:
        """How prompts become tokens."""
        return PromptOptions(
            system=self.system,
            raw=self.raw,
            tools=_tools(self),
            continue_last=self.continue_last,
            seam=self.seam,
        )

    def load(self, device: str, progress: Progress) -> LoadedModel:
        """The model and its tokenizer, on `device`."""
        return load(
            self.model,
            dtype=self.dtype,
            device=device,
            quantize=self.quantize,
            trust_remote_code=self.trust_remote_code,
            revision=self.revision,
            tensor_parallel=self.tensor_parallel,
            tokenizer=self.tokenizer,
            ignore_weights=self.ignore_weights,
            progress=progress,
        )


def run(options: CaptureOptions, progress: Progress) -> CaptureReport:
    """Loads the model and captures one prompt.

    Raises:
        AttnlensError: an input, the model or the store cannot be used; nothing is left half-written.
    """
    if options.buffer_mib < 1:
        raise InputError(f"--buffer is {options.buffer_mib} MiB, expected 1 or more")
    options.settings.check()
    options.generation.check()
    check_label(options.label)
    wording = options.wording
    wording.check()
    mode_of(overwrite=options.overwrite, append=options.append, resume=options.resume)
    launch = read_launch()
    if launch.shared and not options.tensor_parallel:
        raise InputError(
            f"{launch.world} processes were started for one prompt; give several with --prompts FILE, or let them hold "
            "one model together with --tensor-parallel"
        )
    prompt, token_ids = prompt_of(options)
    if launch.rank == 0:
        writer = StoreWriter.create(  # checks, writes nothing
            options.output, overwrite=options.overwrite, append=options.append, resume=options.resume
        )
        announce(writer.path, writer.place)
    loaded = options.load(options.device, progress)
    return capture(
        loaded.model,
        loaded.tokenizer,
        prompt,
        options.output,
        system=wording.system,
        raw=wording.raw,
        tools=wording.tools,
        continue_last=wording.continue_last,
        completion=options.completion,
        token_ids=token_ids,
        seam=wording.seam,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_p=options.top_p,
        seed=options.seed,
        generation=options.generation.overrides,
        attention=options.attention,
        lens=options.lens,
        lenses=options.lenses,
        lens_points=options.lens_points,
        lens_tokens=options.lens_tokens,
        track=options.track,
        residuals=options.residuals,
        value_norm=options.value_norm,
        top_k=options.top_k,
        overwrite=options.overwrite,
        append=options.append,
        resume=options.resume,
        buffer_bytes=options.buffer_mib * MIB,
        origin=loaded.origin(options.label),
        progress=progress,
    )


def prompt_of(options: CaptureOptions) -> tuple[Text, Sequence[int] | None]:
    """The one prompt that was given, and the token ids to go on with (None: generate)."""
    prompts = {"--prompt": options.prompt, "--prompt-file": options.prompt_file, "--messages": options.messages}
    named = [name for name, value in prompts.items() if value is not None]
    if len(named) > 1:
        raise InputError(f"{' and '.join(named)} were given; expected one prompt")
    if options.completion is not None and options.token_ids is not None:
        raise InputError("--completion and --token-ids were given; expected one of them")
    given = read_token_ids(options.token_ids) if options.token_ids is not None else None
    completion = given.completion or None if given is not None else None
    if given is not None and (given.prompt is not None or not named):
        if named:
            raise InputError(f"{named[0]} was given, and {options.token_ids} holds a prompt too; expected one prompt")
        if options.system is not None:
            raise InputError("--system was given with a prompt of token ids; write its ids into the file")
        # A bare list of ids is a whole text: its first token is the prompt, and pictures exist for the rest.
        return (given.prompt, completion) if given.prompt is not None else (given.completion[:1], given.completion[1:])
    if not named:
        raise InputError("no prompt; give one with -p TEXT, --prompt-file, --messages, --token-ids or --prompts FILE")
    if options.continue_last and options.messages is None:
        raise InputError(f"--continue was given with {named[0]}; it continues the last message of --messages FILE")
    if options.messages is not None:
        if options.system is not None:
            raise InputError("--system and --messages were given; put the system message into the messages file")
        return read_conversation(options.messages).messages, completion
    if options.prompt_file is not None:
        return read_prompt_file(options.prompt_file), completion
    return options.prompt or "", completion


def _tools(options: CaptureOptions) -> tuple[Mapping[str, Any], ...] | None:
    """Those of `--tools`, or those that the file of messages holds."""
    beside = read_conversation(options.messages).tools if options.messages is not None else None
    if options.tools is None:
        return beside
    if beside is not None:
        raise InputError(f"--tools was given, and {options.messages} holds tools too; expected one of them")
    return read_tools(options.tools)
