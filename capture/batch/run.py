"""`lens capture --prompts`: from options to a store of many captures."""

from __future__ import annotations

from attnlens.capture.batch.asked import Defaults
from attnlens.capture.batch.file import read_prompts
from attnlens.capture.batch.launch import device_of, read_launch
from attnlens.capture.batch.many import ManyReport, check_store, run_batch
from attnlens.capture.origin import check_label
from attnlens.capture.run import CaptureOptions
from attnlens.progress import Progress
from attnlens.schemas.errors import InputError
from attnlens.store.replacement import announce, folder_for, mode_of


def run_many(options: CaptureOptions, progress: Progress) -> ManyReport:
    """Loads the model and captures every prompt of a file. Everything cheap is checked before the model is loaded.

    Raises:
        AttnlensError: the file, the model or the store cannot be used. What is wrong with single prompts, once the
            model runs, is in the report instead.
    """
    if options.prompts is None:
        raise InputError("no prompts; give them with --prompts FILE")
    refuse_single(options)
    if options.buffer_mib < 1:
        raise InputError(f"--buffer is {options.buffer_mib} MiB, expected 1 or more")
    settings, generation = options.settings, options.generation
    settings.check()
    generation.check()
    check_label(options.label)
    wording = options.wording
    wording.check()
    launch = read_launch()
    mode = mode_of(overwrite=options.overwrite, append=options.append, resume=options.resume)
    defaults = Defaults(generation=generation, wording=wording)
    asked = read_prompts(options.prompts, defaults)
    if not options.tensor_parallel or launch.rank == 0:  # the others of one model go where the first one does
        check_store(options.output, asked, settings, defaults, mode, launch)
        if launch.rank == 0:
            announce(folder_for(options.output, mode), options.output)
    device = options.device if options.tensor_parallel else device_of(launch, options.device)
    loaded = options.load(device, progress)
    return run_batch(
        loaded.model,
        loaded.tokenizer,
        asked,
        options.output,
        settings=settings,
        defaults=defaults,
        mode=mode,
        launch=launch,
        origin=loaded.origin(options.label),
        progress=progress,
    )


def refuse_single(options: CaptureOptions) -> None:
    """Options of a single prompt have no meaning beside many.

    Raises:
        InputError: one was given.
    """
    single = {
        "--prompt": options.prompt,
        "--prompt-file": options.prompt_file,
        "--messages": options.messages,
        "--completion": options.completion,
        "--token-ids": options.token_ids,
    }
    for name, value in single.items():
        if value is not None:
            raise InputError(f"{name} and --prompts were given; write it into {options.prompts}")
