import torch

from dsvlp.data.threads import single_threaded_pool


def test_a_pools_threads_run_torch_alone_and_others_keep_their_count():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with single_threaded_pool(2) as pool:
        assert {pool.submit(torch.get_num_threads).result(10) for _ in range(8)} == {1}
        assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
