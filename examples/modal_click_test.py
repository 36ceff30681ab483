"""The main job on a rented GPU: https://modal.com starts it, and it starts click_test.py.

    pip install modal && modal setup                                       # once
    modal run examples/modal_click_test.py --config lfm2_350m_lora.yaml
    modal run examples/modal_click_test.py --gpu H100 --args "--task click-button --steps 80"

Progress appears here. The run lives in a volume, where it goes on from its last checkpoint after a
preemption; what it leaves comes back to `runs/<name>/`, all but the checkpoints. docs/modal.md
"""

from __future__ import annotations

import io
import os
import shlex
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import modal

ROOT = Path(__file__).parents[1]  # of the checkout; Modal's container has this file alone there
GPU = "A100-40GB"
SECRETS = ("HF_TOKEN", "WANDB_API_KEY")
APP, CACHE, RUNS = "/app", "/cache", "/runs"
GRACE_S = 25  # of the 30 seconds that a preempted container has
REFUSED = 2

app = modal.App("grpo-browser")
cache = modal.Volume.from_name("grpo-browser-cache", create_if_missing=True)
runs = modal.Volume.from_name("grpo-browser-runs", create_if_missing=True)
image = (
    modal.Image.from_dockerfile(
        ROOT / "Dockerfile", context_dir=ROOT, build_args={"DEVICE": "cuda"}
    )
    .dockerfile_commands("USER root")  # who may write into the volumes
    .entrypoint([])  # Modal starts its own program
    .env({"HF_HOME": f"{CACHE}/huggingface"})
)
# One secret always, if an empty one: its number must be the same here and in the container.
secret = modal.Secret.from_dict({name: os.environ[name] for name in SECRETS if name in os.environ})


@app.function(
    image=image,
    gpu=GPU,
    cpu=8.0,  # the browsers bound a step (docs/scale.md)
    memory=32768,
    volumes={CACHE: cache, RUNS: runs},
    secrets=[secret],
    timeout=24 * 3600,
    # What is preempted is started again anyway; these are for what crashes, and for the timeout.
    retries=modal.Retries(max_retries=3, initial_delay=0.0),
    single_use_containers=True,
)
def train(name: str, config: str, options: list[str], folder: str = RUNS) -> tuple[int, bytes]:
    """Run click_test.py to its end, from the run's last checkpoint if there is one.

    Args:
        name: of the run.
        config: the text of a configuration file; empty for the task's own.
        options: of click_test.py.
        folder: where the run's folder is.

    Returns:
        The exit code, 0 or 2 (refused: to start again would not help), and the run's files.

    Raises:
        RuntimeError: the run ended otherwise; Modal starts it again.
    """
    root = ROOT if modal.is_local() else Path(APP)
    run = Path(folder, name)
    command = [sys.executable, "examples/click_test.py", *options]
    if config:
        run.mkdir(parents=True, exist_ok=True)
        (run / "asked.yaml").write_text(config)
        command += ["--config", str(run / "asked.yaml")]
    command += ["--output", str(run), "--resume"]
    try:
        code = run_to_end(command, root)
    finally:
        if not modal.is_local():
            runs.commit()
    if code not in (0, REFUSED):
        raise RuntimeError(f"click_test.py ended with exit code {code}")
    return code, pack(run) if code == 0 else b""


def run_to_end(command: list[str], folder: Path) -> int:
    """Run a program; if this one is interrupted, tell it to save and wait until it has.

    Returns:
        Its exit code.
    """
    process = subprocess.Popen(command, cwd=folder)
    try:
        return process.wait()
    finally:  # Modal's interrupts are exceptions of several kinds
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def pack(run: Path) -> bytes:
    """Pack what a run leaves, all but its checkpoints."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for path in sorted(run.iterdir()):
            if path.name != "checkpoints":
                tar.add(path, path.name)
    return packed.getvalue()


def unpack(packed: bytes, run: Path) -> None:
    """Unpack what `pack` packed."""
    run.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        tar.extractall(run, filter="data")


def find_config(config: str) -> Path | None:
    """Find a configuration: a path, or a name in `examples/configs/`; None for "".

    Raises:
        ValueError: it is neither.
    """
    if not config:
        return None
    configs = ROOT / "examples" / "configs"
    for path in (Path(config), configs / config, configs / f"{config}.yaml"):
        if path.is_file():
            return path
    names = ", ".join(sorted(path.name for path in configs.glob("*.yaml")))
    raise ValueError(f"--config must be a file or one of {names}, got {config!r}")


@app.local_entrypoint()
def main(
    config: str = "", args: str = "", env_url: str = "", gpu: str = GPU, name: str = ""
) -> None:
    """Train on Modal and bring the adapter and the report back.

    Args:
        config: a file, or a name in examples/configs.
        args: options of click_test.py, in one text.
        env_url: OpenEnv server or Space; without one the browsers are in the container.
        gpu: A100-40GB, H100, L4, ... (https://modal.com/docs/guide/gpu).
        name: of the run; that of an earlier one goes on with it.
    """
    sys.path.insert(0, str(ROOT))
    from grpo.config import Config, ConfigError

    options = [*shlex.split(args), *(["--env-url", env_url] if env_url else [])]
    try:
        path = find_config(config)
        asked = ["--config", str(path)] if path else []
        # All that can be refused without a GPU is refused before one is paid for.
        task = Config.from_command_line(
            [*options, *asked], description="options of --args", configs=ROOT / "examples/configs"
        ).task
    except (ConfigError, ValueError) as error:
        sys.exit(f"error: {error}")
    name = name or f"{task}-{time.strftime('%Y%m%d-%H%M%S')}"
    print(f"{name}: to go on with it, --name {name}")
    start = train.with_options(gpu=gpu).remote
    code, packed = start(name, path.read_text() if path else "", options)
    if code:
        sys.exit(code)
    unpack(packed, Path("runs", name))
    print(f"runs/{name}/  its checkpoints: modal volume get grpo-browser-runs {name}")
