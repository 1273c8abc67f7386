"""Tokenizers for tests: the golden LLaMA ones, and byte-level ones as Qwen's or SmolLM2's."""

import json
import shutil
from pathlib import Path

GOLDEN = Path(__file__).parent / "golden" / "llava"
LLAMA = ("32k_legacy_true", "32k_legacy_false", "tiny_legacy_true", "tiny_legacy_false")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "A copper kettle is on the gas stove. Why is it whistling? Because the water boils. 1987\n\n"
)


def llama_folder(name: str, folder: Path, **config) -> Path:
    """Writes golden tokenizer `name` into `folder`; a config entry of None is left out."""
    shutil.copytree(GOLDEN / "tokenizer" / name, folder, dirs_exist_ok=True)
    model = GOLDEN / "tokenizer" / f"tokenizer_{name.partition('_')[0]}.model"
    shutil.copy(model, folder / "tokenizer.model")
    path = folder / "tokenizer_config.json"
    facts = json.loads(path.read_text()) | config
    path.write_text(json.dumps({k: v for k, v in facts.items() if v is not None}))
    return folder


def byte_level_folder(
    folder: Path, chat_template: str | None = CHATML, bos: bool = False, **config
) -> Path:
    """Writes a small byte-level tokenizer without <unk>, as Qwen's, that trims its spans."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<bos>"]
    trainer = BpeTrainer(
        vocab_size=400,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([WORDS] * 4, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    facts |= {"bos_token": "<bos>", "add_bos_token": True} if bos else {}
    facts |= {"chat_template": chat_template} if chat_template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts | config))
    return folder
