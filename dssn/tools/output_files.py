"""Writing files of results: as JSON for the option --json, or atomically."""
import json
import os

from dssn.errors import UserError


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


def write_atomically(path, content):
    """Replace a file by text or bytes; others read the old or the new content, never a part."""
    data = content.encode('utf-8') if isinstance(content, str) else content
    with open(f'{path}.tmp', 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f'{path}.tmp', path)
