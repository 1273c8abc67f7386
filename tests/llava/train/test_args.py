"""Flags: published scripts parse, old names are mapped, what cannot be meant is refused early."""

import shlex

import pytest

from llava.errors import LawError, UsageError
from llava.train.args import as_flags, parse

BASE = ["--model_name_or_path", "llm", "--data_path", "data.json", "--output_dir", "out"]
IMAGES = [*BASE, "--vision_tower", "clip", "--image_folder", "images"]

PRETRAIN = """
  --model_name_or_path lmsys/vicuna-7b-v1.5 --version plain --data_path blip_laion_cc_sbu_558k.json
  --image_folder images --vision_tower openai/clip-vit-large-patch14 --mm_projector_type mlp2x_gelu
  --tune_mm_mlp_adapter True --mm_vision_select_layer -2 --mm_use_im_start_end False
  --mm_use_im_patch_token False --bf16 True --output_dir out --num_train_epochs 1
  --per_device_train_batch_size 32 --per_device_eval_batch_size 4 --gradient_accumulation_steps 1
  --evaluation_strategy no --save_strategy steps --save_steps 1000 --save_total_limit 1
  --learning_rate 1e-3 --weight_decay 0. --warmup_ratio 0.03 --lr_scheduler_type cosine
  --logging_steps 1 --tf32 True --model_max_length 2048 --gradient_checkpointing True
  --dataloader_num_workers 4 --lazy_preprocess True --report_to none
"""
"""The flags of the published stage-1 script; a launcher's --deepspeed left out."""

FINETUNE = PRETRAIN.replace("--tune_mm_mlp_adapter True", "--pretrain_mm_mlp_adapter p.bin")
FINETUNE = FINETUNE.replace("--version plain", "--version v1 --group_by_modality_length True")
LORA = FINETUNE + " --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5"


@pytest.mark.parametrize("script", [PRETRAIN, FINETUNE, LORA])
def test_published_scripts_parse(script):
    """Every flag is known, also those that transformers 5 has no more."""
    model, data, training = parse(shlex.split(script))
    assert training.eval_strategy == "no"
    assert training.warmup_steps == 0.03
    assert training.get_warmup_steps(1000) == 30
    assert training.lr_scheduler_type == "cosine"
    assert training.model_max_length == 2048
    assert training.save_total_limit == 1
    assert training.stage1 == model.tune_mm_mlp_adapter
    assert model.mm_vision_select_layer == -2
    assert data.image_aspect_ratio == "square"


def test_the_machine_is_fitted(law_log):
    """Without an accelerator: the CPU, no tf32, and both are said."""
    _, _, training = parse(shlex.split(PRETRAIN))
    assert training.use_cpu
    assert not training.tf32
    assert any("--tf32" in line for line in law_log)


REFUSED = {
    "--versio plain": "did you mean '--version'",
    "--version vicuna_v3": "did you mean 'vicuna_v1'",
    "--image_aspect_ratio padd": "did you mean 'pad'",
    "--image_policy ignore": "unknown value 'ignore'",
    "--mm_vision_select_feature cls_patches": "did you mean 'cls_patch'",
    "--mm_vision_join add": "channel, append, interleave",
    "--mm_vision_geometry sharedd": "did you mean 'shared'",
    "--bits 5": "4, 8, 16",
    "--bits 4": "add --lora_enable True",
    "--tune_mm_mlp_adapter True --lora_enable True": "take one",
    "--tune_mm_mlp_adapter True --freeze_mm_mlp_adapter True": "nothing to train",
    "--image_aspect_ratio anyres": "--image_grid_pinpoints",
    "--vision_features store": "--feature_store",
    "--verify_images exists": "did you mean 'exist'",
    "--warmup_ratio 3": "expected 0 up to below 1",
    "--fp16 True": "--bf16 True",
    "--eval_strategy steps --eval_steps 5": "does not evaluate",
    "--max_dropped 2": "from 0 to 1",
    "--label_smoothing_factor 0.1": "logits at all positions",
    "--deepspeed scripts/zero9.json": "no such file",
    "--config": "needs a YAML file",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_refused(flags):
    """Bad usage: one line that says what to type, before anything is loaded."""
    with pytest.raises(UsageError, match=REFUSED[flags].replace("(", r"\(")):
        parse([*IMAGES, *shlex.split(flags)])


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (BASE[2:], "--model_name_or_path is missing"),
        (BASE[:2], "--data_path is missing"),
        ([*BASE, "--vision_tower", "clip"], "--image_folder is missing"),
        ([*BASE, "--tune_mm_mlp_adapter", "True"], "--vision_tower is missing"),
        ([*BASE, "--a_score", "True"], "--vision_tower is missing"),
    ],
)
def test_missing(flags, says):
    """What must be given is asked for by its flag."""
    with pytest.raises(UsageError, match=says):
        parse(flags)


def test_a_file_of_flags(tmp_path):
    """YAML first, the command line over it; numbers as YAML 1.2 reads them."""
    path = tmp_path / "stage1.yaml"
    path.write_text(
        "model_name_or_path: llm\ndata_path: a.json\nlearning_rate: 2e-5\nnum_train_epochs: 3\n"
        "vision_tower: clip\nimage_folder: images\ntower_alias: [clip=x, dinov2=y]\nseed: null\n"
    )
    model, data, training = parse(["--config", str(path), "--num_train_epochs", "1"])
    assert (training.learning_rate, training.num_train_epochs, training.seed) == (2e-5, 1, 42)
    assert model.tower_alias == ["clip=x", "dinov2=y"]
    assert data.data_path == "a.json"
    path.write_text("- a\n")
    with pytest.raises(UsageError, match="expected flags with their values"):
        parse(["--config", str(path)])
    path.write_text("learning_rat: 1\n")
    with pytest.raises(LawError, match="did you mean '--learning_rate'"):
        parse([f"--config={path}", *BASE])


def test_flags_are_kept_plain():
    """What the run folder records: every group's fields, as JSON can hold them."""
    import json

    flags = as_flags(parse(IMAGES))
    assert flags["vision_tower"] == "clip"
    assert flags["model_max_length"] == 2048
    assert json.loads(json.dumps(flags)) == flags
