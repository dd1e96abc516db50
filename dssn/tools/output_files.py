"""Writing files of results: as JSON for the option --json, or atomically."""
import json

from dssn.atomic import write_atomically
from dssn.errors import UserError

__all__ = ['write_atomically', 'write_json']


def write_json(path, content):
    """Write a result as JSON, the file of the option --json; without a path nothing is written.

    Raises:
        UserError: the file cannot be written.
    """
    if not path:
        return
    try:
        with open(path, 'w', encoding='utf-8') as file:
            json.dump(content, file, indent=1)
    except OSError as error:
        raise UserError(f'--json {path}: cannot be written ({error.strerror})') from None
