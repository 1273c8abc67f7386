"""The model that is asked: its class, by lmms-eval's registry, and what it is made of."""

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from llava.errors import LawError, UsageError, unknown_name
from llava.eval.harness import harness
from llava.eval.lmms_plugin import manifests

OURS = ("pretrained", "batch_size", "device")
"""Arguments that have flags, whatever the class."""

ASKED_AS = {"law_llava": "llava"}
"""Model -> the one whose prompts and generation arguments in tasks it gets; others have their own.
"""


def model_class(name: str) -> type:
    """lmms-eval's class of that name; ours is there whether or not `llava` is installed.

    Raises UsageError for a name that is none, LawError for a class that does not import.
    """
    models = harness("models")
    for manifest in manifests():
        models.MODEL_REGISTRY_V2.register_manifest(manifest, overwrite=True)
    known = models.list_available_models(include_aliases=True)
    if name not in known:
        raise UsageError(f"--model: {unknown_name('model', name, known)}")
    try:
        found = models.get_model(name, force_simple=True)
    except (ImportError, TypeError, AttributeError) as error:
        raise LawError(f"--model {name}: cannot be imported: {error}") from error
    if not found.is_simple:
        raise UsageError(f"--model {name}: speaks in messages; expected a model of simple requests")
    return found


def given_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """--model_args and the flags that say the same of every class, without what was left unset.

    Raises UsageError for a text in another form, or for something said twice.
    """
    try:
        found = dict(harness("utils").simple_parse_args_string(arguments.model_args))
    except ValueError:
        raise UsageError(f"--model_args {arguments.model_args}: expected k=v,k=v,...") from None
    flags = {
        "pretrained": arguments.run,
        "batch_size": arguments.batch_size,
        "device": arguments.device,
        "model_base": arguments.model_base,
        "conv_template": arguments.conv_template,
        "dtype": arguments.dtype,
        "tower_alias": ";".join(arguments.tower_alias) or None,
    }
    for name, value in flags.items():
        if value is None:
            continue
        if name in found:
            flag = "run" if name == "pretrained" else name.replace("_", "-")
            raise UsageError(f"--model_args {name}: say it by --{flag} alone")
        found[name] = value
    return found


def fitted(cls: type, name: str, given: Mapping[str, Any], template: str) -> dict[str, Any]:
    """What `cls` is made of: `given`, and the template that the model was trained with.

    Raises UsageError for an argument that the class does not name.
    """
    taken = set(inspect.signature(cls.__init__).parameters)
    found = {key: value for key, value in given.items() if key in taken}
    for key in given:
        if key not in taken and key not in OURS:
            raise UsageError(f"--model {name}: {unknown_name('argument', key, sorted(taken))}")
    return found | ({"conv_template": template} if "conv_template" in taken else {})
