"""Names and ids that training data, prompts and models share; the values are LLaVA's.

Released checkpoints and evaluation suites rely on them.
"""

IGNORE_INDEX = -100
"""Label of a position without loss; torch's cross entropy leaves it out."""
IMAGE_TOKEN_INDEX = -200
"""Id that stands for one image before its tokens take its place; no vocabulary has it."""

# No passwords, whatever the linter takes a token for.
DEFAULT_IMAGE_TOKEN = "<image>"  # noqa: S105
DEFAULT_IMAGE_PATCH_TOKEN = "<im_patch>"  # noqa: S105
DEFAULT_IM_START_TOKEN = "<im_start>"  # noqa: S105
DEFAULT_IM_END_TOKEN = "<im_end>"  # noqa: S105
IMAGE_PLACEHOLDER = "<image-placeholder>"
