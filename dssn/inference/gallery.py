"""Writes the gallery of an evaluation: one HTML page that opens from disk, without a server."""
import html
from urllib.parse import quote

from dssn.data.classes import IGNORE_COLOUR

CORRECT_COLOUR, WRONG_COLOUR = (70, 70, 70), (255, 70, 50)  # of error maps
STYLE = """
:root { color-scheme: light; font: 15px/1.4 system-ui, sans-serif; color: #222; }
body { margin: 0 auto; padding: 0 1rem 2rem; max-width: 1700px; }
h1 { font-size: 1.3rem; margin: 1rem 0 .3rem; overflow-wrap: anywhere; }
h2 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.facts { margin: .15rem 0; overflow-wrap: anywhere; }
main { display: flex; gap: 1.5rem; align-items: flex-start; }
aside { position: sticky; top: 0; max-height: 100vh; overflow: auto; flex: none; max-width: 27rem; }
section { flex: 1; min-width: 0; }
table { border-collapse: collapse; }
th, td { padding: .1rem .5rem; text-align: right; font-variant-numeric: tabular-nums; }
th:first-child, td:first-child { text-align: left; padding-left: 0; overflow-wrap: anywhere; }
thead th { border-bottom: 1px solid #999; position: sticky; top: 0; background: #fff; }
.swatch { display: inline-block; width: 1em; height: 1em; margin-right: .5em; flex: none;
  border: 1px solid #999; vertical-align: -.15em; }
.legend { list-style: none; margin: 0; padding: 0; }
.controls { position: sticky; top: 0; background: #fff; padding: .6rem 0; margin: 0; z-index: 1; }
.controls label { margin-right: 1rem; white-space: nowrap; }
#images { display: flex; flex-wrap: wrap; gap: 1rem 1.5rem; }
figure { margin: 0; padding-top: .5rem; border-top: 1px solid #ddd; max-width: 100%;
  min-width: min(24rem, 100%); }
figure[hidden] { display: none; }
figure img { max-width: 100%; height: auto; background: #eee; display: block; }
figcaption { margin-bottom: .3rem; overflow-wrap: anywhere; width: 0; min-width: 100%; }
figcaption a { margin-left: .35rem; white-space: nowrap; }
@media (max-width: 900px) { main { display: block; } aside { position: static; max-height: none; } }
"""

SCRIPT = """
const list = document.getElementById('images');
const figures = Array.from(list.children);
const order = document.getElementById('order');
const search = document.getElementById('search');
// An image without an IoU comes last in both orders.
const iou = (figure, otherwise) => 'iou' in figure.dataset ? +figure.dataset.iou : otherwise;
const orders = {
  list: (a, b) => a.dataset.position - b.dataset.position,
  name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
  lowest: (a, b) => iou(a, 101) - iou(b, 101) || orders.list(a, b),
  highest: (a, b) => iou(b, -1) - iou(a, -1) || orders.list(a, b),
};
function show() {
  figures.sort(orders[order.value]);
  list.append(...figures);
  const wanted = search.value.toLowerCase();
  let shown = 0;
  for (const figure of figures) {
    figure.hidden = !figure.dataset.name.toLowerCase().includes(wanted);
    shown += !figure.hidden;
  }
  document.getElementById('shown').textContent = `${shown} of ${figures.length}`;
}
order.addEventListener('change', show);
search.addEventListener('input', show);
show();
"""


def write_gallery(path, title, facts, rows, classes, score=None, problems=()):
    """Write the page.

    Args:
        path: the file; links are relative to its folder. title: of the page.
        facts: lines of text below the title.
        rows: one mapping an image: {'position', 'name', 'size': (width, height), 'iou' and
            'accuracy' in percent or None, 'parts': names of the pictures in its thumbnail from left
            to right, 'thumbnail', 'thumbnail_size', 'files': {kind: path}}. Paths are relative and
            use '/'.
        classes: [(name, (red, green, blue))] in index order.
        score: `Scores`; None without ground truth. problems: lines on images without a row.

    Raises:
        OSError: the file cannot be written.
    """
    content = [_heading(title, facts), '<main>', '<aside>', _classes(classes, score)]
    if score:
        content.append(_errors_legend())
    content += ['</aside>', '<section>', _problems(problems), _controls(rows, score),
                '<div id="images">', *[_figure(row) for row in rows], '</div>', '</section>',
                '</main>', f'<script>{SCRIPT}</script>', '</html>', '']
    # Bytes of a file name that are not valid text are shown as '?'.
    with open(path, 'w', encoding='utf-8', errors='replace') as file:
        file.write('\n'.join(part for part in content if part is not None))


def _heading(title, facts):
    lines = '\n'.join(f'<p class="facts">{html.escape(fact)}</p>' for fact in facts)
    return ('<!DOCTYPE html>\n<html lang="en">\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n'
            f'<h1>{html.escape(title)}</h1>\n{lines}')


def _classes(classes, score):
    """The legend; with ground truth it is the first column of a table."""
    names = [_swatch(colour) + html.escape(name) for name, colour in classes]
    if score is None:
        items = '\n'.join(f'<li>{name}</li>' for name in names)
        return f'<h2>Classes</h2>\n<ul class="legend">\n{items}\n</ul>'
    columns = zip(score.iou, score.recall, score.precision)
    rows = '\n'.join(f'<tr><td>{name}</td>' + ''.join(f'<td>{_number(v)}</td>' for v in values)
                     + '</tr>' for name, values in zip(names, columns))
    return ('<h2>Classes, percent</h2>\n<table>\n<thead><tr><th>class</th><th>IoU</th>'
            '<th title="fraction of the pixels of the class that are predicted as it">recall</th>'
            '<th title="fraction of the pixels predicted as the class that are correct">precision'
            '</th></tr>'
            f'</thead>\n<tbody>\n{rows}\n</tbody>\n</table>')


def _errors_legend():
    items = [('correct', CORRECT_COLOUR), ('wrong', WRONG_COLOUR),
             ('ignored: no class in the ground truth', IGNORE_COLOUR)]
    lines = '\n'.join(f'<li>{_swatch(colour)}{name}</li>' for name, colour in items)
    return f'<h2>Errors</h2>\n<ul class="legend">\n{lines}\n</ul>'


def _problems(problems):
    if not problems:
        return None
    items = '\n'.join(f'<li>{html.escape(problem)}</li>' for problem in problems)
    return f'<h2>Not predicted: {len(problems)}</h2>\n<ul>\n{items}\n</ul>'


def _controls(rows, score):
    orders = [('list', 'as listed'), ('name', 'by name')]
    if score:
        orders += [('lowest', 'lowest IoU first'), ('highest', 'highest IoU first')]
    options = ''.join(f'<option value="{value}">{text}</option>' for value, text in orders)
    meaning = ' Image IoU: the mean over the classes in its ground truth or prediction.' \
        if score else ''
    parts = f'<br>From the left: {", ".join(rows[0]["parts"])}.' if rows else ''
    return (f'<p class="controls"><label>Order <select id="order">{options}</select></label>'
            '<label>Names with <input id="search" type="search"></label>'
            f'<span id="shown">{len(rows)} of {len(rows)}</span> images{parts}{meaning}</p>')


def _figure(row):
    """An image: its name and scores, links to its pictures, and its thumbnail."""
    name = html.escape(row['name'])
    width, height = row['size']
    words = [f'{width}×{height}']
    if row['iou'] is not None:
        words = [f'<b>IoU {_number(row["iou"])}</b>',
                 f'pixel accuracy {_number(row["accuracy"])}'] + words
    # The space before each link lets a narrow window break the line there.
    links = ''.join(f' <a href="{quote(path)}">{kind}</a>' for kind, path in row['files'].items())
    thumb_width, thumb_height = row['thumbnail_size']
    iou = '' if row['iou'] is None else f' data-iou="{row["iou"]:.6f}"'
    shown = ', '.join(row['parts'])
    return (f'<figure data-position="{row["position"]}" data-name="{name}"{iou}>\n'
            f'<figcaption>{name}: {", ".join(words)}{links}</figcaption>\n'
            f'<a href="{quote(list(row["files"].values())[0])}"><img loading="lazy" '
            f'src="{quote(row["thumbnail"])}" width="{thumb_width}" height="{thumb_height}" '
            f'alt="{shown} of {name}" title="{" | ".join(row["parts"])}"></a>\n</figure>')


def _swatch(colour):
    return f'<span class="swatch" style="background: rgb{tuple(colour)}"></span>'


def _number(value):
    return '–' if value is None else f'{value:.2f}'
