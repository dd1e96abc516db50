"""Writing the file of results of the option --json."""
import json

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
