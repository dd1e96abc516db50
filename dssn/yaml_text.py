"""Untrusted YAML: plain values only, bounded in size and depth, no key twice."""
import re
import reprlib

import yaml

from dssn.errors import UserError

LARGEST = 2 ** 20  # bytes of a file
DEEPEST = 20       # levels of nested lists and mappings
MOST = 20_000      # values, counted again for each alias that repeats them


def read_mapping(path):
    """The mapping in a YAML file (no code runs), with numbers like 1e-3 as numbers.

    Raises:
        UserError: the file cannot be read, is too large, is not YAML, or holds no mapping.
    """
    try:
        with open(path, encoding='utf-8') as file:
            text = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise UserError(f'{path}: no such config file; give another one, such as those in '
                        'configs/') from None
    except (OSError, ValueError) as error:
        raise UserError(f'{path}: cannot be read as a config file: {error}; give a text file in '
                        'UTF-8') from None
    if len(text) > LARGEST:
        raise UserError(f'{path}: larger than {LARGEST} characters, too large for a config; give a '
                        "file of 'key: value' lines")
    try:
        content = parse(text)
    except ValueError as error:
        raise UserError(f'{path}: not valid YAML: {error}; correct the line') from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold 'key: value' lines, found {type(content).__name__}; "
                        'write one key per line, such as `epochs: 80`')
    for name in content:
        if not isinstance(name, str):
            raise UserError(f'{path}: key {shown(name)} is not a word; keys are names such as '
                            'crop_size')
    return content


def parse(text):
    """The value of YAML text.

    Raises:
        ValueError: the text is not valid or too large; the message is one line.
    """
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except RecursionError:
        raise ValueError('lists or mappings are nested too deeply') from None
    except yaml.YAMLError as error:
        text = ' '.join(str(error).split()).replace(' in "<unicode string>", line', ' at line')
        raise ValueError(text) from None
    except Exception as error:  # values that do not fit their tags raise many types of errors
        raise ValueError(f'a value that its type does not allow ({type(error).__name__}: '
                         f'{" ".join(str(error).split())[:80]})') from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """YAML with few special words: see `_WORDS`. All other words are text, as they are written.

    YAML 1.1 reads `off` as false, `010` as 8, `1_8` as 18, `1:30` as 90, and `1e-3` as text.
    """

    depth = 0
    yaml_implicit_resolvers = {}  # none of YAML 1.1

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            self.expanded_size(node, {})
        return node

    def compose_node(self, parent, index):
        self.depth += 1
        if self.depth > DEEPEST:
            raise yaml.composer.ComposerError(
                None, None, f'more than {DEEPEST} levels of nested lists or mappings',
                self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def expanded_size(self, node, known):
        """Number of values in a node, aliases expanded: a few lines can mean 10^9 values."""
        if id(node) in known:
            if known[id(node)] is None:
                raise yaml.composer.ComposerError(None, None, 'a value that contains itself',
                                                  node.start_mark)
            return known[id(node)]
        known[id(node)] = None
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = size = 1 + sum(self.expanded_size(part, known) for part in parts)
        if size > MOST:
            raise yaml.composer.ComposerError(
                None, None, f'more than {MOST} values (aliases count as the values they repeat)',
                node.start_mark)
        return size

    def construct_mapping(self, node, deep=False):
        seen = set()
        for name_node, _ in node.value:
            if name_node.tag == 'tag:yaml.org,2002:merge':
                raise yaml.constructor.ConstructorError(
                    None, None, "'<<' merges are not read; write the keys out",
                    name_node.start_mark)
            name = self.construct_object(name_node, deep=True)
            if isinstance(name, str) and name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key '{name}' appears twice", name_node.start_mark)
            if isinstance(name, str):
                seen.add(name)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes a text that YAML 1.1 or `_Loader` would read as another value."""


# {tag: (the words that are not text, their first characters)}
_WORDS = {
    'null': ('~|null|Null|NULL|', ['~', 'n', 'N', '']),
    'bool': ('true|True|TRUE|false|False|FALSE', list('tTfF')),
    'int': ('[-+]?(0|[1-9][0-9]*)', list('-+0123456789')),
    'float': (r'[-+]?((0|[1-9][0-9]*)(\.[0-9]*|(?=[eE]))|\.[0-9]+)([eE][-+]?[0-9]+)?'
              r'|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)', list('-+.0123456789')),
    'merge': ('<<', ['<']),
}
for _tag, (_pattern, _first) in _WORDS.items():
    for _class in _Loader, _Dumper:
        _class.add_implicit_resolver(f'tag:yaml.org,2002:{_tag}',
                                     re.compile(f'(?:{_pattern})$'), _first)


def dump(value):
    """YAML text that `parse` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=100,
                     allow_unicode=True)


_short = reprlib.Repr()
_short.maxlevel, _short.maxlist, _short.maxtuple, _short.maxset, _short.maxdict = 4, 20, 20, 20, 20
_short.maxstring = _short.maxother = _short.maxlong = 200


def shown(value):
    """A value as one line of bounded length, for messages."""
    try:
        text = ' '.join(_short.repr(value).split())
    except Exception:  # a number with too many digits for Python
        return f'a {type(value).__name__} too long to show'
    return text if len(text) <= 400 else f'{text[:400]}...'
