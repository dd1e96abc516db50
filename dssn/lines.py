"""A text file that lines are added to, and that a full disk delays and does not tear."""
import os


class Lines:
    """Adds text at the end of a file; what cannot be written waits for the next time."""

    def __init__(self, path):
        self.path, self.waiting = path, []
        self.size = os.path.getsize(path) if os.path.exists(path) else 0

    def write(self, text):
        """Add text; returns the OSError that keeps it and others waiting, or None."""
        self.waiting.append(text)
        return self.flush()

    def flush(self):
        """Write what waits; returns an OSError or None."""
        if not self.waiting:
            return None
        data = ''.join(self.waiting).encode('utf-8', 'replace')
        try:
            with open(self.path, 'ab') as file:
                if file.tell() > self.size:
                    file.truncate(self.size)  # what an earlier attempt had room for
                file.write(data)
        except OSError as error:
            return error
        self.size += len(data)
        self.waiting = []
        return None

    def undo(self, size):
        """Mark the lines beyond `size` bytes, which are about to be written again, as undone."""
        if self.size <= size:
            return
        with open(self.path, 'rb') as file:
            kept, rest = file.read(size), file.read()
        marked = b''.join(b'undone: ' + line for line in rest.splitlines(True))
        if marked and not marked.endswith(b'\n'):
            marked += b'\n'
        with open(f'{self.path}.tmp', 'wb') as file:
            file.write(kept + marked)
        os.replace(f'{self.path}.tmp', self.path)
        self.size = len(kept) + len(marked)
