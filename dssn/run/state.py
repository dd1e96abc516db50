"""The state of a run: written to latest.pth, and restored when the run is resumed."""
import shlex
import time
from dataclasses import dataclass, field
from typing import Dict, Optional

import torch

from dssn import config
from dssn.data.classes import names_of_classes
from dssn.distributed import unwrap
from dssn.errors import UserError
from dssn.models.weights import load_weights, network_weights
from dssn.optim import load_optimizer
from dssn.run.scoring import changes_of, finished_text

EVALUATED = 'val list', 'select_on list'  # names of lists that no weight depends on


@dataclass
class Progress:
    """How far a run has come."""
    epoch: int = 0         # number of epochs trained and evaluated
    step: int = 0          # number of optimizer steps made
    seconds: float = 0.0   # of training and evaluation
    best: Dict[str, float] = field(default_factory=dict)  # {role: highest mIoU} so far
    scored: Dict[str, str] = field(default_factory=dict)  # `scoring` of these; empty before them
    miou: Optional[float] = None  # the student's mIoU on val at the last evaluation
    skips: int = 0         # steps skipped because they were not finite
    since: float = 0.0     # time of the last change of `seconds`

    def start_clock(self):
        self.since = time.time()

    def stop_clock(self):
        """Add the time since the last start or stop to `seconds`. The clock keeps running."""
        now = time.time()
        self.seconds += now - self.since
        self.since = now


def place(cfg, progress):
    """The entries that every checkpoint has: config, class names, epoch and step."""
    return {'config': config.to_dict(cfg), 'classes': names_of_classes(cfg),
            'epoch': progress.epoch, 'step': progress.step}


def state_of(run):
    """The state of a `Run` on rank 0; None on other ranks. All ranks must call it."""
    world, networks, progress = run.world, run.networks, run.progress
    statistics = {}
    if world.has_plain_bn and unwrap(networks.student).batch_statistics \
            and progress.step % run.loader.steps_per_epoch:
        for name, network in (('model', unwrap(networks.student)), ('teacher', networks.teacher)):
            if network is not None:
                statistics[name] = world.rows(get_statistics(network))
    watch = run.watch.state()
    if not world.is_main:
        return None
    progress.stop_clock()
    state = {'model': network_weights(unwrap(networks.student)),
             'optimizer': networks.optimizer.state_dict(), 'world': world.size,
             'seconds': progress.seconds, 'best': dict(progress.best), 'miou': progress.miou,
             'scored': dict(progress.scored),
             'skips': progress.skips, 'log': run.log.state(), 'watch': watch,
             'replaced': dict(run.loader.replaced),
             'lists': {role: list_text(known) for role, known in run.data.identities.items()},
             'torch': str(torch.__version__),
             # All random numbers derive from seed and step, so this is their whole state.
             'random_state': {'seed': run.cfg.seed, 'step': progress.step},
             **place(run.cfg, progress)}
    if statistics:
        state['statistics'] = statistics
    if run.update.scaler:
        state['scaler'] = run.update.scaler.state_dict()
    if networks.teacher is None:
        state['weights'] = 'student'
    else:
        state['teacher'] = network_weights(networks.teacher)
    return state


def restore(run, saved, path):
    """Restore a state that `state_of` returned.

    Returns:
        Lines for the log on settings that have changed.

    Raises:
        UserError: the file holds no such state, or that of a run with other settings.
    """
    changed = compare(run, saved, path)
    networks, progress = run.networks, run.progress
    for name, network in {'model': unwrap(networks.student), 'teacher': networks.teacher}.items():
        if network is not None:
            load_weights(network, saved[name], path)
            rows = saved.get('statistics', {}).get(name)
            if rows is not None:
                set_statistics(network, rows[run.world.rank])
    load_optimizer(networks.optimizer, saved['optimizer'])
    if run.update.scaler and saved.get('scaler'):
        run.update.scaler.load_state_dict(saved['scaler'])
    progress.epoch, progress.seconds = saved['epoch'], saved['seconds']
    progress.best = saved['best']
    progress.scored = saved.get('scored', scored_before(run, saved, changed))
    progress.step = run.saver.saved_step = saved['step']
    progress.miou, progress.skips = saved['miou'], saved.get('skips', 0)
    if 'watch' in saved:
        run.watch.restore(saved['watch'])
    run.loader.replaced.update(saved.get('replaced', {}))
    changes = list(changed.values())
    new_best = changes_of(progress.scored, run.scoring)
    if run.finished:
        known = [name for name in (*run.cfg.evaluation_keys(), *EVALUATED) if name in changed]
        changes = [*changes, finished_text(run.cfg, known)] if known or new_best else []
    elif new_best:
        changes.append(f'scores so far are not comparable with later ones ({new_best}): the next '
                       'evaluation selects the best anew, and the best so far is kept')
    if not run.finished and saved.get('torch', torch.__version__) != torch.__version__:
        changes.append(f'saved by PyTorch {saved["torch"]}, this is {torch.__version__}: the '
                       'last digits of results may differ')
    return changes


def scored_before(run, saved, changed):
    """`Progress.scored` of a state without it: the lists had their present masks."""
    if not saved['best']:
        return {}
    then, found = saved['config'], dict(run.scoring)
    found.update({name: 'another' for name in EVALUATED if name in changed})
    if bool(then.get('select_on')) != bool(run.cfg.select_on):
        found['select_on list'] = 'another' if then.get('select_on') else 'none'
    return {**found, **{name: then[name] for name in ('protocol', 'eval_amp') if name in then}}


def compare(run, saved, path):
    """{name: text} of the settings that have changed.

    Raises:
        UserError: a changed setting affects the weights.
    """
    if not isinstance(saved, dict) or not {'optimizer', 'world', 'config'} <= set(saved):
        raise UserError(f'{path}: cannot resume from this file: it is no latest.pth of this '
                        'program; move it away or choose another --save-path')
    now = {**config.to_dict(run.cfg), 'processes': run.world.size}
    # Keys that are newer than the saved run had the effect of their defaults.
    then = {**config.to_dict(type(run.cfg)()), **saved['config'], 'processes': saved['world']}
    for role, known in run.data.identities.items():
        now[f'{role} list'] = list_text(known)
        then[f'{role} list'] = saved.get('lists', {}).get(role, now[f'{role} list'])
    free, texts = {*run.cfg.keys('none'), *run.cfg.evaluation_keys(), *EVALUATED}, {}
    for name in sorted({**now, **then}):
        if now.get(name) != then.get(name):
            texts[name] = f'{name} was {then.get(name)!r}, is {now.get(name)!r}'
    others = {name: text for name, text in texts.items() if name not in free}
    if others:
        raise UserError(f'{path}: this folder holds a run with other settings: '
                        f'{"; ".join(others.values())}. To resume it, set the old values (--set). '
                        'Otherwise choose another --save-path, or start over with --fresh, which '
                        'moves the old run aside'
                        + (longer(run.cfg, path) if 'epochs' in others else ''))
    return texts


def longer(cfg, path):
    """The ways to train on if `epochs` differs from that of the run at `path`."""
    weights = shlex.quote(f'init_from={path}')
    folder = cfg.save_path.rstrip('/')
    return (f'. The learning rate at each step depends on epochs, so another number of epochs is '
            f'another run. To train {cfg.epochs} epochs from its weights: --set {weights} '
            f"--save-path {shlex.quote(f'{folder}_continued')}. To train {cfg.epochs} epochs from "
            f"the start: --save-path {shlex.quote(f'{folder}_epochs{cfg.epochs}')}. (With "
            'scripts/train.sh set another exp instead of --save-path)')


def list_text(known):
    """The name of an id list in a state, from its `Identity`."""
    return f'sha256 {known.sha256[:12]}, {known.lines} lines'


def get_statistics(network):
    """All floating-point buffers of a network (BN's running statistics) as one vector."""
    return torch.cat([buffer.flatten() for buffer in network.buffers()
                      if buffer.is_floating_point()])


def set_statistics(network, vector):
    """The reverse of `get_statistics`."""
    buffers = [buffer for buffer in network.buffers() if buffer.is_floating_point()]
    for buffer, values in zip(buffers, vector.split([buffer.numel() for buffer in buffers])):
        buffer.copy_(values.view_as(buffer))
