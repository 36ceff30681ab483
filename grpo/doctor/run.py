"""The list of the checks of `grpo doctor`, and how they are run and shown."""

from __future__ import annotations

import inspect
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, nullcontext
from typing import Any, NamedTuple

from rich.text import Text

from envs.base import Env
from envs.pool import EnvPool
from grpo.blocking import wait_for
from grpo.config import Config
from grpo.distributed import World
from grpo.doctor import attention, browser, machine, model, rates, training
from grpo.doctor.breaks import Fault, faults_of
from grpo.doctor.context import Check, Context, Failed, Skipped
from grpo.errors import one_line_reason
from grpo.reporting.progress import Bars
from grpo.safe_output import one_line, without_passwords
from grpo.shutdown import Shutdown

CHECKS = (
    Check("versions", machine.versions),
    Check("device", machine.device),
    Check("memory", machine.memory, ("device",)),
    Check("dtypes", machine.dtypes, ("device",)),
    Check("rates", rates.rates, ("device",)),
    Check("model", model.model, ("device",)),
    Check("tree", model.tree, ("model",)),
    Check("attention", attention.attention, ("model",)),
    Check("generator", model.generator, ("model",)),
    Check("speed", model.speed, ("model",)),
    Check("training", training.training, ("device",)),
    Check("vllm", model.vllm, ("model",)),
    Check("chromium", browser.chromium),
    Check("episodes", browser.episodes, ("chromium",)),
    Check("step", browser.step, ("speed",)),
)
"""In the order in which they run. A new one is a function and a line here."""

STYLES = {"pass": "green", "fail": "bold red", "skipped": "yellow"}


class Finding(NamedTuple):
    """What a check found.

    Attributes:
        name: the check's.
        status: "pass", "fail" or "skipped".
        detail: what was found, why it failed or was skipped, and what to do; one line.
        seconds: that it took.
    """

    name: str
    status: str
    detail: str
    seconds: float


def doctor(
    config: Config,
    scripted: Callable[[], Env],
    browsers: Callable[[Config], EnvPool],
    *,
    checks: Sequence[Check] = CHECKS,
    as_json: bool = False,
) -> list[Finding]:
    """Make the checks one after the other, and print each as it ends.

    Args:
        config: the model, device and dtype, and what the checks use of the other options.
        scripted: makes an environment without a browser (`envs.scripted.ScriptedEnv`).
        browsers: makes the pool of browser sessions.
        checks: what to check.
        as_json: True to print a JSON object with all figures as the last line.

    Returns:
        One finding per check.

    Raises:
        ConfigError: the variable of `grpo.doctor.breaks` names no fault.
        Stopped: a signal ended the program.
    """
    shutdown, world = Shutdown(), World.single()
    bars, faults = Bars.for_world(world), faults_of()
    measured: dict[str, float] = {}
    findings: list[Finding] = []
    started = time.monotonic()

    async def program() -> None:
        executor = ThreadPoolExecutor(1, "torch")
        async with shutdown, AsyncExitStack() as stack:
            context = Context(config, scripted, browsers, executor, stack, measured)
            for check in checks:
                console = bars.console
                with console.status(check.name) if console.is_interactive else nullcontext():
                    finding = await _finding(check, context, findings, faults)
                findings.append(finding)
                console.print(_line(finding), soft_wrap=True)
        executor.shutdown()  # not after a signal: nobody waits for what it does then

    wait_for(program(), world, shutdown)
    failed = [finding.name for finding in findings if finding.status == "fail"]
    seconds = time.monotonic() - started
    end = f"failed: {', '.join(failed)}" if failed else "no check failed"
    bars.console.print(f"{end} ({seconds:.0f} s)", soft_wrap=True)
    if as_json:
        report: dict[str, Any] = {
            "failed": failed,
            "seconds": round(seconds, 2),
            "checks": [finding._asdict() for finding in findings],
            # JSON has no NaN and no infinity.
            "measured": {k: v if math.isfinite(v) else None for k, v in measured.items()},
        }
        print(json.dumps(report))
    return findings


async def _finding(
    check: Check, context: Context, findings: Sequence[Finding], faults: Mapping[str, Fault]
) -> Finding:
    """Make a check, unless one that it needs has not passed."""
    before = {finding.name: finding.status for finding in findings}
    started = time.monotonic()
    for need in check.needs:
        if (status := before.get(need)) != "pass":
            reason = {"fail": "failed", "skipped": "was skipped"}.get(status or "", "was not made")
            return Finding(check.name, "skipped", f"needs {need}, which {reason}", 0.0)
    fault = faults.get(check.name)
    try:
        with fault(context) if fault else nullcontext():
            found = await context.run(check.run, context)
            detail = await found if inspect.isawaitable(found) else found
        status = "pass"
    except Skipped as error:
        status, detail = "skipped", str(error)
    except Failed as error:
        status, detail = "fail", str(error)
    except Exception as error:  # of this check alone: the others tell whether more is wrong
        status, detail = "fail", one_line_reason(error)
    detail = one_line(without_passwords(detail))
    return Finding(check.name, status, detail, round(time.monotonic() - started, 2))


def _line(finding: Finding) -> Text:
    return Text.assemble(
        (f"{finding.status:<8}", STYLES[finding.status]),
        f" {finding.name:<10} {finding.detail}",
    )
