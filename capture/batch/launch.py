"""The processes of one run, as `torchrun` and `accelerate launch` start them. Read from the environment, without torch.

No process group is needed to share prompts: what keeps the processes apart is the store, so one that dies costs only
the prompt that it was at.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from attnlens.schemas.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Launch:
    """This process: number `rank` of `world`, `local_rank` on its machine. `run` is the same for all of them."""

    run: str
    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def shared(self) -> bool:
        """Whether there are other processes."""
        return self.world > 1

    @property
    def name(self) -> str:
        """For messages: "process 2 of 4"."""
        return f"process {self.rank + 1} of {self.world}"


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """This process among those that were launched together; alone where no launcher says otherwise.

    Raises:
        InputError: the launcher's variables are no numbers that go together.
    """
    found = os.environ if environment is None else environment
    world = _number(found, "WORLD_SIZE", 1)
    if world == 1 or "RANK" not in found:
        return Launch(run=secrets.token_hex(16))
    rank = _number(found, "RANK", 0)
    local_world = _number(found, "LOCAL_WORLD_SIZE", world)
    if not 0 <= rank < world:
        raise InputError(f"RANK is {rank} and WORLD_SIZE is {world}, expected a rank of 0 … {world - 1}")
    address = [found.get(name, "") for name in ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE")]
    if local_world == world:  # one machine: the launcher itself is what they share, and no other run does
        address.append(_launcher())
    digest = hashlib.sha256("\n".join(address).encode()).hexdigest()
    local_rank = _number(found, "LOCAL_RANK", rank % local_world)
    return Launch(run=digest[:32], rank=rank, world=world, local_rank=local_rank, local_world=local_world)


def one_of_several(environment: Mapping[str, str] | None = None) -> bool:
    """Whether `accelerate launch --cpu` was asked for several processes: without MPI it starts one and says nothing."""
    found = os.environ if environment is None else environment
    return found.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in found and "WORLD_SIZE" not in found


def device_of(launch: Launch, device: str) -> str:
    """The device of this process: of several on one machine each takes its own GPU, if nothing else was asked for."""
    if not launch.shared or device not in ("auto", "cuda"):
        return device
    import torch

    if not torch.cuda.is_available():
        return device
    return f"cuda:{launch.local_rank % torch.cuda.device_count()}"


def _number(found: Mapping[str, str], name: str, default: int) -> int:
    text = found.get(name, str(default))
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{name} is {text!r}, expected a number; it is set by torchrun or accelerate launch") from None


def _launcher() -> str:
    """The parent process and when it began, so that its number is not mistaken for that of an earlier one."""
    parent = os.getppid()
    try:
        began = Path(f"/proc/{parent}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        began = ""
    return f"{parent} {began}"
