"""Learning curves of runs as a picture; needs matplotlib, which nothing else does."""
import textwrap

from dssn.errors import UserError
from dssn.runs import SCORED_BY, curve

STYLES = {'student': '--x', 'teacher': '-o'}  # markers: a single evaluation has no line


def draw(path, rows, names=None):
    """Draw mIoU over optimizer steps: a colour a row, mean and a band of a standard deviation.

    Steps and not epochs, which are of other lengths for other methods and lists. Rows whose scores
    cannot be compared (data set, val list, protocol, absent classes) have panels of their own.

    Args:
        path: file to write; its suffix decides the format. rows: `runs.Row`s, at least one.
        names: {row's number: what the legend calls it}; else the row's own facts.

    Raises:
        UserError: no matplotlib, or the file cannot be written.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError('--plot needs matplotlib: pip install matplotlib') from None
    matplotlib.use('Agg')
    from matplotlib import pyplot
    panels = {}
    for row in rows:
        kind = (row.first.dataset,) + tuple(row.first.facts[key] for key in SCORED_BY)
        panels.setdefault(kind, []).append(row)
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(9, 5 * len(panels)), squeeze=False,
                                   gridspec_kw={'hspace': 0.3})
    for axis, panel in zip(axes[:, 0], panels.values()):
        draw_panel(axis, panel, names or {row.number: label(row) for row in panel})
    try:
        figure.savefig(path, dpi=150, bbox_inches='tight')
    except (OSError, ValueError) as error:
        raise UserError(f'--plot {path}: cannot be written ({error})') from None
    finally:
        pyplot.close(figure)


def draw_panel(axis, rows, names):
    """The curves of rows that were scored alike, on one pair of axes."""
    handles = {role: axis.plot([], [], style, color='black', markersize=4)[0]
               for role, style in STYLES.items()}
    for row in rows:
        colour = f'C{row.number - 1}'
        handles[names[row.number]], = axis.plot([], [], '-', color=colour)
        for role, style in STYLES.items():
            known = curve(row, role)
            if known:
                draw_curve(axis, *known, style, colour)
    first = rows[0].first
    axis.set(title=f"{first.dataset}, val: {first.lists['val']}, {first.facts['protocol']}",
             xlabel='optimizer steps', ylabel='mIoU on val, %')
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(handles.values(), handles, fontsize='small', loc='upper left',
                bbox_to_anchor=(1.01, 1), borderaxespad=0)


def draw_curve(axis, steps, means, deviations, style, colour):
    axis.plot(steps, means, style, color=colour, markersize=4)
    if None not in deviations:
        axis.fill_between(steps, [m - d for m, d in zip(means, deviations)],
                          [m + d for m, d in zip(means, deviations)], color=colour, alpha=0.15,
                          linewidth=0)


def label(row):
    """'1: DSSN, own list, ..., n = 3', wrapped; the number is that of the table's row."""
    differs = ''.join(f', {key}={value}' for key, value in row.differs.items())
    # Spaces at which it is not wrapped.
    text = (f'{row.number}: {row.first.method}, {row.first.lists["labeled"]}{differs}, '
            f'n\xa0=\xa0{len(row.runs)}')
    return textwrap.fill(text, 50)
