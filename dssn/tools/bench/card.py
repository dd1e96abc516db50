"""`python -m dssn bench card`: prints the GPU and the versions of the software."""
import os
import platform

import torch

from dssn.errors import UserError
from dssn.run.machine import machine
from dssn.tools.output_files import write_json


def add_arguments(parser):
    """Print the GPU, its memory, and the versions of PyTorch, CUDA and cuDNN.

    A small matrix product is computed on the GPU to see that it works.
    """
    parser.add_argument('--cpu', action='store_true', help='describe a machine without a GPU')
    parser.add_argument('--json', metavar='FILE', help='write the result as JSON')


def run(args):
    found = describe(args.cpu)
    for name, value in found.items():
        print(f'{name}: {value}')
    write_json(args.json, found)
    return 0


def describe(cpu):
    """{property: value} of the machine.

    Args:
        cpu: describe it without its GPU.

    Raises:
        UserError: PyTorch finds no GPU, or the GPU computes a wrong product.
    """
    found = {'machine': machine(torch.device('cpu')), 'torch': str(torch.__version__),
             'python': platform.python_version(), 'cores': os.cpu_count()}
    if cpu:
        return found
    if not torch.cuda.is_available():
        raise UserError(f'PyTorch {torch.__version__} (CUDA {torch.version.cuda}) finds no GPU '
                        'here; check the driver and CUDA_VISIBLE_DEVICES')
    ones = torch.ones(64, 64, device='cuda')
    if (ones @ ones).sum().item() != 64 ** 3:
        raise UserError(f'{torch.cuda.get_device_name(0)} computes 64 x 64 products wrongly')
    card = torch.cuda.get_device_properties(0)
    return {**found, 'machine': machine(torch.device('cuda', 0)), 'gpu': card.name,
            'gpus': torch.cuda.device_count(), 'memory_mib': card.total_memory // 2 ** 20,
            'capability': f'{card.major}.{card.minor}', 'cuda': torch.version.cuda,
            'cudnn': torch.backends.cudnn.version()}
