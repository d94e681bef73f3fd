import gc

from dsvlp.data.buffers import Buffers


def test_memory_comes_back_only_when_no_view_of_it_lives():
    buffers = Buffers(keep=2)
    first = buffers.take((4, 5))
    address, part = first.data_ptr(), first[1:]
    del first
    assert buffers.take((4, 5)).data_ptr() != address  # `part` still shows it
    del part
    gc.collect()
    assert buffers.take((5, 4)).data_ptr() == address


def test_no_more_than_the_limit_lies_idle():
    buffers = Buffers(keep=1)
    held = [buffers.take((3,)) for _ in range(4)]
    held.clear()
    assert len(buffers._idle[3]) == 1
