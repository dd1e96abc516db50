"""How scores are obtained. A run may be resumed with other evaluations; scores may then differ."""
import re
import shlex

from dssn.data.identity import sha256_of_pairs

BEST_FILES = {'student': 'best.pth', 'teacher': 't_best.pth'}
KEPT_BEST = re.compile(r'(t_best|best)_until_epoch(\d+)\.pth')  # see `aside`


def scoring(cfg, val, select_on=None):
    """The facts that must be the same for scores to be comparable, {name: text}.

    Args:
        val, select_on: samples of the lists; `select_on` may be None.
    """
    def identity(samples):
        return f'sha256 {sha256_of_pairs(samples)[:12]} of images and masks, {len(samples)} lines'
    return {'protocol': cfg.protocol, 'eval_amp': cfg.eval_amp, 'val list': identity(val),
            'select_on list': identity(select_on) if select_on else 'none'}


def changes_of(before, now):
    """The differences of two `scoring`s as text, such as 'protocol was original, is center_crop'.

    It is empty if there are none, or if `before` is empty: there are no scores yet.
    """
    return '; '.join(f'{name} was {before.get(name)}, is {now[name]}'
                     for name in now if before and before.get(name) != now[name])


def aside(name, epoch):
    """The name under which best.pth or t_best.pth is kept when the best is selected anew.

    Args:
        epoch: the number of epochs done before the first evaluation of the other kind.
    """
    return name.replace('.pth', f'_until_epoch{epoch}.pth')


def finished_text(cfg, changed):
    """A line for a finished run that is started with other evaluations; `changed`: their keys."""
    flags = [f'--set {key}={getattr(cfg, key)}' for key in ('protocol', 'eval_amp')
             if key in changed]
    if 'val_id_path' in changed:
        flags.append(f'--id-path {shlex.quote(cfg.val_id_path)}')
    best = shlex.quote(f'{cfg.save_path}/best.pth')
    command = ' '.join([f'python eval.py --checkpoint {best}'] + flags)
    return f'the run is finished, so nothing is evaluated again; `{command}` does so'
