import subprocess
import sys


def test_timm_and_transformers_can_be_imported_after_the_shim() -> None:
    code = (
        "import dsvlp.vision, timm, torchvision, torch; from transformers import BertModel\n"
        "assert hasattr(torch.ops.torchvision, 'nms')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
