"""The data of a run: id lists, their checks, and the loader."""
from dssn import methods
from dssn.data.check.quick import quick_check
from dssn.data.identity import identify
from dssn.data.lists import read_list, shorter
from dssn.data.loaders import TrainLoader
from dssn.errors import UserError


class Data:
    """The id lists and the loader of a run.

    Args:
        first: whether the run has made no step yet; then more files are checked.

    Attributes:
        labeled, unlabeled, val, select_on: samples; `unlabeled` and `select_on` may be None.
        loader: the `TrainLoader` of this process. notes: lines for the log.
        identities: {role: Identity} of the lists.

    Raises:
        UserError: a list or a file cannot be used.
    """

    def __init__(self, cfg, world, first=True):
        method = methods.find(cfg.method, 'config')
        masks_of = methods.masks_of(method)
        self.labeled, self.unlabeled, self.val, self.select_on = read_lists(cfg, method)
        self.notes = oracle_notes(cfg, masks_of) + check_data(
            cfg, world, self.labeled, self.unlabeled, self.val, self.select_on,
            masks_of == 'unlabeled', first)
        self.loader = TrainLoader(cfg, self.labeled, self.unlabeled, world.rank, world.size,
                                  pin=world.device.type == 'cuda', masks_of=masks_of)
        self.identities = {role: identify(path) for role, path in cfg.list_paths.items()
                           if role != 'unlabeled' or methods.reads_unlabeled(method)}


def read_lists(cfg, method):
    """The samples of the lists labeled, unlabeled, val and select_on; None for a list not used.

    For an oracle every line of the unlabeled list must name a mask.
    """
    def listed(key, masks):
        path = getattr(cfg, key)
        if not path:
            raise UserError(f"no id list given: set {key} (--{key.replace('_', '-')})")
        return read_list(path, masks, cfg.allow_outside)
    labeled = listed('labeled_id_path', True)
    unlabeled = listed('unlabeled_id_path', False) if methods.reads_unlabeled(method) else None
    if methods.masks_of(method) == 'unlabeled':
        require_masks(cfg, unlabeled)
    return (labeled, unlabeled, listed('val_id_path', True),
            read_list(cfg.select_on, True, cfg.allow_outside) if cfg.select_on else None)


def require_masks(cfg, unlabeled):
    """Raise a UserError if a line of the unlabeled list names no mask."""
    for sample in unlabeled:
        if sample.mask is None:
            raise UserError(f"{sample.place}: '{shorter(sample.image)}' names no mask, but method "
                            f'= {cfg.method} is an oracle and trains on the masks of the unlabeled '
                            'list; write `image mask` in every line, or choose another method')


def check_data(cfg, world, labeled, unlabeled, val, select_on=None, with_masks=False, first=True):
    """Run `quick_check` on rank 0, unless `skip_check` is set; returns its warnings for the log.

    Raises:
        UserError: on every rank, so that no rank waits for another.
    """
    if cfg.skip_check:
        return []
    return world.on_main(
        lambda: quick_check(cfg, labeled, unlabeled, val, select_on, with_masks, first))


def oracle_notes(cfg, list_of_masks):
    """Lines for the log if masks replace pseudo-labels.

    Args:
        list_of_masks: 'unlabeled', 'labeled' or None, see `methods.masks_of`.
    """
    if list_of_masks == 'unlabeled':
        return [f'{cfg.method}: an oracle, not a method: it trains on masks of the unlabeled list '
                f'{cfg.unlabeled_id_path}']
    if list_of_masks == 'labeled':
        return [f'{cfg.method}: a control: the labeled list {cfg.labeled_id_path} and its masks '
                'replace unlabeled images and pseudo-labels']
    return []
