"""Fetching a checkpoint from the Hugging Face hub into its usual cache."""

from pathlib import Path

from semipd.core.errors import SemipdError

_SMALL_FILES = ["*.json", "*.jinja", "tokenizer*"]
_WEIGHTS = ["*.safetensors"]
# other spellings of the same weights, and conversions in folders, would double the download
_LEFT_OUT = ["*/*", "consolidated*"]


def download(name: str, *, weights: bool) -> Path:
    """The local snapshot folder of the hub's `name`, with or without the weights; progress on stderr.

    Files already in the cache are not fetched again, and without a network a cached snapshot serves.
    Raises SemipdError(`model_not_found` or `model_download_failed`).
    """
    import huggingface_hub  # here: it takes long to import, and local folders do not need it

    patterns = _SMALL_FILES + (_WEIGHTS if weights else [])
    try:
        return Path(
            huggingface_hub.snapshot_download(name, allow_patterns=patterns, ignore_patterns=_LEFT_OUT)
        )
    except Exception as error:  # its own errors, those of its HTTP client, those of the disk
        raise _explain(name, error) from error


def _explain(name: str, error: Exception) -> SemipdError:
    from huggingface_hub import errors

    no_folder = f"There is no folder {name} either."
    # GatedRepoError is a RepositoryNotFoundError, so it comes first
    if isinstance(error, errors.GatedRepoError):
        message = f"The model {name} on the Hugging Face hub is gated: its owner must grant access."
        hint = f"Accept its terms at https://huggingface.co/{name}, then run `hf auth login` or set HF_TOKEN."
    elif isinstance(error, errors.HFValidationError):
        message = f"{name} is not a valid Hugging Face name. {no_folder}"
        hint = "A Hugging Face name has the form owner/model."
    elif isinstance(error, errors.RepositoryNotFoundError):
        message = f"The Hugging Face hub has no model {name}, or it is private. {no_folder}"
        hint = "Check the spelling; for a private model run `hf auth login` or set HF_TOKEN."
    elif isinstance(error, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled):
        message = f"{name} is not in the local cache and the Hugging Face hub cannot be reached. {no_folder}"
        hint = "Check the network and HF_HUB_OFFLINE, or name a local folder with the checkpoint."
    else:
        message = f"Downloading {name} from the Hugging Face hub failed: {error}."
        return SemipdError(
            "model_download_failed",
            message,
            "Start again: what has arrived is kept in the cache (HF_HOME).",
            param="model.name",
        )
    return SemipdError("model_not_found", message, hint, param="model.name")
