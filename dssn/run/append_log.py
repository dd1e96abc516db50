"""An append-only text file. If the disk is full, text is kept and written later."""
import os


class AppendLog:
    """Appends text to a file. Text that cannot be written is kept for the next call."""

    def __init__(self, path):
        self.path, self.waiting = path, []
        self.size = os.path.getsize(path) if os.path.exists(path) else 0

    def write(self, text):
        """Append text. Returns the OSError if it could not be written, else None."""
        self.waiting.append(text)
        return self.flush()

    def flush(self):
        """Write the text that waits. Returns the OSError if that fails, else None."""
        if not self.waiting:
            return None
        data = ''.join(self.waiting).encode('utf-8', 'replace')
        try:
            with open(self.path, 'ab') as file:
                if file.tell() > self.size:
                    file.truncate(self.size)  # remove the remains of an attempt that failed
                file.write(data)
        except OSError as error:
            return error
        self.size += len(data)
        self.waiting = []
        return None

    def undo(self, size):
        """Mark the lines after the first `size` bytes as `undone:`; they will be written again."""
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
