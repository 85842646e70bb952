"""Files that would run code if they were read as their makers hope."""

import json
import os
import pickle
import shutil

import torch


class Marker:
    """Unpickled, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def code(marker):
    """Return Python source that makes a folder as soon as it is imported."""
    return f"import os\n\nos.mkdir({str(marker)!r})\n"


def pickled(marker, path):
    """Write a plain pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps({"state_dict": Marker(marker), "etw_lightning": {}}))
    return path


def saved(marker, path):
    """Write a checkpoint as ``torch.save`` does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"state_dict": {"w": torch.zeros(1)}, "etw_lightning": Marker(marker)}, path)
    return path


def with_pickled_weights(marker, model, folder):
    """Copy a model's folder, with pickled weights in the place of safetensors."""
    shutil.copytree(model, folder)
    for path in folder.glob("*.safetensors"):
        path.unlink()
    saved(marker, folder / "pytorch_model.bin")
    return folder


def with_code(marker, model, folder, file="config.json", classes=None, **changes):
    """Copy a model's folder; one of its files asks for code that lies beside it."""
    shutil.copytree(model, folder)
    (folder / "evil.py").write_text(code(marker))
    found = json.loads((folder / file).read_text())
    names = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    found |= {"auto_map": classes or names, **changes}
    (folder / file).write_text(json.dumps(found))
    return folder
