"""Temporary."""
import json
from safetensors import safe_open
from safetensors.numpy import save
import numpy as np
from dipengine.images.atomic import atomic_path

def write_checkpoint(path, run, identity):
    tensors, meta = run.state()
    data = save({k: np.ascontiguousarray(v) for k, v in tensors.items()}, metadata={"m": json.dumps(meta)})
    with atomic_path(path) as beside, open(beside, "wb") as file:
        file.write(data)

def read_checkpoint(path, run, identity):
    with safe_open(path, framework="numpy") as f:
        run.restore({k: f.get_tensor(k) for k in f.keys()}, json.loads(f.metadata()["m"]))
