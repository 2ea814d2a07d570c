"""The material ``q8_0``: the embedded model with eight-bit weights, as a GGUF file.

What llama.cpp's quantizer would make of the same file: weights are read as float32 and stored
as Q8_0; what is one-dimensional stays float32.
"""

from __future__ import annotations

import os

import gguf


def main(folder, source):
    """Write ``model.gguf`` into ``folder``; ``source["gguf"]`` is the embedded model."""
    write(os.path.join(folder, "model.gguf"), source["gguf"], "Q8_0")


def write(path, source, kind):
    """Write the model of the file ``source`` with all its matrices in one type."""
    stored = gguf.GGMLQuantizationType[kind]
    reader = gguf.GGUFReader(source)
    architecture = reader.fields[gguf.Keys.General.ARCHITECTURE].contents()
    writer = gguf.GGUFWriter(path, architecture)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == gguf.Keys.General.ARCHITECTURE:
            continue  # the writer's own
        outer, inner = field.types[0], field.types[-1] if len(field.types) > 1 else None
        if name == gguf.Keys.General.FILE_TYPE:
            writer.add_file_type(gguf.LlamaFileType["MOSTLY_" + kind])
        else:
            writer.add_key_value(name, field.contents(), outer, inner)
    for tensor in reader.tensors:
        values = gguf.dequantize(tensor.data, tensor.tensor_type).astype("float32")
        if len(tensor.shape) > 1:
            writer.add_tensor(tensor.name, gguf.quantize(values, stored), raw_dtype=stored)
        else:
            writer.add_tensor(tensor.name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
