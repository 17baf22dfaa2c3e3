"""What the processes of the tests here run, each function under its own name."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import runpy
import signal
import stat
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

import sparsekern as sk
from tests.distributed.runs import assert_equal, go, local, outcome, start
from tests.processes import run

SAVED, STEPS = 10, 20


def saved_and_resumed(rank, size, path, **arguments):
    """A run that saves on its way, and another that loads that and goes on."""
    first = start(rank, size, **arguments)
    go(first, range(SAVED), rank, size)
    sk.distributed.save_checkpoint(
        path, *first.saved, {"step": SAVED, "table": torch.arange(4.0)}, generators=[first.generator]
    )
    result = {"at_save": outcome(first)}
    go(first, range(SAVED, STEPS), rank, size)
    result["unbroken"] = {**outcome(first), "local": local(first)}

    second = start(rank, size, seed=7, **arguments)
    go(second, range(2), rank, size)
    extra = sk.distributed.load_checkpoint(path, *second.saved, generators=[second.generator])
    result |= {"extra": extra, "loaded": outcome(second)}
    go(second, range(extra["step"], STEPS), rank, size)
    result["resumed"] = {**outcome(second), "local": local(second)}
    return result


def resumed(rank, size, path, **arguments):
    """A run that goes on from what another number of processes, or another wrapper, has saved."""
    used = start(rank, size, seed=7, **arguments)
    extra = sk.distributed.load_checkpoint(path, *used.saved, generators=[used.generator])
    result = {"extra": extra, "loaded": outcome(used)}
    go(used, range(extra["step"], STEPS), rank, size)
    return {**result, "resumed": outcome(used)}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(path, count):
    """Kill this process before it opens, makes, renames or removes something in `path` for this time."""
    left = count

    def hook(event, arguments):
        nonlocal left
        if event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"):
            if str(path) in str(arguments[0]):
                left -= 1
                if left == 0:
                    die()

    sys.addaudithook(hook)


def error_of(action):
    """Type and text of what an action raises."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "no error"


def each_alone(rank, size, path):
    """Processes that train, save and load models of their own, the last of them one time more often."""
    used = start(rank, 1, process_group=None, seed=rank)
    options = {"generators": [used.generator], "process_group": None}
    for step in range(2 + rank):
        go(used, range(5 * step, 5 * step + 5))
        sk.distributed.save_checkpoint(f"{path}-{rank}", *used.saved, step, **options)
    saved = outcome(used)
    go(used, range(3))
    step = sk.distributed.load_checkpoint(f"{path}-{rank}", *used.saved, **options)
    assert_equal(outcome(used), saved)
    return step


def dies_in_training(rank, size, path, wrapper):
    """The last process is killed after a checkpoint; what the others come to know of it."""
    used = start(rank, size, wrapper)
    go(used, range(SAVED), rank, size)
    sk.distributed.save_checkpoint(path, *used.saved, {"step": SAVED}, generators=[used.generator])
    go(used, range(SAVED, SAVED + 3), rank, size)
    if rank == size - 1:
        die()
    return error_of(lambda: go(used, range(SAVED + 3, STEPS), rank, size))


def dies_in_save(rank, size, path, victim, count):
    """One process is killed in its second save; what the others come to know of it."""
    used = start(rank, size, "fsdp")
    go(used, range(SAVED), rank, size)
    sk.distributed.save_checkpoint(path, *used.saved, {"step": SAVED}, generators=[used.generator])
    go(used, range(SAVED, SAVED + 3), rank, size)
    if rank == victim:
        die_at(path, count)
    return error_of(lambda: sk.distributed.save_checkpoint(path, *used.saved, generators=[used.generator]))


def killed_at_each_moment(rank, size, path, most):
    """For each moment of a second save at which a process can be killed, the step that is loaded then."""
    used = start()
    go(used, range(4))
    sk.distributed.save_checkpoint(path, *used.saved, {"step": 4})
    expected = {4: outcome(used)}
    go(used, range(4, 8))
    expected[8] = outcome(used)
    loaded, steps = start(seed=7), []
    for count in range(1, most):
        if (child := os.fork()) == 0:
            die_at(path, count)
            sk.distributed.save_checkpoint(path, *used.saved, {"step": 8})
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        steps.append(sk.distributed.load_checkpoint(path, *loaded.saved)["step"])
        assert_equal(outcome(loaded), expected[steps[-1]])
        if status == 0:
            return steps
        assert status == -signal.SIGKILL
        # As before the save, whatever the killed one had got to.
        sk.distributed.load_checkpoint(path, *loaded.saved)
    return "the save has more moments than were tried"


def disk_full(rank, size, path, wrapper):
    """For each file that a process writes: the error here while the disk is full for that process."""
    used = start(rank, size, wrapper)
    go(used, range(SAVED), rank, size)
    sk.distributed.save_checkpoint(path, *used.saved, {"step": SAVED})
    saved = outcome(used)
    go(used, range(SAVED, STEPS), rank, size)
    trained, fsync, errors = outcome(used), os.fsync, {}
    for victim, files in ((0, 5), (1, 2)):
        for count in range(1, files + 1):
            calls = 0

            def full(descriptor, count=count, victim=victim):
                nonlocal calls
                calls += stat.S_ISREG(os.fstat(descriptor).st_mode)
                if calls == count and rank == victim:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                fsync(descriptor)

            os.fsync = full
            save = lambda: sk.distributed.save_checkpoint(path, *used.saved, {"step": STEPS})  # noqa: E731
            errors[f"process {victim}, file {count}"] = error_of(save)
            os.fsync = fsync
            assert_equal(outcome(used), trained)
            other = start(rank, size, wrapper, seed=7)
            assert sk.distributed.load_checkpoint(path, *other.saved) == {"step": SAVED}
            assert_equal(outcome(other), saved)
    left = sorted(os.listdir(path))
    sk.distributed.save_checkpoint(path, *used.saved, {"step": STEPS})
    step = sk.distributed.load_checkpoint(path, *other.saved)["step"]
    assert_equal(outcome(other), trained)
    return {"errors": errors, "left": left, "step": step}


def damaged(rank, size, path):
    """By file: what a process says of a checkpoint in which that one has a flipped bit, or is not there."""
    used = start(rank, size, "fsdp")
    go(used, range(SAVED), rank, size)
    sk.distributed.save_checkpoint(path, *used.saved, {"step": SAVED})
    go(used, range(SAVED, STEPS), rank, size)
    trained, errors = outcome(used), {}
    for name in sorted(os.listdir(f"{path}/data-1")):
        file = f"{path}/data-1/{name}"
        for harm in ("flipped", "shorter", "missing"):
            dist.barrier()
            if rank == 0:
                os.rename(file, f"{path}/kept")
                content = bytearray(open(f"{path}/kept", "rb").read())
                content[len(content) // 2] ^= 16
                if harm != "missing":
                    open(file, "wb").write(content[: -1 if harm == "shorter" else None])
            dist.barrier()
            errors[f"{name} {harm}"] = error_of(lambda: sk.distributed.load_checkpoint(path, *used.saved))
            assert_equal(outcome(used), trained)
            dist.barrier()
            if rank == 0:
                os.replace(f"{path}/kept", file)
    dist.barrier()
    assert sk.distributed.load_checkpoint(path, *used.saved) == {"step": SAVED}
    return errors


def differing(rank, size, path):
    """By what is not the same in both processes: the error in each, which leaves everything as it was."""
    used = start(rank, size)
    go(used, range(3), rank, size)
    save, load = sk.distributed.save_checkpoint, sk.distributed.load_checkpoint
    errors = {"path": error_of(lambda: save(f"{path}-{rank}", *used.saved))}
    bad = None if rank == 1 else {"schedule": lambda step: 0.9**step}
    errors["extra"] = error_of(lambda: save(path, *used.saved, bad))
    exists = os.path.exists(path)
    save(path, *used.saved)
    # An update later, so that a load would show.
    go(used, range(3, 7), rank, size)
    trained = outcome(used)
    other = start(0, 1, method="SET" if rank == 1 else "RigL", seed=0)
    before = outcome(other)
    errors["method"] = error_of(lambda: load(path, *other.saved))
    errors["place"] = error_of(lambda: load(f"{path}{rank or ''}", *used.saved))
    assert_equal(outcome(used), trained)
    assert_equal(outcome(other), before)
    return {"errors": errors, "exists": exists}


class Sent(TorchDispatchMode):
    """Counts what this process hands to collectives, in bytes that a ring would have it send."""

    def __init__(self, size):
        super().__init__()
        self.size, self.bytes = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        c10d = torch.ops.c10d
        if func is c10d._allgather_base_.default:
            self.bytes += (self.size - 1) * args[1].nbytes
        elif func is torch.ops._c10d_functional.all_gather_into_tensor.default:
            self.bytes += (self.size - 1) * args[0].nbytes
        elif func is c10d._reduce_scatter_base_.default:
            self.bytes += (self.size - 1) * args[1].nbytes // self.size
        elif func is c10d.allreduce_.default:
            self.bytes += 2 * (self.size - 1) * sum(t.nbytes for t in args[0]) // self.size
        return func(*args, **(kwargs or {}))


def accounted(rank, size, strategy):
    """What a step, and one with an update of RigL, take of this process: bytes held, and sent."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(256, 256, bias=False) for _ in range(2)))
    sk.sparsify_(model, sparsity=0.9, init="per_neuron")
    used = model
    if strategy == "ddp":
        used = DistributedDataParallel(model)
    else:
        mesh = init_device_mesh("cpu", (size,))
        for layer in model:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    optimizer = torch.optim.AdamW(model.parameters())
    method = sk.RigL(model, optimizer, update_every=3, process_group="world")
    x = torch.randn(8, 256)
    steps = []
    for _ in range(3):
        optimizer.zero_grad()
        with Sent(size) as sent:
            used(x).square().sum().backward()
            in_step = sent.bytes
            optimizer.step()
        steps.append((in_step, sent.bytes - in_step))
    held = {
        "values": list(model.parameters()),
        "gradients": [p.grad for p in model.parameters()],
        "optimizer": [s for p in model.parameters() for s in optimizer.state[p].values() if s.dim()],
        "patterns": [layer.pattern.data for layer in model],
        "explored": [layer.explored.words for layer in method.layers],
    }
    bytes_held = {
        part: sum(getattr(t, "to_local", lambda t=t: t)().nbytes for t in tensors)
        for part, tensors in held.items()
    }
    assert method.updates == 1
    return {"held": bytes_held, "step": steps[1][0], "update": steps[2][1]}


def example(rank, size, script, port, arguments):
    """What an example prints."""
    variables = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in variables.items()}, MASTER_ADDR="127.0.0.1")
    sys.path.insert(0, os.path.dirname(script))
    sys.argv = [script, *arguments]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        runpy.run_path(script, run_name="__main__")
    return output.getvalue().splitlines()


if __name__ == "__rank__":
    run(JOB, globals())  # noqa: F821 (the fixture hands it over)
