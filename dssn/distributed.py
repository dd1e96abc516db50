"""Processes: who am I, how do we talk. Only this file knows DDP, SyncBatchNorm and launchers.

A world of size 1 needs no process group: every function here is then the identity it should be.
"""
import atexit
import datetime
import json
import os
import re
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dssn.errors import Stopped, UserError

# A process that ends takes the others along at once, since its connections close or the launcher
# stops them. This is for one that hangs, or a machine that vanishes: how long the others wait. Rank
# 0 may need minutes alone, to look for the files of long lists on slow storage.
TIMEOUT = datetime.timedelta(minutes=15)

# PyTorch 2.0 takes the student's two passes a step for a change of the graph; 2.14 does not.
STATIC_GRAPH = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 14)


class World:
    """This process's place: rank, local_rank, size, device."""

    timeout = TIMEOUT

    def __init__(self, rank=0, local_rank=0, size=1, device='cpu'):
        self.rank, self.local_rank, self.size = rank, local_rank, size
        self.device = torch.device(device)

    @property
    def is_main(self):
        return self.rank == 0

    def prepare_student(self, model, static=True):
        """The student on its device, synchronised and wrapped for training.

        Args:
            static: whether every step makes the same passes and exchanges gradients after each
                backward pass, which lets PyTorch plan ahead; not so with `accumulate`.
        """
        model = self.prepare_teacher(model)
        if self.size == 1:
            return model
        options = {'static_graph': True} if static and STATIC_GRAPH else {}
        # Two forward passes a step: buffers must not be overwritten between them.
        return DistributedDataParallel(
            model, device_ids=[self.local_rank] if self.device.type == 'cuda' else None,
            broadcast_buffers=False, gradient_as_bucket_view=True, **options)

    def prepare_teacher(self, model):
        """A network on its device; across GPUs its BN is synchronised (gloo's stays plain)."""
        if self.size > 1 and self.device.type == 'cuda':
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.to(self.device)

    def share_buffers(self, *models):
        """Every rank takes rank 0's buffers (BN's running statistics differ on plain BN)."""
        if self.size > 1:
            for model in models:
                for buffer in model.buffers():
                    dist.broadcast(buffer, 0)

    def sum(self, tensor):
        """The sum of a tensor over all ranks, on every rank."""
        if self.size > 1:
            tensor = tensor.clone()
            dist.all_reduce(tensor)
        return tensor

    def highest(self, number):
        """The largest of all ranks' whole numbers, on every rank."""
        if self.size == 1:
            return number
        tensor = torch.tensor(number, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.item()

    def on_main(self, work):
        """What work() gives on rank 0, on every rank: a plain value, such as JSON knows.

        Raises:
            UserError: on every rank, if work() raises one, so that none waits for another.
        """
        if self.size == 1:
            return work()
        failure, text = None, b''
        if self.is_main:
            try:
                text = json.dumps({'value': work()}).encode()
            except UserError as error:
                failure, text = error, json.dumps({'error': str(error)}).encode()
        length = torch.tensor(len(text), device=self.device)
        dist.broadcast(length, 0)
        data = torch.zeros(int(length), dtype=torch.uint8, device=self.device)
        if self.is_main:
            data.copy_(torch.tensor(list(text), dtype=torch.uint8))
        dist.broadcast(data, 0)
        answer = json.loads(bytes(data.tolist()).decode())
        if 'error' in answer:
            raise failure or UserError('process 0 failed, and says why')
        return answer['value']

    def rows(self, vector):
        """(size, N) of each rank's (N,) vector on rank 0, None elsewhere; gloo's group only."""
        found = [torch.zeros_like(vector) for _ in range(self.size)] if self.is_main else None
        dist.gather(vector, found)
        return torch.stack(found) if self.is_main else None

    @property
    def has_plain_bn(self):
        """Whether BN's running statistics are each process's own between two epochs."""
        return self.size > 1 and self.device.type == 'cpu'

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        # After an error the others never come to `close`; ending the process leaves the group.
        if kind is None or issubclass(kind, Stopped):
            self.close()
        elif self.size > 1 and not lost_contact(error):
            tell_torchrun(f'{kind.__name__}: {error}')
            if issubclass(kind, UserError):
                raise UserError(f'rank {self.rank} of {self.size}: {error}') from None
        elif self.size > 1:
            raise UserError(f'rank {self.rank} of {self.size}: lost another process; '
                            'if that one printed an error, here or in the log of its machine, it '
                            f'is the cause ({one_line(error)})') from None

    def close(self):
        """Wait for all ranks. The groups end with the process, see `exit`: on PyTorch 2.0 it hangs
        now and then to destroy gloo's, even when all ranks do it at once."""
        if self.size > 1:
            waiting = torch.zeros(1, device=self.device)
            dist.all_reduce(waiting)
            waiting.item()  # NCCL's is only queued by then


def start(device='auto', local_rank=None, port=None):
    """Join the launcher's world: torchrun, torch.distributed.launch, srun or plain python.

    Args:
        device: 'auto', 'cpu' or 'cuda'. local_rank: the flag some launchers pass. port: rank 0's,
            where the launcher sets none (srun).

    Returns:
        A `World`.
    """
    rank, size, local_rank = _place(os.environ, local_rank, port)
    has_cuda = torch.cuda.is_available()
    if device == 'cuda' and not has_cuda:
        raise UserError('device = cuda, but PyTorch finds no GPU here; use device=auto or cpu, or '
                        'check the driver and CUDA_VISIBLE_DEVICES')
    if device == 'cpu' or not has_cuda:
        world = World(rank, local_rank, size, 'cpu')
    else:
        if local_rank >= torch.cuda.device_count():
            raise UserError(f'process {local_rank} of this machine has no GPU of its own: PyTorch '
                            f'finds {torch.cuda.device_count()}; start at most as many processes')
        torch.cuda.set_device(local_rank)
        world = World(rank, local_rank, size, f'cuda:{local_rank}')
    if size > 1:
        join(world)
    return world


def join(world):
    """Meet the other processes at MASTER_ADDR:MASTER_PORT.

    Raises:
        UserError: this process could not.
    """
    backend = 'nccl' if world.device.type == 'cuda' else 'gloo'
    # Until PyTorch 2.2 NCCL keeps to the time only with this.
    if backend == 'nccl' and tuple(map(int, torch.__version__.split('.')[:2])) < (2, 2):
        os.environ.setdefault('NCCL_ASYNC_ERROR_HANDLING', '1')
    try:
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    except RuntimeError as error:
        raise UserError(
            f'rank {world.rank} of {world.size}: could not meet the others at '
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({one_line(error)}); "
            'all must be started, with an address that each of them reaches and a port that is '
            'free there') from None


def lost_contact(error):
    """Whether an error says that a process, or the way to it, is gone."""
    return isinstance(error, RuntimeError) and re.search(
        r'gloo|nccl|connection (closed|reset) by peer', str(error), re.IGNORECASE)


def tell_torchrun(message):
    """Have an error named in the summary of failures that torchrun ends with."""
    path = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if path:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump({'message': message, 'timestamp': int(time.time())}, file)


def one_line(error):
    return ' '.join(str(error).split())


def _place(env, local_rank, port):
    """(rank, size, local_rank) from a launcher's environment; sets the rendezvous for srun."""
    if 'RANK' in env and 'WORLD_SIZE' in env:
        if 'LOCAL_RANK' in env:
            local_rank = int(env['LOCAL_RANK'])
        return int(env['RANK']), int(env['WORLD_SIZE']), local_rank or 0
    # srun's own variable: a batch script's shell has SLURM_NTASKS too, but is one process.
    if int(env.get('SLURM_STEP_NUM_TASKS', 1)) > 1:
        env.setdefault('MASTER_ADDR', _first_host(env.get('SLURM_STEP_NODELIST', '')))
        env.setdefault('MASTER_PORT', str(port or 29500))
        return (int(env['SLURM_PROCID']), int(env['SLURM_STEP_NUM_TASKS']),
                int(env['SLURM_LOCALID']))
    return 0, 1, local_rank or 0


def _first_host(nodelist):
    """The first host of slurm's list, such as node[03-05,9]."""
    try:
        names = subprocess.run(['scontrol', 'show', 'hostnames', nodelist], check=True,
                               stdout=subprocess.PIPE, universal_newlines=True).stdout.split()
        if names:
            return names[0]
    except (OSError, subprocess.CalledProcessError):
        pass  # no scontrol in a container: read the list ourselves
    first = re.match(r'(?:\[[^\]]*\]|[^,\[])*', nodelist).group()
    return re.sub(r'\[(\d+)[^\]]*\]', r'\1', first) or '127.0.0.1'


def exit(status=0):
    """End the process with an exit status, as sys.exit does.

    Where there are groups the interpreter is not taken down: gloo's threads abort that now and
    then, after all work is done (seen on PyTorch 2.14, with and without leaving the group).
    """
    if dist.is_available() and dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    sys.exit(status)


def cores_of_a_process(size, env=os.environ):
    """How many of this machine's cores one of the `size` processes of the world has to itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    if 'LOCAL_WORLD_SIZE' in env:  # torchrun
        size = int(env['LOCAL_WORLD_SIZE'])
    elif 'SLURM_CPUS_PER_TASK' in env:  # srun: the cores we see may be ours alone, or all
        return min(cores, int(env['SLURM_CPUS_PER_TASK']))
    elif 'SLURM_STEP_TASKS_PER_NODE' in env:  # such as 4(x2)
        size = int(re.match(r'\d+', env['SLURM_STEP_TASKS_PER_NODE']).group())
    return max(cores // size, 1)


def unwrap(model):
    """The network inside DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model
