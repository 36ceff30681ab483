"""Upload of a finished run to the Hugging Face Hub, with its model card.

Tokens and servers are the hub client's own: `hf auth login`, `HF_TOKEN`, `HF_ENDPOINT`.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path

from grpo.errors import ConfigError
from grpo.files import CARD, write_text
from grpo.reporting.model_card import base_model, model_card, read_object, trained_weights

RECORDS = ("config.yaml", "summary.json", "metrics.jsonl", "completions.txt", "curves.png")
"""Files of a run that are uploaded beside its card, its weights and its pictures."""


class HubError(OSError):
    """The upload failed; the run is complete on the disk, and the message says how to retry."""


def check_access(repo_id: str) -> None:
    """Check before a run that it may upload its results after it.

    Raises:
        ConfigError: there is no token, the hub cannot be reached or rejects the token, or the
            token cannot write to `repo_id`.
    """
    from huggingface_hub import HfApi

    try:
        user = HfApi().whoami()
    except Exception as error:  # as below
        raise ConfigError(f"cannot push to {repo_id}: {_reason(error)}") from error
    owners = [user["name"], *(each["name"] for each in user.get("orgs") or [])]
    if repo_id.split("/")[0] not in owners:
        raise ConfigError(f"cannot push to {repo_id}: the token belongs to {', '.join(owners)}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(
            f"cannot push to {repo_id}: expected a token that may write, got a read-only one"
        )


def push_to_hub(folder: str | Path, repo_id: str) -> str:
    """Upload a finished run in one commit; create the repository where it is missing.

    The adapter (or `model/`) and its tokenizer go to the top of the repository, where PEFT, vLLM
    and `transformers` look for them. The card stays in the run's folder as `README.md`.

    Args:
        folder: the run's folder, with `config.yaml` and `summary.json`.
        repo_id: `user/name`.

    Returns:
        The repository's address.

    Raises:
        ConfigError: the folder holds no finished run.
        HubError: the upload failed; nothing on the disk is lost.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    folder = Path(folder)
    try:
        contents = _contents(folder, repo_id)
    except ConfigError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"no finished run in {folder}: its files are not as grpo train writes them "
            f"({type(error).__name__}: {error})"
        ) from error
    try:
        api = HfApi()
        url = api.create_repo(repo_id, exist_ok=True)
        files = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(repo_id, files, commit_message="Upload a run of grpo-browser")
    except Exception as error:  # of the client, its HTTP library or xet, which share no class
        raise HubError(
            f"the upload to {repo_id} failed: {_reason(error)}. The run is complete in {folder}; "
            f"to retry: grpo push {shlex.quote(str(folder))} {repo_id}"
        ) from error
    return str(url)


def _contents(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    """Map names in the repository to the files, or their bytes, that are uploaded."""
    card, weights = folder / CARD, trained_weights(folder)
    write_text(card, str(model_card(folder, repo_id)))
    files = [card, *(folder / name for name in RECORDS), *(folder / "media").rglob("*")]
    contents: dict[str, Path | bytes] = {
        **{path.name: path for path in weights.iterdir() if path.is_file()},
        **{str(path.relative_to(folder)): path for path in files if path.is_file()},
    }
    if weights.name == "adapter":  # its config names the base model's folder here
        config = read_object(folder, "adapter/adapter_config.json")
        config["base_model_name_or_path"] = base_model(folder)
        contents["adapter_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return contents


def _reason(error: Exception) -> str:
    """Return the hub client's message in one line, with the server's address."""
    from huggingface_hub import constants

    return f"{' '.join(str(error).split()).rstrip('.')} ({constants.ENDPOINT})"
