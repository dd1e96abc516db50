"""The palettes of masks: within a list, an index has one colour."""
import os

from dssn.data.files import FileProblem
from dssn.data.other_masks import in_order


class PaletteRecord:
    """The colour of each index in the masks that were opened so far, for each list.

    An editor that saves in palette mode may give every file a palette of its own. Then an index
    stands for another class in each file. Ignored values count like the others: if they have two
    colours, a class may be hidden among them.

    Every process has its own record, of the files that it has opened. So a process of a loader
    does not see the palettes that only others have opened. `python -m dssn check` sees all.
    """

    def __init__(self, rule):
        """`rule`: the config key `palette`. 'ignore' accepts every palette."""
        self.rule = rule
        self.seen = {}  # {(list, index): (colour, path of the first mask)}

    def check(self, data_root, sample, colours):
        """Record the `used_colours` of a sample's mask.

        Raises:
            FileProblem: another mask of the list gives an index another colour.
        """
        if not colours:
            return
        path = os.path.join(data_root, sample.mask)
        text = self.conflict(sample.place.rpartition(' line ')[0], path, colours)
        if text:
            raise FileProblem(f'{sample.place}: mask {path} {text}; if the indices are right, set '
                              '`palette: ignore`', 'mask_palettes', sample.mask)

    def conflict(self, group, path, colours):
        """Record the colours of a mask; returns what contradicts an earlier mask, or None.

        Args:
            group: only masks of the same group are compared. colours: see `used_colours`.
        """
        if self.rule == 'ignore':
            return None
        for index, colour in colours.items():
            first, other = self.seen.setdefault((group, index), (colour, path))
            if other == path:  # read again; it may have changed
                self.seen[group, index] = colour, path
            elif first != colour:
                known = [seen[0] for key, seen in sorted(self.seen.items()) if key[0] == group]
                return (f'has colour {colour} for index {index}, but {other} has {first}: their '
                        'palettes differ, so an index may stand for several classes. '
                        f'Which class is each colour? {in_order(known)}')
        return None
