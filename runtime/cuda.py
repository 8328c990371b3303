"""The few calls of NVIDIA's driver that a native TensorRT engine needs, through ctypes: no CUDA package is installed.

    gpu = Gpu()                                        # the first visible device; CUDA_VISIBLE_DEVICES chooses it
    gpu.name, gpu.capability                           # "Orin", "8.7"
    address = gpu.allocate(nbytes)
    gpu.upload(address, array); gpu.download(address, array); gpu.synchronize()

``libcuda.so.1`` comes with the driver itself, on a Jetson as on a server, and keeps its name over CUDA's versions,
which the runtime library ``libcudart`` does not.  Its primary context is the one that TensorRT works in.

It has not been run on a GPU yet; tests run it on a stand-in for the library.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from numpy.typing import NDArray

from runtime.errors import OptionError

_LIBRARY = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # of enum CUdevice_attribute

# Types of the arguments; without them ctypes would cut addresses to 32 bits.  Results are all `CUresult`, an int.
_OUT = ctypes.c_void_p
_ADDRESS = ctypes.c_uint64
_SIGNATURES: dict[str, tuple[Any, ...]] = {
    "cuInit": (ctypes.c_uint,),
    "cuDeviceGet": (_OUT, ctypes.c_int),
    "cuDeviceGetName": (ctypes.c_char_p, ctypes.c_int, ctypes.c_int),
    "cuDeviceGetAttribute": (_OUT, ctypes.c_int, ctypes.c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, ctypes.c_int),
    "cuCtxSetCurrent": (ctypes.c_void_p,),
    "cuStreamCreate": (_OUT, ctypes.c_uint),
    "cuStreamSynchronize": (ctypes.c_void_p,),
    "cuMemAlloc_v2": (_OUT, ctypes.c_size_t),
    "cuMemcpyHtoDAsync_v2": (_ADDRESS, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p),
    "cuMemcpyDtoHAsync_v2": (ctypes.c_void_p, _ADDRESS, ctypes.c_size_t, ctypes.c_void_p),
    "cuGetErrorString": (ctypes.c_int, _OUT),
}


class Gpu:
    """The first visible GPU, a context and a stream on it, for as long as the process lives.

    Attributes:
        name: as the driver calls it.
        capability: compute capability, "8.7".
        stream: handle of the stream on which all copies run.

    Raises:
        OptionError: no driver, no GPU, or it does not answer.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError:
            raise OptionError(f"there is no NVIDIA driver ({_LIBRARY} is missing)") from None
        for function, arguments in _SIGNATURES.items():
            getattr(self._library, function).argtypes = arguments
        self._call("cuInit", 0)
        device = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        self.name = name.value.decode()
        self.capability = ".".join(
            str(self._attribute(which, device)) for which in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR)
        )
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), device)
        self.attach()
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), 0)
        self.stream = stream.value or 0

    def _call(self, function: str, *arguments: Any) -> None:
        code = getattr(self._library, function)(*arguments)
        if code:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(code, ctypes.byref(text))
            says = text.value.decode() if text.value else "no description"
            raise OptionError(f"the GPU cannot be used: {function} failed with {code} ({says})")

    def _attribute(self, which: int, device: ctypes.c_int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), which, device)
        return value.value

    def attach(self) -> None:
        """Make the context that of the calling thread; each thread needs this once."""
        self._call("cuCtxSetCurrent", self._context)

    def allocate(self, nbytes: int) -> int:
        """Device memory, kept until the process ends; gives its address."""
        address = _ADDRESS()
        self._call("cuMemAlloc_v2", ctypes.byref(address), nbytes)
        return address.value

    def upload(self, address: int, array: NDArray[np.float32]) -> None:
        """Copy a C-contiguous array to the device."""
        self._call("cuMemcpyHtoDAsync_v2", address, array.ctypes.data, array.nbytes, self.stream)

    def download(self, address: int, array: NDArray[np.float32]) -> None:
        """Copy from the device into a C-contiguous array, which is complete after `synchronize`."""
        self._call("cuMemcpyDtoHAsync_v2", array.ctypes.data, address, array.nbytes, self.stream)

    def synchronize(self) -> None:
        """Wait for all that was put on the stream."""
        self._call("cuStreamSynchronize", self.stream)
