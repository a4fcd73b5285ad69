"""Rows for test_runs: files that are not checkpoints."""
import io
import os
import pickle

import torch
from conftest import Calls, encoded


def saved(content):
    """The bytes of a file of torch."""
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


NOT_CHECKPOINTS = {
    "empty": b"",
    "picture": encoded(),
    "cut": saved({"parameters": {}, "parts": {}})[:-200],
    "tensor": saved(torch.zeros(3)),
    "list": saved([1, 2]),
    "of another program": saved({"state_dict": {}, "epoch": 3}),
    "parameters that are a number": saved({"parameters": 5, "data": "7 faces"}),
    "without random numbers": saved({"parameters": {}, "data": "7 faces", "parts": {}, "records": []}),
    "hostile": saved({"parameters": {}, "data": "7 faces", "x": Calls(os.system, "touch hacked")}),
    "hostile pickle": pickle.dumps(Calls(os.system, "touch hacked"), protocol=2),
}
PARTS = {
    "none": {},
    "one missing": {"D": torch.nn.Linear(3, 2)},
    "other shape": {"D": torch.nn.Linear(3, 3), "d_optimizer": torch.optim.Adam([torch.zeros(1)])},
    "network for optimizer": {"D": torch.nn.Linear(3, 2), "d_optimizer": torch.nn.Linear(3, 2)},
}
