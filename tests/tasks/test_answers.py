import torch

from dsvlp.tasks.answers import NLVR2Head, VQAHead
from dsvlp.types import Encoded


def test_vqa_has_a_logit_an_answer_and_the_papers_layers():
    head = VQAHead(96, 31, 48)
    assert head.score(Encoded(pooled=torch.randn(5, 96))).shape == (5, 31)
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters() if "weight" in name}
    assert shapes == {"0.weight": (96, 96), "1.weight": (96,), "3.weight": (31, 96)}


def test_nlvr2_reads_both_images_of_a_statement_left_first():
    head = NLVR2Head(6, 48)
    pooled = torch.randn(4, 6)
    logits = head.score(Encoded(pooled=pooled))
    assert logits.shape == (2, 2)
    assert torch.allclose(logits[1], head(torch.cat((pooled[2], pooled[3])))[None], atol=1e-6)
    swapped = head.score(Encoded(pooled=pooled[[1, 0, 3, 2]]))
    assert not torch.allclose(logits, swapped)
