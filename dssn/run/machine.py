"""The machine on which a result was computed."""
import platform

import torch


def machine(device):
    """The machine as text: processor or GPU, threads, versions."""
    where = torch.cuda.get_device_name(device) if device.type == 'cuda' else \
        f'{_processor()}, {torch.get_num_threads()} threads'
    return f'{where}; PyTorch {torch.__version__}, Python {platform.python_version()}'


def _processor():
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            names = [line.split(':', 1)[1].strip() for line in file
                     if line.startswith('model name')]
    except OSError:
        names = []
    return (names or [platform.processor() or platform.machine()])[0]
