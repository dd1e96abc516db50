"""The gallery: well-formed, self-contained, escaped; sorted by a browser where there is one."""
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from urllib.parse import unquote

import pytest
import torch

from dssn.inference.evaluation import scores
from dssn.inference.gallery import write_gallery

CLASSES = [('sky', (1, 2, 3)), ('<b>"road"', (4, 5, 6)), ('car', (7, 8, 9))]
SCORE = scores(torch.tensor([[3, 1, 0], [0, 4, 0], [0, 0, 0]]))
NASTY = '"><script>alert(1)</script>&amp;\'.jpg'
VOID = ('meta', 'img', 'input', 'br')


class Page(HTMLParser):
    """The elements of a page in order, and whether its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append((self.open[-1] if self.open else None, data))

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    def words(self, *tags):
        return [data for tag, data in self.text if tag in tags and data.strip()]


def row(position, name='x.jpg', iou=None, **changes):
    files = {'panel': f'panel/{position}.png', 'overlay': 'overlay/a #%3F.jpg'}
    return dict({'position': position, 'name': name, 'size': (40, 30), 'iou': iou,
                 'accuracy': iou, 'parts': ['image', 'prediction'], 'files': files,
                 'thumbnail': f'thumbnail/{position}.jpg', 'thumbnail_size': (84, 30)},
                **changes)


def page(tmp_path, rows, score=SCORE, problems=(), title='Title', facts=('a fact',)):
    path = tmp_path / 'index.html'
    write_gallery(str(path), title, list(facts), rows, CLASSES, score, problems)
    return path.read_text(encoding='utf-8')


def test_rows_in_their_order_with_their_numbers(tmp_path):
    found = Page(page(tmp_path, [row(0, 'a.jpg', 12.3456789), row(1, 'b.jpg')]))
    assert [(f['data-position'], f['data-name'], f.get('data-iou')) for f in found.all('figure')] \
        == [('0', 'a.jpg', '12.345679'), ('1', 'b.jpg', None)]
    captions = ' '.join(found.words('figcaption', 'b'))
    assert 'a.jpg' in captions and 'IoU 12.35' in captions and '40×30' in captions
    assert captions.count('IoU') == 1


def test_many_thumbnails_are_loaded_lazily_into_known_sizes(tmp_path):
    images = Page(page(tmp_path, [row(i) for i in range(600)])).all('img')
    assert len(images) == 600
    for i, image in enumerate(images):
        assert (image['loading'], image['width'], image['height']) == ('lazy', '84', '30')
        assert image['src'] == f'thumbnail/{i}.jpg' and image['alt']


def test_the_page_loads_no_other_resource(tmp_path):
    text = page(tmp_path, [row(0, iou=1.0)])
    found = Page(text)
    assert {tag for tag, _ in found.elements} & {'link', 'iframe', 'object', 'base'} == set()
    assert '//' not in re.sub(r'// .*', '', text)  # no address outside of comments
    assert '@import' not in text and 'url(' not in text and not found.all('script')[0].get('src')


def test_links_lead_to_the_files(tmp_path):
    links = [a['href'] for a in Page(page(tmp_path, [row(0)])).all('a')]
    assert [unquote(link) for link in links] == ['panel/0.png', 'overlay/a #%3F.jpg', 'panel/0.png']
    assert not any(set(link) & set(' #?') for link in links)


def test_a_caption_can_be_broken_before_each_link(tmp_path):
    caption = re.search('<figcaption>(.*?)</figcaption>', page(tmp_path, [row(0)])).group(1)
    assert caption.count('<a ') == caption.count(' <a ') == 2


def test_names_are_escaped(tmp_path):
    text = page(tmp_path, [row(0, NASTY, 5.0)], problems=['bad ' + NASTY], title=NASTY,
                facts=['fact ' + NASTY])
    found = Page(text)
    assert len(found.all('script')) == 1 and text.count('alert(1)') == text.count('&lt;script&gt;')
    assert found.all('figure')[0]['data-name'] == NASTY
    assert NASTY in found.all('img')[0]['alt']
    assert NASTY in found.words('h1') and NASTY in found.words('title')
    assert 'bad ' + NASTY in found.words('li') and 'fact ' + NASTY in found.words('p')
    assert '<b>"road"' in found.words('td')


def test_invalid_bytes_in_a_name_are_replaced(tmp_path):
    found = Page(page(tmp_path, [row(0, 'a\udce9.jpg')]))
    assert found.all('figure')[0]['data-name'] == 'a?.jpg'


def test_table_of_classes_with_ground_truth(tmp_path):
    found = Page(page(tmp_path, [row(0)]))
    assert found.words('th') == ['class', 'IoU', 'recall', 'precision']
    assert found.words('td') == ['sky', '75.00', '75.00', '100.00',
                                 '<b>"road"', '80.00', '100.00', '80.00', 'car', '–', '–', '–']
    swatches = [s['style'] for s in found.all('span') if s.get('class') == 'swatch']
    assert swatches[:3] == ['background: rgb({}, {}, {})'.format(*colour) for _, colour in CLASSES]
    assert len(swatches) == 6 and 'wrong' in found.words('li')  # and of the error maps


def test_legend_without_ground_truth(tmp_path):
    found = Page(page(tmp_path, [row(0)], score=None, problems=['no image']))
    assert found.all('table') == []
    assert found.words('li') == ['sky', '<b>"road"', 'car', 'no image']
    assert [option['value'] for option in found.all('option')] == ['list', 'name']


def test_no_image_at_all(tmp_path):
    assert '0 of 0' in page(tmp_path, [], score=None, problems=['x'])


@pytest.mark.skipif(shutil.which('chromium') is None, reason='chromium is not installed')
@pytest.mark.parametrize('order, query, expected', [
    ('list', '', [0, 1, 2, 3, 4]), ('lowest', '', [3, 0, 1, 2, 4]),
    ('highest', '', [2, 0, 1, 3, 4]), ('name', '', [1, 3, 2, 0, 4]), ('lowest', 'B', [3, 2])])
def test_a_browser_sorts_and_searches(tmp_path, order, query, expected):
    rows = [row(0, 'c10.jpg', 50.0), row(1, 'a.jpg', 50.0), row(2, 'b10.jpg', 100.0),
            row(3, 'b9.jpg', 5.0), row(4, 'd.jpg')]
    ask = ('<script>order.value = {}; search.value = {}; show();'
           'document.title = JSON.stringify(Array.from(document.querySelectorAll('
           '"figure:not([hidden])"), f => +f.dataset.position));</script>')
    path = tmp_path / 'index.html'
    text = page(tmp_path, rows) + ask.format(json.dumps(order), json.dumps(query))
    path.write_text(text, encoding='utf-8')
    done = subprocess.run(
        ['chromium', '--headless', '--no-sandbox', '--disable-gpu',
         '--user-data-dir=' + str(tmp_path / 'profile'), '--dump-dom', path.as_uri()],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True, timeout=300)
    title = re.search('<title>(.*?)</title>', done.stdout).group(1)
    assert json.loads(title) == expected
