"""MMBench's score by a grading service, whose silence is an error."""

from typing import Any

from lmms_eval.tasks.mmbench.en_utils import mmbench_evaluator
from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

from llava.errors import LawError

FAILED = "Failed to obtain answer via API"
"""What lmms-eval 0.7.3 takes for an answer where none came."""


class Grading(MMBench_Evaluator):
    """lmms-eval's evaluator; LawError where it would go on without the service."""

    def get_chat_response(self, *arguments: Any, **more: Any) -> str:
        """What the service says."""
        said = super().get_chat_response(*arguments, **more)
        if said == FAILED:
            raise LawError(
                f"the grading service at {self.API_URL} did not answer ({self.model_version}); "
                "check the key, the network and the quota, or evaluate mmbench_en_dev_static, "
                "which needs no service"
            )
        return said


def graded(results: list[dict[str, Any]]) -> float:
    """Percent of the questions that are answered rightly in every order of their options."""
    shipped = mmbench_evaluator
    grading = Grading(shipped.sys_prompt, shipped.API_KEY, shipped.API_URL, shipped.model_version)
    overall, _, _ = grading.eval_result(results, eval_method="openai")
    return overall * 100
