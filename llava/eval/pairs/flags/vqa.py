"""Flags of `--scorer vqa`."""

import argparse

from llava.eval.pairs.flags.shared import add_batch_size, add_device, add_tower_alias

QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
"""The question of VQAScore (t2v_metrics, Apache-2.0)."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of the checkpoint and of how it is asked."""
    parser.add_argument(
        "--model-path", "--model_path", required=True, metavar="RUN", help="a LLaVA of stage 2"
    )
    parser.add_argument(
        "--model-base", "--model_base", metavar="LLM", help="language model of adapters"
    )
    parser.add_argument(
        "--conv-mode",
        "--conv_mode",
        metavar="NAME",
        help="conversation template; unset: that of training",
    )
    parser.add_argument(
        "--question-template",
        default=QUESTION,
        metavar="TEXT",
        help="with {} for the caption; unset: %(default)s",
    )
    parser.add_argument(
        "--answer-eos",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="score the end mark, too, and take the mean over tokens, as VQAScore does",
    )
    parser.add_argument(
        "--dtype", metavar="NAME", help="of the model; unset: that of its checkpoint"
    )
    add_batch_size(parser, 16, "questions at once")
    add_device(parser)
    add_tower_alias(parser)
