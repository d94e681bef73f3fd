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
    assert len(buffers._idle) == 1


def test_a_tensor_gets_the_smallest_memory_that_holds_it_and_what_is_too_small_makes_room():
    buffers = Buffers(keep=2)
    held = [buffers.take((size,)) for size in (10, 30)]
    addresses = [tensor.data_ptr() for tensor in held]
    held.clear()
    assert buffers.take((4, 2)).data_ptr() == addresses[0]
    large = buffers.take((5, 8))  # no idle memory is large enough: the oldest goes
    address = large.data_ptr()
    del large
    assert sorted(memory.size for memory in buffers._idle) == [10, 40]
    assert buffers.take((40,)).data_ptr() == address
