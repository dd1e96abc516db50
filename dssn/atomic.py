"""Writing a file completely or not at all."""
import os


def write_atomically(path, content):
    """Replace a file by text or bytes; others read the old or the new content, never a part."""
    data = content.encode('utf-8') if isinstance(content, str) else content
    with open(f'{path}.tmp', 'wb') as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(f'{path}.tmp', path)
