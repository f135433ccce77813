"""The command `lens capture`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnlens.commands.options import Json, Quiet

TOLD = 4
"""Notes of many captures that are printed; all are in the store."""
TRACKED_IDS = 1000
"""Ids that one `--track-id` may list: a slip such as 1-30000 would fill the disk."""

if TYPE_CHECKING:
    from attnlens.capture.batch.many import ManyReport
    from attnlens.capture.run import CaptureOptions
    from attnlens.capture.session import CaptureReport

MODEL, PROMPT, STORE = "Model", "Prompt (one of -p, --prompt-file, --messages, --prompts)", "Store"
GENERATION, EVIDENCE = "Generation", "Evidence"

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    'lens capture -m smollm2-135m -p "Why is the sky blue?"\n\n'
    "lens capture -m meta-llama/Llama-3.1-8B-Instruct --quantize 8bit --prompt-file q.txt\n\n"
    'lens capture -m ./my-model --raw -p "2+2=" --completion "5" --seam whole -o given.zarr\n\n'
    "lens capture -m ./my-model --messages talk.json --continue --tools tools.json -o talk.zarr\n\n"
    "lens capture -m ./llama-weights --tokenizer ./tokenizer.model -p Hello\n\n"
    "lens capture -m ./my-model --prompts questions.jsonl -o all.zarr --resume\n\n"
    "torchrun --nproc-per-node 4 -m attnlens capture -m ./my-model --prompts q.txt -o all.zarr\n\n"
    "accelerate launch --multi_gpu --num_processes 4 -m attnlens capture -m ./my-model --prompts q.txt -o all.zarr"
)


def capture(
    model: Annotated[
        str,
        typer.Option(
            "-m",
            "--model",
            metavar="MODEL",
            show_default=False,
            rich_help_panel=MODEL,
            help="Hub name, folder (Hugging Face or Meta layout), .gguf file, or smollm2-135m.",
        ),
    ],
    prompt: Annotated[
        str | None,
        typer.Option(
            "-p", "--prompt", metavar="TEXT", rich_help_panel=PROMPT, help="What to ask, as the user's message."
        ),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option("--prompt-file", metavar="FILE", rich_help_panel=PROMPT, help="The same, from a text file."),
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            metavar="FILE",
            rich_help_panel=PROMPT,
            help='A conversation: JSON list of {"role": …, "content": …}, or {"messages": …, "tools": …}.',
        ),
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            metavar="FILE",
            rich_help_panel=PROMPT,
            help="Many: one a line, as text or JSON. A capture each; a bad line fails alone.",
        ),
    ] = None,
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEXT", rich_help_panel=PROMPT, help="System message."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option("--raw", rich_help_panel=PROMPT, help="No chat template: the text goes in as it is."),
    ] = False,
    tools: Annotated[
        Path | None,
        typer.Option(
            "--tools", metavar="FILE", rich_help_panel=PROMPT, help="Tools for the chat template: a JSON list."
        ),
    ] = None,
    continue_last: Annotated[
        bool,
        typer.Option("--continue", rich_help_panel=PROMPT, help="Continue the last message, which is the assistant's."),
    ] = False,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="STORE", rich_help_panel=STORE, help="Where to write."),
    ] = Path("run.zarr"),
    overwrite: Annotated[
        bool,
        typer.Option(
            "--overwrite",
            rich_help_panel=STORE,
            help="Replace the store there (only ever a store), once the new one beside it is complete.",
        ),
    ] = False,
    append: Annotated[
        bool, typer.Option("--append", rich_help_panel=STORE, help="Add a capture to the store there.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", rich_help_panel=STORE, help="Go on after a kill: prompts that are not complete; a replacement."
        ),
    ] = False,
    max_new_tokens: Annotated[
        int,
        typer.Option("-n", "--max-new-tokens", metavar="N", rich_help_panel=GENERATION, help="Stop after N tokens."),
    ] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", metavar="T", rich_help_panel=GENERATION, help="0 is greedy.")
    ] = 0.1,
    top_p: Annotated[
        float, typer.Option("--top-p", metavar="P", rich_help_panel=GENERATION, help="Nucleus sampling.")
    ] = 0.9,
    seed: Annotated[
        int, typer.Option("--seed", metavar="N", rich_help_panel=GENERATION, help="Random seed for sampling.")
    ] = 0,
    completion: Annotated[
        str | None,
        typer.Option(
            "--completion",
            metavar="TEXT",
            rich_help_panel=GENERATION,
            help="Capture this answer instead of generating one.",
        ),
    ] = None,
    token_ids: Annotated[
        Path | None,
        typer.Option(
            "--token-ids",
            metavar="FILE",
            rich_help_panel=GENERATION,
            help="The same as token ids. Without a prompt the list is a whole text.",
        ),
    ] = None,
    seam: Annotated[
        str,
        typer.Option(
            "--seam",
            metavar="prompt|whole",
            rich_help_panel=GENERATION,
            help="If a token spans the end of the prompt and --completion: keep the prompt's tokens, or take those of "
            "the whole text.",
        ),
    ] = "prompt",
    generation: Annotated[
        list[str] | None,
        typer.Option(
            "--generation",
            metavar="FIELD=VALUE",
            rich_help_panel=GENERATION,
            help="Replace a generation setting of the model (docs/generation.md), null unsets it; may be repeated.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option("--dtype", metavar="DTYPE", rich_help_panel=MODEL, help="float32, bfloat16, float16."),
    ] = "auto",
    device: Annotated[
        str, typer.Option("--device", metavar="DEVICE", rich_help_panel=MODEL, help="cpu, cuda, cuda:1.")
    ] = "auto",
    quantize: Annotated[
        str | None, typer.Option("--quantize", metavar="8bit|4bit", rich_help_panel=MODEL, help="By bitsandbytes.")
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="REV", rich_help_panel=MODEL, help="Commit, tag or branch on the hub."),
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            metavar="PATH|NAME",
            rich_help_panel=MODEL,
            help="A tokenizer that lies elsewhere: folder, tokenizer.json, tokenizer.model, .gguf or hub name.",
        ),
    ] = None,
    ignore_weights: Annotated[
        list[str] | None,
        typer.Option(
            "--ignore-weights",
            metavar="PATTERN",
            rich_help_panel=MODEL,
            help="Tensors of the checkpoint to leave out, * for any text; may be repeated.",
            show_default=False,
        ),
    ] = None,
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            metavar="TEXT",
            rich_help_panel=STORE,
            help="Shown beside the model's name: tells this run from others.",
        ),
    ] = None,
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", rich_help_panel=MODEL, help="Run code that comes with the model."),
    ] = False,
    tensor_parallel: Annotated[
        bool,
        typer.Option(
            "--tensor-parallel", rich_help_panel=MODEL, help="Split the model over the processes of torchrun."
        ),
    ] = False,
    attention: Annotated[
        str,
        typer.Option(
            "--attention",
            metavar="dense|qk|auto",
            rich_help_panel=EVIDENCE,
            help="Every weight, or queries and keys: linear in the text's length, for long ones. "
            "auto takes what is smaller.",
        ),
    ] = "dense",
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", rich_help_panel=EVIDENCE, help="Lens tokens kept a position.")
    ] = 5,
    no_lens: Annotated[bool, typer.Option("--no-lens", rich_help_panel=EVIDENCE, help="Without a lens.")] = False,
    lens: Annotated[
        list[str] | None,
        typer.Option(
            "--lens",
            metavar="NAME",
            rich_help_panel=EVIDENCE,
            help="logit, tuned:FOLDER, tuned:hf://OWNER/NAME; may be repeated.",
            show_default=False,
        ),
    ] = None,
    lens_tokens: Annotated[
        str,
        typer.Option(
            "--lens-tokens",
            metavar="WHICH",
            rich_help_panel=EVIDENCE,
            help="all; generated; from N: on, or the prompt's last -N: on.",
        ),
    ] = "all",
    lens_points: Annotated[
        str,
        typer.Option(
            "--lens-points",
            metavar="WHERE",
            rich_help_panel=EVIDENCE,
            help="layers, or all: after each attention too.",
            show_default=False,
        ),
    ] = "layers",
    track: Annotated[
        list[str] | None,
        typer.Option(
            "--track",
            metavar="TEXT",
            rich_help_panel=EVIDENCE,
            help="A token to follow; may be repeated.",
        ),
    ] = None,
    track_id: Annotated[
        list[str] | None,
        typer.Option("--track-id", metavar="N,…", rich_help_panel=EVIDENCE, help="The same, by ids: 3,5-7."),
    ] = None,
    residuals: Annotated[
        bool,
        typer.Option("--residuals", rich_help_panel=EVIDENCE, help="Keep the residual streams themselves."),
    ] = False,
    no_value_norm: Annotated[
        bool,
        typer.Option("--no-value-norm", rich_help_panel=EVIDENCE, help="Leave out lengths of values."),
    ] = False,
    buffer: Annotated[
        int,
        typer.Option("--buffer", metavar="MIB", rich_help_panel=EVIDENCE, help="Memory for rows not yet on disk."),
    ] = 64,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run the model once and write everything it looked at to a store.

    Needs pip install 'attnlens\\[capture]'. Ctrl-C keeps what was committed: the store opens and can be drawn.
    """
    chosen = dict(locals())
    from attnlens.capture.batch.launch import one_of_several, read_launch
    from attnlens.capture.extra import require_capture_extra
    from attnlens.console import open_progress

    require_capture_extra()
    launch = read_launch()
    if prompts is not None and one_of_several():
        typer.echo(
            "lens: accelerate launch --cpu has started one process, which captures all prompts; for several, give it "
            "--multi_gpu instead of --cpu (without a GPU, too), or take torchrun",
            err=True,
        )
    follower = tensor_parallel and launch.rank > 0  # the first process speaks for all that hold the model
    process = (0, 1) if tensor_parallel else (launch.rank, launch.world)
    with open_progress(quiet or follower, process=process) as progress:
        progress.stage("loading")
        from attnlens.capture.batch.run import run_many
        from attnlens.capture.run import run

        options = options_of(chosen)
        if prompts is None:
            one = run(options, progress)
        else:
            many = run_many(options, progress)
    if follower:
        return
    if prompts is None:
        _tell_one(one, json)
    else:
        _tell_many(many, json)


def options_of(chosen: Mapping[str, Any]) -> CaptureOptions:
    """The options of a capture from what was chosen on the command line, by the names of `capture`'s parameters."""
    from attnlens.capture.run import CaptureOptions

    return CaptureOptions(
        model=chosen["model"],
        prompt=chosen["prompt"],
        prompt_file=chosen["prompt_file"],
        messages=chosen["messages"],
        prompts=chosen["prompts"],
        system=chosen["system"],
        raw=chosen["raw"],
        tools=chosen["tools"],
        continue_last=chosen["continue_last"],
        output=chosen["output"],
        overwrite=chosen["overwrite"],
        append=chosen["append"],
        resume=chosen["resume"],
        max_new_tokens=chosen["max_new_tokens"],
        temperature=chosen["temperature"],
        top_p=chosen["top_p"],
        seed=chosen["seed"],
        completion=chosen["completion"],
        token_ids=chosen["token_ids"],
        seam=chosen["seam"],
        generation_fields=tuple(chosen["generation"] or ()),
        dtype=chosen["dtype"],
        device=chosen["device"],
        quantize=chosen["quantize"],
        trust_remote_code=chosen["trust_remote_code"],
        revision=chosen["revision"],
        tokenizer=chosen["tokenizer"],
        ignore_weights=tuple(chosen["ignore_weights"] or ()),
        label=chosen["label"],
        tensor_parallel=chosen["tensor_parallel"],
        top_k=chosen["top_k"],
        attention=chosen["attention"],
        lens=not chosen["no_lens"],
        lenses=tuple(chosen["lens"] or ("logit",)),
        lens_points=chosen["lens_points"],
        track=(*(chosen["track"] or ()), *_ids(chosen["track_id"] or ())),
        residuals=chosen["residuals"],
        value_norm=not chosen["no_value_norm"],
        lens_tokens=chosen["lens_tokens"],
        buffer_mib=chosen["buffer"],
    )


def _ids(listed: Sequence[str]) -> Iterator[int]:
    """The ids that `--track-id` lists."""
    from attnlens.schemas.errors import Setting
    from attnlens.schemas.ranges import parse_ids

    for text in listed:
        yield from parse_ids(text, option=Setting("track", "--track-id"), most=TRACKED_IDS)


def _tell_one(report: CaptureReport, json: bool) -> None:
    from attnlens.console import human_bytes, one_line, to_json

    if json:
        typer.echo(to_json(report))
        return
    typer.echo(one_line(report.completion))
    if report.attention_choice is not None:
        typer.echo(f"attention: {report.attention}, {one_line(report.attention_choice)}")
    for note in report.notes:
        typer.echo(f"note: {one_line(note)}")
    typer.echo(
        f"{report.path}: capture {report.capture_id}, {report.n_prompt} + {report.n_token - report.n_prompt} tokens, "
        f"{human_bytes(report.bytes_written)} in {report.seconds:.1f} s. Next: lens render {report.path}"
    )


def _tell_many(report: ManyReport, json: bool) -> None:
    """What this process did; one line for each prompt that failed, and exit code 1 then."""
    from attnlens.console import human_bytes, one_line, to_json

    for failure in report.failures:
        typer.echo(f"lens: {one_line(failure.on_command_line())}", err=True)
    if json:
        typer.echo(to_json(report))
    else:
        size = human_bytes(sum(capture.bytes_written for capture in report.captures))
        kept = f", {len(report.kept)} were complete" if report.kept else ""
        failed = f", {len(report.failures)} failed" if report.failures else ""
        noted = [(capture.capture_id, note) for capture in report.captures for note in capture.notes]
        for capture_id, note in noted[:TOLD]:
            typer.echo(f"note: capture {capture_id}: {one_line(note)}")
        if len(noted) > TOLD:
            typer.echo(f"note: {len(noted) - TOLD} more, in the store")
        typer.echo(
            f"{report.path}: captured {len(report.captures)} of {report.prompts} prompts{kept}{failed}, "
            f"{size} in {report.seconds:.1f} s. Next: lens info {report.path}"
        )
    if report.left:
        typer.echo(
            f"lens: {report.left} of {report.prompts} prompts were left by processes that died; the same command with "
            "--resume does them",
            err=True,
        )
    if report.failures or report.left:
        raise typer.Exit(1)
