"""T5 and CLIP of tiny size with random weights, in the layout of `transformers`, with tokenizers made here."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["a", "cat", "dog", "runs", "on", "the", "wall", "24", "FPS", "4", "motion", "score", ",", "."]


def tokenizer_of(kind, special, **options):
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(special + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=special[-1]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    template = "$A </s>" if kind == "t5" else "<s> $A </s>"
    tokens = [(name, vocabulary[name]) for name in ("<s>", "</s>") if name in template]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)


def save_t5(folder, seed=1, width=32):
    from transformers import T5Config, T5EncoderModel

    torch.manual_seed(seed)
    config = T5Config(
        vocab_size=24, d_model=width, d_kv=8, d_ff=48, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"
    )
    model = T5EncoderModel(config).eval()
    model.save_pretrained(folder)
    tokenizer = tokenizer_of("t5", ["<pad>", "</s>", "<unk>"], pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    return model, tokenizer


def save_clip(folder, seed=2):
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(seed)
    config = CLIPTextConfig(
        vocab_size=24,
        hidden_size=24,
        intermediate_size=48,
        projection_dim=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=12,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = CLIPTextModel(config).eval()
    model.save_pretrained(folder)
    special = ["<s>", "</s>", "<unk>"]
    tokenizer = tokenizer_of("clip", special, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>")
    return model, tokenizer
