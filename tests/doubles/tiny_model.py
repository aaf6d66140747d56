"A model of a few words, with the inputs, outputs and files of a trained one; it loads at once and is easy to predict."

import json
from pathlib import Path

import onnx
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

WEIGHTS = {"[PAD]": 0, "[UNK]": 0, "[CLS]": 0, "[SEP]": 0}  # the special tokens come first, as in every BERT
WEIGHTS |= {"love": 3, "excellent": 3, "perfectly": 2, "happy": 2, "good": 1}
WEIGHTS |= {"not": -1, "bad": -1, "terrible": -3, "broke": -3, "worst": -3}
CONFIG = {"id2label": {"0": "NEGATIVE", "1": "POSITIVE"}, "max_position_embeddings": 512, "pad_token_id": 0}
METRICS = {"accuracy": 0.91, "macro_f1": 0.9, "majority": {"accuracy": 0.5, "macro_f1": 0.33}}


def graph(weights: dict[str, int], types: bool = False) -> onnx.ModelProto:
    "Return an ONNX model that adds up the words' weights; with `types` it also accepts token_type_ids, like BERT."
    table = ", ".join(f"{-weight}, {weight}" for weight in weights.values())
    more = ", int64[batch, tokens] token_type_ids" if types else ""
    first = "ids = Add(input_ids, token_type_ids)" if types else "ids = Identity(input_ids)"
    return onnx.parser.parse_model(f"""<ir_version: 10, opset_import: ["": 17]>
    words (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask{more}) => (float[batch, 2] logits)
    <float[{len(weights)}, 2] table = {{{table}}}, int64[1] last = {{-1}}, int64[1] middle = {{1}}> {{
        {first}
        each = Gather(table, ids)
        seen = Cast<to = 1>(attention_mask)
        column = Unsqueeze(seen, last)
        kept = Mul(each, column)
        logits = ReduceSum<keepdims = 0>(kept, middle)
    }}""")


def tokenizer(weights: dict[str, int]) -> Tokenizer:
    "Return a tokenizer of whole words."
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(weights)}, unk_token="[UNK]"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    words.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return words


def write_tiny_model(
    folder: Path,
    weights: dict[str, int] = WEIGHTS,  # by word; 0 to 3 are [PAD], [UNK], [CLS] and [SEP]
    types: bool = False,  # whether the model accepts token_type_ids
) -> Path:  # `folder`
    "Write the root of an artifact, without its code."
    folder.mkdir(parents=True, exist_ok=True)
    onnx.save(graph(weights, types), folder / "model.onnx")
    tokenizer(weights).save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "metrics.json").write_text(json.dumps(METRICS))
    return folder
