"""Plots learning curves of runs. Needs matplotlib, which no other module needs."""
import textwrap

from dssn.errors import UserError
from dssn.tools.run_folders import SCORED_BY, curve

STYLES = {'student': '--x', 'teacher': '-o'}  # markers: a single evaluation has no line


def plot_curves(path, rows, names=None, over_crops=False):
    """Plot mIoU over the length of training: a colour a row, the mean and a band of one deviation.

    The axis never shows epochs, since their length depends on method and lists. Rows
    whose scores cannot be compared (data set, val list, protocol, absent classes) have separate
    panels.

    Args:
        path: file to write; its suffix decides the format. rows: `run_folders.Row`s, at least one.
        names: {number of a row: its name in the legend}; None: names from the facts of the rows.
        over_crops: the axis shows the labeled crops that the network was trained on, and not
            optimizer steps: some methods take more labeled images a step than others.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
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
        plot_panel(axis, panel, names or {row.number: legend_text(row) for row in panel},
                   over_crops)
    try:
        figure.savefig(path, dpi=150, bbox_inches='tight')
    except (OSError, ValueError) as error:
        raise UserError(f'--plot {path}: cannot be written ({error})') from None
    finally:
        pyplot.close(figure)


def plot_panel(axis, rows, names, over_crops):
    """The curves of rows that were scored in the same way, on one pair of axes."""
    handles = {role: axis.plot([], [], style, color='black', markersize=4)[0]
               for role, style in STYLES.items()}
    for row in rows:
        colour = f'C{row.number - 1}'
        handles[names[row.number]], = axis.plot([], [], '-', color=colour)
        for role, style in STYLES.items():
            known = curve(row, role)
            if known:
                steps, means, deviations = known
                images = row.first.labeled_images if over_crops else 1
                plot_curve(axis, [step * images for step in steps], means, deviations, style,
                           colour)
    first = rows[0].first
    axis.set(title=f"{first.dataset}, val: {first.lists['val']}, {first.facts['protocol']}",
             xlabel='labeled crops seen' if over_crops else 'optimizer steps',
             ylabel='mIoU on val, %')
    axis.set_xlim(left=0)
    axis.grid(alpha=0.3)
    axis.legend(handles.values(), handles, fontsize='small', loc='upper left',
                bbox_to_anchor=(1.01, 1), borderaxespad=0)


def plot_curve(axis, places, means, deviations, style, colour):
    axis.plot(places, means, style, color=colour, markersize=4)
    if None not in deviations:
        axis.fill_between(places, [m - d for m, d in zip(means, deviations)],
                          [m + d for m, d in zip(means, deviations)], color=colour, alpha=0.15,
                          linewidth=0)


def legend_text(row):
    """'1: DSSN, own list, ..., n = 3', wrapped; the number is that of the row in the table."""
    differs = ''.join(f', {key}={value}' for key, value in row.differs.items())
    # No line break at the non-breaking spaces.
    text = (f'{row.number}: {row.first.method}, {row.first.lists["labeled"]}{differs}, '
            f'n\xa0=\xa0{len(row.runs)}')
    return textwrap.fill(text, 50)
