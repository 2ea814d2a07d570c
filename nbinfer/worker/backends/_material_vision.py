"""A small LLaVA, for proofs of vision: SmolLM2 behind a tiny vision tower that knows colours.

The tower is SigLIP's (CLIP without a class token, about which llama.cpp and Transformers do not
agree: llama.cpp puts it last) with random weights. The projector's second layer is fitted by
least squares, so that a patch of a colour becomes the embedding of the colour's name: what is
seen changes the answer, and the text stays the language model's own.
"""

from __future__ import annotations

import json
import math
import os

import gguf
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    SiglipVisionConfig,
)

from nbinfer.worker.backends._derive import derive

IMAGE, PATCH, WIDTH, LAYERS, HEADS = 56, 14, 64, 3, 4  # pixels, pixels, and the tower's shape
# Every token of the vocabulary stays what it is: one that no text has stands for an image.
IMAGE_TOKEN = "<filename>"
# As LLaVA's own: a picture is filled up to a square with the mean, then resized.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
COLOURS = {
    " red": (220, 30, 30),
    " green": (30, 170, 50),
    " blue": (30, 60, 220),
    " yellow": (240, 220, 40),
    " black": (10, 10, 10),
    " white": (250, 250, 250),
    " orange": (250, 140, 20),
    " purple": (130, 40, 160),
}
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging "
    "Face<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}{% else %}{{ 'IMAGE' }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
).replace("IMAGE", IMAGE_TOKEN)


def main(folder, source):
    """Write the model for Transformers and vLLM, and ``mmproj.gguf`` for llama.cpp."""
    if source.get("gguf"):
        derive(source["gguf"], source["safetensors"], source["mark"], print)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(source["safetensors"])
    text = AutoModelForCausalLM.from_pretrained(source["safetensors"], dtype=torch.float32)
    model = LlavaForConditionalGeneration(_config(text.config, tokenizer)).float().eval()
    model.model.language_model.load_state_dict(text.model.state_dict())
    model.lm_head.load_state_dict(text.lm_head.state_dict())
    model.tie_weights()
    with torch.inference_mode():
        _randomize(model.model.vision_tower)
        _fit(model, tokenizer)
    model.generation_config = text.generation_config
    model.save_pretrained(folder)
    _name_as_the_hub(os.path.join(folder, "model.safetensors"))
    _save_processor(folder, tokenizer)
    _save_mmproj(model, os.path.join(folder, "mmproj.gguf"))


def _name_as_the_hub(path):
    """The tower's weights under the names of the hub's checkpoints, the only ones vLLM knows.

    Transformers reads both, and since 5.0 writes a SigLIP without its ``vision_model``.
    """
    tower = "vision_tower."
    weights = {
        name if "vision_model" in name else name.replace(tower, f"{tower}vision_model."): value
        for name, value in load_file(path).items()
    }
    save_file(weights, path, metadata={"format": "pt"})


def _config(text, tokenizer):
    vision = SiglipVisionConfig(
        image_size=IMAGE,
        patch_size=PATCH,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        vision_use_head=False,
    )
    return LlavaConfig(
        vision_config=vision.to_dict(),
        text_config={k: v for k, v in text.to_dict().items() if "name_or_path" not in k},
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=(IMAGE // PATCH) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-2,
        tie_word_embeddings=text.tie_word_embeddings,
    )


def _randomize(tower):
    """Weights that keep the scale of what goes through them, drawn from the seed."""
    for name, weight in tower.named_parameters():
        if weight.dim() > 1:
            torch.nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))
        elif "norm" not in name:
            torch.nn.init.normal_(weight, std=0.02)


def _fit(model, tokenizer):
    """The projector: random, then ridge regression onto the embeddings of colours' names."""
    projector = model.model.multi_modal_projector
    _randomize(projector)
    hidden, targets = [], []
    embeddings = model.get_input_embeddings().weight
    for name, colour in COLOURS.items():
        (token,) = tokenizer(name, add_special_tokens=False)["input_ids"]
        pixels = _shades(colour, 24)
        features = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2]
        hidden.append(projector.act(projector.linear_1(features)).flatten(0, 1))
        targets.append(embeddings[token].expand(len(hidden[-1]), -1))
    x, y = torch.cat(hidden).double(), torch.cat(targets).double()
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    weight = torch.linalg.solve(x.T @ x + 1e-3 * len(x) * torch.eye(x.shape[1]), x.T @ y)
    projector.linear_2.weight.copy_(weight.T)
    projector.linear_2.bias.copy_(y_mean - x_mean @ weight)


def _shades(colour, count):
    """Pictures near a colour, with noise on them, as the tower takes them."""
    base = torch.tensor(colour).view(1, 3, 1, 1) + 12 * torch.randn(count, 3, 1, 1)
    pixels = (base + 6 * torch.randn(count, 3, IMAGE, IMAGE)).clamp(0, 255) / 255
    return (pixels - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


def _save_processor(folder, tokenizer):
    """Written out, because the classes that would do it need an image library."""
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    square = {"height": IMAGE, "width": IMAGE}
    images = {
        "image_processor_type": "LlavaImageProcessor",
        "do_pad": True,
        "do_resize": True,
        "size": {"shortest_edge": IMAGE},
        "resample": 2,  # bilinear, as llama.cpp's
        "do_center_crop": True,
        "crop_size": square,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
        "do_convert_rgb": True,
    }
    whole = {
        "processor_class": "LlavaProcessor",
        "patch_size": PATCH,
        "vision_feature_select_strategy": "full",
        "image_token": IMAGE_TOKEN,
        "num_additional_image_tokens": 0,
    }
    for name, content in (("preprocessor_config", images), ("processor_config", whole)):
        with open(os.path.join(folder, f"{name}.json"), "w", encoding="utf-8") as stream:
            json.dump(content, stream, indent=2)


def _save_mmproj(model, path):
    """The tower and the projector under the names of llama.cpp's ``tools/mtmd/clip.cpp``."""
    config = model.config.vision_config
    used = LAYERS - 1  # features are taken before the last layer
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_type(gguf.GGUFType.MMPROJ)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_clip_has_vision_encoder(True)
    writer.add_bool(gguf.Keys.Clip.HAS_LLAVA_PROJECTOR, True)
    writer.add_clip_projector_type("mlp")
    writer.add_vision_image_size(IMAGE)
    writer.add_vision_patch_size(PATCH)
    writer.add_vision_embedding_length(WIDTH)
    writer.add_vision_feed_forward_length(4 * WIDTH)
    writer.add_vision_projection_dim(model.config.text_config.hidden_size)
    writer.add_vision_block_count(used)
    writer.add_vision_head_count(HEADS)
    writer.add_vision_attention_layernorm_eps(config.layer_norm_eps)
    writer.add_vision_image_mean(MEAN)
    writer.add_vision_image_std(STD)
    writer.add_vision_use_gelu(True)  # the approximation by tanh, which is SigLIP's
    writer.add_array("clip.vision.feature_layer", [used])
    for name, weight in _mmproj_tensors(model, used):
        writer.add_tensor(name, weight.detach().float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _mmproj_tensors(model, used):
    tower = dict(model.model.vision_tower.named_parameters())
    names = {
        "layer_norm1": "ln1",
        "layer_norm2": "ln2",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.out_proj": "attn_out",
        "mlp.fc1": "ffn_up",
        "mlp.fc2": "ffn_down",
    }
    for name, weight in tower.items():
        name = name.removeprefix("vision_model.")
        head, _, kind = name.rpartition(".")
        if head == "embeddings.patch_embedding":
            yield f"v.patch_embd.{kind}", weight
        elif head == "embeddings.position_embedding":
            yield f"v.position_embd.{kind}", weight
        elif head.startswith("encoder.layers."):
            number, _, part = head.removeprefix("encoder.layers.").partition(".")
            if int(number) < used:
                yield f"v.blk.{number}.{names[part]}.{kind}", weight
    projector = model.model.multi_modal_projector
    for number, layer in ((0, projector.linear_1), (2, projector.linear_2)):
        yield f"mm.{number}.weight", layer.weight
        yield f"mm.{number}.bias", layer.bias
