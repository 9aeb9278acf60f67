import sys
import tempfile
from pathlib import Path

import torch

sys.path[:0] = ["/work/main", "/work/wt/session/tests"]
from made_up import write_dataset
from tiny_clip import save_tiny_clip
from safetensors.torch import save_file
from icdsel.settings.loading import load_settings
from icdsel.stages.session import open_session
import icdsel

print(icdsel.__file__)
t = Path(tempfile.mkdtemp())
clip = save_tiny_clip(t / "clip")
write_dataset(t, 6, train=40)
save_file({"v": torch.randn(40, 12)}, t / "v.safetensors")
(t / "images/5.png").write_bytes(b"damaged")
s = load_settings(
    {
        "data": {
            "dataset": str(t / "made.jsonl"),
            "results_dir": str(t / "r"),
            "pool_size": 8,
            "encoder": str(clip),
            "train_embeddings": str(t / "v.safetensors"),
            "sampler": "text-sim",
            "on_image_error": "skip",
        },
        "vlm": {"model": "tiny-vlm"},
    }
)
for kind in ("text-sim", "img-sim", "mix"):
    s2 = load_settings({"data": s.data.model_dump() | {"sampler": kind}, "vlm": {"model": "tiny-vlm"}})
    ses = open_session(s2)
    print(
        kind,
        "broken",
        ses.identity.get("broken_images"),
        [5 in p for p in ses.queries(ses.split("validation"), "validation", 1).pools],
        [5 in p for p in ses.queries(ses.split("validation"), "validation", 1).pools],
    )
