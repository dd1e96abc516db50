"""Removes the paths of a machine from the config of a run."""
import dataclasses
import os

from dssn import config
from dssn.data import lists
from dssn.errors import UserError

PATHS = ('labeled_id_path', 'unlabeled_id_path', 'val_id_path', 'select_on', 'init_from')


def portable(cfg, out):
    """A config whose paths are valid on any machine, as far as possible.

    Args:
        out: parent folder of all runs. In `save_path` and `init_from` it is replaced by `exp`.

    Other paths inside the current folder, the root of the repository, become relative to it. A
    `data_root` outside becomes data/<dataset>, since it does not affect the result.
    """
    root = os.path.join(os.getcwd(), '')
    values = {name: getattr(cfg, name) for name in PATHS + ('save_path', 'data_root')}
    for name, path in values.items():
        if path.startswith(f'{out}/') and name in ('save_path', 'init_from'):
            path = 'exp' + path[len(out):]
        values[name] = path[len(root):] if path.startswith(root) else path
    if leads_outside(values['data_root']):
        values['data_root'] = f'data/{cfg.dataset}'
    return dataclasses.replace(cfg, **values)


def leads_outside(text):
    """Whether a path is absolute, in a home folder, or leaves the folder that it starts in."""
    return text.startswith('~') or lists.leads_outside(text)


def refuse_machine_paths(cfg, place):
    """Raise a UserError if the config still has a path that exists on one machine only."""
    for name, value in config.to_dict(cfg).items():
        if isinstance(value, str) and leads_outside(value):
            raise UserError(f'{place}: {name} = {value} leads out of the repository, so it does '
                            'not exist on other machines; the run cannot be kept: name a path '
                            'inside, such as splits/<dataset>/<split>/labeled.txt, and train again')
