"""Memory for native calls, beyond which no read and no write goes unnoticed.

A buffer ends where a page begins that nobody may touch, which stops accesses past its end, also those that
the sanitizers miss; or it is a heap block of its own, whose two ends AddressSanitizer watches. What lies
before a buffer of the first kind is checked by `Buffer.is_intact`. Buffers have to live as long as the call.
"""

import ctypes
import mmap

import numpy as np

PAGE = mmap.PAGESIZE
MARK = 0xA5

_protect = ctypes.CDLL(None, use_errno=True).mprotect
_protect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


class Buffer:
    """Elements of one dtype, and how they are handed over: address and count.

    Parameters
    ----------
    contents : array_like
        Copied.
    at_page_end : bool
        Whether the elements end at a page that may not be touched.
    """

    def __init__(self, contents, at_page_end):
        contents = np.ascontiguousarray(contents).reshape(-1)
        self.count = contents.size
        self.itemsize = contents.itemsize
        if at_page_end:
            room = -(-max(contents.nbytes, 1) // PAGE) * PAGE
            self._owner = mmap.mmap(-1, room + PAGE)
            whole = np.frombuffer(self._owner, np.uint8)
            if _protect(whole.ctypes.data + room, PAGE, 0) != 0:
                raise OSError(ctypes.get_errno(), "mprotect")
            self._before = whole[: room - contents.nbytes]
            self._before[:] = MARK
            self.array = whole[room - contents.nbytes : room].view(contents.dtype)
            self.array[:] = contents
        else:
            self._before = None
            self.array = contents.copy()

    @property
    def address(self):
        return self.array.ctypes.data

    def __iter__(self):
        """As the extension takes it: ``function(*buffer)``."""
        return iter((self.address, self.count))

    def is_intact(self):
        return self._before is None or bool((self._before == MARK).all())
