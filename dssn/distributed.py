"""Processes and their communication. Only this file knows DDP, SyncBatchNorm and launchers.

A world of size 1 has no process group; its functions then return their input.
"""
import atexit
import datetime
import json
import os
import re
import socket
import subprocess
import sys
import time

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from dssn.errors import Stopped, UserError

# How long processes wait for one that hangs, or for a machine that vanishes. If a process ends, the
# others end at once, because connections close or the launcher stops them. Rank 0 alone may need
# minutes to check the files of long lists on slow storage.
TIMEOUT = datetime.timedelta(minutes=15)

# Messages of gloo, NCCL and PyTorch's store if another process, or the connection to it, is lost or
# too slow. Messages that have other causes as well (a wrong address, a shared GPU, an error in this
# process) are left out: "Connection refused", "Connect timeout", NCCL's "system error" and
# "internal error".
LOST = re.compile(
    r'connection (was likely )?(closed|reset)|closed by remote peer|broken pipe'
    r'|failed to recv, got 0 bytes|application timeout caused pair closure'
    r'|timed out waiting \d+ms for (recv|send)|collective operation timeout'
    r'|ran for \d+ milliseconds before timing out|socket timeout|wait timeout after'
    r'|ncclRemoteError|remote process exited'
    # A communicator that was aborted for another reason names it.
    r'|communicator was aborted(?!.*original reason)', re.IGNORECASE | re.DOTALL)

# PyTorch 2.0 treats the student's two passes per step as a change of the graph. 2.14 does not.
STATIC_GRAPH = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 14)


class World:
    """This process among all: rank, local_rank, number of processes (size), device."""

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
            static: whether all steps have the same passes and exchange gradients after each
                backward pass, so that DDP can optimise. It is False with `accumulate`.
        """
        model = self.prepare_teacher(model)
        if self.size == 1:
            return model
        options = {'static_graph': True} if static and STATIC_GRAPH else {}
        # There are two forward passes per step. Buffers must not be overwritten in between.
        return DistributedDataParallel(
            model, device_ids=[self.device.index] if self.device.type == 'cuda' else None,
            broadcast_buffers=False, gradient_as_bucket_view=True, **options)

    def prepare_teacher(self, model):
        """A network on its device. BN is synchronised across GPUs, but not across CPU processes."""
        if self.size > 1 and self.device.type == 'cuda':
            model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return model.to(self.device)

    def share_buffers(self, *models):
        """Copy rank 0's buffers to every rank: without SyncBatchNorm running statistics differ."""
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
        """Call work() on rank 0; returns its result on every rank. The result must fit into JSON.

        Raises:
            UserError: on every rank, if work() raises one. So no rank waits for another.
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
            raise failure or UserError('process 0 failed; see its error message')
        return answer['value']

    def rows(self, vector):
        """All ranks' vectors (N,) as rows (size, N) on rank 0; None on other ranks. CPU only."""
        found = [torch.zeros_like(vector) for _ in range(self.size)] if self.is_main else None
        dist.gather(vector, found)
        return torch.stack(found) if self.is_main else None

    def host_group(self):
        """A gloo group of all ranks, for tensors in CPU memory. All ranks must call it.

        Raises:
            UserError: the hosts cannot reach each other.
        """
        try:
            return dist.new_group(backend='gloo', timeout=self.timeout)
        except RuntimeError as error:
            if lost_contact(error):
                raise
            raise UserError(f'the processes have met, but {no_gloo(error)}') from None

    @property
    def has_plain_bn(self):
        """Whether BN's running statistics differ between processes within an epoch."""
        return self.size > 1 and self.device.type == 'cpu'

    def __enter__(self):
        return self

    def __exit__(self, kind, error, _):
        # After an error the other processes do not reach `close`. The group ends with this process.
        if kind is None or issubclass(kind, Stopped):
            self.close()
        elif self.size > 1:
            place = f'rank {self.rank} of {self.size}: '
            if lost_contact(error):
                raise UserError(f'{place}lost another process; if it printed an error, here or in '
                                'the log of its machine, that is the cause '
                                f'({one_line(error)})') from None
            if shares_gpu(error):
                error = UserError(
                    f'NCCL refuses these GPUs, probably because two processes use the same one '
                    f'({one_line(error)}); this process uses {self.device}; give each process a '
                    'GPU of its own: as many GPUs as processes on each machine, under Slurm by '
                    '--gpus-per-task=1 or --gres=gpu:<tasks per machine>')
            report_to_torchrun(f'{type(error).__name__}: {error}')
            if isinstance(error, UserError):
                raise UserError(f'{place}{error}') from None

    def close(self):
        """Wait for all ranks.

        The groups end with the process, see `exit`. On PyTorch 2.0 destroying gloo's group
        sometimes hangs, even if all ranks do it at once.
        """
        if self.size > 1:
            waiting = torch.zeros(1, device=self.device)
            dist.all_reduce(waiting)
            waiting.item()  # NCCL has only queued it so far


def start(device='auto', local_rank=None, port=None):
    """Join the processes of a launcher: torchrun, torch.distributed.launch, srun or plain python.

    Args:
        device: 'auto', 'cpu' or 'cuda'. local_rank: the flag that some launchers pass. port: of
            rank 0, used if the launcher sets none (srun).

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
        index = _own_gpu(os.environ, local_rank, torch.cuda.device_count())
        torch.cuda.set_device(index)
        world = World(rank, local_rank, size, f'cuda:{index}')
    if size > 1:
        join(world)
    return world


def join(world):
    """Meet the other processes at MASTER_ADDR:MASTER_PORT.

    Raises:
        UserError: the processes could not connect.
    """
    backend = 'nccl' if world.device.type == 'cuda' else 'gloo'
    # Before PyTorch 2.2 NCCL respects the timeout only with this setting.
    if backend == 'nccl' and tuple(map(int, torch.__version__.split('.')[:2])) < (2, 2):
        os.environ.setdefault('NCCL_ASYNC_ERROR_HANDLING', '1')
    try:
        dist.init_process_group(backend, rank=world.rank, world_size=world.size, timeout=TIMEOUT)
    except RuntimeError as error:
        if re.search('gloo', str(error), re.IGNORECASE) and not lost_contact(error):
            raise UserError(f'rank {world.rank} of {world.size}: the processes have met, but '
                            f'{no_gloo(error)}') from None
        raise UserError(
            f'rank {world.rank} of {world.size}: could not meet the others at '
            f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')} ({one_line(error)}); "
            'start all processes, with an address that each of them reaches and a port that is '
            'free there') from None


def lost_contact(error):
    """Whether an error means that another process, or the connection to it, is lost."""
    return isinstance(error, RuntimeError) and bool(LOST.search(str(error)))


def shares_gpu(error):
    """Whether NCCL refuses two processes on one GPU. Until PyTorch 1.12 it gives no reason."""
    text = str(error)
    return isinstance(error, RuntimeError) and (
        'Duplicate GPU' in text or 'ncclInvalidUsage' in text and 'Last error' not in text)


def no_gloo(error):
    """The end of a message: why gloo cannot connect the hosts, and the remedy."""
    host = socket.gethostname()
    try:
        address = f'is {socket.gethostbyname(host)} here'
    except OSError:
        address = 'has no address here'
    chosen = os.environ.get('GLOO_SOCKET_IFNAME')
    chosen = f'GLOO_SOCKET_IFNAME is {chosen}' if chosen else 'GLOO_SOCKET_IFNAME is not set'
    return (f'gloo, which connects hosts, could not connect them ({one_line(error)}). It uses the '
            f'address of the host name, unless GLOO_SOCKET_IFNAME names an interface: {host} '
            f'{address}, {chosen}. On every host set GLOO_SOCKET_IFNAME to the interface that the '
            'others reach, such as eth0 (`ip address` lists them). Or change /etc/hosts: the host '
            "name needs that interface's address, not one that begins with 127")


def report_to_torchrun(message):
    """Make torchrun show an error in its final summary of failures."""
    path = os.environ.get('TORCHELASTIC_ERROR_FILE')
    if path:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump({'message': message, 'timestamp': int(time.time())}, file)


def one_line(error):
    return ' '.join(str(error).split())


def _place(env, local_rank, port):
    """(rank, size, local_rank) from a launcher's environment; for srun, sets rank 0's address."""
    if 'RANK' in env and 'WORLD_SIZE' in env:
        if 'LOCAL_RANK' in env:
            local_rank = int(env['LOCAL_RANK'])
        return int(env['RANK']), int(env['WORLD_SIZE']), local_rank or 0
    if _is_task(env):
        env.setdefault('MASTER_ADDR', _first_host(env.get('SLURM_STEP_NODELIST', '')))
        env.setdefault('MASTER_PORT', str(port or 29500))
        return (int(env['SLURM_PROCID']), int(env['SLURM_STEP_NUM_TASKS']),
                int(env['SLURM_LOCALID']))
    return 0, 1, local_rank or 0


def _own_gpu(env, local_rank, visible):
    """The index of this process's GPU among the `visible` ones.

    With --gpus-per-task=1 srun shows each task only its own GPU. Its index is then 0 in every task.
    SLURM_GPUS_ON_NODE, the number of GPUs of all tasks here, proves that the tasks do not share one
    GPU. If Slurm does not set it, NCCL refuses two processes on one GPU later.

    Raises:
        UserError: there are fewer GPUs than processes.
    """
    if local_rank < visible:
        return local_rank
    if visible == 1 and _is_task(env):
        together = env.get('SLURM_GPUS_ON_NODE', '')
        if not together.isdigit() or local_rank < int(together):
            return 0
    raise UserError(f'process {local_rank} of this machine has no GPU of its own: PyTorch finds '
                    f'{visible}; start at most as many processes, or let srun assign one GPU to '
                    'each (--gpus-per-task=1)')


def _is_task(env):
    """Whether srun alone launched this process, as one of several."""
    # Only srun sets this variable. A batch script has SLURM_NTASKS too, but is one process.
    return not ('RANK' in env and 'WORLD_SIZE' in env) \
        and int(env.get('SLURM_STEP_NUM_TASKS', 1)) > 1


def _first_host(nodelist):
    """The first host of a Slurm host list, such as node[03-05,9]."""
    try:
        names = subprocess.run(['scontrol', 'show', 'hostnames', nodelist], check=True,
                               stdout=subprocess.PIPE, universal_newlines=True).stdout.split()
        if names:
            return names[0]
    except (OSError, subprocess.CalledProcessError):
        pass  # no scontrol, as in a container: parse the list here
    first = re.match(r'(?:\[[^\]]*\]|[^,\[])*', nodelist).group()
    return re.sub(r'\[(\d+)[^\]]*\]', r'\1', first) or '127.0.0.1'


def exit(status=0):
    """End the process with an exit status, as sys.exit does.

    With process groups the interpreter is not shut down, because gloo's threads sometimes abort it
    after all work is done (seen on PyTorch 2.14, also after the group was destroyed).
    """
    if dist.is_available() and dist.is_initialized():
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)
    sys.exit(status)


def cores_of_a_process(size, env=os.environ):
    """Number of CPU cores of this machine for each process; `size`: number of all processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    if 'LOCAL_WORLD_SIZE' in env:  # torchrun
        size = int(env['LOCAL_WORLD_SIZE'])
    elif 'SLURM_CPUS_PER_TASK' in env:  # srun: the visible cores may be those of this task, or all
        return min(cores, int(env['SLURM_CPUS_PER_TASK']))
    elif 'SLURM_STEP_TASKS_PER_NODE' in env:  # such as 4(x2)
        size = int(re.match(r'\d+', env['SLURM_STEP_TASKS_PER_NODE']).group())
    return max(cores // size, 1)


def unwrap(model):
    """The network inside DDP."""
    return model.module if isinstance(model, DistributedDataParallel) else model
