"""Write a kept generator as ONNX, and check it against PyTorch.

    python -m tools.export_onnx [FOLDER] [FILE]     FOLDER is assets, and FILE generator.onnx in it, unless given

Input z, float32 (batch, z_size) in [-1, 1]; output images, float32 (batch, 3, height, width) in [-1, 1]. Needs the
packages onnx and onnxruntime, which nothing else here does."""
import argparse
import json
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

import helpers
from plumbing import files
from plumbing.story import definitions


def onnx_model(weights):
    """The bytes of a Generator in eval mode as an ONNX model; weights, {name: tensor}, are kept in their precision and
    computed with in float32."""
    from onnx import TensorProto, helper, numpy_helper
    shape = torch.tensor([-1, weights["FC.bias"].numel() // 4, 2, 2])
    nodes, stored = [], [numpy_helper.from_array(shape.numpy(), "2x2")]

    def add(kind, *inputs, **attributes):
        nodes.append(helper.make_node(kind, inputs, [f"x{len(nodes)}"], **attributes))
        return f"x{len(nodes) - 1}"

    def weight(name):
        stored.append(numpy_helper.from_array(weights[name].numpy(), name))
        return add("Cast", name, to=TensorProto.FLOAT)

    x = add("Gemm", "z", weight("FC.weight"), weight("FC.bias"), transB=1)
    x = add("Relu", add("Reshape", x, "2x2"))
    stages = sum(name.endswith(".0.weight") for name in weights)
    for stage in range(1, stages + 1):
        x = add("ConvTranspose", x, weight(f"t_conv{stage}.0.weight"), strides=[2, 2], pads=[1, 1, 1, 1])
        if stage < stages:
            norm = [weight(f"t_conv{stage}.1.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
            x = add("Relu", add("BatchNormalization", x, *norm, epsilon=1e-5))
    nodes.append(helper.make_node("Tanh", [x], ["images"]))
    size = 2 ** (stages + 1)
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["batch", weights["FC.weight"].shape[1]])
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, size, size])
    graph = helper.make_graph(nodes, "generator", [z], [images], stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def milliseconds(draw, z):
    """The median time that draw takes for one row of z."""
    times = []
    for row in z.split(1):
        start = time.perf_counter()
        draw(row)
        times.append(1000 * (time.perf_counter() - start))
    return sorted(times)[len(times) // 2]


def export_onnx(folder="assets", path=None):
    """Write the generator kept in folder as ONNX to path; returns {what was measured: number}.

    Raises ValueError if folder holds no generator of the notebook, or if onnxruntime draws other faces than PyTorch;
    nothing is written then."""
    import onnxruntime
    helpers.load_generator(folder)
    about = json.loads(Path(folder, "generator.json").read_text())
    weights = load_file(Path(folder, "generator.safetensors"))
    model = onnx_model(weights)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    G = definitions().Generator(about["z_size"], about["conv_dim"], about["image_size"]).eval()
    G.load_state_dict(weights)

    def run(z):
        return torch.from_numpy(session.run(["images"], {"z": z.numpy()})[0])

    z = 2 * torch.rand(64, about["z_size"], generator=torch.Generator().manual_seed(0)) - 1
    with torch.no_grad():
        difference = (run(z) - G(z)).abs().max().item()
        if not difference < 1e-3:
            raise ValueError(f"onnxruntime draws other faces than PyTorch (largest difference {difference:.1e}).")
        files.write(path or Path(folder, "generator.onnx"), model)
        return {"largest difference": difference, "MB": len(model) / 1e6, "ms a face": milliseconds(run, z),
                "ms a face, PyTorch": milliseconds(G, z)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", default="assets", help="where a generator is (default: assets)")
    parser.add_argument("file", nargs="?", help="the file to write (default: generator.onnx in that folder)")
    options = parser.parse_args()
    try:
        for name, value in export_onnx(options.folder, options.file).items():
            print(f"{name}: {value:.2g}")
    except ImportError as error:
        parser.exit(1, f"This needs packages that are not installed ({error}): pip install onnx onnxruntime.\n")
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
