"""Id lists: reading a line, the facts in an error, and reading back a written list."""
import os

import pytest

from dssn.data.lists import Sample, check_files, read_list, write_list
from dssn.errors import UserError


def written(folder, content, name='list.txt'):
    path = os.path.join(str(folder), name)
    with open(path, 'wb') as file:
        file.write(content)
    return path


def pairs(samples):
    return [(sample.image, sample.mask) for sample in samples]


@pytest.mark.parametrize('line, image, mask', [
    ('a/1.jpg b/1.png', 'a/1.jpg', 'b/1.png'),
    ('a/1.jpg\tb/1.png', 'a/1.jpg', 'b/1.png'),
    # With a tab in the line a space is part of a name.
    ('my photos/1.jpg\tmy masks/1.png', 'my photos/1.jpg', 'my masks/1.png'),
    ('my photos/1.jpg\tb.png', 'my photos/1.jpg', 'b.png'),
    ('a.jpg\tmy masks/1.png', 'a.jpg', 'my masks/1.png'),
    ('  a.jpg   b.png  ', 'a.jpg', 'b.png'),
    ('a.jpg \t b.png', 'a.jpg', 'b.png'),
    ('\u753b\u50cf/1.jpg m\u00fc.png', '\u753b\u50cf/1.jpg', 'm\u00fc.png'),
])
def test_a_line_is_split_at_its_tab_or_at_its_space(tmp_path, line, image, mask):
    path = written(tmp_path, (line + '\n').encode('utf-8'))
    for masks in (True, False):
        assert pairs(read_list(path, masks)) == [(image, mask)]


@pytest.mark.parametrize('content', [
    b'a b\nc d\n',
    b'a b\nc d',                        # no newline at the end
    b'\na b\n\n   \n\t\nc d\n\n',       # blank lines anywhere
    b'a b\r\nc d\r\n',                  # Windows
    b'\xef\xbb\xbfa b\nc d\n',          # a byte order mark
    b'\xef\xbb\xbf\r\na b\r\n\r\nc d',
])
def test_blank_lines_line_ends_and_byte_order_mark_do_not_matter(tmp_path, content):
    assert pairs(read_list(written(tmp_path, content))) == [('a', 'b'), ('c', 'd')]


def test_samples_have_the_order_and_the_line_numbers_of_the_file(tmp_path):
    path = written(tmp_path, b'z z\n\na a\nz z\n')
    samples = read_list(path)
    assert pairs(samples) == [('z', 'z'), ('a', 'a'), ('z', 'z')]
    assert [sample.place for sample in samples] == [f'{path} line {n}' for n in (1, 3, 4)]


def test_an_unlabeled_line_may_name_only_the_image(tmp_path):
    path = written(tmp_path, b'a.jpg\nb.jpg b.png\nwith space.jpg\t\n')
    assert pairs(read_list(path, masks=False)) == [
        ('a.jpg', None), ('b.jpg', 'b.png'), ('with space.jpg', None)]


@pytest.mark.parametrize('content, line, words', [
    (b'a b\n\nc\n', 3, ["'c'", 'no mask', 'image mask']),
    (b'a b\nc d e\n', 2, ['c d e', '3 parts', 'tab']),
    (b'a\tb\tc\n', 1, ['3 parts']),
    (b'a b\r\n\r\nlost.jpg\t\r\n', 3, ['lost.jpg', 'no mask']),
])
def test_the_error_of_an_unreadable_line_has_its_number(tmp_path, content, line, words):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_list(path)
    message = str(caught.value)
    assert message.startswith(f'{path} line {line}:')
    for word in words:
        assert word in message


def test_three_parts_are_an_error_in_an_unlabeled_list_too(tmp_path):
    with pytest.raises(UserError, match='line 1.*3 parts'):
        read_list(written(tmp_path, b'a b c\n'), masks=False)


@pytest.mark.parametrize('content', [b'', b'\n\n', b'  \r\n\t\r\n', b'\xef\xbb\xbf'])
def test_an_empty_list_is_an_error(tmp_path, content):
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        read_list(path)
    assert path in str(caught.value) and 'empty' in str(caught.value)


def test_a_missing_list_a_folder_and_a_binary_file_are_errors(tmp_path):
    missing = str(tmp_path / 'none.txt')
    with pytest.raises(UserError) as caught:
        read_list(missing)
    # The remedy is the command that makes lists.
    assert missing in str(caught.value) and 'dssn split' in str(caught.value)
    for path in (str(tmp_path), written(tmp_path, b'\xff\xfe\x00\x01 b\n')):
        with pytest.raises(UserError) as caught:
            read_list(path)
        assert path in str(caught.value)
    assert 'save it as UTF-8' in str(caught.value)


@pytest.mark.parametrize('samples', [
    [('a.jpg', 'b.png'), ('c.jpg', 'd.png')],
    [('a 1.jpg', 'b 1.png'), ('c.jpg', 'd.png')],
    [('a 1.jpg', 'b.png'), ('c.jpg', 'd 2.png')],
    [('a.jpg', None), ('b 2.jpg', None)],
    [('a.jpg', None), ('b.jpg', 'b.png')],
    [('\u753b\u50cf 1.jpg', 'm\u00fc.png')],
])
def test_written_lists_read_back(tmp_path, samples):
    path = str(tmp_path / 'new' / 'folder' / 'list.txt')
    write_list(path, [Sample(image, mask, '') for image, mask in samples])
    assert pairs(read_list(path, masks=all(mask for _, mask in samples))) == samples
    with open(path, 'rb') as file:
        content = file.read()
    # The same bytes on every system, one line a sample.
    assert content.count(b'\n') == len(samples) and b'\r' not in content
    assert content.endswith(b'\n')


@pytest.mark.parametrize('name', ['a\tb.jpg', 'a\nb.jpg', 'a\rb.jpg', ' a.jpg', 'a.jpg ',
                                  os.fsdecode(b'caf\xe9.jpg')])
def test_a_name_that_a_list_cannot_hold_is_refused_before_writing(tmp_path, name):
    path = str(tmp_path / 'list.txt')
    for sample in (Sample(name, None, ''), Sample('a.jpg', name, '')):
        with pytest.raises(UserError, match='rename the file') as caught:
            write_list(path, [Sample('b.jpg', None, ''), sample])
        assert repr(name) in str(caught.value)
        str(caught.value).encode('utf-8')  # the message can be printed
    assert not os.path.exists(path)


def test_names_without_spaces_are_written_with_a_space(tmp_path):
    path = str(tmp_path / 'list.txt')
    write_list(path, [Sample('a.jpg', 'b.png', ''), Sample('c.jpg', None, '')])
    with open(path) as file:
        assert file.read() == 'a.jpg b.png\nc.jpg\n'


def test_check_files_reports_line_file_and_data_root(tmp_path):
    root = tmp_path / 'root'
    root.mkdir()
    for name in ('a.jpg', 'a.png', 'b.jpg'):
        (root / name).write_bytes(b'x')
    path = written(tmp_path, b'a.jpg a.png\nb.jpg b.png\n')
    samples = read_list(path)
    check_files(samples[:1], str(root))
    with pytest.raises(UserError) as caught:
        check_files(samples, str(root))
    for word in (path + ' line 2', 'b.png', str(root), 'data_root'):
        assert word in str(caught.value)
    # Masks of unlabeled images are never opened, so they may be missing.
    check_files(samples, str(root), masks=False)
    (root / 'b.png').write_bytes(b'x')
    check_files(samples, str(root))
    os.remove(str(root / 'b.jpg'))
    for masks in (True, False):
        with pytest.raises(UserError, match='line 2.*b.jpg'):
            check_files(samples, str(root), masks)


def test_check_files_refuses_a_folder(tmp_path):
    (tmp_path / 'a').mkdir()
    with pytest.raises(UserError, match='line 1: no file a'):
        check_files(read_list(written(tmp_path, b'a\n'), masks=False), str(tmp_path), masks=False)


@pytest.mark.parametrize('root', ['nowhere', ''])
def test_check_files_reports_a_missing_data_root(tmp_path, root):
    root = root and str(tmp_path / root)
    with pytest.raises(UserError) as caught:
        check_files([Sample('a', 'b', 'list line 1')], root)
    assert f"data_root = '{root}'" in str(caught.value)
