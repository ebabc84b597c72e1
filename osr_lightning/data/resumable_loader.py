"""A loader of training images that goes on where a training was stopped, to the bit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist
from torch.utils.data import DataLoader

from osr_lightning.data.batch import Batch
from osr_lightning.errors import UserError

T = TypeVar("T")


class ResumableLoader(DataLoader[Batch]):
    """A loader of training images that a checkpoint can stop and resume between any two batches.

    What is drawn at random in training (the order of the images, dropout, augmentation) comes from torch's
    global generators. Their states are kept, those of the epoch's begin too, from which its order follows.

    Args:
        epoch_ends: the number of batches after which an epoch ends, if before the last.
        kwargs: of a `DataLoader`.
    """

    def __init__(
        self,
        *args: Any,  # noqa: ANN401
        epoch_ends: Callable[[], float] = lambda: float("inf"),
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        super().__init__(*args, **kwargs)
        self.epoch_ends = epoch_ends
        self._done = 0  # batches of this epoch
        self._begin = random_states()
        self._resumed: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """The batches of an epoch, or those that are left of the one that was stopped."""
        resumed, self._resumed = self._resumed, None
        if resumed is not None and resumed["done"]:
            batches = self._rest(resumed)
        else:
            if resumed is not None:
                set_random_states(resumed["now"])
            self._begin, self._done = random_states(), 0
            batches = super().__iter__()
        for batch in batches:
            self._done += 1
            yield batch

    def _rest(self, resumed: dict[str, Any]) -> Iterator[Batch]:
        set_random_states(resumed["begin"])
        self._begin, self._done = random_states(), resumed["done"]
        # the same draws as those of a whole epoch, without its images
        order: DataLoader[int] = DataLoader(
            range(len(self.dataset)),  # type: ignore[arg-type]
            batch_size=self.batch_size,
            sampler=self.sampler,
            collate_fn=list,
        )
        left = list(order)[self._done :]
        rest = DataLoader(
            self.dataset,
            batch_sampler=left,
            collate_fn=self.collate_fn,
            num_workers=self.num_workers,
            worker_init_fn=self.worker_init_fn,
            pin_memory=self.pin_memory,
        )
        batches = iter(rest)
        set_random_states(resumed["now"])
        yield from batches

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands on each process, and its random states; every process must ask."""
        done = 0 if self._done >= min(len(self), self.epoch_ends()) else self._done
        processes = of_all({"done": done, "begin": self._begin, "now": random_states()})
        return {"images": len(self.dataset), "batch_size": self.batch_size, "processes": processes}  # type: ignore[arg-type]

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there.

        Raises:
            UserError: where the training was of other images or batches and stopped within an epoch.
        """
        rank, count = place()
        try:
            processes = state["processes"]
            own = processes[min(rank, len(processes) - 1)]
            before = (state["images"], state["batch_size"], len(processes))
            done = int(own["done"])
            for states in (own["begin"], own["now"]):
                set_random_states(states)  # complains of what is none
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            raise UserError("the checkpoint's random states are damaged; train anew") from error
        now = (len(self.dataset), self.batch_size, count)  # type: ignore[arg-type]
        if done and before != now:
            said = "{} images in batches of {} on {} processes".format
            raise UserError(
                f"the checkpoint was written within an epoch of {said(*before)}, which cannot go on with "
                f"{said(*now)}; resume with the same, or from best.ckpt"
            )
        self._resumed = own


def random_states() -> list[Tensor]:
    """The states of torch's global generators: the CPU's, then each GPU's."""
    # asking a GPU that is not in use would take memory there
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if used else [])]


def set_random_states(states: list[Tensor]) -> None:
    """Go back to what `random_states` gave."""
    torch.set_rng_state(states[0])
    for device, state in enumerate(states[1:]):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, device)


def place() -> tuple[int, int]:
    """This process's number, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def of_all(own: T) -> list[T]:
    """Every process's own, in order; all must ask."""
    _, count = place()
    processes = [own] * count
    if count > 1:
        dist.all_gather_object(processes, own)
    return processes
