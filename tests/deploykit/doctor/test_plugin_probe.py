import numpy as np
import pytest

from deploykit.doctor.plugin_probe import compare_with_references, compile_kernels
from deploykit.errors import BackendError
from deploykit.plugins_trt.host_emulation import HostDevice


def test_all_kernels_compile():
    assert compile_kernels() == 9


def test_emulated_kernels_equal_their_references(tmp_path):
    assert "equal their references" in compare_with_references(HostDevice(tmp_path))


@pytest.mark.parametrize(("ndim", "message"), [(2, "NMS on the GPU"), (4, "RoIAlign on the GPU")])
def test_a_wrong_result_is_noticed(tmp_path, ndim, message):
    class Wrong(HostDevice):
        def download(self, array):
            result = super().download(array)
            if result.ndim == ndim:
                np.copyto(result, result + 1)
            return result

    with pytest.raises(BackendError, match=message):
        compare_with_references(Wrong(tmp_path))
