"""Running a frozen backbone with torch, on the CPU or on an accelerator; with torch.compile for long jobs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbones.backbone import Backbone
from ..core.errors import EngineError, PipelineError, UnknownNameError, one_line
from ..data import nvjpeg
from ..data.device_resize import Ready, resized
from ..data.preprocessing import MOST_PIXELS
from ..data.staging import Room, Staged, stage
from .cuda_graphs import Work, record
from .memory import CPU_BATCH, CUDA_BATCH, USUAL_BATCH, FittingBatches, filled, keep_freed_memory

if TYPE_CHECKING:
    import torch

TRIED_BYTES = 2**25  # copied to the device to tell how fast it goes


class TorchEngine:
    """A backbone made ready on one device. Safe to call from several threads at once.

    Parameters
    ----------
    backbone : Backbone
    device : str
        ``auto`` (any accelerator that torch offers, else the CPU), or a torch device such as ``cuda:1``.
    batch_size : int, optional
        Images a forward pass; default what suits the device.
    owned : bool, optional
        Whether one thread alone runs the network, in batches of one size that are filled up; default on accelerators.
        cuDNN keeps its plans by thread and by size of batch: in every worker they would be made anew, in seconds.

    Attributes
    ----------
    device : torch.device
    dtype : numpy dtype
        Of the rows that it returns: float16 at float16 precision, else float32.
    features : int
        D, the length of a row.
    batch_size : int
        Images a forward pass that suit the device.
    network : nn.Module
        Frozen: evaluation mode, no gradients.
    resizes : bool
        Whether `images` takes images as decoded and resizes them on the device.
    notes : list of str
        Remarks for the user.
    """

    name = "torch"

    def __init__(
        self, backbone: Backbone, device: str = "auto", batch_size: int | None = None, owned: bool | None = None
    ):  # fmt: skip
        import torch

        from .preparation import PreparedNetwork

        self.device = choose_device(device)
        self.on_cpu = self.device.type == "cpu"
        if backbone.precision == "tf32" and self.device.type != "cuda":
            raise PipelineError(f"tf32 is arithmetic of NVIDIA's GPUs; {self.device.type!r} has none. Use --precision "
                                "float32 or bfloat16.")
        keep_freed_memory()
        if not self.on_cpu and backbone.precision in ("float32", "tf32"):
            # torch's default for convolutions is 10 bits of mantissa, which is not what float32 says
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = backbone.precision == "tf32"
        self.dtype = np.dtype("float16" if backbone.precision == "float16" else "float32")
        kind = torch.float32 if backbone.precision == "tf32" else getattr(torch, backbone.precision)
        self.notes: list[str] = []
        owned = not self.on_cpu if owned is None else owned
        self._owner = ThreadPoolExecutor(1, "owner", self._take_device) if owned else None
        self._fitting = FittingBatches(self._forward, self.notes)
        self._transform, self._crop = backbone.transform, backbone.transform.crop
        self.resizes = owned
        self._staging = threading.local()  # each decoding thread's own
        self._graph: tuple[int, torch.Tensor, Work, torch.Tensor] | None = None
        usual = {"cuda": CUDA_BATCH, "cpu": CPU_BATCH}.get(self.device.type, USUAL_BATCH)
        self.batch_size, self._asked = batch_size or usual, batch_size is not None
        with one_thread():
            self.network: Any = PreparedNetwork(backbone, kind, self.device.type).to(self.device)
            if self._owner:
                self._owner.submit(self._warm_up).result()
            else:
                self._prepare()
                self.features = self(np.zeros((1, *self._crop, 3), np.uint8)).shape[1]

    def _take_device(self) -> None:
        """Make the device the calling thread's: its streams and events are then those of its device, of several too."""
        import torch

        if self.device.type == "cuda" and self.device.index is not None:
            torch.cuda.set_device(self.device)

    def _warm_up(self) -> None:
        """Prepare the network in the thread that will run it, and find the batch that fits."""
        self._prepare()
        self.features = self._fitting(np.zeros((self.batch_size, *self._crop, 3), np.uint8)).shape[1]
        self.batch_size = self._fitting.most or self.batch_size
        if not self._asked:
            self.notes.clear()  # nobody asked for the batch that was too large
        if self.device.type == "cuda":
            self._capture(self.batch_size)

    def _capture(self, size: int) -> None:
        """Record the forward pass as a CUDA graph, which one call replays.

        Every operation by itself would wait for the interpreter's lock behind the decoding threads: 150 times a batch.
        """
        import torch

        pixels = torch.zeros((size, *self._crop, 3), dtype=torch.uint8, device=self.device)
        rows: list[torch.Tensor] = []

        def work() -> None:
            rows[:] = [self.network(pixels)]

        self._graph = None
        try:
            with torch.inference_mode():
                replay = record(work, self.device)
        except RuntimeError as error:  # a network may do what cannot be recorded
            self.notes.append(f"The network cannot be replayed as a CUDA graph ({one_line(error)}): its operations are "
                              "started one by one, which is slower.")
            return
        self._graph = size, pixels, replay, rows[0]

    def _batch(self, size: int) -> torch.Tensor:
        """Return the pixels of a batch on the device, to be filled and given to `_computed`."""
        import torch

        if self._graph and self._graph[0] == size:
            return self._graph[1]
        return torch.zeros((size, *self._crop, 3), dtype=torch.uint8, device=self.device)

    def _computed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the rows of what `_batch` returned; the next call may overwrite them."""
        if self._graph and pixels is self._graph[1]:
            self._graph[2]()
            return self._graph[3]
        return self.network(pixels)

    def _prepare(self) -> None:
        """Make `network` faster still."""
        from .preparation import fuse

        if self.on_cpu:
            fuse(self.network, self._crop)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Compute features.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (N, H, W, 3)
            What the backbone's transform returns, stacked.

        Returns
        -------
        ndarray of `dtype`, shape (N, D)
        """
        if self._owner is None:
            return self._forward(pixels)
        size = self.batch_size
        parts = [pixels[start : start + size] for start in range(0, len(pixels), size)]
        waiting = [self._owner.submit(self._fitting, filled(part, size)) for part in parts]
        return np.concatenate([each.result()[: len(part)] for part, each in zip(parts, waiting, strict=True)])

    def images(self, found: Sequence[Ready]) -> np.ndarray:
        """Compute features of images that the device decodes or resizes, and of plain views that are ready.

        Parameters
        ----------
        found : sequence of Encoded, Decoded, or (V, H, W, 3) uint8 arrays

        Returns
        -------
        ndarray of `dtype`, shape (N, D)

        Raises
        ------
        UndecodableError
            If the device could not decode one of the files.
        """
        room = getattr(self._staging, "room", None)
        if room is None:
            room = self._staging.room = Room(self.batch_size * 3 * MOST_PIXELS, self._page_locked)
        room.clear()
        return self.staged(stage(found, self._transform, room))

    def staged(self, batch: Staged) -> np.ndarray:
        """Compute features of a batch that is laid out; its memory may be used again afterwards.

        Returns
        -------
        ndarray of `dtype`, shape (count, D)

        Raises
        ------
        UndecodableError
            See `images`.
        """
        import torch

        assert self._owner is not None
        size = self.batch_size
        try:
            waiting = (self._owner.submit(self._launch, part, size) for part in batch.parts(size))
            return np.concatenate([each.result()() for each in waiting])
        except torch.OutOfMemoryError:
            pass  # only outside of `except` is what the failed attempt held free again
        if self.batch_size == size:  # or another thread has halved it meanwhile
            self._graph = None  # of a size that does not come again
            self.batch_size = self._fitting.halve(size)
        return self.staged(batch)

    def _page_locked(self, size: int) -> np.ndarray:
        """Return bytes from which a copy to the device needs no processor."""
        import torch

        return torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda").numpy()

    def bytes_per_second(self) -> float:
        """Measure how fast bytes come to the device."""
        import torch

        def copied() -> float:
            begin = time.perf_counter()
            held.to(self.device, copy=True).flatten()[-1].item()
            return len(held) / (time.perf_counter() - begin)

        assert self._owner is not None
        held = torch.from_numpy(self._page_locked(TRIED_BYTES))
        return max(self._owner.submit(copied).result() for _ in range(4))  # the first one makes room there

    def lock_pages(self, memory: np.ndarray, lock: bool) -> None:
        """Have the driver lock memory into place, for copies that need no processor, or let it go.

        Where it refuses, copies are slower, and that is all.
        """
        import torch

        if self.device.type != "cuda":
            return
        with torch.cuda.device(self.device):
            runtime, place = torch.cuda.cudart(), memory.ctypes.data
            done = runtime.cudaHostRegister(place, memory.nbytes, 1) if lock else runtime.cudaHostUnregister(place)
            if done != runtime.cudaError.success:
                with suppress(RuntimeError):  # the refusal is told once more, to whatever comes next
                    torch.zeros(1, device=self.device)

    def _launch(self, staged: Staged, size: int) -> Callable[[], np.ndarray]:
        """Have the device resize and compute; return what waits for the rows, while the next batch can be launched."""
        import torch

        with torch.inference_mode():
            pixels = self._batch(size)
            for group in staged.groups:
                there = (nvjpeg.decode_batch(group.images, self.device) if isinstance(group.images, list)
                         else torch.from_numpy(group.images).to(self.device, non_blocking=True))
                pixels[_places(group.places, staged)] = resized(there, group.plan, self._transform.fill)
            if staged.places:
                views = torch.from_numpy(staged.views).to(self.device, non_blocking=True)
                pixels[_places(staged.places, staged)] = views
            rows = self._computed(pixels)[: staged.count]
            if self.device.type != "cuda":
                done = rows.cpu().numpy().astype(self.dtype, copy=False)
                return lambda: done
            host = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            host.copy_(rows, non_blocking=True)
            event = torch.cuda.Event()
            event.record()

        def waited() -> np.ndarray:
            event.synchronize()
            return host.numpy().astype(self.dtype, copy=True)

        return waited

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        import torch

        with torch.inference_mode():
            batch = torch.from_numpy(pixels)
            if self.device.type == "cuda":
                batch = batch.pin_memory()  # from there the copy needs no processor, and others go on meanwhile
            there = self._batch(len(batch)).copy_(batch, non_blocking=True) if self._graph else batch.to(self.device)
            rows = self._computed(there)
            return rows.cpu().numpy().astype(self.dtype, copy=False)


def _places(places: list[int], staged: Staged) -> list[int] | slice:
    """Return places of a batch, as a slice where that is all of them: a list is a copy of its own to the device."""
    return places if len(places) < staged.count else slice(len(places))


@contextmanager
def one_thread() -> Iterator[None]:
    """Run what prepares a network on one thread: others decode meanwhile, and threads would wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of that name; ``auto`` is torch's accelerator where there is one, else the CPU.

    Raises
    ------
    UnknownNameError, PipelineError
        If torch knows no such device, or this machine has none.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnknownNameError("device", name, ("auto", "cpu", "cuda", "cuda:0", "mps", "xpu")) from error
    try:
        torch.empty(1, device=device)
    except Exception as error:  # AssertionError, RuntimeError or NotImplementedError, by the backend
        raise PipelineError(f"The device {name!r} is not available on this machine: {str(error).splitlines()[0]}"
                            " Use --device auto or --device cpu.") from error
    return device


def devices(name: str) -> list[str]:
    """Return the devices that a name stands for: ``auto`` and ``cuda`` for all GPUs, any other for itself."""
    import torch

    chosen = choose_device(name)
    if chosen.type == "cuda" and chosen.index is None and torch.cuda.device_count() > 1:
        return [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return [name]


class CompiledEngine(TorchEngine):
    """A backbone compiled for one batch size; smaller batches are filled up.

    Parameters
    ----------
    backbone, device
        As for `TorchEngine`.
    batch_size : int

    Raises
    ------
    EngineError
        If torch cannot compile this network here; most often a C++ compiler is missing.
    """

    name = "compile"

    def __init__(self, backbone: Backbone, device: str = "auto", batch_size: int = 8):
        self._size = batch_size
        super().__init__(backbone, device, batch_size)

    def _prepare(self) -> None:
        import torch

        plain, threads = self.network, torch.get_num_threads()
        try:
            if self.on_cpu:
                torch.set_num_threads(1)  # the code is made for a number of threads: one, as every worker has
            compiled: Any = torch.compile(plain, dynamic=False, options={"freezing": self.on_cpu})
            self.network = compiled
            self._forward(np.zeros((1, *self._crop, 3), np.uint8))
        except Exception as error:  # compilers fail in many ways
            raise EngineError(f"torch.compile failed: {one_line(error)}.") from error
        finally:
            torch.set_num_threads(threads)

    def _forward(self, pixels: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(pixels), self._size):
            part = pixels[start : start + self._size]
            parts.append(super()._forward(filled(part, self._size))[: len(part)])
        return np.concatenate(parts)
