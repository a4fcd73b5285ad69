"""Rows for test_settings: {parameter: (what it must be, values refused, values taken: what each becomes)}."""
import math

import torch

SHARE = "a number, at least 0, less than 1", [-0.1, 1, True], {0: 0.0, 0.999: 0.999}
SWITCH = "true or false", ["perhaps", "", 2, None], {"false": False, "true": True, True: True}
COUNT = "a whole number, at least 1", [0, True], {1: 1, 1e3: 1000}
PATHS = ["", " ", "nul\0", 5, None]

PARAMETERS = {
    "dataset": ("a zip file, a folder of images or \"celeba\"", PATHS, {"~/two words.zip": "~/two words.zip"}),
    "output_dir": ("the path of a folder", PATHS, {"runs/a": "runs/a"}),
    "image_size": ("32, 64 or 128", [48, "32x32", True], {32: 32, "64": 64, 128.0: 128}),
    "batch_size": ("a whole number, at least 4",
                   [3, 64.5, "", "abc", "1e3", "nan", math.nan, math.inf, True, None, [64]],
                   {4: 4, "64": 64, 1e3: 1000}),
    "n_epochs": COUNT, "print_every": COUNT, "z_size": COUNT, "d_conv_dim": COUNT, "g_conv_dim": COUNT,
    "d_lr": ("a number, more than 0", [0, "-1e-3", "nan", math.inf, True, None], {"1e-3": 0.001, 1: 1.0}),
    "g_lr": ("a number, more than 0", [0, True], {1e-9: 1e-9}),
    "lr_decay": ("a whole number, at least 0", [-1, False], {0: 0}),
    "lookahead": ("a whole number, at least 0", [-1, 2.5, True], {0: 0, "5": 5}),
    "beta1": SHARE, "beta2": SHARE, "ema_decay": SHARE,
    "label_smoothing": ("a number, at least 0, less than 0.4", [-0.1, 0.4, True], {0: 0.0, 0.399: 0.399}),
    "augment": ("\"\", flip, shift or flip shift", ["flop", "flip,shift", False], {"": "", "flip shift": "flip shift"}),
    "instance_noise": ("a number, at least 0", [-0.1, True], {0: 0.0}),
    "seed": ("a whole number, at least 0, less than 4294967296", [-1, 2**32], {0: 0, 2**32 - 1: 2**32 - 1}),
    "device": ("auto, cuda, mps, xpu or cpu", ["gpu", "cuda:x", "cpu\n", None],
               {"cuda:1": "cuda:1", torch.device("cpu"): "cpu"}),
    "precision": ("auto, fp32 or bf16", ["fp16", 16], {"bf16": "bf16"}),
    "fid": SWITCH,
    "start_from": ("the folder of a run or \"\"", PATHS[1:], {"": ""}),
    "resume": SWITCH,
}
REFUSED = [(name, value, wanted) for name, (wanted, values, _) in PARAMETERS.items() for value in values]
TAKEN = [(name, *pair) for name, (_, _, pairs) in PARAMETERS.items() for pair in pairs.items()]
