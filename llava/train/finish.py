"""What a finished run leaves: projector, adapters or model, whole or not at all."""

import shutil
from pathlib import Path

from llava.log import get_logger
from llava.train.trainer import LLaVATrainer

logger = get_logger("train")

FINAL = ".final"


def finish(trainer: LLaVATrainer) -> None:
    """Writes trainer state and weights into the run folder; files appear only when whole."""
    output = Path(trainer.args.output_dir)
    trainer.save_state()
    if trainer.is_fsdp_enabled:
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    if trainer.args.should_save:
        shutil.rmtree(output / FINAL, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(output / FINAL))
    trainer.accelerator.wait_for_everyone()
    if trainer.args.should_save:
        for path in sorted((output / FINAL).iterdir()):
            path.replace(output / path.name)
        (output / FINAL).rmdir()
        logger.info("finished: %s", output)
