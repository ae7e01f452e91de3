"""A worker's loop: frames in, plans executed, frames out, until end-of-file."""

import socket
import traceback
from collections import deque

import torch

from semipd.checkpoints.config import load_model_config
from semipd.checkpoints.layout import plan_weights
from semipd.checkpoints.weights import TORCH_DTYPES
from semipd.core.errors import SemipdError
from semipd.core.plan import PADDING_BLOCK, Join, Segment, StepPlan, StepResult, blocks_for
from semipd.core.request import SeqId
from semipd.core.sampling import SamplingParams
from semipd.core.split import Split
from semipd.devices.cpu.cores import lane_cores, pin_process
from semipd.devices.cpu.math.network import CpuNetwork
from semipd.devices.cpu.math.packing import Packed, packed_views
from semipd.devices.cpu.memory import SharedMemory
from semipd.devices.cpu.messages import (
    LANE_FRAME_BYTES,
    STEP_FAILED,
    Message,
    Setup,
    plan_from_wire,
    rebuild_from_wire,
    result_to_wire,
)
from semipd.devices.cpu.sizing import BLOCK_SIZE
from semipd.network.kv_layout import KvLayout
from semipd.steps.failures import check_trial
from semipd.steps.runner import StepRunner
from semipd.wire.frames import FrameReader, encode_frame

_WARM_UP_BATCHES = (1, 2, 4, 8)


class Executor:
    """A lane's share of the cores, and the StepRunner that works there."""

    def __init__(self, setup: Setup) -> None:
        """Attach the shared memory. The weights may still be loading: nothing reads them before `warm_up`."""
        self._setup = setup
        self._pinned: tuple[int, ...] = ()
        self.take_cores(setup.split)
        self._config = load_model_config(setup.model_dir, setup.max_model_len)
        self._layout = plan_weights(self._config, setup.dtype, packed=setup.packed)
        self._kv_layout = KvLayout.of(self._config, BLOCK_SIZE)
        dtype, shape = TORCH_DTYPES[setup.dtype], self._kv_layout.pool_shape(setup.num_blocks)
        kv_bytes = torch.Size(shape).numel() * dtype.itemsize
        self._weights = SharedMemory(setup.weights_fd, self._layout.total_bytes).tensor()
        self._kv_pool = SharedMemory(setup.kv_fd, kv_bytes).tensor().view(dtype).view(shape)

    def warm_up(self, packed: Packed) -> int:
        """Build the decoder and run both kinds of step, so that oneDNN's primitives and the allocator's
        pools exist. That happens in a small KV pool of its own: live sequences may own the blocks of the
        real one. Returns the nanoseconds that a prompt token takes, the first run apart: it takes many times
        as long. Raises what `check_trial` raises."""
        views = packed_views(self._layout, self._weights, packed)
        self._runner = self._runner_over(views, self._kv_pool)
        shape = self._kv_layout.pool_shape(warm_up_blocks(self._setup))
        rehearsal = self._runner_over(views, torch.zeros(shape, dtype=self._kv_pool.dtype))
        prompt, *decodes = warm_up_plans(self._setup, self._config.vocab_size)
        steps = []
        for plan in [prompt, *decodes, prompt]:
            steps.append((plan, rehearsal.execute(plan)))
            rehearsal.rebuild([])
        check_trial(steps, self._setup.dtype)
        return steps[-1][1].busy_ns // prompt.segments[0].length

    def _runner_over(self, views: dict[str, torch.Tensor], kv_pool: torch.Tensor) -> StepRunner:
        decoder = CpuNetwork(self._config, views, kv_pool)
        return StepRunner(decoder, self._config.vocab_size, torch.device("cpu"))

    def execute(self, plan: StepPlan) -> StepResult:
        self.take_cores(plan.split)
        return self._runner.execute(plan)

    def rebuild(self, residents: list[Join]) -> None:
        self._runner.rebuild(residents)

    def take_cores(self, split: Split) -> None:
        """Move to our share of `split`, if that is another one. Never more threads than cores: two threads
        on one core ran 20 times slower than one."""
        cores = lane_cores(self._setup.cores, self._setup.lane, split)
        if cores != self._pinned:
            pin_process(cores)
            torch.set_num_threads(len(cores))
            self._pinned = cores


def warm_up_blocks(setup: Setup) -> int:
    """Blocks of the warm-up's pool, padding included."""
    return min(setup.num_blocks, 1 + max(blocks_for(setup.warm_up_tokens, BLOCK_SIZE), _WARM_UP_BATCHES[-1]))


def warm_up_plans(setup: Setup, vocab_size: int) -> list[StepPlan]:
    """One prompt, then decode batches of tokens from all over the vocabulary; each plan stands alone."""
    params = SamplingParams(max_tokens=1, seed=0, top_p=0.9)
    pool = list(range(PADDING_BLOCK + 1, warm_up_blocks(setup)))
    length = min(setup.warm_up_tokens, setup.max_model_len, len(pool) * BLOCK_SIZE)
    join = Join(SeqId(0), [0] * length, length, params, pool[: blocks_for(length, BLOCK_SIZE)])
    plans = [StepPlan(0, setup.split, segments=(Segment(SeqId(0), 0, length, True),), joins=(join,))]
    for size in _WARM_UP_BATCHES:
        if size <= len(pool):
            tokens = [i * vocab_size // size for i in range(size)]
            joins = tuple(Join(SeqId(i), [t], 1, params, [pool[i]]) for i, t in enumerate(tokens))
            plans.append(StepPlan(0, setup.split, decode=tuple(join.seq for join in joins), joins=joins))
    return plans


class _Link:
    """Blocking frames; EOFError when the engine is gone."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._reader = FrameReader(LANE_FRAME_BYTES)
        self._arrived: deque[Message] = deque()

    def receive(self) -> Message:
        while not self._arrived:
            data = self._sock.recv(2**18)
            if not data:
                raise EOFError
            self._arrived += self._reader.feed(data)
        return self._arrived.popleft()

    def send(self, message: Message) -> None:
        self._sock.sendall(encode_frame(message))


def serve(sock: socket.socket) -> int:
    """Exit status: 0 at end-of-file, 1 after an error (which is sent first; nothing can go on after it)."""
    link = _Link(sock)
    try:
        _run(link)
    except (EOFError, ConnectionError):
        return 0
    except SemipdError as error:
        link.send({"op": "error", **error.details})
    except Exception as error:
        traceback.print_exc()
        message = f"{type(error).__name__}: {error}"
        link.send(
            {"op": "error", "code": STEP_FAILED, "message": message, "hint": "See the traceback above."}
        )
    return 1


def _run(link: _Link) -> None:
    executor = Executor(Setup.from_wire(link.receive()))
    link.send({"op": "attached"})
    decode: tuple[SeqId, ...] = ()
    while True:
        message = link.receive()
        match message["op"]:
            case "warm_up":
                link.send({"op": "ready", "token_ns": executor.warm_up(message["packed"])})
            case "rebuild":
                executor.rebuild(rebuild_from_wire(message))
            case "step":
                plan = plan_from_wire(message, decode)
                decode = plan.decode
                link.send(result_to_wire(executor.execute(plan)))
            case unknown:
                raise AssertionError(f"unknown message {unknown!r}")
