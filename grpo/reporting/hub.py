"""The Hugging Face hub: a finished run goes up with its model card, an adapter comes down.

    python -m grpo.reporting.hub runs/click-test user/name     # upload a finished run, or try again

Tokens and servers are the hub client's own: `hf auth login`, `HF_TOKEN`, `HF_ENDPOINT`.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, snapshot_download

from grpo.config import ConfigError, is_hub_id
from grpo.reporting.model_card import base_model, model_card, trained_weights

RECORDS = ("config.yaml", "summary.json", "metrics.jsonl", "completions.txt", "curves.png")
"""What goes up of a run beside its card, its weights and its pictures, where it is there."""


class HubError(OSError):
    """The upload failed; the run is whole on the disk, and the message says how to try again."""


def find_adapter(name: str) -> Path:
    """The folder of an adapter: the one of that name, else the hub's, downloaded.

    Raises:
        ConfigError: there is neither, or the hub does not give it.
    """
    if Path(name).is_dir():
        return Path(name)
    wanted = "expected a folder with adapter_config.json, or a hub id such as 'user/name'"
    if not is_hub_id(name):
        raise ConfigError(f"no adapter at {name!r}: {wanted}")
    files = ["adapter_config.json", "adapter_model.safetensors"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=files))
    except (OSError, ValueError) as error:
        raise ConfigError(f"no adapter at {name!r}: {wanted}; got: {_reason(error)}") from error
    if not (folder / files[0]).is_file():
        raise ConfigError(f"no adapter at {name!r}: {wanted}; got a repository without that file")
    return folder


def check_access(repo_id: str) -> None:
    """Ask the hub who we are: a run shall not learn at its end that it may not upload.

    Raises:
        ConfigError: there is no token, the hub cannot be reached or does not know the token, or
            the token cannot write where `repo_id` is.
    """
    try:
        user = HfApi().whoami()
    except Exception as error:  # as below
        raise ConfigError(f"cannot push to {repo_id}: {_reason(error)}") from error
    owners = [user["name"], *(each["name"] for each in user.get("orgs") or [])]
    if repo_id.split("/")[0] not in owners:
        raise ConfigError(f"cannot push to {repo_id}: the token is of {', '.join(owners)}")
    if user.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise ConfigError(f"cannot push to {repo_id}: the token may read only, expected to write")


def push_to_hub(folder: str | Path, repo_id: str) -> str:
    """Upload a finished run in one commit; the repository is made where it is not there.

    The adapter (or `model/`) and what lies beside it, e.g. the tokenizer, go to the top, where
    PEFT, vLLM and `transformers` look for them. The card stays in the folder as `README.md`.

    Args:
        folder: the run's, with `config.yaml` and `summary.json`.
        repo_id: `user/name`.

    Returns:
        The address of the repository.

    Raises:
        ConfigError: the folder holds no finished run.
        HubError: the hub did not take it. Nothing on the disk is lost.
    """
    folder = Path(folder)
    contents = _contents(folder, repo_id)
    try:
        api = HfApi()
        url = api.create_repo(repo_id, exist_ok=True)
        files = [CommitOperationAdd(name, content) for name, content in contents.items()]
        api.create_commit(repo_id, files, commit_message="Upload a run of grpo-browser")
    except Exception as error:  # of the client, its HTTP library or xet: they share no class
        raise HubError(
            f"the upload to {repo_id} failed: {_reason(error)}. The run is whole in {folder}; to "
            f"try again: python -m grpo.reporting.hub {shlex.quote(str(folder))} {repo_id}"
        ) from error
    return str(url)


def _contents(folder: Path, repo_id: str) -> dict[str, Path | bytes]:
    """What goes up: the name in the repository, and the file or its bytes."""
    card, weights = folder / "README.md", trained_weights(folder)
    card.write_text(str(model_card(folder, repo_id)))
    files = [card, *(folder / name for name in RECORDS), *(folder / "media").rglob("*")]
    contents: dict[str, Path | bytes] = {
        **{path.name: path for path in weights.iterdir() if path.is_file()},
        **{str(path.relative_to(folder)): path for path in files if path.is_file()},
    }
    if weights.name == "adapter":  # whose own says where the base model is on this machine
        config = json.loads((weights / "adapter_config.json").read_text())
        config["base_model_name_or_path"] = base_model(folder)
        contents["adapter_config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    return contents


def _reason(error: Exception) -> str:
    """What an error of the hub's client says, in one line, and of which server."""
    return f"{' '.join(str(error).split()).rstrip('.')} ({constants.ENDPOINT})"


def main(argv: Sequence[str] | None = None) -> int:
    """Upload a finished run; returns the exit status."""
    parser = argparse.ArgumentParser(description="Upload a finished run to the Hugging Face hub.")
    parser.add_argument("folder", type=Path, help="of the run")
    parser.add_argument("repo_id", help="where to, user/name")
    arguments = parser.parse_args(argv)
    try:
        if not is_hub_id(arguments.repo_id):
            raise ConfigError(f"expected a hub id, user/name, got {arguments.repo_id!r}")
        print(push_to_hub(arguments.folder, arguments.repo_id))
    except (ConfigError, HubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
